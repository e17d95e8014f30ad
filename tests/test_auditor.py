"""auditor: each rule a bot may not break, broken once and said once; a clean bot hears nothing."""

from decimal import Decimal
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.paper.auditor import LEARN_S, PROCESSES, Auditor, Limits
from services.paper.market import MINUTE_MS
from services.paper.order import Row
from services.paper.wallet import Wallet
from shared.messages import entry_id, exit_id
from tests.test_venue import (
    OTHER,
    START,
    SYMBOL,
    THIRD,
    Desk,
    batch,
    order,
    synthetic,
    taking,
)

SIZE = 1_000  # USDT an entry, at most
LATE_MS = 15_000  # after its bar has closed, until an entry is too late


def desk_of(**change: Any) -> Desk:
    """A venue whose bot may have 3 slots in 2 symbols, of 1000 USDT each."""
    limits = {"SIZE_USDT": SIZE, "MAX_SLOTS": 3, "MAX_SYMBOLS": 2, "PAPER_BALANCE_USDT": 100_000}
    return Desk(**limits | change)


@pytest.fixture
def desk() -> Desk:
    return desk_of()


def entry(symbol: str = SYMBOL, side: str = "Buy", bar: int = 0) -> str:
    """The id of an entry by the bar that begins so many minutes after the start."""
    return entry_id(symbol, side, START + bar * MINUTE_MS)


def buy(desk: Desk, bar: int = 0, symbol: str = SYMBOL, **change: Any) -> str:
    """An entry of 1 at 99.0, accepted; returns its id."""
    link = entry(symbol, "Buy", bar)
    desk.made(symbol=symbol, orderLinkId=link, **change)
    return link


def bought(desk: Desk, bar: int = 0, symbol: str = SYMBOL, qty: str = "1") -> str:
    """An entry that was filled at once, at 100."""
    return buy(desk, bar, symbol, price="100.0", qty=qty)


def sell(desk: Desk, lot: str, number: int = 0, **change: Any) -> Any:
    """An exit of 1 of a lot at the market."""
    terms = {"side": "Sell", "orderType": "Market", "price": None, "reduceOnly": True}
    return desk.create(orderLinkId=exit_id(lot, number), **terms | change)


def rules(desk: Desk) -> list[str]:
    """Which rules were broken, in order."""
    lines = list(desk.venue.auditor.lines)
    assert len(lines) == desk.venue.auditor.breaches
    return [line.split()[1] for line in lines]


def test_a_line_says_which_rule_when_and_by_which_seed() -> None:
    desk = desk_of(PAPER_SEED=42)
    desk.run(3)
    link = buy(desk, qty="11")  # 11 * 99 = 1089 USDT
    (line,) = desk.venue.auditor.lines
    breach, rule, *fields = line.split(" ")
    named = dict(field.split("=") for field in fields if "=" in field)
    assert (breach, rule) == ("breach", "V13")
    assert named["seed"] == "42" and named["at_ms"] == str(START + 3_000)
    assert int(named["event"]) > 0 and link in line and "1089" in line
    status = desk.venue.status()
    assert (status["breaches"], status["lines"]) == (1, [line])


# V2: an execution is one.


def test_v2_an_execution_that_comes_twice() -> None:
    desk = desk_of()
    bought(desk)
    row = desk.matching.executions[-1]
    desk.matching._pushes.append(("execution", {**row, "execPnl": "0"}))
    desk.venue._flush(desk.now)
    assert rules(desk) == ["V2"]
    assert row["execId"] in desk.venue.auditor.lines[0]
    desk.made(**taking())
    assert rules(desk) == ["V2"]  # it was counted once: cash and position still agree


# V4: slots and symbols.


def test_v4_a_lot_that_its_stop_loss_has_sold_takes_no_slot(desk: Desk) -> None:
    """Although another lot of its symbol is held, so that the symbol is never flat."""
    stop = {"stopLoss": "98.0", "tpslMode": "Partial", "slOrderType": "Market"}
    buy(desk, 0, price="100.0", **stop)
    bought(desk, 1)
    desk.trade("97.9")
    assert desk.matching.wallet.position(SYMBOL).size == 1
    for bar in (2, 3):
        buy(desk, bar, price="90.0")
    assert "V4" not in rules(desk)
    buy(desk, 4, price="90.0")
    assert rules(desk).count("V4") == 1


