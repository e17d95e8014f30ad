# ruff: noqa: N802
"""Table B of the fault catalogue (reliability.md, section 4): the private stream.

Every test breaks the stream at the paper exchange, looks at what the bot does meanwhile, and ends
healed: ledger and exchange agree, each execution was applied once, the auditor saw no breach.
Lots are 50 USDT: 0.50 bought at 99.5. The last test draws faults of tables A and B by chance.
"""

import os
from decimal import Decimal

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared import bybit
from shared import messages as msg
from tests.stage import SYMBOLS, A, B, Stage

NOT_APPLICABLE = {
    "B1 seven days": "the ledger never forgets an exec_id: executions are kept for good",
    "B8 clock re-sync": "the wall clock signs, nothing offsets it (rows G1, G5)",
    "B9 position messages": "the bot does not subscribe to them: only REST positions are a check",
    "B10 alarm": "DESIGN has no alarm channel: the execution is logged and in state.db",
    "B12 logged once per kind": "each bad frame is counted; shared/bybit logs each of them",
}
EXAMPLES = int(os.environ.get("ROWS_EXAMPLES", "60"))
D = Decimal
CREATE, AMEND, CANCEL = "/v5/order/create", "/v5/order/amend", "/v5/order/cancel"
WIDE = {"BASE_FEE_PCT": 3.0}  # take profit 3.2 % away: a lot stays open
NEAR, AWAY, DEEP = "99.8", "100.2", "99.3"  # armed; the other band's; through an entry
NAME = "dm-AAAUSDT-1b05516-B"  # the first bar
REPAIRED_S, RELINKED_S, NOTICED_S = 5, 2, 8  # goals T8, T9
DEAF_S = 13  # a round, 2 s for what may be under way, and a tick
ROUND_S, TRUST_S = 10, 20  # a round of reconciliation; two clean ones and what leads to them
STREAM = ("order", "execution", "wallet")


def staged(**numbers):
    return Stage(**(WIDE | numbers))


def hit(stage, price, symbol=A):
    """One trade, after which the symbol stands where it stood."""
    stage.fault("venue", "trade", symbol=symbol, price=price, qty="1")


def lot(stage, symbol=A):
    (found,) = stage.lots(symbol)
    return found


def push(stage, topic, *rows):
    """The exchange says these rows on the private stream, whether they are news or not."""
    frame = {"topic": topic, "id": "1", "creationTime": stage.replay.now().market_ms, "data": rows}
    say(stage, topic, orjson.dumps(frame))


def say(stage, topic, frame):
    """Any bytes to those who hear a topic."""
    stage.venue.sessions.publish(topic, frame, stage.replay.now())
    stage.replay.settle()


def fills(stage):
    """Every execution of the exchange, as the stream said it."""
    return list(stage.venue.matching.executions)


def linked(stage):
    """Whether the keeper's private socket is up."""
    return stage.replay._doors[stage.replay.keeper].links["private"].up


def socket(stage):
    """The keeper's private socket, as the exchange sees it; None while there is none."""
    found = [one for one in stage.venue.sessions.open if one.kind == "private"]
    return found[0] if found else None


def modes(stage, since):
    """Modes that were said, from a place in `heard` on."""
    return {m.mode for m in stage.heard[since:] if isinstance(m, msg.Mode)}


def entered_in_run(stage):
    """No entry was sent in another mode than RUN (V11)."""
    mode = ""
    for message in stage.heard:
        if isinstance(message, msg.Mode):
            mode = message.mode
        elif isinstance(message, msg.OrderRequest) and message.action == "create":
            assert message.outcome or message.reduce_only or mode == msg.RUN, message


def never_back(stage):
    """What an order has filled and a lot has moved only grows; what has ended stays so (but for an
    order that was given up for lost and is taken back)."""
    known, ended = {}, set()
    for position in stage.said(msg.Position):
        names = {order.order_link_id for order in position.orders}
        for order in position.orders:
            before = known.get(order.order_link_id, D(0))
            assert order.cum_exec_qty >= before, order
            known[order.order_link_id] = order.cum_exec_qty
            assert order.order_link_id not in ended or order.status == "Granted", order
            ended.discard(order.order_link_id)
        ended |= {n for n in known if n.split("-")[1] == position.symbol and n not in names}
        for held in position.lots:
            key = f"{held.entry_id} lot"
            assert held.bought + held.sold >= known.get(key, D(0)), held
            known[key] = held.bought + held.sold


