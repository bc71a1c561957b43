"""`prepare` loses nothing and always continues: killed, interrupted, out of space, twice at once, cut into other pieces."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from raystyle import storage
from raystyle.config import PrepareConfig
from raystyle.corpus import collect, shards, stages, tasks
from raystyle.corpus import prepare as job
from raystyle.errors import StorageError

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

import fuzz
import resume

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five MB of novels in several encodings and containers, with editions, duplicates and damage."""
    folder = tmp_path_factory.mktemp("resume") / "in"
    resume.make_corpus(folder, [fuzz.prose(random.Random(number), 200_000) for number in range(8)])
    return folder


def undisturbed(corpus: Path, output: Path, tokenizer: str) -> dict[str, str]:
    """The files of a run, or of what is left to do of one, on the session's Ray of two cores."""
    job.prepare(settings_of(corpus, output, tokenizer))
    return resume.hashes(output)


@pytest.fixture(scope="module")
def expected(ray_local: None, corpus: Path, tokenizer_dir: str) -> dict[str, str]:
    """The files that a run leaves which nobody disturbs."""
    return undisturbed(corpus, corpus.parent / "undisturbed", tokenizer_dir)


@pytest.mark.parametrize(
    ("stage", "target", "cores"),
    [("cleaning", "everything", 1), pytest.param("packing", "worker", 2, marks=pytest.mark.slow)],
)
def test_killed_it_continues_and_ends_in_the_same_bytes(
    corpus: Path, tmp_path: Path, tokenizer_dir: str, expected: dict[str, str], stage: str, target: str, cores: int
) -> None:
    """On one core, too: the files are those that two cores made."""
    for attempt in range(3):  # a busy machine may look too late, when the run is over
        output = tmp_path / f"out-{attempt}"
        words = resume.command(corpus, output, tokenizer_dir, "--num_cpus", str(cores))
        rounds = resume.disturb(words, output, stage, target, random.Random(2), delay_s=0.1)
        assert resume.hashes(output) == expected
        if rounds:
            break
    assert rounds


def in_process(function: Callable[..., Any], jobs: list[Any], *_: Any, **__: Any) -> list[Any]:
    return [function(*arguments) for arguments in jobs]


def tables(output: Path | str) -> dict[str, list[Any]]:
    """All rows of every table of a prepared corpus, however they are divided into files and row groups."""
    found: dict[str, list[Any]] = {}
    for file in storage.list_files(str(output), (".parquet",)):
        found.setdefault(file.uri.split("/")[-2], []).extend(pq.read_table(storage.open_input(file.uri)).to_pylist())
    # Removals of a text stand together, but where a group ends another begins.
    found["removed"] = sorted(found["removed"], key=lambda row: json.dumps(row, ensure_ascii=False))
    return found


def settings_of(corpus: Path, output: Path, tokenizer: str) -> PrepareConfig:
    """The same settings as `resume.command`'s."""
    return PrepareConfig(
        dataset_path=(str(corpus),), output_dir=str(output), tokenizer_name_or_path=tokenizer, max_seq_length=1024,
        segment_length=256, heldout_fraction=0.1,
    )  # fmt: skip


