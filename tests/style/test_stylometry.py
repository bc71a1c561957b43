import random
from collections import Counter
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raystyle.errors import DataError
from raystyle.style import stylometry

# Invented sentences: two hands that share words and differ in particles and marks.
PLAIN = [
    "他走到河边坐下了。",
    "天色慢慢暗下来，他还没有回家。",
    "我们说了很久的话。",
    "街上的人都散了，只有灯还亮着。",
    "她笑着摇了摇头。",
]
OLD = [
    "其人至河畔而坐焉。",
    "日既暮矣，犹未归也。",
    "吾与客语甚久。",
    "市中之人皆散，惟灯尚明耳。",
    "女笑而摇首，不复言。",
]
FOREIGN = ["She walked to the river and sat down.", "It was late, but he had not come home."]
OTHER = ["Whereupon the gentleman, being weary, sat himself upon the bank!", "Whither had the hours fled?"]


def text(sentences, seed, chars):
    draw, found = random.Random(seed), ""
    while stylometry.size(found) < chars:
        found += draw.choice(sentences) + draw.choice(["", "", "\n"])
    return found


@pytest.fixture(scope="module")
def texts():
    return {"平": [text(PLAIN, n, 900) for n in range(4)], "古": [text(OLD, n, 900) for n in range(4)]}


@pytest.fixture(scope="module")
def reference(texts):
    return stylometry.fit(texts, chunk_chars=300)


@given(st.text(alphabet="春夏秋冬。！”\n 　a.", max_size=400), st.integers(5, 60))
def test_chunks_are_the_text_again_and_none_is_far_from_its_size(content, chunk_chars):
    found = stylometry.chunks(content, chunk_chars)
    assert "".join(found) == (content if stylometry.size(content) else "")
    sizes = [stylometry.size(chunk) for chunk in found]
    assert all(0.9 * chunk_chars - 1 <= n <= 1.1 * chunk_chars + 1 for n in sizes[:-1])
    assert not sizes or len(sizes) == 1 or 0.4 * chunk_chars <= sizes[-1] <= 1.6 * chunk_chars + 1


def test_chunks_end_with_sentences_and_their_quotation_marks():
    content = "“他来了。”她说了一句话。" * 40
    assert all(chunk.endswith(("。”", "。")) and not chunk.startswith("”") for chunk in stylometry.chunks(content, 50))


def test_authors_are_told_apart_by_every_measure(reference):
    for author, sentences in [("平", PLAIN), ("古", OLD)]:
        unseen = text(sentences, 99, 300)
        for measure in (stylometry.distances, stylometry.burrows, stylometry.cosine):
            found = measure(reference, unseen)
            assert min(found, key=found.get) == author and set(found) == {"平", "古"}
        assert stylometry.attribute(reference, unseen).author == author


def test_words_are_counted_where_there_are_spaces():
    reference = stylometry.fit({"a": [text(FOREIGN, 1, 1200)], "b": [text(OTHER, 1, 1200)]}, chunk_chars=300)
    assert reference.spaced and "river" in reference.counter.ids
    assert stylometry.attribute(reference, text(OTHER, 5, 300)).author == "b"


def test_a_text_is_at_distance_0_from_a_profile_that_is_that_text():
    same = "他走到河边坐下了。" * 40  # 360 characters: chunks of 360 are all alike
    reference = stylometry.fit({"同": [same * 4], "古": [text(OLD, 1, 1500)]}, chunk_chars=360)
    for measure in (stylometry.distances, stylometry.burrows, stylometry.cosine):
        assert measure(reference, same)["同"] == pytest.approx(0, abs=0.01)
        assert measure(reference, same)["古"] > 0.5


def test_order_of_documents_and_whitespace_change_nothing(texts, reference):
    unseen = text(PLAIN, 99, 300)
    turned = stylometry.fit({a: found[::-1] for a, found in reversed(texts.items())}, chunk_chars=300)
    assert stylometry.distances(turned, unseen) == stylometry.distances(reference, unseen)
    assert stylometry.placed(reference, "平", [unseen, texts["古"][0]]) == stylometry.placed(
        turned, "平", [texts["古"][0], unseen]
    )
    spaced = " 　".join(unseen.replace("\n", ""))
    assert stylometry.distances(reference, spaced) == stylometry.distances(reference, unseen)


def test_repeating_a_text_changes_little(reference):
    unseen = text(OLD, 99, 300)
    once, often = (stylometry.cosine(reference, unseen * times)["古"] for times in (1, 5))
    assert once == pytest.approx(often, abs=0.02)


