"""stops: conditional orders, take profit and stop loss: when they fire, grow, move and end."""

from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.paper.journal import Journal
from services.paper.market import Listing
from services.paper.matching import Matching
from services.paper.params import Refused

SYMBOL = "AAAUSDT"
LONG, SHORT = "Buy", "Sell"
PARTIAL = {"tpslMode": "Partial"}


def plain(number: str) -> str:
    """110 for 110.0."""
    return f"{Decimal(number).normalize():f}" if number else ""


class Desk:
    """An engine with a bare book at 100: a tick of 0.1, a lot of 1."""

    def __init__(self) -> None:
        grid = (Decimal("0.1"), Decimal(1), Decimal(1), Decimal(10_000), 480)
        self.engine = Matching([Listing(SYMBOL, *grid)], Decimal(10**6), 1)
        self.engine.start(SYMBOL, Decimal(100))
        self.now_ms = 1_000

    def ask(self, verb: str, **params: Any) -> Any:
        """One request; numbers may be numbers."""
        self.now_ms += 1
        texts = {k: str(v) if isinstance(v, int | float) else v for k, v in params.items()}
        request = {"category": "linear", "symbol": SYMBOL, **texts}
        return getattr(self.engine, verb)(request, self.now_ms)

    def create(self, side: str, qty: Any, price: Any = None, link: str = "", **more: Any) -> str:
        """A Limit where there is a price, else a Market order; returns its orderId."""
        kind = {"orderType": "Limit", "price": price} if price else {"orderType": "Market"}
        terms = {"side": side, "qty": qty, "orderLinkId": link, **kind, **more}
        return str(self.ask("create", **terms)["orderId"])

    def stop(self, side: str, trigger: Any, price: Any = None, **more: Any) -> str:
        """A conditional order of 5 that waits on whichever side of the price its trigger is."""
        way = 1 if Decimal(str(trigger)) > self.engine.last[SYMBOL] else 2
        terms = {"triggerPrice": trigger, "triggerDirection": way} | more
        return self.create(side, 5, price, **terms)

    def refused(self, verb: str, **params: Any) -> tuple[int, str]:
        """The refusal of a request that must leave nothing behind."""
        before = self.engine.snapshot()
        self.engine.take_pushes()
        with pytest.raises(Refused) as error:
            self.ask(verb, **params)
        assert self.engine.snapshot()[1:] == before[1:]
        assert self.engine.take_pushes() == []
        return error.value.code, error.value.text

    def trade(self, price: Any, qty: int = 0) -> list[tuple[str, str, str]]:
        """The market trades; (side, price, quantity) of each fill that came of it."""
        self.now_ms += 1
        before = len(self.engine.executions)
        self.engine.trade(SYMBOL, Decimal(str(price)), Decimal(qty), self.now_ms)
        rows = self.engine.executions[before:]
        return [(row["side"], plain(row["execPrice"]), row["execQty"]) for row in rows]

    def order(self, order_id: str) -> Any:
        return self.engine.orders[order_id].row()

    def waiting(self) -> list[Any]:
        """Rows of all that waits for a trigger, oldest first."""
        return [order.row() for order in self.engine.stops.waiting[SYMBOL]]

    def brackets(self) -> list[tuple[str, str, str, str]]:
        """(stopOrderType, side, triggerPrice, qty) of each take profit and stop loss."""
        return [
            (row["stopOrderType"], row["side"], plain(row["triggerPrice"]), row["qty"])
            for row in self.waiting()
        ]

    def said(self, order_id: str) -> list[str]:
        """The statuses that were pushed of an order since the last look."""
        return [
            row["orderStatus"]
            for topic, row in self.engine.take_pushes()
            if topic == "order" and row["orderId"] == order_id
        ]

    def ended(self) -> list[tuple[str, str, str]]:
        """(stopOrderType, status, cancelType) of each bracket that is over, oldest first."""
        rows = [o.row() for o in self.engine.orders.values() if o.from_position]
        return [
            (row["stopOrderType"], row["orderStatus"], row["cancelType"])
            for row in rows
            if row["orderStatus"] != "Untriggered"
        ]

    @property
    def size(self) -> Decimal:
        return self.engine.wallet.position(SYMBOL).size

    @property
    def set(self) -> tuple[str, str]:
        """takeProfit and stopLoss of the position's row."""
        row = self.engine.position_row(SYMBOL)
        return plain(row["takeProfit"]), plain(row["stopLoss"])


@pytest.fixture
def desk() -> Desk:
    return Desk()


# Conditional orders.


@pytest.mark.parametrize(
    ("side", "trigger", "before", "at"),
    [
        ("Buy", "101", "100.9", "101"),  # rises to it: a breakout
        ("Sell", "101", "100.9", "101"),  # rises to it, to be sold
        ("Buy", "99", "99.1", "99"),  # falls to it
        ("Sell", "99", "99.1", "98"),  # falls through it
    ],
)
def test_a_conditional_order_waits_until_the_price_reaches_its_trigger(
    desk: Desk, side: str, trigger: str, before: str, at: str
) -> None:
    order_id = desk.stop(side, trigger)
    row = desk.order(order_id)
    assert (row["orderStatus"], row["stopOrderType"]) == ("Untriggered", "Stop")
    assert (plain(row["triggerPrice"]), row["triggerBy"]) == (trigger, "LastPrice")
    assert row["triggerDirection"] == (1 if trigger == "101" else 2)
    assert desk.trade(before) == []
    assert desk.trade(at) == [(side, at, "5")]
    assert desk.order(order_id)["orderStatus"] == "Filled"
    assert desk.waiting() == []


