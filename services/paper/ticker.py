"""ticker: a feed's minutes as trades, kline pushes and stored bars, at their market time. Pure."""

from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.paper.market import MINUTE_MS, POINTS, Feed, Listing, Minute

KEEP = 1_000  # closed minutes for GET kline
POINT_MS = MINUTE_MS // POINTS


class Point(NamedTuple):
    """One trade of the market: the symbol by its place, price in ticks, quantity in base coin."""

    which: int
    ticks: int
    volume: float
    ts_ms: int


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


Closed = tuple[int, NDArray[np.int64], NDArray[np.float64]]
"""start_ms, int64 (4, symbols) ohlc in ticks, float64 (2, symbols) volume and turnover."""


class Ticker:
    """Runs through minutes: symbol i trades at second k + i/n, and all bars close at once."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self.listings: list[Listing] = feed.listings
        self.closed: deque[Closed] = deque(maxlen=KEEP)
        self._ticks = [float(listing.tick_size) for listing in self.listings]
        self._decimals = [max(0, -_exponent(listing)) for listing in self.listings]
        self._minute: Minute | None = None
        self._cursor = 0
        self.forming: list[Forming | None] = [None] * len(self.listings)
        self.ended = False

    def warm_up(self, until_ms: int) -> None:
        """Take every whole minute before `until_ms` as closed, without trading it."""
        self._feed.skip_to(until_ms - KEEP * MINUTE_MS)
        while minute := self._feed.next():
            if minute.start_ms >= until_ms:
                self._minute = minute
                return
            self._close(minute)
        self.ended = True

    def run(self, until_ms: int) -> Iterator[Point | None]:
        """Points up to `until_ms`, in order; None where a minute has just closed."""
        n = len(self.listings)
        while self._minute is not None:
            start_ms, path, volume = self._minute
            while self._cursor < POINTS * n:
                second, index = divmod(self._cursor, n)
                ts_ms = start_ms + second * POINT_MS + index * POINT_MS // n
                if ts_ms > until_ms:
                    return
                self._cursor += 1
                point = Point(index, int(path[second, index]), float(volume[index]) / POINTS, ts_ms)
                self._form(point, start_ms)
                yield point
            if start_ms + MINUTE_MS - 1 > until_ms:
                return
            self._close(self._minute)
            end_ms = start_ms + MINUTE_MS - 1
            self.forming = [f and f._replace(confirm=True, ts_ms=end_ms) for f in self.forming]
            yield None
            self.forming = [None] * n
            self._minute, self._cursor = self._feed.next(), 0
        self.ended = True

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
        rows: list[list[str]] = []
        forming = self.forming[index]
        if forming and not forming.confirm and start_ms <= forming.start_ms <= end_ms:
            prices = [self.price(index, ticks) for ticks in forming[1:5]]
            values = [f"{forming.volume:.8g}", f"{forming.turnover:.8g}"]
            rows.append([str(forming.start_ms), *prices, *values])
        for at_ms, ohlc, traded in reversed(self.closed):
            if len(rows) >= limit or at_ms < start_ms:
                break
            if at_ms <= end_ms:
                prices = [self.price(index, ticks) for ticks in ohlc[:, index]]
                rows.append([str(at_ms), *prices, *(f"{x:.8g}" for x in traded[:, index])])
        return rows

    def _form(self, point: Point, start_ms: int) -> None:
        index, ticks, volume, ts_ms = point
        old = self.forming[index]
        turnover = volume * ticks * self._ticks[index]
        if old is None:
            new = Forming(start_ms, ticks, ticks, ticks, ticks, volume, turnover, False, ts_ms)
        else:
            new = Forming(
                *(start_ms, old.open, max(old.high, ticks), min(old.low, ticks), ticks),
                *(old.volume + volume, old.turnover + turnover, False, ts_ms),
            )
        self.forming[index] = new

    def _close(self, minute: Minute) -> None:
        path = minute.path
        ohlc = np.array([path[0], path.max(axis=0), path.min(axis=0), path[-1]])
        turnover = minute.volume / POINTS * path.sum(axis=0) * np.array(self._ticks)
        self.closed.append((minute.start_ms, ohlc, np.array([minute.volume, turnover])))


def _exponent(listing: Listing) -> int:
    return int(listing.tick_size.normalize().as_tuple().exponent)
