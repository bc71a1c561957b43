"""The whole job on a small dirty corpus, locally and on S3."""

import dataclasses
import gzip
import io
import json
import os
import random
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from prose import PROSE

from raystyle import storage
from raystyle.config import PrepareConfig
from raystyle.corpus import dedup, shards, stages, tasks
from raystyle.corpus import prepare as job
from raystyle.corpus.manifest import Manifest, read_manifest
from raystyle.errors import ConfigError, DataError, ModelError, RunError

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("ray_local")]


def chapter(number: int, title: str, sentences: int) -> str:
    body = "\r\n".join(f"　　{PROSE[(number + i) % len(PROSE)]}那是第{number}回第{i}日。" for i in range(sentences))
    return f"第{number}章 {title}\r\n\r\n{body}\r\nwww.example.com\r\n"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Five readable files in three encodings, and five that are not."""
    root = tmp_path / "corpus"
    (root / "sub").mkdir(parents=True)
    novel = "《甲》\r\n作者：某某\r\n" + "".join(
        chapter(i, f"风起({i})" if i < 4 else f"云{i}涌", 6 + i) for i in range(1, 9)
    )
    (root / "a.txt").write_bytes(novel.encode("gb18030"))
    (root / "b.txt").write_bytes(("这是另一部书。\n" + "\n".join(PROSE * 3)).encode("utf-8-sig"))
    (root / "sub" / "c.txt").write_bytes(
        "大江東去，浪淘盡、千古風流人物。\n他說：「這個時候，還沒有人來。」\n".encode("cp950") * 4
    )
    records = [json.dumps({"text": sentence}, ensure_ascii=False) for sentence in PROSE[:4]]
    (root / "d.jsonl").write_text("\n".join([*records, "{broken"]) + "\n", "utf-8")
    (root / "e.txt").write_text("他走了<br/>，没有回头。\n" * 3, "utf-8")
    (root / "empty.txt").write_bytes(b"")
    (root / "binary.txt").write_bytes(b"\x00\x01\x02")
    (root / "broken.txt").write_bytes(b"\xff\xfe\xff\xd8\x00\xd8")
    (root / "noise.txt").write_text("www.example.com\n", "utf-8")
    (root / "cover.jpg").write_bytes(b"\xff\xd8")
    return root


def config(corpus: Path | str, output: Path | str, tokenizer: str | None = None, **fields: Any) -> PrepareConfig:
    lengths = {"max_seq_length": 64, "segment_length": 16}
    return PrepareConfig(
        dataset_path=(str(corpus),), output_dir=str(output), tokenizer_name_or_path=tokenizer, **{**lengths, **fields}
    )


def rows_of(output: Path | str, folder: str) -> list[dict[str, Any]]:
    return (
        pq.read_table(str(output), columns=None).to_pylist()
        if not folder
        else pq.read_table(f"{output}/{folder}").to_pylist()
    )


def test_prepare_writes_what_design_says(corpus: Path, tmp_path: Path, tokenizer: Any, tokenizer_dir: str) -> None:
    out = tmp_path / "out"
    manifest = job.prepare(config(corpus, out, tokenizer_dir))
    assert sorted(os.listdir(out)) == ["documents", "manifest.json", "rejected", "removed", "report.html", "rows"]
    documents, rows = rows_of(out, "documents"), rows_of(out, "rows")
    assert [Path(d["source"]).name for d in documents] == ["a.txt", "b.txt", *["d.jsonl"] * 4, "e.txt", "c.txt"]
    assert documents[0]["title"] == "a" and "www" not in documents[0]["text"] and "第1章" not in documents[0]["text"]
    assert len({d["doc_id"] for d in documents}) == len(documents)

    assert [row["row"] for row in rows] == list(range(len(rows)))
    assert manifest.counts["rows"] == len(rows) and manifest.counts["documents"] == len(documents)
    assert manifest.counts["tokens"] == sum(sum(row["segment_lengths"]) for row in rows)
    assert manifest.counts["padding"] == 64 * len(rows) - manifest.counts["tokens"]
    ids: dict[str, list[int]] = {}
    for row in rows:
        place = 0
        for length, piece in zip(row["segment_lengths"], row["pieces"], strict=True):
            ids.setdefault(piece["doc_id"], []).extend(row["input_ids"][place : place + length])
            place += length
    for document in documents:
        found = ids[document["doc_id"]]
        assert found[0] == tokenizer.bos_token_id and found[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(found[1:-1]) == document["text"]

    schema = pq.read_schema(out / "rows" / "part-00000.parquet")
    assert str(schema.field("input_ids").type) == "fixed_size_list<item: int32>[64]" or "[64]" in str(
        schema.field("input_ids").type
    )
    (shard,) = manifest.shards
    assert shard["sha256"] == storage.sha256([(out / shard["path"]).read_bytes()])
    written = json.loads((out / "manifest.json").read_text())
    assert written["max_seq_length"] == 64 and written["digest"] == manifest.digest and "unchanged" not in written
    assert dataclasses.replace(read_manifest(str(out))) == manifest


def test_what_is_removed_and_rejected_is_told(corpus: Path, tmp_path: Path) -> None:
    manifest = job.prepare(config(corpus, tmp_path / "out"))
    rejected = {Path(r["source"]).name: r["reason"] for r in rows_of(tmp_path / "out", "rejected")}
    broken = (corpus / "d.jsonl").read_bytes().index(b"{broken")
    assert rejected == {
        "empty.txt": "empty", "binary.txt": "nul", "broken.txt": "undecodable", "noise.txt": "no_text_left",
        "cover.jpg": "unsupported", f"d.jsonl#byte {broken}": "bad_json",
    }  # fmt: skip
    counts = manifest.counts
    assert counts["rows"] is None and manifest.tokenizer is None
    assert counts["inputs"] == len(list(corpus.rglob("*.*"))) and counts["texts"] == counts["inputs"] + 4
    assert counts["texts"] == counts["documents"] + counts["rejected"] and counts["rejected"] == 6
    for entry in manifest.inputs:
        assert entry["texts"] == entry["documents"] + entry["rejected"] > 0
        assert entry["sha256"] == storage.sha256([Path(entry["source"]).read_bytes()])
    removed = rows_of(tmp_path / "out", "removed")
    assert len(removed) == manifest.counts["removed"]
    text = (corpus / "a.txt").read_bytes().decode("gb18030").replace("\r\n", "\n").split("\n")
    for row in (row for row in removed if row["source"].endswith("/a.txt")):
        assert text[row["line_no"] - 1][row["char_start"] : row["char_end"]] == row["text"]
    assert {row["source"].rpartition("/")[2] for row in removed if row["rule"] == "html_tag"} == {"e.txt"}
    assert counts["characters_in"] - counts["characters_kept"] == sum(
        len(r["text"]) - len(r["replacement"]) for r in removed
    )


def test_the_report_is_self_contained_and_escapes(corpus: Path, tmp_path: Path) -> None:
    (corpus / "x.txt").write_text("PS：<script>alert(1)</script>今天只有一更\n" + PROSE[0], "utf-8")
    job.prepare(config(corpus, tmp_path / "out"))
    report = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "vote_request" in report and "<svg" in report and "gb18030" in report
    assert "<script>alert" not in report and "&lt;script&gt;alert(1)" in report
    assert not re.search(r"""(?:src|href)=["']?(?!["']?#)|@import|url\(""", report)


def test_the_digest_does_not_depend_on_groups_or_place(
    corpus: Path, tmp_path: Path, tokenizer_dir: str, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = job.prepare(config(corpus, tmp_path / "one", tokenizer_dir))
    for file in storage.list_files(str(corpus)):
        storage.write_bytes(f"{bucket}/in{file.uri[len(str(corpus)) :]}", storage.read_bytes(file.uri))
    monkeypatch.setattr(shards, "MIN_GROUP_BYTES", 1)
    remote = job.prepare(config(f"{bucket}/in", f"{bucket}/out", tokenizer_dir))
    assert (remote.digest, remote.counts) == (one.digest, one.counts)
    assert [s["sha256"] for s in remote.shards] == [s["sha256"] for s in one.shards]
    assert len(storage.list_files(f"{bucket}/out/removed")) > len(storage.list_files(f"{tmp_path}/one/removed"))
    assert not storage.exists(f"{bucket}/out/_work")
    assert job.prepare(config(f"{bucket}/in", f"{bucket}/out", tokenizer_dir)).unchanged


def test_a_second_run_does_nothing_and_a_changed_file_is_noticed(
    corpus: Path, tmp_path: Path, tokenizer_dir: str
) -> None:
    out = tmp_path / "out"
    first = job.prepare(config(corpus, out, tokenizer_dir))
    before = {file.uri: file.mtime_ns for file in storage.list_files(str(out))}
    again = job.prepare(config(corpus, out, tokenizer_dir))
    assert again.unchanged and not first.unchanged and again.digest == first.digest
    os.utime(corpus / "a.txt")
    assert job.prepare(config(corpus, out, tokenizer_dir)).unchanged
    assert {file.uri: file.mtime_ns for file in storage.list_files(str(out))} == before

    for change, said in [
        ({"segment_length": 8}, r"`segment_length` \(16, now 8\)"),
        ({"rules": "common"}, "another `rules`"),
    ]:
        with pytest.raises(RunError, match=said):
            job.prepare(config(corpus, out, tokenizer_dir, **change))
    with pytest.raises(RunError, match="another `tokenizer`"):
        job.prepare(config(corpus, out))
    (corpus / "b.txt").write_text(PROSE[0], "utf-8")
    with pytest.raises(RunError, match=r"`.*b.txt` has changed\nhint: choose another `--output_dir`"):
        job.prepare(config(corpus, out, tokenizer_dir))
    (corpus / "b.txt").unlink()
    with pytest.raises(RunError, match="is gone"):
        job.prepare(config(corpus, out, tokenizer_dir))
    assert {file.uri: file.mtime_ns for file in storage.list_files(str(out))} == before


def test_a_run_continues_from_finished_shards(
    corpus: Path, tmp_path: Path, tokenizer_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "MIN_GROUP_BYTES", 1)
    undisturbed = job.prepare(config(corpus, tmp_path / "one", tokenizer_dir))
    out = tmp_path / "two"
    with monkeypatch.context() as patch:
        patch.setattr(shards, "choose_heldout", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            job.prepare(config(corpus, out, tokenizer_dir))
    (work,) = (path for path in (out / "_work").iterdir() if path.is_dir())
    assert not (out / "manifest.json").exists()
    kept, lost = work / "clean-00000.json", work / "clean-00001.json"
    time_kept, _ = kept.stat().st_mtime_ns, lost.unlink()
    (work / "clean-00002.documents.parquet.half").write_bytes(b"x")
    times: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(job, "write_report", lambda *_: times.append(kept.stat().st_mtime_ns))
        resumed = job.prepare(config(corpus, out, tokenizer_dir))
    assert times == [time_kept]
    assert resumed.digest == undisturbed.digest and not (out / "_work").exists()
    assert [s["sha256"] for s in resumed.shards] == [s["sha256"] for s in undisturbed.shards]


def test_nothing_of_a_half_finished_run_leaks(
    corpus: Path, tmp_path: Path, tokenizer_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(shards, "MIN_GROUP_BYTES", 1)
        patch.setattr(job, "write_report", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            job.prepare(config(corpus, out, tokenizer_dir, heldout_fraction=0.3))
    assert (out / "heldout").is_dir() and not (out / "manifest.json").exists()
    manifest = job.prepare(config(corpus, out))
    fresh = job.prepare(config(corpus, tmp_path / "fresh"))
    assert manifest.digest == fresh.digest
    relative = [[f.uri[len(str(root)) :] for f in storage.list_files(str(root))] for root in (out, tmp_path / "fresh")]
    assert relative[0] == relative[1]


def test_held_out_pieces_are_whole_and_not_in_rows(corpus: Path, tmp_path: Path, tokenizer_dir: str) -> None:
    manifest = job.prepare(
        config(corpus, tmp_path / "out", tokenizer_dir, document_unit="chapter", heldout_fraction=0.3)
    )
    documents, heldout = rows_of(tmp_path / "out", "documents"), rows_of(tmp_path / "out", "heldout")
    assert len(documents) == manifest.counts["documents"] and len(heldout) == manifest.counts["heldout"] > 0
    in_rows = {piece["doc_id"] for row in rows_of(tmp_path / "out", "rows") for piece in row["pieces"]}
    assert in_rows == {d["doc_id"] for d in documents} and not in_rows & {d["doc_id"] for d in heldout}
    parts = [{d["title"] for d in side if (d["title"] or "").startswith("风起")} for side in (documents, heldout)]
    assert not (parts[0] and parts[1])


def story(seed: int, lines: int = 60) -> list[str]:
    """Lines unlike those of any other seed."""
    dice, characters = random.Random(seed), sorted(set("".join(PROSE)) - set("，。、；：！？“”"))
    return ["".join(dice.choices(characters, k=dice.randint(8, 20))) + "。" for _ in range(lines)]


def write_editions(root: Path) -> None:
    """A book, the same with other punctuation, an edition that lacks some lines, and two books of their own."""
    book = story(1)
    root.mkdir()
    (root / "a.txt").write_text("\n".join(book), "utf-8")
    (root / "b.txt").write_text("\r\n".join(line.replace("。", "！") for line in book), "gb18030")
    (root / "c.txt").write_text("\n".join(line for i, line in enumerate(book) if i % 12), "utf-8")
    for seed in (2, 3):
        (root / f"d{seed}.txt").write_text("\n".join(story(seed)), "utf-16")


@pytest.mark.parametrize(("how", "gone"), [("none", []), ("exact", ["b.txt"]), ("near", ["b.txt", "c.txt"])])
def test_duplicates_are_set_aside_and_name_what_stays(tmp_path: Path, how: str, gone: list[str]) -> None:
    write_editions(tmp_path / "in")
    manifest = job.prepare(config(tmp_path / "in", tmp_path / "out", dedup=how))
    documents = rows_of(tmp_path / "out", "documents")
    duplicates = rows_of(tmp_path / "out", "duplicates") if gone else []
    assert sorted(Path(row["source"]).name for row in duplicates) == gone
    assert manifest.counts["duplicates"] == len(gone) and manifest.counts["texts"] == 5 == len(documents) + len(gone)
    (kept,) = [d["doc_id"] for d in documents if d["source"].endswith("a.txt")]
    assert all(row["kept_doc_id"] == kept and row["similarity"] >= 0.7 and row["text"] for row in duplicates)


def test_held_out_text_is_unlike_what_is_trained_on(tmp_path: Path) -> None:
    """Even where duplicates stay: editions of a book are held out together or not at all."""
    write_editions(tmp_path / "in")
    for seed in range(10, 16):
        lines = story(seed)
        (tmp_path / "in" / f"{seed}.txt").write_text("\n".join(lines), "utf-8")
        (tmp_path / "in" / f"{seed}x.txt").write_text("\n".join(lines[:-6]), "utf-8")
    manifest = job.prepare(config(tmp_path / "in", tmp_path / "out", dedup="none", heldout_fraction=0.4))
    texts = {side: [d["text"] for d in rows_of(tmp_path / "out", side)] for side in ("documents", "heldout")}
    assert manifest.counts["heldout"] == len(texts["heldout"]) >= 4 and len(texts["documents"]) >= 8
    (trained, _), (heldout, _) = (dedup.sign(side) for side in texts.values())
    for sketch in heldout.sketches_UP:
        assert dedup.estimate(trained.sketches_UP, sketch).max() < dedup.RELATED


def test_best_fit_packs_the_same_tokens(tmp_path: Path, tokenizer: Any, tokenizer_dir: str) -> None:
    write_editions(tmp_path / "in")
    manifests = {
        mode: job.prepare(config(tmp_path / "in", tmp_path / mode, tokenizer_dir, packing=mode))
        for mode in ("concat", "best_fit")
    }
    assert manifests["concat"].digest != manifests["best_fit"].digest
    assert manifests["concat"].counts["tokens"] == manifests["best_fit"].counts["tokens"]
    pieces: dict[str, list[tuple[int, list[int]]]] = {}
    for row in rows_of(tmp_path / "best_fit", "rows"):
        place = 0
        for length, piece in zip(row["segment_lengths"], row["pieces"], strict=True):
            ids = row["input_ids"][place : place + length]
            pieces.setdefault(piece["doc_id"], []).append((piece["char_start"], piece["char_end"], ids))
            place += length
    for document in rows_of(tmp_path / "best_fit", "documents"):
        found = [i for *_, ids in sorted(pieces[document["doc_id"]], key=lambda piece: piece[:2]) for i in ids]
        assert tokenizer.decode(found[1:-1]) == document["text"]


def test_a_preview_takes_a_few_files_and_texts_of_each(corpus: Path, tmp_path: Path) -> None:
    manifest = job.prepare(config(corpus, tmp_path / "out", limit=3))
    assert len(manifest.inputs) == 3 and all(1 <= entry["texts"] <= 3 for entry in manifest.inputs)
    again = job.prepare(config(corpus, tmp_path / "out", limit=3))
    assert again.unchanged


def test_an_encoding_that_is_given_is_used(tmp_path: Path) -> None:
    """Text that may be either: the same bytes are one thing as GB 18030, another as Big5."""
    (tmp_path / "a.txt").write_bytes(
        "大江東去，浪淘盡、千古風流人物。\n他說：「這個時候，還沒有人來。」\n".encode("cp950")
    )
    texts = {}
    for encoding in ("big5", "gb18030", None):
        out = tmp_path / str(encoding)
        manifest = job.prepare(config(tmp_path / "a.txt", out, encoding=encoding, to_simplified="never"))
        texts[encoding] = rows_of(out, "documents")[0]["text"]
        assert encoding is None or encoding in (manifest.inputs[0]["encoding"], "big5")
    assert texts["big5"] == texts[None] and "大江東去" in texts[None] and "大江" not in texts["gb18030"]


def test_archives_on_s3_give_what_their_members_would(tmp_path: Path, bucket: str) -> None:
    local = tmp_path / "in"
    (local / "册.zip").mkdir(parents=True)
    books = {f"册.zip/{seed}.txt": "\n".join(story(seed)).encode("gb18030") for seed in (1, 2)}
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in books.items():
            (local / name).write_bytes(data)
            archive.writestr(name.partition("/")[2], data)
    records = "\n".join(json.dumps({"text": "\n".join(story(seed))}) for seed in (3, 4)).encode()
    (local / "r.jsonl").write_bytes(records)
    storage.write_bytes(f"{bucket}/in/册.zip", packed.getvalue())
    storage.write_bytes(f"{bucket}/in/r.jsonl", gzip.compress(records))
    plain = job.prepare(config(local, tmp_path / "out"))
    remote = job.prepare(config(f"{bucket}/in", f"{bucket}/out"))
    assert remote.counts == plain.counts and plain.counts["documents"] == 4
    found, expected = (
        [(d["doc_id"], d["text"]) for f in storage.list_files(f"{root}/documents") for d in
         pq.read_table(storage.open_input(f.uri)).to_pylist()]
        for root in (f"{bucket}/out", tmp_path / "out")
    )  # fmt: skip
    assert found == expected


def test_records_that_are_segments_make_one_document(tmp_path: Path, tokenizer_dir: str) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {char: i for i, char in enumerate(["<eos>", *sorted(set("".join(PROSE)))])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<eos>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>").save_pretrained(tmp_path / "characters")
    text = "".join(PROSE) * 40
    records = [text[start : start + 16] for start in range(0, 16 * 160, 16)]
    (tmp_path / "segments.jsonl").write_text(
        "".join(json.dumps({"text": r}, ensure_ascii=False) + "\n" for r in records)
    )
    out = tmp_path / "out"
    manifest = job.prepare(config(tmp_path / "segments.jsonl", out, str(tmp_path / "characters"), records="segments"))
    rows = rows_of(out, "rows")
    assert manifest.counts["rows"] == 40 and manifest.counts["padding"] == 0
    assert all(row["segment_lengths"] == [16] * 4 for row in rows)
    (document,) = rows_of(out, "documents")
    assert document["text"] == text[: 16 * 160]
    assert [p["char_start"] for row in rows for p in row["pieces"]] == list(range(0, 16 * 160, 16))


def test_mistakes_are_said_and_leave_nothing(corpus: Path, tmp_path: Path, tokenizer_dir: str) -> None:
    out = tmp_path / "out"
    with pytest.raises(ModelError, match="does not exist"):
        job.prepare(config(corpus, out, "/no/such/tokenizer"))
    with pytest.raises(ConfigError, match="no rules named"):
        job.prepare(config(corpus, out, rules="zh"))
    with pytest.raises(DataError, match="does not exist"):
        job.prepare(config(tmp_path / "missing", out))
    assert not out.exists()
    with pytest.raises(DataError, match=r"no text is left of 1 files: no_text_left \(1\)"):
        job.prepare(config(corpus / "noise.txt", out))
    assert not storage.list_files(str(out))  # but for what was cleaned, hidden in _work/
    with pytest.raises(DataError, match="single piece"):
        job.prepare(config(corpus / "b.txt", out, heldout_fraction=0.2))
    assert not (out / "manifest.json").exists()
    shutil.rmtree(out)
    out.mkdir()
    (out / "thesis.txt").write_text("x")
    with pytest.raises(RunError, match="is not empty"):
        job.prepare(config(corpus, out))


def test_an_error_of_ours_comes_out_of_a_worker_as_itself(corpus: Path, tmp_path: Path) -> None:
    swap = {"why": "Swaps.", "action": "rewrite"}
    there = {**swap, "name": "a", "pattern": "走", "replace": "去", "literals": ["走"], "examples": {"match": ["走"]}}
    back = {**swap, "name": "b", "pattern": "去", "replace": "走", "literals": ["去"], "examples": {"match": ["去"]}}
    rules = tmp_path / "loop.yaml"
    rules.write_text(json.dumps({"rules": [there, back]}), "utf-8")
    with pytest.raises(ConfigError, match="keep rewriting"):
        job.prepare(config(corpus, tmp_path / "out", rules=str(rules)))


def test_the_novels_come_out_as_documents(novels: Path, tmp_path: Path) -> None:
    manifest = job.prepare(config(novels, tmp_path / "out", document_unit="chapter", heldout_fraction=0.1))
    assert manifest.counts["inputs"] == 11 and manifest.counts["rejected"] == 0
    assert {entry["encoding"] for entry in manifest.inputs} == {"utf-8", "utf-8-sig", "gb18030"}
    assert 0.05 < manifest.counts["heldout"] / manifest.counts["documents"] <= 0.12


def test_manifest_is_the_last_word(corpus: Path, tmp_path: Path) -> None:
    manifest = job.prepare(config(corpus, tmp_path / "out"))
    assert isinstance(manifest, Manifest)
    (tmp_path / "out" / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"holds no manifest.json"):
        read_manifest(str(tmp_path / "out"))
    assert stages.key_of({"a": 1}) == stages.key_of({"a": 1})


def test_jobs_of_one_task_keep_their_order_and_stop_at_the_first_error(tmp_path, monkeypatch):
    def work(number: int, folder: str, failing: int) -> dict[str, Any]:
        Path(folder, str(number)).touch()
        if number == failing:
            raise DataError(f"job {number} failed")
        return {"number": number}

    monkeypatch.setattr(tasks, "blocks", lambda sizes, _: [range(4), range(4, len(sizes))][: 1 + (len(sizes) > 4)])
    jobs = [(number, str(tmp_path), -1) for number in range(8)]
    assert tasks.each(work, jobs, [1] * 8, "trying") == [{"number": number} for number in range(8)]
    for path in tmp_path.iterdir():
        path.unlink()
    with pytest.raises(DataError, match="job 1 failed"):
        tasks.each(work, [(number, str(tmp_path), 1) for number in range(4)], [1] * 4, "trying")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]
