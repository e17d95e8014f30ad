"""Frames on the wire: what is written is read back, and what is not ours is Malformed.

The messages under test are those that the table of streams carries, each built from its type
hints, so a new message or field is tested without a change here.
"""

from contextlib import suppress
from decimal import Decimal
from typing import Any, get_args, get_origin, get_type_hints

import msgpack
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from shared import messages as msg
from shared.bus import STREAMS

ANY_SPEED = {
    "derandomize": True,
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow],
}

CARRIED = sorted({kind for s in STREAMS.values() for kind in s.carries}, key=lambda k: k.__name__)
LAST_MINUTE_MS = 0xFFF_FFFF * 60_000  # the last bar whose number has 7 hex digits: the year 2480
HALF = Decimal("0.5")

symbols = st.from_regex(r"[A-Z0-9]{1,15}USDT", fullmatch=True)
sides = st.sampled_from(["Buy", "Sell"])
bars_ms = st.integers(0, LAST_MINUTE_MS // 60_000).map(lambda minute: minute * 60_000)

LEAVES: dict[Any, st.SearchStrategy[Any]] = {
    str: st.text(max_size=8),
    int: st.integers(-(2**63), 2**64 - 1),
    float: st.floats(allow_nan=False),
    bool: st.booleans(),
    bytes: st.binary(max_size=80),
    Decimal: st.decimals(allow_nan=False, allow_infinity=False),
    dict[str, int]: st.dictionaries(st.text(max_size=6), st.integers(0, 2**63), max_size=3),
    tuple[str, int]: st.tuples(st.text(max_size=8), st.integers(0, 2**63)),
}


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Any value of a field's type."""
    if hint in LEAVES:
        return LEAVES[hint]
    if get_origin(hint) is tuple:
        return st.lists(values(get_args(hint)[0]), max_size=2).map(tuple)
    return st.builds(hint, *(values(inner) for inner in get_type_hints(hint).values()))


def frame(*wire: Any) -> bytes:
    """What a peer could have sent: our version byte and any msgpack."""
    return msg.VERSION + msgpack.packb(wire, default=str)


def is_read_or_malformed(data: bytes) -> None:
    with suppress(msg.Malformed):
        msg.decode(data)


LOT = msg.Lot(
    *("dm-XUSDT-1-B", "XUSDT", "Buy", Decimal(2), Decimal(20), Decimal(0), Decimal(0)),
    *(Decimal("0.01"), Decimal(0), 0, HALF, 60_000, 61_000),
)
ORDER = msg.Order(
    *("dm-XUSDT-1-B", "7", "XUSDT", "Buy", msg.ENTRY, Decimal(10), Decimal(2), Decimal(2)),
    *("Filled", 60_000, HALF, 61_000),
)
POSITION = msg.Position("XUSDT", ("ledger", 4), (LOT, LOT), (ORDER,), Decimal("-3"), "difference")


@pytest.mark.parametrize("kind", CARRIED, ids=lambda kind: kind.__name__)
def test_a_message_reads_back_as_it_was_written(kind):
    @settings(max_examples=25, **ANY_SPEED)
    @given(values(kind))
    def check(message):
        assert repr(msg.decode(msg.encode(message))) == repr(message)  # types and 1.0 vs 1.00, too

    check()


def test_a_position_reads_back_with_its_lots_and_orders():
    read = msg.decode(msg.encode(msg.FullSet((POSITION,), msg.Mode(("l", 4), "RUN", "", ("X",)))))
    assert read.positions == (POSITION,)
    assert (type(read.positions[0].lots[1]), type(read.positions[0].orders[0])) == (
        msg.Lot,
        msg.Order,
    )
    assert read.positions[0].lots[1].entry_price == 10  # 20 / 2


@pytest.mark.parametrize("kind", CARRIED, ids=lambda kind: kind.__name__)
def test_fields_of_a_newer_version_are_ignored(kind):
    @settings(max_examples=5, **ANY_SPEED)
    @given(values(kind))
    def check(message):
        assert msg.decode(frame(kind.__name__, *message, "new", [1, 2])) == message

    check()


def test_fields_of_a_newer_version_are_ignored_inside_a_position():
    newer = POSITION._replace(lots=((*LOT, 1, "new"),), orders=((*ORDER, "", "new"),))
    assert msg.decode(frame("Position", *newer)) == POSITION._replace(lots=(LOT,))


def test_fields_of_an_older_version_are_filled_with_their_defaults():
    older = (POSITION.symbol, POSITION.version, (LOT[:-1],), (ORDER[:-1],))
    read = msg.decode(frame("Position", *older))
    assert (read.foreign_qty, read.no_entry) == (Decimal(0), "")
    assert (read.lots[0].closed_ms, read.orders[0].reject_reason) == (0, "")
    assert msg.decode(frame("Grant", "dm-XUSDT-1-B", True)).reason == ""


def test_a_missing_field_without_a_default_is_malformed():
    with pytest.raises(msg.Malformed):
        msg.decode(frame("Position", *POSITION[:3]))
    with pytest.raises(msg.Malformed):
        msg.decode(frame("Position", "XUSDT", ("l", 1), (LOT[:5],), ()))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x02" + msg.encode(POSITION)[1:],  # another version
        msg.encode(POSITION)[:-1],
        msg.encode(POSITION) + b"\x00",
        frame("Nothing", 1),
        frame(["Kline"], 1),
        frame({"Kline": 1}),
        frame("Wallet", "a", "b", "c"),  # text where numbers belong
        frame("Link", "public", True),  # ours, but never on the wire
        msg.VERSION + b"\x91" * 5_000,  # nesting
        msg.VERSION + b"\xdd\xff\xff\xff\xff",  # an array said to be of 4 billion
        frame("Wallet", (0, (1,), 2**64 - 1), "1", "1"),  # a tuple is a Decimal's other form
    ],
)
def test_what_is_not_one_of_ours_is_malformed(data):
    with pytest.raises(msg.Malformed):
        msg.decode(data)


