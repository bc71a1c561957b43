"""An evaluation as its report reads it: values that may be missing, subjects by the names people use, and which to show.

`evaluation` is evaluation.json as read back. Nothing here fails on a part that was not measured: it is None.
"""

import math
import re
from typing import Any

from raystyle import html

CHECKPOINT = re.compile(r"(.*/)?step-(\d{1,12})")
SURROGATE = re.compile("[\ud800-\udfff]")  # half a character, which JSON can carry and UTF-8 cannot


def readable(value: Any) -> Any:
    """The same values without what cannot be shown: numbers that are none are None, half characters are U+FFFD."""
    if isinstance(value, dict):
        return {readable(name): readable(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [readable(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return SURROGATE.sub("\ufffd", value) if isinstance(value, str) else value


def at(record: Any, *names: str) -> Any:
    """What stands under these names, one inside the other; None where any of them is missing."""
    for name in names:
        if not isinstance(record, dict):
            return None
        record = record.get(name)
    return record


def number(record: Any, *names: str) -> float | None:
    """The same, if it is a number."""
    value = at(record, *names)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def is_base(subject: dict[str, Any]) -> bool:
    """Whether this is the model before training."""
    return subject.get("kind") == "base"


def title(subject: dict[str, Any]) -> str:
    """A subject as people call it: base, step 300, or the adapter's name."""
    name = str(subject.get("name", "?"))
    step = CHECKPOINT.fullmatch(name)
    return (
        "base"
        if is_base(subject)
        else f"{html.plain(step[1] or '')}step\u00a0{int(step[2]):,}"
        if step
        else html.plain(name)
    )


def worded(evaluation: dict[str, Any], sentence: object) -> str:
    """A sentence of the verdict with the subjects in it called as people call them."""
    titles = {str(s.get("name")): title(s) for s in subjects(evaluation) if CHECKPOINT.fullmatch(str(s.get("name")))}
    if not titles:
        return str(sentence)
    names = "|".join(re.escape(name) for name in sorted(titles, key=len, reverse=True))
    said = re.sub(names, lambda found: titles[found[0]], str(sentence))
    return re.sub(r"(^|\. )step\u00a0", "\\1Step\u00a0", said)


def subjects(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """The base first, then what was trained, by its step where it has one."""
    return sorted(
        evaluation.get("subjects") or [],
        key=lambda s: (not is_base(s), s["step"] if isinstance(s.get("step"), int) else math.inf),
    )


def have_steps(evaluation: dict[str, Any]) -> bool:
    """Whether what was trained is one run's course: at least two subjects, each with a step of its own."""
    steps = [subject.get("step") for subject in subjects(evaluation) if not is_base(subject)]
    return len(steps) > 1 and all(isinstance(step, int) for step in steps) and len(set(steps)) == len(steps)


def step(subject: dict[str, Any]) -> int:
    """Where a subject stands in the run's course; the base is its start."""
    return 0 if is_base(subject) else int(subject["step"])


def base(evaluation: dict[str, Any]) -> dict[str, Any] | None:
    """The model before training, if it was measured."""
    return next((subject for subject in subjects(evaluation) if is_base(subject)), None)


def recommended(evaluation: dict[str, Any]) -> dict[str, Any] | None:
    """The subject that the verdict names, if there is one."""
    name = at(evaluation, "verdict", "recommended")
    return next((subject for subject in subjects(evaluation) if subject.get("name") == name), None)


def chosen(evaluation: dict[str, Any], most: int) -> list[dict[str, Any]]:
    """At most so many subjects: the base, the recommended and the last one, and others evenly between."""
    everyone = subjects(evaluation)
    if len(everyone) <= most:
        return everyone
    best = recommended(evaluation)
    keep = {0, len(everyone) - 1} | ({everyone.index(best)} if best else set())
    for place in sorted(range(most), key=lambda n: abs(n - most / 2)):
        if len(keep) < most:
            keep.add(round(place * (len(everyone) - 1) / (most - 1)))
    return [everyone[index] for index in sorted(keep)]


def author(evaluation: dict[str, Any]) -> str:
    """The target author's name, short enough for a sentence."""
    return html.plain(str(evaluation.get("author") or "the author"))
