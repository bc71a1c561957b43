"""Figures of measures over training and over the adapter's scale; each takes an evaluation, and is empty where nothing was measured.

A title states what was found, or asks what the plot answers; the line below a plot is for a reader who is no statistician.
Where the subjects are one run's course they stand over its steps, otherwise in rows.
"""

from collections.abc import Sequence
from typing import Any

from raystyle import html
from raystyle.html import Markup
from raystyle.style.report import plots, view
from raystyle.style.report.plots import Level, Line
from raystyle.style.report.view import at, number

Record = dict[str, Any]
Measure = tuple[str, str, list[Level], bool]  # of a sweep: key, label, what it is seen beside, whether it is a share
# Where the loss of a style run on a large Chinese base usually starts and ends, in nats per token.
REFERENCE_LOSS = (2.5, 1.8)
NOTHING = Markup("")


def loss(metrics: Sequence[Record]) -> Markup:
    """Training and held-out loss; with the reference where the curve comes near it."""
    training, heldout = _series(metrics, "loss"), _series(metrics, "heldout_loss")
    if not training and not heldout:
        return NOTHING
    values = sorted(value for _, value in training or heldout)
    near = values[0] < REFERENCE_LOSS[0] + 0.4 and values[-1] > REFERENCE_LOSS[1] - 0.6
    course = [value for _, value in training or heldout]
    course = plots.running_mean(course, len(course) // 25)
    first, last = course[0], course[-1]
    way = "fell" if last < first else "rose"
    usual = "Runs on a large base usually start near {:g} and end near {:g}".format(*REFERENCE_LOSS)
    return html.figure(
        f"The loss {way} from {first:.2f} to {last:.2f}",
        plots.loss("loss", training, heldout, REFERENCE_LOSS if near else None),
        "How surprised the model is by a token it is taught, in nats: lower is less. "
        + (
            f"{usual} (green band)."
            if near
            else f"{usual}, which lies outside this plot: figures depend on the base and its tokens."
        ),
    )


def _series(metrics: Sequence[Record], name: str) -> list[tuple[float, float]]:
    found = [(number(entry, "step"), number(entry, name)) for entry in metrics]
    return [(step, value) for step, value in found if step is not None and value is not None]


def bits(evaluation: Record) -> Markup:
    """Held-out bits per character of target, contrast and neutral prose, with their intervals."""
    roles = [("heldout", "target", "accent"), ("contrast", "contrast", "second"), ("neutral", "neutral", "soft")]
    lines = [_line(evaluation, label, colour, "likelihood", role) for role, label, colour in roles]
    best, author = view.recommended(evaluation), view.author(evaluation)
    gain = at(best, "gain", "heldout")
    title = f"How predictable is {author}, how predictable are others?"
    if number(gain, "value") is not None:
        title = f"{author} costs {_change(gain)}"
        other = at(best, "gain", "contrast") or at(best, "gain", "neutral")
        if number(other, "value") is not None:
            title += f", {'other authors' if at(best, 'gain', 'contrast') else 'neutral prose'} {_change(other)}"
    return _course(
        evaluation, "bits", title, lines, "bits per character",
        f"What a character of text that was not trained on costs the model: fewer bits mean that it expects it more. {author} "
        "was learned where the target falls further than the rest. Shaded or barred: 95% intervals over documents.",
    )  # fmt: skip


def _change(gain: Record) -> str:
    value, low, high = number(gain, "value") or 0.0, number(gain, "low"), number(gain, "high")
    if low is not None and high is not None and low <= 0 <= high:
        return "no clearly different number of bits"
    return f"{abs(value):.2f} bits a character {'less' if value >= 0 else 'more'}"


def _line(evaluation: Record, label: str, colour: str, *names: str) -> Line:
    """A measure of every subject, by step or by row; an Estimate brings its interval."""
    everyone = view.subjects(evaluation)
    xs = (
        [float(view.step(s)) for s in everyone]
        if view.have_steps(evaluation)
        else [float(n) for n in range(len(everyone))]
    )
    found = [at(subject, *names) for subject in everyone]
    parts = [
        [number(one if isinstance(one, dict) else {"value": one}, key) for one in found]
        for key in ("value", "low", "high")
    ]
    return Line(label, colour, xs, *parts)


def _course(
    evaluation: Record,
    name: str,
    title: str,
    lines: Sequence[Line],
    y_label: str,
    explanation: str,
    levels: Sequence[Level] = (),
    **axis: bool,
) -> Markup:
    """A measure over the run's steps, or over subjects in rows."""
    lines = [line for line in lines if any(value is not None for value in line.values)]
    if not lines:
        return NOTHING
    best, everyone = view.recommended(evaluation), view.subjects(evaluation)
    if view.have_steps(evaluation):
        step = float(view.step(best)) if best else None
        return html.figure(title, plots.over_steps(name, lines, y_label, levels=levels, best=step, **axis), explanation)
    row = everyone.index(best) if best else None
    labels = [view.title(subject) for subject in everyone]
    legend = html.legend((line.label, line.colour) for line in lines) if len(lines) > 1 else None
    drawing = plots.in_rows(name, labels, lines, y_label, levels=levels, best=row, **axis)
    return html.figure(title, drawing, explanation, legend)


def markers(evaluation: Record) -> Markup:
    """The rate of the author's markers in samples, beside the author's own."""
    own, author = number(evaluation, "reference", "marker_rate"), view.author(evaluation)
    base, best = (number(s, "markers", "rate") for s in (view.base(evaluation), view.recommended(evaluation)))
    title = f"How often do {author}'s own words appear?"
    if base is not None and best is not None:
        title = f"{author}'s own words: {base:.3g} per 1,000 characters before, {best:.3g} after"
    return _course(
        evaluation, "markers", title, [_line(evaluation, "samples", "accent", "markers", "rate")],
        "markers per 1,000 characters",
        f"Markers are words that {author} uses far more than others do; they are listed below. Dashed: the author's own rate. "
        "A rate far above it would be a caricature.",
        [] if own is None else [Level("author", own, "second")], from_zero=True,
    )  # fmt: skip


def copying(evaluation: Record) -> Markup:
    """How much of the samples stands word for word in the training text."""
    own = number(evaluation, "reference", "copying", "copied_share")
    best, base = (number(s, "copying", "copied_share") for s in (view.recommended(evaluation), view.base(evaluation)))
    title = "How much is copied word for word?"
    if best is not None:
        title = f"The recommended one copies {best:.1%} of its text"
        if best <= max(own or 0.0, base or 0.0):
            title = f"Nothing copied beyond what unseen text shares ({best:.1%})"
    lines = [
        _line(evaluation, "copied", "accent", "copying", "copied_share"),
        _line(evaluation, "extracted", "third", "copying", "extraction_rate"),
    ]
    return _course(
        evaluation, "copying", title, lines, "share of text, share of passages",
        "Copied: share of the samples' text in passages too long and too rare to be common phrases. Extracted: share of training "
        "passages that the model completes word for word from their beginning. Dashed: what held-out text of the author shares with "
        "the training text anyway.",
        [] if own is None else [Level("held out", own, "second")], from_zero=True, percent=True,
    )  # fmt: skip


def strength(evaluation: Record) -> Markup:
    """The measures along the adapter's scale, for those that were swept."""
    swept = [subject for subject in view.chosen(evaluation, 4) if subject.get("strength")]
    swept = swept or [subject for subject in view.subjects(evaluation) if subject.get("strength")][:3]
    if not swept:
        return NOTHING
    best = view.recommended(evaluation)
    own = number(evaluation, "reference", "marker_rate")
    levels = [] if own is None else [Level("author", own, "second")]
    style: list[Measure] = [
        ("marker_rate", "markers per 1,000 characters", levels, False),
        ("percentile", "author's own chunks that are nearer, %", [], False),
        ("bits_per_character", "held-out bits per character", [], False),
    ]
    price: list[Measure] = [
        ("divergence", "drift: KL from the base, nats per token", [], False),
        ("copied_share", "share of text copied", [], True),
        ("neutral_bits_per_character", "neutral prose, bits per character", [], False),
    ]
    titles = ["More of the adapter: how much more style?", "More of the adapter: at what price?"]
    shown: list[Markup] = []
    for title, measures in zip(titles, (style, price), strict=True):
        panels = []
        for key, label, beside, percent in measures:
            hues = iter(("second", "third", "duplicates", "removed"))
            lines = [_scaled(s, key, "gain" if s is best else next(hues), len(swept) > 1) for s in swept]
            lines = [line for line in lines if any(value is not None for value in line.values)]
            panels += [(label, lines, beside, percent)] if lines else []
        if panels:
            explanation = "The adapter's effect is multiplied by the scale when text is written: choose as much style as you like."
            shown.append(html.figure(title, plots.strength(f"strength-{len(shown)}", panels), explanation))
    return html.figures(shown)


def _scaled(subject: Record, key: str, colour: str, named: bool) -> Line:
    points = [(number(entry, "scale"), number(entry, key)) for entry in subject["strength"]]
    known = sorted((scale, value) for scale, value in points if scale is not None and value is not None)
    return Line(view.title(subject) if named else "", colour, [x for x, _ in known], [y for _, y in known])
