"""News: what people are told of, how often, and that nothing of it gets lost."""

from collections import Counter, deque
from decimal import Decimal
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.notifier.desk import HOUR_NS, HOURLY, KINDS, MINUTE_NS, SPARE, Desk, Event
from services.notifier.fills import Day, Mark, Recent, daily
from services.notifier.news import DAY_MS, News, Terms
from services.notifier.presence import LOOP_COUNT
from services.notifier.redact import redacted, secrets_of
from shared import messages as msg

NS = 1_000_000_000
NOON_MS = 1_767_268_800_000  # 2026-01-01 12:00 UTC
SYMBOLS = ("BTCUSDT", "ETHUSDT", "SOLUSDT")
NO_DAY = Day(0, Decimal(0), Decimal(0), (), None, False)


class Shelf:
    """The ledger as lists of executions and closed lots; what comes twice is in them once."""

    def __init__(self, day=NO_DAY):
        self.executions, self.lots, self.reported, self.asked = [], [], day, []
        self.readable = True

    def put(self, *facts):
        for fact in facts:
            found = self.executions if isinstance(fact, msg.Execution) else self.lots
            if fact not in found:
                found.append(fact)

    def since(self, mark):
        now = Mark("led", len(self.executions), len(self.lots))
        _, execution, lot = mark or now
        found = Recent(now, tuple(self.executions[execution:]), tuple(self.lots[lot:]))
        return found if self.readable else None

    def day(self, since_ms, until_ms):
        self.asked.append((since_ms, until_ms))
        return self.reported if self.readable else None


class Life:
    """News that looks each second; what it has told."""

    def __init__(self, books=None, minutes=15, hour=0, wall_ms=NOON_MS):
        self.now_ns, self.wall_ms, self.told, self.heard = NS, wall_ms, [], Counter()
        self.news = News(Terms(minutes, hour), books or Shelf(), self.now_ns, wall_ms)
        self.alive = {"ingestor": 1, "keeper": 2, "router": 3}

    def hear(self, *messages):
        for message in messages:
            self.news.hear(message, self.now_ns, self.wall_ms)

    def go(self, seconds):
        """What is told in so many seconds."""
        before = len(self.told)
        for _ in range(seconds):
            self.now_ns, self.wall_ms = self.now_ns + NS, self.wall_ms + 1000
            self.hear(*(word(name, pid) for name, pid in self.alive.items()))
            new = self.news.tick(self.now_ns, self.wall_ms)
            self.told += [(self.now_ns, notice) for notice in new]
        return [notice for _, notice in self.told[before:]]

    def kinds(self, seconds):
        return [notice.kind for notice in self.go(seconds)]


def word(name, pid, shard=""):
    service, _, slot = name.partition("-")
    return msg.Health(service, int(slot or 0), pid, True, "", shard, 0, {}, {}, 0, 0, "")


def mode(name, reason="", differences=0):
    return msg.Mode(("led", 1), name, reason, (), 0, differences)


def fill(number, symbol="BTCUSDT", order="dm-BTCUSDT-1a-B", price=100, qty="0.5", fee="0.01"):
    money = (Decimal(price), Decimal(qty), Decimal(fee))
    return msg.Execution(f"e-{number}", order, "", symbol, "Buy", "Trade", *money, True, 1)


def lot(entry, cost, proceeds, fees="0.1", side="Buy", symbol="BTCUSDT"):
    one, sums = Decimal(1), (Decimal(cost), Decimal(1), Decimal(proceeds), Decimal(fees))
    return msg.Lot(entry, symbol, side, one, *sums, one, 1, one, 0, 0, 1)


# Fills.


