"""bybit: Bybit's rows to our messages and back, and what is never sent or taken in.

A fake of the wire is a list: what each call of a verb gives, or raises.
"""

import queue
import socket
from decimal import Decimal
from itertools import pairwise

import pytest
import websocket

from shared import bybit
from shared import messages as msg
from shared.settings import Settings

D = Decimal
NS = 1_000_000_000
NOW = 1_000 * NS
WALL_MS = 20_000 * 86_400_000
ORDER = {
    "category": "linear",
    "symbol": "AUSDT",
    "orderId": "o1",
    "orderLinkId": "dm-AUSDT-64-B",
    "side": "Buy",
    "price": "1.50",
    "qty": "7",
    "orderStatus": "New",
    "cumExecQty": "",
    "avgPrice": "",
    "reduceOnly": False,
    "rejectReason": "EC_NoError",
    "createdTime": "1000",
    "updatedTime": "2000",
    "somethingNew": [1],
}
EXECUTION = {
    "symbol": "AUSDT",
    "execId": "e1",
    "orderLinkId": "dm-AUSDT-64-B",
    "orderId": "o1",
    "side": "Buy",
    "execType": "Trade",
    "execPrice": "1.5",
    "execQty": "7",
    "execFee": "-0.001",
    "isMaker": True,
    "execTime": "3000",
}
WALLET = {"totalEquity": "1000.5", "totalWalletBalance": "999", "totalAvailableBalance": ""}


def request(**change):
    terms = ("dm-AUSDT-64-B", 7, "create", "AUSDT", "Buy", D("0.00001"), D(100), "PostOnly", False)
    return msg.OrderRequest(*terms, 0, NOW)._replace(**change)


class Wire:
    """A Rest whose calls are answered in turn; `asked` is every (verb, terms) there was."""

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []
        self.now_ns = NOW
        settings = Settings(_env_file=None)
        clock = bybit.Clock(lambda: self.now_ns, lambda: WALL_MS)
        self.rest = bybit.Rest(settings, self._call, clock)

    @property
    def verbs(self):
        return [verb for verb, _ in self.asked]

    def fetch(self, what, **terms):
        return self.rest.fetch(msg.Fetch(what, **terms))

    def _call(self, verb, **terms):
        self.asked.append((verb, terms))
        answer = self.answers.pop(0)
        if callable(answer):
            answer = answer(self)
        if isinstance(answer, Exception):
            raise answer
        return answer, {"X-Bapi-Limit": "20"}


def page(*rows, cursor=""):
    return {"result": {"list": list(rows), "nextPageCursor": cursor}}


def batch(code=0, text="OK"):
    return {"retCode": 0, "retExtInfo": {"list": [{"code": code, "msg": text}]}}


TIMEOUT = bybit.failure("Read timed out")
BANNED = bybit.failure("access too frequent", 403)


# Rows.


def test_an_order_row_is_read_by_its_names_and_unset_numbers_are_zero():
    order = bybit.read(msg.OrderUpdate, ORDER, recv_ns=77)
    assert (order.order_link_id, order.price, order.qty) == ("dm-AUSDT-64-B", D("1.50"), 7)
    assert (order.cum_exec_qty, order.avg_price) == (0, 0)
    assert (order.created_time_ms, order.updated_time_ms) == (1000, 2000)
    assert (order.recv_ns, order.parent_order_link_id) == (77, "")


def test_the_child_of_an_order_names_its_parent():
    row = ORDER | {"orderLinkId": "", "parentOrderLinkId": "dm-AUSDT-64-B"}
    order = bybit.read(msg.OrderUpdate, row)
    assert (order.order_link_id, order.parent_order_link_id) == ("", "dm-AUSDT-64-B")


def test_a_row_without_a_field_is_a_bad_frame():
    with pytest.raises(bybit.BAD_FRAME):
        bybit.read(msg.OrderUpdate, {k: v for k, v in ORDER.items() if k != "orderStatus"})


