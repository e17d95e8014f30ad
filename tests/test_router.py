"""The router by messages: what the keeper and the workers say goes in, commands come out.

The instrument has ticks of 0.01 and steps of 0.1; SIZE_USDT is 20. A buy is quoted at 95.45 under a
last price of 96, and 20 / 95.45 = 0.2095 buys 0.2. Lots of 2 bought at 100 leave at 101.28.
"""

from decimal import Decimal
from typing import NamedTuple

import pytest

from services.router.actor import (
    BACKOFF_NS,
    ECHO_NS,
    NO_MONEY,
    REOPEN_NS,
    REPRICE_MS,
    RETRY_NS,
    SHUT_NS,
    SYMBOL_NS,
    TOO_OFTEN,
    UNHEARD,
    YIELD_NS,
    Router,
)
from shared import messages as msg
from shared.instrument import opposite
from shared.settings import Settings, WrongSetting

D = Decimal
NS = 1_000_000_000
T0 = 1_000 * NS  # the machine has been up for a while
NAME = "XUSDT"
BAR_MS = 28_000_000 * 60_000
ENTRY_ID = "dm-XUSDT-1ab3f05-B"  # bar 5: 28,000,005 minutes
EXIT_ID = "dm-XUSDT-1ab3f01-Bx0"  # the lot of bar 1


def instrument(symbol=NAME, least="0.1"):
    numbers = [D(text) for text in ("0.01", "0.1", least, "1000", "5")]
    return msg.Instrument(symbol, *numbers, "Trading", 480)


def kline(price, symbol=NAME, ts_ms=1_000):
    prices = (price, price, price, price, 1.0, 1.0)
    return msg.Kline(symbol, BAR_MS, *prices, False, BAR_MS + ts_ms, 0)


NOW = 2**62  # whenever it is heard, it was said just then


def quote(zone="ARM", price=95.45, side="Buy", bar=5, ts_ms=1, symbol=NAME, distance=0.1):
    rest = (1.275, 95.5, 104.5, 96.0, distance, 2.0, BAR_MS + bar * 60_000, ts_ms, 77, NOW)
    return msg.Quote(symbol, side, price, zone, "", *rest)


def lot(qty="2", exits=0, bar=1, symbol=NAME, side="Buy"):
    name = msg.entry_id(symbol, side, BAR_MS + bar * 60_000)
    money = (D(qty), D(100) * D(qty), D(0), D(0), D(0), D(0))
    return msg.Lot(name, symbol, side, *money, exits, D("1.275"), BAR_MS + bar * 60_000, 0)


def order(name=ENTRY_ID, side="Buy", price="95.45", qty="0.2", status="New", symbol=NAME):
    kind = msg.EXIT if "x" in name else msg.ENTRY
    return msg.Order(
        *(name, "7", symbol, side, kind, D(price), D(qty), D(0), status, BAR_MS, D("1.275"), 0)
    )


def exit_order(price="101.28", qty="2", name=EXIT_ID):
    return order(name, "Sell", price, qty)


def position(row, lots=(), orders=(), symbol=NAME, ledger="ledger"):
    return msg.Position(symbol, (ledger, row), tuple(lots), tuple(orders))


def mode(row, *symbols, name="RUN", ledger="ledger"):
    return msg.Mode((ledger, row), name, "", symbols)


ALL_GO = mode(2, NAME, name="CANCEL_ALL")


def full_set(*positions, name="RUN", row=1, ledger="ledger"):
    symbols = tuple(p.symbol for p in positions)
    return msg.FullSet(positions, msg.Mode((ledger, row), name, "", symbols))


def of(kind, messages):
    return [message for message in messages if isinstance(message, kind)]


def commands(messages):
    """(action, id, price, quantity) of what goes to the exchange."""
    sent = [m for m in of(msg.OrderRequest, messages) if not m.outcome]
    return [(m.action, m.order_link_id, m.price, m.qty) for m in sent]


def begun(*messages, now_ns=T0, **numbers):
    """A router that has started and heard these, and nothing else."""
    router = Router(Settings(_env_file=None, **{"SIZE_USDT": D(20), **numbers}))
    router.start(now_ns)
    for message in messages:
        router.handle(message, now_ns)
    return router


def trading(*positions, symbols=(NAME,), last=96.0, leverage=True, name="RUN", row=1, **rest):
    """A router that knows all it needs, with leverage set; it has not decided anything yet."""
    return begun(
        msg.Instruments(tuple(instrument(symbol) for symbol in symbols)),
        msg.Fetched(msg.Fetch("account"), ()),
        msg.Link("trade", True),
        *(kline(last, symbol) for symbol in symbols),
        *(msg.Fetched(msg.Fetch("leverage", symbol), ()) for symbol in symbols if leverage),
        full_set(*positions, name=name, row=row),
        **rest,
    )


def asked(router, message, now_ns=T0):
    (ask,) = of(msg.Ask, router.handle(message, now_ns))
    return ask


def created(router, now_ns=T0, **quoted):
    """The create command of an entry that was asked for and granted."""
    ask = asked(router, quote(**quoted), now_ns)
    (request,) = router.handle(msg.Grant(ask.order_link_id, True), now_ns)
    return request


def answered(router, request, now_ns=T0, outcome="accepted"):
    return router.handle(request._replace(outcome=outcome, reason="because"), now_ns)


def only(messages):
    (request,) = of(msg.OrderRequest, messages)
    return request


# The start.


def test_nothing_is_decided_before_the_first_full_set():
    router = begun(
        *(msg.Instruments((instrument(),)), msg.Fetched(msg.Fetch("account"), ())),
        *(kline(96.0), msg.Fetched(msg.Fetch("leverage", NAME), ())),
    )
    said = []
    for message in (position(5, [lot()]), mode(5, NAME), quote(), kline(95.9)):
        said += router.handle(message, T0)
    said += router.tick(T0)
    assert (commands(said), of(msg.Ask, said)) == ([], [])
    assert of(msg.LedgerAsk, said) == [msg.LedgerAsk()]  # again, until it is answered
    router.handle(full_set(position(5, [lot()]), row=5), T0)
    assert commands(router.tick(T0)) == [("create", EXIT_ID, D("101.28"), D(2))]
    assert of(msg.LedgerAsk, router.tick(T0)) == []


def test_it_asks_for_all_it_needs_and_is_ready_when_it_has_it():
    router = Router(Settings(_env_file=None))
    assert set(router.start(T0)) == {msg.LedgerAsk(), msg.InstrumentsAsk(), msg.Fetch("account")}
    router.handle(full_set(), T0)
    router.handle(msg.Instruments((instrument(),)), T0)
    assert router.tick(T0) == [msg.Fetch("account")]
    assert not router.ready
    router.handle(msg.Fetched(msg.Fetch("account"), ()), T0)
    router.handle(msg.Link("trade", True), T0)
    assert (router.tick(T0), router.ready) == ([], True)


