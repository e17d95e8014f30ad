"""board: every symbol in a row, how far each is from a band; told once a second what changed."""

from typing import Any

from nicegui import ui

from services.dashboard.desk import Desk
from services.dashboard.frame import (
    FIXED,
    GAIN_CLASSES,
    PRICE,
    REFRESH_S,
    SIGNED,
    Grid,
    column,
    every,
    frame,
    number,
)
from services.dashboard.watch import Row

STATES = {
    "text-green-400": "x === 'long' || x === 'armed'",
    "text-red-400": "x === 'short' || x === 'silent' || x === 'stale' || x === 'blocked'",
    "text-amber-400": "x === 'resting' || x === 'hold'",
    "text-gray-500": "x === 'volatility' || x === 'far'",
}
NEAR = {"text-amber-400": "x != null && Math.abs(x) < 0.3"}


def build(desk: Desk) -> None:
    """Build the page; it then refreshes itself."""
    frame(desk, "Board")
    with ui.row().classes("w-full items-center gap-4"):
        search = ui.input("filter").props("dense clearable").props("data-testid=filter")
        counts = ui.label().classes("text-sm text-gray-400").props("data-testid=counts")
    grid = Grid("symbol", _columns(), "calc(100vh - 11rem)")
    grid.element.on("rowClicked", _open_symbol, ["data"])
    search.on_value_change(
        lambda event: grid.element.run_grid_method("setGridOption", "quickFilterText", event.value)
    )
    foot = ui.label().classes("text-xs text-gray-500").props("data-testid=server-time")

    def refresh() -> None:
        with desk.timed("board"):
            rows = desk.watch.board(desk.now_ns())
            grid.show([_shown(row) for row in rows])
            counts.set_text(_counts(rows))
        foot.set_text(desk.refresh_text())

    every(REFRESH_S, refresh)


def _open_symbol(event: Any) -> None:
    ui.navigate.to(f"/symbol/{event.args['data']['symbol']}")


def _columns() -> list[dict[str, Any]]:
    return [
        column("symbol", "symbol", 180, pinned="left", sort="asc"),
        number("last", "price", PRICE, 130),
        number("to_lower_pct", "to lower band, %", SIGNED.format(3), 140, cellClassRules=NEAR),
        number("to_upper_pct", "to upper band, %", SIGNED.format(3), 140, cellClassRules=NEAR),
        number("volatility_pct", "volatility, %", FIXED.format(3), 120),
        column("state", "state", 110, cellClassRules=STATES),
        number("lots", "lots", FIXED.format(0), 80),
        number("open_usdt", "open, USDT", SIGNED.format(4), 120, cellClassRules=GAIN_CLASSES),
        number("age_s", "age, s", FIXED.format(0), 90),
    ]


def _shown(row: Row) -> dict[str, Any]:
    """Rounded as it is shown, so that what looks the same is not sent again."""
    digits = {"to_lower_pct": 3, "to_upper_pct": 3, "volatility_pct": 3, "open_usdt": 4, "age_s": 0}
    values = row._asdict()
    for name, places in digits.items():
        if values[name] is not None:
            values[name] = round(values[name], places)
    return values


def _counts(rows: list[Row]) -> str:
    found: dict[str, int] = {}
    for row in rows:
        found[row.state] = found.get(row.state, 0) + 1
    return f"{len(rows)} symbols: " + ", ".join(
        f"{n} {state}" for state, n in sorted(found.items())
    )
