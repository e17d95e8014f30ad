"""faults: each verb of the control socket does what it says, when it is due, and heals."""

import contextlib
import json
from collections import Counter
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.paper.faults import ACTIONS, NAMES, STEP_S, BadFault, checked, random_plan
from services.paper.order import Row
from shared.messages import entry_id
from tests.test_venue import (
    OTHER,
    START,
    SYMBOL,
    SYMBOLS,
    TAKER,
    Books,
    Desk,
    Trader,
    Wire,
    adds_up,
    auth_frame,
    batch,
    errors,
    gapped,
    only,
    order,
    synthetic,
    taking,
)

CREATE = "/v5/order/create"
ACK_S = 0.001  # PAPER_ACK_MS


@pytest.fixture
def desk() -> Desk:
    return Desk()


def place(desk: Desk, **change: Any) -> Any:
    """The whole response to a create."""
    return desk.raw("POST", CREATE, json.dumps({"category": "linear", **order(**change)}))


def links(desk: Desk) -> list[str]:
    """Who rests, oldest first."""
    return [one.link_id for one in reversed(desk.matching.open_orders())]


def state(desk: Desk, order_id: str) -> tuple[str, str]:
    row = only(desk.list("/v5/order/realtime", orderId=order_id))
    return row["orderStatus"], row["rejectReason"]


def test_every_verb_has_a_test_of_its_own() -> None:
    names = [name for name in globals() if name.startswith("test_")]
    for where, actions in ACTIONS.items():
        for action in actions:
            assert any(name.startswith(f"test_{where}_{action}_") for name in names), action


# http.


def test_http_drop_before_loses_the_request(desk: Desk) -> None:
    desk.fault("http", "drop_before", path=CREATE)
    assert place(desk).drop
    assert links(desk) == []
    assert desk.create()["retCode"] == 0  # once


def test_http_drop_after_loses_the_answer_to_what_was_done(desk: Desk) -> None:
    desk.fault("http", "drop_after", path=CREATE)
    assert place(desk, orderLinkId="mine").drop
    assert links(desk) == ["mine"]
    assert desk.create(orderLinkId="mine")["retCode"] == 110072  # whoever sends it again learns


def test_http_delay_holds_the_answer_back(desk: Desk) -> None:
    desk.fault("http", "delay", path=CREATE, ms=1500)
    late = place(desk)
    assert late.delay_s == pytest.approx(ACK_S + 1.5)
    assert (json.loads(late.body)["retCode"], len(links(desk))) == (0, 1)
    assert place(desk).delay_s == pytest.approx(ACK_S)


def test_http_status_answers_with_it_and_does_nothing(desk: Desk) -> None:
    desk.fault("http", "status", status=503)
    desk.fault("http", "status")
    assert [place(desk).status for _ in range(3)] == [503, 502, 200]
    assert len(links(desk)) == 1


@pytest.mark.parametrize(("after", "made"), [(False, 0), (True, 1)])
def test_http_ret_answers_with_a_code_before_or_after_it_was_done(
    desk: Desk, after: bool, made: int
) -> None:
    desk.fault("http", "ret", path=CREATE, code=10016, text="Server error", after=after)
    body = desk.create()
    assert (body["retCode"], body["retMsg"], body["result"]) == (10016, "Server error", {})
    assert len(links(desk)) == made


def test_http_garbage_is_no_json(desk: Desk) -> None:
    desk.fault("http", "garbage", path=CREATE)
    response = place(desk)
    assert (response.status, len(links(desk))) == (200, 1)
    with pytest.raises(ValueError):
        json.loads(response.body)


def test_http_truncate_cuts_the_answer_short(desk: Desk) -> None:
    desk.fault("http", "truncate", path=CREATE)
    response = place(desk)
    assert (response.truncate, response.drop, len(links(desk))) == (True, False, 1)
    assert not place(desk).truncate


def test_http_dup_does_it_twice_and_nobody_is_to_blame(desk: Desk) -> None:
    """As a proxy that repeats a request: 110072, one order."""
    link = entry_id(SYMBOL, "Buy", START)
    desk.fault("http", "dup", path=CREATE, times=2)
    assert desk.create(orderLinkId=link, price="9.0")["retCode"] == 110072
    assert links(desk) == [link]
    assert desk.create()["retCode"] == 0
    assert links(desk) == [link, "", ""]  # without an id there are two
    assert list(desk.venue.auditor.lines) == []


def test_http_stale_answers_a_read_as_it_was_a_while_ago(desk: Desk) -> None:
    def positions() -> list[str]:
        return [row["size"] for row in desk.list("/v5/position/list", settleCoin="USDT")]

    desk.made(**taking(qty="3"))
    assert positions() == ["3"]
    desk.run(20)
    desk.made(**taking(qty="4"))
    assert positions() == ["7"]
    desk.run(20)
    desk.made(**taking(qty="2"))
    desk.fault("http", "stale", path="/v5/position/list", age_s=30)
    desk.fault("http", "stale", path="/v5/position/list", age_s=15)
    desk.fault("http", "stale", path="/v5/position/list", age_s=60)  # there is none so old
    assert [positions() for _ in range(4)] == [["3"], ["7"], ["9"], ["9"]]


def test_http_stale_is_of_the_same_question_only(desk: Desk) -> None:
    desk.list("/v5/position/list", symbol=OTHER)
    desk.run(10)
    desk.fault("http", "stale", path="/v5/position/list", age_s=5)
    assert only(desk.list("/v5/position/list", symbol=SYMBOL))["symbol"] == SYMBOL


def test_http_partial_does_so_many_of_a_batch_and_shows_so_many_of_a_list(desk: Desk) -> None:
    desk.fault("http", "partial", path="/v5/order/create-batch", k=2)
    body = desk.post("/v5/order/create-batch", request=batch("99.0", "98.0", "97.0", "96.0"))
    assert errors(body) == [0, 0, 10006, 10006]
    assert links(desk) == ["b0", "b1"]
    desk.fault("http", "partial", path="/v5/order/realtime", k=1)
    shown = desk.get("/v5/order/realtime", symbol=SYMBOL)
    assert ([row["orderLinkId"] for row in shown["list"]], shown["nextPageCursor"]) == (["b1"], "")
    assert len(desk.list("/v5/order/realtime", symbol=SYMBOL)) == 2


