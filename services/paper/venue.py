"""venue: the whole paper exchange without a socket: requests, frames and time go in. Pure.

The same seed, settings and sequence of calls give the same bytes. `actor` puts it on the network;
tests and simulations call it.
"""

import hashlib
from collections import defaultdict, deque
from collections.abc import Callable
from decimal import Decimal
from random import Random
from typing import Any, NamedTuple

import orjson

from services.paper.api import Api, Reply, Route, batch_of
from services.paper.auditor import Auditor, Limits
from services.paper.faults import AT_ONCE, BadFault, Faults, Rule
from services.paper.gate import Gate, Now
from services.paper.market import MINUTE_MS
from services.paper.matching import Matching
from services.paper.order import Row
from services.paper.params import Params, Refused, number
from services.paper.public import Public
from services.paper.rows import fast
from services.paper.sessions import Sessions
from services.paper.ticker import Point, Prices
from services.paper.topics import Topics
from shared.settings import Settings

ORDER_OPS = {
    f"order.{verb}": f"/v5/order/{verb}"
    for verb in ("create", "amend", "cancel", "create-batch", "amend-batch", "cancel-batch")
}
CHECK_MS = 1_000  # market time between looks at margin, idle sockets and silent books
BAN_GRACE_S = 2.0  # requests that were under way when the first 403 arrived
KEPT_REPLIES = 20  # per read, for the stale fault

Keep = Callable[[list[tuple[str, Row]], int], None]
"""Puts pushes, at their market time, where they outlive the process before anybody hears them."""


class Request(NamedTuple):
    """One HTTP request, as it was sent."""

    method: str
    path: str
    query: str
    params: dict[str, str]
    headers: Any
    body: str


class Response(NamedTuple):
    """What goes back, and how: after a delay, cut short, or not at all."""

    status: int
    body: bytes
    headers: dict[str, str]
    delay_s: float = 0.0
    drop: bool = False
    truncate: bool = False


