"""What every training worker runs: load, attach LoRA, find where to continue, train, write the adapter.

Under Ray Train that is `train_worker`. Without Ray, on prepared rows, with the same numbers:

    torchrun --nproc_per_node 2 -m raystyle.training.loop --config runs/mine/config.json

and by `accelerate launch -m` or plain `python -m` likewise. The launcher says how many workers there are, and nothing
starts them again; the same command continues a run, whichever of the ways began it.
"""

import dataclasses
import functools
import os
import shutil
import sys
import tempfile
import threading
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
import transformers

from raystyle import models, storage, tokens
from raystyle.config import TrainConfig
from raystyle.errors import ConfigError, RaystyleError, StorageError, TrainingError
from raystyle.flags import from_dict, parse, to_dict
from raystyle.training import (
    agreement,
    attention,
    checkpoints,
    continuation,
    kernels,
    lora,
    lora_linear,
    memory,
    metrics,
    preflight,
    report,
    sharding,
    transport,
    validation,
)
from raystyle.training.follow import followed
from raystyle.training.plan import FAILURE, STREAM, describe
from raystyle.training.recompute import recompute
from raystyle.training.rows import Order, Placed, Rows, flat_batch
from raystyle.training.streamed import Streamed, StreamOrder
from raystyle.training.trainer import PackedTrainer, Run, Task, Worker


def train_worker(task_dict: dict[str, Any]) -> None:
    """One worker's whole life under Ray Train. What it raises makes Ray Train start all workers again, from the last checkpoint.

    An error of raystyle's own would only come again: it is left in `failure.json` for the driver, and every worker of
    the next attempt returns at once.
    """
    import ray.train

    task = Task(**task_dict)
    context = ray.train.get_context()
    hand_over = functools.partial(_report, task, threading.Semaphore())
    failure_path = storage.join(task.config["output_dir"], FAILURE)
    if storage.exists(failure_path):
        return
    try:
        batches = _batches if task.stream_shards else None
        train(task, Worker(context.get_world_rank(), context.get_world_size(), hand_over, batches, _is_leaving))
    except StorageError:
        raise  # storage may answer again in a minute: another attempt is right
    except RaystyleError as error:
        own = getattr(error, "cause", error)  # of a task that makes rows, Ray passes it on in a class of both kinds
        storage.write_json(failure_path, {"error": type(own).__name__, "message": str(own)})
        raise


def _is_leaving() -> bool:
    """Whether a machine with one of the workers is announced to go, as spot machines are. Every worker must ask."""
    import ray.train

    return ray.train.get_preemption_info() is not None


def _batches(rows: int) -> Any:
    """This worker's share of the stream that Ray Data makes, in tables of so many rows."""
    import ray.train

    shard = ray.train.get_dataset_shard(STREAM)
    return shard.iter_batches(batch_size=rows, batch_format="pyarrow", prefetch_batches=2)


def _report(task: Task, is_free: threading.Semaphore, step: int, directory: str | None) -> None:
    """Hand a checkpoint over by way of Ray Train, which waits until every worker is here, and uploads beside training; what it
    fails with ends this worker. One at a time, for the disk holds them meanwhile; the last one is waited for."""
    import ray.train

    # Of the same place Ray Train takes only a checkpoint that lies in its own filesystem object.
    theirs: Any = ray.train.get_context().get_storage()

    def upload(checkpoint: Any, name: str) -> Any:
        try:
            keep(task, step, checkpoint.path)
        finally:
            is_free.release()
        return ray.train.Checkpoint(f"{theirs.experiment_fs_path}/{name}", theirs.storage_filesystem)

    modes = ray.train.CheckpointUploadMode
    mode = modes.SYNC if step == task.steps else modes.ASYNC
    if directory is None:
        ray.train.report({"step": step}, checkpoint_upload_mode=mode)
    else:
        is_free.acquire()
        ray.train.report(
            {"step": step},
            checkpoint=ray.train.Checkpoint.from_directory(directory),
            checkpoint_dir_name=checkpoints.name_of(step),
            checkpoint_upload_mode=mode,
            checkpoint_upload_fn=upload,
            validation=task.is_validated and step in task.checkpoint_steps,
        )


def keep(task: Task, step: int, directory: str) -> None:
    """Copy a saved checkpoint to the run's storage, delete it here, and there those that are too many."""
    place = storage.join(task.config["output_dir"], "checkpoints")
    try:
        checkpoints.upload(directory, storage.join(place, checkpoints.name_of(step)))
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    if most := task.config["save_total_limit"]:
        checkpoints.prune(place, most)


