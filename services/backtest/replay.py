"""replay: the whole pipeline and the paper exchange in one thread, with a list for a wire.

The same actors as the processes run, on simulated time: one market point, then every message that
follows from it, then the next. Nothing is lost, nothing is late: what this gives is what the
strategy does, and the processes must come to the same.
"""

from collections import deque
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Any

from services.ingestor.actor import Ingestor
from services.keeper.actor import Keeper
from services.paper.market import MINUTE_MS, Feed
from services.paper.matching import Matching
from services.paper.params import Refused
from services.paper.ticker import Ticker
from services.router.actor import Router
from services.worker.actor import Worker
from shared import bybit
from shared import messages as msg
from shared.actor import Actor
from shared.bus import STREAMS
from shared.settings import Settings

TICK_MS = 1_000
NS = 1_000_000
NO_HEALTH: tuple[Any, ...] = (
    0,
    0,
    True,
    "",
    "",
    0,
    {},
    {},
    0,
    0,
    "",
)  # that an actor speaks is all that counts


class Exchange:
    """The door of all actors: the paper exchange's own cores, called instead of connected to."""

    takes = (msg.Subscribe, msg.Fetch, msg.OrderRequest)

    def __init__(self, settings: Settings, ticker: Ticker) -> None:
        self.ticker = ticker
        self.names = [listing.symbol for listing in ticker.listings]
        self.matching = Matching(
            *(ticker.listings, settings.PAPER_BALANCE_USDT, settings.PAPER_SEED),
            spread=settings.PAPER_BOOK == "full",
        )
        for index, listing in enumerate(ticker.listings):
            self.matching.start(listing.symbol, ticker.last[index] * listing.tick_size)
        self.now_ms = 0

    def kline(self, index: int) -> msg.Kline:
        """The forming kline of one symbol, as a client would read it."""
        row = self.ticker.kline(index, self.ticker.forming[index])  # type: ignore[arg-type]
        prices = [float(row[name]) for name in ("open", "high", "low", "close")]
        volumes = [float(row[name]) for name in ("volume", "turnover")]
        stamps = (row["confirm"], row["timestamp"], self.now_ms * NS)
        return msg.Kline._make((self.names[index], row["start"], *prices, *volumes, *stamps))

    def order(self, request: msg.OrderRequest) -> msg.OrderRequest:
        """Create, amend or cancel, answered at once."""
        verb = getattr(self.matching, request.action)
        try:
            verb(bybit.params_of(request), self.now_ms)
        except Refused as refused:
            return bybit.answered(request, refused.code, refused.text, None)
        return bybit.answered(request, 0, "", None)

    def fetch(self, ask: msg.Fetch) -> msg.Fetched:
        """The snapshots that REST would bring."""
        rows: Iterable[Any] = ()
        m = self.matching
        if ask.what == "instruments":
            rows = [_instrument(listing) for listing in self.ticker.listings]
        elif ask.what == "klines":
            bars = self.ticker.bars(self.names.index(ask.symbol), ask.start_ms, 2**62, 301)
            rows = [bybit.bar_of(ask.symbol, MINUTE_MS, row) for row in reversed(bars)]
        elif ask.what == "orders":
            rows = [bybit.read(msg.OrderUpdate, order.row()) for order in m.open_orders()]
        elif ask.what == "order":
            order = m.find({"orderLinkId": ask.order_link_id})
            rows = [bybit.read(msg.OrderUpdate, order.row())] if order else []
        elif ask.what == "executions":
            recent = [row for row in m.executions[-1000:] if int(row["execTime"]) >= ask.start_ms]
            rows = [bybit.read(msg.Execution, row) for row in reversed(recent)]
        elif ask.what == "positions":
            held = [symbol for symbol, p in m.wallet.positions.items() if p.size]
            rows = [bybit.read(msg.Holding, m.position_row(symbol)) for symbol in held]
        elif ask.what == "wallet":
            rows = [bybit.read(msg.Wallet, m.wallet_row())]
        return msg.Fetched(ask, tuple(rows))


