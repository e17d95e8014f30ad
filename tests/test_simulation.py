"""Lives of the whole bot under random faults, one per seed; `make simulate` runs many more.

The invariants are in `tests/simulation/world.py`. A seed that ever failed is lived again each time.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.__main__ import live, shorter
from tests.simulation.plans import draw
from tests.simulation.planted import BUGS

ROOT = Path(__file__).parents[1]
SEEDS, PART = 300, 20
ONCE_FAILED = (313, 363, 369, 458, 548, 558, 638, 659, 1010, 3270)


@pytest.mark.parametrize("first", range(0, SEEDS, PART))
def test_nothing_is_lost_or_doubled(first):
    failed = {seed: wrong for seed in range(first, first + PART) if (wrong := live(draw(seed))[0])}
    assert not failed


@pytest.mark.parametrize("seed", ONCE_FAILED)
def test_what_failed_once_does_not_fail_again(seed):
    assert live(draw(seed))[0] == ""


@pytest.mark.parametrize("seed", [5, 49])
def test_the_same_seed_is_the_same_life_in_another_process(seed):
    """Whatever the order of its sets: what fails can be seen again."""
    program = (
        "from tests.simulation.__main__ import live, draw; "
        f"wrong, trace, _ = live(draw({seed})); print(repr(wrong), trace)"
    )
    traces = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": hashseed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hashseed in ("1", "2")
    }
    assert len(traces) == 1


def test_a_failing_plan_gets_shorter():
    """A rule that a single act breaks, somewhere among many that do not matter."""
    plan = draw(5)
    broken = (40.0, "no_such_act")
    plan = plan._replace(acts=tuple(sorted((*plan.acts, broken), key=lambda act: act[0])))
    assert live(plan)[0].startswith("AttributeError")
    assert shorter(plan).acts == (broken,)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_can_be_planted(bug):
    assert (ROOT / bug.file).read_text().count(bug.right) == 1
