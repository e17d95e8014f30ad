"""reconcile: what a round of snapshots proves, and what it does not."""

from collections.abc import Callable
from decimal import Decimal

import pytest

from services.keeper.reconcile import MAX_QUERIES, OVERLAP_MS, ROUND, ROUND_NS, Reconcile
from shared import messages as msg

RECV_WINDOW_MS = 2_000
SETTLED_NS = 6_000_000_000  # sent within 1 s + recv_window 2 s + margin 3 s
NAME = "dm-AAAUSDT-64-B"
HELD = {"AAAUSDT": Decimal(3)}


def holding(qty: int, symbol: str = "AAAUSDT") -> msg.Holding:
    return msg.Holding(symbol, "Buy" if qty > 0 else "Sell" if qty < 0 else "", Decimal(abs(qty)))


def order(name: str) -> msg.Order:
    head = (name, "", "AAAUSDT", "Buy", msg.ENTRY, Decimal(1), Decimal(1), Decimal(0), "Granted")
    return msg.Order(*head, 0, Decimal(1), 0)


def not_found(error: str = "") -> msg.Fetched:
    return msg.Fetched(msg.Fetch("order", "AAAUSDT", order_link_id=NAME), (), error)


def found() -> msg.Fetched:
    head = (NAME, "uuid", "AAAUSDT", "Buy", Decimal(1), Decimal(1), "New", Decimal(0), Decimal(0))
    row = msg.OrderUpdate(*head, False, "", 0, 0)
    return not_found()._replace(rows=(row,))


def trusted() -> Reconcile:
    """After one clean round of a start, long ago."""
    rounds = Reconcile(RECV_WINDOW_MS)
    rounds.compare({}, [], 1)
    assert rounds.trusted
    return rounds


# Rounds.


def test_a_round_asks_for_everything_and_reads_executions_again_from_before_the_last_known() -> (
    None
):
    asks = Reconcile(RECV_WINDOW_MS).begin(since_ms=10_000_000, now_ns=7)
    assert [ask.what for ask in asks] == list(ROUND)
    assert {ask.start_ms for ask in asks} == {10_000_000 - OVERLAP_MS}
    assert Reconcile(RECV_WINDOW_MS).begin(since_ms=5, now_ns=7)[0].start_ms == 0


def test_a_round_is_done_with_its_last_answer_and_not_before() -> None:
    rounds = Reconcile(RECV_WINDOW_MS)
    asks = rounds.begin(0, 1)
    assert [rounds.done(msg.Fetched(ask, ())) for ask in asks] == [False, False, False, True]


@pytest.mark.parametrize("which", range(len(ROUND)))
def test_a_failed_answer_never_completes_a_round(which: int) -> None:
    rounds = trusted()
    asks = rounds.begin(0, 1)
    answers = [msg.Fetched(a, (), "timeout" if i == which else "") for i, a in enumerate(asks)]
    assert not any(rounds.done(answer) for answer in answers)
    assert (rounds.failed, rounds.trusted) == ("timeout", False)
    asks = rounds.begin(0, 2)  # the next one starts over
    assert [rounds.done(msg.Fetched(ask, ())) for ask in asks] == [False, False, False, True]


@pytest.mark.parametrize("since_ms", [1_000_000, 2_000_000])
def test_an_answer_to_an_earlier_round_does_not_count_for_this_one(since_ms: int) -> None:
    rounds = Reconcile(RECV_WINDOW_MS)
    earlier = rounds.begin(1_000_000, now_ns=1)
    now = rounds.begin(since_ms, now_ns=2)
    assert not any(rounds.done(msg.Fetched(ask, ())) for ask in earlier)
    assert not rounds.done(msg.Fetched(earlier[0], (), "timeout"))  # nor does its failure
    assert [rounds.done(msg.Fetched(ask, ())) for ask in now] == [False, False, False, True]


def test_an_answer_after_the_end_of_a_round_does_not_complete_it_again() -> None:
    rounds = Reconcile(RECV_WINDOW_MS)
    asks = rounds.begin(0, 1)
    assert [rounds.done(msg.Fetched(ask, ())) for ask in asks][-1]
    assert not rounds.done(msg.Fetched(asks[0], ()))


