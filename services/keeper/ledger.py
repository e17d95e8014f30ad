"""ledger: grants, orders and executions in; lots and positions out. Pure; disk comes after.

Only executions move lots, each once by exec_id and in any order. A slot is one entry, from its
grant until it is terminal and its lot is closed. Every change is returned as the rows to be written
before anybody hears of it.
"""

from collections import defaultdict
from collections.abc import Iterable
from decimal import Decimal
from typing import NamedTuple

from shared import messages as msg
from shared.instrument import sign

GRANTED = "Granted"
TERMINAL = {"Filled", "Cancelled", "Rejected", "Deactivated", "PartiallyFilledCanceled"}
TERMINAL |= {"Refused", "NotAccepted"}  # ours: the exchange said no, or never heard of it
MOVES_LOTS = {"Trade", "AdlTrade", "BustTrade", "BlockTrade", "MovePosition", "Delivery"}
ZERO = Decimal(0)


class Caps(NamedTuple):
    """The limits a grant is judged by."""

    max_slots: int
    max_symbols: int
    max_lots_per_symbol: int


class Change(NamedTuple):
    """What one fact changed: rows to write. `orders` come with whether they are still open."""

    symbol: str = ""
    orders: tuple[tuple[msg.Order, bool], ...] = ()
    lots: tuple[msg.Lot, ...] = ()
    execution: msg.Execution | None = None


