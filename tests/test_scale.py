"""What the driver holds grows with files, documents and shards, and never with rows: docs/scaling.md counts on it."""

import json
import sys
import time
import tracemalloc
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "training"))  # Llama-3-8B's shapes, where the plan's own tests have them

import test_plan

from raystyle.corpus import shards
from raystyle.corpus.sources import Source, Unit
from raystyle.training import plan


def peak_bytes(work) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def manifest(num_shards: int, rows: int) -> dict:
    """A manifest as it comes from storage: `num_shards` shards of `rows` rows each."""
    entries = [
        {"path": f"rows/part-{i:05d}.parquet", "rows": rows, "tokens": rows * 4096, "sha256": f"{i:064x}"}
        for i in range(num_shards)
    ]
    return json.loads(json.dumps(test_plan.manifest(rows=num_shards * rows) | {"shards": entries}))


def test_planning_a_training_costs_the_same_for_a_thousand_and_a_billion_rows():
    linears = test_plan.LLAMA_3_8B.linears

    def planned(rows: int) -> int:
        config, told = test_plan.config(max_steps=1000), manifest(1000, rows)
        return peak_bytes(lambda: plan.make_plan(config, told, test_plan.LLAMA_3_8B, linears))

    few, many = planned(1), planned(1_000_000)
    assert many < 1.2 * few + 10_000
    assert many < 1_000_000


def test_a_million_tiny_files_are_planned_in_seconds_and_become_few_tasks():
    source = Source("novels/a.txt", "/novels/a.txt", "a.txt", 2_000, 0, None)
    units = [Unit(source)] * 1_000_000
    begun = time.process_time()
    groups = shards.group_units(units)
    assert time.process_time() - begun < 20
    assert sum(map(len, groups)) == 1_000_000
    assert len(groups) < 1.1 * max(shards.WANTED_GROUPS, 2e9 / shards.MAX_GROUP_BYTES)


def test_a_million_documents_are_packed_in_shards_that_their_bytes_decide():
    entries = [shards.Entry(0, 0, "document", "", 2_000)] * 1_000_000
    ranges = shards.pack_ranges(entries)
    assert len(ranges) == round(2e9 / shards.PACK_SHARD_BYTES)
    assert sum(map(len, ranges)) == 1_000_000
