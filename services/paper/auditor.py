"""auditor: the rules that no bot may break, judged at every event from the exchange's side. Pure.

It keeps books of its own, from requests and pushes alone. It counts slots as the bot's contract
does: an entry is open while it may fill or while its lot is not sold; ids tell which is which.
Judged: fills once each (V2), caps (V4), ids never used twice (V5, V6), no order of ours through
zero (V7), no entry of another bar (V12), size (V13), no rate limit hit (V14), cash (V16), order
states (V17), the grid (V25).
"""

from collections import defaultdict, deque
from decimal import Decimal
from typing import Any, NamedTuple

from services.paper.gate import Now
from services.paper.order import BUY, OPEN, Row
from services.paper.params import Params, text
from services.paper.wallet import Wallet
from shared.messages import parse_id

KEPT_LINES = 1_000
SIZE_MARGIN = Decimal("1.000001")
MOVED_MARGIN = Decimal("1.05")  # an entry keeps its quantity while its price follows the band
LEARN_S = 30.0  # until a changed grid must be known
PROCESSES = 3  # that ask by REST
MINUTE_MS = 60_000
ZERO = Decimal(0)
EDGES = {
    "": {*OPEN, "Filled", "Cancelled", "Rejected"},
    "New": {"New", "PartiallyFilled", "Filled", "Cancelled", "Rejected"},
    "PartiallyFilled": {"PartiallyFilled", "Filled", "Cancelled"},
    "Untriggered": {"Untriggered", "Triggered", "Deactivated", "Cancelled"},
    "Triggered": {"New", "PartiallyFilled", "Filled", "Cancelled"},
    "Filled": {"Filled"},  # said again by a cancel that came too late
}
OFF_GRID = ("price invalid", "qty invalid", "minimum limit", "maximum limit")


class Limits(NamedTuple):
    """The bot's own caps, as its settings say."""

    max_slots: int
    max_symbols: int
    size_usdt: Decimal


class Entry:
    """One entry order of the bot and what came of it."""

    __slots__ = ("bought", "resting", "sold", "symbol")

    def __init__(self, symbol: str) -> None:
        self.symbol, self.resting = symbol, False
        self.bought = self.sold = ZERO


