"""store: what the keeper writes is on disk, whole or not at all, and comes back."""

import sqlite3
import subprocess
import sys
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

from services.keeper.ledger import Change
from services.keeper.store import (
    FOR_PEOPLE,
    FORGOTTEN,
    KEPT_DAYS,
    SCHEMA,
    SCHEMA_VERSION,
    TABLES,
    Damaged,
    Store,
    Unwritable,
)
from shared import messages as msg
from shared.settings import WrongSetting

ROOT = Path(__file__).parents[1]
PINNED = 916986879  # of the tables of version 1
ACCOUNT, BAR, ID = "paper-1", 6_000_000, "dm-AAAUSDT-64-B"


def order(name: str = "dm-AAAUSDT-64-B", **other: Any) -> msg.Order:
    head = (name, "uuid", "AAAUSDT", "Buy", msg.ENTRY, Decimal("1.10"), Decimal("1E-7"))
    return msg.Order(*head, Decimal(0), "New", BAR, Decimal("0.5"), 7, "why")._replace(**other)


def lot(entry: str = "dm-AAAUSDT-64-B", closed_ms: int = 0) -> msg.Lot:
    sums = (Decimal("0.1"), Decimal("12.345"), Decimal(0), Decimal(0), Decimal("-0.01"), Decimal(0))
    return msg.Lot(entry, "AAAUSDT", "Buy", *sums, 2, Decimal("0.275"), BAR, BAR + 5, closed_ms)


def execution(number: int = 1, **other: Any) -> msg.Execution:
    head = (f"exec-{number}", "dm-AAAUSDT-64-B", "uuid", "AAAUSDT", "Buy", "Trade")
    money = (Decimal("100.5"), Decimal("0.001"), Decimal("-0.00002"))
    return msg.Execution(*head, *money, True, BAR + number)._replace(**other)


def change(number: int = 1, is_open: bool = True) -> Change:
    return Change("AAAUSDT", ((order(), is_open),), (lot(),), execution(number))


def touch(outcome: str, name: str = ID) -> msg.Touch:
    return msg.Touch(name, "AAAUSDT", "Buy", BAR, outcome)


