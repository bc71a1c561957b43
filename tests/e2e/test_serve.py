"""`raystyle serve` as a user runs it: a process on a local Ray, asked over HTTP, stopped, hurt."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import builders
import httpx
import psutil
import pytest

from raystyle import adapters, pipeline, storage
from raystyle.config import SampleConfig

pytestmark = pytest.mark.e2e

PROMPT = "今日天气阴沉，"
# The most likely tokens of a model with random weights: it goes on until it has as many as it may have, or is stopped.
ENDLESS = {"max_tokens": 30_000, "temperature": 0, "n": 8}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A running `raystyle serve`."""

    def __init__(self, folder: Path, model: Path, *flags: object) -> None:
        self.port, self.output = free_port(), folder / "output.txt"
        self.url = f"http://127.0.0.1:{self.port}"
        words = ["--model_name_or_path", model, "--port", self.port, "--max_length", 32_000, "--refresh_s", 0.5, *flags]
        # Serving is a few processes on two cores: threads that spin while they wait would be in each other's way.
        environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
        environment.pop("RAY_ADDRESS", None)
        with open(self.output, "w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "raystyle", "serve", *map(str, words)],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def wait(self, timeout_s: float = 600) -> "Server":
        deadline = time.monotonic() + timeout_s
        while "\nready " not in self.said:
            assert self.process.poll() is None and time.monotonic() < deadline, self.said
            time.sleep(0.2)
        return self

    @property
    def said(self) -> str:
        return self.output.read_text()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=300)

    def get(self, path: str) -> dict:
        return httpx.get(self.url + path, timeout=60).json()

    def post(self, path: str, body: dict) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=120)

    def model_process(self) -> psutil.Process:
        """The process of the one copy of the model."""
        return next(
            child
            for child in psutil.Process(self.process.pid).children(recursive=True)
            if child.name().startswith("ray::ServeRepl") and "Model" in " ".join(child.cmdline())
        )


