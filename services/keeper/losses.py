"""losses: what was lost today and since the highest equity, against their limits."""

from decimal import Decimal
from typing import NamedTuple

from shared import messages as msg

DAY_MS = 86_400_000
HUNDRED = Decimal(100)


class Limits(NamedTuple):
    """Percentages of equity; 0 switches a limit off."""

    daily_loss_pct: float
    drawdown_pct: float


class Losses:
    """Equity by UTC day. A withdrawal counts as a loss: nothing here can tell them apart."""

    def __init__(self, limits: Limits, kept: str) -> None:
        """`kept` is `text` of an earlier life; empty for the first."""
        self._limits = limits
        day, halted, first, peak = kept.split() if kept else ("-1", "-1", "0", "0")
        self._day, self._halted_day = int(day), int(halted)
        self._first, self._peak, self._last = Decimal(first), Decimal(peak), Decimal(0)

    @property
    def text(self) -> str:
        """All that must outlive the process."""
        return f"{self._day} {self._halted_day} {self._first} {self._peak}"

    def seen(self, equity: Decimal, wall_ms: int) -> str:
        """Take in the equity; why everything must be sold, or empty."""
        day, self._last = wall_ms // DAY_MS, equity
        day += day == self._day - 1  # clocks may step back, over midnight, too
        if day != self._day or not self._first:
            self._day, self._first = day, equity
        self._peak = max(self._peak, equity)
        if _lost(self._first, equity, self._limits.daily_loss_pct):
            self._halted_day = day
        if _lost(self._peak, equity, self._limits.drawdown_pct):
            return f"drawdown {HUNDRED * (1 - equity / self._peak):.2f} % from {self._peak:f}"
        return ""

    def forgive(self) -> None:
        """A person has seen it: from here the drawdown counts anew, and the day goes on."""
        self._peak, self._first, self._halted_day = self._last, self._last, -1

    def trigger(self) -> tuple[str, str] | None:
        """The mode of a lost day."""
        if self._halted_day != self._day or self._day < 0:
            return None
        return msg.REDUCE_ONLY, f"daily loss over {self._limits.daily_loss_pct:g} %"


def _lost(before: Decimal, now: Decimal, limit_pct: float) -> bool:
    share = HUNDRED * (before - now) / before if before > 0 else Decimal(0)
    return bool(limit_pct) and share >= Decimal(str(limit_pct))