def test_an_account_in_hedge_mode_is_a_wrong_setting():
    with pytest.raises(WrongSetting, match="one-way"):
        begun(msg.Fetched(msg.Fetch("account"), (), "hedge positions", 110024))


def test_an_account_that_does_not_answer_is_asked_again_and_takes_no_entry():
    router = trading()
    router.handle(msg.Fetched(msg.Fetch("account"), (), "timeout", -1), T0)
    assert router.handle(quote(), T0) == []
    assert of(msg.Fetch, router.tick(T0)) == [msg.Fetch("account")]


def test_exits_need_neither_a_quote_nor_a_price():
    """A feed that is down must not keep a lot without its exit."""
    router = begun(full_set(position(1, [lot()])), msg.Instruments((instrument(),)))
    assert commands(router.tick(T0)) == [("create", EXIT_ID, D("101.28"), D(2))]


# Entries: ask, grant, create.


def test_an_armed_quote_is_asked_for_then_created_when_granted():
    router = trading()
    ask = asked(router, quote())
    assert ask[:4] == (ENTRY_ID, NAME, "Buy", BAR_MS + 5 * 60_000)
    assert ask[4:7] == (D("95.45"), D("0.2"), D("1.275"))
    assert router.handle(quote(ts_ms=2), T0) == []  # asked once
    (request,) = router.handle(msg.Grant(ENTRY_ID, True), T0)
    assert commands([request]) == [("create", ENTRY_ID, D("95.45"), D("0.2"))]
    assert (request.side, request.time_in_force, request.reduce_only) == ("Buy", "PostOnly", False)
    assert request.recv_ns == quote().recv_ns  # the cause travels with it
    assert router.handle(msg.Grant(ENTRY_ID, True), T0) == []  # granted once


@pytest.mark.parametrize("zone", ["HOLD", "NONE"])
def test_a_quote_that_is_not_armed_is_not_asked_for(zone):
    assert trading().handle(quote(zone), T0) == []


def test_a_grant_that_was_not_asked_for_creates_nothing():
    assert trading().handle(msg.Grant(ENTRY_ID, True), T0) == []


def test_a_refused_grant_is_asked_for_again_only_in_another_bar_or_mode():
    router = trading()
    asked(router, quote())
    assert router.handle(msg.Grant(ENTRY_ID, False, "max_slots"), T0) == []
    assert router.handle(quote(ts_ms=2), T0) == []
    assert of(msg.Ask, router.tick(T0)) == []
    assert asked(router, quote(bar=6, ts_ms=3)).order_link_id == "dm-XUSDT-1ab3f06-B"
    router.handle(msg.Grant("dm-XUSDT-1ab3f06-B", False, "max_slots"), T0)
    assert router.handle(mode(2, name="NO_ENTRY"), T0) == []
    assert router.handle(mode(3, name="REDUCE_ONLY"), T0) == []
    router.handle(mode(4), T0)
    assert router.handle(quote(bar=6, ts_ms=4), T0) == []  # the mode of the refusal is back


def test_an_ask_that_was_halted_is_asked_again_a_second_later():
    """The keeper's mode is news to the router: it is no word on this bar."""
    router = trading()
    asked(router, quote())
    router.handle(msg.Grant(ENTRY_ID, False, "halted"), T0)
    router.tick(T0 + 1)
    assert router.handle(quote(ts_ms=2), T0 + BACKOFF_NS[0] - 1) == []
    assert asked(router, quote(ts_ms=3), T0 + BACKOFF_NS[0]).order_link_id == ENTRY_ID


def test_an_ask_that_nobody_answered_is_asked_again_under_the_same_id():
    router = trading()
    ask = asked(router, quote())
    assert router.handle(msg.NoAnswer(ask), T0) == []
    assert asked(router, quote(ts_ms=2)).order_link_id == ENTRY_ID


def test_an_older_quote_changes_nothing():
    router = trading()
    router.handle(quote("NONE", ts_ms=5), T0)
    assert router.handle(quote("ARM", ts_ms=4), T0) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -95.45])
@pytest.mark.parametrize("field", ["price", "take_profit_pct", "last"])
def test_a_quote_whose_numbers_are_none_never_gets_near_an_order(field, value):
    """And the resting order stays by the quote before it."""
    router = trading(position(1, orders=[order()]))
    router.handle(quote(), T0)
    assert router.handle(quote(ts_ms=2)._replace(**{field: value}), T0) == []
    assert router.counters["absurd_quotes"] == 1
    (ask,) = of(msg.Ask, router.handle(position(2), T0))  # the sane one is in force
    assert ask.price == D("95.45")


def test_a_quote_that_is_none_needs_no_prices():
    """A worker that is warming up has no bands, and says so."""
    router = trading(position(1, orders=[order()]))
    empty = {"price": float("nan"), "take_profit_pct": 0.0, "distance_pct": float("nan")}
    said = router.handle(quote("NONE")._replace(gate="warming_up", **empty), T0)
    assert [action for action, *_ in commands(said)] == ["cancel"]


def test_an_older_price_changes_nothing():
    """History brings old bars: the entry stays behind the newest price, 90.00 - 0.01."""
    router = trading()
    router.handle(kline(90.0, ts_ms=60_000), T0)
    router.handle(kline(96.0, ts_ms=30_000), T0)
    assert asked(router, quote()).price == D("89.99")


def test_leverage_is_set_before_the_first_entry():
    router = trading(leverage=False)
    assert router.handle(quote(), T0) == []
    assert router.tick(T0) == [msg.Fetch("leverage", NAME)]
    assert router.tick(T0) == []  # under way
    assert router.handle(quote(ts_ms=2), T0) == []
    router.handle(msg.Fetched(msg.Fetch("leverage", NAME), ()), T0)
    asked(router, quote(ts_ms=3))


def test_leverage_that_was_not_set_is_tried_again():
    router = trading(leverage=False)
    router.handle(quote(), T0)
    router.tick(T0)
    router.handle(msg.Fetched(msg.Fetch("leverage", NAME), (), "timeout", -1), T0)
    assert router.handle(quote(ts_ms=2), T0) == []
    assert router.tick(T0 + NS) == []  # others first
    router.handle(quote(ts_ms=3), T0 + 60 * NS)
    assert msg.Fetch("leverage", NAME) in router.tick(T0 + 60 * NS)


def test_leverage_goes_to_the_nearest_quotes_first_within_the_budget():
    """5 of 10 a second: 10 * 0.8 * 0.7 = 5.6."""
    names = [f"S{number}USDT" for number in range(8)]
    router = trading(symbols=names, leverage=False)
    for number, name in enumerate(names):
        zone = "NONE" if number < 2 else "HOLD"
        router.handle(quote(zone, symbol=name, distance=1.0 - number / 10), T0)
    fetches = router.tick(T0)
    assert [fetch.symbol for fetch in fetches] == ["S7USDT", "S6USDT", "S5USDT", "S4USDT", "S3USDT"]
    for fetch in fetches:
        router.handle(msg.Fetched(fetch, ()), T0)
    fetched = [fetch.symbol for fetch in router.tick(T0 + NS)]
    assert fetched == ["S2USDT", "S1USDT", "S0USDT"]


