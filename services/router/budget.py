"""budget: how many orders may leave in this second, and for whom."""

from collections import defaultdict, deque

SECOND_NS = 1_000_000_000
USED = 0.8  # of the limit: the exchange's second is not ours
FOR_ENTRIES = 0.7  # of what we use: a flood of entries leaves exits their share


class Budget:
    """One bucket per action over a rolling second; limits are learned from `X-Bapi-Limit`."""

    def __init__(self, limit: int) -> None:
        """`limit`: orders a second in each bucket, until the exchange says otherwise."""
        self._limits: defaultdict[str, int] = defaultdict(lambda: limit)
        self._sent: defaultdict[str, deque[int]] = defaultdict(deque)

    def learn(self, action: str, limit: int) -> None:
        """The exchange's own word on a bucket; 0 means it said nothing."""
        if limit:
            self._limits[action] = limit

    def take(self, action: str, now_ns: int, entry: bool = False) -> bool:
        """Room for one more now? If so, it is used."""
        sent = self._sent[action]
        while sent and now_ns - sent[0] >= SECOND_NS:
            sent.popleft()
        share = USED * (FOR_ENTRIES if entry else 1.0)
        if len(sent) >= max(1, int(self._limits[action] * share)):
            return False
        sent.append(now_ns)
        return True
