import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opencc import OpenCC

from raystyle.corpus import dedup
from raystyle.corpus.dedup import BANDS, SLOTS, Choice, Meetings, Order, Signatures
from raystyle.corpus.encodings import decode

TO_SIMPLIFIED, TO_TRADITIONAL = OpenCC("t2s"), OpenCC("s2t")
HAN = [chr(code) for code in range(0x4E00, 0x5200)]
SENTENCE = "那年冬天他从北平回来，带了两本旧书和一件破棉袍，谁也没有问他去过什么地方。"
texts = st.text(st.sampled_from([*"山水人一二三ABab12，。 \n\u3000１ａ"]) | st.characters(), max_size=40)


def prose(characters: int, seed: int) -> str:
    """Random Han characters, a comma here and there: texts of different seeds share no piece."""
    chooser = random.Random(seed)
    return "".join(chooser.choice(HAN) + ("，" if chooser.random() < 0.1 else "") for _ in range(characters))


def edited(text: str, share: float, seed: int) -> str:
    chooser = random.Random(seed)
    return "".join(chooser.choice(HAN) if char != "，" and chooser.random() < share else char for char in text)


def meetings(signatures: Signatures, least: int = 1) -> list[Meetings]:
    """What a task per band, and one for the digests, would find."""
    units_U = np.flatnonzero(signatures.characters_U >= least)
    values_UB = dedup.bands(signatures.sketches_UP[units_U])
    found = [dedup.shared(units_U, values_UB[:, band]) for band in range(BANDS)]
    digests_U = np.ascontiguousarray(signatures.digests_U16).view(np.uint64)[units_U, 0]
    return [*found, dedup.shared(units_U, digests_U)]


def chosen(documents: Sequence[str], order: Order = "longest", threshold: float = 0.7) -> Choice:
    signatures, _ = dedup.sign(documents)
    return dedup.choose(signatures, meetings(signatures), order, threshold)


def equal(one: Signatures, other: Signatures) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    "edition",
    [
        SENTENCE.replace("，", "\n　　").replace("。", "……"),
        TO_TRADITIONAL.convert(SENTENCE),
        " ".join(SENTENCE),
        f"《{SENTENCE}》\u200b",
    ],
)
def test_editions_have_one_key(edition: str) -> None:
    signatures, _ = dedup.sign([SENTENCE, edition, SENTENCE + "他"])
    digests = [bytes(digest) for digest in signatures.digests_U16]
    assert digests[0] == digests[1] != digests[2]
    assert signatures.characters_U.tolist() == [34, 34, 35]


def test_a_key_knows_no_width_and_no_case() -> None:
    signatures, _ = dedup.sign(["ＡＢＣ１２３：乾淨", "abc 123 干净", "abd 123 干净"])
    digests = [bytes(digest) for digest in signatures.digests_U16]
    assert digests[0] == digests[1] != digests[2]


@given(st.lists(texts, max_size=6), st.integers(1, 50))
def test_a_signature_depends_on_its_text_alone(documents: list[str], batch: int) -> None:
    together, none = dedup.sign(documents)
    assert len(together.characters_U) == len(documents) and not len(none.characters_U)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dedup, "_BATCH", batch)
        patch.setattr(dedup, "_BLOCK", 7)
        assert equal(dedup.sign(documents)[0], together)
    for unit, text in enumerate(documents):
        assert equal(dedup.sign([text])[0], Signatures(*(column[unit : unit + 1] for column in together)))


@given(st.lists(st.lists(texts, min_size=1, max_size=4), max_size=4))
def test_chapters_are_signed_as_texts_of_their_own(books: list[list[str]]) -> None:
    ends = [np.cumsum([len(chapter) for chapter in book]).tolist() for book in books]
    whole, chapters = dedup.sign(["".join(book) for book in books], ends)
    assert equal(whole, dedup.sign(["".join(book) for book in books])[0])
    assert equal(chapters, dedup.sign([chapter for book in books for chapter in book])[0])


@given(st.text(st.characters(), max_size=60))
def test_equal_texts_are_duplicates_whatever_they_hold(text: str) -> None:
    signatures, _ = dedup.sign([text, text])
    choice = dedup.choose(signatures, meetings(signatures))
    assert dedup.estimate(*signatures.sketches_UP) == 1
    assert choice.kept_U.tolist() == ([0, 0] if signatures.characters_U[0] else [0, 1])
    assert choice.similarity_U.tolist() == [1, 1]


def similarity(one: str, other: str) -> float:
    """The true one, piece by piece."""
    keys = [TO_SIMPLIFIED.convert(text.replace("，", "")) for text in (one, other)]
    first, second = ({key[at : at + 5] for at in range(len(key) - 4)} for key in keys)
    return len(first & second) / len(first | second)


@given(st.integers(60, 4000), st.sampled_from([0.0, 0.005, 0.01, 0.02, 0.05]), st.integers(0, 10**6))
@settings(derandomize=True)
def test_the_estimate_is_within_four_standard_errors(characters: int, share: float, seed: int) -> None:
    one = prose(characters, seed)
    other = edited(one, share, seed + 1)[: int(characters * random.Random(seed).uniform(0.6, 1))]
    true = similarity(one, other)
    signatures, _ = dedup.sign([one, other])
    assert abs(dedup.estimate(*signatures.sketches_UP) - true) <= 4 * (true * (1 - true) / SLOTS) ** 0.5 + 1e-9


