"""Configs from command lines and files: one meaning for each value, and one clear refusal for each mistake."""

import ast
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raystyle import flags
from raystyle.config import DemoConfig, PrepareConfig, SampleConfig, TrainConfig
from raystyle.errors import ConfigError, StorageError
from raystyle.training_arguments import OWNED

PRESETS = sorted(Path(__file__).parent.parent.joinpath("jobs/configs").glob("*.json"))
NEEDED = ["--model_name_or_path", "hub/model", "--dataset_path", "/data", "--output_dir", "/run"]


def train(*words: str) -> TrainConfig:
    return flags.parse(TrainConfig, [*NEEDED, *words])


def refusal(*words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        train(*words)
    return str(caught.value)


def test_booleans_are_taken_bare_and_explicit():
    assert train("--bf16").bf16 is True
    assert train("--bf16", "true").bf16 is True
    assert train("--bf16", "false").bf16 is False
    assert train("--bf16=false", "--seed", "1").bf16 is False
    assert train().bf16 is None


def test_streaming_both_ways():
    assert train("--streaming", "--max_steps", "5").streaming
    assert train("--streaming", "true", "--max_steps", "5").streaming


def test_values_that_begin_with_dashes_are_values():
    config = flags.parse(SampleConfig, ["--model_name_or_path", "m", "--prompt", "——", "-1", "--seed", "-1"])
    assert config.prompt == ("——", "-1")
    assert config.seed == -1


def test_any_training_arguments_field_by_its_own_name():
    config = train(
        "--adam_beta2", "0.95", "--optim", "adamw_torch_fused", "--ddp_broadcast_buffers", "--ddp_timeout", "60"
    )
    expected = {"adam_beta2": 0.95, "optim": "adamw_torch_fused", "ddp_broadcast_buffers": True, "ddp_timeout": 60}
    assert dict(config.training_args) == expected


def test_every_owned_field_is_refused_by_name_with_its_reason():
    for name, reason in OWNED.items():
        assert name not in set(TrainConfig.__dataclass_fields__)
        assert reason in refusal(f"--{name}", "1")


def test_no_argument_that_raystyle_decides_is_accepted_too():
    """Each keyword of its own call to TrainingArguments is a flag of ours, or refused by name."""
    source = Path(__file__).parent.parent.joinpath("raystyle/training/loop.py").read_text(encoding="utf-8")
    [call] = [
        n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call) and "TrainingArguments" in ast.unparse(n.func)
    ]
    decided = {keyword.arg for keyword in call.keywords if keyword.arg}
    assert len(decided) > 15
    assert decided <= set(TrainConfig.__dataclass_fields__) | set(OWNED)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lerning_rate", "1"], "did you mean `--learning_rate`"),
        (["--adam_beta3", "1"], "did you mean `--adam_beta2`"),
        (["--learning_rate", "fast"], "`learning_rate` is 'fast'\nhint: it must be a number"),
        (["--learning_rate", "nan"], "it must be a number"),
        (["--lora_r", "1.5"], "it must be a whole number"),
        (["--adam_beta2", "x"], "`adam_beta2` is 'x'"),
        (["--bf16", "maybe"], "`true` or `false`"),
        (["--isolation", "some"], "`document`, `segment`, `none`"),
        (["--lr_scheduler_type", "reduce_lr_on_plateau"], "`cosine`"),
        (["--optim", "adafactor"], "adamw_torch"),
        (["--lora_r"], "`--lora_r` has no value"),
        (["--seed", "1", "2"], "takes one value"),
        (["--streaming"], "`--streaming` needs `--max_steps`"),
        (["--use_rslora"], "scaled by 22.6"),
        (["--loraplus_lr_ratio", "0.5"], "16 is usual"),
        (["--lora_target_parameters", "experts"], "`--lora_dropout 0`"),
        (["--lora_target_parameters", "experts", "--lora_dropout", "0", "--use_dora"], "DoRA cannot be put on fused"),
        (["--init_lora_weights", "pissa", "--use_dora"], "does not go with `use_dora`"),
        (["--init_lora_weights", "pissa", "--load_in_4bit"], "does not go with `load_in_4bit`"),
        (["--init_lora_weights", "pissa", "--lora_path", "/a"], "begins with the weights of `lora_path`"),
        (["--modules_to_save", "q_proj"], "trained whole (`modules_to_save`) and by LoRA"),
        (["--lora_r", "0"], "above 0"),
        *[(["--num_workers", bad], f"`num_workers` is {bad}") for bad in ("0", "-1")],
        *[(["--num_workers", bad], f"`num_workers` is '{bad}'") for bad in ("1..", "4..1", "0..2", "many", "1.5")],
        (["--save_steps", "2.5"], "whole number of steps"),
        (["--max_steps", "0"], "positive number of steps"),
        (["--records", "segments", "--document_unit", "chapter"], "no chapters"),
        (["--heldout_fraction", "0.9"], "between 0 and 0.5"),
        (["--max_seq_length", "512"], "shorter than `segment_length`"),
    ],
)
def test_a_mistake_is_refused_with_the_value_and_the_way_out(words, message):
    text = refusal(*words)
    assert message in text
    assert "hint:" in text


