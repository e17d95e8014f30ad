"""What processes write, in both formats, and how it is read: real output, real files."""

import json
import signal
import subprocess
import sys
from contextlib import contextmanager
from select import PIPE_BUF

import pytest

from services.ops.logs import ALL, File, coloured, readable
from tests.pipeline import ROOT, environment

BEGIN = """
import logging
from decimal import Decimal
from shared import messages as msg
from shared.actor import begin
from shared.logs import line
from shared.settings import Settings
begin(Settings(_env_file=None), "router")
log = logging.getLogger("dm")
"""
EVENTS = """
log.info("%s start slot=%s version=%s", "router", 3, "0.1.0")
log.warning("mode=%s reason=%s", "NO_ENTRY", "market data lost")
log.warning("silent service=%s pid=%d: killed", "worker-1", 77)
log.error("wrong_setting %s", "PAPER_PORT: 8801 is in use, 100 % of it")
log.warning("bad_frame error=%r frame=%.20a", ValueError("x"), "\\xe9" * 100)
said = msg.Execution("e-1", "dm-BTCUSDT-1a-B", "", "BTCUSDT", "Buy", "Trade", Decimal("1.50"),
    Decimal("2"), Decimal("0"), True, 1700000000000)
log.info("%s", line(said), extra={"said": said})
log.info("plain %%s with no argument")
log.info("load=%.1f nan=%s", 1.25, float("nan"))
log.info("two\\nlines=%s", "a\\nb")
"""


def said(program, log_format, **settings):
    """The lines of a process on stdout, and its stderr."""
    env = environment(LOG_FORMAT=log_format, **settings)
    words = [sys.executable, "-c", BEGIN + program]
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    return done.stdout.splitlines(), done.stderr


def test_json_has_the_event_and_its_pairs_as_fields():
    rows = [json.loads(row) for row in said(EVENTS, "json")[0]]
    heads = [(row.pop("level"), row.pop("process"), row.pop("event")) for row in rows]
    assert all(row.pop("ts").endswith("+00:00") for row in rows)
    assert heads == [
        ("INFO", "router", "router start"),
        ("WARNING", "router", "mode"),
        ("WARNING", "router", "silent: killed"),
        ("ERROR", "router", "wrong_setting PAPER_PORT: 8801 is in use, 100 % of it"),
        ("WARNING", "router", "bad_frame"),
        ("INFO", "router", "Execution"),
        ("INFO", "router", "plain %%s with no argument"),
        ("INFO", "router", "load"),
        ("INFO", "router", "two"),
    ]
    assert rows == [
        {"slot": 3, "version": "0.1.0"},
        {"mode": "NO_ENTRY", "reason": "market data lost"},
        {"service": "worker-1", "pid": 77},
        {},
        {"error": "ValueError('x')", "frame": "'" + "\\xe9" * 4 + "\\xe"[:3]},
        {
            "exec_id": "e-1",
            "order_link_id": "dm-BTCUSDT-1a-B",
            "symbol": "BTCUSDT",
            "side": "Buy",
            "exec_type": "Trade",
            "exec_price": "1.50",
            "exec_qty": "2",
            "is_maker": True,
            "exec_time_ms": 1700000000000,
        },
        {},
        {"load": 1.25, "nan": None},
        {"lines": "a\nb"},
    ]


def test_text_is_the_line_it_always_was():
    rows = said(EVENTS, "text")[0]
    assert rows[0][23:] == " INFO router start slot=3 version=0.1.0"
    assert rows[1][23:] == " WARNING mode=NO_ENTRY reason=market data lost"
    assert rows[2][23:] == " WARNING silent service=worker-1 pid=77: killed"
    assert rows[5][23:].startswith(" INFO Execution exec_id=e-1 order_link_id=dm-BTCUSDT-1a-B ")


@pytest.mark.parametrize("text", ["x", "\\U0001f600", '\\"', "\\x00"])
def test_a_line_that_is_too_long_is_still_json_and_one_write(text):
    call = f'log.info("event a=%s b=%s %s", "{text}" * 10_000, "short", "{text}" * 10_000)'
    program = call + '\nlog.info("next")'
    rows = said(program, "json")[0]
    assert [len(row.encode()) < PIPE_BUF for row in rows] == [True, True]
    found = json.loads(rows[0])
    assert (found["b"], found["cut"], found["process"]) == ("short", True, "router")
    assert json.loads(rows[1])["event"] == "next"


