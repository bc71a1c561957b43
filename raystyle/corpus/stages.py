"""What a task does with its shard: clean a group of sources, or pack a range of documents.

A task writes its parts under names that follow from the plan, then a marker with the key of all that decides them. A
task whose marker is already there with the same key has nothing to do: that is how a run continues after a crash.
Imports no ray: each of these runs anywhere.
"""

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from raystyle import storage
from raystyle.corpus import pack, parts
from raystyle.corpus.clean import Cleaned, clean, split
from raystyle.corpus.encodings import Unreadable
from raystyle.corpus.rules import Rules
from raystyle.corpus.shards import Entry, piece_name
from raystyle.corpus.sources import Record, Rejection, Source, read_records
from raystyle.errors import StorageError
from raystyle.tokens import encode

SAMPLES_PER_RULE = 4


class Settings(NamedTuple):
    """The config fields that decide what documents and rows are."""

    records: str
    document_unit: str
    text_column: str
    max_seq_length: int
    segment_length: int


class Vocabulary(NamedTuple):
    """A tokenizer as plain values: its core as JSON, and the special ids that packing needs."""

    content: str
    digest: str
    prefix: tuple[int, ...]
    eos_id: int
    pad_id: int


def key_of(*values: Any) -> str:
    """SHA-256 of values that are JSON."""
    return hashlib.sha256(json.dumps(values, ensure_ascii=False, sort_keys=True).encode()).hexdigest()


def _finished(marker: str, key: str) -> dict[str, Any] | None:
    if storage.exists(marker) and (found := storage.read_json(marker)).get("key") == key:
        return dict(found)
    return None


def clean_shard(index: int, sources: list[Source], work: str, rules: Rules, settings: Settings) -> dict[str, Any]:
    """Read, decode, clean and split a group of sources; the marker that says what came of it."""
    stem = storage.join(work, f"clean-{index:05d}")
    key = key_of([[s.location, s.relpath, s.size, s.mtime_ns] for s in sources])
    if marker := _finished(f"{stem}.json", key):
        return marker
    documents: list[tuple[Any, ...]] = []
    removed: list[tuple[Any, ...]] = []
    rejected: list[Rejection] = []
    inputs = []
    hits: Counter[str] = Counter()
    samples: dict[str, list[str]] = {}
    for source in sources:
        entry, kept, taken, refused = _clean_source(source, rules, settings)
        for row in taken:
            hits[row[3]] += 1
            if len(found := samples.setdefault(row[3], [])) < SAMPLES_PER_RULE and row[4].strip():
                found.append(row[4].strip()[:200])
        inputs.append({**entry, "documents": len(kept), "removed": len(taken), "rejected": len(refused)})
        documents += kept
        removed += taken
        rejected += refused
    parts.write(f"{stem}.documents.parquet", parts.table(documents, parts.LEDGER))
    parts.write(f"{stem}.removed.parquet", parts.table(removed, parts.REMOVED))
    parts.write(f"{stem}.rejected.parquet", parts.table([tuple(r) for r in rejected], parts.REJECTED))
    marker = {"key": key, "shard": index, "inputs": inputs, "hits": dict(hits), "samples": samples}
    storage.write_json(f"{stem}.json", marker)
    return marker


def _clean_source(
    source: Source, rules: Rules, settings: Settings
) -> tuple[dict[str, Any], list[Any], list[Any], list[Rejection]]:
    """One source's entry in the manifest, its documents, its removals, and what was refused."""
    entry: dict[str, Any] = {
        "source": source.uri,
        "relpath": source.relpath,
        "size": source.size,
        "mtime_ns": source.mtime_ns,
    }
    entry |= {"sha256": None, "encoding": None, "lines": 0, "characters_in": 0, "characters_kept": 0}
    try:
        data = storage.read_bytes(source.location)
        entry["sha256"] = hashlib.sha256(data).hexdigest()
        entry["encoding"], records = read_records(source, data, settings.text_column)
    except Unreadable as refusal:
        return entry, [], [], [Rejection(source.uri, refusal.reason, refusal.detail)]
    except StorageError as error:
        # A local file that cannot be read is that file's trouble; storage that fails is everyone's, and a later run's.
        if storage.is_remote(source.location):
            raise
        return entry, [], [], [Rejection(source.uri, "unreadable", str(error))]
    documents: list[Any] = []
    removed: list[Any] = []
    rejected: list[Rejection] = []
    joined = _Joined()
    for record in records:
        if isinstance(record, Rejection):
            rejected.append(record)
            continue
        cleaned = clean(record.text, rules, from_start=settings.records == "documents")
        place = source.uri if record.line_no is None else f"{source.uri}#{record.line_no}"
        removed += [(place, *removal) for removal in cleaned.removals]
        entry["lines"] += cleaned.lines_in
        entry["characters_in"] += cleaned.chars_in
        entry["characters_kept"] += sum(len(line.text) for line in cleaned.lines)
        if not cleaned.lines:
            rejected.append(Rejection(place, "no_text_left", f"the rules removed all {cleaned.lines_in} lines"))
        elif settings.records == "segments":
            joined.add(cleaned)
        else:
            documents += list(_documents(source, record, cleaned, settings.document_unit))
    if joined.ends:
        documents.append(_document(source, None, 0, None, joined.text, joined.ends))
    return entry, documents, removed, rejected


