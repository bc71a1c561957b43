"""The look that all reports share: a self-contained page, tables, and small SVG charts. No script, nothing fetched.

Text that comes from files is escaped here, and only `Markup` (what these functions return) is taken as it is.
"""

import html
import math
from collections.abc import Iterable, Sequence


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
:root { --ink:#23262b; --soft:#6b7280; --line:#e4e2dc; --paper:#fbfaf7; --card:#fff; --accent:#a63d2f; --tint:#f3e5e1; --second:#2f6f8f }
@media (prefers-color-scheme: dark) { :root { --ink:#e7e5e0; --soft:#9aa0a8; --line:#383a3f; --paper:#1c1d20; --card:#25272b;
  --accent:#e07a66; --tint:#46302b; --second:#7fb8d4 } }
* { box-sizing: border-box }
body { margin:0; background:var(--paper); color:var(--ink); font:15px/1.65 system-ui,"Noto Sans CJK SC","PingFang SC",sans-serif }
main { max-width:1060px; margin:0 auto; padding:3rem 1.5rem 5rem }
header { border-bottom:3px solid var(--accent); margin-bottom:2rem; padding-bottom:1rem }
h1 { font:600 1.9rem/1.2 Georgia,"Noto Serif CJK SC","Songti SC",serif; margin:0 }
header p { color:var(--soft); margin:.5rem 0 0 }
section { margin:2.5rem 0 }
h2 { font:600 1.2rem/1.3 Georgia,"Noto Serif CJK SC","Songti SC",serif; margin:0 0 .75rem }
.note { color:var(--soft); max-width:46rem }
.scroll { overflow-x:auto; background:var(--card); border:1px solid var(--line); border-radius:8px }
table { border-collapse:collapse; width:100% }
th,td { text-align:left; padding:.4rem .8rem; border-bottom:1px solid var(--line); vertical-align:top }
th { color:var(--soft); font-weight:500; font-size:.85rem; white-space:nowrap }
tr:last-child td { border-bottom:0 }
td.n,th.n { text-align:right; font-variant-numeric:tabular-nums; white-space:nowrap }
code,.sample { font:13px/1.5 ui-monospace,"Noto Sans Mono CJK SC",monospace }
td { overflow-wrap:anywhere } code { white-space:nowrap }
.sample { display:block; background:var(--tint); border-radius:4px; padding:0 .4rem; margin:.15rem 0; width:fit-content; max-width:100% }
.flow { display:flex; flex-wrap:wrap; align-items:stretch; gap:.5rem }
.flow div { flex:1 1 8rem; background:var(--card); border:1px solid var(--line); border-radius:8px; padding:.8rem 1rem }
.flow b { display:block; font:600 1.45rem/1.3 Georgia,serif; font-variant-numeric:tabular-nums }
.flow div.out { border-color:var(--accent) } .flow small { color:var(--soft) }
svg { width:100%; height:auto; background:var(--card); border:1px solid var(--line); border-radius:8px }
svg text { fill:var(--soft); font:11px system-ui,sans-serif }
"""


def page(title: str, sections: Iterable[tuple[str, Markup]], subtitle: str = "") -> str:
    """A whole document: a title and sections of (heading, body)."""
    body = "".join(
        f"<section><h2>{escape(heading)}</h2>{content}</section>" for heading, content in sections if content
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>"
        f"<body><main><header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p></header>{body}</main></body></html>\n"
    )


def note(text: str) -> Markup:
    return Markup(f'<p class="note">{escape(text)}</p>')


def samples(texts: Iterable[str]) -> Markup:
    """Pieces of text from files, one below the other."""
    return Markup("".join(f'<span class="sample">{escape(text)}</span>' for text in texts))


def flow(steps: Sequence[tuple[str, object, str]]) -> Markup:
    """Boxes from left to right: label, figure, remark; the last one is the outcome."""
    boxes = [
        f"<div{' class=out' if index == len(steps) - 1 else ''}>{escape(label)}<b>{escape(value)}</b><small>{escape(remark)}</small></div>"
        for index, (label, value, remark) in enumerate(steps)
    ]
    return Markup(f'<div class="flow">{"".join(boxes)}</div>')


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Markup:
    """A table; a column is set right where all its values are numbers."""
    if not rows:
        return note("None.")
    numeric = [all(isinstance(row[i], int | float | None) for row in rows) for i in range(len(columns))]
    attribute = [' class="n"' if right else "" for right in numeric]
    head = "".join(f"<th{a}>{escape(name)}</th>" for a, name in zip(attribute, columns, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{a}>{escape(v)}</td>" for a, v in zip(attribute, row, strict=True)) + "</tr>"
        for row in rows
    )
    return Markup(f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>')


WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 960, 270, 72, 34, 28


def bar_chart(bars: Sequence[tuple[str, float]], x_label: str = "", y_label: str = "") -> Markup:
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
            f'fill="var(--accent)"><title>{escape(label)}: {escape(value)}</title></rect>'
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


def _svg(parts: Iterable[str]) -> Markup:
    return Markup(
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )
