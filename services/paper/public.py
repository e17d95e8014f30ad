"""public: what everybody sees of the market: tickers, order books, trades, klines. Pure.

All of it follows from the last trades and the synthetic books, so that it agrees with the klines.
"""

from collections import deque
from collections.abc import Iterator
from decimal import Decimal
from typing import Any
from zlib import crc32

from services.paper.market import MINUTE_MS
from services.paper.matching import Matching
from services.paper.order import BUY, SELL, Row
from services.paper.ticker import Point, Prices

RATE_STEP = Decimal("0.000001")
USUAL_RATE = 1e-4  # funding rates of one interval lie within a few of these
RECENT = 60  # points of a symbol kept for GET recent-trade
DEPTHS = (1, 50, 200, 1000)

Levels = list[tuple[str, str]]


class Public:
    """Views on the market; symbols by their place in the ticker's listings."""

    def __init__(self, ticker: Prices, matching: Matching, seed: int) -> None:
        self.ticker, self._matching, self._seed = ticker, matching, seed
        self.symbols = [listing.symbol for listing in ticker.listings]
        self.index = {symbol: i for i, symbol in enumerate(self.symbols)}
        self._recent: list[deque[Point]] = [deque(maxlen=RECENT) for _ in self.symbols]
        self.seq = 0

    def traded(self, point: Point) -> None:
        """Remember a point for the recent trades."""
        self._recent[point.which].append(point)
        self.seq += 1

    def funding_rate(self, symbol: str, at_ms: int) -> Decimal:
        """The rate of the interval that ends at or after `at_ms`."""
        end_ms = self.next_funding_ms(symbol, at_ms)
        noise = crc32(f"{self._seed}.{symbol}.{end_ms}".encode()) / 2**32
        return Decimal(USUAL_RATE * (4 * noise - 1.6)).quantize(RATE_STEP)

    def next_funding_ms(self, symbol: str, at_ms: int) -> int:
        """When funding is next settled."""
        interval_ms = self._matching.listings[symbol].funding_interval_min * MINUTE_MS
        return -(-at_ms // interval_ms) * interval_ms

    def ticker_row(self, index: int, now_ms: int) -> Row:
        """One row of tickers; all values are text."""
        symbol, day = self.symbols[index], self.ticker.day(index)
        matching, book = self._matching, self._matching.books[self.symbols[index]]
        last = self.ticker.last[index]
        bid, ask = (next(book.levels(side, 1), (0, 0)) for side in (BUY, SELL))
        mark = f"{matching.marks[symbol]:f}"
        step = matching.listings[symbol].qty_step
        price = self.ticker.price
        return {
            "symbol": symbol,
            "tickDirection": "PlusTick" if book.taker == BUY else "MinusTick",
            "lastPrice": price(index, last),
            "indexPrice": price(index, last),
            "markPrice": mark,
            "prevPrice24h": price(index, day.open),
            "price24hPcnt": f"{(last - day.open) / day.open:.6f}",
            "highPrice24h": price(index, max(day.high, last)),
            "lowPrice24h": price(index, min(day.low, last)),
            "prevPrice1h": price(index, day.hour_ago),
            "openInterest": f"{day.volume / 4:.3f}",
            "openInterestValue": f"{day.turnover / 4:.2f}",
            "turnover24h": f"{day.turnover:.4f}",
            "volume24h": f"{day.volume:.4f}",
            "fundingRate": f"{self.funding_rate(symbol, now_ms + 1):f}",
            "nextFundingTime": str(self.next_funding_ms(symbol, now_ms + 1)),
            "fundingIntervalHour": f"{matching.listings[symbol].funding_interval_min / 60:g}",
            "fundingCap": "0.03",
            "bid1Price": price(index, bid[0]),
            "bid1Size": f"{bid[1] * step:f}",
            "ask1Price": price(index, ask[0]),
            "ask1Size": f"{ask[1] * step:f}",
            "deliveryTime": "0",
            **dict.fromkeys(FUTURES_ONLY, ""),
        }

    def levels(self, index: int, depth: int) -> tuple[Levels, Levels]:
        """Bids and asks, best first, our account's resting orders among them."""
        symbol = self.symbols[index]
        listing, book = self._matching.listings[symbol], self._matching.books[symbol]
        own = self._matching.resting(symbol)
        sides: list[Levels] = []
        for side in (BUY, SELL):
            sizes = {
                ticks * listing.tick_size: lots * listing.qty_step
                for ticks, lots in book.levels(side, depth)
            }
            for price, left in own[side]:
                sizes[price] = sizes.get(price, Decimal(0)) + left
            best_first = sorted(sizes, reverse=side == BUY)[:depth]
            sides.append([(f"{price:f}", f"{sizes[price]:f}") for price in best_first])
        return sides[0], sides[1]

    def orderbook(self, index: int, depth: int, now_ms: int) -> Row:
        """GET /v5/market/orderbook."""
        bids, asks = self.levels(index, depth)
        numbers = {"ts": now_ms, "u": self.seq + 2, "seq": self.seq + 2, "cts": now_ms}
        return {"s": self.symbols[index], "b": bids, "a": asks, **numbers}

    def prints(self, point: Point) -> Iterator[tuple[str, str, str, str, int]]:
        """The single trades of a point: (id, side, price, size, ts)."""
        before = point.before
        step = self._matching.listings[self.symbols[point.which]].qty_step
        for number, (ticks, lots) in enumerate(self.ticker.tape(point)):
            side = BUY if ticks > before or (ticks == before and number % 2) else SELL
            identity = f"{point.which:x}-{point.number:x}-{number:x}"
            price = self.ticker.price(point.which, ticks)
            yield identity, side, price, f"{lots * step:f}", point.ts_ms
            before = ticks

    def recent_trades(self, index: int, limit: int) -> list[Row]:
        """GET /v5/market/recent-trade, newest first."""
        found: list[Row] = []
        for point in reversed(self._recent[index]):
            for identity, side, price, size, ts_ms in reversed(list(self.prints(point))):
                row: Row = {"execId": identity, "symbol": self.symbols[index], "price": price}
                row |= {"size": size, "side": side, "time": str(ts_ms), "isBlockTrade": False}
                found.append(row | {"isRPITrade": False, "seq": str(ts_ms)})
                if len(found) == limit:
                    return found
        return found

    def trade_push(self, point: Point) -> list[dict[str, Any]]:
        """`data` of a publicTrade push."""
        symbol = self.symbols[point.which]
        return [
            {
                "T": ts_ms,
                "s": symbol,
                "S": side,
                "v": size,
                "p": price,
                "L": "PlusTick" if side == BUY else "MinusTick",
                "i": identity,
                "BT": False,
                "RPI": False,
                "seq": ts_ms,
            }
            for identity, side, price, size, ts_ms in self.prints(point)
        ]


FUTURES_ONLY = (
    *("predictedDeliveryPrice", "basisRate", "deliveryFeeRate", "basis", "preOpenPrice"),
    *("preQty", "curPreListingPhase", "basisRateYear"),
)
