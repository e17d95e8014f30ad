"""report: what the ledger says of lots that are closed, and how it is told."""

import json
import math
import os
import stat
import sys
from array import array
from contextlib import closing
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from services.keeper.ledger import Caps, Change, Ledger
from services.keeper.store import Store
from services.report import excursions, report, rows, trades, words
from services.report.excursions import Excursions, extremes, looked, wanted
from services.report.page import page
from services.report.trades import Extremes, Point, Trade, equity_curve, ratios, thin
from shared import messages as msg
from shared.instrument import opposite, sign
from shared.records import Records

SYMBOL, MINUTE, HOUR, DAY = "AAAUSDT", 60_000, 3_600_000, 86_400_000
BAR = 30 * DAY + 5 * HOUR
FEE, TAKE_PROFIT_PCT = Decimal("0.01"), Decimal("0.5")
ACCOUNT = "paper-1"


class Book:
    """A keeper's ledger, on disk if there is a path, and what it wrote, as the report is given it:
    the last row of each order, lot and execution."""

    def __init__(self, path: Path | None = None, account: str = ACCOUNT) -> None:
        self.ledger = Ledger("test", Caps(100, 100, 10), MINUTE)
        self.store = Store(path or ":memory:", account, "life")
        self.orders: dict[str, msg.Order] = {}
        self.lots: dict[str, msg.Lot] = {}
        self.executions: dict[str, msg.Execution] = {}
        self.number = 0

    def keep(self, change: Change) -> None:
        self.store.write(change, self.ledger.row)
        self.orders |= {order.order_link_id: order for order, _ in change.orders}
        self.lots |= {lot.entry_id: lot for lot in change.lots}
        if change.execution:
            self.executions[change.execution.exec_id] = change.execution

    def granted(self, side: str = "Buy", bar_ms: int = BAR, symbol: str = SYMBOL) -> str:
        name = msg.entry_id(symbol, side, bar_ms)
        terms = (Decimal(100), Decimal(10), TAKE_PROFIT_PCT, 0, 0)
        reason, change = self.ledger.grant(msg.Ask(name, symbol, side, bar_ms, *terms), msg.RUN)
        assert not reason
        self.keep(change)
        return name

    def fill(self, name: str, side: str, qty: Any, price: Any, at_ms: int, **other: Any) -> None:
        self.number += 1
        symbol = name.split("-")[1] if name else SYMBOL
        head = (f"exec-{self.number}", name, f"id-{name}", symbol, side, "Trade")
        money = (Decimal(price), Decimal(qty), FEE)
        self.keep(self.ledger.execute(msg.Execution(*head, *money, True, at_ms)._replace(**other)))

    def over(self, name: str, side: str, qty: Any, price: Any, at_ms: int, **other: Any) -> None:
        """The exchange's last word on an order: filled, at this limit."""
        head = (name, f"id-{name}", name.split("-")[1] if name else SYMBOL, side)
        terms = (Decimal(price), Decimal(qty), "Filled", Decimal(qty), Decimal(price), False)
        said = msg.OrderUpdate(*head, *terms, "EC_NoError", at_ms, at_ms)
        self.keep(self.ledger.update(said._replace(**other)))

    def entered(self, side: str = "Buy", bar_ms: int = BAR, qty: int = 10, price: int = 100) -> str:
        name = self.granted(side, bar_ms)
        self.fill(name, side, qty, price, bar_ms + 1_000)
        self.over(name, side, qty, price, bar_ms + 1_000)
        return name

    def left(
        self, entry: str, limit: Any, price: Any, at_ms: int, maker: bool = True, qty: int = 10
    ) -> None:
        """One exit of ours, of this limit and filled at this price."""
        name, side = msg.exit_id(entry, 0), "Sell" if entry.endswith("B") else "Buy"
        self.fill(name, side, qty, price, at_ms, is_maker=maker)
        self.over(name, side, qty, limit, at_ms)

    def trades(self, flattened: bool = False, **known: Extremes) -> list[Trade]:
        facts = (self.lots.values(), self.orders.values(), self.executions.values())
        seen = {name.replace("_", "-"): found for name, found in known.items()}
        return trades.trades(*facts, flattened, seen)


def one(book: Book, flattened: bool = False, **known: Extremes) -> Trade:
    (trade,) = book.trades(flattened, **known)
    return trade


