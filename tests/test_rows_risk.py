# ruff: noqa: N802 - rows keep their capital letter
"""Limits and the strategy's own mistakes: rows I1 to I9 of the fault catalogue.

The whole bot and the paper exchange run in one thread (`stage`), with caps small enough to meet.
Bands of a still symbol: 99.6 and 100.6. A lot is bought at 99.5, its take profit rests at 100.0.
"""

from decimal import Decimal

import pytest

from services.worker.actor import Worker
from shared import messages as msg
from tests.stage import MINUTE_MS, START_MS, SYMBOLS, A, B, C, Theatre

NOT_APPLICABLE = {
    "I3 alarm on an overlap": "two workers may own one symbol: that is how shards are changed "
    "(DESIGN section 2, `make scale`); what counts is one entry",
    "I4 six entries an hour": "DESIGN section 6 has one entry per symbol, side and bar instead, "
    "and the option COOLDOWN_SECONDS",
    "I5 a quantity times 1000": "no message before the router holds a quantity: it is made there, "
    "from SIZE_USDT and the price",
    "I8 trading-stop": "the stop loss travels with its entry: the bot never sets one apart",
}
CREATE = "/v5/order/create"
TWENTY = tuple(f"S{n:02}USDT" for n in range(20))
MIDNIGHT_MS = 19_676 * 86_400_000  # UTC
NAN, INF = float("nan"), float("inf")
POOR = {"SIZE_USDT": Decimal(500), "DAILY_LOSS_PCT": 0, "DRAWDOWN_PCT": 0}  # half of the account


def open_symbols(stage):
    """Symbols with an entry or a lot."""
    return {symbol for symbol in stage.price if stage.entries(symbol) or stage.lots(symbol)}


def equity(stage):
    return stage.venue.matching.equity()


# I1: many signals at once.


@pytest.mark.parametrize(("slots", "symbols"), [(3, 50), (50, 3), (5, 4)])
def test_I1_many_signals_in_one_second_keep_the_caps_and_the_order_rate(slots, symbols):
    caps = {"MAX_SLOTS": slots, "MAX_SYMBOLS": symbols}
    rates = {"RATE_LIMIT": 10, "PAPER_RATE_LIMIT": 10}
    stage = Theatre(TWENTY, **caps, **rates)
    stage.listen()
    for symbol in TWENTY:
        stage.to(symbol, "99.8")
    assert len(stage.asked(CREATE)) <= 8
    stage.run(3)
    assert len(open_symbols(stage)) == min(slots, symbols)
    for symbol in TWENTY:
        stage.to(symbol, "99.0")
    stage.run(60)
    assert len(open_symbols(stage)) <= min(slots, symbols)
    assert stage.ledger.slots() <= slots
    for symbol in TWENTY:
        stage.to(symbol, "100.1")
    stage.breathe(8)
    for symbol in TWENTY:
        stage.to(symbol, "99.8")
    stage.run(3)
    assert len(open_symbols(stage)) == min(slots, symbols)
    stage.end()  # the auditor counted at every event


def test_I1_of_quotes_that_wait_together_the_nearest_get_the_slots():
    stage = Theatre(MAX_SYMBOLS=1)
    stage.operate(msg.REDUCE_ONLY)
    stage.run(2)
    stage.to(A, "99.9")  # 0.3 % from its band
    stage.to(B, "99.8")
    stage.to(C, "99.7", 2)  # 0.1 %
    assert [stage.last_quote(s).zone for s in SYMBOLS] == [msg.ARM] * 3
    stage.operate(msg.RUN)
    stage.run(2)
    assert open_symbols(stage) == {C}
    stage.end()


def test_I1_the_same_shock_has_the_same_outcome_twice():
    def outcome():
        stage = Theatre(TWENTY, MAX_SYMBOLS=3, RATE_LIMIT=10, PAPER_RATE_LIMIT=10)
        for symbol in TWENTY:
            stage.to(symbol, "99.8")
        stage.run(5)
        assert len(open_symbols(stage)) == 3
        return stage.venue.digest(), stage.said(msg.OrderRequest)

    assert outcome() == outcome()


def test_I1_a_slot_that_is_free_again_is_given_once():
    stage = Theatre(MAX_SLOTS=2, MAX_SYMBOLS=2)
    stage.rest(A)
    stage.rest(B)
    stage.to(C, "99.8", 2)
    assert not stage.entries(C)
    stage.to(A, "100.2", 60)  # its quote is gone, and so is its entry
    assert open_symbols(stage) == {B, C}
    stage.to(A, "99.8", 3)
    assert open_symbols(stage) == {B, C}
    stage.end()


