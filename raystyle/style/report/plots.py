"""Plots of measures over training, over subjects and over the adapter's scale: plain numbers in, SVG out.

What they show and say is figures.py's, how they are drawn svg.py's. The first argument of each names the plot, and is unique
in its page. Colours are names of the page's variables.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from raystyle.style.report.svg import (
    COLOURS,
    axis_labels,
    canvas,
    drawn,
    end_labels,
    label_rows,
    limits,
    percents,
    row_room,
    short,
    text_at,
    ticks,
)

Point = tuple[float, float]

DASHED = (0, (4, 3))


class Line(NamedTuple):
    """A measure over steps or over subjects: values with an interval where there is one, None where nothing was measured."""

    label: str
    colour: str
    xs: Sequence[float]
    values: Sequence[float | None]
    lows: Sequence[float | None] = ()
    highs: Sequence[float | None] = ()

    def points(self) -> Iterator[tuple[float, float, float, float]]:
        """(x, value, low, high) where a value is; without an interval all three are the value."""
        for index, (x, value) in enumerate(zip(self.xs, self.values, strict=True)):
            if value is not None:
                low = self.lows[index] if self.lows else None
                high = self.highs[index] if self.highs else None
                yield x, value, value if low is None else low, value if high is None else high


class Level(NamedTuple):
    """A value that a measure is seen beside, such as the author's own."""

    label: str
    value: float
    colour: str


@drawn
def over_steps(
    name: str,
    lines: Sequence[Line],
    y_label: str,
    *,
    levels: Sequence[Level] = (),
    best: float | None = None,
    from_zero: bool = False,
    percent: bool = False,
) -> Any:
    """Measures over the course of training with their intervals; `best` is the recommended step."""
    figure, axes = canvas(300, top=44, right=88)
    axes = axes[0, 0]
    ends = [(level.value, level.label, level.colour) for level in levels]
    everything = [level.value for level in levels]
    for line in lines:
        points = list(line.points())
        if not points:
            continue
        xs, values, lows, highs = zip(*points, strict=True)
        everything += [*lows, *highs]
        axes.fill_between(xs, lows, highs, color=COLOURS[line.colour], alpha=0.15, linewidth=0)
        dots = "o" if len(points) <= 40 else ""
        axes.plot(xs, values, marker=dots, markersize=4.5, linewidth=1.8, color=COLOURS[line.colour], clip_on=False)
        ends.append((values[-1], line.label, line.colour))
    for level in levels:
        axes.axhline(level.value, color=COLOURS[level.colour], linewidth=1.4, linestyle=DASHED)
    axes.set_ylim(*limits(everything, from_zero))
    axes.xaxis.set_major_locator(ticks(5, integer=True))
    axes.yaxis.set_major_formatter(percents if percent else short)
    if best is not None:
        axes.axvline(best, color=COLOURS["gain"], linewidth=1.2, zorder=0.9)
        text_at(axes, best, 1, "recommended", 0, 7, axes.get_xaxis_transform(), color="gain", ha="center")
    end_labels(axes, ends)
    axis_labels(axes, "optimizer step", y_label, 26)
    return figure


@drawn
def in_rows(
    name: str,
    labels: Sequence[str],
    lines: Sequence[Line],
    x_label: str,
    *,
    levels: Sequence[Level] = (),
    best: int | None = None,
    from_zero: bool = False,
    percent: bool = False,
) -> Any:
    """The same for subjects that are no course: one row each, a point per measure; `best` is the recommended row."""
    figure, axes = canvas(80 + 28 * len(labels), left=row_room(labels), top=28 if levels else 12)
    axes = axes[0, 0]
    everything = [level.value for level in levels]
    for place, line in enumerate(lines):
        shift = 0.2 * (place - (len(lines) - 1) / 2)
        for x, value, low, high in line.points():
            everything += [low, high]
            axes.plot([low, high], [x + shift] * 2, color=COLOURS[line.colour], linewidth=1.8)
            axes.plot([value], [x + shift], marker="o", markersize=6, color=COLOURS[line.colour])
    axes.set_xlim(*limits(everything, from_zero))
    for level in levels:
        axes.axvline(level.value, color=COLOURS[level.colour], linewidth=1.4, linestyle=DASHED)
        text_at(axes, level.value, 1, level.label, 0, 8, axes.get_xaxis_transform(), color=level.colour, ha="center")
    label_rows(axes, labels, best)
    axes.xaxis.set_major_formatter(percents if percent else short)
    axis_labels(axes, x_label)
    return figure


