"""A unit's texts, one after the other, from whatever it turns out to be: plain text, JSONL, JSON, Parquet or EPUB.

What is a record of its own (a line of JSONL, a row of Parquet) fails alone; a work, which is one text, is refused whole.
Never more is held than one record, one row group or one work, and none of these beyond a cap.
"""

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Iterator
from contextlib import closing
from typing import Any, NamedTuple, cast

from raystyle.corpus import containers
from raystyle.corpus.encodings import Decoded, Unreadable, decode, decode_record, legacy_encoding
from raystyle.corpus.epub import read_epub
from raystyle.corpus.sources import UNIT_BYTES, Kind, Rejection, Source, Text, Unit, kind_of, unify_line_ends

_WAY_OUT = "split it, or raise `--max_source_bytes`"
# Of Parquet: what a batch of rows aims at, and how much longer the next one may be.
_BATCH_BYTES, _BATCH_ROWS, _GROWTH = 16 << 20, 1024, 4
# A batch has no more rows than make this many bytes if each is as long as its whole row group; but always so many rows.
_MOST_BYTES, _FEWEST_ROWS = 1 << 30, 32
_JSON_START = re.compile(rb'(?:\xef\xbb\xbf)?\s*(?:\[\s*[{"]|\{\s*")')
_PAGE_START = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:\?xml|!doctype|html)", re.IGNORECASE)
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")


class Options(NamedTuple):
    """What the user says about texts in their sources."""

    text_column: str
    title_column: str | None
    encoding: str | None
    max_bytes: int


class Reading:
    """The texts of a unit, lazily, and what is known of it once they have all been read.

    Iterating raises `StorageError`, or `Unreadable` where the whole unit is refused: then nothing came before it.
    `encoding` and `confidence` are None for Parquet; of many records, all the encodings and the mean by bytes. `sha256` is
    of the bytes that were read: those of the file (or the archive's member), of the records in a range of a JSONL, of the
    column chunks in a range of a Parquet; empty where a source was refused as too large.
    """

    def __init__(self, unit: Unit, options: Options) -> None:
        self.encoding: str | None = None
        self.confidence: float | None = None
        self.sha256 = ""
        self._sure = self._bytes = 0.0
        self.texts: Iterator[Text | Rejection] = _read(unit, options, self)

    def decoded(self, found: Decoded, num_bytes: int) -> None:
        """Note how a piece of the unit was decoded."""
        self._sure += found.confidence * num_bytes
        self._bytes += num_bytes
        self.confidence = round(self._sure / max(1, self._bytes), 3)
        if found.encoding != self.encoding:
            names = dict.fromkeys([*(self.encoding or found.encoding).split(" + "), *found.encoding.split(" + ")])
            self.encoding = " + ".join(names)


def read_unit(
    unit: Unit, *, text_column: str, title_column: str | None, encoding: str | None, max_bytes: int
) -> Reading:
    """Begin to read a unit; nothing happens before its texts are asked for. `max_bytes` caps a work, and a record."""
    return Reading(unit, Options(text_column, title_column, encoding, max_bytes))


class _Place(NamedTuple):
    """What a piece of the reading is called, and what it all belongs to."""

    uri: str
    kind: Kind | None
    size: int | None
    in_zip: bool
    options: Options
    reading: Reading
    # The legacy encoding that a JSONL begins in.
    likely: str | None = None

    def beginning(self, head: bytes) -> "_Place":
        """The place, where the file begins so: the same for each range of it."""
        return self._replace(likely=legacy_encoding(head) if self.options.encoding is None else None)


def _read(unit: Unit, options: Options, reading: Reading) -> Iterator[Text | Rejection]:
    source = unit.source
    place = _Place(source.uri, source.kind, source.size, source.member is not None, options, reading)
    if source.member is not None:
        yield from _whole(_member_stream(source), place)
        return
    with closing(containers.StorageFile(source.location)) as file:
        if unit.end is not None:
            head = file.read(containers.HEAD)
            if source.kind == "parquet":
                yield from _parquet(file, place, range(unit.start, unit.end))
                return
            if not containers.looks_like(head) and not _is_wide(head):
                yield from _jsonl_range(file, unit, place.beginning(head))
                return
            if unit.start:
                return  # not what its name says: the first range reads all of it
            file.seek(0)
        yield from _whole(containers.Stream(file.read, "file"), place)


def _member_stream(source: Source) -> containers.Stream:
    archive = containers.open_zip(source.location, source.mtime_ns)
    with containers.damage("member"):
        return containers.Stream(cast(Any, archive.open(cast(str, source.member))).read1, "member")