REFUSED = msg.OrderRequest(
    *(ID, 7, "create", "AAAUSDT", "Buy", Decimal(1), Decimal(1), "PostOnly", False, 0, 0),
    *("refused", 110007, "ab not enough"),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


def told(db: sqlite3.Connection, table: str) -> list[tuple[Any, ...]]:
    """The rows of a table without their checksums."""
    return [row[:-1] for row in db.execute(f"SELECT * FROM {table}")]


def open_store(path: Path, account: str = ACCOUNT, new_id: str = "new") -> Any:
    return closing(Store(path, account, new_id))


def test_orders_lots_and_executions_come_back_as_they_were(path: Path) -> None:
    with open_store(path) as store:
        store.write(change(), row=1)
        store.write(Change("AAAUSDT", execution=execution(2, is_maker=False)), row=2)
    with open_store(path, new_id="another") as store:
        assert store.orders() == [order()]
        assert store.lots() == [lot()]
        assert sorted(store.executions()) == [execution(1), execution(2, is_maker=False)]
        assert (store.row(), store.ledger_id) == (2, "new-another")


def test_only_open_orders_and_open_lots_come_back_but_every_execution(path: Path) -> None:
    ended, gone = "dm-AAAUSDT-65-B", lot("dm-AAAUSDT-66-B", closed_ms=BAR)
    rows = ((order(), True), (order(ended, bar_start_ms=BAR + 60_000), False))
    with open_store(path) as store:
        store.write(Change("AAAUSDT", rows, (lot(), gone), execution(1)), row=1)
        store.write(Change("AAAUSDT", execution=execution(2)), row=2)
    with open_store(path) as store:
        assert [row.order_link_id for row in store.orders()] == ["dm-AAAUSDT-64-B"]
        assert [row.entry_id for row in store.lots()] == ["dm-AAAUSDT-64-B"]
        assert {row.exec_id for row in store.executions()} == {"exec-1", "exec-2"}
        assert store.used_ms() == {("AAAUSDT", "Buy"): BAR + 60_000}  # ended ones count here


def test_an_order_is_one_row_which_the_last_word_replaces(path: Path) -> None:
    with open_store(path) as store:
        store.write(change(), row=1)
        store.write(Change("AAAUSDT", ((order(status="Filled"), True),)), row=2)
        assert [row.status for row in store.orders()] == ["Filled"]
        store.write(Change("AAAUSDT", ((order(status="Filled"), False),)), row=3)
        assert store.orders() == []


def test_an_exit_does_not_use_up_a_bar_for_entries(path: Path) -> None:
    with open_store(path) as store:
        exit_row = order("dm-AAAUSDT-64-Bx0", kind=msg.EXIT, side="Sell")
        store.write(Change("AAAUSDT", ((exit_row, True),)), row=1)
        assert store.used_ms() == {}


def test_another_account_is_refused(path: Path) -> None:
    with open_store(path):
        pass
    with pytest.raises(WrongSetting, match="paper-1, not of mainnet-2"):
        open_store(path, account="mainnet-2")


def test_a_newer_schema_is_refused_and_left_alone(path: Path) -> None:
    with open_store(path) as store:
        store.write(change(), row=1)
    with closing(sqlite3.connect(path)) as other:
        other.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    with pytest.raises(WrongSetting, match=f"schema {SCHEMA_VERSION + 1}"):
        open_store(path)
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("SELECT COUNT(*) FROM executions").fetchone() == (1,)


def test_another_schema_has_another_version() -> None:
    """Tables are the fields of messages: who appends one raises the version, and migrates."""
    assert (SCHEMA_VERSION, crc32("".join(SCHEMA).encode())) == (1, PINNED)


@pytest.mark.parametrize(
    "added", ["ANALYZE", "CREATE VIEW v AS SELECT * FROM lots", "CREATE INDEX i ON lots (symbol)"]
)
def test_what_a_person_adds_to_the_file_does_no_harm(path: Path, added: str) -> None:
    with open_store(path) as store:
        store.write(change(), row=1)
    with closing(sqlite3.connect(path, isolation_level=None)) as person:
        person.execute(added)
    with open_store(path) as store:
        assert store.lots() == [lot()]


def test_a_person_who_reads_across_a_restart_stops_nothing(path: Path) -> None:
    """The log cannot be renewed meanwhile, so every write is synced; later it is."""
    with open_store(path) as store:
        store.write(change(), row=1)
        with closing(sqlite3.connect(path, isolation_level=None)) as person:
            person.execute("BEGIN")
            person.execute("SELECT * FROM lots").fetchone()
            store.close()
            with open_store(path) as again:
                again.write(change(2), row=2)
                assert again._db.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
                person.execute("ROLLBACK")
                again.write(change(3), row=3)
                assert again._db.execute("PRAGMA synchronous").fetchone() == (1,)  # NORMAL
                assert len(again.executions()) == 3


def test_a_person_who_writes_meanwhile_is_not_waited_for(path: Path) -> None:
    with open_store(path) as store, closing(sqlite3.connect(path, isolation_level=None)) as person:
        person.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unwritable, match="locked"):
            store.write(change(), row=1)
        assert store._db.execute("PRAGMA busy_timeout").fetchone()[0] < 100  # ms
        person.execute("ROLLBACK")
        store.write(change(), row=1)


FAILURES = {
    "a value that SQLite cannot hold": ("", execution(2, exec_time_ms=2**63), OverflowError),
    "an error of the database": (
        "CREATE TRIGGER full BEFORE INSERT ON executions WHEN NEW.exec_id = 'exec-2' "
        "BEGIN SELECT RAISE(ABORT, 'disk full'); END",
        execution(2),
        Unwritable,
    ),
}


