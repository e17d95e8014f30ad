"""Sockets in a folder of their own: what is said is heard, what is asked is answered or overdue.

The clock of deadlines is a number that the test passes in; only the wires are real.
"""

import os
import shutil
import socket
import tempfile
import time
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import pytest
import zmq

from shared import messages as msg
from shared.bus import ASK_DEADLINE_NS, MAX_PATH, STREAMS, Bus, endpoint, endpoints, make_keys

PATIENCE_SECONDS = 5.0
GARBAGE = [b"", b"\x01", b"\x02\x91\xa5Kline", b"\x01\xc1", b"\x01\x91\xa7Nothing", bytes(3000)]


@pytest.fixture
def run_dir():
    """A short path: a unix socket has room for 107 bytes."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def bus(run_dir):
    """Opens buses in `run_dir`, and closes them all at the end."""
    opened = []

    def build(**roles):
        opened.append(Bus(run_dir, **roles))
        return opened[-1]

    yield build
    for each in opened:
        each.close()


@contextmanager
def raw_socket(kind, address):
    """A peer that is not one of ours; PUB binds, DEALER connects."""
    context = zmq.Context()
    peer = context.socket(kind)
    peer.setsockopt(zmq.RCVTIMEO, int(1_000 * PATIENCE_SECONDS))
    (peer.bind if kind == zmq.PUB else peer.connect)(address)
    try:
        yield peer
    finally:
        context.destroy(linger=0)


def kline(symbol="XUSDT", number=0):
    return msg.Kline(symbol, 0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, False, number, 0)


HELLO = kline("HELLOUSDT", number=-1)


def until(done, turn):
    """Turn until done, or fail: sockets need a moment, how long nobody knows."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not done():
        assert time.monotonic() < deadline, "nothing came"
        turn()


def heard(listener):
    return [message for message, _ in listener.receive(20)]


def join(listener, say, hello=HELLO):
    """Say hello until the listener hears it: PUB says nothing to those who have not arrived."""
    got = []

    def turn():
        say(hello)
        got.extend(heard(listener))

    until(lambda: hello in got, turn)


def collect(listener, count):
    """The next `count` messages that are no hello."""
    got = []
    until(
        lambda: len(got) >= count,
        lambda: got.extend(
            message for message in heard(listener) if message.symbol != HELLO.symbol
        ),
    )
    return got


def asked(answerer):
    """The next ask that arrives, and the socket to answer on before anything else is received."""
    got = []
    until(lambda: got, lambda: got.extend(islice(answerer.receive(20), 1)))
    return got[0]


def test_what_is_said_is_heard_in_order(bus):
    speaker, listener = bus(says="market"), bus(hears={"market": ("kline.",)})
    join(listener, speaker.publish)
    said = [kline(number=number) for number in range(3_000)]
    for message in said:
        speaker.publish(message)
    assert collect(listener, 3_000) == said


def test_only_the_topics_that_were_asked_for_are_heard(bus):
    """The closing dot: BTCUSDT is not a prefix of BTCUSDT-27JUN25."""
    topics = ("kline.BTCUSDT.", f"kline.{HELLO.symbol}.")
    speaker, listener = bus(says="market"), bus(hears={"market": topics})
    join(listener, speaker.publish)
    for number in range(20):
        for symbol in ("BTCUSDT-27JUN25", "ETHUSDT", "BTCUSDTX", "BTCUSDT"):
            speaker.publish(kline(symbol, number))
        speaker.publish(msg.Mode(("l", 1), "RUN", "", ()))
    assert collect(listener, 20) == [kline("BTCUSDT", number) for number in range(20)]


def test_every_slot_of_the_workers_is_heard(bus):
    listener = bus(hears={"quotes": ("",)})
    workers = {slot: bus(says="quotes", slot=slot) for slot in (0, 7, 15)}
    for worker in workers.values():
        join(listener, worker.publish)
    for slot, worker in workers.items():
        worker.publish(kline(number=slot))
    assert {message.ts_ms for message in collect(listener, 3)} == {0, 7, 15}


def test_a_listener_hears_a_speaker_that_was_started_again(bus, run_dir):
    listener, first = bus(hears={"market": ("kline.",)}), Bus(run_dir, says="market")
    join(listener, first.publish)
    first.close()
    second = bus(says="market")
    join(listener, second.publish, HELLO._replace(ts_ms=-2))
    second.publish(kline())
    assert collect(listener, 1) == [kline()]


@pytest.mark.parametrize("topics", [("kline.A.",), ("kline.A.", "kline.C."), ("kline.",)])
def test_a_listener_may_hear_something_else_from_now_on(bus, topics):
    speaker, listener = bus(says="market"), bus(hears={"market": ("kline.A.", "kline.H")})
    join(listener, speaker.publish)
    told = [kline(symbol, number=7) for symbol in "ABC"]
    wanted = [one for one in told if msg.topic(one).decode().startswith(topics)]
    listener.hear("market", topics)
    got = []

    def turn():
        for one in told:
            speaker.publish(one)
        got.extend(heard(listener))

    until(lambda: got[-3 * len(wanted) :] == 3 * wanted, turn)  # the news of it takes a moment


