"""rows: the objects of Bybit v5 for linear perpetuals, field by field. Pure."""

from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import NamedTuple, Protocol

from services.paper.market import Listing
from services.paper.order import BUY, SELL, Order, Row
from services.paper.stops import LEGS, Stops
from services.paper.wallet import Fill, Wallet

MAKER_FEE, TAKER_FEE = Decimal("0.0002"), Decimal("0.00055")
MAINTENANCE = Decimal("0.005")  # maintenance margin, share of the position's value
MAX_LEVERAGE = 100
BAND = "0.05"
ZERO = Decimal(0)


class Account(Protocol):
    """What a row of the account is made of."""

    listings: dict[str, Listing]
    wallet: Wallet
    marks: dict[str, Decimal]
    stops: Stops

    def equity(self) -> Decimal:
        """Balance and open profit."""

    def maintenance(self) -> Decimal:
        """Maintenance margin."""

    def order_margin(self) -> Decimal:
        """Initial margin of open orders."""


class Trade(NamedTuple):
    """The terms of one execution; `rate` is the fee's share of the value."""

    qty: Decimal
    price: Decimal
    fee: Decimal
    rate: Decimal
    maker: bool
    closed: Decimal
    exec_type: str


def execution(
    order: Order, trade: Trade, exec_id: str, number: int, mark: Decimal, now_ms: int
) -> Row:
    """One fill."""
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
        "execType": trade.exec_type,
        "execPrice": f"{trade.price:f}",
        "execQty": f"{trade.qty:f}",
        "execValue": f"{trade.qty * trade.price:f}",
        "execFee": f"{trade.fee:f}",
        "feeRate": f"{trade.rate:f}",
        "feeCurrency": "USDT",
        "isMaker": trade.maker,
        "execTime": str(now_ms),
        "closedSize": f"{trade.closed:f}",
        "createType": order.terms.get("createType") or "CreateByUser",
        "stopOrderType": order.terms.get("stopOrderType") or "UNKNOWN",
        "markPrice": f"{mark:f}",
        **EXECUTION_CONSTANTS,
        "seq": number,
    }


def funding(
    symbol: str,
    side: str,
    size: Decimal,
    mark: Decimal,
    rate: Decimal,
    fee: Decimal,
    order_id: str,
    number: int,
    now_ms: int,
) -> Row:
    """One settlement of funding; `execFee` above 0 was paid."""
    return {
        "category": "linear",
        "symbol": symbol,
        "orderId": order_id,
        "orderLinkId": "",
        "side": side,
        "orderType": "UNKNOWN",
        "orderPrice": "0",
        "orderQty": "0",
        "leavesQty": "0",
        "execId": order_id,
        "execType": "Funding",
        "execPrice": f"{mark:f}",
        "execQty": f"{size:f}",
        "execValue": f"{size * mark:f}",
        "execFee": f"{fee:f}",
        "feeRate": f"{rate:f}",
        "feeCurrency": "USDT",
        "isMaker": False,
        "execTime": str(now_ms),
        "closedSize": "0",
        "createType": "",
        "stopOrderType": "UNKNOWN",
        "markPrice": f"{mark:f}",
        **EXECUTION_CONSTANTS,
        "seq": number,
    }


EXECUTION_CONSTANTS: Row = {
    "indexPrice": "",
    "underlyingPrice": "",
    "tradeIv": "",
    "markIv": "",
    "blockTradeId": "",
    "isLeverage": "0",
    "marketUnit": "",
    "extraFees": [],
}


def fast(row: Row) -> Row:
    """An execution as `execution.fast` says it: a maker's fill does not name the client's id."""
    names = ("category", "symbol", "execId", "execPrice", "execQty", "orderId", "isMaker")
    link_id = "" if row["isMaker"] else row["orderLinkId"]
    rest = {name: row[name] for name in ("side", "execTime", "seq")}
    return {name: row[name] for name in names} | {"orderLinkId": link_id} | rest


