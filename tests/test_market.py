"""market and ticker: recorded and synthetic minutes, exact to the tick, and bars made of them."""

import gzip
from collections import Counter
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.paper.market import (
    COLUMNS,
    MINUTE_MS,
    POINTS,
    BadData,
    Listing,
    Minute,
    Replay,
    Synthetic,
    bar_path,
)
from services.paper.ticker import POINT_MS, Point, Ticker

START = 1_700_000_040_000  # a whole minute
assert START % MINUTE_MS == 0


# Inside a bar.


@st.composite
def bars(draw: Any) -> tuple[int, int, int, int]:
    """Open, high, low, close in ticks: low <= open, close <= high."""
    price = st.integers(1, 2 ** draw(st.integers(1, 40)))
    open_, close, one, other = (draw(price) for _ in range(4))
    return open_, max(open_, close, one), min(open_, close, other), close


def line(corners: tuple[int, ...], second: int) -> int:
    """The price at a second, in exact fractions: straight lines through 0, 20, 40 and 59."""
    at = (0, 20, 40, 59)
    leg = min(sum(second >= corner for corner in at[1:]), 2)
    share = Fraction(second - at[leg], at[leg + 1] - at[leg])
    return round(corners[leg] + (corners[leg + 1] - corners[leg]) * share)  # half to even


@given(st.lists(bars(), min_size=1, max_size=4))
@settings(max_examples=100, deadline=None)
def test_a_bar_runs_in_straight_lines_through_both_extremes_to_its_close(
    rows: list[tuple[int, int, int, int]],
) -> None:
    path = bar_path(np.array(rows, np.int64))
    assert path.shape == (POINTS, len(rows))
    for index, (open_, high, low, close) in enumerate(rows):
        corners = (open_, low, high, close) if close >= open_ else (open_, high, low, close)
        assert path[:, index].tolist() == [line(corners, second) for second in range(POINTS)]
        assert (path[:, index].max(), path[:, index].min()) == (high, low)


@pytest.mark.parametrize(
    ("bar", "order"),
    [
        ((10, 20, 5, 12), [10, 5, 20, 12]),  # rising: the low first
        ((10, 20, 5, 10), [10, 5, 20, 10]),  # unchanged counts as rising
        ((12, 20, 5, 10), [12, 20, 5, 10]),  # falling: the high first
    ],
)
def test_the_order_of_the_extremes(bar: tuple[int, ...], order: list[int]) -> None:
    path = bar_path(np.array([bar], np.int64))[:, 0]
    assert [int(path[second]) for second in (0, 20, 40, 59)] == order


def test_a_half_tick_goes_to_the_even_one() -> None:
    path = bar_path(np.array([(2, 12, 2, 12)], np.int64))[:, 0]
    # 2 -> 2 in 20 s, then 2 -> 12: half a tick a second: 2.5, 3.5, 4.5, 5.5
    assert [int(path[20 + n]) for n in (1, 3, 5, 7)] == [2, 4, 4, 6]


# Recorded klines.

NOTHING: dict[str, Any] = {}
ROWS = [(100, 110, 90, 105, 1.5), (105, 120, 105, 106, 2.5), (106, 107, 80, 81, 3.5)]


def write_csv(folder: Path, symbol: str, lines: list[str], packed: bool = False) -> Path:
    folder.mkdir(exist_ok=True)
    text = "\n".join(lines) + "\n"
    if packed:
        path = folder / f"{symbol}.csv.gz"
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path = folder / f"{symbol}.csv"
        path.write_text(text)
    return path


def csv_lines(rows: list[tuple[Any, ...]], decimals: int = 1, start_ms: int = START) -> list[str]:
    """A header and one line a minute, prices in units of 10**-decimals."""
    lines = [",".join(COLUMNS)]
    for number, (*prices, volume) in enumerate(rows):
        text = [str(Decimal(price).scaleb(-decimals)) for price in prices]
        lines.append(",".join((str(start_ms + number * MINUTE_MS), *text, str(volume))))
    return lines


