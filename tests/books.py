"""What the ledger and the paper exchange hold, and in what they differ, to the last digit."""

import time
from collections import defaultdict
from decimal import Decimal

OPEN = ("New", "PartiallyFilled", "Untriggered")
ROUNDS, QUIET_S = 60, 1.5


def positions(account):
    """{symbol: signed quantity} at the exchange."""
    return {
        row["symbol"]: Decimal(row["size"]) * (1 if row["side"] == "Buy" else -1)
        for row in account["positions"]
    }


def open_orders(account):
    """(orderId, status, quantity, executed) of what rests at the exchange and is ours: by its own
    id, or as the stop loss of an entry that is."""
    return {
        (o["orderId"], o["orderStatus"], Decimal(o["qty"]), Decimal(o["cumExecQty"]))
        for o in account["orders"]
        if o["orderStatus"] in OPEN and (o["orderLinkId"] or o["parentOrderLinkId"])
    }


def held(pipeline):
    """{symbol: signed quantity} by the ledger: lots, and what is foreign."""
    sums = defaultdict(Decimal)
    query = "SELECT symbol, side, bought, sold FROM lots WHERE closed_ms = 0"
    for symbol, side, bought, sold in pipeline.rows(query):
        sums[symbol] += (Decimal(bought) - Decimal(sold)) * (1 if side == "Buy" else -1)
    for symbol, qty in pipeline.rows("SELECT symbol, qty FROM foreigners"):
        sums[symbol] += Decimal(qty)
    return {symbol: qty for symbol, qty in sums.items() if qty}


def cash(executions):
    """What all fills, fees and funding have brought: (side, type, quantity, price, fee) of each."""
    total = Decimal(0)
    for side, kind, qty, price, fee in executions:
        value = Decimal(0) if kind == "Funding" else qty * price
        total -= fee + (value if side == "Buy" else -value)
    return total


def their_cash(account):
    """The same by the exchange: what it has booked, less what open positions have cost."""
    flows = {name: Decimal(value) for name, value in account["flows"].items()}
    rows = account["positions"]
    cost = sum(Decimal(r["positionValue"]) * (1 if r["side"] == "Buy" else -1) for r in rows)
    return flows["realised"] - flows["fees"] - flows["funding"] - cost


def differences(pipeline, account):
    """(what, only in the ledger, only at the exchange); nothing where both agree."""
    query = "SELECT exec_id, side, exec_type, exec_qty, exec_price, exec_fee FROM executions"
    ours = {row[0]: (*row[1:3], *map(Decimal, row[3:])) for row in pipeline.rows(query)}
    names = ("execQty", "execPrice", "execFee")
    theirs = {
        row["execId"]: (row["side"], row["execType"], *(Decimal(row[name]) for name in names))
        for row in account["executions"]
    }
    query = "SELECT order_id, status, qty, cum_exec_qty FROM orders WHERE open"
    orders = {(*row[:2], *map(Decimal, row[2:])) for row in pipeline.rows(query)}
    pairs = (
        ("executions", set(ours.items()), set(theirs.items())),
        ("open orders", orders, open_orders(account)),
        ("positions", set(held(pipeline).items()), set(positions(account).items())),
        ("cash", {cash(ours.values())}, {their_cash(account)}),
    )
    return [(what, here - there, there - here) for what, here, there in pairs if here != there]


def settled(pipeline):
    """(status and account of the exchange, differences) at a moment of quiet, if there is one."""
    for _ in range(ROUNDS):
        account = pipeline.control("GET", "/account")
        time.sleep(QUIET_S)
        if not (found := differences(pipeline, account)):
            break
    return pipeline.control("GET", "/"), account, found
