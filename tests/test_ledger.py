"""ledger: facts in, in any order and any number of times; the same lots, slots and caps out."""

from collections.abc import Iterable
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.keeper.ledger import Caps, Change, Ledger
from shared import messages as msg

SYMBOL, MINUTE = "AAAUSDT", 60_000
BAR = 100 * MINUTE
ENTRY = msg.entry_id(SYMBOL, "Buy", BAR)


def ask(symbol: str = SYMBOL, side: str = "Buy", bar_ms: int = BAR, qty: int = 10) -> msg.Ask:
    name = msg.entry_id(symbol, side, bar_ms)
    return msg.Ask(name, symbol, side, bar_ms, Decimal(100), Decimal(qty), Decimal("0.5"), 0, 0)


def said(name: str, status: str, filled: int, at_ms: int, qty: int = 10) -> msg.OrderUpdate:
    """The exchange's word on an order; the side and the symbol follow from its id."""
    symbol, side, is_exit = terms(name)
    head = (name, f"id-{name}", symbol, side, Decimal(100), Decimal(qty), status)
    done = (Decimal(filled), Decimal(100), is_exit, "EC_NoError")
    return msg.OrderUpdate(*head, *done, BAR, at_ms)


def fill(
    name: str, qty: int, at_ms: int, exec_id: str = "", price: int = 100, kind: str = "Trade"
) -> msg.Execution:
    symbol, side, _ = terms(name)
    head = (exec_id or f"{name}/{at_ms}/{qty}", name, f"id-{name}", symbol, side, kind)
    return msg.Execution(*head, Decimal(price), Decimal(qty), Decimal("0.1"), True, at_ms)


def foreign(
    side: str, qty: int, at_ms: int = BAR + 900, kind: str = "Trade", symbol: str = SYMBOL
) -> msg.Execution:
    """A fill of an order that is not ours."""
    head = (f"foreign-{symbol}-{at_ms}-{qty}", "", "theirs", symbol, side, kind)
    return msg.Execution(*head, Decimal(100), Decimal(qty), Decimal(0), False, at_ms)


def terms(name: str) -> tuple[str, str, bool]:
    """(symbol, side, reduce_only) of one of our ids: an exit has the other side."""
    entry, number = msg.parse_id(name) or ("dm-AAAUSDT-1-B", None)
    buys = entry.endswith("B") == (number is None)
    return entry.split("-")[1], "Buy" if buys else "Sell", number is not None


def ledger(slots: int = 9, symbols: int = 9, lots: int = 9) -> Ledger:
    return Ledger("test", Caps(slots, symbols, lots), MINUTE)


def take(book: Ledger, fact: Any) -> Change:
    return book.execute(fact) if isinstance(fact, msg.Execution) else book.update(fact)


def state(book: Ledger, symbols: Iterable[str] = (SYMBOL,)) -> Any:
    """All that others can see, but for the row number, which counts the changes."""
    positions = [book.position(symbol)._replace(version=("", 0)) for symbol in symbols]
    ordered = [
        p._replace(orders=tuple(sorted(p.orders)), lots=tuple(sorted(p.lots))) for p in positions
    ]
    return ordered, book.slots(), sorted(book.symbols()), book.held()


class Rows:
    """What the store keeps of the changes: the last row of each order, lot, execution, symbol."""

    def __init__(self) -> None:
        self.orders: dict[str, tuple[msg.Order, bool]] = {}
        self.lots: dict[str, msg.Lot] = {}
        self.executions: dict[str, msg.Execution] = {}
        self.foreign: dict[str, Decimal] = {}

    def write(self, change: Change) -> None:
        self.orders |= {order.order_link_id: (order, is_open) for order, is_open in change.orders}
        self.lots |= {lot.entry_id: lot for lot in change.lots}
        if change.execution:
            self.executions[change.execution.exec_id] = change.execution
        if change.foreign is not None:
            self.foreign[change.symbol] = change.foreign

    def restored(self, like: Ledger) -> Ledger:
        used: dict[tuple[str, str], int] = {}
        for order, _ in self.orders.values():
            if order.kind == msg.ENTRY:
                key = (order.symbol, order.side)
                used[key] = max(used.get(key, 0), order.bar_start_ms)
        fresh = ledger()
        fresh.restore(
            like.row,
            [order for order, is_open in self.orders.values() if is_open],
            [lot for lot in self.lots.values() if not lot.closed_ms],
            self.executions.values(),
            used,
            self.foreign,
        )
        return fresh


