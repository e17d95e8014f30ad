"""why: the chain of gates between one symbol and an order, with the numbers of each.

Now: listens for a moment to what the processes say. At another time: what the ledger wrote down.
Changes nothing.
"""

import argparse
import sys
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from shared import messages as msg
from shared.bus import STREAMS, Bus
from shared.instrument import decimal_of, entry_qty, least_usdt
from shared.records import Broken, Records
from shared.settings import Settings, running
from shared.terminal import ending

LISTEN_SECONDS = 2.6  # every process speaks each second
REFUSALS = 5  # shown, newest first
AROUND = timedelta(minutes=5)  # how far from AT a touch is still shown

Row = dict[str, Any]


class Gate(NamedTuple):
    """One gate: its number, its limit, and whether an entry passes; None where nobody knows."""

    name: str
    value: str
    limit: str
    passes: bool | None


class Heard:
    """The last word of everybody on one symbol."""

    def __init__(self, symbol: str) -> None:
        self.symbol = symbol
        self.quote: msg.Quote | None = None
        self.position: msg.Position | None = None
        self.mode: msg.Mode | None = None
        self.instrument: msg.Instrument | None = None
        self.health: dict[str, msg.Health] = {}
        self.symbols: set[str] = set()

    def take(self, message: Any) -> None:
        """One message of the bus."""
        if isinstance(message, msg.Health):
            self.health[message.service] = message
        elif isinstance(message, msg.Mode):
            self.mode = message
        elif isinstance(message, msg.Instruments):
            found = {row.symbol: row for row in message.instruments}
            self.symbols, self.instrument = set(found), found.get(self.symbol)
        elif getattr(message, "symbol", "") != self.symbol:
            return
        elif isinstance(message, msg.Quote):
            self.quote = message
        elif isinstance(message, msg.Position):
            self.position = message


def gates(heard: Heard, settings: Settings) -> list[Gate]:
    """Every gate in the order in which the bot asks."""
    return [
        *_of_mode(heard),
        *_of_instrument(heard, settings),
        *_of_quote(heard, settings),
        *_of_caps(heard, settings),
        *_of_router(heard),
    ]


def verdict(found: list[Gate]) -> str:
    """The first gate that is shut, or that all are open."""
    shut = next((gate for gate in found if gate.passes is False), None)
    if shut is None:
        unknown = [gate.name for gate in found if gate.passes is None]
        return f"nobody says: {', '.join(unknown)}" if unknown else "every gate is open"
    return f"{shut.name}: {shut.value}, allowed {shut.limit}"


def _of_mode(heard: Heard) -> list[Gate]:
    mode = heard.mode
    if mode is None:
        return [Gate("mode", "the keeper is silent", "RUN", None)]
    return [Gate("mode", f"{mode.mode} {mode.reason}".strip(), "RUN", mode.mode == msg.RUN)]


def _of_instrument(heard: Heard, settings: Settings) -> list[Gate]:
    instrument, quote = heard.instrument, heard.quote
    if instrument is None:
        says = "not traded on this exchange" if heard.symbols else "the ingestor is silent"
        return [Gate("instrument", says, "Trading", False if heard.symbols else None)]
    found = [Gate("instrument", instrument.status, "Trading", instrument.status == "Trading")]
    price = decimal_of(quote.price) if quote and quote.price > 0 else Decimal(0)
    if price:
        qty, too_small = entry_qty(settings.SIZE_USDT, price, instrument)
        value = f"{qty * price:.2f} USDT" if qty else f"SIZE_USDT {settings.SIZE_USDT:f}"
        least = least_usdt(price, instrument)
        found.append(Gate("size", value, f"at least {least:f} USDT", not too_small))
    return found


