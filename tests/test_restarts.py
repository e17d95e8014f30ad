"""Restarts: five starts of one process within a minute are a crash loop."""

import pytest

from services.keeper.restarts import LOOP_COUNT, LOOP_MS, Restarts
from services.keeper.store import Store
from shared import messages as msg
from tests.stage import Theatre


def word(pid, service="router", slot=0):
    return msg.Health(service, slot, pid, True, "", "", 0, {}, {}, 0, 0, "")


@pytest.mark.parametrize(("apart_ms", "loops"), [(LOOP_MS // 6, True), (LOOP_MS // 4, False)])
def test_starts_are_counted_by_the_pids_that_speak(apart_ms, loops):
    restarts = Restarts()
    said = [
        restarts.heard("router-0", pid, start * apart_ms)
        for start, pid in enumerate((7, 7, 8, 9, 10, 11))
    ]
    assert [bool(reason) for reason in said] == [False] * 5 + [loops]


def test_each_process_has_a_count_of_its_own():
    restarts = Restarts()
    pids = range(2 * (LOOP_COUNT - 1))
    assert not any(restarts.heard(f"worker-{pid % 2}", pid, pid) for pid in pids)


def test_a_router_that_ends_again_and_again_stops_entries_until_a_person_resumes():
    stage = Theatre()
    for pid in range(1, LOOP_COUNT + 1):
        stage.replay._publish("commands", word(pid))
    stage.replay.settle()
    stage.run(2)
    assert (stage.mode().mode, stage.mode().reason[:20]) == (
        msg.REDUCE_ONLY,
        "crash loop: router-0",
    )
    stage.run(120)
    assert stage.mode().mode == msg.REDUCE_ONLY
    stage.operate(msg.RUN)
    stage.run(2)
    assert stage.mode().mode == msg.RUN


def test_the_keeper_counts_its_own_starts_on_disk(tmp_path):
    stage = Theatre()
    for _ in range(LOOP_COUNT - 1):
        assert stage.mode().mode == msg.RUN
        stage.restart("keeper", tmp_path / "state.db")
        stage.run(8)
    stage.run(2)
    assert stage.mode().mode == msg.REDUCE_ONLY
    assert "crash loop: keeper" in stage.mode().reason


def test_an_orderly_end_is_no_crash(tmp_path):
    stage, path = Theatre(), tmp_path / "state.db"
    stage.restart("keeper", path)
    stage.replay.keeper.stop(stage.replay._now_ns)
    store = Store(path, stage.replay.keeper._account, "")
    assert store.noted("starts") == ""
    store.close()
