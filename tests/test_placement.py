"""Which nodes take which work, and what they must share. On several hosts in earnest: tests/e2e/test_hosts.py."""

import pytest
import ray

from raystyle import cli
from raystyle.config import PrepareConfig, TrainConfig
from raystyle.corpus import tasks
from raystyle.errors import ConfigError
from raystyle.flags import parse
from raystyle.training import fit

HERE = "10.0.0.1"


@pytest.fixture
def nodes(monkeypatch):
    """What Ray says of a cluster: (address, CPUs, GPUs, labels) of each node; the driver is on 10.0.0.1."""

    def these(*given: tuple[str, int, int, dict[str, str]]) -> None:
        told = [
            {
                "NodeID": str(number),
                "NodeManagerAddress": address,
                "Alive": True,
                "Resources": {name: count for name, count in (("CPU", cpus), ("GPU", gpus)) if count},
                "Labels": labels,
            }
            for number, (address, cpus, gpus, labels) in enumerate(given)
        ]
        monkeypatch.setattr(ray, "nodes", lambda: told)

    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: HERE)
    return these


def train(*words: str) -> TrainConfig:
    places = ["--model_name_or_path", "m", "--dataset_path", "s3://b/novels", "--output_dir", "s3://b/run"]
    return parse(TrainConfig, [*places, *words])


def test_local_paths_are_for_one_machine(nodes):
    local = parse(PrepareConfig, ["--dataset_path", "s3://b/novels", "--output_dir", "/data/out"])
    nodes((HERE, 4, 0, {}), (HERE, 4, 0, {}))
    cli.refuse_unshared(local)
    for elsewhere in [
        ((HERE, 4, 0, {}), ("10.0.0.2", 4, 0, {})),
        ((HERE, 0, 0, {}), ("10.0.0.2", 4, 0, {})),
        ((HERE, 0, 0, {}),),
    ]:
        nodes(*elsewhere)
        with pytest.raises(ConfigError, match="`output_dir` is /data/out, a path of one machine"):
            cli.refuse_unshared(local)
        cli.refuse_unshared(train())
        cli.refuse_unshared(parse(PrepareConfig, ["--dataset_path", "/d", "--output_dir", "/o", "--shared_paths"]))
    with pytest.raises(ConfigError, match="`dataset_path` is /d"):
        cli.refuse_unshared(train("--dataset_path", "/d"))


def test_training_counts_the_nodes_it_may_use(nodes):
    pools = [(HERE, 0, 0, {}), ("10.0.0.2", 64, 0, {"pool": "cpu"}), ("10.0.0.3", 12, 1, {"pool": "gpu"})]
    nodes(*pools, ("10.0.0.4", 12, 1, {"pool": "gpu"}))
    assert fit.resources(train("--train_on", "pool=gpu", "--num_workers", "2")) == (True, 12, 2)
    assert fit.resources(train("--num_workers", "2")) == (True, 12, 2)  # a GPU worker's cores are those beside a GPU
    assert fit.resources(train("--train_on", "pool=cpu", "--num_workers", "2")) == (False, 32, 2)
    with pytest.raises(ConfigError, match="nodes labelled pool=cpu have 0"):
        fit.resources(train("--train_on", "pool=cpu", "--use_gpu"))
    with pytest.raises(ConfigError, match="nodes labelled pool=none have 0"):
        fit.resources(train("--train_on", "pool=none"))


def test_a_stream_has_a_core_left_to_make_rows_on(nodes):
    """Or the workers would hold all cores, and wait for rows for ever."""
    nodes((HERE, 16, 1, {}))
    assert fit.resources(train("--num_workers", "1"), is_streamed=True) == (True, 15, 1)
    nodes((HERE, 16, 1, {}), ("10.0.0.2", 8, 0, {}))  # the other node makes rows
    assert fit.resources(train("--num_workers", "1"), is_streamed=True) == (True, 16, 1)
    nodes((HERE, 2, 0, {}))
    with pytest.raises(ConfigError, match="2 workers of 1 CPU cores and one to prepare their rows need 3"):
        fit.resources(train("--num_workers", "2"), is_streamed=True)
    assert fit.resources(train("--num_workers", "1..2"), is_streamed=True) == (False, 1, 1)
    assert fit.resources(train("--num_workers", "1..2")) == (False, 1, 2)
    # One of two nodes may be lost: those workers that fit on the other leave a core there, too.
    nodes((HERE, 8, 0, {}), ("10.0.0.2", 8, 0, {}))
    assert fit.resources(train("--num_workers", "1..7"), is_streamed=True) == (False, 1, 7)
    assert fit.resources(train("--num_workers", "1..3", "--cpus_per_worker", "3"), is_streamed=True) == (False, 3, 3)
    with pytest.raises(ConfigError, match="take all cores of the nodes that are left"):
        fit.resources(train("--num_workers", "1..3", "--cpus_per_worker", "4"), is_streamed=True)
    assert fit.resources(train("--num_workers", "1..3", "--cpus_per_worker", "4")) == (False, 4, 3)
    pools = [(HERE, 2, 0, {"pool": "train"}), ("10.0.0.2", 4, 0, {"pool": "cpu"})]
    nodes(*pools)
    beside = ["--train_on", "pool=train", "--num_workers", "2"]
    assert fit.resources(train(*beside), is_streamed=True) == (False, 1, 2)
    with pytest.raises(ConfigError, match="one to prepare their rows need 3"):  # the other node may not make any
        fit.resources(train(*beside, "--prepare_on", "pool=train"), is_streamed=True)
    with pytest.raises(ConfigError, match="no node labelled pool=none has a CPU core"):
        fit.resources(train(*beside, "--prepare_on", "pool=none"), is_streamed=True)


def test_cleaning_is_placed_by_label_and_no_further(nodes, capsys):
    nodes((HERE, 4, 0, {"pool": "cpu"}))
    options = ray.data.DataContext.get_current().execution_options
    with tasks.placed({"pool": "cpu"}):
        assert options.label_selector == {"pool": "cpu"}
    assert options.label_selector is None
    assert capsys.readouterr().err == ""
    with tasks.placed({"pool": "none"}):
        assert "no node is labelled" in capsys.readouterr().err


@pytest.mark.parametrize("words", [("--prepare_on", "cpu"), ("--train_on", "pool="), ("--train_on", "=gpu")])
def test_labels_have_a_key_and_a_value(words):
    with pytest.raises(ConfigError, match="must be KEY=VALUE"):
        train(*words)