@pytest.mark.parametrize(
    ("trigger", "way", "code"),
    [("99", 1, 110092), ("100", 1, 110092), ("101", 2, 110093), ("100", 2, 110093)],
)
def test_a_trigger_on_the_wrong_side_of_the_price_is_refused(
    desk: Desk, trigger: str, way: int, code: int
) -> None:
    """1 waits for a rise, so the trigger is above the last price; 2 for a fall."""
    terms = {"side": "Buy", "orderType": "Market", "qty": 1, "triggerPrice": trigger}
    assert desk.refused("create", **terms, triggerDirection=way)[0] == code


@pytest.mark.parametrize("way", ["", "0", "3", "up", None])
def test_a_trigger_needs_a_direction(desk: Desk, way: Any) -> None:
    terms = {"side": "Buy", "orderType": "Market", "qty": 1, "triggerPrice": "101"}
    assert desk.refused("create", **terms, triggerDirection=way)[0] == 10001


def test_a_conditional_order_is_told_as_untriggered_triggered_and_what_follows(desk: Desk) -> None:
    order_id = desk.stop("Buy", 101)
    desk.trade(101)
    assert desk.said(order_id) == ["Untriggered", "Triggered", "Filled"]
    order_id = desk.stop("Buy", 102, 99)  # a limit of 99 once 102 is reached: it rests
    desk.trade(102)
    assert desk.said(order_id) == ["Untriggered", "Triggered", "New"]
    assert desk.trade("98.9") == [("Buy", "99", "5")]


def test_a_conditional_limit_order_that_crosses_takes_at_the_books_price(desk: Desk) -> None:
    desk.stop("Buy", 101, 103)
    assert desk.trade("101.5") == [("Buy", "101.5", "5")]
    assert desk.engine.executions[0]["isMaker"] is False


def test_a_conditional_post_only_order_that_crosses_is_cancelled(desk: Desk) -> None:
    order_id = desk.stop("Buy", 101, 103, timeInForce="PostOnly")
    desk.trade(101)
    row = desk.order(order_id)
    assert (row["orderStatus"], row["rejectReason"]) == (
        "Cancelled",
        "EC_PostOnlyWillTakeLiquidity",
    )


def test_a_triggered_market_order_is_priced_by_the_mark_of_that_moment(desk: Desk) -> None:
    """Its protective price is 5 % above 150, not above the 100 at which it was made."""
    order_id = desk.stop("Buy", 120)
    assert desk.trade(150) == [("Buy", "150", "5")]
    assert plain(desk.order(order_id)["price"]) == "157.5"


@pytest.mark.parametrize(("by", "fires"), [("MarkPrice", True), ("LastPrice", False)])
def test_a_trigger_looks_at_the_price_it_names(desk: Desk, by: str, fires: bool) -> None:
    desk.stop("Buy", "101.5", triggerBy=by)
    desk.engine.offset_mark(SYMBOL, Decimal("0.02"))  # last 100, mark 102
    assert bool(desk.trade(100)) is fires


def test_ten_conditional_orders_of_a_symbol_and_the_next_is_refused(desk: Desk) -> None:
    ids = [desk.stop("Buy", 101, link=f"s{n}") for n in range(10)]
    terms = {"side": "Buy", "orderType": "Market", "qty": 5, "orderLinkId": "late"}
    terms |= {"triggerPrice": 101, "triggerDirection": 1}
    assert desk.refused("create", **terms)[0] == 110009
    assert desk.engine.find({"orderLinkId": "late"}) is None  # and its id is still free
    desk.ask("cancel", orderId=ids[0])
    assert desk.order(str(desk.ask("create", **terms)["orderId"]))["orderStatus"] == "Untriggered"
    desk.trade(101)
    assert desk.size == 50  # ten of 5


def test_take_profits_do_not_use_up_the_ten(desk: Desk) -> None:
    desk.create("Buy", 9, takeProfit=110, stopLoss=90)
    for _ in range(10):
        desk.stop("Sell", 90)
    assert len(desk.waiting()) == 12


def test_a_cancelled_conditional_order_is_deactivated_and_does_not_fire(desk: Desk) -> None:
    order_id = desk.stop("Buy", 101)
    desk.ask("cancel", orderId=order_id)
    row = desk.order(order_id)
    assert (row["orderStatus"], row["cancelType"]) == ("Deactivated", "CancelByUser")
    assert desk.trade(102) == []


@pytest.mark.parametrize(
    ("kind", "left"), [("Order", 1), ("StopOrder", 1), ("OpenOrder", 0), (None, 0)]
)
def test_cancel_all_can_be_told_to_end_only_orders_or_only_conditional_ones(
    desk: Desk, kind: str | None, left: int
) -> None:
    resting, waiting = desk.create("Buy", 1, 99), desk.stop("Buy", 101)
    gone = desk.ask("cancel_all", orderFilter=kind)["list"]
    assert len(desk.engine.open_orders()) == left
    expected = {"Order": {resting}, "StopOrder": {waiting}}.get(str(kind), {resting, waiting})
    assert {row["orderId"] for row in gone} == expected


def test_a_conditional_order_can_be_amended_while_it_waits(desk: Desk) -> None:
    order_id = desk.stop("Buy", 101)
    desk.ask("amend", orderId=order_id, triggerPrice=102, qty=7)
    assert desk.trade(101) == []
    assert desk.trade(102) == [("Buy", "102", "7")]


