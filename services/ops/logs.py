"""logs: what the processes have written, as they write it, readable and in colours.

Reads text and JSON lines alike, follows files that are rotated, and those that appear later.
"""

import contextlib
import os
import re
import select
import sys
from collections.abc import Iterable, Iterator
from operator import itemgetter
from pathlib import Path
from typing import BinaryIO

import orjson
from rich.console import Console
from rich.text import Text

LOOK_MS = 200
LAST = 20  # lines of each file to begin with
ALL = sys.maxsize
TAIL_BYTES = 64 * 1024  # where they are looked for
LONGEST = 64 * 1024  # of a line without an end; then what there is of it is shown
ROW = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) ([A-Z]{4,8}) (.*)", re.DOTALL)
HEAD = ("ts", "level", "process", "event")
COLOURS = {
    "DEBUG": "dim",
    "INFO": "",
    "WARNING": "yellow",
    "WARN": "yellow",
    "ERROR": "bold red",
    "CRITICAL": "bold red",
    "CRIT": "bold red",
}


class Screen(Console):
    """Where a reader who has left is no error, as long as nobody makes one of it."""

    def __init__(self) -> None:
        super().__init__(highlight=False, soft_wrap=True)

    def on_broken_pipe(self) -> None:
        """rich would end the process with code 1."""
        raise BrokenPipeError


class File:
    """One log file: its new whole lines, on into the file that follows it after a rotation."""

    def __init__(self, path: Path, last: int) -> None:
        """Begins with its `last` lines; raises OSError where it cannot be read."""
        self._path, self._rest = path, b""
        self._file: BinaryIO = path.open("rb")
        size = self._file.seek(0, 2)
        self._file.seek(max(0, size - TAIL_BYTES))
        ends = self._file.read(min(size, TAIL_BYTES)).splitlines(keepends=True)
        self._file.seek(size - sum(map(len, ends[-last:] if last else [])))

    def lines(self) -> Iterator[str]:
        """What has come since."""
        yield from self._whole(self._file.read())
        if self._is_rotated():
            yield from self._whole(self._file.read() + b"\n")  # the last words before it was
            self._file.close()
            self._file = self._path.open("rb")
            yield from self._whole(self._file.read())

    def close(self) -> None:
        """Let go of it."""
        self._file.close()

    def _whole(self, read: bytes) -> Iterator[str]:
        *whole, self._rest = (self._rest + read).split(b"\n")
        if len(self._rest) > LONGEST:
            whole, self._rest = [*whole, self._rest], b""
        yield from (row.decode(errors="replace") for row in whole if row)

    def _is_rotated(self) -> bool:
        """Another file has this name, or the same one begins anew."""
        try:
            named, size = self._path.stat(), self._file.tell()
        except FileNotFoundError:
            return False  # between two files
        return not same(named.st_ino, self._file) or named.st_size < size


def same(inode: int, file: BinaryIO) -> bool:
    """Whether this is the open file's."""
    return Path(f"/dev/fd/{file.fileno()}").stat().st_ino == inode


def readable(row: str) -> tuple[str, str, str]:
    """(time, level, text) of one line in either format; without time and level if in neither."""
    if row.startswith("{"):
        with contextlib.suppress(orjson.JSONDecodeError, KeyError, AttributeError):
            found = orjson.loads(row)
            pairs = (f"{k}={v}" for k, v in found.items() if k not in (*HEAD, "traceback"))
            event = [] if found["event"] in found else [found["event"]]  # the key of a pair
            text = " ".join((*event, *pairs))
            if "traceback" in found:
                text += "\n" + found["traceback"]
            return found["ts"][:23].replace("T", " ").replace(".", ","), found["level"], text
    match = ROW.fullmatch(row)
    return (match[1], match[2], match[3]) if match else ("", "", row)


def timed(process: str, rows: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """(time, process, line); what has no time of its own stays behind the line before it."""
    at = ""
    for row in rows:
        at = readable(row)[0] or at
        yield at, process, row


def coloured(process: str, row: str) -> Text:
    """`10:20:30,456 router    WARNING mode=NO_ENTRY reason=market data lost`."""
    at, level, text = readable(row)
    shown = Text(f"{at[11:]:<12} {process:<11} ", style="dim")
    style = COLOURS.get(level, "") if level else "dim"
    shown.append(f"{level:<7} {text}" if level else text, style="not dim " + style)
    return shown


def follow(folder: Path, service: str, last: int = LAST) -> int:
    """Until Ctrl-C, or until whoever reads us has left. 1 if there is nothing to read."""
    console, files = Screen(), dict[Path, File]()
    reader = select.poll()
    reader.register(sys.stdout.fileno(), 0)  # says when the other end of a pipe is closed
    try:
        while True:
            for path in sorted(folder.glob(f"{service}*.log")):
                if path not in files:
                    files[path] = File(path, last)
            if not files:
                print(f"logs: no {service}*.log in {folder}", file=sys.stderr)
                return 1
            last = ALL  # what appears later is read from its beginning
            rows = (row for path, file in files.items() for row in timed(path.stem, file.lines()))
            for _, process, row in sorted(rows, key=itemgetter(0)):
                console.print(coloured(process, row))
            console.file.flush()
            if reader.poll(LOOK_MS):
                return 0
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:  # the reader has left: what is unwritten goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    finally:
        for file in files.values():
            file.close()
