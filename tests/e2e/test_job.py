"""`ray job submit` on a cluster of this machine's own, with token authentication on."""

import contextlib
import itertools
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


# Outside 10002-19999, which Ray gives to its workers.
PORTS = iter(range(21000 + os.getpid() % 5000, 30000))


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, none of them given before: what was to listen there may be about to."""
    return list(itertools.islice(filter(is_closed, PORTS), count))


def is_closed(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def dashboard(cluster) -> httpx.Client:
    """The dashboard's REST API, which Ray's commands call, and take seconds to begin with."""
    token = (Path.home() / ".ray/auth_token").read_text().strip()
    return httpx.Client(base_url=cluster[0], headers={"Authorization": f"Bearer {token}"}, timeout=400)


def wait_for(condition: Callable[[], object], otherwise: str, timeout_s: float = 600) -> None:
    """Until a condition holds; one that asks a server does not while nobody listens."""
    deadline = time.monotonic() + timeout_s
    while True:
        with contextlib.suppress(httpx.TransportError):
            if condition():
                return
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.1)


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
    found = f"http://127.0.0.1:{dashboard_port}", environment
    with dashboard(found) as client:
        wait_for(lambda: client.get("/api/jobs/").status_code == 200, "the cluster takes no job")
    yield found
    # At once: a head that is asked to stop takes most of a minute. Its workers end with it.
    os.killpg(head.pid, signal.SIGKILL)
    head.wait()


def submit(cluster, *words: object) -> subprocess.CompletedProcess[str]:
    address, environment = cluster
    travels = ["--working-dir", ".", "--runtime-env", "cluster/runtime-env.yaml"]
    command = [RAY, "job", "submit", "--address", address, *travels, "--", "python", *map(str, words)]
    return subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def serve_flags(model: Path, adapters: Path) -> dict[str, object]:
    return {
        "model_name_or_path": str(model),
        "adapters_path": [str(adapters)],
        "max_length": 128,
        "allow_unverified_base": True,
        "cpus_per_replica": 1,
    }


def models_of(url: str, key: str | None = None) -> list[str]:
    """What a service says it serves, once it does."""
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"} if key else {}, timeout=60) as client:
        wait_for(lambda: client.get("/v1/models").status_code == 200, "it does not serve")
        return [card["id"] for card in client.get("/v1/models").json()["data"]]


@pytest.fixture
def nothing_served(cluster):
    """Afterwards nothing is served, whatever the test left: of several configs of Serve's ports only the first counts."""
    yield
    with dashboard(cluster) as client:
        client.delete("/api/serve/applications/")


def test_a_job_serves_until_it_is_stopped(cluster, nothing_served, tiny_model, tmp_path):
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
    assert models_of(url) == ["base", "style"]
    # A process that has just ended has no command line.
    everyone = psutil.process_iter(["cmdline"])
    drivers = [process for process in everyone if f"--port {port}" in " ".join(process.info["cmdline"] or ())]
    assert drivers
    asked = {"model": "style", "prompt": "天", "max_tokens": 490, "n": 16, "temperature": 0, "stream": True}
    running = httpx.stream("POST", f"{url}/v1/completions", json=asked, timeout=300)
    with dashboard(cluster) as client, running as answer:
        lines = answer.iter_lines()
        next(lines)
        assert client.post(f"/api/jobs/serve-{port}/stop").json()["stopped"]
        assert not psutil.wait_procs(drivers, timeout=60)[1]
        assert [line for line in lines if line][-1] == "data: [DONE]"
    wait_for(lambda: is_closed(port), "stopped, and still listening", timeout_s=300)


def test_serve_deploy_runs_the_application_with_keys(cluster, nothing_served, tiny_model, tmp_path):
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

    def deploy() -> None:
        address, environment = cluster
        file.write_text(yaml.safe_dump(config))
        command = [RAY.parent / "serve", "deploy", "-a", address, file]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    deploy()
    assert models_of(f"http://127.0.0.1:{port}", "0123456789abcdef0123456789abcdef") == ["base", "style"]
    assert httpx.get(f"http://127.0.0.1:{port}/v1/models", timeout=60).status_code == 401
    del application["args"]["api_key_file"]
    deploy()
    with dashboard(cluster) as client:
        wait_for(lambda: "no keys are set" in client.get("/api/serve/applications/").text, "it is not refused")


