"""Limits for the HTTP server that Ray Serve puts in front of our application: uvicorn, in Serve's proxy process.

Whoever reaches the port reaches it, without a key. As it comes, it keeps headers without end, waits for their end forever,
never gives up a client that reads nothing, and answers 500 to bytes that are no UTF-8 in the headers meant for itself. Serve
has no setting for any of this; it calls what a variable names, in the process of the proxy, before it listens:

    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=raystyle.serving.wall:build
"""

import asyncio
import json
import math

import uvicorn.config
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from raystyle.serving.errors import RequestError
from raystyle.serving.limits import MAX_HEADER_BYTES, MAX_TARGET_BYTES

VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
# Beyond this a head is not read to its end; below, the application refuses it by its own, smaller limits.
MAX_HEAD_BYTES = 2 * (MAX_HEADER_BYTES + MAX_TARGET_BYTES)
HEAD_TIMEOUT_S = 15.0  # from a connection's first moment, or from the end of an answer to the next request
UNREAD_TIMEOUT_S = 60.0  # how long an answer may wait for a client that takes none of it
MAX_CONNECTIONS = 800  # several times what may be in flight, and fewer than the files a process may open at the least
# Which copy of what to ask, how long, as whom: Serve's proxy takes this from any client, and none of ours needs it.
SERVES_OWN = {
    b"x_request_id",
    b"serve_multiplexed_model_id",
    b"x_session_id",
    b"x_request_timeout_seconds",
    b"x_request_disconnect_disabled",
}


def build() -> list[Middleware]:
    """What Serve calls: uvicorn, which picks by this name, gets `Bounded`; what comes back stands around Serve's proxy."""
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:Bounded"
    return [Middleware(OneId)]


class OneId:
    """ASGI middleware: of the application's id of a request and Serve's own, which it adds, the first, which is in our log."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                later = [pair for pair in message["headers"] if pair[0].lower() == b"x-request-id"][1:]
                message = {**message, "headers": [pair for pair in message["headers"] if pair not in later]}
            await send(message)

        await self.app(scope, receive, send_on)


class Bounded(HttpToolsProtocol):
    """uvicorn's connection with an end to everything that a client decides on."""

    _head_bytes = 0
    _is_in_head = False
    _head_timer: asyncio.TimerHandle | None = None
    _unread_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            self._refuse(RequestError("unavailable", "the server has too many connections", retry_after_s=1.0))
            return
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._head_timer, self._unread_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self._is_in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(RequestError("headers_too_large", f"the head has more than {MAX_HEAD_BYTES} bytes"))
        # Not only a head that comes slowly: blank lines before one, and a body that goes on after its answer.
        is_idle = self.cycle is None or self.cycle.response_complete
        if is_idle and self._head_timer is None and not self.transport.is_closing():
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.abort)

    def on_message_begin(self) -> None:
        self._is_in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower().replace(b"-", b"_") not in SERVES_OWN:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        super().on_headers_complete()

    def _should_upgrade(self) -> bool:
        return False  # nothing here is a websocket

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait_for_reader(math.inf)

    def _wait_for_reader(self, left_before: float) -> None:
        """Again and again as long as the client takes something."""
        left = self.transport.get_write_buffer_size()
        if left < left_before:
            self._unread_timer = self.loop.call_later(UNREAD_TIMEOUT_S, self._wait_for_reader, left)
        else:
            self.transport.abort()

    def resume_writing(self) -> None:
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None
        super().resume_writing()

    def _refuse(self, error: RequestError) -> None:
        body = json.dumps(error.body()).encode()
        wait = f"retry-after: {math.ceil(error.retry_after_s)}\r\n" if error.retry_after_s else ""
        head = f"content-type: application/json\r\ncontent-length: {len(body)}\r\n{wait}connection: close\r\n\r\n"
        self.transport.write(STATUS_LINE[error.status] + head.encode() + body)
        self.transport.close()
