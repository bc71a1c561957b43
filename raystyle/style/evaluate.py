"""Measure a base and its adapters on Ray, one task each; judge them together; write evaluation.json and report.html.

A task writes what it measured to `evaluations/` under a name made of everything that decides it: the model, the adapter's
fingerprint, the texts, the settings. So a second run measures only what is missing, an evaluation that was made while
training went on is found by the one after it, and adapters may be added. Ray is initialised by the caller.
"""

import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from raystyle import models, progress, storage, tokens
from raystyle.errors import ConfigError, ModelError, RaystyleError, TrainingError
from raystyle.style import measure as measuring
from raystyle.style.judgement import Yardstick, material_counts
from raystyle.style.material import Material, digest, load, save, text_digest
from raystyle.style.measure import Model, Settings
from raystyle.style.report.page import page
from raystyle.style.subjects import BASE, Subject, of_checkpoint
from raystyle.style.verdict import verdict

# Part of every record's name: raised when what is measured changes.
VERSION = 1
RECORDS, MATERIAL = "evaluations", "material.parquet"
POLL_S = 1.0


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What decides the records of one evaluation, and where they are kept. Picklable: tasks carry it."""

    model: Model
    model_identity: str
    tokenizer_digest: str
    material_uri: str
    text_digest: str
    settings: Settings
    output_dir: str

    def record_uri(self, subject: Subject, part: str = "measure") -> str:
        decides = [
            VERSION, part, self.model_identity, self.tokenizer_digest, subject.fingerprint, self.text_digest,
            dataclasses.asdict(self.settings),
        ]  # fmt: skip
        key = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
        return storage.join(self.output_dir, RECORDS, f"{key[:32]}.json")


def begin(model: Model, material: Material, settings: Settings, output_dir: str) -> Evaluation:
    """Keep the material beside the results, and name what decides an evaluation."""
    uri = storage.join(output_dir, RECORDS, digest(material)[:16], MATERIAL)
    if not storage.exists(uri):
        save(material, uri)
    tokenizer = tokens.load_tokenizer(model.tokenizer, model.trust_remote_code)
    return Evaluation(
        model,
        models.identity(model.name),
        tokens.tokenizer_digest(tokenizer),
        uri,
        text_digest(material),
        settings,
        output_dir,
    )


def measure_subject(evaluation: Evaluation, subject: Subject, part: str = "measure") -> dict[str, Any]:
    """One subject's record, from storage if it was measured before; else measured here and kept."""
    uri = evaluation.record_uri(subject, part)
    if storage.exists(uri):
        return storage.read_json(uri)  # type: ignore[no-any-return]
    material = load(evaluation.material_uri)
    started_s = time.monotonic()
    if part == "strength":
        assert subject.path is not None
        found: dict[str, Any] = {
            "strength": measuring.sweep(
                evaluation.model, subject.path, material, evaluation.settings, subject.fingerprint
            )
        }
    else:
        found = measuring.measure(evaluation.model, subject.path, material, evaluation.settings, subject.fingerprint)
    record = found | {
        "name": subject.name,
        "fingerprint": subject.fingerprint,
        "seconds": round(time.monotonic() - started_s, 2),
    }
    storage.write_json(uri, record)
    return record


def measure_checkpoint(evaluation: Evaluation, checkpoint_uri: str) -> dict[str, float]:
    """A checkpoint measured and judged alone, while training goes on: the numbers that join metrics.jsonl."""
    raw = measure_subject(evaluation, of_checkpoint(checkpoint_uri))
    return numbers(Yardstick(load(evaluation.material_uri), sample_chars(raw)).judge(raw, None))


def sample_chars(raw: dict[str, Any]) -> int:
    """How much a subject wrote, by which it is compared."""
    return sum(len(sample["text"]) for sample in raw["samples"] if sample["temperature"] > 0)


