"""Neutral text: as much as is promised, nothing twice, in simplified script."""

import re

import opencc
import pytest

from raystyle.config import NEUTRAL_PROMPT
from raystyle.style.neutral import CHAT_TASKS, PROMPTS, PROSE


def test_prose_is_forty_paragraphs_of_a_hundred_characters_or_more():
    assert len(PROSE) == 40
    assert all(100 <= len(paragraph) <= 200 and "\n" not in paragraph for paragraph in PROSE)


def test_prompts_start_with_the_one_that_training_uses():
    assert PROMPTS[0] == NEUTRAL_PROMPT
    assert len(PROMPTS) == len(set(PROMPTS)) == 24
    assert all(1 < len(prompt) <= 20 for prompt in PROMPTS)


def test_no_sentence_comes_twice():
    sentences = [sentence for paragraph in PROSE for sentence in re.split(r"(?<=[。！？])", paragraph) if sentence]
    assert len(sentences) == len(set(sentences)) > 120


def test_no_opening_comes_twice():
    assert len({paragraph[:4] for paragraph in PROSE}) == len(PROSE)


def test_tasks_are_of_six_kinds_and_all_different():
    kinds = [task.kind for task in CHAT_TASKS]
    assert {kinds.count(kind) for kind in kinds} == {4}
    assert len({task.request for task in CHAT_TASKS}) == len(CHAT_TASKS) == 24


@pytest.mark.parametrize("texts", [PROSE, PROMPTS, [task.request for task in CHAT_TASKS]])
def test_the_script_is_simplified(texts):
    convert = opencc.OpenCC("t2s").convert
    assert [text for text in texts if convert(text) != text] == []
