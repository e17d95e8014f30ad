"""instrument: prices and quantities on the exchange's grid. The one place that rounds."""

from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

from shared.messages import Instrument

BUY, SELL = "Buy", "Sell"
CENT = Decimal("0.01")


def opposite(side: str) -> str:
    """The other side."""
    return SELL if side == BUY else BUY


def sign(side: str) -> int:
    """+1 for Buy, -1 for Sell."""
    return 1 if side == BUY else -1


def decimal_of(value: float) -> Decimal:
    """A float of the strategy as money: 12 significant digits, so no binary noise survives."""
    return Decimal(f"{value:.12g}")


def round_price(price: Decimal, side: str, instrument: Instrument) -> Decimal:
    """To the tick on the passive side: Buy down, Sell up."""
    rounding = ROUND_FLOOR if side == BUY else ROUND_CEILING
    tick = instrument.tick_size
    return (price / tick).to_integral_value(rounding) * tick


def round_qty(qty: Decimal, instrument: Instrument) -> Decimal:
    """Down to the quantity step."""
    step = instrument.qty_step
    return (qty / step).to_integral_value(ROUND_FLOOR) * step


def entry_qty(size_usdt: Decimal, price: Decimal, instrument: Instrument) -> tuple[Decimal, str]:
    """The quantity that `size_usdt` buys at `price`; or 0, and which minimum it is below."""
    qty = min(round_qty(size_usdt / price, instrument), instrument.max_order_qty)
    rule = ""
    if qty < instrument.min_order_qty:
        rule = f"min_order_qty {instrument.min_order_qty:f}"
    elif qty * price < instrument.min_notional_value:
        rule = f"min_notional_value {instrument.min_notional_value:f}"
    if rule:
        least = least_usdt(price, instrument)
        return Decimal(0), f"least order of {least:f} USDT ({rule})"
    return qty, ""


def least_usdt(price: Decimal, instrument: Instrument) -> Decimal:
    """What the smallest order at `price` costs, up to the cent: a whole number of steps."""
    step, least = instrument.qty_step, instrument.min_notional_value / price
    steps = (max(instrument.min_order_qty, least) / step).to_integral_value(ROUND_CEILING)
    return (steps * step * price).quantize(CENT, ROUND_CEILING)
