"""What Bybit does, and the paper exchange never does by itself: nobody may be left with a position
that nothing sells."""

import sqlite3
from decimal import Decimal
from types import SimpleNamespace

import pytest

from services.paper import api
from shared import bybit
from shared import messages as msg
from tests.stage import A, B, Theatre

WIDE = {"BASE_FEE_PCT": 3.0, "DRAWDOWN_PCT": 0, "DAILY_LOSS_PCT": 0}


def no_more(stage, symbol):
    """Its delisting is announced: for days it trades, and nobody follows it."""
    ingestor, replay = stage.replay.ingestor, stage.replay
    rows = tuple(
        row._replace(status="NotTradeable") if row.symbol == symbol else row
        for row in ingestor._instruments.values()
    )
    fetched = msg.Fetched(msg.Fetch("instruments"), rows)
    for message in ingestor.handle(fetched, replay._now_ns):
        if isinstance(message, (msg.Subscribe, msg.Fetch)):
            replay._doors[ingestor].send(message)
        else:
            replay._publish("market", message)
    replay.settle()


def sold_at_any_price(stage):
    """The price falls unheard, and then everything is to be sold."""
    for price in ("97", "90", "80", "70"):
        stage.to(A, price, 15)
    stage.operate(msg.FLATTEN)
    stage.run(40)
    return stage.held(A) == 0


def test_flatten_sells_a_symbol_that_is_about_to_be_delisted():
    stage = Theatre(**WIDE)
    stage.fill(A)
    no_more(stage, A)
    assert sold_at_any_price(stage)


def test_flatten_sells_a_symbol_that_is_followed_no_more():
    stage = Theatre(**WIDE)
    stage.fill(A)
    stage.replay.settings = stage.settings.model_copy(update={"EXCLUDE_SYMBOLS": A})
    for service in ("ingestor", "router", "worker"):
        stage.restart(service)
    stage.run(20)
    assert A not in stage.replay.router._last
    assert sold_at_any_price(stage)


def test_flatten_goes_on_selling_while_the_market_is_silent():
    stage = Theatre(**WIDE)
    stage.fill(A)
    stage.fault("ws", "half_open", kind="public", for_s=3_600)
    stage.fault("http", "drop_before", path="/v5/market/kline", times=0)
    assert sold_at_any_price(stage)


def swallowed(stage):
    """Frames of orders vanish, on every connection; pings and auth are answered."""
    stage.venue.sessions._order = lambda message, now: None


def restarting(stage):
    """The connections of now answer orders with 10019 only; a new one serves."""
    sessions = stage.venue.sessions
    old = {id(session) for session in sessions.open if session.kind == "trade"}
    trade, order, on = sessions._trade, sessions._order, []

    def by_session(session, message, now):
        on[:] = [session]
        trade(session, message, now)

    def by_order(message, now):
        if id(on[0]) not in old:
            return order(message, now)
        head = {"reqId": message["reqId"], "op": message["op"], "connId": "1"}
        said = {"retCode": 10019, "retMsg": "ws trade service is restarting"}
        return {**head, **said, "data": {}, "retExtInfo": {}, "header": {}}, 0.0

    sessions._trade, sessions._order = by_session, by_order


@pytest.mark.parametrize("fails", [swallowed, restarting])
def test_a_trade_socket_that_serves_no_orders_is_left(fails):
    stage = Theatre(**WIDE)
    stage.rest(A)
    fails(stage)
    stage.to(A, "99.0", 60)
    assert stage.held(A) and sum(qty for _, qty in exits(stage)) == stage.held(A)


def exits(stage):
    return [(order.price, order.qty) for order in stage.exits(A)]


def test_a_grid_that_was_lost_on_its_way_is_asked_for_again():
    stage = Theatre(**WIDE)
    stage.rest(A)
    router = stage.replay.router
    hears, lost = router.handle, []

    def deaf(message, now_ns):
        if isinstance(message, msg.Instrument):
            return lost.append(message) or []
        return hears(message, now_ns)

    router.handle = deaf
    stage.fault("venue", "instrument_update", symbol=A, tick_size="0.3")
    stage.restart("ingestor")
    stage.run(12)
    router.handle = hears
    assert lost
    stage.to(A, "99.0", 100)
    assert stage.held(A) and sum(qty for _, qty in exits(stage)) == stage.held(A)


