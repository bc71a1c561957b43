"""Joins corpus, training and style: which texts an evaluation compares, and what a run does with its verdict.

`pipeline.py` joins what makes an adapter; this file, what proves it.
"""

import dataclasses
import functools
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

from raystyle import adapters, models, storage
from raystyle.config import AttributeConfig, EvaluateConfig, TrainConfig
from raystyle.errors import ConfigError, DataError, RaystyleError, RunError

Say = Callable[[str], None]

PROMPT_WORDS = 6


def attribute(config: AttributeConfig, say: Say) -> Iterator[str]:
    """What `raystyle attribute` prints: the nearest author of each chunk of each text. Every path is looked at before one is read.

    Raises `DataError` where a path has no readable text, and where an author has too little.
    """
    from raystyle.corpus.packs import load_rules
    from raystyle.corpus.sources import list_sources
    from raystyle.style import attribute as attribution

    rules = load_rules(config.rules)
    for paths in [*config.references.values(), list(config.text_path)]:
        if raw := [path for path in paths if not _is_prepared(path)]:
            list_sources(raw)

    def read(paths: Iterable[str], whose: str) -> list[Any]:
        documents = _texts(paths, say, document_unit="work", rules=rules, to_simplified=config.to_simplified)
        if not documents:
            raise DataError(f"{whose} has no text that can be read\nhint: the reasons stand above")
        return documents

    texts = read(config.text_path, "`text_path`")
    known = {author: read(paths, author) for author, paths in config.references.items()}
    references = {author: [document.text for document in documents] for author, documents in known.items()}
    if inside := {d.source for d in texts} & {d.source for documents in known.values() for d in documents}:
        say(f"{', '.join(sorted(inside))}: part of the reference itself, so its distances say little")
    found = attribution.attribute(references, [(d.source, d.text) for d in texts], config.chunk_chars)
    yield from map(attribution.as_json, found) if config.json else attribution.shown(found, sorted(references))


def evaluate(config: EvaluateConfig, say: Say) -> dict[str, Any]:
    """Measure adapters beside their base and each other; returns what evaluation.json holds.

    A run's results go into it, with its training in the report; of other adapters, into `output_dir`.
    """
    from raystyle.style import evaluate as style
    from raystyle.style.subjects import find_subjects, is_run

    models.check_name(config.model_name_or_path)
    subjects = find_subjects(config.lora_path)
    runs = [path for path in config.lora_path if is_run(path)]
    run = runs[0] if len(runs) == len(config.lora_path) == 1 else None
    output_dir = config.output_dir or run
    if output_dir is None:
        raise ConfigError(
            "`output_dir` must be given: these are several runs, or adapters that lie in none\n"
            "hint: a directory for evaluation.json and report.html"
        )
    if output_dir != run:
        _check_own(output_dir)
    material = _material(
        config.author,
        train=_trained(config.train_path, [_run_data(path) for path in runs], say),
        heldout=_heldout(config.heldout_path, [_run_data(path) for path in runs], say),
        contrast=config.contrasts,
        neutral=_texts(config.neutral_path, say),
        say=say,
    )
    chosen = {
        "prompts": config.prompt or None,
        "num_samples": config.num_samples,
        "max_new_tokens": config.max_new_tokens,
        "temperature": config.temperature,
        "top_p": config.top_p,
        "seed": config.seed,
    }
    settings = dataclasses.replace(
        _settings(config.eval_style, material), **{name: value for name, value in chosen.items() if value is not None}
    )
    return style.evaluate(
        style.begin(_model(config), material, settings, output_dir),
        subjects,
        timeout_s=config.eval_timeout_s,
        about=functools.partial(_about_run, run) if run else None,
    )


def _check_own(output_dir: str) -> None:
    """Refuse a directory with files that no evaluation wrote: its report would be overwritten. Raises `RunError`."""
    if not storage.exists(output_dir):
        return
    present = {file.uri[len(output_dir) :].strip("/").split("/")[0] for file in storage.list_files(output_dir)}
    if present and ("evaluations" not in present or "plan.json" in present):
        raise RunError(
            f"`output_dir` {output_dir} is not empty and not an evaluation: it holds {', '.join(sorted(present)[:5])}\n"
            "hint: choose another --output_dir"
        )


