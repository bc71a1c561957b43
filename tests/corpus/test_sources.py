import os
import time
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raystyle.corpus import sources as module
from raystyle.corpus.sources import Unit, kind_of, list_sources, plan_units
from raystyle.errors import DataError


def test_sources_are_listed_the_same_wherever_they_lie(tmp_path: Path) -> None:
    for root in ["one", "elsewhere/two"]:
        for name in ["b.txt", "sub/a.jsonl", "c.md", "sub/d.TXT"]:
            (tmp_path / root / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / root / name).write_text("x")
    one, refused = list_sources([f"{tmp_path}/one"])
    two, _ = list_sources([f"{tmp_path}/elsewhere/two/"])
    assert [s.relpath for s in one] == [s.relpath for s in two] == ["b.txt", "c.md", "sub/a.jsonl", "sub/d.TXT"]
    assert [s.kind for s in one] == ["text", None, "jsonl", "text"] and not refused
    both, _ = list_sources([f"{tmp_path}/one", f"{tmp_path}/one/b.txt", f"{tmp_path}/elsewhere/two"])
    assert [s.relpath for s in both if s.relpath.startswith("b")] == ["b.txt", "b.txt#2"]
    globbed, _ = list_sources([f"{tmp_path}/one/*.txt"])
    assert [s.relpath for s in globbed] == ["b.txt"]
    assert [s.relpath for s in list_sources([str(tmp_path)], exclude=f"{tmp_path}/one")[0]] == [
        "elsewhere/two/b.txt", "elsewhere/two/c.md", "elsewhere/two/sub/a.jsonl", "elsewhere/two/sub/d.TXT"
    ]  # fmt: skip


def test_nothing_to_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "_a.md").write_text("x")
    for path, message in [("none", "does not exist"), ("*.txt", "no file matches"), ("", "no data file")]:
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


def test_a_directory_called_txt_is_a_directory(tmp_path: Path) -> None:
    (tmp_path / "全集.txt").mkdir()
    (tmp_path / "全集.txt" / "一.txt").write_text("春")
    assert [s.relpath for s in list_sources([str(tmp_path)])[0]] == ["全集.txt/一.txt"]


def test_kinds_come_from_names() -> None:
    names = [
        "a.txt",
        "a.JSONL.gz",
        "a.json.zst",
        "a.epub",
        "a.parquet",
        "a.gz",
        "README",
        "a.ndjson.xz",
        "a.TXT.1",
        "a.zip",
    ]
    kinds = ["text", "jsonl", "json", "epub", "parquet", None, None, "jsonl", None, None]
    assert [kind_of(name) for name in names] == kinds


def zip_of(path: Path, names: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in names.items():
            archive.writestr(name, data)
    return path


def test_the_members_of_a_zip_are_sources(tmp_path: Path) -> None:
    names = ["下/b.txt", "上/a.jsonl", "__MACOSX/._a", ".hidden", "inner.zip", "folder/", "c.txt.gz"]
    zip_of(tmp_path / "书.zip", {name: b"12345" if name[-1] != "/" else b"" for name in names})
    (tmp_path / "a.txt").write_text("x")
    sources, rejected = list_sources([str(tmp_path)])
    assert [(s.relpath, s.kind, s.size) for s in sources] == [
        ("a.txt", "text", 1), ("书.zip/c.txt.gz", "text", 5), ("书.zip/上/a.jsonl", "jsonl", 5), ("书.zip/下/b.txt", "text", 5)
    ]  # fmt: skip
    assert sources[1].uri == f"{tmp_path}/书.zip/c.txt.gz" and sources[1].location == f"{tmp_path}/书.zip"
    assert sorted((r.source[len(str(tmp_path)) :], r.reason) for r in rejected) == [
        ("/书.zip/.hidden", "hidden"), ("/书.zip/__MACOSX/._a", "hidden"), ("/书.zip/inner.zip", "unsupported")
    ]  # fmt: skip


def test_what_is_called_zip_but_is_none_is_left_to_its_reader(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04 torn")
    zip_of(tmp_path / "b.zip", {})
    zip_of(tmp_path / "c.zip", {"mimetype": b"application/epub+zip", "META-INF/container.xml": b"<container/>"})
    sources, _ = list_sources([str(tmp_path)])
    assert [(s.relpath, s.kind, s.member) for s in sources] == [(f"{name}.zip", None, None) for name in "abc"]


def test_old_names_in_zips_are_chinese(tmp_path: Path) -> None:
    """Without the flag for UTF-8 a name is in the maker's own encoding."""
    path = zip_of(tmp_path / "a.zip", {"XXXX.txt": b"1", "YYYYYY.txt": b"2", "caf\u00e9.txt": b"3"})
    data = path.read_bytes().replace(b"XXXX", "红楼".encode("gbk")).replace(b"YYYYYY", "红楼".encode())
    path.write_bytes(data)
    assert [s.relpath for s in list_sources([str(path)])[0]] == ["a.zip/café.txt", "a.zip/红楼.txt", "a.zip/红楼.txt#2"]


def test_big_jsonl_is_planned_in_ranges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UNIT_BYTES", 100)
    for name in ["a.jsonl", "b.jsonl.gz", "c.txt"]:
        (tmp_path / name).write_bytes(b"x" * 250)
    units = plan_units(list_sources([str(tmp_path)])[0])
    assert [(u.source.relpath, u.start, u.end) for u in units] == [
        ("a.jsonl", 0, 83), ("a.jsonl", 83, 166), ("a.jsonl", 166, 250), ("b.jsonl.gz", 0, None), ("c.txt", 0, None)
    ]  # fmt: skip


def test_big_parquet_is_planned_by_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pa.table({"text": [f"第{i:03}段，话说天下大势。" * 40 for i in range(100)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=10, compression="none", use_dictionary=False)
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-9])
    sources, _ = list_sources([str(tmp_path)])
    group = pq.read_metadata(tmp_path / "a.parquet").row_group(0).total_byte_size
    monkeypatch.setattr(module, "UNIT_BYTES", 3 * group + 50)
    assert [unit[1:] for unit in plan_units(sources)] == [(0, 3), (3, 6), (6, 9), (9, 10), (0, None)]
    monkeypatch.setattr(module, "UNIT_BYTES", 1 << 30)
    assert plan_units(sources) == [Unit(source) for source in sources]


def test_ten_thousand_files_are_listed_in_a_moment(tmp_path: Path) -> None:
    for i in range(10_000):
        (tmp_path / f"{i}.txt").write_bytes(b"x")
    start = time.perf_counter()
    sources, _ = list_sources([str(tmp_path)])
    assert len(plan_units(sources)) == 10_000
    assert time.perf_counter() - start < 5


def test_a_file_whose_name_is_no_text_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("他走了。")
    with open(os.fsencode(tmp_path) + b"/" + "山中记.txt".encode("gb18030"), "wb") as file:
        file.write(b"1")
    sources, rejected = list_sources([str(tmp_path)])
    assert [source.relpath for source in sources] == ["a.txt"]
    assert [(row.reason, "\\xd6" in row.source) for row in rejected] == [("unnamed", True)]
    rejected[0].source.encode()


def test_the_number_of_a_copy_is_no_other_files_name(tmp_path: Path) -> None:
    for name in ("r1/a.txt", "r1/a.txt#2", "r2/a.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    sources, _ = list_sources([str(tmp_path / "r1"), str(tmp_path / "r2")])
    assert sorted(source.relpath for source in sources) == ["a.txt", "a.txt#2", "a.txt#3"]
