"""matching and wallet: orders meet trades as on Bybit, and no cent is made or lost."""

from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.paper.journal import Journal
from services.paper.market import Listing
from services.paper.matching import Matching
from services.paper.params import Refused
from services.paper.wallet import Wallet

SYMBOL, OTHER = "AAAUSDT", "BBBUSDT"
MAKER, TAKER = Decimal("0.0002"), Decimal("0.00055")
BALANCE = Decimal(1000)
START = Decimal("100.0")


def listing(symbol: str) -> Listing:
    """A tick of 0.1, a lot of 1 from 1 to 1000."""
    return Listing(symbol, Decimal("0.1"), Decimal(1), Decimal(1), Decimal(1000), 480)


class Desk:
    """A matching engine at a last price of 100, and the pushes it has made."""

    def __init__(self, seed: int = 1, balance: Decimal = BALANCE) -> None:
        self.engine = Matching([listing(SYMBOL), listing(OTHER)], balance, seed)
        for symbol in (SYMBOL, OTHER):
            self.engine.start(symbol, START)
        self.now_ms = 1_000

    def create(self, side: str, qty: Any, price: Any = None, link: str = "", **more: Any) -> str:
        """A Limit where there is a price, else a Market order; returns its orderId."""
        params = {"category": "linear", "symbol": SYMBOL, "side": side, "qty": str(qty)}
        params |= {"orderType": "Limit" if price else "Market", "orderLinkId": link}
        self.now_ms += 1
        answer = self.engine.create(
            params | ({"price": str(price)} if price else {}) | more, self.now_ms
        )
        return str(answer["orderId"])

    def maker(self, side: str, qty: Any, price: Any, **more: Any) -> str:
        return self.create(side, qty, price, timeInForce="PostOnly", **more)

    def exit(self, side: str, qty: Any, price: Any = None, **more: Any) -> str:
        return self.create(side, qty, price, reduceOnly=True, **more)

    def amend(self, order_id: str, **what: Any) -> Any:
        self.now_ms += 1
        key = {"category": "linear", "symbol": SYMBOL, "orderId": order_id}
        return self.engine.amend(
            key | {name: str(value) for name, value in what.items()}, self.now_ms
        )

    def cancel(self, order_id: str) -> Any:
        self.now_ms += 1
        key = {"category": "linear", "symbol": SYMBOL, "orderId": order_id}
        return self.engine.cancel(key, self.now_ms)

    def trade(self, price: Any, qty: Any = 0, symbol: str = SYMBOL) -> list[Any]:
        """The market trades; returns (orderId, price, quantity, maker) of each fill it made."""
        self.now_ms += 1
        before = len(self.engine.executions)
        self.engine.trade(symbol, Decimal(str(price)), Decimal(str(qty)), self.now_ms)
        return [
            (row["orderId"], f"{float(row['execPrice']):g}", row["execQty"], row["isMaker"])
            for row in self.engine.executions[before:]
        ]

    def order(self, order_id: str) -> Any:
        return self.engine.orders[order_id].row()

    def status(self, order_id: str) -> tuple[str, str, str]:
        row = self.order(order_id)
        return row["orderStatus"], row["cumExecQty"], row["rejectReason"]

    @property
    def size(self) -> Decimal:
        return self.engine.wallet.position(SYMBOL).size

    def pushed(self, topic: str) -> list[Any]:
        return [row for name, row in self.engine.take_pushes() if name == topic]


@pytest.fixture
def desk() -> Desk:
    return Desk()


# PostOnly.


@pytest.mark.parametrize(
    ("side", "price"), [("Buy", 100), ("Buy", 101), ("Sell", 100), ("Sell", 99)]
)
def test_post_only_that_would_cross_is_accepted_and_then_cancelled(
    desk: Desk, side: str, price: int
) -> None:
    order_id = desk.maker(side, 1, price)  # no Refused: the answer is retCode 0
    (row,) = desk.pushed("order")
    assert (row["orderId"], row["orderStatus"]) == (order_id, "Cancelled")
    assert (row["rejectReason"], row["cancelType"]) == ("EC_PostOnlyWillTakeLiquidity", "UNKNOWN")
    assert (row["cumExecQty"], row["leavesQty"]) == ("0", "0")
    assert desk.engine.executions == []


