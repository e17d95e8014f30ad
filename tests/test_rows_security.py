# ruff: noqa: N802 - rows keep their capital letter
"""Security, configuration, people: rows J1 to J10 of the fault catalogue.

One pipeline of real processes runs with a secret that appears nowhere else, is disturbed, struck
by signals, listened to and looked at by another user. The tests then look at what was collected.
"""

import base64
import configparser
import contextlib
import itertools
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import quote as url_quote

import msgpack
import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from services.doctor.doctor import FAIL, OK, WARN, Doctor
from services.keeper.store import Store
from services.paper.api import Api
from shared import actor
from shared import messages as msg
from shared.bus import SILENT_NS, STREAMS, Bus, endpoint, endpoints, make_keys
from shared.settings import PAPER_SECRET, Settings, WrongSetting
from tests.pipeline import Pipeline, wait_for
from tests.stage import A, B, C, Theatre
from tests.test_bus import bus, heard, join, kline, raw_socket, run_dir, tcp, until

__all__ = ("bus", "run_dir", "tcp")  # fixtures

NOT_APPLICABLE = {
    "J4 DASH": "there is no dashboard yet: nothing of the bot listens on http",
    "J7": "nothing is loaded again while it runs: changed settings take effect at the next start, "
    "and `make up` refuses to go on with others than those that run",
    "J8 build id": "DESIGN section 4: one version byte in every frame; fields are only appended, "
    "so two builds of one version understand each other",
    "J9": "the ledger's own rows (F), the processes' (D) and the stream's (B) are its tests",
}
ROOT = Path(__file__).parents[1]
CANARY = "Canary5ecretThatIsNowhereElse"
NOBODY = 65_534
KEYS = {"BYBIT_API_KEY": "key-of-the-canary", "BYBIT_API_SECRET": CANARY}
MOVES_FUNDS = (["Withdraw"], ["AccountTransfer"], ["SubMemberTransfer"], ["AccountTransfer", "x"])
BOMB_MB = 400  # that a process may take for any one frame, itself included
EXAMPLES = {
    "derandomize": True,
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}


def forms(secret):
    """The bytes of a secret as they could have been written."""
    raw = secret.encode()
    texts = {raw, raw[::-1], raw.hex().encode(), url_quote(secret).encode()}
    for lead in range(3):  # whatever stands before it in base64
        texts.add(base64.b64encode(bytes(lead) + raw)[4:-4])
    return texts


def holds(data):
    return [form for form in forms(CANARY) if form in data]


# The pipeline whose secret is looked for.


class Watched:
    """A pipeline with a canary, and all that was seen of it."""

    def __init__(self):
        lively = {"BB_MULT": 0.5, "MIN_VOLATILITY_PCT": 0, "ENTRY_BUFFER_PCT": 0}
        lively |= {"PAPER_SYMBOLS": 20, "PAPER_SPEED": 10, "PAPER_BOOK": "bare"}
        self.p = Pipeline(**KEYS, **lively, SHARDS=1, LOG_LEVEL="DEBUG", RECONCILE_SECONDS=2)
        self.home, self.outputs, self.frames, self.lines = self.p.run_dir, {}, [], {}
        self.p.run_dir = self.home / "r"  # made by `up`
        self.p.env["RUN_DIR"] = str(self.p.run_dir)
        self._context = zmq.Context()

    def run(self, *words):
        done = self.p.ops(*words)
        self.outputs[" ".join(words)] = done.stdout + done.stderr
        return done.returncode

    def tool(self, *words):
        done = subprocess.run(
            [sys.executable, "-m", *words],
            cwd=ROOT, env=self.p.env, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        self.outputs[" ".join(words)] = done.stdout + done.stderr
        return done.returncode

    def pids(self):
        supervised = (self.p.run_dir / "supervisord.pid").read_text().strip()
        rows = {row["name"]: row["pid"] for row in self.processes() if row["pid"]}
        return rows | {"supervisord": int(supervised)}

    def processes(self):
        from services.ops.ops import Supervisor  # noqa: PLC0415 - what `status` asks

        return Supervisor(self.p.run_dir).processes()

    def listen(self):
        """Every frame of every stream from here on, as it is on the wire."""
        self._sub = self._context.socket(zmq.SUB)
        self._sub.set_hwm(0)
        self._sub.subscribe(b"")
        for stream in STREAMS.values():
            if stream.pattern == "PUB":
                for address in endpoints(self.p.run_dir, stream.name):
                    self._sub.connect(address)

    def take(self):
        with contextlib.suppress(zmq.Again):
            while True:
                self.frames.append(b" ".join(self._sub.recv_multipart(zmq.NOBLOCK)))
        return len(self.frames)

    def look(self):
        for name, pid in self.pids().items():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                self.lines[name, pid] = Path(f"/proc/{pid}/cmdline").read_bytes()

    def strike(self, name, number):
        """A signal that a bug would bring; then supervisord has begun it again."""
        pid = self.pids()[name]
        os.kill(pid, number)
        wait_for(lambda: self.pids().get(name, pid) != pid, 20)
        self.look()

    def close(self):
        self._context.destroy(linger=0)
        self.p.close()
        shutil.rmtree(self.home, ignore_errors=True)


@contextlib.contextmanager
def careless():
    """As the worst of users would start it: files for everybody, and core dumps."""
    mask = os.umask(0)
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
    try:
        yield
    finally:
        os.umask(mask)
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))


