"""sessions: Bybit v5's websockets, frame by frame: login, subscriptions, pings, order entry. Pure.

A session's `outbox` holds (monotonic second, frame) pairs, in the order in which they must leave.
"""

from bisect import insort
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import orjson

from services.paper.faults import Faults
from services.paper.gate import Gate, Now
from services.paper.order import Row
from services.paper.topics import Topics

MAX_ARGS_CHARS = 21_000
IDLE_S, SHORTEST_IDLE_S = 600.0, 30.0  # a socket that says nothing is cut
PRIVATE_TOPICS = ("order", "execution", "execution.fast", "wallet", "position", "dcp.future")
KINDS = {"/v5/public/linear": "public", "/v5/private": "private", "/v5/trade": "trade"}

Order = Callable[[Row, Now], tuple[Row, float] | None]
"""A trade socket's request to its reply and its delay in seconds; None if it is lost."""


class Session:
    """One websocket: what it hears, and the frames that are on their way to it."""

    __slots__ = (
        *("authenticated", "close_code", "heard_s", "idle_s", "kind", "number", "outbox"),
        *("ready_s", "topics", "used_ids"),
    )

    def __init__(self, kind: str, number: int, idle_s: float, now: Now) -> None:
        self.kind, self.number, self.idle_s = kind, number, idle_s
        self.topics: set[str] = set()
        self.used_ids: set[str] = set()
        self.authenticated = False
        self.heard_s = self.ready_s = now.mono_s
        self.outbox: list[tuple[float, bytes]] = []
        self.close_code = 0  # the exchange hangs up with this code; 1006 is without a word


