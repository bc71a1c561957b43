"""What every engine promises (`serving/contract.py`), against the engine of this environment: `make test` runs it on
transformers, `make test-vllm` on vLLM."""

import asyncio
import contextlib
import dataclasses
import json
import shutil
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import engines
import pytest
from engines import ADAPTERS, ENDS, MAX_BATCH_SIZE, MAX_LENGTH, MAX_RANK, NAME, VOCABULARY, Running, prompt, row

from raystyle.errors import ModelError
from raystyle.generation import Row, Scored
from raystyle.serving.errors import RequestError

WHOSE = [None, *ADAPTERS]


@pytest.fixture(scope="session", params=[NAME])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with engines.running(tmp_path_factory.mktemp(request.param)) as found:
        yield found


@pytest.fixture(autouse=True)
def nothing_left(running: Running) -> Iterator[None]:
    """No test may leave a row behind in an engine that lives."""
    yield
    with contextlib.suppress(RuntimeError):
        running.engine.check()
        assert running.run(settled(running, (0, 0)))


def mixed(count: int, **changes: Any) -> list[Row]:
    """Rows of the base and of every adapter in turn, of many lengths."""
    return [row(prompt(i, 1 + 7 * i % 60), WHOSE[i % len(WHOSE)], new=8 + 3 * i % 40, **changes) for i in range(count)]


# ── the same tokens as the judge, alone and in company ──


@pytest.mark.parametrize("adapter", WHOSE)
def test_greedy_is_what_transformers_and_peft_say(running: Running, adapter: str | None) -> None:
    rows = [row(prompt(seed, 5 + 9 * seed), adapter, new=48) for seed in range(4)]
    for asked in rows:
        [found] = running.complete(asked)
        assert found.ids == running.reference.greedy(asked)


def test_each_adapter_and_the_base_say_something_else(running: Running) -> None:
    found = running.complete(*(row(prompt(0), adapter) for adapter in WHOSE))
    assert len({result.ids for result in found}) == len(WHOSE)


def test_mixed_rows_are_what_they_are_alone(running: Running) -> None:
    rows = mixed(32)  # twice as many as there are places for
    together = running.complete(*rows)
    for asked, found in zip(rows, together, strict=True):
        assert found.ids == running.reference.greedy(asked)
        assert running.complete(asked) == [found]


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_the_base_among_rows_of_one_adapter_stays_the_base(running: Running, adapter: str) -> None:
    base = row(prompt(1), logprobs=1, prompt_logprobs=True)
    neighbours = [row(prompt(seed), adapter) for seed in range(2, 8)]
    [found, *others] = running.complete(base, *neighbours)
    check_logprobs(running, base, found)
    assert [other.ids for other in others] == [running.reference.greedy(each) for each in neighbours]


def test_one_row_of_an_adapter_among_the_base_is_its_own(running: Running) -> None:
    own = row(prompt(1), "b", logprobs=1, prompt_logprobs=True)
    found, *others = running.complete(own, *(row(prompt(seed)) for seed in range(2, 8)))
    check_logprobs(running, own, found)
    assert [other.ids for other in others] == [running.reference.greedy(row(prompt(seed))) for seed in range(2, 8)]


def test_the_same_prompt_of_different_adapters_shares_nothing(running: Running) -> None:
    """A cache of prompts that forgets whose they are would show here."""
    long = prompt(5, 200)
    for _ in range(2):
        found = running.complete(*(row(long, adapter, new=12) for adapter in WHOSE))
        assert [result.ids for result in found] == [
            running.reference.greedy(row(long, adapter, new=12)) for adapter in WHOSE
        ]


def test_more_adapters_in_one_batch_than_any_engine_has_places_for(running: Running, tmp_path: Path) -> None:
    """The base is among them: with every place taken there is none whose adapter a base row could pick up unseen."""
    names = [f"many-{number}" for number in range(20)]
    for number, name in enumerate(names):
        config = {"r": 2, "target_modules": ["q_proj", "down_proj"]}
        engines.write_adapter(tmp_path / name, running.directories["base"], seed=100 + number, **config)

    async def load() -> None:
        await asyncio.gather(*(running.engine.load(name, str(tmp_path / name)) for name in names))

    running.run(load())
    alone = [running.complete(row(prompt(3), name))[0].ids for name in names]
    bases = [row(prompt(seed)) for seed in range(4)]
    together = running.complete(*bases[:2], *(row(prompt(3), name) for name in (*names, *names)), *bases[2:])
    found = [result.ids for result in together]
    assert found[2:-2] == alone * 2
    assert found[:2] + found[-2:] == [running.reference.greedy(each) for each in bases]
    assert len(set(alone)) == len(names)
    for name in names:
        running.run(running.engine.unload(name))