def test_a_reduce_only_conditional_order_is_trimmed_when_it_fires_or_cancelled(desk: Desk) -> None:
    desk.create("Buy", 3)
    stop, late = (desk.stop("Sell", price, reduceOnly=True) for price in (95, 94))
    assert desk.trade(95) == [("Sell", "95", "3")]  # 5, of which 3 are there
    assert (desk.order(stop)["qty"], desk.order(stop)["orderStatus"]) == ("3", "Filled")
    assert desk.trade(94) == []
    assert (desk.order(late)["orderStatus"], desk.order(late)["cancelType"]) == (
        "Cancelled",
        "CancelByReduceOnly",
    )


def test_a_conditional_order_holds_no_margin_until_it_rests(desk: Desk) -> None:
    desk.stop("Buy", 102, 99)
    assert desk.engine.order_margin() == 0
    desk.trade(102)
    assert desk.engine.order_margin() == Decimal("49.5")  # 5 * 99 / 10


# Take profit and stop loss with an order: Full.


@pytest.mark.parametrize(
    ("side", "profit", "loss", "exit_side", "ways"),
    [(LONG, "110", "90", "Sell", (1, 2)), (SHORT, "90", "110", "Buy", (2, 1))],
)
def test_a_filled_order_leaves_its_take_profit_and_stop_loss_untriggered(
    desk: Desk, side: str, profit: str, loss: str, exit_side: str, ways: tuple[int, int]
) -> None:
    desk.create(side, 5, takeProfit=profit, stopLoss=loss, link="mine")
    tp, sl = desk.waiting()
    for row, name, price, way in (
        (tp, "TakeProfit", profit, ways[0]),
        (sl, "StopLoss", loss, ways[1]),
    ):
        assert (row["stopOrderType"], row["createType"]) == (name, f"CreateBy{name}")
        assert (row["orderStatus"], row["orderType"], row["qty"]) == ("Untriggered", "Market", "5")
        assert (row["side"], row["triggerPrice"], row["triggerDirection"]) == (
            exit_side,
            price,
            way,
        )
        assert (row["reduceOnly"], row["closeOnTrigger"], row["tpslMode"]) == (True, True, "Full")
        assert (row["orderLinkId"], row["triggerBy"]) == ("", "LastPrice")
    assert desk.set == (profit, loss)
    assert desk.trade(95) == desk.trade(105) == []


@pytest.mark.parametrize("mode", ["Full", "Partial"])
def test_a_child_names_its_parent(desk: Desk, mode: str) -> None:
    desk.create("Buy", 5, takeProfit=110, stopLoss=90, link="mine", tpslMode=mode)
    assert [row["parentOrderLinkId"] for row in desk.waiting()] == ["mine", "mine"]


@pytest.mark.parametrize(
    ("side", "profit", "loss", "price", "name"),
    [
        (LONG, 110, 90, "110", "TakeProfit"),
        (LONG, 110, 90, "90", "StopLoss"),
        (SHORT, 90, 110, "90", "TakeProfit"),
        (SHORT, 90, 110, "110", "StopLoss"),
    ],
)
def test_one_of_a_bracket_closes_the_position_and_the_other_is_cleared(
    desk: Desk, side: str, profit: int, loss: int, price: str, name: str
) -> None:
    desk.create(side, 5, takeProfit=profit, stopLoss=loss)
    assert desk.trade(price) == [({LONG: "Sell", SHORT: "Buy"}[side], price, "5")]
    assert (desk.size, desk.waiting()) == (0, [])
    over = {kind: (status, cancel) for kind, status, cancel in desk.ended()}
    assert over.pop(name) == ("Filled", "UNKNOWN")
    ((status, cancel),) = over.values()
    assert (status in ("Cancelled", "Deactivated"), cancel) == (True, "CancelByTpSlTsClear")
    assert desk.engine.executions[-1]["stopOrderType"] == name
    assert desk.engine.executions[-1]["createType"] == f"CreateBy{name}"


def test_a_resting_order_has_its_take_profit_only_once_it_is_filled(desk: Desk) -> None:
    order_id = desk.create("Buy", 5, 99, takeProfit=110, stopLoss=90)
    row = desk.order(order_id)
    assert (row["takeProfit"], row["stopLoss"], row["tpslMode"]) == ("110", "90", "Full")
    assert desk.waiting() == []
    desk.trade(99, 2)
    assert desk.brackets() == [("TakeProfit", "Sell", "110", "2"), ("StopLoss", "Sell", "90", "2")]
    desk.trade(99, 3)
    assert desk.brackets() == [("TakeProfit", "Sell", "110", "5"), ("StopLoss", "Sell", "90", "5")]


def test_full_ones_follow_the_size_of_the_position_whatever_changes_it(desk: Desk) -> None:
    desk.create("Buy", 5, takeProfit=110)
    desk.create("Buy", 4)
    assert desk.brackets() == [("TakeProfit", "Sell", "110", "9")]
    desk.create("Sell", 6)
    assert desk.brackets() == [("TakeProfit", "Sell", "110", "3")]  # 9 - 6
    assert desk.trade(110) == [("Sell", "110", "3")]


def test_a_later_order_moves_the_positions_take_profit_instead_of_adding_one(desk: Desk) -> None:
    desk.create("Buy", 5, takeProfit=110, stopLoss=90)
    ids = [row["orderId"] for row in desk.waiting()]
    desk.create("Buy", 5, takeProfit=112)
    assert [row["orderId"] for row in desk.waiting()] == ids
    assert desk.brackets() == [
        ("TakeProfit", "Sell", "112", "10"),
        ("StopLoss", "Sell", "90", "10"),
    ]


