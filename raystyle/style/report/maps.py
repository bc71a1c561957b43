"""Plots of where texts and subjects stand: the style plane, distances to the author, style against its price.

As plots.py: plain numbers in, SVG out, and the first argument names the plot.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from raystyle.style.report.svg import (
    COLOURS,
    TEXT,
    axis_labels,
    canvas,
    drawn,
    free_labels,
    label_rows,
    limits,
    percents,
    row_room,
    short,
    text_at,
)

Point = tuple[float, float]

SHAPES = "sD^vPXp"  # of the other authors, who are told apart without colour too
HUES = ("second", "duplicates", "third", "removed")


class Place(NamedTuple):
    """A subject at a place of a plane; `pale` when something else is better, `best` when it is recommended."""

    label: str
    x: float
    y: float
    pale: bool = False
    best: bool = False


@drawn
def plane(
    name: str,
    author: tuple[str, Sequence[Point]],
    others: Sequence[tuple[str, Sequence[Point]]],
    subjects: Sequence[tuple[Place, Sequence[Point]]],
    arrows: Sequence[tuple[int, int]],
) -> Any:
    """Authors' chunks as clouds, each subject's samples as small dots around its mean (the Place), and the way between means."""
    figure, axes = canvas(430, left=14, bottom=34)
    axes = axes[0, 0]
    labels = []
    for index, (label, points) in enumerate(others):
        hue = HUES[index % len(HUES)]
        axes.scatter(
            *zip(*points, strict=True),
            s=16,
            marker=SHAPES[index % len(SHAPES)],
            color=COLOURS[hue],
            alpha=0.4,
            linewidths=0,
        )
        labels.append((*_mean(points), label, hue))
    if author[1]:
        axes.scatter(*zip(*author[1], strict=True), s=20, color=COLOURS["accent"], alpha=0.5, linewidths=0)
        labels.insert(0, (*_mean(author[1]), author[0], "accent"))
    for start, end in arrows:
        (a, _), (b, _) = subjects[start], subjects[end]
        style = {
            "arrowstyle": "-|>,head_width=.25,head_length=.5",
            "color": COLOURS["ink"],
            "linewidth": 1.3,
            "shrinkA": 5,
            "shrinkB": 5,
        }
        axes.annotate("", (b.x, b.y), (a.x, a.y), arrowprops=style)
    for place, points in subjects:
        colour = COLOURS["gain" if place.best else "removed" if place.pale else "ink"]
        if points:
            axes.scatter(*zip(*points, strict=True), s=9, color=colour, alpha=0.45, linewidths=0)
        axes.plot([place.x], [place.y], "o", markersize=8 if place.best else 3 if place.pale else 6, color=colour)
    named = [(p.x, p.y, p.label, "gain" if p.best else "ink") for p, _ in subjects if p.label]
    axes.margins(0.08)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines["left"].set_visible(True)
    ways = [
        ((subjects[start][0].x, subjects[start][0].y), (subjects[end][0].x, subjects[end][0].y))
        for start, end in arrows
    ]
    free_labels(axes, [*named, *labels], [(p.x, p.y) for p, _ in subjects], ways)
    axis_labels(axes, "first principal component →")
    axes.set_ylabel("second →", fontsize=TEXT - 1, color=COLOURS["soft"], labelpad=2)
    return figure


def _mean(points: Sequence[Point]) -> Point:
    return sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)


@drawn
def distances(
    name: str,
    own: Sequence[float],
    others: Sequence[float],
    rows: Sequence[tuple[str, float, str]],
    best: int | None,
) -> Any:
    """How far the author's own chunks and the others' are from the author, and below it where each subject's samples are.

    `rows` are (subject, distance, remark at the right).
    """
    below = 26 * max(len(rows), 1)
    figure, axes = canvas(
        210 + below, left=row_room([label for label, _, _ in rows]), right=84, nrows=2, sharex=True,
        gridspec_kw={"height_ratios": [120, below], "hspace": 0.06},
    )  # fmt: skip
    above, under = axes[0, 0], axes[1, 0]
    everything = [*own, *others, *(distance for _, distance, _ in rows)]
    low, high = limits(everything)
    edges = [low + (high - low) * step / 30 for step in range(31)]
    groups = [(values, colour) for values, colour in ((others, "second"), (own, "accent")) if values]
    for values, colour in groups:
        shares = [1 / len(values)] * len(values)
        above.hist(
            values, bins=edges, weights=shares, color=COLOURS[colour], alpha=0.5, histtype="stepfilled", linewidth=0
        )
    above.set_yticks([])
    above.tick_params(labelbottom=False)
    for index, (_, distance, remark) in enumerate(rows):
        colour = "gain" if index == best else "ink"
        under.plot([low, distance], [index, index], color=COLOURS["line"], linewidth=1)
        under.plot([distance], [index], marker="o", markersize=7, color=COLOURS[colour])
        text_at(under, 1, index, remark, 8, 0, under.get_yaxis_transform(), color="gain" if index == best else "soft")
    for text, rise in (("own chunks", 21), ("nearer", 8)):
        text_at(under, 1, 1, text, 8, rise, "axes fraction", color="soft", fontsize=TEXT - 1)
    label_rows(under, [label for label, _, _ in rows], best)
    under.grid(visible=False)
    if own:
        edge = sorted(own)[int(0.95 * (len(own) - 1))]
        for each in (above, under):
            each.axvspan(min(own), edge, color=COLOURS["accent"], alpha=0.07, linewidth=0)
    under.set_xlim(low, high)
    axis_labels(under, "distance to the author (smaller is nearer)")
    return figure


@drawn
def frontier(name: str, places: Sequence[Place], x_label: str, *, course: bool, percent: bool = False) -> Any:
    """Style gained (0 to 1) against what it costs; where the places are a run's course, a line joins them in its order."""
    figure, axes = canvas(300, top=34)
    axes = axes[0, 0]
    points = [(place.x, place.y) for place in places]
    if course:
        axes.plot(*zip(*points, strict=True), color=COLOURS["removed"], linewidth=1.2, clip_on=False)
    for place in places:
        colour = "removed" if place.pale else "gain" if place.best else "accent"
        axes.plot([place.x], [place.y], "o", markersize=7, color=COLOURS[colour], clip_on=False)
        if place.best:
            axes.plot(
                [place.x], [place.y], "o", markersize=14, markerfacecolor="none", color=COLOURS["gain"], clip_on=False
            )
    # What costs next to nothing is drawn as next to nothing, not blown up until it looks like a price.
    axes.set_xlim(*limits([0.01 if percent else 0.05, *(p.x for p in places)]))
    axes.set_ylim(*limits([p.y for p in places]))
    axes.xaxis.set_major_formatter(percents if percent else short)
    named = [p for p in sorted(places, key=lambda p: (not p.best, p.pale)) if p.label]
    colours = ["gain" if p.best else "soft" if p.pale else "ink" for p in named]
    labels = [(p.x, p.y, p.label, c) for p, c in zip(named, colours, strict=True)]
    free_labels(axes, labels, points, list(itertools.pairwise(points)) if course else ())
    axis_labels(axes, x_label, "style (1 the author)")
    return figure
