"""The look that all reports share: a self-contained page, tables, and small SVG charts. No script, nothing fetched.

Text that comes from files is escaped here, and only `Markup` (what these functions return) is taken as it is.
"""

import html
import itertools
import math
import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence


class Markup(str):
    """HTML that is safe already."""


def escape(value: object) -> Markup:
    """A value as HTML text; numbers with thousands separators, nothing as a dash."""
    if isinstance(value, Markup):
        return value
    if value is None:
        return Markup("–")
    if isinstance(value, int) and not isinstance(value, bool):
        return Markup(f"{value:,}")
    if isinstance(value, float):
        return Markup(f"{value:,.4g}")
    return Markup(html.escape(str(value)))


STYLE = """
:root { color-scheme:light dark; --ink:#23262b; --soft:#6b7280; --line:#e4e2dc; --paper:#fbfaf7; --card:#fff; --accent:#a63d2f;
  --tint:#f3e5e1; --second:#2f6f8f; --third:#7a5ba6; --kept:#2f6f8f; --heldout:#7fb0c6; --duplicates:#c08a2e; --rejected:#a63d2f; --removed:#b4b1a8; --gain:#2e7d4f }
@media (prefers-color-scheme: dark) { :root { --ink:#e7e5e0; --soft:#9aa0a8; --line:#383a3f; --paper:#1c1d20; --card:#25272b;
  --accent:#e07a66; --tint:#46302b; --second:#7fb8d4; --third:#b9a0e0; --kept:#5b9dbd; --heldout:#355f73; --duplicates:#d6a650; --rejected:#e07a66;
  --removed:#63656b; --gain:#7cc79a } }
* { box-sizing:border-box; print-color-adjust:exact; -webkit-print-color-adjust:exact }
body { margin:0; background:var(--paper); color:var(--ink);
  font:15px/1.65 system-ui,"Noto Sans CJK SC","Source Han Sans SC","PingFang SC","Microsoft YaHei",sans-serif }
main { max-width:1060px; margin:0 auto; padding:3rem 1.5rem 5rem }
header { border-bottom:3px solid var(--accent); margin-bottom:2rem; padding-bottom:1rem }
h1,h2,.flow b { font-family:Georgia,"Noto Serif CJK SC","Source Han Serif SC","Songti SC",SimSun,serif }
h1 { font-weight:600; font-size:1.9rem; line-height:1.2; margin:0 }
header p { color:var(--soft); margin:.5rem 0 0 }
nav { margin-top:.6rem; font-size:.9rem } nav a { margin-right:1.1rem; white-space:nowrap }
a { color:var(--second); text-decoration:none } a:hover { text-decoration:underline }
section { margin:2.5rem 0 }
h2 { font-weight:600; font-size:1.2rem; line-height:1.3; margin:0 0 .75rem }
h3 { font-weight:600; font-size:.95rem; margin:1.4rem 0 .5rem }
small { color:var(--soft) }
.note { color:var(--soft); max-width:46rem } .lead { font-size:1.1rem; max-width:46rem; margin:0 0 1rem }
.scroll { overflow-x:auto; background:var(--card); border:1px solid var(--line); border-radius:8px }
table { border-collapse:collapse; width:100% }
th,td { text-align:left; padding:.4rem .8rem; border-bottom:1px solid var(--line); vertical-align:top }
th { color:var(--soft); font-weight:500; font-size:.85rem; white-space:nowrap }
tr:last-child td { border-bottom:0 }
td.n,th.n { text-align:right; font-variant-numeric:tabular-nums; white-space:nowrap }
code,.sample { font:13px/1.5 ui-monospace,Menlo,Consolas,"DejaVu Sans Mono","Noto Sans Mono CJK SC",monospace }
td { overflow-wrap:anywhere } code { white-space:nowrap }
.sample { display:block; background:var(--tint); border-radius:4px; padding:0 .4rem; margin:.15rem 0; width:fit-content; max-width:100% }
.changes { display:flex; flex-wrap:wrap; gap:.1rem 1rem }
.change { color:var(--soft); max-width:100%; overflow-wrap:anywhere }
.within { flex-basis:100% }
.change del { color:var(--ink); background:var(--tint); border-radius:3px; padding:.05em .2em; box-decoration-break:clone;
  text-decoration:line-through 1px color-mix(in srgb, var(--accent) 65%, transparent) }
.change ins { color:var(--gain); text-decoration:none; font-weight:600; padding:0 .2em }
.code { font:11px ui-monospace,monospace; opacity:.8 }
.flow { display:flex; flex-wrap:wrap; align-items:stretch; gap:.5rem }
.flow div { flex:1 1 8rem; background:var(--card); border:1px solid var(--line); border-radius:8px; padding:.8rem 1rem }
.flow b { display:block; font-weight:600; font-size:1.45rem; line-height:1.3; font-variant-numeric:tabular-nums; overflow-wrap:anywhere }
.flow div.out { border-color:var(--accent) }
.cards { display:grid; gap:.6rem }
.card { background:var(--card); border:1px solid var(--line); border-radius:8px; padding:.7rem 1rem; break-inside:avoid }
.card p { margin:.1rem 0 .4rem; color:var(--soft) }
.card :last-child { margin-bottom:0 } .pair { padding:.15rem 0; overflow-wrap:anywhere } .pair small { margin-left:.5rem }
.head { display:flex; flex-wrap:wrap; gap:.2rem .8rem; align-items:baseline } .head > :last-child { margin-left:auto; white-space:nowrap }
.count { display:inline-block; min-width:4.2rem; text-align:right; font-weight:600; font-variant-numeric:tabular-nums }
.figure { display:inline-block; min-width:3.6rem; margin:0 1rem 0 .4rem; text-align:right; color:var(--soft); font-size:.85rem; font-variant-numeric:tabular-nums }
.tag { font-size:.78rem; color:var(--soft); border:1px solid var(--line); border-radius:9px; padding:0 .5rem; white-space:nowrap }
.meter { display:inline-block; width:5rem; height:.5rem; border-radius:3px; background:var(--line); overflow:hidden; vertical-align:middle }
.meter i { display:block; height:100% }
.stack { display:flex; height:1.4rem; border-radius:5px; overflow:hidden; gap:2px; margin:.8rem 0 .4rem }
.stack i { min-width:3px }
.equation { display:flex; flex-wrap:wrap; gap:0 .9rem; color:var(--soft); font-variant-numeric:tabular-nums }
.equation b { color:var(--ink); font-weight:600 }
.dot { display:inline-block; width:.7rem; height:.7rem; border-radius:2px; margin-right:.35rem }
details { margin:.6rem 0 } summary { color:var(--second); cursor:pointer }
svg { width:100%; height:auto; background:var(--card); border:1px solid var(--line); border-radius:8px }
.scroll svg { border:0; min-width:38rem; display:block }
svg text { fill:var(--soft); font:11px system-ui,"Noto Sans CJK SC",sans-serif }
svg text.strong { fill:var(--ink); font-size:13px; font-weight:600 }
.figures { display:grid; grid-template-columns:repeat(auto-fit,minmax(min(100%,22rem),1fr)); gap:0 1rem; align-items:stretch; margin:1rem 0 }
.plot { display:grid; grid-template:subgrid/minmax(0,1fr); grid-row:span 4; row-gap:0; align-content:start; margin:0 0 1rem; background:var(--card); border:1px solid var(--line); border-radius:8px; padding:.9rem 1rem; break-inside:avoid; min-width:0 }
.plot figcaption { font:600 1rem/1.35 Georgia,"Noto Serif CJK SC","Source Han Serif SC","Songti SC",SimSun,serif; overflow-wrap:anywhere }
.plot svg { display:block; border:0; background:none; margin:.5rem auto .3rem; max-width:36rem; overflow:visible }
.plot svg * { stroke-linejoin:round; stroke-linecap:butt }
.plot svg text { paint-order:stroke; stroke:var(--card); stroke-width:3px; font-variant-numeric:tabular-nums }
.plot p { color:var(--soft); font-size:.85rem; line-height:1.5; margin:.4rem 0 0 }
.plot:only-child { grid-column:1/-1 }
@media (min-width:48rem) { .plot:only-child { grid-template:auto auto 1fr/minmax(0,32rem) minmax(0,1fr); column-gap:2rem }
  .plot:only-child svg { grid-area:1/1/span 3/1 } .plot:only-child > :not(svg) { grid-column:2 } }
@media (max-width:34rem) { main { padding:1.5rem 1rem 3rem } .plot { padding:.8rem .75rem } .plot svg text { font-size:14px !important } }
.legend { display:flex; flex-wrap:wrap; gap:0 .9rem; font-size:.85rem; color:var(--soft); overflow-wrap:anywhere }
.verdict { background:var(--card); border:1px solid var(--line); border-left:5px solid var(--accent); border-radius:8px; padding:1.1rem 1.4rem; margin:0 0 1rem; break-inside:avoid }
.verdict b { display:block; font:600 1.7rem/1.25 Georgia,"Noto Serif CJK SC","Source Han Serif SC","Songti SC",SimSun,serif; overflow-wrap:anywhere }
.verdict p { margin:.5rem 0 0; max-width:48rem; overflow-wrap:anywhere }
.flow + .scroll { margin-top:1rem } .names td { overflow-wrap:break-word } .names td:first-child { white-space:nowrap }
.names td:last-child:not(.n):not(:first-child) { min-width:15rem } .names + .note { margin-top:.8rem }
tr.best td { background:color-mix(in srgb, var(--gain) 12%, transparent) } tr.pale td { color:var(--soft) }
.versions { display:grid; grid-template-columns:repeat(auto-fit,minmax(min(100%,15rem),1fr)); gap:.6rem; margin:.5rem 0 1.6rem }
.version { background:var(--card); border:1px solid var(--line); border-radius:8px; padding:.6rem .9rem; min-width:0; break-inside:avoid }
.version.best { border-color:var(--gain) } .version > small { display:block } .version > small b { color:var(--ink) }
.prose { font:16px/1.75 Georgia,"Noto Serif CJK SC","Source Han Serif SC","Songti SC",SimSun,serif; white-space:pre-wrap; overflow-wrap:anywhere;
  unicode-bidi:isolate; margin:.2rem 0 0 }
.prose .pale { color:var(--soft) }
mark { color:inherit; background:color-mix(in srgb, var(--duplicates) 30%, transparent); border-radius:2px }
.copied { text-decoration:underline 2px var(--accent); text-underline-offset:4px; text-decoration-skip-ink:none }
@media print { main { max-width:none; padding:0 } .prose { font-size:13px; line-height:1.6 } nav,summary { display:none } svg,tr { break-inside:avoid } h2,h3 { break-after:avoid }
  .scroll { overflow:visible } details::details-content { content-visibility:visible; height:auto } }
"""


