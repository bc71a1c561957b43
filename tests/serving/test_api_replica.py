"""Routes on a replica itself: a real base, a real adapter, the embedded engine, all in this process."""

import asyncio
import shutil

import engines
import pytest
from scripted import app_of, ask

from raystyle import generation, tokens
from raystyle.generation import Sampling

PROMPT = "今日天气阴沉，"


class Served:
    """An application on a replica, with the event loop that both live in."""

    def __init__(self, runner, replica, base):
        self.runner, self.replica, self.base = runner, replica, base
        self.app = app_of(replica)

    def post(self, path, body, **more):
        return self.runner.run(ask(self.app, "POST", path, body, **more))

    def complete(self, **body):
        answer = self.post("/v1/completions", {"model": "base", "prompt": PROMPT, "max_tokens": 24, "seed": 5} | body)
        assert answer.status == 200, answer.body
        return answer


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    from raystyle.config import ServeConfig
    from raystyle.serving.replica import Replica

    directory = tmp_path_factory.mktemp("replica")
    base = engines.write_base(directory / "base")
    engines.write_adapter(directory / "adapters" / "style", base, **engines.ADAPTERS["a"])
    config = ServeConfig(
        model_name_or_path=str(base),
        adapters_path=(str(directory / "adapters"),),
        allow_unverified_base=True,
        max_length=256,
        use_gpu=False,
    )
    with asyncio.Runner() as runner:
        replica = runner.run(Replica.start(config))
        yield Served(runner, replica, base)
        runner.run(replica.close())
    shutil.rmtree(directory)


def test_a_seed_says_what_the_command_line_says_for_it(served):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(served.base).eval()
    tokenizer = tokens.load_tokenizer(str(served.base))
    samplings = [Sampling(max_new_tokens=24, temperature=0.8, top_p=0.95, seed=5 + i) for i in range(3)]
    expected = generation.generate(model, tokenizer, [PROMPT] * 3, samplings)
    told = served.complete(n=3, temperature=0.8, top_p=0.95).json()
    assert [choice["text"] for choice in told["choices"]] == [completion.text for completion in expected]
    assert [choice["finish_reason"] for choice in told["choices"]] == [each.finish_reason for each in expected]


def test_the_adapter_is_the_one_that_is_asked_for_alone_and_in_company(served):
    digests = {card.name: card.digest for card in served.runner.run(served.replica.listing()).cards}
    body = {"prompt": PROMPT, "models": ["base", "style"], "seeds": [5, 6], "temperatures": [0.5, 1], "max_tokens": 24}
    cells = served.post("/v1/compare", body | {"top_p": 1, "stream": False}).json()["cells"]
    for cell in cells:
        asked = {"model": cell["model"], "seed": cell["seed"], "temperature": cell["temperature"]}
        alone = served.complete(**asked).json()
        assert cell["text"] == alone["choices"][0]["text"]
        assert cell["adapter_digest"] == alone["adapter_digest"] == digests[cell["model"]]
    assert all(one["text"] != other["text"] for one, other in zip(cells[:4], cells[4:], strict=True))
    unscaled = served.complete(model="style", lora_scale=0, seed=6).json()["choices"][0]["text"]
    assert unscaled == served.complete(seed=6).json()["choices"][0]["text"]


def test_a_stream_holds_whole_characters_and_is_the_whole_answer(served):
    for seed in range(4):
        *chunks, done = served.complete(model="style", seed=seed, stream=True, max_tokens=60).events()
        whole = served.complete(model="style", seed=seed, max_tokens=60).json()
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["choices"][0]["text"]
        assert done == "[DONE]" and chunks[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]


def test_log_probabilities_of_prompt_and_continuation_say_where_they_stand(served):
    (choice,) = served.complete(echo=True, logprobs=3, max_tokens=10).json()["choices"]
    scored = choice["logprobs"]
    assert choice["text"].startswith(PROMPT)
    assert scored["token_logprobs"][0] is None and scored["top_logprobs"][0] is None
    assert all(logprob <= 0 for logprob in scored["token_logprobs"][1:])
    # Of the prompt, that is: an untrained model's own text has bytes that are no character.
    for token, offset in zip(scored["tokens"], scored["text_offset"], strict=True):
        if offset < len(PROMPT):
            assert token.startswith(("bytes:", "<|")) or PROMPT[offset:].startswith(token)
    (only_prompt,) = served.complete(echo=True, logprobs=1, max_tokens=0).json()["choices"]
    assert only_prompt["text"] == PROMPT and only_prompt["finish_reason"] == "length"
    count = len(only_prompt["logprobs"]["tokens"])
    assert only_prompt["logprobs"]["token_logprobs"] == scored["token_logprobs"][:count]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"prompt": PROMPT * 60}, "context_length_exceeded"),
        ({"max_tokens": 256}, "context_length_exceeded"),
        ({"prompt": [5, 2**31 - 1]}, "invalid_value"),
        ({"prompt": [320]}, "invalid_value"),
    ],
)
def test_what_the_model_cannot_take_is_the_clients_to_mend(served, body, code):
    answer = served.post("/v1/completions", {"model": "style", "prompt": PROMPT} | body)
    error = answer.json()["error"]
    assert answer.status == 400 and error["code"] == code
    assert code == "invalid_value" or code in error["message"]


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": ""},
        {"prompt": [1, 300]},
        {"temperature": 0},
        {"temperature": 1e-300},
        {"top_k": 1_000_000},
        {"top_p": 1e-300},
        {"top_p": 0},
        {"seed": -(2**63)},
        {"repetition_penalty": 10},
        {"repetition_penalty": 0.1},
        {"seed": 2**63 - 1, "n": 2},
        {"prompt": "\x00\u2028😀"},
        {"stop": ["天", "\n"]},
        {"lora_scale": 1.5, "model": "style"},
        {"logprobs": 5},
    ],
)
def test_the_ends_of_every_range_are_answered(served, body):
    served.complete(**body)


def test_a_client_that_leaves_frees_its_rows_within_a_step(served):
    for leaves_after in (0, 1):
        body = {"model": "style", "prompt": PROMPT, "max_tokens": 200, "n": 4, "stream": True}
        served.post("/v1/completions", body, leaves_after=leaves_after)
        served.runner.run(asyncio.sleep(0.2))
        assert served.replica.engine.depth() == (0, 0)
