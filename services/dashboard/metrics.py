"""metrics: the bot's state as Prometheus metrics. The one door to prometheus_client.

Computed when somebody asks, from what was heard last; only what came of orders is counted here.
No series is per symbol, so there are never many. Units are seconds, USDT and ratios.
"""

import re
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Decimal
from typing import NamedTuple

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from services.dashboard.watch import Watch
from shared import messages as msg

CONTENT_TYPE = CONTENT_TYPE_LATEST
UP_NS = 3_000_000_000  # every process speaks each second
GATES = ("volatility", "band", "warmup", "hole", "stale", "not_tradeable", "distance", "other")
ZONES = (msg.ARM, msg.HOLD, msg.NONE)
SIDES = ("Buy", "Sell")
ACTIONS = ("create", "amend", "cancel")
OUTCOMES = ("accepted", "refused", "unknown")
BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
NAME = re.compile(r"[a-z][a-z0-9_]{0,40}(?<!_pct)")
BUDGET = re.compile(r"budget_([a-z_]{1,20})_pct")  # of the router's counters
MOST = 32  # counters of one service
NO_SAMPLES: Mapping[tuple[str, ...], float] = {}


class Described(NamedTuple):
    """gauge, counter or histogram; what it means; its labels."""

    kind: str
    help: str
    labels: tuple[str, ...] = ()


def _gauge(text: str, *labels: str) -> Described:
    return Described("gauge", text, labels)


def _counter(text: str, *labels: str) -> Described:
    return Described("counter", text, labels)


BOT = {
    "dm_mode": _gauge("1 for the mode that holds, 0 for the others", "mode"),
    "dm_equity_usdt": _gauge("Equity of the account"),
    "dm_balance_usdt": _gauge("Wallet balance of the account"),
    "dm_available_usdt": _gauge("Balance that is free for orders"),
    "dm_open_lots": _gauge("Lots that are open"),
    "dm_slots_used": _gauge("Entries and lots that hold a slot"),
    "dm_slots_limit": _gauge("MAX_SLOTS"),
    "dm_symbols_used": _gauge("Symbols with an order, a lot or a foreign quantity"),
    "dm_symbols_limit": _gauge("MAX_SYMBOLS"),
    "dm_working_orders": _gauge("Our orders that have not ended", "kind"),
    "dm_exposure_usdt": _gauge("Cost of what the open lots still hold", "side"),
    "dm_foreign_symbols": _gauge("Symbols with a quantity that is not ours"),
    "dm_blocked_symbols": _gauge("Held symbols that take no entries, for a reason of their own"),
    "dm_differences": _gauge("Symbols in which the ledger and the exchange differ"),
    "dm_executions_total": _counter("Executions in the ledger"),
    "dm_realised_profit_usdt": _gauge("Profit of all closed lots, after fees"),
    "dm_fees_usdt": _gauge("Fees paid; less than 0 is a rebate"),
    "dm_funding_usdt": _gauge("Funding paid; less than 0 was received"),
    "dm_closed_lots_total": _counter("Lots that are closed"),
    "dm_won_lots_total": _counter("Closed lots with a profit"),
    "dm_drawdown_limit_ratio": _gauge("DRAWDOWN_PCT as a ratio; 0 is none"),
    "dm_daily_loss_limit_ratio": _gauge("DAILY_LOSS_PCT as a ratio; 0 is none"),
    "dm_order_rate_limit": _gauge("Orders a second that the exchange allows in one bucket"),
    "dm_order_budget_ratio": _gauge("Used now of what the exchange allows a second", "bucket"),
    "dm_zone_symbols": _gauge("Symbols by the zone of their quote", "zone"),
    "dm_gate_symbols": _gauge("Symbols without a quote by the reason", "gate"),
    "dm_orders_total": _counter("Commands by what came of them", "action", "outcome"),
    "dm_order_answer_seconds": Described(
        "histogram", "From the decision to the exchange's answer", ("action",)
    ),
}
"""What is of the bot as a whole."""

