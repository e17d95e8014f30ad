"""kill -9, at named points and at random: `python -m tests.kills`, real processes.

`--points` kills every process of the bot at every point of the work: the moment a message that
marks the point is on the bus, or while it is stopped and the rest of the work goes on. There are
no hooks for this in the bot. `--kills 1000` kills random processes at random moments while the
synthetic market trades. After both, ledger and exchange hold the same, and whatever was
acknowledged is on disk. `--starts 20` ends all in good order and starts them in any order, which
must change nothing. `--recovery 20` measures how long after a kill the new process is ready.
"""

import argparse
import contextlib
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

from services.ops.ops import GONE, Supervisor
from shared import messages as msg
from shared.actor import LOCKS, lock_file
from shared.bus import STREAMS, Bus
from tests.books import settled
from tests.pipeline import ROOT, Live, Pipeline, wait_for

PART = Decimal("0.37")
ROLES = ("worker-0", "router", "keeper", "ingestor", "watchdog")
BACK_S = 30  # a tenth of it on a quiet machine
FROZEN_S = 0.7  # a process stands still while the others go on
POINT_S = 35  # a bar of the calm market is 30 s
GOAL_S = {"worker": 3, "router": 5, "keeper": 5, "ingestor": 8, "all": 12, "supervisord": 15}


class Hand(Supervisor):
    """Starts and stops single processes, which `make` never does."""

    def begin(self, name):
        """Start it, and do not wait."""
        self._rpc.startProcess(_full(name), False)

    def end(self, name):
        """Stop it as `make down` would, and wait."""
        self._rpc.stopProcess(_full(name), True)


def _full(name):
    return f"worker:{name}" if name.startswith("worker") else name


class Processes:
    """The processes of a running pipeline: who they are, what they have said, and their end."""

    def __init__(self, pipeline):
        self.p = pipeline
        self.supervisor = Hand(pipeline.run_dir)
        streams = [stream.name for stream in STREAMS.values() if stream.pattern == "PUB"]
        self._bus = Bus(pipeline.run_dir, hears=dict.fromkeys(streams, ("",)), asks=("ledger",))
        self.words, self.mode = {}, None
        self.granted, self.executed, self.sent = set(), set(), Counter()
        self.starts, self._pids = Counter(), {}
        self.listen(0.3)  # until its subscriptions have arrived

    def close(self):
        self._bus.close()

    def listen(self, seconds=0.0):
        """Take notes of all that is said in so many seconds; the messages as they come."""
        until = time.monotonic() + seconds
        heard = []
        while True:
            left_ms = (until - time.monotonic()) * 1000
            for message, _ in self._bus.receive(max(0, min(left_ms, 20))):
                self.note(message)
                heard.append(message)
            if left_ms <= 0:
                return heard

    def heard(self, marks, seconds):
        """The first message that marks a point, the moment it is heard; None if none comes."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for message, _ in self._bus.receive(20):
                if marks(message):
                    return message
                self.note(message)
        return None

    def note(self, message):
        """Remember what was said."""
        if isinstance(message, msg.Health):
            name = msg.process_name(message.service, message.slot)
            self.starts[name] += self._pids.get(name) != message.pid
            self._pids[name] = message.pid
            self.words[name] = message
        elif isinstance(message, msg.Mode):
            self.mode = message
        elif isinstance(message, msg.Position):
            self.granted |= {order.order_link_id for order in message.orders}
        elif isinstance(message, msg.Execution):
            self.executed.add(message.exec_id)
        elif isinstance(message, msg.OrderRequest) and (message.action, message.outcome) == (
            "create",
            "",
        ):
            self.sent[message.order_link_id] += not message.reduce_only

    def supervisord(self):
        """Its pid."""
        return int((self.p.run_dir / "supervisord.pid").read_text())

    def pids(self):
        """Of each process that runs; those of the bot and the exchange's."""
        rows = self.supervisor.processes()
        return {row["name"]: row["pid"] for row in rows if row["statename"] == "RUNNING"}

    def signal(self, number, *names):
        """To processes of this pipeline, and to no others; {name: pid} of those it reached."""
        pids, parent, reached = self.pids(), self.supervisord(), {}
        for name in names:
            with contextlib.suppress(OSError, KeyError):
                if parent_of(pids[name]) == parent:
                    os.kill(pids[name], number)
                    reached[name] = pids[name]
                    self.words.pop(name, None)  # what one before it has said does not count
        return reached

    def kill(self, *names):
        """kill -9; {name: pid} of what was killed."""
        return self.signal(signal.SIGKILL, *names)

    def back(self, killed, seconds=BACK_S):
        """Until another process has taken each one's place, and says that it is ready."""
        until = time.monotonic() + seconds
        while late := [name for name, pid in killed.items() if not self._ready(name, pid)]:
            assert time.monotonic() < until, f"not back within {seconds} s: {late}"
            self.listen(0.05)

    def _ready(self, name, old_pid):
        if name == "watchdog":  # it says nothing: it is back when it holds its lock
            pid = lock_file(self.p.run_dir, "watchdog-0").read_text()
            return pid.isdigit() and int(pid) != old_pid and Path(f"/proc/{pid}").exists()
        word = self.words.get(name)
        return word is not None and word.pid != old_pid and word.ready

    def allowed(self, seconds=BACK_S):
        """Until the mode is RUN; a crash loop is what we are, and it is forgiven."""
        until = time.monotonic() + seconds
        self.mode = None
        while not (self.mode and self.mode.mode == msg.RUN):
            assert time.monotonic() < until, f"not RUN within {seconds} s: {self.mode}"
            self.listen(0.05)
            self.forgive()

    def forgive(self):
        """Five starts of one process in a minute forbid entries until a person says RUN."""
        if self.mode and self.mode.reason.startswith("crash loop"):
            self.wish(msg.RUN)

    def wish(self, mode):
        """What an operator may ask of the keeper."""
        self._bus.ask("ledger", msg.Control(mode, "tests"), time.monotonic_ns())
        self.mode = None


