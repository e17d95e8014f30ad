"""why: what the gates say, and which times it takes."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from services.why.why import Heard, _of_router, _time, verdict
from shared import messages as msg
from shared.settings import Settings


@pytest.mark.parametrize(
    ("ready", "note", "said"), [(True, "REDUCE_ONLY", "ready"), (False, "RUN", "not ready (RUN)")]
)
def test_the_router_says_whether_it_is_ready_whatever_the_mode(
    ready: bool, note: str, said: str
) -> None:
    heard = Heard("XUSDT")
    heard.take(msg.Health("router", 0, 7, ready, note, "", 0, {"held_back": 57}, {}, 1, 2, "1"))
    router, budget = _of_router(heard)
    assert (router.value, router.passes) == (said, ready)
    assert budget[1:] == (
        "an order had to wait 57 times since the router's start",
        "any number: RATE_LIMIT only delays",
        True,
    )
    assert verdict([budget]) == "every gate is open"


def test_a_time_that_has_not_come_is_one_line(tmp_path: Path) -> None:
    bot = Settings(_env_file=None, RUN_DIR=tmp_path)
    assert _time("2026-01-31T12:34", bot) == datetime(2026, 1, 31, 12, 34, tzinfo=UTC)
    with pytest.raises(SystemExit, match="why: AT: 9000-01-01T00:00 UTC is in the future"):
        _time("9000-01-01", bot)


def test_a_market_that_runs_faster_may_be_ahead(tmp_path: Path) -> None:
    fast = Settings(_env_file=None, RUN_DIR=tmp_path, PAPER_SPEED=2)
    assert _time("9000-01-01", fast) is not None
