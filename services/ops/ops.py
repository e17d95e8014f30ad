"""ops: up, down, status, logs, scale, mode: what `make` calls. Talks to supervisord and the bus."""

import argparse
import contextlib
import errno
import fcntl
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import xmlrpc.client
from collections.abc import Callable, Iterable
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any

from rich.console import Console
from supervisor.xmlrpc import SupervisorTransport

from services.ops import logs, look
from shared import messages as msg
from shared.actor import lock_file
from shared.bus import MAX_PATH, MAX_SLOTS, Bus, make_keys
from shared.settings import (
    DASHBOARD_FILE,
    SHARDS_FILE,
    STARTED_FILE,
    SUPERVISED,
    WRONG_SETTING_EXIT,
    Settings,
    changed,
    load,
    public,
    running,
)
from shared.terminal import ending, whole

ROOT = Path(__file__).resolve().parents[2]
UP_SECONDS = 90  # 500 symbols are ready in about 10
PEOPLE_SECONDS = 20  # longer, for what is for people
DOWN_SECONDS = 20
SCALE_SECONDS = 30
ASK_SECONDS = 2  # for a connection to the keeper: a busy machine needs more than the bus waits
HEALTHZ = "healthz"  # of the dashboard: answered without a token, and without a word
LISTENERS = ("watchdog", "notifier")  # who only hears
STILL_SECONDS = 5  # each of them looks each second
LAST_LINES = 15
LEDGER_FILES = [
    f"{name}.db{more}" for name in ("state", "excursions") for more in ("", "-wal", "-shm")
]
WRONG = "wrong_setting "  # how a process says that its configuration cannot work
DEAD = ("EXITED", "FATAL")
FOR_PEOPLE = ("dashboard", "notifier")  # without them it trades all the same
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # by no proxy
GOES_ON = {
    "up": "what was started goes on: make status, make down",
    "down": "what stops goes on stopping: make status",
    "scale": "make status shows which workers run",
}
GONE = (OSError, HTTPException, xmlrpc.client.Error)

console = Console(highlight=False, width=None if sys.stdout.isatty() else 130)


class Unable(Exception):
    """What was asked for cannot be done, and why."""


class Supervisor:
    """supervisord's own XML-RPC over its unix socket."""

    def __init__(self, run_dir: Path) -> None:
        self._shards = run_dir / SHARDS_FILE
        self._address = f"unix://{run_dir.absolute() / 'supervisor.sock'}"

    @property
    def _rpc(self) -> Any:
        """A fresh connection: supervisor's transport does not outlive a failed one."""
        transport = SupervisorTransport(None, None, self._address)
        return xmlrpc.client.ServerProxy("http://supervisor", transport=transport).supervisor

    def alive(self) -> bool:
        """Does it answer?"""
        try:
            return bool(self._rpc.getState()["statename"] == "RUNNING")
        except GONE:
            return False

    def processes(self) -> list[dict[str, Any]]:
        """What it supervises, without what this bot never started, and without free slots."""
        slots = json.loads(self._shards.read_text()) if self._shards.exists() else {}
        rows = self._rpc.getAllProcessInfo()
        return [row for row in rows if row["start"] and not _is_free(row, slots)]

    def start(self, slots: Iterable[int]) -> None:
        """Start the workers in these slots."""
        for slot in slots:
            with contextlib.suppress(xmlrpc.client.Fault):  # it runs already
                self._rpc.startProcess(f"worker:worker-{slot}")

    def stop(self, slots: Iterable[int]) -> None:
        """Stop the workers in these slots, and wait until they have."""
        for slot in slots:
            with contextlib.suppress(xmlrpc.client.Fault):  # it was stopped already
                self._rpc.stopProcess(f"worker:worker-{slot}")

    def shutdown(self) -> None:
        """Stop everything."""
        with contextlib.suppress(*GONE):
            self._rpc.shutdown()


def _is_free(row: dict[str, Any], slots: dict[str, Any]) -> bool:
    """A worker's slot in which nothing runs; one that died counts while it has a shard."""
    dead = row["statename"] in DEAD and row["name"].partition("-")[2] not in slots
    return row["group"] == "worker" and (dead or row["statename"] == "STOPPED")


