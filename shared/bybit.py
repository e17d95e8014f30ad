"""bybit: the only door to pybit. Bybit's words come in, our messages go on; and the way back.

The public market comes by `stream`, all else by pybit. One object of either is one connection: left
to itself, pybit's would give up for good after 26 ms, and tell nobody. A thread per link watches
it, rebuilds it with back-off and posts Link up or down. Whatever a frame holds, it cannot end a
socket: what cannot be read is logged and dropped.
"""

import json
import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from functools import cache
from operator import itemgetter
from typing import Any, NamedTuple, get_type_hints
from urllib.parse import urlsplit

import requests
import websocket
from pybit.exceptions import FailedRequestError, InvalidRequestError
from pybit.unified_trading import HTTP, WebSocket, WebSocketTrading

from shared import messages as msg
from shared.settings import Settings
from shared.stream import Ears, PublicSocket

LINEAR = {"category": "linear"}
PRIVATE_TOPICS = {"order": msg.OrderUpdate, "execution": msg.Execution, "wallet": msg.Wallet}
MAX_ARGS_CHARS = 20_000  # Bybit cuts a connection off at 21,000 characters of args
PING_SECONDS, PONG_SECONDS = 5, 3  # a half-open connection is found within 8 s
SILENT_SECONDS = 2.8  # 500 symbols never are: so silence is found, and mended, within 3 s
PUSH_SECONDS = 75.0  # one symbol may be: a kline is pushed every 1 to 60 s
CONFIRM_SECONDS = 5.0  # for the answers to auth and subscribe
BACKOFF_SECONDS = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0)  # Bybit bans at 100 connections a minute
REST_THREADS = 12  # so that a slow answer does not make a slow backfill
REST_PACE_SECONDS = 0.011  # between two reads, 90 a second; Bybit bans an IP at 120
REST_TIMEOUT_SECONDS = 5
HANDSHAKE_SECONDS = 5.0
WINDOW_MS = 6 * 86_400_000  # one read tells of seven days at most ...
KEPT_MS = 400 * 86_400_000  # ... and who was away for longer has to look himself ...
WEEK_SECONDS = 0.03  # ... fifty a second at most
MAX_PAGES = 100  # no list we read is longer
BANNED, BAN_SECONDS = 403, 600  # too many requests of one address: HTTP status, and how long
BAD_FRAME = msg.NOT_OURS
KLINE_FIELDS = itemgetter(
    *("start", "confirm", "timestamp", "open", "high", "low", "close", "volume", "turnover")
)
NET_ERRORS = (FailedRequestError, requests.RequestException)
LOST = (websocket.WebSocketException, OSError, AttributeError)  # the last: closed while sending

# What the exchange answered, by retCode. What is not listed is unknown, and the keeper finds out.
DONE = {0, 110025, 110043, 110072}  # 110025, 110043: not modified; 110072: an order has this id
REFUSED = {10001, 10002, 10003, 10004, 10005, 10006, 10403, 10429, 20003, 20006, 30228}
REFUSED |= {110001, 110003, 110004, 110007, 110008, 110009, 110010, 110012, 110013, 110017, 110020}
REFUSED |= {110021, 110023, 110044, 110045, 110061, 110066, 110074, 110079, 110090, 110092, 110093}
REFUSED |= {110094}

Post = Callable[[Any], None]
Call = Callable[..., tuple[Any, Any]]
logging.getLogger("pybit").setLevel(logging.CRITICAL)
logging.getLogger("websocket").disabled = True  # its errors come back as Link
websocket.setdefaulttimeout(HANDSHAKE_SECONDS)  # pybit waits for ever for one that never ends


class Addresses(NamedTuple):
    """Base addresses, without a path; an empty `trade` means orders go by REST."""

    rest: str
    public: str
    private: str
    trade: str


