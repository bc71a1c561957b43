"""The whole job on real novels: a small base of some authors, an adapter of another, and what the adapter changed.

    python bench/real_text.py --base_path 朱自清.txt 郁达夫.txt --author_path 鲁迅全集.txt --output_dir runs/real

No hub and no GPU: the base is trained from scratch on the first files (a small Llama, about a quarter of an hour on two
cores), then `raystyle train` teaches it the author of the last ones, chapter by chapter, a tenth of them held out. Prints
and writes `real_text.json`: held-out loss of base and adapter, and continuations of the same prompts by each. Each checkpoint
is evaluated beside the base's authors (`run/report.html`). With `--by_heart_path`, a few short texts, a second adapter is
trained on them until it knows them by heart: its report shows copying grow and the verdict turn. A second run continues
where the first stopped.
"""

import dataclasses
import json
import sys
import time

from raystyle import pipeline, progress, storage
from raystyle.cli import ray_session, say
from raystyle.config import PrepareConfig, RayConfig, SampleConfig, TrainConfig, option, required
from raystyle.demo.base import BaseSettings, build_base
from raystyle.flags import from_dict, parse

BASE = BaseSettings(
    vocab_size=4096, hidden_size=256, layers=4, heads=8, steps=1300, batch_rows=8, seq_length=256, learning_rate=1e-3
)
TRAIN = {
    "document_unit": "chapter",
    "heldout_fraction": 0.1,
    "max_seq_length": 512,
    "segment_length": 512,
    "lora_r": 64,
    "lora_alpha": 128,
    "lora_dropout": 0.05,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "learning_rate": 1e-3,
    "num_train_epochs": 2.0,
    "save_steps": 0.25,
    "logging_steps": 5,
    "gradient_checkpointing": False,
    "use_gpu": False,
}
BY_HEART = TRAIN | {
    "document_unit": "work",
    "heldout_fraction": 0.3,
    "dedup": "none",
    "max_seq_length": 256,
    "segment_length": 256,
    "lora_r": 128,
    "lora_alpha": 256,
    "lora_dropout": 0.0,
    "learning_rate": 8e-4,
    "max_steps": 1350,
    "save_steps": 75,
}
PROMPTS = ["今日天气阴沉，", "我在年青时候", "他站起来，说道："]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RealTextConfig(RayConfig):
    """Train a small base on some novels and an adapter on another author's."""

    base_path: tuple[str, ...] = required("novels for the base", path=True)
    author_path: tuple[str, ...] = required("the author's works", path=True)
    by_heart_path: tuple[str, ...] = option((), "a few of the author's texts, to be learned by heart", path=True)
    output_dir: str = option("runs/real", "where everything goes", path=True)


def main() -> None:
    config = parse(RealTextConfig, sys.argv[1:])
    names = ("base_text", "base", "run", "by_heart")
    places = {name: storage.join(config.output_dir, name) for name in names}
    with ray_session(config):
        say("cleaning the base's novels")
        cleaned = {"dataset_path": config.base_path, "output_dir": places["base_text"], "document_unit": "chapter"}
        say(pipeline.prepare(from_dict(PrepareConfig, cleaned)).describe())
        report = make_base(places)
        shared = {"model_name_or_path": places["base"], "contrast_path": config.base_path}
        run = shared | {"dataset_path": config.author_path, "output_dir": places["run"]}
        result = pipeline.train(from_dict(TrainConfig, TRAIN | run), say)
        if config.by_heart_path:
            run = shared | {"dataset_path": config.by_heart_path, "output_dir": places["by_heart"]}
            pipeline.train(from_dict(TrainConfig, BY_HEART | run), say)
    where = {"model_name_or_path": places["base"], "lora_path": places["run"]}
    drawn = {"prompt": PROMPTS, "max_new_tokens": 80, "temperature": 0.8}
    samples = [dataclasses.asdict(s) for s in pipeline.sample(from_dict(SampleConfig, where | drawn), print)]
    measured = {
        "base": dataclasses.asdict(report),
        "heldout_loss_base": result.values("heldout_loss")[0],
        "heldout_loss_adapter": result.values("heldout_loss")[-1],
        "heldout_tokens": result.values("heldout_tokens")[-1],
        "samples": samples,
    }
    storage.write_json(storage.join(config.output_dir, "real_text.json"), measured)
    for sample in samples:
        say(f"{'adapter' if sample['adapter'] else 'base   '}  {sample['prompt']}▸{' '.join(sample['text'].split())}")
    say(json.dumps({name: value for name, value in measured.items() if name.startswith("heldout")}))


def make_base(places: dict[str, str]):
    import pyarrow.parquet as pq

    texts = []
    for file in storage.list_files(storage.join(places["base_text"], "documents"), (".parquet",)):
        texts += pq.read_table(file.uri, columns=["text"])["text"].to_pylist()
    started_s = time.monotonic()
    with progress.bar(BASE.steps, "base", "step") as shown:
        report = build_base(
            texts, places["base"], settings=BASE, on_step=lambda *step: shown.update(1, f"loss {step[2]:.3f}")
        )
    say(
        f"base: {report.num_parameters:,} parameters, {report.num_tokens:,} tokens, {time.monotonic() - started_s:.0f} s"
    )
    return report


if __name__ == "__main__":
    main()
