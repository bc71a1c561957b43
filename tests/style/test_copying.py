"""Copying: matches are the longest, whole, verbatim ones; what counts as a copy, and what as a common phrase."""

import difflib
import itertools
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raystyle.style.copying import COPIED_CHARS, Index, copied, is_extracted, key, overlap

SOURCE = (
    "他把旧木箱从阁楼上搬下来，掸去灰尘，里面整整齐齐叠着三十封没有寄出的信，每一封都写着同一个街名。\n"
    "“你读过么？”她在门口问。他摇摇头，把最上面的一封举到灯下，墨水已经淡成了茶色。"
)
HOST = "河边的集市天不亮就热闹起来，卖藕的、补锅的、代写书信的，各占一块石阶，谁也不碍着谁。"
PROVERB = "早起三朝当一工，懒人睡到日头红，勤人种出满仓谷，懒人饿得喊天公"
small = st.text(alphabet="甲乙丙", max_size=30)


def length(passage):
    return passage.end - passage.start if passage else 0


@settings(max_examples=40)
@given(st.lists(small, max_size=4), small)
def test_longest_is_the_longest_common_substring(texts, text):
    found = Index(texts).longest(text)
    blocks = [
        difflib.SequenceMatcher(None, source, text, autojunk=False)
        .find_longest_match(0, len(source), 0, len(text))
        .size
        for source in texts
    ]
    assert length(found) == max(blocks, default=0)
    if found:
        assert texts[found.source_no][found.source_start :].startswith(text[found.start : found.end])


@settings(max_examples=40)
@given(st.lists(small, max_size=4), small, st.integers(1, 6))
def test_passages_are_verbatim_apart_and_leave_nothing_long(texts, text, least):
    passages = Index(texts).passages(text, least)
    assert all(a.end <= b.start for a, b in itertools.pairwise(passages))
    for p in passages:
        assert length(p) >= least
        assert texts[p.source_no][p.source_start :].startswith(text[p.start : p.end])
    free = [True] * len(text)
    for p in passages:
        free[p.start : p.end] = [False] * length(p)
    for start in range(len(text) - least + 1):
        gram = text[start : start + least]
        assert not (all(free[start : start + least]) and any(gram in source for source in texts))


@settings(max_examples=40)
@given(st.lists(small, max_size=4), small, st.randoms(use_true_random=False))
def test_order_of_documents_does_not_matter_to_amounts(texts, text, random):
    shuffled = random.sample(texts, len(texts))
    one, two = Index(texts), Index(shuffled)
    assert copied(one, [text])[:3] == copied(two, [text])[:3]
    assert [p[:2] for p in one.passages(text, 3)] == [p[:2] for p in two.passages(text, 3)]


def test_a_passage_that_touches_a_longer_one_is_maximal():
    index = Index(["甲乙丙丁", "丙丁戊己庚辛"])
    (passage,) = index.passages("子甲乙丙丁戊己庚辛丑", 4)
    assert (passage.start, passage.end, passage.source_no) == (3, 9, 1)


def test_training_text_is_copied_whole():
    found = copied(Index([HOST, SOURCE]), [SOURCE])
    assert (found.copied_share, found.overlap) == (1.0, 1.0)
    assert found.longest == len(key(SOURCE).codes_Q)
    ((passage,),) = found.passages
    assert (passage.start, passage.end, passage.source_no, passage.source_start) == (0, len(SOURCE), 1, 0)


def test_a_text_longer_than_any_block_is_one_passage():
    rng = Random(1)
    text = "".join(chr(0x4E00 + rng.randrange(500)) for _ in range(30_000))
    (passage,) = Index(["前", text]).passages(text, 26)
    assert (passage.start, passage.end) == (0, len(text))


@pytest.mark.parametrize("chars", [30, 45, 60])
def test_planted_passages_are_found_wherever_they_are_cut(chars):
    index, solid = Index([SOURCE]), SOURCE.replace("\n", "")
    for start in range(len(solid) - chars + 1):
        planted = solid[start : start + chars]
        broken = "\n".join(planted[i : i + 7] for i in range(0, chars, 7)).replace("“", '"').replace("，", " , ")
        for version in (planted, broken.strip()):
            text = HOST + version + HOST
            ((passage,),) = copied(index, [text]).passages
            assert passage.start <= len(HOST) and passage.end >= len(HOST) + len(version)


def test_whitespace_width_case_and_marks_are_no_difference():
    index = Index(["Ａ君说：“今年的雪，比去年早！”"])
    text = 'a君说:  "今年的雪,\n比去年早。'
    found = index.longest(text)
    assert (found.start, found.end, found.source_start) == (0, len(text), 0)


def test_a_phrase_of_others_is_no_copy():
    text = HOST + PROVERB + HOST[:10]
    index = Index([SOURCE + PROVERB])
    assert copied(index, [text]).passages[0]
    assert not copied(index, [text], Index(["俗话说得好：" + PROVERB])).passages[0]


def test_a_formula_of_many_documents_is_no_copy():
    rng = Random(2)
    others = ["".join(chr(0x5000 + rng.randrange(2000)) for _ in range(80)) for _ in range(9)]
    assert copied(Index([o + PROVERB for o in others[:2]]), [HOST + PROVERB]).passages[0]
    assert not copied(Index([o + PROVERB for o in others]), [HOST + PROVERB]).passages[0]
    long = SOURCE[:80]
    assert copied(Index([o + long for o in others]), [HOST + long]).passages[0]


def test_rows_of_one_character_are_no_copy():
    assert not copied(Index(["哈" * 50 + "…" * 60]), ["哈" * 50 + "…" * 60]).passages[0]


def test_letters_of_an_alphabet_say_less():
    english = "the old clock in the hall had stopped at a quarter past nine and nobody cared to wind it up again until the new tenants came"
    index = Index([english])
    assert not copied(index, ["and then, " + english[:40]]).passages[0]
    assert copied(index, ["and then, " + english]).passages[0]


def test_empty_texts():
    for texts in ([], [""], ["", ""], [" \n"]):
        index = Index(texts)
        assert index.longest(SOURCE) is None and index.passages(SOURCE, 1) == []
        assert copied(index, [SOURCE])[:3] == (0, 0.0, 0.0)
    index = Index([SOURCE])
    assert copied(index, []) == (0, 0.0, 0.0, []) and copied(index, [""]) == (0, 0.0, 0.0, [[]])
    assert index.longest(" ") is None


def test_overlap_counts_ngrams():
    index = Index(["甲乙丙丁戊"])
    assert overlap(index, ["甲乙丙", "子丑寅卯"], n=3) == 1 / 3
    assert overlap(index, ["甲乙"], n=3) == 0.0


def test_a_surrogate_and_a_rare_character_keep_places():
    text = "𠮷野家\ud800" + SOURCE
    found = Index([SOURCE]).longest(text)
    assert (found.start, found.end) == (4, len(text))


def test_extraction_needs_every_character():
    truth = SOURCE[:60]
    assert is_extracted(truth.replace("，", ",\n"), truth)
    assert not is_extracted(truth[:49], truth) and not is_extracted(truth, truth[:40])
    assert not is_extracted("甲" + truth, truth) and is_extracted(truth[:9], truth[:9], chars=8)


def test_the_threshold_leaves_room_for_the_shortest_planted_passage():
    assert COPIED_CHARS < 30
