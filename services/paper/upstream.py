"""upstream: another exchange's public market, by the bot's own door, for PAPER_FEED=live.

No key is used: instruments and klines by REST, klines by websocket. What a broken connection missed
is fetched when it stands again.
"""

import asyncio
import logging
from typing import Any

from services.paper.live import Live, listing_of
from services.paper.market import BadData
from shared import messages as msg
from shared.bybit import Exchange
from shared.settings import Settings

TRIES, RETRY_SECONDS = 5, 3.0

log = logging.getLogger("paper")


class Upstream:
    """Feeds a `Live` from a connection of its own."""

    def __init__(self, settings: Settings) -> None:
        at = {
            "BYBIT_REST_URL": settings.PAPER_LIVE_REST,
            "BYBIT_STREAM_URL": settings.PAPER_LIVE_STREAM,
        }
        self._url, self._loop = settings.PAPER_LIVE_REST, asyncio.get_running_loop()
        self._only, self._types = settings.names("SYMBOLS"), settings.names("SYMBOL_TYPES")
        self._answers: asyncio.Queue[msg.Fetched] = asyncio.Queue()
        self._live: Live | None = None
        self._exchange = Exchange(settings.model_copy(update=at), self._post, ())

    async def begin(self) -> Live:
        """The universe, its history and a subscription. Raises BadData where there is no market."""
        instruments = await self._instruments()
        for instrument in instruments:
            self._exchange.send(msg.Fetch("klines", instrument.symbol))
        bars: dict[str, tuple[Any, ...]] = {}
        for count in range(1, len(instruments) + 1):
            answer = await self._answers.get()
            bars[answer.ask.symbol] = answer.rows
            if count % 100 == 0:
                log.info("history symbols=%s of=%s", count, len(instruments))
        known = [listing_of(row) for row in instruments if bars[row.symbol]]
        log.info("universe symbols=%s without_history=%s", len(known), len(bars) - len(known))
        self._live = live = Live(known)
        for listing in known:
            live.history(listing.symbol, bars[listing.symbol])
        topics = tuple(f"kline.1.{listing.symbol}" for listing in live.listings)
        self._exchange.send(msg.Subscribe(topics))
        return live

    def close(self) -> None:
        """End the connection."""
        self._exchange.close()

    async def _instruments(self) -> list[msg.Instrument]:
        for _ in range(TRIES):
            self._exchange.send(msg.Fetch("instruments"))
            answer = await self._answers.get()
            found = [
                row
                for row in answer.rows
                if row.status == "Trading"
                and row.symbol_type in self._types
                and (not self._only or row.symbol in self._only)
            ]
            if found:
                return sorted(found)
            log.warning("no_market url=%s error=%s", self._url, answer.error)
            await asyncio.sleep(RETRY_SECONDS)
        raise BadData(f"PAPER_LIVE_REST: no tradable symbols at {self._url}")

    def _post(self, message: Any) -> None:
        """From the threads of the door."""
        if isinstance(message, msg.Kline) and self._live:
            self._live.heard(message)
        elif isinstance(message, msg.Fetched):
            self._loop.call_soon_threadsafe(self._fetched, message)
        elif isinstance(message, msg.Link):
            self._loop.call_soon_threadsafe(self._linked, message)

    def _fetched(self, answer: msg.Fetched) -> None:
        if self._live:
            self._live.history(answer.ask.symbol, answer.rows)
        else:
            self._answers.put_nowait(answer)

    def _linked(self, link: msg.Link) -> None:
        """Ask for the bars that were closed while nobody heard them."""
        log.info("upstream link=%s up=%s reason=%s", link.name, link.up, link.reason)
        if link.up and self._live:
            for listing in self._live.listings:
                since_ms = self._live.known(listing.symbol)
                self._exchange.send(msg.Fetch("klines", listing.symbol, start_ms=since_ms))
