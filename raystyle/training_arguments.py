"""transformers' `TrainingArguments`, without importing it: which fields exist, their types, and which are raystyle's.

Any field that raystyle has no flag of its own for is accepted by its own name and handed on as it is.
"""

import ast
import functools
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

from raystyle.errors import ConfigError
from raystyle.values import as_type, wrong

# Fields of transformers' TrainingArguments that raystyle decides: setting them would break what it promises.
OWNED = {
    "accelerator_config": "the order of rows is raystyle's",
    "activation_checkpointing": "use `gradient_checkpointing`",
    "activation_checkpointing_kwargs": "recomputation is non-reentrant, which LoRA needs",
    "liger_kernel_config": "the loss is raystyle's own; `use_liger_kernel` takes Liger's other kernels or none",
    "gradient_checkpointing_kwargs": "recomputation is non-reentrant, which LoRA needs",
    "auto_find_batch_size": "it would change the global batch; `raystyle plan` says what fits",
    "average_tokens_across_devices": "the loss is always normalised by the global token count",
    **dict.fromkeys(
        (
            "batch_eval_metrics",
            "eval_accumulation_steps",
            "eval_delay",
            "eval_do_concat_batches",
            "eval_steps",
            "eval_use_gather_object",
            "greater_is_better",
            "include_for_metrics",
            "metric_for_best_model",
            "per_device_eval_batch_size",
            "prediction_loss_only",
            "bf16_full_eval",
            "fp16_full_eval",
        ),
        "held-out loss is measured before training and at each checkpoint",
    ),
    **dict.fromkeys(
        (
            "dataloader_multiprocessing_context",
            "dataloader_persistent_workers",
            "dataloader_pin_memory",
            "dataloader_prefetch_factor",
            "dataloader_in_order",
        ),
        "of the loader's settings only `dataloader_num_workers` is yours",
    ),
    "data_seed": "the order of rows follows `seed`",
    "dataloader_drop_last": "no row is dropped",
    "ddp_find_unused_parameters": "every LoRA parameter is used in each step",
    "disable_tqdm": "progress is raystyle's own",
    **dict.fromkeys(
        ("torch_compile", "torch_compile_backend", "torch_compile_mode"),
        "kernels are chosen at the start; a compiled step is not known to give the same losses",
    ),
    "do_train": "`raystyle train` trains",
    "do_eval": "`raystyle evaluate` evaluates",
    "do_predict": "`raystyle sample` samples",
    "enable_jit_checkpoint": "checkpoints are raystyle's own, without pickle",
    "eval_strategy": "held-out loss is measured before training and at each checkpoint",
    "eval_on_start": "held-out loss is measured before training and at each checkpoint",
    "fp16": "LoRA in float16 overflows; use `bf16`",
    "fsdp": "use `deepspeed` for sharded training",
    "fsdp_config": "use `deepspeed` for sharded training",
    "full_determinism": "set `seed`; on one device and library versions a run repeats",
    "group_by_length": "rows have one length and one order",
    "ignore_data_skip": "a resumed run continues at the row where it stopped",
    "label_names": "labels follow from the rows",
    "label_smoothing_factor": "the loss is plain cross-entropy",
    "length_column_name": "rows have one length and one order",
    "load_best_model_at_end": "the adapter is the last step's; every checkpoint stays",
    "logging_nan_inf_filter": "a loss that is not finite stops the run",
    "local_rank": "Ray Train numbers the workers",
    "logging_dir": "TensorBoard's files go to the run's directory",
    "overwrite_output_dir": "a run is continued by the same command; a new one needs a new `output_dir`",
    "parallelism_config": "rows are split over workers only",
    **dict.fromkeys(
        ("hub_token", "hub_model_id", "hub_private_repo", "hub_strategy", "hub_always_push", "hub_revision"),
        "nothing is pushed from a run; upload the `adapter/` folder with `hf upload`",
    ),
    "push_to_hub": "upload the `adapter/` folder with `hf upload`",
    "remove_unused_columns": "batches are raystyle's own",
    "restore_callback_states_from_checkpoint": "checkpoints are raystyle's own, without pickle",
    "resume_from_checkpoint": "the same command continues its run by itself",
    "save_only_model": "a checkpoint always holds what continuing needs",
    "save_on_each_node": "checkpoints go to `output_dir`, once",
    "save_safetensors": "adapters are always safetensors",
    "save_strategy": "use `save_steps`; the end is always saved",
    "train_sampling_strategy": "rows have one seeded order",
    "use_cpu": "use `use_gpu false`",
    "warmup_steps": "use `warmup_ratio`",
}


@functools.cache
def fields() -> dict[str, str]:
    """Every field and its annotation, read from the source: importing it would load torch."""
    spec = importlib.util.find_spec("transformers")
    if spec is None or not spec.submodule_search_locations:
        return {}
    source = Path(spec.submodule_search_locations[0], "training_args.py").read_text(encoding="utf-8")
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and node.name == "TrainingArguments":
            return {
                line.target.id: ast.unparse(line.annotation)
                for line in node.body
                if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
            }
    return {}


def convert(name: str, value: Any, from_text: bool) -> Any:
    """A value for a TrainingArguments field, by the types its annotation names (`int | None`, `dict | str`, …)."""
    annotation = fields()[name]
    kinds = [part.strip() for part in re.sub(r"\[[^\]]*\]", "", annotation).split("|")]
    if value is None or (from_text and str(value).lower() in ("none", "null")):
        if "None" in kinds:
            return None
        raise wrong(name, value, annotation)
    for kind, python_type in [("bool", bool), ("int", int), ("float", float)]:
        if kind in kinds:
            try:
                return as_type(name, value, python_type, from_text)
            except ConfigError:
                if kinds[-1] == kind or kinds == [kind, "None"]:
                    raise
    if from_text and ("dict" in kinds or "list" in kinds) and str(value).lstrip().startswith(("{", "[")):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise wrong(name, value, f"JSON ({error})") from error
    if isinstance(value, dict) and "dict" not in kinds:
        raise wrong(name, value, annotation)
    if isinstance(value, str | dict | list) and not (isinstance(value, list) and "list" not in kinds):
        return value
    raise wrong(name, value, annotation)
