"""modes: which changes of mode are news. NO_ENTRY that comes and goes is told once. Pure."""

from services.notifier.desk import LONGEST, MINUTE_NS, Event
from shared import messages as msg

CALM_NS = MINUTE_NS  # RUN for so long, and the NO_ENTRY before it is over
LASTING_NS = 5 * MINUTE_NS  # NO_ENTRY for so long is news again
LOST = ("daily loss", "drawdown")  # how the keeper's reasons for these begin


class Modes:
    """The mode as it was heard last, and the spell of NO_ENTRY that it may be in."""

    def __init__(self) -> None:
        self._mode = self._reason = ""
        self._since_ns = 0  # of this mode
        self._spell_ns: int | None = None  # since when NO_ENTRY comes and goes
        self._lasted = False
        self._times = 0  # how often NO_ENTRY came in this spell
        self.folded = 0  # changes of it that were not told

    @property
    def mode(self) -> str:
        """The mode with its reason; empty before any was heard."""
        return f"{self._mode}: {self._reason}" if self._reason else self._mode

    def heard(self, mode: msg.Mode, now_ns: int) -> list[Event]:
        """What is news of it."""
        before, was = self._mode, self._reason
        if (mode.mode, mode.reason) == (before, was):
            return []
        self._mode, self._reason = mode.mode, mode.reason
        if mode.mode != before:
            self._since_ns = now_ns
        if {before, mode.mode} <= {"", msg.RUN, msg.NO_ENTRY}:
            return self._light(before, now_ns)
        return self._heavy(before, now_ns)

    def tick(self, now_ns: int) -> list[Event]:
        """A spell that is over, or that lasts."""
        aged_ns = now_ns - self._since_ns
        if self._spell_ns is None:
            return []
        if self._mode == msg.RUN and aged_ns >= CALM_NS:
            spell = _minutes(self._since_ns - self._spell_ns)
            self._spell_ns = None
            times = f", which came {self._times} times" if self._times > 1 else ""
            return [self._told("RUN", f"RUN after {spell} of NO_ENTRY{times}")]
        if self._mode == msg.NO_ENTRY and aged_ns >= LASTING_NS and not self._lasted:
            self._lasted = True
            text = f"NO_ENTRY for {_minutes(aged_ns)}: {self._reason}"
            return [self._told(text, text)]
        return []

    def _light(self, before: str, now_ns: int) -> list[Event]:
        """Between RUN and NO_ENTRY. The very first mode is news only if it lasts."""
        if before == self._mode:
            return []  # another reason for the same
        self.folded += bool(before)
        if self._mode == msg.RUN:
            return []
        self._times += 1
        if self._spell_ns is not None:
            return []
        self._begin_spell(now_ns)
        return [self._told(self.mode, f"{before} -> {self.mode}")] if before else []

    def _heavy(self, before: str, now_ns: int) -> list[Event]:
        """Into, out of or within a mode that entries do not survive."""
        self._spell_ns = None
        self.folded += bool(before)
        if self._mode == msg.NO_ENTRY:
            self._begin_spell(now_ns)
        lost = self._mode in (msg.CANCEL_ALL, msg.FLATTEN) or self._reason.startswith(LOST)
        kind = "breach" if lost else "mode"
        arrow = f"{before} -> " if before not in ("", self._mode) else ""
        return [self._told(self.mode, f"{arrow}{self.mode}", kind, lost)]

    def _begin_spell(self, now_ns: int) -> None:
        self._spell_ns, self._lasted, self._times = now_ns, False, 1

    def _told(self, title: str, text: str, kind: str = "mode", urgent: bool = False) -> Event:
        folded, self.folded = self.folded, 0
        return Event(kind, title, text[:LONGEST], urgent, folded)


def _minutes(spell_ns: int) -> str:
    """`40 s`, `12 min`, `3 h 5 min`."""
    minutes, seconds = divmod(spell_ns // 1_000_000_000, 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min" if minutes else f"{seconds} s"
