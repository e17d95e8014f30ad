"""What a power cut leaves of the keeper's file: python -m tests.power_cut --prefixes 5000.

`Recorder` lies under sqlite3's own library, as one of its file systems (a VFS, by ctypes), and
notes every write, sync, truncation and deletion that SQLite makes for the real store; it can also
make them fail. `images` are the files as they may be found after a cut at any of them: what was
synced is there, of the rest all, nothing, or some of it torn and in any order. `look` opens one
with the real store and ledger, and raises AssertionError if it is not a ledger that was committed,
or lacks an intent that was promised to last.
"""

import _sqlite3
import argparse
import ctypes
import hashlib
import os
import shutil
import sqlite3
import sys
import tempfile
import time
from bisect import bisect_left
from collections import Counter, defaultdict
from contextlib import closing
from ctypes import CFUNCTYPE, POINTER, Structure, c_char_p, c_int, c_int64, c_void_p
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import NamedTuple
from unittest.mock import patch

from services.backtest import replay
from services.keeper.actor import Keeper
from services.keeper.ledger import Caps, Ledger
from services.keeper.store import TABLES, Damaged, Store, Unwritable
from shared import messages as msg
from shared.settings import WrongSetting
from tests.stage import SYMBOLS, Theatre

FULL, EIO_WRITE, EIO_SYNC = 13, 10 | 3 << 8, 10 | 4 << 8  # as SQLite calls ENOSPC and EIO
READ_ONLY, READ_WRITE, CREATE = 1, 2, 4  # flags of an open
SECTOR = 512
MODES = ("all", "synced", "some")
BUYS, SELLS = ("99.8", "99.0", "100.2"), ("100.6", "101.2", "100.0")  # near, through, away


# The shim.


class Methods(Structure):
    """sqlite3_io_methods, version 3."""


class Vfs(Structure):
    """sqlite3_vfs, version 3."""


OPEN = CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p, c_int, c_void_p)  # it keeps the path's
DELETE = CFUNCTYPE(c_int, c_void_p, c_void_p, c_int)  # address: a copy would be gone
WRITE = CFUNCTYPE(c_int, c_void_p, c_void_p, c_int, c_int64)
TRUNCATE = CFUNCTYPE(c_int, c_void_p, c_int64)
SYNC = CFUNCTYPE(c_int, c_void_p, c_int)
Methods._fields_ = [
    *(("version", c_int), ("close", c_void_p), ("read", c_void_p), ("write", WRITE)),
    *(("truncate", TRUNCATE), ("sync", SYNC), ("rest", c_void_p * 13)),
]
Vfs._fields_ = [
    *(("version", c_int), ("file_size", c_int), ("path_size", c_int), ("next", c_void_p)),
    *(("name", c_char_p), ("data", c_void_p), ("open", OPEN), ("delete", DELETE)),
    ("rest", c_void_p * 14),
]


def library():
    """The SQLite that this Python's sqlite3 calls, or None where it hides its names."""
    found = ctypes.CDLL(getattr(_sqlite3, "__file__", None))
    try:
        found.sqlite3_vfs_find.restype = POINTER(Vfs)
        found.sqlite3_libversion.restype = c_char_p
    except AttributeError:
        return None
    return found if found.sqlite3_libversion().decode() == sqlite3.sqlite_version else None


LIBRARY = library()


class Op(NamedTuple):
    """One thing that SQLite did. `inode` numbers what was created; `at` is an offset or a size."""

    kind: str  # create, write, truncate, sync, broken (a sync that failed), delete
    name: str
    inode: int
    at: int = 0
    data: bytes = b""