@pytest.mark.parametrize(
    ("action", "terms", "code", "made", "late_s"),
    [
        ("drop_before", {}, None, 0, 0),
        ("status", {}, None, 0, 0),
        ("drop_after", {}, None, 1, 0),
        ("garbage", {}, None, 1, 0),
        ("truncate", {}, None, 1, 0),
        ("ret", {"code": 10016}, 10016, 0, 0),
        ("ret", {"code": 10016, "after": True}, 10016, 1, 0),
        ("dup", {}, 110072, 1, 0),
        ("delay", {"ms": 700}, 0, 1, 0.7),
    ],
)
def test_the_trade_socket_has_the_faults_of_its_endpoint(
    desk: Desk, action: str, terms: Row, code: int | None, made: int, late_s: float
) -> None:
    wire, link = desk.trader(), entry_id(SYMBOL, "Buy", START)
    desk.fault("http", action, path=CREATE, **terms)
    wire.send(desk.order_op("order.create", "r", **order(orderLinkId=link, price="9.0")))
    told = wire.timed()
    assert links(desk) == [link] * made
    assert list(desk.venue.auditor.lines) == []  # it was not the bot
    assert [frame["retCode"] for _, frame in told] == ([] if code is None else [code])
    for at_s, frame in told:
        assert (frame["reqId"], frame["op"]) == ("r", "order.create")
        assert at_s == pytest.approx(desk.now.mono_s + ACK_S + late_s)
    wire.send(desk.order_op("order.cancel", "s", symbol=SYMBOL, orderLinkId=link))
    assert len(wire.heard()) == 1  # another endpoint


# Which request, and how often.


def struck(desk: Desk, count: int, method: str = "GET", path: str = "/v5/market/time") -> list[int]:
    """Which of so many requests were struck, from 1."""
    answers = [desk.raw(method, path, "").status for _ in range(count)]
    return [place for place, status in enumerate(answers, 1) if status == 502]


@pytest.mark.parametrize(
    ("terms", "hit"),
    [
        ({}, [1]),  # once
        ({"times": 3}, [1, 2, 3]),
        ({"times": 0}, [1, 2, 3, 4, 5, 6]),  # until healed
        ({"nth": 4}, [4]),
        ({"nth": 3, "times": 2}, [3, 4]),
        ({"p": 1}, [1, 2, 3, 4, 5, 6]),
        ({"p": 0}, []),
        ({"p": 1, "times": 2}, [1, 2]),
        ({"path": "/v5/market"}, [1]),
        ({"path": "/v5/order"}, []),
        ({"method": "GET"}, [1]),
        ({"method": "POST"}, []),
    ],
    ids=str,
)
def test_a_fault_strikes_what_it_matches_as_often_as_it_says(
    desk: Desk, terms: Row, hit: list[int]
) -> None:
    desk.fault("http", "status", **terms)
    assert struck(desk, 6) == hit
    assert desk.venue.status()["struck"] == len(hit)


def test_a_fault_lives_for_as_long_as_it_says(desk: Desk) -> None:
    desk.fault("http", "status", times=0, for_s=5)
    desk.run(4.9)
    assert struck(desk, 1) == [1]
    desk.run(0.2)
    assert struck(desk, 1) == []
    assert desk.venue.status()["rules"] == []


def test_chance_is_by_seed() -> None:
    def hits(seed: int) -> list[int]:
        desk = Desk(PAPER_SEED=seed)
        desk.fault("http", "status", p=0.3)
        return struck(desk, 200)

    assert hits(1) == hits(1) != hits(2)
    assert 35 < len(hits(1)) < 85  # 200 * 0.3 = 60, and four times its deviation of 6.5


def test_the_first_rule_that_matches_strikes_and_the_next_has_the_next(desk: Desk) -> None:
    desk.fault("http", "status", status=502)
    desk.fault("http", "status", status=503)
    assert [desk.raw("GET", "/v5/market/time", "").status for _ in range(3)] == [502, 503, 200]


# ws.


def listening(desk: Desk) -> tuple[Wire, Wire, Wire]:
    """Public, private and trade, each of which has something to hear."""
    public = desk.public(f"kline.1.{SYMBOL}", f"tickers.{SYMBOL}")
    private = desk.private("order", "execution", "wallet", "position")
    trade = desk.trader()
    public.heard()
    return public, private, trade


def busy(desk: Desk, *wires: Wire, seconds: int = 3) -> list[list[Any]]:
    """What each hears of some seconds of orders and trades, pongs included."""
    for number in range(seconds):
        desk.made()
        for wire in wires:
            if wire.session.kind == "trade":
                req_id = f"{desk.at_ms}-{number}"
                wire.send(desk.order_op("order.create", req_id, **order()))
            wire.send({"op": "ping"})
        desk.run(1)
    return [wire.heard() for wire in wires]


def test_ws_mute_loses_all_that_is_said_and_not_what_is_heard(desk: Desk) -> None:
    wires = listening(desk)
    desk.fault("ws", "mute", for_s=10)
    assert busy(desk, *wires) == [[], [], []]
    assert len(links(desk)) == 6  # three by REST, and three by the trade socket: it was heard
    desk.run(8)
    assert all(busy(desk, *wires))


def test_ws_mute_can_be_of_one_kind_or_topic(desk: Desk) -> None:
    public, private, _ = listening(desk)
    desk.fault("ws", "mute", kind="private", topic="order")
    told, account = busy(desk, public, private)
    assert {frame.get("topic") for frame in account} == {"position", None}
    assert {frame.get("topic") for frame in told} >= {f"kline.1.{SYMBOL}", None}


def test_ws_keep_pong_loses_all_but_the_pongs(desk: Desk) -> None:
    public, private, _ = listening(desk)
    desk.fault("ws", "keep_pong")
    told = busy(desk, public, private)
    assert [len(frames) for frames in told] == [3, 3]
    assert {frame["op"] for frames in told for frame in frames} == {"ping", "pong"}


def test_ws_half_open_hears_nothing_and_says_nothing(desk: Desk) -> None:
    wires = listening(desk)
    desk.fault("ws", "half_open", kind="trade")
    told = busy(desk, *wires)
    assert [bool(frames) for frames in told] == [True, True, False]
    assert len(links(desk)) == 3  # by REST: what the trade socket said was lost
    assert wires[2].session.heard_s == 0.0


@pytest.mark.parametrize(
    ("terms", "codes"),
    [
        ({}, [1006, 1006, 1006]),
        ({"kind": "private"}, [0, 1006, 0]),
        ({"kind": "public", "code": 1001}, [1001, 0, 0]),
    ],
    ids=str,
)
def test_ws_close_hangs_up(desk: Desk, terms: Row, codes: list[int]) -> None:
    wires = listening(desk)
    desk.fault("ws", "close", **terms)
    assert [wire.session.close_code for wire in wires] == codes
    assert {wire.session for wire, code in zip(wires, codes, strict=True) if code} <= (
        desk.venue.sessions.dirty
    )
    assert desk.venue.status()["rules"] == []  # it was an act, not a rule


def orders_heard(wire: Wire) -> list[str]:
    return [row["orderLinkId"] for frame in wire.heard("order") for row in frame["data"]]


