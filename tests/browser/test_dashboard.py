"""The dashboard in a browser: what its pages say is so, and what they ask for is done.

One bot of 500 symbols trades on all the while. What moves is compared until page and ledger agree.
"""

import contextlib
import csv
import http.client
import io
import os
import re
import signal
import statistics
import time
from decimal import Decimal

import pytest

from services.dashboard.frame import moment, money
from shared import messages as msg
from shared.bus import Bus
from tests.books import OPEN
from tests.pipeline import LOOK_S, wait_for

SYMBOLS = 500
AGREE_S = 40  # a page reads the ledger each two seconds; here something changes all the time
SAID_S = 15
CLICK_S = 20
SOCKET = "/_nicegui_ws/socket.io/?EIO=4&transport="
GRID = """(n) => { const roots = [...document.querySelectorAll('.ag-root-wrapper')];
  return getElement(Number(roots[n].closest('[id^=c]').id.slice(1))).api; }"""

IN_SIGHT = """() => { const view = document.querySelector('.ag-body-viewport');
  const {top, bottom} = view.getBoundingClientRect();
  return [...document.querySelectorAll('.ag-center-cols-container .ag-row')].filter(row => {
    const here = row.getBoundingClientRect();
    return here.top > top && here.bottom < bottom; }); }"""


def grid_rows(page, number=0):
    """The rows of a page's grid as it shows them: filtered, sorted."""
    return page.evaluate(
        f"""(n) => {{ const api = ({GRID})(n), rows = [];
        api.forEachNodeAfterFilterAndSort(node => rows.push(node.data)); return rows; }}""",
        number,
    )


def option(page, name):
    """What a chart shows: the options of ECharts itself."""
    return page.evaluate(
        """(name) => { const element = document.querySelector(`[data-testid=${name}]`);
        const o = getElement(Number(element.id.slice(1))).chart.getOption();
        return {series: o.series, x: o.xAxis}; }""",
        name,
    )


def profit(row):
    """Of a closed lot, after fees."""
    _, _, side, cost, proceeds, fees = row
    gross = Decimal(proceeds) - Decimal(cost)
    return (gross if side == "Buy" else -gross) - Decimal(fees)


def agree(shown, told, seconds=AGREE_S):
    """Until a page shows what the ledger says, both at one time."""
    seen = []

    def same():
        seen[:] = [shown(), told()]
        return seen[0] == seen[1]

    until = time.monotonic() + seconds
    while not same():
        assert time.monotonic() < until, f"shown {seen[0]}, told {seen[1]}"
        time.sleep(LOOK_S)


@contextlib.contextmanager
def listening(site, **hears):
    """The bus, as anybody may hear it."""
    bus = Bus(site.p.run_dir, hears=hears, asks=("history",))
    try:
        yield bus
    finally:
        bus.close()


def heard(bus, seconds=0):
    """All that was said by now, and within so many seconds."""
    until, found = time.monotonic() + seconds, []
    while True:
        left_ms = max(0, int(1000 * (until - time.monotonic())))
        said = [message for message, _ in bus.receive(left_ms)]
        found += said
        if not said and not left_ms:
            return found


def answer(site, path="/", method="GET", **headers):
    """(status, body, headers) of one request that no browser would send."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", site.port, timeout=10)) as c:
        c.putrequest(method, path, skip_host="Host" in headers)
        for name, value in headers.items():
            c.putheader(name.replace("_", "-"), value)
        c.endheaders()
        reply = c.getresponse()
        body = b"" if reply.status == 101 else reply.read()
        return reply.status, body, reply.headers


UPGRADE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec_WebSocket_Version": "13",
}


def cookie(site, address):
    return {"Cookie": f"dm-{site.port}={address.partition('token=')[2]}"}


@contextlib.contextmanager
def stopped(pid):
    """A process stands still while the block runs."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


# Pages.


