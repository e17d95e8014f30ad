"""stream: the public websocket against a peer on loopback that does what a good one never would.

The peer is aiohttp's server in a thread of its own. What it does with each connection is a
coroutine; the last one is for all that follow.
"""

import asyncio
import contextlib
import json
import os
import queue
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from aiohttp import WSCloseCode, WSMsgType, web

from shared import bybit, stream
from shared import messages as msg
from shared.settings import Settings

SECONDS = 5.0  # how long anything may take
TOPICS = ("kline.1.AUSDT", "kline.1.BUSDT")
ROW = {"start": 60_000, "open": "1", "high": "3", "low": "0.5", "close": "2"}
ROW |= {"volume": "10", "turnover": "20", "confirm": False, "timestamp": 61_500}
OK = {"success": True, "ret_msg": "", "op": "subscribe"}
ROOT = Path(__file__).parents[1]


def push(close=2.0, **change):
    """A kline; each has a close of its own."""
    row = ROW | {"close": str(close)} | change
    return json.dumps({"topic": TOPICS[0], "ts": 61_600, "type": "snapshot", "data": [row]})


class Peer:
    """Serves `acts`, one for each connection, until `close`."""

    def __init__(self, *acts, port=0, tls=None):
        self._acts = list(acts)
        self.said = queue.Queue()  # (number of the connection, what it said)
        self._loop, self._over = asyncio.new_event_loop(), asyncio.Event()
        self.turn = asyncio.Semaphore(0)
        self._tls, self.number = tls, 0
        self.listener = socket.create_server(("127.0.0.1", port))
        self.port = self.listener.getsockname()[1]
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),))
        self._thread.start()

    @property
    def url(self):
        return f"{'wss' if self._tls else 'ws'}://localhost:{self.port}"

    def close(self):
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()
        self._loop.close()

    def strike(self):
        """Let one connection that waits for it go wrong."""
        self._loop.call_soon_threadsafe(self.turn.release)

    def next(self, wanted=lambda frame: frame.get("op") == "subscribe"):
        """Number and words of the next frame that is wanted."""
        until = time.monotonic() + SECONDS
        while True:
            number, frame = self.said.get(timeout=max(0.0, until - time.monotonic()))
            if wanted(frame):
                return number, frame

    async def _run(self):
        app = web.Application()
        app.router.add_get(stream.PUBLIC_PATH, self._serve)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.SockSite(runner, self.listener, ssl_context=self._tls).start()
        await self._over.wait()
        await runner.cleanup()

    async def _serve(self, request):
        self.number += 1
        act = self._acts.pop(0) if len(self._acts) > 1 else self._acts[0]
        if act is refuses:
            return web.Response(status=503)
        wire = web.WebSocketResponse(autoping=False)
        await wire.prepare(request)
        with contextlib.suppress(ConnectionError):
            await act(Wire(self, wire, request.transport, self.number))
        return wire


class Wire:
    """One connection, as the peer sees it."""

    def __init__(self, peer, wire, transport, number):
        self._peer, self.wire, self.transport, self._number = peer, wire, transport, number

    async def subscribed(self, answer=OK):
        await self.hear(lambda frame: frame.get("op") == "subscribe")
        await self.wire.send_json(answer)

    async def struck(self):
        """Works so far, then it is its turn to go wrong."""
        await self.subscribed()
        await self.wire.send_str(push(1.0))
        await self._peer.turn.acquire()

    async def hear(self, until=lambda frame: False, pong=True):
        """All it says, up to what is waited for; pings are answered, or not."""
        async for frame in self.wire:
            heard = (
                json.loads(frame.data) if frame.type == WSMsgType.TEXT else {"frame": frame.type}
            )
            self._peer.said.put((self._number, heard))
            if frame.type == WSMsgType.PING and pong:
                await self.wire.pong(frame.data)
            if until(heard):
                return
        self._peer.said.put((self._number, {"closed": self.wire.close_code}))


async def refuses(wire):
    """503."""


async def serves(wire):
    """A good one."""
    await wire.subscribed()
    await wire.wire.send_str(push())
    await wire.hear()


async def hangs_up(wire):
    await wire.struck()
    await wire.wire.close(code=WSCloseCode.GOING_AWAY)


