"""Running generations for a request: deadlines, several at once, what is counted, and a client that leaves."""

import asyncio
import dataclasses
import json
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing

from starlette.requests import Request as HTTPRequest
from starlette.types import ASGIApp, Receive, Scope, Send

from raystyle.config import ServeConfig
from raystyle.serving.access import ClientGone, Record, as_request_error, record_of
from raystyle.serving.catalogue import Backend, Catalogue
from raystyle.serving.contract import Delta, Generation, Started
from raystyle.serving.errors import RequestError
from raystyle.serving.limits import Admission, Rates
from raystyle.serving.metrics import Metrics
from raystyle.serving.protocol import Body, parse

Gains = AsyncGenerator["Gained", None]

# Beyond the deadline that a client is told of: one that does not read is told nothing and only let go.
UNREAD_GRACE_S = 5.0
# A body of the default limit may take half a second to read, which all streams would stand still for.
LONG_BODY_BYTES = 65_536


@dataclasses.dataclass(frozen=True)
class Service:
    """What routes need."""

    config: ServeConfig
    backend: Backend
    catalogue: Catalogue
    admission: Admission
    rates: Rates
    metrics: Metrics


@dataclasses.dataclass(frozen=True)
class Job:
    """A generation, the model that it is counted for, and the most new tokens that its key is asked to have for it."""

    model: str
    generation: Generation
    most_tokens: int

    @property
    def choices(self) -> int:
        return len(self.generation.samplings)


@dataclasses.dataclass(frozen=True)
class Gained:
    """What a job's choices gained at once, or the error that it ended with."""

    job: int
    deltas: Sequence[Delta] = ()
    error: RequestError | None = None


async def asked(model: type[Body], request: HTTPRequest) -> Body:
    """What a request asks for. Raises `RequestError` `invalid_value`."""
    raw, content_type = await request.body(), request.headers.get("content-type", "")
    if len(raw) > LONG_BODY_BYTES:
        return await asyncio.to_thread(parse, model, raw, content_type)
    return parse(model, raw, content_type)


async def run(service: Service, record: Record, jobs: Sequence[Job]) -> Gains:
    """What jobs gain, as it comes, all of them at the same time. A job that fails ends with its error; the others go on.

    Closing it closes every generation.
    """
    runs = [_run_one(service, record, number, job) for number, job in enumerate(jobs)]
    if len(runs) == 1:
        async with aclosing(runs[0]):
            async for gained in runs[0]:
                yield gained
        return
    arrived: asyncio.Queue[Gained | None] = asyncio.Queue(maxsize=len(runs))

    async def pump(source: Gains) -> None:
        async with aclosing(source):
            async for gained in source:
                await arrived.put(gained)
        await arrived.put(None)

    tasks = [asyncio.create_task(pump(source)) for source in runs]
    try:
        left = len(tasks)
        while left:
            next_one = await arrived.get()
            if next_one is None:
                left -= 1
            else:
                yield next_one
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _run_one(service: Service, record: Record, number: int, job: Job) -> Gains:
    """One job: its deltas, or at last its error. Whatever way it ends, what it did is counted."""
    clock = time.perf_counter
    prompt_tokens, tokens, first_at_s, last_at_s = 0, 0, None, 0.0
    unfinished = set(range(job.choices))
    texts = [""] * job.choices
    try:
        async with aclosing(_within_deadlines(service, job.generation)) as batches:
            async for batch in batches:
                deltas = [event for event in batch if isinstance(event, Delta)]
                started = sum(event.prompt_tokens for event in batch if isinstance(event, Started))
                gained = sum(delta.tokens for delta in deltas)
                prompt_tokens, tokens = prompt_tokens + started, tokens + gained
                record.prompt_tokens, record.tokens = record.prompt_tokens + started, record.tokens + gained
                if not deltas:
                    continue
                if gained:
                    last_at_s = clock()
                    first_at_s = first_at_s or last_at_s
                    record.first_token_s = record.first_token_s or first_at_s - record.started_at_s
                unfinished -= {delta.choice for delta in deltas if delta.finish_reason}
                for delta in deltas if service.config.log_prompts else ():
                    texts[delta.choice] += delta.text
                yield Gained(number, deltas)
        if unfinished:
            raise RuntimeError(f"generation {job.generation.id} ended before {len(unfinished)} of its choices did")
    except Exception as error:
        yield Gained(number, error=as_request_error(error, record.id))
    finally:
        if service.config.log_prompts:
            record.texts.append({"model": job.model, "prompt": job.generation.prompt, "texts": texts})
        first_s = None if first_at_s is None else first_at_s - record.started_at_s
        steps = tokens / job.choices - 1
        token_s = (last_at_s - first_at_s) / steps if first_at_s is not None and steps > 0 else None
        service.metrics.generation(job.model, prompt_tokens, tokens, first_s, token_s)