def train(task: Task, worker: Worker) -> None:
    """Train until the last step, from the last good checkpoint on, and write the adapter."""
    config, rank = from_dict(TrainConfig, task.config), worker.rank
    if task.is_validated and rank == 0:
        validation.mark_going_on(config.output_dir)
    device = torch.device("cuda" if task.use_gpu else "cpu")
    bf16 = config.bf16 if config.bf16 is not None else models.auto_dtype(device) == torch.bfloat16
    implementation = attention.choose(config.attn_implementation, task.use_gpu, bf16)
    tokenizer = tokens.load_tokenizer(_tokenizer_name(config), config.trust_remote_code)
    with tempfile.TemporaryDirectory(prefix="raystyle-train-") as scratch:
        if task.use_gpu and worker.num_workers > 1:
            transport.note_ways(scratch)
        order: Order | StreamOrder
        batch, rows = (config.global_batch_size, config.per_device_train_batch_size), None
        if worker.batches:
            order = StreamOrder(*batch, rank, worker.num_workers, task.steps)
        else:
            rows = Rows(task.prepared_dir, task.manifest)
            order = Order(len(rows), *batch, rank, worker.num_workers, task.steps, config.seed)
        arguments = training_arguments(config, task, order.accumulation, scratch, bf16)
        if config.deepspeed:
            sharding.join()
        base = models.load_base(
            config.model_name_or_path,
            dtype=torch.bfloat16 if bf16 else torch.float32,
            attn_implementation=implementation,
            trust_remote_code=config.trust_remote_code,
            load_in_4bit=config.load_in_4bit,
        )
        has_liger = kernels.apply_liger(base, config.use_liger_kernel, task.use_gpu)
        in_base, trained = task.parameters
        shapes = dataclasses.replace(models.shapes_of(base, ""), parameters=in_base)
        model = lora.attach(base, config)
        lora.check_layers(model, task.layer_counts)
        length = task.manifest["max_seq_length"]
        needs = memory.of(config, shapes, length, trained, bf16, has_liger, worker.num_workers)
        device_bytes = torch.cuda.get_device_properties(device).total_memory if task.use_gpu else None
        step = {
            "attention": implementation.removeprefix("raystyle_"),
            "has_liger": has_liger,
            "fused_lora_layers": lora_linear.fuse(model),
            "recomputing_layers": recompute(model, needs.recomputing(config.gradient_checkpointing, device_bytes)),
        }
        if worker.num_workers > 1:
            step |= transport.measure(4 * trained, device, scratch)
        start, torn = resume_point(config.output_dir, rank)
        if torn:
            step["torn_checkpoints"] = torn
        dataset: Placed | Streamed
        if isinstance(order, StreamOrder):
            assert worker.batches
            at = checkpoints.step_of(start) if start else 0
            batches = worker.batches(config.per_device_train_batch_size)
            dataset = Streamed(batches, order, at, checkpoints.read_cursor(start), task.stream_shards)
        else:
            assert rows
            dataset = Placed(rows, order)
        try:
            trainer = PackedTrainer(
                model=model,
                args=arguments,
                train_dataset=dataset,
                data_collator=lambda batch: flat_batch(batch, config.isolation, implementation),
                run=Run(config, task, worker, order, tokenizer, implementation, callbacks(config, rank, scratch), step),
            )
            agreement.check(trainer.base_identity, task)
            if start is None:
                continuation.take_weights(config, task.start_digest, model)
                trainer.train()
            else:
                with storage.local_copy(start) as directory:
                    lora.load(directory, model)
                    trainer.train(resume_from_checkpoint=directory)
        except torch.OutOfMemoryError as error:  # it would only come again
            raise TrainingError(
                f"the device's memory is too small for a step: {str(error).splitlines()[0]}\n"
                "hint: `raystyle plan --fit` with the device's memory (`--fit 80GB`) says what fits"
            ) from error
        trainer.finish()
    if task.is_validated and rank == 0:
        validation.mark_stopped(config.output_dir)


def _tokenizer_name(config: TrainConfig) -> str:
    return config.tokenizer_name_or_path or config.model_name_or_path


def training_arguments(
    config: TrainConfig, task: Task, accumulation: int, scratch: str, bf16: bool
) -> transformers.TrainingArguments:
    """transformers' arguments: the config's fields by their own names, and what raystyle decides."""
    try:
        arguments = transformers.TrainingArguments(
            output_dir=scratch,
            per_device_train_batch_size=config.per_device_train_batch_size,
            gradient_accumulation_steps=accumulation,
            learning_rate=config.learning_rate,
            lr_scheduler_type=config.lr_scheduler_type,
            warmup_steps=task.warmup_steps,
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
            max_steps=task.steps,
            seed=config.seed,
            bf16=bf16,
            logging_steps=config.logging_steps,
            logging_nan_inf_filter=False,
            save_strategy="no",
            report_to=[name for name in config.report_to if name not in ("none", "tensorboard")],
            disable_tqdm=True,
            use_cpu=not task.use_gpu,
            deepspeed=sharding.deepspeed_config(config.deepspeed),
            remove_unused_columns=False,
            average_tokens_across_devices=True,
            ddp_find_unused_parameters=False,
            ignore_data_skip=task.stream_shards > 0,  # a stream begins where it is to go on
            **dict(config.training_args),
        )
        # A worker has one device, though it may see several; and a schedule's own settings are known to it alone.
        arguments._n_gpu = min(1, arguments.n_gpu)
        probe = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.learning_rate)
        kwargs: Any = arguments.lr_scheduler_kwargs
        transformers.get_scheduler(config.lr_scheduler_type, probe, task.warmup_steps, task.steps, kwargs)
        return arguments
    except (ValueError, TypeError, ImportError) as error:
        raise ConfigError(f"transformers refuses these training arguments: {error}") from error


