"""budget: how many orders may leave now, and for whom."""

from collections import defaultdict, deque

from shared.messages import ANSWER_NS

SECOND_NS = 1_000_000_000
USED = 0.8  # of the limit
FOR_ENTRIES = 0.7  # of what we use: a flood of entries leaves exits their share
TWINS = {action: f"{action}-batch" for action in ("create", "amend", "cancel")}


class Budget:
    """One bucket per endpoint over the exchange's rolling second, wherever that begins: an order
    counts from the moment it may leave until a second after its answer, for when it arrived
    between the two only the exchange knows. Limits are learned from `X-Bapi-Limit`.

    An order endpoint has a twin for batches with a bucket of its own, charged by the order.
    """

    def __init__(self, limit: int) -> None:
        """`limit`: orders a second in each bucket, until the exchange says otherwise."""
        self._limits: defaultdict[str, int] = defaultdict(lambda: limit)
        self._flying: defaultdict[str, deque[int]] = defaultdict(deque)  # no longer than until
        self._landed: defaultdict[str, deque[int]] = defaultdict(deque)  # counts until
        self._shut_ns: dict[str, int] = {}

    def learn(self, bucket: str, limit: int) -> None:
        """The exchange's own word on a bucket; 0 means it said nothing."""
        if limit:
            self._limits[bucket] = limit

    def shut(self, bucket: str, until_ns: int) -> None:
        """This bucket is not ours until then: the exchange has had enough, or somebody uses it."""
        self._shut_ns[bucket] = max(until_ns, self._shut_ns.get(bucket, 0))

    def take(self, action: str, now_ns: int, entry: bool = False) -> str:
        """The bucket that has room for one more now, which it uses; empty if none has."""
        for bucket in (action, TWINS.get(action, "")):
            if bucket and now_ns >= self._shut_ns.get(bucket, 0):
                share = USED * (FOR_ENTRIES if entry else 1.0)
                if self._used(bucket, now_ns) < max(1, int(self._limits[bucket] * share)):
                    self._flying[bucket].append(now_ns + ANSWER_NS)
                    return bucket
        return ""

    def load_pct(self, now_ns: int) -> dict[str, int]:
        """How much of the exchange's limit counts as used now, in each bucket that ever was, %."""
        known = sorted(self._flying)
        return {name: 100 * self._used(name, now_ns) // self._limits[name] for name in known}

    def give_back(self, bucket: str) -> None:
        """What room was taken for does not leave."""
        if self._flying[bucket]:
            self._flying[bucket].popleft()

    def answered(self, bucket: str, now_ns: int) -> None:
        """One that was under way has arrived, at some moment until now."""
        self.give_back(bucket)
        self._landed[bucket].append(now_ns + SECOND_NS)

    def _used(self, bucket: str, now_ns: int) -> int:
        """Orders that count now."""
        flying, landed = self._flying[bucket], self._landed[bucket]
        for counted in (flying, landed):
            while counted and counted[0] <= now_ns:
                counted.popleft()
        return len(flying) + len(landed)
