"""watch: what the processes said last, as rows; states, distances, rates, and who is dead."""

from decimal import Decimal
from typing import Any

import pytest

from services.dashboard.watch import (
    ALIVE_NS,
    COMMANDS,
    PROCESSES,
    SILENT_NS,
    WORDS,
    Latency,
    Process,
    Row,
    Watch,
)
from shared import messages as msg

SECOND = 1_000_000_000
NOW = 1_000 * SECOND
SYMBOL = "AAAUSDT"
ENTRY = msg.entry_id(SYMBOL, "Buy", 6_000_000)


def quote(symbol: str = SYMBOL, ts_ms: int = 100, **other: Any) -> msg.Quote:
    """In the middle of 90 and 110, with nothing to do there."""
    head = (symbol, "Buy", 89.955, msg.NONE, "", 0.5, 90.0, 110.0, 99.0, 10.0, 0.4, 60_000)
    return msg.Quote(*head, ts_ms, NOW - 3 * SECOND, NOW)._replace(**other)


def lot(side: str = "Buy", bought: str = "2", sold: str = "0", **other: Any) -> msg.Lot:
    """Two bought at 95; what was sold brought 100 apiece."""
    sums = (Decimal(bought), 95 * Decimal(bought), Decimal(sold), 100 * Decimal(sold))
    rest = (Decimal(0), Decimal(0), 0, Decimal("0.5"), 6_000_000, 6_000_005)
    return msg.Lot(ENTRY, SYMBOL, side, *sums, *rest)._replace(**other)


def order(kind: str = msg.ENTRY) -> msg.Order:
    terms = (Decimal(90), Decimal(2), Decimal(0), "New", 6_000_000, Decimal("0.5"), 7)
    return msg.Order(ENTRY, "id", SYMBOL, "Buy", kind, *terms)


def position(*lots: msg.Lot, orders: tuple[msg.Order, ...] = (), **other: Any) -> msg.Position:
    return msg.Position(SYMBOL, ("ledger", 1), lots, orders)._replace(**other)


def mode(*symbols: str) -> msg.Mode:
    return msg.Mode(("ledger", 2), msg.RUN, "", symbols)


def health(service: str = "keeper", slot: int = 0, pid: int = 7, **other: Any) -> msg.Health:
    word = msg.Health(service, slot, pid, True, "", "", 0, {}, {}, 11, 22, "1")
    return word._replace(**other)


def request(**other: Any) -> msg.OrderRequest:
    """Decided 3 ms after its kline came in, accepted 5 ms later."""
    head = (ENTRY, 1, "create", SYMBOL, "Buy", Decimal(90), Decimal(2), "PostOnly", False)
    times = (NOW, NOW + 3_000_000)
    made = msg.OrderRequest(*head, *times, "accepted", answered_ns=NOW + 8_000_000)
    return made._replace(**other)


def watched(*messages: Any, at_ns: int = NOW) -> Watch:
    watch = Watch()
    for message in messages:
        watch.take(message, at_ns)
    return watch


def the_row(*messages: Any, at_ns: int = NOW) -> Row:
    (row,) = watched(*messages).board(at_ns)
    return row


def the_process(*words: tuple[int, msg.Health], at_ns: int) -> Process:
    watch = Watch()
    for when_ns, word in words:
        watch.take(word, when_ns)
    (found,) = [p for p in watch.processes(at_ns) if p.pid]
    return found


def dead(watch: Watch, at_ns: int) -> list[str]:
    return [process.name for process in watch.processes(at_ns) if not process.alive]


LONG, SHORT = position(lot()), position(lot("Sell"))
RESTING = position(orders=(order(),))


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("far", [quote()]),
        ("armed", [quote(zone=msg.ARM)]),
        ("hold", [quote(zone=msg.HOLD)]),
        ("volatility", [quote(gate="volatility")]),
        ("warmup", [quote(gate="warmup")]),
        ("stale", [quote(gate="stale")]),
        ("resting", [quote(zone=msg.ARM), RESTING]),
        ("long", [quote(zone=msg.ARM), LONG]),
        ("short", [quote(gate="volatility"), SHORT]),
        ("long", [quote(), position(lot(), orders=(order(),))]),
        ("blocked", [quote(), position(no_entry="difference")]),
        ("blocked", [quote(), position(foreign_qty=Decimal(-1))]),
        ("resting", [quote(), RESTING._replace(no_entry="difference")]),
        ("far", [quote(), position(orders=(order(msg.EXIT),))]),
        ("far", [quote(), position(lot(sold="2"))]),  # all sold: only its exit has not ended
        ("far", [quote(), position(lot(bought="0"))]),  # granted, and nothing filled
    ],
)
def test_the_state_of_a_symbol_is_one_word(state: str, said: list[Any]) -> None:
    assert the_row(*said).state == state