@pytest.mark.parametrize("close", ["reduce", "flip"])
def test_when_the_position_is_closed_otherwise_all_its_stops_are_cleared(
    desk: Desk, close: str
) -> None:
    desk.create("Buy", 5, takeProfit=110, stopLoss=90)
    desk.create("Buy", 2, takeProfit=115, link="p", **PARTIAL)
    if close == "reduce":
        desk.create("Sell", 7, reduceOnly=True)
    else:
        desk.create("Sell", 9)
    assert desk.size == (0 if close == "reduce" else -2)
    assert desk.waiting() == []
    assert len(desk.ended()) == 3
    for _, status, cancel in desk.ended():
        assert status in ("Cancelled", "Deactivated")  # the docs do not say which
        assert cancel == "CancelByTpSlTsClear"
    assert desk.trade(120) == desk.trade(80) == []
    assert desk.set == ("", "")


def test_an_order_that_reduces_the_other_side_brings_no_stops(desk: Desk) -> None:
    """A bracket belongs to a position of its order's side: a short has no use for a buy's."""
    desk.create("Sell", 9)
    desk.create("Buy", 4, takeProfit=110, stopLoss=90)
    assert (desk.size, desk.waiting()) == (-5, [])
    assert desk.trade(100) == []
    assert desk.size == -5


def test_an_order_that_flips_the_position_brings_stops_for_what_it_opens(desk: Desk) -> None:
    desk.create("Sell", 2)
    desk.create("Buy", 5, takeProfit=110)
    assert desk.brackets() == [("TakeProfit", "Sell", "110", "3")]  # 5 - 2


# Partial.


def test_partial_ones_are_of_their_order_alone_and_grow_with_its_fills(desk: Desk) -> None:
    desk.create("Buy", 3)
    desk.create("Buy", 5, 99, link="mine", takeProfit=110, stopLoss=90, **PARTIAL)
    desk.trade(99, 2)
    rows = desk.waiting()
    assert desk.brackets() == [
        ("PartialTakeProfit", "Sell", "110", "2"),
        ("PartialStopLoss", "Sell", "90", "2"),
    ]
    assert {row["createType"] for row in rows} == {
        "CreateByPartialTakeProfit",
        "CreateByPartialStopLoss",
    }
    assert {(row["parentOrderLinkId"], row["tpslMode"]) for row in rows} == {("mine", "Partial")}
    desk.trade(99, 3)
    assert [row["orderId"] for row in desk.waiting()] == [row["orderId"] for row in rows]
    assert [row["qty"] for row in desk.waiting()] == ["5", "5"]  # 2 + 3
    assert desk.trade(110) == [("Sell", "110", "5")]
    assert desk.size == 3  # what was there before stays


def test_partial_ones_grow_for_an_order_without_a_name_too(desk: Desk) -> None:
    desk.create("Buy", 5, 99, takeProfit=110, **PARTIAL)
    desk.trade(99, 2)
    desk.trade(99, 3)
    assert desk.brackets() == [("PartialTakeProfit", "Sell", "110", "5")]


@pytest.mark.parametrize(("price", "other"), [(110, "PartialStopLoss"), (90, "PartialTakeProfit")])
def test_one_cancels_the_other(desk: Desk, price: int, other: str) -> None:
    desk.create("Buy", 3)
    desk.create("Buy", 5, link="mine", takeProfit=110, stopLoss=90, **PARTIAL)
    desk.trade(price)
    assert (desk.size, desk.waiting()) == (3, [])
    ((status, cancel),) = [(s, c) for name, s, c in desk.ended() if name == other]
    assert (status in ("Cancelled", "Deactivated"), cancel) == (True, "CancelByTpSlTsClear")


@pytest.mark.parametrize("names", [("one", "two"), ("", "")], ids=["named", "nameless"])
def test_the_bracket_of_another_order_stays(desk: Desk, names: tuple[str, str]) -> None:
    terms = {"takeProfit": 110, "stopLoss": 90}
    desk.create("Buy", 5, 99, link=names[0], **terms, **PARTIAL)
    terms = {"takeProfit": 112, "stopLoss": 88}
    desk.create("Buy", 4, 99, link=names[1], **terms, **PARTIAL)
    desk.trade(98)  # fills both, in the same millisecond
    assert desk.trade(110) == [("Sell", "110", "5")]
    assert desk.brackets() == [
        ("PartialTakeProfit", "Sell", "112", "4"),
        ("PartialStopLoss", "Sell", "88", "4"),
    ]


def test_a_limit_take_profit_rests_as_a_reduce_only_order_once_it_is_triggered(desk: Desk) -> None:
    limit = {"tpOrderType": "Limit", "tpLimitPrice": "110.5"}
    desk.create("Buy", 5, link="mine", takeProfit=110, stopLoss=90, **limit, **PARTIAL)
    tp = desk.waiting()[0]
    assert (tp["orderType"], tp["price"], tp["timeInForce"]) == ("Limit", "110.5", "GTC")
    desk.engine.take_pushes()
    assert desk.trade(110) == []
    assert desk.said(tp["orderId"]) == ["Triggered", "New"]
    assert desk.trade("110.6") == [("Sell", "110.5", "5")]
    assert desk.engine.executions[-1]["isMaker"] is True