def _whole(stream: containers.Stream, place: _Place) -> Iterator[Text | Rejection]:
    found = False
    try:
        for text in _content(containers.buffered(stream), place):
            found = True
            yield text
        if not found:
            raise Unreadable("empty", "no record")
    except Unreadable as refusal:
        if refusal.reason == "too_large":
            raise
        _finish(stream, place.reading)
        raise
    _finish(stream, place.reading)


def _finish(stream: containers.Stream, reading: Reading) -> None:
    """Read what is left for the hash; where that fails, the refusal of the content has said so."""
    try:
        stream.drain()
        reading.sha256 = stream.sha256
    except Unreadable:
        reading.sha256 = stream.sha256


def _content(stream: io.BufferedReader, place: _Place, inside: str | None = None) -> Iterator[Text | Rejection]:
    """The texts of what a stream holds, whatever its name says."""
    head = stream.peek(containers.HEAD)[: containers.HEAD]
    looks = containers.looks_like(head)
    options = place.options
    if looks in containers.COMPRESSIONS.values():
        if inside:
            raise Unreadable("unsupported", f"{looks} inside {inside}; unpack it first")
        yield from _content(containers.decompressed(stream, str(looks)), place._replace(size=None), looks)
    elif looks == "zip":
        data = containers.held(stream, options.max_bytes, "unpack it, or raise `--max_source_bytes`", place.size)
        with containers.damage("the zip's directory"):
            archive = zipfile.ZipFile(io.BytesIO(data))
        yield from _zip(archive, place)
    elif looks == "parquet":
        cap = max(options.max_bytes, UNIT_BYTES)
        way_out = "store it uncompressed under a name that ends in .parquet: then it is read in parts"
        yield from _parquet(io.BytesIO(containers.held(stream, cap, way_out, place.size)), place, None)
    elif looks:
        raise Unreadable("unsupported", f"looks like {looks}")
    elif place.kind in ("parquet", "epub"):
        raise Unreadable("damaged" if head else "empty", f"does not begin as {place.kind} does")
    else:
        yield from _textual(stream, head, place)


def _textual(stream: io.BufferedReader, head: bytes, place: _Place) -> Iterator[Text | Rejection]:
    kind = place.kind or ("json" if _JSON_START.match(head) else None)
    if kind == "json" and _is_jsonl(head):
        kind = "jsonl"
    if kind == "jsonl" and not _is_wide(head):
        yield from _jsonl(stream, 0, None, place.beginning(head))
        return
    if kind is None and _PAGE_START.match(head):
        raise Unreadable("unsupported", "looks like an HTML or XML page")
    way_out = "store it as JSONL, one record a line" if kind == "json" else _WAY_OUT
    data = containers.held(stream, place.options.max_bytes, way_out, place.size)
    try:
        found = decode(data, place.options.encoding)
    except Unreadable as refusal:
        if place.kind is None and refusal.reason in ("nul", "undecodable"):
            raise Unreadable("unsupported", f"looks like a binary file: {refusal.detail}") from refusal
        raise
    place.reading.decoded(found, len(data))
    if kind is None or kind == "text":
        yield Text(None, None, unify_line_ends(found.text), tuple(found.bad_lines))
    elif found.bad_lines:
        raise Unreadable("undecodable", f"{len(found.bad_lines)} lines; the first is line {found.bad_lines[0][0]}")
    elif kind == "jsonl":
        yield from _jsonl_text(found, place)
    else:
        yield from _json(data, found.text, place)


def _zip(archive: zipfile.ZipFile, place: _Place) -> Iterator[Text | Rejection]:
    """The texts of an archive that was not listed as one: an EPUB, or a zip under another name."""
    if containers.is_epub(archive):
        book = read_epub(archive, place.options.max_bytes)
        place.reading.decoded(Decoded("", book.encoding, book.confidence, []), len(book.text))
        yield _whole_text(None, book.title, book.text)
        yield from (Rejection(f"{place.uri}#{name}", reason, detail) for name, reason, detail in book.missing)
        return
    if place.kind == "epub":
        raise Unreadable("damaged", "a zip, but without META-INF/container.xml no EPUB")
    if looks := containers.foreign_archive(archive):
        raise Unreadable("unsupported", f"looks like {looks}")
    if place.in_zip:
        raise Unreadable("unsupported", "a zip inside a zip; unpack it first")
    for member in containers.members(archive):
        uri = f"{place.uri}#{member.name}"
        inner = place._replace(uri=uri, kind=kind_of(member.name), size=member.size, in_zip=True)
        try:
            if member.refusal:
                raise Unreadable(*member.refusal)
            with containers.damage("member"):
                stream = containers.Stream(cast(Any, archive.open(member.key)).read1, "member")
            for text in _content(containers.buffered(stream), inner):
                if isinstance(text, Text):
                    text = text._replace(record="#".join(filter(None, [member.name, text.record])))
                yield text
        except Unreadable as refusal:
            yield Rejection(uri, refusal.reason, refusal.detail)


