"""The dashboard in a real browser, on a bot of its own. Only with --browser: it takes minutes."""

import importlib
import json
import os
import shutil
from pathlib import Path

import pytest

from services.ops.ops import Supervisor
from tests.pipeline import Pipeline, free_port, wait_for

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
NONE_FOUND = f"none of {', '.join(BROWSERS)} is installed: apt-get install chromium"
SIZE = {"width": 1500, "height": 950}
SCREENSHOTS = os.environ.get("SCREENSHOTS", "")  # a folder: then each page leaves its picture there
TRADED_S = 240  # until the first lots were closed; the default market needs a quarter of it


def pytest_addoption(parser):
    parser.addoption("--browser", action="store_true", help="run what needs a browser")


def pytest_ignore_collect(config):
    """Plain `pytest` does not even look in here."""
    return True if not config.getoption("--browser", default=False) else None


class Site:
    """A bot of 500 symbols on a lively market, and where its pages are."""

    def __init__(self):
        self.port = free_port()
        self.p = Pipeline(PAPER_SPEED=4, DASHBOARD_PORT=self.port)
        self.base = f"http://127.0.0.1:{self.port}"
        self.look = self.steer = ""

    def up(self):
        """It runs, and has closed some lots."""
        up = self.p.ops("up")
        assert up.returncode == 0, up.stdout + up.stderr
        self.addresses()
        wait_for(lambda: len(self.closed()) >= 3, TRADED_S)

    def addresses(self):
        """With their tokens, as they are in the file of the owner."""
        told = json.loads((self.p.run_dir / "dashboard.json").read_text())
        self.look, self.steer = told["look"], told["steer"]
        return told

    def closed(self):
        """(entry_id, symbol, side, cost, proceeds, fees) of every closed lot, oldest first."""
        query = "SELECT entry_id, symbol, side, cost, proceeds, fees FROM lots"
        order = "ORDER BY closed_ms, entry_id"
        return self.p.rows(f"{query} WHERE closed_ms > 0 AND bought <> '0' {order}")

    def count(self, table, where="1"):
        """Rows of the ledger."""
        return self.p.rows(f"SELECT COUNT(*) FROM {table} WHERE {where}")[0][0]

    def modes(self):
        """(mode, reason, who, wall_ms) of the keeper's journal, oldest first."""
        return self.p.rows("SELECT mode, reason, who, wall_ms FROM modes ORDER BY rowid")

    def pids(self):
        """{name: pid} of this bot's own processes."""
        rows = Supervisor(self.p.run_dir).processes()
        return {row["name"]: row["pid"] for row in rows if row["pid"]}


class Visitor:
    """One browser with cookies of its own; what it asked for, and what went wrong in it."""

    def __init__(self, chromium, site, address):
        self._site, self.asked, self.errors = site, [], []
        self._context = chromium.new_context(viewport=SIZE)
        self.page = self._context.new_page()
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("websocket", lambda socket: self.asked.append(socket.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self._said)
        self.page.goto(address)

    def _said(self, message):
        if message.type in ("error", "warning"):
            self.errors.append(f"{message.type}: {message.text}")

    def open(self, path):
        """A page, once its socket is up; its title."""
        self.page.goto(self._site.base + path)
        self.page.wait_for_function("window.did_handshake === true")
        return self.page.title()

    def text(self, name):
        """What stands where the page has this test id, as text."""
        return self.page.get_by_test_id(name).first.inner_text()

    def get(self, path):
        """The body of a plain request with the cookies of this browser."""
        return self._context.request.get(self._site.base + path)

    def picture(self, name):
        """Leave a picture of the page, if a folder is given for that."""
        if SCREENSHOTS:
            Path(SCREENSHOTS).mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=Path(SCREENSHOTS) / f"{name}.png")

    def close(self):
        """Nothing was asked for elsewhere, and nothing went wrong."""
        self._context.close()
        ours = (self._site.base, self._site.base.replace("http", "ws", 1), "data:", "blob:")
        foreign = [url for url in self.asked if not url.startswith(ours)]
        assert foreign == [], "a request left the machine"
        assert self.errors == []


@pytest.fixture(scope="session")
def site():
    made = Site()
    try:
        made.up()
        yield made
    finally:
        made.p.close()


@pytest.fixture(scope="session")
def chromium():
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.fail(NONE_FOUND, pytrace=False)
    driver = importlib.import_module("playwright.sync_api")  # who runs nothing in here may lack it
    with driver.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visitor(site, chromium):
    """Who may steer."""
    made = Visitor(chromium, site, site.steer)
    yield made
    made.close()


@pytest.fixture
def onlooker(site, chromium):
    """Who may only look."""
    made = Visitor(chromium, site, site.look)
    yield made
    made.close()