@pytest.fixture(scope="module")
def watched():
    w = Watched()
    cores = set(ROOT.glob("core*"))
    try:
        with careless():
            assert w.run("up") == 0, w.outputs
        w.listen()
        with w.p.recorded() as tapped:
            _live(w)
            w.tapped = len(tapped())
        w.take()
        w.cores = set(ROOT.glob("core*")) - cores
        w.files = {f: f.read_bytes() for f in w.home.rglob("*") if f.is_file()}
        yield w
    finally:
        for core in set(ROOT.glob("core*")) - cores:
            core.unlink()
        w.close()


def _live(w):
    """Trade, err, be struck, be looked at."""
    p = w.p
    wait_for(lambda: w.take() and any(b"Execution" in frame for frame in w.frames), 40)
    w.look()
    w.limits = {name: _limit(pid) for name, pid in w.pids().items()}
    w.environs = {name: Path(f"/proc/{pid}/environ").read_bytes() for name, pid in w.pids().items()}
    w.listeners = {name: _listeners(pid) for name, pid in w.pids().items()}
    w.modes = {f: f.lstat().st_mode for f in (p.run_dir, *p.run_dir.rglob("*"))}
    w.stranger = _strangers(w)
    faults = [
        ("http", "ret", {"path": "/v5/order", "code": 10004, "text": "error sign!", "times": 2}),
        ("http", "ret", {"path": "/v5/order", "code": 10003, "text": "API key", "times": 2}),
        ("http", "garbage", {"path": "/v5/", "times": 3}),
        ("http", "status", {"path": "/v5/", "status": 502, "times": 3}),
        ("ws", "garbage", {"kind": "private", "times": 3}),
        *(("ws", "close", {"kind": kind}) for kind in ("private", "trade", "public")),
        ("venue", "clock_offset", {"ms": 12_000, "for_s": 3}),  # logins are refused
    ]
    for where, action, terms in faults:
        p.control("POST", "/fault", {"where": where, "action": action, **terms})
    for _ in range(5):
        time.sleep(0.4)
        w.take()
    p.control("DELETE", "/fault")
    w.run("status", "--json")
    w.run("mode", "REDUCE_ONLY")
    w.tool("services.doctor", "--json")
    p.env |= {"SHARDS": "none", "BYBIT_ENV": "nowhere"}  # errors that show what was set
    w.run("up")
    p.env |= {"SHARDS": "1", "BYBIT_ENV": "paper", "RUN_DIR": str(p.run_dir / ("x" * 120))}
    w.tool("services.worker")  # a traceback: the path of its socket is too long
    p.env["RUN_DIR"] = str(p.run_dir)
    w.strike("router", signal.SIGABRT)
    w.strike("keeper", signal.SIGSEGV)
    wait_for(lambda: w.take() and all(r["statename"] == "RUNNING" for r in w.processes()), 20)


def _limit(pid):
    rows = Path(f"/proc/{pid}/limits").read_text().splitlines()
    return next(row.split()[4] for row in rows if row.startswith("Max core file size"))


