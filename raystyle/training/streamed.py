"""Rows that come as a stream, while they are being made: the same micro-batches as `rows` has by index, and a cursor.

Ray Data hands each worker every num_workers-th block of one ordered stream, a block being a micro-batch, so that
micro-batch m of worker r holds the step's rows [(m*W + r)*B, (m*W + r + 1)*B), as `rows.Order` has it: what a step is made of
does not depend on the workers. A checkpoint holds the cursor behind its last row; a continued run has the stream begin
there.

B rows of a micro-batch, W workers.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyarrow as pa
import torch

from raystyle.errors import StorageError
from raystyle.training.rows import Row

HEAD = 4  # rows waited for at the start, from which isolation is proved
KEPT = 64  # rows at least: those that a plateau is explained by; a bad step, by all of its own
STEPS_KEPT = 8


@dataclasses.dataclass(frozen=True)
class StreamOrder:
    """Where a worker's micro-batches lie in the run; see `rows.Order`. The workers' number divides the micro-batches'."""

    global_batch: int
    per_device_batch: int
    rank: int
    num_workers: int
    steps: int

    @property
    def accumulation(self) -> int:
        return self.global_batch // (self.per_device_batch * self.num_workers)

    def place(self, number: int) -> int:
        """The place in the run of a micro-batch's first row."""
        step, micro = divmod(number, self.accumulation)
        return step * self.global_batch + (micro * self.num_workers + self.rank) * self.per_device_batch

    def rows_at(self, place: int) -> list[int]:
        """Rows have no other numbers than their places."""
        return list(range(place, place + self.per_device_batch))


class Seen:
    """The last rows of a stream that this worker has had, by their places in the run."""

    documents_dir = None  # nothing that was read before is kept

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self._rows: collections.OrderedDict[int, tuple[Row, list[str]]] = collections.OrderedDict()

    def add(self, place: int, row: Row, sources: list[str]) -> None:
        self._rows[place] = (row, sources)
        while len(self._rows) > self._kept:
            self._rows.popitem(last=False)

    def __getitem__(self, number: int) -> Row | None:
        """A row that is still kept; None where it is not, or was another worker's."""
        found = self._rows.get(number)
        return found[0] if found else None

    def spread(self, count: int) -> list[int]:
        """The numbers of up to `count` rows."""
        return list(self._rows)[:count]

    def sources_by_document(self) -> dict[str, str]:
        return {
            doc_id: source
            for row, sources in self._rows.values()
            for doc_id, source in zip(row.doc_ids, sources, strict=True)
        }


class Streamed(torch.utils.data.IterableDataset[list[tuple[int, Row | None]]]):
    """One worker's micro-batches as lists of (place, row). The first rows are waited for here.

    `batches` are tables of `corpus.stream.SCHEMA`, each of B rows. Raises `StorageError` where they end too early, or begin
    elsewhere than at the cursor: what makes them begins anew, from the last checkpoint on.
    """

    def __init__(
        self, batches: Iterable[pa.Table], order: StreamOrder, start: int, cursor: tuple[int, int], num_shards: int
    ) -> None:
        self.order, self.start, self.num_shards = order, start, num_shards
        self.rows = Seen(max(KEPT, order.accumulation * order.per_device_batch))
        self.ends: dict[int, tuple[int, int]] = {}  # by step (from 1): the cursor behind this worker's last row of it
        self._batches = iter(batches)
        first = start * order.accumulation
        # Those that are needed, and as many as the proof asks for.
        count = min(-(-HEAD // order.per_device_batch), len(self) - first)
        self._head = collections.deque(self._next() for _ in range(count))
        if not self._head:
            return  # all steps are done, and only the adapter is to be written
        began = self._head[0]["shard"][0].as_py(), self._head[0]["row"][0].as_py()
        # A shard may end at the cursor; then the next one that has rows goes on.
        if order.rank == 0 and began != cursor and (began[0] <= cursor[0] or began[1]):
            raise StorageError(f"the stream began at {began} and not at {cursor}, where its checkpoint ended")
        for number, table in enumerate(self._head, first):
            self._take(number, table)

    def __len__(self) -> int:
        """Micro-batches of the run, those before `start` too."""
        return self.order.steps * self.order.accumulation

    def __iter__(self) -> Iterator[list[tuple[int, Row | None]]]:
        for number in range(self.start * self.order.accumulation, len(self)):
            yield self._take(number, self._head.popleft() if self._head else self._next())

    def cursor_after(self, step: int) -> tuple[int, int]:
        """The cursor behind the last row of a step, of all workers' rows. Each worker asks."""
        mine = self.ends[step]
        found: list[tuple[int, int]] = [mine] * self.order.num_workers
        if self.order.num_workers > 1:
            torch.distributed.all_gather_object(found, mine)
        return max(found)

    def epoch(self, step: int) -> float:
        """Passes over the inputs, by shards."""
        return self.ends[step][0] / self.num_shards if step in self.ends else 0.0

    def _next(self) -> pa.Table:
        found = next(self._batches, None)
        if found is None or len(found) < self.order.per_device_batch:
            # Planned by the inputs' size, it was too short; the next one is planned by what was left of them.
            raise StorageError(
                "the stream ended before `max_steps`: far less text is left of the inputs than their size promised; "
                "`streamed/` in the run's directory says what was rejected"
            )
        return found

    def _take(self, number: int, table: pa.Table) -> list[tuple[int, Row | None]]:
        place = self.order.place(number)
        ids, lengths, doc_ids, sources = (
            table[name].to_pylist() if name != "input_ids" else [one.values.to_numpy() for one in table[name]]
            for name in ("input_ids", "segment_lengths", "doc_ids", "sources")
        )
        rows = list(map(Row, ids, map(tuple, lengths), map(tuple, doc_ids)))
        for offset, (row, names) in enumerate(zip(rows, sources, strict=True)):
            self.rows.add(place + offset, row, names)
        step = number // self.order.accumulation + 1
        self.ends[step] = table["shard"][-1].as_py(), table["row"][-1].as_py() + 1
        self.ends.pop(step - STEPS_KEPT, None)
        return [(place + offset, row) for offset, row in enumerate(rows)]


Batches = Callable[[int], Iterable[Any]]  # given B
