"""stops: conditional orders, take profit and stop loss, until their trigger. Pure.

They wait outside the book. Full: one take profit and one stop loss of the whole position, at
market. Partial: one of each for every order that asked, for as much as it has filled. Source: Bybit
v5 /order/create and /position/trading-stop.
"""

from collections import defaultdict
from decimal import Decimal
from typing import NamedTuple, Protocol

from services.paper.market import Listing
from services.paper.order import BUY, SELL, Order, Params, Row
from services.paper.params import Refused, choice, invalid, number

MAX_CONDITIONAL, MAX_PARTIAL = 10, 20  # per symbol
MODES = ("Full", "Partial")
TRIGGERS = ("LastPrice", "MarkPrice", "IndexPrice")
RISES, FALLS = 1, 2


class Leg(NamedTuple):
    """The words for one side of a bracket; `with_position` is its direction for a long one."""

    price: str
    size: str
    limit: str
    order_type: str
    trigger_by: str
    name: str
    with_position: int


LEGS = (
    Leg("takeProfit", "tpSize", "tpLimitPrice", "tpOrderType", "tpTriggerBy", "TakeProfit", RISES),
    Leg("stopLoss", "slSize", "slLimitPrice", "slOrderType", "slTriggerBy", "StopLoss", FALLS),
)
PRICES = {leg.price for leg in LEGS}
BRACKET = (
    "tpslMode",
    *(name for leg in LEGS for name in (leg.price, leg.limit, leg.order_type, leg.trigger_by)),
)


class Desk(Protocol):
    """What stops need of the engine."""

    last: dict[str, Decimal]
    marks: dict[str, Decimal]

    def new_order(self, params: Params, price: Decimal, qty: Decimal, now_ms: int) -> Order:
        """An order with an identity."""

    def end(
        self, order: Order, status: str, reason: str, now_ms: int, cancel_type: str = "UNKNOWN"
    ) -> None:
        """The end of an order."""

    def say(self, order: Order) -> None:
        """Push an order as it is now."""


