"""bybit: Bybit's rows to our messages and back, and what is never sent or taken in."""

import time
from decimal import Decimal

import pytest

from shared import bybit
from shared import messages as msg

D = Decimal
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


def request(**change):
    terms = ("dm-AUSDT-64-B", 7, "create", "AUSDT", "Buy", D("0.00001"), D(100), "PostOnly", False)
    return msg.OrderRequest(*terms, 0, time.monotonic_ns())._replace(**change)


def test_an_order_row_is_read_by_its_names_and_unset_numbers_are_zero():
    order = bybit.read(msg.OrderUpdate, ORDER)
    assert (order.order_link_id, order.price, order.qty) == ("dm-AUSDT-64-B", D("1.50"), 7)
    assert (order.cum_exec_qty, order.avg_price) == (0, 0)
    assert (order.created_time_ms, order.updated_time_ms) == (1000, 2000)
    assert order.recv_ns > 0


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


def test_every_number_leaves_as_a_plain_string():
    body = bybit.params_of(request())
    assert (body["price"], body["qty"]) == ("0.00001", "100")
    assert body["timeInForce"] == "PostOnly"
    assert {"price", "qty"}.isdisjoint(bybit.params_of(request(action="cancel")))


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        (0, "accepted"),
        (110072, "accepted"),  # an order with this id exists: the earlier one did arrive
        (110001, "refused"),
        (10006, "refused"),
        (10016, "unknown"),  # server error: it may have been taken
        (-1, "unknown"),
        (999_999, "unknown"),  # what is not listed proves nothing
    ],
)
def test_an_answer_has_three_outcomes(code, outcome):
    assert bybit.answered(request(), code, "text", None, {}, 0).outcome == outcome


def test_topics_are_parted_so_that_one_connection_takes_them():
    topics = [f"kline.1.COIN{n}USDT" for n in range(3_000)]
    groups = bybit.parts(topics)
    assert [topic for group in groups for topic in group] == topics
    assert all(sum(len(topic) + 3 for topic in group) <= 21_000 for group in groups)
    assert bybit.parts([]) == []
