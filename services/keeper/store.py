"""store: the ledger on disk, one SQLite file. The only file that speaks SQL.

WAL; intents are synced, facts follow with the next of them. Each table's columns are the fields of
the message it holds, so a person reads with SQL what the processes say to each other. Every row
ends with its own checksum: SQLite has none, and a wrong digit must not trade.
"""

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any
from zlib import crc32

from services.keeper.ledger import Change
from shared import messages as msg
from shared.settings import WrongSetting

SCHEMA_VERSION = 1
TABLES: dict[str, tuple[tuple[str, ...], int]] = {
    "meta": (("name", "value"), 1),
    "orders": ((*msg.Order._fields, "open"), 1),
    "executions": (msg.Execution._fields, 1),
    "lots": (msg.Lot._fields, 1),
    "outcomes": (("entry_id", *msg.Touch._fields[1:]), 1),
    "refusals": (("order_link_id", "command", "symbol", "ret_code", "reason", "wall_ms"), 2),
    "foreigners": (("symbol", "qty"), 1),
    "equity": (("wall_ms", "equity", "balance"), 1),
    "modes": (("row", "mode", "reason", "operator", "why", "who", "wall_ms"), 0),
}
"""Columns, and how many of them, from the first, are the key. Last comes `crc`."""
FOR_PEOPLE = {"outcomes", "refusals", "equity"}  # no ledger is made of them: rows go unverified
KEPT_DAYS = 7  # of market time: outcomes, and entries that came to nothing
FORGOTTEN = 1_000  # outcomes at once, in 7 to 30 ms: 500 symbols make 470 a minute at most
OLD = f"""
IN (SELECT entry_id FROM (SELECT * FROM outcomes ORDER BY rowid LIMIT {FORGOTTEN})
    WHERE bar_start_ms < (SELECT bar_start_ms FROM outcomes ORDER BY rowid DESC LIMIT 1)
        - {KEPT_DAYS * 86_400_000})
"""  # rows lie in the order of their writing: the oldest are found without an index
FORGET = (
    f"DELETE FROM orders WHERE order_link_id {OLD} AND open = 0 AND CAST(cum_exec_qty AS REAL) = 0",
    f"DELETE FROM outcomes WHERE entry_id {OLD}",
)
SCHEMA = [
    *(
        f"CREATE TABLE {name} ({', '.join(columns)}, crc"
        + (f", PRIMARY KEY ({', '.join(columns[:keys])}))" if keys else ")")
        for name, (columns, keys) in TABLES.items()
    ),
    "CREATE INDEX orders_open ON orders (open)",
    "CREATE INDEX lots_closed_ms ON lots (closed_ms)",
]
BUSY_S = 0.02  # for a person who reads or writes the file: the loop waits meanwhile
FIRST = {"row": "0", "born_ms": "-1", "since_ms": "0", "losses": "", "starts": ""}


class Unwritable(Exception):
    """The disk takes nothing: full, failing or gone."""


class Damaged(Exception):
    """The file is there, and not what was written."""


NO_CODE = 0  # Python's own: a text that is no text
DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, NO_CODE}
CLOSED = {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM}
NOT_OPEN = dict.fromkeys(DAMAGED, Damaged) | dict.fromkeys(CLOSED, WrongSetting)
"""What SQLite's primary result codes mean while a file is being opened; others: Unwritable."""


