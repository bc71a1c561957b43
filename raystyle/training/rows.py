"""Prepared rows in storage -> a dataset read by index, one seeded order, and flat batches.

The order decides everything about resuming: step s of an epoch takes rows [s*G, (s+1)*G) of one permutation, G the
global batch, so neither the number of workers nor the per-device batch changes which rows a step sees. The last step
of an epoch takes the rows that are left.

N rows, G rows of a step, B rows of a micro-batch, T tokens of a flat batch.
"""

import bisect
import collections
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from raystyle import storage
from raystyle.errors import DataError
from raystyle.training.attention import boundaries, flat_positions
from raystyle.training.loss import IGNORE

CACHED_ROW_GROUPS = 32


@dataclasses.dataclass(frozen=True)
class Row:
    """One row without its padding: token ids, and its segments' lengths and documents."""

    input_ids: np.ndarray[Any, np.dtype[np.int32]]
    segment_lengths: tuple[int, ...]
    doc_ids: tuple[str, ...]


class Rows(torch.utils.data.Dataset[Row | None]):
    """The rows of a prepared directory, by index. A micro-batch is asked for by `Rows[index]` for each of its rows.

    Index -1 is no row: it fills the last step of an epoch. Row groups are read when needed, the newest are kept.
    """

    def __init__(self, prepared_dir: str, manifest: dict[str, Any]) -> None:
        self.prepared_dir = prepared_dir
        self.shards = [storage.join(prepared_dir, shard["path"]) for shard in manifest["shards"]]
        self.starts = np.cumsum([0, *(shard["rows"] for shard in manifest["shards"])]).tolist()
        self._files: dict[int, pq.ParquetFile] = {}
        self._groups: collections.OrderedDict[tuple[int, int], list[Row]] = collections.OrderedDict()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: int) -> Row | None:
        if index < 0:
            return None
        shard = bisect.bisect_right(self.starts, index) - 1
        file = self._file(shard)
        offset = index - self.starts[shard]
        group = 0
        while offset >= (count := file.metadata.row_group(group).num_rows):
            group, offset = group + 1, offset - count
        return self._group(shard, group)[offset]

    def _file(self, shard: int) -> pq.ParquetFile:
        if shard not in self._files:
            try:
                self._files[shard] = pq.ParquetFile(storage.open_input(self.shards[shard]))
            except (OSError, ValueError) as error:
                raise DataError(
                    f"cannot read the prepared rows `{self.shards[shard]}`: {error}\nhint: delete the directory, prepare again"
                ) from error
        return self._files[shard]

    def _group(self, shard: int, group: int) -> list[Row]:
        key = (shard, group)
        if key not in self._groups:
            table = self._file(shard).read_row_group(group, columns=["input_ids", "segment_lengths", "pieces"])
            rows = []
            ids_NT = np.asarray(table["input_ids"].combine_chunks().flatten()).reshape(len(table), -1)
            for ids_T, lengths, pieces in zip(
                ids_NT, table["segment_lengths"].to_pylist(), table["pieces"].to_pylist(), strict=True
            ):
                rows.append(Row(ids_T[: sum(lengths)], tuple(lengths), tuple(piece["doc_id"] for piece in pieces)))
            self._groups[key] = rows
            while len(self._groups) > CACHED_ROW_GROUPS:
                self._groups.popitem(last=False)
        self._groups.move_to_end(key)
        return self._groups[key]


def epoch_order(num_rows: int, seed: int, epoch: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The order of rows (N,) in an epoch: a permutation drawn from (seed, epoch) alone."""
    return np.random.default_rng([seed, epoch]).permutation(num_rows)


@dataclasses.dataclass(frozen=True)
class Order:
    """One worker's micro-batches over the whole training, as lists of row indices (-1: no row).

    Iterating gives `steps * accumulation` lists of `per_device_batch` indices. Micro-batch m of worker r holds the
    step's rows [(m*W + r)*B, (m*W + r + 1)*B), W workers. The global batch is a multiple of B: any number of workers
    has the same micro-batches. Where W does not divide their number, some workers' last one is empty, which costs less
    than to leave a worker out, and changes no sum.
    """

    num_rows: int
    global_batch: int
    per_device_batch: int
    rank: int
    num_workers: int
    steps: int
    seed: int

    @property
    def accumulation(self) -> int:
        return -(-self.global_batch // (self.per_device_batch * self.num_workers))

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.num_rows // self.global_batch)

    def __len__(self) -> int:
        return self.steps * self.accumulation

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Each micro-batch as (place in the run, row) pairs; the place counts rows from the first step's first."""
        order, current_epoch = epoch_order(self.num_rows, self.seed, 0), 0
        size = self.global_batch
        for step in range(self.steps):
            epoch, position = divmod(step, self.steps_per_epoch)
            if epoch != current_epoch:
                order, current_epoch = epoch_order(self.num_rows, self.seed, epoch), epoch
            rows = order[position * size : (position + 1) * size].tolist()
            rows += [-1] * (self.accumulation * self.num_workers * self.per_device_batch - len(rows))
            for micro in range(self.accumulation):
                start = (micro * self.num_workers + self.rank) * self.per_device_batch
                yield [(step * size + place, rows[place]) for place in range(start, start + self.per_device_batch)]


class Placed(torch.utils.data.Dataset[tuple[int, Row | None]]):
    """Rows asked for by the (place, row) pairs of an `Order`; what comes back knows its place."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: tuple[int, int]) -> tuple[int, Row | None]:
        place, index = key
        return place, self.rows[index]


def block_lengths(row: Row, isolation: str) -> list[int]:
    """Lengths of the runs of tokens in a row that may attend to each other."""
    if isolation == "segment":
        return list(row.segment_lengths)
    if isolation == "none":
        return [sum(row.segment_lengths)]
    return _document_lengths(row)


def _document_lengths(row: Row) -> list[int]:
    lengths: list[int] = []
    previous = None
    for length, doc_id in zip(row.segment_lengths, row.doc_ids, strict=True):
        if doc_id == previous:
            lengths[-1] += length
        else:
            lengths.append(length)
        previous = doc_id
    return lengths


def flat_batch(
    rows: Sequence[tuple[int, Row | None]], isolation: str, implementation: str, filler_id: int = 0
) -> dict[str, Any]:
    """A micro-batch as one flat sequence (1, T), with where its blocks end and labels.

    The first label of each block and of each document is -100: nothing before it may predict it. `place` is the first
    row's place in the run. A micro-batch without rows is two ignored tokens: every worker must take part in each step.
    """
    real = [row for _, row in rows if row is not None]
    if real:
        ids_T = np.concatenate([row.input_ids for row in real]).astype(np.int64)
        blocks = [length for row in real for length in block_lengths(row, isolation)]
        documents = [length for row in real for length in _document_lengths(row)]
    else:
        ids_T, blocks, documents = np.full(2, filler_id, np.int64), [2], [1, 1]
    labels_T = ids_T.copy()
    for lengths in (blocks, documents):
        labels_T[np.cumsum([0, *lengths[:-1]])] = IGNORE
    return {
        "input_ids": torch.from_numpy(ids_T)[None],
        "position_ids": flat_positions(blocks),
        "labels": torch.from_numpy(labels_T)[None],
        "place": rows[0][0],
        **boundaries(blocks, implementation),
    }
