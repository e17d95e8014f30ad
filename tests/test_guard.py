"""guard: only known names, no foreign page, and nobody without a token. ASGI calls, no server."""

import asyncio
import json
import string
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.dashboard.dashboard import tokens_of
from services.dashboard.guard import CONTROL, HEADERS, VIEW, Guard, Tokens
from shared.settings import DASHBOARD_FILE

PORT = 8800
TOKENS = Tokens("view-token-of-43-characters", "control-token-of-43-characters")
HOST = f"127.0.0.1:{PORT}"
COOKIE = f"dm-{PORT}"
FOREIGN = "http://evil.example"
QUIET = settings(deadline=None, derandomize=True, max_examples=300)

Headers = dict[str, str]


class Reached:
    """The app behind the guard: remembers with which rights it was reached."""

    def __init__(self) -> None:
        self.rights: list[str] = []

    async def __call__(self, scope: Any, _receive: Any, send: Any) -> None:
        self.rights.append(scope.get("rights", "none were given"))
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"a page"})


class Answer:
    """What came back of one call: `rights` is None where the app was not reached, `unread` how many
    parts of the body were left."""

    def __init__(self, sent: list[Any], reached: Reached, unread: int) -> None:
        self.unread = unread
        self.first, self.rights = sent[0] if sent else {}, next(iter(reached.rights), None)
        self.status = self.first.get("status")
        self.raw = list(self.first.get("headers", ()))
        self.headers = {name.decode(): value.decode() for name, value in self.raw}
        self.body = b"".join(message.get("body", b"") for message in sent)


def call(
    headers: Headers | None = None,
    path: str = "/",
    query: str = "",
    method: str = "GET",
    body: tuple[bytes, ...] = (b"",),
    kind: str = "http",
    host: str | None = HOST,
) -> Answer:
    """One request, from the outside of the guard to its answer."""
    given_headers = {**({"host": host} if host is not None else {}), **(headers or {})}
    scope = {
        "type": kind,
        "path": path,
        "query_string": query.encode("latin-1"),
        "headers": [(k.encode("latin-1"), v.encode("latin-1")) for k, v in given_headers.items()],
    }
    if kind == "http":
        scope["method"] = method
    parts = list(body)
    sent: list[Any] = []

    async def receive() -> Any:
        if not parts:
            return {"type": "http.disconnect"}
        part = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(parts)}

    async def send(message: Any) -> None:
        sent.append(message)

    reached = Reached()
    asyncio.run(Guard(reached, TOKENS, PORT)(scope, receive, send))
    return Answer(sent, reached, len(parts))


def with_cookie(token: str) -> Headers:
    return {"cookie": f"other=1; {COOKIE}={token}"}


def refused(answer: Answer, kind: str) -> bool:
    """Nothing of the app was reached, and the peer was told so in its own protocol."""
    if answer.rights is not None:
        return False
    if kind == "websocket":
        return bool(answer.first == {"type": "websocket.close", "code": 1008})
    return answer.status in (401, 403, 421)


KINDS = pytest.mark.parametrize("kind", ["http", "websocket"])


@KINDS
@pytest.mark.parametrize(("token", "rights"), [(TOKENS.view, VIEW), (TOKENS.control, CONTROL)])
@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "[::1]"])
def test_a_token_opens_and_says_what_is_allowed(
    kind: str, token: str, rights: str, name: str
) -> None:
    for headers in (with_cookie(token), {"authorization": f"Bearer {token}"}):
        assert call(headers, kind=kind, host=f"{name}:{PORT}").rights == rights


@KINDS
@pytest.mark.parametrize(
    "host",
    [
        None,
        "",
        "evil.example",
        f"evil.example:{PORT}",
        "127.0.0.1",
        f"127.0.0.1:{PORT + 1}",
        f"127.0.0.1:{PORT}.evil.example",
        f"evil@127.0.0.1:{PORT}",
        f"127.0.0.1:{PORT}, evil.example",
    ],
)
def test_a_forged_host_is_refused_even_with_the_token(kind: str, host: str | None) -> None:
    answer = call(with_cookie(TOKENS.control), kind=kind, host=host)
    assert refused(answer, kind)
    assert kind == "websocket" or answer.status == 421


