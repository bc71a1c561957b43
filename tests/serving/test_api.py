"""Routes and wire formats, in this process, with a scripted backend."""

import asyncio
import functools
import json
import logging
import threading
import time

import jsonschema
import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from scripted import CARDS, DIGEST, Scripted, app_of, ask, get, post, text_of

from raystyle.serving import api, openapi, running
from raystyle.serving.contract import Card
from raystyle.serving.errors import RequestError

COMPLETION = {"model": "style", "prompt": "今日", "max_tokens": 12, "seed": 5, "temperature": 0.5}
CHAT = {"model": "style", "messages": [{"role": "user", "content": "你好"}], "max_tokens": 12, "seed": 5}


def conforms(shape, value):
    """Every key is there, and none but these."""
    checked = TypeAdapter(shape).dump_python(TypeAdapter(shape).validate_python(value))
    assert checked == value


def test_a_completion_says_which_adapter_and_seed_made_it():
    backend = Scripted()
    answer = post(app_of(backend), "/v1/completions", COMPLETION)
    told = answer.json()
    assert answer.status == 200
    conforms(openapi.Completion, told)
    assert told["adapter_digest"] == DIGEST and told["system_fingerprint"] == DIGEST[:12] and told["model"] == "style"
    assert told["choices"] == [
        {"index": 0, "seed": 5, "text": text_of(backend.asked[0], 0), "logprobs": None, "finish_reason": "length"}
    ]
    assert told["usage"] == {"prompt_tokens": 2, "completion_tokens": 12, "total_tokens": 14}
    (asked,) = backend.asked
    assert (asked.prompt, asked.adapter, asked.scale) == ("今日", DIGEST, 1.0)
    assert backend.closed == [asked.id]


def test_the_base_has_no_digest():
    backend = Scripted()
    told = post(app_of(backend), "/v1/completions", COMPLETION | {"model": "base"}).json()
    assert told["adapter_digest"] is None and told["system_fingerprint"] == "base"
    assert backend.asked[0].adapter is None


def test_prompts_and_choices_are_numbered_prompt_by_prompt_with_the_seeds_of_the_command_line():
    backend = Scripted()
    told = post(
        app_of(backend), "/v1/completions", COMPLETION | {"prompt": ["甲", "乙"], "n": 3, "max_tokens": 40}
    ).json()
    assert [choice["index"] for choice in told["choices"]] == list(range(6))
    assert [choice["seed"] for choice in told["choices"]] == [5, 6, 7, 1005, 1006, 1007]
    assert ["甲" in choice["text"] for choice in told["choices"]] == [True] * 3 + [False] * 3
    assert [f"种{choice['seed']}温" in choice["text"] for choice in told["choices"]] == [True] * 6
    assert told["usage"]["prompt_tokens"] == 2


def test_without_a_seed_one_is_drawn_and_told():
    seeds = {
        post(app_of(), "/v1/completions", {"model": "base", "prompt": "甲"}).json()["choices"][0]["seed"]
        for _ in range(4)
    }
    assert len(seeds) == 4


def test_a_stream_of_a_completion_has_openais_frames():
    answer = post(
        app_of(), "/v1/completions", COMPLETION | {"stream": True, "n": 2, "stream_options": {"include_usage": True}}
    )
    assert answer.status == 200 and answer.headers["content-type"].startswith("text/event-stream")
    *chunks, last, done = answer.events()
    assert done == "[DONE]"
    assert {(c["id"], c["object"], c["created"], c["model"], c["adapter_digest"]) for c in [*chunks, last]} == {
        (last["id"], "text_completion", last["created"], "style", DIGEST)
    }
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == 24
    assert all(chunk["usage"] is None for chunk in chunks)
    for index in (0, 1):
        own = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert {choice["seed"] for choice in own} == {5 + index}
        assert [choice["finish_reason"] for choice in own] == [None] * (len(own) - 1) + ["length"]