def made(desk: Desk, count: int) -> list[str]:
    """So many orders, o0 and on."""
    for number in range(count):
        desk.made(orderLinkId=f"o{number}")
    return [f"o{number}" for number in range(count)]


def test_ws_drop_loses_so_many_frames(desk: Desk) -> None:
    wire = desk.private("order")
    desk.fault("ws", "drop", topic="order", times=3, nth=2)
    made(desk, 6)
    assert orders_heard(wire) == ["o0", "o4", "o5"]


def test_ws_dup_says_it_twice(desk: Desk) -> None:
    wire = desk.private("order")
    desk.fault("ws", "dup", topic="order", times=2)
    made(desk, 3)
    assert orders_heard(wire) == ["o0", "o0", "o1", "o1", "o2"]


def test_ws_delay_holds_a_frame_back_and_with_it_all_behind_it(desk: Desk) -> None:
    wire = desk.private("order")
    desk.fault("ws", "delay", topic="order", ms=500)
    made(desk, 3)
    times = [at_s for at_s, _ in wire.timed()]
    assert times[0] == pytest.approx(0.5, abs=2 * ACK_S)
    assert times == sorted(times)  # one connection is in order


def test_ws_reorder_lets_frames_overtake_each_other_and_loses_none() -> None:
    seen = set()
    for seed in range(8):
        desk = Desk(PAPER_SEED=seed)
        wire = desk.private("order")
        desk.fault("ws", "reorder", topic="order", window=4, times=8)
        whole = made(desk, 10)
        told = wire.timed()
        times = [at_s for at_s, _ in told]
        assert times == sorted(times) and times[-1] <= 4 * STEP_S + 20 * ACK_S
        heard = [row["orderLinkId"] for _, frame in told for row in frame["data"]]
        assert sorted(heard) == whole
        assert heard.index("o8") < heard.index("o9")  # they were not struck
        seen.add(tuple(heard))
    assert len(seen) == 8 and tuple(whole) not in seen


@pytest.mark.parametrize("end", ["heal", "time"])
def test_ws_reorder_loses_no_frame_when_it_ends(desk: Desk, end: str) -> None:
    wire = desk.private("order")
    desk.fault("ws", "reorder", topic="order", window=4, times=0, for_s=5)
    whole = made(desk, 3)  # two more would make a window
    if end == "heal":
        desk.venue.heal(desk.now)
    desk.run(6)
    desk.made(orderLinkId="later")
    assert sorted(orders_heard(wire)) == sorted([*whole, "later"])


def test_ws_stale_replay_says_something_old_again() -> None:
    desk = Desk()
    wire = desk.private("order")
    desk.fault("ws", "stale_replay", topic="order", times=20)
    whole = made(desk, 20)
    heard = orders_heard(wire)
    assert len(heard) == 40
    assert heard[::2] == whole  # all that is new, in its order
    old = [whole.index(link) for link in heard[1::2]]
    assert all(index <= place for place, index in enumerate(old))
    assert sum(index < place for place, index in enumerate(old)) > 10


def test_ws_garbage_is_no_json(desk: Desk) -> None:
    wire = desk.private("order")
    desk.fault("ws", "garbage", topic="order")
    made(desk, 2)
    (_, broken), (_, whole) = wire.session.outbox
    with pytest.raises(ValueError):
        json.loads(broken)
    assert json.loads(whole)["data"][0]["orderLinkId"] == "o1"


def test_ws_ts_offset_moves_the_stamps_of_a_push() -> None:
    def heard(*faults: Row) -> list[Any]:
        desk = Desk()
        wire = desk.public(f"kline.1.{SYMBOL}", f"publicTrade.{SYMBOL}", f"tickers.{SYMBOL}")
        wire.heard()
        for fault in faults:
            desk.fault("ws", "ts_offset", **fault)
        desk.run(2)
        return wire.heard()

    right, moved = heard(), heard({"kind": "public", "ms": -5000, "times": 0})
    assert len(moved) == len(right) > 3
    for one, other in zip(moved, right, strict=True):
        assert one.pop("ts") == other.pop("ts") - 5000
        rows = zip(one["data"], other["data"], strict=True) if "ticker" not in one["topic"] else ()
        for row, same in rows:
            for name in {"timestamp", "T"} & set(row):
                assert row.pop(name) == same.pop(name) - 5000
        assert one == other


@pytest.mark.parametrize("actions", [("garbage", "ts_offset"), ("ts_offset", "garbage")])
def test_a_frame_can_be_broken_and_shifted(desk: Desk, actions: tuple[str, str]) -> None:
    wire = desk.private("order")
    for action in actions:
        desk.fault("ws", action, topic="order", ms=5)
    made(desk, 2)
    (_, broken), (_, whole) = wire.session.outbox
    with pytest.raises(ValueError):
        json.loads(broken)
    assert json.loads(whole)["data"][0]["orderLinkId"] == "o1"


BENDS = ("dup", "delay", "reorder", "stale_replay", "garbage", "ts_offset", "drop", "keep_pong")
TERMS = st.fixed_dictionaries(
    {"action": st.sampled_from(BENDS)},
    optional={"times": st.integers(0, 5), "nth": st.integers(1, 4), "window": st.integers(1, 4)}
    | {"p": st.sampled_from((0, 0.5, 1)), "ms": st.integers(-9, 900), "for_s": st.integers(1, 3)},
)


@given(st.lists(TERMS, min_size=1, max_size=4), st.integers(0, 3))
@settings(max_examples=80, deadline=None)
def test_any_faults_together_only_do_what_they_can_do_to_frames(
    rules: list[Row], seed: int
) -> None:
    desk = Desk(PAPER_SEED=seed)
    public, private, trade = listening(desk)
    for rule in rules:
        desk.fault("ws", **rule)
    for wire in (public, private, trade):
        wire.send({"op": "ping"})
    whole = [*made(desk, 4)]
    desk.run(2)
    frames = [at_s for at_s, _ in private.session.outbox]
    assert frames == sorted(frames)
    said = [frame for _, frame in private.session.outbox]
    actions = {rule["action"] for rule in rules}
    heard = Counter[str]()
    for frame in said:
        try:
            message = json.loads(frame)
        except ValueError:
            assert "garbage" in actions
            continue
        rows = message.get("data", []) if message.get("topic") == "order" else []
        heard.update(row["orderLinkId"] for row in rows)
    assert set(heard) <= set(whole)
    if not actions & {"drop", "garbage", "reorder", "keep_pong"}:
        assert set(heard) == set(whole)
    if not actions & {"dup", "stale_replay"}:
        assert set(heard.values()) <= {1}


# match.