class Store:
    """`path` may be ":memory:". `account` names whose ledger this is; another one is refused.

    `ledger_id` is that of this ledger in this life: what was said of it before, and perhaps never
    written, does not count.

    Raises Damaged where the file, or a row that a ledger is made of, is not as it was written;
    WrongSetting where it is not ours, or may not be opened; Unwritable where it cannot be opened
    now.
    """

    def __init__(self, path: Path | str, account: str, new_id: str) -> None:
        self._path = Path(path)
        self._files = (self._path, Path(f"{path}-wal"))
        self._inodes: list[int] | None = None  # while it is being opened
        self._holed = False  # a sync has failed in this life
        self._fresh = False  # the log has begun anew in this life: one may have failed before
        try:
            self._db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)
            self._migrate(account, new_id)
            self._check()
            found = self._value("account")
            self.ledger_id = f"{self._value('ledger_id')}-{new_id}"
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise NOT_OPEN.get(_code(error), Unwritable)(f"{path}: {error}") from error
        if found != account:
            raise WrongSetting(f"{path}: is the ledger of {found}, not of {account}")
        self._inodes = self._where()

    def look(self) -> None:
        """Whether the file is still where it was. Raises Unwritable."""
        if self._inodes not in (None, self._where()):
            raise Unwritable(f"{self._path} is gone")

    def write(self, change: Change, row: int, durable: bool = False) -> None:
        """All rows of one change and the row number, or none of them.

        On return a killed process loses nothing. `durable`: nor does a power cut. An intent must be
        durable before its order leaves; a fact that was lost is asked for again.
        """
        with self._transaction(durable):
            for order, is_open in change.orders:
                self._put("orders", (*order, is_open))
            for lot in change.lots:
                self._put("lots", lot)
            if change.execution:
                self._put("executions", change.execution)
            if change.foreign is not None:
                self._put("foreigners", (change.symbol, change.foreign))
            for touch in change.touches:
                self._put("outcomes", touch)
            self._put("meta", ("row", str(row)))

    def outcome(self, touch: msg.Touch, final: bool) -> None:
        """What came of a touched band. `final` is the ledger's own word and wins."""
        self._do("outcomes", touch, "REPLACE" if final else "IGNORE")

    def refusal(self, request: msg.OrderRequest, wall_ms: int) -> None:
        """What the exchange, or the router for it, refused to do."""
        head = (request.order_link_id, request.command, request.symbol)
        self._do("refusals", (*head, request.ret_code, request.reason, wall_ms))

    def equity(self, wallet: msg.Wallet, wall_ms: int) -> None:
        """One snapshot of the account; and what is too old goes."""
        with self._transaction(durable=False):
            self._put("equity", (wall_ms, wallet.total_equity, wallet.total_wallet_balance))
            for forget in FORGET:
                self._db.execute(forget)

    def mode(self, mode: msg.Mode, operator: tuple[str, str], who: str, wall_ms: int) -> None:
        """A change of mode; and what was asked for, why and by whom."""
        row = (mode.version[1], mode.mode, mode.reason, *operator, who, wall_ms)
        self._do("modes", row, durable=True)

    def operator(self) -> tuple[str, str]:
        """The mode that was asked for last, and why: RUN if nobody ever asked for anything."""
        query = "SELECT operator, why FROM modes ORDER BY rowid DESC LIMIT 1"
        return next(iter(self._db.execute(query)), (msg.RUN, ""))

    def order(self, order_link_id: str) -> msg.Order | None:
        """How an order stands, or ended lately; None if the ledger knows nothing of it."""
        query = "SELECT * FROM orders WHERE order_link_id = ?"
        found = self._db.execute(query, (order_link_id,)).fetchone()
        return msg.build(msg.Order, found) if found else None

    def note(self, name: str, value: object) -> None:
        """Keep one value, as text, durably: since_ms, born_ms, losses, starts."""
        self._do("meta", (name, str(value)), durable=True)

    def noted(self, name: str) -> str:
        """`since_ms`: market time up to which every execution was read. `born_ms`: the last
        execution before this ledger began, -1 while that is unknown. `losses`: of the equity.
        `starts`: wall times of the last ones that did not end orderly."""
        return self._value(name)

    def row(self) -> int:
        """Journal row number of the last change."""
        return int(self._value("row"))

    def orders(self) -> list[msg.Order]:
        """Orders that have not ended."""
        return self._all(msg.Order, "orders", "WHERE open = 1")

    def stops(self) -> list[msg.Order]:
        """Every stop loss of a lot that is not closed, ended ones too."""
        of = f"kind = '{msg.STOP}' AND rtrim(order_link_id, 's0123456789') NOT IN"
        closed = "(SELECT rtrim(entry_id, 's0123456789') FROM lots WHERE closed_ms > 0)"
        return self._all(msg.Order, "orders", f"WHERE {of} {closed}")

    def lots(self) -> list[msg.Lot]:
        """Lots that are open."""
        return self._all(msg.Lot, "lots", "WHERE closed_ms = 0")

    def executions(self) -> list[msg.Execution]:
        """Every execution ever applied."""
        return self._all(msg.Execution, "executions", "")

    def used_ms(self) -> dict[tuple[str, str], int]:
        """The bar of the last entry created, by symbol and side."""
        query = (
            "SELECT symbol, side, MAX(bar_start_ms) FROM orders WHERE kind = 'entry' GROUP BY 1, 2"
        )
        return {(symbol, side): bar_ms for symbol, side, bar_ms in self._db.execute(query)}

    def closed_ms(self) -> dict[str, int]:
        """When the last lot of each symbol was closed."""
        return dict(self._db.execute("SELECT symbol, MAX(closed_ms) FROM lots GROUP BY 1"))

    def foreign(self) -> dict[str, Decimal]:
        """Quantities that others moved, by symbol, signed."""
        rows = self._db.execute("SELECT symbol, qty FROM foreigners")
        return {symbol: Decimal(qty) for symbol, qty in rows}

    def close(self) -> None:
        """Checkpoint and close."""
        self._db.close()

    def _migrate(self, account: str, new_id: str) -> None:
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            raise WrongSetting(
                f"state.db has schema {version}, this program knows {SCHEMA_VERSION}"
            )
        if not version and self._db.execute("SELECT 1 FROM sqlite_master").fetchone():
            raise WrongSetting(f"{self._path}: is a database, but no ledger")
        self._db.execute("PRAGMA journal_mode = WAL")
        if version == SCHEMA_VERSION:
            return
        with self._transaction(durable=True):
            for statement in SCHEMA:
                self._db.execute(statement)
            for row in (FIRST | {"account": account, "ledger_id": new_id}).items():
                self._put("meta", row)
            self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _check(self) -> None:
        """Raises Damaged where the file, or a row that a ledger is made of, is not as it was
        written."""
        made = {sql for (sql,) in self._db.execute("SELECT sql FROM sqlite_master") if sql}
        wrong = self._said("quick_check(1)")
        wrong = wrong or ("" if made >= set(SCHEMA) else "not the tables that were made")
        for table in [name for name in TABLES if name not in FOR_PEOPLE]:
            wrong = wrong or self._said(f"integrity_check({table})")
            for *row, crc in self._db.execute(f"SELECT * FROM {table}"):
                wrong = wrong if _crc(row) == crc else f"{table}: {row[0]} is not as it was written"
        if wrong:
            raise Damaged(f"{self._path}: {wrong}")

    def _said(self, check: str) -> str:
        """What SQLite finds wrong; empty where it finds nothing."""
        (said, *_) = self._db.execute(f"PRAGMA {check}").fetchone()
        return "" if said == "ok" else said.splitlines()[-1]

    def _where(self) -> list[int]:
        """Which files it is; 0 where there is none."""
        return [_inode(file) for file in self._files]

    @contextmanager
    def _transaction(self, durable: bool) -> Iterator[None]:
        """All of it, or nothing. Raises Unwritable.

        A sync that failed once may leave a hole in the log that later syncs do not mend: then all
        of it goes to the file first, and a new log begins. A failure of an earlier life is not
        known, so the log is renewed at the start of each, as soon as nobody reads it.
        """
        self.look()
        try:
            if not self._fresh:
                busy, *_ = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                self._fresh, self._holed = not busy, self._holed and bool(busy)
            if self._holed:
                raise Unwritable("the log cannot be renewed while it is being read")
            synced = durable or not self._fresh
            self._db.execute(f"PRAGMA synchronous = {'FULL' if synced else 'NORMAL'}")
            with self._db:  # COMMIT, or ROLLBACK when something raises
                self._db.execute("BEGIN IMMEDIATE")
                yield
        except sqlite3.Error as error:
            if _code(error) == sqlite3.SQLITE_IOERR:
                self._holed, self._fresh = True, False
            raise Unwritable(f"{error}") from error

    def _do(
        self, table: str, values: Iterable[Any], verb: str = "REPLACE", durable: bool = False
    ) -> None:
        """One write of its own. Raises Unwritable."""
        with self._transaction(durable):
            self._put(table, values, verb)

    def _put(self, table: str, values: Iterable[Any], verb: str = "REPLACE") -> None:
        row = [int(value) if isinstance(value, int) else str(value) for value in values]
        marks = "?, " * len(row)
        self._db.execute(f"INSERT OR {verb} INTO {table} VALUES ({marks}?)", (*row, _crc(row)))

    def _all(self, cls: type[Any], table: str, where: str) -> list[Any]:
        return [msg.build(cls, row) for row in self._db.execute(f"SELECT * FROM {table} {where}")]

    def _value(self, name: str) -> str:
        row = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return str(row[0])


def set_aside(path: Path) -> Path:
    """Away with a damaged file, and what SQLite keeps beside it, for a person to look at; where."""
    number = next(n for n in range(1_000_000) if not Path(f"{path}.damaged-{n}").exists())
    for more in ("", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            Path(f"{path}{more}").rename(f"{path}.damaged-{number}{more}")
    return Path(f"{path}.damaged-{number}")


def _inode(file: Path) -> int:
    try:
        return file.stat().st_ino
    except FileNotFoundError:
        return 0


def _code(error: Exception) -> int:
    """The primary result code: the extended ones say more in their higher bits."""
    return getattr(error, "sqlite_errorcode", NO_CODE) & 0xFF


def _crc(row: Iterable[Any]) -> int:
    return crc32("\x1f".join(map(str, row)).encode())
