"""bybit: the only door to pybit. Bybit's words come in, our messages go on; and the way back.

One pybit object is one connection: left to itself it would give up for good after 26 ms, and tell
nobody. A thread per link watches it, rebuilds it with back-off and posts Link up or down.
Whatever a frame holds, it cannot end a socket: what cannot be read is counted and dropped.
"""

import json
import logging
import random
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import orjson
import requests
import websocket
from pybit.exceptions import FailedRequestError, InvalidRequestError
from pybit.unified_trading import HTTP, WebSocket, WebSocketTrading

from shared.messages import (
    Execution,
    Fetch,
    Fetched,
    Holding,
    Instrument,
    Kline,
    Link,
    OrderRequest,
    OrderUpdate,
    Subscribe,
    Wallet,
)
from shared.settings import Settings

CATEGORY = "linear"
PRIVATE_TOPICS = ("order", "execution", "wallet")
MAX_ARGS_CHARS = 20_000  # Bybit cuts a connection off at 21,000 characters of args
PING_SECONDS, PONG_SECONDS = 5, 3  # a half-open connection is found within 8 s
SILENT_SECONDS = 3.0  # 500 symbols are never silent this long
PUSH_SECONDS = 75.0  # one symbol may be: a kline is pushed every 1 to 60 s
CONFIRM_SECONDS = 5.0  # for the answers to auth and subscribe
BACKOFF_SECONDS = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0)  # 30 a minute at most; Bybit bans at 100
REST_THREADS = 4
REST_INTERVAL_SECONDS = 0.01  # 100 requests a second; Bybit bans an IP at 120
REST_TIMEOUT_SECONDS = 5
PAGES = 100  # no list we read is longer
BAD_FRAME = (ValueError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError)
NET_ERRORS = (FailedRequestError, requests.RequestException)

# What the exchange answered, by retCode. Not listed is unknown, and the keeper finds out.
DONE = {0, 110025, 110043, 110072}  # 110025, 110043 not modified; 110072 an order has this id
REFUSED = {
    *(10001, 10002, 10003, 10004, 10005, 10006, 10403, 10429, 20003, 20006),
    *(110001, 110003, 110004, 110007, 110008, 110009, 110010, 110012, 110013, 110017, 110020),
    *(110021, 110023, 110044, 110045, 110061, 110066, 110074, 110079, 110090, 110092, 110093),
    *(110094, 30228),
}

Post = Callable[[Any], None]
log = logging.getLogger("dm")
logging.getLogger("pybit").setLevel(logging.ERROR)
logging.getLogger("websocket").disabled = True  # its errors come back as Link


class Addresses(NamedTuple):
    """Base addresses, without a path; an empty `trade` means orders go by REST."""

    rest: str
    public: str
    private: str
    trade: str


BYBIT = {
    "mainnet": Addresses("https://api.bybit.com", *["wss://stream.bybit.com"] * 3),
    "testnet": Addresses("https://api-testnet.bybit.com", *["wss://stream-testnet.bybit.com"] * 3),
    "demo": Addresses(
        "https://api-demo.bybit.com", "wss://stream.bybit.com", "wss://stream-demo.bybit.com", ""
    ),
}


def addresses(settings: Settings) -> Addresses:
    """Where this configuration's exchange is; any of it can be overridden by a base address."""
    port = settings.PAPER_PORT
    paper = Addresses(f"http://127.0.0.1:{port}", *[f"ws://127.0.0.1:{port}"] * 3)
    rest, public, private, trade = BYBIT.get(settings.BYBIT_ENV, paper)
    stream = settings.BYBIT_STREAM_URL
    return Addresses(
        settings.BYBIT_REST_URL or rest,
        stream or public,
        stream or private,
        trade and (stream or trade),
    )


# Translation. Each raises one of BAD_FRAME on what it cannot read.


def number(text: Any) -> Decimal:
    """A number of Bybit's, who writes unset ones as an empty string."""
    return Decimal(text) if text else Decimal(0)


def klines_of(frame: Any) -> list[Kline]:
    """`kline.<interval>.<symbol>` push."""
    recv_ns, symbol = time.monotonic_ns(), frame["topic"].rpartition(".")[2]
    return [
        Kline(
            *(symbol, row["start"], float(row["open"]), float(row["high"]), float(row["low"])),
            *(float(row["close"]), float(row["volume"]), float(row["turnover"])),
            *(row["confirm"], row["timestamp"], recv_ns),
        )
        for row in frame["data"]
    ]


