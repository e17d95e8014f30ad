"""The notifier as a process, against a local server that works, fails, hangs or comes round."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from services.keeper.ledger import Change
from services.keeper.store import Store
from services.notifier.desk import Notice
from services.notifier.fills import Mark
from services.notifier.notifier import LAST_S, Ledger
from services.notifier.target import WAITING, Target
from shared import messages as msg
from shared.actor import lock_file
from shared.bus import Bus
from tests.pipeline import ROOT, environment, free_port

CANARY = "canary-7f3a91"
SECRET = "secret-of-the-account"


class Server:
    """What was posted, by path. `/works`, `/fails`, `/hangs`, and `/flaky`, which fails once."""

    def __init__(self):
        server = self
        self.got, self.changed, self.release = [], threading.Condition(), threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                text = self.rfile.read(int(self.headers["Content-Length"])).decode()
                with server.changed:
                    server.got.append((self.path, json.loads(text)))
                    first = sum(path == self.path for path, _ in server.got) == 1
                    server.changed.notify_all()
                if self.path == "/hangs":
                    server.release.wait()
                bad = self.path == "/fails" or (self.path == "/flaky" and first)
                self.send_response(500 if bad else 200)
                self.end_headers()

            def log_message(self, *_):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.port = self._http.server_address[1]
        self._thread = threading.Thread(target=self._http.serve_forever)
        self._thread.start()

    def url(self, path):
        return f"json://me:{CANARY}@127.0.0.1:{self.port}/{path}"

    def close(self):
        self.release.set()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def posted(self, path, count=1, seconds=20, meanwhile=lambda: None):
        """The first so many posts to this path, once they are there."""
        until = time.monotonic() + seconds
        while len(found := [body for at, body in self.got if at == f"/{path}"]) < count:
            assert time.monotonic() < until, (path, self.got)
            meanwhile()
            with self.changed:
                self.changed.wait(0.1)
        return found


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


def settings_of(tmp_path, *urls):
    return environment(
        NOTIFY_URLS=" ".join(urls), RUN_DIR=tmp_path, BYBIT_API_SECRET=SECRET, LOG_LEVEL="DEBUG"
    )


def ended(tmp_path, urls, *words):
    """Exit code and all that a short process says."""
    command = [sys.executable, "-m", "services.notifier", *words]
    env = settings_of(tmp_path, *urls)
    done = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=60
    )
    return done.returncode, done.stdout + done.stderr


@contextmanager
def notifier(tmp_path, *urls):
    """(process, say): it runs, and hears what is said on `account`."""
    bus = Bus(tmp_path, says="account")
    command = [sys.executable, "-m", "services.notifier"]
    with (tmp_path / "out").open("w") as out:
        process = subprocess.Popen(
            command, cwd=ROOT, env=settings_of(tmp_path, *urls), stdout=out, stderr=out
        )
        try:
            yield process, bus.publish
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            bus.close()


def mode(name, reason=""):
    return msg.Mode(("led", 1), name, reason, ())


def stopped(process):
    process.send_signal(signal.SIGTERM)
    return process.wait(LAST_S + 10)


def test_it_tells_and_no_secret_is_in_what_it_tells_or_logs(tmp_path, server):
    reason = f"refused key={SECRET} by https://x.example/{CANARY}"
    with notifier(tmp_path, server.url("works")) as (process, say):
        [told] = server.posted("works", meanwhile=lambda: say(mode("FLATTEN", reason)))
        assert told["title"] == "Deviation Magnet: FLATTEN: refused key=*** by https://***"
        assert "FLATTEN" in told["message"]
        assert told["type"] == "warning"
        assert stopped(process) == 0
    logged = (tmp_path / "out").read_text()
    assert "notice target=json#1 kind=breach attempt=1" in logged
    for text in (logged, json.dumps(told)):
        assert CANARY not in text
        assert SECRET not in text


def test_a_failing_target_is_tried_again_and_its_address_is_not_logged(tmp_path, server):
    with notifier(tmp_path, server.url("flaky"), server.url("fails")) as (process, say):
        one, two = server.posted("flaky", 2, meanwhile=lambda: say(mode("FLATTEN", "drawdown")))
        server.posted("fails", 2)
        assert one == two
        assert stopped(process) == 0
    logged = (tmp_path / "out").read_text()
    assert "notice_failed target=json#1 attempt=1" in logged
    assert "notice target=json#1 kind=breach attempt=2" in logged
    assert "notice_failed target=json#2 attempt=2" in logged
    assert CANARY not in logged
    assert str(server.port) not in logged


def test_a_target_that_hangs_delays_neither_the_others_nor_the_end(tmp_path, server):
    with notifier(tmp_path, server.url("hangs"), server.url("works")) as (process, say):
        server.posted("works", 1, meanwhile=lambda: say(mode("FLATTEN", "drawdown")))
        server.posted("hangs", 1)
        server.posted("works", 2, meanwhile=lambda: say(mode("REDUCE_ONLY", "operator")))
        before = time.monotonic()
        assert stopped(process) == 0
        assert time.monotonic() - before < LAST_S + 5


def test_a_summary_that_was_due_while_it_was_down_is_told(tmp_path, server):
    lock = lock_file(tmp_path, "notifier-0")
    lock.touch()
    yesterday_s = time.time() - 86_400
    os.utime(lock, (yesterday_s, yesterday_s))
    wallet = msg.Wallet(Decimal(1010), Decimal(1), Decimal(1))
    with notifier(tmp_path, server.url("works")) as (process, say):
        [told] = server.posted("works", meanwhile=lambda: say(wallet))
        assert told["title"] == "Deviation Magnet: Summary of the day"
        assert "equity now 1010.00 USDT" in told["message"]
        assert stopped(process) == 0


def test_a_second_copy_does_not_start(tmp_path, server):
    with notifier(tmp_path, server.url("works")) as (_, say):
        server.posted("works", meanwhile=lambda: say(mode("FLATTEN", "drawdown")))
        code, said = ended(tmp_path, [server.url("works")])
        assert code == 1
        assert "already running" in said


@pytest.mark.parametrize(
    ("url", "named"),
    [
        (f"nonsense://{CANARY}", "address 2 (nonsense)"),
        (f"tgram://{CANARY}", "address 2 (tgram)"),
        (f"123456:{CANARY}", "address 2 (no scheme)"),
    ],
)
def test_an_address_that_is_none_stops_the_start_and_is_not_printed(tmp_path, url, named):
    code, said = ended(tmp_path, ["json://127.0.0.1", url])
    assert code == 2
    [line] = said.splitlines()
    assert line.endswith(f"wrong_setting NOTIFY_URLS: apprise does not take {named}")
    assert CANARY not in said


def test_nobody_to_tell_is_a_wrong_setting(tmp_path):
    code, said = ended(tmp_path, [])
    assert (code, "NOTIFY_URLS: empty" in said) == (2, True)


def test_a_test_with_nobody_to_tell_is_one_plain_line(tmp_path):
    code, said = ended(tmp_path, [], "--test")
    assert (code, said) == (2, "NOTIFY_URLS: empty: there is nobody to tell\n")


def test_the_test_says_for_each_target_whether_it_went(tmp_path, server):
    nobody = f"json://me:{CANARY}@127.0.0.1:{free_port()}"
    urls = [server.url("works"), server.url("fails"), nobody]
    code, said = ended(tmp_path, urls, "--test")
    assert code == 1
    assert said.splitlines() == ["json#1: sent", "json#2: not sent", "json#3: not sent"]
    assert ended(tmp_path, urls[:1], "--test") == (0, "json#1: sent\n")


def test_a_target_keeps_only_so_many_and_says_how_many_were_lost(server):
    target = Target(1, server.url("works"))
    for number in range(WAITING + 3):
        target.put(Notice("mode", str(number), "body", False))
    target.start()
    told = server.posted("works", WAITING)
    assert [body["title"] for body in told] == [str(n) for n in range(3, WAITING + 3)]
    assert told[0]["message"] == "body\n(3 earlier notices did not get through)"
    assert told[1]["message"] == "body"


ONE, BTC = Decimal(1), ("", "", "BTCUSDT", "Buy")  # an order without an id of ours: a stop loss


def fill(number, at_ms, fee=1, kind="Trade"):
    return msg.Execution(f"e{number}", *BTC, kind, ONE, ONE, Decimal(fee), True, at_ms)


def lot(name, closed_ms, bought=1):
    sums = (Decimal(bought), ONE, ONE, ONE, ONE, ONE)
    return msg.Lot(name, "BTCUSDT", "Buy", *sums, 1, ONE, 0, 5, closed_ms)


@contextmanager
def store_of(path, account="mainnet-1", ledger_id="led"):
    """(keep, store): the keeper's file; `keep` writes lots and one execution."""
    store = Store(path, account, ledger_id)
    try:
        yield lambda *lots, execution=None: store.write(Change("", (), lots, execution), 1), store
    finally:
        store.close()


