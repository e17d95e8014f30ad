"""presence: which processes have begun anew, fallen silent, or do so again and again. Pure."""

from collections import deque

from services.notifier.desk import MINUTE_NS, Event
from shared import messages as msg

SILENT_NS = 15_000_000_000  # every process speaks each second; the watchdog acts after ten
START_NS = 60_000_000_000  # those without which nothing trades must have spoken by then
BLIND_NS = 3_000_000_000  # we ourselves did not look for so long: nobody's silence counts
LOOP_COUNT = 5  # starts in a minute
NEEDED = ("ingestor-0", "keeper-0", "router-0")
MOST = 64  # processes; there are 16 slots for workers


class Process:
    """One process as it was heard last; pid 0 has never spoken."""

    __slots__ = ("heard_ns", "pid", "shard", "silent", "starts_ns")

    def __init__(self, heard_ns: int) -> None:
        self.pid, self.heard_ns, self.shard, self.silent = 0, heard_ns, "", False
        self.starts_ns: deque[int] = deque(maxlen=LOOP_COUNT)


class Presence:
    """The last word of each process."""

    def __init__(self, now_ns: int) -> None:
        self._known = {name: Process(now_ns + START_NS - SILENT_NS) for name in NEEDED}
        self._looked_ns = now_ns

    def heard(self, health: msg.Health, now_ns: int) -> list[Event]:
        """A word of a process: news if it is another process, or was silent."""
        name = f"{health.service}-{health.slot}"
        if name not in self._known and len(self._known) >= MOST:
            return []
        process = self._known.setdefault(name, Process(now_ns))
        old, silence_s = process.pid, (now_ns - process.heard_ns) // 1_000_000_000
        was_silent, process.silent = process.silent, False
        process.pid, process.shard, process.heard_ns = health.pid, health.shard, now_ns
        if old == health.pid:
            text = f"{name} speaks again, after {silence_s} s"
            return [Event("silence", text, text)] if was_silent else []
        process.starts_ns.append(now_ns)
        if not old:
            text = f"{name} has begun"
            return [Event("silence", text, text)] if was_silent else []
        after = f", after {silence_s} s of silence" if was_silent else ""
        text = f"{name} was restarted: pid {old} -> {health.pid}{after}"
        return [Event("restart", f"{name} was restarted", text), *_loop(name, process, now_ns)]

    def tick(self, now_ns: int) -> list[Event]:
        """Who has fallen silent; each is named once."""
        blind, self._looked_ns = now_ns - self._looked_ns > BLIND_NS, now_ns
        if blind:
            for process in self._known.values():
                process.heard_ns = max(now_ns, process.heard_ns)
        late = [n for n, p in self._known.items() if now_ns - p.heard_ns > SILENT_NS]
        events = []
        for name in late:
            process = self._known[name]
            if name.startswith("worker-") and self._covered(now_ns):
                del self._known[name]  # its generation was replaced
            elif not process.silent:
                process.silent = True
                seconds = (now_ns - process.heard_ns) // 1_000_000_000
                text = f"{name} has said nothing for {seconds} s"
                if not process.pid:
                    text = f"{name} has not begun"
                events.append(Event("silence", text, text, urgent=True))
        return events

    def _covered(self, now_ns: int) -> bool:
        """Whether those workers who speak have all shards between them."""
        speaking = (p for p in self._known.values() if now_ns - p.heard_ns <= SILENT_NS)
        return msg.complete(process.shard for process in speaking)


def _loop(name: str, process: Process, now_ns: int) -> list[Event]:
    starts = process.starts_ns
    if len(starts) < LOOP_COUNT or now_ns - starts[0] >= MINUTE_NS:
        return []
    starts.clear()
    title = f"crash loop: {name}"
    text = f"{name} began {LOOP_COUNT} times in a minute"
    return [Event("crash_loop", title, text, urgent=True)]
