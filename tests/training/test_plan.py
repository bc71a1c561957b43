import dataclasses

import pytest

from raystyle import flags, models
from raystyle.config import TrainConfig
from raystyle.errors import ConfigError, DataError
from raystyle.training import plan

LLAMA_3_8B = models.Shapes(
    model_type="llama",
    parameters=8_030_261_248,
    hidden_size=4096,
    intermediate_size=14336,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    vocab_size=128_256,
    max_position_embeddings=8192,
    identity="llama",
    linears=tuple(
        models.Linear(name, inputs, outputs, count, is_head=name == "lm_head")
        for name, inputs, outputs, count in [
            ("q_proj", 4096, 4096, 32),
            ("k_proj", 4096, 1024, 32),
            ("v_proj", 4096, 1024, 32),
            ("o_proj", 4096, 4096, 32),
            ("gate_proj", 4096, 14336, 32),
            ("up_proj", 4096, 14336, 32),
            ("down_proj", 14336, 4096, 32),
            ("lm_head", 4096, 128_256, 1),
        ]
    ),
)


def config(**values):
    needed = {"model_name_or_path": "m", "dataset_path": ["/d"], "output_dir": "/o"}
    return flags.from_dict(TrainConfig, needed | values)


def manifest(rows=11_250, length=4096, tokens=None, vocab=128_256):
    return {
        "counts": {"rows": rows, "tokens": tokens or rows * length},
        "max_seq_length": length,
        "tokenizer": {"vocab_size": vocab},
        "digest": "d",
    }


def make(config_=None, manifest_=None):
    config_ = config_ or config()
    targets = models.targeted(LLAMA_3_8B, config_.lora_target_modules)
    return plan.make_plan(config_, manifest_ or manifest(), LLAMA_3_8B, targets)


def test_the_reference_run_is_88_steps_of_half_a_million_tokens():
    made = make()
    assert (made.steps, made.tokens_per_step, made.warmup_steps) == (88, 524_288, 3)
    assert made.checkpoints == (88,)
    assert any("never comes" in warning for warning in made.warnings)
    assert made.trainable_parameters == 335_544_320
    assert made.lora_scale == 2


def test_flops_per_token_of_llama_3_8b_as_counted_by_hand():
    """N 7.505G, P 0.3355G, and with 1,024 keys A 0.27G: 4N + 3A + 6P is 32.8 GFLOP; recomputing adds 14.9 or so."""
    model = plan.flops_per_token(LLAMA_3_8B, 335_544_320, 1024, recompute=False)
    assert model == pytest.approx(32.8e9, rel=0.005)
    assert plan.flops_per_token(LLAMA_3_8B, 335_544_320, 1024, recompute=True) - model == pytest.approx(
        14.9e9, rel=0.01
    )


def test_the_reference_run_fits_80_gb_because_logits_are_never_whole():
    memory = make().memory_gb_estimate
    assert memory["logits"] < 1
    assert memory["total"] < 80
    assert memory["total"] == pytest.approx(sum(size for name, size in memory.items() if name != "total"), abs=0.05)


@pytest.mark.parametrize(
    ("save_steps", "steps", "expected"),
    [(500, 88, (88,)), (0.25, 88, (22, 44, 66, 88)), (0.3, 10, (3, 6, 9, 10)), (4, 8, (4, 8)), (0.001, 3, (1, 2, 3))],
)
def test_the_end_is_always_saved(save_steps, steps, expected):
    assert plan.checkpoint_steps(save_steps, steps) == expected


def test_a_run_of_one_step_has_a_learning_rate():
    made = make(config(max_steps=1))
    assert (made.steps, made.warmup_steps) == (1, 0)


def test_training_arguments_that_change_what_is_learned_identify_a_run():
    assert make(config(adam_beta2=0.9)).identity != make().identity
    assert make(config(dataloader_num_workers=2, run_name="x")).identity == make().identity


