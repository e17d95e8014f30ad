"""world: every process, the exchange, the bus and the disk in one thread, on virtual time.

The same actors as in life. Between them lies a bus that loses, repeats and delays, under the keeper
a disk that forgets what was not synced; every process may die at any hook, message or write. One
seed is one life: the same plan gives the same trace.
"""

import hashlib
from collections import Counter, defaultdict, deque
from contextlib import contextmanager
from decimal import Decimal
from random import Random

from services.backtest.replay import NS, _asked, _health
from services.backtest.wire import Door
from services.ingestor.actor import Ingestor
from services.keeper.actor import Keeper
from services.paper.gate import Now
from services.paper.ticker import Ticker
from services.paper.venue import Venue
from services.router.actor import Router
from services.worker.actor import Worker
from shared import messages as msg
from shared.bus import ASK_DEADLINE_NS, STREAMS
from shared.settings import Settings
from tests.simulation.disk import Crash, Disk
from tests.stage import PLAIN, START_MS, Calm, _name

D = Decimal
STEP_MS = 100
TICK_MS = 1_000
HEAL_S = 100
BARS = 20  # that a worker must have as the exchange has them, in the end ...
LAST_BARS = 2  # ... and whenever its bands have a say
DOUBT_MS = 5_000  # after a difference: between the first clean round and the second
WISHED_MS = 3_000  # a grant that was given before may still leave


class Breach(AssertionError):
    """An invariant does not hold."""


class Process:
    """One role: alive with its queues, or down until a moment."""

    def __init__(self, name, make):
        self.name, self.make = name, make
        self.slot = int(name.rpartition("-")[2]) if "-" in name else 0
        self.actor = self.door = None
        self.up_ms = self.next_tick_ms = self.frozen_ms = self.pid = 0
        self.doom = None  # steps until it dies
        self.power = False  # ... and everything else with it
        self.skew_ms = 0
        self.gone = False  # for good: another generation has its symbols
        self.queues = defaultdict(deque)  # sender and stream: (due_ms, kind, ...)
        self.pending = {}  # ask: (deadline_ms, message)

    def step(self):
        """One more moment at which it may die."""
        if self.doom is not None:
            self.doom -= 1
            if self.doom < 0:
                raise Crash