MAIN, TEST = "wss://stream.bybit.com", "wss://stream-testnet.bybit.com"
BYBIT = {
    "mainnet": Addresses("https://api.bybit.com", MAIN, MAIN, MAIN),
    "testnet": Addresses("https://api-testnet.bybit.com", TEST, TEST, TEST),
    "demo": Addresses("https://api-demo.bybit.com", MAIN, "wss://stream-demo.bybit.com", ""),
}


def addresses(settings: Settings) -> Addresses:
    """Where this configuration's exchange is: BYBIT_REST_URL and BYBIT_STREAM_URL override."""
    local = f"127.0.0.1:{settings.PAPER_PORT}"
    paper = Addresses(f"http://{local}", *[f"ws://{local}"] * 3)
    at = BYBIT.get(settings.BYBIT_ENV, paper)
    if settings.BYBIT_REST_URL:
        at = at._replace(rest=settings.BYBIT_REST_URL)
    if stream := settings.BYBIT_STREAM_URL:
        at = at._replace(public=stream, private=stream, trade=at.trade and stream)
    return at


# Translation: a message's fields are Bybit's words in snake_case, so one rule reads them all.

READERS: dict[Any, Callable[[Any], Any]] = {
    Decimal: lambda text: Decimal(text or 0),  # unset numbers are empty strings
    **{kind: kind for kind in (int, bool, str, float)},
}


@cache
def _readers(cls: Any) -> list[tuple[str, Callable[[Any], Any]]]:
    """`exec_time_ms: int` is read from `execTime`: camelCase, without our units."""
    found = []
    for name, kind in get_type_hints(cls).items():
        first, *rest = name.removesuffix("_ms").removesuffix("_min").split("_")
        found.append((first + "".join(word.title() for word in rest), READERS[kind]))
    return found


def read(cls: Any, row: Any, recv_ns: int = 0) -> Any:
    """One message from one row of Bybit's. Raises one of BAD_FRAME on what it cannot read."""
    row = {"recvNs": recv_ns, "parentOrderLinkId": "", "markPrice": "", **row}
    return cls(*[reader(row[key]) for key, reader in _readers(cls)])


def pushed(frame: Any, recv_ns: int = 0) -> list[Any]:
    """What a push says: of klines, or of the account as far as it is USDT perpetuals."""
    topic, rows = frame["topic"], frame["data"]
    if not topic.startswith("kline."):
        kind = PRIVATE_TOPICS[topic]
        concerns = has_equity if kind is msg.Wallet else ours
        return [read(kind, row, recv_ns) for row in rows if concerns(row)]
    symbol = topic.rpartition(".")[2]
    return [kline_of(symbol, row, recv_ns) for row in rows]


def kline_of(symbol: str, row: Any, recv_ns: int) -> msg.Kline:
    """One row of a kline push: what `read` would make of it, in half the time."""
    start_ms, confirm, ts_ms, *prices = KLINE_FIELDS(row)
    terms = (symbol, int(start_ms), *map(float, prices), bool(confirm), int(ts_ms), recv_ns)
    return msg.Kline._make(terms)


def bar_of(symbol: str, interval_ms: int, row: list[str]) -> msg.Kline:
    """One row of GET `/v5/market/kline`, taken as closed."""
    start_ms, prices = int(row[0]), [float(value) for value in row[1:7]]
    confirm, ts_ms, recv_ns = True, start_ms + interval_ms, 0
    return msg.Kline._make((symbol, start_ms, *prices, confirm, ts_ms, recv_ns))


def instrument_of(row: Any) -> msg.Instrument:
    """One row of `instruments-info`; `symbolType` came later than the recorded ones."""
    flat = {"symbolType": "", **row, **row["lotSizeFilter"], **row["priceFilter"]}
    instrument: msg.Instrument = read(msg.Instrument, flat)
    return instrument


def ours(row: Any) -> bool:
    """Is this row of a USDT perpetual? The private topics carry every market of the account."""
    return row.get("category", "linear") == "linear" and str(row.get("symbol", "")).endswith("USDT")


