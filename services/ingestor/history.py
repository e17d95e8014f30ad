"""history: the last closed bars of one symbol, contiguous or not at all."""

from array import array

ROWS = 300
COLUMNS = 5  # open, high, low, close, volume

Bar = tuple[float, float, float, float, float]


class Bars:
    """At most ROWS closed bars. `next_ms` is the start of the bar that must come next, 0 if any."""

    __slots__ = ("_values", "interval_ms", "next_ms")

    def __init__(self, interval_ms: int) -> None:
        self.interval_ms = interval_ms
        self.next_ms = 0
        self._values = array("d")

    def __len__(self) -> int:
        return len(self._values) // COLUMNS

    def append(self, start_ms: int, bar: Bar) -> bool:
        """True if this was the next bar; a repeat or a bar after a hole changes nothing."""
        if self.next_ms and start_ms != self.next_ms:
            return False
        self.next_ms = start_ms + self.interval_ms
        self._values.extend(bar)
        del self._values[: -ROWS * COLUMNS]
        return True

    def clear(self) -> None:
        """Start over: the hole is older than what the exchange was asked for."""
        self.next_ms = 0
        del self._values[:]

    @property
    def start_ms(self) -> int:
        """Start of the oldest bar."""
        return self.next_ms - len(self) * self.interval_ms

    def to_bytes(self) -> bytes:
        """float64 (rows, 5), oldest first."""
        return self._values.tobytes()