PROCESS = {
    "dm_process_up": _gauge("1 if it has spoken within 3 s", "process"),
    "dm_process_ready": _gauge("1 if it says that it is ready", "process"),
    "dm_process_inbox_messages": _gauge("Messages of its threads that wait", "process"),
    "dm_process_heard_seconds": _gauge("Since it has spoken", "process"),
    "dm_process_input_age_seconds": _gauge("Age of what it lives on", "process", "input"),
    "dm_process_stage_seconds": _gauge(
        "How long it handles one message: p50 and p99 of the last ones", "process", "quantile"
    ),
    "dm_process_pid": _gauge("Its process id: a change is a restart", "process"),
    "dm_process_info": _gauge("Always 1", "process", "version", "shard"),
}
"""What every process says of itself."""

COMMON = {
    "malformed": "Frames that were no messages",
    "inbox_dropped": "Messages that a full inbox did not take",
    "log_dropped": "Log lines that a full pipe did not take",
}
COUNTERS = {
    "ingestor": {
        "klines": "Pushes heard",
        "repeated": "Pushes that were old, or of no followed symbol",
        "absurd": "Pushes with a price that is not believed",
        "filled": "Closed bars that REST brought",
        "fetch_errors": "REST reads that failed",
        "silent": "1 if nothing at all is heard of the market",
    },
    "worker": {
        "bars": "Closed bars taken in",
        "arm": "Quotes said with zone ARM",
        "hold": "Quotes said with zone HOLD",
        "none": "Quotes said with zone NONE",
    },
    "router": {
        "accepted": "Commands that the exchange accepted",
        "refused": "Commands that were refused",
        "unknown": "Commands of which nobody knows what became of them",
        "held_back": "Commands that the order budget held back",
        "grants_refused": "Entries that the keeper did not grant",
        "absurd_quotes": "Quotes that are not believed",
        "leverage_errors": "Settings of leverage that failed",
    },
    "keeper": {
        "executions": "Executions in the ledger",
        "lots": "Lots that are open",
        "working_orders": "Our orders that have not ended",
        "differences": "Symbols in which the ledger and the exchange differ",
        "grants": "Entries granted",
        "refusals": "Entries not granted",
        "fetch_errors": "REST reads that failed",
    },
}
"""What the services count in their Health; `COMMON` by all of them."""
LEVELS = {
    ("ingestor", "silent"),
    ("keeper", "lots"),
    ("keeper", "working_orders"),
    ("keeper", "differences"),
}
"""Those of them that go down again."""


class Caps(NamedTuple):
    """Limits of the settings; percentages are percentages."""

    max_slots: int
    max_symbols: int
    drawdown_pct: float
    daily_loss_pct: float
    rate_limit: int


Trades = Mapping[str, Decimal | float]
"""Sums over the ledger: profit_usdt (after fees), fees_usdt, funding_usdt, closed_lots, won_lots.
What is not in it has no sample."""
Words = Mapping[str, tuple[int, msg.Health]]
Samples = defaultdict[str, dict[tuple[str, ...], float]]


