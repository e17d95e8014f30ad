"""orders: what should rest at the exchange for one symbol, and what must be done about it.

`desired` is the only reader of the mode. It decides from the whole truth of a symbol and keeps no
memory: the resting order is the memory.
"""

from decimal import Decimal
from typing import NamedTuple

from shared import messages as msg
from shared.instrument import BUY, decimal_of, entry_qty, opposite, round_price, round_qty, sign

FLATTEN_PCT = Decimal(1)  # beyond the last price: trades at once, with a bound
HUNDRED = Decimal(100)
GUARD = Decimal("0.05")  # no entry further from the last price than this, whatever a quote says


class Rules(NamedTuple):
    """The settings that orders follow."""

    size_usdt: Decimal
    max_lots_per_symbol: int
    dca_min_step_pct: float
    min_reprice_pct: float
    stop_loss_pct: float = 0.0


class Wanted(NamedTuple):
    """One order that should exist; `order_id` names one that the exchange has made."""

    order_link_id: str
    kind: str
    side: str
    price: Decimal
    qty: Decimal
    order_id: str = ""

    @classmethod
    def of(cls, order: msg.Order) -> "Wanted":
        """The order as it rests."""
        made = order.order_id if order.kind == msg.STOP else ""
        return cls(order.order_link_id, order.kind, order.side, order.price, order.qty, made)


class Step(NamedTuple):
    """One thing to do: `action` is create, amend or cancel; `repricing`: only the price changes."""

    action: str
    order: Wanted
    repricing: bool = False


def desired(
    position: msg.Position,
    quote: msg.Quote | None,
    mode: str,
    instrument: msg.Instrument,
    last: Decimal | None,
    rules: Rules,
) -> list[Wanted]:
    """The orders that should exist for one symbol now. `quote` is None when none is in force,
    `last` while no price was heard: an exit needs neither."""
    exits = [
        _exit(lot, quote, _mode_of(lot, position, mode, last, rules), instrument, last)
        for lot in position.lots
        if lot.bought > max(lot.sold_before, lot.sold) and mode != msg.CANCEL_ALL
    ]
    entry = _entry(position, quote, mode, instrument, last, rules)
    return [*exits, entry] if entry else exits


def steps(wanted: list[Wanted], position: msg.Position, rules: Rules) -> list[Step]:
    """From what rests to what should, most urgent first."""
    stops = {order.order_link_id: order for order in position.orders if order.kind == msg.STOP}
    working = {o.order_link_id: o for o in position.orders if o.order_link_id not in stops}
    found: list[Step] = []
    for want in wanted:
        order = working.pop(want.order_link_id, None)
        if order is None:
            found.append(Step("create", want))
        elif order.qty != want.qty or _moved(order, want, rules):
            found.append(Step("amend", want, repricing=order.qty == want.qty))
    open_ = {lot.entry_id for lot in position.lots if lot.bought > lot.sold}
    open_ |= {order.order_link_id for order in position.orders if order.kind == msg.ENTRY}
    guarded = {name for name in stops if msg.entry_of(name) in open_}
    gone = [*working.values(), *(stops[name] for name in stops.keys() - guarded)]
    filled = {x.order_link_id for x in gone if x.status == "Filled" or _is_sold(x, position.lots)}
    found += [Step("cancel", Wanted.of(x)) for x in gone if x.order_link_id not in filled]
    return sorted(found, key=_urgency)


def _entry(
    position: msg.Position,
    quote: msg.Quote | None,
    mode: str,
    instrument: msg.Instrument,
    last: Decimal | None,
    rules: Rules,
) -> Wanted | None:
    """The entry that should rest: the one that does, moved along, or a new one."""
    if quote is None or last is None or quote.zone == msg.NONE or not mode_allows(mode):
        return None
    price = _entry_price(quote, instrument, last)
    if position.foreign_qty or position.no_entry == "foreign_order":
        return None
    resting: msg.Order | None = None
    for order in position.orders:  # a quantity of 0: not described yet
        if order.kind == msg.ENTRY and (resting is None or order.qty > resting.qty):
            resting = order
    if resting:
        if resting.side != quote.side or any(lot.side != quote.side for lot in position.lots):
            return None
        too_far = price <= 0 or abs(price / last - 1) > GUARD
        reached = too_far or (last - resting.price) * sign(resting.side) <= 0
        as_it_is = Wanted.of(resting)
        return as_it_is if reached else as_it_is._replace(price=price)  # never away from a fill
    if quote.zone != msg.ARM or entry_gate(position, quote, mode, instrument, last, rules):
        return None
    qty, _ = entry_qty(rules.size_usdt, price, instrument)
    name = msg.entry_id(position.symbol, quote.side, quote.bar_start_ms)
    return Wanted(name, msg.ENTRY, quote.side, price, qty)


def mode_allows(mode: str) -> bool:
    """Whether entries may rest at all."""
    return mode in (msg.RUN, msg.NO_ENTRY)


