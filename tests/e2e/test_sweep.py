"""A sweep on a real Ray: a diverging trial is one of the results, and a finished one is not done twice."""

import json

import pytest

from raystyle import flags, pipeline
from raystyle.config import SweepConfig
from raystyle.errors import ConfigError

pytestmark = pytest.mark.e2e


def config(tiny_model, prepared, output, *rates):
    values = {
        "model_name_or_path": tiny_model, "dataset_path": prepared, "output_dir": output, "lora_r": 4, "lora_alpha": 8,
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 4, "save_steps": 4,
        "max_grad_norm": 0, "gradient_checkpointing": False, "cpus_per_worker": 1, "sample_prompt": "",
    }  # fmt: skip
    words = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    return flags.parse(SweepConfig, [*words, "--learning_rates", *rates])


@pytest.mark.slow
def test_a_good_rate_and_one_at_which_training_diverges(ray_local, tiny_model, tiny_prepared, tmp_path):
    said = []
    records = pipeline.sweep(config(tiny_model, tiny_prepared, tmp_path / "s", "1e30", "1e-2"), said.append)
    assert [record["learning_rate"] for record in records] == [1e-2, 1e30]
    assert records[0]["heldout_loss"] < records[0]["heldout"][0][1] and "is nan" in records[1]["failed"]
    assert len([line for line in said if line.startswith("learning rate")]) == 2
    assert json.loads((tmp_path / "s" / "sweep.json").read_text())["trials"] == json.loads(json.dumps(records))
    adapter = tmp_path / "s" / "trials" / "lr-0.01" / "adapter" / "adapter_model.safetensors"
    written = adapter.stat().st_mtime_ns
    assert pipeline.sweep(config(tiny_model, tiny_prepared, tmp_path / "s", "1e-2"), said.append) == records[:1]
    assert adapter.stat().st_mtime_ns == written


def test_without_held_out_text_there_is_nothing_to_judge_by(ray_local, tiny_model, tiny_prepared, tmp_path):
    import shutil

    shutil.copytree(tiny_prepared, tmp_path / "p")
    manifest = json.loads((tmp_path / "p" / "manifest.json").read_text())
    manifest["counts"]["heldout"] = 0
    (tmp_path / "p" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match="holds no text out\nhint: prepare with `--heldout_fraction"):
        pipeline.sweep(config(tiny_model, tmp_path / "p", tmp_path / "s", "1e-2"), lambda _: None)
