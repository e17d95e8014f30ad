"""The ingestor by messages: the universe, the bars and the pushes of an exchange, and its answers.

The exchange is a list: whatever is fetched, the test answers.
"""

from decimal import Decimal

import numpy as np
import pytest

from services.ingestor.actor import REFRESH_NS, Ingestor
from shared import messages as msg
from shared.settings import Settings, WrongSetting

NS = 1_000_000_000
MINUTE_MS = 60_000
START_MS = 1_700_000_040_000


def instrument(symbol, tick="0.01", kind=""):
    numbers = [Decimal(text) for text in (tick, "0.1", "0.1", "1000", "5")]
    return msg.Instrument(symbol, *numbers, "Trading", 480, kind)


def universe(*instruments, error=""):
    found = tuple(instrument(i) if isinstance(i, str) else i for i in instruments)
    return msg.Fetched(msg.Fetch("instruments"), found, error)


def bar(number, symbol="AUSDT", confirm=True):
    start_ms = START_MS + number * MINUTE_MS
    rest = (100.0, 101.0, 99.0, 100.0, 7.0, 700.0, confirm, start_ms + MINUTE_MS, 5)
    return msg.Kline(symbol, start_ms, *rest)


def bars(last, first=0, symbol="AUSDT", error=""):
    rows = () if error else tuple(bar(number, symbol) for number in range(first, last + 1))
    start_ms = START_MS + first * MINUTE_MS if first else 0
    return msg.Fetched(msg.Fetch("klines", symbol, start_ms), rows, error)


def of(kind, messages):
    return [message for message in messages if isinstance(message, kind)]


def started(*symbols, **numbers):
    ingestor = Ingestor(Settings(_env_file=None, **numbers))
    assert ingestor.start(0) == [msg.Fetch("instruments")]
    return ingestor, ingestor.handle(universe(*symbols), 0) if symbols else []


@pytest.fixture
def ingestor():
    """Knows A and B, and the bars 0 to 9 of A."""
    ingestor, _ = started("AUSDT", "BUSDT")
    ingestor.handle(bars(9), NS)
    return ingestor


def test_the_universe_is_said_fetched_and_subscribed_to():
    _, said = started("AUSDT", "BUSDT")
    assert of(msg.Instrument, said) == [instrument("AUSDT"), instrument("BUSDT")]
    assert of(msg.Fetch, said) == [msg.Fetch("klines", "AUSDT"), msg.Fetch("klines", "BUSDT")]
    assert of(msg.Subscribe, said) == [msg.Subscribe(("kline.1.AUSDT", "kline.1.BUSDT"))]


def test_other_intervals_have_other_topics():
    keys = {"BYBIT_ENV": "demo", "BYBIT_API_KEY": "k", "BYBIT_API_SECRET": "s"}
    _, said = started("AUSDT", INTERVAL="5", **keys)
    assert of(msg.Subscribe, said) == [msg.Subscribe(("kline.5.AUSDT",))]


@pytest.mark.parametrize(
    ("numbers", "left"),
    [
        ({}, ["AUSDT", "BUSDT", "NEWUSDT"]),
        ({"SYMBOLS": "BUSDT, AUSDT"}, ["AUSDT", "BUSDT"]),
        ({"EXCLUDE_SYMBOLS": "AUSDT"}, ["BUSDT", "NEWUSDT"]),
        ({"SYMBOLS": "AUSDT,BUSDT", "EXCLUDE_SYMBOLS": "AUSDT"}, ["BUSDT"]),
        ({"SYMBOL_TYPES": "stock"}, ["TSLAUSDT"]),
    ],
)
def test_only_what_the_settings_want_is_in_the_universe(numbers, left):
    types = {"NEWUSDT": "innovation", "TSLAUSDT": "stock"}
    names = ("AUSDT", "BUSDT", "NEWUSDT", "TSLAUSDT")
    ingestor, _ = started(*(instrument(n, kind=types.get(n, "")) for n in names), **numbers)
    (answer,) = ingestor.answer(msg.InstrumentsAsk(), 0)
    assert [row.symbol for row in answer.instruments if row.status == "Trading"] == left
    assert {row.symbol for row in answer.instruments} == set(names), "the router sees all grids"


