"""fuzz: whatever a client sends, the exchange answers in Bybit's words and its books stay exact.

`FUZZ_EXAMPLES=5000` looks longer: so many sessions of about 60 steps, other ones at every run.
"""

import contextlib
import hashlib
import hmac
import json
import os
import random
import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import numpy as np
import orjson
import pytest
import requests
import websocket
from aiohttp.http_exceptions import HttpProcessingError
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from services.paper.faults import BadFault
from services.paper.market import MINUTE_MS, POINTS, Minute
from services.paper.order import BUY, RESTING
from services.paper.server import venue_of
from services.paper.sessions import KINDS
from services.paper.ticker import Ticker
from services.paper.venue import ORDER_OPS, Request, Venue
from shared.messages import entry_id
from shared.settings import PAPER_KEY, PAPER_SECRET, Settings
from tests import test_paper
from tests.test_paper import (
    SECONDS,
    START,
    SYMBOLS,
    Flat,
    Served,
    no_thread_is_left,
    order,
)

__all__ = ["no_thread_is_left"]

DEFAULT_EXAMPLES, LEAST = 160, 3_000  # sessions; requests, and frames, that they must come to
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", DEFAULT_EXAMPLES))
STEPS = 120  # of which about half are kept
LONGEST = 1_000_000  # bytes of any answer: nobody asks for more than 1000 rows
DOCUMENTED = (401, 403, 404)
OWN_RULES = {"V2", "V16", "V17"}  # of the auditor: those that judge the exchange, not the bot
ENVELOPE = {"retCode": int, "retMsg": str, "result": dict, "retExtInfo": dict, "time": int}
EARLY = START - 10 * MINUTE_MS


class Waves(Flat):
    """A market that goes up and down between 95.0 and 105.0, each symbol in its own time."""

    def next(self) -> Minute:
        minute = super().next()
        second = np.arange(POINTS)[:, None] + minute.start_ms // 1000
        way = np.sin(second / np.array([11.0, 40.0, 200.0]))
        return minute._replace(
            path=1000 + np.rint(50 * way).astype(np.int64), volume=minute.volume * 100
        )


# What is sent.


class Http(NamedTuple):
    """One request; `terms` become its query or its body, unless `raw` is the body."""

    method: str
    path: str
    terms: Any
    raw: str | None
    headers: dict[str, str]
    good: bool


class Frame(NamedTuple):
    """One frame to a kind of socket."""

    path: str
    data: Any


class Time(NamedTuple):
    """The market goes on."""

    ms: int


class Act(NamedTuple):
    """Something that the venue or the market does by itself."""

    fault: dict[str, Any]


DEEP: Any = []
for _ in range(200):
    DEEP = [DEEP]
