"""What a prepare hands over beside its parts: rejections, no stale parts, and an account of everything that came in.

Imports no ray.
"""

from collections import Counter
from typing import Any

from raystyle import storage
from raystyle.corpus import collect, parts, stages
from raystyle.corpus.report import Duplicate
from raystyle.corpus.sources import Rejection
from raystyle.corpus.steps import SHARED_LINE

FOLDERS = ("documents", "heldout", "removed", "duplicates", "rejected", "rows")
# Of duplicates the report shows so many.
MAX_DUPLICATES_SHOWN = 500


def write_rejected(output: str, rejected: list[Rejection]) -> None:
    table = parts.table([tuple(rejection) for rejection in rejected], parts.REJECTED)
    parts.write(storage.join(output, "rejected", parts.part_name(0)), table)


def remove_stale(output: str, expected: set[str]) -> None:
    """Delete what interrupted runs left: parts of another config or of more inputs, and files half written."""
    for file in storage.list_files(output, hidden=True):
        name = file.uri[len(output) + 1 :]
        half = name.startswith((".manifest.json.", ".report.html."))
        if half or (name.split("/")[0] in FOLDERS and name not in expected):
            storage.delete(file.uri)


def inputs(cleaned: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry for each source: those of its parts added up."""
    inputs: dict[str, dict[str, Any]] = {}
    for entry in (entry for marker in cleaned for entry in marker["inputs"]):
        if (found := inputs.get(entry["relpath"])) is None:
            inputs[entry["relpath"]] = dict(entry)
            continue
        for name in stages.COUNTED:
            found[name] += entry[name]
        found["sha256"] = stages.key_of(found["sha256"], entry["sha256"])
        both = dict.fromkeys([*(found["encoding"] or "").split(" + "), *(entry["encoding"] or "").split(" + ")])
        found["encoding"] = " + ".join(name for name in both if name) or None
    return list(inputs.values())


def shown_duplicates(work: str, gone: list[collect.Gone]) -> list[Duplicate]:
    """For the report, of the first duplicates: title and source of what stays, title and source of what goes, the title of
    its chapter where only that goes, and how similar they are."""
    shown = gone[:MAX_DUPLICATES_SHOWN]
    columns = ["doc_id", "title", "source", "chapter_titles"]
    shards_ = {shard for one in shown for shard in (one.shard, one.kept_shard)}
    ledgers = {s: parts.read(storage.join(work, f"clean-{s:05d}.documents.parquet"), columns) for s in shards_}

    def named(shard: int, row: int) -> tuple[str, str]:
        ledger = ledgers[shard]
        return ledger["title"][row].as_py() or ledger["doc_id"][row].as_py(), ledger["source"][row].as_py()

    def chapter(one: collect.Gone) -> str | None:
        titles = ledgers[one.shard]["chapter_titles"][one.row].as_py()
        return (titles[one.chapter] or f"part {one.chapter + 1}") if one.chapter >= 0 else None

    return [
        (*named(one.kept_shard, one.kept_row), *named(one.shard, one.row), chapter(one), one.similarity)
        for one in shown
    ]


def counts(
    inputs: list[dict[str, Any]], refused: list[Rejection], rejected: list[Rejection], cleaned: list[dict[str, Any]],
    gone: list[collect.Gone], collected: list[dict[str, Any]], num_trained: int, settings: stages.Settings,
) -> dict[str, Any]:  # fmt: skip
    """What went in and what became of it: every input and every text is accounted for.

    `inputs` are files (and members of zips), with those that were refused unread; `texts` what was found in them, with
    those refused. A text is rejected, or makes documents; where a document is a whole work, texts = documents + heldout +
    duplicates + rejected. `characters` are those of lines, without line breaks.
    """
    hits: Counter[str] = Counter()
    for marker in cleaned:
        hits.update(marker["hits"])
    hits[SHARED_LINE] = sum(marker["removed"] for marker in collected)
    packed = [marker for marker in collected[:num_trained] if marker["rows"] is not None]
    rows = sum(marker["rows"] for marker in packed) if packed else None
    tokens = sum(marker["tokens"] for marker in packed) if packed else None
    return {
        "inputs": len(inputs) + len(refused),
        "texts": sum(entry["texts"] for entry in inputs) + len(refused),
        "documents": sum(len(marker["documents"]) for marker in collected[:num_trained]),
        "heldout": sum(len(marker["documents"]) for marker in collected[num_trained:]),
        "duplicates": sum(one.chapter < 0 for one in gone),
        "duplicate_chapters": sum(one.chapter >= 0 for one in gone),
        "rejected": len(rejected),
        "removed": sum(hits.values()),
        **{name: sum(entry[name] for entry in inputs) for name in ("lines", "characters_in")},
        "characters_kept": sum(marker["characters"] for marker in collected),
        "rows": rows,
        "tokens": tokens,
        "padding": rows * settings.max_seq_length - tokens if rows is not None and tokens is not None else None,
        "removed_by_rule": dict(sorted((rule, count) for rule, count in hits.items() if count)),
    }
