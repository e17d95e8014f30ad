"""ops: what a start waits for, what it does without, and what is done one at a time."""

import fcntl
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from services.doctor.doctor import FAIL, WARN, Doctor
from services.ops import look, ops
from shared import messages as msg
from shared.actor import hold_lock
from shared.settings import Settings, public
from tests.pipeline import free_port


class Supervised:
    """supervisord as a start sees it: every process in this state."""

    def __init__(self, **states: str) -> None:
        self._states = states

    def processes(self) -> list[dict[str, object]]:
        return [
            {"name": name, "group": name, "statename": state, "pid": 7}
            for name, state in self._states.items()
        ]


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    (tmp_path / "logs").mkdir()
    monkeypatch.setattr(ops, "UP_SECONDS", 0.6)
    monkeypatch.setattr(ops, "PEOPLE_SECONDS", 0.0)
    word = msg.Health("keeper", 0, 7, True, "", "", 0, {}, {}, 1, 2, "1")
    monkeypatch.setattr(look, "listen", lambda bus, seconds, heard: heard.take(word) or heard)
    return Settings(_env_file=None, RUN_DIR=tmp_path, DASHBOARD_PORT=1)


@pytest.mark.parametrize("state", ["RUNNING", "STARTING", "BACKOFF", "EXITED"])
def test_a_start_goes_on_without_a_dashboard(
    state: str, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    supervised = Supervised(keeper="RUNNING", dashboard=state)  # which answers nobody
    assert ops._wait_healthy(settings, supervised) == ""
    assert "it trades, but without: dashboard" in capsys.readouterr().out


def test_a_start_does_not_go_on_without_what_trades(settings: Settings) -> None:
    assert "router" in ops._wait_healthy(settings, Supervised(keeper="RUNNING", router="EXITED"))
    assert "router" in ops._wait_healthy(settings, Supervised(keeper="RUNNING", router="RUNNING"))


def test_a_wrong_address_for_notices_ends_a_start(settings: Settings) -> None:
    log = settings.RUN_DIR / "logs" / "notifier.log"
    log.write_text("2026-01-01 00:00:00,000 ERROR wrong_setting NOTIFY_URLS: no such service\n")
    said = ops._wait_healthy(settings, Supervised(keeper="RUNNING", notifier="EXITED"))
    assert said == "notifier: NOTIFY_URLS: no such service"


def test_one_scaling_at_a_time(settings: Settings) -> None:
    with (settings.RUN_DIR / "scale.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ops.Unable, match="somebody else"):
            ops.scaled(settings, 2, "ann", print)
    with pytest.raises(ops.Unable, match="nothing runs"):
        ops.scaled(settings, 2, "ann", print)


def test_a_scaling_where_nothing_was_ever_started_says_so(tmp_path: Path) -> None:
    nowhere = Settings(_env_file=None, RUN_DIR=tmp_path / "none")
    with pytest.raises(ops.Unable, match="make up"):
        ops.scaled(nowhere, 2, "ann", print)


class Rpc:
    """supervisord's interface: these processes; a worker that it starts dies at once."""

    def __init__(self, **states: str) -> None:
        self.states = {name.replace("_", "-"): state for name, state in states.items()}

    def getState(self) -> dict[str, str]:  # noqa: N802 - its word
        return {"statename": "RUNNING"}

    def getAllProcessInfo(self) -> list[dict[str, object]]:  # noqa: N802 - its word
        return [
            {"name": name, "group": name.split("-")[0], "statename": state, "pid": 7, "start": 1}
            for name, state in self.states.items()
        ]

    def startProcess(self, name: str) -> None:  # noqa: N802 - its word
        self.states[name.partition(":")[2]] = "EXITED"

    def stopProcess(self, name: str) -> None:  # noqa: N802 - its word
        pass  # it has ended: supervisord refuses


def test_a_slot_whose_worker_has_died_counts_as_long_as_it_has_a_shard(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = {"worker_0": "RUNNING", "worker_1": "EXITED", "worker_2": "FATAL"}
    rpc = Rpc(**states, worker_3="STOPPED", keeper="STOPPED")
    monkeypatch.setattr(ops.Supervisor, "_rpc", rpc)
    (settings.RUN_DIR / "shards.json").write_text('{"0": [0, 2], "2": [1, 2], "3": [0, 3]}')
    rows = ops.Supervisor(settings.RUN_DIR).processes()
    assert [row["name"] for row in rows] == ["worker-0", "worker-2", "keeper"]


def test_workers_that_die_at_once_end_the_scaling_with_their_reason(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops.Supervisor, "_rpc", Rpc(worker_0="RUNNING"))
    shards = settings.RUN_DIR / "shards.json"
    shards.write_text('{"0": [0, 1]}')
    log = settings.RUN_DIR / "logs" / "worker-1.log"
    log.write_text("2026-01-01 00:00:00,000 ERROR wrong_setting BB_MULT: no\n")
    with pytest.raises(ops.Unable, match="worker-1: BB_MULT: no: the old workers go on"):
        ops.scaled(settings, 2, "ann", print)
    assert json.loads(shards.read_text()) == {"0": [0, 1]}
    rows = ops.Supervisor(settings.RUN_DIR).processes()
    assert [row["name"] for row in rows] == ["worker-0"]


def test_a_scaling_that_is_interrupted_frees_its_slots(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ctrl_c(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ops.Supervisor, "_rpc", Rpc(worker_0="RUNNING"))
    monkeypatch.setattr(look, "listen", ctrl_c)
    (settings.RUN_DIR / "shards.json").write_text('{"0": [0, 1]}')
    with pytest.raises(KeyboardInterrupt):
        ops.scaled(settings, 2, "ann", print)
    assert json.loads((settings.RUN_DIR / "shards.json").read_text()) == {"0": [0, 1]}


def test_what_has_ended_is_told_and_no_address_of_a_page_that_is_not_there(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    (settings.RUN_DIR / "dashboard.json").write_text('{"look": "http://127.0.0.1:1/"}')
    log = settings.RUN_DIR / "logs" / "router.log"
    log.write_text("2026-01-01 00:00:00,000 ERROR wrong_setting BYBIT_API_KEY: expired\n")
    supervised = Supervised(keeper="RUNNING", router="EXITED", dashboard="RUNNING")
    assert ops._shown(settings, supervised) == 1
    out, err = capsys.readouterr()
    assert err == "router: BYBIT_API_KEY: expired; make down, then make up\n"
    assert "http" not in out


def test_down_waits_for_a_supervisord_that_no_longer_answers(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ops, "DOWN_SECONDS", 0.0)
    command = [sys.executable, "-c", "print(flush=True); input()"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    pipes["env"] = {**os.environ, "RUN_PATH": str(settings.RUN_DIR.absolute())}
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, **pipes) as process:
        process.stdout.readline()  # it is there
        (settings.RUN_DIR / "supervisord.pid").write_text(f"{process.pid}\n")
        assert ops.down(settings) == 2
    assert "still there" in capsys.readouterr().err
    assert ops.down(settings) == 0
    assert capsys.readouterr().out == "nothing runs\n"


def test_a_run_dir_that_cannot_be_is_one_line(tmp_path: Path) -> None:
    (file := tmp_path / "file").write_text("")
    free = {"_env_file": None, "DASHBOARD_PORT": 0, "PAPER_PORT": free_port()}
    said = ops._preflight(Settings(RUN_DIR=file, **free))
    assert said == f"RUN_DIR: {file} is not a folder"
    said = ops._preflight(Settings(RUN_DIR=Path("/proc/none"), **free))
    assert said == "RUN_DIR: /proc/none cannot be made: No such file or directory"


def test_a_refused_start_leaves_no_folder(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port, folder = other.getsockname()[1], tmp_path / "run"
        wanted = Settings(_env_file=None, RUN_DIR=folder, DASHBOARD_PORT=0, PAPER_PORT=port)
        assert ops.up(wanted) == 2
    assert not folder.exists()


def test_the_doctor_names_what_the_running_bot_was_started_without(tmp_path: Path) -> None:
    started = Settings(_env_file=None, RUN_DIR=tmp_path, PAPER_PORT=free_port())
    (tmp_path / "started.json").write_text(json.dumps(public(started)))
    now = started.model_copy(update={"MAX_SLOTS": 7})

    def warned() -> list[str]:
        found = [x for x in Doctor(now).findings() if x.what == "settings"]
        return [x.says for x in found if x.state == WARN]

    assert warned() == [], "nothing runs"
    lock = hold_lock(tmp_path, "keeper-0")
    assert warned() == ["MAX_SLOTS: the bot runs with others"]
    os.close(lock)


def test_the_doctor_says_that_a_file_is_no_folder(tmp_path: Path) -> None:
    (file := tmp_path / "file").write_text("")
    found = list(Doctor(Settings(_env_file=None, RUN_DIR=file, PAPER_PORT=1)).findings())
    assert f"{file} is not a folder" in [x.says for x in found if x.state == FAIL]


def test_the_doctor_says_in_one_line_that_no_paper_exchange_runs(tmp_path: Path) -> None:
    port = free_port()
    looks = Doctor(Settings(_env_file=None, RUN_DIR=tmp_path, PAPER_PORT=port))
    (found,) = [finding for finding in looks.findings() if finding.state == FAIL]
    assert found[0] == "exchange"
    assert found.says == f"http://127.0.0.1:{port} does not answer: the paper exchange does not run"
    assert "make up" in found.mend
