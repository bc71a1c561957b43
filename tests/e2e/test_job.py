"""`ray job submit` on a cluster of this machine's own, with token authentication on."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import builders
import httpx
import psutil
import pytest

from raystyle import storage

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).parent / "ray"


# What a cluster's environment may hold. The S3 server takes any keys.
SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIAPLANTEDKEY7XQ2M4",
    "AWS_SECRET_ACCESS_KEY": "planted/aws+secret8Zk1Qw7Rt5Yp3Lm9Vx2Nc4Bd6",
    "HF_TOKEN": "hf_plantedHubToken9sKq2LmWv7ZtXyB4RnPc",
    "OPENAI_API_KEY": "sk-planted-api-key-3fJ8mQ1xTz6Wc9Vb2Nk5",
    "WANDB_API_KEY": "planted-wandb-key-71c0ffee71c0ffee71c0",
}


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
def cluster(tmp_path_factory, s3_server):
    """The address of a Ray head's dashboard, and the environment that a client needs."""
    head_port, dashboard_port, client_port, agent_port = free_ports(4)
    # Ray keeps Unix sockets below its temporary folder, whose path may have 60 characters or so.
    temporary = f"/tmp/raystyle-test-{os.getpid()}"
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "PATH": f"{RAY.parent}{os.pathsep}{os.environ['PATH']}"}
    environment |= SECRETS
    environment.pop("RAY_ADDRESS", None)
    environment["HEAD_PORT"] = str(head_port)
    # `ray start` asks for a token that is there; a local `ray.init()` or this command makes one.
    subprocess.run([RAY, "get-auth-token", "--generate"], env=environment, check=True, capture_output=True)
    ports = [f"--port={head_port}", f"--dashboard-port={dashboard_port}", f"--ray-client-server-port={client_port}"]
    ports.append(f"--dashboard-agent-listen-port={agent_port}")
    settings = ["--dashboard-host=127.0.0.1", "--num-cpus=2", f"--temp-dir={temporary}", "--disable-usage-stats"]
    settings.append("--labels=pool=cpu")
    head = subprocess.Popen(
        [RAY, "start", "--head", "--block", *ports, *settings],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{dashboard_port}"
    deadline = time.monotonic() + 400
    while "succeeded" not in (said := _submit(address, environment, "-c", "pass").stdout):
        assert time.monotonic() < deadline, f"the cluster takes no job: {said[-500:]}"
        time.sleep(1)
    yield address, environment
    # At once: a head that is asked to stop takes most of a minute. Its workers end with it.
    os.killpg(head.pid, signal.SIGKILL)
    head.wait()


def submit(cluster, *words: object) -> subprocess.CompletedProcess[str]:
    return _submit(*cluster, *words)


def _submit(address: str, environment: dict[str, str], *words: object) -> subprocess.CompletedProcess[str]:
    travels = ["--working-dir", ".", "--runtime-env", "cluster/runtime-env.yaml"]
    command = [RAY, "job", "submit", "--address", address, *travels, "--", "python", *map(str, words)]
    return subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=400
    )


def serve_flags(model: Path, adapters: Path) -> dict[str, object]:
    return {
        "model_name_or_path": str(model),
        "adapters_path": [str(adapters)],
        "max_length": 128,
        "allow_unverified_base": True,
        "cpus_per_replica": 1,
    }