# I2: the same signal twice.


@pytest.mark.parametrize("service", ["worker", "router", "ingestor", "keeper"])
def test_I2_a_restart_does_not_make_an_entry_of_the_same_bar_again(service, tmp_path):
    stage = Theatre()
    name = stage.rest(A)
    stage.by_hand("cancel_order", symbol=A, orderLinkId=name)
    stage.run(2)
    assert not stage.entries(A)
    stage.restart(service, tmp_path / "state.db")
    stage.run(15)  # NO_ENTRY is over, the quote is armed, and the bar is the same
    assert stage.mode().mode == msg.RUN
    assert stage.last_quote(A).zone == msg.ARM
    assert stage.last_quote(A).bar_start_ms == int(name.split("-")[2], 16) * 60_000
    assert stage.entry_ids(A) == [name]
    assert stage.grant(name) == msg.Grant(name, False, "bar_used")
    assert len(stage.created(name)) == 1
    stage.run(60)
    assert len(stage.entries(A)) == 1
    stage.end()


def test_I2_a_filled_entry_uses_its_bar_up():
    stage = Theatre()
    name = stage.fill(A)
    stage.to(A, "100.1", 1)
    assert not stage.lots(A)
    stage.to(A, "99.8", 3)
    assert stage.last_quote(A).zone == msg.ARM
    assert stage.entry_ids(A) == [name]
    stage.end()


def test_I2_quotes_that_are_said_again_make_no_second_order():
    stage = Theatre()
    name = stage.rest(A)
    stage.by_hand("cancel_order", symbol=A, orderLinkId=name)
    stage.run(1)
    said = [q for q in stage.said(msg.Quote, symbol=A) if q.zone == msg.ARM]
    for quote in (*said, *reversed(said), *said):
        stage.replay._publish("quotes", quote)
        stage.replay.settle()
    assert stage.entry_ids(A) == [name]
    stage.end()


def test_I2_what_was_refused_in_another_mode_is_asked_for_when_the_mode_is_run():
    stage = Theatre()
    publish = stage.replay._publish
    stage.replay._publish = lambda s, m: None if isinstance(m, msg.Mode) else publish(s, m)
    stage.fault("ws", "close", kind="private")  # NO_ENTRY, and the router has not heard of it
    stage.to(A, "99.8", 1)
    assert not stage.sent("create", A)
    stage.replay._publish = publish
    stage.until(lambda: stage.entries(A), within=25)
    assert stage.entries(A)[0].bar_start_ms == START_MS  # in the same bar
    stage.end()


# I3: a symbol in two workers.


def test_I3_two_workers_with_the_same_symbols_make_one_entry():
    stage = Theatre()
    old = stage.worker
    for shard in ((0, 2), (1, 2)):  # the next generation begins before the last one ends
        fresh = Worker(stage.settings, shard=shard)
        stage.replay._actors.append(fresh)
        stage.replay._begin(fresh)
    stage.replay.settle()
    stage.run(3)
    name = stage.rest(A)
    stage.fill(B)
    assert stage.entry_ids(A) == [name]
    assert len(stage.created(name)) == 1
    stage.replay._actors.remove(old)
    stage.run(10)
    assert [o.order_link_id for o in stage.entries(A)] == [name]
    stage.breathe(8)
    assert stage.rest(C)
    for symbol in SYMBOLS:
        names = stage.entry_ids(symbol)
        assert len(names) == len(set(names))
    stage.end()


# I4: in and out and in again.


def test_I4_a_runaway_of_entries_and_exits_has_one_entry_per_side_and_bar():
    stage = Theatre()
    began_ms = stage.replay.now().market_ms
    for _ in range(40):
        for price in ("99.8", "99.4", "100.1", "100.4", "100.8", "100.0"):
            stage.to(A, price, 1)
    bars = (stage.replay.now().market_ms - began_ms) // MINUTE_MS + 2
    names = stage.entry_ids(A)
    assert 2 <= len(names) <= 2 * bars
    assert len(names) == len(set(names))
    assert all(len(stage.created(name)) == 1 for name in names)
    stage.end()


