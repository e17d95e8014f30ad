"""venue: the whole exchange by calls alone: what it says, when, to whom, and that it adds up."""

import hashlib
import hmac
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.paper.faults import BadFault
from services.paper.gate import Now
from services.paper.journal import Journal
from services.paper.market import MINUTE_MS, POINTS, Feed, Listing, Minute, Synthetic
from services.paper.order import Row
from services.paper.server import venue_of
from services.paper.ticker import Ticker
from services.paper.venue import Request, Response, Venue
from shared.settings import PAPER_KEY, PAPER_SECRET, Settings

START = 1_699_977_600_000  # 2023-11-14 16:00 UTC: on the hour, and funding time
SYMBOL, OTHER, THIRD = SYMBOLS = ("AAAUSDT", "BBBUSDT", "CCCUSDT")
MAKER, TAKER = Decimal("0.0002"), Decimal("0.00055")
ROOT = Path(__file__).parents[1]
DAY_S = 86_400


class Flat:
    """A market without end in which every price is 100.0, always; 6 coins a minute."""

    def __init__(self, funding_min: int = 480) -> None:
        grid = (Decimal("0.1"), Decimal(1), Decimal(1), Decimal(10_000), funding_min)
        self.listings = [Listing(symbol, *grid) for symbol in SYMBOLS]
        self._next_ms = START - 3 * MINUTE_MS

    def skip_to(self, at_ms: int) -> None:
        pass

    def next(self) -> Minute | None:
        at_ms, self._next_ms = self._next_ms, self._next_ms + MINUTE_MS
        shape = (POINTS, len(SYMBOLS))
        return Minute(at_ms, np.full(shape, 1000, np.int64), np.full(len(SYMBOLS), 6.0))


def synthetic(count: int, seed: int = 1) -> Feed:
    return Synthetic(count, seed, START - 5 * MINUTE_MS, 12.0)


class Wire:
    """One websocket, without the socket."""

    def __init__(self, desk: "Desk", path: str, max_active: str = "") -> None:
        self.desk = desk
        session = desk.venue.sessions.connect(path, max_active, desk.now)
        assert session is not None
        self.session = session

    def send(self, frame: Any) -> None:
        self.desk.venue.sessions.heard(self.session, json.dumps(frame), self.desk.now)

    def timed(self) -> list[tuple[float, Any]]:
        """All that was said since the last look, and when it leaves."""
        frames, self.session.outbox[:] = list(self.session.outbox), []
        return [(at_s, json.loads(frame)) for at_s, frame in frames]

    def heard(self, topic: str = "") -> list[Any]:
        """What was said, or the pushes of one topic."""
        return [f for _, f in self.timed() if not topic or f.get("topic") == topic]

    def ask(self, frame: Any) -> Any:
        """The answer; pushes before it are dropped."""
        self.send(frame)
        return next(f for f in self.heard() if "topic" not in f)


class Desk:
    """A venue and its clocks, all at the same speed; requests are signed.

    With a journal its account outlives it, and begins where the journal ends.
    """

    def __init__(
        self,
        feed: Feed | None = None,
        journal: Journal | None = None,
        at_ms: int = 0,
        **changes: Any,
    ) -> None:
        terms = {"PAPER_RATE_LIMIT": 100_000, "PAPER_IP_LIMIT": 10_000_000, "PAPER_BOOK": "bare"}
        config = Settings(_env_file=None, **terms | changes)
        ticker = Ticker(feed or Flat(), config.PAPER_TICKS)
        ticker.warm_up(START + at_ms)
        self.kept: list[tuple[str, Row]] = []
        if journal:
            self.venue = venue_of(config, ticker, journal, START, START + at_ms)
        else:
            self.venue = Venue(config, ticker, lambda pushes, now_ms: self.kept.extend(pushes))
        self.matching = self.venue.matching
        self.at_ms = at_ms
        self.headers: dict[str, str] = {}

    @property
    def now(self) -> Now:
        return self.venue.at(START + self.at_ms, START + self.at_ms, self.at_ms / 1000)

    def run(self, seconds: float) -> None:
        """Let time and the market go on."""
        self.at_ms += round(seconds * 1000)
        while not self.venue.advance(self.now):
            pass

    def raw(self, method: str, path: str, payload: str, **headers: str) -> Response:
        """One signed request, and the whole answer."""
        stamp = str(self.now.wall_ms)
        head = {
            "X-BAPI-API-KEY": PAPER_KEY,
            "X-BAPI-TIMESTAMP": stamp,
            "X-BAPI-RECV-WINDOW": "5000",
            "X-BAPI-SIGN": sign(f"{stamp}{PAPER_KEY}5000{payload}"),
        } | headers
        query, body = (payload, "") if method == "GET" else ("", payload)
        pairs = [pair.partition("=") for pair in query.split("&") if pair]
        request = Request(method, path, query, {k: v for k, _, v in pairs}, head, body)
        return self.venue.http(request, self.now)

    def answer(self, response: Response) -> Any:
        assert response.status == 200
        self.headers = response.headers
        return json.loads(response.body)

    def post(self, path: str, **params: Any) -> Any:
        body = json.dumps({"category": "linear", **params})
        return self.answer(self.raw("POST", path, body))

    def get(self, path: str, **params: Any) -> Any:
        """`result` of a read that must succeed."""
        query = "&".join(f"{k}={v}" for k, v in ({"category": "linear"} | params).items())
        body = self.answer(self.raw("GET", path, query))
        assert body["retCode"] == 0, body
        return body["result"]

    def list(self, path: str, **params: Any) -> list[Any]:
        found: list[Any] = self.get(path, **params)["list"]
        return found

    def create(self, **change: Any) -> Any:
        return self.post("/v5/order/create", **order(**change))

    def made(self, **change: Any) -> str:
        """The orderId of an order that must be accepted."""
        body = self.create(**change)
        assert body["retCode"] == 0, body
        return str(body["result"]["orderId"])

    def cancel(self, link: str, symbol: str = SYMBOL) -> Any:
        return self.post("/v5/order/cancel", symbol=symbol, orderLinkId=link)

    def fault(self, where: str, action: str, **terms: Any) -> Any:
        return self.venue.control({"where": where, "action": action, **terms}, self.now)

    def trade(self, price: Any, qty: Any = 1, symbol: str = SYMBOL) -> None:
        """A trade of the market, at once."""
        self.fault("venue", "trade", symbol=symbol, price=str(price), qty=str(qty))

    def hold(self, *symbols: str) -> None:
        """Their prices stand still but for `trade`."""
        for symbol in symbols or SYMBOLS:
            self.fault("venue", "hold", symbol=symbol)

    def public(self, *topics: str) -> Wire:
        wire = Wire(self, "/v5/public/linear")
        wire.send({"op": "subscribe", "args": list(topics)})
        return wire

    def private(self, *topics: str) -> Wire:
        wire = Wire(self, "/v5/private")
        assert wire.ask(auth_frame(self.now))["success"]
        assert wire.ask({"op": "subscribe", "args": list(topics)})["success"]
        return wire

    def trader(self) -> Wire:
        """A trade socket."""
        wire = Wire(self, "/v5/trade")
        assert wire.ask(auth_frame(self.now))["retCode"] == 0
        return wire

    def order_op(self, op: str, req_id: Any, **args: Any) -> Any:
        stamp = self.now.wall_ms
        header = {"X-BAPI-TIMESTAMP": stamp, "X-BAPI-RECV-WINDOW": "5000"}
        body = {"category": "linear", **args}
        return {"op": op, "reqId": req_id, "header": header, "args": [body]}

    @property
    def balance(self) -> Decimal:
        return self.matching.wallet.balance


def sign(text: str) -> str:
    return hmac.new(PAPER_SECRET.encode(), text.encode(), hashlib.sha256).hexdigest()


def auth_frame(now: Now) -> Any:
    expires = now.wall_ms + 9_000
    return {"op": "auth", "args": [PAPER_KEY, expires, sign(f"GET/realtime{expires}")]}


def order(**change: Any) -> dict[str, Any]:
    """A Limit Buy of 1 at 99.0, which rests; None takes a field away."""
    terms = {"symbol": SYMBOL, "side": "Buy", "orderType": "Limit", "qty": "1", "price": "99.0"}
    return {name: value for name, value in (terms | change).items() if value is not None}


def taking(**change: Any) -> dict[str, Any]:
    """A Market Buy of 1, which trades at once."""
    return order(**{"orderType": "Market", "price": None} | change)


def only(rows: list[Any]) -> Any:
    assert len(rows) == 1, rows
    return rows[0]


@pytest.fixture
def desk() -> Desk:
    return Desk()


# A day of a random trader: whatever it does, the account adds up.