def test_a_stream_of_a_chat_begins_with_the_role_and_ends_with_the_reason():
    *chunks, done = post(app_of(), "/v1/chat/completions", CHAT | {"stream": True}).events()
    choices = [chunk["choices"][0] for chunk in chunks]
    assert done == "[DONE]" and {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert choices[0]["delta"]["role"] == "assistant"
    assert all("role" not in choice["delta"] for choice in choices[1:])
    assert choices[-1]["delta"] == {} and choices[-1]["finish_reason"] == "length"
    assert all(choice["finish_reason"] is None for choice in choices[:-1])
    assert all("usage" not in chunk for chunk in chunks)


def test_a_chat_hands_on_messages_and_takes_text_in_parts():
    backend = Scripted()
    messages = [
        {"role": "developer", "content": "短"},
        {"role": "user", "content": [{"type": "text", "text": "你"}, {"type": "text", "text": "好"}]},
    ]
    told = post(app_of(backend), "/v1/chat/completions", {"model": "base", "messages": messages}).json()
    conforms(openapi.ChatCompletion, told)
    assert backend.asked[0].prompt == (("system", "短"), ("user", "你好"))
    assert backend.asked[0].samplings[0].max_new_tokens == -1
    assert told["choices"][0]["message"]["role"] == "assistant"


def test_a_chat_needs_a_template():
    answer = post(app_of(Scripted(has_chat_template=False)), "/v1/chat/completions", CHAT)
    assert answer.status == 400 and "/v1/completions" in answer.json()["error"]["message"]


@settings(max_examples=30)
@given(st.text(st.characters(exclude_categories=["Cs"])), st.integers(1, 4), st.integers(0, 60), st.booleans())
def test_a_stream_says_what_the_whole_answer_says(prompt, n, max_tokens, has_logprobs):
    body = {"model": "style", "prompt": prompt, "n": n, "max_tokens": max_tokens, "seed": 1, "echo": True}
    body |= {"logprobs": 2} if has_logprobs else {}
    whole = post(app_of(), "/v1/completions", body).json()["choices"]
    streamed = post(app_of(), "/v1/completions", body | {"stream": True})
    assert not any(end in streamed.body.decode() for end in ("\u2028", "\u2029", "\x85"))
    texts, tokens, reasons = [""] * n, [[] for _ in range(n)], [None] * n
    for event in streamed.events()[:-1]:
        (choice,) = event["choices"]
        texts[choice["index"]] += choice["text"]
        tokens[choice["index"]] += (choice["logprobs"] or {"tokens": []})["tokens"]
        reasons[choice["index"]] = choice["finish_reason"]
    assert texts == [choice["text"] for choice in whole] and all(text.startswith(prompt) for text in texts)
    assert reasons == [choice["finish_reason"] for choice in whole]
    assert tokens == [(choice["logprobs"] or {"tokens": []})["tokens"] for choice in whole]


def test_no_character_of_a_text_ends_a_line_of_the_stream():
    prompt = "甲\u2028乙\u2029丙\x85丁\r\n\x0b\x0c\x1c"
    body = {"model": "base", "prompt": prompt, "echo": True, "max_tokens": 0, "stream": True}
    answer = post(app_of(), "/v1/completions", body)
    assert answer.body.decode().splitlines() == answer.body.decode().split("\n")[:-1]
    assert answer.events()[0]["choices"][0]["text"] == prompt


def test_logprobs_of_a_completion():
    told = post(app_of(), "/v1/completions", COMPLETION | {"logprobs": 2, "max_tokens": 2}).json()
    conforms(openapi.Completion, told)
    assert told["choices"][0]["logprobs"] == {
        "tokens": ["d", "1"],
        "token_logprobs": [-0.5, -0.5],
        "top_logprobs": [{"d": -0.5, "bytes:\\xe6\\xb1": -9999.0}, {"1": -0.5, "bytes:\\xe6\\xb1": -9999.0}],
        "text_offset": [0, 1],
    }


def test_logprobs_of_a_chat():
    told = post(app_of(), "/v1/chat/completions", CHAT | {"logprobs": True, "top_logprobs": 2, "max_tokens": 1}).json()
    conforms(openapi.ChatCompletion, told)
    (token,) = told["choices"][0]["logprobs"]["content"]
    assert token["token"] == "d" and token["bytes"] == [100]
    assert token["top_logprobs"][1] == {"token": "�", "logprob": -9999.0, "bytes": [0xE6, 0xB1]}
    told = post(app_of(), "/v1/chat/completions", CHAT | {"logprobs": True, "max_tokens": 1}).json()
    assert told["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []


@pytest.mark.parametrize(
    ("name", "words"), [("nobody", "no model 'nobody'"), ("empty", "changes nothing"), ("../../etc/passwd", "no model")]
)
@pytest.mark.parametrize("route", ["/v1/completions", "/v1/compare"])
def test_a_model_that_is_not_served_is_not_replaced_by_the_base(name, words, route):
    backend = Scripted()
    asked = {"models": ["base", name], "prompt": "甲"} if route == "/v1/compare" else COMPLETION | {"model": name}
    answer = post(app_of(backend), route, asked)
    error = answer.json()["error"]
    assert answer.status == 404 and error["code"] == "model_not_found" and error["param"] == "model"
    assert words in error["message"] and not backend.asked


def test_a_name_is_looked_for_again_but_a_flood_of_wrong_names_does_not_reach_the_replica():
    backend = Scripted()
    app = app_of(backend)

    async def scenario():
        assert (await ask(app, "POST", "/v1/completions", COMPLETION | {"model": "new"})).status == 404
        backend.told = Scripted(cards=(*CARDS, Card("new", "adapter", "d4" * 32))).told
        await asyncio.sleep(0.3)
        assert (await ask(app, "POST", "/v1/completions", COMPLETION | {"model": "new"})).status == 200
        before = backend.listings
        asked = [ask(app, "POST", "/v1/completions", COMPLETION | {"model": f"no-{i}"}) for i in range(200)]
        assert {answer.status for answer in await asyncio.gather(*asked)} == {404}
        for i in range(50):
            await ask(app, "POST", "/v1/completions", COMPLETION | {"model": f"no-{i}"})
        return backend.listings - before

    started_s = time.monotonic()
    # One for each quarter of a second, and one each for the known name and the first unknown one.
    assert asyncio.run(scenario()) <= 2 + (time.monotonic() - started_s) / 0.25


def test_many_that_ask_at_once_share_one_look_at_the_backend():
    backend = Scripted()
    app = app_of(backend)

    async def scenario():
        return await asyncio.gather(*(ask(app, "GET", "/v1/models") for _ in range(20)))

    assert {answer.status for answer in asyncio.run(scenario())} == {200} and backend.listings == 1


def test_the_list_of_models():
    told = get(app_of(), "/v1/models").json()
    conforms(openapi.Models, told)
    assert [(model["id"], model["parent"]) for model in told["data"]] == [
        ("base", None),
        ("style", "base"),
        ("style@step-20", "base"),
    ]
    assert told["refused"] == [{"id": "empty", "reason": "it changes nothing"}]
    assert get(app_of(), "/v1/models/style@step-20").json() == told["data"][2]
    assert get(app_of(), "/v1/models/a/../b").status == 404


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/v1/completions", 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("GET", "/static/../api.py", 404, "not_found"),
        ("GET", "/static/%2e%2e", 404, "not_found"),
        ("POST", "/admin/refresh", 403, "forbidden"),
        ("GET", "/docs", 404, "not_found"),
    ],
)
def test_errors_of_routes_have_the_same_shape(method, path, status, code):
    answer = asyncio.run(ask(app_of(), method, path))
    assert answer.status == status and answer.json()["error"]["code"] == code
    conforms(openapi.Error, answer.json())
    assert ("allow" in answer.headers) == (status == 405)


