"""A recorded day through the whole pipeline equals a plain re-computation, to the digit.

`Plain` below knows nothing of actors, messages or numpy: it is the formulas of the strategy, the
rules of orders and the bar path, written down once more for one symbol after the other.
"""

import math
import statistics
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from services.backtest.replay import Replay
from services.paper.market import MINUTE_MS
from services.paper.market import Replay as Recorded
from shared import messages as msg
from shared.settings import Settings

DATA = Path(__file__).parents[2] / "shared" / "data"
FILE = DATA / "binance_usdtperp_1m_8sym_2025-05-04_2025-06-03.npz"
DAY_MS = 1_747_872_000_000  # 2025-05-22 00:00 UTC
HISTORY = 400
SIZE = Decimal(200)
MAKER, TAKER = Decimal("0.0002"), Decimal("0.00055")

needs_data = pytest.mark.skipif(not FILE.exists(), reason=f"no recorded klines at {FILE}")


def test_a_dip_below_the_band_is_bought_and_sold_at_the_profit(tmp_path):
    """Centres alternate 100.0, 100.2: sigma 0.107, lower band 99.6. One bar dips to 98.5."""
    calm = [[100.0, 100.15, 99.85, 100.0], [100.2, 100.35, 100.05, 100.2]] * 210
    dip = [[100.2, 100.2, 98.5, 98.6], [98.6, 100.6, 98.6, 100.5]]
    after = [[100.5, 100.6, 100.4, 100.5]] * 3
    rows = enumerate([*calm, *dip, *after])
    lines = [f"{DAY_MS + i * MINUTE_MS},{o},{h},{low},{c},6000" for i, (o, h, low, c) in rows]
    header = "open_time_ms,open,high,low,close,volume"
    (tmp_path / "ABCUSDT.csv").write_text("\n".join([header, *lines]) + "\n")
    feed = Recorded(tmp_path, 0, 0, HISTORY)
    fills = run(feed)["ABCUSDT"]
    assert fills == Plain("ABCUSDT", Recorded(tmp_path, 0, 0, HISTORY)).run()
    (_, bought, entry, qty, maker), (_, sold, profit, back, _) = fills[:2]
    assert (bought, sold, qty, maker) == ("Buy", "Sell", back, True)
    assert profit > entry


@needs_data
@pytest.mark.parametrize("hours", [24])
def test_a_recorded_day_equals_the_plain_recomputation(hours):
    feed = Recorded(FILE, DAY_MS, hours * 60, HISTORY)
    fills = run(feed)
    again = Recorded(FILE, DAY_MS, hours * 60, HISTORY)
    plain = {symbol: Plain(symbol, again).run() for symbol in fills}
    for symbol, rows in fills.items():
        assert rows == plain[symbol], symbol
    assert sum(len(rows) for rows in fills.values()) > 100


def run(feed):
    """Fills of every symbol as the pipeline makes them: (ts_ms, side, price, qty, maker)."""
    settings = Settings(
        _env_file=None,
        SIZE_USDT=SIZE,
        RATE_LIMIT=1_000,
        PAPER_RATE_LIMIT=1_000,
        PAPER_BOOK="bare",
        PAPER_BALANCE_USDT=Decimal(1_000_000),
    )
    fills = {listing.symbol: [] for listing in feed.listings}

    def heard(message):
        if isinstance(message, msg.Execution) and message.exec_type == "Trade":
            m = message
            row = (m.exec_time_ms, m.side, m.exec_price, m.exec_qty, m.is_maker)
            fills[m.symbol].append(row)

    replay = Replay(settings, feed, feed.start_ms, heard)
    replay.run(feed.end_ms)
    held = {symbol: p.size for symbol, p in replay.venue.matching.wallet.positions.items()}
    for symbol, rows in fills.items():
        assert held.get(symbol, 0) == sum(q if side == "Buy" else -q for _, side, _, q, _ in rows)
    return fills


