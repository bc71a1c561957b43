import bz2
import gzip
import hashlib
import io
import json
import lzma
import random
import time
import zipfile
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raystyle import storage
from raystyle.corpus import containers, records
from raystyle.corpus import sources as sources_module
from raystyle.corpus.encodings import Unreadable
from raystyle.corpus.records import Reading, read_unit
from raystyle.corpus.sources import Rejection, Text, Unit, list_sources, plan_units
from raystyle.errors import StorageError

NOVEL = "\n".join(f"　　他走到第{i}家门前，又站住了；门里的人说：“请进来罢。”" for i in range(60)) + "\n"
RECORDS = [{"text": f"第{i}则：今天我看见一个人，他说了这件事。\n", "name": f"题{i}"} for i in range(40)]
JSONL = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS).encode()
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": lambda data: gzip.compress(data, mtime=0),
    ".bz2": bz2.compress,
    ".xz": lambda data: lzma.compress(data, preset=1),
    ".zst": lambda data: pa.Codec("zstd").compress(data, asbytes=True),
}


def parquet(rows: list[dict[str, Any]], group: int = 15) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out, row_group_size=group, write_page_checksum=True)
    return out.getvalue()


def zip_of(names: dict[str, bytes | str]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in names.items():
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    return out.getvalue()


def epub(chapters: list[str], **extra: str) -> bytes:
    items = "".join(
        f'<item id="c{i}" href="text/c%20{i}.xhtml" media-type="application/xhtml+xml"/>' for i in range(len(chapters))
    )
    spine = "".join(f'<itemref idref="c{i}"/>' for i in range(len(chapters)))
    package = f"""<?xml version="1.0"?><package xmlns="http://www.idpf.org/2007/opf" xmlns:dc="http://purl.org/dc/elements/1.1/">
        <metadata><dc:title>山中 记</dc:title><dc:title>别名</dc:title></metadata>
        <manifest><item id="nav" href="nav.xhtml" properties="nav"/>{items}</manifest>
        <spine><itemref idref="nav"/>{spine}</spine></package>"""
    names: dict[str, bytes | str] = {"mimetype": "application/epub+zip"}
    names["META-INF/container.xml"] = (
        '<container><rootfiles><rootfile full-path="OPS/book.opf"/></rootfiles></container>'
    )
    names["OPS/book.opf"] = package
    names["OPS/nav.xhtml"] = "<html><body><nav><a>目录</a></nav></body></html>"
    names |= {
        f"OPS/text/c {i}.xhtml": f"<html><head><title>无</title></head><body>{text}</body></html>"
        for i, text in enumerate(chapters)
    }
    return zip_of(names | {name.replace("__", "/"): text for name, text in extra.items()})


class Outcome(list[Text | Rejection]):
    def __init__(self, reading: Reading) -> None:
        super().__init__(reading.texts)
        self.reading = reading

    @property
    def texts(self) -> list[Text]:
        return [text for text in self if isinstance(text, Text)]

    @property
    def rejected(self) -> list[Rejection]:
        return [text for text in self if isinstance(text, Rejection)]


def outcome(
    unit: Unit,
    text_column: str = "text",
    title_column: str | None = None,
    encoding: str | None = None,
    max_bytes: int = 1 << 20,
) -> Outcome:
    return Outcome(
        read_unit(unit, text_column=text_column, title_column=title_column, encoding=encoding, max_bytes=max_bytes)
    )


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Outcome]:
    """What comes of a file of this name and content; of its only member, where it is a zip that is listed as one."""

    def read(name: str, data: bytes, **options: Any) -> Outcome:
        (tmp_path / name).write_bytes(data)
        (unit,) = plan_units(list_sources([str(tmp_path / name)])[0])
        return outcome(unit, **options)

    return read


def refusal(read: Callable[..., Outcome], name: str, data: bytes, **options: Any) -> tuple[str, str]:
    with pytest.raises(Unreadable) as refused:
        read(name, data, **options)
    return refused.value.reason, refused.value.detail