MANY_SECTIONS = 5


def page(title: str, sections: Iterable[tuple[str, Markup]], subtitle: str = "") -> str:
    """A whole document: a title and sections of (heading, body), with links to them where there are many."""
    shown = [(heading, content) for heading, content in sections if content]
    body = "".join(
        f'<section id="s{number}"><h2>{escape(heading)}</h2>{content}</section>'
        for number, (heading, content) in enumerate(shown)
    )
    links = " ".join(f'<a href="#s{number}">{escape(heading)}</a>' for number, (heading, _) in enumerate(shown))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>"
        f"<body><main><header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p>"
        f"{f'<nav>{links}</nav>' if len(shown) > MANY_SECTIONS else ''}</header>{body}</main></body></html>\n"
    )


_NO_LEGEND = Markup('<div class="legend"></div>')  # its place is kept, so that plots side by side stay aligned


def figure(title: str, drawing: Markup, explanation: str, legend: Markup | None = None) -> Markup:
    """A plot in a box: what it found or asks, the drawing, its legend, and a line on how to read it."""
    return Markup(
        f'<figure class="plot"><figcaption>{visible(title[:1].upper() + title[1:])}</figcaption>{drawing}{legend or _NO_LEGEND}<p>{visible(explanation)}</p></figure>'
    )


