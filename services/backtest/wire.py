"""wire: the exchange's door for actors that run in one thread, on simulated time.

The same translation as `shared/bybit`, without pybit, threads and sockets: frames go to the paper
exchange's sessions and come back when they are due; requests are signed and answered at once. A
link that is cut, silent or deaf is found and built again as its supervisor would.
"""

import hashlib
import hmac
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import urlencode

import orjson

from services.paper.gate import Now
from services.paper.sessions import Session
from services.paper.venue import Request, Venue
from shared import bybit
from shared import messages as msg
from shared.settings import Settings

NS = 1_000_000_000
PATHS = {
    "get_instruments_info": "/v5/market/instruments-info",
    "get_kline": "/v5/market/kline",
    "get_open_orders": "/v5/order/realtime",
    "get_order_history": "/v5/order/history",
    "get_executions": "/v5/execution/list",
    "get_positions": "/v5/position/list",
    "get_wallet_balance": "/v5/account/wallet-balance",
    "get_api_key_information": "/v5/user/query-api",
    "switch_position_mode": "/v5/position/switch-mode",
    "set_leverage": "/v5/position/set-leverage",
    "place_order": "/v5/order/create",
    "amend_order": "/v5/order/amend",
    "cancel_order": "/v5/order/cancel",
    "place_batch_order": "/v5/order/create-batch",
    "amend_batch_order": "/v5/order/amend-batch",
    "cancel_batch_order": "/v5/order/cancel-batch",
}
CONFIRM_S = bybit.CONFIRM_SECONDS
LOOK_S = 0.1  # how often a link looks after itself
SOCKETS = {"public": "/v5/public/linear", "private": "/v5/private", "trade": "/v5/trade"}


def at_venue(venue: Venue, now: Now) -> Now:
    """The bot's moment by the exchange's clock: here market time is the right time of day."""
    return venue.at(now.market_ms, now.market_ms, now.mono_s)


class Link:
    """One websocket and its supervision: ping, pong, silence, back-off, login, subscriptions."""

    def __init__(self, name: str, door: "Door", topics: Iterable[str], answers: int) -> None:
        self.name, self.kind = name, name.partition("-")[0]
        self._door, self._topics, self._answers = door, list(topics), answers
        self._without: list[str] = []
        self._session: Session | None = None
        self._look_s = 0.0
        self._retry_s = self._failures = self._confirmed = 0.0
        self._opened_s = self._pinged_s = self._ponged_s = self._heard_s = 0.0
        self.up = False

    def quiet(self, now_s: float) -> bool:
        """Whether there is nothing to read, and nothing to look after yet."""
        session = self._session
        if session is None or session.close_code or not self.up or now_s >= self._look_s:
            return False
        return not session.outbox or session.outbox[0][0] > now_s

    def poll(self, now: Now) -> list[Any]:
        """What has come in, and what became of the connection."""
        if self._session is None:
            if now.mono_s >= self._retry_s:
                self._open(now)
            return []
        messages: list[Any] = []
        self._look_s = now.mono_s + LOOK_S
        outbox = self._session.outbox
        while outbox and outbox[0][0] <= now.mono_s:
            messages += self._heard(outbox.pop(0)[1], now)
        if not self.up and self._confirmed >= self._answers:
            self.up, self._failures = True, 0
            missing = f"without {', '.join(self._without)}" if self._without else ""
            messages.append(msg.Link(self.name, True, missing))
        if reason := self._lost(now):
            messages.append(self.close(reason, now))
        return messages

    def say(self, frame: Any, now: Now) -> None:
        """One frame out."""
        if self._session:
            self._door.venue.sessions.heard(
                self._session, orjson.dumps(frame), at_venue(self._door.venue, now)
            )

    def _open(self, now: Now) -> None:
        venue = self._door.venue
        down = now.mono_s < max(venue.down_until_s, venue.maintained_until_s)
        theirs = at_venue(venue, now)
        self._session = None if down else venue.sessions.connect(SOCKETS[self.kind], "", theirs)
        if self._session is None:
            self.close("refused", now)
            return
        self._confirmed, self._opened_s = 0, now.mono_s
        self._pinged_s = self._ponged_s = self._heard_s = now.mono_s
        if self.kind != "public":
            self.say(self._door.login(now), now)
        if self._topics:
            self.say({"op": "subscribe", "req_id": self.name, "args": self._topics}, now)

    def _heard(self, frame: bytes, now: Now) -> list[Any]:
        try:
            message = orjson.loads(frame)
            if "topic" in message or message["op"].startswith("order."):
                self._heard_s = now.mono_s
                return self._door.translate(message)
            if message["op"] in ("auth", "subscribe"):
                good = message.get("success", message.get("retCode") == 0)
                self._confirmed += 1 if good else -1_000
                bad = bybit.refused_topic(message.get("ret_msg", ""))
                if bad in self._topics:
                    self._topics.remove(bad)
                    self._without.append(bad)
            else:
                self._ponged_s = now.mono_s
        except bybit.BAD_FRAME:
            self._door.bad_frames += 1
        return []

    def _lost(self, now: Now) -> str:
        """Why this connection is no longer one."""
        session = self._session
        if session is None or session.close_code:
            return "closed"
        if not self.up and (self._confirmed < 0 or now.mono_s - self._opened_s > CONFIRM_S):
            return "no answer to auth or subscribe"
        if self._pinged_s > self._ponged_s and now.mono_s - self._pinged_s >= bybit.PONG_SECONDS:
            return "no pong"
        if now.mono_s - self._pinged_s >= bybit.PING_SECONDS:
            self._pinged_s = now.mono_s
            self.say({"op": "ping", "req_id": "p"}, now)
        if self.kind == "public" and now.mono_s - self._heard_s > self._silent_s:
            return f"silent for {self._silent_s:.0f} s"
        return ""

    @property
    def _silent_s(self) -> float:
        return max(bybit.SILENT_SECONDS, bybit.PUSH_SECONDS / max(1, len(self._topics)))

    def close(self, reason: str, now: Now) -> msg.Link:
        """Cut it; it is built again after a pause."""
        if self._session:
            self._door.venue.sessions.disconnect(self._session)
        steps = bybit.BACKOFF_SECONDS
        self._failures = 0 if self.up else min(self._failures + 1, len(steps) - 1)
        self._session, self.up = None, False
        self._retry_s = now.mono_s + steps[int(self._failures)]
        return msg.Link(self.name, False, reason)