def of_run(config: TrainConfig, prepared_dir: str, say: Say) -> Callable[[], Any] | None:
    """What begins the evaluation of a run's checkpoints, once the directory is the run's; None where it is off.

    The texts are read here, so that a mistake in them is told before anything is trained.
    """
    from raystyle.style import evaluate as style

    if config.eval_style == "off":
        return None
    train, heldout = _trained((), [prepared_dir], say), _heldout((), [prepared_dir], say)
    if not train and not heldout:
        say(f"{prepared_dir} holds no text, so checkpoints are not evaluated")
        return None
    material = _material(
        "the author",
        train=train,
        heldout=heldout,
        contrast=config.contrasts,
        neutral=[],
        say=say,
    )
    return functools.partial(
        style.begin, _model(config), material, _settings(config.eval_style, material), config.output_dir
    )


def validator(begin: Callable[[], Any]) -> Callable[[], Callable[[str], dict[str, float]]]:
    """Begins, and gives what measures one checkpoint while training goes on, in a process of its own; picklable."""
    from raystyle.style.evaluate import measure_checkpoint

    return lambda: functools.partial(measure_checkpoint, begin())


def conclude(config: TrainConfig, begin: Callable[[], Any], is_new: bool, say: Say) -> None:
    """After training: measure what was not measured beside it, write the report, choose the run's adapter.

    Where nothing was trained (`is_new` is false) an evaluation that measured as much or more stands, unless something in
    it failed, which is tried again. One that fails is said, with its traceback on stderr, and leaves the run as training left it: hours of training are not lost to it.
    """
    from raystyle.style.verdict import describe

    run = config.output_dir
    try:
        before = storage.join(run, "evaluation.json")
        result = storage.read_json(before) if not is_new and storage.exists(before) else None
        asked_for_more = result is not None and config.eval_style == "full" and not result["settings"]["scales"]
        if result is None or result["failed"] or asked_for_more:
            result = _evaluate_run(config, begin())
        say(describe(result))
        names = [subject["name"] for subject in result["subjects"] if subject["kind"] == "checkpoint"]
        best = result["verdict"]["recommended"]
        if config.select_checkpoint == "best" and best in names:
            _select(run, best, result["verdict"]["reason"], say)
    except Exception as error:
        if not isinstance(error, RaystyleError):
            traceback.print_exc()
        say(f"the evaluation failed, and `adapter/` stays as it is: {error}\nhint: the same command tries again")


def select_last(run: str, say: Say) -> None:
    """Make the last checkpoint's adapter the run's, whatever was recommended before."""
    from raystyle.training import fit

    last = fit.last_checkpoint(run)
    about = storage.read_json(storage.join(run, "adapter", adapters.ABOUT))
    if last is not None and "selected" in about:
        _select(run, last, "the last one, as asked for", say)


def _select(run: str, checkpoint: str, reason: str, say: Say) -> None:
    from raystyle.training import fit

    fit.select(run, checkpoint, {"reason": reason})
    say(f"adapter/ is that of {checkpoint}")


def _evaluate_run(config: TrainConfig, evaluation: Any) -> dict[str, Any]:
    from raystyle.style import evaluate as style
    from raystyle.style.subjects import find_subjects

    return style.evaluate(
        evaluation,
        find_subjects([config.output_dir]),
        timeout_s=config.eval_timeout_s,
        about=functools.partial(_about_run, config.output_dir),
        measured=functools.partial(_record, config.output_dir, "tensorboard" in config.report_to),
    )


def _record(run: str, tensorboard: bool, subjects: Iterable[dict[str, Any]]) -> None:
    """Judged checkpoints' numbers, into metrics.jsonl under their steps."""
    from raystyle.style.evaluate import numbers
    from raystyle.training import fit

    found = {subject["step"]: numbers(subject) for subject in subjects if subject["kind"] == "checkpoint"}
    fit.record(run, found, tensorboard)


