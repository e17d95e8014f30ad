"""A stage for the fault catalogue: the whole bot and the paper exchange in one thread.

Three symbols stand at 100.0 after a calm history; a test moves prices by hand, breaks things
through the exchange's faults and looks at what the bot, its ledger and the exchange hold.
"""

import sqlite3
from collections import deque
from decimal import Decimal

import numpy as np
import orjson

from services.backtest.replay import Replay
from services.keeper.actor import Keeper
from services.paper.market import MINUTE_MS, POINTS, Listing, Minute
from services.worker.actor import Worker
from shared import messages as msg
from shared.bus import STREAMS
from shared.settings import Settings

START_MS = 1_700_000_040_000  # a whole minute
SYMBOLS = ("AAAUSDT", "BBBUSDT", "CCCUSDT")
A, B, C = SYMBOLS
HISTORY = 400  # minutes
TICK, STEP = Decimal("0.1"), Decimal("0.01")
PLAIN = {
    "SIZE_USDT": Decimal(50),
    "PAPER_BOOK": "bare",
    "PAPER_RATE_LIMIT": 1000,
    "RATE_LIMIT": 1000,
    "PAPER_IP_LIMIT": 10**6,
}


class Calm:
    """Bars around 100.0 and 100.2 in turn: lower band 99.6 or so, upper band 100.6."""

    def __init__(self, symbols):
        grid = (TICK, STEP, STEP, Decimal(10_000), 480)
        self.listings = [Listing(symbol, *grid) for symbol in symbols]
        self._next_ms = START_MS - HISTORY * MINUTE_MS

    def skip_to(self, at_ms):
        pass

    def next(self):
        at_ms, self._next_ms = self._next_ms, self._next_ms + MINUTE_MS
        middle = 1000 if at_ms // MINUTE_MS % 2 else 1002
        path = np.full(POINTS, middle, np.int64)
        path[10], path[20] = middle + 2, middle - 2
        shape = (len(self.listings), 1)
        return Minute(at_ms, np.tile(path, shape).T, np.full(len(self.listings), 60.0))


