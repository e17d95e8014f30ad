"""An hour and more under random faults: `python -m tests.soak --hours 1`, real processes.

500 symbols trade on the paper exchange while a plan strikes it, each fault once in a while. Each
ten seconds memory, file descriptors and restarts are noted. At the end everything heals, and the
ledger is compared with the exchange to the last digit: executions, positions, cash, open orders.
"""

import argparse
import contextlib
import json
import sqlite3
import statistics
import sys
import time
from collections import defaultdict
from decimal import Decimal
from pathlib import Path

import psutil

from services.ops.ops import Supervisor
from tests.pipeline import OPEN, Pipeline

HEAL_S, LOOK_S = 45, 10
WARM = 0.2  # of the samples: a process that has just begun grows
AMOUNTS = (("exec_qty", "execQty"), ("exec_price", "execPrice"), ("exec_fee", "execFee"))


def run(args):
    """Its rows of the report, and whether everything held."""
    pipeline = Pipeline(
        PAPER_SYMBOLS=args.symbols, PAPER_SPEED=args.speed, PAPER_SEED=args.seed, DRAWDOWN_PCT=0,
        DAILY_LOSS_PCT=0, PAPER_BALANCE_USDT=10_000,
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
        exchange, account = settled(pipeline)
        return report(pipeline, samples, mode, exchange, account)
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


def settled(pipeline):
    """The exchange's status and account at a moment in which nothing was under way."""
    for _ in range(60):
        before = pipeline.control("GET", "/account")
        time.sleep(1.5)
        if not differences(pipeline, before):
            return pipeline.control("GET", "/"), before
    return pipeline.control("GET", "/"), before


def differences(pipeline, account):
    """What the ledger and the exchange say differently: (what, ledger, exchange)."""
    file = f"file:{pipeline.run_dir / 'state.db'}?mode=ro"
    with contextlib.closing(sqlite3.connect(file, uri=True, timeout=10)) as db:
        db.row_factory = sqlite3.Row
        executions = {row["exec_id"]: row for row in db.execute("SELECT * FROM executions")}
        lots = list(db.execute("SELECT * FROM lots WHERE closed_ms = 0"))
        foreign = list(db.execute("SELECT * FROM foreigners"))
        orders = {row[0] for row in db.execute("SELECT order_id FROM orders WHERE open")}
    theirs = {row["execId"]: row for row in account["executions"]}
    pairs = [
        ("executions", set(executions), set(theirs)),
        ("open orders", orders, open_orders(account)),
        ("positions", held(lots, foreign), positions(account)),
        ("cash", cash(executions.values()), their_cash(account)),
    ]
    for name in executions.keys() & theirs.keys():
        ours = [Decimal(executions[name][our]) for our, _ in AMOUNTS]
        pairs.append((name, ours, [Decimal(theirs[name][their]) for _, their in AMOUNTS]))
    return [pair for pair in pairs if pair[1] != pair[2]]


def open_orders(account):
    return {row["orderId"] for row in account["orders"] if row["orderStatus"] in OPEN}


def positions(account):
    return {
        row["symbol"]: Decimal(row["size"]) * (1 if row["side"] == "Buy" else -1)
        for row in account["positions"]
    }


def held(lots, foreign):
    """The signed quantity of each symbol, by the ledger."""
    sums = defaultdict(Decimal)
    for lot in lots:
        qty = Decimal(lot["bought"]) - Decimal(lot["sold"])
        sums[lot["symbol"]] += qty if lot["side"] == "Buy" else -qty
    for row in foreign:
        sums[row["symbol"]] += Decimal(row["qty"])
    return {symbol: qty for symbol, qty in sums.items() if qty}


def cash(executions):
    """What all fills, fees and funding have brought, by the ledger."""
    total = Decimal(0)
    for row in executions:
        total -= Decimal(row["exec_fee"])
        if row["exec_type"] != "Funding":
            value = Decimal(row["exec_qty"]) * Decimal(row["exec_price"])
            total -= value if row["side"] == "Buy" else -value
    return total


def their_cash(account):
    """The same by the exchange: what it has booked, less what open positions have cost."""
    flows = {name: Decimal(value) for name, value in account["flows"].items()}
    rows = account["positions"]
    cost = sum(Decimal(r["positionValue"]) * (1 if r["side"] == "Buy" else -1) for r in rows)
    return flows["realised"] - flows["fees"] - flows["funding"] - cost


def report(pipeline, samples, mode, exchange, account):
    """What was measured, and the list of what did not hold."""
    differ = differences(pipeline, account)
    failed = [f"differs: {what}" for what, _, _ in differ]
    failed += [f"auditor: {line}" for line in exchange["lines"][:5]]
    if mode != "RUN":
        failed.append(f"mode {mode}")
    print(f"{'process':12} {'MB first':>9} {'MB last':>9} {'growth':>7} {'fds':>9} {'starts':>7}")
    for name, rows in samples.items():
        settled_rows = rows[int(len(rows) * WARM) :]
        pids = {pid for _, _, pid in rows}
        sizes = [size for size, _, pid in settled_rows if pid == rows[-1][2]]
        tenth = max(1, len(sizes) // 10)
        first, last = statistics.median(sizes[:tenth]), statistics.median(sizes[-tenth:])
        fds = sorted(count for _, count, _ in settled_rows)
        growth = f"{100 * (last / first - 1):+.1f} %"
        handles = f"{fds[0]}-{fds[-1]}"
        print(f"{name:12} {first:9.1f} {last:9.1f} {growth:>7} {handles:>9} {len(pids):>7}")
    print(
        f"faults struck {exchange['struck']}, auditor breaches {exchange['breaches']}, mode {mode}"
    )
    print(
        f"executions {len(account['executions'])}, open orders {len(open_orders(account))},", end=""
    )
    print(f" positions {len(positions(account))}, cash {their_cash(account)}")
    print("differences: " + (", ".join(failed) if failed else "none"))
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
