"""Prepared rows in storage -> a dataset read by index, one seeded order, and flat batches.

The order decides everything about resuming: step s of an epoch takes rows [s*G, (s+1)*G) of one shuffle, G the
global batch, so neither the number of workers nor the per-device batch changes which rows a step sees. The last step
of an epoch takes the rows that are left.

The shuffle works on blocks, which are runs of rows as they lie in storage: the blocks come in a random order, and the rows of
`WINDOW` rows' worth of them at a time are mixed. So each block is read about once an epoch by each worker, ahead of its
use, and what is kept of the order and of the rows is as small for a trillion tokens as for a million. A run of up to
`WINDOW` rows has a plain shuffle.

N rows, G rows of a step, B rows of a micro-batch, T tokens of a flat batch.
"""

import bisect
import collections
import dataclasses
import functools
import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from raystyle import storage
from raystyle.errors import DataError, StorageError
from raystyle.training.attention import boundaries, flat_positions
from raystyle.training.loss import IGNORE

BLOCK = 64  # rows: as many as `prepare` writes into a row group
BLOCKS_MIXED = 64
WINDOW = BLOCKS_MIXED * BLOCK  # rows
AHEAD = 16  # micro-batches whose rows are read before they are needed
# Those of a window, and of the next one; of rows of 4,096 tokens they take 134 MB.
CACHED_BLOCKS = 2 * BLOCKS_MIXED
OPEN_FILES = 16


@dataclasses.dataclass(frozen=True)
class Row:
    """One row without its padding: token ids, and its segments' lengths and documents."""

    input_ids: np.ndarray[Any, np.dtype[np.int32]]
    segment_lengths: tuple[int, ...]
    doc_ids: tuple[str, ...]


