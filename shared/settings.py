"""settings: every number an owner may change, validated before anything starts.

Names, units and ranges are documented in `.env.example`; the environment wins over `.env`.
"""

import contextlib
import hashlib
import io
import json
import logging
import os
import re
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn, TypeVar
from urllib.parse import urlsplit

from dotenv import dotenv_values
from dotenv.parser import parse_stream
from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

VERSION = "0.1.0"
PAPER_KEY, PAPER_SECRET = "paper-key", "paper-secret"
WRONG_SETTING_EXIT = 2  # supervisord does not restart what ends with this
STARTED_FILE = "started.json"  # the settings of what runs
SUPERVISED = "DEVIATION_MAGNET_SUPERVISED"  # in the environment of what supervisord starts
SHARDS_FILE = "shards.json"  # {slot: [index, shards]}, written by `make up` and `make scale`
DASHBOARD_FILE = "dashboard.json"  # its addresses with their tokens, for the owner
LOOPBACK = {"127.0.0.1", "localhost", "::1"}
LIVE_HOSTS = {"api.bybit.com", "stream.bybit.com", "api.bytick.com", "stream.bytick.com"}
FAMILIES = re.compile(
    "(BAND|BB|BUS|BYBIT|COOLDOWN|DAILY|DASHBOARD|DCA|DRAWDOWN|NOTIFY|PAPER|QUOTE)_|STOP_LOSS"
)
"""How the names of ours begin in which a typo is an error."""
Part = TypeVar("Part", bound=NamedTuple)
logging.getLogger("dotenv.main").setLevel(logging.ERROR)  # what it cannot read, `load` names


class WrongSetting(Exception):
    """The configuration cannot work, as the exchange or a file shows: one line, exit code 2."""


BUS_STREAMS = {"market", "quotes", "commands", "account", "history", "instruments", "ledger"}


