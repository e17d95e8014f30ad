"""paper: a Bybit v5 for linear USDT perpetuals on loopback, http and websocket on one port.

Owns its market, one account and one wallet. Prices run on market time; signatures, rate limits and
the clock of `/v5/market/time` on the machine's.
"""

import asyncio
import hashlib
import hmac
import logging
import time
from collections import defaultdict, deque
from collections.abc import Callable
from decimal import Decimal
from typing import Any, NamedTuple

import orjson
from aiohttp import WSMsgType, web

from services.paper.clock import Clock
from services.paper.journal import Journal
from services.paper.matching import OPEN, Matching, Params, Refused, Row
from services.paper.ticker import Point, Ticker
from shared.settings import Settings

HISTORY = 400  # minutes of klines before the start
BATCH_SECONDS = 0.005  # how often the market looks at its clock
MARK_NS = 1_000_000_000  # how often the market time is written down
QUEUE_LIMIT = 50_000  # frames a slow client may be behind before it is cut off
MAX_ARGS_CHARS = 21_000
READ_LIMIT = 50  # signed reads a second
ORDER_OPS = {f"order.{verb}": f"/v5/order/{verb}" for verb in ("create", "amend", "cancel")}
PRIVATE_TOPICS = {"order", "execution", "wallet", "position"}
TIME_TEXT = "invalid request, please check your server timestamp or recv_window param."

log = logging.getLogger("paper")


class Route(NamedTuple):
    """One REST endpoint: what answers it, and its path, which is its bucket of requests."""

    answer: Callable[[Params], Row]
    path: str
    signed: bool
    writes: bool