def has_equity(row: Any) -> bool:
    """Is this row of the account that trades, and does it tell what it is worth? Other wallets of
    an owner come with empty numbers, which are no loss of everything."""
    unified = row.get("accountType", "UNIFIED") == "UNIFIED"
    return unified and Decimal(row["totalEquity"] or 0) != 0


def tradeable(row: Any) -> bool:
    """A live USDT perpetual that is not being delisted (a delisted one has a deliveryTime)."""
    kind = (row["contractType"], row["status"], row["quoteCoin"])
    stays = row.get("deliveryTime") in ("0", "", None)
    return kind == ("LinearPerpetual", "Trading", "USDT") and stays


def params_of(request: msg.OrderRequest) -> dict[str, Any]:
    """The body of create, amend or cancel: every number a string, every order with our id (a stop
    loss, which the exchange has made, with its own)."""
    name = {"orderId": request.order_id} if request.order_id else {}
    name = name or {"orderLinkId": request.order_link_id}
    body: dict[str, Any] = LINEAR | {"symbol": request.symbol, **name}
    if request.stop_loss and request.action != "cancel":
        body |= {"stopLoss": f"{request.stop_loss:f}", "tpslMode": "Partial"}
        body |= {"slOrderType": "Market", "slTriggerBy": "LastPrice"}
    if request.action != "cancel":
        body |= {"qty": f"{request.qty:f}", "price": f"{request.price:f}"}
    if request.action == "create":
        body |= {"side": request.side, "orderType": "Limit", "timeInForce": request.time_in_force}
        body |= {"positionIdx": 0, "reduceOnly": request.reduce_only}
    return body


def frame_of(request: msg.OrderRequest, window_ms: int, wall_ms: int) -> dict[str, Any]:
    """The request as the trade socket takes it."""
    body, batch = params_of(request), "-batch" * request.batch
    return {
        "reqId": str(request.command),
        "header": {"X-BAPI-TIMESTAMP": str(wall_ms), "X-BAPI-RECV-WINDOW": str(window_ms)},
        "op": f"order.{request.action}{batch}",
        "args": [LINEAR | {"request": [body]} if batch else body],
    }


def answered(
    request: msg.OrderRequest, code: int, text: str, headers: Any, extra: Any, now_ns: int
) -> msg.OrderRequest:
    """The request with what came of it; `extra` is retExtInfo, where a batch says it."""
    if request.batch and code == 0:
        (one,) = extra["list"]
        code, text = one["code"], one["msg"]
    return request._replace(
        outcome="accepted" if code in DONE else "refused" if code in REFUSED else "unknown",
        ret_code=code,
        reason=text if code else "",
        answered_ns=now_ns,
        rate_limit=int((headers or {}).get("X-Bapi-Limit") or 0),
    )


def failure(why: str, status: int = 0, code: int = 0) -> Exception:
    """What a verb raises: on a retCode, else on an HTTP status, else (0) where no answer came."""
    kind, number = (InvalidRequestError, code) if code else (FailedRequestError, status)
    error: Exception = kind("", why, number, "", {})
    return error


class Clock(NamedTuple):
    """Where time comes from: the loop's monotonic clock, and the wall clock that signs."""

    now_ns: Callable[[], int] = time.monotonic_ns
    wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000


def caller(settings: Settings) -> Call:
    """A pybit HTTP of its own, which never retries by itself, as a function of verb and terms."""
    http = HTTP(
        api_key=settings.api_key,
        api_secret=settings.api_secret,
        recv_window=settings.RECV_WINDOW_MS,
        timeout=REST_TIMEOUT_SECONDS,
        max_retries=1,
        retry_codes={-1},  # an empty set would bring pybit's own list back
        return_response_headers=True,
    )
    http.endpoint = addresses(settings).rest

    def call(verb: str, **params: Any) -> tuple[Any, Any]:
        body, _, headers = getattr(http, verb)(**params)
        return body, headers

    return call


