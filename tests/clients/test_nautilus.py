"""clients: a whole trading node of nautilus_trader, unmodified but for its addresses."""

import asyncio
import contextlib
import os
import signal
import threading
import time
from decimal import Decimal

import pytest

pytest.importorskip(
    "nautilus_trader", reason="nautilus_trader is not installed: install the group `clients`"
)

from nautilus_trader.adapters.bybit import factories
from nautilus_trader.adapters.bybit.common.enums import BybitProductType
from nautilus_trader.adapters.bybit.config import BybitDataClientConfig, BybitExecClientConfig
from nautilus_trader.config import (
    InstrumentProviderConfig,
    LiveExecEngineConfig,
    LoggingConfig,
    TradingNodeConfig,
)
from nautilus_trader.live.node import TradingNode
from nautilus_trader.model.currencies import USDT
from nautilus_trader.model.data import BarType
from nautilus_trader.model.enums import BookType, LiquiditySide, OrderSide, OrderStatus
from nautilus_trader.model.events import OrderFilled
from nautilus_trader.model.identifiers import InstrumentId, Venue
from nautilus_trader.trading.strategy import Strategy

ID = "SOLUSDT"
INSTRUMENT = InstrumentId.from_str(f"{ID}-LINEAR.BYBIT")
BARS = BarType.from_str("ETHUSDT-LINEAR.BYBIT-1-MINUTE-LAST-EXTERNAL")
BYBIT = "BYBIT"
START_USDT = Decimal(1_000)  # PAPER_BALANCE_USDT
SECONDS = 10.0  # how long anything may take,
START_SECONDS = 60.0  # but for the start of a node
BAR_SECONDS = 70.0  # and the end of a minute
STATUS = {
    OrderStatus.ACCEPTED: "New",
    OrderStatus.PARTIALLY_FILLED: "PartiallyFilled",
    OrderStatus.FILLED: "Filled",
    OrderStatus.CANCELED: "Cancelled",
}
SIDE = {OrderSide.BUY: "Buy", OrderSide.SELL: "Sell"}


class Session(Strategy):
    """What the node was told: market data is kept here, orders and positions in its cache."""

    def __init__(self):
        super().__init__()
        self.data = {name: [] for name in ("quotes", "trades", "book", "rates", "bars", "history")}

    def on_start(self):
        self.subscribe_quote_ticks(INSTRUMENT)
        self.subscribe_trade_ticks(INSTRUMENT)
        self.subscribe_order_book_deltas(INSTRUMENT, book_type=BookType.L2_MBP, depth=50)
        self.subscribe_funding_rates(INSTRUMENT)
        self.subscribe_bars(BARS)
        self.request_bars(BARS, start=self.clock.utc_now().floor("1min") - 10 * BARS.spec.timedelta)

    def on_quote_tick(self, tick):
        self.data["quotes"].append(tick)

    def on_trade_tick(self, tick):
        self.data["trades"].append(tick)

    def on_order_book_deltas(self, deltas):
        self.data["book"].append(deltas)

    def on_funding_rate(self, funding_rate):
        self.data["rates"].append(funding_rate)

    def on_bar(self, bar):
        self.data["bars"].append(bar)

    def on_historical_data(self, data):
        self.data["history"].append(data)


def say(step, asked, client, exchange):
    print(f"{step:<12} asked: {asked:<44} client: {client:<38} exchange: {exchange}")