@pytest.mark.parametrize(
    ("side", "limit", "profit", "pct"),
    [
        ("Buy", "100.5", "4.98", "0.498"),  # (100.5 - 100) * 10 - 2 * 0.01, of 1000
        ("Sell", "99.5", "4.98", "0.498"),
        ("Buy", "99.5", "-5.02", "-0.502"),
        ("Sell", "100.5", "-5.02", "-0.502"),
    ],
)
def test_profit_is_what_came_in_less_what_went_out_less_fees(
    side: str, limit: str, profit: str, pct: str
) -> None:
    book = Book()
    entry = book.entered(side)
    book.left(entry, limit, limit, BAR + 61_000)
    trade = one(book)
    assert (trade.profit_usdt, trade.fees_usdt) == (Decimal(profit), Decimal("0.02"))
    assert trade.profit_pct == Decimal(pct)
    assert (trade.entry_price, trade.exit_price, trade.qty) == (100, Decimal(limit), 10)
    assert (trade.opened_ms, trade.closed_ms, trade.hold_ms) == (BAR + 1_000, BAR + 61_000, MINUTE)
    assert (trade.symbol, trade.side, trade.entry_id) == (SYMBOL, side, entry)


def test_an_open_lot_is_no_trade() -> None:
    book = Book()
    book.entered()
    assert book.trades() == []


@pytest.mark.parametrize("side", ["Buy", "Sell"])
@pytest.mark.parametrize(
    ("limit", "price", "maker", "flattened", "reason"),
    [
        ("0.5", "0.5", True, False, trades.TAKE_PROFIT),
        ("0.5", "0.7", False, False, trades.TAKE_PROFIT),  # past its price: at once, and better
        ("0.51", "0.51", True, True, trades.TAKE_PROFIT),  # rounded to the passive side
        ("0.49", "0.49", True, False, trades.REVERSAL),
        ("-3", "-3", True, False, trades.REVERSAL),
        ("-3", "-2", False, False, trades.REVERSAL),  # the ledger has no FLATTEN
        ("-3", "-2", False, True, trades.FLATTEN),
        ("-1", "0", False, True, trades.FLATTEN),
        ("-3", "-3", True, True, trades.REVERSAL),
        ("-3", "-2.7", False, True, trades.EXIT),  # either of them
    ],
)
def test_how_a_lot_ended_is_told_by_the_limit_of_its_exit(
    side: str, limit: str, price: str, maker: bool, flattened: bool, reason: str
) -> None:
    book = Book()
    entry = book.entered(side)
    at, for_ = (100 + sign(side) * Decimal(value) for value in (limit, price))
    book.left(entry, at, for_, BAR + MINUTE, maker)
    assert one(book, flattened).reason == reason


def test_a_stop_loss_is_known_by_the_exchanges_order() -> None:
    book = Book()
    entry = book.entered()
    whose = {"order_link_id": "", "order_id": "S", "parent_order_link_id": entry}
    book.over(entry, "Sell", 10, 0, BAR + 2_000, order_status="Untriggered", **whose)
    book.fill("", "Sell", 10, 97, BAR + MINUTE, order_id="S")
    book.over(entry, "Sell", 10, 0, BAR + MINUTE, cum_exec_qty=Decimal(10), **whose)
    trade = one(book)
    assert (trade.reason, trade.profit_usdt) == (trades.STOP_LOSS, Decimal("-30.02"))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("Trade", trades.BY_OTHERS),
        ("AdlTrade", trades.BY_ADL),
        ("BustTrade", trades.LIQUIDATION),
    ],
)
def test_what_no_order_of_ours_sold_is_told_by_the_execution_that_did(
    kind: str, reason: str
) -> None:
    book = Book()
    book.entered()
    book.fill("", "Sell", 10, 90, BAR + MINUTE, exec_type=kind)
    trade = one(book)
    assert (trade.reason, trade.exit_price) == (reason, 90)
    assert trade.fees_usdt == FEE  # the other one's is not the lot's


def test_dust_that_joined_another_lot_is_merged_and_its_money_goes_on_there() -> None:
    book = Book()
    for way in ("Sell", "Buy"):  # of others, and long over
        book.fill("", way, 3, 100, BAR - DAY)
    other = book.entered()
    dust = book.entered(bar_ms=BAR + MINUTE, qty=1, price=90)
    book.keep(book.ledger.merge(msg.exit_id(dust, 0)))
    book.left(other, "101", "101", BAR + HOUR, qty=11)
    merged, kept = sorted(book.trades(), key=lambda trade: trade.qty)
    assert (merged.reason, merged.profit_usdt) == (trades.MERGED, -FEE)
    assert (kept.reason, kept.qty) == (trades.TAKE_PROFIT, 11)
    assert kept.profit_usdt == 11 * 101 - 1000 - 90 - 2 * FEE


def test_the_larger_part_names_the_reason() -> None:
    book = Book()
    entry = book.entered()
    book.fill("", "Sell", 4, 90, BAR + MINUTE)
    book.left(entry, "100.5", "100.5", BAR + 2 * MINUTE, qty=6)
    assert one(book).reason == trades.TAKE_PROFIT


