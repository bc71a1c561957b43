"""What a stream is planned by: its inputs, and for how many shards. That it trains: tests/e2e/test_streaming.py."""

import dataclasses

import pytest

from raystyle import flags, pipeline, storage, streaming
from raystyle.config import TrainConfig
from raystyle.errors import ConfigError


@pytest.fixture
def config(tmp_path, tiny_model) -> TrainConfig:
    """A run that lies among its own texts."""
    (tmp_path / "one.txt").write_text("他走过一条河，看见一只船停在岸边。\n" * 4000, encoding="utf-8")
    settings = {
        "model_name_or_path": str(tiny_model), "dataset_path": [str(tmp_path)], "output_dir": str(tmp_path / "run"),
        "streaming": True, "max_seq_length": 64, "segment_length": 64, "max_steps": 100,
        "per_device_train_batch_size": 1, "gradient_accumulation_steps": 4,
    }  # fmt: skip
    return flags.from_dict(TrainConfig, settings)


def test_a_run_s_own_files_are_no_inputs_of_it(config):
    def listed():
        return streaming.survey(pipeline.raw_of(config), config.output_dir)

    before = listed()
    storage.write_json(f"{config.output_dir}/plan.json", {"text": "not a novel"})
    assert listed() == before and before["stream"]["told"].startswith("made while training of 1 files")


def test_a_start_plans_by_what_an_earlier_one_found(config):
    """Of inputs that are mostly something else than text the first start plans for too few shards."""
    corpus, _, rows, per_shard, _ = streaming.dataset_of(config, pipeline.raw_of(config), config.max_steps).args
    first = streaming._shards_for(corpus, config, rows, per_shard)
    assert rows == 400 and 1 < first < 30
    for kept in (0, 640):
        outcome = {"inputs": [{"characters_kept": kept}], "hits": {}, "rejected": []}
        storage.write_json(f"{config.output_dir}/streamed/shard-00000.json", outcome)
        planned = streaming._shards_for(corpus, config, rows, per_shard)
        assert kept or planned == first
    # 640 characters are at least 320 tokens, which are 5 rows of 64: 80 passes, and a margin.
    assert planned >= 80 * streaming.MARGIN


def test_so_many_passes_that_preparing_pays_are_refused(config):
    many = dataclasses.replace(config, max_steps=10_000_000)
    with pytest.raises(ConfigError, match="passes over a small corpus"):
        streaming.dataset_of(many, pipeline.raw_of(many), many.max_steps)