class Trader:
    """A running node and its strategy, and the exchange's own truth beside it."""

    def __init__(self, node, strategy, paper):
        self.node, self.strategy, self.paper = node, strategy, paper
        self.cache, self.make = node.cache, strategy.order_factory
        self.instrument = self.cache.instrument(INSTRUMENT)

    async def until(self, what, wanted, seconds=SECONDS):
        """What `wanted` finds, as soon as it finds something."""
        deadline = time.monotonic() + seconds
        while not (found := wanted()):
            assert time.monotonic() < deadline, f"never happened: {what}"
            await asyncio.sleep(0.005)
        return found

    def price(self, factor):
        """A price on the grid, relative to the exchange's last price."""
        return self.instrument.make_price(float(self.paper.last(ID)) * factor)

    def limit(self, side, qty, price, **more):
        qty = self.instrument.make_qty(qty)
        return self.make.limit(INSTRUMENT, side, qty, price, **more)

    def held(self, order):
        """An order as the exchange holds it."""
        link_id = order.client_order_id.value
        orders = self.paper.control.truth()["orders"]
        return next((row for row in orders if row["orderLinkId"] == link_id), None)

    def usdt(self):
        """(The node's balance, the exchange's)."""
        account = self.cache.account_for_venue(Venue(BYBIT))
        coins = self.paper.control.truth()["wallet"]["coin"]
        row = next(row for row in coins if row["coin"] == "USDT")
        return account.balance_total(USDT).as_decimal(), round8(row["walletBalance"])

    async def settled(self):
        """Wait until the node's balance is the exchange's."""
        await self.until("the same balance", lambda: len(set(self.usdt())) == 1)

    async def seen(self, step, asked, order, status, filled="0"):
        """Wait until the node believes an order's state; the exchange must hold the same."""

        def there():
            return (order.status, order.filled_qty.as_decimal()) == (status, Decimal(filled))

        await self.until(f"{step}: {status.name} {filled} of {order}", there)
        row = self.held(order)
        exchange = f"{row['orderStatus']} {row['cumExecQty']}/{row['qty']}@{row['price']}"
        say(step, asked, f"{status.name} {order.filled_qty}/{order.quantity}", exchange)
        assert state(order) == state_of_row(row)


def round8(number):
    """USDT as nautilus keeps it: eight decimals."""
    return round(Decimal(number), 8)


def state(order):
    """What an order of nautilus says that must not differ from the exchange."""
    return (
        STATUS[order.status],
        order.last_event.venue_order_id.value,  # a cancelled order may never have been accepted
        SIDE[order.side],
        order.quantity.as_decimal(),
        order.filled_qty.as_decimal(),
        order.price.as_decimal() if order.has_price else None,
        order.is_post_only,
        order.is_reduce_only,
    )


def state_of_row(row):
    return (
        row["orderStatus"],
        row["orderId"],
        row["side"],
        Decimal(row["qty"]),
        Decimal(row["cumExecQty"]),
        Decimal(row["price"]) if row["orderType"] == "Limit" else None,
        row["timeInForce"] == "PostOnly",
        row["reduceOnly"],
    )


def fill(event):
    """What a fill of nautilus says that must not differ from the exchange."""
    numbers = (event.last_px.as_decimal(), event.last_qty.as_decimal())
    maker = event.liquidity_side == LiquiditySide.MAKER
    who = (event.venue_order_id.value, SIDE[event.order_side], maker)
    return (*who, *numbers, event.commission.as_decimal())


def fill_of_row(row):
    numbers = (Decimal(row["execPrice"]), Decimal(row["execQty"]), round8(row["execFee"]))
    return row["orderId"], row["side"], row["isMaker"], *numbers


async def market_data(trader):
    """Instruments and balance, then every public topic."""
    strategy, data = trader.strategy, trader.strategy.data
    instruments = trader.cache.instruments()
    say("instruments", "(at start)", f"{len(instruments)} instruments", "20 symbols")
    assert len(instruments) == 20
    own, held = trader.usdt()
    say("account", "(at start)", f"{own} USDT", f"{held} USDT")
    assert own == held == START_USDT
    live = ("quotes", "trades", "book", "rates")
    await trader.until("public topics", lambda: all(data[name] for name in live))
    await trader.until("bars of the past", lambda: len(data["history"]) >= 10)
    trader.paper.control.hold(ID)
    last = Decimal(trader.paper.last(ID))
    await trader.until("last trade", lambda: data["trades"][-1].price.as_decimal() == last)
    quote, book = data["quotes"][-1], strategy.cache.order_book(INSTRUMENT)
    assert quote.bid_price < quote.ask_price
    assert book.best_bid_price() < book.best_ask_price()
    counts = ", ".join(f"{name} {len(data[name])}" for name in (*live, "history"))
    say("public", "quotes, trades, book, rates, bars", counts, f"last {last}")


