"""The decode loop: equal to transformers' greedy search, and each row on its own."""

from collections import namedtuple

import builders
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import raystyle.generation
from raystyle import models, tokens
from raystyle.drawing import BLOCK, LIKELIEST, RANDOM_BITS, _at, draw, penalise
from raystyle.errors import ModelError
from raystyle.generation import Row, Sampling, generate, generate_all

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
    [free] = generate(model, tiny_tokenizer, PROMPTS[:1], [Sampling(max_new_tokens=8, temperature=0)])
    stop = free.token_ids[3]
    monkeypatch.setattr(raystyle.generation, "end_ids", lambda *_: {stop})
    [stopped] = generate(model, tiny_tokenizer, PROMPTS[:1], [Sampling(max_new_tokens=8, temperature=0)])
    assert stopped.finish_reason == "stop"
    assert stop not in stopped.token_ids
    assert stopped.token_ids == free.token_ids[: free.token_ids.index(stop)]


def test_the_space_that_a_continuation_begins_with_is_part_of_it():
    """SentencePiece's decoders take it away at the start of a text, which a continuation is not."""

    class Said:
        is_idle = False

        def admit(self, row):
            self.row = row
            return row

        def advance(self):
            self.is_idle = True
            return [Step(self.row, token, reason) for token, reason in ((1, None), (1, "stop"))]

    Step = namedtuple("Step", "slot token finish_reason error", defaults=[None])
    [found] = raystyle.generation.complete(Said(), builders.metaspace_tokenizer(), [Row((3, 3), Sampling())])
    assert found.text == " the the"


def test_more_new_tokens_continue_what_fewer_gave(model, tiny_tokenizer):
    short, long = (
        generate(model, tiny_tokenizer, PROMPTS[:1], [Sampling(max_new_tokens=n, temperature=1)])[0] for n in (5, 40)
    )
    assert long.token_ids[:5] == short.token_ids


def test_rows_that_end_early_leave_the_batch_and_change_no_other(model, tiny_tokenizer, monkeypatch):
    """Of eight rows, of three prompts, two go on: the cache is cut to them on the way."""
    monkeypatch.setattr(raystyle.generation, "end_ids", lambda *_: {10**6})
    samplings = [Sampling(max_new_tokens=n, temperature=1, repetition_penalty=1.2, seed=n) for n in range(1, 7)]
    samplings += [Sampling(max_new_tokens=n, temperature=1, top_p=0.5, seed=n) for n in (10, 14)]
    prompts = [PROMPTS[i % 3] for i in range(8)]
    batch_sizes = []
    forward = type(model).forward

    def counted(self, input_ids, **kwargs):
        batch_sizes.append(len(input_ids))
        return forward(self, input_ids=input_ids, **kwargs)

    alone = [generate(model, tiny_tokenizer, [p], [s])[0] for p, s in zip(prompts, samplings, strict=True)]
    monkeypatch.setattr(model, "forward", counted.__get__(model))
    assert generate(model, tiny_tokenizer, prompts, samplings) == alone
    assert batch_sizes == [3, 7, 6, 5, 4, 3, 2, 2, 2, 2, 1, 1, 1, 1]


def test_any_number_of_prompts_in_batches_comes_back_in_order(model, tiny_tokenizer):
    prompts = [PROMPTS[i % 3] * (1 + i % 2) for i in range(7)]
    samplings = [Sampling(max_new_tokens=3 + i, seed=i) for i in range(7)]
    expected = [generate(model, tiny_tokenizer, [p], [s])[0] for p, s in zip(prompts, samplings, strict=True)]
    assert generate_all(model, tiny_tokenizer, prompts, samplings, batch_size=3) == expected
    assert generate_all(model, tiny_tokenizer, [], [], batch_size=3) == []