@pytest.mark.parametrize(
    ("row", "is_ours"),
    [
        ({"category": "linear", "symbol": "AUSDT"}, True),
        ({"symbol": "AUSDT"}, True),  # REST puts the category beside the list
        ({"category": "spot", "symbol": "AUSDT"}, False),  # a spot sale closes no perpetual
        ({"category": "linear", "symbol": "APERP"}, False),  # settles in USDC
        ({"category": "inverse", "symbol": "AUSD"}, False),
    ],
)
def test_rows_of_other_markets_are_not_ours(row, is_ours):
    assert bybit.ours(row) == is_ours


@pytest.mark.parametrize(
    ("topic", "rows", "kind"),
    [
        ("order", [ORDER, ORDER | {"category": "spot"}], msg.OrderUpdate),
        ("execution", [EXECUTION | {"symbol": "APERP"}, EXECUTION], msg.Execution),
        ("wallet", [WALLET], msg.Wallet),
    ],
)
def test_a_private_push_is_what_it_says_of_our_market(topic, rows, kind):
    (message,) = bybit.pushed({"topic": topic, "data": rows}, recv_ns=77)
    assert isinstance(message, kind)
    assert getattr(message, "recv_ns", 77) == 77


def test_an_execution_keeps_the_sign_of_its_fee():
    """Negative is earned."""
    (fill,) = bybit.pushed({"topic": "execution", "data": [EXECUTION]})
    assert (fill.exec_fee, fill.exec_price, fill.exec_qty) == (D("-0.001"), D("1.5"), 7)
    assert (fill.is_maker, fill.exec_time_ms) == (True, 3000)


def test_a_push_of_a_topic_that_nobody_asked_for_is_a_bad_frame():
    with pytest.raises(bybit.BAD_FRAME):
        bybit.pushed({"topic": "greeks", "data": []})


def test_a_kline_push_has_the_symbol_of_its_topic():
    row = {"start": 60_000, "open": "1", "high": "3", "low": "0.5", "close": "2"}
    row |= {"volume": "10", "turnover": "20", "confirm": False, "timestamp": 61_500}
    frame = {"topic": "kline.1.AUSDT", "ts": 61_600, "data": [row]}
    (kline,) = bybit.pushed(frame, recv_ns=77)
    assert kline == msg.Kline("AUSDT", 60_000, 1, 3, 0.5, 2, 10, 20, False, 61_500, 77)


@pytest.mark.parametrize(
    ("change", "may"),
    [
        ({}, True),
        ({"status": "PreLaunch"}, False),
        ({"contractType": "LinearFutures"}, False),
        ({"quoteCoin": "USDC"}, False),
        ({"deliveryTime": "1700000000000"}, False),  # it is being delisted
        ({"deliveryTime": ""}, True),
    ],
)
def test_only_a_living_perpetual_may_be_opened(change, may):
    row = {"contractType": "LinearPerpetual", "status": "Trading", "quoteCoin": "USDT"}
    assert bybit.tradeable(row | {"deliveryTime": "0"} | change) == may


# Requests.


def test_every_number_leaves_as_a_plain_string():
    body = bybit.params_of(request())
    assert (body["price"], body["qty"]) == ("0.00001", "100")
    assert body["timeInForce"] == "PostOnly"
    assert {"price", "qty"}.isdisjoint(bybit.params_of(request(action="cancel")))


def test_a_create_says_all_and_an_amend_only_what_changes():
    names = {"category", "symbol", "orderLinkId", "qty", "price"}
    assert set(bybit.params_of(request(action="amend"))) == names
    body = bybit.params_of(request(reduce_only=True, side="Sell", time_in_force="GTC"))
    assert set(body) == names | {"side", "orderType", "timeInForce", "positionIdx", "reduceOnly"}
    rest = ("side", "orderType", "timeInForce", "positionIdx", "reduceOnly")
    assert [body[name] for name in rest] == ["Sell", "Limit", "GTC", 0, True]


@pytest.mark.parametrize("action", ["create", "amend"])
def test_a_stop_loss_travels_with_the_order(action):
    body = bybit.params_of(request(action=action, stop_loss=D("0.0000098")))
    stop = {"stopLoss": "0.0000098", "tpslMode": "Partial"}
    stop |= {"slOrderType": "Market", "slTriggerBy": "LastPrice"}
    assert stop.items() <= body.items()
    assert stop.keys().isdisjoint(bybit.params_of(request(action=action)))