class Rest:
    """Reads and orders by REST. `call` is a pybit verb: its parameters to (body, headers).

    Nothing raises: an error is part of the answer. Once the exchange bans the address, nothing is
    asked for BAN_SECONDS.
    """

    def __init__(self, settings: Settings, call: Call, clock: Clock) -> None:
        self._settings, self._call, self._clock = settings, call, clock
        self._banned_until_ns = 0
        self._caught_up = False  # with the executions of before this life

    def fetch(self, ask: msg.Fetch) -> msg.Fetched:
        """All pages of one read."""
        rows, code, error = self.tried(lambda: tuple(getattr(self, f"_{ask.what}")(ask)))
        return msg.Fetched(ask, rows or (), "" if code in DONE else error, code)

    def order(self, request: msg.OrderRequest) -> msg.OrderRequest:
        """One order; what waited too long, an entry above all, is not sent."""
        opens = request.action == "create" and not request.reduce_only
        most_ns = msg.SEND_NS if opens else msg.ANSWER_NS
        if self._clock.now_ns() - request.decided_ns > most_ns:
            return request._replace(outcome="refused", reason="waited too long: not sent")
        if self._banned:
            return request._replace(outcome="refused", reason="address banned: not sent")
        body, now_ns = params_of(request), self._clock.now_ns
        verb = f"{request.action.replace('create', 'place')}{'_batch' * request.batch}_order"
        params = LINEAR | {"request": [body]} if request.batch else body

        def act() -> msg.OrderRequest:
            said, headers = self._call(verb, **params)
            return answered(request, 0, "", headers, said.get("retExtInfo"), now_ns())

        answer, code, error = self.tried(act)
        if code == BANNED:
            return request._replace(outcome="refused", reason="address banned: not taken")
        return answer or answered(request, code, error, None, {}, now_ns())

    @property
    def _banned(self) -> bool:
        return self._clock.now_ns() < self._banned_until_ns

    def tried(self, act: Callable[[], Any]) -> tuple[Any, int, str]:
        """What came of it, retCode and error; (None, -1, why) where nobody knows."""
        if self._banned:
            return None, -1, "address banned: not asked"
        try:
            return act(), 0, ""
        except InvalidRequestError as refusal:
            return None, refusal.status_code, refusal.message
        except (*NET_ERRORS, *BAD_FRAME) as failure:
            banned = getattr(failure, "status_code", 0) == BANNED
            if banned:
                self._banned_until_ns = self._clock.now_ns() + BAN_SECONDS * 1_000_000_000
            return None, BANNED if banned else -1, f"{type(failure).__name__}: {failure}"

    def _rows(self, verb: str, whole: bool = True, /, **params: Any) -> Iterable[Any]:
        """Every row of every page of a list. Raises where it is longer than MAX_PAGES, and is
        wanted whole."""
        cursor: str | None = None
        for _ in range(MAX_PAGES):
            body, _ = self._call(verb, **LINEAR, cursor=cursor, **params)
            yield from body["result"]["list"]
            cursor = body["result"].get("nextPageCursor")
            if not cursor:
                return
        if whole:
            raise ValueError(f"{verb}: more than {MAX_PAGES} pages")

    def _instruments(self, _: msg.Fetch) -> Iterable[Any]:
        """Every USDT perpetual; what may not be opened has another status than Trading."""
        rows = [row for row in self._rows("get_instruments_info", limit=1000) if ours(row)]
        found = [(instrument_of(row), tradeable(row)) for row in rows]
        return [i if opens else i._replace(status="NotTradeable") for i, opens in found]

    def _klines(self, ask: msg.Fetch) -> Iterable[Any]:
        """Closed bars, oldest first; the newest row may be open and is left out."""
        span = {"start": ask.start_ms, "limit": 1000} if ask.start_ms else {"limit": 301}
        interval, length_ms = self._settings.INTERVAL, self._settings.interval_ms
        body, _ = self._call("get_kline", **LINEAR, symbol=ask.symbol, interval=interval, **span)
        return [bar_of(ask.symbol, length_ms, row) for row in body["result"]["list"][:0:-1]]

    def _orders(self, _: msg.Fetch) -> Iterable[Any]:
        rows = self._rows("get_open_orders", settleCoin="USDT", limit=50)
        return [read(msg.OrderUpdate, row) for row in rows if ours(row)]

    def _order(self, ask: msg.Fetch) -> Iterable[Any]:
        """One order by our id, open or not; nothing if the exchange knows of none."""
        name = {"orderId": ask.order_id} if ask.order_id else {"orderLinkId": ask.order_link_id}
        key = {"symbol": ask.symbol, **name}
        rows = list(self._rows("get_open_orders", **key)) or self._rows("get_order_history", **key)
        return [read(msg.OrderUpdate, row) for row in rows]

    def _executions(self, ask: msg.Fetch) -> Iterable[Any]:
        """Newest first, all since `start_ms`. Without one, as a new ledger asks, the newest ones:
        what came before them is foreign, as is what is older than the exchange tells."""
        found: list[msg.Execution] = []
        caught_up, self._caught_up = self._caught_up, False
        for span in self._spans(ask.start_ms, caught_up):
            rows = [*self._rows("get_executions", ask.start_ms > 0, limit=100, **span)]
            found += [read(msg.Execution, row) for row in rows if ours(row)]
            if rows and int(rows[-1]["execTime"]) <= ask.start_ms + msg.OVERLAP_MS:
                break  # the last known one: nothing is missing in between
            time.sleep(WEEK_SECONDS if span else 0)
        self._caught_up = True
        return found

    def _spans(self, start_ms: int, caught_up: bool) -> Iterator[dict[str, int]]:
        """What to ask for, until `start_ms` is reached: none is longer than the exchange allows.
        Without times it tells of the last seven days of its own clock, which is all that can be new
        to who has read everything once."""
        now_ms = self._clock.wall_ms()
        if start_ms and now_ms - start_ms < WINDOW_MS:
            yield {"startTime": start_ms}
            return
        yield {}
        first_ms = now_ms if caught_up or not start_ms else max(start_ms, now_ms - KEPT_MS)
        for end_ms in range(now_ms - WINDOW_MS, first_ms, -WINDOW_MS):
            yield {"startTime": max(first_ms, end_ms - WINDOW_MS), "endTime": end_ms}

    def _positions(self, _: msg.Fetch) -> Iterable[Any]:
        rows = self._rows("get_positions", settleCoin="USDT", limit=200)
        return [read(msg.Holding, row) for row in rows if ours(row)]

    def _wallet(self, _: msg.Fetch) -> Iterable[Any]:
        body, _headers = self._call("get_wallet_balance", accountType="UNIFIED")
        return [read(msg.Wallet, row) for row in body["result"]["list"] if has_equity(row)]

    def _account(self, _: msg.Fetch) -> Iterable[Any]:
        """One-way mode for every USDT contract; refused where hedge positions or orders are."""
        self._call("switch_position_mode", **LINEAR, coin="USDT", mode=0)
        return ()

    def _rights(self, _: msg.Fetch) -> Iterable[Any]:
        """What the key may do with the wallet: nothing, or it is refused."""
        body, _headers = self._call("get_api_key_information")
        return list(body["result"].get("permissions", {}).get("Wallet", ()))

    def _leverage(self, ask: msg.Fetch) -> Iterable[Any]:
        once = {"symbol": ask.symbol, "buyLeverage": "1", "sellLeverage": "1"}
        self._call("set_leverage", **LINEAR, **once)
        return ()


