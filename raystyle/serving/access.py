"""Around every request: its record and id, an answer for whatever error it ends with, headers, one line in the log.

A line is a JSON object on the logger `log.REQUESTS`. Prompts and texts are in it only where `log_prompts` asks for them.
"""

import asyncio
import dataclasses
import json
import logging
import math
import time
import uuid
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raystyle.serving.errors import RequestError
from raystyle.serving.log import REQUESTS
from raystyle.serving.metrics import Metrics

LOG = logging.getLogger(__name__)
# Asked for by machines, again and again.
QUIET = ("/healthz", "/readyz", "/metrics")
# Nothing that this server sends may be framed, sniffed, or load anything from elsewhere.
SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (
        b"content-security-policy",
        b"default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self'; "
        b"frame-ancestors 'none'",
    ),
)
RETRY_AFTER_S = 1.0
CLIENT_GONE_STATUS = 499  # nginx's, for logs: nobody is there to be told


class ClientGone(Exception):
    """The client left before its request was answered."""


@dataclasses.dataclass
class Record:
    """What becomes known of a request while it is answered. Times are seconds of `time.perf_counter`."""

    id: str
    method: str
    path: str
    started_at_s: float
    headers: list[tuple[bytes, bytes]]  # sent with whatever the answer is
    key: str | None = None
    models: tuple[str, ...] = ()
    digests: tuple[str | None, ...] = ()
    choices: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    first_token_s: float | None = None
    status: int | None = None
    code: str = "ok"
    failed: dict[str, str] = dataclasses.field(
        default_factory=dict
    )  # model -> code, where the others of its request went on
    texts: list[dict[str, Any]] = dataclasses.field(default_factory=list)  # only with `log_prompts`

    def line(self) -> str:
        """The line of the log."""
        told: dict[str, Any] = {
            "id": self.id,
            "key": self.key,
            "route": f"{self.method} {self.path[:100]}",
            "model": list(self.models),
            "digest": [digest and digest[:12] for digest in self.digests],
            "prompt_tokens": self.prompt_tokens,
            "tokens": self.tokens,
            "choices": self.choices,
            "status": self.status,
            "code": next(iter(self.failed.values()), "ok") if self.code == "ok" else self.code,
            "first_token_s": self.first_token_s and round(self.first_token_s, 4),
            "total_s": round(time.perf_counter() - self.started_at_s, 4),
        }
        return json.dumps(told | ({"texts": self.texts} if self.texts else {}))


def record_of(scope: Scope) -> Record:
    record: Record = scope["raystyle"]
    return record


def as_request_error(error: Exception, request_id: str) -> RequestError:
    """What a client is told: of a mistake of ours no more than where the log tells it."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, HTTPException):
        what = (
            ("not_found", "no such route") if error.status_code == 404 else ("method_not_allowed", "not by this method")
        )
        return RequestError(what[0], f"{what[1]}; /openapi.json lists what there is")
    LOG.error("request %s failed", request_id, exc_info=error)
    return RequestError("internal_error", f"the server failed; its log says why under {request_id}")


def route_of(scope: Scope) -> str:
    """The path that routes are known by: without the prefix under which Serve runs the application."""
    path, prefix = str(scope["path"]), str(scope.get("root_path", ""))
    return path[len(prefix) :] if prefix and path.startswith(f"{prefix}/") else path


def error_response(error: RequestError, path: str) -> Response:
    """OpenAI's error object, with the headers that its code asks for."""
    headers = {}
    if error.status in (429, 503):
        headers["retry-after"] = str(math.ceil(error.retry_after_s or RETRY_AFTER_S))
    if error.code == "timeout":
        headers["x-should-retry"] = "false"  # OpenAI's clients send a 408 three times otherwise
    if error.status == 401:
        is_page = path == "/" or path.startswith("/static/")
        headers["www-authenticate"] = 'Basic realm="raystyle", charset="UTF-8"' if is_page else "Bearer"
    if error.status in (408, 413):
        headers["connection"] = "close"  # the rest of the body is not read
    return JSONResponse(error.body(), error.status, headers)


class Access:
    """The outermost ASGI middleware."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        request_id = f"req-{uuid.uuid4().hex[:16]}"
        headers = [*SECURITY_HEADERS, (b"x-request-id", request_id.encode())]
        record = Record(request_id, scope["method"], route_of(scope), time.perf_counter(), headers)
        scope["raystyle"] = record

        async def receive_on() -> Message:
            try:
                return await receive()
            except Exception as error:
                # Serve calls off what it receives by along with the request of a client that leaves: either may come first.
                raise ClientGone from error

        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), *record.headers]}
            await send(message)

        try:
            await self.app(scope, receive_on, send_on)
        except (ClientGone, asyncio.CancelledError) as gone:
            record.code, record.status = "cancelled", CLIENT_GONE_STATUS
            if isinstance(gone, asyncio.CancelledError):
                raise
        except Exception as error:
            told = as_request_error(error, request_id)
            record.code = told.code
            if isinstance(error, HTTPException):  # with 405, the methods that there are
                record.headers += [
                    (name.lower().encode(), value.encode()) for name, value in (error.headers or {}).items()
                ]
            if record.status is not None:
                raise  # in the middle of an answer: the connection is to end, which the server sees to
            await error_response(told, record.path)(scope, receive, send_on)
        finally:
            for model in record.models or (None,):
                self.metrics.request(model, record.failed.get(model or "", record.code), record.key)
            REQUESTS.log(logging.DEBUG if record.path in QUIET else logging.INFO, "%s", record.line())


async def _lifespan(receive: Receive, send: Send) -> None:
    """Nothing is to be set up, and what runs is ended by `drain`; servers want to hear it."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
