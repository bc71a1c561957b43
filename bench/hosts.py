"""A pipeline over several hosts that are lost one after the other: the adapter and the rows must be those of a quiet run.

    sudo .venv/bin/python bench/hosts.py            about ten minutes; writes bench/results/hosts.md

Hosts are network namespaces of this machine (`tests/e2e/hosts.py`): a head that takes no work, three workers of one core, an S3
server outside. A submitted pipeline prepares and trains on two of the three by DDP over gloo. The second run loses a host's
cable in the middle of training, then a host's power, then its driver, and is submitted again.
"""

import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests/e2e")]

import builders  # noqa: E402
from hosts import BUCKET, Hosts, missing, wait  # noqa: E402

from raystyle import storage  # noqa: E402

WORKERS = ("w1", "w2", "w3")
STEPS, SAVE_STEPS = 720, 20
TRAINING = "ray::RayTrainWorker"


def flags(model: Path, run: str) -> list[object]:
    small = ["--config", "jobs/configs/demo.json", "--lora_r", 4, "--lora_alpha", 8, "--seed", 1, "--eval_style", "off"]
    small += ["--max_steps", STEPS, "--save_steps", SAVE_STEPS, "--sample_prompt", "", "--logging_steps", 20]
    small += ["--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 1, "--num_workers", 2]
    small += ["--max_seq_length", 64, "--segment_length", 64, "--dedup", "none", "--max_failures", 10]
    places = ["--model_name_or_path", model, "--dataset_path", f"{BUCKET}/novels", "--output_dir", run]
    return [*small, *places, "--prepare_on", "pool=cpu", "--train_on", "pool=cpu"]


def checkpoints(run: str) -> int:
    place = f"{run}/checkpoints"
    if not storage.exists(place):
        return 0
    return sum(file.uri.endswith("/checkpoint.json") for file in storage.list_files(place))


def what_came_out(run: str) -> dict[str, str]:
    weights = storage.read_bytes(f"{run}/adapter/adapter_model.safetensors")
    return {
        "rows": storage.read_json(f"{run}/prepared/manifest.json")["digest"],
        "adapter": storage.sha256([weights]),
    }


def training_hosts(hosts: Hosts, names: tuple[str, ...]) -> list[str]:
    return [name for name in names if hosts.runs(name, TRAINING)]


def steps_go_on(hosts: Hosts, run: str, job: str) -> float:
    """Seconds until two more checkpoints are there."""
    begun = checkpoints(run)

    def more() -> bool:
        status = hosts.job("status", job)
        assert "failed" not in status.lower(), hosts.job("logs", job)[-3000:]
        return checkpoints(run) >= begun + 2

    return wait(more, 240, "training does not go on")


def main() -> int:
    if why := missing():
        print(f"not run: {why}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that hosts are removed however this ends
    told: list[tuple[str, str]] = []

    def tell(what: str, value: str) -> None:
        told.append((what, value))
        print(f"{what}: {value}", flush=True)

    with tempfile.TemporaryDirectory(prefix="rsh-model-") as folder, Hosts(*WORKERS) as hosts:
        os.environ.update({name: value for name, value in hosts.environment.items() if name.startswith("AWS_")})
        model = builders.write_model(Path(folder) / "model")
        for number in range(6):
            draw = random.Random(number)
            lines = ["".join(draw.sample(builders.ALPHABET[:-7], 20)) + "。" for _ in range(80)]
            storage.write_bytes(f"{BUCKET}/novels/{number}.txt", "\n".join(lines).encode())

        begun = time.monotonic()
        quiet = f"{BUCKET}/runs/quiet"
        done = hosts.submit("jobs/pipeline.py", *flags(model, quiet))
        assert done.returncode == 0, done.stdout[-3000:]
        tell("a quiet run, submit to end", f"{time.monotonic() - begun:.0f} s")

        run = f"{BUCKET}/runs/lossy"
        hosts.submit("jobs/pipeline.py", *flags(model, run), name="first")
        wait(lambda: checkpoints(run) >= 2, 120, "no checkpoints")
        lost = training_hosts(hosts, WORKERS)[0]
        hosts.cut(lost)
        tell(
            f"cable of {lost} pulled after {checkpoints(run)} checkpoints; two more after",
            f"{steps_go_on(hosts, run, 'first'):.0f} s",
        )

        # A new machine comes for the one that is gone: without it the third host would stand alone.
        hosts.kill(lost)
        hosts.mend(lost)
        hosts.start_ray(lost)
        wait(lambda: hosts.addresses[lost] in hosts.alive(), 120, "no replacement")
        dead = next(name for name in training_hosts(hosts, WORKERS) if name != lost)
        hosts.kill(dead)
        tell(
            f"power of {dead} cut after {checkpoints(run)} checkpoints; two more after",
            f"{steps_go_on(hosts, run, 'first'):.0f} s",
        )

        before = checkpoints(run)
        hosts.job("stop", "first")
        wait(lambda: "stopped" in hosts.job("status", "first").lower(), 60, "the driver does not stop")
        assert not storage.exists(f"{run}/adapter"), "it had ended before the driver was stopped"
        begun = time.monotonic()
        done = hosts.submit("jobs/pipeline.py", *flags(model, run))
        assert done.returncode == 0, done.stdout[-3000:]
        assert "continued from the checkpoint of step" in done.stdout, done.stdout
        tell(
            f"driver stopped after {before} checkpoints, submitted again; end after",
            f"{time.monotonic() - begun:.0f} s",
        )

        a, b = what_came_out(quiet), what_came_out(run)
        for name in a:
            tell(
                f"{name}, quiet and lossy",
                f"{a[name][:16]} and {b[name][:16]}: {'equal' if a[name] == b[name] else 'NOT EQUAL'}",
            )
    lines = [f"| {what} | {value} |" for what, value in told]
    text = (__doc__ or "").replace("\n    ", "\n").strip()
    report = [
        "# Hosts lost in the middle of a run",
        "",
        text,
        "",
        f"{STEPS} steps, a checkpoint every {SAVE_STEPS}, written to S3.",
        "",
    ]
    (ROOT / "bench/results/hosts.md").write_text("\n".join([*report, "| | |", "|---|---|", *lines]) + "\n")
    print(json.dumps({"equal": a == b}))
    return 0 if a == b else 1


if __name__ == "__main__":
    sys.exit(main())
