"""rows: the ledger's rows as messages, a page at a time, so that no read keeps the writer waiting.

Lots are read before their orders and executions: then all of a closed one's are there.
"""

from collections.abc import Iterable, Iterator, Mapping
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


class Totals(NamedTuple):
    """Sums over all closed lots and all funding, up to two row numbers; later rows add to them.

    A lot is written anew, as the last row, until it is closed, and then never again.
    """

    lot_row: int = 0
    execution_row: int = 0
    closed: int = 0
    won: int = 0
    profit_usdt: Decimal = Decimal(0)
    fees_usdt: Decimal = Decimal(0)
    funding_usdt: Decimal = Decimal(0)  # received: what was paid is negative


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
        trades_of(records, found, known),
        sorted((lot for lot in found if not lot.closed_ms), key=lambda lot: lot.opened_ms),
        equity(records, since.wall_ms),
        funding_usdt(_executions(records, since.market_ms, f"exec_type = '{FUNDING}'")),
        _outcomes(records, since.market_ms),
        _refusals(records, since.wall_ms),
    )


def lots(records: Records, since_ms: int) -> list[msg.Lot]:
    """Lots that are open, or were closed at `since_ms` (market time) or later."""
    where = "(closed_ms = 0 OR closed_ms >= ?) AND bought <> '0'"
    return list(_all(records, msg.Lot, "lots", where, since_ms))


def trades_of(
    records: Records, found: Iterable[msg.Lot], known: Mapping[str, Extremes]
) -> list[Trade]:
    """The closed ones among these lots. Of all orders and executions, only those that lie in their
    time are read."""
    found = list(found)
    closed = [lot for lot in found if lot.closed_ms]
    if not closed:
        return []
    bar_ms = min(lot.bar_start_ms for lot in closed)
    where = f"bar_start_ms >= ? AND kind <> '{msg.ENTRY}'"
    orders = _all(records, msg.Order, "orders", where, bar_ms)
    opened_ms = min(lot.opened_ms for lot in closed)
    executions = _executions(records, opened_ms, f"exec_type <> '{FUNDING}'")
    query = "SELECT 1 FROM modes WHERE mode = ? LIMIT 1"
    flattened = bool(records.rows(query, msg.FLATTEN))
    return trades(found, orders, executions, flattened, known)


def _executions(records: Records, since_ms: int, where: str) -> Iterator[msg.Execution]:
    yield from _all(
        records, msg.Execution, "executions", f"exec_time_ms >= ? AND {where}", since_ms
    )


def equity(records: Records, since_ms: int) -> list[Point]:
    """The curve since then, by the wall clock."""
    found = pages(records, "equity", "wall_ms", "wall_ms >= ?", since_ms)
    return equity_curve((row["wall_ms"], float(row["equity"])) for row in found)


def totals(records: Records, before: Totals) -> Totals:
    """`before`, and what was closed and settled since it was read."""
    lot_row, execution_row, closed, won, profit, fees, funding = before
    where = "SELECT rowid AS row, * FROM lots WHERE rowid > ? AND closed_ms > 0 AND bought <> '0'"
    for row in records.rows(where, lot_row):
        lot = msg.build(msg.Lot, [row[name] for name in msg.Lot._fields])
        lot_row, closed, won = max(lot_row, row["row"]), closed + 1, won + (lot.profit_usdt > 0)
        profit, fees = profit + lot.profit_usdt, fees + lot.fees
    where = "SELECT rowid AS row, exec_fee FROM executions WHERE rowid > ? AND exec_type = ?"
    for row in records.rows(where, execution_row, FUNDING):
        execution_row = max(execution_row, row["row"])
        funding -= Decimal(row["exec_fee"])
    return Totals(lot_row, execution_row, closed, won, profit, fees, funding)


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
