"""The driver of a run: claims its directory, starts Ray Train's workers, shows their progress, checks what came out.

And, once training has ended: what was measured afterwards, and which checkpoint becomes the run's `adapter/`.
Ray is initialised by the caller. The driver needs no GPU.
"""

import dataclasses
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

from raystyle import adapters, errors, storage
from raystyle.config import TrainConfig, labels
from raystyle.errors import ConfigError, RunError, StorageError, TrainingError
from raystyle.flags import to_dict
from raystyle.training import checkpoints, metrics, validation
from raystyle.training.follow import followed
from raystyle.training.plan import FAILURE, STREAM, Plan
from raystyle.training.preflight import check_same_run, claim, held, is_finished

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


def fit(
    config: TrainConfig,
    plan: Plan,
    prepared_dir: str,
    manifest: dict[str, Any],
    layer_counts: dict[str, int],
    begin_validation: Callable[[], validation.Validate | None] | None = None,
    stream: Callable[[], Any] | None = None,
) -> TrainResult:
    """Train until the plan's last step, continuing whatever this directory's run has done already.

    `begin_validation` is called once the directory is this run's, and may write there. What it returns measures a
    checkpoint, given its URI, and returns numbers by name; it runs beside training where there is room
    (`validation.py`), in a Ray process of its own, and may fail, hang or be killed at no cost to training.
    `stream` makes the Ray Data dataset of a run whose rows are streamed, from its last checkpoint's cursor on; it is called
    whenever workers start, on the controller.
    Raises `ConfigError` where Ray has too little for the workers, `TrainingError` where they failed for good.
    """
    import ray.train
    from ray.train.torch import TorchTrainer

    from raystyle.training.loop import train_worker

    check_same_run(config, plan)
    adapter_dir = storage.join(config.output_dir, "adapter")
    if is_finished(adapter_dir, plan.steps):
        return TrainResult(adapter_dir, metrics.read(config.output_dir), unchanged=True)
    use_gpu, cpus, most = resources(config, stream is not None)
    with held(config.output_dir):
        claim(config, plan)
        validate = begin_validation() if begin_validation else None
        node = _place_beside(config, use_gpu, cpus) if validate else None
        validating: dict[str, Any] = {}
        if validate and node:
            validating["validation_config"] = validation.ray_config(
                validate,
                config.output_dir,
                node,
                use_gpu=use_gpu,
                timeout_s=config.eval_timeout_s,
                tensorboard="tensorboard" in config.report_to,
            )
        task = {
            "config": to_dict(config),
            "prepared_dir": prepared_dir,
            "manifest": manifest,
            "steps": plan.steps,
            "warmup_steps": plan.warmup_steps,
            "checkpoint_steps": list(plan.checkpoints),
            "layer_counts": layer_counts,
            "use_gpu": use_gpu,
            "is_validated": bool(validating),
            "start_digest": plan.identity["lora_path"],
            "model_flops": plan.model_flops,
            "parameters": (plan.base_parameters, plan.trainable_parameters),
            "stream_shards": manifest.get("stream", {}).get("shards", 0),
        }
        checkpoints_dir = storage.join(config.output_dir, "checkpoints")
        # Which checkpoint to continue from is decided by looking at the checkpoints themselves (`checkpoints.last_good`),
        # so Ray Train's own list of them, which fails the run where one was deleted, starts anew.
        storage.delete(storage.join(checkpoints_dir, "checkpoint_manager_snapshot.json"))
        failure_path = storage.join(config.output_dir, FAILURE)
        storage.delete(failure_path)
        workers: Any = most
        if config.min_workers < most:
            # Ray Train starts with as many as there is room for, looks every minute whether there is room for more, and
            # after a loss goes on with those that are left.
            workers = (config.min_workers, most)
        trainer = TorchTrainer(
            train_worker,
            train_loop_config=task,
            scaling_config=ray.train.ScalingConfig(
                num_workers=workers,
                use_gpu=use_gpu,
                resources_per_worker={"CPU": cpus, **({"GPU": 1} if use_gpu else {})},
                label_selector=labels(config.train_on) or None,  # type: ignore[call-arg]  # its stub is Ray Train v1's
            ),
            run_config=ray.train.RunConfig(  # type: ignore[call-arg]  # its stub is Ray Train v1's
                name="checkpoints",
                storage_path=config.output_dir,
                failure_config=ray.train.FailureConfig(max_failures=config.max_failures),
                # Errors only: its warnings ask for the dashboard's state API, which a local Ray runs without.
                logging_config=ray.train.LoggingConfig(log_level="ERROR"),
                worker_runtime_env={"env_vars": WORKER_ENVIRONMENT},
                callbacks=[validation.callback(config.output_dir)] if validating else [],
            ),
            **validating,
            **(_streaming(config, stream) if stream else {}),
        )
        try:
            with followed(config.output_dir, plan.steps):
                trainer.fit()
        except SystemExit as stop:
            # Ray Train answers Ctrl-C itself: it stops its workers, then exits (with status 1, whatever it asks for).
            raise KeyboardInterrupt from stop
        except ray.exceptions.RayActorError as error:
            raise TrainingError(
                f"Ray Train's controller was lost: {error}\nhint: the same command continues"
            ) from error
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
        if validating:
            validation.mark_going_on(config.output_dir)  # nobody looks for the mark any more
        metrics.join(config.output_dir)
        return TrainResult(adapter_dir, metrics.read(config.output_dir), unchanged=False)


