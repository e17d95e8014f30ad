"""Planted bugs: `python -m tests.simulation.planted` breaks the cores, one rule at a time, and
counts how many lives it takes the simulation to see it.

Each bug is a text of the source and what takes its place, in a copy of the project.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
LEDGER, KEEPER = "services/keeper/ledger.py", "services/keeper/actor.py"
RECONCILE, STORE = "services/keeper/reconcile.py", "services/keeper/store.py"
ROUTER, ORDERS = "services/router/actor.py", "services/router/orders.py"
BUDGET, BYBIT = "services/router/budget.py", "shared/bybit.py"
WORKER, RING = "services/worker/actor.py", "services/worker/ring.py"
GRID = "shared/instrument.py"


MISSED = 1 / 20  # of the bugs may be, and it still exits with 0


class Bug(NamedTuple):
    """One line of the source, and what a tired person would have written."""

    name: str
    file: str
    right: str
    wrong: str


BUGS = (
    Bug("an execution counts each time it comes", LEDGER,
        "return execution.exec_id not in self._seen and", "return"),
    Bug("a grant is not synced before it is given", KEEPER,
        "self._keep(change, durable=True)", "self._keep(change)"),
    Bug("an order goes although the disk took no intent", KEEPER,
        "if self._disk:  # no intent", "if False:  # no intent"),
    Bug("a timeout is a no", BYBIT, 'in REFUSED else "unknown"', 'in REFUSED else "refused"'),
    Bug("one not-found proves that an order never arrived", RECONCILE,
        "times + 1 >= NOT_FOUND_TIMES and waited", "True"),
    Bug("an order ends with its first Filled, whatever was executed", LEDGER,
        "order.status in TERMINAL and booked >= order.cum_exec_qty", "order.status in TERMINAL"),
    Bug("one slot too many", LEDGER,
        "self.slots() >= self._caps.max_slots", "self.slots() > self._caps.max_slots"),
    Bug("one symbol too many", LEDGER,
        "len(symbols) >= self._caps.max_symbols", "len(symbols) > self._caps.max_symbols"),
    Bug("what is unknown does not count against the caps", LEDGER,
        "return len(self.lots) +", "return sum(1 for lot in self.lots.values() if lot.bought) +"),
    Bug("an amended exit forgets what it has sold", ORDERS,
        "left = lot.bought - lot.sold_before", "left = lot.bought - lot.sold"),
    Bug("a bar may be used twice", LEDGER,
        "if ask.bar_start_ms <= self._used_ms[ask.symbol, ask.side]:", "if False:"),
    Bug("the bars used are forgotten at a restart", LEDGER,
        "self._used_ms.update(used_ms)", "pass"),
    Bug("the next exit has the number of the last", LEDGER,
        "exits=max(lot.exits, number + 1)", "exits=lot.exits"),
    Bug("an older word on an order is believed", LEDGER,
        "return earlier or known.status in TERMINAL", "return False"),
    Bug("a lot ends with its orders, whatever is left of it", LEDGER,
        "if not working and lot.bought == lot.sold:", "if not working:"),
    Bug("a round does not read the executions", KEEPER,
        'reversed(snapshot["executions"])', "()"),
    Bug("orders that turn up late are nobody's", KEEPER,
        "messages = self._first_look(now_ns) if first else self._adopt_orders(now_ns)",
        "messages = self._first_look(now_ns) if first else []"),
    Bug("open orders are not restored", LEDGER,
        "self.orders = {order.order_link_id: order for order in orders}", "self.orders = {}"),
    Bug("what is foreign is forgotten at a restart", LEDGER,
        "self.foreign.update(foreign or {})", "pass"),
    Bug("a forced sale closes lots and counts as foreign, too", LEDGER,
        "+= left * sign(execution.side)", "+= execution.exec_qty * sign(execution.side)"),
    Bug("grants are given in every mode", LEDGER, "if mode != msg.RUN:", "if False:"),
    Bug("a command without an answer is waited for, for ever", ROUTER,
        "if track.request and track.deadline_ns <= now_ns:", "if False:"),
    Bug("a symbol that the mode does not list stays as it was", ROUTER,
        "for symbol in self._positions.keys() - set(mode.symbols):", "for symbol in ():"),
    Bug("an older position is believed", ROUTER,
        "return version[0] == than[0] and version[1] < than[1]", "return False"),
    Bug("exits are not reduce-only", ROUTER,
        '"GTC", not entry, 0, now_ns', '"GTC", False, 0, now_ns'),
    Bug("the limits of the exchange are used twice over", BUDGET, "USED = 0.8", "USED = 2.0"),
    Bug("prices are rounded to ten times the places", GRID,
        "tick = instrument.tick_size", "tick = instrument.tick_size / 10"),
    Bug("a bar after a hole is taken for the next one", RING, "if start_ms != self.next_ms:",
        "self.next_ms = max(start_ms, self.next_ms)\n        if start_ms != self.next_ms:"),
    Bug("a clean round is enough, whatever the last one said", RECONCILE,
        'self.distrust("difference")', "pass"),
    Bug("an exit that sold too much takes nothing from the others", LEDGER,
        "spilled = () if lot.entry_id in self.orders else self._spill(lot)", "spilled = ()"),
)  # fmt: skip


def caught(bug, seeds, first):
    """(lives it took, what was seen); 0 lives if none of them saw it."""
    with tempfile.TemporaryDirectory(prefix="dm-bug-") as folder:
        copy = Path(folder)
        for part in ("services", "shared", "tests"):
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        file = copy / bug.file
        source = file.read_text()
        file.write_text(source.replace(bug.right, bug.wrong))
        words = ("--seeds", str(seeds), "--first", str(first), "--jobs", "1", "--stop")
        run = [sys.executable, "-m", "tests.simulation", *words]
        said = subprocess.run(run, cwd=copy, capture_output=True, text=True, check=False).stdout
    found = next((line for line in said.splitlines() if line.startswith("seed ")), "")
    if not found:
        return 0, "not seen"
    seed, _, what = found.removeprefix("seed ").partition(": ")
    return int(seed) - first + 1, what


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.planted", description=__doc__)
    parser.add_argument("--seeds", type=int, default=2_000, help="lives for each bug (2000)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (0)")
    parser.add_argument("--jobs", type=int, default=2, help="bugs at a time (2)")
    parser.add_argument("--only", default="", help="bugs whose name has this text")
    args = parser.parse_args()
    bugs, began, missed = [bug for bug in BUGS if args.only in bug.name], time.monotonic(), 0
    with ThreadPoolExecutor(args.jobs) as pool:
        found = pool.map(lambda bug: caught(bug, args.seeds, args.first), bugs)
        for bug, (lives, what) in zip(bugs, found, strict=True):
            missed += not lives
            print(f"{lives or 'missed':>6}  {bug.name}: {what[:110]}", flush=True)
    minutes = (time.monotonic() - began) / 60
    print(
        f"{len(bugs) - missed} of {len(bugs)} caught within {args.seeds} lives, {minutes:.0f} min"
    )
    return int(missed > MISSED * len(bugs))


if __name__ == "__main__":
    sys.exit(main())
