"""Real processes under supervisord, on loopback: start, trade, scale, stop; and what is refused.

Each test has a RUN_DIR and a port of its own, and takes down what it started.
"""

import socket
from decimal import Decimal

import pytest

from tests.pipeline import MINUTE_MS, pipelines, wait_for

__all__ = ("pipelines",)  # the fixture `pipeline`


@pytest.mark.xdist_group("processes")
def test_up_trade_scale_down(pipeline):
    """Thirty symbols at ten times real time: orders rest, fill and close; the exchange agrees."""
    p = pipeline(PAPER_SYMBOLS=30, PAPER_SPEED=10, SHARDS=1, RECONCILE_SECONDS=2)
    up = p.ops("up")
    assert up.returncode == 0, up.stdout + up.stderr
    assert p.ops("up").returncode == 0, "a second up is harmless"

    status = wait_for(lambda: (s := p.status())["executions"] and s, 60)
    names = {"mode", "mode_reason", "lots", "symbols", "working_orders", "executions"}
    assert names | {"differences", "auditor_breaches", "processes"} <= status.keys()
    assert {row["name"] for row in status["processes"]} == {
        *("paper", "ingestor", "keeper", "router", "watchdog", "worker-0"),
    }
    for row in status["processes"]:
        assert {"name", "shard", "pid", "healthy", "feed_age_ms", "rates"} <= row.keys()
        assert row["healthy"], row

    [quote] = p.tap("--topic", "quote", "--count", "1")
    assert quote["kind"] == "Quote"
    assert 0 <= quote["latency_us"] < 60_000_000

    with p.recorded("--topic", "quote") as quotes:
        wait_for(lambda: len(bars_of(quotes())) == 30, 20)
        scaled = p.ops("scale", "2")
        assert scaled.returncode == 0, scaled.stdout + scaled.stderr
        shards = {row["shard"] for row in p.status()["processes"] if row["shard"]}
        assert shards == {"0/2", "1/2"}
        assert p.rows("SELECT who FROM modes")[-1][0].endswith(": 1 -> 2 shards, slots 1, 2")
        seen = max(max(bars) for bars in bars_of(quotes()).values())
        after = seen + 2 * MINUTE_MS
        wait_for(lambda: all(max(bars) >= after for bars in bars_of(quotes()).values()), 40)
        for symbol, bars in bars_of(quotes()).items():
            missed = set(range(min(bars), max(bars), MINUTE_MS)) - bars
            assert not missed, f"{symbol} missed bars while scaling"

    assert p.ops("mode", "REDUCE_ONLY").returncode == 0
    wait_for(lambda: no_entries(p), 20)
    wait_for(lambda: p.status()["differences"] == 0, 20)
    assert ours(p) == theirs(p)

    held, count = ours(p), p.status()["executions"]
    assert p.ops("down").returncode == 0
    assert p.ops("up").returncode == 0, "the account and the ledger go on where they were"
    wait_for(lambda: p.status()["differences"] == 0, 20)
    status = p.status()
    assert status["executions"] >= count
    assert status["mode"] == "REDUCE_ONLY", "what an operator asked for outlives a restart"
    assert set(ours(p)) <= set(held), "nothing was opened"
    assert ours(p) == theirs(p)

    assert p.ops("paper-reset").returncode == 2, "not while it runs"
    assert p.ops("down").returncode == 0
    p.env |= {"PAPER_SEED": "7"}
    up = p.ops("up")
    assert (up.returncode, "make paper-reset" in up.stderr) == (1, True), "another market"
    assert p.ops("paper-reset").returncode == 0
    assert not (p.run_dir / "state.db").exists()


def bars_of(quotes):
    found = {}
    for row in quotes:
        found.setdefault(row["symbol"], set()).add(row["bar_start_ms"])
    return found


def no_entries(p):
    orders = p.http().get_open_orders(category="linear", settleCoin="USDT", limit=50)
    return all(row["reduceOnly"] for row in orders["result"]["list"])


def theirs(p):
    rows = p.http().get_positions(category="linear", settleCoin="USDT", limit=200)["result"]["list"]
    return {
        row["symbol"]: Decimal(row["size"]) * (1 if row["side"] == "Buy" else -1) for row in rows
    }


def ours(p):
    """Open lots by symbol, as the file tells it."""
    import sqlite3  # noqa: PLC0415 - a reader from outside, as an owner would

    found = {}
    with sqlite3.connect(f"file:{p.run_dir / 'state.db'}?mode=ro", uri=True) as db:
        query = "SELECT symbol, side, bought, sold FROM lots WHERE closed_ms = 0"
        for symbol, side, bought, sold in db.execute(query):
            qty = (Decimal(bought) - Decimal(sold)) * (1 if side == "Buy" else -1)
            found[symbol] = found.get(symbol, 0) + qty
    return {symbol: qty for symbol, qty in found.items() if qty}


WRONG = [
    ({"PAPER_TYPO": "1"}, "PAPER_TYPO"),
    ({"BB_LENGTH": "1"}, "BB_LENGTH"),
    ({"BYBIT_ENV": "mainnet"}, "BYBIT_API_KEY"),
    ({"BYBIT_ENV": "testnet", "BYBIT_API_KEY": "k"}, "BYBIT_API_SECRET"),
    ({"PAPER_FEED": "replay", "PAPER_DATA": "no-such-file.npz"}, "PAPER_DATA"),
    ({"PAPER_FEED": "replay"}, "PAPER_DATA"),
]


@pytest.mark.parametrize(("settings", "word"), WRONG, ids=[word for _, word in WRONG])
def test_a_wrong_setting_is_one_line_and_starts_nothing(pipeline, settings, word):
    p = pipeline(**settings)
    up = p.ops("up")
    assert up.returncode == 2
    [line] = up.stderr.strip().splitlines()
    assert word in line
    p.env = {k: v for k, v in p.env.items() if k not in settings}
    assert p.status() == {"running": False}


@pytest.mark.xdist_group("processes")
def test_a_port_in_use_is_said(pipeline):
    p = pipeline()
    with socket.socket() as other:
        other.bind(("127.0.0.1", p.port))
        other.listen()
        up = p.ops("up")
    assert up.returncode == 2
    assert f"PAPER_PORT: port {p.port} is in use" in up.stderr
    assert p.status() == {"running": False}


@pytest.mark.xdist_group("processes")
def test_an_unknown_symbol_and_a_gap_are_said_and_nothing_stays_up(pipeline, tmp_path):
    p = pipeline(PAPER_SYMBOLS=5, SYMBOLS="NOSUCHUSDT", SHARDS=1)
    up = p.ops("up")
    assert up.returncode == 1
    assert "SYMBOLS: not traded on this exchange: NOSUCHUSDT" in up.stderr
    assert p.status() == {"running": False}

    rows = [f"{minute * 60_000},1,1,1,1,1" for minute in (0, 1, 3)]
    header = "open_time_ms,open,high,low,close,volume"
    (tmp_path / "ABCUSDT.csv").write_text("\n".join([header, *rows]))
    p.env |= {"PAPER_FEED": "replay", "PAPER_DATA": str(tmp_path), "SYMBOLS": ""}
    up = p.ops("up")
    assert up.returncode == 1
    assert "ABCUSDT.csv: line 4: a gap" in up.stderr
    assert p.status() == {"running": False}
