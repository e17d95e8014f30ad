"""strategy: closed bars and the last price in, an opinion out. Pure, and the only arithmetic.

Everything that needs the bars is prepared when a bar closes; a tick only compares its price with
the thresholds in `Bands`.
"""

from bisect import bisect_left
from math import fsum, inf, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shared.instrument import BUY, SELL, sign
from shared.messages import ARM, HOLD, NONE


class Parameters(NamedTuple):
    """The settings of the strategy; percentages are percentages, not fractions."""

    bb_length: int = 7
    bb_mult: float = 3.0
    bb_dev_mult: float = 1.5
    band_proximity_pct: float = 0.3
    band_overshoot_pct: float = 0.5
    band_exit_pct: float = 0.5
    min_volatility_pct: float = 0.20
    base_fee_pct: float = 0.275
    entry_buffer_pct: float = 0.05


class Edge(NamedTuple):
    """One band as an entry sees it: the resting price, and the prices between which zones hold."""

    side: str
    band: float
    price: float
    arm: tuple[float, float]
    hold: tuple[float, float]


class Bands(NamedTuple):
    """All that follows from the closed bars. Up to `pivot` the lower band is the nearer one;
    between two neighbours of `cuts` no price changes the opinion."""

    lower: Edge
    upper: Edge
    pivot: float
    volatility_pct: float
    take_profit_pct: float
    gate: str
    cuts: tuple[float, ...]


_NO_EDGE = Edge("", 0.0, 0.0, (0.0, 0.0), (0.0, 0.0))
NO_BANDS = Bands(_NO_EDGE, _NO_EDGE, 0.0, 0.0, 0.0, "warmup", ())
"""Too few bars: no price is near a band."""


def bands(window: NDArray[np.float64], p: Parameters) -> Bands:
    """Bands over `window`, float64 (bb_length, >= 4) open high low close, oldest first.

    ohlc4 = (open + high + low + close) / 4, basis = mean(ohlc4), sigma = sample deviation (ddof 1),
    band = basis -+ bb_mult * bb_dev_mult * sigma, volatility_pct = 100 * mean((high - low) / close)
    """
    rows = window[:, :4].tolist()  # for so few numbers Python is faster than numpy
    ohlc4 = [sum(bar) / 4 for bar in rows]
    basis = fsum(ohlc4) / len(rows)
    sigma = sqrt(fsum((value - basis) ** 2 for value in ohlc4) / (len(rows) - 1))
    width = p.bb_mult * p.bb_dev_mult * sigma
    volatility_pct = 100 * fsum((high - low) / close for _, high, low, close in rows) / len(rows)
    lower, upper = basis - width, basis + width
    gate = "volatility" if volatility_pct < p.min_volatility_pct else "" if lower > 0 else "band"
    below, above = _edge(BUY, lower, p), _edge(SELL, upper, p)
    pivot = 2 * lower * upper / (lower + upper) if lower > 0 else 0.0
    return Bands(
        lower=below,
        upper=above,
        pivot=pivot,
        volatility_pct=volatility_pct,
        take_profit_pct=p.base_fee_pct + volatility_pct / 2,
        gate=gate,
        cuts=tuple(sorted((pivot, *below.arm, *below.hold, *above.arm, *above.hold))),
    )


def _edge(side: str, band: float, p: Parameters) -> Edge:
    """Distance is positive before the band is reached: above a lower band, below an upper one."""
    inward = sign(side)

    def between(outside_pct: float, inside_pct: float) -> tuple[float, float]:
        ends = band * (1 - inward * outside_pct / 100), band * (1 + inward * inside_pct / 100)
        return min(ends), max(ends)

    return Edge(
        side,
        band,
        price=band * (1 - inward * p.entry_buffer_pct / 100),
        arm=between(p.band_overshoot_pct, p.band_proximity_pct),
        hold=between(p.band_exit_pct, p.band_exit_pct),
    )


def calm(b: Bands, last: float) -> tuple[float, float]:
    """Any price between these two, ends excluded, gets the opinion that `last` gets."""
    at = bisect_left(b.cuts, last)
    low = b.cuts[at - 1] if at else -inf
    high = b.cuts[at] if at < len(b.cuts) else inf
    return (last, last) if high == last else (low, high)


def nearer(b: Bands, last: float) -> Edge:
    """The band that has the quote."""
    return b.lower if last <= b.pivot else b.upper


def zone(edge: Edge, last: float) -> str:
    """ARM, HOLD or NONE, by the distance of `last` to the band."""
    if edge.arm[0] <= last <= edge.arm[1]:
        return ARM
    return HOLD if edge.hold[0] <= last <= edge.hold[1] else NONE


def distance_pct(edge: Edge, last: float) -> float:
    """100 * (last - lower) / lower, or 100 * (upper - last) / upper; a band of zero has none."""
    inward = sign(edge.side)
    return 100 * inward * (last - edge.band) / edge.band if edge.band else 0.0