PLAIN = {
    "txt": (NOVEL.encode("gb18030"), 1, "gb18030"),
    "jsonl": (JSONL, 40, "utf-8"),
    "json": (json.dumps(RECORDS).encode(), 40, "utf-8"),
    "parquet": (parquet(RECORDS), 40, None),
    "epub": (epub([f"<p>{line}</p>" for line in NOVEL.split("\n")]), 1, "utf-8"),
}


@pytest.mark.parametrize("kind", PLAIN)
def test_every_kind_is_read_plain_compressed_and_from_a_zip_alike(read: Callable[..., Outcome], kind: str) -> None:
    data, count, encoding = PLAIN[kind]
    plain = read(f"a.{kind}", data, title_column="name")
    assert len(plain.texts) == count and not plain.rejected
    assert plain.reading.encoding == encoding and (plain.reading.confidence or 1) > 0.8
    assert plain.reading.sha256 == hashlib.sha256(data).hexdigest()
    for suffix, compress in COMPRESS.items():
        packed = compress(data)
        again = read(f"a.{kind}{suffix}", packed, title_column="name")
        assert list(again) == list(plain) and again.reading.sha256 == hashlib.sha256(packed).hexdigest()
        member = read("a.zip", zip_of({f"卷/a.{kind}{suffix}": packed}), title_column="name")
        assert list(member) == list(plain) and member.reading.sha256 == again.reading.sha256
        if kind in ("txt", "parquet", "epub"):  # told by content under any name
            for name in ("a.TXT.1", "README", "a.txt"):
                assert list(read(name, packed, title_column="name")) == list(plain)


def test_records_say_which_they_are_and_carry_their_titles(read: Callable[..., Outcome]) -> None:
    texts = read("a.jsonl", JSONL, title_column="name").texts
    starts = [0, *(i + 1 for i, byte in enumerate(JSONL) if byte == 10)][:40]
    assert [(t.record, t.title, t.text) for t in texts] == [
        (f"byte {start}", record["name"], record["text"]) for start, record in zip(starts, RECORDS, strict=True)
    ]
    assert [t.record for t in read("a.json", PLAIN["json"][0]).texts] == [f"item {i}" for i in range(40)]
    assert [(t.record, t.title) for t in read("a.parquet", parquet(RECORDS), title_column="name").texts] == [
        (f"row {i}", f"题{i}") for i in range(40)
    ]
    assert read("a.jsonl", JSONL, title_column="missing").texts[0].title is None
    assert read("b.json", b'["one", {"text": "two"}]').texts == [
        Text("item 0", None, "one"),
        Text("item 1", None, "two"),
    ]
    assert read("b.json", b'{"text": "one"}').texts == [Text(None, None, "one")]
    assert [t.record for t in read("b.json", b'{"text": "one"}\n{"text": "two"}').texts] == ["byte 0", "byte 16"]


@given(cuts=st.lists(st.integers(0, 400), max_size=6), end=st.sampled_from([b"", b"\n", b"\r\n\r\n"]))
def test_ranges_of_a_jsonl_are_the_whole(tmp_path_factory: pytest.TempPathFactory, cuts: list[int], end: bytes) -> None:
    lines = [
        b'\xef\xbb\xbf{"text": "one"}',
        b"{",
        b"",
        '{"text": "今天的事，他说了。"}'.encode("gb18030"),
        b'{"text": "\\u4e00"}\r',
        b"x" * 150,
        JSONL[:60],
    ]
    data = b"\n".join(lines) + end
    path = tmp_path_factory.mktemp("ranges") / "a.jsonl"
    path.write_bytes(data)
    (source,) = list_sources([str(path)])[0]
    bounds = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    whole = outcome(Unit(source), max_bytes=100)
    parts = [outcome(Unit(source, *bound), max_bytes=100) for bound in pairwise(bounds)]
    assert [item for part in parts for item in part] == list(whole)
    assert [r.reason for r in whole.rejected] == ["bad_json", "too_large", "undecodable"]
    assert len(whole.texts) == 3 and whole.reading.encoding == "utf-8 + gb18030"


