"""The comparison: which cells there are, that they come at the same time, and that one model's failure is its own."""

import asyncio
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from scripted import DIGEST, Scripted, app_of, ask, get, post, text_of

from raystyle.serving import openapi
from raystyle.serving.errors import RequestError

COMPARE = {"prompt": "今日", "models": ["base", "style"], "seeds": [3, 1], "temperatures": [0.2, 1], "max_tokens": 9}


def texts_of(backend):
    """What each cell is to say, in order."""
    asked = sorted(backend.asked, key=lambda generation: int(generation.id.rsplit("-", 1)[1]))
    return [text_of(generation, number) for generation in asked for number in range(len(generation.samplings))]


def test_cells_are_models_then_scales_then_temperatures_then_seeds_and_the_base_has_one_scale():
    backend = Scripted()
    start, *deltas, end, done = post(app_of(backend), "/v1/compare", COMPARE | {"lora_scales": [0.5, 1]}).events()
    assert start["object"] == "compare.start" and start["prompt"] == "今日" and start["id"].startswith("cmp-")
    told = [(c["cell"], c["model"], c["lora_scale"], c["temperature"], c["seed"]) for c in start["cells"]]
    assert told == [
        (0, "base", 1, 0.2, 3),
        (1, "base", 1, 0.2, 1),
        (2, "base", 1, 1, 3),
        (3, "base", 1, 1, 1),
        (4, "style", 0.5, 0.2, 3),
        (5, "style", 0.5, 0.2, 1),
        (6, "style", 0.5, 1, 3),
        (7, "style", 0.5, 1, 1),
        (8, "style", 1, 0.2, 3),
        (9, "style", 1, 0.2, 1),
        (10, "style", 1, 1, 3),
        (11, "style", 1, 1, 1),
    ]
    assert [c["adapter_digest"] for c in start["cells"]] == [None] * 4 + [DIGEST] * 8
    assert [(g.adapter, g.scale, len(g.samplings)) for g in backend.asked] == [
        (None, 1, 4),
        (DIGEST, 0.5, 4),
        (DIGEST, 1, 4),
    ]
    assert [(s.seed, s.temperature, s.top_p) for s in backend.asked[0].samplings][:2] == [
        (3, 0.2, 0.95),
        (1, 0.2, 0.95),
    ]
    assert end == {
        "object": "compare.end",
        "usage": {"prompt_tokens": 6, "completion_tokens": 12 * 9, "total_tokens": 6 + 12 * 9},
    }
    assert done == "[DONE]"
    texts = [""] * 12
    for delta in deltas:
        assert delta["object"] == "compare.delta"
        texts[delta["cell"]] += delta["text"]
    assert texts == texts_of(backend)
    assert sorted(delta["cell"] for delta in deltas if delta["finish_reason"]) == list(range(12))


def test_models_come_at_the_same_time():
    backend = Scripted()
    backend.token_s = 0.002
    _, *deltas, _, _ = post(app_of(backend), "/v1/compare", COMPARE).events()
    models = [delta["cell"] // 4 for delta in deltas]
    assert models.index(1) < len(models) - models[::-1].index(0)
    changes = sum(one != other for one, other in itertools.pairwise(models))
    assert changes > 6


@settings(max_examples=25)
@given(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=4, unique=True), st.integers(1, 40))
def test_a_stream_says_what_the_whole_answer_says(seeds, max_tokens):
    body = COMPARE | {"seeds": seeds, "max_tokens": max_tokens, "models": ["style", "base", "style@step-20"]}
    whole = post(app_of(), "/v1/compare", body | {"stream": False}).json()
    checked = TypeAdapter(openapi.Comparison)
    assert checked.dump_python(checked.validate_python(whole)) == whole
    start, *deltas, end, _ = post(app_of(), "/v1/compare", body).events()
    cells = [cell | {"text": "", "finish_reason": None, "tokens": 0} for cell in start["cells"]]
    for delta in deltas:
        cell = cells[delta["cell"]]
        cell["text"] += delta["text"]
        cell["tokens"] += delta["tokens"]
        cell["finish_reason"] = delta["finish_reason"]
    assert cells == whole["cells"] and end["usage"] == whole["usage"]


