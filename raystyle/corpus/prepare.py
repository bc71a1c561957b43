"""The Ray Data job: raw files to documents and packed rows.

    list inputs -> clean groups of files -> choose held-out documents -> pack ranges of documents -> publish -> manifest

Ray must be initialised. The job owns its unit of work, for Ray Data's own checkpoints lose rows where one input gives many
outputs, and its writers append under random names: here each task writes parts under names that follow from the plan,
and a marker last. Everything stays below `_work/` until all of it is there; an interrupted run continues from its
markers. Nothing that decides the result looks at the number of cores, so neither does the digest.
"""

import logging
import os
import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import accumulate
from typing import Any

import ray

from raystyle import __version__, storage
from raystyle.config import PrepareConfig
from raystyle.corpus import parts, shards, stages
from raystyle.corpus.manifest import CODE_VERSION, Manifest, find_finished, identity
from raystyle.corpus.report import write_report
from raystyle.corpus.rules import load_rules
from raystyle.corpus.sources import Rejection, list_sources
from raystyle.errors import DataError, RaystyleError
from raystyle.progress import bar
from raystyle.tokens import backend_json, load_tokenizer, prefix_and_end, tokenizer_digest

FOLDERS = ("documents", "heldout", "removed", "rejected", "rows")


def prepare(config: PrepareConfig) -> Manifest:
    """Make the prepared corpus at `config.output_dir`, or find it made already (`unchanged`).

    Raises `DataError` where there is nothing to prepare, `RunError` where the directory belongs to something else,
    `ConfigError`, `ModelError` and `StorageError` for rules, tokenizer and storage that cannot be used.
    """
    output = storage.absolute(config.output_dir)
    rules = load_rules(config.rules)
    settings = stages.Settings(
        config.records, config.document_unit, config.text_column, config.max_seq_length, config.segment_length
    )
    deciding = {**settings._asdict(), "heldout_fraction": config.heldout_fraction, "code_version": CODE_VERSION}
    sources, refused = list_sources(config.dataset_path, exclude=output)
    vocabulary, tokenizer = _load_vocabulary(config)
    rules_entry = {"name": rules.name, "digest": rules.digest}
    wanted = identity(deciding, rules_entry, tokenizer)
    if done := find_finished(output, wanted, sources):
        storage.delete(storage.join(output, "_work"))
        return replace(done, unchanged=True)
    storage.delete(storage.join(output, "manifest.json"))

    # What tokenizing and held-out choice do not touch is reused when only they change.
    cleaning = [rules.digest, config.records, config.document_unit, config.text_column, CODE_VERSION]
    work = storage.join(output, "_work", stages.key_of(cleaning)[:16])
    storage.write_bytes(storage.join(work, "started"), b"")
    groups = shards.group_sources(sources)
    cleaned = _map(
        partial(stages.clean_shard, work=work, rules=rules, settings=settings),
        list(enumerate(groups)),
        [sum(source.size for source in group) for group in groups],
        "cleaning",
    )
    entries = _entries(work, len(groups))
    rejected = [*refused, *_rejections(work, len(groups))]
    if not entries:
        storage.delete(storage.join(output, "_work"))
        reasons = ", ".join(
            f"{reason} ({count})" for reason, count in Counter(r.reason for r in rejected).most_common(5)
        )
        raise DataError(
            f"no text is left of {len(sources)} files: {reasons}\nhint: look at the files, or use other `--rules`"
        )
    heldout = shards.choose_heldout(entries, config.heldout_fraction)
    ranges = {
        "documents": shards.pack_ranges([entry for entry in entries if entry.doc_id not in heldout]),
        "heldout": shards.pack_ranges([entry for entry in entries if entry.doc_id in heldout]),
    }
    jobs = [(kind, index, shard) for kind, parts_of_kind in ranges.items() for index, shard in enumerate(parts_of_kind)]
    packed = _map(
        partial(stages.pack_shard, work=work, vocabulary=vocabulary, settings=settings),
        jobs,
        [sum(entry.num_bytes for entry in shard) for _, _, shard in jobs],
        "packing" if vocabulary else "collecting",
    )
    trained = packed[: len(ranges["documents"])]
    published = _publish(work, output, len(groups), jobs, trained, vocabulary is not None)
    _write_rejected(output, rejected)
    _remove_stale(output, {"documents": len(trained), "heldout": len(packed) - len(trained), "removed": len(groups),
                           "rejected": 1, "rows": len(published)})  # fmt: skip

    inputs = [entry for marker in cleaned for entry in marker["inputs"]]
    manifest = Manifest(
        raystyle=__version__,
        inputs=inputs,
        rules=rules_entry,
        tokenizer=tokenizer,
        config=deciding,
        counts=_counts(inputs, cleaned, rejected, entries, heldout, trained if vocabulary else None, settings),
        shards=published,
        digest=stages.key_of(
            wanted,
            [[entry[name] for name in ("relpath", "size", "sha256", "encoding")] for entry in inputs],
            [entry.doc_id for entry in entries],
            sorted(heldout),
            [marker["content"] for marker in packed],
        ),
        output_dir=output,
    )
    write_report(manifest, rules, cleaned, rejected, entries)
    manifest.save()
    storage.delete(storage.join(output, "_work"))
    return manifest