# Executions.


@pytest.mark.parametrize("times", [1, 4])
def test_B1_an_execution_that_comes_again_is_applied_once(times):
    stage = staged()
    stage.rest()
    stage.fault("ws", "dup", kind="private", topic="execution", times=times)
    stage.to(A, DEEP, 1)
    assert (lot(stage).bought, stage.held()) == (D("0.50"), D("0.50"))
    for _ in range(times):  # minutes apart
        stage.run(120)
        push(stage, "execution", *fills(stage))
        assert lot(stage).bought == D("0.50")
    stage.end()


def test_B1_an_execution_that_comes_again_after_a_reconnect_or_a_restart_is_applied_once(tmp_path):
    stage = staged()
    stage.fill()
    stage.fault("ws", "close", kind="private")
    stage.run(2)
    push(stage, "execution", *fills(stage))
    for number in range(2):
        stage.restart("keeper", tmp_path / f"{number}.db")
        stage.run(2)
        push(stage, "execution", *fills(stage))
        assert (lot(stage).bought, stage.ledger.slots()) == (D("0.50"), 1)
    stage.to(A, "104", 2)  # sold
    assert (stage.held(), stage.ledger.slots()) == (0, 0)
    stage.restart("keeper", tmp_path / "closed.db")
    stage.run(2)
    push(stage, "execution", *fills(stage))
    assert (stage.lots(), stage.ledger.slots(), dict(stage.ledger.foreign)) == ([], 0, {})
    stage.end()


@pytest.mark.parametrize("share", ["0.37", "1"])
def test_B2_an_execution_before_the_answer_and_the_order_message_makes_its_lot(share):
    """The create's answer comes 2 s late, and so does what the order topic says."""
    stage = staged()
    stage.fault("http", "delay", path=CREATE, ms=2000)
    stage.fault("ws", "mute", kind="private", topic="order", for_s=2)
    stage.to(A, NEAR, 1)
    assert stage.entries()[0].status == "Granted"
    stage.fault("match", "partial", symbol=A, share=share)
    hit(stage, DEEP)
    bought = D("0.50") if share == "1" else D("0.18")
    assert (lot(stage).entry_id, lot(stage).bought) == (NAME, bought)
    assert [o.qty for o in stage.at_venue() if o.reduce_only] == [bought]  # its exit does not wait
    stage.run(2)
    assert [m.outcome for m in stage.said(msg.OrderRequest, order_link_id=NAME)][:2] == [
        *("", "accepted")
    ]
    (order,) = stage.created(NAME)
    push(stage, "order", order.row())
    assert [o.order_link_id for o in stage.entries()] == ([] if share == "1" else [NAME])
    assert (lot(stage).bought, stage.ledger.slots()) == (bought, 1)
    stage.end()
    never_back(stage)


@pytest.mark.parametrize("seed", range(8))
def test_B3_messages_out_of_order_come_to_the_same(seed):
    """Three parts of an entry, its exit growing along, everything up to 2 s late at random."""
    stage = staged(PAPER_SEED=seed, BASE_FEE_PCT=0.275)
    stage.rest()
    stage.fault("ws", "reorder", kind="private", window=40, times=0)
    stage.fault("match", "partial", symbol=A, share="0.4", times=2)
    for _ in range(3):
        hit(stage, DEEP)
        stage.run(1)
    stage.run(3)
    assert (lot(stage).bought, stage.held()) == (D("0.50"), D("0.50"))
    assert sum(o.left for o in stage.at_venue() if o.reduce_only) == D("0.50")
    stage.fault("match", "partial", symbol=A, share="0.4", times=2)
    for _ in range(3):
        hit(stage, "100.1")
        stage.run(1)
    stage.run(3)
    assert (stage.held(), stage.lots()) == (0, [])
    stage.end()
    never_back(stage)