class _Socket(Ears):
    """What our two socket classes add to pybit's: a base address, one life, and hard ears."""

    def __init__(self, base: str, heard: Post, **pybit: Any) -> None:
        self._base = base
        pybit |= {"testnet": False, "ping_interval": PING_SECONDS, "ping_timeout": PONG_SECONDS}
        pybit["retries"] = 2  # with 1, pybit raises although it is connected
        super().__init__(heard, **pybit)

    def send(self, message: dict[str, Any]) -> None:
        """Raises one of LOST where the connection is gone."""
        self.ws.send(json.dumps(message))  # type: ignore[attr-defined]

    def _connect(self, url: str) -> None:
        super()._connect(self._base + urlsplit(url).path)  # type: ignore[misc]

    def _on_error(self, error: Exception) -> None:
        self.lost = self.lost or f"{type(error).__name__}: {error}"

    def _on_close(self) -> None:
        self.lost = self.lost or "closed"


class StreamSocket(_Socket, WebSocket):  # type: ignore[misc]
    """Private stream."""


class TradeSocket(_Socket, WebSocketTrading):  # type: ignore[misc]
    """Order entry."""


class _Supervisor:
    """A thread that keeps one connection alive, for ever."""

    def __init__(
        self, name: str, build: Callable[[], Any], post: Post, topics: Iterable[str], answers: int
    ) -> None:
        self._name, self._build, self._post = name, build, post
        self._topics, self._answers = list(topics), answers
        self._without: list[str] = []  # topics that the exchange refused
        public = name.startswith("public")
        self._silent = max(SILENT_SECONDS, PUSH_SECONDS / len(self._topics)) if public else 1e9
        self._closed = threading.Event()
        self.socket: Any = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def close(self, wait: bool = True) -> None:
        """Ends the connection and the thread."""
        self._closed.set()
        if wait:
            self._thread.join(timeout=2)

    def _run(self) -> None:
        failures = 0
        while not self._closed.is_set():
            try:
                reason, worked = self._live()
            except LOST as error:
                reason, worked = f"{type(error).__name__}: {error}", False
            if (topic := refused_topic(reason)) in self._topics:
                self._topics.remove(topic)
                self._without.append(topic)
            failures = 0 if worked else min(failures + 1, len(BACKOFF_SECONDS) - 1)
            if not self._closed.is_set():
                self._post(msg.Link(self._name, False, reason))
            self._closed.wait(BACKOFF_SECONDS[failures] * random.uniform(0.8, 1.2))

    def _live(self) -> tuple[str, bool]:
        """One connection from opening to end: why it ended, and whether it ever worked."""
        socket = self._build()
        try:
            if self._topics:
                socket.send({"op": "subscribe", "req_id": self._name, "args": self._topics})
            deadline = time.monotonic() + CONFIRM_SECONDS
            while socket.confirmed < self._answers and not socket.lost:
                if self._closed.wait(0.005) or time.monotonic() > deadline:
                    return "no answer to auth or subscribe", False
            if not socket.lost:
                self.socket = socket
                missing = f"without {', '.join(self._without)}" if self._without else ""
                self._post(msg.Link(self._name, True, missing))
            while not (socket.lost or self._closed.is_set()):
                if time.monotonic() - socket.heard_at > self._silent:
                    return f"silent for {self._silent:g} s", True
                self._closed.wait(0.1)
            return socket.lost, self.socket is not None
        finally:
            self.socket = None
            socket.exit()


