"""The ring against a plain list: a window is always the last rows, and only the next bar enters."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.worker.ring import COLUMNS, ROWS, Ring

ANY_SPEED = {
    "derandomize": True,
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow],
}

MINUTE_MS = 60_000
START_MS = 1_700_000_040_000  # a full minute


def bar(number: int) -> tuple[float, ...]:
    """A bar like no other: five numbers that say which bar and column they are of."""
    return tuple(float(10 * number + column) for column in range(COLUMNS))


def bars(first: int, count: int) -> list[tuple[float, ...]]:
    return [bar(number) for number in range(first, first + count)]


def loaded(count: int) -> Ring:
    ring = Ring(MINUTE_MS)
    ring.load(START_MS, np.array(bars(0, count)).tobytes())
    return ring


def rows(ring: Ring, length: int) -> list[tuple[float, ...]]:
    return [tuple(row) for row in ring.window(length).tolist()]


@settings(max_examples=60, **ANY_SPEED)
@given(st.integers(1, 2 * ROWS), st.integers(0, 3 * ROWS), st.data())
def test_a_window_is_the_last_rows_after_any_number_of_appends(at_first, appended, data):
    ring = loaded(at_first)
    for number in range(at_first, at_first + appended):
        assert ring.append(START_MS + number * MINUTE_MS, bar(number))
    every = bars(0, at_first + appended)
    assert ring.count == min(min(at_first, ROWS) + appended, ROWS)
    assert ring.next_ms == START_MS + len(every) * MINUTE_MS
    for length in {1, data.draw(st.integers(1, ring.count)), ring.count}:
        assert rows(ring, length) == every[-length:]


@settings(max_examples=60, **ANY_SPEED)
@given(st.integers(1, ROWS), st.lists(st.sampled_from([-60_000, -1, 0, 0, 0, 1, 60_000])))
def test_only_the_next_bar_enters(at_first, offsets):
    """Offsets in ms from the bar that must come next: anything but 0 changes nothing."""
    ring, every = loaded(at_first), bars(0, at_first)
    for number, offset in enumerate(offsets, 1_000):
        due_ms = START_MS + len(every) * MINUTE_MS
        assert ring.append(due_ms + offset, bar(number)) == (offset == 0)
        if offset == 0:
            every.append(bar(number))
        assert rows(ring, ring.count) == every[-ring.count :]
    assert ring.next_ms == START_MS + len(every) * MINUTE_MS


def test_nothing_enters_before_the_history_is_there():
    ring = Ring(MINUTE_MS)
    assert not ring.append(START_MS, bar(0))
    assert not ring.load(0, b"")
    assert (ring.count, ring.next_ms) == (0, 0)


def test_a_load_that_reaches_further_replaces_all():
    ring = loaded(200)
    assert ring.load(START_MS + 500 * MINUTE_MS, np.array(bars(500, 3)).tobytes())
    assert (ring.count, ring.next_ms) == (3, START_MS + 503 * MINUTE_MS)
    assert rows(ring, 3) == bars(500, 3)


@pytest.mark.parametrize(("first", "count"), [(0, 0), (0, 199), (0, 200), (150, 50), (10, 3)])
def test_a_load_that_reaches_no_further_changes_nothing(first, count):
    """An empty history, an older one, or what is here already."""
    ring = loaded(200)
    assert not ring.load(START_MS + first * MINUTE_MS, np.array(bars(first, count)).tobytes())
    assert (rows(ring, 200), ring.next_ms) == (bars(0, 200), START_MS + 200 * MINUTE_MS)
    assert ring.append(START_MS + 200 * MINUTE_MS, bar(200))


@pytest.mark.parametrize("count", [ROWS - 1, ROWS, ROWS + 1])
def test_the_edge_of_the_buffer_is_no_edge(count):
    ring = loaded(count)
    for number in range(count, count + 3):
        assert ring.append(START_MS + number * MINUTE_MS, bar(number))
        assert rows(ring, 7) == bars(number - 6, 7)


def test_a_bar_is_as_long_as_the_interval():
    ring = Ring(5 * MINUTE_MS)
    ring.load(START_MS, np.array(bars(0, 2)).tobytes())
    assert not ring.append(START_MS + 2 * MINUTE_MS, bar(2))
    assert ring.append(START_MS + 10 * MINUTE_MS, bar(2))


def test_values_are_kept_to_the_last_bit():
    odd = (0.1 + 0.2, 1e-7 / 3, 1e5 / 7, 5e-324, 123456.789)
    ring = loaded(1)
    assert ring.append(START_MS + MINUTE_MS, odd)
    window = ring.window(2)
    assert (window.dtype, window.shape) == (np.float64, (2, COLUMNS))
    assert tuple(window[-1].tolist()) == odd
