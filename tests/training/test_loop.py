"""Which errors end a run at once, and which are worth another attempt; what is refused without Ray."""

import dataclasses
import json
import re
import types

import pytest
import ray.train

from raystyle.config import TrainConfig
from raystyle.errors import ConfigError, ModelError, StorageError, TrainingError
from raystyle.flags import from_dict
from raystyle.models import shapes_of
from raystyle.training import loop
from raystyle.training.plan import FAILURE


@pytest.mark.parametrize(("error", "is_final"), [(ModelError("no"), True), (StorageError("later"), False)])
def test_only_what_would_come_again_is_left_for_the_driver(tmp_path, monkeypatch, error, is_final):
    def fail(task, worker):
        assert (worker.rank, worker.num_workers) == (1, 3)
        raise error

    context = types.SimpleNamespace(get_world_rank=lambda: 1, get_world_size=lambda: 3)
    monkeypatch.setattr(ray.train, "get_context", lambda: context)
    monkeypatch.setattr(loop, "train", fail)
    task = dict.fromkeys(loop.Task.__dataclass_fields__) | {"config": {"output_dir": str(tmp_path)}}
    with pytest.raises(type(error)):
        loop.train_worker(task)
    assert (tmp_path / FAILURE).exists() == is_final
    if is_final:
        assert loop.train_worker(task) is None


@pytest.mark.parametrize(
    ("rank", "says"), [("0", "error: `dataset_path` .*raw text is prepared on Ray\nhint"), ("1", "^$")]
)
def test_raw_text_without_ray_is_refused_once_before_anything_is_written(
    tiny_model, tmp_path, monkeypatch, capsys, rank, says
):
    (tmp_path / "novel.txt").write_text("天地玄黄。")
    place = {"model_name_or_path": tiny_model, "dataset_path": tmp_path / "novel.txt", "output_dir": tmp_path / "r"}
    lengths = {"max_seq_length": 64, "segment_length": 32}
    words = [str(word) for name, value in (place | lengths).items() for word in (f"--{name}", value)]
    monkeypatch.setenv("RANK", rank)
    assert loop.main(words) == 2
    assert re.search(says, capsys.readouterr().err)
    assert not (tmp_path / "r").exists()


def test_a_device_that_is_too_small_is_told_with_the_way_out_and_counted_as_planned(
    tiny_model, tiny_prepared, tmp_path, monkeypatch, capsys
):
    """What the allocator raises ends the run; what a step needs was counted from the plan, not from what a worker holds."""
    import torch

    counted = []
    original = loop.memory.of

    def of(config, shapes, length, trainable, *arguments, **named):
        counted.append((shapes.parameters, trainable))
        return original(config, shapes, length, trainable, *arguments, **named)

    def train(self):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nmore")

    monkeypatch.setattr(loop.memory, "of", of)
    monkeypatch.setattr(loop.PackedTrainer, "train", train)
    monkeypatch.setattr(
        loop.models, "shapes_of", lambda base, identity: dataclasses.replace(shapes_of(base, identity), parameters=1)
    )
    place = {"model_name_or_path": tiny_model, "dataset_path": tiny_prepared, "output_dir": tmp_path / "r"}
    settings = {"lora_r": 4, "lora_alpha": 8, "max_steps": 2, "use_gpu": "false", "report_to": "none"}
    words = [str(word) for name, value in (place | settings).items() for word in (f"--{name}", value)]
    assert loop.main(words) == TrainingError.exit_code
    assert re.search(r"too small for a step: CUDA out of memory.*2.00 GiB\nhint: .*--fit", capsys.readouterr().err)
    plan = json.loads((tmp_path / "r" / "plan.json").read_text())
    assert counted[-1] == (plan["base_parameters"], plan["trainable_parameters"])
    assert not (tmp_path / "r" / "adapter").exists()


@pytest.mark.parametrize(
    ("schedule", "kwargs", "is_fine"),
    [("warmup_stable_decay", {}, False), ("warmup_stable_decay", {"num_decay_steps": 5}, True), ("cosine", {}, True)],
)
def test_a_schedule_without_what_it_needs_is_refused_before_the_base_is_loaded(tmp_path, schedule, kwargs, is_fine):
    needed = {"model_name_or_path": "m", "dataset_path": ["/d"], "output_dir": "/o"}
    config = from_dict(TrainConfig, needed | {"lr_scheduler_type": schedule, "lr_scheduler_kwargs": kwargs})
    task = types.SimpleNamespace(warmup_steps=2, steps=20, use_gpu=False, stream_shards=0)
    if is_fine:
        assert loop.training_arguments(config, task, 1, str(tmp_path), False).n_gpu <= 1
    else:
        with pytest.raises(ConfigError, match="transformers refuses these training arguments"):
            loop.training_arguments(config, task, 1, str(tmp_path), False)


def test_only_the_first_worker_asks_whose_the_folder_is(tiny_model, tiny_prepared, tmp_path, monkeypatch, capsys):
    """Another one would find what the first has just written, and leave it waiting; that all agree is asked in `train`."""
    begun = []

    def train(task, worker):
        begun.append(worker.rank)
        raise TrainingError("enough")

    monkeypatch.setattr(loop, "train", train)
    place = {"model_name_or_path": tiny_model, "dataset_path": tiny_prepared, "output_dir": tmp_path / "r"}
    settings = {"lora_r": 4, "lora_alpha": 8, "max_steps": 2, "use_gpu": "false", "report_to": "none"}
    words = [str(word) for name, value in (place | settings).items() for word in (f"--{name}", value)]
    for rank, rate in (("0", "1e-4"), ("1", "2e-4"), ("0", "2e-4")):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert loop.main([*words, "--learning_rate", rate]) != 0
    assert begun == [0, 1]
    assert "`learning_rate` was 0.0001, now 0.0002" in capsys.readouterr().err