async def breaks(wire):
    await wire.struck()
    wire.transport.abort()


async def is_cut(wire):
    """In the middle of a frame."""
    await wire.struck()
    wire.transport.write(b"\x81\x7e\x01\x00half")
    wire.transport.close()


async def breaks_protocol(wire):
    await wire.struck()
    wire.transport.write(b"\xff\xff\xff\xff\xff\xff")
    await wire.hear()


async def floods(wire):
    """One frame larger than any honest one."""
    await wire.struck()
    await wire.wire.send_str(push(9.0, more="x" * stream.MAX_PUSH_BYTES))
    await wire.hear()


async def freezes(wire):
    """Half open: nothing comes, no ping is answered."""
    await wire.subscribed()
    await wire.wire.send_str(push(1.0))
    await wire.hear(pong=False)


async def is_mute(wire):
    """It answers nothing but pings."""
    await wire.hear()


@contextlib.contextmanager
def door(*acts, topics=TOPICS, **terms):
    """The bot's door to a peer, and a way to wait for what it posts."""
    with contextlib.closing(Peer(*acts, **terms)) as peer, at(peer.url, topics) as posted:
        yield peer, posted


@contextlib.contextmanager
def at(url, topics=TOPICS):
    heard = queue.Queue()
    settings = Settings(_env_file=None, BYBIT_STREAM_URL=url)
    exchange = bybit.Exchange(settings, heard.put, ())
    before = set(threading.enumerate())
    try:
        exchange.send(msg.Subscribe(topics))
        yield heard
    finally:
        exchange.close()
        size = heard.qsize()
        assert {t for t in threading.enumerate() if t.name.startswith("public")} <= before
        assert heard.qsize() == size  # nothing is heard after the end


def post(heard, kind):
    """The next message of a kind; the first push may come before the link is said to be up."""
    passed = []
    while True:
        message = heard.get(timeout=SECONDS)
        if isinstance(message, kind):
            heard.queue.extendleft(reversed(passed))
            return message
        passed.append(message)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """The same waits, shorter."""
    monkeypatch.setattr(bybit, "BACKOFF_SECONDS", (0.01, 0.02))
    monkeypatch.setattr(stream, "GOODBYE_SECONDS", 0.1)


def test_a_kline_comes_in():
    with door(serves) as (peer, heard):
        assert post(heard, msg.Link) == msg.Link("public-0", True, "")
        kline = post(heard, msg.Kline)
        assert kline[:-1] == ("AUSDT", 60_000, 1, 3, 0.5, 2, 10, 20, False, 61_500)
        assert peer.next() == (1, {"op": "subscribe", "req_id": "public-0", "args": [*TOPICS]})


@pytest.mark.parametrize("act", [hangs_up, breaks, is_cut, breaks_protocol, floods])
def test_a_lost_connection_is_said_and_built_again_with_all_topics(act):
    with door(act, act, serves) as (peer, heard):
        for number in (1, 2):
            assert post(heard, msg.Link).up
            assert post(heard, msg.Kline).close == 1.0
            peer.strike()
            down = post(heard, msg.Link)
            assert (down.name, down.up, bool(down.reason)) == ("public-0", False, True)
            assert peer.next()[0] == number
        assert post(heard, msg.Link).up
        assert post(heard, msg.Kline).close == 2.0
        assert peer.next() == (3, {"op": "subscribe", "req_id": "public-0", "args": [*TOPICS]})


BAD = {
    "no JSON": b'{"topic":"kline.1.AUSDT","data":[',
    "no text": b"\xff\xfe\x00",
    "no object": b"[1, 2, 3]",
    "null": b"null",
    "nothing": b"",
    "no topic": b'{"data": []}',
    "an unknown topic": b'{"topic":"greeks","data":[{"a":1}]}',
    "a topic that is a number": b'{"topic":7,"data":[]}',
    "no data": b'{"topic":"kline.1.AUSDT"}',
    "no rows": b'{"topic":"kline.1.AUSDT","data":null}',
    "rows that are numbers": b'{"topic":"kline.1.AUSDT","data":[1,2]}',
    "a row that is text": b'{"topic":"kline.1.AUSDT","data":["start"]}',
    "fields are missing": b'{"topic":"kline.1.AUSDT","data":[{"start":1}]}',
    "a price that is a word": push(low="high").encode(),
    "a price that is null": push(low=None).encode(),
    "a time that is an object": push(start={}).encode(),
    "deep": b"[" * 100_000,
}


