"""order: one order of the paper account, and how Bybit v5 shows it. Pure.

An order with a trigger waits, `Untriggered`, outside the book. `terms` are the fields of the order
object that its creator chose and the engine only carries: take profit, trigger, parent.
"""

from decimal import Decimal
from typing import Any

BUY, SELL = "Buy", "Sell"
RESTING = ("New", "PartiallyFilled")
OPEN = (*RESTING, "Untriggered")
ZERO = Decimal(0)

Params = dict[str, Any]
Row = dict[str, Any]

TERMS: Row = {
    "createType": "CreateByUser",
    "stopOrderType": "",
    "parentOrderLinkId": "",
    "triggerPrice": "",
    "triggerDirection": 0,
    "triggerBy": "",
    "takeProfit": "",
    "stopLoss": "",
    "tpTriggerBy": "",
    "slTriggerBy": "",
    "tpslMode": "",
    "tpOrderType": "",
    "slOrderType": "",
    "tpLimitPrice": "",
    "slLimitPrice": "",
    "closeOnTrigger": False,
}
CONSTANTS: Row = {
    "category": "linear",
    "blockTradeId": "",
    "positionIdx": 0,
    "cumFeeDetail": {},
    "feeCurrency": "",
    "orderIv": "",
    "isLeverage": "",
    "placeType": "",
    "smpType": "None",
    "smpGroup": 0,
    "smpOrderId": "",
    "slippageToleranceType": "UNKNOWN",
    "slippageTolerance": "",
    "rpiTakerAccess": False,
    "rpiMatchedQty": "0",
}


class Order:
    """One order; `row` is what a client sees. `ahead` is the queue in front of it, in coins."""

    __slots__ = (
        *(
            "ahead",
            "avg_value",
            "bracket",
            "cancel_type",
            "closed_pnl",
            "created_ms",
            "cum_fee",
            "filled",
        ),
        *("last_created", "link_id", "number", "order_id", "order_type", "price", "qty", "reason"),
        *("reduce_only", "side", "status", "symbol", "terms", "time_in_force", "updated_ms"),
    )

    def __init__(
        self, params: Params, price: Decimal, qty: Decimal, number: int, order_id: str
    ) -> None:
        self.symbol, self.side = params["symbol"], params["side"]
        self.order_type = params["orderType"]
        self.time_in_force = params.get("timeInForce") or "GTC"
        self.reduce_only = is_true(params.get("reduceOnly"))
        self.link_id = params.get("orderLinkId") or ""
        self.price, self.qty, self.number, self.order_id = price, qty, number, order_id
        self.ahead = self.filled = self.avg_value = self.cum_fee = self.closed_pnl = ZERO
        self.status, self.reason, self.cancel_type = "New", "EC_NoError", "UNKNOWN"
        self.created_ms = self.updated_ms = 0
        self.last_created = ZERO
        self.bracket = ""  # take profit and stop loss of one order or request share it
        self.terms: Row = {name: params[name] for name in TERMS if params.get(name)}

    @property
    def left(self) -> Decimal:
        """What may still be filled."""
        return self.qty - self.filled if self.status in OPEN else ZERO

    @property
    def trigger(self) -> Decimal:
        """The price at which it is triggered; 0 if it has none."""
        return Decimal(self.terms.get("triggerPrice") or 0)

    @property
    def from_position(self) -> bool:
        """A take profit or stop loss of the position, not an order somebody placed."""
        return str(self.terms.get("stopOrderType", "")).endswith(("TakeProfit", "StopLoss"))

    def row(self) -> Row:
        """The order object of REST and of the `order` topic."""
        average = f"{self.avg_value / self.filled:f}" if self.filled else ""
        return {
            **CONSTANTS,
            **TERMS,
            **self.terms,
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
            "closedPnl": f"{self.closed_pnl:f}",
            "lastPriceOnCreated": f"{self.last_created:f}",
            "reduceOnly": self.reduce_only,
            "bracketId": self.bracket,
            "createdTime": str(self.created_ms),
            "updatedTime": str(self.updated_ms),
        }

    @classmethod
    def restore(cls, row: Row, number: int) -> "Order":
        """The order that was shown as `row`."""
        order = cls(row, Decimal(row["price"]), Decimal(row["qty"]), number, row["orderId"])
        order.status, order.reason = row["orderStatus"], row["rejectReason"]
        order.cancel_type, order.filled = row["cancelType"], Decimal(row["cumExecQty"])
        order.avg_value, order.cum_fee = Decimal(row["cumExecValue"]), Decimal(row["cumExecFee"])
        order.closed_pnl = Decimal(row["closedPnl"])
        order.created_ms, order.updated_ms = int(row["createdTime"]), int(row["updatedTime"])
        order.last_created = Decimal(row["lastPriceOnCreated"])
        order.bracket = row["bracketId"]
        return order


def is_true(value: Any) -> bool:
    """A flag as clients write it: true, "true", 1."""
    return str(value).lower() in ("true", "1")