@pytest.mark.parametrize("case", FAILURES.values(), ids=FAILURES.keys())
def test_a_write_that_fails_leaves_nothing_behind(path: Path, case: Any) -> None:
    """The order and the lot are written before the execution: they are taken back."""
    trigger, fill, error = case
    with open_store(path) as store:
        store.write(change(), row=1)
        with closing(sqlite3.connect(path)) as other:
            other.execute(trigger or "SELECT 1")
        rows = ((order(status="Filled"), True), (order("dm-BBBUSDT-64-B"), True))
        with pytest.raises(error):
            lots = (lot("dm-BBBUSDT-64-B"),)
            store.write(Change("AAAUSDT", rows, lots, fill, Decimal(9)), row=2)
        assert (store.orders(), store.lots(), store.row()) == ([order()], [lot()], 1)
        assert (store.executions(), store.foreign()) == ([execution(1)], {})
        store.write(Change("AAAUSDT", execution=execution(3)), row=2)  # and it goes on
        assert store.row() == 2


WRITES: dict[str, Any] = {
    "outcomes": lambda store: store.outcome(touch("order"), final=True),
    "refusals": lambda store: store.refusal(REFUSED, 1),
    "equity": lambda store: store.equity(msg.Wallet(Decimal(1), Decimal(1), Decimal(1)), 1),
    "modes": lambda store: store.mode(msg.Mode(("n", 1), msg.RUN, "", ()), (msg.RUN, ""), "", 1),
    "meta": lambda store: store.note("since_ms", 5),
    "orders": lambda store: store.write(change(), row=1),
}


@pytest.mark.parametrize("table", WRITES)
def test_a_disk_that_takes_nothing_is_unwritable_and_may_take_it_later(
    path: Path, table: str
) -> None:
    """The caller keeps what was not taken; the store itself is none the worse."""
    with open_store(path) as store, closing(sqlite3.connect(path)) as other:
        stop = "SELECT RAISE(ABORT, 'database or disk is full')"
        other.execute(f"CREATE TRIGGER full BEFORE INSERT ON {table} BEGIN {stop}; END")
        with pytest.raises(Unwritable, match="disk is full"):
            WRITES[table](store)
        other.execute("DROP TRIGGER full")
        WRITES[table](store)
        assert other.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0] > 0


def test_a_file_that_is_locked_is_unwritable(path: Path) -> None:
    with open_store(path) as store, closing(sqlite3.connect(path)) as other:
        store._db.execute("PRAGMA busy_timeout = 1")
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unwritable, match="locked"):
            store.write(change(), row=1)
        other.execute("ROLLBACK")
        store.write(change(), row=1)
        assert store.orders() == [order()]


def test_what_is_written_is_seen_by_others_when_write_returns(path: Path) -> None:
    with open_store(path) as store, closing(sqlite3.connect(path)) as other:
        store.write(change(), row=5)
        assert other.execute("SELECT exec_id FROM executions").fetchall() == [("exec-1",)]
        assert other.execute("SELECT value FROM meta WHERE name = 'row'").fetchone() == ("5",)


CHILD = """
import os, sys
from tests.test_store import Change, Store, change, lot, order

def dying():
    yield lot("dm-BBBUSDT-64-B")
    os._exit(9)  # in the middle of a transaction; no close, no checkpoint

store = Store(sys.argv[1], "paper-1", "child")
for number in range(1, 21):
    store.write(change(number), row=number)
store.write(Change("BBBUSDT", ((order("dm-BBBUSDT-64-B"), True),), dying()), row=21)
"""


