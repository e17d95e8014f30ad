"""look: the state of a running pipeline, as its own messages tell it."""

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from shared import messages as msg
from shared.bus import STREAMS, Bus
from shared.settings import Settings

CONTROL = "paper.sock"  # of the paper exchange
LISTEN_SECONDS = 2.6  # every process speaks each second: two words of each, and a rate


class Process(NamedTuple):
    """One supervised process; `feed_age_ms` and `rates` are None until it has spoken (twice)."""

    name: str
    state: str
    shard: str | None
    pid: int | None
    healthy: bool
    note: str
    feed_age_ms: int | None
    p50_us: int | None
    p99_us: int | None
    rates: dict[str, float] | None


class Heard:
    """The last word of each process, the one before, the mode and the positions."""

    def __init__(self) -> None:
        self.health: dict[str, list[tuple[float, msg.Health]]] = {}
        self.mode: msg.Mode | None = None
        self.positions: dict[str, msg.Position] = {}

    def take(self, message: Any) -> None:
        """One message from the bus."""
        if isinstance(message, msg.Health):
            name = msg.process_name(message.service, message.slot)
            self.health.setdefault(name, []).append((time.monotonic(), message))
        elif isinstance(message, msg.Mode):
            self.mode = message
        elif isinstance(message, msg.Position):
            self.positions[message.symbol] = message

    def healthy(self, name: str) -> bool:
        """Has said that it is ready, in its last word."""
        words = self.health.get(name, [])
        return bool(words and words[-1][1].ready)


def listener(settings: Settings) -> Bus:
    """A bus that hears what `Heard` wants to know."""
    topics = ("health.", "mode.", "position.")
    streams = {s.name: topics for s in STREAMS.values() if s.pattern == "PUB"}
    return Bus(settings.RUN_DIR, hears=streams, **settings.wires)


def listen(bus: Bus, seconds: float, heard: Heard) -> Heard:
    """Take in all that is said in so many seconds."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        for message, _ in bus.receive(left * 1000):
            heard.take(message)
    return heard


def process(
    name: str, state: str, pid: int, heard: Heard, answers: Callable[[], bool] | None
) -> Process:
    """One row; `answers` tells the health of a process that is not on the bus."""
    words = heard.health.get(name, [])
    if not words:
        healthy = bool(state == "RUNNING" and answers and answers())
        return Process(name, state, None, pid or None, healthy, "", None, None, None, None)
    (first_at, first), (at, last) = words[0], words[-1]
    rates = None
    if at > first_at:
        rates = {
            key: round((value - first.counters.get(key, 0)) / (at - first_at), 1)
            for key, value in last.counters.items()
        }
    age = last.ages_ms.get("feed", last.ages_ms.get("account"))
    healthy = last.ready and state == "RUNNING" and last.pid == pid
    shard = last.shard or None
    values = (last.note, age, last.p50_us, last.p99_us, rates)
    return Process(name, state, shard, pid, healthy, *values)


def auditor(run_dir: Path) -> dict[str, Any]:
    """What the paper exchange's control socket tells; empty where there is none."""
    try:
        with contextlib.closing(http.client.HTTPConnection("localhost", timeout=2)) as connection:
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.settimeout(2)
            connection.sock.connect(str(run_dir / CONTROL))
            connection.request("GET", "/")
            found: dict[str, Any] = json.loads(connection.getresponse().read())
            return found
    except (OSError, http.client.HTTPException):
        return {}


def report(processes: list[Process], heard: Heard, audited: dict[str, Any]) -> dict[str, Any]:
    """The status as data. Counts are None where nobody said them."""
    mode, keeper = heard.mode, heard.health.get("keeper")
    counters = keeper[-1][1].counters if keeper else {}
    return {
        "mode": mode.mode if mode else None,
        "mode_reason": mode.reason if mode else None,
        "lots": counters.get("lots"),
        "symbols": len(mode.symbols) if mode else None,
        "slots": mode.slots if mode else None,
        "working_orders": counters.get("working_orders"),
        "executions": counters.get("executions"),
        "differences": mode.differences if mode else None,
        "auditor_breaches": audited.get("breaches"),
        "auditor_lines": audited.get("lines", [])[-3:],
        "processes": [process._asdict() for process in processes],
    }


SHOWN_RATES = ("klines", "bars", "ARM", "accepted", "grants")


def show(console: Console, status: dict[str, Any]) -> None:
    """The status as a table."""
    table = Table(box=None, header_style="bold")
    for name in ("process", "state", "shard", "pid", "healthy", "feed age", "p50/p99", "rates", ""):
        right = name in ("pid", "feed age", "p50/p99")
        table.add_column(name, justify="right" if right else "left", no_wrap=True)
    for row in status["processes"]:
        rates = row["rates"] or {}
        table.add_row(
            row["name"],
            row["state"],
            row["shard"] or "",
            str(row["pid"] or ""),
            "[green]yes" if row["healthy"] else "[red]no",
            "" if row["feed_age_ms"] is None else f"{row['feed_age_ms']} ms",
            "" if row["p50_us"] is None else f"{row['p50_us']}/{row['p99_us']} us",
            " ".join(f"{key} {rates[key]:g}/s" for key in SHOWN_RATES if rates.get(key)),
            row["note"],
        )
    console.print(table)
    mode = status["mode"] or "unknown (the keeper is silent)"
    reason = f": {status['mode_reason']}" if status["mode_reason"] else ""
    console.print(f"mode [bold]{mode}[/bold]{reason}")
    names = ("lots", "symbols", "working_orders", "executions", "differences")
    words = (f"{name.replace('_', ' ')} {_count(status[name])}" for name in names)
    console.print("  ".join(words))
    if status["auditor_breaches"]:
        console.print(f"[red]auditor breaches {status['auditor_breaches']}, the latest:")
        for line in status["auditor_lines"]:
            console.print(f"  {line}")


def _count(value: int | None) -> str:
    return "?" if value is None else str(value)
