"""report.html of a prepared corpus: what came in, what became of it, and what each rule took, to be judged by eye."""

import math
from collections import Counter
from typing import Any

from raystyle import html, storage
from raystyle.corpus.clean import LAYOUT_RULES
from raystyle.corpus.manifest import Manifest
from raystyle.corpus.rules import Rules
from raystyle.corpus.shards import Entry
from raystyle.corpus.sources import Rejection

MAX_REJECTED_SHOWN = 200
MAX_SOURCES_SHOWN = 500
EXAMPLES_SHOWN = 5


def write_report(
    manifest: Manifest, rules: Rules, cleaned: list[dict[str, Any]], rejected: list[Rejection], entries: list[Entry]
) -> None:
    """Write report.html into the manifest's directory."""
    sections = [
        ("From files to rows", _flow(manifest)),
        ("What each rule removed", _rules(manifest, rules, cleaned)),
        ("Sources", _sources(manifest.inputs)),
        ("What was not read", _rejected(rejected)),
        ("Length of documents", _lengths(entries)),
    ]
    subtitle = f"raystyle {manifest.raystyle} · rules {rules.name} · digest {manifest.digest[:16]}"
    content = html.page("Prepared corpus", sections, subtitle)
    storage.write_bytes(storage.join(manifest.output_dir, "report.html"), content.encode())


def _flow(manifest: Manifest) -> html.Markup:
    counts = manifest.counts
    lost = counts["characters_in"] - counts["characters_kept"]
    steps: list[tuple[str, object, str]] = [
        ("files", counts["inputs"], f"{counts['rejected']:,} rejected"),
        ("lines", counts["lines"], f"{counts['removed']:,} removals"),
        (
            "characters kept",
            counts["characters_kept"],
            f"{lost / max(1, counts['characters_in']):.2%} of {counts['characters_in']:,} removed",
        ),
        ("documents", counts["documents"], f"{counts['heldout']:,} more held out"),
    ]
    if counts["rows"] is not None:
        real = counts["tokens"] / max(1, counts["tokens"] + counts["padding"])
        steps += [
            ("tokens", counts["tokens"], f"{real:.2%} of all in the rows; {counts['padding']:,} padding"),
            (
                "rows",
                counts["rows"],
                f"of {manifest.max_seq_length:,} tokens, segments up to {manifest.segment_length:,}",
            ),
        ]
    return html.flow(steps)


def _rules(manifest: Manifest, rules: Rules, cleaned: list[dict[str, Any]]) -> html.Markup:
    hits = manifest.counts["removed_by_rule"]
    known = {rule.name: (rule.why, rule.action) for rule in rules.rules}
    known |= {name: (why, "drop_line" if name == "blank_line" else "cut_span") for name, why in LAYOUT_RULES.items()}
    # As a mapping to nothing: in order, and each text once.
    examples: dict[str, dict[str, None]] = {}
    for marker in cleaned:
        for name, texts in marker["samples"].items():
            examples.setdefault(name, {}).update(dict.fromkeys(texts))
    rows = []
    for name, count in sorted(hits.items(), key=lambda item: (item[0] in LAYOUT_RULES, -item[1], item[0])):
        why, action = known.get(name, ("", ""))
        label = html.Markup(f"<code>{html.escape(name)}</code><br><small>{html.escape(action)}</small>")
        rows.append(
            (
                label,
                count,
                html.Markup(f"{html.escape(why)}{html.samples(list(examples.get(name, {}))[:EXAMPLES_SHOWN])}"),
            )
        )
    silent = sum(rule.name not in hits for rule in rules.rules)
    remark = html.note(
        f"{silent} of {len(rules.rules)} rules found nothing. Every removal, with its place, stands in removed/."
    )
    return html.Markup(html.table(("rule", "hits", "why, and examples"), rows) + remark)


def _sources(inputs: list[dict[str, Any]]) -> html.Markup:
    rows = [
        (
            entry["relpath"], entry["encoding"], entry["size"], entry["lines"], entry["characters_in"],
            entry["characters_in"] - entry["characters_kept"], entry["documents"],
        )
        for entry in inputs[:MAX_SOURCES_SHOWN]
    ]  # fmt: skip
    columns = ("source", "encoding", "bytes", "lines", "characters", "removed characters", "documents")
    more = html.note(f"and {len(inputs) - len(rows):,} more, in manifest.json") if len(inputs) > len(rows) else ""
    return html.Markup(html.table(columns, rows) + more)


def _rejected(rejected: list[Rejection]) -> html.Markup:
    reasons = Counter(rejection.reason for rejection in rejected)
    counts = html.table(("reason", "count"), reasons.most_common())
    if not rejected:
        return counts
    shown = html.table(
        ("source", "reason", "detail"), [tuple(rejection) for rejection in rejected[:MAX_REJECTED_SHOWN]]
    )
    return html.Markup(f"{counts}<p></p>{shown}")


def _lengths(entries: list[Entry]) -> html.Markup:
    """A histogram over doublings: documents range from a letter to a novel."""
    bins = Counter(int(math.log2(max(1, entry.num_bytes))) for entry in entries)
    bars = [(_size(2**exponent), bins[exponent]) for exponent in range(min(bins), max(bins) + 1)]
    return html.bar_chart(bars, "bytes of UTF-8 text, from this size up to twice it", "documents")


def _size(num_bytes: int) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1024:
            return f"{num_bytes} {unit}"
        num_bytes //= 1024
    return f"{num_bytes} TB"
