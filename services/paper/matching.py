"""matching: the account's orders against the market, as Bybit v5 tells it. Pure.

Requests and trades in, answers and pushes out. A trade strictly beyond a resting order's price
fills it whole, at its own price; a trade at its price eats the queue ahead of it first, then fills
it. An order that crosses the book takes what is there, level by level, at each level's price.
"""

import re
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from zlib import crc32

from services.paper import rows
from services.paper.book import Book
from services.paper.market import Listing
from services.paper.order import BUY, OPEN, RESTING, SELL, Order, Params, Row, is_true
from services.paper.params import Refused, choice, invalid, number, text
from services.paper.rows import MAINTENANCE, MAKER_FEE, TAKER_FEE
from services.paper.stops import Stops, bracket, trigger_terms
from services.paper.wallet import Holding, Wallet

MIN_NOTIONAL = Decimal(5)
LINK_ID = re.compile(r"[A-Za-z0-9_-]{0,36}")
TIMES_IN_FORCE = ("GTC", "IOC", "FOK", "PostOnly")
PRICE_BAND = Decimal("0.05")  # a buy above mark * (1 + band) is moved there; sells mirrored
KEEP_CLOSED = 5_000  # closed orders and fills that a restart remembers
MAX_OPEN_PER_SYMBOL = 500
MINUTE_MS = 60_000
ZERO = Decimal(0)

Twist = Callable[[str, str], Row | None]
"""(action, symbol) -> the terms of a fault that is due there, or None."""