def test_no_text_ends_a_connection():
    async def babbles(wire):
        await wire.subscribed()
        for text in BAD.values():
            await wire.wire.send_frame(text, WSMsgType.TEXT)
        await wire.wire.send_bytes(push(8.0).encode())  # no text at all
        await wire.wire.send_str(push())
        await wire.hear()

    with door(babbles) as (peer, heard):
        assert post(heard, msg.Link).up
        assert post(heard, msg.Kline).close == 2.0
        assert (peer.number, heard.qsize()) == (1, 0)


def test_a_text_in_pieces_is_one():
    async def stammers(wire):
        await wire.subscribed()
        whole = push().encode()
        for head, part in ((0x01, whole[:50]), (0x00, whole[50:90]), (0x80, whole[90:])):
            wire.transport.write(bytes((head, 126)) + len(part).to_bytes(2, "big") + part)
        await wire.hear()

    with door(stammers) as (_, heard):
        assert post(heard, msg.Kline).close == 2.0


def test_a_refused_topic_is_left_out_and_told():
    refusal = {"success": False, "op": "subscribe"}
    refusal["ret_msg"] = f"error:handler not found,topic:{TOPICS[0]}"

    async def refuses_one(wire):
        await wire.subscribed(refusal)
        await wire.hear()

    with door(refuses_one, serves) as (peer, heard):
        assert TOPICS[0] in post(heard, msg.Link).reason
        assert post(heard, msg.Link) == msg.Link("public-0", True, f"without {TOPICS[0]}")
        assert [peer.next()[1]["args"] for _ in range(2)] == [[*TOPICS], [TOPICS[1]]]


def test_who_does_not_answer_the_subscription_is_left(monkeypatch):
    monkeypatch.setattr(bybit, "CONFIRM_SECONDS", 0.2)
    with door(is_mute, refuses, serves) as (_, heard):
        down = msg.Link("public-0", False, "no answer to auth or subscribe")
        assert post(heard, msg.Link) == down
        assert "503" in post(heard, msg.Link).reason
        monkeypatch.setattr(bybit, "CONFIRM_SECONDS", SECONDS)
        while not post(heard, msg.Link).up:
            pass


def test_a_connection_without_pushes_is_left_though_it_answers_pings(monkeypatch):
    monkeypatch.setattr(bybit, "SILENT_SECONDS", 0.3)
    monkeypatch.setattr(bybit, "PUSH_SECONDS", 0.3)
    monkeypatch.setattr(stream, "IDLE_SECONDS", 0.05)
    with door(serves) as (_, heard):
        assert post(heard, msg.Link).up
        assert post(heard, msg.Link) == msg.Link("public-0", False, "silent for 0.3 s")
        assert post(heard, msg.Link).up


def test_a_half_open_connection_is_left_by_its_missing_pongs(monkeypatch):
    monkeypatch.setattr(stream, "IDLE_SECONDS", 0.2)
    with door(freezes, serves) as (peer, heard):
        assert post(heard, msg.Link).up
        assert "No PONG" in post(heard, msg.Link).reason
        assert post(heard, msg.Link).up
        assert peer.next(lambda frame: frame.get("frame") == WSMsgType.PING)[0] == 1
    assert stream.IDLE_SECONDS * 1.5 <= 8  # goal T9


def test_a_quiet_connection_that_answers_pings_stays(monkeypatch):
    """Pings of both kinds: Bybit documents the one that is a text."""
    monkeypatch.setattr(stream, "IDLE_SECONDS", 0.1)
    with door(serves) as (peer, heard):
        assert post(heard, msg.Kline)
        assert post(heard, msg.Link).up
        for _ in range(5):
            assert peer.next(lambda frame: frame.get("frame") == WSMsgType.PING)[0] == 1
            assert peer.next(lambda frame: frame == {"op": "ping"})[0] == 1
        assert heard.empty()


