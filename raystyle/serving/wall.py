"""Limits for the HTTP server that Ray Serve puts in front of our application: uvicorn, in Serve's proxy process.

Whoever reaches the port reaches it, without a key. As it comes, it keeps headers and trailers without end, waits for their end
forever, never gives up a client that reads nothing, and answers 500 to bytes that are no UTF-8 in the headers meant for itself.
Serve has no setting for any of this; it calls what a variable names, in the process of the proxy, before it listens:

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
from raystyle.serving.limits import HEAD_TIMEOUT_S, MAX_CONNECTIONS, MAX_HEAD_BYTES, UNREAD_TIMEOUT_S

VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
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

    _is_in_head = False
    _other_bytes = 0  # of a head, of trailers, between chunks: since the last piece of a body or end of a request
    _has_advanced = False  # by such a piece or end
    _head_timer: asyncio.TimerHandle | None = None
    _unread_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            self._refuse(RequestError("unavailable", "the server has too many connections", retry_after_s=1.0))
            return
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._head_timer, self._unread_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._has_advanced = False
        super().data_received(data)
        self._other_bytes = 0 if self._has_advanced else self._other_bytes + len(data)
        if self._other_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            what = "head" if self._is_in_head else "end of the body"
            self._refuse(RequestError("headers_too_large", f"the {what} has more than {MAX_HEAD_BYTES} bytes"))
        # Not only a head that comes slowly: blank lines before one, and a body that goes on after its answer.
        self._wait_for_head()

    def on_message_begin(self) -> None:
        self._is_in_head = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        # Trailers come this way too, into headers that have been read, or are kept for nobody.
        if self._is_in_head and name.lower().replace(b"-", b"_") not in SERVES_OWN:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._has_advanced = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._has_advanced = True
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._wait_for_head()

    def _wait_for_head(self) -> None:
        """Starts the time that the next head has, unless it runs already or a request is being answered."""
        is_idle = self.cycle is None or self.cycle.response_complete
        if is_idle and self._head_timer is None and not self.transport.is_closing():
            self._time_head()

    def _time_head(self) -> None:
        # An answer may be complete and still on its way.
        unread = self.transport.get_write_buffer_size()
        timeout_s = UNREAD_TIMEOUT_S if unread else HEAD_TIMEOUT_S
        self._head_timer = self.loop.call_later(timeout_s, self._end_without_head, unread)

    def _end_without_head(self, unread_before: int) -> None:
        if self.transport.get_write_buffer_size() < unread_before:
            self._time_head()
        else:
            self.transport.abort()

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
