"""tap: what the processes say, as they say it. Subscribes to everything, changes nothing."""

import argparse
import sys
import time
from collections.abc import Iterator
from typing import Any

import orjson
from rich.console import Console
from rich.text import Text

from shared.bus import STREAMS, Bus
from shared.messages import Quote
from shared.settings import running
from shared.terminal import ending, whole

COLOURS = {
    "Kline": "dim",
    "Quote": "cyan",
    "OrderRequest": "yellow",
    "OrderUpdate": "blue",
    "Execution": "bold green",
    "Position": "magenta",
    "Mode": "bold red",
    "Health": "dim",
}
PATIENCE_S = 5.0  # every process speaks each second
REPEATED = {"Health", "Mode"}  # said every tick, shown on demand only


def latency_us(message: Any, now_ns: int) -> int | None:
    """Microseconds from the message's cause: the kline, the decision or the exchange's answer."""
    stamps = ("answered_ns", "decided_ns", "recv_ns")
    cause_ns = next((ns for name in stamps if (ns := getattr(message, name, 0))), 0)
    return (now_ns - cause_ns) // 1000 if cause_ns else None


def messages(bus: Bus, topic: str, symbol: str) -> Iterator[Any]:
    """Every message of the kinds and the symbol that were asked for, for ever. Where none comes,
    stderr says so, once."""
    patient_until_s: float | None = time.monotonic() + PATIENCE_S
    heard = False
    while True:
        if patient_until_s and time.monotonic() > patient_until_s:
            what = " ".join(filter(None, (topic, symbol))) or "orders"
            silent = f"nothing was heard of {what} yet" if heard else "nothing runs here: make up"
            print(f"tap: {silent}", file=sys.stderr)
            patient_until_s = None
        for message, _ in bus.receive(500):
            heard = True
            if _is_wanted(message, topic, symbol):
                patient_until_s = None
                yield message


def _is_wanted(message: Any, topic: str, symbol: str) -> bool:
    """Of these kinds and this symbol; what is said all the time only where it was asked for."""
    kind = type(message).__name__
    if not kind.lower().startswith(topic.rstrip(".").lower().split(".")[0]):
        return False
    if symbol and getattr(message, "symbol", "") != symbol:
        return False
    idle = kind in REPEATED or (isinstance(message, Quote) and message.zone == "NONE")
    return bool(topic) or not idle


def as_json(message: Any, delay_us: int | None) -> str:
    """One JSON object: kind, latency_us and the message's own fields."""
    row = {"kind": type(message).__name__, "latency_us": delay_us, **fields(message)}
    return orjson.dumps(row, default=str).decode()


def fields(message: Any) -> dict[str, Any]:
    """A message and the messages inside it as dicts."""
    return {name: _plain(value) for name, value in message._asdict().items()}


def _plain(value: Any) -> Any:
    if hasattr(value, "_fields"):
        return fields(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def as_text(message: Any, delay_us: int | None) -> Text:
    """One line: time, kind, latency, then what is not empty."""
    kind = type(message).__name__
    delay = "" if delay_us is None else f"{delay_us / 1000:.2f} ms"
    text = Text(f"{time.strftime('%H:%M:%S')} {kind:<13}{delay:>11}  ", COLOURS.get(kind, ""))
    shown = ((k, v) for k, v in message._asdict().items() if v not in ("", 0, (), None))
    text.append("  ".join(f"{name}={_short(value)}" for name, value in shown if name[-3:] != "_ns"))
    return text


def _short(value: Any) -> str:
    if isinstance(value, tuple) and value and hasattr(value[0], "_fields"):
        return "[" + "; ".join(_brief(item) for item in value) + "]"
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def _brief(item: Any) -> str:
    names = ("entry_id", "order_link_id", "status", "price", "qty", "bought", "sold")
    return " ".join(f"{getattr(item, name)}" for name in names if hasattr(item, name))


def main() -> None:
    """Attach to whatever runs with this RUN_DIR, and print."""
    parser = argparse.ArgumentParser(prog="python -m services.tap", description=__doc__)
    parser.add_argument("--topic", default="", help="only kinds that begin so: kline, quote, order")
    parser.add_argument("--symbol", default="", help="only this symbol, for example BTCUSDT")
    parser.add_argument("--count", type=whole("COUNT"), default=0, help="stop after so many")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    asked = parser.parse_args()
    kinds = {kind.__name__ for stream in STREAMS.values() for kind in stream.carries}
    wanted = asked.topic.rstrip(".").split(".")[0].lower()
    if not any(kind.lower().startswith(wanted) for kind in kinds):
        sys.exit(f"tap: no topic begins with {wanted}; there are {', '.join(sorted(kinds))}")
    with ending():
        _follow(asked)


def _follow(asked: argparse.Namespace) -> None:
    settings = running()
    if not settings.RUN_DIR.is_dir():
        sys.exit(f"tap: nothing runs here: no folder {settings.RUN_DIR}; start it with: make up")
    streams = [name for name, stream in STREAMS.items() if stream.pattern == "PUB"]
    hears = dict.fromkeys(streams, (asked.topic.lower(), "health."))  # the second: who is there
    bus = Bus(settings.RUN_DIR, hears=hears, **settings.wires)
    console = Console(soft_wrap=True, highlight=False)
    try:
        for seen, message in enumerate(messages(bus, asked.topic, asked.symbol.upper()), 1):
            delay_us = latency_us(message, time.monotonic_ns())
            if asked.json:
                print(as_json(message, delay_us), flush=True)
            else:
                console.print(as_text(message, delay_us))
            if asked.count and seen >= asked.count:
                return
    except KeyboardInterrupt:
        return
    finally:
        bus.close()
