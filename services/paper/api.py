"""api: the REST endpoints of Bybit v5, category linear, as functions of their parameters. Pure."""

from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from services.paper import rows
from services.paper.gate import Now
from services.paper.market import MINUTE_MS
from services.paper.matching import Matching
from services.paper.order import Order, Row
from services.paper.params import Params, Refused, invalid, number, text, whole
from services.paper.public import Public
from services.paper.rows import MAKER_FEE, MAX_LEVERAGE, TAKER_FEE

OTHER_CATEGORIES = ("spot", "inverse", "option")  # known, and empty here
BATCH_LIMIT = 20
REALTIME_CLOSED = 500  # closed orders that order/realtime still shows
HISTORY_LAG_MS = 200  # until order/history knows of an end
DAY_MS = 86_400_000
WEEK_MS = 7 * DAY_MS

Answer = Callable[[Params, Now], Row]


class Route(NamedTuple):
    """One endpoint. `verb` is set where many orders may come in one request."""

    answer: Answer
    path: str
    signed: bool = True
    writes: bool = False
    batch: bool = False


class Reply(NamedTuple):
    """What a request came to: the envelope's fields, before it is one."""

    code: int
    text: str
    result: Row
    extra: Row


class Api:
    """Endpoints by (method, path)."""

    def __init__(self, public: Public, matching: Matching) -> None:
        self._public, self._matching = public, matching
        self._ticker = public.ticker
        self.lost: set[str] = set()  # orders that order/realtime forgot when the venue restarted
        self.state = "completed"  # of the maintenance that /v5/system/status tells of
        self.routes = self._table()

    def call(self, route: Route, params: Params, now: Now, fit: int) -> Reply:
        """Answer one request, of whose orders `fit` are within the rate limit."""
        try:
            if route.batch:
                return self._batch(route, params, now, fit)
            if not fit:
                raise Refused(10006, "Too many visits!")
            return Reply(0, "OK", route.answer(params, now), {})
        except Refused as refused:
            return Reply(refused.code, refused.text, {}, {})

    def _batch(self, route: Route, params: Params, now: Now, fit: int) -> Reply:
        """Each order by itself: results and errors lie side by side."""
        requests = batch_of(params)
        if params.get("category") != "linear":
            raise invalid("category")
        if not 0 < len(requests) <= BATCH_LIMIT:
            raise Refused(10001, f"params error: request holds 1 to {BATCH_LIMIT} orders")
        if not fit:
            raise Refused(10006, "Too many visits!")
        found, errors = [], []
        for place, one in enumerate(requests):
            names: Row = {"category": "linear", "symbol": "", "orderId": "", "orderLinkId": ""}
            stamp = {"createAt": ""} if route.path.endswith("create-batch") else {}
            try:
                if not isinstance(one, dict):
                    raise Refused(10001, "params error: not an object")
                names |= {name: text(one, name) for name in ("symbol", "orderLinkId")}
                if place >= fit:
                    raise Refused(10006, "Too many visits!")
                names |= route.answer({**one, "category": "linear"}, now)
                stamp = stamp and {"createAt": str(now.wall_ms)}
                errors.append({"code": 0, "msg": "OK"})
            except Refused as refused:
                errors.append({"code": refused.code, "msg": refused.text})
            found.append(names | stamp)
        return Reply(0, "OK", {"list": found}, {"list": errors})

    def _table(self) -> dict[tuple[str, str], Route]:
        m = self._matching
        open_reads: dict[str, Answer] = {
            "/v5/market/time": self._time,
            "/v5/market/instruments-info": self._instruments,
            "/v5/market/kline": self._klines,
            "/v5/market/tickers": self._tickers,
            "/v5/market/orderbook": self._orderbook,
            "/v5/market/recent-trade": self._recent_trades,
            "/v5/market/risk-limit": self._risk_limit,
            "/v5/market/funding/history": self._funding_history,
            "/v5/system/status": self._status,
        }
        reads: dict[str, Answer] = {
            "/v5/order/realtime": self._realtime,
            "/v5/order/history": self._history,
            "/v5/execution/list": self._executions,
            "/v5/position/list": self._positions,
            "/v5/position/closed-pnl": self._closed_pnl,
            "/v5/account/wallet-balance": self._wallet,
            "/v5/account/info": self._account,
            "/v5/account/fee-rate": self._fee_rate,
            "/v5/user/query-api": self._key,
            "/v5/asset/coin/query-info": self._coins,
        }
        writes: dict[str, Answer] = {
            "/v5/order/create": lambda params, now: m.create(dict(params), now.market_ms),
            "/v5/order/amend": lambda params, now: m.amend(dict(params), now.market_ms),
            "/v5/order/cancel": lambda params, now: m.cancel(dict(params), now.market_ms),
        }
        others: dict[str, Answer] = {
            "/v5/order/cancel-all": lambda params, now: m.cancel_all(dict(params), now.market_ms),
            "/v5/position/set-leverage": self._set_leverage,
            "/v5/position/switch-mode": self._switch_mode,
            "/v5/position/trading-stop": lambda params, now: m.trading_stop(
                dict(params), now.market_ms
            ),
        }
        routes = [("GET", Route(f, path, signed=False)) for path, f in open_reads.items()]
        routes += [("GET", Route(f, path)) for path, f in reads.items()]
        routes += [
            ("POST", Route(f, path, writes=True)) for path, f in {**writes, **others}.items()
        ]
        routes += [
            ("POST", Route(f, f"{path}-batch", writes=True, batch=True))
            for path, f in writes.items()
        ]
        return {(method, route.path): route for method, route in routes}

    # The market.

    def _time(self, _: Params, now: Now) -> Row:
        return {"timeSecond": str(now.wall_ms // 1000), "timeNano": str(now.wall_ms * 1_000_000)}

    def _status(self, _: Params, now: Now) -> Row:
        if self.state == "completed":
            return {"list": []}
        row = {"id": "paper", "title": "Maintenance", "state": self.state, "href": ""}
        spans = {"begin": str(now.wall_ms), "end": "0", "serviceTypes": [2, 4], "product": [1]}
        return {"list": [{**row, **spans, "uidSuffix": [], "maintainType": 1, "env": 1}]}

    def _instruments(self, params: Params, _: Now) -> Row:
        category = self._category(params)
        status = params.get("status") or "Trading"
        listings = self._matching.listings.values() if category == "linear" else ()
        found = [
            (listing.symbol, listing)
            for listing in sorted(listings)
            if listing.status == status and params.get("symbol") in (None, "", listing.symbol)
        ]
        page = _page(found, params, 500, 1000)
        shown = page["list"]
        page["list"] = [rows.instrument(listing) for listing in shown]
        return page | {"category": category}

    def _klines(self, params: Params, _: Now) -> Row:
        index = self._known(params)
        if str(params.get("interval")) != "1":
            raise invalid("interval")
        start_ms, end_ms = whole(params, "start", 0), whole(params, "end", 2**62)
        limit = min(max(whole(params, "limit", 200), 1), 1000)
        found = self._ticker.bars(index, start_ms, end_ms, limit)
        return {"symbol": params["symbol"], "category": "linear", "list": found}

    def _tickers(self, params: Params, now: Now) -> Row:
        category = self._category(params)
        if category != "linear":
            return {"category": category, "list": []}
        indexes = [self._known(params)] if params.get("symbol") else self._trading()
        found = [self._public.ticker_row(index, now.market_ms) for index in indexes]
        return {"category": "linear", "list": found}

    def _orderbook(self, params: Params, now: Now) -> Row:
        limit = min(max(whole(params, "limit", 25), 1), 1000)
        return self._public.orderbook(self._known(params), limit, now.market_ms)

    def _recent_trades(self, params: Params, _: Now) -> Row:
        limit = min(max(whole(params, "limit", 500), 1), 1000)
        found = self._public.recent_trades(self._known(params), limit)
        return {"category": "linear", "list": found}

    def _risk_limit(self, params: Params, _: Now) -> Row:
        if self._elsewhere(params):
            return _page([], params, 1, 1) | {"category": self._category(params)}
        symbols = [params["symbol"]] if params.get("symbol") else list(self._public.symbols)
        if params.get("symbol"):
            self._known(params)
        found = [
            {
                "id": 1,
                "symbol": symbol,
                "riskLimitValue": "2000000",
                "isLowestRisk": 1,
                "maintenanceMargin": f"{rows.MAINTENANCE}",
                "mmDeduction": "",
                "initialMargin": f"{1 / MAX_LEVERAGE}",
                "maxLeverage": f"{MAX_LEVERAGE}.00",
            }
            for symbol in symbols
        ]
        return {"category": "linear", "list": found, "nextPageCursor": ""}

    def _funding_history(self, params: Params, now: Now) -> Row:
        symbol = self._public.symbols[self._known(params)]
        interval_ms = self._matching.listings[symbol].funding_interval_min * MINUTE_MS
        last_ms = self._public.next_funding_ms(symbol, now.market_ms + 1) - interval_ms
        limit = min(max(whole(params, "limit", 200), 1), 200)
        found = [
            {
                "symbol": symbol,
                "fundingRate": f"{self._public.funding_rate(symbol, at_ms):f}",
                "fundingRateTimestamp": str(at_ms),
            }
            for at_ms in range(last_ms, last_ms - limit * interval_ms, -interval_ms)
        ]
        return {"category": "linear", "list": found}

    # The account.

    def _realtime(self, params: Params, now: Now) -> Row:
        if self._elsewhere(params):
            return _page([], params, 20, 50)
        if params.get("orderId") or params.get("orderLinkId"):
            order = self._matching.find(dict(params))
            lost = order is None or order.order_id in self.lost
            return _page([] if lost or order is None else [(0, order.row())], params, 20, 50)
        self._scope(params)
        if whole(params, "openOnly", 0):
            ended = self._matching.closed_orders()[:REALTIME_CLOSED]
            orders = [order for order in ended if order.order_id not in self.lost]
        else:
            orders = self._matching.open_orders()
        return self._orders(orders, params)

    def _history(self, params: Params, now: Now) -> Row:
        """Ended orders: a little late, and those without a fill only for a day."""
        if self._elsewhere(params):
            return _page([], params, 20, 50)
        since, until = _span(params, now.market_ms)
        keys = {name: params.get(name) for name in ("orderId", "orderLinkId", "orderStatus")}
        orders = [
            order
            for order in self._matching.closed_orders()
            if order.updated_ms <= now.market_ms - HISTORY_LAG_MS
            and (order.filled or now.market_ms - order.updated_ms < DAY_MS)
            and since <= order.created_ms <= until
            and keys["orderId"] in (None, "", order.order_id)
            and (keys["orderId"] or keys["orderLinkId"] in (None, "", order.link_id))
            and keys["orderStatus"] in (None, "", order.status)
        ]
        return self._orders(orders, params)

    def _orders(self, orders: Iterable[Order], params: Params) -> Row:
        """A page of orders of the symbol or coin; ids need neither."""
        symbol, base = params.get("symbol"), params.get("baseCoin")
        kind = str(params.get("orderFilter") or "")
        wanted = [
            (order.number, order)
            for order in orders
            if (symbol in (None, "", order.symbol) or _has_id(params))
            and (symbol or not base or order.symbol == f"{base}USDT")
            and (not kind or (kind == "StopOrder") == bool(order.terms.get("triggerPrice")))
        ]
        page = _page(wanted, params, 20, 50)
        page["list"] = [order.row() for order in page["list"]]
        return page

    def _executions(self, params: Params, now: Now) -> Row:
        if self._elsewhere(params):
            return _page([], params, 50, 100)
        since, until = _span(params, now.market_ms)
        names = ("symbol", "orderLinkId", "orderId", "execType")
        wanted = {name: params[name] for name in names if params.get(name)}
        if "orderId" in wanted:
            wanted.pop("orderLinkId", None)
        found: list[tuple[int, Row]] = []
        executions = self._matching.executions
        for place in range(len(executions) - 1, -1, -1):
            row = executions[place]
            at_ms = int(row["execTime"])
            if at_ms < since - 60_000:
                break  # stamps may go back a little, not a minute
            if since <= at_ms <= until and all(row[k] == v for k, v in wanted.items()):
                found.append((place, row))
        return _page(found, params, 50, 100)

    def _positions(self, params: Params, _: Now) -> Row:
        if self._elsewhere(params):
            return _page([], params, 20, 200)
        if params.get("symbol"):
            self._known(params)
            symbols = [str(params["symbol"])]
        elif params.get("settleCoin") or params.get("baseCoin"):
            symbols = sorted(self._matching.wallet.held())
        else:
            raise Refused(10001, "params error: symbol or settleCoin is required")
        found = [(symbol, self._matching.position_row(symbol)) for symbol in symbols]
        if self._matching.hedged:
            found = [(s, row | {"positionIdx": idx}) for s, row in found for idx in (1, 2)]
        return _page(found, params, 20, 200)

    def _closed_pnl(self, params: Params, now: Now) -> Row:
        if self._elsewhere(params):
            return _page([], params, 50, 100)
        since, until = _span(params, now.market_ms)
        symbol = params.get("symbol")
        found = [
            (place, row)
            for place, row in reversed(list(enumerate(self._matching.closed_pnl)))
            if since <= int(row["createdTime"]) <= until and symbol in (None, "", row["symbol"])
        ]
        return _page(found, params, 50, 100)

    def _wallet(self, params: Params, _: Now) -> Row:
        if params.get("accountType", "UNIFIED") != "UNIFIED":
            raise Refused(10001, "accountType only support UNIFIED.")
        return {"list": [self._matching.wallet_row()]}

    def _account(self, _: Params, now: Now) -> Row:
        return {
            "marginMode": "REGULAR_MARGIN",
            "unifiedMarginStatus": 5,
            "isMasterTrader": False,
            "spotHedgingStatus": "OFF",
            "updatedTime": str(now.wall_ms),
            "dcpStatus": "OFF",
            "timeWindow": 10,
            "smpGroup": 0,
        }

    def _fee_rate(self, params: Params, _: Now) -> Row:
        if self._elsewhere(params):
            return {"list": []}
        symbols = [params["symbol"]] if params.get("symbol") else list(self._public.symbols)
        if params.get("symbol"):
            self._known(params)
        rates = {"takerFeeRate": f"{TAKER_FEE:f}", "makerFeeRate": f"{MAKER_FEE:f}"}
        return {"list": [{"symbol": symbol, "baseCoin": "", **rates} for symbol in symbols]}

    def _key(self, _: Params, __: Now) -> Row:
        rights: Row = {"ContractTrade": ["Order", "Position"], "Spot": [], "Wallet": []}
        rights |= {"Options": [], "Derivatives": ["DerivativesTrade"], "Exchange": []}
        return {
            "id": "1",
            "note": "paper",
            "apiKey": "",
            "readOnly": 0,
            "secret": "",
            "permissions": rights,
            "ips": ["*"],
            "type": 1,
            "deadlineDay": 90,
            "expiredAt": "2099-01-01T00:00:00Z",
            "createdAt": "2024-01-01T00:00:00Z",
            "unified": 0,
            "uta": 1,
            "userID": 1,
            "inviterID": 0,
            "vipLevel": "No VIP",
            "mktMakerLevel": "0",
            "affiliateID": 0,
            "rsaPublicKey": "",
            "isMaster": True,
            "parentUid": "0",
            "kycLevel": "LEVEL_DEFAULT",
            "kycRegion": "",
        }

    def _coins(self, _: Params, __: Now) -> Row:
        return {"rows": [{"name": "USDT", "coin": "USDT", "remainAmount": "0", "chains": []}]}

    def _set_leverage(self, params: Params, _: Now) -> Row:
        self._known(params)
        wallet, symbol = self._matching.wallet, str(params["symbol"])
        buy, sell = number(params, "buyLeverage"), number(params, "sellLeverage")
        if buy != sell or not 1 <= buy <= MAX_LEVERAGE or buy % Decimal("0.01"):
            raise invalid("leverage")
        if wallet.margin_leverage(symbol) == buy:
            raise Refused(110043, "leverage not modified")
        self._matching.set_leverage(symbol, buy)
        return {}

    def _switch_mode(self, params: Params, _: Now) -> Row:
        mode = str(params.get("mode"))
        if mode not in ("0", "3"):
            raise invalid("mode")
        if (mode == "3") == self._matching.hedged:
            raise Refused(110025, "Position mode is not modified")
        if self._matching.wallet.held():
            raise Refused(
                110024, "You have an existing position, so position mode cannot be switched"
            )
        if self._matching.open_orders():
            raise Refused(110028, "You have an existing order, so position mode cannot be switched")
        if mode == "3":
            raise Refused(10001, "params error: the paper exchange is one-way")
        self._matching.hedged = False
        return {}

    # Inside.

    def _category(self, params: Params) -> str:
        category = params.get("category") or "linear"
        if category != "linear" and category not in OTHER_CATEGORIES:
            raise invalid("category")
        return str(category)

    def _elsewhere(self, params: Params) -> bool:
        """Whether it asks for another market: another category, or another coin of settlement."""
        coin = None if params.get("symbol") else params.get("settleCoin")
        return self._category(params) != "linear" or coin not in (None, "", "USDT")

    def _scope(self, params: Params) -> None:
        if not any(params.get(name) for name in ("symbol", "baseCoin", "settleCoin")):
            raise Refused(10001, "params error: symbol, baseCoin or settleCoin is required")

    def _trading(self) -> list[int]:
        listings = self._matching.listings
        return [i for s, i in self._public.index.items() if listings[s].status == "Trading"]

    def _known(self, params: Params) -> int:
        symbol = params.get("symbol")
        if params.get("category", "linear") != "linear":
            raise invalid("category")
        if not isinstance(symbol, str) or symbol not in self._public.index:
            raise Refused(10001, "params error: symbol invalid")
        return self._public.index[symbol]


def batch_of(params: Params) -> list[Any]:
    """The orders of a batch request; empty if there are none."""
    requests = params.get("request")
    return requests if isinstance(requests, list) else []


def _has_id(params: Params) -> bool:
    return bool(params.get("orderId") or params.get("orderLinkId"))


def _span(params: Params, now_ms: int) -> tuple[int, int]:
    """startTime and endTime in ms: seven days at most, the last ones where both are missing. Raises
    Refused."""
    since, until = whole(params, "startTime", -1), whole(params, "endTime", -1)
    if since < 0 and until < 0:
        return now_ms - WEEK_MS, 2**62
    since = since if since >= 0 else until - WEEK_MS
    until = until if until >= 0 else since + WEEK_MS
    if until - since > WEEK_MS:
        raise Refused(10001, "params error: the time range cannot exceed 7 days")
    return since, until


def _page(keyed: Iterable[tuple[Any, Any]], params: Params, default: int, most: int) -> Row:
    """One page of (key, row) in order of keys, and the cursor of the next.

    The cursor is the key of the last row shown, so what comes and goes meanwhile moves nothing.
    Keys are numbers, falling (newest first), or texts, rising.
    """
    limit = min(max(whole(params, "limit", default), 1), most)
    cursor = unquote(unquote(text(params, "cursor"))).removeprefix("after:")
    rest = [(key, row) for key, row in keyed if not cursor or _is_after(key, cursor)]
    more = len(rest) > limit
    after = quote(f"after:{rest[limit - 1][0]}") if more else ""
    return {
        "category": "linear",
        "list": [row for _, row in rest[:limit]],
        "nextPageCursor": after,
    }


def _is_after(key: Any, cursor: str) -> bool:
    if isinstance(key, str):
        return key > cursor
    return bool(key < whole({"cursor": cursor}, "cursor", 0))