def test_token_ids_are_taken_as_they_are_and_no_tokens_start_at_the_end_of_text(model, tiny_tokenizer):
    ids = tiny_tokenizer(PROMPTS[0])["input_ids"]
    greedy = Sampling(max_new_tokens=4, temperature=0)
    by_text, by_ids, by_none, by_end = generate(
        model, tiny_tokenizer, [PROMPTS[0], ids, [], [tiny_tokenizer.eos_token_id]], [greedy] * 4
    )
    assert by_text == by_ids
    assert by_none == by_end


def test_a_limit_of_no_tokens_gives_none(model, tiny_tokenizer):
    none, some = generate(model, tiny_tokenizer, PROMPTS[:2], [Sampling(max_new_tokens=0), Sampling(max_new_tokens=3)])
    assert (none.text, none.token_ids, none.finish_reason) == ("", (), "length")
    assert len(some.token_ids) == 3


@pytest.mark.parametrize("temperature", [0, 1])
def test_logits_that_are_not_finite_are_an_error(tiny_model, tiny_tokenizer, temperature):
    broken = models.load_base(str(tiny_model), dtype=torch.float32).eval()
    torch.nn.init.constant_(broken.lm_head.weight, float("nan"))
    with pytest.raises(ModelError, match="not finite at new token 1"):
        generate(broken, tiny_tokenizer, PROMPTS, [Sampling(temperature=temperature)] * 3)


def drawn(logits_BV, temperature, top_p, random_B):
    rows = len(logits_BV)
    return draw(logits_BV, torch.full((rows,), temperature), torch.full((rows,), top_p), random_B)


@given(
    logits=st.lists(st.floats(-20, 20), min_size=2, max_size=12),
    top_p=st.floats(0.05, 1),
    temperature=st.floats(0.1, 3),
    random=st.integers(0, 2**RANDOM_BITS - 1),
)
def test_draws_come_from_the_smallest_set_that_reaches_top_p(logits, top_p, temperature, random):
    logits_V = torch.tensor(logits)
    [token] = drawn(logits_V[None], temperature, top_p, torch.tensor([random])).tolist()
    probabilities = torch.softmax(logits_V / temperature, -1)
    likelier = probabilities[probabilities > probabilities[token]].sum()
    assert likelier < top_p + 1e-4


@pytest.mark.parametrize("vocab_size, spread", [(7, 1), (200, 1), (3 * LIKELIEST[-1], 0.1), (3 * LIKELIEST[-1], 4)])
@pytest.mark.parametrize("top_p", [0.3, 0.9, 1.0])
def test_tokens_are_drawn_as_often_as_transformers_says(vocab_size, spread, top_p):
    """Random numbers spread evenly over their range meet each token in proportion to its share of the top-p set."""
    from transformers import TemperatureLogitsWarper, TopPLogitsWarper

    torch.manual_seed(0)
    logits_1V = spread * torch.randn(1, vocab_size)
    warped_1V = TemperatureLogitsWarper(0.7)(None, logits_1V)
    if top_p < 1:
        warped_1V = TopPLogitsWarper(top_p)(None, warped_1V)
    expected_V = torch.softmax(warped_1V, -1)[0]
    count = 4096
    random_B = torch.arange(count) * 2**RANDOM_BITS // count
    tokens_B = drawn(logits_1V.expand(count, -1), 0.7, top_p, random_B)
    shares_V = torch.bincount(tokens_B, minlength=vocab_size) / count
    assert (shares_V.cumsum(0) - expected_V.cumsum(0)).abs().max() < 2 / count + 1e-4
    assert not shares_V[expected_V == 0].any()


@settings(max_examples=20)
@given(seed=st.integers(0, 99), count=st.integers(1, 5))
def test_a_row_draws_the_same_whatever_stands_beside_it(seed, count):
    """Flat rows are sorted whole and peaked ones are not; half of the logits are tied, as in bf16."""
    torch.manual_seed(seed)
    logits_BV = (
        (torch.randn(count, 2 * LIKELIEST[-1]) * torch.tensor([0.1, 5, 0.1, 5, 0])[:count, None]).bfloat16().float()
    )
    random_B = torch.randint(2**RANDOM_BITS, (count,))
    together = drawn(logits_BV, 1.0, 0.9, random_B)
    alone = [drawn(logits_BV[i : i + 1], 1.0, 0.9, random_B[i : i + 1]) for i in range(count)]
    assert together.tolist() == torch.cat(alone).tolist()


