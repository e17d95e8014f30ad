"""words: the numbers of a report as people read them, the same on a screen and on a page. Pure."""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from decimal import Decimal

from services.report.rows import Found
from services.report.trades import Group, Statistics, Trade, by_reason

NOTHING = "–"
SMALL_USDT = 100  # below it, cents are too coarse
LAST_MS = 253_402_300_799_000  # of the year 9999
NUMBER = re.compile(r"\d[\d.]*")

GROUP_HEAD = ("trades", "wins", "losses", "win rate", "profit USDT", "fees USDT")
TRADE_HEAD = (
    *("closed", "symbol", "side", "qty", "entry", "exit", "held", "profit USDT", "profit"),
    *("fees USDT", "run-up", "draw-down", "ended by"),
)
NOTES = (
    "Profit is net of the fees of a lot's own orders. Funding belongs to a symbol's position, not"
    " to a lot: it is summed apart and in no trade's profit.",
    "Times of trades are the market's, those of the equity the machine's; all are UTC. On a paper"
    " exchange that runs faster, they differ.",
    "Sharpe is mean / sample deviation of the daily returns of the equity, Sortino mean /"
    " root mean square of the negative ones; both times sqrt(365), the riskless rate is 0. They"
    " need two days. A deposit counts as a profit, what is taken out as a loss.",
    "Run-up and draw-down are the best and worst price while a lot was held, against its entry,"
    " from bars: ~ where some bars were not seen, – where none was.",
    "Ended by: what sold the larger part of a lot. Exit: what cannot be told apart.",
)
"""How the numbers were made."""


def usdt(value: Decimal | float | None) -> str:
    """+0.0123 or -1,234.50."""
    if value is None:
        return NOTHING
    return f"{value:+,.4f}" if abs(float(value)) < SMALL_USDT else f"{value:+,.2f}"


def cost(value: Decimal) -> str:
    """An amount whose sign says nothing: fees paid."""
    return usdt(value).removeprefix("+")


def pct(value: Decimal | float | None, sign: str = "+") -> str:
    """+1.23 %; with an empty sign, 1.23 %."""
    return NOTHING if value is None else f"{value:{sign}.2f} %"


def ratio(value: Decimal | float | None) -> str:
    """1.23."""
    return NOTHING if value is None else f"{value:,.2f}"


def when(at_ms: int) -> str:
    """2026-01-31 12:34:56, UTC."""
    if not 0 < at_ms <= LAST_MS:
        return NOTHING
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def span(duration_ms: int | None) -> str:
    """17 s, 3 min 20 s, 2 h 5 min, 3 d 4 h."""
    if duration_ms is None:
        return NOTHING
    minutes, seconds = divmod(duration_ms // 1000, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def price(value: Decimal) -> str:
    """As many digits as a price needs."""
    return f"{value.normalize():f}" if len(value.as_tuple().digits) <= 10 else f"{value:.8g}"


def summary(found: Found, made: Statistics) -> list[tuple[str, str]]:
    """(what, how much), the most wanted first."""
    held = [trade.closed_ms for trade in found.trades]
    total = made.profit_usdt + found.funding_usdt
    fell = NOTHING
    if made.drawdown_ms:
        fell = f"{pct(made.max_drawdown_pct)}, {usdt(made.max_drawdown_usdt)} USDT"
        fell += f" ({when(made.drawdown_top_ms)} to {when(made.drawdown_ms)})"
    first, last = (found.equity[0], found.equity[-1]) if found.equity else (None, None)
    return [
        ("account", found.account),
        ("trades closed", f"{when(min(held))} to {when(max(held))}" if held else "none"),
        ("profit of trades", f"{usdt(made.profit_usdt)} USDT after {cost(made.fees_usdt)} fees"),
        ("funding", f"{usdt(found.funding_usdt)} USDT, with it {usdt(total)} USDT"),
        (
            "equity",
            f"{first.equity:,.2f} to {last.equity:,.2f} USDT" if first and last else NOTHING,
        ),
        ("deepest drawdown", fell),
        (
            "trades",
            f"{made.trades}: {made.wins} won, {made.losses} lost, {pct(made.win_rate_pct, '')}",
        ),
        ("profit factor", ratio(made.profit_factor)),
        ("expectancy", f"{usdt(made.expectancy_usdt)} USDT a trade"),
        ("held on average", span(made.average_hold_ms)),
        ("best trade", _one(made.best)),
        ("worst trade", _one(made.worst)),
        ("Sharpe, Sortino", f"{ratio(made.sharpe)}, {ratio(made.sortino)}"),
        ("still open", f"{len(found.open_lots)} lots"),
    ]


def group(of: Group) -> tuple[str, ...]:
    """The cells of GROUP_HEAD."""
    counts = (str(of.trades), str(of.wins), str(of.losses))
    return (*counts, pct(of.win_rate_pct, ""), usdt(of.profit_usdt), cost(of.fees_usdt))


def trade(of: Trade) -> tuple[str, ...]:
    """The cells of TRADE_HEAD."""
    about = "" if of.whole or of.run_up_pct is None else "~"
    return (
        *(when(of.closed_ms), of.symbol, of.side, price(of.qty)),
        *(price(of.entry_price), price(of.exit_price), span(of.hold_ms)),
        *(usdt(of.profit_usdt), pct(of.profit_pct), cost(of.fees_usdt)),
        *(about + pct(of.run_up_pct), about + pct(of.draw_down_pct), of.reason),
    )


def reasons(trades: Iterable[Trade]) -> list[tuple[str, ...]]:
    """A row for each way in which lots ended."""
    return [(of.name, *group(of)) for of in by_reason(trades)]


def refusals(found: Sequence[tuple[int, str, int]]) -> list[tuple[str, str, str]]:
    """(how many, code, reason), commonest first; reasons that differ by numbers alone are one."""
    alike: Counter[tuple[int, str]] = Counter()
    for code, reason, count in found:
        alike[code, NUMBER.sub("#", reason)] += count
    return [(str(n), str(code or NOTHING), reason) for (code, reason), n in alike.most_common()]


def _one(of: Trade | None) -> str:
    if of is None:
        return NOTHING
    return f"{usdt(of.profit_usdt)} USDT {of.side} {of.symbol}, closed {when(of.closed_ms)}"


def as_csv(trades: Iterable[Trade]) -> str:
    """A line for each trade, first closed first, under the names of its fields."""
    text = io.StringIO()
    lines = csv.writer(text)
    lines.writerow(Trade._fields)
    lines.writerows(trades)
    return text.getvalue()