def test_symbols_of_which_none_is_traded_are_a_wrong_setting():
    ingestor, _ = started(SYMBOLS="TYPOUSDT,BUSDTX")
    with pytest.raises(WrongSetting, match=r"SYMBOLS: .*BUSDTX, TYPOUSDT"):
        ingestor.handle(universe("AUSDT", "BUSDT"), 0)


def test_a_symbol_that_is_not_traded_is_named_and_the_others_are_followed():
    """It may have been delisted since the last start: that must not end the others."""
    ingestor, said = started("AUSDT", "BUSDT", SYMBOLS="AUSDT,GONEUSDT,BUSDTX")
    assert of(msg.Subscribe, said) == [msg.Subscribe(("kline.1.AUSDT",))]
    ingestor.tick(NS)
    assert ingestor.note == "0/1 symbols, not traded: BUSDTX, GONEUSDT"
    ingestor.handle(universe("AUSDT", "GONEUSDT", "BUSDTX"), REFRESH_NS)
    ingestor.tick(REFRESH_NS)
    assert ingestor.note == "0/3 symbols"


LEAVE_NONE = [
    {"SYMBOL_TYPES": "stock"},
    {"EXCLUDE_SYMBOLS": "AUSDT,BUSDT"},
    {"SYMBOLS": "AUSDT", "EXCLUDE_SYMBOLS": "AUSDT"},
]


@pytest.mark.parametrize("numbers", LEAVE_NONE)
def test_settings_that_leave_no_symbol_are_wrong_at_once(numbers):
    ingestor, _ = started(**numbers)
    with pytest.raises(WrongSetting, match="EXCLUDE_SYMBOLS: leave no symbol of 2"):
        ingestor.handle(universe("AUSDT", "BUSDT"), 0)


@pytest.mark.parametrize("worked", [True, False])
def test_an_exchange_on_which_nothing_trades_for_the_moment_is_waited_for(worked):
    numbers = {"SYMBOLS": "AUSDT"}
    ingestor, _ = started("AUSDT", **numbers) if worked else started(**numbers)
    closed = universe(instrument("AUSDT")._replace(status="NotTradeable"), "BUSDT")
    ingestor.handle(closed, NS)
    said = ingestor.handle(universe("AUSDT", "BUSDT"), REFRESH_NS)
    assert of(msg.Subscribe, said) == [msg.Subscribe(("kline.1.AUSDT",))]


def test_a_symbol_that_is_delisted_later_is_no_wrong_setting():
    """It was right at the start; the others go on trading."""
    ingestor, _ = started("AUSDT", "BUSDT", SYMBOLS="AUSDT,BUSDT")
    said = ingestor.handle(universe("AUSDT"), REFRESH_NS)
    assert of(msg.Subscribe, said) == [msg.Subscribe(("kline.1.AUSDT",))]


def test_a_universe_that_does_not_come_is_asked_for_every_tick():
    ingestor, _ = started()
    assert ingestor.handle(universe(error="503"), 5 * NS) == []
    assert ingestor.tick(6 * NS) == [msg.Fetch("instruments")]
    assert ingestor.tick(7 * NS) == []  # one ask at a time
    ingestor.handle(universe(error="503"), 8 * NS)
    assert ingestor.tick(9 * NS) == [msg.Fetch("instruments")]


def test_the_universe_is_refreshed_hourly_and_kept_when_that_fails(ingestor):
    assert of(msg.Fetch, ingestor.tick(REFRESH_NS - 1)) == []
    assert of(msg.Fetch, ingestor.tick(REFRESH_NS)) == [msg.Fetch("instruments")]
    assert ingestor.handle(universe(error="503"), REFRESH_NS + NS) == []
    assert len(ingestor.answer(msg.InstrumentsAsk(), 0)[0].instruments) == 2
    assert of(msg.Fetch, ingestor.tick(REFRESH_NS + 2 * NS)) == []  # in an hour again


def test_an_unchanged_universe_is_no_news(ingestor):
    assert ingestor.handle(universe("AUSDT", "BUSDT"), REFRESH_NS) == []


def test_a_new_rule_of_an_instrument_is_said_and_nothing_is_subscribed_again(ingestor):
    changed = instrument("AUSDT", tick="0.05")
    assert ingestor.handle(universe(changed, "BUSDT"), REFRESH_NS) == [changed]
    assert changed in ingestor.answer(msg.InstrumentsAsk(), 0)[0].instruments


