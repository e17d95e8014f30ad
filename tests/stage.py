"""A stage for the fault catalogue: the whole bot and the paper exchange in one thread.

Three symbols stand at 100.0 after a calm history; a test moves prices by hand, breaks things
through the exchange's faults and looks at what the bot, its ledger and the exchange hold.
"""

import sqlite3
from collections import deque
from decimal import Decimal

import numpy as np

from services.backtest.replay import Replay
from services.keeper.actor import Keeper
from services.paper.market import MINUTE_MS, POINTS, Listing, Minute
from shared import messages as msg
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

    def swing(self, minutes, *symbols):
        """Whole minutes like those of the history: afterwards the bands are where they began."""
        for _ in range(minutes):
            now_ms = self.replay.now().market_ms
            self.run((MINUTE_MS - now_ms % MINUTE_MS) // 1_000)
            middle = Decimal("100.0" if now_ms // MINUTE_MS % 2 == 0 else "100.2")
            for move, seconds in (("0", 10), ("0.2", 10), ("-0.2", 10), ("0", 29)):
                for symbol in symbols:
                    self.to(symbol, middle + Decimal(move))
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
            link._close("the process has ended", replay.now())
        replay._wire = deque((to, message) for to, message in replay._wire if to is not old)
        replay._begin(new)
        replay.settle()

    def end(self, seconds=60):
        """Everything heals; a while later ledger and exchange agree, and entries are allowed."""
        self.heal()
        self.run(seconds)
        self.agree()
        assert self.mode().mode == msg.RUN

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
        query = "SELECT reason FROM outcomes WHERE entry_id = ? ORDER BY reason"
        return [reason for (reason,) in store._db.execute(query, (entry_id,))]

    def agree(self):
        """The ledger and the exchange hold the same, and the auditor saw nothing wrong."""
        ours = {s: self.ledger.held().get(s, Decimal(0)) for s in self.price}
        assert ours == {symbol: self.held(symbol) for symbol in self.price}
        executions = {row["execId"] for row in self.venue.matching.executions}
        assert self.ledger._seen == executions
        resting = {_name(o) for s in self.price for o in self.at_venue(s)} - {""}
        assert set(self.ledger.orders) == resting
        assert list(self.venue.auditor.lines) == []

    def _trade(self, symbol):
        terms = {"symbol": symbol, "price": str(self.price[symbol]), "qty": "1"}
        self.fault("venue", "trade", **terms)


def _name(order):
    """How the ledger calls an order of the exchange; empty if it is not ours."""
    parent = order.terms.get("parentOrderLinkId", "")
    return order.link_id or (msg.stop_id(parent) if parent else "")