def held(site):
    """A symbol with an open lot whose exit rests."""
    query = (
        "SELECT lots.symbol FROM lots JOIN orders ON orders.order_link_id = lots.entry_id || 'x0'"
        " WHERE closed_ms = 0 AND orders.open ORDER BY opened_ms LIMIT 1"
    )
    return wait_for(lambda: site.p.rows(query), 60)[0][0]


def test_every_page_loads_while_500_symbols_trade(site, visitor):
    pages = {
        "overview": ("/", "Overview"),
        "board": ("/board", "Board"),
        "symbol": (f"/symbol/{(symbol := held(site))}", symbol),
        "trades": ("/trades", "Trades"),
        "control": ("/control", "Control"),
    }
    for name, (path, title) in pages.items():
        assert visitor.open(path) == f"{title} · Deviation Magnet"
        assert "token" not in visitor.page.url
        visitor.page.locator(".ag-row").first.wait_for()
        wait_for(lambda: visitor.text("mode") == msg.RUN, SAID_S)
        wait_for(lambda: not visitor.page.get_by_test_id("dead").is_visible(), SAID_S)
        if name == "symbol":
            wait_for(lambda: option(visitor.page, "candles")["series"][0]["data"], SAID_S)
            visitor.page.get_by_text("bar of its entry").first.wait_for(state="attached")
        visitor.picture(name)


def test_an_unknown_symbol_is_a_clear_404(visitor):
    reply = visitor.get("/symbol/NOPEUSDT")
    assert reply.status == 404
    assert "NOPEUSDT: not traded here" in reply.text()


# Numbers.


def test_the_trades_page_says_what_the_ledger_says(site, visitor):
    visitor.open("/trades")
    page = visitor.page

    def shown():
        page.locator(".ag-row").first.wait_for()
        return [
            visitor.text("Trades"),
            visitor.text("Profit"),
            visitor.text("Expectancy"),
            visitor.text("Win rate"),
            visitor.text("count"),
            [row["entry_id"] for row in grid_rows(page, 2)],
            {row["name"]: (row["trades"], round(row["profit_usdt"], 9)) for row in grid_rows(page)},
            sum(row["trades"] for row in grid_rows(page, 1)),
        ]

    def told():
        rows = site.closed()
        made = [profit(row) for row in rows]
        by_symbol = {}
        for row in rows:
            trades, usdt = by_symbol.get(row[1], (0, Decimal(0)))
            by_symbol[row[1]] = trades + 1, usdt + profit(row)
        return [
            str(len(rows)),
            money(sum(made), 4),
            money(sum(made) / len(made), 4),
            f"{100 * Decimal(sum(usdt > 0 for usdt in made)) / len(made):.1f} %",
            f"{len(rows)} of {len(rows)}, the newest first",
            [row[0] for row in reversed(rows)],
            {name: (count, round(float(usdt), 9)) for name, (count, usdt) in by_symbol.items()},
            len(rows),
        ]

    agree(shown, told)
    begin = len(site.closed())
    wait_for(lambda: len(site.closed()) > begin, 120)
    agree(shown, told)  # what came while the page was open is on top, too


def test_the_csv_has_every_closed_lot(site, visitor):
    def shown():
        reply = visitor.get("/trades.csv")
        assert "attachment" in reply.headers["content-disposition"]
        rows = list(csv.DictReader(io.StringIO(reply.text())))
        return [(row["entry_id"], Decimal(row["profit_usdt"])) for row in rows]

    agree(shown, lambda: [(row[0], profit(row)) for row in site.closed()])


def test_the_overview_says_what_the_ledger_says(site, visitor):
    visitor.open("/")

    def shown():
        return {name: visitor.text(name) for name in told()}

    def told():
        rows = site.closed()
        opened = "closed_ms = 0 AND CAST(bought AS REAL) > CAST(sold AS REAL)"
        return {
            "Realised": money(sum(map(profit, rows))),
            "Fees": money(sum(Decimal(row[-1]) for row in rows)),
            "Lots": str(site.count("lots", opened)),
            "Executions": str(site.count("executions")),
            "Working orders": str(site.count("orders", "open")),
            "Differences": "0",
        }

    agree(shown, told)