def test_what_the_rows_do_not_tell_is_an_exit() -> None:
    book = Book()
    book.left(book.entered(), "100.5", "100.5", BAR + MINUTE)
    for kept in ([], book.orders.values()):
        (trade,) = trades.trades(book.lots.values(), kept, [], False)
        assert trade.reason == trades.EXIT


def test_funding_is_summed_apart_and_received_is_positive() -> None:
    book = Book()
    entry = book.entered()
    for fee in ("0.30", "-0.10"):
        book.fill("", "Buy", 10, 100, BAR + 2_000, exec_type="Funding", exec_fee=Decimal(fee))
    book.left(entry, "100.5", "100.5", BAR + MINUTE)
    assert trades.funding_usdt(book.executions.values()) == Decimal("-0.20")
    assert one(book).profit_usdt == Decimal("4.98")


# Run-up and draw-down.


@pytest.mark.parametrize(("side", "run_up", "draw_down"), [("Buy", "2", "-3"), ("Sell", "3", "-2")])
def test_run_up_and_draw_down_are_signed_by_side(side: str, run_up: str, draw_down: str) -> None:
    book = Book()
    entry = book.entered(side)
    book.left(entry, "100.5", "100.5", BAR + 5_000)
    seen = Extremes(BAR + 1_000, 102.0, 97.0, BAR + MINUTE, True)
    trade = one(book, **{entry: seen})
    assert (trade.run_up_pct, trade.draw_down_pct) == (Decimal(run_up), Decimal(draw_down))
    assert trade.whole
    for less in (seen._replace(gapless=False), seen._replace(until_ms=BAR)):
        assert not one(book, **{entry: less}).whole
        assert one(book, **{entry: less}).run_up_pct == Decimal(run_up)


def test_the_prices_it_was_traded_at_count_as_seen() -> None:
    book = Book()
    entry = book.entered()
    book.left(entry, "104", "104", BAR + 5_000)
    trade = one(book, **{entry: Extremes(BAR + 1_000, 102.0, 101.0, BAR + MINUTE, True)})
    assert (trade.run_up_pct, trade.draw_down_pct) == (4, 0)


@pytest.mark.parametrize(
    "seen",
    [None, Extremes(BAR, 102.0, 97.0, BAR, True), Extremes(BAR + 1_000, None, None, BAR, False)],
)
def test_without_prices_of_this_very_lot_nothing_is_known(seen: Extremes | None) -> None:
    book = Book()
    entry = book.entered()
    book.left(entry, "100.5", "100.5", BAR + 5_000)
    trade = one(book, **({entry: seen} if seen else {}))
    assert (trade.run_up_pct, trade.draw_down_pct, trade.whole) == (None, None, False)


def bars(*prices: tuple[float, float]) -> bytes:
    """(high, low) of each bar, as History has them."""
    return array("d", [x for high, low in prices for x in (low, high, low, high, 1.0)]).tobytes()


FOUR = bars((11, 9), (14, 10), (12, 5), (13, 8))


@pytest.mark.parametrize(
    ("opened", "closed", "found"),
    [
        (0, 1, (11.0, 9.0)),
        (0.5, 1.5, (14.0, 9.0)),
        (1, 2.99, (14.0, 5.0)),
        (1, 2, (14.0, 5.0)),  # sold at the bar's first moment: its price is the bar's
        (2, None, (13.0, 5.0)),
        (-5, 0.1, (11.0, 9.0)),
        (3.5, 99, (13.0, 8.0)),
        (4, None, None),
        (-5, -0.1, None),
    ],
)
def test_extremes_are_of_the_bars_that_overlap(
    opened: float, closed: float | None, found: tuple[float, float] | None
) -> None:
    closed_ms = 0 if closed is None else BAR + int(closed * MINUTE)
    if closed == 1:
        closed_ms -= 1
    assert extremes(FOUR, BAR, MINUTE, BAR + int(opened * MINUTE), closed_ms) == found


def test_bytes_that_are_no_bars_are_refused() -> None:
    for wrong in (b"123", array("d", [1.0] * 7).tobytes()):
        with pytest.raises(ValueError):
            extremes(wrong, BAR, MINUTE, BAR, 0)


def lot(opened_ms: int, closed_ms: int = 0, symbol: str = SYMBOL, number: int = 1) -> msg.Lot:
    sums = (Decimal(10), Decimal(100), Decimal(0), Decimal(0), FEE, Decimal(0), 0, Decimal(1))
    return msg.Lot(f"dm-{symbol}-{number:x}-B", symbol, "Buy", *sums, BAR, opened_ms, closed_ms)


PRICES = st.lists(
    st.tuples(st.integers(1, 99), st.integers(1, 99)).map(lambda x: (max(x), min(x))),
    min_size=1,
    max_size=12,
)