def test_I4_after_a_lot_was_closed_a_symbol_cools_down(tmp_path):
    stage = Theatre(COOLDOWN_SECONDS=300)
    stage.fill(A)
    stage.to(A, "100.1", 2)
    closed = stage.now_s
    stage.restart("keeper", tmp_path / "state.db")  # it remembers
    stage.run(90)
    assert stage.rest(B)  # another symbol does not wait
    stage.breathe(2, A)
    stage.to(A, "99.8", 3)
    asked = len(stage.entry_ids(A))
    stage.to(A, "99.8", int(closed + 298 - stage.now_s))
    assert len(stage.entry_ids(A)) == asked == 1
    stage.breathe(8)
    stage.rest(A)
    assert stage.now_s >= closed + 300
    stage.end()


# I5, I6: numbers that cannot be.

NO_NUMBERS = (NAN, INF, -INF, 0.0, -99.5, 1e300, 1e-300)


@pytest.mark.parametrize("price", [80.0, 94.4, 0.001])
def test_I5_a_quote_far_from_the_last_price_is_not_created(price):
    stage = Theatre()
    stage.quote(A, zone=msg.ARM, gate="", side="Buy", price=price)
    assert not stage.sent("create")
    assert stage.ledger.slots() == 0
    stage.quote(B, zone=msg.ARM, gate="", side="Sell", price=200 - price)
    assert not stage.sent("create", B)
    assert stage.rest(A)
    stage.end()


def test_I5_a_quote_through_the_last_price_rests_one_tick_behind_it():
    stage = Theatre()
    stage.quote(A, zone=msg.ARM, gate="", side="Buy", price=120.0)
    (request,) = stage.sent("create", A)
    assert request.price == Decimal("99.9")
    stage.run(2)
    stage.end()


@pytest.mark.parametrize("price", [80.0, 94.4, 0.001])
def test_I5_an_entry_that_rests_is_not_moved_far_from_the_last_price(price):
    stage = Theatre()
    stage.rest(A)
    stage.quote(A, price=price)
    stage.run(3)
    assert not stage.sent("amend", A)
    assert {order.price for order in stage.at_venue(A)} <= {Decimal("99.5")}  # there, or cancelled
    stage.end()


@pytest.mark.parametrize("side", ["Buy", "Sell"])
@pytest.mark.parametrize("price", NO_NUMBERS)
def test_I6_a_price_that_is_no_price_is_refused(price, side):
    stage = Theatre()
    stage.quote(A, zone=msg.ARM, gate="", side=side, price=price)
    assert stage.replay.router.counters["absurd_quotes"] == (not 0 < price < INF)  # and it shows
    stage.run(2)
    worth = [r.qty * r.price for r in stage.sent("create", A)]
    assert all(abs(r.price - 100) < 1 for r in stage.sent("create", A))  # a tick behind the last
    assert all(value <= 50 for value in worth)
    stage.to(A, "100.0", 1)
    assert stage.rest(B)
    stage.end()


@pytest.mark.parametrize("field", ["take_profit_pct", "distance_pct", "last", "lower", "upper"])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_I6_a_quote_with_a_number_that_is_none_hurts_nobody(field, value):
    stage = Theatre()
    stage.operate(msg.REDUCE_ONLY)
    stage.run(2)
    stage.to(A, "99.8", 2)
    stage.operate(msg.RUN)
    stage.quote(A, **{field: value})
    stage.run(3)
    stage.to(A, "99.0", 3)
    for lot in stage.lots(A):
        assert lot.take_profit_pct.is_finite()
        assert len(stage.exits(A)) == 1
    stage.end()


@pytest.mark.parametrize("price", [NAN, INF, -INF, 0.0, -99.5])
def test_I6_an_exit_is_not_moved_to_a_price_that_is_none(price):
    stage = Theatre()
    stage.fill(A)
    (before,) = stage.exits(A)
    stage.quote(A, zone=msg.ARM, gate="", side="Sell", price=price)
    stage.run(2)
    assert stage.exits(A) == [before]
    assert not stage.sent("amend", A, msg.EXIT)
    stage.end()


# I7: losses.


