"""notifier: tells people, by apprise, what they would want to be told. Hears, and changes nothing.

Trading does not know that it is there. It subscribes to a few topics, and each target has a thread
of its own; a target that hangs or fails delays neither the others nor what is heard.
"""

import argparse
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from services.notifier.desk import Notice
from services.notifier.fills import FUNDING, Day
from services.notifier.news import News, Terms
from services.notifier.redact import redacted, secrets_of
from services.notifier.target import Target, hush
from shared import messages as msg
from shared.actor import begin, hold_lock, lock_file
from shared.bus import Bus
from shared.records import Broken, Records
from shared.settings import WRONG_SETTING_EXIT, Settings, load

NAME = "notifier-0"
HEARS: Mapping[str, tuple[str, ...]] = {
    "account": ("execution.", "mode.", "wallet.", "health."),
    "commands": ("health.",),
    "market": ("health.",),
    "quotes": ("health.",),
}
LOOK_MS = 1_000
SOCKET_S = 10.0  # of libraries that set no limit of their own
LAST_S = 3.0  # for what is being told when the process ends; supervisord waits for ten
ASKED = 500  # entry ids in one query

log = logging.getLogger("dm")


class Ledger:
    """The keeper's file, opened for each look: it may not be there yet, or be set aside."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def closed(self, entries: Iterable[str]) -> list[msg.Lot]:
        """Those of these lots that are closed."""
        names, found = list(entries), []
        for first in range(0, len(names), ASKED):
            some = names[first : first + ASKED]
            marks = ", ".join("?" * len(some))
            query = f"SELECT * FROM lots WHERE closed_ms > 0 AND entry_id IN ({marks})"
            found += self._lots(query, *some)
        return found

    def day(self, since_ms: int, until_ms: int) -> Day:
        """What happened from one time to another, as far as the ledger tells."""
        times = (since_ms, until_ms)
        query = "SELECT exec_type, exec_fee FROM executions WHERE exec_time_ms BETWEEN ? AND ? - 1"
        paid = [(row["exec_type"], Decimal(row["exec_fee"])) for row in self._rows(query, *times)]
        fees = [fee for kind, fee in paid if kind != FUNDING]
        funding = [fee for kind, fee in paid if kind == FUNDING]
        lots = self._lots("SELECT * FROM lots WHERE closed_ms BETWEEN ? AND ? - 1", *times)
        query = (
            "SELECT equity FROM equity WHERE wall_ms BETWEEN ? AND ? - 1 ORDER BY wall_ms LIMIT 1"
        )
        first = self._rows(query, *times)
        equity = Decimal(first[0]["equity"]) if first else None
        return Day(len(fees), sum(fees, Decimal()), sum(funding, Decimal()), tuple(lots), equity)

    def _lots(self, query: str, *values: Any) -> list[msg.Lot]:
        return [msg.build(msg.Lot, row.values()) for row in self._rows(query, *values)]

    def _rows(self, query: str, *values: Any) -> list[dict[str, Any]]:
        try:
            records = Records(self._path)
        except FileNotFoundError:
            return []
        try:
            return records.rows(query, *values)
        except Broken as error:
            log.warning("no_ledger error=%s", error)
            return []
        finally:
            records.close()


def main() -> None:
    """Until SIGTERM; or, with --test, one notice to each target."""
    parser = argparse.ArgumentParser(prog="python -m services.notifier", description=__doc__)
    parser.add_argument("--test", action="store_true", help="send one notice to each target")
    asked = parser.parse_args()
    settings = load()
    begin(settings, "notifier")
    hush()
    socket.setdefaulttimeout(SOCKET_S)
    urls = settings.NOTIFY_URLS.get_secret_value().split()
    try:
        targets = [Target(number, url) for number, url in enumerate(urls, 1)]
    except ValueError as error:
        _wrong(str(error))
    if not targets:
        _wrong("empty: there is nobody to tell")
    if asked.test:
        sys.exit(_test(targets))
    secrets = secrets_of((settings.api_key, settings.api_secret), urls)
    _run(settings, targets, secrets)


def _wrong(reason: str) -> None:
    log.error("wrong_setting NOTIFY_URLS: %s", reason)
    sys.exit(WRONG_SETTING_EXIT)


def _test(targets: list[Target]) -> int:
    """0 if it went to all."""
    notice = Notice("test", "Deviation Magnet: test", "Notices of the bot arrive here.", False)
    went = []
    for target in targets:
        went.append(target.tell(notice))
        print(f"{target.name}: {'sent' if went[-1] else 'not sent'}", flush=True)
    return 0 if all(went) else 1


def _run(settings: Settings, targets: list[Target], secrets: tuple[str, ...]) -> None:
    looked_ms = _looked_ms(settings.RUN_DIR)
    hold_lock(settings.RUN_DIR, NAME)
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, _leave)
    bus = Bus(settings.RUN_DIR, hears=HEARS, **settings.wires)
    ledger = Ledger(settings.RUN_DIR / "state.db")
    news = News(settings.part(Terms), ledger, time.monotonic_ns(), looked_ms)
    for target in targets:
        target.start()
    log.info("notifier start targets=%s", ",".join(target.name for target in targets))
    try:
        while all(target.is_alive() for target in targets):
            for message, _ in bus.receive(LOOK_MS):
                news.hear(message, time.monotonic_ns(), _wall_ms())
            bus.overdue(time.monotonic_ns())  # connects what has fallen silent anew
            for notice in news.tick(time.monotonic_ns(), _wall_ms()):
                _put(targets, _safe(notice, secrets))
            os.utime(lock_file(settings.RUN_DIR, NAME))  # its age says that we look
        sys.exit("notifier: a target has died")
    finally:
        bus.close()
        _wait_for(targets)
        log.info("notifier stop")


def _put(targets: list[Target], notice: Notice) -> None:
    for target in targets:
        target.put(notice)


def _safe(notice: Notice, secrets: tuple[str, ...]) -> Notice:
    """The notice without any secret, named after the bot."""
    title, body = (redacted(text, secrets) for text in (notice.title, notice.body))
    return notice._replace(title=f"Deviation Magnet: {title}", body=body)


def _wait_for(targets: list[Target]) -> None:
    """A moment for what is on its way; who hangs is left behind."""
    until = time.monotonic() + LAST_S
    while not all(target.idle for target in targets) and time.monotonic() < until:
        time.sleep(0.05)


def _looked_ms(run_dir: Path) -> int:
    """When a notifier last looked here: a summary that was due since is told late, not never."""
    try:
        return lock_file(run_dir, NAME).stat().st_mtime_ns // 1_000_000
    except FileNotFoundError:
        return _wall_ms()


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


def _leave(*_: Any) -> None:
    sys.exit(0)
