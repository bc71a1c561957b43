"""The report of an evaluation: one page that a person reads from its verdict down to the evidence and the digests.

Self-contained: no script, nothing fetched, readable in print, in the dark and on a phone. What was not measured is left out
or shown as a dash.
"""

from collections.abc import Callable, Sequence
from typing import Any

from raystyle import html
from raystyle.html import Markup
from raystyle.style.report import continuations, figures, standing, tables, view
from raystyle.style.report.view import at, number

Record = dict[str, Any]

FEW = 12


def page(
    evaluation: Record, training: Sequence[tuple[str, Markup]] = (), metrics: Sequence[dict[str, Any]] = ()
) -> str:
    """The whole page: `evaluation` is evaluation.json, `training` sections of (heading, body) about the run that made the
    subjects, `metrics` its metrics.jsonl (steps with `loss` and `heldout_loss` in nats per token; the last `loss_gate` in it is the gate's word).
    """
    evaluation, metrics = view.readable(evaluation), view.readable(list(metrics))
    author = view.author(evaluation)
    likelihood = [figures.loss(metrics), figures.bits(evaluation)]
    style = [standing.plane(evaluation), standing.distances(evaluation)]
    words = [figures.markers(evaluation), figures.copying(evaluation)]
    sections = [
        ("Verdict", _verdict(evaluation, metrics)),
        ("Loss and likelihood", _figures(likelihood)),
        (f"Is it {author}?", _figures(style)),
        ("Words taken up, text copied", _figures(words)),
        ("Style against its price", standing.frontier(evaluation)),
        ("How strong?", figures.strength(evaluation)),
        ("Samples side by side", continuations.side_by_side(evaluation)),
        ("Copied passages beside their source", continuations.passages(evaluation)),
        ("Copying in figures", tables.copying(evaluation)),
        ("Drift", tables.drift(evaluation)),
        ("Markers", tables.markers(evaluation)),
        ("Profile", tables.profile(evaluation)),
        ("Training", Markup("".join(html.subsection(heading, content) for heading, content in training))),
        ("What was measured", _material(evaluation)),
    ]
    model = html.plain(str(evaluation.get("model") or "the base"), 50)
    trained = len([subject for subject in view.subjects(evaluation) if not view.is_base(subject)])
    what = f"{trained} {'adapter' if trained == 1 else 'adapters or checkpoints'} on {model}" if trained else model
    subtitle = f"{what}, beside the author and others"
    return html.page(f"In the style of {author}", sections, subtitle)


def _figures(shown: Sequence[Markup]) -> Markup:
    there = [figure for figure in shown if figure]
    return html.figures(there) if there else Markup("")


def _verdict(evaluation: Record, metrics: Sequence[Record]) -> Markup:
    verdict, best = evaluation.get("verdict") or {}, view.recommended(evaluation)
    sentences = [view.worded(evaluation, verdict[key]) for key in ("reason", "statement") if verdict.get(key)]
    sentences += [gate] if (gate := _loss_gate(verdict, metrics)) else []
    heading = f"Take {view.title(best)}." if best else "Nothing to recommend."
    box = "".join(f"<p>{html.visible(sentence)}</p>" for sentence in sentences)
    parts = [
        f'<div class="verdict"><b>{html.visible(heading)}</b>{box}</div>',
        _change(evaluation, best),
        _scoreboard(evaluation),
    ]
    troubles = [f"{name} could not be measured: {reason}" for name, reason in (evaluation.get("failed") or {}).items()]
    troubles += [str(warning) for warning in evaluation.get("warnings") or []]
    if troubles:
        parts.append(
            html.subsection(
                "To be considered", html.samples(html.visible(view.worded(evaluation, t)) for t in troubles)
            )
        )
    return Markup("".join(parts))


def _loss_gate(verdict: Record, metrics: Sequence[Record]) -> str | None:
    """What the loss gate of training says: in the verdict, or the last word of it in the metrics."""
    words = [verdict.get("loss_gate"), *(entry.get("loss_gate") for entry in reversed(metrics))]
    word = next((word for word in words if word), None)
    word = at(word, "reason") or at(word, "word") if isinstance(word, dict) else word
    return f"Loss gate: {word}" if word else None