def test_a_killed_process_loses_what_it_was_writing_and_nothing_that_was_written(
    path: Path,
) -> None:
    done = subprocess.run([sys.executable, "-c", CHILD, str(path)], cwd=ROOT, check=False)
    assert done.returncode == 9
    with open_store(path) as store:
        assert {row.exec_id for row in store.executions()} == {f"exec-{n}" for n in range(1, 21)}
        assert (store.row(), store.ledger_id) == (20, "child-new")
        assert (store.orders(), store.lots()) == ([order()], [lot()])
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_new_file_is_synced_to_the_disk(path: Path, monkeypatch: Any) -> None:
    """WAL with NORMAL may lose the last commits in a power cut; FULL (2) does not."""
    connect, opened = sqlite3.connect, []
    monkeypatch.setattr(
        sqlite3, "connect", lambda *a, **k: opened.append(connect(*a, **k)) or opened[-1]
    )
    with open_store(path):
        (db,) = opened
        assert db.execute("PRAGMA synchronous").fetchone() == (2,)
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        ([("budget", False)], "budget"),
        ([("budget", False), ("halted", False)], "budget"),  # each touch is told once
        ([("budget", False), ("max_slots", True)], "max_slots"),
        ([("order", True), ("order", False)], "order"),
        ([("order", True), ("filled", True), ("order", False)], "filled"),
        ([("max_slots", True), ("budget", False)], "max_slots"),
    ],
)
def test_a_touch_is_one_row_and_the_word_of_the_ledger_is_final(
    path: Path, words: list[tuple[str, bool]], kept: str
) -> None:
    with open_store(path) as store, closing(sqlite3.connect(path)) as other:
        for outcome, final in words:
            store.outcome(touch(outcome), final)
        found = told(other, "outcomes")
        assert found == [(ID, "AAAUSDT", "Buy", BAR, kept)]


DAY_MS = 86_400_000
SAID = msg.Wallet(Decimal(1), Decimal(1), Decimal(1))


def test_outcomes_older_than_a_week_go_with_the_rows_of_equity(path: Path) -> None:
    week_ms, found = KEPT_DAYS * DAY_MS, []
    with open_store(path) as store, closing(sqlite3.connect(path)) as other:
        for at_ms in (0, 1, 60_000, week_ms + 1):
            row = touch("budget", f"dm-AAAUSDT-{at_ms:x}-B")._replace(bar_start_ms=at_ms)
            store.outcome(row, final=False)
        for wall_ms in (1, 2):
            store.equity(SAID, wall_ms)
            found.append([row[3] for row in told(other, "outcomes")])
        assert other.execute("SELECT COUNT(*) FROM equity").fetchone() == (2,)
    assert found == [[1, 60_000, week_ms + 1]] * 2  # 0 is a week and 1 ms older than the newest


def test_entries_that_came_to_nothing_go_with_their_outcomes(path: Path) -> None:
    """What was filled, and what rests, is kept: reports tell by it why a lot was closed."""
    names = ["dm-AAAUSDT-1-B", "dm-AAAUSDT-2-B", "dm-AAAUSDT-3-B"]
    gone, filled, rests = (order(name, cum_exec_qty=Decimal("0.00")) for name in names)
    filled = filled._replace(cum_exec_qty=Decimal("0.5"))
    newest = order("dm-AAAUSDT-ffff-B", bar_start_ms=BAR + KEPT_DAYS * DAY_MS + 1)
    with open_store(path) as store:
        for made in (gone, filled, rests, newest):
            end = touch("cancelled", made.order_link_id)._replace(bar_start_ms=made.bar_start_ms)
            ended = ((made, made == rests),)
            store.write(Change("AAAUSDT", ended, touches=(end,)), row=1)
        store.equity(SAID, 1)
        assert [row[0] for row in told(store._db, "orders")] == [*names[1:], newest.order_link_id]
        assert len(told(store._db, "outcomes")) == 1


def test_no_more_outcomes_go_at_once_than_the_loop_can_wait_for(path: Path) -> None:
    with open_store(path) as store:
        with store._transaction(durable=False):
            for bar in range(FORGOTTEN + 5):
                row = touch("budget", f"dm-AAAUSDT-{bar:x}-B")._replace(bar_start_ms=bar)
                store._put("outcomes", row)
        newest = touch("budget", "dm-AAAUSDT-ffff-B")._replace(bar_start_ms=9 * DAY_MS)
        store.outcome(newest, final=False)
        left = []
        for wall_ms in (1, 2, 3):
            store.equity(SAID, wall_ms)
            left.append(len(told(store._db, "outcomes")))
        assert left == [6, 1, 1]


def test_an_end_that_is_told_late_makes_no_other_outcome_older(path: Path) -> None:
    """The last row may be of an old bar: then nothing goes."""
    with open_store(path) as store:
        for at_ms in (8 * DAY_MS, 0):
            row = touch("filled", f"dm-AAAUSDT-{at_ms:x}-B")._replace(bar_start_ms=at_ms)
            store.outcome(row, final=True)
        store.equity(SAID, 1)
        assert len(told(store._db, "outcomes")) == 2


