"""The strategy against the formulas of DESIGN §5, written down once more in exact arithmetic.

`Plain` takes floats as the rational numbers they are; only the square root is rounded. Nothing in
it is shared with the code under test.
"""

import math
import statistics
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from services.worker.strategy import (
    NO_BANDS,
    Parameters,
    bands,
    calm,
    distance_pct,
    nearer,
    zone,
)

ANY_SPEED = {
    "derandomize": True,
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow],
}

P = Parameters()
CLOSE_ENOUGH = 1e-12  # relative: what the 12 digits of `decimal_of` can show

prices = st.floats(-7, 5).map(lambda exponent: 10**exponent)
parts = st.floats(0, 1)


@st.composite
def windows(draw):
    """Bars around one price: each moves up to 2 %, with open and close between low and high."""
    base, found = draw(prices), []
    for _ in range(draw(st.integers(2, 30))):
        low = base * (0.99 + draw(parts) / 100)
        high = low * (1 + draw(parts) / 100)
        found.append(
            [low + draw(parts) * (high - low), high, low, low + draw(parts) * (high - low)]
        )
    return [[*bar, 1.0] for bar in ([min(max(v, b[2]), b[1]) for v in b] for b in found)]


class Plain(NamedTuple):
    """Bands as a person would compute them."""

    lower: Fraction
    upper: Fraction
    volatility_pct: Fraction

    @classmethod
    def of(cls, window, p=P):
        exact = [[Fraction(value) for value in bar[:4]] for bar in window]
        ohlc4 = [sum(bar) / 4 for bar in exact]
        basis, sigma = statistics.mean(ohlc4), Fraction(statistics.stdev(ohlc4))
        width = Fraction(p.bb_mult) * Fraction(p.bb_dev_mult) * sigma
        volatility = statistics.mean((high - low) / close for _, high, low, close in exact)
        return cls(basis - width, basis + width, 100 * volatility)


def made(window, p=P):
    return bands(np.array(window), p)


def around(centre=125.0, swing=1.0, spread=2.0):
    """Three bars with ohlc4 of centre - swing, centre, centre + swing: sigma is the swing."""
    return [
        [value, value + spread / 2, value - spread / 2, value, 1.0]
        for value in (centre - swing, centre, centre + swing)
    ]


# Basis 125, sigma 1, 25 sigma wide: lower 100, upper 150.
ROUND = made(around(), P._replace(bb_mult=25.0, bb_dev_mult=1.0))


@settings(max_examples=100, **ANY_SPEED)
@given(windows())
@example([[1e-7, 1.1e-7, 0.9e-7, 1e-7, 1.0], [1.01e-7, 1.1e-7, 1e-7, 1.05e-7, 1.0]])
@example([[1e5 + i * 0.01, 1e5 + 300, 1e5 - 300, 1e5 - i * 0.02, 1.0] for i in range(7)])
def test_bands_and_volatility_are_those_of_the_formulas(window):
    found, plain = made(window), Plain.of(window)
    price = window[0][0]  # an error counts against the price: bands are differences of prices
    assert found.lower.band == pytest.approx(float(plain.lower), rel=0, abs=CLOSE_ENOUGH * price)
    assert found.upper.band == pytest.approx(float(plain.upper), rel=0, abs=CLOSE_ENOUGH * price)
    assert found.volatility_pct == pytest.approx(float(plain.volatility_pct), rel=1e-9, abs=1e-11)
    assert found.take_profit_pct == pytest.approx(0.275 + float(plain.volatility_pct) / 2, rel=1e-9)


@settings(max_examples=60, **ANY_SPEED)
@given(windows(), st.integers(-40, 20))
def test_a_price_in_another_unit_gives_the_same_bands_in_that_unit(window, exponent):
    """A power of two changes no digit, so equality is exact."""
    unit = 2.0**exponent
    one, other = made(window), made([[value * unit for value in bar] for bar in window])
    assert other.lower.band == one.lower.band * unit
    assert other.upper.price == one.upper.price * unit
    assert other.pivot == one.pivot * unit
    assert (other.volatility_pct, other.gate) == (one.volatility_pct, one.gate)


