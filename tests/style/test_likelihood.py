"""Bits per character: equal to transformers' own loss, to one window at a time, and with intervals that hold."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raystyle import models, tokens
from raystyle.errors import DataError
from raystyle.style import likelihood
from raystyle.style.likelihood import Scored, bits_per_character, estimate, gain, gain_difference, score, windows

TEXTS = ["今日天气阴沉，日月无光。" * 9, "天地玄黄，", "秋收冬藏。寒来暑往，雨！" * 4, "日"]


@pytest.fixture(scope="module")
def model(tiny_model):
    return models.load_base(str(tiny_model), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def with_prefix(tiny_model):
    return tokens.load_tokenizer(str(tiny_model))


@pytest.fixture(scope="module")
def without_prefix(tiny_model):
    from tokenizers import processors

    tokenizer = tokens.load_tokenizer(str(tiny_model))
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    assert tokens.prefix_and_end(tokenizer)[0] == []
    return tokenizer


def test_one_window_costs_what_transformers_loss_says(model, with_prefix):
    [found] = score(model, with_prefix, TEXTS[:1], max_tokens=512)
    inputs = with_prefix(TEXTS[0], return_tensors="pt")
    with torch.no_grad():
        loss = model(**inputs, labels=inputs["input_ids"]).loss.item()
    count = inputs["input_ids"].shape[1] - 1
    assert found.tokens == count
    assert found.characters == len(TEXTS[0])
    assert found.nats == pytest.approx(loss * count, rel=1e-5)
    assert bits_per_character([found]) == pytest.approx(loss * count / math.log(2) / len(TEXTS[0]), rel=1e-5)


def test_a_uniform_model_costs_the_logarithm_of_its_vocabulary(tiny_model, with_prefix):
    even = models.load_base(str(tiny_model), dtype=torch.float32).eval()
    torch.nn.init.zeros_(even.lm_head.weight)
    for window in score(even, with_prefix, TEXTS, max_tokens=20):
        assert window.nats == pytest.approx(window.tokens * math.log(even.config.vocab_size), rel=1e-6)


@pytest.mark.parametrize("limit", ["LOGIT_BYTES", "CHUNK_BYTES"])
def test_batches_and_chunks_change_nothing(model, with_prefix, without_prefix, monkeypatch, limit):
    for tokenizer in (with_prefix, without_prefix):
        alone = score(model, tokenizer, TEXTS, max_tokens=40, batch_size=1)
        monkeypatch.setattr(likelihood, limit, 4 * 320 * 50)
        together = score(model, tokenizer, TEXTS, max_tokens=40, batch_size=8)
        assert [window[1:] for window in together] == [window[1:] for window in alone]
        assert [window.nats for window in together] == pytest.approx([window.nats for window in alone], rel=1e-5)


@given(text=st.text(alphabet="天地日月玄a1 \n，。雨😀é", max_size=120), max_tokens=st.integers(12, 60))
def test_windows_hold_every_token_and_character_once(with_prefix, without_prefix, text, max_tokens):
    ids = tokens.encode(with_prefix, text)[0].tolist() if text else []
    found = windows(with_prefix, [text], max_tokens)
    prefix = tokens.prefix_and_end(with_prefix)[0]
    assert [id_ for window in found for id_ in window.ids[len(prefix) :]] == ids
    assert sum(window.characters for window in found) == len(text)
    for window in found:
        assert window.ids[:1] == prefix
        assert len(window.ids) <= max_tokens
    # Where nothing stands in front, each window's first token goes without a prediction.
    unpredicted = windows(without_prefix, [text], max_tokens)
    assert all(0 < window.first < len(window.ids) <= max_tokens for window in unpredicted)
    assert sum(window.characters for window in unpredicted) <= len(text) - len(unpredicted)


def test_the_first_token_without_anything_in_front_is_not_counted(without_prefix):
    """`雨` is three tokens of one character here, `。` fewer."""
    [found] = windows(without_prefix, ["雨。a"], 20)
    assert (found.first, found.characters) == (3, 2)
    assert without_prefix.decode(found.ids[found.first :]) == "。a"


def test_a_cut_keeps_the_tokens_of_a_character_together(with_prefix):
    text = "雨" * 40
    for window in windows(with_prefix, [text], 21):
        assert with_prefix.decode(window.ids, skip_special_tokens=True) == "雨" * window.characters


def test_an_empty_text_has_no_window_and_no_text_no_bits(model, with_prefix, without_prefix):
    assert windows(without_prefix, ["", "雨"], 20) == []
    assert [window.document for window in score(model, with_prefix, ["", "雨"])] == [1]
    with pytest.raises(DataError, match="no text to predict"):
        bits_per_character([])


def made(rates, seed=0, sizes=None):
    """One window a document, of the given bits per character."""
    sizes = np.random.default_rng(seed).integers(200, 900, len(rates)) if sizes is None else sizes
    return [
        Scored(float(rate * size * math.log(2)), int(size), int(size), document)
        for document, (rate, size) in enumerate(zip(rates, sizes, strict=True))
    ]


@given(st.permutations(range(8)))
def test_the_order_of_documents_does_not_matter(order):
    random = np.random.default_rng(3)
    before, after = made(random.normal(4, 0.5, 8)), made(random.normal(3, 0.5, 8))
    shuffled_before, shuffled_after = [before[i] for i in order], [after[i] for i in order]
    assert estimate(shuffled_before) == estimate(before)
    assert gain(shuffled_before, shuffled_after) == gain(before, after)
    assert gain_difference(shuffled_before, shuffled_after, before, before) == gain_difference(
        before, after, before, before
    )


def test_the_interval_is_that_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    scored = made(np.random.default_rng(1).normal(4, 0.6, 25))
    nats, characters = np.array([(s.nats, s.characters) for s in scored]).T

    def bits(n, c, axis):
        return n.sum(axis) / math.log(2) / c.sum(axis)

    expected = stats.bootstrap(
        (nats, characters), bits, paired=True, method="percentile", n_resamples=20_000, rng=1
    ).confidence_interval
    assert estimate(scored)[1:] == pytest.approx((expected.low, expected.high), abs=0.02)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    """Of 150 samples of 30 documents each; a percentile interval of a mean that small holds slightly less than 95 %."""
    held = 0
    for seed in range(150):
        found = estimate(made(np.random.default_rng(seed).normal(4, 0.5, 30), sizes=np.full(30, 500)))
        held += found.low <= 4 <= found.high
    assert 0.87 <= held / 150 <= 0.99


def test_windows_are_resampled_where_documents_are_few():
    windows_of_one = [window._replace(document=0) for window in made(np.linspace(3, 5, 12))]
    found = estimate(windows_of_one)
    assert found.low < found.value < found.high
    assert found == estimate(made(np.linspace(3, 5, 12)))


def test_one_window_has_no_interval():
    found = estimate(made([4.0]))
    assert found.value == pytest.approx(4)
    assert math.isnan(found.low) and math.isnan(found.high)


def test_gains_are_paired():
    """Documents differ by far more than a document before and after: only a paired interval can tell."""
    rates = np.linspace(1, 9, 20)
    before, after = made(rates), made(rates - 0.1)
    found = gain(before, after)
    assert found == pytest.approx((0.1, 0.1, 0.1), abs=1e-9)
    with pytest.raises(DataError, match="same windows"):
        gain(before, after[1:])


def test_the_difference_of_gains_is_the_target_s_less_the_contrast_s():
    rates = np.linspace(3, 5, 20)
    noise = np.random.default_rng(0).normal(0, 0.05, 20)
    found = gain_difference(made(rates), made(rates - 0.5), made(rates), made(rates - 0.2 + noise))
    assert found.low < found.value < found.high
    assert found.low > 0.2 and found.high < 0.4
    nothing = gain_difference(made(rates), made(rates), made(rates), made(rates))
    assert nothing == (0, 0, 0)