@given(st.lists(st.floats(0, 10), min_size=1), st.floats(0, 10), st.floats(0, 10))
def test_percentiles_rise_from_0_to_100(own, one, other):
    low, high = sorted((one, other))
    assert 0 <= stylometry.percentile(low, own) <= stylometry.percentile(high, own) <= 100
    assert stylometry.percentile(-1, own) == 0 and stylometry.percentile(11, own) == 100


def test_new_text_of_an_author_lies_among_his_own_and_another_hand_beyond(reference):
    own = stylometry.own_distances(reference, "平")
    assert len(own) == len(reference.pieces["平"]) and np.all(own > 0)
    same = stylometry.placed(reference, "平", [text(PLAIN, n, 400) for n in range(50, 60)])
    other = stylometry.placed(reference, "平", [text(OLD, n, 400) for n in range(50, 60)])
    assert same.nearest == "平" and same.percentile < 95
    assert other.nearest == "古" and other.percentile == 100 and other.distance > 2 * same.distance
    assert same.chunk_chars == 300 and same.chunks >= 12


def test_little_text_is_compared_with_chunks_of_its_own_size(reference):
    placed = stylometry.placed(reference, "平", [text(PLAIN, 7, 120)])
    assert placed.chunks == 1 and placed.chunk_chars == 200 and placed.nearest == "平"
    assert len(stylometry.own_distances(reference, "平", 200)) > len(stylometry.own_distances(reference, "平"))
    with pytest.raises(DataError, match="no text"):
        stylometry.placed(reference, "平", [" \n"])


def invented(seed, favoured, chars):
    """Text of its own rare characters as a topic, between an author's favoured common ones: new at every seed."""
    draw = random.Random(seed)
    topic = [chr(draw.randrange(0x4E00, 0x9000)) for _ in range(60)]
    found = ""
    while len(found) < chars:
        found += "".join(draw.choice(favoured if draw.random() < 0.7 else topic) for _ in range(12)) + "。"
    return found


COMMON = {
    "甲": "的了是我不在人有他这" * 2 + "之也",
    "乙": "的了是我不在" + "之也乎者矣焉",
    "丙": "这个那么着过得来去上",
}


@pytest.fixture(scope="module")
def small():
    """An author of 6,000 characters in six works, beside two of 60,000."""
    known = {"甲": [invented(n, COMMON["甲"], 1000) for n in range(6)]}
    known |= {a: [invented(f"{a}{n}", COMMON[a], 1000) for n in range(60)] for a in "乙丙"}
    return known, stylometry.fit(known, chunk_chars=500)


def test_text_that_a_small_author_was_known_by_is_no_nearer_than_his_new_text(small):
    known, reference = small
    repeated = stylometry.placed(reference, "甲", known["甲"])
    new = stylometry.placed(reference, "甲", [invented(f"new{n}", COMMON["甲"], 1000) for n in range(6)])
    never = stylometry.placed(reference, "甲", [invented(f"other{n}", COMMON["乙"], 1000) for n in range(6)])
    assert 15 < repeated.percentile < 65 and 25 < new.percentile < 90
    assert repeated.distance == pytest.approx(new.distance, rel=0.1)
    assert never.percentile > 95 and never.nearest == "乙"


def test_other_authors_stand_where_their_new_text_would(small):
    _, reference = small
    own, others = stylometry.own_distances(reference, "甲"), stylometry.others_distances(reference, "甲")
    assert set(others) == {"乙", "丙"} and len(others["乙"]) == len(reference.pieces["乙"])
    new = stylometry.chunks("\n".join(invented(f"later{n}", COMMON["乙"], 1000) for n in range(9)), 500)
    wanted = stylometry.author_distances(reference, "甲", new).mean()
    assert others["乙"].mean() == pytest.approx(wanted, rel=0.1) and min(others["丙"]) > max(own)


def test_a_reference_is_resized_once_for_all_and_never_to_larger_chunks(reference):
    assert stylometry.resized(reference, 300) is reference is stylometry.resized(reference, 5000)
    shorter = stylometry.resized(reference, 240)
    assert shorter.chunk_chars == 250 and stylometry.resized(reference, 225) is shorter
    assert stylometry.resized(reference, 108).chunk_chars == 200
    long, short = ([text(PLAIN, n, chars)] for n, chars in [(1, 900), (2, 240)])
    assert {stylometry.placed(shorter, "平", texts).chunk_chars for texts in (long, short)} == {250}
    assert stylometry.placed(reference, "平", long).chunk_chars == 300
    assert np.array_equal(stylometry.own_distances(reference, "平", 250), stylometry.own_distances(shorter, "平"))


