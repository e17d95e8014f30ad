"""fills: what was executed and what it brought, as texts: of a digest, of a day. Pure."""

from collections.abc import Iterable
from decimal import Decimal
from typing import NamedTuple

from services.notifier.desk import Event
from shared import messages as msg

FUNDING = "Funding"  # an exec_type that moves cash, not size
SHOWN = 10  # symbols spelled out, the largest
ZERO = Decimal(0)


class Mark(NamedTuple):
    """How far a ledger was told of: its id, and the last rows of its executions and closed lots."""

    ledger_id: str
    execution: int
    lot: int


class Recent(NamedTuple):
    """What a ledger holds after some Mark, and the Mark after all of this."""

    mark: Mark
    executions: tuple[msg.Execution, ...]
    closed: tuple[msg.Lot, ...]


class Day(NamedTuple):
    """What the ledger says of one day: sums in USDT, `equity` at its begin and end, if known.

    `paper`: the market has a clock of its own, and fills and lots are those of the day before its
    last execution. The equity is by the wall clock always.
    """

    fills: int
    fees: Decimal
    funding: Decimal
    closed: tuple[msg.Lot, ...]
    equity: tuple[Decimal, Decimal] | None
    paper: bool


class Symbol:
    """Sums over one symbol, in USDT."""

    __slots__ = ("count", "fees", "value")

    def __init__(self) -> None:
        self.count, self.value, self.fees = 0, ZERO, ZERO


def digest(executions: Iterable[msg.Execution], closed: Iterable[msg.Lot]) -> Event | None:
    """What was executed, by symbol, and what closed lots brought. None: neither fills nor lots."""
    symbols: dict[str, Symbol] = {}
    profits: dict[str, Decimal] = {}
    funding, lots = ZERO, list(closed)
    for execution in executions:
        if execution.exec_type == FUNDING:
            funding += execution.exec_fee
            continue
        symbol = symbols.setdefault(execution.symbol, Symbol())
        symbol.count += 1
        symbol.value += execution.exec_price * execution.exec_qty
        symbol.fees += execution.exec_fee
    for lot in lots:
        symbols.setdefault(lot.symbol, Symbol())
        profits[lot.symbol] = profits.get(lot.symbol, ZERO) + lot.profit_usdt
    if not symbols:
        return None
    rows = sorted(symbols.items(), key=lambda item: (-item[1].value, item[0]))
    shown = [_row(name, symbol, profits) for name, symbol in rows[:SHOWN]]
    if len(rows) > SHOWN:
        shown.append(f"and {len(rows) - SHOWN} more symbols")
    count = sum(symbol.count for symbol in symbols.values())
    value = sum((symbol.value for symbol in symbols.values()), ZERO)
    fees = sum((symbol.fees for symbol in symbols.values()), ZERO)
    title = f"{_many(count, 'fill')} in {_many(len(rows), 'symbol')}"
    parts = [f"{value:.2f} USDT traded", f"fees {usdt(fees)}"]
    if funding:
        parts.append(f"funding paid {usdt(funding)}")
    if lots:
        total = sum(profits.values(), ZERO)
        parts.append(f"realised {usdt(total, sign=True)} on {_many(len(lots), 'closed lot')}")
    return Event("fills", title, "\n".join((", ".join(parts), *shown)), happened=count)


def daily(day: Day | None, wallet: msg.Wallet | None, mode: str) -> Event:
    """The summary of one day; None: the ledger cannot be read. `wallet` and `mode` are of now."""
    rows = [f"mode {mode or 'unknown (the keeper is silent)'}"]
    if day and day.equity:
        first, last = day.equity
        moved = last - first
        change = f"{usdt(moved, sign=True)} ({100 * moved / first:+.2f} %)" if first else "from 0"
        rows.append(f"equity {last:.2f} USDT, {change}")
    elif wallet:
        rows.append(f"equity now {wallet.total_equity:.2f} USDT")
    rows += _traded(day) if day else ["the ledger cannot be read"]
    return Event("daily", "Summary of the day", "\n".join(rows))


def _traded(day: Day) -> list[str]:
    won = [lot for lot in day.closed if lot.profit_usdt > 0]
    total = sum((lot.profit_usdt for lot in day.closed), ZERO)
    lots = _many(len(day.closed), "closed lot")
    return [
        *(["by the paper market's clock, in the day before its last execution:"] * day.paper),
        f"{_many(day.fills, 'fill')}, fees {usdt(day.fees)}",
        f"funding paid {usdt(day.funding)}",
        f"{lots}, {len(won)} with a profit, realised {usdt(total, sign=True)}",
    ]


def usdt(amount: Decimal, sign: bool = False) -> str:
    """`1.2345 USDT`, or `+1.2345 USDT`."""
    return f"{amount:+.4f} USDT" if sign else f"{amount:.4f} USDT"


def _row(name: str, symbol: Symbol, profits: dict[str, Decimal]) -> str:
    realised = f", realised {usdt(profits[name], sign=True)}" if name in profits else ""
    fees = f"fees {usdt(symbol.fees)}"
    return f"{name}: {_many(symbol.count, 'fill')}, {symbol.value:.2f} USDT, {fees}{realised}"


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
