"""charts: numbers in, ECharts options out. Pure: what a picture shows can be tested without one."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from services.worker.ring import Ring
from services.worker.strategy import Parameters, bands
from shared import messages as msg
from shared.instrument import decimal_of

EXACT = 20  # digits after the point: a line's price is rounded to 2 of them unless told
SHOWN_BARS = 180  # three hours of minutes: what a screen can show
UP, DOWN, BAND, ENTRY, EXIT, LAST = "#26a69a", "#ef5350", "#7e9bd1", "#ffb300", "#ab7df6", "#90a4ae"
Options = dict[str, Any]
AXIS: Options = {"axisLabel": {"color": LAST}, "nameTextStyle": {"color": LAST}}
FAINT: Options = {"lineStyle": {"opacity": 0.15}}


class Candle(NamedTuple):
    """One closed bar with the bands that were known when it had closed; None before there were."""

    start_ms: int
    open: float
    high: float
    low: float
    close: float
    lower: float | None
    upper: float | None


class Fill(NamedTuple):
    """One execution as a picture shows it."""

    time_ms: int
    side: str
    price: float
    text: str


class Level(NamedTuple):
    """A price that something rests at."""

    name: str
    price: float
    colour: str


def candles(history: msg.History, interval_ms: int, parameters: Parameters) -> list[Candle]:
    """The closed bars of a symbol with their bands, as its worker computes them, oldest first."""
    ring = Ring(interval_ms)
    if not ring.load(history.start_ms, history.bars):
        return []
    rows, length = ring.window(ring.count), parameters.bb_length
    start_ms = ring.next_ms - ring.count * interval_ms
    found = []
    for index in range(max(0, len(rows) - SHOWN_BARS), len(rows)):
        lower = upper = None
        if index + 1 >= length:
            known = bands(rows[index + 1 - length : index + 1], parameters)
            lower, upper = known.lower.band, known.upper.band
        prices = [float(value) for value in rows[index, :4]]
        found.append(Candle._make((start_ms + index * interval_ms, *prices, lower, upper)))
    return found


def candle_chart(
    shown: Sequence[Candle], fills: Iterable[Fill], levels: Iterable[Level], interval_ms: int
) -> Options:
    """Candles, bands, fills as arrows and levels as lines."""
    labels = [_minute(candle.start_ms) for candle in shown]
    first_ms = shown[0].start_ms if shown else 0
    marks = []
    for fill in fills:
        index = (fill.time_ms - first_ms) // interval_ms
        if shown and 0 <= index <= len(shown):
            buys = fill.side == "Buy"
            marks.append(
                {
                    "value": [min(index, len(shown) - 1), fill.price],
                    "symbol": "triangle",
                    "symbolRotate": 0 if buys else 180,
                    "itemStyle": {"color": UP if buys else DOWN, "borderColor": "#000"},
                    "name": fill.text,
                }
            )
    lines = [
        {
            "yAxis": level.price,
            "name": level.name,
            "lineStyle": {"color": level.colour, "type": "dashed"},
            "label": {
                "formatter": f"{level.name} {decimal_of(level.price):f}",
                "color": level.colour,
                "position": "insideStartTop" if level.colour == LAST else "end",
            },
        }
        for level in levels
    ]
    return {
        "animation": False,
        "grid": {"left": 80, "right": 160, "top": 30, "bottom": 60},
        "tooltip": {"trigger": "axis", "axisPointer": {"type": "cross"}},
        "xAxis": {**AXIS, "type": "category", "data": labels},
        "yAxis": {**AXIS, "scale": True, "splitLine": FAINT},
        "dataZoom": [{"type": "inside"}, {"type": "slider", "height": 18, "bottom": 8}],
        "series": [
            {
                "type": "candlestick",
                "name": "price",
                "data": [[c.open, c.close, c.low, c.high] for c in shown],
                "itemStyle": {"color": UP, "color0": DOWN, "borderColor": UP, "borderColor0": DOWN},
                "markLine": {
                    "symbol": "none",
                    "data": lines,
                    "animation": False,
                    "precision": EXACT,
                },
            },
            _line("lower band", [c.lower for c in shown]),
            _line("upper band", [c.upper for c in shown]),
            {"type": "scatter", "name": "fills", "data": marks, "symbolSize": 12, "z": 5},
        ],
    }


def equity_chart(points: Iterable[tuple[int, float, float]]) -> Options:
    """Equity in USDT over its drawdown in %, by wall time; points are (ms, equity, drawdown)."""
    rows = list(points)
    return {
        "animation": False,
        "tooltip": {"trigger": "axis"},
        "axisPointer": {"link": [{"xAxisIndex": "all"}]},
        "grid": [
            {"left": 70, "right": 20, "top": 30, "height": "54%"},
            {"left": 70, "right": 20, "top": "74%", "height": "18%"},
        ],
        "xAxis": [
            {"type": "time", "gridIndex": 0, "axisLabel": {"show": False}},
            {**AXIS, "type": "time", "gridIndex": 1},
        ],
        "yAxis": [
            {**AXIS, "scale": True, "gridIndex": 0, "name": "USDT", "splitLine": FAINT},
            {
                **AXIS,
                "gridIndex": 1,
                "name": "drawdown %",
                "max": 0,
                "splitNumber": 2,
                "splitLine": {"show": False},
            },
        ],
        "series": [
            {
                "type": "line",
                "name": "equity",
                "showSymbol": False,
                "color": UP,
                "data": [[at_ms, equity] for at_ms, equity, _ in rows],
            },
            {
                "type": "line",
                "name": "drawdown",
                "showSymbol": False,
                "color": DOWN,
                "xAxisIndex": 1,
                "yAxisIndex": 1,
                "areaStyle": {"opacity": 0.3},
                "data": [[at_ms, drawdown] for at_ms, _, drawdown in rows],
            },
        ],
    }


def _line(name: str, values: list[float | None]) -> Options:
    look = {"showSymbol": False, "color": BAND, "lineStyle": {"width": 1}}
    return {"type": "line", "name": name, "data": values, **look}


def _minute(at_ms: int) -> str:
    """UTC, as `22:14`."""
    hours, minutes = divmod(at_ms // 60_000 % 1_440, 60)
    return f"{hours:02d}:{minutes:02d}"