def test_the_overview_says_what_the_processes_say(site, visitor):
    visitor.open("/")
    with listening(site, account=("wallet.", "mode.")) as bus:
        equities, modes = {""}, {""}

        def said():
            for message in heard(bus):
                if isinstance(message, msg.Wallet):
                    equities.add(f"{message.total_equity:,.2f}")
                elif isinstance(message, msg.Mode):
                    modes.add(f"{message.slots} / 100, {len(message.symbols)} / 50")
            shown = f"{visitor.text('Slots')}, {visitor.text('Symbols')}"
            return visitor.text("Equity") in equities and shown in modes

        wait_for(said, AGREE_S, LOOK_S)
    agree(lambda: visitor.text("money"), lambda: f"{visitor.text('Equity')} USDT")
    rows = {row["name"]: row for row in grid_rows(visitor.page)}
    speak = {"ingestor", "keeper", "router", "worker-0", "worker-1"}
    assert set(rows) == speak | {"paper", "watchdog", "dashboard"} == set(site.pids())
    assert {name: rows[name]["pid"] for name in speak} == {n: site.pids()[n] for n in speak}
    agree(
        lambda: {(r["healthy"], r["state"]) for r in grid_rows(visitor.page)},
        lambda: {("yes", "RUNNING")},
    )


def test_the_equity_curve_is_the_ledgers(site, visitor):
    visitor.open("/")

    def shown():
        return [usdt for _, usdt in option(visitor.page, "equity")["series"][0]["data"][:-1]]

    agree(
        shown,
        lambda: [float(r[0]) for r in site.p.rows("SELECT equity FROM equity ORDER BY wall_ms")],
    )


def test_a_symbols_page_says_what_the_ledger_says(site, visitor):
    symbol = held(site)
    visitor.open(f"/symbol/{symbol}")
    page = visitor.page

    def told():
        query = "SELECT side, exec_qty, exec_price FROM executions WHERE symbol = ?"
        fills = [
            f"{side} {Decimal(qty):f} @ {Decimal(price):f}"
            for side, qty, price in site.p.rows(query, symbol)
        ]
        query = "SELECT closed_ms, opened_ms FROM lots WHERE symbol = ? AND bought <> '0'"
        lots = sorted(moment(max(times)) for times in site.p.rows(query, symbol))
        query = "SELECT bar_start_ms, outcome FROM outcomes WHERE symbol = ? ORDER BY 1 DESC, 2"
        touches = [(moment(at_ms), text) for at_ms, text in site.p.rows(query, symbol)[:60]]
        return sorted(fills), lots, sorted(touches)

    def shown():
        said = page.evaluate("() => document.querySelector('[data-testid=lots]').textContent")
        fills = re.findall(r"(?:entry|exit \d+): (\w+ [\d.]+ @ [\d.]+) \(", said)
        titles = page.locator(
            "[data-testid=lots] .q-expansion-item .q-item__label"
        ).all_inner_texts()
        moments = r"\d\d-\d\d \d\d:\d\d:\d\d"
        lots = sorted(re.findall(moments, title)[-1] for title in titles if " of " in title)
        touches = [(row["time"], row["outcome"]) for row in grid_rows(page, 1)]
        return sorted(fills), lots, sorted(touches)

    agree(shown, told)


def test_a_symbols_chart_shows_the_workers_bands_and_what_rests(site, visitor):
    symbol = held(site)
    visitor.open(f"/symbol/{symbol}")
    known = {}
    with listening(site, quotes=(f"quote.{symbol}.",)) as bus:

        def same():
            for quote in heard(bus):
                known[round(quote.lower, 9), round(quote.upper, 9)] = quote
            price, lower, upper, _ = option(visitor.page, "candles")["series"]
            if not price["data"]:
                return False
            last = [round(line["data"][-1], 9) for line in (lower, upper)]
            return tuple(last) in known and len(price["data"]) == len(lower["data"]) == 180

        wait_for(same, AGREE_S, LOOK_S)

    def shown():
        lines = option(visitor.page, "candles")["series"][0]["markLine"]["data"]
        return {line["name"]: line["yAxis"] for line in lines if line["name"] != "last"}

    def told():
        query = "SELECT kind, side, qty, cum_exec_qty, price FROM orders WHERE symbol = ? AND open"
        return {
            f"{kind} {side} {Decimal(qty) - Decimal(done):f}": float(price)
            for kind, side, qty, done, price in site.p.rows(query, symbol)
        }

    agree(shown, told)