def _change(evaluation: Record, best: Record | None) -> Markup:
    """The recommended subject's figures, each from the base's."""
    if best is None:
        return Markup("")
    base = view.base(evaluation)
    wanted: list[tuple[str, tuple[str, ...], Callable[[float], str], str]] = [
        ("held-out text", ("likelihood", "heldout", "value"), "{:.2f}".format, "bits per character"),
        ("percentile", ("stylometry", "percentile"), "{:.0f}%".format, "of the author's own chunks are nearer"),
        ("markers", ("markers", "rate"), "{:.3g}".format, "per 1,000 characters"),
        ("copied", ("copying", "copied_share"), "{:.1%}".format, "of the text"),
        ("drift", ("drift", "divergence"), "{:.2f}".format, "nats per token"),
    ]
    boxes = []
    for label, keys, shown, unit in wanted:
        now, before = number(best, *keys), number(base, *keys)
        if now is not None:
            came = "" if before is None or label == "drift" else f"; base {shown(before)}"
            boxes.append(f"<div>{label}<b>{shown(now)}</b><small>{unit}{came}</small></div>")
    return Markup(f'<div class="flow">{"".join(boxes)}</div>')


def _scoreboard(evaluation: Record) -> Markup:
    """Every subject with its main figures and what the verdict says of it."""
    everyone, few = view.subjects(evaluation), view.chosen(evaluation, FEW)
    if not everyone:
        return Markup("")
    table = _scores(evaluation, few)
    if len(few) < len(everyone):
        table = Markup(table + html.details(f"All {len(everyone)}", _scores(evaluation, everyone)))
    key = (
        "Style: likeness to the author, by nearness (100% at the median of his own text, 0% at other authors') and by markers. More than others: bits per "
        "character that the author gained beyond the contrast. Percentile: author's own chunks that are nearer to the author. On the "
        "frontier: no other is as good or better in everything."
    )
    return Markup(table + html.note(key))


def _scores(evaluation: Record, shown: Sequence[Record]) -> Markup:
    best, verdict = view.recommended(evaluation), evaluation.get("verdict") or {}
    refused = verdict.get("turned_down") or {}
    rows, classes = [], []
    for subject in shown:
        name = subject["name"]
        said = "recommended" if subject is best else "for comparison" if view.is_base(subject) else ""
        if name in refused:
            said = f"{said}, but it {refused[name]}" if said else f"turned down: {refused[name]}"
        elif not said and name in (verdict.get("frontier") or []):
            said = "on the frontier"
        elif not said:
            said = "another is as good or better in everything" if verdict.get("scores") else ""
        rows.append(
            (
                html.visible(view.title(subject)),
                tables.shown(verdict, "scores", name, "style", form="{:.0%}"),
                tables.shown(subject, "likelihood", "heldout", "value", form="{:.3f}"),
                tables.shown(subject, "gain", "difference", "value", form="{:+.3f}"),
                tables.shown(subject, "stylometry", "percentile", form="{:.0f}%"),
                tables.shown(subject, "markers", "rate", form="{:.3g}"),
                tables.shown(subject, "copying", "copied_share", form="{:.1%}"),
                tables.shown(subject, "drift", "divergence", form="{:.3f}"),
                html.visible(view.worded(evaluation, said)) if said else "",
            )
        )
        classes.append("best" if subject is best else "pale" if name in refused else "")
    columns = ["", "style", "bits / char", "more than others", "percentile", "markers", "copied", "drift", "verdict"]
    return html.table(columns, rows, right=range(1, 8), classes=classes, names=True)


def _material(evaluation: Record) -> Markup:
    material = evaluation.get("material") or {}
    parts = [("training text", material.get("train")), ("held-out text", material.get("heldout"))]
    parts += [
        (f"contrast: {html.plain(name)}", found) for name, found in sorted((material.get("contrast") or {}).items())
    ]
    parts.append(("neutral prose", material.get("neutral")))
    texts = [
        (html.visible(name), at(found, "documents"), at(found, "characters"), at(found, "left_out") or None)
        for name, found in parts
        if found
    ]
    best = view.recommended(evaluation)
    facts = [
        ("model", evaluation.get("model")),
        ("model identity", evaluation.get("model_identity")),
        ("material digest", material.get("digest")),
        *((f"fingerprint of {view.title(s)}", s.get("fingerprint")) for s in (best,) if s),
        *((f"path of {view.title(s)}", s.get("path")) for s in (best,) if s),
        *((f"setting: {name}", _setting(value)) for name, value in (evaluation.get("settings") or {}).items()),
    ]
    shown = [
        (html.visible(name), html.visible(html.plain(str(value), 90))) for name, value in facts if value is not None
    ]
    columns = ["text", "documents", "characters", "left out"]
    folded = html.details("Models, digests and settings", html.table(["", ""], shown)) if shown else ""
    return Markup(f"{html.table(columns, texts) if texts else ''}{folded}")


def _setting(value: Any) -> Any:
    """Long lists, such as the prompts, by their number."""
    return f"{len(value)} of them" if isinstance(value, list) and len(value) > 8 else value
