"""From the frame that crosses a threshold to the order that it causes, stamped by the exchange.

The bot and the threaded design see the same frames of the same market; orders go by the trade
socket or by REST. The bot's own messages say where the time went.
"""

import contextlib
import statistics
import threading
from typing import NamedTuple

from shared import messages as msg
from tests.bench.rig import rig

TICKS = {500: 1, 5_000: 10, 20_000: 40}  # points a second of each of 500 symbols
SHARDS = 2
EVERY_S = 0.125
GRACE_S = 60


ACCELERATED = "threaded with wsaccel"


class Case(NamedTuple):
    """One run."""

    design: str  # threaded, threaded with wsaccel, or pipeline
    orders: str  # REST or socket
    frames: int  # a second


CASES = [
    Case(design, orders, frames)
    for frames in TICKS
    for design, orders in (
        *(("threaded", "REST"), (ACCELERATED, "REST")),
        *(("pipeline", "REST"), ("pipeline", "socket")),
    )
]


def quantile(values, share):
    """The value that so large a share of them does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def run(case, seconds):
    """{metric: value} of one case; times in us."""
    moves = int(seconds / EVERY_S)
    with rig(PAPER_TICKS=TICKS[case.frames]) as one:
        one.exchange(moves, EVERY_S, rest=case.orders == "REST")
        if case.design != "pipeline":
            one.threaded(accelerated=case.design == ACCELERATED)
            before = one.used()
            stamps, heard = one.stamps(seconds + GRACE_S), Heard()
        else:
            one.pipeline(SHARDS)
            before = one.used()
            with Heard.of(one) as heard:
                stamps = one.stamps(seconds + GRACE_S)
        after = one.used()
        cpu_s = sum(after[name][0] - before[name][0] for name in after if name != "exchange")
    found = [(arrived - left) / 1_000 for left, arrived in stamps["moves"] if arrived]
    lasted = (stamps["moves"][-1][0] - stamps["moves"][0][0]) / 1e9 + 3
    result = {"moves": moves, "missed": moves - len(found)}
    if found:
        result |= {f"p{100 * q:g}_us": round(quantile(found, q)) for q in (0.5, 0.99, 0.999)}
    result["cpu_us_per_frame"] = round(cpu_s / lasted / case.frames * 1e6, 1)
    return result | heard.stages(stamps["moves"])


class Heard:
    """Armed quotes and creates of the bot, while it runs."""

    def __init__(self):
        self.quotes, self.creates, self.answers = {}, {}, {}
        self._over = threading.Event()

    @classmethod
    @contextlib.contextmanager
    def of(cls, one):
        """Listens in a thread of its own."""
        heard = cls()
        bus = one.listener("quotes", "commands")
        thread = threading.Thread(target=heard._listen, args=(bus,))
        thread.start()
        try:
            yield heard
        finally:
            heard._over.set()
            thread.join()
            bus.close()

    def _listen(self, bus):
        while not self._over.is_set():
            for message, _ in bus.receive(100):
                if isinstance(message, msg.Quote) and message.zone == msg.ARM:
                    self.quotes.setdefault((message.symbol, message.recv_ns), message)
                elif isinstance(message, msg.OrderRequest) and message.action == "create":
                    kept = self.answers if message.outcome else self.creates
                    kept[message.order_link_id] = message

    def stages(self, moves):
        """Medians and 99th percentiles in us of each stage of the creates whose frame is known."""
        stages = {"in": [], "decide": [], "grant": [], "out": []}
        creates = sorted(self.creates.values(), key=lambda create: create.decided_ns)
        for left_ns, arrived_ns in moves:
            create = next((c for c in creates if left_ns <= c.recv_ns and c.decided_ns <= arrived_ns
                           and (c.symbol, c.recv_ns) in self.quotes
                           and arrived_ns - c.decided_ns < 10**9), None)  # fmt: skip
            if create is None:
                continue
            creates.remove(create)
            decided_ns = self.quotes[create.symbol, create.recv_ns].decided_ns
            stages["in"].append(create.recv_ns - left_ns)
            stages["decide"].append(decided_ns - create.recv_ns)
            stages["grant"].append(create.decided_ns - decided_ns)
            stages["out"].append(arrived_ns - create.decided_ns)
        found = {}
        for name, values in stages.items():
            if values:
                found[f"{name}_p50_us"] = round(statistics.median(values) / 1_000)
                found[f"{name}_p99_us"] = round(quantile(values, 0.99) / 1_000)
        return found