def test_a_frame_over_the_bound_is_malformed():
    assert msg.decode(frame("History", "X", 0, bytes(1000))).symbol == "X"
    with pytest.raises(msg.Malformed):
        msg.decode(frame("History", "X", 0, bytes(msg.MAX_FRAME_BYTES)))


@settings(max_examples=100, **ANY_SPEED)
@given(st.binary(max_size=200))
@example(b"\x81\xa1a\x01")
def test_no_bytes_raise_anything_but_malformed(data):
    is_read_or_malformed(data)
    is_read_or_malformed(msg.VERSION + data)


@settings(max_examples=40, **ANY_SPEED)
@given(st.data(), st.sampled_from(CARRIED))
def test_no_fields_raise_anything_but_malformed(data, kind):
    """Right kind and number of fields, any contents."""
    leaf = st.one_of(st.none(), *LEAVES.values())
    field = st.recursive(leaf, lambda inner: st.lists(inner, max_size=14), max_leaves=6)
    count = len(kind._fields)
    fields = data.draw(st.lists(field, min_size=count, max_size=count))
    is_read_or_malformed(frame(kind.__name__, *fields))


@settings(max_examples=100, **ANY_SPEED)
@given(st.integers(1, len(msg.encode(POSITION)) - 1), st.integers(0, 255))
def test_no_damaged_byte_raises_anything_but_malformed(at, byte):
    good = msg.encode(POSITION)
    is_read_or_malformed(good[:at] + bytes([byte]) + good[at + 1 :])


def kline(symbol: str) -> msg.Kline:
    return msg.Kline(symbol, 60_000, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, False, 61_000, 0)


def test_a_topic_ends_with_a_dot_so_that_a_prefix_is_one_symbol():
    assert msg.topic(kline("BTCUSDT")) == b"kline.BTCUSDT."
    assert not msg.topic(kline("BTCUSDT-27JUN25")).startswith(msg.topic(kline("BTCUSDT")))
    assert msg.topic(POSITION) == b"position.XUSDT."


def test_a_topic_without_a_symbol_is_the_kind_and_that_of_health_its_process():
    assert msg.topic(msg.Mode(("l", 1), "RUN", "", ())) == b"mode.."
    health = msg.Health("worker", 3, 1, True, "", "", 0, {}, {}, 0, 0, "0.1.0")
    assert msg.topic(health) == b"health.worker-3."
    assert msg.topic(health._replace(slot=31)) != msg.topic(health._replace(slot=3))


@settings(max_examples=100, **ANY_SPEED)
@given(symbols, sides, bars_ms, st.integers(0, 999))
def test_ids_are_inverse_and_short_enough(symbol, side, bar_ms, number):
    """19 + len("dm-") + len("-fffffff") + len("-B") = 32, and Bybit takes 36: three digits of x."""
    entry = msg.entry_id(symbol, side, bar_ms)
    out = msg.exit_id(entry, number)
    assert (len(entry) <= 32, len(out) <= 36) == (True, True)
    assert msg.parse_id(entry) == (entry, None)
    assert msg.parse_id(out) == (entry, number)


def test_the_longest_symbol_of_today_fits():
    entry = msg.entry_id("1000000BABYDOGEUSDT", "Sell", LAST_MINUTE_MS)  # 19 characters
    assert (entry, len(entry)) == ("dm-1000000BABYDOGEUSDT-fffffff-S", 32)
    assert len(msg.exit_id(entry, 999)) == 36


@settings(max_examples=50, **ANY_SPEED)
@given(symbols, symbols, sides, sides, bars_ms, bars_ms)
def test_two_ids_are_equal_only_for_one_symbol_side_and_bar(a, b, side_a, side_b, bar_a, bar_b):
    same = (a, side_a, bar_a) == (b, side_b, bar_b)
    assert (msg.entry_id(a, side_a, bar_a) == msg.entry_id(b, side_b, bar_b)) == same


@pytest.mark.parametrize(
    "foreign",
    [
        "",
        "web-1234",
        "dm-XUSDT",  # what the router says of a symbol that it does not trade
        "dm-XUSDT-1a-",
        "dm-XUSDT-1A-B",
        "dm--1a-B",
        "dm-XUSDT-1a-Bx",
        "dm-XUSDT-1a-B-x1",
        " dm-XUSDT-1a-B",
        "dm-XUSDT-1a-B\n",
    ],
)
def test_an_id_that_is_not_ours_is_not_read(foreign):
    assert msg.parse_id(foreign) is None
