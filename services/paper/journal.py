"""journal: the paper account on disk, so that it survives a restart as a real one would.

One JSON object a line: a snapshot first, then every order and execution as the private stream says
them. Balance and positions are the snapshot's plus the executions after it. A line is handed to the
operating system before its push leaves: a killed process loses nothing, a power cut may.
"""

from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson

from services.paper.matching import Matching
from services.paper.order import Row

COMPACT_BYTES = 20_000_000
KEPT_TOPICS = ("order", "execution", "leverage", "deposit", "closed_pnl")


class WrongMarket(ValueError):
    """The file holds the account of another market."""


class Journal:
    """`market` names what the account was traded on; another one is refused."""

    def __init__(self, path: Path, market: Row) -> None:
        self._path, self._market = path, market
        self._lines = _read(path)
        known = self._lines[0]["market"] if self._lines else market
        if known != market and not any("order" in line for line in self._lines):
            self._lines = []  # nothing was ever ordered: any market will do
        elif known != market:
            raise WrongMarket(
                f"PAPER_FEED, PAPER_SEED, ...: {path} is the account of another market"
                f" ({known}): make paper-reset, or another RUN_DIR"
            )

    @property
    def origin_ms(self) -> int:
        """First minute of the market at its very first start; 0 if this is the first."""
        return int(self._lines[0]["origin_ms"]) if self._lines else 0

    @property
    def market_ms(self) -> int:
        """Market time when the file was last written; 0 if never."""
        return max(
            (int(line["market_ms"]) for line in self._lines if "market_ms" in line), default=0
        )

    def restore(self, matching: Matching) -> None:
        """Bring back orders, executions, positions and balance."""
        for line in self._lines:
            if "balance" in line:
                matching.restore_wallet(line)
            elif "leverage" in line:
                matching.restore_leverage(line["leverage"])
            elif "order" in line:
                matching.restore_order(line["order"], line.get("number", 0))
            elif "closed_pnl" in line:
                matching.closed_pnl.append(line["closed_pnl"])
            elif "deposit" in line:
                matching.wallet.deposit(Decimal(line["deposit"]["amount"]))
            elif "execution" in line:
                matching.restore_execution(line["execution"], line.get("old", False))
        matching.restored()
        self._lines = []

    def open(self, matching: Matching, origin_ms: int, market_ms: int) -> None:
        """Start writing: a snapshot in a new file, which then takes the old one's place."""
        self._origin_ms = origin_ms
        draft = self._path.with_suffix(".new")
        with draft.open("wb") as file:
            head = {"market": self._market, "origin_ms": origin_ms, "market_ms": market_ms}
            for line in (head, *matching.snapshot()):
                file.write(orjson.dumps(line) + b"\n")
        draft.replace(self._path)
        self._file = self._path.open("ab", buffering=0)
        self._bytes = self._path.stat().st_size

    def write(self, pushes: list[tuple[str, Row]], matching: Matching, market_ms: int) -> None:
        """What must outlive the process, before anybody hears of it."""
        lines = [orjson.dumps({topic: row}) for topic, row in pushes if topic in KEPT_TOPICS]
        if not lines:
            return
        lines.append(orjson.dumps({"market_ms": market_ms}))
        self._bytes += self._file.write(b"\n".join(lines) + b"\n")
        if self._bytes > COMPACT_BYTES:
            self._file.close()
            self.open(matching, self._origin_ms, market_ms)
            self._bytes = 0

    def mark(self, market_ms: int) -> None:
        """Market time goes on, even when nothing happens."""
        self._bytes += self._file.write(orjson.dumps({"market_ms": market_ms}) + b"\n")


def _read(path: Path) -> list[Any]:
    """Whole lines; a last one that was cut off is left out."""
    if not path.exists():
        return []
    *lines, _ = path.read_bytes().split(b"\n")
    return [orjson.loads(line) for line in lines]