ODD: list[Any] = [
    *("", " ", "0", "-0", "-1", "1e-7", "1e15", "1e400", "1e-999999", "NaN", "-sNaN", "Infinity"),
    *("\uff11\uff12", "\u00bd", "\u0663", "1_000", "0x10", "9" * 41, "9" * 5_000, " 100.0 ", "+1"),
    *("null", "true", "\x00", "\u65e5\u672c", "a" * 37, "-" * 36, "%", "%00", "a,b", "\U0001f999"),
    *(0, 1, -1, 100, 2**31, 2**63, 2**64 - 1, -(2**63), 1e308, 5e-324, 1.5, -0.0, 2**70),
    *(True, False, None, [], [[]], {}, {"a": []}, ["1"], [None], DEEP, float("nan")),
]
PRICES = ("95.0", "97", "98.5", "99.5", "99.9", "100.0", "100.1", "100.5", "101.5", "103", "104.9")
PRICES += ("105.0", "99.05", "130", "70", "1e-999999")
OURS = [entry_id(symbol, side, START) for symbol in SYMBOLS for side in ("Buy", "Sell")]
WORDS: dict[str, tuple[Any, ...]] = {
    "category": (*40 * ("linear",), "spot", "inverse", "option"),
    "symbol": (*9 * SYMBOLS[:2], SYMBOLS[2], "NONEUSDT"),
    "side": ("Buy", "Sell"),
    "orderType": ("Limit", "Limit", "Market"),
    "qty": ("1", "1", "2", "2", "5", "10", "30", "0", 3),
    "price": (*PRICES, "0x10"),  # a market order does not mind
    "timeInForce": (*4 * ("GTC", "IOC", "FOK", "PostOnly"), "RPI"),
    "orderLinkId": (*9 * ("",), *"abcdefg", *OURS),
    "its symbol": (*9 * ("@",), *SYMBOLS),
    "orderId": (*5 * ("@0", "@1", "@2"), "@9", "none"),
    "reduceOnly": (False, True, "true"),
    "closeOnTrigger": (False, True),
    "positionIdx": (0, 0, 0, 1, 2),
    "triggerPrice": (*PRICES, "0", ""),
    "triggerDirection": (1, 2, "1", "2"),
    "triggerBy": ("LastPrice", "MarkPrice", "IndexPrice"),
    "takeProfit": (*PRICES, "0", ""),
    "stopLoss": (*PRICES, "0", ""),
    "tpslMode": ("Full", "Partial"),
    "tpOrderType": ("Market", "Limit"),
    "slOrderType": ("Market", "Limit"),
    "tpLimitPrice": PRICES,
    "slLimitPrice": PRICES,
    "tpSize": ("1", "2"),
    "slSize": ("1", "5"),
    "trailingStop": ("0", "5"),
    "buyLeverage": ("10", "10", "10", "3"),
    "sellLeverage": ("10", "10", "10", "3"),
    "mode": (0, 3, "0", "3"),
    "coin": ("USDT", "BTC"),
    "limit": ("1", "2", "50", "0", "-1", "1000"),
    "cursor": ("", "after:3", "after%3AAAAUSDT", "after%253A2"),
    "startTime": ("0", str(START)),
    "endTime": (str(START), str(START + MINUTE_MS)),
    "start": ("0", str(EARLY)),
    "end": (str(START), str(2**62)),
    "interval": ("1", "5", "D"),
    "openOnly": ("0", "1", "2"),
    "orderStatus": ("Filled", "Cancelled"),
    "orderFilter": ("Order", "StopOrder", "OpenOrder"),
    "execType": ("Trade", "Funding"),
    "baseCoin": ("AAA", "BTC"),
    "settleCoin": ("USDT", "USDC"),
    "accountType": ("UNIFIED", "SPOT"),
    "status": ("Trading", "PreLaunch", "Closed"),
    "request": ([], [{}], [None], [DEEP], "request"),
}
NEW = ("category", "symbol", "side", "orderType", "qty", "price", "timeInForce", "orderLinkId")
KNOWN = ("category", "its symbol", "orderId")
STOP = ("triggerPrice", "triggerDirection", "triggerBy")
BRACKET = ("takeProfit", "stopLoss", "tpslMode", "tpOrderType", "tpLimitPrice", "tpSize", "slSize")
PART = ("takeProfit", "tpslMode", "tpOrderType", "tpLimitPrice", "tpSize")
SHAPES: dict[str, tuple[tuple[str, ...], ...]] = {
    "/v5/order/create": (
        *(NEW, NEW, NEW, (*NEW, "reduceOnly"), (*NEW, "reduceOnly"), (*NEW, *STOP)),
        *((*NEW, *STOP, "reduceOnly"), (*NEW, "takeProfit"), (*NEW, "stopLoss"), (*NEW, *PART)),
        *((*NEW, *BRACKET), (*NEW, "positionIdx", "closeOnTrigger", "reduceOnly")),
    ),
    "/v5/order/amend": (
        *((*KNOWN, "price"), (*KNOWN, "qty"), (*KNOWN, "price", "qty"), (*KNOWN, "triggerPrice")),
        *((*KNOWN, "takeProfit"), (*KNOWN, *BRACKET)),
    ),
    "/v5/order/cancel": (KNOWN, ("category", "symbol", "orderId", "orderLinkId")),
    "/v5/order/cancel-all": (("category", "symbol"), ("category", "settleCoin", "orderFilter")),
    "/v5/position/trading-stop": (
        *(("category", "symbol", name) for name in ("takeProfit", "stopLoss", "trailingStop")),
        *(("category", "symbol", *PART), ("category", "symbol", *BRACKET)),
    ),
    "/v5/position/set-leverage": (("category", "symbol", "buyLeverage", "sellLeverage"),),
    "/v5/position/switch-mode": (("category", "symbol", "coin", "mode"),),
}
FINDINGS = (
    *(
        ("category", "symbol"),
        ("category", "symbol", "limit", "cursor"),
        ("category", "settleCoin"),
    ),
    *(("category", "settleCoin", "limit", "cursor", "openOnly"), ("accountType", "coin"), KNOWN),
    *(("category", "symbol", "interval", "start", "end"), ("category", "startTime", "endTime")),
    *(("category", "orderStatus", "orderFilter", "execType", "baseCoin"), ("category", "status")),
)