def stat_of(pid):
    """What the kernel says of a process after its name: state, parent, ...; raises OSError."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def parent_of(pid):
    """Raises OSError where there is no such process."""
    return int(stat_of(pid)[1])


def is_gone(pid):
    """Ended; whether anybody has taken notice is not its business."""
    try:
        return stat_of(pid)[0] == "Z"
    except OSError:
        return True


def now_s():
    """The clock by which the kernel says when a process began."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def started_s(pid):
    """When a process began. Raises OSError where there is none."""
    return int(stat_of(pid)[19]) / os.sysconf("SC_CLK_TCK")


def without_locks(pipeline):
    """What is left of a pipeline in the temp folder."""
    for file in LOCKS.glob(f"*-{pipeline.port}.lock"):
        file.unlink()


class Mortal(Live):
    """A calm market, the bot on it, and a hand that kills its processes."""

    def __init__(self, count, **settings):
        many = {"MAX_SLOTS": 500, "MAX_SYMBOLS": 500, "PAPER_BALANCE_USDT": 100_000}
        super().__init__(count, **many | settings)
        self.processes = None

    def up(self):
        super().up()
        self.processes = Processes(self.p)
        self.processes.listen()

    def allowed(self, seconds):
        """A crash loop is forgiven."""
        if self.processes:
            self.processes.allowed(seconds)
        super().allowed(seconds)

    def close(self):
        """In one blow, which is faster than an orderly end."""
        pids = {}
        if self.processes:
            self.processes.close()
            with contextlib.suppress(*GONE):
                pids = self.processes.pids()
                os.kill(self.processes.supervisord(), signal.SIGKILL)
        super().close()
        wait_for(lambda: all(map(is_gone, pids.values())), 5)
        without_locks(self.p)

    def whole(self):
        """All run, entries are allowed, ledger and exchange agree, no rule was broken, and no
        order was sent or made twice."""
        self.processes.allowed()
        self.finish()
        ours = [o["orderLinkId"] for o in self.account()["orders"] if o["orderLinkId"]]
        assert [name for name, count in Counter(ours).items() if count > 1] == []
        requests = self.said(msg.OrderRequest, action="create", outcome="", reduce_only=False)
        sent = Counter(request.order_link_id for request in requests)
        assert [name for name, count in sent.items() if count > 1] == []
        told = {name for name in self.processes.granted | set(sent) if msg.parse_id(name)}
        assert told <= {name for (name,) in self.p.rows("SELECT order_link_id FROM orders")}

    def killed_at(self, name, marks, act, again=False, seconds=POINT_S):
        """Act, and kill a process the moment a message marks the point; the message."""
        pid = self.processes.pids()[name]
        self.processes.listen()
        until = time.monotonic() + seconds
        found = None
        while found is None:
            assert time.monotonic() < until, "the point was never reached"
            acting = threading.Thread(target=act)
            acting.start()
            found = self.processes.heard(marks, 2 if again else seconds)
            if found:
                os.kill(pid, signal.SIGKILL)
                self.processes.note(found)
                self.processes.words.pop(name, None)
            acting.join()
        self.processes.back({name: pid})
        return found

    def killed_frozen(self, name, act):
        """Stop a process, act, let the others go on, and kill it: what had come in is lost."""
        frozen = self.processes.signal(signal.SIGSTOP, name)
        assert frozen
        act()
        time.sleep(FROZEN_S)
        assert self.processes.kill(name)
        self.processes.back(frozen)