def test_v4_more_slots_than_allowed_and_every_new_height_once(desk: Desk) -> None:
    def short(symbol: str, bar: int = 0) -> str:
        link = entry(symbol, "Sell", bar)
        desk.made(symbol=symbol, side="Sell", price="101.0", orderLinkId=link)
        return link

    buy(desk)
    buy(desk, -1)
    buy(desk, 0, OTHER)
    assert rules(desk) == []  # 3 of 3
    fourth = short(SYMBOL)
    assert rules(desk) == ["V4"]
    assert "4 slots" in desk.venue.auditor.lines[0]
    desk.post("/v5/order/amend", symbol=SYMBOL, orderLinkId=fourth, price="102.0")
    assert rules(desk) == ["V4"]  # as many as before
    fifth = short(OTHER)
    assert rules(desk) == ["V4", "V4"]
    desk.cancel(fourth)
    desk.cancel(fifth, OTHER)
    short(SYMBOL, -1)
    assert rules(desk) == ["V4"] * 3  # it was 3 in between


def test_v4_more_symbols_than_allowed(desk: Desk) -> None:
    for symbol in (SYMBOL, OTHER):
        buy(desk, symbol=symbol)
    assert rules(desk) == []
    buy(desk, symbol=THIRD)
    assert rules(desk) == ["V4"]
    assert "3 symbols" in desk.venue.auditor.lines[0]


@pytest.mark.parametrize("sold", [True, False])
def test_v4_a_filled_entry_holds_its_slot_until_its_lot_is_sold(sold: bool) -> None:
    desk = desk_of(MAX_SLOTS=1)
    lot = bought(desk, qty="3")
    sell(desk, lot, 0, qty="2")
    if sold:
        sell(desk, lot, 1, qty="1")
    buy(desk, -1)
    assert rules(desk) == ([] if sold else ["V4"])


@pytest.mark.parametrize("closed_by", ["foreign_fill", "adl", "liquidate", "delist"])
def test_v4_a_lot_that_somebody_else_has_closed_holds_no_slot(closed_by: str) -> None:
    desk = desk_of(MAX_SLOTS=1)
    bought(desk)
    terms = {"side": "Sell", "qty": "1"} if closed_by == "foreign_fill" else {}
    desk.fault("venue", closed_by, symbol=SYMBOL, **terms)
    buy(desk, symbol=OTHER)
    assert rules(desk) == []


def test_v4_neither_exits_nor_foreign_orders_take_a_slot() -> None:
    desk = desk_of(MAX_SLOTS=1, MAX_SYMBOLS=1)
    lot = bought(desk)
    sell(desk, lot, orderType="Limit", price="101.0")
    desk.fault("venue", "foreign_order", symbol=OTHER, side="Buy", qty="1", price="99.0")
    desk.made(symbol=THIRD, orderLinkId="somebody-else")
    assert rules(desk) == []


# V5 and V6: an id is one order.


def test_v5_an_entry_is_sent_twice(desk: Desk) -> None:
    link = buy(desk)
    assert desk.create(orderLinkId=link)["retCode"] == 110072
    assert rules(desk) == ["V5"]


def test_v5_not_even_when_the_first_one_has_ended(desk: Desk) -> None:
    link = buy(desk)
    desk.cancel(link)
    desk.create(orderLinkId=link)
    assert rules(desk) == ["V5"]


def test_v6_an_id_for_two_different_orders(desk: Desk) -> None:
    lot = bought(desk, qty="3")
    desk.made(**taking(symbol=OTHER))
    assert sell(desk, lot, 0)["retCode"] == 0
    assert sell(desk, lot, 0, symbol=OTHER)["retCode"] == 110072
    assert rules(desk) == ["V6"]


def test_the_same_exit_may_be_sent_again_when_its_fate_is_unknown(desk: Desk) -> None:
    """reliability.md R4: entries are never re-sent; exits may be, as reduce-only."""
    lot = bought(desk, qty="3")
    terms = {"orderType": "Limit", "price": "101.0"}
    assert [sell(desk, lot, 0, **terms)["retCode"] for _ in range(2)] == [0, 110072]
    assert rules(desk) == []