def _listeners(pid):
    """Addresses on which a process listens by tcp."""
    inodes = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            inodes.add(str(fd.readlink()))
    found = []
    for table in ("tcp", "tcp6"):
        for row in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            cells = row.split()
            if cells[3] == "0A" and f"socket:[{cells[9]}]" in inodes:
                address, port = cells[1].split(":")
                found.append((address, int(port, 16)))
    return found


def _strangers(w):
    """What another user gets of our files: as they lie, and with every folder open."""
    if os.getuid():
        return None
    paths = [f for f in w.p.run_dir.rglob("*") if not f.is_dir() and f.name != "tap.jsonl"]
    folders = [w.home, w.p.run_dir, *(f for f in w.p.run_dir.rglob("*") if f.is_dir())]
    kept = {folder: folder.stat().st_mode & 0o777 for folder in folders}
    try:
        w.home.chmod(0o755)
        closed = as_nobody(paths)
        for folder in folders:
            folder.chmod(0o755)
        return closed, as_nobody(paths)
    finally:
        for folder, mode in kept.items():
            folder.chmod(mode)


def as_nobody(paths):
    """For each path whether a process of another uid may read it, or connect to it."""
    read, write = os.pipe()
    if not (pid := os.fork()):
        code = 1
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            os.write(write, json.dumps([_gets_at(path) for path in paths]).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read) as pipe:
        told = pipe.read()
    assert os.waitpid(pid, 0)[1] == 0
    return dict(zip(paths, json.loads(told), strict=True))


def _gets_at(path):
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(path))
        return "connected"
    with contextlib.suppress(OSError), path.open("rb"):
        return "read"
    return ""


# J1: a key that may do more than trade.


def key_with(rights, monkeypatch):
    """Every key of every exchange that begins from here on."""
    true = Api._key

    def key(self, params, now):
        row = true(self, params, now)
        return row | {"permissions": row["permissions"] | {"Wallet": rights}}

    monkeypatch.setattr(Api, "_key", key)


@pytest.mark.parametrize("rights", MOVES_FUNDS)
def test_J1_a_key_that_may_move_funds_is_refused_at_the_start(rights, monkeypatch):
    key_with(rights, monkeypatch)
    with pytest.raises(WrongSetting, match=f"may move funds: {rights[0]}"):
        Theatre()


def test_J1_a_key_is_asked_about_until_there_is_an_answer(monkeypatch, tmp_path):
    stage, path = Theatre(), "/v5/user/query-api"
    key_with(["Withdraw"], monkeypatch)
    routes = stage.venue.api.routes
    routes["GET", path] = routes["GET", path]._replace(answer=stage.venue.api._key)
    stage.fault("http", "drop_before", path=path, times=2)
    stage.restart("keeper", tmp_path / "state.db")  # its first question is lost
    with pytest.raises(WrongSetting, match="may move funds"):
        stage.run(25)


def test_J1_a_wrong_setting_ends_a_process_with_the_code_that_keeps_it_down(monkeypatch, tmp_path):
    class Refused(actor.Actor):
        service, says = "refused", "account"

        def start(self, now_ns):
            raise WrongSetting("BYBIT_API_KEY: may move funds: Withdraw")

    monkeypatch.setenv("RUN_DIR", str(tmp_path))
    monkeypatch.setattr(actor, "begin", lambda *_: None)
    with pytest.raises(SystemExit) as end:
        actor.run(Refused)
    conf = configparser.RawConfigParser()
    conf.read(ROOT / "supervisord.conf")
    programs = [name for name in conf.sections() if name.startswith("program:")]
    assert len(programs) == 8
    for name in programs:
        assert (conf[name]["autorestart"], int(conf[name]["exitcodes"])) == (
            "unexpected",
            end.value.code,
        )