class Exchange:
    """The door of one process: takes Subscribe, Fetch, OrderRequest, posts all that comes back."""

    takes = (msg.Subscribe, msg.Fetch, msg.OrderRequest, msg.Rebuild)

    def __init__(self, settings: Settings, post: Post, links: Iterable[str]) -> None:
        self._settings, self._post, self._at = settings, post, addresses(settings)
        self._pool = ThreadPoolExecutor(REST_THREADS, thread_name_prefix="rest")
        self._pace, self._next_s = threading.Lock(), 0.0
        self._local = threading.local()
        self._clock = Clock()
        self._rest = Rest(settings, self._call, self._clock)
        self._keys = {"api_key": settings.api_key, "api_secret": settings.api_secret}
        self._sent: dict[str, msg.OrderRequest] = {}
        self._public: list[_Supervisor] = []
        self._links: dict[str, _Supervisor] = {}
        if "private" in links:
            build, topics = self._build_private, PRIVATE_TOPICS
            self._links["private"] = _Supervisor("private", build, post, topics, answers=2)
        if "trade" in links and self._at.trade:
            self._links["trade"] = _Supervisor("trade", self._build_trade, post, (), answers=1)
        elif "trade" in links:
            post(msg.Link("trade", True, "by REST"))

    def send(self, message: Any) -> None:
        """Never blocks, never raises: what comes of it is posted."""
        if isinstance(message, msg.Subscribe):
            self._subscribe(message.topics)
        elif isinstance(message, msg.Fetch):
            self._pool.submit(self._fetch, message)
        elif isinstance(message, msg.Rebuild):
            link = self._links.get(message.name)
            if link and link.socket:
                link.socket.lost = message.reason
        elif not message.outcome and not self._send_by_socket(message):
            self._pool.submit(self._send_by_rest, message)

    def close(self) -> None:
        """End every connection and thread."""
        for supervisor in (*self._public, *self._links.values()):
            supervisor.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _subscribe(self, topics: Iterable[str]) -> None:
        for supervisor in self._public:
            supervisor.close(wait=False)
        self._public = [
            _Supervisor(f"public-{index}", self._build_public, self._post, part, answers=1)
            for index, part in enumerate(parts(topics))
        ]

    def _build_public(self) -> PublicSocket:
        return PublicSocket(self._at.public, self._heard_push)

    def _build_private(self) -> StreamSocket:
        rest: dict[str, Any] = {"channel_type": "private", "private_auth_expire": 10, **self._keys}
        return StreamSocket(self._at.private, self._heard_push, **rest)

    def _build_trade(self) -> TradeSocket:
        self._sent.clear()  # a new connection answers nothing that an old one was asked
        rest: dict[str, Any] = {"recv_window": 0, "referral_id": "", "private_auth_expire": 10}
        return TradeSocket(self._at.trade, self._heard_trade, **rest, **self._keys)

    def _heard_push(self, frame: Any) -> None:
        for message in pushed(frame, time.monotonic_ns()):
            self._post(message)

    def _heard_trade(self, frame: Any) -> None:
        if request := self._sent.pop(frame["reqId"], None):
            said = (frame["retCode"], frame["retMsg"], frame.get("header"))
            self._post(answered(request, *said, frame.get("retExtInfo"), time.monotonic_ns()))

    def _send_by_socket(self, request: msg.OrderRequest) -> bool:
        """False where there is no socket, and so nothing was sent."""
        link = self._links.get("trade")
        socket = link and link.socket
        if not socket:
            return False
        frame = frame_of(request, self._settings.RECV_WINDOW_MS, self._clock.wall_ms())
        self._sent[frame["reqId"]] = request  # before sending: the answer may be faster than we are
        try:
            socket.send(frame)
        except LOST as error:
            self._sent.pop(frame["reqId"], None)
            why = f"{type(error).__name__}: {error}"
            self._post(answered(request, -1, why, None, {}, time.monotonic_ns()))
        return True

    def _send_by_rest(self, request: msg.OrderRequest) -> None:
        self._post(self._rest.order(request))

    def _fetch(self, ask: msg.Fetch) -> None:
        with self._pace:
            at_s = max(time.monotonic(), self._next_s)
            self._next_s = at_s + REST_PACE_SECONDS
        time.sleep(max(0.0, at_s - time.monotonic()))
        self._post(self._rest.fetch(ask))

    def _call(self, verb: str, **params: Any) -> tuple[Any, Any]:
        """By pybit's HTTP of this thread."""
        if not hasattr(self._local, "call"):
            self._local.call = caller(self._settings)
        body, headers = self._local.call(verb, **params)
        return body, headers


def refused_topic(reason: str) -> str:
    """The one topic for which a whole subscription was refused; empty if it was something else."""
    return reason.partition("handler not found,topic:")[2]


def parts(topics: Iterable[str]) -> list[list[str]]:
    """Topics in groups that one connection takes (MAX_ARGS_CHARS of JSON array)."""
    groups: list[list[str]] = []
    room = 0
    for topic in topics:
        size = len(topic) + 3
        if size > room:
            groups.append([])
            room = MAX_ARGS_CHARS
        groups[-1].append(topic)
        room -= size
    return groups