def figures(plots: Iterable[Markup]) -> Markup:
    """Plots side by side where there is room, below each other where there is not."""
    return Markup(f'<div class="figures">{"".join(plots)}</div>')


def legend(entries: Iterable[tuple[str, str]]) -> Markup:
    """What the colours of a plot mean: (label, colour)."""
    shown = (
        f'<span><i class="dot" style="background:var(--{colour})"></i>{visible(label)}</span>'
        for label, colour in entries
    )
    return Markup(f'<div class="legend">{"".join(shown)}</div>')


def annotated(text: str, spans: Iterable[tuple[int, int, str]]) -> Markup:
    """Text with (start, end, opening tag) spans, which may overlap; line feeds are kept, what nobody would see is shown.

    Where a span is cut by another it is opened again, so that the tags always nest.
    """
    inside = [(max(0, start), min(len(text), end), opening) for start, end, opening in spans]
    inside = [span for span in inside if span[0] < span[1]]
    cuts = sorted({0, len(text), *(place for start, end, _ in inside for place in (start, end))})
    parts = []
    for start, end in itertools.pairwise(cuts):
        openings = [opening for first, last, opening in inside if first <= start and end <= last]
        closings = [f"</{re.split('[ >]', opening[1:], maxsplit=1)[0]}>" for opening in reversed(openings)]
        shown = "\n".join(visible(line) for line in text[start:end].split("\n"))
        parts.append("".join((*openings, shown, *closings)))
    return Markup("".join(parts))