def test_every_answer_has_an_id_and_says_what_a_browser_may_do_with_it():
    for path in ("/healthz", "/nowhere", "/v1/models"):
        headers = get(app_of(), path).headers
        assert headers["x-request-id"].startswith("req-")
        assert (
            headers["x-content-type-options"] == "nosniff"
            and "frame-ancestors 'none'" in headers["content-security-policy"]
        )


def test_ready_only_where_the_model_answers_and_the_server_is_not_about_to_stop():
    class Silent(Scripted):
        async def listing(self):
            raise RequestError("unavailable", "not yet")

    answer = get(app_of(Silent()), "/readyz")
    assert answer.status == 503 and int(answer.headers["retry-after"]) >= 1
    assert get(app_of(Silent()), "/healthz").status == 200
    assert b"raystyle_ready 0.0" in get(app_of(Silent()), "/metrics").body
    app = app_of()
    assert get(app, "/readyz").json() == {"status": "ready"}

    async def scenario():
        backend = Scripted()
        backend.token_s = 0.02
        app = app_of(backend)
        running = asyncio.create_task(ask(app, "POST", "/v1/completions", COMPLETION))
        while not backend.asked:
            await asyncio.sleep(0.001)
        draining = asyncio.create_task(app.drain())
        await asyncio.sleep(0)
        refused = await ask(app, "POST", "/v1/completions", COMPLETION)
        assert (
            refused.status == 503
            and refused.json()["error"]["code"] == "unavailable"
            and refused.headers["retry-after"]
        )
        assert (await ask(app, "GET", "/readyz")).status == 503
        assert not draining.done()
        assert await draining and running.done()
        assert (await running).status == 200

    asyncio.run(scenario())


