"""What should rest for one symbol, what is done about it, and how much of it leaves in a second.

The instrument has ticks of 0.01 and steps of 0.1. A buy is quoted at 95.45225 under a last price
of 96, a sell at 104.55225 over one of 104.
"""

from collections import defaultdict
from decimal import Decimal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.router.budget import SECOND_NS, TWINS, Budget
from services.router.orders import Rules, Wanted, desired, entry_gate, steps, stop_price
from shared import messages as msg
from shared.instrument import opposite, sign

ANY_SPEED = {
    "derandomize": True,
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow],
}

D = Decimal
NAME = "XUSDT"
BAR_MS = 28_000_000 * 60_000
RULES = Rules(D(20), max_lots_per_symbol=3, dca_min_step_pct=0.2, min_reprice_pct=0.02)
INSTRUMENT = msg.Instrument(NAME, D("0.01"), D("0.1"), D("0.1"), D(1000), D(5), "Trading", 480)
PRICES = {"Buy": 95.45225, "Sell": 104.55225}
LASTS = {"Buy": D(96), "Sell": D(104)}
NO_ORDERS = msg.Position(NAME, ("ledger", 1), (), ())


def quote(side="Buy", zone="ARM", price=None, bar=5, gate=""):
    price = price or PRICES[side]
    return msg.Quote(
        *(NAME, side, price, zone, gate, 1.275, 95.5, 104.5, 0.0, 0.1, 2.0),
        *(BAR_MS + bar * 60_000, 1, 1, 1),
    )


def lot(side="Buy", price="100", qty="2", bar=1, exits=0, sold="0", before="0", profit="1.275"):
    return msg.Lot(
        *(msg.entry_id(NAME, side, BAR_MS + bar * 60_000), NAME, side, D(qty), D(price) * D(qty)),
        *(D(sold), D(0), D(0), D(before), exits, D(profit), BAR_MS + bar * 60_000, 0),
    )


def order(kind="entry", side="Buy", price="95.45", qty="0.2", bar=5, name=""):
    name = name or msg.entry_id(NAME, side, BAR_MS + bar * 60_000)
    return msg.Order(
        *(name, "7", NAME, side, kind, D(price), D(qty), D(0), "New", BAR_MS, D("1.275"), 0)
    )


def exit_of(a_lot, price="101.28"):
    """The exit that rests for a lot."""
    rest = (opposite(a_lot.side), price, a_lot.bought - a_lot.sold_before)
    return order("exit", *rest, name=msg.exit_id(a_lot.entry_id, a_lot.exits))


def position(lots=(), orders=(), **rest):
    return NO_ORDERS._replace(lots=tuple(lots), orders=tuple(orders), **rest)


def wanted(at=NO_ORDERS, q=None, mode="RUN", last=None, rules=RULES, instrument=INSTRUMENT):
    last = D(last) if last else LASTS[q.side] if q else D(100)
    return desired(at, q, mode, instrument, last, rules)


def entries(found):
    return [w for w in found if w.kind == msg.ENTRY]


def exits(found):
    return [w for w in found if w.kind == msg.EXIT]


def todo(at, found):
    return [(step.action, step.order.order_link_id) for step in steps(found, at, RULES)]


# Entries.


def test_an_armed_quote_wants_an_entry_named_after_its_bar():
    (entry,) = wanted(q=quote())
    name = "dm-XUSDT-1ab3f05-B"  # 28,000,005 minutes
    assert entry == Wanted(name, "entry", "Buy", D("95.45"), D("0.2"))  # 20 / 95.45 = 0.2095
    assert todo(NO_ORDERS, [entry]) == [("create", name)]


@pytest.mark.parametrize(
    ("side", "last", "price"),
    [
        ("Buy", "96", "95.45"),  # 95.45225 rounded down
        ("Buy", "95.46", "95.45"),
        ("Buy", "95.45", "95.44"),  # the price is there: one tick behind it
        ("Buy", "95.30", "95.29"),
        ("Sell", "104", "104.56"),  # 104.55225 rounded up
        ("Sell", "104.55", "104.56"),
        ("Sell", "104.56", "104.57"),
        ("Sell", "105", "105.01"),
    ],
)
def test_an_entry_rests_on_the_passive_side_at_least_a_tick_behind_the_price(side, last, price):
    (entry,) = wanted(q=quote(side), last=last)
    assert (entry.side, entry.price) == (side, D(price))


@pytest.mark.parametrize(
    ("zone", "resting", "expected"),
    [
        ("ARM", False, ["create"]),
        ("HOLD", False, []),
        ("NONE", False, []),
        ("ARM", True, []),
        ("HOLD", True, []),
        ("NONE", True, ["cancel"]),
    ],
)
def test_an_entry_is_created_on_arm_kept_on_hold_and_cancelled_on_none(zone, resting, expected):
    at = position(orders=[order()] if resting else [])
    assert [action for action, _ in todo(at, wanted(at, quote(zone=zone)))] == expected