def callbacks(config: TrainConfig, rank: int, scratch: str) -> tuple[Any, ...]:
    """TensorBoard's files go to the run's `tensorboard/`: at once where it is local, else with each checkpoint."""
    if "tensorboard" not in config.report_to or rank != 0:
        return ()
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations.integration_utils import TensorBoardCallback

    target = storage.join(config.output_dir, "tensorboard")
    if not storage.is_remote(target):
        return (TensorBoardCallback(SummaryWriter(target)),)
    local = os.path.join(scratch, "tensorboard")
    return (TensorBoardCallback(SummaryWriter(local)), UploadOnSave(local, target))


class UploadOnSave(transformers.TrainerCallback):
    """Copy a local directory to storage after each checkpoint."""

    def __init__(self, local_dir: str, uri: str) -> None:
        self.local_dir, self.uri = local_dir, uri

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        storage.upload(self.local_dir, self.uri)


def resume_point(output_dir: str, rank: int) -> tuple[str | None, list[str]]:
    """The checkpoint that all workers continue from, and the names of those that were incomplete or damaged: rank 0 looks and
    verifies, the others follow it."""
    found: list[Any] = [None, []]
    if rank == 0:
        found[0], torn = checkpoints.last_good(storage.join(output_dir, "checkpoints"))
        found[1] = [storage.basename(uri) for uri in torn]
        for uri in torn:
            # A crash while uploading leaves these; deleted, so that nothing takes them for checkpoints.
            storage.delete(uri)
    if torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(found, src=0)
    return found[0], found[1]


def main(argv: Sequence[str] | None = None) -> int:
    """One worker's whole life without Ray, as torchrun and accelerate start it; returns its exit status."""
    rank, num_workers = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    transformers.utils.logging.disable_progress_bar()
    try:
        config = parse(TrainConfig, sys.argv[1:] if argv is None else argv)
        checked = preflight.preflight(config, _refuse_raw_text)
        config = checked.config  # with what it takes from the adapter that it continues from
        # It writes there what others would take for an earlier run's; that they agree is asked before training.
        if rank == 0:
            preflight.check_same_run(config, checked.plan)
        if preflight.is_finished(storage.join(config.output_dir, "adapter"), checked.plan.steps):
            if rank == 0:
                print("this run has finished before; nothing was done")
            return 0
    except RaystyleError as error:
        if rank == 0:  # all find the same
            print(f"raystyle: error: {error}", file=sys.stderr)
        return error.exit_code
    if rank == 0:
        print(describe(checked.plan), flush=True)
    task = Task(
        config=to_dict(config),
        prepared_dir=checked.prepared_dir,
        manifest=checked.manifest,
        steps=checked.plan.steps,
        warmup_steps=checked.plan.warmup_steps,
        checkpoint_steps=list(checked.plan.checkpoints),
        layer_counts=checked.layer_counts,
        use_gpu=config.use_gpu if config.use_gpu is not None else torch.cuda.is_available(),
        start_digest=checked.plan.identity["lora_path"],
        model_flops=checked.plan.model_flops,
        parameters=(checked.plan.base_parameters, checked.plan.trainable_parameters),
    )

    def hand_over(step: int, directory: str | None) -> None:
        if directory is not None:
            keep(task, step, directory)

    try:
        with ExitStack() as stack:
            if rank == 0:
                stack.enter_context(preflight.held(config.output_dir))
                preflight.claim(config, checked.plan)
                stack.enter_context(followed(config.output_dir, task.steps))
            train(task, Worker(rank, num_workers, hand_over))
    except RaystyleError as error:
        print(f"raystyle: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\nraystyle: interrupted; the same command continues where it stopped", file=sys.stderr)
        return 130
    if rank == 0:
        metrics.join(config.output_dir)
        report.write(config.output_dir, dataclasses.asdict(checked.plan), metrics.read(config.output_dir))
        print(f"adapter  {config.output_dir}/adapter\nreport   {config.output_dir}/report.html")
    return 0


def _refuse_raw_text(config: TrainConfig) -> str:
    raise ConfigError(
        f"`dataset_path` {' '.join(config.dataset_path)} is not a `prepare` output, and raw text is prepared on Ray\n"
        "hint: `raystyle prepare` first, or `raystyle train`, which does both"
    )


if __name__ == "__main__":
    status = main()
    # Threads of a group that is still there when Python ends may abort it. One whose others have failed is not waited for.
    if status == 0 and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    sys.exit(status)