def numbers(subject: dict[str, Any]) -> dict[str, float]:
    """A judged subject in a few numbers, by the names that metrics.jsonl and TensorBoard know."""
    heldout, style = subject["likelihood"]["heldout"], subject["stylometry"]
    found = {
        "heldout_bits_per_character": heldout["value"] if heldout else None,
        "style_distance": style["distance"] if style else None,
        "style_percentile": style["percentile"] if style else None,
        "marker_rate": subject["markers"]["rate"],
        "copied_share": subject["copying"]["copied_share"],
        "longest_copy": subject["copying"]["longest"],
        "divergence": subject["drift"]["divergence"],
        "loop_rate": subject["drift"]["loop_rate"],
    }
    return {name: round(float(value), 6) for name, value in found.items() if value is not None}


def evaluate(
    evaluation: Evaluation,
    subjects: Sequence[Subject],
    *,
    timeout_s: float,
    about: Callable[[], dict[str, Any]] | None = None,
    measured: Callable[[list[dict[str, Any]]], None] | None = None,
) -> dict[str, Any]:
    """Measure every subject that has no record yet, judge all, write report.html, then evaluation.json; returns the latter.

    A subject that fails is reported and leaves the others be; it is tried again by the next run. Raises `TrainingError`
    where the base or every adapter failed. `measured` is given the judged subjects before the report is written, and
    `about` then gives what the report says of the run that made them: `training` (sections), `metrics`, `loss_gate`.
    """
    material = load(evaluation.material_uri)
    authors = {material.author, *(document.author for document in material.contrast)}
    subjects = [s._replace(name=f"{s.name} (adapter)") if s.name in authors else s for s in subjects]
    raws, failed = _measured(evaluation, subjects, "measure", timeout_s)
    # A record made in another precision, as beside training on a CPU, is no match for this base's.
    if odd := [s for s in subjects if s.name in raws and BASE in raws and raws[s.name]["dtype"] != raws[BASE]["dtype"]]:
        for subject in odd:
            storage.delete(evaluation.record_uri(subject))
        again, failed_again = _measured(evaluation, odd, "measure", timeout_s)
        raws, failed = raws | again, failed | failed_again
    adapters_measured = [subject for subject in subjects if subject.name in raws and subject.name != BASE]
    if BASE not in raws or (not adapters_measured and len(subjects) > 1):
        name, reason = next(iter(failed.items()))
        raise TrainingError(f"nothing could be evaluated: {name}: {reason}\nhint: the same command tries again")
    yardstick = Yardstick(material, min(map(sample_chars, raws.values())))
    base = raws[BASE]
    judged = [
        {
            "name": subject.name, "kind": subject.kind, "path": subject.path, "step": subject.step,
            "fingerprint": subject.fingerprint, "seconds": raws[subject.name]["seconds"],
        }
        | yardstick.judge(raws[subject.name], None if subject.name == BASE else base)
        | {"strength": []}
        for subject in subjects
        if subject.name in raws
    ]  # fmt: skip
    reference = yardstick.describe()
    found = verdict(judged, raws, reference)
    if evaluation.settings.scales and found["recommended"]:
        best = next(subject for subject in adapters_measured if subject.name == found["recommended"])
        swept, failed_sweep = _measured(evaluation, [best], "strength", timeout_s)
        failed |= {f"strength of {name}": reason for name, reason in failed_sweep.items()}
        for entry in judged:
            if entry["name"] in swept:
                entry["strength"] = yardstick.strength(swept[entry["name"]]["strength"])
    result = {
        "format": 1,
        "model": evaluation.model.name,
        "model_identity": evaluation.model_identity,
        "author": yardstick.material.author,
        "material": {"digest": evaluation.text_digest} | material_counts(yardstick.material),
        "settings": dataclasses.asdict(evaluation.settings),
        "reference": reference
        | {"plane": yardstick.plane({s["name"]: [t["text"] for t in raws[s["name"]]["samples"]] for s in judged})},
        "subjects": judged,
        "failed": failed,
        "warnings": yardstick.doubts(),
        "verdict": found,
    }
    if measured:
        measured(judged)
    run = about() if about else {}
    found["loss_gate"] = run.get("loss_gate")
    written = page(result, run.get("training", ()), run.get("metrics", ()))
    storage.write_bytes(storage.join(evaluation.output_dir, "report.html"), written.encode())
    # Written last: where it is there, the report beside it is its own.
    storage.write_json(storage.join(evaluation.output_dir, "evaluation.json"), result)
    return result


