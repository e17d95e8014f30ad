# ruff: noqa: N802 - rows keep their capital letter
"""Storage: rows F1 to F9 of the fault catalogue, on the keeper's one file.

The whole bot and the paper exchange run in one thread (`stage`), the keeper's ledger lies in a real
file, and under it a shim (`power_cut`) records what SQLite does or makes it fail.
"""

import contextlib
import os
import re
import shutil
import sqlite3
import subprocess
from collections import Counter
from contextlib import closing
from random import Random

import pytest

from services.keeper.actor import Keeper
from services.keeper.store import SCHEMA_VERSION, Store, Unwritable
from shared import messages as msg
from shared.settings import Settings, WrongSetting, ledger_account
from tests.power_cut import (
    EIO_SYNC,
    EIO_WRITE,
    FULL,
    LIBRARY,
    Recorder,
    Session,
    cut,
    images,
    lay,
    look,
    perform,
    restart_on,
    stage_on,
)
from tests.stage import A, B, C

NOT_APPLICABLE = {
    "F1 ballast": "exits need no intent on disk (DESIGN section 7), and what is executed meanwhile "
    "is kept in memory: nothing has to be written to a full disk",
    "F3 a raw log": "there is none: the torn files are those of SQLite",
    "F5 an older snapshot": "there are none: a ledger that cannot be read is refused, and one that "
    "was taken away is rebuilt from the exchange in REDUCE_ONLY",
    "F7 a slow disk": "the grant is answered after its sync, and p99 of the keeper's stage is in "
    "its Health; DESIGN has no limit of its own for it",
}
SETTINGS = Settings(_env_file=None)
ACCOUNT = ledger_account(SETTINGS)
FRAME = 4096 + 24  # of the write-ahead log: a page and its header
FAILURES = {
    "full": ("write", FULL),
    "EIO": ("write", EIO_WRITE),
    "EIO of a sync": ("sync", EIO_SYNC),
}
needs_shim = pytest.mark.skipif(LIBRARY is None, reason="sqlite3 hides the names of its library")
failing = pytest.mark.parametrize(("kind", "code"), FAILURES.values(), ids=FAILURES.keys())


def opened(path):
    """What the keeper knows after its start from this file, or REDUCE_ONLY where it put the file
    aside; raises WrongSetting."""
    keeper = Keeper(SETTINGS, str(path))
    try:
        keeper.start(0)
        disk, ledger = keeper._store, keeper._ledger
        noted = [disk.noted(name) for name in ("since_ms", "born_ms", "losses")]
        rows = (disk.orders(), disk.lots(), sorted(disk.executions()), disk.stops())
        sums = (disk.used_ms(), disk.foreign(), disk.closed_ms())
        if disk.operator()[0] != msg.RUN:
            return disk.operator()
        return rows, sums, noted, ledger.id.partition("-")[0], ledger.held()
    finally:
        if hasattr(keeper, "_store"):
            keeper._store.close()


def judged(path, *truths):
    """What became of a file: "same", "refused", "aside", or what is wrong.

    Refused in one line that names the file, which is left as it was; or put aside as it was, and
    the mode is REDUCE_ONLY until a person has read a line that names it.
    """
    before = path.read_bytes() if path.is_file() else b""
    try:
        found = opened(path)
    except WrongSetting as error:
        text, there = str(error), path.read_bytes() if path.is_file() else b""
        return "refused" if _clear(text) and there == before else f"unclear: {text!r}"
    except Exception as error:  # noqa: BLE001 - this is what is tested
        return f"traceback: {type(error).__name__}"
    if found in truths:
        return "same"
    if found[0] != msg.REDUCE_ONLY or not _clear(found[1]):
        return "silently wrong"
    others = [file for file in path.parent.glob("state.db*") if file.is_file() and file != path]
    kept = any(file.read_bytes() == before for file in others)
    return "aside" if kept or not before else "not kept as it was"


def _clear(text):
    return "\n" not in text and "state.db" in text


def refused(path):
    """Whether it does not trade on this file, and says why."""
    said = judged(path)
    return said in ("refused", "aside") or said


def in_file(path, query):
    with closing(sqlite3.connect(path)) as db:
        return db.execute(query).fetchall()