def test_what_kills_a_process_is_one_line_too():
    rows, err = said("def f(n):\n  return f(n - 1) if n else {}['gone']\nf(200)", "json")
    assert err == ""
    [found] = [json.loads(row) for row in rows]
    assert (found["level"], found["event"]) == ("CRITICAL", "died")
    assert found["traceback"].endswith("KeyError: 'gone'")


def test_both_formats_read_alike():
    for text, packed in zip(said(EVENTS, "text")[0], said(EVENTS, "json")[0][:8], strict=False):
        assert readable(text)[1] == readable(packed)[1]
        if "mode=" in text:
            assert (
                readable(text)[2] == readable(packed)[2] == "mode=NO_ENTRY reason=market data lost"
            )
        assert len(readable(text)[0]) == len(readable(packed)[0]) == 23
    assert readable("Traceback (most recent call last):") == (
        "",
        "",
        "Traceback (most recent call last):",
    )
    for odd in ("{", "{}", "[]", '{"ts": 1}', '{"event": "x"}'):
        assert readable(odd) == ("", "", odd)


def test_levels_have_colours():
    row = "2026-01-31 10:20:30,456 WARNING mode=NO_ENTRY"
    shown = coloured("router", row)
    assert shown.plain.split() == ["10:20:30,456", "router", "WARNING", "mode=NO_ENTRY"]
    assert "yellow" in str(shown.spans[-1].style)


def test_a_file_is_followed_through_rotations_and_only_whole_lines_count(tmp_path):
    path = tmp_path / "router.log"
    path.write_text("".join(f"{n}\n" for n in range(100)))
    file = File(path, 3)
    assert list(file.lines()) == ["97", "98", "99"]
    with path.open("a") as out:
        out.write("100\nhal")
        out.flush()
        assert list(file.lines()) == ["100"]
        out.write("f\n")
        out.flush()
        path.rename(tmp_path / "router.log.1")
        assert list(file.lines()) == ["half"]
        out.write("last words\n")
    path.write_text("new\n")
    assert list(file.lines()) == ["last words", "new"]
    path.write_text("")  # the same file, begun anew
    assert list(file.lines()) == []
    path.write_text("anew\n")
    assert list(file.lines()) == ["anew"]
    file.close()
    assert list(File(path, ALL).lines()) == ["anew"]


@contextmanager
def reading(tmp_path, *words):
    env = environment(RUN_DIR=str(tmp_path))
    command = [sys.executable, "-m", "services.ops", "logs", *words]
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True) as process:
        yield process


def written(tmp_path):
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "keeper.log").write_text("2026-01-31 10:20:31,000 INFO second\ntrace\n")
    (logs / "router.log").write_text(
        '{"ts":"2026-01-31T10:20:30.000+00:00","level":"WARNING","process":"router",'
        '"event":"first","slots":3}\n'
    )
    return logs


def test_the_logs_of_all_in_order_of_time_until_ctrl_c(tmp_path):
    logs = written(tmp_path)
    with reading(tmp_path) as process:
        rows = [process.stdout.readline().split() for _ in range(3)]
        assert rows == [
            ["10:20:30,000", "router", "WARNING", "first", "slots=3"],
            ["10:20:31,000", "keeper", "INFO", "second"],
            ["keeper", "trace"],
        ]
        (logs / "worker-2.log").write_text("2026-01-31 10:20:32,000 INFO later\n")
        assert process.stdout.readline().split()[1:] == ["worker-2", "INFO", "later"]
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0


def test_it_ends_when_its_reader_leaves_though_nothing_is_written(tmp_path):
    written(tmp_path)
    with reading(tmp_path, "--service", "router") as process:
        assert process.stdout.readline().split()[1] == "router"
        process.stdout.close()
        assert process.wait(10) == 0


def test_no_such_service_is_said(tmp_path):
    written(tmp_path)
    with reading(tmp_path, "--service", "nobody") as process:
        assert process.wait(10) == 1
