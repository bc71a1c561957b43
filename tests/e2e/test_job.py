"""`ray job submit` on a cluster of this machine's own, with token authentication on."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).parent / "ray"


def free_ports(count: int) -> list[int]:
    """Free ports outside 10002-19999, which Ray gives to its workers."""
    found: list[int] = []
    for port in range(21000 + os.getpid() % 5000, 30000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                found.append(port)
        if len(found) == count:
            break
    return found


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The address of a Ray head's dashboard, and the environment that a client needs."""
    head_port, dashboard_port, client_port, agent_port = free_ports(4)
    # Ray keeps Unix sockets below its temporary folder, whose path may have 60 characters or so.
    temporary = f"/tmp/raystyle-test-{os.getpid()}"
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "PATH": f"{RAY.parent}{os.pathsep}{os.environ['PATH']}"}
    environment.pop("RAY_ADDRESS", None)
    # `ray start` asks for a token that is there; a local `ray.init()` or this command makes one.
    subprocess.run([RAY, "get-auth-token", "--generate"], env=environment, check=True, capture_output=True)
    ports = [f"--port={head_port}", f"--dashboard-port={dashboard_port}", f"--ray-client-server-port={client_port}"]
    ports.append(f"--dashboard-agent-listen-port={agent_port}")
    settings = ["--dashboard-host=127.0.0.1", "--num-cpus=2", f"--temp-dir={temporary}", "--disable-usage-stats"]
    head = subprocess.Popen(
        [RAY, "start", "--head", "--block", *ports, *settings],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{dashboard_port}"
    deadline = time.monotonic() + 120
    while "succeeded" not in (said := _submit(address, environment, "-c", "pass").stdout):
        assert time.monotonic() < deadline, f"the cluster takes no job: {said[-500:]}"
        time.sleep(1)
    yield address, environment
    os.killpg(head.pid, signal.SIGTERM)
    head.wait(timeout=60)


def submit(cluster, *words: object) -> subprocess.CompletedProcess[str]:
    return _submit(*cluster, *words)


def _submit(address: str, environment: dict[str, str], *words: object) -> subprocess.CompletedProcess[str]:
    command = [RAY, "job", "submit", "--address", address, "--working-dir", ".", "--", "python", *map(str, words)]
    return subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=400
    )


def small(model: Path, prepared: Path, output: object) -> list[object]:
    settings = ["--config", "jobs/configs/demo.json", "--lora_r", 4, "--lora_alpha", 8, "--max_steps", 3]
    batch = ["--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 2, "--cpus_per_worker", 1]
    batch += ["--eval_style", "off"]
    lengths = ["--max_seq_length", 64, "--segment_length", 64]
    places = ["--model_name_or_path", model, "--dataset_path", prepared, "--output_dir", output]
    return [*settings, *batch, *lengths, *places]


def test_a_job_trains_and_leaves_its_adapter_where_the_flag_says(cluster, tiny_model, tiny_prepared, tmp_path):
    done = submit(cluster, "jobs/train.py", *small(tiny_model, tiny_prepared, tmp_path / "run"))
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "run/adapter/adapter_model.safetensors").exists()
    assert "isolation of documents proved" in done.stdout
    assert f"adapter  {tmp_path}/run/adapter" in done.stdout


def test_without_the_token_nothing_is_submitted(cluster, tmp_path):
    """Authentication is on: the tests above would pass on an open cluster too."""
    address, environment = cluster
    stranger = environment | {"RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(
        [RAY, "job", "list", "--address", address], env=stranger, capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0
    assert "token" in (done.stdout + done.stderr).lower()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--dataset_path": "/nowhere/rows"}, "/nowhere/rows"),
        ({"--output_dir": "run"}, "`output_dir` is the relative path"),
    ],
    ids=["missing", "relative"],
)
def test_a_failing_job_says_why_in_its_last_lines(cluster, tiny_model, tiny_prepared, tmp_path, change, message):
    words = small(tiny_model, tiny_prepared, tmp_path / "run")
    for flag, value in change.items():
        words[words.index(flag) + 1] = value
    done = submit(cluster, "jobs/train.py", *words)
    assert done.returncode != 0
    last = [line for line in done.stdout.splitlines() if line.strip()][-4:]
    assert any(message in line for line in last), last