# Every point of the work.


class Scenario(NamedTuple):
    """`ready` makes what the act needs, `act` does it, `over` must be true in the end. Points:
    names and the messages that mark them, by symbol."""

    ready: object
    act: object
    over: object
    points: dict
    again: bool = False


def says(kind, **fields):
    """Marks a message of this kind, about the symbol, whose fields have these values."""

    def of(symbol):
        def marks(m):
            mine = isinstance(m, kind) and getattr(m, "symbol", symbol) == symbol
            return mine and all(getattr(m, name) == value for name, value in fields.items())

        return marks

    return of


def position(holds):
    """Marks a Position for which this holds."""

    def of(symbol):
        return lambda m: isinstance(m, msg.Position) and m.symbol == symbol and holds(m)

    return of


def requests(action, reduce_only):
    """The life of a command."""
    head = {"action": action, "reduce_only": reduce_only}
    return {
        f"{action} sent": says(msg.OrderRequest, outcome="", **head),
        f"{action} accepted": says(msg.OrderRequest, outcome="accepted", **head),
    }


def nothing(live, symbol):
    """No preparation, or no act."""


def rest(live, symbol):
    live.rest(symbol)


def rest_for_part(live, symbol):
    live.rest(symbol)
    live.fault("match", "partial", symbol=symbol, share=str(PART))


def fill_part(live, symbol):
    rest_for_part(live, symbol)
    live.hit(symbol)
    live.until(lambda: live.exits(symbol), 15)


def fill(live, symbol):
    live.fill(symbol)


def near(live, symbol):
    live.near(symbol)


def hit(live, symbol):
    live.hit(symbol)


def sell(live, symbol):
    (leaves,) = [o for o in live.at_venue(symbol) if o["reduceOnly"]]
    live.to(symbol, Decimal(leaves["price"]) + Decimal("0.0010"))


def away(live, symbol):
    live.away(symbol)


def no_more_than_one(live, symbol):
    """What rests of entries, if anything does."""
    return len([o for o in live.at_venue(symbol) if not o["reduceOnly"]]) <= 1


def all_for_sale(live, symbol):
    """An exit rests for all that was bought."""
    bought, sold = live.lot(symbol)
    return bought and sum(qty for _, qty in live.exits(symbol)) == bought - sold


def sold(live, symbol):
    bought, sold_ = live.lot(symbol)
    return bought == sold_ != 0 and live.held(symbol) == 0


def empty(live, symbol):
    return not live.at_venue(symbol) and not live.entry(symbol)


def amended(m):
    """An exit sells all of its lot."""
    return any(o.kind == msg.EXIT and o.qty == x.bought for o in m.orders for x in m.lots)


SCENARIOS = {
    "entry": Scenario(
        *(nothing, near, no_more_than_one),
        {
            "armed": says(msg.Quote, zone=msg.ARM),
            "granted": position(lambda m: any(o.status == "Granted" for o in m.orders)),
            **requests("create", False),
            "new": says(msg.OrderUpdate, order_status="New"),
            "rests": position(lambda m: any(o.status == "New" for o in m.orders)),
        },
        again=True,
    ),
    "partial": Scenario(
        *(rest_for_part, hit, all_for_sale),
        {
            "execution": says(msg.Execution),
            "part": says(msg.OrderUpdate, order_status="PartiallyFilled"),
            "lot": position(lambda m: bool(m.lots)),
            **requests("create", True),
            "exit new": says(msg.OrderUpdate, order_status="New", reduce_only=True),
        },
    ),
    "grow": Scenario(
        *(fill_part, hit, all_for_sale),
        {
            "execution": says(msg.Execution),
            **requests("amend", True),
            "amended": position(amended),
        },
    ),
    "exit": Scenario(
        *(fill, sell, sold),
        {
            "execution": says(msg.Execution),
            "filled": says(msg.OrderUpdate, order_status="Filled"),
            "closed": position(lambda m: not m.lots),
        },
    ),
    "cancel": Scenario(
        *(rest, away, empty),
        {
            "no quote": says(msg.Quote, zone=msg.NONE),
            **requests("cancel", False),
            "cancelled": says(msg.OrderUpdate, order_status="Cancelled"),
            "gone": position(lambda m: not m.orders),
        },
    ),
    "idle": Scenario(
        *(fill, nothing, all_for_sale),
        {
            "bar": lambda _: lambda m: isinstance(m, msg.Kline) and m.confirm,
            "tick": says(msg.Mode),
        },
    ),
}
FROZEN = "while stopped"