def test_a_coarser_step_leaves_only_dust_without_an_exit():
    stage = Theatre(**WIDE)
    name = stage.fill(A)
    assert stage.held(A) == Decimal("0.50")
    stage.fault("venue", "instrument_update", symbol=A, qty_step="0.3", min_order_qty="0.3")
    for service in ("ingestor", "worker", "router"):
        stage.restart(service)
    stage.run(12)
    stage.by_hand("cancel_order", symbol=A, orderLinkId=msg.exit_id(name, 0))
    stage.run(60)
    assert [qty for _, qty in exits(stage)] == [Decimal("0.3")]


def unguard(stage):
    """The exchange cancels the one stop loss of A, as it does where nobody buys."""
    (stop,) = stage.stops(A)
    now = stage.replay.now()
    stage.venue.matching.end(stop, "Cancelled", "EC_NoImmediateQtyToFill", now.market_ms)
    stage.venue._flush(now)
    stage.replay.settle()


def test_a_stop_loss_that_found_nobody_to_sell_to_is_followed_by_an_exit():
    stage = Theatre(STOP_LOSS_PCT=2.0, **WIDE)
    stage.fill(A)
    unguard(stage)
    stage.to(A, "98.5", 20)
    assert stage.held(A), "not beyond its stop loss yet"
    stage.to(A, "96", 20)
    assert stage.held(A) == 0


def test_a_lot_without_a_stop_loss_is_sold_at_the_mark_where_no_price_is_heard():
    stage = Theatre(STOP_LOSS_PCT=2.0, **WIDE)
    stage.fill(A)
    unguard(stage)
    no_more(stage, A)
    stage.to(A, "96", 60)
    assert stage.held(A), "the last price heard is not that old"
    stage.run(60)
    assert stage.held(A) == 0


def test_a_word_of_rest_that_is_only_younger_is_no_news(monkeypatch):
    """Whether Bybit's two stamps of one change agree, its documents do not say."""
    real = bybit.Rest._orders
    later = lambda o: o._replace(updated_time_ms=o.updated_time_ms + 2)  # noqa: E731
    monkeypatch.setattr(bybit.Rest, "_orders", lambda rest, ask: map(later, real(rest, ask)))
    stage = Theatre(**WIDE)
    stage.run(20)
    before = len(stage.said(msg.Mode))
    for price in ("99.8", "100.2") * 3:
        stage.to(A, price, 20)
        stage.to(B, price, 10)
    assert {mode.mode for mode in stage.said(msg.Mode)[before:]} == {msg.RUN}


@pytest.mark.parametrize(
    "row",
    [{"accountType": "CONTRACT", "totalEquity": "9"}, {"totalEquity": ""}, {"totalEquity": "0"}],
)
def test_a_wallet_that_tells_no_equity_is_no_loss_of_everything(row):
    numbers = {"totalWalletBalance": "", "totalAvailableBalance": "", "coin": []}
    frame = {"topic": "wallet", "creationTime": 1, "data": [numbers | row]}
    assert bybit.pushed(frame) == []
    for equity in ("7", "-7"):
        good = {"accountType": "UNIFIED", "totalEquity": equity}
        (wallet,) = bybit.pushed(frame | {"data": [numbers | row, numbers | good]})
        assert wallet.total_equity == Decimal(equity)


# An older copy of the ledger.


def silent(actor):
    """It is gone for good: it answers nothing, and says nothing."""
    actor.tick = lambda now_ns: []
    actor.answer = lambda request, now_ns: []
    actor.handle = lambda message, now_ns: []


def from_copy(stage, copy, path):
    """The bot ends, the copy takes the place of its ledger, and it begins again."""
    stage.replay.keeper._store = SimpleNamespace(_db=copy)
    stage.restart("keeper", str(path))
    stage.restart("router")


def orders(stage):
    """What rests at the exchange, but for prices."""
    return {(o.link_id, o.qty) for symbol in (A, B) for o in stage.at_venue(symbol)}


