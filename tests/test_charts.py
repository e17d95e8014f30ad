"""charts: the bands that a worker computes, fills at their bar, and lines at their exact price."""

from itertools import pairwise

import numpy as np
import pytest

from services.dashboard.charts import (
    DOWN,
    ENTRY,
    LAST,
    SHOWN_BARS,
    UP,
    Candle,
    Fill,
    Level,
    Options,
    candle_chart,
    candles,
    equity_chart,
)
from services.dashboard.frame import moment, money
from services.worker.ring import ROWS
from services.worker.strategy import Parameters, bands
from shared import messages as msg

MINUTE = 60_000
START = 1_700_000_040_000  # 22:14 UTC, a whole minute
P = Parameters()


def walk(rows: int) -> np.ndarray:
    """Bars of a random walk: float64 (rows, 5), oldest first."""
    chance = np.random.default_rng(7)
    close = 100 * np.exp(np.cumsum(chance.normal(0, 0.002, rows)))
    opened = np.concatenate(([100.0], close[:-1]))
    high, low = np.maximum(opened, close) * 1.001, np.minimum(opened, close) * 0.999
    return np.column_stack((opened, high, low, close, np.ones(rows)))


def history(rows: np.ndarray) -> msg.History:
    return msg.History("AAAUSDT", START, rows.tobytes())


def chart(fills: list[Fill] | None = None, levels: list[Level] | None = None) -> Options:
    """Of ten candles."""
    return candle_chart(candles(history(walk(10)), MINUTE, P), fills or [], levels or [], MINUTE)


def series(options: Options, name: str) -> Options:
    (found,) = [row for row in options["series"] if row["name"] == name]
    return dict(found)


@pytest.mark.parametrize("parameters", [P, Parameters(bb_length=20, bb_mult=2.0, bb_dev_mult=1.0)])
def test_bands_are_those_of_the_worker_over_the_same_bars(parameters: Parameters) -> None:
    rows, length = walk(60), parameters.bb_length
    found = candles(history(rows), MINUTE, parameters)
    assert len(found) == 60
    for index, candle in enumerate(found):
        if index + 1 < length:
            assert (candle.lower, candle.upper) == (None, None)
            continue
        expected = bands(rows[index + 1 - length : index + 1], parameters)
        assert (candle.lower, candle.upper) == (expected.lower.band, expected.upper.band)


def test_a_candle_is_its_bar() -> None:
    rows = walk(10)
    found = candles(history(rows), MINUTE, P)
    assert [c.start_ms for c in found] == [START + n * MINUTE for n in range(10)]
    assert [(c.open, c.high, c.low, c.close) for c in found] == [tuple(bar[:4]) for bar in rows]


def test_only_the_last_three_hours_are_shown_all_of_them_with_bands() -> None:
    rows = walk(ROWS + 20)
    found = candles(history(rows), MINUTE, P)
    assert len(found) == SHOWN_BARS == 180
    assert found[-1].start_ms == START + (ROWS + 19) * MINUTE
    assert all(later.start_ms - c.start_ms == MINUTE for c, later in pairwise(found))
    assert found[0].lower == bands(rows[-SHOWN_BARS - 6 : 1 - SHOWN_BARS], P).lower.band


def test_no_bars_are_no_candles_and_an_empty_chart() -> None:
    assert candles(msg.History("AAAUSDT", 0, b""), MINUTE, P) == []
    options = candle_chart((), [Fill(START, "Buy", 1.0, "")], (), MINUTE)
    assert series(options, "price")["data"] == series(options, "fills")["data"] == []


def test_a_candle_is_drawn_as_open_close_low_high_under_its_minute() -> None:
    options = candle_chart([Candle(START, 1.0, 4.0, 0.5, 2.0, None, 5.0)], (), (), MINUTE)
    assert series(options, "price")["data"] == [[1.0, 2.0, 0.5, 4.0]]
    assert options["xAxis"]["data"] == ["22:14"]
    assert series(options, "lower band")["data"] == [None]
    assert series(options, "upper band")["data"] == [5.0]


@pytest.mark.parametrize(
    ("at_ms", "bar"),
    [
        (START, 0),
        (START + MINUTE - 1, 0),
        (START + MINUTE, 1),
        (START + 9 * MINUTE, 9),
        (START + 10 * MINUTE, 9),  # in the bar that forms: at the last that has closed
        (START + 11 * MINUTE, None),  # of a later bar than is known
        (START - 1, None),
    ],
)
def test_a_fill_is_at_its_bar_and_price(at_ms: int, bar: int | None) -> None:
    marks = series(chart([Fill(at_ms, "Buy", 99.5, "Buy 1@99.5")]), "fills")["data"]
    assert [mark["value"] for mark in marks] == ([] if bar is None else [[bar, 99.5]])


def test_a_buy_points_up_and_a_sale_down() -> None:
    fills = [Fill(START, "Buy", 1.0, "bought"), Fill(START, "Sell", 2.0, "sold")]
    bought, sold = series(chart(fills), "fills")["data"]
    assert (bought["symbolRotate"], bought["itemStyle"]["color"], bought["name"]) == (
        *(0, UP),
        "bought",
    )
    assert (sold["symbolRotate"], sold["itemStyle"]["color"], sold["name"]) == (180, DOWN, "sold")


def test_a_level_is_a_line_at_its_exact_price() -> None:
    levels = [Level("entry Buy 2", 0.00001234, ENTRY), Level("last", 0.0439, LAST)]
    marks = series(chart(levels=levels), "price")["markLine"]
    assert [line["yAxis"] for line in marks["data"]] == [0.00001234, 0.0439]
    # the picture draws round(price, precision), and 2 unless it is told otherwise
    assert all(round(level.price, marks["precision"]) == level.price for level in levels)
    texts = [line["label"]["formatter"] for line in marks["data"]]
    assert texts == ["entry Buy 2 0.00001234", "last 0.0439"]


def test_the_equity_is_over_its_drawdown() -> None:
    options = equity_chart([(1, 1_000.0, 0.0), (2, 990.0, -1.0)])
    assert series(options, "equity")["data"] == [[1, 1_000.0], [2, 990.0]]
    assert series(options, "drawdown")["data"] == [[1, 0.0], [2, -1.0]]
    assert series(options, "drawdown")["yAxisIndex"] == 1


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (1234.5, "+1,234.50"),
        (-0.005001, "-0.01"),
        (0.0, "0.00"),
        (-0.0, "0.00"),
        (-0.001, "0.00"),  # no sign of nothing
        (100.0, "+100.00"),
    ],
)
def test_money_has_a_sign_where_it_is_something(value: float | None, text: str) -> None:
    assert money(value) == text


def test_times_are_for_people() -> None:
    assert moment(START) == "11-14 22:14:00" and moment(0) == ""