def a_venue(book: str = "bare", balance: int = 1_000) -> Venue:
    ticker = Ticker(Waves())
    ticker.warm_up(START)
    terms: dict[str, Any] = {"PAPER_RATE_LIMIT": 1_000, "PAPER_IP_LIMIT": 10_000_000}
    terms |= {"PAPER_BOOK": book, "PAPER_BALANCE_USDT": balance}
    return Venue(Settings(_env_file=None, **terms), ticker)


ROUTES = a_venue().api.routes
OFTEN = ("/v5/order/amend", "/v5/order/cancel", "/v5/position/trading-stop")
ASKED = [*sorted(ROUTES), *4 * [("POST", path) for path in OFTEN]]
ASKED += 24 * [("POST", "/v5/order/create")]
FAMILIES = ("kline.1", "tickers", "publicTrade", "orderbook.1", "orderbook.50", "kline.5", "kline")
PRIVATE = ("order", "execution", "execution.fast", "position", "wallet")
TOPICS = [f"{family}.{symbol}" for family in FAMILIES for symbol in (*SYMBOLS[:2], "NONEUSDT")]
TOPICS += [*PRIVATE, "order.linear", "dcp.future"]
ACTS: list[dict[str, Any]] = [
    *({"action": "trade", "price": p, "qty": "40", "queue": "0"} for p in PRICES[:8]),
    *({"action": "fund", "rate": rate} for rate in ("0.0001", "-0.00123456789")),
    *({"action": "mark_offset", "pct": pct} for pct in (0, 0, 3, -3)),
    *({"action": "adl", "qty": qty} for qty in ("1", "3")),
    *({"action": "balance", "amount": amount} for amount in ("0.000001", "-5", "1000")),
    *({"action": "foreign_fill", "side": side, "qty": "1"} for side in ("Buy", "Sell")),
    *({"action": "account_change", "leverage": leverage} for leverage in (1, 7, 33.33)),
    *({"action": action} for action in ("liquidate", "delist", "list", "hold")),
    *({"where": "match", "action": "gap", "pct": pct} for pct in (-2, 2)),
    *({"where": "match", "action": "partial", "share": share} for share in ("0.5", "0.001")),
    *({"where": "match", "action": f"fill_before_{verb}"} for verb in ("cancel", "amend")),
    {"where": "match", "action": "reject_after_ack"},
]


