"""terminal: how a command for people ends: no traceback for Ctrl-C, a lost reader or a typo."""

import contextlib
import os
import select
import sys
from collections.abc import Callable, Iterator

from shared.settings import WRONG_SETTING_EXIT

INTERRUPTED = 130  # what a shell tells of a command that Ctrl-C has ended


@contextlib.contextmanager
def ending(interrupted: str = "") -> Iterator[None]:
    """Ctrl-C ends with code 130 and says this, if anything; a reader who has left is no error."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        if interrupted:
            print(f"interrupted: {interrupted}", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        if not _reader_left():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is unwritten


def whole(name: str) -> Callable[[str], int]:
    """A type for argparse: what is no whole number ends in one line with this name, and code 2."""

    def number(text: str) -> int:
        try:
            return int(text)
        except ValueError:
            print(f"{name}: a whole number, got {text!r}", file=sys.stderr)
            sys.exit(WRONG_SETTING_EXIT)

    return number


def _reader_left() -> bool:
    reader = select.poll()
    reader.register(sys.stdout.fileno(), 0)
    return bool(reader.poll(0))
