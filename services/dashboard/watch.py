"""watch: what the processes say, as a page shows it. Pure: messages and a clock in, rows out."""

from collections import deque
from decimal import Decimal
from typing import Any, NamedTuple

from shared import messages as msg
from shared.instrument import BUY, decimal_of, sign

ALIVE_NS = 2_500_000_000  # every process speaks each second
SILENT_NS = 5_000_000_000  # a quote is said each second, too
WORDS = 6  # of each process: the rates shown are those of the last five seconds
COMMANDS = 1_000  # the latest ones, for latencies
PROCESSES = {"ingestor": "market", "router": "commands", "keeper": "account"}


class Process(NamedTuple):
    """One process as its own words tell it. `progress` is 0 to 1 while it fills, None otherwise."""

    name: str
    alive: bool
    ready: bool
    note: str
    shard: str
    pid: int
    age_s: float
    inbox: int
    feed_age_ms: int | None
    p50_us: int
    p99_us: int
    rates: dict[str, float]
    progress: float | None


class Row(NamedTuple):
    """One symbol of the board. Percentages of the price to go until a band: positive is before it.

    `state` is one word: long, short (lots are held), resting (an entry), blocked, silent, the gate
    that keeps it from quoting, or armed, hold, far by its distance.
    """

    symbol: str
    last: float
    to_lower_pct: float | None
    to_upper_pct: float | None
    volatility_pct: float
    state: str
    lots: int
    open_usdt: float | None
    age_s: float | None


class Latency(NamedTuple):
    """Times of the latest commands, ms: median and 99th percentile, of so many."""

    name: str
    p50_ms: float
    p99_ms: float
    commands: int


