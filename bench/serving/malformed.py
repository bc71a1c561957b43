"""Requests as nobody should send them, as bytes, each with the statuses that are right for it; a 5xx never is."""

import contextlib
import json
import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

KEY, ADMIN_KEY = "k" * 32, "a" * 32
GOOD = ("first", "second", "third")  # adapters that are there
MAX_LENGTH, MAX_BODY_BYTES = 400, 1_000_000


class Made(NamedTuple):
    """A kind of request; what to send, piece by piece; the statuses that are right, 0 for a closed connection; after how many
    bytes of the answer the client leaves."""

    kind: str
    pieces: Sequence[bytes]
    right: set[int]
    leaves_after: int | None = None


def request(
    method: str = "POST",
    path: str = "/v1/completions",
    body: Any = None,
    headers: Sequence[str | bytes] = (),
    *,
    key: str | None = KEY,
    host: str | None = "127.0.0.1",
    length: object = None,
    version: str = "HTTP/1.1",
    media: str = "application/json",
) -> bytes:
    """The bytes of a request, and no question asked. Without a `length` it is the body's; an empty one leaves it out."""
    raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    lines: list[str | bytes] = [f"{method} {path} {version}"]
    lines += [f"Host: {host}"] * (host is not None) + [f"Authorization: Bearer {key}"] * (key is not None)
    lines += [f"Content-Length: {len(raw) if length is None else length}"] * (method == "POST" and length != "")
    lines += [*headers, f"Content-Type: {media}", "Connection: close", "", ""]
    return (
        b"\r\n".join(line if isinstance(line, bytes) else line.encode("utf-8", "surrogateescape") for line in lines)
        + raw
    )


def completion(**more: Any) -> dict[str, Any]:
    return {"model": "first", "prompt": "今日天气阴沉，", "max_tokens": 4, "seed": 7} | more


# ── by hand ──


def hand_made(dice: random.Random) -> Made:
    kind, (make, right) = dice.choice(list(KINDS.items()))
    made = make(dice)
    return Made(kind, made if isinstance(made, list) else [made], right, LEAVES_AFTER.get(kind))


def _get(path: str = "/v1/models/base", *headers: str | bytes, **more: Any) -> bytes:
    return request("GET", path, None, headers, **more)


def _raw_body(raw: bytes) -> bytes:
    return request(body=raw[:MAX_BODY_BYTES])


def _spoiled(dice: random.Random, spoil: Callable[[bytes, int], bytes]) -> bytes:
    """A right body after something was done to it at a random place."""
    whole = json.dumps(completion()).encode()
    return _raw_body(spoil(whole, dice.randrange(1, len(whole) - 1)))


def _sampled(value: bytes, field: bytes = b"seed") -> bytes:
    return _raw_body(b'{"model":"first","prompt":"a","%s":%s}' % (field, value))


