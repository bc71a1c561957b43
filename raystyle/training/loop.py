"""What every training worker runs, under Ray Train: load, attach LoRA, find where to continue, train, write the adapter."""

import os
import tempfile
from typing import Any

import ray.train
import torch
import transformers

from raystyle import models, storage, tokens
from raystyle.config import TrainConfig
from raystyle.errors import ConfigError, RaystyleError, StorageError
from raystyle.flags import from_dict
from raystyle.training import attention, checkpoints, continuation, lora, sharding, validation
from raystyle.training.plan import FAILURE
from raystyle.training.rows import Order, Placed, Rows, flat_batch
from raystyle.training.trainer import PackedTrainer, Run, Task


def train_worker(task_dict: dict[str, Any]) -> None:
    """One worker's whole life. What it raises makes Ray Train start all workers again, from the last checkpoint.

    An error of raystyle's own would only come again: it is left in `failure.json` for the driver, and every worker of
    the next attempt returns at once.
    """
    task = Task(**task_dict)
    failure_path = storage.join(task.config["output_dir"], FAILURE)
    if storage.exists(failure_path):
        return
    try:
        _train(task)
    except StorageError:
        raise  # storage may answer again in a minute: another attempt is right
    except RaystyleError as error:
        storage.write_json(failure_path, {"error": type(error).__name__, "message": str(error)})
        raise


def _train(task: Task) -> None:
    config = from_dict(TrainConfig, task.config)
    context = ray.train.get_context()
    rank, num_workers = context.get_world_rank(), context.get_world_size()
    if task.is_validated and rank == 0:
        validation.mark_going_on(config.output_dir)
    device = torch.device("cuda" if task.use_gpu else "cpu")
    bf16 = config.bf16 if config.bf16 is not None else models.auto_dtype(device) == torch.bfloat16
    implementation = attention.choose(config.attn_implementation, task.use_gpu, bf16)
    tokenizer = tokens.load_tokenizer(_tokenizer_name(config), config.trust_remote_code)
    with tempfile.TemporaryDirectory(prefix="raystyle-train-") as scratch:
        arguments = training_arguments(config, task, scratch, bf16)
        base = models.load_base(
            config.model_name_or_path,
            dtype=torch.bfloat16 if bf16 else torch.float32,
            attn_implementation=implementation,
            trust_remote_code=config.trust_remote_code,
            load_in_4bit=config.load_in_4bit,
        )
        model = lora.attach(base, config)
        lora.check_layers(model, task.layer_counts)
        if config.gradient_checkpointing:
            model.enable_input_require_grads()
        rows = Rows(task.prepared_dir, task.manifest)
        order = Order(
            len(rows),
            config.per_device_train_batch_size,
            config.gradient_accumulation_steps,
            rank,
            num_workers,
            task.steps,
            config.seed,
        )
        trainer = PackedTrainer(
            model=model,
            args=arguments,
            train_dataset=Placed(rows),
            data_collator=lambda batch: flat_batch(batch, config.isolation, implementation),
            run=Run(config, task, order, tokenizer, implementation, callbacks(config, rank, scratch)),
        )
        start = resume_point(config.output_dir, rank)
        if start is None:
            continuation.take_weights(config, task.start_digest, model)
            trainer.train()
        else:
            with storage.local_copy(start) as directory:
                lora.load(directory, model)
                trainer.train(resume_from_checkpoint=directory)
        trainer.finish()
    if task.is_validated and rank == 0:
        validation.mark_stopped(config.output_dir)


def _tokenizer_name(config: TrainConfig) -> str:
    return config.tokenizer_name_or_path or config.model_name_or_path


def training_arguments(config: TrainConfig, task: Task, scratch: str, bf16: bool) -> transformers.TrainingArguments:
    """transformers' arguments: the config's fields by their own names, and what raystyle decides."""
    try:
        return transformers.TrainingArguments(
            output_dir=scratch,
            per_device_train_batch_size=config.per_device_train_batch_size,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            learning_rate=config.learning_rate,
            lr_scheduler_type=config.lr_scheduler_type,
            warmup_steps=task.warmup_steps,
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
            max_steps=task.steps,
            seed=config.seed,
            bf16=bf16,
            activation_checkpointing=config.gradient_checkpointing,
            activation_checkpointing_kwargs={"use_reentrant": False},
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
            **dict(config.training_args),
        )
    except (ValueError, TypeError, ImportError) as error:
        raise ConfigError(f"transformers refuses these training arguments: {error}") from error


def callbacks(config: TrainConfig, rank: int, scratch: str) -> tuple[Any, ...]:
    """TensorBoard's files go to the run's `tensorboard/`: at once where it is local, else with each checkpoint."""
    if "tensorboard" not in config.report_to or rank != 0:
        return ()
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

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


def resume_point(output_dir: str, rank: int) -> str | None:
    """The checkpoint that all workers continue from: rank 0 looks and verifies, the others follow it."""
    found: list[str | None] = [None]
    if rank == 0:
        found[0], torn = checkpoints.last_good(storage.join(output_dir, "checkpoints"))
        for uri in torn:
            # A crash while uploading leaves these; deleted, so that nothing takes them for checkpoints.
            storage.delete(uri)
    if torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(found, src=0)
    return found[0]
