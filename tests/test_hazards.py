"""The hazards of the old design (DESIGN section 12): each has a test named after it.

Most run the whole bot and the paper exchange in one thread (`stage`); each would fail on the old,
threaded script. Bands of a still symbol: 99.6 and 100.6. A lot is bought at 99.5 and sold at 100.0.
"""

import socket
import time
from decimal import Decimal
from random import Random

from shared import messages as msg
from shared.bybit import Exchange
from shared.settings import Settings
from tests.stage import MINUTE_MS, SYMBOLS, A, B, C, Theatre

CREATE = "/v5/order/create"
TWENTY = tuple(f"S{n:02}USDT" for n in range(20))


def test_a_fill_arrives_before_the_orders_id_is_known():
    stage = Theatre()
    stage.fault("http", "delay", path=CREATE, ms=2_000)
    stage.fault("ws", "mute", kind="private", topic="order", for_s=2)
    stage.to(A, "99.8")
    stage.to(A, "99.0")  # filled before the answer to its create, and before any word on it
    (name,) = stage.entry_ids(A)
    assert not stage.said(msg.OrderRequest, order_link_id=name, outcome="accepted")
    assert not stage.said(msg.OrderUpdate, order_link_id=name)
    (lot,) = stage.lots(A)
    assert (lot.entry_id, lot.bought) == (name, Decimal("0.50"))
    stage.run(3)
    assert [order.link_id for order in stage.at_venue(A)] == [msg.exit_id(name, 0)]
    stage.end()


def test_check_then_act_on_caps_across_threads():
    stage = Theatre(TWENTY, MAX_SLOTS=3, MAX_SYMBOLS=3)
    stage.fault("http", "delay", path=CREATE, ms=1_500, times=0)  # nobody knows yet what exists
    for symbol in TWENTY:
        stage.to(symbol, "99.8")
    assert sum(len(stage.at_venue(symbol)) for symbol in TWENTY) == 3
    for symbol in TWENTY:
        stage.to(symbol, "99.0")
    stage.run(5)
    for symbol in TWENTY:
        stage.to(symbol, "99.8")
    stage.run(60)
    assert stage.ledger.slots() == 3
    stage.end()  # the auditor counted at every event


def test_take_profit_fills_never_recognised_ghost_positions_until_restart():
    stage = Theatre()
    name = stage.fill(A)
    stage.fault("ws", "drop", kind="private", topic="execution", times=1)
    stage.to(A, "100.1", 12)  # one round of reconciliation
    assert stage.held(A) == 0
    assert not stage.lots(A)
    assert A not in stage.ledger.symbols()
    assert stage.outcomes(name) == ["filled"]
    stage.end()


def test_partial_fill_orphans_the_rest_of_the_entry():
    stage = Theatre()
    name = stage.rest(A)
    stage.fault("match", "partial", symbol=A, share="0.4")
    stage.to(A, "99.4")
    (lot,) = stage.lots(A)
    (entry,) = stage.entries(A)
    (exit_,) = stage.exits(A)
    assert (lot.bought, entry.order_link_id, exit_.qty) == (Decimal("0.20"), name, Decimal("0.20"))
    stage.run(2)  # the rest is filled, too, and its exit grows with it
    assert [lot.bought for lot in stage.lots(A)] == [Decimal("0.50")]
    assert [order.qty for order in stage.exits(A)] == [Decimal("0.50")]
    assert stage.entry_ids(A) == [name]
    stage.end()


def test_partial_fill_whose_rest_is_no_longer_wanted_is_cancelled():
    stage = Theatre()
    stage.rest(A)
    stage.fault("match", "partial", symbol=A, share="0.4")
    stage.to(A, "99.4")
    stage.to(A, "99.95")
    stage.to(A, "99.8")
    stage.to(A, "98.9")  # far through: the quote is NONE
    stage.run(3)
    assert not stage.entries(A)
    assert stage.held(A) == sum(lot.bought for lot in stage.lots(A))
    assert sum(order.qty for order in stage.exits(A)) == stage.held(A)
    stage.end()


def test_dca_lots_overwritten_by_the_exchanges_aggregate_on_reconcile(tmp_path):
    stage = Theatre(BASE_FEE_PCT=3)  # take profit 3 % away: the lots stay open
    stage.fill(A)
    stage.swing(8, A, base="98.8")
    stage.to(A, "98.6", 2)
    stage.to(A, "97.9", 2)
    lots = stage.lots(A)
    assert len(lots) >= 2
    prices = [lot.entry_price for lot in lots]
    assert len(set(prices)) == len(prices)
    exits = sorted((order.order_link_id, order.price) for order in stage.exits(A))
    assert len({price for _, price in exits}) == len(lots)  # each leaves at its own price
    stage.run(35)  # three rounds: the exchange says one size, one average price
    stage.restart("keeper", tmp_path / "state.db")
    stage.run(25)
    assert [lot.entry_price for lot in stage.lots(A)] == prices
    assert sorted((order.order_link_id, order.price) for order in stage.exits(A)) == exits
    assert stage.held(A) == sum(lot.bought for lot in lots)
    stage.end()