def test_a_cancel_carries_no_stop_loss():
    assert bybit.params_of(request(action="cancel", stop_loss=D(1))) == {
        "category": "linear",
        "symbol": "AUSDT",
        "orderLinkId": "dm-AUSDT-64-B",
    }


def test_an_order_of_the_exchanges_making_is_cancelled_by_its_own_id():
    body = bybit.params_of(request(action="cancel", order_id="S1"))
    assert body == {"category": "linear", "symbol": "AUSDT", "orderId": "S1"}


ACTIONS = [
    ("create", False, "order.create", "place_order"),
    ("amend", False, "order.amend", "amend_order"),
    ("cancel", False, "order.cancel", "cancel_order"),
    ("create", True, "order.create-batch", "place_batch_order"),
    ("amend", True, "order.amend-batch", "amend_batch_order"),
    ("cancel", True, "order.cancel-batch", "cancel_batch_order"),
]


@pytest.mark.parametrize(("action", "is_batch", "op", "_"), ACTIONS)
def test_the_trade_socket_takes_an_action_by_its_op(action, is_batch, op, _):
    asked = request(action=action, batch=is_batch)
    frame = bybit.frame_of(asked, window_ms=2_000, wall_ms=WALL_MS)
    assert (frame["reqId"], frame["op"]) == ("7", op)
    assert frame["header"] == {
        "X-BAPI-TIMESTAMP": str(WALL_MS),
        "X-BAPI-RECV-WINDOW": "2000",
    }
    body = bybit.params_of(asked)
    assert frame["args"] == [{"category": "linear", "request": [body]} if is_batch else body]


@pytest.mark.parametrize(("action", "is_batch", "_", "verb"), ACTIONS)
def test_rest_takes_an_action_by_its_verb(action, is_batch, _, verb):
    wire = Wire(batch())
    asked = request(action=action, batch=is_batch)
    assert wire.rest.order(asked).outcome == "accepted"
    body = bybit.params_of(asked)
    assert wire.asked == [(verb, {"category": "linear", "request": [body]} if is_batch else body)]


# Outcomes.


CODES = [
    (0, "accepted"),
    (110072, "accepted"),  # an order with this id exists: the earlier one did arrive
    (110001, "refused"),
    (10006, "refused"),
    (10016, "unknown"),  # server error: it may have been taken
    (-1, "unknown"),
    (999_999, "unknown"),  # what is not listed proves nothing
]


@pytest.mark.parametrize(("code", "outcome"), CODES)
def test_an_answer_has_three_outcomes(code, outcome):
    said = bybit.answered(request(), code, "text", {"X-Bapi-Limit": "20"}, {}, 99)
    assert (said.outcome, said.ret_code, said.reason) == (outcome, code, "text" if code else "")
    assert (said.answered_ns, said.rate_limit) == (99, 20)


@pytest.mark.parametrize(("code", "outcome"), CODES)
def test_a_batch_is_answered_order_by_order(code, outcome):
    """Its own code is 0: it says what came of each in retExtInfo."""
    extra = batch(code, "text")["retExtInfo"]
    said = bybit.answered(request(batch=True), 0, "", None, extra, 0)
    assert (said.outcome, said.ret_code, said.reason) == (outcome, code, "text" if code else "")


def test_a_batch_that_is_refused_as_a_whole_is_refused():
    said = bybit.answered(request(batch=True), 10006, "too many visits", None, {}, 0)
    assert (said.outcome, said.ret_code) == ("refused", 10006)


@pytest.mark.parametrize("headers", [None, {}, {"X-Bapi-Limit": ""}])
def test_an_answer_without_a_limit_says_none(headers):
    assert bybit.answered(request(), 0, "", headers, {}, 0).rate_limit == 0


