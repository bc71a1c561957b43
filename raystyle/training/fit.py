"""The driver of a run: claims its directory, starts Ray Train's workers, shows their progress, checks what came out.

Ray is initialised by the caller. The driver needs no GPU.
"""

import dataclasses
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from raystyle import adapters, errors, progress, storage
from raystyle.config import TrainConfig
from raystyle.errors import ConfigError, RunError, StorageError, TrainingError
from raystyle.flags import to_dict
from raystyle.training.plan import FAILURE, Plan

POLL_INTERVAL_S = 1.0
# Ray Train's patch of `print` shows every line twice where Ray sends workers' output to the driver.
WORKER_ENVIRONMENT = {"TOKENIZERS_PARALLELISM": "false", "RAY_TRAIN_ENABLE_PRINT_PATCH": "0"}


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """Where a finished run's adapter is, and what was measured; `unchanged` where the run had finished before."""

    adapter_dir: str
    metrics: list[dict[str, Any]]
    unchanged: bool

    def values(self, name: str) -> list[float]:
        """All values of a metric, such as `loss` or `heldout_loss`, in the order of steps."""
        return [entry[name] for entry in self.metrics if name in entry]


def check_same_run(config: TrainConfig, plan: Plan) -> None:
    """Raises `RunError` where `output_dir` holds a run whose identity is another than the plan's."""
    plan_path = storage.join(config.output_dir, "plan.json")
    if storage.exists(plan_path):
        theirs, ours = storage.read_json(plan_path)["identity"], plan.identity
        other = {name: (theirs.get(name), value) for name, value in ours.items() if theirs.get(name) != value}
        if other:
            listed = "; ".join(f"`{name}` was {old}, now {new}" for name, (old, new) in other.items())
            raise RunError(
                f"`output_dir` {config.output_dir} belongs to another run: {listed}\n"
                "hint: choose another --output_dir, or give these values to continue that run"
            )


def claim(config: TrainConfig, plan: Plan) -> None:
    """Make `output_dir` this run's. `plan.json` comes first: it is what makes a directory a run."""
    storage.write_json(storage.join(config.output_dir, "plan.json"), dataclasses.asdict(plan))
    storage.write_json(storage.join(config.output_dir, "config.json"), to_dict(config))


def check_is_run(output_dir: str) -> None:
    """Refuse a directory with files in it that no run made. Raises `RunError`.

    A `config.json` says nothing: every model folder has one.
    """
    if not storage.exists(output_dir):
        return
    present = {file.uri[len(output_dir) :].strip("/").split("/")[0] for file in storage.list_files(output_dir)}
    if present and "plan.json" not in present and present != {"prepared"}:
        raise RunError(
            f"`output_dir` {output_dir} is not empty and not a run: it holds {', '.join(sorted(present)[:5])}\n"
            "hint: choose another --output_dir"
        )


def fit(
    config: TrainConfig, plan: Plan, prepared_dir: str, manifest: dict[str, Any], layer_counts: dict[str, int]
) -> TrainResult:
    """Train until the plan's last step, continuing whatever this directory's run has done already.

    Raises `ConfigError` where Ray has too little for the workers, `TrainingError` where they failed for good.
    """
    import ray.train
    from ray.train.torch import TorchTrainer

    from raystyle.training.loop import train_worker

    check_same_run(config, plan)
    adapter_dir = storage.join(config.output_dir, "adapter")
    if is_finished(adapter_dir, plan.steps):
        return TrainResult(adapter_dir, read_metrics(config.output_dir), unchanged=True)
    use_gpu, cpus = resources(config)
    claim(config, plan)
    task = {
        "config": to_dict(config),
        "prepared_dir": prepared_dir,
        "manifest": manifest,
        "steps": plan.steps,
        "warmup_steps": plan.warmup_steps,
        "checkpoint_steps": list(plan.checkpoints),
        "layer_counts": layer_counts,
        "use_gpu": use_gpu,
    }
    checkpoints_dir = storage.join(config.output_dir, "checkpoints")
    # Which checkpoint to continue from is decided by looking at the checkpoints themselves (`checkpoints.last_good`),
    # so Ray Train's own list of them, which fails the run where one was deleted, starts anew.
    storage.delete(storage.join(checkpoints_dir, "checkpoint_manager_snapshot.json"))
    failure_path = storage.join(config.output_dir, FAILURE)
    storage.delete(failure_path)
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=task,
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.num_workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": cpus, **({"GPU": 1} if use_gpu else {})},
        ),
        run_config=ray.train.RunConfig(  # type: ignore[call-arg]  # its stub is Ray Train v1's
            name="checkpoints",
            storage_path=config.output_dir,
            failure_config=ray.train.FailureConfig(max_failures=config.max_failures),
            # Errors only: its warnings ask for the dashboard's state API, which a local Ray runs without.
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
            worker_runtime_env={"env_vars": WORKER_ENVIRONMENT},
        ),
    )
    try:
        with followed(config.output_dir, plan.steps):
            trainer.fit()
    except SystemExit as stop:
        # Ray Train answers Ctrl-C itself: it stops its workers, then exits (with status 1, whatever it asks for).
        raise KeyboardInterrupt from stop
    except ray.exceptions.RayActorError as error:
        raise TrainingError(f"Ray Train's controller was lost: {error}\nhint: the same command continues") from error
    except ray.train.TrainingFailedError as error:
        if not storage.exists(failure_path):
            raise _explained(error, config) from error
    if storage.exists(failure_path):
        failure = storage.read_json(failure_path)
        storage.delete(failure_path)
        raise getattr(errors, failure["error"])(failure["message"])
    if not is_finished(adapter_dir, plan.steps):
        raise TrainingError(
            f"training ended without an adapter in {adapter_dir}\nhint: run the same command to continue"
        )
    return TrainResult(adapter_dir, read_metrics(config.output_dir), unchanged=False)