def cases():
    """(scenario, point, process), each process once in a while only: no crash loop."""
    points = [(s, point) for s, scenario in SCENARIOS.items() for point in scenario.points]
    points += [(s, FROZEN) for s in SCENARIOS]
    return [(*point, role) for point in points for role in ROLES]


def strike(live, scenario, point, role):
    """One kill at one point of one scenario, and all that must be true after it."""
    terms, symbol = SCENARIOS[scenario], live.take()
    terms.ready(live, symbol)

    def act():
        terms.act(live, symbol)

    if point == FROZEN:
        live.killed_frozen(role, act)
    else:
        live.killed_at(role, terms.points[point](symbol), act, terms.again)
    live.whole()
    live.until(lambda: terms.over(live, symbol), 15)
    live.heal()


def every_point(args):
    """All cases, one after the other; those that failed."""
    chosen = [case for case in cases() if args.only in " ".join(case)]
    live, failed = Mortal(len(chosen), PAPER_ACK_MS=20), []
    try:
        live.up()
        for number, case in enumerate(chosen, 1):
            begun = time.monotonic()
            try:
                strike(live, *case)
                word = "ok"
            except (AssertionError, ValueError, OSError) as error:
                word = f"FAILED {type(error).__name__} {error}"
                failed.append(case)
                live.heal()
                live.breaches()
            took_s = time.monotonic() - begun
            print(f"{number:4}/{len(chosen)} {' | '.join(case):45} {took_s:5.1f} s {word}")
            sys.stdout.flush()
    finally:
        live.close()
    print(f"{len(chosen)} kill points, {len(failed)} failed {failed or ''}")
    return not failed


# Orderly ends, and starts in any order.


def restarted(processes, order, gap_s):
    """End all of them as `make down` would, and start them again one after the other."""
    old, rpc = processes.pids(), processes.supervisor
    for name in reversed(order):
        rpc.end(name)
    assert set(processes.pids()) <= set(old) - set(order)
    processes.words.clear()
    for name in order:
        rpc.begin(name)
        processes.listen(gap_s)
    processes.back({name: old[name] for name in order if name != "paper"})


def held(live):
    """What the ledger holds, and what it has ever ordered."""
    lots = live.p.rows("SELECT entry_id, bought, sold, exits FROM lots ORDER BY 1")
    return lots, live.p.rows("SELECT order_link_id FROM orders WHERE kind = ? ORDER BY 1", msg.EXIT)


def any_order(args):
    """Stop and start everything, the exchange too, with lots open: nothing comes of it."""
    live, dice = Mortal(12, SHARDS=1), random.Random(args.seed)
    names = ["paper", *ROLES]
    try:
        live.up()
        for _ in range(8):
            live.fill(live.take())
        live.whole()
        before = held(live)
        for number in range(1, args.starts + 1):
            dice.shuffle(names)
            begun = time.monotonic()
            restarted(live.processes, names, dice.uniform(0, 0.5))
            live.whole()
            assert held(live) == before, (before, held(live))
            took_s = time.monotonic() - begun
            print(f"{number:4}/{args.starts} {' '.join(names):55} {took_s:5.1f} s ok", flush=True)
        print(f"8 lots and their exits as they were, {len(before[1])} exits ever ordered")
        return True
    finally:
        live.close()


# At random.


