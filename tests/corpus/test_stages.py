import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from prose import PROSE

from raystyle.corpus import collect, duplicates, parts
from raystyle.corpus.packs import load_rules
from raystyle.corpus.quality import Limits
from raystyle.corpus.shards import Entry, group_units
from raystyle.corpus.sources import list_sources, plan_units
from raystyle.corpus.stages import Settings, clean_shard

LIMITS = Limits(0.5, 0.02, 0.6, 0.0, 0.0)
SETTINGS = Settings(
    records="documents", document_unit="work", text_column="text", title_column=None, encoding=None,
    max_source_bytes=1 << 30, limit=None, to_simplified="auto", limits=LIMITS, dedup="near", dedup_threshold=0.7,
    dedup_keep="longest", heldout_fraction=0.0, max_seq_length=64, segment_length=16, packing="concat",
    boundary_tolerance=0.1,
)  # fmt: skip
# Without the model: what it takes of such lines is for its own tests to say.
RULES = load_rules("zh_web_novel", disable=["noise_line"])
Rows = list[dict[str, Any]]


def clean_files(folder: Path, files: dict[str, str], settings: Settings = SETTINGS) -> tuple[dict[str, Any], Rows]:
    """The marker and the documents of files cleaned as one shard, in folder/work."""
    (folder / "in").mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / "in" / name).write_text(content, "utf-8")
    sources, _ = list_sources([str(folder / "in")])
    (group,) = group_units(plan_units(sources))
    marker = clean_shard(0, group, str(folder / "work"), RULES, settings)
    return marker, read(folder, "clean-00000.documents")


def read(folder: Path, name: str) -> Rows:
    rows: Rows = parts.read(str(folder / "work" / f"{name}.parquet")).to_pylist()
    return rows


def jsonl(texts: list[str]) -> str:
    return "\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts)


def novel(first: int, last: int) -> str:
    """Chapters with a text of their own, unlike any other's."""
    return "\n".join(f"第{n}章 某事{n}\n{chapter(n)}" for n in range(first, last))


def chapter(n: int) -> str:
    lines = [
        f"{PROSE[(n * 7 + i) % len(PROSE)]}这是第{n}次，{chr(0x4E00 + 97 * n + 13 * i)}{chr(0x5000 + 31 * n + i)}山。"
        for i in range(30)
    ]
    return "\n".join(lines)


def test_segments_join_as_they_were_cut(tmp_path: Path) -> None:
    records = ["他走了", "。\n雨下", "起来了。\n", "\n天黑了。", "第一章 风起\n甲", "乙"]
    marker, (row,) = clean_files(tmp_path, {"a.jsonl": jsonl(records)}, SETTINGS._replace(records="segments"))
    text, ends = row["text"], row["records"]
    assert text == "他走了。\n雨下起来了。\n天黑了。\n甲乙"
    pieces = [text[a:b] for a, b in zip([0, *ends], ends, strict=False)]
    assert pieces == ["他走了", "。\n雨下", "起来了。\n", "天黑了。", "\n甲", "乙"]
    assert marker["inputs"][0]["texts"] == 6 and marker["inputs"][0]["documents"] == 1


def test_a_finished_shard_is_not_done_again(tmp_path: Path) -> None:
    part = tmp_path / "work" / "clean-00000.documents.parquet"
    clean_files(tmp_path, {"a.txt": "他走了。"})
    before = part.stat().st_mtime_ns
    (tmp_path / "in" / "a.txt").touch()  # a new time of writing is another input
    clean_files(tmp_path, {})
    between = part.stat().st_mtime_ns
    clean_files(tmp_path, {})
    assert before != between == part.stat().st_mtime_ns


def test_every_text_is_kept_or_rejected(tmp_path: Path) -> None:
    garbage = "\n".join("\ue123\ufffd\ufffd他" * 50 for _ in range(30))
    loop = "\n".join(["他走了又回来了，回来了又走了。"] * 200)
    files = {
        "a.txt": "\n".join(PROSE), "b.txt": "www.example.com", "c.txt": "", "d.txt": garbage, "e.txt": loop,
        "f.jsonl": jsonl([PROSE[0], ""]) + "\n{broken\n" + jsonl([PROSE[1]]),
        "g.txt": ("\n".join(["求月票！求推荐票！"] * 200 + PROSE[:3])),
    }  # fmt: skip
    marker, documents = clean_files(tmp_path, files)
    rejected = [
        (Path(row["source"].partition("#")[0]).name, row["reason"]) for row in read(tmp_path, "clean-00000.rejected")
    ]
    assert sorted(rejected) == [
        ("b.txt", "no_text_left"), ("c.txt", "empty"), ("d.txt", "no_text_left"), ("e.txt", "repetitive"),
        ("f.jsonl", "bad_json"), ("f.jsonl", "no_text_left"), ("g.txt", "mostly_removed"),
    ]  # fmt: skip
    for entry in marker["inputs"]:
        assert entry["texts"] == entry["documents"] + entry["rejected"], entry
    assert len(documents) == 3