# One entry and its exits, as they truly happened.


def order_history(name: str, qty: int, fills: list[int], end: str, at_ms: int) -> list[Any]:
    """New, then each fill with the update that follows from it, then its end, one ms apart."""
    facts: list[Any] = [said(name, "New", 0, at_ms, qty)]
    done = 0
    for part in fills:
        at_ms, done = at_ms + 1, done + part
        status = "Filled" if done == qty else "PartiallyFilled"
        facts += [fill(name, part, at_ms), said(name, status, done, at_ms, qty)]
    if done < qty and end:
        facts.append(said(name, end, done, at_ms + 1, qty))
    return facts


def parts(draw: Any, total: int) -> list[int]:
    """`total` as a sum of fills."""
    found = []
    while total:
        found.append(draw(st.integers(1, total)))
        total -= found[-1]
    return found


@st.composite
def histories(draw: Any) -> list[list[Any]]:
    """The facts of one entry (first) and of each of its exits, every list in true order."""
    bought = draw(st.integers(0, 10))
    end = draw(st.sampled_from(("", "Cancelled")))
    orders = [order_history(ENTRY, 10, parts(draw, bought), end, BAR + 1)]
    sold, number = 0, 0
    while bought > sold and draw(st.integers(0, 3)):
        part, name = draw(st.integers(0, bought - sold)), msg.exit_id(ENTRY, number)
        filled = parts(draw, part)
        orders.append(
            order_history(name, bought - sold, filled, "Cancelled", BAR + 100 * number + 100)
        )
        sold, number = sold + part, number + 1
    return orders


def late_and_twice(draw: Any, facts: list[Any], extra: int) -> list[Any]:
    again = draw(st.lists(st.sampled_from(facts), max_size=extra))
    return draw(st.permutations(facts + again))


@st.composite
def shuffled(draw: Any) -> tuple[list[Any], list[Any]]:
    """A true history, and all of it in any order, some of it more than once."""
    orders = draw(histories())
    facts = [fact for order in orders for fact in order]
    return facts, late_and_twice(draw, facts, extra=6)


@st.composite
def delivered(draw: Any) -> tuple[list[Any], list[Any]]:
    """The same, but an order of ours exists only once the ledger has said what it is made for.

    An exit follows the first fill of its entry, exit n + 1 the end of exit n with all its fills.
    All else is in any order, and everything may come again at any later time.
    """
    entry, *exits = draw(histories())
    executions = [fact for fact in entry if isinstance(fact, msg.Execution)]
    first = [draw(st.sampled_from(executions))] if exits else []
    rest = draw(st.permutations([fact for fact in entry if fact not in first]))
    heard, pool = list(first), list(rest)
    for facts in exits:
        mixed = draw(st.permutations(facts))
        split = draw(st.integers(0, len(pool)))
        heard += draw(st.permutations([*mixed, *pool[:split]]))
        pool = pool[split:]
    heard += pool
    for fact in draw(st.lists(st.sampled_from(heard), max_size=6)):
        heard.insert(draw(st.integers(heard.index(fact) + 1, len(heard))), fact)
    return [fact for order in (entry, *exits) for fact in order], heard


def told(facts: list[Any]) -> tuple[Ledger, Rows]:
    book, rows = ledger(), Rows()
    rows.write(book.grant(ask(), msg.RUN)[1])
    for fact in facts:
        rows.write(take(book, fact))
    return book, rows


@given(shuffled())
@settings(max_examples=100, deadline=None)
def test_any_permutation_and_repetition_of_the_facts_gives_the_same_state(
    case: tuple[list[Any], list[Any]],
) -> None:
    true, heard = case
    assert state(told(heard)[0]) == state(told(true)[0])


