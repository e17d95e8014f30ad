"""store: the ledger on disk, one SQLite file. The only file that speaks SQL.

WAL; intents are synced, facts follow with the next of them. Each table's columns are the fields of
the message it holds, so a person reads with SQL what the processes say to each other.
"""

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

from services.keeper.ledger import Change
from shared import messages as msg
from shared.settings import WrongSetting

SCHEMA_VERSION = 1
TABLES: dict[str, tuple[type[Any], str, tuple[str, ...]]] = {
    "orders": (msg.Order, "order_link_id", ("open",)),
    "executions": (msg.Execution, "exec_id", ()),
    "lots": (msg.Lot, "entry_id", ()),
}
SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE outcomes (entry_id TEXT PRIMARY KEY, symbol TEXT, side TEXT, bar_start_ms INTEGER,
  outcome TEXT) WITHOUT ROWID;
CREATE TABLE refusals (order_link_id TEXT, command INTEGER, symbol TEXT, ret_code INTEGER,
  reason TEXT, wall_ms INTEGER, PRIMARY KEY (order_link_id, command)) WITHOUT ROWID;
CREATE TABLE foreigners (symbol TEXT PRIMARY KEY, qty TEXT) WITHOUT ROWID;
CREATE TABLE equity (wall_ms INTEGER PRIMARY KEY, equity TEXT, balance TEXT);
CREATE TABLE modes (row INTEGER, mode TEXT, reason TEXT, operator TEXT, why TEXT, who TEXT,
  wall_ms INTEGER);
CREATE INDEX orders_open ON orders (open);
CREATE INDEX lots_open ON lots (closed_ms);
"""


class Unwritable(Exception):
    """The disk takes nothing: full, failing or gone."""


class Store:
    """`path` may be ":memory:". `account` names whose ledger this is; another one is refused."""

    def __init__(self, path: Path | str, account: str, new_id: str) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._migrate(account, new_id)
        found = self._value("account")
        if found != account:
            raise WrongSetting(f"{path}: is the ledger of {found}, not of {account}")
        self.ledger_id = self._value("ledger_id")

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
                values = (change.symbol, str(change.foreign))
                self._db.execute("INSERT OR REPLACE INTO foreigners VALUES (?, ?)", values)
            self._db.execute("UPDATE meta SET value = ? WHERE name = 'row'", (str(row),))

    def outcome(self, touch: msg.Touch, final: bool) -> None:
        """What came of a touched band. `final` is the ledger's own word and wins."""
        verb = "REPLACE" if final else "IGNORE"
        self._do(f"INSERT OR {verb} INTO outcomes VALUES (?, ?, ?, ?, ?)", touch)

    def refusal(self, request: msg.OrderRequest, wall_ms: int) -> None:
        """What the exchange, or the router for it, refused to do."""
        head = (request.order_link_id, request.command, request.symbol)
        values = (*head, request.ret_code, request.reason, wall_ms)
        self._do("INSERT OR REPLACE INTO refusals VALUES (?, ?, ?, ?, ?, ?)", values)

    def equity(self, wallet: msg.Wallet, wall_ms: int) -> None:
        """One snapshot of the account."""
        values = (wall_ms, str(wallet.total_equity), str(wallet.total_wallet_balance))
        self._do("INSERT OR REPLACE INTO equity VALUES (?, ?, ?)", values)

    def mode(self, mode: msg.Mode, operator: tuple[str, str], who: str, wall_ms: int) -> None:
        """A change of mode; and what was asked for, why and by whom."""
        values = (mode.version[1], mode.mode, mode.reason, *operator, who, wall_ms)
        self._do("INSERT INTO modes VALUES (?, ?, ?, ?, ?, ?, ?)", values)

    def operator(self) -> tuple[str, str]:
        """The mode that was asked for last, and why: RUN if nobody ever asked for anything."""
        query = "SELECT operator, why FROM modes ORDER BY rowid DESC LIMIT 1"
        return next(iter(self._db.execute(query)), (msg.RUN, ""))

    def status(self, order_link_id: str) -> str:
        """How an order stands, or ended, in the ledger; empty if it was never in it."""
        query = "SELECT status, reject_reason FROM orders WHERE order_link_id = ?"
        found = self._db.execute(query, (order_link_id,)).fetchone()
        return f"{found[0]} {found[1]}".strip() if found else ""

    def note(self, name: str, value: object) -> None:
        """Keep one value, as text, durably: since_ms, born_ms, losses."""
        self._do("UPDATE meta SET value = ? WHERE name = ?", (str(value), name))

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
        return self._all("orders", "WHERE open = 1")

    def stops(self) -> list[msg.Order]:
        """Every stop loss of a lot that is not closed, ended ones too."""
        of = f"kind = '{msg.STOP}' AND rtrim(order_link_id, 's0123456789') NOT IN"
        closed = "(SELECT rtrim(entry_id, 's0123456789') FROM lots WHERE closed_ms > 0)"
        return self._all("orders", f"WHERE {of} {closed}")

    def lots(self) -> list[msg.Lot]:
        """Lots that are open."""
        return self._all("lots", "WHERE closed_ms = 0")

    def executions(self) -> list[msg.Execution]:
        """Every execution ever applied."""
        return self._all("executions", "")

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
        if version == SCHEMA_VERSION:
            return
        with self._transaction(durable=True):
            for name, (cls, key, extra) in TABLES.items():
                columns = ", ".join((*cls._fields, *extra))
                self._db.execute(f"CREATE TABLE {name} ({columns}, PRIMARY KEY ({key}))")
            for statement in SCHEMA.split(";"):
                self._db.execute(statement)
            meta = [("account", account), ("ledger_id", new_id), ("row", "0"), ("born_ms", "-1")]
            meta += [("since_ms", "0"), ("losses", ""), ("starts", "")]
            self._db.executemany("INSERT INTO meta VALUES (?, ?)", meta)
            self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    @contextmanager
    def _transaction(self, durable: bool) -> Iterator[None]:
        """All of it, or nothing. Raises Unwritable."""
        try:
            self._db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            with self._db:  # COMMIT, or ROLLBACK when something raises
                self._db.execute("BEGIN IMMEDIATE")
                yield
        except sqlite3.Error as error:
            raise Unwritable(f"{error}") from error

    def _do(self, statement: str, values: Iterable[Any]) -> None:
        """One durable write of its own. Raises Unwritable."""
        with self._transaction(durable=True):
            self._db.execute(statement, tuple(values))

    def _put(self, table: str, values: Iterable[Any]) -> None:
        row = [value if isinstance(value, int) else str(value) for value in values]
        marks = ", ".join("?" * len(row))
        self._db.execute(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", row)

    def _all(self, table: str, where: str) -> list[Any]:
        cls = TABLES[table][0]
        return [msg.build(cls, row) for row in self._db.execute(f"SELECT * FROM {table} {where}")]

    def _value(self, name: str) -> str:
        row = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return str(row[0])
