# ruff: noqa: N802
"""Rows of the fault catalogue (reliability.md, section 4) that strike real processes.

One pipeline lives through all of them: each test takes symbols of its own, breaks something at the
paper exchange, waits for what the bot must do, and heals. Then it is quiet, ledger and exchange
hold the same, entries are allowed again, and the auditor has seen no breach. The same rows are
tested to the digit and the second in one thread (`test_rows_*`): here only what must be true at any
pace.
"""

import time
from decimal import Decimal

import pytest

from shared import messages as msg
from tests.pipeline import LATE_S, Live, afresh, lifetime

pytestmark = pytest.mark.xdist_group("process_rows")
CREATE, CANCEL = "/v5/order/create", "/v5/order/cancel"
WHOLE, PART = Decimal(20), Decimal(7)  # a lot; 37 % of it in whole units
SOON_S = 15
PROVEN_S = 6  # a second to send, recv_window and 3 s


@pytest.fixture(scope="module")
def running():
    yield from lifetime(Live(40))


@pytest.fixture
def live(running):
    yield from afresh(running)


def no_entry(live, *reasons):
    """Whether entries were forbidden for one of these reasons."""
    return [m for m in live.said(msg.Mode, mode=msg.NO_ENTRY) if m.reason in reasons]


# Order commands.


def test_A1_a_create_whose_answer_is_lost_is_found_and_never_sent_again_as_processes(live):
    symbol, before = live.take(), live.struck()
    live.fault("http", "drop_after", path=CREATE)
    name = live.rest(symbol)
    assert live.struck() == before + 1
    live.holds(lambda: live.entry(symbol) == (name, "New"), 3.5)  # its command's deadline is over
    assert live.sent("create", symbol) == [name]
    live.hit(symbol)
    live.until(lambda: live.exits(symbol) == [(f"{name}x0", WHOLE)], SOON_S)
    live.finish()
    assert live.lot(symbol) == (WHOLE, 0)
    assert len(live.created(name)) == 1


def test_A2_a_create_that_never_arrived_keeps_its_slot_until_that_is_proven_as_processes(live):
    symbol = live.take()
    live.fault("http", "drop_before", path=CREATE)
    live.arm(symbol)
    (request,) = live.until(lambda: live.said(msg.OrderRequest, symbol=symbol, outcome=""), SOON_S)
    name = request.order_link_id
    assert live.entry(symbol) == (name, "Granted")
    live.until(lambda: live.entry(symbol)[:1] != (name,), LATE_S)
    assert time.monotonic_ns() - request.decided_ns > PROVEN_S * 1_000_000_000
    assert live.outcome(name) == "not_accepted"
    assert len(live.said(msg.OrderRequest, order_link_id=name, outcome="unknown")) == 1
    live.finish()
    assert live.created(name) == []
    assert live.sent("create", symbol).count(name) == 1


@pytest.mark.parametrize(
    ("action", "terms"),
    [
        ("ret", {"code": 10019, "after": True}),
        ("garbage", {}),
    ],
)
def test_A4_an_answer_that_proves_nothing_is_unknown_as_processes(live, action, terms):
    """The order was made all the same: it is kept, and not sent again."""
    symbol, before = live.take(), live.struck()
    live.fault("http", action, path=CREATE, **terms)
    name = live.rest(symbol)
    live.holds(lambda: live.entry(symbol) == (name, "New"), 1)
    assert live.struck() == before + 1
    assert live.said(msg.OrderRequest, order_link_id=name, outcome="refused") == []
    live.finish()
    assert live.sent("create", symbol).count(name) == len(live.created(name)) == 1


def test_A5_an_accepted_create_that_the_stream_rejects_frees_its_slot_as_processes(live):
    symbol = live.take()
    live.fault("match", "reject_after_ack", symbol=symbol, reason="EC_NoEnoughQtyToFill")
    live.arm(symbol)
    (request, *_) = live.until(
        lambda: live.said(msg.OrderRequest, symbol=symbol, outcome="accepted"), SOON_S
    )
    name = request.order_link_id
    live.until(lambda: live.outcome(name) == "rejected", SOON_S)
    live.until(lambda: live.entry(symbol)[:1] != (name,), SOON_S)
    live.finish()
    assert live.sent("create", symbol).count(name) == 1


