"""worker: klines in, quotes out, for its share of the symbols. Knows nothing of positions."""

from dataclasses import dataclass
from typing import Any, ClassVar
from zlib import crc32

from services.worker.ring import Ring
from services.worker.strategy import (
    NO_BANDS,
    Bands,
    Parameters,
    bands,
    calm,
    distance_pct,
    nearer,
    zone,
)
from shared import messages as msg
from shared.actor import Actor
from shared.messages import STALE_NS, UNIVERSE_NS
from shared.settings import Settings

NO_PUSH = msg.Kline("", 0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, False, 0, 0)


@dataclass(slots=True)
class Symbol:
    """One symbol's bars, what was prepared from them, its newest push, and what was said last."""

    ring: Ring
    bands: Bands = NO_BANDS
    push: msg.Kline = NO_PUSH
    heard_ns: int = 0
    start_ms: int = 0
    asked: bool = False
    gone: bool = False
    said: tuple[str, str, int, str] = ("", "", 0, "")
    low: float = 0.0  # between the two a tick of this bar changes nothing that was said
    high: float = 0.0


class Worker(Actor):
    """Never sees the account. Quotes are a function of the closed bars and the last price."""

    service = "worker"
    hears: ClassVar[dict[str, tuple[str, ...]]] = {"market": ("kline.", "instrument.")}
    says = "quotes"
    asks = ("history", "instruments")

    def __init__(self, settings: Settings, shard: tuple[int, int] | None = None) -> None:
        super().__init__(settings)
        self._parameters = settings.part(Parameters)
        self._interval_ms = settings.interval_ms
        self._index, self._shards = shard or settings.worker_shard
        self.shard = f"{self._index}/{self._shards}"
        self._symbols: dict[str, Symbol] = {}
        self._universe_ns = 0
        self._universe_known = False

    def start(self, now_ns: int) -> list[msg.Message]:
        """The universe first; the bars of each symbol follow."""
        self._universe_ns = now_ns
        return [msg.InstrumentsAsk()]

    def handle(self, message: Any, now_ns: int) -> list[msg.Message]:
        """A tick, a closed bar, the history or the universe."""
        if isinstance(message, msg.Kline):
            return self._kline(message, now_ns)
        if isinstance(message, msg.History):
            return self._history(message, now_ns)
        if isinstance(message, msg.Instruments):
            return self._universe(message, now_ns)
        if isinstance(message, msg.Instrument):
            self._universe_ns = now_ns - UNIVERSE_NS  # ask for all of it at the next tick
            return []
        if isinstance(message, msg.NoAnswer) and isinstance(message.request, msg.HistoryAsk):
            if symbol := self._symbols.get(message.request.symbol):
                symbol.asked = False
        elif isinstance(message, msg.NoAnswer):
            self._universe_ns = now_ns - UNIVERSE_NS
        return []

    def tick(self, now_ns: int) -> list[msg.Message]:
        """Every quote again, stale ones as NONE; ask for the bars that are missing."""
        messages: list[msg.Message] = []
        if now_ns - self._universe_ns >= UNIVERSE_NS:
            messages += self.start(now_ns)
        waiting = 0
        for name, symbol in self._symbols.items():
            gate = _gate(symbol, now_ns)
            if symbol.push.close and symbol.ring.count:
                messages.append(self._quote(name, symbol, now_ns))
            if gate in ("warmup", "hole") and not symbol.asked:
                symbol.asked = True
                messages.append(msg.HistoryAsk(name))
            waiting += gate == "hole" or not symbol.ring.count
        self.ready = self._universe_known and not waiting
        self.note = f"{len(self._symbols) - waiting}/{len(self._symbols)} symbols"
        heard = [symbol.heard_ns for symbol in self._symbols.values() if symbol.heard_ns]
        self.ages_ms["feed"] = (now_ns - max(heard)) // 1_000_000 if heard else -1
        return messages

    def _kline(self, kline: msg.Kline, now_ns: int) -> list[msg.Message]:
        """The hot path: when nothing changed, a few comparisons."""
        symbol = self._symbols.get(kline.symbol)
        if symbol is None:
            return []
        symbol.heard_ns = now_ns
        if kline.ts_ms >= symbol.push.ts_ms:
            symbol.push = kline
            if (
                symbol.low < kline.close < symbol.high
                and kline.start_ms == symbol.start_ms
                and not kline.confirm
            ):
                return []
        symbol.start_ms = max(symbol.start_ms, kline.start_ms)
        if kline.confirm and symbol.ring.append(kline.start_ms, kline[2:7]):
            self.counters["bars"] += 1
            self._prepare(symbol)
        last = symbol.push.close
        gate, edge = _gate(symbol, now_ns), nearer(symbol.bands, last)
        where = msg.NONE if gate else zone(edge, last)
        if (edge.side, where, symbol.ring.next_ms, gate) == symbol.said or not symbol.ring.count:
            symbol.low, symbol.high = calm(symbol.bands, last)
            return []  # without a single bar it has no opinion: another worker may have one
        return [self._quote(kline.symbol, symbol, now_ns)]

    def _prepare(self, symbol: Symbol) -> None:
        """A bar closed: new bands."""
        if symbol.ring.count >= self._parameters.bb_length:
            symbol.bands = bands(symbol.ring.window(self._parameters.bb_length), self._parameters)

    def _quote(self, name: str, symbol: Symbol, now_ns: int) -> msg.Quote:
        b, last, gate = symbol.bands, symbol.push.close, _gate(symbol, now_ns)
        edge = nearer(b, last)
        where = msg.NONE if gate else zone(edge, last)
        symbol.said = (edge.side, where, symbol.ring.next_ms, gate)
        symbol.low, symbol.high = (last, last) if gate == "stale" else calm(b, last)
        self.counters[where] += 1
        return msg.Quote(
            *(name, edge.side, edge.price, where, gate, b.take_profit_pct, b.lower.band),
            *(b.upper.band, last, distance_pct(edge, last), b.volatility_pct, symbol.ring.next_ms),
            *(symbol.push.ts_ms, symbol.push.recv_ns, now_ns),
        )

    def _history(self, history: msg.History, now_ns: int) -> list[msg.Message]:
        symbol = self._symbols.get(history.symbol)
        if symbol is None:
            return []
        symbol.asked = False
        if not symbol.ring.load(history.start_ms, history.bars):
            return []
        if not symbol.push.close:
            close = float(symbol.ring.window(1)[0, 3])
            symbol.push = NO_PUSH._replace(close=close, ts_ms=symbol.ring.next_ms)
        self._prepare(symbol)
        return [self._quote(history.symbol, symbol, now_ns)]

    def _universe(self, universe: msg.Instruments, now_ns: int) -> list[msg.Message]:
        """Take on new symbols of our shard, say a last NONE for those that are gone."""
        if not universe.instruments:
            self._universe_ns = now_ns - UNIVERSE_NS
            return []
        self._universe_known = True
        names = {i.symbol for i in universe.instruments if self._owns(i)}
        gone = [name for name in self._symbols if name not in names]
        messages: list[msg.Message] = []
        for name in gone:
            symbol = self._symbols.pop(name)
            symbol.gone = True
            messages.append(self._quote(name, symbol, now_ns))
        new = sorted(names - self._symbols.keys())
        for name in new:
            self._symbols[name] = Symbol(Ring(self._interval_ms))
            self._symbols[name].asked = True
            messages.append(msg.HistoryAsk(name))
        if gone or new:
            topics = (msg.topic_of("Kline", name).decode() for name in sorted(names))
            messages.append(msg.Hear("market", ("instrument.", *topics)))
        return messages

    def _owns(self, row: msg.Instrument) -> bool:
        mine = crc32(row.symbol.encode()) % self._shards == self._index
        return mine and row.status == "Trading"


def _gate(symbol: Symbol, now_ns: int) -> str:
    """Why its bands have no say now; empty if they have."""
    if symbol.gone:
        return "not_tradeable"
    if symbol.heard_ns and now_ns - symbol.heard_ns > STALE_NS:
        return "stale"
    hole = symbol.ring.count and symbol.start_ms > symbol.ring.next_ms
    return "hole" if hole else symbol.bands.gate
