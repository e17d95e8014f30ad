"""fills: what was executed since the last digest, by symbol. Pure."""

from collections.abc import Iterable
from decimal import Decimal
from typing import NamedTuple

from services.notifier.desk import Event
from shared import messages as msg

FUNDING = "Funding"  # an exec_type that moves cash, not size
REMEMBERED = 10_000  # ids of executions: the same one may be heard twice
MOST = 600  # symbols told apart, and ten times as many lots; what is beyond is `others`
SHOWN = 10  # symbols spelled out, the largest
ZERO = Decimal(0)


class Day(NamedTuple):
    """What the ledger says of one day: sums in USDT, `equity` at its beginning, None if unknown."""

    fills: int
    fees: Decimal
    funding: Decimal
    closed: tuple[msg.Lot, ...]
    equity: Decimal | None


class Symbol:
    """Sums over one symbol, in USDT."""

    __slots__ = ("count", "fees", "value")

    def __init__(self) -> None:
        self.count, self.value, self.fees = 0, ZERO, ZERO


class Fills:
    """Every execution once, until the digest that tells of it."""

    def __init__(self) -> None:
        self._seen: dict[str, None] = {}
        self._clear()

    def _clear(self) -> None:
        self.count, self._funding = 0, ZERO
        self._symbols: dict[str, Symbol] = {}
        self._entries: set[str] = set()

    @property
    def entries(self) -> tuple[str, ...]:
        """The entry ids of the lots that were sold from."""
        return tuple(sorted(self._entries))

    def heard(self, execution: msg.Execution) -> None:
        """One execution, or the same again."""
        if execution.exec_id in self._seen:
            return
        self._seen[execution.exec_id] = None
        if len(self._seen) > REMEMBERED:
            del self._seen[next(iter(self._seen))]
        if execution.exec_type == FUNDING:
            self._funding += execution.exec_fee
            return
        self.count += 1
        name = execution.symbol
        if name not in self._symbols and len(self._symbols) >= MOST:
            name = "others"
        symbol = self._symbols.setdefault(name, Symbol())
        symbol.count += 1
        symbol.value += execution.exec_price * execution.exec_qty
        symbol.fees += execution.exec_fee
        ours = msg.parse_id(execution.order_link_id)
        if ours and ours[1] is not None and len(self._entries) < 10 * MOST:
            self._entries.add(ours[0])

    def digest(self, closed: Iterable[msg.Lot]) -> Event:
        """All of it, with the profit of those lots that are closed; and then begin anew."""
        profits: dict[str, Decimal] = {}
        lots = list(closed)
        for lot in lots:
            profits[lot.symbol] = profits.get(lot.symbol, ZERO) + profit(lot)
        rows = sorted(self._symbols.items(), key=lambda item: (-item[1].value, item[0]))
        shown = [_row(name, symbol, profits) for name, symbol in rows[:SHOWN]]
        if len(rows) > SHOWN:
            shown.append(f"and {len(rows) - SHOWN} more symbols")
        value = sum((symbol.value for _, symbol in rows), ZERO)
        fees = sum((symbol.fees for _, symbol in rows), ZERO)
        title = f"{_many(self.count, 'fill')} in {_many(len(rows), 'symbol')}"
        parts = [f"{value:.2f} USDT traded", f"fees {usdt(fees)}"]
        if self._funding:
            parts.append(f"funding paid {usdt(self._funding)}")
        if lots:
            total = sum(map(profit, lots), ZERO)
            parts.append(f"realised {usdt(total, sign=True)} on {_many(len(lots), 'closed lot')}")
        event = Event("fills", title, "\n".join((", ".join(parts), *shown)), happened=self.count)
        self._clear()
        return event


def profit(lot: msg.Lot) -> Decimal:
    """What a closed lot brought, after its fees, USDT."""
    gross = lot.proceeds - lot.cost
    return (gross if lot.side == "Buy" else -gross) - lot.fees


def daily(day: Day, wallet: msg.Wallet | None, mode: str) -> Event:
    """The summary of one day."""
    rows = [f"mode {mode or 'unknown (the keeper is silent)'}"]
    if wallet:
        change = ""
        if day.equity:
            moved = wallet.total_equity - day.equity
            change = f", {usdt(moved, sign=True)} ({100 * moved / day.equity:+.2f} %)"
        rows.append(f"equity {wallet.total_equity:.2f} USDT{change}")
    won = [lot for lot in day.closed if profit(lot) > 0]
    total = sum(map(profit, day.closed), ZERO)
    rows.append(f"{_many(day.fills, 'fill')}, fees {usdt(day.fees)}")
    rows.append(f"funding paid {usdt(day.funding)}")
    lots = _many(len(day.closed), "closed lot")
    rows.append(f"{lots}, {len(won)} with a profit, realised {usdt(total, sign=True)}")
    return Event("daily", "Summary of the day", "\n".join(rows))


def usdt(amount: Decimal, sign: bool = False) -> str:
    """`1.2345 USDT`, or `+1.2345 USDT`."""
    return f"{amount:+.4f} USDT" if sign else f"{amount:.4f} USDT"


def _row(name: str, symbol: Symbol, profits: dict[str, Decimal]) -> str:
    realised = f", realised {usdt(profits[name], sign=True)}" if name in profits else ""
    fees = f"fees {usdt(symbol.fees)}"
    return f"{name}: {_many(symbol.count, 'fill')}, {symbol.value:.2f} USDT, {fees}{realised}"


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