def test_a_new_symbol_is_said_fetched_and_subscribed_to(ingestor):
    said = ingestor.handle(universe("AUSDT", "BUSDT", "CUSDT"), REFRESH_NS)
    assert of(msg.Instrument, said) == [instrument("CUSDT")]
    assert of(msg.Fetch, said) == [msg.Fetch("klines", "CUSDT")]
    topics = ("kline.1.AUSDT", "kline.1.BUSDT", "kline.1.CUSDT")
    assert of(msg.Subscribe, said) == [msg.Subscribe(topics)]


def test_a_delisted_symbol_is_no_longer_heard(ingestor):
    said = ingestor.handle(universe("BUSDT"), REFRESH_NS)
    assert of(msg.Subscribe, said) == [msg.Subscribe(("kline.1.BUSDT",))]
    assert ingestor.handle(bar(10), NS) == []
    assert ingestor.answer(msg.HistoryAsk("AUSDT"), NS) == [msg.History("AUSDT", 0, b"")]


def test_the_history_is_the_closed_bars_as_bytes(ingestor):
    ingestor.handle(bar(10), NS)
    ingestor.handle(bar(11, confirm=False), NS)
    (history,) = ingestor.answer(msg.HistoryAsk("AUSDT"), NS)
    rows = np.frombuffer(history.bars).reshape(-1, 5)
    assert (history.symbol, history.start_ms, rows.shape) == ("AUSDT", START_MS, (11, 5))
    assert rows[-1].tolist() == [100.0, 101.0, 99.0, 100.0, 7.0]
    assert ingestor.answer(msg.HistoryAsk("BUSDT"), NS) == [msg.History("BUSDT", 0, b"")]


def test_pushes_go_on_and_repeats_do_not(ingestor):
    assert ingestor.handle(bar(10), NS) == [bar(10)]
    assert ingestor.handle(bar(10), NS) == []
    assert ingestor.handle(bar(11, confirm=False), NS) == [bar(11, confirm=False)]


def test_a_hole_is_fetched_at_the_next_tick_and_said_in_order(ingestor):
    ingestor.handle(bars(9, symbol="BUSDT"), NS)
    assert ingestor.handle(bar(11), 2 * NS) == []
    fetch = msg.Fetch("klines", "AUSDT", START_MS + 10 * MINUTE_MS)
    assert ingestor.tick(3 * NS) == [fetch]
    assert ingestor.tick(4 * NS) == []
    assert ingestor.handle(bars(11, first=10), 5 * NS) == [bar(10), bar(11)]


def test_bars_that_do_not_come_are_fetched_again(ingestor):
    assert ingestor.handle(bars(0, symbol="BUSDT", error="503"), NS) == []
    assert ingestor.counters["fetch_errors"] == 1
    assert ingestor.tick(2 * NS) == []  # not at once
    assert ingestor.tick(4 * NS) == [msg.Fetch("klines", "BUSDT")]


def test_it_is_ready_with_the_bars_of_all_symbols_and_every_socket_up(ingestor):
    ready = []
    for message in (
        msg.Link("public-0", True),
        msg.Link("public-1", False, "refused"),
        bars(9, symbol="BUSDT"),
        msg.Link("public-1", True),
        msg.Link("public-0", False, "silent"),
    ):
        ingestor.handle(message, NS)
        ingestor.tick(2 * NS)
        ready.append(ingestor.ready)
    assert ready == [False, False, False, True, False]
    assert ingestor.note == "2/2 symbols"


def test_it_is_not_ready_before_a_socket_was_up(ingestor):
    ingestor.handle(bars(9, symbol="BUSDT"), NS)
    ingestor.tick(2 * NS)
    assert not ingestor.ready


def test_it_is_ready_again_with_fewer_sockets_than_it_had(ingestor):
    """What is subscribed anew counts; a socket that was down and is no more does not."""
    ingestor.handle(msg.Link("public-0", True), 0)
    ingestor.handle(msg.Link("public-1", False), 0)
    ingestor._subscription()
    ingestor.handle(msg.Link("public-0", True), 0)
    assert ingestor._links == {"public-0": True}
