"""market: where the paper exchange's prices come from, minute by minute.

A feed yields one `Minute` after the other: 60 prices of each symbol, in ticks. Two feeds:
`Synthetic` (a fitted one-factor model with heavy tails, one step a minute, a bridge inside it) and
`Replay` (recorded 1-minute klines, each run through along straight lines).
"""

import csv
import gzip
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

MINUTE_MS = 60_000
POINTS = 60  # prices in a minute
CORNERS = (
    0,
    20,
    40,
    59,
)  # where inside the minute a replayed bar is at open, extreme, extreme, close
COLUMNS = ("open_time_ms", "open", "high", "low", "close", "volume")
TABLE = Path(__file__).with_name("symbols.csv")

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class BadData(ValueError):
    """A file of klines that cannot be replayed: says which file, where and why."""


class Listing(NamedTuple):
    """One tradable symbol and its grid."""

    symbol: str
    tick_size: Decimal
    qty_step: Decimal
    min_order_qty: Decimal
    max_order_qty: Decimal
    funding_interval_min: int
    spread_ticks: int = 1
    trades_a_second: float = 1.0
    status: str = "Trading"


class Minute(NamedTuple):
    """`path` is int64 (60, symbols) in ticks; `volume` float64 (symbols) in base coin."""

    start_ms: int
    path: Ints
    volume: Floats


class Feed(Protocol):
    """A source of minutes."""

    listings: list[Listing]

    def skip_to(self, at_ms: int) -> None:
        """Let the minutes before `at_ms` pass without looking inside them."""

    def next(self) -> Minute | None:
        """The next minute, or None at the end."""


def bar_path(bars: Ints) -> Ints:
    """Prices inside replayed bars, int64 (60, n) from int64 (n, 4) open high low close in ticks.

    Open, low, high, close if close >= open, else open, high, low, close: in straight lines from
    corner to corner, rounded to the tick (half to even).
    """
    opens, highs, lows, closes = bars.T
    rising = closes >= opens
    corners = (opens, np.where(rising, lows, highs), np.where(rising, highs, lows), closes)
    path = np.empty((POINTS, len(bars)), np.int64)
    for leg in range(3):
        first, last = CORNERS[leg], CORNERS[leg + 1]
        steps = np.arange(last - first + 1)[:, None]  # whole numbers until the one division
        line = corners[leg] * (last - first) + (corners[leg + 1] - corners[leg]) * steps
        path[first : last + 1] = np.rint(line / (last - first))
    return path


def listings_table() -> list[dict[str, str]]:
    """The 500 symbols of the synthetic market: grid and fitted parameters."""
    with TABLE.open() as file:
        return list(csv.DictReader(file))


def _listing(row: dict[str, str], tick: Decimal | None = None) -> Listing:
    coarse = float(row["tick_bp"]) > 1  # a tick wider than 1 bp is the whole spread
    wider = round(2 / (float(row["qv_day_bybit"]) / 1e7) ** 0.5)
    return Listing(
        *(row["symbol"], tick or Decimal(row["tick"]), Decimal(row["qty_step"])),
        *(Decimal(row["min_qty"]), Decimal(row["max_qty"]), int(row["funding_min"])),
        *(1 if coarse else 1 + wider, float(row["trades_day"]) / 86_400),
    )


# The synthetic market. Constants were fitted to a week of 432 perpetuals; half-lives in minutes.

HOUR = np.array(
    (
        *(1.25, 1.186, 1.024, 0.922, 0.884, 0.80, 0.853, 0.962, 1.037, 0.946, 0.896, 0.882),
        *(0.981, 1.185, 1.234, 1.105, 1.119, 1.028, 1.031, 0.928, 0.895, 0.899, 0.927, 0.954),
    )
)
QUARTER = np.array(
    [
        1.105,
        1.11,
        1.095,
        1.065,
        1.035,
        1.085,
        1.065,
        1.0,
        1.0,
        0.95,
        1.0,
        0.965,
        0.935,
        0.895,
        0.805,
    ]
)
FACTOR_AR = (
    (2.0, 0.30),
    (60.0, 0.38),
    (1440.0, 0.36),
)  # (half-life, stationary sd) of log volatility
OWN_AR = ((1.5, 0.40), (45.0, 0.34), (1440.0, 0.34))
VOLUME_AR = ((6.0, 0.42), (600.0, 0.55))
FACTOR_NU, OWN_NU = 5.5, 4.4  # degrees of freedom of the Student t shocks
MOMENTUM = 0.07
SHOCKS_PER_DAY, SHOCK_MU, SHOCK_SD, SHOCK_LIFT = 0.4, np.log(7.0), 0.3, 0.6
JUMPS_PER_DAY, JUMP_MU, JUMP_SD, JUMP_KICK, KICK_HALF_LIFE = 0.18, np.log(13.0), 0.42, 0.9, 20.0
WICK = 0.30  # of a minute's sigma: excursions beyond open and close


