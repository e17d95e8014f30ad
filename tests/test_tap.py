"""tap: what it says where nothing comes."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from services.tap import tap
from shared import messages as msg

ALIVE = msg.Health("keeper", 0, 7, True, "", "", 0, {}, {}, 1, 2, "1")
KLINE = msg.Kline("LATEUSDT", 0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, False, 0, 0)


@pytest.mark.parametrize(
    ("heard", "said"),
    [
        ([[], []], "tap: nothing runs here: make up\n"),
        ([[ALIVE], [ALIVE]], "tap: nothing was heard of kline LATEUSDT yet\n"),
    ],
)
def test_where_nothing_comes_it_says_so_once_and_goes_on_waiting(
    heard: list[list[msg.Message]],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock, waiting = [0.0], iter([*heard, [ALIVE, KLINE]])

    def receive(_: float) -> Iterator[tuple[Any, None]]:
        clock[0] += 1 + tap.PATIENCE_S
        yield from ((message, None) for message in next(waiting))

    monkeypatch.setattr(tap, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    bus = SimpleNamespace(receive=receive)
    assert next(tap.messages(bus, "kline", "LATEUSDT")) == KLINE
    assert capsys.readouterr().err == said