class Plain:
    """One symbol of the pipeline, written as one loop."""

    def __init__(self, symbol, feed):
        self.feed, self.start_ms, self.end_ms = feed, feed.start_ms, feed.end_ms
        names = [listing.symbol for listing in feed.listings]
        self.which, self.count = names.index(symbol), len(names)
        self.listing = feed.listings[self.which]
        self.tick, self.step = self.listing.tick_size, self.listing.qty_step
        self.series = feed._series[symbol]
        self.bars = []  # closed, as floats: open, high, low, close
        self.entry = None
        self.lots = []
        self.exits = []
        self.used_ms = {"Buy": -1, "Sell": -1}
        self.quote = None
        self.last = None
        self.market_ms = 0
        self.queue = 0
        self.fills = []

    def run(self):
        first = max(self.start_ms - HISTORY * MINUTE_MS, self.feed._next_ms)
        row = (first - self.series.start_ms) // MINUTE_MS
        for at_ms in range(first, self.end_ms, MINUTE_MS):
            if at_ms == self.start_ms:
                self.last = self.exchange_last = int(self.series.bars[row - 1][3]) * self.tick
                self.market_ms = at_ms
                self.requote(at_ms)
            bar = [int(x) for x in self.series.bars[row]]
            volume = Decimal(int(self.series.volume[row] / 60 / float(self.step))) * self.step
            if at_ms >= self.start_ms:
                for second, ticks in enumerate(path(bar)):
                    ts_ms = at_ms + second * 1000 + self.which * 1000 // self.count
                    self.point(ts_ms, at_ms, ticks * self.tick, volume)
                self.close_bar(at_ms, bar)
                self.market_ms = at_ms + MINUTE_MS - 1
                self.now_ms = at_ms + 59_000 + (self.count - 1) * 1000 // self.count
                self.converge(self.quote, at_ms)
                self.requote(at_ms + MINUTE_MS)
                self.converge(self.quote, at_ms + MINUTE_MS)
            else:
                self.close_bar(at_ms, bar)
            row += 1
        return self.fills

    def close_bar(self, at_ms, bar):
        places = -self.tick.as_tuple().exponent
        self.bars.append([float(f"{t * float(self.tick):.{places}f}") for t in bar])

    def bands(self):
        window = self.bars[-7:]
        typical = [(o + h + low + c) / 4 for o, h, low, c in window]
        basis, sigma = statistics.fmean(typical), statistics.stdev(typical)
        self.lower, self.upper = basis - 4.5 * sigma, basis + 4.5 * sigma
        ranges = [(h - low) / c for _, h, low, c in window]
        self.volatility = 100 * statistics.fmean(ranges)

    def requote(self, bar_ms):
        """(side, zone, price, take profit, bar) from the closed bars and the last price."""
        self.bands()
        last = float(self.last)
        buy, sell = (last - self.lower) / self.lower, (self.upper - last) / self.upper
        side, d = ("Buy", buy) if buy <= sell else ("Sell", sell)
        zone = "ARM" if -0.005 <= d <= 0.003 else "HOLD" if abs(d) <= 0.005 else "NONE"
        if self.volatility < 0.20:
            zone = "NONE"
        price = self.lower * 0.9995 if side == "Buy" else self.upper * 1.0005
        profit = Decimal(f"{0.275 + self.volatility / 2:.12g}")
        self.quote = (side, zone, Decimal(f"{price:.12g}"), profit, bar_ms)

    def point(self, ts_ms, bar_ms, price, volume):
        """One trade of the market: fills first, then the account, then the new price."""
        self.now_ms = ts_ms
        filled = self.match(ts_ms, price, volume)
        self.exchange_last = price
        if filled and self.quote:
            self.converge(self.quote, bar_ms)
        old, self.last, self.market_ms = self.quote, price, ts_ms
        if old:
            self.converge(old, bar_ms)
        self.requote(bar_ms)
        self.converge(self.quote, bar_ms)

    def match(self, ts_ms, price, volume):
        orders = ([self.entry] if self.entry else []) + self.exits
        filled, left = False, volume
        for order in sorted(orders, key=lambda o: o["queue"]):
            beyond = order["price"] > price if order["side"] == "Buy" else order["price"] < price
            at = order["price"] == price
            qty = order["qty"] - order["filled"]
            if at:
                qty = min(qty, left)
                left -= qty
            if (beyond or at) and qty > 0:
                self.fill(order, qty, order["price"], True, ts_ms)
                filled = True
        return filled

    def fill(self, order, qty, price, maker, ts_ms):
        self.fills.append((ts_ms, order["side"], price, qty, maker))
        order["filled"] += qty
        lot = order["lot"]
        if order is self.entry:
            if lot is None:
                lot = {"side": order["side"], "bought": 0, "cost": 0, "before": 0, "sold": 0}
                lot |= {"profit": order["profit"], "bar": order["bar"]}
                self.lots.append(lot)
                order["lot"] = lot
            lot["bought"] += qty
            lot["cost"] += qty * price
            bar_ms = ts_ms // MINUTE_MS * MINUTE_MS
            self.used_ms[order["side"]] = max(self.used_ms[order["side"]], bar_ms)
        else:
            lot["sold"] += qty
        if order["filled"] == order["qty"]:
            if order is self.entry:
                self.entry = None
            else:
                lot["before"] += order["filled"]
                self.exits.remove(order)
        self.lots = [x for x in self.lots if x["sold"] < x["bought"]]

    def converge(self, quote, bar_ms):
        side, zone, price, profit, bar = quote
        for lot in list(self.lots):
            self.exit(lot, quote)
        if self.entry and (zone == "NONE" or side != self.entry["side"]):
            self.entry = None
        if zone == "NONE" or (self.entry is None and zone != "ARM"):
            return
        way = 1 if side == "Buy" else -1
        price = self.on_grid(price, side)
        price = min(price * way, (self.last - way * self.tick) * way) * way
        if self.entry and (self.last - self.entry["price"]) * way <= 0:
            return  # reached: it is being filled where it rests
        if self.entry:
            moved = abs(price - self.entry["price"]) / self.entry["price"] * 100
            if moved >= Decimal("0.02") and self.may_reprice(self.entry):
                self.reprice(self.entry, price)
            return
        if self.lots:
            if self.lots[0]["side"] != side or len(self.lots) >= 10:
                return
            best = min(lot["cost"] / lot["bought"] * way for lot in self.lots) * way
            if (best - price) * way / best * 100 < Decimal("0.2"):
                return
        qty = SIZE / price // self.step * self.step
        if bar <= self.used_ms[side] or qty < self.listing.min_order_qty:
            return
        self.used_ms[side] = bar
        if price * way >= self.exchange_last * way:
            return  # PostOnly would take: cancelled, and the bar is used
        self.entry = self.order(side, price, qty, None)
        self.entry |= {"profit": profit, "bar": bar}

    def exit(self, lot, quote):
        side, zone, quoted, _, _ = quote
        way = 1 if lot["side"] == "Buy" else -1
        out = "Sell" if way == 1 else "Buy"
        price = lot["cost"] / lot["bought"] * (1 + way * lot["profit"] / 100)
        if side == out and zone != "NONE":
            price = min(price * way, quoted * way) * way
        price, qty = self.on_grid(price, out), lot["bought"] - lot["before"]
        if qty == 0:
            return
        order = next((o for o in self.exits if o["lot"] is lot), None)
        if order is None:
            order = self.order(out, price, qty, lot)
            self.exits.append(order)
        elif order["qty"] != qty:
            order["qty"] = qty
            self.reprice(order, price)
            return
        elif order["price"] != price and self.may_reprice(order):
            self.reprice(order, price)
            return
        else:
            return
        self.take(order)

    def may_reprice(self, order):
        return self.market_ms - order["repriced_ms"] >= 2_000

    def reprice(self, order, price):
        if order["price"] != price and order["repriced_ms"] is not None:
            order["repriced_ms"] = self.market_ms
        order["price"], order["queue"] = price, self.next()
        if order is self.entry and self.crosses(order):
            self.entry = None  # PostOnly
        elif order is not self.entry:
            self.take(order)

    def take(self, order):
        """An exit past its price trades at once, as taker."""
        if self.crosses(order):
            self.fill(order, order["qty"] - order["filled"], self.exchange_last, False, self.now_ms)
            self.converge(self.quote, 0)

    def crosses(self, order):
        way = 1 if order["side"] == "Buy" else -1
        return order["price"] * way >= self.exchange_last * way

    def order(self, side, price, qty, lot):
        row = {"side": side, "price": price, "qty": qty, "filled": Decimal(0), "lot": lot}
        return row | {"repriced_ms": 0, "queue": self.next()}

    def next(self):
        self.queue += 1
        return self.queue

    def on_grid(self, price, side):
        rounding = ROUND_FLOOR if side == "Buy" else ROUND_CEILING
        return (price / self.tick).to_integral_value(rounding) * self.tick


def path(bar):
    """Sixty prices in ticks: straight lines through open, one extreme, the other, and close."""
    o, h, low, c = bar
    corners = [o, low, h, c] if c >= o else [o, h, low, c]
    places = [0, 20, 40, 59]
    prices = []
    for second in range(60):
        leg = next(i for i in range(3) if second <= places[i + 1])
        share = Fraction(second - places[leg], places[leg + 1] - places[leg])
        prices.append(round(corners[leg] + (corners[leg + 1] - corners[leg]) * share))
    return prices


def test_the_path_is_the_documented_one():
    from services.paper.market import bar_path  # noqa: PLC0415

    rng = np.random.default_rng(7)
    low = rng.integers(1, 10**6, 200)
    bars = low[:, None] + rng.integers(0, 500, (200, 4))
    bars[:, 1], bars[:, 2] = bars.max(axis=1), bars.min(axis=1)
    mine = np.array([path([int(x) for x in bar]) for bar in bars]).T
    assert (bar_path(bars) == mine).all()
    assert math.isclose(float(mine.min()), float(bars[:, 2].min()))
