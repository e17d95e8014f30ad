"""books: trades, equity and modes as pages show them, from ledgers that Store and Ledger wrote."""

import sqlite3
from array import array
from collections.abc import Iterator
from contextlib import closing
from decimal import Decimal
from pathlib import Path

import pytest

from services.dashboard.books import (
    NO_BOOKS,
    NO_SYMBOL,
    SHOWN_FILLS,
    SHOWN_LOTS,
    SHOWN_MODES,
    SHOWN_POINTS,
    SHOWN_TOUCHES,
    read,
    read_symbol,
    recent_lots,
    story,
)
from services.keeper.ledger import Caps, Change, Ledger
from services.keeper.store import Store
from services.report import excursions
from services.report.trades import DAY_MS, Point
from services.report.words import as_csv
from shared import messages as msg
from shared.records import Broken

SYMBOL, MINUTE = "AAAUSDT", 60_000
BAR = 100 * MINUTE
TODAY = 20_000 * DAY_MS
FEE = Decimal("0.1")
"""Of every fill here."""


class Account:
    """A keeper's ledger and its file, without the keeper: facts in, written as it writes them."""

    def __init__(self, run_dir: Path) -> None:
        self.store = Store(run_dir / "state.db", "paper-1", "a")
        self.ledger = Ledger(self.store.ledger_id, Caps(1_000, 500, 1_000), MINUTE)
        self._fills = self._modes = 0

    def write(self, change: Change) -> None:
        self.store.write(change, self.ledger.row)

    def grant(self, symbol: str = SYMBOL, side: str = "Buy", bar_ms: int = BAR) -> str:
        name = msg.entry_id(symbol, side, bar_ms)
        terms = (Decimal(100), Decimal(10), Decimal("0.5"), 0, 0)
        reason, change = self.ledger.grant(msg.Ask(name, symbol, side, bar_ms, *terms), msg.RUN)
        assert not reason
        self.write(change)
        return name

    def fill(self, name: str, price: int, qty: int, at_ms: int, maker: bool = True) -> None:
        """Of an entry or of an exit, by its id; and the order's own state."""
        self._fills += 1
        _, symbol, _, end = name.split("-")
        buys = (end[0] == "B") == (len(end) == 1)
        side = "Buy" if buys else "Sell"
        head = (f"exec-{self._fills}", name, f"id-{name}", symbol, side, "Trade")
        money = (Decimal(price), Decimal(qty), FEE, maker, at_ms)
        self.write(self.ledger.execute(msg.Execution(*head, *money)))

    def order(self, name: str, price: int, status: str, filled: int, at_ms: int) -> None:
        _, symbol, _, end = name.split("-")
        side = "Buy" if (end[0] == "B") == (len(end) == 1) else "Sell"
        head = (name, f"id-{name}", symbol, side, Decimal(price), Decimal(10), status)
        done = (Decimal(filled), Decimal(price), len(end) > 1, "EC_NoError")
        self.write(self.ledger.update(msg.OrderUpdate(*head, *done, BAR, at_ms)))

    def trade(self, bar_ms: int, leaves_at: int, symbol: str = SYMBOL, side: str = "Buy") -> str:
        """Ten at 100, and ten back two minutes later at a price: a closed lot."""
        name = self.grant(symbol, side, bar_ms)
        self.fill(name, 100, 10, bar_ms + 1_000)
        self.order(name, 100, "Filled", 10, bar_ms + 1_000)
        end = msg.exit_id(name, 0)
        self.order(end, leaves_at, "New", 0, bar_ms + 2_000)
        self.fill(end, leaves_at, 10, bar_ms + 2 * MINUTE)
        self.order(end, leaves_at, "Filled", 10, bar_ms + 2 * MINUTE)
        return name

    def mode(self, mode: str, reason: str, who: str, wall_ms: int) -> None:
        self._modes += 1
        said = msg.Mode((self.store.ledger_id, self._modes), mode, reason, ())
        self.store.mode(said, (mode, reason), who, wall_ms)

    def equity(self, usdt: str, wall_ms: int) -> None:
        self.store.equity(msg.Wallet(Decimal(usdt), Decimal(usdt), Decimal(usdt)), wall_ms)


@pytest.fixture
def account(tmp_path: Path) -> Iterator[Account]:
    made = Account(tmp_path)
    yield made
    made.store.close()


def test_without_a_ledger_what_is_known_stays(tmp_path: Path) -> None:
    assert read(tmp_path, NO_BOOKS) is NO_BOOKS
    assert read_symbol(tmp_path, SYMBOL) is NO_SYMBOL
    assert recent_lots(tmp_path, 0) == []
    assert list(tmp_path.iterdir()) == [], "looking makes no file"


