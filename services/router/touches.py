"""touches: every band that was touched, and the one reason why it led to no order, or that it did.

A touch is a symbol, a bar and a side whose quote was armed, or would have been but for a gate.
"""

from shared import messages as msg

OVER_NS = 120_000_000_000  # without another quote for so long, the symbol's last bar is over


class Touches:
    """The touches of each symbol's present bar; they are told when the next bar begins."""

    def __init__(self, proximity_pct: float, overshoot_pct: float) -> None:
        self._near, self._far = proximity_pct, -overshoot_pct
        self._bars: dict[str, tuple[int, int, dict[str, msg.Touch | None]]] = {}

    def quoted(self, quote: msg.Quote, now_ns: int) -> list[msg.Message]:
        """A quote begins a touch, or goes on with one; those of the bar before are over."""
        bar_ms, _, open_ = self._bars.get(quote.symbol, (0, 0, {}))
        if quote.bar_start_ms < bar_ms:
            return []
        later = quote.bar_start_ms > bar_ms
        kept: dict[str, msg.Touch | None] = {} if later else open_
        self._bars[quote.symbol] = (quote.bar_start_ms, now_ns, kept)
        gated = quote.gate and self._far <= quote.distance_pct <= self._near and quote.lower > 0
        if quote.zone == msg.ARM or gated:
            name = msg.entry_id(quote.symbol, quote.side, quote.bar_start_ms)
            terms = (name, quote.symbol, quote.side, quote.bar_start_ms)
            kept.setdefault(name, msg.Touch(*terms, quote.gate or "stale"))
        return [touch for touch in open_.values() if touch] if later else []

    def because(self, symbol: str, name: str, outcome: str) -> None:
        """Why there is no order yet; "order" once there is one, and that stays."""
        touch = self._bars.get(symbol, (0, 0, {}))[2].get(name)
        if touch and touch.outcome != "order":
            self._bars[symbol][2][name] = touch._replace(outcome=outcome)

    def over(self, now_ns: int) -> list[msg.Message]:
        """Touches of symbols that have fallen silent; what is told is not told again."""
        said: list[msg.Message] = []
        for _, heard_ns, touches in self._bars.values():
            if now_ns - heard_ns > OVER_NS:
                said += [touch for touch in touches.values() if touch]
                touches.update(dict.fromkeys(touches))
        return said