class Chance(random.Random):
    """The steps of a client that may be anything between careful and mad."""

    def one_in(self, number: int) -> bool:
        return not self.randrange(number)

    def word(self) -> str:
        """Any text."""
        if self.one_in(2):
            return self.choice([value for value in ODD if isinstance(value, str)])
        return "".join(map(chr, self.choices(CHARACTERS, k=self.randrange(12))))

    def thing(self, depth: int = 3) -> Any:
        """Any JSON."""
        if depth and self.one_in(4):
            return [self.thing(depth - 1) for _ in range(self.randrange(4))]
        if depth and self.one_in(4):
            return {self.word(): self.thing(depth - 1) for _ in range(self.randrange(4))}
        numbers = (self.getrandbits(70) - 2**69, self.uniform(-1e9, 1e9), self.randrange(9))
        return self.choice((self.word(), self.choice(ODD), self.choice(numbers)))

    def bytes_as_text(self) -> str:
        """What no decoder likes, as the server hands it on."""
        return self.randbytes(self.randrange(60)).decode(errors="surrogateescape")

    def terms(self, path: str) -> Any:
        """A request as a client would write it; one of five has members that nobody would write."""
        shape = self.choice(SHAPES.get(path.removesuffix("-batch"), FINDINGS))
        if path.endswith("-batch"):
            one = path.removesuffix("-batch")
            made = [self.terms(one) for _ in range(self.randrange(4))]
            made = (
                made * 7 if self.one_in(9) else [*made, *([self.thing()] if self.one_in(5) else [])]
            )
            return {"category": "spot" if self.one_in(9) else "linear", "request": made}
        found = {name.removeprefix("its "): self.choice(WORDS[name]) for name in shape}
        if self.one_in(5):
            for _ in range(self.randrange(1, 3)):
                name = self.choice((*shape, *shape, self.choice(list(WORDS)), self.word()))
                found[name] = self.choice((self.thing(), self.choice(ODD)))
            if self.one_in(3):
                found.pop(self.choice(list(found)))
        return found

    def http(self) -> Http:
        """Any endpoint, mostly asked as it should be."""
        method, path = self.choice(ASKED)
        raw, headers, terms = None, {}, self.terms(path)
        how = self.randrange(30)
        if how == 0:
            raw = self.bytes_as_text()
        elif how == 1:
            raw = self.choice(("{", "[]", "5", "null", '{"a":1e999}', "[" * 5_000, '"\\ud800"'))
        elif how == 2:
            terms = {self.word(): self.thing() for _ in range(4)}
        elif how == 3:
            name = "X-BAPI-" + self.choice(("API-KEY", "TIMESTAMP", "RECV-WINDOW", "SIGN"))
            headers = {
                name: self.choice((self.word(), self.bytes_as_text(), "-1", "", "1" * 5_000))
            }
        elif how == 4:
            method = self.choice(("GET", "POST", "PUT", "DELETE", "HEAD", "\u00c4"))
            path = self.choice((path, path + "/", path.upper(), "/v5/private", "/" + self.word()))
        return Http(method, path, terms, raw, headers, not self.one_in(20))

    def frame(self) -> Frame:
        """Any op on any kind of socket, mostly as it should be."""
        path, how = self.choice((*KINDS, "/v5/trade")), self.randrange(20)
        if how == 0:
            return Frame(path, self.choice((self.randbytes(40), self.word(), "[" * 5_000, "{")))
        if how == 1:
            return Frame(path, self.thing())
        ids = (*9 * (self.randrange(10**6),), "x", "\u00e9" * 36, "y" * 37, None, self.thing())
        frame = {name: self.choice(ids) for name in ("req_id", "reqId") if self.one_in(2)}
        if KINDS[path] == "trade" and not self.one_in(6):
            frame["op"] = self.choice((*ORDER_OPS, *6 * ["order.create"], "order.cancel-all"))
            frame["header"] = {"X-BAPI-TIMESTAMP": "now", "X-BAPI-RECV-WINDOW": "5000"}
            frame["args"] = [self.terms(ORDER_OPS.get(frame["op"], "/v5/order/cancel-all"))]
        else:
            frame["op"] = self.choice(("subscribe", "subscribe", "unsubscribe", "ping", "auth"))
            frame["args"] = "@auth" if frame["op"] == "auth" else self.choices(TOPICS, k=how % 3)
        if how == 2:
            frame["args"] = self.choice((self.thing(), [*frame["args"], self.thing()]))
        elif how == 3:
            frame[self.choice(("op", "header", "reqId", self.word()))] = self.thing()
        return Frame(path, frame)

    def step(self) -> Http | Frame | Time | Act:
        """Mostly a client's, sometimes the market's."""
        kind = self.randrange(10)
        if kind < 8:
            return self.http() if kind < 4 else self.frame()
        if kind == 8:
            return Time(self.choice((1, 40, 999, 2_000, 30_000, 61_000)))
        return Act({"where": "venue", "symbol": self.choice(SYMBOLS), **self.choice(ACTS)})


