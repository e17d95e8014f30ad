"""book: spread, depth and queue around the last trade, and what orders find there."""

from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.paper.book import DEPTH, JUMP, MAX_QUEUE, SMOOTHING, WIDE, WIDE_POINTS, Book
from services.paper.journal import Journal
from services.paper.market import Listing
from services.paper.matching import Matching

LAST, SPREAD = 1_000, 3
SIDES = ("Buy", "Sell")


def book(spread: int = SPREAD, last: int = LAST, seed: int = 1, symbol: str = "AAAUSDT") -> Book:
    return Book(symbol, seed, spread, last)


def told(one: Book, depth: int = 5) -> list[list[tuple[int, int]]]:
    """Bids and asks as everybody sees them."""
    return [list(one.levels(side, depth)) for side in SIDES]


# The spread.


@pytest.mark.parametrize(
    ("moves", "taker", "bid", "ask"),
    [
        ((), "Buy", 997, 1000),  # 1000 - 3
        ((1002,), "Buy", 999, 1002),  # up is a buyer, who met the ask: 1002 - 3
        ((998,), "Sell", 998, 1001),  # down is a seller, who met the bid: 998 + 3
        ((998, 998), "Sell", 998, 1001),  # unchanged is whoever it was before
        ((1002, 1002, 1002), "Buy", 999, 1002),
        ((1002, 1001), "Sell", 1001, 1004),
        ((998, 999), "Buy", 996, 999),
    ],
)
def test_the_tick_rule_says_who_took_and_so_where_bid_and_ask_are(
    moves: tuple[int, ...], taker: str, bid: int, ask: int
) -> None:
    one = book()
    for ticks in moves:
        one.trade(ticks, 1, 0)
    assert (one.taker, one.bid, one.ask, one.last) == (taker, bid, ask, (LAST, *moves)[-1])
    assert (one.best("Buy"), one.best("Sell")) == (ask, bid)  # what a taker of this side meets


@pytest.mark.parametrize("way", [1, -1])
def test_a_jump_of_more_than_ten_usual_moves_widens_the_spread_for_two_points(way: int) -> None:
    one, spreads = book(), []
    one.trade(LAST + way * (JUMP * 1 + 1), 1, 0)  # the usual move was 1: 11 > 10
    for _ in range(4):
        spreads.append(one.ask - one.bid)
        one.trade(one.last, 1, 0)
    assert (WIDE, WIDE_POINTS) == (5, 2)
    assert spreads == [15, 15, 3, 3]  # 3 * 5, twice


def test_a_move_of_ten_usual_ones_is_no_jump() -> None:
    one = book()
    one.trade(LAST + JUMP, 1, 0)
    assert one.ask - one.bid == SPREAD


def test_what_is_usual_follows_the_moves_there_are() -> None:
    """After 100 moves of 8 ticks about 6.5 of them are usual: 1 + 7 * (1 - (63/64)**100) = 6.5."""
    one = book()
    for n in range(100):
        one.trade(LAST + 8 * (n % 2), 1, 0)
    one.trade(one.last + 60, 1, 0)  # below 10 * 6.5
    assert one.ask - one.bid == SPREAD
    one.trade(one.last + 90, 1, 0)  # above 10 * (6.5 + (60 - 6.5) / 64) = 73
    assert one.ask - one.bid == SPREAD * WIDE


PRICES = st.integers(1, 2_000)
TRADES = st.lists(st.tuples(PRICES, st.integers(0, 500), st.integers(0, 3)), max_size=20)


@given(TRADES, PRICES, st.integers(1, 8), st.integers(1, 60))
@settings(max_examples=100, deadline=None)
def test_both_sides_are_in_order_and_never_cross(
    trades: list[tuple[int, int, int]], last: int, spread: int, depth: int
) -> None:
    one = book(spread, last)
    for ticks, lots, minute in trades:
        one.trade(ticks, lots, minute)
        bids, asks = told(one, depth)
        assert all(a[0] > b[0] for a, b in pairwise(bids))
        assert all(a[0] < b[0] for a, b in pairwise(asks))
        assert all(price > 0 and size >= 1 for price, size in bids + asks)
        assert len(asks) == depth and len(bids) <= depth
        assert not bids or bids[0][0] < asks[0][0]
        assert ticks in (one.bid, one.ask)  # somebody met it


# The depth.