def test_B3_an_order_message_older_than_the_last_changes_nothing():
    stage = staged()
    stage.rest()
    (order,) = stage.created(NAME)
    new = order.row()
    stage.fault("match", "partial", symbol=A, share="0.4")
    hit(stage, DEEP)
    part = order.row()
    push(stage, "order", new)
    (known,) = stage.entries()
    assert (known.status, known.cum_exec_qty) == ("PartiallyFilled", D("0.20"))
    stage.to(A, DEEP, 1)
    push(stage, "order", new)
    push(stage, "order", part)
    assert (stage.entries(), lot(stage).bought, stage.ledger.slots()) == ([], D("0.50"), 1)
    stage.end()
    never_back(stage)


@pytest.mark.parametrize("phase", range(0, 10, 3))  # of the round
def test_B4_an_execution_that_never_comes_is_fetched_within_five_seconds(phase):
    stage = staged()
    stage.rest()
    stage.run(phase)
    stage.fault("ws", "drop", kind="private", topic="execution")
    stage.to(A, DEEP)
    assert stage.until(stage.lots, REPAIRED_S) <= REPAIRED_S
    assert {row["execId"] for row in fills(stage)} == stage.ledger._seen  # the true exec_id
    stage.run(1)
    assert sum(o.left for o in stage.at_venue() if o.reduce_only) == D("0.50")
    assert stage.entries() == []
    stage.end()


def test_B4_a_lost_execution_of_an_exit_is_fetched_too():
    stage = staged()
    stage.fill()
    stage.fault("ws", "drop", kind="private", topic="execution")
    stage.to(A, "104")
    assert stage.until(lambda: not stage.lots(), REPAIRED_S) <= REPAIRED_S
    stage.run(1)
    assert (stage.ledger.slots(), stage.at_venue()) == (0, [])
    assert [m for m in stage.sent("create", kind=msg.EXIT) if m.order_link_id.endswith("x1")] == []
    stage.end()


def test_B4_one_lost_part_of_an_order_that_still_rests_is_fetched_too():
    stage = staged()
    stage.rest()
    stage.fault("match", "partial", symbol=A, share="0.4")
    stage.fault("ws", "drop", kind="private", topic="execution")
    hit(stage, DEEP)
    assert stage.until(stage.lots, REPAIRED_S) <= REPAIRED_S
    assert lot(stage).bought == D("0.20")
    stage.end()


# A stream that is deaf, half open, cut, or lets nobody in.


@pytest.mark.parametrize("phase", range(0, 10, 3))
def test_B5_a_silent_stream_that_still_answers_pings_is_noticed_and_left(phase):
    stage = staged()
    stage.rest()
    stage.run(phase)
    old, since = socket(stage), len(stage.heard)
    stage.fault("ws", "keep_pong", kind="private", for_s=60)
    stage.to(A, DEEP)
    repaired = stage.until(stage.lots, ROUND_S)  # REST is the truth
    stage.until(lambda: stage.mode().mode == msg.NO_ENTRY, DEAF_S - repaired)
    stage.until(lambda: socket(stage) not in (old, None), 2)
    stage.run(1)
    assert sum(o.left for o in stage.at_venue() if o.reduce_only) == D("0.50")  # exits go on
    stage.to(B, NEAR, 3)
    assert (stage.mode().mode, stage.sent("create", B)) == (msg.NO_ENTRY, [])
    stage.until(lambda: stage.entries(B), 60)  # the new socket is as deaf: this entry shows it
    stage.until(lambda: stage.entries(B)[0].status == "New", 3)
    stage.until(lambda: stage.mode().mode == msg.NO_ENTRY, DEAF_S)
    assert modes(stage, since) <= {msg.RUN, msg.NO_ENTRY}
    assert lot(stage).bought == D("0.50")
    stage.end()
    entered_in_run(stage)


def test_B5_an_order_under_way_that_nothing_is_heard_of_is_asked_for():
    stage = staged()
    stage.fault("ws", "keep_pong", kind="private", for_s=60)
    stage.fault("http", "drop_after", path=CREATE)
    stage.to(A, NEAR, 1)
    assert stage.until(lambda: stage.entries()[0].status == "New", 3) <= 3
    assert len(stage.created(NAME)) == 1
    stage.end()


