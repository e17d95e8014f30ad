"""reconcile: the exchange's snapshots against the ledger. REST is the truth, after quiet."""

from collections import Counter
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

from shared.messages import OVERLAP_MS, SEND_NS, STOP, Fetch, Fetched, Holding, Order, OrderUpdate

ROUND = ("orders", "executions", "positions", "wallet")
NOT_FOUND_TIMES = 3  # only then is an order "never arrived" ...
MARGIN_NS = 3_000_000_000  # ... and only after SEND_NS, recv_window and this since its grant
SHOWN_NS = 60_000_000_000  # an entry that was there is only gone after a minute
TRUST_NS = 5_000_000_000  # between the two clean rounds that end NO_ENTRY
ROUND_NS = 30_000_000_000  # a round that is not answered by then is given up
MAX_QUERIES = 25  # single orders asked for at once
SEEN_TWICE = 2  # one difference may be a push on its way


class Reconcile:
    """One round of snapshots at a time: what to ask for, and what their answers prove.

    `trusted` is whether entries may be granted: after the first clean round of a start;
    once trust was lost or the books have differed, after two clean rounds TRUST_NS apart.
    """

    def __init__(self, recv_window_ms: int) -> None:
        self._settle_ns = SEND_NS + recv_window_ms * 1_000_000 + MARGIN_NS
        self._open: set[Fetch] = set()
        self._number = 0
        self._differing: Counter[tuple[str, Decimal, Decimal]] = Counter()
        self._absent: dict[str, tuple[int, int]] = {}  # since when, and how often
        self._clean_ns = 0
        self._fresh = True  # since the start, nothing was trusted, and nothing differed
        self.trusted = False
        self.begun_ns = 0
        self.snapshot: dict[str, tuple[Any, ...]] = {}
        self._asked: set[str] = set()
        self.differences: dict[str, str] = {}
        self.agreed = False  # in the last round, to the last digit
        self.failed = "not reconciled"

    def begin(self, since_ms: int, now_ns: int) -> list[Fetch]:
        """Start a round; what is left of an earlier one no longer counts."""
        self.begun_ns, self._number = now_ns, self._number + 1
        start_ms = max(0, since_ms - OVERLAP_MS)
        asks = [Fetch(what, start_ms=start_ms, number=self._number) for what in ROUND]
        self._open, self.snapshot = set(asks), {}
        return asks

    def due(self, now_ns: int, pause_ns: int) -> bool:
        """Time for the next round: not while one is open, unless its answers never come."""
        return now_ns - self.begun_ns >= (max(pause_ns, ROUND_NS) if self._open else pause_ns)

    def done(self, fetched: Fetched) -> bool:
        """Take one answer; True when it completes a round in which nothing failed."""
        if fetched.ask not in self._open:
            return False
        self._open.discard(fetched.ask)
        self.snapshot[fetched.ask.what] = fetched.rows
        if fetched.error:
            self._open = set()
            self.distrust(fetched.error)
            return False
        return not self._open

    def distrust(self, reason: str) -> None:
        """Something was missed, or may have been."""
        self.trusted, self._clean_ns, self.failed = False, 0, reason

    def unconfirmed(self, ours: Iterable[Order], open_ids: set[str]) -> list[Fetch]:
        """Orders that we hold open and the exchange does not list: ask for each by its id, at most
        MAX_QUERIES at once."""
        new = [
            order
            for order in ours
            if not {order.order_link_id, order.order_id} & open_ids
            and order.order_link_id not in self._asked
        ][: max(0, MAX_QUERIES - len(self._asked))]
        self._asked.update(order.order_link_id for order in new)
        return [
            Fetch("order", o.symbol, 0, o.order_link_id, 0, o.order_id if o.kind == STOP else "")
            for o in new
        ]

    def never_arrived(
        self, fetched: Fetched, granted_ns: int, now_ns: int, shown: bool = False
    ) -> bool:
        """Proof that a granted order is not, and will not be, at the exchange; or an entry is no
        more that it has `shown`, or filled: then its lists may only be behind."""
        name = fetched.ask.order_link_id
        self._asked.discard(name)
        if fetched.error:
            return False
        if any(isinstance(row, OrderUpdate) for row in fetched.rows):
            self._absent.pop(name, None)
            return False
        since_ns, times = self._absent.get(name, (now_ns, 0))
        self._absent[name] = since_ns, times + 1
        waited = now_ns - since_ns > SHOWN_NS if shown else now_ns - granted_ns > self._settle_ns
        proven = times + 1 >= NOT_FOUND_TIMES and waited
        if proven:
            del self._absent[name]
        return proven

    def compare(
        self, held: dict[str, Decimal], holdings: Iterable[Holding], now_ns: int
    ) -> dict[str, str]:
        """Symbols whose quantity differs, seen in two rounds with the same numbers."""
        theirs = {holding.symbol: holding.qty for holding in holdings if holding.qty}
        now = [
            (symbol, held.get(symbol, Decimal(0)), theirs.get(symbol, Decimal(0)))
            for symbol in held.keys() | theirs.keys()
        ]
        differing = {key for key in now if key[1] != key[2]}
        self.agreed = not differing
        self._differing = Counter({key: self._differing[key] + 1 for key in differing})
        self.differences = {
            symbol: f"ledger {ours} exchange {qty}"
            for (symbol, ours, qty), times in self._differing.items()
            if times >= SEEN_TWICE
        }
        if self.differences:
            self.distrust("difference")
            self._fresh = False
        elif not differing:
            self._clean_ns = self._clean_ns or now_ns
            if self._fresh or now_ns - self._clean_ns >= TRUST_NS:
                self.trusted, self._fresh = True, False
        return self.differences