class Recorder:
    """While it is entered, every file that sqlite3 opens in `folder` goes through it.

    `fails(kind, name)` may return an error code of SQLite's: then nothing is done. With `keep` off
    no write is noted: files are only quick, as no sync waits for the machine's own disk.
    """

    _kept = []  # noqa: RUF012 - what SQLite may still call

    def __init__(self, folder, keep=True):
        self._keep = keep
        self._folder = f"{Path(folder).resolve()}{os.sep}".encode()
        self.ops, self.base = [], {}
        self.fails = lambda kind, name: 0
        self.read_only = False
        self._files, self._inodes, self._tables = {}, {}, {}
        self._old = LIBRARY.sqlite3_vfs_find(None).contents
        self._vfs = Vfs.from_buffer_copy(self._old)
        self._vfs.name, self._vfs.open, self._vfs.delete = b"recorder", OPEN(self._open), DELETE(
            self._delete
        )  # fmt: skip
        Recorder._kept.append(self)

    def __enter__(self):
        LIBRARY.sqlite3_vfs_register(ctypes.byref(self._vfs), 1)
        return self

    def __exit__(self, *_):
        LIBRARY.sqlite3_vfs_unregister(ctypes.byref(self._vfs))

    def strike(self, kind, code, first=1, count=10**9, name=""):
        """From the `first` on, `count` operations of a kind fail. How often it struck: a list."""
        seen, struck = Counter(), []

        def fails(what, where):
            if what != kind or name not in where:
                return 0
            seen[what] += 1
            if not first <= seen[what] < first + count:
                return 0
            struck.append(where)
            return code

        self.fails = fails
        return struck

    def heal(self):
        self.fails = lambda kind, name: 0

    def _name(self, address):
        path = ctypes.string_at(address) if address else b""
        return path.removeprefix(self._folder).decode() if path.startswith(self._folder) else ""

    def _open(self, vfs, path, file, flags, out):
        name = self._name(path)
        if name and self.read_only and flags & READ_WRITE:
            flags = flags & ~(READ_WRITE | CREATE) | READ_ONLY
        there = Path(self._folder.decode(), name)
        new = bool(name) and not there.exists()
        if new and (code := self.fails("create", name)):
            return code
        code = self._old.open(vfs, path, file, flags, out)
        if code == 0 and name:
            if new or name not in self._inodes:
                self._inodes[name] = len(self.ops)
                data = b"" if new else there.read_bytes()
                self.ops.append(Op("create", name, len(self.ops), 0, data))
            self._files[file] = name, self._inodes[name]
            methods = ctypes.cast(file, POINTER(c_void_p))
            methods[0] = ctypes.addressof(self._table(methods[0]))
        return code

    def _table(self, address):
        if address not in self._tables:
            old = Methods.from_address(address)
            new = Methods.from_buffer_copy(old)
            new.write, new.truncate, new.sync = self._calls(old)
            self._tables[address] = new
        return self._tables[address]

    def _calls(self, old):
        def write(file, data, size, at):
            def done():
                return old.write(file, data, size, at)

            return self._do("write", file, done, at, ctypes.string_at(data, size))

        def truncate(file, size):
            return self._do("truncate", file, lambda: old.truncate(file, size), size)

        def sync(file, flags):
            return self._do("sync", file, lambda: 0)  # nothing is cut here: the disk may rest

        return WRITE(write), TRUNCATE(truncate), SYNC(sync)

    def _do(self, kind, file, done, at=0, data=b""):
        name, inode = self._files[file]
        if code := self.fails(kind, name):
            if kind == "sync":
                self.ops.append(Op("broken", name, inode))
            return code
        if self._keep:
            self.ops.append(Op(kind, name, inode, at, data))
        return done()

    def _delete(self, vfs, path, sync_folder):
        name = self._name(path)
        if name in self._inodes:
            self.ops.append(Op("delete", name, self._inodes.pop(name), sync_folder))
        return self._old.delete(vfs, path, sync_folder)


# The disk.


