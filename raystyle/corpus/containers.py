"""What texts come wrapped in: compression and zip archives, told by their first bytes as well as by their names.

Whatever is wrong with the bytes of an archive comes out as one thing, `Unreadable`, with what is left of the data before
it; trouble with storage stays a `StorageError`. Nothing is unpacked beyond what is asked for, so a bomb does no harm.
"""

import bz2
import gzip
import hashlib
import io
import lzma
import struct
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import IO, Any, BinaryIO, NamedTuple, cast

import pyarrow as pa

from raystyle import storage
from raystyle.corpus.encodings import Unreadable
from raystyle.errors import StorageError

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bzip2", ".xz": "xz"}
# Bytes that are looked at to tell what a stream holds.
HEAD = 1 << 16
# One request to object storage.
_REMOTE_BUFFER = 8 << 20

# (offset, bytes there, what it is), from the formats' specifications; the short ones are confirmed by a NUL in the head,
# which these formats have there and no text has in a legacy encoding: a novel in GBK may begin with `BMW` or `ID3`. Bzip2
# alone has none, but says what comes next: a block, or the end.
_SIGNATURES = [
    (0, b"\x1f\x8b\x08", "gzip"),
    (0, b"\x28\xb5\x2f\xfd", "zstd"),
    (0, b"BZh", "bzip2"),
    (0, b"\xfd7zXZ\x00", "xz"),
    (0, b"PK\x03\x04", "zip"),
    (0, b"PK\x05\x06", "zip"),
    (0, b"PAR1", "parquet"),
    (0, b"%PDF-", "a PDF"),
    (0, b"\x89PNG\r\n", "a PNG image"),
    (0, b"\xff\xd8\xff", "a JPEG image"),
    (0, b"GIF87a", "a GIF image"),
    (0, b"GIF89a", "a GIF image"),
    (0, b"RIFF", "a WebP image, WAV or AVI"),
    (0, b"BM", "a BMP image"),
    (0, b"II*\x00", "a TIFF image"),
    (0, b"MM\x00*", "a TIFF image"),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office document (.doc, .xls)"),
    (0, b"{\\rtf", "an RTF document"),
    (60, b"BOOKMOBI", "a Mobipocket or Kindle book"),
    (60, b"TEXtREAd", "a PalmDOC book"),
    (0, b"ITSF", "a CHM help file"),
    (0, b"AT&TFORM", "a DjVu document"),
    (0, b"Rar!\x1a\x07", "a RAR archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (257, b"ustar", "a tar archive"),
    (0, b"\x7fELF", "an executable (ELF)"),
    (0, b"MZ", "an executable (Windows)"),
    (0, b"\xcf\xfa\xed\xfe", "an executable (macOS)"),
    (0, b"\xca\xfe\xba\xbe", "a Java class or macOS executable"),
    (0, b"SQLite format 3\x00", "an SQLite database"),
    (0, b"ID3", "an MP3"),
    (0, b"OggS", "an Ogg sound"),
    (0, b"fLaC", "a FLAC sound"),
    (4, b"ftyp", "an MP4 film"),
    (0, b"\x00\x01\x00\x00\x00", "a font"),
    (0, b"wOF", "a font"),
]
_SHORT = (b"BM", b"MZ", b"ID3", b"RIFF", b"wOF", b"BZh", b"PAR1", b"ftyp", b"ITSF", b"OggS", b"fLaC", b"ustar")
_BZIP2_BLOCKS = (b"1AY&SY", b"\x17\x72\x45\x38\x50\x90")

# All that the decompressors, zipfile, the HTML parser and Arrow raise for damaged bytes. Huge sizes in a damaged header
# are a MemoryError or an OverflowError.
DAMAGE = (
    EOFError, OSError, ValueError, LookupError, NotImplementedError, RuntimeError, AssertionError, AttributeError, TypeError,
    MemoryError, OverflowError, struct.error, zlib.error, lzma.LZMAError, zipfile.BadZipFile, pa.ArrowException,
)  # fmt: skip


def looks_like(head: bytes) -> str | None:
    """What the first bytes of a file say it is; None for what may be text."""
    for offset, signature, name in _SIGNATURES:
        if head.startswith(signature, offset) and (signature not in _SHORT or _is_confirmed(signature, head)):
            return name
    return None


def _is_confirmed(signature: bytes, head: bytes) -> bool:
    return head[4:10] in _BZIP2_BLOCKS if signature == b"BZh" else b"\0" in head[:512]


@contextmanager
def damage(what: str) -> Iterator[None]:
    """Turn every error that damaged bytes cause into an `Unreadable` about `what`."""
    try:
        yield
    except (Unreadable, StorageError):
        raise
    except DAMAGE as error:
        message = " ".join(str(error).split())[:300] or type(error).__name__
        if isinstance(error, NotImplementedError):
            raise Unreadable("unsupported", f"{what}: {message}") from error
        if isinstance(error, RuntimeError) and "password" in message:
            raise Unreadable("encrypted", f"{what}: needs a password") from error
        cut = isinstance(error, EOFError) or "truncated" in message.lower()
        raise Unreadable("truncated" if cut else "damaged", f"{what}: {message}") from error


class Stream(io.RawIOBase):
    """A reader that hashes what it reads and gives all that comes before an error, which it raises as `Unreadable`."""

    def __init__(self, read: Callable[[int], bytes], what: str) -> None:
        self._read, self._what = read, what
        self._digest = hashlib.sha256()
        self._error: Unreadable | None = None

    @property
    def sha256(self) -> str:
        """Of the bytes read so far."""
        return self._digest.hexdigest()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        filled = 0
        while filled < len(buffer) and self._error is None:
            try:
                with damage(self._what):
                    data = self._read(len(buffer) - filled)
            except Unreadable as error:
                self._error = error
                break
            if not data:
                break
            buffer[filled : filled + len(data)] = data
            filled += len(data)
        if not filled and self._error is not None:
            raise self._error
        self._digest.update(buffer[:filled])
        return filled

    def drain(self) -> None:
        """Read to the end, for the hash."""
        while self.read(1 << 20):
            pass


def buffered(stream: Stream) -> io.BufferedReader:
    return io.BufferedReader(stream, HEAD)


def decompressed(stream: BinaryIO, compression: str) -> io.BufferedReader:
    """What a compressed stream holds, its members or frames one after the other."""
    read: Callable[[int], bytes]
    if compression == "zstd":
        read = pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), "zstd").read
    elif compression == "gzip":
        read = gzip.GzipFile(fileobj=stream).read1
    elif compression == "bzip2":
        read = bz2.BZ2File(stream).read1
    else:
        read = lzma.LZMAFile(stream).read1  # noqa: SIM115
    return buffered(Stream(read, compression))