def test_a_text_full_of_holes_is_no_clean_text(tmp_path: Path) -> None:
    """The rules cut replacement characters, so what is left of such a text looks like prose."""
    holed = "".join("\ufffd" if i % 8 in (1, 4, 6) and c != "\n" else c for i, c in enumerate(novel(1, 9)))
    lost = novel(1, 9).replace("，", "\ue5e5")
    _, documents = clean_files(tmp_path, {"a.txt": holed, "b.txt": lost, "c.txt": novel(1, 9)})
    rejected = read(tmp_path, "clean-00000.rejected")
    assert [row["reason"] for row in rejected] == ["garbage", "garbage"] and len(documents) == 1
    assert "% of " in rejected[0]["detail"] and "`max_garbage_share` is 0.02" in rejected[0]["detail"]
    (tmp_path / "work" / "clean-00000.json").unlink()
    lenient = SETTINGS._replace(limits=LIMITS._replace(max_garbage_share=0.5))
    assert len(clean_files(tmp_path, {}, lenient)[1]) == 3


def test_titles_come_from_records_and_names(tmp_path: Path) -> None:
    record = json.dumps({"text": "他走了。", "name": "风起"}, ensure_ascii=False)
    settings = SETTINGS._replace(title_column="name")
    _, documents = clean_files(tmp_path, {"山中记.txt": "雨停了。", "x.jsonl": record}, settings)
    assert [row["title"] for row in documents] == ["风起", "山中记"]


def test_a_chapter_knows_its_lines(tmp_path: Path) -> None:
    _, documents = clean_files(tmp_path, {"a.txt": novel(1, 4)}, SETTINGS._replace(document_unit="chapter"))
    lines = novel(1, 4).split("\n")
    for row in documents:
        assert [lines[number - 1] for number in row["line_nos"]] == row["text"].split("\n")


def test_samples_show_hits_in_their_line(tmp_path: Path) -> None:
    marker, _ = clean_files(tmp_path, {"a.txt": "他推开门，www.example.com看见屋里没有人，只有一盏灯还亮着。"})
    assert marker["samples"]["address"] == [["他推开门，", "www.example.com", "", "看见屋里没有人，只有一盏灯还亮着。"]]


def find(folder: Path, settings: Settings = SETTINGS) -> Rows:
    for kind in ("whole", "chapters"):
        for group in range(len(duplicates.band_groups())):
            duplicates.find_meetings(kind, group, 1, str(folder / "work"))
    duplicates.choose_duplicates(1, True, str(folder / "work"), settings)
    return read(folder, "choices")


def test_editions_of_a_work_become_one(tmp_path: Path) -> None:
    edition = novel(1, 9).replace("。", "．").replace("某事", "旧事")
    shorter = novel(1, 8)
    clean_files(tmp_path, {"a.txt": novel(1, 9), "b.txt": edition, "c.txt": shorter, "d.txt": novel(40, 48)})
    assert [(row["row"], row["chapter"], row["kept_row"]) for row in find(tmp_path)] == [(1, -1, 0), (2, -1, 0)]


def test_equal_is_all_that_exact_looks_for(tmp_path: Path) -> None:
    settings = SETTINGS._replace(dedup="exact")
    clean_files(
        tmp_path, {"a.txt": novel(1, 9), "b.txt": novel(1, 9), "c.txt": novel(1, 9).replace("这是", "那是")}, settings
    )
    duplicates.choose_duplicates(1, True, str(tmp_path / "work"), settings)
    assert [(row["row"], row["chapter"]) for row in read(tmp_path, "choices")] == [(1, -1)]