def test_probes_and_scrapes_do_not_wait_for_a_model_that_hangs(monkeypatch):
    monkeypatch.setattr(api, "PROBE_TIMEOUT_S", 0.1)

    class Hanging(Scripted):
        hangs = False

        async def listing(self):
            await asyncio.sleep(60 if self.hangs else 0)
            return self.told

    async def scenario():
        backend = Hanging()
        app = app_of(backend)
        told = [await ask(app, "GET", "/metrics")]
        backend.hangs = True
        app._service.catalogue._asked_at_s -= 2  # too old to answer by, not to be told of
        told += [await ask(app, "GET", path) for path in ("/metrics", "/readyz")]
        app._service.catalogue._asked_at_s -= 10
        return [*told, await ask(app, "GET", "/metrics")]

    *ready, probe, last = asyncio.run(asyncio.wait_for(scenario(), 5))
    assert all(b"raystyle_ready 1.0" in answer.body for answer in ready)
    assert probe.status == 503 and "within 0.1 s" in probe.json()["error"]["message"]
    assert last.status == 200 and b"raystyle_ready 0.0" in last.body


@pytest.mark.parametrize("has_begun", [False, True])
def test_what_outlasts_a_drain_is_told_so(has_begun):
    """An answer that has not begun is an error; one that streams ends with it."""

    async def scenario():
        backend = Scripted()
        if has_begun:
            backend.token_s = 60
        else:
            backend.first_token_s = 60
        app = app_of(backend, drain_timeout_s=0.2)
        running = asyncio.create_task(ask(app, "POST", "/v1/completions", COMPLETION | {"stream": True}))
        while not backend.asked:
            await asyncio.sleep(0.001)
        assert not await app.drain()
        answer = await running
        assert answer.status == (200 if has_begun else 503)
        assert b'"unavailable"' in answer.body and b"the server has stopped" in answer.body

    asyncio.run(scenario())


# ── limits ──


def test_one_request_has_a_most_of_choices():
    body = COMPLETION | {"prompt": ["甲"] * 17, "n": 2}
    answer = post(app_of(), "/v1/completions", body)
    assert answer.status == 400 and "34 choices, where 32 are taken" in answer.json()["error"]["message"]


def test_a_long_body_is_read_beside_other_requests(monkeypatch):
    parse, on_loop = running.parse, []

    def seen(*given):
        on_loop.append(threading.current_thread() is threading.main_thread())
        return parse(*given)

    monkeypatch.setattr(running, "parse", seen)
    assert post(app_of(), "/v1/completions", COMPLETION).status == 200
    assert post(app_of(), "/v1/completions", COMPLETION | {"prompt": "甲" * 40_000}).status == 200
    assert post(app_of(), "/v1/completions", COMPLETION | {"prompt": ["甲" * 40_000, 1]}).status == 400
    assert on_loop == [True, False, False]


def test_what_does_not_fit_into_the_context_is_called_by_the_word_that_clients_look_for():
    answer = post(app_of(), "/v1/completions", COMPLETION | {"max_tokens": 4097})
    error = answer.json()["error"]
    assert answer.status == 400 and error["code"] == "context_length_exceeded" in error["message"]


