"""A TCP proxy between bot and exchange that spoils the line: what no exchange's own fault can do.

A connection is known by the path of its first request: `/v5/private`, `/v5/trade`; "" is every one.
It knows nothing of frames: bytes come late, are cut off, vanish or come twice.
"""

import asyncio
import random
import re
import socket
import struct
import threading
from contextlib import suppress

CHUNK = 65_536
LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
LINGER_0 = struct.pack("ii", 1, 0)  # closing sends RST, not FIN


class Line:
    """One connection of the bot, and the one that the proxy has made for it."""

    def __init__(self, path, client, server):
        self.path, self.client, self.server = path, client, server
        self.frozen = False  # it stands, and nothing gets through
        self.left = None  # bytes to the bot before it is cut; None: it is not

    def reset(self):
        """Gone, without a goodbye."""
        for writer in (self.client, self.server):
            with suppress(OSError, AttributeError):  # it is closed already
                own = writer.get_extra_info("socket")
                own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)
            writer.transport.abort()


class Proxy:
    """Forwards from a port of its own to `to_port`, in a thread, until `close`.

    Its verbs may be called from any thread. They hold until `heal`, but for `reset`, `freeze` and
    `cut`, which strike what is connected now.
    """

    def __init__(self, to_port, seed=1):
        self._to_port, self._random = to_port, random.Random(seed)
        self._lines = set()
        self.opened = []  # paths, in order
        self.doubled = 0
        self.heal()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()

    # What goes wrong.

    def heal(self):
        """New bytes pass as they come, new connections are let in."""
        self._late = ("", 0.0, 0.0)
        self._refused = self._twice = None

    def delay(self, path, seconds, jitter=0.0):
        """Each chunk comes so much later, both ways; none overtakes another of its line."""
        self._late = (path, seconds, jitter)

    def cut(self, path, after):
        """Each line is cut once it has said so many bytes more to the bot; only those there now."""
        for line in self._of(path):
            line.left = after

    def freeze(self, path):
        """Half open: the lines that are there now stand, and nothing gets through any more."""
        for line in self._of(path):
            line.frozen = True

    def reset(self, path):
        """The lines that are there now are reset."""
        for line in self._of(path):
            self._loop.call_soon_threadsafe(line.reset)

    def refuse(self, path):
        """New lines are reset as soon as they ask for something."""
        self._refused = path

    def twice(self, path):
        """What the bot says by this path reaches the exchange twice: chunks of a websocket's line,
        whole requests by HTTP (the first answer is lost)."""
        self._twice = path

    def count(self, path):
        """How many lines were ever opened, by their first request."""
        return self.opened.count(path)

    def close(self):
        """Nothing is left: no line, no thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    # The thread.

    def _of(self, path):
        return [line for line in list(self._lines) if line.path.startswith(path)]

    def _run(self):
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(asyncio.start_server(self._accept, sock=self._listener))
        self._loop.run_forever()
        for line in list(self._lines):
            line.reset()
        self._listener.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0.05))
        self._loop.close()

    async def _accept(self, reader, writer):
        try:
            first = await reader.read(CHUNK)
        except OSError:
            return
        path = first.split(b" ")[1].partition(b"?")[0].decode() if b" " in first else ""
        if self._refused is not None and path.startswith(self._refused):
            Line(path, writer, writer).reset()
            return
        try:
            answers, server = await asyncio.open_connection("127.0.0.1", self._to_port)
        except OSError:  # the exchange is not there
            Line(path, writer, writer).reset()
            return
        line = Line(path, writer, server)
        self._lines.add(line)
        self.opened.append(path)
        pumps = (self._to_exchange(line, reader, first), self._to_bot(line, answers))
        try:
            await asyncio.gather(*pumps)
        finally:
            self._lines.discard(line)

    async def _to_exchange(self, line, reader, chunk):
        send = self._sender(line, line.server)
        with suppress(OSError):
            while chunk:
                twice = self._twice
                if twice is not None and chunk.startswith(b"POST " + twice.encode()):
                    chunk = await self._whole(reader, chunk)
                    await self._send_apart(chunk)
                    self.doubled += 1
                elif (
                    twice is not None
                    and line.path.startswith(twice)
                    and not chunk.startswith(b"GET ")
                ):
                    chunk += chunk
                    self.doubled += 1
                send(chunk)
                chunk = await reader.read(CHUNK)
        self._ends(line, line.server)

    async def _to_bot(self, line, reader):
        send = self._sender(line, line.client)
        with suppress(OSError):
            while chunk := await reader.read(CHUNK):
                if line.left is not None and len(chunk) > line.left:
                    line.client.write(chunk[: line.left])
                    await line.client.drain()
                    line.client.close()  # the bot reads what there is, then the end
                    line.server.transport.abort()
                    return
                if line.left is not None:
                    line.left -= len(chunk)
                send(chunk)
        self._ends(line, line.client)

    def _ends(self, line, writer):
        """One side has hung up: so does the other, unless nothing gets through."""
        if not line.frozen:
            writer.close()

    def _sender(self, line, writer):
        """Passes chunks on, at once or later, in their order."""
        due = 0.0

        def pass_on(chunk):
            if not line.frozen and not writer.is_closing():
                writer.write(chunk)

        def send(chunk):
            nonlocal due
            path, seconds, jitter = self._late
            late = seconds + self._random.uniform(-jitter, jitter) if seconds else 0.0
            now = self._loop.time()
            due = max(due, now + late) if line.path.startswith(path) else max(due, now)
            if due <= now:
                pass_on(chunk)
            else:
                self._loop.call_at(due, pass_on, chunk)

        return send

    async def _whole(self, reader, chunk):
        """An HTTP request to its end: its body may come apart from its head."""
        while b"\r\n\r\n" not in chunk:
            chunk += await reader.read(CHUNK)
        head, _, body = chunk.partition(b"\r\n\r\n")
        missing = int(LENGTH.search(head)[1]) - len(body)
        return chunk + (await reader.readexactly(missing) if missing else b"")

    async def _send_apart(self, request):
        """The same request by a line of its own, and its answer goes nowhere."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._to_port)
        writer.write(request)
        await reader.read(CHUNK)
        writer.close()
