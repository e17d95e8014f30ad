"""ring: the last closed bars of one symbol in a circular buffer, every window one slice."""

import numpy as np
from numpy.typing import NDArray

ROWS = 300
COLUMNS = 5  # open, high, low, close, volume


class Ring:
    """float64 (ROWS, 5), written twice, ROWS apart, so that no window wraps around.

    `next_ms` is the start of the only bar that may be appended; 0 while nothing is loaded.
    """

    __slots__ = ("_cursor", "_interval_ms", "_values", "count", "next_ms")

    def __init__(self, interval_ms: int) -> None:
        self._interval_ms = interval_ms
        self._values = np.zeros((2 * ROWS, COLUMNS))
        self._cursor = 0
        self.count = 0
        self.next_ms = 0

    def load(self, start_ms: int, bars: bytes) -> bool:
        """Replace all by closed, contiguous bars: float64 (rows, 5), oldest first.

        False, and nothing changed, if they do not reach further than what is here.
        """
        rows = np.frombuffer(bars).reshape(-1, COLUMNS)
        next_ms = start_ms + len(rows) * self._interval_ms
        if not len(rows) or next_ms <= self.next_ms:
            return False
        rows = rows[-ROWS:]
        self.next_ms, self.count, self._cursor = next_ms, len(rows), len(rows) % ROWS
        self._values[: len(rows)] = self._values[ROWS : ROWS + len(rows)] = rows
        return True

    def append(self, start_ms: int, bar: tuple[float, ...]) -> bool:
        """True if this was the next bar; anything else changes nothing."""
        if start_ms != self.next_ms:
            return False
        self._values[self._cursor] = self._values[self._cursor + ROWS] = bar
        self._cursor = (self._cursor + 1) % ROWS
        self.count = min(self.count + 1, ROWS)
        self.next_ms += self._interval_ms
        return True

    def window(self, length: int) -> NDArray[np.float64]:
        """A view of the last `length` bars, (length, 5), oldest first; length <= count."""
        end = self._cursor + ROWS
        return self._values[end - length : end]