def test_when_full_further_requests_are_told_to_come_back():
    async def scenario():
        backend = Scripted()
        backend.token_s = 0.01
        app = app_of(backend, max_batch_size=2, max_queue=1)
        answers = await asyncio.gather(*(ask(app, "POST", "/v1/completions", COMPLETION) for _ in range(7)))
        assert sorted(answer.status for answer in answers) == [200] * 3 + [429] * 4
        busy = next(answer for answer in answers if answer.status == 429)
        assert busy.json()["error"]["code"] == "server_busy" and busy.headers["retry-after"] == "1"
        assert (await ask(app, "POST", "/v1/completions", COMPLETION)).status == 200

    asyncio.run(scenario())


def test_rates_of_requests_and_tokens():
    app = app_of(requests_per_minute=2)
    statuses = [post(app, "/v1/completions", COMPLETION).status for _ in range(3)]
    assert statuses == [200, 200, 429]
    app = app_of(tokens_per_minute=30)
    answers = [post(app, "/v1/completions", COMPLETION) for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 429]
    assert answers[2].json()["error"]["code"] == "rate_limit_exceeded" and int(answers[2].headers["retry-after"]) <= 12
    assert post(app, "/v1/completions", COMPLETION | {"n": 3}).status == 400


def test_a_rate_of_tokens_is_of_those_that_were_made():
    asked = {name: value for name, value in CHAT.items() if name != "max_tokens"}  # as many as fit: 4096
    app = app_of(tokens_per_minute=5000)
    assert [post(app, "/v1/chat/completions", asked).status for _ in range(3)] == [200] * 3
    app = app_of(tokens_per_minute=100)
    answers = [post(app, "/v1/chat/completions", asked) for _ in range(2)]
    assert [answer.status for answer in answers] == [200, 429] and int(answers[1].headers["retry-after"]) < 40
    backend = Scripted()
    backend.errors = {DIGEST: RequestError("unavailable", "a replica died")}
    app = app_of(backend, tokens_per_minute=100)
    assert [post(app, "/v1/completions", COMPLETION | {"max_tokens": 100}).status for _ in range(3)] == [503] * 3


def test_a_scale_only_where_there_is_something_to_scale():
    backend = Scripted()
    assert post(app_of(backend), "/v1/completions", COMPLETION | {"lora_scale": 0.5}).status == 200
    assert backend.asked[0].scale == 0.5
    assert post(app_of(Scripted(can_scale=False)), "/v1/completions", COMPLETION | {"lora_scale": 1}).status == 200
    for backend, model in ((Scripted(can_scale=False), "style"), (Scripted(), "base")):
        answer = post(app_of(backend), "/v1/completions", COMPLETION | {"lora_scale": 0.5, "model": model})
        assert answer.status == 400 and answer.json()["error"]["param"] == "lora_scale" and not backend.asked


# ── ends ──


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
@pytest.mark.parametrize("stream", [False, True])
def test_too_late_before_the_first_token_is_a_status_that_clients_do_not_retry(run, stream):
    # uvloop counts whole milliseconds: with these fractions, some of its timers go off before their time by its own clock.
    for timeout_s in (0.0502, 0.0504, 0.0506):
        backend = Scripted()
        backend.first_token_s = 60
        app = app_of(backend, first_token_timeout_s=timeout_s)
        answer = run(ask(app, "POST", "/v1/completions", COMPLETION | {"stream": stream}))
        assert answer.status == 408 and answer.headers["x-should-retry"] == "false"
        assert answer.json()["error"]["code"] == "timeout" and len(backend.closed) == 1


def test_too_late_in_the_middle_of_a_stream_is_an_event_and_the_end():
    backend = Scripted()
    backend.token_s = 0.02
    answer = post(app_of(backend, total_timeout_s=0.1), "/v1/completions", COMPLETION | {"stream": True})
    *chunks, last = answer.events()
    assert answer.status == 200 and chunks and last["error"]["code"] == "timeout" and len(backend.closed) == 1


