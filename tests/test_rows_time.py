# ruff: noqa: N802 - rows keep their capital letter
"""Time: rows G1 to G5 of the fault catalogue.

Three clocks (DESIGN section 3): the market's for bars, the machine's wall clock for signatures, the
monotonic one for ages and deadlines. On a stage the exchange's wall clock is moved; in a world each
process has a wall clock of its own, may be stopped, and the exchange goes on.
"""

import ast
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from services.doctor import doctor
from services.ingestor.actor import Ingestor
from services.keeper.actor import CLOCK_NS, WRONG_TIME, Keeper
from services.keeper.losses import Limits, Losses
from services.keeper.restarts import LOOP_COUNT, Restarts
from services.router.actor import Router
from services.worker.actor import Worker
from shared import messages as msg
from shared.settings import Settings
from tests.simulation.plans import Plan
from tests.simulation.world import World
from tests.stage import A, B, C, Theatre

NOT_APPLICABLE = {
    "G1 offset measured and used to sign": "the machine's clock signs, nothing is added to it "
    "(DESIGN section 3): a request out of the window is refused, entries stop, the doctor says it",
    "G1 resolved by a median of 5": "nothing is measured: see above",
}
ROOT = Path(__file__).parents[1]
D = Decimal
HOUR_MS, DAY_MS, MINUTE_MS = 3_600_000, 86_400_000, 60_000
NEAR = "99.8"  # an entry is wanted at the lower band
WIDE = {"BASE_FEE_PCT": 3.0}  # a lot stays open
DOUBT_S = CLOCK_NS // 10**9 + 15  # CLOCK_NS and two clean rounds
PROCESSES = ("ingestor", "keeper", "router", "worker-0")
SECONDS = {"time.time", "time.time_ns", "time.localtime", "time.gmtime", "datetime.now"}


def world(tmp_path, *acts, seconds=40, seed=7, **numbers):
    return World(Plan(seed, 3, 1, seconds, WIDE | numbers, tuple(acts)), tmp_path)


