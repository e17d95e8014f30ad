"""An hour and more under random faults: `python -m tests.soak --hours 1`, real processes.

500 symbols trade on the paper exchange while a plan strikes it, each fault once in a while. Each
ten seconds memory, file descriptors and restarts are noted. At the end everything heals, and the
ledger is compared with the exchange to the last digit: executions, positions, cash, open orders.
"""

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path

import psutil

from services.ops.ops import Supervisor
from tests.books import open_orders, positions, settled, their_cash
from tests.pipeline import Pipeline, free_port

HEAL_S, LOOK_S = 45, 10
WARM = 0.2  # of the samples: a process that has just begun grows
GROWTH, MOST_MB = 1.05, 600  # the paper exchange keeps what has ended, and does not count


def run(args):
    """What did not hold; the report is printed."""
    pipeline = Pipeline(
        PAPER_SYMBOLS=args.symbols, PAPER_SPEED=args.speed, PAPER_SEED=args.seed, DRAWDOWN_PCT=0,
        DAILY_LOSS_PCT=0, PAPER_BALANCE_USDT=10_000, DASHBOARD_PORT=free_port(),
    )  # fmt: skip
    try:
        up = pipeline.ops("up")
        assert up.returncode == 0, up.stdout + up.stderr
        seconds = args.hours * 3600 / args.speed
        plan = {"seed": args.seed, "seconds": seconds, "every_s": args.every / args.speed}
        pipeline.control("POST", "/plan", plan)
        samples = watched(pipeline, seconds)
        pipeline.control("DELETE", "/fault")
        time.sleep(HEAL_S)
        mode = pipeline.status()["mode"]
        return report(args, samples, mode, *settled(pipeline))
    finally:
        pipeline.close()


def watched(pipeline, seconds):
    """{process: [(rss in MB, file descriptors, pid)]} while it runs."""
    samples, until = defaultdict(list), time.monotonic() + seconds
    supervisor = Supervisor(pipeline.run_dir)
    while (left := until - time.monotonic()) > 0:
        for row in supervisor.processes():
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(row["pid"])
                size = process.memory_info().rss / 1e6
                samples[row["name"]].append((size, process.num_fds(), row["pid"]))
        print(f"\r{left:5.0f} s left ", end="", file=sys.stderr, flush=True)
        time.sleep(min(left, LOOK_S))
    print(file=sys.stderr)
    return samples


def report(args, samples, mode, exchange, account, differ):
    """What was measured, printed, and the list of what did not hold."""
    failed = [f"differs: {what}: {ours} {theirs}" for what, ours, theirs in differ]
    failed += [f"auditor: {line}" for line in exchange["lines"][:5]]
    failed += [f"mode {mode}"] if mode != "RUN" else []
    failed += [] if exchange["struck"] else ["no fault struck"]
    failed += [] if account["executions"] else ["nothing was executed"]
    print(f"{'process':12} {'MB first':>9} {'MB last':>9} {'growth':>7} {'fds':>9} {'starts':>7}")
    total = 0.0
    for name, rows in samples.items():
        late = rows[int(len(rows) * WARM) :]
        sizes = [size for size, _, pid in late if pid == rows[-1][2]]
        tenth = max(1, len(sizes) // 10)
        first, last = statistics.median(sizes[:tenth]), statistics.median(sizes[-tenth:])
        handles, starts = [count for _, count, _ in late], len({pid for _, _, pid in rows})
        fds = f"{min(handles)}-{max(handles)}"
        print(f"{name:12} {first:9.1f} {last:9.1f} {last / first - 1:+7.1%} {fds:>9} {starts:>7}")
        total += last if name != "paper" else 0.0
        if args.hours / args.speed > 1 and last / first > GROWTH and name != "paper":
            failed.append(f"{name} grew")
        failed += [f"{name} began {starts} times"] if starts > 1 else []
    failed += [f"{total:.0f} MB in all"] if total > MOST_MB else []
    print(
        f"faults struck {exchange['struck']}, auditor breaches {exchange['breaches']}, mode {mode}"
    )
    print(
        f"executions {len(account['executions'])}, open orders {len(open_orders(account))}, "
        f"positions {len(positions(account))}, cash {their_cash(account)}, {total:.0f} MB in all"
    )
    print("wrong: " + ("\n  ".join(failed) if failed else "nothing"))
    return failed


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--hours", type=float, default=1, help="of the market (1)")
    parser.add_argument("--speed", type=float, default=1, help="market hours in an hour (1)")
    parser.add_argument("--symbols", type=int, default=500)
    parser.add_argument("--every", type=float, default=60, help="market seconds a fault (60)")
    parser.add_argument("--seed", type=int, default=105)
    parser.add_argument("--keep", type=Path, help="write the result there, too")
    args = parser.parse_args()
    failed = run(args)
    if args.keep:
        args.keep.write_text(json.dumps({"failed": failed, **vars(args)}, default=str))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
