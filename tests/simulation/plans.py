"""plans: what happens in one life, drawn from its seed. A plan can be cut shorter and run again."""

from random import Random
from typing import NamedTuple

from shared import messages as msg
from tests.simulation.world import STEP_MS

PATHS = ("/v5/order/create", "/v5/order/amend", "/v5/order/cancel", "/v5/order", "/v5/")
READS = (
    *("/v5/order/realtime", "/v5/order/history", "/v5/execution/list", "/v5/position/list"),
    *("/v5/account/wallet-balance", "/v5/market/kline"),
)
TOPICS = ("order", "execution", "wallet", "")
STREAMS = ("market", "quotes", "commands", "account", "ledger", "history", "instruments", "")
ROLES = ("keeper", "router", "worker", "ingestor")


class Plan(NamedTuple):
    """One life: `acts` are (second, name, terms...)."""

    seed: int
    symbols: int
    shards: int
    seconds: int
    settings: dict
    acts: tuple

    def without(self, start, end):
        """The same life but for some of its acts."""
        return self._replace(acts=(*self.acts[:start], *self.acts[end:]))


def draw(seed, seconds=0):
    """The plan of a seed: what kinds of fault it has, how often, and under which settings."""
    chance = Random(f"plan {seed}")
    symbols = chance.randint(2, 6)
    names = [f"{chr(65 + i) * 3}USDT" for i in range(symbols)]
    settings = {
        "PAPER_SEED": chance.randrange(1_000),
        "STOP_LOSS_PCT": chance.choice((0.0, 0.0, 1.0, 2.0)),
        "DRAWDOWN_PCT": 0,
        "DAILY_LOSS_PCT": 0,
        "RECONCILE_SECONDS": chance.choice((5, 10)),
    }
    if chance.random() < 0.3:
        limit = chance.choice((3, 10))
        settings |= {"RATE_LIMIT": limit, "PAPER_RATE_LIMIT": limit}
    if chance.random() < 0.4:
        settings["MAX_SLOTS"] = chance.randint(1, 4)
    if chance.random() < 0.4:
        settings["MAX_SYMBOLS"] = chance.randint(1, 3)
    if chance.random() < 0.4:
        settings["BASE_FEE_PCT"] = 3.0  # exits that rest for long
    kinds = {
        "http": (_http, chance.choice((0, 0, 4, 8))),
        "ws": (_ws, chance.choice((0, 0, 4, 8))),
        "match": (_match, chance.choice((0, 3, 6))),
        "venue": (_venue, chance.choice((0, 0, 1, 2))),
        "bus": (_bus, chance.choice((0, 0, 3, 6))),
        "crash": (_crash, chance.choice((0, 0, 3, 6))),
        "freeze": (_freeze, chance.choice((0, 0, 1))),
        "disk": (_disk, chance.choice((0, 0, 1))),
        "skew": (_skew, chance.choice((0, 0, 1))),
        "operate": (_operate, chance.choice((0, 0, 0, 1))),
        "scale": (_scale, chance.choice((0, 0, 0, 1))),
    }
    weights = [weight for _, weight in kinds.values()]
    seconds = seconds or chance.choice((90, 150, 240, 400))
    acts, at_s = [], 5.0
    while at_s < seconds:
        acts.append((round(at_s, 1), "move", *_move(chance, names)))
        if any(weights) and chance.random() < 0.5:
            make = chance.choices([make for make, _ in kinds.values()], weights)[0]
            acts.append((round(at_s, 1), *make(chance, names)))
        at_s += chance.choice((0, STEP_MS / 1_000, 0.5, 1, 2, 3, 5, 9))
    acts += _restore(Random(f"restore {seed}"), seconds)
    acts.sort(key=lambda act: act[0])
    return Plan(seed, symbols, chance.choice((1, 1, 2)), seconds, settings, tuple(acts))


def _restore(chance, seconds):
    """A ledger that is taken from a copy of it."""
    if chance.random() > 0.1:
        return ()
    at_s = round(chance.uniform(10, seconds - 10), 1)
    back_s = round(at_s + chance.choice((2, 5, 15, 60, 120)), 1)
    return (at_s, "backup"), (back_s, "restore", chance.choice((1000, 4000)))


def _move(chance, names):
    place = chance.choice(("lower", "upper", "exit", "lower", "upper"))
    return chance.choice(names), place, chance.choice((-0.5, -0.2, 0.0, 0.1, 0.2, 0.3, 0.4))


