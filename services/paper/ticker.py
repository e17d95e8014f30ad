"""ticker: a feed's minutes as trades, kline pushes and stored bars, at their market time. Pure."""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.paper.market import MINUTE_MS, POINTS, Feed, Listing, Minute

KEEP = 1_000  # closed minutes for GET kline
POINT_MS = MINUTE_MS // POINTS
BURST = 40.0  # variance over mean of the trades in a second
MAX_BURST = 50  # trades of one point


class Point(NamedTuple):
    """One symbol trades: its place, price in ticks, quantity in base coin, price before."""

    which: int
    ticks: int
    volume: float
    ts_ms: int
    before: int
    number: int


class Forming(NamedTuple):
    """The kline of one symbol as it stands; prices in ticks."""

    start_ms: int
    open: int
    high: int
    low: int
    close: int
    volume: float
    turnover: float
    confirm: bool
    ts_ms: int


class Day(NamedTuple):
    """Of the stored bars, a day at most: prices in ticks, traded coins and USDT."""

    open: int
    high: int
    low: int
    hour_ago: int
    volume: float
    turnover: float


Closed = tuple[int, NDArray[np.int64], NDArray[np.float64]]
"""start_ms, int64 (4, symbols) ohlc in ticks, float64 (2, symbols) volume and turnover."""


class Prices:
    """What a source of prices shows: listings, the forming klines, the last prices in ticks.

    Symbols in `held` stand still: only `inject` moves them. `just_closed` are those whose bar has
    ended where `run` yields None.
    """

    def __init__(self, listings: list[Listing], rate: int) -> None:
        self.listings, self._rate = listings, rate
        self._ticks = [float(listing.tick_size) for listing in listings]
        self._steps = [float(listing.qty_step) for listing in listings]
        self._decimals = [max(0, -_exponent(listing)) for listing in listings]
        self.forming: list[Forming | None] = [None] * len(listings)
        self.last: list[int] = [0] * len(listings)
        self.held: set[int] = set()
        self.just_closed: Sequence[int] = ()
        self.minute_ms = 0
        self._number = 0  # of points
        self.ended = False

    def run(self, until_ms: int) -> Iterator[Point | None]:
        """Points up to `until_ms`, in order; None where a minute has just closed."""
        raise NotImplementedError

    def inject(self, index: int, ticks: int, volume: float, ts_ms: int) -> Point:
        """A trade that is not the feed's."""
        return self._form(index, ticks, volume, ts_ms)

    def tape(self, point: Point) -> list[tuple[int, int]]:
        """The single trades of a point, (ticks, lots): they run to its price.

        Their number comes in bursts (Gamma), the same for the same point; together they are its
        volume in whole lots, one at least.
        """
        which, ticks, volume, ts_ms, before, number = point
        mean = self.listings[which].trades_a_second / self._rate
        rng = np.random.Generator(np.random.PCG64([ts_ms, which, number]))
        lots = max(1, round(volume / self._steps[which]))
        count = min(MAX_BURST, lots, 1 + int(rng.gamma(mean / BURST, BURST)))
        share, rest = divmod(lots, count)
        return [
            (before + round((ticks - before) * i / count), share + (i <= rest))
            for i in range(1, count + 1)
        ]

    def price(self, index: int, ticks: float) -> str:
        """A price as the exchange writes it."""
        return f"{ticks * self._ticks[index]:.{self._decimals[index]}f}"

    def kline(self, index: int, forming: Forming) -> dict[str, Any]:
        """`data[0]` of a kline push."""
        start_ms, *prices, volume, turnover, confirm, ts_ms = forming
        names = ("open", "high", "low", "close")
        return {
            "start": start_ms,
            "end": start_ms + MINUTE_MS - 1,
            "interval": "1",
            **{name: self.price(index, p) for name, p in zip(names, prices, strict=True)},
            "volume": f"{volume:.8g}",
            "turnover": f"{turnover:.8g}",
            "confirm": confirm,
            "timestamp": ts_ms,
        }

    def bars(self, index: int, start_ms: int, end_ms: int, limit: int) -> list[list[str]]:
        """Rows of GET kline, newest first, the open one included."""
        raise NotImplementedError

    def day(self, index: int) -> Day:
        """What the stored bars of one symbol come to."""
        raise NotImplementedError

    def _form(self, index: int, ticks: int, volume: float, ts_ms: int) -> Point:
        old = self.forming[index]
        start_ms = self.minute_ms
        turnover = volume * ticks * self._ticks[index]
        if old is None:
            new = Forming(start_ms, ticks, ticks, ticks, ticks, volume, turnover, False, ts_ms)
        else:
            new = Forming(
                *(old.start_ms, old.open, max(old.high, ticks), min(old.low, ticks), ticks),
                *(old.volume + volume, old.turnover + turnover, False, ts_ms),
            )
        self._number += 1
        point = Point(index, ticks, volume, ts_ms, self.last[index], self._number)
        self.forming[index], self.last[index] = new, ticks
        return point


