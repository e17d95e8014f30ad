"""What one update costs, beside the threaded design and other people's indicators, in us.

Each contestant does the same on the same numbers: 500 symbols round robin, bands of 20 bars. All
take turns, several times, in one process; the median of each counts, and so do the ratios.
"""

import contextlib
import statistics
import time
import tracemalloc
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from services.router.actor import Router
from services.worker.actor import Worker
from services.worker.ring import Ring
from services.worker.strategy import Parameters, bands
from shared import messages as msg
from shared.settings import Settings
from tests.bench.threaded_bot import Buffer, ThreadedBot

LENGTH, WIDTH = 20, 4.5
SYMBOLS = [f"S{number:03}USDT" for number in range(500)]
ROUNDS = 7
UPDATES = 5_000  # of each contestant in a round
MINUTE_MS, START_MS = 60_000, 1_700_000_040_000
HELD, WORKING = 200, 2_000  # of the router's bench
MANY = 1_000_000


def walk(count, price=100.0, seed=1):
    """float64 (count, 5) of a random walk, rounded as prices are: open, high, low, close, volume"""
    moves = np.random.default_rng(seed).normal(0, 4e-3, (count, 3))
    closes = price * np.exp(np.cumsum(moves[:, 0]))
    opens = np.concatenate(([price], closes[:-1]))
    highs = np.maximum(opens, closes) * (1 + np.abs(moves[:, 1]))
    lows = np.minimum(opens, closes) * (1 - np.abs(moves[:, 2]))
    return np.column_stack((opens, highs, lows, closes, np.ones(count)))


def kline(symbol, number, bar, confirm=False, ts_ms=1):
    """A push of bar `number`."""
    start_ms = START_MS + number * MINUTE_MS
    opened, high, low, close, volume = map(float, bar)
    prices = (opened, high, low, close, volume, volume * close)
    return msg.Kline(symbol, start_ms, *prices, confirm, start_ms + ts_ms, 1)


def medians(contestants, rounds=ROUNDS):
    """{name: median us of one update} of functions that make so many updates; they take turns."""
    times = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, (count, run) in contestants.items():
            began = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - began) / count * 1e6)
    return {name: statistics.median(values) for name, values in times.items()}


def worker_of(folder):
    """A worker that knows 300 bars of every symbol."""
    settings = Settings(_env_file=None, SHARDS=1, RUN_DIR=Path(folder), BB_LENGTH=LENGTH)
    worker = Worker(settings)
    worker.start(1)
    numbers = [Decimal(1)] * 5
    rows = tuple(msg.Instrument(symbol, *numbers, "Trading", 480) for symbol in SYMBOLS)
    worker.handle(msg.Instruments(rows), 1)
    for number, symbol in enumerate(SYMBOLS):
        bars = walk(300, seed=number)
        worker.handle(msg.History(symbol, START_MS, bars.tobytes()), 1)
        worker.handle(kline(symbol, 300, bars[-1]), 2)
    return worker


def threaded_of():
    """The threaded design with the same bars, without its sockets."""
    bot = ThreadedBot.__new__(ThreadedBot)
    bot.p, bot.orders, bot.used, bot.closes = Parameters(bb_length=LENGTH), {}, {}, []
    bot.buffers = {symbol: Buffer() for symbol in SYMBOLS}
    for number, symbol in enumerate(SYMBOLS):
        for bar in walk(300, seed=number):
            bot.buffers[symbol].push(bar.tolist(), True, LENGTH, WIDTH)
    return bot