# The board.


def test_the_board_has_every_symbol_and_sorts_and_filters(site, visitor):
    visitor.open("/board")
    page = visitor.page
    page.locator(".ag-row").first.wait_for()
    names = [row["symbol"] for row in grid_rows(page)]
    assert len(set(names)) == len(names) == SYMBOLS and names == sorted(names)
    wait_for(lambda: visitor.text("counts").startswith(f"{SYMBOLS} symbols: "), SAID_S)
    counts = sum(map(int, re.findall(r"(\d+) [a-z]", visitor.text("counts").partition(":")[2])))
    assert counts == SYMBOLS

    head = page.locator(".ag-header-cell[col-id=volatility_pct] .ag-header-cell-label")
    for way in ("ascending", "descending"):
        head.click()
        page.locator(f".ag-header-cell[col-id=volatility_pct][aria-sort={way}]").wait_for()

        def ordered(way=way):
            values = [row["volatility_pct"] for row in grid_rows(page)]
            return values == sorted(values, reverse=way == "descending")

        wait_for(ordered, SAID_S)
    page.get_by_test_id("filter").fill("btc")
    wait_for(lambda: 0 < len(grid_rows(page)) < 20, SAID_S)
    assert all("BTC" in row["symbol"] for row in grid_rows(page))
    page.get_by_test_id("filter").fill("")
    wait_for(lambda: len(grid_rows(page)) == SYMBOLS, SAID_S)


def test_a_cell_changes_within_three_seconds_and_rows_and_scroll_stay(visitor):
    visitor.open("/board")
    page = visitor.page
    page.locator(".ag-row").first.wait_for()
    page.locator(".ag-body-viewport").evaluate("view => view.scrollTop = 4000")
    page.wait_for_function(f"({IN_SIGHT})().length > 10")
    for _ in range(3):
        waited_ms, kept, scroll = page.evaluate(
            """async () => {
            const view = document.querySelector('.ag-body-viewport'), began = performance.now();
            const rows = (SIGHT)();
            await new Promise(resolve => {
                const watcher = new MutationObserver(() => { watcher.disconnect(); resolve(); });
                rows.forEach(row => watcher.observe(row, {
                    subtree: true, characterData: true, childList: true}));
                setTimeout(resolve, 10000); });
            return [performance.now() - began, rows.every(row => row.isConnected), view.scrollTop];
        }""".replace("SIGHT", IN_SIGHT)
        )
        assert waited_ms < 3_000
        assert kept and scroll == 4_000


def test_the_board_shows_the_last_prices(site, visitor):
    visitor.open("/board")
    with listening(site, quotes=("quote.",)) as bus:
        prices = {}

        def fresh():
            for quote in heard(bus):
                prices.setdefault(quote.symbol, set()).add(quote.last)
            rows = grid_rows(visitor.page)
            known = sum(row["last"] in prices.get(row["symbol"], ()) for row in rows)
            return len(rows) == SYMBOLS and known == SYMBOLS

        wait_for(fresh, AGREE_S, LOOK_S)


def test_a_click_on_a_row_opens_its_symbol(visitor):
    visitor.open("/board")
    cell = visitor.page.locator(".ag-pinned-left-cols-container [col-id=symbol]").nth(3)
    symbol = cell.inner_text()
    cell.click()
    visitor.page.wait_for_url(f"**/symbol/{symbol}")


def test_a_refresh_keeps_the_server_for_less_than_100_ms(visitor):
    visitor.open("/board")
    pattern = re.compile(r"board ([\d.]+) ms")
    seen = []

    def enough():
        if found := pattern.search(visitor.text("server-time")):
            seen.append(float(found[1]))
        return len(seen) >= 8

    wait_for(enough, 30, 1.0)
    assert statistics.median(seen) < 100, seen


