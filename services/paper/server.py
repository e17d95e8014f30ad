"""server: the life of the paper exchange's process, from settings to SIGTERM."""

import asyncio
import contextlib
import errno
import logging
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from aiohttp import web

from services.paper.actor import Paper, serve_unix
from services.paper.clock import Clock
from services.paper.control import Control
from services.paper.journal import Journal, WrongMarket
from services.paper.market import MINUTE_MS, BadData, Feed, Replay, Synthetic
from services.paper.order import Row
from services.paper.ticker import Prices, Ticker
from services.paper.upstream import Upstream
from services.paper.venue import Venue
from shared.actor import begin, hold_lock
from shared.settings import WRONG_SETTING_EXIT, Settings, load

HISTORY = 400  # minutes of klines before the start
CONTROL = "paper.sock"

log = logging.getLogger("paper")


def feed_of(settings: Settings, wall_ms: int, origin_ms: int = 0) -> tuple[Feed, int, int]:
    """The configured feed, the market time at which it begins to trade, and its first minute.

    `origin_ms` is the first minute of an earlier start, 0 for a new market. Raises BadData.
    """
    if settings.PAPER_FEED == "replay":
        start_ms = 0
        if settings.PAPER_START:
            try:
                start = datetime.fromisoformat(settings.PAPER_START)
            except ValueError as error:
                raise BadData(f"PAPER_START: {error}") from error
            start_ms = int(start.replace(tzinfo=start.tzinfo or UTC).timestamp() * 1000)
        minutes = int(settings.PAPER_HOURS * 60)
        replay = Replay(Path(settings.PAPER_DATA), start_ms, minutes, HISTORY)
        return replay, replay.start_ms, replay.start_ms
    origin_ms = origin_ms or wall_ms // MINUTE_MS * MINUTE_MS - HISTORY * MINUTE_MS
    hour = settings.PAPER_HOUR - HISTORY / 60
    feed = Synthetic(settings.PAPER_SYMBOLS, settings.PAPER_SEED, origin_ms, hour)
    return feed, wall_ms, origin_ms


def market_of(settings: Settings) -> dict[str, str]:
    """What an account was traded on: with any of it changed, it is another market."""
    names = {
        "synthetic": ("PAPER_FEED", "PAPER_SEED", "PAPER_HOUR", "PAPER_SYMBOLS"),
        "replay": ("PAPER_FEED", "PAPER_DATA", "PAPER_START"),
        "live": ("PAPER_FEED", "PAPER_LIVE_REST"),
    }[settings.PAPER_FEED]
    return {name: str(getattr(settings, name)) for name in names}


def venue_of(
    settings: Settings, ticker: Prices, journal: Journal, origin_ms: int, market_ms: int
) -> Venue:
    """The exchange with the account that the journal remembers, and writes down from now on."""
    stopped_ms = journal.market_ms

    def keep(pushes: list[tuple[str, Row]], at_ms: int) -> None:
        journal.write(pushes, venue.matching, at_ms)

    venue = Venue(settings, ticker, keep)
    journal.restore(venue.matching)
    venue.restored(stopped_ms or market_ms)
    journal.open(venue.matching, origin_ms, market_ms)
    return venue


def run() -> None:
    """Serve until SIGTERM."""
    settings = load()
    begin(settings, "paper")
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    hold_lock(settings.RUN_DIR, "paper-0")
    try:
        asyncio.run(_serve(settings))
    except (BadData, WrongMarket) as error:
        log.error("wrong_setting %s", error)
        sys.exit(WRONG_SETTING_EXIT)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        log.error("wrong_setting PAPER_PORT: %s is in use", settings.PAPER_PORT)
        sys.exit(WRONG_SETTING_EXIT)


def _recorded(settings: Settings, journal: Journal, wall_ms: int) -> tuple[Prices, int, int]:
    """A source of prices, market time now, and the first minute of its market. Raises BadData."""
    feed, start_ms, origin_ms = feed_of(settings, wall_ms, journal.origin_ms)
    if settings.PAPER_FEED == "replay" or settings.PAPER_SPEED != 1:
        start_ms = journal.market_ms or start_ms
    ticker = Ticker(feed, settings.PAPER_TICKS)
    ticker.warm_up(start_ms // MINUTE_MS * MINUTE_MS)
    return ticker, start_ms, origin_ms


async def _serve(settings: Settings) -> None:
    began = time.monotonic()
    journal = Journal(settings.paper_state, market_of(settings))
    start_ms, origin_ms = time.time_ns() // 1_000_000, 0
    upstream = Upstream(settings) if settings.PAPER_FEED == "live" else None
    if upstream:
        ticker: Prices = await upstream.begin()
    else:
        ticker, start_ms, origin_ms = _recorded(settings, journal, start_ms)
    clock = Clock(start_ms, time.monotonic_ns(), settings.PAPER_SPEED)
    venue = venue_of(settings, ticker, journal, origin_ms, start_ms)
    paper = Paper(venue, clock, journal)
    control = await serve_unix(Control(paper).application(), settings.RUN_DIR / CONTROL)
    runner = web.AppRunner(paper.application(), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", settings.PAPER_PORT, shutdown_timeout=0.5)
    await site.start()
    log.info(
        "paper serves port=%s symbols=%s feed=%s speed=%s market=%s after_s=%.1f",
        *(settings.PAPER_PORT, len(ticker.listings), settings.PAPER_FEED, settings.PAPER_SPEED),
        datetime.fromtimestamp(start_ms / 1000, UTC).isoformat(timespec="seconds"),
        time.monotonic() - began,
    )
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    market = asyncio.create_task(paper.run_market())
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait((stopping, market), return_when=asyncio.FIRST_COMPLETED)
    if market.done():
        market.result()
    await stopping
    market.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await market
    await runner.cleanup()
    await control.cleanup()
    if upstream:
        upstream.close()
