"""keeper: executions in, positions out, and on disk before anyone hears of them.

Owns grants, orders, executions, lots, caps and the mode. Never creates or amends an order.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar

from services.keeper.ledger import GRANTED, Caps, Change, Ledger
from services.keeper.losses import Limits, Losses
from services.keeper.reconcile import TRUST_NS, Reconcile
from services.keeper.restarts import LOOP_COUNT, Restarts
from services.keeper.store import Damaged, Store, Unwritable, set_aside
from shared import messages as msg
from shared.actor import Actor
from shared.instrument import decimal_of
from shared.settings import Settings, WrongSetting, ledger_account

READINGS = 3  # of the equity, before it is judged
EQUITY_NS = 60_000_000_000
STALE_NS = 3_000_000_000  # since the ingestor last said that the market speaks
RECANCEL_NS = 5_000_000_000
SWEEP_NS = 900_000_000  # between two (a tick may come a little early) ...
ALONE, BESIDE = 0.8, 0.2  # ... of our shares of RATE_LIMIT: the router is silent, or uses the rest
UNWRITTEN_LIMIT = 100_000  # writes that wait for the disk; then the process gives up
MARK_NS = 30_000_000_000  # a mark that old is none
CLOCK_NS = 30_000_000_000  # after a request that came too late or too early
WRONG_TIME = 10002
EXISTS = 110072  # an order with this id has been made: look what became of it
DEAF_NS = 1_500_000_000  # a round has brought news, the stream has not said a word since
INCOMPLETE_NS = 2_000_000_000  # an order has ended, its executions are missing: look again
NOT_THERE = "not at the exchange"
UNKNOWN_NS = 2_000_000_000  # a grant this old that nothing was heard of is asked for

FROM_STREAM = (msg.Execution, msg.OrderUpdate, msg.Wallet)


def wall_clock_ms() -> int:
    """The machine's wall clock."""
    return time.time_ns() // 1_000_000


