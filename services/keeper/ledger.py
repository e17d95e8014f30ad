"""ledger: grants, orders and executions in; lots and positions out. Pure; disk comes after.

Only executions move lots, each once by exec_id and in any order. A slot is a lot: it begins empty
with the grant of its entry and ends when its orders have ended and what it bought is sold. Every
change is returned as the rows to be written before anybody hears of it.
"""

from collections import defaultdict
from collections.abc import Iterable
from decimal import Decimal
from typing import NamedTuple

from shared import messages as msg
from shared.instrument import BUY, SELL, opposite, sign

GRANTED = "Granted"
TERMINAL = {"Filled", "Cancelled", "Rejected", "Deactivated", "PartiallyFilledCanceled"}
TERMINAL |= {"Refused", "NotAccepted"}  # ours: the exchange said no, or never heard of it
FORCED = {"AdlTrade", "BustTrade"}  # the exchange reduced us against our will ...
FORCED_MS = 900_000  # ... after which the symbol has no entries for so long
ZERO = Decimal(0)


class Caps(NamedTuple):
    """The limits a grant is judged by."""

    max_slots: int
    max_symbols: int
    max_lots_per_symbol: int
    cooldown_seconds: int = 0


class Change(NamedTuple):
    """What one fact changed: rows to write. `orders` come with whether they are still open.
    `touches` say what came of the entries among them."""

    symbol: str = ""
    orders: tuple[tuple[msg.Order, bool], ...] = ()
    lots: tuple[msg.Lot, ...] = ()
    execution: msg.Execution | None = None
    foreign: Decimal | None = None
    touches: tuple[msg.Touch, ...] = ()