@pytest.mark.parametrize("phase", range(6))  # of the ping
def test_B6_a_half_open_socket_is_left_within_eight_seconds(phase):
    stage = staged()
    stage.rest()
    stage.run(phase)
    stage.fault("ws", "half_open", kind="private", for_s=12)
    stage.until(lambda: not linked(stage), NOTICED_S)  # although nothing was to be heard
    stage.run(1)
    assert (stage.mode().mode, stage.mode().reason) == (msg.NO_ENTRY, "private stream lost")
    stage.to(A, DEEP)
    stage.to(B, NEAR)
    stage.until(lambda: linked(stage), 20)
    stage.until(stage.lots, RELINKED_S)
    assert lot(stage).bought == D("0.50")
    assert stage.sent("create", B) == []
    stage.until(lambda: stage.mode().mode == msg.RUN, TRUST_S)
    assert stage.until(lambda: stage.sent("create", B), 60) >= 0  # and on it goes
    stage.end()


@pytest.mark.parametrize("code", [1000, 1006])
@pytest.mark.parametrize("phase", range(0, 10, 3))  # of the round
def test_B6_what_a_cut_socket_missed_is_asked_for_as_soon_as_it_is_back(code, phase):
    stage = staged()
    stage.rest()
    stage.run(phase)
    stage.fault("ws", "close", kind="private", code=code)
    stage.to(A, DEEP)  # nobody hears
    stage.until(lambda: linked(stage), 2)
    stage.until(stage.lots, RELINKED_S)
    assert (lot(stage).bought, stage.entries()) == (D("0.50"), [])
    stage.until(lambda: stage.mode().mode == msg.RUN, TRUST_S)
    stage.end()


def test_B7_a_stream_that_replays_old_messages_takes_nothing_back():
    stage = staged(BASE_FEE_PCT=0.275)
    stage.fault("ws", "stale_replay", kind="private", times=0)
    stage.rest()
    stage.fault("match", "partial", symbol=A, share="0.4", times=2)
    for _ in range(3):
        hit(stage, DEEP)
        stage.run(2)
    assert lot(stage).bought == D("0.50")
    stage.fault("ws", "close", kind="private")
    stage.run(3)
    hit(stage, "100.1")
    stage.run(12)
    assert (stage.held(), stage.lots(), stage.ledger.slots()) == (0, [], 0)
    stage.end()
    never_back(stage)


READS = ("/v5/position/list", "/v5/order/realtime", "/v5/execution/list", "/v5/account/wallet")


@pytest.mark.parametrize("path", READS)
def test_B7_old_data_by_rest_takes_nothing_back(path):
    """Reads are 30 s old for 40 s, while a lot is bought and sold."""
    stage = staged(BASE_FEE_PCT=0.275)
    stage.run(30)
    stage.fault("http", "stale", path=path, age_s=30, times=0, for_s=40)
    stage.fill()
    assert lot(stage).bought == D("0.50")
    stage.run(15)
    assert (lot(stage).bought, stage.held()) == (D("0.50"), D("0.50"))
    assert [o.left for o in stage.at_venue() if o.reduce_only] == [D("0.50")]
    stage.to(A, "100.1", 20)
    assert (stage.held(), stage.lots(), stage.ledger.slots()) == (0, [], 0)
    stage.run(10)
    stage.end()
    never_back(stage)


def test_B7_a_position_that_is_old_for_long_stops_entries_and_nothing_else():
    stage = staged()
    stage.fill()
    stage.fault("http", "stale", path="/v5/position/list", age_s=15, times=0, for_s=60)
    stage.run(20)
    stage.fault("venue", "foreign_fill", symbol=A, side="Sell", qty="0.20")
    stage.run(35)
    assert lot(stage).bought - lot(stage).sold == stage.held() == D("0.30")
    assert [o.left for o in stage.at_venue() if o.reduce_only] == [D("0.30")]
    stage.end()