def test_a_word_without_a_flag_is_refused():
    with pytest.raises(ConfigError, match="unexpected word `stray`"):
        flags.parse(TrainConfig, ["stray", *NEEDED])


def test_missing_fields_are_named():
    with pytest.raises(ConfigError, match="`--dataset_path` and `--output_dir`"):
        flags.parse(TrainConfig, ["--model_name_or_path", "m"])


def test_the_command_line_wins_over_the_file_and_the_file_over_defaults(tmp_path):
    file = tmp_path / "c.json"
    file.write_text(json.dumps({"learning_rate": 1e-4, "seed": 7}))
    config = train("--config", str(file), "--seed", "8")
    assert (config.learning_rate, config.seed, config.lora_r) == (1e-4, 8, 128)


def test_yaml_reads_numbers_as_yaml_1_2_does(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("learning_rate: 5e-5\nlora_target_modules: [q_proj]\nbf16: true\nsave_total_limit: null\n")
    config = train("--config", str(file))
    assert config.learning_rate == 5e-5
    assert config.lora_target_modules == ("q_proj",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"learning_rate": "2e-4"}', "`learning_rate` is '2e-4'"),
        ('{"bf16": "true"}', "`true` or `false`"),
        ('{"lora_r": true}', "whole number"),
        ('{"lernrate": 1}', "unknown setting `lernrate`"),
        ('{"fp16": true}', "not yours to set"),
        ("[1]", "must be a mapping"),
        ("{", "cannot be read"),
    ],
)
def test_a_mistake_in_a_file_is_refused_naming_the_file(tmp_path, content, message):
    file = tmp_path / "c.json"
    file.write_text(content)
    text = refusal("--config", str(file))
    assert message in text
    assert str(file) in text


def test_credentials_in_a_uri_are_refused_without_repeating_them():
    with pytest.raises(StorageError, match="carries credentials") as caught:
        flags.parse(TrainConfig, [*NEEDED[:4], "--output_dir", "s3://key:hush@bucket/run"])
    assert "hush" not in str(caught.value)
    with pytest.raises(StorageError, match="options"):
        flags.parse(TrainConfig, [*NEEDED[:4], "--output_dir", "s3://bucket/run?endpoint_override=x"])


def test_the_demo_wants_a_local_folder():
    with pytest.raises(ConfigError, match="use a folder"):
        flags.parse(DemoConfig, ["--output_dir", "s3://bucket/demo"])


def test_a_config_file_that_is_not_there():
    with pytest.raises(StorageError, match="no such file"):
        train("--config", "/nowhere/c.json")


