"""A machine that is announced to go, as clouds do with spot machines: a checkpoint is kept before it does, and the run goes on
from there without it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from raystyle.training import metrics

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).parent / "ray"
STEPS = 1200


def wait_for(condition: Callable[[], object], otherwise: str, timeout_s: float = 300) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.2)


def test_a_run_goes_on_from_where_the_notice_found_it(tiny_model, tiny_prepared, tmp_path, monkeypatch):
    """No checkpoint was planned before the end, and no failure is allowed: an announced one is not counted."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    import resume

    output = tmp_path / "run"
    settings = {
        "model_name_or_path": tiny_model, "dataset_path": tiny_prepared, "output_dir": output, "lora_r": 4, "lora_alpha": 8,
        "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "num_workers": "1..2", "max_steps": STEPS,
        "save_steps": STEPS, "sample_prompt": "", "gradient_checkpointing": "false", "cpus_per_worker": 1,
        "eval_style": "off", "report_to": "none", "max_failures": 0, "shared_paths": "true",
    }  # fmt: skip
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]

    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {
        "RAY_AUTH_MODE": "token"
    }

    def told(name: str) -> list[int]:
        return [entry[name] for entry in metrics.read(str(output)) if name in entry]

    with resume.cluster(PYTHONPATH=str(ROOT)) as ray:
        run = resume.Run(
            [sys.executable, "-m", "raystyle", "train", *words], RAY_ADDRESS=ray.address, RAY_AUTH_MODE="token"
        )
        wait_for(lambda: len(told("loss")) >= 30 or run.ended(), "no steps")
        probe = f"import json, ray; ray.init('{ray.address}', log_to_driver=False); print(json.dumps(ray.nodes()))"
        found = subprocess.run(
            [sys.executable, "-c", probe], env=environment, capture_output=True, text=True, check=True
        ).stdout
        nodes = json.loads(found.splitlines()[-1])
        [second] = [node["NodeID"] for node in nodes if node["NodeManagerAddress"] == "127.0.0.2"]
        reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "taken back"]
        drain = [
            RAY,
            "drain-node",
            "--address",
            ray.address,
            "--node-id",
            second,
            *reason,
            "--deadline-remaining-seconds",
            "60",
        ]
        done = subprocess.run(drain, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        wait_for(lambda: told("leaving_at_step") or run.ended(), "nobody has heard of it")
        [step] = told("leaving_at_step")
        kept = output / f"checkpoints/step-{step:08d}/checkpoint.json"
        wait_for(kept.exists, "no checkpoint is kept", 60)
        ray.kill_second()
        status, said = run.wait()
    assert status == 0, said
    assert f"a machine is announced to go: a checkpoint is kept after step {step}" in said
    assert told("continued_from_step") == [step]
    assert told("num_workers") == [2, 1]
    assert [entry["step"] for entry in metrics.read(str(output)) if "loss" in entry] == list(range(1, STEPS + 1))
