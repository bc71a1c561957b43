"""Clients that people use, against a real server: openai, LangChain, curl."""

import asyncio
import json
import subprocess
import time

import pytest
from scripted import CARDS, DIGEST, Scripted, app_of, served

from raystyle.serving.errors import RequestError
from raystyle.serving.keys import Keys, read_keys

KEY = "k" * 24


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    path = tmp_path_factory.mktemp("keys") / "keys.txt"
    path.write_text(KEY)
    path.chmod(0o600)
    return read_keys(str(path))


@pytest.fixture(scope="module")
def backend():
    return Scripted()


@pytest.fixture(scope="module")
def address(backend, keys):
    with served(app_of(backend, keys=keys)) as address:
        yield address


@pytest.fixture
def client(address):
    import openai

    with openai.OpenAI(base_url=f"{address}/v1", api_key=KEY) as client:
        yield client


def test_openai_lists_models(client):
    models = client.models.list()
    assert [model.id for model in models] == [card.name for card in CARDS if not card.refused]
    assert client.models.retrieve("style@step-20").digest == "d2" * 32


def test_openai_completions(client, backend):
    whole = client.completions.create(model="style", prompt=["今日", "明日"], n=2, seed=7, max_tokens=10, stop=["。"])
    assert whole.adapter_digest == DIGEST and [choice.seed for choice in whole.choices] == [7, 8, 1007, 1008]
    assert backend.asked[-1].stop == ("。",)
    texts = [""] * 4
    with client.completions.create(
        model="style",
        prompt=["今日", "明日"],
        n=2,
        seed=7,
        max_tokens=10,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        for chunk in stream:
            for choice in chunk.choices:
                texts[choice.index] += choice.text
    assert texts == [choice.text for choice in whole.choices]
    assert chunk.usage == whole.usage and chunk.usage.completion_tokens == 4 * 10


def test_openai_chat_with_logprobs(client):
    asked = {"model": "style", "messages": [{"role": "user", "content": "你好"}], "seed": 1}
    whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
    message = whole.choices[0].message
    tokens = whole.choices[0].logprobs.content
    assert "".join(token.token for token in tokens) == message.content
    assert bytes(tokens[0].bytes).decode() == tokens[0].token and len(tokens[0].top_logprobs) == 2
    with client.chat.completions.stream(**asked) as stream:
        for _ in stream:
            pass
        assert stream.get_final_completion().choices[0].message.content == message.content
    # The message of an answer is a message of the next question.
    more = [{"role": "user", "content": "你好"}, message, {"role": "user", "content": "再说"}]
    client.chat.completions.create(model="style", messages=more, max_completion_tokens=3)


def test_openai_extensions_go_as_extra_body(client, backend):
    client.completions.create(
        model="style", prompt="甲", extra_body={"top_k": 5, "repetition_penalty": 1.1, "lora_scale": 0.5}
    )
    asked = backend.asked[-1]
    assert (asked.samplings[0].top_k, asked.samplings[0].repetition_penalty, asked.scale) == (5, 1.1, 0.5)


def test_openai_errors_have_classes_and_codes(client, address):
    import openai

    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="nobody", prompt="甲")
    assert caught.value.code == "model_not_found" and caught.value.param == "model" and caught.value.request_id
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="style", prompt="甲", frequency_penalty=1)
    assert caught.value.param == "frequency_penalty" and "frequency_penalty" in str(caught.value)
    with pytest.raises(openai.AuthenticationError) as caught:
        client.with_options(api_key="wrong").models.list()
    assert caught.value.code == "invalid_api_key"
    with pytest.raises(openai.PermissionDeniedError):
        client.with_options(base_url=f"{address}/").post("/admin/refresh", cast_to=object)


def test_openai_sends_what_timed_out_once_and_what_found_no_room_again():
    import openai

    backend = Scripted()
    backend.first_token_s = 60
    with served(app_of(backend, first_token_timeout_s=0.1)) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="-")
        with pytest.raises(openai.APIStatusError) as caught:
            client.completions.create(model="base", prompt="甲")
        assert caught.value.status_code == 408 and len(backend.asked) == 1
    with served(app_of(requests_per_minute=60)) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="-")
        for _ in range(61):
            client.completions.create(model="base", prompt="甲", max_tokens=1)


