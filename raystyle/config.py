"""One frozen, typed config per command, and every default.

A field is a flag of the same name, a key of a `--config` file, and a line of `--help`. Names are Hugging Face's. Nothing
here imports more than the standard library: a mistake is answered before torch or Ray is loaded. `flags.py` makes
these objects from a command line and files. Checks that need only the config live in `__post_init__`.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from raystyle.errors import ConfigError

T = TypeVar("T")

LLAMA_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# transformers' schedules that are a function of the step alone; those that follow a metric cannot be resumed exactly.
Schedule = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "warmup_stable_decay",
]
# Optimizers whose states checkpoints hold and continue exactly.
OPTIMIZERS = ("adamw_torch", "adamw_torch_fused")
# A name or an address as requests have it in Host, without the port, and what browsers send as Origin, which never has the
# scheme's own port.
HOST = r"[\w-]+(\.[\w-]+)*|\[?[0-9a-fA-F.]*(:[0-9a-fA-F.]*){2,7}\]?"
ORIGIN = rf"(?!http://.*:80/?$|https://.*:443/?$)[a-z][a-z0-9+.-]*://({HOST})(:\d+)?/?"
NEUTRAL_PROMPT = "今日天气阴沉，"
# Above this, an update is scaled several times harder than the usual alpha = 2r (scale 2): alpha 256 at rank 128 with
# rsLoRA means 22.6 where plain LoRA means 2.
MAX_LORA_SCALE = 8.0


def option(default: T, help: str, *, path: bool = False) -> T:
    """A field with its help text; `path` values are made absolute when parsed. The return type is the value's."""
    field: Any = dataclasses.field(default=default, metadata={"help": help, "path": path})
    return field  # type: ignore[no-any-return]


