"""Rows made while training, on a real Ray, from object storage: one order whatever happens, and a cursor to go on from."""

import contextlib
import json
import random
import shutil
import threading
import time
from typing import Any

import psutil
import pytest
import ray
import ray.data
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from raystyle import flags, pipeline, storage, streaming
from raystyle.config import TrainConfig
from raystyle.corpus import shards
from raystyle.errors import ConfigError, DataError
from raystyle.training import checkpoints, loop, metrics, preflight
from raystyle.training.streamed import Streamed, StreamOrder
from raystyle.training.trainer import Task, Worker

pytestmark = pytest.mark.e2e

STEPS, EVERY, FILES = 24, 6, 12
SYLLABLES = "天气阴沉他走出门去看见河水缓流一只船停在岸边没有人说话风从山上吹来"


def story(number: int) -> str:
    """A made-up text with an author's line that the rules drop."""
    draw = random.Random(number)
    lines = ["".join(draw.choices(SYLLABLES, k=draw.randint(20, 60))) + "。" for _ in range(15)]
    return "\n".join([f"故事{number}", "作者：某人", *lines])


@pytest.fixture
def texts(bucket, monkeypatch) -> str:
    """Texts in object storage, several shards of them, and a file that is no text."""
    monkeypatch.setattr(shards, "PACK_SHARD_BYTES", 3_000)
    for number in range(FILES):
        storage.write_bytes(f"{bucket}/texts/{number:02d}.txt", story(number).encode())
    storage.write_bytes(f"{bucket}/texts/broken.txt", bytes(range(128, 256)) * 40)
    return f"{bucket}/texts"


def config_of(model, texts, output, **values) -> TrainConfig:
    settings = {
        "model_name_or_path": model, "dataset_path": texts, "output_dir": output, "streaming": True, "max_seq_length": 64,
        "segment_length": 64, "lora_r": 4, "lora_alpha": 8, "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2, "learning_rate": 3e-3, "max_steps": STEPS, "save_steps": EVERY,
        "sample_prompt": "", "cpus_per_worker": 1,
    } | values  # fmt: skip
    return flags.parse(TrainConfig, [word for name, value in settings.items() for word in (f"--{name}", str(value))])


def ordered(dataset: Any) -> Any:
    """As `fit` has Ray Train run it."""
    dataset.context.execution_options = ray.data.ExecutionOptions(preserve_order=True)
    return dataset


def run_alone(config: TrainConfig) -> list[float]:
    """One worker in this process, on Ray Data alone, whose losses a run under Ray Train must have, too."""
    checked = pipeline.preflight(config)
    plan = checked.plan
    preflight.claim(config, plan)
    task = Task(
        config=flags.to_dict(config), prepared_dir="", manifest=checked.manifest, steps=plan.steps,
        warmup_steps=plan.warmup_steps, checkpoint_steps=list(plan.checkpoints), layer_counts=checked.layer_counts,
        use_gpu=False, stream_shards=checked.manifest["stream"]["shards"],
        parameters=(plan.base_parameters, plan.trainable_parameters),
    )  # fmt: skip

    def hand_over(step: int, directory: str | None) -> None:
        loop.keep(task, step, str(directory))

    dataset = ordered(streaming.dataset_of(config, pipeline.raw_of(config), plan.steps)())
    rows = config.per_device_train_batch_size
    batches = iter(dataset.iterator().iter_batches(batch_size=rows, batch_format="pyarrow"))
    AcceleratorState._reset_state()
    with contextlib.closing(batches):  # or Ray Data would go on making rows
        loop.train(task, Worker(0, 1, hand_over, lambda _: batches))
    return [entry["loss"] for entry in metrics.read(config.output_dir) if "loss" in entry]


def adapter(output) -> dict[str, torch.Tensor]:
    return load_file(output / "adapter" / "adapter_model.safetensors")