@pytest.mark.parametrize("table", TABLES)
def test_a_start_verifies_the_rows_that_a_ledger_is_made_of(path: Path, table: str) -> None:
    """All others are for people, and outcomes alone are millions."""
    with open_store(path) as store:
        for write in WRITES.values():
            write(store)
        store.write(Change("AAAUSDT", foreign=Decimal(2)), row=2)
        store._db.execute(f"UPDATE {table} SET crc = crc + 1")
        assert store._db.execute("SELECT changes()").fetchone()[0] > 0
    if table in FOR_PEOPLE:
        with open_store(path) as store:
            assert store.row() == 2
    else:
        with pytest.raises(Damaged, match=f"{table}: .* is not as it was written"):
            open_store(path)


def test_every_touch_has_its_own_row(path: Path) -> None:
    with open_store(path) as store, closing(sqlite3.connect(path)) as other:
        for name in (ID, "dm-AAAUSDT-64-S", "dm-AAAUSDT-65-B"):
            store.outcome(touch("budget", name), final=False)
        assert other.execute("SELECT COUNT(*) FROM outcomes").fetchone() == (3,)


def test_a_refusal_of_the_exchange_is_one_row_for_each_command(path: Path) -> None:
    with open_store(path) as store, closing(sqlite3.connect(path)) as other:
        store.refusal(REFUSED, 41)
        store.refusal(REFUSED._replace(ret_code=110003, reason="price"), 42)  # the same command
        store.refusal(REFUSED._replace(command=8), 43)
        found = told(other, "refusals ORDER BY command")
    assert found == [
        (ID, 7, "AAAUSDT", 110003, "price", 42),
        (ID, 8, "AAAUSDT", 110007, "ab not enough", 43),
    ]


def test_the_last_wish_survives(path: Path) -> None:
    with open_store(path) as store:
        assert store.operator() == (msg.RUN, "")
        for mode in (msg.FLATTEN, msg.REDUCE_ONLY):
            said = msg.Mode(("new", 3), msg.FLATTEN, "another trigger", ())
            store.mode(said, (mode, f"why {mode}"), who="ops", wall_ms=1)
    with open_store(path) as store:
        assert store.operator() == (msg.REDUCE_ONLY, "why REDUCE_ONLY")


def test_what_is_noted_survives(path: Path) -> None:
    first = {"since_ms": "0", "born_ms": "-1", "losses": ""}
    with open_store(path) as store:
        assert {name: store.noted(name) for name in first} == first
        for name, value in (
            ("since_ms", 5),
            ("born_ms", BAR),
            ("losses", "1 2 3"),
            ("since_ms", 7),
        ):
            store.note(name, value)
    with open_store(path) as store:
        found = {name: store.noted(name) for name in first}
    assert found == {"since_ms": "7", "born_ms": str(BAR), "losses": "1 2 3"}


def test_a_note_is_synced_to_the_disk(path: Path, monkeypatch: Any) -> None:
    """A fact may be lost in a power cut, for it is asked for again; from when on must not be."""
    connect, opened = sqlite3.connect, []
    monkeypatch.setattr(
        sqlite3, "connect", lambda *a, **k: opened.append(connect(*a, **k)) or opened[-1]
    )
    with open_store(path) as store:
        (db,) = opened
        for durable, level in ((False, 1), (True, 2)):
            store.write(change(), row=1, durable=durable)
            assert db.execute("PRAGMA synchronous").fetchone() == (level,)
        store.write(change(), row=1)
        store.note("since_ms", 5)
        assert db.execute("PRAGMA synchronous").fetchone() == (2,)
        store.write(change(), row=1)
        store.mode(msg.Mode(("new", 3), msg.RUN, "", ()), (msg.RUN, ""), who="", wall_ms=1)
        assert db.execute("PRAGMA synchronous").fetchone() == (2,)


