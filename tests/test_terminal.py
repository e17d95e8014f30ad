"""How a command for people ends."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.ops import ops
from services.tap import tap
from shared.terminal import INTERRUPTED, ending

ROOT = Path(__file__).parents[1]
TALKS = "from shared.terminal import ending\nwith ending():\n    print('x' * 1_000_000)"


def test_ctrl_c_is_one_line_and_an_exit_code(capsys):
    with pytest.raises(SystemExit) as end, ending(ops.GOES_ON["up"]):
        raise KeyboardInterrupt
    said = "interrupted: what was started goes on: make status, make down\n"
    assert (end.value.code, INTERRUPTED, capsys.readouterr().err) == (130, 130, said)


def test_a_reader_who_has_left_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", TALKS]
    done = subprocess.run(command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_another_broken_pipe_is_an_error(capfd):
    with pytest.raises(BrokenPipeError), ending():
        raise BrokenPipeError


@pytest.mark.parametrize(
    ("main", "words", "said"),
    [
        (ops.main, ("scale", "abc"), "N: a whole number, got 'abc'"),
        (tap.main, ("--count", "2.5"), "COUNT: a whole number, got '2.5'"),
    ],
)
def test_a_number_that_is_none_is_one_line(main, words, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["", *words])
    with pytest.raises(SystemExit) as end:
        main()
    assert (end.value.code, capsys.readouterr().err) == (2, f"{said}\n")
