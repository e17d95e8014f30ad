"""A burst: is anything lost, how soon is it as before, and do exits leave meanwhile."""

import contextlib
import statistics
import time

from shared import messages as msg
from tests.bench.rig import rig

TICKS, SYMBOLS = 40, 500  # 20,000 frames a second
EXIT_TICKS, EXITS_S = 20, 60  # 20 times the usual, on a market that moves
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


def exits():
    """{metric: value}: from the fill of an entry that the keeper hears to its exit."""
    filled_ns, found = {}, {"sent": {}, "answered": {}}
    with rig(SYMBOLS, calm=False, PAPER_TICKS=EXIT_TICKS) as one:
        one.exchange()
        one.pipeline(shards=2)
        with contextlib.closing(one.listener("commands", "account")) as bus:
            until = time.monotonic() + EXITS_S
            while (left_s := until - time.monotonic()) > 0:
                for message, _ in bus.receive(left_s * 1_000):
                    entry = isinstance(message, msg.Execution) and msg.parse_id(
                        message.order_link_id
                    )
                    if entry and entry[1] is None:
                        filled_ns.setdefault(msg.exit_id(message.order_link_id, 0), message.recv_ns)
                    elif isinstance(message, msg.OrderRequest) and message.action == "create":
                        sent = message.decided_ns, "sent"
                        at_ns, stage = (
                            (message.answered_ns, "answered") if message.outcome else sent
                        )
                        found[stage].setdefault(message.order_link_id, at_ns)
    result = {"entries filled": len(filled_ns)}
    result["without an exit"] = len(filled_ns.keys() - found["sent"].keys())
    for stage, at_ns in found.items():
        if times := [
            (at_ns[name] - filled_ns[name]) / 1e6 for name in at_ns.keys() & filled_ns.keys()
        ]:
            result[f"fill to exit {stage} p50_ms"] = round(statistics.median(times), 1)
            result[f"fill to exit {stage} worst_ms"] = round(max(times), 1)
    return result


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