class BotCollector(Collector):
    """Register it with a prometheus_client registry, and feed it each OrderRequest."""

    def __init__(
        self,
        watch: Watch,
        caps: Caps,
        now_ns: Callable[[], int],
        trades: Callable[[], Trades] = dict,
    ) -> None:
        self._watch, self._caps, self._now_ns, self._trades = watch, caps, now_ns, trades
        self._orders = Counter({(action, outcome): 0 for action in ACTIONS for outcome in OUTCOMES})
        self._buckets = {action: [0] * (len(BUCKETS_S) + 1) for action in ACTIONS}
        self._answered_ns = dict.fromkeys(ACTIONS, 0)
        self._rate_limit = caps.rate_limit

    def text(self) -> bytes:
        """All of it in Prometheus' text format, CONTENT_TYPE."""
        registry = CollectorRegistry()
        registry.register(self)
        return generate_latest(registry)

    def observe(self, request: msg.OrderRequest) -> None:
        """Once for each OrderRequest that says what came of a command; others count for nothing."""
        action, outcome = request.action, request.outcome
        if (action, outcome) not in self._orders:
            return
        self._orders[action, outcome] += 1
        self._rate_limit = request.rate_limit or self._rate_limit
        took_ns = request.answered_ns - request.decided_ns
        if request.answered_ns and request.decided_ns and took_ns >= 0:
            self._buckets[action][bisect_left(BUCKETS_S, took_ns / 1e9)] += 1
            self._answered_ns[action] += took_ns

    def describe(self) -> Iterable[Metric]:
        """Nothing is fixed before it was heard."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Every metric, with a sample for each thing that is known."""
        samples: Samples = defaultdict(dict)
        _of_account(samples, self._watch)
        _of_positions(samples, self._watch)
        _of_quotes(samples, self._watch.quotes)
        self._of_limits(samples)
        now_ns = self._now_ns()
        health = dict(self._watch.health)
        _of_budget(samples, health)
        described = {**BOT, **PROCESS, **_counted(samples, health)}
        _of_processes(samples, health, now_ns)
        for name, about in described.items():
            if about.kind == "histogram":
                yield self._histogram(name, about)
            else:
                yield _family(name, about, samples.get(name, NO_SAMPLES))

    def _of_limits(self, samples: Samples) -> None:
        caps = self._caps
        samples["dm_slots_limit"][()] = caps.max_slots
        samples["dm_symbols_limit"][()] = caps.max_symbols
        samples["dm_drawdown_limit_ratio"][()] = caps.drawdown_pct / 100
        samples["dm_daily_loss_limit_ratio"][()] = caps.daily_loss_pct / 100
        samples["dm_order_rate_limit"][()] = self._rate_limit
        samples["dm_orders_total"] = {pair: float(n) for pair, n in self._orders.items()}
        names = {
            "profit_usdt": "dm_realised_profit_usdt",
            "fees_usdt": "dm_fees_usdt",
            "funding_usdt": "dm_funding_usdt",
            "closed_lots": "dm_closed_lots_total",
            "won_lots": "dm_won_lots_total",
        }
        trades = self._trades()
        for key, name in names.items():
            if key in trades:
                samples[name][()] = float(trades[key])

    def _histogram(self, name: str, about: Described) -> Metric:
        family = HistogramMetricFamily(name, about.help, labels=about.labels)
        for action, counts in self._buckets.items():
            edges = (*map(str, BUCKETS_S), "+Inf")
            up_to = [(edge, sum(counts[: i + 1])) for i, edge in enumerate(edges)]
            family.add_metric([action], up_to, self._answered_ns[action] / 1e9)
        return family


def _family(name: str, about: Described, rows: Mapping[tuple[str, ...], float]) -> Metric:
    family: GaugeMetricFamily | CounterMetricFamily
    if about.kind == "gauge":
        family = GaugeMetricFamily(name, about.help, labels=about.labels)
    else:
        family = CounterMetricFamily(name, about.help, labels=about.labels)
    for labels, value in rows.items():
        family.add_metric(list(labels), value)
    return family


def _of_account(samples: Samples, watch: Watch) -> None:
    mode, wallet = watch.mode, watch.wallet
    if mode:
        samples["dm_mode"] = {(name,): float(name == mode.mode) for name in msg.MODES}
        samples["dm_slots_used"][()] = mode.slots
        samples["dm_symbols_used"][()] = len(mode.symbols)
        samples["dm_differences"][()] = mode.differences
    if wallet:
        samples["dm_equity_usdt"][()] = float(wallet.total_equity)
        samples["dm_balance_usdt"][()] = float(wallet.total_wallet_balance)
        samples["dm_available_usdt"][()] = float(wallet.total_available_balance)
    keeper = watch.health.get("keeper")
    if keeper:
        samples["dm_executions_total"][()] = keeper[1].counters.get("executions", 0)