@pytest.mark.parametrize(("side", "price"), [("Buy", "99.9"), ("Sell", "100.1")])
def test_post_only_one_tick_behind_the_last_price_rests(desk: Desk, side: str, price: str) -> None:
    order_id = desk.maker(side, 1, price)
    assert desk.status(order_id) == ("New", "0", "EC_NoError")
    (row,) = desk.pushed("order")
    assert (row["price"], row["leavesQty"], row["lastPriceOnCreated"]) == (price, "1", "100.0")


def test_a_post_only_order_amended_across_the_last_price_is_cancelled(desk: Desk) -> None:
    order_id = desk.maker("Buy", 1, 99)
    desk.amend(order_id, price=101)
    assert desk.status(order_id) == ("Cancelled", "0", "EC_PostOnlyWillTakeLiquidity")


# Fills of resting orders.


@pytest.mark.parametrize(("side", "mine", "through"), [("Buy", 99, 98), ("Sell", 101, 102)])
def test_a_trade_through_a_resting_order_fills_it_whole_at_its_own_price(
    desk: Desk, side: str, mine: int, through: int
) -> None:
    order_id = desk.maker(side, 10, mine)
    assert desk.trade(through, qty=1) == [(order_id, str(mine), "10", True)]
    assert desk.status(order_id)[:2] == ("Filled", "10")
    row = desk.engine.executions[0]
    assert Decimal(row["execFee"]) == 10 * mine * MAKER
    assert Decimal(row["execValue"]) == 10 * mine
    assert desk.engine.wallet.balance == BALANCE - 10 * mine * MAKER


def test_a_trade_on_the_far_side_fills_nothing(desk: Desk) -> None:
    desk.maker("Buy", 10, 99)
    desk.maker("Sell", 10, 101)
    assert desk.trade("99.1", 100) == []
    assert desk.trade("100.9", 100) == []


def test_a_trade_at_the_price_fills_what_was_traded_oldest_first(desk: Desk) -> None:
    first, second = desk.maker("Buy", 4, 99), desk.maker("Buy", 4, 99)
    assert desk.trade(99, 3) == [(first, "99", "3", True)]
    assert desk.status(first)[:2] == ("PartiallyFilled", "3")
    assert desk.trade(99, 3) == [
        (first, "99", "1", True),
        (second, "99", "2", True),
    ]  # 4 - 3, 3 - 1
    assert desk.trade(99, 0) == []
    assert desk.trade(98, 0) == [(second, "99", "2", True)]  # 4 - 2: the rest, by the trade-through


def test_the_better_price_goes_first_when_one_trade_reaches_both(desk: Desk) -> None:
    """Price-time priority: 103 is reached before 105, and takes all that is left to reduce."""
    desk.create("Buy", 5)
    far, near = desk.exit("Sell", 5, 105), desk.exit("Sell", 5, 103)
    assert desk.trade(110) == [(near, "103", "5", True)]
    assert desk.order(far)["cancelType"] == "CancelByReduceOnly"


def test_a_fill_is_told_as_order_position_execution_and_wallet(desk: Desk) -> None:
    order_id = desk.maker("Buy", 4, 99, link="mine")
    desk.engine.take_pushes()
    desk.trade(99, 3)
    pushes = desk.engine.take_pushes()
    assert {topic for topic, _ in pushes} == {"order", "position", "execution", "wallet"}
    rows = dict(pushes)
    assert (rows["order"]["orderStatus"], rows["order"]["leavesQty"]) == ("PartiallyFilled", "1")
    assert rows["order"]["avgPrice"] == "99"
    assert (rows["execution"]["execQty"], rows["execution"]["orderLinkId"]) == ("3", "mine")
    assert (rows["execution"]["orderId"], rows["execution"]["execType"]) == (order_id, "Trade")
    assert (rows["position"]["side"], rows["position"]["size"]) == ("Buy", "3")
    assert Decimal(rows["wallet"]["totalWalletBalance"]) == BALANCE - 3 * 99 * MAKER


def test_every_action_on_an_order_pushes_the_position(desk: Desk) -> None:
    order_id = desk.maker("Buy", 1, 99)
    assert len(desk.pushed("position")) == 1
    desk.amend(order_id, price=98)
    assert len(desk.pushed("position")) == 1
    desk.cancel(order_id)
    assert len(desk.pushed("position")) == 1


# Orders that take.


@pytest.mark.parametrize(("side", "price"), [("Buy", 105), ("Buy", 100), ("Sell", 95)])
def test_a_gtc_order_that_crosses_trades_as_taker_at_the_last_price(
    desk: Desk, side: str, price: int
) -> None:
    order_id = desk.create(side, 10, price)
    assert desk.status(order_id) == ("Filled", "10", "EC_NoError")
    row = desk.engine.executions[0]
    assert (row["execPrice"], row["isMaker"]) == ("100.0", False)
    assert Decimal(row["execFee"]) == 10 * 100 * TAKER