@pytest.mark.parametrize("topic", ["auth", "subscribe"])
def test_B8_a_stream_that_lets_nobody_in_stops_entries_while_exits_go_on_by_rest(topic):
    """Neither socket gets an answer to its login; the private one none to its subscription."""
    stage = staged()
    stage.rest()
    for kind in ("private", "trade"):
        stage.fault("ws", "close", kind=kind)
        stage.fault("ws", "mute", kind=kind, topic=topic)
    stage.run(1)
    assert (stage.mode().mode, stage.mode().reason) == (msg.NO_ENTRY, "private stream lost")
    stage.to(A, DEEP)
    stage.until(stage.lots, ROUND_S)
    stage.run(1)
    assert sum(o.left for o in stage.at_venue() if o.reduce_only) == D("0.50")
    stage.to(B, NEAR, 50)
    assert stage.sent("create", B) == []
    assert stage.mode().mode == msg.NO_ENTRY
    connects = len(stage.venue.gate._connections)
    stage.run(30)
    assert len(stage.venue.gate._connections) - connects <= 10  # with back-off
    stage.heal()
    stage.until(lambda: stage.mode().mode == msg.RUN, 45)
    stage.end()


def test_B8_a_login_that_the_exchange_refuses_is_tried_again_with_back_off():
    """Its clock runs 12 s ahead: what expires in 10 s has expired."""
    stage = staged()
    stage.rest()
    stage.fault("venue", "clock_offset", ms=12_000)
    stage.fault("ws", "close", kind="private")
    stage.run(10)
    assert (linked(stage), stage.mode().mode) == (False, msg.NO_ENTRY)
    stage.to(A, DEEP, 10)
    assert stage.held() == D("0.50")
    stage.heal()
    stage.until(stage.lots, 12)
    stage.until(lambda: stage.mode().mode == msg.RUN, 40)
    stage.end()


def test_B9_a_position_message_has_no_effect():
    """Every create, amend and cancel makes one; the keeper does not even hear them."""
    stage = staged()
    stage.fill()
    assert socket(stage).topics == set(STREAM)
    before = lot(stage)
    row = stage.venue.matching.position_row(A) | {"size": "7", "side": "Sell"}
    for topic in ("position", "order"):  # even where it is heard
        push(stage, topic, row)
    assert lot(stage) == before
    stage.run(1)
    stage.end()


# What the exchange does by itself.


@pytest.mark.parametrize("seed", [105, 107])
@pytest.mark.parametrize("stop_pct", [0.0, 2.0])
@pytest.mark.parametrize(("verb", "left"), [("adl", "0.30"), ("adl all", "0"), ("liquidate", "0")])
def test_B10_a_forced_sale_folds_into_the_lots_and_the_symbol_rests(verb, left, stop_pct, seed):
    """15 minutes without an entry; the lot's exit shrinks, or goes with it."""
    stage = staged(STOP_LOSS_PCT=stop_pct, PAPER_SEED=seed)
    stage.fill()
    qty = {"qty": "0.20"} if verb == "adl" else {}
    stage.fault("venue", verb.split()[0], symbol=A, **qty)
    stage.run(3)
    assert stage.held() == sum(x.bought - x.sold for x in stage.lots()) == D(left)
    assert [o.left for o in stage.at_venue() if o.order_type == "Limit"] == [D(left)] * (
        left != "0"
    )
    assert len(stage.stops()) == (bool(stop_pct) and left != "0")
    assert stage.ledger.slots() == (left != "0")
    assert stage.ledger.foreign[A] == 0
    if left == "0":
        forced_s, sent = stage.now_s, len(stage.sent("create"))
        stage.swing(14, A, B)
        assert len(stage.sent("create")) == sent
        assert stage.sent("create", B)  # others go on
        stage.swing(3, A, B)
        again = stage.sent("create")[sent]
        assert again.decided_ns / 1e9 - forced_s >= 900 - 3 - 1
    stage.end()


@pytest.mark.parametrize("verb", ["adl", "liquidate"])
def test_B10_a_forced_sale_that_is_heard_before_the_fill_comes_to_the_same(verb):
    """The fill is lost and comes by REST, when the sale is long known."""
    stage = staged()
    stage.rest()
    stage.fault("ws", "drop", kind="private", topic="execution")
    stage.to(A, DEEP)
    stage.fault("venue", verb, symbol=A)
    stage.run(12)
    assert (stage.held(), stage.lots(), stage.ledger.slots()) == (0, [], 0)
    assert stage.ledger.foreign[A] == 0
    stage.end()