def moment(text):
    """Market time of a UTC date."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1_000)


def stage_at(monkeypatch, text, minutes_before, **numbers):
    """A stage that begins so many minutes before a moment."""
    start_ms = moment(text) - minutes_before * MINUTE_MS
    monkeypatch.setattr("tests.stage.START_MS", start_ms)
    return Theatre(**numbers)


# G1: a clock that is not the exchange's.


@pytest.mark.parametrize("ms", [-900, 500, 1_900])
def test_G1_a_small_offset_changes_nothing(ms):
    """The exchange takes stamps from recv_window (2 s) ago to 1 s ahead."""
    stage = Theatre(**WIDE)
    stage.fault("venue", "clock_offset", ms=ms)
    stage.listen()
    stage.fill(A)
    stage.rest(B)
    stage.run(25)  # and rounds of reconciliation
    assert stage.mode().mode == msg.RUN
    assert {code for _, _, code in stage.requests} <= {0, 110043}
    stage.end()


@pytest.mark.parametrize("by_rest", [False, True])
@pytest.mark.parametrize("ms", [-1_200, 6_000])
def test_G1_an_offset_beyond_the_window_stops_entries_and_no_exit(ms, by_rest):
    stage = Theatre(**WIDE)
    stage.fill(A)
    if by_rest:
        stage.by_rest()
        stage.run(12)
    stage.fault("venue", "clock_offset", ms=ms)
    stage.to(B, NEAR, 1)
    (refused,) = stage.said(msg.OrderRequest, symbol=B, outcome="refused")
    assert refused.ret_code == WRONG_TIME
    assert (stage.mode().mode, stage.mode().reason) == (msg.NO_ENTRY, "clock doubtful")
    assert stage.ledger.slots() == 1  # the lot of A: what was refused never was
    stage.to(C, NEAR, 20)
    assert len(stage.sent("create", B) + stage.sent("create", C)) == 1
    assert stage.mode().mode == msg.NO_ENTRY
    stage.to(A, "103.5", 2)
    assert (stage.held(A), stage.lots(A)) == (0, [])  # its exit rested, and the stream told us
    stage.heal()
    stage.until(lambda: stage.mode().mode == msg.RUN, within=DOUBT_S)
    stage.end()


def test_G1_an_exit_that_was_refused_for_the_time_is_made_as_soon_as_it_is_right():
    stage = Theatre(**WIDE)
    stage.rest(A)
    stage.fault("venue", "clock_offset", ms=6_000)
    stage.to(A, "99.0", 20)  # filled: an exit is due
    assert stage.held(A) > 0
    tried = len(stage.sent("create", A, msg.EXIT))
    assert 3 <= tried <= 8  # again and again, with back-off
    stage.heal()
    stage.until(lambda: any(o.reduce_only for o in stage.at_venue(A)), within=16)
    stage.run(3)
    assert len(stage.exits(A)) == 1
    stage.end()


@pytest.mark.parametrize("ms", [-6_000, 1_200])
@pytest.mark.parametrize("process", ["router", "keeper"])
def test_G1_one_process_whose_clock_is_wrong_stops_entries_until_it_is_right(process, ms, tmp_path):
    """G5, too: the two that sign have one clock in life, and need not have the same one."""
    acts = [(14, "move", "AAAUSDT", "lower", -0.2), (18, "move", "AAAUSDT", "lower", 0.4)]
    acts += [(20, "skew", process, ms), (34, "move", "BBBUSDT", "lower", -0.2)]
    life = world(tmp_path, *acts, (40, "move", "CCCUSDT", "lower", -0.2), seconds=60)
    life.run(60)
    assert life.mode.mode == msg.NO_ENTRY
    assert len(life.entries()) == 1
    (order,) = (o for o in life.venue.matching.open_orders())
    assert order.reduce_only  # the lot has its exit
    life.live()


@pytest.mark.parametrize(
    ("ms", "state"), [(0, "ok"), (700, "warn"), (-700, "warn"), (2_500, "FAIL"), (-2_500, "FAIL")]
)
def test_G1_the_doctor_says_how_far_the_clocks_are_apart(ms, state, monkeypatch):
    looks = doctor.Doctor(Settings(_env_file=None))
    monkeypatch.setattr(doctor.time, "time", lambda: 1_700_000_000.0)
    looks._try = lambda verb: ({"time": 1_700_000_000_000 + ms}, "")
    found = looks._clock()
    assert found.state.lower() == state.lower()
    assert f"{ms:+d} ms" in found.says
    assert bool(found.mend) == (state != "ok")


# G2: the wall clock steps back.


def lived(folder, back_ms):
    """A life of 90 s, in which all wall clocks, the exchange's too, step back for 40 s."""
    folder.mkdir()
    moves = (
        *((14, "AAAUSDT", "lower", -0.2), (25, "AAAUSDT", "lower", 0.4)),
        *((30, "BBBUSDT", "upper", -0.2), (45, "BBBUSDT", "upper", 0.4)),
        *((50, "CCCUSDT", "lower", -0.2), (70, "AAAUSDT", "upper", -0.2)),
    )
    life = world(folder, *((at, "move", *rest) for at, *rest in moves), seconds=90)
    life.run(20)
    for process in life.processes.values():
        process.skew_ms = -back_ms
    life.venue.clock_offset_ms = -back_ms
    life.run(40)
    for process in life.processes.values():
        process.skew_ms = 0
    life.venue.clock_offset_ms = 0
    life.run(30)
    return life


def test_G2_all_that_is_said_and_done_is_the_same_while_the_wall_clock_is_an_hour_back(tmp_path):
    """No age, no deadline, no bar and no order depends on it."""
    straight, stepped = lived(tmp_path / "a", 0), lived(tmp_path / "b", HOUR_MS)
    assert stepped.trace == straight.trace
    assert len(stepped.entries()) >= 3
    assert stepped.mode.mode == msg.RUN
    stepped.live()


def test_G2_a_bot_whose_own_clock_steps_back_waits_for_the_right_time(tmp_path):
    acts = [(14, "move", "AAAUSDT", "lower", -0.2), (18, "move", "AAAUSDT", "lower", 0.4)]
    acts += [(20, "skew", name, -HOUR_MS) for name in PROCESSES]
    acts += [(30, "move", "BBBUSDT", "lower", -0.2)]
    acts += [(50, "skew", name, 0) for name in PROCESSES]
    life = world(tmp_path, *acts, seconds=55)
    life.run(49)
    assert life.mode.mode == msg.NO_ENTRY
    assert sum(life.seen[f"start {name}"] for name in ("keeper", "router", "worker")) == 3
    quotes = life.processes["router"].actor._quotes
    age_ns = max(life.now_ms * 10**6 - heard for _, heard in quotes.values())
    assert age_ns <= 1_100_000_000  # said and heard as ever
    assert len(life.processes["keeper"].actor._ledger.lots) == 1
    life.live()


def test_G2_a_step_back_is_no_crash_loop():
    starts, restarts = (0, 15, 30, 45), Restarts()
    for minute in starts:
        assert restarts.started("keeper", DAY_MS + minute * MINUTE_MS) == ""
    assert restarts.started("keeper", DAY_MS - 10 * MINUTE_MS) == ""
    again = Restarts()
    loop = [again.started("keeper", DAY_MS + number) for number in range(LOOP_COUNT)]
    assert loop[-1].startswith("crash loop")