def bar_of(symbol: str, interval_ms: int, row: list[str]) -> Kline:
    """One row of GET `/v5/market/kline`, taken as closed."""
    start_ms, values = int(row[0]), [float(value) for value in row[1:7]]
    return Kline(symbol, start_ms, *values, True, start_ms + interval_ms, 0)


def instrument_of(row: Any) -> Instrument:
    """One row of `instruments-info`."""
    lot, price = row["lotSizeFilter"], row["priceFilter"]
    return Instrument(
        *(row["symbol"], Decimal(price["tickSize"]), Decimal(lot["qtyStep"])),
        *(Decimal(lot["minOrderQty"]), Decimal(lot["maxOrderQty"])),
        *(number(lot.get("minNotionalValue")), row["status"], int(row["fundingInterval"])),
        row.get("symbolType", ""),
    )


def tradeable(row: Any) -> bool:
    """A live USDT perpetual that is not being delisted (a delisted one has a deliveryTime)."""
    kind = (row["contractType"], row["status"], row["quoteCoin"])
    return kind == ("LinearPerpetual", "Trading", "USDT") and row.get("deliveryTime", "0") in (
        "0",
        "",
    )


def order_of(row: Any) -> OrderUpdate:
    """One row of the `order` topic, `order/realtime` or `order/history`."""
    return OrderUpdate(
        *(row["orderLinkId"], row["orderId"], row["symbol"], row["side"], number(row["price"])),
        *(number(row["qty"]), row["orderStatus"], number(row["cumExecQty"])),
        *(number(row["avgPrice"]), bool(row["reduceOnly"]), row["rejectReason"]),
        *(int(row["createdTime"]), int(row["updatedTime"])),
    )


def execution_of(row: Any) -> Execution:
    """One row of the `execution` topic or `execution/list`."""
    return Execution(
        *(row["execId"], row["orderLinkId"], row["orderId"], row["symbol"], row["side"]),
        *(row["execType"], number(row["execPrice"]), number(row["execQty"])),
        *(number(row["execFee"]), bool(row["isMaker"]), int(row["execTime"])),
    )


def wallet_of(row: Any) -> Wallet:
    """One row of the `wallet` topic or `wallet-balance`."""
    names = ("totalEquity", "totalWalletBalance", "totalAvailableBalance", "totalPerpUPL")
    return Wallet(*(number(row[name]) for name in names))


def holding_of(row: Any) -> Holding:
    """One row of `position/list`, with a sign."""
    return Holding(row["symbol"], number(row["size"]) * (-1 if row["side"] == "Sell" else 1))


PRIVATE = {"order": order_of, "execution": execution_of, "wallet": wallet_of}


def params_of(request: OrderRequest) -> dict[str, Any]:
    """The body of create, amend or cancel: every number a string, every order with our id."""
    body: dict[str, Any] = {"category": CATEGORY, "symbol": request.symbol}
    body["orderLinkId"] = request.order_link_id
    if request.action != "cancel":
        body |= {"qty": f"{request.qty:f}", "price": f"{request.price:f}"}
    if request.action == "create":
        body |= {"side": request.side, "orderType": "Limit", "timeInForce": request.time_in_force}
        body |= {"positionIdx": 0, "reduceOnly": request.reduce_only}
    return body


def answered(request: OrderRequest, code: int, reason: str, headers: Any) -> OrderRequest:
    """The request with what came of it."""
    outcome = "accepted" if code in DONE else "refused" if code in REFUSED else "unknown"
    return request._replace(
        outcome=outcome,
        ret_code=code,
        reason="" if code == 0 else reason,
        answered_ns=time.monotonic_ns(),
        rate_limit=int((headers or {}).get("X-Bapi-Limit") or 0),
    )


