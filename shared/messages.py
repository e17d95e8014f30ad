"""messages: every message of the pipeline, declared once, and its form on the wire.

A frame is one version byte and a msgpack array `[kind, field, ...]` in declaration order. Fields
are appended with a default and never reordered, so an older reader ignores what it does not know.
Decimals travel as strings. Clocks: `_ms` is market time (the exchange's), `_ns` is the machine's
monotonic clock, comparable between processes of one machine and with nothing else.
"""

import re
from collections.abc import Callable, Iterable
from decimal import Decimal
from functools import cache, lru_cache
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

import msgpack

VERSION = b"\x01"
SEND_NS = 1_000_000_000
"""From an Ask to its create at most: who comes later does not send, and the keeper counts on it."""
ANSWER_NS = 3_000_000_000
"""A command without an answer is unknown, and the next may go: older ones are not sent."""
STALE_NS = 75_000_000_000
"""A price unheard for so long is none: Bybit pushes a kline every 1 to 60 s."""
OVERLAP_MS = 60_000
"""Executions are read again this far back: the last known one, too, and what arrives late."""
GONE_NS = 10_000_000_000
"""A router or a keeper unheard for so long is gone: the other one cancels the entries."""
UNIVERSE_NS = 30_000_000_000
"""How often whoever needs the instruments asks for all of them again: what was said may be lost."""
OUR_ID = re.compile(r"(dm-[^-]+-[0-9a-f]+-[BS])(?:x(\d+)|(s\d*))?")
MAX_FRAME_BYTES = 2 * 2**20  # the largest honest frame is a FullSet: about 200 kB
NOT_OURS = (ValueError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError)
"""What reading a text of somebody else's may raise."""

MAX_ADJUSTED = 40  # decimal places of a number that is money

MODES = ("RUN", "NO_ENTRY", "REDUCE_ONLY", "CANCEL_ALL", "FLATTEN")
"""What is allowed, from all to nothing but getting out; the worst of all triggers holds."""

RUN, NO_ENTRY, REDUCE_ONLY, CANCEL_ALL, FLATTEN = MODES
ENTRY, EXIT, STOP = "entry", "exit", "stop"
DUST = "below min_order_qty: not sent"  # why an exit stays with the router
ARM, HOLD, NONE = "ARM", "HOLD", "NONE"

Version = tuple[str, int]
"""Ledger id and journal row number: larger wins within one ledger, another ledger starts over."""


class Malformed(ValueError):
    """A frame that is not one of ours: counted and dropped, never fatal."""


# Market data: said by the ingestor.


class Instrument(NamedTuple):
    """What may be traded, and on which grid (`instruments-info`: priceFilter, lotSizeFilter)."""

    symbol: str
    tick_size: Decimal
    qty_step: Decimal
    min_order_qty: Decimal
    max_order_qty: Decimal
    min_notional_value: Decimal
    status: str
    funding_interval_min: int
    symbol_type: str = ""


class Kline(NamedTuple):
    """Data: one push of `kline.<interval>.<symbol>`; `confirm` marks the last one of its bar."""

    symbol: str
    start_ms: int
    open: float
    high: float
    low: float
    close: float
    volume: float
    turnover: float
    confirm: bool
    ts_ms: int
    recv_ns: int


class HistoryAsk(NamedTuple):
    """The closed bars of one symbol, please."""

    symbol: str


class History(NamedTuple):
    """Closed, contiguous bars: `bars` is float64 (rows, 5), oldest first, as bytes.

    Columns: open, high, low, close, volume. `start_ms` is the oldest bar's.
    """

    symbol: str
    start_ms: int
    bars: bytes


class InstrumentsAsk(NamedTuple):
    """The universe, please."""


class Instruments(NamedTuple):
    """The universe: every instrument that may be traded now."""

    instruments: tuple[Instrument, ...]


# Opinions: said by the workers.


class Quote(NamedTuple):
    """An opinion: where an entry of `side` should rest, and whether it should rest now.

    `zone` is ARM (create), HOLD (keep) or NONE; `gate` says why NONE when it is not the distance.
    `bar_start_ms` is the forming bar; `distance_pct` is positive before the band is reached.
    Identity: symbol + ts_ms of the kline it was made from.
    """

    symbol: str
    side: str
    price: float
    zone: str
    gate: str
    take_profit_pct: float
    lower: float
    upper: float
    last: float
    distance_pct: float
    volatility_pct: float
    bar_start_ms: int
    ts_ms: int
    recv_ns: int
    decided_ns: int


# Decisions: said by the router.