@given(delivered())
@settings(max_examples=100, deadline=None)
def test_facts_late_twice_and_out_of_order_give_the_same_lots_slots_and_rows(
    case: tuple[list[Any], list[Any]],
) -> None:
    true, heard = case
    (book, rows), (wanted, wanted_rows) = told(heard), told(true)
    assert state(book) == state(wanted)
    assert (rows.orders, rows.lots) == (wanted_rows.orders, wanted_rows.lots)
    bought = sum(f.exec_qty for f in true if isinstance(f, msg.Execution) and f.side == "Buy")
    sold = sum(f.exec_qty for f in true if isinstance(f, msg.Execution) and f.side == "Sell")
    assert book.held() == ({SYMBOL: bought - sold} if bought > sold else {})


@given(delivered())
@settings(max_examples=100, deadline=None)
def test_what_was_written_restores_the_live_state(case: tuple[list[Any], list[Any]]) -> None:
    _, heard = case
    cut = len(heard) // 2
    book, rows = told(heard[:cut])
    again = rows.restored(book)
    assert state(again) == state(book)
    for fact in heard[cut:]:  # and it goes on as the live one does
        take(again, fact)
        take(book, fact)
    assert state(again) == state(book)
    for bar_ms in (BAR, BAR + MINUTE):  # the dedup by bar is restored too
        assert (
            again.grant(ask(bar_ms=bar_ms), msg.RUN)[0]
            == book.grant(ask(bar_ms=bar_ms), msg.RUN)[0]
        )


def test_a_lot_opens_with_its_first_fill_in_time_whichever_is_heard_first() -> None:
    book, _ = told([fill(ENTRY, 3, BAR + 20), fill(ENTRY, 2, BAR + 10)])
    assert book.position(SYMBOL).lots[0].opened_ms == BAR + 10


# Updates.


@pytest.mark.parametrize(
    "older",
    [
        said(ENTRY, "New", 0, BAR + 1),
        said(ENTRY, "PartiallyFilled", 3, BAR + 4),
        said(ENTRY, "PartiallyFilled", 4, BAR + 4),
        said(ENTRY, "New", 4, BAR + 9),  # newer, but no order rises from its end
    ],
)
def test_an_older_word_on_an_order_changes_nothing(older: msg.OrderUpdate) -> None:
    book, _ = told([said(ENTRY, "Cancelled", 4, BAR + 5)])
    before = state(book)
    assert book.update(older) == Change()
    assert state(book) == before


def test_an_update_for_an_order_nobody_granted_opens_nothing() -> None:
    book = ledger()
    assert book.update(said(ENTRY, "New", 0, BAR)) == Change()
    assert book.slots() == 0


def test_the_amended_price_and_quantity_are_what_the_exchange_says() -> None:
    book, _ = told([said(ENTRY, "New", 0, BAR + 1)])
    book.update(said(ENTRY, "New", 0, BAR + 2, qty=7)._replace(price=Decimal(99)))
    order = book.position(SYMBOL).orders[0]
    assert (order.price, order.qty, order.status) == (Decimal(99), Decimal(7), "New")


# When an order leaves, and when a slot is free.


def test_an_order_leaves_only_when_its_executions_sum_to_its_filled_quantity() -> None:
    book, _ = told([said(ENTRY, "Filled", 10, BAR + 9), fill(ENTRY, 4, BAR + 3)])
    assert [order.order_link_id for order in book.position(SYMBOL).orders] == [ENTRY]  # 4 < 10
    book.execute(fill(ENTRY, 5, BAR + 4))
    assert len(book.position(SYMBOL).orders) == 1  # 4 + 5 = 9 < 10
    book.execute(fill(ENTRY, 1, BAR + 5))
    assert book.position(SYMBOL).orders == ()  # 4 + 5 + 1 = 10
    assert book.position(SYMBOL).lots[0].bought == 10


