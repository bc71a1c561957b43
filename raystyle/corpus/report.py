"""report.html of a prepared corpus: what came in, what became of it, and what each rule took, to be judged by eye.

Everything is capped, so that the page is as readable for a hundred thousand sources as for one; what is left out is
counted, and stands in manifest.json or in the Parquet beside it.
"""

from bisect import bisect
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

from raystyle import html, storage
from raystyle.corpus.manifest import Manifest
from raystyle.corpus.rules import Rules
from raystyle.corpus.sources import Rejection
from raystyle.corpus.stages import CONTEXT_CHARS
from raystyle.corpus.steps import BUILT_IN, LAYOUT, SHARED_LINE

EXAMPLES_SHOWN, EXAMPLE_CHARS = 5, 120
SOURCES_SHOWN, MORE_SOURCES_SHOWN = 40, 400
REJECTED_SHOWN, CLUSTERS_SHOWN, DROPPED_SHOWN, LINES_SHOWN = 20, 60, 12, 50
# A source that loses such a share, or whose encoding is less sure, is worth a look.
MUCH_REMOVED, UNSURE = 0.2, 0.5

# Why a text was not read or put aside, and the way out.
REASONS = {
    "empty": ("A file without a character.", "Nothing is lost."),
    "nul": ("It holds NUL characters, as binary files do.", "If it is UTF-16, name its --encoding; else leave it out."),
    "undecodable": ("Its bytes are Chinese text in no encoding that was tried.", "Name its --encoding."),
    "unsupported": ("A kind of file that is not read.", "Convert it to text, JSONL, Parquet or EPUB."),
    "damaged": ("An archive, EPUB or Parquet file that is broken.", "Get the file again."),
    "truncated": ("An archive that ends too early.", "Get the file again: its copy was interrupted."),
    "encrypted": ("It is locked by a password or by DRM.", "Use a copy without it."),
    "too_large": ("A text is held in memory as a whole, and this one is too large.", "Split it, or raise --max_source_bytes."),
    "bad_json": ("A record that is no JSON object.", "Mend what wrote these records; the others were read."),
    "no_text": ("A record without a string in the text column.", "Name the column by --text_column."),
    "hidden": ("A name that begins with a dot or an underscore.", "Name the file itself to have it read."),
    "superseded": ("The archive holds a later file of the same name.", "Nothing is lost, if the later one is right."),
    "unreadable": ("The file could not be opened.", "Look at its permissions."),
    "no_text_left": ("The rules removed every line.", "See removed/; disable the rule that is wrong here."),
    "mostly_removed": ("The rules removed most of it.", "See removed/; if they are right, raise --max_removed_share."),
    "garbage": ("Too many control and replacement characters.", "Look for a better copy, or raise --max_garbage_share."),
    "repetitive": ("Most of it says again what it said.", "Look for a better copy, or raise --max_repeated_share."),
    "not_chinese": ("Too few Chinese characters.", "If it belongs here, lower --min_han_share."),
    "short_lines": ("Lines too short for prose.", "If they are verse or a play, lower --min_mean_line_chars."),
    "mojibake": ("Rare characters where common ones should be: decoded wrongly by whoever made it.", "Look for a better copy."),
}  # fmt: skip

# (title, source) of the document that stays, and of the one that went; the chapter of it if that is all; their similarity.
Duplicate = tuple[str | None, str, str | None, str, str | None, float]