@pytest.mark.parametrize(
    ("answer", "outcome", "code"),
    [
        (batch(), "accepted", 0),
        (batch(110007, "no money"), "accepted", 0),  # of no batch: what it says of one is not read
        (bybit.failure("no money", code=110007), "refused", 110007),
        (bybit.failure("server", code=10016), "unknown", 10016),
        (TIMEOUT, "unknown", -1),
        (bybit.failure("bad gateway", 502), "unknown", -1),
        (ValueError("no JSON"), "unknown", -1),
    ],
)
def test_what_rest_does_not_answer_is_unknown_and_nothing_is_raised(answer, outcome, code):
    said = Wire(answer).rest.order(request())
    assert (said.outcome, said.ret_code) == (outcome, code)


def test_rest_passes_on_the_limit_of_its_bucket():
    assert Wire(batch()).rest.order(request()).rate_limit == 20


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (batch(110007, "no money"), "refused"),
        (bybit.failure("no money", code=110007), "refused"),
        ({"retCode": 0}, "unknown"),  # accepted or not: who knows
        ({"retCode": 0, "retExtInfo": {}}, "unknown"),
        ({"retCode": 0, "retExtInfo": {"list": []}}, "unknown"),
        ({"retCode": 0, "retExtInfo": {"list": [{"msg": "OK"}]}}, "unknown"),
        (TIMEOUT, "unknown"),
    ],
)
def test_a_batch_by_rest_is_answered_or_unknown(answer, outcome):
    assert Wire(answer).rest.order(request(batch=True)).outcome == outcome


@pytest.mark.parametrize(
    ("change", "sent"),
    [
        ({"decided_ns": NOW - msg.SEND_NS}, True),
        ({"decided_ns": NOW - msg.SEND_NS - 1}, False),
        ({"decided_ns": NOW - msg.ANSWER_NS, "reduce_only": True}, True),
        ({"decided_ns": NOW - msg.ANSWER_NS, "action": "amend"}, True),
        ({"decided_ns": NOW - msg.ANSWER_NS, "action": "cancel"}, True),
        ({"decided_ns": NOW - msg.ANSWER_NS - 1, "reduce_only": True}, False),
        ({"decided_ns": NOW - msg.ANSWER_NS - 1, "action": "cancel"}, False),
    ],
)
def test_what_waited_too_long_for_a_thread_is_not_sent(change, sent):
    """The keeper may have freed an entry's slot; any other command has been decided anew by now,
    and two of them at once are more than the exchange allows."""
    wire = Wire(batch())
    said = wire.rest.order(request(**change))
    assert (len(wire.asked), said.outcome) == ((1, "accepted") if sent else (0, "refused"))
    assert said.reason == ("" if sent else "waited too long: not sent")
    assert said.ret_code == 0


# A banned address.


def test_a_ban_stops_every_read_and_order_for_its_time():
    wire = Wire(BANNED)
    said = wire.fetch("wallet")
    assert (said.rows, said.ret_code) == ((), 403)
    assert "403" in said.error
    wire.now_ns += bybit.BAN_SECONDS * NS - 1
    said = wire.fetch("wallet")
    assert (said.rows, said.error) == ((), "address banned: not asked")
    for change in ({}, {"reduce_only": True}, {"action": "cancel"}, {"batch": True}):
        answer = wire.rest.order(request(decided_ns=wire.now_ns, **change))
        assert (answer.outcome, answer.reason) == ("refused", "address banned: not sent")
        assert answer.ret_code == 0  # it is nobody's word on the order
    assert wire.verbs == ["get_wallet_balance"]  # once
    wire.now_ns += 1
    wire.answers = [page(WALLET), batch()]
    assert len(wire.fetch("wallet").rows) == 1
    assert wire.rest.order(request(decided_ns=wire.now_ns)).outcome == "accepted"
    assert bybit.BAN_SECONDS == 600


@pytest.mark.parametrize("change", [{}, {"reduce_only": True}, {"batch": True}])
def test_an_order_that_meets_the_ban_is_refused_and_stops_the_others(change):
    """Nothing was taken: an unknown one would keep its slot for as long as nobody may ask."""
    wire = Wire(BANNED)
    assert wire.rest.order(request(**change)).outcome == "refused"
    assert wire.fetch("orders").error == "address banned: not asked"