class Stops:
    """All orders that wait for a trigger, by symbol, oldest first."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self.waiting: defaultdict[str, list[Order]] = defaultdict(list)

    def check_room(self, symbol: str) -> None:
        """Whether one more conditional order may wait. Raises Refused."""
        if sum(not other.from_position for other in self.waiting[symbol]) >= MAX_CONDITIONAL:
            raise Refused(110009, "The number of stop orders exceeds the maximum allowable limit")

    def add(self, order: Order) -> None:
        """A conditional order that somebody placed."""
        order.status = "Untriggered"
        self.waiting[order.symbol].append(order)

    def remove(self, order: Order) -> None:
        """It waits no longer."""
        if order in self.waiting[order.symbol]:
            self.waiting[order.symbol].remove(order)

    def due(self, symbol: str) -> list[Order]:
        """Orders whose trigger the price has reached; they no longer wait."""
        queue = self.waiting.get(symbol)
        if not queue:
            return []
        prices = (self._desk.last[symbol], self._desk.marks[symbol])
        found = [order for order in queue if _reached(order, *prices)]
        for order in found:
            queue.remove(order)
        return found

    def attach(self, parent: Order, qty: Decimal, size: Decimal, now_ms: int) -> None:
        """An order with a take profit or stop loss was filled by `qty`; the position is `size`."""
        terms = parent.terms
        wanted = {n: terms[n] for n in (leg.price for leg in LEGS) if terms.get(n, "0") != "0"}
        if not wanted or not size or (size > 0) != (parent.side == BUY):
            return  # nothing was opened that could be protected
        if terms.get("tpslMode") != "Partial":
            kept = {name: value for name, value in terms.items() if name not in PRICES}
            self.set_full(parent.symbol, kept | wanted, size, now_ms, parent.link_id)
            return
        for leg in LEGS:
            if leg.price not in wanted:
                continue
            child = self._child(parent, leg)
            if child is None:
                head = (leg, "Partial", parent.symbol, terms, qty, size, now_ms)
                self._new(*head, parent.link_id, parent.order_id)
            else:
                child.qty, child.updated_ms = child.qty + qty, now_ms
                self._desk.say(child)

    def set_full(
        self, symbol: str, terms: Params, size: Decimal, now_ms: int, parent_link: str = ""
    ) -> bool:
        """Set, move or clear ("0") the position's own; whether anything changed."""
        changed = False
        for leg in LEGS:
            if terms.get(leg.price) in (None, ""):
                continue
            old, wanted = self.full(symbol, leg), str(terms[leg.price])
            if old and Decimal(wanted) == old.trigger:
                continue
            if old and Decimal(wanted):
                old.terms["triggerPrice"], old.updated_ms = wanted, now_ms
                self._desk.say(old)
            elif old:
                self._desk.end(old, "Deactivated", "EC_NoError", now_ms, "CancelByTpSlTsClear")
            elif Decimal(wanted):
                self._new(leg, "Full", symbol, terms, abs(size), size, now_ms, parent_link)
            else:
                continue
            changed = True
        return changed

    def full(self, symbol: str, leg: Leg) -> Order | None:
        """The position's own take profit or stop loss."""
        found = (o for o in self.waiting[symbol] if o.terms.get("stopOrderType") == leg.name)
        return next(found, None)

    def trading_stop(self, params: Params, listing: Listing, size: Decimal, now_ms: int) -> None:
        """POST /v5/position/trading-stop. Raises Refused."""
        symbol, tick = listing.symbol, listing.tick_size
        mode = choice(params, "tpslMode", MODES, "Full")
        if not size:
            raise Refused(10001, "can not set tp/sl/ts for zero position")
        if params.get("trailingStop") not in (None, "", "0"):
            raise Refused(10001, "trailingStop: not supported by the paper exchange")
        terms = bracket(params, self._desk.marks[symbol], BUY if size > 0 else SELL, tick)
        if mode == "Full":
            if not self.set_full(symbol, terms, size, now_ms):
                raise Refused(34040, "not modified")
            return
        partial = sum(o.terms.get("tpslMode") == "Partial" for o in self.waiting[symbol])
        wanted = [leg for leg in LEGS if terms.get(leg.price) not in (None, "", "0")]
        if not wanted:
            raise Refused(34040, "not modified")
        if partial + len(wanted) > MAX_PARTIAL:
            raise Refused(110061, "The number of TP/SL orders exceeds the limit")
        parts = [(leg, number(params, leg.size, listing.qty_step)) for leg in wanted]
        for leg, qty in parts:
            if qty > abs(size):
                raise invalid(leg.size)
        pair = ""
        for leg, qty in parts:
            pair = self._new(leg, "Partial", symbol, terms, qty, size, now_ms, "", pair)

    def resize(self, symbol: str, size: Decimal, now_ms: int) -> None:
        """The position changed: its own take profit and stop loss go along, or end with it."""
        for order in [o for o in self.waiting.get(symbol, ()) if o.from_position]:
            if not size or (size > 0) == (order.side == BUY):
                self._desk.end(order, "Deactivated", "EC_NoError", now_ms, "CancelByTpSlTsClear")
            elif order.terms["tpslMode"] == "Full" and order.qty != abs(size):
                order.qty, order.updated_ms = abs(size), now_ms
                self._desk.say(order)

    def drop_sibling(self, order: Order, now_ms: int) -> None:
        """One of a bracket was triggered: the other one ends."""
        if not order.from_position:
            return
        for other in list(self.waiting[order.symbol]):
            if other.from_position and other.bracket == order.bracket != "":
                self._desk.end(other, "Deactivated", "EC_NoError", now_ms, "CancelByTpSlTsClear")

    def _child(self, parent: Order, leg: Leg) -> Order | None:
        wanted = (f"Partial{leg.name}", parent.order_id)
        queue = self.waiting[parent.symbol]
        found = (o for o in queue if (o.terms.get("stopOrderType"), o.bracket) == wanted)
        return next(found, None)

    def _new(
        self,
        leg: Leg,
        mode: str,
        symbol: str,
        terms: Params,
        qty: Decimal,
        size: Decimal,
        now_ms: int,
        parent_link: str = "",
        bracket: str = "",
    ) -> str:
        """Make one; the bracket it belongs to."""
        limit = terms.get(leg.limit) if mode == "Partial" else None
        name = leg.name if mode == "Full" else f"Partial{leg.name}"
        params: Row = {
            "symbol": symbol,
            "side": SELL if size > 0 else BUY,
            "orderType": "Limit" if limit else "Market",
            "timeInForce": "GTC" if limit else "IOC",
            "reduceOnly": True,
            "closeOnTrigger": True,
            "createType": f"CreateBy{name}",
            "stopOrderType": name,
            "parentOrderLinkId": parent_link,
            "triggerPrice": str(terms[leg.price]),
            "triggerDirection": leg.with_position if size > 0 else 3 - leg.with_position,
            "triggerBy": terms.get(leg.trigger_by) or "LastPrice",
            "tpslMode": mode,
        }
        order = self._desk.new_order(params, Decimal(limit or 0), qty, now_ms)
        order.status, order.bracket = "Untriggered", bracket or order.order_id
        self.waiting[symbol].append(order)
        self._desk.say(order)
        return order.bracket


