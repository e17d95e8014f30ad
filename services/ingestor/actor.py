"""ingestor: the exchange's public data in, klines out. Owns the universe and the last 300 bars."""

from typing import Any, ClassVar

from services.ingestor.feed import Feed
from shared import messages as msg
from shared.actor import Actor
from shared.settings import Settings, WrongSetting

CHANGED = {10001, 30228, 110003, 110023, 110066, 110074, 110094}  # grid, status, minimum
PARTLY_NS = 60_000_000_000  # before topics that the exchange refused are tried again
DOUBT_NS = 10_000_000_000  # between two looks because of refusals
REFRESH_NS = 3_600_000_000_000  # Bybit lists, delists and changes maxima during the day


class Ingestor(Actor):
    """Never trades, never sees the account."""

    service = "ingestor"
    hears: ClassVar[dict[str, tuple[str, ...]]] = {"commands": ("orderrequest.",)}
    says = "market"
    answers = ("history", "instruments")
    links: ClassVar[tuple[str, ...]] = ("public",)

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._feed = Feed(settings.interval_ms)
        self.counters = self._feed.counters
        self._only, self._without = settings.names("SYMBOLS"), settings.names("EXCLUDE_SYMBOLS")
        self._types = settings.names("SYMBOL_TYPES")
        self._topic = f"kline.{settings.INTERVAL}."
        self._instruments: dict[str, msg.Instrument] = {}
        self._followed: set[str] = set()
        self._unlisted: list[str] = []  # of SYMBOLS
        self._links: dict[str, bool] = {}
        self._refreshed_ns = self._partly_ns = 0

    def start(self, now_ns: int) -> list[msg.Message]:
        """Ask for the universe; all else follows from its answer."""
        self._refreshed_ns = now_ns
        return [msg.Fetch("instruments")]

    def handle(self, message: Any, now_ns: int) -> list[msg.Message]:
        """A push, a page of bars, the universe, or the state of a socket."""
        if isinstance(message, msg.Kline):
            self.counters["klines"] += 1
            return list(self._feed.push(message, now_ns))
        if isinstance(message, msg.OrderRequest):
            return self._doubted(message, now_ns)
        if isinstance(message, msg.Link):
            self._links[message.name] = message.up and not message.reason
            if message.up and message.reason:
                self._partly_ns = now_ns
        elif isinstance(message, msg.Fetched) and message.ask.what == "klines":
            return self._bars(message, now_ns)
        elif isinstance(message, msg.Fetched):
            return self._universe(message, now_ns)
        return []

    def answer(self, request: Any, now_ns: int) -> list[msg.Message]:
        """History of one symbol, or the universe."""
        if isinstance(request, msg.HistoryAsk):
            return [self._feed.history(request.symbol)]
        return [msg.Instruments(tuple(self._instruments.values()))]

    def tick(self, now_ns: int) -> list[msg.Message]:
        """Ask for what is missing; refresh the universe hourly, or at once while there is none."""
        asks: list[msg.Message] = [msg.Fetch("klines", *gap) for gap in self._feed.missing(now_ns)]
        if self._partly_ns and now_ns - self._partly_ns >= PARTLY_NS:
            self._partly_ns = 0
            asks.append(self._subscription())
        if now_ns - self._refreshed_ns >= REFRESH_NS:
            self._refreshed_ns = now_ns
            asks.append(msg.Fetch("instruments"))
        filled, total = self._feed.filled_count(), len(self._followed)
        self.counters["silent"] = int(self._feed.silent(now_ns))
        self.ages_ms["feed"] = self._feed.oldest_ms(now_ns)
        self.ready = bool(total) and filled == total and all(self._links.values() or [False])
        unlisted = f", not traded: {', '.join(self._unlisted)}" if self._unlisted else ""
        self.note = f"{filled}/{total} symbols{unlisted}"
        return asks

    def _doubted(self, request: msg.OrderRequest, now_ns: int) -> list[msg.Message]:
        """A refusal that an instrument which has changed would explain: look at them again."""
        changed = request.outcome == "refused" and request.ret_code in CHANGED
        if not changed or now_ns - self._refreshed_ns < DOUBT_NS:
            return []
        self._refreshed_ns = now_ns
        return [msg.Fetch("instruments")]

    def _bars(self, fetched: msg.Fetched, now_ns: int) -> list[msg.Message]:
        if fetched.error:
            self.counters["fetch_errors"] += 1
            self._feed.failed(fetched.ask.symbol, now_ns)
            return []
        return list(self._feed.fill(fetched.ask.symbol, fetched.rows))

    def _universe(self, fetched: msg.Fetched, now_ns: int) -> list[msg.Message]:
        if fetched.error or not fetched.rows:  # an exchange without symbols is an error, too
            self.counters["fetch_errors"] += 1
            self._refreshed_ns = now_ns - (0 if self._instruments else REFRESH_NS)
            return []
        self._unlisted = sorted(set(self._only) - {row.symbol for row in fetched.rows})
        if not self._instruments:
            self._judge(fetched.rows)
        followed = {row.symbol for row in fetched.rows if self._wanted(row)}
        found = {
            row.symbol: row if row.symbol in followed else row._replace(status="Excluded")
            for row in fetched.rows
        }
        changed = [row for symbol, row in found.items() if self._instruments.get(symbol) != row]
        listed, self._followed = followed != self._followed, followed
        self._instruments = found
        self._feed.universe(sorted(followed))
        asks: list[msg.Message] = [msg.Fetch("klines", *gap) for gap in self._feed.missing(now_ns)]
        if listed:
            asks.append(self._subscription())
        return [*changed, *asks]

    def _judge(self, rows: tuple[msg.Instrument, ...]) -> None:
        """Raises WrongSetting where the settings can never leave a symbol of the first universe."""
        if self._unlisted and set(self._unlisted) == set(self._only):
            raise WrongSetting(f"SYMBOLS: not traded on this exchange: {', '.join(self._unlisted)}")
        if not any(self._meant(row) for row in rows):
            names = "SYMBOL_TYPES, SYMBOLS, EXCLUDE_SYMBOLS"
            raise WrongSetting(f"{names}: leave no symbol of {len(rows)}")

    def _subscription(self) -> msg.Subscribe:
        self._links.clear()  # what becomes of the old ones is no longer said
        return msg.Subscribe(tuple(self._topic + symbol for symbol in sorted(self._followed)))

    def _wanted(self, row: msg.Instrument) -> bool:
        return self._meant(row) and row.status == "Trading"

    def _meant(self, row: msg.Instrument) -> bool:
        """By the settings, whatever the exchange does with it now."""
        if self._only and row.symbol not in self._only:
            return False
        return row.symbol not in self._without and row.symbol_type in self._types
