"""Rows made while training, on a real Ray, from object storage: one order whatever happens, and a cursor to go on from."""

import json
import random
import threading
import time

import psutil
import pytest
import torch
from safetensors.torch import load_file

from raystyle import flags, pipeline, storage, streaming
from raystyle.config import TrainConfig
from raystyle.corpus import shards
from raystyle.errors import ConfigError
from raystyle.training import checkpoints
from raystyle.training.streamed import Streamed, StreamOrder

pytestmark = pytest.mark.e2e

STEPS, EVERY, FILES = 40, 10, 12
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


def run(model, texts, output, **values):
    settings = {
        "model_name_or_path": model, "dataset_path": texts, "output_dir": output, "streaming": True, "max_seq_length": 64,
        "segment_length": 64, "lora_r": 4, "lora_alpha": 8, "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2, "learning_rate": 3e-3, "max_steps": STEPS, "save_steps": EVERY,
        "sample_prompt": "", "cpus_per_worker": 1,
    } | values  # fmt: skip
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    said: list[str] = []
    result = pipeline.train(flags.parse(TrainConfig, words), said.append)
    return result, "\n".join(said)


def adapter(output) -> dict[str, torch.Tensor]:
    return load_file(output / "adapter" / "adapter_model.safetensors")


def test_a_stream_trains_and_a_killed_worker_changes_nothing(ray_local, tiny_model, texts, tmp_path):
    result, said = run(tiny_model, texts, tmp_path / "a")
    losses = result.values("loss")
    assert len(losses) == STEPS and sum(losses[-5:]) < sum(losses[:5])
    assert not (tmp_path / "a" / "prepared").exists()
    assert "13 files" in said and "no duplicates are taken out" in said
    assert "Texts rejected: 1 (" in said
    cursors = [
        json.loads((tmp_path / "a" / "checkpoints" / checkpoints.name_of(step) / "stream.json").read_text())
        for step in range(EVERY, STEPS + 1, EVERY)
    ]
    places = [(cursor["shard"], cursor["row"]) for cursor in cursors]
    assert places == sorted(places) and places[-1][0] > 2

    def kill_one() -> None:
        place = tmp_path / "b" / "checkpoints" / checkpoints.name_of(2 * EVERY)
        while not checkpoints.is_good(str(place)):
            if done.wait(0.05):
                return
        workers = [p for p in psutil.Process().children(recursive=True) if p.name().startswith("ray::RayTrain")]
        workers[0].kill()

    done = threading.Event()
    thread = threading.Thread(target=kill_one)
    thread.start()
    again, _ = run(tiny_model, texts, tmp_path / "b")
    done.set()
    thread.join()
    assert again.values("continued_from_step")
    assert again.values("loss") == losses
    assert all(torch.equal(adapter(tmp_path / "a")[name], tensor) for name, tensor in adapter(tmp_path / "b").items())


def test_however_many_workers_there_are_a_step_takes_the_same_rows(ray_local, tiny_model, texts, tmp_path):
    """Ray Data's own split, read by as many threads as there would be workers, at different speeds, and from a cursor on."""
    import ray.data

    config = flags.parse(
        TrainConfig,
        ["--model_name_or_path", str(tiny_model), "--dataset_path", texts, "--output_dir", str(tmp_path / "r"),
         "--max_seq_length", "64", "--segment_length", "64", "--per_device_train_batch_size", "2",
         "--gradient_accumulation_steps", "2", "--max_steps", "20", "--streaming"],
    )  # fmt: skip
    make = streaming.dataset_of(config, pipeline.raw_of(config), 20)

    def rows_by_step(workers: int, start: int, cursor: tuple[int, int]) -> dict[int, list[tuple[int, int]]]:
        found: dict[int, list[tuple[int, int]]] = {}
        dataset = make()
        dataset.context.execution_options = ray.data.ExecutionOptions(preserve_order=True)
        splits = dataset.streaming_split(workers, equal=True)

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
        run(tiny_model, texts, tmp_path / "a", heldout_fraction=0.1)
    with pytest.raises(ConfigError, match="evenly by 3 workers"):
        run(tiny_model, texts, tmp_path / "a", num_workers="1..4")
    with pytest.raises(ConfigError, match="passes over a small corpus"):
        run(tiny_model, texts, tmp_path / "a", max_steps=1_000_000)
    assert not (tmp_path / "a").exists()
