"""An HTTP proxy that fails on purpose: what object storage does on a bad day, in front of a test server.

    error       answers 500 without asking the server        slow        answers late
    busy        answers 503 SlowDown                         lost        the server does it, nobody hears so
    dropped     hangs up before it reads the request         truncated   hangs up halfway through the answer's body
    interrupted hangs up halfway through the request's body

    denied      answers 403 (only where asked for: it is no weather)

`FaultyProxy.plan` says which fault each request gets, in order of arrival; faults that a request has no room for (a
GET has no body to interrupt) leave it alone. `counts` tells what was done. Only the standard library.
"""

import collections
import http.client
import random
import socket
import struct
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

KINDS = ("error", "busy", "slow", "dropped", "interrupted", "lost", "truncated")
ANSWERS = {"error": (500, "InternalError"), "busy": (503, "SlowDown"), "denied": (403, "AccessDenied")}
HOP_BY_HOP = {"connection", "transfer-encoding", "content-length", "expect", "keep-alive"}


class FaultyProxy:
    """`with FaultyProxy(server) as proxy:` then speak to `proxy.endpoint`; it serves from a thread of this process."""

    def __init__(self, server: str, delay: float = 0.3) -> None:
        self.server = urllib.parse.urlsplit(server).netloc
        self.delay = delay
        self.counts: collections.Counter[str] = collections.Counter()
        self.requests: list[tuple[str, str]] = []
        self.plan: Iterator[str | Callable[[list[str]], str | None] | None] = iter(())
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.endpoint = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> "FaultyProxy":
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.shutdown()
        self._http.server_close()

    def give(self, faults: Iterable[str | None]) -> None:
        """The next requests get these faults (`None`: none); those after them get none. Counts start anew."""
        with self._lock:
            self.plan, self.requests = iter(faults), []
            self.counts.clear()

    def bad_weather(self, seed: int, rate: float) -> None:
        """From now on a request fails with a probability of `rate`, in the way it could that was seen least so far."""
        dice = random.Random(seed)

        def rarest(possible: list[str]) -> str:
            return min(possible, key=lambda kind: (self.counts[kind], dice.random()))

        self.give(iter(lambda: rarest if dice.random() < rate else None, ...))  # type: ignore[arg-type]

    def choose(self, method: str, path: str, possible: list[str]) -> str | None:
        """The fault of this request, counted."""
        with self._lock:
            self.requests.append((method, path))
            fault = next(self.plan, None)
            if callable(fault):
                fault = fault(possible)
            fault = fault if fault in [*possible, "denied"] else None
            self.counts[fault or "none"] += 1
            return fault


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultyProxy

    def log_message(self, *_: object) -> None:
        pass

    def _serve(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        is_chunked = "chunked" in self.headers.get("Transfer-Encoding", "")
        possible = [kind for kind in KINDS if kind not in ("interrupted", "truncated")]
        possible += ["interrupted"] if length or is_chunked else []
        # Whether the answer will have a body is not known yet; an object, or a list of them, has one.
        possible += ["truncated"] if self.command == "GET" else []
        fault = self.proxy.choose(self.command, self.path, possible)
        if fault == "dropped":
            return self._hang_up()
        if fault == "interrupted":
            self.rfile.read(length // 2 if length else 10)
            return self._hang_up()
        body = b"".join(self._chunks()) if is_chunked else self.rfile.read(length)
        if fault in ANSWERS:
            code, name = ANSWERS[fault]
            answer = f"<?xml version='1.0'?><Error><Code>{name}</Code><Message>on purpose</Message></Error>".encode()
            return self._answer(code, [("Content-Type", "application/xml")], answer)
        if fault == "slow":
            time.sleep(self.proxy.delay)
        status, headers, answer = self._ask(body)
        if fault == "lost":
            return self._hang_up()
        self._answer(status, headers, answer, cut=fault == "truncated")

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve

    def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        server = http.client.HTTPConnection(self.proxy.server, timeout=30)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP}
        headers |= {"Content-Length": str(len(body))} if body or self.command in ("PUT", "POST") else {}
        server.request(self.command, self.path, body or None, headers)
        answer = server.getresponse()
        result = answer.status, answer.getheaders(), answer.read()
        server.close()
        return result

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes, cut: bool = False) -> None:
        self.send_response_only(status)
        is_head = self.command == "HEAD"
        for name, value in headers:
            if name.lower() not in HOP_BY_HOP or (is_head and name.lower() == "content-length"):
                self.send_header(name, value)
        if not is_head and status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if not is_head:
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.wfile.flush()
            time.sleep(0.02)
            self._hang_up(gently=True)

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline().split(b";")[0], 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass

    def _hang_up(self, gently: bool = False) -> None:
        """Close the connection, with a reset unless `gently`: so a client learns of it while it still sends."""
        if not gently:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close() if not gently else self.connection.shutdown(socket.SHUT_RDWR)