def test_a_ledger_from_a_copy_learns_the_rest_from_the_exchange(tmp_path):
    """Since the copy: an entry filled whole, one that rests beside its lot, and one elsewhere."""
    stage, copy = Theatre(**WIDE), sqlite3.connect(":memory:")
    stage.replay.keeper._store._db.backup(copy)
    stage.fill(A)
    stage.run(50)
    stage.to(A, "99.0", 8)
    stage.rest(B)
    assert len(stage.entries(A)) == len(stage.lots(A)) == 1
    lots, resting = set(stage.ledger.lots), orders(stage)
    stage.listen()
    from_copy(stage, copy, tmp_path / "copy.db")
    stage.run(30)
    assert (set(stage.ledger.lots), orders(stage)) == (lots, resting)
    changes = [code for _, path, code in stage.requests if "create" in path or "amend" in path]
    assert set(changes) <= {0}
    stage.end()


def test_what_was_bought_while_nobody_was_there_is_no_strangers(tmp_path):
    """The entry was made after the copy, and filled after the end: nothing of it rests."""
    stage, copy = Theatre(**WIDE), sqlite3.connect(":memory:")
    stage.replay.keeper._store._db.backup(copy)
    name = stage.rest(A)
    silent(stage.replay.keeper)
    silent(stage.replay.router)
    stage.to(A, "99.0", 4)
    from_copy(stage, copy, tmp_path / "copy.db")
    stage.run(60)
    assert [lot.entry_id for lot in stage.lots(A)] == [name]
    assert len(stage.exits(A)) == 1
    stage.end()


READS = ("/v5/order", "/v5/execution", "/v5/position", "/v5/account")


def test_a_fill_that_is_faster_than_the_first_look_of_a_new_ledger_is_ours(tmp_path):
    stage = Theatre(**WIDE)
    name = stage.rest(A)
    for path in READS:
        stage.fault("http", "drop_before", path=path, times=0, for_s=8)
    stage.replay.keeper._store = SimpleNamespace(_db=sqlite3.connect(":memory:"))
    stage.restart("keeper", tmp_path / "state.db")
    stage.run(1)
    stage.to(A, "99.0", 60)
    stage.operate(msg.RUN)
    stage.run(20)
    assert [lot.entry_id for lot in stage.lots(A)] == [name]
    assert len(stage.exits(A)) == 1
    stage.end()


def test_an_exit_that_sells_before_its_lot_is_known_takes_nothing_from_another(tmp_path):
    """A copy knows the first of two lots; the exit of the second fills before the first round."""
    stage, copy = Theatre(**WIDE | {"BASE_FEE_PCT": 1.0}), sqlite3.connect(":memory:")
    stage.fill(A)
    stage.run(3)
    stage.replay.keeper._store._db.backup(copy)
    stage.swing(3, A, base="98.8")
    stage.to(A, "97.5", 70)
    for path in READS:
        stage.fault("http", "drop_before", path=path, times=0, for_s=10)
    from_copy(stage, copy, tmp_path / "copy.db")
    stage.run(2)
    second, first = sorted(order.price for order in stage.at_venue(A))
    stage.fault("venue", "trade", symbol=A, price=str((second + first) / 2), qty="100")
    stage.price[A] = Decimal("97.5")
    stage.run(100)
    resting = {o.link_id for o in stage.at_venue(A) if "x" in o.link_id}
    assert {order.order_link_id for order in stage.exits(A)} == resting
    assert len(resting) == len(stage.lots(A)) > 0
    stage.end()


# What nobody hears of.


def test_no_entry_rests_where_nobody_would_hear_of_its_fill():
    stage = Theatre(**WIDE)
    stage.rest(A)
    silent(stage.replay.keeper)
    stage.run(9)
    assert stage.at_venue(A)  # it may only be starting anew
    stage.run(3)
    assert not stage.at_venue(A)


def test_an_entry_that_rests_unseen_is_ours_again_when_it_is_filled():
    """Both lists of orders are empty for a while; stream, executions and positions are right."""
    stage = Theatre(**WIDE)
    name = stage.rest(A)
    for path in ("/v5/order/realtime", "/v5/order/history"):
        stage.fault("http", "partial", path=path, k=0, times=0, for_s=90)
    stage.run(89)
    assert name not in stage.ledger.lots
    stage.to(A, "99.0", 60)
    assert name in stage.ledger.lots
    resting = {msg.entry_of(o.link_id) for o in stage.at_venue(A) if "x" in o.link_id}
    assert resting == {lot.entry_id for lot in stage.lots(A)}
    stage.end()


