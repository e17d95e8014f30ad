"""clients: ccxt and ccxt.pro, unmodified but for their addresses, through a whole session."""

import asyncio
import threading
import time
from decimal import Decimal
from urllib.parse import urlsplit

import pytest

ccxt = pytest.importorskip("ccxt", reason="ccxt is not installed: install the group `clients`")
pro = pytest.importorskip("ccxt.pro", reason="ccxt.pro is not installed")

SYMBOL, ID = "SOL/USDT:USDT", "SOLUSDT"
START_USDT = Decimal(1_000)  # PAPER_BALANCE_USDT
SECONDS = 10.0  # how long anything may take
STATUS = {
    "New": "open",
    "PartiallyFilled": "open",
    "Filled": "closed",
    "Cancelled": "canceled",
    "Rejected": "rejected",
}


def redirected(urls, rest, stream):
    """The same tree of addresses, each on the paper exchange, none anywhere else."""
    if isinstance(urls, dict):
        return {name: redirected(url, rest, stream) for name, url in urls.items()}
    at = urlsplit(urls)
    return (stream if at.scheme == "wss" else rest) + at.path


def aimed(kind, paper, **more):
    """A ccxt exchange as anybody would make it; only `urls` differs."""
    exchange = kind({"apiKey": paper.key, "secret": paper.secret} | more)
    exchange.urls["api"] = redirected(exchange.urls["api"], paper.rest, paper.stream)
    return exchange


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    left = set(threading.enumerate()) - before
    # pycares, with which older ccxt resolves names, keeps one for good
    assert not [thread for thread in left if "_run_safe_shutdown_loop" not in thread.name]


def say(step, asked, client, exchange):
    print(f"{step:<12} asked: {asked:<44} client: {client:<38} exchange: {exchange}")


class Streams:
    """One task for each stream that a ccxt.pro client reads; ccxt itself keeps what they say."""

    def __init__(self):
        self.heard = set()
        self._tasks = []

    def read(self, name, watch, *args):
        """Read a stream for ever."""
        self._tasks.append(asyncio.create_task(self._read(name, watch, args), name=name))

    async def _read(self, name, watch, args):
        while True:
            await watch(*args)
            self.heard.add(name)

    async def until(self, what, wanted):
        """What `wanted` finds, as soon as it finds something; no reader may have ended."""
        deadline = time.monotonic() + SECONDS
        while not (found := wanted()):
            for task in self._tasks:
                assert not task.done() or task.result(), f"{task.get_name()} ended"
            assert time.monotonic() < deadline, f"never happened: {what}"
            await asyncio.sleep(0.005)
        return found

    async def close(self):
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class Trader:
    """A ccxt.pro client, its streams, and the exchange's own truth beside it."""

    def __init__(self, exchange, paper):
        self.exchange, self.paper, self.streams = exchange, paper, Streams()

    def order(self, order_id):
        """An order as the client knows it from the stream."""
        known = (self.exchange.orders.hashmap if self.exchange.orders else {}).get(SYMBOL, {})
        return known.get(order_id)

    def held(self, order_id):
        """The same order as the exchange holds it."""
        orders = self.paper.control.truth()["orders"]
        return next((row for row in orders if row["orderId"] == order_id), None)

    def total(self):
        """The balance as the client knows it from the stream."""
        balance = (self.exchange.balance or {}).get("unified", {})
        return balance.get("USDT", {}).get("total")

    def positions(self):
        """The open positions as the client knows them from the stream."""
        return {holding(position) for position in self.exchange.positions if position["contracts"]}

    async def seen(self, step, asked, order_id, status, filled=0.0):
        """Wait until stream, REST and exchange agree on an order's state; return the belief."""

        def there():
            order = self.order(order_id)
            return order and (order["status"], order["filled"]) == (status, filled) and order

        order = await self.streams.until(f"{step}: {status} {filled} of {order_id}", there)
        asked_again = await self.exchange.fetch_order(order_id, SYMBOL, {"acknowledged": True})
        truth = self.held(order_id)
        say(step, asked, brief(order), f"{truth['orderStatus']} {brief_row(truth)}")
        assert state(order) == state(asked_again) == state_of_row(truth)
        return order