def test_match_partial_fills_a_part_of_what_a_trade_goes_through(desk: Desk) -> None:
    desk.hold()
    order_id = desk.made(qty="10")
    desk.fault("match", "partial", symbol=SYMBOL, share=0.37)
    desk.trade("98.0")
    row = only(desk.list("/v5/order/realtime", orderId=order_id))
    assert (row["orderStatus"], row["cumExecQty"]) == ("PartiallyFilled", "3")  # 3.7, in lots of 1
    desk.post("/v5/order/cancel", symbol=SYMBOL, orderId=order_id)
    row = only(desk.list("/v5/order/realtime", orderId=order_id))
    assert (row["orderStatus"], row["cumExecQty"], row["leavesQty"]) == ("Cancelled", "3", "0")
    assert desk.matching.wallet.position(SYMBOL).size == 3


def test_match_partial_is_of_its_symbol_alone(desk: Desk) -> None:
    desk.hold()
    desk.fault("match", "partial", symbol=OTHER)
    order_id = desk.made(qty="10")
    desk.trade("98.0")
    assert state(desk, order_id)[0] == "Filled"


def test_match_fill_before_cancel_says_filled_twice(desk: Desk) -> None:
    wire = desk.private("order", "execution")
    order_id = desk.made(orderLinkId="mine", qty="3")
    desk.fault("match", "fill_before_cancel")
    assert desk.cancel("mine")["retCode"] == 0  # the ack says nothing
    frames = wire.heard()
    rows = [row for f in frames if f["topic"] == "order" for row in f["data"]]
    assert [(row["orderStatus"], row["rejectReason"], row["cancelType"]) for row in rows] == [
        ("New", "EC_NoError", "UNKNOWN"),
        ("Filled", "EC_NoError", "UNKNOWN"),
        ("Filled", "EC_OrigClOrdIDDoesNotExist", "CancelByUser"),
    ]
    fill = only([row for f in frames if f["topic"] == "execution" for row in f["data"]])
    assert (fill["orderId"], fill["execQty"], fill["isMaker"]) == (order_id, "3", True)
    assert desk.cancel("mine")["retCode"] == 110001
    assert desk.venue.auditor.breaches == 0


def test_match_fill_before_cancel_of_an_exit_that_is_larger_than_the_position(desk: Desk) -> None:
    """What there is gets filled, and the order ends once."""
    desk.made(**taking(qty="5"))
    wire = desk.private("order")
    order_id = desk.made(side="Sell", price="103.0", qty="5", reduceOnly=True, orderLinkId="exit")
    desk.made(**taking(side="Sell", qty="2"))
    desk.fault("match", "fill_before_cancel")
    desk.cancel("exit")
    rows = [row for frame in wire.heard() for row in frame["data"] if row["orderId"] == order_id]
    ends = [row["orderStatus"] for row in rows][-2:]
    assert (ends, rows[-1]["cumExecQty"]) == (["PartiallyFilled", "Cancelled"], "3")
    assert list(desk.venue.auditor.lines) == []


def test_match_fill_before_amend_refuses_the_amend(desk: Desk) -> None:
    order_id = desk.made(qty="3")
    desk.fault("match", "fill_before_amend")
    body = desk.post("/v5/order/amend", symbol=SYMBOL, orderId=order_id, price="98.0")
    assert (body["retCode"], body["retMsg"]) == (
        110001,
        "order not exists or too late to replace",
    )
    row = only(desk.list("/v5/order/realtime", orderId=order_id))
    assert (row["orderStatus"], row["price"]) == ("Filled", "99.0")


def test_match_reject_after_ack_rejects_by_the_stream(desk: Desk) -> None:
    wire = desk.private("order")
    desk.fault("match", "reject_after_ack", reason="EC_BySelfMatch")
    desk.fault("match", "reject_after_ack")
    ids = [desk.made() for _ in range(3)]  # retCode 0 each
    rows = [row for frame in wire.heard() for row in frame["data"]]
    assert [row["orderId"] for row in rows] == ids
    assert [(row["orderStatus"], row["rejectReason"]) for row in rows] == [
        ("Rejected", "EC_BySelfMatch"),
        ("Rejected", "EC_ReachRiskPriceLimit"),
        ("New", "EC_NoError"),
    ]
    assert desk.venue.auditor.breaches == 0


def test_match_gap_moves_the_price_at_once_and_fills_what_it_passes(desk: Desk) -> None:
    order_id = desk.made(price="99.0")
    desk.hold()
    desk.fault("match", "gap", symbol=SYMBOL, pct=-2)
    assert desk.matching.last[SYMBOL] == 98
    assert desk.matching.last[OTHER] == 100
    assert state(desk, order_id)[0] == "Filled"
    assert desk.venue.status()["rules"] == []


@pytest.mark.parametrize("pct", [-100, -1000, -99.99])
def test_match_gap_never_takes_the_price_to_nothing(desk: Desk, pct: float) -> None:
    desk.hold()
    desk.fault("match", "gap", symbol=SYMBOL, pct=pct)
    desk.run(61)
    assert desk.matching.last[SYMBOL] >= Decimal("0.1")  # a tick
    assert float(only(desk.list("/v5/market/tickers", symbol=SYMBOL))["lastPrice"]) > 0


# venue.


def test_venue_restart_drops_everybody_and_forgets_what_has_ended(desk: Desk) -> None:
    wires = listening(desk)
    desk.made(orderLinkId="open")
    desk.made(orderLinkId="ended")
    desk.cancel("ended")
    desk.run(1)
    desk.fault("venue", "restart", ms=2000)
    assert {wire.session.close_code for wire in wires} == {1006}
    assert desk.raw("GET", "/v5/market/time", "").drop
    desk.run(1.9)
    assert desk.raw("GET", "/v5/market/time", "").drop
    desk.run(0.2)
    assert desk.raw("GET", "/v5/market/time", "").status == 200

    def shown(**terms: Any) -> list[str]:
        found = desk.list("/v5/order/realtime", settleCoin="USDT", **terms)
        return [row["orderLinkId"] for row in found]

    assert (shown(), shown(openOnly=1)) == (["open"], [])
    assert desk.list("/v5/order/realtime", orderLinkId="ended") == []
    assert only(desk.list("/v5/order/history"))["orderLinkId"] == "ended"  # it knows
    desk.cancel("open")
    assert shown(openOnly=1) == ["open"]  # what ends later is there again
    assert desk.create(orderLinkId="ended")["retCode"] == 110072


def test_venue_maintenance_is_503_and_told_by_system_status(desk: Desk) -> None:
    wires = listening(desk)
    status = "/v5/system/status"
    assert desk.list(status) == []
    desk.fault("venue", "maintenance", ms=3000)
    assert {wire.session.close_code for wire in wires} == {1001}
    assert place(desk).status == 503
    assert only(desk.list(status))["state"] == "ongoing"
    desk.run(3)
    assert desk.create()["retCode"] == 0
    assert desk.list(status) == []