def test_without_a_quote_in_force_a_resting_entry_is_cancelled():
    at = position(orders=[order()])
    assert todo(at, wanted(at, None)) == [("cancel", at.orders[0].order_link_id)]


def test_an_entry_keeps_its_id_and_quantity_when_its_price_moves():
    at = position(orders=[order(qty="0.3", bar=2)])
    (step,) = steps(wanted(at, quote(price=94.0, bar=9)), at, RULES)
    name = at.orders[0].order_link_id
    assert (step.action, step.order.order_link_id, step.repricing) == ("amend", name, True)
    assert (step.order.price, step.order.qty) == (D(94), D("0.3"))


@pytest.mark.parametrize(
    ("price", "expected"),
    [(100.01, []), (99.99, []), (100.02, ["amend"]), (99.98, ["amend"])],
)
def test_an_entry_is_amended_from_two_hundredths_of_a_percent_on(price, expected):
    at = position(orders=[order(price="100")])
    found = wanted(at, quote(price=price), last="104")
    assert [action for action, _ in todo(at, found)] == expected


def test_the_other_side_waits_until_the_resting_entry_is_gone():
    at = position(orders=[order(side="Buy")])
    found = wanted(at, quote("Sell"))
    assert (found, todo(at, found)) == ([], [("cancel", at.orders[0].order_link_id)])


def test_too_small_a_size_is_no_entry():
    """min_order_qty 0.1 * 250 = 25 > 20."""
    assert wanted(q=quote(price=250.0), last="251") == []


def test_a_price_of_one_tick_is_no_entry():
    """Nothing rests below it: no price, and no crash."""
    assert wanted(q=quote(price=0.0099), last="0.01") == []


@pytest.mark.parametrize("why", [{"foreign_qty": D(-1)}, {"no_entry": "difference"}])
def test_a_symbol_that_is_not_only_ours_takes_no_new_entry(why):
    assert wanted(position(**why), quote()) == []
    held = position(lots=[lot()], **why)
    assert len(exits(wanted(held, quote()))) == 1


# Another lot.


@pytest.mark.parametrize(
    ("lots", "joins"),
    [
        ([lot(price="95.65")], True),  # 100 * (95.65 - 95.45) / 95.65 = 0.209 %
        ([lot(price="95.64")], False),  # 0.199 %
        ([lot(price="100"), lot(price="95.64", bar=2)], False),  # better than the best one
        ([lot(price="100", bar=5)], False),  # bought in this bar
        ([lot(price="100", bar=6)], False),  # bought in a later one
        ([lot(price="100", bar=4)], True),
        ([lot("Sell", "110")], False),  # the other direction
        ([lot(price="100", bar=bar) for bar in (1, 2, 3)], False),  # three lots are the limit
    ],
)
def test_another_lot_is_later_better_and_of_the_same_direction(lots, joins):
    assert bool(entries(wanted(position(lots=lots), quote()))) == joins


def test_a_better_price_to_sell_more_is_a_higher_one():
    for price, joins in (("104.35", True), ("104.36", False)):  # 0.21 / 104.35 = 0.201 %
        assert bool(entries(wanted(position(lots=[lot("Sell", price)]), quote("Sell")))) == joins


def test_a_step_of_exactly_the_minimum_is_enough():
    lots, tick_less = [lot(price="100")], quote(price=99.8)  # 0.2 % under 100
    assert entries(wanted(position(lots=lots), tick_less, last="101"))


# Exits.


@pytest.mark.parametrize(
    ("a_lot", "side", "price"),
    [
        (lot("Buy", "100"), "Sell", "101.28"),  # 100 * 1.01275 = 101.275, up
        (lot("Sell", "100"), "Buy", "98.72"),  # 100 * 0.98725 = 98.725, down
        (lot("Buy", "100", profit="0.5"), "Sell", "100.5"),
    ],
)
def test_an_exit_rests_at_the_profit_that_was_granted(a_lot, side, price):
    (out,) = wanted(position(lots=[a_lot]))
    assert out == Wanted(f"{a_lot.entry_id}x0", "exit", side, D(price), D(2))


def test_an_exit_needs_no_quote_and_is_not_moved_by_one_of_its_own_direction():
    at = position(lots=[lot()])
    alone = wanted(at)
    for q in (quote("Buy"), quote("Buy", "HOLD"), quote("Sell", "NONE", gate="stale")):
        assert exits(wanted(at, q)) == alone


