import json
import os
from pathlib import Path

import pytest

from raystyle.corpus.encodings import decode
from raystyle.demo import storyteller
from raystyle.demo.corpus import heading, write_corpus
from raystyle.demo.traditional import to_traditional
from raystyle.demo.voices import parse_bank, storyteller_chapters


def _read(path: str) -> bytes:
    return Path(path).read_bytes()


def test_every_file_decodes_to_its_chapters(tmp_path: Path) -> None:
    files = write_corpus(str(tmp_path), 3)
    chapters = iter(storyteller_chapters(3, sum(file.num_chapters for file in files)))
    for file in files:
        if file.encoding is None:
            continue
        text = _read(file.path).decode(file.encoding)
        assert "作者：" in text or file.path.endswith(".jsonl")
        for _ in range(file.num_chapters):
            chapter = next(chapters)
            paragraphs = [chapter.title, *chapter.text.split("\n")]
            if file.encoding == "cp950":
                paragraphs = [to_traditional(paragraph) for paragraph in paragraphs]
            assert all(paragraph in text for paragraph in paragraphs)


def test_encodings_and_line_ends_are_mixed(tmp_path: Path) -> None:
    files = write_corpus(str(tmp_path), 3)
    assert {file.encoding for file in files} == {"utf-8", "utf-8-sig", "gb18030", "cp950", None}
    assert b"\r\n" in _read(next(f.path for f in files if f.encoding == "gb18030"))
    for file in files:
        if file.encoding in ("gb18030", "cp950"):
            with pytest.raises(UnicodeDecodeError):
                _read(file.path).decode("utf-8")


def test_the_reader_finds_every_encoding(tmp_path: Path) -> None:
    """Big5 bytes pass for GB18030 too: only what the characters are tells them apart."""
    for file in write_corpus(str(tmp_path), 3):
        if file.encoding:
            found = decode(_read(file.path))
            assert found.encoding == file.encoding
            assert found.text == _read(file.path).decode(file.encoding)


def test_the_broken_file_is_in_no_encoding(tmp_path: Path) -> None:
    (broken,) = [file for file in write_corpus(str(tmp_path), 3) if file.encoding is None]
    for encoding in ("utf-8", "gb18030", "cp950"):
        with pytest.raises(UnicodeDecodeError):
            _read(broken.path).decode(encoding)


def test_a_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second, other = (write_corpus(str(tmp_path / name), seed) for name, seed in [("a", 1), ("b", 1), ("c", 2)])
    assert [_read(f.path) for f in first] == [_read(f.path) for f in second]
    assert [_read(f.path) for f in first] != [_read(f.path) for f in other]


def test_the_corpus_is_small(tmp_path: Path) -> None:
    files = write_corpus(str(tmp_path), 42)
    assert 150_000 < sum(os.path.getsize(file.path) for file in files) < 300_000


def test_records_are_json_with_a_text(tmp_path: Path) -> None:
    (records,) = [file for file in write_corpus(str(tmp_path), 3) if file.path.endswith(".jsonl")]
    lines = _read(records.path).decode().splitlines()
    assert len(lines) == records.num_chapters
    assert all(json.loads(line)["text"].startswith("第") for line in lines)


def test_sites_are_reserved_names(tmp_path: Path) -> None:
    for file in write_corpus(str(tmp_path), 3):
        if file.encoding:
            text = _read(file.path).decode(file.encoding)
            assert text.count("www.") <= text.count(".example.")


def test_the_whole_bank_can_be_written_in_traditional_characters() -> None:
    for lines in parse_bank(storyteller.BANK).values():
        for line in lines:
            assert to_traditional(line).encode("cp950").decode("cp950") == to_traditional(line)


def test_words_decide_between_two_traditional_forms() -> None:
    assert to_traditional("夜里到了十里铺，吃了两大碗牛肉面") == "夜裡到了十里鋪，吃了兩大碗牛肉麵"


@pytest.mark.parametrize(("number", "numeral"), [(1, "一"), (10, "十"), (12, "十二"), (20, "二十"), (48, "四十八")])
def test_headings_are_numbered_in_chinese(number: int, numeral: str) -> None:
    assert heading(number, "夜雨") == f"第{numeral}章 夜雨"
