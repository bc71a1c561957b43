"""Which checkpoint to take: as much style as can be had before copying, and why.

Style is how much of the way from the base to the author a subject has gone, as the mean of three shares: nearness by
stylometry, rate of the author's markers, and predictability of his held-out text. Against it stand what it copies and how
far it has drifted. A subject is on the frontier when no other is better in one of these and as good in the others
(Pareto). The recommended one has the most style of those that neither copy, nor loop, nor have begun to lose the
held-out text again; among near-equals it is the one that drifted least, as by the one-standard-error rule (Breiman et
al. 1984) the plainest of the models that are as good as the best.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from raystyle.style import likelihood
from raystyle.style.judgement import windows

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
# Styles that differ by less are equal: samples of another seed would differ as much.
STYLE_MARGIN = 0.03


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
    best_gain = max((_gain(subject) or 0.0 for subject in others), default=0.0)
    scores = {subject["name"]: _scores(subject, base, reference, best_gain) for subject in others}
    refused = {
        subject["name"]: reason for subject in others if (reason := _objection(scores[subject["name"]], subject, base))
    }
    sound = [subject for subject in others if subject["name"] not in refused]
    refused |= {subject["name"]: reason for subject in sound if (reason := _overfitted(subject, sound, raws))}
    by_name = {subject["name"]: subject for subject in others}
    chosen = _choose(scores, refused, by_name)
    return {
        "recommended": chosen,
        "reason": _reason(chosen, scores, refused, by_name),
        "statement": _statement(by_name[chosen]),
        "frontier": [name for name in scores if not any(_dominates(scores[n], scores[name]) for n in scores)],
        "scores": scores,
        "turned_down": refused,
    }


def _gain(subject: Mapping[str, Any]) -> float | None:
    gain = (subject["gain"] or {}).get("heldout")
    return gain["value"] if gain else None


def _scores(
    subject: Mapping[str, Any], base: Mapping[str, Any], reference: Mapping[str, Any], best_gain: float
) -> dict[str, Any]:
    shares = {
        "nearness": _nearness(subject, base, reference),
        "marker_share": _share(subject["markers"]["rate"], base["markers"]["rate"], reference["marker_rate"]),
        "predictability": _share(_gain(subject), 0.0, best_gain) if _gain(subject) is not None else None,
    }
    known = [share for share in shares.values() if share is not None]
    # Held against what may be chance on either side: a passage or two in a few samples are no habit.
    control = max(base["copying"]["copied_high"], reference["copying"]["copied_high"])
    copying = subject["copying"]
    extracted = (copying["extraction_rate"] or 0.0) - (copying["heldout_extraction_rate"] or 0.0)
    return shares | {
        "style": sum(known) / len(known) if known else 0.0,
        "divergence": subject["drift"]["divergence"],
        "copied_share": copying["copied_share"],
        "excess_copying": max(0.0, copying["copied_low"] - control),
        "excess_extraction": max(0.0, extracted),
        "excess_loops": max(0.0, subject["drift"]["loop_rate"] - base["drift"]["loop_rate"]),
    }


def _nearness(subject: Mapping[str, Any], base: Mapping[str, Any], reference: Mapping[str, Any]) -> float | None:
    own = sorted(reference["own_distances"])
    if not own or not subject["stylometry"] or not base["stylometry"]:
        return None
    # A base that is as near as the author's own text has no way to go.
    return _share(-subject["stylometry"]["distance"], -base["stylometry"]["distance"], -own[len(own) // 2])


def _share(value: float | None, start: float, goal: float) -> float | None:
    """How much of the way up from start to goal a value has gone, from 0 to 1; None where there is no way to go."""
    if value is None or goal - start < 1e-9:
        return None
    return min(1.0, max(0.0, (value - start) / (goal - start)))


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
    if gain and gain["high"] < 0:
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
        if other["step"] is not None and other["step"] < subject["step"] and _gain(other) is not None
    ]
    if not earlier or _gain(subject) is None:
        return None
    best = max(earlier, key=lambda other: (_gain(other), other["name"]))
    lost = likelihood.gain(windows(raws[subject["name"]], "heldout"), windows(raws[best["name"]], "heldout"))
    if lost.low <= MIN_LOST_BITS:
        return None
    return (
        f"the held-out text is {lost.value:.3f} bits per character less predictable than to {best['name']} "
        f"(95% interval {lost.low:.3f} to {lost.high:.3f})"
    )


def _choose(
    scores: Mapping[str, Mapping[str, Any]], refused: Mapping[str, str], by_name: Mapping[str, Mapping[str, Any]]
) -> str:
    allowed = [name for name in scores if name not in refused]
    if not allowed:  # the least harm: copied text first, then what held-out text lost
        harm = {
            name: (round(score["excess_copying"] + score["excess_extraction"], 2), -(_gain(by_name[name]) or 0.0), name)
            for name, score in scores.items()
        }
        return min(harm, key=lambda name: harm[name])
    most = max(scores[name]["style"] for name in allowed)
    near = [name for name in allowed if scores[name]["style"] >= most - STYLE_MARGIN]
    return min(near, key=lambda name: (scores[name]["divergence"], name))


def _reason(
    chosen: str,
    scores: Mapping[str, Mapping[str, Any]],
    refused: Mapping[str, str],
    by_name: Mapping[str, Mapping[str, Any]],
) -> str:
    score = scores[chosen]
    has = f"{chosen} has gone {score['style']:.0%} of the way from the base to the author"
    if len(scores) == 1 and chosen not in refused:
        return f"{has}, and nothing stands against it."
    if chosen in refused:
        return (
            f"{has}, but no choice is free of objections, and this one does the least harm. Of it: {refused[chosen]}."
        )
    drifted = f"at a drift of {score['divergence']:.2f} nats per token"
    above = [name for name in refused if scores[name]["style"] > score["style"]]
    if above:
        worst = max(above, key=lambda name: scores[name]["style"])
        return f"{has} {drifted}. {worst} would go {scores[worst]['style']:.0%}, but {refused[worst]}."
    near = [
        name
        for name in scores
        if name != chosen and name not in refused and scores[name]["style"] > score["style"] - STYLE_MARGIN
    ]
    if near:
        return f"{has} {drifted}; {' and '.join(near)} {'is' if len(near) == 1 else 'are'} as near to the author, and drifted further."
    return f"{has}, the most of all that neither copy nor loop, {drifted}."


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
    side = 1 if difference["low"] > 0 else -1 if difference["high"] < 0 else 0
    if heldout["value"] >= 0:
        sure = {1: "gained more than", 0: "did not clearly gain more than", -1: "gained less than"}[side]
    else:
        sure = {1: "lost less than", 0: "did not clearly lose less than", -1: "lost more than"}[side]
    return (
        f"{text}; {other[0]} became {_change(other[1])}. The target {sure} the rest: "
        f"{difference['value']:+.3f} bits per character (95% interval {difference['low']:+.3f} to {difference['high']:+.3f})."
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
