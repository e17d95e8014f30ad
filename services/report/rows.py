"""rows: the ledger's rows as messages, a page at a time, so that no read keeps the writer waiting.

Lots are read before their orders and executions: then all of a closed one's are there.
"""

from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any, NamedTuple

from services.report.trades import (
    FUNDING,
    Extremes,
    Point,
    Trade,
    equity_curve,
    funding_usdt,
    trades,
)
from shared import messages as msg
from shared.records import Records

PAGE = 5_000  # rows of one read: tens of milliseconds
PAPER = "paper-"  # how the account of a paper exchange begins: its market has a clock of its own

Row = dict[str, Any]


class Since(NamedTuple):
    """From when on: in market time, and by the wall clock. 0: from the beginning."""

    market_ms: int = 0
    wall_ms: int = 0


class Found(NamedTuple):
    """What a ledger holds since some time.

    `trades` first closed first; `open_lots` first opened first; `equity` by time. `outcomes`: how
    many touched bands came to what. `refusals`: (ret_code, reason, how many). Commonest first.
    """

    account: str
    trades: list[Trade]
    open_lots: list[msg.Lot]
    equity: list[Point]
    funding_usdt: Decimal
    outcomes: list[tuple[str, int]]
    refusals: list[tuple[int, str, int]]


def ago(records: Records, span_ms: int, wall_ms: int) -> Since:
    """`span_ms` before now. On a paper exchange the market's now is the last execution."""
    now_ms = wall_ms
    if records.meta("account").startswith(PAPER):
        query = "SELECT MAX(exec_time_ms) AS last_ms FROM executions"
        now_ms = records.rows(query)[0]["last_ms"] or wall_ms
    return Since(max(0, now_ms - span_ms), max(0, wall_ms - span_ms))


def read(records: Records, known: Mapping[str, Extremes], since: Since) -> Found:
    """Everything since then. Raises `shared.records.Broken` on a file that is no ledger, one of
    `messages.NOT_OURS` on rows that are not as they were written."""
    found = lots(records, since.market_ms)
    return Found(
        records.meta("account"),
        _trades(records, found, known),
        sorted((lot for lot in found if not lot.closed_ms), key=lambda lot: lot.opened_ms),
        equity_curve(_equity(records, since.wall_ms)),
        funding_usdt(_executions(records, since.market_ms, f"exec_type = '{FUNDING}'")),
        _outcomes(records, since.market_ms),
        _refusals(records, since.wall_ms),
    )


def lots(records: Records, since_ms: int) -> list[msg.Lot]:
    """Lots that are open, or were closed at `since_ms` (market time) or later."""
    where = "(closed_ms = 0 OR closed_ms >= ?) AND bought <> '0'"
    return list(_all(records, msg.Lot, "lots", where, since_ms))


def _trades(records: Records, found: list[msg.Lot], known: Mapping[str, Extremes]) -> list[Trade]:
    """Of all orders and executions, only those that lie in the time of these lots are read."""
    if not any(lot.closed_ms for lot in found):
        return []
    bar_ms = min(lot.bar_start_ms for lot in found)
    where = f"bar_start_ms >= ? AND kind <> '{msg.ENTRY}'"
    orders = _all(records, msg.Order, "orders", where, bar_ms)
    opened_ms = min(lot.opened_ms for lot in found)
    executions = _executions(records, opened_ms, f"exec_type <> '{FUNDING}'")
    query = "SELECT 1 FROM modes WHERE mode = ? LIMIT 1"
    flattened = bool(records.rows(query, msg.FLATTEN))
    return trades(found, orders, executions, flattened, known)


def _executions(records: Records, since_ms: int, where: str) -> Iterator[msg.Execution]:
    yield from _all(
        records, msg.Execution, "executions", f"exec_time_ms >= ? AND {where}", since_ms
    )


def _equity(records: Records, since_ms: int) -> Iterator[tuple[int, float]]:
    for row in pages(records, "equity", "wall_ms", "wall_ms >= ?", since_ms):
        yield row["wall_ms"], float(row["equity"])


def _outcomes(records: Records, since_ms: int) -> list[tuple[str, int]]:
    query = (
        "SELECT outcome, COUNT(*) AS count FROM outcomes WHERE bar_start_ms >= ?"
        " GROUP BY 1 ORDER BY 2 DESC, 1"
    )
    return [(row["outcome"], row["count"]) for row in records.rows(query, since_ms)]


def _refusals(records: Records, since_ms: int) -> list[tuple[int, str, int]]:
    query = (
        "SELECT ret_code, reason, COUNT(*) AS count FROM refusals WHERE wall_ms >= ?"
        " GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2"
    )
    rows = records.rows(query, since_ms)
    return [(row["ret_code"], row["reason"], row["count"]) for row in rows]


def _all(records: Records, cls: type[Any], table: str, where: str, *values: Any) -> Iterator[Any]:
    for row in pages(records, table, cls._fields[0], where, *values):
        yield msg.build(cls, [row[name] for name in cls._fields])


def pages(records: Records, table: str, key: str, where: str, *values: Any) -> Iterator[Row]:
    """Rows in the order of `key`, the table's own. Between two pages nothing is held open."""
    after, last = "", None
    while True:
        head: list[Any] = [] if last is None else [last]
        query = f"SELECT * FROM {table} WHERE {after}{where} ORDER BY {key} LIMIT {PAGE}"
        rows = records.rows(query, *head, *values)
        yield from rows
        if len(rows) < PAGE:
            return
        after, last = f"{key} > ? AND ", rows[-1][key]
