"""`raystyle demo`: the whole job on text and a base model made on the spot, and what came of it.

The base learns a plain modern narrator, and plain retellings of the stories that a teahouse storyteller tells; the
adapter learns the storyteller. So the demonstration shows a change of voice, which is what raystyle is for, at a size
where minutes of one CPU suffice. Everything but the size is the real thing.
"""

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable
from typing import Any

from raystyle import pipeline, progress, storage
from raystyle.config import NEUTRAL_PROMPT, DemoConfig, PrepareConfig, SampleConfig, TrainConfig
from raystyle.demo import base, corpus, voices
from raystyle.flags import from_dict

NEUTRAL_DOCUMENTS = 900
# The narrator's pieces after those that the base learned: what the adapter is held against.
CONTRAST_DOCUMENTS = 40
SAMPLES = 16
SAMPLE_TOKENS = 80
# jobs/configs/demo.json holds the same, for `raystyle train`.
SETTINGS: dict[str, Any] = {
    "document_unit": "chapter",
    "heldout_fraction": 0.1,
    "max_seq_length": 256,
    "segment_length": 256,
    "lora_r": 64,
    "lora_alpha": 128,
    "lora_dropout": 0.0,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "learning_rate": 5e-3,
    "max_steps": 450,
    "save_steps": 0.34,
    "logging_steps": 10,
    "bf16": False,
    "gradient_checkpointing": False,
    "use_gpu": False,
    "sample_max_new_tokens": 40,
}


@dataclasses.dataclass(frozen=True)
class DemoResult:
    """What the demo measured: markers per 1,000 characters, and held-out loss in nats per token."""

    base_marker_rate: float
    adapter_marker_rate: float
    corpus_marker_rate: float
    heldout_loss_before: float
    heldout_loss_after: float
    seconds: float


def run(config: DemoConfig, say: Callable[[str], None]) -> DemoResult:
    """Corpus, base, prepare, plan, train, sample, each below `config.output_dir`; Ray runs already."""
    started_s = time.monotonic()
    places = {name: storage.join(config.output_dir, name) for name in ("corpus", "base", "prepared", "run")}
    say("1 corpus    a storyteller's chapters as noisy downloads: UTF-8, GB18030, Big5, and one broken file")
    corpus.write_corpus(places["corpus"], config.seed)
    say("2 base      a small Llama learns a plain narrator")
    make_base(places["base"], config.seed, say)
    say("3 prepare   decode, clean, pack")
    shared = {
        name: SETTINGS[name] for name in ("document_unit", "heldout_fraction", "max_seq_length", "segment_length")
    }
    raw = from_dict(
        PrepareConfig,
        shared
        | {"dataset_path": [places["corpus"]], "output_dir": places["prepared"], "model_name_or_path": places["base"]},
    )
    say(pipeline.prepare(raw).describe())
    contrast = make_contrast(storage.join(config.output_dir, "contrast"), config.seed)
    say("4 train     LoRA on the storyteller; then each checkpoint measured beside base, author and narrator")
    training = from_dict(
        TrainConfig,
        SETTINGS
        | {
            "model_name_or_path": places["base"],
            "dataset_path": [places["prepared"]],
            "output_dir": places["run"],
            "contrast_path": [f"the narrator={contrast}"],
            "seed": config.seed,
        },
    )
    trained = pipeline.train(training, say)
    say("5 sample    the same prompt, continued by base and adapter")
    texts = sample(places["base"], places["run"], config.seed)
    result = DemoResult(
        base_marker_rate=voices.marker_rate("".join(texts["base"])),
        adapter_marker_rate=voices.marker_rate("".join(texts["adapter"])),
        corpus_marker_rate=corpus_marker_rate(places["prepared"]),
        heldout_loss_before=trained.values("heldout_loss")[0],
        heldout_loss_after=trained.values("heldout_loss")[-1],
        seconds=time.monotonic() - started_s,
    )
    storage.write_json(storage.join(config.output_dir, "demo.json"), dataclasses.asdict(result) | {"samples": texts})
    say(summary(config, result, texts))
    return result