@given(
    prices=PRICES,
    opened=st.integers(0, 12 * MINUTE - 1),
    held=st.integers(0, 12 * MINUTE),
    looks=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=5),
)
def test_many_looks_see_what_one_look_sees(
    prices: list[tuple[int, int]], opened: int, held: int, looks: list[tuple[int, int]]
) -> None:
    """However the bars came; and where one look would have seen more, they say so."""
    closed = lot(BAR + opened, BAR + opened + held)
    at_once = extremes(bars(*prices), BAR, MINUTE, closed.opened_ms, closed.closed_ms)
    seen: Extremes | None = None
    for start, end in sorted(looks, key=lambda look: look[1]):
        history = msg.History(SYMBOL, BAR + start * MINUTE, bars(*prices[start:end]))
        seen = looked(seen, history, closed, MINUTE)
    if seen and seen.high is not None and seen.low is not None:
        assert at_once and seen.high <= at_once[0] and seen.low >= at_once[1]
    if seen and seen.gapless and seen.until_ms > closed.closed_ms:
        assert (seen.high, seen.low) == at_once


def test_looks_are_asked_for_until_the_last_bar_of_a_lot_is_seen(tmp_path: Path) -> None:
    held = lot(BAR + 10_000)
    sold = held._replace(closed_ms=BAR + 3 * MINUTE + 5)
    with closing(Excursions(tmp_path / "excursions.db", MINUTE)) as kept:
        assert wanted([held], kept.known, BAR + MINUTE - 1, MINUTE) == []
        assert wanted([held], kept.known, BAR + MINUTE, MINUTE) == [SYMBOL]
        assert kept.take(msg.History(SYMBOL, BAR - MINUTE, bars((50, 1), (11, 9))), [held]) == 1
        assert kept.take(msg.History(SYMBOL, BAR - MINUTE, bars((50, 1), (11, 9))), [held]) == 0
        assert wanted([held], kept.known, BAR + 2 * MINUTE - 1, MINUTE) == []
        assert wanted([sold], kept.known, BAR + 2 * MINUTE, MINUTE) == [SYMBOL]
        assert kept.take(msg.History("BBBUSDT", BAR, FOUR), [sold]) == 0
        assert kept.take(msg.History(SYMBOL, BAR, FOUR), [sold]) == 1
        assert wanted([sold], kept.known, BAR + DAY, MINUTE) == []
        assert kept.take(msg.History(SYMBOL, BAR + 4 * MINUTE, bars((99, 1))), [sold]) == 0
    found = {sold.entry_id: Extremes(held.opened_ms, 14.0, 5.0, BAR + 4 * MINUTE, True)}
    assert excursions.read(tmp_path / "excursions.db") == found
    assert stat.S_IMODE((tmp_path / "excursions.db").stat().st_mode) == 0o600
    with closing(Excursions(tmp_path / "excursions.db", MINUTE)) as again:
        assert again.known == found


def test_a_look_that_comes_too_late_leaves_a_gap_and_is_not_asked_for_again(tmp_path: Path) -> None:
    early, late = lot(BAR - HOUR, BAR - 1, number=1), lot(BAR - HOUR, BAR + 5, number=2)
    with closing(Excursions(tmp_path / "excursions.db", MINUTE)) as kept:
        assert kept.take(msg.History(SYMBOL, BAR, FOUR), [early, late]) == 2
        assert kept.known[early.entry_id] == (BAR - HOUR, None, None, BAR + 4 * MINUTE, False)
        assert kept.known[late.entry_id] == (BAR - HOUR, 11.0, 9.0, BAR + 4 * MINUTE, False)
        assert wanted([early, late], kept.known, BAR + DAY, MINUTE) == []


def test_an_id_that_recurs_on_a_new_account_is_looked_at_anew(tmp_path: Path) -> None:
    with closing(Excursions(tmp_path / "excursions.db", MINUTE)) as kept:
        kept.take(msg.History(SYMBOL, BAR, FOUR), [lot(BAR)])
        other = lot(BAR + 3 * MINUTE)
        assert wanted([other], kept.known, BAR + DAY, MINUTE) == [SYMBOL]
        kept.take(msg.History(SYMBOL, BAR, FOUR), [other])
        assert kept.known[other.entry_id][:3] == (other.opened_ms, 13.0, 8.0)


def test_no_file_of_excursions_is_nothing_known(tmp_path: Path) -> None:
    assert excursions.read(tmp_path / "excursions.db") == {}
    assert list(tmp_path.iterdir()) == []


# Sums.


