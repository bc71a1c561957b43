"""The last stages' tasks: documents as they are to be, packed rows, what dedup took out; and moving it all in place.

A document loses here what only the whole corpus could tell: chapters that stand elsewhere too, and lines that many works
share. Imports no ray.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from raystyle import storage
from raystyle.corpus import pack, parts
from raystyle.corpus.shards import Entry
from raystyle.corpus.stages import Settings, finished, key_of
from raystyle.corpus.steps import SHARED_LINE
from raystyle.tokens import stream

# Documents are collected so many bytes at a time.
BATCH_BYTES = 16 << 20


class Gone(NamedTuple):
    """A document (chapter -1) or a chapter that dedup took out, by shard, row and chapter, and what stands for it."""

    shard: int
    row: int
    chapter: int
    kept_shard: int
    kept_row: int
    kept_chapter: int
    similarity: float
    kept_doc_id: str


class Cuts(NamedTuple):
    """What documents of a shard lose: chapters by (shard, row), and the lines of many works."""

    chapters: dict[tuple[int, int], list[int]]
    lines: frozenset[str]


class Vocabulary(NamedTuple):
    """A tokenizer as plain values: its core as JSON, and the special ids that packing needs."""

    content: str
    digest: str
    prefix: tuple[int, ...]
    eos_id: int
    pad_id: int


def collect_shard(
    kind: str,
    index: int,
    entries: list[Entry],
    cuts: Cuts,
    work: str,
    vocabulary: Vocabulary | None,
    settings: Settings,
    corpus: str = "",
) -> dict[str, Any]:
    """Collect a range of documents and, where there is a tokenizer and they are to be trained on, pack their rows."""
    stem = storage.join(work, f"{kind}-{index:05d}")
    mine = {f"{entry.shard}:{entry.row}": cuts.chapters.get((entry.shard, entry.row)) for entry in entries}
    key = key_of(
        corpus,
        [entry.doc_id for entry in entries],
        mine,
        sorted(cuts.lines),
        vocabulary.digest if vocabulary else None,
        settings,
    )
    if marker := finished(f"{stem}.json", key):
        return marker
    marker = {"key": key, "rows": None, "tokens": None, "removed": 0, "characters": 0, "bytes": 0, "documents": []}
    with (
        parts.writer(f"{stem}.documents.parquet", parts.DOCUMENTS) as write,
        parts.writer(f"{stem}.removed.parquet", parts.REMOVED) as write_removed,
    ):
        documents = _collected(entries, cuts, work, write, write_removed, marker)
        if vocabulary and kind == "documents":
            packed = pack.pack(
                _parts(documents, vocabulary), max_seq_length=settings.max_seq_length,
                segment_length=settings.segment_length, pad_id=vocabulary.pad_id, mode=settings.packing,  # type: ignore[arg-type]
                # Records that are segments already were cut by whoever made them.
                boundary_tolerance=0.0 if settings.records == "segments" else settings.boundary_tolerance,
            )  # fmt: skip
            parts.write(f"{stem}.rows.parquet", parts.rows_table(packed, 0), parts.ROWS_PER_GROUP)
            marker |= {"rows": len(packed.input_ids_NT), "tokens": packed.tokens, "content": packed.digest()}
            # How long segments are, in sixteenths of the longest: for the report.
            sixteenths = (packed.lengths_S - 1) * 16 // settings.segment_length
            marker["segments"] = np.bincount(sixteenths, minlength=16).tolist()
        else:
            for _ in documents:
                pass
            marker["content"] = key_of(marker["documents"])
    storage.write_json(f"{stem}.json", marker)
    return marker


def _collected(
    entries: list[Entry], cuts: Cuts, work: str, write: Any, write_removed: Any, marker: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """The documents of some entries, in their order, cut; written and counted on their way."""
    for batch in _batches(entries):
        chosen = []
        for entry, document in zip(batch, _rows(batch, work), strict=True):
            removed = _cut(document, cuts.chapters.get((entry.shard, entry.row), []), cuts.lines)
            write_removed(parts.table(removed, parts.REMOVED))
            marker["removed"] += len(removed)
            marker["characters"] += len(document["text"]) - document["text"].count("\n")
            marker["bytes"] += len(document["text"].encode())
            marker["documents"].append([document["doc_id"], len(document["text"])])
            chosen.append(document)
        columns = {name: [document[name] for document in chosen] for name in parts.DOCUMENTS.names}
        write(parts.table(columns, parts.DOCUMENTS))
        yield from chosen


def _batches(entries: list[Entry]) -> Iterator[list[Entry]]:
    batch: list[Entry] = []
    size = 0
    for entry in entries:
        batch.append(entry)
        size += entry.num_bytes
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _rows(entries: list[Entry], work: str) -> list[dict[str, Any]]:
    """The ledger's rows of entries, which are in the corpus's order."""
    rows_of: dict[int, list[int]] = {}
    for entry in entries:
        rows_of.setdefault(entry.shard, []).append(entry.row)
    documents = []
    for shard, rows in rows_of.items():
        documents += parts.take(storage.join(work, f"clean-{shard:05d}.documents.parquet"), rows)
    return documents


def _cut(document: dict[str, Any], chapters: list[int], lines: frozenset[str]) -> list[tuple[Any, ...]]:
    """Take chapters and shared lines out of a document; the removals of the lines."""
    if not chapters and not lines:
        return []
    paragraphs = document["text"].split("\n")
    starts = np.cumsum([0, *(len(paragraph) + 1 for paragraph in paragraphs)])[:-1]
    bounds = np.array([0, *document["chapter_ends"]])
    gone = np.isin(np.searchsorted(bounds, starts, "right") - 1, chapters)
    shared = np.array([paragraph in lines for paragraph in paragraphs], bool) & ~gone
    if (gone | shared).all():  # a text of nothing but such lines is no story with boilerplate in it
        shared[:] = False
    left = [paragraph for paragraph, out in zip(paragraphs, (gone | shared).tolist(), strict=True) if not out]
    document["text"] = "\n".join(left)
    line_nos = document["line_nos"] or [0] * len(paragraphs)
    return [
        (document["place"], line_nos[i], "drop_line", SHARED_LINE, paragraphs[i], "", 0, len(paragraphs[i]))
        for i in np.flatnonzero(shared).tolist()
    ]


def _parts(documents: Iterator[dict[str, Any]], vocabulary: Vocabulary) -> Iterator[pack.Part]:
    tokenizer = _tokenizer(vocabulary.content)
    for document in documents:
        doc_id, text, ends = document["doc_id"], document["text"], document["records"]
        if ends is None:
            yield pack.Part(doc_id, text, stream(tokenizer, text), vocabulary.prefix, (vocabulary.eos_id,))
            continue
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            yield pack.Part(doc_id, text[start:end], stream(tokenizer, text[start:end]), char_start=start)


@functools.lru_cache(maxsize=1)
def _tokenizer(content: str) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_str(content)


def collect_duplicates(shard: int, gone: list[Gone], work: str) -> dict[str, Any]:
    """Write what dedup took out of a shard's documents: whole ones, and chapters of those that stay."""
    table = []
    for batch_start in range(0, len(gone), 256):
        batch = gone[batch_start : batch_start + 256]
        rows = sorted({one.row for one in batch})
        documents = dict(
            zip(rows, parts.take(storage.join(work, f"clean-{shard:05d}.documents.parquet"), rows), strict=True)
        )
        for one in batch:
            document = documents[one.row]
            title, text = document["title"], document["text"]
            if one.chapter >= 0:
                bounds = [0, *document["chapter_ends"]]
                title = document["chapter_titles"][one.chapter]
                text = text[bounds[one.chapter] : bounds[one.chapter + 1]].rstrip("\n")
            table.append((document["doc_id"], document["source"], one.kept_doc_id, one.similarity, title, text))
    parts.write(storage.join(work, f"duplicates-{shard:05d}.parquet"), parts.table(table, parts.DUPLICATES))
    return {"duplicates": len(table), "characters": sum(len(row[-1]) - row[-1].count("\n") for row in table)}


def publish(*moves: tuple[str, str, int | None]) -> dict[str, Any]:
    """Put finished parts where they belong, rows numbered through the corpus from the number given; those rows' SHA-256."""
    hashes = []
    for source, target, first_row in moves:
        if first_row is None:
            storage.write_bytes(target, storage.read_bytes(source))
        else:
            hashes.append(parts.renumber(source, target, first_row))
    return {"sha256": hashes}