def _http(chance, _):
    path, times = chance.choice(PATHS), chance.randint(1, 4)
    read = {"path": chance.choice(READS), "times": 0, "for_s": chance.randint(1, 12)}
    code = {"path": path, "times": times, "code": chance.choice((10000, 10016))}
    refusal = chance.choice((110003, 110007, 110001, 10006, 10002))
    return chance.choice(
        [
            *(("fault", "http", what, {"path": path, "times": times})
              for what in ("drop_before", "drop_after", "dup", "garbage", "truncate")),
            ("fault", "http", "delay",
             {"path": path, "times": times, "ms": chance.choice((300, 1500, 3500))}),
            ("fault", "http", "status", {"path": path, "times": times, "status": 502}),
            ("fault", "http", "ret", code),
            ("fault", "http", "ret", code | {"after": True}),
            ("fault", "http", "ret", code | {"code": refusal}),
            ("fault", "http", "stale", read | {"age_s": chance.randint(1, 30)}),
            ("fault", "http", "partial", read | {"k": chance.randint(0, 2)}),
        ]
    )  # fmt: skip


def _ws(chance, _):
    kind = {"kind": chance.choice(("private", "private", "trade", "public"))}
    private = {"kind": "private", "topic": chance.choice(TOPICS), "times": chance.randint(1, 4)}
    lasting = {"for_s": chance.randint(1, 12)}
    what = chance.choice(("drop", "dup", "garbage", "stale_replay"))
    return chance.choice(
        [
            ("fault", "ws", chance.choice(("mute", "keep_pong")), kind | lasting),
            ("fault", "ws", "mute", {"kind": "private", "topic": private["topic"]} | lasting),
            ("fault", "ws", "half_open", kind | lasting),
            ("fault", "ws", "close", kind),
            ("fault", "ws", what, private),
            ("fault", "ws", "drop", kind | {"times": chance.randint(1, 6)}),
            ("fault", "ws", "delay", private | {"ms": chance.choice((500, 2500))}),
            ("fault", "ws", "reorder",
             {"kind": "private", "window": chance.randint(4, 40), "times": chance.randint(1, 12)}),
        ]
    )  # fmt: skip


def _match(chance, names):
    symbol = {"symbol": chance.choice(names)}
    races = ("fill_before_cancel", "fill_before_amend", "reject_after_ack")
    share = {"share": chance.choice(("0.2", "0.37", "0.6"))}
    return chance.choice(
        [
            ("fault", "match", "partial", symbol | share),
            *(("fault", "match", race, symbol) for race in races),
        ]
    )


def _venue(chance, names):
    symbol = {"symbol": chance.choice(names), "qty": chance.choice(("0.10", "0.50"))}
    return chance.choice(
        [
            ("fault", "venue", "adl", symbol),
            ("fault", "venue", "foreign_fill",
             symbol | {"side": chance.choice(("Buy", "Sell"))}),
            ("fault", "venue", "restart", {"ms": chance.choice((1500, 5000))}),
            ("fault", "venue", "liquidate", {"symbol": symbol["symbol"]}),
            ("fault", "venue", "clock_offset", {"ms": chance.choice((-3000, 400, 1500, 12000))}),
            ("fault", "venue", "rate_limit", {"limit": 3, "ms": 3000}),
        ]
    )  # fmt: skip


def _bus(chance, _):
    what = chance.choice(("drop", "drop", "dup", "delay"))
    amount = chance.choice((200, 1500, 4000)) if what == "delay" else chance.choice((0.1, 0.3, 1.0))
    return "bus", chance.choice(STREAMS), what, amount, chance.randint(1, 15)


def _crash(chance, _):
    steps, down_ms = (
        chance.choice((0, 1, 2, 3, 5, 8, 13, 30, 80)),
        chance.choice((1000, 1500, 4000)),
    )
    if chance.random() < 0.2:
        return "blackout", steps, down_ms
    return "crash", chance.choice(ROLES), steps, down_ms


def _freeze(chance, _):
    return "freeze", chance.choice(ROLES), chance.choice((1500, 4000, 12000))


def _disk(chance, _):
    return "disk", chance.choice((500, 3000, 10000))


def _skew(chance, _):
    ms = chance.choice((-6000, -1500, 400, 1200, 3000))
    return "skew", chance.choice(("keeper", "router")), ms


def _operate(chance, _):
    return "operate", chance.choice((msg.REDUCE_ONLY, msg.CANCEL_ALL, msg.FLATTEN, msg.RUN))


def _scale(chance, _):
    return "scale", chance.choice((1, 2, 3))
