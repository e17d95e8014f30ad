"""watchdog: ends processes that are alive but silent, so that supervisord starts them again.

A stopped, wedged or endlessly busy process is RUNNING for supervisord. Every process says Health
each second; who has spoken and then says nothing for ten seconds is killed, by its pid, if it is
still a child of our own supervisord.
"""

import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from services.watchdog.pulse import Pulse
from shared.actor import begin, hold_lock
from shared.bus import STREAMS, Bus
from shared.messages import Health
from shared.settings import load

LOOK_MS = 1_000

log = logging.getLogger("dm")


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
    begin(settings)
    hold_lock(settings.RUN_DIR, "watchdog-0")
    signal.signal(signal.SIGTERM, _leave)
    streams = [stream.name for stream in STREAMS.values() if stream.pattern == "PUB"]
    hears = dict.fromkeys(streams, ("health.",))
    bus, pulse = Bus(settings.RUN_DIR, hears=hears, **settings.wires), Pulse()
    log.info("watchdog start")
    while True:
        for message, _ in bus.receive(LOOK_MS):
            if isinstance(message, Health):
                pulse.heard(message, time.monotonic_ns())
        for pid, name in pulse.silent(time.monotonic_ns()).items():
            _end(pid, name)


def _leave(*_: Any) -> None:
    sys.exit(0)