def _streaming(config: TrainConfig, stream: Callable[[], Any]) -> dict[str, Any]:
    """Ray Train's arguments for a dataset that is made anew whenever workers start, in one order."""
    import ray.data
    import ray.train

    # Order is what makes a worker's share every num_workers-th block; locality would break it.
    options = ray.data.ExecutionOptions(preserve_order=True, label_selector=labels(config.prepare_on) or None)
    return {
        "datasets": {STREAM: stream},
        "dataset_config": ray.train.DataConfig(execution_options=options, enable_shard_locality=False),
    }


def _place_beside(config: TrainConfig, use_gpu: bool, cpus: int) -> str | None:
    """The node on which checkpoints are evaluated while training goes on, if there is room; said on stderr."""
    import ray

    selector = labels(config.train_on).items()
    # Where workers may not run counts as a node without this resource.
    nodes = {
        node["NodeID"]: {**node["Resources"], "training": 1e9 if selector <= node["Labels"].items() else 0}
        for node in ray.nodes()
        if node["Alive"]
    }
    worker = {"CPU": cpus, "training": 1, **({"GPU": 1} if use_gpu else {})}
    node = validation.room(nodes, worker, config.max_workers, validation.needed(use_gpu))
    print(validation.outlook(node, use_gpu, cpus), file=sys.stderr, flush=True)
    return node


def record(output_dir: str, numbers_by_step: Mapping[int, Mapping[str, Any]], tensorboard: bool) -> None:
    """Add what was measured of checkpoints after training to `metrics.jsonl`, and to TensorBoard if asked for."""
    for step, numbers in numbers_by_step.items():
        metrics.write_evaluation(output_dir, step, numbers, tensorboard=tensorboard)
    metrics.join(output_dir)


def last_checkpoint(output_dir: str) -> str | None:
    """The name of a run's newest checkpoint that has all its files; None: there is none. Their digests are `select`'s."""
    for _, uri in sorted(checkpoints.all_steps(storage.join(output_dir, "checkpoints")).items(), reverse=True):
        present = {storage.basename(file.uri) for file in storage.list_files(uri)}
        marker = storage.join(uri, checkpoints.MARKER)
        if checkpoints.MARKER in present and storage.read_json(marker)["sha256"].keys() <= present:
            return storage.basename(uri)
    return None


def select(output_dir: str, checkpoint_name: str, about: Mapping[str, Any]) -> bool:
    """Make a finished run's `adapter/` the adapter of one of its checkpoints; returns whether it was another before.

    `about` says why (`{"reason": sentence}`); with the step and the run's steps it becomes `selected` in
    `raystyle_adapter.json`. That file is deleted first and written last, so that an `adapter/` which has it is never
    mixed: after a crash in between the run counts as unfinished, and the command that trained it writes `adapter/`
    anew from the last checkpoint. Raises `RunError` where the checkpoint is gone, `StorageError` where one of its files
    is not what it was.
    """
    source, target = storage.join(output_dir, "checkpoints", checkpoint_name), storage.join(output_dir, "adapter")
    about_uri = storage.join(target, adapters.ABOUT)
    before = storage.read_json(about_uri) if storage.exists(about_uri) else {}
    with tempfile.TemporaryDirectory(prefix="raystyle-adapter-") as scratch:
        _fetch_adapter(source, scratch)
        told = adapters.verify(scratch)
        steps = storage.read_json(storage.join(output_dir, "plan.json"))["steps"]
        told["selected"] = {"step": told["step"], "of_steps": steps, **about}
        is_other = bool(before.get("fingerprint") != told["fingerprint"])
        if is_other:
            storage.delete(about_uri)
            os.unlink(os.path.join(scratch, adapters.ABOUT))
            storage.upload(scratch, target)
            with storage.local_copy(target) as written:
                if adapters.fingerprint(written) != told["fingerprint"]:
                    raise StorageError(f"`{target}` is not what was written there\nhint: run the same command again")
    if before != told:
        storage.write_json(about_uri, told)
    return is_other