class Venue:
    """One exchange with one account."""

    def __init__(
        self, settings: Settings, ticker: Prices, keep: Keep = lambda pushes, at_ms: None
    ) -> None:
        seed = settings.PAPER_SEED
        self.faults = Faults(seed)
        self.ticker = ticker
        self.matching = Matching(
            *(ticker.listings, settings.PAPER_BALANCE_USDT, seed),
            spread=settings.PAPER_BOOK == "full",
            twist=self.faults.twist,
        )
        for index, listing in enumerate(ticker.listings):
            self.matching.start(listing.symbol, ticker.last[index] * listing.tick_size)
        key, secret = settings.api_key, settings.api_secret
        self.gate = Gate(key, secret, settings.PAPER_RATE_LIMIT, settings.PAPER_IP_LIMIT)
        self.public = Public(ticker, self.matching, seed)
        self.api = Api(self.public, self.matching)
        self._ack_s = settings.PAPER_ACK_MS / 1000
        self.sessions = Sessions(
            self.gate, self.faults, lambda: self.topics, self._order_op, self._ack_s
        )
        self.topics = Topics(self.public, self.sessions.wanted, self._say_public)
        limits = Limits(settings.MAX_SLOTS, settings.MAX_SYMBOLS, settings.SIZE_USDT)
        self.auditor = Auditor(limits, seed, int(15_000 * max(1.0, settings.PAPER_SPEED)))
        self.auditor.restore([], [], self.matching.wallet)
        self.clock_offset_ms = 0
        self.down_until_s = self.maintained_until_s = 0.0
        self._keep, self._random = keep, Random(seed)
        self._limit, self._until = settings.PAPER_RATE_LIMIT, {"": 0.0}
        self._now = Now(0, 0, 0.0)
        self._told_of_ban_s = float("inf")
        self._funded_ms = self._checked_ms = 0
        self._replies: defaultdict[str, deque[tuple[float, Response]]] = defaultdict(
            lambda: deque(maxlen=KEPT_REPLIES)
        )

    def restored(self, market_ms: int) -> None:
        """The account was brought back from where it stood at `market_ms`."""
        self._funded_ms = market_ms
        orders = [order.row() for order in self.matching.orders.values()]
        self.auditor.restore(orders, self.matching.executions, self.matching.wallet)

    def at(self, wall_ms: int, market_ms: int, mono_s: float) -> Now:
        """A moment, by the exchange's own clock."""
        return Now(wall_ms + self.clock_offset_ms, market_ms, mono_s)

    # Time.

    def advance(self, now: Now, most: int = 5_000) -> bool:
        """The market up to a moment, but at most so many points; whether it got there."""
        self.keep_up(now)
        for count, point in enumerate(self.ticker.run(now.market_ms)):
            self.step(point, now)
            if count >= most:
                return False
        self.topics.catch_up(now.market_ms)
        return True

    def keep_up(self, now: Now) -> None:
        """Faults whose time has come or is over; each market second margin and idle sockets."""
        self._now = now
        for fault in self.faults.due(now.mono_s):
            self._try(fault, now)
        self._expire(now)
        if now.market_ms - self._checked_ms >= CHECK_MS:
            self._checked_ms = now.market_ms
            self.matching.check_margin(now.market_ms)
            self.sessions.cut_idle(now)
            self.topics.tick(now.market_ms)
            self._flush(now)

    def step(self, point: Point | None, now: Now) -> None:
        """One point of the market, or the end of a minute, and all that follows."""
        self._now = now
        if point is None:
            for index in self.ticker.just_closed:
                self.topics.kline(index)
            self._fund(self.ticker.minute_ms)
        else:
            self._trade(point)
        self._flush(now)

    def _trade(self, point: Point, queued: bool = True) -> None:
        listing = self.matching.listings[self.public.symbols[point.which]]
        qty = listing.qty_step * int(point.volume / float(listing.qty_step))
        price = self.ticker.listings[point.which].tick_size * point.ticks
        if price % listing.tick_size:
            price = price // listing.tick_size * listing.tick_size or listing.tick_size
        self.matching.trade(listing.symbol, price, qty, point.ts_ms, queued)
        self.public.traded(point)
        self.topics.point(point)

    def _fund(self, until_ms: int) -> None:
        """Settle funding whose time has come, of every position."""
        for symbol in self.matching.wallet.held():
            at_ms = self.public.next_funding_ms(symbol, (self._funded_ms or until_ms - 1) + 1)
            interval_ms = self.matching.listings[symbol].funding_interval_min * MINUTE_MS
            while at_ms <= until_ms:
                self.matching.fund(symbol, self.public.funding_rate(symbol, at_ms), at_ms)
                at_ms += interval_ms
        self._funded_ms = until_ms

    def _flush(self, now: Now) -> None:
        """The account's news: to the auditor and the disk, then to the private stream.

        Bybit promises an order within a topic and none between them: topics come shuffled.
        """
        pushes = self.matching.take_pushes()
        if not pushes:
            return
        for topic, row in pushes:
            self.auditor.pushed(topic, row, self.matching.wallet, now.market_ms)
        self.auditor.check_cash(self.matching.wallet, now.market_ms)
        self._keep(pushes, now.market_ms)
        topics: dict[str, list[Row]] = {}
        for topic, row in pushes:
            topics.setdefault(topic, []).append(row)
        if "execution" in topics:
            trades = [fast(row) for row in topics["execution"] if row["execType"] == "Trade"]
            topics |= {"execution.fast": trades} if trades else {}
        for row in topics.get("order", ()):
            self.topics.changed(self.public.index[row["symbol"]])
        names = list(topics)
        self._random.shuffle(names)
        delay_s = self._random.uniform(0, 2 * self._ack_s)  # before the ack, or after it
        for topic in names:
            for name in (topic, f"{topic}.linear"):
                if self.sessions.wanted(name):
                    stamps = {"id": f"{self.public.seq}", "creationTime": now.market_ms}
                    message = {"topic": name, **stamps, "data": topics[topic]}
                    self.sessions.publish(name, orjson.dumps(message), now, delay_s)

    def _say_public(self, topic: str, frame: bytes) -> None:
        self.sessions.publish(topic, frame, self._now)

    # Requests.

    def http(self, request: Request, now: Now) -> Response:
        """One HTTP request."""
        self._now = now
        if now.mono_s < self.down_until_s:
            return Response(0, b"", {}, drop=True)
        if now.mono_s < self.maintained_until_s and request.path != "/v5/system/status":
            return Response(503, b"service unavailable", {})
        if self.gate.banned(now):
            self._told_of_ban_s = min(self._told_of_ban_s, now.mono_s)
            if now.mono_s > self._told_of_ban_s + BAN_GRACE_S:
                self.auditor.banned(now)
            return Response(403, b"access too frequent", {})
        self._told_of_ban_s = float("inf")
        self.auditor.strays = 0
        rule = self.faults.http(request.method, request.path)
        if rule is None:
            return self._answer(request, now)
        return self._faulted(rule, request, now)

    def _faulted(self, rule: Rule, request: Request, now: Now) -> Response:
        """The answer under a fault."""
        action, terms = rule.action, rule.terms
        if action == "drop_before":
            return Response(0, b"", {}, drop=True)
        if action == "status":
            return Response(int(terms.get("status", 502)), b"bad gateway", {})
        if action == "ret" and not terms.get("after"):
            return _json(self._envelope(_told(terms), now), {})
        if action == "stale":
            if (old := self._stale(request, terms, now)) is not None:
                return old
            return self._answer(request, now)
        if action == "dup":
            self._answer(request, now)
        most = int(terms.get("k", 1)) if action == "partial" else None
        answer = self._answer(request, now, most, action != "dup")
        if action == "ret":
            return _json(self._envelope(_told(terms), now), answer.headers)._replace(
                delay_s=answer.delay_s
            )
        if action == "garbage":
            return answer._replace(body=b"<html>\xff\x00" + answer.body[:20])
        if action == "delay":
            return answer._replace(delay_s=answer.delay_s + terms.get("ms", 1000) / 1000)
        flags = {"drop": action == "drop_after", "truncate": action == "truncate"}
        return answer._replace(**flags)

    def _stale(self, request: Request, terms: Row, now: Now) -> Response | None:
        """What the same read was answered at least `age_s` ago."""
        before = now.mono_s - terms.get("age_s", 1.0)
        found = [old for at_s, old in self._replies[_read(request)] if at_s <= before]
        return found[-1] if found else None

    def _answer(
        self, request: Request, now: Now, most: int | None = None, audited: bool = True
    ) -> Response:
        """The answer without a fault; lists and batches have at most `most` members."""
        route = self.api.routes.get((request.method, request.path))
        if route is None:
            return Response(404, b"404 page not found", {})
        if route.signed and "X-BAPI-API-KEY" not in request.headers:
            return Response(401, b"", {})
        headers: dict[str, str] = {}
        try:
            if route.signed:
                payload = request.query if request.method == "GET" else request.body
                self.gate.verify(request.headers, payload, now)
            params: Any = request.params
            if request.method != "GET":
                params = orjson.loads(request.body or "{}")
            if not isinstance(params, dict):
                raise Refused(10001, "params error: not an object")
        except Refused as refused:
            reply = Reply(refused.code, refused.text, {}, {})
        except orjson.JSONDecodeError:
            reply = Reply(10001, "params error: invalid JSON", {}, {})
        else:
            reply, headers = self._call(route, params, now, most, audited)
        if most is not None and not route.batch and isinstance(reply.result.get("list"), list):
            short = reply.result | {"list": reply.result["list"][:most], "nextPageCursor": ""}
            reply = reply._replace(result=short)
        answer = _json(self._envelope(reply, now), headers)
        if route.writes:
            return answer._replace(delay_s=self._ack_s)
        if route.signed:
            self._replies[_read(request)].append((now.mono_s, answer))
        return answer

    def _call(
        self, route: Route, params: Params, now: Now, most: int | None = None, audited: bool = True
    ) -> tuple[Reply, dict[str, str]]:
        """One call within its rate limit, and all that follows from it."""
        fit, headers = 1, dict[str, str]()
        if route.signed:
            count = max(1, len(batch_of(params))) if route.batch else 1
            fit, headers = self.gate.take(route.path, route.writes, count, now)
        if route.batch and most is not None:
            fit = min(fit, most)
        reply = self.api.call(route, params, now, fit)
        if route.signed and audited:
            self._audit(route, params, reply, now)
        self._flush(now)
        return reply, headers

    def _audit(self, route: Route, params: Params, reply: Reply, now: Now) -> None:
        if self.gate.limit != self._limit and reply.code == 10006:
            return  # a fault took the limit away: nobody could know
        if not route.batch or reply.code:
            terms = self._as_it_is(route, params)
            self.auditor.request(route.path, terms, reply.code, reply.text, now)
            return
        for one, error in zip(batch_of(params), reply.extra.get("list", ()), strict=False):
            terms = self._as_it_is(route, one if isinstance(one, dict) else {})
            self.auditor.request(route.path, terms, error["code"], error["msg"], now)

    def _as_it_is(self, route: Route, params: Params) -> Params:
        """An amend's order with what the amend did not name."""
        order = self.matching.find(dict(params)) if "/amend" in route.path else None
        if order is None:
            return params
        named = {"orderLinkId": order.link_id, "qty": str(order.qty), "price": str(order.price)}
        return {**params, **named}

    def _order_op(self, message: Row, now: Now) -> tuple[Row, float] | None:
        """A trade socket's request: the same endpoints, and the same faults, as by REST."""
        self._now = now
        path = ORDER_OPS.get(message["op"], "")
        route, args = self.api.routes.get(("POST", path)), message.get("args") or [None]
        header = message.get("header")
        header = header if isinstance(header, dict) else {}
        if route is None or not isinstance(args[0], dict):
            return _trade_reply(Reply(10404, "op type is not found", {}, {}), {}), self._ack_s
        rule = self.faults.http("POST", path)
        action, terms = (rule.action, rule.terms) if rule else ("", {})
        if action in ("drop_before", "status"):
            return None
        headers: dict[str, str] = {}
        if action == "ret" and not terms.get("after"):
            return _trade_reply(_told(terms), {}), self._ack_s
        try:
            stamps = (header.get("X-BAPI-TIMESTAMP"), header.get("X-BAPI-RECV-WINDOW"))
            self.gate.check_window(*stamps, now)
            if action == "dup":
                self._call(route, args[0], now)
            most = int(terms.get("k", 1)) if action == "partial" else None
            reply, headers = self._call(route, args[0], now, most, action != "dup")
        except Refused as refused:
            reply = Reply(refused.code, refused.text, {}, {})
        if action in ("drop_after", "truncate", "garbage"):
            return None
        reply = _told(terms) if action == "ret" else reply
        late_s = terms.get("ms", 1000) / 1000 if action == "delay" else 0.0
        return _trade_reply(reply, headers), self._ack_s + late_s

    def _envelope(self, reply: Reply, now: Now) -> Row:
        said = reply.text.encode(errors="replace").decode()  # it may echo what is no text
        body = {"retCode": reply.code, "retMsg": said, "result": reply.result}
        return {**body, "retExtInfo": reply.extra, "time": now.wall_ms}

    # Control.

    def control(self, fault: Any, now: Now) -> Row:
        """One fault, or one act of the venue, at once. Raises BadFault."""
        self._now = now
        self.faults.due(now.mono_s)  # the clock of the rules
        rule = self.faults.add(fault, now.mono_s)
        if rule.where == "venue" or rule.action in AT_ONCE:
            self.apply(rule.terms, now)
        return {"id": rule.number}

    def apply(self, fault: Row, now: Now) -> None:
        """A fault of the plan, or one that acts at once. Raises BadFault."""
        where, action = fault["where"], fault["action"]
        if where == "ws" and action == "close":
            self.sessions.close(str(fault.get("kind", "")), int(fault.get("code", 1006)))
        elif where == "match" and action == "gap":
            self._gap(fault, now)
        elif where != "venue":
            self.faults.add(fault, now.mono_s)
        else:
            try:
                getattr(self, f"_do_{action}")(fault, now)
            except Refused as refused:
                raise BadFault(f"{action}: {refused.text}") from refused
        self._flush(now)

    def _try(self, fault: Row, now: Now) -> None:
        """A planned fault whose time has come; one that cannot be done is told, no more."""
        try:
            self.apply(fault, now)
        except BadFault as error:
            self.faults.failed.append(f"{error}")

    def heal(self, now: Now) -> None:
        """No fault any more, none to come; the venue is up and at its usual limits."""
        self.faults.heal()
        self.ticker.held.clear()
        self.clock_offset_ms, self._until = 0, {"": 0.0}
        self.down_until_s = self.maintained_until_s = self.gate.banned_until_s = 0.0
        self.gate.limit, self.gate.reset, self.api.state = self._limit, "", "completed"
        self.matching.heal(now.market_ms)
        self._flush(now)

    def account(self) -> Row:
        """The exchange's own truth."""
        m = self.matching
        flows = {name: f"{amount:f}" for name, amount in m.wallet.flows.items()}
        return {
            "orders": [order.row() for order in m.orders.values()],
            "executions": m.executions,
            "positions": [m.position_row(symbol) for symbol in m.wallet.held()],
            "wallet": m.wallet_row(),
            "flows": flows,
        }

    def status(self) -> Row:
        """What the control socket tells at a glance."""
        return {
            "breaches": self.auditor.breaches,
            "lines": list(self.auditor.lines),
            "events": self.auditor.events,
            "struck": self.faults.struck,
            "failed": self.faults.failed,
            "rules": [rule.terms for rule in self.faults.rules],
            "market_ms": self._now.market_ms,
            "sockets": len(self.sessions.open),
        }

    def digest(self) -> str:
        """A hash of the account: orders, fills and cash."""
        return hashlib.sha256(orjson.dumps(self.account())).hexdigest()

    def _expire(self, now: Now) -> None:
        """What was changed for a while goes back."""
        for name, until_s in list(self._until.items()):
            if name and now.mono_s >= until_s:
                del self._until[name]
                if name == "limit":
                    self.gate.limit, self.gate.reset = self._limit, ""
                else:
                    self.clock_offset_ms = 0
        if self.api.state == "ongoing" and now.mono_s >= self.maintained_until_s:
            self.api.state = "completed"

    def _symbol(self, fault: Row) -> str:
        symbol = fault.get("symbol")
        if not isinstance(symbol, str) or symbol not in self.public.index:
            raise BadFault(f"symbol: not traded here: {symbol!r}")
        return symbol

    def _inject(self, symbol: str, price: Decimal, qty: Decimal, now: Now, queued: bool) -> None:
        index = self.public.index[symbol]
        ticks = int(price / self.ticker.listings[index].tick_size)
        self._trade(self.ticker.inject(index, ticks, float(qty), now.market_ms), queued)

    def _gap(self, fault: Row, now: Now) -> None:
        symbol = self._symbol(fault)
        price = self.matching.last[symbol] * (1 + Decimal(str(fault.get("pct", 1))) / 100)
        step = self.matching.listings[symbol].qty_step
        tick = self.ticker.listings[self.public.index[symbol]].tick_size
        self._inject(symbol, max(price, tick), step, now, True)

    def _do_hold(self, fault: Row, now: Now) -> None:
        self.ticker.held.add(self.public.index[self._symbol(fault)])

    def _do_trade(self, fault: Row, now: Now) -> None:
        symbol = self._symbol(fault)
        price, qty = number(fault, "price"), number(fault, "qty")
        self._inject(symbol, price, qty, now, str(fault.get("queue", "")) != "0")

    def _do_fund(self, fault: Row, now: Now) -> None:
        symbol = self._symbol(fault)
        rate = Decimal(str(fault.get("rate", "0.0001")))
        self.matching.fund(symbol, rate, now.market_ms)

    def _do_restart(self, fault: Row, now: Now) -> None:
        """All sockets drop, nobody gets in for `ms`, and order/realtime forgets what has ended."""
        self.down_until_s = now.mono_s + fault.get("ms", 1000) / 1000
        self.sessions.close("", 1006)
        self.api.lost |= {o.order_id for o in self.matching.closed_orders()}

    def _do_maintenance(self, fault: Row, now: Now) -> None:
        self.maintained_until_s = now.mono_s + fault.get("ms", 1000) / 1000
        self.api.state = "ongoing"
        self.sessions.close("", 1001)

    def _do_clock_offset(self, fault: Row, now: Now) -> None:
        self.clock_offset_ms = int(fault.get("ms", 0))
        if fault.get("for_s"):
            self._until["clock"] = now.mono_s + fault["for_s"]

    def _do_rate_limit(self, fault: Row, now: Now) -> None:
        self.gate.limit = int(fault.get("limit", self._limit))
        self.gate.reset = str(fault.get("reset", ""))
        if fault.get("ms"):
            self._until["limit"] = now.mono_s + fault["ms"] / 1000

    def _do_ip_ban(self, fault: Row, now: Now) -> None:
        self.gate.banned_until_s = now.mono_s + fault.get("ms", 600_000) / 1000

    def _do_delist(self, fault: Row, now: Now) -> None:
        symbol = self._symbol(fault)
        self.matching.set_status(symbol, str(fault.get("mode", "Closed")), now.market_ms)
        self.ticker.held.add(self.public.index[symbol])

    def _do_list(self, fault: Row, now: Now) -> None:
        symbol = self._symbol(fault)
        self.matching.set_status(symbol, "Trading", now.market_ms)
        self.ticker.held.discard(self.public.index[symbol])

    def _do_instrument_update(self, fault: Row, now: Now) -> None:
        symbol = self._symbol(fault)
        names = ("tick_size", "qty_step", "min_order_qty", "max_order_qty")
        changed: Row = {name: number(fault, name) for name in names if name in fault}
        listings = self.matching.listings
        listings[symbol] = listings[symbol]._replace(**changed)
        self.auditor.regridded(symbol, now)
        tick = listings[symbol].tick_size
        self.matching.start(symbol, max(self.matching.last[symbol] // tick, Decimal(1)) * tick)

    def _do_price_band(self, fault: Row, now: Now) -> None:
        self.matching.band = Decimal(str(fault.get("pct", 5))) / 100

    def _do_adl(self, fault: Row, now: Now) -> None:
        qty = number(fault, "qty") if "qty" in fault else None
        order = (self._symbol(fault), "AdlTrade", "CreateByAdl_PassThrough", now.market_ms, qty)
        self.matching.close_position(*order)

    def _do_liquidate(self, fault: Row, now: Now) -> None:
        order = (self._symbol(fault), "BustTrade", "CreateByLiq", now.market_ms)
        self.matching.close_position(*order)

    def _do_foreign_order(self, fault: Row, now: Now) -> None:
        names = ("symbol", "side", "qty", "price")
        terms: Row = {name: fault[name] for name in names if name in fault}
        self.matching.foreign({"orderType": "Limit", **terms}, now.market_ms)

    def _do_foreign_fill(self, fault: Row, now: Now) -> None:
        terms: Row = {name: fault[name] for name in ("symbol", "side", "qty") if name in fault}
        self.matching.foreign({"orderType": "Market", **terms}, now.market_ms)

    def _do_balance(self, fault: Row, now: Now) -> None:
        self.matching.deposit(Decimal(str(fault.get("amount", "0"))))

    def _do_mark_offset(self, fault: Row, now: Now) -> None:
        self.matching.offset_mark(self._symbol(fault), Decimal(str(fault.get("pct", 0))) / 100)

    def _do_account_change(self, fault: Row, now: Now) -> None:
        """Somebody else changes the account: `mode` hedge, or the leverage of a symbol."""
        if "leverage" in fault:
            symbol = self._symbol(fault)
            self.matching.set_leverage(symbol, number(fault, "leverage"))
        else:
            self.matching.hedged = fault.get("mode") == "hedge"


def _told(terms: Row) -> Reply:
    """The retCode that a fault asks for."""
    return Reply(int(terms.get("code", 10016)), str(terms.get("text", "Server error")), {}, {})


def _read(request: Request) -> str:
    return f"{request.path}?{request.query}"


def _json(body: Row, headers: dict[str, str]) -> Response:
    return Response(200, orjson.dumps(body), headers)


def _trade_reply(reply: Reply, headers: dict[str, str]) -> Row:
    row = {"retCode": reply.code, "retMsg": reply.text, "data": reply.result}
    return {**row, "retExtInfo": reply.extra, "header": headers}