# ── sampling ──


def test_a_seed_gives_the_same_row_alone_and_in_company(running: Running) -> None:
    drawn = {"temperature": 1.0, "top_p": 0.9, "top_k": 50}
    rows = [dataclasses.replace(each, sampling=dataclasses.replace(each.sampling, **drawn)) for each in mixed(12)]
    together = running.complete(*rows)
    assert [running.complete(each)[0].ids for each in rows] == [result.ids for result in together]


@pytest.mark.parametrize("adapter", [None, "b"])
def test_seeds_tell_rows_apart(running: Running, adapter: str | None) -> None:
    seeds = [0, 1, 2, -1, 2**31]
    rows = [row(prompt(0), adapter, temperature=1.0, seed=seed) for seed in seeds]
    found = running.complete(*rows, *rows)
    assert found[: len(seeds)] == found[len(seeds) :]
    assert len({result.ids for result in found}) == len(seeds)


def test_the_likeliest_alone_is_greedy(running: Running) -> None:
    for whose in WHOSE:
        greedy, top_k, top_p = running.complete(
            row(prompt(0), whose),
            row(prompt(0), whose, temperature=1.5, top_k=1),
            row(prompt(0), whose, temperature=1.5, top_p=1e-6),
        )
        assert greedy.ids == top_k.ids == top_p.ids


@pytest.mark.parametrize("adapter", [None, "a"])
def test_top_k_draws_from_so_many(running: Running, adapter: str | None) -> None:
    rows = [
        row(prompt(0), adapter, new=1, temperature=2.0, top_k=3, seed=seed, logprobs=3)
        for seed in range(MAX_BATCH_SIZE)
    ]
    found = running.complete(*rows)
    drawn = {result.scored[0].token_id for result in found if result.scored}
    likeliest = {token_id for result in found if result.scored for token_id, _ in result.scored[0].top}
    assert len(likeliest) == 3 and len(drawn) > 1 and drawn <= likeliest


def test_the_repetition_penalty_keeps_tokens_from_coming_back(running: Running) -> None:
    """A penalty this high leaves no token of the prompt or the text likely, so none comes twice."""
    asked = row(prompt(0), new=40, repetition_penalty=1e6)
    [plain, found] = running.complete(row(prompt(0), new=40), asked)
    everything = asked.prompt_ids + found.ids
    assert len(set(everything)) == len(set(asked.prompt_ids)) + len(found.ids)
    assert plain.ids != found.ids


# ── how long ──


def test_max_new_tokens_is_the_most(running: Running) -> None:
    for result, asked in zip(running.complete(*(rows := mixed(16))), rows, strict=True):
        if result.reason == "length":
            assert len(result.ids) == asked.sampling.max_new_tokens
        else:
            assert len(result.ids) < asked.sampling.max_new_tokens


@pytest.mark.parametrize("adapter", [None, "a"])
def test_no_new_tokens(running: Running, adapter: str | None) -> None:
    asked = row(prompt(0), adapter, new=0, logprobs=2, prompt_logprobs=True)
    [found] = running.complete(asked)
    assert (found.ids, found.scored, found.reason) == ((), (), "length")
    check_logprobs(running, asked, found)


def test_an_end_token_ends_a_row_and_is_not_in_it(running: Running) -> None:
    rows = [row(prompt(0), new=200, temperature=2.0, seed=seed, logprobs=0) for seed in range(24)]
    found = running.complete(*rows)
    stopped = [(asked, result) for asked, result in zip(rows, found, strict=True) if result.reason == "stop"]
    assert stopped
    assert not any(token_id in ENDS for result in found for token_id in result.ids)
    for asked, result in stopped[:6]:
        assert [scored.token_id for scored in result.scored] == list(result.ids)
        # The end token takes a place of its own: with one token less there is no room for it.
        for room, reason in ((1, "stop"), (0, "length")):
            sampling = dataclasses.replace(asked.sampling, max_new_tokens=len(result.ids) + room)
            [again] = running.complete(dataclasses.replace(asked, sampling=sampling))
            assert (again.ids, again.reason) == (result.ids, reason)


def test_prompt_and_text_may_fill_max_length(running: Running) -> None:
    assert running.engine.max_length == MAX_LENGTH
    for length in (MAX_LENGTH - 1, MAX_LENGTH - 40):
        asked = row(prompt(0, length), "a", new=MAX_LENGTH - length)
        [found] = running.complete(asked)
        assert found.ids == running.reference.greedy(asked)
    [echo] = running.complete(row(prompt(0, MAX_LENGTH), new=0, prompt_logprobs=True))
    assert len(echo.prompt_scored) == MAX_LENGTH