def test_I7_a_daily_loss_reduces_only_until_the_next_utc_day(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.stage.START_MS", MIDNIGHT_MS - 600_000)
    stage = Theatre(**(POOR | {"DAILY_LOSS_PCT": 1}))
    stage.rest(B)
    stage.fill(A)
    stage.to(A, "96.0", 20)  # two readings; 5.02 coins lose 3.5 each: 17.6 of 1,000
    assert (stage.mode().mode, "daily loss" in stage.mode().reason) == (msg.REDUCE_ONLY, True)
    assert not stage.entries(B)
    assert len(stage.exits(A)) == 1
    stage.to(A, "99.5", 15)  # it has come back: the day is lost all the same
    assert stage.mode().mode == msg.REDUCE_ONLY
    stage.restart("keeper", tmp_path / "state.db")
    stage.run(15)
    assert stage.mode().mode == msg.REDUCE_ONLY
    stage.run((MIDNIGHT_MS - stage.replay.now().market_ms) // 1000 - 5)
    assert stage.mode().mode == msg.REDUCE_ONLY
    stage.run(20)
    assert stage.mode().mode == msg.RUN
    stage.end()


def test_I7_a_drawdown_flattens_and_stays_flat_until_a_person_lifts_it(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.stage.START_MS", MIDNIGHT_MS - 1_200_000)
    stage = Theatre(**(POOR | {"DRAWDOWN_PCT": 2}))
    stage.rest(B)
    stage.fill(A)
    stage.to(A, "95.0", 15)  # 5.02 coins lose 4.5 each: 22.6 of 1,000
    assert (stage.mode().mode, "drawdown" in stage.mode().reason) == (msg.FLATTEN, True)
    assert not stage.lots(A) + stage.entries(B)
    assert stage.held(A) == 0
    assert stage.said(msg.Execution, symbol=A)[-1].exec_price == Decimal("95.0")
    stage.restart("keeper", tmp_path / "state.db")
    stage.breathe(8)
    stage.to(B, "99.8", 5)
    assert stage.mode().mode == msg.FLATTEN
    assert not stage.entries(B)
    stage.run((MIDNIGHT_MS - stage.replay.now().market_ms) // 1000 + 20)
    assert stage.mode().mode == msg.FLATTEN
    stage.operate(msg.RUN)
    stage.run(2)
    assert stage.mode().mode == msg.RUN
    stage.end()


def test_I7_a_drawdown_is_counted_from_the_highest_equity():
    stage = Theatre(**(POOR | {"DRAWDOWN_PCT": 2}))
    stage.fill(A)
    stage.fault("venue", "balance", amount="1000")
    stage.run(12)
    stage.to(A, "93.0", 12)  # 32.6 of 2,000: 1.6 %
    assert stage.mode().mode == msg.RUN
    stage.to(A, "91.0", 12)  # 42.7 of 2,000: 2.1 %
    assert stage.mode().mode == msg.FLATTEN
    assert stage.held(A) == 0
    stage.operate(msg.RUN)
    stage.end()


# I8: the stop loss that every position must have.


@pytest.mark.parametrize(("side", "trigger"), [("Buy", "97.6"), ("Sell", "102.7")])
def test_I8_a_stop_loss_waits_from_the_first_partial_fill_on(side, trigger):
    stage = Theatre(STOP_LOSS_PCT=2)  # 99.5 - 2 % = 97.51, 100.6 + 2 % = 102.612
    stage.fault("match", "partial", symbol=A, share="0.4")
    stage.rest(A, side)
    (entry,) = stage.entries(A)
    stage.to(A, "99.4" if side == "Buy" else "100.8")
    part = stage.held(A).copy_abs()
    assert 0 < part < entry.qty
    stops = [(order.qty, order.trigger, order.side) for order in stage.stops(A)]
    away = Decimal(-2 if side == "Buy" else 2)
    price = entry.price * (1 + away / 100)
    assert [(qty, by) for qty, _, by in stops] == [(part, "Sell" if side == "Buy" else "Buy")]
    assert abs(stops[0][1] - price) <= Decimal("0.1")
    stage.run(3)
    assert [order.qty for order in stage.stops(A)] == [stage.held(A).copy_abs()]
    stage.end()


def test_I8_a_stop_loss_closes_its_lot_and_the_ledger_knows():
    stage = Theatre(STOP_LOSS_PCT=2)
    stage.fill(A)
    stage.to(A, "97.0", 3)
    assert stage.held(A) == 0
    assert not stage.lots(A) + stage.exits(A) + stage.stops(A)
    assert stage.ledger.slots() == 0
    stage.end()


def test_I8_each_lot_has_its_own_stop_loss():
    stage = Theatre(STOP_LOSS_PCT=3, BASE_FEE_PCT=3)
    stage.fill(A)
    stage.swing(8, A, base="98.8")  # bands at 98.4 and 99.4: the next lot is lower
    stage.to(A, "98.6", 2)
    stage.to(A, "97.9", 1)
    assert len(stage.lots(A)) >= 2
    stops = sorted(order.qty for order in stage.stops(A))
    assert stops == sorted(lot.bought for lot in stage.lots(A))
    stage.end()


def test_I8_an_entry_whose_stop_loss_is_refused_does_not_exist():
    stage = Theatre(STOP_LOSS_PCT=2)
    stage.fault("http", "ret", path=CREATE, code=10001, text="StopLoss set for Buy is wrong")
    stage.to(A, "99.8", 3)
    assert len(stage.sent("create", A)) == 1
    assert stage.ledger.slots() == 0
    stage.to(A, "99.0", 2)
    assert stage.held(A) == 0
    stage.end()


def test_I8_every_position_has_its_stop_loss_through_a_bad_hour():
    stage = Theatre(STOP_LOSS_PCT=2)
    naked = 0
    for number in range(60):
        for symbol, shift in ((A, 0), (B, 2), (C, 4)):
            prices = ("99.8", "99.3", "100.1", "100.0", "100.5", "101.0", "100.0", "98.5", "97.0")
            stage.to(symbol, prices[(number + shift) % len(prices)])
        stage.run(7)
        for symbol in SYMBOLS:
            stopped = sum((order.qty for order in stage.stops(symbol)), Decimal(0))
            naked += abs(stage.held(symbol)) > stopped
    assert len(stage.said(msg.Execution)) > 5
    assert naked == 0
    stage.end()


# I9: the kill switch.


def test_I9_the_kill_switch_stops_sending_within_100_ms_and_cancels_what_appears_late():
    stage = Theatre((*TWENTY, A, B), SIZE_USDT=Decimal(20))
    stage.fill(B)
    stage.fault("http", "drop_after", path=CREATE, times=3)  # their answers never come
    stage.fault("http", "delay", path=CREATE, ms=1_500, times=0)
    for symbol in TWENTY:
        stage.to(symbol, "99.8")
    assert sum(len(stage.at_venue(s)) for s in TWENTY) == 20
    stage.operate(msg.CANCEL_ALL)
    stage.replay.run(stage.replay.now().market_ms + 100)
    stage.to(A, "99.8")
    assert not stage.sent("create", A)
    stage.run(6)
    assert [stage.at_venue(symbol) for symbol in stage.price] == [[]] * 22
    assert stage.ledger.slots() == 1  # the lot of B
    assert stage.mode().mode == msg.CANCEL_ALL
    stage.run(60)
    assert [stage.at_venue(symbol) for symbol in stage.price] == [[]] * 22
    stage.heal()
    stage.operate(msg.RUN)
    stage.run(2)
    assert len(stage.exits(B)) == 1
    stage.end()


@pytest.mark.parametrize("mode", [msg.REDUCE_ONLY, msg.CANCEL_ALL, msg.FLATTEN])
def test_I9_what_a_person_has_stopped_stays_stopped_over_any_restart(mode, tmp_path):
    stage = Theatre()
    stage.fill(B)
    stage.rest(A)
    stage.operate(mode)
    stage.run(3)
    assert not stage.entries(A)
    assert len(stage.exits(B)) == (1 if mode == msg.REDUCE_ONLY else 0)
    assert bool(stage.lots(B)) == (mode != msg.FLATTEN)
    for service in ("keeper", "router", "worker"):
        stage.restart(service, tmp_path / "state.db")
    heard = len(stage.heard)
    stage.run(70)
    assert not [m for m in stage.heard[heard:] if isinstance(m, msg.Mode) and m.mode != mode]
    assert len(stage.sent("create", A)) == 1
    stage.operate(msg.RUN)
    stage.run(12)
    stage.end()


def test_I9_a_cancel_that_is_lost_is_sent_again_until_nothing_is_open():
    stage = Theatre()
    for symbol in SYMBOLS:
        stage.rest(symbol)
    for action in ("drop_before", "drop_after"):
        stage.fault("http", action, path="/v5/order/cancel", times=2)
    stage.operate(msg.CANCEL_ALL)
    stage.run(10)
    assert [stage.at_venue(symbol) for symbol in SYMBOLS] == [[]] * 3
    stage.run(5)
    assert stage.ledger.slots() == 0
    stage.operate(msg.RUN)
    stage.end()


def test_every_row_has_a_test_or_a_reason():
    rows = {f"I{n}" for n in range(1, 10)}
    tested = {name.split("_")[1] for name in globals() if name.startswith("test_I")}
    assert tested | {row.split()[0] for row in NOT_APPLICABLE} == rows