@KINDS
@pytest.mark.parametrize(
    "origin",
    [
        FOREIGN,
        "null",
        f"http://127.0.0.1:{PORT + 1}",
        f"http://localhost:{PORT}.evil.example",
        f"http://127.0.0.1:{PORT}@evil.example",
        "http://[",  # no address at all
        "file://",
    ],
)
def test_a_foreign_origin_is_refused_even_with_the_token(kind: str, origin: str) -> None:
    answer = call({**with_cookie(TOKENS.control), "origin": origin}, kind=kind)
    assert refused(answer, kind)
    assert kind == "websocket" or answer.status == 403


@KINDS
def test_an_own_origin_passes(kind: str) -> None:
    for name in ("127.0.0.1", "localhost", "[::1]"):
        own = {"origin": f"http://{name}:{PORT}"}
        assert call({**with_cookie(TOKENS.view), **own}, kind=kind).rights == VIEW


@KINDS
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"cookie": ""},
        {"cookie": f"{COOKIE}="},
        {"cookie": f"{COOKIE}=wrong"},
        {"cookie": f"{COOKIE}={TOKENS.view}x"},
        {"cookie": f"{COOKIE}={TOKENS.view[:-1]}"},
        {"cookie": f"dm-{PORT + 1}={TOKENS.control}"},
        {"cookie": f"{COOKIE}=\xff\xfe"},
        {"cookie": ";;;=;\x00=\x01"},
        {"authorization": "Bearer"},
        {"authorization": "Bearer "},
        {"authorization": f"Basic {TOKENS.control}"},
        {"authorization": TOKENS.control},
        {"authorization": f"Bearer {TOKENS.control.upper()}"},
    ],
)
def test_without_a_right_token_nothing_is_reached(kind: str, headers: Headers) -> None:
    answer = call(headers, kind=kind)
    assert refused(answer, kind)
    assert TOKENS.view.encode() not in answer.body and TOKENS.control.encode() not in answer.body


@pytest.mark.parametrize("others", ["a=x y", 'prefs={"a": 1, "b": "c"}', "csrftoken", "a=b=c; d"])
def test_the_cookies_of_other_pages_are_passed_over(others: str) -> None:
    for cookie in (f"{others}; {COOKIE}={TOKENS.view}", f"{COOKIE}={TOKENS.view}; {others}"):
        assert call({"cookie": cookie}).rights == VIEW


def test_a_wrong_bearer_is_not_healed_by_a_cookie() -> None:
    assert call({"authorization": "Bearer no", **with_cookie(TOKENS.control)}).status == 401


def test_who_asks_without_a_token_gets_a_form_that_is_not_kept() -> None:
    answer = call(path="/board")
    assert answer.status == 401
    assert b'action="/login"' in answer.body and b'name="token"' in answer.body
    assert answer.headers["cache-control"] == "no-store"


def test_a_token_in_the_address_becomes_a_cookie_and_leaves_the_address() -> None:
    answer = call(path="/symbol/AUSDT", query=f"a=1&token={TOKENS.view}&b=2%20c")
    assert (answer.status, answer.rights) == (303, None)
    assert answer.headers["location"] == "/symbol/AUSDT?a=1&b=2+c"
    name, _, rest = answer.headers["set-cookie"].partition("=")
    value, *attributes = rest.split("; ")
    assert (name, value) == (COOKIE, TOKENS.view)
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(attributes)
    assert answer.headers["cache-control"] == "no-store"


def test_a_wrong_token_in_the_address_sets_nothing_whatever_the_cookie_says() -> None:
    answer = call(with_cookie(TOKENS.control), query="token=wrong")
    assert (answer.status, answer.rights) == (401, None)
    assert "set-cookie" not in answer.headers and "location" not in answer.headers


