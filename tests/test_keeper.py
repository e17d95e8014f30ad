"""keeper: asks, facts and snapshots in; grants, positions and the mode out. Messages only."""

import sqlite3
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from services.keeper.actor import (
    CLOCK_NS,
    INCOMPLETE_NS,
    READINGS,
    RECANCEL_NS,
    STALE_NS,
    Keeper,
)
from services.keeper.reconcile import OVERLAP_MS
from shared import messages as msg
from shared.settings import Settings, WrongSetting

SECOND = 1_000_000_000
SYMBOL, OTHER, MINUTE, DAY_MS = "AAAUSDT", "BBBUSDT", 60_000, 86_400_000
BAR = 100 * MINUTE
NOON_MS = 20_000 * DAY_MS + DAY_MS // 2
ENTRY = msg.entry_id(SYMBOL, "Buy", BAR)
EXIT = msg.exit_id(ENTRY, 0)
FLAT = msg.Position(SYMBOL, ("", 0), (), ())


TOUCH = msg.Touch(ENTRY, SYMBOL, "Buy", BAR, "budget")


def ask(symbol: str = SYMBOL, bar_ms: int = BAR, side: str = "Buy") -> msg.Ask:
    name, ten = msg.entry_id(symbol, side, bar_ms), Decimal(10)
    return msg.Ask(name, symbol, side, bar_ms, Decimal(100), ten, Decimal("0.5"), 0, 0)


def said(
    name: str, status: str, filled: int = 0, at_ms: int = BAR + 1, symbol: str = SYMBOL
) -> msg.OrderUpdate:
    is_exit = "x" in name
    head = (name, f"id-{name}", symbol, "Sell" if is_exit else "Buy", Decimal(100), Decimal(10))
    done = (status, Decimal(filled), Decimal(100), is_exit, "EC_NoError")
    return msg.OrderUpdate(*head, *done, BAR, at_ms)


def fill(name: str, qty: int, at_ms: int = BAR + 2, kind: str = "Trade") -> msg.Execution:
    side = "Sell" if "x" in name else "Buy"
    head = (f"{name}/{at_ms}/{qty}", name, f"id-{name}", SYMBOL, side, kind)
    return msg.Execution(*head, Decimal(100), Decimal(qty), Decimal("0.1"), True, at_ms)


def command(action: str, outcome: str, name: str = ENTRY) -> msg.OrderRequest:
    terms = (name, 7, action, SYMBOL, "Buy", Decimal(100), Decimal(10), "PostOnly", False, 0, 0)
    return msg.OrderRequest(*terms, outcome=outcome, ret_code=110007, reason="ab not enough")


def health(service: str, **counters: int) -> msg.Health:
    return msg.Health(service, 0, 1, True, "", "", 0, counters, {}, 0, 0, "")


def lasting(desk: "Desk") -> list[msg.Position]:
    """Every position and its row number, but for which life of the keeper says so."""
    return [p._replace(version=("", p.version[1])) for p in desk.full().positions]


class Desk:
    """A keeper and the exchange it looks at, which is four lists."""

    def __init__(self, path: Path | str = ":memory:", **settings: Any) -> None:
        self.now_ns = 1_000 * SECOND
        self.orders: list[msg.OrderUpdate] = []  # open ones
        self.known: dict[str, msg.OrderUpdate] = {}  # what a query by id finds
        self.executions: list[msg.Execution] = []  # newest first
        self.positions: list[msg.Holding] = []
        self.error = ""
        self.rights: list[str] = []  # what the key may do with the wallet
        self.equity = Decimal(1000)
        self.speaking = ["ingestor", "router"]  # whose Health is heard
        self.wall_ms = NOON_MS
        settings = {"RECONCILE_SECONDS": 10, "MAX_SLOTS": 2, "MAX_SYMBOLS": 2} | settings
        config = Settings(_env_file=None, **settings)
        self.keeper = Keeper(config, str(path), lambda: self.wall_ms)
        self.served(self.keeper.start(self.now_ns))

    def hear(self, message: Any) -> list[Any]:
        return self.keeper.handle(message, self.now_ns)

    def ask(self, request: Any) -> list[Any]:
        return self.keeper.answer(request, self.now_ns)

    def tick(self, seconds: float = 1) -> list[Any]:
        """Time passes; whatever is fetched is answered at once."""
        self.now_ns += int(seconds * SECOND)
        for service in self.speaking:
            self.hear(health(service))
        return self.served(self.keeper.tick(self.now_ns))

    def link(self, up: bool = True) -> list[Any]:
        return self.served(self.hear(msg.Link("private", up)))

    def served(self, messages: list[Any]) -> list[Any]:
        """The messages, and all that follows from the exchange's answers to their Fetches."""
        fetches = [message for message in messages if isinstance(message, msg.Fetch)]
        return messages + [m for ask in fetches for m in self.served(self.hear(self.reply(ask)))]

    def reply(self, ask: msg.Fetch) -> msg.Fetched:
        found = [self.known[ask.order_link_id]] if ask.order_link_id in self.known else []
        rows: Any = {
            "orders": self.orders,
            "order": found,
            "executions": self.executions,
            "positions": self.positions,
            "wallet": [msg.Wallet(self.equity, self.equity, self.equity)],
            "rights": self.rights,
        }[ask.what]
        return msg.Fetched(ask, () if self.error else tuple(rows), self.error)

    def full(self) -> msg.FullSet:
        return next(m for m in self.ask(msg.LedgerAsk()) if isinstance(m, msg.FullSet))

    def position(self, symbol: str = SYMBOL) -> msg.Position:
        found = (p for p in self.full().positions if p.symbol == symbol)
        return next(found, FLAT._replace(symbol=symbol))

    @property
    def mode(self) -> str:
        return self.full().mode.mode

    def rows(self, query: str) -> list[Any]:
        return list(self.keeper._store._db.execute(query))

    def outcomes(self) -> dict[str, str]:
        """What came of each touch, as the file has it."""
        return dict(self.rows("SELECT entry_id, outcome FROM outcomes"))

    def wallet(self, equity: str) -> str:
        """The mode after the account was said so often to hold so much that it counts."""
        self.equity = Decimal(equity)
        for _ in range(READINGS):
            self.hear(msg.Wallet(self.equity, self.equity, self.equity))
        return self.mode

    def run(self) -> "Desk":
        """Linked and clean twice, 10 s apart."""
        self.link()
        self.tick(10)
        assert self.mode == msg.RUN
        return self

    def granted(self) -> "Desk":
        assert self.ask(ask())[0].granted
        return self

    def restarted(self, path: Path) -> "Desk":
        again = Desk(path)
        again.orders, again.known = self.orders, self.known
        again.executions, again.positions = self.executions, self.positions
        return again


def grant_in(messages: list[Any]) -> msg.Grant:
    return next(message for message in messages if isinstance(message, msg.Grant))


# The mode.


def test_no_entry_until_linked_and_reconciled_then_run() -> None:
    desk = Desk()
    assert desk.mode == msg.NO_ENTRY
    fetches = [m for m in desk.hear(msg.Link("private", True)) if isinstance(m, msg.Fetch)]
    assert {f.what for f in fetches} == {"orders", "executions", "positions", "wallet"}
    assert desk.mode == msg.NO_ENTRY  # linked, nothing answered
    for fetch in fetches[:-1]:
        desk.hear(desk.reply(fetch))
        assert desk.mode == msg.NO_ENTRY  # answered in part
    desk.hear(desk.reply(fetches[-1]))
    desk.tick(10)
    assert desk.mode == msg.RUN
    assert desk.full().mode.reason == ""


def test_a_snapshot_that_fails_is_no_reconciliation() -> None:
    desk = Desk()
    desk.error = "timeout"
    desk.link()
    desk.tick(10)
    assert (desk.mode, desk.full().mode.reason) == (msg.NO_ENTRY, "timeout")
    desk.error = ""
    desk.tick(10)
    desk.tick(10)
    assert desk.mode == msg.RUN


def test_the_loss_of_the_private_stream_is_no_entry_at_once() -> None:
    desk = Desk().run()
    (mode,) = desk.hear(msg.Link("private", False, "closed"))
    assert (mode.mode, mode.reason) == (msg.NO_ENTRY, "private stream lost")
    grant = grant_in(desk.ask(ask()))
    assert (grant.granted, grant.reason) == (False, "halted")


def test_a_new_connection_is_no_ground_for_entries_before_its_snapshots_have_come() -> None:
    desk = Desk().run()
    desk.hear(msg.Link("private", False))
    desk.hear(msg.Link("private", True))  # its four fetches are not answered yet
    assert desk.mode == msg.NO_ENTRY


def test_no_entry_ends_when_it_was_clean_twice_five_seconds_apart() -> None:
    desk = Desk(RECONCILE_SECONDS=5).run()
    desk.link(up=False)
    desk.link()  # clean once
    assert desk.mode == msg.NO_ENTRY
    desk.tick(5)  # clean twice
    assert desk.mode == msg.RUN