def test_G2_a_lost_day_stays_lost_when_the_clock_steps_back_over_midnight():
    losses, day_ms = Losses(Limits(3, 0), ""), 20_000 * DAY_MS
    losses.seen(D(1_000), day_ms + 1_000)
    losses.seen(D(960), day_ms + 2_000)  # 4 %
    assert losses.trigger()[0] == msg.REDUCE_ONLY
    for at_ms in (day_ms - HOUR_MS, day_ms - 1, day_ms + 3_000):
        losses.seen(D(960), at_ms)
        assert losses.trigger()[0] == msg.REDUCE_ONLY
    losses.seen(D(960), day_ms + DAY_MS)
    assert losses.trigger() is None


def test_G2_only_signatures_and_what_a_person_reads_look_at_the_wall_clock():
    """Whoever adds a reader says here what for."""
    readers = {
        "shared/bybit.py": 1,  # signs
        "services/keeper/actor.py": 1,  # dates rows in the file, and the day of a loss
    }
    files = [*ROOT.glob("shared/*.py")]
    for service in ("ingestor", "worker", "router", "keeper", "watchdog"):
        files += ROOT.glob(f"services/{service}/*.py")
    found = {}
    for file in files:
        nodes = ast.walk(ast.parse(file.read_text()))
        uses = [ast.unparse(n) for n in nodes if isinstance(n, ast.Attribute)]
        if count := sum(use in SECONDS for use in uses):
            found[file.relative_to(ROOT).as_posix()] = count
    assert found == readers


# G3: time jumps ahead: a suspended machine.


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("before", [False, True])
def test_G3_after_a_minute_of_sleep_nothing_is_done_on_old_data(before, seed, tmp_path):
    """Near a band when it falls asleep (or soon after), and far from it long before it wakes."""
    near = (14.6 if before else 16, "move", "AAAUSDT", "lower", -0.2)
    asleep = [(14.9, "freeze", name, 60_000) for name in PROCESSES]
    acts = [(14.5, "bus", "ledger", "drop", 1.0, 0.4), near, *asleep]
    acts += [(60, "move", "AAAUSDT", "upper", -0.4), (95, "move", "BBBUSDT", "lower", -0.2)]
    life = world(tmp_path, *acts, seconds=110, seed=seed)
    modes = []
    life.run(74.8)
    publish = life._publish
    life._publish = lambda process, stream, message: (
        modes.append(message.mode) if isinstance(message, msg.Mode) else None,
        publish(process, stream, message),
    )
    life.run(20)
    assert not life.entries()
    assert modes[0] == msg.NO_ENTRY  # nobody knows the market yet
    assert modes[-1] == msg.RUN
    life.run(5)
    assert len(life.entries()) == 1  # of what it sees now
    life.live()


@pytest.mark.parametrize("seed", range(2))
def test_G3_what_was_filled_meanwhile_gets_its_exit_at_once(seed, tmp_path):
    acts = [(14, "move", "AAAUSDT", "lower", -0.2)]
    acts += [(20, "freeze", name, 60_000) for name in PROCESSES]
    life = world(tmp_path, *acts, (40, "move", "AAAUSDT", "lower", 0.4), seconds=90, seed=seed)
    life.run(79.8)
    assert life.venue.matching.wallet.position("AAAUSDT").size > 0
    assert not [o for o in life.venue.matching.open_orders() if o.reduce_only]
    life.run(3)
    (order,) = (o for o in life.venue.matching.open_orders() if o.reduce_only)
    assert order.qty == life.venue.matching.wallet.position("AAAUSDT").size
    life.live()


# G4: midnight, the end of a month, a leap day, the minute of funding.


@pytest.mark.parametrize(
    "day",
    ["2023-12-31", "2024-01-01", "2024-02-28", "2024-02-29", "2024-03-01", "2025-02-28",
     "2024-03-31", "2024-10-27", "2100-02-28"],
)  # fmt: skip
def test_G4_the_day_of_a_loss_is_a_utc_day_and_rolls_once(day):
    """The last two of 2024 have 23 and 25 hours in Europe: here they have 24."""
    losses, midnight_ms = Losses(Limits(3, 0), ""), moment(day)
    for hour in range(24):
        losses.seen(D(1_000), midnight_ms + hour * HOUR_MS)
    losses.seen(D(969), midnight_ms + DAY_MS - 1)  # 3.1 % in the last moment of the day
    assert losses.trigger()[0] == msg.REDUCE_ONLY
    losses.seen(D(969), midnight_ms + DAY_MS)
    assert losses.trigger() is None
    losses.seen(D(941), midnight_ms + DAY_MS + 1)  # 2.9 % of 969
    assert losses.trigger() is None
    losses.seen(D(939), midnight_ms + 2 * DAY_MS - 1)  # 3.1 %: 969 is the day's first, all day
    assert losses.trigger()[0] == msg.REDUCE_ONLY