@pytest.mark.parametrize(
    ("env", "permissions", "more", "states"),
    [
        ("paper", {}, {}, [OK]),
        ("demo", {}, {"ips": ["192.0.2.1"]}, [OK]),
        ("demo", {}, {}, [OK, WARN]),  # works from any address
        ("demo", {"Wallet": ["Withdraw"]}, {"ips": ["192.0.2.1"]}, [FAIL]),
        ("paper", {"Wallet": ["AccountTransfer"]}, {}, [FAIL]),
        ("paper", {"Wallet": ["SubMemberTransfer"]}, {"readOnly": 1}, [FAIL]),
        ("paper", {}, {"readOnly": 1}, [FAIL]),
        ("paper", {"ContractTrade": ["Order"]}, {}, [FAIL]),
        ("paper", {"ContractTrade": []}, {}, [FAIL]),
    ],
)
def test_J1_the_doctor_forbids_such_a_key_and_warns_of_one_for_any_address(
    env, permissions, more, states
):
    looks = Doctor(Settings(_env_file=None, BYBIT_ENV=env, **(KEYS if env != "paper" else {})))
    rights = {"ContractTrade": ["Order", "Position"], "Wallet": []} | permissions
    answer = {"result": {"permissions": rights, "readOnly": 0, "ips": ["*"]} | more}
    looks._try = lambda verb: (answer, "")
    found = list(looks._key())
    assert [one.state for one in found] == states
    assert all(one.mend for one in found if one.state != OK)


# J2: the secret.


@pytest.mark.xdist_group("processes")
def test_J2_the_canary_is_what_signs(watched):
    """Else its absence would prove nothing."""
    for name in ("keeper", "router", "paper"):
        assert f"BYBIT_API_SECRET={CANARY}".encode() in watched.environs[name]
    assert watched.p.rows("SELECT COUNT(*) FROM executions")[0][0] > 0
    assert json.loads(watched.outputs["status --json"])["running"]


@pytest.mark.xdist_group("processes")
def test_J2_no_file_of_the_run_holds_the_secret(watched):
    names = {file.name for file in watched.files}
    assert {"state.db", "paper.jsonl", "started.json", "tap.jsonl", "supervisord.log"} <= names
    assert {"keeper.log", "router.log", "paper.log", "watchdog.log", "worker-0.log"} <= names
    assert b"DEBUG" in b"".join(watched.files.values())
    found = {str(file): holds(data) for file, data in watched.files.items() if holds(data)}
    assert found == {}
    assert PAPER_SECRET.encode() not in b"".join(watched.files.values())


@pytest.mark.xdist_group("processes")
def test_J2_no_frame_of_any_stream_holds_the_secret(watched):
    frames = b"\n".join(watched.frames)
    for kind in (msg.Kline, msg.Quote, msg.OrderRequest, msg.Execution, msg.Wallet, msg.Health):
        assert kind.__name__.encode() in frames
    assert watched.tapped > 100
    assert holds(frames) == []


@pytest.mark.xdist_group("processes")
def test_J2_no_command_line_and_no_output_of_a_tool_holds_the_secret(watched):
    assert {"keeper", "router", "worker-0", "supervisord"} <= {name for name, _ in watched.lines}
    lines = b"\n".join(watched.lines.values())
    assert b"services.keeper" in lines
    said = "\n".join(watched.outputs.values())
    assert "Traceback" in watched.outputs["services.worker"]
    assert "SHARDS" in said
    assert "BYBIT_ENV" in said
    assert holds(lines + said.encode()) == []


@pytest.mark.xdist_group("processes")
def test_J2_a_process_that_is_struck_leaves_no_core_with_the_secret_in_it(watched):
    assert watched.cores == set()
    assert len(watched.limits) >= 7
    assert set(watched.limits.values()) == {"0"}


def test_J2_a_process_that_is_started_by_hand_leaves_no_core_either(run_dir):
    with careless():
        worker = process(run_dir=run_dir)
    try:
        wait_for((run_dir / "quotes-0").exists, 20)
        assert _limit(worker.pid) == "0"
        assert (run_dir / "quotes-0").stat().st_mode & 0o077 == 0
    finally:
        worker.kill()
        worker.communicate()


def test_J2_what_is_printed_of_the_settings_is_not_the_secret():
    shown = Settings(_env_file=None, BYBIT_ENV="demo", **KEYS)
    for text in (repr(shown), str(shown), shown.model_dump_json(), repr(shown.model_dump())):
        assert holds(text.encode()) == []
    for wrong in ({"SHARDS": "x"}, {"BYBIT_API_SECRET": [CANARY]}, {"BYBIT_API_KEY": ""}):
        with pytest.raises(ValidationError) as error:
            Settings(_env_file=None, **{"BYBIT_ENV": "demo", **KEYS, **wrong})
        assert holds(str(error.value).encode()) == []