@pytest.mark.parametrize(
    ("sold", "before", "exits_done", "qty"),
    [
        ("0", "0", 0, "2"),
        ("1.5", "0", 0, "2"),  # its own fills count as part of its quantity
        ("0.5", "0.5", 1, "1.5"),  # an earlier exit sold 0.5 and is finished
        ("1.2", "0.5", 1, "1.5"),
    ],
)
def test_an_exit_sells_what_earlier_exits_left(sold, before, exits_done, qty):
    a_lot = lot(sold=sold, before=before, exits=exits_done)
    (out,) = wanted(position(lots=[a_lot]))
    assert (out.order_link_id, out.qty) == (f"{a_lot.entry_id}x{exits_done}", D(qty))


def test_an_exit_is_no_larger_than_the_largest_order():
    """The next one, of the next number, sells the rest."""
    (out,) = wanted(position([lot(qty="2500")]))
    assert out.qty == 1000


def test_a_lot_that_is_sold_needs_no_exit():
    """Its entry still rests, so the lot stays: there is nothing left to sell."""
    assert exits(wanted(position(lots=[lot(sold="2", before="2", exits=1)]))) == []


def test_an_exit_that_has_sold_its_lot_is_not_cancelled():
    """Its executions came, its last word comes later: the exchange would only say 110001."""
    sold = lot(sold="2")
    at = position(lots=[sold], orders=[exit_of(sold)])
    assert todo(at, wanted(at)) == []
    others = lot(sold="2", before="1")  # somebody else sold one: the exit's rest must go
    at = position(lots=[others], orders=[exit_of(others)._replace(qty=D("2"))])
    assert [action for action, *_ in todo(at, wanted(at))] == ["cancel"]


def test_every_lot_has_its_own_exit():
    lots = [lot(price="100"), lot(price="98", bar=2)]
    found = wanted(position(lots=lots))
    assert [out.order_link_id for out in found] == [f"{a_lot.entry_id}x0" for a_lot in lots]
    assert [out.price for out in found] == [D("101.28"), D("99.25")]  # 98 * 1.01275 = 99.2495


@pytest.mark.parametrize(
    ("a_lot", "q", "price"),
    [
        (lot("Buy", "100"), quote("Sell", price=101.0), "101"),  # the quote is nearer
        (lot("Buy", "100"), quote("Sell", "HOLD", price=101.0), "101"),
        (lot("Buy", "100"), quote("Sell", price=102.0), "101.28"),  # the profit is nearer
        (lot("Buy", "100"), quote("Sell", price=99.001), "99.01"),  # even at a loss, rounded up
        (lot("Sell", "100"), quote("Buy", price=99.0), "99"),
        (lot("Sell", "100"), quote("Buy", price=98.0), "98.72"),
        (lot("Buy", "100"), quote("Sell", "NONE", price=101.0), "101.28"),
    ],
)
def test_a_reversal_takes_the_nearer_of_profit_and_quote(a_lot, q, price):
    (out,) = exits(wanted(position(lots=[a_lot]), q, last="100"))
    assert out.price == D(price)


def test_a_growing_lot_amends_the_quantity_of_its_exit():
    grown, resting = lot(qty="2"), exit_of(lot(qty="0.7"))
    at = position(lots=[grown], orders=[resting])
    (step,) = steps(wanted(at), at, RULES)
    assert (step.action, step.order.qty, step.repricing) == ("amend", D(2), False)


def test_an_exit_whose_price_moves_a_tick_is_repriced():
    at = position(lots=[lot()], orders=[exit_of(lot(), "101.27")])
    (step,) = steps(wanted(at), at, RULES)
    assert (step.action, step.order.price, step.repricing) == ("amend", D("101.28"), True)


def test_exits_come_before_entries():
    at = position(lots=[lot()])
    kinds = [step.order.kind for step in steps(wanted(at, quote()), at, RULES)]
    assert kinds == ["exit", "entry"]


# Modes.


@pytest.mark.parametrize(
    ("mode", "new_entry", "resting_entry", "lot_with_exit"),
    [
        ("RUN", ["create"], [], []),
        ("NO_ENTRY", [], [], []),
        ("REDUCE_ONLY", [], ["cancel"], []),
        ("CANCEL_ALL", [], ["cancel"], ["cancel"]),
        ("FLATTEN", [], ["cancel"], ["amend"]),
    ],
)
def test_what_each_mode_allows(mode, new_entry, resting_entry, lot_with_exit):
    def actions(at, q=None):
        return [action for action, _ in todo(at, wanted(at, q, mode, last="96"))]

    assert actions(NO_ORDERS, quote()) == new_entry
    assert actions(position(orders=[order()]), quote()) == resting_entry
    assert actions(position(lots=[lot()], orders=[exit_of(lot())])) == lot_with_exit


