from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prose import PROSE

from raystyle.corpus import parts
from raystyle.corpus.pack import Part, Rows, best_fit, pack
from raystyle.tokens import SENTENCE_END, encode, stream

PAD = -1
lengths = st.lists(st.integers(0, 70), max_size=12)
limits = st.integers(1, 16).flatmap(lambda segment: st.tuples(st.integers(segment, 40), st.just(segment)))
modes = st.sampled_from(["concat", "best_fit"])
tolerances = st.sampled_from([0, 0.1, 0.5, 0.9])
texts = st.lists(st.sampled_from([*PROSE, "\n", "\n\n\n", "他说：“走！”", "好……」", "𠮷", "x", "。"]), max_size=40).map(
    "".join
)


def parts_of(sizes: list[int], batch: int = 1000) -> list[Part]:
    """Documents of one token per character and no boundary, ids counting up through all of them."""
    starts = np.cumsum([0, *sizes])
    return [
        Part(f"d{i}", "天" * size, list(batches(np.arange(starts[i], starts[i] + size, dtype=np.int32), batch)))
        for i, size in enumerate(sizes)
    ]


def batches(ids: Any, size: int) -> Iterator[tuple[Any, Any]]:
    for start in range(0, len(ids), size):
        yield ids[start : start + size], np.arange(start, min(start + size, len(ids)), dtype=np.int64)


def letters(text: str, batch: int = 50) -> Part:
    """A document of one token per character: its code."""
    return Part("d", text, list(batches(np.array(list(map(ord, text)), np.int32), batch)))


def packed(content: Iterable[Part], limit: tuple[int, int], mode: Any = "concat", tolerance: float = 0.1) -> Rows:
    return pack(
        content,
        max_seq_length=limit[0],
        segment_length=limit[1],
        pad_id=PAD,
        mode=mode,
        boundary_tolerance=tolerance,
    )


def segments(rows: Rows) -> Iterator[tuple[Any, list[int]]]:
    """Each segment's piece and ids, by row; what no segment covers is padding."""
    for ids, lengths_, pieces in zip(rows.input_ids_NT.tolist(), rows.segment_lengths, rows.pieces, strict=True):
        place = 0
        for length, piece in zip(lengths_, pieces, strict=True):
            yield piece, ids[place : place + length]
            place += length
        assert set(ids[place:]) <= {PAD}


@given(lengths, limits, modes, tolerances)
def test_every_token_is_there_once_in_its_document_s_order(
    sizes: list[int], limit: tuple[int, int], mode: str, tolerance: float
) -> None:
    rows = packed(parts_of(sizes), limit, mode, tolerance)
    starts = np.cumsum([0, *sizes])
    found: dict[str, list[tuple[int, int, list[int]]]] = {f"d{i}": [] for i in range(len(sizes))}
    for piece, ids in segments(rows):
        assert 0 < len(ids) <= limit[1]
        found[piece.doc_id].append((piece.char_start, piece.char_end, ids))
    for i, size in enumerate(sizes):
        own = sorted(found[f"d{i}"])
        assert mode == "best_fit" or own == found[f"d{i}"]
        assert [token for _, _, ids in own for token in ids] == list(range(starts[i], starts[i] + size))
        assert [0, *(end for _, end, _ in own)] == [*(start for start, _, _ in own), size]
        assert all(end - start == len(ids) for start, end, ids in own)
    assert rows.tokens == sum(sizes) == rows.input_ids_NT.size - rows.padding
    assert rows.input_ids_NT.dtype == np.int32 and rows.input_ids_NT.shape[1] == limit[0]


@given(lengths, limits, tolerances)
def test_concat_keeps_order_and_fills_all_rows_but_the_last(
    sizes: list[int], limit: tuple[int, int], tolerance: float
) -> None:
    rows = packed(parts_of(sizes), limit, "concat", tolerance)
    flat = rows.input_ids_NT.reshape(-1)
    assert flat[: sum(sizes)].tolist() == list(range(sum(sizes)))
    assert (flat[sum(sizes) :] == PAD).all() and rows.padding < limit[0]
    assert all(sum(row) == limit[0] for row in rows.segment_lengths[:-1])


@given(lengths, limits, tolerances)
def test_best_fit_keeps_documents_of_a_row_whole(sizes: list[int], limit: tuple[int, int], tolerance: float) -> None:
    rows = packed(parts_of(sizes), limit, "best_fit", tolerance)
    places = [{piece.doc_id for piece in row} for row in rows.pieces]
    for i, size in enumerate(sizes):
        rows_of = sum(f"d{i}" in place for place in places)
        assert rows_of == bool(size) if size <= limit[0] else rows_of >= size / limit[0]
    # No two rows would fit into one.
    fill = sorted(map(sum, rows.segment_lengths))
    assert len(fill) < 2 or fill[0] + fill[1] > limit[0]


