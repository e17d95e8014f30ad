"""desk: the bus and the ledger's file in, one state for all pages out. It decides nothing.

Of its own it keeps only `excursions.db`. One event loop, and threads that read files for it.
"""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Coroutine, Iterator, Mapping
from decimal import Decimal
from typing import Any

from services.dashboard.books import (
    NO_BOOKS,
    NO_SYMBOL,
    Books,
    SymbolBooks,
    read,
    read_symbol,
    recent_lots,
)
from services.dashboard.metrics import BotCollector, Caps
from services.dashboard.watch import Watch
from services.ops.ops import GONE, Supervisor
from services.report.excursions import FILE, Excursions, wanted
from services.report.trades import Point
from services.why.why import Gate, Heard, gates, verdict
from shared import messages as msg
from shared.bus import Bus
from shared.records import Broken
from shared.settings import Settings

LISTEN_S = 0.05  # between two looks at the bus
READ_S = 2.0  # between two looks at the ledger's file, and at least
READ_SHARE = 20  # times as long as the look took
LOOK_S = 2.0  # between two looks at supervisord
UNIVERSE_S = 30.0
REMEMBER_S = 20.0  # between two looks for bars in which a lot was held
KEPT_BARS = 300  # what the ingestor remembers
TOPICS = {
    "quotes": ("quote.", "health."),
    "account": ("position.", "mode.", "wallet.", "health."),
    "commands": ("orderrequest.", "health."),
    "market": ("health.",),
}
MOST_PAGES = 50  # symbols whose books are kept for a moment
UNREADABLE = (Broken, OSError, *msg.NOT_OURS)
DOWN = {"BACKOFF", "EXITED", "FATAL"}  # in supervisord's words
REFRESHES = 300  # of which the server's times are kept

log = logging.getLogger("dm")


