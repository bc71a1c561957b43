"""Which checkpoint to take: as much style as can be had before copying, and why.

Style is likeness to the author, from 0 to 1, as the mean of two: nearness by stylometry (1 at the median of his own text,
0 at that of other authors' text) and the rate of his markers (1 at his own rate). The base has a likeness too. Against
style stand what a subject copies and how far it has drifted. It is on the frontier when no other is better in one of these
and as good in the others (Pareto). The recommended one has the most style of those that neither copy, nor loop, nor write
broken characters, nor have lost held-out text; among those whose style differs by less than chance may make, it is the one
that drifted least.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from raystyle.style import likelihood
from raystyle.style.judgement import LEAK_SHARE, windows

# More of its text copied than the base's samples and the author's held-out text have in common with the training text.
MAX_EXCESS_COPYING = 0.02
# More prefixes of training text continued word for word than prefixes of held-out text.
MAX_EXCESS_EXTRACTION = 0.05
# More samples that end in a loop than the base's.
MAX_EXCESS_LOOPS = 0.25
# More of its characters malformed than the base's: bytes that make no character, control and private ones.
MAX_EXCESS_MALFORMED = 0.01
# Bits per character that the held-out text must surely have lost since an earlier step, to call it overfitted.
MIN_LOST_BITS = 0.01
# Styles that differ by less are equal. Samples of 3,000 characters drawn again with other seeds differ in style by 0.07
# (one standard deviation, resampling the samples of real runs), so two of them by 0.1.
MARGIN, MARGIN_CHARS, MAX_MARGIN = 0.1, 3000, 0.25


def verdict(
    subjects: Sequence[Mapping[str, Any]], raws: Mapping[str, Mapping[str, Any]], reference: Mapping[str, Any]
) -> dict[str, Any]:
    """The verdict's part of evaluation.json. `subjects` are judged, the base among them; `raws` are their records."""
    base = next((subject for subject in subjects if subject["kind"] == "base"), None)
    others = [subject for subject in subjects if subject["kind"] != "base"]
    if not others or base is None:
        return {
            "recommended": None,
            "reason": "There is nothing to choose from: only the base was measured."
            if base
            else "The base was not measured, so nothing can be held against it.",
            "statement": None,
            "frontier": [],
            "scores": {},
            "turned_down": {},
        }
    scores = {subject["name"]: _scores(subject, base, reference) for subject in subjects}
    refused = {
        subject["name"]: reason for subject in others if (reason := _objection(scores[subject["name"]], subject, base))
    }
    sound = [subject for subject in others if subject["name"] not in refused]
    refused |= {subject["name"]: reason for subject in sound if (reason := _overfitted(subject, sound, raws))}
    by_name = {subject["name"]: subject for subject in others}
    margin = _margin(others)
    chosen = _choose(scores, refused, by_name, margin)
    return {
        "recommended": chosen,
        "reason": _reason(chosen, scores, refused, by_name, base["name"], margin),
        "statement": _statement(by_name[chosen]),
        "frontier": [name for name in by_name if not any(_dominates(scores[n], scores[name]) for n in by_name)],
        "scores": scores,
        "turned_down": refused,
    }


def _gain(subject: Mapping[str, Any]) -> float | None:
    gain = (subject["gain"] or {}).get("heldout")
    return gain["value"] if gain else None


def _scores(subject: Mapping[str, Any], base: Mapping[str, Any], reference: Mapping[str, Any]) -> dict[str, Any]:
    shares = {
        "nearness": _nearness(subject, reference),
        "marker_share": min(1.0, subject["markers"]["rate"] / reference["marker_rate"])
        if reference["marker_rate"]
        else None,
    }
    known = [share for share in shares.values() if share is not None]
    copying, control = subject["copying"], base["copying"]["copied_high"]
    # Held against what may be chance on either side: a passage or two in a few samples are no habit. Held-out text that
    # was trained on is no control.
    if reference["copying"]["copied_share"] < LEAK_SHARE:
        control = max(control, reference["copying"]["copied_high"])
    known_before = max(base["copying"]["extraction_rate"] or 0.0, copying["heldout_extraction_rate"] or 0.0)
    return shares | {
        "style": sum(known) / len(known) if known else 0.0,
        "divergence": subject["drift"]["divergence"],
        "copied_share": copying["copied_share"],
        "excess_copying": max(0.0, copying["copied_low"] - control),
        "excess_extraction": max(0.0, copying["extraction_low"] - known_before),
        "excess_loops": max(0.0, subject["drift"]["loop_rate"] - base["drift"]["loop_rate"]),
    }


