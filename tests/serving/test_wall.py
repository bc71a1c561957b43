"""What stands before the application in Serve's proxy: here in a uvicorn of our own, asked over sockets."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn

from raystyle.serving import wall

ASK = b"GET /%s HTTP/1.1\r\nHost: x\r\n%s\r\n"
BIG = b"x" * (16 << 20)
seen: list[dict] = []


async def app(scope, receive, send):
    """Tells the path; /big answers with more than any socket holds, /read reads first, /slow never answers."""
    assert scope["type"] == "http"
    seen.append(scope)
    if scope["path"] == "/slow":
        while (await receive())["type"] != "http.disconnect":
            pass
        return
    while scope["path"] == "/read" and (await receive())["more_body"]:
        pass
    body = BIG if scope["path"] == "/big" else scope["path"].encode()
    headers = [(b"content-length", str(len(body)).encode()), (b"x-request-id", b"ours"), (b"X-Request-ID", b"serves")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="module", autouse=True)
def unchanged():
    before = dict(uvicorn.config.HTTP_PROTOCOLS)
    yield
    uvicorn.config.HTTP_PROTOCOLS.update(before)


@pytest.fixture(scope="module")
def address() -> Iterator[tuple[str, int]]:
    (middleware,) = wall.build()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(middleware.cls(app), log_level="critical", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield listener.getsockname()
        server.should_exit = True
        thread.join(timeout=20)


@contextlib.contextmanager
def connection(address) -> Iterator[socket.socket]:
    with socket.create_connection(address, timeout=10) as one:
        yield one


def said(one: socket.socket) -> bytes:
    """All that the server says until it closes."""
    found = b""
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        while more := one.recv(65536):
            found += more
    return found


def ask(address, *pieces: bytes) -> bytes:
    with connection(address) as one:
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            for piece in pieces:
                one.sendall(piece)
        return said(one)


def closes_in_s(one: socket.socket) -> float:
    started = time.monotonic()
    said(one)
    return time.monotonic() - started


CLOSE = b"Connection: close\r\n"


def test_whole_requests_pass_one_after_another_and_pipelined(address):
    with connection(address) as one:
        one.sendall(ASK % (b"a", b""))
        assert one.recv(65536).endswith(b"/a")
        one.sendall(ASK % (b"b", b"") + ASK % (b"c", CLOSE))
        assert said(one).count(b"HTTP/1.1 200") == 2


def test_an_answer_has_one_id(address):
    answer = ask(address, ASK % (b"a", CLOSE))
    assert b"x-request-id: ours" in answer and b"serves" not in answer


@pytest.mark.parametrize("unit", [b"X: " + b"a" * 60_000, b"X: 1\r\n" * 10_000], ids=["value", "names"])
def test_a_head_without_end_is_refused_long_before_it_is_large(address, unit):
    before = len(seen)
    answer = ask(address, b"GET / HTTP/1.1\r\n", *[unit] * 100)
    # What was still on its way may take the answer with it.
    assert not answer or answer.startswith(b"HTTP/1.1 431")
    assert len(seen) == before
    slowly = ask(address, b"GET / HTTP/1.1\r\nX: ", b"a" * wall.MAX_HEAD_BYTES)
    head, _, body = slowly.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 431") and json.loads(body)["error"]["code"] == "headers_too_large"


@pytest.mark.parametrize("path", [b"a", b"read"], ids=["after the answer", "before it"])
@pytest.mark.parametrize(
    "unit", [b"a" * 60_000, b"a:b\r\n" * 12_000, b"1;" + b"a" * 60_000], ids=["value", "names", "chunk"]
)
def test_what_follows_a_body_without_end_is_refused(address, path, unit):
    start = b"POST /%s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" % path
    last = b"" if unit.startswith(b"1;") else b"0\r\n" if b":" in unit else b"0\r\nX: "
    started = time.monotonic()
    answer = ask(address, start + last, *[unit] * 200)
    # What was still on its way may take the refusal with it.
    assert not answer or path == b"a" or answer.startswith(b"HTTP/1.1 431")
    assert time.monotonic() < started + 8
    assert [name for name, _ in seen[-1]["headers"]] == [b"host", b"transfer-encoding"]


def test_trailers_are_taken_and_reach_nobody(address):
    post = ASK.replace(b"GET", b"POST") % (b"read", b"Transfer-Encoding: chunked\r\n" + CLOSE)
    assert ask(address, post, b"1\r\nx\r\n0\r\nX-A: 1\r\n\r\n").startswith(b"HTTP/1.1 200")
    assert [name for name, _ in seen[-1]["headers"]] == [b"host", b"transfer-encoding", b"connection"]


def test_a_path_without_end_is_refused(address):
    assert ask(address, b"GET /", b"a" * wall.MAX_HEAD_BYTES).split()[1] in (b"400", b"431")


def test_many_requests_on_one_connection_and_bodies_are_not_counted_as_one_head(address):
    head = ASK % (b"a", b"X: " + b"a" * 20_000 + b"\r\n")
    with connection(address) as one:
        for _ in range(6):
            for half in (head[:15_000], head[15_000:]):
                one.sendall(half)
                time.sleep(0.02)
            assert one.recv(65536).startswith(b"HTTP/1.1 200")
    body = b"x" * (4 * wall.MAX_HEAD_BYTES)
    post = b"POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n%s\r\n" % (len(body), CLOSE)
    assert ask(address, post, body[:1000], body[1000:]).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "pieces",
    [
        [],
        [b"GET / HTTP/1.1\r\nX-A: "],
        [b"\r\n"],
        [ASK % (b"a", b""), b"\r\n"],
        [ASK % (b"a", b""), b"GET / HT"],
        [b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"],
    ],
    ids=["nothing", "half a head", "a blank line", "a blank line after an answer", "half of the next", "body"],
)
def test_a_client_that_drips_is_left(address, pieces, monkeypatch):
    monkeypatch.setattr(wall, "HEAD_TIMEOUT_S", 0.5)
    with connection(address) as one:
        for piece in pieces:
            one.sendall(piece)
            time.sleep(0.05)
        drip = b"1\r\nx\r\n" if pieces and b"chunked" in pieces[0] else b"\r\n" if pieces[-1:] == [b"\r\n"] else b"a"
        started = time.monotonic()
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            while time.monotonic() < started + 8:
                if pieces:
                    one.sendall(drip)
                elif not one.recv(1):
                    raise ConnectionResetError
                time.sleep(0.05)
        assert time.monotonic() < started + 5


def test_a_client_that_says_nothing_more_is_left(address, monkeypatch):
    monkeypatch.setattr(wall, "HEAD_TIMEOUT_S", 0.5)
    with connection(address) as one:
        one.sendall(ASK % (b"a", b""))
        assert one.recv(65536).endswith(b"/a")
        assert closes_in_s(one) < 3  # uvicorn would wait 5 s, and Serve's has it wait 90


def test_a_request_may_take_longer_than_its_head(address, monkeypatch):
    monkeypatch.setattr(wall, "HEAD_TIMEOUT_S", 0.2)
    with connection(address) as one:
        one.sendall(ASK % (b"slow", b""))
        one.settimeout(1)
        with pytest.raises(TimeoutError):
            one.recv(1)


def test_a_client_that_reads_nothing_is_left_and_one_that_reads_slowly_is_not(address, monkeypatch):
    monkeypatch.setattr(wall, "UNREAD_TIMEOUT_S", 2.5)
    with connection(address) as one:
        one.sendall(ASK % (b"big", CLOSE))
        time.sleep(4)
        assert len(said(one)) < len(BIG)
    with connection(address) as one, monkeypatch.context() as patch:
        patch.setattr(wall, "HEAD_TIMEOUT_S", 0.5)  # for the head that follows it, not for the answer
        one.sendall(ASK % (b"big", b""))
        found, started = 0, time.monotonic()
        while found < len(BIG) and (more := one.recv(1 << 19)):
            found += len(more)
            time.sleep(0.1)
        assert found > len(BIG) and time.monotonic() > started + 1
    with connection(address) as one:
        one.sendall(ASK % (b"big", b""))
        found = 0
        while found < len(BIG):
            found += len(one.recv(1 << 20))
        time.sleep(4)
        one.sendall(ASK % (b"a", b""))
        assert one.recv(65536).startswith(b"HTTP/1.1 200")


def test_more_connections_than_there_may_be_are_told_to_come_back(address, monkeypatch):
    monkeypatch.setattr(wall, "MAX_CONNECTIONS", 3)
    with contextlib.ExitStack() as held:
        for _ in range(3):
            one = held.enter_context(connection(address))
            one.sendall(ASK % (b"a", b""))
            assert one.recv(65536)
        answer = ask(address)
        assert answer.startswith(b"HTTP/1.1 503") and b"retry-after: 1" in answer and b'"unavailable"' in answer
    time.sleep(0.2)
    assert ask(address, ASK % (b"a", CLOSE)).startswith(b"HTTP/1.1 200")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_headers_that_serve_reads_itself_do_not_reach_it(address):
    from ray.serve._private import constants

    names = [
        constants.SERVE_MULTIPLEXED_MODEL_ID,
        constants.SERVE_SESSION_ID,
        constants.SERVE_HTTP_REQUEST_ID_HEADER,
        constants.SERVE_HTTP_REQUEST_TIMEOUT_S_HEADER,
        constants.SERVE_HTTP_REQUEST_DISCONNECT_DISABLED_HEADER,
    ]
    headers = b"".join(f"{name}: ".encode() + b"\xff\r\n" for name in [*names, names[0].replace("_", "-").upper()])
    ask(address, ASK % (b"a", headers + b"X-Other: \xff\r\n" + CLOSE))
    assert [name for name, _ in seen[-1]["headers"]] == [b"host", b"x-other", b"connection"]


def test_a_websocket_is_a_request_like_any_other(address):
    upgrade = (
        b"Upgrade: websocket\r\nConnection: Upgrade, close\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eA==\r\n"
    )
    assert ask(address, ASK % (b"a", upgrade)).startswith(b"HTTP/1.1 200")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_serve_calls_it():
    from ray.serve._private import constants
    from ray.serve._private.http_util import validate_http_proxy_callback_return
    from ray.serve._private.utils import call_function_from_import_path

    assert hasattr(constants, wall.VARIABLE)
    assert validate_http_proxy_callback_return(call_function_from_import_path("raystyle.serving.wall:build"))
    assert uvicorn.Config(app).http == "auto"
