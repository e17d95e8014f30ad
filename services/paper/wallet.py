"""wallet: the paper account's cash and positions. Pure, Decimal throughout, one-way mode."""

from decimal import Decimal
from typing import NamedTuple

ZERO = Decimal(0)


class Holding(NamedTuple):
    """One position: `size` is signed, `entry` the average entry price, `realised` before fees."""

    size: Decimal = ZERO
    entry: Decimal = ZERO
    realised: Decimal = ZERO
    opened_ms: int = 0
    updated_ms: int = 0


class Fill(NamedTuple):
    """What one fill did to the account."""

    closed: Decimal
    realised: Decimal


class Wallet:
    """Balance in USDT, positions and leverage by symbol (10 until it is set, as on Bybit)."""

    def __init__(self, balance: Decimal) -> None:
        self.balance = balance
        self.positions: dict[str, Holding] = {}
        self.leverage: dict[str, Decimal] = {}

    def position(self, symbol: str) -> Holding:
        """The position in a symbol; an empty one if there is none."""
        return self.positions.get(symbol, Holding())

    def fill(self, symbol: str, qty: Decimal, price: Decimal, fee: Decimal, now_ms: int) -> Fill:
        """Apply one fill; `qty` is signed, `fee` > 0 is paid."""
        old = self.position(symbol)
        size = old.size + qty
        closed = min(abs(qty), abs(old.size)) if old.size * qty < 0 else ZERO
        realised = closed * (price - old.entry) * (1 if old.size > 0 else -1)
        if size == 0:
            entry = ZERO
        elif old.size * qty >= 0:
            entry = (old.entry * abs(old.size) + price * abs(qty)) / abs(size)
        else:
            entry = old.entry if old.size * size > 0 else price
        opened_ms = old.opened_ms if old.size * size > 0 else now_ms
        self.positions[symbol] = Holding(size, entry, old.realised + realised, opened_ms, now_ms)
        self.balance += realised - fee
        return Fill(closed, realised)

    def unrealised(self, prices: dict[str, Decimal]) -> Decimal:
        """Profit of all positions at these prices, before fees."""
        open_positions = ((s, p) for s, p in self.positions.items() if p.size)
        return sum((p.size * (prices[s] - p.entry) for s, p in open_positions), ZERO)

    def margin(self, prices: dict[str, Decimal]) -> Decimal:
        """Initial margin of all positions."""
        return sum(
            (abs(p.size) * prices[s] / self.margin_leverage(s) for s, p in self.positions.items()),
            ZERO,
        )

    def margin_leverage(self, symbol: str) -> Decimal:
        """Leverage of a symbol."""
        return self.leverage.get(symbol, Decimal(10))
