"""OpenAI's completions and chat, streamed and whole, in its wire format; with each choice's seed and the adapter's digest.

`adapter_digest` is null for the base, and `system_fingerprint` is the digest's beginning, or `base`.
"""

import dataclasses
import random
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import Any

from starlette.requests import Request as HTTPRequest
from starlette.types import ASGIApp, Send

from raystyle.generation import Sampling
from raystyle.serving.access import Record, record_of
from raystyle.serving.contract import (
    BASE,
    PACE_S,
    PACE_UNWATCHED_S,
    Alternative,
    Card,
    Delta,
    Generation,
    Listing,
    Message,
    TokenLogprob,
)
from raystyle.serving.errors import RequestError, refuse
from raystyle.serving.limits import max_choices
from raystyle.serving.protocol import MAX_SEED, ChatRequest, CompletionRequest, ModelRequest
from raystyle.serving.running import DONE, Gains, Job, Service, answer, asked, dumps, event, send_json, stream

AS_MANY_AS_FIT = -1  # OpenAI's default for a chat
RANDOM_SEEDS = 2**31  # few enough to be read out, and exact in JavaScript
SEEDS_OF_A_PROMPT = 1000  # as `raystyle sample` numbers them
LOWEST_LOGPROB = -9999.0  # OpenAI's for what JSON cannot say, minus infinity


@dataclasses.dataclass(frozen=True)
class Answer:
    """What all chunks of one answer share."""

    id: str
    created: int
    model: str
    digest: str | None
    seeds: tuple[int, ...]
    is_chat: bool
    includes_usage: bool

    def head(self, object: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.digest[:12] if self.digest else BASE,
            "adapter_digest": self.digest,
        }


async def completions(service: Service, request: HTTPRequest) -> ASGIApp:
    """POST /v1/completions."""
    body = await asked(CompletionRequest, request)
    return await _respond(service, request, body, body.prompt, body.max_tokens, body.logprobs, body.echo)


async def chat(service: Service, request: HTTPRequest) -> ASGIApp:
    """POST /v1/chat/completions."""
    body = await asked(ChatRequest, request)
    # To the templates that know it, `developer` is what `system` was called before.
    messages = tuple(Message("system" if m.role == "developer" else m.role, m.content) for m in body.messages)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    return await _respond(service, request, body, [messages], body.max_completion_tokens or body.max_tokens, logprobs)


async def _respond(
    service: Service,
    request: HTTPRequest,
    body: ModelRequest,
    prompts: Sequence[str | tuple[int, ...] | tuple[Message, ...]],
    max_tokens: int | None,
    logprobs: int | None,
    echo: bool = False,
) -> ASGIApp:
    choices, most = len(prompts) * body.n, max_choices(service.config)
    if choices > most:
        refuse(f"`n` is {body.n} and there are {len(prompts)} prompts: {choices} choices, where {most} are taken", "n")
    card, listing = await service.catalogue.find(body.model)
    record = record_of(request.scope)
    digest = adapter_of(card)
    record.models, record.digests = (card.name,), (digest,)
    is_chat = isinstance(body, ChatRequest)
    if is_chat and not listing.has_chat_template:
        refuse("the base has no chat template; use /v1/completions", "messages")
    check_scale(body.lora_scale, card, listing, "lora_scale")
    max_tokens = AS_MANY_AS_FIT if max_tokens is None else max_tokens
    check_length(max_tokens, listing)
    seed = random_seed() if body.seed is None else body.seed
    seeds = [
        (seed + SEEDS_OF_A_PROMPT * number + i) % (MAX_SEED + 1)
        for number in range(len(prompts))
        for i in range(body.n)
    ]
    includes_usage = body.stream_options is not None and body.stream_options.include_usage
    prefix = "chatcmpl" if is_chat else "cmpl"
    told = Answer(
        f"{prefix}-{record.id[4:]}", int(time.time()), card.name, digest, tuple(seeds), is_chat, includes_usage
    )
    jobs = [
        Job(
            card.name,
            Generation(
                id=f"{record.id}-{number}",
                prompt=prompt,
                samplings=tuple(
                    Sampling(
                        max_new_tokens=max_tokens,
                        temperature=body.temperature,
                        top_p=body.top_p,
                        repetition_penalty=body.repetition_penalty,
                        seed=own,
                        top_k=body.top_k,
                    )
                    for own in seeds[number * body.n : (number + 1) * body.n]
                ),
                adapter=digest,
                scale=body.lora_scale,
                stop=body.stop,
                logprobs=logprobs,
                echo=echo,
                pace_s=PACE_S if body.stream else PACE_UNWATCHED_S,
            ),
            most_tokens=service.rates.as_many_as_fit(body.n * listing.max_length)
            if max_tokens == AS_MANY_AS_FIT
            else body.n * max_tokens,
        )
        for number, prompt in enumerate(prompts)
    ]

    async def write(record: Record, gains: Gains, send: Send) -> None:
        if body.stream:
            await stream(record, send, _chunks(told, body.n, record, gains))
        else:
            await send_json(send, await _whole(told, body.n, record, gains))

    return answer(service, jobs, write)


def random_seed() -> int:
    return random.randrange(RANDOM_SEEDS)


def adapter_of(card: Card) -> str | None:
    """The digest that a generation asks for: none for the base."""
    return None if card.kind == BASE else card.digest


def check_scale(scale: float, card: Card, listing: Listing, param: str) -> None:
    if scale == 1:
        return
    if not listing.can_scale:
        refuse(f"`{param}` is {scale:g}, and the engine {listing.engine} takes adapters as they are, which is 1", param)
    if card.kind == BASE:
        refuse(f"`{param}` is {scale:g}, and the base has no adapter to scale", param)


