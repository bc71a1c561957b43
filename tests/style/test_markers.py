"""Markers: the statistic, what is spread and what is not, and rates and places of terms in texts."""

import itertools
import math
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raystyle.demo.voices import MARKERS, neutral_documents, storyteller_documents
from raystyle.style.markers import PRIOR, Marker, find_markers, log_odds, marker_counts, marker_rate, marker_spans


def marker(term):
    return Marker(term, "keyword", 9.0, 1.0, 0.0, 1.0)


@pytest.fixture(scope="module")
def voices():
    return storyteller_documents(1, 80), neutral_documents(1, 80)


@pytest.fixture(scope="module")
def found(voices):
    return find_markers(voices[0][:60], voices[1][:60])


@given(st.integers(0, 500), st.integers(0, 500))
def test_log_odds_are_those_of_monroe_colaresi_and_quinn(y, x):
    if y + x == 0:
        return
    n, m = 20_000, 35_000
    a = PRIOR * (y + x) / (n + m)
    theirs = math.log((x + a) / (m + PRIOR - x - a))
    delta = math.log((y + a) / (n + PRIOR - y - a)) - theirs
    expected = delta / math.sqrt(1 / (y + a) + 1 / (x + a))
    assert log_odds(np.array([float(y)]), n, np.array([float(x)]), m)[0] == pytest.approx(expected, abs=1e-9)


@given(st.integers(1, 300), st.integers(1, 300))
def test_log_odds_change_sign_with_the_sides(y, x):
    one = log_odds(np.array([float(y)]), 9000, np.array([float(x)]), 7000)
    two = log_odds(np.array([float(x)]), 7000, np.array([float(y)]), 9000)
    assert one[0] == pytest.approx(-two[0], abs=1e-9)
    assert log_odds(np.array([float(y)]), 9000, np.array([float(y)]), 9000)[0] == 0


def test_the_storyteller_is_told_by_his_formulas(found):
    terms = " ".join(one.term for one in found)
    assert sum(term in terms for term in MARKERS) >= 6
    assert all(one.author_rate > 2 * one.reference_rate and one.z > 3 for one in found)
    assert [one.z for one in found] == sorted((one.z for one in found), reverse=True)


def test_held_out_chapters_have_more_of_them_than_the_narrator(voices, found):
    told, plain = ([marker_rate([text], found) for text in texts[60:]] for texts in voices)
    assert min(told) > max(plain)


def test_order_of_documents_does_not_matter(voices, found):
    shuffled = [Random(3).sample(texts[:60], 60) for texts in voices]
    assert find_markers(*shuffled) == found


def test_rates_are_those_of_plain_counting(voices, found):
    text = "".join("\n".join(voices[0][:60]).split())
    for one in found[:20]:
        spaced = 1000 * text.count(one.term) / len(text)
        assert one.author_rate == pytest.approx(spaced, rel=0.1)


def test_the_same_texts_have_no_markers(voices):
    assert find_markers(voices[0], voices[0]) == []
    assert find_markers([], voices[1]) == find_markers(voices[0], []) == find_markers([""], [" "]) == []


def test_a_name_in_one_document_is_no_marker(voices):
    told, plain = voices[0][:60], voices[1][:60]
    named = [text.replace("。", "，慕容桂枝。") if number == 7 else text for number, text in enumerate(told)]
    assert not any("慕容" in one.term for one in find_markers(named, plain))
    spread = [text.replace("。", "，慕容桂枝。", 2) for text in told]
    assert any("慕容桂枝" in one.term for one in find_markers(spread, plain))


def test_words_and_phrases_of_a_spaced_language():
    rng = Random(5)
    words = ["river", "stone", "garden", "letter", "winter", "market", "window", "teacher", "coat", "bridge"]
    plain = [" ".join(rng.choice(words) for _ in range(200)) + "." for _ in range(12)]
    own = [" ".join(w + (" as it were" if rng.random() < 0.1 else "") for w in text.split()) for text in plain]
    found = find_markers(own, plain)
    assert "as it were" in [one.term for one in found if one.kind == "phrase"]
    assert marker_spans("As it were, was it?", [marker("as it were")]) == [(0, 10)]
    assert marker_spans("it was awash", [marker("was")]) == [(3, 6)]


@given(
    st.text(alphabet="甲乙丙，\n", max_size=60), st.sets(st.text(alphabet="甲乙丙", min_size=1, max_size=3), max_size=4)
)
def test_spans_do_not_overlap_and_agree_with_counts_and_rate(text, terms):
    markers = [marker(term) for term in sorted(terms)]
    spans = marker_spans(text, markers)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
    assert all(text[start:end] in terms for start, end in spans)
    counts = marker_counts([text], markers)
    assert sum(counts.values()) == len(spans)
    solid = len("".join(text.split()))
    assert marker_rate([text], markers) == (pytest.approx(1000 * len(spans) / solid) if solid else 0.0)


def test_the_longest_term_is_taken_and_letters_without_lower_case_keep_places():
    assert marker_spans("且听下回分解", [marker("下回"), marker("且听下回分解")]) == [(0, 6)]
    assert marker_spans("İİ却说", [marker("却说")]) == [(2, 4)]
    assert marker_rate([], [marker("却说")]) == 0.0 and marker_rate(["却说"], []) == 0.0
