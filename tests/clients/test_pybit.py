"""clients: plain pybit, unmodified but for its addresses, through whole sessions.

`pytest -s` shows each step: what was asked, what the client heard, what the exchange holds.
"""

import contextlib
import logging
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from urllib.parse import urlsplit

import pytest
import requests
from pybit.exceptions import InvalidRequestError
from pybit.unified_trading import HTTP, WebSocket, WebSocketTrading

from tests.clients.conftest import serve

ID = "SOLUSDT"
KEY = {"category": "linear", "symbol": ID}
START_USDT = Decimal(1_000)  # PAPER_BALANCE_USDT
SECONDS = 10.0  # how long anything may take
BETWEEN_TICKERS = 0.15  # a ticker is said ten times a second at most
HALF_OPEN = 3.0
SOON = {"ping_timeout": 1}  # a reader notices so late that its socket was closed
THREADS, ORDERS_EACH = 4, 250
# pybit registers a callback after it has sent: with the default 1 ms one answer in 20 000 was too
# fast for four threads on two busy cores, with 20 ms none.
ACK_MS = 20
RATE_LIMIT = 100_000
LIMITS = {"PAPER_RATE_LIMIT": RATE_LIMIT, "PAPER_IP_LIMIT": RATE_LIMIT}
SUBSCRIBED = "Subscription to"  # pybit says so in its log, and nowhere else
PRIVATE = ("order", "execution", "execution.fast", "position", "wallet")
PUBLIC = ("kline.1", "tickers", "orderbook.50", "publicTrade")


class Aimed:
    """The one thing that differs from pybit: where the path of an address begins."""

    def __init__(self, base, *args, **kwargs):
        self._base = base
        super().__init__(*args, testnet=False, **kwargs)

    def _connect(self, url):
        super()._connect(self._base + urlsplit(url).path)


class Stream(Aimed, WebSocket):
    """pybit's WebSocket."""


class Trade(Aimed, WebSocketTrading):
    """pybit's WebSocketTrading."""


@pytest.fixture(scope="module", autouse=True)
def no_thread_is_left():
    """pybit's reader threads end a little after their socket is closed."""
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(SECONDS)
    assert set(threading.enumerate()) <= before


def until(what, wanted):
    """What `wanted` finds, as soon as it finds something."""
    deadline = time.monotonic() + SECONDS
    while not (found := wanted()):
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.002)
    return found


def say(step, asked, client, exchange):
    print(f"{step:<11} asked: {asked:<46} client: {client:<46} exchange: {exchange}")


class Client:
    """A session of pybit, all that it has heard, and the exchange's own truth beside it."""

    def __init__(self, paper, caplog):
        self.paper, self.control, self._log = paper, paper.control, caplog
        self.heard = {topic: [] for topic in (*PUBLIC, *PRIVATE)}
        self._sockets = []
        self._keys = {"api_key": paper.key, "api_secret": paper.secret}
        self.http = HTTP(**self._keys)
        self.http.endpoint = paper.rest
        caplog.set_level(logging.DEBUG, "pybit._websocket_stream")

    def public(self):
        """Listen to the market of one symbol."""
        stream = self._kept(Stream(self.paper.stream, "linear", **SOON))
        with self._confirmed(4):
            stream.kline_stream(1, ID, self.heard["kline.1"].append)
            stream.ticker_stream(ID, self.heard["tickers"].append)
            stream.orderbook_stream(50, ID, self.heard["orderbook.50"].append)
            stream.trade_stream(ID, self.heard["publicTrade"].append)

    def private(self, *topics):
        """Listen to the account."""
        stream = self._kept(
            Stream(self.paper.stream, "private", private_auth_expire=10, **SOON, **self._keys)
        )
        listen = {
            "order": stream.order_stream,
            "execution": stream.execution_stream,
            "execution.fast": stream.fast_execution_stream,
            "position": stream.position_stream,
            "wallet": stream.wallet_stream,
        }
        with self._confirmed(len(topics)):
            for topic in topics:
                listen[topic](self.heard[topic].append)
        return stream

    def trade(self):
        """A socket for orders."""
        return self._kept(Trade(self.paper.stream, private_auth_expire=10, **SOON, **self._keys))

    def rows(self, topic):
        """Every row of a private topic, in the order in which it came."""
        return [row for frame in list(self.heard[topic]) for row in frame["data"]]

    def order(self, order_id):
        """An order as the stream told it last."""
        found = [row for row in self.rows("order") if row["orderId"] == order_id]
        return found[-1] if found else None

    def held(self, order_id):
        """The same as the exchange holds it."""
        orders = self.control.truth()["orders"]
        return next((row for row in orders if row["orderId"] == order_id), None)

    def seen(self, step, asked, order_id, status, filled="0"):
        """Wait until the stream tells of this state; it must be the exchange's, to the digit."""

        def there():
            row = self.order(order_id)
            return row and (row["orderStatus"], row["cumExecQty"]) == (status, filled) and row

        row = until(f"{step}: {status} {filled}", there)
        truth = self.held(order_id)
        say(step, asked, brief(row), brief(truth))
        assert row == truth
        return row

    def ask(self, verb, **terms):
        """One request of the trade socket and its one answer."""
        answers = []
        verb(answers.append, answers.append, **terms)
        until("an answer", lambda: answers)
        return answers[0]

    def strays(self):
        """Answers of a trade socket that nobody waits for: too early, or a second time."""
        return [r for r in list(self._log.records) if "unregistered reqId" in r.getMessage()]

    def close(self):
        for one in self._sockets:
            one.exit()
        self.http.client.close()

    def _kept(self, one):
        self._sockets.append(one)
        return one

    @contextlib.contextmanager
    def _confirmed(self, count):
        """Wait for the exchange's answers, which pybit keeps to itself."""

        def answers():
            return sum(SUBSCRIBED in record.getMessage() for record in list(self._log.records))

        before = answers()
        yield
        until("subscribed", lambda: answers() == before + count)


