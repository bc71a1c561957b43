"""Live streaming: raw text becomes rows on CPU cores while other workers train on them. Joins the corpus and training.

Ray Data makes shard after shard (`corpus.stream`) in one order, cuts them into micro-batches and hands those to the
workers (`training.streamed`); it makes no more than fits its buffers. The dataset begins at the cursor of the run's last
good checkpoint, so a run that continues makes one shard again, skips what was taken of it, and replays nothing.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

from raystyle import storage
from raystyle.config import PrepareConfig, TrainConfig
from raystyle.corpus import prepare, shards, stages, stream, tasks
from raystyle.corpus.manifest import CODE_VERSION
from raystyle.corpus.packs import load_rules
from raystyle.corpus.sources import Rejection, list_sources, plan_units
from raystyle.errors import ConfigError
from raystyle.training import checkpoints

OUTCOMES = "streamed"  # below the run: what became of each input
# Shards are planned for so many times the rows that a run takes: text that rules remove or reject gives fewer.
MARGIN = 8
MAX_SHARDS = 200_000
MAX_PASSES = 10_000
BYTES_PER_TOKEN = 4  # of UTF-8 text, about; Chinese has 3 a character
CHARACTERS_PER_TOKEN = 2  # at most, about, of Chinese


def survey(config: PrepareConfig, run_dir: str) -> dict[str, Any]:
    """List a stream's inputs, which no run's own files are: what stands for a manifest, without rows. Its digest knows them by
    name, size and time."""
    corpus, refused, tokenizer = _listed(config, run_dir)
    sources = {unit.source.relpath: unit.source for unit in corpus.units}.values()
    size = sum(map(shards.unit_bytes, corpus.units))
    beside = f", {len(refused)} files are no text" if refused else ""
    return {
        "counts": {"rows": None, "tokens": None, "heldout": 0},
        "max_seq_length": corpus.settings.max_seq_length,
        "tokenizer": tokenizer,
        "digest": stages.key_of(
            "stream", corpus.settings, corpus.rules.digest, CODE_VERSION, corpus.vocabulary.digest,
            [[source.relpath, source.size, source.mtime_ns] for source in sources],
        ),
        "shards": [],
        "stream": {
            "shards": corpus.num_shards,
            "told": f"made while training of {len(sources):,} files, {size / 1e6:,.1f} MB as they lie{beside}",
        },
    }  # fmt: skip


def dataset_of(config: TrainConfig, raw: PrepareConfig, steps: int) -> Callable[[], Any]:
    """What makes the Ray Data dataset of a run's rows, wherever the run has got to; picklable."""
    corpus, refused, _ = _listed(raw, config.output_dir, config.seed)
    rows, size = steps * config.global_batch_size, sum(map(shards.unit_bytes, corpus.units))
    per_shard = max(0.5, size / corpus.num_shards / BYTES_PER_TOKEN / corpus.settings.max_seq_length)
    passes = rows / per_shard / corpus.num_shards
    if passes > MAX_PASSES:
        raise ConfigError(
            f"{steps:,} steps are {passes:,.0f} passes over a small corpus, cleaned again in each\n"
            "hint: train without `--streaming`; or fewer `--max_steps`"
        )
    listed = [rejection._asdict() for rejection in refused]
    return functools.partial(_dataset, corpus, config, rows, per_shard, listed)


def _listed(
    raw: PrepareConfig, run_dir: str, seed: int = 0
) -> tuple[stream.Stream, list[Rejection], dict[str, Any] | None]:
    """A stream by its inputs; what of them is no text; and what a manifest says of the tokenizer."""
    rules, settings = load_rules(raw.rules, raw.enable_rules, raw.disable_rules), prepare.settings_of(raw)
    sources, refused = list_sources(raw.dataset_path, exclude=storage.absolute(run_dir))
    units = plan_units(sources)
    vocabulary, tokenizer = prepare.load_vocabulary(raw)
    assert vocabulary, "training names a tokenizer"
    settings = settings._replace(dedup="none")
    outcomes = storage.join(run_dir, OUTCOMES)
    return (
        stream.Stream(units, stream.count_shards(units), seed, rules, settings, vocabulary, outcomes),
        refused,
        tokenizer,
    )


def told(output_dir: str) -> str:
    """What became of the inputs that a run has read, in a sentence."""
    return stream.told(storage.join(output_dir, OUTCOMES))


def _dataset(
    corpus: stream.Stream, config: TrainConfig, rows: int, per_shard: float, listed: list[dict[str, Any]]
) -> Any:
    import ray.data

    if listed:
        outcome = {"inputs": [], "hits": {}, "rejected": listed}
        storage.write_json(storage.join(corpus.outcomes, "listing.json"), outcome)
    checkpoint, _ = checkpoints.last_good(storage.join(config.output_dir, "checkpoints"))
    cursor = stream.Cursor(*checkpoints.read_cursor(checkpoint))

    def make(batch: Any) -> Iterator[Any]:
        tasks.use_one_core()
        shard = cursor.shard + batch["id"][0].as_py()
        skipped = cursor.row if shard == cursor.shard else 0
        yield stream.SCHEMA.empty_table()  # Ray Data takes no function that gives nothing
        for table in stream.rows_of(corpus, shard):
            yield table.slice(skipped)
            skipped = max(0, skipped - len(table))

    count = _shards_for(corpus, config, rows, per_shard)
    numbers = ray.data.range(count, override_num_blocks=count)
    made = numbers.map_batches(make, batch_size=1, batch_format="pyarrow", num_cpus=1)
    return made.repartition(target_num_rows_per_block=config.per_device_train_batch_size, strict=True)


def _shards_for(corpus: stream.Stream, config: TrainConfig, rows: int, per_shard: float) -> int:
    """How many shards a start plans for, which Ray Data wants to know: so many that the run should never see their end.

    Should it, the next start knows from the outcomes of the first pass what its inputs come to.
    """
    kept = stream.characters_kept(corpus)
    if kept:
        per_shard = kept / corpus.num_shards / CHARACTERS_PER_TOKEN / corpus.settings.max_seq_length
    return min(MAX_SHARDS, math.ceil(MARGIN * rows / per_shard) + 2 * min(corpus.num_shards, MAX_SHARDS // 4))
