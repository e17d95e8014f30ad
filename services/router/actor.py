"""router: quotes and positions in, orders out. Owns order entry and nothing that must last."""

from decimal import Decimal
from typing import Any, ClassVar, NamedTuple

from services.router.budget import Budget
from services.router.orders import Rules, Step, desired, steps
from shared.actor import Actor
from shared.instrument import decimal_of, entry_qty
from shared.messages import (
    ENTRY,
    EXIT,
    NO_ENTRY,
    RUN,
    Ask,
    Fetch,
    Fetched,
    FullSet,
    Grant,
    Instrument,
    Instruments,
    InstrumentsAsk,
    Kline,
    LedgerAsk,
    Link,
    Message,
    Mode,
    NoAnswer,
    OrderRequest,
    Position,
    Quote,
    exit_id,
)
from shared.settings import Settings, WrongSetting

ANSWER_NS = 3_000_000_000  # a command without an answer is unknown, the next may go
ECHO_NS = 2_000_000_000  # an accepted command that the keeper does not confirm is looked at again
ACCOUNT_NS = 3_000_000_000  # older than this, the keeper's word is no ground for an entry
REPRICE_MS = 2_000  # market time between two price amends of one order
BACKOFF_NS = (1_000_000_000, 2_000_000_000, 5_000_000_000, 15_000_000_000, 60_000_000_000)
RETRY_NS = 50_000_000  # how often commands that the budget held back are looked at