@pytest.mark.parametrize("mode", [msg.REDUCE_ONLY, msg.CANCEL_ALL, msg.FLATTEN])
def test_what_an_operator_wants_holds_over_a_restart_until_lifted(
    mode: str, tmp_path: Path
) -> None:
    path = tmp_path / "state.db"
    desk = Desk(path).run()
    (answer,) = desk.ask(msg.Control(mode, "ops"))
    assert (answer.mode, answer.reason) == (mode, "operator")
    again = Desk(path)  # the first one was killed: no stop
    assert again.mode == mode
    again.link()
    again.tick(10)
    assert again.mode == mode  # no clean round lifts what a person set
    assert again.ask(msg.Control(msg.RUN, "ops"))[0].mode == msg.RUN
    assert Desk(path).run().mode == msg.RUN


def test_the_worst_of_all_triggers_holds() -> None:
    desk = Desk()  # not linked: NO_ENTRY
    assert desk.ask(msg.Control(msg.FLATTEN, "ops"))[0].mode == msg.FLATTEN
    assert desk.ask(msg.Control(msg.RUN, "ops"))[0].mode == msg.NO_ENTRY


def test_a_mode_that_does_not_exist_changes_nothing() -> None:
    desk = Desk().run()
    assert desk.ask(msg.Control("PANIC", "ops")) == []
    assert desk.mode == msg.RUN


def test_changes_of_mode_are_journaled(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "state.db").run()
    desk.ask(msg.Control(msg.REDUCE_ONLY, "ops"))
    with closing(sqlite3.connect(tmp_path / "state.db")) as other:
        modes = [row[0] for row in other.execute("SELECT mode FROM modes ORDER BY rowid")]
    assert (modes[0], modes[-2:]) == (msg.NO_ENTRY, [msg.RUN, msg.REDUCE_ONLY])


def test_what_was_done_elsewhere_is_journaled_with_who_and_changes_nothing(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "state.db").run()
    desk.ask(msg.Control(msg.REDUCE_ONLY, "ops"))
    (answer,) = desk.ask(msg.Control("", "ann", "2 -> 4 shards"))
    assert (answer.mode, desk.mode) == (msg.REDUCE_ONLY, msg.REDUCE_ONLY)
    assert desk.ask(msg.Control("", "ann")) == []
    with closing(sqlite3.connect(tmp_path / "state.db")) as other:
        rows = other.execute("SELECT mode, who FROM modes ORDER BY rowid").fetchall()
    assert rows[-2:] == [(msg.REDUCE_ONLY, "ops"), (msg.REDUCE_ONLY, "ann: 2 -> 4 shards")]
    assert Desk(tmp_path / "state.db").mode == msg.REDUCE_ONLY


# Grants.


def test_an_ask_brings_a_grant_and_the_position_that_holds_it() -> None:
    grant, position = Desk().run().ask(ask())
    assert grant == msg.Grant(ENTRY, True)
    (order,) = position.orders
    assert (order.order_link_id, order.status, order.kind) == (ENTRY, "Granted", msg.ENTRY)
    assert (order.price, order.qty, order.take_profit_pct) == (100, 10, Decimal("0.5"))


def test_an_id_is_granted_once_even_over_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    desk = Desk(path).run().granted()
    assert not grant_in(desk.ask(ask())).granted
    assert not grant_in(Desk(path).run().ask(ask())).granted
    desk.hear(said(ENTRY, "Cancelled"))
    again = Desk(path).run()
    assert again.full().mode.slots == 0
    assert grant_in(again.ask(ask())).reason == "bar_used"


def test_a_grant_is_on_disk_before_it_is_answered(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "state.db").run()
    with closing(sqlite3.connect(tmp_path / "state.db")) as other:
        assert other.execute("SELECT COUNT(*) FROM orders").fetchone() == (0,)
        assert grant_in(desk.ask(ask())).granted
        found = other.execute("SELECT order_link_id, status, open FROM orders").fetchall()
        assert found == [(ENTRY, "Granted", 1)]


def test_a_position_is_on_disk_before_it_is_said(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "state.db").run().granted()
    with closing(sqlite3.connect(tmp_path / "state.db")) as other:
        desk.hear(fill(ENTRY, 4))
        assert other.execute("SELECT bought FROM lots").fetchall() == [("4",)]
        assert other.execute("SELECT exec_qty FROM executions").fetchall() == [("4",)]


def test_the_caps_refuse_with_a_reason_that_is_recorded_once() -> None:
    desk = Desk(MAX_SLOTS=1).run().granted()
    for _ in range(2):
        assert grant_in(desk.ask(ask(OTHER))).reason == "max_slots"
    assert desk.outcomes() == {ENTRY: "order", msg.entry_id(OTHER, "Buy", BAR): "max_slots"}


def test_another_account_refuses_to_start(tmp_path: Path) -> None:
    Desk(tmp_path / "state.db")
    with pytest.raises(WrongSetting):
        Desk(tmp_path / "state.db", BYBIT_API_KEY="another", BYBIT_API_SECRET="secret")


# What came of the orders.


def test_a_refused_create_frees_the_slot() -> None:
    desk = Desk(MAX_SLOTS=1).run().granted()
    (position,) = desk.hear(command("create", "refused"))
    assert (position.orders, desk.full().mode.slots) == ((), 0)
    assert grant_in(desk.ask(ask(OTHER))).granted


@pytest.mark.parametrize(
    ("action", "outcome"),
    [("create", "unknown"), ("create", "accepted"), ("create", ""), ("cancel", "refused")],
)
def test_anything_but_a_refused_create_keeps_the_slot(action: str, outcome: str) -> None:
    desk = Desk().run().granted()
    assert desk.hear(command(action, outcome)) == []
    assert desk.full().mode.slots == 1


def test_an_order_that_never_arrived_frees_its_slot_after_recv_window_and_margin() -> None:
    """Sent within 1 s + recv_window 2 s + margin 3 s: until then it may arrive."""
    desk = Desk().run().granted()
    for _ in range(6):
        desk.tick(1)
        assert desk.full().mode.slots == 1
    desk.tick(1)  # 7 s > 6 s
    assert desk.full().mode.slots == 0
    assert grant_in(desk.ask(ask())).reason == "bar_used"  # an entry is never sent again


def test_an_order_of_unknown_outcome_is_found_by_its_id_and_kept() -> None:
    desk = Desk().run().granted()
    desk.known[ENTRY] = said(ENTRY, "New")
    desk.hear(command("create", "unknown"))
    for _ in range(8):
        desk.tick(1)
    assert [order.status for order in desk.position().orders] == ["New"]


def test_a_resting_order_is_not_asked_for_again_and_again_after_a_restart(tmp_path: Path) -> None:
    """100 resting orders, one query each a second: more than Bybit lets an address ask."""
    desk = Desk(tmp_path / "state.db").run().granted()
    desk.hear(said(ENTRY, "New"))
    desk.orders = [said(ENTRY, "New")]
    desk.known[ENTRY] = said(ENTRY, "New")
    again = desk.restarted(tmp_path / "state.db").run()
    later = [m for _ in range(5) for m in again.tick(1)]
    assert [m for m in later if isinstance(m, msg.Fetch) and m.what == "order"] == []


def test_an_order_that_ended_unheard_is_found_by_its_id() -> None:
    desk = Desk().run().granted()
    desk.hear(said(ENTRY, "New"))
    desk.known[ENTRY] = said(ENTRY, "Cancelled", at_ms=BAR + 5)  # the push was lost
    desk.tick(10)
    assert desk.full().mode.slots == 0


# Facts.


def test_a_fact_is_passed_on_and_the_position_follows() -> None:
    desk = Desk().run().granted()
    update, execution = said(ENTRY, "PartiallyFilled", 4), fill(ENTRY, 4)
    assert desk.hear(update)[0] == update
    passed, position = desk.hear(execution)
    assert (passed, position.lots[0].bought) == (execution, 4)
    assert desk.hear(execution) == [execution]  # again: nothing new about the position


def test_a_lost_execution_is_repaired_by_the_snapshot() -> None:
    desk = Desk().run().granted()
    desk.hear(said(ENTRY, "Filled", 10))
    desk.executions = [fill(ENTRY, 6, BAR + 3), fill(ENTRY, 4)]
    desk.positions = [msg.Holding(SYMBOL, "Buy", Decimal(10))]
    desk.hear(fill(ENTRY, 4))  # the other one is lost
    assert (len(desk.position().orders), desk.position().lots[0].bought) == (1, 4)
    messages = desk.tick(10)
    assert desk.position().orders == ()
    assert desk.position().lots[0].bought == 10  # 4 + 6, each once
    said_positions = [m for m in messages if isinstance(m, msg.Position)]
    assert said_positions[-1].lots[0].bought == 10  # and everybody heard of it
    desk.hear(fill(ENTRY, 6, BAR + 3))  # the push comes after all
    assert desk.position().lots[0].bought == 10


