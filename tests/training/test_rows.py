"""The order of rows, and flat batches: laws that resuming and exact loss stand on."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raystyle.errors import DataError
from raystyle.training.loss import IGNORE
from raystyle.training.rows import Order, Row, Rows, block_lengths, epoch_order, flat_batch

# Rows of a micro-batch, micro-batches of a step, workers: any number of them.
shapes = st.tuples(st.integers(1, 4), st.integers(1, 8), st.integers(1, 6))


def orders(num_rows, batch, micro_batches, workers, steps=5, seed=1):
    return [Order(num_rows, batch * micro_batches, batch, rank, workers, steps, seed) for rank in range(workers)]


@given(num_rows=st.integers(1, 60), shape=shapes, seed=st.integers(0, 9))
def test_a_step_takes_the_same_micro_batches_however_they_are_shared(num_rows, shape, seed):
    batch, micro_batches, workers = shape
    [alone] = orders(num_rows, batch, micro_batches, 1, seed=seed)
    shared = orders(num_rows, batch, micro_batches, workers, seed=seed)
    taken = [list(order) for order in shared]
    assert [len(order) for order in shared] == [len(micros) for micros in taken]

    def rows_of(micros):
        """What is not empty, with its places: what seeds dropout, and what is trained on."""
        return sorted(micro for micro in micros if any(row >= 0 for _, row in micro))

    expected = list(alone)
    for step in range(5):
        each = shared[0].accumulation
        micros = [micro for worker in taken for micro in worker[step * each : (step + 1) * each]]
        assert rows_of(micros) == rows_of(expected[step * micro_batches : (step + 1) * micro_batches])
        assert len(micros) < micro_batches + workers  # no worker does a pass for nothing


@given(num_rows=st.integers(1, 60), shape=shapes)
def test_an_epoch_takes_each_row_once(num_rows, shape):
    batch, micro_batches, workers = shape
    steps = -(-num_rows // (batch * micro_batches))
    taken = [row for order in orders(num_rows, batch, micro_batches, workers, steps) for m in order for _, row in m]
    assert sorted(row for row in taken if row >= 0) == list(range(num_rows))


def test_epochs_differ_and_seeds_differ():
    orders_ = [epoch_order(50, seed, epoch).tolist() for seed in (1, 2) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders_}) == 4


rows = st.lists(st.tuples(st.integers(1, 9), st.sampled_from("abc")), min_size=1, max_size=6).map(
    lambda segments: Row(
        np.arange(1, 1 + sum(n for n, _ in segments), dtype=np.int32),
        tuple(n for n, _ in segments),
        tuple(d for _, d in segments),
    )
)


@given(st.lists(rows, min_size=1, max_size=4), st.sampled_from(["document", "segment", "none"]))
def test_a_flat_batch_keeps_every_token_and_masks_the_first_of_each_block_and_document(batch, isolation):
    flat = flat_batch([(i, row) for i, row in enumerate(batch)], isolation, "sdpa")
    ids, labels = flat["input_ids"][0].tolist(), flat["labels"][0].tolist()
    assert ids == [i for row in batch for i in row.input_ids.tolist()]
    blocks = [n for row in batch for n in block_lengths(row, isolation)]
    assert flat["block_lengths"] == tuple(blocks)
    documents = [n for row in batch for n in block_lengths(row, "document")]
    starts = {sum(lengths[:i]) for lengths in (blocks, documents) for i in range(len(lengths))}
    assert {i for i, label in enumerate(labels) if label == IGNORE} == starts
    assert all(label in (IGNORE, ids[i]) for i, label in enumerate(labels))
    assert flat["position_ids"][0].tolist() == [i for n in blocks for i in range(n)]


def test_isolation_of_documents_joins_their_segments():
    row = Row(np.arange(10, dtype=np.int32), (4, 3, 3), ("a", "a", "b"))
    assert block_lengths(row, "document") == [7, 3]
    assert block_lengths(row, "segment") == [4, 3, 3]
    assert block_lengths(row, "none") == [10]


def test_a_micro_batch_without_rows_trains_nothing():
    flat = flat_batch([(6, None), (7, None)], "document", "sdpa")
    assert (flat["labels"] == IGNORE).all()
    assert flat["input_ids"].shape == (1, 2)
    assert flat["place"] == 6


def test_rows_are_read_by_index_across_shards_and_row_groups(tiny_prepared):
    import json

    import pyarrow.parquet as pq

    manifest = json.loads((tiny_prepared / "manifest.json").read_text())
    dataset = Rows(str(tiny_prepared), manifest)
    stored = [r for s in manifest["shards"] for r in pq.read_table(tiny_prepared / s["path"]).to_pylist()]
    assert len(dataset) == len(stored) == 22
    for index in [21, 0, 10, 11, 5]:
        row = dataset[index]
        assert row.input_ids.tolist() == stored[index]["input_ids"][: sum(stored[index]["segment_lengths"])]
        assert row.doc_ids == tuple(piece["doc_id"] for piece in stored[index]["pieces"])
    assert dataset[-1] is None


def test_a_damaged_shard_is_named(tiny_prepared, tmp_path):
    manifest = {"shards": [{"path": "rows/part-00000.parquet", "rows": 1}]}
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows/part-00000.parquet").write_bytes(b"not parquet")
    with pytest.raises(DataError, match=r"part-00000\.parquet"):
        Rows(str(tmp_path), manifest)[0]
