"""The bot's state as Prometheus metrics: the numbers are the messages', the names are everywhere
the same, and what is drawn and alarmed on exists."""

import json
import re
from decimal import Decimal

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from services.dashboard.metrics import (
    BUCKETS_S,
    COMMON,
    COUNTERS,
    LEVELS,
    BotCollector,
    Caps,
)
from shared import messages as msg
from tests.pipeline import ROOT

NS = 1_000_000_000
NOW_NS = 1_000 * NS
CAPS = Caps(100, 50, 8.0, 3.0, 10)
ONE, ZERO = Decimal(1), Decimal(0)
GRAFANA = json.loads((ROOT / "deploy/grafana.json").read_text())
ALERTS = yaml.safe_load((ROOT / "deploy/alerts.yml").read_text())
DOCS = (ROOT / "docs/metrics.md").read_text()
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
PANELS = [panel for panel in GRAFANA["panels"] if panel["type"] != "row"]
DRAWN = [target["expr"] for panel in PANELS for target in panel["targets"]]
ALARMED = [rule["expr"] for rule in RULES]


class Watch:
    def __init__(self):
        self.health, self.mode, self.wallet = {}, None, None
        self.positions, self.quotes = {}, {}


def word(service, slot=0, shard="", ready=True, inbox=0, counters=None, ages=None):
    numbers = (counters or {}, ages or {}, 2_500, 40_000)
    return msg.Health(service, slot, 4242, ready, "", shard, inbox, *numbers, "0.1.0")


def full():
    """Everything that can be known."""
    watch = Watch()
    watch.health = {
        "ingestor": (NOW_NS, word("ingestor", counters={"klines": 7, "silent": 1})),
        "keeper": (NOW_NS, word("keeper", counters={"executions": 9, "lots": 2})),
        "router": (
            NOW_NS - 4 * NS,
            word(
                *("router", 0, "", False, 3),
                *({"accepted": 5, "budget_create_batch_pct": 40}, {"account": 250}),
            ),
        ),
        "worker-0": (NOW_NS, word("worker", 0, "0/1", counters={"ARM": 6}, ages={"feed": -1})),
    }
    watch.mode = msg.Mode(("led", 1), "NO_ENTRY", "why", ("BTCUSDT", "ETHUSDT"), 4, 1)
    watch.wallet = msg.Wallet(Decimal("1010.5"), Decimal("1000.25"), Decimal("900"))
    head = ("dm-BTCUSDT-1-B", "BTCUSDT", "Buy", Decimal(4), Decimal(400), ONE, Decimal(101))
    lot = msg.Lot(*head, ZERO, ZERO, 0, ONE, 0, 1)  # bought 4 for 400, sold 1: 300 left
    rest = ("", "BTCUSDT", "Buy")
    order = msg.Order("dm-BTCUSDT-1-Bx0", *rest, msg.EXIT, ONE, ONE, ZERO, "New", 0, ONE, 0)
    watch.positions = {
        "BTCUSDT": msg.Position("BTCUSDT", ("led", 1), (lot,), (order,)),
        "ETHUSDT": msg.Position("ETHUSDT", ("led", 1), (), (), ONE, "foreign"),
        "GONEUSDT": msg.Position("GONEUSDT", ("led", 0), (lot,), (order,)),
    }
    zones = (("A", "ARM", ""), ("B", "NONE", "stale"), ("C", "NONE", ""), ("D", "NONE", "odd"))
    watch.quotes = {name: quote(name, zone, gate) for name, zone, gate in zones}
    return watch


def quote(symbol, zone, gate):
    return msg.Quote(symbol, "Buy", 1.0, zone, gate, *[1.0] * 6, 0, 0, 0, 0)


def request(action="create", outcome="accepted", took_ns=0, rate_limit=0):
    head = ("dm-BTCUSDT-1-B", 1, action, "BTCUSDT", "Buy", ONE, ONE, "PostOnly", False)
    answered_ns = NS + took_ns if took_ns else 0
    return msg.OrderRequest(*head, 0, NS, outcome, 0, "", answered_ns, rate_limit)


TRADES = {
    "profit_usdt": Decimal("1.5"),
    "fees_usdt": Decimal("0.25"),
    "funding_usdt": Decimal("-0.1"),
    "closed_lots": 7,
    "won_lots": 5,
}


def collector_of(watch, trades=None):
    return BotCollector(watch, CAPS, lambda: NOW_NS, lambda: TRADES if trades is None else trades)


def scraped(collector):
    """{(sample name, labels): value} of what a scrape reads."""
    registry = CollectorRegistry()
    registry.register(collector)
    families = text_string_to_metric_families(generate_latest(registry).decode())
    rows = [sample for family in families for sample in family.samples]
    found = {(row.name, tuple(sorted(row.labels.items()))): row.value for row in rows}
    assert len(found) == len(rows), "no series twice"
    return found