@st.composite
def books(draw: st.DrawFn) -> tuple[list[Trade], Decimal]:
    """Trades of random lots by way of the ledger; and what their executions moved, fees paid."""
    book, cash = Book(), Decimal(0)
    prices = st.decimals(1, 200, places=2)
    for number in range(draw(st.integers(0, 6))):
        side, symbol = draw(st.sampled_from(("Buy", "Sell"))), f"S{draw(st.integers(0, 2))}USDT"
        if any(x.symbol == symbol and x.side != side for x in book.ledger.lots.values()):
            side = opposite(side)
        bar_ms = BAR + number * draw(st.integers(1, 40)) * MINUTE + number * DAY
        entry, now = book.granted(side, bar_ms, symbol), bar_ms
        parts = draw(st.lists(st.integers(1, 5), min_size=1, max_size=2))
        done = book.fill
        for name, way, qtys in (
            (entry, side, parts),
            (msg.exit_id(entry, 0), opposite(side), draw(st.permutations(parts))),
        ):
            for qty in qtys:
                now, price = now + draw(st.integers(0, 10**6)), draw(prices)
                done(name, way, qty, price, now)
                cash -= sign(way) * qty * price + FEE
            book.over(name, way, sum(qtys), price, now)
    return book.trades(), cash


@given(case=books(), chance=st.randoms(use_true_random=False))
def test_all_sums_agree_in_whatever_order_trades_come(
    case: tuple[list[Trade], Decimal], chance: Any
) -> None:
    made, cash = case
    told = trades.statistics(made, [])
    mixed = chance.sample(made, len(made))
    assert trades.statistics(mixed, []) == told
    assert told.profit_usdt == cash  # every lot is closed: what is here is what was made
    for by in (trades.by_symbol, trades.by_hour, trades.by_reason):
        groups = by(mixed)
        assert groups == by(made)
        assert sum(group.profit_usdt for group in groups) == told.profit_usdt
        assert sum(group.fees_usdt for group in groups) == told.fees_usdt
        counts = [sum(group[index] for group in groups) for index in (1, 2, 3)]
        assert counts == [told.trades, told.wins, told.losses]


@given(profits=st.lists(st.decimals(-100, 100, places=3), max_size=20))
def test_a_profit_factor_beyond_one_is_a_profit(profits: list[Decimal]) -> None:
    told = trades.statistics([trade(profit) for profit in profits], [])
    assert told.wins + told.losses + sum(profit == 0 for profit in profits) == told.trades
    if told.profit_factor is None:
        assert not told.losses
    else:
        assert (told.profit_factor > 1) == (told.profit_usdt > 0)
    if told.best and told.worst and told.expectancy_usdt is not None:
        assert told.worst.profit_usdt <= told.best.profit_usdt
        assert abs(told.expectancy_usdt * len(profits) - told.profit_usdt) < Decimal("1e-20")


def trade(profit: Decimal | str, symbol: str = SYMBOL, reason: str = trades.EXIT) -> Trade:
    head = (f"dm-{symbol}-1-B", symbol, "Buy", Decimal(1), Decimal(100), Decimal(101))
    money = (Decimal(profit), FEE, Decimal(profit))
    return Trade(*head, BAR, BAR + MINUTE, MINUTE, *money, reason)


def test_statistics_of_three_trades() -> None:
    made = [trade("3"), trade("-1"), trade("1", "BBBUSDT")]
    told = trades.statistics(made, [], Decimal("-0.5"))
    assert (told.trades, told.wins, told.losses, told.average_hold_ms) == (3, 2, 1, MINUTE)
    assert (told.profit_factor, told.expectancy_usdt) == (4, 1)  # (3 + 1) / 1; 3 / 3
    assert (told.profit_usdt, told.fees_usdt, told.funding_usdt) == (3, 3 * FEE, Decimal("-0.5"))
    assert (told.best, told.worst) == (made[0], made[1])
    assert [group.name for group in trades.by_symbol(made)] == [SYMBOL, "BBBUSDT"]
    hours = trades.by_hour(made)
    assert len(hours) == 24 and hours[5].trades == 3  # BAR is at 05:00


def test_statistics_of_nothing_are_nothing() -> None:
    told = trades.statistics([], [])
    assert (told.trades, told.profit_usdt, told.max_drawdown_pct, told.drawdown_ms) == (0, 0, 0, 0)
    assert {told.win_rate_pct, told.profit_factor, told.expectancy_usdt, told.best} == {None}
    assert {told.average_hold_ms, told.sharpe, told.sortino, told.funding_usdt} == {None}


# The equity.


def test_sharpe_and_sortino_of_three_days() -> None:
    points = equity_curve([(0, 100.0), (1, 110.0), (DAY, 99.0), (2 * DAY, 99.0), (2 * DAY + 1, 99)])
    returns = [0.1, -0.1, 0.0]  # mean 0: 110/100, 99/110, 99/99
    assert ratios(points) == pytest.approx((sum(returns), 0.0))
    sharpe, sortino = ratios(equity_curve([(0, 100.0), (1, 120.0), (DAY, 108.0)]))
    # 0.2, -0.1: mean 0.05, deviation 0.2121 = sqrt(2 * 0.15^2 / 1); downside sqrt(0.01 / 2)
    assert sharpe == pytest.approx(0.05 / math.sqrt(0.045) * math.sqrt(365))
    assert sortino == pytest.approx(0.05 / math.sqrt(0.005) * math.sqrt(365))


