"""server: the life of the paper exchange's process, from settings to SIGTERM."""

import asyncio
import contextlib
import errno
import logging
import os
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from aiohttp import web

from services.paper.actor import HISTORY, Paper
from services.paper.clock import Clock
from services.paper.market import MINUTE_MS, BadData, Feed, Replay, Synthetic
from services.paper.ticker import Ticker
from shared.actor import die_with_parent, hold_lock
from shared.settings import WRONG_SETTING_EXIT, Settings, load

log = logging.getLogger("paper")


def feed_of(settings: Settings, wall_ms: int) -> tuple[Feed, int]:
    """The configured feed and the market time at which trading begins. Raises BadData."""
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
        return replay, replay.start_ms
    first_ms = wall_ms // MINUTE_MS * MINUTE_MS - HISTORY * MINUTE_MS
    hour = settings.PAPER_HOUR - HISTORY / 60
    return Synthetic(settings.PAPER_SYMBOLS, settings.PAPER_SEED, first_ms, hour), wall_ms


def run() -> None:
    """Serve until SIGTERM."""
    settings = load()
    logging.basicConfig(
        level=settings.LOG_LEVEL, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stdout
    )
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    os.umask(0o077)
    if settings.DIE_WITH_PARENT:
        die_with_parent()
    hold_lock(settings.RUN_DIR, "paper-0")
    try:
        asyncio.run(_serve(settings))
    except BadData as error:
        log.error("wrong_setting %s", error)
        sys.exit(WRONG_SETTING_EXIT)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        log.error("wrong_setting PAPER_PORT: %s is in use", settings.PAPER_PORT)
        sys.exit(WRONG_SETTING_EXIT)


async def _serve(settings: Settings) -> None:
    began = time.monotonic()
    feed, start_ms = feed_of(settings, time.time_ns() // 1_000_000)
    ticker = Ticker(feed)
    ticker.warm_up(start_ms // MINUTE_MS * MINUTE_MS, lambda _: None)
    clock = Clock(start_ms, time.monotonic_ns(), settings.PAPER_SPEED)
    paper = Paper(settings, ticker, clock)
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
