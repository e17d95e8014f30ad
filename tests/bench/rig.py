"""One exchange with a stopwatch and one bot on it, each its own processes, without supervisord.

The market is calm: each symbol swings around its middle, far from both bands, until the exchange
moves it there. So every order has one frame that caused it, and both designs see the same frames.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from shared import messages as msg
from shared.bus import Bus
from tests.pipeline import ROOT, write_calm

READY_S, END_S = 60, 10
LEVERAGES = 40  # a second: the bot sets it once for each symbol, in the background
LIMIT = 100  # orders a second: the bot must not be what waits
ROLES = ("ingestor", "keeper", "router")


class Rig:
    """Settings of one run, its folder and its processes."""

    def __init__(self, folder, symbols, **settings):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.folder, self.symbols = Path(folder), symbols
        self.out, self.processes, self.rest = self.folder / "stamps.json", {}, False
        known = ("PATH", "HOME", "LANG")
        self.env = {name: os.environ[name] for name in known if name in os.environ}
        given = {"RUN_DIR": self.folder / "r", "PAPER_PORT": self.port, "PAPER_IP_LIMIT": 10**6}
        given |= {"PAPER_SYMBOLS": symbols, "PAPER_RATE_LIMIT": LIMIT, "RATE_LIMIT": LIMIT}
        given |= {"SIZE_USDT": 20, "MAX_SYMBOLS": 500, "MAX_SLOTS": 500, "LOG_LEVEL": "WARNING"}
        self.env |= {name: str(value) for name, value in (given | settings).items()}

    def calm(self):
        """Write the market that waits to be moved."""
        symbols = [f"S{number:04}USDT" for number in range(self.symbols)]
        write_calm(self.folder / "klines", symbols)
        self.env |= {"PAPER_FEED": "replay", "PAPER_DATA": str(self.folder / "klines")}

    def begin(self, name, *words, **env):
        """Start one process: `services.<name>`, or the module that `words` name."""
        command = [sys.executable, "-m", *(words or (f"services.{name.partition('-')[0]}",))]
        log = (self.folder / f"{name}.log").open("w")
        with log:
            self.processes[name] = subprocess.Popen(
                command, cwd=ROOT, env=self.env | env, stdout=log, stderr=log
            )

    def exchange(self, moves=0, every=0.125, seconds=0, calm=0, rest=False):
        """The exchange, until it serves."""
        words = ("tests.bench.exchange", "--out", str(self.out), "--seconds", str(seconds))
        words += ("--moves", str(moves), "--every", str(every), "--calm", str(calm))
        words += ("--rest",) if rest else ()
        self.rest = rest
        self.begin("exchange", *words)
        self._until(lambda: not socket.socket().connect_ex(("127.0.0.1", self.port)))

    def pipeline(self, shards=1):
        """All processes of the bot, until they are ready and every symbol has its leverage."""
        (self.folder / "r").mkdir(mode=0o700, exist_ok=True)
        for role in ROLES:
            self.begin(role)
        for slot in range(shards):
            self.begin(f"worker-{slot}", SHARDS=str(shards), WORKER_SLOT=str(slot))
        words = {}
        with contextlib.closing(self.listener("market", "quotes", "commands", "account")) as bus:

            def ready():
                for message, _ in bus.receive(200):
                    if isinstance(message, msg.Health):
                        words[message.service, message.slot] = message.ready
                unlinked = int(self.rest)  # the router waits for its trade socket
                return sum(words.values()) >= len(ROLES) + shards - unlinked

            self._until(ready, what=words)
        time.sleep(self.symbols / LEVERAGES)

    def threaded(self, closes=None, accelerated=False):
        """The design that this project replaces, until it has its bars and its streams."""
        words = ("--closes", str(closes)) if closes else ()
        words += ("--accelerated",) if accelerated else ()
        self.begin("threaded", "tests.bench.threaded_bot", str(self.port), *words)
        log = self.folder / "threaded.log"
        self._until(lambda: "ready" in log.read_text())
        time.sleep(2)

    def listener(self, *streams):
        """A bus that hears all of these streams."""
        return Bus(self.folder / "r", hears=dict.fromkeys(streams, ("",)))

    def go(self):
        """Let the exchange begin to move its symbols."""
        self.processes["exchange"].send_signal(signal.SIGUSR1)

    def burst(self):
        """Set all symbols free, or hold most of them again."""
        self.processes["exchange"].send_signal(signal.SIGUSR2)

    def stamps(self, seconds):
        """Let the exchange move its symbols; what it has noted."""
        self.go()
        self._until(self.out.exists, seconds)
        return json.loads(self.out.read_text())

    def used(self):
        """{process: (CPU seconds so far, resident MB)}"""
        found = defaultdict(tuple)
        for name, process in self.processes.items():
            with contextlib.suppress(psutil.Error):
                one = psutil.Process(process.pid)
                times = one.cpu_times()
                found[name] = (times.user + times.system, one.memory_info().rss / 1e6)
        return found

    def end(self, *names):
        """End some processes in good order."""
        ending = {name: self.processes.pop(name) for name in names}
        for process in ending.values():
            process.terminate()
        for process in ending.values():
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _until(self, true, seconds=READY_S, what=""):
        until = time.monotonic() + seconds
        while not true():
            dead = {n: p.returncode for n, p in self.processes.items() if p.poll() is not None}
            said = "".join((self.folder / f"{name}.log").read_text()[-2000:] for name in dead)
            assert not dead, f"ended: {dead}\n{said}"
            assert time.monotonic() < until, f"not within {seconds} s: {what}"
            time.sleep(0.05)


@contextlib.contextmanager
def rig(symbols=500, calm=True, **settings):
    """A rig whose processes and files are gone at the end."""
    with TemporaryDirectory(prefix="dm-bench-") as folder:
        one = Rig(folder, symbols, **settings)
        if calm:
            one.calm()
        try:
            yield one
        finally:
            one.end(*reversed(one.processes))