def test_paths_become_absolute_and_hub_names_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    config = flags.parse(
        TrainConfig, ["--model_name_or_path", "base", "--dataset_path", "a.txt", "s3://b/c/", "--output_dir", "~/r"]
    )
    assert config.model_name_or_path == str(tmp_path / "base")
    assert config.dataset_path == (str(tmp_path / "a.txt"), "s3://b/c")
    assert config.output_dir == os.path.expanduser("~/r")
    assert train().model_name_or_path == "hub/model"


def test_a_submitted_job_refuses_relative_data_and_output_paths(monkeypatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert train().output_dir == "/run"
    with pytest.raises(ConfigError, match="`output_dir` is the relative path `out`"):
        flags.parse(TrainConfig, [*NEEDED[:4], "--output_dir", "out"])


@pytest.mark.parametrize("preset", PRESETS, ids=lambda p: p.name)
def test_every_shipped_preset_parses(preset):
    config = train("--config", str(preset))
    assert flags.from_dict(TrainConfig, flags.to_dict(config)) == config


def test_the_reference_preset_is_the_reference():
    config = train("--config", str(next(p for p in PRESETS if p.name == "stage1_style.json")))
    assert (config.lora_r, config.lora_alpha, config.lora_dropout) == (128, 256, 0.05)
    assert config.lora_scale == 2
    assert (config.max_seq_length, config.segment_length) == (4096, 1024)
    assert config.global_batch_size == 128
    assert (config.learning_rate, config.lr_scheduler_type, config.warmup_ratio) == (5e-5, "cosine", 0.03)
    assert (config.num_train_epochs, config.save_steps, config.bf16, config.gradient_checkpointing) == (
        1,
        500,
        True,
        True,
    )


@given(
    seed=st.integers(0, 2**40),
    rate=st.floats(1e-9, 1, allow_nan=False),
    dropout=st.floats(0, 0.99),
    targets=st.lists(st.text("abcdef_", min_size=1), min_size=1, max_size=4),
    prompt=st.text(min_size=1),
    beta=st.none() | st.floats(0, 1),
)
def test_a_resolved_config_is_a_valid_config_that_gives_itself(seed, rate, dropout, targets, prompt, beta):
    values = flags.to_dict(train())
    values |= {"seed": seed, "learning_rate": rate, "lora_dropout": dropout, "sample_prompt": prompt}
    values |= {"lora_target_modules": targets} | ({} if beta is None else {"adam_beta1": beta})
    config = flags.from_dict(TrainConfig, values)
    assert flags.from_dict(TrainConfig, json.loads(json.dumps(flags.to_dict(config)))) == config


@given(
    st.sampled_from([TrainConfig, PrepareConfig, SampleConfig, DemoConfig]), st.lists(st.text(max_size=8), max_size=6)
)
def test_no_command_line_ends_in_anything_but_a_config_or_a_clear_error(config_class, words):
    try:
        flags.parse(config_class, [word for word in words if word not in ("-h", "--help")])
    except (ConfigError, StorageError) as error:
        assert str(error)


def test_help_lists_every_flag(capsys):
    with pytest.raises(SystemExit):
        flags.parse(TrainConfig, ["--help"])
    text = capsys.readouterr().out
    for name, field in TrainConfig.__dataclass_fields__.items():
        assert field.metadata.get("hidden") or f"--{name}" in text


@pytest.mark.parametrize(("value", "fewest", "most"), [(3, 3, 3), ("1..4", 1, 4), ("2..2", 2, 2)])
def test_a_number_of_workers_may_be_a_range_whose_end_makes_the_global_batch(tmp_path, value, fewest, most):
    (tmp_path / "c.json").write_text(json.dumps({"num_workers": value}))
    for config in (train("--num_workers", str(value)), train("--config", str(tmp_path / "c.json"))):
        assert (config.min_workers, config.max_workers, config.global_batch_size) == (fewest, most, 8 * 16 * most)
        assert flags.to_dict(config)["num_workers"] == value