def test_a_limit_take_profit_at_its_trigger_takes(desk: Desk) -> None:
    """A TP of this kind is not guaranteed to be maker: the trigger has already traded."""
    limit = {"tpOrderType": "Limit", "tpLimitPrice": "109"}
    desk.create("Buy", 5, takeProfit=110, **limit, **PARTIAL)
    assert desk.trade(110) == [("Sell", "110", "5")]
    assert desk.engine.executions[-1]["isMaker"] is False


def test_partial_ones_together_never_sell_more_than_there_is(desk: Desk) -> None:
    desk.create("Buy", 5, link="a", takeProfit=110, **PARTIAL)
    desk.create("Buy", 5, link="b", takeProfit=110, **PARTIAL)
    desk.create("Sell", 7, reduceOnly=True)
    assert desk.trade(110) == [("Sell", "110", "3")]  # 10 - 7
    assert (desk.size, desk.waiting()) == (0, [])


@pytest.mark.parametrize(
    ("side", "terms"),
    [
        ("Buy", {"takeProfit": 99}),
        ("Buy", {"takeProfit": 100}),
        ("Buy", {"stopLoss": 101}),
        ("Buy", {"stopLoss": 100}),
        ("Sell", {"takeProfit": 101}),
        ("Sell", {"stopLoss": 99}),
        ("Buy", {"takeProfit": "abc"}),
        ("Buy", {"takeProfit": -110}),
        ("Buy", {"takeProfit": 110, "tpslMode": "Half"}),
        ("Buy", {"takeProfit": 110, "tpTriggerBy": "Price"}),
        ("Buy", {"takeProfit": 110, "tpslMode": "Full", "tpOrderType": "Limit", "tpLimitPrice": 9}),
        ("Buy", {"takeProfit": 110, "tpslMode": "Partial", "tpOrderType": "Limit"}),
    ],
    ids=str,
)
def test_a_bracket_that_cannot_be_is_refused(desk: Desk, side: str, terms: dict[str, Any]) -> None:
    request = {"side": side, "orderType": "Market", "qty": 1, **terms}
    assert desk.refused("create", **request)[0] == 10001


@pytest.mark.parametrize(
    ("side", "price", "profit", "loss"), [("Buy", 95, 98, 92), ("Sell", 105, 102, 108)]
)
def test_the_bracket_of_a_limit_order_lies_around_its_own_price(
    desk: Desk, side: str, price: int, profit: int, loss: int
) -> None:
    """A dip is bought at 95, and sold at 98, although the price is 100."""
    request = {"side": side, "orderType": "Limit", "qty": 5, "price": price}
    assert desk.refused("create", **request, takeProfit=loss)[0] == 10001
    assert desk.refused("create", **request, stopLoss=profit)[0] == 10001
    desk.ask("create", **request, takeProfit=profit, stopLoss=loss)
    desk.trade(price, 5)
    assert desk.size == (5 if side == "Buy" else -5)
    assert desk.trade(profit)[0][1:] == (str(profit), "5")


def test_a_reduce_only_order_has_no_take_profit(desk: Desk) -> None:
    desk.create("Buy", 5)
    request = {"side": "Sell", "orderType": "Market", "qty": 1, "reduceOnly": True}
    assert desk.refused("create", **request, takeProfit=90)[0] == 10001


@pytest.mark.parametrize(
    "terms",
    [
        {"takeProfit": "110.05"},
        {"stopLoss": "89.99"},
        {"triggerPrice": "101.05", "triggerDirection": 1},
        {"takeProfit": 110, **PARTIAL, "tpOrderType": "Limit", "tpLimitPrice": "110.05"},
    ],
    ids=str,
)
def test_a_price_of_a_stop_lies_on_the_grid_too(desk: Desk, terms: dict[str, Any]) -> None:
    request = {"side": "Buy", "orderType": "Market", "qty": 1, **terms}
    assert desk.refused("create", **request)[0] == 10001  # the tick is 0.1


@pytest.mark.parametrize("mode", ["Full", "Partial"])
def test_a_take_profit_of_0_is_none(desk: Desk, mode: str) -> None:
    desk.create("Buy", 5, takeProfit=110)
    desk.create("Buy", 4, link="b", takeProfit="0", stopLoss="0", tpslMode=mode)
    assert desk.brackets() == [("TakeProfit", "Sell", "110", "9")]  # the one it had is untouched
    assert desk.trade(100) == []


# trading-stop.


def test_a_position_gets_moves_and_loses_its_stops(desk: Desk) -> None:
    desk.create("Buy", 5)
    assert desk.ask("trading_stop", takeProfit=110, stopLoss=90, tpslMode="Full") == {}
    assert desk.brackets() == [("TakeProfit", "Sell", "110", "5"), ("StopLoss", "Sell", "90", "5")]
    before = [row["orderId"] for row in desk.waiting()]
    desk.ask("trading_stop", takeProfit=111)
    assert desk.brackets()[0] == ("TakeProfit", "Sell", "111", "5")
    assert [row["orderId"] for row in desk.waiting()] == before  # moved, not new
    desk.engine.take_pushes()
    desk.ask("trading_stop", takeProfit="0")
    assert desk.brackets() == [("StopLoss", "Sell", "90", "5")]
    assert desk.said(before[0])[0] in ("Deactivated", "Cancelled")
    assert desk.order(before[0])["cancelType"] == "CancelByTpSlTsClear"
    assert desk.set == ("", "90")
    desk.ask("trading_stop", stopLoss="0")
    assert desk.waiting() == []


