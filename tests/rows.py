"""The fault catalogue as a table, generated from the tests: python -m tests.rows.

Runs every test whose name begins with a row (test_A10_...), and lists the rows that a test file
declares as not applicable, with its reason.
"""

import importlib
import re
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

FOLDER = Path(__file__).parent
FILES = sorted([*FOLDER.glob("test_rows_*.py"), *FOLDER.glob("test_process_*.py")])
RANK = ("passed", "skipped", "failed")
ROW = re.compile(r"test_([A-J]\d+)_(\w+)")


class Results:
    """What became of each test, by row and name; the worst of its parameters counts."""

    def __init__(self):
        self.found = defaultdict(list)

    def pytest_runtest_logreport(self, report):
        name = report.nodeid.split("::")[-1].partition("[")[0]
        if (row := ROW.match(name)) and (report.when == "call" or report.outcome != "passed"):
            self.found[row[1], row[2]].append(report.outcome)


def by_number(row):
    """A10 after A9; a row of the catalogue may have a part: "H1 announced maintenance"."""
    name = row.split()[0]
    return name[0], int(name[1:])


def main():
    results = Results()
    words = ("-q", "-p", "no:cacheprovider", "-n", "3", "--dist", "loadgroup")
    code = pytest.main([*words, *map(str, FILES)], plugins=[results])
    table = Table(box=None, header_style="bold")
    for name in ("row", "test", "cases", "result"):
        table.add_column(name, overflow="fold")
    lines = [
        (row, words.replace("_", " "), str(len(said)), max(said, key=RANK.index))
        for (row, words), said in results.found.items()
    ]
    for file in FILES:
        module = importlib.import_module(f"tests.{file.stem}")
        lines += [
            (row, why, "", "not applicable")
            for row, why in getattr(module, "NOT_APPLICABLE", {}).items()
        ]
    for line in sorted(lines, key=lambda line: (by_number(line[0]), line[1])):
        table.add_row(*line)
    Console(width=None if sys.stdout.isatty() else 140, highlight=False).print(table)
    sys.exit(code)


if __name__ == "__main__":
    main()