def test_a_symbol_is_silent_once_its_quote_was_not_repeated_for_five_seconds() -> None:
    watch = watched(quote(zone=msg.ARM))
    assert [row.state for row in watch.board(NOW + SILENT_NS)] == ["armed"]
    assert [row.state for row in watch.board(NOW + SILENT_NS + 1)] == ["silent"]
    watch.take(quote(zone=msg.ARM), NOW + SILENT_NS + 1)  # the same words, said again
    assert [row.state for row in watch.board(NOW + SILENT_NS + 2)] == ["armed"]


def test_what_is_held_counts_more_than_silence() -> None:
    assert the_row(quote(), LONG, at_ns=NOW + 2 * SILENT_NS).state == "long"


def test_distances_are_percents_of_the_band_positive_before_it() -> None:
    row = the_row(quote(last=99.0))
    assert row.to_lower_pct == pytest.approx(10.0)  # (99 - 90) / 90
    assert row.to_upper_pct == pytest.approx(10.0)  # (110 - 99) / 110
    beyond = the_row(quote(last=89.1))
    assert beyond.to_lower_pct == pytest.approx(-1.0)  # (89.1 - 90) / 90
    assert the_row(quote(last=111.1)).to_upper_pct == pytest.approx(-1.0)  # (110 - 111.1) / 110


def test_a_symbol_without_bands_has_no_distances() -> None:
    row = the_row(quote(gate="warmup", lower=0.0, upper=0.0))
    assert (row.to_lower_pct, row.to_upper_pct) == (None, None)
    assert the_row(quote(gate="band", lower=-1.0)).to_lower_pct is None


def test_a_row_tells_price_volatility_and_age() -> None:
    row = the_row(quote(), at_ns=NOW + SECOND)
    assert (row.symbol, row.last, row.volatility_pct) == (SYMBOL, 99.0, 0.4)
    assert row.age_s == pytest.approx(4.0)  # came in 3 s before NOW
    assert the_row(quote(recv_ns=0)).age_s is None


def test_open_profit_is_at_the_last_price_of_what_is_not_sold_and_what_was() -> None:
    # 2 bought at 95, 1 sold at 100, 1 left at 99: 100 + 99 - 190
    assert the_row(quote(), position(lot(sold="1"))).open_usdt == pytest.approx(9.0)
    # sold 2 at 95, bought none back, worth 99: 190 - 198
    assert the_row(quote(), SHORT).open_usdt == pytest.approx(-8.0)
    two = the_row(quote(), position(lot(), lot(bought="1")))
    assert (two.lots, two.open_usdt) == (2, pytest.approx(12.0))  # 3 * (99 - 95)
    assert the_row(quote()).open_usdt is None


def test_open_profit_of_all_is_known_only_with_every_price() -> None:
    other = LONG._replace(symbol="BBBUSDT")
    both = watched(quote(), quote("BBBUSDT", last=96.0), LONG, other)
    assert both.opened_usdt() == Decimal(10)  # 2 * (99 - 95) + 2 * (96 - 95)
    assert watched(quote(), LONG, other).opened_usdt() is None
    assert watched(quote(last=0.0), LONG).opened_usdt() is None
    assert watched(quote()).opened_usdt() == 0


def test_the_board_is_by_name_and_a_row_can_be_asked_for() -> None:
    watch = watched(*(quote(f"{letter}USDT") for letter in "CAB"))
    assert [row.symbol for row in watch.board(NOW)] == ["AUSDT", "BUSDT", "CUSDT"]
    assert watch.row("BUSDT", NOW) == watch.board(NOW)[1]
    assert watch.row("XUSDT", NOW) is None


def test_an_older_quote_changes_nothing_and_a_symbol_that_is_gone_leaves() -> None:
    watch = watched(quote(ts_ms=100, last=99.0), quote(ts_ms=99, last=98.0))
    assert watch.quotes[SYMBOL].last == 99.0
    watch.take(quote(ts_ms=101, gate="not_tradeable"), NOW)
    assert watch.board(NOW) == []
    watch.take(quote(ts_ms=102, gate="not_tradeable"), NOW)  # said again each second
    assert watch.board(NOW) == []


def test_a_symbol_that_the_mode_does_not_list_is_empty() -> None:
    watch = watched(quote(), LONG)
    watch.take(mode(SYMBOL), NOW)
    assert watch.board(NOW)[0].lots == 1
    watch.take(mode("BBBUSDT"), NOW)
    assert (watch.board(NOW)[0].state, watch.positions) == ("far", {})


def test_the_order_of_quote_position_and_mode_does_not_matter() -> None:
    said = (quote(), LONG, mode(SYMBOL))
    boards = [
        watched(*order_of).board(NOW)
        for order_of in ((a, b, c) for a in said for b in said for c in said if len({a, b, c}) == 3)
    ]
    assert len(boards) == 6 and all(board == boards[0] for board in boards)


