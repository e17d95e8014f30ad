"""Rounding: always on the exchange's grid, on the passive side, never above the size."""

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.instrument import (
    decimal_of,
    entry_qty,
    least_usdt,
    opposite,
    round_price,
    round_qty,
    sign,
)
from shared.messages import Instrument

ANY_SPEED = {
    "derandomize": True,
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow],
}

STEPS = [Decimal(text) for text in ("1E-7", "0.0001", "0.005", "0.01", "0.5", "1", "5", "1000")]

steps = st.sampled_from(STEPS)
sides = st.sampled_from(["Buy", "Sell"])
amounts = st.decimals(min_value="1e-7", max_value="1e7", places=12)
sizes = st.decimals(min_value="0.01", max_value="100000", places=2)


def instrument(tick="0.01", step="0.1", least="0.1", most="1000", notional="5"):
    numbers = [Decimal(text) for text in (tick, step, least, most, notional)]
    return Instrument("XUSDT", *numbers, "Trading", 480)


@settings(max_examples=100, **ANY_SPEED)
@given(amounts, steps, sides)
def test_a_price_is_on_the_grid_on_the_passive_side_less_than_a_tick_away(price, tick, side):
    rounded = round_price(price, side, instrument(tick=tick))
    moved = Fraction(rounded) - Fraction(price)
    assert Fraction(rounded) % Fraction(tick) == 0
    assert (-tick < moved <= 0) if side == "Buy" else (0 <= moved < tick)
    assert round_price(rounded, side, instrument(tick=tick)) == rounded


@settings(max_examples=100, **ANY_SPEED)
@given(amounts, steps)
def test_a_quantity_is_rounded_down_to_a_step_less_than_one_away(qty, step):
    rounded = round_qty(qty, instrument(step=step))
    assert Fraction(rounded) % Fraction(step) == 0
    assert 0 <= Fraction(qty) - Fraction(rounded) < step


@pytest.mark.parametrize(
    ("price", "side", "tick", "rounded"),
    [
        ("100.019", "Buy", "0.01", "100.01"),
        ("100.011", "Sell", "0.01", "100.02"),
        ("100.02", "Sell", "0.01", "100.02"),
        ("100.024", "Buy", "0.005", "100.02"),  # five ticks of 0.005 make 0.025
        ("100.021", "Sell", "0.005", "100.025"),
        ("0.00000123", "Sell", "1E-7", "0.0000013"),
    ],
)
def test_prices_as_a_person_would_round_them(price, side, tick, rounded):
    assert round_price(Decimal(price), side, instrument(tick=tick)) == Decimal(rounded)


@settings(max_examples=100, **ANY_SPEED)
@given(
    *(sizes, st.decimals(min_value="0.001", max_value="100", places=6), st.sampled_from(STEPS[:6])),
    *(st.integers(1, 100), st.integers(1, 10**7)),
)
def test_an_entry_is_affordable_and_orderable_or_zero_with_a_reason(
    size, price, step, least_steps, most_steps
):
    most = step * most_steps
    i = instrument(step=step, least=step * least_steps, most=most)
    qty, reason = entry_qty(size, price, i)
    room = min(Fraction(size) / Fraction(price), Fraction(most))  # what size and maximum allow
    whole = room // Fraction(step) * Fraction(step)
    if reason:
        least = {"min_order_qty": i.min_order_qty, "min_notional_value": i.min_notional_value}
        name, value = reason.rpartition("(")[2].rstrip(")").split()
        assert (qty, Decimal(value)) == (0, least[name])
        assert whole < i.min_order_qty or whole * Fraction(price) < i.min_notional_value
    else:
        assert Fraction(qty) == whole >= i.min_order_qty
        assert i.min_notional_value <= Fraction(qty) * Fraction(price) <= size


@pytest.mark.parametrize(
    ("price", "least", "most", "qty", "reason"),
    [
        ("3", "0.1", "1000", "3.3", ""),  # 10 / 3 = 3.33
        ("3", "3.4", "1000", "0", "least order of 10.20 USDT (min_order_qty 3.4)"),  # 3.4 * 3
        ("3", "0.1", "2", "2", ""),  # 2 * 3 = 6
        # 1.6 * 3 = 4.8, and 1.7 * 3 = 5.1
        ("3", "0.1", "1.6", "0", "least order of 5.10 USDT (min_notional_value 5)"),
        ("70", "0.1", "1000", "0.1", ""),  # 10 / 70 = 0.14, and 0.1 * 70 = 7
        # 10 / 101 = 0.099, and 0.1 * 101 = 10.1
        ("101", "0.1", "1000", "0", "least order of 10.10 USDT (min_order_qty 0.1)"),
        ("40", "0.1", "1000", "0.2", ""),  # 10 / 40 = 0.25, and 0.2 * 40 = 8
        # 0.1 * 49 = 4.9, and 0.2 * 49 = 9.8
        ("49", "0.1", "0.1", "0", "least order of 9.80 USDT (min_notional_value 5)"),
    ],
)
def test_ten_dollars_buy(price, least, most, qty, reason):
    i = instrument(least=least, most=most)
    assert entry_qty(Decimal(10), Decimal(price), i) == (Decimal(qty), reason)


@settings(max_examples=100, **ANY_SPEED)
@given(st.decimals(min_value="0.001", max_value="100", places=6), steps, st.integers(1, 100))
def test_the_least_usdt_buys_an_order_and_a_cent_less_does_not(price, step, least_steps):
    i = instrument(step=step, least=step * least_steps, most="1e12")
    least = least_usdt(price, i)
    assert entry_qty(least, price, i)[1] == ""
    assert entry_qty(least - Decimal("0.01"), price, i)[0] == 0


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.1 + 0.2, "0.3"),  # 0.30000000000000004
        (100.0 * (1 - 0.0005), "99.95"),
        (1.23456789e-7, "1.23456789E-7"),
        (123456.7, "123456.7"),
    ],
)
def test_a_float_becomes_money_without_binary_noise(value, text):
    assert decimal_of(value) == Decimal(text)


def test_the_sides():
    assert (opposite("Buy"), opposite("Sell"), sign("Buy"), sign("Sell")) == ("Sell", "Buy", 1, -1)