def test_a_token_in_the_address_of_a_websocket_is_none() -> None:
    assert refused(call(kind="websocket", query=f"token={TOKENS.control}"), "websocket")


def test_the_form_enters_and_leads_back_to_its_page() -> None:
    referer = {"referer": f"http://{HOST}/control?x=1", "origin": f"http://{HOST}"}
    form = f"token={TOKENS.control}".encode()
    for body in ((form,), (form[:9], form[9:])):
        answer = call(referer, "/login", method="POST", body=body)
        assert (answer.status, answer.headers["location"]) == (303, "/control")
        assert answer.headers["set-cookie"].startswith(f"{COOKIE}={TOKENS.control};")


@pytest.mark.parametrize(
    "body",
    [
        (b"",),
        (b"token=",),
        (b"token=wrong",),
        (b"tok%00en=x&token=%ff%fe",),
        (b"&" * 10_000,),
        (b"a" * 5_000 + b"&token=" + TOKENS.control.encode(),),  # beyond what is read
        (b"\x00\xff" * 3_000, b"more"),
    ],
    ids=range(7),
)
def test_a_wrong_huge_or_malformed_form_is_asked_again(body: tuple[bytes, ...]) -> None:
    answer = call(path="/login", method="POST", body=body)
    assert answer.status == 401
    assert "set-cookie" not in answer.headers


def test_of_an_endless_form_only_the_begin_is_read() -> None:
    answer = call(path="/login", method="POST", body=(b"x" * 1_024,) * 1_000)
    assert (answer.status, answer.unread) == (401, 996)


def test_a_foreign_page_cannot_post_the_form() -> None:
    form = (f"token={TOKENS.control}".encode(),)
    assert call({"origin": FOREIGN}, "/login", method="POST", body=form).status == 403


EVIL_PATHS = (
    "//evil.example",
    "///evil.example/x",
    "/\\evil.example",
    "/\t/evil.example",
    "/\r\nset-cookie: a=b",
    "/%2f/evil.example",
    "/\n/evil.example",
    "http://evil.example/",
    "/\N{FULLWIDTH SOLIDUS}evil.example",
    "\udcff",
)


def lands_here(location: str) -> bool:
    """As a browser reads a Location: tabs and line breaks drop out, a backslash is a slash."""
    plain = "".join(c for c in location if c not in "\t\r\n").replace("\\", "/")
    return location == plain and plain.startswith("/") and not plain.startswith("//")


@pytest.mark.parametrize("path", EVIL_PATHS)
def test_no_path_leads_to_another_host_or_into_the_headers(path: str) -> None:
    answer = call(path=path, query=f"token={TOKENS.view}")
    assert answer.status == 303
    assert lands_here(answer.headers["location"])


@pytest.mark.parametrize(
    "referer",
    [
        f"{FOREIGN}/board",
        f"{FOREIGN}//other.example/",
        "//evil.example//evil.example",
        f"http://{HOST}//evil.example",
        f"http://{HOST}/%5Cevil.example",
        f"http://{HOST}/%0d%0aset-cookie:a=b",
        f"http://{HOST}/\\evil.example",
        "http://[",
        "javascript:alert(1)",
        "\xff",
    ],
)
def test_no_referer_leads_to_another_host(referer: str) -> None:
    form = (f"token={TOKENS.view}".encode(),)
    answer = call({"referer": referer}, "/login", method="POST", body=form)
    assert answer.status == 303
    assert lands_here(answer.headers["location"])


@QUIET
@given(st.text(max_size=60), st.text(alphabet=string.printable, max_size=60))
@example("/\r\n", "")
def test_a_redirect_stays_here_whatever_the_address(path: str, query: str) -> None:
    encoded = query.encode("latin-1", "replace").decode("latin-1")
    answer = call(path=path, query=f"{encoded}&token={TOKENS.view}")
    assert answer.status == 303
    location = answer.headers["location"]
    assert lands_here(location) and location.isascii() and location.isprintable()
    assert "token=" not in urlsplit(location).query.replace("_token=", "")


