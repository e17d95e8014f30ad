"""book: one symbol's order book around its last trade, without the orders of our account. Pure.

Nothing is stored: sizes are a hash of price and minute, scaled to what the market trades, and the
spread follows the listing. A level shows less once a trade or an order of ours has eaten of it,
until the next trade. Prices are whole ticks, sizes whole lots. A `spread` of 0 is the bare book:
any quantity at the last price, and nobody ahead.
"""

from collections.abc import Iterator
from zlib import crc32

DEPTH = 200  # levels on each side
MAX_QUEUE = 5  # a level holds up to this many points' trades, more further away
SMOOTHING = 64  # points over which traded lots and moves are averaged
JUMP = 10  # a move of so many usual ones ...
WIDE, WIDE_POINTS = 5, 2  # ... widens the spread so many times, for so many points
BUY, SELL = "Buy", "Sell"


class Book:
    """`bid` and `ask` in ticks; `taker` is the side of the last trade, by the tick rule."""

    __slots__ = (
        *("_eaten", "_lots", "_minute", "_move", "_seed", "_spread", "_wide"),
        *("ask", "bid", "last", "taker"),
    )

    def __init__(self, symbol: str, seed: int, spread: int, last: int) -> None:
        self._seed, self._spread = crc32(f"{seed}.{symbol}".encode()), spread
        self._eaten: dict[int, int] = {}
        self._lots, self._move, self._wide, self._minute = 1.0, 1.0, 0, 0
        self.taker = BUY
        self.last = self.bid = self.ask = last
        self.trade(last, 1, 0)

    def trade(self, ticks: int, lots: int, minute: int) -> None:
        """The market trades: up is a buyer, down a seller, unchanged is whoever it was before."""
        move = abs(ticks - self.last)
        if move:
            self.taker = BUY if ticks > self.last else SELL
        if move > JUMP * max(self._move, 1):
            self._wide = WIDE_POINTS
        spread = self._spread * (WIDE if self._wide else 1)
        self._wide = max(0, self._wide - 1)
        self._move += (move - self._move) / SMOOTHING
        self._lots += (lots - self._lots) / SMOOTHING
        self._minute, self.last = minute, ticks
        self._eaten.clear()
        if self.taker == BUY:
            self.bid, self.ask = ticks - spread, ticks  # below one tick nobody bids
        else:
            self.bid, self.ask = ticks, ticks + spread

    def best(self, side: str) -> int:
        """The price that a taker of this side meets; beyond the book where nothing is left."""
        edge = (self.ask + DEPTH) if side == BUY else (self.bid - DEPTH)
        return next(self.walk(side), (edge, 0))[0]

    def ahead(self, side: str, ticks: int) -> int:
        """Lots in front of a new order of this side; none inside the spread."""
        if not self._spread or (ticks > self.bid if side == BUY else ticks < self.ask):
            return 0
        return max(0, self._size(ticks) - self._eaten.get(ticks, 0))

    def walk(self, side: str) -> Iterator[tuple[int, int]]:
        """(ticks, lots) that a taker of this side can have, best first."""
        for ticks, lots in self.levels(SELL if side == BUY else BUY, DEPTH):
            yield ticks, lots if self._spread else 10**18

    def levels(self, side: str, depth: int) -> Iterator[tuple[int, int]]:
        """(ticks, lots) of one side of the book, best first."""
        best, way = (self.bid, -1) if side == BUY else (self.ask, 1)
        for ticks in range(best, best + way * depth, way):
            if ticks <= 0:
                return
            if lots := max(0, self._size(ticks) - self._eaten.get(ticks, 0)):
                yield ticks, lots

    def eat(self, ticks: int, lots: int) -> None:
        """An order of ours took so many lots of a level."""
        if self._spread:
            self._eaten[ticks] = self._eaten.get(ticks, 0) + lots

    def _size(self, ticks: int) -> int:
        noise = crc32(b"%d.%d.%d" % (self._seed, ticks, self._minute)) / 2**32
        away = abs(ticks - self.last)
        return max(1, round(self._lots * (1 + away / 10) * (1 + MAX_QUEUE * noise)))
