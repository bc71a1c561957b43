import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prose import PROSE

from raystyle.corpus.packs import load_rules
from raystyle.corpus.texts import read_texts
from raystyle.errors import DataError

BODY = "\n".join(PROSE * 3)


def test_files_are_decoded_and_cleaned_and_what_is_not_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "风雨.txt").write_bytes(f"{BODY}\n本书来自 www.example.com 下载\n{BODY}".encode("gb18030"))
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": BODY}) + "\n{broken\n", "utf-8")
    (tmp_path / "c.bin").write_bytes(b"\x00\x01" * 50)
    (tmp_path / "d.txt").write_text("", "utf-8")
    documents, rejections = read_texts(str(tmp_path))
    assert {document.title for document in documents} == {"风雨", None}
    assert all("example" not in document.text and "他推开门" in document.text for document in documents)
    assert {rejection.reason for rejection in rejections} >= {"bad_json"}
    told = {rejection.source for rejection in rejections}
    assert any(name.endswith("c.bin") for name in told) and any(name.endswith("d.txt") for name in told)


def test_by_chapter(tmp_path: Path) -> None:
    file = tmp_path / "book.txt"
    file.write_text(f"第一章 风起\n{BODY}\n第二章 云涌\n{BODY}\n", "utf-8")
    documents, _ = read_texts([str(file)], document_unit="chapter", rules=load_rules("zh_web_novel"))
    assert len(documents) == 2 and all(document.source == str(file) for document in documents)
    assert len(read_texts([str(file)])[0]) == 1


def test_a_prepared_directory_gives_its_parts(tmp_path: Path) -> None:
    for part in ("documents", "heldout"):
        (tmp_path / part).mkdir()
        table = pa.table({"doc_id": ["1"], "source": ["a.txt"], "title": [None], "text": [f"{part}。"]})
        pq.write_table(table, tmp_path / part / "part-00000.parquet")
    (tmp_path / "manifest.json").write_text('{"format": 1}')
    assert read_texts(str(tmp_path)) == ([("a.txt", None, "documents。")], [])
    assert read_texts([str(tmp_path)], part="heldout") == ([("a.txt", None, "heldout。")], [])
    (tmp_path / "heldout" / "part-00000.parquet").unlink()
    with pytest.raises(DataError, match="--heldout_fraction"):
        read_texts(str(tmp_path), part="heldout")
    (tmp_path / "manifest.json").write_text('{"format": 0}')
    with pytest.raises(DataError, match="format"):
        read_texts(str(tmp_path))


def test_a_path_that_does_not_exist() -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_texts("/nowhere/novel.txt")