# Control.


def since(site, count):
    """What was journaled after the first `count` rows."""
    return site.modes()[count:]


def asked(visitor, mode):
    visitor.page.get_by_test_id(f"ask-{mode}").click()


def resumed(site, visitor):
    """Back to RUN, by its button; what lifts more than a pause has to be typed, too."""
    visitor.page.get_by_test_id("typed").fill(msg.RUN)
    asked(visitor, msg.RUN)
    wait_for(lambda: site.modes()[-1][0] == msg.RUN, CLICK_S)
    wait_for(lambda: visitor.text("mode") == msg.RUN, SAID_S)


def test_pause_and_resume_are_journaled_with_name_and_time(site, visitor):
    visitor.open("/control")
    visitor.page.get_by_test_id("who").fill("Ada")
    before, began_ms = len(site.modes()), time.time_ns() // 1_000_000
    asked(visitor, msg.REDUCE_ONLY)
    wait_for(lambda: any(row[0] == msg.REDUCE_ONLY for row in since(site, before)), CLICK_S)
    (row,) = [row for row in since(site, before) if row[0] == msg.REDUCE_ONLY]
    assert row[2] == "Ada (dashboard)"
    assert began_ms <= row[3] <= time.time_ns() // 1_000_000
    wait_for(lambda: visitor.text("mode").startswith(f"{msg.REDUCE_ONLY}: "), SAID_S)
    wait_for(lambda: not site.count("orders", "kind = 'entry' AND open"), AGREE_S)
    resumed(site, visitor)
    assert site.modes()[-1][2] == "Ada (dashboard)"
    agree(
        lambda: [(r["mode"], r["who"], r["time"]) for r in grid_rows(visitor.page)][:2],
        lambda: [(m, who or "the bot", moment(ms)) for m, _, who, ms in site.modes()[:-3:-1]],
    )


@pytest.mark.parametrize("mode", [msg.CANCEL_ALL, msg.FLATTEN])
def test_what_cannot_be_undone_wants_its_word_typed(site, visitor, mode):
    visitor.open("/control")
    other = msg.FLATTEN if mode == msg.CANCEL_ALL else msg.CANCEL_ALL
    before = len(site.modes())
    for typed in ("", other, mode.lower()):
        visitor.page.get_by_test_id("typed").fill(typed)
        asked(visitor, mode)
        note = visitor.page.get_by_text(f"type {mode} into the field first").last
        note.wait_for()
        note.wait_for(state="detached")
    assert [row for row in since(site, before) if row[2] or row[0] == mode] == []
    visitor.page.get_by_test_id("typed").fill(mode)
    asked(visitor, mode)
    wait_for(lambda: any(row[0] == mode for row in since(site, before)), CLICK_S)
    (row,) = [row for row in since(site, before) if row[0] == mode]
    assert row[2] == "dashboard"
    if mode == msg.CANCEL_ALL:

        def rests():
            orders = site.p.control("GET", "/account")["orders"]
            return [o for o in orders if o["orderStatus"] in OPEN]

        wait_for(lambda: not rests(), 60)
    else:
        wait_for(lambda: not site.count("lots", "closed_ms = 0"), 120)
        assert site.p.control("GET", "/account")["positions"] == []
    resumed(site, visitor)


def journal(visitor):
    """(who, why) as the page shows them."""
    return [(row["who"], row["reason"]) for row in grid_rows(visitor.page)]


def told_of(row):
    """(who, why) of a row of the ledger, which keeps a note beside the name."""
    who, _, note = row[2].partition(": ")
    return who, note


