"""The preflight: steps, checkpoints, memory and time of a run, from its config, its rows' manifest and model shapes.

Plain arithmetic, no torch. Memory is counted in `memory.py`. LoRA's FLOPs are counted by hand below from the
transformer's own shapes: a matrix product of m x k by k x n costs 2mkn; the backward pass of a frozen matrix costs one
such product, of a trained one two.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from raystyle import lora_config
from raystyle.config import TrainConfig
from raystyle.errors import ConfigError, DataError
from raystyle.models import Linear, Shapes
from raystyle.training import lora, memory

GB = 1e9
DEVICE_GB = 80.0  # what a plan is for where no other size is named: an A100 or H100
# What one GPU reaches on large bf16 matrix products, in FLOP/s, and the share of it that a well-fed LoRA run keeps.
# The A100's figure is NVIDIA's peak; NeMo's published Llama-3-8B LoRA run keeps 0.41 of an H100's.
A100_FLOPS = 312e12
UTILISATION = 0.4
# Fields that make a run what it is: a directory with others belongs to another run. Workers, per-device batch and
# accumulation may change as long as their product, the global batch, stays.
SCHEDULE = ("learning_rate", "lr_scheduler_type", "warmup_ratio", "weight_decay", "max_grad_norm")
# Raised when `rows.Order` gives other rows for the same seed: a run begun with another order is not continued.
ROW_ORDER = 2
# TrainingArguments that do not change what is learned.
NOT_IDENTITY = (
    "dataloader_",
    "ddp_",
    "log",
    "report_",
    "run_name",
    "project",
    "trackio_",
    "skip_memory",
    "torch_empty_",
)
# Where a worker leaves an error of raystyle's own: the next attempt sees it and does not try again.
FAILURE = "failure.json"
STREAM = "rows"  # what Ray Train calls a dataset of rows that are made while training
LORA = (
    "lora_r",
    "lora_alpha",
    "lora_dropout",
    "lora_target_modules",
    "lora_target_parameters",
    "use_rslora",
    "use_dora",
    "init_lora_weights",
    "loraplus_lr_ratio",
    "modules_to_save",
    "load_in_4bit",
)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run will do. Counts are exact; `*_estimate` are estimates. `warnings` are for the user to read."""

    rows: int
    tokens: int
    real_token_share: float
    max_seq_length: int
    global_batch_size: int
    tokens_per_step: int
    steps_per_epoch: int
    steps: int
    warmup_steps: int
    checkpoints: tuple[int, ...]
    trainable_parameters: int
    base_parameters: int
    lora_scale: float
    memory_gb_estimate: dict[str, float]
    recomputing_layers: int
    a100_hours_estimate: float
    model_flops: tuple[float, float]  # of one token: without attention, and for each key that it sees
    identity: dict[str, Any]
    warnings: tuple[str, ...]
    stream: str | None = None  # what rows are made of while training, in words; their tokens are then estimates