# V7: through zero.


@pytest.mark.parametrize(("qty", "broken"), [("3", []), ("4", ["V7"])])
def test_v7_an_order_of_ours_goes_through_zero(desk: Desk, qty: str, broken: list[str]) -> None:
    lot = bought(desk, qty="3")
    sell(desk, lot, qty=qty, reduceOnly=False)
    assert desk.matching.wallet.position(SYMBOL).size == 3 - int(qty)
    assert rules(desk) == broken


def test_v7_is_not_for_somebody_else(desk: Desk) -> None:
    bought(desk, qty="3")
    desk.fault("venue", "foreign_fill", symbol=SYMBOL, side="Sell", qty="9")
    assert rules(desk) == []


# V12: an entry is of the bar that has just closed, or of the forming one.


@pytest.mark.parametrize(
    ("bar", "after_ms", "broken"),
    [
        (0, 0, []),  # the forming bar
        (0, 59_999, []),
        (0, 60_000 + LATE_MS - 1, []),  # closed, and 15 s to act
        (0, 60_000 + LATE_MS, ["V12"]),
        (-1, 0, []),
        (-1, LATE_MS, ["V12"]),
        (-5, 0, ["V12"]),
        (1, 59_999, ["V12"]),  # of a bar that has not begun
        (1, 60_000, []),
    ],
)
def test_v12_an_entry_of_another_bar(
    desk: Desk, bar: int, after_ms: int, broken: list[str]
) -> None:
    desk.at_ms = after_ms
    buy(desk, bar)
    assert rules(desk) == broken


def test_v12_gives_more_market_time_where_it_runs_faster() -> None:
    desk = desk_of(PAPER_SPEED=4)
    desk.at_ms = 60_000 + 4 * LATE_MS - 1
    buy(desk)
    assert rules(desk) == []
    desk.at_ms += MINUTE_MS + 1
    buy(desk, 1)
    assert rules(desk) == ["V12"]


def test_v12_is_not_for_exits_and_not_for_what_was_refused(desk: Desk) -> None:
    lot = bought(desk, qty="2")
    desk.at_ms = 600_000
    assert sell(desk, lot)["retCode"] == 0
    assert desk.create(orderLinkId=entry(bar=3), qty="99999")["retCode"] != 0
    assert "V12" not in rules(desk)


# V13: size.


@pytest.mark.parametrize(
    ("qty", "price", "broken"),
    [("10", "100.0", []), ("10", "100.1", ["V13"]), ("11", "99.0", ["V13"]), ("10", "99.0", [])],
)
def test_v13_an_entry_is_larger_than_allowed(
    desk: Desk, qty: str, price: str, broken: list[str]
) -> None:
    buy(desk, qty=qty, price=price)  # 1000 USDT
    assert rules(desk) == broken


def test_v13_an_entry_is_amended_to_more_than_allowed(desk: Desk) -> None:
    link = buy(desk)
    for qty, broken in (("10", []), ("11", ["V13"])):
        body = desk.post("/v5/order/amend", symbol=SYMBOL, orderLinkId=link, qty=qty)
        assert (body["retCode"], rules(desk)) == (0, broken)  # 10 * 99 = 990, 11 * 99 = 1089


def test_v13_each_order_of_a_batch_is_judged(desk: Desk) -> None:
    request = [
        order(orderLinkId=entry(symbol), symbol=symbol, qty=qty)
        for symbol, qty in ((SYMBOL, "10"), (OTHER, "11"))
    ]
    assert desk.post("/v5/order/create-batch", request=request)["retCode"] == 0
    assert rules(desk) == ["V13"]
    assert OTHER in desk.venue.auditor.lines[0]


def test_an_entry_without_a_price_breaks_nothing_of_the_auditor(desk: Desk) -> None:
    assert desk.create(**taking(orderLinkId=entry()))["retCode"] == 0


# V14: rates.