def names_of(samples):
    return {re.sub("_(bucket|sum|count)$", "", name) for name, _ in samples}


def named(text):
    found = re.findall(r"\bdm_[a-z0-9_]+", text)
    return {re.sub("_bucket$", "", name) for name in found if not name.endswith("_")}


def test_values_are_the_messages():
    got = scraped(collector_of(full()))

    def value(name, **labels):
        return got[name, tuple(sorted(labels.items()))]

    assert [value("dm_mode", mode=mode) for mode in msg.MODES] == [0, 1, 0, 0, 0]
    assert (value("dm_equity_usdt"), value("dm_balance_usdt")) == (1010.5, 1000.25)
    assert value("dm_available_usdt") == 900
    assert (value("dm_slots_used"), value("dm_slots_limit")) == (4, 100)
    assert (value("dm_symbols_used"), value("dm_symbols_limit")) == (2, 50)
    assert value("dm_open_lots") == 1, "what Mode does not list is empty"
    assert value("dm_exposure_usdt", side="Buy") == 300
    assert value("dm_exposure_usdt", side="Sell") == 0
    assert value("dm_working_orders", kind="exit") == 1
    assert value("dm_working_orders", kind="entry") == 0
    assert (value("dm_foreign_symbols"), value("dm_blocked_symbols")) == (1, 1)
    assert (value("dm_differences"), value("dm_executions_total")) == (1, 9)
    assert (value("dm_drawdown_limit_ratio"), value("dm_daily_loss_limit_ratio")) == (0.08, 0.03)
    assert value("dm_realised_profit_usdt") == 1.5
    assert (value("dm_fees_usdt"), value("dm_funding_usdt")) == (0.25, -0.1)
    assert (value("dm_closed_lots_total"), value("dm_won_lots_total")) == (7, 5)
    assert [value("dm_zone_symbols", zone=zone) for zone in ("ARM", "HOLD", "NONE")] == [1, 0, 3]
    gates = {gate: value("dm_gate_symbols", gate=gate) for gate in ("stale", "distance", "other")}
    assert gates == {"stale": 1, "distance": 1, "other": 1}
    assert value("dm_ingestor_klines_total", process="ingestor") == 7
    assert value("dm_ingestor_silent", process="ingestor") == 1
    assert value("dm_ingestor_repeated_total", process="ingestor") == 0, "0 until it is counted"
    assert value("dm_keeper_lots", process="keeper") == 2
    assert value("dm_router_accepted_total", process="router") == 5
    assert value("dm_worker_arm_total", process="worker-0") == 6


def test_each_process_says_how_it_is():
    got = scraped(collector_of(full()))
    router = (("process", "router"),)
    assert got["dm_process_up", router] == 0, "heard 4 s ago"
    assert got["dm_process_up", (("process", "keeper"),)] == 1
    assert got["dm_process_heard_seconds", router] == 4
    assert got["dm_process_ready", router] == 0
    assert got["dm_process_inbox_messages", router] == 3
    assert got["dm_process_pid", router] == 4242
    assert got["dm_process_stage_seconds", (*router, ("quantile", "0.5"))] == 0.0025
    assert got["dm_process_stage_seconds", (*router, ("quantile", "0.99"))] == 0.04
    assert got["dm_process_input_age_seconds", (("input", "account"), *router)] == 0.25
    never = ("dm_process_input_age_seconds", (("input", "feed"), ("process", "worker-0")))
    assert never not in got, "-1 is never"
    info = (("process", "worker-0"), ("shard", "0/1"), ("version", "0.1.0"))
    assert got["dm_process_info", info] == 1


def test_nothing_heard_is_no_error_and_no_invention():
    got = scraped(collector_of(Watch(), trades={}))
    names = names_of(got)
    assert not names & {"dm_mode", "dm_equity_usdt", "dm_process_up", "dm_realised_profit_usdt"}
    assert got["dm_slots_limit", ()] == 100


def test_what_came_of_orders_is_counted_with_the_time_it_took():
    collector = collector_of(Watch())
    for took_ns in (400_000, 500_000, 3_000_000, 9 * NS):
        collector.observe(request(took_ns=took_ns, rate_limit=20))
    collector.observe(request(outcome="unknown"))
    collector.observe(request(outcome=""))  # is only about to be sent
    collector.observe(request(action="odd"))
    got = scraped(collector)

    def orders(action, outcome):
        return got["dm_orders_total", (("action", action), ("outcome", outcome))]

    assert orders("create", "accepted") == 4
    assert (orders("create", "unknown"), orders("amend", "refused")) == (1, 0)
    assert sum(n for (name, _), n in got.items() if name == "dm_orders_total") == 5
    create = ("action", "create")
    up_to = {
        dict(labels)["le"]: n
        for (name, labels), n in got.items()
        if name == "dm_order_answer_seconds_bucket" and create in labels
    }
    assert (up_to["0.0005"], up_to["0.001"], up_to["0.005"]) == (2, 2, 3)
    assert (up_to["2.5"], up_to["+Inf"]) == (3, 4)
    assert len(up_to) == len(BUCKETS_S) + 1
    assert got["dm_order_answer_seconds_count", (create,)] == 4
    assert got["dm_order_answer_seconds_sum", (create,)] == pytest.approx(9.0039)
    assert got["dm_order_rate_limit", ()] == 20, "as the exchange said"