def _of_quote(heard: Heard, settings: Settings) -> list[Gate]:
    quote = heard.quote
    if quote is None:
        return [Gate("quote", "no worker speaks of it", "a quote each second", None)]
    age_ms = (time.monotonic_ns() - quote.recv_ns) // 1_000_000
    least, near, far = (
        settings.MIN_VOLATILITY_PCT,
        settings.BAND_PROXIMITY_PCT,
        settings.BAND_OVERSHOOT_PCT,
    )
    side = "lower" if quote.side == "Buy" else "upper"
    band = quote.lower if quote.side == "Buy" else quote.upper
    distance = f"{quote.distance_pct:+.3f} % of {side} band {band:.10g} (last {quote.last:.10g})"
    volatility = f"{quote.volatility_pct:.3f} %"
    return [
        Gate("data", quote.gate or "contiguous bars", "no gate", quote.gate in ("", "volatility")),
        Gate("feed age", f"{age_ms} ms", "75000 ms", age_ms <= 75_000),
        Gate("volatility", volatility, f"at least {least:g} %", quote.volatility_pct >= least),
        Gate("distance", distance, f"{-far:g} % to {near:g} %", -far <= quote.distance_pct <= near),
    ]


def _of_caps(heard: Heard, settings: Settings) -> list[Gate]:
    position, mode = heard.position, heard.mode
    found: list[Gate] = []
    if mode is not None:
        symbols, new = len(mode.symbols), heard.symbol not in mode.symbols
        room = symbols < settings.MAX_SYMBOLS or not new
        slots = Gate("slots", f"{mode.slots}", f"under {settings.MAX_SLOTS}", None)
        found.append(slots._replace(passes=mode.slots < settings.MAX_SLOTS))
        found.append(Gate("symbols", f"{symbols}", f"under {settings.MAX_SYMBOLS}", room))
    if position is None or (mode is not None and heard.symbol not in mode.symbols):
        return [*found, Gate("position", "empty", "no other side, no open entry", True)]
    entries = [order for order in position.orders if order.kind == msg.ENTRY]
    lots = f"{len(position.lots)} lots" + (f" {position.lots[0].side}" if position.lots else "")
    full = len(position.lots) >= settings.MAX_LOTS_PER_SYMBOL
    found.append(Gate("lots", lots, f"under {settings.MAX_LOTS_PER_SYMBOL}", not full))
    resting = f"{entries[0].side} {entries[0].qty:f}@{entries[0].price:f}" if entries else "none"
    found.append(Gate("open entry", resting, "none", not entries))
    foreign = position.no_entry or (f"{position.foreign_qty:f}" if position.foreign_qty else "")
    return [*found, Gate("foreign", foreign or "nothing", "nothing", not foreign)]


def _of_router(heard: Heard) -> list[Gate]:
    health = heard.health.get("router")
    if health is None:
        return [Gate("router", "silent", "speaks each second", None)]
    held = health.counters.get("held_back", 0)
    waited = f"an order had to wait {held} times since the router's start"
    ready = "ready" if health.ready else f"not ready ({health.note})"
    return [
        Gate("router", ready, "ready", health.ready),
        Gate("budget", waited, "any number: RATE_LIMIT only delays", True),
    ]


def now(settings: Settings, symbol: str) -> Heard:
    """Listen to everybody for a moment."""
    heard = Heard(symbol)
    topics = ("quote.", "position.", "mode.", "health.")
    streams = {s.name: topics for s in STREAMS.values() if s.pattern == "PUB"}
    bus = Bus(settings.RUN_DIR, hears=streams, asks=("instruments",), **settings.wires)
    bus.ask("instruments", msg.InstrumentsAsk(), time.monotonic_ns())
    until = time.monotonic() + LISTEN_SECONDS
    while (left := until - time.monotonic()) > 0:
        for message, _ in bus.receive(left * 1000):
            heard.take(message)
    bus.close()
    return heard


