"""pulse: when each process was last heard, and which of them is alive but says nothing. Pure."""

from shared import messages as msg

SILENT_NS = 10_000_000_000  # every process speaks each second, whatever it waits for
BLIND_NS = 3_000_000_000  # we ourselves did not run for so long: nobody's silence counts


class Pulse:
    """The last word of each process by its pid. A process is judged once it has spoken."""

    def __init__(self) -> None:
        self._heard_ns: dict[int, tuple[str, int]] = {}
        self._looked_ns = 0

    def heard(self, health: msg.Health, now_ns: int) -> None:
        """A word of a process."""
        self._heard_ns[health.pid] = (f"{health.service}-{health.slot}", now_ns)

    def silent(self, now_ns: int) -> dict[int, str]:
        """The pids that have not spoken for too long, and whose they were; each is named once."""
        if now_ns - self._looked_ns > BLIND_NS:  # it was not they who slept
            self._heard_ns = {pid: (name, now_ns) for pid, (name, _) in self._heard_ns.items()}
        self._looked_ns = now_ns
        late = {p: name for p, (name, at) in self._heard_ns.items() if now_ns - at > SILENT_NS}
        for pid in late:
            del self._heard_ns[pid]
        return late