def test_venue_clock_offset_moves_the_wall_clock_alone(desk: Desk) -> None:
    wall_ms = desk.now.wall_ms
    desk.fault("venue", "clock_offset", ms=-7000, for_s=10)
    assert desk.now.wall_ms == wall_ms - 7000
    assert int(desk.get("/v5/market/time")["timeNano"]) // 1_000_000 == wall_ms - 7000
    assert desk.now.market_ms == START
    stamp = str(wall_ms)  # a client that did not notice: in the future by 7 s
    response = desk.raw("GET", "/v5/account/info", "", **{"X-BAPI-TIMESTAMP": stamp})
    assert json.loads(response.body)["retCode"] in (10002, 10004)
    desk.run(9.9)
    assert desk.now.wall_ms == START + 9_900 - 7000
    desk.run(0.2)
    assert desk.now.wall_ms == START + 10_100


@pytest.mark.parametrize(
    ("reset", "wait_ms"), [("", (1, 1001)), ("past", (-9000, -1)), ("missing", None)]
)
def test_venue_rate_limit_takes_the_limit_away_for_a_while(
    reset: str, wait_ms: tuple[int, int] | None
) -> None:
    desk = Desk(PAPER_RATE_LIMIT=10)
    desk.fault("venue", "rate_limit", limit=2, reset=reset, ms=5000)
    codes = [desk.create()["retCode"] for _ in range(3)]
    assert codes == [0, 0, 10006]
    assert desk.headers["X-Bapi-Limit"] == "2"
    at_ms = desk.headers.get("X-Bapi-Limit-Reset-Timestamp")
    if wait_ms is None:
        assert at_ms is None
    else:
        assert wait_ms[0] <= int(str(at_ms)) - desk.now.wall_ms <= wait_ms[1]
    assert list(desk.venue.auditor.lines) == []  # nobody could know
    desk.run(5)
    assert [desk.create()["retCode"] for _ in range(11)] == [0] * 10 + [10006]
    assert desk.headers["X-Bapi-Limit"] == "10"
    assert "X-Bapi-Limit-Reset-Timestamp" in desk.headers


def test_venue_ip_ban_is_403_for_ten_minutes_or_as_long_as_it_says(desk: Desk) -> None:
    desk.fault("venue", "ip_ban")
    desk.run(599)
    assert place(desk).status == 403
    assert desk.venue.sessions.connect("/v5/private", "", desk.now) is None
    desk.run(2)
    assert place(desk).status == 200
    desk.fault("venue", "ip_ban", ms=1000)
    assert place(desk).status == 403
    desk.run(1)
    assert place(desk).status == 200


def test_venue_delist_ends_orders_and_settles_the_position(desk: Desk) -> None:
    desk.made(**taking(qty="5", takeProfit="110.0"))
    desk.made(orderLinkId="rests")
    desk.made(orderLinkId="waits", triggerPrice="105.0", triggerDirection=1)
    wire = desk.private("order", "execution")
    desk.fault("venue", "delist", symbol=SYMBOL)
    rows = [row for f in wire.heard() if f["topic"] == "order" for row in f["data"]]
    gone = {row["orderLinkId"] or row["stopOrderType"]: row for row in rows}
    for name in ("rests", "waits", "TakeProfit"):
        assert gone[name]["orderStatus"] in ("Cancelled", "Deactivated")
    fill = only(desk.list("/v5/execution/list", execType="Delivery"))
    assert (fill["side"], fill["execQty"], Decimal(fill["execPrice"])) == ("Sell", "5", 100)
    assert desk.matching.wallet.held() == []
    assert desk.matching.open_orders() == []
    assert desk.create()["retCode"] == 110074
    names = [row["symbol"] for row in desk.list("/v5/market/instruments-info")]
    assert names == list(SYMBOLS[1:])
    closed = only(desk.list("/v5/market/instruments-info", status="Closed"))
    assert (closed["symbol"], closed["status"]) == (SYMBOL, "Closed")
    tickers = desk.list("/v5/market/tickers")
    assert [row["symbol"] for row in tickers] == list(SYMBOLS[1:])


def test_venue_delist_stops_the_symbols_market() -> None:
    desk = Desk(gapped())  # every minute has another price
    symbol = desk.venue.public.symbols[0]
    wire = desk.public(f"publicTrade.{symbol}")
    desk.fault("venue", "delist", symbol=symbol)
    before = desk.matching.last[symbol]
    desk.run(120)
    assert wire.heard(f"publicTrade.{symbol}") == []
    assert desk.matching.last[symbol] == before < desk.matching.last[OTHER]


def test_venue_list_lets_a_symbol_trade_again() -> None:
    desk = Desk(gapped())
    desk.fault("venue", "delist", symbol=SYMBOL)
    desk.run(60)
    desk.fault("venue", "list", symbol=SYMBOL)
    assert desk.create()["retCode"] == 0
    assert len(desk.list("/v5/market/instruments-info")) == 3
    desk.run(60)
    assert desk.matching.last[SYMBOL] > 100


def test_venue_instrument_update_changes_the_grid_under_resting_orders(desk: Desk) -> None:
    order_id = desk.made(price="99.1", qty="3")
    grid = {"tick_size": "0.5", "qty_step": "2", "min_order_qty": "4", "max_order_qty": "100"}
    desk.fault("venue", "instrument_update", symbol=SYMBOL, **grid)
    row = only(desk.list("/v5/market/instruments-info", symbol=SYMBOL))
    lots = row["lotSizeFilter"]
    assert (row["priceFilter"]["tickSize"], lots["qtyStep"]) == ("0.5", "2")
    assert (lots["minOrderQty"], lots["maxOrderQty"]) == ("4", "100")
    assert state(desk, order_id)[0] == "New"  # it stays
    for wrong in ({"price": "99.1"}, {"qty": "5"}, {"qty": "2"}, {"qty": "102"}):
        assert desk.create(**{"price": "99.5", "qty": "4"} | wrong)["retCode"] == 10001
    assert desk.create(price="99.5", qty="4")["retCode"] == 0
    assert desk.create(symbol=OTHER, price="99.1")["retCode"] == 0
    desk.run(61)
    assert state(desk, order_id)[0] == "New"
    desk.trade("99.0")
    assert state(desk, order_id)[0] == "Filled"


def test_venue_price_band_moves_the_limits(desk: Desk) -> None:
    desk.fault("venue", "price_band", pct=1)
    order_id = desk.made(side="Sell", price="90.0")
    row = only(desk.list("/v5/order/realtime", orderId=order_id))
    assert Decimal(row["price"]) == 99  # 100 * (1 - 0.01)