async def one_order(trader):
    """Place, modify, fill a part, cancel the rest."""
    strategy, control = trader.strategy, trader.paper.control
    price, lower = trader.price(0.99), trader.price(0.985)
    order = trader.limit(OrderSide.BUY, 1.0, price, post_only=True)
    strategy.submit_order(order)
    await trader.seen("place", f"buy 1.0@{price} PostOnly", order, OrderStatus.ACCEPTED)
    strategy.modify_order(order, quantity=trader.instrument.make_qty(1.2), price=lower)
    await trader.until("amended", lambda: order.price == lower)
    await trader.seen("amend", f"buy 1.2@{lower}", order, OrderStatus.ACCEPTED)
    control.fault("venue", "trade", symbol=ID, price=str(lower), qty="0.5", queue="0")
    asked = f"(the market trades 0.5@{lower})"
    await trader.seen("fill", asked, order, OrderStatus.PARTIALLY_FILLED, "0.5")
    strategy.cancel_order(order)
    await trader.seen("cancel", "the rest", order, OrderStatus.CANCELED, "0.5")


async def batches(trader):
    """Several orders in one request: each has an outcome of its own."""
    strategy, price = trader.strategy, trader.price(0.98)
    orders = [trader.limit(OrderSide.BUY, 0.3, price) for _ in range(2)]
    tiny = trader.limit(OrderSide.BUY, 0.1, trader.instrument.make_price(10))  # below 5 USDT
    strategy.submit_order_list(trader.make.create_list([*orders, tiny]))
    for order in orders:
        asked = f"submit_order_list, one of 3 at {tiny.price}"
        await trader.seen("batch", asked, order, OrderStatus.ACCEPTED)
    await trader.until("refused", lambda: tiny.status == OrderStatus.REJECTED)
    say("batch", "the same", f"REJECTED {tiny.last_event.reason[:28]}", trader.held(tiny))
    assert trader.held(tiny) is None
    strategy.cancel_orders(orders)
    for order in orders:
        await trader.seen("batch", "cancel_orders", order, OrderStatus.CANCELED)
    orders = [trader.limit(OrderSide.BUY, 0.3, price) for _ in range(2)]
    for order in orders:
        strategy.submit_order(order)
    for order in orders:
        await trader.seen("batch", f"buy 0.3@{price}", order, OrderStatus.ACCEPTED)
    strategy.cancel_all_orders(INSTRUMENT)
    for order in orders:
        await trader.seen("batch", "cancel_all_orders", order, OrderStatus.CANCELED)


async def post_only_that_crosses(trader):
    """Accepted, then cancelled: the stream alone tells."""
    price = trader.price(1.01)
    order = trader.limit(OrderSide.BUY, 0.5, price, post_only=True)
    trader.strategy.submit_order(order)
    await trader.seen("post only", f"buy 0.5@{price} PostOnly", order, OrderStatus.CANCELED)
    assert trader.held(order)["rejectReason"] == "EC_PostOnlyWillTakeLiquidity"


async def traded_through(trader):
    """The market trades beyond a resting order: all of it fills, at its own price."""
    price = trader.price(0.99)
    order = trader.limit(OrderSide.BUY, 0.6, price)
    trader.strategy.submit_order(order)
    await trader.seen("place", f"buy 0.6@{price}", order, OrderStatus.ACCEPTED)
    through = trader.price(0.985)
    trader.paper.control.trade(ID, through, "1")
    await trader.seen("through", f"(trades at {through})", order, OrderStatus.FILLED, "0.6")
    assert order.avg_px == float(price)


async def funding(trader):
    """A funding row moves the balance, and is no fill."""
    await trader.settled()
    before, _ = trader.usdt()
    fills = len(fills_of(trader))
    trader.paper.control.fault("venue", "fund", symbol=ID, rate="0.0001")
    await trader.until("paid", lambda: trader.usdt()[0] != before)
    [row] = [r for r in trader.paper.control.truth()["executions"] if r["execType"] == "Funding"]
    after, held = trader.usdt()
    say("funding", "(funding at 0.0001)", f"{before} -> {after}", f"paid {row['execFee']}, {held}")
    assert after == held == before - round8(row["execFee"])
    assert Decimal(row["execFee"]) > 0
    assert len(fills_of(trader)) == fills


