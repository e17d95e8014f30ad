"""A wrong setting stops the start with one line that names it, and exit code 2.

Nothing here connects to anything: addresses are only judged. Hosts are of RFC 5737 and RFC 2606.
"""

import json
import os
import re
from decimal import Decimal
from pathlib import Path

import pytest
from pydantic import ValidationError

from services.keeper.ledger import Caps
from services.keeper.losses import Limits
from services.router.orders import Rules
from services.worker.strategy import Parameters
from shared.bus import STREAMS
from shared.settings import (
    BUS_STREAMS,
    FAMILIES,
    LIVE_HOSTS,
    PAPER_SECRET,
    SHARDS_FILE,
    SUPERVISED,
    WRONG_SETTING_EXIT,
    Settings,
    changed,
    load,
    public,
    running,
)

EXAMPLE = Path(__file__).parents[1] / ".env.example"
KEYS = {"BYBIT_API_KEY": "a-key", "BYBIT_API_SECRET": "hush-hush"}


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No .env of the project and no setting from outside."""
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name in Settings.model_fields or FAMILIES.match(name):
            monkeypatch.delenv(name)


@pytest.fixture
def complaints(monkeypatch, capsys):
    """Load with this environment and .env, and give the lines on stderr; it must end with 2."""

    def lines(env: dict[str, str], dotenv: str = "") -> list[str]:
        Path(".env").write_text(dotenv)
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as end:
            load()
        assert end.value.code == WRONG_SETTING_EXIT == 2
        out, err = capsys.readouterr()
        assert out == ""
        return err.splitlines()

    return lines


def test_out_of_the_box_it_is_paper_with_the_numbers_of_the_design():
    settings = load()
    assert settings.BYBIT_ENV == "paper"
    assert settings.part(Parameters) == Parameters(7, 3.0, 1.5, 0.3, 0.5, 0.5, 0.2, 0.275, 0.05)
    assert settings.part(Rules) == Rules(Decimal(10), 10, 0.2, 0.02, stop_loss_pct=0.0)
    assert settings.part(Caps) == Caps(100, 50, 10, cooldown_seconds=0)
    assert settings.part(Limits) == Limits(daily_loss_pct=3.0, drawdown_pct=8.0)
    assert (settings.MAX_SLOTS, settings.MAX_SYMBOLS, settings.QUOTE_TTL_MS) == (100, 50, 5000)


def test_the_example_lists_every_setting_with_its_default():
    Path(".env").write_text(EXAMPLE.read_text())
    listed = set(re.findall(r"^([A-Z_]+)=", EXAMPLE.read_text(), re.M))
    assert listed == set(Settings.model_fields)
    assert load() == Settings(_env_file=None)


def test_the_environment_wins_over_the_file_and_an_empty_one_means_the_default(monkeypatch):
    Path(".env").write_text("SHARDS=3\nMAX_SLOTS=7\nSIZE_USDT=12.5\n")
    monkeypatch.setenv("SHARDS", "4")
    monkeypatch.setenv("MAX_SYMBOLS", "")
    found = load().model_dump(include={"SHARDS", "MAX_SLOTS", "MAX_SYMBOLS", "SIZE_USDT"})
    assert list(found.values()) == [Decimal("12.5"), 7, 50, 4]  # in the order of the table


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BYBIT_ENV", "production"),
        ("CONFIRM_LIVE", "YES"),
        ("RECV_WINDOW_MS", "999"),
        ("INTERVAL", "2"),
        ("BB_LENGTH", "1"),
        ("BB_LENGTH", "301"),
        ("BB_LENGTH", "7.5"),
        ("BB_MULT", "0"),
        ("BB_MULT", "nan"),
        ("BAND_PROXIMITY_PCT", "-0.1"),
        ("ENTRY_BUFFER_PCT", "5.1"),
        ("SIZE_USDT", "0"),
        ("SIZE_USDT", "NaN"),
        ("SIZE_USDT", "ten"),
        ("MAX_SLOTS", "501"),
        ("MAX_LOTS_PER_SYMBOL", "0"),
        ("STOP_LOSS_PCT", "50.1"),
        ("STOP_LOSS_PCT", "-1"),
        ("COOLDOWN_SECONDS", "86401"),
        ("COOLDOWN_SECONDS", "0.5"),
        ("DAILY_LOSS_PCT", "101"),
        ("DAILY_LOSS_PCT", "inf"),
        ("DRAWDOWN_PCT", "-0.1"),
        ("QUOTE_TTL_MS", "999"),
        ("SHARDS", "9"),
        ("WORKER_SLOT", "16"),
        ("LOG_LEVEL", "TRACE"),
        ("PAPER_PORT", "65536"),
        ("PAPER_FEED", "live-money"),
        ("PAPER_HOUR", "24"),
        ("PAPER_DATA", "no/such/file.npz"),
    ],
)
def test_a_wrong_value_is_one_line_with_the_name_and_the_value(complaints, name, value):
    (line,) = complaints({name: value})
    assert line.startswith(f"settings: {name}: ")
    assert line.endswith(f"got {value!r}")


def test_every_wrong_value_has_its_own_line(complaints):
    lines = complaints({"SHARDS": "0", "BB_MULT": "x", "MAX_SLOTS": "-1"})
    assert sorted(line.split(":")[1].strip() for line in lines) == [
        "BB_MULT",
        "MAX_SLOTS",
        "SHARDS",
    ]


@pytest.mark.parametrize(
    "name",
    [
        *("BYBIT_APIKEY", "PAPER_SPED", "BB_LEN", "QUOTE_TTL", "DCA_STEP"),
        *("DAILY_LOSS", "DRAWDOWN_PC", "STOP_LOSS", "COOLDOWN_S"),
    ],
)
def test_an_unknown_name_of_our_families_in_the_environment_is_refused(complaints, name):
    assert complaints({name: "1"}) == [f"settings: {name}: no such setting (environment)"]


def test_other_names_in_the_environment_are_not_ours(monkeypatch):
    monkeypatch.setenv("EDITOR", "vi")
    monkeypatch.setenv("SIZE", "1")
    assert load() == Settings(_env_file=None)


def test_an_unknown_name_in_the_file_is_refused_without_its_value(complaints):
    lines = complaints({}, "SIZE_USD=25\nBYBIT_API_SECRT=hush-hush\n")
    assert sorted(lines) == [
        "settings: BYBIT_API_SECRT: no such setting (.env)",
        "settings: SIZE_USD: no such setting (.env)",
    ]


def test_a_line_of_the_file_that_sets_nothing_is_named_once(complaints):
    lines = complaints({}, "SHARDS=2\nMAX_SLOTS\nno setting\n")
    assert lines == [
        "settings: 'MAX_SLOTS', line 2: not NAME=value (.env)",
        "settings: 'no setting', line 3: not NAME=value (.env)",
    ]


def test_a_line_that_dotenv_cannot_read_is_not_told_by_dotenv_too(complaints, caplog):
    complaints({}, "no setting\n")
    assert not caplog.records


def test_a_file_that_is_no_text_is_one_line(capsys):
    Path(".env").write_bytes(b"SHARDS=2\n# \xff\n")
    with pytest.raises(SystemExit):
        load()
    assert capsys.readouterr().err == "settings: .env: not UTF-8, byte 12\n"
    Path(".env").unlink()
    Path(".env").mkdir()
    with pytest.raises(SystemExit):
        load()
    assert capsys.readouterr().err == "settings: .env: Is a directory\n"


@pytest.mark.parametrize(
    ("env", "named"),
    [
        ({"BAND_EXIT_PCT": "0.4"}, "BAND_EXIT_PCT"),  # below BAND_OVERSHOOT_PCT = 0.5
        ({"BAND_PROXIMITY_PCT": "0.6"}, "BAND_EXIT_PCT"),  # above BAND_EXIT_PCT = 0.5
        ({"PAPER_FEED": "replay"}, "PAPER_DATA"),
        ({"PAPER_FEED": "live", "PAPER_SPEED": "2"}, "PAPER_SPEED"),
        ({"INTERVAL": "5"}, "INTERVAL"),
        ({"PAPER_PORT": "8800"}, "DASHBOARD_PORT"),
        ({"BUS_TCP": "quotes=tcp://10.0.0.5:7001"}, "BUS_KEYS"),
        ({"BUS_TCP": "quotes=tcp://0.0.0.0:7001", "BUS_KEYS": "no/folder"}, "BUS_KEYS"),
    ],
)
def test_settings_that_do_not_go_together_are_one_line_with_a_name(complaints, env, named):
    (line,) = complaints(env)
    assert line.startswith(f"settings: {named}")


@pytest.mark.parametrize("env", ["mainnet", "testnet", "demo"])
@pytest.mark.parametrize("missing", ["BYBIT_API_KEY", "BYBIT_API_SECRET"])
def test_without_both_keys_only_paper_starts(complaints, env, missing):
    keys = {name: value for name, value in KEYS.items() if name != missing}
    (line,) = complaints({"BYBIT_ENV": env, "CONFIRM_LIVE": "yes", **keys})
    assert missing in line
    assert "hush-hush" not in line


def test_real_money_needs_a_yes(complaints, monkeypatch):
    (line,) = complaints({"BYBIT_ENV": "mainnet", **KEYS})
    assert line.startswith("settings: CONFIRM_LIVE: ")
    monkeypatch.setenv("CONFIRM_LIVE", "yes")
    assert load().BYBIT_ENV == "mainnet"


@pytest.mark.parametrize("host", sorted(LIVE_HOSTS))
@pytest.mark.parametrize("env", ["testnet", "demo"])
def test_an_address_of_real_money_needs_a_yes_whatever_the_environment_is_called(
    complaints, monkeypatch, env, host
):
    name, scheme = ("BYBIT_REST_URL", "https") if "api" in host else ("BYBIT_STREAM_URL", "wss")
    (line,) = complaints({"BYBIT_ENV": env, name: f"{scheme}://{host}", **KEYS})
    assert line.startswith("settings: CONFIRM_LIVE: ")
    monkeypatch.setenv("CONFIRM_LIVE", "yes")
    assert env == load().BYBIT_ENV


def test_paper_may_look_at_the_prices_of_the_real_market(monkeypatch):
    """They are public: no key goes there, and no order."""
    monkeypatch.setenv("PAPER_FEED", "live")
    assert load().PAPER_LIVE_REST == "https://api.bybit.com"


@pytest.mark.parametrize("env", ["testnet", "demo"])
def test_no_money_needs_no_yes(monkeypatch, env):
    for name, value in {"BYBIT_ENV": env, **KEYS}.items():
        monkeypatch.setenv(name, value)
    assert (load().api_key, load().api_secret) == ("a-key", "hush-hush")


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("BYBIT_REST_URL", "http://192.0.2.1:8801"),
        ("BYBIT_REST_URL", "https://exchange.example"),
        ("BYBIT_STREAM_URL", "wss://exchange.example"),
        ("BYBIT_STREAM_URL", "ws://127.0.0.1@exchange.example"),
        ("BYBIT_STREAM_URL", "ws://127.0.0.1.exchange.example"),
        ("BYBIT_REST_URL", "//exchange.example"),
        ("BYBIT_REST_URL", "exchange.example"),  # no scheme: nothing can be reached by it
        ("BYBIT_STREAM_URL", "192.0.2.1:8801"),
        ("BYBIT_REST_URL", "http://[::1"),
        ("BYBIT_REST_URL", "https://api.bybit.com"),
    ],
)
def test_paper_takes_no_address_beyond_loopback(complaints, name, address):
    (line,) = complaints({name: address})
    assert name in line


@pytest.mark.parametrize("host", ["127.0.0.1:9000", "localhost:9000", "[::1]:9000"])
def test_paper_takes_an_address_on_loopback(monkeypatch, host):
    monkeypatch.setenv("BYBIT_REST_URL", f"http://{host}")
    monkeypatch.setenv("BYBIT_STREAM_URL", f"ws://{host}")
    assert host in load().BYBIT_REST_URL


def test_a_secret_is_never_shown():
    settings = Settings(_env_file=None, BYBIT_ENV="demo", **KEYS)
    assert settings.api_secret == "hush-hush"
    for shown in (repr(settings), str(settings), settings.model_dump_json(), f"{settings!r}"):
        assert "hush-hush" not in shown


def test_a_secret_is_not_shown_by_an_error_either():
    with pytest.raises(ValidationError) as error:
        Settings(_env_file=None, BYBIT_ENV="demo", BYBIT_API_SECRET="hush-hush")
    assert "hush-hush" not in str(error.value)


def test_the_secret_of_paper_is_not_used_elsewhere():
    assert Settings(_env_file=None).api_secret == PAPER_SECRET
    with pytest.raises(ValidationError, match="BYBIT_API_KEY"):
        Settings(_env_file=None, BYBIT_ENV="demo")


def test_settings_do_not_change_while_running():
    with pytest.raises(ValidationError):
        load().SHARDS = 3


def test_a_worker_finds_its_shard_by_its_slot(tmp_path):
    settings = Settings(_env_file=None, RUN_DIR=tmp_path, SHARDS=2, WORKER_SLOT=1)
    assert settings.worker_shard == (1, 2)  # nothing is written: the slot is the index
    (tmp_path / SHARDS_FILE).write_text('{"1": [0, 4], "2": [1, 4]}')  # after `make scale N=4`
    assert settings.worker_shard == (0, 4)


@pytest.mark.parametrize(
    ("value", "names"),
    [("", ()), ("BTCUSDT", ("BTCUSDT",)), ("BTCUSDT, ETHUSDT", ("BTCUSDT", "ETHUSDT"))],
)
def test_a_comma_separated_setting_is_a_tuple(value, names):
    assert Settings(_env_file=None, SYMBOLS=value).names("SYMBOLS") == names


def test_a_bar_is_as_long_as_its_interval():
    assert Settings(_env_file=None).interval_ms == 60_000
    demo = Settings(_env_file=None, BYBIT_ENV="demo", INTERVAL="15", **KEYS)
    assert demo.interval_ms == 15 * 60_000


def test_every_stream_may_have_an_address():
    assert set(STREAMS) == BUS_STREAMS


def test_tcp_on_this_machine_needs_no_keys(monkeypatch):
    monkeypatch.setenv("BUS_TCP", "market=tcp://127.0.0.1:7001")
    assert load().wires == {"tcp": {"market": "tcp://127.0.0.1:7001"}, "keys": None}


@pytest.mark.parametrize(
    "value",
    [
        "markets=tcp://127.0.0.1:7001",
        "market=tcp://127.0.0.1",
        "market=tcp://127.0.0.1:70000",
        "market=ipc://run/market",
        "tcp://127.0.0.1:7001",
    ],
)
def test_what_is_no_stream_or_no_address_is_named(complaints, value):
    (line,) = complaints({"BUS_TCP": value})
    assert line.startswith("settings: BUS_TCP")


def test_who_stops_a_running_bot_goes_by_the_settings_it_was_started_with(
    monkeypatch, tmp_path, complaints
):
    started = Settings(_env_file=None, RUN_DIR=tmp_path, SIZE_USDT=77)
    (tmp_path / "started.json").write_text(started.model_dump_json())
    monkeypatch.chdir(tmp_path)
    Path(".env").write_text(f"RUN_DIR={tmp_path}\nMAX_SLOTS=9999\nSIZE_USD=10\n")
    monkeypatch.delenv("RUN_DIR", raising=False)
    assert running() == started
    monkeypatch.setenv("RUN_DIR", str(tmp_path))
    Path(".env").write_bytes(b"SIZE_USDT=\xff")
    assert running() == started
    (tmp_path / "started.json").unlink()
    with pytest.raises(SystemExit):
        running()


def test_what_supervisord_starts_goes_by_the_settings_of_the_start(monkeypatch, tmp_path):
    given = {"BYBIT_API_KEY": "k", "BYBIT_API_SECRET": "s", "NOTIFY_URLS": "json://localhost?a=%41"}
    started = Settings(_env_file=None, RUN_DIR=tmp_path, SIZE_USDT=77, SYMBOLS="AAAUSDT", **given)
    monkeypatch.chdir(tmp_path)
    Path(".env").write_text("SIZE_USDT=10\nMAX_SLOTS=ten\nSIZE_USD=10\n")
    for name, value in started.environment().items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        load()
    monkeypatch.setenv(SUPERVISED, "yes")
    assert load() == started
    monkeypatch.setenv("WORKER_SLOT", "3")
    assert load() == started.model_copy(update={"WORKER_SLOT": 3})


def test_a_file_that_has_gone_since_the_start_is_one_line_and_stops_nobody_from_stopping(
    monkeypatch, tmp_path, complaints
):
    (data := tmp_path / "klines").mkdir()
    started = Settings(_env_file=None, RUN_DIR=tmp_path, PAPER_DATA=str(data), SIZE_USDT=77)
    (tmp_path / "started.json").write_text(started.model_dump_json())
    data.rmdir()
    monkeypatch.setenv("RUN_DIR", str(tmp_path))
    assert running() == started.model_copy(update={"PAPER_DATA": ""})
    (line,) = complaints({SUPERVISED: "yes", **started.environment()})
    assert line.startswith("settings: PAPER_DATA: no such file")


def test_what_differs_from_the_bot_that_was_started_is_named(tmp_path):
    started = Settings(_env_file=None, RUN_DIR=tmp_path, **KEYS)
    (tmp_path / "started.json").write_text(json.dumps(public(started)))
    assert changed(started) == []
    other = {"BYBIT_API_KEY": "a-key", "BYBIT_API_SECRET": "another"}
    now = Settings(_env_file=None, RUN_DIR=tmp_path, SIZE_USDT=77, **other)
    assert changed(now) == ["SIZE_USDT", "BYBIT_API_SECRET"]
