"""router: quotes and positions in, orders out. Owns order entry and nothing that must last."""

from collections import deque
from decimal import Decimal
from typing import Any, ClassVar

from services.router.budget import Budget
from services.router.orders import Rules, Step, Wanted, desired, steps
from shared import messages as msg
from shared.actor import Actor
from shared.instrument import decimal_of, entry_qty
from shared.settings import Settings, WrongSetting

ANSWER_NS = 3_000_000_000  # a command without an answer is unknown, the next may go
ECHO_NS = 2_000_000_000  # an accepted command the keeper does not confirm is looked at again
ACCOUNT_NS = 3_000_000_000  # older than this, the keeper's word is no ground for an entry
REPRICE_MS = 2_000  # market time between two price amends of one order
BACKOFF_NS = (1_000_000_000, 2_000_000_000, 5_000_000_000, 15_000_000_000, 60_000_000_000)
LEVERAGE_NS = 60_000_000_000  # before a symbol whose leverage was refused is tried again
HEDGED = (110024, 110028)  # positions or orders in hedge mode: one-way mode is impossible
RETRY_NS = 50_000_000  # how often commands that the budget held back are looked at


class Track:
    """What is under way for one order: a command until `deadline_ns`, a pause until `pause_ns`."""

    __slots__ = ("deadline_ns", "failures", "pause_ns", "repriced_ms", "request")

    def __init__(self) -> None:
        self.request: Any = None  # OrderRequest or Ask
        self.deadline_ns = self.pause_ns = self.failures = self.repriced_ms = 0