def ticks(worker, bot):
    """A tick that changes nothing: from the numbers of a push to the end of all that follows."""
    turns = UPDATES // len(SYMBOLS)
    middles = [worker._symbols[s].ring.window(LENGTH)[:, :4].mean() for s in SYMBOLS]
    bars = [[float(middle)] * 4 + [1.0] for middle in middles]  # far from both bands
    klines = [kline(symbol, 300, bar) for symbol, bar in zip(SYMBOLS, bars, strict=True)]
    for one in klines:
        worker.handle(one, 3)

    def ours():
        for _ in range(turns):
            for one in klines:
                worker._kline(one, 3)

    def dispatched():
        for _ in range(turns):
            for one in klines:
                worker.handle(one, 3)

    def theirs():
        for _ in range(turns):
            for symbol, bar in zip(SYMBOLS, bars, strict=True):
                found = bot.buffers[symbol].push(bar, False, LENGTH, WIDTH)
                bot.check(symbol, 0, bar[3], found)

    return {
        "tick, worker": (UPDATES, ours),
        "tick, worker, by its hook": (UPDATES, dispatched),
        "tick, threaded design": (UPDATES, theirs),
    }


def closes(worker, bot):
    """A bar that closes: new bands, and what is said of them."""
    bars = [walk(1, seed=number)[0] for number in range(len(SYMBOLS))]
    at = [300]

    def ours():
        for symbol, bar in zip(SYMBOLS, bars, strict=True):
            worker.handle(kline(symbol, at[0], bar, True), 3)
        at[0] += 1

    def theirs():
        for symbol, bar in zip(SYMBOLS, bars, strict=True):
            bot.buffers[symbol].push(bar.tolist(), True, LENGTH, WIDTH)

    count = len(SYMBOLS)
    return {"close, worker": (count, ours), "close, threaded design": (count, theirs)}