@pytest.fixture
def client(caplog):
    with serve(PAPER_ACK_MS=ACK_MS, **LIMITS) as paper:
        client = Client(paper, caplog)
        print()
        try:
            yield client
        finally:
            client.close()


def brief(row):
    done = f"{row['orderStatus']} {row['side']} {row['cumExecQty']}/{row['qty']}@{row['price']}"
    return f"{done} {row['rejectReason']}".removesuffix(" EC_NoError")


def usdt(wallet):
    [coin] = [row for row in wallet["coin"] if row["coin"] == "USDT"]
    return coin


def refusal(call, **terms):
    """The retCode with which a REST call is refused."""
    with pytest.raises(InvalidRequestError) as error:
        call(**terms)
    return error.value.status_code


# One whole session.


class Market:
    """Prices on the grid of one symbol, around where it stands."""

    def __init__(self, client):
        [row] = client.http.get_instruments_info(**KEY)["result"]["list"]
        self.tick = Decimal(row["priceFilter"]["tickSize"])
        self.last = Decimal(client.paper.last(ID))

    def at(self, pct):
        """The price so many percent away."""
        price = self.last * (1 + Decimal(str(pct)) / 100)
        return str(price // self.tick * self.tick)  # in as many decimals as the tick


def markets(client):
    """Everything public by REST, then by stream, then that both agree."""
    http, heard, control = client.http, client.heard, client.control
    rows = http.get_instruments_info(category="linear")["result"]["list"]
    assert {row["symbol"] for row in http.get_tickers(category="linear")["result"]["list"]} == {
        row["symbol"] for row in rows
    }
    say("markets", "get_instruments_info, get_tickers", f"{len(rows)} symbols", "20 symbols")
    assert len(rows) == 20
    assert abs(http.get_server_time()["time"] - time.time() * 1000) < 60_000
    client.public()
    until("every public topic", lambda: all(heard[topic] for topic in PUBLIC))
    control.hold(ID)
    time.sleep(BETWEEN_TICKERS)
    market = Market(client)
    price = market.at(0.1)
    control.trade(ID, price, "7")

    def last():
        """The last price by each topic."""
        return {
            Decimal(heard["kline.1"][-1]["data"][0]["close"]),
            Decimal(heard["tickers"][-1]["data"]["lastPrice"]),
            Decimal(heard["publicTrade"][-1]["data"][-1]["p"]),
        }

    until("the last trade", lambda: last() == {Decimal(price)})
    [ticker] = http.get_tickers(**KEY)["result"]["list"]
    assert heard["tickers"][-1]["data"] == ticker
    book = http.get_orderbook(**KEY, limit=50)["result"]
    merged = heard["orderbook.50"][-1]["data"]
    assert sorted(merged["b"]) == sorted(book["b"])
    assert sorted(merged["a"]) == sorted(book["a"])
    assert max(Decimal(p) for p, _ in book["b"]) < min(Decimal(p) for p, _ in book["a"])
    kline, [row] = heard["kline.1"][-1]["data"][0], klines(http, 1)
    names = ("open", "high", "low", "close", "volume", "turnover")
    assert row == [str(kline["start"]), *(kline[name] for name in names)]
    assert len(klines(http, 200)) == 200
    trades = http.get_public_trade_history(**KEY, limit=1)["result"]["list"]
    assert Decimal(trades[0]["price"]) == Decimal(price)
    assert trades[0]["execId"] == heard["publicTrade"][-1]["data"][-1]["i"]
    counts = ", ".join(f"{topic} {len(heard[topic])}" for topic in PUBLIC)
    say("public", "kline, ticker, orderbook, trade streams", f"last {price}; {counts}", price)
    return Market(client)


def klines(http, limit):
    return http.get_kline(**KEY, interval=1, limit=limit)["result"]["list"]


def account(client):
    """Settings and balance; then the five private topics."""
    http = client.http
    [row] = http.get_wallet_balance(accountType="UNIFIED")["result"]["list"]
    assert Decimal(row["totalEquity"]) == Decimal(usdt(row)["walletBalance"]) == START_USDT
    assert http.get_account_info()["result"]["unifiedMarginStatus"] >= 4
    assert http.get_api_key_information()["result"]["uta"] == 1
    [fees] = http.get_fee_rates(**KEY)["result"]["list"]
    assert http.get_positions(category="linear", settleCoin="USDT")["result"]["list"] == []
    client.private(*PRIVATE)
    assert http.set_leverage(**KEY, buyLeverage="5", sellLeverage="5")["retCode"] == 0
    until("the position was told", lambda: client.rows("position"))
    assert client.rows("position")[-1]["leverage"] == "5"
    assert refusal(http.set_leverage, **KEY, buyLeverage="5", sellLeverage="5") == 110043
    assert refusal(http.switch_position_mode, category="linear", symbol=ID, mode=0) == 110025
    held = usdt(client.control.truth()["wallet"])["walletBalance"]
    rates = f"fees {fees['makerFeeRate']} {fees['takerFeeRate']}"
    say("account", "wallet, fees, leverage 5, private topics", f"1000 USDT, {rates}", held)


def one_order(client, market):
    """Place, amend, fill a part, cancel the rest: by REST."""
    http, price, lower = client.http, market.at(-1), market.at(-1.5)
    terms = {**KEY, "side": "Buy", "orderType": "Limit", "timeInForce": "PostOnly"}
    made = http.place_order(**terms, qty="1.0", price=price, orderLinkId="first")["result"]
    key = {**KEY, "orderId": made["orderId"]}
    client.seen("place", f"Buy 1.0@{price} PostOnly", made["orderId"], "New")
    [row] = http.get_open_orders(**KEY, orderLinkId="first")["result"]["list"]
    assert row == client.held(made["orderId"])
    http.amend_order(**key, qty="1.2", price=lower)
    until("amended", lambda: client.order(made["orderId"])["price"] == lower)
    row = client.seen("amend", f"to 1.2@{lower}", made["orderId"], "New")
    assert (row["qty"], row["leavesQty"]) == ("1.2", "1.2")
    assert refusal(http.amend_order, **key, qty="1.2", price=lower) == 10001
    client.control.fault("venue", "trade", symbol=ID, price=lower, qty="0.5", queue="0")
    row = client.seen(
        "fill", f"(the market trades 0.5@{lower})", key["orderId"], "PartiallyFilled", "0.5"
    )
    assert (row["leavesQty"], row["avgPrice"]) == ("0.7", lower)
    http.cancel_order(**key)
    row = client.seen("cancel", "the rest", made["orderId"], "Cancelled", "0.5")
    assert (row["leavesQty"], row["cancelType"]) == ("0", "CancelByUser")
    assert refusal(http.cancel_order, **key) == 110001
    say("cancel", "the same again", "InvalidRequestError 110001", "too late")
    client.control.trade(ID, market.last, "1")


def batches(client, market, verbs, by):
    """Several orders in one request, the third with the id of the first."""
    price, moved = market.at(-2), market.at(-3)
    place, amend, cancel = verbs
    one = {"symbol": ID, "side": "Buy", "orderType": "Limit", "qty": "0.3", "price": price}
    links = [f"{by}-1", f"{by}-2", f"{by}-1"]
    made = place(request=[{**one, "orderLinkId": link} for link in links])
    assert [error["code"] for error in made["retExtInfo"]["list"]] == [0, 0, 110072]
    rows = (made.get("result") or made.get("data"))["list"]
    assert [row["orderLinkId"] for row in rows] == links
    ids = [row["orderId"] for row in rows]
    assert ids[2] == ""
    keys = [{"symbol": ID, "orderId": order_id} for order_id in ids[:2]]
    for order_id in ids[:2]:
        client.seen(f"batch {by}", "create, the third a duplicate", order_id, "New")
    answer = amend(request=[{**key, "price": moved} for key in keys])
    assert [error["code"] for error in answer["retExtInfo"]["list"]] == [0, 0]
    for order_id in ids[:2]:
        until("moved", lambda i=order_id: client.order(i)["price"] == moved)
        client.seen(f"batch {by}", f"amend to {moved}", order_id, "New")
    answer = cancel(request=[*keys, {"symbol": ID, "orderId": "none"}])
    assert [error["code"] for error in answer["retExtInfo"]["list"]] == [0, 0, 110001]
    for order_id in ids[:2]:
        client.seen(f"batch {by}", "cancel", order_id, "Cancelled")


def orders_by_socket(client, market, socket):
    """The same by the trade socket; PostOnly and reduce-only are refused each in its own way."""
    price, moved, crossing = market.at(-1), market.at(-2), market.at(1)
    terms = {**KEY, "side": "Buy", "orderType": "Limit", "qty": "0.4"}
    made = client.ask(socket.place_order, **terms, price=price, orderLinkId="by-socket")
    assert (made["retCode"], made["op"]) == (0, "order.create")
    assert made["data"]["orderLinkId"] == "by-socket"
    assert made["header"]["X-Bapi-Limit"] == str(RATE_LIMIT)
    key = {**KEY, "orderId": made["data"]["orderId"]}
    client.seen("socket", f"create Buy 0.4@{price}", key["orderId"], "New")
    assert client.ask(socket.amend_order, **key, price=moved)["retCode"] == 0
    until("amended", lambda: client.order(key["orderId"])["price"] == moved)
    client.seen("socket", f"amend to {moved}", key["orderId"], "New")
    assert client.ask(socket.cancel_order, **key)["data"]["orderId"] == key["orderId"]
    client.seen("socket", "cancel", key["orderId"], "Cancelled")
    answer = client.ask(socket.cancel_order, **key)
    assert answer["retCode"] == 110001
    say("socket", "cancel again", f"error_callback {answer['retCode']}", "nothing to cancel")
    terms |= {"timeInForce": "PostOnly", "price": crossing}
    made = client.ask(socket.place_order, **terms)
    assert made["retCode"] == 0  # accepted: only the stream tells
    row = client.seen("post only", f"Buy 0.4@{crossing}", made["data"]["orderId"], "Cancelled")
    assert (row["rejectReason"], row["cancelType"]) == ("EC_PostOnlyWillTakeLiquidity", "UNKNOWN")
    answer = client.ask(socket.place_order, **terms | {"reduceOnly": True})
    assert answer["retCode"] == 110017  # the position is a long one
    say("reduce only", "Buy 0.4 reduceOnly", f"error_callback {answer['retCode']}", "long 0.5")


def position_and_stops(client, market):
    """Buy more at market; take profit and stop loss of the position; the same again."""
    http, control = client.http, client.control
    made = http.place_order(**KEY, side="Buy", orderType="Market", qty="0.3")["result"]
    row = client.seen("market", "Buy 0.3 at market", made["orderId"], "Filled", "0.3")
    assert (row["timeInForce"], Decimal(row["avgPrice"]) > 0) == ("IOC", True)
    held = {**KEY, "positionIdx": 0, "tpslMode": "Full"}
    profit, loss = market.at(2), market.at(-8)
    assert http.set_trading_stop(**held, takeProfit=profit, stopLoss=loss)["retCode"] == 0
    terms = {**KEY, "orderFilter": "StopOrder"}
    rows = until("both stops", lambda: http.get_open_orders(**terms)["result"]["list"])
    assert {(row["stopOrderType"], row["triggerPrice"], row["qty"]) for row in rows} == {
        ("TakeProfit", profit, "0.8"),
        ("StopLoss", loss, "0.8"),
    }
    for row in rows:
        client.seen(
            "stop", f"{row['stopOrderType']} {row['triggerPrice']}", row["orderId"], "Untriggered"
        )
    again = refusal(http.set_trading_stop, **held, takeProfit=profit, stopLoss=loss)
    assert again == 34040
    [row] = http.get_positions(**KEY)["result"]["list"]
    [truth] = control.truth()["positions"]
    assert row == truth
    assert (row["side"], row["size"], row["takeProfit"]) == ("Buy", "0.8", profit)
    say("position", "get_positions", f"Buy {row['size']}@{row['avgPrice']}", truth["avgPrice"])
    return {row["stopOrderType"]: row["orderId"] for row in rows}


def funding(client):
    """A row that moves the balance and is no trade."""
    control, before = client.control, usdt(client.control.truth()["wallet"])
    control.fault("venue", "fund", symbol=ID, rate="0.0001")
    rows = until(
        "funding", lambda: [r for r in client.rows("execution") if r["execType"] == "Funding"]
    )
    truth = control.truth()
    [held] = [row for row in truth["executions"] if row["execType"] == "Funding"]
    assert client.http.get_executions(**KEY, execType="Funding")["result"]["list"] == [held]
    assert [without_profit(row) for row in rows] == [held]
    fee, after = Decimal(held["execFee"]), usdt(truth["wallet"])
    assert fee == Decimal(held["execQty"]) * Decimal(held["execPrice"]) * Decimal("0.0001") > 0
    assert Decimal(before["walletBalance"]) - Decimal(after["walletBalance"]) == fee
    until(
        "paid", lambda: usdt(client.rows("wallet")[-1])["walletBalance"] == after["walletBalance"]
    )
    say("funding", "(0.0001 of the position)", f"paid {fee}", f"balance {after['walletBalance']}")


def take_profit(client, market, stops):
    """The market reaches the take profit: flat, and the stop loss ends with the position."""
    client.control.trade(ID, market.at(2), "3")
    client.seen(
        "profit", f"(the market trades at {market.at(2)})", stops["TakeProfit"], "Filled", "0.8"
    )
    client.seen("stop loss", "(nothing is held any more)", stops["StopLoss"], "Deactivated")
    assert client.http.get_positions(category="linear", settleCoin="USDT")["result"]["list"] == []
    rows = client.http.get_closed_pnl(**KEY)["result"]["list"]
    fills = [row for row in client.rows("execution") if row["execType"] == "Trade"]
    made = sum(Decimal(row["execPnl"]) - Decimal(row["execFee"]) for row in fills)
    assert sum(Decimal(row["closedPnl"]) for row in rows) == made
    assert sum(Decimal(row["closedSize"]) for row in rows) == Decimal("0.8")
    say("closed", "get_closed_pnl", f"{made} USDT after fees", "flat")


def short(client, market):
    """A resting order and a short position are left at the end."""
    http = client.http
    terms = {**KEY, "side": "Sell", "orderType": "Limit", "timeInForce": "GTC"}
    made = http.place_order(**terms, qty="0.4", price=market.at(4))["result"]
    client.seen("rest", f"Sell 0.4@{market.at(4)}", made["orderId"], "New")
    made = http.place_order(**KEY, side="Sell", orderType="Market", qty="0.7")["result"]
    client.seen("short", "Sell 0.7 at market", made["orderId"], "Filled", "0.7")


def without_profit(row):
    """An execution as REST has it: `execPnl` is the stream's alone."""
    return {name: value for name, value in row.items() if name != "execPnl"}


def all_agrees(client):
    """What streams and REST told is what the exchange holds: every field of every row."""
    http, truth = client.http, client.control.truth()
    until("the last wallet", lambda: client.rows("wallet")[-1] == truth["wallet"])
    told = {row["orderId"]: row for row in client.rows("order")}
    assert told == {row["orderId"]: row for row in truth["orders"]}
    done = Counter()
    for row in client.rows("order"):
        assert Decimal(row["cumExecQty"]) >= done[row["orderId"]]
        done[row["orderId"]] = Decimal(row["cumExecQty"])

    def asked():
        """The history may be a little late."""
        past = http.get_order_history(**KEY, limit=50)["result"]["list"]
        present = http.get_open_orders(**KEY, limit=50)["result"]["list"]
        return {row["orderId"]: row for row in (*past, *present)} == told

    until("the whole history", asked)
    say("orders", "streams, history, open orders", f"{len(told)} orders", f"{len(truth['orders'])}")

    fills = truth["executions"]
    assert [without_profit(row) for row in client.rows("execution")] == fills
    assert http.get_executions(**KEY, limit=100)["result"]["list"] == fills[::-1]
    trades = [row for row in fills if row["execType"] == "Trade"]
    fast = client.rows("execution.fast")
    assert len(fast) == len(trades)
    for quick, row in zip(fast, trades, strict=True):
        link_id = "" if row["isMaker"] else row["orderLinkId"]
        assert quick == {name: row[name] for name in quick} | {"orderLinkId": link_id}
    say("executions", "streams, get_executions", f"{len(fills)}, {len(fast)} fast", len(fills))

    [row] = truth["positions"]
    assert client.rows("position")[-1] == row
    assert http.get_positions(**KEY)["result"]["list"] == [row]
    assert (row["side"], row["size"]) == ("Sell", "0.7")
    say(
        "position",
        "stream, get_positions",
        f"Sell 0.7@{client.rows('position')[-1]['entryPrice']}",
        row["avgPrice"],
    )

    assert http.get_wallet_balance(accountType="UNIFIED")["result"]["list"] == [truth["wallet"]]
    rows = client.rows("execution")
    cash = sum(Decimal(row["execPnl"]) - Decimal(row["execFee"]) for row in rows)
    balance = usdt(truth["wallet"])["walletBalance"]
    assert Decimal(balance) == START_USDT + cash
    say("wallet", "stream, get_wallet_balance", f"1000 {cash:+} USDT", f"{balance} USDT")


def test_a_session_ends_with_streams_and_exchange_agreeing_to_the_digit(client):
    http, market = client.http, markets(client)
    account(client)
    one_order(client, market)
    rest = (http.place_batch_order, http.amend_batch_order, http.cancel_batch_order)
    batches(client, market, [lambda v=v, **kw: v(category="linear", **kw) for v in rest], "rest")
    socket = client.trade()
    verbs = (socket.place_batch_order, socket.amend_batch_order, socket.cancel_batch_order)
    ask = [lambda v=v, **kw: client.ask(v, category="linear", **kw) for v in verbs]
    batches(client, market, ask, "ws")
    orders_by_socket(client, market, socket)
    stops = position_and_stops(client, market)
    funding(client)
    take_profit(client, market, stops)
    short(client, market)
    all_agrees(client)
    assert not client.strays()
    status = client.control.ask("GET", "/")
    assert (status["breaches"], status["sockets"]) == (0, 3)


def test_orders_of_many_threads_are_answered_once_each(client):
    """Immediate-or-cancel orders far from the market: nothing rests, nothing fills."""
    answers = []
    client.private("order")
    sockets = [client.trade() for _ in range(2)]
    price = Market(client).at(-4)
    terms = {**KEY, "side": "Buy", "orderType": "Limit", "timeInForce": "IOC", "qty": "0.1"}
    links = [f"t{n}-{i}" for n in range(THREADS) for i in range(ORDERS_EACH)]

    def send(number):
        for link in links[number::THREADS]:

            def answered(found, link=link):
                answers.append((link, found["retCode"]))

            place = sockets[number % 2].place_order
            place(answered, answered, **terms, price=price, orderLinkId=link)

    began = time.monotonic()
    with ThreadPoolExecutor(THREADS) as pool:
        for done in [pool.submit(send, number) for number in range(THREADS)]:
            done.result()
    until("all answers", lambda: len(answers) >= len(links))
    took = time.monotonic() - began
    truth = [row["orderLinkId"] for row in client.control.truth()["orders"]]
    assert sorted(truth) == sorted(links)
    until("all pushes", lambda: len({r["orderId"] for r in client.rows("order")}) == len(links))
    ends = Counter(row["orderStatus"] for row in client.rows("order"))
    assert ends == {"Cancelled": len(links)}
    assert sorted(answers) == [(link, 0) for link in sorted(links)]
    assert not client.strays()
    say(
        "hammer",
        f"{len(links)} orders, {THREADS} threads",
        f"{len(answers)} answers in {took:.2f} s",
        f"{len(truth)} orders",
    )


# Faults, as plain pybit meets them.


def test_faults_as_plain_pybit_meets_them(client):
    client.control.hold(ID)
    market, stream = Market(client), client.private("order", "execution")
    an_ack_is_lost(client, market)
    an_execution_comes_twice(client)
    the_private_socket_is_half_open(client, market, stream)
    assert client.control.ask("GET", "/")["breaches"] == 0


def an_ack_is_lost(client, market):
    """The order is accepted, the answer never comes: the resend shows it by its refusal."""
    http, control = client.http, client.control
    terms = {**KEY, "side": "Buy", "orderType": "Limit", "qty": "0.5", "price": market.at(-1)}
    control.fault("http", "drop_after", path="/v5/order/create")
    with pytest.raises(requests.ConnectionError) as error:
        http.place_order(**terms, orderLinkId="lost")
    [row] = control.truth()["orders"]
    say("ack lost", "place_order, id lost", type(error.value).__name__, brief(row))
    code = refusal(http.place_order, **terms, orderLinkId="lost")
    assert code == 110072
    say("ack lost", "the same again", f"InvalidRequestError {code}", "one order still")
    client.seen("ack lost", "(the order stream)", row["orderId"], "New")
    assert http.get_open_orders(**KEY, orderLinkId="lost")["result"]["list"] == [row]
    assert control.truth()["orders"] == [row]
    say("ack lost", "get_open_orders, id lost", brief(row), brief(row))


def an_execution_comes_twice(client):
    """Two frames with one execId: whoever sums them holds too much."""
    client.control.fault("ws", "dup", kind="private", topic="execution")
    client.http.place_order(**KEY, side="Buy", orderType="Market", qty="0.3")
    first, second = until("both", lambda: len(rows := client.rows("execution")) == 2 and rows)
    assert first == second
    truth = client.control.truth()
    [row] = truth["executions"]
    assert without_profit(first) == row
    [position] = truth["positions"]
    assert position["size"] == row["execQty"] == "0.3"
    say(
        "push twice",
        "Buy 0.3 at market",
        f"2 frames, 0.3 each, one execId {row['execId'][:8]}",
        f"1 execution, holds {position['size']}",
    )


def the_private_socket_is_half_open(client, market, stream):
    """No frame for a while although the connection stands; what was missed never comes."""
    http, control, connection = client.http, client.control, stream.ws.sock
    heard = len(client.heard["order"])
    control.fault("ws", "half_open", kind="private")
    terms = {**KEY, "side": "Buy", "orderType": "Limit", "qty": "0.5", "price": market.at(-2)}
    made = http.place_order(**terms, orderLinkId="missed")["result"]
    http.cancel_order(**KEY, orderLinkId="lost")
    time.sleep(HALF_OPEN)
    assert len(client.heard["order"]) == heard
    assert stream.is_connected()
    say(
        "half open",
        "place missed, cancel lost, wait 3 s",
        "no frame, is_connected() True",
        "did both",
    )
    control.heal()
    after = http.place_order(**terms, orderLinkId="after")["result"]
    client.seen("healed", "place after", after["orderId"], "New")
    assert stream.ws.sock is connection
    assert client.order(made["orderId"]) is None  # not said again
    assert client.order(client_order(client, "lost"))["orderStatus"] == "New"  # a belief now wrong
    rows = http.get_open_orders(**KEY)["result"]["list"]
    assert [row["orderLinkId"] for row in rows] == ["after", "missed"]
    assert rows == [client.held(row["orderId"]) for row in rows]
    say(
        "healed",
        "(the same socket, its beliefs)",
        "lost is New, missed unknown",
        "lost Cancelled, missed New",
    )
    say("healed", "get_open_orders", "after, missed", "after, missed")


def client_order(client, link_id):
    """The orderId behind an id of ours."""
    [row] = [row for row in client.control.truth()["orders"] if row["orderLinkId"] == link_id]
    return row["orderId"]