def test_G4_a_clock_that_trembles_at_midnight_gives_no_new_allowance():
    losses, midnight_ms = Losses(Limits(3, 0), ""), moment("2024-03-01")
    for equity, shift_ms in ((1_000, -60_000), (990, 5), (980, -5), (970, 5), (961, -5), (960, 5)):
        losses.seen(D(equity), midnight_ms + shift_ms)
    assert losses.trigger()[0] == msg.REDUCE_ONLY  # 960 of 990


@pytest.mark.parametrize("text", ["2024-02-29", "2024-03-01", "2025-01-01"])
def test_G4_bars_and_ids_go_on_over_midnight(text, monkeypatch):
    stage = stage_at(monkeypatch, text, 2, **WIDE)
    stage.rest(A)
    stage.swing(4, A, B, C)
    stage.to(B, NEAR)
    stage.until(lambda: stage.entries(B), within=65)
    assert stage.replay.now().market_ms > moment(text) + 2 * MINUTE_MS
    for symbol in (A, B):
        ours, theirs = stage.bars(symbol)
        assert ours == theirs
    assert stage.worker._symbols[A].ring.next_ms == stage.replay.now().market_ms // 60_000 * 60_000
    bars = [int(name.split("-")[2], 16) * MINUTE_MS for name in stage.entry_ids(A)]
    assert bars[0] < moment(text)
    assert stage.entries(B)[0].bar_start_ms >= moment(text)
    stage.end()


@pytest.mark.parametrize("text", ["2023-11-14T08:00", "2023-11-15T00:00"])
def test_G4_the_minute_of_funding_moves_cash_and_no_lot(text, monkeypatch):
    stage = stage_at(monkeypatch, text, 2, **WIDE)
    stage.fill(A)
    before, cash = stage.lots(A), stage.venue.matching.wallet.balance
    stage.run((moment(text) - stage.replay.now().market_ms) // 1_000 + 15)
    paid = [r for r in stage.venue.matching.executions if r["execType"] == "Funding"]
    assert [row["symbol"] for row in paid] == [A]  # once
    assert stage.venue.matching.wallet.balance != cash
    assert stage.lots(A) == before
    assert len(stage.exits(A)) == 1
    assert stage.mode().mode == msg.RUN
    stage.end()


# G5: who signs.


def test_G5_one_process_may_send_orders_and_one_more_may_sign():
    links = {actor.service: actor.links for actor in (Ingestor, Worker, Router, Keeper)}
    assert {name for name, theirs in links.items() if "trade" in theirs} == {"router"}
    signing = {name for name, theirs in links.items() if {"trade", "private"} & {*theirs}}
    assert signing == {"router", "keeper"}


def test_G5_all_that_the_keeper_ever_sends_is_a_cancel_by_the_exchange_s_id():
    stage = Theatre(**WIDE)
    door = stage.replay._doors[stage.replay.keeper]
    sent, send = [], door.send
    door.send = lambda message: (sent.append(message), send(message))
    stage.fill(A)
    stage.rest(B)
    stage.to(C, NEAR, 3)
    stage.replay.router.tick = lambda now_ns: []  # it dies; its Health is heard no more
    stage.replay.router.handle = lambda message, now_ns: []
    publish = stage.replay._publish
    stage.replay._publish = lambda stream, message: (
        None if getattr(message, "service", "") == "router" else publish(stream, message)
    )
    stage.run(30)
    orders = [m for m in sent if isinstance(m, msg.OrderRequest) and not m.outcome]
    assert orders
    assert {m.action for m in orders} == {"cancel"}
    assert all(m.order_id for m in orders)
    assert not stage.entries(B) + stage.entries(C)
    assert len(stage.exits(A)) == 1
    stage.replay._publish = publish
    del stage.replay.router.tick, stage.replay.router.handle
    stage.restart("router")
    stage.end(90)


def test_every_row_has_a_test_or_a_reason():
    rows = {f"G{n}" for n in range(1, 6)}
    assert {name.split("_")[1] for name in globals() if name.startswith("test_G")} == rows
    assert {row.split()[0] for row in NOT_APPLICABLE} <= rows