@pytest.mark.parametrize("mode", ["RUN", "NO_ENTRY", "REDUCE_ONLY", "FLATTEN"])
def test_a_lot_without_an_exit_gets_one_in_every_mode_but_one(mode):
    at = position(lots=[lot()])
    assert [action for action, _ in todo(at, wanted(at, None, mode))] == ["create"]
    assert wanted(at, None, "CANCEL_ALL") == []


def test_an_entry_in_no_entry_goes_with_its_quote():
    at = position(orders=[order()])
    assert [action for action, _ in todo(at, wanted(at, None, "NO_ENTRY"))] == ["cancel"]
    found = wanted(at, quote(zone="HOLD"), "NO_ENTRY")
    assert todo(at, found) == []


def test_flatten_prices_exits_one_percent_beyond_the_last():
    """They trade at once, with a bound: 97.53 * 0.99 = 96.5547, 97.53 * 1.01 = 98.5053."""
    lots = [lot("Buy"), lot("Sell", bar=2)]
    prices = [wanted(position(lots=[x]), quote("Sell"), "FLATTEN", "97.53")[0].price for x in lots]
    assert prices == [D("96.56"), D("98.50")]


# For every position.

sides = st.sampled_from(["Buy", "Sell"])
grid = st.integers(9_000, 11_000).map(lambda ticks: D(ticks) / 100)


@st.composite
def situations(draw):
    """A reachable position, a quote or none, a mode and a last price."""
    side, lots = draw(sides), []
    for bar in range(draw(st.integers(0, 3))):
        bought, before, own = (draw(st.integers(0, 20)) for _ in range(3))
        numbers = {"qty": D(bought + before + own + 1) / 10, "before": D(before) / 10}
        lots.append(lot(side, draw(grid), bar=bar, sold=D(before + own) / 10, **numbers))
    orders = [exit_of(x, draw(grid)) for x in lots if draw(st.booleans())]
    if draw(st.booleans()):
        entry_side = side if lots else draw(sides)
        orders.append(order("entry", entry_side, draw(grid), bar=4))
    foreign = draw(st.sampled_from([D(0), D("-0.3")]))
    price, zone = draw(st.floats(80, 120)), draw(st.sampled_from(["ARM", "HOLD", "NONE"]))
    q = draw(st.sampled_from([None, quote(draw(sides), zone, price)]))
    at = position(lots, orders, foreign_qty=foreign)
    return at, q, draw(st.sampled_from(msg.MODES)), draw(grid)


def applied(at, found):
    """The position after all steps were done as asked."""
    orders = {working.order_link_id: working for working in at.orders}
    for step in steps(found, at, RULES):
        want = step.order
        if step.action == "cancel":
            del orders[want.order_link_id]
        elif step.action == "amend":
            known = orders[want.order_link_id]
            orders[want.order_link_id] = known._replace(price=want.price, qty=want.qty)
        else:
            assert want.order_link_id not in orders
            rest = (want.kind, want.side, want.price, want.qty)
            orders[want.order_link_id] = order(*rest, name=want.order_link_id)
    return at._replace(orders=tuple(orders.values()))


@settings(max_examples=100, **ANY_SPEED)
@given(situations())
def test_no_order_ever_crosses_zero(situation):
    """An entry is never opposite to a lot; exits together sell no more than there is to sell."""
    at = situation[0]
    found = wanted(*situation)
    lot_sides = {a_lot.side for a_lot in at.lots}
    assert all(opposite(entry.side) not in lot_sides for entry in entries(found))
    assert all(opposite(out.side) in lot_sides for out in exits(found))
    open_lots = {msg.exit_id(a_lot.entry_id, a_lot.exits): a_lot for a_lot in at.lots}
    for out in exits(found):
        a_lot = open_lots.pop(out.order_link_id)  # each lot has one exit
        assert out.qty - (a_lot.sold - a_lot.sold_before) == a_lot.bought - a_lot.sold


@settings(max_examples=100, **ANY_SPEED)
@given(situations())
def test_there_is_one_entry_and_every_order_is_on_the_grid(situation):
    at, q, _, last = situation
    after = applied(at, wanted(*situation))
    resting = [o for o in after.orders if o.kind == msg.ENTRY]
    assert len(resting) <= 1
    for w in wanted(*situation):
        assert (w.price % INSTRUMENT.tick_size, w.qty % INSTRUMENT.qty_step) == (0, 0)
        assert min(w.price, w.qty) > 0
    rests = {(o.side, o.price) for o in at.orders}
    for entry in entries(wanted(*situation)):  # PostOnly: never sent to the price or through it
        behind = entry.price < last if entry.side == "Buy" else entry.price > last
        assert behind or (entry.side, entry.price) in rests
        assert q is not None