def write_npz(path: Path, rows_of: dict[str, Any], change: dict[str, Any] = NOTHING) -> Path:
    """`change` replaces arrays, and None leaves one out."""
    arrays: dict[str, Any] = {"symbols": np.array(list(rows_of))}
    for symbol, rows in rows_of.items():
        meta = [START, MINUTE_MS, len(rows), 1]
        arrays[f"{symbol}_meta"] = np.array(meta, np.int64)
        arrays[f"{symbol}_ohlc"] = np.array([row[:4] for row in rows], np.int32)
        arrays[f"{symbol}_vol"] = np.array([row[4] for row in rows], np.float32)
    arrays = {name: value for name, value in (arrays | change).items() if value is not None}
    np.savez(path, **arrays)
    return path


def minutes_of(replay: Replay) -> list[Minute]:
    found = []
    while minute := replay.next():
        found.append(minute)
    return found


def check_rows(replay: Replay, symbol: str) -> None:
    """Three minutes, exactly ROWS, on a tick of 0.1."""
    index = [listing.symbol for listing in replay.listings].index(symbol)
    assert replay.listings[index].tick_size == Decimal("0.1")
    minutes = minutes_of(replay)
    assert [minute.start_ms for minute in minutes] == [START + n * MINUTE_MS for n in range(3)]
    for minute, (*bar, volume) in zip(minutes, ROWS, strict=True):
        path = minute.path[:, index]
        assert [path[0], path.max(), path.min(), path[-1]] == bar
        assert minute.volume[index] == volume


def test_replay_reads_an_npz_file(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "klines.npz", {"AAAUSDT": ROWS, "BBBUSDT": ROWS[::-1]})
    check_rows(Replay(path, 0, 0, 0), "AAAUSDT")


def test_replay_reads_a_folder_of_csv_files(tmp_path: Path) -> None:
    write_csv(tmp_path / "data", "AAAUSDT", csv_lines(ROWS))
    write_csv(tmp_path / "data", "BBBUSDT", csv_lines(ROWS, decimals=2), packed=True)
    replay = Replay(tmp_path / "data", 0, 0, 0)
    ticks = {listing.symbol: listing.tick_size for listing in replay.listings}
    assert ticks == {"AAAUSDT": Decimal("0.1"), "BBBUSDT": Decimal("0.01")}
    check_rows(replay, "AAAUSDT")


def test_replay_plays_the_minutes_that_all_symbols_share(tmp_path: Path) -> None:
    write_csv(tmp_path / "data", "AAAUSDT", csv_lines(ROWS))
    write_csv(tmp_path / "data", "BBBUSDT", csv_lines(ROWS, start_ms=START + MINUTE_MS))
    minutes = minutes_of(Replay(tmp_path / "data", 0, 0, 0))
    assert [m.start_ms for m in minutes] == [START + MINUTE_MS, START + 2 * MINUTE_MS]
    assert minutes[0].path[0].tolist() == [105, 100]  # the second of A, the first of B


def test_replay_begins_at_its_start_after_so_much_history_and_ends_in_time(tmp_path: Path) -> None:
    write_csv(tmp_path / "data", "AAAUSDT", csv_lines(ROWS * 4))  # 12 minutes
    replay = Replay(tmp_path / "data", START + 5 * MINUTE_MS, minutes=3, history=2)
    assert replay.start_ms == START + 5 * MINUTE_MS
    assert [m.start_ms for m in minutes_of(replay)] == [START + n * MINUTE_MS for n in range(3, 8)]


@pytest.mark.parametrize("start_ms", [START - MINUTE_MS, START + 3 * MINUTE_MS, START + 1])
def test_a_start_outside_the_data_is_refused(tmp_path: Path, start_ms: int) -> None:
    write_csv(tmp_path / "data", "AAAUSDT", csv_lines(ROWS))
    with pytest.raises(BadData, match="PAPER_START"):
        Replay(tmp_path / "data", start_ms, 0, 0)


