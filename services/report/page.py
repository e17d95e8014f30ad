"""page: a report as one HTML file that asks nobody for anything. What is read is escaped. Pure."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from services.report import words
from services.report.rows import Found
from services.report.trades import Group, Statistics, by_hour, by_symbol, thin

POINTS = 2_000  # of a curve: more than a screen is wide
BARS = 40  # symbols in a plot: the best and the worst
ROWS = 2_000  # trades in the table: more is for --csv
GOOD, BAD, LINE = "#2a9d8f", "#e05661", "#4f8ff7"  # readable on white and on black
NUMERIC = frozenset("+-~–0123456789")
CONFIG = {"displayModeBar": False, "responsive": True}
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
STYLE = """
:root { color-scheme: light dark; --ink: #1c2128; --paper: #ffffff; --line: #dde1e6;
  --quiet: #66707b; --good: #1b7d71; --bad: #c0392f }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e7ec; --paper: #14171b; --line: #31373e;
  --quiet: #98a2ad; --good: #4cc2b2; --bad: #ff7b7b } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 1280px; margin: 0 auto; padding: 1.5rem }
h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem }
.quiet, footer { color: var(--quiet); font-size: .85rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .85rem }
th, td { text-align: left; padding: .2rem .5rem; border-bottom: 1px solid var(--line);
  white-space: nowrap }
