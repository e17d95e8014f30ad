"""clock: market time, which the paper exchange may run faster than the machine's."""


class Clock:
    """Market time at a moment of the machine's monotonic clock."""

    __slots__ = ("_anchor_ns", "_market_ms", "_speed")

    def __init__(self, market_ms: int, anchor_ns: int, speed: float) -> None:
        self._market_ms, self._anchor_ns, self._speed = market_ms, anchor_ns, speed

    def now_ms(self, now_ns: int) -> int:
        """Market time in ms."""
        return self._market_ms + int((now_ns - self._anchor_ns) * self._speed / 1e6)