def broken(lines: list[str], row: int, column: str, value: str) -> list[str]:
    """The file with one value replaced; row 1 is the first bar, at line 2."""
    cells = lines[row].split(",")
    cells[COLUMNS.index(column)] = value
    return [*lines[:row], ",".join(cells), *lines[row + 1 :]]


GOOD = csv_lines(ROWS)
BAD_CSV = {
    "a gap": ([GOOD[0], GOOD[1], GOOD[3]], "AAAUSDT.csv: line 3: a gap"),
    "a row twice": ([GOOD[0], GOOD[1], GOOD[1]], "AAAUSDT.csv: line 3: a gap"),
    "the newest first": ([GOOD[0], GOOD[2], GOOD[1]], "AAAUSDT.csv: line 3: a gap"),
    "a missing column": ([",".join(COLUMNS[:-1]), *GOOD[1:]], "AAAUSDT.csv: no column volume"),
    "a wrong number": (broken(GOOD, 2, "high", "abc"), "AAAUSDT.csv: line 3: not a number"),
    "an empty cell": (broken(GOOD, 2, "close", ""), "AAAUSDT.csv: line 3: not a number"),
    "not a number at all": (broken(GOOD, 2, "low", "NaN"), "AAAUSDT.csv: line 3"),
    "infinity": (broken(GOOD, 2, "high", "inf"), "AAAUSDT.csv: line 3"),
    "a short row": ([GOOD[0], GOOD[1], GOOD[2].rsplit(",", 2)[0]], "AAAUSDT.csv: line 3"),
    "a time that is no whole minute": (csv_lines(ROWS, start_ms=START + 1), "AAAUSDT"),
    "high below low": (broken(GOOD, 2, "high", "8.0"), "AAAUSDT: bar 1: high and low"),
    "close above high": (broken(GOOD, 3, "close", "10.8"), "AAAUSDT: bar 2: high and low"),
    "a price of zero": (broken(GOOD, 1, "low", "0"), "AAAUSDT: bar 0: high and low"),
    "no rows": ([GOOD[0]], "AAAUSDT.csv: no rows"),
    "nothing": ([""], "AAAUSDT.csv: no column open_time_ms"),
}


@pytest.mark.parametrize("case", BAD_CSV.values(), ids=BAD_CSV.keys())
def test_a_bad_csv_file_is_refused_with_its_name_and_the_place(
    tmp_path: Path, case: tuple[list[str], str]
) -> None:
    lines, text = case
    write_csv(tmp_path / "data", "AAAUSDT", lines)
    with pytest.raises(BadData) as error:
        Replay(tmp_path / "data", 0, 0, 0)
    assert text in str(error.value)
    assert str(tmp_path) in str(error.value)


BAD_NPZ: dict[str, tuple[dict[str, Any], str]] = {
    "no list of symbols": ({"symbols": None}, "symbols"),
    "no prices": ({"AAAUSDT_ohlc": None}, "AAAUSDT_ohlc"),
    "no volume": ({"AAAUSDT_vol": None}, "AAAUSDT_vol"),
    "another interval": ({"AAAUSDT_meta": np.array([START, 300_000, 3, 1])}, "step 300000"),
    "fewer rows than said": ({"AAAUSDT_meta": np.array([START, 60_000, 4, 1])}, "(3, 4)"),
    "fewer volumes than rows": ({"AAAUSDT_vol": np.zeros(2, np.float32)}, "AAAUSDT"),
    "too short a meta": ({"AAAUSDT_meta": np.array([START, 60_000])}, "AAAUSDT"),
    "high below low": ({"AAAUSDT_ohlc": np.array([[100, 90, 95, 100]] * 3)}, "AAAUSDT: bar 0"),
    "a negative price": ({"AAAUSDT_ohlc": np.array([[5, 6, -1, 5]] * 3)}, "AAAUSDT: bar 0"),
    "no symbols": ({"symbols": np.array([], "U1")}, "no klines"),
}


