"""What stands before every route: sizes, who asks (key), through which name and from which page (Host, Origin), and the
body, read whole within its limits.

All routes are guarded but /healthz. Host is checked because a page of another site can make its own name lead to this
machine and then counts as same-origin with it (DNS rebinding); Origin because a browser sends a user's saved password
along with what any page asks for.
"""

import asyncio
import base64
import binascii

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raystyle.config import ServeConfig
from raystyle.serving.access import ClientGone, record_of, route_of
from raystyle.serving.errors import RequestError
from raystyle.serving.keys import Keys
from raystyle.serving.limits import BODY_TIMEOUT_S, MAX_HEADER_BYTES, MAX_HEADERS, MAX_TARGET_BYTES, Rates

PREFLIGHT_MAX_AGE_S = 600
DEFAULT_PORTS = {"http": "80", "https": "443"}
SINGLE_HEADERS = (b"host", b"origin", b"authorization", b"content-type", b"content-length")


class Guard:
    """ASGI middleware that lets through what may be let through; anything else is a `RequestError`."""

    def __init__(self, app: ASGIApp, config: ServeConfig, keys: Keys, admin_keys: Keys, rates: Rates) -> None:
        self.app, self.config, self.keys, self.admin_keys, self.rates = app, config, keys, admin_keys, rates
        own = {config.host.strip("[]").lower(), "localhost", "127.0.0.1", "::1"}
        self.hosts = own | {name.strip("[]").lower() for name in config.allowed_hosts}
        self.checks_host = config.is_loopback or bool(config.allowed_hosts)
        self.cors_origins = {origin.rstrip("/").lower() for origin in config.cors_origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or route_of(scope) == "/healthz":
            await self.app(scope, receive, send)
            return
        headers = self._headers(scope)
        self._check_host(headers)
        if self._check_origin(scope, headers):
            await _preflight(headers, send)
            return
        key = self._check_key(scope, headers)
        if scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        self.rates.take_request(key)
        body = await self._body(headers, receive)
        await self.app(scope, _replay(body, receive), send)

    def _headers(self, scope: Scope) -> dict[bytes, bytes]:
        pairs = scope["headers"]
        size = sum(len(name) + len(value) for name, value in pairs)
        if len(pairs) > MAX_HEADERS or size > MAX_HEADER_BYTES:
            raise RequestError(
                "headers_too_large",
                f"the request has {len(pairs)} headers of {size} bytes; {MAX_HEADERS} of {MAX_HEADER_BYTES} are taken",
            )
        target = len(scope.get("raw_path") or scope["path"].encode()) + len(scope["query_string"])
        if target > MAX_TARGET_BYTES:
            raise RequestError("headers_too_large", f"path and query have {target} bytes; {MAX_TARGET_BYTES} are taken")
        if "\n" in scope["path"]:
            # A route's pattern ends before a last line break as well: `first%0a` would be `first`.
            raise RequestError("not_found", "no path has a line break")
        headers = dict(pairs)
        for name in SINGLE_HEADERS:
            if sum(other == name for other, _ in pairs) > 1:
                raise RequestError("invalid_value", f"the header {name.decode()} stands there more than once")
        return headers

    def _check_host(self, headers: dict[bytes, bytes]) -> None:
        name = _host(headers.get(b"host", b"").decode("latin-1"))
        if self.checks_host and name not in self.hosts:
            raise RequestError(
                "forbidden",
                f"the server is not known as {name[:100]!r}; whoever runs it can name it in `allowed_hosts`",
            )

    def _check_origin(self, scope: Scope, headers: dict[bytes, bytes]) -> bool:
        """Whether it is a preflight that needs no more than the CORS headers."""
        origin = headers.get(b"origin", b"").decode("latin-1").lower()
        if not origin:
            return False
        if origin in self.cors_origins:
            record_of(scope).headers += [
                (b"access-control-allow-origin", headers[b"origin"]),
                (b"access-control-expose-headers", b"x-request-id, retry-after"),
                (b"vary", b"origin"),
            ]
            return scope["method"] == "OPTIONS" and b"access-control-request-method" in headers
        scheme, _, place = origin.partition("://")
        port = DEFAULT_PORTS.get(scheme)
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if port is None or place.removesuffix(f":{port}") != host.removesuffix(f":{port}"):
            raise RequestError(
                "forbidden", f"pages of {origin[:100]!r} may not call this server; it can be named in `cors_origins`"
            )
        return False

    def _check_key(self, scope: Scope, headers: dict[bytes, bytes]) -> str | None:
        """The name of the key, or None where none is asked for."""
        path = route_of(scope)
        is_admin = path == "/admin" or path.startswith("/admin/")
        if is_admin and not self.admin_keys:
            raise RequestError("forbidden", "/admin is closed: the server has no `admin_key_file`")
        keys = self.admin_keys if is_admin else self.keys
        if not keys:
            return None
        shown = _shown_key(headers.get(b"authorization", b"").decode("latin-1"))
        name = keys.name_of(shown) if shown else None
        if name is None:
            what = "an admin key" if is_admin else "a key"
            said = "the key is not one of them" if shown else "none was given"
            raise RequestError("invalid_api_key", f"the server asks for {what}, as `Authorization: Bearer KEY`; {said}")
        record_of(scope).key = name
        return name

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        most = self.config.max_body_bytes
        declared = headers.get(b"content-length", b"0")
        if not declared.isdigit():
            raise RequestError("invalid_value", "Content-Length is no number")
        # Compared by digits first: int() of a very long one is refused by Python.
        if len(declared) > 18 or int(declared) > most:
            raise _too_large(most)
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    body += message.get("body", b"")
                    if len(body) > most:
                        raise _too_large(most)
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            raise RequestError("timeout", f"the body did not arrive within {BODY_TIMEOUT_S:g} s") from None


def _too_large(most: int) -> RequestError:
    return RequestError("request_too_large", f"the body has more than {most} bytes")


def _host(value: str) -> str:
    """The name in a Host header, without port and brackets."""
    if value.startswith("["):
        return value[1:].partition("]")[0].lower()
    return value.partition(":")[0].rstrip(".").lower()


def _shown_key(authorization: str) -> str | None:
    """The key of `Bearer KEY`, or the password of `Basic`, which is what a browser can ask a person for."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value.strip(), validate=True).decode("latin-1").partition(":")[2]
        except (binascii.Error, ValueError):
            return None
    return None


async def _preflight(headers: dict[bytes, bytes], send: Send) -> None:
    """What a page of a named origin may send: any header, for none of them is trusted more than the key in it."""
    answer = [
        (b"access-control-allow-methods", b"GET, POST"),
        (
            b"access-control-allow-headers",
            headers.get(b"access-control-request-headers", b"authorization, content-type"),
        ),
        (b"access-control-max-age", str(PREFLIGHT_MAX_AGE_S).encode()),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": answer})
    await send({"type": "http.response.body", "body": b""})


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body at once, and then what the client does (it leaves)."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