@drawn
def loss(
    name: str, training: Sequence[Point], heldout: Sequence[Point], band: tuple[float, float] | None = None
) -> Any:
    """Loss over steps in nats per token, single steps pale behind their running mean; `band` is where it should start and end."""
    figure, axes = canvas(300, top=44, right=88)
    axes = axes[0, 0]
    ends, values = [], [y for _, y in (*training, *heldout)]
    if band:
        axes.axhspan(min(band), max(band), color=COLOURS["gain"], alpha=0.12, linewidth=0)
        ends += [(value, f"{value:g} {word}", "gain") for value, word in zip(band, ("start", "end"), strict=True)]
        values += band
    if training:
        xs, ys = zip(*training, strict=True)
        smooth = running_mean(ys, len(ys) // 25)
        axes.plot(xs, ys, linewidth=1, color=COLOURS["accent"], alpha=0.35)
        axes.plot(xs, smooth, linewidth=1.8, color=COLOURS["accent"])
        ends.append((smooth[-1], "training", "accent"))
    if heldout:
        axes.plot(*zip(*heldout, strict=True), marker="o", markersize=4.5, linewidth=1.6, color=COLOURS["second"])
        ends.append((heldout[-1][1], "held out", "second"))
    axes.set_ylim(*limits(values))
    axes.xaxis.set_major_locator(ticks(5, integer=True))
    end_labels(axes, ends)
    axis_labels(axes, "optimizer step", "loss in nats per token", 26)
    return figure


def running_mean(values: Sequence[float], reach: int) -> list[float]:
    """Each value as the mean of those up to `reach` before and after it."""
    windows = (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


@drawn
def strength(name: str, panels: Sequence[tuple[str, Sequence[Line], Sequence[Level], bool]]) -> Any:
    """Measures along the adapter's scale, one panel (label, lines, levels, percent) below the other; scale 1 is as trained."""
    figure, axes = canvas(
        40 + 128 * len(panels), top=30, right=88, nrows=len(panels), sharex=True, gridspec_kw={"hspace": 0.38}
    )
    for each, (label, lines, levels, percent) in zip(axes[:, 0], panels, strict=True):
        points = [(line, list(line.points())) for line in lines]
        for line, measured in points:
            xs, values = [x for x, *_ in measured], [value for _, value, *_ in measured]
            each.plot(xs, values, marker="o", markersize=4.5, linewidth=1.8, color=COLOURS[line.colour], clip_on=False)
        for level in levels:
            each.axhline(level.value, color=COLOURS[level.colour], linewidth=1.4, linestyle=DASHED)
        each.axvline(1, color=COLOURS["gain"], linewidth=1)
        values = [value for _, measured in points for _, value, *_ in measured] + [level.value for level in levels]
        each.set_ylim(*limits(values, from_zero=min(values) >= 0 and min(values) < max(values) / 2))
        each.yaxis.set_major_locator(ticks(3))
        each.yaxis.set_major_formatter(percents if percent else short)
        ends = [(measured[-1][1], line.label, line.colour) for line, measured in points if measured and line.label]
        end_labels(each, [*ends, *((level.value, level.label, level.colour) for level in levels)])
        axis_labels(each, "", label)
    axis_labels(axes[-1, 0], "scale of the adapter at inference (0 the base, 1 as trained)")
    return figure
