import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from raystyle.corpus.pack import Tokens, document, pack

PAD = -1
lengths = st.lists(st.integers(0, 70), max_size=12)
limits = st.integers(1, 16).flatmap(lambda segment: st.tuples(st.integers(segment, 40), st.just(segment)))


def parts_of(sizes: list[int]) -> list[Tokens]:
    """Documents of one token per character, ids counting up through all of them."""
    starts = np.cumsum([0, *sizes])
    return [
        Tokens(f"d{i}", np.arange(starts[i], starts[i] + size, dtype=np.int32), np.arange(size, dtype=np.int64), size)
        for i, size in enumerate(sizes)
    ]


@given(lengths, limits)
def test_every_token_is_there_once_in_order(sizes: list[int], limit: tuple[int, int]) -> None:
    row_length, segment_length = limit
    rows = pack(parts_of(sizes), row_length, segment_length, PAD)
    flat = rows.input_ids_NT.reshape(-1)
    assert flat[: sum(sizes)].tolist() == list(range(sum(sizes)))
    assert (flat[sum(sizes) :] == PAD).all() and len(flat) - sum(sizes) < row_length
    assert rows.tokens == sum(sizes) and rows.input_ids_NT.dtype == np.int32
    assert len(rows.input_ids_NT) == len(rows.segment_lengths) == len(rows.pieces)


@given(lengths, limits)
def test_segments_stay_inside_documents_and_fill_rows(sizes: list[int], limit: tuple[int, int]) -> None:
    row_length, segment_length = limit
    rows = pack(parts_of(sizes), row_length, segment_length, PAD)
    assert all(0 < length <= segment_length for row in rows.segment_lengths for length in row)
    assert all(sum(row) == row_length for row in rows.segment_lengths[:-1])
    assert [len(row) for row in rows.segment_lengths] == [len(row) for row in rows.pieces]
    starts = np.cumsum([0, *sizes])
    place = 0
    for lengths_, pieces in zip(rows.segment_lengths, rows.pieces, strict=True):
        for length, piece in zip(lengths_, pieces, strict=True):
            assert piece.char_end - piece.char_start == length
            assert starts[int(piece.doc_id[1:])] + piece.char_start == place
            place += length


@given(lengths, limits)
def test_pieces_tile_documents(sizes: list[int], limit: tuple[int, int]) -> None:
    pieces = [piece for row in pack(parts_of(sizes), *limit, PAD).pieces for piece in row]
    for i, size in enumerate(sizes):
        own = [piece for piece in pieces if piece.doc_id == f"d{i}"]
        assert [0, *(p.char_end for p in own)] == [*(p.char_start for p in own), size]


def test_a_segment_is_cut_at_the_end_of_a_row_and_goes_on() -> None:
    rows = pack(parts_of([10, 3]), 8, 5, PAD)
    assert rows.segment_lengths == [[5, 3], [2, 3]]
    assert rows.input_ids_NT.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7], [8, 9, 10, 11, 12, PAD, PAD, PAD]]


def test_a_document_has_its_prefix_and_end() -> None:
    tokens = document("d", np.array([5, 6], np.int32), np.array([0, 3], np.int64), 7, [1], 2)
    assert tokens.ids.tolist() == [1, 5, 6, 2] and tokens.offsets.tolist() == [0, 0, 3, 7]
    rows = pack([tokens], 4, 2, PAD)
    assert [(p.char_start, p.char_end) for p in rows.pieces[0]] == [(0, 3), (3, 7)]


def test_forty_five_thousand_segments_make_11250_rows() -> None:
    ids, offsets = np.zeros(1024, np.int32), np.arange(1024, dtype=np.int64)
    records = (Tokens("one", ids, offsets + 1024 * i, 1024 * (i + 1)) for i in range(45_000))
    rows = pack(records, 4096, 1024, PAD)
    assert rows.input_ids_NT.shape == (11_250, 4096)
    assert set(map(tuple, rows.segment_lengths)) == {(1024,) * 4}


def test_the_digest_is_of_the_content() -> None:
    one, other = pack(parts_of([10, 3]), 8, 5, PAD), pack(parts_of([10, 3]), 8, 5, PAD)
    assert one.digest() == other.digest()
    assert one.digest() != pack(parts_of([9, 4]), 8, 5, PAD).digest()
