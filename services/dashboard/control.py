"""control: an operator's wishes, each asked of the keeper, which writes down who asked and when."""

from collections.abc import Callable
from functools import partial

from nicegui import run, ui

from services.dashboard.desk import Desk
from services.dashboard.frame import Grid, column, every, frame, moment, panel
from services.dashboard.guard import CONTROL, LOGIN
from services.ops.ops import GONE, Unable, ask_keeper, scaled
from shared import messages as msg
from shared.bus import MAX_SLOTS

READ_S, SAY_S = 2.0, 0.3
NOTED = ": "  # in the journal, between who did something and what it was
MOST_SHARDS = MAX_SLOTS // 2
WISHES = {
    "Pause": (msg.REDUCE_ONLY, "cancel entries, open nothing new; exits stay"),
    "Resume": (msg.RUN, "lift what an operator, a loss or a crash loop has set"),
    "Cancel all": (msg.CANCEL_ALL, "cancel every order of ours, exits too"),
    "Flatten": (msg.FLATTEN, "cancel entries, close every lot 1 % beyond the last price"),
}
TYPED = {msg.CANCEL_ALL, msg.FLATTEN}  # what is asked for by typing its name


def build(desk: Desk, rights: str) -> None:
    """Build the page; without the token to steer it only shows what was asked for before."""
    frame(desk, "Control")
    if rights == CONTROL:
        _wishes(desk)
    else:
        with panel("You may look, not steer", "w-full"):
            ui.label("make up prints the address to steer with. Or enter its token here:")
            ui.html(
                f'<form method="post" action="{LOGIN}"><input name="token" type="password" '
                'aria-label="token" class="bg-gray-800 p-1"> '
                '<button class="bg-blue-800 px-3 py-1">Enter</button></form>',
                sanitize=False,
            )
    with panel("What was asked for, and every change of mode", "w-full"):
        journal = Grid("row", _columns(), "24rem", on_top=True)
    every(READ_S, lambda: journal.show([_row(row) for row in desk.books.modes]))


def _wishes(desk: Desk) -> None:
    who = ui.input("your name, for the journal", value="dashboard").classes("w-72")
    who.props("data-testid=who")
    with panel("Mode", "w-full"):
        typed = ui.input("to confirm, type FLATTEN or CANCEL_ALL; RUN to lift a stop").classes(
            "w-[32rem]"
        )
        typed.props("data-testid=typed")
        for name, (mode, meaning) in WISHES.items():
            asks = _asks(desk, mode, lambda: _signature(who.value), typed)
            with ui.row().classes("items-center gap-4"):
                button = ui.button(
                    name, on_click=asks, color="red-9" if mode in TYPED else "primary"
                )
                button.classes("w-36").props(f"data-testid=ask-{mode}")
                ui.label(meaning).classes("text-sm text-gray-400")
    with panel("Signal workers", "w-full"):
        count = ui.number("shards", value=desk.watch.shards() or 1, min=1, max=MOST_SHARDS, step=1)
        count.classes("w-36").props("data-testid=shards")
        said = [""]  # by a thread, which touches no page

        async def scale() -> None:
            wanted, name = int(count.value or 0), _signature(who.value)
            say = partial(said.__setitem__, 0)
            button.disable()  # one generation at a time
            try:
                say(await run.io_bound(scaled, desk.settings, wanted, name, say))
            except (Unable, ValueError, *GONE) as error:
                say(f"not done: {error}")
            finally:
                button.enable()

        with ui.row().classes("items-center gap-4"):
            button = ui.button("Scale", on_click=scale).classes("w-36").props("data-testid=scale")
            progress = ui.label("a new generation takes over; no symbol misses a bar")
            progress.classes("text-sm text-gray-400").props("data-testid=scaling")
        every(SAY_S, lambda: progress.set_text(said[0] or progress.text))


def _asks(desk: Desk, mode: str, who: Callable[[], str], typed: ui.input) -> Callable[..., object]:
    async def ask() -> None:
        word = (typed.value or "").strip()
        typed.set_value("")  # once typed, once asked
        if _must_type(mode, desk.mode()) and word != mode:
            ui.notify(f"type {mode} into the field first", type="warning")
            return
        answer = await run.io_bound(ask_keeper, desk.settings, msg.Control(mode, who()))
        if answer is None:
            ui.notify("the keeper does not answer: nothing was changed", type="negative")
        else:
            ui.notify(f"mode {answer.mode} {answer.reason}".rstrip(), type="positive")

    return ask


def _must_type(wish: str, now: msg.Mode | None) -> bool:
    """Whether a wish has to be typed: those two, and all that lifts what is more than a pause."""
    order = msg.MODES.index
    lifts = now is None or order(wish) < order(now.mode)
    return wish in TYPED or (lifts and not (now and _is_pause(now)))


def _is_pause(mode: msg.Mode) -> bool:
    """A person's pause, or what goes by itself."""
    by_itself = msg.MODES.index(mode.mode) <= msg.MODES.index(msg.NO_ENTRY)
    return by_itself or (mode.mode, mode.reason) == (msg.REDUCE_ONLY, "operator")


def _signature(name: str) -> str:
    """Whoever it was, it came from here."""
    given = " ".join(name.replace(":", " ").split())[:40]
    return f"{given} (dashboard)" if given not in ("", "dashboard") else "dashboard"


def _columns() -> list[dict[str, object]]:
    return [
        column("time", "UTC", 150),
        column("mode", "mode", 130),
        column("reason", "why", 300, flex=1),
        column("who", "who", 260),
    ]


def _row(row: dict[str, object]) -> dict[str, object]:
    who, _, note = str(row["who"]).partition(NOTED)
    return {
        "row": row["rowid"],
        "time": moment(int(str(row["wall_ms"]))),
        "mode": row["mode"],
        "reason": note or row["reason"],
        "who": who or "the bot",
    }