def test_a_symbol_whose_smallest_order_is_too_large_says_so_once():
    router = trading(leverage=False)
    router.handle(instrument(least="0.3"), T0)  # 0.3 * 96 = 28.8 > 20
    router.handle(quote(), T0)
    (news,) = router.tick(T0)
    assert (news.symbol, news.outcome) == (NAME, "refused")
    assert "SIZE_USDT 20" in news.reason
    assert "min_order_qty 0.3" in news.reason
    assert router.tick(T0 + NS) == router.handle(quote(ts_ms=2), T0) == []


def test_a_silent_keeper_stops_new_entries_and_nothing_else():
    """Its word is 3 s old at T0 + 3 s, and older a moment later."""
    at = position(1, [lot(symbol="YUSDT")], symbol="YUSDT")
    router = trading(at, symbols=(NAME, "YUSDT"))
    late = T0 + 3 * NS + 1
    assert router.handle(quote(), late) == []
    said = router.tick(late)
    assert [(action, name[:8]) for action, name, _, _ in commands(said)] == [("create", "dm-YUSDT")]
    router.handle(mode(2, "YUSDT"), late)
    asked(router, quote(ts_ms=2), late)


def by_batch(said):
    """Whether each cancel goes by way of the other bucket."""
    return [m.batch for m in of(msg.OrderRequest, said) if m.action == "cancel"]


def test_the_bucket_of_a_keeper_that_hears_the_router_is_used():
    router = trading(position(1, orders=[order()]))
    assert by_batch(router.handle(ALL_GO, T0 + NS)) == [False]


def test_a_keeper_that_cancels_entries_itself_has_its_bucket_for_itself():
    router = trading(position(1, orders=[order()]))
    router.handle(mode(1, NAME, name="NO_ENTRY")._replace(router_silent=True), T0 + NS)
    assert by_batch(router.handle(ALL_GO, T0 + NS + YIELD_NS - 1)) == [True]


def test_two_seconds_after_a_keeper_has_heard_the_router_the_bucket_is_used_again():
    router = trading(position(1, orders=[order()]))
    router.handle(mode(1, NAME, name="NO_ENTRY")._replace(router_silent=True), T0 + NS)
    assert by_batch(router.handle(ALL_GO, T0 + NS + YIELD_NS)) == [False]


@pytest.mark.parametrize(
    "first",
    [
        *(None, ALL_GO, quote("NONE", ts_ms=9), kline(96.0, ts_ms=9_000)),
        position(2, orders=[order(price="95.4")]),
    ],
    ids=["tick", "mode", "quote", "kline", "position"],
)
def test_a_router_that_wakes_leaves_the_keeper_its_bucket(first):
    """Whatever comes first: its tick, or what was said while it was asleep."""
    router = trading(position(1, orders=[order()]))
    woken_ns = T0 + 12 * NS
    assert by_batch(router.handle(first, woken_ns) if first else router.tick(woken_ns)) == [True]


# Commands: one in flight, three outcomes.


def test_one_command_is_in_flight_per_order():
    router = trading(position(1, orders=[order()]))
    first = only(router.handle(quote(price=94.0), T0))
    assert commands([first]) == [("amend", ENTRY_ID, D(94), D("0.2"))]
    later = kline(96.0, ts_ms=1_000 + REPRICE_MS)
    assert router.handle(later, T0) == router.handle(quote(price=93.0, ts_ms=2), T0) == []
    answered(router, first)
    assert router.handle(quote(price=93.0, ts_ms=3), T0) == []  # the keeper must see it first
    said = router.handle(position(2, orders=[order(price="94")]), T0)
    assert commands(said) == [("amend", ENTRY_ID, D(93), D("0.2"))]


def test_a_refused_command_pauses_its_order_longer_each_time():
    router, now_ns = trading(position(1, [lot()])), T0
    request = only(router.tick(now_ns))
    for pause_ns in BACKOFF_NS[:3]:
        (news,) = answered(router, request, now_ns, "refused")
        assert (news.outcome, news.reason) == ("refused", "because")
        assert commands(router.tick(now_ns + pause_ns - 1)) == []
        now_ns += pause_ns
        router.handle(mode(2, NAME), now_ns)
        request = only(router.tick(now_ns))
        assert commands([request]) == [("create", EXIT_ID, D("101.28"), D(2))]


