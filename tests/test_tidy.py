"""The rules of the house, checked by reading the code: imports, doors, errors, settings."""

import ast
import re
import sys
from pathlib import Path

import pytest
from dotenv import dotenv_values

from shared.bus import STREAMS
from shared.settings import Settings

ROOT = Path(__file__).parents[1]
SOURCES = sorted((*ROOT.glob("shared/*.py"), *ROOT.glob("services/*/*.py")))
COMPOSITION_ROOTS = {"backtest", "dashboard"}  # the second shows what the tools compute
CORES = {
    "ingestor": ("feed", "history"),
    "worker": ("ring", "strategy"),
    "router": ("orders", "budget", "touches"),
    "keeper": ("ledger", "losses", "reconcile", "restarts"),
    "report": ("trades",),
    "watchdog": ("pulse",),
    "notifier": ("desk", "fills", "modes", "news", "presence", "redact"),
    "dashboard": ("watch", "charts"),
    "paper": (
        *("api", "auditor", "book", "clock", "faults", "gate", "matching", "order", "params"),
        *("public", "rows", "sessions", "stops", "ticker", "topics", "venue", "wallet"),
    ),
}
CORE_FILES = [ROOT / f"services/{s}/{n}.py" for s, names in CORES.items() for n in names]
CORE_MODULES = {f"services.{s}.{n}" for s, names in CORES.items() for n in names}
CORE_MAY = {"numpy", "msgpack", "orjson", "shared.messages", "shared.instrument", "shared"}
CORE_MUST_NOT = {"time", "random", "socket", "os", "logging", "pathlib", "threading", "datetime"}
DOORS = {
    "zmq": {"shared/bus.py"},
    "msgpack": {"shared/messages.py"},
    "pybit": {"shared/bybit.py"},
    "aiohttp": {
        *("shared/stream.py", "services/paper/actor.py", "services/paper/server.py"),
        "services/paper/control.py",
    },
    "websocket": {"shared/bybit.py"},
    "pydantic": {"shared/settings.py"},
    "pydantic_settings": {"shared/settings.py"},
    "sqlite3": {"services/keeper/store.py", "shared/records.py", "services/report/excursions.py"},
    "plotly": {"services/report/page.py"},
    "apprise": {"services/notifier/target.py"},
    "prometheus_client": {"services/dashboard/metrics.py"},
    "numpy": {
        "services/worker/ring.py",
        "services/worker/strategy.py",
        "services/paper/market.py",
        "services/paper/ticker.py",
    },
}


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_service_never_imports_another(path):
    parts = path.relative_to(ROOT).parts
    if parts[0] != "services" or parts[1] in COMPOSITION_ROOTS:
        return
    foreign = [
        m for m in imports(path) if m.startswith("services.") and m.split(".")[1] != parts[1]
    ]
    assert not foreign


@pytest.mark.parametrize("path", CORE_FILES, ids=name_of)
def test_a_core_touches_nothing_but_numbers_and_messages(path):
    service = f"services.{path.parent.name}"
    for module in imports(path):
        if module == "random" and "from random import Random\n" in path.read_text():
            assert "Random()" not in path.read_text()  # chance by seed is no chance
            continue
        top = module.split(".")[0]
        assert module not in CORE_MUST_NOT, module
        own = module.startswith(service) or module in CORE_MAY or top in CORE_MAY
        own |= path.parent.name in COMPOSITION_ROOTS and module in CORE_MODULES
        assert own or top in sys.stdlib_module_names, module


@pytest.mark.parametrize("package", DOORS)
def test_each_package_enters_by_one_door(package):
    users = {name_of(p) for p in SOURCES if package in {m.split(".")[0] for m in imports(p)}}
    assert users <= DOORS[package]


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_no_error_is_swallowed_and_every_public_name_is_explained(path):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else "everything"
            assert caught not in ("everything", "Exception", "BaseException"), node.lineno
    if path.name in ("__main__.py", "__init__.py"):
        assert len(path.read_text().splitlines()) <= 5
        return
    assert ast.get_docstring(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            nested = isinstance(node, ast.FunctionDef) and _is_nested(tree, node)
            assert nested or ast.get_docstring(node), f"{node.name}, line {node.lineno}"


def _is_nested(tree, inner):
    functions = (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n is not inner)
    return any(inner in ast.walk(outer) for outer in functions)


def test_env_example_lists_every_setting_with_its_default(monkeypatch):
    listed = dotenv_values(ROOT / ".env.example")
    assert set(listed) == set(Settings.model_fields)
    for name in Settings.model_fields:
        monkeypatch.delenv(name, raising=False)
    assert Settings(_env_file=ROOT / ".env.example") == Settings(_env_file=None)


def test_readme_shows_every_stream_and_every_make_target():
    readme = (ROOT / "README.md").read_text()
    targets = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert targets[0] == "help", "bare make prints help"
    for word in (*STREAMS, *(f"make {target}" for target in targets[1:])):
        assert word in readme, word


DECIDE_OUTCOMES = {
    "services/worker/actor.py": ("_gate",),
    "services/router/orders.py": ("entry_gate", "_adds"),
    "services/router/actor.py": ("_no_ask",),
    "services/keeper/ledger.py": ("_refusal",),
    "services/keeper/actor.py": ("_outcome",),
}
"""Functions that return the word for what came of a touched band."""


def test_readme_explains_every_outcome():
    readme = (ROOT / "README.md").read_text()
    for name, deciders in DECIDE_OUTCOMES.items():
        functions = [n for n in ast.walk(ast.parse((ROOT / name).read_text())) if _is(n, deciders)]
        assert len(functions) == len(deciders), name
        returns = [n for f in functions for n in ast.walk(f) if isinstance(n, ast.Return)]
        words = {x.value for n in returns for x in ast.walk(n) if isinstance(x, ast.Constant)}
        for word in words - {"", 0, 2}:  # none; and places in a tuple
            assert f"`{word}`" in readme, word


def _is(node, names):
    return isinstance(node, ast.FunctionDef) and node.name in names


def test_no_absolute_paths_or_hosts_of_this_machine():
    words = ("/" + "root/", "/" + "work/", "/" + "tmp/", "/home/")
    for path in (*SOURCES, ROOT / "Makefile", ROOT / "supervisord.conf", ROOT / "README.md"):
        text = path.read_text()
        assert not any(word in text for word in words), path