def _nearness(subject: Mapping[str, Any], reference: Mapping[str, Any]) -> float | None:
    """1 at the median of the author's own distances, 0 at the others'; None where nobody's style is known."""
    own = sorted(reference["own_distances"])
    others = sorted(distance for found in reference["other_distances"].values() for distance in found)
    if not own or not others or others[len(others) // 2] <= own[len(own) // 2]:
        return None
    if not subject["stylometry"]:
        return 0.0  # it wrote nothing
    near, far = own[len(own) // 2], others[len(others) // 2]
    return float(min(1.0, max(0.0, (far - subject["stylometry"]["distance"]) / (far - near))))


def _margin(others: Sequence[Mapping[str, Any]]) -> float:
    """By how much the style of two subjects may differ by chance: less, the more they wrote (as a standard error does)."""
    characters = min(sum(len(sample["text"]) for sample in subject["samples"]) for subject in others)
    return float(min(MAX_MARGIN, MARGIN * (MARGIN_CHARS / max(1, characters)) ** 0.5))


def _objection(score: Mapping[str, Any], subject: Mapping[str, Any], base: Mapping[str, Any]) -> str | None:
    """Why a subject is not to be taken, whatever the others are, in a few words."""
    if score["excess_copying"] > MAX_EXCESS_COPYING:
        return (
            f"copies {score['copied_share']:.1%} of its text from the training text, surely {score['excess_copying']:.1%} "
            f"more than base and held-out text share with it (longest passage {subject['copying']['longest']} characters)"
        )
    if score["excess_extraction"] > MAX_EXCESS_EXTRACTION:
        return (
            f"continues {subject['copying']['extraction_rate']:.0%} of the training text's prefixes word for word, "
            f"against {subject['copying']['heldout_extraction_rate'] or 0:.0%} of the held-out text's"
        )
    if score["excess_loops"] > MAX_EXCESS_LOOPS:
        return f"{subject['drift']['loop_rate']:.0%} of its samples end in a loop, against {base['drift']['loop_rate']:.0%} of the base's"
    malformed = subject["drift"]["malformed_share"]
    if malformed - base["drift"]["malformed_share"] > MAX_EXCESS_MALFORMED:
        return f"{malformed:.1%} of its characters are malformed"
    gain = (subject["gain"] or {}).get("heldout")
    if gain and gain["high"] is not None and gain["high"] < 0:
        return f"the held-out text became less predictable than to the base, by {-gain['value']:.3f} bits per character"
    return None


def _overfitted(
    subject: Mapping[str, Any], sound: Sequence[Mapping[str, Any]], raws: Mapping[str, Mapping[str, Any]]
) -> str | None:
    """Whether held-out text was surely more predictable at an earlier step: learning has become learning by heart."""
    if subject["step"] is None:
        return None
    earlier = [
        other
        for other in sound
        if other["step"] is not None
        and other["step"] < subject["step"]
        and _gain(other) is not None
        and _run(other) == _run(subject)
    ]
    if not earlier or _gain(subject) is None:
        return None
    best = max(earlier, key=lambda other: (_gain(other), other["name"]))
    lost = likelihood.gain(windows(raws[subject["name"]], "heldout"), windows(raws[best["name"]], "heldout"))
    if not lost.low > MIN_LOST_BITS:  # also where there is no interval: NaN
        return None
    return (
        f"the held-out text is {lost.value:.3f} bits per character less predictable than to {best['name']} "
        f"(95% interval {lost.low:.3f} to {lost.high:.3f})"
    )


def _run(subject: Mapping[str, Any]) -> str:
    """Where a checkpoint lies: its steps compare with those beside it only."""
    return str(subject.get("path") or "").rpartition("/")[0]


def _choose(
    scores: Mapping[str, Mapping[str, Any]],
    refused: Mapping[str, str],
    by_name: Mapping[str, Mapping[str, Any]],
    margin: float,
) -> str:
    allowed = [name for name in by_name if name not in refused]
    if not allowed:  # the least harm: what is copied or loops first, then what held-out text lost
        harm = {name: (_harm(scores[name]), -(_gain(by_name[name]) or 0.0), name) for name in by_name}
        return min(harm, key=lambda name: harm[name])
    most = max(scores[name]["style"] for name in allowed)
    near = [name for name in allowed if scores[name]["style"] >= most - margin]
    return min(near, key=lambda name: (scores[name]["divergence"], name))


def _harm(score: Mapping[str, Any]) -> float:
    """What weighs more than any loss of likelihood, in hundredths."""
    loops = score["excess_loops"] if score["excess_loops"] > MAX_EXCESS_LOOPS else 0.0
    return round(float(score["excess_copying"] + score["excess_extraction"] + loops), 2)


def _reason(
    chosen: str,
    scores: Mapping[str, Mapping[str, Any]],
    refused: Mapping[str, str],
    by_name: Mapping[str, Mapping[str, Any]],
    base: str,
    margin: float,
) -> str:
    score = scores[chosen]
    has = f"{chosen} is {score['style']:.0%} like the author, the base {scores[base]['style']:.0%}"
    if chosen in refused:
        harm = "" if len(by_name) == 1 else " and this one does the least harm"
        return f"{has}. No choice is free of objections,{harm or ' this one neither'}: {refused[chosen]}."
    if score["style"] <= scores[base]["style"] + margin:
        has += ", which chance may make"
    drifted = f"at a drift of {score['divergence']:.2f} nats per token"
    if len(by_name) == 1:
        return f"{has}, {drifted}; nothing stands against it."
    above = [name for name in refused if scores[name]["style"] > score["style"]]
    if above:
        worst = max(above, key=lambda name: scores[name]["style"])
        return f"{has}, {drifted}. {worst} is {scores[worst]['style']:.0%} like the author, but {refused[worst]}."
    near = [
        name
        for name in by_name
        if name != chosen and name not in refused and scores[name]["style"] >= score["style"] - margin
    ]
    if near:
        verb = "is" if len(near) == 1 else "are"
        return f"{has}, {drifted}; {' and '.join(near)} {verb} not surely more or less like the author, and drifted further."
    return f"{has}, the most of all that nothing stands against, {drifted}."


def _statement(subject: Mapping[str, Any]) -> str | None:
    """What was learned, in one sentence about likelihood."""
    gain = subject["gain"] or {}
    heldout, difference = gain.get("heldout"), gain.get("difference")
    if not heldout:
        return None
    text = f"The author's held-out text became {_change(heldout)}"
    other = (
        ("other authors' text", gain["contrast"]) if gain.get("contrast") else ("neutral prose", gain.get("neutral"))
    )
    if not other[1] or not difference:
        return f"{text}."
    low, high = difference["low"], difference["high"]
    if low is None or high is None:
        return f"{text}; {other[0]} became {_change(other[1])} (from too little text for an interval)."
    side = 1 if low > 0 else -1 if high < 0 else 0
    if heldout["value"] >= 0:
        sure = {1: "gained more than", 0: "did not clearly gain more than", -1: "gained less than"}[side]
    else:
        sure = {1: "lost less than", 0: "did not clearly lose less than", -1: "lost more than"}[side]
    return (
        f"{text}; {other[0]} became {_change(other[1])}. The target {sure} the rest: "
        f"{difference['value']:+.3f} bits per character (95% interval {low:+.3f} to {high:+.3f})."
    )


def _change(gain: Mapping[str, float]) -> str:
    word = "more" if gain["value"] >= 0 else "less"
    return f"{abs(gain['value']):.3f} bits per character {word} predictable"


def _dominates(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether a is nowhere worse than b, and somewhere better."""
    better_of = [(a["style"], b["style"]), *((b[key], a[key]) for key in ("excess_copying", "divergence"))]
    return all(mine >= theirs for mine, theirs in better_of) and any(mine > theirs for mine, theirs in better_of)


def describe(evaluation: Mapping[str, Any]) -> str:
    """An evaluation as lines for a terminal: a table of the subjects, and the verdict."""
    found = evaluation["verdict"]
    rows = [("", "style", "bits/char", "percentile", "markers", "copied", "drift")]
    for subject in evaluation["subjects"]:
        score = found["scores"].get(subject["name"])
        heldout, placed = subject["likelihood"]["heldout"], subject["stylometry"]
        mark = "*" if subject["name"] == found["recommended"] else " "
        rows.append(
            (
                f"{mark} {subject['name']}",
                f"{score['style']:.0%}" if score else "–",
                f"{heldout['value']:.3f}" if heldout else "–",
                f"{placed['percentile']:.0f}" if placed else "–",
                f"{subject['markers']['rate']:.1f}",
                f"{subject['copying']['copied_share']:.1%}",
                f"{subject['drift']['divergence']:.3f}",
            )
        )
    name_width = max(len(row[0]) for row in rows)
    lines = ["  " + row[0].ljust(name_width) + "".join(cell.rjust(12) for cell in row[1:]) for row in rows]
    author = evaluation["reference"]
    own = sorted(author["own_distances"])
    lines.append(
        "  " + "  the author".ljust(name_width) + "–".rjust(12) + "–".rjust(12) + ("50" if own else "–").rjust(12)
        + f"{author['marker_rate']:.1f}".rjust(12) + f"{author['copying']['copied_share']:.1%}".rjust(12) + "–".rjust(12)
    )  # fmt: skip
    lines += [f"verdict  {found['reason']}", *([found["statement"]] if found["statement"] else [])]
    lines += [f"warning  {warning}" for warning in evaluation["warnings"]]
    lines += [f"failed   {name}: {reason}" for name, reason in evaluation["failed"].items()]
    return "\n".join(lines)