class Auditor:
    """`lines` are the latest breaches, one line each; `breaches` is how many there were."""

    def __init__(self, limits: Limits, seed: int, late_ms: int) -> None:
        self._limits, self._seed, self._late_ms = limits, seed, late_ms
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)
        self.breaches = self.events = self.strays = 0
        self._entries: dict[str, Entry] = {}
        self._active: set[str] = set()
        self._stops: dict[str, tuple[str, int]] = {}  # order id: what its lot's entry is called
        self._exec_ids: set[str] = set()
        self._cash = ZERO
        self._sizes: defaultdict[str, Decimal] = defaultdict(Decimal)
        self._foreign: defaultdict[str, Decimal] = defaultdict(Decimal)
        self._states: dict[str, tuple[str, Decimal]] = {}
        self._regridded_s: dict[str, float] = {}  # symbol: when its grid was changed
        self._named: dict[str, tuple[Any, Any]] = {}
        self._worst = [limits.max_slots, limits.max_symbols]  # reported so far

    def restore(self, orders: list[Row], executions: list[Row], wallet: Wallet) -> None:
        """Begin with an account that has lived before."""
        for row in orders:
            self._order(row)
            self._states[row["orderId"]] = row["orderStatus"], Decimal(row["cumExecQty"])
        for row in executions:
            self._exec_ids.add(row["execId"])
            self._lots(row)
        for symbol in wallet.held():
            self._sizes[symbol] = wallet.position(symbol).size
        self._cash = _cash(wallet)
        self._flat()

    def request(self, path: str, params: Params, code: int, said: str, now: Now) -> None:
        """One order request and its answer; `code` is that of the order in a batch."""
        self.events += 1
        if code == 10006:
            self._breach("V14", now.market_ms, f"{path}: over the rate limit")
        link_id = text(params, "orderLinkId")
        ours = parse_id(link_id)
        if ours is None:
            return
        if path.startswith("/v5/order/create"):
            self._identity(link_id, ours[1] is None, code, params, now)
        known = now.mono_s >= self._regridded_s.get(str(params.get("symbol")), -LEARN_S) + LEARN_S
        if known and (code == 110094 or (code == 10001 and any(word in said for word in OFF_GRID))):
            terms = f"qty={params.get('qty')} price={params.get('price')}"
            self._breach("V25", now.market_ms, f"{link_id} {terms}: {said}")
        if ours[1] is None and code == 0:
            if path.startswith("/v5/order/create"):
                self._timely(link_id, now)
                self._sized(link_id, params, SIZE_MARGIN, now)
            elif path.startswith("/v5/order/amend"):
                self._sized(link_id, params, MOVED_MARGIN, now)

    def regridded(self, symbol: str, now: Now) -> None:
        """Nobody can know of a new grid before a refusal tells of it."""
        self._regridded_s[symbol] = now.mono_s

    def banned(self, now: Now) -> None:
        """A request came although its sender had been told to stay away. Each process finds out by
        itself, by one request."""
        self.strays += 1
        if self.strays <= PROCESSES:
            return
        self._breach("V14", now.market_ms, "a request during a ban")

    def pushed(self, topic: str, row: Row, wallet: Wallet, at_ms: int) -> None:
        """One push of the private stream."""
        self.events += 1
        if topic == "order":
            self._states_of(row, at_ms)
            self._order(row)
            self._caps(at_ms)
        elif topic == "execution":
            self._execution(row, wallet, at_ms)

    def _identity(self, link_id: str, enters: bool, code: int, params: Params, now: Now) -> None:
        """An entry is never sent again; an exit may be, if it is the same one."""
        order = (params.get("symbol"), params.get("side"))
        if enters and code == 110072:
            self._breach("V5", now.market_ms, f"{link_id} sent twice")
        elif self._named.setdefault(link_id, order) != order:
            self._breach("V6", now.market_ms, f"{link_id} is two orders")

    def _timely(self, link_id: str, now: Now) -> None:
        """An entry is of the bar that is forming, by its id."""
        bar_ms = int(link_id.split("-")[2], 16) * MINUTE_MS
        if not bar_ms <= now.market_ms < bar_ms + MINUTE_MS + self._late_ms:
            self._breach("V12", now.market_ms, f"{link_id} is of another bar")

    def _sized(self, link_id: str, params: Params, margin: Decimal, now: Now) -> None:
        """An entry is worth what it may be; only limit orders are the bot's."""
        if (
            params.get("orderType", "Limit") == "Limit"
            and params.get("price")
            and params.get("qty")
        ):
            value = Decimal(str(params["qty"])) * Decimal(str(params["price"]))
            if value > self._limits.size_usdt * margin:
                self._breach("V13", now.market_ms, f"{link_id} is worth {value:f} USDT")

    def _states_of(self, row: Row, at_ms: int) -> None:
        order_id, status, filled = row["orderId"], row["orderStatus"], Decimal(row["cumExecQty"])
        before, had = self._states.get(order_id, ("", ZERO))
        if status not in EDGES.get(before, ()):
            self._breach("V17", at_ms, f"{order_id} went from {before} to {status}")
        if filled < had or filled > Decimal(row["qty"]):
            self._breach("V17", at_ms, f"{order_id} filled {had} and then {filled}")
        self._states[order_id] = status, filled

    def _order(self, row: Row) -> None:
        ours = parse_id(row["orderLinkId"])
        if parent := parse_id(row.get("parentOrderLinkId", "")):
            self._stops[row["orderId"]] = parent[0], 0
        if ours and ours[1] is None:
            entry = self._entries.setdefault(ours[0], Entry(row["symbol"]))
            entry.resting = row["orderStatus"] in OPEN
            self._weigh(ours[0])

    def _lots(self, row: Row) -> None:
        ours = self._stops.get(row["orderId"]) or parse_id(row["orderLinkId"])
        if ours:
            entry = self._entries.setdefault(ours[0], Entry(row["symbol"]))
            if ours[1] is None:
                entry.bought += Decimal(row["execQty"])
            else:
                entry.sold += Decimal(row["execQty"])
            self._weigh(ours[0])

    def _execution(self, row: Row, wallet: Wallet, at_ms: int) -> None:
        if row["execId"] in self._exec_ids:
            self._breach("V2", at_ms, f"{row['execId']} came twice")
            return
        self._exec_ids.add(row["execId"])
        symbol, fee = row["symbol"], Decimal(row["execFee"])
        self._cash -= fee
        if row["execType"] != "Funding":
            qty = Decimal(row["execQty"]) * (1 if row["side"] == BUY else -1)
            old, new = self._sizes[symbol], self._sizes[symbol] + qty
            self._sizes[symbol] = new
            self._cash -= qty * Decimal(row["execPrice"])
            ours = parse_id(row["orderLinkId"]) or row["stopOrderType"] == "PartialStopLoss"
            if not ours:
                self._foreign[symbol] += qty  # who trades against us makes a race nobody can win
            if old * new < 0 and ours and not self._foreign[symbol]:
                self._breach("V7", at_ms, f"{row['orderLinkId']} went from {old:f} to {new:f}")
            self._lots(row)
            self._flat(symbol)
            self._caps(at_ms)

    def check_cash(self, wallet: Wallet, at_ms: int) -> None:
        """Balance and costs against the cash that fills, fees and funding have moved."""
        if _cash(wallet) != self._cash:
            self._breach("V16", at_ms, f"cash is {_cash(wallet):f}, not {self._cash:f}")
            self._cash = _cash(wallet)  # said once

    def _flat(self, only: str = "") -> None:
        """Where nothing is held, no lot is open, whoever has closed it."""
        for entry_id in list(self._active):
            entry = self._entries[entry_id]
            if only in ("", entry.symbol) and not self._sizes[entry.symbol]:
                entry.sold = entry.bought
                self._weigh(entry_id)

    def _weigh(self, entry_id: str) -> None:
        entry = self._entries[entry_id]
        if entry.resting or entry.bought > entry.sold:
            self._active.add(entry_id)
        else:
            self._active.discard(entry_id)

    def _caps(self, at_ms: int) -> None:
        """Slots and symbols against their caps; each new height is one breach."""
        symbols = {self._entries[entry_id].symbol for entry_id in self._active}
        caps = (self._limits.max_slots, self._limits.max_symbols)
        counts = (len(self._active), len(symbols))
        for place, what in enumerate(("slots", "symbols")):
            if counts[place] > self._worst[place]:
                self._breach("V4", at_ms, f"{counts[place]} {what} are open")
            self._worst[place] = max(counts[place], caps[place])

    def _breach(self, rule: str, at_ms: int, what: str) -> None:
        self.breaches += 1
        self.lines.append(
            f"breach {rule} event={self.events} seed={self._seed} at_ms={at_ms} {what}"
        )


def _cash(wallet: Wallet) -> Decimal:
    """What fills, fees and funding have brought: the balance before deposits and open costs."""
    held = (wallet.position(symbol) for symbol in wallet.held())
    cost = sum((p.cost if p.size > 0 else -p.cost for p in held), ZERO)
    return wallet.balance - wallet.flows["deposits"] - cost