class Rows(torch.utils.data.Dataset[Row | None]):
    """The rows of a prepared directory, by index. A micro-batch is asked for by `Rows[index]` for each of its rows.

    Index -1 is no row: it fills the last step of an epoch. A thread reads, so that `fetch` costs its caller no time; the
    blocks used last are kept.
    """

    def __init__(self, prepared_dir: str, manifest: dict[str, Any]) -> None:
        self.prepared_dir = prepared_dir
        self.shards = [storage.join(prepared_dir, shard["path"]) for shard in manifest["shards"]]
        self.starts = np.cumsum([0, *(shard["rows"] for shard in manifest["shards"])]).tolist()
        self._files: collections.OrderedDict[int, pq.ParquetFile] = collections.OrderedDict()
        self._blocks: collections.OrderedDict[int, Future[list[Row]]] = collections.OrderedDict()
        self._reader: ThreadPoolExecutor | None = None
        self._process = os.getpid()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: int) -> Row | None:
        """The row, from storage if need be. Raises `DataError` where it cannot be read."""
        return self._block(index // BLOCK).result()[index % BLOCK] if index >= 0 else None

    def spread(self, count: int) -> list[int]:
        """The numbers of up to `count` rows, evenly spread over all."""
        return [int(number) for number in np.linspace(0, len(self) - 1, min(count, len(self))).round()]

    @property
    def documents_dir(self) -> str | None:
        """The documents that were packed; None where there are none."""
        folder = storage.join(self.prepared_dir, "documents")
        return folder if storage.exists(folder) else None

    def sources_by_document(self) -> dict[str, str]:
        """doc_id -> source of every document that was packed."""
        found: dict[str, str] = {}
        try:
            for file in storage.list_files(self.documents_dir, (".parquet",)) if self.documents_dir else []:
                with storage.open_input(file.uri) as stream:
                    table: Any = pq.read_table(stream, columns=["doc_id", "source"])
                found |= dict(zip(table["doc_id"].to_pylist(), table["source"].to_pylist(), strict=True))
        except StorageError:  # then ids are all that can be told
            pass
        return found

    def fetch(self, indices: Sequence[int]) -> None:
        """Begin to read what is not here yet of these rows."""
        for block in {index // BLOCK for index in indices if index >= 0}:
            self._block(block)

    def _block(self, block: int) -> "Future[list[Row]]":
        if self._process != os.getpid():
            # A loader's, forked from one that has begun: that one kept the thread, and they share each file's place.
            self._process, self._reader = os.getpid(), None
            self._blocks.clear()
            self._files.clear()
        known = self._blocks.get(block)
        if known is None or (known.done() and known.exception()):  # what failed is tried again when asked for again
            self._reader = self._reader or ThreadPoolExecutor(1, thread_name_prefix="raystyle-rows")
            self._blocks[block] = self._reader.submit(self._read, block)
            while len(self._blocks) > CACHED_BLOCKS:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(block)
        return self._blocks[block]

    def _read(self, block: int) -> list[Row]:
        """The rows of a block, from as many shards as it lies in."""
        found: list[Row] = []
        index, end = block * BLOCK, min((block + 1) * BLOCK, len(self))
        while index < end:
            shard = bisect.bisect_right(self.starts, index) - 1
            count = min(end, self.starts[shard + 1]) - index
            found += _read_rows(self._file(shard), index - self.starts[shard], count)
            index += count
        return found

    def _file(self, shard: int) -> pq.ParquetFile:
        if shard not in self._files:
            try:
                self._files[shard] = pq.ParquetFile(storage.open_input(self.shards[shard]))
            except StorageError:  # it may answer again
                raise
            except (OSError, ValueError) as error:
                raise DataError(
                    f"cannot read the prepared rows `{self.shards[shard]}`: {error}\nhint: delete the directory, prepare again"
                ) from error
            if len(self._files) > OPEN_FILES:
                self._files.popitem(last=False)[1].close()
        self._files.move_to_end(shard)
        return self._files[shard]


def _read_rows(file: pq.ParquetFile, start: int, count: int) -> list[Row]:
    """`count` rows of a shard from row `start` on, by reading the row groups that hold them."""
    sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    ends = np.cumsum(sizes)
    first, last = np.searchsorted(ends, [start, start + count - 1], side="right").tolist()
    groups = file.read_row_groups(list(range(first, last + 1)), columns=["input_ids", "segment_lengths", "pieces"])
    table = groups.slice(start - (int(ends[first]) - sizes[first]), count)
    ids_NT = np.asarray(table["input_ids"].combine_chunks().flatten()).reshape(count, -1)
    columns = zip(ids_NT, table["segment_lengths"].to_pylist(), table["pieces"].to_pylist(), strict=True)
    return [
        Row(ids_T[: sum(lengths)], tuple(lengths), tuple(piece["doc_id"] for piece in pieces))
        for ids_T, lengths, pieces in columns
    ]


def epoch_rows(num_rows: int, seed: int, epoch: int, start: int, stop: int) -> list[int]:
    """The rows at the places [start, stop) of an epoch's shuffle; fewer where it ends before."""
    found: list[int] = []
    for window in range(start // WINDOW, -(-min(stop, num_rows) // WINDOW)):
        rows = _mixed(num_rows, seed, epoch, window)
        found += rows[max(0, start - window * WINDOW) : max(0, stop - window * WINDOW)].tolist()
    return found


@functools.lru_cache(maxsize=2)
def _mixed(num_rows: int, seed: int, epoch: int, window: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The rows of one window (WINDOW,), mixed. The last block, which may be short, comes last."""
    whole = num_rows // BLOCK
    blocks = range(window * BLOCKS_MIXED, min((window + 1) * BLOCKS_MIXED, -(-num_rows // BLOCK)))
    taken = sorted(_shuffled(block, whole, f"{seed} {epoch}") if block < whole else block for block in blocks)
    rows = np.concatenate([np.arange(block * BLOCK, min((block + 1) * BLOCK, num_rows)) for block in taken])
    return np.random.default_rng([seed, epoch, window]).permutation(rows)


def _shuffled(index: int, count: int, key: str) -> int:
    """Where a permutation of range(count), drawn by `key`, sends `index`; no list of them is made.

    A Feistel network of four rounds permutes the next power of four (Luby & Rackoff 1988); what falls outside the range goes
    through again until it falls inside (Black & Rogaway 2002).
    """
    half = max(1, -(-(count - 1).bit_length() // 2))
    while True:
        left, right = index >> half, index & ((1 << half) - 1)
        for turn in range(4):
            drawn = hashlib.blake2b(f"{key} {turn} {right}".encode(), digest_size=8).digest()
            left, right = right, left ^ (int.from_bytes(drawn) & ((1 << half) - 1))
        index = left << half | right
        if index < count:
            return index


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
        return map(self.micro_batch, range(len(self)))

    def micro_batch(self, number: int) -> list[tuple[int, int]]:
        """A micro-batch as (place in the run, row) pairs; the place counts rows from the first step's first."""
        step, micro = divmod(number, self.accumulation)
        epoch, position = divmod(step, self.steps_per_epoch)
        first = (micro * self.num_workers + self.rank) * self.per_device_batch
        start, end = (position * self.global_batch + at for at in (first, first + self.per_device_batch))
        rows = epoch_rows(self.num_rows, self.seed, epoch, start, end) if first < self.global_batch else []
        rows += [-1] * (self.per_device_batch - len(rows))
        return [(step * self.global_batch + first + i, row) for i, row in enumerate(rows)]

    def rows_at(self, place: int) -> list[int]:
        """The rows of the micro-batch that begins at a place in the run."""
        step, offset = divmod(place, self.global_batch)
        epoch, position = divmod(step, self.steps_per_epoch)
        start = position * self.global_batch + offset
        return epoch_rows(self.num_rows, self.seed, epoch, start, start + self.per_device_batch)

    def number_of(self, place: int) -> int:
        """Which micro-batch holds a place."""
        step, within = divmod(place, self.global_batch)
        return step * self.accumulation + within // (self.per_device_batch * self.num_workers)


class Placed(torch.utils.data.Dataset[tuple[int, Row | None]]):
    """Rows asked for by the (place, row) pairs of an `Order`; what comes back knows its place.

    Whoever asks for a micro-batch has the next ones fetched.
    """

    def __init__(self, rows: Rows, order: Order) -> None:
        self.rows, self.order = rows, order

    def __len__(self) -> int:
        return len(self.rows)

    def epoch(self, step: int) -> float:
        """Passes over the rows after a step."""
        return step / self.order.steps_per_epoch

    def __getitem__(self, key: tuple[int, int]) -> tuple[int, Row | None]:
        place, index = key
        return place, self.rows[index]

    def __getitems__(self, keys: list[tuple[int, int]]) -> list[tuple[int, Row | None]]:
        number = self.order.number_of(keys[0][0])
        self.rows.fetch([index for _, index in keys])
        # No further than the next window, all of whose blocks there is room for.
        reach = max(1, min(AHEAD, WINDOW // (self.order.per_device_batch * self.order.num_workers)))
        for ahead in range(number + 1, min(number + 1 + reach, len(self.order))):
            self.rows.fetch([index for _, index in self.order.micro_batch(ahead)])
        return [self[key] for key in keys]


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