class Replay:
    """One run. `heard` gets every message that is published, in order."""

    def __init__(
        self,
        settings: Settings,
        feed: Feed,
        start_ms: int,
        heard: Callable[[Any], None] | None = None,
    ) -> None:
        ticker = Ticker(feed)
        ticker.warm_up(start_ms)
        self.exchange = Exchange(settings, ticker)
        self.exchange.now_ms = self._now_ms = start_ms
        self.keeper = Keeper(settings, ":memory:")
        self.ingestor, self.router = Ingestor(settings), Router(settings)
        self._actors: list[Actor] = [
            self.keeper,
            self.ingestor,
            Worker(settings, shard=(0, 1)),
            self.router,
        ]
        self._wire: deque[tuple[Actor, Any]] = deque()
        self._heard = heard
        links = ((self.keeper, "private"), (self.ingestor, "public-0"), (self.router, "trade"))
        for actor in self._actors:
            self._send(actor, actor.start(self._now_ns))
        for linked, name in links:
            self._wire.append((linked, msg.Link(name, True)))
        self._settle()
        self._next_tick_ms = start_ms

    def run(self, until_ms: int) -> None:
        """Market time to `until_ms`, or to the end of the feed."""
        ticker = self.exchange.ticker
        for point in ticker.run(until_ms):
            if point is None:  # a minute closed: every symbol's last push says so
                pushed: Iterable[int] = range(len(ticker.listings))
            else:
                self._advance(point.ts_ms)
                listing = ticker.listings[point.which]
                qty = listing.qty_step * int(point.volume / float(listing.qty_step))
                price = point.ticks * listing.tick_size
                self.exchange.matching.trade(listing.symbol, price, qty, point.ts_ms)
                self._settle()  # what the account knows comes before what the market shows
                pushed = (point.which,)
            for which in pushed:
                self._wire.append((self.ingestor, self.exchange.kline(which)))
                self._settle()

    @property
    def _now_ns(self) -> int:
        return self._now_ms * NS

    def _advance(self, to_ms: int) -> None:
        """Ticks of all actors up to a moment."""
        while self._next_tick_ms <= to_ms:
            self._now_ms = self.exchange.now_ms = self._next_tick_ms
            for actor in self._actors:
                self._send(actor, actor.tick(self._now_ns))
                self._publish(actor.says, msg.Health(actor.service, *NO_HEALTH))
                self._settle()
            self._next_tick_ms += TICK_MS
        self._now_ms = self.exchange.now_ms = to_ms

    def _settle(self) -> None:
        """Deliver until nothing is left: the private stream first, then the wire."""
        while True:
            for topic, row in self.exchange.matching.take_pushes():
                if kind := bybit.PRIVATE_TOPICS.get(topic):
                    self._wire.append((self.keeper, bybit.read(kind, row)))
            if not self._wire:
                return
            actor, message = self._wire.popleft()
            self._send(actor, actor.handle(message, self._now_ns))

    def _send(self, sender: Actor, messages: list[Any]) -> None:
        for message in messages:
            if isinstance(message, msg.OrderRequest) and not message.outcome:
                self._wire.append((sender, self.exchange.order(message)))
            elif isinstance(message, msg.Fetch):
                self._wire.append((sender, self.exchange.fetch(message)))
            if type(message) in STREAMS[sender.says].carries:
                self._publish(sender.says, message)
            elif stream := _asked(sender, message):
                self._ask(sender, stream, message)

    def _publish(self, stream: str, message: Any) -> None:
        if self._heard:
            self._heard(message)
        topic = msg.topic(message).decode()
        for actor in self._actors:
            if topic.startswith(actor.hears.get(stream, ("\0",))):
                self._wire.append((actor, message))

    def _ask(self, sender: Actor, stream: str, message: Any) -> None:
        owner = next(actor for actor in self._actors if stream in actor.answers)
        carried = STREAMS[stream].carries
        for said in owner.answer(message, self._now_ns):
            if type(said) in carried:
                self._wire.append((sender, said))
            else:
                self._publish(owner.says, said)


def _asked(sender: Actor, message: Any) -> str:
    found = (name for name in sender.asks if type(message) in STREAMS[name].carries)
    return next(found, "")


def _instrument(listing: Any) -> msg.Instrument:
    return msg.Instrument(
        listing.symbol,
        listing.tick_size,
        listing.qty_step,
        listing.min_order_qty,
        listing.max_order_qty,
        Decimal(5),
        "Trading",
        listing.funding_interval_min,
    )