@pytest.mark.parametrize(("price", "tick"), [(1.234e-7, 1e-10), (98_765.43, 0.01)])
def test_one_tick_of_one_bar_is_seen_at_any_price(price, tick):
    """sigma of seven equal bars and one that closes a tick higher: tick / 4 / sqrt(7)."""
    flat = [[price] * 4 + [1.0]] * 6
    found = made([*flat, [price, price + tick, price, price + tick, 1.0]])
    sigma = (tick / 2) / math.sqrt(7)  # high and close of four values moved: half a tick
    width = found.upper.band - found.lower.band
    assert width == pytest.approx(2 * 3.0 * 1.5 * sigma, rel=1e-4)


def test_a_window_as_a_person_would_compute_it():
    """Values 99, 100, 101: basis 100, sigma 1, width 4.5; volatility 2 / close, three times."""
    found = made(around(centre=100.0))
    assert (found.lower.band, found.upper.band) == (95.5, 104.5)
    volatility_pct = 100 * (2 / 99 + 2 / 100 + 2 / 101) / 3
    assert found.volatility_pct == pytest.approx(volatility_pct)
    assert found.take_profit_pct == pytest.approx(0.275 + volatility_pct / 2)
    assert found.lower.price == pytest.approx(95.5 * 0.9995)  # 0.05 % beyond
    assert found.upper.price == pytest.approx(104.5 * 1.0005)


def test_a_negative_buffer_rests_the_entry_inside_the_band():
    found = made(around(centre=100.0), P._replace(entry_buffer_pct=-1.0))
    assert found.lower.price == pytest.approx(95.5 * 1.01)
    assert found.upper.price == pytest.approx(104.5 * 0.99)


@pytest.mark.parametrize(
    ("last", "side", "expected"),
    [
        (99.4999, "Buy", "NONE"),  # 0.5001 % beyond
        (99.5001, "Buy", "ARM"),
        (100.0, "Buy", "ARM"),
        (100.2999, "Buy", "ARM"),
        (100.3001, "Buy", "HOLD"),
        (100.4999, "Buy", "HOLD"),
        (100.5001, "Buy", "NONE"),
        (149.2499, "Sell", "NONE"),  # 150 * (1 - 0.005) = 149.25
        (149.2501, "Sell", "HOLD"),
        (149.5499, "Sell", "HOLD"),  # 150 * (1 - 0.003) = 149.55
        (149.5501, "Sell", "ARM"),
        (150.0, "Sell", "ARM"),
        (150.7499, "Sell", "ARM"),  # 150 * (1 + 0.005) = 150.75
        (150.7501, "Sell", "NONE"),
    ],
)
def test_zones_around_bands_of_100_and_150(last, side, expected):
    edge = nearer(ROUND, last)
    assert (ROUND.lower.band, ROUND.upper.band) == (100.0, 150.0)
    assert (edge.side, zone(edge, last)) == (side, expected)


def test_the_band_at_the_smaller_share_of_its_price_is_the_nearer_one():
    """At 120 both are 20 % away: 20 / 100 and 30 / 150."""
    assert (nearer(ROUND, 119.99).side, nearer(ROUND, 120.01).side) == ("Buy", "Sell")


def test_an_overshoot_below_the_exit_holds_what_rests_beyond_the_band():
    """With 0.2 % of overshoot a buy is kept from -0.5 % to -0.2 %, and created above."""
    found = made(around(), P._replace(bb_mult=25.0, bb_dev_mult=1.0, band_overshoot_pct=0.2))
    lasts = {99.4: "NONE", 99.6: "HOLD", 99.79: "HOLD", 99.81: "ARM"}
    assert {last: zone(nearer(found, last), last) for last in lasts} == lasts


