"""500 bars close in the same instant: how long until the last one's bands are known."""

import contextlib
import json
import statistics
import time
from collections import defaultdict
from itertools import pairwise

from shared import messages as msg
from tests.bench.rig import rig

SYMBOLS, SPEED = 500, 4  # a minute of the market takes 15 s
MINUTES = 4
SHARDS = (1, 2, 4)


def run(shards, minutes=MINUTES):
    """{metric: ms} of so many boundaries; `shards` 0 is the threaded design."""
    seconds = (minutes + 1) * 60 / SPEED
    with rig(SYMBOLS, PAPER_SPEED=SPEED) as one:
        one.exchange(seconds=seconds)
        if shards:
            one.pipeline(shards)
            with contextlib.closing(one.listener("quotes")) as bus:
                heard = _bars(one, bus, seconds)
        else:
            closes = one.folder / "closes.json"
            one.threaded(closes)
            stamps = one.stamps(seconds + 30)
            one.end("threaded")
            heard = _grouped(stamps["minutes"], json.loads(closes.read_text()))
        ends = json.loads(one.out.read_text())["minutes"]
    last = []
    for times in heard:
        began = max((end for end in ends if end <= max(times)), default=0)
        if len(times) == SYMBOLS and began:
            last.append((max(times) - began) / 1e6)
    return {"boundaries": len(last), "median_ms": round(statistics.median(last), 1),
            "worst_ms": round(max(last), 1)}  # fmt: skip


def _bars(one, bus, seconds):
    """When each bar was quoted first, by bar."""
    bars, until = defaultdict(dict), time.monotonic() + seconds + 10
    one.go()
    while time.monotonic() < until and not one.out.exists():
        for message, _ in bus.receive(100):
            if isinstance(message, msg.Quote):
                bars[message.bar_start_ms].setdefault(message.symbol, message.decided_ns)
    first = min(bars)
    return [list(times.values()) for bar, times in bars.items() if bar != first]


def _grouped(ends, closes):
    """When each bar's bands were known, by minute."""
    spans = pairwise([*ends, 2**63])
    return [times for a, b in spans if (times := [at for at in closes if a <= at < b])]
