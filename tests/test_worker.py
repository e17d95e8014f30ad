"""The worker by messages: klines and history in, quotes out. No sockets, and time is a number.

Bars have an ohlc4 of 99, 100 or 101 and close there, so with BB_LENGTH=3 any three neighbours have
basis 100 and sigma 1: the bands are 100 -+ 4.5. Volatility is 2 / close, about 2 %.
"""

from decimal import Decimal
from zlib import crc32

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.worker.actor import STALE_NS, UNIVERSE_NS, Worker
from shared import messages as msg
from shared.settings import Settings

ANY_SPEED = {
    "derandomize": True,
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow],
}

NS = 1_000_000_000
MINUTE_MS = 60_000
START_MS = 1_700_000_040_000  # start of bar 0
NAME = "XUSDT"


def minute(number):
    return START_MS + number * MINUTE_MS


def values(number):
    """open, high, low, close, volume of closed bar `number`."""
    middle = 99.0 + number % 3
    return middle, middle + 1, middle - 1, middle, 7.0


def closed(number, symbol=NAME):
    """The last push of a bar."""
    rest = (*values(number), 700.0, True, minute(number + 1), 5)
    return msg.Kline(symbol, minute(number), *rest)


def forming(number, price, second=1, symbol=NAME):
    """A push inside a bar."""
    prices = (price, price, price, price, 1.0, 100.0)
    return msg.Kline(symbol, minute(number), *prices, False, minute(number) + second * 1_000, 5)


def history(last, first=0, symbol=NAME):
    """Closed bars `first` to `last`."""
    rows = np.array([values(number) for number in range(first, last + 1)])
    return msg.History(symbol, minute(first), rows.tobytes())


def universe(*symbols):
    numbers = [Decimal(1)] * 5
    return msg.Instruments(tuple(msg.Instrument(s, *numbers, "Trading", 480) for s in symbols))


@pytest.fixture
def worker(tmp_path):
    """Knows of one symbol, has no bars yet."""
    return started(tmp_path)


@pytest.fixture
def warm(worker):
    """Has the bars 0 to 9, and a price far from both bands."""
    worker.handle(history(9), NS)
    worker.handle(forming(10, 100.0), NS)
    return worker


def started(run_dir, *symbols, **numbers):
    numbers = {"RUN_DIR": run_dir, "SHARDS": 1, "BB_LENGTH": 3, **numbers}
    worker = Worker(Settings(_env_file=None, **numbers))
    worker.start(NS)
    worker.handle(universe(*(symbols or (NAME,))), NS)
    return worker


def of(kind, messages):
    return [message for message in messages if isinstance(message, kind)]


def opinions(messages):
    return [(quote.side, quote.zone, quote.gate) for quote in of(msg.Quote, messages)]


def gates(messages):
    return [(quote.zone, quote.gate) for quote in of(msg.Quote, messages)]


def content(quote):
    """A quote without the machine's clocks."""
    return quote._replace(recv_ns=0, decided_ns=0)


# Start.


def test_it_asks_for_the_universe_then_for_the_bars_of_each_symbol(tmp_path):
    worker = Worker(Settings(_env_file=None, RUN_DIR=tmp_path, SHARDS=1))
    assert worker.start(0) == [msg.InstrumentsAsk()]
    *asks, hear = worker.handle(universe("AUSDT", "BUSDT"), 0)
    assert asks == [msg.HistoryAsk("AUSDT"), msg.HistoryAsk("BUSDT")]
    assert hear == msg.Hear("market", ("instrument.", "kline.AUSDT.", "kline.BUSDT."))
    assert worker.handle(universe("AUSDT", "BUSDT"), 0) == []
    assert msg.Hear("market", ("instrument.", "kline.BUSDT.")) in worker.handle(
        universe("BUSDT"), 0
    )


def test_without_a_single_bar_it_has_no_opinion(worker):
    """While a new generation warms up, the old one's quotes hold."""
    assert worker.handle(forming(10, 95.6), NS) == []
    assert gates(worker.tick(NS)) == []
    assert not worker.ready


def test_fewer_bars_than_the_band_needs_are_a_warmup(worker):
    worker.handle(history(1), NS)  # two bars of three
    assert gates(worker.tick(NS)) == [("NONE", "warmup")]
    assert gates(worker.handle(closed(2), NS)) == [("NONE", "")]  # 101 is far from both bands