class Settings(BaseSettings):
    """One flat table. Unknown names in `.env`, and unknown names of our families, are refused."""

    model_config = SettingsConfigDict(
        env_file=".env",
        extra="forbid",
        case_sensitive=True,
        frozen=True,
        env_ignore_empty=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,  # the input may be a secret
    )

    BYBIT_ENV: Literal["paper", "demo", "testnet", "mainnet"] = "paper"
    BYBIT_API_KEY: str = ""
    BYBIT_API_SECRET: SecretStr = SecretStr("")
    BYBIT_REST_URL: str = ""
    BYBIT_STREAM_URL: str = ""
    CONFIRM_LIVE: Literal["yes", "no"] = "no"
    RECV_WINDOW_MS: int = Field(2_000, ge=1_000, le=60_000)

    SYMBOLS: str = ""
    EXCLUDE_SYMBOLS: str = ""
    SYMBOL_TYPES: str = ",innovation"
    INTERVAL: Literal["1", "3", "5", "15", "30", "60"] = "1"

    BB_LENGTH: int = Field(7, ge=2, le=300)
    BB_MULT: float = Field(3.0, gt=0, le=20)
    BB_DEV_MULT: float = Field(1.5, gt=0, le=20)
    BAND_PROXIMITY_PCT: float = Field(0.3, ge=0, le=10)
    BAND_OVERSHOOT_PCT: float = Field(0.5, ge=0, le=10)
    BAND_EXIT_PCT: float = Field(0.5, ge=0, le=10)
    MIN_VOLATILITY_PCT: float = Field(0.20, ge=0, le=100)
    BASE_FEE_PCT: float = Field(0.275, ge=0, le=10)
    ENTRY_BUFFER_PCT: float = Field(0.05, ge=-5, le=5)

    SIZE_USDT: Decimal = Field(Decimal(10), gt=0, le=100_000)
    MAX_SLOTS: int = Field(100, ge=1, le=500)
    MAX_SYMBOLS: int = Field(50, ge=1, le=500)
    MAX_LOTS_PER_SYMBOL: int = Field(10, ge=1, le=100)
    DCA_MIN_STEP_PCT: float = Field(0.2, ge=0, le=100)
    MIN_REPRICE_PCT: float = Field(0.02, ge=0, le=10)
    STOP_LOSS_PCT: float = Field(0.0, ge=0, le=50)
    COOLDOWN_SECONDS: int = Field(0, ge=0, le=86_400)
    DAILY_LOSS_PCT: float = Field(3.0, ge=0, le=100)
    DRAWDOWN_PCT: float = Field(8.0, ge=0, le=100)
    RATE_LIMIT: int = Field(10, ge=1, le=100_000)
    QUOTE_TTL_MS: int = Field(5_000, ge=1_000, le=600_000)
    RECONCILE_SECONDS: int = Field(8, ge=2, le=20)

    RUN_DIR: Path = Path("run")
    BUS_TCP: str = ""
    BUS_KEYS: Path | None = None
    SHARDS: int = Field(2, ge=1, le=8)
    WORKER_SLOT: int = Field(0, ge=0, le=15)
    LOG_LEVEL: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    LOG_FORMAT: Literal["text", "json"] = "text"
    DIE_WITH_PARENT: bool = False

    DASHBOARD_PORT: int = Field(8800, ge=0, le=65_535)
    NOTIFY_URLS: SecretStr = SecretStr("")
    NOTIFY_DIGEST_MINUTES: int = Field(15, ge=1, le=1_440)
    NOTIFY_DAILY_HOUR: int = Field(0, ge=0, le=23)

    PAPER_PORT: int = Field(8801, ge=1, le=65_535)
    PAPER_FEED: Literal["synthetic", "replay", "live"] = "synthetic"
    PAPER_DATA: str = ""
    PAPER_START: str = ""
    PAPER_HOURS: float = Field(0, ge=0)
    PAPER_SPEED: float = Field(1.0, gt=0, le=10_000)
    PAPER_SEED: int = Field(105, ge=0)
    PAPER_HOUR: float = Field(14.0, ge=0, lt=24)
    PAPER_SYMBOLS: int = Field(500, ge=1, le=2_000)
    PAPER_TICKS: int = Field(1, ge=1, le=200)
    PAPER_BOOK: Literal["full", "bare"] = "full"
    PAPER_BALANCE_USDT: Decimal = Field(Decimal(1_000), gt=0)
    PAPER_ACK_MS: float = Field(1.0, ge=0, le=60_000)
    PAPER_RATE_LIMIT: int = Field(10, ge=1, le=100_000)
    PAPER_IP_LIMIT: int = Field(600, ge=1, le=10_000_000)
    PAPER_STATE: str = ""
    PAPER_LIVE_REST: str = "https://api.bybit.com"
    PAPER_LIVE_STREAM: str = "wss://stream.bybit.com"

    @field_validator("PAPER_DATA")
    @classmethod
    def _data_exists(cls, value: str) -> str:
        if value and not Path(value).exists():
            raise ValueError("no such file or folder")
        return value

    @field_validator("BYBIT_REST_URL", "BYBIT_STREAM_URL", "PAPER_LIVE_REST", "PAPER_LIVE_STREAM")
    @classmethod
    def _is_address(cls, value: str) -> str:
        at = urlsplit(value)  # raises ValueError where it is none
        if value and not (at.scheme in ("http", "https", "ws", "wss") and at.hostname):
            raise ValueError("not a base address: scheme://host[:port]")
        return value

    @field_validator("BUS_TCP")
    @classmethod
    def _is_tcp(cls, value: str) -> str:
        for stream, address in _pairs(value).items():
            at = urlsplit(address)
            if stream not in BUS_STREAMS or not (at.scheme == "tcp" and at.hostname and at.port):
                raise ValueError(f"not stream=tcp://host:port: {stream}={address}")
        return value

    @model_validator(mode="after")
    def _complete(self) -> "Settings":
        if self.BYBIT_ENV != "paper" and not (self.BYBIT_API_KEY and self.api_secret):
            raise ValueError(
                f"BYBIT_API_KEY, BYBIT_API_SECRET: needed with BYBIT_ENV={self.BYBIT_ENV}"
            )
        hosts = {urlsplit(url).hostname for url in (self.BYBIT_REST_URL, self.BYBIT_STREAM_URL)}
        if self.BYBIT_ENV == "paper" and not hosts <= {None, *LOOPBACK}:
            raise ValueError("BYBIT_REST_URL, BYBIT_STREAM_URL: BYBIT_ENV=paper stays on loopback")
        live = self.BYBIT_ENV == "mainnet" or hosts & LIVE_HOSTS
        if live and self.CONFIRM_LIVE != "yes":
            raise ValueError("CONFIRM_LIVE: must be yes to trade real money on mainnet")
        away = {urlsplit(address).hostname for address in _pairs(self.BUS_TCP).values()} - LOOPBACK
        if away and not (self.BUS_KEYS and self.BUS_KEYS.is_dir()):
            raise ValueError("BUS_KEYS: tcp beyond this machine needs keys: make bus-keys")
        if max(self.BAND_PROXIMITY_PCT, self.BAND_OVERSHOOT_PCT) > self.BAND_EXIT_PCT:
            raise ValueError(
                "BAND_EXIT_PCT: must not be below BAND_PROXIMITY_PCT, BAND_OVERSHOOT_PCT"
            )
        return self

    @model_validator(mode="after")
    def _paper_can(self) -> "Settings":
        if self.BYBIT_ENV == "paper" and self.PAPER_PORT == self.DASHBOARD_PORT:
            raise ValueError(f"DASHBOARD_PORT: {self.PAPER_PORT} is PAPER_PORT, too")
        if self.BYBIT_ENV == "paper" and self.INTERVAL != "1":
            raise ValueError(
                f"INTERVAL: the paper exchange has 1-minute klines, got {self.INTERVAL}"
            )
        if self.PAPER_FEED == "live" and self.PAPER_SPEED != 1:
            raise ValueError("PAPER_SPEED: the live market runs at speed 1")
        if self.PAPER_FEED == "replay" and not self.PAPER_DATA:
            raise ValueError(
                "PAPER_DATA: a file or folder of klines is needed by PAPER_FEED=replay"
            )
        return self

    @property
    def api_key(self) -> str:
        """The key that signs; the paper exchange has a fixed one."""
        return self.BYBIT_API_KEY or (PAPER_KEY if self.BYBIT_ENV == "paper" else "")

    @property
    def api_secret(self) -> str:
        """The secret that signs. Read only by shared/bybit."""
        secret = self.BYBIT_API_SECRET.get_secret_value()
        return secret or (PAPER_SECRET if self.BYBIT_ENV == "paper" else "")

    @property
    def wires(self) -> dict[str, Any]:
        """How the bus goes, for those streams that leave RUN_DIR."""
        return {"tcp": _pairs(self.BUS_TCP), "keys": self.BUS_KEYS}

    @property
    def interval_ms(self) -> int:
        """Length of a bar in ms."""
        return int(self.INTERVAL) * 60_000

    @property
    def worker_shard(self) -> tuple[int, int]:
        """(index, shards) of this slot: it owns the symbols with crc32 % shards == index."""
        file = self.RUN_DIR / SHARDS_FILE
        slots = json.loads(file.read_text()) if file.exists() else {}
        index, shards = slots.get(str(self.WORKER_SLOT), (self.WORKER_SLOT, self.SHARDS))
        return index, shards

    @property
    def paper_state(self) -> Path:
        """Where the paper account lives."""
        return Path(self.PAPER_STATE) if self.PAPER_STATE else self.RUN_DIR / "paper.jsonl"

    def environment(self) -> dict[str, str]:
        """Every setting as `load` reads it in a process that supervisord starts; secrets, too."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        plain = {k: v.get_secret_value() for k, v in values.items() if isinstance(v, SecretStr)}
        return {name: "" if v is None else str(v) for name, v in (values | plain).items()}

    def names(self, field: str) -> tuple[str, ...]:
        """A comma-separated setting as a tuple; an empty setting is an empty tuple."""
        value: str = getattr(self, field)
        return tuple(name.strip() for name in value.split(",")) if value else ()

    def part(self, cls: type[Part]) -> Part:
        """The parameters of a core: each field of `cls` from the setting of the same name."""
        return cls(*(getattr(self, name.upper()) for name in cls._fields))


def _pairs(value: str) -> dict[str, str]:
    """`market=tcp://host:1, quotes=tcp://host:2` as a dict."""
    parts = (part.strip().partition("=") for part in value.split(",") if part.strip())
    return {name: address for name, _, address in parts}


def ledger_account(settings: Settings) -> str:
    """Whose ledger it is: the environment and a fingerprint of the key."""
    key = hashlib.sha256(settings.api_key.encode()).hexdigest()[:8]
    return f"{settings.BYBIT_ENV}-{key}"


def place(settings: Settings) -> str:
    """Where the account is: every paper exchange on this machine has its own port."""
    return str(settings.PAPER_PORT) if settings.BYBIT_ENV == "paper" else "bybit"


def public(settings: Settings) -> dict[str, Any]:
    """Every setting that a running pipeline was started with; secrets as their hash."""
    secrets = {"BYBIT_API_SECRET": settings.api_secret}
    secrets["NOTIFY_URLS"] = settings.NOTIFY_URLS.get_secret_value()
    values = json.loads(settings.model_dump_json(exclude=set(secrets)))
    hashed = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in secrets.items()}
    return {**values, **hashed}


def changed(settings: Settings) -> list[str]:
    """Names of the settings that differ from those of the bot that was started in RUN_DIR."""
    file = settings.RUN_DIR / STARTED_FILE
    if not file.exists():
        return []
    started = json.loads(file.read_text())
    return [name for name, value in public(settings).items() if started.get(name) != value]


def running() -> Settings:
    """The settings of the bot that runs in RUN_DIR, whatever has become of `.env` since: who wants
    to stop it must be able to. Those of `load` if none was ever started there."""
    folder = os.environ.get("RUN_DIR")
    with contextlib.suppress(UnicodeDecodeError, OSError):
        folder = folder or dotenv_values(".env").get("RUN_DIR")
    file = Path(folder or "run") / STARTED_FILE
    if not file.exists():
        return load()
    started = json.loads(file.read_text())
    try:
        return Settings(_env_file=None, **started)
    except ValidationError as error:  # a file that it names is gone by now
        gone = {item["loc"][0] for item in error.errors() if item["loc"]}
        return Settings(_env_file=None, **{k: v for k, v in started.items() if k not in gone})


def load(**overrides: Any) -> Settings:
    """The settings, or one line for each wrong one on stderr and exit code 2.

    What supervisord starts goes by its environment alone, which `make up` has filled: a `.env` that
    was edited since counts at the next start, for all of them.
    """
    if SUPERVISED in os.environ:
        wrong, overrides = [], overrides | {"_env_file": None}
    else:
        wrong = [*_wrong_names(), *_wrong_lines(Path(".env"))]
    try:
        settings = Settings(**overrides)
    except ValidationError as error:
        wrong += [_line(item) for item in error.errors()]
    if wrong:
        _refuse(wrong)
    return settings


def _wrong_names() -> list[str]:
    """What in the environment looks like a setting, and is none."""
    return [
        f"{name}: no such setting (environment)"
        for name in sorted(os.environ)
        if FAMILIES.match(name) and name not in Settings.model_fields
    ]


def _wrong_lines(file: Path) -> list[str]:
    """What in it is not NAME=value. Ends like `load` where it cannot be read."""
    try:
        text = file.read_text("utf-8")
    except FileNotFoundError:
        return []
    except UnicodeDecodeError as error:
        _refuse([f"{file}: not UTF-8, byte {error.start + 1}"])
    except OSError as error:
        _refuse([f"{file}: {error.strerror}"])
    rows = parse_stream(io.StringIO(text))
    lines = [row.original for row in rows if row.error or (row.key and row.value is None)]
    return [f"{row.string.strip()!r}, line {row.line}: not NAME=value ({file})" for row in lines]


def _refuse(wrong: list[str]) -> NoReturn:
    print("\n".join(f"settings: {item}" for item in wrong), file=sys.stderr)
    sys.exit(WRONG_SETTING_EXIT)


def _line(error: Any) -> str:
    name = str(error["loc"][0]) if error["loc"] else ""
    if error["type"] == "extra_forbidden":
        return f"{name}: no such setting (.env)"
    message = error["msg"].removeprefix("Value error, ")
    got = "" if "SECRET" in name or not name else f", got {error['input']!r}"
    return f"{name}: {message}{got}" if name else message
