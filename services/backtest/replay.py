"""replay: the whole pipeline and the paper exchange in one thread, with a list for a wire.

The same actors and the same exchange as the processes run, on simulated time: one market point,
then every message that follows from it, then the next. Nothing is late unless a fault says so: what
this gives is what the strategy does, and the processes must come to the same.
"""

from collections import deque
from collections.abc import Callable
from typing import Any

from services.backtest.wire import Door
from services.ingestor.actor import Ingestor
from services.keeper.actor import Keeper
from services.paper.gate import Now
from services.paper.market import Feed
from services.paper.ticker import Point, Ticker
from services.paper.venue import Venue
from services.router.actor import Router
from services.worker.actor import Worker
from shared import bybit
from shared import messages as msg
from shared.actor import Actor
from shared.bus import STREAMS
from shared.settings import Settings

TICK_MS = 1_000
NS = 1_000_000


class Replay:
    """One run. `heard` gets every message that is published, in order.

    `frames` lets the public market go through websocket frames, too, so that faults can strike
    it; without it klines reach the ingestor as they are made, which is three times as fast.
    """

    def __init__(
        self,
        settings: Settings,
        feed: Feed,
        start_ms: int,
        heard: Callable[[Any], None] | None = None,
        frames: bool = False,
    ) -> None:
        self.settings = settings.model_copy(update={"PAPER_ACK_MS": 0.0})
        self.ticker = Ticker(feed)
        self.ticker.warm_up(start_ms)
        self._now_ms = self._next_tick_ms = start_ms
        self.venue = Venue(self.settings, self.ticker)
        self.venue.restored(start_ms)
        self._frames, self._heard = frames, heard
        self._wire: deque[tuple[Actor, Any]] = deque()
        self._doors: dict[Actor, Door] = {}
        self.keeper, self.ingestor = (
            Keeper(self.settings, ":memory:", self._wall_ms),
            Ingestor(self.settings),
        )
        self.router = Router(self.settings)
        worker = Worker(self.settings, shard=(0, 1))
        self._actors: list[Actor] = [self.keeper, self.ingestor, worker, self.router]
        for actor in self._actors:
            self._begin(actor)
        if not frames:
            self._wire.append((self.ingestor, msg.Link("public-0", True)))
        self.settle()

    def run(self, until_ms: int) -> None:
        """Market time to `until_ms`, or to the end of the feed."""
        for point in self.ticker.run(until_ms):
            if point is not None:
                self._advance(point.ts_ms)
            self._now_ms = max(self._now_ms, self.ticker.minute_ms)
            self.venue.step(point, self.now())
            self.settle()  # what the account knows comes before what the market shows
            if not self._frames:
                self._show(point)
        self._advance(until_ms)

    def now(self) -> Now:
        """This moment; all clocks are the market's."""
        return self.venue.at(self._now_ms, self._now_ms, self._now_ms / 1000)

    def _wall_ms(self) -> int:
        return self._now_ms

    def _show(self, point: Point | None) -> None:
        """Klines to the ingestor: of one symbol, or of all where a minute has closed."""
        for which in self.ticker.just_closed if point is None else (point.which,):
            forming = self.ticker.forming[which]
            if forming is not None:
                symbol = self.ticker.listings[which].symbol
                row = self.ticker.kline(which, forming) | {"symbol": symbol}
                row["ts"] = row["timestamp"]
                self._wire.append((self.ingestor, bybit.read(msg.Kline, row, self._now_ns)))
                self.settle()

    def _begin(self, actor: Actor) -> None:
        """Give an actor its door and start it."""
        if actor.links:
            self._doors[actor] = Door(self.settings, self.venue, actor.links, self.local)
        self._send(actor, actor.start(self._now_ns))

    def local(self) -> Now:
        """This moment by the bot's own clocks, which a fault of the exchange's does not move."""
        return Now(self._now_ms, self._now_ms, self._now_ms / 1000)

    @property
    def _now_ns(self) -> int:
        return self._now_ms * NS

    def _advance(self, to_ms: int) -> None:
        """Ticks of all actors up to a moment."""
        while self._next_tick_ms <= to_ms:
            self._now_ms = self._next_tick_ms
            self.venue.keep_up(self.now())
            self.venue.topics.catch_up(self._now_ms)
            for actor in self._actors:
                self._send(actor, actor.tick(self._now_ns))
                self._publish(actor.says, _health(actor))
                self.settle()
            self._next_tick_ms += TICK_MS
        self._now_ms = max(self._now_ms, to_ms)

    def settle(self) -> None:
        """Deliver until nothing is left: the private stream first, then the wire."""
        now = self.local()
        while True:
            for actor, door in self._doors.items():
                self._wire += [(actor, message) for message in door.poll(now)]
            if not self._wire:
                return
            while self._wire:
                actor, message = self._wire.popleft()
                self._send(actor, actor.handle(message, self._now_ns))

    def _send(self, sender: Actor, messages: list[Any]) -> None:
        for message in messages:
            door = self._doors.get(sender) if isinstance(message, Door.takes) else None
            if door and (self._frames or not isinstance(message, msg.Subscribe)):
                door.send(message)
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


def _health(actor: Actor) -> msg.Health:
    head = (actor.service, 0, 0, actor.ready, actor.note, actor.shard, 0)
    return msg.Health(*head, dict(actor.counters), dict(actor.ages_ms), 0, 0, "")


def _asked(sender: Actor, message: Any) -> str:
    found = (name for name in sender.asks if type(message) in STREAMS[name].carries)
    return next(found, "")
