"""A corpus as a stream that never ends: pass after pass of shards, each cleaned and packed by itself.

What a pass is, which inputs a shard holds and in which order its rows come follow from the list of inputs and a seed alone,
so that a shard can be made anywhere, again, and gives the same rows. A place in the stream is a `Cursor`. What only the
whole corpus can tell (duplicates, held-out documents, lines of many works) a stream does not know. Imports no ray.

U units, N rows.
"""

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from raystyle import storage
from raystyle.corpus import collect, parts, shards, stages
from raystyle.corpus.rules import Rules
from raystyle.corpus.sources import Rejection, Unit
from raystyle.errors import DataError

# Of a row: its tokens' ids without padding, its segments' lengths with the document of each, where those come from, and
# its place in the stream.
SCHEMA = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        ("segment_lengths", pa.list_(pa.int32())),
        ("doc_ids", pa.list_(pa.string())),
        ("sources", pa.list_(pa.string())),
        ("shard", pa.int64()),
        ("row", pa.int64()),
    ]
)


class Cursor(NamedTuple):
    """The next row of a stream: its shard, counted through all passes, and its place in the shard's order."""

    shard: int = 0
    row: int = 0


class Stream(NamedTuple):
    """What a task needs to make any shard. `outcomes` is the directory that takes what became of each input."""

    units: Sequence[Unit]
    num_shards: int  # of a pass
    seed: int
    rules: Rules
    settings: stages.Settings
    vocabulary: collect.Vocabulary
    outcomes: str


def count_shards(units: Sequence[Unit]) -> int:
    """Shards of a pass: about 4 million tokens each, where inputs are no larger."""
    return max(1, round(sum(map(shards.unit_bytes, units)) / shards.PACK_SHARD_BYTES))


def units_of(units: Sequence[Unit], num_shards: int, seed: int, shard: int) -> list[Unit]:
    """The inputs of a shard: of each pass, whose inputs are shuffled, an equal share by size. It may have none."""
    epoch, place = divmod(shard, num_shards)
    order_U = np.random.default_rng([seed, epoch]).permutation(len(units))
    sizes_U = np.array([shards.unit_bytes(units[unit]) for unit in order_U], float)
    middles_U = (np.cumsum(sizes_U) - sizes_U / 2) / max(1.0, sizes_U.sum())
    place_U = np.minimum((middles_U * num_shards).astype(int), num_shards - 1)
    return [units[unit] for unit in order_U[place_U == place]]


def rows_of(stream: Stream, shard: int) -> Iterator[pa.Table]:
    """The rows of a shard in tables of SCHEMA, of about 4 million tokens at most, each shuffled; it may have none.

    A shard is larger where one input is: a compressed file is not divided. Its cleaned text lies in this machine's temporary
    directory until it is packed. In the first pass, what became of its inputs is written to `outcomes`: later passes would
    only say it again. Raises `DataError` where that tells of a whole pass that nothing was left of, for the stream would
    never have a row, and where an input is not what it was when the run began.
    """
    units = units_of(stream.units, stream.num_shards, stream.seed, shard)
    _refuse_changes(units)
    with tempfile.TemporaryDirectory(prefix="raystyle-stream-") as work:
        marker = stages.clean_shard(0, units, work, stream.rules, stream.settings)
        if shard < stream.num_shards:
            rejected = [Rejection(**row) for row in parts.read(f"{work}/clean-00000.rejected.parquet").to_pylist()]
            outcome = {
                "inputs": marker["inputs"],
                "hits": marker["hits"],
                "rejected": [rejection._asdict() for rejection in rejected],
            }
            storage.write_json(storage.join(stream.outcomes, f"shard-{shard:05d}.json"), outcome)
            if not any(entry["characters_kept"] for entry in marker["inputs"]):
                _refuse_nothing(stream)
        ledger = parts.read(f"{work}/clean-00000.documents.parquet", ["doc_id", "group", "bytes", "place"]).to_pylist()
        entries = [shards.Entry(0, row, d["doc_id"], d["group"], d["bytes"]) for row, d in enumerate(ledger)]
        places, nothing, first = {d["doc_id"]: d["place"] for d in ledger}, collect.Cuts({}, frozenset()), 0
        for number, part in enumerate(shards.pack_ranges(entries)):
            collect.collect_shard("documents", number, part, nothing, work, stream.vocabulary, stream.settings)
            packed = parts.read(f"{work}/documents-{number:05d}.rows.parquet")
            order_N = np.random.default_rng([stream.seed, shard, 1 + number]).permutation(len(packed))
            yield _table(packed.take(order_N), places, shard, first)
            first += len(packed)