class _Socket:
    """What our two socket classes add to pybit's: a base address, one life, and hard ears."""

    def __init__(self, base: str, heard: Post, **pybit: Any) -> None:
        self._base, self._heard = base, heard
        self.heard_at = time.monotonic()
        self.confirmed = 0  # answers to auth and subscribe
        self.lost = ""
        super().__init__(
            testnet=False,
            ping_interval=PING_SECONDS,
            ping_timeout=PONG_SECONDS,
            retries=2,  # with 1, pybit raises although it is connected
            **pybit,
        )

    def send(self, message: dict[str, Any]) -> None:
        """Raises websocket.WebSocketException or OSError where the connection is gone."""
        self.ws.send(json.dumps(message))  # type: ignore[attr-defined]

    def _connect(self, url: str) -> None:
        super()._connect(self._base + urlsplit(url).path)  # type: ignore[misc]

    def _on_error(self, error: Exception) -> None:
        self.lost = self.lost or f"{type(error).__name__}: {error}"

    def _on_close(self) -> None:
        self.lost = self.lost or "closed"

    def _on_message(self, text: str) -> None:
        try:
            message = orjson.loads(text)
            if "topic" in message or message.get("op", "").startswith("order."):
                self.heard_at = time.monotonic()
                self._heard(message)
            elif message.get("op") in ("auth", "subscribe"):
                if message.get("success", message.get("retCode") == 0):
                    self.confirmed += 1
                else:
                    self.lost = f"{message['op']} refused: {message.get('ret_msg', message)}"
        except BAD_FRAME as error:
            log.warning("bad_frame error=%r frame=%.200s", error, text)


class StreamSocket(_Socket, WebSocket):  # type: ignore[misc]
    """Public or private stream."""


class TradeSocket(_Socket, WebSocketTrading):  # type: ignore[misc]
    """Order entry."""


