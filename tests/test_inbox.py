"""inbox: what threads post wakes the loop, whoever comes between; a flood is taken in parts; a loop
that hears nothing of what it asked for ends, so that another takes its place."""

import select
import threading
from collections import deque

import pytest

from shared.actor import DEAF_NS, INBOX_LIMIT, Actor, Deaf, Inbox, Loop
from shared.bus import MAX_DRAIN
from shared.messages import Fetch, Fetched, Link
from tests.test_bus import bus, run_dir  # noqa: F401 - fixtures

WAIT_S = 10.0  # for a wake-up that must come at once


def is_called(inbox: Inbox) -> bool:
    """Whether a loop that sleeps on it would wake up now."""
    return bool(select.select([inbox.fd], [], [], 0)[0])


class Between(deque):
    """Another thread posts between the append and whatever the first one does next."""

    def __init__(self, inbox: Inbox) -> None:
        super().__init__()
        self._inbox, self._others = inbox, ["from another thread"]

    def append(self, message: object) -> None:
        super().append(message)
        if self._others:
            self._inbox.post(self._others.pop())


def test_two_threads_that_post_at_once_do_not_each_leave_the_call_to_the_other() -> None:
    inbox = Inbox()
    inbox._queue = Between(inbox)
    inbox.post("first")
    assert is_called(inbox)
    assert inbox.take() == ["first", "from another thread"]
    assert not is_called(inbox)
    inbox.post("later")
    assert is_called(inbox)


def test_a_post_while_the_loop_takes_is_taken_or_calls_again() -> None:
    inbox = Inbox()

    class Meanwhile(deque):
        def popleft(self) -> object:
            message = super().popleft()
            if message == "first":
                inbox.post("meanwhile")
            return message

    inbox._queue = Meanwhile()
    inbox.post("first")
    taken = inbox.take()
    assert taken == ["first", "meanwhile"] or (taken == ["first"] and is_called(inbox))


def test_what_nobody_called_for_is_taken_at_the_next_look() -> None:
    inbox = Inbox()
    inbox._queue.append("unheard of")
    assert not is_called(inbox)
    assert inbox.take() == ["unheard of"]


def test_a_flood_is_taken_in_parts_each_of_which_calls_for_the_next() -> None:
    inbox = Inbox()
    for number in range(2 * MAX_DRAIN + 1):
        inbox.post(number)
    sizes = []
    while is_called(inbox):
        sizes.append(len(inbox.take()))
    assert sizes == [MAX_DRAIN, MAX_DRAIN, 1]


def test_a_full_inbox_drops_and_counts() -> None:
    inbox = Inbox()
    inbox._queue.extend(range(INBOX_LIMIT))
    inbox.post("too much")
    assert (len(inbox), inbox.dropped) == (INBOX_LIMIT, 1)


@pytest.mark.parametrize("count", [2, 12])
def test_a_loop_that_sleeps_between_looks_hears_every_thread(count: int) -> None:
    inbox, each = Inbox(), 3_000
    threads = [
        threading.Thread(target=lambda: [inbox.post(n) for n in range(each)]) for _ in range(count)
    ]
    for thread in threads:
        thread.start()
    taken = 0
    while taken < count * each:
        assert select.select([inbox.fd], [], [], WAIT_S)[0], f"asleep with {len(inbox)} to take"
        taken += len(inbox.take())
    for thread in threads:
        thread.join()
    assert taken == count * each and not len(inbox)


class Asker(Actor):
    """Asks its door at each tick."""

    service, says, note = "ingestor", "market", ""

    def __init__(self, asks: bool) -> None:
        super().__init__(None)
        self._asks = asks

    def tick(self, now_ns: int) -> list:
        return [Fetch("instruments")] * self._asks


class Door:
    """Takes what it is asked, and says nothing by itself."""

    takes = (Fetch,)

    def send(self, message: object) -> None:
        """It is asked."""


@pytest.mark.parametrize("heard", [Fetched(Fetch("klines"), (), "refused"), Link("x", False)])
def test_a_loop_whose_door_has_gone_silent_ends(heard: object, bus: object) -> None:  # noqa: F811
    inbox = Inbox()
    loop = Loop(Asker(asks=True), bus(says="market"), inbox, Door(), 0)
    loop._tick(1)
    loop._tick(DEAF_NS + 1)  # just in time ...
    inbox.post(heard)  # ... whatever it is, an error or another thing
    loop._turn(0)
    loop._tick(DEAF_NS + 2)
    loop._tick(2 * DEAF_NS + 2)
    with pytest.raises(Deaf, match="60 s"):
        loop._tick(2 * DEAF_NS + 3)


def test_a_loop_that_asks_nothing_may_hear_nothing(bus: object) -> None:  # noqa: F811
    loop = Loop(Asker(asks=False), bus(says="market"), Inbox(), Door(), 0)
    loop._tick(1)
    loop._tick(10 * DEAF_NS)