def _about_run(run: str) -> dict[str, Any]:
    """What a run's report says of its training."""
    from raystyle.training import metrics, report

    plan, entries = storage.read_json(storage.join(run, "plan.json")), metrics.read(run)
    sections = [section for section in report.sections(plan, entries, report.read_samples(run)) if section[0] != "Loss"]
    word, sentence = report.verdict(plan, entries)
    return {"training": sections, "metrics": entries, "loss_gate": f"{word}. {sentence}"}


def _model(config: EvaluateConfig | TrainConfig) -> Any:
    from raystyle.style.measure import Model

    tokenizer = config.tokenizer_name_or_path or config.model_name_or_path
    return Model(config.model_name_or_path, tokenizer, config.trust_remote_code)


def _settings(eval_style: str, material: Any) -> Any:
    """How much is measured, from neutral Chinese prompts; of an author in another language, from his own beginnings."""
    from raystyle.style import stylometry
    from raystyle.style.measure import FULL, LIGHT

    settings = FULL if eval_style == "full" else LIGHT
    texts = [document.text for document in material.heldout or material.train]
    if not stylometry.is_spaced(texts):
        return settings
    found = [" ".join(text.split()[:PROMPT_WORDS]) for text in texts[: len(settings.prompts)]]
    return dataclasses.replace(settings, prompts=tuple(dict.fromkeys(found)))


def _is_prepared(path: str) -> bool:
    return storage.exists(storage.join(path, "manifest.json"))


def _run_data(run: str) -> str:
    """The prepared directory that a run trains on, as its own config says."""
    dataset_path = storage.read_json(storage.join(run, "config.json"))["dataset_path"]
    return (
        dataset_path[0] if len(dataset_path) == 1 and _is_prepared(dataset_path[0]) else storage.join(run, "prepared")
    )


def _trained(named: Iterable[str], prepared_dirs: Iterable[str], say: Say) -> list[Any]:
    """The documents that were trained on: those named, else those of the runs' data, where they were kept."""
    paths = list(named) or [place for place in prepared_dirs if storage.exists(storage.join(place, "documents"))]
    if not paths:
        say("no training text: copies are not looked for")
    return _texts(paths, say)


def _heldout(named: Iterable[str], prepared_dirs: Iterable[str], say: Say) -> list[Any]:
    """Held-out documents: those named (of a prepared directory what it held out), else what the runs' data held out."""
    paths = list(named) or [place for place in prepared_dirs if storage.exists(storage.join(place, "heldout"))]
    if not paths:
        say(
            "no held-out text: how predictable the author became is not measured\n"
            "hint: `--heldout_fraction 0.1` when preparing, or `--heldout_path` when evaluating"
        )
    return _texts(paths, say, part="heldout")


def _texts(
    paths: Iterable[str],
    say: Say,
    *,
    part: Literal["documents", "heldout"] = "documents",
    document_unit: Literal["work", "chapter"] = "chapter",
    **cleaning: Any,
) -> list[Any]:
    """Clean texts; what cannot be read is said."""
    from raystyle.corpus.texts import read_texts

    documents, rejections = read_texts(list(paths), document_unit=document_unit, part=part, **cleaning)
    for rejection in rejections:
        say(f"left out  {rejection.source}: {rejection.reason}, {rejection.detail}")
    return documents


def _material(
    author: str, *, train: list[Any], heldout: list[Any], contrast: dict[str, list[str]], neutral: list[Any], say: Say
) -> Any:
    from raystyle.style.material import Document, gather
    from raystyle.style.neutral import PROSE

    def of(name: str, texts: Iterable[Any]) -> list[Any]:
        return [Document(name, text.source, text.text) for text in texts]

    return gather(
        author,
        train=of(author, train),
        heldout=of(author, heldout),
        contrast=[document for name, paths in contrast.items() for document in of(name, _texts(paths, say))],
        neutral=of("neutral", neutral) or [Document("neutral", "built in", paragraph) for paragraph in PROSE],
    )
