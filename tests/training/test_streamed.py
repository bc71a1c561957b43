"""Micro-batches of a stream: places as the order by index has them, cursors, and what is refused."""

import pyarrow as pa
import pytest

from raystyle.errors import StorageError
from raystyle.training.checkpoints import read_cursor, write_cursor
from raystyle.training.rows import Order
from raystyle.training.streamed import Streamed, StreamOrder


def batches(tags, rows=2):
    for start in range(0, len(tags), rows):
        part = tags[start : start + rows]
        yield pa.table(
            {
                "input_ids": [[1, 2, 3] for _ in part],
                "segment_lengths": [[2, 1] for _ in part],
                "doc_ids": [["a", "b"] for _ in part],
                "sources": [["a.txt", f"{row}.txt"] for _, row in part],
                "shard": [shard for shard, _ in part],
                "row": [row for _, row in part],
            }
        )


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_places_are_those_of_the_order_by_index(workers):
    for rank in range(workers):
        by_index = Order(1000, 16, 2, rank, workers, 3, seed=0)
        streamed = StreamOrder(16, 2, rank, workers, 3)
        assert streamed.accumulation == by_index.accumulation
        places = [[place for place, _ in by_index.micro_batch(number)] for number in range(len(by_index))]
        assert [streamed.rows_at(streamed.place(number)) for number in range(len(by_index))] == places


def test_a_step_s_cursor_is_behind_its_last_row(tmp_path):
    tags = [(0, row) for row in range(6)] + [(1, row) for row in range(8)]
    stream = Streamed(batches(tags), StreamOrder(4, 2, 0, 1, 3), 0, (0, 0), 2)
    rows = [row for micro_batch in stream for row in micro_batch]
    assert [place for place, _ in rows] == list(range(12))
    assert [stream.cursor_after(step) for step in (1, 2, 3)] == [(0, 4), (1, 2), (1, 6)]
    assert stream.epoch(3) == 0.5
    write_cursor(str(tmp_path), stream.cursor_after(2))
    assert read_cursor(str(tmp_path)) == (1, 2) and read_cursor(None) == (0, 0)


def test_a_stream_that_goes_on_begins_at_its_step_and_nowhere_else():
    order = StreamOrder(4, 2, 0, 1, 3)
    stream = Streamed(batches([(1, row) for row in range(2, 8)]), order, 2, (1, 2), 2)
    assert [place for micro_batch in stream for place, _ in micro_batch] == [8, 9, 10, 11]
    Streamed(batches([(2, row) for row in range(4)]), order, 2, (1, 2), 2)  # the shard had ended at the cursor
    for began in [(1, 3), (1, 0), (0, 2), (2, 5)]:
        with pytest.raises(StorageError, match="the stream began at"):
            Streamed(batches([began, (3, 0), (3, 1), (3, 2)]), order, 2, (1, 2), 2)


def test_isolation_is_proved_on_several_rows_however_small_a_micro_batch_is():
    stream = Streamed(batches([(0, row) for row in range(9)], 1), StreamOrder(4, 1, 0, 1, 2), 0, (0, 0), 1)
    assert stream.rows.spread(4) == [0, 1, 2, 3]
    assert [place for micro_batch in stream for place, _ in micro_batch] == list(range(8))


def test_a_stream_that_ends_early_says_where_to_look():
    stream = Streamed(batches([(0, row) for row in range(7)]), StreamOrder(4, 2, 0, 1, 3), 0, (0, 0), 1)
    with pytest.raises(StorageError, match=r"ended before `max_steps`"):
        list(stream)
    with pytest.raises(StorageError, match="ended before"):
        Streamed(batches([]), StreamOrder(4, 2, 0, 1, 3), 0, (0, 0), 1)


def test_the_rows_seen_last_explain_a_loss():
    stream = Streamed(batches([(0, row) for row in range(200)]), StreamOrder(4, 2, 0, 1, 50), 0, (0, 0), 1)
    list(stream)
    assert stream.rows.spread(4) == [136, 137, 138, 139]
    assert stream.rows[0] is None and stream.rows[199] is not None
    assert stream.rows.sources_by_document() == {"a": "a.txt", "b": "199.txt"}


def test_a_bad_step_is_explained_by_all_of_its_rows_however_many():
    stream = Streamed(batches([(0, row) for row in range(200)]), StreamOrder(100, 2, 0, 1, 2), 0, (0, 0), 1)
    micro_batches = iter(stream)
    for _ in range(50):  # they are all fetched before the step is judged
        next(micro_batches)
    assert all(stream.rows[place] is not None for place in range(100))


def test_where_all_steps_are_done_nothing_is_waited_for():
    def never():
        raise AssertionError("it was asked for rows")
        yield

    stream = Streamed(never(), StreamOrder(4, 2, 0, 1, 3), 3, (1, 2), 2)
    assert list(stream) == [] and stream.epoch(3) == 0