def test_epochs_and_max_steps():
    assert make(config(num_train_epochs=2)).steps == 176
    assert make(config(num_train_epochs=0.5)).steps == 44
    assert make(config(max_steps=7)).steps == 7


def test_workers_and_batch_may_change_while_the_global_batch_stays():
    one = make(config(per_device_train_batch_size=8, gradient_accumulation_steps=16)).identity
    four = make(config(per_device_train_batch_size=4, gradient_accumulation_steps=8, num_workers=4)).identity
    other = make(config(per_device_train_batch_size=4)).identity
    assert one == four
    assert one != other


@pytest.mark.parametrize(
    ("values", "data", "error", "message"),
    [
        ({"max_seq_length": 2048}, manifest(), ConfigError, "the prepared rows hold 4096"),
        ({}, manifest(rows=0, tokens=0), DataError, "no rows"),
        ({}, manifest(vocab=200_000), ConfigError, "fall outside"),
        ({}, manifest(length=16_384), ConfigError, "8192 positions"),
    ],
)
def test_what_cannot_work_is_refused(values, data, error, message):
    with pytest.raises(error, match=message):
        make(config(**values), data)


def test_a_target_that_matches_nothing_is_refused_with_the_nearest():
    with pytest.raises(Exception, match="did you mean `q_proj`"):
        models.targeted(LLAMA_3_8B, ("q_prj",))
    assert {layer.name for layer in models.targeted(LLAMA_3_8B, ("all-linear",))} == set(config().lora_target_modules)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"use_dora": True}, "`use_dora`"),
        ({"modules_to_save": ["lm_head"]}, "`modules_to_save`"),
        ({"init_lora_weights": "pissa", "lora_r": 1024, "lora_alpha": 1024}, "`r`"),  # twice the rank is too much
        ({"use_rslora": True, "lora_alpha": 16}, None),
        ({"init_lora_weights": "pissa", "loraplus_lr_ratio": 16}, None),
    ],
)
def test_what_serving_cannot_take_is_said_beforehand(values, named):
    said = [warning for warning in make(config(**values)).warnings if "raystyle export" in warning]
    assert len(said) == (named is not None)
    assert all(f"an adapter with {named}: merge" in warning for warning in said)


MIXTRAL = {
    "vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2,
    "max_position_embeddings": 32_768, "tie_word_embeddings": False,
}  # fmt: skip


def test_8x7b_is_counted_from_its_config_alone(tmp_path):
    """46.7 billion parameters, 12.9 billion of them in a token's way (Jiang et al. 2024, "Mixtral of Experts")."""
    from transformers import MixtralConfig

    MixtralConfig(**MIXTRAL).save_pretrained(tmp_path)
    shapes = models.read_shapes(str(tmp_path))
    assert shapes.parameters == 46_702_792_704
    assert [(layer.name, layer.count, layer.copies, layer.active) for layer in shapes.experts] == [
        ("experts.gate_up_proj", 32, 8, 2), ("experts.down_proj", 32, 8, 2)
    ]  # fmt: skip
    products = plan.flops_per_token(shapes, 0, 0, recompute=False) / 4
    routers, embedding = 32 * 8 * 4096, 32_000 * 4096
    assert products + routers + embedding == pytest.approx(12.9e9, rel=0.005)
    settings = config(
        lora_target_modules=["all-linear"], lora_target_parameters=["experts"], lora_r=8, lora_alpha=16, lora_dropout=0
    )
    targets = models.targeted(shapes, settings.lora_target_modules, settings.lora_target_parameters)
    attention = 32 * 8 * (2 * (4096 + 4096) + 2 * (4096 + 1024))
    experts = 32 * 8 * 8 * ((4096 + 2 * 14_336) + (14_336 + 4096))
    assert plan.trainable_parameters(settings, shapes, targets) == attention + experts


def test_the_description_names_every_figure():
    text = plan.describe(make())
    for expected in ("11,250", "46,080,000", "524,288", "88", "335,544,320", "never comes"):
        assert expected in text
    assert dataclasses.asdict(make())["identity"]["data_digest"] == "d"
