"""Evaluation on a real Ray: what is measured is kept, what fails leaves the rest be, and the numbers are right."""

import dataclasses
import json
import os
import signal
import time
import types
from pathlib import Path

import pytest
import torch

from raystyle import adapters, evaluation, flags, pipeline, storage
from raystyle.config import EvaluateConfig, TrainConfig
from raystyle.errors import ConfigError, ModelError, RunError, TrainingError
from raystyle.style import evaluate as style
from raystyle.style.judgement import Yardstick
from raystyle.style.material import Document, gather
from raystyle.style.measure import LIGHT, Model
from raystyle.style.subjects import Subject, find_subjects
from raystyle.training import lora

pytestmark = pytest.mark.e2e

SETTINGS = dataclasses.replace(LIGHT, prompts=LIGHT.prompts[:3], max_new_tokens=24, role_chars=2000, prefixes=4)


def text(words: str, number: int) -> str:
    """Made-up prose of one manner, different in each document."""
    names = "赵钱孙李周吴郑王冯陈"
    lines = [
        f"{names[(number + i) % 10]}家的{word}在{'东西南北'[i % 4]}边，{names[(number * 3 + i) % 10]}老人{word}了{i}回。"
        for i, word in enumerate(words * 6)
    ]
    return "\n".join("".join(lines[i : i + 4]) for i in range(0, len(lines), 4))


def made_up():
    return gather(
        "甲",
        train=[Document("甲", f"train-{i}", text("望听问切走", i)) for i in range(8)],
        heldout=[Document("甲", f"heldout-{i}", text("望听问切走", 20 + i)) for i in range(6)],
        contrast=[Document("乙", f"contrast-{i}", text("山河湖海田", 40 + i)) for i in range(6)],
        neutral=[Document("neutral", f"neutral-{i}", text("书纸笔墨灯", 60 + i)) for i in range(6)],
    )