def test_a_slot_is_free_only_when_the_entry_has_ended_and_its_lot_is_closed() -> None:
    exit_id = msg.exit_id(ENTRY, 0)
    facts = [
        (said(ENTRY, "New", 0, BAR + 1), 1),
        (fill(ENTRY, 4, BAR + 2), 1),
        (said(exit_id, "New", 0, BAR + 3, 4), 1),
        (fill(exit_id, 4, BAR + 4), 1),
        (said(exit_id, "Filled", 4, BAR + 4, 4), 1),  # flat, but the entry still rests
        (said(ENTRY, "Cancelled", 4, BAR + 5), 0),
    ]
    book, _ = told([])
    for fact, slots in facts:
        take(book, fact)
        assert book.slots() == slots, fact
    assert book.symbols() == set()


def test_a_lot_whose_exit_has_not_ended_keeps_its_slot() -> None:
    exit_id = msg.exit_id(ENTRY, 0)
    book, _ = told([fill(ENTRY, 4, BAR + 2), said(ENTRY, "Cancelled", 4, BAR + 3)])
    book.update(said(exit_id, "New", 0, BAR + 4, 4))
    book.execute(fill(exit_id, 4, BAR + 5))  # flat: 4 - 4, but not yet said to be Filled
    assert book.slots() == 1
    book.update(said(exit_id, "Filled", 4, BAR + 5, 4))
    assert book.slots() == 0


def test_a_finished_exit_counts_and_the_next_one_sells_the_rest() -> None:
    first, second = msg.exit_id(ENTRY, 0), msg.exit_id(ENTRY, 1)
    book, _ = told([fill(ENTRY, 10, BAR + 2), said(ENTRY, "Filled", 10, BAR + 2)])
    book.execute(fill(first, 3, BAR + 3, price=101))
    book.update(said(first, "Cancelled", 3, BAR + 4))
    lot = book.position(SYMBOL).lots[0]
    assert (lot.exits, lot.sold_before, lot.sold) == (1, 3, 3)
    book.execute(fill(second, 2, BAR + 5))
    lot, order = book.position(SYMBOL).lots[0], book.position(SYMBOL).orders[0]
    assert (lot.exits, lot.sold_before, lot.sold) == (1, 3, 5)  # only finished exits count before
    assert (order.order_link_id, order.qty) == (
        second,
        Decimal(7),
    )  # 10 bought - 3 by the finished one
    assert lot.proceeds == 3 * 101 + 2 * 100
    assert lot.fees == Decimal("0.3")  # three fills of 0.1


@pytest.mark.parametrize("status", ["Refused", "NotAccepted"])
def test_an_entry_that_never_came_to_be_frees_its_slot(status: str) -> None:
    book, rows = told([])
    assert book.slots() == 1
    rows.write(book.finish(ENTRY, status, "why"))
    assert (book.slots(), book.symbols()) == (0, set())
    order, is_open = rows.orders[ENTRY]
    assert (order.status, order.reject_reason, is_open) == (status, "why", False)


@pytest.mark.parametrize("fact", [said(ENTRY, "New", 0, BAR + 1), fill(ENTRY, 1, BAR + 1)])
def test_an_order_the_exchange_has_spoken_of_was_not_refused(fact: Any) -> None:
    book, _ = told([fact])
    assert book.finish(ENTRY, "Refused", "late") == Change()
    assert book.slots() == 1


def test_a_cancelled_entry_without_fills_frees_its_slot_at_once() -> None:
    book, _ = told([said(ENTRY, "New", 0, BAR + 1), said(ENTRY, "Cancelled", 0, BAR + 2)])
    assert (book.slots(), book.position(SYMBOL).lots) == (0, ())


# Grants.


def test_an_id_is_granted_once() -> None:
    book = ledger()
    assert book.grant(ask(), msg.RUN)[0] == ""
    assert book.grant(ask(), msg.RUN)[0] != ""
    book.update(said(ENTRY, "Cancelled", 0, BAR + 1))
    assert book.grant(ask(), msg.RUN)[0] == "bar_used"  # not even when it is gone