def test_signal_dedup_lost_on_restart(tmp_path):
    stage = Theatre()
    name = stage.fill(A)
    stage.to(A, "100.1", 1)
    stage.to(A, "99.8", 1)
    assert not stage.lots(A)
    for service in ("keeper", "ingestor", "worker", "router"):
        stage.restart(service, tmp_path / "state.db")
    stage.run(15)
    assert stage.last_quote(A).zone == msg.ARM
    assert stage.last_quote(A).bar_start_ms == int(name.split("-")[2], 16) * MINUTE_MS
    assert stage.mode().mode == msg.RUN
    assert stage.entry_ids(A) == [name]
    assert stage.grant(name) == msg.Grant(name, False, "bar_used")
    stage.end()


def test_rest_call_on_the_signal_thread_delays_500_symbols():
    stage = Theatre()
    stage.fault("http", "delay", path="/v5/", ms=4_500, times=0)  # orders go by socket, late too
    stage.fault("ws", "mute", kind="public", topic=f"kline.1.{C}", for_s=60)
    stage.run(60)
    stage.until(lambda: stage.replay.ingestor._feed._symbols[C].asked, within=10)
    for symbol in (A, B):  # while the bars of C are on their way
        at_ns = stage.replay.now().market_ms * 1_000_000
        stage.to(symbol, "99.8")
        (request,) = stage.sent("create", symbol)
        assert (request.recv_ns, request.decided_ns) == (at_ns, at_ns)
    assert stage.replay.ingestor._feed._symbols[C].asked
    stage.heal()
    stage.run(10)
    stage.end()


def test_rest_call_to_an_exchange_that_never_answers_holds_nobody_up():
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        settings = Settings(_env_file=None, PAPER_PORT=deaf.getsockname()[1])
        answers = []
        exchange = Exchange(settings, answers.append, ())
        began = time.monotonic()
        for count in (4, 496):
            for _ in range(count):
                exchange.send(msg.Fetch("klines", A))
            assert time.monotonic() - began < 1
        assert answers == []
        exchange.close()


def test_queue_full_drops_events_silently():
    stage = Theatre()
    chance, publish, lost, share = Random(1), stage.replay._publish, [], [0.3]

    def lossy(stream, message):
        """What ZeroMQ does at a high-water mark: a message is gone, and nobody is told."""
        if chance.random() < share[0]:
            lost.append(message)
        else:
            publish(stream, message)

    stage.replay._publish = lossy
    for number in range(120):
        for place, symbol in enumerate(SYMBOLS):
            prices = ("99.8", "99.4", "100.1", "100.0", "100.5", "100.8", "100.2")
            stage.to(symbol, prices[(number + 2 * place) % len(prices)])
        stage.run(3)
    kinds = {type(message).__name__ for message in lost}
    assert kinds >= {"Kline", "Quote", "Position", "Mode", "Health", "OrderRequest"}
    assert stage.ledger.execution_count > 10
    share[0] = 0.0
    stage.breathe(8)
    name = stage.rest(A)
    share[0] = 1.0
    stage.to(A, "99.0")
    assert stage.lots(A)
    share[0] = 0.0  # nothing moves any more: what was lost must be said again
    stage.run(2)
    assert [order.order_link_id for order in stage.exits(A)] == [msg.exit_id(name, 0)]
    stage.end(90)
    for symbol in SYMBOLS:
        ours, theirs = stage.bars(symbol, 6)
        assert ours == theirs


def test_one_global_watchdog_one_live_symbol_hides_the_dead_ones():
    stage = Theatre()
    for symbol in (B, C):
        stage.fault("ws", "mute", kind="public", topic=f"kline.1.{symbol}")
    stage.run(80)
    gates = {symbol: stage.last_quote(symbol).gate for symbol in SYMBOLS}
    assert gates == {A: "", B: "stale", C: "stale"}
    stage.heal()
    stage.run(10)
    assert stage.last_quote(B).gate == ""
    stage.end()


def test_gaps_in_the_buffer_after_a_reconnect():
    stage = Theatre()
    stage.run(30)
    stage.fault("ws", "half_open", kind="public", for_s=130)  # two bars are missed, one is cut
    stage.to(A, "101.5", 20)
    stage.to(A, "100.0", 105)
    gates = len(stage.heard)
    stage.run(30)
    ours, theirs = stage.bars(A)
    assert ours == theirs
    assert any(bar[1] == 101.5 for bar in ours)
    said = [m.gate for m in stage.heard[gates:] if isinstance(m, msg.Quote) and m.symbol == A]
    assert said[-1] == ""
    stage.end()


def test_postonly_close_at_the_band_rejected_again_and_again_position_kept():
    stage = Theatre()
    name = stage.rest(A)
    stage.fault("http", "ret", path=CREATE, code=10016, times=1)  # the exit is late
    stage.to(A, "99.0")
    stage.to(A, "100.4", 8)  # and by then the price is past it
    assert stage.held(A) == 0
    assert not stage.lots(A)
    exits = stage.created(msg.exit_id(name, 0))
    assert [order.time_in_force for order in exits] == ["GTC"]
    fill = stage.said(msg.Execution, order_link_id=msg.exit_id(name, 0))[-1]
    assert fill.exec_price == Decimal("100.4")  # better than the 100.0 it asked for
    stage.end()