def bracket(
    params: Params, base: Decimal, side: str, tick: Decimal, old: Params | None = None
) -> Row:
    """The take profit and stop loss fields of a request, checked against a price. Raises Refused.

    A long position's take profit lies above `base` and its stop loss below; "0" clears. What a
    change of `old` terms does not name stays; a request that names nothing gives nothing.
    """
    if not any(params.get(name) for name in BRACKET):
        return {}
    terms: Row = {}
    merged = {**(old or {}), **{name: params[name] for name in BRACKET if params.get(name)}}
    for leg in LEGS:
        value = merged.get(leg.price)
        if value in (None, ""):
            continue
        terms[leg.price] = str(value)
        terms[leg.trigger_by] = choice(merged, leg.trigger_by, TRIGGERS, "LastPrice")
        kind = choice(merged, leg.order_type, ("Market", "Limit"), "Market")
        terms[leg.order_type] = kind
        if kind == "Limit":
            terms[leg.limit] = f"{number(merged, leg.limit, tick):f}"
        if str(value) == "0" or not params.get(leg.price):
            continue
        price = number(params, leg.price, tick)
        above = (leg.with_position == RISES) == (side == BUY)
        if price == base or (price > base) != above:
            word = "higher" if above else "lower"
            text = f"{leg.name}:{value} set for {side} position should be {word} than base_price"
            raise Refused(10001, f"{text}:{base:f}")
    if terms:
        terms["tpslMode"] = choice(merged, "tpslMode", MODES, "Full")
        if terms["tpslMode"] == "Full" and any(leg.limit in terms for leg in LEGS):
            raise Refused(10001, "params error: Full tpslMode takes market orders only")
    return terms


def trigger_terms(params: Params, last: Decimal, tick: Decimal) -> Row:
    """The fields of a conditional order; empty for another. Raises Refused."""
    if params.get("triggerPrice") in (None, "", "0"):
        return {}
    price, way = number(params, "triggerPrice", tick), str(params.get("triggerDirection"))
    if way not in ("1", "2"):
        raise invalid("triggerDirection")
    if (price > last) != (way == "1") or price == last:
        code, word = (110092, "higher") if way == "1" else (110093, "lower")
        raise Refused(code, f"expect triggerPrice to be {word} than the last price")
    by = choice(params, "triggerBy", TRIGGERS, "LastPrice")
    return {
        "triggerPrice": f"{price:f}",
        "triggerDirection": int(way),
        "triggerBy": by,
        "stopOrderType": "Stop",
    }


def _reached(order: Order, last: Decimal, mark: Decimal) -> bool:
    price = last if order.terms.get("triggerBy") != "MarkPrice" else mark
    rises = order.terms["triggerDirection"] == RISES
    return price >= order.trigger if rises else price <= order.trigger