def test_A6_an_order_that_nobody_told_of_is_found_by_asking_as_processes(live):
    symbol, before = live.take(), live.struck()
    live.fault("ws", "mute", kind="private", topic="order")
    live.fault("http", "drop_after", path=CREATE)
    name = live.rest(symbol)
    assert live.struck() >= before + 2  # the answer and the stream's word on it
    live.finish()
    assert live.sent("create", symbol).count(name) == len(live.created(name)) == 1


def test_A9_what_was_filled_before_the_cancel_is_the_position_as_processes(live):
    symbol = live.take()
    name = live.rest(symbol)
    live.fault("match", "partial", symbol=symbol, share="0.37")
    live.hit(symbol)
    live.until(lambda: live.exits(symbol) == [(f"{name}x0", PART)], SOON_S)
    live.away(symbol)
    live.until(lambda: live.outcome(name) == "filled" and not live.entry(symbol), SOON_S)
    (order,) = live.created(name)
    assert (order["orderStatus"], Decimal(order["cumExecQty"])) == ("Cancelled", PART)
    assert [Decimal(o["leavesQty"]) for o in live.at_venue(symbol)] == [PART]  # its exit
    live.finish()
    assert (live.lot(symbol), live.held(symbol)) == ((PART, 0), PART)


RACES = {
    "as it comes": [],
    "answer lost": [("http", "drop_after", {"path": CANCEL})],
    "answer first": [("ws", "delay", {"kind": "private", "ms": 700, "times": 6})],
}


@pytest.mark.parametrize("race", RACES)
def test_A10_a_cancel_that_races_a_fill_loses_and_the_fill_counts_as_processes(live, race):
    symbol = live.take()
    name = live.rest(symbol)
    live.fault("match", "fill_before_cancel", symbol=symbol)
    for where, action, terms in RACES[race]:
        live.fault(where, action, **terms)
    live.away(symbol)
    live.until(lambda: live.exits(symbol) == [(f"{name}x0", WHOLE)], SOON_S)
    (order,) = live.created(name)
    assert order["orderStatus"] == "Filled"
    live.until(lambda: live.sent("cancel", symbol)[:1] == [name], SOON_S)  # by another socket
    live.finish()
    assert (live.entry(symbol), live.lot(symbol), live.held(symbol)) == ((), (WHOLE, 0), WHOLE)


def test_A11_a_cancel_that_never_arrives_is_sent_again_as_processes(live):
    symbol = live.take()
    name = live.rest(symbol)
    live.fault("http", "drop_before", path=CANCEL)
    live.away(symbol)
    live.until(lambda: live.sent("cancel", symbol), SOON_S)
    live.holds(lambda: live.entry(symbol) == (name, "New") and len(live.at_venue(symbol)) == 1, 1)
    live.until(lambda: not live.entry(symbol), LATE_S)
    live.until(lambda: live.sent("cancel", symbol) == [name, name], SOON_S)  # by another socket
    assert live.at_venue(symbol) == []
    live.finish()


def test_A12_an_exit_that_fills_before_it_grows_leaves_the_rest_to_another_as_processes(live):
    symbol = live.take()
    name = live.rest(symbol)
    live.fault("match", "partial", symbol=symbol, share="0.37")
    live.hit(symbol)
    live.until(lambda: live.exits(symbol) == [(f"{name}x0", PART)], SOON_S)
    live.fault("match", "fill_before_amend", symbol=symbol)
    live.hit(symbol)
    live.until(lambda: live.exits(symbol) == [(f"{name}x1", WHOLE - PART)], SOON_S)
    live.finish()
    assert (live.lot(symbol), live.held(symbol)) == ((WHOLE, PART), WHOLE - PART)


def test_A14_an_exit_that_is_unknown_is_never_joined_by_a_second_one_as_processes(live):
    symbol = live.take()
    name = live.rest(symbol)
    live.fault("http", "drop_before", path=CREATE)
    live.hit(symbol)

    def at_most_what_is_held():
        exits = [o for o in live.at_venue(symbol) if o["reduceOnly"]]
        return sum(Decimal(o["leavesQty"]) for o in exits) <= WHOLE

    def rests():
        assert at_most_what_is_held()
        return live.exits(symbol) == [(f"{name}x0", WHOLE)]

    live.until(rests, LATE_S)  # it is sent again, by the same id
    live.holds(at_most_what_is_held, 1)
    live.finish()
    assert live.said(msg.OrderRequest, order_link_id=f"{name}x0", outcome="unknown")
    exits = [o for o in live.account()["orders"] if o["symbol"] == symbol and o["reduceOnly"]]
    assert [o["orderLinkId"] for o in exits] == [f"{name}x0"]


