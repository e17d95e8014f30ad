"""actor: the only loop. Messages in, hooks, messages out; nothing else touches a socket.

A service is a class with five hooks. A hook that raises ends the process; supervisord starts it
again and `start` catches up.
"""

import ctypes
import fcntl
import logging
import os
import resource
import signal
import sys
import time
from collections import Counter, deque
from contextlib import suppress
from logging import Formatter
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from shared.bus import MAX_DRAIN, STREAMS, Bus
from shared.logs import TEXT, Lines, Objects, line
from shared.messages import (
    Execution,
    Fetch,
    Health,
    Hear,
    Link,
    Message,
    Mode,
    OrderRequest,
    process_name,
)
from shared.settings import (
    VERSION,
    WRONG_SETTING_EXIT,
    Settings,
    WrongSetting,
    ledger_account,
    load,
    place,
)

if TYPE_CHECKING:  # workers start without pybit
    from shared.bybit import Exchange

TICK_NS = 1_000_000_000
EAGER_NS = 15_000_000_000  # a process that has just begun, and is not ready yet, ticks faster
DEAF_NS = 60_000_000_000  # a door answers every Fetch, if only with an error, far sooner
INBOX_LIMIT = 200_000  # ten seconds at 20,000 frames a second; beyond it the newest is dropped
PR_SET_PDEATHSIG = 1
SWITCH_S = 0.0005  # library threads that parse give way to the loop so soon
LOCKS = Path(os.sep, "tmp", f"deviation-magnet-{os.getuid()}")  # whatever TMPDIR says
NEWS = (OrderRequest, Execution)  # what an operator would tell a colleague

log = logging.getLogger("dm")


class Actor:
    """The shape of a service. Hooks get the monotonic clock in ns and return messages to send."""

    service: ClassVar[str]
    hears: ClassVar[dict[str, tuple[str, ...]]] = {}
    says: ClassVar[str]
    answers: ClassVar[tuple[str, ...]] = ()
    asks: ClassVar[tuple[str, ...]] = ()
    links: ClassVar[tuple[str, ...]] = ()

    def __init__(self, settings: Settings) -> None:
        self.counters: Counter[str] = Counter()
        self.ages_ms: dict[str, int] = {}
        self.ready = False
        self.note = "starting"
        self.shard = ""

    def start(self, now_ns: int) -> list[Message]:
        """Catch up: the same path after a first start and after a crash."""
        return []

    def handle(self, message: Any, now_ns: int) -> list[Message]:
        """One message, from the bus or from a library thread."""
        return []

    def answer(self, request: Any, now_ns: int) -> list[Message]:
        """One ask: the reply is whichever message its stream carries, the rest is said."""
        return []

    def tick(self, now_ns: int) -> list[Message]:
        """Once a second: say the state again, look at deadlines."""
        return []

    def stop(self, now_ns: int) -> list[Message]:
        """The last words of an orderly end."""
        return []


class Inbox:
    """Where library threads post. A post wakes the loop; a full inbox drops and counts."""

    def __init__(self) -> None:
        self._queue: deque[Any] = deque()
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._called = False  # the loop is, or is about to be, woken
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._queue)

    def post(self, message: Any) -> None:
        """From any thread."""
        if len(self._queue) >= INBOX_LIMIT:
            self.dropped += 1
            return
        self._queue.append(message)
        if not self._called:
            self._call()

    def take(self) -> list[Any]:
        """What is there now, at most MAX_DRAIN: no flood keeps the loop from its tick."""
        with suppress(BlockingIOError):  # nobody called: there may be something all the same
            os.eventfd_read(self.fd)
        self._called = False  # before anything is taken: what is posted from now on calls again
        taken = [self._queue.popleft() for _ in range(min(len(self._queue), MAX_DRAIN))]
        if self._queue:
            self._call()
        return taken

    def _call(self) -> None:
        """Two threads may both call; that one is missed is impossible."""
        self._called = True
        os.eventfd_write(self.fd, 1)


class Deaf(Exception):
    """The door was asked, and nothing comes out of it: only a new process hears again."""