class _Supervisor:
    """A thread that keeps one connection alive, for ever."""

    def __init__(
        self,
        name: str,
        build: Callable[[], Any],
        post: Post,
        topics: tuple[str, ...] = (),
        silent_seconds: float = float("inf"),
        answers: int = 0,
    ) -> None:
        self._name, self._build, self._post = name, build, post
        self._topics, self._silent, self._answers = topics, silent_seconds, answers
        self._closed = threading.Event()
        self.socket: Any = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the connection and the thread."""
        self._closed.set()
        self._thread.join(timeout=2)

    def _run(self) -> None:
        failures = 0
        while not self._closed.is_set():
            reason, lived = self._live()
            failures = 0 if lived else min(failures + 1, len(BACKOFF_SECONDS) - 1)
            if not self._closed.is_set():
                self._post(Link(self._name, False, reason))
            self._closed.wait(BACKOFF_SECONDS[failures] * random.uniform(0.8, 1.2))

    def _live(self) -> tuple[str, bool]:
        """One connection from its opening to its end: why it ended, and whether it ever worked."""
        try:
            socket = self._build()
        except (websocket.WebSocketException, OSError) as error:
            return f"{type(error).__name__}: {error}", False
        try:
            if self._topics:
                socket.send({"op": "subscribe", "req_id": self._name, "args": list(self._topics)})
            deadline = time.monotonic() + CONFIRM_SECONDS
            while socket.confirmed < self._answers and not socket.lost:
                if time.monotonic() > deadline:
                    return "no answer to auth or subscribe", False
                self._closed.wait(0.005)
            if socket.lost:
                return socket.lost, False
            self.socket = socket
            self._post(Link(self._name, True))
            while not (socket.lost or self._closed.is_set()):
                if time.monotonic() - socket.heard_at > self._silent:
                    return f"silent for {self._silent:.0f} s", True
                self._closed.wait(0.1)
            return socket.lost, True
        except (websocket.WebSocketException, OSError) as error:
            return f"{type(error).__name__}: {error}", False
        finally:
            self.socket = None
            socket.exit()


class _Pace:
    """At most one REST call each REST_INTERVAL_SECONDS, over all threads."""

    def __init__(self) -> None:
        self._lock, self._next = threading.Lock(), 0.0

    def wait(self) -> None:
        with self._lock:
            now = time.monotonic()
            self._next = max(self._next, now) + REST_INTERVAL_SECONDS
            pause = self._next - REST_INTERVAL_SECONDS - now
        time.sleep(pause)


class Exchange:
    """The door of one process: takes Subscribe, Fetch, OrderRequest, posts all that comes back."""

    takes = (Subscribe, Fetch, OrderRequest)

    def __init__(self, settings: Settings, post: Post, links: Iterable[str]) -> None:
        self._settings, self._post = settings, post
        self._at = addresses(settings)
        self._pool = ThreadPoolExecutor(REST_THREADS, thread_name_prefix="rest")
        self._local, self._pace = threading.local(), _Pace()
        self._keys = {"api_key": settings.api_key, "api_secret": settings.api_secret}
        self._public: list[_Supervisor] = []
        self._private = self._trade = None
        self._sent: dict[str, OrderRequest] = {}
        if "private" in links:
            self._private = _Supervisor(
                *("private", self._build_private, post, PRIVATE_TOPICS), answers=2
            )
        if "trade" in links and self._at.trade:
            self._trade = _Supervisor("trade", self._build_trade, post, answers=1)
        elif "trade" in links:
            post(Link("trade", True, "by REST"))

    def send(self, message: Any) -> None:
        """Never blocks, never raises: what comes of it is posted."""
        if isinstance(message, Subscribe):
            self._subscribe(message.topics)
        elif isinstance(message, Fetch):
            self._pool.submit(self._fetch, message)
        elif not message.outcome and not self._send_by_socket(message):
            self._pool.submit(self._send_by_rest, message)

    def close(self) -> None:
        """End every connection and thread."""
        for supervisor in (*self._public, self._private, self._trade):
            if supervisor:
                supervisor.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _subscribe(self, topics: tuple[str, ...]) -> None:
        for supervisor in self._public:
            supervisor.close()
        self._public = [
            _Supervisor(
                *(f"public-{index}", self._build_public, self._post, part),
                silent_seconds=max(SILENT_SECONDS, PUSH_SECONDS / len(part)),
                answers=1,
            )
            for index, part in enumerate(parts(topics))
        ]

    def _build_public(self) -> StreamSocket:
        return StreamSocket(self._at.public, self._heard_public, channel_type=CATEGORY)

    def _build_private(self) -> StreamSocket:
        return StreamSocket(
            *(self._at.private, self._heard_private),
            channel_type="private",
            private_auth_expire=10,
            **self._keys,
        )

    def _build_trade(self) -> TradeSocket:
        self._sent.clear()  # a new connection answers nothing that an old one was asked
        return TradeSocket(
            *(self._at.trade, self._heard_trade),
            recv_window=self._settings.RECV_WINDOW_MS,
            referral_id="",
            private_auth_expire=10,
            **self._keys,
        )

    def _heard_public(self, frame: Any) -> None:
        for kline in klines_of(frame):
            self._post(kline)

    def _heard_private(self, frame: Any) -> None:
        for row in frame["data"]:
            self._post(PRIVATE[frame["topic"]](row))

    def _heard_trade(self, frame: Any) -> None:
        if request := self._sent.pop(frame["reqId"], None):
            self._post(answered(request, frame["retCode"], frame["retMsg"], frame.get("header")))

    def _send_by_socket(self, request: OrderRequest) -> bool:
        """False where there is no socket, and so nothing was sent."""
        socket = self._trade and self._trade.socket
        if not socket:
            return False
        request_id = str(request.command)
        window = str(self._settings.RECV_WINDOW_MS)
        header = {"X-BAPI-TIMESTAMP": str(int(time.time() * 1000)), "X-BAPI-RECV-WINDOW": window}
        body = {"reqId": request_id, "header": header, "op": f"order.{request.action}"}
        self._sent[request_id] = request  # before sending: the answer may be faster than we are
        try:
            socket.send({**body, "args": [params_of(request)]})
        except (websocket.WebSocketException, OSError) as error:
            self._sent.pop(request_id, None)
            self._post(answered(request, -1, f"{type(error).__name__}: {error}", None))
        return True

    def _send_by_rest(self, request: OrderRequest) -> None:
        verb = {"create": "place_order", "amend": "amend_order", "cancel": "cancel_order"}
        try:
            body, _, headers = getattr(self._http, verb[request.action])(**params_of(request))
            self._post(answered(request, body["retCode"], body["retMsg"], headers))
        except InvalidRequestError as error:
            code, headers = error.status_code, error.resp_headers
            self._post(answered(request, code, error.message, headers))
        except (*NET_ERRORS, *BAD_FRAME) as error:
            self._post(answered(request, -1, f"{type(error).__name__}: {error}", None))

    def _fetch(self, ask: Fetch) -> None:
        try:
            self._post(Fetched(ask, tuple(getattr(self, f"_fetch_{ask.what}")(ask))))
        except InvalidRequestError as error:
            if error.status_code in DONE:
                self._post(Fetched(ask, ()))
            else:
                self._post(Fetched(ask, (), error.message, error.status_code))
        except (*NET_ERRORS, *BAD_FRAME) as error:
            self._post(Fetched(ask, (), f"{type(error).__name__}: {error}", -1))

    @property
    def _http(self) -> Any:
        """pybit's HTTP of this thread, which never retries by itself."""
        self._pace.wait()
        if not hasattr(self._local, "http"):
            self._local.http = HTTP(
                **self._keys,
                recv_window=self._settings.RECV_WINDOW_MS,
                timeout=REST_TIMEOUT_SECONDS,
                max_retries=1,
                retry_codes={-1},  # an empty set would bring pybit's own list back
                return_response_headers=True,
            )
            self._local.http.endpoint = self._at.rest
        return self._local.http

    def _pages(self, verb: str, **params: Any) -> Iterable[Any]:
        """Every row of every page of a list."""
        cursor = ""
        for _ in range(PAGES):
            call = getattr(self._http, verb)
            body, _, _ = call(category=CATEGORY, cursor=cursor or None, **params)
            yield from body["result"]["list"]
            cursor = body["result"].get("nextPageCursor", "")
            if not cursor:
                return
        raise ValueError(f"{verb}: more than {PAGES} pages")

    def _fetch_instruments(self, _: Fetch) -> Iterable[Instrument]:
        rows = self._pages("get_instruments_info", limit=1000)
        return [instrument_of(row) for row in rows if tradeable(row)]

    def _fetch_klines(self, ask: Fetch) -> Iterable[Kline]:
        """Closed bars, oldest first; the newest row may be open and is left out."""
        body, _, _ = self._http.get_kline(
            category=CATEGORY,
            symbol=ask.symbol,
            interval=self._settings.INTERVAL,
            start=ask.start_ms or None,
            limit=1000 if ask.start_ms else 301,
        )
        rows = body["result"]["list"][1:]
        return [bar_of(ask.symbol, self._settings.interval_ms, row) for row in reversed(rows)]

    def _fetch_orders(self, _: Fetch) -> Iterable[OrderUpdate]:
        return map(order_of, self._pages("get_open_orders", settleCoin="USDT", limit=50))

    def _fetch_order(self, ask: Fetch) -> Iterable[OrderUpdate]:
        """One order by our id, open or not; nothing if the exchange knows of none."""
        key = {"symbol": ask.symbol, "orderLinkId": ask.order_link_id}
        rows = list(self._pages("get_open_orders", **key))
        return map(order_of, rows or self._pages("get_order_history", **key))

    def _fetch_executions(self, ask: Fetch) -> Iterable[Execution]:
        since = {"startTime": ask.start_ms} if ask.start_ms else {}
        return map(execution_of, self._pages("get_executions", limit=100, **since))

    def _fetch_positions(self, _: Fetch) -> Iterable[Holding]:
        return map(holding_of, self._pages("get_positions", settleCoin="USDT", limit=200))

    def _fetch_wallet(self, _: Fetch) -> Iterable[Wallet]:
        body, _, _ = self._http.get_wallet_balance(accountType="UNIFIED")
        return map(wallet_of, body["result"]["list"])

    def _fetch_account(self, _: Fetch) -> Iterable[None]:
        """One-way mode for every USDT contract; refused where hedge positions or orders are."""
        self._http.switch_position_mode(category=CATEGORY, coin="USDT", mode=0)
        return ()

    def _fetch_leverage(self, ask: Fetch) -> Iterable[None]:
        one = {"buyLeverage": "1", "sellLeverage": "1"}
        self._http.set_leverage(category=CATEGORY, symbol=ask.symbol, **one)
        return ()


def parts(topics: Iterable[str]) -> list[tuple[str, ...]]:
    """Topics in groups that one connection takes (MAX_ARGS_CHARS of JSON array)."""
    groups: list[list[str]] = [[]]
    chars = 0
    for topic in topics:
        if groups[-1] and chars + len(topic) + 3 > MAX_ARGS_CHARS:
            groups.append([])
            chars = 0
        groups[-1].append(topic)
        chars += len(topic) + 3
    return [tuple(group) for group in groups if group]
