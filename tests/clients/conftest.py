"""A running paper exchange for clients that nobody here wrote, and its control socket."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from http.client import HTTPConnection
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

ROOT = Path(__file__).parents[2]
START_SECONDS = 60.0


class Control:
    """The control socket: faults, scripted trades, and the exchange's own truth."""

    def __init__(self, path):
        self._path = path

    def ask(self, method, target, body=None):
        """The JSON answer of one request."""
        with contextlib.closing(HTTPConnection("localhost", timeout=10)) as connection:
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.settimeout(10)
            connection.sock.connect(str(self._path))
            connection.request(method, target, json.dumps(body) if body is not None else None)
            answer = connection.getresponse()
            found = json.loads(answer.read())
            assert answer.status == 200, found
            return found

    def fault(self, where, action, **more):
        """One fault, or one act of the venue."""
        return self.ask("POST", "/fault", {"where": where, "action": action, **more})

    def heal(self):
        """No fault any more."""
        return self.ask("DELETE", "/fault")

    def hold(self, symbol):
        """The market of one symbol stands still but for `trade`."""
        return self.fault("venue", "hold", symbol=symbol)

    def trade(self, symbol, price, qty, **more):
        """Somebody trades."""
        return self.fault("venue", "trade", symbol=symbol, price=str(price), qty=str(qty), **more)

    def truth(self):
        """Orders, executions, positions and wallet as the exchange holds them."""
        return self.ask("GET", "/account")


class Served:
    """Addresses and control of one running paper exchange; key and secret are fixed."""

    key, secret = "paper-key", "paper-secret"

    def __init__(self, port, folder):
        self.port = port
        self.rest, self.stream = f"http://127.0.0.1:{port}", f"ws://127.0.0.1:{port}"
        self.control = Control(folder / "paper.sock")

    def last(self, symbol):
        """The last price, from the public ticker, as text."""
        with contextlib.closing(HTTPConnection("127.0.0.1", self.port, timeout=10)) as connection:
            connection.request("GET", f"/v5/market/tickers?category=linear&symbol={symbol}")
            return json.loads(connection.getresponse().read())["result"]["list"][0]["lastPrice"]


def free_port():
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def serve(**settings):
    """A paper exchange of 20 symbols in a process of its own, gone afterwards."""
    with TemporaryDirectory(prefix="dm") as name:
        folder, port = Path(name), free_port()
        settings = {"PAPER_SYMBOLS": 20, "PAPER_PORT": port, "RUN_DIR": folder} | settings
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PAPER_", "BYBIT_"))}
        command = [sys.executable, "-m", "services.paper"]
        environment = kept | {name: str(value) for name, value in settings.items()}
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
            )
        served = Served(port, folder)
        try:
            deadline = time.monotonic() + START_SECONDS
            while True:
                with contextlib.suppress(OSError):
                    served.control.ask("GET", "/")
                    break
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.05)
            yield served
        finally:
            process.terminate()
            process.wait(10)


@pytest.fixture
def paper():
    with serve() as served:
        yield served