@settings(max_examples=100, **ANY_SPEED)
@given(windows(), st.floats(-2, 2), st.booleans())
def test_side_zone_and_distance_are_those_of_the_exact_distances(window, away_pct, at_lower):
    found = made(window)
    assume(found.gate != "band")
    band = found.lower.band if at_lower else found.upper.band
    last = band * (1 + away_pct / 100)
    lower, upper, price = (Fraction(v) for v in (found.lower.band, found.upper.band, last))
    buy_pct, sell_pct = 100 * (price - lower) / lower, 100 * (upper - price) / upper
    d_pct = min(buy_pct, sell_pct)  # the nearer band has the quote
    limits = (Fraction("-0.5"), Fraction("0.3"), Fraction("0.5"))
    assume(all(abs(d_pct - limit) > 1e-9 for limit in limits) and abs(buy_pct - sell_pct) > 1e-9)
    edge = nearer(found, last)
    assert edge.side == ("Buy" if buy_pct < sell_pct else "Sell")
    inside = limits[0] <= d_pct <= limits[1]
    assert zone(edge, last) == ("ARM" if inside else "HOLD" if abs(d_pct) <= 0.5 else "NONE")
    assert distance_pct(edge, last) == pytest.approx(float(d_pct), rel=1e-9, abs=1e-9)


def test_volatility_at_the_minimum_is_enough():
    """(1026 - 1022) / 1024 = 1 / 256 in every bar: 0.390625 % without rounding."""
    calm = [[1024.0, 1026.0, 1022.0, 1024.0, 1.0]] * 7
    least = P._replace(min_volatility_pct=0.390625)
    assert (made(calm, least).volatility_pct, made(calm, least).gate) == (0.390625, "")
    more = P._replace(min_volatility_pct=math.nextafter(0.390625, 1))
    assert made(calm, more).gate == "volatility"


def test_a_lower_band_that_is_no_price_gives_no_quote():
    """Basis 125, sigma 1: 124.9 sigma leave 0.1, and 125 leave nothing."""
    for mult, gate in ((124.9, ""), (125.0, "band"), (126.0, "band")):
        assert made(around(), P._replace(bb_mult=mult, bb_dev_mult=1.0)).gate == gate


def test_too_few_bars_have_no_band_near_any_price():
    assert NO_BANDS.gate == "warmup"
    for last in (1e-7, 1.0, 1e5):
        edge = nearer(NO_BANDS, last)
        assert (zone(edge, last), distance_pct(edge, last)) == ("NONE", 0.0)


def test_equal_bars_have_both_bands_on_the_price():
    flat = [[100.0, 100.2, 99.8, 100.0, 1.0]] * 7  # ohlc4 = 100, volatility 0.4 %
    found = made(flat)
    assert (found.lower.band, found.upper.band, found.gate) == (100.0, 100.0, "")
    assert zone(nearer(found, 100.0), 100.0) == "ARM"


@settings(max_examples=300, **ANY_SPEED)
@given(
    windows(),
    st.tuples(*[st.floats(0, 2)] * 3),
    st.floats(-3, 3),
    st.floats(0, 1),
    st.sampled_from(range(10)),
)
def test_between_two_neighbouring_cuts_every_price_gets_the_same_opinion(
    window, shares, away_pct, part, at
):
    """At a cut itself nothing is promised, and a price just beside it is still right."""
    proximity, overshoot, leave = shares
    p = P._replace(band_proximity_pct=proximity, band_overshoot_pct=overshoot, band_exit_pct=leave)
    b = bands(np.array(window), p)
    for last in (b.cuts[at % len(b.cuts)], b.lower.band * (1 + away_pct / 100)):
        for beside in (math.nextafter(last, -math.inf), last, math.nextafter(last, math.inf)):
            low, high = calm(b, beside)
            other = max(low, -1e300) * (1 - part) + min(high, 1e300) * part
            if low < other < high:
                assert low < beside < high
                ours, theirs = nearer(b, beside), nearer(b, other)
                assert (ours.side, zone(ours, beside)) == (theirs.side, zone(theirs, other))