def test_a_process_is_alive_for_two_and_a_half_seconds_after_a_word() -> None:
    word = (NOW, health())
    alive = the_process(word, at_ns=NOW + ALIVE_NS)
    dead = the_process(word, at_ns=NOW + ALIVE_NS + 1)
    assert ALIVE_NS == 2.5 * SECOND
    assert (alive.alive, alive.ready, dead.alive, dead.ready) == (True, True, False, False)
    assert alive.age_s == pytest.approx(2.5)


def test_who_does_not_speak_is_dead_and_who_never_spoke_is_too() -> None:
    watch = watched(health("ingestor"), health("router"), health("worker", 3))
    assert dead(watch, NOW) == ["keeper"]
    watch.take(health("keeper"), NOW + 2 * SECOND)
    assert dead(watch, NOW + 2 * SECOND) == []
    assert dead(watch, NOW + 3 * SECOND) == ["ingestor", "router", "worker-3"]
    watch.take(health("router"), NOW + 3 * SECOND)
    assert dead(watch, NOW + 3 * SECOND) == ["ingestor", "worker-3"]


def test_before_anybody_spoke_all_that_must_be_there_are_dead() -> None:
    processes = Watch().processes(NOW)
    assert [p.name for p in processes] == sorted(PROCESSES)
    assert not any(p.alive or p.ready or p.progress for p in processes)


def test_rates_are_those_of_the_last_five_seconds() -> None:
    words = [
        (NOW + n * SECOND, health(counters={"klines": 100 * n, "same": 5, "budget_create_pct": n}))
        for n in range(1, 10)
    ]
    # words 4 to 9: (900 - 400) / 5 s; what stands still, and a percentage, has no rate
    assert the_process(*words, at_ns=words[-1][0]).rates == {"klines": 100.0}
    assert WORDS - 1 == 5


def test_one_word_has_no_rates_and_a_new_process_counts_anew() -> None:
    before = [(NOW + n * SECOND, health(counters={"klines": 1_000 * n})) for n in range(3)]
    new = (NOW + 3 * SECOND, health(pid=8, counters={"klines": 50}))
    again = (NOW + 5 * SECOND, health(pid=8, counters={"klines": 70, "bars": 4}))
    assert the_process(before[0], at_ns=NOW).rates == {}
    assert the_process(*before, new, at_ns=new[0]).rates == {}
    after = the_process(*before, new, again, at_ns=again[0])
    assert after.rates == {"klines": 10.0, "bars": 2.0}  # 20 and 4 in 2 s


@pytest.mark.parametrize(
    ("ready", "note", "progress"),
    [
        (False, "120/500 symbols", 0.24),
        (False, "0/500", 0.0),
        (True, "120/500 symbols", None),
        (False, "", None),
        (False, "0/0 symbols", None),
        (False, "waiting 1/2", None),
        (False, "a/b", None),
        (False, "-1/2", None),
    ],
)
def test_progress_is_told_by_the_note_of_who_is_not_ready(
    ready: bool, note: str, progress: float | None
) -> None:
    process = the_process((NOW, health(ready=ready, note=note)), at_ns=NOW)
    assert process.progress == progress


def test_a_process_tells_its_age_of_input_inbox_and_times() -> None:
    word = health("ingestor", ages_ms={"feed": 120, "account": 5}, inbox=3)
    found = the_process((NOW, word), at_ns=NOW)
    assert (found.feed_age_ms, found.inbox, found.p50_us, found.p99_us) == (120, 3, 11, 22)
    router = the_process((NOW, health("router", ages_ms={"account": 5})), at_ns=NOW)
    assert router.feed_age_ms == 5


def test_a_generation_of_workers_that_was_replaced_disappears() -> None:
    watch = watched(*(health("worker", slot, shard=f"{slot}/2") for slot in (0, 1)))
    assert watch.shards() == 2
    later_ns = NOW + 2 * SILENT_NS
    for slot in (2, 3):
        watch.take(health("worker", slot, shard=f"{slot - 2}/3"), later_ns)
    assert {"worker-0", "worker-1"} <= set(dead(watch, later_ns)), "a third shard is nobody's yet"
    watch.take(health("worker", 4, shard="2/3"), later_ns)
    names = [p.name for p in watch.processes(later_ns) if p.pid]
    assert names == ["worker-2", "worker-3", "worker-4"]
    assert watch.health.keys() == set(names)
    assert watch.shards() == 3


def test_a_worker_whose_shard_nobody_has_taken_over_is_dead_for_ever() -> None:
    watch = watched(*(health("worker", slot, shard=f"{slot}/2") for slot in (0, 1)))
    for seconds in range(100):
        watch.take(health("worker", 0, shard="0/2"), NOW + seconds * SECOND)
    assert "worker-1" in dead(watch, NOW + 99 * SECOND)