class Trader:
    """Somebody who does all that can be done to an account, by seed; `trouble` is how often."""

    def __init__(self, desk: Desk, seed: int, trouble: int = 0) -> None:
        self.desk, self.random, self.codes = desk, Random(seed), Counter[int]()
        self.symbols, self.number = desk.venue.public.symbols, 0
        self.habits: list[tuple[Callable[[], Any], int]] = [
            *((self.rest, 30), (self.take, 8), (self.reduce, 12), (self.bracketed, 8)),
            *((self.wait, 5), (self.protect, 5), (self.amend, 10), (self.cancel, 12)),
            *((self.batch, 3), (self.cancel_all, 1), (self.lever, 1), (self.read, 5)),
            (self.trouble, trouble),
        ]

    def act(self) -> None:
        """One habit; a refusal is as good as any other answer."""
        habits, weights = zip(*self.habits, strict=True)
        body = self.random.choices(habits, weights)[0]()
        if body is not None:
            self.codes[body["retCode"]] += 1

    def _price(self, symbol: str, most: float, way: int = 0) -> str:
        """A price on the grid within `most` of the last one, on one side of it or on both."""
        last = self.desk.matching.last[symbol]
        tick = self.desk.matching.listings[symbol].tick_size
        share = self.random.uniform(0, most) * (way or self.random.choice((-1, 1)))
        return f"{max(last * (1 + Decimal(share)) // tick, Decimal(1)) * tick:f}"

    def _qty(self, symbol: str) -> str:
        """Worth 10 to 100 USDT."""
        listing, last = self.desk.matching.listings[symbol], self.desk.matching.last[symbol]
        steps = int(Decimal(self.random.uniform(10, 100)) / last / listing.qty_step)
        return f"{max(steps * listing.qty_step, listing.min_order_qty):f}"

    def _terms(self, **more: Any) -> dict[str, Any]:
        symbol = more.get("symbol") or self.random.choice(self.symbols)
        self.number += 1
        link = self.random.choice(("", f"t{self.number}"))
        terms = {"symbol": symbol, "side": self.random.choice(("Buy", "Sell")), "orderLinkId": link}
        return terms | {"qty": self._qty(symbol)} | more

    def _limit(self, most: float = 0.004) -> dict[str, Any]:
        terms = self._terms()
        force = self.random.choice(("GTC", "GTC", "PostOnly", "PostOnly", "IOC", "FOK"))
        price = self._price(terms["symbol"], most)
        return terms | {"orderType": "Limit", "price": price, "timeInForce": force}

    def _stops(self, symbol: str, side: str) -> dict[str, Any]:
        """Take profit and stop loss around the last price, of either mode."""
        up = 1 if side == "Buy" else -1
        terms = {"takeProfit": self._price(symbol, 0.006, up)}
        terms |= {"stopLoss": self._price(symbol, 0.006, -up)}
        mode = self.random.choice(("Full", "Partial"))
        if mode == "Partial" and self.random.random() < 0.5:
            terms |= {"tpOrderType": "Limit", "tpLimitPrice": terms["takeProfit"]}
        return terms | {"tpslMode": mode}

    def rest(self) -> Any:
        return self.desk.post("/v5/order/create", **self._limit())

    def take(self) -> Any:
        return self.desk.post("/v5/order/create", **self._terms(orderType="Market"))

    def bracketed(self) -> Any:
        terms = self._limit() | {"timeInForce": "GTC"}
        if self.random.random() < 0.4:
            terms |= {"orderType": "Market", "timeInForce": "IOC"}
        stops = self._stops(terms["symbol"], terms["side"])
        return self.desk.post("/v5/order/create", **terms, **stops)

    def reduce(self) -> Any:
        held = self.desk.matching.wallet.held()
        if not held:
            return None
        symbol = self.random.choice(held)
        size = self.desk.matching.wallet.position(symbol).size
        way = 1 if size > 0 else -1
        terms = self._terms(symbol=symbol, side="Sell" if size > 0 else "Buy", reduceOnly=True)
        if self.random.random() < 0.5:
            terms |= {"qty": f"{abs(size):f}", "orderType": "Market"}
        else:
            price = self._price(symbol, 0.003, way)
            terms |= {"orderType": "Limit", "price": price, "timeInForce": "PostOnly"}
        return self.desk.post("/v5/order/create", **terms)

    def wait(self) -> Any:
        terms = self._limit() | {"timeInForce": "GTC"}
        way = self.random.choice((1, -1))
        terms |= {"triggerPrice": self._price(terms["symbol"], 0.004, way)}
        terms |= {"triggerDirection": 1 if way > 0 else 2}
        terms |= {"triggerBy": self.random.choice(("LastPrice", "MarkPrice"))}
        return self.desk.post("/v5/order/create", **terms)

    def protect(self) -> Any:
        held = self.desk.matching.wallet.held()
        if not held:
            return None
        symbol = self.random.choice(held)
        size = self.desk.matching.wallet.position(symbol).size
        terms = self._stops(symbol, "Buy" if size > 0 else "Sell")
        if terms["tpslMode"] == "Partial":
            terms |= {"tpSize": f"{abs(size):f}", "slSize": f"{abs(size):f}"}
        elif self.random.random() < 0.3:
            terms["takeProfit"] = "0"
        return self.desk.post("/v5/position/trading-stop", symbol=symbol, **terms)

    def _open(self) -> dict[str, Any] | None:
        found = self.desk.matching.open_orders()
        if not found:
            return None
        one = self.random.choice(found)
        return {"symbol": one.symbol, "orderId": one.order_id}

    def amend(self) -> Any:
        key = self._open()
        if key is None:
            return None
        what = self.random.choice(("price", "qty", "takeProfit"))
        value = self._qty(key["symbol"]) if what == "qty" else self._price(key["symbol"], 0.004)
        return self.desk.post("/v5/order/amend", **key, **{what: value})

    def cancel(self) -> Any:
        key = self._open()
        return key and self.desk.post("/v5/order/cancel", **key)

    def batch(self) -> Any:
        request = [self._limit() for _ in range(3)]
        return self.desk.post("/v5/order/create-batch", request=request)

    def cancel_all(self) -> Any:
        return self.desk.post("/v5/order/cancel-all", symbol=self.random.choice(self.symbols))

    def lever(self) -> Any:
        much = str(self.random.choice((5, 10, 20)))
        terms = {"symbol": self.random.choice(self.symbols)}
        return self.desk.post(
            "/v5/position/set-leverage", **terms, buyLeverage=much, sellLeverage=much
        )

    def read(self) -> Any:
        paths = ("order/realtime", "order/history", "execution/list", "position/list")
        path = f"/v5/{self.random.choice(paths)}"
        return self.desk.answer(self.desk.raw("GET", path, "category=linear&settleCoin=USDT"))

    def trouble(self) -> None:
        """Something of the venue's that no order of ours has asked for."""
        symbol, side = self.random.choice(self.symbols), self.random.choice(("Buy", "Sell"))
        terms = self._terms(symbol=symbol)
        where, action, more = self.random.choice(TROUBLES)
        if action in ("foreign_order", "foreign_fill"):
            more = {"side": side, "qty": terms["qty"]}
        if action == "foreign_order":
            more |= {"price": self._price(symbol, 0.004)}
        if action == "gap":
            more = {"pct": self.random.choice((-2, -1, 1, 2))}
        try:
            self.desk.fault(where, action, symbol=symbol, **more)
        except BadFault:
            self.codes[-1] += 1  # nothing to close, say


TROUBLES: list[tuple[str, str, dict[str, Any]]] = [
    *(("match", name, {}) for name in ("partial", "fill_before_cancel", "fill_before_amend")),
    *(("match", name, {}) for name in ("reject_after_ack", "gap")),
    *(("venue", name, {}) for name in ("adl", "liquidate", "foreign_order", "foreign_fill")),
    *(("venue", name, {}) for name in ("delist", "list", "list")),
    *(("venue", "balance", {"amount": amount}) for amount in ("-7", "9")),
    *(("venue", "mark_offset", {"pct": pct}) for pct in (-2, 0, 3)),
    ("venue", "fund", {"rate": "0.001"}),
]


class Books:
    """What a client can add up from the private stream."""

    def __init__(self) -> None:
        self.sums, self.kinds = Counter[str](), Counter[str]()
        self.realised = self.fees = self.funding = Decimal(0)
        self.sizes: dict[str, Decimal] = {}
        self.filled: dict[str, Decimal] = {}
        self.ids: set[str] = set()
        self.orders: dict[str, Row] = {}
        self.balance = Decimal(0)

    def hear(self, frames: list[Any]) -> None:
        for frame in frames:
            for row in frame.get("data", ()):  # a pong has none
                getattr(self, f"_{frame['topic']}")(row)

    def _order(self, row: Row) -> None:
        self.orders[row["orderId"]] = row
        self.kinds[f"{row['orderStatus']} {row['stopOrderType']}".strip()] += 1

    def _wallet(self, row: Row) -> None:
        self.balance = Decimal(row["totalWalletBalance"])

    def _execution(self, row: Row) -> None:
        assert row["execId"] not in self.ids
        self.ids.add(row["execId"])
        fee, qty = Decimal(row["execFee"]), Decimal(row["execQty"])
        self.kinds[f"{row['execType']} {'maker' if row['isMaker'] else 'taker'}"] += 1
        if row["execType"] == "Funding":
            self.funding += fee
            return
        self.fees += fee
        self.realised += Decimal(row["execPnl"])
        signed = qty if row["side"] == "Buy" else -qty
        self.sizes[row["symbol"]] = self.sizes.get(row["symbol"], Decimal(0)) + signed
        self.filled[row["orderId"]] = self.filled.get(row["orderId"], Decimal(0)) + qty


class Played(NamedTuple):
    """A day that is over."""

    desk: Desk
    trader: Trader
    books: Books


def seeded_day(
    symbols: int, hours: float, seed: int, acts_a_minute: float = 2.0, trouble: int = 0
) -> Played:
    """A random trader on a synthetic market; every minute its private stream is read.

    Raises AssertionError at the first minute in which the account does not add up.
    """
    terms = {"PAPER_SEED": seed, "PAPER_BALANCE_USDT": 100_000, "PAPER_BOOK": "full"}
    desk = Desk(synthetic(symbols, seed), PAPER_SYMBOLS=min(symbols, 2_000), **terms)
    trader, books, due = Trader(desk, seed, trouble), Books(), 0.0
    stream = desk.private("order", "execution", "wallet")
    for _ in range(int(hours * 60)):
        due += acts_a_minute
        acts = int(due)
        for _act in range(acts):
            desk.run(60 / acts)
            trader.act()
        due -= acts
        desk.run(0 if acts else 60)
        books.hear(stream.heard())
        stream.send({"op": "ping"})  # or it is cut
        desk.kept.clear()
        adds_up(desk, books)
    settled(desk, books)
    return Played(desk, trader, books)


def adds_up(desk: Desk, books: Books) -> None:
    """balance = deposits + realised - fees - funding, exactly, by both sides' books."""
    flows = desk.matching.wallet.flows
    assert (flows["realised"], flows["fees"], flows["funding"]) == (
        books.realised,
        books.fees,
        books.funding,
    )
    kept = flows["deposits"] + flows["realised"] - flows["fees"] - flows["funding"]
    assert desk.balance == kept
    assert not books.ids or books.balance == desk.balance
    assert list(desk.venue.auditor.lines) == []