def test_the_next_round_waits_for_this_one_unless_its_answers_never_come() -> None:
    rounds, pause_ns = Reconcile(RECV_WINDOW_MS), 10_000_000_000
    asks = rounds.begin(0, now_ns=1)
    assert not rounds.due(1 + ROUND_NS - 1, pause_ns)
    assert rounds.due(1 + ROUND_NS, pause_ns)
    for ask in asks:
        rounds.done(msg.Fetched(ask, ()))
    assert not rounds.due(1 + pause_ns - 1, pause_ns)
    assert rounds.due(1 + pause_ns, pause_ns)
    assert rounds.due(1 + 2 * pause_ns, 2 * pause_ns)


# Differences.

SECOND = 1_000_000_000


def test_a_difference_needs_two_rounds() -> None:
    """One may be a push on its way."""
    rounds = trusted()
    assert rounds.compare(HELD, [holding(5)], 10 * SECOND) == {}
    assert rounds.trusted
    found = rounds.compare(HELD, [holding(5)], 20 * SECOND)
    assert found == rounds.differences == {"AAAUSDT": "ledger 3 exchange 5"}
    assert (rounds.trusted, rounds.failed) == (False, "difference")


def test_a_difference_that_moves_is_a_push_on_its_way() -> None:
    rounds = trusted()
    for number, qty in enumerate((5, 6, 5, 6)):
        assert rounds.compare(HELD, [holding(qty)], 10 * number * SECOND) == {}


def test_a_difference_that_heals_is_forgotten() -> None:
    rounds = trusted()
    for number, qty in enumerate((5, 3, 5)):  # it must come twice in a row
        assert rounds.compare(HELD, [holding(qty)], 10 * number * SECOND) == {}
    assert rounds.compare(HELD, [holding(5)], 30 * SECOND) != {}
    assert rounds.compare(HELD, [holding(3)], 40 * SECOND) == {}


@pytest.mark.parametrize(
    ("held", "holdings", "differs"),
    [
        ({}, [holding(5)], True),  # theirs alone
        (HELD, [], True),  # ours alone
        (HELD, [holding(-3)], True),  # the other direction
        ({"AAAUSDT": Decimal(-3)}, [holding(-3)], False),  # a short: size is never negative
        (HELD, [holding(3), holding(0, "BBBUSDT")], False),  # flat is not a holding
        ({}, [], False),
    ],
)
def test_every_way_to_differ(
    held: dict[str, Decimal], holdings: list[msg.Holding], differs: bool
) -> None:
    rounds = trusted()
    rounds.compare(held, holdings, 10 * SECOND)
    assert bool(rounds.compare(held, holdings, 20 * SECOND)) == differs
    assert rounds.trusted != differs


# Trust: what allows entries.


def test_a_start_trusts_its_first_clean_round() -> None:
    rounds = Reconcile(RECV_WINDOW_MS)
    assert not rounds.trusted
    rounds.compare(HELD, [holding(3)], SECOND)
    assert rounds.trusted


@pytest.mark.parametrize(
    ("clean_s", "trusts"),
    [((1, 6), True), ((1, 5.9), False), ((1, 2, 3), False), ((1, 3, 6), True)],
)
def test_lost_trust_comes_back_when_it_was_clean_twice_five_seconds_apart(
    clean_s: tuple[float, ...], trusts: bool
) -> None:
    rounds = trusted()
    rounds.distrust("private stream lost")
    assert (rounds.trusted, rounds.failed) == (False, "private stream lost")
    for second in clean_s:
        assert not rounds.trusted
        rounds.compare(HELD, [holding(3)], int(second * SECOND))
    assert rounds.trusted == trusts


@pytest.mark.parametrize("before", [trusted, lambda: Reconcile(RECV_WINDOW_MS)])
def test_a_round_with_a_difference_is_none_of_the_two_clean_ones(
    before: Callable[[], Reconcile],
) -> None:
    rounds = before()
    for second in (10, 20):
        rounds.compare(HELD, [holding(5)], second * SECOND)
    assert not rounds.trusted
    rounds.compare(HELD, [holding(3)], 30 * SECOND)  # clean once
    assert not rounds.trusted
    rounds.compare(HELD, [holding(3)], 40 * SECOND)  # clean twice
    assert rounds.trusted


