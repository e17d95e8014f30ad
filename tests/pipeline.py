"""Real processes under supervisord, for tests: one RUN_DIR, one port, the commands a user types.

`Live` is `stage` for processes: a calm market of symbols around 1.0, one of which at a time a test
takes, holds still and moves by hand. It looks at what the bot says, what it wrote down, and what
the exchange holds. Times are real, so whoever waits says how long at most, and generously.
"""

import contextlib
import csv
import http.client
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from decimal import Decimal
from pathlib import Path

import pytest
from pybit.unified_trading import HTTP

from services.ops.ops import Supervisor
from shared import messages as msg
from shared.bus import Bus
from tests.books import OPEN, differences, positions

MINUTE_MS = 60_000
ROOT = Path(__file__).parents[1]
KEYS = {"api_key": "paper-key", "api_secret": "paper-secret"}
LOOK_S = 0.05  # between two looks at something that is waited for
START_MS = 1_700_000_040_000  # of the calm market: a whole minute
HISTORY, TRADED = 400, 240  # minutes
NEAR = 0.9998  # of the band: an entry is wanted here, and after the end of a bar, too
AGAIN_S = 2.0  # before what did not arm is moved again
LATE_S = 30  # the bot needs a fifth of it on a quiet machine
QUIET_S = 0.6  # nothing new at the exchange for so long is quiet


def free_port():
    """One on which nobody listens, for now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def serves(port):
    """Whether somebody listens there."""
    with socket.socket() as probe:
        return not probe.connect_ex(("127.0.0.1", port))


def environment(**settings):
    """What a process needs of ours, and these settings, but none that happen to be set."""
    known = ("PATH", "HOME", "LANG", "VIRTUAL_ENV")
    ours = {name: os.environ[name] for name in known if name in os.environ}
    return ours | {name: str(value) for name, value in settings.items()}


class Pipeline:
    """One RUN_DIR, one port, and the commands a user types."""

    def __init__(self, **settings):
        self.run_dir = Path(tempfile.mkdtemp(prefix="dm-"))
        self.port = free_port()
        ours = {"RUN_DIR": self.run_dir, "PAPER_PORT": self.port, "DASHBOARD_PORT": 0}
        self.env = environment(**ours | settings)

    def ops(self, *words, timeout=120):
        command = [sys.executable, "-m", "services.ops", *words]
        return subprocess.run(
            command,
            cwd=ROOT,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def status(self):
        return json.loads(self.ops("status", "--json").stdout)

    def tap(self, *words):
        command = [sys.executable, "-m", "services.tap", "--json", *words]
        done = subprocess.run(
            command, cwd=ROOT, env=self.env, capture_output=True, text=True, timeout=60, check=True
        )
        return [json.loads(row) for row in done.stdout.splitlines()]

    @contextlib.contextmanager
    def recorded(self, *words):
        """A tap that writes while the block runs; yields what reads all rows so far."""
        file = self.run_dir / "tap.jsonl"
        command = [sys.executable, "-m", "services.tap", "--json", *words]
        with (
            file.open("w") as out,
            subprocess.Popen(command, cwd=ROOT, env=self.env, stdout=out) as tap,
        ):

            def rows():
                whole = file.read_text().rpartition("\n")[0]
                return [json.loads(row) for row in whole.splitlines()]

            try:
                yield rows
            finally:
                tap.terminate()

    def http(self):
        http = HTTP(**KEYS)
        http.endpoint = f"http://127.0.0.1:{self.port}"
        return http

    def control(self, method, path, body=None):
        """One request to the paper exchange's control socket."""
        with contextlib.closing(http.client.HTTPConnection("paper", timeout=20)) as connection:
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.settimeout(20)
            connection.sock.connect(str(self.run_dir / "paper.sock"))
            connection.request(method, path, json.dumps(body) if body else None)
            answer = connection.getresponse()
            said = json.loads(answer.read())
        assert answer.status == 200, said
        return said

    def rows(self, query, *values):
        """What state.db says, as an owner would ask it; tuples."""
        with contextlib.closing(
            sqlite3.connect(f"file:{self.run_dir / 'state.db'}?mode=ro", uri=True, timeout=10)
        ) as db:
            return db.execute(query, values).fetchall()

    def close(self):
        supervisor = Supervisor(self.run_dir)
        rows = supervisor.processes() if supervisor.alive() else ()
        pids = [row["pid"] for row in rows if row["pid"]]
        self.ops("down")
        shutil.rmtree(self.run_dir)
        alive = [pid for pid in pids if Path(f"/proc/{pid}").exists()]
        assert not alive, f"still running after down: {alive}"


@pytest.fixture(name="pipeline")
def pipelines():
    """Makes pipelines, and takes down what was made."""
    made = []

    def make(**settings):
        made.append(Pipeline(**settings))
        return made[-1]

    yield make
    for one in made:
        one.close()


def wait_for(condition, seconds, pause_s=0.2):
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, f"not within {seconds} s: {condition}"
        time.sleep(pause_s)
    return found


