"""cli: a recorded market through the whole pipeline, with progress, and what came of it."""

import argparse
import time
from collections import defaultdict
from decimal import Decimal

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from services.backtest.replay import Replay
from services.paper.market import MINUTE_MS, BadData
from services.paper.server import feed_of
from shared import messages as msg
from shared.settings import load

STEP_MS = 10 * MINUTE_MS


class Tally:
    """Counts and cash by symbol, from what is published."""

    def __init__(self) -> None:
        self.bars: defaultdict[str, int] = defaultdict(int)
        self.entries: defaultdict[str, int] = defaultdict(int)
        self.exits: defaultdict[str, int] = defaultdict(int)
        self.cash: defaultdict[str, Decimal] = defaultdict(Decimal)
        self.fees: defaultdict[str, Decimal] = defaultdict(Decimal)
        self.notes: dict[str, str] = {}

    def hear(self, message: object) -> None:
        """One message of the run."""
        if isinstance(message, msg.Kline):
            self.bars[message.symbol] += message.confirm and message.recv_ns > 0
        elif isinstance(message, msg.OrderRequest) and not message.side:
            self.notes[message.symbol] = message.reason
        elif isinstance(message, msg.Execution):
            ours = msg.parse_id(message.order_link_id)
            side = self.exits if ours and ours[1] is not None else self.entries
            side[message.symbol] += 1
            value = message.exec_price * message.exec_qty
            self.cash[message.symbol] += value if message.side == "Sell" else -value
            self.fees[message.symbol] += message.exec_fee


def main() -> None:
    """`python -m services.backtest --data FILE [--start ISO] [--hours N]`; the rest is settings."""
    parser = argparse.ArgumentParser(prog="python -m services.backtest", description=__doc__)
    parser.add_argument("--data", required=True, help="an .npz or a folder of <SYMBOL>.csv files")
    parser.add_argument("--start", default="", help="ISO time, for example 2025-05-22T00:00")
    parser.add_argument("--hours", type=float, default=0, help="how long; default: to the end")
    asked = parser.parse_args()
    settings = load(
        PAPER_FEED="replay",
        PAPER_DATA=asked.data,
        PAPER_START=asked.start,
        PAPER_HOURS=asked.hours,
    )
    try:
        feed, start_ms, _ = feed_of(settings, 0)
    except BadData as error:
        parser.exit(2, f"{error}\n")
    tally, began = Tally(), time.monotonic()
    replay = Replay(settings, feed, start_ms, tally.hear)
    end_ms: int = feed.end_ms  # type: ignore[attr-defined]
    with Progress(transient=True) as progress:
        task = progress.add_task("replay", total=end_ms - start_ms)
        for at_ms in range(start_ms, end_ms, STEP_MS):
            replay.run(min(at_ms + STEP_MS, end_ms))
            progress.update(task, completed=at_ms + STEP_MS - start_ms)
    _show(tally, replay, time.monotonic() - began)


def _show(tally: Tally, replay: Replay, seconds: float) -> None:
    table = Table(box=None, header_style="bold")
    for name in ("symbol", "bars", "entries", "exits", "open qty", "profit", "fees", ""):
        table.add_column(name, justify="left" if name in ("symbol", "") else "right")
    matching, total = replay.venue.matching, Decimal(0)
    for symbol in replay.venue.public.symbols:
        size = matching.wallet.position(symbol).size
        profit = tally.cash[symbol] + size * matching.last[symbol] - tally.fees[symbol]
        total += profit
        counts = (tally.bars[symbol], tally.entries[symbol], tally.exits[symbol], f"{size:f}")
        money = (f"{profit:.4f}", f"{tally.fees[symbol]:.4f}", tally.notes.get(symbol, ""))
        table.add_row(symbol, *map(str, (*counts, *money)))
    console = Console(highlight=False)
    console.print(table)
    console.print(
        f"profit after fees {total:.4f} USDT, open lots at the last price; {seconds:.1f} s"
    )