def at_random(args):
    """Kill whatever runs whenever it likes; at the end nothing is lost and nothing is doubled."""
    pipeline = Pipeline(
        PAPER_SYMBOLS=args.symbols, PAPER_SPEED=args.speed, SHARDS=2, DRAWDOWN_PCT=0,
        DAILY_LOSS_PCT=0, PAPER_BALANCE_USDT=10_000, RECONCILE_SECONDS=2, BB_MULT=2, BB_DEV_MULT=1,
        PAPER_IP_LIMIT=10_000, PAPER_RATE_LIMIT=300, RATE_LIMIT=300, MAX_SLOTS=500, MAX_SYMBOLS=500,
        BASE_FEE_PCT=0.05,
    )  # fmt: skip
    dice, processes, killed = random.Random(args.seed), None, Counter()
    roles = ("worker-0", "worker-1", *ROLES[1:])
    begun = time.monotonic()
    try:
        up = pipeline.ops("up")
        assert up.returncode == 0, up.stdout + up.stderr
        processes = Processes(pipeline)
        while killed.total() < args.kills:
            for _ in range(dice.randint(1, 14)):
                crowd = roles if dice.random() < 0.03 else (dice.choice(roles),)
                killed.update(processes.kill(*crowd).keys())
                _trade(processes, dice.uniform(0, 0.7))
            _trade(processes, 8, until_run=True)
            _trade(processes, dice.uniform(0, 3))
            _progress(killed, processes, begun)
        print(file=sys.stderr)
        return _verdict(pipeline, processes, killed, begun)
    finally:
        if processes:
            processes.close()
        pipeline.close()
        without_locks(pipeline)


def _trade(processes, seconds, until_run=False):
    """Listen for so long, or until entries are allowed."""
    until = time.monotonic() + seconds
    processes.mode = None if until_run else processes.mode
    while time.monotonic() < until:
        processes.listen(0.02)
        processes.forgive()
        if until_run and processes.mode and processes.mode.mode == msg.RUN:
            return


def _progress(killed, processes, begun):
    words = f"{killed.total()} kills, {len(processes.granted)} orders"
    words += f", {len(processes.executed)} executions, {time.monotonic() - begun:.0f} s"
    print(f"\r{words}  ", end="", file=sys.stderr, flush=True)


def _verdict(pipeline, processes, killed, begun):
    """What was lost or doubled, printed; whether it was nothing."""
    processes.listen(5)
    processes.allowed(60)
    assert pipeline.ops("mode", msg.REDUCE_ONLY).returncode == 0  # so that it gets quiet
    exchange, account, differ = settled(pipeline)
    wrong = [f"differs: {what}: {ours} {theirs}" for what, ours, theirs in differ]
    wrong += [f"auditor: {line}" for line in exchange["lines"][:5]]
    orders = {name for (name,) in pipeline.rows("SELECT order_link_id FROM orders")}
    executions = {name for (name,) in pipeline.rows("SELECT exec_id FROM executions")}
    told = {name for name in {*processes.granted, *processes.sent} if msg.parse_id(name)}
    wrong += [f"lost order {name}" for name in told - orders]
    wrong += [f"lost execution {name}" for name in processes.executed - executions]
    wrong += [f"sent twice {name}" for name, count in processes.sent.items() if count > 1]
    made = Counter(o["orderLinkId"] for o in account["orders"] if o["orderLinkId"])
    wrong += [f"made twice {name}" for name, count in made.items() if count > 1]
    minutes = (time.monotonic() - begun) / 60
    print(f"kills {killed.total()} in {minutes:.1f} min: {dict(killed)}")
    print(f"starts heard {dict(processes.starts)}")
    print(f"orders: {len(orders)} in the ledger, {len(told)} of them heard of, {len(made)} made")
    print(f"executions: {len(account['executions'])} at the exchange, {len(executions)} in the")
    print(f"ledger, {len(processes.executed)} heard of; mode {processes.mode.mode}")
    print("wrong: " + ("\n  ".join(wrong) if wrong else "nothing"))
    return not wrong


# How long it takes.


def recovery(args):
    """Each kill `--recovery` times; from the kill to the new process's word that it is ready."""
    pipeline = Pipeline(
        PAPER_SYMBOLS=500, SHARDS=2, DRAWDOWN_PCT=0, DAILY_LOSS_PCT=0, PAPER_BALANCE_USDT=10_000,
        BB_MULT=1.5, BB_DEV_MULT=1, BASE_FEE_PCT=3, MAX_SYMBOLS=100, PAPER_IP_LIMIT=10_000,
    )  # fmt: skip
    processes, met = None, True
    groups = {"worker": ("worker-0",), "router": ("router",), "keeper": ("keeper",)}
    groups |= {"ingestor": ("ingestor",), "all": ("worker-0", "worker-1", *ROLES[1:])}
    try:
        up = pipeline.ops("up")
        assert up.returncode == 0, up.stdout + up.stderr
        processes = Processes(pipeline)
        _trade(processes, args.warm)
        print(
            f"{'killed':12} {'goal':>5} {'median':>7} {'worst':>6}   of which, median: start, word"
        )
        for name in (*groups, "supervisord"):
            if any(word in name for word in args.only.split(",")):
                times = [_recovered(processes, groups.get(name)) for _ in range(args.recovery)]
                met &= _row(name, times, processes)
        return met
    finally:
        if processes:
            processes.close()
        pipeline.close()
        without_locks(pipeline)