@pytest.mark.parametrize("case", BAD_NPZ.values(), ids=BAD_NPZ.keys())
def test_a_bad_npz_file_is_refused_with_its_name_and_the_place(
    tmp_path: Path, case: tuple[dict[str, Any], str]
) -> None:
    change, text = case
    path = write_npz(tmp_path / "klines.npz", {"AAAUSDT": ROWS}, change)
    with pytest.raises(BadData) as error:
        Replay(path, 0, 0, 0)
    assert text in str(error.value)
    assert str(path) in str(error.value)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadData, match=f"{tmp_path}: no klines in it"):
        Replay(tmp_path, 0, 0, 0)


@pytest.mark.parametrize("name", ["klines.txt", "klines.npz", "data/AAAUSDT.csv.gz"])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("these are no klines")
    with pytest.raises(BadData) as error:
        Replay(path if path.parent == tmp_path else path.parent, 0, 0, 0)
    assert str(path) in str(error.value)


# The synthetic market.


def synthetic(symbols: int = 20, seed: int = 7) -> Synthetic:
    return Synthetic(symbols, seed, START, hour=14.0)


def run_of(feed: Synthetic, count: int) -> list[Minute]:
    return [feed.next() for _ in range(count)]


def bytes_of(minutes: list[Minute]) -> list[tuple[int, bytes, bytes]]:
    return [(m.start_ms, m.path.tobytes(), m.volume.tobytes()) for m in minutes]


def test_the_same_seed_gives_the_same_bytes_and_another_does_not() -> None:
    first = bytes_of(run_of(synthetic(), 60))
    assert first == bytes_of(run_of(synthetic(), 60))
    assert first != bytes_of(run_of(synthetic(seed=8), 60))


def test_synthetic_prices_are_whole_ticks_without_a_gap() -> None:
    minutes = run_of(synthetic(100), 120)
    for before, after in pairwise(minutes):
        assert after.start_ms - before.start_ms == MINUTE_MS
        assert (after.path[0] == before.path[-1]).all()  # it opens where the last one closed
    paths = np.array([minute.path for minute in minutes])
    assert paths.dtype == np.int64
    assert paths.min() >= 1
    assert (np.array([minute.volume for minute in minutes]) > 0).all()
    assert np.isfinite([minute.volume for minute in minutes]).all()


def test_every_synthetic_symbol_moves_and_stays_near_its_price() -> None:
    """A sigma of 14 bp a minute is 1.5 % in two hours: half the price away is a defect."""
    feed = synthetic(100)
    paths = np.array([minute.path for minute in run_of(feed, 120)])
    first, last = paths[0, 0], paths[-1, -1]
    assert (np.abs(np.log(last / first)) < np.log(2)).all()
    assert (paths.max(axis=(0, 1)) > paths.min(axis=(0, 1))).all()
    assert len({listing.symbol for listing in feed.listings}) == 100


def test_synthetic_returns_are_as_wild_and_as_correlated_as_measured() -> None:
    """432 perpetuals: sigma of a minute 14.1 bp, correlation with BTC 0.63 (data/SOURCES.md B).

    One day is one draw of a volatility that lives for days (8.9 to 22 bp), so: the median of 7.
    """
    sigmas, correlations = [], []
    for seed in range(1, 8):
        feed = Synthetic(100, seed, START, hour=0.0)
        closes = np.array([minute.path[-1] for minute in run_of(feed, 1440)], np.float64)
        returns = np.diff(np.log(closes), axis=0)
        sigmas.append(np.median(returns.std(axis=0)) * 1e4)
        btc = [listing.symbol for listing in feed.listings].index("BTCUSDT")
        correlations.append(np.median(np.delete(np.corrcoef(returns.T)[btc], btc)))
    assert 14 * 0.7 < np.median(sigmas) < 14 * 1.3, sigmas
    assert 0.4 < np.median(correlations) < 0.75, correlations


# Minutes as points, pushes and bars.


