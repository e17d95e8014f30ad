"""faults: what goes wrong on demand, and when. Pure: rules in, effects out; chance by seed.

A fault is a JSON object: `where` (http, ws, match, venue), `action`, what it matches, its terms.
`times` is how often it strikes (default 1, 0 is until healed), `nth` the first match that it
strikes, `p` a chance instead, `for_s` how long it lives.
"""

from collections import deque
from decimal import Decimal, InvalidOperation
from random import Random
from typing import Any

import orjson

from services.paper.order import Row

ACTIONS: dict[str, tuple[str, ...]] = {
    "http": (
        *("drop_before", "drop_after", "delay", "status", "ret", "garbage", "truncate", "dup"),
        *("stale", "partial"),
    ),
    "ws": (
        *("mute", "keep_pong", "half_open", "close", "drop", "dup", "delay", "reorder"),
        *("stale_replay", "garbage", "ts_offset"),
    ),
    "match": ("partial", "fill_before_cancel", "fill_before_amend", "reject_after_ack", "gap"),
    "venue": (
        *("restart", "maintenance", "clock_offset", "rate_limit", "ip_ban", "delist", "list"),
        *("instrument_update", "price_band", "adl", "liquidate", "foreign_order", "foreign_fill"),
        *("balance", "mark_offset", "account_change", "hold", "trade", "fund"),
    ),
}
AT_ONCE = ("close", "gap")  # acts, not rules
LASTING = ("mute", "keep_pong", "half_open")  # strike until healed or `for_s`
NAMES = {
    *("where", "action", "path", "method", "kind", "topic", "symbol", "times", "nth", "p", "for_s"),
    *("ms", "status", "code", "text", "after", "k", "age_s", "window", "share", "reason", "pct"),
    *("limit", "reset", "side", "qty", "price", "queue", "rate", "amount", "mode", "leverage"),
    *("tick_size", "qty_step", "min_order_qty", "max_order_qty", "market"),
}
TEXTS = {"path", "method", "kind", "topic", "symbol", "text", "reason", "reset", "side", "mode"}
DECIMALS = {"share", "pct", "qty", "price", "rate", "amount", "leverage", "tick_size", "qty_step"}
DECIMALS |= {"min_order_qty", "max_order_qty"}
NUMBERS = {"times", "nth", "p", "for_s", "ms", "status", "code", "k", "age_s", "window", "limit"}
STEP_S = 0.05  # reordered frames come up to `window` times this late
KEPT_FRAMES = 50  # of a socket, for stale_replay


class BadFault(ValueError):
    """A fault that cannot be: says which and why."""


class Rule:
    """One fault and how often it has matched and struck."""

    __slots__ = ("action", "kept", "left", "number", "seen", "terms", "until_s", "where")

    def __init__(self, number: int, fault: Row, now_s: float) -> None:
        self.number, self.where, self.action = number, fault["where"], fault["action"]
        self.terms = fault
        endless = self.action in LASTING or "p" in fault
        self.left = int(fault.get("times", 0 if endless else 1)) or -1
        self.until_s = now_s + fault["for_s"] if fault.get("for_s") else float("inf")
        self.seen = 0
        self.kept: deque[bytes] = deque(maxlen=KEPT_FRAMES)