@pytest.mark.parametrize("answer", [TIMEOUT, bybit.failure("server", code=10016)])
def test_a_ban_that_another_thread_met_meanwhile_proves_nothing_of_this_order(answer):
    def meanwhile(wire):
        wire.answers.insert(0, BANNED)
        assert wire.fetch("wallet").error
        return answer

    wire = Wire(meanwhile)
    assert wire.rest.order(request()).outcome == "unknown"


@pytest.mark.parametrize(
    "failure", [bybit.failure("bad gateway", 502), TIMEOUT, bybit.failure("busy", code=10006)]
)
def test_another_failure_is_no_ban(failure):
    wire = Wire(failure, page(WALLET))
    assert wire.fetch("wallet").error
    assert len(wire.fetch("wallet").rows) == 1


# Reads.


def test_every_page_is_read_by_its_cursor():
    wire = Wire(page(ORDER, cursor="c2"), page(ORDER | {"orderId": "o2"}, cursor="c3"), page())
    said = wire.fetch("orders")
    assert [row.order_id for row in said.rows] == ["o1", "o2"]
    assert [terms["cursor"] for _, terms in wire.asked] == [None, "c2", "c3"]
    assert {terms["settleCoin"] for _, terms in wire.asked} == {"USDT"}
    assert {terms["category"] for _, terms in wire.asked} == {"linear"}


@pytest.mark.parametrize(
    ("second", "why"),
    [
        (TIMEOUT, "Read timed out"),
        (bybit.failure("busy", code=10016), "busy"),
        ({"result": {}}, "KeyError"),
        (page(ORDER | {"qty": "much"}), "InvalidOperation"),
    ],
)
def test_half_a_list_is_no_list(second, why):
    """What is missing from it would be taken for gone."""
    said = Wire(page(ORDER, cursor="c2"), second).fetch("orders")
    assert said.rows == ()
    assert why in said.error


def test_a_list_without_end_is_an_error():
    wire = Wire(*[page(ORDER, cursor="again")] * (bybit.MAX_PAGES + 1))
    said = wire.fetch("orders")
    assert (said.rows, len(wire.asked)) == ((), bybit.MAX_PAGES)
    assert "pages" in said.error


@pytest.mark.parametrize(
    ("code", "error"), [(110043, ""), (110025, ""), (10016, "not so"), (110024, "not so")]
)
def test_what_is_already_so_is_no_error(code, error):
    wire = Wire(bybit.failure("not so", code=code))
    said = wire.fetch("leverage", symbol="AUSDT")
    assert (said.error, said.ret_code, said.rows) == (error, code, ())
    terms = {"category": "linear", "symbol": "AUSDT", "buyLeverage": "1", "sellLeverage": "1"}
    assert wire.asked == [("set_leverage", terms)]


def test_one_way_mode_is_for_every_contract():
    wire = Wire(page())
    assert wire.fetch("account").error == ""
    assert wire.asked == [
        ("switch_position_mode", {"category": "linear", "coin": "USDT", "mode": 0})
    ]


@pytest.mark.parametrize(
    ("ask", "name"),
    [
        ({"order_link_id": "dm-AUSDT-64-B"}, {"orderLinkId": "dm-AUSDT-64-B"}),
        ({"order_link_id": "dm-AUSDT-64-Bs", "order_id": "S1"}, {"orderId": "S1"}),
    ],
)
def test_one_order_is_looked_for_among_the_open_ones_then_in_the_history(ask, name):
    wire = Wire(page(), page(ORDER))
    assert len(wire.fetch("order", symbol="AUSDT", **ask).rows) == 1
    assert wire.verbs == ["get_open_orders", "get_order_history"]
    for _, terms in wire.asked:
        assert name.items() <= terms.items()
        assert not {"orderLinkId", "orderId"} - name.keys() & terms.keys()
    wire = Wire(page(ORDER))
    assert len(wire.fetch("order", symbol="AUSDT", **ask).rows) == 1
    assert wire.verbs == ["get_open_orders"]


def test_an_open_order_of_a_dated_future_is_not_ours():
    """It settles in USDT, too: what is asked for by coin holds both."""
    wire = Wire(page(ORDER | {"symbol": "BTCUSDT-26DEC25"}, ORDER))
    assert [row.symbol for row in wire.fetch("orders").rows] == ["AUSDT"]


