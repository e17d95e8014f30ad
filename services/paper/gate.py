"""gate: who may come in, and how often: signatures, windows, rate limits, bans. Pure.

Source: Bybit v5 guide (authentication) and rate limit rules; texts as seen on the wire.
"""

import hashlib
import hmac
from collections import defaultdict, deque
from collections.abc import Mapping
from typing import Any, NamedTuple

from services.paper.params import Refused

TIME_TEXT = "invalid request, please check your server timestamp or recv_window param."
READS_PER_SECOND, SLOW_READS = 50, {"/v5/account/fee-rate": 5, "/v5/user/query-api": 10}
WINDOW_S = 5.0  # of the limit on all requests of an address
BAN_S = 600.0
CONNECTIONS, CONNECTIONS_S = 500, 300.0
SIGNED = ("X-BAPI-API-KEY", "X-BAPI-TIMESTAMP", "X-BAPI-RECV-WINDOW", "X-BAPI-SIGN")


class Now(NamedTuple):
    """A moment on the three clocks: the exchange's wall clock, the market's, a monotonic one."""

    wall_ms: int
    market_ms: int
    mono_s: float


class Gate:
    """One account's keys and everybody's request counts.

    `limit` is orders a second in each bucket, `ip_limit` requests in 5 s; both may be changed.
    """

    def __init__(self, key: str, secret: str, limit: int, ip_limit: int) -> None:
        self._key, self._secret = key, secret.encode()
        self.limit, self.ip_limit = limit, ip_limit
        self.reset = ""  # "past" or "missing": how the reset header is wrong
        self.banned_until_s = 0.0
        self._calls: defaultdict[str, deque[float]] = defaultdict(deque)
        self._requests: deque[float] = deque()
        self._connections: deque[float] = deque()

    def banned(self, now: Now) -> bool:
        """Count a request of the one address there is; over the limit it is banned for a while."""
        if now.mono_s < self.banned_until_s:
            return True
        if _count(self._requests, now.mono_s, WINDOW_S) >= self.ip_limit:
            self.banned_until_s = now.mono_s + BAN_S
            return True
        self._requests.append(now.mono_s)
        return False

    def connects(self, now: Now) -> bool:
        """Count a new websocket; False once there were too many."""
        if _count(self._connections, now.mono_s, CONNECTIONS_S) >= CONNECTIONS:
            return False
        self._connections.append(now.mono_s)
        return now.mono_s >= self.banned_until_s

    def verify(self, headers: Mapping[str, str], payload: str, now: Now) -> None:
        """Signature over timestamp + key + recv_window + raw query or raw body. Raises Refused."""
        key, stamp, window, sign = (headers.get(name, "") for name in SIGNED)
        window = window or "5000"
        if key != self._key:
            raise Refused(10003, "API key is invalid.")
        origin = f"{stamp}{key}{window}{payload}"
        if not hmac.compare_digest(self._sign(origin).encode(), _bytes(sign)):
            raise Refused(10004, f"error sign! origin_string[{origin}]")
        self.check_window(stamp, window, now)

    def check_window(self, stamp: Any, window: Any, now: Now) -> None:
        """server - recv_window <= timestamp < server + 1000. Raises Refused."""
        try:
            behind_ms = now.wall_ms - int(stamp)
            inside = -1000 < behind_ms <= int(window or 5000)
        except (TypeError, ValueError, OverflowError):
            inside = False
        if not inside:
            stamps = f"req_timestamp[{stamp}],server_timestamp[{now.wall_ms}],recv_window[{window}]"
            raise Refused(10002, f"{TIME_TEXT} {stamps}")

    def knows(self, key: Any, expires: Any, sign: Any, now: Now) -> bool:
        """The login of a socket: the signature of "GET/realtime" + expiry, not yet expired."""
        signed = self._sign(f"GET/realtime{expires}").encode()
        if key != self._key or not hmac.compare_digest(signed, _bytes(str(sign))):
            return False
        text = str(expires)
        return text.isdecimal() and len(text) < 20 and int(text) > now.wall_ms

    def take(self, bucket: str, writes: bool, count: int, now: Now) -> tuple[int, dict[str, str]]:
        """How many of `count` requests still fit this second, and the headers that say so."""
        limit = self.limit if writes else SLOW_READS.get(bucket, READS_PER_SECOND)
        calls = self._calls[bucket]
        fit = min(count, max(0, limit - _count(calls, now.mono_s, 1.0)))
        calls.extend([now.mono_s] * fit)
        wait_ms = int((calls[0] + 1 - now.mono_s) * 1000) + 1 if fit < count and calls else 0
        reset_ms = now.wall_ms + wait_ms
        headers = {
            "X-Bapi-Limit": str(limit),
            "X-Bapi-Limit-Status": str(limit - len(calls)),
            "X-Bapi-Limit-Reset-Timestamp": str(reset_ms),
        }
        if self.reset == "missing":
            del headers["X-Bapi-Limit-Reset-Timestamp"]
        elif self.reset == "past":
            headers["X-Bapi-Limit-Reset-Timestamp"] = str(now.wall_ms - 1000)
        return fit, headers

    def _sign(self, text: str) -> str:
        return hmac.new(self._secret, _bytes(text), hashlib.sha256).hexdigest()


def _count(stamps: deque[float], now_s: float, window_s: float) -> int:
    """How many of the stamps lie inside the window; older ones are dropped."""
    while stamps and now_s - stamps[0] >= window_s:
        stamps.popleft()
    return len(stamps)


def _bytes(text: str) -> bytes:
    """What a client sent, whatever it was."""
    return text.encode(errors="surrogatepass")
