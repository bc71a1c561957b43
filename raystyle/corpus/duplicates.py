"""The tasks that find duplicates over the whole corpus: who meets whom, who stays, and what many works share.

Each reads columns of the parts that cleaning left and writes one part; `dedup` decides. Documents are decided first, then
the chapters of the documents that stay. Imports no ray.

U units (documents or chapters) of the corpus, in its order; M meetings.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raystyle import storage
from raystyle.corpus import dedup, parts
from raystyle.corpus.stages import Settings, finished, key_of
from raystyle.corpus.steps import MIN_SHARING, MIN_SHARING_SHARE

# Bands that one task looks at: each is a column of 8 bytes for every unit of the corpus.
BANDS_PER_TASK = 4
MEETINGS = pa.schema([("unit", pa.int64()), ("value", pa.uint64())])
# A unit that goes, and the one that stands for it: shard, row in it, and chapter (-1: the whole document).
CHOICES = pa.schema(
    [
        ("shard", pa.int64()), ("row", pa.int64()), ("chapter", pa.int64()),
        ("kept_shard", pa.int64()), ("kept_row", pa.int64()), ("kept_chapter", pa.int64()), ("similarity", pa.float64()),
    ]
)  # fmt: skip
# What of a chapter is its own would go with it; a work is known by more than one passage that it shares.
CHAPTER_THRESHOLD = 0.8


class Unit(NamedTuple):
    """A document (chapter -1) or a chapter of one."""

    shard: int
    row: int
    chapter: int


def band_groups() -> list[list[str]]:
    """The bands' columns, as many as one task takes."""
    names = parts.BAND_NAMES
    return [names[start : start + BANDS_PER_TASK] for start in range(0, len(names), BANDS_PER_TASK)]


def find_meetings(kind: str, group: int, num_shards: int, work: str, corpus: str = "") -> dict[str, Any]:
    """Which units of a kind (`whole`, `chapters`) agree in one of a group's bands with another.

    Here and below `corpus` is the key of all that was cleaned: what was decided about other texts is not reused.
    """
    stem = storage.join(work, f"meet-{kind}-{group:02d}")
    if marker := finished(f"{stem}.json", key := key_of(kind, group, num_shards, corpus)):
        return marker
    names = band_groups()[group]
    table = _signatures(kind, num_shards, work, ["characters", *names])
    least = dedup.NEAR_DOCUMENT_CHARACTERS if kind == "whole" else dedup.CHAPTER_CHARACTERS
    units_U = np.flatnonzero(table["characters"].to_numpy() >= least)
    with parts.writer(f"{stem}.parquet", MEETINGS) as write:
        for name in names:
            meetings = dedup.shared(units_U, table[name].to_numpy()[units_U])
            write(pa.table([pa.array(meetings.units_M), pa.array(meetings.values_M)], schema=MEETINGS))
    storage.write_json(f"{stem}.json", marker := {"key": key})
    return marker


def choose_duplicates(
    num_shards: int, has_chapters: bool, work: str, settings: Settings, corpus: str = ""
) -> dict[str, Any]:
    """Decide which documents go, then which chapters of those that stay; which of those that stay are related."""
    stem = storage.join(work, "choices")
    key = key_of(num_shards, corpus, settings.dedup, settings.dedup_threshold, settings.dedup_keep, settings.signed)
    if marker := finished(f"{stem}.json", key):
        return marker
    whole, related = _choose("whole", num_shards, work, settings, set())
    gone = [(*unit, *kept, similarity) for unit, kept, similarity in whole]
    if has_chapters:
        chapters, edges = _choose(
            "chapters", num_shards, work, settings, {(unit.shard, unit.row) for unit, *_ in whole}
        )
        gone += _whole_again([(*unit, *kept, similarity) for unit, kept, similarity in chapters], num_shards, work)
        related += edges
    parts.write(f"{stem}.parquet", parts.table(sorted(gone), CHOICES))
    pairs = sorted({tuple(sorted([(a.shard, a.row), (b.shard, b.row)])) for a, b in related if a[:2] != b[:2]})
    storage.write_json(f"{stem}.json", marker := {"key": key, "related": pairs})
    return marker