@pytest.mark.parametrize("vocabulary", [1, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK + 7])
def test_a_number_s_token_is_found_by_blocks_as_by_one_sum(vocabulary):
    generator = torch.Generator().manual_seed(vocabulary)
    weights_BV = torch.randint(0, 3, (200, vocabulary), generator=generator, dtype=torch.int32)
    weights_BV[torch.arange(200), torch.randint(vocabulary, (200,), generator=generator)] = (
        2**20
    )  # one is drawn at least
    random_B = torch.randint(2**RANDOM_BITS, (200,), generator=generator)
    random_B[:2] = torch.tensor([0, 2**RANDOM_BITS - 1])
    upto_BV = weights_BV.cumsum(-1)
    target_B = (random_B * upto_BV[:, -1]) >> RANDOM_BITS
    expected_B = torch.searchsorted(upto_BV, target_B[:, None], right=True)[:, 0]
    assert torch.equal(_at(weights_BV, random_B), expected_B)


def test_greedy_and_drawn_rows_share_a_batch():
    logits_BV = torch.tensor([[0.0, 1.0, 0.9]] * 2)
    tokens = draw(logits_BV, torch.tensor([0.0, 1.0]), torch.ones(2), torch.tensor([2**RANDOM_BITS - 1] * 2))
    assert tokens.tolist() == [1, 2]


def test_the_repetition_penalty_is_that_of_transformers():
    from transformers import RepetitionPenaltyLogitsProcessor

    torch.manual_seed(0)
    logits_BV, seen_BT = torch.randn(2, 9), torch.tensor([[3, 3, 5], [0, 8, 1]])
    seen_BV = torch.zeros(2, 9, dtype=torch.bool).scatter(1, seen_BT, True)
    found = penalise(logits_BV, seen_BV, torch.tensor([1.5, 1.0]))
    assert torch.equal(found[:1], RepetitionPenaltyLogitsProcessor(1.5)(seen_BT[:1], logits_BV[:1]))
    assert torch.equal(found[1], logits_BV[1])


@pytest.mark.parametrize("temperature", [1e-30, 1e-38, 1e-42, 1e-45, 1e38])
def test_any_temperature_draws_from_the_vocabulary(temperature):
    """Logits divided by the least of these are beyond what fp32 holds."""
    logits_BV = torch.randn(4, 50, generator=torch.Generator().manual_seed(0)) * 10
    random_B = torch.tensor([0, 1, 2**RANDOM_BITS // 2, 2**RANDOM_BITS - 1])
    drawn_B = draw(logits_BV, torch.full((4,), temperature), torch.tensor([1.0, 0.5, 0.9, 1.0]), random_B)
    assert ((drawn_B >= 0) & (drawn_B < 50)).all()
    if temperature < 1:
        assert drawn_B.tolist() == logits_BV.argmax(-1).tolist()


def test_top_k_draws_from_the_likeliest_only():
    logits_BV = torch.randn(64, 40, generator=torch.Generator().manual_seed(1)) * 0.1
    random_B = torch.randint(2**RANDOM_BITS, (64,), generator=torch.Generator().manual_seed(2))
    top_k_B = torch.arange(64) % 5
    drawn_B = draw(logits_BV, torch.ones(64), torch.ones(64), random_B, top_k_B)
    free_B = draw(logits_BV, torch.ones(64), torch.ones(64), random_B)
    for row, top_k in enumerate(top_k_B.tolist()):
        likeliest = logits_BV[row].topk(top_k or 40).indices
        assert drawn_B[row] in likeliest
        assert top_k or drawn_B[row] == free_B[row]
