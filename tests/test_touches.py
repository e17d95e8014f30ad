"""Every band that was touched comes to exactly one outcome, by the clock and by the ledger's word.

First the core by itself, then a router and a keeper together with an exchange of a few lines.
"""

from collections import Counter
from decimal import Decimal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.keeper.actor import Keeper
from services.router.actor import Router
from services.router.touches import OVER_NS, Touches
from shared import messages as msg
from shared.settings import Settings

ANY_SPEED = {
    "derandomize": True,
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow],
}

D = Decimal
NS = 1_000_000_000
T0 = 1_000 * NS
NAMES = ("AUSDT", "BUSDT")
BAR_MS = 28_000_000 * 60_000
NEAR, FAR = 0.3, 0.5  # BAND_PROXIMITY_PCT, BAND_OVERSHOOT_PCT
PRICES = {"Buy": 95.0, "Sell": 101.0}  # within 5 % of the last price, 98


def quote(
    zone="ARM", gate="", side="Buy", bar=0, ts_ms=1, symbol="AUSDT", distance=0.1, lower=95.5
):
    rest = (1.275, lower, 104.5, 98.0, distance, 2.0, BAR_MS + bar * 60_000, ts_ms, 77, 88)
    return msg.Quote(symbol, side, PRICES[side], zone, gate, *rest)


def name_of(q):
    return msg.entry_id(q.symbol, q.side, q.bar_start_ms)


def outcomes(said):
    return {touch.entry_id: touch.outcome for touch in said}


@pytest.fixture
def touches():
    return Touches(NEAR, FAR)


# What a touch is.


@pytest.mark.parametrize(
    ("touched", "outcome"),
    [
        (quote(), "stale"),  # nobody has looked at it yet
        (quote("NONE", "volatility"), "volatility"),  # it would have been armed but for a gate
        (quote("NONE", "volatility", distance=0.3), "volatility"),
        (quote("NONE", "volatility", distance=-0.5), "volatility"),
        (quote("NONE", "volatility", distance=0.31), None),  # out of the zone of creation
        (quote("NONE", "volatility", distance=-0.51), None),
        (quote("NONE", "warming_up", distance=0.0, lower=0.0), None),  # no bands yet
        (quote("NONE", "volatility", distance=float("nan")), None),
        (quote("HOLD", distance=0.4), None),
        (quote("NONE", distance=0.1), None),
    ],
)
def test_a_touch_is_an_armed_quote_or_one_that_only_a_gate_keeps_from_it(touches, touched, outcome):
    assert touches.quoted(touched, T0) == []
    (*said,) = touches.quoted(quote("NONE", bar=1), T0)
    expected = msg.Touch(name_of(touched), "AUSDT", "Buy", BAR_MS, outcome)
    assert said == ([expected] if outcome else [])


def test_a_touch_is_told_once_when_its_bar_is_over(touches):
    touches.quoted(quote(), T0)
    assert touches.quoted(quote(ts_ms=2), T0) == []
    assert len(touches.quoted(quote("NONE", bar=1), T0)) == 1
    assert touches.quoted(quote("NONE", bar=2), T0) == []


def test_both_sides_of_a_bar_are_touches_of_their_own(touches):
    touches.quoted(quote(), T0)
    touches.quoted(quote(side="Sell"), T0)
    touches.because("AUSDT", msg.entry_id("AUSDT", "Sell", BAR_MS), "guard")
    said = touches.quoted(quote("NONE", bar=1), T0)
    assert sorted(outcomes(said).values()) == ["guard", "stale"]


def test_a_quote_of_an_earlier_bar_touches_nothing(touches):
    """Two generations of workers may speak at once."""
    touches.quoted(quote("NONE", bar=1), T0)
    touches.quoted(quote(bar=0), T0)
    assert touches.quoted(quote("NONE", bar=2), T0) == []


def test_the_last_reason_counts_until_there_is_an_order(touches):
    touches.quoted(quote(), T0)
    for reason in ("budget", "max_slots"):
        touches.because("AUSDT", name_of(quote()), reason)
    assert outcomes(touches.quoted(quote(bar=1), T0)) == {name_of(quote()): "max_slots"}
    for reason in ("budget", "order", "halted"):
        touches.because("AUSDT", name_of(quote(bar=1)), reason)
    touches.quoted(quote(bar=1, ts_ms=2), T0)
    assert outcomes(touches.quoted(quote("NONE", bar=2), T0)) == {name_of(quote(bar=1)): "order"}


def test_a_reason_for_what_was_not_touched_is_no_touch(touches):
    touches.because("AUSDT", name_of(quote()), "halted")
    touches.quoted(quote("NONE"), T0)
    touches.because("AUSDT", name_of(quote()), "halted")
    assert touches.quoted(quote("NONE", bar=1), T0) == []


