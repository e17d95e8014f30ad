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
from collections.abc import Callable, Mapping
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

from services.notifier.desk import Notice
from services.notifier.fills import FUNDING, Day, Mark, Recent
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
    "account": ("mode.", "wallet.", "health."),
    "commands": ("health.",),
    "market": ("health.",),
    "quotes": ("health.",),
}
LOOK_MS = 1_000
SOCKET_S = 10.0  # of libraries that set no limit of their own
LAST_S = 3.0  # for what is being told when the process ends; supervisord waits for ten
PAPER = "paper-"  # how the account of a paper exchange begins: its market has its own clock

log = logging.getLogger("dm")

Found = TypeVar("Found")


class Ledger:
    """The keeper's file, opened for each look: it may not be there yet, or be set aside."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._failed = False  # in the last look

    def since(self, mark: Mark | None) -> Recent | None:
        """What came after this mark; all, if it is of another ledger; nothing, without one. None
        where the ledger cannot be read now."""
        if mark is None and not self._path.exists():
            return Recent(Mark("", 0, 0), (), ())  # all of the ledger to come is news
        return self._look(lambda records: _since(records, mark))

    def day(self, since_ms: int, until_ms: int) -> Day | None:
        """What happened from one time to another, by the wall clock, as far as the ledger tells;
        None where it cannot be read now."""
        return self._look(lambda records: _day(records, since_ms, until_ms))

    def _look(self, read: Callable[[Records], Found]) -> Found | None:
        """What is read of it. A ledger that is gone, locked or damaged is logged once."""
        try:
            with closing(Records(self._path)) as records:
                found = read(records)
        except (Broken, OSError, *msg.NOT_OURS) as error:
            if not self._failed:
                log.warning("no_ledger error=%s: %s", type(error).__name__, error)
            self._failed = True
            return None
        self._failed = False
        return found


def _since(records: Records, mark: Mark | None) -> Recent:
    """By row number: what is new, or written anew, gets a higher one, and a lot that is closed is
    never written again. Lots first: then all executions of a closed one are there."""
    ledger_id = records.meta("ledger_id")
    if mark is None:
        query = "SELECT MAX(rowid) AS last FROM"
        last = [records.rows(f"{query} {table}")[0]["last"] for table in ("executions", "lots")]
        return Recent(Mark(ledger_id, last[0] or 0, last[1] or 0), (), ())
    if mark.ledger_id != ledger_id:
        mark = Mark(ledger_id, 0, 0)
    query = "SELECT rowid AS row, * FROM {} WHERE rowid > ? ORDER BY rowid"
    lots = records.rows(query.format("lots"), mark.lot)
    executions = records.rows(query.format("executions"), mark.execution)
    return Recent(
        Mark(
            ledger_id,
            executions[-1]["row"] if executions else mark.execution,
            lots[-1]["row"] if lots else mark.lot,
        ),
        tuple(_built(msg.Execution, row) for row in executions),
        _closed(lots),
    )


def _day(records: Records, since_ms: int, until_ms: int) -> Day:
    """Equity by the wall clock. What is in market time, on a paper exchange, whose market may run
    at any speed and at any date, is of the day up to the last execution."""
    equity = _equity(records, since_ms, until_ms)
    paper = records.meta("account").startswith(PAPER)
    if paper:
        last_ms = records.rows("SELECT MAX(exec_time_ms) AS last FROM executions")[0]["last"] or 0
        since_ms, until_ms = last_ms + 1 - (until_ms - since_ms), last_ms + 1
    times = (since_ms, until_ms)
    query = "SELECT exec_type, exec_fee FROM executions WHERE exec_time_ms BETWEEN ? AND ? - 1"
    paid = [(row["exec_type"], Decimal(row["exec_fee"])) for row in records.rows(query, *times)]
    fees = [fee for kind, fee in paid if kind != FUNDING]
    funding = [fee for kind, fee in paid if kind == FUNDING]
    lots = records.rows("SELECT * FROM lots WHERE closed_ms BETWEEN ? AND ? - 1", *times)
    return Day(
        len(fees), sum(fees, Decimal()), sum(funding, Decimal()), _closed(lots), equity, paper
    )


def _equity(records: Records, since_ms: int, until_ms: int) -> tuple[Decimal, Decimal] | None:
    """The first and the last of this time."""
    query = "SELECT equity, balance, 0 FROM equity WHERE wall_ms BETWEEN ? AND ? - 1"
    found = []
    for way in ("ASC", "DESC"):
        for row in records.rows(f"{query} ORDER BY wall_ms {way} LIMIT 1", since_ms, until_ms):
            found.append(msg.build(msg.Wallet, row.values()).total_equity)
    return (found[0], found[1]) if found else None


def _closed(rows: list[dict[str, Any]]) -> tuple[msg.Lot, ...]:
    """Those of these lots that are closed; without those whose quantity another lot took over."""
    lots = [_built(msg.Lot, row) for row in rows if row["closed_ms"]]
    return tuple(lot for lot in lots if lot.bought)


def _built(cls: Any, row: Mapping[str, Any]) -> Any:
    return msg.build(cls, [row[name] for name in cls._fields])


def main() -> None:
    """Until SIGTERM; or, with --test, one notice to each target."""
    parser = argparse.ArgumentParser(prog="python -m services.notifier", description=__doc__)
    parser.add_argument("--test", action="store_true", help="send one notice to each target")
    parser.add_argument("--check", action="store_true", help="only look whether it could start")
    asked = parser.parse_args()
    settings = load()
    begin(settings, "notifier")
    hush()
    socket.setdefaulttimeout(SOCKET_S)
    urls = settings.NOTIFY_URLS.get_secret_value().split()
    try:
        targets = [Target(number, url) for number, url in enumerate(urls, 1)]
    except ValueError as error:
        _wrong(str(error), asked.test)
    if not targets:
        _wrong("empty: there is nobody to tell", asked.test)
    if asked.check:
        return
    if asked.test:
        sys.exit(_test(targets))
    secrets = secrets_of((settings.api_key, settings.api_secret), urls)
    _run(settings, targets, secrets)


def _wrong(reason: str, for_people: bool) -> None:
    if for_people:
        print(f"NOTIFY_URLS: {reason}", file=sys.stderr)
    else:
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