def test_how_the_work_is_cut_up_does_not_matter(
    corpus: Path, tmp_path: Path, tokenizer_dir: str, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups and batches; of what decides the result only the shards that rows are packed in are part of the plan."""
    before = json.loads((corpus.parent / "undisturbed/manifest.json").read_text("utf-8"))
    monkeypatch.setattr(tasks, "each", in_process)
    monkeypatch.setattr(tasks, "once", lambda function: function())
    monkeypatch.setattr(shards, "MIN_GROUP_BYTES", 1)
    monkeypatch.setattr(stages, "BATCH_CHARS", 1000)
    monkeypatch.setattr(collect, "BATCH_BYTES", 5000)
    manifest = job.prepare(settings_of(corpus, tmp_path / "small", tokenizer_dir))
    assert manifest.digest == before["digest"] and manifest.counts == before["counts"]
    assert manifest.shards == before["shards"] and manifest.inputs == before["inputs"]
    assert tables(tmp_path / "small") == tables(corpus.parent / "undisturbed")


@pytest.mark.usefixtures("ray_local")
def test_blocks_of_ray_data_do_not_matter(
    corpus: Path, tmp_path: Path, tokenizer_dir: str, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    context = ray.data.DataContext.get_current()
    monkeypatch.setattr(context, "target_max_block_size", 1)
    monkeypatch.setattr(context, "target_min_block_size", 1)
    job.prepare(settings_of(corpus, tmp_path / "out", tokenizer_dir))
    assert resume.hashes(tmp_path / "out") == expected


def test_a_second_run_at_once_is_refused(corpus: Path, tmp_path: Path, tokenizer_dir: str) -> None:
    output = tmp_path / "out"
    with (
        storage.locked(f"{output}/_work/lock"),
        pytest.raises(StorageError, match=r"another process is writing below .*\nhint: wait for it"),
    ):
        job.prepare(settings_of(corpus, output, tokenizer_dir))
    assert sorted(path.name for path in output.rglob("*")) == ["_work", "lock"]


@pytest.mark.slow
def test_ctrl_c_says_so_and_the_next_run_continues(
    corpus: Path, tmp_path: Path, tokenizer_dir: str, expected: dict[str, str]
) -> None:
    for attempt in range(3):  # a busy machine may look too late, when the run is over
        output = tmp_path / f"out-{attempt}"
        run = resume.Run(resume.command(corpus, output, tokenizer_dir, "--num_cpus", "2"))
        while not run.ended() and not resume.signs(output, "cleaning"):
            time.sleep(0.02)
        if not run.ended():
            break
    os.killpg(run.process.pid, signal.SIGINT)  # as a terminal does it
    code, said = run.wait()
    assert code == 130 and "interrupted; the same command continues where it stopped" in said, said
    assert "Traceback" not in said, said
    assert not (output / "manifest.json").exists() and resume.markers(output)
    assert undisturbed(corpus, output, tokenizer_dir) == expected


def test_text_that_changed_before_the_run_went_on_is_read_anew(
    tmp_path: Path, tokenizer_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that was decided about the old text may come to bear on the new."""
    monkeypatch.setattr(tasks, "each", in_process)
    monkeypatch.setattr(tasks, "once", lambda function: function())
    folder = tmp_path / "in"
    folder.mkdir()
    one, other, third = (fuzz.prose(random.Random(seed), 3000) for seed in (1, 2, 3))
    (folder / "a.txt").write_text(one, "utf-8")
    (folder / "b.txt").write_text(one.replace("，", "、"), "utf-8")
    (folder / "d.txt").write_text(third, "utf-8")
    with monkeypatch.context() as patch:
        patch.setattr(job, "_publish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            job.prepare(settings_of(folder, tmp_path / "out", tokenizer_dir))
    (folder / "b.txt").write_text(other, "utf-8")
    (folder / "c.txt").write_text(other + "还有一句。", "utf-8")
    assert "choices.json" in resume.markers(tmp_path / "out")
    manifest = job.prepare(settings_of(folder, tmp_path / "out", tokenizer_dir))
    fresh = job.prepare(settings_of(folder, tmp_path / "fresh", tokenizer_dir))
    assert manifest.digest == fresh.digest
    assert resume.hashes(tmp_path / "out") == resume.hashes(tmp_path / "fresh")


def test_what_a_killed_run_wrote_half_does_not_stay(
    tmp_path: Path, tokenizer_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "each", in_process)
    monkeypatch.setattr(tasks, "once", lambda function: function())
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for seed in range(3):
        (folder / f"{seed}.txt").write_text(fuzz.prose(random.Random(seed), 3000), "utf-8")
    work = output / "_work" / "0123456789abcdef"
    half = [work / ".started.x1", output / "rows" / ".part-00000.parquet.x2", output / ".manifest.json.x3"]
    for path in [*half, output / "rejected" / ".part-00000.parquet.x4"]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    job.prepare(settings_of(folder, output, tokenizer_dir))
    job.prepare(settings_of(folder, tmp_path / "fresh", tokenizer_dir))
    assert resume.hashes(output) == resume.hashes(tmp_path / "fresh")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_said_and_with_room_it_goes_on(
    corpus: Path, small_disk: Path, tokenizer_dir: str, expected: dict[str, str]
) -> None:
    output = small_disk / "out"
    run = resume.Run(resume.command(corpus, output, tokenizer_dir, "--num_cpus", "2"))
    code, said = run.wait()
    assert code == 2, said
    assert "raystyle: error: cannot write" in said and "the disk is full\nhint: make room" in said, said
    assert "Traceback" not in said and not (output / "manifest.json").exists()
    subprocess.run(["mount", "-o", "remount,size=200m", small_disk], check=True)
    assert undisturbed(corpus, output, tokenizer_dir) == expected


def test_damaged_files_are_all_accounted_for(tmp_path: Path, ray_local: None) -> None:
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    fuzz.make(folder, 400, seed=5)
    config = PrepareConfig(dataset_path=(str(folder),), output_dir=str(output), dedup="near", document_unit="work")
    manifest = job.prepare(config)
    wrong, figures = fuzz.accounts(folder, output)
    assert not wrong
    assert figures["rejected"] > 100 and figures["documents"] > 100, figures
    assert job.prepare(config).unchanged and manifest.counts["inputs"] >= 400
