"""redact: texts without the secrets that may have got into them. Pure."""

import re
from collections.abc import Iterable
from urllib.parse import unquote

HIDDEN = "***"
SHORTEST = 6  # characters of a part of an address that is taken for a secret
URL = re.compile(r"\b([A-Za-z][A-Za-z0-9+.-]*)://\S+")
APART = re.compile(r"[/:@?&=#,;\s]+")


def secrets_of(keys: Iterable[str], urls: Iterable[str]) -> tuple[str, ...]:
    """What must not be read anywhere: keys, addresses and the parts of these, longest first."""
    found = {key for key in keys if key}
    for url in urls:
        address = url.partition("://")[2] or url
        parts = {part for part in APART.split(address) if len(part) >= SHORTEST}
        found |= {url, address, *parts, *map(unquote, parts)}
    return tuple(sorted(found - {""}, key=lambda secret: (-len(secret), secret)))


def redacted(text: str, secrets: Iterable[str]) -> str:
    """The text, with HIDDEN for each secret, and of every URL only its scheme."""
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    return URL.sub(lambda url: f"{url[1]}://{HIDDEN}", text)
