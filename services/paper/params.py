"""params: reading what a client asked for. Pure; what cannot be read is refused as Bybit would."""

from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

Params = Mapping[str, Any]
SMALLEST, LARGEST = Decimal("1e-15"), Decimal("1e15")
LONGEST = 40  # characters of a number; longer ones are nobody's price


class Refused(Exception):
    """Bybit's refusal: a retCode and a retMsg."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(code, text)
        self.code, self.text = code, text


def invalid(name: str) -> Refused:
    """The parameter error of one field."""
    return Refused(10001, f"params error: {name} invalid")


def number(params: Params, name: str, step: Decimal | None = None) -> Decimal:
    """A positive number, from text or a number; a multiple of `step`, and written as one.

    Raises Refused.
    """
    text = str(params.get(name))
    try:
        value = Decimal(text if len(text) <= LONGEST else "")
    except InvalidOperation:
        raise invalid(name) from None
    if not value.is_finite() or not SMALLEST <= value < LARGEST:
        raise invalid(name)
    if step is None:
        return value
    if value % step:
        raise invalid(name)
    return value // step * step


def whole(params: Params, name: str, default: int) -> int:
    """A whole number; `default` where there is none. Raises Refused."""
    text = str(params.get(name, ""))
    if text in ("", "None"):
        return default
    if len(text) > 19 or not text.removeprefix("-").isdecimal():
        raise invalid(name)
    return int(text)


def choice(params: Params, name: str, allowed: tuple[str, ...], default: str = "") -> str:
    """One of the words; raises Refused on another, or on none where there is no default."""
    value = params.get(name) or default
    if not isinstance(value, str) or value not in allowed:
        raise invalid(name)
    return value


def text(params: Params, name: str) -> str:
    """A text; empty where there is none."""
    value = params.get(name)
    return str(value) if isinstance(value, str | int) else ""
