"""The one library module that joins stages: what each command does, once it is parsed and Ray runs.

Everything that can be refused is refused before anything is written or a worker starts: a tokenizer or model that does
not exist, LoRA targets that match nothing, a directory that is another run's.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from raystyle import adapters, generation, models, storage, tokens
from raystyle.config import (
    CorpusConfig,
    ExportConfig,
    PlanConfig,
    PrepareConfig,
    RulesConfig,
    SampleConfig,
    SweepConfig,
    TrainConfig,
)
from raystyle.errors import ConfigError, RunError
from raystyle.training import plan as planning
from raystyle.training import preflight as checks

Say = Callable[[str], None]


def prepare(config: PrepareConfig, exclude: str | None = None) -> Any:
    """Raw text to documents and rows; see `corpus.prepare.prepare`."""
    from raystyle.corpus.prepare import prepare as prepare_corpus

    return prepare_corpus(config, exclude)


def rules(config: RulesConfig) -> Iterator[str]:
    """What `raystyle rules` prints: a listing of the packs, explanations, or hits in files."""
    import json

    from raystyle.corpus import trial
    from raystyle.corpus.packs import check, load_rules, switched_off

    found = load_rules(config.rules, config.enable_rules, config.disable_rules)
    check(found.rules, found.name)
    off = switched_off(config.rules, found)
    for name in config.explain:
        yield trial.explanation(found, off, name)
    source = ""
    for hit in trial.hits(found, config.try_path, config.to_simplified, CorpusConfig.max_source_bytes):
        if hit.source != source and not config.json:
            yield (source := hit.source)
        yield json.dumps(hit._asdict(), ensure_ascii=False) if config.json else trial.shown(hit)
    if config.explain or config.try_path:
        return
    if not config.json:
        yield trial.listing(found, off)
        return
    for rule in [*found.rules, *off]:
        fields = {"name": rule.name, "action": rule.action, "why": rule.why, "enabled": rule not in off}
        yield json.dumps(fields, ensure_ascii=False)


def preflight(config: TrainConfig, is_trained: bool = False) -> checks.Preflight:
    """Everything that can be known before training, checked; raw text is prepared last, and `train` uses the same rows.

    Where the run `is_trained` then, Ray must have what its workers need before hours are spent on preparing.
    """
    from raystyle import streaming
    from raystyle.training import fit

    def prepared(config: TrainConfig) -> str:
        if is_trained:
            fit.resources(config)
        return _prepare_inside(config)

    return checks.preflight(config, prepared, lambda config: streaming.survey(raw_of(config), config.output_dir))


def plan(config: PlanConfig) -> str:
    """What `raystyle plan` prints."""
    checked = preflight(config)
    told = planning.describe(checked.plan)
    if config.fit_gb is None:
        return told
    shapes = models.read_shapes(config.model_name_or_path, config.trust_remote_code)
    return f"{told}\n{planning.describe_proposal(checked.config, shapes, checked.plan, config.fit_gb)}"


def _prepare_inside(config: TrainConfig | SweepConfig) -> str:
    """Prepare a run's raw text inside the run; returns the prepared directory. None of the run's own files is an input."""
    raw = raw_of(config)
    prepare(raw, exclude=config.output_dir)
    return raw.output_dir


def raw_of(config: TrainConfig | SweepConfig) -> PrepareConfig:
    """How a run's raw text becomes rows."""
    shared = {f.name: getattr(config, f.name) for f in dataclasses.fields(CorpusConfig)}
    return PrepareConfig(
        **shared,
        dataset_path=config.dataset_path,
        output_dir=storage.join(config.output_dir, "prepared"),
        tokenizer_name_or_path=config.tokenizer_name_or_path or config.model_name_or_path,
        max_seq_length=config.max_seq_length or 4096,
        trust_remote_code=config.trust_remote_code,
    )


