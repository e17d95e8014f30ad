"""What more symbols cost, and what happens while workers are replaced under load."""

import contextlib
import subprocess
import sys
import time
from collections import Counter, defaultdict

from shared import messages as msg
from shared.bus import Bus
from tests.bench.rig import rig
from tests.pipeline import ROOT, Pipeline

FRAMES = 2_000  # a second, however many symbols they are of
SYMBOLS = (50, 500, 2_000)
STEPS = (1, 4, 2)  # workers
SETTLE_S, TAIL_S = 10, 8


def cost(symbols, seconds):
    """CPU us of each process a kline, and its memory."""
    with rig(symbols, calm=False, PAPER_TICKS=FRAMES // symbols) as one:
        one.exchange()
        one.pipeline(shards=2)
        with contextlib.closing(one.listener("market")) as bus:
            before, first = one.used(), _klines(bus, 3)
            began = time.monotonic()
            time.sleep(seconds)
            last, after, took = _klines(bus, 3), one.used(), time.monotonic() - began + 3
    klines = last - first
    names = [name for name in after if name != "exchange"]
    each = {name: (after[name][0] - before[name][0]) / klines * 1e6 for name in names}
    found = {f"{name}_us_per_kline": round(value, 1) for name, value in each.items()}
    found |= {f"{name}_mb": round(after[name][1]) for name in names}
    total = {"all_us_per_kline": round(sum(each.values()), 1), "klines_per_s": round(klines / took)}
    return total | {"all_mb": round(sum(after[name][1] for name in names))} | found


def _klines(bus, seconds):
    """The ingestor's count of klines, by its last word."""
    until, count = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        for message, _ in bus.receive(100):
            if isinstance(message, msg.Health):
                count = message.counters["klines"]
    return count


def handover(ticks=2):
    """`make scale` from 1 to 4 to 2 workers while 500 symbols trade."""
    pipeline = Pipeline(PAPER_SYMBOLS=500, PAPER_TICKS=ticks, SHARDS=STEPS[0], PAPER_SPEED=6)
    try:
        up = pipeline.ops("up")
        assert up.returncode == 0, up.stdout + up.stderr
        hears = {"quotes": ("quote.",), "commands": ("orderrequest.",)}
        with contextlib.closing(Bus(pipeline.run_dir, hears=hears)) as bus:
            watch = Watch(bus)
            watch.listen(SETTLE_S)
            found = {}
            for count in STEPS[1:]:
                began = time.monotonic()
                command = [sys.executable, "-m", "services.ops", "scale", str(count)]
                with subprocess.Popen(command, cwd=ROOT, env=pipeline.env,
                                      stdout=subprocess.DEVNULL) as scale:  # fmt: skip
                    while scale.poll() is None:
                        watch.listen(0.1)
                found[f"to {count}: seconds"] = round(time.monotonic() - began, 1)
                found[f"to {count}: longest silence of a symbol, s"] = watch.silence()
                watch.listen(TAIL_S)
            return found | watch.verdict() | {"breaches": pipeline.control("GET", "/")["breaches"]}
    finally:
        pipeline.close()


class Watch:
    """Quotes and creates while workers come and go."""

    def __init__(self, bus):
        self._bus = bus
        self._last, self._worst = {}, 0.0
        self._bars, self._creates = defaultdict(set), Counter()

    def listen(self, seconds):
        """Take notes for so long."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            for message, _ in self._bus.receive(left * 1000):
                if isinstance(message, msg.OrderRequest):
                    created = message.action == "create" and not message.outcome
                    self._creates[message.order_link_id] += created
                    continue
                now_s = time.monotonic()
                self._worst = max(self._worst, now_s - self._last.get(message.symbol, now_s))
                self._last[message.symbol] = now_s
                self._bars[message.bar_start_ms].add(message.symbol)

    def silence(self):
        """The longest time for which a symbol had no quote, since it was asked last."""
        worst, self._worst = self._worst, 0.0
        return round(worst, 2)

    def verdict(self):
        """Bars that some symbol never quoted, and orders that were sent twice."""
        whole = sorted(self._bars)[1:-1]  # the ends were not heard from their beginning
        missed = sum(len(self._last) - len(self._bars[bar]) for bar in whole)
        doubled = sum(count > 1 for count in self._creates.values())
        return {"bars": len(whole) * len(self._last), "bars missed": missed,
                "orders": len(self._creates), "orders sent twice": doubled}  # fmt: skip
