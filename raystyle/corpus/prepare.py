"""The Ray Data job: raw files to documents and packed rows.

    list inputs -> clean groups of them -> find duplicates -> choose held-out documents -> collect and pack -> publish

Ray must be initialised; each step's tasks run on it by `tasks`. The job owns its unit of work, for Ray Data's own checkpoints lose rows where one input gives many
outputs, and its writers append under random names: here each task writes parts under names that follow from the plan,
and a marker last. Everything stays below `_work/` until all of it is there; an interrupted run continues from its
markers. Nothing that decides the result looks at the number of cores, so neither does the digest.
"""

from collections import Counter
from dataclasses import replace
from functools import partial
from typing import Any

from raystyle import __version__, storage
from raystyle.config import PrepareConfig, labels
from raystyle.corpus import collect, duplicates, outcome, parts, shards, stages, tasks
from raystyle.corpus.manifest import CODE_VERSION, Manifest, find_finished, identity
from raystyle.corpus.packs import load_rules
from raystyle.corpus.quality import Limits
from raystyle.corpus.report import write_report
from raystyle.corpus.rules import Rules
from raystyle.corpus.sources import Rejection, Source, list_sources, plan_units
from raystyle.corpus.steps import SHARED_LINE
from raystyle.errors import DataError
from raystyle.tokens import backend_json, load_tokenizer, prefix_and_end, tokenizer_digest

# Most parts are moved in less time than a task takes to start.
PARTS_PER_TASK = 16


def prepare(config: PrepareConfig, exclude: str | None = None) -> Manifest:
    """Make the prepared corpus at `config.output_dir`, or find it made already (`unchanged`).

    What lies below `exclude`, a directory around it, is no input either.
    Raises `DataError` where there is nothing to prepare, `RunError` where the directory belongs to something else,
    `ConfigError`, `ModelError` and `StorageError` for rules, tokenizer and storage that cannot be used.
    """
    output = storage.absolute(config.output_dir)
    rules = load_rules(config.rules, config.enable_rules, config.disable_rules)
    settings = settings_of(config)
    sources, refused = list_sources(config.dataset_path, exclude=storage.absolute(exclude) if exclude else output)
    if config.limit:
        sources = shards.sample_sources(sources, config.limit)
    vocabulary, tokenizer = load_vocabulary(config)
    rules_entry = {"name": rules.name, "digest": rules.digest}
    deciding = {**_flat(settings), "code_version": CODE_VERSION}
    wanted = identity(deciding, rules_entry, tokenizer)
    if done := find_finished(output, wanted, sources):
        storage.delete(storage.join(output, "_work"))
        return replace(done, unchanged=True)
    begun = storage.join(output, "_work")
    try:
        with storage.locked(storage.join(begun, "lock")), tasks.placed(labels(config.prepare_on)):
            # Whoever held the lock may have done it all meanwhile.
            if done := find_finished(output, wanted, sources):
                made = replace(done, unchanged=True)
            else:
                made = _make(config, output, rules, settings, sources, refused, (vocabulary, tokenizer), deciding)
    except DataError:
        # Where nothing was made that a next run could use, nothing is left.
        if all(storage.basename(file.uri) == "lock" for file in storage.list_files(begun, hidden=True)):
            storage.delete(begun)
        raise
    storage.delete(begun)
    return made


