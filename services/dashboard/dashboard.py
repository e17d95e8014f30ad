"""dashboard: pages for people, and metrics. Reads the bus and the ledger; wishes go to the keeper.

It owns nothing but its tokens. Whatever becomes of it, the bot trades on: nobody waits for it, and
what it does not take in time is dropped.
"""

import asyncio
import json
import logging
from pathlib import Path

from fastapi import Response
from nicegui import app, ui

from services.dashboard.desk import Desk
from services.dashboard.guard import Guard, Tokens
from services.dashboard.metrics import CONTENT_TYPE
from services.dashboard.pages import register
from services.ops.ops import HEALTHZ
from shared.actor import begin, hold_lock
from shared.messages import NOT_OURS
from shared.settings import DASHBOARD_FILE, load

NAME = "dashboard-0"
HOST = "127.0.0.1"  # and nothing else: it has no TLS
LEAVE_S = 2  # for open pages, once it is told to end

log = logging.getLogger("dm")


def tokens_of(run_dir: Path, port: int) -> Tokens:
    """The tokens of this RUN_DIR, the same after a restart; their addresses go to a file of the
    owner's, from which `make up` shows them."""
    file = run_dir / DASHBOARD_FILE
    known = {}
    try:
        known = json.loads(file.read_text())
        tokens = Tokens(*(known[name].partition("token=")[2] for name in ("look", "steer")))
    except (FileNotFoundError, *NOT_OURS):
        tokens = Tokens("", "")
    if not all(tokens):  # an empty one would be everybody's
        tokens = Tokens.fresh()
    to = f"http://{HOST}:{port}/?token="
    addresses = {"look": to + tokens.view, "steer": to + tokens.control}
    if addresses != known:
        draft = file.with_suffix(".new")
        draft.touch(0o600)
        draft.write_text(json.dumps(addresses))
        draft.replace(file)
    return tokens


def _ended(task: asyncio.Task[None]) -> None:
    """A work that raised ends the process, and supervisord starts it again."""
    if not task.cancelled() and (error := task.exception()):
        log.error("ended error=%r", error)
        app.shutdown()


def main() -> None:
    """Until SIGTERM."""
    settings = load()
    begin(settings, "dashboard")
    hold_lock(settings.RUN_DIR, NAME)
    port = settings.DASHBOARD_PORT
    tokens = tokens_of(settings.RUN_DIR, port)
    desk = Desk(settings)
    register(desk)
    tasks: list[asyncio.Task[None]] = []

    @app.on_startup
    def start() -> None:
        tasks.extend(asyncio.create_task(work) for work in desk.works())
        for task in tasks:
            task.add_done_callback(_ended)
        log.info("dashboard start port=%d", port)

    @app.on_shutdown
    def stop() -> None:
        for task in tasks:
            task.cancel()
        desk.close()

    @app.get(f"/{HEALTHZ}")
    def healthz() -> Response:
        """200 while its works go on; 503 once one of them has ended."""
        return Response(status_code=503 if any(task.done() for task in tasks) else 200)

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(desk.metrics.text(), media_type=CONTENT_TYPE)

    app.add_middleware(Guard, tokens=tokens, port=port)
    ui.run(
        host=HOST,
        port=port,
        title="Deviation Magnet",
        dark=True,
        show=False,
        reload=False,
        show_welcome_message=False,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=LEAVE_S,
    )