class Desk:
    """What every page looks at. One per process, on its event loop."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.watch = Watch()
        self.books: Books = NO_BOOKS
        self.states: dict[str, str] = {}
        caps = settings.part(Caps)
        self.metrics = BotCollector(self.watch, caps, self.now_ns, self._sums)
        self.trouble = ""  # why the ledger cannot be read
        self._reading = asyncio.Lock()  # one reader of the file at a time
        self._symbols: dict[str, tuple[float, SymbolBooks]] = {}  # good until
        self._bus = Bus(
            settings.RUN_DIR, hears=TOPICS, asks=("history", "instruments"), **settings.wires
        )
        self._histories: dict[str, list[asyncio.Future[msg.History | None]]] = {}
        self._times_ms: dict[str, deque[float]] = {}

    async def listen(self) -> None:
        """For ever: all that is said, and what is asked for."""
        universe_s = 0.0
        while True:
            now_ns = time.monotonic_ns()
            for message, _ in self._bus.receive(0):
                self._take(message, now_ns)
            for lost in self._bus.overdue(now_ns):
                if isinstance(lost.request, msg.HistoryAsk):
                    self._answered(lost.request.symbol, None)
            if time.monotonic() - universe_s > UNIVERSE_S:
                universe_s = time.monotonic()
                self._bus.ask("instruments", msg.InstrumentsAsk(), now_ns)
            await asyncio.sleep(LISTEN_S)

    async def read(self) -> None:
        """For ever: the ledger's file, in a thread, for a small part of the time."""
        while True:
            began_s = time.monotonic()
            try:
                async with self._reading:
                    self.books = await asyncio.to_thread(read, self.settings.RUN_DIR, self.books)
                self.trouble = ""
            except UNREADABLE as error:
                self.trouble = f"ledger unreadable: {error}"
                log.warning("ledger unreadable error=%r", error)
            await asyncio.sleep(max(READ_S, READ_SHARE * (time.monotonic() - began_s)))

    async def symbol_books(self, symbol: str) -> SymbolBooks:
        """What the ledger holds of a symbol: as it is, or as it was a moment ago where a read takes
        long. Nothing while it cannot be read."""
        good_until_s, known = self._symbols.get(symbol, (0.0, NO_SYMBOL))
        async with self._reading:
            began_s = time.monotonic()
            if began_s < good_until_s:
                return known
            with contextlib.suppress(*UNREADABLE):
                known = await asyncio.to_thread(read_symbol, self.settings.RUN_DIR, symbol)
            took_s = time.monotonic() - began_s
        self._symbols[symbol] = (began_s + max(READ_S, READ_SHARE * took_s), known)
        if len(self._symbols) > MOST_PAGES:
            del self._symbols[next(iter(self._symbols))]
        return known

    async def look(self) -> None:
        """For ever: what supervisord says of each process."""
        supervisor = Supervisor(self.settings.RUN_DIR)
        while True:
            self.states = await asyncio.to_thread(_states, supervisor)
            await asyncio.sleep(LOOK_S)

    async def remember(self) -> None:
        """For ever: the best and worst price of each lot, from bars, while there are any."""
        interval_ms, kept = self.settings.interval_ms, None
        while True:
            now_ms = self.watch.market_ms()
            try:
                kept = kept or Excursions(self.settings.RUN_DIR / FILE, interval_ms)
                await self._remember(kept, now_ms, interval_ms)
            except UNREADABLE as error:  # the next look may find more
                log.warning("excursions not kept error=%r", error)
            await asyncio.sleep(REMEMBER_S)

    async def _remember(self, kept: Excursions, now_ms: int, interval_ms: int) -> None:
        if not now_ms:
            return
        since_ms = now_ms - KEPT_BARS * interval_ms
        async with self._reading:
            lots = await asyncio.to_thread(recent_lots, self.settings.RUN_DIR, since_ms)
        for symbol in wanted(lots, kept.known, now_ms, interval_ms):
            history = await self.history_asked(symbol)
            if history and history.bars:
                kept.take(history, lots)
        kept.keep(lots)

    def works(self) -> list[Coroutine[None, None, None]]:
        """All that goes on for ever."""
        return [self.listen(), self.read(), self.look(), self.remember()]

    def history_asked(self, symbol: str) -> "asyncio.Future[msg.History | None]":
        """The closed bars of a symbol; None if nobody answers."""
        future: asyncio.Future[msg.History | None] = asyncio.get_running_loop().create_future()
        waiting = self._histories.setdefault(symbol, [])
        if not waiting:
            self._bus.ask("history", msg.HistoryAsk(symbol), time.monotonic_ns())
        waiting.append(future)
        return future

    def wallet(self) -> msg.Wallet | None:
        """The account as the keeper says it; None while it is silent."""
        return self.watch.wallet if self.watch.speaks("keeper", self.now_ns()) else None

    def mode(self) -> msg.Mode | None:
        """The mode as the keeper says it; None while it is silent."""
        return self.watch.mode if self.watch.speaks("keeper", self.now_ns()) else None

    def point(self) -> Point | None:
        """Where the equity is now; None while the keeper is silent."""
        wallet = self.wallet()
        return self.books.point(wallet, _wall_ms()) if wallet else None

    def equity(self) -> list[Point]:
        """The curve as it is written down each minute, and where it is now."""
        now = self.point()
        return [*self.books.equity, *([now] if now else ())]

    def now_ns(self) -> int:
        """The clock by which the bus is heard."""
        return time.monotonic_ns()

    def dead(self, now_ns: int) -> list[str]:
        """Names of those that do not speak, or that supervisord cannot keep running."""
        silent = {process.name for process in self.watch.processes(now_ns) if not process.alive}
        return sorted(silent | {name for name, state in self.states.items() if state in DOWN})

    def gates(self, symbol: str) -> tuple[list[Gate], str]:
        """What stands between this symbol and an order, and the verdict in words."""
        heard, watch = Heard(symbol), self.watch
        heard.quote, heard.position = watch.quotes.get(symbol), watch.positions.get(symbol)
        heard.mode, heard.instrument = self.mode(), watch.instruments.get(symbol)
        heard.symbols = set(watch.instruments)
        speaking = [n for n in watch.health if watch.speaks(n, self.now_ns())]
        heard.health = {word.service: word for _, word in map(watch.health.__getitem__, speaking)}
        found = gates(heard, self.settings)
        return found, verdict(found)

    @contextlib.contextmanager
    def timed(self, page: str) -> Iterator[None]:
        """Notes how long a refresh keeps the server."""
        began = time.perf_counter()
        yield
        times = self._times_ms.setdefault(page, deque(maxlen=REFRESHES))
        times.append(1000 * (time.perf_counter() - began))

    def refresh_text(self) -> str:
        """By page: median and worst of the latest refreshes, as text."""
        words = (
            f"{page} {sorted(times)[len(times) // 2]:.1f} ms (worst {max(times):.0f})"
            for page, times in sorted(self._times_ms.items())
        )
        return "server time of a refresh: " + ", ".join(words)

    def close(self) -> None:
        """Let go of the bus."""
        self._bus.close()

    def _take(self, message: Any, now_ns: int) -> None:
        if isinstance(message, msg.History):
            self._answered(message.symbol, message)
            return
        if isinstance(message, msg.OrderRequest):
            self.metrics.observe(message)
        self.watch.take(message, now_ns)

    def _sums(self) -> Mapping[str, Decimal | float]:
        return self.books.sums()

    def _answered(self, symbol: str, history: msg.History | None) -> None:
        for future in self._histories.pop(symbol, []):
            if not future.done():
                future.set_result(history)


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


def _states(supervisor: Supervisor) -> dict[str, str]:
    """RUNNING, BACKOFF, ... by process; empty without a supervisord."""
    try:
        return {row["name"]: row["statename"] for row in supervisor.processes()}
    except GONE:
        return {}
