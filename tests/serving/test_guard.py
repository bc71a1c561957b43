"""What stands before the routes. The slow and the lying clients are real sockets against a real server."""

import asyncio
import base64
import os
import socket
import time

import pytest
from scripted import Scripted, app_of, ask, get, post, served

from raystyle.errors import ConfigError
from raystyle.serving.keys import Keys, read_keys

KEY, OTHER, ADMIN = "k" * 20, "o" * 20, "a" * 20
COMPLETION = {"model": "base", "prompt": "甲", "max_tokens": 2}
ROUTES = [
    ("GET", path) for path in ("/readyz", "/metrics", "/openapi.json", "/", "/static/app.js", "/v1/models", "/nowhere")
]
ROUTES += [("POST", path) for path in ("/v1/completions", "/v1/chat/completions", "/v1/compare")]


@pytest.fixture
def keys(tmp_path):
    return keys_of(tmp_path, f"# of the house\n\nli:{KEY}\n{OTHER}\n")


def keys_of(directory, text, mode=0o600):
    path = directory / "keys.txt"
    path.write_text(text)
    path.chmod(mode)
    return read_keys(str(path))


def bearer(key):
    return {"authorization": f"Bearer {key}"}


def basic(key):
    return {"authorization": "Basic " + base64.b64encode(f"anyone:{key}".encode()).decode()}


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_every_route_but_one_asks_for_a_key(keys, method, path):
    app = app_of(keys=keys)
    for headers in (
        {},
        bearer("x" * 20),
        bearer(KEY.upper()),
        bearer(""),
        {"authorization": KEY},
        {"authorization": "Basic !"},
    ):
        answer = asyncio.run(ask(app, method, path, COMPLETION, headers=headers))
        assert answer.status == 401 and answer.json()["error"]["code"] == "invalid_api_key"
        assert answer.headers["www-authenticate"].startswith("Basic" if path in ("/", "/static/app.js") else "Bearer")
        assert KEY not in answer.body.decode()
    for headers in (bearer(KEY), bearer(OTHER), basic(KEY)):
        assert asyncio.run(ask(app, method, path, COMPLETION, headers=headers)).status != 401
    assert get(app, "/healthz").status == 200


def test_names_of_keys_are_counted_and_keys_are_not(keys, caplog):
    caplog.set_level("INFO", logger="raystyle.serving")
    app = app_of(keys=keys)
    post(app, "/v1/completions", COMPLETION, headers=bearer(KEY))
    post(app, "/v1/completions", COMPLETION, headers=bearer(OTHER))
    text = get(app, "/metrics", headers=bearer(KEY)).body.decode()
    assert 'key="li"' in text and 'key="line-4"' in text
    assert '"key": "li"' in caplog.text
    assert KEY not in text + caplog.text + repr(keys)


def test_a_prefix_of_the_application_opens_nothing(keys, tmp_path):
    """Serve leaves the whole path and names the prefix beside it; routes are matched without it."""
    admin_keys = keys_of(tmp_path, f"root:{ADMIN}")

    def prefixed(app):
        async def under(scope, receive, send):
            await app(scope | {"root_path": "/style"}, receive, send)

        return under

    closed, opened = prefixed(app_of(keys=keys)), prefixed(app_of(keys=keys, admin_keys=admin_keys))
    assert post(closed, "/style/admin/refresh", {}, headers=bearer(KEY)).status == 403
    assert post(opened, "/style/admin/refresh", {}, headers=bearer(KEY)).status == 401
    assert post(opened, "/style/admin/refresh", {}, headers=bearer(ADMIN)).status == 200
    assert get(closed, "/style/v1/models").status == 401
    assert get(closed, "/style/healthz").status == 200


def test_admin_asks_for_its_own_key(keys, tmp_path):
    admin_keys = keys_of(tmp_path, f"root:{ADMIN}")
    closed, opened = app_of(keys=keys), app_of(keys=keys, admin_keys=admin_keys)
    assert post(closed, "/admin/refresh", {}, headers=bearer(KEY)).status == 403
    assert post(opened, "/admin/refresh", {}, headers=bearer(KEY)).status == 401
    assert post(opened, "/admin/refresh", {}).status == 401
    assert post(opened, "/admin/refresh", {}, headers=bearer(ADMIN)).json()["object"] == "list"
    assert get(opened, "/v1/models", headers=bearer(ADMIN)).status == 401
    assert post(app_of(admin_keys=admin_keys), "/admin/refresh", {}).status == 401


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("short:abc", "line 1"),
        (f"# a\nli:{KEY}\nli:{OTHER}", "line 3"),
        (f"li:{KEY}\nwang:{KEY}", "line 2"),
        (f"l i:{KEY}", "line 1"),
        (f"{KEY} {KEY}", "line 1"),
        ("密码" * 10, "line 1"),
        ("# nothing", "no key"),
    ],
)
def test_a_key_file_that_is_none_is_refused_by_line_and_shows_no_key(tmp_path, text, words):
    with pytest.raises(ConfigError, match=words) as caught:
        keys_of(tmp_path, text)
    assert KEY not in str(caught.value) and "abc" not in str(caught.value)


