# ruff: noqa: N802
"""Table A of the fault catalogue (reliability.md, section 4): order commands.

Every test breaks one thing at the paper exchange, looks at what the bot does meanwhile, and ends
healed: ledger and exchange agree, each execution was applied once, the auditor saw no breach.
Lots are 50 USDT: 0.50 bought at 99.5. A bar ends 46 s after the entry rests.
"""

from decimal import Decimal

import orjson
import pytest

from services.paper.venue import Request
from shared import bybit
from shared import messages as msg
from tests.stage import SYMBOLS, A, B, C, Stage

NOT_APPLICABLE = {
    "A3 by http(delay)": "the verb delays the answer, not the request: the test delivers it late",
    "A7 by a TCP proxy": "no TCP here: http(dup) gives the exchange the same request twice",
    "A8 five refusals": "one refusal already pauses the symbol for 60 s, so there are no five",
    "A9 separate stop": "no stop is managed apart from its entry: Bybit sizes the attached one",
    "A12 below filled": "entries keep their quantity; an exit's cannot get below what it has sold",
    "A12 exposure": "caps count entries, not money: there is no max(old, new) to take",
    "A13 batch of ten": "the router's batches hold one order each, for the sake of their bucket",
}
D = Decimal
CREATE, AMEND, CANCEL = "/v5/order/create", "/v5/order/amend", "/v5/order/cancel"
WIDE = {"BASE_FEE_PCT": 3.0}  # take profit 3.2 % away: a lot stays open
NEAR, AWAY, DEEP = "99.8", "100.2", "99.3"  # armed; the other band's; through an entry
NAME = "dm-AAAUSDT-1b05516-B"  # the first bar
NEXT = "dm-AAAUSDT-1b05517-B"
SLOW = {"RATE_LIMIT": 1, "PAPER_RATE_LIMIT": 1}  # the second order of a second goes by batch
PAUSE_S = 60  # of a symbol whose entry was refused
FOUND_S, SETTLED_S, POLLED_S = 2, 8, 5  # goal T7; row A6

routes = pytest.mark.parametrize("route", ["socket", "rest"])


def staged(route="socket", **settings):
    stage = Stage(**settings)
    if route == "rest":
        stage.by_rest()
    return stage


def finish(stage, seconds=60):
    """Heal, agree; and no entry was ever sent twice."""
    stage.end(seconds)
    for symbol in SYMBOLS:
        names = [request.order_link_id for request in stage.sent("create", symbol)]
        assert len(names) == len(set(names))
        assert all(len(stage.created(name)) <= 1 for name in names)


def arm(stage, symbol=A):
    """Near the band: an entry is sent."""
    stage.to(symbol, NEAR, 1)
    (request,) = stage.sent("create", symbol)
    return request


def hit(stage, price, symbol=A):
    """One trade, after which the symbol stands where it stood."""
    stage.fault("venue", "trade", symbol=symbol, price=price, qty="1")


def lot(stage, symbol=A):
    (found,) = stage.lots(symbol)
    return found


def adopted(stage):
    """The one entry rests at the exchange, and the ledger knows."""
    return [order.status for order in stage.entries()] == ["New"]


def told(stage, action, outcome):
    return stage.said(msg.OrderRequest, action=action, outcome=outcome)


# Creating.


@routes
def test_A1_a_create_whose_answer_is_lost_is_found_and_never_sent_again(route):
    stage = staged(route)
    stage.fault("http", "drop_after", path=CREATE)
    stage.to(A, NEAR)
    assert stage.until(lambda: adopted(stage), FOUND_S) <= FOUND_S
    assert stage.ledger.slots() == 1
    stage.run(20)
    assert len(stage.sent("create")) == len(stage.created(NAME)) == 1
    stage.to(A, DEEP, 1)
    assert (lot(stage).bought, stage.held()) == (D("0.50"), D("0.50"))
    finish(stage)


@routes
def test_A2_a_create_that_never_arrived_keeps_its_slot_until_that_is_proven(route):
    stage = staged(route)
    stage.fault("http", "drop_before", path=CREATE)
    arm(stage)
    sent_s = stage.now_s - 1
    for _ in range(3):
        stage.run(1)
        assert (stage.ledger.slots(), stage.entries()[0].status) == (1, "Granted")
    stage.until(lambda: not stage.entries(), 10)
    assert 5 < stage.now_s - sent_s <= SETTLED_S
    assert stage.ledger.slots() == 0
    assert stage.outcomes(NAME) == ["not_accepted"]
    stage.run(30)
    assert len(stage.sent("create")) == 1  # not in this bar
    assert stage.at_venue() == []
    assert [r.order_link_id for r in told(stage, "create", "unknown")] == [NAME]
    finish(stage)