def test_A15_what_others_hold_or_rest_blocks_its_symbol_and_no_other_as_processes(live):
    held, rests, free = live.take(), live.take(), live.take()
    live.fault("venue", "foreign_order", symbol=rests, side="Buy", qty="10", price="0.97")
    live.fault("venue", "foreign_fill", symbol=held, side="Buy", qty="8")
    query = "SELECT qty FROM foreigners WHERE symbol = ?"
    live.until(lambda: live.p.rows(query, held) == [("8",)], SOON_S)
    live.holds(lambda: True, 0.3)  # whoever reads positions from here on knows of the order, too
    before = live.struck()
    live.fault("http", "delay", path="/v5/position/list", ms=0, times=0)  # counts the rounds
    live.until(lambda: live.struck() >= before + 2, SOON_S)
    live.arm(held)
    live.arm(rests)
    live.rest(free)
    live.holds(lambda: not live.sent("create", held) + live.sent("create", rests), 1)
    live.finish()
    assert [o["orderLinkId"] for o in live.at_venue(rests)] == [""]
    assert live.held(held) == 8
    live.fault("venue", "foreign_fill", symbol=held, side="Sell", qty="8")
    live.finish()


# The private stream.


def test_B1_an_execution_that_comes_again_is_applied_once_as_processes(live):
    symbol = live.take()
    name = live.rest(symbol)
    before = live.struck()
    live.fault("ws", "dup", kind="private", topic="execution", times=4)
    live.fault("ws", "stale_replay", kind="private", times=0)
    live.fault("match", "partial", symbol=symbol, share="0.37")
    live.hit(symbol)
    live.until(lambda: live.exits(symbol) == [(f"{name}x0", PART)], SOON_S)
    live.hit(symbol)
    live.until(lambda: live.exits(symbol) == [(f"{name}x0", WHOLE)], SOON_S)
    live.finish()
    assert live.struck() >= before + 4
    assert live.lot(symbol) == (WHOLE, 0)
    said = [m.exec_id for m in live.said(msg.Execution, symbol=symbol)]
    assert len(said) > len(set(said)) == 2  # it did come again


def test_B4_an_execution_that_never_comes_is_fetched_as_processes(live):
    symbol = live.take()
    name = live.rest(symbol)
    before = live.struck()
    live.fault("ws", "drop", kind="private", topic="execution")
    live.hit(symbol)
    live.until(lambda: live.lot(symbol) == (WHOLE, 0), SOON_S)
    live.until(lambda: live.exits(symbol) == [(f"{name}x0", WHOLE)], SOON_S)
    assert live.struck() == before + 1
    live.finish()


def test_B5_a_silent_stream_that_still_answers_pings_is_noticed_and_left_as_processes(live):
    symbol, other = live.take(), live.take()
    name = live.rest(symbol)
    live.fault("ws", "keep_pong", kind="private")
    live.hit(symbol)
    live.until(lambda: no_entry(live, "private stream is deaf", "private stream lost"), LATE_S)
    live.near(other)
    live.holds(lambda: not live.sent("create", other), 0.5)
    live.until(lambda: live.exits(symbol) == [(f"{name}x0", WHOLE)], SOON_S)  # exits go on
    live.until(lambda: "Link name=private reason=deaf" in live.log("keeper"), SOON_S)
    live.finish()


def test_B6_a_half_open_private_socket_is_left_and_what_it_missed_is_found_as_processes(live):
    symbol, other = live.take(), live.take()
    name = live.fill(symbol)
    (leaves,) = live.at_venue(symbol)
    logged = len(live.log("keeper"))
    live.fault("ws", "half_open", kind="private")
    live.until(lambda: no_entry(live, "private stream lost"), LATE_S)
    live.to(symbol, Decimal(leaves["price"]) + Decimal("0.0010"))  # sold, and nobody hears
    live.heal()  # before the next socket is half open, too
    live.near(other)
    live.holds(lambda: not live.sent("create", other), 0.5)  # not before it is trusted again
    live.until(lambda: live.lot(symbol) == (WHOLE, WHOLE), SOON_S)
    noticed = live.log("keeper")[logged:]  # by a ping, or by what REST knows and it never said
    assert "ping/pong timed out" in noticed or "reason=deaf" in noticed
    live.finish()
    live.rest(other)  # and on it goes
    assert live.p.rows("SELECT closed_ms > 0 FROM lots WHERE entry_id = ?", name) == [(1,)]