class Tape:
    """A feed of minutes that the test has made."""

    def __init__(self, minutes: int, symbols: int = 3, tick: str = "0.05") -> None:
        rng = np.random.default_rng(5)
        grid = (Decimal(tick), Decimal(1), Decimal(1), Decimal(1000), 480)
        self.listings = [Listing(f"S{n}USDT", *grid) for n in range(symbols)]
        paths = rng.integers(900, 1100, (minutes, POINTS, symbols))
        volumes = rng.uniform(1, 100, (minutes, symbols))
        self.minutes = [Minute(START + n * MINUTE_MS, paths[n], volumes[n]) for n in range(minutes)]
        self._left = list(self.minutes)

    def skip_to(self, at_ms: int) -> None:
        pass

    def next(self) -> Minute | None:
        return self._left.pop(0) if self._left else None


def ticker_of(tape: Tape, until_ms: int = START) -> Ticker:
    ticker = Ticker(tape)
    ticker.warm_up(until_ms)
    return ticker


def play(ticker: Ticker, until_ms: int) -> tuple[list[Point], list[tuple[str, dict[str, Any]]]]:
    """The points, and each kline push as (symbol, row), as the paper exchange makes them."""
    points, pushes = [], []
    for point in ticker.run(until_ms):
        if point:
            points.append(point)
        for which in range(len(ticker.listings)) if point is None else (point.which,):
            forming = ticker.forming[which]
            assert forming
            pushes.append((ticker.listings[which].symbol, ticker.kline(which, forming)))
    return points, pushes


END = START + 3 * MINUTE_MS