def test_one_creation_for_each_symbol_side_and_bar() -> None:
    book = ledger()
    book.grant(ask(), msg.RUN)
    book.update(said(ENTRY, "Cancelled", 0, BAR + 1))
    assert book.grant(ask(bar_ms=BAR - MINUTE), msg.RUN)[0] == "bar_used"  # an earlier bar
    assert book.grant(ask(side="Sell"), msg.RUN)[0] == ""  # the other side has its own
    assert book.grant(ask(symbol="BBBUSDT"), msg.RUN)[0] == ""
    book.update(said(msg.entry_id(SYMBOL, "Sell", BAR), "Cancelled", 0, BAR + 2))
    assert book.grant(ask(bar_ms=BAR + MINUTE), msg.RUN)[0] == ""  # the next bar


def test_an_execution_uses_up_the_bar_it_falls_in() -> None:
    exit_id, later = msg.exit_id(ENTRY, 0), BAR + 3 * MINUTE
    book, _ = told([fill(ENTRY, 10, later + 5), said(ENTRY, "Filled", 10, later + 5)])
    book.execute(fill(exit_id, 10, later + 6))
    book.update(said(exit_id, "Filled", 10, later + 6))
    assert book.slots() == 0
    assert book.grant(ask(bar_ms=later), msg.RUN)[0] == "bar_used"
    assert book.grant(ask(bar_ms=later + MINUTE), msg.RUN)[0] == ""


def test_at_most_one_entry_of_a_symbol_is_not_terminal() -> None:
    book, _ = told([])
    assert book.grant(ask(bar_ms=BAR + MINUTE), msg.RUN)[0] == "entry_open"
    assert book.grant(ask(side="Sell"), msg.RUN)[0] == "entry_open"


def test_an_entry_against_an_open_lot_is_refused() -> None:
    book, _ = told([fill(ENTRY, 10, BAR + 1), said(ENTRY, "Filled", 10, BAR + 1)])
    assert book.grant(ask(side="Sell", bar_ms=BAR + MINUTE), msg.RUN)[0] == "opposite_lot"
    assert book.grant(ask(bar_ms=BAR + MINUTE), msg.RUN)[0] == ""  # DCA: the same direction


@pytest.mark.parametrize("mode", [mode for mode in msg.MODES if mode != msg.RUN])
def test_only_run_grants(mode: str) -> None:
    assert ledger().grant(ask(), mode)[0] == f"mode {mode}"


def test_a_refusal_leaves_nothing_behind() -> None:
    book = ledger(slots=1)
    book.grant(ask(), msg.RUN)
    before = state(book, (SYMBOL, "BBBUSDT")), book.row
    reason, change = book.grant(ask(symbol="BBBUSDT"), msg.RUN)
    assert (reason, change) == ("max_slots", Change())
    assert (state(book, (SYMBOL, "BBBUSDT")), book.row) == before


# Caps, against a model that knows nothing of the ledger's ways.

SYMBOLS = ("AAAUSDT", "BBBUSDT", "CCCUSDT", "DDDUSDT")
SLOTS, NAMES, LOTS = 3, 2, 2


class Entry:
    """What happened to one granted entry of 10."""

    def __init__(self, symbol: str, side: str) -> None:
        self.symbol, self.side, self.bought, self.sold, self.ended = symbol, side, 0, 0, False

    @property
    def held(self) -> bool:
        return not self.ended or self.bought > self.sold


