"""router: quotes and positions in, orders out. Owns order entry and nothing that must last."""

import math
from decimal import Decimal
from typing import Any, ClassVar, NamedTuple

from services.router.budget import Budget
from services.router.orders import Rules, Step, Wanted, desired, entry_gate, steps, stop_price
from services.router.touches import Touches
from shared import messages as msg
from shared.actor import Actor
from shared.instrument import decimal_of, entry_qty
from shared.messages import STALE_NS, UNIVERSE_NS
from shared.settings import Settings, WrongSetting

ECHO_NS = 2_000_000_000  # an accepted command the keeper does not confirm is looked at again
ACCOUNT_NS = 3_000_000_000  # older than this, the keeper's word is no ground for an entry
REPRICE_MS = 2_000  # market time between two price amends of one order
BACKOFF_NS = (1_000_000_000, 2_000_000_000, 5_000_000_000, 15_000_000_000, 60_000_000_000)
LEVERAGE_NS = 60_000_000_000  # before a symbol whose leverage was refused is tried again
TOO_SMALL_NS = 3_600_000_000_000  # before a symbol too large for SIZE_USDT is looked at again
SYMBOL_NS = 60_000_000_000  # before a symbol whose entry was refused gets another one
NO_MONEY = (110004, 110007, 110012, 110044, 110045)  # then no symbol gets one for as long
TOO_OFTEN, SHUT_NS = (10006, 10429), 1_000_000_000  # the bucket is empty: leave it for a second
HEDGED = (110024, 110028)  # positions or orders in hedge mode: one-way mode is impossible
YIELD_NS = 2_000_000_000  # since the keeper may last have cancelled our entries itself
RETRY_NS = 50_000_000  # how often commands that the budget held back are looked at
PRICE_NS = 10_000_000_000  # a price unheard for so long is no price to sell everything at
RESTARTING = 10019  # says a trade socket that serves no orders any more ...
UNHEARD = 3  # ... or it says nothing, command after command
REOPEN_NS = 10_000_000_000  # between two new connections: Bybit counts them


class Last(NamedTuple):
    """The last price of a symbol: in market time, and when it was heard."""

    price: Decimal
    ts_ms: int
    heard_ns: int