class Client:
    """One websocket: what it hears, and the frames it has not read yet."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.socket = web.WebSocketResponse(heartbeat=None, max_msg_size=2**20)
        self.topics: set[str] = set()
        self.used_ids: set[str] = set()
        self.authenticated = False
        self.queue: asyncio.Queue[bytes] = asyncio.Queue(QUEUE_LIMIT)

    def send(self, frame: bytes) -> None:
        """Queue one frame; a client that is too far behind is cut off."""
        if self.queue.full():
            self.topics.clear()
            if transport := self.socket._req and self.socket._req.transport:
                transport.abort()
            return
        self.queue.put_nowait(frame)

    async def write(self) -> None:
        """Frames to the socket, until it closes."""
        while True:
            frame = await self.queue.get()
            try:
                await self.socket.send_str(frame.decode())
            except ConnectionError:
                return


class Paper:
    """The server: routes, sockets, and the market's loop."""

    def __init__(
        self, settings: Settings, ticker: Ticker, clock: Clock, journal: Journal, origin_ms: int
    ) -> None:
        self._settings, self._ticker, self._clock = settings, ticker, clock
        self._key, self._secret = settings.api_key, settings.api_secret.encode()
        listings = ticker.listings
        self._index = {listing.symbol: i for i, listing in enumerate(listings)}
        self._matching = Matching(listings, settings.PAPER_BALANCE_USDT, settings.PAPER_SEED)
        for index, listing in enumerate(listings):
            _, ohlc, _ = ticker.closed[-1]
            self._matching.last[listing.symbol] = int(ohlc[3, index]) * listing.tick_size
        self._journal = journal
        journal.restore(self._matching)
        journal.open(self._matching, origin_ms, self._market_ms())
        self._marked_ns = 0
        self._clients: set[Client] = set()
        self._subscribers: defaultdict[str, set[Client]] = defaultdict(set)
        self._calls: defaultdict[str, deque[float]] = defaultdict(deque)
        self._routes = self._table()

    def application(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(client_max_size=2**20)
        app.router.add_get("/v5/public/linear", self._socket)
        app.router.add_get("/v5/private", self._socket)
        app.router.add_get("/v5/trade", self._socket)
        app.router.add_route("*", "/{path:.*}", self._http)
        return app

    async def run_market(self) -> None:
        """Trades and klines as their market time comes."""
        while not self._ticker.ended:
            for point in self._ticker.run(self._clock.now_ms(time.monotonic_ns())):
                if point is None:
                    self._say_closed()
                else:
                    self._trade(point)
            self._flush()
            if time.monotonic_ns() - self._marked_ns > MARK_NS:
                self._marked_ns = time.monotonic_ns()
                self._journal.mark(self._market_ms())
            await asyncio.sleep(BATCH_SECONDS)
        log.info("the recorded market is at its end: no more prices")

    # Market data.

    def _trade(self, point: Point) -> None:
        index, ticks, volume, ts_ms = point
        listing = self._ticker.listings[index]
        qty = listing.qty_step * int(volume / float(listing.qty_step))
        self._matching.trade(listing.symbol, ticks * listing.tick_size, qty, ts_ms)
        self._say_kline(index)

    def _say_closed(self) -> None:
        for index in range(len(self._ticker.listings)):
            self._say_kline(index)

    def _say_kline(self, index: int) -> None:
        topic = f"kline.1.{self._ticker.listings[index].symbol}"
        clients, forming = self._subscribers.get(topic), self._ticker.forming[index]
        if not clients or forming is None:
            return
        data = [self._ticker.kline(index, forming)]
        message = {"topic": topic, "data": data, "ts": forming.ts_ms, "type": "snapshot"}
        frame = orjson.dumps(message)
        for client in clients:
            client.send(frame)

    def _flush(self) -> None:
        """The account's news: to the disk, then to the private stream."""
        pushes = self._matching.take_pushes()
        self._journal.write(pushes, self._matching, self._market_ms())
        for topic, row in pushes:
            clients = self._subscribers.get(topic)
            if not clients:
                continue
            now_ms = self._market_ms()
            message = {"id": f"{now_ms}", "topic": topic, "creationTime": now_ms, "data": [row]}
            frame = orjson.dumps(message)
            for client in clients:
                client.send(frame)

    # Websockets.

    async def _socket(self, request: web.Request) -> web.WebSocketResponse:
        client = Client(request.path.rsplit("/", 1)[1])
        await client.socket.prepare(request)
        self._clients.add(client)
        writer = asyncio.create_task(client.write())
        try:
            async for message in client.socket:
                if message.type == WSMsgType.TEXT:
                    await self._said(client, message.data)
        finally:
            writer.cancel()
            self._clients.discard(client)
            for topic in client.topics:
                self._subscribers[topic].discard(client)
        return client.socket

    async def _said(self, client: Client, text: str) -> None:
        try:
            message = orjson.loads(text)
            op = message["op"]
        except (orjson.JSONDecodeError, TypeError, KeyError):
            client.send(_reply({}, False, "error:invalid op"))
            return
        if not isinstance(message.get("args", []), list):
            client.send(_reply(message, False, "error:invalid args"))
        elif op == "ping":
            client.send(self._pong(client, message))
        elif op == "auth":
            client.send(self._auth(client, message))
        elif op == "subscribe":
            self._later(client, self._subscribe(client, message))
        elif op == "unsubscribe":
            for topic in (t for t in message.get("args", ()) if isinstance(t, str)):
                client.topics.discard(topic)
                self._subscribers[topic].discard(client)
            client.send(_reply(message, True, ""))
        elif client.kind == "trade":
            self._later(client, self._order_op(client, message))
        else:
            client.send(_reply(message, False, "error:invalid op"))

    def _later(self, client: Client, frame: bytes) -> None:
        """An acknowledgement, held back as long as the exchange would."""
        delay = self._settings.PAPER_ACK_MS / 1000
        asyncio.get_running_loop().call_later(delay, client.send, frame)

    def _pong(self, client: Client, message: Row) -> bytes:
        stamp = [str(_wall_ms())]
        if client.kind == "trade":
            row = {"retCode": 0, "retMsg": "OK", "op": "pong", "data": stamp, "connId": "paper"}
            return orjson.dumps(row)
        if client.kind == "private":
            return orjson.dumps({**_echo(message), "op": "pong", "args": stamp, "conn_id": "paper"})
        return _reply(message, True, "pong")

    def _auth(self, client: Client, message: Row) -> bytes:
        """`args`: key, expiry in ms (number or string), signature of "GET/realtime" + expiry."""
        key, expires, sign = [*message.get("args", ()), "", "", ""][:3]
        signed = self._sign(f"GET/realtime{expires}".encode())
        known = key == self._key and hmac.compare_digest(signed.encode(), str(sign).encode())
        client.authenticated = known and str(expires).isdigit() and int(expires) > _wall_ms()
        if client.kind == "trade":
            code, text = (0, "OK") if client.authenticated else (10004, "error sign!")
            row = {"retCode": code, "retMsg": text, "op": "auth", "connId": "paper"}
            return orjson.dumps(row)
        return _reply(message, client.authenticated, "" if client.authenticated else "Params Error")

    def _subscribe(self, client: Client, message: Row) -> bytes:
        args = message.get("args")
        if not isinstance(args, list) or not all(isinstance(topic, str) for topic in args):
            return _reply(message, False, "error:invalid args")
        if sum(len(topic) + 3 for topic in (*client.topics, *args)) > MAX_ARGS_CHARS:
            return _reply(message, False, "error:args length over 21000")
        for topic in args:
            if topic in client.topics:
                return _reply(message, False, f"error:already subscribed,topic:{topic}")
            if not self._serves(client, topic):
                return _reply(message, False, f"error:handler not found,topic:{topic}")
        for topic in args:
            client.topics.add(topic)
            self._subscribers[topic].add(client)
        return _reply(message, True, "")

    def _serves(self, client: Client, topic: str) -> bool:
        if client.kind == "private":
            return client.authenticated and topic in PRIVATE_TOPICS
        family, _, symbol = topic.rpartition(".")
        return client.kind == "linear" and family == "kline.1" and symbol in self._index

    def _order_op(self, client: Client, message: Row) -> bytes:
        """`order.create`, `order.amend`, `order.cancel`; one order in `args`."""
        op, header, req_id = message["op"], message.get("header"), str(message.get("reqId", ""))
        route = self._routes.get(("POST", ORDER_OPS.get(str(op), "")))
        header = header if isinstance(header, dict) else {}
        args = message.get("args") or [None]
        headers: Row = {}
        if not client.authenticated:
            result: Row = {"retCode": 10005, "retMsg": "Permission denied", "result": {}}
        elif req_id in client.used_ids:
            result = {"retCode": 20006, "retMsg": "Duplicate reqId", "result": {}}
        elif route is None or not isinstance(args[0], dict):
            result = {"retCode": 10404, "retMsg": "op type is not found", "result": {}}
        elif not self._in_window(header.get("X-BAPI-TIMESTAMP"), header.get("X-BAPI-RECV-WINDOW")):
            result = {"retCode": 10002, "retMsg": TIME_TEXT, "result": {}}
        else:
            client.used_ids |= {req_id} - {""}
            result, headers = self._call(route, args[0])
            self._flush()
        reply = {
            **({"reqId": message["reqId"]} if "reqId" in message else {}),
            "retCode": result["retCode"],
            "retMsg": result["retMsg"],
            "op": op,
            "data": result["result"],
            "retExtInfo": {},
            "connId": "paper",
            "header": {**headers, "Timenow": str(_wall_ms())},
        }
        return orjson.dumps(reply)

    # REST.

    async def _http(self, request: web.Request) -> web.Response:
        route = self._routes.get((request.method, request.path))
        if route is None:
            return web.Response(status=404, text="404 page not found")
        body = await request.text()
        headers: Row = {}
        if route.signed and "X-BAPI-API-KEY" not in request.headers:
            return web.Response(status=401)
        try:
            if route.signed:
                self._verify(request, body)
            params = dict(request.query) if request.method == "GET" else orjson.loads(body or "{}")
            if not isinstance(params, dict):
                raise Refused(10001, "params error: not an object")
        except Refused as refused:
            result = _envelope({}, refused.code, refused.text)
        except orjson.JSONDecodeError:
            result = _envelope({}, 10001, "params error: invalid JSON")
        else:
            result, headers = self._call(route, params)
            self._flush()
        if route.writes:
            await asyncio.sleep(self._settings.PAPER_ACK_MS / 1000)
        return web.Response(
            body=orjson.dumps(result), content_type="application/json", headers=headers
        )

    def _call(self, route: Route, params: Params) -> tuple[Row, Row]:
        """The envelope of one call and its rate limit headers."""
        headers = self._count(route) if route.signed else {}
        if headers.get("X-Bapi-Limit-Status") == "-1":
            headers["X-Bapi-Limit-Status"] = "0"
            return _envelope({}, 10006, "Too many visits!"), headers
        try:
            return _envelope(route.answer(params)), headers
        except Refused as refused:
            return _envelope({}, refused.code, refused.text), headers

    def _count(self, route: Route) -> Row:
        calls, now = self._calls[route.path], time.monotonic()
        limit = self._settings.PAPER_RATE_LIMIT if route.writes else READ_LIMIT
        while calls and now - calls[0] >= 1:
            calls.popleft()
        left = limit - len(calls) - 1
        reset_ms = _wall_ms() + (int((calls[0] + 1 - now) * 1000) + 1 if left < 0 else 0)
        if left >= 0:
            calls.append(now)
        return {
            "X-Bapi-Limit": str(limit),
            "X-Bapi-Limit-Status": str(left),
            "X-Bapi-Limit-Reset-Timestamp": str(reset_ms),
        }

    def _verify(self, request: web.Request, body: str) -> None:
        """Signature over timestamp + key + recv_window + raw query or raw body. Raises Refused."""
        names = ("X-BAPI-API-KEY", "X-BAPI-TIMESTAMP", "X-BAPI-RECV-WINDOW", "X-BAPI-SIGN")
        key, stamp, window, sign = (request.headers.get(name, "") for name in names)
        window = window or "5000"
        if key != self._key:
            raise Refused(10003, "API key is invalid.")
        payload = request.rel_url.raw_query_string if request.method == "GET" else body
        origin = f"{stamp}{key}{window}{payload}"
        if not hmac.compare_digest(self._sign(_bytes(origin)).encode(), _bytes(sign)):
            raise Refused(10004, f"error sign! origin_string[{origin}]")
        if not self._in_window(stamp, window):
            raise Refused(10002, TIME_TEXT)

    def _in_window(self, stamp: Any, window: Any) -> bool:
        try:
            behind_ms = _wall_ms() - int(stamp)
            return -1000 < behind_ms <= int(window or 5000)
        except (TypeError, ValueError):
            return False

    def _sign(self, text: bytes) -> str:
        return hmac.new(self._secret, text, hashlib.sha256).hexdigest()

    def _market_ms(self) -> int:
        return self._clock.now_ms(time.monotonic_ns())

    def _table(self) -> dict[tuple[str, str], Route]:
        m = self._matching
        reads: dict[str, Callable[[Params], Row]] = {
            "/v5/market/time": self._time,
            "/v5/market/instruments-info": self._instruments,
            "/v5/market/kline": self._klines,
            "/v5/market/tickers": self._tickers,
            "/v5/order/realtime": self._open_orders,
            "/v5/order/history": self._order_history,
            "/v5/execution/list": self._executions,
            "/v5/position/list": self._positions,
            "/v5/account/wallet-balance": self._wallet,
        }
        writes: dict[str, Callable[[Params], Row]] = {
            "/v5/order/create": self._ordering(m.create),
            "/v5/order/amend": self._ordering(m.amend),
            "/v5/order/cancel": self._ordering(m.cancel),
            "/v5/order/cancel-all": self._ordering(m.cancel_all),
            "/v5/position/set-leverage": self._set_leverage,
            "/v5/position/switch-mode": self._switch_mode,
        }
        public = "/v5/market/"
        table = {("GET", p): Route(f, p, not p.startswith(public), False) for p, f in reads.items()}
        return table | {("POST", p): Route(f, p, True, True) for p, f in writes.items()}

    def _ordering(self, verb: Callable[[Params, int], Row]) -> Callable[[Params], Row]:
        return lambda params: verb(params, self._market_ms())

    def _time(self, _: Params) -> Row:
        now_ns = time.time_ns()
        return {"timeSecond": str(now_ns // 10**9), "timeNano": str(now_ns)}

    def _instruments(self, params: Params) -> Row:
        if params.get("category") != "linear" or params.get("status", "Trading") != "Trading":
            return {"category": params.get("category", ""), "list": [], "nextPageCursor": ""}
        wanted = params.get("symbol")
        found = [
            row
            for listing in self._ticker.listings
            if (row := _instrument(listing)) and wanted in (None, listing.symbol)
        ]
        return _page(found, params, 500, 1000)

    def _klines(self, params: Params) -> Row:
        index = self._known(params)
        if params.get("interval") != "1":
            raise Refused(10001, "params error: interval invalid")
        start_ms, end_ms = _whole(params, "start", 0), _whole(params, "end", 2**62)
        limit = min(max(_whole(params, "limit", 200), 1), 1000)
        rows = self._ticker.bars(index, start_ms, end_ms, limit)
        return {"symbol": params["symbol"], "category": "linear", "list": rows}

    def _tickers(self, params: Params) -> Row:
        indexes = [self._known(params)] if params.get("symbol") else self._index.values()
        rows = []
        for index in indexes:
            symbol = self._ticker.listings[index].symbol
            last = f"{self._matching.last[symbol]:f}"
            prices = dict.fromkeys(
                ("lastPrice", "indexPrice", "markPrice", "bid1Price", "ask1Price"), last
            )
            rows.append({"symbol": symbol, **prices})
        return {"category": "linear", "list": rows}

    def _open_orders(self, params: Params) -> Row:
        if order := self._matching.find(params):
            return _page([order.row()], params, 20, 50)
        if params.get("orderId") or params.get("orderLinkId"):
            return _page([], params, 20, 50)
        symbol = params.get("symbol")
        orders = self._matching.open_orders()
        return _page([o.row() for o in orders if symbol in (None, o.symbol)], params, 20, 50)

    def _order_history(self, params: Params) -> Row:
        if order := self._matching.find(params):
            return _page([order.row()] if order.status not in OPEN else [], params, 20, 50)
        if params.get("orderId") or params.get("orderLinkId"):
            return _page([], params, 20, 50)
        symbol = params.get("symbol")
        orders = self._matching.closed_orders()
        return _page([o.row() for o in orders if symbol in (None, o.symbol)], params, 20, 50)

    def _executions(self, params: Params) -> Row:
        symbol, link = params.get("symbol"), params.get("orderLinkId")
        since = _whole(params, "startTime", 0)
        rows = []
        for row in reversed(self._matching.executions):
            if int(row["execTime"]) < since:
                break
            if symbol in (None, row["symbol"]) and link in (None, row["orderLinkId"]):
                rows.append(row)
        return _page(rows, params, 50, 100)

    def _positions(self, params: Params) -> Row:
        if params.get("symbol"):
            self._known(params)
            return _page([self._matching.position_row(params["symbol"])], params, 20, 200)
        held = [symbol for symbol, p in self._matching.wallet.positions.items() if p.size]
        return _page([self._matching.position_row(symbol) for symbol in held], params, 20, 200)

    def _set_leverage(self, params: Params) -> Row:
        self._known(params)
        wallet, symbol = self._matching.wallet, params["symbol"]
        buy, sell = str(params.get("buyLeverage")), str(params.get("sellLeverage"))
        if buy != sell or not buy.isdigit() or not 1 <= int(buy) <= 100:
            raise Refused(10001, "params error: leverage invalid")
        if wallet.margin_leverage(symbol) == int(buy):
            raise Refused(110043, "leverage not modified")
        wallet.leverage[symbol] = Decimal(buy)
        self._journal.leverage(symbol, buy)
        return {}

    def _switch_mode(self, params: Params) -> Row:
        if str(params.get("mode")) == "0":
            raise Refused(110025, "Position mode is not modified")
        raise Refused(10001, "params error: the paper exchange is one-way")

    def _wallet(self, _: Params) -> Row:
        return {"list": [self._matching.wallet_row()]}

    def _known(self, params: Params) -> int:
        if params.get("symbol") not in self._index:
            raise Refused(10001, "params error: symbol invalid")
        return self._index[params["symbol"]]


def _instrument(listing: Any) -> Row:
    symbol = listing.symbol
    return {
        "symbol": symbol,
        "contractType": "LinearPerpetual",
        "status": "Trading",
        "baseCoin": symbol.removesuffix("USDT"),
        "quoteCoin": "USDT",
        "settleCoin": "USDT",
        "launchTime": "1609459200000",
        "deliveryTime": "0",
        "deliveryFeeRate": "",
        "priceScale": str(max(0, -int(listing.tick_size.as_tuple().exponent))),
        "leverageFilter": {"minLeverage": "1", "maxLeverage": "100.00", "leverageStep": "0.01"},
        "priceFilter": {
            "minPrice": f"{listing.tick_size:f}",
            "maxPrice": "1999999.98",
            "tickSize": f"{listing.tick_size:f}",
        },
        "lotSizeFilter": {
            "maxOrderQty": f"{listing.max_order_qty:f}",
            "minOrderQty": f"{listing.min_order_qty:f}",
            "qtyStep": f"{listing.qty_step:f}",
            "maxMktOrderQty": f"{listing.max_order_qty:f}",
            "postOnlyMaxOrderQty": f"{listing.max_order_qty:f}",
            "minNotionalValue": "5",
        },
        "unifiedMarginTrade": True,
        "fundingInterval": listing.funding_interval_min,
        "copyTrading": "none",
        "upperFundingRate": "0.03",
        "lowerFundingRate": "-0.03",
        "isPreListing": False,
        "preListingInfo": None,
        "symbolType": "",
        "riskParameters": {"priceLimitRatioX": "0.05", "priceLimitRatioY": "0.3"},
    }


def _page(rows: list[Any], params: Params, default: int, most: int) -> Row:
    """One page of a list and the cursor of the next, which is where it starts."""
    limit = min(max(_whole(params, "limit", default), 1), most)
    at = _whole(params, "cursor", 0)
    cursor = str(at + limit) if at + limit < len(rows) else ""
    return {"category": "linear", "list": rows[at : at + limit], "nextPageCursor": cursor}


def _whole(params: Params, name: str, default: int) -> int:
    text = params.get(name)
    if text in (None, ""):
        return default
    try:
        return int(str(text))
    except ValueError:
        raise Refused(10001, f"params error: {name} invalid") from None


def _envelope(result: Row, code: int = 0, text: str = "OK") -> Row:
    times = {"retExtInfo": {}, "time": _wall_ms()}
    return {"retCode": code, "retMsg": text, "result": result, **times}


def _echo(message: Row) -> Row:
    return {"req_id": message["req_id"]} if "req_id" in message else {}


def _reply(message: Row, success: bool, text: str) -> bytes:
    row = {"success": success, "ret_msg": text, "conn_id": "paper", **_echo(message)}
    return orjson.dumps({**row, "op": message.get("op", "")})


def _bytes(header: str) -> bytes:
    """What a client sent in a header, whatever it was."""
    return header.encode(errors="surrogateescape")


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000