class OrderRequest(NamedTuple):
    """A decision and what came of it: `outcome` is "", accepted, refused or unknown.

    `action` is create, amend or cancel. Identity: order_link_id + command, which counts up, over
    restarts too.
    """

    order_link_id: str
    command: int
    action: str
    symbol: str
    side: str
    price: Decimal
    qty: Decimal
    time_in_force: str
    reduce_only: bool
    recv_ns: int
    decided_ns: int
    outcome: str = ""
    ret_code: int = 0
    reason: str = ""
    answered_ns: int = 0
    rate_limit: int = 0
    batch: bool = False
    stop_loss: Decimal = Decimal(0)
    order_id: str = ""


class Touch(NamedTuple):
    """What came of a band that was touched, said once its bar is over. Identity: entry_id.

    `outcome` is "order" where an order was sent: what becomes of that, the ledger knows.
    """

    entry_id: str
    symbol: str
    side: str
    bar_start_ms: int
    outcome: str


class Ask(NamedTuple):
    """May this entry be created? Identity: order_link_id."""

    order_link_id: str
    symbol: str
    side: str
    bar_start_ms: int
    price: Decimal
    qty: Decimal
    take_profit_pct: Decimal
    recv_ns: int
    decided_ns: int


class Grant(NamedTuple):
    """The answer to an Ask: granted once per id; a refusal says why in `reason`."""

    order_link_id: str
    granted: bool
    reason: str = ""


# Facts and their memory: said by the keeper.


class OrderUpdate(NamedTuple):
    """A fact: the exchange's word on one order (`order` topic, `order/realtime`)."""

    order_link_id: str
    order_id: str
    symbol: str
    side: str
    price: Decimal
    qty: Decimal
    order_status: str
    cum_exec_qty: Decimal
    avg_price: Decimal
    reduce_only: bool
    reject_reason: str
    created_time_ms: int
    updated_time_ms: int
    recv_ns: int = 0
    parent_order_link_id: str = ""


class Execution(NamedTuple):
    """A fact: one fill (`execution` topic, `execution/list`). `exec_fee` > 0 is paid."""

    exec_id: str
    order_link_id: str
    order_id: str
    symbol: str
    side: str
    exec_type: str
    exec_price: Decimal
    exec_qty: Decimal
    exec_fee: Decimal
    is_maker: bool
    exec_time_ms: int
    recv_ns: int = 0


MOVES_LOTS = {"Trade", "AdlTrade", "BustTrade", "BlockTrade", "MovePosition", "Delivery"}
MOVES_LOTS |= {"Settle", "ForwardSplitSettle", "ReverseSplitSettle"}
"""The kinds of executions that change a position; Funding and the like only cost."""


class Wallet(NamedTuple):
    """A fact: the account in USDT (`wallet` topic, `wallet-balance`)."""

    total_equity: Decimal
    total_wallet_balance: Decimal
    total_available_balance: Decimal


class Order(NamedTuple):
    """One of our orders as the ledger knows it; `status` Granted means: sent, or about to be."""

    order_link_id: str
    order_id: str
    symbol: str
    side: str
    kind: str
    price: Decimal
    qty: Decimal
    cum_exec_qty: Decimal
    status: str
    bar_start_ms: int
    take_profit_pct: Decimal
    updated_ms: int
    reject_reason: str = ""


class Lot(NamedTuple):
    """The filled part of one entry. `sold` counts all exits, `sold_before` the finished ones.

    `cost` and `proceeds` are sums of price * quantity, `fees` a sum in USDT. `exits` is the number
    of finished exits, and so the number of the next one. `closed_ms` is 0 while the lot is open.
    """

    entry_id: str
    symbol: str
    side: str
    bought: Decimal
    cost: Decimal
    sold: Decimal
    proceeds: Decimal
    fees: Decimal
    sold_before: Decimal
    exits: int
    take_profit_pct: Decimal
    bar_start_ms: int
    opened_ms: int
    closed_ms: int = 0

    @property
    def entry_price(self) -> Decimal:
        """Average price of what was bought."""
        return self.cost / self.bought

    @property
    def profit_usdt(self) -> Decimal:
        """Of what was sold, after all fees so far, once the lot is closed."""
        gross = self.proceeds - self.cost
        return (gross if self.side == "Buy" else -gross) - self.fees