async def reduce_only(trader):
    """Close what is held, then open something to end with, and leave an order."""
    strategy = trader.strategy
    [position] = trader.cache.positions_open(instrument_id=INSTRUMENT)
    assert position.signed_decimal_qty() == Decimal("1.1")
    strategy.close_position(position, reduce_only=True)
    await trader.until("flat", lambda: position.is_closed)
    order = trader.cache.order(position.closing_order_id)
    await trader.seen("close", "close_position", order, OrderStatus.FILLED, "1.1")
    assert order.is_reduce_only
    order = trader.make.market(INSTRUMENT, OrderSide.SELL, trader.instrument.make_qty(0.7))
    strategy.submit_order(order)
    await trader.seen("open short", "sell 0.7 market", order, OrderStatus.FILLED, "0.7")
    price = trader.price(1.02)
    order = trader.limit(OrderSide.SELL, 0.4, price, post_only=True)
    strategy.submit_order(order)
    await trader.seen("rest", f"sell 0.4@{price} PostOnly", order, OrderStatus.ACCEPTED)


def fills_of(trader):
    """Every fill that the node knows, by trade id."""
    orders = trader.cache.orders()
    events = [event for order in orders for event in order.events]
    return {e.trade_id.value: fill(e) for e in events if isinstance(e, OrderFilled)}


async def the_end(trader):
    """What the node believes, and what it is told when it asks again, is what is held."""
    truth = trader.paper.control.truth()
    held = {row["orderLinkId"]: state_of_row(row) for row in truth["orders"]}
    orders = [o for o in trader.cache.orders() if o.status != OrderStatus.REJECTED]
    assert {order.client_order_id.value: state(order) for order in orders} == held
    say("orders", "(the node's cache)", f"{len(orders)} orders", f"{len(held)} orders")

    rows = [row for row in truth["executions"] if row["execType"] == "Trade"]
    fills = fills_of(trader)
    assert fills == {row["execId"]: fill_of_row(row) for row in rows}
    say("fills", "(the node's cache)", f"{len(fills)} fills", f"{len(rows)} fills")

    [position] = trader.cache.positions_open()
    [row] = [row for row in truth["positions"] if Decimal(row["size"])]
    size = Decimal(row["size"]) * (1 if row["side"] == "Buy" else -1)
    assert position.signed_decimal_qty() == size == Decimal("-0.7")
    assert position.avg_px_open == float(row["avgPrice"])
    client = f"{position.signed_decimal_qty()}@{position.avg_px_open}"
    say("position", "(the node's cache)", client, f"{size}@{row['avgPrice']}")

    await trader.settled()
    say("wallet", "(the node's account)", *(f"{amount} USDT" for amount in trader.usdt()))

    heard = []
    trader.node.kernel.msgbus.subscribe(f"reports.execution.{BYBIT}", heard.append)
    deadline = time.monotonic() + SECONDS
    while True:  # the history may be a little late
        assert await trader.node.kernel.exec_engine.reconcile_execution_state()
        told = heard[-1]
        links = {report.client_order_id.value for report in told.order_reports.values()}
        if links == set(held) or time.monotonic() > deadline:
            break
    assert links == set(held)
    trades = {r.trade_id.value for reports in told.fill_reports.values() for r in reports}
    assert trades >= set(fills)
    [[report]] = told.position_reports.values()
    assert report.signed_decimal_qty == size
    known = [o for o in trader.cache.orders() if o.status != OrderStatus.REJECTED]
    assert {order.client_order_id.value: state(order) for order in known} == held
    assert fills_of(trader) == fills
    say("reconcile", "the node asks for everything again", "nothing to change", "the same")


def configuration(paper, trade_socket):
    """Addresses and keys; the rest is as it comes, but for the log and the stop."""
    more = {
        "api_key": paper.key,
        "api_secret": paper.secret,
        "base_url_http": paper.rest,
        "product_types": [BybitProductType.LINEAR],
        "instrument_provider": InstrumentProviderConfig(load_all=True),
    }
    execution = BybitExecClientConfig(
        base_url_ws_private=f"{paper.stream}/v5/private",
        base_url_ws_trade=f"{paper.stream}/v5/trade",
        use_ws_trade_api=trade_socket,
        **more,
    )
    return TradingNodeConfig(
        trader_id="PAPER-001",
        logging=LoggingConfig(log_level="ERROR"),  # which go to stderr
        exec_engine=LiveExecEngineConfig(reconciliation=True, open_check_interval_secs=5.0),
        data_clients={BYBIT: BybitDataClientConfig(**more)},
        exec_clients={BYBIT: execution},
        timeout_post_stop=0.1,
    )