def test_what_has_not_changed_is_the_same_object(account: Account, tmp_path: Path) -> None:
    empty = read(tmp_path, NO_BOOKS)
    assert empty is not NO_BOOKS and empty.trades == ()
    assert read(tmp_path, empty) is empty
    acts = (
        lambda: account.trade(BAR, 101),
        lambda: account.equity("1000", TODAY),
        lambda: account.mode(msg.RUN, "", "", TODAY),
        lambda: account.grant("BBBUSDT"),
    )
    known = empty
    for act in acts:
        act()
        now = read(tmp_path, known)
        assert now is not known and now.version != known.version
        assert read(tmp_path, now) is now
        known = now


def test_trades_and_their_sums_are_those_of_closed_lots(account: Account, tmp_path: Path) -> None:
    account.trade(BAR, 102)
    account.trade(BAR + 10 * MINUTE, 99, "BBBUSDT")
    account.trade(BAR + 20 * MINUTE, 97, "CCCUSDT", "Sell")
    opened = account.grant("DDDUSDT")
    account.fill(opened, 100, 4, BAR + 30 * MINUTE)
    books = read(tmp_path, NO_BOOKS)
    # 10 * (102 - 100), 10 * (99 - 100), 10 * (100 - 97), less two fees each
    profits = [Decimal("19.8"), Decimal("-10.2"), Decimal("29.8")]
    assert [(t.symbol, t.profit_usdt) for t in books.trades] == list(
        zip(("AAAUSDT", "BBBUSDT", "CCCUSDT"), profits, strict=True)
    )
    assert books.totals.profit_usdt == sum(profits) == Decimal("39.4")
    assert books.totals.fees_usdt == 6 * FEE
    assert (books.totals.closed, books.totals.won) == (3, 2)
    assert (books.statistics.wins, books.statistics.losses) == (2, 1)
    assert [trade.hold_ms for trade in books.trades] == [2 * MINUTE - 1_000] * 3


def test_funding_that_was_paid_is_positive(account: Account, tmp_path: Path) -> None:
    head = ("funding-1", "", "", SYMBOL, "Buy", "Funding", Decimal(100), Decimal(10))
    account.write(account.ledger.execute(msg.Execution(*head, Decimal("0.25"), False, BAR)))
    assert read(tmp_path, NO_BOOKS).funding_paid_usdt == Decimal("0.25")
    assert str(NO_BOOKS.funding_paid_usdt) == "0", "and nothing has no sign"