def make_plan(
    config: TrainConfig,
    manifest: dict[str, Any],
    shapes: Shapes,
    targets: Sequence[Linear],
    start_digest: str | None = None,
) -> Plan:
    """The plan of a run over prepared rows.

    `manifest` is `prepare`'s, `targets` are the layers that get LoRA, `start_digest` is that of the adapter at
    `lora_path`. Raises `ConfigError` or `DataError` for what
    cannot work.
    """
    rows, tokens, length = manifest["counts"]["rows"], manifest["counts"]["tokens"], manifest["max_seq_length"]
    _check(config, manifest, shapes)
    batch = config.global_batch_size
    if "stream" in manifest:  # as many as are asked for, with next to no padding
        rows = config.max_steps * batch
        tokens = rows * length
    steps_per_epoch = math.ceil(rows / batch)
    steps = config.max_steps if config.max_steps > 0 else math.ceil(config.num_train_epochs * steps_per_epoch)
    trainable = trainable_parameters(config, shapes, targets)
    needs = memory.of(config, shapes, length, trainable, has_liger=bool(config.use_liger_kernel))
    recomputing = needs.recomputing(config.gradient_checkpointing, None if config.use_gpu is False else DEVICE_GB * GB)
    epochs = steps / steps_per_epoch
    active = sum(layer.lora_parameters(config.lora_r) * layer.active // layer.copies for layer in targets)
    flops = flops_per_token(shapes, active, length, recomputing / shapes.num_layers) * tokens * epochs
    without_keys = flops_per_token(shapes, active, 0)
    # A token sees half of `mean_keys` on average.
    per_key = flops_per_token(shapes, active, 2) - without_keys
    plan = Plan(
        rows=rows,
        tokens=tokens,
        real_token_share=tokens / (rows * length),
        max_seq_length=length,
        global_batch_size=batch,
        tokens_per_step=batch * length,
        steps_per_epoch=steps_per_epoch,
        steps=steps,
        # At least one step is not warm-up, for the first of a warm-up has learning rate 0.
        warmup_steps=min(math.ceil(config.warmup_ratio * steps), steps - 1),
        checkpoints=checkpoint_steps(config.save_steps, steps),
        trainable_parameters=trainable,
        base_parameters=shapes.parameters,
        lora_scale=config.lora_scale,
        memory_gb_estimate=_in_gb(needs, recomputing),
        recomputing_layers=recomputing,
        a100_hours_estimate=flops / (A100_FLOPS * UTILISATION) / 3600 / config.max_workers,
        model_flops=(without_keys, per_key),
        identity=identity(config, manifest, shapes, steps) | {"lora_path": start_digest},
        warnings=(),
        stream=manifest["stream"]["told"] if "stream" in manifest else None,
    )
    return dataclasses.replace(plan, warnings=tuple(_warnings(config, plan)))


def trainable_parameters(config: TrainConfig, shapes: Shapes, targets: Sequence[Linear]) -> int:
    """How many parameters are trained: LoRA's two matrices, DoRA's magnitude of each output, modules trained whole."""
    matrices = sum(layer.lora_parameters(config.lora_r) for layer in targets)
    magnitudes = sum(layer.count * layer.out_features for layer in targets) if config.use_dora else 0
    return matrices + magnitudes + sum(shapes.modules.get(name, 0) for name in config.modules_to_save)


def checkpoint_steps(save_steps: float, steps: int) -> tuple[int, ...]:
    """The steps after which a checkpoint is saved: every `save_steps` (below 1: that share of all), and the last."""
    every = max(1, round(save_steps * steps)) if save_steps < 1 else int(save_steps)
    return tuple(sorted({*range(every, steps, every), steps}))


def identity(config: TrainConfig, manifest: dict[str, Any], shapes: Shapes, steps: int) -> dict[str, Any]:
    """The fields that make this run what it is: a model by what it holds, not by where it lies."""
    return {
        "model": shapes.identity,
        "data_digest": manifest["digest"],
        "max_seq_length": manifest["max_seq_length"],
        "isolation": config.isolation,
        "global_batch_size": config.global_batch_size,
        "steps": steps,
        "seed": config.seed,
        "row_order": ROW_ORDER,
        **{
            name: list(value) if isinstance(value := getattr(config, name), tuple) else value
            for name in (*SCHEDULE, *LORA)
        },
        "training_args": {k: v for k, v in config.training_args.items() if not k.startswith(NOT_IDENTITY)},
    }


def _check(config: TrainConfig, manifest: dict[str, Any], shapes: Shapes) -> None:
    length = manifest["max_seq_length"]
    if config.max_seq_length not in (None, length):
        raise ConfigError(
            f"`max_seq_length` is {config.max_seq_length}, but the prepared rows hold {length} tokens\n"
            "hint: leave it out, or prepare again with that length into another directory"
        )
    if manifest["counts"]["rows"] == 0:
        raise DataError("the prepared data holds no rows\nhint: look at its report.html for what was removed, and why")
    check_shapes(length, manifest["tokenizer"]["vocab_size"], shapes)


def check_shapes(length: int, vocab: int, shapes: Shapes) -> None:
    """Raises `ConfigError` for rows that the model cannot read: ids it does not embed, positions it does not know."""
    if vocab > shapes.vocab_size:
        raise ConfigError(
            f"the rows' tokenizer has {vocab} tokens, the model embeds {shapes.vocab_size}: ids would fall outside\n"
            "hint: prepare the data with the base model's own tokenizer"
        )
    if shapes.max_position_embeddings and length > shapes.max_position_embeddings:
        raise ConfigError(
            f"rows of {length} tokens are longer than the {shapes.max_position_embeddings} positions the model knows\n"
            f"hint: prepare with `--max_seq_length {shapes.max_position_embeddings}` or less"
        )


def flops_per_token(shapes: Shapes, trainable: int, mean_keys: int, recomputing: float = 0) -> float:
    """Model FLOPs of one trained token: forward 2N + A + 2P, backward 2N + 2A + 4P, and the forward again in the
    share of layers that recompute (`recomputing`).

    N counts the weights in matrix products (all but the embedding), P LoRA's, A attention's products with on average
    half of `mean_keys` keys: 2 products x 2 FLOPs x layers x heads x head_dim x keys / 2.
    """
    embedding = shapes.vocab_size * shapes.hidden_size
    layers = (*shapes.linears, *shapes.experts)
    products = sum(layer.count * layer.active * layer.in_features * layer.out_features for layer in layers)
    attention = 2 * shapes.num_layers * shapes.num_heads * shapes.head_dim * mean_keys
    forward = 2 * products + attention + 2 * trainable
    backward = 2 * products + 2 * attention + 4 * trainable
    return forward + backward + (forward - 2 * embedding) * recomputing


def _in_gb(needs: memory.Memory, recomputing: int) -> dict[str, float]:
    """A step's memory by component, with LoRA in fp32 and the rest in bf16."""
    sizes = {
        "base weights": needs.base,
        "LoRA weights and gradients": needs.lora,
        "Adam states": needs.optimizer,
        "activations": needs.activations(recomputing),
        "loss or backward pass": max(needs.loss, needs.backward),
    }
    return {name: round(size / GB, 2) for name, size in (sizes | {"total": needs.total(recomputing)}).items()}


def _warnings(config: TrainConfig, plan: Plan) -> list[str]:
    found = []
    if config.save_steps >= plan.steps and config.save_steps >= 1:
        found.append(
            f"`save_steps` {config.save_steps:g} never comes in {plan.steps} steps: the only checkpoint is the end; "
            "`--save_steps 0.2` saves every fifth of the run"
        )
    if plan.steps < 20:
        found.append(f"{plan.steps} steps are few; a smaller batch or more epochs give the adapter more updates")
    settings = {name: value for name, value in lora.settings(config).items() if name != "peft_type"}
    if unserved := [f"`{name}`" for name, value in settings.items() if not lora_config.is_understood(name, value)]:
        found.append(
            f"serving and `raystyle sample` cannot take an adapter with {' and '.join(unserved)}: merge it into its base "
            "with `raystyle export`, and serve that"
        )
    last = plan.rows % plan.global_batch_size
    if last and plan.rows < plan.global_batch_size:
        found.append(f"one batch asks for {plan.global_batch_size} rows and there are {plan.rows}: lower the batch")
    if plan.memory_gb_estimate["total"] > DEVICE_GB and config.use_gpu is not False:
        found.append(
            f"an estimated {plan.memory_gb_estimate['total']:.0f} GB per device is more than {DEVICE_GB:.0f} GB: "
            "`raystyle plan --fit 80GB` says what fits"
        )
    return found


def _duration(hours: float) -> str:
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{hours * 60:.0f} min" if hours * 60 >= 1 else "less than a minute"


def describe(plan: Plan) -> str:
    """The plan as lines for a person."""
    checkpoints = ", ".join(map(str, plan.checkpoints[:8])) + (" …" if len(plan.checkpoints) > 8 else "")
    memory = ", ".join(f"{name} {size:.1f}" for name, size in plan.memory_gb_estimate.items() if name != "total")
    lines = {
        "rows": f"{plan.rows:,} of {plan.max_seq_length:,} tokens; "
        + (plan.stream or f"{plan.tokens:,} real tokens ({plan.real_token_share:.1%})"),
        "step": f"{plan.global_batch_size} rows = {plan.tokens_per_step:,} tokens",
        "steps": f"{plan.steps:,}"
        + ("" if plan.stream else f" ({plan.steps_per_epoch:,} an epoch)")
        + f", {plan.warmup_steps} of them warm-up",
        "checkpoints": f"after step {checkpoints}",
        "adapter": f"{plan.trainable_parameters:,} trained parameters beside {plan.base_parameters:,} frozen, "
        f"scale {plan.lora_scale:g}",
        "memory": f"about {plan.memory_gb_estimate['total']:.1f} GB a device in bf16 ({memory}); "
        + (f"{plan.recomputing_layers} layers recompute" if plan.recomputing_layers else "no layer recomputes"),
        "time": f"about {_duration(plan.a100_hours_estimate)} on A100s at {UTILISATION:.0%} of their peak (estimate)",
    }
    text = [f"  {name:<12} {line}" for name, line in lines.items()]
    return "\n".join(["plan", *text, *(f"  warning: {warning}" for warning in plan.warnings)])


def describe_proposal(config: TrainConfig, shapes: Shapes, plan: Plan, device_gb: float) -> str:
    """What `plan --fit` says: the settings that suit a device of so many GB, as flags."""
    found = memory.proposal(config, shapes, plan.max_seq_length, plan.trainable_parameters, device_gb * GB)
    if found is None:
        return (
            f"  not even one row of {plan.max_seq_length:,} tokens fits into {device_gb:g} GB\n"
            "  hint: `--load_in_4bit`, a smaller `--lora_r`, `--deepspeed zero3`, or shorter rows"
        )
    fitted, layers = found
    needs = memory.of(fitted, shapes, plan.max_seq_length, plan.trainable_parameters)
    flags = (
        f"--per_device_train_batch_size {fitted.per_device_train_batch_size} "
        f"--gradient_accumulation_steps {fitted.gradient_accumulation_steps} --gradient_checkpointing auto"
    )
    told = f"{layers} of {shapes.num_layers} layers recompute" if layers else "no layer recomputes"
    return f"  fit          {flags}\n               about {needs.total(layers) / GB:.1f} of {device_gb:g} GB; {told}"
