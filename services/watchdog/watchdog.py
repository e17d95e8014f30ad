"""watchdog: ends processes that are alive but silent, so that supervisord starts them again.

A stopped, wedged or endlessly busy process is RUNNING for supervisord. The processes of the bot say
Health each second; who has spoken and then says nothing for ten seconds is killed, by its pid, if
it is still a child of our own supervisord. A bot whose RUN_DIR was taken away can be neither seen
nor stopped any more, so it ends; what rests at the exchange stays.
"""

import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from services.watchdog.pulse import Pulse
from shared.actor import begin, hold_lock, lock_file
from shared.bus import STREAMS, Bus
from shared.messages import Health
from shared.settings import load

LOOK_MS = 1_000
NAME = "watchdog-0"
GONE_S = 30  # without its folder; its entries have been cancelled by then

log = logging.getLogger("dm")


def _is_there(run_dir: Path, lock: int) -> bool:
    """Whether our lock is still the one in this folder; its age says that we look."""
    file = lock_file(run_dir, NAME)
    try:
        os.utime(file)
        return file.stat().st_ino == os.fstat(lock).st_ino
    except OSError:
        return False


def _end(pid: int, name: str) -> None:
    """Kill it, unless it is gone or somebody else's process has its number by now."""
    try:
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        if parent == os.getppid():
            log.warning("silent service=%s pid=%d: killed", name, pid)
            os.kill(pid, signal.SIGKILL)
    except (FileNotFoundError, ProcessLookupError):
        log.info("gone service=%s pid=%d", name, pid)


def main() -> None:
    """Until SIGTERM."""
    settings = load()
    begin(settings, "watchdog")
    lock = hold_lock(settings.RUN_DIR, NAME) if settings.RUN_DIR.is_dir() else -1
    signal.signal(signal.SIGTERM, _leave)
    streams = [stream.name for stream in STREAMS.values() if stream.pattern == "PUB"]
    hears = dict.fromkeys(streams, ("health.",))
    bus, pulse = Bus(settings.RUN_DIR, hears=hears, **settings.wires), Pulse()
    log.info("watchdog start")
    there_s = time.monotonic()
    while True:
        for message, _ in bus.receive(LOOK_MS):
            if isinstance(message, Health):
                pulse.heard(message, time.monotonic_ns())
        bus.overdue(time.monotonic_ns())  # connects what has fallen silent anew
        for pid, name in pulse.silent(time.monotonic_ns()).items():
            _end(pid, name)
        there_s = time.monotonic() if _is_there(settings.RUN_DIR, lock) else there_s
        if time.monotonic() - there_s > GONE_S and settings.DIE_WITH_PARENT:
            log.error("gone RUN_DIR=%s: nobody can steer this bot, it ends", settings.RUN_DIR)
            os.kill(os.getppid(), signal.SIGTERM)
            there_s = time.monotonic()


def _leave(*_: Any) -> None:
    sys.exit(0)