def write_adapter(tiny_model, directory, step, steps_of_training):
    """An adapter of the tiny model, after some real steps on a few ids."""
    from transformers import AutoModelForCausalLM

    needed = {"model_name_or_path": "m", "dataset_path": ["/d"], "output_dir": "/o"}
    config = flags.from_dict(TrainConfig, needed | {"lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.0})
    torch.manual_seed(step)
    model = lora.attach(AutoModelForCausalLM.from_pretrained(tiny_model), config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    for number in range(steps_of_training):
        ids = 100 + (torch.arange(60)[None] * 7 + number) % 150
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    adapters.save(model, str(directory), {"step": step})
    storage.write_json(str(directory / "checkpoint.json"), {"step": step, "sha256": {}})
    return directory


@pytest.fixture(scope="module")
def checkpoints(tiny_model, tmp_path_factory):
    place = tmp_path_factory.mktemp("adapters")
    return [write_adapter(tiny_model, place / f"step-{n:08d}", n, n) for n in (2, 6)]


def start(tiny_model, output):
    return style.begin(Model(str(tiny_model), str(tiny_model)), made_up(), SETTINGS, str(output))


@pytest.fixture(scope="module")
def evaluated(ray_local, tiny_model, checkpoints, tmp_path_factory):
    output = tmp_path_factory.mktemp("evaluation")
    evaluation = start(tiny_model, output)
    subjects = find_subjects([str(path) for path in checkpoints])
    return style.evaluate(evaluation, subjects, timeout_s=300), evaluation, subjects


def test_every_subject_is_measured_beside_the_base(evaluated):
    result, evaluation, _ = evaluated
    assert [s["name"] for s in result["subjects"]] == ["base", "step-00000002", "step-00000006"]
    base, *others = result["subjects"]
    assert base["gain"] is None and base["drift"]["divergence"] == 0
    for subject in others:
        assert subject["drift"]["divergence"] > 0
        assert subject["gain"]["heldout"]["value"] == pytest.approx(
            base["likelihood"]["heldout"]["value"] - subject["likelihood"]["heldout"]["value"], abs=1e-6
        )
        assert len(subject["samples"]) == 4
    assert others[0]["drift"]["divergence"] < others[1]["drift"]["divergence"]
    assert result["verdict"]["recommended"] in ("step-00000002", "step-00000006")
    written = storage.read_bytes(storage.join(evaluation.output_dir, "evaluation.json"))
    assert json.loads(written) == json.loads(json.dumps(result, allow_nan=False))
    page = storage.read_bytes(storage.join(evaluation.output_dir, "report.html")).decode()
    assert ">nan<" not in page.lower() and "Verdict" in page


def test_a_second_run_measures_nothing_and_says_the_same(evaluated):
    result, evaluation, subjects = evaluated
    records = {uri: os.stat(uri).st_mtime_ns for s in subjects for uri in [evaluation.record_uri(s)]}
    again = style.evaluate(evaluation, subjects, timeout_s=0.001)
    assert {uri: os.stat(uri).st_mtime_ns for uri in records} == records
    assert json.dumps(again, sort_keys=True) == json.dumps(result, sort_keys=True)


def test_another_order_of_adapters_changes_no_number(evaluated):
    result, evaluation, subjects = evaluated
    again = style.evaluate(evaluation, [subjects[0], *subjects[:0:-1]], timeout_s=60)
    by_name = {s["name"]: s for s in again["subjects"]}
    assert all(by_name[s["name"]] == s for s in result["subjects"])
    assert again["verdict"]["recommended"] == result["verdict"]["recommended"]


def test_a_broken_adapter_is_reported_and_the_others_are_measured(evaluated, checkpoints, tmp_path):
    _, evaluation, subjects = evaluated
    broken = tmp_path / "step-00000009"
    broken.mkdir()
    for name in ("adapter_config.json", "checkpoint.json"):
        (broken / name).write_bytes((checkpoints[0] / name).read_bytes())
    (broken / "adapter_model.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ")
    (broken / adapters.ABOUT).write_text(json.dumps({"step": 9, "fingerprint": "0" * 64}))
    elsewhere = dataclasses.replace(evaluation, output_dir=str(tmp_path / "out"))
    result = style.evaluate(elsewhere, [*subjects[:2], *find_subjects([str(broken)])[1:]], timeout_s=300)
    assert set(result["failed"]) == {"step-00000009"}
    assert "step-00000009" in result["failed"]["step-00000009"] or "ModelError" in result["failed"]["step-00000009"]
    assert [s["name"] for s in result["subjects"]] == ["base", "step-00000002"]


def test_a_task_that_is_killed_or_hangs_leaves_the_others_be(evaluated, tiny_model, tmp_path, monkeypatch):
    """The task is cloudpickled from here: what is put in its place acts in Ray's worker.

    The others have their ten minutes, which pass in a moment when only the one that hangs is left.
    """
    _, evaluation, subjects = evaluated
    real, hanging = style.measure_subject, tmp_path / "hanging"
    elsewhere = dataclasses.replace(evaluation, output_dir=str(tmp_path / "out"))

    def odd(evaluation, subject, part="measure"):
        if subject.name == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if subject.name == "hangs":
            hanging.touch()
            time.sleep(3600)
        return real(evaluation, subject, part)

    def monotonic():
        files = [hanging, *(Path(elsewhere.record_uri(subject)) for subject in subjects[:2])]
        is_left = all(file.exists() and time.time() - file.stat().st_mtime > 10 for file in files)
        return time.monotonic() + 600 * is_left

    monkeypatch.setattr(style, "measure_subject", odd)
    monkeypatch.setattr(style, "time", types.SimpleNamespace(monotonic=monotonic))
    two = [Subject(name, "adapter", subjects[1].path, 1, name * 8) for name in ("killed", "hangs")]
    result = style.evaluate(elsewhere, [subjects[0], *two, subjects[1]], timeout_s=600)
    assert "600 s" in result["failed"]["hangs"] and result["failed"]["killed"]
    assert [s["name"] for s in result["subjects"]] == ["base", "step-00000002"]


def test_nothing_measured_is_an_error_and_leaves_no_report(ray_local, tiny_model, tmp_path):
    evaluation = dataclasses.replace(
        start(tiny_model, tmp_path), model=Model(str(tmp_path / "no-model"), str(tiny_model))
    )
    with pytest.raises(TrainingError, match="nothing could be evaluated"):
        style.evaluate(evaluation, find_subjects([]), timeout_s=60)
    assert not (tmp_path / "evaluation.json").exists()


def test_the_command_takes_a_run_with_its_own_text(ray_local, tiny_model, tiny_prepared, checkpoints, tmp_path):
    run = tmp_path / "run"
    for place in checkpoints:
        storage.upload(str(place), str(run / "checkpoints" / place.name))
    (run / "plan.json").write_text("{}")
    (run / "config.json").write_text(json.dumps({"dataset_path": [str(tiny_prepared)]}))
    with pytest.raises(ModelError, match="does not exist"):
        evaluate(tiny_model, [run / "nothing"])
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "report.html").write_text("mine")
    with pytest.raises(RunError, match="not an evaluation"):
        evaluate(tiny_model, [checkpoints[0]], output_dir=str(tmp_path / "photos"))
    assert (tmp_path / "photos" / "report.html").read_text() == "mine"
    with pytest.raises(ConfigError, match="output_dir"):
        evaluate(tiny_model, [checkpoints[0], checkpoints[1]])


def test_a_run_whose_data_kept_only_rows_trains_and_is_evaluated_on_what_there_is(
    ray_local, tiny_model, tiny_prepared, tmp_path
):
    words = ["--model_name_or_path", tiny_model, "--dataset_path", tiny_prepared, "--output_dir", tmp_path / "run"]
    words += ["--lora_r", 4, "--lora_alpha", 8, "--per_device_train_batch_size", 1, "--gradient_accumulation_steps", 1]
    words += ["--max_steps", 4, "--save_steps", 2, "--gradient_checkpointing", "false", "--learning_rate", 3e-3]
    said = []
    result = pipeline.train(flags.parse(TrainConfig, list(map(str, words))), said.append)
    assert any("no training text" in line for line in said)
    assert [e["step"] for e in result.metrics if e.get("evaluated")] == [2, 4]
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert [s["name"] for s in evaluation["subjects"]] == ["base", "step-00000002", "step-00000004"]
    assert any("too few to know a style by" in warning for warning in evaluation["warnings"])
    about = json.loads((tmp_path / "run" / "adapter" / adapters.ABOUT).read_text())
    assert about["selected"]["of_steps"] == 4
    # The same command trains nothing, tries again what failed, measures nothing, and may put the last one back.
    storage.write_json(str(tmp_path / "run" / "evaluation.json"), evaluation | {"failed": {"step-00000002": "lost"}})
    again = pipeline.train(flags.parse(TrainConfig, [*map(str, words), "--select_checkpoint", "last"]), said.append)
    assert again.unchanged
    about = json.loads((tmp_path / "run" / "adapter" / adapters.ABOUT).read_text())
    assert about["step"] == 4
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text()) == evaluation


def evaluate(model, paths, **values):
    config = flags.from_dict(
        EvaluateConfig, {"model_name_or_path": str(model), "lora_path": [str(p) for p in paths]} | values
    )
    return evaluation.evaluate(config, lambda _: None)


def test_a_record_on_object_storage_is_found_again(ray_local, tiny_model, checkpoints, bucket):
    evaluation = start(tiny_model, f"{bucket}/evaluation")
    [_, subject] = find_subjects([str(checkpoints[0])])
    first = style.measure_checkpoint(evaluation, str(checkpoints[0]))
    assert storage.exists(evaluation.record_uri(subject))
    assert style.measure_checkpoint(evaluation, str(checkpoints[0])) == first
    assert first["divergence"] > 0


def test_judging_needs_no_model(evaluated):
    result, evaluation, subjects = evaluated
    raw = storage.read_json(evaluation.record_uri(subjects[1]))
    judged = Yardstick(made_up()).judge(raw, storage.read_json(evaluation.record_uri(subjects[0])))
    there = next(s for s in result["subjects"] if s["name"] == subjects[1].name)
    assert json.loads(json.dumps(judged["gain"])) == there["gain"]
    assert json.loads(json.dumps(judged["copying"])) == there["copying"]