def test_a_create_without_an_answer_is_unknown_and_an_entry_is_never_sent_again():
    router = trading()
    request = created(router)
    router.handle(position(2, orders=[order(status="Granted")]), T0)
    assert router.tick(T0 + msg.ANSWER_NS - 1) == []
    late = T0 + msg.ANSWER_NS
    (news,) = router.tick(late)
    assert (news.order_link_id, news.command, news.outcome) == (
        ENTRY_ID,
        request.command,
        "unknown",
    )
    said = []
    for second in range(20):
        now_ns = late + second * NS
        said += router.handle(mode(3, NAME), now_ns)
        said += router.handle(quote(ts_ms=2 + second, bar=5 + second // 5), now_ns)
        said += router.handle(kline(96.0, ts_ms=second * 1_000), now_ns)
        said += router.tick(now_ns)
    assert (commands(said), of(msg.Ask, said)) == ([], [])


@pytest.mark.parametrize("outcome", ["unknown", "refused"])
def test_an_entry_that_was_not_accepted_is_not_sent_again_without_a_grant(outcome):
    """The keeper has not said anything yet: it may be asked, and refuses a bar that is used."""
    router = trading()
    answered(router, created(router), outcome=outcome)
    said = []
    for second in range(3):
        said += router.handle(quote(ts_ms=2 + second), T0 + second * NS)
        said += router.tick(T0 + second * NS)
    assert commands(said) == []


def test_an_unknown_exit_is_sent_again_under_the_same_id():
    router = trading(position(1, [lot()]))
    request = only(router.tick(T0))
    late = T0 + msg.ANSWER_NS
    unknown, again = of(msg.OrderRequest, router.tick(late))
    assert (unknown.outcome, again.outcome) == ("unknown", "")
    assert (again.order_link_id, again.action) == (request.order_link_id, "create")
    assert again.command > request.command


def test_an_answer_after_the_deadline_is_said_and_changes_nothing():
    router = trading(position(1, orders=[order()]))
    first = only(router.handle(quote(price=94.0), T0))
    late = T0 + msg.ANSWER_NS
    router.tick(late)
    router.handle(quote(price=93.0, ts_ms=2), late)
    second = only(router.handle(kline(96.0, ts_ms=1_000 + REPRICE_MS), late))
    (news,) = answered(router, first, late, "refused")
    assert (news.command, news.outcome) == (first.command, "refused")
    assert second.price == D(93)
    assert router.handle(position(2, orders=[order(price="93")]), late) == []  # it came through
    router.handle(kline(96.0, ts_ms=1_000 + 2 * REPRICE_MS), late)
    assert commands(router.handle(quote(price=92.0, ts_ms=3), late))  # and the order is not paused


def test_an_accepted_command_that_shows_no_effect_is_looked_at_again():
    router = trading(position(1, [lot()]))
    answered(router, only(router.tick(T0)))
    assert commands(router.tick(T0 + ECHO_NS - 1)) == []
    assert commands(router.tick(T0 + ECHO_NS)) == [("create", EXIT_ID, D("101.28"), D(2))]


def test_commands_count_up_over_a_restart():
    first = only(trading(position(1, [lot()])).tick(T0))
    second = only(trading(position(1, [lot()]), now_ns=T0 + NS).tick(T0 + NS))
    assert second.command > first.command


# Exits.


def test_a_lot_gets_an_exit_once():
    router = trading()
    request = only(router.handle(position(2, [lot()]), T0))
    assert commands([request]) == [("create", EXIT_ID, D("101.28"), D(2))]
    assert (request.side, request.time_in_force, request.reduce_only) == ("Sell", "GTC", True)
    assert router.handle(position(3, [lot()]), T0) == router.tick(T0) == []
    answered(router, request)
    assert router.handle(position(4, [lot()], [exit_order()]), T0) == []
    assert commands(router.tick(T0 + 60 * NS)) == []


def test_the_next_exit_of_a_lot_has_the_next_number():
    """The first was cancelled by somebody: nothing was sold, one exit is finished."""
    router = trading(position(1, [lot()], [exit_order()]))
    said = router.handle(position(2, [lot(exits=1)]), T0)
    assert commands(said) == [("create", EXIT_ID[:-1] + "1", D("101.28"), D(2))]


def test_a_price_amend_waits_two_seconds_of_market_time_and_a_quantity_amend_does_not():
    router = trading(position(1, [lot()], [exit_order()]))
    sell = {"side": "Sell", "zone": "HOLD"}
    first = only(router.handle(quote(price=101.0, **sell), T0))
    assert commands([first]) == [("amend", EXIT_ID, D(101), D(2))]
    answered(router, first)
    router.handle(position(2, [lot()], [exit_order("101")]), T0)
    assert router.handle(quote(price=100.5, ts_ms=2, **sell), T0) == []
    assert router.handle(kline(96.0, ts_ms=1_000 + REPRICE_MS - 1), T0) == []
    grown = router.handle(position(3, [lot("3")], [exit_order("101")]), T0)
    assert commands(grown) == [("amend", EXIT_ID, D("100.5"), D(3))]
    answered(router, only(grown))
    router.handle(position(4, [lot("3")], [exit_order("100.5", "3")]), T0)
    assert router.handle(quote(price=100.2, ts_ms=3, **sell), T0) == []
    said = router.handle(kline(96.0, ts_ms=1_000 + REPRICE_MS), T0)
    assert commands(said) == [("amend", EXIT_ID, D("100.2"), D(3))]


# Quotes run out.


def test_a_quote_that_is_not_said_again_counts_as_none_after_its_time():
    router = trading(position(1, orders=[order()]))
    heard = T0 + 10 * NS
    router.handle(mode(2, NAME), heard)
    assert router.handle(quote(), heard) == []
    assert router.tick(heard + 5 * NS) == []
    said = router.tick(heard + 5 * NS + 1)
    assert commands(said) == [("cancel", ENTRY_ID, D("95.45"), D("0.2"))]


def test_a_restarted_router_leaves_entries_alone_for_the_time_of_a_quote():
    router = trading(position(1, orders=[order()]))
    assert router.tick(T0 + 5 * NS - 1) == []
    assert [c[0] for c in commands(router.tick(T0 + 5 * NS))] == ["cancel"]


def test_a_restarted_router_that_hears_none_cancels_at_once():
    router = trading(position(1, orders=[order()]))
    assert [c[0] for c in commands(router.handle(quote("NONE"), T0))] == ["cancel"]


@pytest.mark.parametrize("name", ["REDUCE_ONLY", "CANCEL_ALL", "FLATTEN"])
def test_a_restarted_router_obeys_a_mode_without_entries_at_once(name):
    router = trading(position(1, orders=[order()]), name=name)
    assert [c[0] for c in commands(router.tick(T0))] == ["cancel"]


# Positions, modes and ledgers.


def test_an_older_position_changes_nothing():
    router = trading(position(5, orders=[order()]))
    assert router.handle(position(4, [lot()]), T0) == []
    assert router.handle(quote(), T0) == []  # the entry still rests


def test_an_older_full_set_changes_nothing():
    """Two were asked for at the start; the second answer may come after a newer position."""
    router = trading(row=1)
    router.handle(position(5, orders=[order()]), T0)
    router.handle(full_set(row=3), T0)
    assert router.handle(quote(), T0) == []  # the entry still rests


def test_a_symbol_that_the_mode_does_not_list_is_empty():
    router = trading(position(5, orders=[order()]))
    assert router.handle(quote(), T0) == []
    router.handle(mode(6), T0)
    assert asked(router, quote(bar=6, ts_ms=2)).symbol == NAME


def test_a_mode_older_than_a_position_does_not_empty_it():
    router = trading(row=1)
    router.handle(position(5, orders=[order()]), T0)
    router.handle(mode(4), T0)
    assert router.handle(quote(), T0) == []


def test_a_new_mode_is_obeyed_at_once():
    router = trading(position(1, [lot()], [exit_order(), order()]))
    router.handle(quote(), T0)
    said = router.handle(mode(2, NAME, name="CANCEL_ALL"), T0)
    assert {(action, name) for action, name, _, _ in commands(said)} == {
        ("cancel", ENTRY_ID),
        ("cancel", EXIT_ID),
    }


def test_a_new_mode_is_acted_on_nearest_quote_first():
    armed = names(8, "A")
    router = trading(symbols=armed, name="NO_ENTRY")
    for number, name in enumerate(armed):
        router.handle(quote(symbol=name, distance=(-1) ** number * (8 - number) / 10), T0)
    asks = of(msg.Ask, router.handle(mode(2), T0))
    assert [ask.symbol for ask in asks] == armed[::-1]


def test_flatten_reprices_the_exits_to_the_last_price():
    router = trading(position(1, [lot()], [exit_order()]), last=97.0)
    said = router.handle(mode(2, NAME, name="FLATTEN"), T0)
    assert commands(said) == [("amend", EXIT_ID, D("96.03"), D(2))]  # 97 * 0.99


def test_another_ledger_starts_over():
    """Nothing that the old one said counts, until the new one has said everything."""
    router = trading(position(50, [lot()], [exit_order()]))
    said = router.handle(mode(1, NAME, ledger="another"), T0)
    said += router.handle(kline(96.0, ts_ms=2_000), T0) + router.handle(quote(), T0)
    said += router.tick(T0 + NS)
    assert (commands(said), of(msg.Ask, said)) == ([], [])
    assert msg.LedgerAsk() in said
    router.handle(full_set(position(2, [lot("3", bar=2)], ledger="another"), ledger="another"), T0)
    said = router.tick(T0 + NS)
    assert commands(said) == [("create", "dm-XUSDT-1ab3f02-Bx0", D("101.28"), D(3))]


# The budget.


def names(count, prefix):
    return [f"{prefix}{number}USDT" for number in range(count)]


class Sent(NamedTuple):
    """One command that left."""

    at_ns: int
    kind: str  # H for a held symbol's exit, A for an armed one's entry
    batch: bool


def sent_of(messages, now_ns):
    found = [m for m in of(msg.OrderRequest, messages) if not m.outcome]
    return [Sent(now_ns, m.symbol[0], m.batch) for m in found]


def flooded():
    """Every create of 32 symbols: 20 lots without an exit, 12 armed quotes that are nearer.

    Every ask is granted at once, and every command is answered at once; nothing is seen of it.
    """
    held, armed = names(20, "H"), names(12, "A")
    lots = [position(1, [lot(symbol=name)], symbol=name) for name in held]
    router = trading(*lots, symbols=[*held, *armed])
    sent = []
    for turn in range(100):
        now_ns = T0 + turn * RETRY_NS
        said = router.handle(mode(2, *held), now_ns)
        for name in [*held, *armed]:
            zone, distance = ("ARM", 0.1) if name in armed else ("NONE", 3.0)
            said += router.handle(quote(zone, symbol=name, distance=distance, ts_ms=turn), now_ns)
        for ask in of(msg.Ask, said):
            said += router.handle(msg.Grant(ask.order_link_id, True), now_ns)
        for request in of(msg.OrderRequest, said):
            answered(router, request, now_ns)
        sent += sent_of(said, now_ns)
    return sent


def most_in_a_second(sent):
    return max(sum(0 <= row.at_ns - first.at_ns < NS for row in sent) for first in sent)


def test_a_flood_never_sends_more_than_eight_creates_in_a_second_by_each_of_two_buckets():
    sent = flooded()
    assert sorted(row.kind for row in sent) == ["A"] * 12 + ["H"] * 20  # in the end, all of them
    assert most_in_a_second(sent) == 16
    for batch in (False, True):
        assert most_in_a_second([row for row in sent if row.batch == batch]) == 8  # 10 * 0.8


def asked_for(router, symbols, now_ns, **quoted):
    """The asks of so many armed quotes, heard at once."""
    said = router.handle(mode(2), now_ns)
    for name in symbols:
        said += router.handle(quote(symbol=name, **quoted), now_ns)
    return of(msg.Ask, said)


def test_no_more_entries_are_asked_for_than_may_leave_in_this_second():
    """10 * 0.8 * 0.7 = 5.6 by each of two buckets: the create is paid for when it is asked for."""
    armed = names(24, "A")
    router = trading(symbols=armed)
    assert [len(asked_for(router, armed, T0, ts_ms=n)) for n in (1, 2)] == [10, 0]
    assert asked_for(router, armed, T0 + msg.ANSWER_NS - 1, ts_ms=3) == []
    assert len(asked_for(router, armed, T0 + msg.ANSWER_NS, ts_ms=4)) == 10


def test_what_a_refused_ask_did_not_use_is_there_for_another():
    armed = names(12, "A")
    router = trading(symbols=armed)
    asks = asked_for(router, armed, T0)
    assert len(asks) == 10
    for ask in (asks[0], asks[-1]):  # one of each bucket
        router.handle(msg.Grant(ask.order_link_id, False, "max_slots"), T0)
    later = asked_for(router, armed, T0 + RETRY_NS, ts_ms=2)
    assert [ask.symbol for ask in later] == ["A10USDT", "A11USDT"]
    grants = [msg.Grant(ask.order_link_id, True) for ask in later]
    sent = [only(router.handle(grant, T0 + RETRY_NS)) for grant in grants]
    assert [request.batch for request in sent] == [False, True]


def test_the_nearest_quotes_are_asked_for_first():
    """Their turn comes when there is room; here each is a little nearer than the one before."""
    armed = names(14, "A")
    router = trading(symbols=armed)
    for number, name in enumerate(armed):
        router.handle(quote(symbol=name, distance=1.0 - number / 100), T0)
    router.handle(mode(2), T0 + msg.ANSWER_NS)
    late = of(msg.Ask, router.tick(T0 + msg.ANSWER_NS))
    assert [ask.symbol for ask in late] == ["A13USDT", "A12USDT", "A11USDT", "A10USDT"]


def test_an_entry_that_was_paid_for_by_the_twin_leaves_by_the_twin():
    armed = names(6, "A")
    router = trading(symbols=armed)
    asks = asked_for(router, armed, T0)
    sent = [router.handle(msg.Grant(ask.order_link_id, True), T0)[0] for ask in asks]
    assert [request.batch for request in sent] == [False] * 5 + [True]


def test_an_amend_and_a_cancel_have_twins_too():
    """8 of 10 in each bucket; cancels of entries use what exits may use."""
    resting = names(9, "A")
    at = [position(1, [], [order(f"dm-{n}-1ab3f01-B", symbol=n)], n) for n in resting]
    router = trading(*at, symbols=resting)
    said = [m for n in resting for m in router.handle(quote("NONE", symbol=n), T0)]
    assert [m.batch for m in of(msg.OrderRequest, said)] == [False] * 8 + [True]


def test_grants_that_come_late_and_all_at_once_do_not_send_more_either():
    """A keeper whose disk was slow for a second: what was asked then leaves now, and counts now."""
    armed, held = names(24, "A"), names(24, "H")
    router = trading(symbols=[*armed, *held])
    asks, late = asked_for(router, armed, T0), T0 + NS - 1
    said = [m for ask in asks for m in router.handle(msg.Grant(ask.order_link_id, True), late)]
    for now_ns in (late, T0 + NS, late + NS - 1):
        for ask in asked_for(router, armed, now_ns, bar=6):
            said += router.handle(msg.Grant(ask.order_link_id, True), now_ns)
        for name in held:
            said += router.handle(position(3, [lot(symbol=name)], symbol=name), now_ns)
    sent = sent_of(said, late)
    for batch in (False, True):
        kinds = [row.kind for row in sent if row.batch == batch]
        assert (kinds.count("A"), kinds.count("H")) == (5, 3)


@pytest.mark.parametrize("code", TOO_OFTEN)
def test_a_bucket_that_the_exchange_calls_empty_is_left_alone_for_a_second(code):
    """Its twin goes on: it has a budget of its own."""
    held = names(4, "H")
    router = trading(*(position(1, [lot(symbol=n)], symbol=n) for n in held[:1]), symbols=held)
    first = only(router.tick(T0))
    assert not first.batch
    router.handle(first._replace(outcome="refused", ret_code=code), T0)
    for number, (at_ns, batch) in enumerate(((SHUT_NS - 1, True), (SHUT_NS, False)), 1):
        said = router.handle(
            position(2, [lot(symbol=held[number])], symbol=held[number]), T0 + at_ns
        )
        assert [m.batch for m in of(msg.OrderRequest, said) if m.symbol == held[number]] == [batch]


def test_a_twin_that_is_shut_leaves_the_first_bucket_open():
    held = names(10, "H")
    router = trading(*(position(1, [lot(symbol=n)], symbol=n) for n in held[:9]), symbols=held)
    *others, ninth = of(msg.OrderRequest, router.tick(T0))
    assert [request.batch for request in (*others, ninth)] == [False] * 8 + [True]
    for request in others:
        answered(router, request)
    router.handle(ninth._replace(outcome="refused", ret_code=10006), T0 + NS - 1)
    later = T0 + NS
    said = router.handle(position(2, [lot(symbol=held[9])], symbol=held[9]), later)
    assert [m.batch for m in of(msg.OrderRequest, said)] == [False]


# From the grant to the create.


def test_a_grant_is_sent_at_once_up_to_a_second_after_the_ask():
    """Later, the keeper may have looked for the order, found nothing and freed its slot."""
    for late_ns, outcome in ((0, ""), (msg.SEND_NS, ""), (msg.SEND_NS + 1, "refused")):
        router = trading()
        asked(router, quote(ts_ms=1))
        router.handle(quote(ts_ms=2), T0 + late_ns)
        request = only(router.handle(msg.Grant(ENTRY_ID, True), T0 + late_ns))
        assert (request.order_link_id, request.outcome) == (ENTRY_ID, outcome)


def test_a_grant_that_is_said_twice_is_sent_once():
    router = trading()
    created(router)
    assert router.handle(msg.Grant(ENTRY_ID, True), T0) == []


UNWANTED = {
    "mode NO_ENTRY": mode(2, name="NO_ENTRY"),
    "mode REDUCE_ONLY": mode(2, name="REDUCE_ONLY"),
    "mode CANCEL_ALL": mode(2, name="CANCEL_ALL"),
    "mode FLATTEN": mode(2, name="FLATTEN"),
    "the quote is none": quote("NONE", ts_ms=2),
    "the other side is quoted": quote(side="Sell", price=96.5, ts_ms=2),
}


@pytest.mark.parametrize("change", UNWANTED.values(), ids=UNWANTED.keys())
def test_a_grant_whose_entry_is_no_longer_wanted_is_not_sent_and_said_to_be_refused(change):
    """The keeper then frees the slot; the exchange never hears of it."""
    router = trading()
    ask = asked(router, quote())
    router.handle(change, T0)
    request = only(router.handle(msg.Grant(ENTRY_ID, True), T0))
    assert (request.order_link_id, request.action, request.outcome) == (
        ENTRY_ID,
        "create",
        "refused",
    )
    assert request.reason == "no longer wanted: not sent"
    assert (request.reduce_only, request.ret_code) == (False, 0)
    assert request.decided_ns >= ask.decided_ns
    assert commands(router.tick(T0)) == []
    assert router.handle(msg.Grant(ENTRY_ID, True), T0) == []  # said once


def test_a_grant_whose_quote_ran_out_is_not_sent():
    """A quote of 1 s that was heard half a second before the ask, which waited for leverage."""
    for late_ns, outcome in ((0, ""), (1, "refused")):
        router = trading(leverage=False, QUOTE_TTL_MS=1_000)
        router.handle(quote(), T0)
        router.handle(msg.Fetched(msg.Fetch("leverage", NAME), ()), T0)
        assert of(msg.Ask, router.handle(kline(96.0, ts_ms=2_000), T0 + NS // 2))
        request = only(router.handle(msg.Grant(ENTRY_ID, True), T0 + NS + late_ns))
        assert request.outcome == outcome


def test_a_grant_in_hold_is_sent():
    """The price has moved away from the zone of creation, not out of the zone of resting."""
    router = trading()
    asked(router, quote())
    router.handle(quote("HOLD", ts_ms=2), T0)
    assert only(router.handle(msg.Grant(ENTRY_ID, True), T0)).outcome == ""


def test_a_grant_of_another_ledger_is_not_sent():
    router = trading()
    asked(router, quote())
    router.handle(mode(2, ledger="another"), T0)
    request = only(router.handle(msg.Grant(ENTRY_ID, True), T0))
    assert (request.outcome, request.reason) == ("refused", "no longer wanted: not sent")


def test_a_grant_after_the_deadline_of_its_ask_is_not_sent():
    router = trading()
    asked(router, quote())
    router.tick(T0 + msg.ANSWER_NS)
    assert router.handle(msg.Grant(ENTRY_ID, True), T0 + msg.ANSWER_NS) == []


# After a refusal.

OTHER = "YUSDT"


def refused(code, now_ns=T0, outcome="refused", action="create", reason="because"):
    """A router whose entry of XUSDT was answered like this."""
    router = trading(symbols=(NAME, OTHER))
    request = created(router, now_ns)._replace(action=action)
    router.handle(request._replace(outcome=outcome, ret_code=code, reason=reason), now_ns)
    return router


def asks_later(router, pause_ns, symbol=NAME, bar=6):
    """What is asked for when the quote of a later bar is heard."""
    now_ns = T0 + pause_ns
    router.handle(mode(3), now_ns)
    said = router.handle(quote(bar=bar, ts_ms=bar, symbol=symbol), now_ns)
    return [ask.symbol for ask in of(msg.Ask, said)]


def test_after_a_refused_entry_its_symbol_pauses_for_a_minute_and_no_other():
    router = refused(110003)
    assert asks_later(router, SYMBOL_NS - 1) == []
    assert asks_later(router, SYMBOL_NS - 1, OTHER) == [OTHER]
    assert asks_later(router, SYMBOL_NS, bar=7) == [NAME]
    assert SYMBOL_NS == 60 * NS


@pytest.mark.parametrize("code", NO_MONEY)
def test_without_money_every_symbol_pauses_for_a_minute(code):
    router = refused(code)
    for symbol in (NAME, OTHER):
        assert asks_later(router, SYMBOL_NS - 1, symbol) == []
    for symbol in (NAME, OTHER):
        assert asks_later(router, SYMBOL_NS, symbol, bar=7) == [symbol]


NO_PAUSE = {
    "a bucket that is empty": (10006, "refused", "create"),
    "a bucket that is empty, elsewhere": (10429, "refused", "create"),
    "not sent at all": (0, "refused", "create"),
    "unknown": (10016, "unknown", "create"),
    "accepted": (0, "accepted", "create"),
    "an amend": (110003, "refused", "amend"),
    "a cancel": (110001, "refused", "cancel"),
}


@pytest.mark.parametrize("case", NO_PAUSE.values(), ids=NO_PAUSE.keys())
def test_nothing_else_pauses_a_symbol(case):
    code, outcome, action = case
    router = refused(code, outcome=outcome, action=action)
    assert asks_later(router, 2 * SHUT_NS) == [NAME]


def test_a_refused_exit_pauses_no_entry():
    """Not even for want of money: it pauses itself."""
    router = trading(position(1, [lot(symbol=OTHER)], symbol=OTHER), symbols=(NAME, OTHER))
    request = only(router.tick(T0))
    router.handle(request._replace(outcome="refused", ret_code=NO_MONEY[0]), T0)
    router.handle(mode(3, OTHER), T0 + 1)
    assert of(msg.Ask, router.handle(quote(), T0 + 1))


def test_exits_go_on_while_entries_pause():
    router = refused(NO_MONEY[0])
    said = router.handle(position(3, [lot(symbol=OTHER)], symbol=OTHER), T0 + 1)
    assert [action for action, *_ in commands(said)] == ["create"]


def test_a_refusal_after_the_deadline_counts_too():
    router = trading()
    request = created(router)
    router.tick(T0 + msg.ANSWER_NS)
    router.handle(request._replace(outcome="refused", ret_code=110003), T0 + msg.ANSWER_NS)
    assert asks_later(router, msg.ANSWER_NS + NS) == []


# Stop losses.


def test_the_stop_loss_travels_with_the_entry():
    """2 %: 95.45 * 0.98 = 93.541, down; 104.56 * 1.02 = 106.6512, up."""
    router = trading(STOP_LOSS_PCT=2.0)
    request = created(router)
    assert (request.price, request.stop_loss) == (D("95.45"), D("93.54"))
    router = trading(STOP_LOSS_PCT=2.0, last=104.0)
    ask = asked(router, quote(side="Sell", price=104.55225))
    request = only(router.handle(msg.Grant(ask.order_link_id, True), T0))
    assert (request.price, request.stop_loss) == (D("104.56"), D("106.66"))


def test_the_stop_loss_moves_with_the_price_of_its_entry():
    """94 * 0.98 = 92.12."""
    router = trading(position(1, orders=[order()]), STOP_LOSS_PCT=2.0)
    request = only(router.handle(quote(price=94.0), T0))
    assert (request.action, request.stop_loss) == ("amend", D("92.12"))


def test_without_the_setting_there_is_no_stop_loss():
    assert created(trading()).stop_loss == 0


def test_exits_and_cancels_carry_no_stop_loss():
    router = trading(position(1, [lot()], [order()]), name="REDUCE_ONLY", STOP_LOSS_PCT=2.0)
    requests = of(msg.OrderRequest, router.tick(T0))
    assert {(r.action, r.stop_loss) for r in requests} == {("create", D(0)), ("cancel", D(0))}


def stop_of(a_lot, status="Untriggered"):
    name = msg.stop_id(a_lot.entry_id)
    terms = (name, "S7", NAME, opposite(a_lot.side), msg.STOP, D(0), a_lot.bought, D(0), status)
    return msg.Order(*terms, BAR_MS, D("1.275"), 0)


def test_a_stop_is_cancelled_by_its_own_id_once_its_lot_is_sold():
    open_lot = lot()
    router = trading(position(1, [open_lot], [exit_order(), stop_of(open_lot)]))
    assert router.tick(T0) == []  # it guards the lot
    sold = open_lot._replace(sold=D(2), proceeds=D(202))
    said = router.handle(position(2, [sold], [stop_of(sold)]), T0)
    request = only(said)
    assert (request.action, request.order_link_id) == ("cancel", "dm-XUSDT-1ab3f01-Bs")
    assert (request.order_id, request.symbol) == ("S7", NAME)
    assert router.tick(T0) == []  # one command in flight
    answered(router, request)
    assert router.handle(position(3), T0) == router.tick(T0 + NS) == []


def test_an_order_of_ours_goes_by_its_own_id():
    router = trading(position(1, [lot()]))
    assert only(router.tick(T0)).order_id == ""


# Dust.


def test_an_exit_below_the_smallest_order_is_not_sent_and_said_once_a_minute():
    """The keeper merges it into another lot; 0.05 < 0.1."""
    router = trading(position(1, [lot("0.05")]))
    (news,) = router.tick(T0)
    assert (news.order_link_id, news.action, news.reduce_only) == (EXIT_ID, "create", True)
    assert (news.outcome, news.reason) == ("refused", msg.DUST)
    assert of(msg.OrderRequest, router.tick(T0 + BACKOFF_NS[-1] - 1)) == []
    assert only(router.tick(T0 + BACKOFF_NS[-1])).reason == msg.DUST


def test_an_exit_of_the_smallest_order_is_sent():
    router = trading(position(1, [lot("0.1")]))
    assert commands(router.tick(T0)) == [("create", EXIT_ID, D("101.28"), D("0.1"))]


def test_dust_costs_no_budget():
    held = names(20, "H")
    dusty = [position(1, [lot("0.05", symbol=n)], symbol=n) for n in held[:12]]
    whole = [position(1, [lot(symbol=n)], symbol=n) for n in held[12:]]
    router = trading(*dusty, *whole, symbols=held)
    assert len(commands(router.tick(T0))) == 8


# Touches: what came of every band that was touched.


def touches(router, now_ns=T0, bar=6):
    """(id, outcome) of what is said once the next bar has begun."""
    said = router.handle(quote("NONE", bar=bar, ts_ms=100 + bar), now_ns)
    return [(touch.entry_id, touch.outcome) for touch in of(msg.Touch, said)]


def untrusted(router):
    router.handle(msg.Fetched(msg.Fetch("account"), (), "timeout", -1), T0)


def unwilling(router):
    router.handle(mode(2, name="NO_ENTRY"), T0)


OUTCOMES = {
    "one-way mode is not known": (untrusted, quote(), "leverage"),
    "the mode": (unwilling, quote(), "halted"),
    "the price is far from the quote": (None, quote(price=90.0), "guard"),
    "the worker's own gate": (None, quote("NONE")._replace(gate="volatility"), "volatility"),
}


@pytest.mark.parametrize("case", OUTCOMES.values(), ids=OUTCOMES.keys())
def test_a_touch_without_an_order_says_why(case):
    first, touched, outcome = case
    router = trading()
    if first:
        first(router)
    router.handle(touched, T0)
    assert touches(router) == [(ENTRY_ID, outcome)]
    assert touches(router, bar=7) == []  # said once


def test_a_touch_whose_leverage_is_not_set_says_so():
    router = trading(leverage=False)
    router.handle(quote(), T0)
    assert touches(router) == [(ENTRY_ID, "leverage")]


def test_a_touch_in_a_symbol_that_pauses_says_refused():
    router = refused(110003)
    asks_later(router, NS)
    assert touches(router, T0 + NS, bar=7) == [("dm-XUSDT-1ab3f06-B", "refused")]


@pytest.mark.parametrize("more", [[], [quote(ts_ms=2)]])
def test_a_touch_that_the_keeper_refused_has_its_reason(more):
    router = trading()
    asked(router, quote())
    router.handle(msg.Grant(ENTRY_ID, False, "max_slots"), T0)
    for heard in more:
        router.handle(heard, T0)
    assert touches(router) == [(ENTRY_ID, "max_slots")]


def test_a_touch_that_the_budget_held_back_to_the_end_says_budget():
    armed = names(11, "A")
    router = trading(symbols=armed)
    asked_for(router, armed, T0)
    said = [m for n in armed for m in router.handle(quote("NONE", symbol=n, bar=6, ts_ms=9), T0)]
    found = [touch.outcome for touch in of(msg.Touch, said)]
    assert (len(found), found.count("budget")) == (11, 1)


def test_a_touch_that_led_to_an_order_says_so_whatever_comes_after():
    router = trading()
    answered(router, created(router), outcome="refused")
    router.handle(mode(2, name="NO_ENTRY"), T0)
    router.handle(quote(ts_ms=2), T0)
    assert touches(router) == [(ENTRY_ID, "order")]


def test_a_touch_before_the_ledger_is_known_is_told_too():
    router = begun()
    router.handle(quote(), T0)
    assert touches(router) == [(ENTRY_ID, "stale")]


def test_touches_of_symbols_that_fell_silent_are_told_by_the_clock():
    router = trading()
    asked(router, quote())
    assert of(msg.Touch, router.tick(T0 + 120 * NS)) == []
    (touch,) = of(msg.Touch, router.tick(T0 + 120 * NS + 1))
    assert touch.entry_id == ENTRY_ID


def test_exits_are_amended_before_entries():
    """12 of each want another price; which go first at T0 is chance, but not who waits longer."""
    held, armed, sent = names(12, "H"), names(12, "A"), []
    far = {n: order(f"dm-{n}-1ab3f01-Bx0", "Sell", "105", "2", symbol=n) for n in held}
    at = [position(1, [lot(symbol=n)], [far[n]], n) for n in held]
    at += [position(1, [], [order(f"dm-{n}-1ab3f01-B", symbol=n)], n) for n in armed]
    router = trading(*at, symbols=[*held, *armed])
    for turn in range(100):
        now_ns = T0 + turn * RETRY_NS
        said = router.handle(mode(2, *held, *armed), now_ns)
        for name in [*armed, *held]:
            rest = {"distance": 0.1} if name in armed else {"distance": 3.0, "zone": "NONE"}
            said += router.handle(quote(symbol=name, price=94.0, ts_ms=turn, **rest), now_ns)
        sent += [(now_ns, c[1][3]) for c in commands(said) if c[0] == "amend"]
    waited = [kind for at_ns, kind in sent if at_ns > T0]
    assert len(sent) == 24
    assert waited == sorted(waited, reverse=True)


def test_exits_that_were_held_back_go_before_entries():
    """16 exits in the first second and 4 in the next, however near the entries are."""
    assert [row.kind for row in flooded()] == ["H"] * 20 + ["A"] * 12


def test_a_limit_that_the_exchange_names_is_used_for_the_bucket_it_names():
    """20 * 0.8 = 16 creates in a second, and 8 by the twin as before."""
    held = names(30, "H")
    router = trading(*(position(1, [lot(symbol=name)], symbol=name) for name in held), symbols=held)
    first, *rest = of(msg.OrderRequest, router.tick(T0))
    assert [request.batch for request in rest] == [False] * 7 + [True] * 8
    router.handle(first._replace(outcome="accepted", rate_limit=20), T0)
    assert [row.batch for row in sent_of(router.tick(T0), T0)] == [False] * 8
    router.handle(rest[-1]._replace(outcome="accepted", rate_limit=12), T0)
    assert [row.batch for row in sent_of(router.tick(T0), T0)] == [True]  # int(12 * 0.8) = 9


def test_the_side_of_an_exit_is_opposite_to_its_lot():
    for side in ("Buy", "Sell"):
        router = trading(position(1, [lot(side=side)]))
        assert only(router.tick(T0)).side == opposite(side)


# A trade socket that serves nothing, instruments that nobody has yet.


def lost(router, count, now_ns):
    """So many exits go, and nothing is heard of any of them: what is said after that."""
    lots = [lot(symbol=f"S{number}USDT") for number in range(count)]
    for number, one in enumerate(lots):
        router.handle(kline(100.0, one.symbol), now_ns)
        router.handle(position(number + 2, [one], symbol=one.symbol), now_ns)
    return router.tick(now_ns + msg.ANSWER_NS)


def many(count):
    return trading(symbols=[NAME, *(f"S{number}USDT" for number in range(count))])


def test_commands_that_nobody_answers_open_the_trade_socket_anew():
    assert of(msg.Rebuild, lost(many(UNHEARD - 1), UNHEARD - 1, T0 + 1)) == []
    (rebuild,) = of(msg.Rebuild, lost(many(UNHEARD), UNHEARD, T0 + 1))
    assert rebuild.name == "trade"


def test_what_an_old_connection_has_lost_is_not_held_against_the_new_one():
    router = many(UNHEARD)
    for up in (False, True):
        router.handle(msg.Link("trade", up), T0 + 2)
    assert of(msg.Rebuild, lost(router, UNHEARD, T0 + 1)) == []


def test_a_trade_socket_is_opened_anew_once_in_a_while_only():
    router, seconds = trading(), []
    for second in range(20):
        now_ns = T0 + second * 1_000_000_000
        head = (EXIT_ID, second, "amend", NAME, "Sell", D(1), D(1), "GTC", True, 0, 0)
        request = msg.OrderRequest(*head)
        refused = request._replace(outcome="unknown", ret_code=10019)
        seconds += [second for _ in of(msg.Rebuild, router.handle(refused, now_ns))]
    assert seconds == [0, REOPEN_NS // 1_000_000_000]


def test_an_ingestor_that_knows_no_instrument_yet_takes_none_away():
    router = trading(position(1, [lot()]))
    router.handle(msg.Instruments(()), T0)
    assert commands(router.tick(T0)) == [("create", EXIT_ID, D("101.28"), D(2))]