class Faults:
    """The rules in force and the plan of those to come."""

    def __init__(self, seed: int) -> None:
        self.rules: list[Rule] = []
        self.struck = 0
        self.failed: list[str] = []  # planned faults that could not be done
        self._plan: list[tuple[float, Row]] = []
        self._random, self._number, self._now_s = Random(seed), 0, 0.0

    def add(self, fault: Any, now_s: float) -> Rule:
        """A rule from its JSON object. Raises BadFault."""
        self._number += 1
        rule = Rule(self._number, checked(fault), now_s)
        if rule.where != "venue" and rule.action not in AT_ONCE:
            self.rules.append(rule)
        return rule

    def plan(self, plan: Any, now_s: float) -> int:
        """Faults to come: a list of [seconds from now, fault]; how many. Raises BadFault."""
        if not isinstance(plan, list) or not all(
            isinstance(one, list) and len(one) == 2 and _is_number(one[0]) for one in plan
        ):
            raise BadFault("plan: expected a list of [seconds, fault]")
        self._plan += [(now_s + float(at_s), checked(fault)) for at_s, fault in plan]
        self._plan.sort(key=lambda one: one[0])
        return len(plan)

    def due(self, now_s: float) -> list[Row]:
        """Faults of the plan whose time has come; rules whose time is over end."""
        self._now_s = now_s
        if self.rules:
            self.rules = [rule for rule in self.rules if rule.until_s > now_s and rule.left]
        found: list[Row] = []
        while self._plan and self._plan[0][0] <= now_s:
            found.append(self._plan.pop(0)[1])
        return found

    def heal(self) -> None:
        """No fault any more, and none to come."""
        self.rules.clear()
        self._plan.clear()

    def http(self, method: str, path: str) -> Rule | None:
        """The fault that strikes this request."""
        for rule in self.rules:
            terms = rule.terms
            if (
                rule.where == "http"
                and path.startswith(terms.get("path", ""))
                and terms.get("method", method) == method
                and self._strikes(rule)
            ):
                return rule
        return None

    def twist(self, action: str, symbol: str) -> Row | None:
        """The terms of a matching fault that strikes this symbol now."""
        for rule in self.rules:
            wanted = rule.terms.get("symbol", symbol) == symbol
            if (rule.where, rule.action) == ("match", action) and wanted and self._strikes(rule):
                return rule.terms
        return None

    def deaf(self, kind: str, actions: tuple[str, ...] = ("half_open",)) -> bool:
        """Whether what this kind of socket says is lost."""
        return any(
            rule.action in actions and rule.terms.get("kind", kind) == kind
            for rule in self.rules
            if rule.where == "ws"
        )

    def frames(self, kind: str, topic: str, frame: bytes) -> list[tuple[float, bytes, bool]]:
        """What becomes of one frame: (delay in seconds, frame, whether others may overtake it)
        each; nothing if it is lost."""
        frames = [(0.0, frame, False)]
        for rule in self.rules:
            terms = rule.terms
            if rule.where != "ws" or terms.get("kind", kind) != kind:
                continue
            if not topic.startswith(terms.get("topic", "")):
                continue
            if rule.action == "keep_pong" and topic in ("pong", "auth", "subscribe"):
                continue
            if rule.action == "stale_replay":
                rule.kept.append(frame)
            if self._strikes(rule):
                frames = [
                    (*out, loose or rule.action == "reorder")
                    for at_s, one, loose in frames
                    for out in self._bend(rule, at_s, one)
                ]
        return frames

    def _bend(self, rule: Rule, at_s: float, frame: bytes) -> list[tuple[float, bytes]]:
        """One frame under one fault."""
        terms = rule.terms
        if rule.action in ("mute", "keep_pong", "half_open", "drop"):
            return []
        if rule.action == "dup":
            return [(at_s, frame), (at_s, frame)]
        if rule.action == "delay":
            return [(at_s + terms.get("ms", 1000) / 1000, frame)]
        if rule.action == "reorder":
            return [(at_s + self._random.uniform(0, terms.get("window", 4) * STEP_S), frame)]
        if rule.action == "stale_replay":
            return [(at_s, frame), (at_s, self._random.choice(rule.kept))]
        if rule.action == "garbage":
            return [(at_s, b'{"topic":"' + frame[: len(frame) // 2])]
        return [(at_s, _shifted(frame, int(terms.get("ms", 0))))]

    def _strikes(self, rule: Rule) -> bool:
        """Count one match; whether the fault strikes it."""
        if not rule.left or self._now_s >= rule.until_s:
            return False
        rule.seen += 1
        if rule.seen < rule.terms.get("nth", 1):
            return False
        if "p" in rule.terms and self._random.random() >= rule.terms["p"]:
            return False
        rule.left -= 1 if rule.left > 0 else 0
        self.struck += 1
        return True


def checked(fault: Any) -> Row:
    """The fault, if it can be one. Raises BadFault."""
    if not isinstance(fault, dict):
        raise BadFault("fault: expected an object")
    where, action = fault.get("where"), fault.get("action")
    if not isinstance(where, str) or where not in ACTIONS:
        raise BadFault(f"where: one of {', '.join(ACTIONS)}, got {where!r}")
    if action not in ACTIONS[where]:
        raise BadFault(f"action: of {where} one of {', '.join(ACTIONS[where])}, got {action!r}")
    if unknown := set(fault) - NAMES:
        raise BadFault(f"unknown: {', '.join(sorted(unknown))}")
    for name in sorted(set(fault)):
        value = fault[name]
        if name in NUMBERS and not _is_number(value):
            raise BadFault(f"{name}: expected a number, got {value!r}")
        if name in TEXTS and not isinstance(value, str):
            raise BadFault(f"{name}: expected a text, got {value!r}")
        if name in DECIMALS and not _is_decimal(value):
            raise BadFault(f"{name}: expected a decimal number, got {value!r}")
    return fault


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15


def _is_decimal(value: Any) -> bool:
    try:
        return isinstance(value, int | float | str) and abs(Decimal(str(value))) < Decimal("1e15")
    except InvalidOperation:
        return False


def random_plan(seed: int, seconds: float, every_s: float, symbols: list[str]) -> list[Any]:
    """A fault about every `every_s` seconds, each of which heals by itself."""
    chance, plan, at_s = Random(seed), [], 0.0
    while (at_s := at_s + chance.uniform(0.5, 1.5) * every_s) < seconds:
        symbol, kind = chance.choice(symbols), chance.choice(("public", "private", "trade"))
        path = chance.choice(("/v5/order/create", "/v5/order/amend", "/v5/order/cancel"))
        faults: list[Row] = [
            *({"where": "http", "action": a, "path": path} for a in ("drop_before", "drop_after")),
            {"where": "http", "action": "delay", "path": path, "ms": chance.choice((300, 3000))},
            {"where": "http", "action": "status", "path": "/v5/", "status": 502},
            {"where": "http", "action": "ret", "path": path, "code": 10016, "after": True},
            {"where": "http", "action": "garbage", "path": "/v5/", "times": 2},
            {"where": "ws", "action": "close", "kind": kind},
            {"where": "ws", "action": "half_open", "kind": kind, "for_s": 8},
            {"where": "ws", "action": "mute", "kind": kind, "for_s": 8},
            {"where": "ws", "action": "drop", "kind": "private", "times": 5},
            {"where": "ws", "action": "dup", "kind": "private", "times": 20},
            {"where": "ws", "action": "delay", "kind": "private", "ms": 500, "times": 10},
            {"where": "ws", "action": "reorder", "kind": "private", "window": 4, "times": 12},
            {"where": "ws", "action": "stale_replay", "kind": "private", "times": 10},
            {"where": "ws", "action": "garbage", "kind": kind, "times": 2},
            {"where": "match", "action": "partial", "times": 3},
            {"where": "match", "action": "fill_before_cancel"},
            {"where": "match", "action": "fill_before_amend"},
            {"where": "match", "action": "reject_after_ack"},
            {"where": "match", "action": "gap", "symbol": symbol, "pct": chance.choice((-2, 2))},
            {"where": "venue", "action": "restart", "ms": 1500},
            {"where": "venue", "action": "rate_limit", "limit": 3, "ms": 3000},
            {"where": "venue", "action": "clock_offset", "ms": 400, "for_s": 10},
        ]
        plan.append([round(at_s, 3), chance.choice(faults)])
    return plan


def _shifted(frame: bytes, ms: int) -> bytes:
    """A push whose stamps are wrong by so much."""
    try:
        message = orjson.loads(frame)
    except orjson.JSONDecodeError:
        return frame  # another fault has broken it
    for name in ("ts", "creationTime", "cts"):
        if name in message:
            message[name] += ms
    rows = message.get("data")
    for row in rows if isinstance(rows, list) else ():
        for name in ("timestamp", "T"):
            if isinstance(row, dict) and name in row:
                row[name] += ms
    return orjson.dumps(message)