def test_other_processes_stay_however_long_they_are_silent() -> None:
    watch = watched(health("keeper"))
    watch.take(health("router"), NOW + 100 * SECOND)
    assert "keeper" in watch.health and "keeper" in dead(watch, NOW + 100 * SECOND)


def test_times_of_commands_are_those_of_accepted_ones() -> None:
    watch = watched(
        request(),
        request(action="amend"),  # its answer counts, it was not decided by a kline
        request(outcome=""),
        request(outcome="refused"),
        request(outcome="unknown"),
    )
    assert watch.latencies() == [
        Latency("kline to decision", 3.0, 3.0, 1),
        Latency("decision to answer", 5.0, 5.0, 2),
    ]
    assert watched(request(recv_ns=0, answered_ns=0)).latencies() == []


def test_median_and_99th_percentile_are_of_the_latest_thousand() -> None:
    watch = Watch()
    for ms in range(2 * COMMANDS):
        answered_ns = request().decided_ns + (ms + 1) * 1_000_000
        watch.take(request(recv_ns=0, answered_ns=answered_ns), NOW)
    # 1001 to 2000 ms are left: the 501st and the 991st of them
    assert watch.latencies() == [Latency("decision to answer", 1501.0, 1991.0, COMMANDS)]


def test_small_questions_are_answered_from_the_last_words() -> None:
    watch = watched(
        health("ingestor", ages_ms={"feed": 250}),
        health("keeper", counters={"lots": 3}),
        quote(ts_ms=7),
        quote("BBBUSDT", ts_ms=9),
        msg.Wallet(Decimal(1_000), Decimal(990), Decimal(900)),
    )
    assert (watch.feed_age_ms(NOW), watch.market_ms(), watch.shards()) == (250, 9, 0)
    assert watch.counters("keeper", NOW) == {"lots": 3} and watch.counters("router", NOW) == {}
    assert watch.wallet and watch.wallet.total_equity == 1_000
    nothing = Watch()
    assert (nothing.feed_age_ms(NOW), nothing.market_ms(), nothing.opened_usdt()) == (None, 0, 0)
    assert watched(health("ingestor")).feed_age_ms(NOW) is None


def test_what_a_silent_process_said_is_no_longer_so() -> None:
    words = health("ingestor", ages_ms={"feed": 250}), health("keeper", counters={"lots": 3})
    watch = watched(*words)
    assert watch.speaks("keeper", NOW + ALIVE_NS) and not watch.speaks("keeper", NOW + ALIVE_NS + 1)
    assert watch.counters("keeper", NOW + ALIVE_NS + 1) == {}
    assert watch.feed_age_ms(NOW + ALIVE_NS + 1) is None


def test_a_symbol_that_is_not_traded_any_more_stays_while_it_is_held() -> None:
    watch = watched(quote(), position(lot()), quote(ts_ms=101, gate="not_tradeable"))
    assert [(row.symbol, row.state) for row in watch.board(NOW)] == [(SYMBOL, "long")]
    watch.take(mode(), NOW)
    assert watch.board(NOW) == []
    assert watched(quote(), quote(ts_ms=101, gate="not_tradeable")).board(NOW) == []


def test_the_universe_is_as_it_was_said_last() -> None:
    grid = (Decimal("0.1"),) * 5
    a, b = (msg.Instrument(name, *grid, "Trading", 480) for name in ("AUSDT", "BUSDT"))
    watch = watched(msg.Instruments((a, b)), msg.Instruments((b,)))
    assert watch.instruments == {"BUSDT": b}


def held_by(watch: Watch) -> int:
    """How many things it remembers in all."""
    containers = [value for value in vars(watch).values() if hasattr(value, "__len__")]
    nested = [len(words) for words in watch._words.values()]
    return sum(map(len, containers)) + sum(nested)


def test_nothing_grows_with_time() -> None:
    watch, sizes = Watch(), []
    for second in range(2 * COMMANDS):
        now_ns = NOW + second * SECOND
        watch.take(quote(ts_ms=second), now_ns)
        watch.take(LONG, now_ns)
        watch.take(mode(SYMBOL), now_ns)
        watch.take(health("keeper", pid=second), now_ns)
        watch.take(health("worker", second % 16, counters={"klines": second}), now_ns)
        watch.take(request(), now_ns)
        sizes.append(held_by(watch))
    assert sizes[-1] == max(sizes[COMMANDS:]) == sizes[COMMANDS]


def test_what_it_does_not_know_changes_nothing() -> None:
    watch = watched(msg.LedgerAsk(), msg.Touch(ENTRY, SYMBOL, "Buy", 1, "order"))
    assert held_by(watch) == 0
