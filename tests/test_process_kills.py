# ruff: noqa: N802
"""Rows D of the fault catalogue (reliability.md, section 4): processes that are killed, stopped,
started twice, or left without a place to write.

One pipeline lives through all of them. Each test ends whole: all run, entries are allowed, ledger
and exchange hold the same, no rule was broken, nothing was sent or made twice, and whatever was
said of an order is on disk. Every point x every process, a thousand kills at random and the times
of recovery: `python -m tests.kills`.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from decimal import Decimal
from pathlib import Path

import pytest

from shared import messages as msg
from tests.kills import (
    ROLES,
    SCENARIOS,
    Mortal,
    all_for_sale,
    fill_part,
    held,
    is_gone,
    parent_of,
    restarted,
    sell,
    sold,
)
from tests.pipeline import LATE_S, ROOT, afresh, lifetime, wait_for

pytestmark = pytest.mark.xdist_group("process_kills")
WHOLE = Decimal(20)
SOON_S = 15
GONE_S = 1.0
BLIND_MS = 3_000  # a router that has not heard the keeper for so long makes no entries
CREATE = "/v5/order/create"


@pytest.fixture(scope="module")
def running():
    yield from lifetime(Mortal(18))


@pytest.fixture
def live(running):
    yield from afresh(running)


@contextlib.contextmanager
def stopped(live, name):
    """SIGSTOP, for as long as the block runs."""
    live.processes.signal(signal.SIGSTOP, name)
    try:
        yield
    finally:
        live.processes.signal(signal.SIGCONT, name)


def executions(live, symbol):
    return live.p.rows("SELECT exec_id FROM executions WHERE symbol = ?", symbol)


def test_D2_router_killed_between_send_and_answer(live):
    """Its order rests; the next router is told of it, and sends it no second time."""
    symbol, before = live.take(), live.struck()
    live.fault("http", "drop_after", path=CREATE)
    live.arm(symbol)
    live.until(lambda: live.struck() > before, SOON_S, armed=(symbol,))
    live.processes.back(live.processes.kill("router"))
    live.whole()
    name = live.sent("create", symbol)[0]
    assert live.sent("create", symbol).count(name) == len(live.created(name)) == 1


def test_D4_keeper_killed_between_execution_and_commit(live):
    symbol = live.take()
    name = live.rest(symbol)
    frozen = live.processes.signal(signal.SIGSTOP, "keeper")
    live.hit(symbol)
    live.until(lambda: live.held(symbol) == WHOLE, SOON_S)
    assert (executions(live, symbol), live.lot(symbol)) == ([], (0, 0))
    live.processes.kill("keeper")
    live.processes.back(frozen)
    live.until(lambda: live.exits(symbol) == [(f"{name}x0", WHOLE)], SOON_S)
    live.whole()
    assert (len(executions(live, symbol)), live.lot(symbol)) == (1, (WHOLE, 0))


def test_D6_worker_killed_at_its_word(live):
    """The next worker says the same of the same bar, and that makes no second order."""
    symbol, point = live.take(), SCENARIOS["entry"].points["armed"]
    live.killed_at("worker-0", point(symbol), lambda: live.near(symbol), again=True)
    live.until(lambda: live.entry(symbol), LATE_S, armed=(symbol,))
    live.whole()
    assert len(live.at_venue(symbol)) <= 1


def test_D7_ingestor_killed_and_exits_go_on(live):
    symbol, other = live.take(), live.take()
    live.fill(symbol)
    killed = live.processes.kill("ingestor")
    sell(live, symbol)
    live.until(lambda: sold(live, symbol), SOON_S)
    live.processes.back(killed)
    live.rest(other)
    live.whole()


def test_D8_all_at_once(live):
    """What was bought and sold while nobody looked is found, and is for sale."""
    bought, partly, gone = live.take(), live.take(), live.take()
    live.fill(gone)
    fill_part(live, partly)
    name = live.rest(bought)
    killed = live.processes.kill(*ROLES)
    assert len(killed) == len(ROLES)
    live.hit(bought)
    sell(live, gone)
    live.processes.back(killed)
    live.until(lambda: live.exits(bought) == [(f"{name}x0", WHOLE)], SOON_S)
    live.until(lambda: all_for_sale(live, partly), SOON_S)
    live.whole()
    assert (sold(live, gone), live.held(bought)) == (True, WHOLE)


def ours(live):
    """Every process that runs for this pipeline, whoever started it."""
    mark = f"RUN_DIR={live.p.run_dir}\0".encode()
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes()
            if b"services." in words and mark in (folder / "environ").read_bytes():
                found.add(int(folder.name))
    return found


def test_D9_supervisord_killed(live):
    """Nobody trades on without it; `make up` brings one set back, to what there was."""
    symbol, other = live.take(), live.take()
    name = live.fill(symbol)
    resting = live.rest(other)
    old = live.processes.pids()
    os.kill(live.processes.supervisord(), signal.SIGKILL)
    wait_for(lambda: all(map(is_gone, old.values())), GONE_S, 0.01)
    up = live.p.ops("up")
    assert up.returncode == 0, up.stdout + up.stderr
    now = live.processes.pids()
    assert now.keys() == old.keys()
    assert ours(live) == set(now.values())
    assert {parent_of(pid) for pid in now.values()} == {live.processes.supervisord()}
    live.whole()
    assert live.exits(symbol) == [(f"{name}x0", WHOLE)]
    assert len(live.created(resting)) == len(live.created(f"{name}x0")) == 1


def test_D1_D10_a_router_stopped_between_grant_and_send_is_killed_and_started_again(live):
    """The intent is on disk, nothing left: its slot is held until that is proven. The keeper minds
    the entries that rest, the watchdog ends the router, supervisord starts another."""
    symbol, other = live.take(), live.take()
    resting = live.rest(other)
    with stopped(live, "keeper"):  # the ask waits
        live.arm(symbol)
        time.sleep(0.2)
        frozen = live.processes.signal(signal.SIGSTOP, "router")
    live.until(lambda: live.entry(symbol)[1:] == ("Granted",), SOON_S)
    name = live.entry(symbol)[0]
    live.processes.back(frozen, LATE_S)
    assert f"silent service=router-0 pid={frozen['router']}: killed" in live.log("watchdog")
    live.until(lambda: live.outcome(name) == "not_accepted", SOON_S)
    assert (live.created(name), live.sent("create", symbol).count(name)) == ([], 0)
    assert live.created(resting)[0]["orderStatus"] in ("New", "Cancelled")
    live.whole()


def test_D13_D14_an_orderly_end_and_a_start_in_the_worst_order(live):
    """Everybody waits for who is not there yet, and what was held is held, by the same orders."""
    symbol, other = live.take(), live.take()
    live.fill(symbol)
    name = live.rest(other)
    before = held(live)
    restarted(live.processes, ["watchdog", "worker-0", "router", "keeper", "ingestor", "paper"], 0)
    live.whole()
    assert held(live) == before
    assert len(live.created(name)) == 1


COPIES = [
    ("keeper", True),
    ("router", True),
    ("worker", True),
    ("keeper", False),
    ("router", False),
]


def test_D15_two_copies_refuse(live, tmp_path):
    """In the same RUN_DIR, and in another one if the account is the same."""
    before = live.processes.pids()
    copies = []
    for service, same in COPIES:
        env = live.p.env | ({} if same else {"RUN_DIR": str(tmp_path)})
        command = [sys.executable, "-m", f"services.{service}"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        copies.append(subprocess.Popen(command, cwd=ROOT, env=env, **pipes))
    try:
        for (service, _), copy in zip(COPIES, copies, strict=True):
            said, _ = copy.communicate(timeout=SOON_S)
            pid = before["worker-0" if service == "worker" else service]
            assert copy.returncode == 1
            assert f"already running, pid {pid} holds" in said
    finally:
        for copy in copies:
            copy.kill()
            copy.wait()
    assert not (tmp_path / "state.db").exists()
    assert live.processes.pids() == before
    live.whole()


def stuff(pid):
    """Fill the pipe to which a process logs."""
    fd = os.open(f"/proc/{pid}/fd/1", os.O_WRONLY | os.O_NONBLOCK)
    try:
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(fd, b"\n" * 4096)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(fd, b"\n")
    finally:
        os.close(fd)


def test_D16_stdout_blocked(live):
    """Nobody reads the logs, and their pipes are full: trading goes on."""
    symbol = live.take()
    pids, supervisord = live.processes.pids(), live.processes.supervisord()
    os.kill(supervisord, signal.SIGSTOP)
    try:
        for service in ("router", "keeper"):
            stuff(pids[service])
        live.rest(symbol)
        live.hit(symbol)
        live.until(lambda: all_for_sale(live, symbol), SOON_S)
    finally:
        os.kill(supervisord, signal.SIGCONT)
    live.whole()


def test_E9_keeper_stopped_exits_go_on(live):
    """No grants, no entries; the exit of a lot follows the opposite band all the same."""
    symbol, other = live.take(), live.take()
    name = live.fill(symbol)
    keeper = live.processes.pids()["keeper"]
    with stopped(live, "keeper"):
        word = live.processes.words
        live.until(
            lambda: (
                live.processes.listen() is not None and word["router"].ages_ms["account"] > BLIND_MS
            ),
            SOON_S,
        )
        live.near(other)
        live.to(symbol, live.quotes[symbol].upper * 0.999)
        live.until(lambda: live.said(msg.OrderRequest, symbol=symbol, action="amend"), SOON_S)
        assert live.sent("create", other) == []
        assert live.processes.pids()["keeper"] == keeper  # it was not another one that helped
    assert live.sent("amend", symbol)[:1] == [f"{name}x0"]
    live.whole()


def test_F8_a_folder_that_is_gone_is_noticed(live):
    folder = live.p.run_dir
    away = folder.with_name(f"{folder.name}-away")
    folder.rename(away)
    try:
        live.until(lambda: live.mode == msg.REDUCE_ONLY, SOON_S)
        assert live.said(msg.Mode, mode=msg.REDUCE_ONLY)[-1].reason.endswith("is gone")
    finally:
        away.rename(folder)
    live.whole()