@given(st.lists(st.integers(1, 50), max_size=60))
def test_best_fit_takes_the_fullest_row_with_room(sizes: list[int]) -> None:
    rooms: list[int] = []
    expected = [0] * len(sizes)
    for chunk in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        row = min((i for i in range(len(rooms)) if rooms[i] >= sizes[chunk]), key=lambda i: (rooms[i], i), default=-1)
        if row < 0:
            row = len(rooms)
            rooms.append(50)
        rooms[row] -= sizes[chunk]
        expected[chunk] = row
    found = best_fit(sizes, 50).tolist()
    numbers = {row: i for i, row in enumerate(dict.fromkeys(expected))}
    assert found == [numbers[row] for row in expected]


@given(texts, limits, tolerances)
def test_a_segment_ends_early_only_on_the_best_boundary_within_the_tolerance(
    text: str, limit: tuple[int, int], tolerance: float
) -> None:
    rows = packed([letters(text)], limit, "concat", tolerance)
    for row in rows.pieces:
        for piece in row[:-1]:
            assert piece.char_end == best_end(text, piece.char_start, limit[1], tolerance)


@given(texts, limits, tolerances)
def test_a_chunk_of_best_fit_ends_so_too(text: str, limit: tuple[int, int], tolerance: float) -> None:
    ends = {piece.char_end for row in packed([letters(text)], limit, "best_fit", tolerance).pieces for piece in row}
    place = 0
    while len(text) - place > limit[0]:
        place = best_end(text, place, limit[0], tolerance)
        assert place in ends


def best_end(text: str, place: int, limit: int, tolerance: float) -> int:
    """Where to end what starts at `place`, in a text of one token per character that goes on beyond `limit` of them."""
    window = range(place + max(1, limit - int(limit * tolerance)), place + limit + 1)
    paragraphs = {i for i in range(1, len(text)) if text[i - 1] == "\n" != text[i]}
    sentences = {match.end() for match in SENTENCE_END.finditer(text)} - {len(text)}
    found = [max(kind & set(window), default=0) for kind in (paragraphs, sentences)]
    return next(filter(None, found), window[-1]) if len(window) > 1 else window[-1]


def test_boundaries_are_a_paragraph_else_a_sentence_else_the_limit() -> None:
    text = "一二三四五六七。”九\n二三四五六！？」九十一二三四五六七八九十末"
    rows = packed([letters(text)], (60, 11), tolerance=0.5)
    assert [text[p.char_start : p.char_end] for p in rows.pieces[0]] == [
        "一二三四五六七。”九\n",
        "二三四五六！？」",
        "九十一二三四五六七八九",
        "十末",
    ]
    assert set(map(len, (ids for _, ids in segments(packed([letters(text)], (60, 11), tolerance=0))))) == {11, 10}


def test_marks_and_line_breaks_are_not_torn_apart() -> None:
    # The limit falls between a sentence's marks, and inside a run of line breaks.
    assert packed([letters("一二三。五六七。”十一")], (60, 8), tolerance=0.9).segment_lengths == [[4, 7]]
    assert packed([letters("一\n三四五六七\n\n十一")], (60, 8), tolerance=0.9).segment_lengths == [[2, 7, 2]]


def test_a_boundary_inside_a_token_is_none() -> None:
    # The token that starts at character 4 ends in the next sentence.
    offsets = np.array([0, 1, 2, 3, 4, 6, 7], np.int64)
    part = Part("d", "一二。四。他七八", [(np.arange(7, dtype=np.int32), offsets)])
    rows = packed([part], (60, 5), tolerance=0.5)
    assert rows.segment_lengths == [[3, 4]]
    assert [(p.char_start, p.char_end) for p in rows.pieces[0]] == [(0, 3), (3, 8)]


def test_tokens_of_one_character_are_not_parted_by_a_boundary() -> None:
    # Characters 2 and 3 are two tokens each; a boundary in front of 2 is in front of both.
    offsets = np.array([0, 1, 2, 2, 3, 3, 4, 5], np.int64)
    rows = packed([Part("d", "一。二三四五", [(np.arange(8, dtype=np.int32), offsets)])], (60, 5), tolerance=0.4)
    assert rows.segment_lengths == [[5, 3]]
    rows = packed([Part("d", "一。二三四五", [(np.arange(8, dtype=np.int32), offsets)])], (60, 5), tolerance=0.6)
    assert rows.segment_lengths == [[2, 5, 1]]


def test_a_row_s_end_cuts_a_segment_and_the_next_row_starts_a_new_one() -> None:
    rows = packed(parts_of([14, 3]), (8, 5))
    assert rows.segment_lengths == [[5, 3], [5, 1, 2], [1]]
    assert rows.input_ids_NT.tolist()[2] == [16] + [PAD] * 7