def state(order):
    """What a ccxt order says that must not differ from the exchange."""
    names = ("status", "side", "type", "price", "amount", "filled", "average", "reduceOnly")
    return tuple(order[name] for name in (*names, "clientOrderId"))


def state_of_row(row):
    return (
        STATUS[row["orderStatus"]],
        row["side"].lower(),
        row["orderType"].lower(),
        float(row["price"]),
        float(row["qty"]),
        float(row["cumExecQty"]),
        float(row["avgPrice"]) if row["avgPrice"] and float(row["avgPrice"]) else None,
        row["reduceOnly"],
        row["orderLinkId"] or None,
    )


def brief(order):
    return f"{order['status']} {order['side']} {order['filled']}/{order['amount']}@{order['price']}"


def brief_row(row):
    return f"{row['side']} {row['cumExecQty']}/{row['qty']}@{row['price']}"


def fill(trade):
    """What a ccxt trade says that must not differ from the exchange."""
    numbers = (trade["price"], trade["amount"], trade["fee"]["cost"])
    return trade["order"], trade["side"], trade["takerOrMaker"], *numbers


def fill_of_row(row):
    liquidity = "maker" if row["isMaker"] else "taker"
    numbers = (float(row["execPrice"]), float(row["execQty"]), float(row["execFee"]))
    return row["orderId"], row["side"].lower(), liquidity, *numbers


def holding(position):
    return position["side"], position["contracts"], position["entryPrice"]


def totals(row):
    """What watch_balance may call the total: the equity or, in older 4.5, the wallet balance."""
    return float(row["equity"]), float(row["walletBalance"])


def usdt(truth):
    """The exchange's row of USDT."""
    return next(row for row in truth["wallet"]["coin"] if row["coin"] == "USDT")


async def market_data(trader):
    """Markets, then every public topic, then the same by REST."""
    exchange, streams = trader.exchange, trader.streams
    markets = await exchange.load_markets()
    market = markets[SYMBOL]
    say("markets", "load_markets()", f"{len(markets)} markets", "20 symbols")
    assert len(markets) == 20
    assert (market["linear"], market["swap"], market["id"]) == (True, True, ID)
    streams.read("ticker", exchange.watch_ticker, SYMBOL)
    streams.read("klines", exchange.watch_ohlcv, SYMBOL)
    streams.read("book", exchange.watch_order_book, SYMBOL)
    streams.read("trades", exchange.watch_trades, SYMBOL)
    wanted = {"ticker", "klines", "book", "trades"}
    await streams.until("all public topics", lambda: wanted <= streams.heard)
    ticker, book = exchange.tickers[SYMBOL], exchange.orderbooks[SYMBOL]
    klines, trades = exchange.ohlcvs[SYMBOL]["1m"], exchange.trades[SYMBOL]
    assert ticker["symbol"] == book["symbol"] == SYMBOL
    assert ticker["bid"] < ticker["ask"]
    assert book["bids"][0][0] < book["asks"][0][0]
    trader.paper.control.hold(ID)
    last = float(trader.paper.last(ID))
    await streams.until("the last price", lambda: exchange.tickers[SYMBOL]["last"] == last)
    await streams.until("the last kline", lambda: klines[-1][4] == last)
    await streams.until("the last trade", lambda: trades[-1]["price"] == last)
    sizes = [trade["amount"] for trade in trades]
    sizes += [size for side in ("bids", "asks") for _, size in book[side]]
    assert [float(exchange.amount_to_precision(SYMBOL, size)) for size in sizes] == sizes
    seen = f"last {last}, {len(trades)} trades, {len(book['bids'])} bids"
    say("public", "ticker, klines, book, trades", seen, f"last {last}")
    ticker = await exchange.fetch_ticker(SYMBOL)
    rate = await exchange.fetch_funding_rate(SYMBOL)
    book = await exchange.fetch_order_book(SYMBOL)
    klines = await exchange.fetch_ohlcv(SYMBOL, "1m", limit=5)
    trades = await exchange.fetch_trades(SYMBOL, limit=5)
    tiers = await exchange.fetch_market_leverage_tiers(SYMBOL)
    assert ticker["last"] == klines[-1][4] == trades[-1]["price"] == last
    assert ticker["bid"] == book["bids"][0][0]
    assert ticker["ask"] == book["asks"][0][0]
    assert len(klines) == 5
    assert rate["fundingRate"] is not None
    assert tiers[0]["maxLeverage"] >= 10
    say("public rest", "ticker, book, klines, trades, tiers", f"last {ticker['last']}", f"{last}")