def executed(path):
    return {name for (name,) in in_file(path, "SELECT exec_id FROM executions")}


@pytest.fixture
def path(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    return folder / "state.db"


@pytest.fixture
def recorder(path):
    with Recorder(path.parent) as found:
        yield found
        found.heal()


@pytest.fixture
def quick(tmp_path):
    """Files that are opened hundreds of times."""
    with Recorder(tmp_path, keep=False):
        yield


@pytest.fixture(scope="module")
def life(tmp_path_factory):
    """A session of the keeper, recorded."""
    session, store = perform(tmp_path_factory.mktemp("life"))
    yield session
    store.close()


@pytest.fixture(scope="module")
def ledger(tmp_path_factory):
    """The file of a keeper that ended in order, with lots, exits and an entry: only state.db."""
    path = tmp_path_factory.mktemp("ledger") / "state.db"
    stage = stage_on(path)
    stage.fill(A)
    stage.to(A, "100.1", 2)
    stage.fill(B)
    stage.by_hand("place_order", symbol=A, side="Sell", orderType="Market", qty="0.7")
    stage.rest(C)
    stage.replay.keeper.stop(0)
    image = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    assert set(image) == {"state.db"}
    return image


@pytest.fixture(scope="module")
def logged(life):
    """The files of a keeper that was killed as its log was longest, the end of that, and which
    commit was the last."""
    ends, end = [], 0
    for count, op in enumerate(life.ops, 1):
        if (op.name, op.kind) == ("state.db-wal", "write"):
            end = op.at + len(op.data) if op.at else 0
        if (op.name, op.kind) == ("state.db-wal", "sync"):
            ends.append((end, count))
    end, count = max(ends)
    ((_, _, image),) = images(life, {count}, Random(0), ("all",))
    return image, end, life.bounds(count)[1]


# F1, F2, F7: a disk that takes nothing.


@needs_shim
@failing
def test_F1_without_an_intent_on_disk_nothing_is_sent_and_exits_go_on(recorder, path, kind, code):
    stage = stage_on(path)
    stage.fill(A)
    struck = recorder.strike(kind, code)
    stage.to(B, "99.8", 3)
    assert struck
    assert stage.last_quote(B).zone == msg.ARM
    assert (stage.entry_ids(B), stage.at_venue(B), stage.entries(B)) == ([], [], [])
    assert stage.mode().mode == msg.REDUCE_ONLY
    assert stage.mode().reason.startswith("disk")
    stage.to(A, "100.1", 2)  # its exit rests, is filled, and the lot is closed
    assert (stage.held(A), stage.lots(A)) == (0, [])
    recorder.heal()
    stage.until(lambda: stage.mode().mode == msg.RUN, 3)
    assert executed(path) == stage.ledger._seen
    assert in_file(path, "SELECT COUNT(*) FROM lots WHERE closed_ms = 0") == [(0,)]
    stage.until(lambda: stage.entries(B), 65)  # in a later bar
    stage.end()


@needs_shim
@failing
def test_F1_an_exit_is_made_though_the_disk_took_nothing_of_its_lot(recorder, path, kind, code):
    stage = stage_on(path)
    name = stage.rest(A)
    recorder.strike(kind, code)
    stage.to(A, "99.0", 2)
    (lot,) = stage.lots(A)
    assert [order.order_link_id for order in stage.exits(A)] == [f"{name}x0"]
    assert lot.bought == stage.held(A)
    stage.run(20)
    stage.to(A, "100.1", 1)
    assert stage.held(A) == 0
    recorder.heal()
    stage.end()
    assert executed(path) == stage.ledger._seen


@needs_shim
@failing
@pytest.mark.parametrize("count", [1, 1000])
def test_F1_a_grant_is_given_if_and_only_if_its_intent_is_on_disk(
    recorder, path, kind, code, count
):
    """The first write or sync of it fails, or all from then on; the second, and so on, until none
    is left that could fail."""
    stage = stage_on(path)
    keeper, bar, struck, number = stage.replay.keeper, int(stage.now_s // 60), [1], 0
    while struck:
        number += 1
        name = f"dm-AAAUSDT-{bar + number:x}-B"
        struck = recorder.strike(kind, code, first=number, count=count)
        grant = stage.grant(name)
        recorder.heal()
        found = in_file(path, f"SELECT status FROM orders WHERE order_link_id = '{name}'")
        may_be = ([("Granted",)],) if grant.granted else ([], [("Refused",)])
        assert found in may_be
        assert grant == msg.Grant(name, grant.granted, "" if grant.granted else "disk")
        assert not (struck and count > 1 and grant.granted)
        keeper._keep(keeper._ledger.finish(name, "Refused", "test"))
        stage.run(2)
        assert stage.mode().mode == msg.RUN  # there is room again, all is written
        assert in_file(path, f"SELECT status FROM orders WHERE order_link_id = '{name}'")
        assert in_file(path, "PRAGMA integrity_check") == [("ok",)]
    assert grant.granted
    assert number > (1 if kind == "sync" else 8)


@needs_shim
@failing
@pytest.mark.parametrize("killed", [False, True])
def test_F2_an_execution_that_the_disk_did_not_take(recorder, path, kind, code, killed, tmp_path):
    """It is kept in memory until there is room; if the process is killed, the exchange has it."""
    stage = stage_on(path)
    stage.rest(A)
    stage.run(3)
    before = executed(path)
    recorder.strike(kind, code)
    stage.fault("match", "partial", symbol=A, share="0.37")
    stage.to(A, "99.0", 3)
    assert stage.held(A) > 0
    assert sum(lot.bought for lot in stage.lots(A)) == stage.held(A)
    assert kind == "sync" or executed(path) == before
    if killed:
        path = tmp_path / "after.db"
        stage.restart("keeper", path)  # with what was committed
    recorder.heal()
    stage.until(lambda: executed(path) == stage.ledger._seen and stage.lots(A), 20)
    assert sum(lot.bought for lot in stage.lots(A)) == stage.held(A)
    stage.end()


@needs_shim
@failing
def test_F2_a_keeper_that_lost_what_it_had_said_is_heard_after_its_start(
    recorder, path, kind, code, tmp_path
):
    """Rows that no disk took are not counted on: the versions after the start are newer ones."""
    stage = stage_on(path)
    recorder.strike(kind, code)
    stage.to(A, "99.8", 3)
    assert stage.mode().mode == msg.REDUCE_ONLY
    recorder.heal()
    restart_on(stage, path, tmp_path / "old.db")
    stage.to(B, "99.8", 10)
    assert stage.mode().mode == msg.RUN
    stage.until(lambda: stage.entries(B), 5)
    stage.end()


@needs_shim
@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("first", range(1, 8))
def test_F7_a_sync_that_failed_is_not_made_good_by_the_next_one(
    recorder, path, tmp_path, first, killed
):
    """After EIO the pages are clean, and on no disk: a later sync succeeds, and covers nothing of
    them, whoever asks for it. An intent that is promised then must not lie behind such a hole in
    the log."""
    session = Session(recorder)
    stage = stage_on(path, session.store)
    struck = recorder.strike("sync", EIO_SYNC, first, count=10**9 if killed else 1)
    for symbol in (A, B):
        stage.to(symbol, "99.8", 2)
        stage.to(symbol, "99.0", 2)  # facts: written, not synced
        if killed and struck:
            recorder.heal()
            restart_on(stage, path, tmp_path / "old.db", session.store)
            stage.restart("router")
            stage.run(10)
    stage.to(A, "100.2", 65)
    stage.to(C, "99.8", 3)
    assert struck
    promised = session.commits[-1].intents
    assert len(promised) > 1
    for mode in ("synced", "some"):
        image = cut(session, mode, Random(first))
        look(session, (-1, len(session.commits) - 1), image, tmp_path / "cut.db")
        found = in_file(tmp_path / "cut.db", "SELECT order_link_id FROM orders")
        assert promised <= {name for (name,) in found}


@pytest.fixture
def small_disk(tmp_path):
    """4 MB of a file system of its own."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False).returncode
    except FileNotFoundError:
        done = 1
    if done:
        pytest.skip("mount is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill_up(folder):
    """A file that takes all the room there is."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    assert os.statvfs(folder).f_bavail == 0
    return ballast


def test_F1_F2_a_small_disk_that_is_full(small_disk):
    path = small_disk / "state.db"
    stage = stage_on(path)
    stage.rest(A)
    stage.run(5)
    ballast = fill_up(small_disk)
    before = executed(path)
    stage.to(A, "99.0", 60)
    stage.to(B, "99.8", 3)
    assert stage.entry_ids(B) == []
    assert (stage.mode().mode, stage.mode().reason[:5]) == (msg.REDUCE_ONLY, "disk:")
    assert [lot.bought for lot in stage.lots(A)] == [stage.held(A)]
    assert len(stage.exits(A)) == 1
    assert before <= executed(path)
    ballast.unlink()
    stage.until(lambda: stage.mode().mode == msg.RUN, 3)
    assert executed(path) == stage.ledger._seen
    stage.end()


def test_F2_killed_while_the_small_disk_is_full(small_disk, tmp_path):
    path = small_disk / "state.db"
    stage = stage_on(path)
    stage.rest(A)
    stage.run(5)
    ballast = fill_up(small_disk)
    stage.to(A, "99.0", 5)
    stage.to(A, "99.5", 40)
    for file in small_disk.glob("state.db*"):  # as a killed process leaves them
        shutil.copy(file, tmp_path)
    ballast.unlink()
    restart_on(stage, tmp_path / "state.db", tmp_path / "old.db")
    stage.until(lambda: stage.lots(A), 15)
    assert [lot.bought for lot in stage.lots(A)] == [stage.held(A)]
    stage.end()
    assert executed(tmp_path / "state.db") == stage.ledger._seen


@needs_shim
def test_F7_a_file_that_may_only_be_read_is_refused_in_one_line(path, recorder, ledger):
    lay(ledger, path)
    whole = opened(path)
    recorder.read_only = True
    assert judged(path) == "refused"
    recorder.read_only = False
    assert opened(path) == whole


# F3, F4: what a power cut leaves.


def prefixes(life):
    """All of the creation and of the checkpoints, every 16th of the rest."""
    main = [n for n, op in enumerate(life.ops) if op.name == "state.db"]
    near = {n + step for n in main for step in (0, 1, 2)}
    return {n for n in near if n % 2} | set(range(30)) | set(range(0, len(life.ops) + 1, 16))


@needs_shim
@pytest.mark.usefixtures("quick")
def test_F4_every_prefix_of_writes_and_syncs_is_a_consistent_ledger(life, tmp_path):
    seen, chosen = Counter(), prefixes(life)
    for count, mode, image in images(life, chosen, Random(4)):
        newest = life.bounds(count)[1]
        found = look(life, life.bounds(count), image, tmp_path / "cut.db")
        seen[mode, "new" if found < 0 else "all" if found == newest else "less"] += 1
    assert len(chosen) > 200
    assert sum(seen.values()) == 3 * len(chosen)
    assert min(seen["synced", "less"], seen["some", "less"], seen["synced", "all"]) > 10
    assert seen["synced", "new"] > 0
    kinds = Counter((op.kind, op.name) for op in life.ops)
    assert kinds["sync", "state.db"] > 3  # checkpoints, too
    assert len(life.commits[-1].intents) > 5


@needs_shim
@pytest.mark.parametrize("mode", ["synced", "some"])
def test_F4_facts_that_a_power_cut_took_are_asked_for_again(recorder, path, tmp_path, mode):
    session = Session(recorder)
    stage = stage_on(path, session.store)
    stage.fill(A)
    stage.fill(B)
    stage.fault("match", "partial", symbol=A, share="0.37")
    stage.to(A, "100.1")  # an exit is filled in part: facts, which nothing has synced yet
    (lot,) = stage.lots(A)
    assert 0 < lot.sold < lot.bought
    lay(cut(session, mode, Random(2)), tmp_path / "cut.db")
    assert executed(tmp_path / "cut.db") < stage.ledger._seen
    query = f"SELECT sold FROM lots WHERE entry_id = '{lot.entry_id}'"
    assert in_file(tmp_path / "cut.db", query) == [("0",)]
    restart_on(stage, tmp_path / "cut.db", tmp_path / "old.db")
    stage.run(15)
    for symbol in (A, B):
        held = sum(lot.bought - lot.sold for lot in stage.lots(symbol))
        assert held == stage.held(symbol)
    stage.end()
    assert executed(tmp_path / "cut.db") == stage.ledger._seen


@needs_shim
@pytest.mark.usefixtures("quick")
def test_F3_a_log_torn_at_any_byte_is_a_ledger_of_before(life, logged, tmp_path):
    image, end, newest = logged
    chance, whole = Random(3), image["state.db-wal"]
    sizes = {end - n * FRAME + byte for n in range(12) for byte in (-1, 0, 1, 24, 25, 512)}
    sizes |= {chance.randrange(end) for _ in range(60)} | {0, 1, 31, 32, 33}
    found = {}
    for size in sorted(size for size in sizes if size <= end):
        torn = image | {"state.db-wal": whole[:size]}
        found[size] = look(life, (-1, newest), torn, tmp_path / "cut.db")
    assert [*found.values()] == sorted(found.values())  # the longer, the newer
    assert found[end] == newest
    assert len(set(found.values())) > 10


@needs_shim
@pytest.mark.usefixtures("quick")
def test_F3_a_file_cut_short_is_refused_or_whole(ledger, path):
    data, chance, seen = ledger["state.db"], Random(3), Counter()
    lay(ledger, path)
    whole = opened(path)
    sizes = {*range(4096, len(data), 4096)} | {chance.randrange(1, len(data)) for _ in range(40)}
    for size in sizes:
        lay({"state.db": data[:size]}, path)
        seen[judged(path, whole)] += 1
    assert set(seen) <= {"same", "refused", "aside"}, seen
    assert seen["same"] < 5  # of the last page, what is not in use


@needs_shim
@pytest.mark.parametrize("size", [0, 1, 4096, 32_768, 40_000])
def test_F3_a_torn_index_of_the_log_is_made_anew(life, logged, tmp_path, size):
    image, _, newest = logged
    index = {"state.db-shm": Random(size).randbytes(size)}
    assert look(life, (newest, newest), image | index, tmp_path / "cut.db") == newest


# F5: bits that flip, files that are something else.


def _flipped(data, chance):
    """One bit of the bytes that mean something: half of a file is zeros."""
    where = chance.choice([at for at, byte in enumerate(data) if byte])
    return data[:where] + bytes([data[where] ^ 1 << chance.randrange(8)]) + data[where + 1 :]


@needs_shim
@pytest.mark.usefixtures("quick")
def test_F5_a_flipped_bit_is_refused_or_does_no_harm(ledger, path):
    chance = Random(5)
    lay(ledger, path)
    whole, seen = opened(path), Counter()
    assert min(map(len, whole[0][:3])) > 0  # orders, lots, executions
    for _ in range(500):
        lay({"state.db": _flipped(ledger["state.db"], chance)}, path)
        seen[judged(path, whole)] += 1
    assert set(seen) <= {"same", "refused", "aside"}, seen
    assert seen["refused"] + seen["aside"] > 3


@needs_shim
@pytest.mark.usefixtures("quick")
def test_F5_a_flipped_bit_in_the_log_leaves_a_ledger_that_was_committed(life, logged, tmp_path):
    """What comes after it is lost, as by a power cut, and is asked for."""
    image, _, newest = logged
    chance, seen = Random(6), set()
    for _ in range(150):
        wrong = image | {"state.db-wal": _flipped(image["state.db-wal"], chance)}
        seen.add(look(life, (-1, newest), wrong, tmp_path / "cut.db"))
    assert len(seen) > 10


OTHER_FILES = {
    "not SQLite": lambda path: path.write_bytes(b"these are not the lots you are looking for" * 99),
    "zeros": lambda path: path.write_bytes(bytes(8192)),
    "its header only": lambda path: path.write_bytes(b"SQLite format 3\0"),
    "a folder": lambda path: path.mkdir(),
    "another program's": lambda path: _made(path, "CREATE TABLE songs (name TEXT)"),
    "another program's with orders": lambda path: _made(path, "CREATE TABLE orders (name TEXT)"),
    "of this schema by number only": lambda path: _made(
        path, "PRAGMA journal_mode = WAL", f"PRAGMA user_version = {SCHEMA_VERSION}"
    ),
    "of a newer schema": lambda path: _made(path, f"PRAGMA user_version = {SCHEMA_VERSION + 1}"),
}


def _made(path, *statements):
    with closing(sqlite3.connect(path)) as db:
        for statement in statements:
            db.execute(statement)
        db.commit()


@pytest.mark.parametrize("make", OTHER_FILES.values(), ids=OTHER_FILES.keys())
def test_F5_a_file_that_is_no_ledger_is_refused_or_put_aside_with_one_line(path, make):
    make(path)
    assert refused(path) is True


@pytest.mark.parametrize("empty", [False, True])
def test_F5_without_its_file_the_bot_rebuilds_the_lots_and_asks_a_person(path, tmp_path, empty):
    stage = stage_on(path)
    stage.fill(A)
    stage.rest(B)
    if empty:
        (tmp_path / "lost.db").touch()
    restart_on(stage, tmp_path / "lost.db", tmp_path / "old.db")
    stage.run(30)
    assert stage.mode().mode == msg.REDUCE_ONLY
    assert stage.mode().reason == "orders of ours at the exchange, but no ledger of them"
    assert [lot.bought for lot in stage.lots(A)] == [stage.held(A)]
    assert not stage.entries(B)  # cancelled: it is REDUCE_ONLY
    stage.to(A, "100.6", 5)
    assert stage.held(A) == 0
    stage.operate(msg.RUN)
    stage.end()


def test_F5_with_a_damaged_file_the_bot_rebuilds_the_lots_and_asks_a_person(path, tmp_path):
    stage = stage_on(path)
    stage.fill(A)
    stage.replay.keeper._store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    damaged = path.read_bytes().replace(b"Trade", b"Trbde")
    assert damaged != path.read_bytes()
    (tmp_path / "damaged.db").write_bytes(damaged)
    try:
        restart_on(stage, tmp_path / "damaged.db", tmp_path / "old.db")
    except WrongSetting as error:
        assert "damaged.db" in str(error)
        return
    stage.run(30)
    assert stage.mode().mode == msg.REDUCE_ONLY
    reasons = [reason for (reason,) in in_file(tmp_path / "damaged.db", "SELECT why FROM modes")]
    assert any("ledger damaged" in reason and "damaged.db" in reason for reason in reasons)
    assert [lot.bought for lot in stage.lots(A)] == [stage.held(A)]
    stage.operate(msg.RUN)
    stage.end()


@needs_shim
@pytest.mark.parametrize("kind", ["create", "write", "sync", "truncate"])
@pytest.mark.parametrize("killed", [False, True])
def test_F5_a_good_ledger_that_cannot_be_opened_now_is_neither_lost_nor_put_aside(
    ledger, logged, path, recorder, kind, killed
):
    """A full disk is no damage: it ends in one line, and the next start finds all."""
    image, code = logged[0] if killed else ledger, EIO_SYNC if kind == "sync" else FULL
    lay(image, path)
    whole = opened(path)
    for number in range(1, 200):
        lay(image, path)
        struck = recorder.strike(kind, code, first=number)
        with contextlib.suppress(WrongSetting, Unwritable):
            assert opened(path) == whole
        recorder.heal()
        assert not [*path.parent.glob("*damaged*")]
        assert opened(path) == whole
        if not struck:
            break
    assert not struck


@needs_shim
@pytest.mark.parametrize("kind", ["create", "write", "sync"])
def test_F5_a_ledger_that_cannot_be_made_for_want_of_room_ends_in_one_line(path, recorder, kind):
    for number in range(1, 200):
        lay({}, path)
        struck = recorder.strike(kind, EIO_SYNC if kind == "sync" else FULL, first=number)
        with contextlib.suppress(WrongSetting, Unwritable):
            opened(path)
        recorder.heal()
        opened(path)  # the next start, with room
        if not struck:
            break
    assert 1 < number < 199


def test_F5_a_ledger_that_another_process_holds_is_no_damage(ledger, path):
    lay(ledger, path)
    whole = opened(path)
    with closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA journal_mode = DELETE")
        other.execute("BEGIN EXCLUSIVE")
        with contextlib.suppress(WrongSetting, Unwritable):
            opened(path)
        other.execute("ROLLBACK")
    assert opened(path) == whole


# F6: whose file it is.


@pytest.mark.parametrize(
    "other",
    [
        {"BYBIT_ENV": "testnet"},
        {"BYBIT_ENV": "demo"},
        {"BYBIT_ENV": "mainnet", "CONFIRM_LIVE": "yes"},
        {"BYBIT_ENV": "paper", "BYBIT_API_KEY": "another"},
    ],
    ids=lambda other: other["BYBIT_ENV"],
)
@pytest.mark.parametrize("paper_first", [True, False])
def test_F6_the_ledger_of_another_account_or_environment_is_refused(path, other, paper_first):
    keys = {"BYBIT_API_KEY": "key", "BYBIT_API_SECRET": "secret"} | other
    both = [SETTINGS, Settings(_env_file=None, **keys)]
    first, second = both if paper_first else both[::-1]
    with closing(Store(path, ledger_account(first), "x")):
        pass
    before = path.read_bytes()
    keeper = Keeper(second, str(path))
    names = rf"{ledger_account(first)}, not of {ledger_account(second)}"
    with pytest.raises(WrongSetting, match=re.escape(names)):
        keeper.start(0)
    assert path.read_bytes() == before
    assert "secret" not in names


# F8: the file is taken away.

TAKEN = {
    "state.db": lambda folder: (folder / "state.db").unlink(),
    "its log": lambda folder: (folder / "state.db-wal").unlink(),
    "RUN_DIR": shutil.rmtree,
    "RUN_DIR by another name": lambda folder: folder.rename(folder.with_name("old")),
    "state.db by an older copy": lambda folder: _replace(folder),  # noqa: PLW0108 - is below
}


def _replace(folder):
    shutil.copy(folder / "state.db", folder / "copy")
    (folder / "copy").rename(folder / "state.db")


@pytest.mark.parametrize("take", TAKEN.values(), ids=TAKEN.keys())
def test_F8_a_ledger_that_is_taken_away_stops_entries_with_a_reason(path, take):
    stage = stage_on(path)
    stage.fill(A)
    take(path.parent)
    stage.run(3)
    stage.to(B, "99.8", 5)
    assert stage.entry_ids(B) == []
    assert stage.mode().mode in (msg.NO_ENTRY, msg.REDUCE_ONLY)
    assert re.search("disk|state.db|ledger", stage.mode().reason)
    stage.to(A, "100.1", 2)  # the exit goes on
    assert stage.held(A) == 0


# F9: a schema that is being made.


def test_F9_a_migration_that_is_killed_at_any_statement_is_made_anew(path, tmp_path, monkeypatch):
    connect, copies = sqlite3.connect, []

    def watched(*args, **kwargs):
        db = connect(*args, **kwargs)
        db.set_trace_callback(copy)
        return db

    def copy(_):
        copies.append(
            {f.name: f.read_bytes() for f in path.parent.glob("state.db*") if "-shm" not in f.name}
        )

    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", watched)
        store = Store(path, ACCOUNT, "first")
    schema = store._db.execute("SELECT sql FROM sqlite_master").fetchall()
    store.close()
    assert len(copies) > 15  # statements
    made = []
    for image in copies:
        lay(image, tmp_path / "again.db")
        with closing(Store(tmp_path / "again.db", ACCOUNT, "second")) as store:
            made.append(store.ledger_id.partition("-")[0])
            assert store._db.execute("SELECT sql FROM sqlite_master").fetchall() == schema
            assert (store.row(), store.noted("born_ms"), store.operator()) == (0, "-1", ("RUN", ""))
            store.note("since_ms", 7)
    assert made == ["second"] * made.count("second") + ["first"] * made.count("first")
    assert made.count("second") > 15


def test_F9_a_newer_file_is_refused_whole(path):
    stage = stage_on(path)
    stage.fill(A)
    stage.replay.keeper.stop(0)
    _made(path, f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    assert judged(path) == "refused"
    with pytest.raises(WrongSetting, match=f"schema {SCHEMA_VERSION + 1}"):
        opened(path)
