"""Many lives, each from its seed: `python -m tests.simulation --seeds 1000`, or `--seed 17`.

A life that breaks a rule prints the rule, then the shortest plan found that still breaks it.
"""

import argparse
import os
import sys
import tempfile
import time
import traceback
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from tests.simulation.plans import draw
from tests.simulation.world import World

SHM = Path("/dev/shm")
MEMORY = SHM if SHM.is_dir() else None  # a disk whose syncs cost nothing


def live(plan):
    """(what went wrong or "", the trace, what was seen) of one life."""
    with tempfile.TemporaryDirectory(prefix="dm-sim-", dir=MEMORY) as folder:
        world = World(plan, folder)
        try:
            world.live()
        except Exception as error:  # noqa: BLE001 - whatever ends a life is a finding (V22)
            return f"{type(error).__name__}: {error}", world.trace, world.seen
        return "", world.trace, world.seen


def shorter(plan, limit_s=120.0):
    """The plan without the acts that its failure does not need, as far as time allows."""
    rule, until, size = (
        _rule(live(plan)[0]),
        time.monotonic() + limit_s,
        max(1, len(plan.acts) // 2),
    )
    while size:
        start = 0
        while start < len(plan.acts) and time.monotonic() < until:
            less = plan.without(start, start + size)
            if _rule(live(less)[0]) == rule:
                plan = less
            else:
                start += size
        size //= 2
    return plan


def run(seeds, jobs=0):
    """Yields (seed, what went wrong, seen) as the lives end. Whoever stops early stops all."""
    if jobs == 1:
        yield from ((seed, *_one(seed)) for seed in seeds)
        return
    with ProcessPoolExecutor(jobs or os.cpu_count()) as pool:
        try:
            for seed, found in zip(seeds, pool.map(_one, seeds, chunksize=4), strict=True):
                yield seed, *found
        finally:
            pool.shutdown(cancel_futures=True)


def _one(seed):
    wrong, _, seen = live(draw(seed))
    return wrong, seen


def _rule(wrong):
    """What kind of failure it is: two plans fail alike if this is the same."""
    return wrong.split()[:2]


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=300, help="how many lives (300)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (0)")
    parser.add_argument("--seed", type=int, help="only this one: its plan, its shortest failure")
    parser.add_argument("--jobs", type=int, default=0, help="processes (one per core)")
    parser.add_argument("--stop", action="store_true", help="end at the first failure")
    args = parser.parse_args()
    if args.seed is not None:
        return _look(args.seed)
    seen, failed, began = Counter(), 0, time.monotonic()
    for done, (seed, wrong, its) in enumerate(
        run(range(args.first, args.first + args.seeds), args.jobs), 1
    ):
        seen += its
        if wrong:
            failed += 1
            print(f"seed {seed}: {wrong[:300]}", flush=True)
            if args.stop:
                break
        if sys.stderr.isatty():
            print(f"\r{done}/{args.seeds} lives, {failed} failed ", end="", file=sys.stderr)
    for what, count in sorted(seen.items()):
        print(f"  {what:32} {count}")
    print(f"{args.seeds} lives in {time.monotonic() - began:.0f} s, {failed} failed")
    return int(failed > 0)


def _look(seed):
    plan = draw(seed)
    wrong, trace, _ = live(plan)
    print(f"seed {seed}: {wrong or 'nothing wrong'}\ntrace {trace}")
    if not wrong:
        return 0
    plan = shorter(plan)
    print(f"{plan.symbols} symbols, {plan.shards} shards, {plan.seconds} s, {plan.settings}")
    for act in plan.acts:
        print(" ", *act)
    print(live(plan)[0])
    return 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        traceback.print_exc()
        sys.exit(130)