def test_a_day_without_equity_is_a_day_without_a_return() -> None:
    known = ratios(equity_curve([(0, 100.0), (1, 120.0), (DAY, 120.0), (2 * DAY, 108.0)]))
    assert ratios(equity_curve([(0, 100.0), (1, 120.0), (2 * DAY, 108.0)])) == pytest.approx(known)


@pytest.mark.parametrize(
    "of", [[], [(0, 100.0)], [(0, 100.0), (DAY - 1, 120.0)], [(0, 0.0), (DAY, 5.0)]]
)
def test_less_than_two_days_have_no_ratios(of: list[tuple[int, float]]) -> None:
    assert ratios(equity_curve(of)) == (None, None)


CURVES = st.lists(
    st.tuples(st.integers(0, 10**12), st.floats(0.01, 1e9)), max_size=200, unique_by=lambda x: x[0]
)


@given(of=CURVES, chance=st.randoms(use_true_random=False))
def test_a_drawdown_is_never_positive_and_counts_from_the_top_before(
    of: list[tuple[int, float]], chance: Any
) -> None:
    points = equity_curve(chance.sample(of, len(of)))
    assert points == equity_curve(of)
    assert [point[:2] for point in points] == sorted(of)
    assert all(-100 <= point.drawdown_pct <= 0 for point in points)
    told = trades.statistics([], points)
    assert told.max_drawdown_pct == min((point.drawdown_pct for point in points), default=0)
    if told.drawdown_ms:
        now = {point.wall_ms: point.equity for point in points}
        assert told.drawdown_top_ms < told.drawdown_ms
        fell = now[told.drawdown_ms] - now[told.drawdown_top_ms]
        assert fell == told.max_drawdown_usdt < 0
        assert not any(
            told.drawdown_top_ms < at < told.drawdown_ms and equity > now[told.drawdown_top_ms]
            for at, equity in now.items()
        )