def test_B10_an_exit_that_fills_after_its_lot_was_taken_leaves_nothing_behind():
    """ADL takes our 0.50 from the ledger's view, 0.10 short of what the account holds: the exit,
    whose cancel is lost, sells those 0.10."""
    stage = staged()
    stage.fill()
    stage.fault("venue", "foreign_fill", symbol=A, side="Buy", qty="0.10")
    stage.fault("http", "drop_before", path=CANCEL, times=0)
    stage.fault("venue", "adl", symbol=A, qty="0.50")
    stage.run(2)
    assert stage.held() == D("0.10")
    hit(stage, "104")
    stage.run(2)
    assert (stage.held(), stage.lots(), stage.ledger.slots()) == (0, [], 0)
    assert stage.ledger.foreign[A] == 0
    stage.end()


@pytest.mark.parametrize("seed", [105, 107])
@pytest.mark.parametrize("stop_pct", [0.0, 2.0])
def test_B11_a_filled_order_is_open_until_its_executions_are_there(stop_pct, seed):
    """Neither stream nor REST has them for 10 s; the stop, if there is one, is there at once."""
    stage = staged(STOP_LOSS_PCT=stop_pct, PAPER_SEED=seed)
    stage.rest()
    stage.fault("ws", "drop", kind="private", topic="execution")
    stage.fault("http", "partial", path="/v5/execution/list", k=0, times=0, for_s=10)
    stage.to(A, DEEP)
    for _ in range(9):
        stage.run(1)
        (order,) = stage.entries()
        assert (order.status, order.cum_exec_qty) == ("Filled", D("0.50"))
        assert (stage.ledger.slots(), len(stage.created(NAME))) == (1, 1)
        assert [(o.qty, o.trigger) for o in stage.stops()] == (
            [(D("0.50"), D("97.5"))] * bool(stop_pct)
        )
    stage.until(stage.lots, 1 + ROUND_S)
    stage.run(2)
    assert (lot(stage).bought, stage.entries(), stage.ledger.slots()) == (D("0.50"), [], 1)
    assert len(stage.stops()) == bool(stop_pct)
    stage.end()


def test_B11_an_execution_that_is_late_everywhere_is_found_behind_a_later_one():
    """Rounds go on meanwhile, and the stream brings the fill of another symbol."""
    stage = staged()
    stage.rest(A)
    stage.rest(B)
    stage.fault("ws", "drop", kind="private", topic="execution")
    stage.fault("http", "partial", path="/v5/execution/list", k=0, times=0, for_s=30)
    stage.to(A, DEEP, 3)
    stage.to(B, DEEP, 1)
    assert (stage.lots(A), lot(stage, B).bought) == ([], D("0.50"))
    stage.run(30)
    stage.until(stage.lots, ROUND_S)
    assert (lot(stage).bought, lot(stage, B).bought) == (D("0.50"), D("0.50"))
    stage.end()


def test_B11_nothing_counts_as_read_while_positions_differ():
    """A list that is short, and does not say so, while the stream brings a fill of later than its
    overlap: what was missing is still asked for when the exchange has it again."""
    stage = staged()
    stage.fault("ws", "drop", kind="private", topic="execution")
    stage.fault("http", "partial", path="/v5/execution/list", k=0, times=0, for_s=100)
    stage.fault("venue", "foreign_fill", symbol=A, side="Sell", qty="0.50")
    stage.run(80)
    assert stage.ledger.held().get(A) is None
    stage.fault("venue", "foreign_fill", symbol=B, side="Sell", qty="0.50")
    stage.run(60)
    assert stage.ledger.held() == {A: D("-0.50"), B: D("-0.50")}
    stage.end()


def order_row(**changes):
    """An order of ours as the stream says it, but for some changes."""
    row = {"category": "linear", "symbol": A, "orderLinkId": NAME, "orderId": "7", "side": "Buy"}
    row |= {"price": "99.5", "qty": "0.50", "orderStatus": "New", "cumExecQty": "0"}
    row |= {"avgPrice": "", "reduceOnly": False, "rejectReason": "EC_NoError"}
    return row | {"createdTime": "1", "updatedTime": "1"} | changes