def test_a_symbol_that_fell_silent_is_told_by_the_clock_and_only_once(touches):
    touches.quoted(quote(), T0)
    touches.quoted(quote(symbol="BUSDT"), T0 + 1)
    assert touches.over(T0 + OVER_NS) == []
    assert [touch.symbol for touch in touches.over(T0 + OVER_NS + 1)] == ["AUSDT"]
    assert touches.over(T0 + OVER_NS + 1) == []
    touches.quoted(quote(ts_ms=2), T0 + OVER_NS + 2)  # the same bar goes on
    assert touches.quoted(quote("NONE", bar=1), T0 + OVER_NS + 3) == []


SYMBOLS = st.sampled_from(NAMES)
SIDES = st.sampled_from(["Buy", "Sell"])
EVENTS = st.lists(
    st.one_of(
        st.tuples(
            *(st.just("quote"), SYMBOLS, SIDES, st.sampled_from(["ARM", "HOLD", "NONE"])),
            *(st.sampled_from(["", "volatility"]), st.sampled_from([-1, 0, 0, 0, 1, 3])),
        ),
        st.tuples(
            st.just("because"), SYMBOLS, SIDES, st.sampled_from(["order", "guard", "budget"])
        ),
        st.tuples(st.just("wait"), st.sampled_from([NS, OVER_NS, OVER_NS + 1])),
    ),
    max_size=40,
)


@settings(max_examples=200, **ANY_SPEED)
@given(EVENTS)
def test_touches_are_the_sum_of_their_outcomes_for_any_sequence_of_quotes(events):
    """`touched` is the model: the id of each touch, and the last reason before it was told."""
    core, now_ns, said, touched, bars = Touches(NEAR, FAR), T0, [], {}, dict.fromkeys(NAMES, 0)
    for kind, *what in events:
        if kind == "wait":
            now_ns += what[0]
            said += core.over(now_ns)
        elif kind == "because":
            symbol, side, reason = what
            name = msg.entry_id(symbol, side, BAR_MS + bars[symbol] * 60_000)
            core.because(symbol, name, reason)
            if name not in outcomes(said) and touched.get(name, "order") != "order":
                touched[name] = reason
        else:
            symbol, side, zone, gate, step = what
            bar = max(0, bars[symbol] + step)
            q = quote(zone, gate, side, bar, symbol=symbol)
            said += core.quoted(q, now_ns)
            if bar >= bars[symbol]:
                bars[symbol] = bar
                if zone == "ARM" or gate:
                    touched.setdefault(name_of(q), gate or "stale")
    said += core.over(now_ns + OVER_NS + 1)
    assert Counter(touch.entry_id for touch in said) == Counter(dict.fromkeys(touched, 1))
    assert outcomes(said) == touched


# The router and the keeper together.

INSTRUMENTS = msg.Instruments(
    tuple(
        msg.Instrument(n, D("0.01"), D("0.1"), D("0.1"), D(1000), D(5), "Trading", 480)
        for n in NAMES
    )
)
FATES = ("rests", "filled", "post_only", "refused", "lost")
WORDS = {"filled": "filled", "post_only": "post_only", "refused": "refused", "lost": "not_accepted"}


