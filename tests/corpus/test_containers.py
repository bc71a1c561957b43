import bz2
import gzip
import hashlib
import io
import lzma
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest

from raystyle.corpus.containers import COMPRESSIONS, Stream, buffered, decompressed, held, looks_like, members
from raystyle.corpus.encodings import Unreadable

COMPRESS = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": lambda data: pa.Codec("zstd").compress(data, asbytes=True),
}
DATA = "".join(f"第{i}行，他说了一句话，又不说了。\n" for i in range(20_000)).encode()


@pytest.mark.parametrize("name", COMPRESSIONS.values())
def test_compressed_data_comes_back_and_is_known_by_its_head(name: str) -> None:
    once = COMPRESS[name](DATA)
    assert looks_like(once[:300]) == name
    assert decompressed(io.BytesIO(once), name).read() == DATA
    assert decompressed(io.BytesIO(once + COMPRESS[name](b"more")), name).read() == DATA + b"more"


@pytest.mark.parametrize("name", COMPRESSIONS.values())
def test_what_comes_before_a_cut_is_given_and_then_the_cut_is_said(name: str) -> None:
    stream = decompressed(io.BytesIO(COMPRESS[name](DATA)[:-12]), name)
    got = []
    with pytest.raises(Unreadable) as refused:
        while line := stream.readline():
            got.append(line)
    assert refused.value.reason == "truncated" and refused.value.detail.startswith(name)
    assert DATA.startswith(b"".join(got))
    if name != "bzip2":  # whose blocks are larger than this
        assert len(got) > 10_000


@pytest.mark.parametrize("name", COMPRESSIONS.values())
def test_a_bomb_stops_at_the_cap(name: str) -> None:
    bomb = COMPRESS[name](bytes(64 << 20))
    source = io.BytesIO(bomb)
    with pytest.raises(Unreadable, match="more, and 1,000,000 bytes are allowed; split it") as refused:
        held(decompressed(source, name), 1_000_000, "split it", None)
    assert refused.value.reason == "too_large"


def test_a_stream_hashes_what_it_reads() -> None:
    stream = Stream(io.BytesIO(DATA).read, "file")
    assert buffered(stream).readline() == DATA.splitlines(keepends=True)[0]
    stream.drain()
    assert stream.sha256 == hashlib.sha256(DATA).hexdigest()


def test_binaries_are_named_and_text_is_not_taken_for_one() -> None:
    assert looks_like(b"%PDF-1.7\n") == "a PDF"
    assert looks_like(b"\xff\xd8\xff\xe0\0\x10JFIF") == "a JPEG image"
    assert looks_like(b"MZ\x90\0\x03\0\0\0") == "an executable (Windows)"
    assert looks_like(bytes(60) + b"BOOKMOBI") == "a Mobipocket or Kindle book"
    for text in ["MZ说：你来了。", "BM 是什么？", "PAR1", "ID3号楼", "RIFF", "他说"]:
        assert looks_like(text.encode()) is None
        assert looks_like((text * 100).encode("utf-8")) is None


@pytest.mark.parametrize("begin", ["BMW在門前。", "ID3，", "MZ走到", "PAR1，", "RIFF", "OggS", "BZh91AY，"])
def test_a_novel_in_a_legacy_encoding_is_text_whatever_it_begins_with(begin: str) -> None:
    for encoding in ("gb18030", "cp950"):
        assert looks_like((begin + "他走到門前，又站住了。" * 50).encode(encoding)) is None
    assert looks_like(b"BM\x36\x00\x0c\x00\x00\x00\x00\x00") == "a BMP image"
    assert looks_like(b"ID3\x03\x00\x00\x00\x00\x0f\x76TIT2") == "an MP3"
    assert looks_like(bz2.compress(b"")) == "bzip2"


def test_members_say_why_they_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ["a.txt", "b/", "b/_c.txt", "d.zip"]:
            archive.writestr(name, b"x")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a.txt", b"later")
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02", 0, data.rindex(b"d.zip"))
    data[at + 8] |= 1  # the flag for encryption
    path.write_bytes(data)
    with zipfile.ZipFile(path) as archive:
        found = {(m.name, m.refusal and m.refusal[0], m.size) for m in members(archive)}
    assert found == {
        ("a.txt", "superseded", 1), ("a.txt", None, 5), ("b/_c.txt", "hidden", 1), ("d.zip", "encrypted", 1)
    }  # fmt: skip