@pytest.mark.parametrize(
    "again",
    [{"takeProfit": 110}, {"takeProfit": "110.0"}, {"stopLoss": "0"}, {}, {"takeProfit": ""}],
    ids=str,
)
def test_what_changes_nothing_is_not_modified(desk: Desk, again: dict[str, Any]) -> None:
    desk.create("Buy", 5)
    desk.ask("trading_stop", takeProfit=110)
    assert desk.refused("trading_stop", **again) == (34040, "not modified")


def test_a_position_that_is_none_has_no_stops(desk: Desk) -> None:
    code, text = desk.refused("trading_stop", takeProfit=110)
    assert (code, "zero position" in text) == (10001, True)


@pytest.mark.parametrize(
    "terms",
    [
        {"takeProfit": 99},
        {"stopLoss": 101},
        {"takeProfit": 110, "tpslMode": "Half"},
        {"trailingStop": 5},
        {"takeProfit": 110, **PARTIAL},  # of how much?
        {"takeProfit": 110, "tpSize": 6, **PARTIAL},  # more than the 5 there are
        {"takeProfit": 110, "tpSize": "0.5", **PARTIAL},  # off the lot
        {"takeProfit": 110, "tpSize": 1, "stopLoss": 90, "slSize": 6, **PARTIAL},
    ],
    ids=str,
)
def test_a_trading_stop_that_cannot_be_leaves_nothing_behind(
    desk: Desk, terms: dict[str, Any]
) -> None:
    desk.create("Buy", 5)
    assert desk.refused("trading_stop", **terms)[0] == 10001


def test_partial_stops_of_a_position_are_for_the_size_they_name(desk: Desk) -> None:
    desk.create("Sell", 5)
    desk.ask("trading_stop", takeProfit=95, tpSize=2, stopLoss=105, slSize=2, **PARTIAL)
    limit = {"tpOrderType": "Limit", "tpLimitPrice": "93.5"}
    desk.ask("trading_stop", takeProfit=94, tpSize=1, **limit, **PARTIAL)
    assert desk.brackets() == [
        ("PartialTakeProfit", "Buy", "95", "2"),
        ("PartialStopLoss", "Buy", "105", "2"),
        ("PartialTakeProfit", "Buy", "94", "1"),
    ]
    assert desk.trade(95) == [("Buy", "95", "2")]
    assert desk.brackets() == [("PartialTakeProfit", "Buy", "94", "1")]  # its other one is gone
    assert desk.trade(94) == []  # 93.5 rests
    assert desk.trade("93.4") == [("Buy", "93.5", "1")]
    assert desk.size == -2


def test_partial_stops_of_the_same_millisecond_are_not_one_bracket(desk: Desk) -> None:
    desk.create("Buy", 9)
    for profit, loss, size in ((110, 90, 2), (112, 88, 3)):
        terms = {"takeProfit": profit, "tpSize": size, "stopLoss": loss, "slSize": size}
        desk.ask("trading_stop", **terms, **PARTIAL)
        desk.now_ms -= 1
    assert desk.trade(110) == [("Sell", "110", "2")]
    assert desk.brackets() == [
        ("PartialTakeProfit", "Sell", "112", "3"),
        ("PartialStopLoss", "Sell", "88", "3"),
    ]


def test_twenty_partial_stops_of_a_symbol_and_the_next_is_refused(desk: Desk) -> None:
    desk.create("Buy", 50)
    for _ in range(10):
        desk.ask("trading_stop", takeProfit=110, tpSize=1, stopLoss=90, slSize=1, **PARTIAL)
    terms = {"takeProfit": 110, "tpSize": 1, **PARTIAL}
    assert desk.refused("trading_stop", **terms)[0] == 110061


def test_every_change_of_a_stop_pushes_the_position(desk: Desk) -> None:
    desk.create("Buy", 5)
    for profit, shown in ((110, "110"), (111, "111"), ("0", "")):
        desk.engine.take_pushes()
        desk.ask("trading_stop", takeProfit=profit)
        rows = [row for topic, row in desk.engine.take_pushes() if topic == "position"]
        assert plain(rows[-1]["takeProfit"]) == shown


# Amending a resting order's take profit.


def test_the_take_profit_of_a_resting_order_can_be_amended(desk: Desk) -> None:
    order_id = desk.create("Buy", 5, 99, takeProfit=110, stopLoss=90)
    desk.ask("amend", orderId=order_id, takeProfit=112)
    row = desk.order(order_id)
    assert (row["takeProfit"], row["stopLoss"], row["orderStatus"]) == ("112", "90", "New")
    desk.trade(98)
    assert desk.brackets() == [("TakeProfit", "Sell", "112", "5"), ("StopLoss", "Sell", "90", "5")]


def test_amending_a_take_profit_keeps_the_place_in_the_queue(desk: Desk) -> None:
    first = desk.create("Buy", 5, 99, takeProfit=110)
    desk.create("Buy", 5, 99)
    desk.ask("amend", orderId=first, takeProfit=112)
    desk.trade(99, 1)
    assert desk.order(first)["cumExecQty"] == "1"


@pytest.mark.parametrize("mode", ["Full", "Partial"])
def test_a_take_profit_amended_to_0_is_cleared(desk: Desk, mode: str) -> None:
    order_id = desk.create("Buy", 5, 99, takeProfit=110, stopLoss=90, tpslMode=mode, link="m")
    desk.ask("amend", orderId=order_id, takeProfit="0")
    assert desk.order(order_id)["takeProfit"] in ("", "0")
    desk.trade(98)
    name = "StopLoss" if mode == "Full" else "PartialStopLoss"
    assert desk.brackets() == [(name, "Sell", "90", "5")]