def test_a_digest_tells_of_all_fills_by_symbol_with_what_closed_lots_brought():
    entry, other = "dm-BTCUSDT-1a-B", "dm-ETHUSDT-1b-S"
    books = Shelf()
    life = Life(books)
    books.put(
        lot(entry, "100", "102"),
        lot(other, "50", "49", side="Sell", symbol="ETHUSDT"),
        fill(1, order=entry),
        fill(2, order=f"{entry}x0"),
        fill(3, "ETHUSDT", "", price=30, fee="-0.002"),  # a stop loss has no id of ours
        fill(4)._replace(exec_type="Funding", exec_fee=Decimal("0.3")),
    )
    [notice] = life.go(900)
    assert (notice.kind, notice.title, notice.happened) == ("fills", "3 fills in 2 symbols", 3)
    # 102 - 100 - 0.1 = 1.9 and 50 - 49 - 0.1 = 0.9; 100 * 0.5 * 2 + 30 * 0.5 = 115
    assert notice.body.splitlines() == [
        "115.00 USDT traded, fees 0.0180 USDT, funding paid 0.3000 USDT, "
        "realised +2.8000 USDT on 2 closed lots",
        "BTCUSDT: 2 fills, 100.00 USDT, fees 0.0200 USDT, realised +1.9000 USDT",
        "ETHUSDT: 1 fill, 15.00 USDT, fees -0.0020 USDT, realised +0.9000 USDT",
    ]
    assert life.go(3600) == [], "no fills, no digest"


def test_profit_is_told_once_whatever_closed_the_lot():
    books = Shelf()
    books.put(lot("dm-BTCUSDT-19-B", "100", "900"), fill(0))
    life = Life(books, minutes=1)
    assert life.go(60) == [], "what was there at the start is no news"
    books.put(fill(1))
    [first] = life.go(60)
    assert "realised" not in first.body
    books.put(lot("dm-BTCUSDT-1a-B", "100", "102"))
    [second] = life.go(60)
    assert second.body.count("realised +1.9000 USDT") == 2, "in the sum, and at its symbol"
    books.put(fill(2, "ETHUSDT"))
    [third] = life.go(60)
    assert "realised" not in third.body


def test_funding_alone_waits_for_the_next_fill():
    books = Shelf()
    life = Life(books, minutes=1)
    books.put(fill(1)._replace(exec_type="Funding", exec_fee=Decimal("0.3")))
    assert life.go(300) == []
    books.put(fill(2))
    [notice] = life.go(60)
    assert (notice.happened, "funding paid 0.3000 USDT" in notice.body) == (1, True)
    books.put(fill(3))
    assert "funding" not in life.go(60)[0].body


def test_a_digest_that_was_due_while_the_ledger_could_not_be_read_is_told_later():
    books = Shelf()
    life = Life(books)
    books.put(fill(1))
    books.readable = False
    assert life.go(1000) == []
    books.put(fill(2), lot("dm-BTCUSDT-1a-B", "100", "102"))
    books.readable = True
    [notice] = life.go(60)
    assert (notice.happened, notice.body.count("realised +1.9000 USDT")) == (2, 2)
    assert life.go(3600) == []


def test_a_ledger_that_cannot_be_read_at_the_start_begins_where_it_is_read_first():
    books = Shelf()
    books.put(fill(1))
    books.readable = False
    life = Life(books, minutes=1)
    books.readable = True
    assert life.go(60) == []
    books.put(fill(2))
    assert [notice.happened for notice in life.go(60)] == [1]


def test_a_digest_of_many_symbols_is_short():
    books = Shelf()
    life = Life(books)
    books.put(*(fill(number, f"S{number}USDT") for number in range(600)))
    [notice] = life.go(900)
    assert (notice.happened, len(notice.body.splitlines())) == (600, 12)
    assert notice.body.endswith("and 590 more symbols")


# Modes.


def test_a_mode_that_entries_do_not_survive_is_told_at_once_and_so_is_its_end():
    life = Life()
    life.hear(mode("RUN"))
    assert life.go(5) == []
    life.hear(mode("REDUCE_ONLY", "operator"))
    [notice] = life.go(1)
    assert (notice.kind, notice.title, notice.urgent) == ("mode", "REDUCE_ONLY: operator", False)
    assert notice.body == "12:00:05 RUN -> REDUCE_ONLY: operator"
    life.hear(mode("REDUCE_ONLY", "operator"))
    assert life.go(100) == []
    life.hear(mode("RUN"))
    [notice] = life.go(1)
    assert notice.title == "RUN"