async def private_data(trader):
    """Account settings, then every private topic."""
    exchange, streams = trader.exchange, trader.streams
    fee = await exchange.fetch_trading_fee(SYMBOL)
    balance = await exchange.fetch_balance()
    assert Decimal(str(balance["USDT"]["total"])) == START_USDT
    assert await exchange.fetch_positions() == []
    with pytest.raises(ccxt.NoChange):
        await exchange.set_position_mode(False, SYMBOL)
    await exchange.set_leverage(5, SYMBOL)
    assert (await exchange.fetch_leverage(SYMBOL))["longLeverage"] == 5
    for name in ("orders", "my_trades", "positions", "balance"):
        streams.read(name, getattr(exchange, f"watch_{name}"))
    topics = {"orders", "myTrades", "positions", "balances:unified"}

    def subscribed():
        client = exchange.clients.get(f"{trader.paper.stream}/v5/private")
        return client and topics <= set(client.subscriptions)

    await streams.until("four private topics", subscribed)
    say(
        "account",
        "fees, balance, leverage, private topics",
        f"{balance['USDT']['total']} USDT, fees {fee['maker']} {fee['taker']}",
        f"{usdt(trader.paper.control.truth())['walletBalance']} USDT",
    )


async def one_order(trader):
    """Place, amend, fill a part, cancel the rest."""
    exchange, control = trader.exchange, trader.paper.control
    bid = (await exchange.fetch_ticker(SYMBOL))["bid"]
    price = float(exchange.price_to_precision(SYMBOL, bid * 0.99))
    lower = float(exchange.price_to_precision(SYMBOL, bid * 0.985))
    more = {"postOnly": True, "clientOrderId": "ccxt-1"}
    order_id = (await exchange.create_order(SYMBOL, "limit", "buy", 1.0, price, more))["id"]
    await trader.seen("place", f"buy 1.0@{price} PostOnly", order_id, "open")
    await exchange.edit_order(order_id, SYMBOL, "limit", "buy", 1.2, lower)
    await trader.streams.until("amended", lambda: trader.order(order_id)["price"] == lower)
    order = await trader.seen("amend", f"buy 1.2@{lower}", order_id, "open")
    assert (order["amount"], order["price"]) == (1.2, lower)
    more = {"symbol": ID, "price": str(lower), "qty": "0.5", "queue": "0"}
    control.fault("venue", "trade", **more)
    await trader.seen("fill", f"(the market trades 0.5@{lower})", order_id, "open", 0.5)
    await exchange.cancel_order(order_id, SYMBOL)
    await trader.seen("cancel", "the rest", order_id, "canceled", 0.5)
    return order_id