class Flight(NamedTuple):
    """A command on its way: until its answer is in Position, or until the deadline."""

    request: Any  # OrderRequest or Ask
    deadline_ns: int


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
        self._budget = Budget()
        self._instruments: dict[str, Instrument] = {}
        self._positions: dict[str, Position] = {}
        self._quotes: dict[str, tuple[Quote, int]] = {}
        self._last: dict[str, tuple[Decimal, int]] = {}
        self._mode: Mode | None = None
        self._heard_ns = self._started_ns = self._retried_ns = 0
        self._flights: dict[str, Flight] = {}
        self._repriced_ms: dict[str, int] = {}
        self._refused: dict[str, tuple[int, str]] = {}
        self._backoff: dict[str, tuple[int, int]] = {}
        self._waiting: set[str] = set()
        self._leverage: dict[str, bool] = {}
        self._account_ok = self._linked = False
        self._command = 0

    def start(self, now_ns: int) -> list[Message]:
        """Nothing is decided before the first full set from the ledger."""
        self._started_ns = now_ns
        self._command = now_ns // 1_000_000
        return [LedgerAsk(), InstrumentsAsk(), Fetch("account")]

    def handle(self, message: Any, now_ns: int) -> list[Message]:
        """Take it in, then converge the symbol it is about."""
        if isinstance(message, Kline):
            self._last[message.symbol] = (decimal_of(message.close), message.ts_ms)
            return self._converge(message.symbol, now_ns) if self._active(message.symbol) else []
        if isinstance(message, Quote):
            heard = self._quotes.get(message.symbol)
            if heard and heard[0].ts_ms > message.ts_ms:
                return []
            self._quotes[message.symbol] = (message, now_ns)
            active = message.zone != "NONE" or self._active(message.symbol)
            return self._converge(message.symbol, now_ns) if active else []
        if isinstance(message, Position):
            return self._position(message, now_ns)
        if isinstance(message, Mode):
            return self._mode_said(message, now_ns)
        if isinstance(message, Grant):
            return self._granted(message, now_ns)
        if isinstance(message, OrderRequest):
            return self._answered(message, now_ns)
        return self._housekeeping(message, now_ns)

    def tick(self, now_ns: int) -> list[Message]:
        """Deadlines, quotes that ran out, leverage in the background."""
        messages = self._overdue(now_ns)
        self._prune()
        for symbol in {*self._positions, *self._waiting}:
            messages += self._converge(symbol, now_ns)
        self.ready = self._mode is not None and self._account_ok and self._linked
        self.note = self._mode.mode if self._mode else "no ledger yet"
        self.ages_ms["account"] = (now_ns - self._heard_ns) // 1_000_000 if self._heard_ns else -1
        self.counters["flights"] = len(self._flights)
        return messages + self._set_leverage(now_ns)

    # Taking in.

    def _position(self, position: Position, now_ns: int) -> list[Message]:
        known = self._positions.get(position.symbol)
        if known and _older(position.version, known.version):
            return []
        self._positions[position.symbol] = position
        self._settle(position)
        return self._converge(position.symbol, now_ns)

    def _mode_said(self, mode: Mode, now_ns: int) -> list[Message]:
        """What the Mode does not list is empty as of its version."""
        if self._mode is None:
            return [LedgerAsk()]
        if _older(mode.version, self._mode.version):
            return []
        changed, self._mode, self._heard_ns = mode.mode != self._mode.mode, mode, now_ns
        listed = set(mode.symbols)
        for symbol, position in list(self._positions.items()):
            if symbol not in listed and not _older(mode.version, position.version):
                self._settle(Position(symbol, mode.version, (), ()))
                del self._positions[symbol]
        symbols = {*self._positions, *self._quotes} if changed else ()
        return [m for symbol in symbols for m in self._converge(symbol, now_ns)]

    def _housekeeping(self, message: Any, now_ns: int) -> list[Message]:
        if isinstance(message, FullSet):
            self._mode, self._heard_ns = message.mode, now_ns
            self._positions = {position.symbol: position for position in message.positions}
        elif isinstance(message, Instruments):
            self._instruments = {i.symbol: i for i in message.instruments}
        elif isinstance(message, Instrument):
            self._instruments[message.symbol] = message
        elif isinstance(message, Link):
            self._linked = message.up
        elif isinstance(message, Fetched) and message.ask.what == "account":
            return self._account(message)
        elif isinstance(message, Fetched) and message.error:
            self.counters["leverage_errors"] += 1
            self._leverage.pop(message.ask.symbol, None)
        elif isinstance(message, Fetched):
            self._leverage[message.ask.symbol] = True
        elif isinstance(message, NoAnswer) and isinstance(message.request, Ask):
            self._flights.pop(message.request.order_link_id, None)
        return []

    def _account(self, fetched: Fetched) -> list[Message]:
        if fetched.ret_code > 0:
            raise WrongSetting(f"account: one-way mode is refused: {fetched.error}")
        self._account_ok = not fetched.error
        return []

    def _granted(self, grant: Grant, now_ns: int) -> list[Message]:
        """Granted: the intent is on disk, the order may leave. Refused: not again in this bar."""
        flight = self._flights.pop(grant.order_link_id, None)
        if flight is None or not isinstance(flight.request, Ask):
            return []
        ask = flight.request
        if not grant.granted:
            self.counters["refused_grants"] += 1
            self._refused[ask.symbol + ask.side] = (ask.bar_start_ms, self._mode_name())
            return []
        want = (ask.order_link_id, ask.symbol, ask.side, ask.price, ask.qty, "PostOnly", False)
        return [self._command_for("create", *want, ask.recv_ns, now_ns)]

    def _answered(self, request: OrderRequest, now_ns: int) -> list[Message]:
        """What came of a command. Whatever it is, the exchange's truth comes through Position."""
        self._budget.learn(request.action, request.rate_limit)
        flight = self._flights.get(request.order_link_id)
        if flight is None or flight.request.command != request.command:
            return [request]  # late: it was already called unknown
        self.counters[request.outcome] += 1
        name = request.order_link_id
        if request.outcome == "accepted":
            self._backoff.pop(name, None)
            self._flights[name] = Flight(request, now_ns + ECHO_NS)
            if position := self._positions.get(request.symbol):
                self._settle(position)
            return [request]
        del self._flights[name]
        count = min(self._backoff.get(name, (0, -1))[1] + 1, len(BACKOFF_NS) - 1)
        self._backoff[name] = (now_ns + BACKOFF_NS[count], count)
        return [request]

    def _settle(self, position: Position) -> None:
        """Forget the commands whose effect this Position shows."""
        orders = {order.order_link_id: order for order in position.orders}
        exits = {exit_id(lot.entry_id, n) for lot in position.lots for n in range(lot.exits)}
        for name, (request, _) in list(self._flights.items()):
            if request.symbol != position.symbol or isinstance(request, Ask):
                continue
            order = orders.get(name)
            if request.action == "create":
                done = name in exits or (order is not None and order.status != "Granted")
            elif request.action == "amend" and order:
                done = (order.price, order.qty) == (request.price, request.qty)
            else:
                done = order is None
            if done:
                del self._flights[name]

    # Deciding.

    def _active(self, symbol: str) -> bool:
        quote = self._quotes.get(symbol)
        return symbol in self._positions or (quote is not None and quote[0].zone != "NONE")

    def _mode_name(self) -> str:
        return self._mode.mode if self._mode else ""

    def _converge(self, symbol: str, now_ns: int) -> list[Message]:
        """From what rests to what should rest, one symbol; and what the budget held back before."""
        messages = self._retry(now_ns) if self._waiting else []
        instrument, last = self._instruments.get(symbol), self._last.get(symbol)
        if self._mode is None or instrument is None or last is None:
            return messages
        position = self._positions.get(symbol) or Position(symbol, self._mode.version, (), ())
        quote, heard_ns = self._quotes.get(symbol, (None, 0))
        if now_ns - heard_ns > self._ttl_ns:
            quote = None
        starting = quote is None and now_ns - self._started_ns < self._ttl_ns
        mode = self._mode.mode
        if mode == RUN and now_ns - self._heard_ns > ACCOUNT_NS:
            mode = NO_ENTRY
        wanted = desired(position, quote, mode, instrument, last[0], self._rules)
        self._waiting.discard(symbol)
        for step in steps(wanted, position, self._rules):
            if starting and step.action == "cancel" and step.order.kind == ENTRY:
                continue  # its quote may come: leave alone what rests, for one TTL
            messages += self._take(step, symbol, quote, last[1], now_ns)
        return messages

    def _take(
        self, step: Step, symbol: str, quote: Quote | None, market_ms: int, now_ns: int
    ) -> list[Message]:
        """One step, unless it is on its way, too soon, backing off, or over the budget."""
        order, name = step.order, step.order.order_link_id
        if name in self._flights or self._backoff.get(name, (0, 0))[0] > now_ns:
            return []
        entry = order.kind == ENTRY
        if step.repricing and market_ms - self._repriced_ms.get(name, 0) < REPRICE_MS:
            return []
        creates_entry = entry and step.action == "create"
        if creates_entry and not self._may_ask(symbol, order.side, quote):
            return []
        if not self._budget.take(step.action, now_ns, entry):
            self._waiting.add(symbol)
            self.counters["held_back"] += 1
            return []
        if step.repricing:
            self._repriced_ms[name] = market_ms
        if creates_entry and quote:
            ask = Ask(
                *(name, symbol, order.side, quote.bar_start_ms, order.price, order.qty),
                *(decimal_of(quote.take_profit_pct), quote.recv_ns, now_ns),
            )
            self._flights[name] = Flight(ask, now_ns + ANSWER_NS)
            return [ask]
        terms = (name, symbol, order.side, order.price, order.qty, "GTC", order.kind == EXIT)
        return [self._command_for(step.action, *terms, 0, now_ns)]

    def _may_ask(self, symbol: str, side: str, quote: Quote | None) -> bool:
        if quote is None or not self._leverage.get(symbol) or not self._account_ok:
            return False
        return self._refused.get(symbol + side) != (quote.bar_start_ms, self._mode_name())

    def _command_for(
        self,
        action: str,
        name: str,
        symbol: str,
        side: str,
        price: Decimal,
        qty: Decimal,
        time_in_force: str,
        reduce_only: bool,
        recv_ns: int,
        now_ns: int,
    ) -> OrderRequest:
        self._command += 1
        request = OrderRequest(
            *(name, self._command, action, symbol, side, price, qty, time_in_force, reduce_only),
            *(recv_ns, now_ns),
        )
        self._flights[name] = Flight(request, now_ns + ANSWER_NS)
        return request

    # Time.

    def _retry(self, now_ns: int) -> list[Message]:
        """What the budget held back, nearest quotes first; `steps` puts exits before entries."""
        if now_ns - self._retried_ns < RETRY_NS:
            return []
        self._retried_ns = now_ns
        waiting, self._waiting = sorted(self._waiting, key=self._distance), set()
        return [m for symbol in waiting for m in self._converge(symbol, now_ns)]

    def _distance(self, symbol: str) -> tuple[float, str]:
        quote = self._quotes.get(symbol)
        return (abs(quote[0].distance_pct) if quote else 0.0, symbol)

    def _overdue(self, now_ns: int) -> list[Message]:
        """Commands past their deadline: unknown if unanswered, else simply looked at again."""
        late = [name for name, flight in self._flights.items() if flight.deadline_ns <= now_ns]
        messages: list[Message] = []
        for name in late:
            request = self._flights.pop(name).request
            if isinstance(request, OrderRequest) and not request.outcome:
                self.counters["unknown"] += 1
                messages.append(request._replace(outcome="unknown", reason="no answer"))
        if self._mode is None:
            messages.append(LedgerAsk())
        if not self._instruments:
            messages.append(InstrumentsAsk())
        if not self._account_ok:
            messages.append(Fetch("account"))
        return messages

    def _set_leverage(self, now_ns: int) -> list[Message]:
        """Leverage 1 for every symbol that can be traded, the nearest quotes first."""
        quotes = [quote for quote, _ in self._quotes.values() if quote.symbol not in self._leverage]
        messages: list[Message] = []
        for quote in sorted(quotes, key=lambda q: (q.zone == "NONE", abs(q.distance_pct))):
            instrument, last = self._instruments.get(quote.symbol), self._last.get(quote.symbol)
            if instrument is None or last is None:
                continue
            _, too_small = entry_qty(self._rules.size_usdt, last[0], instrument)
            if too_small:
                self._leverage[quote.symbol] = False
                messages.append(self._not_traded(quote.symbol, too_small, now_ns))
            elif self._budget.take("leverage", now_ns):
                self._leverage[quote.symbol] = False
                messages.append(Fetch("leverage", quote.symbol))
        return messages

    def _not_traded(self, symbol: str, reason: str, now_ns: int) -> OrderRequest:
        """Said once: a symbol whose smallest order is larger than SIZE_USDT."""
        zero, why = Decimal(0), f"SIZE_USDT {self._rules.size_usdt} is below its {reason}"
        terms = (f"dm-{symbol}", 0, "create", symbol, "", zero, zero, "", False, 0, now_ns)
        return OrderRequest(*terms, outcome="refused", reason=why)

    def _prune(self) -> None:
        """Forget the pace and the back-off of orders that are no more."""
        live = {order.order_link_id for p in self._positions.values() for order in p.orders}
        live |= {
            exit_id(lot.entry_id, lot.exits) for p in self._positions.values() for lot in p.lots
        }
        self._backoff = {name: self._backoff[name] for name in live & self._backoff.keys()}
        self._repriced_ms = {
            name: self._repriced_ms[name] for name in live & self._repriced_ms.keys()
        }


def _older(version: tuple[str, int], than: tuple[str, int]) -> bool:
    """Within one ledger the larger row wins; another ledger starts over."""
    return version[0] == than[0] and version[1] < than[1]
