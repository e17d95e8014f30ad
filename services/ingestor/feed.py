"""feed: which pushes are news, which bars are missing, and how old each symbol's price is."""

from collections import Counter
from collections.abc import Iterable

from services.ingestor.history import Bars
from shared.messages import History, Kline

RETRY_NS = 3_000_000_000  # before bars that could not be had are asked for again
SILENT_NS, PUSH_NS = 2_000_000_000, 75_000_000_000  # 500 symbols never pause for 2 s; one may
JUMP = 2.0  # a price that doubles or halves between two pushes is believed if the next agrees
CONFIRM_LATE_NS = 5_000_000_000  # a confirm missing this long after the next bar began is fetched


class Symbol:
    """What the feed knows of one symbol. `late_ns`: since when a bar is known to be missing.
    `doubted`: stamp and price of the last push, if that was not believed."""

    __slots__ = ("again_ns", "asked", "bars", "close", "doubted", "heard_ns", "late_ns", "ts_ms")

    def __init__(self, interval_ms: int) -> None:
        self.bars = Bars(interval_ms)
        self.heard_ns = 0
        self.ts_ms = 0
        self.close = 0.0
        self.doubted = (0, 0.0)
        self.late_ns = self.again_ns = 0
        self.asked = False


class Feed:
    """Every confirmed bar exactly once and in order; every other push only as a price."""

    def __init__(self, interval_ms: int) -> None:
        self._interval_ms = interval_ms
        self._symbols: dict[str, Symbol] = {}
        self.counters: Counter[str] = Counter()

    def universe(self, symbols: Iterable[str]) -> None:
        """Follow these symbols and no others; what is already known of them stays."""
        known = self._symbols
        self._symbols = {s: known.get(s) or Symbol(self._interval_ms) for s in symbols}

    def push(self, kline: Kline, now_ns: int) -> list[Kline]:
        """What of one push is to be said."""
        symbol = self._symbols.get(kline.symbol)
        latest_ms = kline.start_ms + self._interval_ms  # a stamp beyond its own bar is a wrong one
        if kline.ts_ms > latest_ms:
            kline = kline._replace(ts_ms=latest_ms)
        if symbol is None or kline.ts_ms < symbol.ts_ms or kline.start_ms < symbol.bars.next_ms:
            self.counters["repeated"] += 1
            return []
        inside = kline.low <= kline.open <= kline.high and kline.low <= kline.close <= kline.high
        if not (inside and kline.low > 0 and kline.high < float("inf")):
            self.counters["absurd"] += 1  # nan, too: it compares false with everything
            return []
        jumped = symbol.close and not symbol.close / JUMP < kline.close < symbol.close * JUMP
        if jumped and not kline.confirm and not _agrees(kline, *symbol.doubted):
            symbol.doubted = (kline.ts_ms, kline.close)
            self.counters["absurd"] += 1  # a closed bar is the exchange's last word, this is not
            return []
        symbol.heard_ns, symbol.ts_ms, symbol.close = now_ns, kline.ts_ms, kline.close
        symbol.doubted = (0, 0.0)
        if not kline.confirm:
            if kline.start_ms > symbol.bars.next_ms and not symbol.late_ns:
                symbol.late_ns = now_ns
            return [kline]
        if symbol.bars.next_ms and symbol.bars.append(kline.start_ms, kline[2:7]):
            symbol.late_ns = 0
            return [kline]
        symbol.late_ns = now_ns - CONFIRM_LATE_NS  # a hole: fetch it now, with this bar
        return []

    def fill(self, name: str, rows: Iterable[Kline]) -> list[Kline]:
        """Closed bars that REST brought: those that were missing, in order."""
        symbol = self._symbols.get(name)
        if symbol is None:
            return []
        symbol.asked, symbol.late_ns = False, 0
        said = []
        for row in rows:
            if row.start_ms > symbol.bars.next_ms:
                symbol.bars.clear()
            if symbol.bars.append(row.start_ms, row[2:7]):
                said.append(row)
        self.counters["filled"] += len(said)
        return said

    def failed(self, name: str, now_ns: int) -> None:
        """The REST answer did not come: ask again, after a pause."""
        if name in self._symbols:
            self._symbols[name].asked = False
            self._symbols[name].again_ns = now_ns + RETRY_NS

    def missing(self, now_ns: int) -> list[tuple[str, int]]:
        """(symbol, first missing bar, 0 for all) of what must be asked for now; each once."""
        found = []
        for name, symbol in self._symbols.items():
            late = symbol.late_ns and now_ns - symbol.late_ns >= CONFIRM_LATE_NS
            if not symbol.asked and now_ns >= symbol.again_ns and (late or not symbol.bars.next_ms):
                symbol.asked = True
                found.append((name, symbol.bars.next_ms))
        return found

    def history(self, name: str) -> History:
        """The closed bars of one symbol; empty while there are none, or it is not ours."""
        symbol = self._symbols.get(name)
        if symbol is None:
            return History(name, 0, b"")
        return History(name, symbol.bars.start_ms, symbol.bars.to_bytes())

    def filled_count(self) -> int:
        """Symbols with bars."""
        return sum(1 for symbol in self._symbols.values() if symbol.bars.next_ms)

    def silent(self, now_ns: int) -> bool:
        """Whether nothing at all was heard for longer than so many symbols ever pause."""
        heard_ns = max((symbol.heard_ns for symbol in self._symbols.values()), default=0)
        limit_ns = max(SILENT_NS, PUSH_NS // max(1, len(self._symbols)))
        return now_ns - heard_ns > limit_ns

    def oldest_ms(self, now_ns: int) -> int:
        """Age in ms of the symbol heard longest ago; -1 if one never was."""
        oldest_ns = min((symbol.heard_ns for symbol in self._symbols.values()), default=0)
        return (now_ns - oldest_ns) // 1_000_000 if oldest_ns else -1


def _agrees(kline: Kline, doubted_ms: int, doubted: float) -> bool:
    """Whether an earlier push has said so, too."""
    return kline.ts_ms > doubted_ms and doubted / JUMP < kline.close < doubted * JUMP
