"""live: prices from another exchange's public klines, for paper trading on the real market. Pure.

Klines come in as messages; each new extreme and each close is a trade of the paper market. Bars are
the other exchange's own, to the digit of the tick.
"""

from collections import deque
from collections.abc import Iterable, Iterator

from services.paper.market import MINUTE_MS, Listing
from services.paper.ticker import KEEP, Day, Forming, Point, Prices
from shared.messages import Instrument, Kline


def listing_of(instrument: Instrument) -> Listing:
    """The grid of a real instrument."""
    return Listing(
        *(instrument.symbol, instrument.tick_size, instrument.qty_step),
        *(instrument.min_order_qty, instrument.max_order_qty, instrument.funding_interval_min),
    )


class Live(Prices):
    """Prices as they are heard. Older and repeated klines change nothing."""

    def __init__(self, listings: list[Listing]) -> None:
        super().__init__(listings, 1)
        self._index = {listing.symbol: i for i, listing in enumerate(listings)}
        self._bars: list[deque[Forming]] = [deque(maxlen=KEEP) for _ in listings]
        self._heard: deque[tuple[int, Forming]] = deque()

    def known(self, symbol: str) -> int:
        """Start of the newest closed bar of a symbol, 0 if there is none."""
        bars = self._bars[self._index[symbol]]
        return bars[-1].start_ms if bars else 0

    def history(self, symbol: str, klines: Iterable[Kline]) -> None:
        """Closed bars, oldest first; those that are known already are left out."""
        index = self._index[symbol]
        for kline in klines:
            if kline.start_ms > self.known(symbol):
                self._bars[index].append(self._formed(index, kline))
        if self._bars[index] and not self.last[index]:
            self.last[index] = self._bars[index][-1].close

    def heard(self, kline: Kline) -> None:
        """One push of the other exchange."""
        if kline.symbol in self._index:
            index = self._index[kline.symbol]
            self._heard.append((index, self._formed(index, kline)))

    def run(self, until_ms: int) -> Iterator[Point | None]:
        """What was heard, in order; None once a minute."""
        while self._heard:
            index, new = self._heard.popleft()
            old = self.forming[index]
            known = self._bars[index][-1].start_ms if self._bars[index] else 0
            if index in self.held or new.start_ms <= known:
                continue
            if old and (new.start_ms, new.ts_ms) < (old.start_ms, old.ts_ms):
                continue
            same = old if old and old.start_ms == new.start_ms else None
            self.forming[index] = new
            if new.confirm:
                self._bars[index].append(new)
            volume = max(0.0, new.volume - (same.volume if same else 0.0))
            for ticks in _extremes(same, new):
                yield self._moved(index, ticks, 0.0, new.ts_ms)
            yield self._moved(index, new.close, volume, new.ts_ms)
        minute_ms = until_ms // MINUTE_MS * MINUTE_MS
        if minute_ms != self.minute_ms:
            self.minute_ms = minute_ms
            yield None

    def bars(self, index: int, start_ms: int, end_ms: int, limit: int) -> list[list[str]]:
        """Rows of GET kline, newest first, the open one included."""
        forming = self.forming[index]
        newest = [forming] if forming and not forming.confirm else []
        shown = [*newest, *reversed(self._bars[index])]
        wanted = [bar for bar in shown if start_ms - MINUTE_MS < bar.start_ms <= end_ms]
        return [self._row(index, bar) for bar in wanted[:limit]]

    def day(self, index: int) -> Day:
        """What the stored bars of one symbol come to."""
        bars, last = self._bars[index], self.last[index]
        if not bars:
            return Day(last, last, last, last, 0.0, 0.0)
        highs, lows = max(bar.high for bar in bars), min(bar.low for bar in bars)
        traded = (sum(bar.volume for bar in bars), sum(bar.turnover for bar in bars))
        return Day(bars[0].open, highs, lows, bars[-60 if len(bars) > 60 else 0].open, *traded)

    def _moved(self, index: int, ticks: int, volume: float, ts_ms: int) -> Point:
        self._number += 1
        point = Point(index, ticks, volume, ts_ms, self.last[index], self._number)
        self.last[index] = ticks
        return point

    def _formed(self, index: int, kline: Kline) -> Forming:
        tick = self._ticks[index]
        prices = (kline.open, kline.high, kline.low, kline.close)
        opened, high, low, close = (round(price / tick) for price in prices)
        traded = (kline.volume, kline.turnover)
        return Forming(
            kline.start_ms, opened, high, low, close, *traded, kline.confirm, kline.ts_ms
        )

    def _row(self, index: int, bar: Forming) -> list[str]:
        prices = [self.price(index, ticks) for ticks in bar[1:5]]
        return [str(bar.start_ms), *prices, f"{bar.volume:.8g}", f"{bar.turnover:.8g}"]


def _extremes(old: Forming | None, new: Forming) -> list[int]:
    """New lows and highs since the last push, in the order that a bar usually takes."""
    low, high = (old.low, old.high) if old else (new.open, new.open)
    lower, higher = [new.low] if new.low < low else [], [new.high] if new.high > high else []
    return [*lower, *higher] if new.close >= new.open else [*higher, *lower]
