"""topics: the public pushes: which frame each point of the market makes, for whom. Pure."""

from collections.abc import Callable
from typing import Any

import orjson

from services.paper.order import Row
from services.paper.public import DEPTHS, Levels, Public
from services.paper.ticker import Point

TICKERS_MS = 100  # at most one push of a symbol in so long
BOOK_MS = {1: 10, 50: 20, 200: 100, 1000: 200}
REPEAT_MS = 3_000  # a silent orderbook.1 is said again

Wanted = Callable[[str], bool]
Publish = Callable[[str, bytes], None]


class Topics:
    """What subscribers of a topic know so far, so that only changes are said."""

    def __init__(self, public: Public, wanted: Wanted, publish: Publish) -> None:
        self._public, self._wanted, self._publish = public, wanted, publish
        self._kline = [f"kline.1.{symbol}" for symbol in public.symbols]
        self._trade = [f"publicTrade.{symbol}" for symbol in public.symbols]
        self._ticker = [f"tickers.{symbol}" for symbol in public.symbols]
        self._books = {d: [f"orderbook.{d}.{s}" for s in public.symbols] for d in DEPTHS}
        self._names = {
            topic: (kind, index)
            for kind, topics in self._families()
            for index, topic in enumerate(topics)
        }
        self._tickers: dict[str, tuple[int, Row]] = {}
        self._levels: dict[str, tuple[int, int, Levels, Levels]] = {}
        self._late: dict[str, None] = {}  # topics that have something to say, a little later
        self.beyond_klines = False  # whether anybody ever asked for more than klines

    def serves(self, topic: str) -> bool:
        """Whether there is such a topic."""
        return topic in self._names

    def snapshot(self, topic: str, now_ms: int) -> bytes | None:
        """What a new subscriber hears first; None where the first push says all."""
        kind, index = self._names[topic]
        self.beyond_klines |= kind != "kline"
        if kind == "tickers":
            if topic not in self._tickers:
                self._tickers[topic] = now_ms, self._public.ticker_row(index, now_ms)
            return self._ticker_frame(topic, "snapshot", self._tickers[topic][1], now_ms)
        if kind in DEPTHS:
            if topic not in self._levels:
                self._levels[topic] = now_ms, 2, *self._public.levels(index, int(kind))
            return self._book_frame(topic, "snapshot", index, *self._levels[topic])
        return None

    def forget(self, topic: str) -> None:
        """Nobody hears it any more."""
        self._late.pop(topic, None)
        self._tickers.pop(topic, None)
        self._levels.pop(topic, None)

    def point(self, point: Point) -> None:
        """A symbol has traded."""
        index = point.which
        self.kline(index)
        if not self.beyond_klines:
            return
        if self._wanted(topic := self._trade[index]):
            data = self._public.trade_push(point)
            message = {"topic": topic, "type": "snapshot", "ts": point.ts_ms, "data": data}
            self._publish(topic, orjson.dumps(message))
        if self._wanted(topic := self._ticker[index]):
            self._say_ticker(topic, index, point.ts_ms)
        for depth, topics in self._books.items():
            if self._wanted(topic := topics[index]):
                self._say_book(topic, index, depth, point.ts_ms)

    def kline(self, index: int) -> None:
        """The forming kline of a symbol, or the one that has just closed."""
        topic, forming = self._kline[index], self._public.ticker.forming[index]
        if forming is None or not self._wanted(topic):
            return
        data = [self._public.ticker.kline(index, forming)]
        message = {"topic": topic, "data": data, "ts": forming.ts_ms, "type": "snapshot"}
        self._publish(topic, orjson.dumps(message))

    def changed(self, index: int) -> None:
        """An order of ours came into a symbol's book, or left it."""
        for topics in self._books.values():
            if self._wanted(topics[index]):
                self._late[topics[index]] = None

    def catch_up(self, now_ms: int) -> None:
        """Say what came too soon after the last push, now that its time has come."""
        for topic in list(self._late):
            del self._late[topic]
            kind, index = self._names[topic]
            if kind == "tickers":
                self._say_ticker(topic, index, now_ms)
            else:
                self._say_book(topic, index, int(kind), now_ms)

    def tick(self, now_ms: int) -> None:
        """Say best prices again that nobody has moved for a while."""
        for topic, (said_ms, u, bids, asks) in list(self._levels.items()):
            if topic.startswith("orderbook.1.") and now_ms - said_ms >= REPEAT_MS:
                index = self._names[topic][1]
                self._levels[topic] = now_ms, u, bids, asks
                frame = self._book_frame(topic, "snapshot", index, now_ms, u, bids, asks)
                self._publish(topic, frame)

    def _families(self) -> list[tuple[Any, list[str]]]:
        named = [("kline", self._kline), ("trade", self._trade), ("tickers", self._ticker)]
        return [*named, *self._books.items()]

    def _say_ticker(self, topic: str, index: int, now_ms: int) -> None:
        said_ms, old = self._tickers.get(topic, (0, {}))
        if now_ms - said_ms < TICKERS_MS:
            self._late[topic] = None
            return
        new = self._public.ticker_row(index, now_ms)
        self._tickers[topic] = now_ms, new
        changed = {name: value for name, value in new.items() if old.get(name) != value}
        for pair in (("bid1Price", "bid1Size"), ("ask1Price", "ask1Size")):
            if changed.keys() & set(pair):  # a price never comes without its size
                changed |= {name: new[name] for name in pair}
        row = {"symbol": new["symbol"], **changed}
        self._publish(topic, self._ticker_frame(topic, "delta", row, now_ms))

    def _say_book(self, topic: str, index: int, depth: int, now_ms: int) -> None:
        said_ms, u, old_bids, old_asks = self._levels.get(topic, (0, 1, [], []))
        if now_ms - said_ms < BOOK_MS[depth]:
            self._late[topic] = None
            return
        bids, asks = self._public.levels(index, depth)
        if (bids, asks) == (old_bids, old_asks):
            return
        self._levels[topic] = now_ms, u + 1, bids, asks
        kind = "snapshot"
        if depth > 1:
            kind, bids, asks = "delta", _delta(old_bids, bids), _delta(old_asks, asks)
        frame = self._book_frame(topic, kind, index, now_ms, u + 1, bids, asks)
        self._publish(topic, frame)

    def _ticker_frame(self, topic: str, kind: str, row: Row, now_ms: int) -> bytes:
        message = {"topic": topic, "type": kind, "data": row, "cs": self._public.seq, "ts": now_ms}
        return orjson.dumps(message)

    def _book_frame(
        self, topic: str, kind: str, index: int, now_ms: int, u: int, bids: Levels, asks: Levels
    ) -> bytes:
        data = {"s": self._public.symbols[index], "b": bids, "a": asks, "u": u}
        data["seq"] = self._public.seq
        message = {"topic": topic, "type": kind, "ts": now_ms, "data": data, "cts": now_ms}
        return orjson.dumps(message)


def _delta(old: Levels, new: Levels) -> Levels:
    """Levels that are new or changed, and size "0" for those that are gone."""
    before, after = dict(old), dict(new)
    gone = [(price, "0") for price in before if price not in after]
    return [(p, s) for p, s in after.items() if before.get(p) != s] + gone