def test_the_same_seed_symbol_and_trades_give_the_same_sizes() -> None:
    def after(**change: Any) -> Any:
        one = book(**change)
        for ticks, lots in ((1004, 30), (1001, 70)):
            one.trade(ticks, lots, 7)
        return told(one, DEPTH)

    assert after() == after()
    assert after() != after(seed=2)
    assert after() != after(symbol="BBBUSDT")
    assert [p for p, _ in after()[0]] == [p for p, _ in after(seed=2)[0]]  # the prices are the same


def test_sizes_hold_for_a_minute_and_change_with_the_next() -> None:
    one = book()
    before = told(one)
    one.trade(LAST, 1, 0)
    assert told(one) == before
    one.trade(LAST, 1, 1)
    assert told(one) != before
    assert [p for p, _ in told(one)[0]] == [p for p, _ in before[0]]


@given(TRADES, st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_a_level_holds_one_to_six_times_what_a_point_trades_and_more_further_away(
    trades: list[tuple[int, int, int]], seed: int
) -> None:
    one, usual = book(seed=seed), 1.0
    for ticks, lots, minute in trades:
        one.trade(ticks, lots, minute)
        usual += (lots - usual) / SMOOTHING
    bids, asks = told(one, DEPTH)
    for price, size in bids + asks:
        least = usual * (1 + abs(price - one.last) / 10)
        assert max(1, int(least)) <= size <= round(least * (1 + MAX_QUEUE)) + 1


def test_the_bids_end_at_the_lowest_price_there_is() -> None:
    one = book(last=10)
    assert [price for price, _ in one.levels("Buy", DEPTH)] == [7, 6, 5, 4, 3, 2, 1]  # 10 - 3
    assert len(list(one.levels("Sell", DEPTH))) == DEPTH


def test_a_taker_walks_the_other_side_best_price_first() -> None:
    one = book()
    assert list(one.walk("Buy")) == list(one.levels("Sell", DEPTH))
    assert list(one.walk("Sell")) == list(one.levels("Buy", DEPTH))


# Eaten levels.


def test_an_eaten_level_shows_less_until_the_next_trade() -> None:
    one = book(seed=3)
    one.trade(LAST, 640, 0)  # levels of 10 lots and more
    whole = told(one)
    price, size = whole[1][0]
    one.eat(price, size - 2)
    assert told(one)[1] == [(price, 2), *whole[1][1:]]
    assert told(one)[0] == whole[0]  # the other side is as it was
    one.eat(price, 2)
    assert next(one.levels("Sell", 1), None) is None  # of one level nothing is left
    assert told(one, 5)[1] == whole[1][1:]
    assert next(iter(one.walk("Buy"))) == whole[1][1]
    one.trade(LAST, 11, 0)  # near the usual 1 + 639 / 64 = 10.98, so that sizes stay
    assert [p for p, _ in told(one)[1]] == [p for p, _ in whole[1]]
    assert told(one)[1][0][1] == pytest.approx(size, abs=1)


def test_a_taker_meets_the_next_level_once_the_best_is_eaten_whole() -> None:
    one = book()
    (price, size), (after, _) = one.levels("Sell", 2)
    assert one.best("Buy") == price
    one.eat(price, size)
    assert one.best("Buy") == after


# The queue.


@pytest.mark.parametrize(
    ("side", "ticks", "somebody"),
    [
        ("Buy", 997, True),  # at the bid
        ("Buy", 990, True),  # behind it
        ("Buy", 998, False),  # inside the spread: the new best
        ("Buy", 999, False),
        ("Sell", 1000, True),  # at the ask
        ("Sell", 1010, True),
        ("Sell", 999, False),
        ("Sell", 998, False),
    ],
)
def test_a_queue_stands_at_and_behind_the_best_price_only(
    side: str, ticks: int, somebody: bool
) -> None:
    assert (book().ahead(side, ticks) > 0) is somebody  # 997 bid, 1000 ask


@given(TRADES, st.sampled_from(SIDES), st.integers(0, 20), st.integers(0, 9))
@settings(max_examples=50, deadline=None)
def test_the_queue_ahead_is_what_everybody_sees_at_that_price(
    trades: list[tuple[int, int, int]], side: str, level: int, eaten: int
) -> None:
    one = book()
    for ticks, lots, minute in trades:
        one.trade(ticks, lots, minute)
    found = list(one.levels(side, DEPTH))
    price, size = found[min(level, len(found) - 1)]
    one.eat(price, min(eaten, size))
    assert one.ahead(side, price) == dict(one.levels(side, DEPTH)).get(price, 0)


# The bare book.


def test_the_bare_book_has_no_spread_no_queue_and_any_quantity_at_the_last_price() -> None:
    one = book(spread=0)
    for ticks in (LAST, LAST + 500, LAST - 500):  # not even after a jump
        one.trade(ticks, 1, 0)
        assert one.bid == one.ask == one.last == ticks
        for side in SIDES:
            price, lots = next(one.walk(side))
            assert (price, lots) == (ticks, 10**18)
            assert [one.ahead(side, p) for p in (ticks - 1, ticks, ticks + 1)] == [0, 0, 0]
        one.eat(ticks, 10**9)
        assert next(one.walk("Buy")) == (ticks, 10**18)


# Orders in the full book.


class Desk:
    """An engine with a full book: a tick of 0.1, a lot of 1, 3 ticks of spread, last 100.0."""

    def __init__(self) -> None:
        grid = (Decimal("0.1"), Decimal(1), Decimal(1), Decimal(100_000), 480, SPREAD)
        self.engine = Matching([Listing("AAAUSDT", *grid)], Decimal(10**7), 1, spread=True)
        self.engine.start("AAAUSDT", Decimal(100))
        self.now_ms = 1_000
        for _ in range(200):
            self.trade("100.0", 20)  # levels of about 20 lots and more

    def create(self, side: str, qty: Any, price: Any = None, **more: Any) -> str:
        params = {"category": "linear", "symbol": "AAAUSDT", "side": side, "qty": str(qty)}
        params |= {"orderType": "Limit", "price": str(price)} if price else {"orderType": "Market"}
        self.now_ms += 1
        return str(self.engine.create(params | more, self.now_ms)["orderId"])

    def trade(self, price: str, qty: int) -> list[tuple[str, str]]:
        """(price, quantity) of each fill the trade made."""
        self.now_ms += 1
        before = len(self.engine.executions)
        self.engine.trade("AAAUSDT", Decimal(price), Decimal(qty), self.now_ms)
        return [(row["execPrice"], row["execQty"]) for row in self.engine.executions[before:]]

    def seen(self, side: str, depth: int = DEPTH) -> list[tuple[Decimal, int]]:
        """The book's levels, in prices."""
        found = self.engine.books["AAAUSDT"].levels(side, depth)
        return [(ticks * Decimal("0.1"), lots) for ticks, lots in found]

    def fills(self) -> list[tuple[Decimal, int]]:
        rows = self.engine.executions
        return [(Decimal(row["execPrice"]), int(row["execQty"])) for row in rows]

    def order(self, order_id: str) -> Any:
        return self.engine.orders[order_id].row()


@pytest.mark.parametrize(("side", "other"), [("Buy", "Sell"), ("Sell", "Buy")])
def test_a_market_order_takes_level_by_level_at_each_levels_price(side: str, other: str) -> None:
    desk = Desk()
    (first, size), (second, more) = desk.seen(other, 2)
    order_id = desk.create(side, size + 1)
    assert desk.fills() == [(first, size), (second, 1)]
    row = desk.order(order_id)
    assert row["orderStatus"] == "Filled"
    assert Decimal(row["avgPrice"]) == (first * size + second) / (size + 1)
    assert desk.seen(other, 2)[0] == (second, more - 1)  # and they are gone from the book
    assert not any(row["isMaker"] for row in desk.engine.executions)


def test_the_next_taker_finds_what_the_first_has_left() -> None:
    desk = Desk()
    (price, size), (after, _) = desk.seen("Sell", 2)
    for qty in (size - 1, 1, 1):
        desk.create("Buy", qty)
    assert desk.fills() == [(price, size - 1), (price, 1), (after, 1)]


def test_a_limit_order_takes_up_to_its_price_and_rests_with_the_rest() -> None:
    desk = Desk()
    offered = desk.seen("Sell", 3)  # 100.0, 100.1, 100.2
    total = sum(size for _, size in offered)
    order_id = desk.create("Buy", total + 5, "100.2")
    assert desk.fills() == offered
    row = desk.order(order_id)
    assert (row["orderStatus"], row["leavesQty"], row["price"]) == ("PartiallyFilled", "5", "100.2")
    assert desk.trade("100.2", 5) == [("100.2", "5")]  # nobody ahead where all was taken


def test_an_ioc_order_takes_up_to_its_price_and_is_cancelled_with_its_fills() -> None:
    desk = Desk()
    ((price, size),) = desk.seen("Sell", 1)
    order_id = desk.create("Buy", size + 5, price, timeInForce="IOC")
    row = desk.order(order_id)
    assert (row["orderStatus"], row["cumExecQty"], row["leavesQty"]) == (
        "Cancelled",
        f"{size}",
        "0",
    )
    assert row["rejectReason"] == "EC_NoImmediateQtyToFill"


def test_a_fok_order_that_cannot_be_filled_whole_takes_nothing() -> None:
    desk = Desk()
    ((price, size),) = desk.seen("Sell", 1)
    order_id = desk.create("Buy", size + 1, price, timeInForce="FOK")
    row = desk.order(order_id)
    assert (row["orderStatus"], row["cumExecQty"]) == ("Cancelled", "0")
    assert row["rejectReason"] == "EC_CancelForNoFullFill"
    assert desk.seen("Sell", 1) == [(price, size)]
    assert desk.order(desk.create("Buy", size, price, timeInForce="FOK"))["orderStatus"] == "Filled"


def test_a_market_order_stops_at_the_edge_of_the_price_band() -> None:
    """Source: a market order is an IOC limit at a protective price; it may be filled in part."""
    desk = Desk()
    within = [level for level in desk.seen("Sell") if level[0] <= 105]  # 100 * (1 + 0.05)
    order_id = desk.create("Buy", 90_000)
    assert desk.fills() == within
    row = desk.order(order_id)
    assert (row["orderStatus"], Decimal(row["price"])) == ("Cancelled", 105)
    assert int(row["cumExecQty"]) == sum(size for _, size in within)


@pytest.mark.parametrize(("side", "price"), [("Buy", "99.7"), ("Sell", "100.0")])
def test_a_resting_order_waits_for_the_queue_ahead_of_it(side: str, price: str) -> None:
    """99.7 bid, 100.0 ask: a trade at the price eats the queue first and then the order."""
    desk = Desk()
    ((_, ahead),) = desk.seen(side, 1)
    order_id = desk.create(side, 10, price, timeInForce="PostOnly")
    assert desk.trade(price, ahead - 1) == []
    assert desk.trade(price, 1 + 4) == [(price, "4")]  # 1 is the last of the queue
    assert desk.trade(price, 100) == [(price, "6")]  # 10 - 4
    assert desk.order(order_id)["orderStatus"] == "Filled"


def test_inside_the_spread_nobody_is_ahead() -> None:
    desk = Desk()
    desk.create("Buy", 10, "99.9", timeInForce="PostOnly")  # bid 99.7, ask 100.0
    assert desk.trade("99.9", 10) == [("99.9", "10")]


def test_a_trade_through_the_order_does_not_ask_for_the_queue() -> None:
    desk = Desk()
    desk.create("Buy", 10, "99.7", timeInForce="PostOnly")
    assert desk.trade("99.6", 1) == [("99.7", "10")]


def test_post_only_inside_the_spread_rests_and_at_the_other_side_is_cancelled() -> None:
    desk = Desk()
    inside = desk.create("Buy", 10, "99.9", timeInForce="PostOnly")
    crossing = desk.create("Buy", 10, "100.0", timeInForce="PostOnly")
    assert desk.order(inside)["orderStatus"] == "New"
    assert desk.order(crossing)["rejectReason"] == "EC_PostOnlyWillTakeLiquidity"


def test_after_a_restart_an_order_stands_at_the_back_of_the_queue(tmp_path: Path) -> None:
    """How far it had come is not remembered; that nobody was ahead of it would be a gift."""
    desk, again = Desk(), Desk()
    ((_, ahead),) = desk.seen("Buy", 1)
    desk.create("Buy", 10, "99.7", timeInForce="PostOnly")
    desk.trade("99.7", ahead // 2)
    file = tmp_path / "paper.jsonl"
    Journal(file, {}).open(desk.engine, 0, 0)
    Journal(file, {}).restore(again.engine)
    ((_, ahead),) = again.seen("Buy", 1)
    assert again.trade("99.7", ahead) == []
    assert again.trade("99.7", 4) == [("99.7", "4")]
