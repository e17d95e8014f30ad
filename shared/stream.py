"""stream: the public market's websocket, by aiohttp; and the ears that every socket of ours has.

One object is one connection: it never connects again, and says in `lost` why it ended. pybit's own
socket takes three times the CPU for a kline, and the public one is where all of them come in.
"""

import asyncio
import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import aiohttp
import orjson

from shared.messages import NOT_OURS

PUBLIC_PATH = "/v5/public/linear"
IDLE_SECONDS = 5.0  # unheard before a ping frame; lost without a word in half of that
PING = {"op": "ping"}  # Bybit wants to hear one every 20 s
OPEN_SECONDS = 5.0
GOODBYE_SECONDS = 0.25  # for the other side's, of the websocket and then of TLS
MAX_PUSH_BYTES = 2**20  # a kline has 300

log = logging.getLogger("dm")


class Ears:
    """What a text of the exchange means to a connection; whatever it holds, it ends nothing.

    Pushes and answers to orders go on to `heard`. `lost` is why the connection is over, or why it
    must be; empty while it lives.
    """

    def __init__(self, heard: Callable[[Any], None], **rest: Any) -> None:
        self._heard = heard
        self.heard_at = time.monotonic()
        self.confirmed = 0  # answers to auth and subscribe
        self.lost = ""
        super().__init__(**rest)

    def _on_message(self, text: str | bytes) -> None:
        try:
            message = orjson.loads(text)
            if "topic" in message or message["op"].startswith("order."):
                self.heard_at = time.monotonic()
                self._heard(message)
            elif message["op"] in ("auth", "subscribe"):
                if message.get("success", message.get("retCode") == 0):
                    self.confirmed += 1
                else:
                    self.lost = f"{message['op']} refused: {message.get('ret_msg', message)}"
        except NOT_OURS as error:
            log.warning("bad_frame error=%r frame=%.200a", error, text)


class PublicSocket(Ears):
    """The public stream at a base address: an event loop in a thread, until `exit`."""

    def __init__(self, base: str, heard: Callable[[Any], None]) -> None:
        super().__init__(heard)
        self._url = base + PUBLIC_PATH
        self._outbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._loop = asyncio.new_event_loop()
        self._life = self._loop.create_task(self._live())
        self._thread = threading.Thread(target=self._run, name="public-socket", daemon=True)
        self._thread.start()

    def send(self, message: dict[str, Any]) -> None:
        """As soon as it is connected; never blocks, never raises."""
        self._loop.call_soon_threadsafe(self._outbox.put_nowait, message)

    def exit(self) -> None:
        """Hang up. Nothing is heard once this returns."""
        self._loop.call_soon_threadsafe(self._life.cancel)
        self._thread.join()
        self._loop.close()

    def _run(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._life)
        rest_s = GOODBYE_SECONDS if self._url.startswith("wss") else 0
        self._loop.run_until_complete(asyncio.sleep(rest_s))  # a transport closes behind our back

    async def _live(self) -> None:
        """From opening to end."""
        try:
            async with aiohttp.ClientSession() as session:
                async with asyncio.timeout(OPEN_SECONDS):
                    socket = await session.ws_connect(
                        self._url,
                        heartbeat=IDLE_SECONDS,
                        max_msg_size=MAX_PUSH_BYTES,
                        timeout=aiohttp.ClientWSTimeout(ws_close=GOODBYE_SECONDS),
                        decode_text=False,
                    )
                await self._hear(socket)
        except (aiohttp.ClientError, OSError) as error:
            self.lost = self.lost or f"{type(error).__name__}: {error}"
        finally:
            self.lost = self.lost or "closed"

    async def _hear(self, socket: aiohttp.ClientWebSocketResponse[Any]) -> None:
        """Every text, until one side hangs up."""
        talking = asyncio.create_task(self._talk(socket))
        try:
            async for frame in socket:
                if frame.type == aiohttp.WSMsgType.TEXT:
                    self._on_message(frame.data)
            if error := socket.exception():
                self.lost = self.lost or f"{type(error).__name__}: {error}"
        finally:
            await socket.close()
            talking.cancel()
            await asyncio.wait({talking})

    async def _talk(self, socket: aiohttp.ClientWebSocketResponse[Any]) -> None:
        """What is to be sent, and a ping where that is nothing for IDLE_SECONDS."""
        with contextlib.suppress(ConnectionError):  # whoever hears notices it
            while not socket.closed:  # wait_for loses a cancel that meets a message
                message = PING
                with contextlib.suppress(TimeoutError):
                    message = await asyncio.wait_for(self._outbox.get(), IDLE_SECONDS)
                await socket.send_str(json.dumps(message))