def test_scaling_shows_its_progress_and_is_journaled(site, visitor):
    visitor.open("/control")
    visitor.page.get_by_test_id("who").fill("Ada")
    for old, new in ((2, 3), (3, 2)):
        before, seen = len(site.modes()), set()
        field = visitor.page.get_by_test_id("shards")
        field.fill(str(new))
        field.press("Tab")
        visitor.page.get_by_test_id("scale").click()

        def done(old=old, new=new, seen=seen):
            seen.add(text := visitor.text("scaling"))
            return text.startswith(f"{old} -> {new} shards")

        wait_for(done, 60, LOOK_S)
        assert any(re.fullmatch(rf"\d/{new} workers ready", text) for text in seen), seen
        wait_for(lambda before=before: since(site, before), CLICK_S)
        (row,) = [row for row in since(site, before) if row[2]]
        assert row[2].startswith(f"Ada (dashboard): {old} -> {new} shards, slots ")
        wait_for(lambda row=row: told_of(row) in journal(visitor), SAID_S)
        wait_for(
            lambda new=new: sum(name.startswith("worker-") for name in site.pids()) == new, SAID_S
        )
        deadline = time.monotonic() + 4
        while time.monotonic() < deadline:  # who was told to stop is not called dead
            assert not visitor.page.get_by_test_id("dead").is_visible()
            time.sleep(LOOK_S)
    assert site.p.status()["running"]


# Who may only look.


def test_who_may_only_look_has_no_button_and_steers_by_no_other_way(site, onlooker):
    onlooker.open("/control")
    page = onlooker.page
    page.get_by_text("You may look, not steer").wait_for()
    page.locator(".ag-row").first.wait_for()
    assert (
        page.locator("[data-testid^=ask-], [data-testid=scale], [data-testid=typed]").count() == 0
    )
    onlooker.picture("control-look")
    before = site.modes()
    page.evaluate("""() => { for (let id = 0; id < 80; id++)
        for (const listener_id of [String(id), "click"]) window.socket.emit("event",
            {id, client_id: window.clientId, listener_id, args: [{}]}); }""")
    for other in ("", "00000000-0000-0000-0000-000000000000"):
        page.evaluate(
            """client_id => window.socket.emit("event",
            {id: 21, client_id, listener_id: "click", args: [{}]})""",
            other,
        )
    onlooker.open("/control")  # the same server has taken in all of that before
    look = cookie(site, site.look)
    for path in ("/control", "/mode", "/"):
        for method in ("POST", "PUT", "DELETE"):
            status, *_ = answer(site, path, method, **look)
            assert status in (404, 405), (method, path)
    named = [row for row in site.modes()[len(before) :] if row[2]]
    assert named == []


def test_the_token_to_steer_turns_a_look_into_control(site, onlooker):
    onlooker.open("/control")
    onlooker.page.locator("input[name=token]").fill(site.steer.partition("token=")[2])
    onlooker.page.get_by_role("button", name="Enter").click()
    onlooker.page.get_by_test_id("ask-RUN").wait_for()
    assert onlooker.page.url == f"{site.base}/control"


# Who may not even look.


