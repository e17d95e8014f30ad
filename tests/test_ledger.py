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
D9 = Decimal("1e-9")
ENTRY = msg.entry_id(SYMBOL, "Buy", BAR)
LATER = msg.entry_id(SYMBOL, "Buy", BAR + MINUTE)


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


def stop(
    status: str, filled: int, at_ms: int, qty: int = 10, entry: str = ENTRY
) -> msg.OrderUpdate:
    """The exchange's word on a stop loss: it has no id of ours, but names its parent."""
    row = said(msg.exit_id(entry, 0), status, filled, at_ms, qty)._replace(order_link_id="")
    return row._replace(order_id=f"S-{entry}", price=Decimal(0), parent_order_link_id=entry)


def stop_fill(qty: int, at_ms: int, entry: str = ENTRY, price: int = 98) -> msg.Execution:
    """A fill of a stop loss: all that names it is the exchange's id."""
    row = fill(msg.exit_id(entry, 0), qty, at_ms, f"S-{entry}/{at_ms}/{qty}", price)
    return row._replace(order_link_id="", order_id=f"S-{entry}")


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


def ledger(slots: int = 9, symbols: int = 9, lots: int = 9, cooldown_s: int = 0) -> Ledger:
    return Ledger("test", Caps(slots, symbols, lots, cooldown_s), MINUTE)


def take(book: Ledger, fact: Any) -> Change:
    return book.execute(fact) if isinstance(fact, msg.Execution) else book.update(fact)