async def batches(trader):
    """Several orders in one request: each has an outcome of its own."""
    exchange = trader.exchange
    bid = (await exchange.fetch_ticker(SYMBOL))["bid"]
    price = float(exchange.price_to_precision(SYMBOL, bid * 0.98))
    links = ["ccxt-b1", "ccxt-b2", "ccxt-b1"]
    terms = {"symbol": SYMBOL, "type": "limit", "side": "buy", "amount": 0.3, "price": price}
    asked = [{**terms, "params": {"clientOrderId": link}} for link in links]
    made = await exchange.create_orders(asked)
    assert [order["clientOrderId"] for order in made] == links
    assert made[2]["status"] == "rejected"
    assert made[2]["info"]["code"] == 110072
    ids = [order["id"] for order in made[:2]]
    for order_id in ids:
        await trader.seen("batch", "create_orders, the third a duplicate", order_id, "open")
    moved = float(exchange.price_to_precision(SYMBOL, bid * 0.97))
    await exchange.edit_orders([{**terms, "id": order_id, "price": moved} for order_id in ids])
    for order_id in ids:
        await trader.streams.until("moved", lambda i=order_id: trader.order(i)["price"] == moved)
        await trader.seen("batch", f"edit_orders to {moved}", order_id, "open")
    await exchange.cancel_orders(ids, SYMBOL)
    for order_id in ids:
        await trader.seen("batch", "cancel_orders", order_id, "canceled")
    more = [await exchange.create_order(SYMBOL, "limit", "buy", 0.3, price) for _ in range(2)]
    for order in more:
        await trader.seen("batch", f"buy 0.3@{price}", order["id"], "open")
    gone = await exchange.cancel_all_orders(SYMBOL)
    assert {order["id"] for order in gone} == {order["id"] for order in more}
    for order in more:
        await trader.seen("batch", "cancel_all_orders", order["id"], "canceled")


async def post_only_that_crosses(trader):
    """Accepted with an id, then cancelled: the stream alone tells."""
    exchange = trader.exchange
    ask = (await exchange.fetch_ticker(SYMBOL))["ask"]
    price = float(exchange.price_to_precision(SYMBOL, ask * 1.01))
    order = await exchange.create_order(SYMBOL, "limit", "buy", 0.5, price, {"postOnly": True})
    assert order["id"]
    order = await trader.seen("post only", f"buy 0.5@{price} PostOnly", order["id"], "canceled")
    assert order["info"]["rejectReason"] == "EC_PostOnlyWillTakeLiquidity"


async def trade_socket(trader):
    """Orders over /v5/trade; the market trades through the last of them."""
    exchange, control = trader.exchange, trader.paper.control
    bid = (await exchange.fetch_ticker(SYMBOL))["bid"]
    prices = [float(exchange.price_to_precision(SYMBOL, bid * x)) for x in (0.99, 0.988, 0.98)]
    first = await exchange.create_order_ws(SYMBOL, "limit", "buy", 0.4, prices[0])
    await trader.seen("socket", f"create_order_ws buy 0.4@{prices[0]}", first["id"], "open")
    await exchange.edit_order_ws(first["id"], SYMBOL, "limit", "buy", 0.6, prices[1])
    order_id = first["id"]
    await trader.streams.until("amended", lambda: trader.order(order_id)["amount"] == 0.6)
    await trader.seen("socket", f"edit_order_ws 0.6@{prices[1]}", order_id, "open")
    other = await exchange.create_order_ws(SYMBOL, "limit", "buy", 0.2, prices[2])
    await trader.seen("socket", f"create_order_ws buy 0.2@{prices[2]}", other["id"], "open")
    await exchange.cancel_order_ws(other["id"], SYMBOL)
    await trader.seen("socket", "cancel_order_ws", other["id"], "canceled")
    through = float(exchange.price_to_precision(SYMBOL, bid * 0.985))
    control.trade(ID, through, "1")
    order = await trader.seen("through", f"(trades at {through})", order_id, "closed", 0.6)
    assert order["average"] == prices[1]
    with pytest.raises(ccxt.OrderNotFound):
        await exchange.cancel_order_ws(order_id, SYMBOL)