def late_by_socket(stage, request):
    """The frame of a create, as if the network had held it back."""
    stamp_ms = request.decided_ns // 1_000_000
    frame = bybit.frame_of(request, stage.settings.RECV_WINDOW_MS, stamp_ms) | {"reqId": "late"}
    (session,) = [one for one in stage.venue.sessions.open if one.kind == "trade"]
    before = len(session.outbox)
    stage.venue.sessions.heard(session, orjson.dumps(frame), stage.replay.now())
    return orjson.loads(session.outbox[before:][-1][1])["retCode"]


def late_by_rest(stage, request):
    """The same by REST, signed when it was sent."""
    door, key = stage.replay._doors[stage.replay.router], stage.settings.api_key
    stamp, window = str(request.decided_ns // 1_000_000), str(stage.settings.RECV_WINDOW_MS)
    body = orjson.dumps(bybit.params_of(request)).decode()
    names = ("API-KEY", "TIMESTAMP", "RECV-WINDOW", "SIGN")
    values = (key, stamp, window, door._sign(f"{stamp}{key}{window}{body}"))
    headers = {f"X-BAPI-{name}": value for name, value in zip(names, values, strict=True)}
    answer = stage.venue.http(Request("POST", CREATE, "", {}, headers, body), stage.replay.now())
    return orjson.loads(answer.body)["retCode"]


@pytest.mark.parametrize(("late_s", "code"), [(1, 0), (2, 0), (3, 10002), (5, 10002)])
@pytest.mark.parametrize("deliver", [late_by_socket, late_by_rest])
def test_A3_a_create_that_arrives_late_is_adopted_or_is_too_late_for_good(deliver, late_s, code):
    """recv_window is 2 s: what arrives later than that can never become an order."""
    stage = staged("rest" if deliver is late_by_rest else "socket")
    stage.fault("http", "drop_before", path=CREATE)
    request = arm(stage)
    stage.run(late_s - 1)
    assert (stage.ledger.slots(), stage.entries()[0].status) == (1, "Granted")
    assert deliver(stage, request) == code
    stage.replay.settle()
    assert adopted(stage) == (code == 0)
    stage.run(SETTLED_S - late_s)
    assert stage.ledger.slots() == (1 if code == 0 else 0)
    assert stage.outcomes(NAME) == (["order"] if code == 0 else ["not_accepted"])
    stage.run(10)
    assert len(stage.sent("create")) == 1
    assert len(stage.created(NAME)) == (1 if code == 0 else 0)
    finish(stage)


@routes
@pytest.mark.parametrize("lies", [1, 2])
def test_A2_one_not_found_or_two_prove_nothing(route, lies):
    """For 8 s nobody answers, then the order is not found, then it is there."""
    stage = staged(route)
    stage.fault("http", "drop_after", path=CREATE)
    stage.fault("ws", "mute", kind="private", topic="order")
    stage.fault("http", "status", path="/v5/order/", method="GET", status=502, times=0, for_s=8.5)
    arm(stage)
    stage.run(7)
    assert (stage.ledger.slots(), stage.entries()[0].status) == (1, "Granted")
    for path in ("/v5/order/realtime", "/v5/order/history"):
        stage.fault("http", "partial", path=path, k=0, times=0)
    for _ in range(lies):
        stage.run(1)
    assert stage.replay.keeper._reconcile._absent[NAME][1] == lies
    assert (stage.ledger.slots(), stage.entries()[0].status) == (1, "Granted")
    stage.heal()
    stage.run(2)
    assert (adopted(stage), stage.ledger.slots()) == (True, 1)
    finish(stage)


@routes
def test_A3_an_order_given_up_for_lost_is_taken_back_when_it_turns_up(route):
    """Old data by REST and a silent stream prove wrongly that it never arrived."""
    stage = staged(route)
    stage.fault("http", "drop_after", path=CREATE)
    stage.fault("ws", "mute", kind="private", topic="order")
    for path in ("/v5/order/realtime", "/v5/order/history"):
        stage.fault("http", "partial", path=path, k=0, times=0)
    arm(stage)
    stage.run(15)
    assert stage.outcomes(NAME) == ["not_accepted"]
    stage.heal()
    stage.run(12)
    assert adopted(stage)
    assert [o.link_id for o in stage.at_venue()] == [NAME]
    assert stage.ledger.slots() == 1
    stage.to(A, DEEP, 2)
    assert (lot(stage).entry_id, lot(stage).bought) == (NAME, D("0.50"))
    finish(stage)


UNCLEAR = [
    *(
        ("ret", {"code": code, "after": after}, after)
        for code in (10000, 10016)
        for after in (0, 1)
    ),
    *(
        ("ret", {"code": code, "after": after}, after)
        for code in (10019, 170007)
        for after in (0, 1)
    ),
    *(("status", {"status": status}, False) for status in (500, 502, 504)),
    ("garbage", {}, True),
    ("truncate", {}, True),
]


@routes
@pytest.mark.parametrize(("action", "terms", "accepted"), UNCLEAR)
def test_A4_an_answer_that_proves_nothing_is_unknown_whatever_came_of_it(
    route, action, terms, accepted
):
    stage = staged(route)
    terms = {name: bool(value) if name == "after" else value for name, value in terms.items()}
    stage.fault("http", action, path=CREATE, **terms)
    arm(stage)
    assert stage.ledger.slots() == 1
    if accepted:
        assert adopted(stage)
    else:
        assert stage.entries()[0].status == "Granted"
        stage.until(lambda: not stage.entries(), SETTLED_S - 1)
        assert (stage.ledger.slots(), stage.outcomes(NAME)) == (0, ["not_accepted"])
    stage.run(20)
    assert told(stage, "create", "refused") == []
    assert len(stage.sent("create")) == 1
    assert len(stage.created(NAME)) == accepted
    finish(stage)


@routes
@pytest.mark.parametrize("reason", ["EC_ReachRiskPriceLimit", "EC_NoEnoughQtyToFill"])
def test_A5_an_accepted_create_that_the_stream_rejects_frees_its_slot(route, reason):
    stage = staged(route)
    stage.fault("match", "reject_after_ack", symbol=A, reason=reason)
    arm(stage)
    assert len(told(stage, "create", "accepted")) == 1
    assert (stage.entries(), stage.ledger.slots()) == ([], 0)
    assert stage.outcomes(NAME) == ["rejected"]
    stage.run(40)
    assert len(stage.sent("create")) == 1  # the bar is used up
    stage.run(15)
    assert [r.order_link_id for r in stage.sent("create")] == [NAME, NEXT]
    finish(stage)


@routes
def test_A5_a_post_only_that_would_cross_frees_its_slot_and_waits_for_the_next_bar(route):
    """The price runs through the band before the bot has heard of it."""
    stage = staged(route)
    stage.fault("ws", "delay", kind="public", topic=f"kline.1.{A}", ms=1000)
    stage.to(A, NEAR)  # heard in a second
    stage.fault("ws", "drop", kind="public", topic=f"kline.1.{A}")
    stage.to(A, DEEP, 1)  # below 99.5 when the entry arrives
    (order,) = stage.created(NAME)
    assert (order.status, order.reason) == ("Cancelled", "EC_PostOnlyWillTakeLiquidity")
    assert (stage.entries(), stage.ledger.slots(), stage.held()) == ([], 0, 0)
    assert stage.outcomes(NAME) == ["post_only"]
    stage.to(A, NEAR, 40)
    assert len(stage.sent("create")) == 1
    finish(stage)


def test_A5_an_exit_whose_rejection_nobody_heard_is_made_anew():
    """Its id is used up: the exchange says so, and the keeper looks what became of it."""
    stage = Stage(BASE_FEE_PCT=3.0)
    lot = stage.rest()
    stage.fault("match", "reject_after_ack", symbol=A)
    stage.fault("ws", "drop", kind="private", topic="order", times=0, for_s=8)
    stage.to(A, DEEP, 20)
    assert [order.status for order in stage.created(f"{lot}x0")] == ["Rejected"]
    assert [order.order_link_id for order in stage.exits()] == [f"{lot}x1"]
    finish(stage)


@routes
def test_A6_an_order_that_nobody_told_of_is_found_by_asking(route):
    stage = staged(route)
    stage.fault("http", "drop_after", path=CREATE)
    stage.fault("ws", "mute", kind="private", topic="order")
    stage.to(A, NEAR)
    assert stage.until(lambda: adopted(stage), POLLED_S)
    stage.run(20)
    assert len(stage.sent("create")) == len(stage.at_venue()) == 1
    assert stage.ledger.slots() == 1
    finish(stage)


@routes
def test_A7_the_same_create_delivered_twice_is_one_order_and_no_failure(route):
    stage = staged(route)
    stage.fault("http", "dup", path=CREATE)
    arm(stage)
    assert (adopted(stage), stage.ledger.slots()) == (True, 1)
    (answer,) = told(stage, "create", "accepted")
    assert answer.ret_code == 110072
    assert told(stage, "create", "refused") + told(stage, "create", "unknown") == []
    assert len(stage.created(NAME)) == 1
    stage.to(A, DEEP, 1)
    assert lot(stage).bought == D("0.50")
    finish(stage)


@routes
@pytest.mark.parametrize("code", [110003, 110094, 30228, 110007])
def test_A8_a_refused_create_is_over_at_once_and_its_symbol_pauses_for_a_minute(route, code):
    stage = staged(route)
    stage.fault("http", "ret", path=CREATE, code=code)
    request = arm(stage)
    assert (stage.entries(), stage.ledger.slots()) == ([], 0)
    assert stage.outcomes(NAME) == ["refused"]
    (answer,) = told(stage, "create", "refused")
    assert answer.ret_code == code
    assert stage.replay.router.counters["refused"] == 1
    stage.to(B, NEAR, 5)
    assert len(stage.entries(B)) == (code != 110007)  # no money: no symbol gets an entry
    stage.run(80)
    again = [r for r in stage.sent("create") if r.order_link_id != NAME]
    assert again[0].decided_ns - request.decided_ns >= PAUSE_S * 1_000_000_000
    assert len(stage.sent("create", B)) == 1
    finish(stage)


# Cancelling.


@routes
@pytest.mark.parametrize("seed", [105, 107])  # topics come shuffled: execution or order first
@pytest.mark.parametrize("stop_pct", [0.0, 2.0])
def test_A9_what_was_filled_before_the_cancel_is_the_position_and_the_rest_is_gone(
    route, stop_pct, seed
):
    """37 % of 0.50 in steps of 0.01 is 0.18; a stop 2 % below 99.5 lies at 97.5."""
    stage = staged(route, STOP_LOSS_PCT=stop_pct, PAPER_SEED=seed, **WIDE)
    stage.rest()
    stage.fault("match", "partial", symbol=A, share="0.37")
    hit(stage, DEEP)
    stage.to(A, AWAY, 2)
    (order,) = stage.created(NAME)
    assert (order.status, order.filled) == ("Cancelled", D("0.18"))
    assert (stage.entries(), stage.held(), lot(stage).bought) == ([], D("0.18"), D("0.18"))
    (leaves,) = stage.exits()
    assert (leaves.side, leaves.qty) == ("Sell", D("0.18"))
    assert stage.ledger.slots() == 1  # the lot's
    assert [(o.qty, o.trigger) for o in stage.stops()] == [(D("0.18"), D("97.5"))] * bool(stop_pct)
    stage.to(A, "103.5", 2)  # take profit
    assert (stage.held(), stage.ledger.slots(), stage.stops()) == (0, 0, [])
    finish(stage)


@pytest.mark.parametrize("seed", [105, 107])
def test_A9_a_lot_bought_in_parts_may_have_one_stop_after_the_other(seed):
    """0.18 are bought and sold again, which ends their stop; then 0.32, which get another."""
    stage = staged(STOP_LOSS_PCT=2.0, PAPER_SEED=seed)
    stage.rest()
    stage.fault("match", "partial", symbol=A, share="0.37")
    hit(stage, DEEP)
    stage.run(1)
    hit(stage, "100.0")
    stage.run(1)
    assert (stage.held(), stage.stops(), len(stage.entries())) == (0, [], 1)
    stage.to(A, DEEP, 2)
    assert [(o.qty, o.trigger) for o in stage.stops()] == [(D("0.32"), D("97.5"))]
    stage.agree()  # the ledger knows it
    stage.to(A, "97.4", 2)
    assert (stage.held(), stage.lots(), stage.stops()) == (0, [], [])
    finish(stage)


RACES = {
    "as it comes": [],
    "order last": [("ws", "reorder", {"kind": "private", "topic": "order", "window": 40})],
    "execution last": [("ws", "reorder", {"kind": "private", "topic": "execution", "window": 40})],
    "answer last": [("http", "delay", {"path": CANCEL, "ms": 1500})],
    "answer lost": [("http", "drop_after", {"path": CANCEL})],
}


@routes
@pytest.mark.parametrize("race", RACES)
def test_A10_a_cancel_that_races_a_fill_loses_and_the_fill_counts(route, race):
    stage = staged(route, **WIDE)
    stage.rest()
    stage.fault("match", "fill_before_cancel", symbol=A)
    for where, action, terms in RACES[race]:
        stage.fault(where, action, **terms, **({} if where == "http" else {"times": 4}))
    stage.to(A, AWAY, 4)
    (order,) = stage.created(NAME)
    assert order.status == "Filled"
    assert (lot(stage).bought, stage.held(), stage.entries()) == (D("0.50"), D("0.50"), [])
    assert [(o.side, o.qty) for o in stage.exits()] == [("Sell", D("0.50"))]
    assert stage.ledger.slots() == 1
    stage.run(10)
    assert len(stage.sent("cancel")) == 1
    finish(stage)


@routes
def test_A10_a_cancel_of_what_was_filled_unheard_is_refused_and_that_is_no_error(route):
    """The cancel is answered 110001 before the stream says why."""
    stage = staged(route, **WIDE)
    stage.rest()
    stage.fault("ws", "delay", kind="private", ms=2500, times=0, for_s=2)
    hit(stage, DEEP)
    stage.to(A, AWAY, 1)
    assert {r.ret_code for r in told(stage, "cancel", "refused")} == {110001}
    assert (len(stage.entries()), stage.ledger.slots(), stage.lots()) == (1, 1, [])
    stage.run(4)
    assert (lot(stage).bought, stage.entries(), stage.ledger.slots()) == (D("0.50"), [], 1)
    assert [o.qty for o in stage.at_venue()] == [D("0.50")]  # its exit
    cancels = len(stage.sent("cancel"))
    stage.run(10)
    assert len(stage.sent("cancel")) == cancels <= 3
    finish(stage)


@routes
def test_A11_a_cancel_that_never_arrives_is_sent_again_until_the_order_is_gone(route):
    stage = staged(route)
    stage.rest()
    stage.fault("http", "drop_before", path=CANCEL, times=3)
    stage.to(A, AWAY)
    for _ in range(2):
        stage.run(1)
        assert (len(stage.entries()), len(stage.at_venue()), stage.ledger.slots()) == (1, 1, 1)
    stage.until(lambda: not stage.entries(), 15)
    assert (stage.at_venue(), stage.ledger.slots()) == ([], 0)
    cancels = stage.sent("cancel")
    assert {r.order_link_id for r in cancels} == {NAME}
    assert len(cancels) == 4
    finish(stage)


@routes
@pytest.mark.parametrize("silent", [False, True], ids=["stream", "no stream"])
def test_A11_a_cancel_whose_answer_is_lost_is_done_once(route, silent):
    stage = staged(route)
    stage.rest()
    stage.fault("http", "drop_after", path=CANCEL)
    if silent:
        stage.fault("ws", "mute", kind="private", topic="order")
    stage.to(A, AWAY, 1)
    assert stage.at_venue() == []
    assert len(stage.entries()) == stage.ledger.slots() == silent  # unproven: the slot is kept
    stage.until(lambda: not stage.entries(), 12)
    assert stage.ledger.slots() == 0
    finish(stage)


@routes
def test_A11_an_order_whose_cancel_is_pending_may_still_fill(route):
    stage = staged(route, **WIDE)
    stage.rest()
    stage.fault("http", "drop_before", path=CANCEL, times=0)
    stage.to(A, AWAY, 3)
    hit(stage, DEEP)
    stage.run(2)
    assert (lot(stage).bought, stage.held(), stage.entries()) == (D("0.50"), D("0.50"), [])
    assert [o.qty for o in stage.exits()] == [D("0.50")]
    assert stage.ledger.slots() == 1
    finish(stage)


# Amending: at the end of the bar the band has moved and the entry goes along, from 99.5 to 99.4.


def amending(stage):
    """To where the next bar moves the entry."""
    stage.rest()
    stage.until(lambda: stage.sent("amend"), 50)
    (amend,) = stage.sent("amend")
    return amend


@routes
def test_A12_an_amend_that_races_a_fill_changes_nothing(route):
    stage = staged(route, **WIDE)
    stage.fault("match", "fill_before_amend", symbol=A)
    amend = amending(stage)
    stage.run(1)
    assert amend.price != D("99.5")
    assert (lot(stage).bought, lot(stage).entry_price) == (D("0.50"), D("99.5"))
    assert (stage.held(), stage.entries(), stage.ledger.slots()) == (D("0.50"), [], 1)
    (refused,) = told(stage, "amend", "refused")
    assert refused.ret_code == 110001
    assert [o.qty for o in stage.exits()] == [D("0.50")]
    finish(stage)


@routes
def test_A12_an_amend_without_an_answer_is_what_the_stream_says_it_is(route):
    stage = staged(route)
    stage.fault("http", "drop_after", path=AMEND)
    amend = amending(stage)
    stage.run(2)
    assert (
        [o.price for o in stage.entries()] == [o.price for o in stage.at_venue()] == [amend.price]
    )
    stage.run(10)
    assert [r.price for r in stage.sent("amend")].count(amend.price) == 1
    finish(stage)


@routes
def test_A12_an_amend_that_never_arrived_is_sent_again(route):
    stage = staged(route)
    stage.fault("http", "drop_before", path=AMEND)
    amend = amending(stage)
    assert [o.price for o in stage.entries()] == [o.price for o in stage.at_venue()] == [D("99.5")]
    stage.until(lambda: stage.at_venue()[0].price != D("99.5"), 6)
    stage.run(1)
    assert [o.price for o in stage.entries()] == [o.price for o in stage.at_venue()]
    assert stage.sent("amend")[1][:1] == amend[:1]
    finish(stage)


@routes
def test_A12_the_new_price_is_not_assumed_before_the_exchange_has_said_it(route):
    stage = staged(route, RECONCILE_SECONDS=7)  # not when the bar ends
    stage.rest()
    stage.fault("ws", "mute", kind="private", topic="order")
    stage.until(lambda: stage.at_venue()[0].price != D("99.5"), 50)
    assert told(stage, "amend", "accepted")
    assert [o.price for o in stage.entries()] == [D("99.5")]
    stage.until(lambda: stage.entries()[0].price == stage.at_venue()[0].price, 12)
    finish(stage)


@routes
def test_A12_an_exit_that_fills_before_it_grows_leaves_the_rest_to_another(route):
    """0.18 of 0.50 are bought, and sold at 100.0 just when the exit is to grow to 0.50."""
    stage = staged(route)
    stage.rest()
    stage.fault("match", "partial", symbol=A, share="0.37")
    hit(stage, DEEP)
    stage.run(1)
    assert [(o.order_link_id, o.qty) for o in stage.exits()] == [(f"{NAME}x0", D("0.18"))]
    stage.fault("match", "fill_before_amend", symbol=A)
    stage.to(A, DEEP, 2)
    assert (lot(stage).bought, lot(stage).sold, stage.held()) == (D("0.50"), D("0.18"), D("0.32"))
    assert [(o.order_link_id, o.qty) for o in stage.exits()] == [(f"{NAME}x1", D("0.32"))]
    stage.to(A, "100.1", 2)
    assert (stage.held(), stage.lots()) == (0, [])
    finish(stage)


def test_A12_an_exit_cut_short_ends_with_what_the_exchange_says_it_sold():
    """0.30 of the exit's 0.50 fill unheard, a person sells the other 0.20: nothing is left."""
    stage = staged(**WIDE)
    stage.fill()
    stage.fault("match", "partial", symbol=A, share="0.6")
    stage.fault("ws", "drop", kind="private", topic="execution")
    stage.fault("ws", "drop", kind="private", topic="order")
    hit(stage, "104.0")
    stage.fault("venue", "foreign_fill", symbol=A, side="Sell", qty="0.20")
    stage.run(12)
    assert stage.held() == 0
    assert (stage.lots(), stage.exits(), stage.ledger.slots()) == ([], [], 0)
    finish(stage)


def two_lots(**settings):
    """0.50 bought at 99.5 and, a bar later, 0.50 at 99.0."""
    stage = staged(**WIDE, **settings)
    stage.rest()
    stage.to(A, DEEP, 51)
    stage.to(A, "98.9", 2)
    assert [(x.entry_price, x.bought) for x in stage.lots()] == [
        (D("99.5"), D("0.50")),
        (99, D("0.50")),
    ]
    return stage


def test_A12_what_an_exit_sold_beyond_its_lot_comes_off_the_next_lot():
    """A person sells 0.20 of the older lot while its exit sells 0.50: 0.30 of the newer is left."""
    stage = two_lots()
    stage.fault("match", "fill_before_amend", symbol=A)
    stage.fault("venue", "foreign_fill", symbol=A, side="Sell", qty="0.20")
    stage.run(4)
    assert stage.held() == D("0.30")
    assert [(x.entry_id, x.bought - x.sold) for x in stage.lots()] == [(NEXT, D("0.30"))]
    assert [o.left for o in stage.at_venue()] == [D("0.30")]
    assert stage.ledger.slots() == 1
    stage.to(A, "103", 3)
    assert (stage.held(), stage.ledger.slots()) == (0, 0)
    finish(stage)


@pytest.mark.parametrize("seed", [105, 106, 107])
def test_A9_a_stop_that_sells_beyond_its_lot_takes_it_off_the_next_lot(seed):
    """A person sold 0.20 of the older lot; its stop at 97.5 is still for 0.50."""
    stage = two_lots(STOP_LOSS_PCT=2.0, PAPER_SEED=seed)
    assert sorted((o.trigger, o.qty) for o in stage.stops()) == [
        (97, D("0.50")),
        (D("97.5"), D("0.50")),
    ]
    stage.fault("venue", "foreign_fill", symbol=A, side="Sell", qty="0.20")
    stage.run(4)
    stage.to(A, "97.4", 4)
    left = sum(x.bought - x.sold for x in stage.lots())
    assert stage.held() == left == sum(o.left for o in stage.at_venue() if o.order_type == "Limit")
    stage.to(A, "96.9", 4)
    assert (stage.held(), stage.ledger.slots(), stage.stops()) == (0, 0, [])
    finish(stage)


# Several at once.


def test_A13_the_order_that_a_batch_refuses_is_released_and_no_other():
    stage = staged(**SLOW, PAPER_BALANCE_USDT=D(70))  # enough for one order of 50
    for symbol in (A, B):
        stage.to(symbol, NEAR)
    stage.run(2)
    plain, batched = stage.sent("create", A) + stage.sent("create", B)
    assert (plain.batch, batched.batch) == (False, True)
    (refused,) = told(stage, "create", "refused")
    assert (refused.order_link_id, refused.ret_code) == (batched.order_link_id, 110007)
    assert [len(stage.entries(symbol)) for symbol in (A, B)] == [1, 0]
    assert stage.ledger.slots() == 1
    stage.run(20)
    assert len(stage.sent("create", B)) == 1
    finish(stage)


def test_A13_a_batch_over_the_rate_limit_leaves_the_others_alone():
    stage = staged(**SLOW)
    stage.fault("http", "ret", path="/v5/order/create-batch", code=10006)
    for symbol in (A, B):
        stage.to(symbol, NEAR)
    stage.run(2)
    (refused,) = told(stage, "create", "refused")
    assert (refused.batch, refused.ret_code, refused.symbol) == (True, 10006, B)
    assert [len(stage.entries(symbol)) for symbol in (A, B)] == [1, 0]
    assert stage.ledger.slots() == 1
    stage.run(20)
    assert [len(stage.sent("create", symbol)) for symbol in (A, B)] == [1, 1]
    finish(stage)


@routes
@pytest.mark.parametrize("action", ["drop_before", "drop_after"])
@pytest.mark.parametrize("silent", [False, True], ids=["stream", "no stream"])
def test_A14_an_exit_that_is_unknown_is_never_joined_by_a_second_one(route, action, silent):
    """Exits may be sent again, by the same id: at no time do they sum to more than is held."""
    stage = staged(route)
    stage.rest()
    stage.fault("http", action, path=CREATE)
    if silent:
        stage.fault("ws", "mute", kind="private", topic="order")
    stage.to(A, DEEP)
    for _ in range(15):
        stage.run(1)
        exits = [order for order in stage.at_venue() if order.reduce_only]
        assert sum(order.left for order in exits) <= stage.held() == D("0.50")
        assert {r.order_link_id for r in stage.sent("create", kind=msg.EXIT)} == {f"{NAME}x0"}
    assert len(stage.created(f"{NAME}x0")) == 1
    stage.to(A, "100.1", 12)
    assert stage.held() == 0
    assert stage.lots() == []
    finish(stage)


def test_A14_the_opposite_signal_moves_the_unknown_exit_and_adds_none():
    """The upper band's quote is nearer than the take profit: the exit's new price, by its id."""
    stage = staged(**WIDE)
    stage.rest()
    stage.fault("http", "drop_after", path=CREATE)
    stage.fault("ws", "mute", kind="private", topic="order", for_s=15)
    stage.to(A, DEEP)
    stage.to(A, "100.4")
    for _ in range(15):
        stage.run(1)
        exits = [order for order in stage.at_venue() if order.side == "Sell"]
        assert sum(order.left for order in exits) <= stage.held() == D("0.50")
        assert all(order.reduce_only for order in exits)
    (leaves,) = stage.at_venue()
    assert (leaves.link_id, leaves.left) == (f"{NAME}x0", D("0.50"))
    assert D("100") < leaves.price < D("101")
    finish(stage)


# Others in the account.


def test_A15_a_foreign_position_counts_against_the_caps_and_blocks_its_symbol():
    stage = staged(MAX_SLOTS=2)
    stage.fault("venue", "foreign_fill", symbol=A, side="Buy", qty="0.30")
    stage.run(1)
    assert (stage.ledger.foreign[A], stage.ledger.slots()) == (D("0.30"), 1)
    for symbol in (A, B, C):
        stage.to(symbol, NEAR, 5)
    assert stage.sent("create", A) == []
    assert [len(stage.entries(symbol)) for symbol in (B, C)] == [1, 0]  # two slots in all
    assert stage.ledger.slots() == 2
    stage.run(50)
    assert (stage.held(), stage.at_venue()) == (D("0.30"), [])  # nobody manages it
    stage.fault("venue", "foreign_fill", symbol=A, side="Sell", qty="0.30")
    stage.run(1)
    assert stage.ledger.foreign[A] == 0
    assert len(stage.entries(A)) == 1  # there is room for its own entry again
    finish(stage)


def test_A15_a_foreign_order_is_never_touched_and_its_symbol_gets_no_entry():
    stage = staged()
    stage.fault("venue", "foreign_order", symbol=A, side="Buy", qty="0.30", price="95")
    stage.run(11)  # a round of reconciliation
    for symbol in (A, B):
        stage.to(symbol, NEAR, 5)
    assert [len(stage.sent("create", symbol)) for symbol in (A, B)] == [0, 1]
    stage.run(60)
    (foreign,) = stage.at_venue()
    assert (foreign.link_id, foreign.status, foreign.price) == ("", "New", D(95))
    assert stage.sent("cancel") == []
    finish(stage)


def test_A15_a_person_who_sells_our_lot_closes_it_oldest_first():
    stage = staged(**WIDE)
    stage.fill()
    stage.fault("venue", "foreign_fill", symbol=A, side="Sell", qty="0.20")
    stage.run(2)
    assert (lot(stage).bought - lot(stage).sold, stage.ledger.foreign[A]) == (D("0.30"), 0)
    assert [o.left for o in stage.at_venue()] == [D("0.30")]
    stage.fault("venue", "foreign_fill", symbol=A, side="Sell", qty="0.40")
    stage.run(2)
    assert (stage.lots(), stage.exits(), stage.ledger.foreign[A]) == ([], [], D("-0.10"))
    assert stage.ledger.slots() == 1
    finish(stage)


@routes
def test_A15_a_person_who_trades_against_a_resting_entry_leaves_us_the_rest(route):
    """0.10 are sold by hand, then the entry buys 0.50 before its cancel gets through: 0.40."""
    stage = staged(route, **WIDE)
    stage.rest()
    stage.fault("http", "drop_before", path=CANCEL, times=0)
    stage.fault("venue", "foreign_fill", symbol=A, side="Sell", qty="0.10")
    stage.run(1)
    assert stage.sent("cancel")
    stage.to(A, DEEP, 3)
    assert stage.held() == D("0.40")
    assert sum(x.bought - x.sold for x in stage.lots()) == D("0.40")
    assert [o.left for o in stage.at_venue()] == [D("0.40")]
    assert (stage.ledger.foreign[A], stage.ledger.slots()) == (0, 1)
    stage.to(A, "103.5", 3)
    assert (stage.held(), stage.ledger.slots()) == (0, 0)
    stage.venue.auditor.lines.clear()  # V7: through zero, which nobody could prevent
    finish(stage)


def to_upper(stage):
    """Near the upper band, wherever that is by now."""
    upper = stage.said(msg.Quote, symbol=A)[-1].upper
    stage.to(A, round(D(upper) * D("0.998"), 1), 3)


def test_A16_the_opposite_band_sells_what_is_held_before_it_opens_anything():
    """An order of ours never crosses zero: exit first, then flat, then the other side."""
    stage = staged(**WIDE)
    stage.fill()
    stage.run(50)  # a later bar: nothing but the lot stands in the way
    to_upper(stage)
    assert stage.said(msg.Quote, symbol=A)[-1].zone == msg.ARM
    assert (stage.entries(), stage.held()) == ([], D("0.50"))
    assert {request.side for request in stage.sent("create")} == {"Buy"}
    (leaves,) = stage.exits()
    assert (leaves.side, leaves.qty) == ("Sell", D("0.50"))
    assert leaves.price < D("102")  # the upper band's quote, not 3.2 % away
    stage.to(A, leaves.price + 1, 2)
    assert (stage.held(), stage.lots()) == (0, [])
    stage.run(60)  # its first try may have met the price that sold the lot
    to_upper(stage)
    (entry,) = stage.entries()
    assert entry.side == "Sell"
    stage.to(A, entry.price + 1, 2)
    assert stage.held() == -entry.qty
    sides = [(o.side, o.reduce_only) for o in stage.venue.matching.orders.values() if o.filled]
    assert sides == [("Buy", False), ("Sell", True), ("Sell", False)]
    finish(stage)
