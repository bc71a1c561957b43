"""What bodies are taken, and what a refusal names."""

import json
import time

import pytest

from raystyle.serving.errors import RequestError
from raystyle.serving.protocol import (
    NO_EFFECT,
    ChatRequest,
    CompareRequest,
    CompletionRequest,
    parse,
)

TEXT = {"model": "base", "prompt": "甲"}
CHAT = {"model": "base", "messages": [{"role": "user", "content": "甲"}]}
COMPARE = {"models": ["base"], "prompt": "甲"}


def taken(model, body, content_type="application/json"):
    return parse(model, body if isinstance(body, bytes) else json.dumps(body).encode(), content_type)


def refused(model, body, **more):
    with pytest.raises(RequestError) as caught:
        taken(model, body, **more)
    assert caught.value.status == 400 and len(str(caught.value)) < 700
    return caught.value


def test_defaults_are_openais():
    body = taken(CompletionRequest, TEXT)
    assert (body.max_tokens, body.n, body.temperature, body.top_p, body.seed, body.stop) == (16, 1, 1.0, 1.0, None, ())


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("", ("",)),
        ("甲", ("甲",)),
        (["甲", "乙"], ("甲", "乙")),
        ([1, 2], ((1, 2),)),
        ([[1, 2], [3]], ((1, 2), (3,))),
    ],
)
def test_a_prompt_is_text_or_ids_one_or_several(prompt, prompts):
    assert taken(CompletionRequest, TEXT | {"prompt": prompt}).prompt == prompts


@pytest.mark.parametrize(
    "prompt", [[], [[]], ["甲", 1], [1, "甲"], [[1], 2], [True], [-1], [2**31], [1.5], 7, {}, [[["甲"]]]]
)
def test_other_prompts_are_refused(prompt):
    assert refused(CompletionRequest, TEXT | {"prompt": prompt}).param == "prompt"


def test_null_is_the_same_as_nothing():
    nulls = dict.fromkeys(["max_tokens", "n", "stop", "seed", "logprobs", "stream", "tools", "user", "min_p"])
    assert taken(CompletionRequest, TEXT | nulls) == taken(CompletionRequest, TEXT)


def test_a_message_of_ours_may_be_sent_back():
    nothing = dict.fromkeys(["refusal", "annotations", "audio", "function_call", "tool_calls"])
    for more in (nothing, {"refusal": "", "annotations": [], "tool_calls": []}):
        (message,) = taken(ChatRequest, CHAT | {"messages": [{"role": "assistant", "content": "甲"} | more]}).messages
        assert (message.role, message.content) == ("assistant", "甲")


def test_what_openai_takes_at_the_ends_of_its_ranges_is_taken():
    assert taken(CompletionRequest, TEXT | {"seed": -1}).seed == 2**63 - 1
    assert taken(CompareRequest, COMPARE | {"seeds": [-(2**63), 2**63 - 1]}).seeds == [0, 2**63 - 1]
    assert 0 < taken(ChatRequest, CHAT | {"top_p": 0}).top_p < 1e-6
    assert 0 < taken(CompareRequest, COMPARE | {"top_p": 0}).top_p < 1e-6
    options = {"include_usage": True, "include_obfuscation": False}
    assert taken(ChatRequest, CHAT | {"stream": True, "stream_options": options}).stream_options.include_usage


def test_a_part_of_a_content_may_have_notes_of_its_client():
    part = {"type": "text", "text": "甲", "cache_control": {"type": "ephemeral"}}
    (message,) = taken(ChatRequest, CHAT | {"messages": [{"role": "user", "content": [part]}]}).messages
    assert message.content == "甲"