def completion(**more) -> dict:
    return {"model": "base", "prompt": PROMPT, "max_tokens": 24, "seed": 7, "temperature": 0.8, "top_p": 0.95} | more


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A model that can go on for longer than any test looks."""
    return builders.write_model(tmp_path_factory.mktemp("model"), positions=32_768)


@pytest.fixture(scope="module")
def adapters_dir(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    for number, name in enumerate(["first", "second"]):
        builders.write_adapter(folder / name, model, seed=number)
    return folder


@pytest.fixture(scope="module")
def server(model, adapters_dir, tmp_path_factory) -> Iterator[Server]:
    flags = ["--adapters_path", adapters_dir, "--allow_unverified_base", "--max_queue", 64]
    running = Server(tmp_path_factory.mktemp("server"), model, *flags).wait()
    yield running
    if running.process.poll() is None:
        assert running.stop() == 0


def test_it_says_what_it_serves_and_where(server, adapters_dir):
    digest = adapters.fingerprint(str(adapters_dir / "first"))
    assert f"model    first  {digest[:12]}" in server.said
    assert f"ready    {server.url}/" in server.said
    assert "limit    choices in flight: 96 (32 on each of 1 replicas, 64 waiting)" in server.said
    listed = server.get("/v1/models")
    assert [card["id"] for card in listed["data"]] == ["base", "first", "second"]
    assert httpx.get(server.url + "/").headers["content-type"].startswith("text/html")


@pytest.mark.parametrize("name", ["base", "first"])
def test_the_command_line_shows_what_the_server_says_for_the_same_seed(server, model, adapters_dir, name):
    asked = completion(model=name, n=3)
    told = server.post("/v1/completions", asked).json()
    settings = {"model_name_or_path": str(model), "prompt": (PROMPT,), "num_samples": 3, "seed": 7}
    path = None if name == "base" else str(adapters_dir / name)
    samples = list(pipeline.sample(SampleConfig(**settings, lora_path=path, max_new_tokens=24), print))[-3:]
    assert [choice["text"] for choice in told["choices"]] == [sample.text for sample in samples]
    assert told["adapter_digest"] == (None if path is None else adapters.fingerprint(path))


def test_a_stream_is_what_an_answer_is(server):
    whole = server.post("/v1/completions", completion(model="second", n=2)).json()
    texts = ["", ""]
    with httpx.stream(
        "POST", server.url + "/v1/completions", json=completion(model="second", n=2, stream=True), timeout=60
    ) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                for choice in json.loads(line.removeprefix("data: "))["choices"]:
                    texts[choice["index"]] += choice["text"]
    assert texts == [choice["text"] for choice in whole["choices"]]


def test_an_answer_of_many_megabytes_arrives(server):
    """The processes in between speak gRPC, which by itself takes four."""
    asked = completion(prompt=PROMPT * 500, max_tokens=1, echo=True, logprobs=5, n=16)
    answer = server.post("/v1/completions", asked)
    assert answer.status_code == 200, answer.text[:500]
    assert len(answer.content) > 5_000_000
    assert len({len(choice["logprobs"]["tokens"]) for choice in answer.json()["choices"]}) == 1


def test_adapters_come_change_and_go_while_it_runs(server, adapters_dir, model, tmp_path):
    def ids() -> list[str]:
        return [card["id"] for card in server.get("/v1/models")["data"]]

    def until(condition) -> None:
        deadline = time.monotonic() + 200
        while not condition():
            assert time.monotonic() < deadline, server.get("/v1/models")
            time.sleep(0.2)

    builders.write_adapter(tmp_path / "third", model, seed=5)
    shutil.copytree(tmp_path / "third", adapters_dir / "third")
    until(lambda: "third" in ids())
    before = server.post("/v1/completions", completion(model="third")).json()
    builders.write_adapter(tmp_path / "new", model, seed=6)
    for name in (adapters.CONFIG, adapters.WEIGHTS):
        os.replace(tmp_path / "new" / name, adapters_dir / "third" / name)
    digest = adapters.fingerprint(str(adapters_dir / "third"))
    until(lambda: server.post("/v1/completions", completion(model="third")).json()["adapter_digest"] == digest)
    after = server.post("/v1/completions", completion(model="third")).json()
    assert after["choices"][0]["text"] != before["choices"][0]["text"]
    shutil.rmtree(adapters_dir / "third")
    until(lambda: "third" not in ids())
    gone = server.post("/v1/completions", completion(model="third"))
    assert gone.status_code == 404 and gone.json()["error"]["code"] == "model_not_found"


def test_a_client_that_leaves_frees_its_rows(server):
    with httpx.stream(
        "POST", server.url + "/v1/completions", json=completion(**ENDLESS, stream=True), timeout=60
    ) as answer:
        next(answer.iter_lines())
    deadline = time.monotonic() + 200
    while "raystyle_running_rows 0.0" not in (told := httpx.get(server.url + "/metrics", timeout=30).text):
        assert time.monotonic() < deadline, told
        time.sleep(0.1)


def test_a_copy_of_the_model_that_dies_costs_its_own_requests_and_comes_back(server):
    lines: list[str] = []
    statuses: list[tuple[int, dict]] = []

    def streamed() -> None:
        with httpx.stream(
            "POST", server.url + "/v1/completions", json=completion(**ENDLESS, stream=True), timeout=120
        ) as answer:
            lines.extend(line for line in answer.iter_lines() if line)

    def whole() -> None:
        answer = server.post("/v1/completions", completion(**ENDLESS))
        statuses.append((answer.status_code, answer.json()))

    victim = server.model_process()
    threads = [threading.Thread(target=streamed), threading.Thread(target=whole)]
    for thread in threads:
        thread.start()
    # Serve gives a request that has not begun to another copy, so both must have.
    while not lines or "raystyle_running_rows 16.0" not in httpx.get(server.url + "/metrics", timeout=30).text:
        assert threads[0].is_alive() and threads[1].is_alive()
        time.sleep(0.05)
    victim.kill()
    for thread in threads:
        thread.join(timeout=120)
    error = json.loads(lines[-1].removeprefix("data: "))["error"]
    assert error["code"] == "unavailable" and "lost" in error["message"]
    [(status, body)] = statuses
    assert status == 503 and body["error"]["code"] == "unavailable"
    assert httpx.get(server.url + "/healthz", timeout=10).status_code == 200
    deadline = time.monotonic() + 400
    while (answer := server.post("/v1/completions", completion(model="first"))).status_code != 200:
        assert answer.status_code in (408, 503) and time.monotonic() < deadline, answer.text
        time.sleep(0.5)


def test_a_stop_lets_running_requests_finish_and_takes_no_more(model, bucket, adapters_dir, tmp_path):
    """Its adapters are on S3 here."""
    storage.upload(str(adapters_dir / "first"), f"{bucket}/runs/first")
    flags = ["--adapters_path", f"{bucket}/runs", "--allow_unverified_base", "--log_file", tmp_path / "requests.jsonl"]
    server = Server(tmp_path, model, *flags, "--drain_timeout_s", 120).wait()
    asked = completion(model="first", **ENDLESS | {"max_tokens": 1000}, stream=True)
    with httpx.stream("POST", server.url + "/v1/completions", json=asked, timeout=120) as running:
        lines = running.iter_lines()
        next(lines)
        server.process.send_signal(signal.SIGTERM)
        while (refused := server.post("/v1/completions", completion(max_tokens=1))).status_code == 200:
            pass
        assert refused.status_code == 503 and refused.headers["retry-after"]
        told = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    ends = [choice["finish_reason"] for event in told for choice in event["choices"]]
    assert ends.count("length") == 8
    assert server.process.wait(timeout=300) == 0
    logged = [json.loads(line) for line in (tmp_path / "requests.jsonl").read_text().splitlines()]
    assert PROMPT not in (tmp_path / "requests.jsonl").read_text()
    assert {"model", "tokens", "first_token_s"} <= logged[-1].keys()


def test_a_model_that_cannot_be_loaded_is_one_message(tiny_model, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    (broken / "model.safetensors").write_bytes(b"\x00" * 100)
    server = Server(tmp_path, broken)
    assert server.process.wait(timeout=600) == 2
    assert "is not safetensors" in server.said and "hint:" in server.said
    assert "Traceback" not in server.said