def answers(url: str, key: str | None = None, timeout_s: float = 600) -> dict[str, Any]:
    """What a service says of its models, once it does."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            answer = httpx.get(f"{url}/v1/models", headers=headers, timeout=10)
            if answer.status_code == 200:
                return answer.json()
        except httpx.TransportError:
            pass
        assert time.monotonic() < deadline
        time.sleep(1)


def is_closed(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.fixture
def serve(cluster):
    """Runs the `serve` command; afterwards nothing is served, whatever the test left."""
    address, environment = cluster

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        command = [RAY.parent / "serve", words[0], "-a", address, *words[1:]]
        return subprocess.run(
            list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400
        )

    yield run
    run("shutdown", "-y")


def test_a_job_serves_until_it_is_stopped(cluster, serve, tiny_model, tmp_path):
    """`ray job stop` here kills the driver at once: it lets no request finish and takes nothing down; the service does."""
    address, environment = cluster
    adapter = builders.write_adapter(tmp_path / "adapters/style", tiny_model)
    [port] = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    flags = serve_flags(tiny_model, adapter) | {"adapters_path": adapter, "port": port}
    flags |= {"max_length": 500, "drain_timeout_s": 300}  # a slow machine has minutes to finish what runs
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    impatient = json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "0"}})
    job = ["job", "submit", "--address", address, "--no-wait", "--submission-id", f"serve-{port}", "--working-dir", "."]
    job += ["--runtime-env-json", impatient]
    started = subprocess.run(
        [RAY, *job, "--", "python", "jobs/serve.py", *words], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert started.returncode == 0, started.stdout + started.stderr
    listed = answers(url)
    assert [card["id"] for card in listed["data"]] == ["base", "style"]
    drivers = [process for process in psutil.process_iter() if f"--port {port}" in " ".join(process.cmdline())]
    assert drivers
    token = subprocess.run([RAY, "get-auth-token"], env=environment, capture_output=True, text=True).stdout.split()[-1]
    headers = {"Authorization": f"Bearer {token}"}
    asked = {"model": "style", "prompt": "天", "max_tokens": 490, "n": 16, "temperature": 0, "stream": True}
    with httpx.stream("POST", f"{url}/v1/completions", json=asked, timeout=300) as answer:
        lines = answer.iter_lines()
        next(lines)
        # What `ray job stop` does, and takes seconds to begin with.
        assert httpx.post(f"{address}/api/jobs/serve-{port}/stop", headers=headers, timeout=60).json()["stopped"]
        assert not psutil.wait_procs(drivers, timeout=60)[1]
        assert [line for line in lines if line][-1] == "data: [DONE]"
    deadline = time.monotonic() + 300
    while not is_closed(port):
        assert time.monotonic() < deadline, "stopped, and still listening"
        time.sleep(0.5)


def test_serve_deploy_runs_the_application_with_keys(cluster, serve, tiny_model, tmp_path):
    """jobs/configs/serve.yaml with paths of this machine; without keys it does not start."""
    import yaml

    adapter = builders.write_adapter(tmp_path / "style", tiny_model)
    [port] = free_ports(1)
    config = yaml.safe_load((ROOT / "jobs/configs/serve.yaml").read_text())
    config["http_options"] = {"host": "127.0.0.1", "port": port}
    keys = tmp_path / "keys.txt"
    keys.write_text("me:0123456789abcdef0123456789abcdef\n")
    keys.chmod(0o600)
    [application] = config["applications"]
    application["args"] = serve_flags(tiny_model, adapter) | {"api_key_file": str(keys)}
    file = tmp_path / "serve.yaml"
    file.write_text(yaml.safe_dump(config))

    done = serve("deploy", file)
    assert done.returncode == 0, done.stdout + done.stderr
    listed = answers(f"http://127.0.0.1:{port}", "0123456789abcdef0123456789abcdef")
    assert [card["id"] for card in listed["data"]] == ["base", "style"]
    assert httpx.get(f"http://127.0.0.1:{port}/v1/models", timeout=10).status_code == 401
    del application["args"]["api_key_file"]
    file.write_text(yaml.safe_dump(config))
    assert serve("deploy", file).returncode == 0
    deadline = time.monotonic() + 400
    while "no keys are set" not in (status := serve("status").stdout):
        assert time.monotonic() < deadline, status
        time.sleep(1)


def small(model: Path, prepared: Path, output: object) -> list[object]:
    settings = ["--config", "jobs/configs/demo.json", "--lora_r", 4, "--lora_alpha", 8, "--max_steps", 3]
    batch = ["--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 2, "--cpus_per_worker", 1]
    batch += ["--eval_style", "off"]
    lengths = ["--max_seq_length", 64, "--segment_length", 64]
    places = ["--model_name_or_path", model, "--dataset_path", prepared, "--output_dir", output]
    return [*settings, *batch, *lengths, *places]


def test_a_job_trains_and_leaves_its_adapter_where_the_flag_says(cluster, tiny_model, tiny_prepared, tmp_path):
    labels = ["--prepare_on", "pool=cpu", "--train_on", "pool=cpu"]
    done = submit(cluster, "jobs/train.py", *small(tiny_model, tiny_prepared, tmp_path / "run"), *labels)
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "run/adapter/adapter_model.safetensors").exists()
    assert "isolation of documents proved" in done.stdout
    assert f"adapter  {tmp_path}/run/adapter" in done.stdout


def test_a_stopped_job_continues_where_it_was(cluster, tiny_model, tiny_prepared, tmp_path):
    address, environment = cluster
    words = [*small(tiny_model, tiny_prepared, tmp_path / "run"), "--max_steps", 40, "--save_steps", 4]
    job = ["job", "submit", "--address", address, "--no-wait", "--submission-id", "to-be-stopped", "--working-dir", "."]
    command = [RAY, *job, "--", "python", "jobs/train.py", *map(str, words)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=120)
    wait_for(lambda: list((tmp_path / "run/checkpoints").glob("*/checkpoint.json")), "no checkpoint")
    # What `ray job stop` asks for; the command itself takes seconds to start, in which the run could end.
    token = (Path.home() / ".ray/auth_token").read_text().strip()
    with httpx.Client(base_url=address, headers={"Authorization": f"Bearer {token}"}, timeout=60) as client:
        assert client.post("/api/jobs/to-be-stopped/stop").json()["stopped"]
        wait_for(lambda: client.get("/api/jobs/to-be-stopped").json()["status"] == "STOPPED", "it does not stop")
    assert not (tmp_path / "run/adapter").exists(), "it had ended before it was stopped"
    done = submit(cluster, "jobs/train.py", *words)
    assert done.returncode == 0, done.stdout
    about = json.loads((tmp_path / "run/adapter/raystyle_adapter.json").read_text())
    assert about["step"] == 40
    assert "continued from the checkpoint of step" in done.stdout


def wait_for(condition: Callable[[], object], otherwise: str, timeout_s: float = 300) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.1)


def test_a_pipeline_writes_no_secret_anywhere(cluster, bucket, tiny_model, tmp_path):
    """Raw text to a judged adapter in one job, in object storage; then everything that was written is searched."""
    for number in range(4):
        draw = random.Random(number)
        lines = ["".join(draw.sample(builders.ALPHABET[:-7], 20)) + "。" for _ in range(40)]
        storage.write_bytes(f"{bucket}/novels/{number}.txt", "\n".join(lines).encode())
    words = small(tiny_model, Path("-"), f"{bucket}/run")
    words[words.index("--dataset_path") + 1] = f"{bucket}/novels"
    words[words.index("--eval_style") + 1] = "light"
    done = submit(cluster, "jobs/pipeline.py", *words, "--heldout_fraction", 0.3, "--save_steps", 3)
    assert done.returncode == 0, done.stdout
    token = (Path.home() / ".ray/auth_token").read_text().strip()
    searched = {"the job's output": done.stdout.encode()}
    searched |= {file.uri: storage.read_bytes(file.uri) for file in storage.list_files(f"{bucket}/run", hidden=True)}
    logs = Path(f"/tmp/raystyle-test-{os.getpid()}/session_latest/logs")
    searched |= {str(path): path.read_bytes() for path in logs.rglob("*") if path.is_file()}
    for name in ("config.json", "plan.json", "evaluation.json", "report.html", "prepared/manifest.json"):
        assert f"{bucket}/run/{name}" in searched
    assert any(b"isolation of documents proved" in searched[place] for place in searched if place.startswith(str(logs)))
    found = [
        (name, place)
        for name, secret in {**SECRETS, "the token": token}.items()
        for place, content in searched.items()
        if secret.encode() in content
    ]
    assert found == []


def test_without_the_token_nothing_is_submitted(cluster, tmp_path):
    """Authentication is on: the tests above would pass on an open cluster too."""
    address, environment = cluster
    stranger = environment | {"RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(
        [RAY, "job", "list", "--address", address], env=stranger, capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0
    assert "token" in (done.stdout + done.stderr).lower()


def doctor(cluster, *words: object) -> tuple[int, dict[str, dict[str, str]]]:
    """`raystyle doctor` from outside the cluster: exit status, and its checks by name."""
    address, environment = cluster
    host = address.removeprefix("http://").partition(":")[0]
    command = [sys.executable, *map(str, words), "--json", "--ray_address", f"{host}:{environment['HEAD_PORT']}"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    checks = [json.loads(line) for line in done.stdout.splitlines()]
    assert checks, done.stderr
    return done.returncode, {check["name"]: check for check in checks}


def test_doctor_finds_a_healthy_cluster_healthy(cluster, bucket):
    status, checks = doctor(cluster, "jobs/doctor.py", "--output_dir", f"{bucket}/runs")
    assert [check for check in checks.values() if check["status"] == "fail"] == []
    assert status == 0
    assert checks["ray"]["found"].startswith("1 of 1 nodes answered")
    assert checks["dashboard"]["found"].startswith("listens on 127.0.0.1:")
    assert checks["storage"]["node"]


def test_doctor_finds_another_version_and_a_missing_token(cluster, tmp_path):
    other = "import ray, sys; ray.__version__ = '2.59.0'; from raystyle.cli import main; sys.exit(main(['doctor', *sys.argv[1:]]))"
    status, checks = doctor(cluster, "-c", other)
    assert status == 1
    assert "Version mismatch" in checks["ray"]["found"]
    address, environment = cluster
    status, checks = doctor((address, environment | {"HOME": str(tmp_path)}), "jobs/doctor.py")
    assert status == 1
    assert {name for name, check in checks.items() if check["status"] == "fail"} == {"ray", "token"}


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