def write_report(
    manifest: Manifest,
    rules: Rules,
    cleaned: list[dict[str, Any]],
    rejected: list[Rejection],
    collected: list[dict[str, Any]],
    duplicates: list[Duplicate],
    shared_lines: Iterable[str],
) -> None:
    """Write report.html into the manifest's directory.

    `cleaned` and `collected` are the markers of `clean_shard` and `collect_shard`; `duplicates` stand together by what
    stays; `shared_lines` are those that many works had, and lost.
    """
    shared = sorted(shared_lines)
    frequent = _frequent(cleaned)
    sections = [
        ("From files to rows", _outcome(manifest, duplicates)),
        ("What each rule removed", _rules(manifest, rules, _examples(cleaned, shared))),
        ("Sources", _sources(manifest.inputs)),
        ("What was rejected", _rejected(rejected)),
        ("Duplicates", _duplicates(duplicates)),
        ("Lines that recur", _lines(frequent, shared)),
        ("Lengths", _lengths(manifest, collected)),
        ("How it was made", _making(manifest, rules)),
    ]
    subtitle = f"raystyle {manifest.raystyle} · rules {rules.name} · digest {manifest.digest[:16]}"
    content = html.page("Prepared corpus", sections, subtitle)
    storage.write_bytes(storage.join(manifest.output_dir, "report.html"), content.encode())


def _outcome(manifest: Manifest, duplicates: Sequence[Duplicate]) -> html.Markup:
    counts = manifest.counts
    kept, came = counts["characters_kept"], counts["characters_in"]
    boxes: list[tuple[str, object, str]] = [
        ("files", counts["inputs"], f"{counts['texts']:,} texts in them"),
        ("characters", came, f"in {counts['lines']:,} lines"),
        ("kept", html.escape(f"{kept / max(1, came):.1%}"), f"{kept:,} characters"),
        ("documents", counts["documents"], f"and {counts['heldout']:,} held out"),
    ]
    if counts["rows"] is not None:
        real = counts["tokens"] / max(1, counts["tokens"] + counts["padding"])
        boxes += [
            ("tokens", counts["tokens"], f"{counts['padding']:,} of padding: {real:.2%} are real"),
            ("rows", counts["rows"], f"of {manifest.max_seq_length:,} tokens, segments of {manifest.segment_length:,}"),
        ]
    parts = [html.flow(boxes), html.subsection("Every character", _characters(manifest)), _texts(manifest)]
    return html.Markup("".join([*parts, _attention(manifest)]))


def _characters(manifest: Manifest) -> html.Markup:
    """Where the characters of all lines went."""
    counts, inputs = manifest.counts, manifest.inputs
    rejected = sum(map(_rejected_characters, inputs))
    after_rules = sum(entry["characters_kept"] for entry in inputs)
    removals = f"{counts['removed']:,} removals: each stands in removed/"
    twice = f"{counts['duplicates']:,} documents, {counts['duplicate_chapters']:,} chapters, and lines of many works"
    rows = "" if counts["rows"] is None else f" in {counts['rows']:,} rows"
    whole = counts["documents"] + counts["heldout"]
    held = f", {counts['heldout']:,} of them held out" if counts["heldout"] else ""
    return html.ribbons(
        ("characters", f"{counts['characters_in']:,} came in"),
        [
            ("kept", counts["characters_kept"], f"{counts['characters_kept']:,} in {whole:,} documents{held}{rows}", "kept"),
            ("removed by rules", counts["characters_in"] - rejected - after_rules, removals, "removed"),
            ("stand elsewhere too", after_rules - counts["characters_kept"], twice, "duplicates"),
            ("rejected", rejected, f"{counts['rejected']:,} texts that were not read or put aside", "rejected"),
        ],
    )  # fmt: skip


def _rejected_characters(entry: dict[str, Any]) -> int:
    """Characters of a source's texts that were read, and put aside as a whole."""
    everything = 0 if entry["documents"] else entry["characters_in"]
    return int(entry.get("characters_rejected", everything))


def _texts(manifest: Manifest) -> html.Markup:
    """The sum of texts; where documents are chapters, or pieces put together, texts are other things than documents."""
    counts = manifest.counts
    if manifest.config["document_unit"] != "work" or manifest.config["records"] != "documents":
        return html.note(
            f"{counts['texts']:,} texts, {counts['rejected']:,} of them rejected, made {counts['documents']:,} documents, "
            f"{counts['heldout']:,} held out, and {counts['duplicates']:,} duplicates."
        )
    parts = [
        ("documents", counts["documents"], "kept"),
        ("held out", counts["heldout"], "heldout"),
        ("duplicates", counts["duplicates"], "duplicates"),
        ("rejected", counts["rejected"], "rejected"),
    ]
    parts.append(("not accounted for", max(0, counts["texts"] - sum(count for _, count, _ in parts)), "removed"))
    return html.subsection("Every text", html.equation("texts", parts))


