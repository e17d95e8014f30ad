"""news: messages of the bus in, notices for people out. Pure: the clocks and the books come in."""

from typing import Any, NamedTuple, Protocol

from services.notifier.desk import MINUTE_NS, Desk, Event, Notice
from services.notifier.fills import Day, Mark, Recent, daily, digest
from services.notifier.modes import Modes
from services.notifier.presence import Presence
from shared import messages as msg

HOUR_MS, DAY_MS = 3_600_000, 86_400_000


class Terms(NamedTuple):
    """How often a digest is made, and at which hour, UTC, the summary of a day."""

    notify_digest_minutes: int
    notify_daily_hour: int


class Books(Protocol):
    """What only the ledger knows. None where it cannot be read now."""

    def since(self, mark: Mark | None) -> Recent | None:
        """What came after this mark; all, if it is of another ledger; nothing, without one."""

    def day(self, since_ms: int, until_ms: int) -> Day | None:
        """What happened from one time to another, by the wall clock."""


class News:
    """Nothing that happened is told twice, and nothing is lost: told or waiting, it is counted."""

    def __init__(self, terms: Terms, books: Books, now_ns: int, looked_ms: int) -> None:
        """`looked_ms`: wall clock up to which an earlier life looked; now, if there was none."""
        self._digest_ns, self._hour_ms = terms[0] * MINUTE_NS, terms[1] * HOUR_MS
        self._books = books
        self._desk, self._modes = Desk(), Modes()
        self._presence = Presence(now_ns)
        self._wallet: msg.Wallet | None = None
        self._differences = 0
        self._begun_ns, self._due_ns = now_ns, now_ns + self._digest_ns
        now = books.since(None)
        self._told = now.mark if now else None
        self._day = self._day_of(looked_ms)

    def hear(self, message: Any, now_ns: int, wall_ms: int) -> None:
        """One message of the bus. What is news of it leaves by the next `tick`."""
        events: list[Event] = []
        if isinstance(message, msg.Mode):
            events = [*self._modes.heard(message, now_ns), *self._differ(message)]
        elif isinstance(message, msg.Health):
            events = self._presence.heard(message, now_ns)
        elif isinstance(message, msg.Wallet):
            self._wallet = message
        self._put(events, wall_ms)

    def tick(self, now_ns: int, wall_ms: int) -> list[Notice]:
        """What is to be sent now. Often: each second."""
        self._put([*self._modes.tick(now_ns), *self._presence.tick(now_ns)], wall_ms)
        if now_ns >= self._due_ns:
            self._digest(now_ns)
        day = self._day_of(wall_ms)
        settled = self._wallet is not None or now_ns - self._begun_ns >= MINUTE_NS
        if day > self._day and settled:
            self._day, ends_ms = day, day * DAY_MS + self._hour_ms
            report = self._books.day(ends_ms - DAY_MS, ends_ms)
            self._desk.put(daily(report, self._wallet, self._modes.mode))
        return self._desk.take(now_ns)

    def waits(self, kind: str) -> int:
        """How much of this kind was heard and is not told yet."""
        return self._desk.waits(kind) + (self._modes.folded if kind == "mode" else 0)

    def _digest(self, now_ns: int) -> None:
        """Of all that was not told yet. While the ledger cannot be read it is tried each minute;
        funding alone waits for the next fill."""
        recent = self._books.since(self._told)
        if recent is None:
            self._due_ns = now_ns + MINUTE_NS
            return
        self._due_ns += ((now_ns - self._due_ns) // self._digest_ns + 1) * self._digest_ns
        event = digest(recent.executions, recent.closed)
        if event:
            self._desk.put(event)
        if event or self._told is None:
            self._told = recent.mark

    def _differ(self, mode: msg.Mode) -> list[Event]:
        """More differences between the ledger and the exchange than before, or none any more."""
        before, self._differences = self._differences, mode.differences
        if mode.differences > before:
            text = f"the ledger and the exchange differ in {mode.differences} symbols"
            return [Event("differences", text, text)]
        if before and not mode.differences:
            text = "the ledger and the exchange agree again"
            return [Event("differences", text, text)]
        return []

    def _put(self, events: list[Event], wall_ms: int) -> None:
        seconds = wall_ms // 1000 % (DAY_MS // 1000)
        at = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
        for event in events:
            self._desk.put(event._replace(text=f"{at} {event.text}"))

    def _day_of(self, wall_ms: int) -> int:
        return (wall_ms - self._hour_ms) // DAY_MS