def test_a_key_file_is_its_owners(tmp_path):
    with pytest.raises(ConfigError, match="others may write"):
        keys_of(tmp_path, KEY, 0o622)
    assert "others may read" in keys_of(tmp_path, KEY, 0o644).warnings[0]
    assert not keys_of(tmp_path, KEY, 0o600).warnings
    with pytest.raises(ConfigError, match="cannot be read"):
        read_keys(str(tmp_path / "none"))
    assert not read_keys(None) and not Keys()


# ── names and pages ──


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost", "LOCALHOST:9", "[::1]:8000", "localhost.:8000"])
def test_own_names(host):
    assert get(app_of(), "/v1/models", headers={"host": host}).status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example:8000", "", "localhost@evil.example", "10.0.0.1:8000"]
)
def test_a_name_that_another_site_made_lead_here_is_refused(host):
    assert get(app_of(), "/v1/models", headers={"host": host}).status == 403
    assert get(app_of(), "/healthz", headers={"host": host}).status == 200


def test_other_names_where_they_are_named_or_keys_are_all_there_is(keys):
    named = app_of(allowed_hosts=("style.example",))
    assert get(named, "/v1/models", headers={"host": "style.example"}).status == 200
    assert get(named, "/v1/models", headers={"host": "other.example"}).status == 403
    elsewhere = app_of(keys=keys, host="0.0.0.0", api_key_file="keys.txt")
    assert get(elsewhere, "/v1/models", headers={"host": "other.example", **bearer(KEY)}).status == 200


@pytest.mark.parametrize("host", ["style.example", "STYLE", "10.0.0.1", "::1", "[fe80::1]", "a_b-c.example"])
def test_a_name_that_a_request_may_have_is_taken(host):
    named = app_of(allowed_hosts=(host,))
    asked = f"[{host.strip('[]')}]" if ":" in host else host
    assert get(named, "/v1/models", headers={"host": f"{asked}:8000"}).status == 200


@pytest.mark.parametrize("host", ["", "*", "*.example", "style.example:8000", "http://style.example", "x/", "x.", "饭"])
def test_a_name_that_no_request_ever_has_is_refused(host):
    with pytest.raises(ConfigError, match=r"`allowed_hosts` has .*\nhint: "):
        app_of(allowed_hosts=(host,))


@pytest.mark.parametrize(
    "origin",
    ["https://desk.example", "HTTP://Desk:9/", "http://[::1]:3000", "chrome-extension://abcdef", "https://x:80"],
)
def test_an_origin_that_a_page_may_have_is_taken(origin):
    app = app_of(cors_origins=(origin,))
    assert get(app, "/v1/models", headers={"origin": origin.lower().rstrip("/")}).status == 200


@pytest.mark.parametrize(
    "origin", ["", "*", "null", "desk.example", "https://", "https://x:443", "http://x:80/", "https://x/page", "//x"]
)
def test_an_origin_that_no_page_ever_has_is_refused(origin):
    with pytest.raises(ConfigError, match=r"`cors_origins` has .*\nhint: "):
        app_of(cors_origins=(origin,))


@pytest.mark.parametrize("path", ["/v1/models", "/v1/completions", "/"])
def test_pages_of_other_origins_may_not_call(path):
    for origin in ("https://evil.example", "null", "http://127.0.0.1:9999", "http://localhost:8000", "file://"):
        answer = post(app_of(), path, COMPLETION, headers={"origin": origin})
        assert answer.status == 403 and "access-control-allow-origin" not in answer.headers
    assert post(app_of(), path, COMPLETION, headers={"origin": "http://127.0.0.1:8000"}).status != 403


def test_the_default_port_may_be_left_out():
    app = app_of(allowed_hosts=("style.example",))
    for origin, host in (
        ("https://style.example", "style.example:443"),
        ("https://style.example:443", "style.example"),
    ):
        assert get(app, "/v1/models", headers={"origin": origin, "host": host}).status == 200
    headers = {"origin": "https://style.example", "host": "style.example:8000"}
    assert get(app, "/v1/models", headers=headers).status == 403


