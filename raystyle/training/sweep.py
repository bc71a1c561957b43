"""Several learning rates, and batches if asked for, over one base and the same rows: runs side by side, judged by held-out loss.

Each trial is a run in a directory of its own, `trials/lr-0.0001`: it resumes by the same command as any run does, and its
adapter can be taken as it is. Ray Tune only decides how many go on at a time. The table is written again after each
trial, so that a sweep that is stopped has something to show.
"""

import dataclasses
import functools
import math
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from raystyle import html, storage
from raystyle.config import SweepConfig, TrainConfig
from raystyle.errors import ConfigError, RaystyleError
from raystyle.flags import from_dict, to_dict
from raystyle.training import metrics, report

Train = Callable[[TrainConfig], Any]


def trials(config: SweepConfig, dataset_path: tuple[str, ...]) -> list[TrainConfig]:
    """The runs of a sweep, all on the same rows. Raises `ConfigError` for a batch that the workers cannot share."""
    base = {field.name: getattr(config, field.name) for field in dataclasses.fields(TrainConfig)}
    if "eval_style" not in config.given:
        base["eval_style"] = "off"  # of each checkpoint of each trial it would cost more than the training
    smallest = config.per_device_train_batch_size * config.max_workers
    found = []
    for batch in config.global_batch_sizes or (config.global_batch_size,):
        if batch % smallest:
            raise ConfigError(
                f"`global_batch_sizes` names {batch} rows, and {config.max_workers} workers take {smallest} at a time\n"
                "hint: use multiples of that, or another `per_device_train_batch_size`"
            )
        for rate in config.learning_rates:
            name = f"lr-{rate:g}" + (f"-batch-{batch}" if len(config.global_batch_sizes) > 1 else "")
            changed = {
                "learning_rate": rate,
                "gradient_accumulation_steps": batch // smallest,
                "dataset_path": dataset_path,
                "output_dir": storage.join(config.output_dir, "trials", name),
            }
            found.append(TrainConfig(**base | changed))
    return found


def run(
    config: SweepConfig, runs: Sequence[TrainConfig], train: Train, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Train every run, `max_concurrent_trials` at a time; returns what came of each, the lowest held-out loss first.

    A trial that fails is one of the results: too high a rate is what a sweep is to find. `train` is called in a process of
    Ray's, which takes no core, for it only starts the run's workers.
    """
    from ray import tune

    class Told(tune.Callback):
        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            record = outcome(runs[trial.config["trial"]], trial.last_result.get("failed"))
            say(described(record))
            write(config, [outcome(run, None) for run in runs if storage.exists(run.output_dir)])

    with tempfile.TemporaryDirectory(prefix="raystyle-sweep-") as scratch:
        tuner = tune.Tuner(
            tune.with_resources(
                functools.partial(_trial, configs=[to_dict(run) for run in runs], train=train),
                # What every node has plenty of: Tune wants something, and the cores are the workers'.
                tune.PlacementGroupFactory([{"memory": 1}]),
            ),
            param_space={"trial": tune.grid_search(list(range(len(runs))))},
            tune_config=tune.TuneConfig(max_concurrent_trials=config.max_concurrent_trials),
            run_config=tune.RunConfig(storage_path=scratch, name="tune", verbose=0, callbacks=[Told()]),
        )
        results = tuner.fit()
    failed = {}
    for result in map(results.__getitem__, range(len(results))):
        if result.config and result.metrics is not None:
            failed[result.config["trial"]] = str(result.error) if result.error else result.metrics.get("failed")
    records = sorted((outcome(run, failed.get(number)) for number, run in enumerate(runs)), key=_rank)
    write(config, records)
    return records


def _trial(chosen: dict[str, Any], configs: list[dict[str, Any]], train: Train) -> None:
    """One run, in a process of Tune's. An error of raystyle's own is a result; any other one is Tune's to tell."""
    from ray import tune

    try:
        train(from_dict(TrainConfig, configs[chosen["trial"]]))
    except RaystyleError as error:
        tune.report({"failed": str(error).splitlines()[0]})
    else:
        tune.report({"failed": None})


def outcome(run: TrainConfig, failed: str | None) -> dict[str, Any]:
    """What came of a trial, by what its run has written: JSON."""
    entries = metrics.read(run.output_dir)
    held_out = [(entry["step"], entry["heldout_loss"]) for entry in entries if "heldout_loss" in entry]
    plan_path = storage.join(run.output_dir, "plan.json")
    word = report.verdict(storage.read_json(plan_path), entries).word if storage.exists(plan_path) else None
    return {
        "learning_rate": run.learning_rate,
        "global_batch_size": run.global_batch_size,
        "steps": max((entry["step"] for entry in entries), default=0),
        "heldout_loss": held_out[-1][1] if held_out and not failed else None,
        "heldout": held_out,
        "loss_gate": word,
        "failed": failed,
        "output_dir": run.output_dir,
    }


def _rank(record: dict[str, Any]) -> float:
    return math.inf if record["heldout_loss"] is None else float(record["heldout_loss"])


def described(record: dict[str, Any]) -> str:
    """A trial in a line."""
    result = (
        f"failed: {record['failed']}"
        if record["failed"]
        else f"held-out loss {_rank(record):.4f}, {record['loss_gate']}"
    )
    return f"learning rate {record['learning_rate']:g}, {record['global_batch_size']} rows a step: {result}"


def write(config: SweepConfig, records: Sequence[dict[str, Any]]) -> None:
    """`sweep.json` and `report.html` in the sweep's directory."""
    ordered = sorted(records, key=_rank)
    storage.write_json(storage.join(config.output_dir, "sweep.json"), {"trials": ordered})
    rows = [
        (
            f"{record['learning_rate']:g}",
            record["global_batch_size"],
            record["steps"],
            "–" if record["heldout_loss"] is None else f"{record['heldout_loss']:.4f}",
            record["failed"] or record["loss_gate"] or "",
            record["output_dir"],
        )
        for record in ordered
    ]
    columns = ["learning rate", "rows a step", "steps", "held-out loss", "how it went", "run"]
    curves = {f"{record['learning_rate']:g} × {record['global_batch_size']}": record["heldout"] for record in ordered}
    sections = [
        ("Trials, the best first", html.table(columns, rows)),
        ("Held-out loss", html.line_chart(curves, "step", "nats per token")),
    ]
    page = html.page("raystyle sweep", sections, config.model_name_or_path)
    storage.write_bytes(storage.join(config.output_dir, "report.html"), page.encode())
