"""The files of a prepared corpus: their schemas, and how a part is written and read.

Every part has an explicit schema and a name that follows from the plan, so that a part written twice is the same file.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raystyle import storage
from raystyle.corpus.dedup import BANDS, SLOTS, Signatures, bands
from raystyle.corpus.pack import Rows

DOCUMENTS = pa.schema(
    [("doc_id", pa.string()), ("source", pa.string()), ("title", pa.string()), ("text", pa.large_string())]
)
# What later stages need to know of each document, beside its row in documents/: what it is held out with, where the
# records end that it was put together from, how its removals name it (`place`), its chapters, and the line (from 1) at which each paragraph began.
LEDGER = pa.schema(
    [
        *DOCUMENTS,
        ("place", pa.string()),
        ("group", pa.string()),
        ("bytes", pa.int64()),
        ("records", pa.list_(pa.int64())),
        ("chapter_ends", pa.list_(pa.int64())),
        ("chapter_titles", pa.list_(pa.string())),
        ("line_nos", pa.list_(pa.int64())),
    ]
)
# Lines of a document (by its row) that look like no story, to be counted over all works.
LINES = pa.schema([("row", pa.int64()), ("line", pa.string())])
# What a duplicate is known by: a document's (chapter -1) or a chapter's. See dedup.
BAND_NAMES = [f"band_{band:02d}" for band in range(BANDS)]
SIGNATURES = pa.schema(
    [
        ("row", pa.int64()),
        ("chapter", pa.int64()),
        ("characters", pa.int64()),
        ("digest", pa.binary(16)),
        ("sketch", pa.list_(pa.uint32(), SLOTS)),
        *((name, pa.uint64()) for name in BAND_NAMES),
    ]
)
DUPLICATES = pa.schema(
    [
        ("doc_id", pa.string()),
        ("source", pa.string()),
        ("kept_doc_id", pa.string()),
        ("similarity", pa.float64()),
        ("title", pa.string()),
        ("text", pa.large_string()),
    ]
)
REMOVED = pa.schema(
    [
        ("source", pa.string()),
        ("line_no", pa.int64()),
        ("action", pa.string()),
        ("rule", pa.string()),
        ("text", pa.string()),
        ("replacement", pa.string()),
        ("char_start", pa.int64()),
        ("char_end", pa.int64()),
    ]
)
REJECTED = pa.schema([("source", pa.string()), ("reason", pa.string()), ("detail", pa.string())])
# Few enough that reading one row costs little, many enough to compress.
ROWS_PER_GROUP = 64
# Columns whose values come again and again; to look for such among others takes as long as to compress them.
REPEATED = ("source", "place", "group", "action", "rule", "replacement", "reason", "kept_doc_id")


def rows_schema(max_seq_length: int) -> pa.Schema:
    """Of a part of rows, each of `max_seq_length` ids."""
    piece = pa.struct([("doc_id", pa.string()), ("char_start", pa.int64()), ("char_end", pa.int64())])
    return pa.schema(
        [
            ("row", pa.int64()),
            ("input_ids", pa.list_(pa.int32(), max_seq_length)),
            ("segment_lengths", pa.list_(pa.int32())),
            ("pieces", pa.list_(piece)),
        ]
    )


def part_name(index: int) -> str:
    return f"part-{index:05d}.parquet"


def table(columns: dict[str, list[Any]] | list[tuple[Any, ...]], schema: pa.Schema) -> pa.Table:
    """A table of columns by name, or of tuples in the schema's order."""
    if isinstance(columns, list):
        values = list(zip(*columns, strict=True)) or [()] * len(schema)
        columns = {name: list(column) for name, column in zip(schema.names, values, strict=True)}
    return pa.table({field.name: pa.array(columns[field.name], field.type) for field in schema}, schema=schema)


def rows_table(rows: Rows, first_row: int) -> pa.Table:
    """Packed rows as a table, numbered from `first_row`; ids are not copied."""
    n, t = rows.input_ids_NT.shape
    schema = rows_schema(t)
    pieces = pa.StructArray.from_arrays(
        [pa.array(rows.doc_ids_S, pa.string()), pa.array(rows.char_starts_S), pa.array(rows.char_ends_S)],
        fields=list(schema.field("pieces").type.value_type),
    )
    firsts = pa.array(rows.first_N1)
    return pa.table(
        [
            pa.array(np.arange(first_row, first_row + n)),
            pa.FixedSizeListArray.from_arrays(pa.array(rows.input_ids_NT.reshape(-1)), t),
            pa.ListArray.from_arrays(firsts, pa.array(rows.lengths_S)),
            pa.ListArray.from_arrays(firsts, pieces),
        ],
        schema=schema,
    )


def signatures(found: Signatures, rows_U: NDArray[np.int64], chapters_U: NDArray[np.int64], near: bool) -> pa.Table:
    """Signatures as a table; without sketches where only equal texts are looked for."""
    count = len(rows_U)
    columns: list[pa.Array] = [pa.array(rows_U), pa.array(chapters_U), pa.array(found.characters_U)]
    columns.append(pa.array([digest.tobytes() for digest in found.digests_U16], pa.binary(16)))
    if near:
        values_UB = bands(found.sketches_UP)
        columns.append(pa.FixedSizeListArray.from_arrays(pa.array(found.sketches_UP.reshape(-1)), SLOTS))
        columns += [pa.array(np.ascontiguousarray(values_UB[:, band])) for band in range(BANDS)]
    else:
        columns += [pa.nulls(count, field.type) for field in list(SIGNATURES)[len(columns) :]]
    return pa.table(columns, schema=SIGNATURES)


@contextmanager
def writer(uri: str, schema: pa.Schema) -> Iterator[Callable[[pa.Table], None]]:
    """Write a part table by table; it appears whole when the block ends well, or not at all."""
    repeated = [name for name in schema.names if name in REPEATED]
    with (
        storage.open_output(uri) as stream,
        # Nobody filters by the first and the last of some texts.
        pq.ParquetWriter(stream, schema, compression="zstd", use_dictionary=repeated, write_statistics=False) as file,
    ):
        yield lambda content: file.write_table(content) if len(content) else None


def write(uri: str, content: pa.Table, row_group_size: int | None = None) -> None:
    """Write a part whole, or not at all."""
    with storage.open_output(uri) as stream:
        pq.write_table(content, stream, row_group_size=row_group_size, compression="zstd")


def read(uri: str, columns: list[str] | None = None) -> pa.Table:
    """A part, or some of its columns."""
    return pq.read_table(pa.BufferReader(storage.read_bytes(uri)), columns=columns)


def take(uri: str, rows: list[int]) -> list[dict[str, Any]]:
    """Some rows of a part, by ascending number, reading only the row groups that hold them."""
    found: list[dict[str, Any]] = []
    first, wanted = 0, np.array(rows)
    with storage.open_input(uri) as stream:
        file = pq.ParquetFile(stream)
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            here = wanted[(wanted >= first) & (wanted < first + count)] - first
            if len(here):
                found += file.read_row_group(group).take(pa.array(here)).to_pylist()
            first += count
    return found


def renumber(uri: str, target: str, first_row: int) -> str:
    """Copy a part of rows with its rows numbered from `first_row`; the SHA-256 of the copy."""
    content = read(uri)
    numbers = pa.array(range(first_row, first_row + len(content)), pa.int64())
    write(target, content.set_column(0, content.schema.field("row"), numbers), ROWS_PER_GROUP)
    return hashlib.sha256(storage.read_bytes(target)).hexdigest()