@pytest.mark.parametrize(
    ("method", "path", "limit"),
    [
        ("POST", "/v5/order/create", 10),
        ("POST", "/v5/order/cancel", 10),
        ("POST", "/v5/position/set-leverage", 10),
        ("GET", "/v5/order/realtime", 50),
        ("GET", "/v5/position/list", 50),
    ],
)
def test_v14_one_request_too_many(method: str, path: str, limit: int) -> None:
    desk = desk_of(PAPER_RATE_LIMIT=10)
    payload = "category=linear&settleCoin=USDT" if method == "GET" else "{}"
    for _ in range(limit):
        desk.raw(method, path, payload)
    assert rules(desk) == []
    desk.raw(method, path, payload)
    assert rules(desk) == ["V14"]
    assert path in desk.venue.auditor.lines[0]


def test_v14_a_batch_over_the_limit(desk: Desk) -> None:
    desk = desk_of(PAPER_RATE_LIMIT=3)
    desk.post("/v5/order/create-batch", request=batch("99.0", "98.0", "97.0", "96.0"))
    assert rules(desk) == ["V14"]  # the fourth
    desk.post("/v5/order/create-batch", request=batch("99.0"))
    assert rules(desk) == ["V14", "V14"]  # all of it


def test_v14_on_the_trade_socket() -> None:
    desk = desk_of(PAPER_RATE_LIMIT=2)
    wire = desk.trader()
    for number in range(3):
        wire.send(desk.order_op("order.create", number, **order()))
    assert rules(desk) == ["V14"]


def test_v14_a_request_during_a_ban(desk: Desk) -> None:
    """Each process finds out by itself, and what is under way when the first 403 comes, is."""
    desk.fault("venue", "ip_ban")
    for _ in range(3):
        assert desk.raw("GET", "/v5/market/time", "").status == 403
        desk.at_ms += 500
    desk.at_ms += 10_000
    for _ in range(PROCESSES):
        desk.raw("GET", "/v5/market/time", "")
    assert rules(desk) == []
    desk.raw("GET", "/v5/market/time", "")
    assert rules(desk) == ["V14"]
    desk.at_ms += 600_000
    assert desk.raw("GET", "/v5/market/time", "").status == 200
    assert rules(desk) == ["V14"]


def test_v14_who_stays_away_from_every_ban_but_for_one_request_breaks_nothing(desk: Desk) -> None:
    for _ in range(4):
        desk.fault("venue", "ip_ban", ms=60_000)
        desk.raw("GET", "/v5/market/time", "")
        desk.at_ms += 10_000
        for _process in range(PROCESSES):
            desk.raw("GET", "/v5/market/time", "")
        desk.at_ms += 60_000
        assert desk.raw("GET", "/v5/market/time", "").status == 200
    assert rules(desk) == []


# V16: cash.


@pytest.mark.parametrize("where", ["balance", "cost"])
def test_v16_cash_out_of_nowhere_is_said_once(desk: Desk, where: str) -> None:
    bought(desk, qty="3")
    wallet = desk.matching.wallet
    if where == "balance":
        wallet.balance += Decimal("1e-12")
    else:
        held = wallet.positions[SYMBOL]
        wallet.positions[SYMBOL] = held._replace(cost=held.cost - 1)
    desk.made(symbol=OTHER)
    assert rules(desk) == ["V16"]
    desk.made(symbol=OTHER)
    assert rules(desk) == ["V16"]  # the same cent


def test_v16_holds_through_fills_funding_deposits_adl_and_liquidation(desk: Desk) -> None:
    for _ in range(3):
        desk.made(**taking(qty="7"))
        desk.fault("venue", "fund", symbol=SYMBOL, rate="0.00037")
        desk.made(**taking(qty="4", side="Sell"))
        desk.fault("venue", "balance", amount="-12.3456")
        desk.fault("venue", "adl", symbol=SYMBOL, qty="1")
        desk.trade("97.3")
        desk.fault("venue", "liquidate", symbol=SYMBOL)
    assert rules(desk) == []


# V17: what an order can become. Source: the order statuses of Bybit v5, and its two Filled.

STATES = ("New", "PartiallyFilled", "Untriggered", "Triggered", "Filled", "Cancelled", "Rejected",
          "Deactivated")  # fmt: skip
ALLOWED = {
    "": {"New", "PartiallyFilled", "Untriggered", "Filled", "Cancelled", "Rejected"},
    "New": {"New", "PartiallyFilled", "Filled", "Cancelled", "Rejected"},
    "PartiallyFilled": {"PartiallyFilled", "Filled", "Cancelled"},
    "Untriggered": {"Untriggered", "Triggered", "Deactivated", "Cancelled"},
    "Triggered": {"New", "PartiallyFilled", "Filled", "Cancelled"},
    "Filled": {"Filled"},
    "Cancelled": set(),
    "Rejected": set(),
    "Deactivated": set(),
}