def test_what_is_new_in_the_ledger_is_found_once_whatever_wrote_it(tmp_path):
    ledger = Ledger(tmp_path / "state.db")
    with store_of(tmp_path / "state.db") as (keep, _):
        keep(lot("a", 10), lot("b", 0), lot("c", 0), execution=fill(1, 9))
        start = ledger.since(None)
        assert (start.executions, start.closed) == ((), ()), "not the whole history"
        keep(lot("c", 20), execution=fill(2, 20))
        one = ledger.since(start.mark)
        assert (one.executions, one.closed) == ((fill(2, 20),), (lot("c", 20),))
        keep(lot("b", 0), lot("d", 30, bought=0), execution=fill(3, 19))
        two = ledger.since(one.mark)
        assert (two.executions, two.closed) == ((fill(3, 19),), ()), "late, and none is closed"
        keep(lot("b", 15))
        three = ledger.since(two.mark)
        assert (three.executions, three.closed) == ((), (lot("b", 15),)), "opened before others"
        assert ledger.since(three.mark) == three._replace(closed=())


def test_another_ledger_is_news_from_its_beginning(tmp_path):
    first, second = tmp_path / "state.db", tmp_path / "other.db"
    with store_of(first) as (keep, _):
        keep(lot("a", 10), execution=fill(1, 9))
        keep(lot("b", 11), execution=fill(2, 9))
        mark = Ledger(first).since(None).mark
    none_yet = Ledger(second).since(None)
    with store_of(second, ledger_id="new") as (keep, _):
        keep(lot("c", 1), execution=fill(3, 1))
        for before in (mark, none_yet.mark):
            found = Ledger(second).since(before)
            assert found == (Mark("new", 1, 1), (fill(3, 1),), (lot("c", 1),))