def test_a_document_has_its_prefix_and_end_and_a_record_its_place() -> None:
    tokens = np.array([5, 6], np.int32), np.array([0, 3], np.int64)
    rows = packed([Part("d", "天" * 7, [tokens], [1], [2], char_start=100)], (4, 2))
    assert rows.input_ids_NT.tolist() == [[1, 5, 6, 2]]
    assert rows.pieces == [[("d", 100, 103), ("d", 103, 107)]]


def test_an_end_of_text_id_is_not_left_alone_by_a_boundary() -> None:
    part = letters("一二。四五六七八九。")._replace(suffix=[7])
    assert packed([part], (60, 10), tolerance=0.9).segment_lengths == [[3, 8]]


def test_no_documents_are_no_rows() -> None:
    for mode in ("concat", "best_fit"):
        rows = packed([Part("d", "", [])], (8, 5), mode)
        assert rows.input_ids_NT.shape == (0, 8) and rows.pieces == rows.segment_lengths == []
        assert len(parts.rows_table(rows, 0)) == 0


@pytest.mark.parametrize("mode", ["concat", "best_fit"])
def test_forty_five_thousand_segments_make_11250_rows(mode: str) -> None:
    tokens, text = (np.zeros(1024, np.int32), np.arange(1024, dtype=np.int64)), "天" * 1024
    records = (Part("one", text, [tokens], char_start=1024 * i) for i in range(45_000))
    rows = packed(records, (4096, 1024), mode, tolerance=0)
    assert rows.input_ids_NT.shape == (11_250, 4096)
    assert set(map(tuple, rows.segment_lengths)) == {(1024,) * 4}
    assert rows.char_starts_S.tolist() == list(range(0, 45_000 * 1024, 1024))


@given(st.lists(texts, max_size=4), limits, modes, st.integers(1, 9))
def test_rows_do_not_depend_on_batches(documents: list[str], limit: tuple[int, int], mode: str, batch: int) -> None:
    one, other = (packed([letters(text, size) for text in documents], limit, mode) for size in (1000, batch))
    assert one.digest() == other.digest()


@given(st.lists(texts, max_size=6), limits, modes)
def test_real_tokens_give_their_documents_back(
    tokenizer: Any, documents: list[str], limit: tuple[int, int], mode: str
) -> None:
    content = [Part(f"d{i}", text, stream(tokenizer, text), (), (1,)) for i, text in enumerate(documents)]
    found: dict[str, list[tuple[int, int, list[int]]]] = {}
    for piece, ids in segments(packed(content, limit, mode)):
        found.setdefault(piece.doc_id, []).append((piece.char_start, piece.char_end, ids))
    for i, text in enumerate(documents):
        # In best_fit a character of many tokens may stand in pieces of no characters, whose order is not to be seen.
        own = found[f"d{i}"] if mode == "concat" else sorted(found[f"d{i}"], key=lambda piece: piece[:2])
        ids = [token for _, _, ids in own for token in ids]
        if mode == "concat":
            assert ids == [*encode(tokenizer, text)[0].tolist(), 1]
            assert tokenizer.decode(ids[:-1]) == text
        assert sorted(ids) == sorted([*encode(tokenizer, text)[0].tolist(), 1])
        assert [0, *(end for _, end, _ in own)] == [*(start for start, _, _ in own), len(text)]


def test_the_digest_is_of_the_content() -> None:
    one = packed(parts_of([10, 3]), (8, 5))
    assert one.digest() == packed(parts_of([10, 3]), (8, 5)).digest()
    assert one.digest() != packed(parts_of([9, 4]), (8, 5)).digest()
    assert one.digest() != packed((p._replace(doc_id=p.doc_id + "x") for p in parts_of([10, 3])), (8, 5)).digest()
    assert one.digest() != packed((p._replace(char_start=1) for p in parts_of([10, 3])), (8, 5)).digest()


@given(lengths, limits, modes)
def test_a_table_says_what_rows_are(sizes: list[int], limit: tuple[int, int], mode: str) -> None:
    rows = packed(parts_of(sizes), limit, mode)
    content = parts.rows_table(rows, 7)
    assert content.schema == parts.rows_schema(limit[0])
    content.validate(full=True)
    assert content["row"].to_pylist() == list(range(7, 7 + len(rows.input_ids_NT)))
    assert content["input_ids"].to_pylist() == rows.input_ids_NT.tolist()
    assert content["segment_lengths"].to_pylist() == rows.segment_lengths
    assert content["pieces"].to_pylist() == [[piece._asdict() for piece in row] for row in rows.pieces]
    assert content.schema.field("pieces").type.value_type.field("doc_id").type == pa.string()