class Pair:
    """Both actors, and an exchange that does with each entry what `fates` says in turn."""

    def __init__(self, fates):
        config = Settings(_env_file=None, SIZE_USDT=D(20), MAX_SLOTS=3, DAILY_LOSS_PCT=0)
        self.router = Router(config)
        self.keeper = Keeper(config, ":memory:", lambda: 0)
        self.now_ns, self.fates, self.told, self.fate = T0, list(fates), [], {}
        self.orders, self.executions = {}, []
        self._from_keeper(self.keeper.start(T0))
        self._from_keeper(self.keeper.handle(msg.Link("private", True), T0))
        self._from_router(self.router.start(T0))
        for message in (msg.Link("trade", True), INSTRUMENTS):
            self.hear(message)
        self.wait(2)

    def hear(self, message):
        """The router hears it; all that follows is done at once."""
        self._from_router(self.router.handle(message, self.now_ns))

    def wait(self, seconds):
        for _ in range(seconds):
            self.now_ns += NS
            for service in ("ingestor", "router"):
                health = msg.Health(service, 0, 1, True, "", "", 0, {}, {}, 0, 0, "")
                self.keeper.handle(health, self.now_ns)
            self._from_keeper(self.keeper.tick(self.now_ns))
            self._from_router(self.router.tick(self.now_ns))

    def rows(self):
        """The table of outcomes."""
        found = self.keeper._store._db.execute("SELECT entry_id, outcome FROM outcomes")
        return dict(found.fetchall())

    def _from_router(self, messages):
        for message in messages:
            if isinstance(message, msg.Ask | msg.LedgerAsk):
                self._from_keeper(self.keeper.answer(message, self.now_ns))
            elif isinstance(message, msg.Fetch):
                self.hear(msg.Fetched(message, ()))
            elif isinstance(message, msg.OrderRequest | msg.Touch):
                self.told += [message] if isinstance(message, msg.Touch) else []
                self._from_keeper(self.keeper.handle(message, self.now_ns))
                if isinstance(message, msg.OrderRequest) and not message.outcome:
                    self._exchange(message)

    def _from_keeper(self, messages):
        for message in messages:
            if isinstance(message, msg.Fetch):
                self._from_keeper(self.keeper.handle(self._fetched(message), self.now_ns))
            elif isinstance(message, msg.Grant | msg.FullSet | msg.Position | msg.Mode):
                self.hear(message)

    def _fetched(self, ask):
        resting = [order for order in self.orders.values() if order.order_status == "New"]
        mine = [o for o in self.orders.values() if o.order_link_id == ask.order_link_id]
        held = Counter()
        for execution in self.executions:
            held[execution.symbol] += execution.exec_qty * (1 if execution.side == "Buy" else -1)
        sides = {symbol: "Buy" if qty > 0 else "Sell" for symbol, qty in held.items()}
        rows = {
            "orders": resting,
            "order": mine,
            "executions": self.executions[::-1],
            "positions": [msg.Holding(s, sides[s], abs(qty)) for s, qty in held.items() if qty],
            "wallet": [msg.Wallet(D(1000), D(1000), D(1000))],
            "rights": [],
        }
        return msg.Fetched(ask, tuple(rows[ask.what]))

    def _exchange(self, request):
        name, is_entry = request.order_link_id, not request.reduce_only
        if request.action == "create":
            fate = (self.fates or ["rests"]).pop() if is_entry else "rests"
            self.fate[name] = fate
            outcome = {"refused": "refused", "lost": "unknown"}.get(fate, "accepted")
            code = {"refused": 110003, "lost": 10016}.get(fate, 0)
            self.hear(request._replace(outcome=outcome, ret_code=code))
            self._from_keeper(
                self.keeper.handle(request._replace(outcome=outcome, ret_code=code), self.now_ns)
            )
            if outcome == "accepted":
                status = {"filled": "Filled", "post_only": "Rejected"}.get(fate, "New")
                self._update(request, status)
        elif request.action == "cancel" and name in self.orders:
            self._update(request, "Cancelled")
        elif name in self.orders:
            self._update(request, "New")

    def _update(self, request, status):
        name, filled = request.order_link_id, request.qty if status == "Filled" else D(0)
        head = (name, f"id-{name}", request.symbol, request.side, request.price, request.qty)
        why = "EC_PostOnlyWillTakeLiquidity" if status == "Rejected" else "EC_NoError"
        at_ms = BAR_MS + self.now_ns // 1_000_000
        done = (status, filled, request.price, request.reduce_only, why, at_ms, at_ms)
        self.orders[name] = msg.OrderUpdate(*head, *done)
        self._from_keeper(self.keeper.handle(self.orders[name], self.now_ns))
        if filled:
            money = ("Trade", request.price, filled, D(0), True, BAR_MS)
            execution = msg.Execution(f"e-{name}", *self.orders[name][:4], *money)
            self.executions.append(execution)
            self._from_keeper(self.keeper.handle(execution, self.now_ns))


@settings(max_examples=40, **ANY_SPEED)
@given(
    st.lists(
        st.tuples(SYMBOLS, SIDES, st.sampled_from(["ARM", "ARM", "HOLD", "NONE"]), st.booleans()),
        max_size=20,
    ),
    st.lists(st.sampled_from(FATES), max_size=10),
)
def test_each_touch_is_one_row_and_the_word_of_the_ledger_is_final(acts, fates):
    pair, bar, touched = Pair(fates), 0, set()
    for number, (symbol, side, zone, later) in enumerate(acts, 1):
        bar += later
        q = quote(zone, "", side, bar, number, symbol)
        touched |= {name_of(q)} if zone == "ARM" else set()
        pair.hear(q)
        pair.wait(1)
    for number, symbol in enumerate(NAMES):
        pair.hear(quote("NONE", bar=bar + 1, ts_ms=100 + number, symbol=symbol))
    pair.wait(12)  # whatever was lost is found to be lost
    rows = pair.rows()
    assert Counter(touch.entry_id for touch in pair.told) == Counter(dict.fromkeys(touched, 1))
    assert rows.keys() == touched
    for touch in pair.told:
        if touch.outcome == "order":
            fate = pair.fate[touch.entry_id]
            assert rows[touch.entry_id] == WORDS.get(fate, "cancelled")
        else:
            assert touch.entry_id not in pair.fate
            assert rows[touch.entry_id] == touch.outcome
    assert {t.entry_id for t in pair.told if t.outcome == "order"} == {
        name for name in pair.fate if "x" not in name
    }