def _whole_text(record: str | None, title: str | None, text: str) -> Text:
    if "\0" in text:
        raise Unreadable("nul", f"a NUL character at {text.index(chr(0))}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Unreadable("undecodable", f"half of a surrogate pair at character {error.start}") from error
    return Text(record, title, unify_line_ends(text))


# JSON and JSONL


def _is_wide(head: bytes) -> bool:
    """Whether JSON, which begins with ASCII, is in UTF-16 or UTF-32."""
    return head.startswith(_UTF16_BOMS) or b"\0" in head[:4]


def _is_jsonl(head: bytes) -> bool:
    """Whether the first line of what calls itself JSON is an object of its own, and another follows."""
    first, _, rest = head.partition(b"\n")
    try:
        return rest.lstrip().startswith(b"{") and isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _jsonl_range(file: containers.StorageFile, unit: Unit, place: _Place) -> Iterator[Text | Rejection]:
    """The records that begin in a range of bytes, the last one to its end."""
    file.seek(max(0, unit.start - 1))
    stream = containers.buffered(containers.Stream(file.read, "file"))
    offset = unit.start
    if offset:
        offset -= 1
        while piece := stream.readline(1 << 20):
            offset += len(piece)
            if piece.endswith(b"\n"):
                break
    digest = hashlib.sha256()
    yield from _jsonl(stream, offset, unit.end, place, digest)
    place.reading.sha256 = digest.hexdigest()


def _jsonl(
    stream: io.BufferedReader, offset: int, end: int | None, place: _Place, digest: Any = None
) -> Iterator[Text | Rejection]:
    cap = place.options.max_bytes
    while end is None or offset < end:
        record = f"byte {offset}"
        try:
            line = piece = stream.readline(cap + 1)
            size = len(line)
            while piece:
                if digest:
                    digest.update(piece)
                if size <= cap or piece.endswith(b"\n"):
                    break
                piece = stream.readline(1 << 20)
                size += len(piece)
            if not line:
                return
            if size > cap + 1 or (size > cap and not line.endswith(b"\n")):
                raise containers.too_large(size, cap, "it is one record; raise `--max_source_bytes`")
        except Unreadable as refusal:
            yield Rejection(f"{place.uri}#{record}", refusal.reason, refusal.detail)
            if refusal.reason != "too_large":
                return  # damage: nothing after it can be read
        else:
            yield from _line(line, record, place)
        offset += size


def _line(line: bytes, record: str, place: _Place) -> Iterator[Text | Rejection]:
    """A line's record. Each line is decoded by itself and the file's beginning, so it is the same in whichever range."""
    try:
        if not line.strip():
            return
        encoding = place.options.encoding
        try:
            text = line.decode("utf-8") if encoding is None else None
        except UnicodeDecodeError:
            text = None
        if text is not None:
            found = Decoded(text, "utf-8", 1.0, [])
        else:
            found = decode(line, encoding) if encoding else decode_record(line, place.likely)
        if found.bad_lines:
            raise Unreadable("undecodable", f"bytes that are no {found.encoding}: {found.bad_lines[0][1][:100]}")
        place.reading.decoded(found, len(line))
        yield _text_of(_parsed(found.text.removeprefix("\ufeff").rstrip("\r\n")), record, place.options)
    except Unreadable as refusal:
        yield Rejection(f"{place.uri}#{record}", refusal.reason, refusal.detail)


def _jsonl_text(found: Decoded, place: _Place) -> Iterator[Text | Rejection]:
    """The records of a JSONL in UTF-16 or UTF-32, which is held whole."""
    codec = "utf-32-le" if "32" in found.encoding else "utf-16-le"
    offset, mark = 0, {"utf-16": 2, "utf-32": 4}.get(found.encoding, 0)
    for line in found.text.split("\n"):
        record = f"byte {offset}"
        offset, mark = offset + mark + len((line + "\n").encode(codec, "surrogatepass")), 0
        if line.strip():
            try:
                yield _text_of(_parsed(line), record, place.options)
            except Unreadable as refusal:
                yield Rejection(f"{place.uri}#{record}", refusal.reason, refusal.detail)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError, MemoryError) as error:
        raise Unreadable("bad_json", str(error)) from error


def _text_of(value: Any, record: str | None, options: Options) -> Text:
    if not isinstance(value, dict):
        raise Unreadable("bad_json", f"a {type(value).__name__}, not an object")
    text = value.get(options.text_column)
    if not isinstance(text, str):
        have = _storable(", ".join(f"`{name[:80]}`" for name in list(value)[:5]))
        raise Unreadable("no_text", f"no string in `{options.text_column}`; the fields are {have or 'none'}")
    title = value.get(options.title_column) if options.title_column else None
    return _whole_text(record, _title(title), text)