def session_of(seed: int, kept: list[bool]) -> list[Http | Frame | Time | Act]:
    """Those steps of a session that are kept: one that fails shrinks to the few that matter."""
    return [Chance(f"{seed} {place}").step() for place, keep in enumerate(kept) if keep]


CHARACTERS = [*range(0xD800), *range(0xE000, 0x11000)] + 500 * list(range(0x80))
some = st.lists(st.booleans(), min_size=STEPS, max_size=STEPS)
sessions = st.builds(session_of, st.integers(0, 2**24 - 1), some)


# What must hold.


class Client:
    """A venue, three sockets, and a look at everything that comes out of them."""

    def __init__(self, venue: Venue, counts: Counter[str]) -> None:
        self.venue, self.counts, self._ms = venue, counts, START
        self._sockets: dict[str, Any] = {}
        for path in KINDS:
            self._connect(path)

    def take(self, step: Any) -> None:
        """One step, and all that must hold after it."""
        {Http: self._http, Frame: self._frame, Time: self._time, Act: self._act}[type(step)](step)
        self._listen()
        self._balance()

    def _now(self) -> Any:
        return self.venue.at(self._ms, self._ms, self._ms / 1000)

    def _http(self, asked: Http) -> None:
        self.counts["requests"] += 1
        self._ms += 25
        terms, query, body = self._resolved(asked.terms), "", ""
        if asked.method == "GET":
            terms = {name: str(value) for name, value in terms.items()}
            query = urlencode(terms, errors="surrogateescape")
        else:
            body = json.dumps(terms) if asked.raw is None else asked.raw
        payload = query if asked.method == "GET" else body
        stamp, secret = str(self._ms), PAPER_SECRET if asked.good else "wrong"
        head = {"X-BAPI-API-KEY": PAPER_KEY, "X-BAPI-TIMESTAMP": stamp}
        head["X-BAPI-SIGN"] = signature(f"{stamp}{PAPER_KEY}5000{payload}", secret)
        head = {k: v for k, v in (head | asked.headers).items() if v}
        before = self.venue.digest()
        sent = Request(asked.method, asked.path, query, terms, head, body)
        answer = self.venue.http(sent, self._now())
        assert not (answer.drop or answer.truncate)
        assert all(isinstance(text, str) for pair in answer.headers.items() for text in pair)
        if answer.status != 200:
            assert answer.status in DOCUMENTED
            assert self.venue.digest() == before
            self.counts[f"HTTP {answer.status}"] += 1
            return
        assert len(answer.body) < LONGEST
        found = orjson.loads(answer.body)
        assert {name: type(value) for name, value in found.items()} == ENVELOPE
        self.counts[f"retCode {found['retCode']}"] += 1
        if asked.method == "GET" or (found["retCode"] and not self.venue.faults.rules):
            assert self.venue.digest() == before  # neither a look nor a refusal changes anything

    def _frame(self, sent: Frame) -> None:
        self.counts["frames"] += 1
        self._ms += 25
        self._listen()  # so that what comes now is the answer
        session, data = self._sockets[sent.path], self._resolved(sent.data)
        text = data if isinstance(data, bytes) else json.dumps(data)
        raw = sent.data if isinstance(sent.data, str) else text
        before = self.venue.digest()
        self.venue.sessions.heard(session, raw, self._now())
        heard = [orjson.loads(frame) for at_s, frame in session.outbox]
        (answer,) = [frame for frame in heard if "topic" not in frame]
        said = orjson.loads(text) if isinstance(data, dict) and is_json(text) else {}
        for name in ("req_id", "reqId"):
            if name in answer:
                assert answer[name] == said[name]
        code = answer.get("retCode", 0 if answer.get("success", True) else answer["ret_msg"])
        self.counts[f"{KINDS[sent.path]} {str(code).partition(',')[0]}"] += 1
        if code and not self.venue.faults.rules:
            assert self.venue.digest() == before

    def _time(self, step: Time) -> None:
        self._ms += step.ms
        while not self.venue.advance(self._now()):
            pass

    def _act(self, step: Act) -> None:
        """Not what a client does: the market, or an operator, beside it."""
        with contextlib.suppress(BadFault):  # refused, as it would be to a client
            self.venue.control(step.fault, self._now())

    def _listen(self) -> None:
        """Every frame on its way is JSON, and none overtakes another."""
        for path, session in list(self._sockets.items()):
            stamps = [at_s for at_s, _ in session.outbox]
            assert stamps == sorted(stamps)
            for _, frame in session.outbox:
                assert len(frame) < LONGEST
                heard = orjson.loads(frame)
                assert isinstance(heard, dict)
                assert ("topic" in heard and bool(heard["data"])) or "op" in heard
                self.counts["pushes"] += "topic" in heard
            session.outbox.clear()
            if session.close_code:
                self.venue.sessions.disconnect(session)
                self._connect(path)
        self.venue.sessions.dirty.clear()

    def _balance(self) -> None:
        """The books of the exchange."""
        matching = self.venue.matching
        wallet = matching.wallet
        flows = wallet.flows
        outgoing = flows["fees"] + flows["funding"]
        assert wallet.balance == flows["deposits"] + flows["realised"] - outgoing
        for one in matching.open_orders():
            assert one.left > 0
            assert one.qty == one.filled + one.left
            if one.reduce_only and one.status in RESTING:
                size = wallet.position(one.symbol).size
                assert size < 0 if one.side == BUY else size > 0
        assert not [line for line in self.venue.auditor.lines if line.split()[1] in OWN_RULES]

    def _connect(self, path: str) -> None:
        self._sockets[path] = self.venue.sessions.connect(path, "", self._now())
        if path != "/v5/public/linear":
            self.venue.sessions.heard(
                self._sockets[path], json.dumps({"op": "auth", "args": self._proof()}), self._now()
            )
        args = [f"{family}.{SYMBOLS[0]}" for family in FAMILIES[:5]]
        if path == "/v5/private":
            args = ["order", "execution", "execution.fast", "position", "wallet"]
        ask = json.dumps({"op": "subscribe", "args": args})
        self.venue.sessions.heard(self._sockets[path], ask, self._now())
        self._sockets[path].outbox.clear()

    def _proof(self) -> list[Any]:
        expires = self._ms + 9_000
        return [PAPER_KEY, expires, signature(f"GET/realtime{expires}", PAPER_SECRET)]

    def _resolved(self, terms: Any) -> Any:
        """`@2` is the third newest order, open ones first; `@` its symbol; `@auth` a good proof."""
        if isinstance(terms, list):
            return [self._resolved(value) if isinstance(value, dict) else value for value in terms]
        if not isinstance(terms, dict):
            return terms
        found = dict(terms)
        if str(terms.get("orderId")) in WORDS["orderId"][:-1]:
            matching = self.venue.matching
            orders = [*matching.open_orders(), *matching.closed_orders()]
            place = int(terms["orderId"][1:])
            found["orderId"] = orders[place].order_id if place < len(orders) else "none"
            if terms.get("symbol") == "@":
                found["symbol"] = orders[place].symbol if place < len(orders) else SYMBOLS[0]
        if terms.get("args") == "@auth":
            found["args"] = self._proof()
        elif "args" in terms:
            found["args"] = self._resolved(terms["args"])
        if isinstance(terms.get("header"), dict) and "X-BAPI-TIMESTAMP" in terms["header"]:
            found["header"] = terms["header"] | {"X-BAPI-TIMESTAMP": self._ms}
        if "request" in terms:
            found["request"] = self._resolved(terms["request"])
        return found