@given(of=CURVES, most=st.integers(5, 60))
@example(of=[(at, float(1 + at % 7)) for at in range(100)], most=5)
@example(of=[(at, float(at // 5 * 100 + (2, 1, 50, 20, 21)[at % 5])) for at in range(20)], most=12)
def test_a_thinned_curve_is_short_and_keeps_every_extreme(
    of: list[tuple[int, float]], most: int
) -> None:
    points = equity_curve(of)
    few = thin(points, most)
    assert len(few) <= most and set(few) <= set(points) and few == sorted(few)
    if points:
        assert (few[0], few[-1]) == (points[0], points[-1])
        for best, field in ((max, 1), (min, 1), (min, 2)):
            assert best(x[field] for x in few) == best(x[field] for x in points)


def test_a_curve_cannot_be_thinned_to_less_than_its_extremes() -> None:
    with pytest.raises(ValueError):
        thin([Point(0, 1.0, 0.0)], 4)


# The ledger's file.


def read(folder: Path, since: str = "") -> rows.Found:
    return report.found_in(folder, since, wall_ms=BAR + DAY)


def kept(folder: Path, account: str = ACCOUNT) -> None:
    """Two trades, one flattened, a lot that is open, funding, an equity, a touch, refusals."""
    book = Book(folder / "state.db", account)
    book.left(book.entered("Buy"), "100.5", "100.5", BAR + MINUTE)
    book.fill("", "Buy", 10, 100, BAR + 2 * MINUTE, exec_type="Funding", exec_fee=Decimal("0.3"))
    second = book.entered("Sell", BAR + HOUR)
    book.left(second, "102", "100.9", BAR + HOUR + MINUTE, maker=False)
    book.entered("Buy", BAR + 2 * HOUR)
    store = book.store
    mode = msg.Mode(("test", book.ledger.row), msg.FLATTEN, "operator", ())
    store.mode(mode, (msg.FLATTEN, "operator"), "me", 1)
    for at, equity in ((BAR, "1000"), (BAR + HOUR, "990"), (BAR + 2 * HOUR, "995.5")):
        store.equity(msg.Wallet(Decimal(equity), Decimal(equity), Decimal(0)), at)
    store.outcome(msg.Touch("dm-X-1-B", "X", "Buy", BAR, "filled"), True)
    for command, reason in enumerate(("below 10", "below 0.2", "[red]</script><b>no")):
        terms = (Decimal(1), Decimal(1), "GTC", False, 0, 0, "refused", 7, reason)
        request = msg.OrderRequest("dm-X-1-B", command, "create", "X", "Buy", *terms)
        store.refusal(request, BAR)
    store.close()


def test_a_ledger_is_read_whole(tmp_path: Path) -> None:
    kept(tmp_path)
    found = read(tmp_path)
    assert [trade.reason for trade in found.trades] == [trades.TAKE_PROFIT, trades.FLATTEN]
    assert [trade.profit_usdt for trade in found.trades] == [Decimal("4.98"), Decimal("-9.02")]
    assert [lot.bar_start_ms for lot in found.open_lots] == [BAR + 2 * HOUR]
    assert [point.equity for point in found.equity] == [1000, 990, 995.5]
    assert (found.funding_usdt, found.account) == (Decimal("-0.3"), ACCOUNT)
    assert found.outcomes == [("filled", 1)]
    assert sum(count for *_, count in found.refusals) == 3


@pytest.mark.parametrize(
    ("account", "since", "count", "points"),
    [
        ("paper-1", "", 2, 3),
        ("paper-1", "1970-01-31T05:01:01", 1, 2),  # BAR is 1970-01-31 05:00 UTC
        ("paper-1", "1970-01-31T06:01:01+01:00", 1, 2),
        ("paper-1", "1970-02-01", 0, 0),
        ("paper-1", "90m", 1, 0),  # of the market: before 07:00:01, the last execution
        ("paper-1", "22h", 2, 1),  # the equity's clock is the wall's: it is 05:00, a day later
        ("mainnet-1", "22h", 0, 1),  # and so is that of a real market
        ("mainnet-1", "2d", 2, 3),
    ],
)
def test_since_when(tmp_path: Path, account: str, since: str, count: int, points: int) -> None:
    kept(tmp_path, account)
    found = read(tmp_path, since)
    assert (len(found.trades), len(found.equity)) == (count, points)


def test_every_page_is_read_and_between_them_the_writer_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = rows.PAGE * 2 + 3
    with closing(Store(tmp_path / "state.db", ACCOUNT, "life")) as store:
        lots = tuple(lot(BAR, BAR + 1, number=number) for number in range(many))
        store.write(Change(SYMBOL, (), lots), row=1)
        with closing(Records(tmp_path / "state.db")) as records:
            paged = rows.pages(records, "lots", "entry_id", "closed_ms >= ?", 0)
            first = next(paged)
            store.write(Change(SYMBOL, (), (lot(BAR, symbol="ZZZUSDT"),)), row=2, durable=True)
            found = [first["entry_id"], *(row["entry_id"] for row in paged)]
    assert found == sorted({row.entry_id for row in (*lots, lot(BAR, symbol="ZZZUSDT"))})


def test_an_empty_ledger_has_a_report(tmp_path: Path) -> None:
    Store(tmp_path / "state.db", ACCOUNT, "life").close()
    found = read(tmp_path)
    made = trades.statistics(found.trades, found.equity, found.funding_usdt)
    assert "no trades yet" in page(found, made, "Report")
    report.show(Console(file=open(os.devnull, "w")), found, made)  # noqa: PTH123, SIM115


def damaged(folder: Path) -> None:
    with closing(Store(folder / "state.db", ACCOUNT, "life")) as store:
        wrong: Any = lot(BAR, BAR + 1)._replace(cost="much")
        store.write(Change(SYMBOL, (), (wrong,)), row=1)


@pytest.mark.parametrize(
    ("make", "since", "says"),
    [
        (lambda folder: None, "", "no ledger yet"),
        (lambda folder: (folder / "state.db").write_text("x" * 9000), "", "not a database"),
        (lambda folder: (folder / "state.db").touch(), "", "no such table"),
        (damaged, "", "not as it was written"),
        (kept, "yesterday", "--since"),
        (kept, "9999999d", "--since"),
        (kept, "2026-02-31", "--since"),
        (lambda folder: (folder / "excursions.db").write_text("x" * 9000), "", "may be deleted"),
    ],
)
def test_what_cannot_be_reported_is_said_in_one_line(
    tmp_path: Path, make: Any, since: str, says: str
) -> None:
    make(tmp_path)
    with pytest.raises(report.WrongInput, match=says) as caught:
        read(tmp_path, since)
    assert "\n" not in str(caught.value)


# What people get.


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> int:
    """The exit code of `python -m services.report`."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("RUN_DIR", str(folder))
    monkeypatch.setattr(sys, "argv", ["report", *arguments])
    try:
        report.main()
    except SystemExit as end:
        return int(str(end.code))
    return 0


def test_the_tables_and_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept(tmp_path)
    assert run(monkeypatch, tmp_path, "--csv", "made/trades.csv") == 0
    (made,) = (tmp_path / "reports").iterdir()
    said = capsys.readouterr().out
    assert "-4.0400 USDT after 0.0400 fees" in said  # 4.98 - 9.02
    assert "-1.00 %, -10.0000 USDT" in said and "[red]</script><b>no" in said
    assert "below #" in said and str(made) in said.replace("\n", "")
    assert stat.S_IMODE(made.stat().st_mode) == 0o600
    lines = (tmp_path / "made/trades.csv").read_text().splitlines()
    assert len(lines) == 3 and lines[0].startswith("entry_id,symbol,side,qty,")


def test_json_is_one_object_and_writes_no_page_that_was_not_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept(tmp_path)
    assert run(monkeypatch, tmp_path, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["statistics"]["profit_usdt"] == "-4.04"
    assert told["statistics"]["best"]["entry_id"] == msg.entry_id(SYMBOL, "Buy", BAR)
    assert [group["name"] for group in told["by_reason"]] == ["flatten", "take profit"]
    assert not (tmp_path / "reports").exists()


@pytest.mark.parametrize("arguments", [(), ("--since", "soon"), ("--html", "."), ("--what",)])
def test_wrong_input_ends_with_2_and_leaves_nothing(
    arguments: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if arguments:
        kept(tmp_path)
    assert run(monkeypatch, tmp_path, *arguments) == 2
    assert "report: " in capsys.readouterr().err
    assert not [path for path in tmp_path.rglob("*") if "report" in path.name]


class Tags(HTMLParser):
    """Every tag of a page with its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def tags(text: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = Tags()
    parser.feed(text)
    return parser.found


EVIL = "</script><img src=//evil.example onerror=alert(1)>"


def test_a_page_asks_nobody_and_takes_no_text_for_html() -> None:
    evil = [trade(profit, EVIL, EVIL) for profit in ("1", "-1")]
    point = Point(BAR, 1.0, 0.0)
    names = [(EVIL, 1)]
    found = rows.Found(EVIL, evil, [], [point], Decimal(0), names, [(1, EVIL, 1)])
    tame = rows.Found("a", [], [], [point], Decimal(0), [], [])
    made = trades.statistics(evil, [point])
    text = page(found, made, EVIL)
    assert EVIL not in text
    kinds = {tag for tag, _ in tags(text)} - {"tr", "td", "th", "table"}
    assert kinds <= {tag for tag, _ in tags(page(tame, trades.statistics([], []), "Report"))}
    for tag, attributes in tags(text):
        assert tag not in ("link", "img", "iframe", "object", "base"), tag
        assert not {"src", "href", "srcset", "action", "onerror"} & attributes.keys(), tag
    assert "default-src 'none'" in text
    assert "\\u003cimg src" not in text  # in a plot it would be taken for markup, too


def test_only_the_newest_trades_are_in_the_table_of_a_page() -> None:
    many = [trade("1")._replace(closed_ms=BAR + number) for number in range(2_001)]
    found = rows.Found("a", many, [], [], Decimal(0), [], [])
    text = page(found, trades.statistics(many, []), "Report")
    assert text.count(f"<td>{SYMBOL}</td>") == 2_000
    assert "the newest 2000 of 2001" in text
    assert text.count('<td class="number good">+1.0000</td>') == 2_000


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (words.usdt(Decimal("0.01234")), "+0.0123"),
        (words.usdt(Decimal("-1234.5")), "-1,234.50"),
        (words.usdt(None), "–"),
        (words.cost(Decimal("0.5")), "0.5000"),
        (words.pct(1.234), "+1.23 %"),
        (words.span(17_900), "17 s"),
        (words.span(200_000), "3 min 20 s"),
        (words.span(2 * HOUR + 5 * MINUTE), "2 h 5 min"),
        (words.span(3 * DAY + 4 * HOUR), "3 d 4 h"),
        (words.when(BAR), "1970-01-31 05:00:00"),
        (words.when(2**62), "–"),
        (words.price(Decimal("0.00001230")), "0.0000123"),
        (words.price(Decimal(1) / 3), "0.33333333"),
        (words.price(Decimal("1E+3")), "1000"),
    ],
)
def test_numbers_as_people_read_them(said: str, text: str) -> None:
    assert said == text


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "made" / "page.html"
    report.write(file, "old")
    report.write(file, "new")
    assert (file.read_text(), [path.name for path in file.parent.iterdir()]) == ("new", [file.name])
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(report.WrongInput, match="directory"):
        report.write(folder, "text")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "made"]


def test_the_core_knows_neither_rich_nor_plotly() -> None:
    heavy = {"rich", "plotly"}
    for module in (trades, excursions, rows):
        text = Path(str(module.__file__)).read_text()
        assert not [name for name in heavy if f"import {name}" in text or f"from {name}" in text]
