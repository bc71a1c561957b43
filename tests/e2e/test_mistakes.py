"""What a user gets wrong: one clear message, exit 2, no traceback, nothing written."""

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from raystyle.config import ServeConfig
from raystyle.errors import ConfigError
from raystyle.flags import from_dict
from raystyle.serving import app

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("joined")]

ROOT = Path(__file__).parents[2]


def raystyle(*words: object, timeout_s: float = 400) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "raystyle", *map(str, words)], capture_output=True, text=True, timeout=timeout_s
    )


def refused(*words: object) -> str:
    done = raystyle(*words)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("raystyle: error:") == 1
    return done.stderr


@pytest.fixture
def text_file(tmp_path):
    file = tmp_path / "novel.txt"
    file.write_text("今日天气阴沉，我在家里看书。\n" * 200, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lerning_rate": 1}, "did you mean `--learning_rate`"),
        ({"learning_rate": "fast"}, "it must be a number"),
        ({"dataset_path": "/nowhere/novel.txt"}, "/nowhere/novel.txt"),
        ({"model_name_or_path": "/nowhere/model"}, "/nowhere/model"),
        ({"tokenizer_name_or_path": "/nowhere/tokenizer"}, "/nowhere/tokenizer"),
        ({"lora_target_modules": "q_prj"}, "did you mean `q_proj`"),
        ({"streaming": True}, "`--max_steps`"),
        ({"streaming": True, "max_steps": 5, "heldout_fraction": 0.1}, "holds nothing out"),
        ({"deepspeed": "zero9"}, "zero2"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_mistake_in_train(change, message, tiny_model, text_file, tmp_path):
    output = tmp_path / "run"
    values = {"model_name_or_path": tiny_model, "dataset_path": text_file, "output_dir": output}
    values |= {"max_seq_length": 64, "segment_length": 64} | change
    words = [word for name, value in values.items() for word in (f"--{name}", value)]
    assert message in refused("train", *words)
    assert not output.exists()


def test_an_empty_corpus(tiny_model, tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "empty.txt").write_text("")
    output = tmp_path / "run"
    words = ["--model_name_or_path", tiny_model, "--dataset_path", tmp_path / "raw", "--output_dir", output]
    assert "no text is left" in refused("train", *words, "--max_seq_length", 64, "--segment_length", 64)
    left = [path for path in output.rglob("*") if path.is_file()] if output.exists() else []
    assert not left


def test_a_directory_that_is_no_run(tiny_model, text_file, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"x")
    words = ["--model_name_or_path", tiny_model, "--dataset_path", text_file, "--output_dir", tmp_path / "photos"]
    assert "not empty and not a run" in refused("train", *words)
    assert [p.name for p in (tmp_path / "photos").iterdir()] == ["cat.jpg"]


def test_more_workers_than_cores(tiny_model, tiny_prepared, text_file, tmp_path):
    """Raw text is not prepared first."""
    for data in (tiny_prepared, text_file):
        words = ["--model_name_or_path", tiny_model, "--dataset_path", data, "--output_dir", tmp_path / "r"]
        settings = ["--lora_r", 4, "--lora_alpha", 8, "--num_workers", 64, "--use_gpu", "false"]
        lengths = ["--max_seq_length", 64, "--segment_length", 64, "--gradient_accumulation_steps", 1]
        assert "64 workers" in refused("train", *words, *settings, *lengths)
        assert not (tmp_path / "r").exists()


def test_rows_longer_than_the_model_are_refused_before_the_text_is_prepared(tiny_model, text_file, tmp_path):
    words = ["--model_name_or_path", tiny_model, "--dataset_path", text_file, "--output_dir", tmp_path / "r"]
    assert "512 positions" in refused("train", *words)
    assert not (tmp_path / "r").exists()


def test_a_model_folder_as_output_keeps_its_config(tiny_model, tiny_prepared, tmp_path):
    import shutil

    shutil.copytree(tiny_model, tmp_path / "m")
    before = (tmp_path / "m" / "config.json").read_text()
    words = ["--model_name_or_path", tiny_model, "--dataset_path", tiny_prepared, "--output_dir", tmp_path / "m"]
    assert "not a run" in refused("train", *words)
    assert (tmp_path / "m" / "config.json").read_text() == before


def test_unknown_commands_and_no_command():
    assert "one of demo, prepare, rules, plan, train, sweep, sample, evaluate, attribute, export" in refused("trian")
    assert raystyle().returncode == 0


def test_help_is_quick():
    """Well under a second where torch alone takes two; the best of three, for the tests share their machine."""

    def seconds(*words: str) -> float:
        started_s = time.monotonic()
        subprocess.run([sys.executable, *words], check=True, capture_output=True)
        return time.monotonic() - started_s

    assert min(seconds("-m", "raystyle", "--help") for _ in range(3)) < 0.5 * seconds("-c", "import torch")


@pytest.mark.parametrize(
    "verb", ["demo", "prepare", "plan", "train", "sweep", "sample", "evaluate", "attribute", "export"]
)
def test_every_command_explains_itself(verb):
    done = raystyle(verb, "--help")
    assert done.returncode == 0
    assert "--" in done.stdout


def test_jobs_take_what_the_commands_take():
    for job in ("prepare", "train", "sweep", "sample", "evaluate", "attribute", "pipeline"):
        done = subprocess.run(
            [sys.executable, ROOT / "jobs" / f"{job}.py", "--nonsense", "1"], capture_output=True, text=True
        )
        assert done.returncode == 2
        assert "unknown setting `--nonsense`" in done.stderr
    command = [sys.executable, ROOT / "jobs/pipeline.py", "--deploy", "nowhere.yaml"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "") and "`--deploy nowhere.yaml` is not a file" in done.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"host": "0.0.0.0"}, "no keys are set"),
        ({"model_name_or_path": "/nowhere/model"}, "/nowhere/model"),
        ({"adapters_path": "/nowhere/adapters"}, "/nowhere/adapters"),
        ({"api_key_file": "/nowhere/keys"}, "/nowhere/keys"),
        ({"port": 80000}, "from 1 to 65535"),
        ({"adapter_path": "/a"}, "did you mean `--adapters_path`"),
        ({"tensor_parallel_size": 2}, "vllm"),
        ({"engine": "vllm"}, "not installed"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_mistake_in_serve(change, message, tiny_model):
    values = {"model_name_or_path": tiny_model, "port": 1025} | change
    assert message in refused("serve", *[word for name, value in values.items() for word in (f"--{name}", value)])


def test_a_port_that_is_taken(tiny_model):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"cannot listen on 127.0.0.1:{port}" in refused(
            "serve", "--model_name_or_path", tiny_model, "--port", port
        )


def test_a_key_that_is_too_short_is_not_shown(tiny_model, tmp_path):
    keys = tmp_path / "keys.txt"
    keys.write_text("hunter2\n")
    keys.chmod(0o600)
    said = refused("serve", "--model_name_or_path", tiny_model, "--api_key_file", keys, "--port", 1025)
    assert "line 1" in said and "hunter2" not in said


@pytest.mark.parametrize(("copies", "cores"), [(1, 3), (3, 1)])
def test_copies_of_the_model_that_nobody_has_room_for(copies, cores, tiny_model):
    """Of a Ray of its own nothing more can come: Serve would wait for ever. A cluster may grow."""
    values = {"min_replicas": copies, "max_replicas": copies, "cpus_per_replica": cores}
    config = from_dict(ServeConfig, values | {"model_name_or_path": str(tiny_model)})
    with pytest.raises(ConfigError, match=r"of the model needs? 3 CPUs, and this machine has 2\nhint: "):
        app.settle(config, may_grow=False)
    assert app.settle(config, may_grow=True).cpus_per_replica == cores


def test_a_gpu_that_is_not_there(tiny_model, monkeypatch):
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": {"CPU": 2}}])
    config = from_dict(ServeConfig, {"model_name_or_path": str(tiny_model), "use_gpu": True})
    with pytest.raises(
        ConfigError, match=r"a copy of the model needs 1 GPUs, and this machine has 0\nhint: .*--use_gpu false"
    ):
        app.settle(config, may_grow=False)


def test_a_ray_of_its_own_that_asks_nobody_for_a_token(tiny_model, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert "hint: unset RAY_AUTH_MODE" in refused("serve", "--model_name_or_path", tiny_model, "--port", 1025)