def _of_positions(samples: Samples, watch: Watch) -> None:
    mode = watch.mode
    known = dict(watch.positions).values()
    positions = [p for p in known if mode is None or p.symbol in mode.symbols]
    lots = [lot for position in positions for lot in position.lots if not lot.closed_ms]
    held = dict.fromkeys(SIDES, 0.0)
    for lot in lots:
        if lot.bought:
            held[lot.side] += float(lot.entry_price * (lot.bought - lot.sold))
    orders = Counter(order.kind for position in positions for order in position.orders)
    kinds = (msg.ENTRY, msg.EXIT, msg.STOP)
    samples["dm_open_lots"][()] = len(lots)
    samples["dm_exposure_usdt"] = {(side,): usdt for side, usdt in held.items()}
    samples["dm_working_orders"] = {(kind,): float(orders[kind]) for kind in kinds}
    samples["dm_foreign_symbols"][()] = sum(bool(p.foreign_qty) for p in positions)
    samples["dm_blocked_symbols"][()] = sum(bool(p.no_entry) for p in positions)


def _of_budget(samples: Samples, health: Words) -> None:
    counters = health["router"][1].counters if "router" in health else {}
    for key, percent in counters.items():
        if found := BUDGET.fullmatch(key):
            samples["dm_order_budget_ratio"][(found[1],)] = percent / 100


def _of_quotes(samples: Samples, quotes: Mapping[str, msg.Quote]) -> None:
    said = list(dict(quotes).values())
    zones = Counter(quote.zone for quote in said)
    gates = Counter(_gate(quote) for quote in said if quote.zone == msg.NONE)
    samples["dm_zone_symbols"] = {(zone,): float(zones[zone]) for zone in ZONES}
    samples["dm_gate_symbols"] = {(gate,): float(gates[gate]) for gate in GATES}


def _gate(quote: msg.Quote) -> str:
    gate = quote.gate or "distance"
    return gate if gate in GATES else "other"


def _of_processes(samples: Samples, health: Words, now_ns: int) -> None:
    for name, (heard_ns, word) in health.items():
        age_ns = now_ns - heard_ns
        samples["dm_process_up"][name,] = float(age_ns <= UP_NS)
        samples["dm_process_ready"][name,] = float(word.ready)
        samples["dm_process_inbox_messages"][name,] = word.inbox
        samples["dm_process_heard_seconds"][name,] = age_ns / 1e9
        samples["dm_process_stage_seconds"][name, "0.5"] = word.p50_us / 1e6
        samples["dm_process_stage_seconds"][name, "0.99"] = word.p99_us / 1e6
        samples["dm_process_pid"][name,] = word.pid
        samples["dm_process_info"][name, word.version, word.shard] = 1
        for what, age_ms in sorted(word.ages_ms.items())[:MOST]:
            if age_ms >= 0:  # -1 is never
                samples["dm_process_input_age_seconds"][name, what] = age_ms / 1e3


def _counted(samples: Samples, health: Words) -> dict[str, Described]:
    """What the services count; those that are known are 0 until they are heard of."""
    described = {}
    for service, known in COUNTERS.items():
        words = {name: word for name, (_, word) in health.items() if word.service == service}
        heard = {key.lower() for word in words.values() for key in word.counters}
        new = sorted(key for key in heard - known.keys() - COMMON.keys() if NAME.fullmatch(key))
        texts = {**known, **COMMON, **dict.fromkeys(new[:MOST], "Counted by the service")}
        for key, text in texts.items():
            is_level = (service, key) in LEVELS
            name = f"dm_{service}_{key}" if is_level else f"dm_{service}_{key}_total"
            described[name] = Described("gauge" if is_level else "counter", text, ("process",))
            for process, word in words.items():
                counts = {k.lower(): count for k, count in word.counters.items()}
                samples[name][process,] = counts.get(key, 0)
    return described