def _row(name, times, processes):
    """One line of the table; whether the goal was met."""
    ready, start, word = (sorted(column) for column in zip(*times, strict=True))
    load, counters = os.getloadavg()[0], processes.words["keeper"].counters
    state = f"{counters['lots']} lots, {counters['working_orders']} orders"
    print(
        f"{name:12} {GOAL_S[name]:4} s {statistics.median(ready):5.1f} s {ready[-1]:4.1f} s  "
        f" {statistics.median(start):4.1f} {statistics.median(word):4.1f}  "
        f" n={len(times)}, {state}, {counters['executions']} executions, load {load:.1f}",
        flush=True,
    )
    print("  " + " ".join(f"{t:.1f}" for t in ready), flush=True)
    return ready[-1] <= GOAL_S[name]


def _recovered(processes, names):
    """(ready, started, first word) in seconds after the kill: the last process counts. Without
    names it is supervisord, and `make up` after it."""
    boot_s, begun = now_s(), time.monotonic()
    if names:
        killed = processes.kill(*names)
        killed.pop("watchdog", None)
        found = _until_ready(processes, killed, boot_s, begun)
    else:
        found = _supervised(processes, boot_s, begun)
    print(f"{found[0]:.1f} ", end="", file=sys.stderr, flush=True)
    processes.allowed(60)
    wait_for(lambda: processes.listen(0.1) and _all_ready(processes), 60)
    _trade(processes, 1)
    return found


def _supervised(processes, boot_s, begun):
    old = {name: pid for name, pid in processes.pids().items() if name in processes.words}
    os.kill(processes.supervisord(), signal.SIGKILL)
    command = [sys.executable, "-m", "services.ops", "up"]
    said = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=processes.p.env, **said) as up:
        found = _until_ready(processes, old, boot_s, begun)
        words, _ = up.communicate(timeout=60)
        assert up.returncode == 0, words
    return found


def _until_ready(processes, old, boot_s, begun):
    starts, words, ready = {}, {}, {}
    while len(ready) < len(old):
        assert time.monotonic() - begun < 90, f"only {ready}"
        for message in processes.listen(0.01):
            if not isinstance(message, msg.Health):
                continue
            name = msg.process_name(message.service, message.slot)
            if name not in old or message.pid == old[name]:
                continue
            after_s = time.monotonic() - begun
            words.setdefault(name, after_s)
            with contextlib.suppress(OSError):
                starts.setdefault(name, started_s(message.pid) - boot_s)
            if message.ready:
                ready.setdefault(name, after_s)
            else:
                ready.pop(name, None)
    return max(ready.values()), max(starts.values()), max(words.values())


def _all_ready(processes):
    with contextlib.suppress(*GONE):
        pids = processes.pids()
        said = processes.words
        return all(w.ready and pids.get(name) == w.pid for name, w in said.items())
    return False


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.kills", description=__doc__)
    parser.add_argument("--points", action="store_true", help="every point x every process")
    parser.add_argument("--kills", type=int, default=0, help="so many at random")
    parser.add_argument("--recovery", type=int, default=0, help="measure each so many times")
    parser.add_argument("--starts", type=int, default=0, help="so many, in any order")
    parser.add_argument("--only", default="", help="points, or processes to measure, by a word")
    parser.add_argument("--symbols", type=int, default=120, help="at random: how many")
    parser.add_argument("--speed", type=float, default=5, help="at random: market minutes a minute")
    parser.add_argument("--seed", type=int, default=1, help="at random")
    parser.add_argument("--warm", type=float, default=120, help="seconds of trade before measuring")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # and take down what was started
    done = [run(args) for run, wanted in WORK.items() if getattr(args, wanted)]
    if not done:
        parser.error("say --points, --starts N, --kills N or --recovery N")
    sys.exit(not all(done))


WORK = {every_point: "points", any_order: "starts", at_random: "kills", recovery: "recovery"}

if __name__ == "__main__":
    main()