class Ticker(Prices):
    """Runs through minutes: symbol i trades at second k + i/n, and all bars close at once.

    `rate` points a second and symbol lie on straight lines between the feed's.
    """

    def __init__(self, feed: Feed, rate: int = 1) -> None:
        super().__init__(feed.listings, rate)
        self._feed = feed
        self.closed: deque[Closed] = deque(maxlen=KEEP)
        self._minute: Minute | None = None
        self._path: list[list[int]] = []
        self._volume: list[float] = []
        self._cursor = 0
        self._odd: set[int] = set()  # symbols whose minute is not the feed's
        self._days: list[Day] = []
        self._days_at = 0
        self.just_closed = range(len(self.listings))

    def warm_up(self, until_ms: int) -> None:
        """Take every whole minute before `until_ms` as closed, without trading it."""
        self._feed.skip_to(until_ms - KEEP * MINUTE_MS)
        while minute := self._feed.next():
            if minute.start_ms >= until_ms:
                self._begin(minute)
                self.last = self.closed[-1][1][3].tolist() if self.closed else self._path[0]
                return
            self._close(minute)
        self.ended = True

    def run(self, until_ms: int) -> Iterator[Point | None]:
        """Points up to `until_ms`, in order; None where a minute has just closed."""
        n, rate = len(self.listings), self._rate
        step_ms = POINT_MS / rate
        while self._minute is not None:
            start_ms = self._minute.start_ms
            while self._cursor < POINTS * rate * n:
                step, index = divmod(self._cursor, n)
                ts_ms = start_ms + int(step * step_ms + index * step_ms / n)
                if ts_ms > until_ms:
                    return
                self._cursor += 1
                if index in self.held:
                    self._odd.add(index)
                    continue
                second, part = divmod(step, rate)
                ticks = self._path[second][index]
                if part + 1 < rate:
                    old = self._path[max(second - 1, 0)][index]
                    ticks = old + round((ticks - old) * (part + 1) / rate)
                yield self._form(index, ticks, self._volume[index], ts_ms)
            if start_ms + MINUTE_MS - 1 > until_ms:
                return
            self._close(self._minute)
            end_ms = start_ms + MINUTE_MS - 1
            self.forming = [f and f._replace(confirm=True, ts_ms=end_ms) for f in self.forming]
            self.minute_ms = end_ms + 1
            yield None
            self.forming = [None] * n
            self._odd = set(self.held)
            self._begin(self._feed.next())
        self.ended = True

    def inject(self, index: int, ticks: int, volume: float, ts_ms: int) -> Point:
        """A trade that is not the feed's: the minute is no longer, either."""
        self._odd.add(index)
        return super().inject(index, ticks, volume, ts_ms)

    def bars(self, index: int, start_ms: int, end_ms: int, limit: int) -> list[list[str]]:
        """Rows of GET kline, newest first, the open one included."""
        rows: list[list[str]] = []
        forming = self.forming[index]
        if forming and not forming.confirm and start_ms - MINUTE_MS < forming.start_ms <= end_ms:
            prices = [self.price(index, ticks) for ticks in forming[1:5]]
            values = [f"{forming.volume:.8g}", f"{forming.turnover:.8g}"]
            rows.append([str(forming.start_ms), *prices, *values])
        for at_ms, ohlc, traded in reversed(self.closed):
            if len(rows) >= limit or at_ms + MINUTE_MS <= start_ms:
                break  # a start inside a minute means that minute, too
            if at_ms <= end_ms:
                prices = [self.price(index, ticks) for ticks in ohlc[:, index]]
                rows.append([str(at_ms), *prices, *(f"{x:.8g}" for x in traded[:, index])])
        return rows

    def day(self, index: int) -> Day:
        """What the stored bars of one symbol come to."""
        if not self.closed:
            last = self.last[index]
            return Day(last, last, last, last, 0.0, 0.0)
        if self._days_at != self.closed[-1][0]:
            self._days_at, self._days = self.closed[-1][0], _days(self.closed)
        return self._days[index]

    def _begin(self, minute: Minute | None) -> None:
        self._minute, self._cursor = minute, 0
        if minute is not None:
            self.minute_ms = minute.start_ms
            self._path = minute.path.tolist()
            self._volume = (minute.volume / (POINTS * self._rate)).tolist()

    def _close(self, minute: Minute) -> None:
        path = minute.path
        ohlc = np.array([path[0], path.max(axis=0), path.min(axis=0), path[-1]])
        turnover = minute.volume / POINTS * path.sum(axis=0) * np.array(self._ticks)
        traded = np.array([minute.volume, turnover])
        for index in range(len(self.listings)) if self._rate > 1 and self._path else self._odd:
            formed = self.forming[index]
            if formed is not None:
                ohlc[:, index], traded[:, index] = formed[1:5], formed[5:7]
            else:
                ohlc[:, index], traded[:, index] = self.last[index], 0
        self.closed.append((minute.start_ms, ohlc, traded))


def _days(closed: deque[Closed]) -> list[Day]:
    ohlc = np.stack([bar for _, bar, _ in closed])
    traded = np.stack([amounts for _, _, amounts in closed]).sum(axis=0)
    hour_ago = ohlc[max(0, len(ohlc) - 60), 0]
    columns = (ohlc[0, 0], ohlc[:, 1].max(axis=0), ohlc[:, 2].min(axis=0), hour_ago, *traded)
    return [Day(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def _exponent(listing: Listing) -> int:
    return int(listing.tick_size.as_tuple().exponent)