class Ledger:
    """The state of the account as far as it is ours."""

    def __init__(self, ledger_id: str, caps: Caps, interval_ms: int) -> None:
        self.id, self._caps, self._interval_ms = ledger_id, caps, interval_ms
        self.row = 0
        self.orders: dict[str, msg.Order] = {}
        self.lots: dict[str, msg.Lot] = {}
        self.foreign: defaultdict[str, Decimal] = defaultdict(Decimal)
        self.blocked: dict[str, str] = {}
        self.marks: dict[str, Decimal] = {}  # of what is held, as of the last comparison
        self.last_execution_ms = 0
        self.born_ms = 0  # market time; executions up to then are not this ledger's
        self._filled: defaultdict[str, Decimal] = defaultdict(Decimal)
        self._ended: set[str] = set()
        self._seen: set[str] = set()
        self._used_ms: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._stops: dict[str, str] = {}  # order_id of a stop loss: our name for it
        self._nameless: defaultdict[str, Decimal] = defaultdict(Decimal)  # order_id: filled
        self._traded_ms: defaultdict[str, int] = defaultdict(int)  # by entry: its last execution
        self._rest_ms: defaultdict[str, int] = defaultdict(int)  # symbol: no entries until then
        self._foreign_said: dict[str, Decimal] = {}  # as it was written last
        self.breach = ""

    def restore(
        self,
        row: int,
        orders: Iterable[msg.Order],
        lots: Iterable[msg.Lot],
        executions: Iterable[msg.Execution],
        used_ms: dict[tuple[str, str], int],
        foreign: dict[str, Decimal] | None = None,
        closed_ms: dict[str, int] | None = None,
        stops: Iterable[msg.Order] = (),
    ) -> None:
        """From disk: open orders and lots, every execution, the bars used, what is foreign."""
        self.row = row
        self.orders = {order.order_link_id: order for order in orders}
        stops = [*stops, *(order for order in self.orders.values() if order.kind == msg.STOP)]
        ended_stops = {order.order_link_id for order in stops} - self.orders.keys()
        self._stops = {order.order_id: order.order_link_id for order in stops}
        for symbol, at_ms in (closed_ms or {}).items():
            self._cool_down(symbol, at_ms)
        self.lots = {name: _empty(o) for name, o in self.orders.items() if o.kind == msg.ENTRY}
        self.lots |= {lot.entry_id: lot for lot in lots}
        self._used_ms.update(used_ms)
        self.foreign.update(foreign or {})
        self._foreign_said.update(foreign or {})
        for execution in executions:
            self._note(execution)
        exits = {
            msg.exit_id(lot.entry_id, n) for lot in self.lots.values() for n in range(lot.exits)
        }
        self._ended = (exits | self.lots.keys() | ended_stops) - self.orders.keys()

    def grant(self, ask: msg.Ask, mode: str) -> tuple[str, Change]:
        """("", the intent to write), or the reason why not and nothing to write."""
        if reason := self._refusal(ask, mode):
            return reason, Change()
        return "", self._opened(*ask[:3], ask.price, ask.qty, ask.bar_start_ms, ask.take_profit_pct)

    def adopt(self, entry: str, take_profit_pct: Decimal) -> Change:
        """An entry of a ledger that was lost, as far as its id tells it: as if just granted."""
        _, symbol, bar, letter = entry.split("-")
        bar_ms, side = int(bar, 16) * 60_000, BUY if letter == "B" else SELL
        return self._opened(entry, symbol, side, ZERO, ZERO, bar_ms, take_profit_pct)

    def update(self, said: msg.OrderUpdate) -> Change:
        """The exchange's word on an order; what is older than we know changes nothing."""
        name = self._name(said)
        known = self._order(name, said, said.price)
        if known is None or _stale(said, known):
            return Change()
        order = known._replace(
            order_id=said.order_id,
            price=said.price or known.price,
            qty=said.qty or known.qty,
            cum_exec_qty=said.cum_exec_qty,
            status=said.order_status,
            updated_ms=said.updated_time_ms,
            reject_reason="" if said.reject_reason == "EC_NoError" else said.reject_reason,
        )
        if order == self.orders.get(order.order_link_id):
            return Change()
        if order.kind == msg.STOP:
            self._stops[order.order_id] = name
        return self._netted(self._settled(order, self._lot(name)))

    def finish(self, order_link_id: str, status: str, reason: str) -> Change:
        """An order that never came to be: Refused, or NotAccepted."""
        order = self.orders.get(order_link_id)
        if order is None or order.status != GRANTED or self._filled[order_link_id]:
            return Change()
        return self.gone(order_link_id, status, reason)

    def gone(self, order_link_id: str, status: str, reason: str) -> Change:
        """An order that the exchange is proven not to have: it ends with the fills we know."""
        if order_link_id not in self.orders:
            return Change()
        order, filled = self.orders[order_link_id], self._filled[order_link_id]
        order = order._replace(status=status, reject_reason=reason, cum_exec_qty=filled)
        return self._settled(order, self._lot(order_link_id))

    def is_news(self, execution: msg.Execution) -> bool:
        """Whether it was not applied yet, and is of this ledger's time."""
        return execution.exec_id not in self._seen and execution.exec_time_ms > self.born_ms

    def execute(self, execution: msg.Execution) -> Change:
        """One fill, applied once. Funding is written, and moves no lot."""
        if not self.is_news(execution):
            return Change()
        self._note(execution)
        name = self._name(execution)
        lot = self._lot(name)
        if execution.exec_type not in msg.MOVES_LOTS:
            self.row += 1
            return Change(execution.symbol, execution=execution)
        if lot is None:
            return self._netted(self._executed_by_others(execution))
        order = self._order(name, execution, execution.exec_price)
        granted = order.qty if order and order.kind == msg.ENTRY else ZERO
        if 0 < granted < self._filled[name]:
            self.breach = f"{name} was filled beyond its quantity"
        return self._netted(self._settled(order, _filled(lot, execution), execution))

    def merge(self, name: str) -> Change:
        """What is left of a lot is too small for an exit of its own: it joins the oldest other."""
        dust = self._lot(name)
        if dust is None or any(self._lot(other) == dust for other in self.orders):
            return Change()
        others = (x for x in self.position(dust.symbol).lots if x.side == dust.side and x != dust)
        other, left = next(others, None), dust.bought - dust.sold
        if other is None or left <= 0:
            return Change()
        value = left * dust.entry_price
        more = other._replace(bought=other.bought + left, cost=other.cost + value)
        self.row += 1
        closed = self._closed(_sold(dust, left, value))
        return Change(dust.symbol, (), (*closed, *self._closed(more)))

    def position(self, symbol: str) -> msg.Position:
        """The whole truth of one symbol."""
        lots = [lot for lot in self.lots.values() if lot.symbol == symbol and lot.bought]
        return msg.Position(
            symbol,
            (self.id, self.row),
            tuple(sorted(lots, key=lambda lot: lot.opened_ms)),
            tuple(order for order in self.orders.values() if order.symbol == symbol),
            self.foreign.get(symbol, ZERO),
            self.blocked.get(symbol, ""),
            mark_price=self.marks.get(symbol, ZERO),
        )

    def incomplete(self) -> bool:
        """Whether an order has been filled by executions that are not here."""
        return any(self._filled[name] < o.cum_exec_qty for name, o in self.orders.items())

    def symbols(self) -> set[str]:
        """Every symbol that is not empty; each counts against the cap."""
        ours = {lot.symbol for lot in self.lots.values()}
        return ours | {symbol for symbol, qty in self.foreign.items() if qty}

    def slots(self) -> int:
        """Entries whose lot is not closed; a foreign position counts one."""
        return len(self.lots) + sum(1 for qty in self.foreign.values() if qty)

    def open_lots(self) -> int:
        """Lots that hold something."""
        return sum(1 for lot in self.lots.values() if lot.bought > lot.sold)

    def facts(self) -> tuple[int, dict[str, msg.Order]]:
        """All that the exchange has told, but for when: what changes it is news."""
        return len(self._seen), {name: o._replace(updated_ms=0) for name, o in self.orders.items()}

    @property
    def execution_count(self) -> int:
        """Executions applied in the life of this ledger."""
        return len(self._seen)

    def held(self) -> dict[str, Decimal]:
        """What the exchange must hold of each symbol, signed: our lots and the foreign quantity."""
        sums: defaultdict[str, Decimal] = defaultdict(Decimal, self.foreign)
        for lot in self.lots.values():
            sums[lot.symbol] += (lot.bought - lot.sold) * sign(lot.side)
        return {symbol: qty for symbol, qty in sums.items() if qty}

    def mode(self, mode: str, reason: str, differences: int) -> msg.Mode:
        """The Mode message: it lists every symbol that is not empty."""
        symbols = tuple(sorted(self.symbols()))
        return msg.Mode((self.id, self.row), mode, reason, symbols, self.slots(), differences)

    def _refusal(self, ask: msg.Ask, mode: str) -> str:
        if mode != msg.RUN:
            return "halted"
        if ask.bar_start_ms <= self._used_ms[ask.symbol, ask.side]:
            return "bar_used"
        if ask.bar_start_ms < self._rest_ms[ask.symbol]:
            return "cooldown"
        if ask.symbol in self.blocked or self.foreign.get(ask.symbol):
            return self.blocked.get(ask.symbol, "foreign")
        if any(o.symbol == ask.symbol and o.kind == msg.ENTRY for o in self.orders.values()):
            return "entry_open"
        lots = [lot for lot in self.lots.values() if lot.symbol == ask.symbol]
        if any(lot.side != ask.side for lot in lots):
            return "opposite_lot"
        if len(lots) >= self._caps.max_lots_per_symbol:
            return "max_lots_per_symbol"
        if self.slots() >= self._caps.max_slots:
            return "max_slots"
        symbols = self.symbols()
        if ask.symbol not in symbols and len(symbols) >= self._caps.max_symbols:
            return "max_symbols"
        return ""

    def _opened(
        self,
        name: str,
        symbol: str,
        side: str,
        price: Decimal,
        qty: Decimal,
        bar_start_ms: int,
        take_profit_pct: Decimal,
    ) -> Change:
        """A new entry takes its slot and its bar."""
        terms = (price, qty, ZERO, GRANTED, bar_start_ms, take_profit_pct, 0)
        order = msg.Order(name, "", symbol, side, msg.ENTRY, *terms)
        self.orders[order.order_link_id] = order
        self.lots[order.order_link_id] = _empty(order)
        self._used_ms[symbol, side] = max(self._used_ms[symbol, side], bar_start_ms)
        self.row += 1
        return Change(order.symbol, orders=((order, True),))

    def _lot(self, order_link_id: str) -> msg.Lot | None:
        """The lot an order of ours belongs to, entry or exit; None if the id is not ours."""
        ours = msg.parse_id(order_link_id)
        return self.lots.get(ours[0]) if ours else None

    def _name(self, said: msg.OrderUpdate | msg.Execution) -> str:
        """Our id of the order a fact is about; a stop loss goes by its parent's."""
        if said.order_link_id:
            return said.order_link_id
        parent = getattr(said, "parent_order_link_id", "")
        if said.order_id in self._stops or not parent:
            return self._stops.get(said.order_id, "")
        known = sum(name.startswith(f"{parent}s") for name in self._stops.values())
        return msg.stop_id(parent, known)

    def _cool_down(self, symbol: str, closed_ms: int) -> None:
        if self._caps.cooldown_seconds:
            self._rest(symbol, closed_ms + self._caps.cooldown_seconds * 1000)

    def _rest(self, symbol: str, until_ms: int) -> None:
        self._rest_ms[symbol] = max(self._rest_ms[symbol], until_ms)

    def _order(
        self, name: str, said: msg.OrderUpdate | msg.Execution, price: Decimal
    ) -> msg.Order | None:
        """The order a fact is about. An exit heard of for the first time is as it must have been
        sent; one that has ended, or belongs to no lot, is None."""
        lot = self._lot(name)
        if name in self.orders or name in self._ended or lot is None:
            return self.orders.get(name)
        terms = (price, lot.bought - lot.sold_before, ZERO, GRANTED, lot.bar_start_ms)
        kind = msg.EXIT if name.rpartition("x")[2].isdecimal() else msg.STOP
        head = (name, said.order_id, said.symbol, said.side, kind)
        return msg.Order(*head, *terms, lot.take_profit_pct, 0)

    def _executed_by_others(self, execution: msg.Execution) -> Change:
        """A manual trade, ADL, a liquidation: closes our lots oldest first, the rest is foreign."""
        side, price, at_ms = opposite(execution.side), execution.exec_price, execution.exec_time_ms
        left, lots = self._taken(execution.symbol, side, execution.exec_qty, price, at_ms)
        self.foreign[execution.symbol] += left * sign(execution.side)
        self.row += 1
        return Change(execution.symbol, (), lots, execution, self.foreign[execution.symbol])

    def _taken(
        self, symbol: str, side: str, qty: Decimal, price: Decimal, at_ms: int
    ) -> tuple[Decimal, tuple[msg.Lot, ...]]:
        """Close lots of one side, oldest first, by a sale that no exit of theirs made: what is left
        of `qty`, and their rows. A price of 0: each at its own."""
        rows: list[msg.Lot] = []
        for lot in self.position(symbol).lots:
            part = min(qty, lot.bought - lot.sold)
            if lot.side == side and part > 0:
                qty -= part
                self._traded_ms[lot.entry_id] = max(self._traded_ms[lot.entry_id], at_ms)
                rows += self._closed(_sold(lot, part, part * (price or lot.entry_price)))
        return qty, tuple(rows)

    def _note(self, execution: msg.Execution) -> None:
        """Remember a fill: its id, its sum per order, and the bar it used up."""
        self._seen.add(execution.exec_id)
        self.last_execution_ms = max(self.last_execution_ms, execution.exec_time_ms)
        name = self._name(execution)
        ours = msg.parse_id(name)
        if execution.exec_type in FORCED:
            self._rest(execution.symbol, execution.exec_time_ms + FORCED_MS)
        if not name:
            self._nameless[execution.order_id] += execution.exec_qty
        if execution.exec_type not in msg.MOVES_LOTS or not ours:
            return
        if ours[0] in self.lots:
            self._filled[name] += execution.exec_qty
            at_ms = max(self._traded_ms[ours[0]], execution.exec_time_ms)
            self._traded_ms[ours[0]] = at_ms
        if ours[1] is None:
            key = (execution.symbol, execution.side)
            bar_ms = execution.exec_time_ms // self._interval_ms * self._interval_ms
            self._used_ms[key] = max(self._used_ms[key], bar_ms)

    def _settled(
        self, order: msg.Order | None, lot: msg.Lot | None, execution: msg.Execution | None = None
    ) -> Change:
        """Take in a new state of an order and its lot, and take out what has ended by it."""
        rows: tuple[tuple[msg.Order, bool], ...] = ()
        if order and lot:
            name, filled = order.order_link_id, self._filled[order.order_link_id]
            booked = filled + (self._nameless[order.order_id] if order.kind == msg.STOP else ZERO)
            ended = order.status in TERMINAL and booked >= order.cum_exec_qty
            rows = ((order, not ended),)
            self.orders[name] = order
            if ended:
                del self.orders[name]
                self._ended.add(name)
                number = (msg.parse_id(name) or ("", None))[1]
                if number is not None:
                    sold_before = lot.sold_before + filled
                    lot = lot._replace(exits=max(lot.exits, number + 1), sold_before=sold_before)
        lots = self._closed(lot) if lot else ()
        self.row += 1
        symbol = order.symbol if order else lot.symbol if lot else ""
        return Change(symbol, rows, tuple(lots), execution)

    def _closed(self, lot: msg.Lot) -> tuple[msg.Lot, ...]:
        """Keep a lot, or let it go: its orders ended and what it bought sold. Its row, if any."""
        spilled = () if lot.entry_id in self.orders else self._spill(lot)
        if spilled:
            lot = spilled[0]
        working = any(msg.entry_of(name) == lot.entry_id for name in self.orders)
        if not working and lot.bought == lot.sold:
            closed_ms = self._traded_ms.pop(lot.entry_id, self.last_execution_ms)
            lot = lot._replace(closed_ms=closed_ms)
            if lot.bought:
                self._cool_down(lot.symbol, closed_ms)
            del self.lots[lot.entry_id]
            self._ended = {name for name in self._ended if not name.startswith(lot.entry_id)}
        else:
            self.lots[lot.entry_id] = lot
        return (*((lot,) if lot.bought or lot.sold else ()), *spilled[1:])

    def _spill(self, lot: msg.Lot) -> tuple[msg.Lot, ...]:
        """What an exit sold beyond its own lot comes off the next ones, oldest first: the lot as it
        is then, and those it took from. Nothing where it sold no more than it bought."""
        over = lot.sold - lot.bought
        if over <= 0:
            return ()
        self.lots[lot.entry_id] = lot  # as it is: nothing comes off itself
        price = lot.proceeds / lot.sold
        left, changed = self._taken(lot.symbol, lot.side, over, price, 0)
        self.foreign[lot.symbol] -= left * sign(lot.side)  # no lot is left for it
        return _sold(lot, -over, -over * price), *changed

    def _netted(self, change: Change) -> Change:
        """What lots and foreign hold in opposite directions is nothing: the oldest lots give way,
        so that the order in which facts arrive cannot matter."""
        symbol, foreign = change.symbol, self.foreign.get(change.symbol, ZERO)
        price = change.execution.exec_price if change.execution else ZERO
        side, at_ms = SELL if foreign > 0 else BUY, self.last_execution_ms
        left, lots = self._taken(symbol, side, abs(foreign), price, at_ms)
        foreign = left.copy_sign(foreign)
        if foreign == self._foreign_said.get(symbol, ZERO) and not lots:
            return change
        self.foreign[symbol] = self._foreign_said[symbol] = foreign
        self.row += 1
        return change._replace(lots=(*change.lots, *lots), foreign=foreign)


