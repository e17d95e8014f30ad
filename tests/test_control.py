"""control: which wishes have to be typed before they are asked of the keeper."""

import pytest

from services.dashboard.control import _must_type, _signature
from shared import messages as msg


def mode(name: str, reason: str = "") -> msg.Mode:
    return msg.Mode(("ledger", 1), name, reason, ())


@pytest.mark.parametrize("now", [None, *map(mode, msg.MODES)])
def test_what_cancels_exits_or_sells_is_always_typed(now: msg.Mode | None) -> None:
    assert _must_type(msg.FLATTEN, now) and _must_type(msg.CANCEL_ALL, now)


@pytest.mark.parametrize(
    ("now", "typed"),
    [
        (mode(msg.RUN), False),
        (mode(msg.NO_ENTRY, "market data lost"), False),  # it goes by itself
        (mode(msg.REDUCE_ONLY, "operator"), False),  # a pause, which one click has made
        (mode(msg.REDUCE_ONLY, "daily loss over 3 %"), True),
        (mode(msg.REDUCE_ONLY, "crash loop"), True),
        (mode(msg.CANCEL_ALL, "operator"), True),
        (mode(msg.FLATTEN, "drawdown 8.1 % from 1000"), True),
        (None, True),  # nobody knows what it would lift
    ],
)
def test_a_wish_that_lifts_more_than_a_pause_is_typed(now: msg.Mode | None, typed: bool) -> None:
    assert _must_type(msg.RUN, now) is typed


def test_a_pause_that_would_lift_something_stricter_is_typed() -> None:
    assert _must_type(msg.REDUCE_ONLY, mode(msg.FLATTEN, "operator"))
    assert not _must_type(msg.REDUCE_ONLY, mode(msg.RUN))
    assert not _must_type(msg.REDUCE_ONLY, mode(msg.REDUCE_ONLY, "crash loop")), "it stays as it is"


def test_a_signature_says_where_it_came_from_and_is_one_short_line() -> None:
    assert _signature("dashboard") == _signature("  ") == "dashboard"
    assert _signature("Ann\nB") == "Ann B (dashboard)"
    assert len(_signature("x" * 1_000)) < 60