def test_strangers_are_refused_on_http_and_on_the_websocket(site):
    good = cookie(site, site.steer)
    refused = [
        ({**good, "Host": f"evil.example:{site.port}"}, 421),
        ({**good, "Host": "evil.example"}, 421),
        ({**good, "Origin": "http://evil.example"}, 403),
        ({**good, "Origin": "null"}, 403),
        ({**good, "Origin": f"http://127.0.0.1:{site.port + 1}"}, 403),
        ({}, 401),
        ({"Cookie": f"dm-{site.port}=wrong"}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
    ]
    for headers, expected in refused:
        for path in ("/", "/control", "/trades.csv", f"{SOCKET}polling", "/_nicegui/x"):
            status, body, _ = answer(site, path, **headers)
            assert status == expected, (path, headers)
            assert b"USDT" not in body
        status, *_ = answer(site, f"{SOCKET}websocket", **UPGRADE, **headers)
        assert status == 403, headers
    own = {**good, "Origin": f"http://127.0.0.1:{site.port}"}
    assert answer(site, "/", **own)[0] == 200
    assert answer(site, f"{SOCKET}websocket", **UPGRADE, **own)[0] == 101
    assert answer(site, "/", Authorization=f"Bearer {site.look.partition('token=')[2]}")[0] == 200


def test_every_answer_forbids_frames_and_foreign_scripts(site):
    for path, headers in (("/", cookie(site, site.look)), ("/", {}), ("/healthz", {})):
        _, _, found = answer(site, path, **headers)
        assert "frame-ancestors 'none'" in found["content-security-policy"]
        assert found["x-content-type-options"] == "nosniff"


def test_no_address_leads_elsewhere(site):
    token = site.steer.partition("?")[2]
    for path in (
        "//evil.example",
        "/%5Cevil.example",
        "/%09/evil.example",
        "/%0d%0aset-cookie:a=b",
    ):
        status, _, found = answer(site, f"{path}?{token}")
        assert status == 303
        assert re.fullmatch(r"/[^/\\\s][^\\\s]*", found["location"]), found["location"]
        assert found.get_all("set-cookie") and len(found.get_all("set-cookie")) == 1
    assert "HttpOnly" in found["set-cookie"] and "SameSite=Strict" in found["set-cookie"]


# Failures.


def test_a_dead_keeper_is_shown_within_three_seconds_and_alive_again_after(site, visitor):
    visitor.open("/")
    keeper = site.pids()["keeper"]
    dead = visitor.page.get_by_test_id("dead")
    assert not dead.is_visible()
    with stopped(keeper):
        began = time.monotonic()
        dead.wait_for(state="visible", timeout=9_000)
        took = time.monotonic() - began
        assert "keeper" in visitor.text("dead")
        assert visitor.text("mode") == "UNKNOWN"
        visitor.picture("dead-keeper")
    dead.wait_for(state="hidden", timeout=10_000)
    assert took < 3.0
    assert site.pids()["keeper"] == keeper, "it was only stopped, not killed"
    wait_for(lambda: visitor.text("mode") == msg.RUN, 60)


def progress(site, bus):
    """(klines counted, quotes heard, orders granted, executions) so far."""
    progress.quotes = getattr(progress, "quotes", 0)
    for message in heard(bus, 0.1):
        if isinstance(message, msg.Quote):
            progress.quotes += 1
        elif message.service == "ingestor":
            progress.klines = message.counters["klines"]
    klines = getattr(progress, "klines", 0)
    return klines, progress.quotes, site.count("orders"), site.count("executions")


def trades_on(site, bus, seconds=120):
    """Market data, opinions, grants and fills go on, from now on."""
    begin = wait_for(lambda: (now := progress(site, bus))[0] and now, SAID_S)
    wait_for(
        lambda: all(now > then for now, then in zip(progress(site, bus), begin, strict=True)),
        seconds,
    )


def test_a_dashboard_that_hangs_or_is_killed_changes_nothing_about_trading(site, visitor):
    before = site.pids()
    addresses = site.addresses()
    with listening(site, quotes=("quote.",), market=("health.",)) as bus:
        trades_on(site, bus)
        with stopped(before["dashboard"]):
            trades_on(site, bus)
        assert site.pids() == before, "nobody was restarted"
        visitor.open("/")  # and it shows all of that at once
        agree(lambda: visitor.text("Executions"), lambda: str(site.count("executions")))
        visitor.page.goto("about:blank")
        os.kill(before["dashboard"], signal.SIGKILL)
        trades_on(site, bus)
    wait_for(lambda: site.pids().get("dashboard", 0) not in (0, before["dashboard"]), 30)
    after = site.pids()
    assert {n for n in before if before[n] != after.get(n)} == {"dashboard"}
    wait_for(lambda: site.p.status()["running"], 30)
    assert site.addresses() == addresses, "the tokens outlive it"
    wait_for(lambda: _serves(site), 60)
    assert visitor.open("/").startswith("Overview")  # with the cookie of before
    agree(lambda: visitor.text("Executions"), lambda: str(site.count("executions")))


def _serves(site):
    with contextlib.suppress(OSError):
        return answer(site, "/healthz")[0] == 200
    return False
