import json
import subprocess
import sys
from pathlib import Path

from raystyle.corpus import parts
from raystyle.corpus.rules import load_rules
from raystyle.corpus.sources import list_sources
from raystyle.corpus.stages import Settings, clean_shard

SETTINGS = Settings("segments", "work", "text", 64, 16)
RULES = load_rules("zh_web_novel")


def clean_records(folder: Path, records: list[str]) -> tuple[str, list[int]]:
    (folder / "in").mkdir()
    (folder / "in" / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in records))
    sources, _ = list_sources([str(folder / "in")])
    clean_shard(0, sources, str(folder / "work"), RULES, SETTINGS)
    (row,) = parts.read(str(folder / "work" / "clean-00000.documents.parquet")).to_pylist()
    return row["text"], row["records"]


def test_segments_join_as_they_were_cut(tmp_path: Path) -> None:
    text, ends = clean_records(tmp_path, ["他走了", "。\n雨下", "起来了。\n", "\n天黑了。", "第一章 风起\n甲", "乙"])
    assert text == "他走了。\n雨下起来了。\n天黑了。\n甲乙"
    assert [text[a:b] for a, b in zip([0, *ends], ends, strict=False)] == [
        "他走了",
        "。\n雨下",
        "起来了。\n",
        "天黑了。",
        "\n甲",
        "乙",
    ]


def test_a_finished_shard_is_not_done_again(tmp_path: Path) -> None:
    clean_records(tmp_path, ["他走了。"])
    sources, _ = list_sources([str(tmp_path / "in")])
    part = tmp_path / "work" / "clean-00000.documents.parquet"
    before = part.stat().st_mtime_ns
    clean_shard(0, sources, str(tmp_path / "work"), RULES, SETTINGS)
    assert part.stat().st_mtime_ns == before
    (tmp_path / "in" / "a.jsonl").write_text('{"text": "天黑了。"}')
    clean_shard(0, list_sources([str(tmp_path / "in")])[0], str(tmp_path / "work"), RULES, SETTINGS)
    assert part.stat().st_mtime_ns != before


def test_tables_have_their_schema_even_when_empty() -> None:
    assert parts.table([], parts.REMOVED).schema == parts.REMOVED


def test_tasks_import_neither_torch_nor_ray() -> None:
    code = "import sys, raystyle.corpus.stages; assert not {'torch', 'transformers', 'ray'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    code = "import sys, raystyle.corpus.prepare; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