class Keeper(Actor):
    """The only reader of the account."""

    service = "keeper"
    hears: ClassVar[dict[str, tuple[str, ...]]] = {
        "commands": ("orderrequest.", "touch.", "health."),
        "market": ("health.",),
        "quotes": ("health.",),
    }
    says = "account"
    answers = ("ledger",)
    links: ClassVar[tuple[str, ...]] = ("private",)

    def __init__(
        self,
        settings: Settings,
        path: str = "",
        wall_ms: Callable[[], int] = wall_clock_ms,
        store: Callable[[str, str, str], Store] = Store,
    ) -> None:
        super().__init__(settings)
        self._wall_ms, self._open_store = wall_ms, store
        self._path = path or str(settings.RUN_DIR / "state.db")
        self._account = ledger_account(settings)
        self._caps, self._interval_ms = settings.part(Caps), settings.interval_ms
        self._round_ns = settings.RECONCILE_SECONDS * 1_000_000_000
        self._reconcile = Reconcile(settings.RECV_WINDOW_MS)
        self._operator, self._linked = (msg.RUN, ""), False
        self._rounds = 0  # complete since the stream came up: the first brings what it missed
        self._suspect_ns = 0  # since when the stream owes us what a round has brought
        self._unwritten: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._disk = ""  # why it takes nothing
        self._checked = True  # that the key moves no funds; asked again if nobody answered
        self._said_mode = ("", "")
        self._router_ns = self._market_ns = self._clock_ns = self._marked_ns = 0
        self._cancelled_ns: dict[str, int] = {}
        self._swept_ns = 0
        self._orphans: list[msg.OrderRequest] = []  # that this round has found; each goes once
        self._rate_limit = settings.RATE_LIMIT
        self._limits = settings.part(Limits)
        self._base_profit_pct = decimal_of(settings.BASE_FEE_PCT)
        self._granted_ns: dict[str, int] = {}
        self._restarts = Restarts()
        self._until_ms = 0
        self._equity_ns = 0
        self._equities: deque[Decimal] = deque(maxlen=READINGS)

    def start(self, now_ns: int) -> list[msg.Message]:
        """Rebuild the ledger from disk; the first tick asks the exchange what was missed."""
        try:
            self._open()
        except Damaged as error:
            aside = set_aside(Path(self._path))
            self._open()
            self._operator = (msg.REDUCE_ONLY, f"ledger damaged ({error}), it is now {aside}")
            self._mode(now_ns, "keeper")
        granted = (name for name, o in self._ledger.orders.items() if o.status == GRANTED)
        self._granted_ns = dict.fromkeys(granted, now_ns)
        self._router_ns = self._market_ns = now_ns
        return [msg.Fetch("rights"), *self._begun(now_ns)]

    def _open(self) -> None:
        self._store = self._open_store(self._path, self._account, os.urandom(4).hex())
        self._ledger = Ledger(self._store.ledger_id, self._caps, self._interval_ms)
        disk = self._store
        rows = (disk.row(), disk.orders(), disk.lots(), disk.executions())
        self._ledger.restore(*rows, disk.used_ms(), disk.foreign(), disk.closed_ms(), disk.stops())
        self._ledger.born_ms = int(disk.noted("born_ms"))
        self._losses = Losses(self._limits, disk.noted("losses"))
        self._operator = disk.operator()

    def handle(self, message: Any, now_ns: int) -> list[msg.Message]:
        """A fact from the exchange, a snapshot, or what came of a command."""
        if isinstance(message, FROM_STREAM):
            self._suspect_ns = 0
        if isinstance(message, msg.Execution):
            return [message, *self._executed(message, now_ns)]
        if isinstance(message, msg.OrderUpdate):
            return [message, *self._keep(self._ledger.update(message), message.recv_ns)]
        if isinstance(message, msg.Wallet):
            return self._wallet(message, now_ns)
        if isinstance(message, msg.OrderRequest):
            return self._command(message, now_ns)
        if isinstance(message, msg.Touch):
            self._put(self._store.outcome, message, False)
        if isinstance(message, msg.Health):
            return self._health(message, now_ns)
        if isinstance(message, msg.Link):
            self._linked = message.up
            self._rounds = self._suspect_ns = 0
            self._reconcile.distrust("not reconciled")
            return (
                [*self._begin(now_ns), self._mode(now_ns)] if message.up else [self._mode(now_ns)]
            )
        if isinstance(message, msg.Fetched):
            return self._fetched(message, now_ns)
        return []

    def answer(self, request: Any, now_ns: int) -> list[msg.Message]:
        """A grant, the full set, or an operator's wish."""
        if isinstance(request, msg.Ask):
            return self._grant(request, now_ns)
        if isinstance(request, msg.Control) and request.mode in msg.MODES:
            self._operator = (request.mode, "operator")
            if request.mode == msg.RUN:
                self._losses.forgive()
                self._note("losses", self._losses.text)
            return [self._mode(now_ns, request.who)]
        if isinstance(request, msg.Control):
            return [self._mode(now_ns, f"{request.who}: {request.note}")] if request.note else []
        symbols = sorted(self._ledger.symbols())
        return [msg.FullSet(tuple(self._ledger.position(s) for s in symbols), self._mode(now_ns))]

    def tick(self, now_ns: int) -> list[msg.Message]:
        """Every position again, then the mode; a round of reconciliation when it is time."""
        if now_ns - self._marked_ns > MARK_NS:
            self._ledger.marks = {}
        messages: list[msg.Message] = [
            self._ledger.position(s) for s in sorted(self._ledger.symbols())
        ]
        messages.append(self._mode(now_ns))
        pause_ns = self._round_ns if self._reconcile.trusted else min(self._round_ns, TRUST_NS)
        if self._ledger.incomplete():
            pause_ns = min(pause_ns, INCOMPLETE_NS)
        if self._reconcile.due(now_ns, pause_ns):
            messages += self._begin(now_ns)
        messages += [*self._unknowns(now_ns), *self._sweep(now_ns)]
        self._put(self._store.look)
        if self._suspect_ns and now_ns - self._suspect_ns > DEAF_NS:
            self._suspect_ns = 0
            self._reconcile.distrust("private stream is deaf")
            messages.append(msg.Rebuild("private", "deaf"))
        self.ready = self._linked and self._reconcile.trusted
        self.note = f"{self._ledger.open_lots()} lots, {len(self._ledger.orders)} orders"
        self.counters["executions"] = self._ledger.execution_count
        self.counters["lots"] = self._ledger.open_lots()
        self.counters["working_orders"] = len(self._ledger.orders)
        self.counters["differences"] = len(self._reconcile.differences)
        return messages

    def stop(self, now_ns: int) -> list[msg.Message]:
        """Close the file. An orderly end is none of a crash loop."""
        self._note("starts", "")
        self._store.close()
        return []

    def _begun(self, now_ns: int) -> list[msg.Message]:
        """Our own starts are counted on disk."""
        starts = [*self._store.noted("starts").split(), str(self._wall_ms())][-LOOP_COUNT:]
        self._note("starts", " ".join(starts))
        loop = [self._restarts.started("keeper", int(at_ms)) for at_ms in starts][-1]
        return self._stop_by(msg.REDUCE_ONLY, loop, now_ns) if loop else []

    def _health(self, health: msg.Health, now_ns: int) -> list[msg.Message]:
        """Who is alive, and who is so again and again."""
        if health.service == "router":
            self._router_ns = now_ns
        elif health.service == "ingestor":
            silent = health.counters.get("silent")
            self._market_ns = now_ns - 2 * STALE_NS if silent else now_ns
        name = f"{health.service}-{health.slot}"
        loop = self._restarts.heard(name, health.pid, now_ns // 1_000_000)
        return self._stop_by(msg.REDUCE_ONLY, loop, now_ns) if loop else []

    def _put(self, write: Callable[..., None], *values: Any) -> None:
        """To the disk, after what it did not take before; what it does not take now waits."""
        self._unwritten.append((write, values))
        if len(self._unwritten) > UNWRITTEN_LIMIT:
            raise RuntimeError(f"{len(self._unwritten)} writes wait for the disk: {self._disk}")
        try:
            while self._unwritten:
                first, its = self._unwritten[0]
                first(*its)
                self._unwritten.popleft()
        except Unwritable as error:
            self._disk = f"disk: {error}"
        else:
            self._disk = ""

    def _note(self, name: str, value: object) -> None:
        self._put(self._store.note, name, value)

    def _keep(self, change: Change, recv_ns: int = 0, durable: bool = False) -> list[msg.Message]:
        """On disk first, then said. Nothing changed: nothing said."""
        if not change.symbol:
            return []
        ended = [o for o, is_open in change.orders if not is_open and o.kind == msg.ENTRY]
        touches = (*change.touches, *(_touch(order, _outcome(order)) for order in ended))
        self._put(self._store.write, change._replace(touches=touches), self._ledger.row, durable)
        for order, is_open in change.orders:
            if not is_open or order.status != GRANTED:
                self._granted_ns.pop(order.order_link_id, None)
        return [self._ledger.position(change.symbol)._replace(recv_ns=recv_ns)]

    def _executed(self, execution: msg.Execution, now_ns: int) -> list[msg.Message]:
        """One fill. What was filled beyond its quantity is a limit of ours that was broken."""
        entry = msg.entry_of(execution.order_link_id)
        if entry and self._ledger.is_news(execution) and self._lost(entry, traded=True):
            self._adopt({entry}, now_ns)  # it was there
        said = self._keep(self._ledger.execute(execution), execution.recv_ns)
        breach, self._ledger.breach = self._ledger.breach, ""
        return [*said, *(self._stop_by(msg.CANCEL_ALL, breach, now_ns) if breach else ())]

    def _stop_by(self, mode: str, reason: str, now_ns: int) -> list[msg.Message]:
        """A mode that only a person ends; never a milder one than there is."""
        if msg.MODES.index(self._operator[0]) >= msg.MODES.index(mode):
            return []
        self._operator = (mode, reason)
        return [self._mode(now_ns)]

    def _grant(self, ask: msg.Ask, now_ns: int) -> list[msg.Message]:
        reason, change = self._ledger.grant(ask, self._mode_now(now_ns)[0])
        touch = msg.Touch(ask.order_link_id, *ask[1:4], reason or "order")
        change = change._replace(touches=(touch,))
        if reason:
            final = not self._store.order(ask.order_link_id)
            self._put(self._store.outcome, touch, final)
            self.counters["refusals"] += 1
            return [msg.Grant(ask.order_link_id, False, reason)]
        said = self._keep(change, durable=True)
        if self._disk:  # no intent on disk, no order
            undone = self._keep(self._ledger.finish(ask.order_link_id, "Refused", "disk"))
            return [msg.Grant(ask.order_link_id, False, "disk"), *undone, self._mode(now_ns)]
        self._granted_ns[ask.order_link_id] = now_ns
        self.counters["grants"] += 1
        return [msg.Grant(ask.order_link_id, True), *said]

    def _command(self, request: msg.OrderRequest, now_ns: int) -> list[msg.Message]:
        """A refused create never was: its slot is free again. An exit that is too small joins the
        next lot's. An id that was used before is looked for: its order may have ended unheard."""
        if request.ret_code == EXISTS:
            return [msg.Fetch("order", request.symbol, order_link_id=request.order_link_id)]
        if request.outcome != "refused":
            return []
        self._put(self._store.refusal, request, self._wall_ms())
        if request.ret_code == WRONG_TIME:
            self._clock_ns = now_ns
        if request.action != "create":
            return []
        if request.reduce_only and (request.reason == msg.DUST or "minimum" in request.reason):
            return self._keep(self._ledger.merge(request.order_link_id))
        reason = f"refused {request.ret_code} {request.reason}".strip()
        return self._keep(self._ledger.finish(request.order_link_id, "Refused", reason))

    def _wallet(self, wallet: msg.Wallet, now_ns: int) -> list[msg.Message]:
        """The equity, judged by the middle one of its last readings: a single one that is wrong, up
        or down, must not sell everything."""
        before, drawdown = self._losses.trigger(), ""
        self._equities.append(wallet.total_equity)
        if len(self._equities) == READINGS:
            drawdown = self._losses.seen(sorted(self._equities)[READINGS // 2], self._wall_ms())
        if now_ns - self._equity_ns >= EQUITY_NS or drawdown or self._losses.trigger() != before:
            self._equity_ns = now_ns
            self._put(self._store.equity, wallet, self._wall_ms())
            self._note("losses", self._losses.text)
        stop = self._stop_by(msg.FLATTEN, drawdown, now_ns) if drawdown else []
        return [wallet, *stop]

    # The exchange's truth.

    def _begin(self, now_ns: int) -> list[msg.Message]:
        self._until_ms = self._ledger.last_execution_ms
        since_ms = max(int(self._store.noted("since_ms")), self._ledger.born_ms)
        asks = self._reconcile.begin(since_ms, now_ns)
        return [*asks, *([] if self._checked else [msg.Fetch("rights")])]

    def _unknowns(self, now_ns: int) -> list[msg.Message]:
        """Grants that nothing was heard of for too long: ask for each by its id."""
        late = [name for name, at in self._granted_ns.items() if now_ns - at > UNKNOWN_NS]
        orders = [self._ledger.orders[name] for name in late if name in self._ledger.orders]
        return list(self._reconcile.unconfirmed(orders, set()))

    def _fetched(self, fetched: msg.Fetched, now_ns: int) -> list[msg.Message]:
        if fetched.ask.what == "order":
            return self._one_order(fetched, now_ns)
        if fetched.ask.what == "rights":
            self._checked = not fetched.error
            if fetched.rows:
                raise WrongSetting(f"BYBIT_API_KEY: may move funds: {', '.join(fetched.rows)}")
            return []
        self.counters["fetch_errors"] += bool(fetched.error)
        return self._round(now_ns) if self._reconcile.done(fetched) else []

    def _round(self, now_ns: int) -> list[msg.Message]:
        """The exchange's whole truth, against the ledger: take in what is new, then compare."""
        snapshot, first = self._reconcile.snapshot, int(self._store.noted("born_ms")) < 0
        messages = self._first_look(now_ns) if first else self._adopt_orders(now_ns)
        known = self._ledger.facts()
        for execution in reversed(snapshot["executions"]):
            messages += self._executed(execution, now_ns)
        if first:
            messages += self._adopt_holdings()
        for update in snapshot["orders"]:
            messages += self._keep(self._ledger.update(update))
        if self._ledger.facts() != known and self._rounds:
            self._suspect_ns = now_ns
        self._rounds += 1
        for wallet in snapshot["wallet"]:
            messages += self._wallet(wallet, now_ns)
        open_ids = {n for o in snapshot["orders"] for n in (o.order_link_id, o.order_id) if n}
        heard_of = [o for name, o in self._ledger.orders.items() if name not in self._granted_ns]
        messages += self._reconcile.unconfirmed(heard_of, open_ids)
        holdings = snapshot["positions"]
        differing = self._reconcile.compare(self._ledger.held(), holdings, now_ns)
        if self._reconcile.agreed:  # else an execution may be missing in what was read
            self._note("since_ms", self._until_ms)
        self._ledger.marks = {h.symbol: h.mark_price for h in holdings}
        self._marked_ns = now_ns
        foreign = {o.symbol for o in snapshot["orders"] if not _is_ours(o)}
        self._orphans = self._orphaned(snapshot["orders"])
        self._ledger.blocked = {**dict.fromkeys(foreign, "foreign_order"), **differing}
        last = {m.symbol: m for m in messages if isinstance(m, msg.Position)}  # no half-taken round
        others = (m for m in messages if not isinstance(m, msg.Position))
        return [*last.values(), *others, self._mode(now_ns)]

    def _one_order(self, fetched: msg.Fetched, now_ns: int) -> list[msg.Message]:
        """The exchange's word on one order; its executions come with the next round, or before."""
        name = fetched.ask.order_link_id
        known = self._ledger.facts()
        messages = [m for row in fetched.rows for m in self._keep(self._ledger.update(row))]
        if self._ledger.facts() != known and self._rounds > 1:
            self._suspect_ns = now_ns
        granted_ns = self._granted_ns.get(name, 0)
        lot = self._ledger.lots.get(name)
        shown = lot is not None and bool(not granted_ns or lot.bought)
        if self._reconcile.never_arrived(fetched, granted_ns, now_ns, shown):
            status = "NotAccepted" if granted_ns else "Cancelled"
            return self._keep(self._ledger.gone(name, status, NOT_THERE))
        return messages

    def _adopt_orders(self, now_ns: int) -> list[msg.Message]:
        """Entries with our ids that this ledger never heard of, or had given up for lost: take them
        in, and manage them."""
        entries = _entries(self._reconcile.snapshot["orders"])
        return self._adopt({name for name in entries if self._lost(name)}, now_ns)

    def _lost(self, entry: str, traded: bool = False) -> bool:
        """Whether the ledger must have a lot of an entry and has none: it was never heard of, or
        taken for gone before anything of it was bought; or it traded, whatever was said of it."""
        if entry in self._ledger.lots:
            return False
        order = self._store.order(entry)
        if order is None:
            return True
        return not order.cum_exec_qty and (traded or order.reject_reason == NOT_THERE)

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
            why = "orders of ours at the exchange, but no ledger of them"
            known = f"{self._operator[1]}; " if self._operator[0] == msg.REDUCE_ONLY else ""
            self._operator = (msg.REDUCE_ONLY, known + why)
            self._mode(now_ns, "keeper")
        executions = () if ours else snapshot["executions"]
        self._ledger.born_ms = max((e.exec_time_ms for e in executions), default=0)
        self._note("born_ms", self._ledger.born_ms)
        return self._adopt(ours - self._ledger.lots.keys(), now_ns)  # the stream may be faster

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

    def _orphaned(self, orders: Iterable[msg.OrderUpdate]) -> list[msg.OrderRequest]:
        """Cancels of what the router does not know of."""
        return [
            _cancel(o, o.order_link_id or msg.stop_id(o.parent_order_link_id))
            for o in orders
            if _is_ours(o) and self._is_orphan(o)
        ]

    def _is_orphan(self, said: msg.OrderUpdate) -> bool:
        """Whether an order of ours was taken for gone, or is the stop loss of a lot that is."""
        if not said.order_link_id:
            return said.parent_order_link_id not in self._ledger.lots
        order = self._store.order(said.order_link_id)
        return order is not None and order.reject_reason == NOT_THERE

    def _router_silent(self, now_ns: int) -> bool:
        return now_ns - self._router_ns > msg.GONE_NS

    def _sweep(self, now_ns: int) -> list[msg.OrderRequest]:
        """Cancel what nobody minds: orphans, and while the router is silent our entries, by id,
        until they are gone."""
        if now_ns - self._swept_ns < SWEEP_NS:
            return []
        silent = self._router_silent(now_ns)
        entries = [
            _cancel(order, order.order_link_id)
            for order in self._ledger.orders.values()
            if silent
            and order.kind == msg.ENTRY
            and now_ns - self._cancelled_ns.get(order.order_link_id, 0) >= RECANCEL_NS
        ]
        share = max(1, int((ALONE if silent else BESIDE) * self._rate_limit))
        found = [r._replace(decided_ns=now_ns) for r in (*self._orphans, *entries)][:share]
        self._orphans = self._orphans[share:]
        cancelled = {request.order_link_id: now_ns for request in found}
        self._cancelled_ns = self._cancelled_ns | cancelled if silent else {}
        self._swept_ns = now_ns if found else self._swept_ns
        return found

    # The mode: the worst of what the operator wants and what the account allows.

    def _mode_now(self, now_ns: int) -> tuple[str, str]:
        triggers = [self._operator]
        if lost := self._losses.trigger():
            triggers.append(lost)
        if self._disk:
            triggers.append((msg.REDUCE_ONLY, self._disk))
        if self._router_silent(now_ns):
            triggers.append((msg.NO_ENTRY, "the router is silent"))
        if now_ns - self._market_ns > STALE_NS:
            triggers.append((msg.NO_ENTRY, "market data lost"))
        if self._clock_ns and now_ns - self._clock_ns < CLOCK_NS:
            triggers.append((msg.NO_ENTRY, "clock doubtful"))
        if not self._linked:
            triggers.append((msg.NO_ENTRY, "private stream lost"))
        elif not self._reconcile.trusted:
            triggers.append((msg.NO_ENTRY, self._reconcile.failed))
        mode, reason = max(triggers, key=lambda trigger: msg.MODES.index(trigger[0]))
        return mode, "" if mode == msg.RUN else reason

    def _mode(self, now_ns: int, who: str = "") -> msg.Mode:
        """The Mode message; a change is written first."""
        mode, reason = self._mode_now(now_ns)
        said = self._ledger.mode(mode, reason, len(self._reconcile.differences))
        said = said._replace(router_silent=self._router_silent(now_ns))
        if (mode, reason) != self._said_mode or who:
            self._said_mode = (mode, reason)
            self._put(self._store.mode, said, self._operator, who, self._wall_ms())
        return said


def _entries(rows: Iterable[Any]) -> set[str]:
    """The entries that rows with our ids belong to, exits included."""
    return {found[0] for row in rows if (found := msg.parse_id(row.order_link_id))}


def _is_ours(order: msg.OrderUpdate) -> bool:
    """By its own id, or as the stop loss of one."""
    return bool(msg.parse_id(order.order_link_id) or msg.parse_id(order.parent_order_link_id))


def _cancel(order: msg.Order | msg.OrderUpdate, name: str) -> msg.OrderRequest:
    """The keeper's own cancel: by the id that the exchange gave, which it knows by now."""
    head = (name, 0, "cancel", order.symbol, order.side, order.price, order.qty)
    return msg.OrderRequest(*head, "", False, 0, 0, order_id=order.order_id)


def _touch(order: msg.Order, outcome: str) -> msg.Touch:
    head = (order.order_link_id, order.symbol, order.side, order.bar_start_ms)
    return msg.Touch(*head, outcome)


def _outcome(order: msg.Order) -> str:
    """What came of an entry that has ended, in one word."""
    if order.cum_exec_qty:
        return "filled"
    if order.reject_reason == "EC_PostOnlyWillTakeLiquidity":
        return "post_only"
    words = {"Refused": "refused", "NotAccepted": "not_accepted", "Rejected": "rejected"}
    return words.get(order.status, "cancelled")
