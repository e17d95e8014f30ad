"""budget: how many orders may leave in this second, and for whom."""

from collections import defaultdict, deque

SECOND_NS = 1_000_000_000
USED = 0.8  # of the limit: the exchange's second is not ours
FOR_ENTRIES = 0.7  # of what we use: a flood of entries leaves exits their share
TWINS = {action: f"{action}-batch" for action in ("create", "amend", "cancel")}


class Budget:
    """One bucket per endpoint over a rolling second; limits are learned from `X-Bapi-Limit`.

    An order endpoint has a twin for batches with a bucket of its own, charged by the order.
    """

    def __init__(self, limit: int) -> None:
        """`limit`: orders a second in each bucket, until the exchange says otherwise."""
        self._limits: defaultdict[str, int] = defaultdict(lambda: limit)
        self._sent: defaultdict[str, deque[int]] = defaultdict(deque)
        self._shut_ns: dict[str, int] = {}

    def learn(self, bucket: str, limit: int) -> None:
        """The exchange's own word on a bucket; 0 means it said nothing."""
        if limit:
            self._limits[bucket] = limit

    def shut(self, bucket: str, until_ns: int) -> None:
        """The exchange has had enough of this bucket."""
        self._shut_ns[bucket] = until_ns

    def leaves(self, bucket: str, taken_ns: int, now_ns: int) -> None:
        """What room was taken for leaves only now."""
        self.give_back(bucket, taken_ns)
        self._sent[bucket].append(now_ns)

    def give_back(self, bucket: str, taken_ns: int) -> None:
        """What room was taken for does not leave."""
        if taken_ns in self._sent[bucket]:
            self._sent[bucket].remove(taken_ns)

    def take(self, action: str, now_ns: int, entry: bool = False) -> str:
        """The bucket that has room for one more now, which it uses; empty if none has."""
        for bucket in (action, TWINS.get(action, "")):
            if bucket and now_ns >= self._shut_ns.get(bucket, 0):
                sent = self._sent[bucket]
                while sent and now_ns - sent[0] >= SECOND_NS:
                    sent.popleft()
                share = USED * (FOR_ENTRIES if entry else 1.0)
                if len(sent) < max(1, int(self._limits[bucket] * share)):
                    sent.append(now_ns)
                    return bucket
        return ""
