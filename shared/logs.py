"""logs: one record, one line on stdout, as text or as JSON. Trading waits for no reader of logs."""

import logging
import os
import re
from datetime import UTC, datetime
from select import PIPE_BUF
from typing import Any

import orjson

TEXT = "%(asctime)s %(levelname)s %(message)s"
PLACE = re.compile(r" ?(\w+)=(%[-#0 +]*\d*(?:\.\d+)?[a-zA-Z])|(%[^%a-zA-Z]*[a-zA-Z])")
"""A `key=%s` of a log call, with the space before it; or a place that has no name."""
MAX_INT = 2**63
TRACEBACK = 2_000  # characters, the last ones: what was raised, and where


class Lines(logging.Handler):
    """One record, one write to stdout, whole or not at all.

    `dropped` counts what a full pipe did not take.
    """

    dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write it, or drop it."""
        try:
            row = self.format(record).encode(errors="replace")
            os.write(1, row[: PIPE_BUF - 1] + b"\n")
        except OSError:
            Lines.dropped += 1


class Objects(logging.Formatter):
    """A record as one JSON object: ts, level, process, event, and its key=value as fields.

    The fields come from the log call, not from its text: from `extra={"said": message}`, or from
    the arguments of its `key=%s`. What would not fit into one write has its texts cut: `cut`.
    """

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """At most PIPE_BUF - 1 bytes of JSON, without a line break."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        head = {"ts": at, "level": record.levelname, "process": self._process}
        event, fields = _parts(record)
        if record.exc_info:
            fields["traceback"] = _plain(self.formatException(record.exc_info))[-TRACEBACK:]
        row = {**head, "event": event, **fields, **head}
        longest = PIPE_BUF
        while len(packed := orjson.dumps(row)) >= PIPE_BUF and longest:
            longest //= 2
            row = {key: _cut(value, longest) for key, value in row.items()} | head | {"cut": True}
        return packed.decode()


def line(message: Any) -> str:
    """Event, then key=value; what is empty is left out."""
    pairs = (f"{key}={value}" for key, value in filled(message).items())
    return " ".join((type(message).__name__, *pairs))


def filled(message: Any) -> dict[str, Any]:
    """The fields of a message that are not empty."""
    return {k: v for k, v in message._asdict().items() if v not in ("", 0, None)}


def _parts(record: logging.LogRecord) -> tuple[str, dict[str, Any]]:
    """The event of a record, and its fields."""
    said, template = getattr(record, "said", None), str(record.msg)
    if said is not None:
        return type(said).__name__, {key: _plain(value) for key, value in filled(said).items()}
    places = list(PLACE.finditer(template))
    if not isinstance(record.args, tuple) or len(places) != len(record.args):
        return _plain(record.getMessage()), {}
    fields, nameless = {}, []
    for place, value in zip(places, record.args, strict=True):
        if place[1]:
            exact = isinstance(value, int | float)
            fields[place[1]] = _plain(value if exact else place[2] % (value,))
        else:
            nameless.append(value)
    event = PLACE.sub(lambda place: "" if place[1] else place[0], template) % tuple(nameless)
    return _plain(event.strip().rstrip(":")) or next(iter(fields), ""), fields


def _plain(value: Any) -> Any:
    """What JSON knows: numbers as they are, all else as text."""
    if isinstance(value, float) or (isinstance(value, int) and abs(value) < MAX_INT):
        return value
    return str(value).encode(errors="replace").decode()


def _cut(value: Any, longest: int) -> Any:
    return value[:longest] if isinstance(value, str) else value