def state(book: Ledger, symbols: Iterable[str] = (SYMBOL,)) -> Any:
    """All that others can see, but for the row number, which counts the changes."""
    positions = [book.position(symbol)._replace(version=("", 0)) for symbol in symbols]
    ordered = [
        p._replace(orders=tuple(sorted(p.orders)), lots=tuple(sorted(p.lots))) for p in positions
    ]
    return ordered, book.slots(), sorted(book.symbols()), book.held(), book.breach


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

    def restored(self, like: Ledger, **caps: int) -> Ledger:
        """What a new process makes of the rows, as the store would give them."""
        used: dict[tuple[str, str], int] = {}
        for order, _ in self.orders.values():
            if order.kind == msg.ENTRY:
                key = (order.symbol, order.side)
                used[key] = max(used.get(key, 0), order.bar_start_ms)
        lots = [lot for lot in self.lots.values() if not lot.closed_ms]
        over = {msg.stop_id(lot.entry_id) for lot in self.lots.values() if lot.closed_ms}
        closed: dict[str, int] = {}
        for lot in self.lots.values():
            closed[lot.symbol] = max(closed.get(lot.symbol, 0), lot.closed_ms)
        fresh = ledger(**caps)
        fresh.restore(
            like.row,
            [order for order, is_open in self.orders.values() if is_open],
            lots,
            self.executions.values(),
            used,
            self.foreign,
            closed,
            [o for name, (o, _) in self.orders.items() if o.kind == msg.STOP and name not in over],
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


def stop_history(draw: Any, entry: str, bought: int, sold: int, at_ms: int) -> list[Any]:
    """A stop loss that grows with its lot, triggers or not, sells `sold` and ends."""
    facts: list[Any] = [stop("Untriggered", 0, at_ms, draw(st.integers(1, bought)), entry)]
    facts.append(stop("Untriggered", 0, at_ms + 1, bought, entry))
    done = 0
    for number, part in enumerate(parts(draw, sold)):
        at_ms, done = at_ms + 2 + number, done + part
        status = "Filled" if done == bought else "PartiallyFilled"
        facts += [stop_fill(part, at_ms, entry), stop(status, done, at_ms, bought, entry)]
    if done < bought:
        end = draw(st.sampled_from(("Cancelled", "Deactivated")))
        facts.append(stop(end, done, at_ms + 3, bought, entry))
    return facts


@st.composite
def histories(draw: Any, entry: str = ENTRY) -> list[list[Any]]:
    """The facts of one entry (first), of its stop loss (maybe none) and of each of its exits,
    every list in true order."""
    bought = draw(st.integers(0, 10))
    end = draw(st.sampled_from(("", "Cancelled")))
    at_ms = (BAR if entry == ENTRY else BAR + MINUTE) + 1
    orders = [order_history(entry, 10, parts(draw, bought), end, at_ms)]
    sold, number = 0, 0
    orders.append([])
    if bought and draw(st.booleans()):
        sold = draw(st.integers(0, bought))
        orders[-1] = stop_history(draw, entry, bought, sold, at_ms + 50)
    while bought > sold and draw(st.integers(0, 3)):
        part, name = draw(st.integers(0, bought - sold)), msg.exit_id(entry, number)
        filled = parts(draw, part)
        orders.append(
            order_history(name, bought - sold, filled, "Cancelled", at_ms + 100 * number + 99)
        )
        sold, number = sold + part, number + 1
    return orders


def is_stop(fact: Any) -> bool:
    return fact.order_id.startswith("S-")


def known_first(heard: list[Any]) -> list[Any]:
    """A fill of a stop is a stranger's until the exchange has said whose stop it is."""
    for entry in (ENTRY, LATER):
        mine = [n for n, fact in enumerate(heard) if fact.order_id == f"S-{entry}"]
        words = [n for n in mine if isinstance(heard[n], msg.OrderUpdate)]
        if mine and mine[0] != words[0]:
            heard[mine[0]], heard[words[0]] = heard[words[0]], heard[mine[0]]
    return heard


def late_and_twice(draw: Any, facts: list[Any], extra: int) -> list[Any]:
    again = draw(st.lists(st.sampled_from(facts), max_size=extra))
    return known_first(list(draw(st.permutations(facts + again))))


@st.composite
def shuffled(draw: Any) -> tuple[list[Any], list[Any]]:
    """A true history, and all of it in any order, some of it more than once."""
    orders = draw(histories())
    facts = [fact for order in orders for fact in order]
    return facts, late_and_twice(draw, facts, extra=6)


@st.composite
def delivered(draw: Any) -> tuple[list[Any], list[Any]]:
    """The same, but an order of ours exists only once the ledger has said what it is made for.

    An exit follows the first fill of its entry, exit n + 1 the end of exit n with all its fills;
    the stop loss is heard of before the first exit. All else is in any order, and everything may
    come again at any later time.
    """
    entry, stops, *exits = draw(histories())
    executions = [fact for fact in entry if isinstance(fact, msg.Execution)]
    first = [draw(st.sampled_from(executions))] if exits else []
    rest = [fact for fact in entry if fact not in first]
    heard, pool = list(first), list(draw(st.permutations(rest + stops[1:])))
    if stops:
        early = draw(st.integers(0, len(pool)))
        heard += [*(fact for fact in pool[:early] if not is_stop(fact)), stops[0]]
        pool = [fact for n, fact in enumerate(pool) if n >= early or is_stop(fact)]
    for facts in exits:
        mixed = draw(st.permutations(facts))
        split = draw(st.integers(0, len(pool)))
        heard += draw(st.permutations([*mixed, *pool[:split]]))
        pool = pool[split:]
    heard += pool
    for fact in draw(st.lists(st.sampled_from(heard), max_size=6)):
        heard.insert(draw(st.integers(heard.index(fact) + 1, len(heard))), fact)
    return [fact for order in (entry, stops, *exits) for fact in order], heard


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


@given(delivered(), st.integers(0, 30))
@settings(max_examples=150, deadline=None)
def test_what_was_written_restores_the_live_state(
    case: tuple[list[Any], list[Any]], cut: int
) -> None:
    _, heard = case
    book, rows = told(heard[:cut])
    again = rows.restored(book)
    assert state(again) == state(book)
    for fact in [*heard[cut:], *heard]:  # and it goes on as the live one does, repeats included
        assert take(again, fact) == take(book, fact)
    assert state(again) == state(book)
    for bar_ms in (BAR, BAR + MINUTE):  # the dedup by bar is restored too
        assert (
            again.grant(ask(bar_ms=bar_ms), msg.RUN)[0]
            == book.grant(ask(bar_ms=bar_ms), msg.RUN)[0]
        )


@st.composite
def two_lots(draw: Any) -> tuple[list[Any], list[Any]]:
    """The histories of two lots of a symbol, each true; and both at once in any order."""
    facts = [fact for entry in (ENTRY, LATER) for order in draw(histories(entry)) for fact in order]
    return facts, late_and_twice(draw, facts, extra=6)


def adopted(facts: list[Any]) -> tuple[Ledger, Rows]:
    """What these make of two entries that were sent."""
    book, rows = ledger(), Rows()
    for entry in (ENTRY, LATER):
        rows.write(book.adopt(entry, Decimal("0.5")))
    for fact in facts:
        rows.write(take(book, fact))
    return book, rows


@given(two_lots(), st.permutations((ENTRY, LATER, ENTRY)))
@settings(max_examples=150, deadline=None)
def test_two_lots_in_any_order_with_merges_after_give_the_same_ledger_and_lose_nothing(
    case: tuple[list[Any], list[Any]], merges: list[str]
) -> None:
    true, heard = case
    (book, rows), (wanted, _) = adopted(heard), adopted(true)
    assert state(book) == state(wanted)
    held, result = book.held(), paid(rows)
    before = {lot.entry_id: lot for lot in book.position(SYMBOL).lots}
    for entry in merges:
        name, working = msg.exit_id(entry, 9), working_of(book, entry)
        change = book.merge(name)
        assert wanted.merge(name)[:3] == change[:3]
        rows.write(change)
        assert change == Change() or not working
    assert state(book) == state(wanted)
    assert (book.held(), paid(rows)) == (held, result)
    assert state(rows.restored(book)) == state(book)
    for entry, lot in before.items():
        left = book.lots.get(entry)
        assert left is None or left.bought - left.sold >= 0
        if left is None:  # closed at cost, its rest is in the other one
            assert rows.lots[entry].bought == rows.lots[entry].sold == lot.bought
            assert rows.lots[entry].closed_ms > 0


@st.composite
def trades_of_others(draw: Any) -> list[Any]:
    """A few manual trades of the symbol."""
    trades = draw(
        st.lists(st.tuples(st.sampled_from(("Buy", "Sell")), st.integers(1, 15)), max_size=3)
    )
    times = (BAR + 30 + 70 * n for n in range(3))
    return [foreign(side, qty, at_ms) for (side, qty), at_ms in zip(trades, times, strict=False)]


@given(two_lots(), trades_of_others(), st.data())
@settings(max_examples=150, deadline=None)
def test_whoever_trades_in_whatever_order_the_sums_are_those_of_all_executions(
    case: tuple[list[Any], list[Any]], trades: list[Any], data: Any
) -> None:
    """And lots and a foreign quantity never stand against each other once all is heard."""
    heard = known_first(list(data.draw(st.permutations([*case[1], *trades]))))
    book, rows = adopted(heard)
    executions = {f.exec_id: f for f in heard if isinstance(f, msg.Execution)}.values()
    total = sum(f.exec_qty * (1 if f.side == "Buy" else -1) for f in executions)
    assert book.held().get(SYMBOL, 0) == total
    lots, strange = book.position(SYMBOL).lots, book.position(SYMBOL).foreign_qty
    assert not (strange < 0 and any(lot.bought > lot.sold for lot in lots))
    before = state(book)
    for fact in heard:  # again
        take(book, fact)
    assert state(book) == before
    assert state(rows.restored(book)) == before


def working_of(book: Ledger, entry: str) -> bool:
    return any((msg.parse_id(name) or ("",))[0] == entry for name in book.orders)


def paid(rows: Rows) -> Decimal:
    """What all lots have cost and not brought back, closed ones too."""
    return sum((lot.cost - lot.proceeds for lot in rows.lots.values()), Decimal(0)).quantize(D9)


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
    assert ledger().grant(ask(), mode)[0] == "halted"


def test_a_refusal_leaves_nothing_behind() -> None:
    book = ledger(slots=1)
    book.grant(ask(), msg.RUN)
    before = state(book, (SYMBOL, "BBBUSDT")), book.row
    reason, change = book.grant(ask(symbol="BBBUSDT"), msg.RUN)
    assert (reason, change) == ("max_slots", Change())
    assert (state(book, (SYMBOL, "BBBUSDT")), book.row) == before


# Caps, against a model that knows nothing of the ledger's ways.

SYMBOLS = ("AAAUSDT", "BBBUSDT", "CCCUSDT", "DDDUSDT")
SLOTS, NAMES, LOTS = 4, 2, 3


class Entry:
    """What happened to one granted entry of 10: `merged` is what it took over, or gave away."""

    def __init__(self, symbol: str, side: str) -> None:
        self.symbol, self.side, self.bought, self.sold, self.ended = symbol, side, 0, 0, False
        self.merged, self.opened_ms = 0, 0

    @property
    def left(self) -> int:
        return self.bought + self.merged - self.sold

    @property
    def held(self) -> bool:
        return not self.ended or self.left > 0


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
            entry.opened_ms = entry.opened_ms or self.now_ms
            status = "Filled" if entry.ended else "PartiallyFilled"
            self.book.update(said(name, status, entry.bought, self.now_ms))
            self.book.execute(fill(name, part, self.now_ms))

    def cancel(self, name: str, _: int) -> None:
        entry = self.entries[name]
        if not entry.ended:
            self.now_ms += 1
            entry.ended = True
            self.book.update(said(name, "Cancelled", entry.bought, self.now_ms))

    def close(self, name: str, qty: int) -> None:
        """The exit fills, whole or in part and is then cancelled."""
        entry = self.entries[name]
        if entry.ended and entry.left:
            self.now_ms += 1
            exit_id, whole = msg.exit_id(name, self.book.lots[name].exits), entry.left
            part = min(qty, whole)
            entry.sold += part
            status = "Filled" if part == whole else "Cancelled"
            self.book.execute(fill(exit_id, part, self.now_ms))
            self.book.update(said(exit_id, status, part, self.now_ms, whole))

    def stop(self, name: str, _: int) -> None:
        """The stop loss of a lot is heard of, and sells all there is."""
        entry = self.entries[name]
        if entry.ended and entry.left:
            self.now_ms += 1
            qty, entry.sold = entry.left, entry.sold + entry.left
            side = "Sell" if entry.side == "Buy" else "Buy"
            for status, done in (("Untriggered", 0), ("Filled", qty)):
                row = stop(status, done, self.now_ms, qty, name)
                self.book.update(row._replace(symbol=entry.symbol, side=side))
                if not done:
                    row = stop_fill(qty, self.now_ms, name)
                    self.book.execute(row._replace(symbol=entry.symbol, side=side))

    def dust(self, name: str, _: int) -> None:
        """The rest of a lot is too small for an exit: the oldest other lot takes it over."""
        entry = self.entries[name]
        others = [e for e in self.entries.values() if e.symbol == entry.symbol and e is not entry]
        others = sorted((e for e in others if e.held and e.bought), key=lambda e: e.opened_ms)
        if entry.ended and entry.left and others:
            others[0].merged += entry.left
            entry.merged -= entry.left
        self.book.merge(msg.exit_id(name, 7))

    def manual(self, name: str, qty: int) -> None:
        """Somebody sells what is ours, the oldest lot first."""
        entry = self.entries[name]
        mine = [e for e in self.entries.values() if e.symbol == entry.symbol and e.left]
        self.now_ms += 1
        qty = min(qty, sum(e.left for e in mine))
        side = "Sell" if entry.side == "Buy" else "Buy"
        if qty and {e.side for e in mine} == {entry.side}:
            self.book.execute(foreign(side, qty, self.now_ms, symbol=entry.symbol))
            self.sell(entry.symbol, qty)

    def sell(self, symbol: str, qty: int) -> None:
        """So much of a symbol, the oldest lot first."""
        mine = [e for e in self.entries.values() if e.symbol == symbol and e.left > 0]
        for entry in sorted(mine, key=lambda e: e.opened_ms):
            part = min(qty, entry.left)
            entry.sold, qty = entry.sold + part, qty - part

    def race(self, name: str, qty: int) -> None:
        """While an exit rests, somebody sells of the oldest lots; then the exit fills whole."""
        entry = self.entries[name]
        others = [e for e in self.entries.values() if e.symbol == entry.symbol and e is not entry]
        qty = min(qty, sum(e.left for e in others))
        if not (entry.ended and entry.left and qty):
            return
        exit_id, whole = msg.exit_id(name, self.book.lots[name].exits), entry.left
        self.book.update(said(exit_id, "New", 0, self.now_ms + 1, whole))
        self.manual(name, qty)
        self.now_ms += 1
        self.book.execute(fill(exit_id, whole, self.now_ms))
        self.book.update(said(exit_id, "Filled", whole, self.now_ms, whole))
        rest = entry.left
        entry.sold += rest  # what it sold beyond its own lot came off the next ones
        self.sell(entry.symbol, whole - rest)

    def check(self) -> None:
        held = [e for e in self.entries.values() if e.held]
        names = {e.symbol for e in held}
        assert (self.book.slots(), self.book.symbols()) == (len(held), names)
        assert len(held) <= SLOTS and len(names) <= NAMES
        for symbol in SYMBOLS:
            mine = [e for e in held if e.symbol == symbol]
            assert len(mine) <= LOTS and sum(not e.ended for e in mine) <= 1
            assert len({e.side for e in mine}) <= 1
            qty = sum(e.left * (1 if e.side == "Buy" else -1) for e in mine)
            assert self.book.held().get(symbol, 0) == qty
        assert self.book.breach == ""

    def buy(self, symbol: str, side: str) -> None:
        """An entry that fills whole, if it is granted."""
        before = len(self.entries)
        self.ask(symbol, side)
        if len(self.entries) > before:
            self.fill([*self.entries][-1], 10)

    def doable(self, act: str) -> list[str]:
        """Entries with which an act makes a difference."""
        entries = self.entries.items()
        if act in ("fill", "cancel"):
            return [name for name, entry in entries if not entry.ended]
        return [name for name, entry in entries if entry.ended and entry.left]


DEEDS = ("fill", "cancel", "close", "stop", "dust", "dust", "manual", "race", "race")
ACTS = st.one_of(
    st.tuples(
        st.sampled_from(("ask", "buy", "buy")),
        st.sampled_from((*SYMBOLS, SYMBOL, SYMBOL)),
        st.sampled_from(("Buy", "Buy", "Sell")),
    ),
    st.tuples(st.sampled_from(DEEDS), st.integers(0, 9), st.integers(1, 10)),
)


@given(st.lists(ACTS, min_size=10, max_size=60))
@settings(max_examples=150, deadline=None)
def test_no_sequence_of_grants_and_what_comes_of_them_exceeds_a_cap(acts: list[Any]) -> None:
    world = World()
    for act, which, what in acts:
        if act in ("ask", "buy"):
            getattr(world, act)(which, what)
        elif names := world.doable(act) or [*world.entries]:
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


def test_what_an_exit_sold_beyond_its_own_lot_comes_off_the_next_one() -> None:
    """Its lot was closed by hand while it rested: 10 + 10 - 10 - 3."""
    book, exit_id = two(ledger(), second=10), msg.exit_id(ENTRY, 0)
    book.update(said(exit_id, "New", 0, BAR + 2 * MINUTE))
    book.execute(foreign("Sell", 10, BAR + 3 * MINUTE))
    book.execute(fill(exit_id, 3, BAR + 4 * MINUTE, price=101))
    book.update(said(exit_id, "Cancelled", 3, BAR + 4 * MINUTE))
    (lot,) = book.position(SYMBOL).lots
    assert (lot.entry_id, lot.bought, lot.sold, lot.sold_before) == (LATER, 10, 3, 3)
    assert (book.held(), book.foreign[SYMBOL], book.slots()) == ({SYMBOL: Decimal(7)}, 0, 1)


def test_what_an_exit_sold_beyond_all_our_lots_was_of_others() -> None:
    """They bought 5; the exit, grown by hand, sold 15 of 10 + 5. Over a restart, too."""
    exit_id = msg.exit_id(ENTRY, 0)
    book, rows = told(
        [fill(ENTRY, 10, BAR + 1), said(ENTRY, "Filled", 10, BAR + 1), foreign("Buy", 5)]
    )
    again = rows.restored(book)
    for fact in (fill(exit_id, 15, BAR + 5), said(exit_id, "Filled", 15, BAR + 5, 15)):
        rows.write(take(again, fact))
    for at in (again, rows.restored(again)):
        assert (at.held(), at.foreign[SYMBOL], at.slots()) == ({}, 0, 0)


def test_a_trade_of_others_that_is_heard_before_our_fill_comes_off_it_all_the_same() -> None:
    """- 3 + 10: whichever is heard first, the lot holds 7 and nothing is foreign."""
    facts = [foreign("Sell", 3), fill(ENTRY, 10, BAR + 1), said(ENTRY, "Filled", 10, BAR + 1)]
    for heard in (facts, facts[::-1], [facts[1], facts[0], facts[2]]):
        book, rows = told(heard)
        (lot,) = book.position(SYMBOL).lots
        assert (lot.bought, lot.sold, lot.sold_before) == (10, 3, 3)
        assert book.position(SYMBOL).foreign_qty == 0
        assert state(rows.restored(book)) == state(book)


def test_a_trade_of_others_on_the_side_of_our_lot_stays_foreign() -> None:
    book, _ = told([foreign("Buy", 3), fill(ENTRY, 10, BAR + 1)])
    assert (book.position(SYMBOL).lots[0].sold, book.position(SYMBOL).foreign_qty) == (0, 3)


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


def test_an_older_entry_that_is_taken_back_frees_no_later_bar() -> None:
    book = ledger()
    for name in (LATER, ENTRY):
        book.adopt(name, Decimal("0.5"))
        book.update(said(name, "Cancelled", 0, BAR + 2 * MINUTE))
    assert book.grant(ask(bar_ms=BAR + MINUTE), msg.RUN)[0] == "bar_used"
    assert book.grant(ask(bar_ms=BAR + 2 * MINUTE), msg.RUN)[0] == ""


def test_a_position_version_grows_with_every_change_and_survives_a_restart() -> None:
    book, rows = told([fill(ENTRY, 4, BAR + 1)])
    version = book.position(SYMBOL).version
    assert version == ("test", 2)  # one grant, one execution
    assert rows.restored(book).position(SYMBOL).version == version
    rows.write(book.execute(fill(ENTRY, 4, BAR + 1)))  # again: nothing changes
    assert book.position(SYMBOL).version == version


@pytest.mark.parametrize("kind", ["Settle", "ForwardSplitSettle", "ReverseSplitSettle"])
def test_what_the_exchange_settles_leaves_no_lot(kind: str) -> None:
    """A symbol that is delisted or split: its position is gone, and so is the lot."""
    book = ledger()
    bought(book, ask())
    book.execute(foreign("Sell", 10, kind=kind))
    assert (book.held(), book.slots()) == ({}, 0)


# After a lot, and after the exchange took one.


def closed(book: Ledger, at_ms: int = BAR + 5, kind: str = "") -> Ledger:
    """A lot bought whole, and sold by its exit; or by somebody, in a fill of this kind."""
    bought(book, ask())
    if kind:
        book.execute(foreign("Sell", 10, at_ms, kind))
        return book
    exit_id = msg.exit_id(ENTRY, 0)
    book.execute(fill(exit_id, 10, at_ms))
    book.update(said(exit_id, "Filled", 10, at_ms))
    return book


@pytest.mark.parametrize(
    ("cooldown_s", "bar_ms", "reason"),
    [
        (0, BAR + MINUTE, ""),
        (60, BAR + MINUTE, "cooldown"),  # 60 < 5 ms + 60 s
        (60, BAR + 2 * MINUTE, ""),
        (120, BAR + 2 * MINUTE, "cooldown"),
    ],
)
def test_a_symbol_rests_after_a_lot_by_the_time_of_its_last_fill(
    cooldown_s: int, bar_ms: int, reason: str
) -> None:
    book = closed(ledger(cooldown_s=cooldown_s))
    book.execute(fill("", 1, BAR + 50 * MINUTE, kind="Funding"))  # is no fill of the lot
    assert book.grant(ask(bar_ms=bar_ms), msg.RUN)[0] == reason
    assert book.grant(ask("BBBUSDT", bar_ms=bar_ms), msg.RUN)[0] == ""


def test_an_entry_that_bought_nothing_starts_no_rest() -> None:
    book = ledger(cooldown_s=600)
    bought(book, ask("BBBUSDT"))
    book.grant(ask(), msg.RUN)
    book.update(said(ENTRY, "Cancelled", 0, BAR + 2))
    assert book.grant(ask(bar_ms=BAR + MINUTE), msg.RUN)[0] == ""


def test_a_lot_is_closed_at_its_own_last_fill_whatever_else_was_heard() -> None:
    book, rows = told([fill(ENTRY, 10, BAR + 2), said(ENTRY, "Filled", 10, BAR + 2)])
    book.execute(foreign("Buy", 5, BAR + 700, symbol="BBBUSDT"))
    exit_id = msg.exit_id(ENTRY, 0)
    rows.write(book.execute(fill(exit_id, 10, BAR + 5)))
    rows.write(book.update(said(exit_id, "Filled", 10, BAR + 6)))
    assert rows.lots[ENTRY].closed_ms == BAR + 5


@pytest.mark.parametrize(
    ("kind", "minutes", "reason"),
    [
        ("AdlTrade", 15, "cooldown"),  # BAR + 15 min < BAR + 5 ms + 15 min
        ("AdlTrade", 16, ""),
        ("BustTrade", 15, "cooldown"),
        ("Trade", 1, ""),  # somebody sold by hand: no force
    ],
)
def test_after_the_exchange_took_a_lot_its_symbol_rests_for_a_quarter_of_an_hour(
    kind: str, minutes: int, reason: str
) -> None:
    book = closed(ledger(), kind=kind)
    assert book.slots() == 0
    assert book.grant(ask(bar_ms=BAR + minutes * MINUTE), msg.RUN)[0] == reason
    assert book.grant(ask("BBBUSDT", bar_ms=BAR + MINUTE), msg.RUN)[0] == ""


def test_the_longer_rest_counts() -> None:
    book = closed(ledger(cooldown_s=3_600), kind="AdlTrade")
    assert book.grant(ask(bar_ms=BAR + 16 * MINUTE), msg.RUN)[0] == "cooldown"


# Beyond its quantity.


def test_an_entry_filled_beyond_its_quantity_is_a_breach() -> None:
    book, _ = told([fill(ENTRY, 10, BAR + 1)])
    assert book.breach == ""
    book.execute(fill(ENTRY, 1, BAR + 2))
    assert book.breach == f"{ENTRY} was filled beyond its quantity"


@pytest.mark.parametrize(
    "facts",
    [
        [fill(ENTRY, 4, BAR + 1), fill(msg.exit_id(ENTRY, 0), 10, BAR + 5)],
        [
            *(fill(ENTRY, 4, BAR + 1), said(msg.exit_id(ENTRY, 0), "New", 0, BAR + 2, 4)),
            *(fill(ENTRY, 6, BAR + 3), fill(msg.exit_id(ENTRY, 0), 10, BAR + 5)),
        ],
        [
            *(fill(ENTRY, 4, BAR + 1), stop("Untriggered", 0, BAR + 2, 4)),
            *(fill(ENTRY, 6, BAR + 3), stop_fill(10, BAR + 5)),
        ],
    ],
)
def test_what_grows_with_its_lot_is_no_breach_before_its_new_quantity_is_heard(
    facts: list[Any],
) -> None:
    assert told(facts)[0].breach == ""


def test_an_entry_of_a_lost_ledger_has_no_quantity_to_go_beyond() -> None:
    book = ledger()
    book.adopt(ENTRY, Decimal("0.5"))
    book.execute(fill(ENTRY, 10, BAR + 1))
    assert book.breach == ""


# Stop losses.


def test_a_stop_loss_is_an_order_of_its_lot_under_our_own_name() -> None:
    book, rows = told([fill(ENTRY, 10, BAR + 1), stop("Untriggered", 0, BAR + 2)])
    order = next(o for o in book.position(SYMBOL).orders if o.kind == msg.STOP)
    assert (order.order_link_id, order.order_id) == (f"{ENTRY}s", f"S-{ENTRY}")
    assert (order.side, order.qty, order.price) == ("Sell", 10, 0)
    assert rows.orders[f"{ENTRY}s"] == (order, True)


def test_a_stop_that_sold_a_part_leaves_the_rest_to_the_exit() -> None:
    book, _ = told([fill(ENTRY, 10, BAR + 1), said(ENTRY, "Filled", 10, BAR + 1)])
    for fact in (
        *(stop("Untriggered", 0, BAR + 2), stop_fill(3, BAR + 3)),
        stop("Cancelled", 3, BAR + 4),
    ):
        take(book, fact)
    (lot,) = book.position(SYMBOL).lots
    assert (lot.sold, lot.sold_before, lot.exits, lot.proceeds) == (3, 3, 0, 294)  # 3 * 98
    assert book.position(SYMBOL).orders == ()


def test_a_lot_waits_for_the_end_of_its_stop() -> None:
    exit_id = msg.exit_id(ENTRY, 0)
    book, _ = told([fill(ENTRY, 10, BAR + 1), said(ENTRY, "Filled", 10, BAR + 1)])
    for fact in (
        *(stop("Untriggered", 0, BAR + 2), fill(exit_id, 10, BAR + 3)),
        said(exit_id, "Filled", 10, BAR + 3),
    ):
        take(book, fact)
    assert (book.slots(), [o.kind for o in book.position(SYMBOL).orders]) == (1, [msg.STOP])
    book.update(stop("Deactivated", 0, BAR + 4))
    assert (book.slots(), book.symbols()) == (0, set())


@pytest.mark.parametrize("parent", ["", "manual-1", msg.entry_id(SYMBOL, "Buy", BAR + 9 * MINUTE)])
def test_a_stop_that_is_not_of_a_lot_of_ours_is_not_taken_in(parent: str) -> None:
    book, _ = told([fill(ENTRY, 10, BAR + 1)])
    assert book.update(stop("Untriggered", 0, BAR + 2, entry=parent)) == Change()


def test_a_fill_whose_order_nobody_knows_is_not_the_stops() -> None:
    book, _ = told([fill(ENTRY, 10, BAR + 1), stop("Untriggered", 0, BAR + 2)])
    book.execute(stop_fill(3, BAR + 3)._replace(order_id="another"))
    (lot,) = book.position(SYMBOL).lots
    assert (lot.sold, lot.sold_before) == (3, 3)  # somebody's: it counts as finished at once


def test_an_entry_that_fills_on_after_its_stop_has_another_one() -> None:
    """The exchange makes a new child, with another id and the same parent."""
    book, rows = told(
        [
            *(fill(ENTRY, 4, BAR + 1), stop("Untriggered", 0, BAR + 1, 4)),
            *(stop_fill(4, BAR + 2), stop("Filled", 4, BAR + 2, 4)),
            *(fill(ENTRY, 6, BAR + 3), said(ENTRY, "Filled", 10, BAR + 3)),
        ]
    )
    for status, done, at_ms in (("Untriggered", 0, BAR + 3), ("Filled", 6, BAR + 4)):
        child = stop(status, done, at_ms, 6)._replace(order_id="S2")
        rows.write(book.update(child))
        if not done:
            (order,) = book.position(SYMBOL).orders
            assert (order.kind, order.order_id, order.qty) == (msg.STOP, "S2", 6)
            assert msg.parse_id(order.order_link_id) == (ENTRY, -1)
            assert rows.restored(book).position(SYMBOL).orders == (order,)
            rows.write(book.execute(stop_fill(6, BAR + 4)._replace(order_id="S2")))
    assert (book.slots(), book.held()) == (0, {})
    assert {name for name in rows.orders if name.startswith(f"{ENTRY}s")} == {
        f"{ENTRY}s",
        f"{ENTRY}s1",
    }


def test_a_repeat_of_the_first_stop_is_not_the_second() -> None:
    book, rows = told([fill(ENTRY, 10, BAR + 1), stop("Untriggered", 0, BAR + 1)])
    rows.write(book.update(stop("Cancelled", 0, BAR + 2)))
    second = stop("Untriggered", 0, BAR + 3)._replace(order_id="S2")
    for at in (book, rows.restored(book)):
        for fact in (second, stop("Untriggered", 0, BAR + 1), second):
            at.update(fact)
        assert [o.order_id for o in at.orders.values() if o.kind == msg.STOP] == ["S2"]


# Dust.


def two(book: Ledger, first: int = 10, second: int = 1) -> Ledger:
    """Two lots of a symbol, without working orders; the later one was bought at 90."""
    for name, qty, price in ((ENTRY, first, 100), (LATER, second, 90)):
        bar_ms = BAR if name == ENTRY else BAR + MINUTE
        assert book.grant(ask(bar_ms=bar_ms), msg.RUN)[0] == ""
        book.execute(fill(name, qty, bar_ms + 1, price=price))
        book.update(said(name, "Cancelled", qty, bar_ms + 2))
    return book


def test_dust_joins_the_oldest_other_lot_at_its_own_cost() -> None:
    book = two(ledger())
    change = book.merge(msg.exit_id(LATER, 0))
    (lot,) = book.position(SYMBOL).lots
    assert (lot.entry_id, lot.bought, lot.cost) == (ENTRY, 11, 1090)  # 10 * 100 + 1 * 90
    gone, more = change.lots
    assert (gone.entry_id, gone.sold, gone.proceeds) == (LATER, 1, 90)
    assert (gone.closed_ms, more) == (BAR + MINUTE + 1, lot)
    assert (book.slots(), book.held()) == (1, {SYMBOL: Decimal(11)})


def test_dust_may_be_the_oldest_and_joins_the_next() -> None:
    book = two(ledger(), first=1, second=10)
    book.merge(msg.exit_id(ENTRY, 0))
    (lot,) = book.position(SYMBOL).lots
    assert (lot.entry_id, lot.bought, lot.cost) == (LATER, 11, 1000)  # 10 * 90 + 1 * 100


def test_only_what_is_left_joins() -> None:
    """10 bought, 9 sold by an exit that was cancelled: 1 at 100 goes to the other."""
    book, exit_id = two(ledger(), first=10, second=10), msg.exit_id(ENTRY, 0)
    book.execute(fill(exit_id, 9, BAR + 3 * MINUTE, price=101))
    book.update(said(exit_id, "Cancelled", 9, BAR + 3 * MINUTE))
    gone, more = book.merge(msg.exit_id(ENTRY, 1)).lots
    assert (gone.bought, gone.sold, gone.proceeds) == (10, 10, 9 * 101 + 100)
    assert (more.bought, more.cost) == (11, 1000)


def test_a_merged_lot_sells_all_of_it_with_its_next_exit() -> None:
    book, exit_id = two(ledger()), msg.exit_id(ENTRY, 0)
    book.update(said(exit_id, "New", 0, BAR + 2 * MINUTE))
    book.merge(msg.exit_id(LATER, 0))
    book.update(said(exit_id, "New", 0, BAR + 3 * MINUTE, 11))  # amended
    book.execute(fill(exit_id, 11, BAR + 4 * MINUTE))
    book.update(said(exit_id, "Filled", 11, BAR + 4 * MINUTE, 11))
    assert (book.slots(), book.held()) == (0, {})


def nothing_left() -> Ledger:
    book, exit_id = two(ledger()), msg.exit_id(LATER, 0)
    book.update(stop("Untriggered", 0, BAR + 2 * MINUTE, 1, LATER))
    book.execute(fill(exit_id, 1, BAR + 2 * MINUTE))
    book.update(said(exit_id, "Filled", 1, BAR + 2 * MINUTE, 1))
    return book


def with_order(fact: Any) -> Ledger:
    book = two(ledger())
    take(book, fact)
    return book


ALONE: dict[str, Any] = {
    "its exit works": (
        LATER,
        lambda: with_order(said(msg.exit_id(LATER, 0), "New", 0, BAR + 2 * MINUTE, 1)),
    ),
    "its stop rests": (
        LATER,
        lambda: with_order(stop("Untriggered", 0, BAR + 2 * MINUTE, 1, LATER)),
    ),
    "all of it is sold": (LATER, nothing_left),
    "its entry may still fill": (ENTRY, lambda: told([fill(ENTRY, 1, BAR + 1)])[0]),
    "there is no other": (ENTRY, lambda: closed_in_part(ledger())),
    "there is no such lot": (ENTRY, ledger),
}


def closed_in_part(book: Ledger) -> Ledger:
    bought(book, ask())
    book.execute(foreign("Sell", 9))
    return book


@pytest.mark.parametrize("case", ALONE.values(), ids=ALONE.keys())
def test_a_lot_stays_by_itself_while(case: Any) -> None:
    entry, make = case
    book = make()
    before = state(book)
    assert book.merge(msg.exit_id(entry, 0)) == Change()
    assert state(book) == before


def test_lots_of_other_symbols_are_no_others() -> None:
    book = ledger()
    bought(book, ask())
    bought(book, ask("BBBUSDT"))
    assert book.merge(msg.exit_id(ENTRY, 0)) == Change()


def test_a_merge_is_a_change_like_any_other() -> None:
    book = two(ledger())
    row = book.row
    book.merge(msg.exit_id(LATER, 0))
    assert book.row == row + 1
    assert book.merge(msg.exit_id(LATER, 0)) == Change()  # once
    assert book.row == row + 1


def test_a_younger_word_without_news_is_remembered_and_no_news() -> None:
    book = Ledger("ledger", Caps(10, 10, 10), MINUTE)
    book.grant(ask(), "RUN")
    book.update(said(ENTRY, "New", 0, BAR + 1))
    known = book.facts()
    assert book.update(said(ENTRY, "New", 0, BAR + 3)) != Change()
    assert book.facts() == known
    late = said(ENTRY, "New", 0, BAR + 2)._replace(price=Decimal(99))
    assert book.update(late) == Change()
    book.update(said(ENTRY, "New", 0, BAR + 4)._replace(price=Decimal(99)))
    assert book.facts() != known