class Platter:
    """What has reached the disk for good, and what is on its way."""

    def __init__(self):
        self._files, self._names = {}, {}  # inode: bytes, name: inode
        self._waiting = defaultdict(list)  # inode: operations that no sync has covered
        self._lost = defaultdict(list)  # inode: what a broken sync let go of
        self._entries = []  # of the folder
        self._fresh = set()  # inodes whose first sync is the folder's, too

    def take(self, op):
        """One more operation of SQLite's."""
        if op.kind == "create" and op.data:  # it was there before
            self._files[op.inode], self._names[op.name] = bytearray(op.data), op.inode
        elif op.kind in ("create", "delete"):
            self._entries.append(op)
            self._fresh |= {op.inode} if op.kind == "create" else set()
            if op.kind == "delete" and op.at:
                self._entries = self._linked(self._names, self._entries)
        elif op.kind == "sync":
            _written(self._files.setdefault(op.inode, bytearray()), self._waiting.pop(op.inode, ()))
            if op.inode in self._fresh and not op.name.endswith(".db"):
                self._entries = self._linked(self._names, self._entries)
            self._fresh.discard(op.inode)
        elif op.kind == "broken":  # the pages are clean now, and on no disk
            self._lost[op.inode] += self._waiting.pop(op.inode, ())
        else:
            self._waiting[op.inode].append(op)

    def image(self, mode, chance):
        """{name: bytes} of a folder after a cut now."""
        names, files = dict(self._names), {}
        self._linked(names, _some(self._entries, mode, chance, tear=False))
        for name, inode in names.items():
            data = bytearray(self._files.get(inode, b""))
            rest = [*(self._lost[inode] if mode == "all" else ()), *self._waiting[inode]]
            files[name] = bytes(_written(data, _some(rest, mode, chance)))
        return files

    @staticmethod
    def _linked(names, entries):
        for op in entries:
            if op.kind == "create":
                names[op.name] = op.inode
            elif names.get(op.name) == op.inode:
                del names[op.name]
        return []


def _some(ops, mode, chance, tear=True):
    """Of what is on its way: all in order, nothing, or some in any order and cut short."""
    if mode != "some":
        return list(ops) if mode == "all" else []
    share = chance.choice((0.1, 0.5, 0.9, 1.0))
    found = [op for op in ops if chance.random() < share]
    if tear:
        chance.shuffle(found)
        found = [_torn(op, chance) if chance.random() < 0.2 else op for op in found]
    return found


def _torn(op, chance):
    """A write of which some sectors arrived: the first ones, or the last ones."""
    cut = chance.randrange(0, len(op.data) + 1, SECTOR) if op.data else 0
    if chance.random() < 0.5:
        return op._replace(data=op.data[:cut])
    return op._replace(at=op.at + cut, data=op.data[cut:]) if op.data else op


def _written(data, ops):
    for op in ops:
        if op.kind == "truncate":
            del data[op.at :]
        else:
            data.extend(bytes(max(0, op.at - len(data))))
            data[op.at : op.at + len(op.data)] = op.data
    return data


# A session of the real keeper, and what each of its commits has promised.


class Commit(NamedTuple):
    """`begun` and `done` are how many operations there were by then; `row` is the journal's."""

    begun: int
    done: int
    durable: bool
    digest: str
    intents: frozenset
    row: int


class Session:
    """Commits of one or more stores on one file, while a recorder notes what they come to."""

    def __init__(self, recorder, pages=1000):
        self._recorder, self._pages = recorder, pages  # of the journal, before a checkpoint
        self.commits, self.account = [], ""

    @property
    def ops(self):
        return self._recorder.ops

    def store(self, path, account, new_id):
        """The real store, but for what it notes."""
        self.account = account
        begun = len(self.ops)
        found = Noted(path, account, new_id)
        found.session = self
        found._db.execute(f"PRAGMA wal_autocheckpoint = {self._pages}")
        if not self.commits:
            self.note(found, begun, True)
        return found

    def note(self, store, begun, durable, row=None, intents=()):
        """A commit is over, and what it has promised stands."""
        last = self.commits[-1] if self.commits else None
        known = frozenset(intents) | (last.intents if last else frozenset())
        row = row if row is not None else last.row if last else store.row()
        durable = durable and len(self.ops) > begun  # what changes nothing syncs nothing
        commit = Commit(begun, len(self.ops), durable, digest(store._db), known, row)
        self.commits.append(commit)

    def bounds(self, count):
        """After `count` operations: the oldest commit that may be found, for it was promised to
        last, and the newest, for it was begun; -1 is none."""
        oldest = max(
            (n for n, c in enumerate(self.commits) if c.durable and c.done <= count), default=-1
        )
        newest = bisect_left([c.begun for c in self.commits], count) - 1
        return oldest, newest