@pytest.mark.parametrize(
    "said",
    [
        mode("CANCEL_ALL", "slots 101 of 100"),
        mode("FLATTEN", "drawdown 8.10 % from 1000"),
        mode("REDUCE_ONLY", "daily loss over 3 %"),
    ],
)
def test_breaches_are_urgent(said):
    life = Life()
    life.hear(mode("RUN"), said)
    [notice] = life.go(1)
    assert (notice.kind, notice.urgent) == ("breach", True)
    assert said.reason in notice.title


def test_no_entry_that_comes_and_goes_is_told_once_and_when_it_is_over():
    life = Life()
    life.hear(mode("RUN"))
    told = []
    for _ in range(20):
        life.hear(mode("NO_ENTRY", "market data lost"))
        told += life.go(10)
        life.hear(mode("RUN"))
        told += life.go(10)
    assert [notice.title for notice in told] == ["NO_ENTRY: market data lost"]
    [end] = life.go(120)
    assert "RUN after 6 min of NO_ENTRY, which came 20 times" in end.body
    assert (told[0].happened, end.happened) == (1, 39)
    assert life.go(3600) == []


def test_no_entry_that_lasts_is_told_again_once():
    life = Life()
    life.hear(mode("RUN"))
    life.hear(mode("NO_ENTRY", "private stream lost"))
    assert len(life.go(299)) == 1
    life.hear(mode("NO_ENTRY", "market data lost"))
    assert [n.title for n in life.go(3600)] == ["NO_ENTRY for 5 min: market data lost"]


def test_the_no_entry_of_a_start_is_told_only_by_its_end():
    life = Life()
    life.hear(mode("NO_ENTRY", "private stream lost"))
    assert life.go(5) == []
    life.hear(mode("RUN"))
    [notice] = life.go(120)
    assert "RUN after 5 s of NO_ENTRY" in notice.body


# Processes.


def test_a_restart_and_a_silence_are_told():
    life = Life()
    assert life.go(100) == []
    life.alive["router"] = 33
    [notice] = life.go(1)
    assert (notice.kind, notice.title) == ("restart", "router-0 was restarted")
    assert "pid 3 -> 33" in notice.body
    del life.alive["router"]
    [notice] = life.go(16)
    assert (notice.kind, notice.urgent) == ("silence", True)
    assert notice.title == "router-0 has said nothing for 16 s"
    assert life.go(100) == [], "once"
    life.alive["router"] = 33
    assert [n.title for n in life.go(1)] == ["router-0 speaks again, after 117 s"]


def test_fifteen_seconds_of_silence_are_none_yet():
    life = Life()
    life.go(10)
    pid = life.alive.pop("keeper")
    assert life.go(15) == []
    life.alive["keeper"] = pid
    assert life.go(100) == []


def test_who_never_begins_is_told_of():
    life = Life()
    del life.alive["keeper"]
    assert life.go(60) == []
    assert [n.title for n in life.go(60)] == ["keeper-0 has not begun"]


def test_a_crash_loop_is_told():
    life = Life()
    life.go(100)
    kinds = []
    for number in range(LOOP_COUNT):
        life.alive["router"] = 100 + number
        kinds += life.kinds(5)
    assert kinds == ["restart", "crash_loop"]
    [notice] = [n for n in life.go(60) if n.kind == "restart"]
    assert notice.happened == LOOP_COUNT - 1
    slow = Life()
    for number in range(20):
        slow.alive["router"] = 100 + number
        assert "crash_loop" not in slow.kinds(20)