def _make(
    config: PrepareConfig, output: str, rules: Rules, settings: stages.Settings, sources: list[Source],
    refused: list[Rejection], tokens: tuple[collect.Vocabulary | None, dict[str, Any] | None], deciding: dict[str, Any],
) -> Manifest:  # fmt: skip
    """The work itself, or what is left of it to do."""
    vocabulary, tokenizer = tokens
    rules_entry = {"name": rules.name, "digest": rules.digest}
    storage.delete(storage.join(output, "manifest.json"))
    # What dedup, held-out choice and tokenizing do not touch is reused when only they change.
    work = storage.join(output, "_work", stages.key_of(rules.digest, settings.cleaning, CODE_VERSION)[:16])
    storage.write_bytes(storage.join(work, "started"), b"")
    units = plan_units(sources)
    if config.limit:  # of a big source the first part alone
        units = [unit for unit in units if not unit.start]
    groups = shards.group_units(units)
    cleaned = tasks.each(
        partial(stages.clean_shard, work=work, rules=rules, settings=settings),
        list(enumerate(groups)),
        [sum(map(shards.unit_bytes, group)) for group in groups],
        "cleaning",
    )
    corpus = stages.key_of([marker["key"] for marker in cleaned])
    entries = _entries(work, len(groups))
    rejected = [*refused, *_rejections(work, len(groups))]
    if not entries:
        storage.delete(work)
        reasons = ", ".join(f"{why} ({count})" for why, count in Counter(r.reason for r in rejected).most_common(5))
        raise DataError(
            f"no text is left of {len(sources)} files: {reasons}\nhint: look at the files, or use other `--rules`"
        )
    gone, related = _find_duplicates(work, len(groups), cleaned, entries, settings, corpus)
    whole = {(one.shard, one.row) for one in gone if one.chapter < 0}
    staying = [entry for entry in entries if (entry.shard, entry.row) not in whole]
    works = sum(bool(entry["documents"]) * (entry["texts"] - entry["rejected"]) for entry in outcome.inputs(cleaned))
    if config.document_unit == "work":
        works -= len(whole)
    cuts = _cuts(work, len(groups), gone, works, settings, corpus)
    if SHARED_LINE in rules.off:
        cuts = cuts._replace(lines=frozenset())
    heldout = shards.choose_heldout(staying, config.heldout_fraction, related)
    size = shards.PACK_SHARD_BYTES if config.records == "documents" else sum(entry.num_bytes for entry in entries)
    ranges = {
        "documents": shards.pack_ranges([entry for entry in staying if entry.doc_id not in heldout], size),
        "heldout": shards.pack_ranges([entry for entry in staying if entry.doc_id in heldout], size),
    }
    jobs = [(kind, index, shard) for kind, parts_of_kind in ranges.items() for index, shard in enumerate(parts_of_kind)]
    collected = tasks.each(
        partial(collect.collect_shard, cuts=cuts, work=work, vocabulary=vocabulary, settings=settings, corpus=corpus),
        jobs,
        [sum(entry.num_bytes for entry in shard) for _, _, shard in jobs],
        "packing" if vocabulary else "collecting",
        threads=config.records == "segments",
    )
    trained = collected[: len(ranges["documents"])]
    published = _publish(work, output, len(groups), jobs, trained, sorted({one.shard for one in gone}), vocabulary)
    outcome.write_rejected(output, rejected)

    inputs = outcome.inputs(cleaned)
    manifest = Manifest(
        raystyle=__version__,
        inputs=inputs,
        rules=rules_entry,
        tokenizer=tokenizer,
        config=deciding,
        counts=outcome.counts(inputs, refused, rejected, cleaned, gone, collected, len(trained), settings),
        shards=published,
        digest=stages.key_of(
            identity(deciding, rules_entry, tokenizer),
            [[entry[name] for name in ("relpath", "size", "sha256", "encoding")] for entry in inputs],
            [entry.doc_id for entry in entries],
            sorted(heldout),
            [marker["content"] for marker in collected],
        ),
        output_dir=output,
    )
    write_report(manifest, rules, cleaned, rejected, collected, outcome.shown_duplicates(work, gone), cuts.lines)
    manifest.save()
    return manifest


def settings_of(config: PrepareConfig) -> stages.Settings:
    """The fields of a config that decide what documents and rows are."""
    own = {name: getattr(config, name) for name in stages.Settings._fields if name != "limits"}
    limits = Limits(*(getattr(config, name) for name in Limits._fields))
    if config.records == "segments":
        own["dedup"] = "none"
    return stages.Settings(**own, limits=limits)


def _flat(settings: stages.Settings) -> dict[str, Any]:
    """Settings by the names of their flags."""
    flat = settings._asdict()
    return {**flat.pop("limits")._asdict(), **flat}


def load_vocabulary(config: PrepareConfig) -> tuple[collect.Vocabulary | None, dict[str, Any] | None]:
    """The tokenizer for the tasks, and what the manifest says of it; None twice where none is named."""
    name = config.tokenizer_name_or_path or config.model_name_or_path
    if name is None:
        return None, None
    tokenizer = load_tokenizer(name, config.trust_remote_code)
    prefix, eos_id = prefix_and_end(tokenizer)
    pad_id = eos_id if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
    vocabulary = collect.Vocabulary(backend_json(tokenizer), tokenizer_digest(tokenizer), tuple(prefix), eos_id, pad_id)
    entry = {
        "name": name,
        "digest": vocabulary.digest,
        "vocab_size": len(tokenizer),
        "eos_id": eos_id,
        "pad_id": pad_id,
    }
    return vocabulary, entry


def _entries(work: str, num_groups: int) -> list[shards.Entry]:
    """Every document, in the order of sources and of places in them."""
    entries = []
    for shard in range(num_groups):
        uri = storage.join(work, f"clean-{shard:05d}.documents.parquet")
        ledger = parts.read(uri, ["doc_id", "group", "bytes"]).to_pylist()
        entries += [shards.Entry(shard, row, d["doc_id"], d["group"], d["bytes"]) for row, d in enumerate(ledger)]
    return entries