BAD_FRAMES = {
    "no JSON": b'{"topic":"order","data":[',
    "no text": b"\xff\xfe\x00",
    "no object": b"[1, 2, 3]",
    "null": b"null",
    "nothing": b"",
    "no topic": b'{"data": []}',
    "unknown topic": b'{"topic":"greeks","data":[{"a":1}]}',
    "topic is a number": b'{"topic":7,"data":[]}',
    "no data": b'{"topic":"order"}',
    "data is null": b'{"topic":"order","data":null}',
    "rows are numbers": b'{"topic":"order","data":[1,2]}',
    "fields are missing": b'{"topic":"execution","data":[{"symbol":"AAAUSDT"}]}',
    "a number is a word": orjson.dumps({"topic": "order", "data": [order_row(price="high")]}),
    "a number is an object": orjson.dumps({"topic": "order", "data": [order_row(qty={"a": 1})]}),
    "a time is null": orjson.dumps({"topic": "order", "data": [order_row(updatedTime=None)]}),
    "2 MB": b'{"topic":"order","data":["' + b"x" * 2_000_000 + b'"]}',
    "deep": b"[" * 100_000,
}
ODD_FRAMES = {
    "a new status": orjson.dumps({"topic": "order", "data": [order_row(orderStatus="Dreaming")]}),
    "numbers, not text": orjson.dumps(
        {"topic": "order", "data": [order_row(price=99.5, qty=0.5, cumExecQty=0, updatedTime=1)]}
    ),
    "another market": orjson.dumps({"topic": "order", "data": [order_row(category="spot")]}),
    "another coin": orjson.dumps({"topic": "order", "data": [order_row(symbol="BTCPERP")]}),
    "no rows": b'{"topic":"execution","data":[]}',
}


@pytest.mark.parametrize("kind", [*BAD_FRAMES, *ODD_FRAMES])
def test_B12_a_frame_that_makes_no_sense_ends_nothing(kind):
    stage = staged()
    stage.rest()
    door = stage.replay._doors[stage.replay.keeper]
    say(stage, "order", (BAD_FRAMES | ODD_FRAMES)[kind])
    assert door.bad_frames == (kind in BAD_FRAMES)
    stage.to(A, DEEP, 1)
    assert (lot(stage).bought, stage.ledger.slots()) == (D("0.50"), 1)
    stage.end()


@pytest.mark.parametrize("kind", [*BAD_FRAMES, *ODD_FRAMES])
def test_B12_nor_does_it_end_a_socket_of_pybit(kind):
    """The real class, without a connection: what its thread calls with each text."""
    heard = []
    socket = bybit.StreamSocket.__new__(bybit.StreamSocket)
    socket._heard = lambda frame: heard.extend(bybit.pushed(frame))
    socket.confirmed, socket.lost, socket.heard_at = 0, "", 0.0
    socket._on_message((BAD_FRAMES | ODD_FRAMES)[kind].decode(errors="surrogateescape"))
    assert (socket.lost, len(heard)) == ("", kind in ("a new status", "numbers, not text"))


@pytest.mark.parametrize("topic", STREAM)
def test_B12_what_could_not_be_read_is_asked_for(topic):
    stage = staged()
    stage.rest()
    stage.fault("ws", "garbage", kind="private", topic=topic)
    stage.to(A, DEEP)
    stage.until(stage.lots, REPAIRED_S)
    stage.until(lambda: not stage.entries(), ROUND_S)
    assert (lot(stage).bought, stage.ledger.slots()) == (D("0.50"), 1)
    stage.run(1)
    assert sum(o.left for o in stage.at_venue() if o.reduce_only) == D("0.50")
    stage.end()


# Faults by chance.

PATHS = st.sampled_from((CREATE, AMEND, CANCEL, "/v5/order", "/v5/"))
READ = st.sampled_from((*READS, "/v5/order/history"))
KINDS = st.sampled_from(("private", "trade", "public"))
TOPICS = st.sampled_from((*STREAM, ""))
NAMES = st.sampled_from(SYMBOLS)


def fault(where, action, **terms):
    """A strategy of one fault; its terms are strategies, too."""
    given_ = {
        name: st.just(value) if not isinstance(value, st.SearchStrategy) else value
        for name, value in terms.items()
    }
    return st.fixed_dictionaries({"where": st.just(where), "action": st.just(action), **given_})