def settled(desk: Desk, books: Books) -> None:
    """Positions and orders are the sum of the fills; nothing is missing and nothing is double."""
    assert {row["execId"] for row in desk.matching.executions} == books.ids
    held = {symbol: desk.matching.wallet.position(symbol).size for symbol in books.sizes}
    assert held == books.sizes
    for order_id, one in desk.matching.orders.items():
        assert Decimal(books.orders[order_id]["cumExecQty"]) == books.filled.get(order_id, 0)
        assert books.orders[order_id]["orderStatus"] == one.status
        assert (one.status == "Filled") == (one.filled == one.qty)
    cost = sum(
        (desk.matching.wallet.position(s).cost * (1 if size > 0 else -1))
        for s, size in held.items()
        if size
    )
    cash = sum(
        Decimal(row["execValue"]) * (-1 if row["side"] == "Buy" else 1)
        for row in desk.matching.executions
        if row["execType"] != "Funding"
    )
    assert cash + cost == books.realised  # bought and sold for, and what is still held
    assert desk.venue.auditor.breaches == 0


def test_a_day_of_everything_adds_up_to_the_last_digit() -> None:
    day = seeded_day(symbols=6, hours=24, seed=11)
    kinds, codes = day.books.kinds, day.trader.codes
    for kind in (
        *("Trade maker", "Trade taker", "Funding taker", "New", "PartiallyFilled", "Filled"),
        *("Cancelled", "Triggered Stop", "Filled TakeProfit", "Filled StopLoss"),
        *("Filled PartialTakeProfit", "Filled PartialStopLoss", "Deactivated TakeProfit"),
    ):
        assert kinds[kind] > 0, kind  # it did happen
    assert codes[0] > 1_000
    assert codes[0] > 9 * (codes.total() - codes[0])  # refusals are few
    assert day.desk.balance != 100_000


def test_minutes_of_500_symbols_add_up() -> None:
    day = seeded_day(symbols=500, hours=0.1, seed=3, acts_a_minute=60)
    assert len(day.books.sizes) > 40


@pytest.mark.parametrize("seed", range(3))
def test_an_hour_of_many_acts_adds_up(seed: int) -> None:
    assert seeded_day(symbols=3, hours=1, seed=seed, acts_a_minute=30).trader.codes[0] > 500


@pytest.mark.parametrize("seed", range(6))
def test_an_hour_in_which_everything_goes_wrong_adds_up(seed: int) -> None:
    day = seeded_day(symbols=4, hours=1, seed=seed, acts_a_minute=20, trouble=40)
    kinds = day.books.kinds
    for kind in ("AdlTrade", "BustTrade", "Delivery", "Funding", "Trade"):
        assert kinds[f"{kind} taker"] > 0, kind
    assert kinds["Rejected"] > 0 and kinds["Cancelled"] > 0
    assert day.desk.matching.wallet.flows["deposits"] != 100_000


# A restart of the process.


def whole(desk: Desk) -> dict[str, Any]:
    """All that a client can read of the account."""
    reads = {
        "open": ("/v5/order/realtime", {"settleCoin": "USDT", "limit": 50}),
        "history": ("/v5/order/history", {"limit": 50}),
        "executions": ("/v5/execution/list", {"limit": 100}),
        "closed": ("/v5/position/closed-pnl", {"limit": 100}),
        "positions": ("/v5/position/list", {"settleCoin": "USDT"}),
        "wallet": ("/v5/account/wallet-balance", {"accountType": "UNIFIED"}),
    }
    return {name: desk.list(path, **terms) for name, (path, terms) in reads.items()}


@pytest.mark.parametrize("seed", range(3))
def test_a_restart_changes_nothing_of_the_account(tmp_path: Path, seed: int) -> None:
    terms: dict[str, Any] = {"PAPER_SEED": seed, "PAPER_BALANCE_USDT": 100_000}
    file = tmp_path / "paper.jsonl"
    desk = Desk(synthetic(3, seed), Journal(file, {}), **terms)
    trader = Trader(desk, seed)
    for _ in range(300):
        desk.run(4)
        trader.act()
    desk.run(60)
    again = Desk(synthetic(3, seed), Journal(file, {}), desk.at_ms, **terms)
    before, after = whole(desk), whole(again)
    assert len(before["open"]) > 5 and len(before["executions"]) == 100 and before["closed"]
    for name in before:
        assert after[name] == before[name], name
    assert again.matching.wallet.flows == desk.matching.wallet.flows
    trader = Trader(again, seed)
    trader.number = 10_000
    for _ in range(100):
        again.run(4)
        trader.act()
    flows = again.matching.wallet.flows
    kept = flows["deposits"] + flows["realised"] - flows["fees"] - flows["funding"]
    assert again.balance == kept
    assert list(again.venue.auditor.lines) == []


def test_funding_that_came_due_while_it_was_down_is_settled(tmp_path: Path) -> None:
    file = tmp_path / "paper.jsonl"
    desk = Desk(Flat(funding_min=2), Journal(file, {}))
    desk.made(**taking(qty="10"))
    desk.run(130)  # the first one is at 2 minutes
    again = Desk(Flat(funding_min=2), Journal(file, {}), at_ms=7 * MINUTE_MS)
    again.run(61)
    rows = again.list("/v5/execution/list", execType="Funding")
    assert [int(row["execTime"]) - START for row in rows] == [n * MINUTE_MS for n in (8, 6, 4, 2)]


# Determinism.


def tape(seed: int, minutes: int = 3) -> str:
    """A hash of every byte that a small, busy and faulty exchange has said, and of when."""
    desk = Desk(synthetic(3, seed), PAPER_SEED=seed, PAPER_BALANCE_USDT=100_000, PAPER_BOOK="full")
    trader, said = Trader(desk, seed), hashlib.sha256()
    symbols = desk.venue.public.symbols
    kinds = ("kline.1", "tickers", "orderbook.50", "publicTrade")
    topics = [f"{kind}.{symbol}" for kind in kinds for symbol in symbols]
    names = ("order", "execution", "position", "wallet", "execution.fast")
    wires = [desk.public(*topics) for _ in range(3)] + [desk.private(*names) for _ in range(3)]
    wires.append(desk.trader())
    desk.fault("ws", "drop", p=0.2)
    desk.fault("ws", "reorder", kind="private", window=3, times=0)
    desk.fault("http", "partial", p=0.1)
    for number in range(minutes * 60):
        desk.run(1)
        trader.act()
        terms = trader._limit()
        wires[-1].send(desk.order_op("order.create", number, **terms))
        said.update(desk.raw("GET", "/v5/order/realtime", "category=linear&settleCoin=USDT").body)
        for wire in wires:
            said.update(repr(wire.session.outbox).encode())
            wire.session.outbox.clear()
    return said.hexdigest() + desk.venue.digest()


def test_the_same_seed_and_calls_give_the_same_bytes_and_another_seed_others() -> None:
    again = [tape(seed) for seed in (5, 5, 6)]
    assert again[0] == again[1]
    assert again[0] != again[2]


