"""Before any worker starts, with Ray or without: everything that can be known is checked, and the run's directory claimed.

What can be refused is refused before anything is written: a tokenizer or model that does not exist, LoRA targets that
match nothing, rows made with another tokenizer, a directory that is another run's.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from raystyle import adapters, models, storage, tokens
from raystyle.config import TrainConfig
from raystyle.errors import ConfigError, RunError
from raystyle.flags import to_dict
from raystyle.training import continuation, refusals
from raystyle.training import plan as planning
from raystyle.training.sharding import deepspeed_config


@dataclasses.dataclass(frozen=True)
class Preflight:
    """A checked run: its settings, its plan, its data, and how many layers of each target module get LoRA."""

    config: TrainConfig
    plan: planning.Plan
    prepared_dir: str
    manifest: dict[str, Any]
    layer_counts: dict[str, int]


def is_prepared(dataset_path: tuple[str, ...]) -> bool:
    return len(dataset_path) == 1 and storage.exists(storage.join(dataset_path[0], "manifest.json"))


def is_streamed(config: TrainConfig) -> bool:
    """Whether rows are made while training. Prepared rows are read from storage as they are needed, always."""
    return config.streaming and not is_prepared(config.dataset_path)


def preflight(
    config: TrainConfig,
    prepare: Callable[[TrainConfig], str],
    survey: Callable[[TrainConfig], dict[str, Any]] | None = None,
) -> Preflight:
    """Check a run. Raw text is prepared last, by `prepare`, which returns the prepared directory; text that is to be
    streamed is only listed, by `survey`, which returns what stands for a manifest."""
    deepspeed_config(config.deepspeed)
    refusals.check_packages(config)
    shapes = models.read_shapes(config.model_name_or_path, config.trust_remote_code)
    config, start_digest = continuation.begin(config, shapes)
    refusals.check_base(config, shapes)
    targets = models.targeted(shapes, config.lora_target_modules, config.lora_target_parameters)
    tokenizer = tokens.load_tokenizer(
        config.tokenizer_name_or_path or config.model_name_or_path, config.trust_remote_code
    )
    refusals.check_tokenizer(config, shapes, tokenizer)
    check_is_run(config.output_dir)
    prepared_dir = config.dataset_path[0] if is_prepared(config.dataset_path) else ""
    if not prepared_dir:
        planning.check_shapes(config.max_seq_length or 4096, len(tokenizer), shapes)
    if is_streamed(config):
        if survey is None:
            raise ConfigError(
                "`--streaming` of raw text goes with `raystyle train`\nhint: use that, or `raystyle prepare` first"
            )
        manifest = survey(config)
    else:
        prepared_dir = prepared_dir or prepare(config)
        manifest = storage.read_json(storage.join(prepared_dir, "manifest.json"))
    if manifest.get("tokenizer") is None:
        raise RunError(
            f"`{prepared_dir}` was prepared without a tokenizer: it has documents but no rows\n"
            "hint: prepare again with --tokenizer_name_or_path, into another directory"
        )
    if tokens.tokenizer_digest(tokenizer) != manifest["tokenizer"]["digest"]:
        raise ConfigError(
            f"the rows in `{prepared_dir}` were made with another tokenizer ({manifest['tokenizer']['name']}) than the "
            "model's\nhint: prepare again with the base model's tokenizer"
        )
    plan = planning.make_plan(config, manifest, shapes, targets, start_digest)
    counts: dict[str, int] = {}
    for layer in targets:
        counts[layer.name] = counts.get(layer.name, 0) + layer.count
    return Preflight(config, plan, prepared_dir, manifest, counts)


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


def check_same_run(config: TrainConfig, plan: planning.Plan) -> None:
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


def claim(config: TrainConfig, plan: planning.Plan) -> None:
    """Make `output_dir` this run's. `plan.json` comes first: it is what makes a directory a run."""
    storage.write_json(storage.join(config.output_dir, "plan.json"), dataclasses.asdict(plan))
    storage.write_json(storage.join(config.output_dir, "config.json"), to_dict(config))


@contextlib.contextmanager
def held(output_dir: str) -> Iterator[None]:
    """Keep others from training in a directory, and from claiming it: two would take each other's half-written checkpoints for
    torn ones.

    The hold goes with the process, however it ends. Object storage has none: there it is up to whoever submits a run twice.
    """
    lock = storage.join(output_dir, ".lock")
    with storage.locked(lock):
        try:
            yield
        finally:
            if not storage.is_remote(lock):
                storage.delete(lock)


def is_finished(adapter_dir: str, steps: int) -> bool:
    """Whether the run has trained to its last step and left an adapter: of that step, or of an earlier one it selected.

    `raystyle_adapter.json` is the file written last.
    """
    about = storage.join(adapter_dir, adapters.ABOUT)
    if not storage.exists(about):
        return False
    told = storage.read_json(about)
    return bool(told.get("selected", {}).get("of_steps", told.get("step")) == steps)