def test_the_rest_of_an_entry_that_was_taken_for_gone_with_a_part_filled_is_cancelled():
    """The part has been sold: what is left of the entry would be nobody's."""
    stage = Theatre(**WIDE)
    name = stage.rest(A)
    stage.fault("match", "partial", symbol=A, share="0.4")
    stage.fault("venue", "trade", symbol=A, price="99.4", qty="1")
    stage.run(1)
    for path in ("/v5/order/realtime", "/v5/order/history"):
        stage.fault("http", "partial", path=path, k=0, times=0, for_s=100)
    stage.run(100)
    stage.fault("venue", "trade", symbol=A, price="102.8", qty="100")
    stage.run(12)
    assert stage.held(A) == 0
    assert name not in {order.link_id for order in stage.at_venue(A)}
    stage.to(A, "99.2", 60)
    assert not stage.held(A) or stage.at_venue(A)
    stage.end()


def test_an_entry_that_rests_unseen_and_is_filled_unheard_is_ours_again():
    stage = Theatre(**WIDE)
    name = stage.rest(A)
    for topic in ("order", "execution"):
        stage.fault("ws", "drop", kind="private", topic=topic, times=0, for_s=90)
    for path in ("/v5/order/realtime", "/v5/order/history", "/v5/execution/list"):
        stage.fault("http", "partial", path=path, k=0, times=0, for_s=90)
    stage.to(A, "99.0", 180)
    assert [lot.entry_id for lot in stage.lots(A)] == [name]
    assert stage.at_venue(A)
    stage.end()


def test_an_exit_that_was_filled_weeks_ago_is_heard_of(tmp_path, monkeypatch):
    """Nobody was there. One read tells of seven days at most; here they are seconds."""
    monkeypatch.setattr(bybit, "WINDOW_MS", 6_000)
    monkeypatch.setattr(api, "WEEK_MS", 7_000)
    stage = Theatre(**WIDE)
    stage.fill(A)
    stage.run(15)
    for path in ("/v5/order", "/v5/execution", "/v5/position", "/v5/account"):
        stage.fault("http", "drop_before", path=path, times=0, for_s=120)
    stage.fault("ws", "half_open", kind="private", for_s=120)
    stage.to(A, "104", 1)
    assert stage.held(A) == 0
    stage.to(A, "100", 119)
    stage.restart("keeper", tmp_path / "state.db")
    stage.run(60)
    assert (stage.lots(A), stage.ledger.slots()) == ([], 0)
    stage.end()


# A change of mind after amends that failed again and again: the last pause is a minute.


def failing_amends(stage, symbol, prices):
    """The exchange answers them with 502 for minutes, then it is well again."""
    stage.by_rest()
    stage.fault("http", "status", path="/v5/order/amend", status=502, times=0)
    for n in range(40):
        prices(n)
        stage.run(4)
    stage.heal()


def moved_entries(stage):
    failing_amends(stage, A, lambda n: stage.quote(A, price=99.4 - n % 2 * 0.2))


@pytest.mark.parametrize("mode", [msg.REDUCE_ONLY, msg.CANCEL_ALL])
def test_a_cancel_does_not_wait_for_amends_that_failed(mode):
    stage = Theatre(**WIDE)
    stage.rest(A)
    moved_entries(stage)
    stage.operate(mode)
    stage.until(lambda: not stage.at_venue(A), within=2)


def test_nor_does_a_cancel_that_no_mode_asks_for():
    stage = Theatre(**WIDE)
    stage.rest(A)
    moved_entries(stage)
    stage.to(A, "100.15")
    stage.until(lambda: not stage.at_venue(A), within=6)


def test_flatten_does_not_wait_for_amends_that_failed():
    stage = Theatre(**WIDE)
    stage.fill(A)
    failing_amends(stage, A, lambda n: stage.to(A, "100.4" if n % 2 else "100.3"))
    stage.operate(msg.FLATTEN)
    stage.until(lambda: not stage.held(A), within=3)