def test_the_estimate_is_unbiased(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = prose(400, 1), edited(prose(400, 1), 0.03, 2)
    estimates = []
    for seed in range(300):
        monkeypatch.setattr(dedup, "_SEED", seed)
        estimates.append(dedup.estimate(*dedup.sign([one, other])[0].sketches_UP))
    true = similarity(one, other)
    assert abs(np.mean(estimates) - true) < 4 * (true * (1 - true) / SLOTS / 300) ** 0.5


sketches = st.lists(st.lists(st.integers(0, 2), min_size=BANDS, max_size=BANDS), max_size=12).map(
    lambda rows: np.repeat(np.array(rows, np.uint32).reshape(-1, BANDS), SLOTS // BANDS, axis=1)
)


@given(sketches)
def test_band_values_are_equal_where_the_slots_are(sketches_UP: dedup.Sketches) -> None:
    values_UB = dedup.bands(sketches_UP)
    seen: dict[int, tuple[int, ...]] = {}
    for row, values in zip(sketches_UP, values_UB, strict=True):
        for band, value in enumerate(values.tolist()):
            slots = (band, *row[band * 4 : band * 4 + 4].tolist())
            assert seen.setdefault(value, slots) == slots
    assert len(set(seen.values())) == len(seen)


@given(st.lists(st.integers(0, 5)))
def test_shared_values_are_those_of_more_than_one_unit(values: list[int]) -> None:
    found = dedup.shared(np.arange(len(values)) + 100, np.array(values, np.uint64))
    assert found.units_M.tolist() == [100 + unit for unit, value in enumerate(values) if Counter(values)[value] > 1]
    assert found.values_M.tolist() == [value for value in values if Counter(values)[value] > 1]


@given(sketches, st.data(), st.sampled_from(["longest", "first"]), st.sampled_from([0.4, 0.7, 1.0]))
@settings(max_examples=300)
def test_the_choice_is_the_plain_greedy_one(
    sketches_UP: dedup.Sketches, data: st.DataObject, order: Order, threshold: float
) -> None:
    count = len(sketches_UP)
    characters = data.draw(st.lists(st.integers(1, 3), min_size=count, max_size=count))
    digests_U16 = np.zeros((count, 16), np.uint8)
    digests_U16[:, 0] = data.draw(st.lists(st.integers(0, 20), min_size=count, max_size=count))
    # Equal digests are equal texts.
    first = [digests_U16[:, 0].tolist().index(digest) for digest in digests_U16[:, 0]]
    sketches_UP = sketches_UP[first]
    characters_U = np.array(characters, np.int64)[first]
    signatures = Signatures(digests_U16, characters_U, sketches_UP)
    found = meetings(signatures)
    choice = dedup.choose(signatures, data.draw(st.permutations(found)), order, threshold, related=0.3)

    values = dedup.bands(sketches_UP)
    stay: list[int] = []
    expected, related = {}, set()
    for unit in sorted(range(count), key=lambda unit: (-characters_U[unit] if order == "longest" else 0, unit)):
        if first[unit] != unit:
            continue
        near = [
            (float((sketches_UP[r] == sketches_UP[unit]).mean()), r) for r in stay if any(values[r] == values[unit])
        ]
        best = max(near, key=lambda pair: pair[0], default=(0.0, -1))
        if best[0] >= threshold:
            expected[unit] = (best[1], best[0])
        else:
            expected[unit] = (unit, 1.0)
            stay.append(unit)
            related |= {(r, unit) for similarity, r in near if similarity >= 0.3}
    assert list(zip(choice.kept_U, choice.similarity_U, strict=True)) == [expected[f] for f in first]
    assert {tuple(edge) for edge in choice.related_E2.tolist()} == related
    assert all(choice.kept_U[kept] == kept for kept in choice.kept_U)


@given(st.permutations(range(8)), st.sampled_from([0.5, 0.7, 0.9]))
@settings(max_examples=40)
def test_the_longest_stay_wherever_they_stand(places: list[int], threshold: float) -> None:
    base = prose(1200, 5).replace("，", "")
    editions = [edited(base, share, 7)[: len(base) - cut] for cut, share in enumerate([0, 0.01, 0.02, 0.03, 0.05, 0.1])]
    documents = [*editions, prose(900, 8), prose(700, 9)]
    signatures, _ = dedup.sign(documents)
    assert len(set(signatures.characters_U.tolist())) == len(documents)

    def staying(order: Sequence[int]) -> set[int]:
        choice = chosen([documents[unit] for unit in order], threshold=threshold)
        return {order[place] for place, kept in enumerate(choice.kept_U) if place == kept}

    assert staying(places) == staying(range(8)) >= {0, 6, 7}


def test_nothing_is_dropped_for_being_like_something_dropped() -> None:
    # The second is like both others, which are unlike each other.
    base = prose(2600, 3).replace("，", "")
    documents = [base[:2000], base[300:2280], base[485:2445]]
    choice = chosen(documents)
    assert choice.kept_U.tolist() == [0, 0, 2]
    assert choice.similarity_U[1] >= 0.7
    assert choice.related_E2.tolist() == [[0, 2]]


def test_the_order_decides_who_stays() -> None:
    short, long = prose(1000, 4)[:-80], prose(1000, 4)
    assert chosen([short, long]).kept_U.tolist() == [1, 1]
    assert chosen([short, long], order="first").kept_U.tolist() == [0, 0]
    assert chosen([long, short, long]).kept_U.tolist() == [0, 0, 0]


def test_an_exact_copy_shares_the_lot_of_the_first() -> None:
    short, long = edited(prose(1000, 4), 0.02, 1)[:-50], prose(1000, 4)
    choice = chosen([short, short, long])
    assert choice.kept_U.tolist() == [2, 2, 2]
    assert choice.similarity_U[0] == choice.similarity_U[1] < 1


def test_of_equally_similar_ones_the_better_stands_for_a_text() -> None:
    half = SLOTS // 2
    sketches_UP = np.array([[1] * half + [3] * half, [4] * half + [2] * half, [1] * half + [2] * half], np.uint32)
    signatures = Signatures(np.eye(3, 16, dtype=np.uint8), np.array([5, 9, 3]), sketches_UP)
    found = meetings(signatures)
    assert dedup.choose(signatures, found, "longest", 0.5).kept_U.tolist() == [0, 1, 1]
    assert dedup.choose(signatures, found, "first", 0.5).kept_U.tolist() == [0, 1, 0]


def test_without_meetings_only_exact_duplicates_go() -> None:
    signatures, _ = dedup.sign(["天地玄黄", "天地，玄黄！", "天地玄黄宇", "……", "……", ""])
    assert dedup.choose(signatures, []).kept_U.tolist() == [0, 0, 2, 3, 4, 5]


def test_one_band_that_all_share_costs_little_and_drops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    compared, estimate = [], dedup.estimate
    monkeypatch.setattr(dedup, "estimate", lambda one, other: compared.append(len(one)) or estimate(one, other))
    chooser = np.random.default_rng(1)
    sketches_UP = chooser.integers(0, 2**32, (5000, SLOTS), dtype=np.uint32)
    sketches_UP[:, :4] = 7
    digests_U16 = chooser.integers(0, 256, (5000, 16), dtype=np.uint8)
    signatures = Signatures(digests_U16, np.full(5000, 300), sketches_UP)
    found = meetings(signatures)
    assert sum(len(meeting.units_M) for meeting in found) == 5000
    assert dedup.choose(signatures, found).kept_U.tolist() == list(range(5000))
    assert max(compared) == 64


def test_a_novel_in_an_anthology_is_found_by_its_chapters() -> None:
    chapters = [prose(600, seed) for seed in range(5)]
    more = [prose(600, seed) for seed in range(10, 40)]
    anthology = [*more[:15], *(edited(chapter, 0.005, 1) for chapter in chapters), *more[15:]]
    books = [anthology, chapters]
    ends = [np.cumsum([len(chapter) for chapter in book]).tolist() for book in books]
    whole, parts = dedup.sign(["".join(book) for book in books], ends)
    assert dedup.choose(whole, meetings(whole)).kept_U.tolist() == [0, 1]
    kept_U = dedup.choose(parts, meetings(parts, dedup.CHAPTER_CHARACTERS), "first").kept_U
    assert kept_U.tolist() == [*range(35), 15, 16, 17, 18, 19]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12))
