"""target: one place where notices go, with a thread of its own. The one door to apprise.

Whatever a target does, hang, fail or refuse, stays here: who puts a notice never waits.
"""

import logging
import queue
import re
import threading
import time
import warnings

from apprise import Apprise, AppriseAsset, NotifyBase, NotifyFormat, NotifyType

from services.notifier.desk import Notice

WAITING = 50  # notices of one target; then the oldest gives way
PAUSES_S = (0.0, 2.0, 10.0, 30.0)  # before each attempt
SCHEME = re.compile(r"([a-z][a-z0-9+-]{0,30})://", re.IGNORECASE)

log = logging.getLogger("dm")


class Target(threading.Thread):
    """Tells each notice as soon as it can. What never gets through is counted in the next."""

    def __init__(self, number: int, url: str) -> None:
        """`number` counts from 1. Raises ValueError, without the address, where it is none."""
        super().__init__(name=f"{scheme(url)}#{number}", daemon=True)
        asset = AppriseAsset(storage_mode="memory", async_mode=False, secure_logging=True)
        asset.app_id = asset.app_desc = "Deviation Magnet"
        service = Apprise.instantiate(url, asset=asset)
        if not isinstance(service, NotifyBase):
            raise ValueError(f"apprise does not take address {number} ({scheme(url)})")
        self._apprise = Apprise(service, asset=asset)
        self._waiting: queue.Queue[Notice] = queue.Queue(WAITING)
        self._lost = 0

    @property
    def idle(self) -> bool:
        """Whether all that was put has been told, or given up."""
        return not self._waiting.unfinished_tasks

    def put(self, notice: Notice) -> None:
        """From the loop. Never waits."""
        while True:
            try:
                return self._waiting.put_nowait(notice)
            except queue.Full:
                self._drop_oldest()

    def run(self) -> None:
        """For ever."""
        while True:
            self._deliver(self._waiting.get())
            self._waiting.task_done()

    def tell(self, notice: Notice) -> bool:
        """One attempt, and whether it went."""
        lost = f"\n({self._lost} earlier notices did not get through)" if self._lost else ""
        kind = NotifyType.WARNING if notice.urgent else NotifyType.INFO
        body = notice.body + lost
        went = self._apprise.notify(body, notice.title, kind, body_format=NotifyFormat.TEXT)
        return bool(went)

    def _deliver(self, notice: Notice) -> None:
        for attempt, pause_s in enumerate(PAUSES_S, 1):
            time.sleep(pause_s)
            if self.tell(notice):
                log.info("notice target=%s kind=%s attempt=%d", self.name, notice.kind, attempt)
                self._lost = 0
                return
            log.warning("notice_failed target=%s attempt=%d", self.name, attempt)
        self._lost += 1
        log.warning("notice_lost target=%s kind=%s", self.name, notice.kind)

    def _drop_oldest(self) -> None:
        try:
            dropped = self._waiting.get_nowait()
        except queue.Empty:
            return
        self._waiting.task_done()
        self._lost += 1
        log.warning("notice_dropped target=%s kind=%s", self.name, dropped.kind)


def scheme(url: str) -> str:
    """What of an address may be said: `tgram`. A text without a scheme may be all secret."""
    found = SCHEME.match(url)
    return found[1].lower() if found else "no scheme"


def hush() -> None:
    """Of what libraries say, nothing is printed: it holds addresses. Nor of why a thread died."""
    for handler in logging.getLogger().handlers:
        handler.addFilter(logging.Filter("dm"))
    warnings.simplefilter("ignore")
    threading.excepthook = _died


def _died(end: threading.ExceptHookArgs) -> None:
    name = end.thread.name if end.thread else ""
    log.error("died target=%s error=%s", name, end.exc_type.__name__)
