"""overview: one look says whether all is well: mode, money, caps, budget, feed and processes."""

from typing import Any

from nicegui import ui

from services.dashboard.charts import equity_chart
from services.dashboard.desk import Desk
from services.dashboard.frame import (
    FIXED,
    NOTHING,
    REFRESH_S,
    Grid,
    Tiles,
    column,
    every,
    frame,
    money,
    number,
    panel,
)
from services.dashboard.watch import Process

SHOWN_RATES = ("klines", "bars", "ARM", "HOLD", "accepted", "refused", "unknown", "grants")
BUDGET = "budget_"
QUIET = ("paper", "watchdog", "dashboard", "notifier")  # those that say no Health
RUNNING = "RUNNING"  # in supervisord's words
CHART_S = 5.0


def build(desk: Desk) -> None:
    """Build the page; it then refreshes itself."""
    frame(desk, "Overview")
    money_tiles, bot_tiles = Tiles(), Tiles()
    with ui.row().classes("w-full gap-4 items-stretch no-wrap"):
        with panel("Equity and drawdown", "grow"):
            chart = ui.echart(equity_chart(())).classes("h-80 w-full").props("data-testid=equity")
        with panel("Order budget in use", "w-96"):
            budget = Budget()
            ui.label("Commands").classes("text-sm text-gray-400 mt-2")
            latency = (
                ui.label()
                .classes("whitespace-pre text-sm tabular-nums")
                .props("data-testid=latency")
            )
    with panel("Processes", "w-full"):
        processes = Grid("name", _columns(), "15rem")
    foot = ui.label().classes("text-xs text-gray-500").props("data-testid=server-time")

    def refresh() -> None:
        with desk.timed("overview"):
            _money(desk, money_tiles)
            _bot(desk, bot_tiles)
            budget.show(desk.watch.counters("router", desk.now_ns()))
            latency.set_text(_latency(desk))
            processes.show(_processes(desk))
        foot.set_text(desk.refresh_text())

    every(REFRESH_S, refresh)
    every(CHART_S, lambda: chart.options.update(equity_chart(desk.equity())))


def _money(desk: Desk, tiles: Tiles) -> None:
    books, now = desk.books, desk.point()
    known, totals, opened = bool(books.version), books.totals, desk.watch.opened_usdt()
    today = books.today_usdt(now) if now else None
    realised = totals.profit_usdt if known else None
    below = f"{abs(now.drawdown_pct):.2f} %" if now else NOTHING
    tiles.set("Equity", f"{now.equity:,.2f}" if now else NOTHING, "USDT")
    tiles.set("Today", money(today), "since midnight UTC", today)
    tiles.set("Realised", money(realised), "closed lots, after fees", realised)
    tiles.set("Open", money(opened), "at the last price", opened)
    tiles.set("Fees", money(totals.fees_usdt if known else None), "of closed lots, paid")
    tiles.set("Funding", money(books.funding_paid_usdt if known else None), "paid, if above 0")
    worst = max(books.worst_drawdown_pct, abs(now.drawdown_pct) if now else 0.0)
    tiles.set("Drawdown", below, f"of 90 days, at worst {worst:.2f} %")


def _bot(desk: Desk, tiles: Tiles) -> None:
    settings, mode, now_ns = desk.settings, desk.mode(), desk.now_ns()
    keeper, age_ms = desk.watch.counters("keeper", now_ns), desk.watch.feed_age_ms(now_ns)
    symbols, slots = (len(mode.symbols), mode.slots) if mode else (NOTHING, NOTHING)
    age = NOTHING if age_ms is None else f"{age_ms / 1000:.1f} s"
    tiles.set("Lots", f"{keeper.get('lots', NOTHING)}", "open")
    tiles.set("Slots", f"{slots} / {settings.MAX_SLOTS}", "entries and lots")
    watched = f"{len(desk.watch.quotes)} watched"
    tiles.set("Symbols", f"{symbols} / {settings.MAX_SYMBOLS}", watched)
    tiles.set("Working orders", f"{keeper.get('working_orders', NOTHING)}")
    tiles.set("Executions", f"{keeper.get('executions', NOTHING)}")
    tiles.set("Differences", f"{mode.differences if mode else NOTHING}", "ledger and exchange")
    tiles.set("Feed age", age, "the oldest symbol's price")


