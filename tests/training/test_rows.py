"""The order of rows, and flat batches: laws that resuming and exact loss stand on."""

import json
import threading
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raystyle import storage
from raystyle.errors import DataError, StorageError
from raystyle.training import rows as rows_module
from raystyle.training.loss import IGNORE
from raystyle.training.rows import Order, Placed, Row, Rows, block_lengths, epoch_rows, flat_batch

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


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of four rows, mixed three at a time."""
    for name, value in {"BLOCK": 4, "BLOCKS_MIXED": 3, "WINDOW": 12, "CACHED_BLOCKS": 6}.items():
        monkeypatch.setattr(rows_module, name, value)
    rows_module._mixed.cache_clear()
    yield
    rows_module._mixed.cache_clear()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(num_rows=st.integers(1, 200), seed=st.integers(0, 9), cut=st.integers(0, 200))
def test_a_shuffle_takes_each_row_once_and_mixes_few_blocks_at_a_time(small_blocks, num_rows, seed, cut):
    whole = epoch_rows(num_rows, seed, 1, 0, num_rows)
    assert sorted(whole) == list(range(num_rows))
    assert epoch_rows(num_rows, seed, 1, 0, cut) + epoch_rows(num_rows, seed, 1, cut, num_rows + 9) == whole
    for start in range(0, num_rows, 12):
        assert len({row // 4 for row in whole[start : start + 12]}) <= 3


def test_blocks_are_shuffled_too_and_otherwise_in_each_epoch_and_by_each_seed(small_blocks):
    found = [epoch_rows(1200, seed, epoch, 0, 12) for seed in (1, 2) for epoch in (0, 1)]
    assert len({tuple(rows) for rows in found}) == 4
    # The first of 100 windows has three of 300 blocks: three neighbours in all four draws would be no shuffle.
    assert all(max(rows) - min(rows) > 12 for rows in found)


def test_a_trillion_tokens_need_no_more_memory_than_a_million():
    order = Order(num_rows := 10**12 // 4096, 128, 8, 0, 1, 4 * num_rows // 128, 42)
    tracemalloc.start()
    try:
        batches = [order.micro_batch(number) for number in (0, len(order) // 2, len(order) - 1)]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2e6
    assert all(0 <= row < num_rows for batch in batches for _, row in batch)


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


@pytest.fixture
def uneven(tiny_prepared, tmp_path):
    """Prepared rows in three shards whose row groups fit no block, and their manifest."""
    manifest = json.loads((tiny_prepared / "manifest.json").read_text())
    table = pa.concat_tables(pq.read_table(tiny_prepared / shard["path"]) for shard in manifest["shards"])
    table = pa.concat_tables([table, table, table])
    shards, start = [], 0
    for number, count in enumerate([1, 30, len(table) - 31]):
        pq.write_table(table.slice(start, count), tmp_path / f"{number}.parquet", row_group_size=7)
        shards.append({"path": f"{number}.parquet", "rows": count})
        start += count
    return tmp_path, {"shards": shards}, table["input_ids"].to_pylist()


def test_blocks_lie_across_shards_and_row_groups(small_blocks, uneven):
    folder, manifest, ids = uneven
    rows = Rows(str(folder), manifest)
    for index in [65, 0, 1, 30, 31, 64, *range(66)]:
        assert rows[index].input_ids.tolist() == ids[index]
    assert len(rows._blocks) <= 6


@pytest.mark.parametrize("workers", [1, 3])
def test_each_block_is_read_once_an_epoch_before_it_is_needed_and_never_by_the_caller(
    small_blocks, uneven, monkeypatch, workers
):
    folder, manifest, _ = uneven
    rows, read, threads = Rows(str(folder), manifest), [], set()
    original = Rows._read

    def counted(self, block):
        read.append(block)
        threads.add(threading.current_thread())
        return original(self, block)

    monkeypatch.setattr(Rows, "_read", counted)
    order = Order(len(rows), 6, 1, 0, workers, 11, 1)
    placed = Placed(rows, order)
    taken = []
    for number, keys in enumerate(order):
        taken += placed.__getitems__(keys)
        if number == 0:
            rows._reader.submit(lambda: None).result()  # what was begun is done
            upcoming = {index // 4 for micro in list(order)[1:4] for _, index in micro if index >= 0}
            assert upcoming <= set(read)
    assert len(read) == len(set(read)) and threading.main_thread() not in threads
    assert all(row is not None for _, row in taken)


def test_what_could_not_be_read_is_tried_again_when_it_is_asked_for_again(uneven, monkeypatch):
    folder, manifest, ids = uneven
    rows, original = Rows(str(folder), manifest), Rows._read

    def fails(self, block):
        raise StorageError("storage does not answer")

    monkeypatch.setattr(Rows, "_read", fails)
    with pytest.raises(StorageError):
        _ = rows[3]
    monkeypatch.setattr(Rows, "_read", original)
    assert rows[3].input_ids.tolist() == ids[3]


def test_rows_are_read_from_object_storage(small_blocks, uneven, bucket):
    folder, manifest, ids = uneven
    storage.upload(str(folder), f"{bucket}/prepared")
    placed = Placed(rows := Rows(f"{bucket}/prepared", manifest), order := Order(len(rows), 6, 2, 0, 1, 11, 1))
    for keys in order:
        for (_, index), (_, row) in zip(keys, placed.__getitems__(keys), strict=True):
            assert row.input_ids.tolist() == ids[index]


def test_a_loader_s_processes_read_for_themselves(small_blocks, uneven):
    """They are forked from one that has begun to read: without its thread, and with its files."""
    prepared, manifest, _ = uneven
    rows = Rows(str(prepared), manifest)
    order = Order(len(rows), 4, 2, 0, 1, 16, seed=1)  # more blocks than are kept
    expected = [rows[row].input_ids.tolist() for micro in order for _, row in micro if row >= 0]
    loader = torch.utils.data.DataLoader(
        Placed(rows, order), batch_sampler=order, collate_fn=list, num_workers=1, timeout=60
    )
    found = [row.input_ids.tolist() for batch in loader for _, row in batch if row is not None]
    assert found == expected


def test_storage_that_fails_is_no_damaged_shard(uneven, monkeypatch):
    """It may answer again: what is raised is worth another attempt."""
    prepared, manifest, _ = uneven

    def fails(uri):
        raise StorageError("cannot reach it")

    monkeypatch.setattr(storage, "open_input", fails)
    with pytest.raises(StorageError, match="cannot reach"):
        Rows(str(prepared), manifest)[0]
