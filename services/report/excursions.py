"""excursions: how far the price went for and against each lot while it was held.

The ledger has no prices. Whoever hears the market looks at the last closed bars now and then and
keeps the extremes in `excursions.db`, beside the ledger and never in it; without them a report only
knows less. One process writes the file, anyone reads it.
"""

import sqlite3
from array import array
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path

from services.report.trades import Extremes
from shared import messages as msg

FILE = "excursions.db"
COLUMNS = 5  # open, high, low, close, volume
BUSY_S = 0.2  # for who reads the file: the writer has a loop to go on with
FIELDS = ", ".join(("entry_id", *Extremes._fields))
SCHEMA = f"CREATE TABLE IF NOT EXISTS excursions ({FIELDS}, PRIMARY KEY (entry_id))"

Broken = sqlite3.Error


def extremes(
    bars: bytes, start_ms: int, interval_ms: int, opened_ms: int, closed_ms: int
) -> tuple[float, float] | None:
    """(highest, lowest) of the bars that overlap the time a lot was held; None if none does.

    `bars` is float64 (rows, 5), oldest first, the oldest beginning at `start_ms`: as in `History`.
    `closed_ms` is 0 while the lot is open. Raises ValueError on bytes that are no bars.
    """
    values = array("d")
    values.frombytes(bars)
    rows, odd = divmod(len(values), COLUMNS)
    if odd:
        raise ValueError(f"{len(values)} numbers are not rows of {COLUMNS}")
    first = max(0, (opened_ms - start_ms) // interval_ms)
    last = min(rows, (closed_ms - start_ms) // interval_ms + 1) if closed_ms else rows
    if first >= last:
        return None
    held = values[first * COLUMNS : last * COLUMNS]
    return max(held[1::COLUMNS]), min(held[2::COLUMNS])


def looked(
    before: Extremes | None, history: msg.History, lot: msg.Lot, interval_ms: int
) -> Extremes | None:
    """What is known of a lot after one more look at the bars of its symbol; `before`, if these
    reach no further."""
    need_ms = _need_ms(before, lot, interval_ms)
    rows = len(history.bars) // (COLUMNS * array("d").itemsize)
    until_ms = history.start_ms + rows * interval_ms
    if until_ms <= need_ms:
        return before
    if before is None or before.opened_ms != lot.opened_ms:
        before = Extremes(lot.opened_ms, None, None, need_ms, True)
    found = extremes(history.bars, history.start_ms, interval_ms, lot.opened_ms, lot.closed_ms)
    high, low = found or (None, None)
    return Extremes(
        lot.opened_ms,
        max((x for x in (before.high, high) if x is not None), default=None),
        min((x for x in (before.low, low) if x is not None), default=None),
        until_ms,
        before.gapless and history.start_ms <= need_ms,
    )


def wanted(
    lots: Iterable[msg.Lot], known: Mapping[str, Extremes], now_ms: int, interval_ms: int
) -> list[str]:
    """The symbols whose history tells something new at `now_ms` (market time), sorted: a bar has
    closed in which a lot was held. Closed lots are asked for until the bar they ended in is seen,
    so give only those that `History` may still reach back to."""
    found = set()
    for lot in lots:
        need_ms = _need_ms(known.get(lot.entry_id), lot, interval_ms)
        over = 0 < lot.closed_ms < need_ms
        if lot.bought and not over and need_ms + interval_ms <= now_ms:
            found.add(lot.symbol)
    return sorted(found)


class Excursions:
    """`excursions.db`, for the one who writes it. Every method may raise Broken."""

    def __init__(self, path: Path, interval_ms: int) -> None:
        self._interval_ms = interval_ms
        path.touch(mode=0o600)
        self._db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.execute(SCHEMA)
        self.known = _all(self._db, 0)

    def take(self, history: msg.History, lots: Iterable[msg.Lot]) -> int:
        """Take in the bars of one symbol, for those of the lots that are of it: how many learned
        something. What is not written is not known."""
        changed = {}
        for lot in lots:
            before = self.known.get(lot.entry_id)
            over = 0 < lot.closed_ms < _need_ms(before, lot, self._interval_ms)
            if lot.symbol != history.symbol or not lot.bought or over:
                continue
            after = looked(before, history, lot, self._interval_ms)
            if after and after != before:
                changed[lot.entry_id] = after
        marks = ", ".join("?" * (1 + len(Extremes._fields)))
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany(
                f"INSERT OR REPLACE INTO excursions VALUES ({marks})",
                [(name, *seen) for name, seen in changed.items()],
            )
        self.known |= changed
        return len(changed)

    def keep(self, lots: Iterable[msg.Lot]) -> None:
        """In memory, what is known of these lots is enough."""
        names = {lot.entry_id for lot in lots}
        self.known = {name: seen for name, seen in self.known.items() if name in names}

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()


def read(path: Path, since_ms: int = 0) -> dict[str, Extremes]:
    """What is known, by entry id, for those who only look, of lots that were held after `since_ms`
    (market time): nothing where there is no file. Raises Broken."""
    if not path.exists():
        return {}
    address = f"{path.absolute().as_uri()}?mode=ro"
    with closing(sqlite3.connect(address, uri=True)) as db:
        return _all(db, since_ms)


def _all(db: sqlite3.Connection, since_ms: int) -> dict[str, Extremes]:
    if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'excursions'").fetchone():
        return {}  # the file has only just been made
    rows = db.execute(f"SELECT {FIELDS} FROM excursions WHERE until_ms > ?", (since_ms,))
    return {
        name: Extremes(opened_ms, high, low, until_ms, bool(gapless))
        for name, opened_ms, high, low, until_ms, gapless in rows
    }


def _need_ms(before: Extremes | None, lot: msg.Lot, interval_ms: int) -> int:
    """The start of the first bar that was not looked at yet."""
    if before is None or before.opened_ms != lot.opened_ms:
        return lot.opened_ms // interval_ms * interval_ms
    return before.until_ms