def test_price_jumps_over_the_arming_zone_and_the_entry_is_missed():
    stage = Theatre()
    stage.to(A, "99.4", 1)  # from 100.0 through the band at 99.6 in one trade
    assert [order.price for order in stage.entries(A)] == [Decimal("99.3")]  # a tick behind it
    stage.to(B, "100.8", 1)
    assert [order.price for order in stage.entries(B)] == [Decimal("100.9")]
    stage.end()


def test_rounding_by_decimals_instead_of_tick_and_step():
    stage = Theatre()
    stage.fault("venue", "instrument_update", symbol=A, tick_size="0.2", qty_step="0.03")
    for service in ("ingestor", "worker", "router"):
        stage.restart(service)
    stage.run(12)
    stage.rest(A)
    (entry,) = stage.entries(A)  # 99.55 is 99.5 or 99.6 by decimals, 50 / 99.4 is 0.50
    assert (entry.price, entry.qty) == (Decimal("99.4"), Decimal("0.48"))
    stage.to(A, "99.0", 1)
    (exit_,) = stage.exits(A)
    assert (exit_.price % Decimal("0.2"), exit_.qty) == (0, Decimal("0.48"))
    stage.end()


def test_guessed_precision_when_the_instrument_call_fails():
    stage = Theatre()
    stage.fill(B)
    (before,) = stage.exits(B)
    stage.operate(msg.REDUCE_ONLY)
    stage.run(2)
    stage.to(A, "99.8", 2)
    stage.fault("http", "status", path="/v5/market/instruments-info", status=502, times=0)
    stage.restart("ingestor")
    stage.restart("router")
    stage.operate(msg.RUN)
    stage.run(30)
    assert stage.replay.router._instruments == {}  # nothing is made up
    assert stage.last_quote(A).zone == msg.ARM  # the worker still knows what it knew
    assert not stage.sent("create", A)
    assert stage.exits(B) == [before]
    stage.heal()
    stage.until(lambda: stage.entries(A), within=15)
    stage.end()


def test_positions_and_orders_read_without_paging(monkeypatch):
    monkeypatch.setattr("tests.stage.HISTORY", 10)
    names = tuple(f"P{n:03}USDT" for n in range(205))  # a page: 50 orders, 100 fills, 200 positions
    account = {"SIZE_USDT": Decimal(6), "PAPER_BALANCE_USDT": Decimal(5_000)}
    stage = Theatre(names, MAX_SLOTS=250, MAX_SYMBOLS=250, **account)
    for symbol in names:
        stage.to(symbol, "99.8")
    stage.run(1)
    assert len(stage.ledger.orders) == len(names)
    stage.fault("ws", "mute", kind="private", topic="execution")  # fills are read, not heard
    for symbol in names:
        stage.to(symbol, "99.0")
    stage.run(12)
    assert stage.ledger.open_lots() == len(names)
    stage.heal()
    stage.listen()
    stage.run(25)
    assert sum(len(stage.exits(symbol)) for symbol in names) == len(names)
    assert not stage.asked("/v5/order/history")  # every order was in the list: none is missed
    assert not stage.replay.keeper._reconcile.differences
    assert stage.mode().mode == msg.RUN
    stage.agree()


def test_save_errors_swallowed():
    stage = Theatre()
    stage.fill(B)
    stage.rest(C)
    database = stage.replay.keeper._store._db
    database.execute("PRAGMA query_only = ON")  # the disk takes nothing any more
    stage.to(A, "99.8", 3)
    assert not stage.at_venue(A)  # no intent, no order
    assert stage.mode().mode == msg.REDUCE_ONLY
    assert stage.mode().reason
    stage.run(3)
    assert not stage.at_venue(C)  # entries are cancelled: nobody could remember their fills
    assert len(stage.at_venue(B)) == 1
    stage.to(B, "100.1", 3)  # and exits go on
    assert stage.held(B) == 0
    database.execute("PRAGMA query_only = OFF")
    stage.run(12)
    stage.operate(msg.RUN)
    stage.run(2)
    assert not stage.lots(B)
    stage.end()


def test_no_order_leaves_without_its_intent_on_disk():
    stage = Theatre()
    database = stage.replay.keeper._store._db
    written = []
    stage.fault("http", "delay", path=CREATE, ms=500)
    order = stage.venue.sessions._order

    def at_the_door(message, now):
        if message["op"].startswith("order.create"):
            name = message["args"][0].get("orderLinkId")
            query = "SELECT status FROM orders WHERE order_link_id = ?"
            written.append(database.execute(query, (name,)).fetchone())
        return order(message, now)

    stage.venue.sessions._order = at_the_door
    for symbol in SYMBOLS:
        stage.to(symbol, "99.8")
    assert written == [("Granted",)] * 3
    stage.run(2)
    stage.end()
