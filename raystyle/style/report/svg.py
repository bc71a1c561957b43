"""How the report draws: matplotlib figures as inline SVG in the page's colours and the reader's fonts.

Text stays text (`svg.fonttype: none`), so that the reader's fonts give Chinese glyphs; matplotlib, which may have none, only
places it, and nothing here relies on how wide it believes a label to be. Colours are names of the page's CSS variables, so
that a plot follows light, dark and print. Sizes are in SVG units, about a CSS pixel where two plots stand side by side.
The same numbers give the same bytes.
"""

import functools
import io
import itertools
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec

from raystyle.html import Markup, ems, escape, plain

Arguments = ParamSpec("Arguments")

WIDTH, TEXT = 460, 12
NAMES = ("ink", "soft", "line", "accent", "second", "third", "gain", "duplicates", "removed")
# matplotlib wants colours as numbers: these stand in for the variables until the drawing is done.
COLOURS = {name: f"#0a00{index:02x}" for index, name in enumerate(NAMES)}


def drawn(draw: Callable[Arguments, Any]) -> Callable[Arguments, Markup]:
    """A function that makes a figure as one that gives its SVG. Its first argument names the plot: unique in its page."""

    @functools.wraps(draw)
    def plot(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Markup:
        import matplotlib

        settings = {
            "svg.fonttype": "none",
            "svg.hashsalt": "raystyle",
            "text.parse_math": False,
            "font.family": "DejaVu Sans",
        }
        with warnings.catch_warnings(), matplotlib.rc_context(settings):
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            figure, file = draw(*args, **kwargs), io.StringIO()
            figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
        return _inline(file.getvalue(), str(args[0]))

    return plot


def _inline(svg: str, name: str) -> Markup:
    """matplotlib's file as part of a page: no head, no style of its own, ids that only this plot has, the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<(metadata|style)\b.*?</\1>|<!--.*?-->", "", svg, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', svg))
    svg = re.sub(r' id="([^"]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\1{name}-", svg)
    svg = re.sub(
        r"font: (?:(bold) )?([\d.]+px) [^;\"]*", lambda m: f"font-size: {m[2]}" + "; font-weight: 600" * bool(m[1]), svg
    )
    svg = re.sub(
        r' (?:d|x|y|transform)="[^"]+"', lambda m: re.sub(r"\d+\.\d{3,}", lambda n: f"{float(n[0]):.2f}", m[0]), svg
    )
    for variable, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{variable})")
    box = re.search(r'viewBox="[^"]+"', svg)
    opening = f'<svg {box[0] if box else ""} role="img" aria-label="{escape(name)}" xmlns:xlink="http://www.w3.org/1999/xlink">'
    return Markup(re.sub(r"\n\s*", "", re.sub(r"<svg[^>]*>", opening, svg, count=1).rstrip()))


def canvas(
    height: float, *, left: float = 46, right: float = 16, top: float = 12, bottom: float = 42, **grid: Any
) -> Any:
    """A figure and its axes, with margins in units."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72, facecolor="none")
    edges = {"left": left / WIDTH, "right": 1 - right / WIDTH, "top": 1 - top / height, "bottom": bottom / height}
    axes = figure.subplots(gridspec_kw={**edges, **grid.pop("gridspec_kw", {})}, squeeze=False, **grid)
    for each in axes.flat:
        each.set_facecolor("none")
        each.tick_params(colors=COLOURS["soft"], labelsize=TEXT - 1, length=0, pad=5)
        for side, spine in each.spines.items():
            spine.set_visible(side == "bottom")
            spine.set_color(COLOURS["line"])
        each.grid(axis="y", color=COLOURS["line"], linewidth=0.8)
        each.set_axisbelow(True)
        each.yaxis.set_major_locator(ticks(5))
        each.yaxis.set_major_formatter(short)
        each.xaxis.set_major_locator(ticks(6))
        each.xaxis.set_major_formatter(short)
    return figure, axes


def ticks(most: int, **rules: Any) -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(most, steps=[1, 2, 2.5, 5, 10], **rules)


def short(value: float, _: object = None) -> str:
    return f"{value:,.6g}"


def percents(value: float, _: object = None) -> str:
    return f"{100 * value:.3g}%"


def axis_labels(axes: Any, x_label: str, y_label: str = "", rise: float = 14) -> None:
    """The x axis' label below it; the y axis' above its top, where it is read without turning one's head."""
    axes.set_xlabel(x_label, fontsize=TEXT - 1, color=COLOURS["soft"], labelpad=6)
    if y_label:
        text_at(axes, 0, 1, y_label, -38, rise, "axes fraction", color="soft", fontsize=TEXT - 1)


def text_at(axes: Any, x: float, y: float, text: str, dx: float, dy: float, place: Any = "data", **style: Any) -> None:
    """A label this many units from a place in the data, or in other coordinates of the axes."""
    style = {"fontsize": TEXT, "va": "center", **style, "color": COLOURS[style["color"]]}
    axes.annotate(plain(text), (x, y), (dx, dy), place, textcoords="offset points", annotation_clip=False, **style)


def apart(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places moved as little as it takes to be `gap` apart, inside [low, high] while there is room."""
    order = sorted(range(len(places)), key=lambda n: places[n])
    moved = [min(max(place, low), high) for place in places]
    for before, after in itertools.pairwise(order):
        moved[after] = max(moved[after], moved[before] + gap)
    ceiling = high
    for index in reversed(order):
        moved[index] = min(moved[index], ceiling)
        ceiling = moved[index] - gap
    return moved


def end_labels(axes: Any, ends: Sequence[tuple[float, str, str]]) -> None:
    """Names of lines at their right ends, as (y, name, colour), moved apart where they would touch."""
    transform = axes.get_yaxis_transform()
    low, high = (axes.transAxes.transform((0, y))[1] for y in (0, 1))
    wanted = [transform.transform((1, y))[1] for y, _, _ in ends]
    for (y, label, colour), place, moved in zip(ends, wanted, apart(wanted, TEXT + 2, low, high), strict=True):
        text_at(axes, 1, y, plain(label, 6.6), 7, moved - place, transform, color=colour)


def free_labels(
    axes: Any,
    labels: Sequence[tuple[float, float, str, str]],
    points: Sequence[tuple[float, float]],
    ways: Sequence[tuple[tuple[float, float], tuple[float, float]]] = (),
) -> None:
    """Names near their points, (x, y, name, colour), first come first served: each where it covers least of the points, of
    the ways between them (start, end), and of the names before it."""
    low, high = axes.transAxes.transform([(0, 0), (1, 1)])
    along = [(a + (c - a) * n / 12, b + (d - b) * n / 12) for (a, b), (c, d) in ways for n in range(1, 12)]
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in (axes.transData.transform(p) for p in points)]
    taken += [(x - 2, y - 2, x + 2, y + 2) for x, y in (axes.transData.transform(p) for p in along)]
    for x, y, label, colour in labels:
        centre_x, centre_y = axes.transData.transform((x, y))
        width, height = TEXT * ems(plain(label, 14)), TEXT + 3
        options = []
        for reach in (9, 20, 34):
            for side, rise in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)):
                left = centre_x + side * reach - (0, width / 2, width)[(side <= 0) + (side < 0)]
                bottom = centre_y + rise * (reach + 3) - height / 2
                box = (left, bottom, left + width, bottom + height)
                outside = (
                    max(0, low[0] - box[0])
                    + max(0, box[2] - high[0])
                    + max(0, low[1] - box[1])
                    + max(0, box[3] - high[1])
                )
                options.append((sum(_common(box, other) for other in taken) + 20 * outside + reach / 10, box))
        _, box = min(options)
        taken.append(box)
        dx, dy = (box[0] + box[2]) / 2 - centre_x, (box[1] + box[3]) / 2 - centre_y
        text_at(axes, x, y, plain(label, 14), dx, dy, color=colour, ha="center", fontweight="bold")


def _common(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """The area that two boxes (left, bottom, right, top) share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def limits(values: Sequence[float], from_zero: bool = False) -> tuple[float, float]:
    """The ends of an axis around the values; from zero for what is counted."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    low = min(low, 0.0) if from_zero else low
    margin = 0.08 * ((high - low) or abs(high) or 1.0)
    return (low if from_zero and low == 0 else low - margin), high + margin


def row_room(labels: Sequence[str]) -> float:
    """The left margin that row labels need, as we count their width."""
    return 14 + TEXT * max((ems(plain(label, 12)) for label in labels), default=2)


def label_rows(axes: Any, labels: Sequence[str], best: int | None) -> None:
    """One row per subject with its name at the left, the recommended one in bold."""
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_yticks(range(len(labels)), [plain(label, 12) for label in labels], fontsize=TEXT)
    for index, text in enumerate(axes.get_yticklabels()):
        text.set_color(COLOURS["gain" if index == best else "soft"])
        text.set_fontweight("bold" if index == best else "normal")