def entry_gate(
    position: msg.Position,
    quote: msg.Quote,
    mode: str,
    instrument: msg.Instrument | None,
    last: Decimal | None,
    rules: Rules,
) -> str:
    """Why no new entry may be created for a quote that is armed, in one word; empty if it may."""
    if mode != msg.RUN:
        return "halted"
    if instrument is None or last is None:
        return "stale"
    if instrument.status != "Trading":
        return "not_tradeable"
    if position.foreign_qty or position.no_entry:
        return "foreign" if position.foreign_qty else position.no_entry.split()[0]
    if any(order.kind == msg.ENTRY for order in position.orders):
        return "entry_open"
    price = _entry_price(quote, instrument, last)
    if price <= 0 or abs(price / last - 1) > GUARD:
        return "guard"
    if not entry_qty(rules.size_usdt, price, instrument)[0]:
        return "too_small"
    return _adds(position.lots, quote, price, rules) if position.lots else ""


def _entry_price(quote: msg.Quote, instrument: msg.Instrument, last: Decimal) -> Decimal:
    """The quote's price, or one tick behind the last price if that is already there."""
    price = round_price(decimal_of(quote.price), quote.side, instrument)
    behind = round_price(last - sign(quote.side) * instrument.tick_size, quote.side, instrument)
    return min(price, behind) if quote.side == BUY else max(price, behind)


def _adds(lots: tuple[msg.Lot, ...], quote: msg.Quote, price: Decimal, rules: Rules) -> str:
    """Why another lot may not join these: same direction, later bar, better by DCA_MIN_STEP_PCT."""
    if lots[0].side != quote.side:
        return "opposite_lot"
    if len(lots) >= rules.max_lots_per_symbol:
        return "max_lots_per_symbol"
    way = sign(quote.side)
    best = min(lot.entry_price * way for lot in lots) * way
    better_pct = HUNDRED * (best - price) * way / best
    later = all(quote.bar_start_ms > lot.bar_start_ms for lot in lots)
    return "" if later and better_pct >= decimal_of(rules.dca_min_step_pct) else "dca_step"


def _exit(
    lot: msg.Lot,
    quote: msg.Quote | None,
    mode: str,
    instrument: msg.Instrument,
    last: Decimal | None,
) -> Wanted:
    """All of a lot, or as much as one order takes: the next exit sells the rest."""
    side, way = opposite(lot.side), sign(lot.side)
    price = lot.entry_price * (1 + way * lot.take_profit_pct / HUNDRED)
    if mode == msg.FLATTEN and last:
        price = last * (1 - way * FLATTEN_PCT / HUNDRED)
    elif quote and quote.side == side and quote.zone != msg.NONE:
        price = min(price * way, decimal_of(quote.price) * way) * way  # reversal: the nearer one
    price = max(round_price(price, side, instrument), instrument.tick_size)
    left = lot.bought - lot.sold_before
    qty = round_qty(min(left, instrument.max_order_qty), instrument) or left
    return Wanted(msg.exit_id(lot.entry_id, lot.exits), msg.EXIT, side, price, qty)


def _mode_of(
    lot: msg.Lot, position: msg.Position, mode: str, last: Decimal | None, rules: Rules
) -> str:
    """The mode, but FLATTEN for a lot beyond its stop loss where none rests for it (any more): the
    exchange cancels one that finds nobody to sell to."""
    if not (rules.stop_loss_pct and last and lot.entry_price):
        return mode
    stops = (order for order in position.orders if order.kind == msg.STOP)
    rests = any(msg.entry_of(stop.order_link_id) == lot.entry_id for stop in stops)
    lost_pct = HUNDRED * (1 - last / lot.entry_price) * sign(lot.side)
    return msg.FLATTEN if not rests and lost_pct >= decimal_of(rules.stop_loss_pct) else mode


def stop_price(
    side: str, price: Decimal, instrument: msg.Instrument | None, rules: Rules
) -> Decimal:
    """Where an entry's stop loss lies; 0 without one. It rounds away from the entry."""
    if instrument is None or not rules.stop_loss_pct:
        return Decimal(0)
    away = 1 - sign(side) * decimal_of(rules.stop_loss_pct) / HUNDRED
    return round_price(price * away, side, instrument)


def _urgency(step: Step) -> int:
    """Away with entries, then exits, then new entries: nothing may fill that nobody minds."""
    if step.order.kind == msg.EXIT:
        return 1
    return 0 if step.action == "cancel" else 2


def _is_sold(order: msg.Order, lots: tuple[msg.Lot, ...]) -> bool:
    """Whether this exit has sold all it should: its executions came, its last word has not yet."""
    return any(
        msg.exit_id(lot.entry_id, lot.exits) == order.order_link_id
        and lot.sold - lot.sold_before >= order.qty
        for lot in lots
    )


def _moved(order: msg.Order, want: Wanted, rules: Rules) -> bool:
    if order.kind == msg.EXIT:
        return order.price != want.price
    if not order.price:
        return False  # an entry of a lost ledger, not yet described by the exchange
    moved_pct = HUNDRED * abs(want.price - order.price) / order.price
    return moved_pct >= decimal_of(rules.min_reprice_pct)