@pytest.mark.parametrize(
    ("side", "qty", "left"),
    [("Buy", None, 0), ("Buy", "3", 7), ("Sell", "3", -7), ("Buy", "99", 0)],
)
def test_venue_adl_takes_a_part_of_the_position_or_all_of_it(
    desk: Desk, side: str, qty: str | None, left: int
) -> None:
    desk.made(**taking(side=side, qty="10"))
    price = "110.0" if side == "Buy" else "90.0"
    exit_id = desk.made(
        side="Sell" if side == "Buy" else "Buy", price=price, qty="10", reduceOnly=True
    )
    before = desk.balance
    desk.fault("venue", "adl", symbol=SYMBOL, **({"qty": qty} if qty else {}))
    fill = only(desk.list("/v5/execution/list", execType="AdlTrade"))
    assert Decimal(fill["execQty"]) == 10 - abs(left)
    assert fill["side"] != side and fill["orderLinkId"] == "" and Decimal(fill["execFee"]) == 0
    assert (desk.matching.wallet.position(SYMBOL).size, desk.balance) == (left, before)  # at 100
    assert state(desk, exit_id)[0] == ("New" if left else "Cancelled")


def test_venue_adl_of_nothing_does_nothing(desk: Desk) -> None:
    desk.fault("venue", "adl", symbol=SYMBOL)
    assert desk.list("/v5/execution/list") == []


def test_venue_liquidate_closes_the_position_at_the_mark(desk: Desk) -> None:
    desk.made(**taking(qty="10"))
    desk.made(orderLinkId="rests")
    desk.fault("venue", "mark_offset", symbol=SYMBOL, pct=-3)
    desk.fault("venue", "liquidate", symbol=SYMBOL)
    fill = only(desk.list("/v5/execution/list", execType="BustTrade"))
    assert (Decimal(fill["execPrice"]), fill["execQty"], fill["createType"]) == (
        97,
        "10",
        "CreateByLiq",
    )
    assert desk.matching.open_orders() == []
    assert desk.balance == 1000 - 30 - 1000 * TAKER - 970 * TAKER


def test_venue_foreign_order_rests_without_an_id_of_ours(desk: Desk) -> None:
    wire = desk.private("order")
    terms = {"symbol": SYMBOL, "side": "Sell", "qty": "2", "price": "103.0"}
    desk.fault("venue", "foreign_order", **terms)
    row = only(desk.list("/v5/order/realtime", symbol=SYMBOL))
    assert {name: row[name] for name in terms} == terms
    assert (row["orderLinkId"], row["orderStatus"]) == ("", "New")
    assert only(only(wire.heard("order"))["data"])["orderId"] == row["orderId"]


def test_venue_foreign_fill_changes_the_position(desk: Desk) -> None:
    wire = desk.private("execution", "position")
    desk.fault("venue", "foreign_fill", symbol=SYMBOL, side="Sell", qty="4")
    frames = wire.heard()
    fill = only([row for f in frames if f["topic"] == "execution" for row in f["data"]])
    assert (fill["side"], fill["execQty"], fill["orderLinkId"]) == ("Sell", "4", "")
    assert desk.matching.wallet.position(SYMBOL).size == -4


def test_venue_balance_moves_cash_in_and_out(desk: Desk) -> None:
    wire = desk.private("wallet")
    desk.fault("venue", "balance", amount="-250.5")
    desk.fault("venue", "balance", amount="100")
    told = [Decimal(only(frame["data"])["totalWalletBalance"]) for frame in wire.heard("wallet")]
    assert told == [Decimal("749.5"), Decimal("849.5")]
    assert desk.matching.wallet.flows["deposits"] == Decimal("849.5")
    assert desk.create(qty="86")["retCode"] == 110007  # 86 * 99 / 10 = 851.4
    assert desk.venue.auditor.breaches == 0


def test_venue_mark_offset_holds_the_mark_away_from_the_last_price(desk: Desk) -> None:
    desk.fault("venue", "mark_offset", symbol=SYMBOL, pct=4)
    desk.run(5)
    row = only(desk.list("/v5/market/tickers", symbol=SYMBOL))
    assert (Decimal(row["markPrice"]), row["lastPrice"]) == (104, "100.0")
    desk.fault("venue", "mark_offset", symbol=SYMBOL, pct=0)
    assert Decimal(only(desk.list("/v5/market/tickers", symbol=SYMBOL))["markPrice"]) == 100


def test_venue_account_change_switches_the_mode_or_the_leverage(desk: Desk) -> None:
    wire = desk.private("position")
    desk.fault("venue", "account_change", symbol=SYMBOL, leverage="25")
    assert only(only(wire.heard("position"))["data"])["leverage"] == "25"
    assert only(desk.list("/v5/position/list", symbol=SYMBOL))["leverage"] == "25"
    desk.fault("venue", "account_change", mode="hedge")
    assert desk.create()["retCode"] == 10001
    rows = desk.list("/v5/position/list", symbol=SYMBOL)
    assert [row["positionIdx"] for row in rows] == [1, 2]
    body = desk.post("/v5/position/switch-mode", coin="USDT", mode=0)
    assert (body["retCode"], desk.create()["retCode"]) == (0, 0)  # and who notices puts it right


def test_venue_hold_freezes_a_symbol(desk: Desk) -> None:
    wire = desk.public(f"publicTrade.{SYMBOL}", f"publicTrade.{OTHER}")
    wire.heard()
    desk.fault("venue", "hold", symbol=SYMBOL)
    desk.run(70)
    told = Counter(frame["topic"] for frame in wire.heard())
    # the second of three trades at 1/3 s, 1 1/3 s and on to 69 1/3 s
    assert (told[f"publicTrade.{SYMBOL}"], told[f"publicTrade.{OTHER}"]) == (0, 70)


def test_venue_trade_is_a_trade_like_any_other() -> None:
    """The queue is ahead of us unless the fault says it is not."""
    desk = Desk(PAPER_BOOK="full")
    desk.hold()
    wire = desk.public(f"publicTrade.{SYMBOL}", f"kline.1.{SYMBOL}")
    wire.heard()
    first = desk.made(price="99.9", qty="5")
    desk.trade("99.9", 1)
    assert state(desk, first)[0] == "New"
    desk.fault("venue", "trade", symbol=SYMBOL, price="99.9", qty="2", queue="0")
    row = only(desk.list("/v5/order/realtime", orderId=first))
    assert (row["orderStatus"], row["cumExecQty"]) == ("PartiallyFilled", "2")
    desk.trade("99.8", 1)
    assert state(desk, first)[0] == "Filled"
    kline = wire.heard(f"kline.1.{SYMBOL}")[-1]["data"][0]
    assert (kline["close"], kline["low"]) == ("99.8", "99.8")


