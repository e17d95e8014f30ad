"""Run the benches and print them: python -m tests.bench [--seconds 10] [--json file]."""

import argparse
import json
import platform
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench import paper


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=paper.MEASURE_S, help="of each run")
    parser.add_argument("--json", type=Path, help="write the results here, too")
    asked = parser.parse_args()
    console, table = Console(), Table(title="paper exchange, one process, loopback")
    found = []
    for load in paper.LOADS:
        console.print(f"running: {load.name}")
        found.append(paper.run(load, asked.seconds))
    for name in found[0]:
        table.add_column(name, justify="left" if name == "load" else "right")
    for row in found:
        table.add_row(
            *(f"{value:,}" if isinstance(value, int) else f"{value}" for value in row.values())
        )
    console.print(table)
    if asked.json:
        machine = {"python": platform.python_version(), "machine": platform.platform()}
        asked.json.write_text(json.dumps({"machine": machine, "paper": found}, indent=1) + "\n")


main()
