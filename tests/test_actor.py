"""What every process is before it is a service: its logs, and its end with its supervisord."""

import subprocess
import sys
from select import PIPE_BUF

from tests.pipeline import ROOT

LOGGED = """
import logging, sys
from shared.actor import begin
from shared.settings import Settings
begin(Settings(_env_file=None))
logging.getLogger("dm").info("x" * 10_000)
logging.getLogger("dm").info("next")
"""
BEGUN = """
from shared.actor import begin
from shared.settings import Settings
begin(Settings(_env_file=None, DIE_WITH_PARENT=True))
print("alive")
"""


def python(program, *, orphan=False):
    """What a program says; an orphan's parent is the init process, or whoever stands in for it."""
    words = [sys.executable, "-c", program]
    if orphan:
        twice = "import subprocess, sys; subprocess.Popen(sys.argv[1:])"
        words = [sys.executable, "-c", twice, *words]
    said = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    return said.stdout, said.stderr


def test_a_record_that_is_too_long_is_one_line_all_the_same():
    out, _ = python(LOGGED)
    first, second = out.splitlines()
    assert len(first) == PIPE_BUF - 1
    assert second.endswith("INFO next")


def test_a_process_whose_supervisord_died_before_it_began_ends():
    out, err = python(BEGUN, orphan=True)
    assert (out, err.strip()) == ("", "supervisord died during the start")


def test_so_does_one_that_never_had_one():
    out, err = python(BEGUN)
    assert (out, err.strip()) == ("", "supervisord died during the start")
