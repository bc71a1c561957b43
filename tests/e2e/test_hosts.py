"""What only several hosts show: a local directory refused, ports between them, work on labelled nodes, DDP over the network.

Losses of hosts in the middle of a run take minutes: `bench/hosts.py`.
"""

import json
import os
import random

import builders
import pytest
from hosts import BUCKET, NETWORK, Hosts, missing

from raystyle import storage

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

REASON = missing()


@pytest.fixture(scope="module")
def hosts():
    if REASON:
        pytest.skip(REASON)
    with Hosts("w1", "w2") as made:
        settings = {name: value for name, value in made.environment.items() if name.startswith("AWS_")}
        before = dict(os.environ)
        os.environ.update(settings)
        for number in range(3):
            draw = random.Random(number)
            lines = ["".join(draw.sample(builders.ALPHABET[:-7], 20)) + "。" for _ in range(40)]
            storage.write_bytes(f"{BUCKET}/novels/{number}.txt", "\n".join(lines).encode())
        yield made
        os.environ.clear()
        os.environ.update(before)


def flags(model, output) -> list[object]:
    small = ["--config", "jobs/configs/demo.json", "--lora_r", 4, "--lora_alpha", 8, "--max_steps", 4, "--seed", 1]
    small += ["--per_device_train_batch_size", 1, "--gradient_accumulation_steps", 1, "--num_workers", 2]
    small += ["--max_seq_length", 64, "--segment_length", 64, "--dedup", "none", "--eval_style", "off"]
    small += ["--save_steps", 4, "--sample_prompt", ""]
    places = ["--model_name_or_path", model, "--dataset_path", f"{BUCKET}/novels", "--output_dir", output]
    return [*small, *places, "--prepare_on", "pool=cpu", "--train_on", "pool=cpu"]


def test_a_local_directory_is_refused_where_several_hosts_work(hosts, tiny_model, tmp_path):
    done = hosts.submit("jobs/train.py", *flags(tiny_model, tmp_path / "run"))
    assert done.returncode != 0
    last = [line for line in done.stdout.splitlines() if line.strip()][-4:]
    assert any(f"`output_dir` is {tmp_path}/run, a path of one machine" in line for line in last), last
    assert not (tmp_path / "run").exists()


def test_doctor_looks_at_every_host(hosts):
    asked = ["raystyle", "doctor", "--json", "--ray_address", f"{NETWORK}.10:6379", "--output_dir", f"{BUCKET}/runs"]
    done = hosts.on("head", *asked)
    checks = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [check for check in checks if check["status"] == "fail"] == []
    assert {check["node"] for check in checks if check["name"] == "storage"} == set(hosts.addresses.values())
    [ports] = [check for check in checks if check["name"] == "ports"]
    assert ports["status"] == "ok"


def test_a_pipeline_over_two_hosts(hosts, tiny_model):
    done = hosts.submit("jobs/pipeline.py", *flags(tiny_model, f"{BUCKET}/runs/style"))
    assert done.returncode == 0, done.stdout
    about = storage.read_json(f"{BUCKET}/runs/style/adapter/raystyle_adapter.json")
    assert about["step"] == 4