def test_workers_that_others_have_replaced_are_not_missed():
    life, shards = Life(), {"worker-0": "0/2", "worker-1": "1/2", "worker-2": "0/1"}

    def go(seconds, names):
        found = []
        for _ in range(seconds):
            life.hear(*(word(name, 50, shards[name]) for name in names))
            found += life.go(1)
        return found

    assert go(30, ["worker-0", "worker-1"]) == []
    assert go(5, ["worker-0", "worker-1", "worker-2"]) == []
    assert go(60, ["worker-2"]) == [], "2 -> 1 shards"
    assert [n.title for n in go(30, [])] == ["worker-2 has said nothing for 16 s"]


def test_our_own_sleep_is_nobodys_silence():
    life = Life()
    life.go(10)
    life.now_ns += 3_600 * NS
    assert life.go(10) == []


# Differences, and the day.


def test_differences_are_told_and_their_end():
    life = Life()
    life.hear(mode("RUN"), mode("RUN", differences=2), mode("RUN", differences=2))
    [notice] = life.go(1)
    assert notice.title == "the ledger and the exchange differ in 2 symbols"
    life.go(100)
    life.hear(mode("RUN"))
    assert [n.title for n in life.go(1)] == ["the ledger and the exchange agree again"]


def test_the_day_is_summed_up_at_its_hour():
    closed = (lot("a", "100", "102"), lot("b", "100", "99"))
    day = Day(7, Decimal("0.5"), Decimal("-0.1"), closed, (Decimal(1000), Decimal(1010)), False)
    books = Shelf(day)
    life = Life(books, hour=13)
    life.hear(msg.Wallet(Decimal(7), Decimal(1), Decimal(1)), mode("RUN"))  # of now
    assert life.go(3599) == []
    [notice] = life.go(1)
    end_ms = NOON_MS + 3_600_000
    assert books.asked == [(end_ms - DAY_MS, end_ms)]
    assert notice.kind == "daily"
    # 102 - 100 - 0.1 = 1.9 and 99 - 100 - 0.1 = -1.1
    assert notice.body.splitlines() == [
        "mode RUN",
        "equity 1010.00 USDT, +10.0000 USDT (+1.00 %)",
        "7 fills, fees 0.5000 USDT",
        "funding paid -0.1000 USDT",
        "2 closed lots, 1 with a profit, realised +0.8000 USDT",
    ]
    assert life.go(3600) == []
    life.wall_ms += 23 * 3_600_000 - 2_000  # the clock is set
    assert life.go(1) == []
    assert len(life.go(1)) == 1


def test_a_summary_that_was_due_while_nobody_looked_is_told_once_there_is_a_wallet():
    life = Life(hour=13)
    for seconds, wallet in ((60, None), (1, msg.Wallet(Decimal(7), Decimal(1), Decimal(1)))):
        life.news = News(Terms(15, 13), Shelf(), life.now_ns, NOON_MS)
        life.wall_ms = NOON_MS + 5 * 3_600_000
        assert life.go(seconds - 1) == []
        life.hear(*([wallet] if wallet else []))
        [notice] = life.go(1)
        assert (notice.kind, "equity now 7.00" in notice.body) == ("daily", wallet is not None)
        assert life.go(100) == []


@pytest.mark.parametrize(
    ("day", "rows"),
    [
        (None, ["equity now 7.00 USDT", "the ledger cannot be read"]),
        (
            NO_DAY._replace(paper=True, equity=(Decimal(0), Decimal(5))),
            [
                "equity 5.00 USDT, from 0",
                "by the paper market's clock, in the day before its last execution:",
                "0 fills, fees 0.0000 USDT",
            ],
        ),
    ],
)
def test_a_summary_says_what_it_does_not_know(day, rows):
    wallet = msg.Wallet(Decimal(7), Decimal(1), Decimal(1))
    assert daily(day, wallet, "RUN").text.splitlines()[1:4] == rows


# How often.


def test_what_is_held_back_is_counted_in_the_next():
    desk = Desk()
    for number in range(8):
        desk.put(Event("mode", f"title {number}", f"text {number}"))
        desk.put(Event("restart", "title", "text"))
        if not number:
            assert len(desk.take(NS)) == 2
    assert desk.take(NS + MINUTE_NS - 1) == []
    mode_notice, _ = desk.take(NS + MINUTE_NS)
    assert mode_notice.title == "title 7 (and 6 more)"
    assert mode_notice.body.splitlines() == [
        "2 earlier ones are not shown",
        *(f"text {number}" for number in range(3, 8)),
    ]
    assert (mode_notice.happened, desk.waits("mode")) == (7, 0)