def test_only_the_sign_of_life_needs_no_token() -> None:
    assert call(path="/healthz").rights == ""
    assert call(path="/healthz", host="evil.example").status == 421
    for near in ("/healthz/", "//healthz", "/healthz/../board", "/HEALTHZ", "/metrics", "/board"):
        assert call(path=near).status == 401, near


@pytest.mark.parametrize(
    "answer",
    [
        call(with_cookie(TOKENS.view)),
        call(),
        call(host="evil.example"),
        call(query=f"token={TOKENS.view}"),
        call(path="/healthz"),
    ],
    ids=["page", "form", "refused", "entered", "healthz"],
)
def test_every_answer_carries_the_security_headers(answer: Answer) -> None:
    assert all(answer.raw.count(header) == 1 for header in HEADERS)
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["x-frame-options"] == "DENY"


def test_what_is_neither_http_nor_websocket_passes() -> None:
    assert call(kind="lifespan").rights == "none were given"


def test_huge_headers_are_only_wrong_ones() -> None:
    for name in ("cookie", "authorization", "origin", "referer", "x-other"):
        assert call({name: "x=1; " * 20_000}).status in (401, 403)


names = st.sampled_from(
    ["host", "origin", "cookie", "authorization", "referer", "x-forwarded-host", "x-token"]
)
texts = st.text(alphabet=st.characters(max_codepoint=255), max_size=80)
near_misses = st.sampled_from(
    [
        *(f"Bearer {token[:-1]}" for token in TOKENS),
        *(f"{COOKIE}={token}x" for token in TOKENS),
        *(f'{COOKIE}="{token} "' for token in TOKENS),
        HOST,
        f"http://{HOST}",
    ]
)


@QUIET
@given(
    st.dictionaries(names, texts | near_misses, max_size=7),
    st.sampled_from(["/", "/board", "/control", "/login", "/_nicegui_ws/socket.io/"]),
    texts,
    st.sampled_from(["GET", "HEAD", "POST", "PUT", "OPTIONS"]),
    st.sampled_from(["http", "websocket"]),
)
def test_no_headers_get_in_without_a_right_token(
    headers: Headers, path: str, query: str, method: str, kind: str
) -> None:
    answer = call(headers, path, query, method, (query.encode("latin-1"),), kind)
    assert refused(answer, kind)
    assert "set-cookie" not in answer.headers


def test_tokens_tell_who_may_steer_and_an_empty_one_is_none() -> None:
    fresh = Tokens.fresh()
    assert fresh.view != fresh.control
    assert min(map(len, fresh)) >= 43  # 256 bits in base64
    assert [fresh.rights(token) for token in (fresh.view, fresh.control)] == [VIEW, CONTROL]
    assert [fresh.rights(token) for token in ("", "x", fresh.view + " ", "\udcff")] == [""] * 4
    assert Tokens("", "").rights("") == ""


def test_tokens_outlive_a_restart_in_a_file_of_the_owners(tmp_path: Path) -> None:
    tokens = tokens_of(tmp_path, PORT)
    assert tokens_of(tmp_path, PORT + 1) == tokens
    told = json.loads((tmp_path / DASHBOARD_FILE).read_text())
    assert told == {
        "look": f"http://127.0.0.1:{PORT + 1}/?token={tokens.view}",
        "steer": f"http://127.0.0.1:{PORT + 1}/?token={tokens.control}",
    }
    assert (tmp_path / DASHBOARD_FILE).stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "7", "null", "{}", '{"look": 1, "steer": 2}', '{"look": "a", "steer": "b"}'],
)
def test_a_file_without_tokens_gets_new_ones_never_empty_ones(tmp_path: Path, text: str) -> None:
    (tmp_path / DASHBOARD_FILE).write_text(text)
    tokens = tokens_of(tmp_path, PORT)
    assert all(len(token) >= 43 for token in tokens)
    assert tokens_of(tmp_path, PORT) == tokens