def peers():
    """Other people's Bollinger bands, as far as they are installed: one update of each."""
    typical = walk(300)[:, :4].mean(axis=1)
    found = {}
    with contextlib.suppress(ImportError):
        import talib  # noqa: PLC0415

        def ta_lib():
            for _ in range(UPDATES):
                talib.BBANDS(typical, timeperiod=LENGTH, nbdevup=WIDTH, nbdevdn=WIDTH)

        found["update, TA-Lib BBANDS on 300 values"] = (UPDATES, ta_lib)
    with contextlib.suppress(ImportError):
        from nautilus_trader.core.nautilus_pyo3 import BollingerBands as Rust  # noqa: PLC0415
        from nautilus_trader.indicators import BollingerBands as Cython  # noqa: PLC0415

        for name, kind in (("Cython", Cython), ("Rust", Rust)):
            made = [kind(LENGTH, WIDTH) for _ in SYMBOLS]

            def nautilus(made=made):
                for value in typical[: UPDATES // len(SYMBOLS)].tolist():
                    for one in made:
                        one.update_raw(value, value, value)

            found[f"update, nautilus_trader ({name})"] = (UPDATES, nautilus)
    with contextlib.suppress(ImportError):
        import pandas  # noqa: PLC0415

        series = pandas.Series(typical)

        def rolling():
            for _ in range(UPDATES // 50):
                window = series.rolling(LENGTH)
                basis, sigma = window.mean(), window.std()
                basis.iloc[-1] - WIDTH * sigma.iloc[-1]

        found["update, pandas rolling on 300 values"] = (UPDATES // 50, rolling)
    return found


def wire():
    """A kline to bytes and back, as it crosses the bus."""
    one = kline("SOLUSDT", 300, walk(1)[0])
    frame = msg.encode(one)

    def encode():
        for _ in range(UPDATES):
            msg.encode(one)

    def decode():
        for _ in range(UPDATES):
            msg.decode(frame)

    return {"encode a kline": (UPDATES, encode), "decode a kline": (UPDATES, decode)}


def router():
    """A decision of the router on one quote, with 200 lots and 2,000 working orders, and with
    none."""
    found = {}
    for name, held, working in (("nothing held", 0, 0), ("200 lots, 2,000 orders", HELD, WORKING)):
        one = Router(Settings(_env_file=None, RATE_LIMIT=100))
        one.start(1)
        numbers = (Decimal("0.01"), Decimal("0.1"), Decimal("0.1"), Decimal(10_000), Decimal(5))
        rows = tuple(msg.Instrument(symbol, *numbers, "Trading", 480) for symbol in SYMBOLS)
        one.handle(msg.Instruments(rows), 1)
        one.handle(msg.Fetched(msg.Fetch("account"), ()), 1)
        one.handle(msg.Link("trade", True), 1)
        each = working // held if held else 0
        positions = tuple(_held(symbol, each) for symbol in SYMBOLS[:held])
        mode = msg.Mode(("ledger", 1), msg.RUN, "", tuple(SYMBOLS[:held]))
        one.handle(msg.FullSet(positions, mode), 1)
        quotes = [_quote(symbol) for symbol in SYMBOLS]
        for quote in quotes:
            one.handle(quote, 2)

        def decide(one=one, quotes=quotes):
            for quote in quotes:
                one.handle(quote, 2)

        found[f"router, a quote, {name}"] = (len(quotes), decide)
    return found


def _held(symbol, count):
    """A lot with its exit, and stop losses: it was bought in parts."""
    start_ms = START_MS
    lot_id = msg.entry_id(symbol, "Buy", start_ms)
    zero, one = Decimal(0), Decimal(1)
    terms = (one, Decimal(100), zero, zero, zero, zero, 0, one, start_ms, start_ms)
    lot = msg.Lot(lot_id, symbol, "Buy", *terms)
    orders = [_order(msg.exit_id(lot_id, 0), symbol, "Sell", msg.EXIT, "101")]
    for number in range(1, count):
        orders.append(_order(msg.stop_id(lot_id, number), symbol, "Sell", msg.STOP, "95"))
    return msg.Position(symbol, ("ledger", 1), (lot,), tuple(orders))


def _order(name, symbol, side, kind, price):
    terms = (Decimal(price), Decimal(1), Decimal(0), "New", START_MS, Decimal(1), 0)
    return msg.Order(name, "7", symbol, side, kind, *terms)


def _quote(symbol):
    prices = (95.0, msg.HOLD, "", 1.0, 95.1, 105.0, 100.0, 5.0, 0.5)
    return msg.Quote(symbol, "Buy", *prices, START_MS + 300 * MINUTE_MS, 1, 1, 2)


def accuracy():
    """{price: largest relative error of a band after 10^6 closed bars}, against exact numbers."""
    found = {}
    parameters = Parameters(bb_length=LENGTH)
    for price in (1e-7, 1.0, 1e5):
        ring, bars, worst = Ring(MINUTE_MS), walk(MANY // 10, price), 0.0
        ring.load(START_MS, bars[:LENGTH].tobytes())
        for turn in range(10):
            for bar in bars[LENGTH if not turn else 0 :].tolist():
                ring.append(ring.next_ms, bar)
            window = ring.window(LENGTH)
            exact = [[Fraction(float(value)) for value in bar[:4]] for bar in window]
            typical = [sum(bar) / 4 for bar in exact]
            basis = sum(typical) / LENGTH
            variance = sum((value - basis) ** 2 for value in typical) / (LENGTH - 1)
            lower = float(basis) - WIDTH * float(variance) ** 0.5
            ours = bands(window, parameters).lower.band
            worst = max(worst, abs(ours / lower - 1))
        found[f"{price:g}"] = worst
    return found


def growth(worker):
    """Bytes that a million ticks leave behind."""
    klines = [kline(symbol, 300, worker._symbols[symbol].ring.window(1)[0]) for symbol in SYMBOLS]
    for one in klines:
        worker.handle(one, 3)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for _ in range(MANY // len(SYMBOLS)):
        for one in klines:
            worker.handle(one, 3)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return after - before


def times():
    """{contestant: median us}"""
    with TemporaryDirectory(prefix="dm-bench-") as folder:
        worker, bot = worker_of(folder), threaded_of()
        contestants = {**ticks(worker, bot), **wire(), **router(), **peers()}
        found = medians(contestants)
        return found | medians(closes(worker, bot))


def run():
    """{metric: value} of all of them."""
    found = {f"{name} (us)": round(value, 3) for name, value in times().items()}
    with TemporaryDirectory(prefix="dm-bench-") as folder:
        found["bytes left by 10^6 ticks"] = growth(worker_of(folder))
    for price, error in accuracy().items():
        found[f"error of a band at {price}, after 10^6 bars"] = error
    return found