def pushed(auditor: Auditor, status: str, filled: int = 0, qty: int = 9, name: str = "o") -> None:
    row = {"orderId": name, "orderStatus": status, "cumExecQty": f"{filled}", "qty": f"{qty}"}
    auditor.pushed("order", row | {"orderLinkId": "", "symbol": SYMBOL}, Wallet(Decimal(0)), 1)


def auditor_of(*limits: int) -> Auditor:
    slots, symbols, size = limits or (3, 2, SIZE)
    return Auditor(Limits(slots, symbols, Decimal(size)), 1, LATE_MS)


@pytest.mark.parametrize("before", ["", *STATES])
@pytest.mark.parametrize("after", STATES)
def test_v17_an_order_moves_along_the_allowed_edges_only(before: str, after: str) -> None:
    auditor = auditor_of()
    path: dict[str, list[str]] = {"": []}
    while before not in path:  # the shortest way there
        path |= {new: [*way, new] for old, way in path.items() for new in ALLOWED[old]
                 if new not in path}  # fmt: skip
    for status in path[before]:
        pushed(auditor, status)
    assert list(auditor.lines) == []
    pushed(auditor, after)
    assert auditor.breaches == (after not in ALLOWED[before])
    pushed(auditor, "New", name="another order")
    assert auditor.breaches == (after not in ALLOWED[before])


@pytest.mark.parametrize(
    ("filled", "broken"), [((0, 3, 3, 9), 0), ((3, 2), 1), ((0, 10), 1), ((9, 10), 1)], ids=str
)
def test_v17_what_is_filled_never_falls_and_never_exceeds_the_order(
    filled: tuple[int, ...], broken: int
) -> None:
    auditor = auditor_of()
    for qty in filled:
        pushed(auditor, "PartiallyFilled", qty)
    assert auditor.breaches == broken


def test_v17_in_the_stream(desk: Desk) -> None:
    order_id = desk.made(orderLinkId="mine")
    desk.cancel("mine")
    row = desk.matching.orders[order_id].row() | {"orderStatus": "New"}
    desk.matching._pushes.append(("order", row))
    desk.venue._flush(desk.now)
    assert rules(desk) == ["V17"]
    assert order_id in desk.venue.auditor.lines[0]


