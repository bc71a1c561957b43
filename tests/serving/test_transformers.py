"""The embedded engine where something fails: who hears of it, and who goes on."""

import asyncio
import contextlib
from contextlib import asynccontextmanager

import builders
import pytest
import torch
from engines import finish

from raystyle import models
from raystyle.errors import ConfigError, ModelError
from raystyle.generation import Row, Sampling
from raystyle.serving.engines.transformers import MAX_FAILURES, TransformersEngine
from raystyle.serving.errors import RequestError

BAD = (9, 9, 9)


@pytest.fixture(scope="module")
def adapter(tiny_model, tmp_path_factory):
    return str(builders.write_adapter(tmp_path_factory.mktemp("adapter"), tiny_model))


@asynccontextmanager
async def started(model, **settings):
    given = {"max_length": 512, "max_batch_size": 4, "use_gpu": False} | settings
    engine = await asyncio.to_thread(TransformersEngine, str(model), **given)
    try:
        yield engine
    finally:
        await engine.close()


def row(*ids: int, new: int = 12, adapter: str | None = None, **changes) -> Row:
    return Row(ids or (5, 6, 7), Sampling(max_new_tokens=new, temperature=0.9, seed=1), adapter, **changes)


def fails(engine, monkeypatch, error: Exception, *, in_step: bool = False) -> None:
    """Let passes with a row of `BAD` fail: of prompts, or of single tokens."""
    forward = engine.decoder._forward

    def failing(rows, ids_Bq, *more):
        is_bad = any(row.prompt_ids == BAD for row in rows) and (ids_Bq.shape[1] == 1) == in_step
        if is_bad:
            raise error
        return forward(rows, ids_Bq, *more)

    monkeypatch.setattr(engine.decoder, "_forward", failing)


def test_a_prompt_that_fails_ends_alone(tiny_model, monkeypatch):
    async def main():
        async with started(tiny_model) as engine:
            long = row(new=200)
            expected = await finish(engine, long)
            fails(engine, monkeypatch, RuntimeError("boom"))
            running = engine.generate(long)
            found = list((await anext(running)).ids)
            for _ in range(MAX_FAILURES - 1):
                with pytest.raises(RequestError, match="the model failed"):
                    await finish(engine, row(*BAD))
            async for tokens in running:
                found += tokens.ids
            assert tuple(found) == expected.ids
            engine.check()

    asyncio.run(main())


def test_a_step_that_fails_ends_all_and_the_next_row_is_as_ever(tiny_model, monkeypatch):
    async def main():
        async with started(tiny_model) as engine:
            expected = await finish(engine, row())
            fails(engine, monkeypatch, RuntimeError("boom"), in_step=True)
            both = await asyncio.gather(finish(engine, row(new=400)), finish(engine, row(*BAD)), return_exceptions=True)
            assert [str(error) for error in both] == ["the model failed"] * 2
            assert await finish(engine, row()) == expected

    asyncio.run(main())


def test_too_little_memory_and_an_adapter_s_fault_are_no_failures_of_the_model(tiny_model, monkeypatch):
    async def main():
        async with started(tiny_model) as engine:
            fails(engine, monkeypatch, torch.OutOfMemoryError("tried to allocate 3 GiB"))
            for _ in range(MAX_FAILURES):
                with pytest.raises(RequestError, match="memory is too small") as error:
                    await finish(engine, row(*BAD))
                assert error.value.code == "unavailable"
            fails(engine, monkeypatch, ModelError("an adapter sits on an expert"))
            for _ in range(MAX_FAILURES):
                with pytest.raises(ModelError, match="expert"):
                    await finish(engine, row(*BAD))
            # A replica puts a `ModelError` down to the row's own strength.
            with pytest.raises(RequestError, match="expert"):
                await finish(engine, row(*BAD, scale=0.5))
            engine.check()

    asyncio.run(main())


def test_a_row_that_cannot_be_admitted_hears_of_it_and_nobody_else_does(tiny_model, monkeypatch):
    async def main():
        async with started(tiny_model) as engine:
            admit = engine.decoder.admit
            monkeypatch.setattr(engine.decoder, "admit", lambda row: 1 / 0 if row.prompt_ids == BAD else admit(row))
            expected = await finish(engine, row(new=100))
            other = asyncio.create_task(finish(engine, row(new=100)))
            with pytest.raises(RequestError, match="could not be admitted"):
                await finish(engine, row(*BAD))
            assert await other == expected

    asyncio.run(main())


def test_rows_of_an_adapter_that_is_unloaded_end_and_others_go_on(tiny_model, adapter):
    async def main():
        async with started(tiny_model) as engine:
            await engine.load("a", adapter)
            expected = await finish(engine, row(new=300))
            other = asyncio.create_task(finish(engine, row(new=300)))
            own = engine.generate(row(new=400, adapter="a"))
            await anext(own)
            await engine.unload("a")
            with pytest.raises(RequestError, match="not loaded"):
                async for _ in own:
                    pass
            assert await other == expected
            engine.check()

    asyncio.run(main())


def test_an_engine_that_closes_leaves_no_reader_waiting(tiny_model, adapter):
    async def main():
        async with started(tiny_model) as engine:
            streams = [engine.generate(row(new=400)) for _ in range(2)]
            await anext(streams[0])
        async with asyncio.timeout(20):
            for stream in streams:
                with contextlib.suppress(StopAsyncIteration), pytest.raises(RequestError, match="runs no more"):
                    while True:
                        await anext(stream)
            with pytest.raises(RequestError, match="runs no more"):
                await engine.load("a", adapter)

    asyncio.run(main())


def test_a_row_that_the_memory_does_not_hold_is_refused_at_the_start(tiny_model, monkeypatch):
    async def main():
        async with started(tiny_model) as engine:
            assert (
                engine.decoder.cache.bytes_per_token == 2 * 2 * 2 * 8 * 4
            )  # keys and values, layers, heads, their size, fp32
            assert engine.max_length <= engine.decoder.max_tokens < float("inf")
        monkeypatch.setattr(models, "free_memory", lambda _: 256 * 100 * 2)
        with pytest.raises(ModelError, match=r"keys and values of 100 tokens.*\nhint: `--max_length 100`"):
            async with started(tiny_model):
                pass
        async with started(tiny_model, max_length=100) as engine:
            rows = [row(new=60 + n) for n in range(4)]
            found = await asyncio.gather(*(finish(engine, each) for each in rows))
            assert found == [await finish(engine, each) for each in rows], "one after another"

    asyncio.run(main())


def test_a_gpu_that_is_asked_for_and_not_there_is_no_reason_to_take_the_cpu(tiny_model, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"finds no GPU.*\n?hint: `--use_gpu false`"):
        TransformersEngine(str(tiny_model), max_length=64, max_batch_size=1, use_gpu=True)


def test_a_model_whose_rows_would_change_each_other_beyond_a_length_is_served_up_to_it(tmp_path):
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [9.0] * 4}
    model = builders.write_model(
        tmp_path / "phi", family="phi3", rope_parameters=rope, original_max_position_embeddings=64
    )

    async def main():
        async with started(model) as engine:
            assert engine.max_length == 64

    asyncio.run(main())
