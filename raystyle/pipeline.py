"""The one library module that joins stages: what each command does, once it is parsed and Ray runs.

Everything that can be refused is refused before anything is written or a worker starts: a tokenizer or model that does
not exist, LoRA targets that match nothing, a directory that is another run's.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from raystyle import adapters, generation, models, storage, tokens
from raystyle.config import CorpusConfig, ExportConfig, PrepareConfig, RulesConfig, SampleConfig, TrainConfig
from raystyle.errors import ConfigError, RunError
from raystyle.training import plan as planning

Say = Callable[[str], None]


def prepare(config: PrepareConfig) -> Any:
    """Raw text to documents and rows; see `corpus.prepare.prepare`."""
    from raystyle.corpus.prepare import prepare as prepare_corpus

    return prepare_corpus(config)


def rules(config: RulesConfig) -> Iterator[str]:
    """What `raystyle rules` prints: a listing of the packs, explanations, or hits in files."""
    import json

    from raystyle.corpus import trial
    from raystyle.corpus.rules import load_rules, switched_off

    found = load_rules(config.rules, config.enable_rules, config.disable_rules)
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


def is_prepared(dataset_path: tuple[str, ...]) -> bool:
    return len(dataset_path) == 1 and storage.exists(storage.join(dataset_path[0], "manifest.json"))


def prepared(config: TrainConfig) -> tuple[str, dict[str, Any]]:
    """The prepared directory that a run trains on and its manifest; raw text is prepared first, inside the run."""
    if is_prepared(config.dataset_path):
        place = config.dataset_path[0]
        manifest: dict[str, Any] = storage.read_json(storage.join(place, "manifest.json"))
        if manifest.get("tokenizer") is None:
            raise RunError(
                f"`{place}` was prepared without a tokenizer: it has documents but no rows\n"
                "hint: prepare again with --tokenizer_name_or_path, into another directory"
            )
        return place, manifest
    place = storage.join(config.output_dir, "prepared")
    shared = {f.name: getattr(config, f.name) for f in dataclasses.fields(CorpusConfig)}
    raw = PrepareConfig(
        **shared,
        dataset_path=config.dataset_path,
        output_dir=place,
        tokenizer_name_or_path=config.tokenizer_name_or_path or config.model_name_or_path,
        max_seq_length=config.max_seq_length or 4096,
        trust_remote_code=config.trust_remote_code,
    )
    prepare(raw)
    return place, storage.read_json(storage.join(place, "manifest.json"))


@dataclasses.dataclass(frozen=True)
class Preflight:
    """A checked run: its settings, its plan, its data, and how many layers of each target module get LoRA."""

    config: TrainConfig
    plan: planning.Plan
    prepared_dir: str
    manifest: dict[str, Any]
    layer_counts: dict[str, int]


def preflight(config: TrainConfig) -> Preflight:
    """Everything that can be known before training, checked; raw text is prepared last, and `train` uses the same rows."""
    from raystyle.training import continuation, refusals
    from raystyle.training.fit import check_is_run
    from raystyle.training.sharding import deepspeed_config

    if config.streaming:
        raise ConfigError(
            "`--streaming` is not there yet\nhint: `raystyle prepare` first; rows are read from storage as they are needed"
        )
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
    if not is_prepared(config.dataset_path):
        planning.check_shapes(config.max_seq_length or 4096, len(tokenizer), shapes)
    prepared_dir, manifest = prepared(config)
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


def train(config: TrainConfig, say: Say) -> Any:
    """Plan, train, report, evaluate and choose the adapter; returns a `training.fit.TrainResult`."""
    from raystyle import evaluation
    from raystyle.training import fit, report

    checked = preflight(config)
    config = checked.config  # with what it takes from the adapter that it continues from
    say(planning.describe(checked.plan))
    begin = evaluation.of_run(config, checked.prepared_dir, say)
    result = fit.fit(
        config,
        checked.plan,
        checked.prepared_dir,
        checked.manifest,
        checked.layer_counts,
        evaluation.validator(begin) if begin else None,
    )
    if not result.unchanged or not storage.exists(storage.join(config.output_dir, "report.html")):
        report.write(config.output_dir, dataclasses.asdict(checked.plan), result.metrics)
    if begin:
        evaluation.conclude(config, begin, not result.unchanged, say)
        result = dataclasses.replace(result, metrics=fit.read_metrics(config.output_dir))
    if config.select_checkpoint == "last":
        evaluation.select_last(config.output_dir, say)
    return result


@dataclasses.dataclass(frozen=True)
class Sample:
    """One continuation of a prompt, by the base (`adapter` is None) or by an adapter, named by its fingerprint."""

    prompt: str
    sample: int
    adapter: str | None
    text: str
    tokens: int
    finish_reason: str


def sample(config: SampleConfig) -> Iterator[Sample]:
    """Continuations of every prompt by the base and, where `lora_path` is given, by the adapter, in that order.

    They come from the decode loop and the adapter layers that the embedded engine serves with: the same seed, prompt and
    settings give the same text over HTTP.
    """
    from raystyle.decoding import Decoder
    from raystyle.multi_lora import MultiLora

    device = models.auto_device()
    tokenizer = _tokenizer(config)
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
    with adapters.opened(config.lora_path) if config.lora_path else contextlib.nullcontext() as directory:
        yield from _samples(config, decoder, tokenizer, None)
        if directory is not None:
            fingerprint = adapters.fingerprint(directory)
            lora.load(fingerprint, directory)
            yield from _samples(config, decoder, tokenizer, fingerprint)


def _base(config: SampleConfig | ExportConfig, dtype: Any) -> Any:
    return models.load_base(config.model_name_or_path, dtype=dtype, trust_remote_code=config.trust_remote_code)


def _tokenizer(config: SampleConfig | ExportConfig) -> Any:
    return tokens.load_tokenizer(config.tokenizer_name_or_path or config.model_name_or_path, config.trust_remote_code)


def _samples(config: SampleConfig, decoder: Any, tokenizer: Any, adapter: str | None) -> Iterator[Sample]:
    for prompt_number, prompt in enumerate(config.prompt):
        ids = tuple(generation.encode(tokenizer, prompt))
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
        rows = [generation.Row(ids, sampling, adapter, config.lora_scale) for sampling in samplings]
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