@pytest.mark.parametrize("good_tokens", [0, 3])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (RequestError("unavailable", "a replica died"), 503, "unavailable"),
        (RuntimeError("secret of the inside"), 500, "internal_error"),
        (TimeoutError("secret of the inside"), 500, "internal_error"),
    ],
)
def test_what_fails_is_told_without_its_inside(good_tokens, stream, error, status, code, caplog):
    backend = Scripted()
    backend.errors, backend.good_tokens = {DIGEST: error}, good_tokens
    answer = post(app_of(backend), "/v1/completions", COMPLETION | {"stream": stream})
    told = answer.json() if answer.status != 200 else answer.events()[-1]
    assert answer.status == (200 if stream and good_tokens else status)
    assert told["error"]["code"] == code and "secret" not in answer.body.decode()
    if code == "internal_error":
        assert answer.headers["x-request-id"] in told["error"]["message"]
        assert "secret of the inside" in caplog.text
    assert len(backend.closed) == 1


def test_a_backend_that_ends_too_early_is_no_success():
    class Early(Scripted):
        async def generate(self, generation):
            yield []

    assert post(app_of(Early()), "/v1/completions", COMPLETION).status == 500


@pytest.mark.parametrize("route", ["/v1/completions", "/v1/compare"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_rows(route, stream):
    async def scenario():
        backend = Scripted()
        backend.token_s = 60
        app = app_of(backend)
        body = {"models": ["base", "style"], "prompt": "甲"} if route == "/v1/compare" else COMPLETION
        leaving = ask(app, "POST", route, body | {"stream": stream}, leaves_after=1 if stream else 0)
        await asyncio.wait_for(leaving, 5)
        assert len(backend.closed) == len(backend.asked)
        assert app._service.admission.in_flight == 0
        return len(backend.asked)

    # A whole answer's client is gone before anything was begun, where the two can hardly be told apart.
    assert asyncio.run(scenario()) >= (1 if stream else 0)


def test_a_client_that_leaves_while_its_whole_answer_is_made_frees_its_rows():
    async def scenario():
        backend = Scripted()
        backend.first_token_s = 60
        app = app_of(backend)
        asking = asyncio.create_task(ask(app, "POST", "/v1/completions", COMPLETION))
        while not backend.asked:
            await asyncio.sleep(0.001)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        assert len(backend.closed) == 1 and app._service.admission.in_flight == 0

    asyncio.run(scenario())


def test_a_client_that_does_not_read_does_not_hold_its_place_forever(monkeypatch):
    monkeypatch.setattr("raystyle.serving.running.UNREAD_GRACE_S", 0.05)

    async def scenario():
        backend = Scripted()
        app = app_of(backend, total_timeout_s=0.1)
        never = asyncio.Event()
        scopes = []

        async def unread(scope, receive, send):
            async def stuck(message):
                await never.wait()

            scopes.append(scope)
            await app(scope, receive, stuck)

        await asyncio.wait_for(ask(unread, "POST", "/v1/completions", COMPLETION | {"stream": True}), 5)
        assert len(backend.closed) == 1 and scopes[0]["raystyle"].code == "cancelled"

    asyncio.run(scenario())


@pytest.mark.parametrize("good", [0, 1])
def test_a_client_whose_messages_cannot_be_got_any_more_has_left(good, caplog):
    """Before its body came, or while its answer is made."""

    async def scenario():
        backend = Scripted()
        backend.first_token_s = 60
        app, scopes, left = app_of(backend), [], good

        async def called_off(scope, receive, send):
            async def failing():
                nonlocal left
                left -= 1
                if left < 0:
                    await asyncio.sleep(0.01)
                    raise RuntimeError("called off")
                return await receive()

            scopes.append(scope)
            await app(scope, failing, send)

        await asyncio.wait_for(ask(called_off, "POST", "/v1/completions", COMPLETION), 5)
        assert scopes[0]["raystyle"].code == "cancelled" and len(backend.closed) == len(backend.asked) == good
        assert app._service.admission.in_flight == 0

    asyncio.run(scenario())
    assert "Traceback" not in caplog.text


# ── told to those who run it ──


def test_the_log_has_a_line_for_each_request_and_no_text(caplog):
    caplog.set_level(logging.INFO, logger="raystyle.serving")
    post(app_of(), "/v1/completions", COMPLETION | {"n": 2})
    post(app_of(), "/v1/completions", COMPLETION | {"model": "今日\nevil"})
    first, second = (json.loads(record.getMessage()) for record in caplog.records)
    assert (first["model"], first["digest"], first["choices"], first["tokens"]) == (["style"], [DIGEST[:12]], 2, 24)
    assert first["status"] == 200 and first["code"] == "ok" and 0 <= first["first_token_s"] <= first["total_s"]
    assert second["code"] == "model_not_found" and second["model"] == []
    assert "今日" not in caplog.text and "evil" not in caplog.text


def test_the_log_has_prompts_and_texts_where_it_is_asked_to(caplog):
    caplog.set_level(logging.INFO, logger="raystyle.serving")
    text = post(app_of(log_prompts=True), "/v1/completions", COMPLETION).json()["choices"][0]["text"]
    (line,) = (json.loads(record.getMessage()) for record in caplog.records)
    assert line["texts"] == [{"model": "style", "prompt": "今日", "texts": [text]}]


def test_metrics_count_by_model_and_never_by_what_a_client_made_up():
    app = app_of()
    post(app, "/v1/completions", COMPLETION)
    post(app, "/v1/completions", COMPLETION | {"model": "made-up"})
    post(app, "/v1/compare", {"models": ["base", "style"], "prompt": "甲", "max_tokens": 3})
    text = get(app, "/metrics").body.decode()
    assert 'raystyle_requests_total{code="ok",key="",model="style"} 2.0' in text
    assert 'raystyle_requests_total{code="model_not_found",key="",model="unknown"} 1.0' in text
    assert 'raystyle_generated_tokens_total{model="style"} 15.0' in text
    assert 'raystyle_generated_tokens_total{model="base"} 3.0' in text
    assert 'raystyle_first_token_seconds_count{model="style"} 2.0' in text
    assert "made-up" not in text and "raystyle_ready 1.0" in text


def test_choices_in_flight_are_counted_by_model():
    async def scenario():
        backend = Scripted()
        backend.token_s = 60
        app = app_of(backend)
        body = {"models": ["base", "style"], "prompt": "甲", "seeds": [1, 2], "lora_scales": [0.5, 1]}
        asking = asyncio.create_task(ask(app, "POST", "/v1/compare", body))
        while len(backend.asked) < 3:
            await asyncio.sleep(0.001)
        running = (await ask(app, "GET", "/metrics")).body.decode()
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        return running, (await ask(app, "GET", "/metrics")).body.decode()

    running, over = asyncio.run(scenario())
    for text, base, style in ((running, 2.0, 4.0), (over, 0.0, 0.0)):
        assert f'raystyle_admitted_choices{{model="base"}} {base}' in text
        assert f'raystyle_admitted_choices{{model="style"}} {style}' in text


# ── the document ──


def test_the_document_names_every_route_and_its_schemas_are_whole():
    document = get(app_of(), "/openapi.json").json()
    text = json.dumps(document)
    for reference in {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}:
        assert reference in document["components"]["schemas"], reference
    routes = {route.path.replace("{name:path}", "{model}") for route in api._routes(app_of()._service)}
    assert routes == {"/static/{name}"} | set(document["paths"])


@functools.cache
def schema_of(route):
    document = openapi.document()
    body = document["paths"][route]["post"]["requestBody"]["content"]["application/json"]["schema"]
    return jsonschema.Draft202012Validator(document | body)


@settings(max_examples=150)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(
                    ["model", "prompt", "messages", "n", "stop", "logprobs", "stream", "content", "role", "seed"]
                ),
                inner,
                max_size=5,
            )
        ),
        max_leaves=12,
    ),
    st.sampled_from(["/v1/completions", "/v1/chat/completions", "/v1/compare"]),
)
def test_no_json_is_a_mistake_of_ours_and_what_is_taken_is_in_the_document(body, route):
    full = {"model": "base", "prompt": "甲", "max_tokens": 3} | (body if isinstance(body, dict) else {})
    for asked in (body, full):
        answer = post(app_of(), route, json.dumps(asked).encode("utf-8", "surrogatepass"))
        assert answer.status in (200, 400, 404), answer.body
        if answer.status != 400:
            schema_of(route).validate(json.loads(json.dumps(asked)))


@settings(max_examples=100)
@given(st.binary(max_size=60), st.sampled_from(["/v1/completions", "/v1/chat/completions", "/v1/compare"]))
def test_no_bytes_are_a_mistake_of_ours(raw, route):
    assert post(app_of(), route, raw).status == 400
