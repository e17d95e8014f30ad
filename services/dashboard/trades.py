"""trades: closed lots, what they made, by symbol and in all; and all of them as CSV."""

from typing import Any

from nicegui import ui

from services.dashboard.desk import Desk
from services.dashboard.frame import (
    FIXED,
    GAIN_CLASSES,
    PRICE,
    SIGNED,
    Grid,
    Tiles,
    column,
    every,
    frame,
    moment,
    money,
    number,
    panel,
)
from services.report.trades import Group, Statistics, Trade, by_reason, by_symbol
from services.report.words import span

READ_S = 2.0
SHOWN = 5_000  # the newest; the CSV has all that `Books` has
CSV = "/trades.csv"


def build(desk: Desk) -> None:
    """Build the page; it then refreshes itself."""
    frame(desk, "Trades")
    tiles = Tiles()
    with ui.row().classes("w-full gap-4 items-start no-wrap"):
        with panel("By symbol", "w-1/2"):
            symbols = Grid("name", _group_columns("symbol", "profit_usdt"), "18rem")
        with panel("By reason", "w-1/2"):
            reasons = Grid("name", _group_columns("reason", "trades"), "18rem")
    with panel("Closed lots", "w-full"):
        with ui.row().classes("items-center gap-6"):
            ui.link("export CSV", CSV).props("data-testid=csv")
            count = ui.label().classes("text-sm text-gray-400").props("data-testid=count")
        lots = Grid("entry_id", _columns(), "calc(100vh - 26rem)", on_top=True)
    shown: Any = None

    def refresh() -> None:
        nonlocal shown
        books = desk.books
        if books is shown:
            return
        shown = books
        with desk.timed("trades"):
            _tiles(tiles, books.statistics)
            symbols.show([_group(group) for group in by_symbol(books.trades)])
            reasons.show([_group(group) for group in by_reason(books.trades)])
            lots.show([_row(trade) for trade in reversed(books.trades[-SHOWN:])])
            all_of_them = len(books.trades)
            count.set_text(f"{min(all_of_them, SHOWN)} of {all_of_them}, the newest first")

    every(READ_S, refresh)


def _tiles(tiles: Tiles, s: Statistics) -> None:
    tiles.set("Trades", f"{s.trades}", f"{s.wins} won, {s.losses} lost")
    tiles.set("Win rate", _number(s.win_rate_pct, " %", 1))
    tiles.set("Profit", money(s.profit_usdt, 4), "USDT after fees", s.profit_usdt)
    tiles.set("Profit factor", _number(s.profit_factor), "won / lost")
    tiles.set("Expectancy", money(s.expectancy_usdt, 4), "USDT a trade", s.expectancy_usdt)
    tiles.set("Hold", span(s.average_hold_ms), "on average")
    tiles.set("Sharpe", _number(s.sharpe), "of days, a year")
    tiles.set("Sortino", _number(s.sortino), "of days, a year")
    deepest = f"{s.max_drawdown_usdt:,.2f} USDT"
    tiles.set("Maximum drawdown", f"{abs(s.max_drawdown_pct):.2f} %", deepest)
    for name, trade in (("Best", s.best), ("Worst", s.worst)):
        if trade:
            tiles.set(name, money(trade.profit_usdt, 4), trade.symbol, trade.profit_usdt)


def _number(value: Any, unit: str = "", digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}{unit}"


def _group_columns(name: str, largest: str) -> list[dict[str, Any]]:
    gain = {"cellClassRules": GAIN_CLASSES}
    columns = [
        column("name", name, 130, flex=1, minWidth=110),
        number("trades", "trades", FIXED.format(0), 90),
        number("win_rate_pct", "won, %", FIXED.format(1), 90),
        number("profit_usdt", "profit, USDT", SIGNED.format(4), 130, **gain),
        number("fees_usdt", "fees, USDT", FIXED.format(4), 120),
    ]
    return [{**c, "sort": "desc"} if c["field"] == largest else c for c in columns]


def _group(group: Group) -> dict[str, Any]:
    rate = group.win_rate_pct
    return {
        "name": group.name,
        "trades": group.trades,
        "win_rate_pct": None if rate is None else float(rate),
        "profit_usdt": float(group.profit_usdt),
        "fees_usdt": float(group.fees_usdt),
    }


def _columns() -> list[dict[str, Any]]:
    gain = {"cellClassRules": GAIN_CLASSES}
    return [
        column("symbol", "symbol", 170, pinned="left"),
        column("side", "side", 80),
        column("opened", "opened, UTC", 140),
        column("closed", "closed, UTC", 140),
        number("hold_s", "held, s", FIXED.format(0), 90),
        number("qty", "quantity", PRICE, 110),
        number("entry_price", "entry", PRICE, 110),
        number("exit_price", "exit", PRICE, 110),
        number("profit_usdt", "profit, USDT", SIGNED.format(5), 140, **gain),
        number("profit_pct", "profit, %", SIGNED.format(3), 110, **gain),
        number("fees_usdt", "fees, USDT", FIXED.format(5), 130),
        number("run_up_pct", "run-up, %", SIGNED.format(2), 120),
        number("draw_down_pct", "draw-down, %", SIGNED.format(2), 150),
        column("reason", "reason", 120),
        column("entry_id", "id", 280),
    ]


def _row(trade: Trade) -> dict[str, Any]:
    row = {name: _plain(value) for name, value in trade._asdict().items()}
    hold_s = trade.hold_ms / 1000
    times = {"opened": moment(trade.opened_ms), "closed": moment(trade.closed_ms)}
    return {**row, **times, "hold_s": hold_s}


def _plain(value: Any) -> Any:
    """As JSON has it: Decimals become numbers."""
    return value if value is None or isinstance(value, str | int | bool) else float(value)
