"""A burst that is more than usual: is anything lost, and how soon is it as before."""

import contextlib
import statistics
import time

from shared import messages as msg
from tests.bench.rig import rig

TICKS, SYMBOLS = 40, 500  # 20,000 frames a second
USUAL_S, BURST_S, CALM_S = 5, 10, 2


def run():
    """{metric: value}; lag is from the ingestor's socket to a listener on the bus."""
    with rig(SYMBOLS, PAPER_TICKS=TICKS) as one:
        one.exchange(calm=TICKS)
        one.pipeline(shards=2)
        with contextlib.closing(one.listener("market")) as bus:
            first = _counts(bus)
            usual = _lags(bus, USUAL_S)
            one.burst()
            began_s = time.monotonic()
            busy = _lags(bus, BURST_S)
            one.burst()
            after = _lags(bus, CALM_S)
            took_s = time.monotonic() - began_s - CALM_S
            calm = _lags(bus, USUAL_S)
            last = _counts(bus)
    lost = {name: last[name] - first[name] for name in ("inbox_dropped", "malformed")}
    found = {"klines_per_s": round((len(busy) + len(after)) / took_s)}
    for name, lags in (("usual", usual), ("burst", busy), (f"{CALM_S} s after", calm)):
        found[f"lag {name} p50_ms"] = round(statistics.median(lags), 2)
        found[f"lag {name} p99_ms"] = round(sorted(lags)[int(0.99 * len(lags))], 2)
    missing = last["klines"] - first["klines"] - sum(map(len, (usual, busy, after, calm)))
    return found | lost | {"not heard": max(0, missing - len(calm))}


def _lags(bus, seconds):
    """Lags of all klines that are heard in so many seconds, in ms."""
    lags, until = [], time.monotonic() + seconds
    while (left_s := until - time.monotonic()) > 0:
        for message, _ in bus.receive(left_s * 1_000):
            if isinstance(message, msg.Kline):
                lags.append((time.monotonic_ns() - message.recv_ns) / 1e6)
    return lags


def _counts(bus):
    """The ingestor's counters, by its next word."""
    while True:
        for message, _ in bus.receive(1_000):
            if isinstance(message, msg.Health):
                return message.counters
