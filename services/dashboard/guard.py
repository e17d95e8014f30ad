"""guard: who may see a page and who may steer. An ASGI layer in front of everything, sockets too.

A page on loopback is reachable by every page that the owner's browser has open, and by every user
of the machine. So: only known Host names (a foreign name that resolves to loopback is refused),
no foreign Origin, and a token, which becomes a cookie that no script reads.
"""

import secrets
from collections.abc import Iterable, MutableMapping
from hmac import compare_digest
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

VIEW, CONTROL = "view", "control"
OPEN_PATHS = {"/healthz"}
LOGIN = "/login"
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; frame-ancestors 'none'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:"
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"same-origin"),
)
ASK = """<!doctype html><title>Deviation Magnet</title>
<body style="font-family:sans-serif;margin:4em"><h1>A token is needed</h1>
<p><code>make up</code> prints the address that holds it.</p>
<form method="post" action="/login"><input name="token" type="password" autofocus
aria-label="token">
<button>Enter</button></form>"""

Scope = MutableMapping[str, Any]


class Tokens(NamedTuple):
    """One to look, one to steer, too. `fresh` makes a pair."""

    view: str
    control: str

    @classmethod
    def fresh(cls) -> "Tokens":
        """256 bits each."""
        return cls(secrets.token_urlsafe(32), secrets.token_urlsafe(32))

    def rights(self, token: str) -> str:
        """VIEW, CONTROL, or empty."""
        given = token.encode(errors="replace")
        if not given:
            return ""
        if compare_digest(given, self.control.encode()):
            return CONTROL
        return VIEW if compare_digest(given, self.view.encode()) else ""


class Guard:
    """Wraps an ASGI app. What gets through has `scope["rights"]`: VIEW or CONTROL."""

    def __init__(self, app: Any, tokens: Tokens, port: int) -> None:
        self._app, self._tokens, self._cookie = app, tokens, f"dm-{port}"
        self._hosts = {f"{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]")}

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Pass it on, answer it, or refuse it."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        origin = headers.get("origin", "")
        if headers.get("host") not in self._hosts:
            await _refuse(scope, send, 421, "this page has another name")
        elif origin and _host(origin) not in self._hosts:
            await _refuse(scope, send, 403, "asked for by another page")
        elif scope["type"] == "http" and scope["path"] == LOGIN and scope["method"] == "POST":
            await self._enter(send, await _form_token(receive), _page(headers))
        elif scope["type"] == "http" and (token := _query_token(scope)) is not None:
            await self._enter(send, token, _without_token(scope))
        else:
            scope["rights"] = self._tokens.rights(self._token(headers))
            if scope["rights"] or scope["path"] in OPEN_PATHS:
                await self._app(scope, receive, _with_headers(send))
            else:
                await _refuse(scope, send, 401, ASK)

    def _token(self, headers: dict[str, str]) -> str:
        """From the cookie, or as `Authorization: Bearer`, as Prometheus sends it."""
        kind, _, token = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            return token.strip()
        pairs = (pair.strip().partition("=") for pair in headers.get("cookie", "").split(";"))
        return next((value for name, _, value in pairs if name == self._cookie), "")

    async def _enter(self, send: Any, token: str, to: str) -> None:
        """The token was right: as a cookie, and on to the page; or ask again."""
        if not self._tokens.rights(token):
            await _answer(send, 401, ASK, ())
            return
        cookie = f"{self._cookie}={token}; HttpOnly; SameSite=Strict; Path=/; Max-Age=2592000"
        moved = ((b"location", to.encode()), (b"set-cookie", cookie.encode()))
        await _answer(send, 303, "", moved)


def _query_token(scope: Scope) -> str | None:
    """The token in the address, None without one."""
    return dict(parse_qsl(scope["query_string"].decode("latin-1"))).get("token")


def _without_token(scope: Scope) -> str:
    pairs = parse_qsl(scope["query_string"].decode("latin-1"))
    rest = urlencode([(name, value) for name, value in pairs if name != "token"])
    return _local(scope["path"]) + ("?" + rest if rest else "")


def _page(headers: dict[str, str]) -> str:
    """The page of ours on which the form stood; never another host's."""
    try:
        return _local(unquote(urlsplit(headers.get("referer", "")).path))
    except ValueError:
        return "/"


def _host(address: str) -> str:
    """Name and port of an address; empty where it is none."""
    try:
        return urlsplit(address).netloc
    except ValueError:
        return ""


def _local(path: str) -> str:
    """A path of this host as a header holds it. A browser takes `//`, a backslash or a tab after
    the first slash for the begin of a host's name, and a line break would begin another header."""
    return "/" + quote(path.lstrip("/"), errors="replace")


async def _form_token(receive: Any) -> str:
    """The field `token` of a posted form of at most 4 kB."""
    body, more = b"", True
    while more and len(body) < 4_096:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return dict(parse_qsl(body[:4_096].decode("latin-1"))).get("token", "")


async def _refuse(scope: Scope, send: Any, status: int, why: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
    else:
        await _answer(send, status, why, ())


async def _answer(send: Any, status: int, text: str, more: Iterable[tuple[bytes, bytes]]) -> None:
    kind = b"text/html; charset=utf-8" if text.startswith("<") else b"text/plain; charset=utf-8"
    headers = [(b"content-type", kind), (b"cache-control", b"no-store"), *HEADERS, *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})


def _with_headers(send: Any) -> Any:
    async def sent(message: Any) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *HEADERS]}
        await send(message)

    return sent
