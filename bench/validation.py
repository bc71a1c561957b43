"""What evaluation beside training costs the steps: one run, in which a core next to it is busy half of the time.

    python bench/validation.py

Between two checkpoints the evaluation's process starts and then multiplies matrices for a while, without pause; for the
rest of the time nothing runs beside training. Steps of the one kind and the other, taken in turns, are compared by
their tokens per second. Prints one JSON object. Needs two cores that nobody else uses.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

import ray

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import builders

from raystyle import flags, pipeline
from raystyle.config import TrainConfig
from raystyle.training import fit


def busy(folder: str, seconds: float):
    """An evaluation that keeps its core busy and writes down when it ended."""

    def validate(uri: str) -> dict[str, float]:
        import time
        from pathlib import Path

        import torch

        a = torch.rand(1024, 1024)
        end = time.time() + seconds
        count = 0
        while time.time() < end:
            a = torch.tanh(a @ a)
            count += 1
        (Path(folder) / uri[-8:]).write_text(str(time.time()))
        return {"products": count}

    return validate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--busy_s", type=float, default=8.0)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--save_steps", type=int, default=100)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="raystyle-bench-") as scratch:
        place = Path(scratch)
        model = builders.write_model(place / "model", layers=4, hidden=256)
        prepared = builders.write_prepared(place / "prepared", model, rows=64, length=256)
        (place / "ends").mkdir()
        settings = {
            "model_name_or_path": str(model), "dataset_path": [str(prepared)], "output_dir": str(place / "run"),
            "lora_r": 8, "lora_alpha": 16, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2,
            "max_steps": options.steps, "save_steps": options.save_steps, "gradient_checkpointing": False,
            "cpus_per_worker": 1, "sample_prompt": "",
        }  # fmt: skip
        config = flags.from_dict(TrainConfig, settings)
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
        checked = pipeline.preflight(config)
        result = fit.fit(
            config, checked.plan, checked.prepared_dir, checked.manifest, checked.layer_counts,
            busy(str(place / "ends"), options.busy_s),
        )  # fmt: skip
        print(json.dumps(compared(result.metrics, place, options.save_steps, checked.plan.tokens_per_step)))


def compared(metrics: list[dict], place: Path, every: int, tokens: int) -> dict[str, object]:
    """Tokens per second with and without, and their ratio in each stretch between two checkpoints."""
    speeds = {entry["step"]: entry["tokens_per_second"] for entry in metrics if "loss" in entry}
    ratios, with_it, without = [], [], []
    for end in sorted((place / "ends").iterdir()):
        first = int(end.name)
        time_s = (place / "run" / "checkpoints" / f"step-{first:08d}" / "checkpoint.json").stat().st_mtime
        ended_s = float(end.read_text())
        beside, alone = [], []
        for step in range(first + 2, first + every):  # the step behind a checkpoint counts the saving too
            if step not in speeds:
                continue
            time_s += tokens / speeds[step]
            (beside if time_s < ended_s else alone).append(speeds[step])
        if min(len(beside), len(alone)) >= 10:
            ratios.append(statistics.median(beside) / statistics.median(alone))
            with_it += beside
            without += alone
    return {
        "stretches": len(ratios),
        "steps_with": len(with_it),
        "steps_without": len(without),
        "tokens_per_second_with": round(statistics.median(with_it)) if with_it else None,
        "tokens_per_second_without": round(statistics.median(without)) if without else None,
        "ratio": round(statistics.median(ratios), 4) if ratios else None,
        "ratios": [round(ratio, 3) for ratio in ratios],
    }


if __name__ == "__main__":
    main()
