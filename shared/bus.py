"""bus: the table of streams, and the only place where ZeroMQ is spoken.

PUB binds, everyone may listen; REP binds, a DEALER asks with a request id and a deadline. PUB drops
in silence at its high-water mark and for slow joiners: whatever matters is said again or asked for.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import zmq
from zmq.auth import create_certificates, load_certificate
from zmq.auth.thread import ThreadAuthenticator

from shared import messages as msg

MAX_SLOTS = 16  # workers of two generations: scaling from 8 to 8 shards fits
ASK_DEADLINE_NS = 2_000_000_000
SILENT_NS = 5_000_000_000  # every speaker speaks each second
CONNECT_MS = 100  # so that what is asked at the start reaches who is there
PAIR = "bus"  # bus.key, bus.key_secret: one pair of CURVE keys for all processes
MAX_DRAIN = 1_000  # messages of one socket per wake-up, so that no socket starves another
MAX_PATH = 107  # bytes of a unix socket path on Linux
NO_TCP: Mapping[str, str] = MappingProxyType({})


class Stream(NamedTuple):
    """One row of the topology: who binds it, how, what it carries and what it may queue."""

    name: str
    pattern: str
    owner: str
    carries: tuple[type[Any], ...]
    high_water_mark: int = 10_000


STREAMS = {
    stream.name: stream
    for stream in (
        Stream("market", "PUB", "ingestor", (msg.Instrument, msg.Kline, msg.Health), 100_000),
        Stream("quotes", "PUB", "worker", (msg.Quote, msg.Health)),
        Stream("commands", "PUB", "router", (msg.OrderRequest, msg.Touch, msg.Health)),
        Stream(
            "account",
            "PUB",
            "keeper",
            (msg.Position, msg.Mode, msg.OrderUpdate, msg.Execution, msg.Wallet, msg.Health),
        ),
        Stream("history", "REP", "ingestor", (msg.HistoryAsk, msg.History)),
        Stream("instruments", "REP", "ingestor", (msg.InstrumentsAsk, msg.Instruments)),
        Stream(
            "ledger",
            "REP",
            "keeper",
            (msg.Ask, msg.Grant, msg.LedgerAsk, msg.FullSet, msg.Control, msg.Mode),
        ),
    )
}


def make_keys(folder: Path) -> None:
    """A new pair of CURVE keys. Whoever is to listen, too, puts a public key of its own there."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    _, secret = create_certificates(folder, PAIR)
    Path(secret).chmod(0o600)


def endpoints(run_dir: Path, name: str, tcp: Mapping[str, str] = NO_TCP) -> list[str]:
    """Every endpoint of a stream: one, but for the workers', who each bind their own slot."""
    slots = range(MAX_SLOTS if STREAMS[name].owner == "worker" else 1)
    return [endpoint(run_dir, name, slot, tcp) for slot in slots]


def endpoint(run_dir: Path, name: str, slot: int, tcp: Mapping[str, str] = NO_TCP) -> str:
    """`ipc://run/market`, `ipc://run/quotes-3`, or its address in `tcp`, one port for each slot.

    Raises ValueError where the path is too long.
    """
    slot = slot if STREAMS[name].owner == "worker" else -1
    if name in tcp:
        host, _, port = tcp[name].rpartition(":")
        return f"{host}:{int(port) + max(0, slot)}"
    path = run_dir / (f"{name}-{slot}" if slot >= 0 else name)
    if len(bytes(path)) > MAX_PATH:
        raise ValueError(f"RUN_DIR: {path} is over {MAX_PATH} bytes, too long for a socket")
    return f"ipc://{path}"


