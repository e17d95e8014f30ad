"""wallet: the paper account's cash and positions. Pure, Decimal throughout, one-way mode.

Nothing is lost to rounding: a position keeps what it cost, not its average price, so that at any
time balance = deposits + realised - fees - funding, to the last digit.
"""

from decimal import Decimal
from typing import NamedTuple

ZERO = Decimal(0)
COST_STEP = Decimal("1e-12")  # a part of a position takes its share of the cost in this step
FLOWS = ("deposits", "realised", "fees", "funding")


class Holding(NamedTuple):
    """One position: `size` is signed, `cost` what |size| was entered at, `realised` before fees."""

    size: Decimal = ZERO
    cost: Decimal = ZERO
    realised: Decimal = ZERO
    entry_fees: Decimal = ZERO  # paid for what is still open
    opened_ms: int = 0
    updated_ms: int = 0

    @property
    def entry(self) -> Decimal:
        """The average entry price; 0 if flat."""
        return self.cost / abs(self.size) if self.size else ZERO


class Fill(NamedTuple):
    """What one fill did to the account; `cost` and `entry_fees` belong to the closed part."""

    closed: Decimal
    realised: Decimal
    cost: Decimal
    entry_fees: Decimal


class Wallet:
    """Balance in USDT, positions and leverage by symbol (10 until it is set, as on Bybit)."""

    def __init__(self, balance: Decimal) -> None:
        self.balance = balance
        self.flows = dict.fromkeys(FLOWS, ZERO) | {"deposits": balance}
        self.positions: dict[str, Holding] = {}
        self.leverage: dict[str, Decimal] = {}

    def position(self, symbol: str) -> Holding:
        """The position in a symbol; an empty one if there is none."""
        return self.positions.get(symbol, Holding())

    def held(self) -> list[str]:
        """Symbols whose position is not empty."""
        return [symbol for symbol, holding in self.positions.items() if holding.size]

    def fill(self, symbol: str, qty: Decimal, price: Decimal, fee: Decimal, now_ms: int) -> Fill:
        """Apply one fill; `qty` is signed, `fee` > 0 is paid."""
        old = self.position(symbol)
        size, held = old.size + qty, abs(old.size)
        closed = min(abs(qty), held) if old.size * qty < 0 else ZERO
        cost, fees = _share(old.cost, closed, held), _share(old.entry_fees, closed, held)
        realised = (closed * price - cost) * (1 if old.size > 0 else -1)
        opened = abs(qty) - closed
        self.positions[symbol] = Holding(
            size,
            old.cost - cost + opened * price,
            old.realised + realised - fee,
            old.entry_fees - fees + (fee if not closed else fee * opened / abs(qty)),
            old.opened_ms if old.size * size > 0 else now_ms,
            now_ms,
        )
        self._book("realised", realised)
        self._book("fees", fee, -1)
        return Fill(closed, realised, cost, fees)

    def fund(self, symbol: str, fee: Decimal, now_ms: int) -> None:
        """Funding of one position; `fee` > 0 is paid."""
        old = self.position(symbol)
        changed = old._replace(realised=old.realised - fee, updated_ms=now_ms)
        self.positions[symbol] = changed
        self._book("funding", fee, -1)

    def deposit(self, amount: Decimal) -> None:
        """Cash from outside; < 0 is a withdrawal."""
        self._book("deposits", amount)

    def unrealised(self, prices: dict[str, Decimal]) -> Decimal:
        """Profit of all positions at these prices, before fees."""
        return sum((self.unrealised_of(symbol, prices[symbol]) for symbol in self.held()), ZERO)

    def unrealised_of(self, symbol: str, price: Decimal) -> Decimal:
        """Profit of one position at this price, before fees."""
        held = self.position(symbol)
        return held.size * price - (held.cost if held.size > 0 else -held.cost)

    def margin(self, prices: dict[str, Decimal]) -> Decimal:
        """Initial margin of all positions."""
        return sum((self.value(s, prices) / self.margin_leverage(s) for s in self.held()), ZERO)

    def value(self, symbol: str, prices: dict[str, Decimal]) -> Decimal:
        """What a position is worth, without sign."""
        return abs(self.position(symbol).size) * prices[symbol]

    def margin_leverage(self, symbol: str) -> Decimal:
        """Leverage of a symbol."""
        return self.leverage.get(symbol, Decimal(10))

    def _book(self, flow: str, amount: Decimal, sign: int = 1) -> None:
        self.flows[flow] += amount
        self.balance += amount * sign


def _share(whole: Decimal, part: Decimal, of: Decimal) -> Decimal:
    """The part's share of a sum, so that all shares add up to it."""
    return whole if part == of else (whole * part / of).quantize(COST_STEP)