def test_the_bytes_are_the_same_in_another_process() -> None:
    """Nothing hangs on hashes of texts or on where objects lie in memory."""
    code = "from tests.test_venue import tape; print(tape(5, 1))"
    told = [
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT, env={"PYTHONHASHSEED": seed}, capture_output=True, check=True, timeout=60,
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert told[0] == told[1] == tape(5, 1).encode() + b"\n"


def test_how_finely_time_is_cut_changes_nothing_of_the_market() -> None:
    def after(steps: list[float]) -> Any:
        desk = Desk(synthetic(3))
        topics = [f"kline.1.{symbol}" for symbol in desk.venue.public.symbols]
        wire = desk.public(*topics)
        for seconds in steps:
            desk.run(seconds)
        return wire.heard()[1:], desk.matching.last

    assert after([0.5] * 240) == after([120]) == after([1, 0.1, 58.9, 59.9, 0.1])


# Funding.


def opened(side: str, qty: int = 10, **terms: Any) -> Desk:
    """A position at 100."""
    desk = Desk(**terms)
    desk.made(**taking(side=side, qty=str(qty)))
    return desk


@pytest.mark.parametrize(
    ("side", "rate", "paid"),
    [
        ("Buy", "0.0001", "0.1"),  # a long pays a rate above 0: 10 * 100 * 0.0001
        ("Sell", "0.0001", "-0.1"),  # which a short receives
        ("Buy", "-0.0003", "-0.3"),
        ("Sell", "-0.0003", "0.3"),
    ],
)
def test_funding_is_paid_or_received(side: str, rate: str, paid: str) -> None:
    desk = opened(side)
    wire = desk.private("execution", "wallet", "position", "execution.fast")
    before = desk.balance
    desk.fault("venue", "fund", symbol=SYMBOL, rate=rate)
    assert desk.balance == before - Decimal(paid)
    frames = {frame["topic"]: frame["data"] for frame in wire.heard()}
    assert set(frames) == {"execution", "wallet", "position"}  # never on execution.fast
    row = only(frames["execution"])
    assert Decimal(row["execFee"]) == Decimal(paid)
    assert Decimal(only(frames["wallet"])["totalWalletBalance"]) == desk.balance
    realised = -10 * 100 * TAKER - Decimal(paid)
    assert Decimal(only(frames["position"])["curRealisedPnl"]) == realised
    rest = only(desk.list("/v5/execution/list", execType="Funding"))
    assert {name: row[name] for name in rest} == rest


def test_a_funding_row_is_as_bybit_writes_it() -> None:
    desk = opened("Sell")
    wire = desk.private("execution")
    desk.fault("venue", "fund", symbol=SYMBOL, rate="0.0001")
    row = only(only(wire.heard("execution"))["data"])
    expected = {
        "execType": "Funding",
        "orderType": "UNKNOWN",
        "stopOrderType": "UNKNOWN",
        "orderPrice": "0",
        "orderQty": "0",
        "leavesQty": "0",
        "closedSize": "0",
        "isMaker": False,
        "side": "Sell",  # of the position
        "execQty": "10",
        "execPrice": "100.0",  # the mark
        "feeRate": "0.0001",
        "orderLinkId": "",
    }
    assert {name: row[name] for name in expected} == expected
    assert Decimal(row["execValue"]) == 1000
    assert len(row["orderId"]) == 36


def test_funding_is_settled_on_time_at_the_rate_that_was_announced() -> None:
    """Every 2 minutes here; what has no position has no funding."""
    desk = Desk(Flat(funding_min=2))
    desk.made(**taking(qty="10"))
    announced = {}
    for _ in range(13):
        desk.run(30)
        row = only(desk.list("/v5/market/tickers", symbol=SYMBOL))
        announced[int(row["nextFundingTime"])] = row["fundingRate"]
    settled_at = [START + n * 2 * MINUTE_MS for n in (3, 2, 1)]  # newest first, 6.5 minutes
    rows = desk.list("/v5/execution/list", execType="Funding")
    assert [int(row["execTime"]) for row in rows] == settled_at
    assert [row["feeRate"] for row in rows] == [announced[at] for at in settled_at]
    assert {row["symbol"] for row in rows} == {SYMBOL}
    past = desk.list("/v5/market/funding/history", symbol=SYMBOL, limit=3)
    assert [int(row["fundingRateTimestamp"]) for row in past] == settled_at
    assert [row["fundingRate"] for row in past] == [announced[at] for at in settled_at]


def test_a_position_that_is_closed_before_the_time_pays_no_funding() -> None:
    desk = Desk(Flat(funding_min=2))
    desk.made(**taking(qty="10"))
    desk.run(119)
    desk.made(**taking(qty="10", side="Sell", reduceOnly=True))
    desk.run(60)
    assert desk.list("/v5/execution/list", execType="Funding") == []


# Liquidation, mark price, price band.


@pytest.mark.parametrize("side", ["Buy", "Sell"])
def test_a_position_is_liquidated_at_its_liquidation_price_and_not_a_tick_before(side: str) -> None:
    """90 at 100 with 1000 USDT: equity meets maintenance (0.5 %) near 89.4 or 110.6."""
    desk = opened(side, 90)
    desk.hold()
    row = only(desk.list("/v5/position/list", symbol=SYMBOL))
    price, way = Decimal(row["liqPrice"]), 1 if side == "Buy" else -1
    assert abs(price - (100 - way * Decimal("10.6"))) < Decimal("0.2")
    desk.made(orderLinkId="rests", symbol=SYMBOL, qty="1", price=f"{80 if way > 0 else 96}.0",
              side="Buy")  # fmt: skip
    desk.made(orderLinkId="other", symbol=OTHER, qty="1", price="99.0")
    wire = desk.private("execution", "order")
    desk.trade(price + way * Decimal("0.1"))
    desk.run(2)
    assert desk.matching.wallet.position(SYMBOL).size == 90 * way
    price -= way * Decimal("0.1")  # it is rounded to the tick before
    desk.trade(price)
    desk.run(2)
    assert desk.matching.wallet.position(SYMBOL).size == 0
    pushes = wire.heard()
    bust = only([r for f in pushes for r in f["data"] if r.get("execType") == "BustTrade"])
    assert (bust["createType"], bust["execQty"], bust["isMaker"]) == ("CreateByLiq", "90", False)
    assert Decimal(bust["execPrice"]) == price
    assert desk.balance >= 0


def test_a_liquidation_ends_the_orders_of_its_symbol() -> None:
    desk = opened("Buy", 90)
    desk.hold()
    desk.made(orderLinkId="rests", price="80.0")
    desk.trade("85.0")
    desk.run(2)
    row = only(desk.list("/v5/order/realtime", orderLinkId="rests"))
    assert (row["orderStatus"], row["cancelType"]) == ("Cancelled", "CancelByPrepareLiq")
    assert desk.balance >= 0  # what is missing, others have paid
    assert desk.venue.auditor.breaches == 0


def test_a_mark_offset_moves_the_mark_and_all_that_follows_it_and_not_the_last_price() -> None:
    desk = opened("Buy")
    desk.fault("venue", "mark_offset", symbol=SYMBOL, pct=3)
    desk.run(1)
    row = only(desk.list("/v5/market/tickers", symbol=SYMBOL))
    assert (row["lastPrice"], Decimal(row["markPrice"])) == ("100.0", 103)
    row = only(desk.list("/v5/position/list", symbol=SYMBOL))
    assert (Decimal(row["markPrice"]), Decimal(row["unrealisedPnl"])) == (103, 30)  # 10 * 3
    wallet = only(desk.list("/v5/account/wallet-balance", accountType="UNIFIED"))
    assert Decimal(wallet["totalEquity"]) == desk.balance + 30
    other = only(desk.list("/v5/market/tickers", symbol=OTHER))
    assert Decimal(other["markPrice"]) == 100


def test_equity_alone_can_be_liquidated_by_the_mark() -> None:
    desk = opened("Buy", 90)
    desk.fault("venue", "mark_offset", symbol=SYMBOL, pct=-12)  # 1000 - 90 * 12 < 0
    desk.run(2)
    assert desk.matching.wallet.held() == []
    row = only(desk.list("/v5/execution/list", execType="BustTrade"))
    assert Decimal(row["execPrice"]) == 88  # 100 * (1 - 0.12)


@pytest.mark.parametrize(
    ("side", "asked", "mark_pct", "becomes"),
    [
        ("Buy", "110.0", 0, "105"),  # 100 * (1 + 0.05)
        ("Buy", "105.0", 0, "105"),
        ("Buy", "104.9", 0, "104.9"),
        ("Sell", "90.0", 0, "95"),  # 100 * (1 - 0.05)
        ("Sell", "110.0", 0, "110"),
        ("Buy", "99.0", -10, "94.5"),  # the mark is 90: 90 * 1.05
        ("Sell", "101.0", 10, "104.5"),  # 110 * 0.95
    ],
)
def test_a_price_beyond_the_limit_is_moved_to_it(
    side: str, asked: str, mark_pct: int, becomes: str
) -> None:
    """Source: futures orders are modified, not rejected (account/set-price-limit)."""
    desk = Desk()
    if mark_pct:
        desk.fault("venue", "mark_offset", symbol=SYMBOL, pct=mark_pct)
    order_id = desk.made(side=side, price=asked, qty="2")
    row = only(desk.list("/v5/order/realtime", orderId=order_id))
    assert Decimal(row["price"]) == Decimal(becomes)


@given(st.integers(900, 1100), st.sampled_from(("Buy", "Sell")), st.booleans())
@settings(max_examples=40, deadline=None)
def test_no_price_of_an_order_is_beyond_the_limit(tenths: int, side: str, market: bool) -> None:
    desk = Desk()
    desk.hold()
    desk.trade(Decimal(tenths) / 10)
    far = {"price": "500.0" if side == "Buy" else "10.0"}
    order_id = desk.made(**(taking(side=side) if market else order(side=side, **far)))
    price = Decimal(only(desk.list("/v5/order/realtime", orderId=order_id))["price"])
    mark = Decimal(tenths) / 10
    assert price <= mark * Decimal("1.05") if side == "Buy" else price >= mark * Decimal("0.95")
    assert abs(price / mark - 1) > Decimal("0.048")  # and the limit is where it should be


def test_a_narrower_price_band_leaves_a_market_order_without_a_counterparty() -> None:
    desk = Desk(PAPER_BOOK="full")
    desk.hold()
    desk.trade("99.9")  # a seller: bid 99.9, ask 100.0
    desk.fault("venue", "price_band", pct="0.05")  # 99.9 * 1.0005 = 99.95, below the ask
    order_id = desk.made(**taking())
    row = only(desk.list("/v5/order/realtime", orderId=order_id))
    assert (row["orderStatus"], row["rejectReason"]) == ("Cancelled", "EC_NoImmediateQtyToFill")


# Public topics.


def test_klines_form_with_every_point_and_close_once() -> None:
    desk = Desk(synthetic(2))
    symbol = desk.venue.public.symbols[0]
    wire = desk.public(f"kline.1.{symbol}")
    desk.run(150)  # two minutes and a half
    frames = wire.heard(f"kline.1.{symbol}")
    rows = [only(frame["data"]) for frame in frames]
    assert {frame["type"] for frame in frames} == {"snapshot"}
    assert [row["start"] for row in rows if row["confirm"]] == [START, START + MINUTE_MS]
    assert len(rows) == 60 + 1 + 60 + 1 + 31  # a point a second, and two closes
    for row, later in pairwise(rows):
        assert row["end"] - row["start"] == MINUTE_MS - 1
        assert float(row["low"]) <= float(row["close"]) <= float(row["high"])
        assert row["timestamp"] <= later["timestamp"]
        if row["start"] == later["start"]:
            assert float(row["high"]) <= float(later["high"])
            assert float(row["low"]) >= float(later["low"])
            assert float(row["volume"]) <= float(later["volume"])
            assert row["open"] == later["open"] and not row["confirm"]
        else:
            assert row["confirm"] and later["start"] == row["start"] + MINUTE_MS
    closed = [row for row in rows if row["confirm"]]
    names = ("start", "open", "high", "low", "close")
    told = [[str(row[name]) for name in names] for row in reversed(closed)]
    found = desk.list("/v5/market/kline", symbol=symbol, interval="1", limit=3)
    assert [row[:5] for row in found[1:]] == told  # newest first, after the open one
    for row, rest in zip(reversed(closed), found[1:], strict=True):
        assert float(row["volume"]) == pytest.approx(float(rest[5]), rel=1e-6)
        assert float(row["turnover"]) == pytest.approx(float(rest[6]), rel=1e-6)
    assert found[0][:5] == [str(rows[-1][name]) for name in names]


@pytest.mark.parametrize(("start_s", "first"), [(0, 0), (30, 0), (60, 1), (90, 1)])
def test_a_start_inside_a_candle_returns_that_candle_too(start_s: int, first: int) -> None:
    desk = Desk()
    desk.run(150)
    since = START + start_s * 1000
    found = desk.list("/v5/market/kline", symbol=SYMBOL, interval="1", start=since)
    starts = [(int(row[0]) - START) // MINUTE_MS for row in found]
    assert starts == list(range(2, first - 1, -1))


def test_klines_are_cut_by_end_and_limit() -> None:
    desk = Desk()
    desk.run(330)
    found = desk.list("/v5/market/kline", symbol=SYMBOL, interval="1", end=START + 3 * MINUTE_MS,
                      limit=2)  # fmt: skip
    assert [(int(row[0]) - START) // MINUTE_MS for row in found] == [3, 2]


def test_tickers_are_a_snapshot_and_then_changes_that_add_up_to_the_rest_row() -> None:
    desk = Desk(synthetic(2), PAPER_BOOK="full")
    symbol = desk.venue.public.symbols[0]
    topic = f"tickers.{symbol}"
    wire, merged = desk.public(topic), dict[str, Any]()
    first = wire.timed()
    assert [frame.get("type", frame.get("op")) for _, frame in first] == ["snapshot", "subscribe"]
    merged |= first[0][1]["data"]
    assert set(only(desk.list("/v5/market/tickers", symbol=symbol))) <= set(merged)
    sizes = []
    for _ in range(90):
        desk.run(1)
        for frame in wire.heard(topic):
            assert frame["type"] == "delta"
            changed = {k for k, v in frame["data"].items() if merged.get(k) != v}
            assert set(frame["data"]) - changed <= {"symbol", "bid1Price", "bid1Size", "ask1Price",
                                                    "ask1Size"}  # fmt: skip
            sizes.append(len(frame["data"]))
            merged |= frame["data"]
        assert only(desk.list("/v5/market/tickers", symbol=symbol)).items() <= merged.items()
    assert min(sizes) > 1 and max(sizes) < len(merged)


def test_tickers_come_at_most_every_100_ms() -> None:
    desk = Desk(synthetic(1), PAPER_TICKS=50)  # a point every 20 ms
    topic = f"tickers.{desk.venue.public.symbols[0]}"
    wire = desk.public(topic)
    desk.run(5)
    stamps = [frame["ts"] for frame in wire.heard(topic)]
    assert all(b - a >= 100 for a, b in pairwise(stamps))
    assert 40 <= len(stamps) <= 51


def rebuilt(frames: list[Any]) -> tuple[dict[str, str], dict[str, str], list[int]]:
    """Bids, asks and the `u` of each frame, as a client keeps them."""
    bids: dict[str, str] = {}
    asks: dict[str, str] = {}
    numbers = []
    for frame in frames:
        numbers.append(frame["data"]["u"])
        if frame["type"] == "snapshot":
            bids.clear()
            asks.clear()
        for side, levels in ((bids, frame["data"]["b"]), (asks, frame["data"]["a"])):
            for price, size in levels:
                assert side.get(price) != size  # only what has changed
                if size == "0":
                    side.pop(price)  # KeyError: it deletes what was never said
                else:
                    side[price] = size
    return bids, asks, numbers


@pytest.mark.parametrize("depth", [1, 50, 200, 1000])
def test_an_order_book_is_rebuilt_from_its_pushes_to_what_rest_shows(depth: int) -> None:
    desk = Desk(synthetic(2), PAPER_BOOK="full", PAPER_BALANCE_USDT=100_000)
    symbol, trader = desk.venue.public.symbols[0], Trader(desk, 3)
    trader.symbols = [symbol]
    topic = f"orderbook.{depth}.{symbol}"
    wire, frames = desk.public(topic), list[Any]()
    answer = wire.heard()
    assert [frame.get("type", frame.get("op")) for frame in answer] == ["snapshot", "subscribe"]
    frames.append(answer[0])
    for _ in range(40):
        trader.rest()  # our orders lie in the book too
        trader.take()
        desk.run(1)
        frames += wire.heard(topic)
        bids, asks, numbers = rebuilt(frames)
        rest = desk.get("/v5/market/orderbook", symbol=symbol, limit=depth)
        assert sorted(bids.items(), key=lambda x: -float(x[0])) == [tuple(x) for x in rest["b"]]
        assert sorted(asks.items(), key=lambda x: float(x[0])) == [tuple(x) for x in rest["a"]]
        assert all(b - a == 1 for a, b in pairwise(numbers)), numbers
    kinds = [frame["type"] for frame in frames[1:]]
    assert set(kinds) == ({"snapshot"} if depth == 1 else {"delta"})
    assert len(kinds) > 30
    gone = [size for f in frames for _, size in (*f["data"]["b"], *f["data"]["a"]) if size == "0"]
    assert bool(gone) is (depth > 1)


def test_our_resting_order_lies_in_the_book() -> None:
    desk = Desk(PAPER_BOOK="full")
    desk.made(price="99.9")
    before = dict(map(tuple, desk.get("/v5/market/orderbook", symbol=SYMBOL, limit=50)["b"]))
    desk.made(price="99.9", qty="7")
    desk.made(price="99.5", qty="3")
    after = dict(map(tuple, desk.get("/v5/market/orderbook", symbol=SYMBOL, limit=50)["b"]))
    grown = {p: Decimal(s) - Decimal(before.get(p, 0)) for p, s in after.items()}
    assert {p: s for p, s in grown.items() if s} == {"99.9": 7, "99.5": 3}


def test_a_silent_best_price_is_said_again_after_3_s() -> None:
    desk = Desk()
    desk.hold()
    topics = (f"orderbook.1.{SYMBOL}", f"orderbook.50.{SYMBOL}")
    wire = desk.public(*topics)
    first = wire.heard(topics[0])
    times = []
    for second in range(1, 11):
        desk.run(1)
        frames = wire.heard()
        times += [second for frame in frames if frame["topic"] == topics[0]]
        assert {frame["topic"] for frame in frames} <= {topics[0]}  # level 50 is silent
        for frame in frames:
            assert frame["data"] == only(first)["data"] | {"seq": frame["data"]["seq"]}
    assert times == [3, 6, 9]


def gapped() -> Feed:
    """Each minute stands 5 ticks above the one before: the bars are flat, with gaps between."""
    feed = Flat()
    plain = feed.next

    def stepped() -> Minute:
        minute = plain()
        assert minute is not None
        step = (minute.start_ms - START) // MINUTE_MS
        return minute._replace(path=minute.path + 5 * step)

    feed.next = stepped  # type: ignore[method-assign]
    return feed


@pytest.mark.parametrize("feed", [lambda: synthetic(2), gapped], ids=["synthetic", "gaps"])
@pytest.mark.parametrize("ticks", [1, 4])
def test_public_trades_make_up_the_klines(feed: Callable[[], Feed], ticks: int) -> None:
    desk = Desk(feed(), PAPER_TICKS=ticks)
    symbol, step = desk.venue.public.symbols[0], float(desk.venue.ticker.listings[0].qty_step)
    wire = desk.public(f"publicTrade.{symbol}", f"kline.1.{symbol}")
    desk.run(300)
    frames = wire.heard()
    bars = {
        row["start"]: row
        for frame in frames
        if frame.get("topic", "").startswith("kline") and (row := frame["data"][0])["confirm"]
    }
    trades: dict[int, list[Any]] = {start: [] for start in bars}
    for frame in frames:
        if frame.get("topic", "").startswith("publicTrade"):
            assert frame["type"] == "snapshot" and 0 < len(frame["data"]) <= 1024
            for one in frame["data"]:
                trades.setdefault(one["T"] // MINUTE_MS * MINUTE_MS, []).append(one)
    assert len(bars) == 5
    for start, bar in bars.items():
        prices = [float(one["p"]) for one in trades[start]]
        assert min(prices) >= float(bar["low"]) and max(prices) <= float(bar["high"])
        assert (min(prices), max(prices)) == (float(bar["low"]), float(bar["high"]))
        assert prices[-1] == float(bar["close"]) and prices[0] == float(bar["open"])
        traded = sum(float(one["v"]) for one in trades[start])
        assert abs(traded - float(bar["volume"])) <= 60 * ticks * step  # whole lots of each point
    flat = [one for rows in trades.values() for one in rows]
    assert len({one["i"] for one in flat}) == len(flat)
    assert [one["T"] for one in flat] == sorted(one["T"] for one in flat)
    assert {one["S"] for one in flat} <= {"Buy", "Sell"}
    recent = desk.list("/v5/market/recent-trade", symbol=symbol, limit=20)
    assert [row["execId"] for row in recent] == [one["i"] for one in reversed(flat[-20:])]
    assert [row["price"] for row in recent] == [one["p"] for one in reversed(flat[-20:])]


def test_two_trades_of_one_millisecond_have_ids_of_their_own(desk: Desk) -> None:
    desk.hold()
    for price in ("99.9", "100.0", "99.9"):
        desk.trade(price)
    ids = [row["execId"] for row in desk.list("/v5/market/recent-trade", symbol=SYMBOL)]
    assert len(ids) == len(set(ids)) > 2


def test_nothing_is_said_to_those_who_did_not_ask_or_have_left(desk: Desk) -> None:
    wire = desk.public(f"kline.1.{SYMBOL}", f"tickers.{OTHER}")
    desk.run(2)
    told = Counter(frame["topic"] for frame in wire.heard() if "topic" in frame)
    assert told.keys() <= {f"kline.1.{SYMBOL}", f"tickers.{OTHER}"}
    assert told[f"kline.1.{SYMBOL}"] == 3  # at 0, 1 and 2 s
    wire.send({"op": "unsubscribe", "args": [f"kline.1.{SYMBOL}"]})
    wire.heard()
    desk.run(2)
    assert not wire.heard(f"kline.1.{SYMBOL}")
    desk.venue.sessions.disconnect(wire.session)
    desk.run(2)
    assert wire.heard() == []


def test_who_comes_back_to_a_topic_hears_a_snapshot_again(desk: Desk) -> None:
    topic = f"orderbook.50.{SYMBOL}"
    wire = desk.public(topic)
    desk.run(2)
    wire.send({"op": "unsubscribe", "args": [topic]})
    wire.heard()
    desk.hold()
    desk.trade("98.0")  # what happens while nobody listens
    wire.send({"op": "subscribe", "args": [topic]})
    snapshot = only(wire.heard(topic))
    assert snapshot["type"] == "snapshot"
    rest = desk.get("/v5/market/orderbook", symbol=SYMBOL, limit=50)
    assert (snapshot["data"]["b"], snapshot["data"]["a"]) == (rest["b"], rest["a"])
    late = desk.public(topic)
    assert [f["type"] for f in late.heard(topic)] == ["snapshot"]


# Private pushes.


def test_topics_of_one_event_come_in_any_order_and_each_in_its_own(desk: Desk) -> None:
    names = ("order", "execution", "position", "wallet")
    wire, orders = desk.private(*names), set[tuple[str, ...]]()
    for _ in range(40):
        desk.made(**taking())
        frames = wire.heard()
        orders.add(tuple(frame["topic"] for frame in frames))
        assert sorted(orders.copy().pop()) == sorted(names)
        assert {"id", "topic", "creationTime", "data"} == set(frames[0])
    assert len(orders) > 5  # of 24


def test_pushes_come_before_the_ack_or_after_it(desk: Desk) -> None:
    wire, trader, before = desk.private("order"), desk.trader(), Counter[bool]()
    for number in range(40):
        trader.send(desk.order_op("order.create", number, **order()))
        (acked_s, _), (pushed_s, _) = trader.timed()[0], wire.timed()[0]
        before[pushed_s < acked_s] += 1
        desk.run(0.1)
    assert before[True] > 5 and before[False] > 5


def test_frames_never_overtake_each_other_on_one_connection(desk: Desk) -> None:
    wire, told = desk.private("order"), list[tuple[float, Any]]()
    for number in range(50):
        desk.made(orderLinkId=f"o{number}")
        told += wire.timed()
    assert [at_s for at_s, _ in told] == sorted(at_s for at_s, _ in told)
    links = [row["orderLinkId"] for _, frame in told for row in frame["data"]]
    assert links == [f"o{number}" for number in range(50)]


def test_an_account_topic_is_on_disk_before_it_is_told(desk: Desk) -> None:
    wire, seen = desk.private("order"), list[int]()
    desk.venue._keep = lambda pushes, at_ms: seen.append(len(wire.session.outbox))
    desk.made()
    assert seen == [0] and len(wire.session.outbox) == 1


def test_the_fast_topic_has_no_link_id_of_a_maker_and_its_categorised_form_its_own_name() -> None:
    desk = Desk()
    wire = desk.private("execution.fast", "order.linear")
    desk.made(**taking(orderLinkId="took"))
    desk.made(orderLinkId="made", price="99.0")
    desk.trade("98.9")
    frames = wire.heard()
    fast = [row for f in frames if f["topic"] == "execution.fast" for row in f["data"]]
    assert [(row["isMaker"], row["orderLinkId"]) for row in fast] == [(False, "took"), (True, "")]
    assert set(fast[0]) == {"category", "symbol", "execId", "execPrice", "execQty", "orderId",
                            "isMaker", "orderLinkId", "side", "execTime", "seq"}  # fmt: skip
    links = [r["orderLinkId"] for f in frames if f["topic"] == "order.linear" for r in f["data"]]
    assert set(links) == {"took", "made"}


# Batches.


def batch(*prices: Any, **more: Any) -> list[Any]:
    return [order(price=str(price), orderLinkId=f"b{n}", **more) for n, price in enumerate(prices)]


def errors(body: Any) -> list[int]:
    return [one["code"] for one in body["retExtInfo"]["list"]]


def test_a_batch_creates_amends_and_cancels_each_order_by_itself(desk: Desk) -> None:
    body = desk.post("/v5/order/create-batch", request=batch("99.0", "98.0", "97.0"))
    rows = body["result"]["list"]
    assert (body["retCode"], errors(body)) == (0, [0, 0, 0])
    assert [row["orderLinkId"] for row in rows] == ["b0", "b1", "b2"]
    assert all(row["orderId"] and row["createAt"] and row["category"] == "linear" for row in rows)
    change = [{"symbol": SYMBOL, "orderLinkId": f"b{n}", "price": "96.0"} for n in range(3)]
    body = desk.post("/v5/order/amend-batch", request=change)
    assert errors(body) == [0, 0, 0]
    found = desk.list("/v5/order/realtime", symbol=SYMBOL)
    assert [row["price"] for row in found] == ["96.0"] * 3
    keys = [{"symbol": SYMBOL, "orderId": row["orderId"]} for row in rows]
    body = desk.post("/v5/order/cancel-batch", request=keys)
    assert errors(body) == [0, 0, 0]
    assert [row["orderId"] for row in body["result"]["list"]] == [row["orderId"] for row in rows]
    assert desk.list("/v5/order/realtime", symbol=SYMBOL) == []


def test_each_order_of_a_batch_has_its_own_error_and_the_batch_none(desk: Desk) -> None:
    request = [
        *batch("99.0"),
        order(price="99.05"),  # off the tick
        order(price="1.0"),  # 1 USDT
        order(orderLinkId="b0"),  # the same again
        order(reduceOnly=True),
        order(symbol="NONE"),
        "no order",
        order(price="98.0", orderLinkId="good"),
    ]
    body = desk.post("/v5/order/create-batch", request=request)
    assert (body["retCode"], body["retMsg"]) == (0, "OK")
    assert errors(body) == [0, 10001, 110094, 110072, 110017, 10001, 10001, 0]
    rows = body["result"]["list"]
    assert [bool(row["orderId"]) for row in rows] == [True, *[False] * 6, True]
    assert len(desk.list("/v5/order/realtime", symbol=SYMBOL)) == 2


@pytest.mark.parametrize(("count", "code"), [(0, 10001), (1, 0), (20, 0), (21, 10001)])
def test_a_batch_holds_one_to_twenty_orders(desk: Desk, count: int, code: int) -> None:
    request = batch(*["99.0"] * count)
    assert desk.post("/v5/order/create-batch", request=request)["retCode"] == code
    made = len(desk.matching.orders)
    assert made == (count if code == 0 else 0)


def test_a_batch_over_the_limit_is_done_in_part_and_the_rest_fails_one_by_one() -> None:
    desk = Desk(PAPER_RATE_LIMIT=5)
    body = desk.post("/v5/order/create-batch", request=batch(*["99.0"] * 8))
    assert (body["retCode"], errors(body)) == (0, [0] * 5 + [10006] * 3)
    assert desk.headers["X-Bapi-Limit-Status"] == "0"
    assert int(desk.headers["X-Bapi-Limit-Reset-Timestamp"]) > desk.now.wall_ms
    assert [row["orderId"] != "" for row in body["result"]["list"]] == [True] * 5 + [False] * 3
    assert desk.post("/v5/order/create-batch", request=batch("99.0"))["retCode"] == 10006
    assert desk.create()["retCode"] == 0  # create has a bucket of its own: 5 + 5 a second
    desk.run(1)
    body = desk.post("/v5/order/create-batch", request=batch(*["99.0"] * 8)[5:])
    assert errors(body) == [0] * 3  # their ids are still free


def test_a_batch_on_the_trade_socket_shares_the_bucket_of_rest() -> None:
    desk = Desk(PAPER_RATE_LIMIT=5)
    wire = desk.trader()
    answer = wire.ask(desk.order_op("order.create-batch", "r", request=batch("99.0", "1.0", "98")))
    assert (answer["retCode"], errors(answer), answer["reqId"]) == (0, [0, 110094, 0], "r")
    assert [row["orderLinkId"] for row in answer["data"]["list"]] == ["b0", "b1", "b2"]
    assert answer["header"]["X-Bapi-Limit-Status"] == "2"  # 5 - 3
    change = [order(price="97.0", orderLinkId=f"c{n}") for n in range(4)]
    body = desk.post("/v5/order/create-batch", request=change)
    assert errors(body) == [0, 0, 10006, 10006]


# Limits of the gate.


@pytest.mark.parametrize(
    ("method", "path", "limit"),
    [
        ("POST", "/v5/order/create", 10),
        ("POST", "/v5/order/amend", 10),
        ("POST", "/v5/order/cancel", 10),
        ("POST", "/v5/order/cancel-all", 10),
        ("POST", "/v5/order/create-batch", 10),
        ("POST", "/v5/position/set-leverage", 10),
        ("POST", "/v5/position/switch-mode", 10),
        ("POST", "/v5/position/trading-stop", 10),
        ("GET", "/v5/order/realtime", 50),
        ("GET", "/v5/order/history", 50),
        ("GET", "/v5/execution/list", 50),
        ("GET", "/v5/position/list", 50),
        ("GET", "/v5/position/closed-pnl", 50),
        ("GET", "/v5/account/wallet-balance", 50),
        ("GET", "/v5/account/info", 50),
        ("GET", "/v5/account/fee-rate", 5),
        ("GET", "/v5/user/query-api", 10),
    ],
)
def test_each_endpoint_has_a_limit_a_second_of_its_own(method: str, path: str, limit: int) -> None:
    """Rolling: the first one's place is free again after exactly a second."""
    desk = Desk(PAPER_RATE_LIMIT=10)
    one = batch("99.0") if path.endswith("batch") else []
    payload = "category=linear&settleCoin=USDT" if method == "GET" else json.dumps(
        {"category": "linear", "symbol": SYMBOL, "request": one}
    )  # fmt: skip

    def answer() -> tuple[int, dict[str, str]]:
        response = desk.raw(method, path, payload)
        return json.loads(response.body)["retCode"], response.headers

    for used in range(limit):
        code, headers = answer()
        assert code != 10006
        assert (headers["X-Bapi-Limit"], headers["X-Bapi-Limit-Status"]) == (
            str(limit),
            str(limit - used - 1),
        )
        assert int(headers["X-Bapi-Limit-Reset-Timestamp"]) == desk.now.wall_ms  # "now"
        desk.at_ms += 10
    code, headers = answer()
    assert (code, headers["X-Bapi-Limit-Status"]) == (10006, "0")
    wait_ms = int(headers["X-Bapi-Limit-Reset-Timestamp"]) - desk.now.wall_ms
    assert 1000 - 10 * limit <= wait_ms <= 1000 - 10 * limit + 1
    desk.at_ms += wait_ms
    assert answer()[0] != 10006


def test_600_requests_in_5_s_and_the_next_is_banned_for_10_minutes() -> None:
    desk = Desk(PAPER_IP_LIMIT=600)
    for _ in range(600):
        assert desk.raw("GET", "/v5/market/time", "").status == 200
        desk.at_ms += 5  # 3 s
    response = desk.raw("GET", "/v5/market/time", "")
    assert (response.status, b"access too frequent" in response.body) == (403, True)
    assert desk.raw("POST", "/v5/order/create", json.dumps(order())).status == 403
    assert desk.venue.sessions.connect("/v5/private", "", desk.now) is None
    desk.at_ms += 599_000
    assert desk.raw("GET", "/v5/market/time", "").status == 403
    desk.at_ms += 1_000
    assert desk.raw("GET", "/v5/market/time", "").status == 200


def test_600_requests_in_every_5_s_are_no_offence() -> None:
    desk = Desk(PAPER_IP_LIMIT=600)
    for _ in range(1500):
        assert desk.raw("GET", "/v5/market/time", "").status == 200
        desk.at_ms += 9  # 556 in 5 s


def test_500_sockets_in_5_minutes_and_no_more(desk: Desk) -> None:
    paths = ("/v5/public/linear", "/v5/private", "/v5/trade")
    connect = desk.venue.sessions.connect
    for number in range(500):
        session = connect(paths[number % 3], "", desk.now)
        assert session is not None
        desk.venue.sessions.disconnect(session)  # gone or not, it counts
        desk.at_ms += 100  # 50 s
    assert connect(paths[0], "", desk.now) is None
    desk.at_ms = 299_999
    assert connect(paths[0], "", desk.now) is None
    desk.at_ms = 300_000
    assert connect(paths[0], "", desk.now) is not None  # the first one is 5 minutes old


@pytest.mark.parametrize(
    ("asked", "idle_s"),
    [("", 600), ("60s", 60), ("30s", 30), ("5s", 30), ("2m", 120), ("600s", 600), ("1h", 600),
     ("900s", 600), ("-5s", 600), ("abc", 600)],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/v5/public/linear", "/v5/private", "/v5/trade"])
def test_a_socket_that_says_nothing_is_cut(desk: Desk, path: str, asked: str, idle_s: int) -> None:
    """After 10 minutes, or max_active_time from 30 s to 600 s; what it hears is no sign of life."""
    desk.hold()
    wire = Wire(desk, path, asked)
    desk.run(idle_s - 1)
    assert wire.session.close_code == 0
    wire.send({"op": "ping"})
    desk.run(idle_s - 1)
    assert wire.session.close_code == 0
    desk.run(3)
    assert wire.session.close_code == 1000
    assert wire.session in desk.venue.sessions.dirty


def test_a_link_id_is_refused_while_its_order_lives_and_ever_after(desk: Desk) -> None:
    desk.made(orderLinkId="mine")
    again = desk.create(orderLinkId="mine", price="98.0")
    assert (again["retCode"], again["retMsg"]) == (110072, "OrderLinkedID is duplicate")
    desk.cancel("mine")
    assert desk.create(orderLinkId="mine")["retCode"] == 110072
    assert only(desk.list("/v5/order/realtime", orderLinkId="mine"))["orderStatus"] == "Cancelled"


# What is not linear, and lists.


@pytest.mark.parametrize("category", ["spot", "inverse", "option"])
@pytest.mark.parametrize(
    "path",
    [
        *("/v5/market/instruments-info", "/v5/market/tickers", "/v5/order/realtime"),
        *("/v5/order/history", "/v5/execution/list", "/v5/position/list"),
        *("/v5/position/closed-pnl", "/v5/account/fee-rate", "/v5/market/risk-limit"),
    ],
)
def test_there_is_nothing_in_other_categories(desk: Desk, path: str, category: str) -> None:
    desk.made(**taking())
    desk.made(**taking(side="Sell"))
    desk.made()
    desk.run(1)
    terms = {"settleCoin": "USDT", "baseCoin": "BTC"} if "position" in path else {}
    found = desk.get(path, category=category, **terms)
    assert (found["list"], found.get("nextPageCursor", "")) == ([], "")


def test_a_category_that_is_none_is_refused(desk: Desk) -> None:
    response = desk.raw("GET", "/v5/market/instruments-info", "category=futures")
    assert json.loads(response.body)["retCode"] == 10001


@pytest.mark.parametrize(
    ("status", "count"), [(None, 3), ("Trading", 3), ("PreLaunch", 0), ("Closed", 0)]
)
def test_instruments_are_listed_by_status(desk: Desk, status: str | None, count: int) -> None:
    terms = {"status": status} if status else {}
    found = desk.get("/v5/market/instruments-info", limit=1000, **terms)
    assert (len(found["list"]), found["nextPageCursor"]) == (count, "")


def test_more_than_500_instruments_come_in_pages_of_500() -> None:
    desk = Desk(synthetic(606))
    first = desk.get("/v5/market/instruments-info")
    assert len(first["list"]) == 500
    rest = desk.get("/v5/market/instruments-info", cursor=first["nextPageCursor"])
    assert (len(rest["list"]), rest["nextPageCursor"]) == (106, "")
    names = [row["symbol"] for row in first["list"] + rest["list"]]
    assert names == sorted(set(names)) and len(names) == 606
    assert len(desk.list("/v5/market/instruments-info", limit=1000)) == 606


def test_open_only_1_shows_the_last_500_that_have_ended(desk: Desk) -> None:
    for number in range(503):
        desk.made(orderLinkId=f"e{number}")
        desk.cancel(f"e{number}")
    desk.made(orderLinkId="open")
    pages, cursor = [], ""
    while not pages or cursor:
        page = desk.get(
            "/v5/order/realtime", settleCoin="USDT", openOnly=1, limit=50, cursor=cursor
        )
        pages.append([row["orderLinkId"] for row in page["list"]])
        cursor = page["nextPageCursor"]
    assert sum(pages, []) == [f"e{number}" for number in range(502, 2, -1)]  # noqa: RUF017
    assert [row["orderLinkId"] for row in desk.list("/v5/order/realtime", settleCoin="USDT")] == [
        "open"
    ]


def test_history_lags_and_then_knows(desk: Desk) -> None:
    desk.made(orderLinkId="mine")
    desk.run(1)
    desk.cancel("mine")
    assert desk.list("/v5/order/history") == []
    assert only(desk.list("/v5/order/realtime", orderLinkId="mine"))["orderStatus"] == "Cancelled"
    desk.run(0.5)
    assert only(desk.list("/v5/order/history"))["orderLinkId"] == "mine"


def test_history_forgets_what_was_not_filled_after_a_day_and_keeps_what_was(desk: Desk) -> None:
    """Cancelled without a fill 24 h; other closed ones 7 days; later only filled ones."""
    desk.made(orderLinkId="cancelled")
    desk.cancel("cancelled")
    desk.made(orderLinkId="partly", qty="5")
    desk.trade("99.0", 2)
    desk.cancel("partly")
    desk.made(**taking(orderLinkId="filled"))

    def known(hours: float) -> list[str]:
        desk.at_ms = int(hours * 3_600_000)
        return [row["orderLinkId"] for row in desk.list("/v5/order/history")]

    assert known(23.9) == ["filled", "partly", "cancelled"]
    assert known(24.1) == ["filled", "partly"]
    assert known(7 * 24 - 0.1) == ["filled", "partly"]
    assert known(7 * 24 + 0.1) == []  # of the last seven days, where no time is asked for
    long_ago = desk.list("/v5/order/history", startTime=START)
    assert "filled" in [row["orderLinkId"] for row in long_ago]


def test_one_read_tells_of_seven_days_at_most(desk: Desk) -> None:
    """As `startTime` and `endTime` of Bybit's lists do: one of them alone means a week, too."""
    desk.made(**taking())
    week_ms = 7 * 86_400_000
    desk.at_ms = 2 * week_ms
    for path in ("/v5/order/history", "/v5/execution/list"):
        assert desk.list(path) == []
        assert desk.list(path, startTime=START + week_ms) == []
        assert desk.list(path, endTime=START - 1) == []
        for span in ({"startTime": START}, {"endTime": START + week_ms}):
            assert len(desk.list(path, **span)) == 1
        both = f"category=linear&startTime={START}&endTime={START + week_ms + 1}"
        assert desk.answer(desk.raw("GET", path, both))["retCode"] == 10001


def test_history_and_executions_are_found_by_what_is_asked(desk: Desk) -> None:
    desk.made(orderLinkId="a")
    desk.cancel("a")
    desk.run(10)
    bought = desk.made(**taking(orderLinkId="b", qty="3"))
    desk.run(10)
    desk.made(**taking(orderLinkId="c", symbol=OTHER))
    desk.run(10)

    def links(path: str, **terms: Any) -> list[str]:
        return [row["orderLinkId"] for row in desk.list(path, **terms)]

    history, fills = "/v5/order/history", "/v5/execution/list"
    assert links(history) == ["c", "b", "a"]
    assert links(history, symbol=SYMBOL) == ["b", "a"]
    assert links(history, baseCoin="BBB") == ["c"]
    assert links(history, orderId=bought) == ["b"]
    assert links(history, orderId=bought, orderLinkId="a") == ["b"]  # orderId wins
    assert links(history, orderLinkId="a") == ["a"]
    assert links(history, orderStatus="Filled") == ["c", "b"]
    assert links(history, startTime=START + 5_000) == ["c", "b"]
    assert links(history, endTime=START + 15_000) == ["b", "a"]
    assert links(history, startTime=START + 5_000, endTime=START + 15_000) == ["b"]
    assert links(history, orderFilter="StopOrder") == []
    assert links(fills) == ["c", "b"]
    assert links(fills, symbol=OTHER) == ["c"]
    assert links(fills, orderLinkId="b") == ["b"]
    assert links(fills, orderId=bought) == ["b"]
    assert links(fills, orderId=bought, orderLinkId="c") == ["b"]
    assert links(fills, execType="Funding") == []
    assert links(fills, startTime=START + 15_000) == ["c"]
    assert links(fills, endTime=START + 15_000) == ["b"]


def test_an_order_is_found_by_its_link_id_even_under_a_wrong_symbol(desk: Desk) -> None:
    """As nautilus_trader asks: symbol=BTCUSDT-LINEAR&orderLinkId=..."""
    desk.made(orderLinkId="mine")
    row = only(desk.list("/v5/order/realtime", symbol="AAAUSDT-LINEAR", orderLinkId="mine"))
    assert row["orderLinkId"] == "mine"


def test_closed_pnl_is_what_a_fill_has_earned_after_all_fees(desk: Desk) -> None:
    """4 bought at 100 and sold at 103: 12, less 0.055 % of 400 and 0.02 % of 412."""
    desk.made(**taking(qty="4"))
    desk.made(side="Sell", price="103.0", qty="4", reduceOnly=True, orderLinkId="exit")
    assert desk.list("/v5/position/closed-pnl") == []
    desk.trade("103.1")
    row = only(desk.list("/v5/position/closed-pnl", symbol=SYMBOL))
    assert Decimal(row["closedPnl"]) == 12 - 400 * TAKER - 412 * MAKER
    assert (Decimal(row["avgEntryPrice"]), Decimal(row["avgExitPrice"])) == (100, 103)
    assert (row["side"], row["closedSize"], row["qty"]) == ("Sell", "4", "4")
    assert (Decimal(row["cumEntryValue"]), Decimal(row["cumExitValue"])) == (400, 412)
    assert desk.list("/v5/position/closed-pnl", symbol=OTHER) == []
    assert desk.list("/v5/position/closed-pnl", startTime=START + 10_000) == []
    assert desk.balance == 1000 + 12 - 400 * TAKER - 412 * MAKER
    done = only(desk.list("/v5/order/realtime", orderLinkId="exit"))
    assert Decimal(done["closedPnl"]) == Decimal(row["closedPnl"])


# Pages.

COMES = st.tuples(st.just("comes"), st.sampled_from(SYMBOLS))
GOES = st.tuples(st.just("goes"), st.integers(0, 50))
PAGED = st.lists(st.one_of(COMES, GOES, st.just(("page", 0))), max_size=30)


@given(st.integers(0, 12), st.integers(1, 4), PAGED)
@settings(max_examples=60, deadline=None)
def test_pages_neither_skip_nor_double_while_orders_come_and_go(
    many: int, limit: int, acts: list[tuple[str, Any]]
) -> None:
    desk = Desk()
    for _ in range(many):
        desk.made()
    there = {one.order_id for one in desk.matching.open_orders()}
    stayed, pages, cursor = set(there), list[list[str]](), ""

    def turn() -> None:
        nonlocal cursor
        page = desk.get("/v5/order/realtime", settleCoin="USDT", limit=limit, cursor=cursor)
        pages.append([row["orderId"] for row in page["list"]])
        cursor = page["nextPageCursor"]

    turn()
    for name, what in acts:
        ids = [one.order_id for one in desk.matching.open_orders()]
        if name == "comes":
            desk.made(symbol=what)
        elif name == "goes" and ids:
            gone = desk.matching.orders[ids[what % len(ids)]]
            desk.post("/v5/order/cancel", symbol=gone.symbol, orderId=gone.order_id)
            stayed.discard(gone.order_id)
        elif name == "page" and cursor:
            turn()
    while cursor:
        turn()
    seen = [order_id for page in pages for order_id in page]
    assert len(seen) == len(set(seen)) and stayed <= set(seen) <= there
    assert all(len(page) <= limit for page in pages)


@given(st.integers(1, 12), st.integers(1, 5), st.lists(st.integers(0, 3), max_size=8))
@settings(max_examples=30, deadline=None)
def test_pages_of_what_only_grows_show_what_was_there_once_each(
    many: int, limit: int, more: list[int]
) -> None:
    """Executions, closed profits and history: new ones do not push old ones onto the next page."""
    for path, name in (
        ("/v5/execution/list", "execId"),
        ("/v5/order/history", "orderId"),
        ("/v5/position/closed-pnl", "orderId"),
    ):
        desk, between, seen, cursor = Desk(), list(more), list[str](), ""
        for number in range(many):
            desk.made(**taking(side=("Buy", "Sell")[number % 2]))
        desk.run(1)
        whole = [row[name] for row in desk.list(path, limit=50)]
        while not seen or cursor:
            page = desk.get(path, limit=limit, cursor=cursor)
            seen += [row[name] for row in page["list"]]
            cursor = page["nextPageCursor"]
            for _ in range(between.pop() if between else 0):
                desk.made(**taking(side="Buy"))
            desk.run(1)
            if not whole:
                break
        assert seen == whole


def test_positions_come_in_pages_of_at_most_200() -> None:
    desk = Desk(synthetic(230), PAPER_BALANCE_USDT=10_000_000)
    for symbol, listing in desk.matching.listings.items():
        qty = max(listing.min_order_qty, 6 / desk.matching.last[symbol] // listing.qty_step
                  * listing.qty_step + listing.qty_step)  # fmt: skip
        desk.made(**taking(symbol=symbol, qty=f"{qty:f}"))
    first = desk.get("/v5/position/list", settleCoin="USDT", limit=1000)
    rest = desk.get("/v5/position/list", settleCoin="USDT", limit=200,
                    cursor=first["nextPageCursor"])  # fmt: skip
    assert (len(first["list"]), len(rest["list"]), rest["nextPageCursor"]) == (200, 30, "")
    assert len(desk.list("/v5/position/list", settleCoin="USDT")) == 20
    names = [row["symbol"] for row in first["list"] + rest["list"]]
    assert len(set(names)) == 230


# Whatever a client sends.

HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**70, -(2**70), 1.5, 1e300, "", "0", "-1", "1.5", "-0", " 1"),
    *(
        "NaN",
        "sNaN",
        "Infinity",
        "-Infinity",
        "1e400",
        "1e-400",
        "9" * 45,
        "9" * 5_000,
        "0." + "1" * 30,
    ),
    *("x", "\u0661", "\u00e9", "a" * 50, "after:", "after:x", "%ff", "linear", "spot", "USDT"),
    *([], [1], [None], ["x"], {}, {"x": 1}, [[]], [{}]),
)
FIELDS = (
    *("category", "symbol", "side", "orderType", "qty", "price", "timeInForce", "orderLinkId"),
    *("orderId", "reduceOnly", "closeOnTrigger", "takeProfit", "stopLoss", "tpslMode", "tpSize"),
    *("tpOrderType", "tpLimitPrice", "slSize", "triggerPrice", "triggerDirection", "triggerBy"),
    *("positionIdx", "buyLeverage", "sellLeverage", "mode", "settleCoin", "baseCoin", "cursor"),
    *("limit", "startTime", "endTime", "openOnly", "orderFilter", "status", "interval", "start"),
    *("end", "accountType", "execType", "orderStatus", "request", "trailingStop", "tpTriggerBy"),
)
ROUTES = sorted(Desk().venue.api.routes)


def busy() -> Desk:
    """A position with stops, and orders that rest and wait."""
    desk = Desk(PAPER_BALANCE_USDT=10**9)
    desk.made(**taking(qty="5", takeProfit="110.0", stopLoss="90.0"))
    desk.made(orderLinkId="rests", qty="3")
    desk.made(orderLinkId="waits", triggerPrice="105.0", triggerDirection=1)
    return desk


def right(method: str, path: str) -> list[dict[str, Any]]:
    """Requests of an endpoint that it does answer, some of which must be broken."""
    key = {"category": "linear", "symbol": SYMBOL}
    if method == "GET":
        return [key | {"interval": "1"}, {"category": "linear", "settleCoin": "USDT"}]
    if "create" in path:
        stops = {"takeProfit": "120.0", "tpslMode": "Partial", "tpOrderType": "Limit"}
        waits = {"triggerPrice": "130.0", "triggerDirection": 1}
        found = [order(), taking(), order(tpLimitPrice="121.0", **stops), order(**waits)]
        bases = found[:1] if "batch" in path else found
        return [{"category": "linear", **one} for one in bases]
    if "trading-stop" in path:
        return [key | {"takeProfit": "115.0", "tpSize": "1", "tpslMode": "Partial"}]
    return [key | {"orderLinkId": "rests", "price": "98.0"}, key | {"orderLinkId": "waits"}]


@pytest.mark.parametrize("route", ROUTES, ids=" ".join)
def test_every_request_has_an_answer(route: tuple[str, str]) -> None:
    """One field after the other is everything that it must not be."""
    (method, path), desk, codes = route, busy(), Counter[int]()
    for base in right(method, path):
        for field in FIELDS:
            for value in HOSTILE:
                params = base | {field: value}
                if method == "GET":
                    payload = "&".join(f"{name}={one}" for name, one in params.items())
                elif "batch" in path:
                    payload = json.dumps(
                        {"category": "linear", "request": [params, value], field: value}
                    )
                else:
                    payload = json.dumps(params)
                desk.at_ms += 250  # the slowest reads may come 5 times a second
                response = desk.raw(method, path, payload)
                assert response.status == 200, params
                answer = json.loads(response.body)
                assert isinstance(answer["retMsg"], str) and isinstance(answer["result"], dict)
                codes[answer["retCode"]] += 1
            desk.post("/v5/order/cancel-all", symbol=SYMBOL, orderFilter="StopOrder")
    desk.run(61)
    desk.trade("111.0")
    assert list(desk.venue.auditor.lines) == []
    assert set(codes) <= {0, 10001, 34040, 110001, 110007, 110009, 110017, 110020, 110024, 110025,
                          110043, 110061, 110072, 110092, 110093, 110094}  # fmt: skip
    assert codes[0] + codes[10001] > 0


@pytest.mark.parametrize("path", ["/v5/public/linear", "/v5/private", "/v5/trade"])
def test_no_frame_of_a_client_breaks_the_exchange(path: str) -> None:
    desk = busy()
    wire = Wire(desk, path)
    if path != "/v5/public/linear":
        wire.ask(auth_frame(desk.now))
    topics = [f"kline.1.{SYMBOL}"] if "public" in path else ["order"]
    bases: list[dict[str, Any]] = [
        {"op": "subscribe", "args": topics, "req_id": "s"},
        {"op": "unsubscribe", "args": topics, "req_id": "s"},
        {"op": "ping", "req_id": "s"},
        desk.order_op("order.create", "r", **order()),
        desk.order_op("order.amend-batch", "r", request=[order()]),
        {"op": "auth", "args": [PAPER_KEY, 1, "x"]},
    ]
    frames: list[Any] = [*HOSTILE]
    for base in bases:
        for name in ("op", "args", "req_id", "reqId", "header"):
            frames += [base | {name: value} for value in HOSTILE]
        frames += [base | {"args": [value, value]} for value in HOSTILE]
        header = {"X-BAPI-TIMESTAMP": 1}
        frames += [base | {"header": header | {"X-BAPI-RECV-WINDOW": value}} for value in HOSTILE]
    for frame in frames:
        wire.send(frame)
        assert not wire.session.close_code
    for raw in (b"", b"\xff", b"{", b'{"op": "ping"', b"\x00" * 9, b"NaN", b'{"op": NaN}'):
        desk.venue.sessions.heard(wire.session, raw, desk.now)
    desk.run(61)
    wire.heard()
    wire.send({"op": "ping"})
    assert [frame["op"] for frame in wire.heard() if "op" in frame][-1] in ("ping", "pong")