def check_length(max_tokens: int, listing: Listing) -> None:
    if max_tokens > listing.max_length:
        raise RequestError(
            "context_length_exceeded",
            f"context_length_exceeded: `max_tokens` is {max_tokens}, and a prompt and its continuation may have "
            f"{listing.max_length} tokens together",
            "max_tokens",
        )


def usage(record: Record) -> dict[str, int]:
    """A prompt counts once, whatever the number of its choices."""
    return {
        "prompt_tokens": record.prompt_tokens,
        "completion_tokens": record.tokens,
        "total_tokens": record.prompt_tokens + record.tokens,
    }


async def _deltas(n: int, gains: Gains) -> AsyncGenerator[list[tuple[int, Delta]], None]:
    """Deltas with the index that their choice has in the answer. Raises the error of the first job that fails."""
    async for gained in gains:
        if gained.error is not None:
            raise gained.error
        yield [(gained.job * n + delta.choice, delta) for delta in gained.deltas]


async def _whole(told: Answer, n: int, record: Record, gains: Gains) -> dict[str, Any]:
    texts: list[list[str]] = [[] for _ in told.seeds]
    logprobs: list[list[TokenLogprob]] = [[] for _ in told.seeds]
    reasons: list[str | None] = [None for _ in told.seeds]
    async for deltas in _deltas(n, gains):
        for index, delta in deltas:
            texts[index].append(delta.text)
            logprobs[index].extend(delta.logprobs)
            reasons[index] = delta.finish_reason or reasons[index]
    choices: list[dict[str, Any]] = []
    for index, seed in enumerate(told.seeds):
        text, scored = "".join(texts[index]), _logprobs(told, logprobs[index])
        said: dict[str, Any] = {"text": text}
        if told.is_chat:
            said = {"message": {"role": "assistant", "content": text, "refusal": None}}
        choices.append({"index": index, "seed": seed, **said, "logprobs": scored, "finish_reason": reasons[index]})
    head = told.head("chat.completion" if told.is_chat else "text_completion")
    return head | {"choices": choices, "usage": usage(record)}


async def _chunks(told: Answer, n: int, record: Record, gains: Gains) -> AsyncGenerator[bytes, None]:
    """Events, those of one moment as one piece. What does not change from one to the next is written once."""
    head = told.head("chat.completion.chunk" if told.is_chat else "text_completion")
    opened = f"data: {dumps(head)[:-1]},"
    heads = [f'{opened}"choices":[{{"index":{index},"seed":{seed},' for index, seed in enumerate(told.seeds)]
    tail = '}],"usage":null}\n\n' if told.includes_usage else "}]}\n\n"
    is_new = [True] * len(heads)
    async for deltas in _deltas(n, gains):
        parts: list[str] = []
        for index, delta in deltas:
            reason = f'"{delta.finish_reason}"' if delta.finish_reason else "null"
            scored = dumps(_logprobs(told, delta.logprobs)) if delta.logprobs else "null"
            text = dumps(delta.text)
            if not told.is_chat:
                if not (delta.text or delta.logprobs or delta.finish_reason):
                    continue
                parts.append(f'{heads[index]}"text":{text},"logprobs":{scored},"finish_reason":{reason}{tail}')
                continue
            # The first has the role, and the reason stands alone, as clients have it from OpenAI.
            role, is_new[index] = '"role":"assistant",' if is_new[index] else "", False
            if role or delta.text or delta.logprobs:
                said = f'"delta":{{{role}"content":{text}}},"logprobs":{scored},"finish_reason":null'
                parts.append(f"{heads[index]}{said}{tail}")
            if delta.finish_reason:
                parts.append(f'{heads[index]}"delta":{{}},"logprobs":null,"finish_reason":{reason}{tail}')
        if parts:
            yield "".join(parts).encode()
    if told.includes_usage:
        yield event(head | {"choices": [], "usage": usage(record)})
    yield DONE


# ── log-probabilities ──


def _logprobs(told: Answer, tokens: Sequence[TokenLogprob]) -> dict[str, Any] | None:
    if not tokens:
        return None
    return _chat_logprobs(tokens) if told.is_chat else _text_logprobs(tokens)


def _chat_logprobs(tokens: Iterable[TokenLogprob]) -> dict[str, Any]:
    def told(token: TokenLogprob | Alternative) -> dict[str, Any]:
        return {"token": token.token, "logprob": _number(token.logprob), "bytes": list(token.bytes)}

    content = [told(token) | {"top_logprobs": [told(other) for other in token.top]} for token in tokens]
    return {"content": content, "refusal": None}


def _text_logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """Legacy: the likeliest tokens by name, and the token itself with them."""
    top = [
        None
        if token.logprob is None
        else {_token_name(other): _number(other.logprob) for other in token.top}
        | {_token_name(token): _number(token.logprob)}
        for token in tokens
    ]
    return {
        "tokens": [_token_name(token) for token in tokens],
        "token_logprobs": [_number(token.logprob) for token in tokens],
        "top_logprobs": top,
        "text_offset": [token.offset for token in tokens],
    }


def _token_name(token: TokenLogprob | Alternative) -> str:
    """A token's text, or `bytes:\\xe4\\xbb` where it is part of a character: many such look the same as text."""
    try:
        token.bytes.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.bytes)
    return token.token


def _number(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, LOWEST_LOGPROB)