def _empty(order: msg.Order) -> msg.Lot:
    terms = (order.take_profit_pct, order.bar_start_ms, 0)
    head = (order.order_link_id, order.symbol, order.side)
    return msg.Lot(*head, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO, 0, *terms)


def _sold(lot: msg.Lot, qty: Decimal, value: Decimal) -> msg.Lot:
    """The lot with a finished sale more, or less, that no execution of its own tells of."""
    before = max(ZERO, lot.sold_before + qty)
    return lot._replace(sold=lot.sold + qty, sold_before=before, proceeds=lot.proceeds + value)


def _filled(lot: msg.Lot, execution: msg.Execution) -> msg.Lot:
    """The lot after one fill: bought on its own side, sold on the other."""
    qty, value = execution.exec_qty, execution.exec_price * execution.exec_qty
    lot = lot._replace(fees=lot.fees + execution.exec_fee)
    if execution.side != lot.side:
        return lot._replace(sold=lot.sold + qty, proceeds=lot.proceeds + value)
    opened_ms = min(lot.opened_ms or execution.exec_time_ms, execution.exec_time_ms)
    return lot._replace(bought=lot.bought + qty, cost=lot.cost + value, opened_ms=opened_ms)


def _stale(said: msg.OrderUpdate, known: msg.Order) -> bool:
    """Older than what is known: less filled, or alive after its end, or alive and said earlier.

    An end is an end whatever its stamp: the exchange's clocks need not agree with each other.
    """
    if said.order_status in TERMINAL:
        return said.cum_exec_qty < known.cum_exec_qty
    earlier = said.updated_time_ms < known.updated_ms or said.cum_exec_qty < known.cum_exec_qty
    return earlier or known.status in TERMINAL
