"""Real processes with a bad line between them and the exchange: a TCP proxy spoils it.

As in `test_process_rows` one pipeline lives through all tests, and each test ends healed: quiet,
ledger and exchange hold the same, entries are allowed, no rule was broken.
"""

import contextlib
from decimal import Decimal

import pytest

from shared import messages as msg
from tests.pipeline import LATE_S, Live, afresh, lifetime
from tests.proxy import Proxy

pytestmark = pytest.mark.xdist_group("process_network")
PRIVATE, TRADE, PUBLIC = "/v5/private", "/v5/trade", "/v5/public/linear"
CREATE = "/v5/order/create"
WHOLE = Decimal(20)
SOON_S = 15


@pytest.fixture(scope="module")
def running():
    live = Live(15)
    live.proxy = Proxy(live.p.port)
    live.p.env["BYBIT_REST_URL"] = f"http://127.0.0.1:{live.proxy.port}"
    live.p.env["BYBIT_STREAM_URL"] = f"ws://127.0.0.1:{live.proxy.port}"
    with contextlib.closing(live.proxy):
        yield from lifetime(live)


@pytest.fixture
def live(running):
    running.proxy.heal()
    yield from afresh(running)
    running.proxy.heal()


@pytest.fixture
def proxy(running):
    return running.proxy


def test_a_half_open_private_link_is_rebuilt(live, proxy):
    symbol, other = live.take(), live.take()
    name = live.rest(symbol)
    before = proxy.count(PRIVATE)
    proxy.freeze(PRIVATE)
    live.hit(symbol)
    lost = {"mode": msg.NO_ENTRY, "reason": "private stream lost"}
    live.until(lambda: live.said(msg.Mode, **lost), LATE_S)
    live.near(other)
    live.until(lambda: proxy.count(PRIVATE) > before, SOON_S)
    live.until(lambda: live.exits(symbol) == [(f"{name}x0", WHOLE)], SOON_S)
    assert live.sent("create", other) == []
    live.finish()
    live.fill(other)  # the new link is heard
    live.finish()


@pytest.mark.parametrize("after", [1, 200])
def test_a_link_that_is_cut_in_the_middle_of_a_frame_loses_nothing(live, proxy, after):
    """The private one in a push, the trade one in the answer to a create, the public in a kline."""
    filled, rests = live.take(), live.take()
    before = {path: proxy.count(path) for path in (PRIVATE, TRADE, PUBLIC)}
    name = live.rest(filled)
    proxy.cut(PRIVATE, after)
    live.hit(filled)
    live.until(lambda: live.exits(filled) == [(f"{name}x0", WHOLE)], LATE_S)
    live.finish()
    proxy.cut(TRADE, after)
    entry = live.rest(rests)
    live.until(lambda: proxy.count(TRADE) > before[TRADE], SOON_S)
    proxy.cut(PUBLIC, after)
    live.until(lambda: proxy.count(PUBLIC) > before[PUBLIC], SOON_S)
    live.hit(rests)
    live.until(lambda: live.exits(rests) == [(f"{entry}x0", WHOLE)], LATE_S)
    live.finish()
    assert proxy.count(PRIVATE) > before[PRIVATE]
    for symbol, one in ((filled, name), (rests, entry)):
        assert live.sent("create", symbol).count(one) == len(live.created(one)) == 1
        assert live.held(symbol) == WHOLE


def test_a_line_that_is_300_ms_late_delays_everything_and_breaks_nothing(live, proxy):
    filled, left, found = live.take(), live.take(), live.take()
    proxy.delay("", 0.3, jitter=0.1)
    names = [live.fill(filled), live.rest(left)]
    (request,) = live.said(msg.OrderRequest, order_link_id=names[0], outcome="accepted")
    assert request.answered_ns - request.decided_ns > 400_000_000  # there and back, 200 ms each
    live.away(left)
    live.until(lambda: live.outcome(names[1]) == "cancelled" and not live.entry(left), SOON_S)
    names.append(live.rest(found))
    assert {m.mode for m in live.said(msg.Mode)} <= {msg.RUN}  # late is not lost
    proxy.reset(PRIVATE)
    live.hit(found)
    live.until(lambda: live.exits(found) == [(f"{names[2]}x0", WHOLE)], LATE_S)
    live.finish()
    assert live.said(msg.OrderRequest, outcome="unknown") == []
    assert [len(live.created(name)) for name in names] == [1, 1, 1]
    assert [live.held(symbol) for symbol in (filled, left, found)] == [WHOLE, 0, WHOLE]


@pytest.mark.parametrize("route", ["socket", "rest"])
def test_a_create_that_the_line_duplicates_is_one_order(live, proxy, route):
    symbol = live.take()
    live.until(lambda: live.linked("router", "trade"), SOON_S)
    if route == "rest":
        proxy.refuse(TRADE)
        proxy.reset(TRADE)
        live.until(lambda: not live.linked("router", "trade"), SOON_S)
    proxy.twice(TRADE if route == "socket" else CREATE)
    before = proxy.doubled
    name = live.rest(symbol)
    assert proxy.doubled > before
    live.until(lambda: live.said(msg.OrderRequest, order_link_id=name, outcome="accepted"), SOON_S)
    assert len(live.said(msg.OrderRequest, order_link_id=name)) == 2  # the command, the answer
    assert len(live.created(name)) == 1
    live.hit(symbol)
    live.until(lambda: live.exits(symbol) == [(f"{name}x0", WHOLE)], SOON_S)
    proxy.heal()
    live.heal()
    live.settle(LATE_S)
    assert live.held(symbol) == WHOLE
    if route == "rest":  # the exchange cannot tell the line's double from a bot that sends twice
        assert [line.split(" ", 5)[5] for line in live.breaches()] == [f"{name} sent twice"]
    live.finish()