@given(st.integers(1, 5000), st.integers(200, 4000))
def test_sizes_are_few_and_a_text_is_about_as_long_as_the_chunks_it_is_compared_with(chars, chunk_chars):
    reference = SimpleNamespace(chunk_chars=chunk_chars)
    with patch.object(stylometry, "_at", lambda _, size: SimpleNamespace(chunk_chars=size)):
        found = stylometry.resized(reference, chars).chunk_chars
    assert found == chunk_chars or found in (200, 250, 310, 390, 490, 610, 760, 950, 1190, 1490, 1860, 2330, 2910, 3640)
    assert 0.88 * found <= chars <= 1.15 * found or found == min(200, chunk_chars) or chars >= chunk_chars == found


def test_a_short_text_beside_long_references_costs_a_bounded_number_of_chunks():
    known = {a: [invented(f"{a}{n}", COMMON[a], 20_000) for n in range(10)] for a in "乙丙"}
    reference = stylometry.fit(known)
    placed = stylometry.placed(reference, "乙", [invented("short", COMMON["乙"], 108)])
    assert placed.chunk_chars == 200
    shorter = stylometry.resized(reference, 108)
    assert all(len(found) == stylometry.MAX_RESIZED_CHUNKS for found in shorter.pieces.values())
    assert len(stylometry.own_distances(reference, "乙", 200)) == stylometry.MAX_RESIZED_CHUNKS


def test_the_plane_holds_authors_and_groups(texts, reference):
    points = stylometry.plane(reference, {"样": [text(PLAIN, 9, 700)]})
    assert set(points) == {"平", "古", "样"} and len(points["样"]) == 2
    centers = {name: np.mean(found, axis=0) for name, found in points.items()}
    near, far = (np.linalg.norm(centers["样"] - centers[name]) for name in ("平", "古"))
    assert near < far / 3


def test_too_few_authors_or_too_little_text(texts):
    with pytest.raises(DataError, match="at least two"):
        stylometry.fit({"平": texts["平"]})
    with pytest.raises(DataError, match="6,000 characters or more"):
        stylometry.fit(texts | {"短": ["他来了。"]})


def test_burrows_is_what_a_plain_reading_of_the_paper_gives(texts, reference):
    """Independently: most frequent characters, z-scores over all chunks, mean absolute difference of means."""
    chunks = {author: stylometry.chunks("\n".join(sorted(found)), 300) for author, found in texts.items()}
    everyday = sorted({c for found in texts.values() for t in found for c in t if not c.isspace()})
    assert len(everyday) < 600

    def rates(chunk):
        count = Counter(c for c in chunk if not c.isspace())
        return [count[c] / sum(count.values()) for c in everyday]

    table = {author: np.array([rates(chunk) for chunk in found]) for author, found in chunks.items()}
    every = np.concatenate(list(table.values()))
    unseen = text(PLAIN, 99, 300)
    for author, found in table.items():
        wanted = np.mean(np.abs((np.array(rates(unseen)) - found.mean(0)) / every.std(0)))
        assert stylometry.burrows(reference, unseen)[author] == pytest.approx(wanted, rel=1e-9)


def test_burrows_ranks_as_faststylometry_does():
    """An implementation by others, on words; its scale differs in details (unbiased deviation), its order may not."""
    faststylometry = pytest.importorskip("faststylometry")
    known = {"a": text(FOREIGN + OTHER[:1], 1, 4000), "b": text(OTHER, 2, 4000), "c": text(FOREIGN, 3, 4000)}
    unseen = text(OTHER, 9, 1000)
    train, test = faststylometry.Corpus(), faststylometry.Corpus()
    for author, content in known.items():
        train.add_book(author, author, content)
    test.add_book("?", "?", unseen)
    for corpus in (train, test):
        corpus.tokenise(lambda content: content.lower().split())
    theirs = faststylometry.calculate_burrows_delta(train, test, vocab_size=50).iloc[:, 0].to_dict()
    ours = stylometry.burrows(stylometry.fit({a: [t] for a, t in known.items()}, chunk_chars=1000), unseen)
    assert sorted(ours, key=ours.get)[0] == sorted(theirs, key=theirs.get)[0] == "b"


def test_real_authors_are_told_apart(novels):
    """Chapters that the reference has not seen; `bench/attribution.py` measures it at length."""
    from raystyle.corpus.texts import read_texts

    known, unseen = {}, []
    for author in ("老残游记", "落花生", "浮生六记"):
        documents, _ = read_texts(str(novels / f"{author}.txt"), document_unit="chapter")
        known[author] = [d.text for n, d in enumerate(documents) if n % 3]
        held = stylometry.chunks("\n".join(d.text for d in documents[::3]), 2000)
        unseen += [(author, chunk) for chunk in held if stylometry.size(chunk) > 1500]
    reference = stylometry.fit(known)
    right = [stylometry.attribute(reference, chunk).author == author for author, chunk in unseen]
    assert len(right) >= 40 and np.mean(right) > 0.97