def _measured(
    evaluation: Evaluation, subjects: Sequence[Subject], part: str, timeout_s: float
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Name -> record of what could be measured, and name -> reason of what could not; shows progress."""
    found = {}
    for subject in subjects:
        uri = evaluation.record_uri(subject, part)
        if storage.exists(uri):
            found[subject.name] = storage.read_json(uri)
    missing = [subject for subject in subjects if subject.name not in found]
    if not missing:
        return found, {}
    title = "evaluate" if part == "measure" else "strength"
    with progress.bar(len(subjects), title, "model") as shown:
        shown.update(len(found))
        fresh, failed = _run(evaluation, missing, part, timeout_s, shown)
    return found | fresh, failed


def _run(
    evaluation: Evaluation, subjects: Sequence[Subject], part: str, timeout_s: float, shown: progress.Bar
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """A process for each subject, as many at once as Ray has GPUs, or cores where it has none; each is given `timeout_s`
    from when it begins, however long it waits for its place."""
    import ray

    options, slots = _places(len(subjects))
    make: Any = ray.remote(_Process).options(**options)
    waiting = list(subjects)
    # What is waited for -> (subject, its process, when it began: None while it waits for its place).
    running: dict[Any, tuple[Subject, Any, float | None]] = {}
    found: dict[str, dict[str, Any]] = {}
    failed: dict[str, str] = {}
    while waiting or running:
        while waiting and len(running) < slots:
            process = make.remote()
            running[process.__ray_ready__.remote()] = (waiting.pop(0), process, None)
        done, _ = ray.wait(list(running), num_returns=1, timeout=POLL_S)
        now_s = time.monotonic()
        late = [ref for ref, (_, _, began_s) in running.items() if began_s is not None and now_s - began_s > timeout_s]
        for reference in {*done, *late}:
            subject, process, began_s = running.pop(reference)
            try:
                answer = ray.get(reference, timeout=0)
                if began_s is None:
                    running[process.measure.remote(measure_subject, evaluation, subject, part)] = (
                        subject,
                        process,
                        now_s,
                    )
                    continue
                found[subject.name] = answer
            except ray.exceptions.GetTimeoutError:
                failed[subject.name] = f"took longer than {timeout_s:g} s"
            except (ray.exceptions.RayError, RaystyleError) as error:
                failed[subject.name] = _reason(error)
            ray.kill(process)
            if subject.name in failed:
                print(f"{subject.name} could not be measured: {failed[subject.name]}", file=sys.stderr, flush=True)
            shown.update(1, subject.name)
    return found, failed


class _Process:
    """The process in which one subject is measured."""

    def measure(self, function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
        return function(*arguments)


def _places(wanted: int) -> tuple[dict[str, Any], int]:
    """What one process takes, as Ray's options, and how many of them run at once. Raises `ConfigError` for an empty Ray."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    if gpus:
        return {"num_gpus": 1, "num_cpus": 0}, min(wanted, gpus)
    if not sum(cpus):
        raise ConfigError("Ray has neither a CPU core nor a GPU for the evaluation\nhint: add a node that takes work")
    # Cores are shared out when there are more of them than models; no process takes more than the largest node has.
    slots = min(wanted, sum(cpus))
    return {"num_cpus": max(1, min(max(cpus), sum(cpus) // slots))}, slots


def _reason(error: Exception) -> str:
    """What a task died of, in one line."""
    cause = getattr(error, "cause", None) or error
    lines = [line for line in str(cause).strip().splitlines() if line.strip()]
    text = lines[0] if isinstance(cause, ModelError) and lines else lines[-1] if lines else ""
    return f"{type(cause).__name__}: {text}"[:400]