grids = st.sampled_from([D(text) for text in ("1E-7", "0.0001", "0.005", "0.01", "0.5", "1", "5")])
qty_steps = st.sampled_from([D(text) for text in ("0.001", "0.1", "1", "10", "1000")])


@settings(max_examples=150, **ANY_SPEED)
@given(
    *(grids, qty_steps, sides, st.floats(1_000, 1e6), st.floats(-0.04, 0.04)),
    *(st.floats(0.9, 50), st.sampled_from([0.0, 0.3, 2.0, 12.345])),
)
def test_rounding_never_leaves_the_grid_nor_exceeds_the_size(
    tick, step, side, ticks, off, lots, stop_pct
):
    """Whatever the grid, an entry costs at most SIZE_USDT, and its stop lies on the grid beyond.

    The price is so many ticks, SIZE_USDT buys so many steps (halves of one buy nothing).
    """
    price = float(tick) * ticks
    last = (D(f"{ticks * (1 + off):.8g}")).to_integral_value() * tick
    size = D(f"{price * lots:.8g}") * step
    grid = INSTRUMENT._replace(tick_size=tick, qty_step=step, min_order_qty=step)
    grid = grid._replace(max_order_qty=30 * step, min_notional_value=size / 4)
    rules = RULES._replace(size_usdt=size, stop_loss_pct=stop_pct)
    found = desired(NO_ORDERS, quote(side, price=price), "RUN", grid, last, rules)
    assert bool(found) or lots < 1.1  # 4 % and two ticks away
    for entry in found:
        assert (entry.price % tick, entry.qty % step) == (0, 0)
        assert 0 < entry.qty * entry.price <= size
        assert grid.min_order_qty <= entry.qty <= grid.max_order_qty
        assert entry.price * entry.qty >= grid.min_notional_value
        assert (last - entry.price) * sign(side) >= tick  # it rests
        stop = stop_price(side, entry.price, grid, rules)
        exact = entry.price * D(f"{stop_pct:.12g}") / 100  # how far away the stop should be
        far = (entry.price - stop) * sign(side)
        assert (stop % tick == 0 and exact <= far < exact + tick) if stop_pct else stop == 0


@settings(max_examples=100, **ANY_SPEED)
@given(grids, sides, st.decimals("0.01", "50000", places=4), st.decimals("0.1", "10", places=3))
def test_an_exit_is_on_the_grid_and_never_worse_than_its_profit(tick, side, price, profit):
    grid = INSTRUMENT._replace(tick_size=tick)
    a_lot = lot(side, price, profit=profit)
    (out,) = desired(position([a_lot]), None, "RUN", grid, None, RULES)
    exact = a_lot.entry_price * (1 + sign(side) * profit / 100)
    assert out.price % tick == 0
    assert 0 <= (out.price - exact) * sign(side) < tick or out.price == tick > exact


def test_an_entry_that_the_price_has_reached_is_not_moved_away_from_its_fill():
    resting = position(orders=[order(price="95.45")])
    for last, price in (("95.50", "95.45"), ("95.45", "95.45"), ("95.40", "95.45")):
        (entry,) = entries(wanted(resting, quote(), last=last))
        assert entry.price == D(price)


@settings(max_examples=100, **ANY_SPEED)
@given(situations())
def test_what_was_done_need_not_be_done_again(situation):
    """Two rounds at most: a cancelled entry makes room for one of the other side."""
    at, *rest = situation
    for _ in range(2):
        at = applied(at, wanted(at, *rest))
    assert steps(wanted(at, *rest), at, RULES) == []


def test_an_entry_is_not_moved_further_away_than_the_guard():
    """A quote that is absurd against the last price moves nothing: 91 / 96 is over 5 % away."""
    at = position(orders=[order(price="95.45")])
    for price, moved in ((91.0, "95.45"), (91.2, "91.2")):
        (entry,) = entries(wanted(at, quote(price=price), last="96"))
        assert entry.price == D(moved)


@pytest.mark.parametrize(("side", "price"), [("Buy", "95.42"), ("Sell", "95.45")])
def test_a_last_price_off_the_grid_brings_no_order_off_the_grid(side, price):
    """95.4351 - 0.01 = 95.4251, down; 95.4351 + 0.01 = 95.4451, up."""
    (entry,) = wanted(q=quote(side, price=95.4351), last="95.4351")
    assert entry.price == D(price)


def test_an_entry_opposite_to_a_lot_does_not_go_on_resting():
    """No way to it is known; if there is one, the order must not fill and cross zero."""
    at = position(lots=[lot("Buy")], orders=[exit_of(lot("Buy")), order(side="Sell", price="104")])
    assert entries(wanted(at, quote("Sell"))) == []