async def _within_deadlines(service: Service, generation: Generation) -> AsyncGenerator[list[Started | Delta], None]:
    now_s, config = asyncio.get_running_loop().time, service.config
    total_at_s = now_s() + config.total_timeout_s
    deadline_s, what = min(total_at_s, now_s() + config.first_token_timeout_s), "the first token"
    async with aclosing(service.backend.generate(generation)) as batches:
        while True:
            try:
                async with service.admission.waiting_until(deadline_s) as timeout:
                    batch = await anext(batches, None)
            except TimeoutError:
                # Else it is the engine's own. No clock tells: uvloop's timers are early by up to 0.5 ms.
                if not timeout.expired():
                    raise
                if service.admission.is_over:
                    raise RequestError("unavailable", "the server has stopped; ask another one, or later") from None
                raise RequestError("timeout", f"{what} did not come in time; ask for less, or later") from None
            if batch is None:
                return
            # With `echo` a delta may be the prompt, which no model was needed for.
            if any(isinstance(event, Delta) and (event.tokens or event.finish_reason) for event in batch):
                deadline_s, what = total_at_s, "the last token"
            yield batch


def answer(service: Service, jobs: Sequence[Job], write: Callable[[Record, Gains, Send], Awaitable[None]]) -> ASGIApp:
    """An ASGI application that runs jobs and lets `write` tell what they gain, for as long as the client is there."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        record = record_of(scope)
        choices: Counter[str] = Counter()
        for job in jobs:
            choices[job.model] += job.choices
        record.choices = choices.total()
        most_s = service.config.total_timeout_s + UNREAD_GRACE_S
        most_tokens = sum(job.most_tokens for job in jobs)
        with (
            service.admission.admitted(record.choices),
            service.rates.tokens(record.key, most_tokens, lambda: record.tokens),
            service.metrics.admitted(choices),
        ):
            async with aclosing(run(service, record, jobs)) as gains:
                await _while_connected(receive, write(record, gains, send), most_s)

    return app


async def _while_connected(receive: Receive, work: Awaitable[None], most_s: float) -> None:
    """Awaits the work, and cancels it once the client leaves or has not taken its answer in time: `ClientGone`."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait((working, leaving), timeout=most_s, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        if leaving.done():
            leaving.result()
        raise ClientGone
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


# ── bytes ──

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def dumps(value: object) -> str:
    """JSON as short as it gets. What `str.splitlines` takes for the end of a line is escaped, for there are clients that
    split events by it."""
    text = _encode(value)
    return text if text.isascii() else text.translate(_LINE_ENDS)


_LINE_ENDS = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}
DONE = b"data: [DONE]\n\n"


def event(value: object) -> bytes:
    """A server-sent event."""
    return f"data: {dumps(value)}\n\n".encode()


async def stream(record: Record, send: Send, chunks: AsyncGenerator[bytes, None]) -> None:
    """Sends server-sent events. The status goes out with the first, so that an error before it is an ordinary answer; a
    later one is an event, and the end."""
    is_started = False
    try:
        async with aclosing(chunks):
            async for chunk in chunks:
                if not is_started:
                    headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
                    await send({"type": "http.response.start", "status": 200, "headers": headers})
                    is_started = True
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
    except Exception as error:
        if not is_started:
            raise
        told = as_request_error(error, record.id)
        record.code = told.code
        await send({"type": "http.response.body", "body": event(told.body()), "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def send_json(send: Send, value: object) -> None:
    """Sends a whole answer."""
    body = dumps(value).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