def _decay(half_life: float) -> float:
    return float(0.5 ** (1.0 / half_life))


def _copy(row: dict[str, str], number: int) -> dict[str, str]:
    """A symbol of its own with the same grid and habits: the table has only 500."""
    return row | {"symbol": f"{row['symbol'].removesuffix('USDT')}{number}USDT"}


class Synthetic:
    """One correlated, heavy-tailed market: the same seed, start and symbols, the same prices."""

    def __init__(self, count: int, seed: int, start_ms: int, hour: float) -> None:
        table = sorted(listings_table(), key=lambda row: -float(row["qv_day_bybit"]))
        copies = (
            _copy(row, number) for number in range(2, 2 + count // len(table)) for row in table
        )
        rows = [*table, *copies][:count]
        rows.sort(key=lambda row: row["symbol"])
        self.listings = [_listing(row) for row in rows]

        def column(name: str) -> Floats:
            return np.array([float(row[name]) for row in rows])

        self._price0, self._tick = column("price0"), column("tick")
        self._load, self._idio = column("load_bp") * 1e-4, column("idio_bp") * 1e-4
        self._beta, self._ma = column("volbeta"), column("ma1")
        self._turnover, self._jumps = column("qv_day_bybit"), column("jump_mult")
        self._seed, self._start_ms, self._minute = seed, start_ms, 0
        self._clock_min = int(hour * 60)
        self._rng = rng = np.random.Generator(np.random.PCG64(seed))
        n = len(rows)
        self._factor = np.array([rng.standard_normal() * sd for _, sd in FACTOR_AR])
        self._own = np.array([rng.standard_normal(n) * sd for _, sd in OWN_AR])
        self._flow = np.array([rng.standard_normal(n) * sd for _, sd in VOLUME_AR])
        self._kick, self._z_before, self._f_before = np.zeros(n), np.zeros(n), 0.0
        self._log_price = np.log(self._price0)
        self._last = np.maximum(np.rint(self._price0 / self._tick), 1)

    def skip_to(self, at_ms: int) -> None:
        """Steps of the model without bridges: a day in a second."""
        while self._start_ms + self._minute * MINUTE_MS < at_ms:
            self._step()
            self._minute += 1

    def next(self) -> Minute:
        """One step of the model, and a bridge through it."""
        start_ms = self._start_ms + self._minute * MINUTE_MS
        opens, (closes, highs, lows, turnover, spread) = self._last, self._step()
        path = self._bridge(opens, closes, highs, lows, spread)
        self._minute += 1
        return Minute(start_ms, path, turnover / (closes * self._tick))

    def _step(self) -> tuple[Floats, Floats, Floats, Floats, Floats]:
        """Close, high, low in ticks, turnover in USDT and one sigma in ticks, each (symbols)."""
        rng, n = self._rng, len(self._last)
        of_day = (self._clock_min + self._minute) % 1440
        season = np.log(HOUR[of_day // 60] * QUARTER[of_day % 15])
        for index, (half_life, sd) in enumerate(FACTOR_AR):
            a = _decay(half_life)
            noise = np.sqrt(1 - a * a) * sd * rng.standard_normal()
            self._factor[index] = a * self._factor[index] + noise
        self._walk(self._own, OWN_AR)
        self._kick *= _decay(KICK_HALF_LIFE)
        heat = season + self._factor.sum()
        variance = sum(sd**2 for _, sd in FACTOR_AR)
        factor = np.exp(heat - variance) * self._student(FACTOR_NU, 1)[0]
        if rng.random() < SHOCKS_PER_DAY / 1440:
            factor += (1 if rng.random() < 0.4 else -1) * rng.lognormal(SHOCK_MU, SHOCK_SD)
            self._factor[0] += SHOCK_LIFT
        factor, self._f_before = factor + MOMENTUM * self._f_before, factor
        own_variance = sum(sd**2 for _, sd in OWN_AR) + 0.5 * self._beta**2 * variance
        own_heat = self._beta * heat + self._own.sum(axis=0) + self._kick - own_variance
        z = np.exp(own_heat) * self._student(OWN_NU, n)
        jumped = rng.random(n) < JUMPS_PER_DAY * self._jumps / 1440
        if count := int(jumped.sum()):
            way = np.where(rng.random(count) < 0.55, 1, -1)
            z[jumped] += way * rng.lognormal(JUMP_MU, JUMP_SD, count)
            self._kick[jumped] += JUMP_KICK
        bounced, self._z_before = z + self._ma * self._z_before, z
        own = 1.04 * self._idio * bounced / np.sqrt(1 + self._ma**2)
        move = np.clip(1.01 * self._load * factor + own, -0.35, 0.35)
        self._log_price += move
        return self._bars(move, heat)

    def _bars(self, move: Floats, heat: float) -> tuple[Floats, Floats, Floats, Floats, Floats]:
        rng, n = self._rng, len(self._last)
        total = np.sqrt(self._load**2 + self._idio**2)
        self._walk(self._flow, VOLUME_AR)
        noise_sd = np.clip(0.86 - 0.55 * np.log10(self._turnover / 3e6), 0.25, 2.0)
        noise = noise_sd * rng.standard_normal(n) - 0.5 * noise_sd**2 - 0.25
        activity = 0.84 * np.log(np.abs(move) / total + 0.35) + 0.5 * 0.95 * heat
        turnover = np.exp(np.log(self._turnover / 1440) + activity + self._flow.sum(axis=0) + noise)
        opens = self._last
        closes = np.maximum(np.rint(np.exp(self._log_price) / self._tick), 1)
        sigma = total * np.exp(0.5 * heat) * closes
        wicks = np.abs(rng.standard_normal((2, n))) * WICK * sigma
        highs = np.rint(np.maximum(opens, closes) + wicks[0])
        lows = np.maximum(np.rint(np.minimum(opens, closes) - wicks[1]), 1)
        self._last = closes
        return closes, highs, lows, turnover, sigma

    def _bridge(
        self, opens: Floats, closes: Floats, highs: Floats, lows: Floats, sigma: Floats
    ) -> Ints:
        """A Brownian bridge from open to close, inside [low, high] and touching both."""
        rng = np.random.Generator(np.random.PCG64([self._seed, self._minute]))
        steps = rng.standard_normal((POINTS - 1, len(opens))) * (0.6 * sigma / np.sqrt(POINTS))
        walk = np.vstack((np.zeros(len(opens)), np.cumsum(steps, axis=0)))
        share = np.linspace(0, 1, POINTS)[:, None]
        path = opens + (closes - opens) * share + walk - share * walk[-1]
        columns = np.arange(len(opens))
        path[path[1:-1].argmax(axis=0) + 1, columns] = highs
        path[path[1:-1].argmin(axis=0) + 1, columns] = lows
        path[0], path[-1] = opens, closes
        clipped: Ints = np.rint(np.clip(path, lows, highs)).astype(np.int64)
        return clipped

    def _walk(self, states: Floats, table: tuple[tuple[float, float], ...]) -> None:
        for index, (half_life, sd) in enumerate(table):
            a = _decay(half_life)
            noise = np.sqrt(1 - a * a) * sd * self._rng.standard_normal(states.shape[1])
            states[index] = a * states[index] + noise

    def _student(self, nu: float, size: int) -> Floats:
        draws: Floats = self._rng.standard_t(nu, size) * np.sqrt((nu - 2) / nu)
        return draws


# Recorded klines.


class Series(NamedTuple):
    """One symbol's bars: `bars` int64 (n, 4) in ticks of 10**-decimals, `volume` float64 (n)."""

    start_ms: int
    decimals: int
    bars: Ints
    volume: Floats


class Replay:
    """Recorded 1-minute klines of any number of symbols, from `start_ms` for `minutes`."""

    def __init__(self, path: Path, start_ms: int, minutes: int, history: int) -> None:
        self._series = read_klines(path)
        known = {row["symbol"]: row for row in listings_table()}
        self.listings = [
            _listing(
                known.get(symbol, {"symbol": symbol, **UNLISTED}),
                Decimal(1).scaleb(-series.decimals),
            )
            for symbol, series in self._series.items()
        ]
        first = max(series.start_ms for series in self._series.values())
        last = min(s.start_ms + len(s.bars) * MINUTE_MS for s in self._series.values())
        self.start_ms = start_ms or first + history * MINUTE_MS
        self.end_ms = min(last, self.start_ms + minutes * MINUTE_MS) if minutes else last
        if not first <= self.start_ms < last or self.start_ms % MINUTE_MS:
            raise BadData(
                f"PAPER_START: {_iso(self.start_ms)} is not a minute from {_iso(first)}"
                f" to {_iso(last)}, which all symbols have"
            )
        self._next_ms = max(first, self.start_ms - history * MINUTE_MS)

    def skip_to(self, at_ms: int) -> None:
        """Later minutes only."""
        self._next_ms = max(self._next_ms, at_ms)

    def next(self) -> Minute | None:
        """The next recorded minute of all symbols."""
        at = self._next_ms
        if at >= self.end_ms:
            return None
        rows = [(at - series.start_ms) // MINUTE_MS for series in self._series.values()]
        pairs = list(zip(self._series.values(), rows, strict=True))
        self._next_ms += MINUTE_MS
        bars = np.array([series.bars[row] for series, row in pairs])
        return Minute(at, bar_path(bars), np.array([series.volume[row] for series, row in pairs]))


def _iso(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat()


UNLISTED = {
    "qty_step": "1",
    "min_qty": "1",
    "max_qty": "1000000",
    "funding_min": "480",
    "tick_bp": "2",
    "qv_day_bybit": "1e7",
    "trades_day": "86400",
}
"""The lot of a recorded symbol that is not in the table of the synthetic market."""


def read_klines(path: Path) -> dict[str, Series]:
    """An `.npz` (per symbol X_meta, X_ohlc, X_vol) or a folder of `<SYMBOL>.csv[.gz]` files.

    Raises BadData: what, in which file, at which line or bar.
    """
    if path.is_dir():
        files = sorted((*path.glob("*.csv"), *path.glob("*.csv.gz")))
        series = {file.name.split(".")[0]: _read_csv(file) for file in files}
    elif path.suffix == ".npz":
        series = _read_npz(path)
    else:
        raise BadData(f"{path}: expected an .npz file or a folder of <SYMBOL>.csv files")
    if not series:
        raise BadData(f"{path}: no klines in it")
    for symbol, one in series.items():
        if one.start_ms % MINUTE_MS:
            raise BadData(f"{path}: {symbol}: {one.start_ms} ms is not the start of a minute")
        opens, highs, lows, closes = one.bars.T
        wrong = (
            (lows <= 0) | (lows > np.minimum(opens, closes)) | (highs < np.maximum(opens, closes))
        )
        if wrong.any():
            raise BadData(f"{path}: {symbol}: bar {int(wrong.argmax())}: high and low do not hold")
    return series


def _read_npz(path: Path) -> dict[str, Series]:
    try:
        loaded = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise BadData(f"{path}: not an .npz file: {error}") from error
    with loaded as file:
        try:
            found = {}
            for symbol in file["symbols"]:
                meta = [int(x) for x in file[f"{symbol}_meta"]]
                bars = file[f"{symbol}_ohlc"].astype(np.int64)
                volume = file[f"{symbol}_vol"].astype(np.float64)
                if len(meta) != 4:
                    raise BadData(f"{path}: {symbol}: meta is start ms, step ms, rows, decimals")
                start_ms, step_ms, count, decimals = meta
                if step_ms != MINUTE_MS or bars.shape != (count, 4) or volume.shape != (count,):
                    shapes = f"shapes {bars.shape} and {volume.shape}"
                    raise BadData(f"{path}: {symbol}: step {step_ms} ms, {count} rows, {shapes}")
                found[str(symbol)] = Series(start_ms, decimals, bars, volume)
        except KeyError as error:
            raise BadData(f"{path}: {error.args[0]}") from error
    return found


def _read_csv(path: Path) -> Series:
    opener: Any = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as file:
        try:
            text = file.read().decode()
        except (OSError, EOFError, UnicodeDecodeError) as error:
            raise BadData(f"{path}: cannot be read: {error}") from error
        reader = csv.DictReader(text.splitlines())
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise BadData(f"{path}: no column {missing[0]}, expected {', '.join(COLUMNS)}")
        rows: list[list[Decimal]] = []
        for row in reader:
            try:
                values = [Decimal(row[name]) for name in COLUMNS]
            except (ArithmeticError, TypeError) as error:
                raise BadData(f"{path}: line {reader.line_num}: not a number") from error
            if not all(value.is_finite() for value in values):
                raise BadData(f"{path}: line {reader.line_num}: not a number")
            rows.append(values)
            if len(rows) > 1 and rows[-1][0] - rows[-2][0] != MINUTE_MS:
                raise BadData(
                    f"{path}: line {reader.line_num}: a gap, not one minute after the last"
                )
    if not rows:
        raise BadData(f"{path}: no rows")
    decimals = max(-int(v.normalize().as_tuple().exponent) for row in rows for v in row[1:5])
    decimals = max(decimals, 0)
    bars = np.array([[int(v.scaleb(decimals)) for v in row[1:5]] for row in rows], np.int64)
    return Series(int(rows[0][0]), decimals, bars, np.array([float(row[5]) for row in rows]))