class Position(NamedTuple):
    """The whole truth of one symbol: its lots, our non-terminal orders, the foreign quantity.

    `recv_ns` is when the fact that changed it came in; 0 when it is only said again. `mark_price`
    is the exchange's, as of the last comparison; 0 before, and without a position.
    """

    symbol: str
    version: Version
    lots: tuple[Lot, ...]
    orders: tuple[Order, ...]
    foreign_qty: Decimal = Decimal(0)
    no_entry: str = ""
    recv_ns: int = 0
    mark_price: Decimal = Decimal(0)


class Mode(NamedTuple):
    """RUN, NO_ENTRY, REDUCE_ONLY, CANCEL_ALL or FLATTEN, why, and which symbols are not empty.

    `router_silent`: the keeper has not heard the router for 10 s, and cancels entries itself.
    """

    version: Version
    mode: str
    reason: str
    symbols: tuple[str, ...]
    slots: int = 0
    differences: int = 0
    router_silent: bool = False


class LedgerAsk(NamedTuple):
    """Everything the ledger holds, please."""


class FullSet(NamedTuple):
    """All Positions that are not empty, and the Mode."""

    positions: tuple[Position, ...]
    mode: Mode


class Control(NamedTuple):
    """An operator's wish: RUN lifts what an operator set, any other mode sets it. Answer: Mode.

    Without a mode, `note` is what somebody did elsewhere (scaled the workers): it is journaled.
    """

    mode: str
    who: str
    note: str = ""


class Health(NamedTuple):
    """How a process is: said by each on its own stream, every tick."""

    service: str
    slot: int
    pid: int
    ready: bool
    note: str
    shard: str
    inbox: int
    counters: dict[str, int]
    ages_ms: dict[str, int]
    p50_us: int
    p99_us: int
    version: str


def process_name(service: str, slot: int) -> str:
    """`router`, `worker-3`."""
    return f"{service}-{slot}" if service == "worker" else service


_KINDS = {name: cls for name, cls in globals().items() if hasattr(cls, "_fields")}
"""What may be on the wire: all of the above. What follows never is."""


# Between an actor, its bus and its library threads.


class Hear(NamedTuple):
    """Of this stream, hear these topics from now on and no others: what nobody needs costs most."""

    stream: str
    topics: tuple[str, ...]


class Subscribe(NamedTuple):
    """Hear these public topics from now on, all of them and no others."""

    topics: tuple[str, ...]


class Fetch(NamedTuple):
    """One REST read: what is instruments, klines, orders, order, executions, positions, wallet,
    rights (that move funds), account or leverage (the two that write: one-way mode, leverage 1).
    `number` is the round's; `order_id` the exchange's id of an order that has none of ours."""

    what: str
    symbol: str = ""
    start_ms: int = 0
    order_link_id: str = ""
    number: int = 0
    order_id: str = ""


class Fetched(NamedTuple):
    """What came of a Fetch: translated rows, all pages; or `error`, and then no rows."""

    ask: Fetch
    rows: tuple[Any, ...]
    error: str = ""
    ret_code: int = 0


class Holding(NamedTuple):
    """The exchange's aggregate of one symbol (`position/list`); `side` is empty when flat."""

    symbol: str
    side: str
    size: Decimal
    mark_price: Decimal = Decimal(0)

    @property
    def qty(self) -> Decimal:
        """Positive is long."""
        return -self.size if self.side == "Sell" else self.size


class Rebuild(NamedTuple):
    """Cut this connection and make another: it stands, but it has said too little."""

    name: str
    reason: str


class Link(NamedTuple):
    """A websocket came up or went down; what was pushed in between is lost."""

    name: str
    up: bool
    reason: str = ""


class NoAnswer(NamedTuple):
    """Nobody answered `request` before its deadline."""

    request: Any


Message = tuple[Any, ...]  # any NamedTuple of this module

_packer = msgpack.Packer(default=str)


def entry_id(symbol: str, side: str, bar_start_ms: int) -> str:
    """`dm-<symbol>-<bar in minutes, hex>-<B|S>`, at most 32 characters: the id is the dedup."""
    return f"dm-{symbol}-{bar_start_ms // 60_000:x}-{side[0]}"


def exit_id(entry: str, number: int) -> str:
    """The id of a lot's exit: the entry's, and how many exits the lot has finished before."""
    return f"{entry}x{number}"


def stop_id(entry: str, number: int = 0) -> str:
    """Our name for a lot's stop loss, which the exchange makes and gives no id of ours. A lot that
    is bought in parts may have one after the other."""
    return f"{entry}s{number or ''}"


def parse_id(order_link_id: str) -> tuple[str, int | None] | None:
    """(entry id, and None for the entry itself, the number of an exit, -1 for the stop loss);
    None if the id is not ours."""
    found = OUR_ID.fullmatch(order_link_id)
    if not found:
        return None
    return found[1], int(found[2]) if found[2] else -1 if found[3] else None


