"""losses: equity in, the limits of a day and of a life out. The first equity is 1000 USDT."""

from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.keeper.losses import DAY_MS, Limits, Losses
from shared import messages as msg

LIMITS = Limits(daily_loss_pct=3.0, drawdown_pct=8.0)
NOON = 20_000 * DAY_MS + DAY_MS // 2
LOST_DAY = (msg.REDUCE_ONLY, "daily loss over 3 %")


def after(*equities: str, limits: Limits = LIMITS, at_ms: int = NOON) -> Losses:
    """What has seen 1000 USDT and then these, all in one day."""
    losses = Losses(limits, "")
    for equity in ("1000", *equities):
        losses.seen(Decimal(equity), at_ms)
    return losses


def kept(losses: Losses, limits: Limits = LIMITS) -> Losses:
    """The same after a restart."""
    return Losses(limits, losses.text)


# A day.


@pytest.mark.parametrize(
    ("equity", "trigger"),
    [
        ("970.01", None),  # 2.999 %
        ("970", LOST_DAY),  # 1000 - 970 = 30, 3 % of 1000
        ("930", LOST_DAY),
        ("1500", None),
    ],
)
def test_a_day_is_lost_at_its_limit(equity: str, trigger: tuple[str, str] | None) -> None:
    assert after(equity).trigger() == trigger


def test_a_lost_day_stays_lost_whatever_is_won_back() -> None:
    assert after("970", "1100").trigger() == LOST_DAY


def test_the_next_utc_day_counts_from_its_own_first_equity() -> None:
    losses, midnight = after("970"), NOON + DAY_MS // 2
    losses.seen(Decimal(970), midnight - 1)
    assert losses.trigger() == LOST_DAY
    losses.seen(Decimal(970), midnight)
    assert losses.trigger() is None
    losses.seen(Decimal("940.91"), midnight + 1)  # 970 - 29.09 < 29.1, 3 % of 970
    assert losses.trigger() is None
    losses.seen(Decimal("940.9"), midnight + 2)
    assert losses.trigger() == LOST_DAY


def test_a_loss_counts_from_the_first_equity_of_the_day_not_from_its_highest() -> None:
    assert after("1050", "1019").trigger() is None  # 1050 - 1019 = 31, but 1019 > 1000


def test_before_any_equity_nothing_is_lost() -> None:
    losses = Losses(LIMITS, "")
    assert losses.trigger() is None
    assert losses.seen(Decimal(0), NOON) == ""
    assert losses.trigger() is None


# A life.


@pytest.mark.parametrize(
    ("equities", "why"),
    [
        (("920.01",), ""),
        (("920",), "drawdown 8.00 % from 1000"),
        (("1200", "1105"), ""),  # 1200 - 1105 = 95 < 96
        (("1200", "1100"), "drawdown 8.33 % from 1200"),  # 100 / 1200
    ],
)
def test_a_drawdown_counts_from_the_highest_equity_ever(
    equities: tuple[str, ...], why: str
) -> None:
    *before, last = equities
    losses = after(*before)
    assert losses.seen(Decimal(last), NOON) == why


def test_the_highest_equity_is_of_every_day() -> None:
    losses = after()
    for day in range(1, 5):  # 2 % of 1000 a day: no day is lost
        assert losses.trigger() is None
        why = losses.seen(Decimal(1000 - 20 * day), NOON + day * DAY_MS)
    assert why == "drawdown 8.00 % from 1000"


def test_a_drawdown_is_said_again_until_a_person_has_seen_it() -> None:
    losses = after("900")
    assert losses.seen(Decimal(901), NOON) != ""
    losses.forgive()
    assert losses.seen(Decimal(900), NOON) == ""
    assert losses.seen(Decimal(829), NOON) == ""  # 901 * 0.92 = 828.92
    assert losses.seen(Decimal("828.9"), NOON) != ""


