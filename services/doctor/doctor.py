"""doctor: looks at everything that could go wrong before anything trades, and says how to mend it.

Only reads: no order, no setting of the account is touched. Exit code 0 if trading may start, 1 if
not.
"""

import argparse
import fcntl
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from decimal import Decimal
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from shared import bybit
from shared import messages as msg
from shared.bus import MAX_PATH
from shared.instrument import entry_qty
from shared.records import Broken, Records
from shared.settings import Settings, changed, ledger_account, load
from shared.terminal import ending

OK, WARN, FAIL = "ok", "warn", "FAIL"
FREE_MB = 200
OFFSET_WARN_MS, OFFSET_FAIL_MS = 500, 2_000
LOCK = Path(__file__).parents[2] / "requirements.lock"
KEEPER = "keeper-0"  # who holds this lock is a bot; the paper exchange may run alone
SHOWN = 5  # symbols named where there are more


class Finding(NamedTuple):
    """One thing that was looked at. `mend` is empty where nothing is to be done."""

    what: str
    state: str
    says: str
    mend: str = ""


class Doctor:
    """All checks, in the order in which a person would mend what they find."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._call = bybit.caller(settings)
        self._rest = bybit.Rest(settings, self._call, bybit.Clock())
        self._where = bybit.addresses(settings).rest

    def findings(self) -> Iterator[Finding]:
        """Everything about this machine; then, if the exchange answers, everything about it."""
        for check in (self._versions, self._folder, self._locks, self._ledger):
            yield from check()
        clock = self._clock()
        yield clock
        if clock.state == FAIL and "does not answer" in clock.says:
            return
        for look in (self._key, self._account, self._mode, self._wallet, self._universe):
            yield from look()
        yield from self._foreign()

    # This machine.

    def _versions(self) -> Iterator[Finding]:
        pinned = dict(
            line.split(" ")[0].split("==") for line in LOCK.read_text().splitlines() if "==" in line
        )
        wrong = [f"{n} {_installed(n)}, not {v}" for n, v in pinned.items() if _installed(n) != v]
        python = platform.python_version()
        if wrong:
            yield Finding("packages", WARN, "; ".join(wrong[:SHOWN]), "make clean, then make up")
        else:
            yield Finding("versions", OK, f"Python {python}, {len(pinned)} packages as pinned")

    def _folder(self) -> Iterator[Finding]:
        folder = self._settings.RUN_DIR
        longest = f"{folder.absolute() / 'supervisor.sock'}.1234567"
        if len(longest.encode()) > MAX_PATH:
            says = f"{folder}: sockets would have paths over {MAX_PATH} bytes"
            yield Finding("RUN_DIR", FAIL, says, "choose a shorter RUN_DIR")
            return
        there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
        if not there.is_dir():
            yield Finding("RUN_DIR", FAIL, f"{there} is not a folder", "choose another RUN_DIR")
            return
        if not os.access(there, os.W_OK):
            yield Finding("RUN_DIR", FAIL, f"{there} cannot be written", "choose another RUN_DIR")
            return
        free_mb = shutil.disk_usage(there).free // 2**20
        if free_mb < FREE_MB:
            says = f"{free_mb} MB free"
            yield Finding("disk", FAIL, says, f"make room: {FREE_MB} MB at least")
        else:
            yield Finding("disk", OK, f"{free_mb} MB free for {folder}")
        kept = [("RUN_DIR", folder, "700")]
        if self._settings.BYBIT_API_SECRET.get_secret_value():
            kept.append(("settings", Path(".env"), "600"))
        for what, path, wanted in kept:
            if path.exists() and path.stat().st_mode & 0o077:
                says = f"mode {path.stat().st_mode & 0o777:o}: others may look into {path}"
                yield Finding(what, WARN, says, f"chmod {wanted} {path}")

    def _locks(self) -> Iterator[Finding]:
        held = [p.stem for p in sorted(self._settings.RUN_DIR.glob("*.lock")) if _is_locked(p)]
        yield Finding("processes", OK, f"running: {', '.join(held)}" if held else "nothing runs")
        if KEEPER in held and (names := changed(self._settings)):
            says = f"{', '.join(names)}: the bot runs with others"
            yield Finding(
                "settings", WARN, says, "they count at the next start: make down, make up"
            )

    def _ledger(self) -> Iterator[Finding]:
        path = self._settings.RUN_DIR / "state.db"
        try:
            records = Records(path)
            found, row = records.meta("account"), records.meta("row")
            records.close()
        except FileNotFoundError:
            yield Finding("ledger", OK, "none yet: the first start makes one")
            return
        except Broken as error:
            yield Finding("ledger", FAIL, f"{path}: {error}", "move it aside and ask a person")
            return
        wanted = ledger_account(self._settings)
        if found != wanted:
            says = f"{path} is of {found}, these settings are {wanted}"
            yield Finding(
                "ledger", FAIL, says, "another RUN_DIR for another account or environment"
            )
        else:
            yield Finding("ledger", OK, f"{path}, row {row}")

    # The exchange.

    def _clock(self) -> Finding:
        before = time.time()
        body, error = self._try("get_server_time")
        after = time.time()
        if body is None:
            mend = "the network"
            if self._settings.BYBIT_ENV == "paper" and "refused" in error:
                error, mend = "the paper exchange does not run", "make up, or make paper"
            return Finding("exchange", FAIL, f"{self._where} does not answer: {error}", mend)
        offset_ms = round(body["time"] - (before + after) * 500)
        says = f"{self._where}, clocks {offset_ms:+d} ms apart, answer in {after - before:.3f} s"
        state = OK if abs(offset_ms) <= OFFSET_WARN_MS else WARN
        state = FAIL if abs(offset_ms) > OFFSET_FAIL_MS else state
        return Finding("exchange", state, says, "" if state == OK else "let NTP set the clock")

    def _key(self) -> Iterator[Finding]:
        body, error = self._try("get_api_key_information")
        if body is None:
            yield Finding("key", FAIL, error, "BYBIT_API_KEY, BYBIT_API_SECRET of this BYBIT_ENV")
            return
        key = body["result"]
        rights = key.get("permissions", {})
        if rights.get("Wallet"):
            says = f"may move funds: {', '.join(rights['Wallet'])}"
            yield Finding("key", FAIL, says, "make a key without any wallet right")
        elif key.get("readOnly"):
            yield Finding("key", FAIL, "read-only", "make a key that may trade contracts")
        elif not {"Order", "Position"} <= set(rights.get("ContractTrade", ())):
            yield Finding("key", FAIL, f"rights: {rights}", "contract trading: orders, positions")
        else:
            yield Finding("key", OK, "may trade contracts, may not withdraw")
        if key.get("ips") in (["*"], [], None) and self._settings.BYBIT_ENV != "paper":
            yield Finding(
                "key", WARN, "works from any address", "bind it to this machine's address"
            )

    def _account(self) -> Iterator[Finding]:
        body, error = self._try("get_account_info")
        if body is None:
            yield Finding("account", FAIL, error, "see the key")
            return
        status, margin = body["result"]["unifiedMarginStatus"], body["result"]["marginMode"]
        if status < 3:
            says = f"not a unified account (status {status})"
            yield Finding("account", FAIL, says, "upgrade to a unified trading account")
        elif margin != "REGULAR_MARGIN":
            yield Finding("account", WARN, f"margin mode {margin}", "cross margin (REGULAR_MARGIN)")
        else:
            yield Finding("account", OK, "unified, cross margin")

    def _mode(self) -> Iterator[Finding]:
        body, error = self._try("get_positions", category="linear", symbol="BTCUSDT")
        rows = body["result"]["list"] if body else []
        if body is None:
            yield Finding("position mode", WARN, error, "")
        elif any(int(row["positionIdx"]) for row in rows):
            mend = "close all positions and orders, then switch to one-way mode"
            yield Finding("position mode", FAIL, "hedge mode", mend)
        else:
            yield Finding("position mode", OK, "one-way")

    def _wallet(self) -> Iterator[Finding]:
        fetched = self._rest.fetch(msg.Fetch("wallet"))
        if not fetched.rows:
            yield Finding("wallet", FAIL, fetched.error or "empty", "see the key")
            return
        equity = fetched.rows[0].total_equity
        wanted = self._settings.SIZE_USDT * self._settings.MAX_SLOTS
        says = f"{equity:.2f} USDT, all slots together are {wanted:f}"
        if equity <= 0:
            yield Finding("wallet", FAIL, says, "fund the account")
        elif equity < wanted:
            mend = "a smaller SIZE_USDT or MAX_SLOTS, or more equity"
            yield Finding("wallet", WARN, says, mend)
        else:
            yield Finding("wallet", OK, says)

    def _universe(self) -> Iterator[Finding]:
        fetched = self._rest.fetch(msg.Fetch("instruments"))
        body, error = self._try("get_tickers", category="linear")
        if not fetched.rows or body is None:
            yield Finding("universe", FAIL, fetched.error or error or "no symbols", "try again")
            return
        prices = {row["symbol"]: Decimal(row["lastPrice"] or 0) for row in body["result"]["list"]}
        only, without = (self._settings.names(name) for name in ("SYMBOLS", "EXCLUDE_SYMBOLS"))
        types = self._settings.names("SYMBOL_TYPES")
        fits, small, closed, left_out = [], [], [], []
        for row in fetched.rows:
            price = prices.get(row.symbol, Decimal(0))
            if (
                row.symbol in without
                or (only and row.symbol not in only)
                or (row.symbol_type not in types)
            ):
                left_out.append(row.symbol)
            elif row.status != "Trading" or not price:
                closed.append(row.symbol)
            elif (reason := entry_qty(self._settings.SIZE_USDT, price, row)[1]) != "":
                small.append(f"{row.symbol}: {reason}")
            else:
                fits.append(row.symbol)
        says = f"{len(fits)} of {len(fetched.rows)} symbols can be traded"
        yield Finding("universe", OK if fits else FAIL, says, "" if fits else "SIZE_USDT, SYMBOLS")
        if small:
            says = f"{len(small)} too large for SIZE_USDT {self._settings.SIZE_USDT:f}: "
            yield Finding("universe", WARN, says + _some(small), "a larger SIZE_USDT, if wanted")
        for names, why in ((closed, "not trading"), (left_out, "left out by the settings")):
            if names:
                yield Finding("universe", OK, f"{len(names)} {why}: {_some(names)}")

    def _foreign(self) -> Iterator[Finding]:
        orders = self._rest.fetch(msg.Fetch("orders"))
        foreign = [order.symbol for order in orders.rows if not _ours(order)]
        if orders.error:
            yield Finding("orders", WARN, orders.error)
        elif foreign:
            says = f"orders that are not the bot's: {_some(sorted(set(foreign)))}"
            yield Finding("orders", WARN, says, "these symbols get no entries until they are gone")
        else:
            yield Finding("orders", OK, f"{len(orders.rows)} open, none of anybody else")

    def _try(self, verb: str, **params: Any) -> tuple[Any, str]:
        """The answer and an empty text, or None and why."""
        body, code, error = self._rest.tried(lambda: self._call(verb, **params)[0])
        return body, f"{code} {error}" if code > 0 else error


def main() -> None:
    """Print the findings; exit code 1 if one of them forbids trading."""
    parser = argparse.ArgumentParser(prog="python -m services.doctor", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object a finding")
    asked = parser.parse_args()
    with ending():
        sys.exit(_told(Doctor(load()).findings(), asked.json))


def _told(findings: Iterator[Finding], as_json: bool) -> bool:
    """Print them; whether one forbids trading."""
    found = []
    table = Table(box=None, header_style="bold")
    for name in ("", "what", "found", "mend"):
        table.add_column(name, overflow="fold")
    for finding in findings:
        found.append(finding)
        if as_json:
            print(json.dumps(finding._asdict()), flush=True)
        colour = {OK: "green", WARN: "yellow", FAIL: "bold red"}[finding.state]
        table.add_row(f"[{colour}]{finding.state}", finding.what, finding.says, finding.mend)
    if not as_json:
        Console(highlight=False, width=None if sys.stdout.isatty() else 130).print(table)
    return any(finding.state == FAIL for finding in found)


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def _is_locked(path: Path) -> bool:
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _ours(order: msg.OrderUpdate) -> bool:
    return bool(msg.parse_id(order.order_link_id) or msg.parse_id(order.parent_order_link_id))


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
