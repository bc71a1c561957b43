"""What is decided once, on the driver, from the corpus alone: groups of files, held-out documents, pack shards.

None of it looks at how many cores or nodes there are, which is why the result does not depend on them.
"""

import hashlib
import re
from collections.abc import Sequence
from typing import NamedTuple

from raystyle.corpus.sources import Source
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


def group_sources(sources: Sequence[Source]) -> list[list[Source]]:
    """Sources in their order, in groups of 1 to 16 MB, so that ten thousand small files are not ten thousand tasks."""
    total = sum(source.size for source in sources)
    target = min(MAX_GROUP_BYTES, max(MIN_GROUP_BYTES, total // WANTED_GROUPS))
    groups: list[list[Source]] = []
    size = target
    for source in sources:
        if size >= target:
            groups.append([])
            size = 0
        groups[-1].append(source)
        size += source.size
    return groups


def piece_name(title: str) -> str:
    """A title without its part number: 某某记(2), 某某记（下） and 某某记 三 are parts of one piece, 某某记."""
    return _PART.sub("", title).strip() or title


def choose_heldout(entries: Sequence[Entry], fraction: float) -> set[str]:
    """Ids of the documents to set aside: whole groups, in the order of their hashes, up to `fraction` of all documents.

    A group that would overshoot is passed over; at least one group is taken. Raises `DataError` where fewer than two
    groups leave nothing to choose.
    """
    if fraction == 0:
        return set()
    groups: dict[str, list[str]] = {}
    for entry in entries:
        groups.setdefault(entry.group, []).append(entry.doc_id)
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