class Sessions:
    """All sockets and who hears what."""

    def __init__(
        self, gate: Gate, faults: Faults, topics: Callable[[], Topics], order: Order, ack_s: float
    ) -> None:
        self.open: set[Session] = set()
        self.dirty: set[Session] = set()  # have frames to send, or are to be closed
        self._gate, self._faults, self._topics = gate, faults, topics
        self._order, self._ack_s = order, ack_s
        self._subscribers: defaultdict[str, dict[Session, None]] = defaultdict(dict)  # in order
        self._number = 0

    def connect(self, path: str, max_active: str, now: Now) -> Session | None:
        """A new socket; None if there were too many of late."""
        if not self._gate.connects(now):
            return None
        self._number += 1
        seconds = max_active.removesuffix("s").removesuffix("m")
        scale = 60 if max_active.endswith("m") else 1
        asked = int(seconds) * scale if seconds.isdecimal() and len(seconds) < 5 else IDLE_S
        idle_s = min(max(float(asked), SHORTEST_IDLE_S), IDLE_S)
        session = Session(KINDS[path], self._number, idle_s, now)
        self.open.add(session)
        return session

    def disconnect(self, session: Session) -> None:
        """It is gone."""
        self.open.discard(session)
        self.dirty.discard(session)
        for topic in list(session.topics):
            self._leave(session, topic)

    def close(self, kind: str, code: int) -> None:
        """Hang up on every socket of a kind, "" for all."""
        for session in sorted(self.open, key=lambda one: one.number):
            if kind in ("", session.kind):
                session.close_code = code
                self.dirty.add(session)

    def cut_idle(self, now: Now) -> None:
        """Hang up on those who have not said anything for too long."""
        for session in self.open:
            if now.mono_s - session.heard_s > session.idle_s:
                session.close_code = 1000
                self.dirty.add(session)

    def wanted(self, topic: str) -> bool:
        """Whether anybody hears this topic."""
        return bool(self._subscribers.get(topic))

    def publish(self, topic: str, frame: bytes, now: Now, delay_s: float = 0.0) -> None:
        """One push to all who hear its topic."""
        for session in self._subscribers.get(topic, ()):
            self._send(session, topic, frame, now, delay_s)

    def heard(self, session: Session, text: str | bytes, now: Now) -> None:
        """One frame of a client."""
        if self._faults.deaf(session.kind):
            return
        session.heard_s = now.mono_s
        try:
            message = orjson.loads(text)
            op = message["op"]
        except (orjson.JSONDecodeError, TypeError, KeyError):
            self._send(session, "error", _reply(session, {}, False, "error:invalid op"), now)
            return
        args = message.get("args", [])
        if not isinstance(args, list) or not isinstance(op, str):
            self._send(session, "error", _reply(session, message, False, "error:invalid args"), now)
        elif op == "ping":
            self._send(session, "pong", _pong(session, message, now), now)
        elif op == "auth":
            self._send(session, "auth", self._auth(session, message, now), now)
        elif session.kind == "trade":
            self._trade(session, message, now)
        elif op == "subscribe":
            self._subscribe(session, message, args, now)
        elif op == "unsubscribe":
            for topic in args:
                self._leave(session, topic)
            self._send(session, "subscribe", _reply(session, message, True, ""), now)
        else:
            self._send(session, "error", _reply(session, message, False, "error:invalid op"), now)

    def _send(
        self, session: Session, topic: str, frame: bytes, now: Now, delay_s: float = 0.0
    ) -> None:
        """Into the outbox, in order: a connection never overtakes itself."""
        frames: Iterable[tuple[float, bytes, bool]] = ((0.0, frame, False),)
        if self._faults.rules:
            frames = self._faults.frames(session.kind, topic, frame)
        for later_s, one, loose in frames:
            at_s = max(session.ready_s, now.mono_s + delay_s + later_s)
            if not loose:
                session.ready_s = at_s
            insort(session.outbox, (at_s, one), key=_when)
        self.dirty.add(session)

    def _auth(self, session: Session, message: Row, now: Now) -> bytes:
        """`args`: key, expiry in ms (number or text), signature."""
        key, expires, sign = [*message.get("args", ()), "", "", ""][:3]
        again = session.kind == "trade" and session.authenticated
        session.authenticated = again or self._gate.knows(key, expires, sign, now)
        if session.kind != "trade":
            text = "" if session.authenticated else "Params Error"
            return _reply(session, message, session.authenticated, text)
        code, text = (0, "OK") if session.authenticated else (10004, "error sign!")
        if again:
            code, text = 20001, "Repeat auth"
        row = {"retCode": code, "retMsg": text, "op": "auth", "connId": _name(session)}
        return orjson.dumps(row)

    def _subscribe(self, session: Session, message: Row, args: list[Any], now: Now) -> None:
        error = self._refusal(session, args)
        if not error:
            for topic in args:
                session.topics.add(topic)
                self._subscribers[topic][session] = None
                if session.kind == "public" and (
                    frame := self._topics().snapshot(topic, now.market_ms)
                ):
                    self._send(session, topic, frame, now, self._ack_s)
        reply = _reply(session, message, not error, error)
        self._send(session, "subscribe", reply, now, self._ack_s)

    def _refusal(self, session: Session, args: list[Any]) -> str:
        """Why these topics cannot be heard; empty if they can."""
        if not args or not all(isinstance(topic, str) for topic in args):
            return "error:invalid args"
        if session.kind == "private" and not session.authenticated:
            return "error:request not authorized"
        if sum(len(topic) + 3 for topic in (*session.topics, *args)) > MAX_ARGS_CHARS:
            return "error:args length over 21000"
        for place, topic in enumerate(args):
            if topic in session.topics or topic in args[:place]:
                return f"error:already subscribed,topic:{topic}"
            served = topic.removesuffix(".linear") in PRIVATE_TOPICS
            if session.kind == "public":
                served = self._topics().serves(topic)
            if not served:
                return f"error:handler not found,topic:{topic}"
        return ""

    def _leave(self, session: Session, topic: Any) -> None:
        if not isinstance(topic, str) or topic not in session.topics:
            return
        session.topics.discard(topic)
        self._subscribers[topic].pop(session, None)
        if not self._subscribers[topic]:
            del self._subscribers[topic]
            if session.kind == "public":
                self._topics().forget(topic)

    def _trade(self, session: Session, message: Row, now: Now) -> None:
        """Order entry: `order.create` and so on, `args` with one object."""
        req_id = message.get("reqId")
        error: tuple[int, str] | None = None
        if not session.authenticated:
            error = 10005, "Permission denied"
        elif req_id is not None and (not isinstance(req_id, str | int) or len(str(req_id)) > 36):
            error = 10001, "params error: reqId invalid"
        elif req_id is not None and str(req_id) in session.used_ids:
            error = 20006, "Duplicate reqId"
        answered: tuple[Row, float] | None = None
        if error is None:
            if req_id is not None:
                session.used_ids.add(str(req_id))
            answered = self._order(message, now)
            if answered is None:
                return
        row, delay_s = answered or (
            {"retCode": error[0], "retMsg": error[1], "data": {}, "retExtInfo": {}}
            if error
            else {},
            self._ack_s,
        )
        stamps = {"Traceid": f"{session.number}", "Timenow": str(now.wall_ms)}
        reply = {
            **({"reqId": req_id} if req_id is not None else {}),
            "op": message["op"],
            "connId": _name(session),
            **row,
            "header": {**row.get("header", {}), **stamps},
        }
        self._send(session, str(message["op"]), orjson.dumps(reply), now, delay_s)


def _when(pair: tuple[float, bytes]) -> float:
    return pair[0]


def _name(session: Session) -> str:
    return f"paper-{session.number}"


def _reply(session: Session, message: Row, success: bool, text: str) -> bytes:
    echo = {"req_id": message["req_id"]} if "req_id" in message else {}
    row = {"success": success, "ret_msg": text, "conn_id": _name(session), **echo}
    return orjson.dumps({**row, "op": message.get("op", "")})


def _pong(session: Session, message: Row, now: Now) -> bytes:
    """Each kind of socket has its own."""
    stamp = [str(now.wall_ms)]
    if session.kind == "public":
        return _reply(session, message, True, "pong")
    if session.kind == "trade":
        row = {"retCode": 0, "retMsg": "OK", "op": "pong", "data": stamp, "connId": _name(session)}
        return orjson.dumps(row)
    echo = {"req_id": message["req_id"]} if "req_id" in message else {}
    return orjson.dumps({**echo, "op": "pong", "args": stamp, "conn_id": _name(session)})
