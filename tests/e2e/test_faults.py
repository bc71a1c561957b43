"""The whole of `prepare` from S3 to S3 on a bad day gives what it gives on a local disk."""

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
from raystyle.config import PrepareConfig
from raystyle.corpus.manifest import read_manifest
from raystyle.corpus.prepare import prepare

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SETTINGS = {"max_seq_length": 64, "segment_length": 16, "heldout_fraction": 0.2}


def prepared_through(endpoint: str, source: str, output: str, tokenizer: str) -> None:
    """`raystyle prepare` with a Ray of its own, whose workers reach S3 through `endpoint`."""
    places = {"dataset_path": source, "output_dir": output, "tokenizer_name_or_path": tokenizer, "num_cpus": 2}
    words = [word for name, value in (places | SETTINGS).items() for word in (f"--{name}", str(value))]
    result = subprocess.run(
        [sys.executable, "-m", "raystyle", "prepare", *words],
        env=os.environ | {"AWS_ENDPOINT_URL": endpoint},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]


def test_bad_weather_does_not_change_the_result(
    tmp_path: Path, ray_local: None, s3_server: str, bucket: str, tokenizer_dir: str
) -> None:
    local = tmp_path / "in"
    for number in range(12):
        # Shuffled, so that no two books are alike; but one of them is there twice.
        letters = random.Random(min(number, 10)).choices("".join(PROSE), k=600)
        lines = [f"第{min(number, 10)}部书。", *("".join(letters[i : i + 20]) for i in range(0, 600, 20))]
        storage.write_bytes(f"{local}/集 {number % 3}/书{number}.txt", "\n".join(lines).encode("gb18030"))
    storage.write_bytes(f"{local}/坏.txt.gz", b"\x1f\x8b\x08\x00")
    storage.upload(str(local), f"{bucket}/in")
    places = {
        "dataset_path": (str(local),),
        "output_dir": str(tmp_path / "out"),
        "tokenizer_name_or_path": tokenizer_dir,
    }
    expected = prepare(PrepareConfig(**places, **SETTINGS))

    with FaultyProxy(s3_server) as proxy:
        proxy.bad_weather(seed=11, rate=0.25)
        prepared_through(proxy.endpoint, f"{bucket}/in", f"{bucket}/out", tokenizer_dir)
        assert all(proxy.counts[kind] for kind in KINDS), proxy.counts
    found = read_manifest(f"{bucket}/out")
    assert (found.digest, found.counts) == (expected.digest, expected.counts)
    assert [shard["sha256"] for shard in found.shards] == [shard["sha256"] for shard in expected.shards] != []
    assert expected.counts["duplicates"] == 1 and expected.counts["rejected"] == 1
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
