"""frame: what all pages share: a head with mode and money, tiles, grids, numbers for people."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from nicegui import ui

from services.dashboard.desk import Desk
from shared import messages as msg

REFRESH_S = 1.0
HEAD_S = 0.25  # so that a dead keeper is shown as dead within 3 s
COLOURS = {msg.RUN: "green-8", msg.NO_ENTRY: "amber-9"}
OTHER_MODE = "red-8"
LINKS = {"Overview": "/", "Board": "/board", "Trades": "/trades", "Control": "/control"}

SIGNED = "p => p.value == null ? '' : (p.value > 0 ? '+' : '') + p.value.toFixed({})"
FIXED = "p => p.value == null ? '' : p.value.toFixed({})"
PRICE = "p => p.value == null ? '' : String(Number(p.value.toPrecision(8)))"
GAIN, LOSS = "text-green-400", "text-red-400"
GAIN_CLASSES = {GAIN: "x > 0", LOSS: "x < 0"}
"""AG Grid: formatters and class rules, in its own expressions."""

NOTHING = "–"  # what is not known

Options = dict[str, Any]


def frame(desk: Desk, title: str) -> None:
    """The head of a page: where it leads, how the bot is, and whether it speaks at all."""
    ui.page_title(f"{title} · Deviation Magnet")
    ui.query(".nicegui-content").classes("p-4 gap-4")
    with ui.header().classes("items-center gap-6 bg-gray-900 py-2"):
        ui.label("Deviation Magnet").classes("text-lg font-bold")
        for name, path in LINKS.items():
            link = ui.link(name, path).classes("text-white no-underline hover:underline")
            link.classes("font-bold border-b-2") if name == title else None
        ui.space()
        mode = ui.badge().props("data-testid=mode")
        money = ui.label().props("data-testid=money").classes("tabular-nums")
        trouble = ui.badge(color="red-9").props("data-testid=trouble")
        dead = ui.badge(color="red-9").props("data-testid=dead")

    def refresh() -> None:
        said, wallet, silent = desk.mode(), desk.wallet(), desk.dead(desk.now_ns())
        name = said.mode if said else "UNKNOWN"
        mode.set_text(f"{name}: {said.reason}" if said and said.reason else name)
        mode.props(f"color={COLOURS.get(name, OTHER_MODE)}")
        money.set_text(f"{wallet.total_equity:,.2f} USDT" if wallet else "")
        for badge, text in ((trouble, desk.trouble), (dead, ", ".join(silent))):
            badge.set_text(f"dead: {text}" if badge is dead else text)
            badge.set_visibility(bool(text))

    every(HEAD_S, refresh)


def every(seconds: float, refresh: Callable[[], object]) -> None:
    """Now, and then again and again while the page is open."""
    refresh()
    ui.timer(seconds, refresh, immediate=False)


class Tiles:
    """A row of numbers, each under its name."""

    def __init__(self) -> None:
        self._row = ui.row().classes("gap-3 w-full items-stretch")
        self._labels: dict[str, tuple[ui.label, ui.label]] = {}

    def set(self, name: str, value: str, more: str = "", gain: Any = None) -> None:
        """Show a value; `gain` colours it by its sign."""
        if name not in self._labels:
            with self._row, ui.card().classes("px-4 py-2 gap-0 min-w-32"):
                ui.label(name).classes("text-xs text-gray-400")
                big = ui.label().classes("text-xl tabular-nums")
                big.props(f'data-testid="{name}"')
                self._labels[name] = (big, ui.label().classes("text-xs text-gray-400"))
        big, small = self._labels[name]
        big.set_text(value)
        small.set_text(more)
        colour = "" if not gain else GAIN if gain > 0 else LOSS
        big.classes(add=colour, remove=f"{GAIN} {LOSS}".replace(colour, ""))


class Grid:
    """An AG Grid whose rows are sent once, and then only those that have changed. Rows that come
    later are put below the others, or on top of them."""

    def __init__(
        self, key: str, columns: list[Options], height: str, on_top: bool = False, **options: Any
    ) -> None:
        self._key, self._sent = key, dict[str, Options]()
        self._where = {"addIndex": 0} if on_top else {}
        self.element = ui.aggrid(
            {
                "columnDefs": columns,
                "rowData": [],
                "defaultColDef": {"sortable": True, "filter": True, "resizable": True},
                ":getRowId": f"p => String(p.data.{key})",
                "animateRows": False,
                "suppressCellFocus": True,
                **options,
            },
            theme="balham",
        ).classes("w-full")
        self.element.style(f"height: {height}")

    def show(self, rows: list[Options]) -> None:
        """These rows and no others."""
        new = {str(row[self._key]): row for row in rows}
        if not self._sent:
            self.element.options["rowData"] = rows
        else:
            change = {
                "add": [row for key, row in new.items() if key not in self._sent],
                "update": [row for key, row in new.items() if self._sent.get(key, row) != row],
                "remove": [row for key, row in self._sent.items() if key not in new],
            }
            if any(change.values()):
                self.element.run_grid_method("applyTransactionAsync", {**change, **self._where})
        self._sent = new


def column(field: str, header: str, width: int = 110, **more: Any) -> Options:
    """One column of a Grid."""
    return {"field": field, "headerName": header, "width": width, **more}


def number(field: str, header: str, formatter: str, width: int = 110, **more: Any) -> Options:
    """A column of numbers, to the right."""
    look = {"type": "rightAligned", "filter": "agNumberColumnFilter", ":valueFormatter": formatter}
    return column(field, header, width, **{**look, **more})


@contextmanager
def panel(title: str, classes: str = "") -> Iterator[None]:
    """A card with a title."""
    with ui.card().classes(f"gap-2 {classes}"):
        ui.label(title).classes("text-sm text-gray-400")
        yield


def money(value: Decimal | float | None, digits: int = 2) -> str:
    """`+1,234.50`; no sign of what is rounded to nothing; a dash where it is not known."""
    if value is None:
        return NOTHING
    text = f"{value:+,.{digits}f}"
    return text if text.strip("+-0.,") else text[1:]


def moment(at_ms: int) -> str:
    """UTC, to the second; empty for 0."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%m-%d %H:%M:%S") if at_ms else ""