def test_a_stream_trains_and_a_killed_worker_changes_nothing(ray_local, tiny_model, texts, tmp_path):
    reference = tmp_path / "a"
    losses = run_alone(config_of(tiny_model, texts, reference))
    assert len(losses) == STEPS and sum(losses[-5:]) < sum(losses[:5])
    found = [
        checkpoints.read_cursor(str(reference / "checkpoints" / checkpoints.name_of(step)))
        for step in range(EVERY, STEPS + 1, EVERY)
    ]
    assert found == sorted(found) and found[-1][0] >= 2

    output, killed, said = tmp_path / "b", threading.Event(), list[str]()

    def kill_one() -> None:
        place = str(output / "checkpoints" / checkpoints.name_of(2 * EVERY))
        while not checkpoints.is_good(place):
            time.sleep(0.05)
        workers = [p for p in psutil.Process().children(recursive=True) if p.name().startswith("ray::RayTrain")]
        workers[0].kill()
        killed.set()

    threading.Thread(target=kill_one, daemon=True).start()
    result = pipeline.train(config_of(tiny_model, texts, output), said.append)
    assert killed.is_set() and result.values("continued_from_step")
    assert result.values("loss") == losses
    assert all(torch.equal(adapter(reference)[name], tensor) for name, tensor in adapter(output).items())
    assert not (output / "prepared").exists()
    # Killed when only the adapter was still to be written: no more rows are asked for.
    expected = adapter(reference)
    shutil.rmtree(reference / "adapter")
    assert run_alone(config_of(tiny_model, texts, reference)) == losses
    assert all(torch.equal(expected[name], tensor) for name, tensor in adapter(reference).items())
    told = "\n".join(said)
    assert "13 files" in told and "no duplicates are taken out" in told and "Texts rejected: 1 (" in told


@pytest.mark.slow
def test_however_many_workers_there_are_a_step_takes_the_same_rows(ray_local, tiny_model, texts, tmp_path):
    """Ray Data's own split, read by as many threads as there would be workers, at different speeds, and from a cursor on."""
    config = config_of(tiny_model, texts, tmp_path / "r", max_steps=20)
    make = streaming.dataset_of(config, pipeline.raw_of(config), 20)

    def rows_by_step(workers: int, start: int, cursor: tuple[int, int]) -> dict[int, list[tuple[int, int]]]:
        found: dict[int, list[tuple[int, int]]] = {}
        splits = ordered(make()).streaming_split(workers, equal=True)

        def read(rank: int) -> None:
            batches = splits[rank].iter_batches(batch_size=2, batch_format="pyarrow", prefetch_batches=2)
            order = StreamOrder(4, 2, rank, workers, 20)
            places = []
            shown = []

            def noted():
                for batch in batches:
                    shown.append(batch)
                    yield batch

            stream = Streamed(noted(), order, start, cursor, 1)
            for number, micro_batch in enumerate(stream, start * order.accumulation):
                time.sleep(0.02 * rank)
                tags = zip(shown[number - start * order.accumulation]["shard"].to_pylist(),
                           shown[number - start * order.accumulation]["row"].to_pylist(), strict=True)  # fmt: skip
                places += [(place, tag) for (place, _), tag in zip(micro_batch, tags, strict=True)]
            for place, tag in places:
                found.setdefault(place // 4, []).append(tag)

        threads = [threading.Thread(target=read, args=(rank,)) for rank in range(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return {step: sorted(tags) for step, tags in found.items()}

    alone = rows_by_step(1, 0, (0, 0))
    assert len(alone) == 20 and all(len(tags) == 4 for tags in alone.values())
    assert rows_by_step(2, 0, (0, 0)) == alone
    last = max(alone[6])
    cursor = (last[0], last[1] + 1)
    checkpoint = tmp_path / "r" / "checkpoints" / checkpoints.name_of(7)
    checkpoint.mkdir(parents=True)
    checkpoints.write_cursor(str(checkpoint), cursor)
    (checkpoint / checkpoints.MARKER).write_text(json.dumps({"step": 7, "sha256": {}}))
    assert rows_by_step(2, 7, cursor) == {step: tags for step, tags in alone.items() if step >= 7}


def test_what_a_stream_cannot_do_is_refused_before_anything_starts(tiny_model, texts, tmp_path):
    with pytest.raises(ConfigError, match="holds nothing out"):
        config_of(tiny_model, texts, tmp_path / "a", heldout_fraction=0.1)
    with pytest.raises(ConfigError, match="evenly by 3 workers"):
        config_of(tiny_model, texts, tmp_path / "a", num_workers="1..4")
    config = config_of(tiny_model, texts, tmp_path / "a", max_steps=1_000_000)
    with pytest.raises(ConfigError, match="passes over a small corpus"):
        pipeline.train(config, lambda _: None)
    assert not (tmp_path / "a").exists()


@pytest.mark.slow
def test_a_corpus_that_nothing_is_left_of_is_one_message(ray_local, bucket, tiny_model, tmp_path):
    """It is found out by a task of Ray Data, under Ray Train, which would both make it something else."""
    storage.write_bytes(f"{bucket}/texts/broken.txt", bytes(range(128, 256)) * 40)
    with pytest.raises(DataError, match="there is nothing to train on: streamed 1 inputs"):
        pipeline.train(config_of(tiny_model, f"{bucket}/texts", tmp_path / "r"), lambda _: None)
    assert not (tmp_path / "r" / "failure.json").exists() and not (tmp_path / "r" / "adapter").exists()
