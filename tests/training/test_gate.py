"""The loss gate on curves whose story is known."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raystyle.training import gate

LARGE = 8e9


def curve(level, steps=88, noise=0.05, seed=0):
    """(step, loss) with a loss of `level(share of the run)` and some noise."""
    draw = random.Random(seed)
    return [(step + 1, level(step / (steps - 1)) + draw.gauss(0, noise)) for step in range(steps)]


def falling(share):
    """The reference band's own curve."""
    return 1.78 + 0.72 * math.exp(-4 * share)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(
    ("level", "word"),
    [
        (falling, "falling smoothly"),
        (lambda x: 2.5 - 0.5 * x, "falling smoothly"),
        (lambda x: 2.25 + 0.3 * math.exp(-20 * x), "plateau above 2.0"),
        (lambda x: 2.4, "plateau above 2.0"),
        (lambda x: falling(x) if x < 0.6 else falling(0.6) + 2 * (x - 0.6), "diverging"),
        (lambda x: 1.7, "undecided"),
    ],
)
def test_the_word_for_a_story(level, word, seed):
    assert gate.judge(curve(level, seed=seed), [], LARGE).word == word


def test_the_sentence_has_the_figures():
    said = gate.judge(curve(falling, noise=0.01), [], LARGE).sentence
    assert "inside the reference band's end (1.8 or less)" in said
    assert "from 2.37 to 1.79" in said
    assert "short of" in gate.judge(curve(lambda x: 2.5 - 0.5 * x, noise=0.01), [], LARGE).sentence


@pytest.mark.parametrize("parameters", [4e5, None, 70e9])
def test_other_bases_are_judged_by_their_trend_alone(parameters):
    flat = gate.judge(curve(lambda x: 4.1, noise=0.02), [], parameters)
    assert flat.word == "undecided" and "did not move" in flat.sentence and "says nothing here" in flat.sentence
    settled = gate.judge(curve(lambda x: 3.5 + 2 * math.exp(-20 * x), noise=0.02), [], parameters)
    assert settled.word == "falling smoothly" and "level since step" in settled.sentence
    assert gate.judge(curve(lambda x: 5 - x, noise=0.02), [], parameters).word == "falling smoothly"
    assert gate.judge(curve(lambda x: 4 + x, noise=0.02), [], parameters).word == "diverging"


def test_held_out_loss_that_rises_while_training_falls_is_diverging():
    losses = curve(falling)
    assert gate.judge(losses, [(0, 2.5), (44, 2.2), (88, 2.21)], LARGE).word == "falling smoothly"
    found = gate.judge(losses, [(0, 2.5), (44, 2.2), (88, 2.6)], LARGE)
    assert found.word == "diverging" and "by heart" in found.sentence and "(step 44)" in found.sentence


def test_single_wild_losses_change_nothing():
    losses = curve(falling)
    expected = gate.judge(losses, [], LARGE)
    for step in (5, 30, 85):
        losses[step] = (step + 1, 9.0)
    assert gate.judge(losses, [], LARGE).word == expected.word


def test_too_little_is_undecided_and_a_loss_that_is_no_number_diverges():
    assert gate.judge([], [], LARGE).word == "undecided"
    assert gate.judge(curve(falling, steps=15), [], LARGE).word == "undecided"
    assert gate.judge([*curve(falling), (89, math.nan)], [], LARGE).word == "diverging"


@given(st.lists(st.floats(0, 20), max_size=60), st.lists(st.floats(0, 20), max_size=6), st.sampled_from([None, 8e9]))
def test_any_curve_gets_one_of_the_words(losses, heldout, parameters):
    found = gate.judge(list(enumerate(losses)), list(enumerate(heldout)), parameters)
    assert found.word in {"falling smoothly", "plateau above 2.0", "diverging", "undecided"}
    assert found.sentence.endswith(".")


@given(st.lists(st.floats(0, 20), min_size=4, max_size=200))
def test_windows_cover_the_curve_in_order(losses):
    found = gate.windows(list(enumerate(losses)))
    assert 1 <= len(found) <= gate.WINDOWS
    assert [window.step for window in found] == sorted({window.step for window in found})
    assert found[-1].step == len(losses) - 1