# Why no new entry.


def gate(at=NO_ORDERS, q=None, mode="RUN", last="96", instrument=INSTRUMENT, rules=RULES):
    last = last and D(last)
    return entry_gate(at, q or quote(), mode, instrument, last, rules)


GATES = {
    "": {},
    "halted": {"mode": "NO_ENTRY"},
    "stale": {"last": None},
    "not_tradeable": {"instrument": INSTRUMENT._replace(status="NotTradeable")},
    "foreign": {"at": position(foreign_qty=D(-1))},
    "foreign_order": {"at": position(no_entry="foreign_order")},
    "entry_open": {"at": position(orders=[order(bar=4)])},
    "guard": {"q": quote(price=91.0)},  # 91 / 96 = 0.948: over 5 % away
    "too_small": {"q": quote(price=250.0), "last": "251"},  # 0.1 * 250 = 25 > 20
    "opposite_lot": {"at": position([lot("Sell", "110")])},
    "max_lots_per_symbol": {"at": position([lot(bar=1), lot(bar=2), lot(bar=3)])},
    "dca_step": {"at": position([lot(price="95.64")])},  # 0.199 % < 0.2 %
}


@pytest.mark.parametrize("reason", GATES)
def test_each_gate_has_its_word_and_lets_no_entry_through(reason):
    case = GATES[reason]
    assert gate(**case) == reason
    at, mode = case.get("at", NO_ORDERS), case.get("mode", "RUN")
    grid, last = case.get("instrument", INSTRUMENT), case.get("last", "96")
    found = desired(at, case.get("q", quote()), mode, grid, last and D(last), RULES)
    created = [step for step in steps(found, at, RULES) if step.action == "create"]
    assert sum(step.order.kind == msg.ENTRY for step in created) == (reason == "")


def test_without_an_instrument_the_gate_is_stale():
    assert gate(instrument=None) == "stale"


@pytest.mark.parametrize("mode", [mode for mode in msg.MODES if mode != "RUN"])
def test_every_mode_but_run_is_halted(mode):
    assert gate(mode=mode) == "halted"


def test_a_difference_with_the_exchange_gates_with_its_first_word():
    assert gate(position(no_entry="ledger 3 exchange 5")) == "ledger"


@pytest.mark.parametrize(
    ("side", "price", "last", "reason"),
    [
        ("Buy", 95.0, "100", ""),  # 5 % is allowed
        ("Buy", 94.99, "100", "guard"),
        ("Sell", 105.0, "100", ""),
        ("Sell", 105.01, "100", "guard"),
        ("Buy", 0.009, "0.01", "guard"),  # no price is below one tick
    ],
)
def test_an_entry_is_within_five_percent_of_the_last_price(side, price, last, reason):
    assert (
        gate(q=quote(side, price=price), last=last, rules=RULES._replace(size_usdt=D(50))) == reason
    )


# Stop losses.


def stop_of(a_lot, status="Untriggered", order_id="S1"):
    """The stop loss that the exchange has made for an entry; it has no price of its own."""
    name = msg.stop_id(a_lot.entry_id)
    terms = (name, order_id, NAME, opposite(a_lot.side), msg.STOP, D(0), a_lot.bought, D(0))
    return msg.Order(*terms, status, BAR_MS, D("1.275"), 0)


@pytest.mark.parametrize(
    ("side", "price", "pct", "stop"),
    [
        ("Buy", "95.45", 2.0, "93.54"),  # 95.45 * 0.98 = 93.541: down, away from the entry
        ("Sell", "104.56", 2.0, "106.66"),  # 104.56 * 1.02 = 106.6512: up, away from it
        ("Buy", "100", 0.5, "99.5"),
        ("Buy", "100", 0.0, "0"),  # switched off
    ],
)
def test_a_stop_loss_lies_its_share_beyond_the_entry(side, price, pct, stop):
    assert stop_price(side, D(price), INSTRUMENT, RULES._replace(stop_loss_pct=pct)) == D(stop)


def test_without_a_grid_there_is_no_stop_loss():
    assert stop_price("Buy", D(100), None, RULES._replace(stop_loss_pct=2.0)) == 0


@pytest.mark.parametrize("mode", msg.MODES)
def test_a_stop_rests_in_every_mode_while_its_lot_holds_anything(mode):
    open_lot = lot(sold="1.9")
    at = position([open_lot], [exit_of(open_lot), stop_of(open_lot)])
    found = todo(at, wanted(at, None, mode))
    assert msg.stop_id(open_lot.entry_id) not in [name for _, name in found]


