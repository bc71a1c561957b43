"""A run for a person: the loss curve as `loss.png`, and `report.html` with the plan, the curves and the samples."""

import io
import math
from typing import Any

from raystyle import html, storage
from raystyle.errors import StorageError


def write(output_dir: str, plan: dict[str, Any], metrics: list[dict[str, Any]]) -> str:
    """Write `loss.png` and `report.html` into a run; returns the page's URI. `plan` and `metrics` are the run's JSON."""
    losses = [(entry["step"], entry["loss"]) for entry in metrics if math.isfinite(entry.get("loss", math.nan))]
    storage.write_bytes(storage.join(output_dir, "loss.png"), _loss_png(losses, _heldout(metrics)))
    uri = storage.join(output_dir, "report.html")
    storage.write_bytes(uri, _page(plan, metrics, losses, read_samples(output_dir)).encode())
    return uri


def read_samples(output_dir: str) -> list[dict[str, Any]]:
    """The checkpoints' continuations of the neutral prompt, in the order of their steps."""
    try:
        files = storage.list_files(storage.join(output_dir, "samples"), (".json",))
    except StorageError:
        return []
    return sorted((storage.read_json(file.uri) for file in files), key=lambda record: record["step"])


def _heldout(metrics: list[dict[str, Any]]) -> list[tuple[float, float]]:
    """(step, held-out loss) before training and at each checkpoint."""
    return _series(metrics, "heldout_loss")


def _page(
    plan: dict[str, Any],
    metrics: list[dict[str, Any]],
    losses: list[tuple[float, float]],
    samples: list[dict[str, Any]],
) -> str:
    steps = [entry for entry in metrics if "loss" in entry]
    heldout = _heldout(metrics)
    speeds = sorted(entry["tokens_per_second"] for entry in steps if entry.get("tokens_per_second"))
    boxes = [
        ("rows", plan["rows"], f"of {plan['max_seq_length']:,} tokens, {plan['real_token_share']:.1%} of them real"),
        ("steps", plan["steps"], f"of {plan['global_batch_size']} rows"),
        ("trained parameters", plan["trainable_parameters"], f"beside {plan['base_parameters']:,} frozen"),
        ("tokens a second", round(speeds[len(speeds) // 2]) if speeds else None, "median over the logged steps"),
    ]
    if len(heldout) >= 2:
        boxes.append(("held-out loss", round(heldout[-1][1], 3), f"from {heldout[0][1]:.3f} nats per token"))
    identity = [(name, str(value)) for name, value in plan["identity"].items()]
    sections = [
        ("The run", html.flow(boxes)),
        ("Loss", html.line_chart({"training": losses, "held out": heldout}, "step", "nats per token")),
        ("Learning rate", html.line_chart({"": _series(steps, "learning_rate")}, "step")),
        ("Gradient norm", html.line_chart({"": _series(steps, "grad_norm")}, "step")),
        ("The neutral prompt, continued greedily at each checkpoint", _samples_table(samples)),
        ("What makes this run what it is", html.table(["field", "value"], identity)),
    ]
    if plan["warnings"]:
        sections.insert(1, ("Warnings", html.samples(plan["warnings"])))
    return html.page(
        "raystyle train", sections, f"{plan['identity']['model']}, data {plan['identity']['data_digest'][:12]}"
    )


def _series(entries: list[dict[str, Any]], name: str) -> list[tuple[float, float]]:
    return [(entry["step"], entry[name]) for entry in entries if name in entry]


def _samples_table(samples: list[dict[str, Any]]) -> html.Markup:
    return html.table(
        ["step", "continuation"], [(record["step"], record["prompt"] + record["text"]) for record in samples]
    )


def _loss_png(losses: list[tuple[float, float]], heldout: list[tuple[float, float]]) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, points, style in (("training", losses, "-"), ("held out", heldout, "o--")):
        if points:
            axes.plot(*zip(*points, strict=True), style, label=name)
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend() if losses or heldout else None
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