def _refuse_changes(units: Sequence[Unit]) -> None:
    """Each pass, and each start in the middle of a shard, counts on the same rows in the same order."""
    for source in dict.fromkeys(unit.source for unit in units):
        there = storage.list_files(source.location) if storage.exists(source.location) else []
        # Object storage lists times more exactly than it tells them of one object.
        precision = 10**9 if storage.is_remote(source.location) else 1
        if [file.mtime_ns // precision for file in there] != [source.mtime_ns // precision] or (
            source.member is None and there[0].size != source.size
        ):
            raise DataError(
                f"`{source.uri}` is not what it was when this run began: it was changed, or is gone\n"
                "hint: put it back, or train anew in another --output_dir"
            )


def characters_kept(stream: Stream) -> int | None:
    """Characters left of one pass, once all of a first pass was read."""
    files = storage.list_files(stream.outcomes, (".json",)) if storage.exists(stream.outcomes) else []
    uris = [file.uri for file in files if storage.basename(file.uri).startswith("shard-")]
    if len(uris) < stream.num_shards:
        return None
    return sum(int(entry["characters_kept"]) for uri in uris for entry in storage.read_json(uri)["inputs"])


def _refuse_nothing(stream: Stream) -> None:
    if characters_kept(stream) == 0:
        raise DataError(
            f"there is nothing to train on: {told(stream.outcomes)}\n"
            f"hint: each input's reason is in {stream.outcomes}; `raystyle prepare` on it writes a report"
        )


def _table(packed: pa.Table, place_of: dict[str, str], shard: int, first: int) -> pa.Table:
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    rows = zip(packed["input_ids"], packed["segment_lengths"].to_pylist(), packed["pieces"].to_pylist(), strict=True)
    for number, (ids, lengths, pieces) in enumerate(rows, first):
        doc_ids = [piece["doc_id"] for piece in pieces]
        columns["input_ids"].append(ids.values.to_numpy()[: sum(lengths)])
        columns["segment_lengths"].append(lengths)
        columns["doc_ids"].append(doc_ids)
        columns["sources"].append([place_of[doc_id] for doc_id in doc_ids])
        columns["shard"].append(shard)
        columns["row"].append(number)
    return pa.table(columns, schema=SCHEMA)


def told(outcomes: str) -> str:
    """What became of the inputs read so far, in a sentence."""
    found = [storage.read_json(file.uri) for file in storage.list_files(outcomes, (".json",))]
    inputs = [entry for outcome in found for entry in outcome["inputs"]]
    reasons = Counter(rejection["reason"] for outcome in found for rejection in outcome["rejected"])
    came, kept, lost = (
        sum(entry[name] for entry in inputs) for name in ("characters_in", "characters_kept", "characters_rejected")
    )
    shown = f" ({', '.join(f'{reason} {count}' for reason, count in reasons.most_common(5))})" if reasons else ""
    return (
        f"streamed {len(inputs):,} inputs: {came:,} characters came in, {kept:,} were kept, "
        f"{came - kept - lost:,} removed by rules, {lost:,} in rejected texts. Texts rejected: {sum(reasons.values()):,}{shown}"
    )