def up(settings: Settings) -> int:
    """Start what does not run; wait until all is healthy, or say what is not."""
    supervisor = Supervisor(settings.RUN_DIR)
    if supervisor.alive():
        if names := changed(settings):
            return _fail(
                f"it runs with other settings: make down first to change {', '.join(names)}"
            )
        console.print("already running")
        return _shown(settings, supervisor)
    if wrong := _preflight(settings):
        return _fail(wrong)
    _start_supervisord(settings)
    if not _wait(supervisor.alive, 10):
        return _fail(f"supervisord does not start: see {settings.RUN_DIR}/logs/supervisord.log")
    supervisor.start(range(settings.SHARDS))
    wrong = _wait_healthy(settings, supervisor)
    if wrong:
        print(wrong, file=sys.stderr)
        down(settings)
        return 1
    return _shown(settings, supervisor)


def down(settings: Settings) -> int:
    """Stop everything and wait for its end, also for one that somebody else has begun."""
    supervisor = Supervisor(settings.RUN_DIR)

    def gone() -> bool:
        return not supervisor.alive() and not _supervisord_lives(settings.RUN_DIR)

    if gone():
        console.print("nothing runs")
        return 0
    supervisor.shutdown()
    if not _wait(gone, DOWN_SECONDS):
        return _fail(f"supervisord is still there after {DOWN_SECONDS} s")
    console.print("stopped")
    return 0


def status(settings: Settings, as_json: bool) -> int:
    """Exit code 0 if everything is healthy, 1 if not, 3 if nothing runs."""
    supervisor = Supervisor(settings.RUN_DIR)
    if not supervisor.alive():
        print(json.dumps({"running": False}) if as_json else "nothing runs: make up")
        return 3
    rows, report = _looked(settings, supervisor)
    if as_json:
        print(json.dumps({"running": True, **report}))
    else:
        look.show(console, report)
    return 0 if all(row.healthy for row in rows) else 1


def _looked(
    settings: Settings, supervisor: Supervisor
) -> tuple[list[look.Process], dict[str, Any]]:
    """Every process and the status as data, after listening for a moment."""
    bus = look.listener(settings)
    heard = look.listen(bus, look.LISTEN_SECONDS, look.Heard())
    bus.close()
    rows = _rows(settings, supervisor, heard)
    return rows, look.report(rows, heard, _audited(settings))


def scale(settings: Settings, shards: int) -> int:
    """Another number of workers, with a spinner; exit code."""
    try:
        with console.status(f"starting {shards} workers") as spinner:
            done = scaled(settings, shards, _user(), spinner.update)
    except Unable as error:
        return _fail(str(error))
    console.print(done)
    return 0


