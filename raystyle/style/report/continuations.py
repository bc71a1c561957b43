"""What the models wrote, side by side: the same prompt continued by each, and copied passages beside their source."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from raystyle import html
from raystyle.html import Markup
from raystyle.style.report import view

Record = dict[str, Any]

MARKER, COPY = "<mark>", '<u class="copied">'
# How many models, prompts and passages are in sight, and how many more behind a click; all are in evaluation.json.
MODELS, PROMPTS, MORE_PROMPTS = 6, 3, 9
PASSAGES, MORE_PASSAGES = 4, 16
CONTEXT_CHARS = 60


def side_by_side(evaluation: Record) -> Markup:
    """The same prompts continued by the base and by what was trained, markers highlighted and copies underlined."""
    chosen = [subject for subject in view.chosen(evaluation, MODELS) if subject.get("samples")]
    if not chosen:
        return Markup("")
    by_prompt: dict[tuple[str, float], list[tuple[Record, Record]]] = defaultdict(list)
    for subject in chosen:
        seen = set()
        for sample in subject["samples"]:
            key = (str(sample.get("prompt", "")), float(sample.get("temperature") or 0))
            # One sample of each prompt and temperature is enough to read.
            if key not in seen:
                seen.add(key)
                by_prompt[key].append((subject, sample))
    best = view.recommended(evaluation)
    blocks = [_prompt(prompt, temperature, found, best) for (prompt, temperature), found in by_prompt.items()]
    more = "".join(blocks[PROMPTS : PROMPTS + MORE_PROMPTS])
    total = sum(len(subject.get("samples") or []) for subject in view.subjects(evaluation))
    note = (
        "Highlighted: the author's markers. Underlined: copied from the training text; the passages stand below beside their source. "
        f"{total:,} samples were drawn, all of them are in evaluation.json."
    )
    folded = html.details(f"{min(len(blocks) - PROMPTS, MORE_PROMPTS)} more prompts", Markup(more)) if more else ""
    return Markup(f"{html.note(note)}{''.join(blocks[:PROMPTS])}{folded}")


def _prompt(prompt: str, temperature: float, found: Sequence[tuple[Record, Record]], best: Record | None) -> Markup:
    boxes = []
    for subject, sample in found:
        text = str(sample.get("text", ""))
        spans = [*_spans(sample.get("markers"), MARKER), *_spans(sample.get("copies"), COPY)]
        ends = "" if sample.get("finish_reason") in (None, "length") else " · ended by itself"
        kind = "version best" if subject is best else "version"
        boxes.append(
            f'<div class="{kind}"><small><b>{html.visible(view.title(subject))}</b>{ends}</small>'
            f'<p class="prose" dir="auto">{html.annotated(text, spans) or "(nothing)"}</p></div>'
        )
    how = "most likely continuation" if temperature == 0 else f"drawn at temperature {temperature:g}"
    heading = f"<h3>{html.visible(html.plain(prompt, 60))}… <small>{how}</small></h3>"
    return Markup(f'{heading}<div class="versions">{"".join(boxes)}</div>')


def _spans(found: Any, opening: str) -> list[tuple[int, int, str]]:
    spans = [span[:2] for span in found or [] if isinstance(span, list) and len(span) >= 2]
    return [(int(start), int(end), opening) for start, end in spans if None not in (start, end)]


def passages(evaluation: Record) -> Markup:
    """Copied passages in what was written, each beside its source with what stands around it; the longest first."""
    found = [
        (subject, passage)
        for subject in view.subjects(evaluation)
        for passage in view.at(subject, "copying", "passages") or []
    ]
    if not found:
        return Markup("")
    # The longest of each model before the second longest of any, so that nobody's are hidden by another's; one text once.
    times = Counter((subject["name"], passage.get("text")) for subject, passage in found)
    shown: dict[tuple[str, Any], tuple[int, Record, Record]] = {}
    ranks: Counter[str] = Counter()
    for subject, passage in sorted(found, key=lambda pair: -len(str(pair[1].get("text", "")))):
        key = (subject["name"], passage.get("text"))
        if key not in shown:
            ranks[key[0]] += 1
            shown[key] = (ranks[key[0]], subject, passage)
    order = sorted(shown, key=lambda key: shown[key][0])
    cards = [_passage(*shown[key][1:], times[key]) for key in order]
    more = cards[PASSAGES : PASSAGES + MORE_PASSAGES]
    rest = len(cards) - PASSAGES - len(more)
    many = f"{len(cards):,} different passages, longest first" if len(cards) > 1 else "One passage"
    note = f"{many}: at the left as written, at the right as trained on."
    folded = html.details(f"{len(more)} more", Markup("".join(more))) if more else ""
    left = html.note(f"{rest:,} more are in evaluation.json.") if rest > 0 else ""
    return Markup(f"{html.note(note)}{''.join(cards[:PASSAGES])}{folded}{left}")


def _passage(subject: Record, passage: Record, times: int) -> Markup:
    samples, number = subject.get("samples") or [], passage.get("sample")
    text = str(passage.get("text", ""))
    start, end = passage.get("start"), passage.get("end")
    before = after = ""
    if isinstance(number, int) and 0 <= number < len(samples) and isinstance(start, int) and isinstance(end, int):
        written = str(samples[number].get("text", ""))
        before, after = written[max(0, start - CONTEXT_CHARS) : start], written[end : end + CONTEXT_CHARS]
    often = f" · in {times:,} samples" if times > 1 else ""
    around = str(passage.get("source_before") or ""), str(passage.get("source_after") or "")
    source = html.visible(html.plain(str(passage.get("source") or "training text"), 60))
    return Markup(
        '<div class="versions">'
        f'<div class="version"><small><b>{html.visible(view.title(subject))}</b> · {len(text):,} characters{often}</small>{_quoted(before, text, after)}</div>'
        f'<div class="version"><small>source: <b>{source}</b></small>{_quoted(around[0], text, around[1])}</div></div>'
    )


def _quoted(before: str, text: str, after: str) -> Markup:
    pale, whole = '<span class="pale">', f"{before}{text}{after}"
    first, last = len(before), len(before) + len(text)
    spans = [(0, first, pale), (first, last, COPY), (last, len(whole), pale)]
    return Markup(f'<p class="prose" dir="auto">{html.annotated(whole, spans)}</p>')