def _title(title: Any) -> str | None:
    return _storable(title) if isinstance(title, str) and title.strip() else None


def _storable(text: str) -> str:
    return text.encode("utf-8", "replace").decode().replace("\0", "")


def _json(data: bytes, text: str, place: _Place) -> Iterator[Text | Rejection]:
    """A JSON array of objects or of strings, or one object; JSON Lines where there is more than one value."""
    try:
        value = _parsed(text)
    except Unreadable as refusal:
        if refusal.detail.startswith("Extra data"):
            yield from _jsonl(io.BufferedReader(io.BytesIO(data)), 0, None, place.beginning(data[: containers.HEAD]))
            return
        raise
    if isinstance(value, dict):
        yield _text_of(value, None, place.options)
        return
    if not isinstance(value, list):
        raise Unreadable("bad_json", f"a {type(value).__name__}, neither an array nor an object")
    for index, item in enumerate(value):
        record = f"item {index}"
        try:
            if isinstance(item, str):
                yield _whole_text(record, None, item)
            else:
                yield _text_of(item, record, place.options)
        except Unreadable as refusal:
            yield Rejection(f"{place.uri}#{record}", refusal.reason, refusal.detail)


# Parquet


def _parquet(file: Any, place: _Place, groups: range | None) -> Iterator[Text | Rejection]:
    """The rows of a Parquet file or of a range of its row groups; a group that is damaged is refused for itself."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    options = place.options
    with containers.damage("Parquet"):
        parquet = pq.ParquetFile(file, page_checksum_verification=True)
        schema, metadata = parquet.schema_arrow, parquet.metadata
        index = schema.get_field_index(options.text_column)
    if index < 0:
        have = ", ".join(f"`{name}`" for name in schema.names[:20])
        raise Unreadable("no_text", f"no column `{options.text_column}`; the columns are {have or 'none'}")
    kind = schema.field(index).type
    value_kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(value_kind) or pa.types.is_large_string(value_kind)):
        raise Unreadable("no_text", f"column `{options.text_column}` holds {kind}, not strings")
    columns = [options.text_column]
    if options.title_column and options.title_column in schema.names:
        columns.append(options.title_column)
    if groups is not None:
        file.begin_hash()
    for group in range(metadata.num_row_groups) if groups is None else groups:
        first = row = sum(metadata.row_group(i).num_rows for i in range(group))
        rows = metadata.row_group(group).num_rows
        try:
            for batch in _batches(parquet, group, columns):
                for text, title in batch:
                    yield _row(text, title, f"row {row}", place)
                    row += 1
        except Unreadable as refusal:
            detail = f"rows {row} to {first + rows - 1}: {refusal.detail}"
            yield Rejection(f"{place.uri}#row {row}", refusal.reason, detail)
    if groups is not None:
        place.reading.sha256 = file.sha256


def _batches(parquet: Any, group: int, columns: list[str]) -> Iterator[list[tuple[Any, Any]]]:
    """The (text, title) scalars of a row group, about 16 MB at a time.

    What a file says of its size says little: equal rows are stored once, in a dictionary. So batches begin with one row,
    and grow as their size in memory allows; were all later rows the longest there can be, they stay below a cap.
    """
    with containers.damage("row group"):
        most = min(
            _BATCH_ROWS, max(_FEWEST_ROWS, _MOST_BYTES // max(1, parquet.metadata.row_group(group).total_byte_size))
        )
        batches = parquet.iter_batches(1, row_groups=[group], columns=columns, use_threads=False)
    per_row = 1
    while True:
        with containers.damage("row group"):
            batch = next(batches, None)
            if batch is None:
                return
            texts = batch.column(columns[0])
            titles = batch.column(columns[1]) if len(columns) > 1 else [None] * len(texts)
            pairs = list(zip(texts, titles, strict=True))
            per_row = max(per_row, batch.nbytes // max(1, len(batch)))
            parquet.reader.set_batch_size(max(1, min(most, _GROWTH * len(batch), _BATCH_BYTES // per_row)))
        yield pairs


def _row(text: Any, title: Any, record: str, place: _Place) -> Text | Rejection:
    options = place.options
    try:
        try:
            value = text.as_py()
            heading = title.as_py() if title is not None else None
        except (UnicodeDecodeError, ValueError, LookupError) as error:
            raise Unreadable("undecodable", str(error)[:300]) from error
        if value is None:
            raise Unreadable("no_text", f"no string in `{options.text_column}`")
        found = _whole_text(record, _title(heading), value)
        if (size := len(value.encode())) > options.max_bytes:
            raise containers.too_large(size, options.max_bytes, "it is one record; raise `--max_source_bytes`")
        return found
    except Unreadable as refusal:
        return Rejection(f"{place.uri}#{record}", refusal.reason, refusal.detail)
