"""A backend that says what a test tells it to, and ways to ask an application: in this process, and over a socket."""

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from typing import Any, NamedTuple

import uvicorn

from raystyle.config import ServeConfig
from raystyle.serving.api import Application, make_app
from raystyle.serving.contract import Alternative, Card, Delta, Generation, Listing, Started, TokenLogprob
from raystyle.serving.keys import Keys

DIGEST = "d1" * 32
CARDS = (
    Card("base", "base"),
    Card("style", "adapter", DIGEST, step=40, created=7, effect=1.5, markers=("黄昏",)),
    Card("style@step-20", "checkpoint", "d2" * 32, step=20, created=6, effect=0.5),
    Card("empty", "adapter", "d3" * 32, refused="it changes nothing"),
)


class Scripted:
    """Each choice says a text of one character a token, which tells the model, the scale, the seed and the prompt."""

    def __init__(self, **changes: Any) -> None:
        told = {"cards": CARDS, "engine": "scripted", "max_length": 4096, "can_scale": True, "has_chat_template": True}
        self.told = Listing(**told | changes)
        self.asked: list[Generation] = []
        self.closed: list[str] = []
        self.listings = 0
        self.errors: dict[str | None, Exception] = {}  # by digest, raised after `good_tokens`
        self.good_tokens = 0
        self.token_s = 0.0
        self.first_token_s = 0.0

    async def listing(self) -> Listing:
        self.listings += 1
        await asyncio.sleep(0)
        return self.told

    async def refresh(self) -> Listing:
        return self.told

    async def generate(self, generation: Generation) -> AsyncGenerator[list[Started | Delta], None]:
        self.asked.append(generation)
        try:
            yield [Started(len(generation.prompt))]
            await asyncio.sleep(self.first_token_s)
            texts = [text_of(generation, number) for number in range(len(generation.samplings))]
            if generation.echo:
                yield [Delta(number, str(generation.prompt), 0) for number in range(len(texts))]
            for place in range(max(map(len, texts), default=0) + 1):
                if generation.adapter in self.errors and place == self.good_tokens:
                    raise self.errors[generation.adapter]
                yield [
                    delta(generation, number, text, place) for number, text in enumerate(texts) if place <= len(text)
                ]
                await asyncio.sleep(self.token_s)
        finally:
            self.closed.append(generation.id)


def text_of(generation: Generation, number: int) -> str:
    sampling = generation.samplings[number]
    who = generation.adapter[:2] if generation.adapter else "基"
    text = f"{who}×{generation.scale:g}种{sampling.seed}温{sampling.temperature:g}：{generation.prompt!r}"
    limit = len(text) if sampling.max_new_tokens < 0 else sampling.max_new_tokens
    return text[:limit]


def delta(generation: Generation, number: int, text: str, place: int) -> Delta:
    if place == len(text):
        is_cut = len(text) == generation.samplings[number].max_new_tokens
        return Delta(number, "", 0, finish_reason="length" if is_cut else "stop")
    piece, scored = text[place], ()
    if generation.logprobs is not None:
        half = Alternative("�", "汉".encode()[:2], -float("inf"))
        likeliest = (Alternative(piece, piece.encode(), -0.5), half)
        scored = (TokenLogprob(piece, piece.encode(), -0.5, likeliest[: generation.logprobs], place),)
    return Delta(number, piece, 1, scored)


def app_of(
    backend: Any = None, keys: Keys | None = None, admin_keys: Keys | None = None, **settings: Any
) -> Application:
    config = ServeConfig(model_name_or_path="base", **settings)
    return make_app(config, backend or Scripted(), keys or Keys(), admin_keys or Keys())


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    pieces: list[bytes]

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    def json(self) -> Any:
        return json.loads(self.body)

    def events(self) -> list[Any]:
        """The objects of a stream; its end as the word that stands there."""
        lines = [line for line in self.body.decode().split("\n\n") if line]
        assert all(line.startswith("data: ") for line in lines), lines
        return [line[6:] if line == "data: [DONE]" else json.loads(line[6:]) for line in lines]


async def ask(
    app: Any,
    method: str,
    path: str,
    body: Any = None,
    headers: dict[str, str] | None = None,
    leaves_after: int | None = None,
) -> Answer:
    """One request. `body` is bytes, or what becomes JSON. A client that leaves does so after so many pieces."""
    raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    sent = {"host": "127.0.0.1:8000", "content-type": "application/json", **(headers or {})}
    path, _, query = path.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in sent.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
    }
    messages = [{"type": "http.request", "body": raw, "more_body": False}]
    pieces: list[bytes] = []
    start: dict[str, Any] = {}
    left = asyncio.Event()
    if leaves_after == 0:
        left.set()

    async def receive() -> Any:
        if messages:
            return messages.pop(0)
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            assert not start
            start.update(message)
        else:
            pieces.append(message.get("body", b""))
            if leaves_after is not None and len(pieces) >= leaves_after:
                left.set()

    await app(scope, receive, send)
    found = {name.decode(): value.decode() for name, value in start.get("headers", [])}
    return Answer(start.get("status", 0), found, pieces)


def post(app: Any, path: str, body: Any, **more: Any) -> Answer:
    return asyncio.run(ask(app, "POST", path, body, **more))


def get(app: Any, path: str, **more: Any) -> Answer:
    return asyncio.run(ask(app, "GET", path, **more))


@contextlib.contextmanager
def served(app: Any) -> Iterator[str]:
    """The application behind a real server on the loopback, as its address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        deadline_s = time.monotonic() + 20
        while not server.started:
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(timeout=20)