class Matching:
    """One account's orders at the exchange. `pushes` collects (topic, row) until taken.

    `spread=False` is the bare book: no spread and no queue, any quantity at the last price.
    """

    def __init__(
        self,
        listings: Iterable[Listing],
        balance: Decimal,
        seed: int,
        spread: bool = False,
        twist: Twist = lambda action, symbol: None,
    ) -> None:
        self.listings = {listing.symbol: listing for listing in listings}
        self.wallet = Wallet(balance)
        self.books: dict[str, Book] = {}
        self.last: dict[str, Decimal] = {}
        self.marks: dict[str, Decimal] = {}
        self.mark_offset: defaultdict[str, Decimal] = defaultdict(Decimal)
        self.band = PRICE_BAND
        self.hedged = False  # somebody switched the account: no order fits any more
        self.orders: dict[str, Order] = {}
        self.executions: list[Row] = []
        self.closed_pnl: list[Row] = []
        self.stops = Stops(self)
        self._open: defaultdict[str, list[Order]] = defaultdict(list)
        self._by_link: dict[str, Order] = {}
        self._pushes: list[tuple[str, Row]] = []
        self._number, self._seed, self._spread, self._twist = 0, seed, spread, twist

    def take_pushes(self) -> list[tuple[str, Row]]:
        """What the private stream must say, in order."""
        pushes, self._pushes = self._pushes, []
        return pushes

    # Requests.

    def create(self, params: Params, now_ms: int) -> Row:
        """POST /v5/order/create. Raises Refused."""
        listing = self._listing(params)
        symbol, last, tick = listing.symbol, self.last[listing.symbol], listing.tick_size
        side = choice(params, "side", (BUY, SELL))
        kind = choice(params, "orderType", ("Limit", "Market"))
        force = choice(params, "timeInForce", TIMES_IN_FORCE, "GTC" if kind == "Limit" else "IOC")
        if self.hedged or str(params.get("positionIdx") or 0) != "0":
            raise Refused(10001, "position idx not match position mode")
        link_id = self._new_link_id(params)
        reduces = is_true(params.get("reduceOnly"))
        if listing.status != "Trading" and not reduces:
            raise Refused(110074, "This contract is not live")
        asked = number(params, "price", tick) if kind == "Limit" else None
        terms = trigger_terms(params, last, tick) | bracket(params, asked or last, side, tick)
        if reduces and (terms.get("takeProfit") or terms.get("stopLoss")):
            raise Refused(10001, "params error: reduce-only orders take no takeProfit, stopLoss")
        price = self._permitted(listing, side, asked)
        qty = self._qty(params, listing, side, price, reduces, bool(terms.get("triggerPrice")))
        if terms.get("triggerPrice"):
            self.stops.check_room(symbol)
        if len(self._open[symbol]) >= MAX_OPEN_PER_SYMBOL:
            raise Refused(110020, "not allowed to have more than 500 active orders")
        clean = {"symbol": symbol, "side": side, "orderType": kind, "reduceOnly": reduces}
        clean |= {"timeInForce": force, "orderLinkId": link_id, **terms}
        clean["closeOnTrigger"] = is_true(params.get("closeOnTrigger"))
        order = self.new_order(clean, price, qty, now_ms)
        if order.trigger:
            self.stops.add(order)
            self.say(order)
        elif twist := self._twist("reject_after_ack", symbol):
            self.end(order, "Rejected", twist.get("reason", "EC_ReachRiskPriceLimit"), now_ms)
        else:
            self._enter(order, now_ms)
        return {"orderId": order.order_id, "orderLinkId": link_id}

    def amend(self, params: Params, now_ms: int) -> Row:
        """POST /v5/order/amend: an order that now crosses trades at once. Raises Refused."""
        order = self._find(params, "replace")
        if self._twist("fill_before_amend", order.symbol) and order.status in RESTING:
            self._fill(order, order.left, order.price, True, now_ms)
            order = self._find(params, "replace")
        listing = self.listings[order.symbol]
        price, qty, terms = order.price, order.qty, dict(order.terms)
        if params.get("price"):
            asked = number(params, "price", listing.tick_size)
            price = self._permitted(listing, order.side, asked)
        if params.get("qty"):
            qty = number(params, "qty", listing.qty_step)
        if params.get("triggerPrice") and order.trigger:
            terms["triggerPrice"] = f"{number(params, 'triggerPrice', listing.tick_size):f}"
        if not order.from_position:
            base = price if order.order_type == "Limit" else self.last[order.symbol]
            terms |= bracket(params, base, order.side, listing.tick_size, terms)
        if qty != order.qty and order.from_position and order.terms["tpslMode"] == "Full":
            raise invalid("qty")  # it is the position's
        if (price, qty, terms) == (order.price, order.qty, order.terms):
            raise Refused(10001, "order not modified")
        if not listing.min_order_qty <= qty <= listing.max_order_qty and qty != order.qty:
            raise invalid("qty")
        if qty <= order.filled:
            raise Refused(110001, "order not exists or too late to replace")
        more = (qty - order.qty) * price / self.wallet.margin_leverage(order.symbol)
        if not order.reduce_only and more > 0 and more > self.available():
            raise Refused(110007, "ab not enough for new order")
        moved = qty > order.qty or price != order.price
        order.price, order.qty, order.terms = price, qty, terms
        order.updated_ms = max(now_ms, order.updated_ms)
        if moved and order.status in RESTING:
            self._open[order.symbol].remove(order)  # its place in the queue is lost
            self._enter(order, now_ms)
        else:
            self.say(order)
        return {"orderId": order.order_id, "orderLinkId": order.link_id}

    def cancel(self, params: Params, now_ms: int) -> Row:
        """POST /v5/order/cancel. Raises Refused."""
        order = self._find(params, "cancel")
        if self._twist("fill_before_cancel", order.symbol) and order.status in RESTING:
            self._fill(order, order.left, order.price, True, now_ms)
            if order.status == "Filled":  # said twice: by the fill, and by the late cancel
                order.reason, order.cancel_type = "EC_OrigClOrdIDDoesNotExist", "CancelByUser"
                self.say(order)
        else:
            self._cancel(order, now_ms)
        return {"orderId": order.order_id, "orderLinkId": order.link_id}

    def cancel_all(self, params: Params, now_ms: int) -> Row:
        """POST /v5/order/cancel-all: one symbol, or everything of a coin. Raises Refused."""
        symbol, base = params.get("symbol"), params.get("baseCoin")
        if params.get("category") != "linear":
            raise invalid("category")
        kind = choice(params, "orderFilter", ("Order", "StopOrder", "OpenOrder"), "OpenOrder")
        settled = params.get("settleCoin")
        if not (symbol or base or settled):
            raise Refused(10001, "params error: symbol, baseCoin or settleCoin is required")
        if symbol:
            self._listing(params)
        other = not (symbol or base) and settled != "USDT"
        gone = [
            order
            for order in ([] if other else self.open_orders())
            if (order.symbol == symbol if symbol else not base or order.symbol == f"{base}USDT")
            and (kind == "OpenOrder" or (kind == "StopOrder") == (order.status == "Untriggered"))
        ][:MAX_OPEN_PER_SYMBOL]
        for order in gone:
            self._cancel(order, now_ms)
        found = [{"orderId": order.order_id, "orderLinkId": order.link_id} for order in gone]
        return {"list": found, "success": "1"}

    def trading_stop(self, params: Params, now_ms: int) -> Row:
        """POST /v5/position/trading-stop. Raises Refused."""
        listing = self._listing(params)
        size = self.wallet.position(listing.symbol).size
        self.stops.trading_stop(params, listing, size, now_ms)
        return {}

    # The market.

    def start(self, symbol: str, price: Decimal) -> None:
        """The last price before the first trade."""
        listing = self.listings[symbol]
        spread = listing.spread_ticks if self._spread else 0
        self.books[symbol] = Book(symbol, self._seed, spread, int(price / listing.tick_size))
        self._moved(symbol, price)

    def trade(
        self, symbol: str, price: Decimal, qty: Decimal, now_ms: int, queued: bool = True
    ) -> None:
        """The market trades: resting orders it reaches are filled, triggers fire.

        `queued=False` lets the trade meet our orders first, as if nobody stood ahead of them.
        """
        listing = self.listings[symbol]
        ticks = int(price / listing.tick_size)
        lots = int(qty / listing.qty_step)
        self.books[symbol].trade(ticks, lots, now_ms // MINUTE_MS)
        self._moved(symbol, price)
        if self._open.get(symbol):
            self._reach(symbol, price, qty, now_ms, queued)
        self._fire(symbol, now_ms)

    def fund(self, symbol: str, rate: Decimal, now_ms: int) -> None:
        """Funding of one symbol: a long position pays a rate above 0."""
        held = self.wallet.position(symbol)
        if not held.size:
            return
        mark = self.marks[symbol]
        fee = held.size * mark * rate
        self.wallet.fund(symbol, fee, now_ms)
        side = BUY if held.size > 0 else SELL
        number, order_id = self._identity("funding")
        row = rows.funding(symbol, side, abs(held.size), mark, rate, fee, order_id, number, now_ms)
        self._executed(row, ZERO)
        self._push_account(symbol)

    def check_margin(self, now_ms: int) -> None:
        """Liquidate everything once equity no longer covers the maintenance margin."""
        if not self.wallet.held() or self.equity() > self.maintenance():
            return
        for symbol in self.wallet.held():
            self.close_position(symbol, "BustTrade", "CreateByLiq", now_ms)
        if self.wallet.balance < 0:
            self.deposit(-self.wallet.balance)  # the insurance fund

    def close_position(
        self, symbol: str, exec_type: str, create_type: str, now_ms: int, qty: Decimal | None = None
    ) -> None:
        """The exchange closes a position, or `qty` of it: liquidation, ADL, delivery."""
        for order in [o for o in self._open[symbol] if exec_type != "AdlTrade"]:
            self.end(order, "Cancelled", "EC_NoError", now_ms, "CancelByPrepareLiq")
        size = self.wallet.position(symbol).size
        part = min(qty or abs(size), abs(size))
        if not part:
            return
        params: Row = {"symbol": symbol, "side": SELL if size > 0 else BUY, "orderType": "Market"}
        params |= {"timeInForce": "IOC", "reduceOnly": True, "createType": create_type}
        order = self.new_order(params, self.marks[symbol], part, now_ms)
        self._open[symbol].append(order)
        fee = ZERO if exec_type == "AdlTrade" else TAKER_FEE
        self._fill(order, part, self.marks[symbol], False, now_ms, exec_type, fee)

    def set_status(self, symbol: str, status: str, now_ms: int) -> None:
        """Trading, or Closed: orders go, the position is settled at the mark price."""
        self.listings[symbol] = self.listings[symbol]._replace(status=status)
        if status != "Trading":
            for order in [*self._open[symbol], *self.stops.waiting[symbol]]:
                self.end(order, "Cancelled", "EC_NoError", now_ms, "CancelByDelivery")
            self.close_position(symbol, "Delivery", "CreateBySettle", now_ms)

    def set_leverage(self, symbol: str, leverage: Decimal) -> None:
        """POST /v5/position/set-leverage."""
        self.wallet.leverage[symbol] = leverage
        self._pushes.append(("leverage", {symbol: str(leverage)}))
        self._pushes.append(("position", self.position_row(symbol)))

    def offset_mark(self, symbol: str, share: Decimal) -> None:
        """Hold the mark price so far away from the last one."""
        self.mark_offset[symbol] = share
        self._moved(symbol, self.last[symbol])

    def deposit(self, amount: Decimal) -> None:
        """Cash from outside; < 0 is a withdrawal."""
        self.wallet.deposit(amount)
        self._pushes.append(("deposit", {"amount": str(amount)}))
        self._pushes.append(("wallet", self.wallet_row()))

    def heal(self, now_ms: int) -> None:
        """Every symbol trades, at its own mark price, inside the usual band, one-way."""
        self.band, self.hedged = PRICE_BAND, False
        self.mark_offset.clear()
        for symbol, listing in self.listings.items():
            self._moved(symbol, self.last[symbol])
            if listing.status != "Trading":
                self.set_status(symbol, "Trading", now_ms)

    def foreign(self, params: Params, now_ms: int) -> Row:
        """An order that a person placed by hand: without an id of the client's. Raises Refused."""
        return self.create({"category": "linear", **params, "orderLinkId": ""}, now_ms)

    # Views.

    def open_orders(self) -> list[Order]:
        """Every order that may still be filled, newest first."""
        found = [o for queue in (*self._open.values(), *self.stops.waiting.values()) for o in queue]
        return sorted(found, key=lambda order: -order.number)

    def closed_orders(self) -> list[Order]:
        """Every order that has ended, newest first."""
        return [order for order in reversed(self.orders.values()) if order.status not in OPEN]

    def resting(self, symbol: str) -> dict[str, list[tuple[Decimal, Decimal]]]:
        """(price, what is left) of each order in the book, by side."""
        queue = self._open.get(symbol, ())
        return {side: [(o.price, o.left) for o in queue if o.side == side] for side in (BUY, SELL)}

    def find(self, params: Params) -> Order | None:
        """By orderId, which wins, or orderLinkId."""
        if params.get("orderId"):
            return self.orders.get(str(params["orderId"]))
        return self._by_link.get(str(params.get("orderLinkId")))

    def position_row(self, symbol: str) -> Row:
        """The position object; `entryPrice` is the stream's name, `avgPrice` the REST's."""
        return rows.position(symbol, self, self._number)

    def wallet_row(self) -> Row:
        """The wallet object: one coin, USDT."""
        return rows.wallet(self)

    def equity(self) -> Decimal:
        """Balance and open profit at mark prices."""
        return self.wallet.balance + self.wallet.unrealised(self.marks)

    def maintenance(self) -> Decimal:
        """Maintenance margin of all positions."""
        held = self.wallet.held()
        return sum((self.wallet.value(s, self.marks) for s in held), ZERO) * MAINTENANCE

    def order_margin(self) -> Decimal:
        """Initial margin that open orders hold."""
        return sum(
            (
                order.left * order.price / self.wallet.margin_leverage(order.symbol)
                for queue in self._open.values()
                for order in queue
                if not order.reduce_only
            ),
            ZERO,
        )

    def available(self) -> Decimal:
        """Margin that is free for new orders."""
        return self.equity() - self.wallet.margin(self.marks) - self.order_margin()

    # Persistence.

    def snapshot(self) -> list[Row]:
        """The account as journal lines: balance and positions, then recent orders, then fills."""
        positions = {
            symbol: [*map(str, p[:4]), p.opened_ms, p.updated_ms]
            for symbol, p in self.wallet.positions.items()
        }
        head = {"balance": str(self.wallet.balance), "positions": positions}
        head["flows"] = {name: str(amount) for name, amount in self.wallet.flows.items()}
        head["leverage"] = {symbol: str(x) for symbol, x in self.wallet.leverage.items()}
        ended = [order for order in self.orders.values() if order.status not in OPEN][-KEEP_CLOSED:]
        queued = [
            o for queue in (*self._open.values(), *self.stops.waiting.values()) for o in queue
        ]
        orders = [{"order": o.row(), "number": o.number} for o in (*ended, *queued)]
        fills = [{"execution": row, "old": True} for row in self.executions[-KEEP_CLOSED:]]
        closed = [{"closed_pnl": row} for row in self.closed_pnl[-KEEP_CLOSED:]]
        return [head | {"number": self._number}, *orders, *fills, *closed]

    def restore_wallet(self, line: Row) -> None:
        """Balance and positions of a snapshot."""
        self.wallet.balance = Decimal(line["balance"])
        self.wallet.flows = {name: Decimal(amount) for name, amount in line["flows"].items()}
        self._number = line["number"]
        self.restore_leverage(line["leverage"])
        for symbol, (*amounts, opened_ms, updated_ms) in line["positions"].items():
            size, cost, realised, fees = map(Decimal, amounts)
            stamps = (opened_ms, updated_ms)
            self.wallet.positions[symbol] = Holding(size, cost, realised, fees, *stamps)

    def restore_leverage(self, leverage: dict[str, str]) -> None:
        """Leverage of some symbols."""
        self.wallet.leverage |= {symbol: Decimal(x) for symbol, x in leverage.items()}

    def restore_order(self, row: Row, number: int) -> None:
        """One order as it was last said; `number` is 0 for one that is new or known already.

        It joins the back of the market's queue: how far it had come is not remembered.
        """
        known = self.orders.get(row["orderId"])
        self._number += not (number or known)
        order = Order.restore(row, number or (known.number if known else self._number))
        self.orders[order.order_id] = order
        if order.link_id:
            self._by_link[order.link_id] = order
        if known:
            self.stops.remove(known)
        queue = self._open[order.symbol]
        at = queue.index(known) if known in queue else len(queue)
        if known and (known.price, known.qty) != (order.price, order.qty):
            at = len(queue)  # amended: its place was lost
        queue[:] = [other for other in queue if other is not known]
        if order.status == "Untriggered":
            self.stops.waiting[order.symbol].append(order)
        elif order.status in RESTING:
            queue.insert(at, order)
            order.ahead = self._queue(order) if order.symbol in self.books else ZERO

    def restored(self) -> None:
        """After the last line: orders by age."""
        self.orders = dict(sorted(self.orders.items(), key=lambda item: item[1].number))

    def restore_execution(self, row: Row, counted: bool) -> None:
        """One fill; `counted` if the snapshot's wallet already holds it."""
        self.executions.append({k: v for k, v in row.items() if k != "execPnl"})
        self._number = max(self._number, row["seq"])
        if counted:
            return
        symbol, fee, at_ms = row["symbol"], Decimal(row["execFee"]), int(row["execTime"])
        if row["execType"] == "Funding":
            self.wallet.fund(symbol, fee, at_ms)
            return
        qty = Decimal(row["execQty"]) * (1 if row["side"] == BUY else -1)
        self.wallet.fill(symbol, qty, Decimal(row["execPrice"]), fee, at_ms)

    # What `stops` needs.

    def new_order(self, params: Params, price: Decimal, qty: Decimal, now_ms: int) -> Order:
        """An order with an identity, not yet in the book."""
        order = Order(params, price, qty, *self._identity("order"))
        order.created_ms = order.updated_ms = now_ms
        order.last_created = self.last[order.symbol]
        self.orders[order.order_id] = order
        if order.link_id:
            self._by_link[order.link_id] = order
        return order

    def end(
        self, order: Order, status: str, reason: str, now_ms: int, cancel_type: str = "UNKNOWN"
    ) -> None:
        """The end of an order, wherever it waited."""
        if order in self._open[order.symbol]:
            self._open[order.symbol].remove(order)
        self.stops.remove(order)
        order.status, order.reason = status, reason
        order.updated_ms = max(now_ms, order.updated_ms)
        order.cancel_type = cancel_type
        self.say(order)

    def say(self, order: Order) -> None:
        """Push an order as it is now, and its position, as Bybit does with every change."""
        self._pushes.append(("order", order.row()))
        self._pushes.append(("position", self.position_row(order.symbol)))

    # Inside.

    def _listing(self, params: Params) -> Listing:
        symbol = params.get("symbol")
        if params.get("category") != "linear":
            raise invalid("category")
        if not isinstance(symbol, str) or symbol not in self.listings:
            raise Refused(10001, "params error: symbol invalid")
        return self.listings[symbol]

    def _new_link_id(self, params: Params) -> str:
        link_id = text(params, "orderLinkId")
        if not LINK_ID.fullmatch(link_id) or params.get("orderLinkId") not in (None, "", link_id):
            raise invalid("orderLinkId")
        if link_id and link_id in self._by_link:
            raise Refused(110072, "OrderLinkedID is duplicate")
        return link_id

    def _permitted(self, listing: Listing, side: str, price: Decimal | None) -> Decimal:
        """The price inside the band around the mark price; a market order goes to its edge.

        Source: Bybit v5 /account/set-price-limit: futures orders are moved to the limit.
        """
        buys, tick = side == BUY, listing.tick_size
        edge = self.marks[listing.symbol] * (1 + (self.band if buys else -self.band))
        inwards = ROUND_FLOOR if buys else ROUND_CEILING
        edge = max((edge / tick).to_integral_value(inwards) * tick, tick)
        if price is None:
            return edge
        return min(price, edge) if buys else max(price, edge)

    def _qty(
        self,
        params: Params,
        listing: Listing,
        side: str,
        price: Decimal,
        reduces: bool,
        conditional: bool,
    ) -> Decimal:
        """The quantity the order may have: on the grid, affordable, or trimmed if reduce-only."""
        size = self.wallet.position(listing.symbol).size
        if reduces and not conditional:
            if size == 0:
                reason = "current position is zero, cannot fix reduce-only order qty"
                raise Refused(110017, reason)
            if (size > 0) == (side == BUY):
                raise Refused(110017, "reduce-only order has same side with current position")
            if str(params.get("qty")) == "0" and is_true(params.get("closeOnTrigger")):
                return min(abs(size), listing.max_order_qty)
        qty = number(params, "qty", listing.qty_step)
        if qty < listing.min_order_qty:
            raise Refused(10001, "The number of contracts exceeds minimum limit allowed")
        if qty > listing.max_order_qty:
            raise Refused(10001, "The number of contracts exceeds maximum limit allowed")
        if reduces:
            return qty if conditional else min(qty, abs(size))
        if qty * price < MIN_NOTIONAL:
            raise Refused(110094, "Order does not meet minimum order value 5USDT")
        opens = qty if size == 0 or (size > 0) == (side == BUY) else max(ZERO, qty - abs(size))
        if opens * price / self.wallet.margin_leverage(listing.symbol) > self.available():
            raise Refused(110007, "ab not enough for new order")
        return qty

    def _enter(self, order: Order, now_ms: int) -> None:
        """A new, amended or triggered order meets the market."""
        book, tick = self.books[order.symbol], self.listings[order.symbol].tick_size
        best = book.best(order.side) * tick
        if not _within(order, best):
            if order.time_in_force in ("IOC", "FOK"):
                self.end(order, "Cancelled", "EC_NoImmediateQtyToFill", now_ms)
                return
            order.ahead = self._queue(order)
            self._open[order.symbol].append(order)
            self.say(order)
        elif order.time_in_force == "PostOnly":
            self.end(order, "Cancelled", "EC_PostOnlyWillTakeLiquidity", now_ms)
        else:
            self._take(order, now_ms)

    def _take(self, order: Order, now_ms: int) -> None:
        """Take from the book, level by level, up to the order's price."""
        symbol, listing = order.symbol, self.listings[order.symbol]
        book, offered, wanted = self.books[symbol], [], order.left
        for ticks, lots in book.walk(order.side):
            price = ticks * listing.tick_size
            if wanted <= 0 or not _within(order, price):
                break
            part = min(wanted, lots * listing.qty_step)
            offered.append((ticks, price, part))
            wanted -= part
        if order.time_in_force == "FOK" and wanted > 0:
            self.end(order, "Cancelled", "EC_CancelForNoFullFill", now_ms)
            return
        self._open[symbol].append(order)
        if order.order_type == "Limit" and crc32(order.order_id.encode()) & 1:
            self.say(order)  # New before Filled is not promised: half of the orders say it
        for ticks, price, part in offered:
            if order.status in RESTING:
                book.eat(ticks, int(part / listing.qty_step))
                self._fill(order, part, price, False, now_ms)
        if order.status not in RESTING:
            return
        if order.time_in_force in ("IOC", "FOK"):
            self.end(order, "Cancelled", "EC_NoImmediateQtyToFill", now_ms)
        else:
            self.say(order)

    def _reach(self, symbol: str, price: Decimal, qty: Decimal, now_ms: int, queued: bool) -> None:
        """Fill resting orders beyond a trade's price, and at it what the queue leaves."""
        left = qty
        for order in sorted(self._open[symbol], key=_priority):
            if order.status not in RESTING:
                continue  # cancelled by a fill before it
            if order.price == price:
                waited = min(order.ahead, left) if queued else ZERO
                order.ahead -= waited
                part = min(left - waited, order.left)
                if part > 0:
                    left -= part
                    self._fill(order, part, price, True, now_ms)
            elif (order.price > price) == (order.side == BUY):
                self._fill(order, self._part_of(order), order.price, True, now_ms)

    def _part_of(self, order: Order) -> Decimal:
        """What a trade through the order fills: all that is left, but for a fault."""
        if twist := self._twist("partial", order.symbol):
            step = self.listings[order.symbol].qty_step
            share = order.left * Decimal(str(twist.get("share", "0.5")))
            return max(share // step * step, step)
        return order.left

    def _queue(self, order: Order) -> Decimal:
        listing = self.listings[order.symbol]
        ticks = int(order.price / listing.tick_size)
        return self.books[order.symbol].ahead(order.side, ticks) * listing.qty_step

    def _fire(self, symbol: str, now_ms: int) -> None:
        """Conditional orders whose trigger was reached enter the market."""
        while due := self.stops.due(symbol):  # what they fill may set off others at once
            for order in due:
                self._trigger(order, now_ms)

    def _trigger(self, order: Order, now_ms: int) -> None:
        """One of them enters; what may only reduce does that, or ends."""
        self.stops.drop_sibling(order, now_ms)
        size = self.wallet.position(order.symbol).size
        if order.reduce_only and (not size or (size > 0) == (order.side == BUY)):
            self.end(order, "Cancelled", "EC_NoError", now_ms, "CancelByReduceOnly")
            return
        if order.reduce_only:
            order.qty = min(order.qty, abs(size))
        order.status, order.updated_ms = "Triggered", max(now_ms, order.updated_ms)
        self.say(order)
        order.status = "New"
        if order.order_type == "Market":
            order.price = self._permitted(self.listings[order.symbol], order.side, None)
        self._enter(order, now_ms)

    def _fill(
        self,
        order: Order,
        qty: Decimal,
        price: Decimal,
        maker: bool,
        now_ms: int,
        exec_type: str = "Trade",
        rate: Decimal | None = None,
    ) -> None:
        """One execution, and all that the account says of it."""
        symbol = order.symbol
        if order.reduce_only:
            size = self.wallet.position(symbol).size
            qty = min(qty, abs(size)) if (size > 0) != (order.side == BUY) else ZERO
            if not size:
                self.end(order, "Cancelled", "EC_NoError", now_ms, "CancelByReduceOnly")
        if qty <= 0:
            return
        rate = (MAKER_FEE if maker else TAKER_FEE) if rate is None else rate
        fee = qty * price * rate
        result = self.wallet.fill(symbol, qty if order.side == BUY else -qty, price, fee, now_ms)
        order.filled += qty
        order.avg_value += qty * price
        order.cum_fee += fee
        now_ms = max(now_ms, order.updated_ms)  # a point may lie before the order
        order.updated_ms = now_ms
        order.status = "Filled" if order.filled == order.qty else "PartiallyFilled"
        if order.status == "Filled":
            self._open[symbol].remove(order)
        if result.closed:
            fees = result.entry_fees + fee * result.closed / qty
            closed = rows.closed_pnl(order, result, price, fees, self.wallet, now_ms)
            self.closed_pnl.append(closed)
            self._pushes.append(("closed_pnl", closed))
            order.closed_pnl += result.realised - fees
        number, exec_id = self._identity("execution")
        trade = rows.Trade(qty, price, fee, rate, maker, result.closed, exec_type)
        row = rows.execution(order, trade, exec_id, number, self.marks[symbol], now_ms)
        self._executed(row, result.realised)
        self.say(order)
        self._pushes.append(("wallet", self.wallet_row()))
        size = self.wallet.position(symbol).size
        self.stops.attach(order, qty, size, now_ms)
        self.stops.resize(symbol, size, now_ms)
        for other in [o for o in self._open[symbol] if o.reduce_only]:
            if not size or (size > 0) == (other.side == BUY):
                self.end(other, "Cancelled", "EC_NoError", now_ms, "CancelByReduceOnly")

    def _executed(self, row: Row, realised: Decimal) -> None:
        self.executions.append(row)
        self._pushes.append(("execution", {**row, "execPnl": f"{realised:f}"}))

    def _push_account(self, symbol: str) -> None:
        self._pushes.append(("position", self.position_row(symbol)))
        self._pushes.append(("wallet", self.wallet_row()))

    def _moved(self, symbol: str, price: Decimal) -> None:
        offset = self.mark_offset.get(symbol)
        self.last[symbol] = price
        self.marks[symbol] = price * (1 + offset) if offset else price

    def _cancel(self, order: Order, now_ms: int) -> None:
        status = "Deactivated" if order.status == "Untriggered" else "Cancelled"
        self.end(order, status, "EC_PerCancelRequest", now_ms, "CancelByUser")

    def _find(self, params: Params, verb: str) -> Order:
        symbol = self._listing(params).symbol
        if not (params.get("orderId") or params.get("orderLinkId")):
            raise Refused(10001, "params error: OrderId or orderLinkId is required")
        order = self.find(params)
        if order is None or order.status not in OPEN or order.symbol != symbol:
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


def _within(order: Order, price: Decimal) -> bool:
    """Whether the order would trade at this price of the book."""
    return order.price >= price if order.side == BUY else order.price <= price