def test_venue_fund_settles_at_a_rate(desk: Desk) -> None:
    desk.made(**taking(qty="10"))
    before = desk.balance
    desk.fault("venue", "fund", symbol=SYMBOL, rate="0.002")
    assert before - desk.balance == 2  # 10 * 100 * 0.002


# What cannot be.


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (None, "object"),
        ([], "object"),
        ("venue", "object"),
        ({}, "where"),
        ({"where": "moon", "action": "drop"}, "where"),
        ({"where": ["http"], "action": "drop"}, "where"),
        ({"where": "http"}, "action"),
        ({"where": "http", "action": "mute"}, "action"),
        ({"where": "http", "action": ["ret"]}, "action"),
        ({"where": "http", "action": "ret", "colour": 1}, "colour"),
        ({"where": "http", "action": "ret", "code": "10016"}, "code"),
        ({"where": "http", "action": "ret", "times": True}, "times"),
        ({"where": "http", "action": "delay", "ms": None}, "ms"),
        ({"where": "http", "action": "delay", "path": 5}, "path"),
        ({"where": "ws", "action": "drop", "topic": 5}, "topic"),
        ({"where": "match", "action": "partial", "share": "half"}, "share"),
        ({"where": "match", "action": "gap"}, "symbol"),
        ({"where": "match", "action": "gap", "symbol": "NONE"}, "symbol"),
        ({"where": "match", "action": "gap", "symbol": SYMBOL, "pct": "x"}, "pct"),
        ({"where": "venue", "action": "hold", "symbol": None}, "symbol"),
        ({"where": "venue", "action": "delist", "symbol": "NONE"}, "symbol"),
        ({"where": "venue", "action": "trade", "symbol": SYMBOL, "price": "1.0"}, "qty"),
        ({"where": "venue", "action": "trade", "symbol": SYMBOL, "price": "-1", "qty": 1}, "price"),
        ({"where": "venue", "action": "price_band", "pct": "wide"}, "pct"),
        ({"where": "venue", "action": "balance", "amount": "all"}, "amount"),
        ({"where": "venue", "action": "foreign_order", "symbol": SYMBOL, "side": "up"}, "side"),
        (
            {
                "where": "venue",
                "action": "foreign_fill",
                "symbol": SYMBOL,
                "side": "Buy",
                "qty": 9999,
            },
            "ab not enough",
        ),
        (
            {"where": "venue", "action": "instrument_update", "symbol": SYMBOL, "tick_size": 0},
            "tick",
        ),
    ],
    ids=str,
)
def test_a_fault_that_cannot_be_is_refused_with_what_is_wrong(
    desk: Desk, fault: Any, says: str
) -> None:
    before = desk.venue.digest()
    with pytest.raises(BadFault) as error:
        desk.venue.control(fault, desk.now)
    assert says in str(error.value)
    assert desk.venue.status()["rules"] == []
    assert desk.venue.digest() == before


JSON = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=5),
    st.sampled_from(("1", "-0.5", "0", SYMBOL, "Buy", "past", "hedge", "/v5/", "NaN", "1e400")),
    st.lists(st.integers(), max_size=2),
)
VERBS = st.sampled_from([(where, one) for where, actions in ACTIONS.items() for one in actions])
WORDS = st.dictionaries(st.sampled_from(sorted(NAMES - {"where", "action"})), JSON, max_size=6)


@given(VERBS, WORDS, st.booleans())
@settings(max_examples=400, deadline=None)
def test_no_fault_whatever_its_terms_breaks_the_exchange(
    verb: tuple[str, str], words: Row, planned: bool
) -> None:
    desk = Desk()
    public, private, trade = listening(desk)
    desk.made(**taking(qty="3"))
    desk.made(orderLinkId="mine")
    fault = {"symbol": SYMBOL, **words, "where": verb[0], "action": verb[1]}
    try:
        if planned:
            desk.venue.faults.plan([[0.5, fault]], desk.now.mono_s)
        else:
            desk.venue.control(fault, desk.now)
    except BadFault as error:
        assert str(error)
        return
    for wire in (public, private, trade):
        wire.send({"op": "ping"})
    desk.run(2)
    place(desk)
    trade.send(desk.order_op("order.create", "r", **order()))
    desk.raw("GET", "/v5/order/realtime", "category=linear&settleCoin=USDT")
    desk.raw("POST", "/v5/order/cancel", json.dumps({"category": "linear", "orderLinkId": "mine",
                                                     "symbol": SYMBOL}))  # fmt: skip
    desk.run(61)
    desk.venue.status()
    desk.venue.account()


# Plans.


def test_a_plan_strikes_at_its_times(desk: Desk) -> None:
    plan = [
        [5, {"where": "match", "action": "gap", "symbol": SYMBOL, "pct": 2}],
        [2.5, {"where": "venue", "action": "ip_ban", "ms": 1000}],
        [8, {"where": "http", "action": "status", "times": 0}],
        [10, {"where": "ws", "action": "close", "kind": "public"}],
    ]
    wire = desk.public(f"kline.1.{SYMBOL}")
    desk.hold()
    desk.run(3)  # the plan begins now
    assert desk.venue.faults.plan(plan, desk.now.mono_s) == 4
    seen = []
    for _ in range(24):
        desk.run(0.5)
        status = desk.raw("GET", "/v5/market/time", "").status
        seen.append((status, str(desk.matching.last[SYMBOL]), wire.session.close_code))
    halves = [round(0.5 * (n + 1), 1) for n in range(24)]
    changes = [(halves[n], seen[n]) for n in range(24) if n == 0 or seen[n] != seen[n - 1]]
    assert changes == [
        (0.5, (200, "100.0", 0)),
        (2.5, (403, "100.0", 0)),
        (3.5, (200, "100.0", 0)),
        (5.0, (200, "102.0", 0)),
        (8.0, (502, "102.0", 0)),
        (10.0, (502, "102.0", 1006)),
    ]


@pytest.mark.parametrize(
    "plan",
    [
        None,
        {},
        [1],
        [[1]],
        [["1", {"where": "venue", "action": "restart"}]],
        [[True, {"where": "venue", "action": "restart"}]],
        [[1, {"where": "venue", "action": "restart"}], [2, {"where": "venue", "action": "rest"}]],
        [[1, None]],
    ],
    ids=str,
)
def test_a_plan_that_cannot_be_is_refused_as_a_whole(desk: Desk, plan: Any) -> None:
    with pytest.raises(BadFault) as error:
        desk.venue.faults.plan(plan, desk.now.mono_s)
    assert str(error.value)
    desk.run(5)
    assert desk.create()["retCode"] == 0  # no restart


