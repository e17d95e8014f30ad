"""books: what the ledger's file tells pages: trades, equity, modes; one symbol's whole story."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from services.report import excursions, rows
from services.report.trades import DAY_MS, Point, Statistics, Trade, statistics, thin
from shared import messages as msg
from shared.records import Records

SHOWN_POINTS = 600  # of the equity
MOST_TRADES = 20_000  # the newest: a second of work; the report has all
EQUITY_MS = 90 * DAY_MS
SHOWN_MODES, SHOWN_LOTS, SHOWN_FILLS, SHOWN_TOUCHES = 200, 20, 200, 60

Row = dict[str, Any]


class Books(NamedTuple):
    """The ledger as pages show it: its newest MOST_TRADES closed lots and their statistics, the
    equity of EQUITY_MS, and the totals of all.

    `version` changes when the files do; it is empty before the first was read. `midnight` is the
    first equity of the UTC day of the newest one.
    """

    version: str
    trades: tuple[Trade, ...]
    statistics: Statistics
    equity: tuple[Point, ...]
    midnight: Point | None
    modes: tuple[Row, ...]
    totals: rows.Totals

    def sums(self) -> dict[str, Decimal | float]:
        """Over all closed lots, for metrics; nothing before the ledger was read."""
        if not self.version:
            return {}
        known = self.totals
        return {
            "profit_usdt": known.profit_usdt,
            "fees_usdt": known.fees_usdt,
            "funding_usdt": self.funding_paid_usdt,
            "closed_lots": known.closed,
            "won_lots": known.won,
        }

    @property
    def funding_paid_usdt(self) -> Decimal:
        """Less than 0 was received."""
        return 0 - self.totals.funding_usdt

    @property
    def top_usdt(self) -> float:
        """The highest equity that was written down; 0 where none was."""
        return max((point.equity for point in self.equity), default=0.0)

    def point(self, wallet: msg.Wallet, wall_ms: int) -> Point:
        """Where the equity is now, on from what was written down."""
        now = float(wallet.total_equity)
        top = max(now, self.top_usdt)
        return Point(wall_ms, now, 100 * (now - top) / top if top > 0 else 0.0)

    def today_usdt(self, now: Point) -> float | None:
        """Since the first equity of that UTC day; None where none was written down in it."""
        known = self.midnight and self.midnight.wall_ms // DAY_MS == now.wall_ms // DAY_MS
        return now.equity - self.midnight.equity if self.midnight and known else None

    @property
    def worst_drawdown_pct(self) -> float:
        """The deepest there was; positive."""
        return abs(self.statistics.max_drawdown_pct)


NO_BOOKS = Books("", (), statistics((), ()), (), None, (), rows.Totals())


class SymbolBooks(NamedTuple):
    """One symbol: newest lots first, executions and touches newest first, orders by id."""

    lots: tuple[msg.Lot, ...]
    orders: dict[str, msg.Order]
    executions: tuple[msg.Execution, ...]
    touches: tuple[Row, ...]


NO_SYMBOL = SymbolBooks((), {}, (), ())


def read(run_dir: Path, known: Books) -> Books:
    """The books as they are now; `known` again if nothing has changed, or there is no ledger yet.
    Raises `shared.records.Broken`."""
    with _ledger(run_dir) as records:
        if records is None:
            return known
        version = _version(records, run_dir / excursions.FILE)
        return known if version == known.version else _read(records, run_dir, version, known)


def recent_lots(run_dir: Path, since_ms: int) -> list[msg.Lot]:
    """Lots that are open, or were closed since then (market time); none without a ledger. Raises
    `shared.records.Broken`."""
    with _ledger(run_dir) as records:
        return rows.lots(records, since_ms) if records else []


@contextmanager
def _ledger(run_dir: Path) -> Iterator[Records | None]:
    """Its file, open for so long; None where there is none yet."""
    try:
        records = Records(run_dir / "state.db")
    except FileNotFoundError:
        yield None
        return
    with closing(records):
        yield records


def _version(records: Records, kept: Path) -> str:
    looked = [file.stat().st_mtime_ns for file in kept.parent.glob(f"{kept.name}*")]
    query = "SELECT (SELECT MAX(rowid) FROM equity) AS e, (SELECT MAX(rowid) FROM modes) AS m"
    return f"{records.meta('ledger_id')} {records.meta('row')} {records.rows(query)[0]} {looked}"


def _read(records: Records, run_dir: Path, version: str, known: Books) -> Books:
    newest_ms = records.rows("SELECT MAX(wall_ms) AS at FROM equity")[0]["at"] or 0
    equity = rows.equity(records, newest_ms - EQUITY_MS)
    since_ms, today_ms = _since_ms(records), newest_ms // DAY_MS * DAY_MS
    lots = [lot for lot in rows.lots(records, since_ms) if lot.closed_ms]
    opened_ms = min((lot.opened_ms for lot in lots), default=0)
    seen = excursions.read(run_dir / excursions.FILE, opened_ms)
    trades = rows.trades_of(records, lots, seen)
    same = version.partition(" ")[0] == known.version.partition(" ")[0]
    totals = rows.totals(records, known.totals if same else rows.Totals())
    modes = records.rows(
        "SELECT rowid, mode, reason, who, wall_ms FROM modes ORDER BY rowid DESC LIMIT ?",
        SHOWN_MODES,
    )
    return Books(
        version,
        tuple(trades),
        statistics(trades, equity, totals.funding_usdt),
        tuple(thin(equity, SHOWN_POINTS)),
        next((point for point in equity if point.wall_ms >= today_ms), None),
        tuple(modes),
        totals,
    )


def _since_ms(records: Records) -> int:
    """Market time from which on no more than MOST_TRADES lots were closed; 0 for all."""
    query = "SELECT closed_ms FROM lots WHERE closed_ms > 0 ORDER BY 1 DESC LIMIT 1 OFFSET ?"
    found = records.rows(query, MOST_TRADES)
    return int(found[0]["closed_ms"]) + 1 if found else 0


def read_symbol(run_dir: Path, symbol: str) -> SymbolBooks:
    """What the ledger holds of one symbol; nothing where there is no ledger yet. Raises
    `shared.records.Broken`."""
    with _ledger(run_dir) as records:
        if records is None:
            return NO_SYMBOL
        orders = _of(records, msg.Order, "orders", symbol, "bar_start_ms", SHOWN_FILLS)
        lots = _of(records, msg.Lot, "lots", symbol, "bar_start_ms", SHOWN_LOTS)
        fills = _of(records, msg.Execution, "executions", symbol, "exec_time_ms", SHOWN_FILLS)
        touches = records.rows(
            "SELECT bar_start_ms, side, outcome FROM outcomes WHERE symbol = ?"
            " ORDER BY 1 DESC LIMIT ?",
            *(symbol, SHOWN_TOUCHES),
        )
    return SymbolBooks(
        tuple(lot for lot in lots if lot.bought),
        {order.order_link_id: order for order in orders},
        tuple(fills),
        tuple(touches),
    )


def _of(
    records: Records, cls: type[Any], table: str, symbol: str, newest: str, most: int
) -> list[Any]:
    query = f"SELECT * FROM {table} WHERE symbol = ? ORDER BY {newest} DESC LIMIT ?"
    found = records.rows(query, symbol, most)
    return [msg.build(cls, [row[name] for name in cls._fields]) for row in found]


def story(lot: msg.Lot, books: SymbolBooks) -> list[tuple[int, str]]:
    """A lot's life: (market ms, what happened), in order."""
    told = [
        (lot.bar_start_ms, f"bar of its entry: {lot.side}, take profit {lot.take_profit_pct:.3f} %")
    ]
    stops = {o.order_id: o.order_link_id for o in books.orders.values() if o.kind == msg.STOP}
    for execution in books.executions:
        name = execution.order_link_id or stops.get(execution.order_id, "")
        ours = msg.parse_id(name)
        if ours and ours[0] == lot.entry_id:
            who = "maker" if execution.is_maker else "taker"
            fill = f"{execution.side} {execution.exec_qty:f} @ {execution.exec_price:f}"
            what = "entry" if ours[1] is None else "stop loss" if ours[1] < 0 else f"exit {ours[1]}"
            told.append((execution.exec_time_ms, f"{what}: {fill} ({who}, {execution.exec_fee:f})"))
    for order in books.orders.values():
        ours = msg.parse_id(order.order_link_id)
        if ours and ours[0] == lot.entry_id and order.status != "Filled":
            text = f"{order.kind} {order.qty:f} @ {order.price:f} {order.status}"
            told.append((order.updated_ms, f"{text} {order.reject_reason}".rstrip()))
    if lot.closed_ms:
        told.append((lot.closed_ms, f"closed: {lot.profit_usdt:+.6f} USDT after {lot.fees:f} fees"))
    return sorted(told, key=lambda event: event[0])