def test_amending_one_field_of_a_bracket_leaves_the_others(desk: Desk) -> None:
    limit = {"tpOrderType": "Limit", "tpLimitPrice": "110.5"}
    order_id = desk.create("Buy", 5, 99, "m", takeProfit=110, **limit, **PARTIAL)
    desk.ask("amend", orderId=order_id, takeProfit=111)
    row = desk.order(order_id)
    assert (row["takeProfit"], row["tpLimitPrice"]) == ("111", "110.5")
    assert (row["tpslMode"], row["tpOrderType"]) == ("Partial", "Limit")
    desk.ask("amend", orderId=order_id, tpLimitPrice="112.5")
    assert desk.order(order_id)["tpLimitPrice"] == "112.5"


@pytest.mark.parametrize(
    ("terms", "text"),
    [({"takeProfit": 99}, "should be higher"), ({"takeProfit": 110}, "not modified")],
    ids=str,
)
def test_an_amend_of_a_take_profit_that_cannot_be_is_refused(
    desk: Desk, terms: dict[str, Any], text: str
) -> None:
    order_id = desk.create("Buy", 5, 99, takeProfit=110)
    code, said = desk.refused("amend", orderId=order_id, **terms)
    assert (code, text in said) == (10001, True)


def test_a_take_profit_that_waits_can_be_moved_and_cancelled_by_its_own_id(desk: Desk) -> None:
    desk.create("Buy", 5, takeProfit=110, stopLoss=90)
    tp, sl = (row["orderId"] for row in desk.waiting())
    desk.ask("amend", orderId=tp, triggerPrice=108)
    assert desk.set == ("108", "90")
    desk.ask("cancel", orderId=sl)
    assert desk.set == ("108", "")
    assert desk.trade(108) == [("Sell", "108", "5")]


def test_how_much_a_full_one_closes_is_not_a_matter_of_choice(desk: Desk) -> None:
    desk.create("Buy", 5, takeProfit=110)
    tp = desk.waiting()[0]["orderId"]
    assert desk.refused("amend", orderId=tp, qty=1)[0] == 10001
    assert desk.brackets() == [("TakeProfit", "Sell", "110", "5")]


# A restart.


def restarted(desk: Desk, folder: Path, compact: bool) -> Desk:
    """A new engine that reads what the old one has written."""
    fresh, file = Desk(), folder / "paper.jsonl"
    journal = Journal(file, {})
    if compact:
        journal.open(desk.engine, 0, 0)
    else:
        journal.open(Desk().engine, 0, 0)
        journal.write(desk.engine.take_pushes(), desk.engine, desk.now_ms)
    fresh.engine.start(SYMBOL, desk.engine.last[SYMBOL])
    Journal(file, {}).restore(fresh.engine)
    fresh.now_ms = desk.now_ms
    return fresh


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("link", ["mine", ""], ids=["named", "nameless"])
def test_a_bracket_is_one_and_grows_after_a_restart_too(
    desk: Desk, tmp_path: Path, link: str, compact: bool
) -> None:
    desk.create("Buy", 3)
    desk.create("Buy", 5, 99, link, takeProfit=110, stopLoss=90, **PARTIAL)
    desk.trade(99, 2)
    again = restarted(desk, tmp_path, compact)
    assert again.brackets() == desk.brackets()
    for one in (desk, again):
        one.trade(99, 3)
        assert one.brackets() == [
            ("PartialTakeProfit", "Sell", "110", "5"),
            ("PartialStopLoss", "Sell", "90", "5"),
        ]
        assert one.trade(110) == [("Sell", "110", "5")]
        assert (one.brackets(), one.size) == ([], 3)


@pytest.mark.parametrize("compact", [False, True])
def test_conditional_and_full_stops_fire_after_a_restart_too(
    desk: Desk, tmp_path: Path, compact: bool
) -> None:
    desk.create("Buy", 5, takeProfit=110, stopLoss=90)
    desk.ask("trading_stop", takeProfit=108, tpSize=2, stopLoss=92, slSize=2, **PARTIAL)
    desk.stop("Buy", 105)
    again = restarted(desk, tmp_path, compact)
    assert again.waiting() == desk.waiting()
    assert again.trade(105) == [("Buy", "105", "5")]
    assert again.trade(108) == [("Sell", "108", "2")]
    assert again.brackets() == [("TakeProfit", "Sell", "110", "8"), ("StopLoss", "Sell", "90", "8")]
    assert again.trade(90) == [("Sell", "90", "8")]


# What holds for every sequence.

TENTHS = st.integers(900, 1100).map(lambda tenths: Decimal(tenths) / 10)
SIDE = st.sampled_from((LONG, SHORT))
PRICE = st.one_of(st.none(), TENTHS)
MODE = st.sampled_from(("Full", "Partial"))
TRADE = st.tuples(st.just("trade"), TENTHS, st.integers(0, 9))
CREATE = st.tuples(st.just("create"), SIDE, st.integers(1, 9), PRICE, PRICE, PRICE, MODE)
STOP = st.tuples(st.just("stop"), SIDE, TENTHS, PRICE, st.booleans())
MOVE = st.tuples(st.just("move"), PRICE, PRICE, MODE, st.integers(1, 5))
AMEND = st.tuples(st.just("amend"), st.integers(0, 20), PRICE, PRICE, st.integers(1, 9))
CANCEL = st.tuples(st.just("cancel"), st.integers(0, 20))
ACTS = st.lists(st.one_of(TRADE, TRADE, CREATE, CREATE, STOP, MOVE, AMEND, CANCEL), max_size=30)