class Noted(Store):
    """A store whose commits are noted as they return."""

    session = None

    def write(self, change, row, durable=False):
        begun = len(self.session.ops)
        super().write(change, row, durable)
        entries = [o.order_link_id for o, _ in change.orders if o.kind == msg.ENTRY and durable]
        self.session.note(self, begun, durable, row, entries)

    def equity(self, wallet, wall_ms):
        begun = len(self.session.ops)
        super().equity(wallet, wall_ms)
        self.session.note(self, begun, False)

    def _do(self, table, values, verb="REPLACE", durable=False):
        begun = len(self.session.ops)
        super()._do(table, values, verb, durable)
        self.session.note(self, begun, durable)


def digest(db):
    """All that is in a ledger, in one word."""
    rows = [sorted(db.execute(f"SELECT * FROM {table}").fetchall(), key=repr) for table in TABLES]
    return hashlib.sha256(repr(rows).encode()).hexdigest()


def rows(store, cls, table):
    """Every row of a table, as the message it holds."""
    found = store._db.execute(f"SELECT {', '.join(cls._fields)} FROM {table}")
    return [msg.build(cls, row) for row in found]


def stage_on(path, store=Store, symbols=SYMBOLS, **settings):
    """A theatre whose keeper has its ledger in a file."""

    def keeper(given, _, wall_ms):
        return Keeper(given, str(path), wall_ms, store)

    with patch.object(replay, "Keeper", keeper):
        return Theatre(symbols, **settings)


def restart_on(stage, path, scratch, store=Store):
    """The keeper is killed, and starts again with what is in this file."""

    def keeper(given, _, wall_ms):
        return Keeper(given, str(path), wall_ms, store)

    with patch("tests.stage.Keeper", keeper):
        stage.restart("keeper", scratch)


def perform(folder, turns=6, pages=100):
    """A keeper's whole life on a new file: entries, fills in parts, closes, an end, a start."""
    with Recorder(folder) as recorder:
        session = Session(recorder, pages)
        stage = stage_on(Path(folder, "state.db"), session.store)
        for turn in range(turns):
            near, through, away = BUYS if turn % 2 else SELLS
            for symbol in SYMBOLS:
                stage.fault("match", "partial", symbol=symbol, share="0.37")
                stage.to(symbol, near)
            stage.run(2)
            for symbol in SYMBOLS[: 1 + turn % 3]:  # the others' entries are cancelled
                stage.to(symbol, through, 2)
            stage.heal()
            stage.run(61)
            for symbol in SYMBOLS:
                stage.to(symbol, away)
            stage.breathe(6)
        keeper = stage.replay.keeper
        row = keeper._ledger.row
        keeper.stop(0)
        store = session.store(Path(folder, "state.db"), session.account, "never")
        for number in range(5):
            store.note("since_ms", number)
        store.write(keeper._ledger.adopt("dm-AAAUSDT-1-B", Decimal(1)), row + 1, durable=True)
    return session, store


# After the cut.


def cut(session, mode="synced", chance=None):
    """The image after a cut now."""
    ((_, _, image),) = images(session, {len(session.ops)}, chance or Random(0), (mode,))
    return image


def images(session, chosen, chance, modes=MODES):
    """(operations, mode, image) for each of these prefixes."""
    platter = Platter()
    for count in range(len(session.ops) + 1):
        if count:
            platter.take(session.ops[count - 1])
        if count in chosen:
            for mode in modes:
                yield count, mode, platter.image(mode, chance)