class Track:
    """What is under way for one order: a command until `deadline_ns`, a pause until `pause_ns`."""

    __slots__ = ("batch", "deadline_ns", "failed", "failures", "pause_ns", "repriced_ms", "request")

    def __init__(self) -> None:
        self.request: Any = None  # OrderRequest or Ask
        self.failed = ""  # the action that did, `failures` times in a row
        self.batch = False  # it goes by the twin for batches, which has a budget of its own
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
        self._one_clock = "quotes" not in settings.wires["tcp"]  # workers may be elsewhere
        self._budget = Budget(settings.RATE_LIMIT)
        self._instruments: dict[str, msg.Instrument] = {}
        self._positions: dict[str, msg.Position] = {}
        self._quotes: dict[str, tuple[msg.Quote, int]] = {}
        self._last: dict[str, Last] = {}
        self._mode: msg.Mode | None = None
        self._heard_ns = self._started_ns = self._retried_ns = self._command = 0
        self._universe_ns = self._linked_ns = self._reopened_ns = self._unheard = 0
        self._tracks: dict[str, Track] = {}
        self._refused: dict[tuple[str, str], tuple[int, str, str]] = {}
        self._waiting: dict[str, bool] = {}  # symbol: an exit of it was held back
        self._touches = Touches(settings.BAND_PROXIMITY_PCT, settings.BAND_OVERSHOOT_PCT)
        self._paused_ns: dict[str, int] = {}  # symbol, or "" for all: no entries until then
        self._leverage_ns: dict[str, float] = {}  # when it is set (again); 0 once it is 1
        self._account_ok = self._linked = False

    def start(self, now_ns: int) -> list[msg.Message]:
        """Nothing is decided before the first full set from the ledger."""
        self._started_ns, self._command = now_ns, now_ns // 1_000_000
        return self._ask_again(now_ns)

    def handle(self, message: Any, now_ns: int) -> list[msg.Message]:
        """Take it in, then converge the symbol it is about."""
        if isinstance(message, msg.Kline):
            known = self._last.get(message.symbol)
            if known is None or message.ts_ms >= known.ts_ms:
                price = decimal_of(message.close)
                self._last[message.symbol] = Last(price, message.ts_ms, now_ns)
            return self._converge(message.symbol, now_ns) if self._active(message.symbol) else []
        if isinstance(message, msg.Quote):
            return self._quoted(message, now_ns)
        if isinstance(message, msg.Position):
            return self._converge(message.symbol, now_ns) if self._newer(message) else []
        if isinstance(message, msg.Mode):
            return self._mode_said(message, now_ns)
        if isinstance(message, msg.Grant):
            return self._granted(message, now_ns)
        if isinstance(message, msg.OrderRequest):
            return [*self._answered(message, now_ns), *self._restarting(message, now_ns)]
        if isinstance(message, msg.Fetched):
            return self._fetched(message, now_ns)
        return self._learned(message, now_ns)

    def tick(self, now_ns: int) -> list[msg.Message]:
        """Deadlines, quotes that ran out, leverage in the background."""
        messages = [*self._overdue(now_ns), *self._ask_again(now_ns), *self._touches.over(now_ns)]
        for symbol in sorted({*self._positions, *self._waiting}):
            messages += self._converge(symbol, now_ns)
        self.ready = self._mode is not None and self._account_ok and self._linked
        self.note = self._mode.mode if self._mode else "no ledger yet"
        for bucket, percent in self._budget.load_pct(now_ns).items():
            self.counters[f"budget_{bucket.replace('-', '_')}_pct"] = percent
        self.ages_ms["account"] = (now_ns - self._heard_ns) // 1_000_000 if self._heard_ns else -1
        return messages + self._set_leverage(now_ns)

    # Taking in.

    def _quoted(self, quote: msg.Quote, now_ns: int) -> list[msg.Message]:
        heard = self._quotes.get(quote.symbol)
        if not _sane(quote):
            self.counters["absurd_quotes"] += 1
            return []
        if heard and heard[0].ts_ms > quote.ts_ms:
            return []
        said_ns = min(now_ns, quote.decided_ns) if self._one_clock else now_ns
        self._quotes[quote.symbol] = (quote, said_ns)
        touches = self._touches.quoted(quote, now_ns)
        if quote.symbol not in self._last and quote.last:
            self._last[quote.symbol] = Last(decimal_of(quote.last), quote.ts_ms, now_ns)
        active = self._active(quote.symbol)
        return [*touches, *self._converge(quote.symbol, now_ns)] if active else touches

    def _learned(self, message: Any, now_ns: int) -> list[msg.Message]:
        if isinstance(message, msg.FullSet):
            self._mode = self._mode or message.mode
            for position in message.positions:
                self._newer(position)
            return self._mode_said(message.mode, now_ns)
        if isinstance(message, msg.Instruments) and message.instruments:
            self._instruments = {row.symbol: row for row in message.instruments}
        elif isinstance(message, msg.Instrument):
            self._instruments[message.symbol] = message
        elif isinstance(message, msg.Link):
            self._linked, self._linked_ns, self._unheard = message.up, now_ns, 0
        elif isinstance(message, msg.NoAnswer) and isinstance(message.request, msg.Ask):
            self._tracks.pop(message.request.order_link_id, None)
        return []

    def _newer(self, position: msg.Position) -> bool:
        """Take in a Position; False, and nothing taken, if it is old or of another ledger."""
        known = self._positions.get(position.symbol)
        if self._mode is None or position.version[0] != self._mode.version[0]:
            return False
        if _older(position.version, known.version if known else self._mode.version):
            return False
        self._positions[position.symbol] = position
        self._settle(position)
        return True

    def _mode_said(self, mode: msg.Mode, now_ns: int) -> list[msg.Message]:
        """What the Mode does not list is empty as of its version. Another ledger starts over."""
        if self._mode and mode.version[0] != self._mode.version[0]:
            self._mode, self._positions = None, {}
            return [msg.LedgerAsk()]
        if self._mode is None or _older(mode.version, self._mode.version):
            return []
        self._yield(mode, now_ns)
        changed, self._mode, self._heard_ns = mode.mode != self._mode.mode, mode, now_ns
        for symbol in self._positions.keys() - set(mode.symbols):
            if not _older(mode.version, self._positions[symbol].version):
                self._settle(msg.Position(symbol, mode.version, (), ()))
                del self._positions[symbol]
        for track in self._tracks.values() if changed else ():
            track.pause_ns = track.failures = 0  # what is to be done now is another matter
        symbols = {*self._positions, *self._quotes} if changed else set()
        nearest = sorted(symbols, key=self._distance)
        return [m for symbol in nearest for m in self._converge(symbol, now_ns)]

    def _yield(self, mode: msg.Mode | None, now_ns: int) -> None:
        """A keeper that does not hear us cancels our entries itself: the bucket is then its own.
        Whoever has just woken cannot know until the keeper speaks."""
        unheard = self._heard_ns and now_ns - self._heard_ns > ACCOUNT_NS
        if unheard or (mode is not None and mode.router_silent):
            self._budget.shut("cancel", now_ns + YIELD_NS)

    def _fetched(self, fetched: msg.Fetched, now_ns: int) -> list[msg.Message]:
        """One-way mode, or leverage 1 of a symbol."""
        if fetched.ask.what == "leverage":
            self._budget.answered("leverage", now_ns)
            self.counters["leverage_errors"] += bool(fetched.error)
            self._leverage_ns[fetched.ask.symbol] = now_ns + LEVERAGE_NS if fetched.error else 0
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
        ask, late = track.request, now_ns - track.request.decided_ns > msg.SEND_NS
        if not grant.granted:
            track.request = None
            self.counters["grants_refused"] += 1
            self._budget.give_back(f"create{'-batch' * track.batch}")
            if grant.reason == "halted":  # its mode is news to us: ask again when we know it
                track.pause_ns = now_ns + BACKOFF_NS[0]
            else:
                refused = (ask.bar_start_ms, self._mode_name(), grant.reason)
                self._refused[ask.symbol, ask.side] = refused
            self._touches.because(ask.symbol, ask.order_link_id, grant.reason)
            return []
        self._touches.because(ask.symbol, ask.order_link_id, "order")
        terms = (ask.symbol, ask.side, ask.price, ask.qty, "PostOnly", False, ask.recv_ns)
        request = self._command_of(track, ask.order_link_id, "create", *terms, now_ns)
        if late or self._mode_name() != msg.RUN or not self._still_wanted(ask, now_ns):
            track.request = None
            self._budget.give_back(_bucket(request))
            request = request._replace(outcome="refused", reason="no longer wanted: not sent")
        return [request]

    def _still_wanted(self, ask: msg.Ask, now_ns: int) -> bool:
        quote, heard_ns = self._quotes.get(ask.symbol, (None, 0))
        same = quote is not None and (quote.side, quote.zone != msg.NONE) == (ask.side, True)
        return same and now_ns - heard_ns <= self._ttl_ns

    def _answered(self, request: msg.OrderRequest, now_ns: int) -> list[msg.Message]:
        """What came of a command. The exchange's truth comes through Position all the same."""
        self._budget.learn(_bucket(request), request.rate_limit)
        self._budget.answered(_bucket(request), now_ns)
        self.counters[request.outcome] += 1
        if request.outcome == "refused":
            self._back_off(request, now_ns)
        track = self._tracks.get(request.order_link_id)
        sent = track and getattr(track.request, "command", None)  # an Ask has none
        if track is None or sent != request.command:
            return [request]  # its effect was seen already, or it was called unknown
        if request.outcome == "accepted":
            track.request, track.deadline_ns, track.failures = request, now_ns + ECHO_NS, 0
        else:
            track.request = None
            track.failures = track.failures if request.action == track.failed else 0
            track.pause_ns = now_ns + BACKOFF_NS[min(track.failures, len(BACKOFF_NS) - 1)]
            track.failed, track.failures = request.action, track.failures + 1
        return [request]

    def _restarting(self, request: msg.OrderRequest, now_ns: int) -> list[msg.Message]:
        """Whatever it is, an answer; this one says that only a new connection serves orders."""
        self._unheard = 0 if request.ret_code >= 0 else self._unheard
        is_over = request.ret_code == RESTARTING
        return self._reopened(f"{RESTARTING} {request.reason}", now_ns) if is_over else []

    def _reopened(self, why: str, now_ns: int) -> list[msg.Message]:
        """A trade socket that serves no orders is opened anew; meanwhile they go by REST."""
        if now_ns - self._reopened_ns < REOPEN_NS:
            return []
        self._reopened_ns, self._unheard = now_ns, 0
        return [msg.Rebuild("trade", why)]

    def _back_off(self, request: msg.OrderRequest, now_ns: int) -> None:
        """After a refusal: a bucket, an entry's symbol, or every entry has to wait."""
        if request.ret_code in TOO_OFTEN:
            self._budget.shut(_bucket(request), now_ns + SHUT_NS)
        elif request.action == "create" and not request.reduce_only and request.ret_code:
            symbol = "" if request.ret_code in NO_MONEY else request.symbol
            self._paused_ns[symbol] = now_ns + SYMBOL_NS

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
        return symbol in self._positions or (quote is not None and quote[0].zone != msg.NONE)

    def _mode_name(self) -> str:
        return self._mode.mode if self._mode else ""

    def _converge(self, symbol: str, now_ns: int) -> list[msg.Message]:
        """From what rests to what should rest, one symbol; and what the budget held back before."""
        messages = self._retry(now_ns)
        instrument = self._instruments.get(symbol)
        if self._mode is None or (instrument is None and symbol not in self._positions):
            return messages
        position = self._positions.get(symbol) or msg.Position(symbol, self._mode.version, (), ())
        quote, heard_ns = self._quotes.get(symbol, (None, 0))
        if now_ns - heard_ns > self._ttl_ns:
            quote = None
        mode = self._mode.mode
        last, market_ms = self._price(position, mode, now_ns)
        starting = quote is None and now_ns - self._started_ns < self._ttl_ns
        starting = starting and mode in (msg.RUN, msg.NO_ENTRY)
        unheard_ns = now_ns - self._heard_ns
        if mode in (msg.RUN, msg.NO_ENTRY) and unheard_ns > ACCOUNT_NS:
            mode = msg.REDUCE_ONLY if unheard_ns > msg.GONE_NS else msg.NO_ENTRY
        if instrument is None:  # no grid, no order: only take away what nobody minds
            wanted = [Wanted.of(order) for order in position.orders if order.kind == msg.EXIT]
        else:
            wanted = desired(position, quote, mode, instrument, last, self._rules)
        if quote and quote.zone == msg.ARM:
            gate = entry_gate(position, quote, mode, instrument, last, self._rules)
            self._because(quote, gate)
        self._waiting.pop(symbol, None)
        for step in steps(wanted, position, self._rules):
            if starting and step.action == "cancel" and step.order.kind == msg.ENTRY:
                continue  # its quote may come: leave alone what rests, for one TTL
            messages += self._take(step, symbol, quote, market_ms, now_ns)
        return messages

    def _price(self, position: msg.Position, mode: str, now_ns: int) -> tuple[Decimal | None, int]:
        """The last price and its market time; or the exchange's mark, where no price is heard (any
        more): the symbol of a position may not be followed."""
        known = self._last.get(position.symbol)
        silent_ns = now_ns - known.heard_ns if known else now_ns
        if position.mark_price and silent_ns > (PRICE_NS if mode == msg.FLATTEN else STALE_NS):
            return position.mark_price, (known.ts_ms if known else 0) + silent_ns // 1_000_000
        return (known.price, known.ts_ms) if known else (None, 0)

    def _take(
        self, step: Step, symbol: str, quote: msg.Quote | None, market_ms: int, now_ns: int
    ) -> list[msg.Message]:
        """One step, unless it is on its way, too soon, pausing, or over the budget."""
        order, entry = step.order, step.order.kind == msg.ENTRY
        spends = entry and step.action != "cancel"  # the share of the budget that entries have
        track = self._tracks.setdefault(order.order_link_id, Track())
        waits = step.action != "cancel" or track.failed == "cancel"  # for what else went wrong
        if track.request or (waits and now_ns < track.pause_ns):
            return []
        if step.repricing and market_ms - track.repriced_ms < REPRICE_MS:
            return []
        asking = quote if entry and step.action == "create" else None
        if asking and (reason := self._no_ask(asking, now_ns)):
            self._because(asking, reason)
            return []
        if self._too_small(step, symbol):
            track.pause_ns = now_ns + BACKOFF_NS[-1]
            return [_unsent(order, symbol, msg.DUST, now_ns)]
        if step.action == "cancel":
            self._yield(self._mode, now_ns)
        bucket = self._budget.take(step.action, now_ns, spends)
        if not bucket:
            if asking:
                self._because(asking, "budget")
            self._waiting[symbol] = self._waiting.get(symbol, False) or not spends
            self.counters["held_back"] += 1
            return []
        if step.repricing:
            track.repriced_ms = market_ms
        track.batch = bucket != step.action
        if asking:
            return [_asked(track, order, asking, now_ns)]
        rest = (symbol, order.side, order.price, order.qty, "GTC", not entry, 0, now_ns)
        command = self._command_of(track, order.order_link_id, step.action, *rest)
        track.request = command = command._replace(order_id=order.order_id)
        return [command]

    def _because(self, quote: msg.Quote, reason: str) -> None:
        """Why this touch has led to no order so far."""
        name = msg.entry_id(quote.symbol, quote.side, quote.bar_start_ms)
        if reason:
            self._touches.because(quote.symbol, name, reason)

    def _no_ask(self, quote: msg.Quote, now_ns: int) -> str:
        """Why the keeper is not even asked: leverage, a refusal, or its own word on this bar."""
        if max(self._paused_ns.get(s, 0) for s in ("", quote.symbol)) > now_ns:
            return "refused"
        if not (self._account_ok and self._leverage_ns.get(quote.symbol) == 0):
            return "leverage"
        refused = self._refused.get((quote.symbol, quote.side), (0, "", ""))
        return refused[2] if refused[:2] == (quote.bar_start_ms, self._mode_name()) else ""

    def _too_small(self, step: Step, symbol: str) -> bool:
        """An exit that the exchange would refuse for its size."""
        instrument = self._instruments.get(symbol)
        exits = step.action == "create" and step.order.kind == msg.EXIT
        return exits and instrument is not None and step.order.qty < instrument.min_order_qty

    def _command_of(self, track: Track, name: str, action: str, *terms: Any) -> msg.OrderRequest:
        """The next command of one order: it is under way from here on."""
        self._command += 1
        request = msg.OrderRequest(name, self._command, action, *terms)
        request = request._replace(batch=track.batch)
        if not request.reduce_only and action != "cancel":
            instrument = self._instruments.get(request.symbol)
            stop = stop_price(request.side, request.price, instrument, self._rules)
            request = request._replace(stop_loss=stop)
        track.request, track.deadline_ns = request, request.decided_ns + msg.ANSWER_NS
        return request

    # Time.

    def _retry(self, now_ns: int) -> list[msg.Message]:
        """What the budget held back: exits first, then the nearest quotes."""
        if not self._waiting or now_ns - self._retried_ns < RETRY_NS:
            return []
        self._retried_ns = now_ns
        waiting, self._waiting = sorted(self._waiting, key=self._urgency), {}
        return [m for symbol in waiting for m in self._converge(symbol, now_ns)]

    def _urgency(self, symbol: str) -> tuple[bool, float, str]:
        return (not self._waiting[symbol], *self._distance(symbol))

    def _distance(self, symbol: str) -> tuple[float, str]:
        """The nearest quote comes first, ties by symbol."""
        quote = self._quotes.get(symbol)
        return (abs(quote[0].distance_pct) if quote else 0.0, symbol)

    def _overdue(self, now_ns: int) -> list[msg.Message]:
        """Commands past their deadline: unknown if unanswered. Forget orders that are no more."""
        messages: list[msg.Message] = []
        for track in self._tracks.values():
            if track.request and track.deadline_ns <= now_ns:
                if isinstance(track.request, msg.OrderRequest) and not track.request.outcome:
                    self.counters["unknown"] += 1
                    self._unheard += track.request.decided_ns > self._linked_ns
                    messages.append(track.request._replace(outcome="unknown", reason="no answer"))
                track.request = None
        if self._unheard >= UNHEARD:
            messages += self._reopened(f"{UNHEARD} commands without an answer", now_ns)
        live = {order.order_link_id for p in self._positions.values() for order in p.orders}
        live |= {msg.exit_id(x.entry_id, x.exits) for p in self._positions.values() for x in p.lots}
        self._tracks = {
            name: track
            for name, track in self._tracks.items()
            if track.request or name in live or now_ns < track.pause_ns
        }
        return messages

    def _ask_again(self, now_ns: int) -> list[msg.Message]:
        """What must be known before anything is decided, until it is; the instruments for ever."""
        asks: list[msg.Message] = [] if self._mode else [msg.LedgerAsk()]
        if not self._instruments or now_ns - self._universe_ns >= UNIVERSE_NS:
            self._universe_ns = now_ns
            asks.append(msg.InstrumentsAsk())
        return asks if self._account_ok else [*asks, msg.Fetch("account")]

    def _set_leverage(self, now_ns: int) -> list[msg.Message]:
        """Leverage 1 for every symbol that can be traded, the nearest quotes first."""
        messages: list[msg.Message] = []
        quotes = [quote for quote, _ in self._quotes.values()]
        due = [q for q in quotes if 0 < self._leverage_ns.get(q.symbol, 1) <= now_ns]
        for quote in sorted(due, key=lambda q: (q.zone == msg.NONE, abs(q.distance_pct))):
            instrument, last = self._instruments.get(quote.symbol), self._last.get(quote.symbol)
            if instrument is None or last is None:
                continue
            _, too_small = entry_qty(self._rules.size_usdt, last.price, instrument)
            if too_small:
                self._leverage_ns[quote.symbol] = now_ns + TOO_SMALL_NS
                messages.append(self._not_traded(quote.symbol, too_small, now_ns))
            elif self._budget.take("leverage", now_ns, entry=True):
                self._leverage_ns[quote.symbol] = math.inf  # under way
                messages.append(msg.Fetch("leverage", quote.symbol))
        return messages

    def _not_traded(self, symbol: str, reason: str, now_ns: int) -> msg.OrderRequest:
        """Said once an hour: a symbol whose smallest order is larger than SIZE_USDT."""
        zero, why = Decimal(0), f"SIZE_USDT {self._rules.size_usdt} is below its {reason}"
        terms = (f"dm-{symbol}", 0, "create", symbol, "", zero, zero, "", False, 0, now_ns)
        return msg.OrderRequest(*terms, outcome="refused", reason=why)