def test_a_planned_fault_that_cannot_be_done_when_its_time_comes_is_told(desk: Desk) -> None:
    """It may have been possible when it was planned; the market goes on."""
    terms = {"where": "venue", "action": "foreign_fill", "symbol": SYMBOL, "side": "Buy"}
    good = {"where": "venue", "action": "balance", "amount": 5}
    desk.venue.faults.plan([[1, {**terms, "qty": 9_999}], [1, good]], desk.now.mono_s)
    desk.run(2)
    assert "ab not enough" in only(desk.venue.status()["failed"])
    assert desk.balance == 1005


def test_a_random_plan_is_the_same_for_a_seed_and_can_be_carried_out() -> None:
    plans = [random_plan(seed, 3_600, 20, list(SYMBOLS)) for seed in (1, 1, 2)]
    assert plans[0] == plans[1] != plans[2]
    times = [at_s for at_s, _ in plans[0]]
    assert times == sorted(times) and times[0] > 0 and times[-1] < 3_600
    assert 150 < len(times) < 210  # 3600 / 20 = 180
    actions = Counter((fault["where"], fault["action"]) for _, fault in plans[0])
    assert {where for where, _ in actions} == {"http", "ws", "match", "venue"}
    assert len(actions) > 15
    assert all(checked(fault) for _, fault in plans[0])
    assert json.loads(json.dumps(plans[0])) == plans[0]


@pytest.mark.parametrize("seed", range(3))
def test_under_a_random_plan_the_account_still_adds_up(seed: int) -> None:
    desk = Desk(synthetic(4, seed), PAPER_SEED=seed, PAPER_BALANCE_USDT=100_000, PAPER_BOOK="full")
    plan = random_plan(seed, 600, 5, desk.venue.public.symbols)
    desk.venue.faults.plan(plan, desk.now.mono_s)
    trader, books = Trader(desk, seed), Books()
    for _ in range(300):
        desk.run(2)
        with contextlib.suppress(AssertionError, ValueError):  # no answer, or an unreadable one
            trader.act()
        for topic, row in desk.kept:
            if topic in ("order", "execution", "wallet"):
                books.hear([{"topic": topic, "data": [row]}])
        desk.kept.clear()
        adds_up(desk, books)
    assert desk.venue.status()["failed"] == []
    assert desk.venue.faults.struck > 20 and trader.codes[0] > 100


# Healing.

LASTING: list[Row] = [
    *({"where": "http", "action": action, "times": 0} for action in ACTIONS["http"]),
    *({"where": "ws", "action": a, "times": 0} for a in ACTIONS["ws"] if a != "close"),
    *({"where": "match", "action": a, "times": 0} for a in ACTIONS["match"] if a != "gap"),
    {"where": "venue", "action": "restart", "ms": 60_000},
    {"where": "venue", "action": "maintenance", "ms": 60_000},
    {"where": "venue", "action": "clock_offset", "ms": 7_000},
    {"where": "venue", "action": "clock_offset", "ms": 7_000, "for_s": 60},
    {"where": "venue", "action": "rate_limit", "limit": 1, "reset": "past"},
    {"where": "venue", "action": "rate_limit", "limit": 1, "reset": "missing", "ms": 60_000},
    {"where": "venue", "action": "ip_ban"},
    {"where": "venue", "action": "delist", "symbol": SYMBOL},
    {"where": "venue", "action": "delist", "symbol": SYMBOL, "mode": "PreLaunch"},
    {"where": "venue", "action": "price_band", "pct": 1},
    {"where": "venue", "action": "mark_offset", "symbol": SYMBOL, "pct": 3},
    {"where": "venue", "action": "account_change", "mode": "hedge"},
    {"where": "venue", "action": "hold", "symbol": SYMBOL},
]


def health(desk: Desk) -> Any:
    """All that a client can notice of a fault, in two seconds."""
    public, private, trade = listening(desk)
    wall_ms = int(desk.get("/v5/market/time")["timeNano"]) // 1_000_000 - START - desk.at_ms
    asked = [desk.create(side="Sell", price="90.0", qty="2"), desk.create(qty="10")]
    code = desk.post("/v5/order/amend", symbol=SYMBOL, price="98.5", **asked[1]["result"])[
        "retCode"
    ]
    limit = desk.headers["X-Bapi-Limit"]
    trade.send(desk.order_op("order.cancel", f"{desk.at_ms}", symbol=SYMBOL, **asked[1]["result"]))
    acks = [frame["retCode"] for frame in trade.heard()]
    desk.run(2)
    moved = Counter(frame["topic"] for frame in public.heard() if "topic" in frame)
    heard = Counter(frame["topic"] for frame in private.heard() if "topic" in frame)
    rows = [only(desk.list("/v5/order/realtime", orderId=a["result"]["orderId"])) for a in asked]
    ticker = only(desk.list("/v5/market/tickers", symbol=SYMBOL))
    listed = len(desk.list("/v5/market/instruments-info"))
    status = desk.list("/v5/system/status")
    return (
        [wall_ms, [a["retCode"] for a in asked], code, limit, acks, listed, status],
        [(row["price"], row["orderStatus"], row["rejectReason"]) for row in rows],
        (moved, heard, ticker["markPrice"], ticker["lastPrice"]),
    )


@pytest.mark.parametrize("fault", LASTING, ids=lambda f: f"{f['where']}-{f['action']}")
def test_healing_undoes_every_lasting_fault(fault: Row) -> None:
    desk = Desk(PAPER_RATE_LIMIT=10)
    desk.run(10)
    expected = health(desk)
    desk.run(10)
    desk.venue.control(fault, desk.now)
    desk.venue.faults.plan([[1, fault]], desk.now.mono_s)
    desk.run(0.5)
    desk.venue.heal(desk.now)
    desk.run(5)
    assert health(desk) == expected
    assert desk.venue.status()["rules"] == []


NOT_SEEN = {"stale", "reorder", "stale_replay", "dup", "delay", "truncate", "partial"}
NOT_SEEN |= {"drop_after", "fill_before_cancel", "ts_offset"}
SEEN = [fault for fault in LASTING if fault["action"] not in NOT_SEEN]


@pytest.mark.parametrize("fault", SEEN, ids=lambda f: f"{f['where']}-{f['action']}")
def test_what_is_healed_was_noticed_before(fault: Row) -> None:
    """Or the test above could not fail; the others have tests of their own."""
    desk = Desk(PAPER_RATE_LIMIT=10)
    desk.run(10)
    expected = health(desk)
    desk.run(10)
    desk.venue.control(fault, desk.now)
    desk.run(0.5)
    try:
        found = health(desk)
    except (AssertionError, ValueError, KeyError, StopIteration):
        return  # it could not even be asked
    assert found != expected


def test_a_login_can_be_lost_like_anything_else(desk: Desk) -> None:
    desk.fault("ws", "drop", topic="auth")
    wire = Wire(desk, "/v5/private")
    wire.send(auth_frame(desk.now))
    assert wire.heard() == []
    assert wire.session.authenticated
