"""Measure, print, keep: `python -m tests.bench [micro latency boundary scale paper] [--json file]`.

A result is a JSON file with the machine and the versions. `--compare A B` prints the ratios of two
of them; `--check` runs the micro benches and fails if one has become slower, against the threaded
design in the same run, than `reference.json` says.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench import micro

ROOT = Path(__file__).parents[2]
REFERENCE = Path(__file__).parent / "reference.json"
SLOWER = 1.2  # than the reference: a regression
CHECKS = 5
BASE = "tick, threaded design"
CHECKED = ("tick, worker", "close, worker", "encode a kline", "decode a kline")
CHECKED = (*CHECKED, "router, a quote, nothing held", "router, a quote, 200 lots, 2,000 orders")
LIBRARIES = ("pybit", "numpy", "pyzmq", "msgpack", "orjson", "websocket-client")
console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)


def machine():
    """Where it was measured, and with what."""
    said = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    processor = next(
        (row.partition(":")[2].strip() for row in Path("/proc/cpuinfo").read_text().splitlines()
         if row.startswith("model name")), platform.processor(),
    )  # fmt: skip
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": said.stdout.strip(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": f"{os.cpu_count()} x {processor}",
        "load": round(os.getloadavg()[0], 2),
        **{name: version(name) for name in LIBRARIES},
    }


def bench_micro(args):
    """Costs of single updates."""
    return {"": micro.run()}


def bench_latency(args):
    """From frame to order."""
    from tests.bench import latency  # noqa: PLC0415 - the peers' environment has no psutil

    cases = [case for case in latency.CASES if args.only in f"{case.design} {case.orders}"]
    return {
        f"{case.design}, {case.orders}, {case.frames}/s": said(latency.run(case, args.seconds))
        for case in cases
    }


def bench_boundary(args):
    """500 bars that close at once."""
    from tests.bench import boundary  # noqa: PLC0415

    names = {0: "threaded design", **{n: f"{n} shards" for n in boundary.SHARDS}}
    return {name: said(boundary.run(shards)) for shards, name in names.items()}


def bench_scale(args):
    """Symbols and workers."""
    from tests.bench import scale  # noqa: PLC0415

    found = {f"{n} symbols": said(scale.cost(n, args.seconds / 2)) for n in scale.SYMBOLS}
    return found | {"1 to 4 to 2 workers": said(scale.handover())}


def bench_burst(args):
    """20,000 frames a second for a while, and what is left of it two seconds later."""
    from tests.bench import burst  # noqa: PLC0415

    return {
        "10 s at 20,000/s": said(burst.run()),
        "exits, 60 s at 10,000/s": said(burst.exits()),
    }


def bench_paper(args):
    """The paper exchange alone."""
    from tests.bench import paper  # noqa: PLC0415

    found = (paper.run(load, args.seconds / 3) for load in paper.LOADS)
    return {row.pop("load"): said(row) for row in found}


BENCHES = {
    name.removeprefix("bench_"): run for name, run in globals().items() if name.startswith("bench_")
}


def said(result):
    """Progress on long work."""
    console.print("  ", ", ".join(f"{name} {value}" for name, value in result.items()), style="dim")
    return result


def show(name, results):
    """One table for each bench."""
    table = Table(title=name, box=None, header_style="bold", title_justify="left")
    for column in ("case", "", ""):
        table.add_column(column, justify="right" if column == "" else "left")
    for case, values in results.items():
        for place, (what, value) in enumerate(values.items()):
            table.add_row("" if place else case, what, f"{value:,}")
    console.print(table)


def flat(results):
    """{bench, case and metric in one name: value}"""
    return {
        " / ".join(part for part in (bench, case, what) if part): value
        for bench, cases in results.items()
        for case, values in cases.items()
        for what, value in values.items()
    }


def compare(first, second):
    """Every metric that both have, and the ratio."""
    old, new = (json.loads(file.read_text()) for file in (first, second))
    for name, one in ((first, old), (second, new)):
        console.print(f"{name}: {one['machine']}", style="dim")
    table = Table(box=None, header_style="bold")
    for column in ("", "A", "B", "B / A"):
        table.add_column(column, justify="right" if column else "left")
    before, after = flat(old["results"]), flat(new["results"])
    for name in (name for name in before if name in after):
        ratio = f"{after[name] / before[name]:.2f}" if before[name] else ""
        table.add_row(name, f"{before[name]:,}", f"{after[name]:,}", ratio)
    console.print(table)
    return 0


def ratios():
    """{bench: median of its cost by that of the threaded design's tick}, of several runs."""
    runs = [micro.times() for _ in range(CHECKS)]
    return {name: statistics.median(run[name] / run[BASE] for run in runs) for name in CHECKED}


def check(keep):
    """Whether nothing has become slower; with `keep` this is the new reference."""
    found = ratios()
    if keep:
        REFERENCE.write_text(
            json.dumps({k: round(v, 5) for k, v in found.items()}, indent=1) + "\n"
        )
    reference, slower = json.loads(REFERENCE.read_text()), 0
    for name, ratio in found.items():
        change = ratio / reference[name]
        slower += change > SLOWER
        word = "slower" if change > SLOWER else ""
        console.print(f"{name:42} {1 / ratio:8.1f} x the threaded tick {change:6.2f} {word}")
    return int(slower > 0)


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("benches", nargs="*", help=f"some of {', '.join(BENCHES)} (all)")
    parser.add_argument("--seconds", type=float, default=60, help="of each run (60)")
    parser.add_argument("--only", default="", help="cases of latency, by a text")
    parser.add_argument("--json", type=Path, help="keep the results there")
    parser.add_argument("--compare", type=Path, nargs=2, metavar=("A", "B"), help="two results")
    parser.add_argument("--check", action="store_true", help="fail if a micro bench is slower")
    parser.add_argument("--keep", action="store_true", help="of --check: the new reference")
    args = parser.parse_args()
    if unknown := set(args.benches) - BENCHES.keys():
        parser.error(f"no such bench: {', '.join(sorted(unknown))}")
    if args.compare:
        return compare(*args.compare)
    if args.check:
        return check(args.keep)
    kept = {"machine": machine(), "results": {}}
    console.print(", ".join(f"{name} {value}" for name, value in kept["machine"].items()))
    for name in args.benches or BENCHES:
        console.print(f"{name}: {BENCHES[name].__doc__}")
        kept["results"][name] = BENCHES[name](args)
        show(name, kept["results"][name])
        if args.json:
            args.json.write_text(json.dumps(kept, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