DAY_MS = 86_400_000


def executed(at_ms, symbol="AUSDT"):
    return EXECUTION | {"symbol": symbol, "execTime": str(at_ms)}


@pytest.mark.parametrize("age_days", [0, 5.9])
def test_executions_are_read_from_their_start_while_that_is_recent(age_days):
    start_ms = WALL_MS - int(age_days * DAY_MS)
    wire = Wire(page(executed(start_ms + 1), executed(start_ms + 1, "APERP")))
    assert len(wire.fetch("executions", start_ms=start_ms).rows) == 1
    ((_, terms),) = wire.asked
    assert (terms["startTime"], terms.get("endTime")) == (start_ms, None)


def test_the_last_week_is_enough_where_it_reaches_back_to_the_start():
    """As where the exchange's clock is another: it replays the market of a year ago."""
    start_ms = WALL_MS - 400 * DAY_MS
    wire = Wire(page(executed(start_ms + 70_000), executed(start_ms + msg.OVERLAP_MS)))
    assert len(wire.fetch("executions", start_ms=start_ms).rows) == 2
    ((_, terms),) = wire.asked
    assert not {"startTime", "endTime"} & terms.keys()


@pytest.mark.parametrize("age_days", [6, 6.5, 7, 20, 300, 5_000])
def test_after_weeks_of_absence_every_day_of_a_year_is_read(age_days, monkeypatch):
    """No read is longer than the seven days that the exchange allows, and none leaves a gap."""
    monkeypatch.setattr(bybit, "WEEK_SECONDS", 0)
    start_ms = WALL_MS - int(age_days * DAY_MS)
    wire = Wire(*[page()] * 200)
    assert wire.fetch("executions", start_ms=start_ms).error == ""
    spans = [(WALL_MS - 7 * DAY_MS, WALL_MS)]
    spans += [(terms["startTime"], terms["endTime"]) for _, terms in wire.asked[1:]]
    assert all(0 < end - since <= 7 * DAY_MS for since, end in spans)
    assert all(since <= end for (since, _), (_, end) in pairwise(spans))
    assert spans[-1][0] == max(start_ms, WALL_MS - 400 * DAY_MS) or age_days <= 7
    reads = len(wire.asked)
    assert wire.fetch("executions", start_ms=start_ms).error == ""
    assert len(wire.asked) == reads + 1  # from then on nothing older can be new


@pytest.mark.parametrize(("start_ms", "read"), [(0, bybit.MAX_PAGES), (WALL_MS - 1, 0)])
def test_a_new_ledger_reads_the_newest_of_too_many_executions(start_ms, read):
    """Another ledger would miss some of its own."""
    wire = Wire(*[page(executed(WALL_MS), cursor="again")] * (bybit.MAX_PAGES + 1))
    said = wire.fetch("executions", start_ms=start_ms)
    assert (len(said.rows), bool(said.error)) == (read, not read)


def test_bars_come_oldest_first_without_the_one_that_may_be_open():
    rows = [[str(n * 60_000), "1", "3", "0.5", "2", "10", "20"] for n in (7, 6, 5)]
    wire = Wire(page(*rows))
    bars = wire.fetch("klines", symbol="AUSDT").rows
    assert [(bar.start_ms, bar.confirm, bar.ts_ms) for bar in bars] == [
        (300_000, True, 360_000),
        (360_000, True, 420_000),
    ]
    assert wire.asked[0][1]["limit"] == 301
    wire = Wire(page(*rows))
    wire.fetch("klines", symbol="AUSDT", start_ms=300_000)
    assert wire.asked[0][1]["start"] == 300_000


