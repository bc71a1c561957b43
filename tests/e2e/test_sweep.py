"""A sweep on a real Ray: trials one after another, a diverging one among them, and nothing done twice."""

import json

import pytest

from raystyle import flags, pipeline
from raystyle.config import SweepConfig
from raystyle.errors import ConfigError

pytestmark = pytest.mark.e2e


def config(tiny_model, prepared, output):
    values = {
        "model_name_or_path": tiny_model, "dataset_path": prepared, "output_dir": output, "lora_r": 4, "lora_alpha": 8,
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 6, "save_steps": 3,
        "max_grad_norm": 0, "gradient_checkpointing": False, "cpus_per_worker": 1, "sample_prompt": "",
    }  # fmt: skip
    words = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    return flags.parse(SweepConfig, [*words, "--learning_rates", "1e-4", "1e-2", "1e30"])


def test_the_best_of_three_rates(ray_local, tiny_model, tiny_prepared, tmp_path):
    said = []
    settings = config(tiny_model, tiny_prepared, tmp_path / "s")
    records = pipeline.sweep(settings, said.append)
    assert [record["learning_rate"] for record in records] == [1e-2, 1e-4, 1e30]
    assert records[0]["heldout_loss"] < records[1]["heldout_loss"] and "nan" in records[2]["failed"]
    assert len([line for line in said if line.startswith("learning rate")]) == 3
    assert json.loads((tmp_path / "s" / "sweep.json").read_text())["trials"] == records
    best = tmp_path / "s" / "trials" / "lr-0.01"
    written = (best / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns
    assert pipeline.sweep(settings, said.append)[0] == records[0]
    assert (best / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns == written


def test_without_held_out_text_there_is_nothing_to_judge_by(ray_local, tiny_model, tiny_prepared, tmp_path):
    import shutil

    shutil.copytree(tiny_prepared, tmp_path / "p")
    manifest = json.loads((tmp_path / "p" / "manifest.json").read_text())
    manifest["counts"]["heldout"] = 0
    (tmp_path / "p" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match="holds no text out\nhint: prepare with `--heldout_fraction"):
        pipeline.sweep(config(tiny_model, tmp_path / "p", tmp_path / "s"), lambda _: None)