def test_a_failure_between_two_clean_rounds_starts_over() -> None:
    rounds = trusted()
    rounds.distrust("private stream lost")
    rounds.compare(HELD, [holding(3)], 10 * SECOND)
    rounds.done(msg.Fetched(rounds.begin(0, 15 * SECOND)[0], (), "timeout"))
    rounds.compare(HELD, [holding(3)], 20 * SECOND)
    assert not rounds.trusted


# Orders.


def test_an_order_that_the_exchange_does_not_list_is_asked_for_by_its_id() -> None:
    asks = Reconcile(RECV_WINDOW_MS).unconfirmed([order("dm-a"), order("dm-b")], {"dm-a"})
    assert asks == [msg.Fetch("order", "AAAUSDT", order_link_id="dm-b")]


def test_a_stop_loss_is_known_and_asked_for_by_the_exchanges_id() -> None:
    """It has no id of ours there; `dm-as` is our name for it."""
    stop = order("dm-as")._replace(kind=msg.STOP, order_id="S1")
    rounds = Reconcile(RECV_WINDOW_MS)
    assert rounds.unconfirmed([stop], {"S1"}) == []
    asks = rounds.unconfirmed([stop, order("dm-b")._replace(order_id="7")], {"another"})
    assert asks == [
        msg.Fetch("order", "AAAUSDT", order_link_id="dm-as", order_id="S1"),
        msg.Fetch("order", "AAAUSDT", order_link_id="dm-b"),  # ours: by our id
    ]


def test_only_so_many_orders_are_asked_for_at_once() -> None:
    """A hundred at once would be more than the exchange lets an address ask."""
    rounds, ours = Reconcile(RECV_WINDOW_MS), [order(f"dm-{n}") for n in range(2 * MAX_QUERIES)]
    asks = rounds.unconfirmed(ours, set())
    assert [ask.order_link_id for ask in asks] == [f"dm-{n}" for n in range(MAX_QUERIES)]
    assert rounds.unconfirmed(ours, set()) == []  # none is answered yet
    rounds.never_arrived(msg.Fetched(asks[3], ()), 0, 1)
    (another,) = rounds.unconfirmed(ours[MAX_QUERIES:], set())
    assert another.order_link_id == f"dm-{MAX_QUERIES}"


def test_never_arrived_needs_three_not_founds() -> None:
    rounds = Reconcile(RECV_WINDOW_MS)
    late_ns = 100 * SETTLED_NS
    assert [rounds.never_arrived(not_found(), 0, late_ns) for _ in range(3)] == [False, False, True]


def test_never_arrived_needs_the_end_of_recv_window_too() -> None:
    rounds = Reconcile(RECV_WINDOW_MS)
    granted_ns = 1_000
    for _ in range(10):
        assert not rounds.never_arrived(not_found(), granted_ns, granted_ns + SETTLED_NS)
    assert rounds.never_arrived(not_found(), granted_ns, granted_ns + SETTLED_NS + 1)


def test_a_failed_query_is_not_a_not_found() -> None:
    rounds = Reconcile(RECV_WINDOW_MS)
    late_ns = 100 * SETTLED_NS
    answers = [not_found(), not_found("timeout"), not_found("timeout"), not_found(), not_found()]
    proofs = [rounds.never_arrived(answer, 0, late_ns) for answer in answers]
    assert proofs == [False, False, False, False, True]  # the third without an error


def test_an_order_found_once_has_arrived_and_the_count_starts_over() -> None:
    rounds = Reconcile(RECV_WINDOW_MS)
    late_ns = 100 * SETTLED_NS
    answers = [not_found(), not_found(), found(), not_found(), not_found(), not_found()]
    proofs = [rounds.never_arrived(answer, 0, late_ns) for answer in answers]
    assert proofs == [False] * 5 + [True]