class World:
    """The ledger under small caps, and the true state beside it."""

    def __init__(self) -> None:
        self.book, self.entries, self.now_ms = ledger(SLOTS, NAMES, LOTS), {}, BAR

    def ask(self, symbol: str, side: str) -> None:
        self.now_ms += MINUTE  # always a new bar: only the caps and the positions refuse
        held = [e for e in self.entries.values() if e.held]
        mine = [e for e in held if e.symbol == symbol]
        names = {e.symbol for e in held} | {symbol}
        allowed = (
            len(held) < SLOTS
            and len(names) <= NAMES
            and len(mine) < LOTS
            and all(e.ended and e.side == side for e in mine)
        )
        wish = ask(symbol, side, self.now_ms)
        reason, _ = self.book.grant(wish, msg.RUN)
        assert (reason == "") == allowed, reason
        if allowed:
            self.entries[wish.order_link_id] = Entry(symbol, side)

    def fill(self, name: str, qty: int) -> None:
        entry = self.entries[name]
        if not entry.ended:
            self.now_ms += 1
            part = min(qty, 10 - entry.bought)
            entry.bought += part
            entry.ended = entry.bought == 10
            status = "Filled" if entry.ended else "PartiallyFilled"
            self.book.update(said(name, status, entry.bought, self.now_ms))
            self.book.execute(fill(name, part, self.now_ms))

    def cancel(self, name: str, _: int) -> None:
        entry = self.entries[name]
        if not entry.ended:
            self.now_ms += 1
            entry.ended = True
            self.book.update(said(name, "Cancelled", entry.bought, self.now_ms))

    def close(self, name: str, _: int) -> None:
        """The exit fills whole."""
        entry, lot = self.entries[name], self.book.lots.get(name)
        if lot and entry.bought > entry.sold and entry.ended:
            self.now_ms += 1
            exit_id, qty = msg.exit_id(name, lot.exits), entry.bought - entry.sold
            entry.sold = entry.bought
            self.book.execute(fill(exit_id, qty, self.now_ms))
            self.book.update(said(exit_id, "Filled", qty, self.now_ms, qty))

    def check(self) -> None:
        held = [e for e in self.entries.values() if e.held]
        names = {e.symbol for e in held}
        assert (self.book.slots(), self.book.symbols()) == (len(held), names)
        assert len(held) <= SLOTS and len(names) <= NAMES
        for symbol in SYMBOLS:
            mine = [e for e in held if e.symbol == symbol]
            assert len(mine) <= LOTS and sum(not e.ended for e in mine) <= 1
            assert len({e.side for e in mine}) <= 1


ACTS = st.one_of(
    st.tuples(st.just("ask"), st.sampled_from(SYMBOLS), st.sampled_from(("Buy", "Sell"))),
    st.tuples(st.sampled_from(("fill", "cancel", "close")), st.integers(0, 9), st.integers(1, 10)),
)


@given(st.lists(ACTS, max_size=60))
@settings(max_examples=100, deadline=None)
def test_no_sequence_of_grants_fills_and_cancels_exceeds_a_cap(acts: list[Any]) -> None:
    world = World()
    for act, which, what in acts:
        if act == "ask":
            world.ask(which, what)
        elif world.entries:
            names = [name for name, entry in world.entries.items() if entry.held] or [
                *world.entries
            ]
            getattr(world, act)(names[which % len(names)], what)
        world.check()


def bought(book: Ledger, wish: msg.Ask) -> None:
    """Granted and filled whole."""
    assert book.grant(wish, msg.RUN)[0] == ""
    book.execute(fill(wish.order_link_id, 10, wish.bar_start_ms + 1))
    book.update(said(wish.order_link_id, "Filled", 10, wish.bar_start_ms + 1))


def test_each_cap_refuses_exactly_what_is_one_too_many() -> None:
    book, later = ledger(slots=4, symbols=3, lots=2), BAR + 2 * MINUTE
    bought(book, ask())
    bought(book, ask(bar_ms=BAR + MINUTE))
    assert book.grant(ask(bar_ms=later), msg.RUN)[0] == "max_lots_per_symbol"  # 2 of 2
    bought(book, ask("BBBUSDT"))
    bought(book, ask("CCCUSDT"))
    assert (book.slots(), len(book.symbols())) == (4, 3)
    assert book.grant(ask("BBBUSDT", bar_ms=later), msg.RUN)[0] == "max_slots"  # 4 of 4
    roomy = ledger(slots=9, symbols=2, lots=2)
    bought(roomy, ask())
    bought(roomy, ask("BBBUSDT"))
    assert roomy.grant(ask("CCCUSDT"), msg.RUN)[0] == "max_symbols"  # 2 of 2
    assert roomy.grant(ask("BBBUSDT", bar_ms=later), msg.RUN)[0] == ""  # no new symbol