class Router(Actor):
    """The only one who creates and amends orders."""

    service = "router"
    hears: ClassVar[dict[str, tuple[str, ...]]] = {
        "account": ("position.", "mode."),
        "quotes": ("quote.",),
        "market": ("kline.", "instrument."),
    }
    says = "commands"
    asks = ("ledger", "instruments")
    links: ClassVar[tuple[str, ...]] = ("trade",)

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._rules = settings.part(Rules)
        self._ttl_ns = settings.QUOTE_TTL_MS * 1_000_000
        self._budget = Budget(settings.RATE_LIMIT)
        self._instruments: dict[str, msg.Instrument] = {}
        self._positions: dict[str, msg.Position] = {}
        self._quotes: dict[str, tuple[msg.Quote, int]] = {}
        self._last: dict[str, tuple[Decimal, int]] = {}
        self._mode: msg.Mode | None = None
        self._heard_ns = self._started_ns = self._retried_ns = self._command = 0
        self._tracks: dict[str, Track] = {}
        self._refused: dict[tuple[str, str], tuple[int, str]] = {}
        self._waiting: dict[str, bool] = {}  # symbol: an exit of it was held back
        self._granted_asks: deque[msg.Ask] = deque()
        self._leverage: dict[str, bool] = {}
        self._leverage_ns: dict[str, int] = {}
        self._account_ok = self._linked = False

    def start(self, now_ns: int) -> list[msg.Message]:
        """Nothing is decided before the first full set from the ledger."""
        self._started_ns, self._command = now_ns, now_ns // 1_000_000
        return self._ask_again()

    def handle(self, message: Any, now_ns: int) -> list[msg.Message]:
        """Take it in, then converge the symbol it is about."""
        if isinstance(message, msg.Kline):
            if message.ts_ms >= self._last.get(message.symbol, (None, 0))[1]:
                self._last[message.symbol] = (decimal_of(message.close), message.ts_ms)
            return self._converge(message.symbol, now_ns) if self._active(message.symbol) else []
        if isinstance(message, msg.Quote):
            heard = self._quotes.get(message.symbol)
            if heard and heard[0].ts_ms > message.ts_ms:
                return []
            self._quotes[message.symbol] = (message, now_ns)
            if message.symbol not in self._last and message.last:
                self._last[message.symbol] = (decimal_of(message.last), message.ts_ms)
            return self._converge(message.symbol, now_ns) if self._active(message.symbol) else []
        if isinstance(message, msg.Position):
            return self._converge(message.symbol, now_ns) if self._newer(message) else []
        if isinstance(message, msg.Mode):
            return self._mode_said(message, now_ns)
        if isinstance(message, msg.Grant):
            return self._granted(message, now_ns)
        if isinstance(message, msg.OrderRequest):
            return self._answered(message, now_ns)
        if isinstance(message, msg.Fetched):
            return self._fetched(message, now_ns)
        return self._learned(message, now_ns)

    def tick(self, now_ns: int) -> list[msg.Message]:
        """Deadlines, quotes that ran out, leverage in the background."""
        messages = [*self._overdue(now_ns), *self._ask_again()]
        for symbol in sorted({*self._positions, *self._waiting}):
            messages += self._converge(symbol, now_ns)
        self.ready = self._mode is not None and self._account_ok and self._linked
        self.note = self._mode.mode if self._mode else "no ledger yet"
        self.ages_ms["account"] = (now_ns - self._heard_ns) // 1_000_000 if self._heard_ns else -1
        return messages + self._set_leverage(now_ns)

    # Taking in.

    def _learned(self, message: Any, now_ns: int) -> list[msg.Message]:
        if isinstance(message, msg.FullSet):
            self._mode = self._mode or message.mode
            for position in message.positions:
                self._newer(position)
            return self._mode_said(message.mode, now_ns)
        if isinstance(message, msg.Instruments):
            self._instruments = {row.symbol: row for row in message.instruments}
        elif isinstance(message, msg.Instrument):
            self._instruments[message.symbol] = message
        elif isinstance(message, msg.Link):
            self._linked = message.up
        elif isinstance(message, msg.NoAnswer) and isinstance(message.request, msg.Ask):
            self._tracks.pop(message.request.order_link_id, None)
        return []

    def _newer(self, position: msg.Position) -> bool:
        """Take in a Position; False, and nothing taken, if it is old or of another ledger."""
        known = self._positions.get(position.symbol)
        if self._mode is None or position.version[0] != self._mode.version[0]:
            return False
        if known and _older(position.version, known.version):
            return False
        self._positions[position.symbol] = position
        self._settle(position)
        return True

    def _mode_said(self, mode: msg.Mode, now_ns: int) -> list[msg.Message]:
        """What the Mode does not list is empty as of its version. Another ledger starts over."""
        if self._mode and mode.version[0] != self._mode.version[0]:
            self._mode, self._positions, self._tracks = None, {}, {}
            self._granted_asks.clear()
            return [msg.LedgerAsk()]
        if self._mode is None or _older(mode.version, self._mode.version):
            return []
        changed, self._mode, self._heard_ns = mode.mode != self._mode.mode, mode, now_ns
        for symbol in self._positions.keys() - set(mode.symbols):
            if not _older(mode.version, self._positions[symbol].version):
                self._settle(msg.Position(symbol, mode.version, (), ()))
                del self._positions[symbol]
        symbols = sorted({*self._positions, *self._quotes}) if changed else ()
        return [m for symbol in symbols for m in self._converge(symbol, now_ns)]

    def _fetched(self, fetched: msg.Fetched, now_ns: int) -> list[msg.Message]:
        """One-way mode, or leverage 1 of a symbol."""
        if fetched.ask.what == "leverage" and fetched.error:
            self.counters["leverage_errors"] += 1
            self._leverage_ns[fetched.ask.symbol] = now_ns + LEVERAGE_NS
            self._leverage.pop(fetched.ask.symbol, None)
        elif fetched.ask.what == "leverage":
            self._leverage[fetched.ask.symbol] = True
        elif fetched.ret_code in HEDGED:
            raise WrongSetting(f"account: one-way mode is refused: {fetched.error}")
        else:
            self._account_ok = not fetched.error
        return []

    def _granted(self, grant: msg.Grant, now_ns: int) -> list[msg.Message]:
        """Granted: the intent is on disk, the order may leave. Refused: not again in this bar."""
        track = self._tracks.get(grant.order_link_id)
        if track is None or not isinstance(track.request, msg.Ask):
            return []
        ask = track.request
        if ask in self._granted_asks:
            return []  # said twice
        if not grant.granted:
            track.request = None
            self.counters["grants_refused"] += 1
            self._refused[ask.symbol, ask.side] = (ask.bar_start_ms, self._mode_name())
            return []
        self._granted_asks.append(ask)
        return self._send_granted(now_ns)

    def _send_granted(self, now_ns: int) -> list[msg.Message]:
        """Creates of granted entries, as many as the budget has room for. What is not wanted any
        more, or has waited so long that the keeper may settle it as never sent, is refused."""
        sent: list[msg.Message] = []
        while self._granted_asks:
            ask = self._granted_asks[0]
            wanted = self._still_wanted(ask, now_ns)
            if wanted and not self._budget.take("create", now_ns, entry=True):
                break
            self._granted_asks.popleft()
            terms = (ask.symbol, ask.side, ask.price, ask.qty, "PostOnly", False, ask.recv_ns)
            track = self._tracks.setdefault(ask.order_link_id, Track())
            request = self._command_of(track, ask.order_link_id, "create", *terms, now_ns)
            if not wanted:
                track.request = None
                request = request._replace(outcome="refused", reason="no longer wanted: not sent")
            sent.append(request)
        return sent

    def _still_wanted(self, ask: msg.Ask, now_ns: int) -> bool:
        quote, heard_ns = self._quotes.get(ask.symbol, (None, 0))
        fresh = now_ns - ask.decided_ns <= msg.SEND_NS and now_ns - heard_ns <= self._ttl_ns
        same = quote is not None and (quote.side, quote.zone != "NONE") == (ask.side, True)
        return fresh and same and self._mode_name() == msg.RUN

    def _answered(self, request: msg.OrderRequest, now_ns: int) -> list[msg.Message]:
        """What came of a command. The exchange's truth comes through Position all the same."""
        self._budget.learn(request.action, request.rate_limit)
        self.counters[request.outcome] += 1
        track = self._tracks.get(request.order_link_id)
        if track is None or track.request is None or track.request.command != request.command:
            return [request]  # its effect was seen already, or it was called unknown
        if request.outcome == "accepted":
            track.request, track.deadline_ns, track.failures = request, now_ns + ECHO_NS, 0
        else:
            track.request = None
            track.pause_ns = now_ns + BACKOFF_NS[min(track.failures, len(BACKOFF_NS) - 1)]
            track.failures += 1
        return [request]

    def _settle(self, position: msg.Position) -> None:
        """Forget the commands whose effect this Position shows."""
        orders = {order.order_link_id: order for order in position.orders}
        for name, track in self._tracks.items():
            request = track.request
            if request is None or request.symbol != position.symbol or isinstance(request, msg.Ask):
                continue
            order = orders.get(name)
            if request.action == "create":
                done = order is not None and order.status != "Granted"
                done = done or any(
                    name == msg.exit_id(lot.entry_id, lot.exits - 1) for lot in position.lots
                )
            elif request.action == "amend" and order:
                done = (order.price, order.qty) == (request.price, request.qty)
            else:
                done = order is None
            if done:
                track.request = None

    # Deciding.

    def _active(self, symbol: str) -> bool:
        quote = self._quotes.get(symbol)
        return symbol in self._positions or (quote is not None and quote[0].zone != "NONE")

    def _mode_name(self) -> str:
        return self._mode.mode if self._mode else ""

    def _converge(self, symbol: str, now_ns: int) -> list[msg.Message]:
        """From what rests to what should rest, one symbol; and what the budget held back before."""
        messages = self._retry(now_ns)
        instrument = self._instruments.get(symbol)
        last, market_ms = self._last.get(symbol, (None, 0))
        if self._mode is None or (instrument is None and symbol not in self._positions):
            return messages
        position = self._positions.get(symbol) or msg.Position(symbol, self._mode.version, (), ())
        quote, heard_ns = self._quotes.get(symbol, (None, 0))
        if now_ns - heard_ns > self._ttl_ns:
            quote = None
        mode = self._mode.mode
        starting = quote is None and now_ns - self._started_ns < self._ttl_ns
        starting = starting and mode in (msg.RUN, msg.NO_ENTRY)
        if mode == msg.RUN and now_ns - self._heard_ns > ACCOUNT_NS:
            mode = msg.NO_ENTRY
        if instrument is None:  # no grid, no order: only take away what nobody minds
            wanted = [Wanted.of(order) for order in position.orders if order.kind == msg.EXIT]
        else:
            wanted = desired(position, quote, mode, instrument, last, self._rules)
        self._waiting.pop(symbol, None)
        for step in steps(wanted, position, self._rules):
            if starting and step.action == "cancel" and step.order.kind == msg.ENTRY:
                continue  # its quote may come: leave alone what rests, for one TTL
            messages += self._take(step, symbol, quote, market_ms, now_ns)
        return messages

    def _take(
        self, step: Step, symbol: str, quote: msg.Quote | None, market_ms: int, now_ns: int
    ) -> list[msg.Message]:
        """One step, unless it is on its way, too soon, pausing, or over the budget."""
        order, entry = step.order, step.order.kind == msg.ENTRY
        spends = entry and step.action != "cancel"  # the share of the budget that entries have
        track = self._tracks.setdefault(order.order_link_id, Track())
        if track.request or now_ns < track.pause_ns:
            return []
        if step.repricing and market_ms - track.repriced_ms < REPRICE_MS:
            return []
        asking = quote if entry and step.action == "create" else None
        if asking and not self._may_ask(asking):
            return []
        if not self._budget.take("ask" if asking else step.action, now_ns, spends):
            self._waiting[symbol] = self._waiting.get(symbol, False) or not spends
            self.counters["held_back"] += 1
            return []
        if step.repricing:
            track.repriced_ms = market_ms
        if asking:
            terms = (symbol, order.side, asking.bar_start_ms, order.price, order.qty)
            profit = decimal_of(asking.take_profit_pct)
            ask = msg.Ask(order.order_link_id, *terms, profit, asking.recv_ns, now_ns)
            track.request, track.deadline_ns = ask, now_ns + ANSWER_NS
            return [ask]
        rest = (symbol, order.side, order.price, order.qty, "GTC", not entry, 0, now_ns)
        return [self._command_of(track, order.order_link_id, step.action, *rest)]

    def _may_ask(self, quote: msg.Quote) -> bool:
        """Leverage is set, and the keeper has not refused this bar in this mode."""
        refused = self._refused.get((quote.symbol, quote.side))
        ready = self._account_ok and self._leverage.get(quote.symbol, False)
        return ready and refused != (quote.bar_start_ms, self._mode_name())

    def _command_of(self, track: Track, name: str, action: str, *terms: Any) -> msg.OrderRequest:
        """The next command of one order: it is under way from here on."""
        self._command += 1
        request = msg.OrderRequest(name, self._command, action, *terms)
        track.request, track.deadline_ns = request, request.decided_ns + ANSWER_NS
        return request

    # Time.

    def _retry(self, now_ns: int) -> list[msg.Message]:
        """What the budget held back: exits first, then the nearest quotes."""
        if not (self._waiting or self._granted_asks) or now_ns - self._retried_ns < RETRY_NS:
            return []
        self._retried_ns = now_ns
        waiting, self._waiting = sorted(self._waiting, key=self._urgency), {}
        said = [m for symbol in waiting for m in self._converge(symbol, now_ns)]
        return said + self._send_granted(now_ns)

    def _urgency(self, symbol: str) -> tuple[bool, float, str]:
        quote = self._quotes.get(symbol)
        return (not self._waiting[symbol], abs(quote[0].distance_pct) if quote else 0.0, symbol)

    def _overdue(self, now_ns: int) -> list[msg.Message]:
        """Commands past their deadline: unknown if unanswered. Forget orders that are no more."""
        messages: list[msg.Message] = []
        for track in self._tracks.values():
            if track.request and track.deadline_ns <= now_ns:
                if isinstance(track.request, msg.OrderRequest) and not track.request.outcome:
                    self.counters["unknown"] += 1
                    messages.append(track.request._replace(outcome="unknown", reason="no answer"))
                track.request = None
        live = {order.order_link_id for p in self._positions.values() for order in p.orders}
        live |= {msg.exit_id(x.entry_id, x.exits) for p in self._positions.values() for x in p.lots}
        self._tracks = {k: track for k, track in self._tracks.items() if track.request or k in live}
        return messages

    def _ask_again(self) -> list[msg.Message]:
        """What must be known before anything is decided, until it is."""
        missing = ((self._mode, msg.LedgerAsk()), (self._instruments, msg.InstrumentsAsk()))
        asks: list[msg.Message] = [ask for known, ask in missing if not known]
        return asks if self._account_ok else [*asks, msg.Fetch("account")]

    def _set_leverage(self, now_ns: int) -> list[msg.Message]:
        """Leverage 1 for every symbol that can be traded, the nearest quotes first."""
        quotes = [quote for quote, _ in self._quotes.values() if quote.symbol not in self._leverage]
        messages: list[msg.Message] = []
        for quote in sorted(quotes, key=lambda q: (q.zone == "NONE", abs(q.distance_pct))):
            instrument, last = self._instruments.get(quote.symbol), self._last.get(quote.symbol)
            paused = now_ns < self._leverage_ns.get(quote.symbol, 0)
            if instrument is None or last is None or paused:
                continue
            _, too_small = entry_qty(self._rules.size_usdt, last[0], instrument)
            if too_small:
                self._leverage[quote.symbol] = False
                messages.append(self._not_traded(quote.symbol, too_small, now_ns))
            elif self._budget.take("leverage", now_ns, entry=True):
                self._leverage[quote.symbol] = False
                messages.append(msg.Fetch("leverage", quote.symbol))
        return messages

    def _not_traded(self, symbol: str, reason: str, now_ns: int) -> msg.OrderRequest:
        """Said once: a symbol whose smallest order is larger than SIZE_USDT."""
        zero, why = Decimal(0), f"SIZE_USDT {self._rules.size_usdt} is below its {reason}"
        terms = (f"dm-{symbol}", 0, "create", symbol, "", zero, zero, "", False, 0, now_ns)
        return msg.OrderRequest(*terms, outcome="refused", reason=why)


def _older(version: msg.Version, than: msg.Version) -> bool:
    """Within one ledger the larger row wins; another ledger starts over."""
    return version[0] == than[0] and version[1] < than[1]