@pytest.mark.parametrize("good_tokens", [0, 4])
def test_a_model_that_fails_ends_its_own_cells_only(good_tokens):
    backend = Scripted()
    backend.errors, backend.good_tokens = {DIGEST: RequestError("unavailable", "a replica died")}, good_tokens
    body = COMPARE | {"models": ["style", "base"]}
    *events, end, done = post(app_of(backend), "/v1/compare", body).events()
    (error,) = [event for event in events if event["object"] == "compare.error"]
    assert error["cells"] == [0, 1, 2, 3] and error["error"]["code"] == "unavailable"
    finished = {event["cell"] for event in events if event.get("finish_reason")}
    assert finished == {4, 5, 6, 7} and end["object"] == "compare.end" and done == "[DONE]"
    whole = post(app_of(backend), "/v1/compare", body | {"stream": False}).json()
    assert ["error" in cell for cell in whole["cells"]] == [True] * 4 + [False] * 4
    checked = TypeAdapter(openapi.Comparison)
    assert checked.dump_python(checked.validate_python(whole)) == whole


@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_counts_for_the_model_that_failed(stream, caplog):
    caplog.set_level("INFO", logger="raystyle.serving")
    backend = Scripted()
    backend.errors = {DIGEST: RequestError("unavailable", "a replica died")}
    app = app_of(backend)
    post(app, "/v1/compare", COMPARE | {"stream": stream})
    text = get(app, "/metrics").body.decode()
    assert 'raystyle_requests_total{code="ok",key="",model="base"} 1.0' in text
    assert 'raystyle_requests_total{code="unavailable",key="",model="style"} 1.0' in text
    assert '"code": "unavailable"' in caplog.text


def test_a_slow_model_is_given_up_alone():
    class SlowStyle(Scripted):
        async def generate(self, generation):
            if generation.adapter:
                await asyncio.sleep(60)
            async for found in super().generate(generation):
                yield found

    app = app_of(SlowStyle(), first_token_timeout_s=0.1)
    cells = post(app, "/v1/compare", COMPARE | {"stream": False}).json()["cells"]
    assert [cell.get("error", {}).get("code") for cell in cells] == [None] * 4 + ["timeout"] * 4


def test_without_seeds_all_models_and_temperatures_share_a_random_one():
    (start, *_) = post(
        app_of(), "/v1/compare", {"prompt": "甲", "models": ["base", "style"], "temperatures": [0, 1]}
    ).events()
    assert len({cell["seed"] for cell in start["cells"]}) == 1 and len(start["cells"]) == 4


def test_cells_have_a_most():
    answer = post(app_of(), "/v1/compare", COMPARE | {"seeds": list(range(17)), "temperatures": [0.1, 0.2]})
    assert answer.status == 400 and "68 cells, where 64 are taken" in answer.json()["error"]["message"]
    answer = post(app_of(), "/v1/compare", COMPARE | {"models": [f"m{i}" for i in range(65)]})
    assert answer.status == 400
    answer = post(app_of(Scripted(can_scale=False)), "/v1/compare", COMPARE | {"lora_scales": [0.5]})
    assert answer.status == 400 and answer.json()["error"]["param"] == "lora_scales"


def test_cells_are_choices_in_flight():
    async def scenario():
        backend = Scripted()
        backend.token_s = 0.01
        app = app_of(backend, max_batch_size=8, max_queue=4)
        answers = await asyncio.gather(*(ask(app, "POST", "/v1/compare", COMPARE) for _ in range(3)))
        assert sorted(answer.status for answer in answers) == [200, 429, 429]

    asyncio.run(scenario())
