"""ops: what a start waits for, what it does without, and what is done one at a time."""

import fcntl
from pathlib import Path

import pytest

from services.doctor.doctor import FAIL, Doctor
from services.ops import look, ops
from shared import messages as msg
from shared.settings import Settings
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
    monkeypatch.setattr(look, "listen", lambda bus, seconds, heard: heard.take(word))
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


def test_the_doctor_says_in_one_line_that_no_paper_exchange_runs(tmp_path: Path) -> None:
    port = free_port()
    looks = Doctor(Settings(_env_file=None, RUN_DIR=tmp_path, PAPER_PORT=port))
    (found,) = [finding for finding in looks.findings() if finding.state == FAIL]
    assert found[0] == "exchange"
    assert found.says == f"http://127.0.0.1:{port} does not answer: the paper exchange does not run"
    assert "make up" in found.mend