@pytest.mark.parametrize(
    ("model", "body", "param", "words"),
    [
        (CompletionRequest, {"prompt": "甲"}, "model", "is missing"),
        (CompletionRequest, TEXT | {"temperature": 3}, "temperature", "less than or equal to 2"),
        (CompletionRequest, TEXT | {"temperature": "1"}, "temperature", "valid number"),
        (CompletionRequest, TEXT | {"n": 0}, "n", "greater than or equal to 1"),
        (CompletionRequest, TEXT | {"n": True}, "n", "valid integer"),
        (CompletionRequest, TEXT | {"top_p": -0.1}, "top_p", "greater than or equal to 0"),
        (CompletionRequest, TEXT | {"stream_options": {}}, "stream_options", "goes with `stream`"),
        (CompletionRequest, TEXT | {"logprobs": 6}, "logprobs", "less than or equal to 5"),
        (CompletionRequest, TEXT | {"lora_scale": 1.6}, "lora_scale", "1.5"),
        (CompletionRequest, TEXT | {"stop": [""]}, "stop", "texts of 1"),
        (CompletionRequest, TEXT | {"stop": ["a"] * 17}, "stop", "up to 16"),
        (CompletionRequest, TEXT | {"max_tokens": 0}, "max_tokens", "echo"),
        (CompletionRequest, TEXT | {"best_of": 2}, "best_of", "none is picked"),
        (CompletionRequest, TEXT | {"temprature": 1}, "temprature", "did you mean `temperature`"),
        (CompletionRequest, TEXT | {"xyz": 1}, "xyz", "there are"),
        (CompletionRequest, TEXT | {"stream_options": {"x": 1}}, "stream_options.x", "not permitted"),
        (
            ChatRequest,
            CHAT | {"stream": True, "stream_options": {"include_obfuscation": True}},
            "stream_options.include_obfuscation",
            "False",
        ),
        (CompletionRequest, TEXT | {"frequency_penalty": 0.5}, "frequency_penalty", "has no frequency_penalty"),
        (CompletionRequest, TEXT | {"frequency_penalty": False}, "frequency_penalty", "has no frequency_penalty"),
        (CompletionRequest, TEXT | {"logit_bias": {"5": 1}}, "logit_bias", "has no logit_bias"),
        (CompletionRequest, TEXT | {"suffix": "完"}, "suffix", "has no suffix"),
        (ChatRequest, CHAT | {"tools": [{"type": "function"}]}, "tools", "has no tools"),
        (ChatRequest, CHAT | {"response_format": {"type": "json_object"}}, "response_format", "has no response_format"),
        (ChatRequest, CHAT | {"messages": []}, "messages", "at least 1"),
        (ChatRequest, CHAT | {"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role", "system"),
        (ChatRequest, CHAT | {"messages": [{"role": "user", "content": None}]}, "messages.0.content", "missing"),
        (
            ChatRequest,
            CHAT | {"messages": [{"role": "assistant", "content": "甲", "tool_calls": [{}]}]},
            "messages.0.tool_calls",
            "at most 0",
        ),
        (ChatRequest, CHAT | {"top_logprobs": 3}, "top_logprobs", "goes with"),
        (ChatRequest, CHAT | {"prompt": "甲"}, "prompt", "there is no `prompt`"),
        (ChatRequest, CHAT | {"max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens", "differ"),
        (CompareRequest, COMPARE | {"models": ["base", "base"]}, "models", "twice"),
        (CompareRequest, COMPARE | {"model": "base"}, "model", "did you mean `models`"),
    ],
)
def test_a_refusal_names_the_parameter_and_the_way_out(model, body, param, words):
    error = refused(model, body)
    assert error.param == param and words in error.message and error.code == "invalid_value"


@pytest.mark.parametrize(
    "part", [{"type": "image_url", "image_url": {}}, {"type": "text"}, {"type": "text", "text": 1}, "甲"]
)
def test_a_content_has_text_and_nothing_else(part):
    assert (
        refused(ChatRequest, CHAT | {"messages": [{"role": "user", "content": [part]}]}).param == "messages.0.content"
    )


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in NO_EFFECT.items() for value in values])
def test_what_asks_for_nothing_is_taken(name, value):
    assert taken(CompletionRequest, TEXT | {name: value}) == taken(CompletionRequest, TEXT)


def test_who_asks_changes_nothing():
    assert taken(ChatRequest, CHAT | {"user": "x", "metadata": {"a": "b"}, "service_tier": "auto"}) == taken(
        ChatRequest, CHAT
    )


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"[]", "no JSON object"),
        (b'"x"', "no JSON object"),
        (b'{"model":"base","prompt":"a","temperature":NaN}', "NaN"),
        (b'{"model":"base","prompt":"a","temperature":-Infinity}', "-Infinity"),
        (b'{"model":"base","prompt":"a","temperature":1e999}', "too large"),
        (b'{"model":"base","prompt":"a","seed":9223372036854775808}', "64 bits"),
        (b'{"model":"base","prompt":"a","seed":' + b"9" * 5000 + b"}", "64 bits"),
        (b'{"model":"base","prompt":"\xff"}', "not UTF-8"),
        (b'{"model":"base","prompt":"\xed\xa0\x80"}', "not UTF-8"),
        (b'{"model":"base","prompt":"\\ud800"}', "surrogate"),
        (b'{"\\udfff":1}', "surrogate"),
        (b'{"a":' * 40 + b"1" + b"}" * 40, "deep"),
        (b'{"a":' + b"[" * 200_000, "deep"),
    ],
)
def test_json_is_taken_by_the_letter(raw, words):
    assert words in refused(CompletionRequest, raw).message


MESSAGE = '{"role":"user","content":""}'


@pytest.mark.parametrize(
    ("model", "body", "key", "value", "words"),
    [
        (CompletionRequest, TEXT, None, ",".join(f'"{n}":null' for n in range(60_000)), "60002 keys"),
        (ChatRequest, CHAT, None, '"stream_options":{' + ",".join(f'"{n}":0' for n in range(60_000)) + "}", "keys"),
        (ChatRequest, CHAT, "messages", "0," * 400_000 + "0", "`messages.0`"),
        (ChatRequest, CHAT, "messages", f"{MESSAGE}," * 30_000 + MESSAGE, "at most 1024"),
        (CompletionRequest, TEXT, "prompt", "[0]," * 200_000 + "[0]", "200001 prompts"),
        (CompletionRequest, TEXT, "prompt", '"",' * 200_000 + '""', "200001 prompts"),
        (CompareRequest, COMPARE, "models", "0," * 400_000 + "0", "`models.0`"),
        (CompareRequest, COMPARE, "seeds", '"",' * 300_000 + '""', "`seeds.0`"),
    ],
    ids=["keys", "keys within", "messages", "right messages", "ids", "texts", "models", "seeds"],
)
def test_a_long_body_is_refused_by_its_first_mistake(model, body, key, value, words):
    """All that others wait for meanwhile. CPU time, for machines that run tests are busy."""
    others = json.dumps({name: item for name, item in body.items() if name != key})[:-1]
    raw = f"{others},{value}}}" if key is None else f'{others},"{key}":[{value}]}}'
    started_s = time.process_time()
    assert words in refused(model, raw.encode()).message
    assert time.process_time() - started_s < 1.2


def test_a_pair_of_surrogates_is_a_character():
    assert taken(CompletionRequest, b'{"model":"base","prompt":"\\ud83d\\ude00"}').prompt == ("😀",)


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/x-www-form-urlencoded", "application/jsonp"])
def test_only_json_is_taken_for_json(content_type):
    """A page may send the others anywhere without asking."""
    assert "application/json" in refused(CompletionRequest, TEXT, content_type=content_type).message


def test_json_may_say_its_charset():
    taken(CompletionRequest, TEXT, "Application/JSON; charset=utf-8")