def test_when_each_symbol_last_closed_a_lot(path: Path) -> None:
    lots = (
        lot("dm-AAAUSDT-64-B", closed_ms=BAR + 5),
        lot("dm-AAAUSDT-65-B", closed_ms=BAR + 3),
        lot("dm-AAAUSDT-66-B"),  # open
        lot("dm-BBBUSDT-64-B", closed_ms=BAR + 9)._replace(symbol="BBBUSDT"),
        lot("dm-CCCUSDT-64-B")._replace(symbol="CCCUSDT"),
    )
    with open_store(path) as store:
        assert store.closed_ms() == {}
        store.write(Change("AAAUSDT", (), lots), row=1)
        found = {symbol: at_ms for symbol, at_ms in store.closed_ms().items() if at_ms}
        assert found == {"AAAUSDT": BAR + 5, "BBBUSDT": BAR + 9}


def test_stops_of_open_lots_come_back_whether_they_have_ended_or_not(path: Path) -> None:
    """`orders` are the open ones; a stop that has ended must not begin anew."""
    rows = [
        (order("dm-AAAUSDT-64-Bs", kind=msg.STOP, side="Sell"), True),
        (order("dm-AAAUSDT-65-Bs", kind=msg.STOP, side="Sell"), False),
        (order("dm-AAAUSDT-65-Bs1", kind=msg.STOP, side="Sell"), False),
        (order("dm-AAAUSDT-66-Bs", kind=msg.STOP, side="Sell"), False),
        (order("dm-AAAUSDT-66-Bs1", kind=msg.STOP, side="Sell"), False),
        (order("dm-AAAUSDT-64-B"), False),
        (order("dm-AAAUSDT-64-Bx0", kind=msg.EXIT, side="Sell"), True),
        (order("dm-AAAUSDT-64-Ss", kind=msg.STOP), False),
        (order("dm-AAAUSDT-67-B"), True),  # an entry of which no fill was heard
        (order("dm-AAAUSDT-67-Bs", kind=msg.STOP, side="Sell"), False),
    ]
    lots = [lot(), lot("dm-AAAUSDT-65-B"), lot("dm-AAAUSDT-66-B", closed_ms=5)]
    lots.append(lot("dm-AAAUSDT-64-S")._replace(side="Sell"))
    with open_store(path) as store:
        store.write(Change("AAAUSDT", tuple(rows), tuple(lots)), row=1)
    with open_store(path) as store:
        names = [f"dm-AAAUSDT-{name}s" for name in ("64-B", "64-S", "65-B", "67-B")]
        found = {row.order_link_id for row in store.stops()}
        assert found == {*names, "dm-AAAUSDT-65-Bs1"}  # the lot of 66 is closed
        assert store.used_ms() == {("AAAUSDT", "Buy"): BAR}  # a stop uses up no bar


def test_how_an_order_stands_or_ended_is_known(path: Path) -> None:
    with open_store(path) as store:
        assert store.order(ID) is None
        store.write(Change("AAAUSDT", ((order(), True),)), row=1)
        assert store.order(ID) == order()
        ended = order(status="NotAccepted", reject_reason="not at the exchange")
        store.write(Change("AAAUSDT", ((ended, False),)), row=2)
    with open_store(path) as store:
        assert store.order(ID) == ended
        assert store.order("dm-AAAUSDT-65-B") is None


def test_a_foreign_quantity_is_one_row_which_the_last_one_replaces(path: Path) -> None:
    with open_store(path) as store:
        assert store.foreign() == {}
        for row, (symbol, qty) in enumerate(
            (("AAAUSDT", "5"), ("BBBUSDT", "-2"), ("AAAUSDT", "0"))
        ):
            store.write(Change(symbol, foreign=Decimal(qty)), row)
    with open_store(path) as store:
        assert store.foreign() == {"AAAUSDT": Decimal(0), "BBBUSDT": Decimal(-2)}


def test_equity_is_kept_for_sql(path: Path) -> None:
    with open_store(path) as store, closing(sqlite3.connect(path)) as other:
        store.equity(msg.Wallet(Decimal("1000.5"), Decimal(999), Decimal(1)), wall_ms=42)
        assert told(other, "equity") == [(42, "1000.5", "999")]