def _rejections(work: str, num_groups: int) -> list[Rejection]:
    uris = [storage.join(work, f"clean-{shard:05d}.rejected.parquet") for shard in range(num_groups)]
    return [Rejection(**row) for uri in uris for row in parts.read(uri).to_pylist()]


def _find_duplicates(
    work: str,
    num_groups: int,
    cleaned: list[dict[str, Any]],
    entries: list[shards.Entry],
    settings: stages.Settings,
    corpus: str,
) -> tuple[list[collect.Gone], list[Any]]:
    """What dedup takes out, and which of the documents that stay are related."""
    if settings.signed == "none":
        return [], []
    has_chapters = any(marker["chapters"] for marker in cleaned)
    bands = [
        (kind, group)
        for kind in ("whole", "chapters")[: 1 + has_chapters]
        for group in range(len(duplicates.band_groups()))
    ]
    if settings.signed == "near":
        task = partial(duplicates.find_meetings, num_shards=num_groups, work=work, corpus=corpus)
        tasks.each(task, bands, [1] * len(bands), "looking for duplicates", "band")
    choose = partial(
        duplicates.choose_duplicates, num_groups, has_chapters, work=work, settings=settings, corpus=corpus
    )
    found = tasks.once(choose)
    doc_ids = {(entry.shard, entry.row): entry.doc_id for entry in entries}
    gone = [
        collect.Gone(**choice, kept_doc_id=doc_ids[choice["kept_shard"], choice["kept_row"]])
        for choice in parts.read(storage.join(work, "choices.parquet")).to_pylist()
    ]
    by_shard: dict[int, list[collect.Gone]] = {}
    for one in gone:
        by_shard.setdefault(one.shard, []).append(one)
    jobs = sorted(by_shard.items())
    tasks.each(
        partial(collect.collect_duplicates, work=work), jobs, [len(mine) for _, mine in jobs], "setting aside", "text"
    )
    return gone, [((a, b), (c, d)) for (a, b), (c, d) in found["related"]]


def _cuts(
    work: str, num_groups: int, gone: list[collect.Gone], documents: int, settings: stages.Settings, corpus: str
) -> collect.Cuts:
    chapters: dict[tuple[int, int], list[int]] = {}
    for one in gone:
        if one.chapter >= 0:
            chapters.setdefault((one.shard, one.row), []).append(one.chapter)
    if settings.records == "segments":
        return collect.Cuts({}, frozenset())
    whole = [(one.shard, one.row) for one in gone if one.chapter < 0]
    count = partial(
        duplicates.shared_lines, num_shards=num_groups, work=work, gone=whole, documents=documents, corpus=corpus
    )
    shared = tasks.once(count)
    return collect.Cuts(chapters, frozenset(line for line, _ in shared["lines"]))


def _publish(
    work: str, output: str, num_groups: int, jobs: list[Any], trained: list[dict[str, Any]], gone: list[int],
    vocabulary: collect.Vocabulary | None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Move finished parts to where they belong, now that each shard's first row is known; the manifest's shards."""
    moves: list[tuple[str, str, int | None]] = []
    numbers: Counter[str] = Counter()

    def move(source: str, folder: str, first_row: int | None = None) -> None:
        moves.append((f"{source}.parquet", f"{folder}/{parts.part_name(numbers[folder])}", first_row))
        numbers[folder] += 1

    for index in range(num_groups):
        move(f"clean-{index:05d}.removed", "removed")
    for kind, index, _ in jobs:
        move(f"{kind}-{index:05d}.documents", kind)
        move(f"{kind}-{index:05d}.removed", "removed")
    for shard in gone:
        move(f"duplicates-{shard:05d}", "duplicates")
    rows = 0
    for index, marker in enumerate(trained if vocabulary else []):
        move(f"documents-{index:05d}.rows", "rows", rows)
        rows += marker["rows"]
    outcome.remove_stale(output, {target for _, target, _ in moves} | {f"rejected/{parts.part_name(0)}"})
    places = [(storage.join(work, source), storage.join(output, target), first) for source, target, first in moves]
    batches = [places[start : start + PARTS_PER_TASK] for start in range(0, len(places), PARTS_PER_TASK)]
    done = tasks.each(collect.publish, batches, [len(batch) for batch in batches], "publishing", "part")
    hashes = [sha256 for result in done for sha256 in result["sha256"]]
    return [
        {"path": f"rows/{parts.part_name(index)}", "rows": marker["rows"], "tokens": marker["tokens"], "sha256": sha256}
        for index, (marker, sha256) in enumerate(zip(trained if vocabulary else [], hashes, strict=True))
    ]
