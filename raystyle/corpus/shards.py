"""What is decided once, on the driver, from the corpus alone: groups of files, held-out documents, pack shards.

None of it looks at how many cores or nodes there are, which is why the result does not depend on them.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from raystyle.corpus.sources import UNIT_BYTES, Source, Unit
from raystyle.errors import DataError

MIN_GROUP_BYTES, MAX_GROUP_BYTES, WANTED_GROUPS = 1 << 20, 16 << 20, 64
# About 4 million tokens: the one partial row that a shard may end in is then 0.1 % at most.
PACK_SHARD_BYTES = 12 << 20

_NUMBER = "[0-9０-９零〇一二三四五六七八九十百]+"
_PART = re.compile(rf"\s*(?:[(（\[【]\s*(?:{_NUMBER}|[上中下续續])\s*[)）\]】]|[上中下]|其?之?{_NUMBER})$")


class Entry(NamedTuple):
    """A document as the driver knows it: where its text is (a row of a cleaned part) and what decisions rest on."""

    shard: int
    row: int
    doc_id: str
    group: str
    num_bytes: int


def group_units(units: Sequence[Unit]) -> list[list[Unit]]:
    """What is to be read, in its order, in groups of 1 to 16 MB, so that ten thousand small files are not ten thousand tasks."""
    sizes = [unit_bytes(unit) for unit in units]
    target = min(MAX_GROUP_BYTES, max(MIN_GROUP_BYTES, sum(sizes) // WANTED_GROUPS))
    groups: list[list[Unit]] = []
    size = target
    for unit, num_bytes in zip(units, sizes, strict=True):
        if size >= target:
            groups.append([])
            size = 0
        groups[-1].append(unit)
        size += num_bytes
    return groups


def unit_bytes(unit: Unit) -> int:
    """About how many bytes a unit has: a range of row groups was chosen to have a unit's size."""
    if unit.end is None and unit.start == 0:
        return unit.source.size
    end = unit.source.size if unit.end is None else unit.end
    return UNIT_BYTES if unit.source.kind == "parquet" else end - unit.start


def sample_sources(sources: Sequence[Source], limit: int) -> list[Source]:
    """At most `limit` sources, from all over the corpus: always the same ones."""
    chosen = set(sorted(sources, key=lambda source: hashlib.sha256(source.relpath.encode()).digest())[:limit])
    return [source for source in sources if source in chosen]


def piece_name(title: str) -> str:
    """A title without its part number: 某某记(2), 某某记（下） and 某某记 三 are parts of one piece, 某某记."""
    return _PART.sub("", title).strip() or title


def choose_heldout(
    entries: Sequence[Entry], fraction: float, related: Iterable[tuple[tuple[int, int], tuple[int, int]]] = ()
) -> set[str]:
    """Ids of the documents to set aside: whole groups, in the order of their hashes, up to `fraction` of all documents.

    Documents that are `related` (pairs of shard and row) are set aside together or not at all. A group that would
    overshoot is passed over; at least one group is taken. Raises `DataError` where fewer than two groups leave nothing to
    choose.
    """
    if fraction == 0:
        return set()
    group_of = {(entry.shard, entry.row): entry.group for entry in entries}
    parent = {group: group for group in group_of.values()}

    def root(group: str) -> str:
        while parent[group] != group:
            parent[group] = group = parent[parent[group]]
        return group

    for one, other in related:
        if one in group_of and other in group_of:
            low, high = sorted((root(group_of[one]), root(group_of[other])))
            parent[high] = low
    groups: dict[str, list[str]] = {}
    for entry in entries:
        groups.setdefault(root(entry.group), []).append(entry.doc_id)
    if len(groups) < 2:
        raise DataError(
            f"`heldout_fraction` is {fraction:g}, but the corpus is a single piece ({len(entries)} documents)\n"
            "hint: use `--document_unit chapter`, add sources, or leave out `--heldout_fraction`"
        )
    order = sorted(groups, key=lambda group: hashlib.sha256(group.encode()).digest())
    chosen: set[str] = set()
    for group in order:
        if len(chosen) + len(groups[group]) <= fraction * len(entries):
            chosen.update(groups[group])
    return chosen or set(groups[min(order, key=lambda group: len(groups[group]))])


def pack_ranges(entries: Sequence[Entry], shard_bytes: int = PACK_SHARD_BYTES) -> list[list[Entry]]:
    """Documents in order, in contiguous ranges of about equal size; a document is never divided."""
    total = sum(entry.num_bytes for entry in entries)
    wanted = max(1, round(total / shard_bytes))
    ranges: dict[int, list[Entry]] = {}
    before = 0
    for entry in entries:
        middle = before + entry.num_bytes / 2
        ranges.setdefault(min(wanted - 1, int(middle * wanted / max(1, total))), []).append(entry)
        before += entry.num_bytes
    return [ranges[index] for index in sorted(ranges)]