@pytest.mark.parametrize(
    ("statement", "day_ends"),
    [
        ("UPDATE lots SET cost = 'x'", True),
        ("UPDATE lots SET cost = NULL", True),
        ("UPDATE executions SET exec_fee = 'x'", True),
        ("UPDATE equity SET equity = 'NaN'", False),
        ("DROP TABLE executions", True),
        ("DROP TABLE meta", True),
    ],
)
def test_a_damaged_ledger_is_logged_once_and_ends_nothing(tmp_path, caplog, statement, day_ends):
    path = tmp_path / "state.db"
    ledger = Ledger(path)
    with store_of(path) as (keep, store):
        keep(lot("a", 10), execution=fill(1, 9))
        store.equity(msg.Wallet(ONE, ONE, ONE), 10)
    with sqlite3.connect(path) as db:
        db.execute(statement)
    db.close()
    reads = [lambda: ledger.day(0, 20)] + [lambda: ledger.since(Mark("", 0, 0))] * day_ends
    for read in reads * 3:
        assert read() is None
    assert [record.message.split()[0] for record in caplog.records] == ["no_ledger"]


def test_a_ledger_that_is_gone_or_none_is_logged_once_until_it_is_read(tmp_path, caplog):
    path, mark = tmp_path / "state.db", Mark("led", 1, 1)
    ledger = Ledger(path)
    assert ledger.since(None) == (Mark("", 0, 0), (), ()) and not caplog.records
    assert (ledger.since(mark), ledger.day(0, 1)) == (None, None)
    assert len(caplog.records) == 1
    with store_of(path):
        assert ledger.since(mark) is not None
    path.write_bytes(b"no ledger at all, but long enough to be looked at" * 40)
    assert (ledger.since(None), ledger.since(mark)) == (None, None)
    assert len(caplog.records) == 2


@pytest.mark.parametrize(
    ("account", "fees", "closed"), [("mainnet-1", 3, ["a"]), ("paper-1", 10, ["c"])]
)
def test_a_day_is_of_the_wall_clock_and_on_paper_up_to_the_last_execution(
    tmp_path, account, fees, closed
):
    facts = [fill(1, 9, 2), fill(2, 10, 3), fill(3, 19, 5, "Funding"), fill(4, 103, 4),
             fill(5, 112, 6), fill(6, 105, 5, "Funding")]  # fmt: skip
    with store_of(tmp_path / "state.db", account) as (keep, store):
        for fact in facts:
            keep(lot("a", 10), lot("b", 0), lot("c", 112), lot("d", 102), execution=fact)
        for at, equity in ((9, 900), (10, 1000), (12, 1100), (19, 1050), (20, 7)):
            store.equity(msg.Wallet(Decimal(equity), ONE, ONE), at)
        day = Ledger(tmp_path / "state.db").day(10, 20)
    paper = account.startswith("paper")
    assert (day.fees, day.funding, day.paper) == (fees, 5, paper)
    assert day.fills == (2 if paper else 1)
    assert [found.entry_id for found in day.closed] == closed
    assert day.equity == (1000, 1050), "of that day, however late it is told"
