"""paper: the server as clients see it: signatures, limits, pages, topics, acks. Loopback only."""

import asyncio
import contextlib
import hashlib
import hmac
import json
import queue
import threading
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import websocket
from aiohttp import web
from pybit.exceptions import InvalidRequestError
from pybit.unified_trading import HTTP

from services.paper.actor import Paper
from services.paper.clock import Clock
from services.paper.journal import Journal
from services.paper.market import MINUTE_MS, POINTS, Listing, Minute
from services.paper.server import venue_of
from services.paper.ticker import Ticker
from shared import messages as msg
from shared.bybit import Exchange, StreamSocket, TradeSocket, pushed
from shared.settings import PAPER_KEY, PAPER_SECRET, Settings

START = 1_700_000_040_000
SYMBOLS = ("AAAUSDT", "BBBUSDT", "CCCUSDT")
SECONDS = 5.0  # how long anything may take


class Flat:
    """A market without end in which every price is 100.0, always."""

    def __init__(self) -> None:
        grid = (Decimal("0.1"), Decimal(1), Decimal(1), Decimal(10_000), 480)
        self.listings = [Listing(symbol, *grid) for symbol in SYMBOLS]
        self._next_ms = START - 3 * MINUTE_MS

    def skip_to(self, at_ms: int) -> None:
        pass

    def next(self) -> Minute:
        at_ms, self._next_ms = self._next_ms, self._next_ms + MINUTE_MS
        shape = (POINTS, len(SYMBOLS))
        return Minute(at_ms, np.full(shape, 1000, np.int64), np.full(len(SYMBOLS), 6.0))


class Served:
    """A running paper exchange and the ways to talk to it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.rest, self.stream = f"http://127.0.0.1:{port}", f"ws://127.0.0.1:{port}"
        self.sessions: list[HTTP] = []

    def http(self, key: str = PAPER_KEY, secret: str = PAPER_SECRET) -> HTTP:
        """Plain pybit."""
        rest: dict[str, Any] = {"max_retries": 1, "retry_codes": {-1}}
        http = HTTP(api_key=key, api_secret=secret, return_response_headers=True, **rest)
        http.endpoint = self.rest
        self.sessions.append(http)
        return http

    def signed(
        self, method: str, path: str, payload: str = "", age_ms: int = 0, **headers: str
    ) -> requests.Response:
        """A request signed by hand over its raw query or raw body, `age_ms` ago."""
        stamp = str(time.time_ns() // 1_000_000 - age_ms)
        head = {
            "X-BAPI-API-KEY": PAPER_KEY,
            "X-BAPI-TIMESTAMP": stamp,
            "X-BAPI-RECV-WINDOW": "5000",
            "X-BAPI-SIGN": sign(f"{stamp}{PAPER_KEY}5000{payload}"),
        } | {name.replace("_", "-"): value for name, value in headers.items()}
        url = f"{self.rest}{path}" + (f"?{payload}" if payload and method == "GET" else "")
        body = payload if method == "POST" else None
        return requests.request(method, url, data=body, headers=head, timeout=SECONDS)

    @contextlib.contextmanager
    def socket(self, kind: str, auth: bool = True) -> Iterator["Wire"]:
        """A raw websocket: `public/linear`, `private` or `trade`."""
        connection = websocket.create_connection(f"{self.stream}/v5/{kind}", timeout=SECONDS)
        with contextlib.closing(connection):
            wire = Wire(connection)
            if auth and kind != "public/linear":
                answer = wire.ask(auth_frame())
                assert answer.get("success", answer.get("retCode") == 0) is True
            yield wire


class Wire:
    """One websocket, JSON in both directions."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    def send(self, frame: Any) -> None:
        self.connection.send(frame if isinstance(frame, str) else json.dumps(frame))

    def next(self) -> Any:
        return json.loads(self.connection.recv())

    def ask(self, frame: Any) -> Any:
        """The first answer that is not a push."""
        self.send(frame)
        return self.until(lambda heard: "topic" not in heard)[-1]

    def until(self, wanted: Callable[[Any], bool]) -> list[Any]:
        """All that is heard, up to the first frame that is wanted."""
        heard = [self.next()]
        while not wanted(heard[-1]):
            heard.append(self.next())
        return heard


def sign(text: str, secret: str = PAPER_SECRET) -> str:
    return hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()


def auth_frame(
    key: str = PAPER_KEY, secret: str = PAPER_SECRET, in_ms: int = 9_000, as_text: bool = False
) -> Any:
    expires = time.time_ns() // 1_000_000 + in_ms
    proof = sign(f"GET/realtime{expires}", secret)
    return {"op": "auth", "args": [key, str(expires) if as_text else expires, proof], "req_id": "a"}