def test_points_come_in_time_order_each_symbol_once_a_second() -> None:
    tape = Tape(3)
    points, _ = play(ticker_of(tape), END)
    times = [point.ts_ms for point in points]
    assert times == sorted(times)
    assert len(points) == 3 * POINTS * 3
    assert Counter((p.which, p.ts_ms // POINT_MS) for p in points).most_common(1)[0][1] == 1
    first = [p for p in points if p.which == 1][:POINTS]
    assert [p.ts_ms for p in first] == [START + 1000 * n + 333 for n in range(POINTS)]  # 1000 / 3
    assert [p.ticks for p in first] == tape.minutes[0].path[:, 1].tolist()
    assert sum(p.volume for p in first) == pytest.approx(tape.minutes[0].volume[1])


def test_time_in_small_steps_gives_the_same_points_as_in_one() -> None:
    whole = play(ticker_of(Tape(3)), END)
    ticker, steps = ticker_of(Tape(3)), ([], [])
    for until_ms in range(START, END + 777, 777):
        points, pushes = play(ticker, until_ms)
        assert all(point.ts_ms <= until_ms for point in points)
        steps[0].extend(points)
        steps[1].extend(pushes)
    assert steps == whole


def test_a_bar_is_confirmed_once_for_each_symbol_and_minute_and_last() -> None:
    _, pushes = play(ticker_of(Tape(3)), END)
    confirmed = Counter((symbol, row["start"]) for symbol, row in pushes if row["confirm"])
    starts = [START + n * MINUTE_MS for n in range(3)]
    assert confirmed == Counter((f"S{n}USDT", start) for n in range(3) for start in starts)
    last = {(symbol, row["start"]): row["confirm"] for symbol, row in pushes}
    assert all(last.values())


def test_a_kline_of_points_is_the_bar_of_its_minute() -> None:
    tape = Tape(3)
    _, pushes = play(ticker_of(tape), END)
    for number, minute in enumerate(tape.minutes):
        for which in range(3):
            start_ms = START + number * MINUTE_MS
            row = next(
                row
                for symbol, row in pushes
                if row["confirm"] and (symbol, row["start"]) == (f"S{which}USDT", start_ms)
            )
            path = [Decimal(int(ticks)) * Decimal("0.05") for ticks in minute.path[:, which]]
            bar = [Decimal(row[name]) for name in ("open", "high", "low", "close")]
            assert bar == [path[0], max(path), min(path), path[-1]]
            assert float(row["volume"]) == pytest.approx(minute.volume[which], rel=1e-6)
            paid = float(sum(path)) * minute.volume[which] / POINTS
            assert float(row["turnover"]) == pytest.approx(paid, rel=1e-6)
            assert (row["end"], row["timestamp"]) == (start_ms + 59_999, start_ms + 59_999)
            assert (row["interval"], row["confirm"]) == ("1", True)


def rest_and_pushed(names: tuple[str, ...]) -> tuple[list[list[str]], list[list[str]]]:
    """The same columns of the rows of GET kline and of the confirmed pushes, newest first."""
    ticker = ticker_of(Tape(3))
    _, pushes = play(ticker, END)
    rows = [row for symbol, row in pushes if symbol == "S1USDT" and row["confirm"]]
    order = ("start", "open", "high", "low", "close", "volume", "turnover")
    bars = ticker.bars(1, 0, 2**62, 200)
    wanted = [order.index(name) for name in names]
    return [[bar[n] for n in wanted] for bar in bars], [
        [str(row[name]) for name in names] for row in reversed(rows)
    ]


def test_bars_by_rest_are_the_pushed_ones() -> None:
    rest, pushed = rest_and_pushed(("start", "open", "high", "low", "close", "volume"))
    assert rest == pushed
    assert len(rest) == 3


def test_the_turnover_by_rest_is_the_pushed_one() -> None:
    rest, pushed = rest_and_pushed(("turnover",))
    assert rest == pushed


def test_rest_shows_the_open_bar_first_and_a_closed_one_once() -> None:
    ticker = ticker_of(Tape(3))
    _, pushes = play(ticker, START + MINUTE_MS + 30_000)
    bars = ticker.bars(0, 0, 2**62, 200)
    assert [int(bar[0]) for bar in bars] == [START + MINUTE_MS, START]
    newest = [row for symbol, row in pushes if symbol == "S0USDT"][-1]
    names = ("start", "open", "high", "low", "close", "volume", "turnover")
    assert bars[0] == [str(newest[name]) for name in names]
    play(ticker, START + 2 * MINUTE_MS - 1)  # it closes, nothing is traded yet in the next
    assert [int(b[0]) for b in ticker.bars(0, 0, 2**62, 200)] == [START + MINUTE_MS, START]


def test_a_bar_that_has_just_closed_is_shown_once() -> None:
    ticker = ticker_of(Tape(3))
    shown = [ticker.bars(0, 0, 2**62, 9) for point in ticker.run(END) if point is None]
    assert [len(bars) for bars in shown] == [1, 2, 3]
    assert [bars[-1] for bars in shown] == [shown[0][0]] * 3  # and it never changes


def test_rest_takes_a_span_and_a_limit() -> None:
    ticker = ticker_of(Tape(5))
    play(ticker, START + 5 * MINUTE_MS)
    starts = [START + n * MINUTE_MS for n in range(5)]
    assert [int(b[0]) for b in ticker.bars(0, starts[1], starts[3], 200)] == starts[3:0:-1]
    assert [int(b[0]) for b in ticker.bars(0, 0, 2**62, 2)] == starts[:2:-1]


def test_minutes_before_the_start_are_history_and_are_not_traded() -> None:
    ticker = ticker_of(Tape(3), START + 2 * MINUTE_MS)
    assert [int(b[0]) for b in ticker.bars(0, 0, 2**62, 9)] == [START + MINUTE_MS, START]
    points, _ = play(ticker, END)
    assert {point.ts_ms // MINUTE_MS for point in points} == {(START + 2 * MINUTE_MS) // MINUTE_MS}
    assert ticker.ended


def test_prices_are_written_on_the_grid() -> None:
    ticker = ticker_of(Tape(1, tick="0.0000001"))
    assert ticker.price(0, 12_345_678) == "1.2345678"
    assert ticker.price(0, 3) == "0.0000003"