@pytest.mark.parametrize("time_in_force", ["IOC", "FOK"])
def test_an_ioc_order_fills_at_once_or_is_cancelled(desk: Desk, time_in_force: str) -> None:
    taken = desk.create("Buy", 5, 101, timeInForce=time_in_force)
    assert desk.status(taken)[:2] == ("Filled", "5")
    missed = desk.create("Buy", 5, 99, timeInForce=time_in_force)
    assert desk.status(missed) == ("Cancelled", "0", "EC_NoImmediateQtyToFill")
    assert desk.trade(90) == []  # it does not rest


def test_a_market_order_trades_at_the_last_price(desk: Desk) -> None:
    order_id = desk.create("Sell", 5)
    assert desk.status(order_id)[:2] == ("Filled", "5")
    assert desk.size == -5


def test_a_gtc_order_amended_across_the_last_price_trades_there(desk: Desk) -> None:
    order_id = desk.create("Buy", 5, 99)
    desk.amend(order_id, price=101)
    row = desk.engine.executions[0]
    assert (row["execPrice"], row["isMaker"], desk.status(order_id)[0]) == (
        "100.0",
        False,
        "Filled",
    )


# Reduce-only.


def test_a_reduce_only_order_is_trimmed_to_the_position(desk: Desk) -> None:
    desk.create("Buy", 5)
    order_id = desk.exit("Sell", 9, 105)
    assert desk.order(order_id)["qty"] == "5"
    desk.trade(106)
    assert desk.size == 0


def test_a_reduce_only_order_may_be_below_the_minimum_value(desk: Desk) -> None:
    desk.engine.start(SYMBOL, Decimal(3))
    desk.create("Buy", 2)  # 2 * 3 = 6 USDT
    assert desk.status(desk.exit("Sell", 1, 4))[0] == "New"  # 1 * 4 = 4 USDT


def test_what_is_left_of_reduce_only_orders_is_cancelled_when_the_position_is_gone(
    desk: Desk,
) -> None:
    desk.create("Buy", 5)
    first, second = desk.exit("Sell", 5, 103), desk.exit("Sell", 5, 105)
    plain = desk.maker("Sell", 5, 107)
    desk.engine.take_pushes()
    desk.trade(104)
    assert desk.status(first)[:2] == ("Filled", "5")
    assert desk.status(second)[:2] == ("Cancelled", "0")
    ended = [row for row in desk.pushed("order") if row["orderId"] == second]
    assert [row["cancelType"] for row in ended] == ["CancelByReduceOnly"]
    assert desk.status(plain)[0] == "New"  # not reduce-only: it rests on


def test_reduce_only_orders_that_add_up_to_more_than_the_position_never_flip_it(desk: Desk) -> None:
    desk.create("Sell", 5)
    orders = [desk.exit("Buy", 4, 95), desk.exit("Buy", 4, 96)]
    desk.trade(90)
    assert desk.size == 0  # 5 - 4 - 1
    assert sorted(desk.order(o)["cumExecQty"] for o in orders) == ["1", "4"]
    assert {desk.order(o)["orderStatus"] for o in orders} == {"Filled", "Cancelled"}


def test_an_amend_cannot_make_a_reduce_only_order_flip_the_position(desk: Desk) -> None:
    desk.create("Buy", 5)
    order_id = desk.exit("Sell", 5, 105)
    desk.amend(order_id, qty=50)
    desk.trade(106)
    assert desk.size == 0


# Refusals.