SPAN = st.integers(1, 12)
TIMES = st.integers(1, 4)
FAULTS = st.one_of(
    *(fault("http", action, path=PATHS, times=TIMES) for action in ("drop_before", "drop_after")),
    *(fault("http", action, path=PATHS) for action in ("dup", "garbage", "truncate")),
    fault("http", "delay", path=PATHS, ms=st.sampled_from((300, 1500, 3500))),
    fault("http", "status", path=PATHS, status=st.sampled_from((500, 502)), times=TIMES),
    fault(
        "http", "ret", path=PATHS, code=st.sampled_from((10000, 10016, 110003, 110007)), times=TIMES
    ),
    fault("http", "ret", path=PATHS, code=st.sampled_from((10000, 10016)), after=True, times=TIMES),
    fault("http", "stale", path=READ, age_s=st.integers(1, 30), times=0, for_s=SPAN),
    fault("http", "partial", path=READ, k=st.integers(0, 1), times=0, for_s=SPAN),
    *(
        fault("ws", action, kind=KINDS, topic=TOPICS, for_s=SPAN)
        for action in ("mute", "keep_pong")
    ),
    fault("ws", "half_open", kind=KINDS, for_s=SPAN),
    fault("ws", "close", kind=KINDS),
    *(
        fault("ws", action, kind="private", topic=TOPICS, times=TIMES)
        for action in ("drop", "dup", "garbage", "stale_replay")
    ),
    fault(
        "ws", "delay", kind="private", topic=TOPICS, ms=st.sampled_from((500, 2500)), times=TIMES
    ),
    fault("ws", "reorder", kind="private", window=st.integers(4, 40), times=st.integers(1, 12)),
    fault("match", "partial", symbol=NAMES, share=st.sampled_from(("0.2", "0.37", "0.6"))),
    *(
        fault("match", action, symbol=NAMES)
        for action in ("fill_before_cancel", "fill_before_amend", "reject_after_ack")
    ),
    fault("venue", "adl", symbol=NAMES, qty=st.sampled_from(("0.10", "0.50"))),
    fault("venue", "liquidate", symbol=NAMES),
    fault(
        "venue",
        "foreign_fill",
        symbol=NAMES,
        side=st.sampled_from(("Buy", "Sell")),
        qty=st.sampled_from(("0.10", "0.50")),
    ),
    fault("venue", "restart", ms=st.sampled_from((1500, 5000))),
)
PLACES = st.sampled_from(("lower", "upper", "exit"))
BEYOND = st.sampled_from((-0.5, -0.2, 0.0, 0.1, 0.2, 0.4))
MOVES = st.tuples(NAMES, PLACES, BEYOND)
STEPS = st.tuples(st.integers(0, 6), st.booleans(), FAULTS, MOVES)


def moved(stage, symbol, place, beyond_pct):
    """To a band or a resting exit, and so far beyond it (towards the middle: below 0)."""
    quote = stage.said(msg.Quote, symbol=symbol)[-1]
    price, way = quote.upper, 1
    if place == "lower":
        price, way = quote.lower, -1
    elif place == "exit" and (exits := stage.exits(symbol)):
        price, way = float(exits[0].price), 1 if exits[0].side == "Sell" else -1
    stage.to(symbol, round(D(price * (1 + way * beyond_pct / 100)), 1))


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES == 60,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(
    plan=st.lists(STEPS, min_size=8, max_size=20),
    seed=st.integers(0, 999),
    stop_pct=st.sampled_from((0.0, 2.0)),
)
def test_whatever_goes_wrong_in_orders_and_stream_is_right_again_once_healed(plan, seed, stop_pct):
    """Each step: a fault or none, a move of one price, some seconds."""
    stage = Stage(PAPER_SEED=seed, STOP_LOSS_PCT=stop_pct, DRAWDOWN_PCT=0, DAILY_LOSS_PCT=0)
    for wait_s, strikes, wrong, move in plan:
        if strikes:
            stage.fault(**wrong)
        moved(stage, *move)
        stage.run(wait_s)
    stage.end()
    never_back(stage)
    entered_in_run(stage)