def test_an_ask_is_answered_and_not_overdue(bus):
    keeper, router = bus(answers=("ledger",)), bus(asks=("ledger",))
    router.ask("ledger", msg.LedgerAsk(), now_ns=0)
    ask, asker = asked(keeper)
    assert ask == msg.LedgerAsk()
    keeper.reply(asker, msg.Grant("dm-XUSDT-1-B", True))
    answer, nothing_to_answer_on = asked(router)
    assert (answer, nothing_to_answer_on) == (msg.Grant("dm-XUSDT-1-B", True), None)
    assert router.overdue(10 * ASK_DEADLINE_NS) == []


def test_every_asker_gets_its_own_answer(bus):
    ingestor = bus(answers=("history",))
    askers = [bus(asks=("history",), slot=slot) for slot in range(3)]
    for number, asker in enumerate(askers):
        for name in ("A", "B"):
            asker.ask("history", msg.HistoryAsk(f"{name}{number}"), now_ns=0)
    answered = []

    def turn():
        for ask, asker in ingestor.receive(20):
            ingestor.reply(asker, msg.History(ask.symbol, 0, b""))
            answered.append(ask.symbol)

    until(lambda: len(answered) == 6, turn)
    for number, asker in enumerate(askers):
        got = []
        until(lambda g=got: len(g) >= 2, lambda g=got, a=asker: g.extend(heard(a)))
        assert [history.symbol for history in got] == [f"A{number}", f"B{number}"]


def test_an_ask_that_nobody_answers_is_overdue_once_at_its_deadline(bus):
    _, router = bus(answers=("ledger",)), bus(asks=("ledger",))
    router.ask("ledger", msg.LedgerAsk(), now_ns=100)
    router.ask("ledger", msg.Control("RUN", "a person"), now_ns=200)
    assert router.overdue(100 + ASK_DEADLINE_NS - 1) == []
    assert router.overdue(100 + ASK_DEADLINE_NS) == [msg.NoAnswer(msg.LedgerAsk())]
    assert router.overdue(200 + ASK_DEADLINE_NS) == [msg.NoAnswer(msg.Control("RUN", "a person"))]
    assert router.overdue(10 * ASK_DEADLINE_NS) == []


def test_an_ask_where_nobody_is_does_not_wait_for_who_comes_later(bus):
    """A grant asked for before the keeper died must not be granted when it is back."""
    router = bus(asks=("ledger",))
    router.ask("ledger", msg.Control("RUN", "too early"), now_ns=50)
    assert router.overdue(50) == [msg.NoAnswer(msg.Control("RUN", "too early"))]
    keeper = bus(answers=("ledger",))
    heard_at_last = []

    def turn():
        router.ask("ledger", msg.LedgerAsk(), now_ns=60)
        for message, asker in keeper.receive(20):
            heard_at_last.append(message)
            keeper.refuse(asker)

    until(lambda: heard_at_last, turn)
    assert set(heard_at_last) == {msg.LedgerAsk()}


def test_an_answer_after_the_deadline_is_dropped(bus):
    keeper, router = bus(answers=("ledger",)), bus(asks=("ledger",))
    router.ask("ledger", msg.LedgerAsk(), now_ns=0)
    _, asker = asked(keeper)
    assert router.overdue(ASK_DEADLINE_NS) == [msg.NoAnswer(msg.LedgerAsk())]
    keeper.reply(asker, msg.Grant("late", True))
    router.ask("ledger", msg.LedgerAsk(), now_ns=ASK_DEADLINE_NS)
    _, asker = asked(keeper)
    keeper.reply(asker, msg.Grant("in time", True))
    assert asked(router)[0] == msg.Grant("in time", True)


def test_more_asks_than_fit_are_overdue_and_do_not_block(bus):
    """Some 10,000 wait on either side of the wire for who does not read; then it is full."""
    _, router = bus(answers=("ledger",)), bus(asks=("ledger",))
    most = 4 * STREAMS["ledger"].high_water_mark
    for _ in range(most):
        router.ask("ledger", msg.LedgerAsk(), now_ns=50)
    at_once = router.overdue(50)
    assert at_once
    assert len(at_once) + len(router.overdue(50 + ASK_DEADLINE_NS)) == most


def test_a_refused_ask_is_overdue_at_its_deadline(bus):
    keeper, router = bus(answers=("ledger",)), bus(asks=("ledger",))
    router.ask("ledger", msg.Control("DANCE", "a person"), now_ns=0)
    keeper.refuse(asked(keeper)[1])
    until(lambda: router.malformed, lambda: heard(router))
    assert router.overdue(ASK_DEADLINE_NS) == [msg.NoAnswer(msg.Control("DANCE", "a person"))]


