"""paper: a Bybit v5 for linear USDT perpetuals on loopback, http and websocket on one port.

Puts a `Venue` on the network: it reads requests and frames, writes answers when they are due, and
lets the market run. It knows nothing of orders.
"""

import asyncio
import time
from pathlib import Path

from aiohttp import WSMsgType, web

from services.paper.clock import Clock
from services.paper.gate import Now
from services.paper.journal import Journal
from services.paper.sessions import KINDS, Session
from services.paper.venue import Request, Response, Venue

BATCH_SECONDS = 0.005  # how often the market looks at its clock
MARK_NS = 1_000_000_000  # how often the market time is written down
BACKLOG_BYTES = 16_000_000  # a client that is so far behind is cut off
MAX_BODY = 2**20
TEXT_FRAME = 0x81


class Paper:
    """The server: one venue, its sockets, and the market's loop."""

    def __init__(self, venue: Venue, clock: Clock, journal: Journal) -> None:
        self._venue, self._clock, self._journal = venue, clock, journal
        self._sockets: dict[Session, web.WebSocketResponse] = {}
        self._transports: dict[Session, asyncio.Transport] = {}
        self._waiting: set[Session] = set()
        self._closing: set[asyncio.Task[None]] = set()

    def application(self) -> web.Application:
        """The v5 port."""
        app = web.Application(client_max_size=MAX_BODY)
        for path in KINDS:
            app.router.add_get(path, self._socket)
        app.router.add_route("*", "/{path:.*}", self._http)
        return app

    def now(self) -> Now:
        """This moment on all clocks."""
        mono_ns = time.monotonic_ns()
        market_ms = self._clock.now_ms(mono_ns)
        return self._venue.at(time.time_ns() // 1_000_000, market_ms, mono_ns / 1e9)

    @property
    def venue(self) -> Venue:
        """What is served."""
        return self._venue

    async def run_market(self) -> None:
        """Trades and klines as their market time comes, until the feed ends."""
        marked_ns = 0
        while not self._venue.ticker.ended:
            done = self._venue.advance(self.now())
            self.deliver()
            if time.monotonic_ns() - marked_ns > MARK_NS:
                marked_ns = time.monotonic_ns()
                self._journal.mark(self._clock.now_ms(marked_ns))
            await asyncio.sleep(BATCH_SECONDS if done else 0)

    def deliver(self) -> None:
        """Write every frame that is due; come back for the others."""
        sessions = self._venue.sessions
        if not sessions.dirty:
            return
        dirty, now_s = list(sessions.dirty), time.monotonic()
        sessions.dirty.clear()
        for session in dirty:
            self._write(session, now_s)
            if session.close_code:
                self._hang_up(session)

    def _write(self, session: Session, now_s: float) -> None:
        transport, outbox = self._transports.get(session), session.outbox
        if transport is None or transport.is_closing():
            outbox.clear()
            return
        due = len(outbox)
        if due and outbox[-1][0] > now_s:
            due = next(place for place, (at_s, _) in enumerate(outbox) if at_s > now_s)
        if due:
            transport.write(b"".join([_framed(frame) for _, frame in outbox[:due]]))
            del outbox[:due]
            if transport.get_write_buffer_size() > BACKLOG_BYTES:
                transport.abort()
        if outbox and session not in self._waiting:
            self._waiting.add(session)
            later_s = max(0.0, outbox[0][0] - now_s)
            asyncio.get_running_loop().call_later(later_s, self._again, session)

    def _again(self, session: Session) -> None:
        self._waiting.discard(session)
        self._write(session, time.monotonic())

    def _hang_up(self, session: Session) -> None:
        transport, socket = self._transports.get(session), self._sockets.get(session)
        if transport is None or socket is None:
            return
        if session.close_code == 1006:
            transport.abort()  # no word of goodbye
            return
        task = asyncio.ensure_future(_say_goodbye(socket, session.close_code))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        if self.now().mono_s < self._venue.down_until_s:
            return _cut(request)
        if self.now().mono_s < self._venue.maintained_until_s:
            return web.Response(status=503)
        max_active = request.query.get("max_active_time", "")
        session = self._venue.sessions.connect(request.path, max_active, self.now())
        if session is None:
            return web.Response(status=403, text="access too frequent")
        socket = web.WebSocketResponse(compress=False, max_msg_size=MAX_BODY, autoping=False)
        try:
            await socket.prepare(request)
            transport = request.transport
            if isinstance(transport, asyncio.Transport):
                self._sockets[session], self._transports[session] = socket, transport
            async for message in socket:
                if message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
                    self._venue.sessions.heard(session, message.data, self.now())
                    self.deliver()
                elif message.type == WSMsgType.PING and not self._silent(session):
                    await socket.pong(message.data)
        finally:
            self._venue.sessions.disconnect(session)
            self._sockets.pop(session, None)
            self._transports.pop(session, None)
        return socket

    def _silent(self, session: Session) -> bool:
        return self._venue.faults.deaf(session.kind, ("half_open", "mute"))

    async def _http(self, request: web.Request) -> web.StreamResponse:
        try:
            body = (await request.read()).decode(errors="surrogateescape")
        except ConnectionResetError:
            return _cut(request)  # it hung up in the middle of a word
        asked = Request(
            *(request.method, request.path, request.rel_url.raw_query_string),
            *(dict(request.query), request.headers, body),
        )
        answer = self._venue.http(asked, self.now())
        self.deliver()
        if answer.delay_s:
            await asyncio.sleep(answer.delay_s)
        if answer.drop:
            return _cut(request)
        if answer.truncate:
            return await _cut_short(request, answer)
        kind = "application/json" if answer.status == 200 else "text/plain"
        return web.Response(
            status=answer.status, body=answer.body, content_type=kind, headers=answer.headers
        )


async def serve_unix(app: web.Application, path: Path) -> web.AppRunner:
    """Serve on a unix socket, taking the place of one that was left behind."""
    path.unlink(missing_ok=True)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.UnixSite(runner, str(path)).start()
    return runner


async def _say_goodbye(socket: web.WebSocketResponse, code: int) -> None:
    await socket.close(code=code)


def _framed(frame: bytes) -> bytes:
    """One unmasked text frame. Source: RFC 6455 §5.2."""
    size = len(frame)
    if size < 126:
        return bytes((TEXT_FRAME, size)) + frame
    if size < 65_536:
        return bytes((TEXT_FRAME, 126)) + size.to_bytes(2, "big") + frame
    return bytes((TEXT_FRAME, 127)) + size.to_bytes(8, "big") + frame


def _cut(request: web.Request) -> web.StreamResponse:
    """Close the connection without an answer."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=500)


async def _cut_short(request: web.Request, answer: Response) -> web.StreamResponse:
    """Promise the whole body, send half of it, and close."""
    response = web.StreamResponse(headers=answer.headers)
    response.content_type, response.content_length = "application/json", len(answer.body)
    await response.prepare(request)
    await response.write(answer.body[: len(answer.body) // 2])
    return _cut(request)
