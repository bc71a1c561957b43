"""A run for a person: the loss curve as `loss.png`, and `report.html` with the plan, the curves and the samples."""

import io
import math
from typing import Any

from raystyle import html, storage
from raystyle.errors import StorageError
from raystyle.training import gate


def write(output_dir: str, plan: dict[str, Any], metrics: list[dict[str, Any]]) -> str:
    """Write `loss.png` and `report.html` into a run; returns the page's URI. `plan` and `metrics` are the run's JSON."""
    storage.write_bytes(storage.join(output_dir, "loss.png"), loss_png(metrics))
    uri = storage.join(output_dir, "report.html")
    subtitle = f"{plan['identity']['model']}, data {plan['identity']['data_digest'][:12]}"
    page = html.page("raystyle train", sections(plan, metrics, read_samples(output_dir)), subtitle)
    storage.write_bytes(uri, page.encode())
    return uri


def read_samples(output_dir: str) -> list[dict[str, Any]]:
    """The checkpoints' continuations of the neutral prompt, in the order of their steps."""
    try:
        files = storage.list_files(storage.join(output_dir, "samples"), (".json",))
    except StorageError:
        return []
    return sorted((storage.read_json(file.uri) for file in files), key=lambda record: record["step"])


def verdict(plan: dict[str, Any], metrics: list[dict[str, Any]]) -> gate.Gate:
    """The loss gate's word on a run."""
    return gate.judge(_losses(metrics), _series(metrics, "heldout_loss"), plan["base_parameters"])


def said(plan: dict[str, Any], metrics: list[dict[str, Any]]) -> list[str]:
    """What the log says of a finished run's loss: the gate's word, and on a plateau the lines that it stands on."""
    word, sentence = verdict(plan, metrics)
    lines = [f"loss gate: {word}. {sentence}"]
    for entry in [entry for entry in metrics if "hardest_lines" in entry][-1:]:
        for line in entry["hardest_lines"][:3]:
            lines.append(
                f"  {line['loss']:.2f} nats a token, {line['times']} times in the corpus: {line['text']} ({', '.join(line['sources'])})"
            )
    return lines


def sections(
    plan: dict[str, Any], metrics: list[dict[str, Any]], samples: list[dict[str, Any]]
) -> list[tuple[str, html.Markup]]:
    """What a page says of the training itself, as (heading, content), for this package's own page and for others."""
    steps = [entry for entry in metrics if "loss" in entry]
    heldout = _series(metrics, "heldout_loss")
    speeds = sorted(entry["tokens_per_second"] for entry in steps if entry.get("tokens_per_second"))
    made = "streamed" if plan.get("stream") else f"{plan['real_token_share']:.1%} of them real"
    boxes = [
        ("rows", plan["rows"], f"of {plan['max_seq_length']:,} tokens, {made}"),
        ("steps", plan["steps"], f"of {plan['global_batch_size']} rows"),
        ("trained parameters", plan["trainable_parameters"], f"beside {plan['base_parameters']:,} frozen"),
        ("tokens a second", round(speeds[len(speeds) // 2]) if speeds else None, "median over the logged steps"),
    ]
    if len(heldout) >= 2:
        boxes.append(("held-out loss", round(heldout[-1][1], 3), f"from {heldout[0][1]:.3f} nats per token"))
    identity = [(name, str(value)) for name, value in plan["identity"].items()]
    word, sentence = verdict(plan, metrics)
    curves = html.line_chart({"training": _losses(metrics), "held out": heldout}, "step", "nats per token")
    found = [
        ("The run", html.flow(boxes)),
        ("Loss", html.Markup(html.lead(f"Loss gate: {word}.") + html.note(sentence) + curves)),
        ("Learning rate", html.line_chart({"": _series(steps, "learning_rate")}, "step")),
        ("Gradient norm", html.line_chart({"": _series(steps, "grad_norm")}, "step")),
        ("The neutral prompt, continued greedily at each checkpoint", _samples_table(samples)),
        ("What makes this run what it is", html.table(["field", "value"], identity)),
    ]
    found[2:2] = _hardest(metrics)
    if plan["warnings"]:
        found.insert(1, ("Warnings", html.samples(plan["warnings"])))
    return found


def _hardest(metrics: list[dict[str, Any]]) -> list[tuple[str, html.Markup]]:
    """Where a plateau's loss comes from, and steps that were left out; nothing for a run that has neither."""
    found = []
    for entry in [entry for entry in metrics if "hardest_rows" in entry][-1:]:
        lines = [
            (line["loss"], line["times"], line["text"], ", ".join(line["sources"])) for line in entry["hardest_lines"]
        ]
        rows = [(row["loss"], row["row"], row["text"], ", ".join(row["sources"])) for row in entry["hardest_rows"]]
        content = html.note(
            "Measured after the last step on a sample of rows. Lines that the corpus repeats come first: noise that "
            "survived cleaning is worth a rule (raystyle rules --try_path)."
        )
        content = html.Markup(
            content
            + html.subsection("Lines", html.table(["nats per token", "times in the corpus", "line", "sources"], lines))
            + html.subsection("Rows", html.table(["nats per token", "row", "begins", "sources"], rows))
        )
        found.append(("Where the loss is highest", content))
    bad = [entry for entry in metrics if "bad_loss" in entry]
    if bad:
        steps = [
            (entry["step"], entry["bad_loss"], str(entry["rows"][:8]), ", ".join(entry["sources"])) for entry in bad
        ]
        found.append(("Bad steps", html.table(["step", "what was bad", "rows", "sources"], steps)))
    return found


def _losses(metrics: list[dict[str, Any]]) -> list[tuple[float, float]]:
    return [point for point in _series(metrics, "loss") if math.isfinite(point[1])]


def _series(entries: list[dict[str, Any]], name: str) -> list[tuple[float, float]]:
    return [(entry["step"], entry[name]) for entry in entries if name in entry]


def _samples_table(samples: list[dict[str, Any]]) -> html.Markup:
    return html.table(
        ["step", "continuation"], [(record["step"], record["prompt"] + record["text"]) for record in samples]
    )


def loss_png(metrics: list[dict[str, Any]]) -> bytes:
    """The loss curve as a picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    losses, heldout = _losses(metrics), _series(metrics, "heldout_loss")
    for name, points, style in (("training", losses, "-"), ("held out", heldout, "o--")):
        if points:
            axes.plot(*zip(*points, strict=True), style, label=name)
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend() if losses or heldout else None
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
