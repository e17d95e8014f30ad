"""restarts: how often each process has begun of late. Pure.

supervisord starts whatever ends, for ever; one that ends again and again is broken, and nothing
should be opened on its word.
"""

from collections import defaultdict, deque

LOOP_COUNT, LOOP_MS = 5, 60_000  # so many starts within so long are a crash loop


class Restarts:
    """The starts of each process within the last minute, as far as they are known."""

    def __init__(self) -> None:
        self._pids: dict[str, int] = {}
        self._starts: defaultdict[str, deque[int]] = defaultdict(lambda: deque(maxlen=LOOP_COUNT))

    def heard(self, name: str, pid: int, at_ms: int) -> str:
        """A word of a process; why it is a crash loop, if its last start makes it one."""
        if self._pids.get(name) == pid:
            return ""
        self._pids[name] = pid
        return self.started(name, at_ms)

    def started(self, name: str, at_ms: int) -> str:
        """A start; why it is a crash loop, if it is one now."""
        starts = self._starts[name]
        starts.append(at_ms)
        loop = len(starts) == LOOP_COUNT and 0 <= at_ms - starts[0] < LOOP_MS
        return f"crash loop: {name} began {LOOP_COUNT} times in a minute" if loop else ""