def test_pages_of_named_origins_may_call_and_are_asked_for_keys_all_the_same(keys):
    app = app_of(keys=keys, cors_origins=("https://desk.example",))
    origin = {"origin": "https://desk.example"}
    ahead = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,x-stainless-os"}
    preflight = asyncio.run(ask(app, "OPTIONS", "/v1/completions", headers=origin | ahead))
    assert (
        preflight.status == 204 and preflight.headers["access-control-allow-headers"] == "authorization,x-stainless-os"
    )
    for headers, status in ((origin, 401), (origin | bearer(KEY), 200)):
        answer = post(app, "/v1/completions", COMPLETION, headers=headers)
        assert answer.status == status and answer.headers["access-control-allow-origin"] == "https://desk.example"
        assert answer.headers["vary"] == "origin" and "access-control-allow-credentials" not in answer.headers
    other = asyncio.run(ask(app, "OPTIONS", "/v1/completions", headers=ahead | {"origin": "https://evil.example"}))
    assert other.status == 403
    assert "access-control-allow-origin" not in get(app, "/v1/models", headers=bearer(KEY)).headers


# ── sizes ──


def test_sizes_of_headers_and_paths():
    app = app_of()
    assert get(app, "/healthz").status == 200
    assert get(app, "/v1/models", headers={f"x-{i}": "1" for i in range(99)}).status == 431
    assert get(app, "/v1/models", headers={"x": "1" * 33_000}).status == 431
    assert get(app, "/v1/models?" + "x" * 3000).status == 431
    assert get(app, "/v1/" + "x" * 3000).status == 431


def test_a_path_with_a_line_break_leads_nowhere(keys):
    # As a server gives it to us: unquoted.
    for path in ("/v1/models/style\n", "/v1/models\n", "/healthz\n", "/admin/refresh\n"):
        assert get(app_of(admin_keys=keys), path, headers=bearer(KEY)).status == 404


def test_a_body_has_a_most_of_bytes_said_or_sent():
    backend = Scripted()
    app = app_of(backend, max_body_bytes=1000)
    big = COMPLETION | {"prompt": "x" * 1000}
    for headers in ({}, {"content-length": "1100"}, {"content-length": "9" * 5000}, {"content-length": "5"}):
        answer = post(app, "/v1/completions", big, headers=headers)
        assert answer.status == 413 and answer.headers["connection"] == "close" and not backend.asked
    assert post(app, "/v1/completions", COMPLETION, headers={"content-length": "-5"}).status == 400


def test_a_header_that_stands_once_stands_once():
    async def twice(scope, receive, send):
        scope["headers"].append((b"authorization", b"Bearer x"))
        await app_of()(scope, receive, send)

    assert asyncio.run(ask(twice, "GET", "/v1/models", headers=bearer(KEY))).status == 400


def test_websockets_are_closed():
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(app_of()({"type": "websocket", "path": "/"}, None, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


def talk(address, *pieces, pause_s=0.0):
    """What a server says to bytes sent piece by piece."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(pause_s)
        said = b""
        while more := connection.recv(65536):
            said += more
        return said


def test_a_body_that_drips_is_given_up(monkeypatch):
    monkeypatch.setattr("raystyle.serving.guard.BODY_TIMEOUT_S", 0.3)
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n"
    with served(app_of()) as address:
        said = talk(address, head, b"{", b'"', pause_s=0.05)
    assert said.startswith(b"HTTP/1.1 408") and b"x-should-retry: false" in said


def test_a_chunked_body_is_counted_as_it_comes():
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"4000\r\n" + b"x" * 0x4000 + b"\r\n"
    with served(app_of(max_body_bytes=50_000)) as address:
        assert talk(address, head, *[chunk] * 4, pause_s=0.02).startswith(b"HTTP/1.1 413")


def test_a_client_that_leaves_in_the_middle_of_its_body_costs_nothing():
    backend = Scripted()
    with served(app_of(backend)) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\n{")
        time.sleep(0.1)
        assert talk(address, b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").startswith(
            b"HTTP/1.1 200"
        )
    assert not backend.asked


def test_every_key_is_compared_whichever_it_is(keys, monkeypatch):
    compared = []
    monkeypatch.setattr("hmac.compare_digest", lambda one, other: compared.append(other) or one == other)
    for key in (KEY, OTHER, "x" * 20):
        keys.name_of(key)
    assert compared == [digest for _, digest in keys.digests] * 3


def test_keys_stay_hashes(keys):
    assert all(os.fsencode(KEY) not in digest for _, digest in keys.digests)
    assert keys.name_of(KEY) == "li" and keys.name_of(OTHER) == "line-4" and keys.name_of("") is None