def signature(text: str, secret: str) -> str:
    sent = text.encode(errors="surrogatepass")
    return hmac.new(secret.encode(), sent, hashlib.sha256).hexdigest()


def is_json(text: str) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True


def test_nothing_that_a_client_sends_breaks_the_exchange_or_its_books(
    capsys: pytest.CaptureFixture[str],
) -> None:
    counts: Counter[str] = Counter()

    @settings(max_examples=2, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(sessions, st.sampled_from(("bare", "full")), st.sampled_from((1_000, 1_000_000)))
    def session(steps: list[Any], book: str, balance: int) -> None:
        client = Client(a_venue(book, balance), counts)
        for step in steps:
            client.take(step)

    began, first = time.monotonic(), 0 if EXAMPLES == DEFAULT_EXAMPLES else time.time_ns() // 10**6
    for number in range(first, first + EXAMPLES):
        seed(number)(session)()  # two examples: the empty one, and one that is new every time
    with capsys.disabled():
        seen = ", ".join(f"{what} {count}" for what, count in counts.most_common())
        print(
            f"\nfuzz: {EXAMPLES} sessions from {first} in {time.monotonic() - began:.1f} s: {seen}"
        )
    least = LEAST * min(1, EXAMPLES / DEFAULT_EXAMPLES)
    assert counts["requests"] >= least
    assert counts["frames"] >= least


# Over a real socket: what never gets as far as the venue, or should not.


def half(method: str = "GET", path: str = "/v5/market/time", *lines: str) -> bytes:
    """A request without its empty line."""
    return "\r\n".join((f"{method} {path} HTTP/1.1", "Host: x", *lines, "")).encode(
        errors="surrogateescape"
    )


def whole(*parts: str, body: bytes = b"") -> bytes:
    return half(*parts) + b"\r\n" + body


UPGRADE = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13")
SIGNED = ("X-BAPI-TIMESTAMP: 1", "X-BAPI-SIGN: \udcff\udcfe")
CREATE = ("POST", "/v5/order/create", f"X-BAPI-API-KEY: {PAPER_KEY}", *SIGNED)
NOISE = random.Random(1).randbytes(3_000)
RAW = {
    "noise": NOISE,
    "zeros": bytes(5_000),
    "hello of TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + NOISE[:500],
    "another protocol": b"*1\r\n$4\r\nPING\r\n",
    "no version": b"GET /v5/market/time\r\n\r\n",
    "half a line": b"GET /v5/mar",
    "half a request": half(),
    "half a body": whole(*CREATE, "Content-Length: 500", body=b'{"category":'),
    "negative length": whole("POST", "/v5/order/create", "Content-Length: -5"),
    "two lengths": whole("POST", "/v5/order/create", "Content-Length: 5", "Content-Length: 6"),
    "bad chunks": whole(*CREATE, "Transfer-Encoding: chunked", body=b"zz\r\n{}\r\n0\r\n\r\n"),
    "long header": whole("GET", "/v5/market/time", "X: " + "y" * 100_000),
    "long path": whole("GET", "/" + "y" * 100_000),
    "many headers": whole("GET", "/v5/market/time", *(f"X-{n}: y" for n in range(5_000))),
    "long body": whole(*CREATE, "Content-Length: 3000000", body=b"y" * 3_000_000),
    "body of no text": whole(*CREATE, "Content-Length: 300", body=NOISE[:300]),
    "query of no text": whole("GET", "/v5/market/kline?symbol=\udcff%ff%&%zz=\udcfe&interval=1"),
    "path of no text": whole("GET", "/v5/\udcff/%ff/%00/%zz"),
    "no upgrade": whole("GET", "/v5/private"),
    "upgrade without a key": whole("GET", "/v5/private", *UPGRADE),
    "upgrade with a bad key": whole("GET", "/v5/trade", *UPGRADE, "Sec-WebSocket-Key: AAAA"),
    "upgrade and noise": whole("GET", "/v5/trade", *UPGRADE, f"Sec-WebSocket-Key: {'A' * 22}==")
    + NOISE,
}


def ws_frame(opcode: int, data: bytes, fin: int = 0x80) -> bytes:
    """A masked frame, as a client must send it, with a mask of zeros."""
    size = len(data)
    length = bytes((0x80 | size,)) if size < 126 else b"\xff" + size.to_bytes(8, "big")
    return bytes((fin | opcode,)) + length + bytes(4) + data


TEXT, BINARY, CLOSE, PING = 1, 2, 8, 9
BORNE = {
    "binary JSON": ws_frame(BINARY, b'{"op":"ping"}'),
    "binary noise": ws_frame(BINARY, NOISE),
    "in two parts": ws_frame(TEXT, b'{"op":', 0) + ws_frame(0, b'"ping"}'),
    "no JSON": ws_frame(TEXT, b"\x00" * 1_000),
    "too many topics": ws_frame(
        TEXT, b'{"op":"subscribe","args":[' + b'"kline.1.AAAUSDT",' * 40_000 + b"1]}"
    ),
}
NOT_BORNE = {
    "text that is none": ws_frame(TEXT, NOISE),
    "too long": ws_frame(TEXT, b"y" * 2_000_000),
    "no such opcode": ws_frame(5, b"{}"),
    "reserved bits": ws_frame(TEXT, b"{}", 0xF0),
    "a long ping": ws_frame(PING, b"y" * 126),
    "a part of a ping": ws_frame(PING, b"y", 0),
    "a close of one byte": ws_frame(CLOSE, b"\x03"),
    "a close with a bad code": ws_frame(CLOSE, b"\x00\x01"),
    "half a frame, then gone": ws_frame(TEXT, b"y" * 100)[:-90],
}


ENDED = (websocket.WebSocketConnectionClosedException, ConnectionError)
THE_CLIENTS = (HttpProcessingError, ConnectionResetError)  # errors that are not the exchange's


@pytest.fixture
def paper(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Iterator[tuple[Served, Venue]]:
    """A running exchange and the venue inside it; no handler may have failed in the end."""
    venues: list[Venue] = []

    def remember(*args: Any) -> Venue:
        venues.append(venue_of(*args))
        return venues[0]

    monkeypatch.setattr(test_paper, "venue_of", remember)
    with test_paper.serve(tmp_path) as served:
        yield served, venues[0]
        assert served.signed("POST", "/v5/order/create", json.dumps(order())).json()["retCode"] == 0
        with served.socket("private") as wire:
            assert wire.ask({"op": "subscribe", "args": ["order"]})["success"]
        deadline = time.monotonic() + SECONDS
        while venues[0].sessions.open and time.monotonic() < deadline:
            time.sleep(0.005)
        assert not venues[0].sessions.open
    raised = [record.exc_info[1] for record in caplog.records if record.exc_info]
    assert not [error for error in raised if not isinstance(error, THE_CLIENTS)]
    assert venues[0].auditor.breaches == 0


@pytest.mark.parametrize("hang_up", [True, False], ids=["and hangs up", "and waits"])
def test_what_is_no_request_ends_nothing(paper: tuple[Served, Venue], hang_up: bool) -> None:
    served, venue = paper
    open_ones = []
    for sent in RAW.values():
        connection = socket.create_connection(("127.0.0.1", served.port), SECONDS)
        with contextlib.suppress(ConnectionError):  # the exchange may hang up first
            connection.sendall(sent)
        if hang_up:
            connection.close()
        else:
            open_ones.append(connection)
        found = requests.get(f"{served.rest}/v5/market/time", timeout=SECONDS)
        assert found.json()["retCode"] == 0
    for connection in open_ones:
        connection.close()
    assert not venue.matching.orders


@pytest.mark.parametrize("kind", ["public/linear", "private", "trade"])
def test_a_bad_frame_ends_its_own_connection_at_most(
    paper: tuple[Served, Venue], kind: str
) -> None:
    served, _ = paper
    with served.socket(kind) as other:
        with served.socket(kind) as wire:
            for what, sent in BORNE.items():
                wire.connection.sock.sendall(sent)
                assert "op" in wire.next(), what
                assert wire.ask({"op": "ping"})["op"] in ("ping", "pong"), what
        for what, sent in NOT_BORNE.items():
            with served.socket(kind) as wire, pytest.raises(ENDED):
                wire.connection.sock.sendall(sent)
                if "gone" in what:
                    wire.connection.sock.shutdown(socket.SHUT_WR)
                assert not wire.connection.recv(), what  # a close frame, then the end
                wire.connection.recv()
            assert other.ask({"op": "ping"})["op"] in ("ping", "pong"), what