@pytest.mark.parametrize("encoding", ["gb18030", "cp950"])
def test_short_records_are_in_their_files_encoding(
    read: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, encoding: str
) -> None:
    """A name or a laugh has no everyday character, and two characters may be everyday in the wrong encoding."""
    short = [
        "哈哈哈哈",
        "喔喔喔",
        "炎帝",
        "嘻嘻",
        "哈" * 40,
        "林黛玉、薛寶釵" if encoding == "cp950" else "萧炎、药老",
        "轟",
    ]
    texts = [f"第{i}則：今天我看見一個人，他在這裡說了。" for i in range(9)] + short * 3
    data = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts).encode(encoding)
    found = read("a.jsonl", data)
    assert [t.text for t in found.texts] == texts and not found.rejected and found.reading.encoding == encoding
    monkeypatch.setattr(sources_module, "UNIT_BYTES", 200)
    units = plan_units(list_sources([str(tmp_path / "a.jsonl")])[0])
    assert len(units) > 3 and [item for unit in units for item in outcome(unit)] == list(found)


def test_a_short_record_alone_is_no_damaged_utf8(read: Callable[..., Outcome]) -> None:
    for text in ("哈哈哈哈", "萧炎"):
        assert [t.text for t in read("a.jsonl", f'{{"text":"{text}"}}'.encode("gb18030")).texts] == [text]


def test_ranges_are_hashed_once(read: Callable[..., Outcome], tmp_path: Path) -> None:
    read("a.jsonl", JSONL)
    (source,) = list_sources([str(tmp_path / "a.jsonl")])[0]
    first, second = outcome(Unit(source, 0, 50)), outcome(Unit(source, 50, len(JSONL)))
    cut = JSONL.index(b"\n") + 1
    assert first.reading.sha256 == hashlib.sha256(JSONL[:cut]).hexdigest()
    assert second.reading.sha256 == hashlib.sha256(JSONL[cut:]).hexdigest()


def test_row_groups_are_the_whole(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(parquet(RECORDS, 7))
    (source,) = list_sources([str(tmp_path)])[0]
    parts = [outcome(Unit(source, *bound), title_column="name") for bound in [(0, 2), (2, 5), (5, 6)]]
    assert [item for part in parts for item in part] == list(outcome(Unit(source), title_column="name"))
    again = outcome(Unit(source, 0, 2), title_column="name")
    assert again.reading.sha256 == parts[0].reading.sha256 != parts[1].reading.sha256
    (tmp_path / "a.parquet").write_bytes(parquet([{**r, "text": r["text"] + "变"} for r in RECORDS], 7))
    assert outcome(Unit(source, 0, 2), title_column="name").reading.sha256 != again.reading.sha256


def test_a_range_of_what_is_no_plain_jsonl_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources_module, "UNIT_BYTES", 300)
    for data in (gzip.compress(JSONL), JSONL.decode().encode("utf-16"), JSONL.decode().encode("utf-16-be")):
        (tmp_path / "a.jsonl").write_bytes(data)
        units = plan_units(list_sources([str(tmp_path)])[0])
        found = [item for unit in units for item in outcome(unit)]
        assert len(units) > 1 and [t.text for t in found if isinstance(t, Text)] == [r["text"] for r in RECORDS]


def test_a_bad_record_is_named_and_the_rest_goes_on(read: Callable[..., Outcome]) -> None:
    lines = [
        '{"text": "一\\u2028二"}', "{", "", "[1]", '{"body": "三"}', '{"text": "\\u0000"}', '{"text": "\\ud800"}',
        "[" * 100_000, '{"\\ud800": 1}', '{"text":"四\u2028"}',
    ]  # fmt: skip
    found = read("a.jsonl", "\r\n".join(lines).encode())
    assert [t.text for t in found.texts] == ["一\u2028二", "四\u2028"]
    assert [r.reason for r in found.rejected] == [
        "bad_json", "bad_json", "no_text", "nul", "undecodable", "bad_json", "no_text"
    ]  # fmt: skip
    assert found.rejected[0].source.endswith("/a.jsonl#byte 26") and "`body`" in found.rejected[2].detail
    for rejection in found.rejected:
        "".join(rejection).encode()


