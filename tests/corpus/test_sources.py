from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raystyle.corpus.encodings import Unreadable, decode
from raystyle.corpus.sources import Record, Rejection, Source, list_sources, read_records
from raystyle.errors import DataError

SENTENCES = [
    "今天晚上，很好的月光。",
    "我不见他，已是三十多年；今天见了，精神分外爽快。",
    "话说天下大势，分久必合，合久必分。",
    "余生平不解书，而好之甚笃，此亦不可解也。",
]
TRADITIONAL = ["今天晚上，很好的月光。", "他說：「這個時候，還沒有人來。」", "大江東去，浪淘盡、千古風流人物。"]


def source(name: str = "a.txt") -> Source:
    return Source(f"/d/{name}", f"/d/{name}", name, 0, 0, "jsonl" if name.endswith("jsonl") else "text")


def text_of(data: bytes) -> str:
    return "".join(r.text for r in read_records(source(), data, "text")[1] if isinstance(r, Record))


@given(st.lists(st.sampled_from(SENTENCES), min_size=2, max_size=30).map("".join))
def test_simplified_text_comes_back_from_its_encodings(text: str) -> None:
    for encoding, name in [
        ("utf-8", "utf-8"),
        ("utf-8-sig", "utf-8-sig"),
        ("utf-16", "utf-16"),
        ("gb18030", "gb18030"),
    ]:
        assert decode(text.encode(encoding)) == (text, name)


@given(st.lists(st.sampled_from(TRADITIONAL), min_size=2, max_size=30).map("".join))
def test_traditional_text_comes_back_from_its_encodings(text: str) -> None:
    for encoding in ["utf-8", "cp950", "gb18030"]:
        assert decode(text.encode(encoding)) == (text, encoding)


def test_big_endian_utf16_is_read_by_its_mark() -> None:
    assert decode("﻿很好".encode("utf-16-be"))[0] == "很好"


@pytest.mark.parametrize(
    ("data", "reason", "detail"),
    [
        (b"", "empty", "0 bytes"),
        (b"ab\0cd", "nul", "byte 2"),
        (b"\xff\xff\xff\xff", "undecodable", "not UTF-8 .byte 0., not gb18030 .byte 0., not cp950"),
        (b"\xef\xbb\xbf\xff", "undecodable", "byte-order mark"),
        (("这是一段很长的中文，写得很好。" * 20).encode()[:-1] + b"\xff ", "undecodable", "byte"),
    ],
)
def test_what_cannot_be_read_says_where(data: bytes, reason: str, detail: str) -> None:
    with pytest.raises(Unreadable, match=detail) as refused:
        decode(data)
    assert refused.value.reason == reason


def test_damaged_utf8_is_not_read_as_gb18030() -> None:
    damaged = ("今天晚上，很好的月光。我不见他，已是三十多年了。" * 30).encode()
    with pytest.raises(Unreadable):
        decode(damaged[:50] + damaged[51:])


def test_only_line_feeds_end_lines() -> None:
    assert text_of("一\r\n二\r三\n四\u2028五\x85六\x0c七".encode()) == "一\n二\n三\n四\u2028五\x85六\x0c七"


def test_a_bad_record_is_named_and_the_rest_goes_on() -> None:
    lines = [
        '{"text": "一\\u2028二"}',
        "{",
        "",
        "[1]",
        '{"body": "三"}',
        '{"text": "\\u0000"}',
        '{"text": "\\ud800"}',
        '{"text":"四"}',
    ]
    encoding, found = read_records(source("a.jsonl"), "\r\n".join(lines).encode(), "text")
    found = list(found)
    assert encoding == "utf-8"
    assert [r for r in found if isinstance(r, Record)] == [Record(1, "一\u2028二"), Record(8, "四")]
    refused = [r for r in found if isinstance(r, Rejection)]
    assert [(r.reason, r.detail.partition(":")[0]) for r in refused] == [
        ("bad_json", "line 2"), ("bad_json", "line 4"), ("no_text", "line 5"), ("nul", "line 6"), ("undecodable", "line 7")
    ]  # fmt: skip
    assert "`body`" in refused[2].detail


def test_a_raw_line_separator_does_not_cut_a_record() -> None:
    _, found = read_records(source("a.jsonl"), '{"text": "一\u2028二"}\n'.encode(), "text")
    assert list(found) == [Record(1, "一\u2028二")]


def test_sources_are_listed_the_same_wherever_they_lie(tmp_path: Path) -> None:
    for root in ["one", "elsewhere/two"]:
        for name in ["b.txt", "sub/a.jsonl", "c.md", "sub/d.TXT"]:
            (tmp_path / root / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / root / name).write_text("x")
    one, refused = list_sources([f"{tmp_path}/one"])
    two, _ = list_sources([f"{tmp_path}/elsewhere/two/"])
    assert [s.relpath for s in one] == [s.relpath for s in two] == ["b.txt", "sub/a.jsonl", "sub/d.TXT"]
    assert [(r.source, r.reason) for r in refused] == [(f"{tmp_path}/one/c.md", "unsupported")]
    both, _ = list_sources([f"{tmp_path}/one", f"{tmp_path}/one/b.txt", f"{tmp_path}/elsewhere/two"])
    assert [s.relpath for s in both if s.relpath.startswith("b")] == ["b.txt", "b.txt#2"]
    globbed, _ = list_sources([f"{tmp_path}/one/*.txt"])
    assert [s.relpath for s in globbed] == ["b.txt"]
    assert [s.relpath for s in list_sources([str(tmp_path)], exclude=f"{tmp_path}/one")[0]] == [
        "elsewhere/two/b.txt", "elsewhere/two/sub/a.jsonl", "elsewhere/two/sub/d.TXT"
    ]  # fmt: skip


def test_nothing_to_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("x")
    for path, message in [("none", "does not exist"), ("*.txt", "no file matches"), ("a.md", "no data file")]:
        with pytest.raises(DataError, match=message):
            list_sources([f"{tmp_path}/{path}"])


def test_hidden_inputs_are_counted_and_read_when_named(tmp_path: Path) -> None:
    (tmp_path / "_序").mkdir()
    for name in ("a.txt", "_b.txt", ".c.txt", "_序/d.txt"):
        (tmp_path / name).write_text("今日天气阴沉。")
    sources, rejected = list_sources([str(tmp_path)])
    assert [source.relpath for source in sources] == ["a.txt"]
    assert {(rejection.reason, Path(rejection.source).name) for rejection in rejected} == {
        ("hidden", "_b.txt"), ("hidden", ".c.txt"), ("hidden", "d.txt")
    }  # fmt: skip
    named, _ = list_sources([str(tmp_path / "_b.txt")])
    assert [source.relpath for source in named] == ["_b.txt"]