async def funding(trader):
    """A funding row moves the balance, and is no trade."""
    exchange, control, streams = trader.exchange, trader.paper.control, trader.streams
    before, trades = usdt(control.truth()), len(exchange.myTrades)
    control.fault("venue", "fund", symbol=ID, rate="0.0001")
    rows = await exchange.fetch_funding_history(SYMBOL)
    held = [row for row in control.truth()["executions"] if row["execType"] == "Funding"]
    after = usdt(control.truth())
    say(
        "funding",
        "(funding at 0.0001) fetch_funding_history",
        f"{len(rows)} row, paid {rows[0]['amount']}",
        f"{before['walletBalance']} -> {after['walletBalance']}",
    )
    assert [(row["id"], row["amount"], row["rate"]) for row in rows] == [
        (row["execId"], float(row["execFee"]), 0.0001) for row in held
    ]
    paid = Decimal(before["walletBalance"]) - Decimal(after["walletBalance"])
    assert paid == Decimal(held[0]["execFee"]) > 0
    await streams.until("paid", lambda: trader.total() in totals(after))
    assert len(exchange.myTrades) == trades


async def reduce_only(trader):
    """Close what is held, be refused more; end with a position and an order."""
    exchange, streams = trader.exchange, trader.streams
    size = (await exchange.fetch_position(SYMBOL))["contracts"]
    assert size == 1.1
    more = {"reduceOnly": True}
    order = await exchange.create_order(SYMBOL, "market", "sell", 5.0, None, more)
    await streams.until("sold", lambda: (trader.order(order["id"]) or {}).get("filled") == size)
    await streams.until("flat", lambda: not trader.positions())
    flat = await exchange.fetch_position(SYMBOL)
    truth = trader.held(order["id"])
    assert state(trader.order(order["id"])) == state_of_row(truth)
    assert flat["contracts"] == 0
    assert flat["side"] is None
    say("close", "sell 5.0 market reduceOnly", f"sold {size}, flat", brief_row(truth))
    with pytest.raises(ccxt.InvalidOrder, match="110017"):
        await exchange.create_order(SYMBOL, "market", "sell", 0.1, None, more)
    order = await exchange.create_order(SYMBOL, "market", "sell", 0.7)
    await trader.seen("open short", "sell 0.7 market", order["id"], "closed", 0.7)
    ask = (await exchange.fetch_ticker(SYMBOL))["ask"]
    price = float(exchange.price_to_precision(SYMBOL, ask * 1.02))
    order = await exchange.create_order(SYMBOL, "limit", "sell", 0.4, price, {"postOnly": True})
    await trader.seen("rest", f"sell 0.4@{price} PostOnly", order["id"], "open")