def refused(desk: Desk, **change: Any) -> int:
    """The retCode of a create that is right but for `change`; nothing may be left of it."""
    params = {"category": "linear", "symbol": SYMBOL, "side": "Buy", "orderType": "Limit"}
    params |= {"qty": "1", "price": "99", "timeInForce": "GTC", "orderLinkId": "mine"} | change
    before = (len(desk.engine.orders), len(desk.engine.open_orders()))
    desk.engine.take_pushes()
    with pytest.raises(Refused) as error:
        desk.engine.create(params, 1)
    assert (len(desk.engine.orders), len(desk.engine.open_orders())) == before
    assert desk.engine.take_pushes() == []
    return error.value.code


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"symbol": "NONE"}, 10001),
        ({"category": "spot"}, 10001),
        ({"side": "buy"}, 10001),
        ({"orderType": "Stop"}, 10001),
        ({"positionIdx": 1}, 10001),  # one-way
        ({"positionIdx": "abc"}, 10001),
        ({"timeInForce": "XYZ"}, 10001),
        ({"orderLinkId": "x" * 37}, 10001),
        ({"orderLinkId": "a b"}, 10001),  # only A-Z a-z 0-9 _ -
        ({"price": "99.05"}, 10001),  # off the tick of 0.1
        ({"price": "-1"}, 10001),
        ({"price": "abc"}, 10001),
        ({"price": "NaN"}, 10001),
        ({"qty": "1.5"}, 10001),  # off the step of 1
        ({"qty": "0"}, 10001),
        ({"qty": "1001"}, 10001),  # above the maximum of 1000
        ({"qty": None}, 10001),
        ({"price": "4.9"}, 110094),  # 1 * 4.9 < 5 USDT
        ({"qty": "102"}, 110007),  # 102 * 99 / 10 = 1009.8 > 1000
        ({"reduceOnly": True}, 110017),  # no position
    ],
    ids=str,
)
def test_a_create_that_cannot_be_is_refused(desk: Desk, change: dict[str, Any], code: int) -> None:
    assert refused(desk, **change) == code


def test_the_largest_affordable_order_is_accepted_and_margin_of_resting_ones_counts(
    desk: Desk,
) -> None:
    desk.maker("Buy", 100, 99)  # 100 * 99 / 10 = 990 of 1000
    assert refused(desk, qty="2", price="99") == 110007  # 2 * 99 / 10 = 19.8 > 10
    desk.maker("Buy", 1, 99)  # 9.9 <= 10


def test_leverage_decides_what_is_affordable(desk: Desk) -> None:
    desk.engine.wallet.leverage[SYMBOL] = Decimal(1)
    assert refused(desk, qty="11", price="99") == 110007  # 11 * 99 / 1 = 1089 > 1000
    desk.maker("Buy", 10, 99)  # 990


def test_a_reduce_only_order_on_the_side_of_the_position_is_refused(desk: Desk) -> None:
    desk.create("Buy", 5)
    assert refused(desk, side="Buy", reduceOnly=True) == 110017


def test_a_link_id_is_used_once_for_ever(desk: Desk) -> None:
    order_id = desk.create("Buy", 1, 99, link="mine")
    assert refused(desk) == 110072
    desk.cancel(order_id)
    assert refused(desk) == 110072  # not even when its order has ended


def test_the_501st_open_order_of_a_symbol_is_refused() -> None:
    desk = Desk(balance=Decimal(10**6))
    for _ in range(500):
        desk.maker("Buy", 1, 99)
    assert refused(desk) == 110020


@pytest.mark.parametrize("verb", ["amend", "cancel"])
def test_amend_and_cancel_of_an_order_that_is_not_open_are_refused(desk: Desk, verb: str) -> None:
    act, ended = getattr(desk.engine, verb), desk.create("Buy", 1)
    for key, code in (({"orderId": "none"}, 110001), ({"orderId": ended}, 110001), ({}, 10001)):
        with pytest.raises(Refused) as error:
            act({"category": "linear", "symbol": SYMBOL, "price": "98", **key}, 1)
        assert error.value.code == code


@pytest.mark.parametrize(
    ("what", "code"),
    [({"price": 99, "qty": 5}, 10001), ({"qty": 2}, 110001), ({"price": "98.05"}, 10001)],
    ids=["not modified", "below the filled quantity", "off the tick"],
)
def test_an_amend_that_cannot_be_leaves_the_order_as_it_was(
    desk: Desk, what: dict[str, Any], code: int
) -> None:
    order_id = desk.maker("Buy", 5, 99)
    desk.trade(99, 2)
    before = desk.order(order_id)
    with pytest.raises(Refused) as error:
        desk.amend(order_id, **what)
    assert (error.value.code, desk.order(order_id)) == (code, before)


# The queue.


@pytest.mark.parametrize(
    ("change", "keeps"),
    [({"qty": 3}, True), ({"qty": 5}, False), ({"price": 98}, False)],
    ids=["less", "more", "another price"],
)
def test_only_less_quantity_keeps_the_place_in_the_queue(
    desk: Desk, change: dict[str, Any], keeps: bool
) -> None:
    first, second = desk.maker("Buy", 4, 99), desk.maker("Buy", 4, 99)
    desk.amend(first, **change)
    if "price" in change:
        desk.amend(first, price=99)  # there and back again
    (fill,) = desk.trade(99, 1)
    assert fill[0] == (first if keeps else second)


