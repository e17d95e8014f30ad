"""The feed: whatever happens to pushes on their way, every closed bar is said once and in order."""

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.ingestor.feed import CONFIRM_LATE_NS, Feed
from services.ingestor.history import ROWS
from shared.messages import History, Kline

ANY_SPEED = {
    "derandomize": True,
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow],
}

NS = 1_000_000_000
MINUTE_MS = 60_000
START_MS = 1_700_000_040_000  # start of bar 0
NAME = "XUSDT"
FIRST = 5  # bars that are closed before anything is heard


def minute(number):
    return START_MS + number * MINUTE_MS


def closed(number):
    """The last push of bar `number`; its prices say which bar it is."""
    prices = (100.0 + number, 103.0 + number, 99.0 + number, 101.0 + number)
    return Kline(NAME, minute(number), *prices, 7.0, 700.0, True, minute(number + 1), 5)


def forming(number, ts_ms=0):
    ts_ms = ts_ms or minute(number) + 1_000
    return closed(number)._replace(confirm=False, ts_ms=ts_ms, recv_ns=ts_ms)


def rows(last, first=0):
    return [closed(number) for number in range(first, last + 1)]


def bars_of(history: History):
    """(start of the oldest, bars) of a history message."""
    return history.start_ms, np.frombuffer(history.bars).reshape(-1, 5).tolist()


@pytest.fixture
def feed():
    """Follows one symbol, has its bars 0 to 9."""
    feed = Feed(MINUTE_MS)
    feed.universe([NAME])
    assert feed.missing(0) == [(NAME, 0)]
    assert feed.fill(NAME, rows(9)) == rows(9)
    return feed


class World:
    """An exchange, a wire that loses, repeats and reorders, REST answers in flight, and a feed."""

    def __init__(self):
        self.feed = Feed(MINUTE_MS)
        self.feed.universe([NAME])
        self.closed_count, self.ts_ms, self.now_ns = FIRST, minute(FIRST), NS
        self.wire, self.asks, self.said = [], [], []

    def do(self, action, number):
        """One thing happens; `number` picks from the wire or says how many seconds pass."""
        self.ts_ms = min(self.ts_ms + 100, minute(self.closed_count + 1) - 1)
        if action == "form":
            self.wire.append(forming(self.closed_count, self.ts_ms))
        elif action == "close":
            self.wire.append(closed(self.closed_count))
            self.closed_count += 1
            self.ts_ms = minute(self.closed_count)
        elif action == "deliver" and self.wire:
            self.push(self.wire.pop(number % len(self.wire)))
        elif action == "repeat" and self.wire:
            self.push(self.wire[number % len(self.wire)])
        elif action == "lose" and self.wire:
            self.wire.pop(number % len(self.wire))
        elif action == "wait":
            self.now_ns += number * NS
        elif action == "look":
            self.asks += [(*gap, self.closed_count) for gap in self.feed.missing(self.now_ns)]
        elif action == "answer" and self.asks:
            self.answer(*self.asks.pop())
        elif action == "fail" and self.asks:
            self.feed.failed(self.asks.pop()[0], self.now_ns)

    def push(self, kline):
        self.said += self.feed.push(kline, self.now_ns)

    def answer(self, name, start_ms, count):
        """What REST knew when it was asked: the bars from `start_ms` that were closed then."""
        known = [row for row in rows(count - 1) if row.start_ms >= start_ms]
        self.said += self.feed.fill(name, known)

    def settle(self):
        """No more faults: prices go on, and every ask is answered with all there is."""
        for name, start_ms, _ in self.asks:
            self.answer(name, start_ms, self.closed_count)
        for _ in range(3):
            self.ts_ms += 1
            self.push(forming(self.closed_count, self.ts_ms))
            self.now_ns += 10 * NS
            for name, start_ms in self.feed.missing(self.now_ns):
                self.answer(name, start_ms, self.closed_count)

    @property
    def confirmed(self):
        return [kline for kline in self.said if kline.confirm]


ACTIONS = ["form", "close", "close", "deliver", "deliver", "repeat", "lose", "wait", "look"]
ACTIONS += ["answer", "answer", "fail"]
stories = st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 9)), max_size=80)


@settings(max_examples=100, **ANY_SPEED)
@given(stories)
def test_every_bar_is_said_once_and_in_order_whatever_is_lost_repeated_or_late(story):
    world = World()
    for action, number in story:
        world.do(action, number)
        assert world.confirmed == rows(len(world.confirmed) - 1)  # never a hole, never a repeat
    world.settle()
    assert world.confirmed == rows(world.closed_count - 1)
    start_ms, bars = bars_of(world.feed.history(NAME))
    assert (start_ms, bars) == (START_MS, [list(row[2:7]) for row in world.confirmed])


@settings(max_examples=60, **ANY_SPEED)
@given(stories)
def test_no_price_is_older_than_one_that_was_said_before(story):
    world = World()
    for action, number in story:
        world.do(action, number)
    prices = [kline.ts_ms for kline in world.said if not kline.confirm]
    assert prices == sorted(prices)


def test_only_the_last_300_bars_are_kept(feed):
    feed.fill(NAME, rows(349, first=10))
    start_ms, bars = bars_of(feed.history(NAME))
    assert (start_ms, len(bars), ROWS) == (minute(50), 300, 300)  # bars 50 to 349
    assert bars[-1] == list(closed(349)[2:7])


def test_a_forming_bar_is_only_a_price(feed):
    assert feed.push(forming(10), NS) == [forming(10)]
    assert len(bars_of(feed.history(NAME))[1]) == 10
    assert feed.push(closed(10), NS) == [closed(10)]
    assert len(bars_of(feed.history(NAME))[1]) == 11


