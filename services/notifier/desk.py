"""desk: which notices may leave now. What may not waits, and is told with the next one. Pure."""

from collections import deque
from typing import NamedTuple

KINDS = ("breach", "crash_loop", "silence", "mode", "restart", "differences", "daily", "fills")
"""What there is news of; what stands first leaves first."""
MINUTE_NS, HOUR_NS = 60_000_000_000, 3_600_000_000_000
HOURLY = 20  # notices in any hour
SPARE = 5  # of them are for urgent ones alone
SHOWN = 5  # events that one notice spells out, the latest; the others it counts
LONGEST = 300  # characters of the text of one event, and of a title


class Event(NamedTuple):
    """One piece of news. `happened` counts what it is about: fills of a digest, changes of mode."""

    kind: str
    title: str
    text: str
    urgent: bool = False
    happened: int = 1


class Notice(NamedTuple):
    """What is sent. `happened` is the sum of those of its events."""

    kind: str
    title: str
    body: str
    urgent: bool
    happened: int = 1


class Waiting:
    """The events of one kind that have not been told."""

    __slots__ = ("events", "happened", "texts", "title", "urgent")

    def __init__(self) -> None:
        self.title, self.urgent = "", False
        self.texts: deque[str] = deque(maxlen=SHOWN)
        self.events = self.happened = 0


class Desk:
    """At most one notice of a kind in a minute, and HOURLY of all in an hour."""

    def __init__(self) -> None:
        self._waiting = {kind: Waiting() for kind in KINDS}
        self._sent_ns: dict[str, int] = {}
        self._all_ns: deque[int] = deque(maxlen=HOURLY)

    def put(self, event: Event) -> None:
        """To be told as soon as it may be."""
        waiting = self._waiting[event.kind]
        waiting.title, waiting.urgent = event.title[:LONGEST], waiting.urgent or event.urgent
        waiting.texts.append(event.text)
        waiting.events += 1
        waiting.happened += event.happened

    def waits(self, kind: str) -> int:
        """How many things of this kind have happened and were not told."""
        return self._waiting[kind].happened

    def may(self, kind: str, urgent: bool, now_ns: int) -> bool:
        """Whether a notice of this kind may leave now."""
        last_ns = self._sent_ns.get(kind)
        if last_ns is not None and now_ns - last_ns < MINUTE_NS:
            return False
        recent = sum(now_ns - at < HOUR_NS for at in self._all_ns)
        return recent < (HOURLY if urgent else HOURLY - SPARE)

    def take(self, now_ns: int) -> list[Notice]:
        """What leaves now, and waits no more."""
        notices = []
        for kind, waiting in self._waiting.items():
            if waiting.events and self.may(kind, waiting.urgent, now_ns):
                notices.append(_notice(kind, waiting))
                self._waiting[kind] = Waiting()
                self._sent_ns[kind] = now_ns
                self._all_ns.append(now_ns)
        return notices


def _notice(kind: str, waiting: Waiting) -> Notice:
    more, hidden = waiting.events - 1, waiting.events - len(waiting.texts)
    title = f"{waiting.title} (and {more} more)" if more else waiting.title
    earlier = [f"{hidden} earlier ones are not shown"] if hidden else []
    body = "\n".join((*earlier, *waiting.texts))
    return Notice(kind, title, body, waiting.urgent, waiting.happened)