def test_a_stop_whose_lot_is_sold_or_gone_is_cancelled_by_its_own_id():
    sold = lot(sold="2")
    for at in (position([sold], [stop_of(sold)]), position([], [stop_of(sold)])):
        (step,) = steps(wanted(at), at, RULES)
        assert (step.action, step.order.order_link_id) == ("cancel", msg.stop_id(sold.entry_id))
        assert step.order.order_id == "S1"


def test_a_stop_rests_while_its_entry_may_still_fill():
    """All of it is sold so far; what fills next is guarded from its first moment."""
    part, entry = lot(sold="2"), order(bar=1)
    at = position([part], [entry, stop_of(part)])
    assert [name for _, name in todo(at, wanted(at, quote()))] == []


def test_a_second_stop_of_an_entry_guards_its_lot_as_the_first_did():
    """It was made when the entry filled on after the first one had triggered."""
    part = lot(sold="1")
    second = stop_of(part)._replace(order_link_id=msg.stop_id(part.entry_id, 1), order_id="S2")
    at = position([part], [exit_of(part), second])
    assert todo(at, wanted(at)) == []
    sold = part._replace(sold=D(2))
    at = position([sold], [second])
    assert todo(at, wanted(at)) == [("cancel", second.order_link_id)]


def test_a_stop_that_has_filled_is_left_alone():
    sold = lot(sold="2")
    at = position([sold], [stop_of(sold, "Filled")])
    assert steps(wanted(at), at, RULES) == []


def test_each_stop_guards_its_own_lot():
    one, two = lot(sold="2"), lot(bar=2)
    at = position([one, two], [stop_of(one), exit_of(two, "101.28"), stop_of(two, order_id="S2")])
    assert todo(at, wanted(at)) == [("cancel", msg.stop_id(one.entry_id))]


def test_what_a_stop_has_sold_the_exit_does_not_sell_again():
    """2 bought, 0.5 sold by a stop that has ended: 1.5 are left, at the same number."""
    (out,) = wanted(position([lot(sold="0.5", before="0.5")]))
    assert (out.order_link_id[-2:], out.qty) == ("x0", D("1.5"))


# The budget.


def taken(budget, count, now_ns, action="create", entry=False):
    """How many of `count` may leave now, by the bucket and by its twin."""
    found = [budget.take(action, now_ns, entry) for _ in range(count)]
    return found.count(action), found.count(f"{action}-batch")


def land(budget, now_ns, *buckets):
    """All that was taken is answered."""
    for bucket in buckets:
        for _ in range(60):
            if budget._flying[bucket]:
                budget.answered(bucket, now_ns)


@pytest.mark.parametrize("action", ["create", "amend", "cancel"])
def test_eight_of_ten_leave_in_a_second_by_each_bucket_and_entries_leave_three_for_exits(action):
    budget = Budget(10)
    assert taken(budget, 30, 0, action) == (8, 8)
    assert budget.take(action, 0) == ""
    budget = Budget(10)
    assert taken(budget, 30, 0, action, entry=True) == (5, 5)  # 10 * 0.8 * 0.7 = 5.6
    assert taken(budget, 30, 0, action) == (3, 3)
    land(budget, 7, action, f"{action}-batch")
    assert taken(budget, 30, SECOND_NS + 6, action) == (0, 0)
    assert taken(budget, 30, SECOND_NS + 7, action) == (8, 8)


def test_what_is_under_way_counts_until_it_is_answered_or_given_up():
    budget = Budget(10)
    assert taken(budget, 30, 0) == (8, 8)
    budget.answered("create", 2 * SECOND_NS)
    assert taken(budget, 30, msg.ANSWER_NS - 1) == (0, 0)
    assert taken(budget, 30, msg.ANSWER_NS) == (8, 8)


def test_the_twin_is_used_only_when_the_first_bucket_has_no_room():
    budget = Budget(10)
    assert [budget.take("create", 0) for _ in range(9)] == ["create"] * 8 + ["create-batch"]
    land(budget, 0, "create")
    assert budget.take("create", SECOND_NS) == "create"


def test_exits_that_left_count_against_entries():
    budget = Budget(10)
    assert taken(budget, 6, 0) == (6, 0)
    assert taken(budget, 9, 0, entry=True) == (0, 5)  # 6 > 5 of the first are gone
    assert taken(budget, 9, 0) == (2, 3)


def test_every_action_has_its_own_buckets():
    budget = Budget(10)
    taken(budget, 30, 0)
    assert taken(budget, 30, 0, action="cancel") == (8, 8)


def test_the_load_is_what_counts_of_the_exchanges_limit():
    budget = Budget(10)
    assert budget.load_pct(0) == {}
    taken(budget, 3, 0)
    budget.learn("amend", 20)
    budget.take("amend", 0)
    assert budget.load_pct(0) == {"amend": 5, "create": 30}
    land(budget, 7, "create", "amend")
    assert budget.load_pct(SECOND_NS + 6) == {"amend": 5, "create": 30}
    assert budget.load_pct(SECOND_NS + 7) == {"amend": 0, "create": 0}