def past(records: Records, symbol: str, at: datetime | None) -> list[tuple[str, list[Row]]]:
    """Touches, refusals, orders and modes around a time, or the latest; titles and rows."""
    at_ms = int(at.timestamp() * 1000) if at else 2**62
    around = int(AROUND.total_seconds() * 1000) if at else 2**62
    span = (at_ms - around, min(at_ms + around, 2**62))
    touches = records.rows(
        "SELECT bar_start_ms, side, outcome FROM outcomes WHERE symbol = ?"
        " AND bar_start_ms BETWEEN ? AND ? ORDER BY 1 DESC LIMIT 10",
        *(symbol, *span),
    )
    orders = records.rows(
        "SELECT bar_start_ms, order_link_id, price, qty, cum_exec_qty, status, reject_reason"
        " FROM orders WHERE symbol = ? AND bar_start_ms BETWEEN ? AND ? ORDER BY 1 DESC LIMIT 10",
        *(symbol, *span),
    )
    refusals = records.rows(
        "SELECT wall_ms, order_link_id, ret_code, reason FROM refusals WHERE symbol = ?"
        " AND wall_ms BETWEEN ? AND ? ORDER BY 1 DESC LIMIT ?",
        *(symbol, *span, REFUSALS),
    )
    modes = records.rows(
        "SELECT wall_ms, mode, reason, who FROM modes WHERE wall_ms <= ? ORDER BY 1 DESC LIMIT 3",
        min(at_ms, 2**62),
    )
    return [("touches", touches), ("orders", orders), ("refusals", refusals), ("modes", modes)]


def show(console: Console, title: str, rows: list[Row]) -> None:
    """One list; times as people read them."""
    if not rows:
        console.print(f"{title}: none")
        return
    table = Table(title=title, box=None, header_style="bold", title_justify="left")
    for name in rows[0]:
        table.add_column(name.removesuffix("_ms"))
    for row in rows:
        table.add_row(*(_text(name, value) for name, value in row.items()))
    console.print(table)


def main() -> None:
    """Print the gates, then what the ledger remembers."""
    parser = argparse.ArgumentParser(prog="python -m services.why", description=__doc__)
    parser.add_argument("--symbol", required=True, help="for example SOLUSDT")
    parser.add_argument("--at", default="", help="ISO time, UTC: what was so then")
    asked = parser.parse_args()
    with ending():
        _tell(asked.symbol.upper(), asked.at)


def _tell(symbol: str, when: str) -> None:
    settings = running()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 130)
    at = _time(when, settings)
    if at is None:
        _tell_gates(console, settings, symbol)
    try:
        records = Records(settings.RUN_DIR / "state.db")
        for title, rows in past(records, symbol, at):
            show(console, title, rows)
        records.close()
    except FileNotFoundError:
        console.print("no ledger yet")
    except Broken as error:
        sys.exit(f"why: {settings.RUN_DIR}/state.db: {error}")


def _tell_gates(console: Console, settings: Settings, symbol: str) -> None:
    if not settings.RUN_DIR.is_dir():
        sys.exit(f"why: nothing runs here: no folder {settings.RUN_DIR}; start it with: make up")
    heard = now(settings, symbol)
    if heard.symbols and symbol not in heard.symbols:
        sys.exit(f"why: {symbol} is not traded on this exchange")
    found = gates(heard, settings)
    table = Table(box=None, header_style="bold")
    for name in ("", "gate", "is", "allowed"):
        table.add_column(name)
    for gate in found:
        mark = {True: "[green]yes", False: "[red]no", None: "[yellow]?"}[gate.passes]
        table.add_row(mark, gate.name, gate.value, gate.limit)
    console.print(table)
    console.print(f"[bold]{symbol}[/bold] {verdict(found)}")


def _time(text: str, settings: Settings) -> datetime | None:
    """In UTC where it says nothing else. A market that runs faster may be ahead of our clock."""
    if not text:
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError as error:
        sys.exit(f"why: AT: {error}")
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    fast = settings.BYBIT_ENV == "paper" and settings.PAPER_SPEED > 1
    if at > datetime.now(UTC) and not fast:
        sys.exit(f"why: AT: {at:%Y-%m-%dT%H:%M} UTC is in the future")
    return at


def _text(name: str, value: Any) -> str:
    if name.endswith("_ms"):
        return datetime.fromtimestamp(int(value) / 1000, UTC).strftime("%m-%d %H:%M:%S")
    return str(value)