def ems(text: str) -> float:
    """About how wide a line of text is, in units of its font size: wide characters are 1, others a little over a half."""
    return sum(1.0 if unicodedata.east_asian_width(character) in "WF" else 0.57 for character in text)


def plain(text: str, most_ems: float = 24) -> str:
    """Text for a title or a label: one line, nothing in it that could hide or reorder, cut at a width."""
    line = "".join("\ufffd" if unicodedata.category(c)[0] == "C" else c for c in " ".join(text.split()))
    if ems(line) <= most_ems:
        return line
    while line and ems(line) > most_ems - 1:
        line = line[:-1]
    return line + "…"


def note(text: str) -> Markup:
    return Markup(f'<p class="note">{escape(text)}</p>')


def samples(texts: Iterable[str]) -> Markup:
    """Pieces of text from files, one below the other."""
    return Markup("".join(f'<span class="sample">{escape(text)}</span>' for text in texts))


def lead(text: str) -> Markup:
    """What a report says in one sentence."""
    return Markup(f'<p class="lead">{escape(text)}</p>')


def subsection(heading: str, content: Markup) -> Markup:
    return Markup(f"<h3>{escape(heading)}</h3>{content}")


def details(summary: str, content: Markup) -> Markup:
    """What only some readers open; in print it is there."""
    return Markup(f"<details><summary>{escape(summary)}</summary>{content}</details>")


def tag(text: str) -> Markup:
    return Markup(f'<span class="tag">{escape(text)}</span>')


def cards(items: Iterable[tuple[Sequence[Markup], Markup]]) -> Markup:
    """Boxes below each other: what stands in the head, the last of it on the right, and the body."""
    boxes = (
        f'<div class="card"><div class="head">{"".join(f"<span>{part}</span>" for part in head)}</div>{body}</div>'
        for head, body in items
    )
    return Markup(f'<div class="cards">{"".join(boxes)}</div>')


def pairs(items: Iterable[tuple[str, str]]) -> Markup:
    """Things with a remark, one below the other."""
    return Markup(
        "".join(f'<div class="pair">{escape(name)} <small>{escape(remark)}</small></div>' for name, remark in items)
    )


def visible(text: str) -> Markup:
    """Text with the characters that nobody would see shown as what they are: line feeds as a mark, others by number."""
    shown = []
    for character in text:
        if character == "\n":
            shown.append("↵")
        elif unicodedata.category(character) in ("Cc", "Cf", "Co", "Cn", "Zl", "Zp"):
            shown.append(f'<span class="code">U+{ord(character):04X}</span>')
        else:
            shown.append(html.escape(character))
    return Markup("".join(shown))


def changes(places: Iterable[tuple[str, str, str, str]]) -> Markup:
    """Places in texts as (before, removed, replacement, after): what was removed struck through, what stands there now
    beside it, what is around it pale."""
    shown = [
        f'<span class="change{" within" if before or after else ""}">{visible(before)}<del>{visible(removed)}</del>'
        f"{f'<ins>{visible(replacement)}</ins>' if replacement else ''}{visible(after)}</span>"
        for before, removed, replacement, after in places
    ]
    return Markup(f'<div class="changes">{"".join(shown)}</div>' if shown else "")


def meter(share: float, colour: str = "accent") -> Markup:
    """A share from 0 to 1 as a tiny bar, which shows that there is something however small it is."""
    width = 0 if share <= 0 else min(100.0, max(3.0, 100 * share))
    return Markup(f'<span class="meter"><i style="width:{width:.0f}%;background:var(--{colour})"></i></span>')


def measured(items: Iterable[tuple[float, str, str, str]], colour: str) -> Markup:
    """Texts one below the other, each behind its share from 0 to 1 and its figure, with a remark."""
    rows = [
        f'<div class="pair">{meter(share, colour)}<span class="figure">{escape(figure)}</span> {visible(text)} '
        f"<small>{escape(remark)}</small></div>"
        for share, figure, text, remark in items
    ]
    return Markup("".join(rows)) if rows else note("None.")