def test_what_is_no_order_has_no_twin():
    assert taken(Budget(10), 30, 0, action="leverage") == (8, 0)
    assert set(TWINS) == {"create", "amend", "cancel"}


def test_a_limit_is_learned_for_one_bucket_and_silence_teaches_nothing():
    budget = Budget(10)
    budget.learn("create", 20)
    budget.learn("create", 0)
    assert taken(budget, 60, 0, entry=True) == (11, 5)  # 20 * 0.8 * 0.7 = 11.2
    assert taken(budget, 60, 0) == (5, 3)  # to 16 and 8
    budget.learn("create-batch", 5)
    assert taken(budget, 60, msg.ANSWER_NS) == (16, 4)
    assert taken(budget, 60, 0, action="amend") == (8, 8)


def test_a_limit_of_one_a_second_still_lets_one_go():
    """int(1 * 0.8) would be none for ever."""
    assert taken(Budget(1), 5, 0, entry=True) == (1, 1)


def test_a_bucket_that_is_shut_gives_nothing_until_its_time_and_its_twin_goes_on():
    budget = Budget(10)
    budget.shut("create", msg.ANSWER_NS)
    assert taken(budget, 30, msg.ANSWER_NS - 1) == (0, 8)
    assert taken(budget, 30, msg.ANSWER_NS) == (8, 0)
    budget.shut("create-batch", 5 * msg.ANSWER_NS)
    assert taken(budget, 30, 3 * msg.ANSWER_NS) == (8, 0)
    assert taken(budget, 30, 3 * msg.ANSWER_NS, action="amend") == (8, 8)


def test_what_was_taken_and_is_not_used_is_given_back_once():
    budget = Budget(10)
    assert taken(budget, 8, 5) == (8, 0)
    for _ in range(9):  # nobody gives back more than was taken
        budget.give_back("create")
    assert taken(budget, 20, 6) == (8, 8)


@settings(max_examples=80, **ANY_SPEED)
@given(
    st.integers(2, 60),
    st.lists(
        st.tuples(
            st.integers(0, 400_000_000),
            st.booleans(),
            st.integers(1, 12),
            st.integers(0, msg.ANSWER_NS - 1),
            st.floats(0, 1),
            st.sampled_from(["", "", "create", "create-batch"]),
        )
    ),
)
def test_no_second_of_the_exchange_ever_holds_more_than_its_share(limit, attempts):
    """However long each takes to arrive, and its answer to come: in every rolling second and
    bucket at most 80 % arrive in all, and nothing leaves by a bucket that is shut."""
    budget, now_ns, answers = Budget(limit), 0, []
    arrived, shut_ns = {"create": [], "create-batch": []}, defaultdict(int)
    for pause_ns, is_entry, count, flight_ns, share, shut in attempts:
        now_ns += pause_ns
        for at_ns, bucket in sorted(a for a in answers if a[0] <= now_ns):
            budget.answered(bucket, at_ns)
        answers = [answer for answer in answers if answer[0] > now_ns]
        if shut:
            shut_ns[shut] = now_ns + SECOND_NS
            budget.shut(shut, shut_ns[shut])
        for _ in range(count):
            if bucket := budget.take("create", now_ns, is_entry):
                assert now_ns >= shut_ns[bucket]
                answers.append((now_ns + flight_ns, bucket))
                arrived[bucket].append(now_ns + int(flight_ns * share))
    for times in arrived.values():
        times.sort()
        most = max(1, int(limit * 0.8))
        assert all(b - a >= SECOND_NS for a, b in zip(times, times[most:], strict=False))


@given(st.integers(2, 60), st.lists(st.tuples(st.booleans(), st.integers(1, 12)), max_size=20))
def test_entries_never_take_the_share_of_exits_and_an_exit_waits_for_nothing_else(limit, attempts):
    budget, left = Budget(limit), {"create": 0, "create-batch": 0}
    for is_entry, count in attempts:
        for _ in range(count):
            bucket = budget.take("create", 0, is_entry)
            if bucket:
                left[bucket] += 1
                assert left[bucket] <= max(1, limit * 0.8 * (0.7 if is_entry else 1))
            elif not is_entry:
                assert set(left.values()) == {max(1, int(limit * 0.8))}


def test_a_resting_entry_leaves_while_others_hold_the_symbol():
    """Its fill would net against their position, and so cross zero."""
    assert [want.kind for want in wanted(position(orders=[order()]), quote())] == ["entry"]
    assert wanted(position(orders=[order()], foreign_qty=D(-5)), quote()) == []