# Market data.


def test_C1_a_silent_public_stream_is_no_entry_and_exits_go_on_as_processes(live):
    symbol, other = live.take(), live.take()
    name = live.fill(symbol)
    live.fault("ws", "keep_pong", kind="public")
    live.until(lambda: no_entry(live, "market data lost"), LATE_S)
    live.near(other)
    (leaves,) = live.at_venue(symbol)
    live.to(symbol, Decimal(leaves["price"]) + Decimal("0.0010"))
    live.until(lambda: live.lot(symbol) == (WHOLE, WHOLE), SOON_S)
    assert live.sent("create", other) == []
    live.finish()
    live.rest(other)
    assert live.p.rows("SELECT closed_ms > 0 FROM lots WHERE entry_id = ?", name) == [(1,)]


# The exchange.


def test_H2_what_was_filled_while_the_exchange_let_nobody_in_is_found_as_processes(live):
    sold, bought = live.take(), live.take()
    live.fill(sold)
    name = live.rest(bought)
    (leaves,) = live.at_venue(sold)
    (entry,) = live.at_venue(bought)
    live.fault("venue", "restart", ms=1500)
    live.to(bought, Decimal(entry["price"]) - Decimal("0.0010"))
    live.to(sold, Decimal(leaves["price"]) + Decimal("0.0010"))
    live.until(lambda: no_entry(live, "private stream lost"), SOON_S)
    live.until(lambda: live.lot(sold) == (WHOLE, WHOLE), LATE_S)
    live.until(lambda: live.exits(bought) == [(f"{name}x0", WHOLE)], LATE_S)
    live.finish()
    assert (live.held(sold), live.held(bought)) == (0, WHOLE)


def test_H3_a_limit_that_shrinks_is_learned_at_its_first_refusals_as_processes(live):
    crowd, later = [live.take() for _ in range(6)], [live.take() for _ in range(3)]
    live.fault("venue", "rate_limit", limit=2)
    live.fault("http", "delay", path=CREATE, ms=1500, times=len(crowd))  # the first to tell of it
    for symbol in crowd:
        live.near(symbol)

    def told(symbols):
        found = live.said(msg.OrderRequest, action="create")
        return {(m.symbol, m.ret_code) for m in found if m.outcome and m.symbol in symbols}

    live.until(lambda: len(told(crowd)) == len(crowd), SOON_S)
    refused = [symbol for symbol, code in told(crowd) if code == 10006]
    assert 0 < len(refused) < len(crowd)
    live.until(lambda: len(told(later)) == len(later), SOON_S, armed=later)
    assert {code for _, code in told(later)} == {0}
    live.finish()


def test_H5_a_delisted_symbol_is_settled_and_is_not_traded_as_processes(live):
    held, rests, other = live.take(), live.take(), live.take()
    live.fill(held)
    name = live.rest(rests)
    for symbol in (held, rests):
        live.fault("venue", "delist", symbol=symbol)
    live.until(lambda: live.lot(held) == (WHOLE, WHOLE), SOON_S)
    live.until(lambda: live.outcome(name) == "cancelled" and not live.entry(rests), SOON_S)
    live.until(lambda: live.said(msg.Execution, symbol=held, exec_type="Delivery"), SOON_S)
    assert live.exits(held) == []
    live.rest(other)
    live.finish()
    assert live.held(held) == 0


def test_H11_an_exit_that_somebody_cancels_is_replaced_as_processes(live):
    symbol = live.take()
    name = live.fill(symbol)
    live.p.http().cancel_order(category="linear", symbol=symbol, orderLinkId=f"{name}x0")
    live.until(lambda: live.exits(symbol) == [(f"{name}x1", WHOLE)], SOON_S)
    live.finish()
    assert live.lot(symbol) == (WHOLE, 0)