def test_funding_moves_no_lot() -> None:
    desk = Desk().run().granted()
    desk.hear(fill(ENTRY, 10))
    before = desk.position()
    desk.hear(fill(ENTRY, 10, BAR + 9, "Funding")._replace(order_link_id=""))
    assert desk.position()[2:] == before[2:]


def test_state_survives_a_kill_to_the_digit(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "state.db").run().granted()
    for fact in (said(ENTRY, "Filled", 10), fill(ENTRY, 10), said(EXIT, "New"), fill(EXIT, 3)):
        desk.hear(fact)
    again = Desk(tmp_path / "state.db")
    assert lasting(again) == lasting(desk)
    assert again.full().mode.symbols == (SYMBOL,)


def test_a_difference_seen_twice_blocks_the_symbol_and_is_shown() -> None:
    desk = Desk().run()
    desk.positions = [msg.Holding(SYMBOL, "Buy", Decimal(3))]
    desk.tick(10)
    assert desk.full().mode.differences == 0  # once: maybe a push on its way
    desk.tick(10)
    assert desk.full().mode.differences == 1
    assert desk.mode == msg.NO_ENTRY
    assert not grant_in(desk.ask(ask())).granted
    desk.positions = []
    desk.tick(10)
    desk.tick(10)
    assert (desk.mode, desk.full().mode.differences) == (msg.RUN, 0)
    assert grant_in(desk.ask(ask())).granted


def test_each_tick_says_every_position_and_then_the_mode() -> None:
    desk = Desk().run().granted()
    assert grant_in(desk.ask(ask(OTHER))).granted
    *positions, mode = desk.keeper.tick(desk.now_ns)[:3]
    assert [p.symbol for p in positions] == [SYMBOL, OTHER]
    assert (mode.symbols, mode.slots) == ((SYMBOL, OTHER), 2)
    assert desk.full() == msg.FullSet(tuple(positions), mode)


def test_equity_is_kept_once_a_minute(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "state.db")
    for equity in (1000, 999):
        wallet = msg.Wallet(Decimal(equity), Decimal(equity), Decimal(0))
        assert desk.hear(wallet) == [wallet]
    with closing(sqlite3.connect(tmp_path / "state.db")) as other:
        assert other.execute("SELECT equity FROM equity").fetchall() == [("1000",)]


def cancels_in(messages: list[Any]) -> list[tuple[str, str]]:
    """(our id, theirs) of every order that the keeper cancels."""
    found = [m for m in messages if isinstance(m, msg.OrderRequest) and not m.outcome]
    assert {m.action for m in found} <= {"cancel"}  # it never creates or amends
    return [(m.order_link_id, m.order_id) for m in found]


def test_resting_entries_are_cancelled_when_the_router_is_silent_for_10_s() -> None:
    """And only entries: exits are reduce-only, and the lot needs its exit."""
    desk = Desk(MAX_SLOTS=3).run().granted()
    other = msg.entry_id(OTHER, "Buy", BAR)
    desk.ask(ask(OTHER))
    resting = [said(ENTRY, "Filled", 10), said(EXIT, "New"), said(other, "New", symbol=OTHER)]
    for fact in (*resting, fill(ENTRY, 10)):
        desk.hear(fact)
    desk.orders = resting[1:]
    desk.executions, desk.positions = [fill(ENTRY, 10)], [msg.Holding(SYMBOL, "Buy", Decimal(10))]
    desk.tick(1)
    desk.speaking.remove("router")
    desk.now_ns += msg.GONE_NS - SECOND
    assert cancels_in(desk.tick(1)) == []
    assert desk.mode == msg.RUN
    assert cancels_in(desk.tick(1)) == [(other, f"id-{other}")]
    assert (desk.mode, desk.full().mode.reason) == (msg.NO_ENTRY, "the router is silent")
    assert desk.full().mode.router_silent
    again_s = RECANCEL_NS // SECOND
    assert [len(cancels_in(desk.tick(1))) for _ in range(again_s)] == [0] * (again_s - 1) + [1]
    desk.speaking.append("router")
    assert [m for _ in range(20) for m in cancels_in(desk.tick(1))] == []
    assert not desk.full().mode.router_silent


@pytest.mark.parametrize(("limit", "at_once"), [(10, 8), (5, 4), (1, 1)])
def test_the_dead_mans_cancels_keep_to_the_rate_of_the_exchange(limit: int, at_once: int) -> None:
    names = [f"S{number:02}USDT" for number in range(20)]
    desk = Desk(MAX_SLOTS=30, MAX_SYMBOLS=30, RATE_LIMIT=limit).run()
    for name in names:
        desk.ask(ask(name))
        entry = msg.entry_id(name, "Buy", BAR)
        desk.hear(said(entry, "New", symbol=name))
        desk.orders.append(said(entry, "New", symbol=name))
    desk.speaking.remove("router")
    desk.now_ns += msg.GONE_NS
    sent = [cancels_in(desk.tick(1)) for _ in range(4)]
    assert [len(found) for found in sent[:2]] == [at_once, at_once]
    different = {name for found in sent for name, _ in found}
    assert len(different) == sum(map(len, sent)) == min(20, 4 * at_once)


# A new ledger.