def test_malformed_frames_are_counted_and_what_follows_is_heard(bus, run_dir):
    listener, topic = bus(hears={"market": ("kline.",)}), b"kline.XUSDT."
    with raw_socket(zmq.PUB, endpoint(run_dir, "market", 0)) as speaker:
        join(listener, lambda hello: speaker.send(topic + msg.encode(hello)))
        assert listener.malformed == 0
        for data in GARBAGE:
            speaker.send(topic + data)
        speaker.send(topic)  # and no frame
        speaker.send(topic + msg.encode(kline()))
        assert collect(listener, 1) == [kline()]
    assert listener.malformed == len(GARBAGE) + 1


def test_an_answerer_survives_malformed_asks_and_answers_the_next(bus, run_dir):
    keeper = bus(answers=("ledger",))
    with raw_socket(zmq.DEALER, endpoint(run_dir, "ledger", 0)) as peer:
        for data in GARBAGE:
            peer.send_multipart((b"id", b"", data))
        peer.send(b"no envelope")
        peer.send_multipart((b"id", b"", msg.encode(msg.LedgerAsk())))
        ask, asker = asked(keeper)
        keeper.reply(asker, msg.Grant("x", False))
        replies = [peer.recv_multipart() for _ in range(len(GARBAGE) + 1)]
    assert (ask, keeper.malformed) == (msg.LedgerAsk(), len(GARBAGE))
    assert [reply[-1] for reply in replies[:-1]] == [b""] * len(GARBAGE)
    assert replies[-1] == [b"id", b"", msg.encode(msg.Grant("x", False))]


@pytest.fixture
def tcp():
    """Addresses for two streams, on ports that were free a moment ago."""
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0)), two.bind(("127.0.0.1", 0))
        ports = one.getsockname()[1], two.getsockname()[1]
    return {"market": f"tcp://127.0.0.1:{ports[0]}", "ledger": f"tcp://127.0.0.1:{ports[1]}"}


def test_streams_go_by_tcp_with_keys(bus, run_dir, tcp):
    make_keys(run_dir / "keys")
    wires = {"tcp": tcp, "keys": run_dir / "keys"}
    ingestor, keeper = bus(says="market", **wires), bus(answers=("ledger",), **wires)
    listener = bus(hears={"market": ("kline.",)}, asks=("ledger",), **wires)
    join(listener, ingestor.publish)
    ingestor.publish(kline())
    assert collect(listener, 1) == [kline()]
    listener.ask("ledger", msg.LedgerAsk(), 0)
    assert asked(keeper)[0] == msg.LedgerAsk()
    assert not list(run_dir.glob("market*"))


@pytest.mark.parametrize("keys", ["none", "others"])
def test_who_has_no_key_of_the_folder_hears_and_asks_nothing(bus, run_dir, tcp, keys):
    make_keys(run_dir / "keys")
    make_keys(run_dir / "others")
    ours = {"tcp": tcp, "keys": run_dir / "keys"}
    theirs = {"tcp": tcp, "keys": None if keys == "none" else run_dir / "others"}
    ingestor, keeper = bus(says="market", **ours), bus(answers=("ledger",), **ours)
    friend = bus(hears={"market": ("kline.",)}, **ours)
    stranger = bus(hears={"market": ("",)}, asks=("ledger",), **theirs)
    join(friend, ingestor.publish)  # whoever may hear does so by now
    stranger.ask("ledger", msg.LedgerAsk(), 0)
    for _ in range(5):
        ingestor.publish(kline())
        assert heard(stranger) == heard(keeper) == []


def test_a_file_descriptor_wakes_the_listener(bus):
    listener = bus(hears={"market": ("kline.",)})
    fd = os.eventfd(1)
    listener.watch(fd)
    started = time.monotonic()
    assert list(listener.receive(1_000 * PATIENCE_SECONDS)) == []
    assert time.monotonic() - started < PATIENCE_SECONDS / 2
    os.close(fd)


def test_a_socket_file_that_a_crash_left_behind_is_taken_over(bus, run_dir):
    with socket.socket(socket.AF_UNIX) as crashed:
        crashed.bind(str(run_dir / "market"))
    speaker, listener = bus(says="market"), bus(hears={"market": ("kline.",)})
    join(listener, speaker.publish)


@pytest.mark.parametrize("name", sorted(STREAMS))
def test_a_path_too_long_for_a_socket_is_a_value_error(name):
    owner_of_slots = STREAMS[name].owner == "worker"
    file = f"{name}-15" if owner_of_slots else name
    fits = Path("/" + "x" * (MAX_PATH - len(file) - 2))  # "/" + x... + "/" + file = 107 bytes
    assert len(endpoint(fits, name, 15)) == len("ipc://") + 107
    with pytest.raises(ValueError, match="RUN_DIR"):
        endpoint(Path(f"{fits}x"), name, 15)


def test_a_bus_in_a_folder_with_too_long_a_name_does_not_open():
    with pytest.raises(ValueError, match="RUN_DIR"):
        Bus(Path("/tmp") / ("x" * 120), says="market")


def test_only_the_workers_have_an_endpoint_for_each_slot():
    counts = {name: len(set(endpoints(Path("run"), name))) for name in STREAMS}
    assert {name for name, count in counts.items() if count > 1} == {"quotes"}
    assert counts["quotes"] == 16
