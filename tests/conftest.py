"""What many tests need: a tokenizer made on the spot, real novels where they are, one local Ray, an S3 server."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import builders
import pytest
from hypothesis import settings
from prose import PROSE

# One thread for each process, which sleeps where it waits: models here are small, and tests run several processes at once.
# Set before torch is imported; Ray's workers and the commands that tests run inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Machines that run tests are busy; a slow example is no failure.
settings.register_profile("raystyle", deadline=None)
settings.load_profile("raystyle")


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A byte-level BPE tokenizer of 600 tokens with bos, eos and pad, as a Hugging Face folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<bos>", "<eos>", "<pad>"]
    core.train_from_iterator(
        PROSE * 4, trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=alphabet)
    )
    core.post_processor = processors.TemplateProcessing(
        "<bos> $A", special_tokens=[("<bos>", core.token_to_id("<bos>"))]
    )
    folder = tmp_path_factory.mktemp("tokenizer")
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=core, **names).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tokenizer(tokenizer_dir: str) -> Any:
    from raystyle.tokens import load_tokenizer

    return load_tokenizer(tokenizer_dir)


@pytest.fixture(scope="session")
def novels() -> Path:
    """Real novels with their labelled lines beside them; see `RAYSTYLE_DATA` in CONTRIBUTING."""
    places = [os.environ.get("RAYSTYLE_DATA"), Path(__file__).parents[1] / ".." / "shared" / "data"]
    found = next((Path(place).resolve() for place in places if place and (Path(place) / "novels").is_dir()), None)
    if found is None:
        pytest.skip("no novels: set RAYSTYLE_DATA to a folder with novels/ and labelled_lines.jsonl")
    return found / "novels"


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """An S3 server on the loopback, and the environment that leads there; in a process of its own, for the client holds
    Python's lock while it waits."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [sys.executable, "-c", f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    settings = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        for _ in range(150):
            try:
                urllib.request.urlopen(f"{endpoint}/moto-api/", timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield endpoint
    finally:
        process.terminate()
        process.wait(timeout=10)
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture
def bucket(s3_server: str) -> str:
    """An empty bucket of its own, as a URI."""
    name = f"bucket-{time.monotonic_ns()}"
    request = urllib.request.Request(f"{s3_server}/{name}", method="PUT")
    urllib.request.urlopen(request, timeout=10).close()
    return f"s3://{name}"


@pytest.fixture(scope="session")
def ray_local(s3_server: str) -> Iterator[None]:
    """One local Ray for the session. It comes after the S3 server, whose environment its workers inherit."""
    import ray

    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # as `raystyle` does for a Ray of its own
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


@pytest.fixture
def joined(ray_local: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that the test runs join the session's Ray: to start one of its own takes most of them longer than their work."""
    import ray

    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama with random weights and its tokenizer."""
    return builders.write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def tiny_prepared(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """22 prepared rows of 64 tokens for the tiny model, and a held-out document."""
    return builders.write_prepared(tmp_path_factory.mktemp("data") / "prepared", tiny_model)