def _choose(
    kind: str, num_shards: int, work: str, settings: Settings, gone: set[tuple[int, int]]
) -> tuple[list[tuple[Unit, Unit, float]], list[tuple[Unit, Unit]]]:
    """Units of a kind that go, with the ones that stand for them; pairs of units that stay and are related."""
    table = _signatures(kind, num_shards, work, ["shard", "row", "chapter", "characters", "digest"])
    names = [Unit(*values) for values in zip(*(table[name].to_pylist() for name in Unit._fields), strict=True)]
    characters_U = table["characters"].to_numpy()
    there_U = np.array([unit[:2] not in gone for unit in names], bool)
    if kind == "chapters":
        there_U &= characters_U >= dedup.CHAPTER_CHARACTERS
    meetings = list(_meetings(kind, work)) if settings.signed == "near" else []
    digests_U = table["digest"].combine_chunks()
    _, inverse_U, counts = np.unique(
        digests_U.dictionary_encode().indices.to_numpy(), return_inverse=True, return_counts=True
    )
    involved_U = there_U & (counts[inverse_U] > 1)
    for units_M, _ in meetings:
        involved_U[units_M] |= there_U[units_M]
    places = np.flatnonzero(involved_U)
    if not len(places):
        return [], []
    new_U = np.full(len(names), -1)
    new_U[places] = np.arange(len(places))
    signatures = dedup.Signatures(
        np.frombuffer(b"".join(digests_U.take(pa.array(places)).to_pylist()), np.uint8).reshape(-1, 16),
        characters_U[places],
        _sketches(kind, num_shards, work, places, settings.signed == "near"),
    )
    known = [
        dedup.Meetings(new_U[units_M][new_U[units_M] >= 0], values_M[new_U[units_M] >= 0])
        for units_M, values_M in meetings
    ]
    # With `exact` or `none`, what is merely near stays; it is related all the same.
    threshold = settings.dedup_threshold if settings.dedup == "near" else 2.0
    if kind == "chapters":
        threshold = max(threshold, CHAPTER_THRESHOLD)
    choice = dedup.choose(signatures, known, settings.dedup_keep, threshold)  # type: ignore[arg-type]
    pairs = [(names[places[a]], names[places[b]]) for a, b in choice.related_E2.tolist()]
    dropped = np.flatnonzero(choice.kept_U != np.arange(len(places)))
    found = [
        (names[places[unit]], names[places[choice.kept_U[unit]]], float(choice.similarity_U[unit]))
        for unit in dropped.tolist()
    ]
    if settings.dedup == "none":
        return [], [*pairs, *((kept, unit) for unit, kept, _ in found)]
    return found, pairs


def _whole_again(chapters: Sequence[tuple[Any, ...]], num_shards: int, work: str) -> list[tuple[Any, ...]]:
    """A document all of whose chapters go goes whole."""
    counts: dict[tuple[int, int], list[tuple[Any, ...]]] = {}
    for choice in chapters:
        counts.setdefault((choice[0], choice[1]), []).append(choice)
    if not counts:
        return []
    table = _signatures("chapters", num_shards, work, ["shard", "row"])
    total: dict[tuple[int, int], int] = {}
    for at in zip(table["shard"].to_pylist(), table["row"].to_pylist(), strict=True):
        total[at] = total.get(at, 0) + 1
    result: list[tuple[Any, ...]] = []
    for at, mine in counts.items():
        if len(mine) < total[at]:
            result += mine
        else:
            first = min(mine, key=lambda choice: choice[2])
            result.append((*at, -1, *first[3:6], min(choice[6] for choice in mine)))
    return result


def shared_lines(
    num_shards: int, work: str, gone: list[tuple[int, int]], documents: int, corpus: str = ""
) -> dict[str, Any]:
    """Lines that many of the documents that stay share, and that look like no story, with the number of documents."""
    stem = storage.join(work, "shared-lines")
    if marker := finished(f"{stem}.json", key := key_of(num_shards, gone, documents, corpus)):
        return marker
    tables = []
    for shard in range(num_shards):
        table = parts.read(storage.join(work, f"clean-{shard:05d}.lines.parquet"))
        out = [row for at, row in gone if at == shard]
        if out:
            table = table.filter(pc.invert(pc.is_in(table["row"], pa.array(out, pa.int64()))))
        tables.append(table["line"])
    lines = pa.chunked_array([chunk for column in tables for chunk in column.chunks], pa.string())
    needed = max(MIN_SHARING, MIN_SHARING_SHARE * documents)
    counts = pc.value_counts(lines)
    often = counts.filter(pc.greater_equal(counts.field("counts"), needed)).to_pylist()
    found = sorted(([row["values"], row["counts"]] for row in often), key=lambda row: (-row[1], row[0]))
    storage.write_json(f"{stem}.json", marker := {"key": key, "lines": found})
    return marker


def _signatures(kind: str, num_shards: int, work: str, columns: list[str]) -> pa.Table:
    """Columns of all shards' signatures, in the corpus's order, and `shard`."""
    wanted = [name for name in columns if name != "shard"]
    tables = [
        parts.read(storage.join(work, f"clean-{shard:05d}.{kind}.parquet"), wanted) for shard in range(num_shards)
    ]
    if "shard" in columns:
        tables = [
            table.append_column("shard", pa.array(np.full(len(table), shard))) for shard, table in enumerate(tables)
        ]
    return pa.concat_tables(tables)


def _sketches(kind: str, num_shards: int, work: str, places: NDArray[np.int64], near: bool) -> NDArray[np.uint32]:
    """The sketches of some units, a shard's at a time."""
    if not near:
        return np.zeros((len(places), dedup.SLOTS), np.uint32)
    found, first = [], 0
    for shard in range(num_shards):
        column = parts.read(storage.join(work, f"clean-{shard:05d}.{kind}.parquet"), ["sketch"])["sketch"]
        here = places[(places >= first) & (places < first + len(column))] - first
        if len(here):
            found.append(column.take(pa.array(here)).combine_chunks().flatten().to_numpy().reshape(-1, dedup.SLOTS))
        first += len(column)
    return np.concatenate(found)


def _meetings(kind: str, work: str) -> Iterator[dedup.Meetings]:
    for group in range(len(band_groups())):
        table = parts.read(storage.join(work, f"meet-{kind}-{group:02d}.parquet"))
        yield dedup.Meetings(table["unit"].to_numpy(), table["value"].to_numpy())