def test_a_new_ledger_adopts_what_the_account_holds_as_foreign(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    desk = Desk(path)
    desk.executions = [fill("", 5, BAR)]
    desk.positions = [
        msg.Holding(SYMBOL, "Buy", Decimal(5)),
        msg.Holding(OTHER, "Sell", Decimal(2)),
    ]
    desk.run()
    assert desk.position().foreign_qty == 5  # held, not held + executed
    assert desk.position(OTHER).foreign_qty == -2
    assert desk.full().mode.slots == 2
    assert grant_in(desk.ask(ask())).reason == "foreign"
    again = desk.restarted(path).run()
    assert again.position().foreign_qty == 5  # adopted once
    assert again.position(OTHER).foreign_qty == -2
    assert again.full().mode.differences == 0


def test_executions_before_a_new_ledger_are_read_once() -> None:
    """None of them is ever its own, and there may be thousands."""
    desk = Desk()
    desk.executions = [fill("", 5, BAR)]
    asked = [m for said in (desk.link(), desk.tick(10)) for m in said if isinstance(m, msg.Fetch)]
    since = [ask.start_ms for ask in asked if ask.what == "executions"]
    assert since == [0, BAR - OVERLAP_MS]


def test_a_new_ledger_on_an_empty_account_holds_nothing() -> None:
    assert Desk().run().full().positions == ()


ORPHANS = {
    "an order": {"orders": [said(ENTRY, "New")]},
    "an execution": {
        "executions": [fill(ENTRY, 10)],
        "positions": [msg.Holding(SYMBOL, "Buy", Decimal(10))],
    },
}


@pytest.fixture(params=ORPHANS.values(), ids=ORPHANS.keys())
def orphaned(request: Any, tmp_path: Path) -> Desk:
    """No ledger, but something with our ids at the exchange."""
    desk = Desk(tmp_path / "state.db")
    vars(desk).update(request.param)
    desk.known = {order.order_link_id: order for order in desk.orders}
    desk.link()
    return desk


def test_our_ids_at_the_exchange_without_a_ledger_are_reduce_only(orphaned: Desk) -> None:
    assert orphaned.mode == msg.REDUCE_ONLY
    assert "no ledger" in orphaned.full().mode.reason
    orphaned.tick(10)
    orphaned.tick(10)
    assert orphaned.mode == msg.REDUCE_ONLY  # no clean round lifts it
    assert not grant_in(orphaned.ask(ask(OTHER))).granted


def test_orphans_are_reduce_only_after_a_restart_too(orphaned: Desk, tmp_path: Path) -> None:
    again = orphaned.restarted(tmp_path / "state.db")
    again.link()
    again.tick(10)
    assert again.mode == msg.REDUCE_ONLY


def test_a_person_lifts_the_reduce_only_of_orphans_for_good(orphaned: Desk, tmp_path: Path) -> None:
    orphaned.tick(10)
    assert orphaned.ask(msg.Control(msg.RUN, "ops"))[0].mode == msg.RUN
    orphaned.tick(10)  # the same ids are in the snapshot again
    orphaned.tick(10)
    assert orphaned.mode == msg.RUN
    assert orphaned.restarted(tmp_path / "state.db").run().mode == msg.RUN


def test_a_resting_entry_of_a_lost_ledger_is_ours_again(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "state.db")
    desk.orders, desk.known = [said(ENTRY, "New")], {ENTRY: said(ENTRY, "New")}
    desk.link()
    for _ in range(3):
        (held,) = desk.position().orders
        assert (held.order_link_id, held.status, held.price) == (ENTRY, "New", 100)
        assert desk.full().mode.slots == 1
        desk.tick(10)


def test_lots_of_a_lost_ledger_are_rebuilt_from_our_executions(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "state.db")
    desk.executions = [fill(EXIT, 3, BAR + 3), fill(ENTRY, 10)]
    desk.known = {ENTRY: said(ENTRY, "Filled", 10), EXIT: said(EXIT, "Cancelled", 3, BAR + 4)}
    desk.positions = [msg.Holding(SYMBOL, "Buy", Decimal(7))]  # 10 - 3
    desk.link()
    for _ in range(3):  # and they stay, whatever the next snapshots repeat
        position = desk.position()
        (lot,) = position.lots
        assert (lot.entry_id, lot.bought, lot.sold) == (ENTRY, 10, 3)
        assert (position.foreign_qty, desk.full().mode.differences) == (0, 0)
        desk.tick(10)
    assert (desk.position().orders, desk.position().lots[0].sold_before) == ((), 3)
    assert lasting(desk.restarted(tmp_path / "state.db")) == lasting(desk)


def test_what_a_lost_ledger_does_not_explain_is_foreign() -> None:
    desk = Desk()
    desk.executions = [fill(ENTRY, 10)]
    desk.positions = [
        msg.Holding(SYMBOL, "Buy", Decimal(12)),
        msg.Holding(OTHER, "Sell", Decimal(2)),
    ]
    desk.link()
    desk.tick(10)
    assert desk.position().lots[0].bought == 10
    assert desk.position().foreign_qty == 2  # 12 - 10
    assert desk.position(OTHER).foreign_qty == -2
    assert desk.full().mode.differences == 0


@pytest.mark.parametrize("link_id", ["", "manual-1"])
def test_a_foreign_resting_order_blocks_entries_of_its_symbol(link_id: str) -> None:
    desk = Desk().run()
    desk.orders = [said(link_id, "New")]
    desk.tick(10)
    assert desk.position().orders == ()  # it is never touched
    assert grant_in(desk.ask(ask())).reason == "foreign_order"
    assert grant_in(desk.ask(ask(OTHER))).granted
    desk.orders = []
    desk.tick(10)
    assert grant_in(desk.ask(ask(bar_ms=BAR + MINUTE))).granted


# What was missed is read again.


def asked_since(messages: list[Any]) -> list[int]:
    return [m.start_ms for m in messages if isinstance(m, msg.Fetch) and m.what == "executions"]


def test_executions_are_read_again_from_the_last_round_that_was_complete() -> None:
    """A fill in an outage, a round that fails, a newer fill by the stream: nothing is skipped."""
    desk = Desk().run().granted()
    desk.error = "timeout"
    desk.tick(10)
    desk.hear(fill(ENTRY, 4, at_ms=BAR + 900_000))
    desk.error = ""
    desk.executions = [fill(ENTRY, 4, at_ms=BAR + 900_000), fill(ENTRY, 6)]
    desk.tick(10)
    assert desk.position().lots[0].bought == 10


def test_the_account_is_watched_while_its_stream_is_down() -> None:
    desk = Desk().run().granted()
    desk.link(up=False)
    desk.executions = [fill(ENTRY, 10)]
    said_since = desk.tick(10)
    assert asked_since(said_since)
    assert desk.position().lots[0].bought == 10
    assert desk.mode == msg.NO_ENTRY


def test_a_late_answer_of_an_earlier_round_is_not_mixed_into_the_next() -> None:
    desk = Desk().run()
    desk.now_ns += 40 * SECOND
    old = [m for m in desk.keeper.tick(desk.now_ns) if isinstance(m, msg.Fetch)]
    desk.now_ns += 40 * SECOND
    new = [m for m in desk.keeper.tick(desk.now_ns) if isinstance(m, msg.Fetch)]
    stale = next(ask for ask in old if ask.what == "positions")
    desk.hear(msg.Fetched(stale, (msg.Holding(SYMBOL, "Buy", Decimal(5)),)))
    for answer in new:
        desk.hear(desk.reply(answer))
    assert desk.full().mode.differences == 0


def test_a_resting_order_that_is_gone_without_trace_ends() -> None:
    """Bybit forgets unfilled cancelled orders after a day. It was there, so the lists may only be
    behind: a minute of not-founds frees the slot."""
    desk = Desk().run().granted()
    desk.hear(said(ENTRY, "New"))
    slots = []
    for _ in range(9):
        desk.tick(10)
        slots.append(desk.full().mode.slots)
    assert slots == [1] * 7 + [0] * 2


@pytest.mark.parametrize("end", ["Refused", "Rejected", "Cancelled"])
def test_what_an_entry_bought_is_ours_whatever_was_said_of_it(end: str) -> None:
    desk = Desk().run().granted()
    desk.hear(command("create", "refused") if end == "Refused" else said(ENTRY, end))
    assert desk.full().mode.slots == 0
    desk.hear(fill(ENTRY, 10))
    assert [lot.bought for lot in desk.position().lots] == [10]
    assert desk.position().foreign_qty == 0


def test_an_end_counts_whatever_its_stamp() -> None:
    """The exchange stamps a fill before the order's creation: the order has ended all the same."""
    desk = Desk().run().granted()
    desk.hear(said(ENTRY, "New", at_ms=BAR + 50))
    desk.hear(said(ENTRY, "Filled", 10, at_ms=BAR + 3))
    desk.hear(fill(ENTRY, 10, at_ms=BAR + 3))
    assert desk.position().orders == ()


def test_an_entry_of_ours_that_the_ledger_never_heard_of_is_taken_in() -> None:
    desk = Desk().run()
    desk.orders, desk.known = [said(ENTRY, "New")], {ENTRY: said(ENTRY, "New")}
    desk.tick(10)
    assert desk.full().mode.slots == 1
    assert desk.position().orders[0].status == "New"


def test_an_entry_that_was_given_up_and_arrives_after_all_is_taken_in_again() -> None:
    desk = Desk().run().granted()
    for _ in range(8):
        desk.tick(1)
    assert desk.outcomes() == {ENTRY: "not_accepted"}
    desk.orders, desk.known = [said(ENTRY, "New")], {ENTRY: said(ENTRY, "New")}
    desk.tick(10)
    (order,) = desk.position().orders
    assert (order.order_link_id, order.status, desk.full().mode.slots) == (ENTRY, "New", 1)


def test_an_entry_that_was_given_up_and_fills_after_all_has_its_fill() -> None:
    """The stream is faster than the next round."""
    desk = Desk().run().granted()
    for _ in range(8):
        desk.tick(1)
    desk.hear(fill(ENTRY, 4))
    assert (desk.position().lots[0].bought, desk.position().foreign_qty) == (4, 0)
    desk.orders, desk.executions = [said(ENTRY, "PartiallyFilled", 4)], [fill(ENTRY, 4)]
    desk.positions = [msg.Holding(SYMBOL, "Buy", Decimal(4))]
    desk.tick(10)
    desk.hear(said(ENTRY, "Cancelled", 4, BAR + 9))
    assert (desk.position().orders, desk.full().mode.slots) == ((), 1)
    assert desk.outcomes() == {ENTRY: "filled"}


def test_an_entry_that_ended_is_not_taken_in_again() -> None:
    """A snapshot may be older than the push of the end."""
    desk = Desk().run().granted()
    desk.hear(said(ENTRY, "Cancelled"))
    desk.orders = [said(ENTRY, "New")]
    desk.tick(10)
    assert desk.full().mode.slots == 0


def test_an_exit_that_was_given_up_and_arrives_after_all_is_cancelled() -> None:
    """Its lot has another one by now."""
    desk = Desk().run().granted()
    for fact in (said(ENTRY, "Filled", 10), fill(ENTRY, 10), said(EXIT, "New")):
        desk.hear(fact)
    desk.positions = [msg.Holding(SYMBOL, "Buy", Decimal(10))]
    for _ in range(5):
        desk.tick(10)
    assert (desk.position().orders, desk.position().lots[0].exits) == ((), 1)
    desk.orders = [said(EXIT, "New")]
    desk.tick(10)
    assert cancels_in(desk.tick(1)) == [(EXIT, f"id-{EXIT}")]


def test_the_executions_of_an_order_that_has_ended_are_looked_for_soon() -> None:
    """Ten seconds are long for a lot without an exit."""
    desk = Desk().run().granted()
    desk.tick(1)
    assert asked_since(desk.tick(INCOMPLETE_NS / SECOND)) == []
    desk.hear(said(ENTRY, "Filled", 10))
    assert asked_since(desk.tick(1)) != []
    assert asked_since(desk.tick(1)) == []
    assert asked_since(desk.tick(INCOMPLETE_NS / SECOND - 1)) != []


def test_a_stream_that_says_nothing_of_what_the_snapshot_shows_is_built_again() -> None:
    desk = Desk().run().granted()
    desk.hear(said(ENTRY, "New"))
    desk.orders = [said(ENTRY, "New")]
    assert rebuilt(desk.tick(10)) == []  # the stream was heard
    desk.executions, desk.orders = [fill(ENTRY, 4)], [said(ENTRY, "PartiallyFilled", 4)]
    desk.positions = [msg.Holding(SYMBOL, "Buy", Decimal(4))]
    assert rebuilt(desk.tick(10)) == []  # its word may be under way
    assert rebuilt(desk.tick(2)) == [msg.Rebuild("private", "deaf")]
    assert (desk.mode, desk.full().mode.reason) == (msg.NO_ENTRY, "private stream is deaf")
    assert rebuilt(desk.tick(10)) == []  # nothing new in this one


def test_a_stream_that_was_only_slower_than_the_snapshot_is_kept() -> None:
    desk = Desk().run().granted()
    desk.executions, desk.positions = [fill(ENTRY, 4)], [msg.Holding(SYMBOL, "Buy", Decimal(4))]
    desk.known = {ENTRY: said(ENTRY, "PartiallyFilled", 4)}
    desk.tick(10)
    assert rebuilt(desk.tick(1)) == []
    desk.hear(fill(ENTRY, 4))
    assert [m for _ in range(3) for m in rebuilt(desk.tick(1))] == []
    assert desk.mode == msg.RUN


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("status", ["PartiallyFilled", "Cancelled"])
def test_what_was_missed_while_the_stream_was_down_is_no_debt_of_the_new_one(
    tmp_path: Path, status: str, killed: bool
) -> None:
    """It will never be pushed again: a needless reconnect would stop entries for nothing."""
    desk = Desk(tmp_path / "state.db").run().granted()
    desk.hear(said(ENTRY, "New"))
    desk.link(up=False)
    now = said(ENTRY, status, 4, BAR + 5)
    desk.executions, desk.known = [fill(ENTRY, 4)], {ENTRY: now}
    desk.orders = [now] if status == "PartiallyFilled" else []  # or asked for by its id
    desk.positions = [msg.Holding(SYMBOL, "Buy", Decimal(4))]
    if killed:
        desk = desk.restarted(tmp_path / "state.db")
    desk.link()
    assert (desk.position().lots[0].bought, len(desk.position().orders)) == (4, len(desk.orders))
    assert [m for _ in range(8) for m in rebuilt(desk.tick(1))] == []
    assert desk.mode == msg.RUN


def test_a_new_stream_pays_no_debt_of_the_old_one() -> None:
    desk = Desk().run().granted()
    desk.hear(said(ENTRY, "New"))
    desk.orders = [said(ENTRY, "PartiallyFilled", 4)]
    desk.executions, desk.positions = [fill(ENTRY, 4)], [msg.Holding(SYMBOL, "Buy", Decimal(4))]
    desk.tick(10)  # the old one owes it
    desk.link(up=False)
    desk.link()
    assert [m for _ in range(3) for m in rebuilt(desk.tick(1))] == []


def test_a_stream_that_owes_us_the_end_of_an_order_is_deaf_too() -> None:
    desk = Desk().run().granted()
    desk.hear(said(ENTRY, "New"))
    desk.known = {ENTRY: said(ENTRY, "Cancelled", at_ms=BAR + 5)}
    desk.tick(10)
    assert desk.full().mode.slots == 0
    assert [m for _ in range(2) for m in rebuilt(desk.tick(1))] == [msg.Rebuild("private", "deaf")]


def rebuilt(messages: list[Any]) -> list[msg.Rebuild]:
    return [message for message in messages if isinstance(message, msg.Rebuild)]


def test_a_first_look_at_an_account_calls_no_stream_deaf() -> None:
    desk = Desk()
    desk.positions = [msg.Holding(SYMBOL, "Buy", Decimal(5))]
    assert rebuilt(desk.link()) == []


# The key.


def test_a_key_that_may_move_funds_is_a_wrong_setting() -> None:
    """It is asked for at the start, before anything is traded."""
    desk = Desk()
    (ask_rights,) = [m for m in desk.keeper.start(desk.now_ns) if isinstance(m, msg.Fetch)]
    assert ask_rights == msg.Fetch("rights")
    with pytest.raises(WrongSetting, match="may move funds: AccountTransfer, Withdraw"):
        desk.hear(msg.Fetched(ask_rights, ("AccountTransfer", "Withdraw")))


def test_what_a_key_may_do_is_asked_again_until_it_is_answered() -> None:
    desk = Desk()
    desk.error = "timeout"
    desk.served([msg.Fetch("rights")])
    desk.error = ""
    assert msg.Fetch("rights") in desk.link()
    assert msg.Fetch("rights") not in desk.tick(10)


# Losses.


def test_a_lost_day_is_reduce_only_until_the_next_one(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "state.db").run()
    assert desk.wallet("970.01") == msg.RUN
    assert desk.wallet("970") == msg.REDUCE_ONLY  # 3 % of 1000
    assert desk.full().mode.reason == "daily loss over 3 %"
    assert grant_in(desk.ask(ask())).reason == "halted"
    again = Desk(tmp_path / "state.db")  # killed at once: it is on disk
    again.equity = Decimal(990)
    again.link()
    assert again.mode == msg.REDUCE_ONLY  # whatever was won back
    again.wall_ms += DAY_MS // 2
    again.tick(10)
    again.tick(10)
    assert again.mode == msg.RUN


def test_a_person_lifts_a_lost_day() -> None:
    desk = Desk().run()
    desk.wallet("970")
    assert desk.ask(msg.Control(msg.RUN, "ops"))[0].mode == msg.RUN
    assert desk.wallet("970") == msg.RUN


def test_a_drawdown_flattens_until_a_person_resumes(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    desk = Desk(path, DAILY_LOSS_PCT=0).run()
    assert desk.wallet("920.01") == msg.RUN
    low = msg.Wallet(Decimal(920), Decimal(920), Decimal(920))  # two of three say so
    assert desk.hear(low) == [low]
    (_, mode) = desk.hear(low)
    assert (mode.mode, mode.reason) == (msg.FLATTEN, "drawdown 8.00 % from 1000")  # said at once
    again = Desk(path, DAILY_LOSS_PCT=0)
    assert again.wallet("999") == msg.FLATTEN  # whatever is won back, over a restart and a day
    again.wall_ms += DAY_MS
    again.link()
    assert again.wallet("999") == msg.FLATTEN
    assert again.ask(msg.Control(msg.RUN, "ops"))[0].mode != msg.FLATTEN


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("wrong", ["1", "900", "1090", "100000"])
def test_one_reading_that_is_wrong_sells_nothing_then_or_later(
    wrong: str, place: int, tmp_path: Path
) -> None:
    """Neither in the first moments of another life."""
    path = tmp_path / "state.db"
    desk = Desk(path).run()
    desk.wallet("1000")
    again = desk.restarted(path)
    readings = [Decimal(1000)] * 6
    readings[place] = Decimal(wrong)
    for equity in readings:
        again.hear(msg.Wallet(equity, equity, Decimal(0)))
    assert again.run().mode == msg.RUN  # a drawdown and a lost day would stay


def test_who_resumes_after_a_drawdown_has_resumed_over_a_restart_too(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    desk = Desk(path, DAILY_LOSS_PCT=0).run()
    desk.wallet("900")
    desk.ask(msg.Control(msg.RUN, "ops"))
    assert desk.wallet("900") == msg.RUN
    again = Desk(path, DAILY_LOSS_PCT=0)  # within the same minute
    again.equity = Decimal(900)
    assert again.run().wallet("900") == msg.RUN
    assert again.wallet("828") == msg.FLATTEN  # 8 % of 900


@pytest.mark.parametrize("mode", [msg.REDUCE_ONLY, msg.CANCEL_ALL, msg.FLATTEN])
def test_a_drawdown_makes_no_mode_milder(mode: str) -> None:
    desk = Desk(DAILY_LOSS_PCT=0).run()
    desk.ask(msg.Control(mode, "ops"))
    assert desk.wallet("900") == msg.FLATTEN


def test_a_loss_is_written_the_moment_it_counts(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "state.db").run()
    desk.wallet("970")
    with closing(sqlite3.connect(tmp_path / "state.db")) as other:
        found = other.execute("SELECT equity FROM equity ORDER BY wall_ms").fetchall()
        (halted,) = other.execute("SELECT value FROM meta WHERE name = 'losses'").fetchone()
    assert found[-1] == ("970",)
    assert halted.split()[:2] == ["20000", "20000"]  # the day, and that it is lost


# A limit of ours that was broken.


def overfilled(desk: Desk) -> Desk:
    """11 of 10."""
    desk.hear(fill(ENTRY, 11))
    desk.executions, desk.positions = [fill(ENTRY, 11)], [msg.Holding(SYMBOL, "Buy", Decimal(11))]
    return desk


def test_an_order_filled_beyond_its_quantity_cancels_all_until_a_person_comes(
    tmp_path: Path,
) -> None:
    path = tmp_path / "state.db"
    desk = Desk(path).run().granted()
    messages = desk.hear(fill(ENTRY, 11))
    (mode,) = [m for m in messages if isinstance(m, msg.Mode)]  # said, and written, at once
    assert (mode.mode, mode.reason) == (
        msg.CANCEL_ALL,
        f"{ENTRY} was filled beyond its quantity",
    )
    again = overfilled(desk).restarted(path)
    again.link()
    again.tick(10)
    again.tick(10)
    assert again.mode == msg.CANCEL_ALL
    assert again.ask(msg.Control(msg.RUN, "ops"))[0].mode == msg.RUN


def test_a_fill_to_the_last_is_no_breach() -> None:
    desk = Desk().run().granted()
    for fact in (fill(ENTRY, 4), fill(ENTRY, 6, BAR + 3), fill(ENTRY, 6, BAR + 3)):
        desk.hear(fact)
    assert desk.mode == msg.RUN


def test_a_breach_that_a_person_has_seen_does_not_come_back_with_another_fill() -> None:
    desk = overfilled(Desk().run().granted())
    desk.hear(fill(ENTRY, 1, BAR + 3))  # 12 of 10, while it is known
    desk.ask(msg.Control(msg.RUN, "ops"))
    desk.ask(ask(OTHER))
    head = fill(msg.entry_id(OTHER, "Buy", BAR), 10)
    desk.hear(head._replace(symbol=OTHER))
    assert desk.mode == msg.RUN


def test_a_breach_makes_flatten_no_milder() -> None:
    desk = Desk().run().granted()
    desk.ask(msg.Control(msg.FLATTEN, "ops"))
    assert overfilled(desk).mode == msg.FLATTEN


def test_an_exit_that_grew_with_its_lot_is_no_breach() -> None:
    """4 bought, an exit of 4, 6 more, the exit amended to 10 and sold, heard by REST alone: there
    the executions come before the orders."""
    desk = Desk().run().granted()
    for fact in (fill(ENTRY, 4), said(EXIT, "New")._replace(qty=Decimal(4))):
        desk.hear(fact)
    sold = fill(EXIT, 10, BAR + 9)
    desk.executions = [sold, fill(ENTRY, 6, BAR + 3), fill(ENTRY, 4)]
    desk.known = {
        ENTRY: said(ENTRY, "Filled", 10, BAR + 3),
        EXIT: said(EXIT, "Filled", 10, BAR + 9),
    }
    for _ in range(3):
        desk.tick(10)
    assert desk.mode == msg.RUN
    assert desk.full().mode.slots == 0


# A disk that takes nothing.


class Disk:
    """The file of a ledger, which can be made to take nothing, and to take everything again."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)

    def full(self, *tables: str) -> None:
        for table in tables or ("orders", "executions", "lots", "outcomes", "modes", "refusals"):
            stop = "SELECT RAISE(ABORT, 'database or disk is full')"
            self._db.execute(
                f"CREATE TRIGGER full_{table} BEFORE INSERT ON {table} BEGIN {stop}; END"
            )

    def heal(self) -> None:
        for (name,) in self._db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'"):
            self._db.execute(f"DROP TRIGGER {name}")

    def rows(self, query: str) -> list[Any]:
        return list(self._db.execute(query))


@pytest.fixture
def disk(tmp_path: Path) -> Any:
    Desk(tmp_path / "state.db")
    found = Disk(tmp_path / "state.db")
    with closing(found._db):
        yield found


def test_without_an_intent_on_disk_there_is_no_order(disk: Disk, tmp_path: Path) -> None:
    desk = Desk(tmp_path / "state.db", MAX_SLOTS=1).run()
    disk.full("orders")
    messages = desk.ask(ask())
    assert grant_in(messages) == msg.Grant(ENTRY, False, "disk")
    (mode,) = [m for m in messages if isinstance(m, msg.Mode)]
    assert (mode.mode, mode.slots) == (msg.REDUCE_ONLY, 0)
    assert mode.reason == "disk: database or disk is full"
    assert grant_in(desk.ask(ask(OTHER))).reason == "halted"
    disk.heal()
    desk.tick(1)
    assert desk.mode == msg.RUN  # by itself: nothing was lost
    assert grant_in(desk.ask(ask(OTHER))).granted
    assert desk.outcomes()[ENTRY] == "refused"
    assert disk.rows("SELECT order_link_id, status FROM orders WHERE open = 1") == [
        (msg.entry_id(OTHER, "Buy", BAR), "Granted")
    ]


def test_facts_that_the_disk_does_not_take_are_said_and_written_later(
    disk: Disk, tmp_path: Path
) -> None:
    """A lot needs its exit, whatever the disk does."""
    desk = Desk(tmp_path / "state.db").run().granted()
    disk.full()
    facts = [fill(ENTRY, 4), fill(ENTRY, 6, BAR + 3), said(ENTRY, "Filled", 10, BAR + 3)]
    for fact in facts:
        position = desk.hear(fact)[1]
    assert (position.lots[0].bought, position.orders) == (10, ())
    assert desk.mode == msg.REDUCE_ONLY
    assert disk.rows("SELECT * FROM executions") == []
    desk.tick(1)
    assert desk.mode == msg.REDUCE_ONLY
    disk.heal()
    desk.tick(1)
    assert desk.mode == msg.RUN
    again = Desk(tmp_path / "state.db")
    assert lasting(again) == lasting(desk)  # all, and in order
    assert again.outcomes() == {ENTRY: "filled"}


def test_what_waits_for_the_disk_comes_before_what_is_new(disk: Disk, tmp_path: Path) -> None:
    desk = Desk(tmp_path / "state.db").run().granted()
    disk.full("outcomes")
    desk.hear(said(ENTRY, "Cancelled"))  # the order's row is taken, its outcome is not
    assert desk.mode == msg.REDUCE_ONLY
    disk.heal()
    desk.hear(TOUCH)
    assert desk.outcomes() == {ENTRY: "cancelled"}
    assert desk.mode == msg.RUN


def test_a_process_that_keeps_too_much_for_its_disk_ends(
    disk: Disk, tmp_path: Path, monkeypatch: Any
) -> None:
    """Its memory is no disk: what it still knows, the exchange tells the next one."""
    monkeypatch.setattr("services.keeper.actor.UNWRITTEN_LIMIT", 3)
    desk = Desk(tmp_path / "state.db").run()
    disk.full("outcomes")
    for _ in range(3):
        desk.hear(TOUCH)
    with pytest.raises(RuntimeError, match="4 writes wait for the disk"):
        desk.hear(TOUCH)


# Whose silence stops entries.


def test_without_the_ingestors_word_there_are_no_entries() -> None:
    desk = Desk().run()
    desk.speaking.remove("ingestor")
    desk.now_ns += STALE_NS - SECOND
    desk.tick(1)
    assert desk.mode == msg.RUN
    desk.now_ns += 1
    assert (desk.mode, desk.full().mode.reason) == (msg.NO_ENTRY, "market data lost")
    desk.hear(health("router"))
    assert desk.mode == msg.NO_ENTRY
    desk.hear(health("ingestor", silent=1))  # it lives, but hears nothing
    assert desk.mode == msg.NO_ENTRY
    desk.hear(health("ingestor", silent=0))
    assert desk.mode == msg.RUN


@pytest.mark.parametrize("action", ["create", "amend", "cancel"])
def test_a_request_at_the_wrong_time_stops_entries_for_half_a_minute(action: str) -> None:
    desk = Desk().run().granted()
    for name in ("ingestor", "router"):
        desk.hear(health(name))
    desk.hear(command(action, "refused")._replace(ret_code=10002))
    assert (desk.mode, desk.full().mode.reason) == (msg.NO_ENTRY, "clock doubtful")
    desk.now_ns += CLOCK_NS - 1
    for name in ("ingestor", "router"):
        desk.hear(health(name))
    assert desk.mode == msg.NO_ENTRY
    desk.now_ns += 1
    assert desk.mode == msg.RUN


def test_another_refusal_does_not_doubt_the_clock() -> None:
    desk = Desk().run().granted()
    desk.hear(command("create", "refused"))
    assert desk.mode == msg.RUN


# What came of each touch.


def ended(*facts: Any) -> Desk:
    """After a grant, and these."""
    desk = Desk().run().granted()
    for fact in facts:
        desk.hear(fact)
    return desk


POST_ONLY = said(ENTRY, "Rejected")._replace(reject_reason="EC_PostOnlyWillTakeLiquidity")
ENDS: dict[str, tuple[Any, ...]] = {
    "order": (said(ENTRY, "New"),),
    "filled": (said(ENTRY, "Filled", 10), fill(ENTRY, 10)),
    "cancelled": (said(ENTRY, "New"), said(ENTRY, "Cancelled", at_ms=BAR + 5)),
    "post_only": (POST_ONLY,),
    "rejected": (said(ENTRY, "Rejected")._replace(reject_reason="EC_Others"),),
    "refused": (command("create", "refused"),),
}


@pytest.mark.parametrize("outcome", ENDS)
def test_the_end_of_an_entry_is_its_outcome(outcome: str) -> None:
    assert ended(*ENDS[outcome]).outcomes() == {ENTRY: outcome}


def test_an_entry_that_was_filled_in_part_and_cancelled_is_filled() -> None:
    desk = ended(fill(ENTRY, 4), said(ENTRY, "Cancelled", 4))
    assert desk.outcomes() == {ENTRY: "filled"}


def test_an_entry_that_never_arrived_is_not_accepted() -> None:
    desk = Desk().run().granted()
    for _ in range(7):
        desk.tick(1)
    assert desk.outcomes() == {ENTRY: "not_accepted"}


def test_a_touch_without_an_order_is_kept_as_the_router_says_it() -> None:
    desk = Desk().run()
    assert desk.hear(TOUCH) == []
    desk.hear(TOUCH._replace(outcome="halted"))  # each is told once: the first one counts
    (row,) = desk.rows("SELECT * FROM outcomes")
    assert row[:-1] == tuple(TOUCH)


@pytest.mark.parametrize("outcome", ENDS)
def test_the_routers_word_never_replaces_the_ledgers(outcome: str) -> None:
    desk = ended(*ENDS[outcome])
    desk.hear(TOUCH._replace(outcome="order"))
    assert desk.outcomes() == {ENTRY: outcome}


def test_the_ledgers_word_replaces_the_routers() -> None:
    desk = Desk().run()
    desk.hear(TOUCH)
    assert desk.granted().outcomes() == {ENTRY: "order"}


def test_a_grant_and_its_outcome_are_one_synced_write(tmp_path: Path) -> None:
    """And the end of an entry and its outcome are one that need not be."""
    desk, said_to_disk = Desk(tmp_path / "state.db").run(), []
    desk.keeper._store._db.set_trace_callback(said_to_disk.append)
    desk.granted()
    assert said_to_disk.count("BEGIN IMMEDIATE") == said_to_disk.count("COMMIT") == 1
    assert "PRAGMA synchronous = FULL" in said_to_disk
    said_to_disk.clear()
    desk.hear(said(ENTRY, "Cancelled"))
    assert said_to_disk.count("COMMIT") == 1
    assert desk.outcomes() == {ENTRY: "cancelled"}


@pytest.mark.parametrize("halted", [False, True])
def test_an_ask_for_what_has_ended_leaves_its_outcome(halted: bool) -> None:
    """The grant or the mode had not reached the router yet."""
    desk = ended(said(ENTRY, "Cancelled"))
    if halted:
        desk.link(up=False)
    assert not grant_in(desk.ask(ask())).granted
    assert desk.outcomes() == {ENTRY: "cancelled"}


def test_an_ask_that_was_refused_and_then_granted_is_an_order() -> None:
    desk = Desk().run()
    desk.ask(msg.Control(msg.REDUCE_ONLY, "ops"))
    assert grant_in(desk.ask(ask())).reason == "halted"
    assert desk.outcomes() == {ENTRY: "halted"}
    desk.ask(msg.Control(msg.RUN, "ops"))
    assert desk.granted().outcomes() == {ENTRY: "order"}


@pytest.mark.parametrize("action", ["create", "amend", "cancel"])
def test_every_refusal_is_kept(action: str) -> None:
    desk = Desk().run().granted()
    desk.hear(command(action, "refused"))
    desk.hear(command(action, "unknown")._replace(command=8))
    desk.hear(command(action, "accepted")._replace(command=9))
    found = [row[:-1] for row in desk.rows("SELECT * FROM refusals")]
    assert found == [(ENTRY, 7, SYMBOL, 110007, "ab not enough", NOON_MS)]


# Dust.

LATER = msg.entry_id(SYMBOL, "Buy", BAR + MINUTE)


def dusty(qty: int = 1) -> Desk:
    """A lot of 10 and a later one of `qty` at another price, both bought, without orders."""
    desk = Desk().run().granted()
    for fact in (fill(ENTRY, 10), said(ENTRY, "Filled", 10)):
        desk.hear(fact)
    assert grant_in(desk.ask(ask(bar_ms=BAR + MINUTE))).granted
    bought = fill(LATER, qty, BAR + MINUTE + 5)._replace(exec_price=Decimal(90))
    for fact in (bought, said(LATER, "Cancelled", qty, BAR + MINUTE + 6)):
        desk.hear(fact)
    return desk


def exit_refused(name: str, reason: str, outcome: str = "refused") -> msg.OrderRequest:
    request = command("create", outcome, msg.exit_id(name, 0))
    return request._replace(reduce_only=True, side="Sell", reason=reason, ret_code=0)


TOO_SMALL = (msg.DUST, "Order qty is below the minimum: 0.1")


@pytest.mark.parametrize("reason", TOO_SMALL)
def test_a_lot_too_small_for_an_exit_joins_the_oldest_other(reason: str) -> None:
    """10 at 100 and 1 at 90: 11 that cost 1090."""
    desk = dusty()
    (position,) = desk.hear(exit_refused(LATER, reason))
    (lot,) = position.lots
    assert (lot.entry_id, lot.bought, lot.cost) == (ENTRY, 11, 1090)
    assert (desk.full().mode.slots, desk.keeper._ledger.held()) == (1, {SYMBOL: Decimal(11)})
    assert desk.hear(exit_refused(LATER, reason)) == []  # again: it is gone


def test_a_merge_is_on_disk_to_the_digit(tmp_path: Path) -> None:
    desk = dusty()
    path = tmp_path / "copy.db"
    desk.hear(exit_refused(LATER, msg.DUST))
    with closing(sqlite3.connect(path)) as copy:
        desk.keeper._store._db.backup(copy)
    assert lasting(Desk(path)) == lasting(desk)
    (closed,) = desk.rows(f"SELECT sold, proceeds, closed_ms FROM lots WHERE entry_id = '{LATER}'")
    assert closed == ("1", "90", BAR + MINUTE + 5)  # sold at cost: no profit, no loss


@pytest.mark.parametrize(
    "request_",
    [
        exit_refused(LATER, "ab not enough"),
        exit_refused(LATER, msg.DUST, "unknown"),
        exit_refused(LATER, msg.DUST)._replace(action="amend"),
        exit_refused(LATER, TOO_SMALL[1])._replace(reduce_only=False),
        exit_refused(msg.entry_id(OTHER, "Buy", BAR), msg.DUST),
    ],
)
def test_nothing_else_merges_a_lot(request_: msg.OrderRequest) -> None:
    desk = dusty()
    before = desk.position()
    desk.hear(request_)
    assert desk.position() == before


def test_dust_without_another_lot_stays_as_it_is() -> None:
    desk = Desk().run().granted()
    for fact in (fill(ENTRY, 1), said(ENTRY, "Cancelled", 1)):
        desk.hear(fact)
    before = desk.position()
    assert desk.hear(exit_refused(ENTRY, msg.DUST)) == []
    assert desk.position() == before


def test_a_lot_with_a_working_order_is_not_merged() -> None:
    """Its own exit may still sell: then it would be sold twice."""
    desk = dusty()
    desk.hear(said(msg.exit_id(LATER, 0), "New", at_ms=BAR + MINUTE + 7))
    assert desk.hear(exit_refused(LATER, msg.DUST)) == []


# Stop losses: made by the exchange, without an id of ours.


def stop(status: str, filled: int = 0, at_ms: int = BAR + 3, entry: str = ENTRY) -> msg.OrderUpdate:
    row = said(entry, status, filled, at_ms)._replace(order_link_id="", order_id=f"S-{entry}")
    ours = {"side": "Sell", "price": Decimal(0), "reduce_only": True}
    return row._replace(**ours, parent_order_link_id=entry)


def stop_fill(qty: int, at_ms: int = BAR + 9, entry: str = ENTRY) -> msg.Execution:
    row = fill(entry, qty, at_ms)._replace(order_link_id="", order_id=f"S-{entry}", side="Sell")
    return row._replace(exec_price=Decimal(98))


def guarded(path: Path | str = ":memory:") -> Desk:
    """A lot of 10 with a stop loss that rests."""
    desk = Desk(path).run().granted()
    for fact in (fill(ENTRY, 10), said(ENTRY, "Filled", 10), stop("Untriggered")):
        desk.hear(fact)
    desk.orders, desk.executions = [stop("Untriggered")], [fill(ENTRY, 10)]
    desk.positions = [msg.Holding(SYMBOL, "Buy", Decimal(10))]
    return desk


def test_a_stop_loss_is_an_order_of_its_lot_and_makes_no_symbol_foreign() -> None:
    desk = guarded()
    desk.tick(10)
    (order,) = desk.position().orders
    assert (order.order_link_id, order.kind, order.order_id) == (
        f"{ENTRY}s",
        msg.STOP,
        f"S-{ENTRY}",
    )
    assert (order.side, order.qty, order.status) == ("Sell", 10, "Untriggered")
    assert (desk.position().no_entry, desk.position().foreign_qty) == ("", 0)
    assert grant_in(desk.ask(ask(bar_ms=BAR + MINUTE))).granted


def test_a_stop_that_triggers_closes_its_lot_and_frees_the_slot() -> None:
    desk = guarded()
    desk.hear(stop_fill(4))
    (lot,) = desk.position().lots
    assert (lot.sold, lot.proceeds, lot.sold_before) == (4, 392, 0)  # 4 * 98
    desk.hear(stop_fill(6, BAR + 10))
    desk.hear(stop("Filled", 10, BAR + 10))
    assert (desk.position(), desk.full().mode.slots) == (
        FLAT._replace(version=desk.position().version),
        0,
    )
    assert desk.keeper._ledger.held() == {}


def test_a_stop_survives_a_restart_and_its_last_word_may_come_twice(tmp_path: Path) -> None:
    desk = guarded(tmp_path / "state.db")
    again = desk.restarted(tmp_path / "state.db")
    assert lasting(again) == lasting(desk)
    facts = (stop_fill(3), stop("Cancelled", 3, BAR + 11))
    for fact in facts:
        again.hear(fact)
    once_more = again.restarted(tmp_path / "state.db")
    for fact in (*facts, stop("Untriggered"), *facts):
        once_more.hear(fact)
        assert once_more.position().orders == again.position().orders == ()
    assert once_more.position().lots == again.position().lots
    assert once_more.position().lots[0].sold_before == 3


def test_a_stop_that_the_exchange_no_longer_lists_is_asked_for_by_its_own_id() -> None:
    desk = guarded()
    desk.orders = []
    desk.known = {f"{ENTRY}s": stop("Cancelled", at_ms=BAR + 20)}
    asks = [m for m in desk.tick(10) if isinstance(m, msg.Fetch) and m.what == "order"]
    assert asks == [msg.Fetch("order", SYMBOL, order_link_id=f"{ENTRY}s", order_id=f"S-{ENTRY}")]
    assert desk.position().orders == ()


def test_a_stop_whose_lot_is_gone_is_cancelled_by_its_own_id() -> None:
    """It was heard of too late; the router knows nothing of it."""
    desk = Desk().run().granted()
    for fact in (fill(ENTRY, 10), said(ENTRY, "Filled", 10), fill(EXIT, 10, BAR + 5)):
        desk.hear(fact)
    desk.hear(said(EXIT, "Filled", 10, BAR + 5))
    desk.hear(stop("Untriggered"))
    assert desk.full().mode.slots == 0
    desk.orders = [stop("Untriggered")]
    desk.tick(10)
    assert cancels_in(desk.tick(1)) == [(f"{ENTRY}s", f"S-{ENTRY}")]
    assert desk.position().no_entry == ""


@pytest.mark.parametrize(("limit", "at_once"), [(10, 2), (3, 1)])
def test_stops_of_lots_that_are_gone_leave_the_router_its_share_of_the_rate(
    limit: int, at_once: int
) -> None:
    """Each gets its turn, although the exchange goes on listing those that were first."""
    desk = Desk(RATE_LIMIT=limit).run()
    bars = range(BAR, BAR + 4 * MINUTE, MINUTE)
    desk.orders = [stop("Untriggered", entry=msg.entry_id(SYMBOL, "Buy", at)) for at in bars]
    desk.tick(10)
    sent = [cancels_in(desk.tick(1)) for _ in range(4)]
    assert [len(found) for found in sent] == ([2, 2, 0, 0] if at_once == 2 else [1, 1, 1, 1])
    assert {theirs for found in sent for _, theirs in found} == {o.order_id for o in desk.orders}


def alone(entries: int) -> Desk:
    """Entries rest, and the router has been silent for ten seconds."""
    desk = Desk(MAX_SLOTS=entries, MAX_SYMBOLS=entries).run()
    for name in (f"S{number:02}USDT" for number in range(entries)):
        desk.ask(ask(name))
        desk.hear(said(msg.entry_id(name, "Buy", BAR), "New", symbol=name))
    desk.speaking.remove("router")
    desk.now_ns += msg.GONE_NS
    return desk


def test_a_keeper_that_ticks_faster_cancels_no_more() -> None:
    desk = alone(20)
    sent = [len(cancels_in(desk.tick(0.2))) for _ in range(10)]
    assert [n for n in sent if n] == [8, 8]


def test_ticks_that_are_a_little_early_or_late_cancel_no_less() -> None:
    desk = alone(40)
    early_s = (0.999, 1.001, 0.999, 1.001, 1.0)
    assert [len(cancels_in(desk.tick(seconds))) for seconds in early_s] == [8] * 5


def test_an_entry_that_was_taken_for_gone_with_a_part_filled_is_no_new_lot() -> None:
    """Its part was sold; what is read again brings none of it back."""
    desk = Desk().run().granted()
    desk.hear(said(ENTRY, "New"))
    desk.hear(fill(ENTRY, 4))
    desk.hear(said(ENTRY, "PartiallyFilled", 4))
    desk.executions, desk.positions = [fill(ENTRY, 4)], [msg.Holding(SYMBOL, "Buy", Decimal(4))]
    for _ in range(9):
        desk.tick(10)
    assert desk.position().orders == ()
    desk.hear(fill(EXIT, 4))
    desk.hear(said(EXIT, "Filled", 4))
    desk.executions, desk.positions = [fill(EXIT, 4), fill(ENTRY, 4)], []
    slots = set()
    for _ in range(12):
        desk.tick(10)
        slots.add(desk.full().mode.slots)
    assert slots == {0}


def test_a_stop_of_an_open_lot_is_left_to_the_router() -> None:
    assert cancels_in(guarded().tick(10)) == []


def test_a_fill_of_a_stop_before_its_first_word_leaks_no_slot() -> None:
    """Both came within one outage. It counts as somebody else's, and closes the oldest lot."""
    desk = Desk().run().granted()
    for fact in (fill(ENTRY, 10), said(ENTRY, "Filled", 10)):
        desk.hear(fact)
    desk.ask(ask(bar_ms=BAR + MINUTE))
    for fact in (fill(LATER, 10, BAR + MINUTE + 1), said(LATER, "Filled", 10, BAR + MINUTE + 1)):
        desk.hear(fact)
    desk.hear(stop_fill(10, BAR + MINUTE + 5, LATER))
    desk.hear(stop("Filled", 10, BAR + MINUTE + 5, LATER))
    (lot,) = desk.position().lots
    assert (lot.bought - lot.sold, desk.position().orders) == (10, ())
    assert desk.full().mode.slots == 1


# When the exchange takes from us, and after a lot.


def test_after_a_liquidation_a_symbol_has_no_entries_for_a_quarter_of_an_hour(
    tmp_path: Path,
) -> None:
    path, quarter = tmp_path / "state.db", 15 * MINUTE
    desk = Desk(path).run().granted()
    for fact in (fill(ENTRY, 10), said(ENTRY, "Filled", 10)):
        desk.hear(fact)
    taken = fill("", 10, BAR + 5, "BustTrade")._replace(side="Sell")
    desk.hear(taken)
    assert desk.full().mode.slots == 0
    for at in (desk, Desk(path).run()):  # over a restart too
        assert grant_in(at.ask(ask(bar_ms=BAR + quarter))).reason == "cooldown"
        assert grant_in(at.ask(ask(OTHER, BAR + MINUTE))).granted
        at.hear(said(msg.entry_id(OTHER, "Buy", BAR + MINUTE), "Cancelled", symbol=OTHER))
    assert grant_in(desk.ask(ask(bar_ms=BAR + quarter + MINUTE))).granted


def test_a_symbol_rests_after_a_lot_over_a_restart_too(tmp_path: Path) -> None:
    path, rest = tmp_path / "state.db", {"COOLDOWN_SECONDS": 120}
    desk = Desk(path, **rest).run().granted()
    for fact in (fill(ENTRY, 10), said(ENTRY, "Filled", 10), fill(EXIT, 10, BAR + 5)):
        desk.hear(fact)
    desk.hear(said(EXIT, "Filled", 10, BAR + 5))
    for at in (desk, Desk(path, **rest).run()):
        assert grant_in(at.ask(ask(bar_ms=BAR + 2 * MINUTE))).reason == "cooldown"  # < 120.005 s
    assert grant_in(desk.ask(ask(bar_ms=BAR + 3 * MINUTE))).granted