def test_a_bad_row_is_named_and_the_rest_goes_on(read: Callable[..., Outcome]) -> None:
    rows = [{"text": "一"}, {"text": None}, {"text": "a\0b"}, {"text": "x" * 200}, {"text": "二\r\n"}]
    found = read("a.parquet", parquet(rows), max_bytes=100)
    assert [t.text for t in found.texts] == ["一", "二\n"]
    assert [(r.source.rpartition("#")[2], r.reason) for r in found.rejected] == [
        ("row 1", "no_text"), ("row 2", "nul"), ("row 3", "too_large")
    ]  # fmt: skip


def test_a_parquet_without_the_column_says_which_it_has(read: Callable[..., Outcome]) -> None:
    assert refusal(read, "a.parquet", parquet(RECORDS), text_column="body") == (
        "no_text", "no column `body`; the columns are `text`, `name`"
    )  # fmt: skip
    assert refusal(read, "a.parquet", parquet([{"text": 1}])) == ("no_text", "column `text` holds int64, not strings")


def test_rows_that_are_stored_once_are_not_unpacked_all_together(tmp_path: Path) -> None:
    """A file of a few KB says that its rows are short."""
    text = "他走到门前，又站住了。" * 2000
    for rows in ([text] * 1024, ["一"] * 2000 + [text] * 1024):
        pq.write_table(pa.table({"text": rows}), tmp_path / "a.parquet")
        assert (tmp_path / "a.parquet").stat().st_size < 30_000
        (source,) = list_sources([str(tmp_path / "a.parquet")])[0]
        before, most, count = pa.total_allocated_bytes(), 0, 0
        for item in read_unit(
            Unit(source), text_column="text", title_column=None, encoding=None, max_bytes=1 << 20
        ).texts:
            assert isinstance(item, Text) and item.text == rows[count]
            count += 1
            most = max(most, pa.total_allocated_bytes() - before)
        assert count == len(rows)
        assert most < (24 << 20 if len(rows) == 1024 else 80 << 20)


def test_batches_of_rows_grow() -> None:
    """What pyarrow does with a size that is set between two batches is nowhere promised."""
    file = pq.ParquetFile(io.BytesIO(parquet([{"text": f"第{i}行"} for i in range(3000)], 3000)))
    sizes = [len(batch) for batch in records._batches(file, 0, ["text"])]
    assert sizes[:6] == [1, 4, 16, 64, 256, 1024] and sum(sizes) == 3000


def test_a_damaged_row_group_costs_itself(read: Callable[..., Outcome]) -> None:
    data = bytearray(parquet(RECORDS))
    middle = pq.read_metadata(io.BytesIO(bytes(data))).row_group(1).column(0)
    at = middle.data_page_offset + middle.total_compressed_size // 2
    data[at] ^= 0xFF
    found = read("a.parquet", bytes(data))
    assert [t.record for t in found.texts] == [f"row {i}" for i in (*range(15), *range(30, 40))]
    ((source, reason, detail),) = found.rejected
    assert source.endswith("#row 15") and reason == "damaged" and detail.startswith("rows 15 to 29: ")


def test_only_line_feeds_end_lines(read: Callable[..., Outcome]) -> None:
    data = "一\r\n二\r三\n四\u2028五\x85六\x0c七".encode()
    assert read("a.txt", data).texts == [Text(None, None, "一\n二\n三\n四\u2028五\x85六\x0c七")]


def test_lines_that_cannot_be_read_come_with_the_text(read: Callable[..., Outcome]) -> None:
    lines = NOVEL.encode("gb18030").split(b"\n")
    lines[30] = lines[30][:9] + b"\xff" + lines[30][9:]
    lines.insert(50, "看書的人都到這裡來。".encode())
    found = read("a.txt", b"\r\n".join(lines))
    (text,) = found.texts
    assert text.text.split("\n")[30] == "" and text.bad_lines[0][0] == 31
    assert text.text.split("\n")[50] == "看書的人都到這裡來。"
    assert found.reading.encoding == "gb18030 + utf-8"


