"""matching: orders against trades, as Bybit v5 tells it. Pure: requests in, answers and pushes out.

The book is the last traded price with an order of ours before it or behind it. A trade strictly
beyond a resting order's price fills it whole, at its own price; a trade at its price fills at
most the traded quantity, oldest order first. An order that crosses the last price trades there, as
taker.
"""

import re
import uuid
from collections import defaultdict
from collections.abc import Iterable
from decimal import Decimal, InvalidOperation
from typing import Any

from services.paper.market import Listing
from services.paper.wallet import Holding, Wallet

BUY, SELL = "Buy", "Sell"
OPEN = ("New", "PartiallyFilled")
MAKER_FEE, TAKER_FEE = Decimal("0.0002"), Decimal("0.00055")
MIN_NOTIONAL = Decimal(5)
LINK_ID = re.compile(r"[A-Za-z0-9_-]{0,36}")
TIMES_IN_FORCE = ("GTC", "IOC", "FOK", "PostOnly")
KEEP_CLOSED = 5_000  # closed orders and fills that a restart remembers
MAX_OPEN_PER_SYMBOL = 500
ZERO = Decimal(0)

Params = dict[str, Any]
Row = dict[str, Any]


class Refused(Exception):
    """Bybit's refusal: a retCode and a retMsg."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(code, text)
        self.code, self.text = code, text


class Order:
    """One order; `row` is what a client sees."""

    __slots__ = (
        *("avg_value", "created_ms", "cum_fee", "filled", "last_created", "link_id", "number"),
        *("order_id", "post_only", "price", "qty", "reason", "cancel_type", "reduce_only", "side"),
        *("status", "symbol", "time_in_force", "order_type", "updated_ms"),
    )

    def __init__(self, params: Params, price: Decimal, qty: Decimal, number: int, order_id: str):
        self.symbol, self.side = params["symbol"], params["side"]
        self.order_type = params["orderType"]
        self.time_in_force = params.get("timeInForce") or "GTC"
        self.reduce_only = bool(params.get("reduceOnly"))
        self.link_id = params.get("orderLinkId") or ""
        self.price, self.qty, self.number, self.order_id = price, qty, number, order_id
        self.filled = self.avg_value = self.cum_fee = ZERO
        self.status, self.reason, self.cancel_type = "New", "EC_NoError", "UNKNOWN"
        self.created_ms = self.updated_ms = 0
        self.last_created = ZERO

    @property
    def left(self) -> Decimal:
        """What may still be filled."""
        return self.qty - self.filled if self.status in OPEN else ZERO

    def row(self) -> Row:
        """The order object of REST and of the `order` topic."""
        average = f"{self.avg_value / self.filled:f}" if self.filled else ""
        return {
            **ORDER_CONSTANTS,
            "symbol": self.symbol,
            "orderId": self.order_id,
            "orderLinkId": self.link_id,
            "side": self.side,
            "orderType": self.order_type,
            "price": f"{self.price:f}",
            "qty": f"{self.qty:f}",
            "timeInForce": self.time_in_force,
            "orderStatus": self.status,
            "cancelType": self.cancel_type,
            "rejectReason": self.reason,
            "avgPrice": average,
            "leavesQty": f"{self.left:f}",
            "leavesValue": f"{self.left * self.price:f}",
            "cumExecQty": f"{self.filled:f}",
            "cumExecValue": f"{self.avg_value:f}",
            "cumExecFee": f"{self.cum_fee:f}",
            "lastPriceOnCreated": f"{self.last_created:f}",
            "reduceOnly": self.reduce_only,
            "createdTime": str(self.created_ms),
            "updatedTime": str(self.updated_ms),
        }


ORDER_CONSTANTS: Row = {
    "category": "linear",
    "parentOrderLinkId": "",
    "blockTradeId": "",
    "positionIdx": 0,
    "createType": "CreateByUser",
    "cumFeeDetail": {},
    "closedPnl": "0",
    "feeCurrency": "",
    "stopOrderType": "",
    "orderIv": "",
    "isLeverage": "",
    "triggerPrice": "",
    "triggerDirection": 0,
    "triggerBy": "",
    "takeProfit": "",
    "stopLoss": "",
    "tpTriggerBy": "",
    "slTriggerBy": "",
    "tpslMode": "",
    "tpLimitPrice": "",
    "slLimitPrice": "",
    "closeOnTrigger": False,
    "placeType": "",
    "smpType": "None",
    "smpGroup": 0,
    "smpOrderId": "",
    "slippageToleranceType": "UNKNOWN",
    "slippageTolerance": "",
    "rpiTakerAccess": False,
    "rpiMatchedQty": "0",
}


class Matching:
    """One account's orders at the exchange. `pushes` collects (topic, row) until taken."""

    def __init__(self, listings: Iterable[Listing], balance: Decimal, seed: int) -> None:
        self.listings = {listing.symbol: listing for listing in listings}
        self.wallet = Wallet(balance)
        self.last: dict[str, Decimal] = {}
        self.orders: dict[str, Order] = {}
        self.executions: list[Row] = []
        self._open: defaultdict[str, list[Order]] = defaultdict(list)
        self._by_link: dict[str, Order] = {}
        self._pushes: list[tuple[str, Row]] = []
        self._number, self._seed = 0, seed

    def take_pushes(self) -> list[tuple[str, Row]]:
        """What the private stream must say, in order."""
        pushes, self._pushes = self._pushes, []
        return pushes

    def create(self, params: Params, now_ms: int) -> Row:
        """POST /v5/order/create. Raises Refused."""
        listing = self._listing(params)
        side, order_type = params.get("side"), params.get("orderType")
        if side not in (BUY, SELL) or order_type not in ("Limit", "Market"):
            raise Refused(10001, "params error: side or orderType invalid")
        if str(params.get("timeInForce") or "GTC") not in TIMES_IN_FORCE:
            raise Refused(10001, "params error: timeInForce invalid")
        if str(params.get("positionIdx") or 0) != "0":
            raise Refused(10001, "position idx not match position mode")
        link_id = str(params.get("orderLinkId") or "")
        if not LINK_ID.fullmatch(link_id):
            raise Refused(10001, "params error: orderLinkId invalid")
        if link_id and link_id in self._by_link:
            raise Refused(110072, "OrderLinkedID is duplicate")
        last = self.last[listing.symbol]
        price = _number(params, "price", listing.tick_size) if order_type == "Limit" else last
        qty = self._qty(params, listing, side, price)
        if len(self._open[listing.symbol]) >= MAX_OPEN_PER_SYMBOL:
            raise Refused(110020, "not allowed to have more than 500 active orders")
        order = Order({**params, "symbol": listing.symbol}, price, qty, *self._identity("order"))
        order.created_ms = order.updated_ms = now_ms
        order.last_created = last
        self.orders[order.order_id] = order
        if link_id:
            self._by_link[link_id] = order
        self._enter(order, last, now_ms)
        return {"orderId": order.order_id, "orderLinkId": link_id}

    def amend(self, params: Params, now_ms: int) -> Row:
        """POST /v5/order/amend: an order that now crosses trades at once. Raises Refused."""
        order = self._find(params, "replace")
        listing = self.listings[order.symbol]
        price = _number(params, "price", listing.tick_size) if params.get("price") else order.price
        qty = _number(params, "qty", listing.qty_step) if params.get("qty") else order.qty
        if (price, qty) == (order.price, order.qty):
            raise Refused(10001, "order not modified")
        if qty <= order.filled:
            raise Refused(110001, "order not exists or too late to replace")
        if qty > order.qty or price != order.price:
            self._open[order.symbol].remove(order)
            self._open[order.symbol].append(order)  # its place in the queue is lost
        order.price, order.qty, order.updated_ms = price, qty, now_ms
        crosses = _crosses(order, self.last[order.symbol])
        if crosses and order.time_in_force == "PostOnly":
            self._end(order, "Cancelled", "EC_PostOnlyWillTakeLiquidity", now_ms)
        else:
            self._push_order(order)
            if crosses:
                self._fill(order, order.left, self.last[order.symbol], False, now_ms)
        return {"orderId": order.order_id, "orderLinkId": order.link_id}

    def cancel(self, params: Params, now_ms: int) -> Row:
        """POST /v5/order/cancel. Raises Refused."""
        order = self._find(params, "cancel")
        self._end(order, "Cancelled", "EC_PerCancelRequest", now_ms, "CancelByUser")
        return {"orderId": order.order_id, "orderLinkId": order.link_id}

    def cancel_all(self, params: Params, now_ms: int) -> Row:
        """POST /v5/order/cancel-all."""
        symbol = params.get("symbol")
        gone = [o for o in self.open_orders() if not symbol or o.symbol == symbol]
        for order in gone:
            self._end(order, "Cancelled", "EC_PerCancelRequest", now_ms, "CancelByUser")
        rows = [{"orderId": order.order_id, "orderLinkId": order.link_id} for order in gone]
        return {"list": rows, "success": "1"}

    def trade(self, symbol: str, price: Decimal, qty: Decimal, now_ms: int) -> None:
        """The market trades: resting orders it reaches are filled."""
        self.last[symbol] = price
        left = qty
        for order in sorted(self._open[symbol], key=_priority):
            if order.status not in OPEN:
                continue  # cancelled by a fill before it
            if order.price == price and left > 0:
                part = min(left, order.left)
                left -= part
                self._fill(order, part, order.price, True, now_ms)
            elif (order.price > price) == (order.side == BUY) and order.price != price:
                self._fill(order, order.left, order.price, True, now_ms)

    def snapshot(self) -> list[Row]:
        """The account as journal lines: balance and positions, then recent orders, then fills."""
        positions = {
            symbol: [str(p.size), str(p.entry), str(p.realised), p.opened_ms, p.updated_ms]
            for symbol, p in self.wallet.positions.items()
        }
        head = {"balance": str(self.wallet.balance), "positions": positions}
        head["leverage"] = {symbol: str(x) for symbol, x in self.wallet.leverage.items()}
        ended = [order for order in self.orders.values() if order.status not in OPEN][-KEEP_CLOSED:]
        queued = [order for queue in self._open.values() for order in queue]
        orders = [{"order": o.row(), "number": o.number} for o in (*ended, *queued)]
        fills = [{"execution": row, "old": True} for row in self.executions[-KEEP_CLOSED:]]
        return [head | {"number": self._number}, *orders, *fills]

    def restore_wallet(self, line: Row) -> None:
        """Balance and positions of a snapshot."""
        self.wallet.balance = Decimal(line["balance"])
        self._number = line["number"]
        self.restore_leverage(line["leverage"])
        for symbol, (size, entry, realised, *stamps) in line["positions"].items():
            self.wallet.positions[symbol] = Holding(
                Decimal(size), Decimal(entry), Decimal(realised), *stamps
            )

    def restore_leverage(self, leverage: dict[str, str]) -> None:
        """Leverage of some symbols."""
        self.wallet.leverage |= {symbol: Decimal(x) for symbol, x in leverage.items()}

    def restore_order(self, row: Row, number: int) -> None:
        """One order as it was last said; `number` is 0 for one that is new or known already."""
        price, qty = Decimal(row["price"]), Decimal(row["qty"])
        known = self.orders.get(row["orderId"])
        self._number += not (number or known)
        number = number or (known.number if known else self._number)
        order = Order(row, price, qty, number, row["orderId"])
        order.status, order.reason = row["orderStatus"], row["rejectReason"]
        order.cancel_type, order.filled = row["cancelType"], Decimal(row["cumExecQty"])
        order.avg_value, order.cum_fee = Decimal(row["cumExecValue"]), Decimal(row["cumExecFee"])
        order.created_ms, order.updated_ms = int(row["createdTime"]), int(row["updatedTime"])
        order.last_created = Decimal(row["lastPriceOnCreated"])
        self.orders[order.order_id] = order
        if order.link_id:
            self._by_link[order.link_id] = order
        queue = self._open[order.symbol]
        at = queue.index(known) if known in queue else len(queue)
        if known and (known.price, known.qty) != (price, qty):
            at = len(queue)  # amended: its place was lost
        queue[:] = [other for other in queue if other is not known]
        if order.status in OPEN:
            queue.insert(at, order)

    def restored(self) -> None:
        """After the last line: orders by age."""
        self.orders = dict(sorted(self.orders.items(), key=lambda item: item[1].number))

    def restore_execution(self, row: Row, counted: bool) -> None:
        """One fill; `counted` if the snapshot's wallet already holds it."""
        self.executions.append({k: v for k, v in row.items() if k != "execPnl"})
        self._number = max(self._number, row["seq"])
        if not counted:
            qty, price = Decimal(row["execQty"]), Decimal(row["execPrice"])
            signed, fee = qty if row["side"] == BUY else -qty, Decimal(row["execFee"])
            self.wallet.fill(row["symbol"], signed, price, fee, int(row["execTime"]))

    def open_orders(self) -> list[Order]:
        """Every order that may still be filled, newest first."""
        found = [order for orders in self._open.values() for order in orders]
        return sorted(found, key=lambda order: -order.number)

    def closed_orders(self) -> list[Order]:
        """Every order that has ended, newest first."""
        return [order for order in reversed(self.orders.values()) if order.status not in OPEN]

    def find(self, params: Params) -> Order | None:
        """By orderId, which wins, or orderLinkId."""
        if params.get("orderId"):
            return self.orders.get(params["orderId"])
        return self._by_link.get(str(params.get("orderLinkId")))

    def position_row(self, symbol: str) -> Row:
        """The position object; `entryPrice` is the stream's name, `avgPrice` the REST's."""
        held, last = self.wallet.position(symbol), self.last[symbol]
        value = abs(held.size) * held.entry
        unrealised = held.size * (last - held.entry)
        leverage = self.wallet.margin_leverage(symbol)
        return {
            "category": "linear",
            "symbol": symbol,
            "positionIdx": 0,
            "riskId": 1,
            "riskLimitValue": "200000",
            "tradeMode": 0,
            "autoAddMargin": 0,
            "tpslMode": "Full",
            "positionStatus": "Normal",
            "adlRankIndicator": 0,
            "isReduceOnly": False,
            "liqPrice": "",
            "bustPrice": "",
            "takeProfit": "",
            "stopLoss": "",
            "trailingStop": "0",
            "positionBalance": "0",
            "sessionAvgPrice": "",
            "seq": self._number or -1,
            "leverageSysUpdatedTime": "",
            "mmrSysUpdatedTime": "",
            "side": BUY if held.size > 0 else SELL if held.size < 0 else "",
            "size": f"{abs(held.size):f}",
            "entryPrice": f"{held.entry:f}",
            "avgPrice": f"{held.entry:f}",
            "leverage": f"{leverage:f}",
            "positionValue": f"{value:f}",
            "positionIM": f"{value / leverage:f}",
            "positionMM": f"{value / 100:f}",
            "markPrice": f"{last:f}",
            "unrealisedPnl": f"{unrealised:f}",
            "curRealisedPnl": f"{held.realised:f}",
            "cumRealisedPnl": f"{held.realised:f}",
            "createdTime": str(held.opened_ms),
            "updatedTime": str(held.updated_ms),
        }

    def wallet_row(self) -> Row:
        """The wallet object: one coin, USDT."""
        unrealised = self.wallet.unrealised(self.last)
        equity = self.wallet.balance + unrealised
        margin = self.wallet.margin(self.last)
        coin = {
            "coin": "USDT",
            "equity": f"{equity:f}",
            "usdValue": f"{equity:f}",
            "walletBalance": f"{self.wallet.balance:f}",
            "unrealisedPnl": f"{unrealised:f}",
            "locked": "0",
            "borrowAmount": "0",
            "accruedInterest": "0",
            "bonus": "0",
            "totalPositionIM": f"{margin:f}",
            "totalOrderIM": f"{self._order_margin():f}",
            "cumRealisedPnl": "0",
            "collateralSwitch": True,
            "marginCollateral": True,
            "totalPositionMM": "0",
            "availableToWithdraw": "",
            "availableToBorrow": "",
        }
        return {
            "accountType": "UNIFIED",
            "totalEquity": f"{equity:f}",
            "totalWalletBalance": f"{self.wallet.balance:f}",
            "totalMarginBalance": f"{equity:f}",
            "totalAvailableBalance": f"{self._available():f}",
            "totalPerpUPL": f"{unrealised:f}",
            "totalInitialMargin": f"{margin:f}",
            "totalMaintenanceMargin": "0",
            "accountIMRate": "0",
            "accountMMRate": "0",
            "accountLTV": "0",
            "coin": [coin],
        }

    def _listing(self, params: Params) -> Listing:
        symbol = params.get("symbol")
        if params.get("category") != "linear" or symbol not in self.listings:
            raise Refused(10001, "params error: symbol invalid")
        return self.listings[symbol]

    def _qty(self, params: Params, listing: Listing, side: str, price: Decimal) -> Decimal:
        """The quantity the order may have: on the grid, affordable, or trimmed if reduce-only."""
        qty = _number(params, "qty", listing.qty_step)
        if qty < listing.min_order_qty:
            raise Refused(10001, "The number of contracts exceeds minimum limit allowed")
        if qty > listing.max_order_qty:
            raise Refused(10001, "The number of contracts exceeds maximum limit allowed")
        size = self.wallet.position(listing.symbol).size
        if params.get("reduceOnly"):
            if size == 0:
                text = "current position is zero, cannot fix reduce-only order qty"
                raise Refused(110017, text)
            if (size > 0) == (side == BUY):
                raise Refused(110017, "reduce-only order has same side with current position")
            return min(qty, abs(size))
        if qty * price < MIN_NOTIONAL:
            raise Refused(110094, "Order does not meet minimum order value 5USDT")
        if qty * price / self.wallet.margin_leverage(listing.symbol) > self._available():
            raise Refused(110007, "ab not enough for new order")
        return qty

    def _order_margin(self) -> Decimal:
        return sum(
            (
                order.left * order.price / self.wallet.margin_leverage(order.symbol)
                for orders in self._open.values()
                for order in orders
                if not order.reduce_only
            ),
            ZERO,
        )

    def _available(self) -> Decimal:
        equity = self.wallet.balance + self.wallet.unrealised(self.last)
        return equity - self.wallet.margin(self.last) - self._order_margin()

    def _enter(self, order: Order, last: Decimal, now_ms: int) -> None:
        """A new order meets the market."""
        if not _crosses(order, last):
            if order.time_in_force in ("IOC", "FOK"):
                self._end(order, "Cancelled", "EC_NoImmediateQtyToFill", now_ms)
                return
            self._open[order.symbol].append(order)
            self._push_order(order)
            return
        if order.time_in_force == "PostOnly":
            self._end(order, "Cancelled", "EC_PostOnlyWillTakeLiquidity", now_ms)
            return
        self._open[order.symbol].append(order)
        self._fill(order, order.left, last, False, now_ms)

    def _fill(self, order: Order, qty: Decimal, price: Decimal, maker: bool, now_ms: int) -> None:
        """One execution, and all that the account says of it."""
        size = self.wallet.position(order.symbol).size
        if order.reduce_only:
            qty = min(qty, abs(size)) if (size > 0) != (order.side == BUY) else ZERO
        if qty <= 0:
            if order.reduce_only and not size:
                self._end(order, "Cancelled", "EC_NoError", now_ms, "CancelByReduceOnly")
            return
        fee = qty * price * (MAKER_FEE if maker else TAKER_FEE)
        signed = qty if order.side == BUY else -qty
        result = self.wallet.fill(order.symbol, signed, price, fee, now_ms)
        order.filled += qty
        order.avg_value += qty * price
        order.cum_fee += fee
        order.updated_ms = now_ms = max(
            now_ms, order.updated_ms
        )  # a point may lie before the order
        order.status = "Filled" if order.filled == order.qty else "PartiallyFilled"
        if order.status == "Filled":
            self._open[order.symbol].remove(order)
        execution = self._execution(order, qty, price, fee, maker, result.closed, now_ms)
        self.executions.append(execution)
        self._push_order(order)
        self._pushes.append(("execution", {**execution, "execPnl": f"{result.realised:f}"}))
        self._pushes.append(("wallet", self.wallet_row()))
        if not self.wallet.position(order.symbol).size:
            for other in [o for o in self._open[order.symbol] if o.reduce_only]:
                self._end(other, "Cancelled", "EC_NoError", now_ms, "CancelByReduceOnly")

    def _execution(
        self,
        order: Order,
        qty: Decimal,
        price: Decimal,
        fee: Decimal,
        maker: bool,
        closed: Decimal,
        now_ms: int,
    ) -> Row:
        _, exec_id = self._identity("execution")
        return {
            "category": "linear",
            "symbol": order.symbol,
            "orderId": order.order_id,
            "orderLinkId": order.link_id,
            "side": order.side,
            "orderType": order.order_type,
            "orderPrice": f"{order.price:f}",
            "orderQty": f"{order.qty:f}",
            "leavesQty": f"{order.left:f}",
            "execId": exec_id,
            "execType": "Trade",
            "execPrice": f"{price:f}",
            "execQty": f"{qty:f}",
            "execValue": f"{qty * price:f}",
            "execFee": f"{fee:f}",
            "feeRate": f"{MAKER_FEE if maker else TAKER_FEE:f}",
            "feeCurrency": "USDT",
            "isMaker": maker,
            "execTime": str(now_ms),
            "closedSize": f"{closed:f}",
            "createType": "CreateByUser",
            "stopOrderType": "UNKNOWN",
            "markPrice": f"{self.last[order.symbol]:f}",
            "indexPrice": "",
            "underlyingPrice": "",
            "tradeIv": "",
            "markIv": "",
            "blockTradeId": "",
            "isLeverage": "0",
            "marketUnit": "",
            "extraFees": [],
            "seq": self._number,
        }

    def _end(
        self, order: Order, status: str, reason: str, now_ms: int, cancel_type: str = "UNKNOWN"
    ) -> None:
        if order in self._open[order.symbol]:
            self._open[order.symbol].remove(order)
        order.status, order.reason = status, reason
        order.updated_ms = max(now_ms, order.updated_ms)
        order.cancel_type = cancel_type
        self._push_order(order)

    def _push_order(self, order: Order) -> None:
        self._pushes.append(("order", order.row()))
        self._pushes.append(("position", self.position_row(order.symbol)))

    def _find(self, params: Params, verb: str) -> Order:
        self._listing(params)
        if not (params.get("orderId") or params.get("orderLinkId")):
            raise Refused(10001, "params error: OrderId or orderLinkId is required")
        order = self.find(params)
        if order is None or order.status not in OPEN:
            raise Refused(110001, f"order not exists or too late to {verb}")
        return order

    def _identity(self, kind: str) -> tuple[int, str]:
        """A number that counts up, and the uuid that follows from it and the seed."""
        self._number += 1
        return self._number, str(
            uuid.uuid5(uuid.NAMESPACE_OID, f"{self._seed}.{kind}.{self._number}")
        )


def _priority(order: Order) -> Decimal:
    """Whom a trade reaches first: the best price; the sort is stable, so then the oldest."""
    return -order.price if order.side == BUY else order.price


def _crosses(order: Order, last: Decimal) -> bool:
    if order.order_type == "Market":
        return True
    return order.price >= last if order.side == BUY else order.price <= last


def _number(params: Params, name: str, step: Decimal) -> Decimal:
    """A positive multiple of `step`, from a string or a number. Raises Refused."""
    try:
        value = Decimal(str(params.get(name)))
    except InvalidOperation:
        value = ZERO
    if not value.is_finite() or value <= 0 or value % step:
        raise Refused(10001, f"params error: {name} invalid")
    return value
