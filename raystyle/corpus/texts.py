"""Clean text of a few works, read in this process: for what measures texts and needs neither rows nor Ray.

The same steps as `prepare`: list, decode, clean, judge. Without duplicates taken out, for which all texts must be known.
A directory that `prepare` made is read as it is.
"""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import Literal, NamedTuple

import pyarrow.parquet as pq

from raystyle import storage
from raystyle.config import CorpusConfig
from raystyle.corpus import manifest
from raystyle.corpus.clean import clean, split
from raystyle.corpus.encodings import Unreadable
from raystyle.corpus.packs import load_rules
from raystyle.corpus.quality import Limits, objection
from raystyle.corpus.records import read_unit
from raystyle.corpus.rules import Rules
from raystyle.corpus.sources import Rejection, Source, Text, list_sources, plan_units
from raystyle.corpus.stages import place
from raystyle.errors import DataError, StorageError

# What is measured on texts is as good from this much as from a library; a prepared directory may hold a thousand times it.
MAX_CHARS = 30_000_000
READ_ROWS = 256
_COMPRESSION = re.compile(r"\.(?:gz|zst|bz2|xz)$", re.IGNORECASE)


class Document(NamedTuple):
    """A work, or a chapter of one: where it comes from, its title where one is known, and its clean text."""

    source: str
    title: str | None
    text: str


def read_texts(
    paths: str | Iterable[str],
    *,
    document_unit: Literal["work", "chapter"] = "work",
    part: Literal["documents", "heldout"] = "documents",
    rules: Rules | None = None,
    to_simplified: str = CorpusConfig.to_simplified,
    max_bytes: int = CorpusConfig.max_source_bytes,
    max_chars: int = MAX_CHARS,
) -> tuple[list[Document], list[Rejection]]:
    """The texts at files, directories, globs or URIs, clean and in order; and what was not read, with the reason.

    `rules` are the defaults of `prepare` where None. Of a prepared directory, `part` is read: it holds what its own
    `document_unit` made, and the other parameters do not matter but `max_chars`: of more text than that, every document
    gives the same share of its beginning. Raises `DataError` where a path does not exist, or has no
    text at all, not even one that is rejected; `StorageError` where remote storage fails.
    """
    paths = [paths] if isinstance(paths, str) else list(paths)
    made = [path for path in paths if storage.exists(storage.join(path, manifest.NAME))]
    documents = [document for path in made for document in _read_part(path, part, max_chars)]
    raw = [path for path in paths if path not in made]
    if not raw:
        return documents, []
    sources, rejections = list_sources(raw)
    rules = rules or load_rules(CorpusConfig.rules)
    for unit in plan_units(sources):
        reading = read_unit(unit, text_column="text", title_column=None, encoding=None, max_bytes=max_bytes)
        try:
            for text in reading.texts:
                if isinstance(text, Rejection):
                    rejections.append(text)
                    continue
                for document in _cleaned(unit.source, text, rules, to_simplified, document_unit):
                    (documents if isinstance(document, Document) else rejections).append(document)  # type: ignore[arg-type]
        except Unreadable as refusal:
            rejections.append(Rejection(unit.source.uri, refusal.reason, refusal.detail))
        except StorageError as error:
            if storage.is_remote(unit.source.location):  # everyone's trouble, not this file's
                raise
            rejections.append(Rejection(unit.source.uri, "unreadable", str(error)))
    return documents, rejections


def _cleaned(
    source: Source, text: Text, rules: Rules, to_simplified: str, document_unit: str
) -> Iterator[Document | Rejection]:
    name = place(source, text)
    cleaned, _ = clean(text.text, rules, to_simplified=to_simplified)
    limits = Limits(**{field: getattr(CorpusConfig, field) for field in Limits._fields})
    problem = (
        objection(cleaned.text, text.text, cleaned.solid_in, limits)
        if cleaned.text
        else ("no_text_left", f"the rules removed all {cleaned.lines_in} lines")
    )
    if problem:
        yield Rejection(name, *problem)
        return
    stem = PurePosixPath(_COMPRESSION.sub("", source.relpath)).stem if text.record is None else None
    for number, (title, content) in enumerate(split(cleaned, document_unit)):
        yield Document(name, title or (None if number else text.title or stem), content)


def _read_part(directory: str, part: str, max_chars: int) -> Sequence[Document]:
    uri = storage.join(directory, manifest.NAME)
    if (found_format := storage.read_json(uri).get("format")) != manifest.FORMAT:
        raise DataError(f"`{uri}` has format {found_format}\nhint: prepare it again with this version")
    files = storage.list_files(storage.join(directory, part), (".parquet",)) if _has(directory, part) else []
    if not files:
        raise DataError(
            f"`{directory}` holds no {part} documents\n"
            + (
                "hint: prepare it again with `--heldout_fraction 0.1`"
                if part == "heldout"
                else "hint: prepare it again"
            )
        )
    # Texts count about a byte for Latin letters, three for Chinese; the share is the same for every document.
    sizes = [_text_bytes(file.uri) for file in files]
    share = min(1.0, 3 * max_chars / max(1, sum(sizes)))
    found = []
    for file in files:
        with storage.open_input(file.uri) as stream:
            for batch in pq.ParquetFile(stream).iter_batches(READ_ROWS, columns=["source", "title", "text"]):
                for row in batch.to_pylist():
                    text = row["text"] if share == 1 else row["text"][: math.ceil(len(row["text"]) * share)]
                    found.append(Document(row["source"], row["title"], text))
    return found


def _text_bytes(uri: str) -> int:
    """What the texts of a file take, from its footer."""
    with storage.open_input(uri) as stream:
        metadata = pq.ParquetFile(stream).metadata
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        columns = [group.column(number) for group in groups for number in range(group.num_columns)]
        return sum(column.total_uncompressed_size for column in columns if column.path_in_schema == "text")


def _has(directory: str, part: str) -> bool:
    return storage.exists(storage.join(directory, part))