def test_a_new_counter_appears_by_itself_and_no_name_breaks_the_text():
    watch = full()
    odd = {"fresh": 3, "no name at all\n": 1, "": 2, **{f"many{n}": n for n in range(1000)}}
    watch.health["router"] = (NOW_NS, word("router", counters=odd))
    got = scraped(collector_of(watch))
    assert got["dm_router_fresh_total", (("process", "router"),)] == 3
    assert len(got) < 400


def test_there_are_no_series_per_symbol():
    watch = full()
    before = len(scraped(collector_of(watch)))
    for number in range(500):
        name = f"S{number}USDT"
        watch.quotes[name] = quote(name, "ARM", "")
        watch.positions[name] = msg.Position(name, ("led", 1), (), ())
    assert len(scraped(collector_of(watch))) == before < 200


def test_every_counter_of_the_services_is_known():
    for service, known in COUNTERS.items():
        texts = [path.read_text() for path in (ROOT / "services" / service).glob("*.py")]
        found = {name for text in texts for name in re.findall(r'counters\["(\w+)"\]', text)}
        more = {"router": {"accepted", "refused"}, "worker": {"arm", "hold", "none"}}
        assert found | more.get(service, set()) == known.keys()
    loop = (ROOT / "shared/actor.py").read_text()
    lost = loop.split("lost = ")[1].split("return Health")[0]
    assert set(re.findall(r'"(\w+)"', lost)) == COMMON.keys()
    assert all(name in COUNTERS[service] for service, name in LEVELS)


def test_one_name_in_the_output_the_dashboard_the_rules_and_the_page():
    watch = full()
    watch.health["worker-0"] = (NOW_NS, word("worker", 0, "0/1", ages={"feed": 100}))
    out = names_of(scraped(collector_of(watch)))
    rows = set(re.findall(r"^\| `(dm_[a-z0-9_]+)` \|", DOCS, re.MULTILINE))
    assert rows == out
    assert named(DOCS) == out
    assert set().union(*map(named, DRAWN)) == out, "everything is drawn"
    assert set().union(*map(named, ALARMED)) <= out
    for name in out:
        assert re.fullmatch(r"dm_[a-z0-9]+(_[a-z0-9]+)*", name)


def test_labels_and_their_values_exist_too():
    watch = full()
    watch.health["worker-0"] = (NOW_NS, word("worker", 0, "0/1", ages={"feed": 100}))
    watch.health["ingestor"] = (NOW_NS, word("ingestor", ages={"feed": 100}))
    got = scraped(collector_of(watch))
    used = [found for expr in (*DRAWN, *ALARMED) for found in selectors(expr)]
    assert len(used) > 10
    for name, matchers in used:
        labels = [dict(pairs) for sample, pairs in got if sample.startswith(name)]
        for label, regex, value in matchers:
            pattern = value if regex == "=~" else re.escape(value)
            assert any(re.fullmatch(pattern, row.get(label, "")) for row in labels), (name, label)
    for expr in (*DRAWN, *ALARMED):
        assert expr.count("(") == expr.count(")")
        assert expr.count("[") == expr.count("]")


def selectors(expr):
    """(metric, [(label, = or =~, value)]) of each `dm_x{...}`."""
    for name, inside in re.findall(r"(dm_[a-z0-9_]+)\{([^}]*)\}", expr):
        yield name, re.findall(r'(\w+)\s*(=~|=)\s*"([^"]*)"', inside)


def test_the_dashboard_imports_with_any_data_source():
    [variable] = GRAFANA["templating"]["list"]
    assert (variable["type"], variable["query"]) == ("datasource", "prometheus")
    ids = [panel["id"] for panel in GRAFANA["panels"]]
    assert len(ids) == len(set(ids))
    taken = set()
    for panel in GRAFANA["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + i, at["y"] + j) for i in range(at["w"]) for j in range(at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    for panel in PANELS:
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["title"] and panel["targets"]


def test_every_rule_says_what_and_how_urgent():
    names = [rule["alert"] for rule in RULES]
    assert len(names) == len(set(names))
    for rule in RULES:
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"]
        assert re.fullmatch(r"\d+[smh]", rule.get("for", "0s"))


def test_the_scrape_example_is_yaml_without_a_secret():
    [job] = yaml.safe_load((ROOT / "deploy/prometheus.yml").read_text())["scrape_configs"]
    assert job["metrics_path"] == "/metrics"
    assert set(job["authorization"]) == {"type", "credentials_file"}
    assert f'job="{job["job_name"]}"' in ALARMED[0]
