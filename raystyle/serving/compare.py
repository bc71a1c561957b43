"""POST /v1/compare: one prompt, continued by the base, adapters and checkpoints at the same time, cell by cell.

Cells are models x scales x temperatures x seeds, in that order; the base has one scale. All cells of a model at a scale are
one generation. A model that fails ends its own cells, and the others go on.
"""

import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from starlette.requests import Request as HTTPRequest
from starlette.types import ASGIApp, Send

from raystyle.generation import Sampling
from raystyle.serving.access import Record, record_of
from raystyle.serving.completions import adapter_of, check_length, check_scale, random_seed, usage
from raystyle.serving.contract import BASE, PACE_S, PACE_UNWATCHED_S, Card, Generation
from raystyle.serving.errors import refuse
from raystyle.serving.limits import max_cells
from raystyle.serving.protocol import CompareRequest
from raystyle.serving.running import DONE, Gains, Job, Service, answer, asked, event, send_json, stream


async def compare(service: Service, request: HTTPRequest) -> ASGIApp:
    """The route."""
    body = await asked(CompareRequest, request)
    most = max_cells(service.config)
    if len(body.models) > most:
        refuse(f"`models` has {len(body.models)} models, where {most} cells are taken", "models")
    record = record_of(request.scope)
    columns: list[tuple[Card, float]] = []
    for name in body.models:
        card, listing = await service.catalogue.find(name)
        check_length(body.max_tokens, listing)
        scales = [1.0] if card.kind == BASE else body.lora_scales
        for scale in scales:
            check_scale(scale, card, listing, "lora_scales")
            columns.append((card, scale))
    record.models = tuple(body.models)
    record.digests = tuple(dict.fromkeys(adapter_of(card) for card, _ in columns))
    seeds = body.seeds or [random_seed()]
    draws = [(temperature, seed) for temperature in body.temperatures for seed in seeds]
    if len(columns) * len(draws) > most:
        refuse(
            f"{len(columns)} models and scales times {len(draws)} temperatures and seeds are {len(columns) * len(draws)} "
            f"cells, where {most} are taken",
            "seeds",
        )
    cells: list[dict[str, Any]] = [
        {
            "cell": column * len(draws) + place,
            "model": card.name,
            "adapter_digest": adapter_of(card),
            "seed": seed,
            "temperature": temperature,
            "lora_scale": scale,
        }
        for column, (card, scale) in enumerate(columns)
        for place, (temperature, seed) in enumerate(draws)
    ]
    jobs = [
        Job(
            card.name,
            Generation(
                id=f"{record.id}-{number}",
                prompt=body.prompt,
                samplings=tuple(
                    Sampling(
                        max_new_tokens=body.max_tokens,
                        temperature=temperature,
                        top_p=body.top_p,
                        repetition_penalty=body.repetition_penalty,
                        seed=seed,
                        top_k=body.top_k,
                    )
                    for temperature, seed in draws
                ),
                adapter=adapter_of(card),
                scale=scale,
                stop=body.stop,
                pace_s=PACE_S if body.stream else PACE_UNWATCHED_S,
            ),
            most_tokens=len(draws) * body.max_tokens,
        )
        for number, (card, scale) in enumerate(columns)
    ]
    head = {"id": f"cmp-{record.id[4:]}", "created": int(time.time()), "prompt": body.prompt}

    async def write(record: Record, gains: Gains, send: Send) -> None:
        if body.stream:
            await stream(record, send, _events(head, cells, len(draws), record, gains))
        else:
            await send_json(send, await _whole(head, cells, len(draws), record, gains))

    return answer(service, jobs, write)


async def _events(
    head: dict[str, Any], cells: Sequence[dict[str, Any]], draws: int, record: Record, gains: Gains
) -> AsyncGenerator[bytes, None]:
    yield event({"object": "compare.start", **head, "cells": cells})
    ended: set[int] = set()
    async for gained in gains:
        first = gained.job * draws
        if gained.error is not None:
            record.failed[cells[first]["model"]] = gained.error.code
            left = [cell for cell in range(first, first + draws) if cell not in ended]
            yield event({"object": "compare.error", "cells": left, **gained.error.body()})
            continue
        ended |= {first + delta.choice for delta in gained.deltas if delta.finish_reason}
        yield b"".join(
            event(
                {
                    "object": "compare.delta",
                    "cell": first + delta.choice,
                    "text": delta.text,
                    "tokens": delta.tokens,
                    "finish_reason": delta.finish_reason,
                }
            )
            for delta in gained.deltas
        )
    yield event({"object": "compare.end", "usage": usage(record)})
    yield DONE


async def _whole(
    head: dict[str, Any], cells: Sequence[dict[str, Any]], draws: int, record: Record, gains: Gains
) -> dict[str, Any]:
    told: list[dict[str, Any]] = [cell | {"text": "", "finish_reason": None, "tokens": 0} for cell in cells]
    async for gained in gains:
        own = told[gained.job * draws : (gained.job + 1) * draws]
        if gained.error is not None:
            record.failed[own[0]["model"]] = gained.error.code
            for cell in own:
                if cell["finish_reason"] is None:
                    cell |= gained.error.body()
        for delta in gained.deltas:
            cell = own[delta.choice]
            cell["text"] += delta.text
            cell["tokens"] += delta.tokens
            cell["finish_reason"] = delta.finish_reason
    return {"object": "compare", **head, "cells": told, "usage": usage(record)}
