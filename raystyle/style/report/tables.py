"""The report's tables: copying and drift of every subject beside their controls, the author's markers, profiles of texts."""

from typing import Any

from raystyle import html
from raystyle.html import Markup
from raystyle.style import profile as profiles
from raystyle.style.report import view
from raystyle.style.report.view import at, number

Record = dict[str, Any]

MARKERS, MORE_MARKERS = 16, 200
OTHERS_IN_PROFILE = 4


def shown(record: Record | None, *names: str, form: str) -> str:
    """A number in the form that is asked for; a dash where there is none."""
    value = number(record, *names)
    return "–" if value is None else form.format(value)


def copying(evaluation: Record) -> Markup:
    """What each subject shares with the training text, and the author's own held-out text, which shares what is no copy."""

    def row(name: Markup, copying: Record) -> tuple[object, ...]:
        shares = [
            shown(copying, key, form="{:.1%}")
            for key in ("copied_share", "overlap", "extraction_rate", "heldout_extraction_rate")
        ]
        return (name, at(copying, "longest"), *shares)

    rows = [row(html.visible(view.title(s)), s.get("copying") or {}) for s in view.subjects(evaluation)]
    if own := at(evaluation, "reference", "copying"):
        rows.append(row(Markup("the author's held-out text"), own))
    extracted = ("training text extracted", "held-out text extracted")
    columns = ["", "longest, characters", "text copied", "13-grams shared", *extracted]
    said = (
        "Base and held-out text are the controls: what they share with the training text is no copying. Extracted: share of passages "
        "whose next 50 characters the model writes word for word when given their beginning."
    )
    return Markup(html.table(columns, rows, right=range(1, 6), names=True) + html.note(said)) if rows else Markup("")


def drift(evaluation: Record) -> Markup:
    """How far each subject is from the base, and what it does otherwise than the base."""
    everyone = view.subjects(evaluation)
    tasks = sorted({task for subject in everyone for task in at(subject, "drift", "obedience") or {}})
    measures = [
        ("drift: KL from the base, nats per token", ("drift", "divergence"), "{:.3f}"),
        ("neutral prose, bits per character", ("likelihood", "neutral", "value"), "{:.3f}"),
        ("samples that end in a loop", ("drift", "loop_rate"), "{:.1%}"),
        ("text that repeats itself", ("drift", "repetition"), "{:.1%}"),
        ("samples that end by themselves", ("drift", "end_rate"), "{:.1%}"),
        ("malformed characters", ("drift", "malformed_share"), "{:.2%}"),
        *((f"chat tasks obeyed: {html.plain(task)}", ("drift", "obedience", task), "{:.0%}") for task in tasks),
    ]
    rows = [
        (html.visible(label), *(shown(subject, *keys, form=form) for subject in everyone))
        for label, keys, form in measures
        if any(number(subject, *keys) is not None for subject in everyone)
    ]
    if not rows:
        return Markup("")
    # Subjects are columns while a page holds them, and rows where there are many.
    titles = [html.visible(view.title(subject)) for subject in everyone]
    if len(everyone) <= 7:
        table = html.table(["", *titles], rows, right=range(1, len(everyone) + 1), names=True)
    else:
        labels, *turned = zip(*rows, strict=True)
        by_subject = [(title, *values) for title, values in zip(titles, turned, strict=True)]
        table = html.table(["", *labels], by_subject, right=range(1, len(rows) + 1), names=True)
    return Markup(table + html.note("The base is the control: what it does too was not lost by training."))


def markers(evaluation: Record) -> Markup:
    """The author's markers, the surest first, and how often they occur in samples of the base and the recommended subject."""
    found = at(evaluation, "reference", "markers") or []
    base, best = view.base(evaluation), view.recommended(evaluation)
    compared = [subject for subject in (base, best) if subject and subject.get("markers")]

    def row(marker: Record) -> tuple[object, ...]:
        counts = [at(subject, "markers", "counts", marker.get("term", "")) or 0 for subject in compared]
        spread = number(marker, "spread")
        return (
            Markup(f"<mark>{html.visible(str(marker.get('term', '')))}</mark>"),
            html.visible(str(marker.get("kind") or "–")),
            shown(marker, "author_rate", form="{:.2f}"),
            shown(marker, "reference_rate", form="{:.2f}"),
            shown(marker, "z", form="{:.1f}"),
            "–" if spread is None else Markup(f"{html.meter(spread)} {spread:.0%}"),
            *counts,
        )

    if not found:
        return Markup("")
    names = [html.visible(f"in {view.title(subject)}'s samples") for subject in compared]
    columns = ["marker", "kind", "author, per 1,000", "others, per 1,000", "z", "author's chunks with it", *names]
    right = range(2, len(columns))
    rows = [row(marker) for marker in found[:MORE_MARKERS]]
    said = "Words and phrases that are the author's own, by weighted log-odds (z: how sure it is); the surest first."
    more = (
        html.details(f"{len(rows) - MARKERS} more", html.table(columns, rows[MARKERS:], right=right, names=True))
        if len(rows) > MARKERS
        else ""
    )
    return Markup(html.note(said) + html.table(columns, rows[:MARKERS], right=right, names=True) + more)


def profile(evaluation: Record) -> Markup:
    """Sentences, dialogue and punctuation of the author, of the recommended subject's and the base's samples, of others."""
    reference, best = evaluation.get("reference") or {}, view.recommended(evaluation)
    everyone: list[tuple[str, Record]] = [(view.author(evaluation), reference.get("profile") or {})]
    everyone += [(view.title(s), at(s, "stylometry", "profile") or {}) for s in (best, view.base(evaluation)) if s]
    others = sorted((reference.get("other_profiles") or {}).items())
    everyone += [(html.plain(name, 12), found) for name, found in others[:OTHERS_IN_PROFILE]]
    everyone = [(name, found) for name, found in everyone if found]
    keys = dict.fromkeys(key for _, found in everyone for key in found)
    rows = [
        (html.visible(profiles.LABELS.get(key, key)), *(shown(found, key, form=_form(key)) for _, found in everyone))
        for key in keys
        if any(number(found, key) for _, found in everyone)
    ]
    if not rows:
        return Markup("")
    return html.table(
        ["", *(html.visible(name) for name, _ in everyone)], rows, right=range(1, len(everyone) + 1), names=True
    )


def _form(key: str) -> str:
    """How a measure of a profile is written."""
    return "{:.1%}" if key.endswith("_share") else "{:,.3g}"