def test_the_encoding_can_be_named(read: Callable[..., Outcome]) -> None:
    assert read("a.txt", "déjà vu".encode("cp1252"), encoding="cp1252").texts[0].text == "déjà vu"
    line = '{"text": "déjà vu"}'.encode("cp1252")
    assert read("a.jsonl", line, encoding="cp1252").texts[0].text == "déjà vu"


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_a_cut_archive_gives_its_records_and_no_work(read: Callable[..., Outcome], suffix: str) -> None:
    rows = [{"text": f"{i}：{random.Random(i).randbytes(300).hex()}"} for i in range(3000)]
    jsonl = "".join(json.dumps(row) + "\n" for row in rows).encode()
    packed = COMPRESS[suffix](jsonl)
    found = read(f"a.jsonl{suffix}", packed[: len(packed) * 2 // 3], max_bytes=10 << 20)
    assert 500 < len(found.texts) < 2500
    assert [t.text for t in found.texts] == [row["text"] for row in rows[: len(found.texts)]]
    ((source, reason, _),) = found.rejected
    assert reason == "truncated" and source.endswith(
        f"#byte {sum(len(line) for line in jsonl.splitlines(True)[: len(found.texts)])}"
    )
    assert refusal(read, f"a.txt{suffix}", packed[: len(packed) * 2 // 3], max_bytes=10 << 20)[0] == "truncated"


@pytest.mark.parametrize(
    ("name", "data", "reason", "detail"),
    [
        ("a.txt", b"", "empty", "0 bytes"),
        ("a.jsonl", b"\n\n", "empty", "no record"),
        ("a.json", b"[]", "empty", "no record"),
        ("a.json", b"[1", "bad_json", "delimiter"),
        ("a.json", b"3", "bad_json", "neither an array nor an object"),
        ("a.json", b"[" * 100_000, "bad_json", "recursion"),
        ("a.parquet", parquet([])[:0] or b"x", "damaged", "parquet"),
        ("a.epub", NOVEL.encode(), "damaged", "epub"),
        ("a.epub", zip_of({"a.txt": "x"}), "damaged", "no EPUB"),
        ("a.epub", epub([])[:-40], "damaged", "zip"),
        ("a.txt", b"%PDF-1.7 ...", "unsupported", "a PDF"),
        ("a.doc", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "unsupported", "old Office"),
        ("a.docx", zip_of({"[Content_Types].xml": "x", "word/document.xml": "<p>他</p>"}), "unsupported", "Office"),
        ("a.html", b"\n<!DOCTYPE html><p>1", "unsupported", "HTML"),
        ("a.bin", random.Random(1).randbytes(5000), "unsupported", "binary"),
        ("a.gz", gzip.compress(gzip.compress(b"x", mtime=0), mtime=0), "unsupported", "gzip inside gzip"),
        ("a.zip", zip_of({}), "empty", "no record"),
        ("a.txt", bytes(100), "nul", "byte 0"),
    ],
)
def test_what_is_refused_says_why(
    read: Callable[..., Outcome], name: str, data: bytes, reason: str, detail: str
) -> None:
    found = refusal(read, name, data)
    assert found[0] == reason and detail in found[1]


def test_above_the_cap_a_work_is_refused_with_the_way_out(read: Callable[..., Outcome]) -> None:
    data = NOVEL.encode() * 20
    for name, packed in [
        ("a.txt", data),
        ("a.json", json.dumps([NOVEL] * 20).encode()),
        ("a.epub", epub([f"<p>{NOVEL}</p>"] * 20)),
    ]:
        for suffix, compress in COMPRESS.items():
            reason, detail = refusal(read, name + suffix, compress(packed), max_bytes=5000)
            assert reason == "too_large" and "5,000 bytes are allowed" in detail
    assert f"{len(data):,} bytes" in refusal(read, "a.txt", data, max_bytes=5000)[1]
    assert "--max_source_bytes" in refusal(read, "a.txt", data, max_bytes=5000)[1]
    assert len(read("a.jsonl.gz", gzip.compress(JSONL * 20), max_bytes=5000).texts) == 800


def test_a_zip_under_another_name_is_read(read: Callable[..., Outcome]) -> None:
    inner = zip_of({"x.txt": "x"})
    found = read(
        "a.txt",
        zip_of({"上.txt": NOVEL, "b.jsonl": JSONL, "__MACOSX/x": "x", "c.zip": inner, "d": inner, "e": b"%PDF-"}),
    )
    assert [t.record for t in found.texts][:2] == ["上.txt", "b.jsonl#byte 0"] and len(found.texts) == 41
    assert [(r.source.partition("#")[2], r.reason) for r in found.rejected] == [
        ("__MACOSX/x", "hidden"), ("c.zip", "unsupported"), ("d", "unsupported"), ("e", "unsupported")
    ]  # fmt: skip


def test_an_epub_is_its_paragraphs(read: Callable[..., Outcome]) -> None:
    pages = [
        "<h1>第一回&#12288;山 中</h1>\r\n<p>他走到\n   门前，<b>站</b>住了。<br/>又走 on\nfoot。</p><script/><style>p{}</style><div>一<div>二</div>三</div>",
        "<p><ruby>漢<rp>(</rp><rt>かん</rt>字<rt>じ</ruby>好&nbsp;的&amp;<img src='x'/></p><![CDATA[四]]><pre>五\n  六</pre><svg><text>图</text></svg>",
    ]
    (text,) = read("a.epub", epub(pages)).texts
    assert text.title == "山中 记"
    assert text.text == "第一回　山 中\n他走到门前，站住了。\n又走 on foot。\n一\n二\n三\n漢字好\u00a0的&\n四\n五\n六"


def test_a_chapter_that_is_missing_is_said(read: Callable[..., Outcome]) -> None:
    data = epub(["<p>一</p>", "<p>二</p>"])
    found = read("a.epub", data.replace(b"c 0.xhtml", b"c X.xhtml"))
    assert [t.text for t in found.texts] == ["二"]
    assert [(r.source.partition("#")[2], r.reason) for r in found.rejected] == [("OPS/text/c 0.xhtml", "damaged")]


@pytest.mark.parametrize(
    ("page", "text", "lost"),
    [
        ("<html><head><title>无</title><body><p>他走了。</p></body></html>", "他走了。", None),
        ("<html><head><title>无</title><p>他走了。</p></html>", "他走了。", None),
        ("<p>他走了。</p><svg><p>雨停了。</p></body>", "他走了。", "`<svg>` has no end: the 4 characters after it"),
        ("<p>他走了。</p><style><p>雨停了。</p>", "他走了。", "`<style>` has no end"),
        ("<svg><text>他走了。</text></svg>", None, "its 4 characters stand in elements that are left out"),
        ("<p>若 a<b 则他走了。</p><p>雨停了。</p>", "若 a<b 则他走了。\n雨停了。", None),
        ("<p>若 a<b</p>", "若 a<b", None),
        ('<p>若 a<b 则“他”"走"了。</p><p>雨停了。</p>', "若 a\n雨停了。", "text inside a tag: `<b 则"),
        ("<head><title>封面</title></head><body><svg><image/></svg><nav>目录</nav></body>", None, None),
        ("<p title='a<b'>他走了。</p><br/>雨<b>停</b>了。<svg/><script src='x'></script>", "他走了。\n雨停了。", None),
    ],
)
def test_text_that_a_page_loses_to_its_markup_is_said(
    read: Callable[..., Outcome], page: str, text: str | None, lost: str | None
) -> None:
    found = read("a.epub", epub(["<p>一</p>", ""], **{"OPS__text__c 1.xhtml": page}))
    assert [t.text for t in found.texts] == ["\n".join(filter(None, ["一", text]))]
    assert [(r.source.partition("#")[2], r.reason) for r in found.rejected] == [("OPS/text/c 1.xhtml", "damaged")] * bool(lost)  # fmt: skip
    assert (lost or "") in "".join(r.detail for r in found.rejected)


def test_a_chapter_that_the_manifest_lacks_is_said(read: Callable[..., Outcome]) -> None:
    spine = '<package><manifest><item id="c0" href="text/c%200.xhtml"/></manifest><spine><itemref idref="c0"/><itemref idref="c1"/></spine></package>'
    found = read("a.epub", epub(["<p>一</p>"], **{"OPS__book.opf": spine}))
    assert [t.text for t in found.texts] == ["一"]
    assert [(r.source.partition("#")[2], r.reason) for r in found.rejected] == [("OPS/book.opf#c1", "damaged")]


@pytest.mark.parametrize("begin", ["<!--", "<![CDATA[", "<![if x", "<!", "<?", '<a "', "<a a=", "</a ", "<!doctype"])
def test_a_page_of_markup_without_an_end_is_refused_at_once(read: Callable[..., Outcome], begin: str) -> None:
    """On 160 KB of it the parser works for half a minute, and four times as long on twice as much."""
    start = time.process_time()
    for end in ("", "<p>二</p>"):
        page = "<p>他走了。</p>" + begin * (400_000 // len(begin)) + end
        found = read("a.epub", epub(["<p>一</p>", ""], **{"OPS__text__c 1.xhtml": page}))
        assert found.texts[0].text.startswith("一")
        if not end:
            assert [r.reason for r in found.rejected] == ["damaged"] and "without an end" in found.rejected[0].detail
    assert time.process_time() - start < 3


def test_a_package_is_no_bomb(read: Callable[..., Outcome]) -> None:
    for name in ("OPS__book.opf", "META-INF__container.xml"):
        reason, detail = refusal(read, "a.epub", epub(["<p>一</p>"], **{name: " " * (9 << 20)}), max_bytes=1 << 30)
        assert reason == "too_large" and "8,388,608 bytes are allowed" in detail and name[-4:] in detail


def test_only_encrypted_text_makes_an_epub_unreadable(read: Callable[..., Outcome]) -> None:
    def encryption(uri: str, algorithm: str) -> str:
        return f'<encryption><enc:EncryptedData><enc:EncryptionMethod Algorithm="{algorithm}"/><enc:CipherData><enc:CipherReference URI="{uri}"/></enc:CipherData></enc:EncryptedData></encryption>'

    aes = "http://www.w3.org/2001/04/xmlenc#aes128-cbc"
    for uri, algorithm in [("OPS/f.otf", aes), ("OPS/font", "http://www.idpf.org/2008/embedding")]:
        assert read("a.epub", epub(["<p>一</p>"], **{"META-INF__encryption.xml": encryption(uri, algorithm)})).texts
    data = epub(["<p>一</p>"], **{"META-INF__encryption.xml": encryption("OPS/text/c%200.xhtml", aes)})
    assert refusal(read, "a.epub", data)[0] == "encrypted"


def samples() -> Iterator[tuple[str, bytes]]:
    for kind, (data, _, _) in PLAIN.items():
        for suffix, compress in COMPRESS.items():
            yield f"a.{kind}{suffix}", compress(data)
        yield f"{kind}.zip", zip_of({f"a.{kind}": data, "b.txt.gz": gzip.compress(NOVEL.encode())})
    yield "big5.txt", "他說：這個時候，還沒有人來。\n".encode("big5") * 40
    yield "wide.txt", NOVEL.encode("utf-16-le")
    yield "wide.jsonl", JSONL.decode().encode("utf-16")


def damaged(data: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.choice([1, 1, 1, 3])):
        at, length = rng.randrange(len(data) + 1), rng.choice([1, 1, 2, 8, 100])
        kind = rng.randrange(5)
        if kind == 0:
            data = data[:at]
        elif kind == 1:
            data = data[:at] + rng.randbytes(length) + data[at + length :]
        elif kind == 2:
            data = data[:at] + data[at + length :]
        elif kind == 3:
            data = data[:at] + rng.randbytes(length) + data[at:]
        else:
            start = rng.randrange(len(data) + 1)
            data = data[:at] + data[start : start + length] + data[at:]
    return data


def account(path: Path) -> None:
    """Everything listed ends in texts, rejections or one refusal, all of which can be stored."""
    sources, rejected = list_sources([str(path)])
    units = plan_units(sources)
    assert units or rejected
    for unit in units:
        try:
            found = outcome(unit, title_column="name", max_bytes=50_000)
        except Unreadable as refused:
            (refused.reason + refused.detail).encode()
            continue
        assert found
        for item in found:
            "".join(filter(None, item[:3])).encode()


def test_thousands_of_damaged_files_are_all_accounted_for(tmp_path: Path) -> None:
    rng = random.Random(20)
    cases = list(samples())
    for number in range(2000):
        name, data = cases[number % len(cases)]
        path = tmp_path / name
        path.write_bytes(damaged(data, rng))
        account(path)


@settings(max_examples=200)
@given(case=st.sampled_from(list(samples())), data=st.data())
def test_any_splice_is_accounted_for(
    tmp_path_factory: pytest.TempPathFactory, case: tuple[str, bytes], data: st.DataObject
) -> None:
    name, content = case
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(start, len(content)))
    path = tmp_path_factory.mktemp("splice") / name
    path.write_bytes(content[:start] + data.draw(st.binary(max_size=40)) + content[end:])
    account(path)


def test_object_storage_is_read_as_a_disk_is(tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources_module, "UNIT_BYTES", 1500)
    files = {"a.jsonl": JSONL, "b.parquet": parquet(RECORDS), "c.zip": zip_of({"d.txt": NOVEL, "e.jsonl": JSONL})}
    for name, data in {**files, "f.zst": COMPRESS[".zst"](NOVEL.encode()), "g.epub": PLAIN["epub"][0]}.items():
        (tmp_path / name).write_bytes(data)
        storage.write_bytes(f"{bucket}/{name}", data)
    here, there = (plan_units(list_sources([place])[0]) for place in (str(tmp_path), bucket))
    assert [(u.source.relpath, u.start, u.end) for u in here] == [(u.source.relpath, u.start, u.end) for u in there]
    assert len(here) > 7
    for one, other in zip(here, there, strict=True):
        local, remote = outcome(one), outcome(other)
        assert local.texts == remote.texts and local.reading.sha256 == remote.reading.sha256


@pytest.mark.parametrize(
    "name", ["a.txt", "a.jsonl", "a.parquet", "a.epub", "a.txt.gz", "a.txt.bz2", "a.txt.xz", "a.txt.zst", "b.zip"]
)
def test_storage_that_fails_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A file is not refused because the place where it lies has trouble: that is raised, and tried again later."""

    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            data = super().read(size)
            if self.tell() > 5000:
                raise OSError("the disk went away")
            return data

    text = random.Random(1).randbytes(5000).hex()
    data = {
        "a.txt": text.encode(),
        "a.jsonl": b'{"text": "%s"}' % text.encode(),
        "a.parquet": parquet([{"text": text}]),
    }
    data |= {"a.epub": epub([text]), "b.zip": zip_of({"a.txt": text})}
    content = data.get(name) or COMPRESS["." + name.rpartition(".")[2]](text.encode())
    (tmp_path / name).write_bytes(content)
    units = plan_units(list_sources([str(tmp_path)])[0])
    units += [Unit(units[0].source, 0, 1)] if name == "a.parquet" else []
    for unit in units:
        containers.open_zip.cache_clear()
        with monkeypatch.context() as patch:
            patch.setattr(storage, "open_input", lambda _: Failing(content))
            with pytest.raises(StorageError, match="the disk went away"):
                outcome(unit)
