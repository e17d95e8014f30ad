"""records: the ledger's file for those who only look: doctor, why and reports. Read-only."""

import sqlite3
from pathlib import Path
from typing import Any


class Records:
    """`state.db` as rows. Opened read-only: nothing here can change or lock what trades."""

    def __init__(self, path: Path) -> None:
        """Raises FileNotFoundError where there is no ledger yet."""
        if not path.exists():
            raise FileNotFoundError(path)
        self._db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        self._db.row_factory = sqlite3.Row

    def rows(self, query: str, *values: Any) -> list[dict[str, Any]]:
        """Each row as a dict. Raises sqlite3.Error on a file that is no ledger."""
        return [dict(row) for row in self._db.execute(query, values)]

    def meta(self, name: str) -> str:
        """One noted value; empty if it was never noted."""
        found = self.rows("SELECT value FROM meta WHERE name = ?", name)
        return str(found[0]["value"]) if found else ""

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()


Broken = sqlite3.Error