def equation(whole: str, parts: Sequence[tuple[str, int, str]]) -> Markup:
    """A whole as the sum of its parts (label, count, colour): a bar in proportion, and the sum in figures."""
    there = [part for part in parts if part[1]]
    bar = "".join(f'<i style="flex:{count};background:var(--{colour})"></i>' for _, count, colour in there)
    total = sum(count for _, count, _ in there)
    terms = [f"<span><b>{total:,}</b> {escape(whole)} =</span>"]
    terms += [
        f'<span><i class="dot" style="background:var(--{colour})"></i><b>{count:,}</b> {escape(label)}</span>'
        for label, count, colour in there
    ]
    return Markup(f'<div class="stack">{bar}</div><div class="equation">{"".join(terms)}</div>')


def flow(steps: Sequence[tuple[str, object, str]]) -> Markup:
    """Boxes from left to right: label, figure, remark; the last one is the outcome."""
    boxes = [
        f"<div{' class=out' if index == len(steps) - 1 else ''}>{escape(label)}<b>{escape(value)}</b><small>{escape(remark)}</small></div>"
        for index, (label, value, remark) in enumerate(steps)
    ]
    return Markup(f'<div class="flow">{"".join(boxes)}</div>')


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    right: Collection[int] = (),
    classes: Sequence[str] = (),
    names: bool = False,
) -> Markup:
    """A table; a column is set right where all its values are numbers or it is named in `right`. `classes`: one per row.

    Where the first column `names` the rows it is never broken, and a narrow screen scrolls to the figures.
    """
    if not rows:
        return note("None.")
    numeric = [i in right or all(isinstance(row[i], int | float | None) for row in rows) for i in range(len(columns))]
    attribute = [' class="n"' if figures else "" for figures in numeric]
    head = "".join(f"<th{a}>{escape(name)}</th>" for a, name in zip(attribute, columns, strict=True))
    body = "".join(
        (f'<tr class="{kind}">' if kind else "<tr>")
        + "".join(f"<td{a}>{escape(v)}</td>" for a, v in zip(attribute, row, strict=True))
        + "</tr>"
        for row, kind in zip(rows, classes or [""] * len(rows), strict=True)
    )
    return Markup(
        f'<div class="scroll{" names" if names else ""}"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 960, 270, 72, 34, 28
# Of ribbons: the height of the whole, the least that a branch's label needs, and where the branches start and end.
TRUNK, SLOT, RIBBON_START, RIBBON_END = 210, 46, 176, 600


def ribbons(trunk: tuple[str, str], branches: Sequence[tuple[str, int, str, str]]) -> Markup:
    """A whole (label, remark) parting into branches (label, size, remark, colour), as thick as they are large.

    What is too thin to be seen is drawn 1.5 units thick.
    """
    there = [branch for branch in branches if branch[1] > 0]
    total = sum(size for _, size, _, _ in there)
    if not total:
        return note("None.")
    thick = [max(1.5, TRUNK * size / total) for _, size, _, _ in there]
    slots = [max(SLOT, t + 10) for t in thick]
    height = sum(slots) + 24
    y = left = (height - sum(thick)) / 2
    centre, parts = 12.0, []
    for (label, size, remark, colour), t, slot in zip(there, thick, slots, strict=True):
        a, b, middle = RIBBON_START + 10, RIBBON_END, (RIBBON_START + 10 + RIBBON_END) / 2
        top = centre + (slot - t) / 2
        parts.append(
            f'<path d="M{a} {y:.1f}C{middle} {y:.1f} {middle} {top:.1f} {b} {top:.1f}v{t:.1f}'
            f'C{middle} {top + t:.1f} {middle} {y + t:.1f} {a} {y + t:.1f}z" fill="var(--{colour})" opacity=".45"/>'
            f'<rect x="{b}" y="{top:.1f}" width="10" height="{t:.1f}" fill="var(--{colour})"/>'
            f'<rect x="{RIBBON_START}" y="{y:.1f}" width="10" height="{t:.1f}" fill="var(--{colour})"/>'
            f'<text class="strong" x="{b + 22}" y="{top + t / 2 - 3:.1f}">{size / total:.1%} {escape(label)}</text>'
            f'<text x="{b + 22}" y="{top + t / 2 + 13:.1f}">{escape(remark)}</text>'
        )
        y, centre = y + t, centre + slot
    middle = left + sum(thick) / 2
    for shift, style, text in ((-3, ' class="strong"', trunk[0]), (13, "", trunk[1])):
        parts.append(
            f'<text{style} x="{RIBBON_START - 12}" y="{middle + shift:.1f}" text-anchor="end">{escape(text)}</text>'
        )
    return _svg(parts, height)


def bar_chart(
    bars: Sequence[tuple[str, float]], x_label: str = "", y_label: str = "", colour: str = "accent"
) -> Markup:
    """Bars of (label, value), from zero."""
    if not bars:
        return note("None.")
    highest = max(value for _, value in bars) or 1
    step = (WIDTH - LEFT - 16) / len(bars)
    every = max(1, math.ceil(len(bars) / 16))
    parts = _axes([0, highest / 2, highest], 0, highest, x_label, y_label)
    for index, (label, value) in enumerate(bars):
        height = (HEIGHT - BOTTOM - TOP) * value / highest
        x = LEFT + index * step
        parts.append(
            f'<rect x="{x + step * 0.08:.1f}" y="{HEIGHT - BOTTOM - height:.1f}" width="{step * 0.84:.1f}" height="{height:.1f}" '
            f'fill="var(--{colour})"><title>{escape(label)}: {escape(value)}</title></rect>'
        )
        if index % every == 0:
            parts.append(f'<text x="{x + step / 2:.1f}" y="{HEIGHT - 18}" text-anchor="middle">{escape(label)}</text>')
    return _svg(parts)


def line_chart(series: dict[str, Sequence[tuple[float, float]]], x_label: str = "", y_label: str = "") -> Markup:
    """Lines of (x, y) by name; points that are no finite number are left out."""
    lines = {name: [p for p in points if all(map(math.isfinite, p))] for name, points in series.items()}
    everything = [point for points in lines.values() for point in points]
    if not everything:
        return note("No values yet.")
    (x0, x1), (y0, y1) = ((min(values), max(values)) for values in zip(*everything, strict=True))
    x1, margin = (x1 if x1 > x0 else x0 + 1), 0.05 * (y1 - y0 or 1)
    # From zero where that wastes little of the height, so that a curve's fall is not made to look larger than it is.
    y0, y1 = (0.0 if 0 <= y0 < y1 / 2 else y0 - margin), y1 + margin
    parts = _axes([y0, (y0 + y1) / 2, y1], y0, y1, x_label, y_label)
    for tick in (x0, (x0 + x1) / 2, x1):
        x = LEFT + (WIDTH - LEFT - 16) * (tick - x0) / (x1 - x0)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 18}" text-anchor="middle">{tick:,.6g}</text>')
    colours = ["var(--accent)", "var(--second)", "var(--soft)"]
    for index, (name, points) in enumerate(lines.items()):
        places = [
            (
                f"{LEFT + (WIDTH - LEFT - 16) * (x - x0) / (x1 - x0):.1f}",
                f"{TOP + (HEIGHT - BOTTOM - TOP) * (y1 - y) / (y1 - y0):.1f}",
            )
            for x, y in points
        ]
        path = " ".join(",".join(place) for place in places)
        colour = colours[index % len(colours)]
        if len(places) <= 20:  # few points are measurements to see, not a curve
            parts += [f'<circle cx="{x}" cy="{y}" r="4" fill="{colour}"/>' for x, y in places]
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"><title>{escape(name)}</title></polyline>'
        )
        parts.append(
            f'<text x="{WIDTH - 20}" y="{TOP + 14 + 15 * index}" text-anchor="end" style="fill:{colour}">{escape(name)}</text>'
        )
    return _svg(parts)


def _axes(ticks: Sequence[float], y0: float, y1: float, x_label: str, y_label: str) -> list[str]:
    parts = []
    for tick in ticks:
        y = TOP + (HEIGHT - BOTTOM - TOP) * (y1 - tick) / (y1 - y0)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - 16}" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--line)"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:,.4g}</text>')
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_label)}</text>')
    parts.append(f'<text x="10" y="16">{escape(y_label)}</text>')
    return parts


def _svg(parts: Iterable[str], height: float = HEIGHT) -> Markup:
    return Markup(
        f'<div class="scroll"><svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg></div>'
    )
