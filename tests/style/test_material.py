"""What an evaluation compares: gathered, cut to size, kept and read again."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raystyle.errors import DataError
from raystyle.style.material import Document, digest, gather, limited, load, pieces, save

LINES = ["河上的雾还没有散。", "渡船停在对岸，没有人。", "他把书合上，听了一会儿。", "后来下起雨来了。"]


def document(name: str, author: str = "甲", repeat: int = 3) -> Document:
    return Document(author, f"{name}.txt", "\n".join(f"{name}{line}" for line in LINES * repeat))


def material(**changes):
    parts = {
        "train": [document("一"), document("二")],
        "heldout": [document("三")],
        "contrast": [document("四", "乙"), document("五", "丙"), document("六", "乙")],
        "neutral": [document("七", "neutral")],
    }
    return gather("甲", **parts | changes)


def test_material_comes_back_as_it_was_kept(tmp_path):
    kept = material(train=[document("一", repeat=400)], max_train_chars=1000)
    assert kept.left_out > 0
    save(kept, str(tmp_path / "m.parquet"))
    assert load(str(tmp_path / "m.parquet")) == kept
    assert digest(load(str(tmp_path / "m.parquet"))) == digest(kept)


def test_something_else_is_no_material(tmp_path):
    (tmp_path / "m.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(DataError, match="not the material"):
        load(str(tmp_path / "m.parquet"))


def test_the_order_of_documents_and_where_they_lie_do_not_count():
    train = [document(str(i)) for i in range(9)]
    shuffled = random.Random(1).sample(train, 9)
    assert digest(material(train=train)) == digest(material(train=shuffled))
    moved = [d._replace(source=f"elsewhere/{d.source}") for d in train]
    assert digest(material(train=train)) == digest(material(train=moved))


@pytest.mark.parametrize("role", ["train", "heldout", "contrast", "neutral"])
def test_a_changed_character_anywhere_is_another_material(role):
    changed = {role: [document("改", "乙" if role == "contrast" else "甲")]}
    assert digest(material()) != digest(material(**changed))


def test_nothing_by_the_author_is_refused():
    with pytest.raises(DataError, match="no text of 甲"):
        material(train=[Document("甲", "empty.txt", " \n")], heldout=[])


def test_the_author_cannot_be_his_own_contrast():
    with pytest.raises(DataError, match="among the other authors"):
        material(contrast=[document("四", "甲")])


@given(st.lists(st.text(min_size=1, max_size=50), max_size=8), st.integers(1, 200))
def test_limited_keeps_beginnings_and_counts_the_rest(texts, max_chars):
    documents = [Document("甲", str(i), text) for i, text in enumerate(texts)]
    kept, left_out = limited(documents, max_chars)
    whole = {d.source: d.text for d in documents}
    assert all(whole[d.source].startswith(d.text) for d in kept)
    assert sum(len(d.text) for d in kept) + left_out == sum(map(len, texts))
    assert sum(len(d.text) for d in kept) <= max(max_chars, 0) or left_out == 0


@given(st.lists(st.integers(0, 30), min_size=1, max_size=6), st.integers(20, 60), st.integers(1, 2000))
def test_pieces_are_parts_of_their_documents_within_the_limits(repeats, piece_chars, max_chars):
    documents = [document(str(i), repeat=n) for i, n in enumerate(repeats)]
    taken = pieces(documents, piece_chars, max_chars)
    assert sum(len(piece) for _, piece in taken) <= max_chars
    for number, piece in taken:
        assert piece in documents[number].text
        assert 0 < len(piece) <= piece_chars


def test_every_document_is_heard_before_any_is_heard_twice():
    documents = [document(str(i), repeat=50) for i in range(10)]
    taken = pieces(documents, 100, 1000)
    assert {number for number, _ in taken} == set(range(10))


def test_a_long_paragraph_loses_nothing():
    text = "".join(LINES * 30)
    taken = pieces([Document("甲", "long", text)], 50, 10**6)
    assert "".join(piece for _, piece in taken) == text