def test_with_history_the_quote_is_that_of_the_strategy(worker):
    (last,) = worker.handle(
        history(9), NS
    )  # the close of the last bar is the price, until one comes
    assert last.last == closed(9).close
    (quote,) = worker.handle(forming(10, 95.6), NS)
    assert (quote.side, quote.zone, quote.gate) == ("Buy", "ARM", "")  # 0.1 / 95.5 = 0.105 %
    assert (quote.lower, quote.upper, quote.last) == (95.5, 104.5, 95.6)
    assert quote.price == pytest.approx(95.5 * 0.9995)
    volatility_pct = 100 * (2 / 99 + 2 / 100 + 2 / 101) / 3
    assert quote.take_profit_pct == pytest.approx(0.275 + volatility_pct / 2)
    assert (quote.bar_start_ms, quote.ts_ms, quote.recv_ns) == (minute(10), minute(10) + 1_000, 5)


def test_history_after_the_price_is_a_quote_at_once(worker):
    worker.handle(forming(10, 95.6), NS)
    assert opinions(worker.handle(history(9), NS)) == [("Buy", "ARM", "")]
    worker.tick(NS)
    assert worker.ready


def test_an_empty_history_is_asked_for_again(worker):
    assert worker.handle(msg.History(NAME, 0, b""), NS) == []
    assert of(msg.HistoryAsk, worker.tick(NS)) == [msg.HistoryAsk(NAME)]
    assert of(msg.HistoryAsk, worker.tick(2 * NS)) == []  # one ask at a time
    worker.handle(msg.NoAnswer(msg.HistoryAsk(NAME)), 3 * NS)
    assert of(msg.HistoryAsk, worker.tick(3 * NS)) == [msg.HistoryAsk(NAME)]


def test_a_universe_that_nobody_answers_is_asked_for_again(tmp_path):
    worker = Worker(Settings(_env_file=None, RUN_DIR=tmp_path))
    worker.start(0)
    assert worker.tick(NS) == []
    worker.handle(msg.NoAnswer(msg.InstrumentsAsk()), 2 * NS)
    assert worker.tick(2 * NS) == [msg.InstrumentsAsk()]


# Bars and ticks.


def test_a_tick_that_changes_nothing_says_nothing(warm):
    for second in range(2, 50):
        assert warm.handle(forming(10, 100.0 + second / 100, second), NS) == []


def test_a_tick_that_changes_the_zone_says_so(warm):
    """Lower band 95.5: ARM to 95.5 * 1.003 = 95.7865, HOLD to 95.5 * 1.005 = 95.9775."""
    prices = (96.0, 95.97, 95.79, 95.78, 95.5, 95.03, 95.02)
    said = [opinions(warm.handle(forming(10, p, 2), NS)) for p in prices]
    hold, arm, none = ([("Buy", zone, "")] for zone in ("HOLD", "ARM", "NONE"))
    assert said == [none, hold, [], arm, [], [], none]  # 95.5 * 0.995 = 95.0225


def test_the_nearer_band_has_the_quote(warm):
    assert opinions(warm.handle(forming(10, 104.4, 2), NS)) == [("Sell", "ARM", "")]
    assert opinions(warm.handle(forming(10, 95.6, 3), NS)) == [("Buy", "ARM", "")]


def test_a_closed_bar_is_a_quote_once(warm):
    (quote,) = warm.handle(closed(10), NS)
    assert quote.bar_start_ms == minute(11)
    assert warm.handle(closed(10), NS) == []
    assert warm.handle(closed(9), NS) == []
    assert warm.counters["bars"] == 1


def test_an_older_price_does_not_replace_a_newer_one(warm):
    warm.handle(forming(10, 95.6, 30), NS)
    assert warm.handle(forming(10, 100.0, 20), NS) == []
    (quote,) = of(msg.Quote, warm.tick(NS))
    assert (quote.last, quote.zone) == (95.6, "ARM")


def test_every_tick_says_every_quote_again(warm):
    (said,) = warm.handle(forming(10, 95.6, 2), NS)
    for second in (2, 3):
        assert [content(quote) for quote in warm.tick(second * NS)] == [content(said)]


def test_a_kline_of_a_symbol_of_others_is_nothing(warm):
    assert warm.handle(forming(10, 95.6, symbol="YUSDT"), NS) == []
    assert warm.handle(history(9, symbol="YUSDT"), NS) == []


# Holes.


def test_a_hole_is_a_gate_and_asks_for_the_history(warm):
    assert opinions(warm.handle(forming(12, 95.6), NS)) == [("Buy", "NONE", "hole")]
    said = warm.tick(NS)
    assert opinions(said) == [("Buy", "NONE", "hole")]
    assert of(msg.HistoryAsk, said) == [msg.HistoryAsk(NAME)]
    assert not warm.ready
    assert opinions(warm.handle(history(11), NS)) == [("Buy", "ARM", "")]
    assert of(msg.HistoryAsk, warm.tick(2 * NS)) == []
    assert warm.ready