def test_it_never_gives_up():
    with contextlib.closing(Peer(serves)) as peer:
        port = peer.port
    with at(f"ws://localhost:{port}") as heard:
        for _ in range(20):
            assert not post(heard, msg.Link).up
        with contextlib.closing(Peer(serves, port=port)):
            while not post(heard, msg.Link).up:
                pass
            assert post(heard, msg.Kline).close == 2.0
            # closed by `at` after the peer: the link goes down meanwhile, and nothing hangs


def test_at_the_end_it_says_goodbye():
    with contextlib.closing(Peer(serves)) as peer:
        with at(peer.url) as heard:
            assert post(heard, msg.Kline)
        assert peer.next(lambda frame: "closed" in frame) == (1, {"closed": WSCloseCode.OK})


def test_an_end_before_it_is_connected_is_one():
    listener = socket.create_server(("127.0.0.1", 0))  # accepts nobody
    with contextlib.closing(listener):
        for _ in range(20):
            with at(f"ws://127.0.0.1:{listener.getsockname()[1]}") as heard:
                pass
            assert heard.empty()


def test_another_subscription_takes_the_place_of_the_first():
    with contextlib.closing(Peer(serves)) as peer:
        heard = queue.Queue()
        settings = Settings(_env_file=None, BYBIT_STREAM_URL=peer.url)
        exchange = bybit.Exchange(settings, heard.put, ())
        exchange.send(msg.Subscribe(TOPICS))
        assert peer.next()[1]["args"] == [*TOPICS]
        exchange.send(msg.Subscribe(TOPICS[:1]))
        ends = [peer.next(lambda frame: frame.get("op") != "ping") for _ in range(2)]
        assert [frame["args"] for number, frame in ends if number == 2] == [[*TOPICS[:1]]]
        assert [number for number, frame in ends if "closed" in frame] == [1]
        exchange.close()


# TLS.

LISTENS = """
import queue, sys
from shared import bybit, messages as msg
from shared.settings import Settings
heard = queue.Queue()
settings = Settings(_env_file=None, BYBIT_STREAM_URL=sys.argv[1])
exchange = bybit.Exchange(settings, heard.put, ())
exchange.send(msg.Subscribe(("kline.1.AUSDT",)))
print(*sorted(str(heard.get(timeout=10)) for _ in range(2)))
exchange.close()
"""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Of localhost, signed by itself; (certificate, key)."""
    if not shutil.which("openssl"):
        pytest.skip("no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    made = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost")
    made += ("-addext", "subjectAltName=DNS:localhost", "-keyout", "key.pem", "-out", "cert.pem")
    subprocess.run(made, cwd=folder, check=True, capture_output=True)
    return folder / "cert.pem", folder / "key.pem"


@pytest.mark.parametrize(
    ("trusted", "said"), [(True, "Kline(symbol='AUSDT'"), (False, "CERTIFICATE_VERIFY_FAILED")]
)
def test_a_certificate_is_verified(certificate, trusted, said):
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(*certificate)
    env = os.environ | ({"SSL_CERT_FILE": str(certificate[0])} if trusted else {})
    with contextlib.closing(Peer(serves, tls=tls)) as peer:
        found = subprocess.run(
            [sys.executable, "-W", "error", "-c", LISTENS, peer.url],
            env=env, cwd=ROOT, check=True, capture_output=True, text=True, timeout=30,
        )  # fmt: skip
    assert said in found.stdout
    assert found.stderr == ""


def test_a_kline_is_read_as_every_other_row_is():
    """The short way says what `read` would."""
    row = ROW | {"confirm": True}
    more = {"symbol": "AUSDT", "ts": row["timestamp"]}
    assert bybit.kline_of("AUSDT", row, 77) == bybit.read(msg.Kline, row | more, 77)
    for name in ROW.keys() - {"timestamp"}:
        less = {key: value for key, value in row.items() if key != name}
        for wrong in (less, row | {name: None}, row | {name: {}}, row | {name: "x"}):
            said = tried(bybit.kline_of, "AUSDT", wrong, 77)
            assert said == tried(bybit.read, msg.Kline, wrong | more, 77)
            assert (said is None) == (name != "confirm" or wrong is less)


def tried(act, *terms):
    """What comes of it; nothing from a bad frame."""
    try:
        return act(*terms)
    except bybit.BAD_FRAME:
        return None
