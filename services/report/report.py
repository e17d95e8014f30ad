"""report: how it went, on the screen and as one HTML file. Reads the ledger, changes nothing.

Works while the bot runs, and without it.
"""

import argparse
import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from services.report import excursions, words
from services.report.page import page
from services.report.rows import Found, Since, ago, read
from services.report.trades import Group, Statistics, Trade, by_hour, by_reason, by_symbol
from services.report.trades import statistics as statistics_of
from shared.messages import NOT_OURS
from shared.records import Broken, Records
from shared.settings import running

SHOWN = 10  # rows of a list on the screen
SPAN = re.compile(r"(\d{1,5})([dhm])")
SPAN_MS = {"d": 86_400_000, "h": 3_600_000, "m": 60_000}
WRONG_INPUT_EXIT = 2


class WrongInput(Exception):
    """One line that says what cannot be done, and why."""


def since_of(text: str, records: Records, wall_ms: int) -> Since:
    """`7d`, `12h`, `30m` before now; or an ISO date or time, UTC. Raises WrongInput."""
    if not text:
        return Since()
    if found := SPAN.fullmatch(text):
        return ago(records, int(found[1]) * SPAN_MS[found[2]], wall_ms)
    try:
        at = datetime.fromisoformat(text)
        at_ms = int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)
    except (ValueError, OverflowError) as error:
        wrong = f"--since: 2026-01-31, 2026-01-31T12:00, 7d, 12h or 30m, got {text!r:.60}"
        raise WrongInput(wrong) from error
    return Since(max(0, at_ms), max(0, at_ms))


def found_in(folder: Path, since: str, wall_ms: int) -> Found:
    """What the ledger in this folder holds. Raises WrongInput."""
    path = folder / "state.db"
    try:
        known = excursions.read(folder / excursions.FILE)
    except excursions.Broken as error:
        raise WrongInput(f"{folder / excursions.FILE}: {error}; it may be deleted") from error
    try:
        with contextlib.closing(Records(path)) as records:
            return read(records, known, since_of(since, records, wall_ms))
    except FileNotFoundError as error:
        raise WrongInput(f"no ledger yet: {path}") from error
    except Broken as error:
        raise WrongInput(f"{path}: {error}") from error
    except NOT_OURS as error:
        raise WrongInput(f"{path}: a row is not as it was written: {error}") from error


def as_json(found: Found, made: Statistics) -> str:
    """Everything but the single trades; money as text."""
    groups = {"by_symbol": by_symbol, "by_hour": by_hour, "by_reason": by_reason}
    told = {
        "account": found.account,
        "statistics": made._asdict() | {"best": _plain(made.best), "worst": _plain(made.worst)},
        **{name: [_of(group) for group in by(found.trades)] for name, by in groups.items()},
        "outcomes": dict(found.outcomes),
        "refusals": [
            {"ret_code": code, "reason": reason, "count": count}
            for code, reason, count in found.refusals
        ],
        "open_lots": len(found.open_lots),
    }
    return json.dumps(told, default=str)


def show(console: Console, found: Found, made: Statistics) -> None:
    """The tables."""
    _list(console, "report", (), words.summary(found, made))
    symbols = by_symbol(found.trades)
    best, worst = symbols[:SHOWN], symbols[SHOWN:][::-1][:SHOWN]
    hours = [group for group in by_hour(found.trades) if group.trades]
    outcomes = [(name, str(count)) for name, count in found.outcomes]
    head = words.GROUP_HEAD
    _list(console, "best symbols", ("symbol", *head), _groups(best))
    if worst:
        _list(console, "worst symbols", ("symbol", *head), _groups(worst))
    _list(console, "hour of entry, UTC", ("hour", *head), _groups(hours))
    _list(console, "how lots ended", ("ended by", *head), words.reasons(found.trades))
    _list(console, "touched bands", ("outcome", "touches"), outcomes)
    refused = words.refusals(found.refusals)
    more = f", {SHOWN} of {len(refused)}" if len(refused) > SHOWN else ""
    _list(console, f"refusals{more}", ("times", "code", "reason"), refused[:SHOWN])


def write(path: Path, text: str) -> None:
    """All of it or nothing, and for nobody else to read. Raises WrongInput."""
    aside = path.parent / f".{path.name}.{os.getpid()}"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            aside.unlink()
        opened = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(opened, "w", encoding="utf-8", newline="") as file:  # noqa: PTH123
            file.write(text)
        aside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise WrongInput(f"{path}: {error.strerror or error}") from error


def main() -> None:
    """Print the tables, or one JSON object, and write the files that were asked for."""
    parser = argparse.ArgumentParser(prog="python -m services.report", description=__doc__)
    parser.add_argument("--since", default="", help="7d, 12h, 30m, or an ISO date or time, UTC")
    parser.add_argument("--html", type=Path, help="where; RUN_DIR/reports/report-<UTC time>.html")
    parser.add_argument("--csv", type=Path, help="also every trade, as a table")
    parser.add_argument(
        "--json", action="store_true", help="one JSON object; HTML only with --html"
    )
    asked = parser.parse_args()
    folder, wall_ms = running().RUN_DIR, time.time_ns() // 1_000_000
    try:
        found = found_in(folder, asked.since, wall_ms)
        made = statistics_of(found.trades, found.equity, found.funding_usdt)
        files = dict(_files(asked, folder, wall_ms, found, made))
        for path, text in files.items():
            write(path, text)
        if asked.json:
            print(as_json(found, made))
            return
        console = Console(highlight=False, width=None if sys.stdout.isatty() else 130)
        show(console, found, made)
        for path in files:
            console.print(Text(f"written: {path}"), soft_wrap=True)
    except WrongInput as error:
        print(f"report: {error}", file=sys.stderr)
        sys.exit(WRONG_INPUT_EXIT)


def _files(
    asked: argparse.Namespace, folder: Path, wall_ms: int, found: Found, made: Statistics
) -> Iterable[tuple[Path, str]]:
    now = datetime.fromtimestamp(wall_ms / 1000, UTC)
    if asked.html or not asked.json:
        name = now.strftime("report-%Y%m%d-%H%M%S.html")
        since = f", since {asked.since}" if asked.since else ""
        title = f"Report of {now:%Y-%m-%d %H:%M:%S} UTC{since}"
        yield asked.html or folder / "reports" / name, page(found, made, title)
    if asked.csv:
        yield asked.csv, words.as_csv(found.trades)


def _list(console: Console, title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """One list; what is read is text, never markup."""
    if not rows:
        console.print(f"{title}: none")
        return
    table = Table(
        title=title, box=None, header_style="bold", title_justify="left", show_header=bool(head)
    )
    for number, name in enumerate(head or rows[0]):
        right = head and number and name not in ("reason", "code")
        table.add_column(name if head else "", justify="right" if right else "left")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)
    console.print()


def _groups(groups: Iterable[Group]) -> list[tuple[str, ...]]:
    return [(group.name, *words.group(group)) for group in groups]


def _plain(trade: Trade | None) -> dict[str, Any] | None:
    return trade._asdict() if trade else None


def _of(group: Group) -> dict[str, Any]:
    return group._asdict() | {"win_rate_pct": group.win_rate_pct}