# V25: the grid.


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        ({"price": "99.05"}, ["V25"]),  # the tick is 0.1
        ({"qty": "1.5"}, ["V25"]),  # the lot is 1
        ({"qty": "2"}, ["V25"]),  # at least 3
        ({"qty": "20"}, ["V25"]),  # at most 10
        ({"qty": "3", "price": "1.0"}, ["V25"]),  # 3 USDT
        ({"qty": "0"}, ["V25"]),
        ({"side": "up"}, []),
        ({"reduceOnly": True}, []),
        ({}, []),
    ],
    ids=str,
)
@pytest.mark.parametrize("ours", [True, False])
def test_v25_a_price_or_quantity_off_the_grid(
    desk: Desk, change: Row, broken: list[str], ours: bool
) -> None:
    grid = {"min_order_qty": "3", "max_order_qty": "10"}
    desk.fault("venue", "instrument_update", symbol=SYMBOL, **grid)
    desk.at_ms = round(LEARN_S * 1000)
    link = entry(bar=desk.at_ms // MINUTE_MS) if ours else "somebody-else"
    desk.create(**{"qty": "4", "orderLinkId": link} | change)
    assert rules(desk) == (broken if ours else [])


def test_v25_is_not_for_a_grid_that_nobody_can_know_yet(desk: Desk) -> None:
    desk.fault("venue", "instrument_update", symbol=SYMBOL, tick_size="0.5")
    desk.at_ms = round(LEARN_S * 1000) - 1
    bar = desk.at_ms // MINUTE_MS
    assert desk.create(orderLinkId=entry(bar=bar), price="98.7")["retCode"] == 10001
    assert rules(desk) == []
    other = entry(OTHER, bar=bar)  # whose grid is as it was
    assert desk.create(symbol=OTHER, orderLinkId=other, price="98.75")["retCode"] == 10001
    assert rules(desk) == ["V25"]


def test_v25_an_amend_off_the_grid(desk: Desk) -> None:
    link = buy(desk)
    for change in ({"price": "98.05"}, {"qty": "2.5"}):
        desk.post("/v5/order/amend", symbol=SYMBOL, orderLinkId=link, **change)
    assert rules(desk) == ["V25", "V25"]


def test_v25_an_exit_off_the_grid(desk: Desk) -> None:
    lot = bought(desk, qty="3")
    sell(desk, lot, qty="1.5")
    assert rules(desk) == ["V25"]


# A restart.


def restored(desk: Desk) -> Auditor:
    """The auditor of a process that begins with this account."""
    rows = [one.row() for one in desk.matching.orders.values()]
    fresh = auditor_of()
    fresh.restore(rows, desk.matching.executions, desk.matching.wallet)
    desk.venue.auditor = fresh
    return fresh


def test_after_a_restart_nothing_is_held_against_what_was_there(desk: Desk) -> None:
    lot = bought(desk, qty="3")
    desk.made(orderLinkId="waits", triggerPrice="101.0", triggerDirection=1, price="98.0")
    desk.made(orderLinkId="part", qty="5")
    desk.trade("99.0", 2)
    desk.made(**taking(symbol=OTHER, takeProfit="110.0", stopLoss="90.0"))
    restored(desk)
    assert sell(desk, lot, qty="3")["retCode"] == 0
    desk.hold()
    desk.trade("101.0")
    desk.trade("98.9")
    desk.cancel("waits")
    desk.made(**taking(symbol=OTHER, side="Sell"))
    desk.fault("venue", "fund", symbol=SYMBOL, rate="0.01")
    assert rules(desk) == []


def test_after_a_restart_open_lots_fills_and_ids_are_remembered(desk: Desk) -> None:
    bought(desk)
    buy(desk, -1)
    buy(desk, symbol=OTHER)
    auditor = restored(desk)
    desk.made(side="Sell", price="101.0", orderLinkId=entry(side="Sell"))
    assert rules(desk) == ["V4"]  # a fourth slot
    row = desk.matching.executions[-1]
    auditor.pushed("execution", row, desk.matching.wallet, 1)
    assert rules(desk) == ["V4", "V2"]
    desk.create(orderLinkId=entry())
    assert rules(desk) == ["V4", "V2", "V5"]


def test_after_a_restart_a_closed_lot_holds_no_slot(desk: Desk) -> None:
    for bar in range(5):
        desk.at_ms = bar * MINUTE_MS
        lot = bought(desk, bar)
        if bar < 4:
            sell(desk, lot)
        else:  # somebody else did
            desk.fault("venue", "foreign_fill", symbol=SYMBOL, side="Sell", qty="1")
    restored(desk)
    desk.at_ms += MINUTE_MS
    for bar, symbol in ((5, SYMBOL), (5, OTHER), (4, OTHER)):
        buy(desk, bar, symbol)
    assert rules(desk) == []  # 3 slots of 3


# Many lines.


def test_the_latest_thousand_lines_are_kept_and_all_are_counted() -> None:
    auditor = auditor_of()
    for number in range(1_100):
        pushed(auditor, "Deactivated", name=f"o{number}")
    assert (len(auditor.lines), auditor.breaches) == (1_000, 1_100)
    assert "o1099" in auditor.lines[-1] and "o100 " in auditor.lines[0]


# A clean bot.


class Honest:
    """A bot that keeps every rule: entries below the price, exits above it, within its caps."""

    def __init__(self, desk: Desk, seed: int) -> None:
        self.desk, self.random = desk, Random(seed)
        self.exits: dict[str, int] = {}
        self.used: dict[str, None] = {}  # in order

    def _order(self, link: str) -> Any:
        return self.desk.matching.find({"orderLinkId": link})

    def _lots(self) -> dict[str, Decimal]:
        """What is still to sell of each entry that may be open."""
        lots = {}
        for link in self.used:
            one = self._order(link)
            ids = (exit_id(link, n) for n in range(self.exits.get(link, 0)))
            sold = sum((self._order(i).filled for i in ids if self._order(i)), Decimal(0))
            if one and (one.status in ("New", "PartiallyFilled") or one.filled > sold):
                lots[link] = one.filled - sold
        return lots

    def minute(self, bar_ms: int) -> None:
        lots = self._lots()
        for link, left in lots.items():
            self._tend(link, left)
        lots = self._lots()
        symbols = {self._order(link).symbol for link in lots}
        for symbol in self.random.sample(self.desk.venue.public.symbols, 3):
            if len(lots) >= 3 or (symbol not in symbols and len(symbols) >= 2):
                break
            link = entry_id(symbol, "Buy", bar_ms)
            if link in self.used:
                continue
            self._enter(symbol, link)
            if (one := self._order(link)) and one.status != "Cancelled":
                lots[link] = Decimal(0)
                symbols.add(symbol)

    def _enter(self, symbol: str, link: str) -> None:
        listing, last = self.desk.matching.listings[symbol], self.desk.matching.last[symbol]
        price = last * Decimal(self.random.uniform(0.998, 1)) // listing.tick_size
        qty = Decimal(SIZE) / 2 / last // listing.qty_step * listing.qty_step
        if qty < listing.min_order_qty:
            return
        self.used[link] = None
        terms = {"price": f"{price * listing.tick_size:f}", "qty": f"{qty:f}"}
        self.desk.create(symbol=symbol, orderLinkId=link, timeInForce="PostOnly", **terms)

    def _tend(self, link: str, left: Decimal) -> None:
        one = self._order(link)
        if one.status in ("New", "PartiallyFilled") and self.random.random() < 0.5:
            self.desk.cancel(link, one.symbol)
        number = self.exits.get(link, 0)
        before = self._order(exit_id(link, number - 1)) if number else None
        if before and before.status in ("New", "PartiallyFilled"):
            if self.random.random() < 0.6:
                return
            self.desk.cancel(before.link_id, one.symbol)
            left = one.filled - before.filled if number == 1 else self._lots().get(link, left)
        if left > 0:
            self.exits[link] = number + 1
            tick = self.desk.matching.listings[one.symbol].tick_size
            price = self.desk.matching.last[one.symbol] * Decimal("1.001") // tick * tick
            terms = {"price": f"{price:f}", "qty": f"{left:f}", "reduceOnly": True}
            self.desk.create(symbol=one.symbol, side="Sell",
                             orderLinkId=exit_id(link, number), **terms)  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_a_clean_session_has_no_breach(seed: int) -> None:
    limits = {"SIZE_USDT": SIZE, "MAX_SLOTS": 3, "MAX_SYMBOLS": 2, "PAPER_BALANCE_USDT": 100_000}
    desk = Desk(
        synthetic(6, seed), PAPER_SEED=seed, PAPER_BOOK="full", PAPER_RATE_LIMIT=10, **limits
    )
    bot, random = Honest(desk, seed), Random(seed)
    for bar in range(90):
        desk.run(62 - desk.at_ms % 60_000 / 1000)  # 2 s into the next minute
        bot.minute(START + (desk.at_ms // 60_000 - 1) * MINUTE_MS)
        if random.random() < 0.2:  # what is not the bot's doing
            symbol = random.choice(desk.venue.public.symbols)
            desk.fault("venue", "fund", symbol=symbol, rate="0.0003")
            desk.fault("match", "fill_before_cancel")
            desk.fault("match", "partial")
        assert rules(desk) == [], bar
    fills = desk.matching.executions
    sides = {(row["side"], bool(row["orderLinkId"])) for row in fills}
    assert {("Buy", True), ("Sell", True)} <= sides and len(fills) > 30


WAYS = st.lists(
    st.sampled_from(("New", "PartiallyFilled", "Filled", "Cancelled")), min_size=1, max_size=6
)


@given(WAYS)
@settings(max_examples=100, deadline=None)
def test_v17_says_one_line_for_each_wrong_edge_of_a_path(path: list[str]) -> None:
    auditor = auditor_of()
    for status in path:
        pushed(auditor, status)
    wrong = sum(new not in ALLOWED[old] for old, new in pairwise(["", *path]))
    assert auditor.breaches == len(auditor.lines) == wrong