def closed_pnl(
    order: Order, result: Fill, price: Decimal, fees: Decimal, wallet: Wallet, now_ms: int
) -> Row:
    """The profit of what one fill closed, after its fees and its share of the entry's."""
    closed = result.closed
    return {
        "symbol": order.symbol,
        "orderId": order.order_id,
        "side": order.side,
        "qty": f"{order.qty:f}",
        "orderPrice": f"{order.price:f}",
        "orderType": order.order_type,
        "execType": "Trade",
        "closedSize": f"{closed:f}",
        "cumEntryValue": f"{result.cost:f}",
        "avgEntryPrice": f"{result.cost / closed:f}",
        "cumExitValue": f"{closed * price:f}",
        "avgExitPrice": f"{price:f}",
        "closedPnl": f"{result.realised - fees:f}",
        "fillCount": "1",
        "leverage": f"{wallet.margin_leverage(order.symbol):f}",
        "createdTime": str(now_ms),
        "updatedTime": str(now_ms),
    }


def position(symbol: str, account: Account, number: int) -> Row:
    """The position object; `entryPrice` is the stream's name, `avgPrice` the REST's."""
    held, mark = account.wallet.position(symbol), account.marks[symbol]
    value = abs(held.size) * mark
    leverage = account.wallet.margin_leverage(symbol)
    entry = f"{held.entry:f}"
    initial, maintenance = f"{value / leverage:f}", f"{value * MAINTENANCE:f}"
    profit, loss = (account.stops.full(symbol, leg) for leg in LEGS)
    return {
        "category": "linear",
        "symbol": symbol,
        "positionIdx": 0,
        "riskId": 1,
        "riskLimitValue": "2000000",
        "tradeMode": 0,
        "autoAddMargin": 0,
        "tpslMode": "Full",
        "positionStatus": "Normal",
        "adlRankIndicator": 0 if not held.size else 2,
        "isReduceOnly": False,
        "liqPrice": _liquidation(symbol, account) if held.size else "",
        "bustPrice": "",
        "takeProfit": profit.terms["triggerPrice"] if profit else "",
        "stopLoss": loss.terms["triggerPrice"] if loss else "",
        "trailingStop": "0",
        "positionBalance": "0",
        "sessionAvgPrice": "",
        "seq": number or -1,
        "leverageSysUpdatedTime": "",
        "mmrSysUpdatedTime": "",
        "side": BUY if held.size > 0 else SELL if held.size < 0 else "",
        "size": f"{abs(held.size):f}",
        "entryPrice": entry,
        "avgPrice": entry,
        "breakEvenPrice": entry if held.size else "",
        "leverage": f"{leverage:f}",
        "positionValue": f"{held.cost:f}",
        "positionIM": initial,
        "positionIMByMp": initial,
        "positionMM": maintenance,
        "positionMMByMp": maintenance,
        "markPrice": f"{mark:f}",
        "unrealisedPnl": f"{account.wallet.unrealised_of(symbol, mark):f}",
        "curRealisedPnl": f"{held.realised:f}",
        "cumRealisedPnl": f"{held.realised:f}",
        "createdTime": str(held.opened_ms),
        "updatedTime": str(held.updated_ms),
        "openTime": held.opened_ms,
    }


def _liquidation(symbol: str, account: Account) -> str:
    """The mark price at which equity meets maintenance margin, all other prices unchanged."""
    size, mark = account.wallet.position(symbol).size, account.marks[symbol]
    slack = account.equity() - account.maintenance()
    price = mark - slack / (size - abs(size) * MAINTENANCE)
    tick = account.listings[symbol].tick_size
    rounding = ROUND_CEILING if size > 0 else ROUND_FLOOR
    return f"{(price / tick).to_integral_value(rounding) * tick:f}" if price > 0 else ""