def test_a_foreign_position_counts_one_slot_and_one_symbol() -> None:
    book = ledger(slots=2, symbols=2)
    book.execute(foreign("Buy", 5, symbol="DDDUSDT"))
    assert (book.slots(), book.symbols()) == (1, {"DDDUSDT"})
    assert book.grant(ask("AAAUSDT"), msg.RUN)[0] == ""
    assert book.grant(ask("BBBUSDT"), msg.RUN)[0] == "max_slots"  # 1 foreign + 1 ours = 2


# Executions that are not trades of ours.


def test_funding_is_kept_and_moves_no_lot() -> None:
    book, rows = told([fill(ENTRY, 10, BAR + 1), said(ENTRY, "Filled", 10, BAR + 1)])
    before = state(book)
    change = book.execute(foreign("Buy", 10, kind="Funding"))
    rows.write(change)
    assert change.execution and change.execution.exec_type == "Funding"  # cash: it is written
    assert state(book) == before
    assert state(rows.restored(book)) == before


def test_a_foreign_execution_changes_the_foreign_quantity_and_blocks_grants() -> None:
    book = ledger()
    book.execute(foreign("Sell", 5))
    assert book.position(SYMBOL).foreign_qty == -5
    assert book.grant(ask(), msg.RUN)[0] == "foreign"
    book.execute(foreign("Buy", 5, BAR + 901))
    assert book.position(SYMBOL).foreign_qty == 0  # - 5 + 5
    assert book.grant(ask(), msg.RUN)[0] == ""


def test_a_foreign_execution_that_reduces_our_lots_closes_them_oldest_first() -> None:
    """ADL, liquidation, a manual close: DESIGN §7."""
    second = msg.entry_id(SYMBOL, "Buy", BAR + MINUTE)
    book, _ = told([fill(ENTRY, 10, BAR + 1), said(ENTRY, "Filled", 10, BAR + 1)])
    book.grant(ask(bar_ms=BAR + MINUTE), msg.RUN)
    book.execute(fill(second, 10, BAR + MINUTE + 1))
    book.update(said(second, "Filled", 10, BAR + MINUTE + 1))
    book.execute(foreign("Sell", 13, BAR + 2 * MINUTE, "AdlTrade"))
    lots = {lot.entry_id: lot.bought - lot.sold for lot in book.position(SYMBOL).lots}
    assert lots == {second: Decimal(7)}  # 10 + 10 - 13: the first is gone, 3 of the second
    assert book.position(SYMBOL).foreign_qty == 0
    assert book.held() == {SYMBOL: Decimal(7)}


def test_what_a_foreign_execution_leaves_after_our_lots_is_foreign() -> None:
    book, _ = told([fill(ENTRY, 10, BAR + 1), said(ENTRY, "Filled", 10, BAR + 1)])
    book.execute(foreign("Sell", 13))
    assert (book.position(SYMBOL).lots, book.position(SYMBOL).foreign_qty) == ((), -3)  # 10 - 13


def test_a_fill_of_an_exit_whose_lot_is_unknown_is_foreign_after_a_restart_too() -> None:
    book, rows = ledger(), Rows()
    rows.write(book.execute(fill(msg.exit_id(ENTRY, 0), 4, BAR + 1)))
    assert book.position(SYMBOL).foreign_qty == -4
    assert rows.restored(book).position(SYMBOL).foreign_qty == -4


def test_executions_before_the_birth_of_the_ledger_are_not_its_own() -> None:
    book = ledger()
    book.born_ms = BAR
    assert book.execute(foreign("Buy", 5, BAR)) == Change()
    assert book.execute(foreign("Buy", 3, BAR + 1)).symbol == SYMBOL
    assert book.held() == {SYMBOL: Decimal(3)}


def test_a_position_version_grows_with_every_change_and_survives_a_restart() -> None:
    book, rows = told([fill(ENTRY, 4, BAR + 1)])
    version = book.position(SYMBOL).version
    assert version == ("test", 2)  # one grant, one execution
    assert rows.restored(book).position(SYMBOL).version == version
    rows.write(book.execute(fill(ENTRY, 4, BAR + 1)))  # again: nothing changes
    assert book.position(SYMBOL).version == version