def _fetch_adapter(checkpoint: str, directory: str) -> None:
    """Copy a checkpoint's adapter, without the optimizer beside it, and compare it with the checkpoint's own digests."""
    marker = storage.join(checkpoint, checkpoints.MARKER)
    if not storage.exists(marker):
        raise RunError(
            f"the checkpoint `{checkpoint}` is not there any more, so its adapter cannot become `adapter/`\n"
            "hint: `save_total_limit` deletes earlier checkpoints: choose another one (`--select_checkpoint last`), or "
            "train again without it into another --output_dir"
        )
    digests = storage.read_json(marker)["sha256"]
    for name in (adapters.CONFIG, adapters.WEIGHTS, adapters.ABOUT):
        path = os.path.join(directory, name)
        with storage.open_input(storage.join(checkpoint, name)) as stream, open(path, "wb") as file:
            shutil.copyfileobj(stream, file)
        with open(path, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digests[name]:
                raise StorageError(f"`{storage.join(checkpoint, name)}` is damaged\nhint: choose another checkpoint")


def resources(config: TrainConfig, is_streamed: bool = False) -> tuple[bool, int, int]:
    """Whether to train on GPUs, how many CPU cores a worker gets, and the most workers there may be.

    Where rows are streamed, a core is kept for the tasks that make them: workers that took all would wait for ever. Raises
    `ConfigError` where Ray has too few.
    """
    import ray

    selector = labels(config.train_on).items()
    alive = [node for node in ray.nodes() if node["Alive"]]
    fitting = [node for node in alive if selector <= node["Labels"].items()]
    gpus = int(sum(node["Resources"].get("GPU", 0) for node in fitting))
    who = f"nodes labelled {', '.join(config.train_on)} have" if selector else "Ray has"
    fewest = config.min_workers
    use_gpu = config.use_gpu if config.use_gpu is not None else gpus >= fewest
    if use_gpu and gpus < fewest:
        raise ConfigError(
            f"`num_workers` is {config.num_workers} on GPUs, and {who} {gpus}\n"
            "hint: fewer workers, `--use_gpu false`, or a larger cluster"
        )
    # A head that takes no work has no CPU to count, nor have nodes without a GPU where GPUs train.
    training = [node for node in fitting if node["Resources"].get("GPU", 0) or not use_gpu]
    nodes = [int(node["Resources"].get("CPU", 0)) for node in training]
    cpus = sum(nodes)
    makers = labels(config.prepare_on).items()
    making = [
        node for node in alive if is_streamed and makers <= node["Labels"].items() and node["Resources"].get("CPU")
    ]
    if is_streamed and not making:
        raise ConfigError(
            f"no node labelled {', '.join(config.prepare_on)} has a CPU core to make rows on\n"
            "hint: other `prepare_on` labels, or start such a node first"
        )
    # None but where workers may be, too.
    spare = int(is_streamed and all(node in training for node in making))
    share = config.cpus_per_worker or max(1, min([(cpus - spare) // config.max_workers, *filter(None, nodes)]))
    while (
        spare and not config.cpus_per_worker and share > 1 and _may_fill(nodes, share, fewest, cpus, config.max_workers)
    ):
        share -= 1
    if share * fewest + spare > cpus:
        beside = " and one to prepare their rows" if spare else ""
        raise ConfigError(
            f"{fewest} workers of {share} CPU cores{beside} need {share * fewest + spare}, and {who} {cpus}\n"
            "hint: fewer workers, a smaller `cpus_per_worker`, or a larger cluster"
        )
    if spare and _may_fill(nodes, share, fewest, cpus, config.max_workers):
        raise ConfigError(
            f"with {share} CPU cores each, `num_workers` {config.num_workers} may come to take all cores of the nodes that are left "
            "when one is lost, and none to prepare their rows\nhint: another `cpus_per_worker`, or a number that is no range"
        )
    most = min(config.max_workers, (cpus - spare) // share) if spare else config.max_workers
    return use_gpu, share, most


def _may_fill(nodes: list[int], share: int, fewest: int, cpus: int, most: int) -> bool:
    """Whether the workers of a range, after a loss, may be so many that they take every core of the nodes left."""
    most = min(most, (cpus - 1) // share)
    full = {0}  # numbers of workers that fill some of the nodes
    for cores in nodes:
        if cores and cores % share == 0:
            full |= {count + cores // share for count in full if count + cores // share <= most}
    return fewest < most and any(fewest <= count for count in full if count)


def _explained(error: Any, config: TrainConfig) -> TrainingError:
    """The reason a worker gave, as it gave it; its traceback goes to the log above."""
    failures = getattr(error, "worker_failures", None) or {}
    causes = [getattr(failure, "cause", None) or failure for failure in failures.values()]
    print(str(error), file=sys.stderr)
    lines = str(causes[0] if causes else error).strip().splitlines() or [str(error)]
    # One of our own stands in a traceback with its hint below it.
    ours = [line.partition(": ")[2] for line in lines if line.startswith(f"{errors.__name__}.")]
    return TrainingError(
        f"training failed: {[lines[-1], *ours][-1]}\n"
        f"hint: the same command continues from the last checkpoint in {storage.join(config.output_dir, 'checkpoints')}"
    )