def make_contrast(directory: str, seed: int) -> str:
    """Pieces of the narrator that the base has not seen, one JSONL record each; returns the file."""
    uri = storage.join(directory, "narrator.jsonl")
    documents = voices.neutral_documents(seed, NEUTRAL_DOCUMENTS + CONTRAST_DOCUMENTS)[NEUTRAL_DOCUMENTS:]
    lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents]
    storage.write_bytes(uri, "".join(lines).encode())
    return uri


def make_base(directory: str, seed: int, say: Callable[[str], None]) -> None:
    """The tiny base model, trained unless it is there already with the same digest."""
    settings = base.BaseSettings(seed=seed)
    documents = voices.neutral_documents(seed, NEUTRAL_DOCUMENTS)
    with contextlib.ExitStack() as stack:
        shown: list[progress.Bar] = []

        def on_step(done: int, steps: int, loss: float) -> None:
            if not shown:
                shown.append(stack.enter_context(progress.bar(steps, "base", "step")))
            shown[0].update(1, f"loss {loss:.3f}")

        report = base.build_base(documents, directory, settings=settings, on_step=on_step)
    origin = "kept from an earlier run" if report.cached else f"made of {report.num_tokens:,} tokens"
    say(f"  {report.num_parameters:,} parameters, {origin}")


def sample(base_dir: str, run_dir: str, seed: int) -> dict[str, list[str]]:
    """Seeded continuations of the neutral prompt by `base` and by `adapter`."""
    config = from_dict(
        SampleConfig,
        {
            "model_name_or_path": base_dir,
            "lora_path": run_dir,
            "num_samples": SAMPLES,
            "max_new_tokens": SAMPLE_TOKENS,
            "seed": seed,
        },
    )
    texts: dict[str, list[str]] = {"base": [], "adapter": []}
    with progress.bar(2 * SAMPLES, "sample", "text") as shown:
        for found in pipeline.sample(config, print):
            texts["adapter" if found.adapter else "base"].append(found.text)
            shown.update()
    return texts


def corpus_marker_rate(prepared_dir: str) -> float:
    import pyarrow.parquet as pq

    texts: list[str] = []
    for file in storage.list_files(storage.join(prepared_dir, "documents"), (".parquet",)):
        texts += pq.read_table(file.uri, columns=["text"])["text"].to_pylist()
    return voices.marker_rate("".join(texts))


def summary(config: DemoConfig, result: DemoResult, texts: dict[str, list[str]]) -> str:
    run_dir, base_dir = storage.join(config.output_dir, "run"), storage.join(config.output_dir, "base")
    shown = "\n\n".join(
        f"── {name}\n" + "\n".join(f"{NEUTRAL_PROMPT}▸{' '.join(text.split())}" for text in texts[name][:3])
        for name in ("base", "adapter")
    )
    return f"""
{shown}

the storyteller's set phrases, per 1,000 characters ({SAMPLES} samples each)
  base {result.base_marker_rate:.1f}   adapter {result.adapter_marker_rate:.1f}   his own text {result.corpus_marker_rate:.1f}
held-out loss {result.heldout_loss_before:.3f} -> {result.heldout_loss_after:.3f} nats per token
report        {run_dir}/report.html
time          {result.seconds:.0f} s

next, with your own files and model:
  raystyle train --model_name_or_path YOUR_MODEL --dataset_path 'your/novels/*.txt' --output_dir runs/yours
more of this one:
  raystyle sample --model_name_or_path {base_dir} --lora_path {run_dir} --prompt {json.dumps("话说", ensure_ascii=False)}
  raystyle serve --model_name_or_path {base_dir} --adapters_path {run_dir} --port 8000"""
