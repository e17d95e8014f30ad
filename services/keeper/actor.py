"""keeper: executions in, positions out, and on disk before anyone hears of them.

Owns grants, orders, executions, lots, caps and the mode. Never creates or amends an order.
"""

import hashlib
import os
import time
from collections.abc import Iterable
from typing import Any, ClassVar

from services.keeper.ledger import GRANTED, Caps, Change, Ledger
from services.keeper.reconcile import TRUST_NS, Reconcile
from services.keeper.store import Store
from shared import messages as msg
from shared.actor import Actor
from shared.instrument import decimal_of
from shared.settings import Settings

EQUITY_NS = 60_000_000_000
SILENT_NS = 10_000_000_000  # a router unheard for so long no longer minds its entries
RECANCEL_NS = 5_000_000_000
UNKNOWN_NS = 2_000_000_000  # a grant this old that nothing was heard of is asked for


class Keeper(Actor):
    """The only reader of the account."""

    service = "keeper"
    hears: ClassVar[dict[str, tuple[str, ...]]] = {"commands": ("orderrequest.", "health.")}
    says = "account"
    answers = ("ledger",)
    links: ClassVar[tuple[str, ...]] = ("private",)

    def __init__(self, settings: Settings, path: str = "") -> None:
        super().__init__(settings)
        self._path = path or str(settings.RUN_DIR / "state.db")
        key = hashlib.sha256(settings.api_key.encode()).hexdigest()[:8]
        self._account = f"{settings.BYBIT_ENV}-{key}"
        self._caps, self._interval_ms = settings.part(Caps), settings.interval_ms
        self._round_ns = settings.RECONCILE_SECONDS * 1_000_000_000
        self._reconcile = Reconcile(settings.RECV_WINDOW_MS)
        self._operator, self._linked = (msg.RUN, ""), False
        self._said_mode = ("", "")
        self._router_ns = self._cancelled_ns = 0
        self._base_profit_pct = decimal_of(settings.BASE_FEE_PCT)
        self._granted_ns: dict[str, int] = {}
        self._until_ms = 0
        self._equity_ns = 0

    def start(self, now_ns: int) -> list[msg.Message]:
        """Rebuild the ledger from disk; the first tick asks the exchange what was missed."""
        self._store = Store(self._path, self._account, os.urandom(4).hex())
        self._ledger = Ledger(self._store.ledger_id, self._caps, self._interval_ms)
        disk = self._store
        rows = (disk.row(), disk.orders(), disk.lots(), disk.executions())
        self._ledger.restore(*rows, disk.used_ms(), disk.foreign())
        self._ledger.born_ms = disk.born_ms()
        self._operator = disk.operator()
        granted = (name for name, o in self._ledger.orders.items() if o.status == GRANTED)
        self._granted_ns = dict.fromkeys(granted, now_ns)
        self._router_ns = now_ns
        return []

    def handle(self, message: Any, now_ns: int) -> list[msg.Message]:
        """A fact from the exchange, a snapshot, or what came of a command."""
        if isinstance(message, msg.Execution):
            return [message, *self._keep(self._ledger.execute(message), message.recv_ns)]
        if isinstance(message, msg.OrderUpdate):
            return [message, *self._keep(self._ledger.update(message), message.recv_ns)]
        if isinstance(message, msg.Wallet):
            return self._wallet(message, now_ns)
        if isinstance(message, msg.OrderRequest):
            return self._command(message)
        if isinstance(message, msg.Health):
            self._router_ns = now_ns
        if isinstance(message, msg.Link):
            self._linked = message.up
            self._reconcile.distrust("not reconciled")
            return [*self._begin(now_ns), self._mode()] if message.up else [self._mode()]
        if isinstance(message, msg.Fetched):
            return self._fetched(message, now_ns)
        return []

    def answer(self, request: Any, now_ns: int) -> list[msg.Message]:
        """A grant, the full set, or an operator's wish."""
        if isinstance(request, msg.Ask):
            return self._grant(request, now_ns)
        if isinstance(request, msg.Control) and request.mode in msg.MODES:
            self._operator = (request.mode, "operator")
            return [self._mode(request.who)]
        if isinstance(request, msg.Control):
            return []
        symbols = sorted(self._ledger.symbols())
        return [msg.FullSet(tuple(self._ledger.position(s) for s in symbols), self._mode())]

    def tick(self, now_ns: int) -> list[msg.Message]:
        """Every position again, then the mode; a round of reconciliation when it is time."""
        messages: list[msg.Message] = [
            self._ledger.position(s) for s in sorted(self._ledger.symbols())
        ]
        messages.append(self._mode())
        pause_ns = self._round_ns if self._reconcile.trusted else min(self._round_ns, TRUST_NS)
        if self._reconcile.due(now_ns, pause_ns):
            messages += self._begin(now_ns)
        messages += [*self._unknowns(now_ns), *self._dead_man(now_ns)]
        self.ready = self._linked and self._reconcile.trusted
        self.note = f"{self._ledger.open_lots()} lots, {len(self._ledger.orders)} orders"
        self.counters["executions"] = self._ledger.execution_count
        self.counters["lots"] = self._ledger.open_lots()
        self.counters["working_orders"] = len(self._ledger.orders)
        self.counters["differences"] = len(self._reconcile.differences)
        return messages

    def stop(self, now_ns: int) -> list[msg.Message]:
        """Close the file."""
        self._store.close()
        return []

    def _keep(self, change: Change, recv_ns: int = 0, durable: bool = False) -> list[msg.Message]:
        """On disk first, then said. Nothing changed: nothing said."""
        if not change.symbol:
            return []
        self._store.write(change, self._ledger.row, durable)
        for order, is_open in change.orders:
            if not is_open or order.status != GRANTED:
                self._granted_ns.pop(order.order_link_id, None)
        return [self._ledger.position(change.symbol)._replace(recv_ns=recv_ns)]

    def _grant(self, ask: msg.Ask, now_ns: int) -> list[msg.Message]:
        reason, change = self._ledger.grant(ask, self._mode_now()[0])
        if reason:
            self._store.outcome(ask.order_link_id, reason, ask.symbol, ask.side, ask.bar_start_ms)
            self.counters["refusals"] += 1
            return [msg.Grant(ask.order_link_id, False, reason)]
        said = self._keep(change, durable=True)
        self._granted_ns[ask.order_link_id] = now_ns
        self.counters["grants"] += 1
        return [msg.Grant(ask.order_link_id, True), *said]

    def _command(self, request: msg.OrderRequest) -> list[msg.Message]:
        """A refused create never was: its slot is free again."""
        if request.outcome != "refused" or request.action != "create":
            return []
        ours = msg.parse_id(request.order_link_id)
        bar_ms = int(request.order_link_id.split("-")[2], 16) * 60_000 if ours else 0
        reason = f"refused {request.ret_code} {request.reason}".strip()
        self._store.outcome(request.order_link_id, reason, request.symbol, request.side, bar_ms)
        return self._keep(self._ledger.finish(request.order_link_id, "Refused", reason))

    def _wallet(self, wallet: msg.Wallet, now_ns: int) -> list[msg.Message]:
        if now_ns - self._equity_ns >= EQUITY_NS:
            self._equity_ns = now_ns
            self._store.equity(wallet, time.time_ns() // 1_000_000)
        return [wallet]

    # The exchange's truth.

    def _begin(self, now_ns: int) -> list[msg.Message]:
        self._until_ms = self._ledger.last_execution_ms
        return list(self._reconcile.begin(self._store.since_ms(), now_ns))

    def _unknowns(self, now_ns: int) -> list[msg.Message]:
        """Grants that nothing was heard of for too long: ask for each by its id."""
        late = [name for name, at in self._granted_ns.items() if now_ns - at > UNKNOWN_NS]
        orders = [self._ledger.orders[name] for name in late if name in self._ledger.orders]
        return list(self._reconcile.unconfirmed(orders, set()))

    def _fetched(self, fetched: msg.Fetched, now_ns: int) -> list[msg.Message]:
        if fetched.ask.what == "order":
            return self._one_order(fetched, now_ns)
        self.counters["fetch_errors"] += bool(fetched.error)
        if not self._reconcile.done(fetched):
            return []
        snapshot, first = self._reconcile.snapshot, self._store.born_ms() < 0
        messages = self._first_look(now_ns) if first else self._adopt_orders(now_ns)
        for execution in reversed(snapshot["executions"]):
            messages += self._keep(self._ledger.execute(execution))
        if first:
            messages += self._adopt_holdings()
        for update in snapshot["orders"]:
            messages += self._keep(self._ledger.update(update))
        for wallet in snapshot["wallet"]:
            messages += self._wallet(wallet, now_ns)
        self._store.read_until(self._until_ms)
        open_ids = {row.order_link_id for row in snapshot["orders"]}
        known = [o for name, o in self._ledger.orders.items() if name not in self._granted_ns]
        messages += self._reconcile.unconfirmed(known, open_ids)
        holdings = snapshot["positions"]
        differing = self._reconcile.compare(self._ledger.held(), holdings, now_ns)
        foreign = {o.symbol for o in snapshot["orders"] if not msg.parse_id(o.order_link_id)}
        self._ledger.blocked = {**dict.fromkeys(foreign, "foreign_order"), **differing}
        return [*messages, self._mode()]

    def _one_order(self, fetched: msg.Fetched, now_ns: int) -> list[msg.Message]:
        """The exchange's word on one order; its executions come with the next round, or before."""
        name = fetched.ask.order_link_id
        messages = [m for row in fetched.rows for m in self._keep(self._ledger.update(row))]
        granted_ns = self._granted_ns.get(name, 0)
        if self._reconcile.never_arrived(fetched, granted_ns, now_ns):
            status = "NotAccepted" if granted_ns else "Cancelled"
            return self._keep(self._ledger.gone(name, status, "not at the exchange"))
        return messages

    def _adopt_orders(self, now_ns: int) -> list[msg.Message]:
        """Entries with our ids that this ledger never heard of: take them in, and manage them."""
        entries = _entries(self._reconcile.snapshot["orders"]) - self._ledger.lots.keys()
        return self._adopt({name for name in entries if not self._store.knows(name)}, now_ns)

    def _adopt(self, entries: set[str], now_ns: int) -> list[msg.Message]:
        """Take in entries by their ids; what became of each is then asked for."""
        self._granted_ns |= dict.fromkeys(entries, now_ns)
        changes = [self._ledger.adopt(name, self._base_profit_pct) for name in sorted(entries)]
        return [m for change in changes for m in self._keep(change)]

    def _first_look(self, now_ns: int) -> list[msg.Message]:
        """A new ledger: what was executed before it is not its own, unless it has our ids. Then a
        ledger was lost: its entries are taken back, and a person is asked."""
        snapshot = self._reconcile.snapshot
        ours = _entries((*snapshot["executions"], *snapshot["orders"]))
        if ours:
            self._operator = (
                msg.REDUCE_ONLY,
                "orders of ours at the exchange, but no ledger of them",
            )
            self._mode("keeper")
        executions = () if ours else snapshot["executions"]
        self._ledger.born_ms = max((e.exec_time_ms for e in executions), default=0)
        self._store.born(self._ledger.born_ms)
        return self._adopt(ours, now_ns)

    def _adopt_holdings(self) -> list[msg.Message]:
        """What the account holds beyond our lots was there before us: foreign."""
        messages: list[msg.Message] = []
        for holding in self._reconcile.snapshot["positions"]:
            qty = holding.qty - self._ledger.held().get(holding.symbol, 0)
            side, zero, at_ms = "Buy" if qty > 0 else "Sell", qty * 0, self._ledger.born_ms + 1
            head = (f"adopted-{holding.symbol}", "", "", holding.symbol, side, "Trade")
            if qty:
                adopted = msg.Execution(*head, zero, abs(qty), zero, False, at_ms)
                messages += self._keep(self._ledger.execute(adopted))
        return messages

    def _dead_man(self, now_ns: int) -> list[msg.Message]:
        """Nobody minds our entries: cancel them, by id, until they are gone."""
        silent = now_ns - self._router_ns > SILENT_NS
        if not silent or now_ns - self._cancelled_ns < RECANCEL_NS:
            return []
        self._cancelled_ns = now_ns
        entries = (order for order in self._ledger.orders.values() if order.kind == msg.ENTRY)
        return [
            msg.OrderRequest(
                *(o.order_link_id, 0, "cancel", o.symbol, o.side, o.price, o.qty),
                *("", False, 0, now_ns),
            )
            for o in entries
        ]

    # The mode: the worst of what the operator wants and what the account allows.

    def _mode_now(self) -> tuple[str, str]:
        triggers = [self._operator]
        if not self._linked:
            triggers.append((msg.NO_ENTRY, "private stream lost"))
        elif not self._reconcile.trusted:
            triggers.append((msg.NO_ENTRY, self._reconcile.failed))
        mode, reason = max(triggers, key=lambda trigger: msg.MODES.index(trigger[0]))
        return mode, "" if mode == msg.RUN else reason

    def _mode(self, who: str = "") -> msg.Mode:
        """The Mode message; a change is written first."""
        mode, reason = self._mode_now()
        said = self._ledger.mode(mode, reason, len(self._reconcile.differences))
        if (mode, reason) != self._said_mode or who:
            self._said_mode = (mode, reason)
            self._store.mode(said, self._operator, who, time.time_ns() // 1_000_000)
        return said


def _entries(rows: Iterable[Any]) -> set[str]:
    """The entries that rows with our ids belong to, exits included."""
    return {found[0] for row in rows if (found := msg.parse_id(row.order_link_id))}