def test_a_closed_bar_after_a_hole_does_not_enter(warm):
    assert gates(warm.handle(closed(11), NS)) == [("NONE", "hole")]
    assert warm.counters["bars"] == 0


def test_a_bar_that_comes_late_closes_the_hole_itself(warm):
    warm.handle(forming(11, 95.6), NS)
    assert opinions(warm.handle(closed(10), NS)) == [("Buy", "ARM", "")]


def test_a_history_that_does_not_reach_the_price_leaves_the_hole(warm):
    """Bars 10 and 11 are missing, and the ingestor has only one of them yet."""
    warm.handle(forming(12, 95.6), NS)
    warm.tick(NS)
    said = warm.handle(history(10), NS)
    assert {gate for _, gate in gates(said)} <= {"hole"}
    said = warm.tick(2 * NS)
    assert opinions(said) == [("Buy", "NONE", "hole")]
    assert of(msg.HistoryAsk, said) == [msg.HistoryAsk(NAME)]


def test_one_late_bar_of_two_leaves_the_hole(warm):
    warm.handle(forming(12, 95.6), NS)
    assert {gate for _, gate in gates(warm.handle(closed(10), NS))} <= {"hole"}
    assert opinions(warm.handle(closed(11), NS)) == [("Buy", "ARM", "")]


def test_a_history_older_than_the_bars_changes_nothing(warm):
    warm.handle(closed(10), NS)
    before = [content(quote) for quote in warm.tick(NS)]
    warm.handle(history(8), NS)
    assert [content(quote) for quote in of(msg.Quote, warm.tick(NS))] == before


# Age.


def test_a_symbol_without_klines_for_75_seconds_is_stale(warm):
    warm.handle(forming(10, 95.6, 2), NS)
    assert opinions(warm.tick(NS + STALE_NS)) == [("Buy", "ARM", "")]
    assert opinions(warm.tick(NS + STALE_NS + 1)) == [("Buy", "NONE", "stale")]
    assert STALE_NS == 75 * NS
    assert opinions(warm.handle(forming(10, 95.6, 3), 80 * NS)) == [("Buy", "ARM", "")]


def test_one_live_symbol_does_not_hide_a_dead_one(tmp_path):
    worker = started(tmp_path, "AUSDT", "BUSDT")
    for symbol in ("AUSDT", "BUSDT"):
        worker.handle(history(9, symbol=symbol), NS)
        worker.handle(forming(10, 100.0, symbol=symbol), NS)
    worker.handle(forming(10, 100.0, 50, symbol="AUSDT"), 50 * NS)
    gates = {quote.symbol: quote.gate for quote in of(msg.Quote, worker.tick(80 * NS))}
    assert gates == {"AUSDT": "", "BUSDT": "stale"}


def test_a_stale_symbol_with_a_hole_does_not_quote_when_it_wakes_up(warm):
    warm.tick(80 * NS)
    assert opinions(warm.handle(forming(12, 95.6), 81 * NS)) == [("Buy", "NONE", "hole")]


def test_a_history_does_not_wake_a_stale_symbol(warm):
    warm.handle(forming(12, 95.6), NS)
    warm.tick(80 * NS)
    assert {gate for _, gate in gates(warm.handle(history(11), 81 * NS))} <= {"stale"}
    assert opinions(warm.handle(forming(12, 95.6, 50), 82 * NS)) == [("Buy", "ARM", "")]


# A quote is a function of the closed bars and the last price.


ACTS = st.one_of(
    st.tuples(st.just("price"), st.floats(94, 106), st.integers(0, 2)),
    st.tuples(st.just("bar"), st.integers(0, 2)),
    st.tuples(st.just("history"), st.integers(0, 2)),
    st.tuples(st.just("wait"), st.sampled_from([1, 74, 76])),
    st.tuples(st.just("tick")),
)


@settings(max_examples=200, **ANY_SPEED)
@given(st.lists(ACTS, max_size=30))
def test_the_short_way_of_a_tick_says_what_the_long_way_says(tmp_path_factory, acts):
    """One worker forgets before each message between which prices nothing changes."""
    short, long = (started(tmp_path_factory.getbasetemp()) for _ in range(2))
    now_ns, bar, second = NS, 10, 0
    for act, *terms in (("history", 0), *acts):
        now_ns, second = now_ns + NS, second + 1
        if act == "price":
            message = forming(bar + terms[1], terms[0], second % 60)
        elif act == "bar":
            message, bar = closed(bar + terms[0]), bar + terms[0] + 1
        elif act == "history":
            message = history(bar - 1 + terms[0])
        elif act == "wait":
            now_ns += terms[0] * NS
            continue
        for symbol in long._symbols.values():
            symbol.low = symbol.high = 0.0
        hook = "tick" if act == "tick" else "handle"
        rest = () if act == "tick" else (message,)
        said = [getattr(one, hook)(*rest, now_ns) for one in (short, long)]
        assert said[0] == said[1]
        assert short.counters == long.counters