async def the_end(trader):
    """What the client believes, by REST and by stream, is what the exchange holds."""
    exchange, streams = trader.exchange, trader.streams
    truth = trader.paper.control.truth()
    held = {row["orderId"]: state_of_row(row) for row in truth["orders"]}
    streamed = {order["id"]: state(order) for order in exchange.orders}
    assert streamed == held
    deadline = time.monotonic() + SECONDS
    while True:  # the history may be a little late
        past = await exchange.fetch_canceled_and_closed_orders(SYMBOL, limit=50)
        present = await exchange.fetch_open_orders(SYMBOL)
        asked = {order["id"]: state(order) for order in (*past, *present)}
        if asked == held or time.monotonic() > deadline:
            break
    assert asked == held
    assert [state(order)[0] for order in present] == ["open"]
    filled = await exchange.fetch_closed_orders(SYMBOL, limit=50)
    assert {order["id"] for order in filled} == {i for i, row in held.items() if row[0] == "closed"}
    say("orders", "fetch_*_orders, watch_orders", f"{len(streamed)} orders", f"{len(held)} orders")

    rows = [row for row in truth["executions"] if row["execType"] == "Trade"]
    held = {row["execId"]: fill_of_row(row) for row in rows}
    asked = {trade["id"]: fill(trade) for trade in await exchange.fetch_my_trades(SYMBOL)}
    streamed = {trade["id"]: fill(trade) for trade in exchange.myTrades}
    assert asked == streamed == held
    say("fills", "fetch_my_trades, watch_my_trades", f"{len(streamed)} fills", f"{len(held)} fills")

    position = await exchange.fetch_position(SYMBOL)
    [open_position] = await exchange.fetch_positions()
    [row] = [row for row in truth["positions"] if float(row["size"])]
    side = {"Buy": "long", "Sell": "short"}[row["side"]]
    expected = (side, float(row["size"]), float(row["avgPrice"]))
    assert holding(position) == holding(open_position) == expected
    await streams.until("the last position", lambda: trader.positions() == {expected})
    own = f"{side} {position['contracts']}@{position['entryPrice']}"
    exchange_says = f"{row['side']} {row['size']}@{row['avgPrice']}"
    say("position", "fetch_position, watch_positions", own, exchange_says)

    balance = await exchange.fetch_balance()
    coin = usdt(truth)
    assert balance["USDT"]["total"] == float(coin["walletBalance"])
    cash = Decimal(0)
    for row in truth["executions"]:
        cash -= Decimal(row["execFee"])
        if row["execType"] == "Trade":
            cash -= Decimal(row["execValue"]) * (1 if row["side"] == "Buy" else -1)
    worth = Decimal("-0.7") * Decimal(str(position["entryPrice"]))
    assert Decimal(coin["walletBalance"]) == START_USDT + cash + worth
    await streams.until("the last balance", lambda: trader.total() in totals(coin))
    own = f"{balance['USDT']['total']} USDT, {trader.total()}"
    say("wallet", "fetch_balance, watch_balance", own, coin["walletBalance"])


def test_a_session_of_ccxt_pro_ends_with_client_and_exchange_agreeing(paper):
    async def session():
        trader = Trader(aimed(pro.bybit, paper), paper)
        try:
            await market_data(trader)
            await private_data(trader)
            await one_order(trader)
            await batches(trader)
            await post_only_that_crosses(trader)
            await trade_socket(trader)
            await funding(trader)
            await reduce_only(trader)
            await the_end(trader)
        finally:
            await trader.streams.close()
            await trader.exchange.close()

    print()
    asyncio.run(session())
    assert paper.control.ask("GET", "/")["breaches"] == 0


def test_refusals_reach_the_caller_of_plain_ccxt_as_its_own_errors(paper):
    exchange = aimed(ccxt.bybit, paper)
    exchange.load_markets()
    paper.control.hold(ID)
    ask = exchange.fetch_ticker(SYMBOL)["ask"]
    price = float(exchange.price_to_precision(SYMBOL, ask * 0.95))
    order = exchange.create_order(SYMBOL, "limit", "buy", 0.5, price, {"clientOrderId": "once"})
    assert exchange.fetch_open_order(order["id"], SYMBOL)["status"] == "open"
    with pytest.raises(ccxt.InvalidOrder, match="110072"):
        exchange.create_order(SYMBOL, "limit", "buy", 0.5, price, {"clientOrderId": "once"})
    with pytest.raises(ccxt.InvalidOrder, match="110017"):
        exchange.create_order(SYMBOL, "limit", "sell", 0.5, ask * 1.05, {"reduceOnly": True})
    with pytest.raises(ccxt.InsufficientFunds, match="110007"):
        exchange.create_order(SYMBOL, "limit", "buy", 5000, price)
    with pytest.raises(ccxt.OrderNotFound, match="110001"):
        exchange.cancel_order("no-such-order", SYMBOL)
    with pytest.raises(ccxt.BadRequest, match="order not modified"):
        exchange.edit_order(order["id"], SYMBOL, "limit", "buy", 0.5, price)
    with pytest.raises(ccxt.AuthenticationError, match="10004"):
        aimed(ccxt.bybit, paper, secret="wrong").fetch_balance()
    assert [row["orderId"] for row in paper.control.truth()["orders"]] == [order["id"]]