def test_J2_the_doctor_warns_of_an_env_file_that_others_may_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(".env").write_text("BYBIT_API_SECRET=hush\n")
    Path(".env").chmod(0o644)
    keyed = Doctor(Settings(_env_file=".env", RUN_DIR=tmp_path))
    assert any(".env" in one.what + one.says + one.mend for one in keyed._folder())
    Path(".env").write_text("SHARDS=2\n")  # nothing in it is anybody's secret
    plain = Doctor(Settings(_env_file=".env", RUN_DIR=tmp_path))
    assert not any(".env" in one.says for one in plain._folder())


# J3: live with paper, paper with live.

LIVE, LOCAL, TEST = "https://api.bybit.com", "http://127.0.0.1:9", "https://api-testnet.bybit.com"


@pytest.mark.parametrize("env", ["paper", "demo", "testnet", "mainnet"])
def test_J3_every_mixture_of_environment_keys_address_and_yes(env):
    """Real money needs the environment or the address, the keys, and the yes; paper needs none of
    them and goes nowhere."""
    started = 0
    for url, keys, yes in itertools.product(("", LOCAL, TEST, LIVE), (False, True), ("yes", "no")):
        given = {"BYBIT_ENV": env, "BYBIT_REST_URL": url, "CONFIRM_LIVE": yes}
        given |= KEYS if keys else {}
        real = env == "mainnet" or url == LIVE
        fits = url in ("", LOCAL) if env == "paper" else keys and (yes == "yes" or not real)
        try:
            settings_ = Settings(_env_file=None, **given)
        except ValidationError:
            assert not fits, given
        else:
            assert fits, given
            started += 1
            assert settings_.api_secret == (CANARY if keys else PAPER_SECRET)
    assert started == {"paper": 8, "demo": 7, "testnet": 7, "mainnet": 4}[env]


@pytest.mark.parametrize("other", [{}, {"BYBIT_ENV": "testnet"}, {"BYBIT_API_KEY": "another"}])
def test_J3_a_ledger_of_another_environment_or_key_is_refused(other, tmp_path):
    from shared.settings import ledger_account  # noqa: PLC0415

    first = Settings(_env_file=None, **({"BYBIT_ENV": "demo", **KEYS} if other else {}))
    then = Settings(_env_file=None, **{"BYBIT_ENV": "demo", **KEYS, **other})
    Store(tmp_path / "state.db", ledger_account(first), "one").close()
    with pytest.raises(WrongSetting):
        Store(tmp_path / "state.db", ledger_account(then), "two")
    Store(tmp_path / "state.db", ledger_account(first), "three").close()


# J4: another user of this machine.


@pytest.mark.xdist_group("processes")
def test_J4_whatever_the_umask_nothing_of_ours_is_for_others(watched):
    modes = watched.modes
    assert modes[watched.p.run_dir] & 0o777 == 0o700
    assert len([f for f in modes if f.is_socket()]) >= 7
    open_ = {str(f): f"{m & 0o777:o}" for f, m in modes.items() if m & 0o077 and f.is_socket()}
    assert open_ == {}
    files = {f: m for f, m in modes.items() if not f.is_socket() and f.name != "tap.jsonl"}
    assert {f.name: f"{m & 0o777:o}" for f, m in files.items() if m & 0o077} == {}
    assert modes[watched.p.run_dir / "supervisor.sock"] & 0o777 == 0o700


@pytest.mark.xdist_group("processes")
def test_J4_another_user_reads_nothing_and_connects_to_nothing(watched):
    if watched.stranger is None:
        pytest.skip("only root can be somebody else")
    closed, open_folders = watched.stranger
    assert len(closed) > 15
    assert set(closed.values()) == {""}
    assert {str(path): got for path, got in open_folders.items() if got} == {}


def test_J4_somebody_else_can_be_tried_at_all(tmp_path):
    """The test above would see what is readable."""
    if os.getuid():
        pytest.skip("only root can be somebody else")
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        folder.chmod(0o755)
        (mine := folder / "mine").write_text("x")
        (theirs := folder / "theirs").write_text("x")
        mine.chmod(0o600)
        with socket.socket(socket.AF_UNIX) as door:
            door.bind(str(folder / "door"))
            door.listen()
            (folder / "door").chmod(0o777)
            found = as_nobody([mine, theirs, folder / "door"])
        assert list(found.values()) == ["", "read", "connected"]
    finally:
        shutil.rmtree(folder)


