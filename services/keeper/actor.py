"""keeper: executions in, positions out, and on disk before anyone hears of them.

Owns grants, orders, executions, lots, caps and the mode. Never creates or amends an order.
"""

import hashlib
import os
import time
from typing import Any, ClassVar

from services.keeper.ledger import GRANTED, Caps, Change, Ledger
from services.keeper.reconcile import Reconcile
from services.keeper.store import Store
from shared import messages as msg
from shared.actor import Actor
from shared.settings import Settings

EQUITY_NS = 60_000_000_000
UNKNOWN_NS = 2_000_000_000  # a grant this old that nothing was heard of is asked for


class Keeper(Actor):
    """The only reader of the account."""

    service = "keeper"
    hears: ClassVar[dict[str, tuple[str, ...]]] = {"commands": ("orderrequest.",)}
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
        self._operator, self._linked = msg.RUN, False
        self._said_mode = ("", "")
        self._orphans = ""
        self._granted_ns: dict[str, int] = {}
        self._asked_ns: dict[str, int] = {}
        self._snapshot: dict[str, msg.Fetched] = {}
        self._equity_ns = 0

    def start(self, now_ns: int) -> list[msg.Message]:
        """Rebuild the ledger from disk; the exchange is asked as soon as the stream is up."""
        self._store = Store(self._path, self._account, os.urandom(4).hex())
        self._ledger = Ledger(self._store.ledger_id, self._caps, self._interval_ms)
        disk = self._store
        self._ledger.restore(
            *(disk.row(), disk.orders(), disk.lots(), disk.executions(), disk.used_ms())
        )
        self._ledger.born_ms = disk.born_ms()
        self._operator = disk.operator_mode() or msg.RUN
        self._granted_ns = dict.fromkeys(self._ledger.orders, now_ns)
        return []

    def handle(self, message: Any, now_ns: int) -> list[msg.Message]:
        """A fact from the exchange, a snapshot, or what came of a command."""
        if isinstance(message, msg.Execution):
            return [message, *self._keep(self._ledger.execute(message))]
        if isinstance(message, msg.OrderUpdate):
            return [message, *self._keep(self._ledger.update(message))]
        if isinstance(message, msg.Wallet):
            return self._wallet(message, now_ns)
        if isinstance(message, msg.OrderRequest):
            return self._command(message)
        if isinstance(message, msg.Link):
            self._linked = message.up
            return [*self._begin(now_ns), self._mode()] if message.up else [self._mode()]
        if isinstance(message, msg.Fetched):
            return self._fetched(message, now_ns)
        return []

    def answer(self, request: Any, now_ns: int) -> list[msg.Message]:
        """A grant, the full set, or an operator's wish."""
        if isinstance(request, msg.Ask):
            return self._grant(request, now_ns)
        if isinstance(request, msg.Control) and request.mode in msg.MODES:
            self._operator = request.mode
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
        if self._linked and now_ns - self._reconcile.begun_ns >= self._round_ns:
            messages += self._begin(now_ns)
        messages += self._unknowns(now_ns)
        self.ready = self._linked and self._reconcile.clean_rounds > 0
        self.note = f"{len(self._ledger.lots)} lots, {len(self._ledger.orders)} orders"
        self.counters["executions"] = self._ledger.execution_count
        self.counters["lots"] = len(self._ledger.lots)
        self.counters["working_orders"] = len(self._ledger.orders)
        self.counters["differences"] = len(self._reconcile.differences)
        return messages

    def stop(self, now_ns: int) -> list[msg.Message]:
        """Close the file."""
        self._store.close()
        return []

    def _keep(self, change: Change) -> list[msg.Message]:
        """On disk first, then said. Nothing changed: nothing said."""
        if not change.symbol:
            return []
        self._store.write(change, self._ledger.row)
        for order, is_open in change.orders:
            if not is_open or order.status != GRANTED:
                self._granted_ns.pop(order.order_link_id, None)
        return [self._ledger.position(change.symbol)]

    def _grant(self, ask: msg.Ask, now_ns: int) -> list[msg.Message]:
        reason, change = self._ledger.grant(ask, self._mode_now()[0])
        if reason:
            self._store.outcome(ask.order_link_id, reason, ask.symbol, ask.side, ask.bar_start_ms)
            self.counters["refusals"] += 1
            return [msg.Grant(ask.order_link_id, False, reason)]
        said = self._keep(change)
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
        self._snapshot = {}
        return list(self._reconcile.begin(self._ledger.last_execution_ms, now_ns))

    def _unknowns(self, now_ns: int) -> list[msg.Message]:
        """Grants that nothing was heard of for too long: ask for each by its id."""
        late = [name for name, at in self._granted_ns.items() if now_ns - at > UNKNOWN_NS]
        orders = [self._ledger.orders[name] for name in late if name in self._ledger.orders]
        return list(self._reconcile.unconfirmed(orders, set()))

    def _fetched(self, fetched: msg.Fetched, now_ns: int) -> list[msg.Message]:
        if fetched.ask.what == "order":
            return self._one_order(fetched, now_ns)
        self.counters["fetch_errors"] += bool(fetched.error)
        self._snapshot[fetched.ask.what] = fetched
        if not self._reconcile.done(fetched):
            return []
        messages = self._first_look()
        for execution in reversed(self._snapshot["executions"].rows):
            messages += self._keep(self._ledger.execute(execution))
        for update in self._snapshot["orders"].rows:
            messages += self._keep(self._ledger.update(update))
        for wallet in self._snapshot["wallet"].rows:
            messages += self._wallet(wallet, now_ns)
        open_ids = {row.order_link_id for row in self._snapshot["orders"].rows}
        known = [o for name, o in self._ledger.orders.items() if name not in self._granted_ns]
        messages += self._reconcile.unconfirmed(known, open_ids)
        differences = self._reconcile.compare(self._ledger.held(), self._snapshot["positions"].rows)
        self._ledger.blocked = dict.fromkeys(differences, "difference")
        return [*messages, self._mode()]

    def _one_order(self, fetched: msg.Fetched, now_ns: int) -> list[msg.Message]:
        """The exchange's word on one order; its executions come with the next round, or before."""
        name = fetched.ask.order_link_id
        messages = [m for row in fetched.rows for m in self._keep(self._ledger.update(row))]
        granted_ns = self._granted_ns.get(name)
        if granted_ns and self._reconcile.never_arrived(fetched, granted_ns, now_ns):
            change = self._ledger.finish(name, "NotAccepted", "never arrived")
            return self._keep(change)
        return messages

    def _first_look(self) -> list[msg.Message]:
        """A new ledger on an account with a past: holdings are foreign, our own ids a riddle."""
        if self._store.born_ms() >= 0:
            return []
        executions = self._snapshot["executions"].rows
        if any(
            msg.parse_id(row.order_link_id) for row in (*executions, *self._snapshot["orders"].rows)
        ):
            self._orphans = "orders of ours at the exchange, but no ledger of them"
        born_ms = max((execution.exec_time_ms for execution in executions), default=0)
        self._ledger.born_ms = born_ms
        self._store.born(born_ms)
        messages: list[msg.Message] = []
        for holding in self._snapshot["positions"].rows:
            qty, side = abs(holding.qty), "Buy" if holding.qty > 0 else "Sell"
            adopted = msg.Execution(
                *(f"adopted-{holding.symbol}", "", "", holding.symbol, side, "Trade"),
                *(qty * 0, qty, qty * 0, False, born_ms + 1),
            )
            messages += self._keep(self._ledger.execute(adopted))
        return messages

    # The mode: the worst of what the operator wants and what the account allows.

    def _mode_now(self) -> tuple[str, str]:
        triggers = [(self._operator, "operator")]
        if not self._linked:
            triggers.append((msg.NO_ENTRY, "private stream lost"))
        elif not self._reconcile.clean_rounds:
            triggers.append((msg.NO_ENTRY, self._reconcile.failed or "not reconciled"))
        if self._orphans:
            triggers.append((msg.REDUCE_ONLY, self._orphans))
        mode, reason = max(triggers, key=lambda trigger: msg.MODES.index(trigger[0]))
        return mode, "" if mode == msg.RUN else reason

    def _mode(self, who: str = "") -> msg.Mode:
        """The Mode message; a change is written first."""
        mode, reason = self._mode_now()
        said = self._ledger.mode(mode, reason, len(self._reconcile.differences))
        if (mode, reason) != self._said_mode or who:
            self._said_mode = (mode, reason)
            self._store.mode(said, self._operator, time.time_ns() // 1_000_000)
        return said