class Stage:
    """One performance. `heard` is every message that was published, in order."""

    def __init__(self, symbols=SYMBOLS, **settings):
        self.settings = Settings(_env_file=None, **(PLAIN | settings))
        self.heard, self.price = [], dict.fromkeys(symbols, Decimal("100.0"))
        self.replay = Replay(self.settings, Calm(symbols), START_MS, self.heard.append, frames=True)
        self.venue = self.replay.venue
        for symbol in symbols:
            self.fault("venue", "hold", symbol=symbol)
        self.run(12)  # links, leverage, two rounds of reconciliation

    # Acts.

    def run(self, seconds):
        """Time goes on; every symbol trades at its price once a second."""
        for _ in range(int(seconds)):
            self.replay.run(self.replay.now().market_ms + 1_000)
            for symbol in self.price:
                self._trade(symbol)

    def to(self, symbol, price, seconds=0):
        """A symbol trades at a new price, and stays there."""
        self.price[symbol] = Decimal(str(price))
        self._trade(symbol)
        self.run(seconds)

    def fault(self, where, action, **terms):
        """One fault, or one act of the venue, now."""
        self.venue.control({"where": where, "action": action, **terms}, self.replay.now())
        self.replay.settle()

    def heal(self):
        """No fault any more; the symbols stand still again."""
        self.venue.heal(self.replay.now())
        for symbol in self.price:
            self.fault("venue", "hold", symbol=symbol)

    def rest(self, symbol=A, side="Buy"):
        """Bring the price near a band, until an entry rests there; its id."""
        self.to(symbol, "99.8" if side == "Buy" else "100.4", 2)
        (order,) = self.entries(symbol)
        return order.order_link_id

    def fill(self, symbol=A, side="Buy"):
        """An entry, filled whole; the id of the lot."""
        name = self.rest(symbol, side)
        self.to(symbol, "99.0" if side == "Buy" else "101.2", 1)
        return name

    def by_rest(self):
        """The trade socket is cut and stays silent: orders go by REST until it is healed."""
        self.fault("ws", "close", kind="trade")
        self.fault("ws", "half_open", kind="trade")

    def until(self, true, within):
        """Time goes on until something is true; how many seconds it took, `within` at most."""
        for second in range(within + 1):
            if true():
                return second
            self.run(1)
        raise AssertionError(f"not within {within} s")

    def swing(self, minutes, *symbols, base="100.0"):
        """Whole minutes like those of the history, around another price: the bands go along."""
        for _ in range(minutes):
            second = self.replay.now().market_ms % MINUTE_MS // 1_000
            self.run(59 - second if second < 59 else 0)
            odd = (self.replay.now().market_ms // MINUTE_MS + 1) % 2
            middle = Decimal(base) + (0 if odd else Decimal("0.2"))
            for move, seconds in (("0", 11), ("0.2", 10), ("-0.2", 10), ("0", 28)):
                for symbol in symbols:
                    self.price[symbol] = middle + Decimal(move)
                self.run(seconds)

    def restart(self, service, path):
        """A process ends and starts again; `path` is where the keeper's file goes meanwhile."""
        replay = self.replay
        old = getattr(replay, service)
        if service == "keeper":
            with sqlite3.connect(path) as file:
                old._store._db.backup(file)
            new = Keeper(replay.settings, str(path), replay._wall_ms)
        else:
            new = type(old)(replay.settings)
        setattr(replay, service, new)
        replay._actors[replay._actors.index(old)] = new
        for link in replay._doors.pop(old).links.values():
            link.close("the process has ended", replay.now())
        replay._wire = deque((to, message) for to, message in replay._wire if to is not old)
        replay._begin(new)
        replay.settle()

    def end(self, seconds=60):
        """Everything heals; a while later ledger and exchange agree, and entries are allowed."""
        self.heal()
        self.run(seconds)
        self.agree()
        assert self.mode().mode == msg.RUN
        assert all(0 <= lot.sold <= lot.bought for lot in self.ledger.lots.values())
        busy = {symbol for symbol in self.price if self.held(symbol) or self.at_venue(symbol)}
        assert self.ledger.symbols() <= busy  # no slot is left over

    # Looks.

    @property
    def now_s(self):
        """Simulated seconds."""
        return self.replay.now().mono_s

    def created(self, name):
        """Every order that the exchange ever made under an id of ours."""
        return [o for o in self.venue.matching.orders.values() if o.link_id == name]

    def stops(self, symbol=A):
        """Stop losses that wait at the exchange."""
        return [order for order in self.at_venue(symbol) if order.status == "Untriggered"]

    @property
    def ledger(self):
        """The keeper's ledger."""
        return self.replay.keeper._ledger

    def entries(self, symbol=A):
        """Entry orders that the ledger holds open."""
        found = self.ledger.orders.values()
        return [order for order in found if order.symbol == symbol and order.kind == msg.ENTRY]

    def exits(self, symbol=A):
        """Exit orders that the ledger holds open."""
        found = self.ledger.orders.values()
        return [order for order in found if order.symbol == symbol and order.kind == msg.EXIT]

    def lots(self, symbol=A):
        """Lots that hold something."""
        return [lot for lot in self.ledger.lots.values() if lot.symbol == symbol and lot.bought]

    def mode(self):
        """The mode as it was said last."""
        return next(m for m in reversed(self.heard) if isinstance(m, msg.Mode))

    def said(self, kind, **fields):
        """Messages of a kind whose fields have these values."""
        return [
            m
            for m in self.heard
            if isinstance(m, kind) and all(getattr(m, n) == v for n, v in fields.items())
        ]

    def sent(self, action, symbol=A, kind=msg.ENTRY):
        """Commands that left, by the ids of their orders."""
        requests = self.said(msg.OrderRequest, action=action, symbol=symbol, outcome="")
        is_exit = kind == msg.EXIT
        return [r for r in requests if bool(r.reduce_only) == is_exit or action == "cancel"]

    def at_venue(self, symbol=A):
        """Open orders at the exchange."""
        return [order for order in self.venue.matching.open_orders() if order.symbol == symbol]

    def held(self, symbol=A):
        """The position at the exchange, signed."""
        return self.venue.matching.wallet.position(symbol).size

    def outcomes(self, entry_id):
        """Why an entry was refused, as the ledger's file has it."""
        store = self.replay.keeper._store
        query = "SELECT outcome FROM outcomes WHERE entry_id = ?"
        return [outcome for (outcome,) in store._db.execute(query, (entry_id,))]

    def agree(self):
        """The ledger and the exchange hold the same, and the auditor saw nothing wrong."""
        ours = {s: self.ledger.held().get(s, Decimal(0)) for s in self.price}
        assert ours == {symbol: self.held(symbol) for symbol in self.price}
        executions = {row["execId"] for row in self.venue.matching.executions}
        assert self.ledger._seen == executions
        resting = {_name(o) for s in self.price for o in self.at_venue(s)} - {""}
        known = {o.order_link_id.rstrip("0123456789") if o.kind == msg.STOP else o.order_link_id
                 for o in self.ledger.orders.values()}  # fmt: skip
        assert known == resting
        assert list(self.venue.auditor.lines) == []

    def _trade(self, symbol):
        terms = {"symbol": symbol, "price": str(self.price[symbol]), "qty": "1"}
        self.fault("venue", "trade", **terms)


def _name(order):
    """How the ledger calls an order of the exchange; empty if it is not ours."""
    parent = order.terms.get("parentOrderLinkId", "")
    return order.link_id or (msg.stop_id(parent) if parent else "")


class Theatre(Stage):
    """A stage for what happens more rarely: to the market, to processes, by people."""

    # Acts.

    def operate(self, mode):
        """A person's wish: the keeper answers who asked, the others hear it from its next tick."""
        keeper, carried = self.replay.keeper, STREAMS["ledger"].carries
        for said in keeper.answer(msg.Control(mode, "test"), self.replay._now_ns):
            if type(said) not in carried:
                self.replay._publish(keeper.says, said)
        self.replay.settle()

    def by_hand(self, verb, **terms):
        """A person with our key does something at the exchange, past the bot."""
        self.replay._doors[self.replay.keeper]._call(verb, category="linear", **terms)
        self.replay.settle()

    def push(self, symbol=A, **changes):
        """A kline push that no exchange should make: the forming bar, but for these values."""
        at_ms, index = self.replay.now().market_ms, self.venue.public.index[symbol]
        row = self.venue.ticker.kline(index, self.venue.ticker.forming[index])
        frame = {"topic": f"kline.1.{symbol}", "type": "snapshot", "ts": at_ms}
        frame["data"] = [row | {"timestamp": at_ms} | changes]
        self.venue.sessions.publish(frame["topic"], orjson.dumps(frame), self.replay.now())
        self.replay.settle()

    def quote(self, symbol=A, **changes):
        """A quote that no worker made: the last one, but for these values."""
        at_ms = self.replay.now().market_ms
        said = self.last_quote(symbol)._replace(ts_ms=at_ms, **changes)
        self.replay._publish("quotes", said)
        self.replay.settle()

    def grant(self, name):
        """What the keeper answers if this entry is asked for now, whatever the router would do."""
        _, symbol, bar, letter = name.split("-")
        side, now_ns = "Buy" if letter == "B" else "Sell", self.replay._now_ns
        terms = (int(bar, 16) * 60_000, Decimal("99.5"), Decimal("0.50"), Decimal("0.4"))
        said = self.replay.keeper.answer(msg.Ask(name, symbol, side, *terms, 0, now_ns), now_ns)
        return next(m for m in said if isinstance(m, msg.Grant))

    def breathe(self, minutes, *symbols):
        """Whole minutes, from the next one on, in which nothing is filled: 100.0 and 100.5 in turn.

        Bands end up at 99.65 and 100.85 or so, and after an even number the price at 100.0.
        """
        self.run((MINUTE_MS - self.replay.now().market_ms % MINUTE_MS) // 1_000 - 1)
        for minute in range(minutes):
            still, spike = ("100.0", "100.5") if minute % 2 else ("100.5", "100.0")
            for price, seconds in ((still, 11), (spike, 5), (still, 44)):
                self.price |= dict.fromkeys(symbols or self.price, Decimal(price))
                self.run(seconds)
        self.run(1)

    def restart(self, service, path=""):
        """A process ends and starts again; `path` is where the keeper's file goes meanwhile."""
        if service != "worker":
            super().restart(service, path)
            return
        old, new = self.worker, Worker(self.settings, shard=(0, 1))
        self.replay._actors[self.replay._actors.index(old)] = new
        self.replay._begin(new)
        self.replay.settle()

    def listen(self):
        """From here on `requests` notes all that the exchange is asked: (second, path, code).

        The code is the HTTP status if that is an error, else the retCode; None for a lost answer.
        """
        self.requests, sessions = [], self.venue.sessions
        http, order, connect = self.venue.http, sessions._order, sessions.connect

        def by_http(request, now):
            answer = http(request, now)
            code = orjson.loads(answer.body)["retCode"] if answer.status == 200 else answer.status
            self.requests.append((now.mono_s, request.path, code))
            return answer

        def by_socket(message, now):
            answer = order(message, now)
            path = f"/v5/{message['op'].replace('.', '/')}"
            self.requests.append((now.mono_s, path, answer[0]["retCode"] if answer else None))
            return answer

        def by_connect(path, max_active, now):
            session = connect(path, max_active, now)
            self.requests.append((now.mono_s, path, 0 if session else 403))
            return session

        self.venue.http, sessions._order, sessions.connect = by_http, by_socket, by_connect

    # Looks.

    @property
    def worker(self):
        """The worker."""
        return next(a for a in self.replay._actors if a.service == "worker")

    def asked(self, path, since_s=0.0):
        """Requests whose path begins so, noted since then."""
        return [one for one in self.requests if one[1].startswith(path) and one[0] >= since_s]

    def link(self, service, name):
        """One websocket of a process, and its supervision."""
        return self.replay._doors[getattr(self.replay, service)].links[name]

    def last_quote(self, symbol=A):
        """What was said last of a symbol."""
        return self.said(msg.Quote, symbol=symbol)[-1]

    def entry_ids(self, symbol=A):
        """Every entry that was ever sent, in order."""
        return [request.order_link_id for request in self.sent("create", symbol)]

    def bars(self, symbol=A, count=20):
        """(the worker's last closed bars, the exchange's): open to close, oldest first."""
        ring = self.worker._symbols[symbol].ring
        index, until_ms = self.venue.public.index[symbol], ring.next_ms - 1
        theirs = self.venue.ticker.bars(index, 0, until_ms, count)[::-1]
        ours = ring.window(count)[:, :4].round(9).tolist()
        return ours, [[float(value) for value in row[1:5]] for row in theirs]