def test_J4_locks_in_a_folder_of_another_user_are_not_touched(tmp_path):
    """/tmp is for all: somebody may have made our folder there, with links in it."""
    if os.getuid():
        pytest.skip("only root can give a folder away")
    (mine := tmp_path / "mine").write_text("precious")
    (trap := tmp_path / "locks").mkdir(mode=0o755)
    (trap / "keeper-x.lock").symlink_to(mine)
    os.chown(trap, NOBODY, NOBODY)
    with pytest.raises(SystemExit):
        actor.hold_lock(trap, "keeper-x")
    assert mine.read_text() == "precious"


def test_J4_a_lock_that_is_a_link_is_not_followed(tmp_path):
    (mine := tmp_path / "mine").write_text("precious")
    (tmp_path / "keeper-0.lock").symlink_to(mine)
    with pytest.raises(OSError, match=r"keeper-0\.lock"):
        actor.hold_lock(tmp_path, "keeper-0")
    assert mine.read_text() == "precious"


def test_J4_the_secret_half_of_the_bus_keys_is_for_nobody_else(tmp_path):
    folder = tmp_path / "keys"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    mask = os.umask(0)
    try:
        make_keys(folder)
    finally:
        os.umask(mask)
    assert (folder / "bus.key_secret").stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700


# J5: beyond this machine.


@pytest.mark.parametrize(
    "address",
    ["10.0.0.5:7001", "0.0.0.0:7001", "*:7001", "[::]:7001", "bot.example:7001", "127.0.0.2:7001"],
)
@pytest.mark.parametrize("stream", ["quotes", "ledger"])
def test_J5_tcp_beyond_this_machine_without_keys_does_not_start(stream, address, tmp_path):
    local = "market=tcp://127.0.0.1:7000"
    value = f"{local},{stream}=tcp://{address}"
    for keys in ({}, {"BUS_KEYS": tmp_path / "no"}):
        with pytest.raises(ValidationError, match="BUS_KEYS"):
            Settings(_env_file=None, BUS_TCP=value, **keys)
    assert Settings(_env_file=None, BUS_TCP=value, BUS_KEYS=tmp_path)


def test_J5_a_folder_without_keys_opens_nothing(run_dir, tcp):
    with pytest.raises(OSError, match=r"bus\.key_secret"):
        Bus(run_dir, says="market", tcp=tcp, keys=run_dir)
    port = int(tcp["market"].rpartition(":")[2])
    with socket.socket() as peer, pytest.raises(ConnectionRefusedError):
        peer.connect(("127.0.0.1", port))