class Watch:
    """The last word of everybody. Nothing here grows beyond the number of symbols."""

    def __init__(self) -> None:
        self.health: dict[str, tuple[int, msg.Health]] = {}
        self.mode: msg.Mode | None = None
        self.wallet: msg.Wallet | None = None
        self.positions: dict[str, msg.Position] = {}
        self.quotes: dict[str, msg.Quote] = {}
        self.instruments: dict[str, msg.Instrument] = {}
        self._words: dict[str, deque[tuple[int, msg.Health]]] = {}
        self._quoted_ns: dict[str, int] = {}
        self._decided_ms: deque[float] = deque(maxlen=COMMANDS)
        self._answered_ms: deque[float] = deque(maxlen=COMMANDS)

    def take(self, message: Any, now_ns: int) -> None:
        """One message of the bus."""
        if isinstance(message, msg.Quote):
            self._quote(message, now_ns)
        elif isinstance(message, msg.Position):
            self.positions[message.symbol] = message
        elif isinstance(message, msg.Mode):
            self.mode = message
            for symbol in self.positions.keys() - set(message.symbols):
                del self.positions[symbol]
                if symbol in self.quotes:  # what is not traded any more was kept for its lots
                    self._quote(self.quotes[symbol], self._quoted_ns[symbol])
        elif isinstance(message, msg.Health):
            self._health(message, now_ns)
        elif isinstance(message, msg.Wallet):
            self.wallet = message
        elif isinstance(message, msg.Instruments):
            self.instruments = {row.symbol: row for row in message.instruments}
        elif isinstance(message, msg.OrderRequest):
            self._command(message)

    def processes(self, now_ns: int) -> list[Process]:
        """Every process that has spoken; those that must be there and never did, too."""
        missing = PROCESSES.keys() - self.health.keys()
        found = [self._process(name, now_ns) for name in self._current(now_ns)]
        empty = ("silent since the dashboard began", "", 0, 0.0, 0, None, 0, 0)
        found += [Process(name, False, False, *empty, {}, None) for name in missing]
        return sorted(found)

    def board(self, now_ns: int) -> list[Row]:
        """One row per symbol, by name."""
        return [self._row(quote, now_ns) for _, quote in sorted(self.quotes.items())]

    def row(self, symbol: str, now_ns: int) -> Row | None:
        """One symbol's; None if no worker speaks of it."""
        return self._row(self.quotes[symbol], now_ns) if symbol in self.quotes else None

    def open_usdt(self, symbol: str) -> Decimal | None:
        """What the open lots of a symbol would bring at its last price, before fees; None where the
        price is unknown."""
        position, quote = self.positions.get(symbol), self.quotes.get(symbol)
        if position is None or quote is None or not quote.last:
            return None
        last = decimal_of(quote.last)
        return sum(
            (
                sign(lot.side) * ((lot.bought - lot.sold) * last - lot.cost + lot.proceeds)
                for lot in position.lots
                if lot.bought
            ),
            Decimal(0),
        )

    def opened_usdt(self) -> Decimal | None:
        """Of all symbols with lots; None where one price is unknown."""
        held = [self.open_usdt(symbol) for symbol, p in self.positions.items() if p.lots]
        known = [usdt for usdt in held if usdt is not None]
        return sum(known, Decimal(0)) if len(known) == len(held) else None

    def speaks(self, name: str, now_ns: int) -> bool:
        """Whether this process was heard just now: else what it said is old."""
        return name in self.health and now_ns - self.health[name][0] <= ALIVE_NS

    def feed_age_ms(self, now_ns: int) -> int | None:
        """The age of the price heard longest ago, as the ingestor says; None while it is silent."""
        silent = not self.speaks("ingestor", now_ns)
        age_ms = -1 if silent else self.health["ingestor"][1].ages_ms.get("feed", -1)
        return None if age_ms < 0 else age_ms

    def market_ms(self) -> int:
        """The market's time, as the newest quote tells it; 0 without any."""
        return max((quote.ts_ms for quote in self.quotes.values()), default=0)

    def shards(self) -> int:
        """Of the workers that speak; 0 without any."""
        words = (word for _, word in self.health.values() if word.shard)
        return max((int(word.shard.partition("/")[2]) for word in words), default=0)

    def latencies(self) -> list[Latency]:
        """From the kline to the decision (the ledger's grant included), and on to the answer."""
        stages = {"kline to decision": self._decided_ms, "decision to answer": self._answered_ms}
        return [_latency(name, sorted(times)) for name, times in stages.items() if times]

    def counters(self, service: str, now_ns: int) -> dict[str, int]:
        """The counters of a process; empty while it does not speak."""
        return self.health[service][1].counters if self.speaks(service, now_ns) else {}

    def _quote(self, quote: msg.Quote, now_ns: int) -> None:
        known = self.quotes.get(quote.symbol)
        if known and known.ts_ms > quote.ts_ms:
            return
        if quote.gate == "not_tradeable" and quote.symbol not in self.positions:
            self.quotes.pop(quote.symbol, None)
            self._quoted_ns.pop(quote.symbol, None)
            return
        self.quotes[quote.symbol], self._quoted_ns[quote.symbol] = quote, now_ns

    def _health(self, health: msg.Health, now_ns: int) -> None:
        name = msg.process_name(health.service, health.slot)
        words = self._words.setdefault(name, deque(maxlen=WORDS))
        if words and words[-1][1].pid != health.pid:
            words.clear()
        words.append((now_ns, health))
        self.health[name] = words[-1]
        for name in self.health.keys() - self._current(now_ns):
            del self.health[name], self._words[name]

    def _current(self, now_ns: int) -> set[str]:
        """All that have spoken, but for silent workers whose shards others have taken over."""
        speak = {n for n, (at_ns, _) in self.health.items() if now_ns - at_ns <= ALIVE_NS}
        if not msg.complete(self.health[name][1].shard for name in speak):
            return set(self.health)
        return speak | {n for n, (_, h) in self.health.items() if h.service != "worker"}

    def _command(self, request: msg.OrderRequest) -> None:
        if request.outcome != "accepted":
            return
        if request.recv_ns and request.action == "create":
            self._decided_ms.append((request.decided_ns - request.recv_ns) / 1e6)
        if request.answered_ns:
            self._answered_ms.append((request.answered_ns - request.decided_ns) / 1e6)

    def _process(self, name: str, now_ns: int) -> Process:
        heard_ns, last = self.health[name]
        first_ns, first = self._words[name][0]
        seconds = (heard_ns - first_ns) / 1e9
        known = first.counters
        rates = {
            key: round((value - known.get(key, 0)) / seconds, 1)
            for key, value in last.counters.items()
            if seconds and value > known.get(key, 0) and not key.endswith("_pct")
        }
        alive = self.speaks(name, now_ns)
        age_s = (now_ns - heard_ns) / 1e9
        head = (name, alive, alive and last.ready, last.note, last.shard, last.pid, age_s)
        feed_age = last.ages_ms.get("feed", last.ages_ms.get("account"))
        progress = None if last.ready else _progress(last.note)
        return Process(*head, last.inbox, feed_age, last.p50_us, last.p99_us, rates, progress)

    def _row(self, quote: msg.Quote, now_ns: int) -> Row:
        last, position = quote.last, self.positions.get(quote.symbol)
        lots = [lot for lot in position.lots if lot.bought > lot.sold] if position else []
        open_usdt = self.open_usdt(quote.symbol) if lots else None
        return Row(
            symbol=quote.symbol,
            last=last,
            to_lower_pct=100 * (last - quote.lower) / quote.lower if quote.lower > 0 else None,
            to_upper_pct=100 * (quote.upper - last) / quote.upper if quote.upper > 0 else None,
            volatility_pct=quote.volatility_pct,
            state=self._state(quote, position, lots, now_ns),
            lots=len(lots),
            open_usdt=float(open_usdt) if open_usdt is not None else None,
            age_s=(now_ns - quote.recv_ns) / 1e9 if quote.recv_ns else None,
        )

    def _state(
        self, quote: msg.Quote, position: msg.Position | None, lots: list[msg.Lot], now_ns: int
    ) -> str:
        if lots:
            return "long" if lots[0].side == BUY else "short"
        if position and any(order.kind == msg.ENTRY for order in position.orders):
            return "resting"
        if position and (position.no_entry or position.foreign_qty):
            return "blocked"
        if now_ns - self._quoted_ns[quote.symbol] > SILENT_NS:
            return "silent"
        words = {msg.ARM: "armed", msg.HOLD: "hold"}
        return quote.gate or words.get(quote.zone, "far")


def _latency(name: str, times: list[float]) -> Latency:
    return Latency(name, times[len(times) // 2], times[len(times) * 99 // 100], len(times))


def _progress(note: str) -> float | None:
    """`120/500 symbols` as 0.24."""
    done, slash, total = note.partition(" ")[0].partition("/")
    if not (slash and done.isdigit() and total.isdigit() and int(total)):
        return None
    return int(done) / int(total)