def _attention(manifest: Manifest) -> html.Markup:
    """What a reader should look at first, as one sentence."""
    counts = manifest.counts
    losing = sum(_removed_share(entry) > MUCH_REMOVED for entry in manifest.inputs if entry["documents"])
    unsure = sum(_doubt(entry) > UNSURE for entry in manifest.inputs if entry["documents"])
    found = [
        (counts["rejected"], "rejected"),
        (losing, f"{_plural(losing, 'source')} that lost more than {MUCH_REMOVED:.0%}"),
        (unsure, f"{_plural(unsure, 'source')} whose encoding is unsure"),
        (counts["duplicates"], _plural(counts["duplicates"], "duplicate")),
    ]
    named = [f"{count:,} {what}" for count, what in found if count]
    return html.note(f"Worth a look: {', '.join(named)}." if named else "Nothing stands out: all was read and kept.")


def _plural(count: int, noun: str) -> str:
    return noun if count == 1 else f"{noun}s"


def _examples(cleaned: list[dict[str, Any]], shared: list[str]) -> dict[str, list[tuple[str, ...]]]:
    """Of each rule some hits (before, hit, replacement, after), each text once, from all over the corpus."""
    # As mappings to nothing: in order, and each once.
    found: dict[str, dict[tuple[str, ...], None]] = {}
    for marker in cleaned:
        for name, hits in marker["samples"].items():
            found.setdefault(name, {}).update(dict.fromkeys(map(tuple, hits)))
    found[SHARED_LINE] = {("", line, "", ""): None for line in shared}
    return {name: list(hits)[:: -(-len(hits) // EXAMPLES_SHOWN)] for name, hits in found.items() if hits}


def _rules(manifest: Manifest, rules: Rules, examples: dict[str, list[tuple[str, ...]]]) -> html.Markup:
    hits = manifest.counts["removed_by_rule"]
    known = {**BUILT_IN, **{rule.name: (rule.action, rule.why) for rule in rules.rules}}
    most = max((count for name, count in hits.items() if name not in LAYOUT), default=1)
    items = []
    for name, count in sorted(hits.items(), key=lambda item: (item[0] in LAYOUT, -item[1], item[0])):
        action, why = known.get(name, ("", ""))
        bar = "" if name in LAYOUT else html.meter(count / most)
        head = [html.Markup(f"<code>{html.escape(name)}</code>"), html.tag(action.replace("_", " ")),
                html.Markup(f'{bar}<span class="count">{count:,}</span>')]  # fmt: skip
        shown = html.changes(_example(*hit) for hit in ([] if name in LAYOUT else examples.get(name, [])))
        items.append((head, html.Markup(f"<p>{html.escape(why)}</p>{shown}")))
    silent = [rule.name for rule in rules.rules if rule.name not in hits]
    quiet = html.details(
        f"{len(silent)} of {len(rules.rules)} rules found nothing", html.note(", ".join(silent) or "None.")
    )
    remark = html.note(
        "By number of hits. Every removal stands in removed/ with its place, so that it can be put back."
    )
    return html.Markup(remark + (html.cards(items) if items else html.note("None.")) + quiet)


def _example(before: str, hit: str, replacement: str, after: str) -> tuple[str, str, str, str]:
    """A hit as it is shown: of a long one its beginning; what is all whitespace was a line's end."""
    shown = hit if len(hit) <= EXAMPLE_CHARS else f"{hit[:EXAMPLE_CHARS]}…"
    cut = [len(around) == CONTEXT_CHARS for around in (before, after)]
    return "…" * cut[0] + before, shown or "\n", replacement, after + "…" * cut[1]


def _removed_share(entry: dict[str, Any]) -> float:
    """What rules took of the characters of a source's texts that were not rejected."""
    judged = entry["characters_in"] - _rejected_characters(entry)
    return max(0.0, 1 - entry["characters_kept"] / judged) if judged else 0.0


def _doubt(entry: dict[str, Any]) -> float:
    return 0.0 if entry["confidence"] is None else 1 - float(entry["confidence"])


def _sources(inputs: list[dict[str, Any]]) -> html.Markup:
    ordered = sorted(
        inputs, key=lambda entry: (not entry["rejected"], -max(_removed_share(entry), _doubt(entry)), entry["relpath"])
    )
    encodings = Counter(entry["encoding"] or "not read as text" for entry in inputs).most_common()
    parts = [
        html.note(
            "What needs a look stands first: rejected texts, then the larger of the share that rules removed and the doubt "
            f"about the encoding. Encodings: {', '.join(f'{name} ({count:,})' for name, count in encodings[:12])}."
        ),
        _source_table(ordered[:SOURCES_SHOWN]),
    ]
    if more := ordered[SOURCES_SHOWN:MORE_SOURCES_SHOWN]:
        parts.append(html.details(f"{len(more):,} more", _source_table(more)))
    return html.Markup("".join(parts) + _left_out(len(inputs) - MORE_SOURCES_SHOWN, "manifest.json"))


def _source_table(inputs: list[dict[str, Any]]) -> html.Markup:
    rows = []
    for entry in inputs:
        share, confidence = _removed_share(entry), entry["confidence"]
        sure = html.Markup(
            f"{html.escape(entry['encoding'])}"
            + ("" if confidence is None else f" <small>{confidence:.0%} sure</small>")
        )
        colour = "accent" if share > MUCH_REMOVED else "removed"
        bar = html.Markup(f"{html.meter(share, colour)} <small>{share:.1%}</small>") if entry["documents"] else None
        rows.append(
            (
                entry["relpath"],
                sure,
                _size(entry["size"]),
                entry["characters_in"],
                bar,
                entry["documents"],
                entry["rejected"],
            )
        )
    return html.table(("source", "encoding", "size", "characters", "removed", "documents", "rejected"), rows)


def _size(num_bytes: int) -> str:
    size = float(num_bytes)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            break
        size, unit = size / 1000, {"B": "kB", "kB": "MB", "MB": "GB"}[unit]
    return f"{size:.0f} {unit}" if unit == "B" or size >= 10 else f"{size:.1f} {unit}"


def _left_out(count: int, where: str) -> html.Markup:
    return html.note(f"and {count:,} more, in {where}") if count > 0 else html.Markup("")


def _rejected(rejected: list[Rejection]) -> html.Markup:
    by_reason: dict[str, list[Rejection]] = {}
    for rejection in rejected:
        by_reason.setdefault(rejection.reason, []).append(rejection)
    items = []
    for reason, found in sorted(by_reason.items(), key=lambda item: (-len(item[1]), item[0])):
        what, way_out = REASONS.get(reason, ("", ""))
        shown = html.pairs((one.source, one.detail) for one in found[:REJECTED_SHOWN])
        body = f"<p>{html.escape(what)} {html.escape(way_out)}</p>{shown}{_left_out(len(found) - REJECTED_SHOWN, 'rejected/')}"
        head = [html.Markup(f"<code>{html.escape(reason)}</code>"), html.Markup(f"<b>{len(found):,}</b>")]
        items.append((head, html.Markup(body)))
    return html.cards(items) if items else html.note("Nothing: every text that came in was read.")


def _duplicates(duplicates: Sequence[Duplicate]) -> html.Markup:
    """Clusters: what stays, and below it what it stands for, the largest cluster first."""
    clusters: dict[tuple[str, str], list[Duplicate]] = {}
    for one in duplicates:
        clusters.setdefault((one[0] or "untitled", one[1]), []).append(one)
    items = []
    for (title, source), dropped in sorted(clusters.items(), key=lambda item: (-len(item[1]), item[0]))[
        :CLUSTERS_SHOWN
    ]:
        ordered = sorted(dropped, key=lambda one: (one[4] is not None, -one[5]))
        rows = [
            (share, f"{share:.1%}", (other or "untitled") + (f" › {chapter}" if chapter else ""), where)
            for _, _, other, where, chapter, share in ordered
        ]
        head = [html.Markup(f"<b>{html.escape(title)}</b>"), html.Markup(f"<small>{html.escape(source)}</small>"),
                html.Markup(f"<small>stays for {len(rows):,}</small>")]  # fmt: skip
        body = html.measured(rows[:DROPPED_SHOWN], "duplicates")
        items.append((head, html.Markup(body + _left_out(len(rows) - DROPPED_SHOWN, "duplicates/"))))
    if not items:
        return html.note("None.")
    remark = html.note("What went is kept in duplicates/, with the id of what stands for it and how similar they are.")
    return html.Markup(remark + html.cards(items) + _left_out(len(clusters) - CLUSTERS_SHOWN, "duplicates/"))


def _frequent(cleaned: list[dict[str, Any]]) -> list[tuple[str, int]]:
    counts: Counter[str] = Counter()
    for line, count in chain.from_iterable(marker["frequent"] for marker in cleaned):
        counts[line] += count
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:LINES_SHOWN]


def _lines(frequent: list[tuple[str, int]], shared: list[str]) -> html.Markup:
    most = frequent[0][1] if frequent else 1
    rows = [(count / most, f"{count:,}", line, "") for line, count in frequent]
    left = html.note(
        "Lines that a work has again and again and that no rule took, by how often. Noise here wants a rule."
    )
    parts = [html.subsection("Left in the text", html.Markup(left + html.measured(rows, "second")))]
    if shared:
        taken = html.changes(("", line, "", "") for line in shared[:LINES_SHOWN])
        taken = html.Markup(taken + _left_out(len(shared) - LINES_SHOWN, "removed/"))
        parts.append(html.subsection("Taken out of many works", taken))
    return html.Markup("".join(parts))


def _lengths(manifest: Manifest, collected: list[dict[str, Any]]) -> html.Markup:
    """Histograms: documents from a letter to a novel, over steps of 1, 2, 5; segments over equal ones."""
    edges = [step * 10**power for power in range(10) for step in (1, 2, 5)]
    bins = Counter(max(0, bisect(edges, document[1]) - 1) for marker in collected for document in marker["documents"])
    bars = [(_brief(edges[i]), bins[i]) for i in range(min(bins), max(bins) + 1)] if bins else []
    chart = html.bar_chart(bars, "characters, from this number on", "documents", "kept")
    parts = [html.subsection("Documents, held-out ones too", chart)]
    histograms = [marker["segments"] for marker in collected if marker.get("segments")]
    if histograms:
        totals = [sum(column) for column in zip(*histograms, strict=True)]
        width = manifest.segment_length / len(totals)
        steps = [(f"{round(width * (index + 1)):,}", count) for index, count in enumerate(totals)]
        parts.append(
            html.subsection("Segments in rows", html.bar_chart(steps, "tokens, up to this number", "segments", "kept"))
        )
    return html.Markup("".join(parts))


def _brief(number: int) -> str:
    return (
        f"{number // 1_000_000}M" if number >= 1_000_000 else f"{number // 1_000}k" if number >= 1_000 else str(number)
    )


def _making(manifest: Manifest, rules: Rules) -> html.Markup:
    tokenizer = manifest.tokenizer or {}
    known = {
        "digest": manifest.digest,
        "rules": f"{rules.name}, {manifest.rules['digest'][:16]}",
        "tokenizer": f"{tokenizer['name']}, {tokenizer['digest'][:16]}" if tokenizer else None,
    }
    rows = [(name, None if value is None else str(value)) for name, value in {**known, **manifest.config}.items()]
    return html.details("All settings", html.table(("setting", "value"), rows))