class Door:
    """The exchange's door of one actor. `poll` brings what is due."""

    takes = (msg.Subscribe, msg.Fetch, msg.OrderRequest, msg.Rebuild)

    def __init__(
        self, settings: Settings, venue: Venue, links: Iterable[str], now: Callable[[], Now]
    ) -> None:
        self._settings, self.venue, self._now = settings, venue, now
        clock = bybit.Clock(lambda: int(now().mono_s * NS), lambda: now().wall_ms)
        self._clock, self._rest = clock, bybit.Rest(settings, self._call, clock)
        self._due: deque[tuple[float, Any]] = deque()
        self._sent: dict[str, msg.OrderRequest] = {}
        self._late_s = 0.0
        self.bad_frames = 0
        self.links: dict[str, Link] = {}
        if "private" in links:
            self.links["private"] = Link("private", self, bybit.PRIVATE_TOPICS, 2)
        if "trade" in links:
            self.links["trade"] = Link("trade", self, (), 1)

    def poll(self, now: Now) -> list[Any]:
        """Answers and frames whose time has come, and the state of the links."""
        found: list[Any] = []
        for link in self.links.values():
            if not link.quiet(now.mono_s):
                found += link.poll(now)
        if self._due:
            late = [one for one in self._due if one[0] > now.mono_s]
            found += [message for at_s, message in self._due if at_s <= now.mono_s]
            self._due = deque(late)
        return found

    def send(self, message: Any) -> None:
        """Take one message of the actor."""
        if isinstance(message, msg.Subscribe):
            now = self._now()
            for name in [name for name in self.links if name.startswith("public")]:
                self.links.pop(name).close("resubscribed", now)
            for number, part in enumerate(bybit.parts(message.topics)):
                self.links[f"public-{number}"] = Link(f"public-{number}", self, part, 1)
        elif isinstance(message, msg.Fetch):
            self._later(self._rest.fetch(message))
        elif isinstance(message, msg.Rebuild):
            self._due.append((0.0, self.links[message.name].close(message.reason, self._now())))
        elif not message.outcome and not self._by_socket(message):
            self._later(self._rest.order(message))

    def translate(self, frame: Any) -> list[Any]:
        """Our messages of one frame. Raises one of BAD_FRAME."""
        now_ns = self._clock.now_ns()
        if "topic" not in frame:
            request = self._sent.pop(frame["reqId"], None)
            said = (frame["retCode"], frame["retMsg"], frame.get("header"), frame.get("retExtInfo"))
            return [bybit.answered(request, *said, now_ns)] if request else []
        return bybit.pushed(frame, now_ns)

    def login(self, now: Now) -> Any:
        """The auth frame of a private or trade socket."""
        expires = now.wall_ms + 10_000
        key, proof = self._settings.api_key, self._sign(f"GET/realtime{expires}")
        return {"op": "auth", "args": [key, expires, proof]}

    def _by_socket(self, request: msg.OrderRequest) -> bool:
        link = self.links.get("trade")
        if link is None or not link.up:
            return False
        frame = bybit.frame_of(request, self._settings.RECV_WINDOW_MS, self._clock.wall_ms())
        self._sent[frame["reqId"]] = request
        link.say(frame, self._now())
        return True

    def _later(self, answer: Any) -> None:
        """An answer, as late as its requests were."""
        self._due.append((self._now().mono_s + self._late_s, answer))
        self._late_s = 0.0

    def _call(self, verb: str, **params: Any) -> tuple[Any, Any]:
        """One pybit verb, answered by the venue; raises what pybit would."""
        path, now = PATHS[verb], self._now()
        method = "GET" if verb.startswith("get_") else "POST"
        given = {name: value for name, value in params.items() if value is not None}
        query = urlencode(given) if method == "GET" else ""
        body = "" if method == "GET" else orjson.dumps(given).decode()
        stamp, window = str(self._clock.wall_ms()), str(self._settings.RECV_WINDOW_MS)
        key = self._settings.api_key
        headers = {
            "X-BAPI-API-KEY": key,
            "X-BAPI-TIMESTAMP": stamp,
            "X-BAPI-RECV-WINDOW": window,
            "X-BAPI-SIGN": self._sign(f"{stamp}{key}{window}{query or body}"),
        }
        texts = {name: str(value) for name, value in given.items()}
        asked = Request(method, path, query, texts, headers, body)
        answer = self.venue.http(asked, at_venue(self.venue, now))
        self._late_s += min(answer.delay_s, bybit.REST_TIMEOUT_SECONDS)
        if answer.drop or answer.truncate or answer.delay_s > bybit.REST_TIMEOUT_SECONDS:
            raise bybit.failure("no answer")
        if answer.status != 200:
            raise bybit.failure(f"http {answer.status}", answer.status)
        found = orjson.loads(answer.body)
        if found["retCode"]:
            raise bybit.failure(found["retMsg"], code=found["retCode"])
        return found, answer.headers

    def _sign(self, text: str) -> str:
        secret = self._settings.api_secret.encode()
        return hmac.new(secret, text.encode(), hashlib.sha256).hexdigest()