# ── logprobs ──


def check_logprobs(running: Running, asked: Row, found: engines.Result) -> None:
    """Every log-probability is the judge's, before temperature, penalty and the like, and the likeliest are in order."""
    text = asked.prompt_ids + found.ids
    expected = running.reference.logprobs(text, asked.adapter)
    count = asked.logprobs or 0

    def check(place: int, scored: Scored) -> None:
        assert scored.token_id == text[place]
        assert scored.logprob == pytest.approx(expected[place - 1, text[place]].item(), abs=1e-4)
        best = expected[place - 1].topk(count) if count else None
        assert [id_ for id_, _ in scored.top] == ([] if best is None else best.indices.tolist())
        assert [value for _, value in scored.top] == pytest.approx(
            [] if best is None else best.values.tolist(), abs=1e-4
        )

    if asked.logprobs is None:
        assert found.scored == ()
    else:
        assert len(found.scored) == len(found.ids)
        for number, scored in enumerate(found.scored):
            check(len(asked.prompt_ids) + number, scored)
    if asked.prompt_logprobs:
        assert found.prompt_scored[0] == (asked.prompt_ids[0], None, ())
        assert len(found.prompt_scored) == len(asked.prompt_ids)
        for place, scored in enumerate(found.prompt_scored[1:], start=1):
            check(place, scored)
    else:
        assert found.prompt_scored == ()


@pytest.mark.parametrize("adapter", WHOSE)
@pytest.mark.parametrize("count", [None, 0, 1, 5])
def test_logprobs_are_the_models_own(running: Running, adapter: str | None, count: int | None) -> None:
    drawn = {"temperature": 1.7, "top_k": 40, "repetition_penalty": 1.3}
    rows = [
        row(prompt(seed), adapter, new=10, seed=seed, logprobs=count, prompt_logprobs=is_echo, **drawn)
        for seed, is_echo in ((0, False), (1, True))
    ]
    for asked, result in zip(rows, running.complete(*rows), strict=True):
        check_logprobs(running, asked, result)


# ── rows come and go ──


def in_time(running: Running, scenario: Callable[[], Coroutine[Any, Any, bool]]) -> None:
    """What has to happen while long rows run. On a busy machine this process may sleep until they are over, so the
    scenario says whether it came in time, and may try again; an engine that cannot do it never does."""
    assert any(running.run(scenario()) for _ in range(5))


def test_a_row_starts_while_others_run(running: Running) -> None:
    rows = running.long_rows[:6]

    async def scenario() -> bool:
        streams = [running.engine.generate(each) for each in rows]
        gained = [len((await anext(stream)).ids) for stream in streams]
        late = await engines.finish(running.engine, row(prompt(0), "a", new=4))
        is_in_time = running.engine.depth() == (len(rows), 0)
        assert late.ids == running.reference.greedy(row(prompt(0), "a", new=4))
        for number, stream in enumerate(streams):
            gained[number] += sum([len(tokens.ids) async for tokens in stream])
        assert gained == [asked.sampling.max_new_tokens for asked in rows]
        return is_in_time

    in_time(running, scenario)


def test_what_finds_no_place_waits_and_a_closed_row_makes_place(running: Running) -> None:
    rows = running.long_rows

    async def scenario() -> bool:
        streams = [running.engine.generate(each) for each in rows]
        for stream in streams:
            await anext(stream)
        waiting = [asyncio.create_task(engines.finish(running.engine, row(prompt(n), "b", new=2))) for n in range(2)]
        is_in_time = await settled(running, (MAX_BATCH_SIZE, 2))
        waiting[0].cancel()  # before its first token
        await asyncio.wait(waiting[:1])
        is_in_time &= await settled(running, (MAX_BATCH_SIZE, 1))
        await streams[0].aclose()
        assert (await waiting[1]).ids == running.reference.greedy(row(prompt(1), "b", new=2))
        is_in_time &= await settled(running, (MAX_BATCH_SIZE - 1, 0))
        for stream in streams[1:]:
            await stream.aclose()
        assert await settled(running, (0, 0))
        return is_in_time

    in_time(running, scenario)


async def settled(running: Running, depth: tuple[int, int]) -> bool:
    """Whether the engine comes to have so many rows, within two seconds."""
    for _ in range(200):
        if running.engine.depth() == depth:
            return True
        await asyncio.sleep(0.01)
    return False


