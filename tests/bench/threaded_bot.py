"""The design that this project replaces, as small as it can honestly be: only for comparison.

One process. pybit's threads call back; each kline goes into its symbol's buffer under a lock, and
the bands are computed anew from the ordered window; what is to be done goes by one queue to the
main loop, which speaks to the exchange by pybit's HTTP. Strategy and order types are the bot's. It
is written for the paper exchange and knows none of what keeps money safe.

pybit is as it comes: without wsaccel, which it does not ask for, websocket-client checks each
frame's UTF-8 in Python. `--accelerated` gives it the wsaccel that this project installs.
"""

import argparse
import json
import math
import queue
import signal
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

if "--accelerated" not in sys.argv:
    sys.modules["wsaccel"] = None  # import websocket finds none

import numpy as np
from pybit.unified_trading import HTTP, WebSocket

from services.worker.strategy import Parameters

ROWS, COLUMNS = 300, 5
KEYS = {"api_key": "paper-key", "api_secret": "paper-secret"}
LINEAR = {"category": "linear"}
TOPICS = 200  # in one connection


class Bands(NamedTuple):
    """What the old design knows of a symbol after each push."""

    lower: float
    upper: float
    volatility_pct: float


class Buffer:
    """The last 300 bars of one symbol; `size` counts all that ever closed."""

    def __init__(self):
        self.lock = threading.Lock()
        self.size = 0
        self._values = np.zeros((ROWS, COLUMNS))

    def push(self, bar, confirm, length, width):
        """Take in one push, and compute the bands of the last `length` closed bars; None if there
        are too few."""
        with self.lock:
            self._values[self.size % ROWS] = bar
            self.size += confirm
            if self.size < length:
                return None
            window = self._values[np.arange(self.size - length, self.size) % ROWS]
            ohlc4 = window[:, :4].mean(axis=1)
            basis, sigma = ohlc4.mean(), ohlc4.std(ddof=1)
            volatility_pct = 100 * ((window[:, 1] - window[:, 2]) / window[:, 3]).mean()
            return Bands(basis - width * sigma, basis + width * sigma, volatility_pct)