def test_clusters_are_what_edges_connect(edges: list[tuple[int, int]]) -> None:
    reach = [{unit} for unit in range(10)]
    for _ in range(10):
        for one, other in edges:
            reach[one] |= reach[other]
            reach[other] |= reach[one]
    labels = dedup.clusters(10, np.array(edges, np.int64).reshape(-1, 2))
    assert labels.tolist() == [min(found) for found in reach]


def test_similar_texts_meet_as_the_table_says() -> None:
    said = [line for line in str(dedup.__doc__).splitlines() if "they meet" in line][-1].split()[2:8]
    for similarity, value in zip([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], said, strict=True):
        assert float(value) == pytest.approx(1 - (1 - similarity**4) ** BANDS, abs=0.004)
    assert 1 - (1 - 0.8**4) ** BANDS > 0.99


def test_editions_of_real_novels_become_one_and_novels_stay_apart(novels: Path) -> None:
    originals = [decode(path.read_bytes()).text for path in sorted(novels.glob("*.txt"))][:6]
    documents = list(originals)
    for text in originals:
        noisy = "".join(
            f"{line}\n{'本站地址请记住' if at % 50 == 0 else ''}\n" for at, line in enumerate(text.split("\n"))
        )
        documents += [TO_TRADITIONAL.convert(text), noisy, edited(text, 0.01, 1), text[: len(text) * 9 // 10]]
    kept_U = chosen(documents, order="first").kept_U
    assert kept_U.tolist() == [*range(6), *(novel for novel in range(6) for _ in range(4))]