def test_an_iterator_closed_before_it_began_leaves_nothing(running: Running) -> None:
    async def scenario() -> None:
        stream = running.engine.generate(row(prompt(0)))
        await stream.aclose()
        assert await settled(running, (0, 0))

    running.run(scenario())


def test_rows_that_go_change_nothing_for_those_that_stay(running: Running) -> None:
    rows = running.long_rows[:8]

    async def scenario() -> list[engines.Result]:
        staying = [asyncio.create_task(engines.finish(running.engine, each)) for each in rows[:3]]
        for leaving in rows[3:]:
            stream = running.engine.generate(leaving)
            await anext(stream)
            await stream.aclose()
        return await asyncio.gather(*staying)

    assert [found.ids for found in running.run(scenario())] == [running.reference.greedy(each) for each in rows[:3]]


# ── adapters come and go ──


def test_an_adapter_unloaded_is_no_more_and_may_come_back(running: Running) -> None:
    asked = row(prompt(0), "c")
    expected = running.reference.greedy(asked)
    running.run(running.engine.unload("c"))
    with pytest.raises(RequestError, match="not loaded"):
        running.complete(asked)
    running.run(running.engine.load("c", str(running.directories["c"])))
    assert running.complete(asked)[0].ids == expected


def test_an_adapter_loaded_twice_is_the_same(running: Running) -> None:
    running.run(running.engine.load("a", str(running.directories["a"])))
    assert running.complete(row(prompt(0), "a"))[0].ids == running.reference.greedy(row(prompt(0), "a"))


def test_adapters_that_come_and_go_change_no_running_row(running: Running, tmp_path: Path) -> None:
    rows = running.long_rows[:4]
    for number in range(3):
        config = ADAPTERS["b"] | {"r": 8}
        engines.write_adapter(tmp_path / str(number), running.directories["base"], seed=50 + number, **config)

    async def scenario() -> bool:
        tasks = [asyncio.create_task(engines.finish(running.engine, each)) for each in rows]
        for name in ("0", "1", "2"):
            await running.engine.load(f"new-{name}", str(tmp_path / name))
            assert (await engines.finish(running.engine, row(prompt(0), f"new-{name}", new=2))).ids
            await running.engine.unload(f"new-{name}")
        is_in_time = not any(task.done() for task in tasks)
        found = await asyncio.gather(*tasks)
        assert [result.ids for result in found] == [running.reference.greedy(each) for each in rows]
        return is_in_time

    in_time(running, scenario)


UNFIT = [
    "narrow base",
    "wide base",
    "deep base",
    "other names",
    "inside a layer",
    "half a pair",
    "no tensors",
    "cut short",
]


@pytest.mark.parametrize("fault", UNFIT)
def test_an_adapter_that_does_not_fit_is_refused_and_the_engine_goes_on(
    running: Running, tmp_path: Path, fault: str
) -> None:
    directory = spoil(running, tmp_path, fault)
    with pytest.raises(ModelError):
        running.run(running.engine.load("unfit", str(directory)))
    with pytest.raises(RequestError, match="not loaded"):
        running.complete(row(prompt(0), "unfit"))
    running.engine.check()
    rows = mixed(8)
    assert [found.ids for found in running.complete(*rows)] == [running.reference.greedy(each) for each in rows]


def spoil(running: Running, directory: Path, fault: str) -> Path:
    """An adapter with one thing wrong."""
    from safetensors.torch import load_file, save_file

    sizes = {"narrow base": {"hidden": 64}, "wide base": {"hidden": 192}, "deep base": {"layers": 3}}
    if fault in sizes:
        other = engines.write_base(directory / "other", **sizes[fault])
        return engines.write_adapter(directory / "adapter", other, **ADAPTERS["a"])
    found = Path(shutil.copytree(running.directories["a"], directory / "adapter"))
    weights = found / "adapter_model.safetensors"
    tensors = load_file(weights)
    if fault == "cut short":
        weights.write_bytes(weights.read_bytes()[:-100])
        return found
    if fault == "other names":
        tensors = {name.replace("q_proj", "query_key_value"): tensor for name, tensor in tensors.items()}
    if fault == "inside a layer":  # as PEFT and multi_lora call what they wrap
        tensors = {name.replace("q_proj", "q_proj.base_layer"): tensor for name, tensor in tensors.items()}
    if fault == "half a pair":
        tensors.pop(next(name for name in tensors if "lora_A" in name))
    if fault == "no tensors":
        tensors = {}
    save_file(tensors, weights, metadata={"format": "pt"})
    return found