def test_what_may_not_be_opened_is_an_instrument_all_the_same():
    """Its lots need a grid for their exits."""
    row = {
        "symbol": "AUSDT",
        "contractType": "LinearPerpetual",
        "status": "Trading",
        "quoteCoin": "USDT",
        "deliveryTime": "0",
        "fundingInterval": 480,
        "lotSizeFilter": {
            "qtyStep": "0.1",
            "minOrderQty": "0.1",
            "maxOrderQty": "100",
            "minNotionalValue": "5",
        },
        "priceFilter": {"tickSize": "0.01"},
    }
    going = row | {"symbol": "BUSDT", "deliveryTime": "1700000000000"}
    rows = Wire(page(row, going, row | {"symbol": "APERP"})).fetch("instruments").rows
    assert [(i.symbol, i.status) for i in rows] == [
        ("AUSDT", "Trading"),
        ("BUSDT", "NotTradeable"),
    ]
    assert (rows[0].tick_size, rows[0].qty_step, rows[0].symbol_type) == (D("0.01"), D("0.1"), "")


def test_a_holding_is_signed_by_its_side():
    rows = [
        {"symbol": s, "side": side, "size": size}
        for s, side, size in (
            ("AUSDT", "Buy", "3"),
            ("BUSDT", "Sell", "2"),
            ("CUSDT", "", "0"),
        )
    ]
    held = Wire(page(*rows)).fetch("positions").rows
    assert [(holding.symbol, holding.qty) for holding in held] == [
        ("AUSDT", 3),
        ("BUSDT", -2),
        ("CUSDT", 0),
    ]


@pytest.mark.parametrize(
    ("permissions", "rows"),
    [
        ({"ContractTrade": ["Order"], "Wallet": []}, ()),
        ({}, ()),
        ({"Wallet": ["AccountTransfer", "Withdraw"]}, ("AccountTransfer", "Withdraw")),
    ],
)
def test_the_rights_of_a_key_are_what_it_may_do_with_the_wallet(permissions, rows):
    wire = Wire({"result": {"permissions": permissions}})
    assert wire.fetch("rights").rows == rows
    assert wire.verbs == ["get_api_key_information"]


# The private links.


@pytest.mark.parametrize("kind", ["private", "trade"])
def test_a_handshake_that_is_never_answered_ends(kind):
    """The kernel takes the connection, and nobody is there: a load balancer without a backend."""
    heard, usual_s = queue.Queue(), websocket.getdefaulttimeout()
    assert 0 < usual_s <= 5
    websocket.setdefaulttimeout(0.1)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"ws://127.0.0.1:{listener.getsockname()[1]}"
        streams = {"BYBIT_STREAM_URL": url, "BYBIT_REST_URL": "http://127.0.0.1:9"}
        exchange = bybit.Exchange(Settings(_env_file=None, **streams), heard.put, (kind,))
        try:
            links = [heard.get(timeout=10) for _ in range(2)]
        finally:
            exchange.close()
            websocket.setdefaulttimeout(usual_s)
    assert [(link.name, link.up) for link in links] == [(kind, False)] * 2


# Addresses and topics.


@pytest.mark.parametrize(
    ("env", "trade"), [("mainnet", True), ("testnet", True), ("demo", False), ("paper", True)]
)
def test_orders_go_by_rest_where_there_is_no_trade_socket(env, trade):
    keys = {"BYBIT_API_KEY": "a", "BYBIT_API_SECRET": "b", "CONFIRM_LIVE": "yes"}
    at = bybit.addresses(
        Settings(_env_file=None, BYBIT_ENV=env, **(keys if env != "paper" else {}))
    )
    assert bool(at.trade) == trade
    assert ("127.0.0.1" in at.rest) == (env == "paper")


def test_an_address_of_ones_own_replaces_the_streams_that_exist():
    keys = {"BYBIT_API_KEY": "a", "BYBIT_API_SECRET": "b", "BYBIT_ENV": "demo"}
    own = {"BYBIT_STREAM_URL": "wss://stream.example", "BYBIT_REST_URL": "https://rest.example"}
    at = bybit.addresses(Settings(_env_file=None, **keys, **own))
    assert at == bybit.Addresses(
        "https://rest.example", "wss://stream.example", "wss://stream.example", ""
    )


def test_topics_are_parted_so_that_one_connection_takes_them():
    topics = [f"kline.1.COIN{n}USDT" for n in range(3_000)]
    groups = bybit.parts(topics)
    assert [topic for group in groups for topic in group] == topics
    assert all(sum(len(topic) + 3 for topic in group) <= 21_000 for group in groups)
    assert bybit.parts([]) == []