def look(session, bounds, image, path):
    """Open an image with the real store and ledger. Which commit it is; -1 for a new ledger.

    `bounds`: the oldest commit that it may be, for later ones were not promised; and the newest.
    """
    (oldest, newest), commits = bounds, session.commits
    lay(image, path)
    with closing(Store(path, session.account, "new")) as store:
        assert store._db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        if store.ledger_id.startswith("new-"):
            assert oldest < 0, "a ledger that was there is gone"
            return -1
        there, oldest = (
            {order.order_link_id for order in rows(store, msg.Order, "orders")},
            max(oldest, 0),
        )
        assert commits[oldest].intents <= there, "a durable intent is missing"
        found, may_be = digest(store._db), [c.digest for c in commits[oldest : newest + 1]]
        assert found in may_be, "not a state that was committed, or an older one than was promised"
        folded(store)
        restored(store)
        commit = newest - may_be[::-1].index(found)
        assert store.row() == commits[commit].row
        return commit


def lay(image, path):
    """Put the files of an image where there may be those of another one."""
    for old in path.parent.glob(f"{path.name}*"):
        old.unlink()
    for name, data in image.items():
        path.with_name(name.replace("state.db", path.name)).write_bytes(data)


def restored(store):
    """The ledger of a store, as the keeper makes it: it holds what its rows say."""
    ledger = Ledger(store.ledger_id, Caps(100, 50, 10), 60_000)
    rows = (store.row(), store.orders(), store.lots(), store.executions())
    ledger.restore(*rows, store.used_ms(), store.foreign(), store.closed_ms(), store.stops())
    assert ledger.row == store.row()
    assert set(ledger.orders) == {order.order_link_id for order in store.orders()}
    held = defaultdict(Decimal, store.foreign())
    for lot in store.lots():
        held[lot.symbol] += (lot.bought - lot.sold) * (1 if lot.side == "Buy" else -1)
    assert ledger.held() == {symbol: qty for symbol, qty in held.items() if qty}
    return ledger


def folded(store):
    """Every lot is the sum of its executions, and every execution is in a lot."""
    sums = defaultdict(lambda: [Decimal(0)] * 5)
    for fill in store.executions():
        entry, number = msg.parse_id(fill.order_link_id)
        value, half = fill.exec_price * fill.exec_qty, 0 if number is None else 2
        for index, more in ((half, fill.exec_qty), (half + 1, value), (4, fill.exec_fee)):
            sums[entry][index] += more
    lots = {
        lot.entry_id: [lot.bought, lot.cost, lot.sold, lot.proceeds, lot.fees]
        for lot in rows(store, msg.Lot, "lots")
    }
    assert lots == sums, "lots are not the sum of their executions"


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.power_cut", description=__doc__)
    parser.add_argument("--prefixes", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    if LIBRARY is None:
        sys.exit("power_cut: this Python's sqlite3 hides the names of its library")
    folder, began, counts = Path(tempfile.mkdtemp(prefix="dm-cut-")), time.monotonic(), Counter()
    chance = Random(given.seed)
    try:
        while counts["prefixes"] < given.prefixes:
            life = folder / str(counts["sessions"])
            life.mkdir()
            session, store = perform(life, turns=6 + counts["sessions"])
            every = range(min(len(session.ops) + 1, given.prefixes - counts["prefixes"]))
            counts += Counter(sessions=1, prefixes=len(every), commits=len(session.commits))
            counts += Counter(f"recorded {op.kind}" for op in session.ops)
            for count, mode, image in images(session, set(every), chance):
                try:
                    found = look(session, session.bounds(count), image, folder / "cut.db")
                except (AssertionError, sqlite3.Error, Damaged, Unwritable, WrongSetting) as error:
                    counts["failed"] += 1
                    print(f"seed={given.seed} operations={count} {mode}: {error!r}")
                    continue
                newest = session.bounds(count)[1]
                counts["images"] += 1
                counts["new ledgers"] += found < 0
                counts["images that lack what was not promised"] += found < newest
            store.close()
    finally:
        shutil.rmtree(folder)
    for name in sorted(counts):
        print(f"{counts[name]:>8} {name}")
    print(f"{time.monotonic() - began:8.1f} seconds")
    sys.exit(bool(counts["failed"]))


if __name__ == "__main__":
    main()