ODD = {
    "rank pattern": {"r": 4, "rank_pattern": {"layers.1.self_attn.q_proj": 8}, "target_modules": ["q_proj"]},
    "alpha pattern": {"r": 4, "alpha_pattern": {"v_proj": 64}, "target_modules": ["q_proj", "v_proj"]},
    "some layers": {"r": 4, "layers_to_transform": [1], "target_modules": ["q_proj", "down_proj"]},
    "logits": {"r": 4, "target_modules": ["q_proj", "lm_head"]},
    "high rank": {"r": 2 * MAX_RANK, "target_modules": ["q_proj"]},
    "dora": {"r": 4, "use_dora": True, "target_modules": ["q_proj"]},
    "embedding": {"r": 4, "target_modules": ["q_proj", "embed_tokens"]},
    "bias": {"r": 4, "bias": "lora_only", "lora_bias": True, "target_modules": ["q_proj"]},
    "trained head": {"r": 4, "modules_to_save": ["lm_head"], "target_modules": ["q_proj"]},
}


@pytest.mark.parametrize("kind", ODD)
def test_an_adapter_out_of_the_ordinary_is_served_right_or_refused(running: Running, tmp_path: Path, kind: str) -> None:
    directory = engines.write_adapter(tmp_path / "odd", running.directories["base"], seed=9, **ODD[kind])
    try:
        running.run(running.engine.load(kind, str(directory)))
    except ModelError:
        running.engine.check()
        return
    running.reference.load(kind.replace(" ", "_"), directory)
    for seed in range(2):
        expected = running.reference.greedy(row(prompt(seed), kind.replace(" ", "_")))
        assert running.complete(row(prompt(seed), kind))[0].ids == expected
    running.run(running.engine.unload(kind))


# ── what cannot be run ──


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (row((3, VOCABULARY)), "invalid_value"),
        (row((3, -1)), "invalid_value"),
        (row(()), "invalid_value"),
        (row(prompt(0, MAX_LENGTH), new=1), "context_length_exceeded"),
        (row(prompt(0), "never"), "unavailable"),
    ],
)
def test_a_row_that_cannot_be_run_is_refused_and_the_engine_goes_on(running: Running, bad: Row, code: str) -> None:
    with pytest.raises(RequestError) as caught:
        running.complete(bad)
    assert caught.value.code == code
    assert running.complete(row(prompt(0)))[0].ids == running.reference.greedy(row(prompt(0)))


# ── scale ──


def test_scale(running: Running) -> None:
    if not running.engine.can_scale:
        with pytest.raises(RequestError, match="scale"):
            running.complete(row(prompt(0), "b", scale=0.5))
        return
    scales = [0.0, 0.5, 1.0, -1.0]
    rows = [row(prompt(0), "b", new=12, scale=scale, logprobs=1) for scale in scales]
    alone = [running.complete(each)[0] for each in rows]
    base = row(prompt(0), new=12, logprobs=1)
    together = running.complete(*rows, base, row(prompt(0), "a"))
    assert [found.ids for found in together[: len(scales)]] == [found.ids for found in alone]
    assert together[0].ids == running.reference.greedy(base)
    check_logprobs(running, base, together[0])
    assert together[2].ids == running.reference.greedy(rows[2])
    assert len({found.scored[0].logprob for found in alone}) == len(scales)


def test_half_the_scale_is_half_of_alpha(running: Running, tmp_path: Path) -> None:
    if not running.engine.can_scale:
        pytest.skip("this engine applies adapters at 1 only")
    halved = Path(shutil.copytree(running.directories["b"], tmp_path / "halved"))
    config = json.loads((halved / "adapter_config.json").read_text())
    (halved / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": config["lora_alpha"] / 2}))
    running.run(running.engine.load("halved", str(halved)))
    [scaled, expected] = running.complete(row(prompt(0), "b", scale=0.5), row(prompt(0), "halved"))
    assert scaled.ids == expected.ids
    running.run(running.engine.unload("halved"))


# ── the end ──


@pytest.mark.skipif(NAME != "vllm", reason="only vLLM runs in processes of its own")
def test_a_process_that_dies_shows(running: Running) -> None:
    """The last test here: nothing can be asked of the engine after it."""

    long = running.long_rows[0]

    async def scenario() -> None:
        stream = running.engine.generate(long)
        await anext(stream)
        [process] = running.engine._llm.engine_core.resources.engine_manager.processes  # type: ignore[attr-defined]
        process.kill()
        with pytest.raises(Exception, match="EngineCore"):
            async for _ in stream:
                pass
        with pytest.raises(RuntimeError, match="has ended"):
            running.engine.check()
        with pytest.raises(Exception, match="EngineCore"):
            await engines.finish(running.engine, row(prompt(0)))

    running.run(scenario())