def held(stream: BinaryIO, max_bytes: int, way_out: str, size: int | None) -> bytes:
    """All of a stream that is at most `max_bytes`, for what has to be seen whole; `size` is what it says it has, if it does.

    Raises `Unreadable` above.
    """
    if size is not None and size > max_bytes:
        raise too_large(size, max_bytes, way_out)
    pieces, left = [], max_bytes + 1
    while left and (piece := stream.read(min(left, 1 << 20 if size is None else size + 1))):
        pieces.append(piece)
        left -= len(piece)
    if not left:
        raise too_large(None, max_bytes, way_out)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def too_large(size: int | None, max_bytes: int, way_out: str) -> Unreadable:
    much = "more" if size is None else f"{size:,} bytes"
    return Unreadable("too_large", f"{much}, and {max_bytes:,} bytes are allowed; {way_out}")


class StorageFile(io.RawIOBase):
    """A file of storage to read and to seek in. Every error of its own is a `StorageError`, and is kept in `error`.

    That is for `zipfile`, which takes an error of the place where a file lies for one of the file.
    """

    def __init__(self, location: str) -> None:
        self.error: StorageError | None = None
        self._location = location
        file = storage.open_input(location)
        self._file = io.BufferedReader(file, _REMOTE_BUFFER) if storage.is_remote(location) else file  # type: ignore[type-var]
        self._digest: Any = None

    def begin_hash(self) -> None:
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """Of what was read since `begin_hash`, in the order of reading."""
        return str(self._digest.hexdigest())

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int = -1) -> bytes:
        try:
            data = self._file.read(size)
        except StorageError as error:
            self.error = error
            raise
        except OSError as error:
            self.error = StorageError(f"cannot read `{self._location}`: {error}")
            raise self.error from error
        if self._digest:
            self._digest.update(data)
        return data

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


class Member(NamedTuple):
    """A file in a zip: `key` is how `zipfile` names it, `name` how its maker did."""

    key: str
    name: str
    size: int
    # Why it cannot be read, or None.
    refusal: tuple[str, str] | None


def is_epub(archive: zipfile.ZipFile) -> bool:
    return "META-INF/container.xml" in archive.NameToInfo


def members(archive: zipfile.ZipFile) -> list[Member]:
    """The files in a zip, in the archive's order."""
    found = []
    for info in archive.infolist():
        name = _member_name(info)
        refusal = None
        if name.endswith("/") or info.is_dir():
            continue
        if any(part.startswith((".", "_")) for part in name.split("/")):
            refusal = "hidden", "a name that begins with `.` or `_`"
        elif info.flag_bits & 1:
            refusal = "encrypted", "needs a password"
        elif name.lower().endswith(".zip"):
            refusal = "unsupported", "a zip inside a zip; unpack it first"
        elif archive.NameToInfo[info.filename] is not info:
            refusal = "superseded", "the archive holds a later file of the same name"
        found.append(Member(info.filename, name, info.file_size, refusal))
    return found


def _member_name(info: zipfile.ZipInfo) -> str:
    """A member's name. Without the flag for UTF-8 it is in whatever its maker's system used; `zipfile` assumes CP437."""
    name = info.filename
    if not info.flag_bits & 0x800:
        for encoding in ("utf-8", "gb18030"):
            try:
                name = info.filename.encode("cp437").decode(encoding)
                break
            except UnicodeError:
                continue
    return name.replace("\\", "/").encode("utf-8", "replace").decode()


def foreign_archive(archive: zipfile.ZipFile) -> str | None:
    """What a zip is that is no archive of texts but some program's file format."""
    names = archive.NameToInfo
    if "[Content_Types].xml" in names:
        return "an Office document (.docx, .xlsx, .pptx)"
    if "META-INF/MANIFEST.MF" in names or "AndroidManifest.xml" in names:
        return "a Java or Android package"
    if "mimetype" in names and "content.xml" in names:
        return "an OpenDocument file"
    return None


@lru_cache(maxsize=2)
def open_zip(location: str, mtime_ns: int) -> zipfile.ZipFile:
    """A zip in storage. Kept open, for members of one archive come one after the other, and its directory may be long.

    Raises `Unreadable` where it is none, `StorageError`.
    """
    file = StorageFile(location)
    try:
        with damage("the zip's directory"):
            archive = zipfile.ZipFile(cast(IO[bytes], file))
    except BaseException:
        file.close()
        if file.error:
            raise file.error from None
        raise
    # A member that is still being read keeps its archive, and so the file, from going.
    weakref.finalize(archive, file.close)
    return archive