def test_cancel_all_ends_every_order_or_those_of_one_symbol(desk: Desk) -> None:
    desk.maker("Buy", 1, 99)
    desk.maker("Sell", 1, 101)
    desk.maker("Buy", 1, 99, symbol=OTHER)
    assert len(desk.engine.cancel_all({"category": "linear", "symbol": OTHER}, 1)["list"]) == 1
    assert len(desk.engine.cancel_all({"category": "linear", "settleCoin": "USDT"}, 1)["list"]) == 2
    assert desk.engine.open_orders() == []


# The wallet.


def test_the_average_entry_and_what_is_realised() -> None:
    wallet = Wallet(Decimal(1000))
    wallet.fill("X", Decimal(2), Decimal(10), Decimal(1), 1)
    wallet.fill("X", Decimal(2), Decimal(20), Decimal(1), 2)
    assert wallet.position("X").entry == 15  # (2 * 10 + 2 * 20) / 4
    closed = wallet.fill("X", Decimal(-1), Decimal(18), Decimal(1), 3)
    assert (closed.closed, closed.realised) == (1, 3)  # 1 * (18 - 15)
    assert wallet.position("X").entry == 15  # a reduction leaves it
    flipped = wallet.fill("X", Decimal(-5), Decimal(14), Decimal(1), 4)
    assert (flipped.closed, flipped.realised) == (3, -3)  # 3 * (14 - 15)
    assert (wallet.position("X").size, wallet.position("X").entry) == (-2, 14)
    assert wallet.balance == 996  # 1000 + 3 - 3 - 4 fees of 1
    assert wallet.unrealised({"X": Decimal(13)}) == 2  # short 2, 14 - 13 each


# Conservation.

PRICES = st.integers(900, 1100).map(lambda tenths: Decimal(tenths) / 10)
TRADE = st.tuples(st.just("trade"), PRICES, st.integers(0, 12))
CREATE = st.tuples(
    st.just("create"),
    st.sampled_from(("Buy", "Sell")),
    st.integers(1, 9),
    st.one_of(st.none(), PRICES),
    st.sampled_from(("GTC", "PostOnly", "IOC")),
    st.booleans(),
)
AMEND = st.tuples(st.just("amend"), st.integers(0, 20), PRICES, st.integers(1, 12))
CANCEL = st.tuples(st.just("cancel"), st.integers(0, 20))
ACTS = st.lists(st.one_of(TRADE, TRADE, CREATE, CREATE, AMEND, CANCEL), max_size=40)


def play(desk: Desk, act: Any) -> None:
    """One random act; a refusal is as good as any other answer."""
    name, *args = act
    try:
        if name == "trade":
            desk.trade(*args)
        elif name == "create":
            side, qty, price, time_in_force, reduce_only = args
            desk.create(side, qty, price, timeInForce=time_in_force, reduceOnly=reduce_only)
        elif desk.engine.orders:
            order_id = list(desk.engine.orders)[args[0] % len(desk.engine.orders)]
            if name == "cancel":
                desk.cancel(order_id)
            else:
                desk.amend(order_id, price=args[1], qty=args[2])
    except Refused:
        pass


@given(ACTS)
@settings(max_examples=100, deadline=None)
def test_balance_and_position_are_the_sum_of_what_was_told(acts: list[Any]) -> None:
    desk, balance, cash, size = Desk(), BALANCE, BALANCE, Decimal(0)
    filled: dict[str, Decimal] = {}
    for act in acts:
        play(desk, act)
        for row in desk.pushed("execution"):
            qty, price, fee = (Decimal(row[key]) for key in ("execQty", "execPrice", "execFee"))
            signed = qty if row["side"] == "Buy" else -qty
            if desk.order(row["orderId"])["reduceOnly"]:
                assert size * signed < 0 and qty <= abs(size), "a reduce-only order flipped it"
            assert qty > 0 and fee == qty * price * (MAKER if row["isMaker"] else TAKER)
            balance += Decimal(row["execPnl"]) - fee
            cash -= signed * price + fee
            size += signed
            filled[row["orderId"]] = filled.get(row["orderId"], Decimal(0)) + qty
        wallet = desk.engine.wallet
        assert (wallet.balance, desk.size) == (balance, size)  # to the last digit
        last = desk.engine.last[SYMBOL]
        equity = Decimal(desk.engine.wallet_row()["totalEquity"])
        assert abs(equity - (cash + size * last)) < Decimal("1e-18")  # the average price is rounded
    for order_id in desk.engine.orders:
        row = desk.order(order_id)
        assert Decimal(row["cumExecQty"]) == filled.get(order_id, 0)
        assert Decimal(row["cumExecQty"]) <= Decimal(row["qty"])
        assert (row["orderStatus"] == "Filled") == (row["cumExecQty"] == row["qty"])


