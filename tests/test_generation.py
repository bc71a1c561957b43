"""The decode loop: equal to transformers' greedy search, and each row on its own."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raystyle import models, tokens
from raystyle.generation import Sampling, draw, generate

PROMPTS = ["今日天气阴沉，", "天地玄黄宇宙洪荒", "日"]


@pytest.fixture(scope="module")
def model(tiny_model):
    return models.load_base(str(tiny_model), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tiny_tokenizer(tiny_model):
    return tokens.load_tokenizer(str(tiny_model))


def test_greedy_equals_transformers(model, tiny_tokenizer):
    sampling = Sampling(max_new_tokens=12, temperature=0)
    [found] = generate(model, tiny_tokenizer, PROMPTS[:1], [sampling])
    inputs = tiny_tokenizer(PROMPTS[0], return_tensors="pt")
    expected = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert list(found.token_ids) == expected.tolist()


@pytest.mark.parametrize("temperature", [0, 0.9])
def test_a_row_does_not_depend_on_the_rows_beside_it(model, tiny_tokenizer, temperature):
    samplings = [Sampling(max_new_tokens=n, temperature=temperature, seed=n) for n in (9, 4, 12)]
    together = generate(model, tiny_tokenizer, PROMPTS, samplings)
    alone = [generate(model, tiny_tokenizer, [p], [s])[0] for p, s in zip(PROMPTS, samplings, strict=True)]
    assert together == alone


def test_the_same_seed_gives_the_same_text_and_another_another(model, tiny_tokenizer):
    def run(seed):
        return generate(model, tiny_tokenizer, PROMPTS[:1], [Sampling(max_new_tokens=16, temperature=1, seed=seed)])

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_end_of_text_ends_a_row_and_is_not_in_its_text(model, tiny_tokenizer, monkeypatch):
    import raystyle.generation

    [free] = generate(model, tiny_tokenizer, PROMPTS[:1], [Sampling(max_new_tokens=8, temperature=0)])
    stop = free.token_ids[3]
    monkeypatch.setattr(raystyle.generation, "_end_ids", lambda *_: {stop})
    [stopped] = generate(model, tiny_tokenizer, PROMPTS[:1], [Sampling(max_new_tokens=8, temperature=0)])
    assert stopped.finish_reason == "stop"
    assert stop not in stopped.token_ids
    assert stopped.token_ids == free.token_ids[: free.token_ids.index(stop)]


@given(
    logits=st.lists(st.floats(-20, 20), min_size=2, max_size=12),
    top_p=st.floats(0.05, 1),
    temperature=st.floats(0.1, 3),
    seed=st.integers(0, 99),
)
def test_draws_come_from_the_smallest_set_that_reaches_top_p(logits, top_p, temperature, seed):
    logits_V = torch.tensor(logits)
    generator = torch.Generator().manual_seed(seed)
    token = draw(logits_V, [], Sampling(temperature=temperature, top_p=top_p), generator)
    probabilities = torch.softmax(logits_V / temperature, -1)
    likelier = probabilities[probabilities > probabilities[token]].sum()
    assert likelier < top_p + 1e-4


def test_the_repetition_penalty_makes_seen_tokens_less_likely():
    logits_V = torch.tensor([2.0, 1.9, -1.0])
    greedy = Sampling(temperature=0, repetition_penalty=1.5)
    assert draw(logits_V, [], greedy, torch.Generator()) == 0
    assert draw(logits_V, [0], greedy, torch.Generator()) == 1