def wallet(account: Account) -> Row:
    """The wallet object: one coin, USDT."""
    own = account.wallet
    equity, unrealised = account.equity(), own.unrealised(account.marks)
    margin, maintenance = own.margin(account.marks), account.maintenance()
    ordered = account.order_margin()
    rate = f"{(margin + ordered) / equity:.4f}" if equity > 0 else "0"
    realised = own.flows["realised"] - own.flows["fees"] - own.flows["funding"]
    coin = {
        "coin": "USDT",
        "equity": f"{equity:f}",
        "usdValue": f"{equity:f}",
        "walletBalance": f"{own.balance:f}",
        "unrealisedPnl": f"{unrealised:f}",
        "locked": "0",
        "borrowAmount": "0",
        "accruedInterest": "0",
        "bonus": "0",
        "spotHedgingQty": "0",
        "spotBorrow": "0",
        "colRes": "0",
        "totalPositionIM": f"{margin:f}",
        "totalOrderIM": f"{ordered:f}",
        "totalPositionMM": f"{maintenance:f}",
        "cumRealisedPnl": f"{realised:f}",
        "collateralSwitch": True,
        "marginCollateral": True,
        "availableToWithdraw": "",
        "availableToBorrow": "",
    }
    return {
        "accountType": "UNIFIED",
        "totalEquity": f"{equity:f}",
        "totalWalletBalance": f"{own.balance:f}",
        "totalMarginBalance": f"{equity:f}",
        "totalAvailableBalance": f"{equity - margin - ordered:f}",
        "totalPerpUPL": f"{unrealised:f}",
        "totalInitialMargin": f"{margin + ordered:f}",
        "totalInitialMarginByMp": f"{margin + ordered:f}",
        "totalMaintenanceMargin": f"{maintenance:f}",
        "totalMaintenanceMarginByMp": f"{maintenance:f}",
        "accountIMRate": rate,
        "accountIMRateByMp": rate,
        "accountMMRate": f"{maintenance / equity:.4f}" if equity > 0 else "0",
        "accountMMRateByMp": f"{maintenance / equity:.4f}" if equity > 0 else "0",
        "accountLTV": "0",
        "coin": [coin],
    }


def instrument(listing: Listing) -> Row:
    """One row of GET /v5/market/instruments-info."""
    symbol, tick = listing.symbol, f"{listing.tick_size:f}"
    return {
        "symbol": symbol,
        "symbolId": 0,
        "contractType": "LinearPerpetual",
        "status": listing.status,
        "baseCoin": symbol.removesuffix("USDT"),
        "quoteCoin": "USDT",
        "settleCoin": "USDT",
        "launchTime": "1609459200000",
        "deliveryTime": "0",
        "deliveryFeeRate": "",
        "priceScale": str(max(0, -int(listing.tick_size.as_tuple().exponent))),
        "leverageFilter": {
            "minLeverage": "1",
            "maxLeverage": f"{MAX_LEVERAGE}.00",
            "leverageStep": "0.01",
        },
        "priceFilter": {"minPrice": tick, "maxPrice": "1999999.98", "tickSize": tick},
        "lotSizeFilter": {
            "maxOrderQty": f"{listing.max_order_qty:f}",
            "minOrderQty": f"{listing.min_order_qty:f}",
            "qtyStep": f"{listing.qty_step:f}",
            "maxMktOrderQty": f"{listing.max_order_qty:f}",
            "postOnlyMaxOrderQty": f"{listing.max_order_qty:f}",
            "minNotionalValue": "5",
        },
        "unifiedMarginTrade": True,
        "fundingInterval": listing.funding_interval_min,
        "copyTrading": "none",
        "upperFundingRate": "0.03",
        "lowerFundingRate": "-0.03",
        "isPreListing": False,
        "preListingInfo": None,
        "symbolType": "",
        "riskParameters": {"priceLimitRatioX": BAND, "priceLimitRatioY": "0.3"},
    }