def test_some_of_an_hour_are_kept_for_what_is_urgent():
    desk, told = Desk(), []
    for minute in range(30):
        desk.put(Event("mode", "", ""))
        told += desk.take(minute * MINUTE_NS)
    assert len(told) == HOURLY - SPARE
    for minute in range(30, 40):
        desk.put(Event("breach", "", "", urgent=True))
        told += desk.take(minute * MINUTE_NS)
    assert len(told) == HOURLY


MODES = st.builds(mode, st.sampled_from(msg.MODES), st.sampled_from(["", "a", "drawdown b"]))
STEPS = st.lists(
    st.one_of(
        MODES,
        st.builds(mode, st.just("RUN"), st.just(""), st.integers(0, 3)),
        st.builds(fill, st.integers(0, 500), st.sampled_from(SYMBOLS)),
        st.builds(word, st.sampled_from(["router", "worker-1", "keeper"]), st.integers(1, 5)),
        st.integers(1, 4_000),  # seconds that pass
    ),
    max_size=200,
)


@settings(max_examples=200, deadline=None)
@given(STEPS, st.integers(1, 60))
def test_never_too_often_and_told_and_waiting_is_what_was_heard(steps, minutes):
    now_ns, wall_ms = NS, NOON_MS
    books = Shelf()
    news = News(Terms(minutes, 0), books, now_ns, wall_ms)
    heard, told, sent = Counter(), Counter(), []
    last = None
    for step in steps:
        if isinstance(step, int):
            now_ns, wall_ms = now_ns + step * NS, wall_ms + step * 1000
        else:
            news.hear(step, now_ns, wall_ms)
        if isinstance(step, msg.Execution):
            books.put(step)
        books.readable = step != 1
        if isinstance(step, msg.Mode):
            light = {last and last[0], step.mode} <= {None, "RUN", "NO_ENTRY"}
            same_name = last is not None and last[0] == step.mode
            changed = (step.mode, step.reason) != last
            heard["mode"] += changed and last is not None and not (light and same_name)
            last = (step.mode, step.reason)
        for notice in news.tick(now_ns, wall_ms):
            told[notice.kind] += notice.happened
            sent.append((now_ns, notice))
        untold = len(books.executions) - news._told.execution
        waiting = {kind: news.waits(kind) for kind in KINDS}
        assert told["fills"] + waiting["fills"] + untold == len(books.executions)
        both = ("mode", "breach")
        assert sum(told[k] + waiting[k] for k in both) == heard["mode"]
        recent = deque(at for at, _ in sent if now_ns - at < HOUR_NS)
        assert len(recent) <= HOURLY
        for kind in KINDS:
            times = [at for at, notice in sent if notice.kind == kind]
            assert all(b - a >= MINUTE_NS for a, b in pairwise(times))
    assert all(len(notice.body) < 8_000 for _, notice in sent)


# Secrets.


def test_no_secret_is_in_a_text():
    urls = ("tgram://123456:AAcanary_token-x/-100200300", "mailto://me:p%40ssword9@host.example")
    secrets = secrets_of(("a-key", "hush-hush", ""), urls)
    texts = (
        *(urls[0], urls[1], "AAcanary_token-x", "see p@ssword9", "p%40ssword9", "hush-hush"),
        "https://api.telegram.org/bot123456:AAcanary_token-x/send",
        "x a-key y",
    )
    for text in texts:
        said = redacted(f"before {text} after", secrets)
        assert said.startswith("before ") and said.endswith(" after")
        for part in ("canary", "ssword", "hush", "a-key", "100200300", "host.example"):
            assert part not in said
    plain = "RUN -> NO_ENTRY: market data lost"
    assert redacted(plain, secrets) == plain