def _milestone(entry: dict[str, Any]) -> str | None:
    """What a line of metrics.jsonl tells a person watching, beside the bar."""
    if "isolation_logit_difference" in entry:
        return (
            f"isolation of documents proved: logits within {entry['isolation_logit_difference']:.0e} of each one alone"
        )
    if "continued_from_step" in entry:
        return f"continued from the checkpoint of step {entry['continued_from_step']}"
    if "heldout_loss" in entry:
        return f"held-out loss after step {entry['step']}: {entry['heldout_loss']:.4f} nats per token"
    return None


def is_finished(adapter_dir: str, steps: int) -> bool:
    """Whether the adapter of the run's last step is there; `raystyle_adapter.json` is the file written last."""
    about = storage.join(adapter_dir, adapters.ABOUT)
    return storage.exists(about) and storage.read_json(about).get("step") == steps


def read_metrics(output_dir: str) -> list[dict[str, Any]]:
    try:
        lines = storage.read_bytes(storage.join(output_dir, "metrics.jsonl")).decode().splitlines()
    except StorageError:
        return []
    return [json.loads(line) for line in lines]


def resources(config: TrainConfig) -> tuple[bool, int]:
    """Whether to train on GPUs, and how many CPU cores a worker gets. Raises `ConfigError` where Ray has too few."""
    import ray

    total = ray.cluster_resources()
    gpus, cpus = int(total.get("GPU", 0)), int(total.get("CPU", 0))
    use_gpu = config.use_gpu if config.use_gpu is not None else gpus >= config.num_workers
    if use_gpu and gpus < config.num_workers:
        raise ConfigError(
            f"`num_workers` is {config.num_workers} on GPUs, and Ray has {gpus}\n"
            "hint: fewer workers, `--use_gpu false`, or a larger cluster"
        )
    # A head that takes no work has no CPU to count.
    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    share = config.cpus_per_worker or max(1, min([cpus // config.num_workers, *filter(None, nodes)]))
    if share * config.num_workers > cpus:
        raise ConfigError(
            f"{config.num_workers} workers of {share} CPU cores need {share * config.num_workers}, and Ray has {cpus}\n"
            "hint: fewer workers, a smaller `cpus_per_worker`, or a larger cluster"
        )
    return use_gpu, share


def _explained(error: Any, config: TrainConfig) -> TrainingError:
    """The reason a worker gave, as it gave it; its traceback goes to the log above."""
    failures = getattr(error, "worker_failures", None) or {}
    causes = [getattr(failure, "cause", None) or failure for failure in failures.values()]
    print(str(error), file=sys.stderr)
    last = str(causes[0] if causes else error).strip().splitlines()
    return TrainingError(
        f"training failed: {last[-1] if last else error}\n"
        f"hint: the same command continues from the last checkpoint in {storage.join(config.output_dir, 'checkpoints')}"
    )


@contextmanager
def followed(output_dir: str, steps: int) -> Iterator[None]:
    """Show the workers' progress while the block lasts: rank 0 writes metrics.jsonl, wherever it runs."""
    done = threading.Event()
    with progress.bar(steps, "train", "step") as shown:
        seen = 0
        told = read_metrics(output_dir)

        def refresh() -> None:
            nonlocal seen
            everything = read_metrics(output_dir)
            for entry in everything[len(told) :]:
                told.append(entry)
                if line := _milestone(entry):
                    print(line, file=sys.stderr, flush=True)
            entries = [entry for entry in everything if "loss" in entry]
            if entries and entries[-1]["step"] > seen:
                speed = f"{entries[-1].get('tokens_per_second', 0):,.0f} tokens/s"
                shown.update(entries[-1]["step"] - seen, f"loss {entries[-1]['loss']:.3f}, {speed}")
                seen = entries[-1]["step"]

        def follow() -> None:
            while not done.wait(POLL_INTERVAL_S):
                refresh()

        thread = threading.Thread(target=follow, name="raystyle-progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            refresh()