class Budget:
    """One bar per bucket: how much of the exchange's limit counts as used. We stop at 80 %."""

    def __init__(self) -> None:
        self._where = ui.column().classes("w-full gap-1")
        self._bars: dict[str, tuple[ui.linear_progress, ui.label]] = {}

    def show(self, counters: dict[str, int]) -> None:
        """By the router's counters; nothing is known while it is silent."""
        for name in sorted(self._bars.keys() | {n for n in counters if n.startswith(BUDGET)}):
            if name not in self._bars:
                with self._where:
                    label = ui.label().classes("text-xs")
                    self._bars[name] = (ui.linear_progress(show_value=False), label)
            bar, label = self._bars[name]
            percent = counters.get(name)
            bar.set_value((percent or 0) / 100)
            bar.props(f"color={'amber' if (percent or 0) > 60 else 'green'}")
            said = NOTHING if percent is None else f"{percent} %"
            label.set_text(f"{name.removeprefix(BUDGET).removesuffix('_pct')}: {said}")


def _latency(desk: Desk) -> str:
    rows = desk.watch.latencies()
    lines = [
        f"{r.name:<20}{r.p50_ms:8.1f} / {r.p99_ms:.1f} ms, p50 / p99 of {r.commands}" for r in rows
    ]
    return "\n".join(lines) or "no command yet"


def _columns() -> list[dict[str, Any]]:
    alive = {"text-green-400": "x === 'yes'", "text-red-400": "x !== 'yes'"}
    return [
        column("name", "process", 120, pinned="left"),
        column("state", "supervisor", 110),
        column("healthy", "healthy", 90, cellClassRules=alive),
        column("shard", "shard", 80),
        number("age_s", "heard, s", FIXED.format(1), 100),
        number("feed_age_s", "input age, s", FIXED.format(1), 110),
        number("inbox", "inbox", FIXED.format(0), 80),
        number("p50_us", "p50, us", FIXED.format(0), 90),
        number("p99_us", "p99, us", FIXED.format(0), 90),
        column("rates", "a second", 260),
        column("note", "says", 260, flex=1),
        number("pid", "pid", FIXED.format(0), 90),
    ]


def _processes(desk: Desk) -> list[dict[str, Any]]:
    """Those that speak on the bus, and those of which only supervisord knows."""
    rows = [_row(process, desk) for process in desk.watch.processes(desk.now_ns())]
    others = desk.states.keys() - {row["name"] for row in rows}
    return rows + [_other(name, desk.states[name]) for name in sorted(others)]


def _other(name: str, state: str) -> dict[str, Any]:
    empty = dict.fromkeys(shown["field"] for shown in _columns())
    quiet = name.partition("-")[0] in QUIET  # the others should have spoken
    healthy = "no" if state != RUNNING else "yes" if quiet else "silent"
    return {**empty, "name": name, "state": state, "healthy": healthy}


def _row(process: Process, desk: Desk) -> dict[str, Any]:
    rates = process.rates
    done = "" if process.progress is None else f" ({100 * process.progress:.0f} %)"
    return {
        "name": process.name,
        "state": desk.states.get(process.name, "?"),
        "healthy": "yes" if process.ready else "no" if process.alive else "dead",
        "shard": process.shard,
        "age_s": round(process.age_s, 1),
        "feed_age_s": None if process.feed_age_ms is None else process.feed_age_ms / 1000,
        "inbox": process.inbox,
        "p50_us": process.p50_us,
        "p99_us": process.p99_us,
        "rates": "  ".join(f"{name} {rates[name]:g}" for name in SHOWN_RATES if name in rates),
        "note": process.note + done,
        "pid": process.pid,
    }