@given(ACTS)
@settings(max_examples=50, deadline=None)
def test_no_resting_order_is_left_behind_the_price(acts: list[Any]) -> None:
    desk = Desk()
    for act in acts:
        play(desk, act)
        last = desk.engine.last[SYMBOL]
        for order in desk.engine.open_orders():
            assert order.price <= last if order.side == "Buy" else order.price >= last
            assert desk.size or not order.reduce_only  # and none reduces what is not there


@given(ACTS, st.integers(0, 5))
@settings(max_examples=50, deadline=None)
def test_the_same_seed_and_input_give_identical_pushes(acts: list[Any], seed: int) -> None:
    told = []
    for number in (seed, seed, seed + 1):
        desk = Desk(number)
        for act in acts:
            play(desk, act)
        told.append(desk.engine.take_pushes())
    assert told[0] == told[1]
    assert not any(topic == "order" for topic, _ in told[0]) or told[0] != told[2]


# A restart: the journal holds what was pushed, and a new engine is as the old one was.


class Journaled:
    """A desk whose pushes go to a journal; `again` is a second one that reads it."""

    def __init__(self, folder: str) -> None:
        self.path, self.desk = Path(folder) / "paper.jsonl", Desk()
        self.journal = Journal(self.path, {})
        self.journal.open(self.desk.engine, 0, 0)

    def play(self, *acts: Any) -> None:
        for act in acts:
            play(self.desk, act)
            self.journal.write(self.desk.engine.take_pushes(), self.desk.engine, self.desk.now_ms)

    def again(self, compact: bool = False) -> Desk:
        """From the journal as it was written, or from a snapshot of it all."""
        if compact:
            self.journal.open(self.desk.engine, 0, self.desk.now_ms)
        fresh = Desk()
        for symbol, price in self.desk.engine.last.items():
            fresh.engine.start(symbol, price)
        Journal(self.path, {}).restore(fresh.engine)
        return fresh


@given(ACTS, st.booleans())
@settings(max_examples=50, deadline=None)
def test_a_restart_brings_back_orders_fills_positions_and_balance(
    acts: list[Any], compact: bool
) -> None:
    with TemporaryDirectory() as folder:
        live = Journaled(folder)
        live.play(*acts)
        old, new = live.desk.engine, live.again(compact).engine
    assert {o.order_id: o.row() for o in new.open_orders()} == {
        o.order_id: o.row() for o in old.open_orders()
    }
    assert {key: o.row() for key, o in new.orders.items()} == {
        key: o.row() for key, o in old.orders.items()
    }
    assert new.executions == old.executions
    assert new.wallet_row() == old.wallet_row()
    assert new.wallet.positions == old.wallet.positions


def test_open_orders_are_newest_first_after_a_restart_too() -> None:
    rest = ("create", "Buy", 4, Decimal(99), "PostOnly", False)
    with TemporaryDirectory() as folder:
        live = Journaled(folder)
        live.play(rest, rest, ("trade", Decimal(99), 1))  # the first one is pushed once more
        names = [order.order_id for order in live.desk.engine.open_orders()]
        assert [order.order_id for order in live.again().engine.open_orders()] == names


def test_the_queue_is_the_same_after_a_restart() -> None:
    rest = ("create", "Buy", 4, Decimal(99), "PostOnly", False)
    with TemporaryDirectory() as folder:
        live = Journaled(folder)
        live.play(rest, rest, ("trade", Decimal(99), 1))
        again = live.again()
        assert again.trade(99, 1) == live.desk.trade(99, 1)  # 3 are left of the first


def test_leverage_is_the_same_after_a_restart() -> None:
    with TemporaryDirectory() as folder:
        live = Journaled(folder)
        live.desk.engine.set_leverage(SYMBOL, Decimal(1))
        live.journal.write(live.desk.engine.take_pushes(), live.desk.engine, 0)
        for compact in (False, True):
            assert live.again(compact).engine.wallet.margin_leverage(SYMBOL) == 1
