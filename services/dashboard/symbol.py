"""symbol: one market: candles with bands, what rests, what was filled, the story of each lot, and
what stands between it and the next order."""

from typing import Any

from nicegui import ui

from services.dashboard.books import NO_SYMBOL, SymbolBooks, story
from services.dashboard.charts import (
    ENTRY,
    EXIT,
    LAST,
    Candle,
    Fill,
    Level,
    candle_chart,
    candles,
)
from services.dashboard.desk import Desk
from services.dashboard.frame import (
    REFRESH_S,
    Grid,
    Tiles,
    column,
    every,
    frame,
    moment,
    money,
    panel,
)
from services.worker.strategy import Parameters
from shared import messages as msg
from shared.instrument import decimal_of

BARS_S = 5.0  # between two looks at bars and ledger
GATES = {"text-green-400": "x === 'yes'", "text-red-400": "x === 'no'"}
LEVELS = {msg.ENTRY: ENTRY, msg.EXIT: EXIT}


def build(desk: Desk, symbol: str) -> None:
    """Build the page; it then refreshes itself."""
    frame(desk, symbol)
    ui.label(symbol).classes("text-2xl font-bold")
    tiles = Tiles()
    interval_ms = desk.settings.interval_ms
    with panel("Closed bars, bands, what rests and what was filled (UTC)", "w-full"):
        chart = ui.echart(candle_chart((), (), (), interval_ms)).classes("h-96 w-full")
        chart.props("data-testid=candles")
    with ui.row().classes("w-full gap-4 items-start no-wrap"):
        with panel("Why not?", "w-1/2"):
            verdict = ui.label().classes("font-bold").props("data-testid=verdict")
            gates = Grid("gate", _gate_columns(), "22rem")
        with panel("Lots, the newest first", "w-1/2"):
            lots = (
                ui.column().classes("w-full gap-2 overflow-auto max-h-96").props("data-testid=lots")
            )
    with panel("Touches of its bands, and what came of each", "w-full"):
        touches = Grid("bar", _touch_columns(), "16rem", on_top=True)
    shown: list[Candle] = []
    books = NO_SYMBOL
    drawn = told = None

    def draw() -> None:
        nonlocal drawn
        levels, fills = _levels(desk, symbol), _fills(books)
        if (picture := (shown, fills, levels)) != drawn:
            drawn = picture
            chart.options.update(candle_chart(shown, fills, levels, interval_ms))

    def refresh() -> None:
        with desk.timed("symbol"):
            _tiles(desk, symbol, tiles)
            found, said = desk.gates(symbol)
            verdict.set_text(said)
            gates.show([_gate(*item) for item in enumerate(found)])
            draw()

    async def look() -> None:
        nonlocal shown, books, told
        history = await desk.history_asked(symbol)
        shown = candles(history, interval_ms, desk.settings.part(Parameters)) if history else shown
        books = await desk.symbol_books(symbol)
        touches.show([_touch(row) for row in books.touches])
        if told != books:
            told = books
            _tell(lots, books)

    every(REFRESH_S, refresh)
    ui.timer(BARS_S, look)


def _tiles(desk: Desk, symbol: str, tiles: Tiles) -> None:
    row = desk.watch.row(symbol, desk.now_ns())
    if row is None:
        tiles.set("Price", "–", "no worker speaks of it")
        return
    near = [f"{d:+.3f} %" if d is not None else "–" for d in (row.to_lower_pct, row.to_upper_pct)]
    tiles.set(
        "Price", f"{decimal_of(row.last):f}", "" if row.age_s is None else f"{row.age_s:.0f} s old"
    )
    tiles.set("To lower band", near[0])
    tiles.set("To upper band", near[1])
    tiles.set("Volatility", f"{row.volatility_pct:.3f} %")
    tiles.set("State", row.state)
    tiles.set(
        "Open",
        money(row.open_usdt, 4),
        f"{row.lots} {'lot' if row.lots == 1 else 'lots'}",
        row.open_usdt,
    )


def _levels(desk: Desk, symbol: str) -> list[Level]:
    """Where our orders rest, and the last price."""
    position, quote = desk.watch.positions.get(symbol), desk.watch.quotes.get(symbol)
    orders = position.orders if position else ()
    levels = [
        Level(f"{o.kind} {o.side} {o.qty - o.cum_exec_qty:f}", float(o.price), LEVELS[o.kind])
        for o in orders
        if o.price and o.kind in LEVELS
    ]
    return [*levels, *([Level("last", quote.last, LAST)] if quote else ())]


def _fills(books: SymbolBooks) -> list[Fill]:
    return [
        Fill(
            e.exec_time_ms, e.side, float(e.exec_price), f"{e.side} {e.exec_qty:f}@{e.exec_price:f}"
        )
        for e in books.executions
    ]


def _tell(where: ui.column, books: SymbolBooks) -> None:
    """Each lot's life as a list; those of open ones unfolded."""
    where.clear()
    with where:
        if not books.lots:
            ui.label("none so far").classes("text-gray-500")
        for lot in books.lots:
            title = f"{lot.side} {lot.bought:f} of {moment(lot.opened_ms)}"
            title += f", closed {moment(lot.closed_ms)}" if lot.closed_ms else ", open"
            with ui.expansion(title, value=not lot.closed_ms).classes("w-full"):
                for at_ms, text in story(lot, books):
                    ui.label(f"{moment(at_ms)}  {text}").classes("text-sm tabular-nums")


def _gate_columns() -> list[dict[str, Any]]:
    return [
        column("passes", "", 60, cellClassRules=GATES, sortable=False),
        column("name", "gate", 110, sortable=False),
        column("value", "is", 240, flex=2, sortable=False),
        column("limit", "allowed", 160, flex=1, sortable=False),
    ]


def _gate(number: int, gate: Any) -> dict[str, Any]:
    passes = {True: "yes", False: "no", None: "?"}[gate.passes]
    values = {"name": gate.name, "value": gate.value, "limit": gate.limit}
    return {"gate": number, "passes": passes, **values}


def _touch_columns() -> list[dict[str, Any]]:
    return [
        column("time", "bar, UTC", 150),
        column("side", "side", 90),
        column("outcome", "what came of it", 300, flex=1),
    ]


def _touch(row: dict[str, Any]) -> dict[str, Any]:
    at_ms = int(row["bar_start_ms"])
    names = {"side": row["side"], "outcome": row["outcome"]}
    return {"bar": f"{at_ms}-{row['side']}", "time": moment(at_ms), **names}