def given_ones(**terms: Any) -> dict[str, Any]:
    return {name: value for name, value in terms.items() if value is not None}


def play(desk: Desk, act: Any) -> None:
    """One random act; a refusal is as good as any other answer."""
    name, *args = act
    ids = [order.order_id for order in desk.engine.open_orders()]
    try:
        if name == "trade":
            desk.trade(*args)
        elif name == "create":
            side, qty, price, profit, loss, mode = args
            terms = given_ones(takeProfit=profit, stopLoss=loss, tpslMode=mode)
            desk.create(
                side, qty, price, f"l{desk.now_ms}", **{k: str(v) for k, v in terms.items()}
            )
        elif name == "stop":
            side, trigger, price, reduces = args
            desk.stop(side, str(trigger), price, reduceOnly=reduces)
        elif name == "move":
            profit, loss, mode, size = args
            terms = given_ones(takeProfit=profit, stopLoss=loss)
            sizes = {"tpSize": size, "slSize": size} if mode == "Partial" else {}
            desk.ask(
                "trading_stop", tpslMode=mode, **{k: str(v) for k, v in terms.items()}, **sizes
            )
        elif ids and name == "amend":
            number, price, profit, qty = args
            named = desk.engine.orders[ids[number % len(ids)]]
            size = None if named.from_position else qty  # theirs is not ours to choose
            terms = given_ones(price=price, takeProfit=profit, qty=size)
            terms = {k: str(v) for k, v in terms.items()}
            desk.ask("amend", orderId=named.order_id, **terms)
        elif ids:
            desk.ask("cancel", orderId=ids[args[0] % len(ids)])
    except Refused:
        pass


def reached(row: Any, last: Decimal) -> bool:
    trigger = Decimal(row["triggerPrice"])
    return last >= trigger if row["triggerDirection"] == 1 else last <= trigger


@given(ACTS)
@example(
    [
        ("trade", Decimal("90"), 0),
        ("stop", "Buy", Decimal("90.1"), None, False),
        ("amend", 0, None, Decimal("90.1"), 1),
        ("trade", Decimal("90.1"), 0),
    ]
)
@settings(max_examples=150, deadline=None)
def test_stops_belong_to_the_position_there_is_and_none_is_overdue(acts: list[Any]) -> None:
    desk = Desk()
    for act in acts:
        play(desk, act)
        rows = desk.waiting()
        brackets = [row for row in rows if row["createType"] != "CreateByUser"]
        assert len(rows) - len(brackets) <= 10
        assert all(row["orderStatus"] == "Untriggered" for row in rows)
        for row in brackets:
            assert row["side"] == ("Sell" if desk.size > 0 else "Buy") and desk.size
            if row["tpslMode"] == "Full":
                assert Decimal(row["qty"]) == abs(desk.size)
        full = [row["stopOrderType"] for row in brackets if row["tpslMode"] == "Full"]
        assert len(full) == len(set(full))
        if act[0] == "trade":
            assert not any(reached(row, desk.engine.last[SYMBOL]) for row in rows)


@given(ACTS)
@settings(max_examples=150, deadline=None)
def test_no_stop_opens_or_flips_a_position_and_each_sells_at_most_what_its_order_bought(
    acts: list[Any],
) -> None:
    desk, size = Desk(), Decimal(0)
    for act in acts:
        play(desk, act)
        for topic, row in desk.engine.take_pushes():
            if topic != "execution":
                continue
            signed = Decimal(row["execQty"]) * (1 if row["side"] == "Buy" else -1)
            order = desk.order(row["orderId"])
            if order["reduceOnly"]:
                assert size * signed < 0 and abs(signed) <= abs(size)
            if order["parentOrderLinkId"] and order["tpslMode"] == "Partial":
                parent = desk.engine.find({"orderLinkId": order["parentOrderLinkId"]})
                assert parent and Decimal(order["cumExecQty"]) <= parent.filled
            size += signed
        assert size == desk.size


EDGES = {
    None: {"New", "Untriggered", "PartiallyFilled", "Filled", "Cancelled"},
    "Untriggered": {"Untriggered", "Triggered", "Deactivated", "Cancelled"},
    "Triggered": {"New", "PartiallyFilled", "Filled", "Cancelled"},
    "New": {"New", "PartiallyFilled", "Filled", "Cancelled"},
    "PartiallyFilled": {"PartiallyFilled", "Filled", "Cancelled"},
}


@given(ACTS)
@settings(max_examples=100, deadline=None)
def test_an_order_only_moves_along_the_allowed_edges(acts: list[Any]) -> None:
    desk = Desk()
    for act in acts:
        play(desk, act)
    told: dict[str, list[Any]] = {}
    for topic, row in desk.engine.take_pushes():
        if topic == "order":
            told.setdefault(row["orderId"], []).append(row)
    assert set(told) == set(desk.engine.orders)
    for rows in told.values():
        statuses = [None, *(row["orderStatus"] for row in rows)]
        assert all(new in EDGES.get(old, ()) for old, new in pairwise(statuses)), statuses
        filled = [Decimal(row["cumExecQty"]) for row in rows]
        assert filled == sorted(filled)
        assert rows[-1] == desk.order(rows[-1]["orderId"])  # the last word is the truth