def test_a_person_lifts_a_lost_day_and_the_day_goes_on_from_there() -> None:
    losses = after("970")
    losses.forgive()
    assert losses.trigger() is None
    losses.seen(Decimal("940.91"), NOON)  # 3 % of 970 is 29.1
    assert losses.trigger() is None
    losses.seen(Decimal("940.9"), NOON)
    assert losses.trigger() == LOST_DAY


def test_who_forgives_before_the_first_equity_counts_from_the_first() -> None:
    losses = kept(after("900"))
    losses.forgive()
    assert losses.trigger() is None
    assert losses.seen(Decimal(900), NOON) == ""
    assert losses.trigger() is None
    losses.seen(Decimal("873"), NOON)  # 900 * 0.97
    assert losses.trigger() == LOST_DAY
    assert losses.seen(Decimal("828"), NOON) != ""  # 900 * 0.92


@pytest.mark.parametrize(
    ("limits", "lost", "why"),
    [
        (Limits(0.0, 8.0), None, "drawdown 99.00 % from 1000"),
        (Limits(3.0, 0.0), LOST_DAY, ""),
        (Limits(0.0, 0.0), None, ""),
    ],
)
def test_zero_switches_a_limit_off(limits: Limits, lost: tuple[str, str] | None, why: str) -> None:
    losses = after(limits=limits)
    assert losses.seen(Decimal(10), NOON) == why
    assert losses.trigger() == lost


def test_a_clock_that_was_a_year_ahead_once_makes_no_day_last_a_year() -> None:
    losses = after()
    losses.seen(Decimal(1000), NOON + 365 * DAY_MS)
    losses.seen(Decimal(1000), NOON)
    losses.seen(Decimal(985), NOON)
    losses.seen(Decimal(985), NOON + DAY_MS)
    losses.seen(Decimal(960), NOON + DAY_MS)  # 4 % of two days
    assert losses.trigger() is None
    losses.seen(Decimal(955), NOON + DAY_MS)
    assert losses.trigger() == LOST_DAY


def test_a_clock_that_steps_back_over_midnight_begins_no_other_day() -> None:
    losses, midnight = after(), NOON + DAY_MS // 2
    losses.seen(Decimal(1000), midnight)
    losses.seen(Decimal(980), midnight - 1)
    losses.seen(Decimal(970), midnight)
    assert losses.trigger() == LOST_DAY


# Another life.


def test_a_lost_day_and_the_peak_outlive_the_process() -> None:
    again = kept(after("1200", "960"))  # 960: 4 % of the day's 1000
    assert again.trigger() == LOST_DAY
    assert again.seen(Decimal(1105), NOON) == ""
    assert again.seen(Decimal(1104), NOON) == "drawdown 8.00 % from 1200"


def test_the_first_equity_of_the_day_outlives_the_process() -> None:
    again = kept(after("980"))
    again.seen(Decimal(970), NOON)
    assert again.trigger() == LOST_DAY


equities = st.decimals("100", "2000", places=2)
days = st.sampled_from([0, 0, 0, DAY_MS // 3, DAY_MS])


@given(st.lists(st.tuples(equities, days), min_size=1, max_size=12), st.integers(0, 11))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_a_restart_anywhere_changes_nothing_and_a_limit_is_never_passed_in_silence(
    seen: list[tuple[Decimal, int]], cut: int
) -> None:
    live, again, at_ms = Losses(LIMITS, ""), Losses(LIMITS, ""), NOON
    peak, first, day, lost = Decimal(0), Decimal(0), -1, False
    for number, (equity, pause_ms) in enumerate(seen):
        at_ms += pause_ms
        if number == cut:
            again = kept(again)
        why = live.seen(equity, at_ms)
        assert (why, live.trigger()) == (again.seen(equity, at_ms), again.trigger())
        if at_ms // DAY_MS != day:
            day, first, lost = at_ms // DAY_MS, equity, False
        peak, lost = max(peak, equity), lost or equity <= first * Decimal("0.97")
        assert bool(why) == (equity <= peak * Decimal("0.92"))
        assert bool(live.trigger()) == lost