def process(*, run_dir, **env):
    return subprocess.Popen(
        [sys.executable, "-m", "services.worker"],
        cwd=ROOT, env={"PATH": os.environ["PATH"], "RUN_DIR": str(run_dir), "SHARDS": "1", **env},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def test_J5_a_process_speaks_by_tcp_to_those_with_a_key_of_its_folder(bus, run_dir, tcp):
    wires = {"quotes": tcp["market"]}
    for name in ("keys", "others"):
        make_keys(run_dir / name)
    terms = {"BUS_TCP": f"quotes={wires['quotes']}", "BUS_KEYS": str(run_dir / "keys")}
    worker = process(run_dir=run_dir, **terms)
    friend, *strangers = (
        bus(hears={"quotes": ("",)}, tcp=wires, keys=keys)
        for keys in (run_dir / "keys", run_dir / "others", None)
    )
    try:
        got, told = [], [[], []]

        def turn():
            got.extend(heard(friend))
            for mine, stranger in zip(told, strangers, strict=True):
                mine.extend(heard(stranger))

        wait_for(lambda: (turn(), len(got) >= 2)[1], 20)
        assert {m.pid for m in got} == {worker.pid}
        turn()
        assert told == [[], []]
        assert not (run_dir / "quotes-0").exists()
    finally:
        worker.kill()
        worker.communicate()


def test_J5_a_process_that_would_speak_to_all_the_world_ends_with_one_line(run_dir):
    worker = process(run_dir=run_dir, BUS_TCP="quotes=tcp://0.0.0.0:7001")
    said, _ = worker.communicate(timeout=20)
    assert worker.returncode == 2
    (line,) = said.splitlines()
    assert line.startswith("settings: BUS_KEYS")


# J6: frames made to hurt.

UNITS = ("00", "80", "9100", "81a16100")
MEASURE = """
import resource, sys, time
from shared import messages as msg
room = msg.MAX_FRAME_BYTES - 6
for unit in map(bytes.fromhex, sys.argv[1:]):
    count = room // len(unit)
    frames = [
        msg.VERSION + b"\\xdd" + count.to_bytes(4, "big") + unit * count,
        msg.VERSION + (b"\\xdd" + room.to_bytes(4, "big")) * 1_000 + unit * ((room - 5_000) // len(unit)),
    ]
    for frame in frames:
        began = time.monotonic()
        try:
            msg.decode(frame)
        except msg.Malformed:
            pass
        print(time.monotonic() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""  # noqa: E501


def test_J6_no_frame_takes_more_memory_or_time_than_a_process_has():
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *UNITS],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    rows = [row.split() for row in done.stdout.splitlines()]
    assert len(rows) == 2 * len(UNITS)
    assert max(float(seconds) for seconds, _ in rows) < 3
    assert max(int(megabytes) for _, megabytes in rows) < BOMB_MB


@pytest.mark.parametrize(
    "bomb",
    [
        *(head + b"\xff" * 4 for head in (b"\xdd", b"\xdf", b"\xc6", b"\xdb", b"\xc9")),
        b"\xdd\x7f\xff\xff\xff" * 200,
        b"\xdf\x7f\xff\xff\xff\xa1a" * 200,
        b"\x91" * 100_000,
        b"\x81\xa1a" * 100_000,
        b"\x92\xa5Kline" + b"\x91" * 5_000,
        b"\xc7\x0c\xff" + b"\xff" * 12,  # a timestamp of the year 10**11
        b"\xd6\xff" + b"\xff" * 4,
        b"\xc1" * 1_000,
    ],
    ids=lambda bomb: bomb[:6].hex(),
)
def test_J6_claims_of_length_and_depth_are_malformed_at_once(bomb):
    began = time.monotonic()
    with pytest.raises(msg.Malformed):
        msg.decode(msg.VERSION + bomb)
    assert time.monotonic() - began < 0.5


PLAIN = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), st.text(max_size=6),
    st.binary(max_size=6), st.sampled_from(["nan", "sNaN", "-Infinity", "1e999999999", "1e-9999"]),
)  # fmt: skip
ANYTHING = st.recursive(
    PLAIN,
    lambda inner: st.one_of(
        st.lists(inner, max_size=6), st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=20,
)
CARRIED = {kind.__name__: kind for s in STREAMS.values() for kind in s.carries}


@settings(max_examples=120, **EXAMPLES)
@given(st.sampled_from(sorted(CARRIED)), st.lists(ANYTHING, max_size=20))
def test_J6_any_contents_are_a_message_of_the_right_types_or_malformed(kind, fields):
    try:
        read = msg.decode(msg.VERSION + msgpack.packb((kind, *fields)))
    except msg.Malformed:
        return
    assert type(read) is CARRIED[kind]
    assert msg.decode(msg.encode(read)) == read or "nan" in repr(read)
    msg.topic(read)


@settings(max_examples=120, **EXAMPLES)
@given(st.binary(max_size=400))
def test_J6_any_bytes_are_a_message_or_malformed(data):
    for frame in (data, msg.VERSION + data, msg.VERSION + b"\x95\xa8Position" + data):
        with contextlib.suppress(msg.Malformed):
            msg.decode(frame)


def test_J6_a_frame_over_the_bound_is_not_even_taken_in(bus, run_dir):
    """ZeroMQ cuts off who sends it; whoever else speaks on that stream is heard."""
    listener, honest = bus(hears={"quotes": ("",)}), bus(says="quotes", slot=1)
    with raw_socket(zmq.PUB, endpoint(run_dir, "quotes", 0)) as peer:
        join(listener, lambda hello: peer.send(b"kline." + msg.encode(hello)))
        peer.send(b"kline." + bytes(msg.MAX_FRAME_BYTES + 1))
        join(listener, honest.publish, kline("HELLOUSDT", number=-2))
    assert listener.malformed == 0


def test_J6_who_sent_too_much_once_is_heard_again(bus, run_dir):
    listener, got = bus(hears={"market": ("",)}), []
    with raw_socket(zmq.PUB, endpoint(run_dir, "market", 0)) as peer:
        join(listener, lambda hello: peer.send(b"kline." + msg.encode(hello)))
        peer.send(b"kline." + bytes(msg.MAX_FRAME_BYTES + 1))
    speaker, until_s = bus(says="market"), time.monotonic() + 5
    listener.overdue(time.monotonic_ns() + SILENT_NS + 1)  # each second; now it was silent so long
    while not got and time.monotonic() < until_s:
        speaker.publish(kline())
        got += [message for message in heard(listener) if message == kline()]
    assert got


def test_J6_nothing_unpickles_or_evaluates():
    words = (
        "import pickle",
        "pickle.load",
        "allow_pickle=True",
        "marshal",
        "shelve",
        "eval(",
        "exec(",
        "yaml",
        "recv_pyobj",
        "__import__",
    )
    for file in (*ROOT.glob("shared/*.py"), *ROOT.glob("services/*/*.py")):
        found = [word for word in words if word in file.read_text().replace("re.compile", "")]
        assert found == [], file


# J8: an old process beside a new one.


def test_J8_quotes_of_another_version_are_as_if_not_said_and_exits_stay():
    """The worker is of another deployment: its frames are refused at the router's door."""
    stage = Theatre(BASE_FEE_PCT=3.0)
    stage.fill(A)
    stage.rest(B)
    publish, refused = stage.replay._publish, []

    def mixed(stream, message):
        if stream != "quotes":
            publish(stream, message)
            return
        try:
            publish(stream, msg.decode(b"\x02" + msg.encode(message)[1:]))
        except msg.Malformed:
            refused.append(message)

    stage.replay._publish = mixed
    stage.to(C, "99.8", 8)  # a quote counts for 5 s
    assert refused
    assert not stage.entries(B) + stage.entries(C)
    assert len(stage.exits(A)) == 1
    stage.replay._publish = publish
    stage.until(lambda: stage.entries(C), within=5)
    stage.end()


def test_J8_an_ask_of_another_version_is_refused_and_the_asker_moves_on(bus, run_dir):
    keeper = bus(answers=("ledger",))
    with raw_socket(zmq.DEALER, endpoint(run_dir, "ledger", 0)) as peer:
        for version in (b"\x00", b"\x02", b"\xff"):
            peer.send_multipart((b"id", b"", version + msg.encode(msg.LedgerAsk())[1:]))
            got = []
            until(
                lambda got=got: keeper.malformed or got, lambda got=got: got.extend(heard(keeper))
            )
            assert got == []
            assert peer.recv_multipart() == [b"id", b"", b""]
            keeper.malformed = 0


def test_J8_a_ledger_of_another_release_is_not_guessed_at(tmp_path):
    import sqlite3  # noqa: PLC0415 - a release that this one does not know

    path = tmp_path / "state.db"
    Store(path, "paper-x", "one").close()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 999")
        db.commit()
    with pytest.raises(WrongSetting, match="schema 999"):
        Store(path, "paper-x", "two")


# J10: who may tell supervisord.


def test_J10_supervisord_listens_on_a_socket_of_ours_alone():
    conf = configparser.RawConfigParser()
    conf.read(ROOT / "supervisord.conf")
    assert "inet_http_server" not in conf
    assert conf["unix_http_server"]["chmod"] == "0700"
    assert conf["supervisord"]["umask"] == "077"
    assert "rpcinterface:supervisor" in conf
    assert "SECRET" not in (ROOT / "supervisord.conf").read_text()


@pytest.mark.xdist_group("processes")
def test_J10_of_all_processes_only_the_paper_exchange_listens_and_on_loopback(watched):
    loopback = "0100007F"  # 127.0.0.1, as the kernel writes it
    listeners = {name: found for name, found in watched.listeners.items() if found}
    assert listeners == {"paper": [(loopback, watched.p.port)]}


def test_every_row_has_a_test_or_a_reason():
    rows = {f"J{n}" for n in range(1, 11)}
    tested = {name.split("_")[1] for name in globals() if name.startswith("test_J")}
    assert tested | {row for row in NOT_APPLICABLE if " " not in row} == rows
    assert {row.split()[0] for row in NOT_APPLICABLE} <= rows