@contextlib.contextmanager
def stderr_to(path):
    """File descriptor 2, to which the node's log writes past Python, into a file."""
    kept = os.dup(2)
    try:
        with path.open("wb") as file:
            os.dup2(file.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@pytest.fixture
def address_of_public_stream(monkeypatch, paper):
    """The one address for which nautilus 1.221 has no option."""

    def public(product_type, is_demo, is_testnet):
        return f"{paper.stream}/v5/public/{product_type.value}"

    monkeypatch.setattr(factories, "get_ws_base_url_public", public)


@pytest.fixture(autouse=True)
def no_thread_and_no_signal_handler_is_left():
    """The node takes SIGINT for itself."""
    before, handler = set(threading.enumerate()), signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)
    assert set(threading.enumerate()) <= before


def run(paper, trade_socket, go):
    """Start a node, do something with it, stop it."""

    async def session(node, strategy):
        running = asyncio.create_task(node.run_async())
        try:
            deadline = time.monotonic() + START_SECONDS
            while not strategy.is_running:
                assert not running.done(), "the node did not start"
                assert time.monotonic() < deadline, "the node did not start in time"
                await asyncio.sleep(0.01)
            await go(Trader(node, strategy, paper))
        finally:
            await node.stop_async()
            await asyncio.wait_for(running, SECONDS)

    loop = asyncio.new_event_loop()
    node = TradingNode(configuration(paper, trade_socket), loop=loop)
    node.add_data_client_factory(BYBIT, factories.BybitLiveDataClientFactory)
    node.add_exec_client_factory(BYBIT, factories.BybitLiveExecClientFactory)
    strategy = Session()
    node.trader.add_strategy(strategy)
    node.build()
    try:
        loop.run_until_complete(session(node, strategy))
    finally:
        node.dispose()


async def whole_session(trader):
    await market_data(trader)
    await one_order(trader)
    await batches(trader)
    await post_only_that_crosses(trader)
    await traded_through(trader)
    await funding(trader)
    await reduce_only(trader)
    await the_end(trader)
    bars = trader.strategy.data["bars"]
    await trader.until("a closed bar", lambda: bars, BAR_SECONDS)
    say("bar", "(the minute ends)", f"{bars[0].open} to {bars[0].close}", "-")


async def another_start(trader):
    """A node that knows nothing learns all of it from its reconciliation."""
    truth = trader.paper.control.truth()
    held = {row["orderLinkId"]: state_of_row(row) for row in truth["orders"]}
    orders = {order.client_order_id.value: state(order) for order in trader.cache.orders()}
    [position] = trader.cache.positions_open()
    own = f"{len(orders)} orders, {position.signed_decimal_qty()}@{position.avg_px_open}"
    say("start again", "(reconciliation of an empty node)", own, f"{len(held)} orders")
    assert orders == held
    assert [order.venue_order_id.value for order in trader.cache.orders_open()] == [
        row["orderId"] for row in truth["orders"] if row["orderStatus"] == "New"
    ]
    rows = [row for row in truth["executions"] if row["execType"] == "Trade"]
    assert fills_of(trader) == {row["execId"]: fill_of_row(row) for row in rows}
    [row] = [row for row in truth["positions"] if Decimal(row["size"])]
    assert (position.signed_decimal_qty(), row["side"]) == (-Decimal(row["size"]), "Sell")
    assert position.avg_px_open == float(row["avgPrice"])
    await trader.settled()


@pytest.mark.parametrize("trade_socket", [False, True], ids=["rest", "trade socket"])
@pytest.mark.usefixtures("address_of_public_stream")
def test_a_session_of_a_nautilus_node_ends_with_node_and_exchange_agreeing(
    paper, tmp_path, trade_socket
):
    print()
    with stderr_to(tmp_path / "errors"):
        run(paper, trade_socket, whole_session)
        run(paper, trade_socket, another_start)
    errors = (tmp_path / "errors").read_text()
    assert "[ERROR]" not in errors, errors
    assert paper.control.ask("GET", "/")["breaches"] == 0