class World:
    """One life. `plan` has settings, symbols, seconds and acts; `folder` is for the disk."""

    def __init__(self, plan, folder):
        self.plan, self.chance = plan, Random(plan.seed)
        given = PLAIN | plan.settings
        self.settings = Settings(_env_file=None, PAPER_ACK_MS=0, **given)
        self.price = {f"{chr(65 + i) * 3}USDT": D("100.0") for i in range(plan.symbols)}
        self.symbols = list(self.price)
        self.ticker = Ticker(Calm(self.symbols))
        self.ticker.warm_up(START_MS)
        self.now_ms = START_MS
        self.venue = Venue(self.settings, self.ticker)
        self.venue.restored(START_MS)
        self.disk = Disk(folder, self.chance)
        self.rules = []  # of the bus: (until_ms, stream, what, terms)
        self.acts = deque(sorted(plan.acts, key=lambda act: act[0]))
        self.seen = Counter()  # what has happened: faults, edges, outcomes
        self.quotes, self.mode, self.wish_ms = {}, None, None
        self._hash, self._asks, self._disk_until = hashlib.sha256(), 0, 0
        self._marks, self._versions, self._differed = {}, {}, {}
        self._wished = ()  # by a person, when the copy was made
        self._forgotten = set()  # entries that a ledger from a copy knows nothing of
        self.processes = {}
        self._add("ingestor", lambda: Ingestor(self.settings))
        self._add("keeper", self._keeper)
        self._add("router", lambda: Router(self.settings))
        self._generation(plan.shards)
        for process in self.processes.values():  # any order
            process.up_ms = START_MS + self.chance.randrange(0, 2_000, STEP_MS)
        self._hold()

    # Life.

    def live(self):
        """Chaos, then healing; raises Breach, or whatever a hook raises."""
        self.run(self.plan.seconds)
        self._heal()
        self.run(HEAL_S)
        self._quiet()
        return self.trace

    def run(self, seconds):
        """So much of it."""
        for _ in range(int(seconds * 1_000 / STEP_MS)):
            self._step()

    def entries(self):
        """Entries that the exchange ever made, by id."""
        names = (o.link_id for o in self.venue.matching.orders.values() if not o.reduce_only)
        return Counter(name for name in names if name)

    @property
    def trace(self):
        """A digest of all that was said and done so far."""
        return self._hash.hexdigest()

    def now(self):
        """This moment by the exchange's clocks."""
        return self.venue.at(self.now_ms, self.now_ms, self.now_ms / 1000)

    def _step(self):
        self.now_ms += STEP_MS
        self.venue.keep_up(self.now())
        for point in self.ticker.run(self.now_ms):
            self.venue.step(point, self.now())
        self.venue.topics.catch_up(self.now_ms)
        while self.acts and self.acts[0][0] * 1_000 <= self.now_ms - START_MS:
            _, name, *terms = self.acts.popleft()
            getattr(self, f"_act_{name}")(*terms)
        slot = self.now_ms // STEP_MS % 10
        for index, symbol in enumerate(self.symbols):
            if index % 10 == slot:
                self._trade(symbol)
        if self._disk_until and self.now_ms >= self._disk_until:
            self.disk.full, self._disk_until = False, 0
        for process in list(self.processes.values()):
            self._wake(process)
        self._settle()
        self._always()

    def _wake(self, process):
        """Start what is due to start, tick what is due to tick."""
        if process.actor is None:
            if not process.gone and self.now_ms >= process.up_ms:
                self._begin(process)
            return
        if self.now_ms < max(process.next_tick_ms, process.frozen_ms):
            return
        if process.frozen_ms:  # it wakes: what waited comes before its tick, as in life
            process.frozen_ms = 0
            return
        process.next_tick_ms = max(process.next_tick_ms + TICK_MS, self.now_ms)
        late = [key for key, (at_ms, _) in process.pending.items() if at_ms <= self.now_ms]
        for _, message in [process.pending.pop(key) for key in late]:
            self._call(process, "handle", msg.NoAnswer(message))
        self._call(process, "tick")
        if process.actor:
            health = _health(process.actor)._replace(pid=process.pid, slot=process.slot)
            self._publish(process, process.actor.says, health)

    def _begin(self, process):
        actor = process.actor = process.make()
        process.pid += 1
        process.doom, process.next_tick_ms = None, self.now_ms
        if actor.links:
            process.door = Door(
                self.settings, self.venue, actor.links, lambda: self._local(process)
            )
        self.seen[f"start {process.name.partition('-')[0]}"] += 1
        self._call(process, "start")

    def _local(self, process):
        """This moment by a process's own wall clock."""
        return Now(self.now_ms + process.skew_ms, self.now_ms, self.now_ms / 1000)

    def _call(self, process, hook, *terms):
        """One hook and what follows from it, unless the process dies before the end of it."""
        if process.actor is None:
            return
        with self._mortal(process):
            process.step()
            said = getattr(process.actor, hook)(*terms, self.now_ms * NS)
            process.step()
            self._send(process, said)

    @contextmanager
    def _mortal(self, process):
        """What a process does, up to the moment at which it dies."""
        try:
            yield
        except Crash:
            self._die(process)
            if process.power:
                self._act_power()

    def _die(self, process):
        self.seen[f"crash {process.name.partition('-')[0]}"] += 1
        if process.name == "keeper":
            self.disk.killed() if not process.power else self.disk.cut()
        self._note("died", process.name)
        if process.door:
            for link in process.door.links.values():
                link.close("the process has ended", self._local(process))
        process.actor = process.door = None
        process.queues.clear()
        process.pending.clear()
        process.frozen_ms, process.doom = 0, None

    # The bus.

    def _settle(self):
        """Deliver what is due, one of each stream in turn, in an order that chance gives."""
        while True:
            moved = False
            for process in list(self.processes.values()):
                if process.door and self.now_ms >= process.frozen_ms:
                    for message in process.door.poll(self._local(process)):
                        moved = True
                        self._call(process, "handle", message)
            ready = [
                (process, key)
                for process in self.processes.values()
                if self.now_ms >= process.frozen_ms
                for key, queue in process.queues.items()
                if queue and queue[0][0] <= self.now_ms
            ]
            self.chance.shuffle(ready)
            for process, key in ready:
                if queue := process.queues.get(key):
                    self._deliver(process, *queue.popleft()[1:])
            if not (moved or ready):
                return

    def _deliver(self, process, kind, message, asker=None, number=0):
        if process.actor is None:
            return
        if kind == "say":
            self._call(process, "handle", message)
        elif kind == "reply":
            if process.pending.pop(number, None):
                self._call(process, "handle", message)
        else:
            self._answer(process, message, asker, number)

    def _answer(self, process, message, asker, number):
        stream = next(s for s in process.actor.answers if type(message) in STREAMS[s].carries)
        carried = STREAMS[stream].carries
        with self._mortal(process):
            process.step()
            said = process.actor.answer(message, self.now_ms * NS)
            self._granted(process.actor, said)
            process.step()
            for one in said:
                process.step()
                if type(one) in carried and asker is not None:
                    self._push(asker, (process.name, stream), stream, ("reply", one, None, number))
                    asker = None
                else:
                    self._publish(process, process.actor.says, one)

    def _send(self, process, messages):
        for message in messages:
            process.step()
            if process.door and isinstance(message, Door.takes):
                self._leaves(message)
                process.door.send(message)
            if type(message) in STREAMS[process.actor.says].carries:
                self._publish(process, process.actor.says, message)
            elif stream := _asked(process.actor, message):
                self._asks += 1
                process.pending[self._asks] = (self.now_ms + ASK_DEADLINE_NS // NS, message)
                owner = self.processes[STREAMS[stream].owner]
                terms = ("ask", message, process, self._asks)
                self._push(owner, (process.name, stream), stream, terms)

    def _leaves(self, message):
        """No entry leaves before its intent is on disk (V3)."""
        if isinstance(message, msg.OrderRequest) and not message.outcome:
            self._note("sent", message.action, message.order_link_id, message.qty, message.price)
            entry = message.action == "create" and not message.reduce_only
            if entry and message.order_link_id not in self.disk.intents:
                raise Breach(f"V3 {message.order_link_id} leaves without a durable intent")
            if entry and self.wish_ms and self.now_ms - self.wish_ms > WISHED_MS:
                raise Breach(f"V11 {message.order_link_id} leaves although a person said no")

    def _granted(self, keeper, said):
        """No entry is granted while the mode forbids it (V11)."""
        for grant in said:
            if isinstance(grant, msg.Grant) and grant.granted:
                mode, why = keeper._mode_now(self.now_ms * NS)
                if mode != msg.RUN:
                    raise Breach(f"V11 {grant.order_link_id} is granted in {mode} {why}")

    def _publish(self, process, stream, message):
        self._note(stream, message)
        if isinstance(message, msg.Quote):
            self.quotes[message.symbol] = message
            if not message.gate:
                self._whole(process.actor._symbols[message.symbol].ring, message.symbol)
        elif isinstance(message, msg.Mode):
            self._doubts(message)
            self.mode = message
            if message.reason.endswith("filled beyond its quantity"):
                raise Breach(f"V13 {message.reason}")
        elif isinstance(message, msg.Position):
            self._grows(message)
        elif isinstance(message, msg.Touch):
            self.seen[f"touch {message.outcome}"] += 1
        topic = msg.topic(message).decode()
        for hearer in self.processes.values():
            if hearer.actor and topic.startswith(hearer.actor.hears.get(stream, ("\0",))):
                self._push(hearer, (process.name, stream), stream, ("say", message))

    def _whole(self, ring, symbol):
        """Nobody quotes on bars of which one is missing (V12)."""
        ours, theirs = self._compared(ring, symbol, LAST_BARS)
        _same(f"V12 the bars under a quote of {symbol}", ours, theirs)

    def _doubts(self, mode):
        """After a difference entries wait for two clean rounds of the same keeper."""
        life = self.processes["keeper"].pid
        if mode.differences:
            self._differed[life] = self.now_ms
        elif mode.mode == msg.RUN and self.now_ms - self._differed.get(life, 0) < DOUBT_MS:
            raise Breach("V21 RUN although the books have just differed")

    def _believed(self):
        """What the router believes of a symbol never gets older, while it lives (V19)."""
        router = self.processes["router"]
        for symbol, position in router.actor._positions.items() if router.actor else ():
            key = (router.pid, symbol, position.version[0])
            if position.version[1] < self._versions.get(key, 0):
                raise Breach(f"V19 the router believes an older {symbol}")
            self._versions[key] = position.version[1]

    def _grows(self, position):
        """What an order has filled only grows (V17), while one keeper remembers it."""
        life = self.processes["keeper"].pid
        for order in position.orders:
            key = (life, order.order_link_id)
            if order.cum_exec_qty < self._marks.get(key, 0):
                raise Breach(f"V17 {order.order_link_id} has filled less than before")
            self._marks[key] = order.cum_exec_qty

    def _push(self, to, key, stream, terms):
        """Onto the wire: never overtaken by what the same sender says later on the same stream."""
        due_ms, copies = self.now_ms, 1
        for until_ms, where, what, amount in self.rules:
            if self.now_ms >= until_ms or where not in ("", stream):
                continue
            if what == "delay":
                due_ms += self.chance.randrange(0, amount)
            elif self.chance.random() < amount:
                copies = 0 if what == "drop" else copies * 2
                self.seen[f"bus {what}"] += 1
        if to.actor is None:
            return
        queue = to.queues[key]
        for _ in range(copies):
            queue.append((max(due_ms, queue[-1][0] if queue else 0), *terms))

    # Acts.

    def _act_move(self, symbol, place, beyond_pct):
        """The price of a symbol to a band or a resting exit, and so far beyond it."""
        quote = self.quotes.get(symbol)
        price, way = (quote.lower, -1) if quote and place == "lower" else (0, 1)
        if quote and place == "upper":
            price = quote.upper
        exits = [o for o in self.venue.matching.open_orders() if o.symbol == symbol]
        exits = [o for o in exits if "x" in o.link_id.rpartition("-")[2]]
        if place == "exit" and exits:
            price, way = float(exits[0].price), 1 if exits[0].side == "Sell" else -1
        if price:
            moved = round(D(str(price * (1 + way * beyond_pct / 100))), 1)
            self.price[symbol] = min(max(moved, D(80)), D(120))
        self._trade(symbol)

    def _act_fault(self, where, action, terms):
        self.venue.control({"where": where, "action": action, **terms}, self.now())
        self.seen[f"{where} {action}"] += 1

    def _act_bus(self, stream, what, amount, for_s):
        self.rules.append((self.now_ms + for_s * 1_000, stream, what, amount))

    def _act_crash(self, name, steps, down_ms):
        """A process dies so many steps from now, and is back a while later."""
        for process in self.processes.values():
            if process.name.startswith(name) and process.actor:
                process.doom, process.power = steps, False
                process.up_ms = self.now_ms + down_ms

    def _act_blackout(self, steps, down_ms):
        """The machine loses its power when the keeper has gone so many steps."""
        for process in self.processes.values():
            process.up_ms = self.now_ms + down_ms
        keeper = self.processes["keeper"]
        keeper.doom, keeper.power = steps, True

    def _act_power(self):
        self.seen["blackout"] += 1
        self.processes["keeper"].power = False
        self._end_all(1_000)

    def _end_all(self, down_ms):
        for process in self.processes.values():
            process.up_ms = max(process.up_ms, self.now_ms + down_ms)
            if process.actor:
                self._die(process)

    def _act_freeze(self, name, for_ms):
        """SIGSTOP; then it goes on as if nothing had been."""
        for process in self.processes.values():
            if process.name.startswith(name):
                process.frozen_ms = self.now_ms + for_ms
        self.seen["freeze"] += 1

    def _act_disk(self, for_ms):
        self.disk.full, self._disk_until = True, self.now_ms + for_ms
        self.seen["disk full"] += 1

    def _act_backup(self):
        self.disk.backup()
        self._wished = (self.wish_ms,)

    def _act_restore(self, down_ms):
        """All ends, and begins again with a ledger that knows nothing of what was since."""
        if not self._wished:
            return  # nobody made a copy
        self._end_all(down_ms)
        self._forgotten |= self.disk.restore()  # their bars may be used again: the exchange refuses
        (self.wish_ms,) = self._wished
        self.seen["restore"] += 1

    def _act_skew(self, name, ms):
        """A process's wall clock is wrong."""
        self.processes[name].skew_ms = ms
        self.seen["skew"] += 1

    def _act_operate(self, mode):
        """A person asks the keeper; nobody waits for the answer."""
        keeper = self.processes["keeper"]
        actor = keeper.actor
        if actor and self.now_ms >= keeper.frozen_ms:
            self._answer(keeper, msg.Control(mode, "person"), None, 0)
            if mode == msg.RUN:
                self.wish_ms = None
            elif keeper.actor is actor and not self.disk.full:
                self.wish_ms = self.now_ms
        self.seen["operate"] += 1

    def _act_scale(self, shards):
        """Another generation of workers; the old one goes on for a moment."""
        old = [p for p in self.processes.values() if p.name.startswith("worker")]
        self._generation(shards)
        for process in old:
            process.gone = True
            if process.actor:
                process.doom = 50
        self.seen["scale"] += 1

    # The exchange.

    def _hold(self):
        for symbol in self.symbols:
            self.venue.control({"where": "venue", "action": "hold", "symbol": symbol}, self.now())

    def _trade(self, symbol):
        terms = {"symbol": symbol, "price": str(self.price[symbol]), "qty": "1"}
        self.venue.control({"where": "venue", "action": "trade", **terms}, self.now())

    # Healing and judging.

    def _heal(self):
        self.acts.clear()
        self.rules.clear()
        self.disk.full = False
        self.venue.heal(self.now())
        self._hold()
        for process in self.processes.values():
            process.skew_ms = process.frozen_ms = 0
            process.doom, process.power = (process.doom if process.gone else None), False
        self._act_resume()
        begun_s = max(self.now_ms, *(process.up_ms for process in self.processes.values())) / 1_000
        self.acts.append((begun_s - START_MS / 1_000 + 3, "resume"))  # its last start may be a loop

    def _act_resume(self):
        """A person says RUN until the keeper has heard it."""
        if self.processes["keeper"].actor is None:
            self.acts.append(((self.now_ms - START_MS) / 1_000 + 1, "resume"))
        else:
            self._act_operate(msg.RUN)

    def _always(self):
        """What holds at every moment."""
        for line in self.venue.auditor.lines:
            if not ("V5" in line and set(line.split()) & self._forgotten):
                raise Breach(line)
        keeper = self.processes["keeper"].actor
        if keeper is not None:
            self._books(keeper._ledger)
        self._believed()
        self._settled()

    def _settled(self):
        """No entry is called gone while it rests (V10)."""
        if self.disk.given_up:
            wrong = self.disk.given_up & {o.link_id for o in self.venue.matching.open_orders()}
            _same("V10 entries called gone, and there", wrong, set())
            self.disk.given_up.clear()

    def _books(self, ledger):
        """Nothing is granted beyond the caps (V9); what others did or a copy forgot is on top."""
        foreign = sum(1 for qty in ledger.foreign.values() if qty)
        taken_back = len(self._forgotten & ledger.lots.keys())
        if ledger.slots() > self.settings.MAX_SLOTS + foreign + taken_back:
            raise Breach(f"V9 {ledger.slots()} slots")

    def _quiet(self):
        """What holds once everything is healed and has had its time."""
        keeper = self.processes["keeper"].actor
        ledger, matching = keeper._ledger, self.venue.matching
        ours = {s: ledger.held().get(s, D(0)) for s in self.symbols}
        theirs = {s: matching.wallet.position(s).size for s in self.symbols}
        _same("V1 positions", ours, theirs)
        _same("V2 executions", ledger._seen, {row["execId"] for row in matching.executions})
        resting = {_name(order) for order in matching.open_orders()} - {""}
        stem = {o.order_link_id.rstrip("0123456789") if o.kind == msg.STOP else o.order_link_id
                for o in ledger.orders.values()}  # fmt: skip
        _same("V10 open orders", stem, resting)
        busy = {s for s in self.symbols if theirs[s]} | {o.symbol for o in matching.open_orders()}
        _same("V9 symbols", ledger.symbols() - busy, set())
        wrong = [lot for lot in ledger.lots.values() if not 0 <= lot.sold <= lot.bought]
        _same("V9 lots oversold", wrong, [])
        if self.mode.mode != msg.RUN:
            raise Breach(f"V21 mode {self.mode.mode} {self.mode.reason}")
        stuck = [o for o in ledger.orders.values() if o.status == "Granted"]
        _same("V20 intents without an end", stuck, [])
        left = {x.entry_id: x.bought - x.sold for x in ledger.lots.values() if x.bought > x.sold}
        exits = {}
        for order in ledger.orders.values():
            if order.kind == msg.EXIT:
                exits[order.order_link_id.rpartition("x")[0]] = order.qty - order.cum_exec_qty
        _same("V20 what is held, and what its exits sell", left, exits)
        _same("V19 the router's mode", self.processes["router"].actor._mode.mode, msg.RUN)
        for symbol, position in self._told().items():
            _same(f"V19 the router's {symbol}", position, ledger.position(symbol))
        for symbol, (ours, theirs) in self._bars().items():
            _same(f"V19 the worker's bars of {symbol}", ours, theirs)

    def _told(self):
        """What the router believes, but for version and mark, which may be older."""
        router, ledger = self.processes["router"].actor, self.processes["keeper"].actor._ledger
        symbols = router._positions.keys() | ledger.symbols()
        now = {s: ledger.position(s) for s in symbols}
        moves = {s: {"version": x.version, "mark_price": x.mark_price} for s, x in now.items()}
        empty = msg.Position("", (), (), ())
        return {s: router._positions.get(s, empty)._replace(**moves[s]) for s in symbols}

    def _bars(self):
        """The last closed bars of each symbol, open to close: (its worker's, the exchange's). An
        exchange may give fewer than were asked for, as it does of a symbol that it has just listed.
        """
        workers = [p.actor for p in self.processes.values() if not p.gone and "worker" in p.name]
        rings = {s: one.ring for worker in workers for s, one in worker._symbols.items()}
        return {symbol: self._compared(rings[symbol], symbol, BARS) for symbol in self.symbols}

    def _compared(self, ring, symbol, most):
        """The last closed bars of a symbol, open to close: (a worker's, the exchange's)."""
        count = max(1, min(most, ring.count))
        theirs = self.ticker.bars(self.symbols.index(symbol), 0, ring.next_ms - 1, count)[::-1]
        ours = ring.window(count)[:, :4].round(9).tolist()
        return ours, [[float(value) for value in row[1:5]] for row in theirs]

    # Wiring.

    def _add(self, name, make):
        self.processes[name] = Process(name, make)

    def _keeper(self):
        process = self.processes["keeper"]
        self.disk.step = process.step
        clock = lambda: self._local(process).wall_ms  # noqa: E731
        return Keeper(self.settings, "", clock, self.disk.open)

    def _generation(self, shards):
        first = sum(name.startswith("worker") for name in self.processes)
        for index in range(shards):
            shard = (index, shards)
            self._add(f"worker-{first + index}", lambda shard=shard: Worker(self.settings, shard))

    def _note(self, *what):
        self._hash.update(repr(what).encode())


def _same(what, ours, theirs):
    if ours != theirs:
        raise Breach(f"{what}: {ours} and not {theirs}")
