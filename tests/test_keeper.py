"""keeper: asks, facts and snapshots in; grants, positions and the mode out. Messages only."""

import sqlite3
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from services.keeper.actor import Keeper
from shared import messages as msg
from shared.settings import Settings, WrongSetting

SECOND = 1_000_000_000
SYMBOL, OTHER, MINUTE = "AAAUSDT", "BBBUSDT", 60_000
BAR = 100 * MINUTE
ENTRY = msg.entry_id(SYMBOL, "Buy", BAR)
EXIT = msg.exit_id(ENTRY, 0)
FLAT = msg.Position(SYMBOL, ("", 0), (), ())


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


class Desk:
    """A keeper and the exchange it looks at, which is four lists."""

    def __init__(self, path: Path | str = ":memory:", **settings: Any) -> None:
        self.now_ns = 1_000 * SECOND
        self.orders: list[msg.OrderUpdate] = []  # open ones
        self.known: dict[str, msg.OrderUpdate] = {}  # what a query by id finds
        self.executions: list[msg.Execution] = []  # newest first
        self.positions: list[msg.Holding] = []
        self.error = ""
        settings = {"RECONCILE_SECONDS": 10, "MAX_SLOTS": 2, "MAX_SYMBOLS": 2} | settings
        self.keeper = Keeper(Settings(_env_file=None, **settings), str(path))
        self.keeper.start(self.now_ns)

    def hear(self, message: Any) -> list[Any]:
        return self.keeper.handle(message, self.now_ns)

    def ask(self, request: Any) -> list[Any]:
        return self.keeper.answer(request, self.now_ns)

    def tick(self, seconds: float = 1) -> list[Any]:
        """Time passes; whatever is fetched is answered at once."""
        self.now_ns += int(seconds * SECOND)
        return self.served(self.keeper.tick(self.now_ns))

    def link(self, up: bool = True) -> list[Any]:
        return self.served(self.hear(msg.Link("private", up)))

    def served(self, messages: list[Any]) -> list[Any]:
        """The messages, and all that follows from the exchange's answers to their Fetches."""
        fetches = [message for message in messages if isinstance(message, msg.Fetch)]
        return messages + [m for ask in fetches for m in self.served(self.hear(self.reply(ask)))]

    def reply(self, ask: msg.Fetch) -> msg.Fetched:
        found = [self.known[ask.order_link_id]] if ask.order_link_id in self.known else []
        wallet = [msg.Wallet(Decimal(1000), Decimal(1000), Decimal(1000))]
        rows = {
            "orders": self.orders,
            "order": found,
            "executions": self.executions,
            "positions": self.positions,
            "wallet": wallet,
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
    assert (grant.granted, grant.reason) == (False, "mode NO_ENTRY")


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


def test_the_caps_refuse_with_a_reason_that_is_recorded_once(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "state.db", MAX_SLOTS=1).run().granted()
    for _ in range(2):
        assert grant_in(desk.ask(ask(OTHER))).reason == "max_slots"
    with closing(sqlite3.connect(tmp_path / "state.db")) as other:
        found = other.execute("SELECT symbol, reason FROM outcomes").fetchall()
    assert found == [(OTHER, "max_slots")]


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
    assert again.full().positions == desk.full().positions  # versions too
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


def test_resting_entries_are_cancelled_when_the_router_is_silent_for_10_s() -> None:
    desk = Desk().run().granted()
    desk.hear(said(ENTRY, "New"))
    desk.orders, desk.known = [said(ENTRY, "New")], {ENTRY: said(ENTRY, "New")}
    health = msg.Health("router", 0, 1, True, "", "", 0, {}, {}, 0, 0, "")
    desk.hear(health)
    messages = [m for _ in range(12) for m in desk.tick(1)]
    cancels = [m for m in messages if isinstance(m, msg.OrderRequest)]
    assert {(m.action, m.order_link_id) for m in cancels} == {("cancel", ENTRY)}


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
    assert desk.restarted(tmp_path / "state.db").position() == desk.position()


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
    """Bybit forgets unfilled cancelled orders after a day: three not-founds free the slot."""
    desk = Desk().run().granted()
    desk.hear(said(ENTRY, "New"))
    for _ in range(4):
        desk.tick(10)
    assert desk.full().mode.slots == 0


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