def test_openai_is_told_of_an_error_in_the_middle_of_a_stream():
    import openai

    backend = Scripted()
    backend.errors, backend.good_tokens = {None: RequestError("unavailable", "a replica died")}, 2
    with served(app_of(backend)) as address, openai.OpenAI(base_url=f"{address}/v1", api_key="-") as client:
        texts = []
        with pytest.raises(openai.APIError, match="a replica died") as caught:
            for chunk in client.completions.create(model="base", prompt="甲", stream=True):
                texts.append(chunk.choices[0].text)
        assert caught.value.code == "unavailable" and texts == ["基", "×"]


def test_openai_that_leaves_a_stream_frees_its_rows():
    import openai

    backend = Scripted()
    backend.token_s = 0.01
    with served(app_of(backend)) as address, openai.OpenAI(base_url=f"{address}/v1", api_key="-") as client:
        with client.completions.create(model="base", prompt="甲" * 2000, max_tokens=2000, stream=True) as stream:
            next(iter(stream))
        deadline_s = time.monotonic() + 5
        while not backend.closed:
            assert time.monotonic() < deadline_s
            time.sleep(0.01)


def test_openai_async_that_gives_up_a_whole_answer_frees_its_rows():
    import openai

    backend = Scripted()
    backend.first_token_s = 60

    async def scenario(address):
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="-") as client:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await client.completions.create(model="base", prompt="甲")
        deadline_s = time.monotonic() + 5
        while not backend.closed:
            assert time.monotonic() < deadline_s
            await asyncio.sleep(0.01)

    with served(app_of(backend)) as address:
        asyncio.run(scenario(address))


# ── LangChain ──


def test_langchain_chat_and_completion(address):
    from langchain_openai import ChatOpenAI, OpenAI

    chat = ChatOpenAI(
        base_url=f"{address}/v1", api_key=KEY, model="style", temperature=0.5, max_tokens=20, seed=4, stream_usage=True
    )
    whole = chat.invoke([("system", "短"), ("user", "你好")])
    pieces = list(chat.stream([("system", "短"), ("user", "你好")]))
    assert whole.content and "".join(piece.content for piece in pieces) == whole.content
    assert whole.usage_metadata["output_tokens"] == 20
    assert next(piece for piece in pieces if piece.usage_metadata).usage_metadata["output_tokens"] == 20
    text = OpenAI(base_url=f"{address}/v1", api_key=KEY, model="style", max_tokens=9, seed=4, temperature=0.5)
    assert text.invoke("今日") == "".join(text.stream("今日"))
    assert len(text.batch(["今日"] * 20)) == 20  # all of them in one request


def test_langchain_knows_what_does_not_fit(address):
    from langchain_core.exceptions import ContextOverflowError
    from langchain_openai import ChatOpenAI

    with pytest.raises(ContextOverflowError):
        ChatOpenAI(base_url=f"{address}/v1", api_key=KEY, model="style", max_tokens=5000).invoke("你好")


# ── curl ──


def curl(*arguments):
    done = subprocess.run(
        ["curl", "--silent", "--show-error", "--max-time", "20", *arguments], capture_output=True, check=True
    )
    return done.stdout.decode()


def test_curl(address):
    asked = json.dumps({"model": "style", "prompt": "今日", "max_tokens": 4, "seed": 1}, ensure_ascii=False)
    common = [f"{address}/v1/completions", "--oauth2-bearer", KEY, "--json"]
    whole = json.loads(curl(*common, asked))
    assert len(whole["choices"][0]["text"]) == 4 and whole["adapter_digest"] == DIGEST
    lines = curl("--no-buffer", *common, asked.replace('"seed"', '"stream":true,"seed"')).split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    assert "".join(json.loads(line[6:])["choices"][0]["text"] for line in lines[:-2]) == whole["choices"][0]["text"]
    assert (
        curl("--user", f"me:{KEY}", f"{address}/v1/models/base", "--output", "/dev/null", "--write-out", "%{http_code}")
        == "200"
    )
    assert "WWW-Authenticate: Basic" in curl("--include", address).replace("www-authenticate", "WWW-Authenticate")


def test_curl_with_a_body_that_waits_for_a_hundred_continue(address):
    asked = json.dumps({"model": "base", "prompt": "甲" * 5000, "max_tokens": 1})
    common = ["--oauth2-bearer", KEY, "--json", asked, "--header", "Expect: 100-continue"]
    assert json.loads(curl(f"{address}/v1/completions", *common))["choices"]


def test_no_key_is_asked_for_where_none_is_set():
    with served(app_of(keys=Keys())) as address:
        assert json.loads(curl(f"{address}/v1/models"))["object"] == "list"
