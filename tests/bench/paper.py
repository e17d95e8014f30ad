"""What the paper exchange can carry: frames and trades a second, and its own cost of each.

A server process, one client that reads as fast as it can, on loopback. The server's CPU time is
read from the operating system, so that a slow client or a busy machine does not count.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from base64 import b64encode
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
SETTLE_S = 60.0  # at most: the server runs through the minute that it started in
MEASURE_S = 10.0
START_S = 60.0


class Load(NamedTuple):
    """One run: its name, symbols, points a second of each, and the topics that are heard."""

    name: str
    symbols: int
    ticks: int
    families: tuple[str, ...]
    wanted: float  # frames a second


LOADS = (
    Load("usual: 500 symbols, klines", 500, 1, ("kline.1",), 500),
    Load("20,000 kline frames/s", 500, 40, ("kline.1",), 20_000),
    Load("600 symbols, 20 x their trades", 600, 20, ("publicTrade",), 12_000),
)


class Reader:
    """One websocket that only counts: frames, and single trades in them."""

    def __init__(self, port, topics):
        self._socket = socket.create_connection(("127.0.0.1", port))
        key = b64encode(os.urandom(16)).decode()
        lines = (
            "GET /v5/public/linear HTTP/1.1",
            f"Host: 127.0.0.1:{port}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {key}",
            "Sec-WebSocket-Version: 13",
        )
        self._socket.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        self._rest = b""
        while b"\r\n\r\n" not in self._rest:
            self._rest += self._socket.recv(65_536)
        self._rest = self._rest.split(b"\r\n\r\n", 1)[1]
        for first in range(0, len(topics), 200):
            self._say(json.dumps({"op": "subscribe", "args": topics[first : first + 200]}))

    def count(self, seconds):
        """(frames, trades) that came in so many seconds."""
        frames = trades = 0
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._rest += self._socket.recv(2**20)
            at, size = 0, len(self._rest)
            while at + 2 <= size:
                length, head = self._rest[at + 1], 2
                if length >= 126:
                    head = 4 if length == 126 else 10
                    if at + head > size:
                        break
                    length = int.from_bytes(self._rest[at + 2 : at + head], "big")
                if at + head + length > size:
                    break
                frames += 1
                at += head + length
            trades += self._rest.count(b'"BT":', 0, at)
            self._rest = self._rest[at:]
        return frames, trades

    def settle(self, wanted):
        """Wait until the server has caught up with its clock."""
        until = time.monotonic() + SETTLE_S
        while self.count(1.0)[0] > 1.1 * wanted and time.monotonic() < until:
            pass

    def close(self):
        self._socket.close()

    def _say(self, text):
        body, mask = text.encode(), b"\0\0\0\0"
        head = bytes((0x81, 0x80 | 126)) + len(body).to_bytes(2, "big")
        self._socket.sendall(head + mask + body)


@contextlib.contextmanager
def server(**settings):
    """A paper exchange in a process of its own: (its pid, its port)."""
    with TemporaryDirectory(prefix="dm") as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PAPER_", "BYBIT_"))}
        settings = {"PAPER_PORT": port, "RUN_DIR": folder, "PAPER_IP_LIMIT": 10**6} | settings
        process = subprocess.Popen(
            [sys.executable, "-m", "services.paper"],
            cwd=ROOT,
            env=kept | {name: str(value) for name, value in settings.items()},
            stdout=subprocess.DEVNULL,
        )
        try:
            deadline = time.monotonic() + START_S
            while socket.socket().connect_ex(("127.0.0.1", port)):
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.1)
            yield process.pid, port
        finally:
            process.terminate()
            process.wait(10)


def cpu_seconds(pid):
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mb(pid):
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def symbols_of(port):
    """Every symbol that is traded there."""
    from http.client import HTTPConnection  # noqa: PLC0415

    found, cursor = [], ""
    with contextlib.closing(HTTPConnection("127.0.0.1", port)) as http:
        while not found or cursor:
            http.request("GET", f"/v5/market/instruments-info?category=linear&cursor={cursor}")
            result = json.loads(http.getresponse().read())["result"]
            found += [row["symbol"] for row in result["list"]]
            cursor = result["nextPageCursor"]
    return found


def run(load, seconds=MEASURE_S):
    """One load: what was asked for, what came, what it cost."""
    with server(PAPER_SYMBOLS=load.symbols, PAPER_TICKS=load.ticks) as (pid, port):
        topics = [f"{family}.{s}" for family in load.families for s in symbols_of(port)]
        reader = Reader(port, topics)
        with contextlib.closing(reader):
            reader.settle(load.wanted)
            began, cpu = time.monotonic(), cpu_seconds(pid)
            frames, trades = reader.count(seconds)
            took, spent = time.monotonic() - began, cpu_seconds(pid) - cpu
            return {
                "load": load.name,
                "wanted_per_s": load.wanted,
                "frames_per_s": round(frames / took),
                "trades_per_s": round(trades / took),
                "cpu_us_per_frame": round(spent / frames * 1e6, 1),
                "cpu_share": round(spent / took, 2),
                "memory_mb": round(memory_mb(pid)),
            }