def small(model: Path, data: object, output: object) -> list[object]:
    settings = ["--config", "jobs/configs/demo.json", "--lora_r", 4, "--lora_alpha", 8, "--max_steps", 3]
    batch = ["--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 2, "--cpus_per_worker", 1]
    batch += ["--eval_style", "off"]
    lengths = ["--max_seq_length", 64, "--segment_length", 64]
    places = ["--model_name_or_path", model, "--dataset_path", data, "--output_dir", output]
    return [*settings, *batch, *lengths, *places]


def test_a_stopped_pipeline_goes_on_does_nothing_twice_and_writes_no_secret(cluster, bucket, tiny_model, tmp_path):
    """Raw text to a judged adapter in one job, stopped in the middle of training and submitted again, in object storage; then
    everything that was written is searched."""
    for number in range(4):
        draw = random.Random(number)
        lines = ["".join(draw.sample(builders.ALPHABET[:-7], 20)) + "。" for _ in range(40)]
        storage.write_bytes(f"{bucket}/novels/{number}.txt", "\n".join(lines).encode())
    words = small(tiny_model, f"{bucket}/novels", f"{bucket}/run")
    words += ["--eval_style", "light", "--heldout_fraction", 0.3, "--max_steps", 400, "--save_steps", 200]
    words += ["--prepare_on", "pool=cpu", "--train_on", "pool=cpu"]
    address, environment = cluster
    job = ["job", "submit", "--address", address, "--no-wait", "--submission-id", "to-be-stopped", "--working-dir", "."]
    command = [RAY, *job, "--", "python", "jobs/pipeline.py", *map(str, words)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=120)
    wait_for(lambda: storage.exists(f"{bucket}/run/checkpoints/step-00000200/checkpoint.json"), "no checkpoint")
    with dashboard(cluster) as client:
        assert client.post("/api/jobs/to-be-stopped/stop").json()["stopped"]
        wait_for(lambda: client.get("/api/jobs/to-be-stopped").json()["status"] == "STOPPED", "it does not stop")
    assert not storage.exists(f"{bucket}/run/adapter"), "it had ended before it was stopped"
    done = submit(cluster, "jobs/pipeline.py", *words)
    assert done.returncode == 0, done.stdout
    assert "continued from the checkpoint of step 200" in done.stdout
    assert "isolation of documents proved" in done.stdout
    assert f"adapter  {bucket}/run/adapter" in done.stdout
    assert "held-out loss after step 400" in done.stdout
    again = submit(cluster, "jobs/pipeline.py", *words)
    assert again.returncode == 0 and "this run has finished before; nothing was done" in again.stdout, again.stdout
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


def test_without_the_token_nothing_is_submitted(cluster):
    """Authentication is on: the tests above would pass on an open cluster too."""
    refused = httpx.post(
        f"{cluster[0]}/api/jobs/", json={"entrypoint": "true", "submission_id": "stranger"}, timeout=60
    )
    assert refused.status_code in (401, 403), refused.text
    with dashboard(cluster) as client:
        assert "stranger" not in client.get("/api/jobs/").text


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
    ("flag", "value", "message"),
    [
        ("--dataset_path", "/nowhere/rows", "/nowhere/rows"),
        ("--output_dir", "run", "`output_dir` is the relative path"),
    ],
    ids=["missing", "relative"],
)
def test_a_failing_job_says_why_in_its_last_lines(cluster, tiny_model, tiny_prepared, tmp_path, flag, value, message):
    """What is refused once Ray is there, and what only a submitted job refuses."""
    words = small(tiny_model, tiny_prepared, tmp_path / "run")
    words[words.index(flag) + 1] = value
    done = submit(cluster, "jobs/train.py", *words)
    assert done.returncode != 0
    last = [line for line in done.stdout.splitlines() if line.strip()][-4:]
    assert any(message in line for line in last), last