class Bus:
    """The sockets of one actor. Everything else sees messages.

    Streams are sockets in `run_dir`, but for those with an address in `tcp`. With `keys`, a folder,
    tcp speaks CURVE, and only to those whose public key lies there.
    """

    def __init__(
        self,
        run_dir: Path,
        slot: int = 0,
        hears: Mapping[str, Iterable[str]] | None = None,
        says: str = "",
        answers: Iterable[str] = (),
        asks: Iterable[str] = (),
        tcp: Mapping[str, str] = NO_TCP,
        keys: Path | None = None,
    ) -> None:
        self._run_dir, self._tcp, self._keys = run_dir, tcp, keys
        self._context = zmq.Context()
        self._guard: ThreadAuthenticator | None = None
        self._poller = zmq.Poller()
        self._says = self._bind(zmq.PUB, says, slot) if says else None
        self._replies = [self._bind(zmq.REP, name, slot) for name in answers]
        self._hears = {name: self._connect(zmq.SUB, name) for name in hears or {}}
        self._heard_ns = dict.fromkeys(self._hears, time.monotonic_ns())
        self._topics: dict[str, set[str]] = {name: set() for name in self._hears}
        for name, topics in (hears or {}).items():
            self.hear(name, topics)
        self._asks = {name: self._connect(zmq.DEALER, name) for name in asks}
        for socket in (*self._replies, *self._hears.values(), *self._asks.values()):
            self._poller.register(socket, zmq.POLLIN)
        self._pending: dict[bytes, tuple[int, msg.Message]] = {}
        self._asked = 0
        self.malformed = 0

    def watch(self, fd: int) -> None:
        """Wake `receive` when this file descriptor is readable, too."""
        self._poller.register(fd, zmq.POLLIN)

    def hear(self, name: str, topics: Iterable[str]) -> None:
        """Of this stream, only what begins with one of these topics."""
        known, self._topics[name] = self._topics[name], set(topics)
        for topic in self._topics[name] - known:
            self._hears[name].subscribe(topic)
        for topic in known - self._topics[name]:
            self._hears[name].unsubscribe(topic)

    def publish(self, message: msg.Message) -> None:
        """To all who listen. Never blocks."""
        if self._says is not None:
            self._says.send(msg.published(message))

    def ask(self, name: str, message: msg.Message, now_ns: int) -> None:
        """To whoever answers this stream; the answer, or NoAnswer, comes back by `receive`."""
        self._asked += 1
        request_id = self._asked.to_bytes(8, "big")
        self._pending[request_id] = (now_ns + ASK_DEADLINE_NS, message)
        try:
            self._asks[name].send_multipart((request_id, b"", msg.encode(message)), zmq.NOBLOCK)
        except zmq.Again:
            self._pending[request_id] = (now_ns, message)  # nobody there: overdue at once

    def overdue(self, now_ns: int) -> list[msg.NoAnswer]:
        """What was asked and not answered in time; forgotten here, so each is said once.

        Streams that are silent are connected anew: a socket gives up for good on a peer that once
        broke the protocol.
        """
        for name, socket in self._hears.items():
            if now_ns - self._heard_ns[name] > SILENT_NS:
                self._heard_ns[name] = now_ns
                for address in endpoints(self._run_dir, name, self._tcp):
                    socket.disconnect(address)
                    socket.connect(address)
        late = [key for key, (deadline, _) in self._pending.items() if deadline <= now_ns]
        return [msg.NoAnswer(self._pending.pop(key)[1]) for key in late]

    def receive(self, timeout_ms: float) -> Iterator[tuple[Any, "zmq.Socket[bytes] | None"]]:
        """Messages as they come, each with the socket to reply on if it was an ask."""
        ready = dict(self._poller.poll(max(0, int(timeout_ms))))
        for socket in self._replies:
            if socket in ready:
                yield from ((message, socket) for message in self._drain(socket))
        for socket in self._asks.values():
            if socket in ready:
                yield from ((message, None) for message in self._drain(socket))
        for name, socket in self._hears.items():
            if socket in ready:
                self._heard_ns[name] = time.monotonic_ns()
                yield from ((message, None) for message in self._drain(socket))

    def reply(self, socket: "zmq.Socket[bytes]", message: msg.Message) -> None:
        """Answer the ask that `receive` gave with this socket."""
        socket.send(msg.encode(message))

    def refuse(self, socket: "zmq.Socket[bytes]") -> None:
        """An empty answer, which no decoder takes: the asker hears NoAnswer at its deadline."""
        socket.send(b"")

    def close(self) -> None:
        """Let what was said leave, for a moment, then close."""
        if self._guard:
            self._guard.stop()
        self._context.destroy(linger=200)

    def _drain(self, socket: "zmq.Socket[bytes]") -> Iterator[Any]:
        kind, request_id = socket.type, b""
        for _ in range(MAX_DRAIN):
            try:
                if kind == zmq.DEALER:
                    request_id, *_, frame = socket.recv_multipart(zmq.NOBLOCK)
                else:
                    frame = socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                message = msg.decode(frame)
            except msg.Malformed:
                self.malformed += 1
                if kind == zmq.REP:
                    self.refuse(socket)
                continue
            if kind == zmq.DEALER and not self._pending.pop(request_id, None):
                continue  # answered after its deadline: the asker has moved on
            yield message

    def _bind(self, kind: int, name: str, slot: int) -> "zmq.Socket[bytes]":
        socket = self._socket(kind, name)
        if name in self._tcp and self._keys:
            socket.curve_publickey, socket.curve_secretkey = self._pair()
            socket.curve_server = True
            if not self._guard:
                self._guard = ThreadAuthenticator(self._context)
                self._guard.start()
                self._guard.configure_curve(domain="*", location=str(self._keys))
        socket.bind(endpoint(self._run_dir, name, slot, self._tcp))
        return socket

    def _connect(self, kind: int, name: str) -> "zmq.Socket[bytes]":
        socket = self._socket(kind, name)
        if name in self._tcp and self._keys:
            socket.curve_publickey, socket.curve_secretkey = self._pair()
            socket.curve_serverkey = self._pair()[0]
        if kind == zmq.DEALER:
            socket.setsockopt(zmq.IMMEDIATE, 1)  # an ask is for now: it does not wait for a process
        for address in endpoints(self._run_dir, name, self._tcp):
            socket.connect(address)
        if kind == zmq.DEALER:
            socket.poll(CONNECT_MS, zmq.POLLOUT)
        return socket

    def _pair(self) -> tuple[bytes, bytes | None]:
        return load_certificate(Path(self._keys or "") / f"{PAIR}.key_secret")

    def _socket(self, kind: int, name: str) -> "zmq.Socket[bytes]":
        socket = self._context.socket(kind)
        socket.set_hwm(STREAMS[name].high_water_mark)
        socket.setsockopt(zmq.LINGER, 200)
        socket.setsockopt(zmq.RECONNECT_IVL, 200)  # slots without a worker are tried, too
        socket.setsockopt(zmq.MAXMSGSIZE, msg.MAX_FRAME_BYTES)
        return socket
