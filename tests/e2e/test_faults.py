"""The whole of `prepare` from S3 to S3 on a bad day gives what it gives on a local disk."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from faults import KINDS, FaultyProxy
from prose import PROSE

from raystyle import storage

pytestmark = pytest.mark.e2e

DRIVER = """
import json, sys
import ray
from raystyle.config import PrepareConfig
from raystyle.corpus.prepare import prepare

ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
source, output, tokenizer = sys.argv[1:]
manifest = prepare(PrepareConfig(dataset_path=(source,), output_dir=output, tokenizer_name_or_path=tokenizer,
                                 max_seq_length=64, segment_length=16, heldout_fraction=0.2))
print(json.dumps({"digest": manifest.digest, "counts": manifest.counts,
                  "shards": [shard["sha256"] for shard in manifest.shards]}))
"""


def prepared(source: str, output: str, tokenizer: str, endpoint: str) -> dict[str, object]:
    """What `prepare` says in a process of its own, whose Ray workers reach S3 through `endpoint`."""
    result = subprocess.run(
        [sys.executable, "-c", DRIVER, source, output, tokenizer],
        env=os.environ | {"AWS_ENDPOINT_URL": endpoint},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    said: dict[str, object] = json.loads(result.stdout.strip().splitlines()[-1])
    return said


def test_bad_weather_does_not_change_the_result(
    tmp_path: Path, s3_server: str, bucket: str, tokenizer_dir: str
) -> None:
    local = tmp_path / "in"
    for number in range(12):
        # Shuffled, so that no two books are alike; but one of them is there twice.
        letters = random.Random(min(number, 10)).choices("".join(PROSE), k=600)
        lines = [f"第{min(number, 10)}部书。", *("".join(letters[i : i + 20]) for i in range(0, 600, 20))]
        storage.write_bytes(f"{local}/集 {number % 3}/书{number}.txt", "\n".join(lines).encode("gb18030"))
    storage.write_bytes(f"{local}/坏.txt.gz", b"\x1f\x8b\x08\x00")
    storage.upload(str(local), f"{bucket}/in")
    expected = prepared(str(local), str(tmp_path / "out"), tokenizer_dir, s3_server)

    with FaultyProxy(s3_server) as proxy:
        proxy.bad_weather(seed=11, rate=0.25)
        found = prepared(f"{bucket}/in", f"{bucket}/out", tokenizer_dir, proxy.endpoint)
        assert all(proxy.counts[kind] for kind in KINDS), proxy.counts
    assert found == expected and expected["shards"]
    assert expected["counts"]["duplicates"] == 1 and expected["counts"]["rejected"] == 1
    for folder in ("documents", "heldout", "removed", "duplicates", "rejected", "rows"):
        ours, theirs = (tables(f"{root}/{folder}") for root in (f"{bucket}/out", tmp_path / "out"))
        assert ours == theirs and ours


def tables(place: str) -> dict[str, object]:
    """The tables below a place by their names, without where their text came from."""
    return {
        storage.basename(file.uri): pq.read_table(storage.open_input(file.uri)).drop_columns(
            [name for name in ("source",) if "/rows/" not in file.uri]
        )
        for file in storage.list_files(place)
    }