# fmt: off
VALUES: tuple[tuple[str, Any], ...] = (
    ("n", 17), ("n", 2**31), ("n", -1), ("n", 2**63 - 1), ("max_tokens", MAX_LENGTH), ("max_tokens", 10**6), ("max_tokens", -1),
    ("temperature", 1e308), ("temperature", -0.1), ("top_p", 0), ("top_k", -1), ("seed", -1), ("seed", 1.5), ("logprobs", 6),
    ("stop", ["a"] * 17), ("stop", "a" * 257), ("stop", [""]), ("prompt", []), ("prompt", [[]]), ("prompt", ["a"] * 17),
    ("prompt", ["a"] * 50_000), ("prompt", [0] * 150_000), ("prompt", [2**31]), ("prompt", [319, 5000]), ("prompt", [-1]),
    ("prompt", [True]), ("prompt", "天" * 1000), ("prompt", {"a": 1}), ("best_of", 3), ("echo", "yes"), ("stream", 1),
    ("lora_scale", 1.6), ("lora_scale", "1"), ("model", 7), ("model", ""), ("model", "a" * 257), ("suffix", "x"), ("tools", [{}]),
    ("logit_bias", {"1": 100}), ("__proto__", {}), ("x" * 5000, 1), ("repetition_penalty", 0), ("stream_options", {"a": 1}),
    ("response_format", {"type": "json_object"}),
)
CELLS: tuple[tuple[str, list[Any]], ...] = (
    ("models", [f"m{i}" for i in range(65)]), ("seeds", list(range(64))), ("temperatures", [i / 64 for i in range(64)]),
    ("lora_scales", [i / 17 for i in range(17)]),
)
NAMES = (
    "../../etc/passwd", "/etc/passwd", "..\\..\\windows", "%2e%2e/%2e%2e", "first/../second", "./first", "~", "first\0", "first\n",
    "file:///etc/passwd", "s3://bucket/x", "ｆｉｒｓｔ", "\u202etsrif", "FIRST", "first ", "hostile-1", "a" * 256, "$(id)", "{{7*7}}",
    "first@step-9", "__base__", "-", "😀",
)
ESCAPED = (
    "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "..%2f..", "first%00", "first%0a", "first%0d%0a", "%ff%fe", "%ed%a0%80", "%2ffirst", "first/",
    "first%2f..", "..%5c..", "%25%32%65", "first%20", "first;a", "%F0%9F%98%80", "first%e2%80%ae",
)
TARGETS = (
    "*", "//", "/%", "/%zz", "/\udcff", "/v1/../v1", "http://evil.example/v1/nothing", "evil:80", "/v1/models/%00", "/-/nothing",
    "/static/..%2f..%2fapi.py", "/static/%2e%2e%2fapi.py", "/.env", "/v1//models", "/docs", "/redoc", "/metrics/",
)
BROKEN_HEADERS = (
    b"X-A : a", b" folded", b"no colon", b"X-\xff: a", b"X-A: a\x00b", b": a", b"X: a\rb", b"Content-Length: -5", b"Content-Length: 5",
    b"Content-Length: 5, 5", b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip", b"Host: evil.example", b"Content-Type: text/plain",
    b"Authorization: Bearer x",
)
SERVES_HEADERS = (
    b"X-Request-Id", b"serve_multiplexed_model_id", b"serve-multiplexed-model-id", b"X-Session-Id", b"X-Request-Timeout-Seconds",
    b"X-Request-Disconnect-Disabled", b"traceparent", b"X-Forwarded-For", b"X-HTTP-Method-Override", b"Cookie", b"Accept-Encoding",
)
ODD_VALUES = (b"\xff\xfe", b"0.001", b"nan", b"?1", b"-1", b"x" * 5000, b"first", b"DELETE", b"", b"%00", b"*" * 500)
METHODS = ("PUT", "DELETE", "PATCH", "TRACE", "OPTIONS", "PROPFIND", "CONNECT", "FOO", "get", "POST ")
VERSIONS = ("HTTP/1.0", "HTTP/0.9", "HTTP/2.0", "HTTP/3", "HTTP/1.1.1", "HTTX/1.1", "", "ICY/1.0")
NOT_HTTP = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 32, b"SSH-2.0-OpenSSH_9.6\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x80\x04\x95\x00\x00\x00\x00\r\n\r\n", b"\x00" * 10_000, b"GET /v1/models HTTP/1.1\nHost: 127.0.0.1\n\n", b"{}\r\n\r\n",
)
KEYS = (None, "", "k", KEY[:-1], KEY + "k", KEY.upper(), "é" * 16, "k" * 20_000, "' OR 1=1", KEY + "\t,x")
SCHEMES = ("Basic", "Basic =", "Basic !!!", "Basic " + "A" * 9, "Digest x", "Bearer", b"\xff", KEY, "Token " + KEY)
HOSTS = ("evil.example", "127.0.0.1.evil.example", "", "[::2]", "localhost@evil", "0.0.0.0", "é", "a" * 5000, None)
ORIGINS = (b"http://evil.example", b"null", b"http://127.0.0.1:1", b"file://", b"http://127.0.0.1.evil", b"\xff", b"http://localhost")
WEBSOCKET = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
CHUNKED = request(length="", headers=("Transfer-Encoding: chunked",))
RIGHT = request(body=completion())
KEPT_OPEN = _get().replace(b"Connection: close", b"X: 1")

