"""The files of a prepared corpus: their schemas, and how a part is written and read.

Every part has an explicit schema and a name that follows from the plan, so that a part written twice is the same file.
"""

import hashlib
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raystyle import storage
from raystyle.corpus.pack import Rows

DOCUMENTS = pa.schema(
    [("doc_id", pa.string()), ("source", pa.string()), ("title", pa.string()), ("text", pa.large_string())]
)
# What the driver needs to know of each document before it decides order and held-out, beside its row in documents/.
LEDGER = pa.schema([*DOCUMENTS, ("group", pa.string()), ("bytes", pa.int64()), ("records", pa.list_(pa.int64()))])
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


def rows_schema(max_seq_length: int) -> pa.Schema:
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
    """Packed rows as a table, numbered from `first_row`."""
    n, t = rows.input_ids_NT.shape
    schema = rows_schema(t)
    pieces = [[piece._asdict() for piece in row] for row in rows.pieces]
    return pa.table(
        [
            pa.array(range(first_row, first_row + n), pa.int64()),
            pa.FixedSizeListArray.from_arrays(pa.array(rows.input_ids_NT.reshape(-1)), t),
            pa.array(rows.segment_lengths, schema.field("segment_lengths").type),
            pa.array(pieces, schema.field("pieces").type),
        ],
        schema=schema,
    )


def write(uri: str, content: pa.Table, row_group_size: int | None = None) -> None:
    """Write a part whole, or not at all."""
    with storage.open_output(uri) as stream:
        pq.write_table(content, stream, row_group_size=row_group_size, compression="zstd")


def read(uri: str, columns: list[str] | None = None) -> pa.Table:
    return pq.read_table(pa.BufferReader(storage.read_bytes(uri)), columns=columns)


def renumber(uri: str, target: str, first_row: int) -> str:
    """Copy a part of rows with its rows numbered from `first_row`; the SHA-256 of the copy."""
    content = read(uri)
    numbers = pa.array(range(first_row, first_row + len(content)), pa.int64())
    write(target, content.set_column(0, content.schema.field("row"), numbers), ROWS_PER_GROUP)
    return hashlib.sha256(storage.read_bytes(target)).hexdigest()