def test_a_chapter_that_stands_elsewhere_is_cut_out_and_put_aside(tmp_path: Path) -> None:
    """An anthology holds two chapters of a novel; nothing of it is lost."""
    anthology = novel(60, 63) + "\n" + novel(3, 5) + "\n" + novel(70, 72)
    _, documents = clean_files(tmp_path, {"a.txt": novel(1, 9), "b.txt": anthology})
    choices = find(tmp_path)
    assert [(row["row"], row["chapter"]) for row in choices] == [(1, 3), (1, 4)]
    gone = [collect.Gone(**row, kept_doc_id="kept") for row in choices]
    collect.collect_duplicates(0, gone, str(tmp_path / "work"))
    aside = read(tmp_path, "duplicates-00000")
    assert [row["title"] for row in aside] == ["某事3", "某事4"] and aside[0]["text"] == chapter(3)
    entries = [Entry(0, row, documents[row]["doc_id"], "g", 1) for row in range(2)]
    cuts = collect.Cuts({(0, 1): [3, 4]}, frozenset())
    collect.collect_shard("documents", 0, entries, cuts, str(tmp_path / "work"), None, SETTINGS)
    whole, cut = (row["text"] for row in read(tmp_path, "documents-00000.documents"))
    assert whole == documents[0]["text"]
    assert cut == "\n".join(chapter(n) for n in (60, 61, 62, 70, 71))


def test_a_story_alone_is_known_as_a_chapter_of_an_anthology(tmp_path: Path) -> None:
    """So that neither is trained on while the other is held out."""
    story = chapter(3)
    clean_files(tmp_path, {"a.txt": novel(60, 63) + f"\n第4章 故事\n{story}\n" + novel(70, 72), "b.txt": story})
    assert [(row["row"], row["chapter"], row["kept_row"]) for row in find(tmp_path)] == [(1, -1, 0)]


def test_a_text_of_nothing_but_shared_lines_stays(tmp_path: Path) -> None:
    banner = "欢迎光临老君庙书社看更多同类佳作"
    _, (document,) = clean_files(tmp_path, {"a.jsonl": jsonl([banner])})
    entries = [Entry(0, 0, document["doc_id"], "g", 1)]
    cuts = collect.Cuts({}, frozenset([banner]))
    collect.collect_shard("documents", 0, entries, cuts, str(tmp_path / "work"), None, SETTINGS)
    assert [row["text"] for row in read(tmp_path, "documents-00000.documents")] == [banner]
    assert read(tmp_path, "documents-00000.removed") == []


def test_a_segment_that_goes_whole_does_not_glue_its_neighbours(tmp_path: Path) -> None:
    records = ["他走了。", "www.example.com", "天黑了。"]
    _, (row,) = clean_files(tmp_path, {"a.jsonl": jsonl(records)}, SETTINGS._replace(records="segments"))
    assert row["text"] == "他走了。\n天黑了。"


def test_held_out_segments_are_signed_too() -> None:
    segments = SETTINGS._replace(records="segments", dedup="none")
    assert segments.signed == "none" and segments._replace(heldout_fraction=0.1).signed == "near"


def test_a_line_of_many_works_goes_with_a_record_of_it(tmp_path: Path) -> None:
    """A site's line once in each of six novels; the same words said by somebody stay."""
    banner = "欢迎光临老君庙书社看更多同类佳作"
    files = {f"{i}.txt": novel(10 * i, 10 * i + 3) + f"\n{banner}\n“{banner}”" for i in range(1, 7)}
    _, documents = clean_files(tmp_path, files)
    found = duplicates.shared_lines(1, str(tmp_path / "work"), [], 6)
    assert found["lines"] == [[banner, 6]]
    assert duplicates.shared_lines(1, str(tmp_path / "work"), [(0, 0), (0, 1)], 4)["lines"] == []
    entries = [Entry(0, row, documents[row]["doc_id"], "g", 1) for row in range(6)]
    collect.collect_shard(
        "documents", 0, entries, collect.Cuts({}, frozenset([banner])), str(tmp_path / "work"), None, SETTINGS
    )
    texts = [row["text"] for row in read(tmp_path, "documents-00000.documents")]
    assert all(text.count(banner) == 1 and f"“{banner}”" in text for text in texts)
    removed = read(tmp_path, "documents-00000.removed")
    lines = files["1.txt"].split("\n")
    assert len(removed) == 6 and lines[removed[0]["line_no"] - 1] == removed[0]["text"] == banner


def test_tables_have_their_schema_even_when_empty() -> None:
    assert parts.table([], parts.REMOVED).schema == parts.REMOVED


def test_tasks_import_neither_torch_nor_ray() -> None:
    code = "import sys, raystyle.corpus.collect; assert not {'torch', 'transformers', 'ray'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    code = "import sys, raystyle.corpus.prepare; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