KINDS: dict[str, tuple[Callable[[random.Random], bytes | list[bytes]], set[int]]] = {
    "a right one in between": (lambda d: request(body=completion(model=d.choice((*GOOD, "base")))), {200}),
    # bodies that are no such JSON
    "body: cut off": (lambda d: _spoiled(d, lambda whole, at: whole[:at]), {400}),
    "body: bad UTF-8": (lambda d: _spoiled(d, lambda whole, at: whole[:at] + d.choice((b"\xff", b"\xc0\xaf", b"\xed\xa0\x80")) + whole[at:]), {400}),
    "body: another encoding": (lambda d: _raw_body(json.dumps(completion()).encode(d.choice(("utf-16", "utf-32", "utf-8-sig")))), {400}),
    "body: half a surrogate": (lambda d: _sampled(d.choice((b'"\\ud83d"', b'"\\udc00"', b'"\\ud800\\u0041"')), b"user"), {400}),
    "body: NaN and the like": (lambda d: _sampled(d.choice((b"NaN", b"Infinity", b"-Infinity", b"1e999", b"0x10", b"1_0"))), {400}),
    "body: huge number": (lambda d: _sampled(b"9" * d.choice((20, 5000, 900_000))), {400}),
    "body: deep JSON": (lambda d: _raw_body(d.choice((b"[", b'{"prompt":')) * d.choice((33, 5000, 90_000))), {400}),
    "body: no object": (lambda d: _raw_body(d.choice((b"", b"null", b"[]", b"3", b'"a"', b"\x00", b"\xef\xbb\xbf{}"))), {400}),
    "body: noise": (lambda d: _raw_body(b"\xfe" + d.randbytes(d.choice((1, 100, 50_000)))), {400}),
    "value out of bounds": (lambda d: request(body=completion() | dict([d.choice(VALUES)])), {400}),
    "comparison of too much": (
        lambda d: request(path="/v1/compare", body={"models": ["base", "first"], "prompt": "a"} | dict([d.choice(CELLS)])), {400}),
    # names
    "path-like name": (lambda d: request(body=completion(model=d.choice(NAMES))), {404}),
    "path-like name compared": (lambda d: request(path="/v1/compare", body={"models": ["base", d.choice(NAMES)], "prompt": "a"}), {404}),
    "path-like name in the path": (lambda d: _get(d.choice(("/v1/models/", "/static/")) + d.choice(ESCAPED)), {404}),
    # heads
    "long request line": (lambda d: _get(d.choice(("/" + "a" * d.choice((2100, 20_000, 100_000)), "/v1/models?" + "a=1&" * 600))), {400, 431}),
    "odd request line": (lambda d: _get(d.choice(TARGETS)), {400, 404}),
    "many headers": (lambda d: _get("/", *[f"X-{i}: 1" for i in range(d.choice((101, 1000, 5000)))]), {431, 0}),
    "huge header": (lambda d: _get("/", "X: " + "a" * d.choice((33_000, 10**6))), {431, 0}),
    "head without end": (lambda d: [b"GET / HTTP/1.1\r\nX: ", *[d.choice((b"a" * 60_000, b"\r\nX: 1" * 10_000))] * 40], {431, 0}),
    "broken header": (lambda d: request(body=completion(), headers=(d.choice(BROKEN_HEADERS),)), {400}),
    "headers meant for Serve": (lambda d: _get("/v1/models/base", d.choice(SERVES_HEADERS) + b": " + d.choice(ODD_VALUES)), {200}),
    "wrong method": (lambda d: request(d.choice(METHODS), d.choice(("/v1/completions", "/v1/models"))), {400, 405}),
    "other version": (lambda d: _get(version=d.choice(VERSIONS)), {200, 400}),
    "not HTTP": (lambda d: d.choice(NOT_HTTP), {400}),
    # Only the first answer is looked at; what follows may be refused before it.
    "garbage in the pipeline": (
        lambda d: KEPT_OPEN + d.choice((d.randbytes(500), b"GET / HTTP/1.1\r\n", _get("/nowhere") * 200, b"\r\n" * 5000)), {200, 400}),
    "websocket": (lambda d: _get(d.choice(("/v1/completions", "/nowhere")), *WEBSOCKET[: d.choice((2, 4))]), {404, 405}),
    # lengths
    "body said to be huge": (lambda d: request(body=b"{}", length=d.choice((MAX_BODY_BYTES + 1, 10**12, 10**18, 10**30))), {400, 413}),
    "body longer than said": (lambda d: request(body=json.dumps(completion()).encode(), length=d.randrange(50)), {400}),
    "length that is none": (lambda d: request(body=b"{}", length=d.choice(("x", "-1", "0x10", "1e3", "٣", "+2"))), {400}),
    "huge body": (lambda d: request(body=b" " * d.choice((MAX_BODY_BYTES + 1, 5 * MAX_BODY_BYTES))), {413, 0}),
    "bad chunks": (lambda d: CHUNKED + d.choice((b"zz\r\n{}", b"-1\r\n", b"5\r\n{}\r\n0\r\n\r\n", b"f" * 18 + b"\r\n")), {400}),
    "chunks without end": (lambda d: [CHUNKED, *[(b"%x\r\n%s\r\n" % (size := d.choice((100, 65_536)), b" " * size)) * (65_536 // size)] * 40], {413, 0}),
    # who asks, and from where
    "wrong key": (lambda d: request(path=d.choice(("/v1/completions", "/v1/compare", "/admin/refresh")), body=completion(), key=d.choice(KEYS)), {401}),
    "wrong scheme": (lambda d: _get("/v1/models", b"Authorization: " + (s if isinstance(s := d.choice(SCHEMES), bytes) else s.encode()), key=None), {401}),
    "key of the others": (lambda d: d.choice((request(path=d.choice(("/admin/refresh", "/admin/", "/admin/x"))), _get("/v1/models", key=ADMIN_KEY))), {401}),
    "wrong host": (lambda d: _get("/v1/models", host=d.choice(HOSTS)), {400, 403}),
    "wrong origin": (lambda d: request(body=completion(), headers=(b"Origin: " + d.choice(ORIGINS),)), {403}),
    "preflight": (lambda d: request("OPTIONS", headers=(b"Origin: " + d.choice(ORIGINS), b"Access-Control-Request-Method: POST")), {403}),
    # clients that leave
    "leaves within its request": (lambda d: RIGHT[: d.randrange(1, len(RIGHT))], {0}),
    "leaves at once": (lambda d: request(body=completion(max_tokens=300, n=d.choice((1, 4)), stream=d.random() < 0.5)), {0}),
    "leaves in the middle": (lambda d: request(body=completion(max_tokens=300, n=d.choice((1, 4)), stream=True)), {200}),
}
LEAVES_AFTER = {"leaves within its request": 0, "leaves at once": 0, "leaves in the middle": 2000, "garbage in the pipeline": 200}
# fmt: on


# ── from the document ──


def from_document(document: dict[str, Any], count: int, dice: random.Random) -> list[Made]:
    """Right and wrong ones by schemathesis, some with other bytes in their bodies; any status of the document is right that is
    no 5xx. What can be made of routes without a body is soon exhausted; damaged copies make up the number."""
    import schemathesis

    schema = schemathesis.openapi.from_dict(document)
    positive, negative = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE
    operations = [
        (path, method, route) for path, routes in document["paths"].items() for method, route in routes.items()
    ]
    bodies = sum("requestBody" in route for *_, route in operations)
    found: list[Made] = []
    for path, method, route in operations:
        share = count // (2 * bodies + 2) if "requestBody" in route else 20
        right = {int(status) for status in route["responses"] if int(status) < 500} | {405}
        # Without a body there is nothing to get wrong.
        for mode in (positive, negative) if "requestBody" in route else (positive,):
            for case in _cases(schema[path][method].as_strategy(generation_mode=mode), share, dice.randrange(1 << 30)):
                if mode is positive and isinstance(case.body, dict) and dice.random() < 0.3:
                    few = (
                        {"models": ["first"], "seeds": [1], "temperatures": [1]}
                        if path == "/v1/compare"
                        else {"model": "first", "n": 1}
                    )
                    case.body |= few | {"max_tokens": dice.randrange(1, 8)}
                found += [Made(f"document: {path}", [raw], right) for raw in _raw(case, path, dice)]
    while len(found) < count:
        raw = dice.choice(found).pieces[0]
        at = dice.randrange(len(raw))
        damaged = raw[:at] + dice.randbytes(dice.randrange(4)) + raw[at + 1 :]
        found.append(Made("document: damaged", [damaged], {0, 200, *range(400, 432)}))
    dice.shuffle(found)
    return found[:count]


def _cases(strategy: Any, count: int, seed: int) -> list[Any]:
    import hypothesis

    found: list[Any] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        phases=[hypothesis.Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(strategy)
    def keep(case: Any) -> None:
        found.append(case)

    keep()
    return found


def _raw(case: Any, path: str, dice: random.Random) -> list[bytes]:
    """A case as bytes; none where no client could send it."""
    import requests

    with contextlib.suppress(requests.RequestException, UnicodeError, ValueError):
        ready = requests.Request(**case.as_transport_kwargs(base_url="http://127.0.0.1")).prepare()
        body = (
            ready.body.encode() if isinstance(ready.body, str) else ready.body if isinstance(ready.body, bytes) else b""
        )
        if body and dice.random() < 0.3:
            at = dice.randrange(len(body))
            body = (
                body[:at] + dice.choice((b"", b"\xff", b"\x00", b"9" * 30, b"]", b'"')) + body[at + dice.randrange(3) :]
            )
        media = ready.headers.get("content-type", "application/json")
        media = media if isinstance(media, str) else media.decode("latin-1")
        key = ADMIN_KEY if path.startswith("/admin") else KEY
        return [request(str(ready.method), ready.path_url, body, key=key, media=media)]
    return []
