"""The router by messages: what the keeper and the workers say goes in, commands come out.

The instrument has ticks of 0.01 and steps of 0.1; SIZE_USDT is 20. A buy is quoted at 95.45 under a
last price of 96, and 20 / 95.45 = 0.2095 buys 0.2. Lots of 2 bought at 100 leave at 101.28.
"""

from decimal import Decimal

import pytest

from services.router.actor import ANSWER_NS, BACKOFF_NS, ECHO_NS, REPRICE_MS, RETRY_NS, Router
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


def quote(zone="ARM", price=95.45, side="Buy", bar=5, ts_ms=1, symbol=NAME, distance=0.1):
    rest = (1.275, 95.5, 104.5, 96.0, distance, 2.0, BAR_MS + bar * 60_000, ts_ms, 77, 88)
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


def test_an_ask_that_nobody_answered_is_asked_again_under_the_same_id():
    router = trading()
    ask = asked(router, quote())
    assert router.handle(msg.NoAnswer(ask), T0) == []
    assert asked(router, quote(ts_ms=2)).order_link_id == ENTRY_ID


def test_an_older_quote_changes_nothing():
    router = trading()
    router.handle(quote("NONE", ts_ms=5), T0)
    assert router.handle(quote("ARM", ts_ms=4), T0) == []


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
    fetched = [fetch.symbol for fetch in router.tick(T0)]
    assert fetched == ["S7USDT", "S6USDT", "S5USDT", "S4USDT", "S3USDT"]
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
    assert router.tick(T0 + ANSWER_NS - 1) == []
    late = T0 + ANSWER_NS
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
    late = T0 + ANSWER_NS
    unknown, again = of(msg.OrderRequest, router.tick(late))
    assert (unknown.outcome, again.outcome) == ("unknown", "")
    assert (again.order_link_id, again.action) == (request.order_link_id, "create")
    assert again.command > request.command


def test_an_answer_after_the_deadline_is_said_and_changes_nothing():
    router = trading(position(1, orders=[order()]))
    first = only(router.handle(quote(price=94.0), T0))
    late = T0 + ANSWER_NS
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


def flooded():
    """(moment, H or A) of every create: 12 lots without an exit, 12 armed quotes that are nearer.

    Every ask is granted at once, and the exchange answers nothing.
    """
    held, armed = names(12, "H"), names(12, "A")
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
        sent += [(now_ns, m.symbol[0]) for m in of(msg.OrderRequest, said) if not m.outcome]
    return sent


def most_in_a_second(sent):
    return max(sum(0 <= at - start < NS for at, _ in sent) for start, _ in sent)


def test_a_flood_never_sends_more_than_eight_creates_in_a_second():
    sent = flooded()
    assert most_in_a_second(sent) == 8  # 10 * 0.8
    assert sorted(kind for _, kind in sent) == ["A"] * 12 + ["H"] * 12  # in the end, all of them


def test_grants_that_come_late_and_all_at_once_do_not_send_more_either():
    """A keeper whose disk was slow for a second: what was asked at 5 a second comes as 10."""
    armed, asks = names(12, "A"), []
    router = trading(symbols=armed)
    for now_ns in (T0, T0 + NS):
        for name in armed:
            asks += of(msg.Ask, router.handle(quote(symbol=name), now_ns))
    said = [m for ask in asks for m in router.handle(msg.Grant(ask.order_link_id, True), T0 + NS)]
    assert 5 <= len(commands(said)) <= 8


HALF = T0 + NS // 2


def waiting_behind(exits):
    """A router whose entry was granted at HALF and waits for so many exits, 8 in a second."""
    held = names(exits, "H")
    lots = [position(1, [lot(symbol=name)], symbol=name) for name in held]
    router = trading(*lots, symbols=[NAME, *held])
    shown(router, router.tick(T0))
    asked(router, quote(), HALF)
    assert router.handle(msg.Grant(ENTRY_ID, True), HALF) == []
    return router


def shown(router, said):
    """The keeper shows every exit that was created."""
    for request in of(msg.OrderRequest, said):
        if request.reduce_only and not request.outcome:
            rests = order(request.order_link_id, "Sell", "101.28", "2", symbol=request.symbol)
            now = position(1, [lot(symbol=request.symbol)], [rests], request.symbol)
            router.handle(now, request.decided_ns)


def sent_after_waiting(exits, seconds=3, name="RUN", ledger="ledger", zone="ARM", grants=0):
    """When the entry was created, if things are so from HALF on."""
    router, sent = waiting_behind(exits), []
    for _ in range(grants):
        router.handle(msg.Grant(ENTRY_ID, True), HALF)
    for turn in range(seconds * NS // RETRY_NS):
        now_ns = HALF + turn * RETRY_NS
        said = router.handle(mode(2, *names(exits, "H"), name=name, ledger=ledger), now_ns)
        said += router.handle(quote(zone, ts_ms=2 + turn), now_ns)
        said += router.tick(now_ns) if now_ns % NS == 0 else []
        shown(router, said)
        sent += [now_ns for c in commands(said) if c[:2] == ("create", ENTRY_ID)]
    return sent


def test_a_grant_that_waits_is_sent_when_there_is_room():
    assert sent_after_waiting(8) == [T0 + NS]


def test_a_grant_that_is_said_twice_is_sent_once():
    assert sent_after_waiting(8, grants=1) == [T0 + NS]


def test_a_grant_that_waited_too_long_is_not_sent():
    """60 / 8 = 7.5 seconds: the keeper has looked for the order meanwhile and freed its slot."""
    assert [at for at in sent_after_waiting(60, seconds=12) if at > HALF + ANSWER_NS] == []


@pytest.mark.parametrize("name", ["NO_ENTRY", "REDUCE_ONLY", "CANCEL_ALL", "FLATTEN"])
def test_a_grant_that_waits_is_not_sent_in_a_mode_without_new_entries(name):
    assert sent_after_waiting(8, name=name) == []


def test_a_grant_that_waits_is_not_sent_when_its_quote_is_gone():
    assert sent_after_waiting(8, zone="NONE") == []


def test_a_grant_of_another_ledger_is_not_sent():
    assert sent_after_waiting(8, ledger="another") == []


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
    """8 exits in the first second and 4 in the next, however near the entries are."""
    assert [kind for _, kind in flooded()] == ["H"] * 12 + ["A"] * 12


def test_a_limit_that_the_exchange_names_is_used():
    """20 * 0.8 = 16 creates in a second."""
    held = names(20, "H")
    router = trading(*(position(1, [lot(symbol=name)], symbol=name) for name in held), symbols=held)
    first, *rest = of(msg.OrderRequest, router.tick(T0))
    assert len(rest) == 7
    router.handle(first._replace(outcome="accepted", rate_limit=20), T0)
    assert len(commands(router.tick(T0))) == 8


def test_the_side_of_an_exit_is_opposite_to_its_lot():
    for side in ("Buy", "Sell"):
        router = trading(position(1, [lot(side=side)]))
        assert only(router.tick(T0)).side == opposite(side)