def _load_vocabulary(config: PrepareConfig) -> tuple[stages.Vocabulary | None, dict[str, Any] | None]:
    name = config.tokenizer_name_or_path or config.model_name_or_path
    if name is None:
        return None, None
    tokenizer = load_tokenizer(name, config.trust_remote_code)
    prefix, eos_id = prefix_and_end(tokenizer)
    pad_id = eos_id if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
    vocabulary = stages.Vocabulary(backend_json(tokenizer), tokenizer_digest(tokenizer), tuple(prefix), eos_id, pad_id)
    entry = {
        "name": name,
        "digest": vocabulary.digest,
        "vocab_size": len(tokenizer),
        "eos_id": eos_id,
        "pad_id": pad_id,
    }
    return vocabulary, entry


def _map(
    function: Callable[..., dict[str, Any]], jobs: list[Any], sizes: list[int], title: str, unit: str = "B"
) -> list[dict[str, Any]]:
    """Call a function with each job's arguments through Ray Data, one task each; results in the jobs' order."""
    if not jobs:
        return []

    def run(row: dict[str, Any]) -> dict[str, Any]:
        # One process per core: the tokenizer's own threads would only get in each other's way.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        result: dict[str, Any] | RaystyleError
        try:
            result = function(*pickle.loads(row["job"]))
        except RaystyleError as error:
            # Ray would wrap it, log it twice, and lose what it was.
            result = error
        return {"index": row["index"], "result": pickle.dumps(result)}

    results: dict[int, dict[str, Any]] = {}
    items = [{"index": index, "job": pickle.dumps(job)} for index, job in enumerate(jobs)]
    with _quiet_ray_data(), bar(sum(sizes), title, unit) as progress:
        dataset = ray.data.from_items(items, override_num_blocks=len(items))
        for row in dataset.map(run, num_cpus=1).iter_rows():
            result = pickle.loads(row["result"])
            if isinstance(result, RaystyleError):
                raise result
            results[row["index"]] = result
            progress.update(sizes[row["index"]])
    return [results[index] for index in range(len(jobs))]


@contextmanager
def _quiet_ray_data() -> Iterator[None]:
    """Ray Data without its own bars and logs; ours says what the user wants to know. As it was, afterwards."""
    context, logger = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    before = context.enable_progress_bars, context.print_on_execution_start, logger.level
    context.enable_progress_bars = context.print_on_execution_start = False
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars, context.print_on_execution_start = before[:2]
        logger.setLevel(before[2])


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


def _publish(
    work: str, output: str, num_groups: int, jobs: list[Any], trained: list[dict[str, Any]], has_rows: bool
) -> list[dict[str, Any]]:
    """Move finished parts to where they belong, now that each shard's first row is known; the manifest's shards."""
    firsts = list(accumulate((marker["rows"] for marker in trained), initial=0)) if has_rows else []
    moves: list[tuple[str, int, int | None]] = [("clean", index, None) for index in range(num_groups)]
    moves += [(kind, index, firsts[index] if has_rows and kind == "documents" else None) for kind, index, _ in jobs]
    publish = partial(stages.publish_shard, work=work, output=output)
    done = _map(publish, moves, [1] * len(moves), "publishing", "part")
    hashes = [result["sha256"] for result in done if result["sha256"]]
    return [
        {"path": f"rows/{parts.part_name(index)}", "rows": marker["rows"], "tokens": marker["tokens"], "sha256": sha256}
        for index, (marker, sha256) in enumerate(zip(trained if has_rows else [], hashes, strict=True))
    ]


def _write_rejected(output: str, rejected: list[Rejection]) -> None:
    table = parts.table([tuple(rejection) for rejection in rejected], parts.REJECTED)
    parts.write(storage.join(output, "rejected", parts.part_name(0)), table)


def _remove_stale(output: str, expected: dict[str, int]) -> None:
    """Delete parts that an interrupted run of another config or of more inputs has left."""
    for folder in FOLDERS:
        uri = storage.join(output, folder)
        names = {parts.part_name(index) for index in range(expected[folder])}
        for file in storage.list_files(uri) if storage.exists(uri) else []:
            if storage.basename(file.uri) not in names:
                storage.delete(file.uri)


def _counts(
    inputs: list[dict[str, Any]],
    cleaned: list[dict[str, Any]],
    rejected: list[Rejection],
    entries: list[shards.Entry],
    heldout: set[str],
    trained: list[dict[str, Any]] | None,
    settings: stages.Settings,
) -> dict[str, Any]:
    """What went in and what became of it. `characters` are those of lines, without line breaks."""
    hits: Counter[str] = Counter()
    for marker in cleaned:
        hits.update(marker["hits"])
    total = {name: sum(entry[name] for entry in inputs) for name in ("lines", "characters_in", "characters_kept")}
    rows = sum(marker["rows"] for marker in trained) if trained is not None else None
    tokens = sum(marker["tokens"] for marker in trained) if trained is not None else None
    return {
        "inputs": len(inputs),
        "documents": len(entries) - len(heldout),
        "heldout": len(heldout),
        "rejected": len(rejected),
        "removed": sum(hits.values()),
        **total,
        "rows": rows,
        "tokens": tokens,
        "padding": rows * settings.max_seq_length - tokens if rows is not None and tokens is not None else None,
        "removed_by_rule": dict(sorted(hits.items())),
    }