def scaled(settings: Settings, shards: int, who: str, say: Callable[[str], None]) -> str:
    """A new generation of workers in free slots; the old one stops once the new one is ready. The
    keeper journals it. Returns what was done; raises Unable."""
    try:
        with (settings.RUN_DIR / "scale.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return _scaled(settings, shards, who, say)
    except BlockingIOError as error:
        raise Unable("somebody else is scaling just now") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Unable("nothing runs: make up") from error


def _scaled(settings: Settings, shards: int, who: str, say: Callable[[str], None]) -> str:
    supervisor = Supervisor(settings.RUN_DIR)
    if not supervisor.alive():
        raise Unable("nothing runs: make up")
    if not 1 <= shards <= MAX_SLOTS // 2:
        raise Unable(f"N: from 1 to {MAX_SLOTS // 2} shards, got {shards}")
    old = _worker_slots(supervisor)
    new = [slot for slot in range(MAX_SLOTS) if slot not in old][:shards]
    after = {str(slot): [i, shards] for i, slot in enumerate(new)}
    _start_beside(settings, supervisor, after, say)
    _write_shards(settings.RUN_DIR / SHARDS_FILE, after)
    supervisor.stop(old)
    done = f"{len(old)} -> {shards} shards, slots {', '.join(map(str, new))}"
    if ask_keeper(settings, msg.Control("", who, done)) is None:
        return f"{done}; the keeper does not answer, so its journal does not tell"
    return done


def _start_beside(
    settings: Settings,
    supervisor: Supervisor,
    after: dict[str, list[int]],
    say: Callable[[str], None],
) -> None:
    """Workers in these slots, ready, beside those that run. Where that fails, by Ctrl-C too, they
    are stopped and their slots are free again; raises Unable."""
    file, new = settings.RUN_DIR / SHARDS_FILE, [int(slot) for slot in after]
    before = json.loads(file.read_text())
    with contextlib.ExitStack() as undo:
        undo.callback(_write_shards, file, before)
        undo.callback(supervisor.stop, new)
        _write_shards(file, before | after)
        supervisor.start(new)
        if wrong := _wait_ready(settings, supervisor, {f"worker-{slot}" for slot in new}, say):
            raise Unable(f"{wrong}: the old workers go on")
        undo.pop_all()


def _wait_ready(
    settings: Settings, supervisor: Supervisor, names: set[str], say: Callable[[str], None]
) -> str:
    """Empty once all of them are ready; otherwise what became of them."""
    bus, heard = look.listener(settings), look.Heard()
    until = time.monotonic() + SCALE_SECONDS
    try:
        while time.monotonic() < until:
            look.listen(bus, 0.2, heard)
            if dead := names & _dead(supervisor):
                name = min(dead)
                return f"{name}: {_last_words(settings, name)}"
            done = sum(heard.healthy(name) for name in names)
            say(f"{done}/{len(names)} workers ready")
            if done == len(names):
                return ""
    finally:
        bus.close()
    return f"the new workers were not ready in {SCALE_SECONDS} s"


def _dead(supervisor: Supervisor) -> set[str]:
    """Names of what has ended; none where nobody tells."""
    with contextlib.suppress(*GONE):
        return {row["name"] for row in supervisor.processes() if row["statename"] in DEAD}
    return set()


def mode(settings: Settings, wanted: str) -> int:
    """Ask the keeper for a mode; it is journaled with who asked."""
    if not Supervisor(settings.RUN_DIR).alive():
        return _fail("nothing runs: make up")
    answer = ask_keeper(settings, msg.Control(wanted, _user()))
    if answer is None:
        return _fail("the keeper does not answer: make status")
    console.print(f"mode {answer.mode} {answer.reason}".rstrip())
    return 0


def ask_keeper(settings: Settings, control: msg.Control) -> msg.Mode | None:
    """What the keeper answers to an operator's wish; None if it does not."""
    bus = Bus(settings.RUN_DIR, asks=("ledger",), **settings.wires)
    until = time.monotonic() + ASK_SECONDS
    bus.ask("ledger", control, time.monotonic_ns())
    while bus.overdue(time.monotonic_ns()) and time.monotonic() < until:
        time.sleep(0.05)  # it is not connected yet, and nothing was sent
        bus.ask("ledger", control, time.monotonic_ns())
    answer = next((message for message, _ in bus.receive(2000)), None)
    bus.close()
    return answer if isinstance(answer, msg.Mode) else None


def _user() -> str:
    return os.environ.get("USER", "operator")


def paper_reset(settings: Settings) -> int:
    """Put the paper account and its ledger aside, so that the next start begins afresh."""
    if settings.BYBIT_ENV != "paper":
        return _fail(f"BYBIT_ENV={settings.BYBIT_ENV}: only a paper account can be reset")
    if Supervisor(settings.RUN_DIR).alive():
        return _fail("it runs: make down first")
    aside = settings.RUN_DIR / time.strftime("before-%Y%m%d-%H%M%S")
    ours = [settings.paper_state, *(settings.RUN_DIR / name for name in LEDGER_FILES)]
    files = [file for file in ours if file.exists()]
    for file in files:
        aside.mkdir(mode=0o700, exist_ok=True)
        shutil.move(file, aside / file.name)
    console.print(f"the old account is in {aside}" if files else "nothing to reset")
    return 0


def bus_keys(settings: Settings) -> int:
    """A pair of CURVE keys for tcp between machines: the folder goes to each of them."""
    folder = settings.BUS_KEYS or Path("keys")
    if folder.exists() and any(folder.iterdir()):
        return _fail(f"BUS_KEYS: {folder} is not empty")
    make_keys(folder)
    console.print(f"{folder}: set BUS_KEYS={folder}, and copy it to every machine of this bot")
    return 0


def _shown(settings: Settings, supervisor: Supervisor) -> int:
    """The status, where to look at it in a browser, and why what has ended has."""
    rows, report = _looked(settings, supervisor)
    look.show(console, report)
    if any(row.name == "dashboard" and row.healthy for row in rows):
        addresses = json.loads((settings.RUN_DIR / DASHBOARD_FILE).read_text())
        for rights, address in addresses.items():
            console.print(f"dashboard, to {rights}: {address}", soft_wrap=True)
    for row in rows:
        if row.state in DEAD:
            why = _last_words(settings, row.name)
            print(f"{row.name}: {why}; make down, then make up", file=sys.stderr)
    return 0 if all(row.healthy for row in rows) else 1


def _preflight(settings: Settings) -> str:
    """What would fail after the start, said before it."""
    path = (
        f"{settings.RUN_DIR.absolute() / 'supervisor.sock'}.1234567"  # it binds under a draft name
    )
    if len(path.encode()) > MAX_PATH:
        return f"RUN_DIR: {path} is over {MAX_PATH} bytes, too long for a socket"
    ports = {"DASHBOARD_PORT": settings.DASHBOARD_PORT}
    if settings.BYBIT_ENV == "paper":
        ports["PAPER_PORT"] = settings.PAPER_PORT
    if wrong := next((said for name, port in ports.items() if (said := _taken(name, port))), ""):
        return wrong
    if settings.NOTIFY_URLS.get_secret_value() and (wrong := _wrong_addresses()):
        return wrong
    return _made(settings.RUN_DIR)


def _made(folder: Path) -> str:
    """Why this cannot be the RUN_DIR; empty once it is there."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / "logs").mkdir(mode=0o700, exist_ok=True)
    except FileExistsError as error:
        return f"RUN_DIR: {error.filename} is not a folder"
    except OSError as error:
        return f"RUN_DIR: {error.filename} cannot be made: {error.strerror}"
    return ""


def _wrong_addresses() -> str:
    """Why nobody could be told anything, in the notifier's own words."""
    command = [sys.executable, "-m", "services.notifier", "--check"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return said.stdout.partition(WRONG)[2].strip() or said.stderr.strip()


def _taken(name: str, port: int) -> str:
    """Why nobody could listen there; empty if somebody could. 0 is any port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return f"{name}: port {port} is in use by another program"
            return f"{name}: {error}"
    return ""


def _start_supervisord(settings: Settings) -> None:
    (settings.RUN_DIR / STARTED_FILE).write_text(json.dumps(public(settings)))
    file = settings.RUN_DIR / SHARDS_FILE
    _write_shards(file, {str(i): [i, settings.SHARDS] for i in range(settings.SHARDS)})
    environment = {
        **os.environ,
        **settings.environment(),
        "PYTHON": sys.executable,
        "RUN_PATH": str(settings.RUN_DIR.absolute()),
        "AUTOSTART_PAPER": str(settings.BYBIT_ENV == "paper").lower(),
        "AUTOSTART_DASHBOARD": str(settings.DASHBOARD_PORT > 0).lower(),
        "AUTOSTART_NOTIFIER": str(bool(settings.NOTIFY_URLS.get_secret_value())).lower(),
        "DIE_WITH_PARENT": "true",
        SUPERVISED: "yes",
    }
    command = [sys.executable, "-m", "supervisor.supervisord", "-c", str(ROOT / "supervisord.conf")]
    subprocess.run(command, env=environment, cwd=ROOT, check=False)


def _write_shards(file: Path, slots: dict[str, list[int]]) -> None:
    """Whole or not at all: a worker may be starting."""
    draft = file.with_suffix(".new")
    draft.write_text(json.dumps(slots))
    draft.replace(file)


def _wait_healthy(settings: Settings, supervisor: Supervisor) -> str:
    """Empty once all that trades is healthy; otherwise who is not, and the last lines it said. For
    what is for people it waits a little longer, and then only says so."""
    bus, heard = look.listener(settings), look.Heard()
    until, patience = time.monotonic() + UP_SECONDS, PEOPLE_SECONDS
    rows: list[look.Process] = []
    try:
        with console.status("starting") as spinner:
            while time.monotonic() < until:
                look.listen(bus, 0.25, heard)
                rows = _rows(settings, supervisor, heard)
                if dead := [row for row in rows if row.state in DEAD and _needed(settings, row)]:
                    return _obituary(settings, dead)
                late = [row for row in rows if not row.healthy]
                if rows and all(row.name in FOR_PEOPLE for row in late):
                    until, patience = min(until, time.monotonic() + patience), 0
                if rows and not late:
                    return ""
                names = ", ".join(f"{row.name} {row.note}".strip() for row in late)
                spinner.update(f"waiting for {names}")
    finally:
        bus.close()
    late = [row for row in rows if not row.healthy]
    if rows and all(row.name in FOR_PEOPLE for row in late):
        console.print(f"[yellow]it trades, but without: {', '.join(row.name for row in late)}")
        return ""
    return _obituary(settings, late)


def _needed(settings: Settings, row: look.Process) -> bool:
    """Whether its end is the end of a start: it trades, or its configuration cannot work."""
    return row.name not in FOR_PEOPLE or WRONG in _last_line(settings, row.name)


def _last_line(settings: Settings, name: str) -> str:
    """The last thing that a process said; empty if it never said anything."""
    lines = _lines(settings, name)
    return logs.readable(lines[-1])[2] if lines else ""


def _last_words(settings: Settings, name: str) -> str:
    """Why a process has ended, as far as its last line tells."""
    return _last_line(settings, name).rpartition(WRONG)[2] or "it has ended without a word"


def _lines(settings: Settings, name: str) -> list[str]:
    log = settings.RUN_DIR / "logs" / f"{name}.log"
    return log.read_text(errors="replace").splitlines() if log.exists() else []


def _obituary(settings: Settings, rows: list[look.Process]) -> str:
    words = []
    for row in rows:
        if WRONG in _last_line(settings, row.name):
            return f"{row.name}: {_last_words(settings, row.name)}"
        said = _lines(settings, row.name)[-LAST_LINES:]
        words += [f"{row.name} is not healthy ({row.state} {row.note})", *said]
    return "\n".join(words)


def _rows(settings: Settings, supervisor: Supervisor, heard: look.Heard) -> list[look.Process]:
    try:
        infos = supervisor.processes()
    except GONE:
        return []
    answers: dict[str, Callable[[], bool]] = {
        **{name: partial(_looks, settings, name) for name in LISTENERS},
        "paper": lambda: _answers(settings.PAPER_PORT, "v5/market/time"),
        "dashboard": lambda: _answers(settings.DASHBOARD_PORT, HEALTHZ),
    }
    return [
        look.process(*(row["name"], row["statename"], row["pid"], heard), answers.get(row["name"]))
        for row in infos
    ]


def _audited(settings: Settings) -> dict[str, Any]:
    return look.auditor(settings.RUN_DIR) if settings.BYBIT_ENV == "paper" else {}


def _looks(settings: Settings, name: str) -> bool:
    """It says nothing, but touches its lock at each look."""
    with contextlib.suppress(OSError):
        looked_s = lock_file(settings.RUN_DIR, f"{name}-0").stat().st_mtime
        return time.time() - looked_s < STILL_SECONDS
    return False


def _answers(port: int, path: str) -> bool:
    try:
        with DIRECT.open(f"http://127.0.0.1:{port}/{path}", timeout=2) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _worker_slots(supervisor: Supervisor) -> list[int]:
    rows = supervisor.processes()
    return [int(row["name"].split("-")[1]) for row in rows if row["group"] == "worker"]


def _supervisord_lives(run_dir: Path) -> bool:
    """Whether ours does: after a crash the number that it wrote may be another program's."""
    with contextlib.suppress(OSError, ValueError):
        pid, mine = int((run_dir / "supervisord.pid").read_text()), f"RUN_PATH={run_dir.absolute()}"
        return mine.encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return False


def _wait(condition: Any, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def _fail(reason: str) -> int:
    print(reason, file=sys.stderr)
    return WRONG_SETTING_EXIT


def main() -> None:
    """`python -m services.ops up|down|status|logs|scale|mode`."""
    parser = argparse.ArgumentParser(prog="python -m services.ops", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("up", help="start everything and wait until it is healthy")
    verbs.add_parser("down", help="stop everything")
    verbs.add_parser("status", help="how it is").add_argument("--json", action="store_true")
    reader = verbs.add_parser("logs", help="follow the logs")
    reader.add_argument("--service", default="", help="only those that begin so: router, worker-1")
    verbs.add_parser("scale", help="change the number of workers").add_argument(
        "n", type=whole("N")
    )
    verbs.add_parser("mode", help="ask for a mode").add_argument("mode", choices=msg.MODES)
    verbs.add_parser("paper-reset", help="a new paper account and an empty ledger")
    verbs.add_parser("bus-keys", help="a pair of keys for tcp between machines")
    asked = parser.parse_args()
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # supervisord and all its children, too
    with ending(GOES_ON.get(asked.verb, "")):
        sys.exit(_done(asked))


def _done(asked: argparse.Namespace) -> int:
    """Do it; exit code."""
    settings = load() if asked.verb in ("up", "paper-reset", "bus-keys") else running()
    if asked.verb == "status":
        return status(settings, asked.json)
    if asked.verb == "logs":
        return logs.follow(settings.RUN_DIR / "logs", asked.service)
    if asked.verb == "scale":
        return scale(settings, asked.n)
    if asked.verb == "mode":
        return mode(settings, asked.mode)
    plain = {"up": up, "down": down, "paper-reset": paper_reset, "bus-keys": bus_keys}
    return plain[asked.verb](settings)