class Ledger:
    """The state of the account as far as it is ours."""

    def __init__(self, ledger_id: str, caps: Caps, interval_ms: int) -> None:
        self.id, self._caps, self._interval_ms = ledger_id, caps, interval_ms
        self.row = 0
        self.orders: dict[str, msg.Order] = {}
        self.lots: dict[str, msg.Lot] = {}
        self.foreign: defaultdict[str, Decimal] = defaultdict(Decimal)
        self.blocked: dict[str, str] = {}
        self.last_execution_ms = 0
        self.born_ms = 0  # market time; executions up to then are not this ledger's
        self._filled: defaultdict[str, Decimal] = defaultdict(Decimal)
        self._seen: set[str] = set()
        self._used_ms: defaultdict[tuple[str, str], int] = defaultdict(int)

    def restore(
        self,
        row: int,
        orders: Iterable[msg.Order],
        lots: Iterable[msg.Lot],
        executions: Iterable[msg.Execution],
        used_ms: dict[tuple[str, str], int],
    ) -> None:
        """From disk: open orders and lots, every known execution, the last used bars."""
        self.row = row
        self.orders = {order.order_link_id: order for order in orders}
        self.lots = {lot.entry_id: lot for lot in lots}
        self._used_ms.update(used_ms)
        for execution in executions:
            self._note(execution)
            if not msg.parse_id(execution.order_link_id) and execution.exec_type in MOVES_LOTS:
                self.foreign[execution.symbol] += execution.exec_qty * sign(execution.side)
        for closed in self._filled.keys() - self.orders.keys():
            del self._filled[closed]

    def grant(self, ask: msg.Ask, mode: str) -> tuple[str, Change]:
        """("", the intent to write), or the reason why not and nothing to write."""
        if reason := self._refusal(ask, mode):
            return reason, Change()
        order = msg.Order(
            *(ask.order_link_id, "", ask.symbol, ask.side, msg.ENTRY, ask.price, ask.qty, ZERO),
            *(GRANTED, ask.bar_start_ms, ask.take_profit_pct, 0),
        )
        self.orders[order.order_link_id] = order
        self._used_ms[ask.symbol, ask.side] = ask.bar_start_ms
        return "", self._changed(order.symbol, orders=((order, True),))

    def update(self, said: msg.OrderUpdate) -> Change:
        """The exchange's word on an order; what is older than we know changes nothing."""
        known = self.orders.get(said.order_link_id) or self._new_exit(said)
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
        if order == known and order.order_link_id in self.orders:
            return Change()
        self.orders[order.order_link_id] = order
        return self._closed(order, None)

    def finish(self, order_link_id: str, status: str, reason: str) -> Change:
        """An order that never came to be: Refused, or NotAccepted."""
        order = self.orders.get(order_link_id)
        if order is None or order.status != GRANTED or self._filled[order_link_id]:
            return Change()
        self.orders[order_link_id] = order._replace(status=status, reject_reason=reason)
        return self._closed(self.orders[order_link_id], None)

    def execute(self, execution: msg.Execution) -> Change:
        """One fill, applied once. Funding is written, and moves no lot."""
        if execution.exec_id in self._seen or execution.exec_time_ms <= self.born_ms:
            return Change()
        ours = msg.parse_id(execution.order_link_id)
        lot = self._filled_lot(execution, *ours) if ours else None
        self._note(execution)
        if execution.exec_type not in MOVES_LOTS:
            return self._changed(execution.symbol, execution=execution)
        if lot is None:
            self.foreign[execution.symbol] += execution.exec_qty * sign(execution.side)
            return self._changed(execution.symbol, execution=execution)
        order = self.orders.get(execution.order_link_id) or self._new_exit(execution)
        if order:
            self.orders[order.order_link_id] = order
        return self._closed(order, lot, execution)

    @property
    def execution_count(self) -> int:
        """Executions applied in the life of this ledger."""
        return len(self._seen)

    def position(self, symbol: str) -> msg.Position:
        """The whole truth of one symbol."""
        lots = [lot for lot in self.lots.values() if lot.symbol == symbol]
        return msg.Position(
            symbol,
            (self.id, self.row),
            tuple(sorted(lots, key=lambda lot: lot.opened_ms)),
            tuple(order for order in self.orders.values() if order.symbol == symbol),
            self.foreign.get(symbol, ZERO),
            self.blocked.get(symbol, ""),
        )

    def symbols(self) -> set[str]:
        """Every symbol that is not empty; each counts against the cap."""
        ours = {order.symbol for order in self.orders.values()}
        ours |= {lot.symbol for lot in self.lots.values()}
        return ours | {symbol for symbol, qty in self.foreign.items() if qty}

    def slots(self) -> int:
        """Entries that are not terminal or whose lot is open; a foreign position counts one."""
        entries = {name for name, order in self.orders.items() if order.kind == msg.ENTRY}
        return len(entries | self.lots.keys()) + sum(1 for qty in self.foreign.values() if qty)

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
            return f"mode {mode}"
        if ask.bar_start_ms <= self._used_ms[ask.symbol, ask.side]:
            return "bar_used"
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

    def _new_exit(self, said: msg.OrderUpdate | msg.Execution) -> msg.Order | None:
        """An exit we hear of for the first time, if its lot is open and has not finished it.

        Until the exchange describes it, it is as the router must have sent it.
        """
        ours = msg.parse_id(said.order_link_id)
        lot = self.lots.get(ours[0]) if ours else None
        if not ours or ours[1] is None or lot is None or ours[1] < lot.exits:
            return None
        price = said.price if isinstance(said, msg.OrderUpdate) else said.exec_price
        return msg.Order(
            *(said.order_link_id, said.order_id, said.symbol, said.side, msg.EXIT, price),
            *(
                lot.bought - lot.sold_before,
                ZERO,
                GRANTED,
                lot.bar_start_ms,
                lot.take_profit_pct,
                0,
            ),
        )

    def _filled_lot(
        self, execution: msg.Execution, entry: str, number: int | None
    ) -> msg.Lot | None:
        """The lot after this fill, or None if the ledger knows nothing of its entry."""
        lot, value = self.lots.get(entry), execution.exec_price * execution.exec_qty
        if number is None:
            order = self.orders.get(entry)
            if lot is None and order is None:
                return None
            lot = lot or _empty_lot(order, execution)
            lot = lot._replace(bought=lot.bought + execution.exec_qty, cost=lot.cost + value)
        elif lot is None:
            return None
        else:
            lot = lot._replace(sold=lot.sold + execution.exec_qty, proceeds=lot.proceeds + value)
        return lot._replace(fees=lot.fees + execution.exec_fee)

    def _note(self, execution: msg.Execution) -> None:
        """Remember a fill: its id, its sum per order, and the bar it used up."""
        self._seen.add(execution.exec_id)
        self.last_execution_ms = max(self.last_execution_ms, execution.exec_time_ms)
        if execution.exec_type not in MOVES_LOTS:
            return
        self._filled[execution.order_link_id] += execution.exec_qty
        ours = msg.parse_id(execution.order_link_id)
        if ours and ours[1] is None:
            key = (execution.symbol, execution.side)
            bar_ms = execution.exec_time_ms // self._interval_ms * self._interval_ms
            self._used_ms[key] = max(self._used_ms[key], bar_ms)

    def _closed(
        self, order: msg.Order | None, lot: msg.Lot | None, execution: msg.Execution | None = None
    ) -> Change:
        """Take out what has ended: an order with all its fills, a lot with all its orders."""
        rows: tuple[tuple[msg.Order, bool], ...] = ()
        symbol = order.symbol if order else lot.symbol if lot else ""
        if order:
            done = (
                order.status in TERMINAL and self._filled[order.order_link_id] >= order.cum_exec_qty
            )
            rows = ((order, not done),)
            entry, number = msg.parse_id(order.order_link_id) or ("", None)
            lot = lot or self.lots.get(entry)
            if done:
                del self.orders[order.order_link_id]
                filled = self._filled.pop(order.order_link_id, ZERO)
                if lot and number is not None:
                    lot = lot._replace(exits=number + 1, sold_before=lot.sold_before + filled)
        if lot:
            names = (lot.entry_id, msg.exit_id(lot.entry_id, lot.exits))
            if lot.bought == lot.sold and not any(name in self.orders for name in names):
                lot = lot._replace(closed_ms=self.last_execution_ms)
                del self.lots[lot.entry_id]
            else:
                self.lots[lot.entry_id] = lot
        return self._changed(symbol, rows, (lot,) if lot else (), execution)

    def _changed(
        self,
        symbol: str,
        orders: tuple[tuple[msg.Order, bool], ...] = (),
        lots: tuple[msg.Lot, ...] = (),
        execution: msg.Execution | None = None,
    ) -> Change:
        self.row += 1
        return Change(symbol, orders, lots, execution)


def _empty_lot(order: msg.Order | None, execution: msg.Execution) -> msg.Lot:
    assert order is not None
    return msg.Lot(
        *(order.order_link_id, order.symbol, order.side, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO),
        *(0, order.take_profit_pct, order.bar_start_ms, execution.exec_time_ms),
    )


def _stale(said: msg.OrderUpdate, known: msg.Order) -> bool:
    """Older than what is known: less filled, said earlier, or alive after its end."""
    if known.status in TERMINAL and said.order_status not in TERMINAL:
        return True
    return said.cum_exec_qty < known.cum_exec_qty or said.updated_time_ms < known.updated_ms
