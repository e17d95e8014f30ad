"""The paper exchange with a stopwatch: it moves one symbol after another to its band, and notes
when that frame left and when the order that it causes arrives.

As `python -m services.paper`, from the same settings. It begins at SIGUSR1 and writes `--out` when
it has moved `--moves` symbols, and not before `--seconds`: (left_ns, arrived_ns) of each by the
monotonic clock, 0 where no order came, and when each minute's closing frames left. With `--calm`
only one symbol in `--calm` trades; SIGUSR2 sets the others free, or holds them again.
"""

import argparse
import asyncio
import json
import signal
import time
from decimal import Decimal
from itertools import cycle
from pathlib import Path

import numpy as np
from aiohttp import web

from services.paper import server
from services.paper.actor import Paper
from services.worker.strategy import Parameters, bands

HELD_S = 1.0  # the symbol stands at its band for so long
SLACK = 1.0005  # of the band: an entry is wanted here, and no order is reached
CREATES = ("/v5/order/create", "/v5/order/create-batch")


class Stopwatch(Paper):
    """Moves symbols, stamps frames and orders."""

    args = None

    def __init__(self, *terms):
        super().__init__(*terms)
        self._moves, self._moved, self._minutes = [], {}, []
        self._call, self._step = self._venue._call, self._venue.step
        self._venue._call, self._venue.step = self._called, self._stepped
        self._task = None
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, self._begin)
        loop.add_signal_handler(signal.SIGUSR2, self._toggle)
        if self.args.calm:
            self._toggle()

    async def _socket(self, request):
        if self.args.rest and request.path == "/v5/trade":
            return web.Response(status=503)
        return await super()._socket(request)

    def _begin(self):
        self._task = self._task or asyncio.create_task(self._move_all())

    def _toggle(self):
        ticker = self._venue.ticker
        few = range(0, len(ticker.listings), self.args.calm)
        ticker.held ^= set(range(len(ticker.listings))) - set(few)

    async def _move_all(self):
        public = self._venue.public
        until_s = self.args.seconds + (next_s := time.monotonic())
        for number, symbol in zip(range(self.args.moves), cycle(public.symbols), strict=False):
            next_s += self.args.every
            await asyncio.sleep(max(0.0, next_s - time.monotonic()))
            self._move(number, symbol)
            asyncio.get_running_loop().call_later(HELD_S, self._release, symbol)
        await asyncio.sleep(max(3 * HELD_S, until_s - time.monotonic()))
        said = {"moves": self._moves, "minutes": self._minutes}
        self.args.out.with_suffix(".part").write_text(json.dumps(said))
        self.args.out.with_suffix(".part").rename(self.args.out)

    def _move(self, number, symbol):
        venue, now = self._venue, self.now()
        index = venue.public.index[symbol]
        rows = venue.ticker.bars(index, 0, now.market_ms, 8)[:0:-1]  # without the open one
        window = np.array([[float(value) for value in row[1:6]] for row in rows[-7:]])
        price = Decimal(f"{bands(window, Parameters()).lower.band * SLACK:.4f}")
        venue._now = now
        venue.ticker.held.add(index)
        venue._inject(symbol, price, Decimal(1), now, True)
        venue._flush(now)
        self._moved[symbol] = number
        self._moves.append([time.monotonic_ns(), 0])
        self.deliver()

    def _release(self, symbol):
        self._venue.ticker.held.discard(self._venue.public.index[symbol])
        self._moved.pop(symbol, None)

    def _called(self, route, params, *terms):
        now_ns = time.monotonic_ns()
        if route.path in CREATES:
            for order in params.get("request", [params]):
                number = self._moved.pop(order.get("symbol"), None)
                if number is not None:
                    self._moves[number][1] = now_ns
        return self._call(route, params, *terms)

    def _stepped(self, point, now):
        self._step(point, now)
        if point is None:
            self._minutes.append(time.monotonic_ns())


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.bench.exchange", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="where the stamps go")
    parser.add_argument("--moves", type=int, default=100, help="so many (100)")
    parser.add_argument("--every", type=float, default=0.125, help="seconds (0.125)")
    parser.add_argument("--seconds", type=float, default=0, help="at least so long (0)")
    parser.add_argument("--calm", type=int, default=0, help="one symbol in so many trades (all)")
    parser.add_argument("--rest", action="store_true", help="no trade socket: orders go by REST")
    Stopwatch.args = parser.parse_args()
    server.Paper = Stopwatch
    server.run()


if __name__ == "__main__":
    main()
