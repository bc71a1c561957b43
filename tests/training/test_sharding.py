"""DeepSpeed's configuration: presets, files, and what checkpoints could not continue."""

import json

import pytest

from raystyle.errors import ConfigError
from raystyle.training.sharding import PRESETS, deepspeed_config


def test_presets_differ_by_stage_and_offloading():
    found = {name: deepspeed_config(name)["zero_optimization"] for name in PRESETS}
    assert {name: zero["stage"] for name, zero in found.items()} == {
        "zero1": 1, "zero2": 2, "zero3": 3, "zero2_offload": 2, "zero3_offload": 3
    }  # fmt: skip
    assert {
        name: [key for key in zero if key.startswith("offload")] for name, zero in found.items() if "_" in name
    } == {
        "zero2_offload": ["offload_optimizer"],
        "zero3_offload": ["offload_optimizer", "offload_param"],
    }
    assert deepspeed_config(None) is None


def test_a_file_is_taken_as_it_is_at_any_stage(tmp_path):
    (file := tmp_path / "ds.json").write_text(json.dumps(theirs := {"zero_optimization": {"stage": 3}, "x": 1}))
    assert deepspeed_config(str(file)) == theirs | {"zero_force_ds_cpu_optimizer": False}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"optimizer": {}}, "sets its own optimizer"),
        ({"scheduler": {}, "optimizer": {}}, "sets its own optimizer and scheduler"),
        ({"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}, "offloads to NVMe"),
        ({}, "no `zero_optimization`"),
        ({"zero_optimization": {"stage": 0}}, "no `zero_optimization` with a `stage`"),
        ({"zero_optimization": {"stage": 1}, "data_types": {"grad_accum_dtype": "fp32"}}, "`grad_accum_dtype` fp32"),
        ({"zero_optimization": {"stage": 2, "compute_grad_norm": False}}, "nobody sees a gradient that breaks"),
        (None, "hint: use zero1, zero2"),
    ],
)
def test_what_a_run_could_not_continue_with_is_refused(tmp_path, content, message):
    file = tmp_path / "ds.json"
    if content is not None:
        file.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=message):
        deepspeed_config(str(file))