class ThreadedBot:
    """Callbacks in pybit's threads, one queue, one loop that places orders."""

    def __init__(self, rest, stream, size_usdt, parameters):
        self.rest, self.stream, self.size_usdt, self.p = rest, stream, size_usdt, parameters
        self.http = HTTP(**KEYS)
        self.http.endpoint = rest
        self.queue = queue.Queue()
        self.lock = threading.Lock()
        self.instruments, self.buffers = {}, {}
        self.orders, self.used = {}, {}
        self.closes = []  # monotonic ns at which the bands of a closed bar were ready
        self.sockets = []
        self.stopping = False

    def begin(self):
        """Instruments, bars, leverage, then the streams."""
        rows = self.http.get_instruments_info(**LINEAR, limit=1000)["result"]["list"]
        self.instruments = {row["symbol"]: row for row in rows}
        width = self.p.bb_mult * self.p.bb_dev_mult
        for symbol in self.instruments:
            self.buffers[symbol] = Buffer()
            answer = self.http.get_kline(**LINEAR, symbol=symbol, interval="1", limit=301)
            for row in answer["result"]["list"][:0:-1]:
                bar = [float(value) for value in row[1:6]]
                self.buffers[symbol].push(bar, True, self.p.bb_length, width)
        symbols = list(self.instruments)
        for first in range(0, len(symbols), TOPICS):
            socket = self._socket(channel_type="linear")
            socket.kline_stream(1, symbols[first : first + TOPICS], self.on_kline)
        self._socket(channel_type="private", **KEYS).order_stream(self.on_order)

    def _socket(self, **terms):
        """One pybit connection to the exchange's address."""
        base = self.stream

        class Socket(WebSocket):
            def _connect(self, url):
                super()._connect(base + urlsplit(url).path)

        self.sockets.append(Socket(testnet=False, **terms))
        return self.sockets[-1]

    def on_kline(self, message):
        """In a thread of pybit's."""
        symbol = message["topic"].rpartition(".")[2]
        for row in message["data"]:
            bar = [float(row[name]) for name in ("open", "high", "low", "close", "volume")]
            width = self.p.bb_mult * self.p.bb_dev_mult
            bands = self.buffers[symbol].push(bar, row["confirm"], self.p.bb_length, width)
            if row["confirm"]:
                self.closes.append(time.monotonic_ns())
            if bands and bands.volatility_pct >= self.p.min_volatility_pct:
                self.check(symbol, int(row["start"]), bar[3], bands)

    def check(self, symbol, start_ms, last, bands):
        """Place an order near a band, cancel it away from both."""
        for side, band, inward in (("Buy", bands.lower, 1), ("Sell", bands.upper, -1)):
            away_pct = inward * (last - band) / band * 100
            near = -self.p.band_overshoot_pct <= away_pct <= self.p.band_proximity_pct
            resting = self.orders.get(symbol)
            if near and not resting and self.used.get((symbol, side)) != start_ms:
                self.used[symbol, side] = start_ms
                price = band * (1 - inward * self.p.entry_buffer_pct / 100)
                self.queue.put(("enter", symbol, side, price))
            elif resting and resting[0] == side and abs(away_pct) > self.p.band_exit_pct:
                self.queue.put(("leave", symbol, side, 0.0))

    def on_order(self, message):
        """In a thread of pybit's."""
        for row in message["data"]:
            symbol = row["symbol"]
            if row["orderStatus"] == "Filled" and not row["reduceOnly"]:
                self.queue.put(("sell", symbol, row["side"], float(row["avgPrice"])))
            if row["orderStatus"] in ("Filled", "Cancelled", "Rejected"):
                with self.lock:
                    self.orders.pop(symbol, None)

    def run(self):
        """The main loop, until SIGTERM."""
        while not self.stopping:
            try:
                action, symbol, side, price = self.queue.get(timeout=0.2)
            except queue.Empty:
                continue
            try:
                self.act(action, symbol, side, price)
            except Exception as error:  # noqa: BLE001 - as the old script did: log it, go on
                print(f"{action} {symbol}: {error}", flush=True)

    def act(self, action, symbol, side, price):
        """One request to the exchange."""
        if action == "leave":
            with self.lock:
                order = self.orders.pop(symbol, None)
            if order:
                self.http.cancel_order(**LINEAR, symbol=symbol, orderId=order[1])
            return
        row = self.instruments[symbol]
        tick, step = float(row["priceFilter"]["tickSize"]), float(row["lotSizeFilter"]["qtyStep"])
        leaving = action == "sell"
        if leaving:
            profit = 1 + self.p.base_fee_pct / 100 * (1 if side == "Buy" else -1)
            price, side = price * profit, {"Buy": "Sell", "Sell": "Buy"}[side]
        qty = math.ceil(self.size_usdt / price / step) * step
        answer = self.http.place_order(
            **LINEAR, symbol=symbol, side=side, orderType="Limit", qty=f"{qty:.8g}",
            price=f"{round(price / tick) * tick:.8g}", reduceOnly=leaving, positionIdx=0,
            timeInForce="GTC" if leaving else "PostOnly",
        )  # fmt: skip
        if not leaving:
            with self.lock:
                self.orders[symbol] = (side, answer["result"]["orderId"])


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.bench.threaded_bot", description=__doc__)
    parser.add_argument("port", type=int, help="of the paper exchange")
    parser.add_argument("--size", type=float, default=20.0, help="USDT of one order (20)")
    parser.add_argument("--accelerated", action="store_true", help="with wsaccel")
    parser.add_argument("--closes", type=Path, help="where the times of closed bars go at the end")
    args = parser.parse_args()
    rest, stream = f"http://127.0.0.1:{args.port}", f"ws://127.0.0.1:{args.port}"
    bot = ThreadedBot(rest, stream, args.size, Parameters())
    signal.signal(signal.SIGTERM, lambda *_: setattr(bot, "stopping", True))
    bot.begin()
    print("ready", flush=True)
    bot.run()
    if args.closes:
        args.closes.write_text(json.dumps(bot.closes))


if __name__ == "__main__":
    main()
