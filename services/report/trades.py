"""trades: what the ledger's rows say of lots that are closed, and how it all went. Pure.

Times of trades are market time, those of the equity are the machine's wall clock: on an exchange
that runs faster than the clock on the wall, a day of equity is not a day of trades.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from itertools import pairwise
from typing import NamedTuple

from shared import messages as msg
from shared.instrument import decimal_of, sign

ADL, BUST, FUNDING = "AdlTrade", "BustTrade", "Funding"
TAKE_PROFIT, REVERSAL, STOP_LOSS, FLATTEN = "take profit", "reversal", "stop loss", "flatten"
BY_ADL, LIQUIDATION, BY_OTHERS, MERGED, EXIT = "adl", "liquidation", "others", "merged", "exit"
REASONS = (TAKE_PROFIT, REVERSAL, STOP_LOSS, FLATTEN, BY_ADL, LIQUIDATION, BY_OTHERS, MERGED, EXIT)
"""How a lot may have ended: `trades` says what each is told by."""
GIVEN_AWAY_PCT = Decimal("0.75")  # a flatten's limit lies 1 % behind the market, a reversal's < 0.6
DAY_MS, HOUR_MS = 86_400_000, 3_600_000
DAYS_A_YEAR = 365  # this market has no weekend
LEAST_POINTS = 5  # first, last, highest, lowest, deepest
HUNDRED, ZERO = Decimal(100), Decimal(0)


class Extremes(NamedTuple):
    """The highest and lowest price seen while a lot was held: None where no bar was seen.

    `until_ms` is the end of the last bar that was looked at, `gapless` whether none was missed
    since the one the lot was opened in. `opened_ms` is the lot's: ids recur on another account.
    """

    opened_ms: int
    high: float | None
    low: float | None
    until_ms: int
    gapless: bool


class Trade(NamedTuple):
    """One closed lot. `profit_usdt` is net of the fees of its own orders, and without funding.

    `run_up_pct` and `draw_down_pct` are its best (>= 0) and worst (<= 0) price while it was held,
    in percent of the entry price, to the bar; None where no price is known, and at least so much
    where `whole` is False: then some bars were not seen.
    """

    entry_id: str
    symbol: str
    side: str
    qty: Decimal
    entry_price: Decimal
    exit_price: Decimal
    opened_ms: int
    closed_ms: int
    hold_ms: int
    profit_usdt: Decimal
    fees_usdt: Decimal
    profit_pct: Decimal
    reason: str
    run_up_pct: Decimal | None = None
    draw_down_pct: Decimal | None = None
    whole: bool = False


class Point(NamedTuple):
    """The equity at one time; `drawdown_pct` (<= 0) is counted from the highest before."""

    wall_ms: int
    equity: float
    drawdown_pct: float


class Group(NamedTuple):
    """Trades that have something in common: a symbol, an hour or a reason, as `name` says."""

    name: str
    trades: int
    wins: int
    losses: int
    profit_usdt: Decimal
    fees_usdt: Decimal

    @property
    def win_rate_pct(self) -> Decimal | None:
        """Wins of all trades; None without any."""
        return HUNDRED * self.wins / self.trades if self.trades else None


class Statistics(NamedTuple):
    """How it went. A trade that made exactly nothing is neither a win nor a loss.

    `profit_factor`: what the wins made / what the losses lost; None without a loss.
    `expectancy_usdt`: profit / trades. `funding_usdt`: received, so what was paid is negative; of
    positions, not of lots, and so in no trade's profit; None where nobody looked.
    `sharpe`, `sortino`: see `ratios`. `max_drawdown_pct` (<= 0): the deepest of the equity's; its
    `max_drawdown_usdt`, the time of the top before it, and its own; 0 where there was none.
    """

    trades: int
    wins: int
    losses: int
    win_rate_pct: Decimal | None
    profit_usdt: Decimal
    fees_usdt: Decimal
    funding_usdt: Decimal | None
    profit_factor: Decimal | None
    expectancy_usdt: Decimal | None
    average_hold_ms: int | None
    best: Trade | None
    worst: Trade | None
    sharpe: float | None
    sortino: float | None
    max_drawdown_pct: float
    max_drawdown_usdt: float
    drawdown_top_ms: int
    drawdown_ms: int


class _Sale(NamedTuple):
    """What one exit has sold."""

    qty: Decimal = ZERO
    value: Decimal = ZERO
    maker: bool = True
    forced: str = ""


class _Sales:
    """Executions, summed as far as the end of lots is told by them."""

    def __init__(self, orders: Iterable[msg.Order], executions: Iterable[msg.Execution]) -> None:
        kept = [order for order in orders if order.kind != msg.ENTRY]
        self.prices = {order.order_link_id: order.price for order in kept}
        stops = {o.order_id: o.order_link_id for o in kept if o.kind == msg.STOP}
        self.bought: defaultdict[str, Decimal] = defaultdict(Decimal)
        self.by_lot: defaultdict[str, dict[str, _Sale]] = defaultdict(dict)
        self.others: defaultdict[tuple[str, str], list[msg.Execution]] = defaultdict(list)
        for execution in executions:
            if execution.exec_type in msg.MOVES_LOTS:
                self._add(execution, execution.order_link_id or stops.get(execution.order_id, ""))

    def _add(self, execution: msg.Execution, name: str) -> None:
        ours, qty = msg.parse_id(name), execution.exec_qty
        if ours is None:
            self.others[execution.symbol, execution.side].append(execution)
        elif ours[1] is None:
            self.bought[name] += qty
        else:
            sale = self.by_lot[ours[0]].get(name, _Sale())
            self.by_lot[ours[0]][name] = _Sale(
                sale.qty + qty,
                sale.value + qty * execution.exec_price,
                sale.maker and execution.is_maker,
                sale.forced or _forced(execution),
            )


def trades(
    lots: Iterable[msg.Lot],
    orders: Iterable[msg.Order],
    executions: Iterable[msg.Execution],
    flattened: bool,
    known: Mapping[str, Extremes] | None = None,
) -> list[Trade]:
    """The closed ones among `lots`, first closed first; each with the reason of its largest part.

    `orders` and `executions` are at least those of the lots; `flattened`: whether the mode FLATTEN
    is in the ledger at all. Reasons, and what they are told by:

    - stop loss: the exchange's own order. adl, liquidation: the type of the execution.
    - take profit: the exit's last price was the lot's take profit, or better.
    - reversal: it was worse, which an exit in a ledger without FLATTEN is for no other reason.
    - flatten: as that, but it gave away more of the market's price than a reversal ever does. No
      time is compared: modes are written by the wall clock, executions by the market's.
    - others: no exit of ours sold it, but somebody else's order did, while it was held.
    - merged: what was left was too small for an order and went on in another lot of its symbol.
    - exit: all that cannot be told apart.
    """
    found = list(lots)
    sales = _Sales(orders, executions)
    grown = {
        (lot.symbol, lot.side)
        for lot in found
        if lot.entry_id in sales.bought and lot.bought > sales.bought[lot.entry_id]
    }
    closed = [lot for lot in found if lot.closed_ms and lot.bought]
    made = [_trade(lot, _reason(lot, sales, grown, flattened), known or {}) for lot in closed]
    return sorted(made, key=lambda trade: (trade.closed_ms, trade.entry_id))


def funding_usdt(executions: Iterable[msg.Execution]) -> Decimal:
    """What funding brought, less what it cost: the ledger holds each settlement as an execution."""
    return -sum((e.exec_fee for e in executions if e.exec_type == FUNDING), ZERO)


def statistics(
    trades: Sequence[Trade], equity: Sequence[Point], funding: Decimal | None = None
) -> Statistics:
    """All of it; each number is as `Statistics` says. `equity` is what `equity_curve` made."""
    everything = _group("", trades)
    profits = [trade.profit_usdt for trade in trades]
    won = sum((profit for profit in profits if profit > 0), ZERO)
    lost = -sum((profit for profit in profits if profit < 0), ZERO)
    sharpe, sortino = ratios(equity)
    count = len(trades)
    return Statistics(
        count,
        everything.wins,
        everything.losses,
        everything.win_rate_pct,
        everything.profit_usdt,
        everything.fees_usdt,
        funding,
        won / lost if lost else None,
        everything.profit_usdt / count if count else None,
        sum(trade.hold_ms for trade in trades) // count if count else None,
        max(trades, key=_by_profit, default=None),
        min(trades, key=_by_profit, default=None),
        sharpe,
        sortino,
        *_deepest(equity),
    )


def by_symbol(trades: Iterable[Trade]) -> list[Group]:
    """The best symbol first."""
    groups = _grouped(trades, lambda trade: trade.symbol)
    return sorted(groups, key=lambda group: (-group.profit_usdt, group.name))


def by_hour(trades: Iterable[Trade]) -> list[Group]:
    """By the UTC hour of the entry: all 24 of them, named 00 to 23."""
    groups = _grouped(trades, lambda trade: f"{trade.opened_ms % DAY_MS // HOUR_MS:02d}")
    found = {group.name: group for group in groups}
    return [found.get(name) or _group(name, ()) for name in (f"{h:02d}" for h in range(24))]


def by_reason(trades: Iterable[Trade]) -> list[Group]:
    """The commonest reason first."""
    groups = _grouped(trades, lambda trade: trade.reason)
    return sorted(groups, key=lambda group: (-group.trades, group.name))


def equity_curve(rows: Iterable[tuple[int, float]]) -> list[Point]:
    """(wall_ms, equity in USDT) in any order, as a curve. A deposit counts as a profit, and what
    is taken out as a loss: the ledger cannot tell them apart."""
    points, top = [], -math.inf
    for wall_ms, equity in sorted(rows):
        top = max(top, equity)
        points.append(Point(wall_ms, equity, 100 * (equity - top) / top if top > 0 else 0.0))
    return points


def thin(points: Sequence[Point], most: int) -> list[Point]:
    """At most `most` (>= 5) of the points, in order: the first and last, and of each stretch the
    highest, lowest and deepest, so that no extreme is lost. Raises ValueError."""
    if most < LEAST_POINTS:
        raise ValueError(f"at least {LEAST_POINTS} points, not {most}")
    if len(points) <= most:
        return list(points)
    stretches, last = (most - 2) // 3, len(points) - 1
    kept = {0, last}
    for number in range(stretches):
        stretch = range(number * len(points) // stretches, (number + 1) * len(points) // stretches)
        kept.add(max(stretch, key=lambda index: points[index].equity))
        kept.add(min(stretch, key=lambda index: points[index].equity))
        kept.add(min(stretch, key=lambda index: points[index].drawdown_pct))
    return [points[index] for index in sorted(kept)]


def ratios(equity: Sequence[Point]) -> tuple[float | None, float | None]:
    """(Sharpe, Sortino) of daily returns, annualised by sqrt(365); the riskless rate is 0.

    A day's return r is its last equity / that of the day before - 1, by UTC days of the wall clock;
    the first day counts from its first equity, and a day without any counts as 0.
    Sharpe = mean(r) / sample deviation(r) * sqrt(365).
    Sortino = mean(r) / sqrt(mean(min(r, 0)^2)) * sqrt(365).
    None with fewer than 2 days, where nothing varied or fell, or where the equity was not above 0.
    """
    last = {point.wall_ms // DAY_MS: point.equity for point in equity}
    days = max(last) - min(last) + 1 if last else 0
    if days < 2 or min(point.equity for point in equity) <= 0:
        return None, None
    closes = [equity[0].equity, *(last[day] for day in sorted(last))]
    returns = [now / before - 1 for before, now in pairwise(closes)]
    mean = math.fsum(returns) / days
    empty = (days - len(returns)) * mean * mean
    deviation = math.sqrt((math.fsum((r - mean) ** 2 for r in returns) + empty) / (days - 1))
    downside = math.sqrt(math.fsum(min(r, 0.0) ** 2 for r in returns) / days)
    year = math.sqrt(DAYS_A_YEAR)
    return (
        mean / deviation * year if deviation else None,
        mean / downside * year if downside else None,
    )


def _trade(lot: msg.Lot, reason: str, known: Mapping[str, Extremes]) -> Trade:
    profit = lot.profit_usdt
    return Trade(
        *(lot.entry_id, lot.symbol, lot.side, lot.bought, lot.entry_price),
        lot.proceeds / lot.sold if lot.sold else ZERO,
        *(lot.opened_ms, lot.closed_ms, lot.closed_ms - lot.opened_ms),
        *(profit, lot.fees, HUNDRED * profit / lot.cost if lot.cost else ZERO),
        reason,
        *_excursion(lot, known.get(lot.entry_id)),
    )


def _excursion(lot: msg.Lot, seen: Extremes | None) -> tuple[Decimal | None, Decimal | None, bool]:
    """(run-up %, draw-down %, whether no bar is missing). What it was bought and sold at was a
    price, too."""
    if seen is None or seen.opened_ms != lot.opened_ms or seen.high is None or seen.low is None:
        return None, None, False
    entry, leaving = lot.entry_price, lot.proceeds / lot.sold
    high = max(decimal_of(seen.high), entry, leaving)
    low = min(decimal_of(seen.low), entry, leaving)
    above, below = HUNDRED * (high - entry) / entry, HUNDRED * (low - entry) / entry
    whole = seen.gapless and seen.until_ms > lot.closed_ms
    return (above, below, whole) if sign(lot.side) > 0 else (-below, -above, whole)


def _reason(lot: msg.Lot, sales: _Sales, grown: set[tuple[str, str]], flattened: bool) -> str:
    """The one by which most of it was sold."""
    parts: defaultdict[str, Decimal] = defaultdict(Decimal)
    own = sales.by_lot.get(lot.entry_id, {})
    for name, sale in own.items():
        parts[_of_exit(lot, name, sale, sales.prices.get(name), flattened)] += sale.qty
    left = lot.sold - sum((sale.qty for sale in own.values()), ZERO)
    if left > 0:
        parts[_of_the_rest(lot, sales, grown)] += left
    return min(parts, key=lambda reason: (-parts[reason], REASONS.index(reason)), default=EXIT)


def _of_exit(lot: msg.Lot, name: str, sale: _Sale, price: Decimal | None, flattened: bool) -> str:
    if sale.forced:
        return sale.forced
    if (msg.parse_id(name) or ("", None))[1] == -1:
        return STOP_LOSS
    if not price or not lot.bought:
        return EXIT
    way = sign(lot.side)
    target = lot.entry_price * (1 + way * lot.take_profit_pct / HUNDRED)
    if (price - target) * way >= 0:
        return TAKE_PROFIT
    if not flattened:
        return REVERSAL
    given_away_pct = HUNDRED * (sale.value / sale.qty / price - 1) * way
    if given_away_pct >= GIVEN_AWAY_PCT:
        return FLATTEN
    return REVERSAL if sale.maker else EXIT


def _of_the_rest(lot: msg.Lot, sales: _Sales, grown: set[tuple[str, str]]) -> str:
    """Why a part was sold that no exit of its own has sold."""
    side = "Sell" if sign(lot.side) > 0 else "Buy"
    others = [
        execution
        for execution in sales.others.get((lot.symbol, side), ())
        if lot.opened_ms <= execution.exec_time_ms <= lot.closed_ms
    ]
    forced = next((kind for kind in map(_forced, others) if kind), "")
    if others:
        return forced or BY_OTHERS
    return MERGED if (lot.symbol, lot.side) in grown else EXIT


def _forced(execution: msg.Execution) -> str:
    return {ADL: BY_ADL, BUST: LIQUIDATION}.get(execution.exec_type, "")


def _by_profit(trade: Trade) -> tuple[Decimal, str]:
    return trade.profit_usdt, trade.entry_id


def _grouped(trades: Iterable[Trade], key: Callable[[Trade], str]) -> list[Group]:
    groups: defaultdict[str, list[Trade]] = defaultdict(list)
    for trade in trades:
        groups[key(trade)].append(trade)
    return [_group(name, group) for name, group in groups.items()]


def _group(name: str, trades: Sequence[Trade]) -> Group:
    return Group(
        name,
        len(trades),
        sum(trade.profit_usdt > 0 for trade in trades),
        sum(trade.profit_usdt < 0 for trade in trades),
        sum((trade.profit_usdt for trade in trades), ZERO),
        sum((trade.fees_usdt for trade in trades), ZERO),
    )


def _deepest(equity: Sequence[Point]) -> tuple[float, float, int, int]:
    """(percent, USDT, time of the top before it, its time) of the deepest drawdown."""
    deepest = min(equity, key=lambda point: point.drawdown_pct, default=None)
    if deepest is None or not deepest.drawdown_pct:
        return 0.0, 0.0, 0, 0
    before = [point for point in equity if point.wall_ms <= deepest.wall_ms]
    top = max(before, key=lambda point: (point.equity, point.wall_ms))
    return deepest.drawdown_pct, deepest.equity - top.equity, top.wall_ms, deepest.wall_ms