def test_what_was_said_is_not_said_again(feed):
    feed.push(closed(10), NS)
    for old in (closed(10), closed(9), forming(10), forming(3)):
        assert feed.push(old, NS) == []
    assert feed.fill(NAME, rows(10)) == []
    assert feed.counters["repeated"] == 4


def test_a_missing_confirm_is_fetched_5_seconds_after_the_next_bar_began(feed):
    feed.push(forming(11), 100 * NS)  # nobody has said that bar 10 is closed
    feed.push(forming(11, minute(11) + 4_000), 104 * NS)
    assert CONFIRM_LATE_NS == 5 * NS
    assert feed.missing(105 * NS - 1) == []
    assert feed.missing(105 * NS) == [(NAME, minute(10))]
    assert feed.missing(200 * NS) == []  # it is under way
    assert feed.fill(NAME, rows(10, first=10)) == [closed(10)]
    assert feed.missing(200 * NS) == []


def test_a_confirm_that_comes_within_5_seconds_is_not_fetched(feed):
    feed.push(forming(11, minute(11)), 100 * NS)
    assert feed.push(closed(10), 101 * NS) == [closed(10)]
    assert feed.missing(200 * NS) == []


def test_a_closed_bar_after_a_hole_is_not_said_but_fetched_at_once_with_the_hole(feed):
    assert feed.push(closed(11), 100 * NS) == []
    assert feed.missing(100 * NS) == [(NAME, minute(10))]
    assert feed.fill(NAME, rows(11, first=10)) == [closed(10), closed(11)]


def test_a_fetch_that_brought_nothing_or_failed_is_tried_again(feed):
    feed.push(closed(11), 100 * NS)
    feed.missing(100 * NS)
    feed.failed(NAME, 100 * NS)
    assert feed.missing(101 * NS) == []  # after a pause of 3 s
    assert feed.missing(103 * NS) == [(NAME, minute(10))]
    assert feed.fill(NAME, []) == []
    feed.push(forming(12), 102 * NS)
    assert feed.missing(107 * NS) == [(NAME, minute(10))]  # 5 s after the push


def test_a_hole_that_the_exchange_cannot_fill_starts_the_history_over(feed):
    """No bar 10 at all: what is kept is contiguous, or nothing."""
    assert feed.fill(NAME, [closed(11), closed(12)]) == [closed(11), closed(12)]
    assert bars_of(feed.history(NAME)) == (minute(11), [list(closed(n)[2:7]) for n in (11, 12)])


@pytest.mark.parametrize(
    "change",
    [
        {"close": 0.0, "low": 0.0},
        {"low": -1.0},
        {"open": math.nan},
        {"high": math.nan},
        {"low": math.nan},
        {"close": math.nan},
        {"high": math.inf},
        {"open": math.inf, "close": math.inf, "high": math.inf},
        {"low": 120.0},  # above open, high and close
        {"high": 105.0},  # below open = 110
        {"close": 98.0},  # below low = 109
        {"close": 1_110.0},  # above high = 113: ten times the price
        {"open": 1_110.0},
    ],
)
@pytest.mark.parametrize("confirm", [True, False])
def test_an_absurd_price_is_dropped_and_counted(feed, change, confirm):
    bar = closed(10)._replace(**change, confirm=confirm)
    assert feed.push(bar, NS) == []
    assert feed.counters["absurd"] == 1
    assert len(bars_of(feed.history(NAME))[1]) == 10
    assert feed.push(closed(10), NS) == [closed(10)]  # the true one is still welcome


def priced(close, second, number=10):
    """A push of bar 10 at this price."""
    change = {"low": min(109.0, close), "high": max(113.0, close), "close": close}
    return forming(number, minute(number) + second * 1_000)._replace(**change)


@pytest.mark.parametrize(
    ("closes", "said"),
    [
        ([111, 50, 49, 48], [111, 49, 48]),  # it has halved: the second says so, too
        ([111, 50, 111, 50, 111], [111, 111, 111]),  # twice a wrong one, never twice in a row
        ([111, 1_110, 50, 51], [111, 51]),  # two that do not agree with each other
        ([111, 230, 400], [111, 400]),  # less than twice 230
    ],
)
def test_a_jump_is_believed_once_a_second_push_agrees(feed, closes, said):
    pushes = [priced(float(close), second) for second, close in enumerate(closes)]
    heard = [kline.close for push in pushes for kline in feed.push(push, NS)]
    assert heard == said
    assert feed.counters["absurd"] == len(closes) - len(said)


def test_a_push_that_comes_twice_does_not_agree_with_itself(feed):
    feed.push(priced(111.0, 0), NS)
    assert [feed.push(priced(50.0, 1), NS) for _ in range(3)] == [[], [], []]
    assert feed.push(priced(50.0, 2), NS) != []


def test_symbols_that_leave_the_universe_are_forgotten_and_others_keep_their_bars(feed):
    feed.universe([NAME, "YUSDT"])
    assert feed.missing(NS) == [("YUSDT", 0)]
    assert len(bars_of(feed.history(NAME))[1]) == 10
    feed.universe(["YUSDT"])
    assert feed.push(closed(10), NS) == []
    assert feed.fill(NAME, rows(10)) == []
    assert feed.history(NAME) == History(NAME, 0, b"")


def test_the_age_is_that_of_the_symbol_heard_longest_ago(feed):
    feed.universe([NAME, "YUSDT"])
    assert feed.oldest_ms(NS) == -1  # YUSDT never was
    feed.push(forming(10), 10 * NS)
    feed.push(forming(10)._replace(symbol="YUSDT"), 12 * NS)
    assert feed.oldest_ms(15 * NS) == 5_000