def entry_of(order_link_id: str) -> str:
    """The id of the entry that an order of ours belongs to, or is; empty if the id is not ours."""
    ours = parse_id(order_link_id)
    return ours[0] if ours else ""


def complete(shards: Iterable[str]) -> bool:
    """Whether these shards, `index/count` as Health has them, are all that there are of one count:
    then a silent worker beside them was replaced, and is no longer missed."""
    found = set(shards) - {""}
    counts = {int(shard.partition("/")[2]) for shard in found}
    return any({f"{i}/{count}" for i in range(count)} <= found for count in counts)


def encode(message: Message) -> bytes:
    """The frame of one message."""
    packed: bytes = _packer.pack((type(message).__name__, *message))
    return VERSION + packed


def published(message: Message) -> bytes:
    """The frame of one message as PUB sends it: by its topic, to whoever listens to that."""
    return topic(message) + encode(message)


def decode(frame: bytes) -> Any:
    """The message of one frame, with or without its topic, which is ASCII text. Raises Malformed,
    and nothing else, whatever the bytes are."""
    before, version, packed = frame.partition(VERSION)
    if not (version and before.isascii()) or len(frame) > MAX_FRAME_BYTES:
        raise Malformed(f"no version {VERSION!r} in {frame[:40]!r} of {len(frame)} bytes")
    try:
        kind, *fields = msgpack.unpackb(packed, use_list=False)
        return build(_KINDS[kind], fields)
    except (*NOT_OURS, msgpack.UnpackException) as error:
        raise Malformed(f"{type(error).__name__}: {error}") from error


@lru_cache(maxsize=100_000)
def topic_of(kind: str, symbol: str) -> bytes:
    """`kline.BTCUSDT.`: the closing dot keeps it from matching `BTCUSDT-27JUN25`."""
    return f"{kind.lower()}.{symbol}.".encode()


def topic(message: Any) -> bytes:
    """The topic a message is published under: its kind and symbol, or service and slot."""
    if isinstance(message, Health):
        return topic_of("Health", f"{message.service}-{message.slot}")
    return topic_of(type(message).__name__, getattr(message, "symbol", ""))


def _money(text: str) -> Decimal:
    """A number that can be reckoned with. Raises ValueError."""
    number = Decimal(text)
    if not number.is_finite() or abs(number.adjusted()) > MAX_ADJUSTED:
        raise ValueError(f"no amount: {text:.50}")
    return number


def _converter(hint: Any) -> Callable[[Any], Any] | None:
    """What turns a field's wire form into its type, or refuses it; None for what needs neither."""
    origin, inner = get_origin(hint), list(get_args(hint))
    if hint is Decimal:
        return _money
    if hint is bool:
        return {0: False, 1: True}.__getitem__  # a database knows no other
    if hasattr(hint, "_fields"):
        return lambda row: build(hint, row)
    if origin is tuple and hasattr(inner[0], "_fields"):
        return lambda rows: tuple(build(inner[0], row) for row in rows)
    if origin is tuple:
        many = inner[-1] is Ellipsis
        return lambda row: _typed(row, row, inner[:1] * len(row) if many else inner)
    if origin is dict:
        return lambda row: _typed(row, [x for pair in row.items() for x in pair], inner * len(row))
    return None


def _typed(value: Any, parts: Iterable[Any], types: list[Any]) -> Any:
    """The value, if its parts have these types. Raises TypeError."""
    if [type(part) for part in parts] != types:
        raise TypeError(f"{value!r:.200}")
    return value


@cache
def _shape(cls: Any) -> tuple[list[tuple[int, Callable[[Any], Any]]], list[Any]]:
    """What turns some of its fields' wire forms into their types; and the types of all."""
    hints = list(get_type_hints(cls).values())
    found = ((index, _converter(hint)) for index, hint in enumerate(hints))
    converters = [(index, convert) for index, convert in found if convert]
    return converters, [get_origin(hint) or hint for hint in hints]


def build(cls: Any, row: Any) -> Any:
    """One message of this class from its wire form, or from a database row. Raises TypeError and
    others where it is none: what gets past here has the types that are written above."""
    converters, types = _shape(cls)
    fields = list(row)[: len(types)]
    for index, convert in converters:
        if index < len(fields):
            fields[index] = convert(fields[index])
    if list(map(type, fields)) != types[: len(fields)]:
        raise TypeError(f"{cls.__name__}: {fields!r:.200}")
    return cls(*fields)