def required(help: str, *, path: bool = False) -> Any:
    return dataclasses.field(metadata={"help": help, "path": path})


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RayConfig:
    """Where the work runs."""

    num_cpus: int | None = option(None, "cap on the CPU cores of a local Ray; default: all of this machine's")
    ray_address: str | None = option(None, "a running Ray to join (`RAY_ADDRESS` works too); default: a local one")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClusterConfig(RayConfig):
    """Where the work runs, where its tasks on every node read and write files."""

    shared_paths: bool = option(
        False, "local paths are the same files on every node (NFS); else several nodes need URIs"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorpusConfig(ClusterConfig):
    """How raw text becomes rows: what `prepare` does, and `train` too when its data is not prepared yet."""

    records: Literal["documents", "segments"] = option(
        "documents", "what a JSONL record is: a document, or a segment of text that was cut already"
    )
    document_unit: Literal["work", "chapter"] = option(
        "work", "what packing and isolation treat as one text: a whole source, or each chapter found by its heading"
    )
    text_column: str = option("text", "the field or column that holds the text")
    title_column: str | None = option(None, "the field or column that holds the title, where there is one")
    encoding: str | None = option(None, "encoding of all text files; default: found out for each")
    max_source_bytes: int = option(512_000_000, "a text, JSON array or record of more bytes is rejected")

    rules: tuple[str, ...] = option(
        ("zh_web_novel",),
        "cleaning rules: packs by name, or YAML files of your own; later ones add or replace",
        path=True,
    )
    enable_rules: tuple[str, ...] = option((), "rules to switch on that are off in their pack")
    disable_rules: tuple[str, ...] = option((), "rules to switch off")
    to_simplified: Literal["auto", "always", "never"] = option(
        "auto", "traditional to simplified characters; auto: traditional lines in works that are otherwise simplified"
    )

    max_removed_share: float = option(0.5, "a text that loses more of its characters is rejected")
    max_garbage_share: float = option(0.02, "a text with more replacement and control characters is rejected")
    max_repeated_share: float = option(0.9, "a text with more of it in lines seen before is rejected")
    min_han_share: float = option(0.0, "a text with fewer Chinese characters is rejected")
    min_mean_line_chars: float = option(0.0, "a text with shorter lines on average is rejected")

    dedup: Literal["none", "exact", "near"] = option(
        "near", "duplicate documents and chapters to take out: none, equal ones, or nearly equal ones too"
    )
    dedup_threshold: float = option(
        0.7, "similarity (Jaccard, five-character pieces) from which texts are nearly equal"
    )
    dedup_keep: Literal["longest", "first"] = option("longest", "which of several duplicates stays")

    packing: Literal["concat", "best_fit"] = option(
        "concat", "rows one after another, or each piece of a document whole in the row where it fits best"
    )
    segment_length: int = option(1024, "the most tokens in a segment")
    boundary_tolerance: float = option(
        0.1, "share of its length by which a segment may be shorter to end with a paragraph or sentence; 0: never"
    )
    heldout_fraction: float = option(0.0, "share of documents set aside for evaluation, from 0 to 0.5")
    prepare_on: tuple[str, ...] = option((), "KEY=VALUE labels of the nodes that clean and pack; default: any node")

    def __post_init__(self) -> None:
        check_labels("prepare_on", self.prepare_on)
        require(self.segment_length >= 8, f"`segment_length` is {self.segment_length}\nhint: use at least 8 tokens")
        require(
            0 <= self.heldout_fraction <= 0.5,
            f"`heldout_fraction` is {self.heldout_fraction}\nhint: use a share between 0 and 0.5, such as 0.1",
        )
        shares = ["max_removed_share", "max_garbage_share", "max_repeated_share", "min_han_share", "dedup_threshold"]
        for name in [*shares, "boundary_tolerance"]:
            value = getattr(self, name)
            require(0 <= value <= 1, f"`{name}` is {value}\nhint: use a share from 0 to 1")
        require(
            self.dedup_threshold >= 0.5,
            f"`dedup_threshold` is {self.dedup_threshold}\nhint: below 0.5 texts are merely related; 0.7 is usual",
        )
        require(
            self.boundary_tolerance <= 0.5,
            f"`boundary_tolerance` is {self.boundary_tolerance}\nhint: 0.1 is usual, 0.5 the most",
        )
        require(
            self.max_source_bytes >= 1, f"`max_source_bytes` is {self.max_source_bytes}\nhint: use a number of bytes"
        )
        require(bool(self.rules), "`rules` is empty\nhint: name a pack, such as `zh_web_novel`")
        if self.encoding is not None:
            try:
                "文".encode(self.encoding, "replace")
            except (LookupError, ValueError):
                raise ConfigError(
                    f"`encoding` is {self.encoding!r}\nhint: such as utf-8, gb18030, big5 or utf-16"
                ) from None
        require(
            not (self.records == "segments" and self.document_unit == "chapter"),
            "`--records segments` has no chapters to find\nhint: leave out `--document_unit chapter`",
        )
        require(
            self.num_cpus is None or self.num_cpus >= 1,
            f"`num_cpus` is {self.num_cpus}\nhint: use 1 or more, or leave it out",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareConfig(CorpusConfig):
    """Clean raw novels and pack them into rows of token ids.

    Without a tokenizer it stops after documents: a preview of the cleaning.
    """

    dataset_path: tuple[str, ...] = required(
        "text, JSONL, JSON, Parquet and EPUB files, compressed or in a .zip; directories or globs", path=True
    )
    output_dir: str = required("where the prepared data goes", path=True)
    limit: int | None = option(None, "a preview: at most so many files, and texts of each")
    tokenizer_name_or_path: str | None = option(None, "tokenizer: a hub name or a folder", path=True)
    model_name_or_path: str | None = option(None, "a base model whose tokenizer to use", path=True)
    max_seq_length: int = option(4096, "token ids in a row")
    trust_remote_code: bool = option(False, "run Python code that comes with the tokenizer")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_lengths(self.max_seq_length, self.segment_length)
        require(bool(self.dataset_path), "`dataset_path` is empty\nhint: name at least one file, directory or glob")
        require(self.limit is None or self.limit >= 1, f"`limit` is {self.limit}\nhint: use 1 or more, or leave it out")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RulesConfig:
    """List, explain and check cleaning rules, or try them on a file.

    Loading a pack checks it: every rule's examples are its tests.
    """

    rules: tuple[str, ...] = option(
        ("zh_web_novel",), "packs by name, or YAML files of your own; later ones add or replace", path=True
    )
    enable_rules: tuple[str, ...] = option((), "rules to switch on that are off in their pack")
    disable_rules: tuple[str, ...] = option((), "rules to switch off")
    explain: tuple[str, ...] = option((), "rules to show with their pattern and examples")
    try_path: tuple[str, ...] = option((), "files to try the rules on: every hit is shown in its line", path=True)
    to_simplified: Literal["auto", "always", "never"] = option("auto", "as in `prepare`, where a file is tried")
    json: bool = option(False, "print one JSON object per rule or hit")

    def __post_init__(self) -> None:
        require(bool(self.rules), "`rules` is empty\nhint: name a pack, such as `zh_web_novel`")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(CorpusConfig):
    """Train a LoRA adapter on prepared rows, or on raw text that is prepared first, inside the run.

    The defaults are the reference preset's; any other field of transformers' TrainingArguments is taken by its name.
    """

    model_name_or_path: str = required("base model: a hub name or a folder", path=True)
    dataset_path: tuple[str, ...] = required("a `prepare` output, or raw text as `prepare` takes it", path=True)
    output_dir: str = required("the run's directory", path=True)
    tokenizer_name_or_path: str | None = option(None, "tokenizer, where it is not the base model's", path=True)
    trust_remote_code: bool = option(False, "run Python code that comes with the model or tokenizer")
    max_seq_length: int | None = option(None, "token ids in a row; default: the prepared rows' (4096 for raw text)")

    lora_path: str | None = option(
        None, "an adapter, run or checkpoint to continue from: rank, alpha and targets are its own", path=True
    )
    lora_r: int = option(128, "LoRA rank")
    lora_alpha: int = option(256, "LoRA alpha; the update is scaled by alpha / r")
    lora_dropout: float = option(0.05, "dropout in front of the LoRA matrices")
    lora_target_modules: tuple[str, ...] = option(
        LLAMA_PROJECTIONS, "modules that get LoRA, or `all-linear`: every linear layer but the output layer"
    )
    lora_target_parameters: tuple[str, ...] = option(
        (), "fused experts that get LoRA too, such as `experts.down_proj`, or `experts` for all of them"
    )
    use_rslora: bool = option(False, "scale by alpha / sqrt(r) instead")
    use_dora: bool = option(False, "DoRA: magnitude and direction of each weight are learned apart; slower")
    init_lora_weights: Literal["default", "gaussian", "pissa", "pissa_niter_16"] = option(
        "default",
        "how LoRA begins: from nothing (A uniform or gaussian), or from each weight's largest singular vectors "
        "(PiSSA; `pissa_niter_16` finds them roughly and fast)",
    )
    loraplus_lr_ratio: float | None = option(None, "LoRA+: B learns at this many times `learning_rate`; 16 is usual")
    modules_to_save: tuple[str, ...] = option((), "modules to train whole beside LoRA, such as `embed_tokens lm_head`")
    load_in_4bit: bool = option(False, "QLoRA: hold the base in 4 bits (NF4), which needs bitsandbytes")

    per_device_train_batch_size: int = option(8, "rows in one forward pass of one device")
    gradient_accumulation_steps: int = option(16, "forward passes of each device in one step")
    learning_rate: float = option(5e-5, "peak learning rate")
    lr_scheduler_type: Schedule = option("cosine", "learning-rate schedule, by transformers' name")
    warmup_ratio: float = option(0.03, "share of the steps in which the learning rate rises")
    weight_decay: float = option(0.0, "AdamW weight decay")
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm; 0 switches clipping off")
    num_train_epochs: float = option(1.0, "passes over the rows")
    max_steps: int = option(-1, "optimizer steps, instead of epochs where it is positive")
    seed: int = option(42, "seed of LoRA's initial weights, the order of rows and dropout")
    bf16: bool | None = option(None, "compute in bfloat16; default: where the device is a GPU that has it")
    on_bad_loss: Literal["stop", "skip"] = option(
        "stop", "what becomes of a step whose loss is not finite or leaps: the run stops, or the step changes nothing"
    )
    loss_spike: float = option(
        3.0, "nats per token above the median of the last 32 logged losses from which a loss leaps; 0: none does"
    )
    gradient_checkpointing: bool | None = option(
        None, "recompute activations in the backward pass, which is slower; `auto`: in as few layers as make a step fit"
    )
    use_liger_kernel: bool | None = option(
        None, "Liger's GPU kernels; `auto`: where they are installed and know the model"
    )
    attn_implementation: Literal["auto", "flash_attention_3", "flash_attention_2", "varlen", "sdpa"] = option(
        "auto", "attention kernel; auto: FlashAttention where installed, else torch's own of it (varlen), else SDPA"
    )
    isolation: Literal["document", "segment", "none"] = option(
        "document", "which tokens of a row may attend to each other: those of one document, of one segment, or all"
    )
    deepspeed: str | None = option(
        None, "`zero1`, `zero2`, `zero3`, `zero2_offload`, `zero3_offload`, or a DeepSpeed JSON file", path=True
    )
    streaming: bool = option(False, "make rows of raw text while training, on cores beside it; needs --max_steps")

    save_steps: float = option(500.0, "steps between checkpoints, or below 1 a share of all; the end is always saved")
    save_total_limit: int | None = option(None, "how many checkpoints to keep; default: all")
    logging_steps: float = option(1.0, "steps between lines of metrics.jsonl")
    report_to: tuple[str, ...] = option(("tensorboard",), "where else metrics go, by transformers' names, or `none`")
    sample_prompt: str = option(NEUTRAL_PROMPT, "prompt that rank 0 continues greedily at each checkpoint; empty: none")
    sample_max_new_tokens: int = option(48, "tokens of each such continuation")

    eval_style: Literal["off", "light", "full"] = option(
        "light", "how much is measured of each checkpoint, beside training where there is room, else when it ends"
    )
    contrast_path: tuple[str, ...] = option(
        (), "other authors' text to compare with, each AUTHOR=PATH or PATH", path=True
    )
    eval_timeout_s: float = option(1800.0, "an evaluation that takes longer is given up and reported")
    select_checkpoint: Literal["best", "last"] = option("best", "which checkpoint's adapter becomes `adapter/`")

    num_workers: int | str = option(
        1, "training workers: one GPU each, or one CPU process each; `1..4`: as many of these as there is room for"
    )
    use_gpu: bool | None = option(None, "train on GPUs; default: where Ray has as many as workers")
    cpus_per_worker: int | None = option(None, "CPU cores of a worker; default: an equal share of what Ray has")
    max_failures: int = option(3, "lost workers after which the run gives up")
    train_on: tuple[str, ...] = option((), "KEY=VALUE labels of the nodes that train; default: any node")

    training_args: Mapping[str, Any] = dataclasses.field(default_factory=dict, metadata={"hidden": True})
    # The names of the settings that were asked for, on the command line or in a file: all others have their defaults.
    given: frozenset[str] = dataclasses.field(default=frozenset(), metadata={"hidden": True}, compare=False)

    @property
    def contrasts(self) -> dict[str, list[str]]:
        """Other authors' paths."""
        return by_author(self.contrast_path)

    @property
    def global_batch_size(self) -> int:
        """Rows in one optimizer step, over all workers: of a range, the most. Fewer accumulate more."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * self.max_workers

    @property
    def min_workers(self) -> int:
        """The fewest workers that the run goes on with."""
        return int(str(self.num_workers).split("..")[0])

    @property
    def max_workers(self) -> int:
        """The most workers that the run takes."""
        return int(str(self.num_workers).split("..")[-1])

    @property
    def lora_scale(self) -> float:
        """What LoRA's update is multiplied by: alpha/r (Hu et al. 2021), or alpha/sqrt(r) (Kalajdzievski 2023)."""
        return self.lora_alpha / (math.sqrt(self.lora_r) if self.use_rslora else self.lora_r)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_seq_length is not None:
            check_lengths(self.max_seq_length, self.segment_length)
        require(
            re.fullmatch(r"\d+(\.\.\d+)?", str(self.num_workers)) is not None
            and 1 <= self.min_workers <= self.max_workers,
            f"`num_workers` is {self.num_workers!r}\nhint: a number, or a range such as `1..4` for as many as there is room for",
        )
        positive = ["lora_r", "lora_alpha", "per_device_train_batch_size", "gradient_accumulation_steps"]
        for name in [*positive, "logging_steps", "learning_rate", "eval_timeout_s"]:
            value = getattr(self, name)
            require(value > 0, f"`{name}` is {value}\nhint: use a number above 0")
        check_named("contrast_path", self.contrast_path)
        check_labels("train_on", self.train_on)
        require(bool(self.dataset_path), "`dataset_path` is empty\nhint: name a prepared directory or raw files")
        require(
            0 <= self.lora_dropout < 1, f"`lora_dropout` is {self.lora_dropout}\nhint: use a share from 0 to below 1"
        )
        require(0 <= self.warmup_ratio < 1, f"`warmup_ratio` is {self.warmup_ratio}\nhint: use a share such as 0.03")
        require(self.save_steps > 0, f"`save_steps` is {self.save_steps}\nhint: a number of steps, or a share below 1")
        require(
            self.save_steps < 1 or self.save_steps == int(self.save_steps),
            f"`save_steps` is {self.save_steps}\nhint: a whole number of steps, or a share below 1",
        )
        require(
            self.cpus_per_worker is None or self.cpus_per_worker >= 1,
            f"`cpus_per_worker` is {self.cpus_per_worker}\nhint: use 1 or more, or leave it out",
        )
        require(self.max_failures >= 0, f"`max_failures` is {self.max_failures}\nhint: use 0 or more")
        require(
            self.save_total_limit is None or self.save_total_limit >= 1,
            f"`save_total_limit` is {self.save_total_limit}\nhint: keep at least 1 checkpoint, or leave it out to keep all",
        )
        require(
            self.max_steps == -1 or self.max_steps > 0,
            f"`max_steps` is {self.max_steps}\nhint: use a positive number of steps, or leave it out for whole epochs",
        )
        require(
            self.max_steps > 0 or self.num_train_epochs > 0,
            f"`num_train_epochs` is {self.num_train_epochs}\nhint: use a number above 0",
        )
        require(
            self.training_args.get("optim", "adamw_torch") in OPTIMIZERS,
            f"`optim` is {self.training_args.get('optim')!r}\nhint: checkpoints know {' and '.join(OPTIMIZERS)}",
        )
        require(
            self.lora_scale <= MAX_LORA_SCALE,
            f"the LoRA update would be scaled by {self.lora_scale:.1f} (`lora_alpha` {self.lora_alpha}, `lora_r` "
            f"{self.lora_r}, `use_rslora` {str(self.use_rslora).lower()}); above {MAX_LORA_SCALE:g} training diverges\n"
            f"hint: for a scale of 2 use `--lora_alpha {round(2 * (self.lora_alpha / self.lora_scale))}`",
        )
        require(
            self.on_bad_loss == "stop" or self.deepspeed is None,
            "`--on_bad_loss skip` does not go with `deepspeed`, which has moved the weights when the loss is known\n"
            "hint: train without `deepspeed`, or stop at such steps",
        )
        require(self.loss_spike >= 0, f"`loss_spike` is {self.loss_spike}\nhint: use nats per token, or 0")
        self._check_lora()
        if self.streaming:
            self._check_streaming()

    def _check_streaming(self) -> None:
        """What a stream, of which nobody knows the whole, cannot do."""
        require(
            self.max_steps > 0,
            "`--streaming` needs `--max_steps`: a stream has no length to count epochs by\nhint: add `--max_steps 1000`",
        )
        require(
            not self.heldout_fraction,
            f"`heldout_fraction` is {self.heldout_fraction:g}: a stream does not know the whole corpus, and holds nothing out\n"
            "hint: `--heldout_fraction 0`, or train without `--streaming`",
        )
        micro_batches = self.gradient_accumulation_steps * self.max_workers
        bad = [count for count in range(self.min_workers, self.max_workers + 1) if micro_batches % count]
        require(
            not bad,
            f"a step's {micro_batches} micro-batches cannot be shared evenly by {bad[0] if bad else 0} workers, as a stream is\n"
            f"hint: choose `gradient_accumulation_steps` so that every count of `num_workers` {self.num_workers} divides them",
        )

    def _check_lora(self) -> None:
        """What kinds of LoRA do not go together, before PEFT refuses it on a worker or passes over it."""
        require(
            bool(self.lora_target_modules), "`lora_target_modules` is empty\nhint: name modules, or use `all-linear`"
        )
        require(
            self.loraplus_lr_ratio is None or self.loraplus_lr_ratio >= 1,
            f"`loraplus_lr_ratio` is {self.loraplus_lr_ratio}\nhint: B learns faster than A: 16 is usual, 1 is plain LoRA",
        )
        if self.lora_target_parameters:
            require(
                self.lora_dropout == 0,
                f"`lora_dropout` is {self.lora_dropout}: fused experts (`lora_target_parameters`) cannot have dropout\n"
                "hint: `--lora_dropout 0`",
            )
            require(not self.use_dora, "DoRA cannot be put on fused experts\nhint: leave out `--use_dora`")
        if self.init_lora_weights.startswith("pissa"):
            others = {
                "use_dora": self.use_dora,
                "use_rslora": self.use_rslora,
                "load_in_4bit": self.load_in_4bit,
                "lora_target_parameters": bool(self.lora_target_parameters),
            }
            clash = [f"`{name}`" for name, is_on in others.items() if is_on]
            require(
                not clash,
                f"PiSSA is a way to begin plain LoRA, and does not go with {' and '.join(clash)}\n"
                "hint: leave one of them out",
            )
        require(
            self.lora_path is None or self.init_lora_weights == "default",
            f"`init_lora_weights` is {self.init_lora_weights}, but training begins with the weights of `lora_path`\n"
            "hint: leave one of them out",
        )
        both = set(self.lora_target_modules) & set(self.modules_to_save)
        require(
            not both,
            f"`{'`, `'.join(sorted(both))}` would be trained whole (`modules_to_save`) and by LoRA\n"
            "hint: leave it out of `lora_target_modules`",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepConfig(TrainConfig):
    """Train with several learning rates, each a run of its own, and compare their held-out loss.

    Takes every flag of `train`; `learning_rate` is replaced by each of `learning_rates`.
    """

    learning_rates: tuple[float, ...] = option((5e-5, 1e-4, 2e-4), "learning rates to try")
    global_batch_sizes: tuple[int, ...] = option(
        (), "rows in one step, each tried with every learning rate; default: one, as the other flags have it"
    )
    max_concurrent_trials: int = option(1, "runs at a time; each takes `num_workers` workers")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("learning_rates", "global_batch_sizes"):
            values = getattr(self, name)
            require(
                all(value > 0 for value in values) and len(set(values)) == len(values),
                f"`{name}` is {' '.join(map(str, values))}\nhint: different numbers above 0",
            )
        require(bool(self.learning_rates), "`learning_rates` is empty\nhint: name at least one, such as 1e-4")
        require(
            self.max_concurrent_trials >= 1,
            f"`max_concurrent_trials` is {self.max_concurrent_trials}\nhint: use 1 or more",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanConfig(TrainConfig):
    """Say what a training run would do, before it does it; takes what `train` takes."""

    fit: str | None = option(
        None, "propose batch, accumulation and recomputing for a device of this memory, such as 80GB"
    )

    @property
    def fit_gb(self) -> float | None:
        """The memory to fit into, in units of 10^9 bytes."""
        if self.fit is None:
            return None
        found = re.fullmatch(r"(\d+(?:\.\d+)?) *(?:(g|gb)|(gib))?", self.fit.strip().lower())
        require(found is not None, f"`fit` is {self.fit!r}\nhint: a device's memory, such as 80GB or 24GiB")
        assert found is not None
        return float(found[1]) * (2**30 / 1e9 if found[3] else 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.fit_gb is None or self.fit_gb > 0, f"`fit` is {self.fit!r}\nhint: a device's memory, such as 80GB")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Continue prompts with the base model and with an adapter, side by side."""

    model_name_or_path: str = required("base model: a hub name or a folder", path=True)
    lora_path: str | None = option(None, "an adapter, a run or a checkpoint; without it the base alone", path=True)
    tokenizer_name_or_path: str | None = option(None, "tokenizer, where it is not the base model's", path=True)
    prompt: tuple[str, ...] = option((NEUTRAL_PROMPT,), "one or more prompts")
    max_new_tokens: int = option(200, "the most tokens of a continuation")
    temperature: float = option(0.8, "0 takes the likeliest token each time (greedy)")
    top_p: float = option(0.95, "draw from the likeliest tokens that together have this probability")
    top_k: int = option(0, "draw from so many of the likeliest tokens only; 0: from all")
    repetition_penalty: float = option(1.0, "above 1, tokens already seen become less likely")
    lora_scale: float = option(1.0, "how strongly the adapter is applied: 0 is the base, 1 as trained")
    num_samples: int = option(1, "continuations of each prompt")
    seed: int = option(42, "seed of the draws; each sample has its own, made from it")
    trust_remote_code: bool = option(False, "run Python code that comes with the model")
    json: bool = option(False, "print one JSON object per continuation")

    def __post_init__(self) -> None:
        require(bool(self.prompt) and all(self.prompt), "a `prompt` is empty\nhint: give at least one character")
        require(self.temperature >= 0, f"`temperature` is {self.temperature}\nhint: use 0 (greedy) or more")
        require(0 < self.top_p <= 1, f"`top_p` is {self.top_p}\nhint: use a share above 0, up to 1")
        require(self.top_k >= 0, f"`top_k` is {self.top_k}\nhint: use 0 (all tokens) or more")
        require(0 <= self.lora_scale <= 1.5, f"`lora_scale` is {self.lora_scale}\nhint: use 0 (the base) to 1.5")
        require(
            self.repetition_penalty > 0, f"`repetition_penalty` is {self.repetition_penalty}\nhint: 1 changes nothing"
        )
        for name in ("max_new_tokens", "num_samples"):
            require(getattr(self, name) >= 1, f"`{name}` is {getattr(self, name)}\nhint: use 1 or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig(ClusterConfig):
    """Measure what adapters learned, copied and lost: all checkpoints of a run, or several adapters, beside their base.

    A run's own training and held-out text is known; of other adapters it must be given.
    """

    model_name_or_path: str = required("base model: a hub name or a folder", path=True)
    lora_path: tuple[str, ...] = required("runs (all their checkpoints), checkpoints or adapters", path=True)
    tokenizer_name_or_path: str | None = option(None, "tokenizer, where it is not the base model's", path=True)
    author: str = option("the author", "whose style it is, as the report calls him")
    heldout_path: tuple[str, ...] = option(
        (), "the author's text that was not trained on; default: the run's", path=True
    )
    train_path: tuple[str, ...] = option((), "the text trained on, to find copies of; default: the run's", path=True)
    contrast_path: tuple[str, ...] = option((), "other authors' text, each AUTHOR=PATH or PATH", path=True)
    neutral_path: tuple[str, ...] = option((), "neutral modern prose, instead of the built-in", path=True)
    output_dir: str | None = option(None, "where results go; default: into the run, where it is one", path=True)

    eval_style: Literal["light", "full"] = option("full", "how much is measured; light is what training does")
    prompt: tuple[str, ...] = option((), "prompts to sample from; default: neutral beginnings")
    num_samples: int | None = option(None, "continuations of each prompt; default: 4, or 1 where light")
    max_new_tokens: int | None = option(None, "the most tokens of a continuation; default: 200, or 160 where light")
    temperature: float = option(0.8, "of the samples that are measured; one greedy one is added")
    top_p: float = option(0.95, "draw from the likeliest tokens that together have this probability")
    seed: int = option(42, "seed of the draws; each sample has its own, made from it")
    eval_timeout_s: float = option(1800.0, "a model that takes longer is given up and reported")
    trust_remote_code: bool = option(False, "run Python code that comes with the model")

    @property
    def contrasts(self) -> dict[str, list[str]]:
        """Other authors' paths."""
        return by_author(self.contrast_path)

    def __post_init__(self) -> None:
        require(bool(self.lora_path), "`lora_path` is empty\nhint: name a run, a checkpoint or an adapter")
        require(all(self.prompt), "a `prompt` is empty\nhint: give at least one character")
        require(
            self.temperature > 0,
            f"`temperature` is {self.temperature}\nhint: use a number above 0; a greedy sample is always added",
        )
        require(0 < self.top_p <= 1, f"`top_p` is {self.top_p}\nhint: use a share above 0, up to 1")
        check_named("contrast_path", self.contrast_path)
        require(bool(self.author.strip()), "`author` is empty\nhint: a name for the report, or leave it out")
        for name in ("num_samples", "max_new_tokens", "eval_timeout_s"):
            value = getattr(self, name)
            require(value is None or value > 0, f"`{name}` is {value}\nhint: use a number above 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttributeConfig:
    """Say which of several authors each chunk of a text is nearest to, by its style. Needs no model and no GPU."""

    reference_path: tuple[str, ...] = required(
        "AUTHOR=PATH: an author's works, as `prepare` takes them or prepared; an author may have several", path=True
    )
    text_path: tuple[str, ...] = required("the texts to attribute: files, directories or globs", path=True)
    chunk_chars: int = option(2000, "characters in a chunk, without whitespace; it ends with a sentence")
    rules: tuple[str, ...] = option(("zh_web_novel",), "cleaning rules, as in `prepare`", path=True)
    to_simplified: Literal["auto", "always", "never"] = option("auto", "as in `prepare`")
    json: bool = option(False, "print one JSON object per chunk")

    @property
    def references(self) -> dict[str, list[str]]:
        """Each author's paths."""
        return by_author(self.reference_path)

    def __post_init__(self) -> None:
        require(
            self.chunk_chars >= 200,
            f"`chunk_chars` is {self.chunk_chars}\nhint: use 200 or more; 2000 tells authors apart well, 500 less so",
        )
        require(bool(self.text_path), "`text_path` is empty\nhint: name at least one file, directory or glob")
        require(bool(self.rules), "`rules` is empty\nhint: name a pack, such as `zh_web_novel`")
        for named in self.reference_path:
            author, _, path = named.partition("=")
            require(
                bool(author.strip() and path.strip()) and "/" not in author,
                f"`reference_path` is {named!r}\nhint: write the author in front, as in `鲁迅=luxun.txt`",
            )
        require(
            len(self.references) >= 2,
            f"`reference_path` names {len(self.references)} author\nhint: name at least two, as in "
            "`--reference_path 鲁迅=luxun.txt 朱自清=zhu/`",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Merge an adapter into its base: a Hugging Face folder that loads without PEFT."""

    model_name_or_path: str = required("base model: a hub name or a folder", path=True)
    lora_path: str = required("an adapter, a run or a checkpoint", path=True)
    output_dir: str = required("where the merged model goes", path=True)
    tokenizer_name_or_path: str | None = option(None, "tokenizer, where it is not the base model's", path=True)
    trust_remote_code: bool = option(False, "run Python code that comes with the model")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeConfig(RayConfig):
    """Serve a base and its adapters side by side: an OpenAI-compatible API and a page, on Ray Serve.

    It listens on this machine alone; elsewhere only with keys.
    """

    model_name_or_path: str = required("base model: a hub name or a folder", path=True)
    adapters_path: tuple[str, ...] = option(
        (), "adapters, runs or checkpoints, or directories of them; new ones appear as they are complete", path=True
    )
    tokenizer_name_or_path: str | None = option(None, "tokenizer, where it is not the base model's", path=True)
    trust_remote_code: bool = option(False, "run Python code that comes with the model")
    allow_unverified_base: bool = option(False, "serve adapters that do not say which base they were trained on")

    engine: Literal["auto", "transformers", "vllm"] = option(
        "auto", "what runs the model; auto: vllm for 1e9 parameters and more on a GPU, where it is installed"
    )
    max_length: int = option(4096, "the most tokens of a prompt and its continuation together")
    max_batch_size: int = option(32, "choices that one replica continues at the same time; more wait")
    max_adapters: int = option(64, "the most adapters that a replica holds")
    max_lora_rank: int | None = option(
        None, "the highest rank vllm makes room for; default: that of the adapters there"
    )
    refresh_s: float = option(2.0, "seconds between looks at `adapters_path`")

    host: str = option("127.0.0.1", "address to listen on; other than loopback only with `--api_key_file`")
    port: int = option(8000, "port to listen on")
    api_key_file: str | None = option(
        None, "file of keys, one a line, with a name and a colon in front or without", path=True
    )
    admin_key_file: str | None = option(None, "file of keys for /admin; default: /admin is closed", path=True)
    allowed_hosts: tuple[str, ...] = option((), "names in the Host header beside the address itself and localhost")
    cors_origins: tuple[str, ...] = option((), "origins whose pages may call the API; default: none but its own")

    max_body_bytes: int = option(1_000_000, "a larger request is refused")
    max_n: int = option(32, "the most choices of one request, over all its prompts")
    max_queue: int = option(128, "choices that wait for their turn; further requests are told to come back later")
    requests_per_minute: int | None = option(None, "the most requests of one key; default: any number")
    tokens_per_minute: int | None = option(
        None, "the most new tokens of one key, with those that running requests may make; default: any number"
    )
    first_token_timeout_s: float = option(120.0, "a request without a token after this long is given up")
    total_timeout_s: float = option(600.0, "a request that takes longer is given up")
    drain_timeout_s: float = option(30.0, "how long running requests may take to finish when the server is stopped")
    log_file: str | None = option(
        None, "file for the request log, a JSON object a line; default: Ray's own logs", path=True
    )
    log_prompts: bool = option(False, "write prompts and texts into the request log")

    min_replicas: int = option(1, "the fewest copies of the model")
    max_replicas: int = option(1, "the most copies of the model; between the two, the queue decides")
    tensor_parallel_size: int = option(1, "GPUs that share one copy of the model (vllm)")
    use_gpu: bool | None = option(None, "run on GPUs; default: where Ray has one")
    cpus_per_replica: int | None = option(
        None, "CPU cores of a copy of the model; default: all but one, shared by the copies, or 1 on a GPU"
    )

    def __post_init__(self) -> None:
        positive = ["max_length", "max_batch_size", "max_adapters", "refresh_s", "max_body_bytes", "max_n"]
        positive += [
            "first_token_timeout_s",
            "total_timeout_s",
            "min_replicas",
            "tensor_parallel_size",
        ]
        for name in positive:
            require(getattr(self, name) > 0, f"`{name}` is {getattr(self, name)}\nhint: use a number above 0")
        for name in ("max_lora_rank", "requests_per_minute", "tokens_per_minute", "cpus_per_replica"):
            value = getattr(self, name)
            require(value is None or value > 0, f"`{name}` is {value}\nhint: use a number above 0, or leave it out")
        for name in ("max_queue", "drain_timeout_s"):
            require(getattr(self, name) >= 0, f"`{name}` is {getattr(self, name)}\nhint: use 0 or more")
        require(1 <= self.port <= 65535, f"`port` is {self.port}\nhint: use a port from 1 to 65535")
        require(
            self.max_replicas >= self.min_replicas,
            f"`max_replicas` {self.max_replicas} is below `min_replicas` {self.min_replicas}\nhint: raise it",
        )
        require(
            self.is_loopback or self.api_key_file is not None,
            f"`host` is {self.host}, which others can reach, and no keys are set\n"
            "hint: add `--api_key_file keys.txt`, or listen on 127.0.0.1 and forward the port by `ssh -L`",
        )
        for name in self.allowed_hosts:
            require(
                re.fullmatch(HOST, name, re.ASCII) is not None,
                f"`allowed_hosts` has `{name}`, which no request is ever for\n"
                "hint: a name or an address alone, as in style.example: no scheme, no port, no `*`",
            )
        for origin in self.cors_origins:
            require(
                re.fullmatch(ORIGIN, origin, re.ASCII | re.IGNORECASE) is not None,
                f"`cors_origins` has `{origin}`, which no browser ever sends\n"
                "hint: a scheme and a name, and a port that is not the scheme's own, as in https://desk.example; no path, no `*`",
            )

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach `host`."""
        import ipaddress

        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return self.host == "localhost"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoConfig(RayConfig):
    """The whole job on a made-up corpus and a tiny base model: no network, no GPU, a few minutes."""

    output_dir: str = option("runs/demo", "a local folder for corpus, base model, prepared rows and run", path=True)
    seed: int = option(42, "seed of the corpus, the base model and the training")

    def __post_init__(self) -> None:
        require(
            "://" not in self.output_dir,
            f"`output_dir` is {self.output_dir}, and the demonstration makes its model on this machine\nhint: use a folder",
        )


def by_author(named: tuple[str, ...]) -> dict[str, list[str]]:
    """Author -> paths, of words AUTHOR=PATH; a path alone is its file's name without the ending."""
    found: dict[str, list[str]] = {}
    for word in named:
        author, equals, path = word.partition("=")
        if not equals or "/" in author:
            author, path = word.rstrip("/").rsplit("/", 1)[-1].split(".", 1)[0], word
        found.setdefault(author, []).append(path)
    return found


def check_named(field: str, named: tuple[str, ...]) -> None:
    for author, paths in by_author(named).items():
        require(
            bool(author.strip()) and all(paths),
            f"`{field}` has `{author}={paths[-1]}`\nhint: it must be AUTHOR=PATH, or a path",
        )


def labels(given: tuple[str, ...]) -> dict[str, str]:
    """KEY=VALUE words as Ray's label selector: a node must have all of them."""
    return dict(word.split("=", 1) for word in given)


def check_labels(field: str, given: tuple[str, ...]) -> None:
    for word in given:
        key, _, value = word.partition("=")
        require(
            bool(key and value),
            f"`{field}` has `{word}`\nhint: it must be KEY=VALUE, as in `ray start --labels=pool=cpu`",
        )


def check_lengths(max_seq_length: int, segment_length: int) -> None:
    require(
        max_seq_length >= segment_length,
        f"`max_seq_length` {max_seq_length} is shorter than `segment_length` {segment_length}\n"
        f"hint: use `--segment_length {max_seq_length}` or a longer row",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DoctorConfig(ClusterConfig):
    """Look for what would stop a command on this machine or, with `--ray_address`, on every node of a cluster.

    Each line is ok, warn or fail, with its remedy; the exit status is 1 where one fails.
    """

    output_dir: str | None = option(None, "a run's directory to be: is there room, can every node write it", path=True)
    use_gpu: bool | None = option(None, "a GPU is needed; default: it is looked at where there is one")
    port: int = option(8000, "where `raystyle serve` would listen")
    json: bool = option(False, "print one JSON object per check")

    def __post_init__(self) -> None:
        require(1 <= self.port <= 65535, f"`port` is {self.port}\nhint: use a port from 1 to 65535")