class Loop:
    """One actor, its bus, its inbox and its door, until SIGTERM or until it hears nothing."""

    def __init__(
        self, actor: Actor, bus: Bus, inbox: Inbox, door: "Exchange | None", slot: int
    ) -> None:
        self._actor, self._bus, self._inbox, self._door = actor, bus, inbox, door
        self._slot = slot
        self._stopping = False
        self._asked_ns = 0  # the first Fetch since the door was heard
        self._mode = ("", "")
        self._stage_ns: deque[int] = deque(maxlen=2_000)
        self._asks = {t: name for name in actor.asks for t in STREAMS[name].carries}
        self._answers = {t for name in actor.answers for t in STREAMS[name].carries}
        self._says = STREAMS[actor.says].carries
        bus.watch(inbox.fd)

    def request_stop(self, *_: object) -> None:
        """For signal handlers: wakes the loop, which then drains and ends."""
        self._stopping = True
        os.eventfd_write(self._inbox.fd, 1)

    def run(self) -> None:
        """Until asked to stop. Whatever a hook raises comes out of here."""
        now_ns = started_ns = time.monotonic_ns()
        self._send(self._actor.start(now_ns), now_ns)
        next_tick_ns = now_ns
        while not self._stopping:
            self._turn((next_tick_ns - now_ns) / 1e6)
            now_ns = time.monotonic_ns()
            if now_ns >= next_tick_ns:
                self._tick(now_ns)
                eager = now_ns - started_ns < EAGER_NS and not self._actor.ready
                next_tick_ns = max(next_tick_ns + (TICK_NS // 5 if eager else TICK_NS), now_ns)
        self._turn(0)
        self._send(self._actor.stop(now_ns), now_ns)

    def _turn(self, timeout_ms: float) -> None:
        for message, socket in self._bus.receive(timeout_ms):
            self._handle(message, socket)
        for message in self._inbox.take():
            self._asked_ns = 0
            self._handle(message)

    def _tick(self, now_ns: int) -> None:
        if self._asked_ns and now_ns - self._asked_ns > DEAF_NS:
            raise Deaf(f"nothing heard for {DEAF_NS // TICK_NS} s after a Fetch")
        for message in self._bus.overdue(now_ns):
            self._handle(message)
        self._send(self._actor.tick(now_ns), now_ns)
        self._bus.publish(self._health())

    def _handle(self, message: Any, asker: Any = None) -> None:
        now_ns = time.monotonic_ns()
        if isinstance(message, Link):
            log.info("%s", line(message), extra={"said": message})
        hook = self._actor.answer if asker else self._actor.handle
        self._send(hook(message, now_ns), now_ns, asker)
        self._stage_ns.append(time.monotonic_ns() - now_ns)

    def _send(self, messages: list[Message], now_ns: int, asker: Any = None) -> None:
        for message in messages:
            kind = type(message)
            if self._door and kind in self._door.takes:
                self._door.send(message)
                if kind is Fetch:
                    self._asked_ns = self._asked_ns or now_ns
            if asker and kind in self._answers:
                self._bus.reply(asker, message)
                asker = None
            elif kind in self._says:
                self._bus.publish(message)
            elif kind in self._asks:
                self._bus.ask(self._asks[kind], message, now_ns)
            elif isinstance(message, Hear):
                self._bus.hear(*message)
            if kind in NEWS:
                log.info("%s", line(message), extra={"said": message})
            elif isinstance(message, Mode) and (message.mode, message.reason) != self._mode:
                self._mode = (message.mode, message.reason)
                log.warning("mode=%s reason=%s", *self._mode)
        if asker:
            self._bus.refuse(asker)

    def _health(self) -> Health:
        actor, times = self._actor, sorted(self._stage_ns) or [0]
        lost = {"malformed": self._bus.malformed, "inbox_dropped": self._inbox.dropped}
        lost["log_dropped"] = Lines.dropped
        return Health(
            *(actor.service, self._slot, os.getpid(), actor.ready, actor.note, actor.shard),
            inbox=len(self._inbox),
            counters={**actor.counters, **lost},
            ages_ms=actor.ages_ms,
            p50_us=times[len(times) // 2] // 1000,
            p99_us=times[len(times) * 99 // 100] // 1000,
            version=VERSION,
        )


def lock_file(run_dir: Path, name: str) -> Path:
    """Where the lock of one role is."""
    return run_dir / f"{name}.lock"


def hold_lock(run_dir: Path, name: str) -> int:
    """The lock file of one role, held until the process ends. Exits if it is taken."""
    run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    if run_dir.stat().st_uid != os.getuid():
        sys.exit(f"{name}: {run_dir} belongs to somebody else")
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(lock_file(run_dir, name), flags, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"{name}: already running, pid {os.read(fd, 20).decode()} holds {run_dir}")
    os.truncate(fd, 0)
    os.write(fd, str(os.getpid()).encode())
    return fd


def begin(settings: Settings, process: str = "") -> None:
    """What every process does first: logs on stdout, files for nobody else, no core dump with a
    secret in it, and an end with its supervisord. `process` is its name in JSON."""
    os.set_blocking(1, sys.stdout.isatty())
    lines = Lines()
    lines.setFormatter(Objects(process) if settings.LOG_FORMAT == "json" else Formatter(TEXT))
    logging.basicConfig(level=settings.LOG_LEVEL, handlers=[lines])
    if settings.LOG_FORMAT == "json":
        sys.excepthook = lambda *error: log.critical("died", exc_info=error)
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if settings.DIE_WITH_PARENT:
        _die_with_parent()


def _die_with_parent() -> None:
    """The kernel kills this process when its parent (supervisord) dies: no orphan trades on."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    with suppress(OSError):
        if b"supervisord" in Path(f"/proc/{os.getppid()}/cmdline").read_bytes():
            return
    sys.exit("supervisord died during the start")


def run(actor_class: type[Actor]) -> None:
    """The whole life of a service process."""
    settings = load()
    slot = settings.WORKER_SLOT if actor_class.service == "worker" else 0
    begin(settings, process_name(actor_class.service, slot))
    sys.setswitchinterval(SWITCH_S)
    actor = actor_class(settings)
    hold_lock(settings.RUN_DIR, f"{actor.service}-{slot}")
    if {"private", "trade"} & set(actor.links):  # one of each per account, whatever the RUN_DIR
        hold_lock(LOCKS, f"{actor.service}-{ledger_account(settings)}-{place(settings)}")
    inbox = Inbox()
    door = None
    if actor.links:
        from shared.bybit import Exchange  # noqa: PLC0415 - workers start without pybit

        door = Exchange(settings, inbox.post, actor.links)
    streams = (actor.hears, actor.says, actor.answers, actor.asks)
    bus = Bus(settings.RUN_DIR, slot, *streams, **settings.wires)
    loop = Loop(actor, bus, inbox, door, slot)
    signal.signal(signal.SIGTERM, loop.request_stop)
    signal.signal(signal.SIGINT, loop.request_stop)
    log.info("%s start slot=%s version=%s", actor.service, slot, VERSION)
    try:
        loop.run()
    except WrongSetting as error:
        log.error("wrong_setting %s", error)
        sys.exit(WRONG_SETTING_EXIT)
    finally:
        bus.close()
        if door:
            door.close()
    log.info("%s stop", actor.service)