class _Joined:
    """The records of a source put together again as the one text they were cut from."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.ends: list[int] = []
        self._length = 0

    def add(self, cleaned: Cleaned) -> None:
        """Append a record; a line break beside its text, which cleaning took as a blank line, is put back once."""
        broken = bool(self.pieces) and self.pieces[-1].endswith("\n")
        before = "\n" if self.pieces and not broken and cleaned.lines[0].line_no > 1 else ""
        after = "\n" if cleaned.lines[-1].line_no < cleaned.lines_in else ""
        self.pieces.append(before + cleaned.text + after)
        self._length += len(self.pieces[-1])
        self.ends.append(self._length)

    @property
    def text(self) -> str:
        return "".join(self.pieces)


def _documents(source: Source, record: Record, cleaned: Cleaned, unit: str) -> Iterator[tuple[Any, ...]]:
    for ordinal, (title, text) in enumerate(split(cleaned, unit)):
        yield _document(source, record.line_no, ordinal, title, text, None)


def _document(
    source: Source, line_no: int | None, ordinal: int, title: str | None, text: str, ends: list[int] | None
) -> tuple[Any, ...]:
    """A row of `parts.LEDGER`. Parts of one piece get one group: they are held out together or not at all."""
    name = [source.relpath, line_no, f"#{ordinal}" if title is None else piece_name(title)]
    group = json.dumps(name, ensure_ascii=False)
    doc_id = key_of(source.relpath, line_no, ordinal, text)[:20]
    if title is None and line_no is None and ordinal == 0:
        title = PurePosixPath(source.relpath.partition("#")[0]).stem
    return doc_id, source.uri, title, text, group, len(text.encode()), ends


def pack_shard(
    kind: str, index: int, entries: list[Entry], work: str, vocabulary: Vocabulary | None, settings: Settings
) -> dict[str, Any]:
    """Collect a range of documents and, where there is a tokenizer and they are to be trained on, pack their rows."""
    stem = storage.join(work, f"{kind}-{index:05d}")
    key = key_of([entry.doc_id for entry in entries], vocabulary.digest if vocabulary else None, settings)
    if marker := _finished(f"{stem}.json", key):
        return marker
    rows_of: dict[int, list[int]] = {}
    for entry in entries:
        rows_of.setdefault(entry.shard, []).append(entry.row)
    chosen = []
    for shard, rows in rows_of.items():
        chosen += parts.read(storage.join(work, f"clean-{shard:05d}.documents.parquet")).take(rows).to_pylist()
    columns = {name: [document[name] for document in chosen] for name in parts.DOCUMENTS.names}
    parts.write(f"{stem}.documents.parquet", parts.table(columns, parts.DOCUMENTS))
    marker = {"key": key, "rows": None, "tokens": None, "content": key_of(columns["doc_id"])}
    if vocabulary and kind == "documents":
        packed = pack.pack(
            _tokens(chosen, vocabulary), settings.max_seq_length, settings.segment_length, vocabulary.pad_id
        )
        parts.write(f"{stem}.rows.parquet", parts.rows_table(packed, 0), parts.ROWS_PER_GROUP)
        marker |= {"rows": len(packed.input_ids_NT), "tokens": packed.tokens, "content": packed.digest()}
    storage.write_json(f"{stem}.json", marker)
    return marker


def _tokens(documents: list[dict[str, Any]], vocabulary: Vocabulary) -> Iterator[pack.Tokens]:
    tokenizer = _tokenizer(vocabulary.content)
    for document in documents:
        doc_id, text, ends = document["doc_id"], document["text"], document["records"]
        if ends is None:
            ids, offsets = encode(tokenizer, text)
            yield pack.document(doc_id, ids, offsets, len(text), vocabulary.prefix, vocabulary.eos_id)
            continue
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            ids, offsets = encode(tokenizer, text[start:end])
            yield pack.Tokens(doc_id, ids, np.asarray(offsets + start), end)


@functools.lru_cache(maxsize=1)
def _tokenizer(content: str) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_str(content)


def publish_shard(kind: str, index: int, first_row: int | None, work: str, output: str) -> dict[str, Any]:
    """Put a finished shard's parts where they belong, its rows numbered through the corpus; the rows' SHA-256."""
    stem = storage.join(work, f"{kind}-{index:05d}")
    name = parts.part_name(index)
    suffix = "removed" if kind == "clean" else "documents"
    target = "removed" if kind == "clean" else kind
    storage.write_bytes(storage.join(output, target, name), storage.read_bytes(f"{stem}.{suffix}.parquet"))
    if first_row is None:
        return {"sha256": None}
    return {"sha256": parts.renumber(f"{stem}.rows.parquet", storage.join(output, "rows", name), first_row)}