def order(**change: Any) -> dict[str, Any]:
    """A Limit Buy of 1 at 99.0, which rests."""
    terms = {"category": "linear", "symbol": "AAAUSDT", "side": "Buy", "orderType": "Limit"}
    return terms | {"qty": "1", "price": "99.0", "timeInForce": "PostOnly"} | change


def taking(**change: Any) -> dict[str, Any]:
    """A Market order of 1, which trades at 100.0."""
    return order(orderType="Market", timeInForce="IOC") | change


def trade_op(op: str, req_id: Any = "r1", age_ms: int = 0, **args: Any) -> Any:
    stamp = time.time_ns() // 1_000_000 - age_ms  # pybit sends a number
    header = {"X-BAPI-TIMESTAMP": stamp, "X-BAPI-RECV-WINDOW": "5000"}
    frame = {"header": header, "op": op, "args": [args]}
    return frame if req_id is None else frame | {"reqId": req_id}


@contextlib.contextmanager
def serve(folder: Path, **settings: Any) -> Iterator[Served]:
    """The server on a free port, in a thread of its own; all of it is gone afterwards."""
    port: queue.Queue[Any] = queue.Queue()
    settings = {"PAPER_RATE_LIMIT": 1000, "PAPER_BOOK": "bare"} | settings
    config = Settings(_env_file=None, **settings)

    async def main() -> None:
        ticker = Ticker(Flat())
        ticker.warm_up(START)
        clock = Clock(START, time.monotonic_ns(), config.PAPER_SPEED)
        journal = Journal(folder / "paper.jsonl", {})
        paper = Paper(venue_of(config, ticker, journal, START, START), clock, journal)
        runner = web.AppRunner(paper.application(), access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        market, stop = asyncio.create_task(paper.run_market()), asyncio.Event()
        port.put((runner.addresses[0][1], asyncio.get_running_loop(), stop))
        await stop.wait()
        market.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await market
        await runner.cleanup()

    thread = threading.Thread(target=asyncio.run, args=(main(),), name="paper")
    thread.start()
    number, loop, stop = port.get(timeout=SECONDS)
    served = Served(number)
    try:
        yield served
    finally:
        for http in served.sessions:
            http.client.close()
        loop.call_soon_threadsafe(stop.set)
        thread.join(SECONDS)
        assert not thread.is_alive()


@pytest.fixture(scope="module", autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """pybit's reader threads end up to 3 s (its pong deadline) after their socket is closed."""
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(SECONDS)
    assert set(threading.enumerate()) <= before


@pytest.fixture
def paper(tmp_path: Path) -> Iterator[Served]:
    with serve(tmp_path) as served:
        yield served


# Signatures.


def code_of(response: requests.Response) -> int:
    return int(response.json()["retCode"])


def test_pybit_with_the_right_key_is_served(paper: Served) -> None:
    body, _, _ = paper.http().get_wallet_balance(accountType="UNIFIED")
    assert (body["retCode"], body["retMsg"], body["retExtInfo"]) == (0, "OK", {})
    assert body["result"]["list"][0]["totalEquity"] == "1000"
    assert abs(body["time"] - time.time() * 1000) < 60_000


@pytest.mark.parametrize(
    ("key", "secret", "code"),
    [("wrong", PAPER_SECRET, 10003), (PAPER_KEY, "wrong", 10004)],
)
def test_a_wrong_key_or_signature_is_refused(
    paper: Served, key: str, secret: str, code: int
) -> None:
    for call in (
        lambda http: http.get_wallet_balance(accountType="UNIFIED"),
        lambda http: http.place_order(**order()),
    ):
        with pytest.raises(InvalidRequestError) as error:
            call(paper.http(key, secret))
        assert error.value.status_code == code
    assert (
        paper.http().get_open_orders(category="linear", settleCoin="USDT")[0]["result"]["list"]
        == []
    )


@pytest.mark.parametrize(
    ("age_ms", "code"), [(4_000, 0), (8_000, 10002), (-500, 0), (-3_000, 10002)]
)
def test_a_timestamp_older_than_recv_window_or_in_the_future_is_refused(
    paper: Served, age_ms: int, code: int
) -> None:
    """server_time - 5000 <= timestamp < server_time + 1000."""
    response = paper.signed("GET", "/v5/account/wallet-balance", "accountType=UNIFIED", age_ms)
    assert (response.status_code, code_of(response)) == (200, code)


@pytest.mark.parametrize("proof", ["", "no hex", "\u00e9"])
def test_a_signature_that_is_none_is_a_wrong_one(paper: Served, proof: str) -> None:
    assert code_of(paper.signed("GET", "/v5/position/list", X_BAPI_SIGN=proof)) == 10004


def test_a_signature_is_over_the_raw_body(paper: Served) -> None:
    body = json.dumps(order(), indent=3)  # as no library would write it
    assert code_of(paper.signed("POST", "/v5/order/create", body)) == 0
    other = sign(f"{time.time_ns() // 1_000_000}{PAPER_KEY}5000{body}")
    assert code_of(paper.signed("POST", "/v5/order/create", body + " ", X_BAPI_SIGN=other)) == 10004


def test_a_signature_is_over_the_raw_query(paper: Served) -> None:
    query = "settleCoin=USDT&category=linear&baseCoin=a%2C+b%3D&limit=5"
    assert code_of(paper.signed("GET", "/v5/order/realtime", query)) == 0


def test_missing_auth_headers_are_http_401(paper: Served) -> None:
    response = requests.get(f"{paper.rest}/v5/account/wallet-balance", timeout=SECONDS)
    assert response.status_code == 401


def test_the_market_needs_no_signature_and_what_is_not_there_is_404(paper: Served) -> None:
    found = requests.get(f"{paper.rest}/v5/market/time", timeout=SECONDS).json()
    assert int(found["result"]["timeNano"]) // 10**9 == int(found["result"]["timeSecond"])
    assert requests.get(f"{paper.rest}/v5/nothing", timeout=SECONDS).status_code == 404


@pytest.mark.parametrize("body", ["{", "[1]", "5", '"text"'])
def test_a_body_that_is_no_object_is_a_parameter_error(paper: Served, body: str) -> None:
    assert code_of(paper.signed("POST", "/v5/order/create", body)) == 10001


# Rate limits.


def test_the_rate_limit_counts_down_refuses_and_heals(tmp_path: Path) -> None:
    with serve(tmp_path, PAPER_RATE_LIMIT=3) as paper:
        http, left = paper.http(), []
        for _ in range(3):
            body, _, headers = http.place_order(**order())
            assert (body["retCode"], headers["X-Bapi-Limit"]) == (0, "3")
            left.append(headers["X-Bapi-Limit-Status"])
        assert left == ["2", "1", "0"]
        with pytest.raises(InvalidRequestError) as error:
            http.place_order(**order())
        assert (error.value.status_code, error.value.message) == (10006, "Too many visits!")
        headers = error.value.resp_headers
        assert (headers["X-Bapi-Limit"], headers["X-Bapi-Limit-Status"]) == ("3", "0")
        reset_ms = int(headers["X-Bapi-Limit-Reset-Timestamp"])
        assert 0 < reset_ms - time.time() * 1000 <= 1001  # in the future, or pybit breaks
        order_id = body["result"]["orderId"]
        key = {"category": "linear", "symbol": "AAAUSDT", "orderId": order_id}
        assert http.amend_order(**key, price="98.0")[0]["retCode"] == 0  # buckets of their own
        assert http.cancel_order(**key)[0]["retCode"] == 0
        time.sleep(max(0.0, reset_ms / 1000 - time.time()))
        assert http.place_order(**order())[0]["retCode"] == 0


def test_rest_and_the_trade_socket_share_a_bucket(tmp_path: Path) -> None:
    with serve(tmp_path, PAPER_RATE_LIMIT=2) as paper, paper.socket("trade") as wire:
        assert wire.ask(trade_op("order.create", **order()))["header"]["X-Bapi-Limit-Status"] == "1"
        assert paper.http().place_order(**order())[2]["X-Bapi-Limit-Status"] == "0"
        assert wire.ask(trade_op("order.create", "r2", **order()))["retCode"] == 10006


def test_every_signed_answer_has_rate_limit_headers(paper: Served) -> None:
    response = paper.signed("GET", "/v5/order/realtime", "category=linear&settleCoin=USDT")
    assert {"X-Bapi-Limit", "X-Bapi-Limit-Status", "X-Bapi-Limit-Reset-Timestamp"} <= set(
        response.headers
    )


def test_each_list_has_a_limit_of_its_own(paper: Served) -> None:
    """50 a second each: reading orders does not use up the positions."""
    http, key = paper.http(), {"category": "linear", "settleCoin": "USDT"}
    left = [http.get_open_orders(**key)[2]["X-Bapi-Limit-Status"] for _ in range(3)]
    assert left == ["49", "48", "47"]
    assert http.get_positions(**key)[2]["X-Bapi-Limit-Status"] == "49"


# Lists and their pages.


def pages(verb: Any, limit: int, **params: Any) -> list[list[Any]]:
    """Every page, following the cursor."""
    found, cursor = [], ""
    while not found or cursor:
        body, _, _ = verb(category="linear", limit=limit, cursor=cursor, **params)
        found.append(body["result"]["list"])
        cursor = body["result"]["nextPageCursor"]
    return found


def eventually(verb: Any, **params: Any) -> Any:
    """The first row of a list that may lag."""
    deadline = time.monotonic() + SECONDS
    while not (found := pages(verb, 20, **params)[0]):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found[0]


def test_open_orders_come_in_pages_newest_first(paper: Served) -> None:
    http = paper.http()
    for number in range(5):
        http.place_order(**order(orderLinkId=f"mine-{number}"))
    found = pages(http.get_open_orders, 2, settleCoin="USDT")
    names = [[row["orderLinkId"] for row in page] for page in found]
    assert names == [["mine-4", "mine-3"], ["mine-2", "mine-1"], ["mine-0"]]
    assert len(pages(http.get_open_orders, 5, settleCoin="USDT")) == 1  # a full page is the last
    (row,) = pages(http.get_open_orders, 2, symbol="AAAUSDT", orderLinkId="mine-3")[0]
    assert (row["orderLinkId"], row["orderStatus"], row["price"]) == ("mine-3", "New", "99.0")


def test_executions_come_in_pages_newest_first(paper: Served) -> None:
    http = paper.http()
    for qty in range(1, 6):
        http.place_order(**taking(qty=str(qty)))
    found = pages(http.get_executions, 2)
    assert [[row["execQty"] for row in page] for page in found] == [["5", "4"], ["3", "2"], ["1"]]
    assert len({row["execId"] for page in found for row in page}) == 5
    times = [int(row["execTime"]) for page in found for row in page]
    assert pages(http.get_executions, 100, startTime=times[0] + 1) == [[]]
    assert pages(http.get_executions, 100, startTime=times[-1])[0][-1]["execQty"] == "1"


def test_instruments_come_in_pages_and_only_where_there_are_any(paper: Served) -> None:
    http = paper.http()
    found = pages(http.get_instruments_info, 2)
    assert [[row["symbol"] for row in page] for page in found] == [list(SYMBOLS[:2]), ["CCCUSDT"]]
    row = found[0][0]
    assert (row["contractType"], row["status"], row["quoteCoin"]) == (
        "LinearPerpetual",
        "Trading",
        "USDT",
    )
    assert (row["priceFilter"]["tickSize"], row["lotSizeFilter"]["qtyStep"]) == ("0.1", "1")
    assert pages(http.get_instruments_info, 2, status="PreLaunch") == [[]]
    assert http.get_instruments_info(category="spot")[0]["result"]["list"] == []


def test_positions_are_the_open_ones_or_the_one_row_that_is_asked_for(paper: Served) -> None:
    http = paper.http()
    flat = http.get_positions(category="linear", symbol="AAAUSDT")[0]["result"]["list"]
    assert [(row["symbol"], row["side"], row["size"]) for row in flat] == [("AAAUSDT", "", "0")]
    assert pages(http.get_positions, 20, settleCoin="USDT") == [[]]
    http.place_order(**taking(side="Sell", qty="3"))
    ((row,),) = pages(http.get_positions, 20, settleCoin="USDT")
    assert (row["symbol"], row["side"], row["size"], row["avgPrice"]) == (
        "AAAUSDT",
        "Sell",
        "3",
        "100.0",
    )


def test_a_closed_order_is_found_by_its_link_id(paper: Served) -> None:
    http = paper.http()
    http.place_order(**order(orderLinkId="mine"))
    http.cancel_order(category="linear", symbol="AAAUSDT", orderLinkId="mine")
    key = {"symbol": "AAAUSDT", "orderLinkId": "mine"}
    assert pages(http.get_order_history, 20, **key) == [[]]  # it lags
    assert eventually(http.get_order_history, **key)["orderStatus"] == "Cancelled"
    assert pages(http.get_open_orders, 20, settleCoin="USDT") == [[]]
    assert pages(http.get_order_history, 20, symbol="AAAUSDT", orderLinkId="none") == [[]]


def test_klines_by_rest_are_newest_first_with_the_open_one(paper: Served) -> None:
    body, _, _ = paper.http().get_kline(category="linear", symbol="AAAUSDT", interval="1", limit=3)
    rows = body["result"]["list"]
    starts = [int(row[0]) for row in rows]
    assert starts[0] in (START, START - MINUTE_MS)  # the open one, once it has traded
    assert starts == [starts[0] - n * MINUTE_MS for n in range(3)]
    assert [row[1:5] for row in rows] == [["100.0"] * 4] * 3


def test_leverage_is_set_once_and_then_not_modified(paper: Served) -> None:
    http, terms = paper.http(), {"category": "linear", "symbol": "AAAUSDT"}
    assert http.set_leverage(**terms, buyLeverage="1", sellLeverage="1")[0]["retCode"] == 0
    with pytest.raises(InvalidRequestError) as error:
        http.set_leverage(**terms, buyLeverage="1", sellLeverage="1")
    assert error.value.status_code == 110043
    row = http.get_positions(**terms)[0]["result"]["list"][0]
    assert row["leverage"] == "1"


def test_one_way_mode_is_not_modified(paper: Served) -> None:
    with pytest.raises(InvalidRequestError) as error:
        paper.http().switch_position_mode(category="linear", coin="USDT", mode=0)
    assert error.value.status_code == 110025


def test_the_account_survives_a_restart(tmp_path: Path) -> None:
    def seen(served: Served) -> Any:
        http, key = served.http(), {"settleCoin": "USDT"}
        wallet = http.get_wallet_balance(accountType="UNIFIED")[0]["result"]["list"][0]
        held = pages(http.get_positions, 20, **key)[0]
        return (
            pages(http.get_open_orders, 20, **key),
            pages(http.get_executions, 100),
            [(row["symbol"], row["size"], row["avgPrice"]) for row in held],
            wallet["totalWalletBalance"],
        )

    with serve(tmp_path) as paper:
        http = paper.http()
        http.place_order(**order(orderLinkId="rests"))
        http.place_order(**taking(qty="3"))
        http.place_order(**order(side="Sell", price="101.0", reduceOnly=True, orderLinkId="exit"))
        before = seen(paper)
    with serve(tmp_path) as paper:
        assert seen(paper) == before
        with pytest.raises(InvalidRequestError) as error:
            paper.http().place_order(**order(orderLinkId="rests"))
        assert error.value.status_code == 110072


def test_leverage_survives_a_restart(tmp_path: Path) -> None:
    terms = {"category": "linear", "symbol": "AAAUSDT"}
    with serve(tmp_path) as paper:
        paper.http().set_leverage(**terms, buyLeverage="1", sellLeverage="1")
    with serve(tmp_path) as paper:
        (row,) = pages(paper.http().get_positions, 20, symbol="AAAUSDT")[0]
        assert row["leverage"] == "1"


# Acks are held: a reply that is faster than pybit's own bookkeeping kills its socket.


@pytest.mark.parametrize("what", ["rest", "trade", "subscribe"])
def test_an_ack_is_held_as_long_as_it_is_set(tmp_path: Path, what: str) -> None:
    kind = "trade" if what == "trade" else "public/linear"
    with serve(tmp_path, PAPER_ACK_MS=60) as paper, paper.socket(kind) as wire:
        began = time.monotonic()
        if what == "rest":
            assert code_of(paper.signed("POST", "/v5/order/create", json.dumps(order()))) == 0
        elif what == "trade":
            assert wire.ask(trade_op("order.create", **order()))["retCode"] == 0
        else:
            assert wire.ask({"op": "subscribe", "args": ["kline.1.AAAUSDT"]})["success"]
        assert time.monotonic() - began >= 0.06


# The public stream.


def test_a_subscription_is_confirmed_and_then_pushed(tmp_path: Path) -> None:
    with serve(tmp_path, PAPER_SPEED=120) as paper, paper.socket("public/linear") as wire:
        args = ["kline.1.AAAUSDT", "kline.1.BBBUSDT"]
        answer = wire.ask({"op": "subscribe", "req_id": "s", "args": args})
        assert {
            "success": True,
            "ret_msg": "",
            "req_id": "s",
            "op": "subscribe",
        }.items() <= answer.items()
        heard = wire.until(lambda frame: frame["data"][0]["confirm"])
        frame = heard[-1]
        assert {f["topic"] for f in heard} <= set(args)
        assert (frame["type"], len(frame["data"])) == ("snapshot", 1)
        row = frame["data"][0]
        assert (row["start"] % MINUTE_MS, row["end"] - row["start"]) == (0, 59_999)
        assert [row[name] for name in ("open", "high", "low", "close")] == ["100.0"] * 4
        (kline,) = pushed(frame)
        assert (kline.symbol, kline.confirm, kline.close) == (frame["topic"][8:], True, 100.0)
        # the next minute's confirm of the same symbol is the next bar, and never the same again
        later = wire.until(lambda f: f["topic"] == frame["topic"] and f["data"][0]["confirm"])
        assert later[-1]["data"][0]["start"] == row["start"] + MINUTE_MS


@pytest.mark.parametrize(
    ("frames", "text"),
    [
        (
            [{"op": "subscribe", "args": ["kline.1.NONEUSDT"]}],
            "error:handler not found,topic:kline.1.NONEUSDT",
        ),
        (
            [{"op": "subscribe", "args": ["kline.1.AAAUSDT", "order"]}],
            "error:handler not found,topic:order",
        ),
        (
            [{"op": "subscribe", "args": ["kline.1.AAAUSDT"]}] * 2,
            "error:already subscribed,topic:kline.1.AAAUSDT",
        ),
        ([{"op": "nonsense"}], "error:invalid op"),
        (["this is no JSON"], "error:invalid op"),
    ],
)
def test_what_cannot_be_subscribed_is_refused_in_bybits_words(
    paper: Served, frames: list[Any], text: str
) -> None:
    with paper.socket("public/linear") as wire:
        answers = [wire.ask(frame) for frame in frames]
        assert (answers[-1]["success"], answers[-1]["ret_msg"]) == (False, text)


def test_a_connection_takes_21000_characters_of_topics(tmp_path: Path) -> None:
    with serve(tmp_path) as paper, paper.socket("public/linear") as wire:
        long = ["kline.1." + "X" * 12_000, "kline.1." + "X" * 9_000]  # 21,016 and more
        assert "21000" in wire.ask({"op": "subscribe", "args": long})["ret_msg"]
        assert wire.ask({"op": "subscribe", "args": ["kline.1.AAAUSDT"]})["success"]


def test_nothing_is_pushed_after_unsubscribing(tmp_path: Path) -> None:
    with serve(tmp_path, PAPER_SPEED=120) as paper, paper.socket("public/linear") as wire:
        for symbol in SYMBOLS[:2]:
            wire.ask({"op": "subscribe", "args": [f"kline.1.{symbol}"]})
        assert wire.ask({"op": "unsubscribe", "args": ["kline.1.AAAUSDT"]})["success"]
        heard = wire.until(lambda frame: frame["data"][0]["confirm"])  # BBB, a minute's worth
        assert {frame["topic"] for frame in heard} == {"kline.1.BBBUSDT"}


@pytest.mark.parametrize("req_id", ["text", 7, None], ids=str)
def test_a_request_id_comes_back_as_it_went(paper: Served, req_id: Any) -> None:
    frame = {"op": "subscribe", "args": ["kline.1.AAAUSDT"]}
    with paper.socket("public/linear") as wire:
        answer = wire.ask(frame if req_id is None else frame | {"req_id": req_id})
        assert answer.get("req_id", None) == req_id
        assert ("req_id" in answer) == (req_id is not None)


# The private stream.


def test_the_private_stream_needs_auth(paper: Served) -> None:
    with paper.socket("private", auth=False) as wire:
        assert not wire.ask({"op": "subscribe", "args": ["order"]})["success"]
        assert wire.ask(auth_frame())["success"]
        assert wire.ask({"op": "subscribe", "args": ["order"]})["success"]


@pytest.mark.parametrize(
    ("change", "good"),
    [
        ({}, True),
        ({"as_text": True}, True),  # as ccxt sends it
        ({"key": "wrong"}, False),
        ({"secret": "wrong"}, False),
        ({"in_ms": -1_000}, False),  # expired
    ],
)
@pytest.mark.parametrize("kind", ["private", "trade"])
def test_auth(paper: Served, kind: str, change: dict[str, Any], good: bool) -> None:
    with paper.socket(kind, auth=False) as wire:
        answer = wire.ask(auth_frame(**change))
        assert answer["op"] == "auth"
        if kind == "private":
            assert (answer["success"], answer["req_id"]) == (good, "a")
        else:
            assert answer["retCode"] == (0 if good else 10004)


def test_an_order_is_told_on_every_private_topic(paper: Served) -> None:
    topics = ["order", "execution", "position", "wallet"]
    with paper.socket("private") as wire:
        wire.ask({"op": "subscribe", "args": topics})
        made = paper.http().place_order(**taking(qty="2"))[0]["result"]
        heard = [wire.next() for _ in topics]  # in any order
        frames = {frame["topic"]: frame for frame in heard}
        assert set(frames) == set(topics)
        for frame in heard:
            assert {"id", "topic", "creationTime", "data"} == set(frame)
        assert frames["order"]["data"][0]["orderId"] == made["orderId"]
        assert frames["execution"]["data"][0]["execQty"] == "2"
        assert frames["position"]["data"][0]["entryPrice"] == "100.0"
        assert frames["wallet"]["data"][0]["coin"][0]["coin"] == "USDT"


# The trade socket.


def test_create_amend_and_cancel_are_acknowledged(paper: Served) -> None:
    key = {"category": "linear", "symbol": "AAAUSDT", "orderLinkId": "mine"}
    with paper.socket("trade") as wire:
        ops = (
            ("order.create", order(orderLinkId="mine")),
            ("order.amend", key | {"price": "98.0"}),
            ("order.cancel", key),
        )
        answers = [wire.ask(trade_op(op, op, **args)) for op, args in ops]
    ids = {answer["data"]["orderId"] for answer in answers}
    assert len(ids) == 1
    for (op, _), answer in zip(ops, answers, strict=True):
        assert (answer["retCode"], answer["retMsg"], answer["op"]) == (0, "OK", op)
        assert (answer["reqId"], answer["data"]["orderLinkId"]) == (op, "mine")
        limits = {"X-Bapi-Limit", "X-Bapi-Limit-Status", "X-Bapi-Limit-Reset-Timestamp", "Timenow"}
        assert limits <= set(answer["header"])
        assert "connId" in answer
    link = {"symbol": "AAAUSDT", "orderLinkId": "mine"}
    row = eventually(paper.http().get_order_history, **link)
    assert (row["orderStatus"], row["price"], row["cancelType"]) == (
        "Cancelled",
        "98.0",
        "CancelByUser",
    )


@pytest.mark.parametrize(
    ("op", "args", "code"),
    [
        ("order.create", order(price="99.05"), 10001),
        ("order.create", order(price="1.0"), 110094),
        ("order.create", order(reduceOnly=True), 110017),
        ("order.amend", {"category": "linear", "symbol": "AAAUSDT", "orderId": "none"}, 110001),
        ("order.cancel", {"category": "linear", "symbol": "AAAUSDT", "orderId": "none"}, 110001),
        ("order.nonsense", order(), 10404),
        ("order.cancel-all", {"category": "linear", "settleCoin": "USDT"}, 10404),  # REST only
    ],
)
def test_a_refusal_on_the_trade_socket(
    paper: Served, op: str, args: dict[str, Any], code: int
) -> None:
    with paper.socket("trade") as wire:
        answer = wire.ask(trade_op(op, **args))
        assert (answer["retCode"], answer["reqId"], answer["op"]) == (code, "r1", op)


def test_the_trade_socket_needs_auth_and_a_fresh_timestamp(paper: Served) -> None:
    with paper.socket("trade", auth=False) as wire:
        assert wire.ask(trade_op("order.create", **order()))["retCode"] != 0
        wire.ask(auth_frame())
        assert wire.ask(trade_op("order.create", age_ms=9_000, **order()))["retCode"] == 10002
    assert pages(paper.http().get_open_orders, 20, settleCoin="USDT") == [[]]


def test_no_request_id_no_request_id_in_the_ack(paper: Served) -> None:
    with paper.socket("trade") as wire:
        assert "reqId" not in wire.ask(trade_op("order.create", None, **order()))


def test_a_request_id_that_was_used_is_refused(paper: Served) -> None:
    with paper.socket("trade") as wire:
        assert wire.ask(trade_op("order.create", **order()))["retCode"] == 0
        assert wire.ask(trade_op("order.create", **order()))["retCode"] == 20006


# Pings.


def test_a_text_ping_on_the_public_stream(paper: Served) -> None:
    with paper.socket("public/linear") as wire:
        answer = wire.ask({"req_id": "p", "op": "ping"})
        assert answer.pop("conn_id")
        assert answer == {"success": True, "ret_msg": "pong", "req_id": "p", "op": "ping"}


def test_a_text_ping_on_the_private_stream(paper: Served) -> None:
    with paper.socket("private") as wire:
        answer = wire.ask({"req_id": "p", "op": "ping"})
        assert answer.pop("conn_id")
        (stamp,) = answer.pop("args")
        assert abs(int(stamp) - time.time() * 1000) < 60_000
        assert answer == {"req_id": "p", "op": "pong"}


def test_a_text_ping_on_the_trade_socket(paper: Served) -> None:
    with paper.socket("trade") as wire:
        answer = wire.ask({"op": "ping"})
        assert answer.pop("connId")
        (stamp,) = answer.pop("data")
        assert abs(int(stamp) - time.time() * 1000) < 60_000
        assert answer == {"retCode": 0, "retMsg": "OK", "op": "pong"}


@pytest.mark.parametrize("kind", ["public/linear", "private", "trade"])
def test_a_ping_frame_is_answered(paper: Served, kind: str) -> None:
    with paper.socket(kind) as wire:
        wire.connection.ping("hello")
        opcode, data = wire.connection.recv_data(control_frame=True)
        assert (opcode, data) == (websocket.ABNF.OPCODE_PONG, b"hello")


@pytest.mark.parametrize("kind", ["public/linear", "private", "trade"])
@pytest.mark.parametrize(
    "frame",
    [
        *(
            "{",
            "[]",
            "5",
            "{}",
            '{"op": 5}',
            '{"op": "subscribe"}',
            '{"op": "subscribe", "args": 5}',
        ),
        *('{"op": "unsubscribe", "args": 5}', '{"op": "auth"}', '{"op": "auth", "args": 5}'),
        '{"op": "order.create", "args": [5]}',
    ],
)
def test_no_frame_of_a_client_ends_its_connection(paper: Served, kind: str, frame: str) -> None:
    with paper.socket(kind) as wire:
        wire.send(frame)
        wire.send({"op": "ping", "req_id": "p"})
        wire.until(lambda heard: heard.get("op") in ("ping", "pong"))


# The bot's own door.


@contextlib.contextmanager
def door(paper: Served) -> Iterator[tuple[Exchange, Callable[..., Any]]]:
    """shared/bybit's Exchange, and a way to wait for a message it posts."""
    heard: queue.Queue[Any] = queue.Queue()
    urls = {"BYBIT_REST_URL": paper.rest, "BYBIT_STREAM_URL": paper.stream}
    exchange = Exchange(Settings(_env_file=None, **urls), heard.put, ("private", "trade"))

    kept: list[Any] = []

    def wait(kind: Any, wanted: Callable[[Any], bool] = lambda _: True) -> Any:
        """The first one not waited for before: topics come in any order."""
        while True:
            for message in kept:
                if isinstance(message, kind) and wanted(message):
                    kept.remove(message)
                    return message
            kept.append(heard.get(timeout=SECONDS))

    try:
        yield exchange, wait
    finally:
        exchange.close()


def request(name: str, command: int, action: str, **change: Any) -> msg.OrderRequest:
    terms = (name, command, action, "AAAUSDT", "Buy", Decimal("99.0"), Decimal(1), "GTC", False)
    return msg.OrderRequest(*terms, 0, 0)._replace(**change)


def test_the_door_of_the_bot_trades_here(paper: Served) -> None:
    name = msg.entry_id("AAAUSDT", "Buy", START)
    with door(paper) as (exchange, wait):
        assert {wait(msg.Link).name, wait(msg.Link).name} == {"private", "trade"}
        exchange.send(request(name, 1, "create"))
        answer = wait(msg.OrderRequest)
        assert (answer.outcome, answer.command, answer.rate_limit) == ("accepted", 1, 1000)
        exchange.send(request(name, 2, "amend", price=Decimal(101)))  # crosses: it trades at 100
        execution = wait(msg.Execution)
        assert (execution.order_link_id, execution.exec_price, execution.is_maker) == (
            name,
            100,
            False,
        )
        assert wait(msg.Wallet).total_wallet_balance == 1000 - 100 * Decimal("0.00055")
        exchange.send(request(name, 3, "cancel"))
        refusal = wait(msg.OrderRequest, lambda m: m.command == 3)
        assert (refusal.outcome, refusal.ret_code) == ("refused", 110001)
        exchange.send(msg.Fetch("positions"))
        assert wait(msg.Fetched).rows == (msg.Holding("AAAUSDT", "Buy", Decimal(1), Decimal(100)),)


def test_the_door_of_the_bot_hears_the_market(tmp_path: Path) -> None:
    with serve(tmp_path, PAPER_SPEED=120) as paper, door(paper) as (exchange, wait):
        exchange.send(msg.Subscribe(tuple(f"kline.1.{symbol}" for symbol in SYMBOLS)))
        closed = {wait(msg.Kline, lambda kline: kline.confirm).symbol for _ in SYMBOLS}
        assert closed == set(SYMBOLS)


def confirmed(socket: StreamSocket | TradeSocket, answers: int) -> None:
    """Wait for the answers to auth and subscribe, which the socket only counts."""
    deadline = time.monotonic() + SECONDS
    while socket.confirmed < answers and time.monotonic() < deadline:
        time.sleep(0.002)
    assert (socket.confirmed, socket.lost) == (answers, "")


def test_the_sockets_of_the_bot_connect_and_authenticate(paper: Served) -> None:
    heard: queue.Queue[Any] = queue.Queue()
    keys = {"api_key": PAPER_KEY, "api_secret": PAPER_SECRET, "private_auth_expire": 10}
    rest = {"recv_window": 0, "referral_id": ""}
    private = StreamSocket(paper.stream, heard.put, channel_type="private", **keys)
    trade = TradeSocket(paper.stream, heard.put, **rest, **keys)
    try:
        private.send({"op": "subscribe", "req_id": "s", "args": ["order"]})
        confirmed(private, 2)  # auth and subscribe
        confirmed(trade, 1)
        trade.send(trade_op("order.create", **order(orderLinkId="mine")))
        frames = [heard.get(timeout=SECONDS) for _ in range(2)]
        ack = next(frame for frame in frames if "op" in frame)
        push = next(frame for frame in frames if "topic" in frame)
        assert (ack["retCode"], push["data"][0]["orderLinkId"]) == (0, "mine")
        assert (private.lost, trade.lost) == ("", "")
    finally:
        private.exit()
        trade.exit()