def train(config: TrainConfig, say: Say) -> Any:
    """Plan, train, report, evaluate and choose the adapter; returns a `training.fit.TrainResult`."""
    from raystyle import evaluation
    from raystyle.training import fit, metrics, report

    checked = preflight(config, is_trained=True)
    config = checked.config  # with what it takes from the adapter that it continues from
    say(planning.describe(checked.plan))
    stream = None
    if checks.is_streamed(config):
        from raystyle import streaming

        stream = streaming.dataset_of(config, raw_of(config), checked.plan.steps)
        say("a stream: no duplicates are taken out, nothing is held out, and checkpoints are not evaluated")
    begin = None if stream else evaluation.of_run(config, checked.prepared_dir, say)
    result = fit.fit(
        config,
        checked.plan,
        checked.prepared_dir,
        checked.manifest,
        checked.layer_counts,
        evaluation.validator(begin) if begin else None,
        stream,
    )
    if stream and not result.unchanged:
        say(streaming.told(config.output_dir))
    if not result.unchanged or not storage.exists(storage.join(config.output_dir, "report.html")):
        report.write(config.output_dir, dataclasses.asdict(checked.plan), result.metrics)
        for line in report.said(dataclasses.asdict(checked.plan), result.metrics):
            say(line)
    if begin:
        evaluation.conclude(config, begin, not result.unchanged, say)
        result = dataclasses.replace(result, metrics=metrics.read(config.output_dir))
    if config.select_checkpoint == "last":
        evaluation.select_last(config.output_dir, say)
    return result


def sweep(config: SweepConfig, say: Say) -> list[dict[str, Any]]:
    """Check every trial, prepare once, and train them; see `training.sweep`. The best one comes first."""
    from raystyle.training import sweep as sweeping

    first = sweeping.trials(config, config.dataset_path)[0]
    checked = checks.preflight(first, lambda _: _prepare_inside(config))
    if not checked.manifest["counts"].get("heldout"):
        raise ConfigError(
            f"a sweep is judged by held-out loss, and the data in `{checked.prepared_dir}` holds no text out\n"
            "hint: prepare with `--heldout_fraction 0.05`"
        )
    runs = sweeping.trials(config, (checked.prepared_dir,))
    for run in runs:
        checked = preflight(run)
        checks.check_same_run(checked.config, checked.plan)
    say(planning.describe(checked.plan))
    return sweeping.run(config, runs, _train_quietly, say)


def _train_quietly(config: TrainConfig) -> Any:
    return train(config, lambda _: None)


@dataclasses.dataclass(frozen=True)
class Sample:
    """One continuation of a prompt, by the base (`adapter` is None) or by an adapter, named by its fingerprint."""

    prompt: str
    sample: int
    adapter: str | None
    text: str
    tokens: int
    finish_reason: str


def sample(config: SampleConfig, warn: Say) -> Iterator[Sample]:
    """Continuations of every prompt by the base and, where `lora_path` is given, by the adapter, in that order.

    They come from the decode loop and the adapter layers that the embedded engine serves with: the same seed, prompt and
    settings give the same text over HTTP. Raises `ModelError` for an adapter of another base, `ConfigError` for a prompt
    that is too long; `warn` is told of an adapter that does not say whose it is.
    """
    from raystyle.decoding import Decoder
    from raystyle.multi_lora import MultiLora

    device = models.auto_device()
    tokenizer = _tokenizer(config)
    prompts = {prompt: tuple(generation.encode(tokenizer, prompt)) for prompt in config.prompt}
    _check_lengths(config, prompts)
    with adapters.opened(config.lora_path) if config.lora_path else contextlib.nullcontext() as directory:
        if directory is not None:
            _check_base(config, tokenizer, directory, warn)
        network: Any = models.load_base(
            config.model_name_or_path,
            dtype=models.auto_dtype(device),
            attn_implementation=None,
            trust_remote_code=config.trust_remote_code,
        )
        network = network.to(device).eval()
        lora = MultiLora(network)
        decoder = Decoder(
            network,
            generation.end_ids(network, tokenizer),
            max_rows=config.num_samples,
            choose=lora.choose,
        )
        yield from _samples(config, decoder, tokenizer, prompts, None)
        if directory is not None:
            fingerprint = adapters.fingerprint(directory)
            lora.load(fingerprint, directory)
            yield from _samples(config, decoder, tokenizer, prompts, fingerprint)