def _asked(track: Track, order: Wanted, quote: msg.Quote, now_ns: int) -> msg.Ask:
    """An entry goes to the keeper first: it is under way from here on."""
    terms = (quote.symbol, order.side, quote.bar_start_ms, order.price, order.qty)
    profit = decimal_of(quote.take_profit_pct)
    ask = msg.Ask(order.order_link_id, *terms, profit, quote.recv_ns, now_ns)
    track.request, track.deadline_ns = ask, now_ns + msg.ANSWER_NS
    return ask


def _sane(quote: msg.Quote) -> bool:
    """Whether its numbers are numbers: what is not never gets near an order."""
    numbers = (quote.price, quote.take_profit_pct, quote.last, quote.distance_pct)
    if quote.zone == msg.NONE:
        return math.isfinite(quote.last)
    return all(map(math.isfinite, numbers)) and min(numbers[:3]) > 0


def _unsent(order: Wanted, symbol: str, why: str, now_ns: int) -> msg.OrderRequest:
    """An exit that stays here."""
    head = (order.order_link_id, 0, "create", symbol, order.side, order.price, order.qty)
    return msg.OrderRequest(*head, "GTC", True, 0, now_ns, outcome="refused", reason=why)


def _bucket(request: msg.OrderRequest) -> str:
    return f"{request.action}{'-batch' * request.batch}"


def _older(version: msg.Version, than: msg.Version) -> bool:
    """Within one ledger the larger row wins; another ledger starts over."""
    return version[0] == than[0] and version[1] < than[1]
