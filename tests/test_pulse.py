"""Pulse: who has spoken and then says nothing is named, once."""

from services.watchdog.pulse import BLIND_NS, SILENT_NS, Pulse
from shared import messages as msg

NS = 1_000_000_000


def word(pid, service="router", slot=0):
    return msg.Health(service, slot, pid, True, "", "", 0, {}, {}, 0, 0, "")


def watched(until_s, speaks):
    """A pulse that looks each second; `speaks(second)` are the pids that speak then."""
    pulse, named = Pulse(), {}
    for second in range(until_s + 1):
        for pid in speaks(second):
            pulse.heard(word(pid), second * NS)
        named |= dict.fromkeys(pulse.silent(second * NS), second)
    return named


def test_who_speaks_each_second_is_left_alone():
    assert watched(100, lambda second: [7, 8]) == {}


def test_who_falls_silent_is_named_after_ten_seconds():
    silent_s = SILENT_NS // NS
    assert watched(60, lambda second: [7, 8] if second < 20 else [8]) == {7: 20 + silent_s}


def test_who_is_named_is_not_named_again_and_its_successor_is_watched():
    named = watched(60, lambda second: [7] if second < 5 else [9] if 20 < second < 30 else [])
    assert named == {7: 4 + 11, 9: 29 + 11}


def test_who_never_spoke_is_not_judged():
    assert watched(60, lambda second: []) == {}


def test_the_watchdogs_own_sleep_is_nobodys_silence():
    pulse = Pulse()
    pulse.heard(word(7), 0)
    assert pulse.silent(NS) == {}
    woken = 60 * NS
    assert pulse.silent(woken) == {}
    for second in range(1, 11):
        assert pulse.silent(woken + second * NS) == {}
    assert pulse.silent(woken + 11 * NS) == {7: "router-0"}
    assert BLIND_NS < SILENT_NS