def _check_lengths(config: SampleConfig, prompts: Mapping[str, tuple[int, ...]]) -> None:
    """Every prompt and its continuation must fit into the positions that the model knows."""
    text = models.load_config(config.model_name_or_path, config.trust_remote_code).get_text_config()
    positions = getattr(text, "max_position_embeddings", None)
    for prompt, ids in prompts.items():
        if positions and len(ids) + config.max_new_tokens > positions:
            way_out = f"`--max_new_tokens {positions - len(ids)}`, or a shorter prompt"
            raise ConfigError(
                f"the prompt `{prompt[:20]}{'…' * (len(prompt) > 20)}` has {len(ids)} tokens and `max_new_tokens` is "
                f"{config.max_new_tokens}: more than the {positions} positions the model knows\n"
                f"hint: use {way_out if positions > len(ids) else 'a shorter prompt'}"
            )


def _check_base(config: SampleConfig, tokenizer: Any, directory: str, warn: Say) -> None:
    """Refuse an adapter that says that it is another base's; `warn` of one that does not say."""
    from raystyle.serving import inspection

    base = inspection.Base(models.identity(config.model_name_or_path), tokens.tokenizer_digest(tokenizer))
    if not inspection.check_base(adapters.about(directory), base, allow_unverified_base=True):
        warn(
            f"the adapter `{config.lora_path}` does not say that it was trained on this base and tokenizer: "
            "on another its texts mean nothing"
        )


def _base(config: SampleConfig | ExportConfig, dtype: Any) -> Any:
    return models.load_base(config.model_name_or_path, dtype=dtype, trust_remote_code=config.trust_remote_code)


def _tokenizer(config: SampleConfig | ExportConfig) -> Any:
    return tokens.load_tokenizer(config.tokenizer_name_or_path or config.model_name_or_path, config.trust_remote_code)


def _samples(
    config: SampleConfig, decoder: Any, tokenizer: Any, prompts: Mapping[str, tuple[int, ...]], adapter: str | None
) -> Iterator[Sample]:
    for prompt_number, prompt in enumerate(config.prompt):
        # Each draw has a seed of its own, so that more samples or prompts do not change the first ones.
        samplings = [
            generation.Sampling(
                max_new_tokens=config.max_new_tokens,
                temperature=config.temperature,
                top_p=config.top_p,
                repetition_penalty=config.repetition_penalty,
                seed=config.seed + 1000 * prompt_number + number,
                top_k=config.top_k,
            )
            for number in range(config.num_samples)
        ]
        rows = [generation.Row(prompts[prompt], sampling, adapter, config.lora_scale) for sampling in samplings]
        for number, completion in enumerate(generation.complete(decoder, tokenizer, rows)):
            name = adapter and adapter[:12]
            yield Sample(prompt, number, name, completion.text, len(completion.token_ids), completion.finish_reason)


def export(config: ExportConfig) -> str:
    """Write base + adapter as one Hugging Face model that loads without PEFT; returns its directory.

    Weights keep the base's own dtype. A local model is written aside and renamed when whole. Raises `RunError` where the
    directory is not empty.
    """
    import os
    import tempfile

    from raystyle.training.lora import merge

    if storage.exists(config.output_dir) and storage.list_files(config.output_dir, hidden=True):
        raise RunError(f"`output_dir` {config.output_dir} is not empty\nhint: choose another --output_dir")
    tokenizer = _tokenizer(config)
    with adapters.opened(config.lora_path) as directory:
        merged = merge(models.load_adapter(_base(config, "auto"), directory))
    if storage.is_remote(config.output_dir):
        with tempfile.TemporaryDirectory(prefix="raystyle-export-") as scratch:
            merged.save_pretrained(scratch)
            tokenizer.save_pretrained(scratch)
            storage.upload(scratch, config.output_dir)
        return config.output_dir
    os.makedirs(os.path.dirname(config.output_dir), exist_ok=True)
    with tempfile.TemporaryDirectory(dir=os.path.dirname(config.output_dir), prefix=".raystyle-export-") as scratch:
        merged.save_pretrained(os.path.join(scratch, "model"))
        tokenizer.save_pretrained(os.path.join(scratch, "model"))
        if os.path.isdir(config.output_dir):
            os.rmdir(config.output_dir)
        os.rename(os.path.join(scratch, "model"), config.output_dir)
    return config.output_dir