@settings(max_examples=50, **ANY_SPEED)
@given(
    *(st.integers(0, 15), st.integers(0, 15)),
    st.lists(st.tuples(st.integers(0, 30), st.floats(90, 110)), max_size=15),
    st.floats(94, 106),
)
def test_two_workers_fed_differently_say_the_same(tmp_path_factory, loaded, first, noise, price):
    """One has all bars from history; the other the first ones, then pushes among noise."""
    folder = tmp_path_factory.getbasetemp()
    one, other = started(folder), started(folder)
    one.handle(history(30), NS)
    other.handle(history(first + loaded, first=first), 3 * NS)
    at = dict(noise)
    for number in range(31):
        if number in at:
            other.handle(forming(number, at[number], 9), 3 * NS)
        other.handle(closed(number), 3 * NS)
        other.handle(closed(number), 3 * NS)
    for worker in (one, other):
        worker.handle(forming(31, price, 5), 4 * NS)
    (a,), (b,) = one.tick(5 * NS), other.tick(6 * NS)
    assert content(a) == content(b)


# The universe and its shards.


@pytest.mark.parametrize("shards", [1, 2, 3, 8])
def test_shards_share_the_universe_completely_and_without_overlap(tmp_path, shards):
    names = [f"{number}COINUSDT" for number in range(400)]
    owned = []
    for slot in range(shards):
        numbers = {"RUN_DIR": tmp_path, "SHARDS": shards, "WORKER_SLOT": slot}
        asks = Worker(Settings(_env_file=None, **numbers)).handle(universe(*names), 0)
        mine = [ask.symbol for ask in of(msg.HistoryAsk, asks)]
        assert all(crc32(name.encode()) % shards == slot for name in mine)
        assert len(mine) > 400 / shards / 2  # no shard is left with little
        owned += mine
    assert sorted(owned) == sorted(names)


def test_a_slot_of_another_generation_has_the_shard_that_is_written_for_it(tmp_path):
    (tmp_path / "shards.json").write_text('{"2": [0, 2], "3": [1, 2]}')
    asks = []
    for slot in (2, 3):
        worker = Worker(Settings(_env_file=None, RUN_DIR=tmp_path, SHARDS=1, WORKER_SLOT=slot))
        asks += worker.handle(universe("AUSDT", "BUSDT", "CUSDT", "DUSDT"), 0)[:-1]
    assert sorted(ask.symbol for ask in asks) == ["AUSDT", "BUSDT", "CUSDT", "DUSDT"]


def test_a_delisted_symbol_gets_a_last_none(warm):
    warm.handle(forming(10, 95.6, 2), NS)
    said = warm.handle(universe("YUSDT"), NS)
    assert opinions(said) == [("Buy", "NONE", "not_tradeable")]
    assert of(msg.HistoryAsk, said) == [msg.HistoryAsk("YUSDT")]
    assert warm.handle(forming(10, 95.6, 3), NS) == []
    assert NAME not in {quote.symbol for quote in of(msg.Quote, warm.tick(NS))}


def test_an_empty_universe_is_no_universe(warm):
    """An ingestor that has just started has none yet: nothing is dropped, it is asked again."""
    assert warm.handle(msg.Instruments(()), 2 * NS) == []
    said = warm.tick(2 * NS)
    assert of(msg.InstrumentsAsk, said) == [msg.InstrumentsAsk()]
    assert len(of(msg.Quote, said)) == 1


def test_the_universe_is_asked_for_again_now_and_then(warm):
    assert of(msg.InstrumentsAsk, warm.tick(NS + UNIVERSE_NS - 1)) == []
    assert of(msg.InstrumentsAsk, warm.tick(NS + UNIVERSE_NS)) == [msg.InstrumentsAsk()]
    assert of(msg.InstrumentsAsk, warm.tick(NS + UNIVERSE_NS + 1)) == []


def test_news_of_an_instrument_asks_for_the_universe(warm):
    (news,) = universe("YUSDT").instruments
    said = warm.handle(news, 2 * NS) + warm.tick(2 * NS)
    assert of(msg.InstrumentsAsk, said) == [msg.InstrumentsAsk()]


def test_news_of_many_instruments_asks_for_the_universe_once(warm):
    """A restarted ingestor says 500 of them; 500 answers of 500 rows would be a second of work."""
    rows = universe(*(f"{number}USDT" for number in range(500))).instruments
    said = [message for row in rows for message in warm.handle(row, 2 * NS)]
    assert len(of(msg.InstrumentsAsk, said + warm.tick(2 * NS))) == 1
