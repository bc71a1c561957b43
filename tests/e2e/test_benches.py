"""The bench of GPU training runs on a CPU, with a tiny model: the same code but for the kernels."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

BENCH = Path(__file__).parents[2] / "bench" / "gpu_train.py"


def test_the_gpu_bench_runs_tiny_and_its_ways_learn_the_same(tmp_path):
    ways = ["PEFT's layers, 1 row", "fused LoRA, 1 row", "reference preset, as 80 GB allow"]
    command = [sys.executable, BENCH, "--tiny", "--no_trl", "--output", tmp_path / "found.json", "--only", *ways]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert list(found["ways"]) == ways
    peft, fused, reference = found["ways"].values()
    assert (peft["fused_layers"], fused["fused_layers"]) == (0, 14)
    assert peft["losses"] == pytest.approx(fused["losses"], abs=1e-3)
    assert reference["recomputing_layers"] == 0
    for way in found["ways"].values():
        assert way["losses"][-1] < way["losses"][0]
        assert way["tokens_per_second"] > 0
