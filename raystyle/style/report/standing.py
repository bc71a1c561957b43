"""Figures of where the samples stand: among the authors, within the author's own spread, and style against its price.

As figures.py: each takes an evaluation, its title says what was found, and it is empty where nothing was measured.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

from raystyle import html
from raystyle.html import Markup
from raystyle.style.report import maps, view
from raystyle.style.report.maps import Place
from raystyle.style.report.view import at, number

Record = dict[str, Any]
NOTHING = Markup("")
MOST_ROWS = 10


def plane(evaluation: Record) -> Markup:
    """Authors' chunks, and where each subject's samples are among them."""
    points = {name: _points(found) for name, found in (at(evaluation, "reference", "plane") or {}).items()}
    everyone, best, author = view.subjects(evaluation), view.recommended(evaluation), view.author(evaluation)
    there = [subject for subject in everyone if points.get(subject["name"])]
    own = points.get(str(evaluation.get("author")), [])
    if not own and not there:
        return NOTHING
    names = {subject["name"] for subject in everyone} | {str(evaluation.get("author"))}
    others = [(html.plain(name, 14), found) for name, found in sorted(points.items()) if name not in names and found]
    few = [subject["name"] for subject in view.chosen(evaluation, 6)]
    placed = []
    for subject in there:
        (x, y), named = _mean(points[subject["name"]]), subject["name"] in few
        place = Place(view.title(subject) if named else "", x, y, pale=not named, best=subject is best)
        placed.append((place, points[subject["name"]] if named and len(points[subject["name"]]) > 1 else []))
    stops = [index for index, (place, _) in enumerate(placed) if not place.pale]
    arrows = list(itertools.pairwise(stops)) if view.have_steps(evaluation) else [(0, stop) for stop in stops[1:]]
    start = 0 if there and view.is_base(there[0]) else None
    arrows = arrows if start == 0 else []
    title = f"Where are the samples, beside {author} and the others?"
    if best and start == 0 and best in there and own:
        before, after = (math.dist(_mean(points[s["name"]]), _mean(own)) for s in (there[0], best))
        title = (
            f"The samples move toward {author}"
            if after < 0.85 * before
            else f"The samples do not come nearer to {author}"
        )
    legend = html.legend(
        [(author, "accent"), ("samples and their mean", "ink"), *([("recommended", "gain")] if best else [])]
    )
    return html.figure(
        title, maps.plane("plane", (author, own), others, placed, arrows),
        "Each pale point is a chunk of an author's text; near points use characters and function words alike. The plane keeps only "
        "the two directions in which the texts differ most, so the distances beside it are the measure, and this the picture.",
        legend,
    )  # fmt: skip


def _points(found: Any) -> list[tuple[float, float]]:
    pairs = [pair for pair in found or [] if isinstance(pair, list) and len(pair) == 2 and None not in pair]
    return [(float(x), float(y)) for x, y in pairs]


def _mean(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)


def distances(evaluation: Record) -> Markup:
    """Each subject's distance to the author within the author's own spread."""
    reference, author = evaluation.get("reference") or {}, view.author(evaluation)
    own = [float(d) for d in reference.get("own_distances") or [] if d is not None]
    others = [
        float(d) for found in (reference.get("other_distances") or {}).values() for d in found or [] if d is not None
    ]
    rows: list[tuple[str, float, str]] = []
    best, marked = view.recommended(evaluation), None
    for subject in view.chosen(evaluation, MOST_ROWS):
        distance, percentile = (number(subject, "stylometry", key) for key in ("distance", "percentile"))
        if distance is None:
            continue
        marked = len(rows) if subject is best else marked
        rows.append((view.title(subject), distance, "" if percentile is None else f"{percentile:.0f}%"))
    if not rows:
        return NOTHING
    before, after = (number(s, "stylometry", "percentile") for s in (view.base(evaluation), best))
    title = f"How near to {author} are the samples?"
    if best and before is not None and after is not None:
        title = f"{author}'s own chunks: {before:.0f}% are nearer than the base's samples, {after:.0f}% nearer than {view.title(best)}'s"
    sizes = {number(s, "stylometry", "chunk_chars") for s in view.subjects(evaluation)} - {None}
    other_size = sizes and sizes != {number(reference, "chunk_chars")}
    legend = html.legend(
        [(f"{author}'s own chunks", "accent"), *([("other authors' chunks", "second")] if others else [])]
    )
    return html.figure(
        title, maps.distances("distances", own, others, rows, marked),
        "Authors differ from themselves too: the share at the right says how many of the author's own chunks are nearer to the author's "
        "whole than the samples are. Inside the pale band, which holds the nearest 95%, this measure cannot tell samples from the author."
        + (" The samples are shorter than the chunks drawn here, and shorter text lies farther out: the share allows for it." if other_size else ""),
        legend,
    )  # fmt: skip


def frontier(evaluation: Record) -> Markup:
    """Style against drift, and style against copying: two figures."""
    scores, edge = at(evaluation, "verdict", "scores") or {}, at(evaluation, "verdict", "frontier") or []
    best, labelled = view.recommended(evaluation), [s["name"] for s in view.chosen(evaluation, 6)]
    asked = [
        ("divergence", "How much style, at how much drift?", "drift: KL from the base, nats per token", False,
         "Up is more of the author, right is farther from the base on neutral prose."),
        ("excess_copying", "How much style, at how much copying?", "text copied beyond what base and held-out text share", True,
         "Up is more of the author, right is more text taken over word for word."),
    ]  # fmt: skip
    shown = []
    for key, title, label, percent, explanation in asked:
        # The base has neither drift nor more copies than itself, by definition.
        places = [Place("base", 0.0, number(scores, "base", "style") or 0.0, pale=True)]
        for subject in view.subjects(evaluation):
            if view.is_base(subject):
                continue
            x, y = number(scores, subject["name"], key), number(scores, subject["name"], "style")
            if x is not None and y is not None:
                name = view.title(subject) if subject["name"] in labelled else ""
                places.append(Place(name, x, y, pale=subject["name"] not in edge, best=subject is best))
        if len(places) > 1:
            explanation += " Pale: the base, and those that another equals or beats in everything. The ring is the recommended one."
            shown.append(
                html.figure(
                    title,
                    maps.frontier(
                        f"frontier-{key}", places, label, course=view.have_steps(evaluation), percent=percent
                    ),
                    explanation,
                )
            )
    return html.figures(shown) if shown else NOTHING