def write_calm(folder, symbols):
    """Bars around 1.0000 and 1.0040 in turn: lower band 0.992 or so, upper band 1.012, 0.3 %
    volatility, and nowhere a price within 0.5 % of a band."""
    folder.mkdir()
    rows = []
    for minute in range(HISTORY + TRADED):
        middle = Decimal("1.0000") + (Decimal("0.0040") if minute % 2 else 0)
        prices = (middle, middle + Decimal("0.0015"), middle - Decimal("0.0015"), middle)
        rows.append((START_MS + (minute - HISTORY) * MINUTE_MS, *prices, 1000))
    for symbol in symbols:
        with (folder / f"{symbol}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("open_time_ms", "open", "high", "low", "close", "volume"))
            writer.writerows(rows)


class Live:
    """A running pipeline on a calm market. Each symbol is for one test: `take` gives a new one.

    Lots are 20 USDT: 20 bought near 0.99. Take profit is 3 % away, so a lot stays open.
    """

    def __init__(self, count, **settings):
        self._symbols = [f"S{number:02}USDT" for number in range(count)]
        calm = {"PAPER_FEED": "replay", "PAPER_BOOK": "bare", "PAPER_SPEED": 2, "SHARDS": 1}
        calm |= {"SIZE_USDT": 20, "BASE_FEE_PCT": 3.0, "RECONCILE_SECONDS": 2}
        self.p = Pipeline(**calm | settings)
        write_calm(self.p.run_dir / "klines", self._symbols)
        self.p.env["PAPER_DATA"] = str(self.p.run_dir / "klines")
        self.heard, self.quotes, self.mode = [], {}, None
        self._bus, self._lines = None, 0

    def up(self):
        """Everything runs, trades and is listened to."""
        up = self.p.ops("up")
        assert up.returncode == 0, up.stdout + up.stderr
        topics = ("quote.", "orderrequest.", "mode.", "execution.")
        streams = ("quotes", "commands", "account")
        self._bus = Bus(self.p.run_dir, hears=dict.fromkeys(streams, topics))
        self.until(lambda: len(self.quotes) == len(self._symbols), 30)
        self.allowed(30)

    def close(self):
        """Nothing is left: no process, no file."""
        if self._bus:
            self._bus.close()
        self.p.close()

    # Acts.

    def take(self):
        """A symbol that no test has touched."""
        return self._symbols.pop()

    def fault(self, where, action, **terms):
        """One fault, or one act of the venue, now."""
        self.p.control("POST", "/fault", {"where": where, "action": action, **terms})

    def heal(self):
        """No fault any more; the symbols go their way again."""
        self.p.control("DELETE", "/fault")

    def to(self, symbol, price):
        """A symbol trades at a price, and stands still there."""
        self.fault("venue", "hold", symbol=symbol)
        price = Decimal(str(price)).quantize(Decimal("0.0001"))
        self.fault("venue", "trade", symbol=symbol, price=str(price), qty="1000")

    def near(self, symbol):
        """At the lower band, wherever that was when it was heard of last."""
        self.look()
        self.to(symbol, self.quotes[symbol].lower * NEAR)

    def arm(self, symbol):
        """At the lower band, until an entry is wanted there."""
        self.near(symbol)
        self.until(lambda: self.quotes[symbol].zone == msg.ARM, 15, armed=(symbol,))

    def away(self, symbol):
        """So far from both bands that no entry is wanted, and no exit is reached."""
        quote = self.quotes[symbol]
        self.to(symbol, (quote.lower + quote.upper) / 2)

    def rest(self, symbol):
        """Bring the price near the band, until an entry rests there; its id. What never arrived
        is not sent again: then it is the next bar's, half a minute later."""
        self.arm(symbol)
        self.until(lambda: self.entry(symbol)[1:] == ("New",), 45, armed=(symbol,))
        return self.entry(symbol)[0]

    def hit(self, symbol, price=None):
        """A trade just beyond the entry that rests, or at a price."""
        (order,) = [o for o in self.at_venue(symbol) if not o["reduceOnly"]]
        self.to(symbol, price or Decimal(order["price"]) - Decimal("0.0010"))

    def fill(self, symbol):
        """An entry, filled whole, whose exit rests; the id of the lot."""
        name = self.rest(symbol)
        self.hit(symbol)
        self.until(lambda: self.exits(symbol) == [(f"{name}x0", Decimal(20))], 15)
        return name

    def allowed(self, seconds):
        """Until entries are."""
        self.until(lambda: self.mode == msg.RUN, seconds)

    # Looks.

    def look(self):
        """Take in all that was said since the last look."""
        while True:
            said = [message for message, _ in self._bus.receive(0)]
            for message in said:
                if isinstance(message, msg.Quote):
                    self.quotes[message.symbol] = message
                elif isinstance(message, msg.Mode):
                    if (message.mode, message.reason) != self._moded():
                        self.heard.append(message)
                    self.mode = message.mode
                else:
                    self.heard.append(message)
            if not said:
                return

    def _moded(self):
        modes = (m for m in reversed(self.heard) if isinstance(m, msg.Mode))
        return next(((m.mode, m.reason) for m in modes), None)

    def until(self, condition, seconds, armed=()):
        """Look until something is true, at most so long; what it was. A bar may end at any moment,
        and the bands move: what is to be armed meanwhile follows them."""
        moved = 0.0

        def true():
            nonlocal moved
            self.look()
            found = condition()
            if not found and time.monotonic() - moved > AGAIN_S:
                moved = time.monotonic()
                for symbol in armed:
                    if self.quotes[symbol].zone != msg.ARM and not self.entry(symbol):
                        self.near(symbol)
            return found

        return wait_for(true, seconds, LOOK_S)

    def holds(self, condition, seconds):
        """Something stays true for so long."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.look()
            assert condition(), condition
            time.sleep(LOOK_S)

    def said(self, kind, **fields):
        """Messages of a kind whose fields have these values; of modes only changes are kept."""
        return [
            m
            for m in self.heard
            if isinstance(m, kind) and all(getattr(m, n) == v for n, v in fields.items())
        ]

    def sent(self, action, symbol):
        """Commands that left, by the ids of their orders; entries only, if it is create."""
        requests = self.said(msg.OrderRequest, action=action, symbol=symbol, outcome="")
        return [r.order_link_id for r in requests if action != "create" or not r.reduce_only]

    def struck(self):
        """How many faults have found their victim."""
        return self.p.control("GET", "/")["struck"]

    def account(self):
        """The exchange's own truth."""
        return self.p.control("GET", "/account")

    def at_venue(self, symbol):
        """Open orders at the exchange."""
        orders = self.account()["orders"]
        return [o for o in orders if o["symbol"] == symbol and o["orderStatus"] in OPEN]

    def created(self, name):
        """Every order that the exchange ever made under an id of ours."""
        return [o for o in self.account()["orders"] if o["orderLinkId"] == name]

    def held(self, symbol):
        """The position at the exchange, signed."""
        return positions(self.account()).get(symbol, Decimal(0))

    def entry(self, symbol):
        """(id, status) of the entry that the ledger holds open, or nothing."""
        query = "SELECT order_link_id, status FROM orders WHERE symbol = ? AND kind = ? AND open"
        return next(iter(self.p.rows(query, symbol, msg.ENTRY)), ())

    def exits(self, symbol):
        """(id, quantity) of exits that the ledger holds open and that rest at the exchange."""
        query = "SELECT order_link_id, qty FROM orders WHERE symbol = ? AND kind = ? AND open"
        found = self.p.rows(f"{query} AND status != 'Granted'", symbol, msg.EXIT)
        return [(name, Decimal(qty)) for name, qty in found]

    def lot(self, symbol):
        """(bought, sold) of all lots of a symbol, closed ones too."""
        found = self.p.rows("SELECT bought, sold FROM lots WHERE symbol = ?", symbol)
        return tuple(sum(map(Decimal, column)) for column in zip(*found, strict=True)) or (0, 0)

    def outcome(self, name):
        """What came of an entry, in one word; empty while nothing has."""
        query = "SELECT outcome FROM outcomes WHERE entry_id = ?"
        return next(iter(self.p.rows(query, name)), ("",))[0]

    def log(self, service):
        """What a process has logged."""
        return (self.p.run_dir / f"logs/{service}.log").read_text()

    def linked(self, service, link):
        """Whether a websocket is up, by the process's last word on it."""
        said = [row for row in self.log(service).splitlines() if f" Link name={link} " in row]
        return "up=True" in said[-1]

    # The end of a test.

    def finish(self, seconds=40):
        """Heal; when it is quiet ledger and exchange agree, entries are allowed, and no rule was
        broken since the last finish."""
        self.heal()
        self.settle(seconds)
        self.allowed(seconds)
        assert self.breaches() == []

    def settle(self, seconds):
        """Until it is quiet and both agree."""
        until, before, quiet = time.monotonic() + seconds, None, 0.0
        while True:
            self.look()
            account = self.account()
            if account["orders"] != before:
                before, quiet = account["orders"], time.monotonic()
            wrong = differences(self.p, account)
            if not wrong and time.monotonic() - quiet > QUIET_S:
                return
            assert time.monotonic() < until, wrong or "never quiet"
            time.sleep(LOOK_S)

    def breaches(self):
        """What the auditor has said since it was asked last."""
        status = self.p.control("GET", "/")
        new = status["breaches"] - self._lines
        self._lines = status["breaches"]
        return status["lines"][-new:] if new else []


def lifetime(live):
    """The body of a fixture: up, and gone at the end, whatever happens meanwhile."""
    try:
        live.up()
        yield live
    finally:
        live.close()


def afresh(live):
    """The body of a fixture: the pipeline, whatever the test before has left of it."""
    live.heal()
    live.breaches()
    live.allowed(LATE_S)
    live.heard.clear()
    yield live
    live.heal()