th { font-weight: 600; color: var(--quiet) }
td.number { text-align: right } table.summary td.number { text-align: left }
td.good { color: var(--good) } td.bad { color: var(--bad) }
table.summary { font-size: 1rem } table.summary td { white-space: normal }
"""
PAINT = """
function paint() {
  const style = getComputedStyle(document.documentElement);
  const ink = style.getPropertyValue("--ink").trim();
  const line = style.getPropertyValue("--line").trim();
  for (const plot of document.querySelectorAll(".plotly-graph-div")) {
    const change = {"font.color": ink};
    for (const axis of Object.keys(plot.layout).filter((name) => /^[xy]axis/.test(name))) {
      change[axis + ".gridcolor"] = change[axis + ".zerolinecolor"] = line;
    }
    Plotly.relayout(plot, change);
  }
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
paint();
"""


def page(found: Found, made: Statistics, title: str) -> str:
    """The whole file. `title` says when it was made, and since when it tells."""
    symbols, hours = by_symbol(found.trades), by_hour(found.trades)
    newest = found.trades[: -ROWS - 1 : -1]
    counted = f"the newest {len(newest)} of {made.trades}" if made.trades > ROWS else "newest first"
    plots = [_equity(found), _symbols(symbols), _hours(hours)]
    equity, per_symbol, per_hour = (
        plot.to_html(full_html=False, include_plotlyjs=number == 0, config=CONFIG)
        for number, plot in enumerate(plots)
    )
    outcomes = [(name, str(count)) for name, count in found.outcomes]
    notes = "".join(f"<p>{escape(note)}</p>" for note in words.NOTES)
    parts = [
        f"<h1>Deviation Magnet</h1><p class=quiet>{escape(title)}</p>",
        _table((), words.summary(found, made), "summary"),
        f"<h2>Equity and drawdown</h2>{equity}",
        f"<h2>Profit by symbol</h2>{per_symbol}",
        f"<h2>Profit by hour of entry (UTC)</h2>{per_hour}",
        "<h2>How lots ended</h2>",
        _table(("ended by", *words.GROUP_HEAD), words.reasons(found.trades)),
        "<h2>What came of touched bands</h2>",
        _table(("outcome", "touches"), outcomes),
        "<h2>Refused by the exchange, or by the router for it</h2>",
        _table(("times", "code", "reason"), words.refusals(found.refusals)),
        f"<h2>Trades</h2><p class=quiet>{counted}</p>",
        _table(words.TRADE_HEAD, map(words.trade, newest)),
        f"<h2>Notes</h2><footer>{notes}</footer>",
    ]
    return (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f'<meta http-equiv=Content-Security-Policy content="{POLICY}">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>"
        + "\n".join(parts)
        + f"<script>{PAINT}</script></body></html>\n"
    )


def _equity(found: Found) -> go.Figure:
    points = thin(found.equity, POINTS)
    times = [_time(point.wall_ms) for point in points]
    figure = make_subplots(rows=2, shared_xaxes=True, row_heights=[0.7, 0.3], vertical_spacing=0.05)
    equity = {"x": times, "y": [point.equity for point in points], "name": "equity, USDT"}
    fallen = {"x": times, "y": [point.drawdown_pct for point in points], "name": "drawdown, %"}
    figure.add_trace(go.Scatter(**equity, line={"color": LINE, "width": 1.5}), row=1, col=1)
    shade = {"color": BAD, "width": 1}
    figure.add_trace(go.Scatter(**fallen, line=shade, fill="tozeroy"), row=2, col=1)
    figure.update_yaxes(title_text="USDT", tickformat=",", row=1, col=1)
    figure.update_yaxes(title_text="%", row=2, col=1)
    return _laid_out(figure, 420, "no equity yet" if not points else "")


def _symbols(groups: Sequence[Group]) -> go.Figure:
    """The best and the worst, if they are too many."""
    half = BARS // 2
    shown = [*groups[:half], *groups[-half:]] if len(groups) > BARS else list(groups)
    note = f"the best and worst {half} of {len(groups)}" if len(groups) > BARS else ""
    return _laid_out(_bars(shown), 340, note or ("" if groups else "no trades yet"))


def _hours(groups: Sequence[Group]) -> go.Figure:
    return _laid_out(_bars(groups), 300, "" if any(of.trades for of in groups) else "no trades yet")


def _bars(groups: Sequence[Group]) -> go.Figure:
    profits = [float(of.profit_usdt) for of in groups]
    told = [
        f"{escape(of.name)}: {words.usdt(of.profit_usdt)} USDT, {of.trades} trades,"
        f" {words.pct(of.win_rate_pct, '')} won"
        for of in groups
    ]
    bars = go.Bar(
        x=[escape(of.name) for of in groups],
        y=profits,
        marker_color=[GOOD if profit >= 0 else BAD for profit in profits],
        hovertext=told,
        hoverinfo="text",
    )
    figure = go.Figure(bars)
    figure.update_xaxes(
        type="category", tickangle=-60 if len(groups) > 24 else 0, automargin=True, showgrid=False
    )
    figure.update_yaxes(title_text="USDT")
    return figure


def _laid_out(figure: go.Figure, height: int, note: str) -> go.Figure:
    """Without a background: the page has one, light or dark."""
    figure.update_layout(
        template="none",
        height=height,
        showlegend=False,
        margin={"l": 60, "r": 10, "t": 25, "b": 60},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif"},
    )
    if note:
        place = {"xref": "paper", "yref": "paper", "x": 0, "y": 1, "yanchor": "bottom"}
        figure.add_annotation(text=note, showarrow=False, **place)
    return figure


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    lines = [_row(row) for row in rows]
    if not lines:
        return "<p class=quiet>none</p>"
    names = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "\n".join(lines)
    return f'<div class=wide><table class="{kind}"><tr>{names}</tr>\n{body}</table></div>'


def _row(cells: Sequence[str]) -> str:
    """The first cell names the row; numbers stand right, and their sign has a colour."""
    return f"<tr>{''.join(_cell(cell) for cell in cells)}</tr>"


def _cell(text: str) -> str:
    return f"<td{_look(text)}>{escape(text)}</td>"


def _look(text: str) -> str:
    number = text[:1] in NUMERIC and not text[:2].isalpha() and len(text) < 16
    colour = {"+": " good", "-": " bad"}.get(text[:1], "")
    return f' class="number{colour}"' if number else ""


def _time(at_ms: int) -> str:
    return datetime.fromtimestamp(min(at_ms, words.LAST_MS) / 1000, UTC).isoformat()