def test_totals_are_of_all_lots_however_few_are_shown(
    account: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.dashboard.books.MOST_TRADES", 3)
    assert NO_BOOKS.sums() == {}, "what was not read is not 0"
    books = NO_BOOKS
    for number in range(10):
        account.trade(BAR + number * 5 * MINUTE, 102 if number % 2 else 99)
        if number % 3:  # not at each change
            books = read(tmp_path, books)
    account.trade(BAR + 45 * MINUTE, 102, "BBBUSDT")  # closed in the same instant as another
    books = read(tmp_path, books)
    assert books.totals == read(tmp_path, NO_BOOKS).totals
    assert (books.totals.closed, books.totals.won) == (11, 6)
    assert books.totals.profit_usdt == 6 * Decimal("19.8") - 5 * Decimal("10.2")
    assert len(books.trades) <= 3


def test_equity_tells_drawdowns_and_its_top(account: Account, tmp_path: Path) -> None:
    for minute, usdt in enumerate(("1000", "1100", "990", "1045")):
        account.equity(usdt, TODAY + minute * MINUTE)
    books = read(tmp_path, NO_BOOKS)
    assert [point.equity for point in books.equity] == [1000.0, 1100.0, 990.0, 1045.0]
    assert books.top_usdt == 1100.0
    now = books.point(msg.Wallet(Decimal(935), *[Decimal(0)] * 2), TODAY + 5 * MINUTE)
    assert now == (TODAY + 5 * MINUTE, 935.0, pytest.approx(-15.0))  # 935 of 1100
    higher = books.point(msg.Wallet(Decimal(1200), *[Decimal(0)] * 2), TODAY + 5 * MINUTE)
    assert higher.drawdown_pct == 0.0
    assert books.worst_drawdown_pct == pytest.approx(10.0)  # 990 of 1100
    assert (NO_BOOKS.top_usdt, NO_BOOKS.worst_drawdown_pct) == (0, 0)
    empty = msg.Wallet(*[Decimal(0)] * 3)
    assert NO_BOOKS.point(empty, TODAY) == (TODAY, 0.0, 0.0)


def test_today_is_since_midnight_utc(
    account: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time_ns", lambda: (TODAY + 5 * MINUTE) * 1_000_000)
    now = Point(TODAY + 5 * MINUTE, 1020.0, 0.0)
    account.equity("900", TODAY - MINUTE)
    assert read(tmp_path, NO_BOOKS).today_usdt(now) is None
    account.equity("1000", TODAY)
    account.equity("1012.5", TODAY + MINUTE)
    books = read(tmp_path, NO_BOOKS)
    assert books.today_usdt(now) == 20.0
    tomorrow = now._replace(wall_ms=TODAY + DAY_MS)
    assert books.today_usdt(tomorrow) is None, "nothing was written down in it yet"


def test_a_long_curve_is_thinned_and_keeps_its_ends(account: Account, tmp_path: Path) -> None:
    count = SHOWN_POINTS + 100
    for minute in range(count):
        account.equity(str(1000 + minute % 7), TODAY + minute * MINUTE)
    points = read(tmp_path, NO_BOOKS).equity
    assert len(points) <= SHOWN_POINTS
    assert points[0].wall_ms == TODAY
    assert points[-1].wall_ms == TODAY + (count - 1) * MINUTE


def test_modes_are_the_newest_first_with_who_and_when(account: Account, tmp_path: Path) -> None:
    for number in range(SHOWN_MODES + 5):
        account.mode(msg.RUN, "", "", TODAY + number)
    account.mode(msg.REDUCE_ONLY, "operator", "Ada (dashboard)", TODAY + 10_000)
    modes = read(tmp_path, NO_BOOKS).modes
    assert len(modes) == SHOWN_MODES
    words = {"mode": "REDUCE_ONLY", "reason": "operator", "who": "Ada (dashboard)"}
    assert modes[0] == {"rowid": SHOWN_MODES + 6, **words, "wall_ms": TODAY + 10_000}
    assert modes[1]["wall_ms"] == TODAY + SHOWN_MODES + 4


def test_excursions_beside_the_ledger_are_shown(account: Account, tmp_path: Path) -> None:
    name = account.trade(BAR, 102)
    kept = excursions.Excursions(tmp_path / excursions.FILE, MINUTE)
    assert read(tmp_path, NO_BOOKS).trades[0].run_up_pct is None
    bars = array("d", 3 * (100.0, 104.0, 98.0, 101.0, 1.0)).tobytes()
    kept.take(msg.History(SYMBOL, BAR, bars), recent_lots(tmp_path, 0))
    (trade,) = read(tmp_path, NO_BOOKS).trades
    assert (trade.entry_id, trade.run_up_pct, trade.draw_down_pct) == (name, 4, -2)


def test_recent_lots_are_open_or_were_closed_since(account: Account, tmp_path: Path) -> None:
    early = account.trade(BAR, 101)
    late = account.trade(BAR + 10 * MINUTE, 101)
    opened = account.grant("BBBUSDT")
    account.fill(opened, 100, 1, BAR + 1)
    account.grant("CCCUSDT")  # nothing of it is filled: no lot yet
    names = [lot.entry_id for lot in recent_lots(tmp_path, BAR + 5 * MINUTE)]
    assert sorted(names) == sorted([late, opened])
    assert early in [lot.entry_id for lot in recent_lots(tmp_path, 0)]


def test_a_symbol_shows_only_its_own(account: Account, tmp_path: Path) -> None:
    mine, others = account.trade(BAR, 101), account.trade(BAR, 101, "BBBUSDT")
    account.store.outcome(msg.Touch(mine, SYMBOL, "Buy", BAR, "order"), final=False)
    account.store.outcome(msg.Touch(others, "BBBUSDT", "Buy", BAR, "order"), final=False)
    books = read_symbol(tmp_path, SYMBOL)
    assert [lot.entry_id for lot in books.lots] == [mine]
    assert set(books.orders) == {mine, msg.exit_id(mine, 0)}
    assert {execution.symbol for execution in books.executions} == {SYMBOL}
    assert books.touches == ({"bar_start_ms": BAR, "side": "Buy", "outcome": "order"},)
    assert read_symbol(tmp_path, "XUSDT") == NO_SYMBOL
    assert read_symbol(tmp_path, "' OR 1=1 --") == NO_SYMBOL


def test_a_symbol_shows_so_many_the_newest_first(account: Account, tmp_path: Path) -> None:
    bars = [BAR + number * 5 * MINUTE for number in range(SHOWN_LOTS + 90)]
    for bar_ms in bars:
        name = account.trade(bar_ms, 101)
        account.store.outcome(msg.Touch(name, SYMBOL, "Buy", bar_ms, "order"), final=False)
    books = read_symbol(tmp_path, SYMBOL)
    newest = bars[::-1]
    assert [lot.bar_start_ms for lot in books.lots] == newest[:SHOWN_LOTS]
    assert [row["bar_start_ms"] for row in books.touches] == newest[:SHOWN_TOUCHES]
    times = [execution.exec_time_ms for execution in books.executions]
    assert times == sorted(times, reverse=True) and len(times) == SHOWN_FILLS
    assert len(books.orders) == SHOWN_FILLS


def test_the_story_of_a_lot_is_told_in_order(account: Account, tmp_path: Path) -> None:
    name = account.grant()
    end = msg.exit_id(name, 0)
    account.fill(name, 100, 4, BAR + 1_000)
    account.order(name, 100, "PartiallyFilledCanceled", 4, BAR + 2_000)
    account.fill(end, 101, 4, BAR + 3_000, maker=False)
    account.order(end, 101, "Filled", 4, BAR + 3_000)
    other = account.trade(BAR + 10 * MINUTE, 90)  # another lot of the symbol has its own story
    later = account.grant(bar_ms=BAR + 20 * MINUTE)
    account.order(later, 100, "Cancelled", 0, BAR + 20 * MINUTE)
    books = read_symbol(tmp_path, SYMBOL)
    (lot,) = [lot for lot in books.lots if lot.entry_id == name]
    assert story(lot, books) == [
        (BAR, "bar of its entry: Buy, take profit 0.500 %"),
        (BAR + 1_000, "entry: Buy 4 @ 100 (maker, 0.1)"),
        (BAR + 2_000, "entry 10 @ 100 PartiallyFilledCanceled"),
        (BAR + 3_000, "exit 0: Sell 4 @ 101 (taker, 0.1)"),
        (BAR + 3_000, "closed: +3.800000 USDT after 0.2 fees"),  # 4 * 1 - 0.2
    ]
    assert {other, later} <= set(books.orders)


def test_the_story_of_an_open_lot_ends_with_what_rests(account: Account, tmp_path: Path) -> None:
    name = account.grant(side="Sell")
    account.fill(name, 100, 10, BAR + 1_000)
    account.order(name, 100, "Filled", 10, BAR + 1_000)
    account.order(msg.exit_id(name, 0), 99, "New", 0, BAR + 2_000)
    books = read_symbol(tmp_path, SYMBOL)
    told = [text for _, text in story(books.lots[0], books)]
    assert told[1:] == ["entry: Sell 10 @ 100 (maker, 0.1)", "exit 10 @ 99 New"]


def test_the_csv_has_every_field_of_every_trade(account: Account, tmp_path: Path) -> None:
    account.trade(BAR, 102)
    account.trade(BAR + 10 * MINUTE, 99, "BBBUSDT")
    head, *rows = as_csv(read(tmp_path, NO_BOOKS).trades).splitlines()
    assert head.startswith("entry_id,symbol,side,qty,entry_price,exit_price,")
    assert [row.split(",")[:6] for row in rows] == [
        [msg.entry_id(SYMBOL, "Buy", BAR), SYMBOL, "Buy", "10", "100", "102"],
        [msg.entry_id("BBBUSDT", "Buy", BAR + 10 * MINUTE), "BBBUSDT", "Buy", "10", "100", "99"],
    ]


def test_looking_changes_nothing_and_keeps_nobody_from_writing(
    account: Account, tmp_path: Path
) -> None:
    account.trade(BAR, 102)
    with closing(sqlite3.connect(tmp_path / "state.db")) as db:
        before = "\n".join(db.iterdump())
    for _ in range(3):
        read(tmp_path, NO_BOOKS)
        read_symbol(tmp_path, SYMBOL)
        recent_lots(tmp_path, 0)
        account.equity("1000", TODAY)  # would raise Unwritable after 20 ms
    with closing(sqlite3.connect(tmp_path / "state.db")) as db:
        db.execute("DELETE FROM equity")
        assert "\n".join(db.iterdump()) == before


def test_what_is_no_ledger_is_broken(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_bytes(b"no database at all, but long enough to be looked into")
    for look in (
        lambda: read(tmp_path, NO_BOOKS),
        lambda: read_symbol(tmp_path, SYMBOL),
        lambda: recent_lots(tmp_path, 0),
    ):
        with pytest.raises(Broken):
            look()


def test_the_story_names_a_stop_loss_which_has_no_id_of_ours(account: Account) -> None:
    name = account.grant()
    stop = msg.Order(
        *(msg.stop_id(name), "made-by-them", SYMBOL, "Sell", msg.STOP, Decimal(95), Decimal(4)),
        *(Decimal(4), "Filled", BAR, Decimal("0.5"), BAR + 2_000),
    )
    sold = msg.Execution(
        *("s1", "", "made-by-them", SYMBOL, "Sell", "Trade", Decimal(95), Decimal(4)),
        *(Decimal("0.1"), False, BAR + 2_000),
    )
    lot = account.ledger.lots[name]._replace(bought=Decimal(4), cost=Decimal(400))
    told = story(lot, NO_SYMBOL._replace(orders={msg.stop_id(name): stop}, executions=(sold,)))
    assert (BAR + 2_000, "stop loss: Sell 4 @ 95 (taker, 0.1)") in told
