"""A run that continues from an adapter begins as that adapter, takes what it is, and is refused where it cannot."""

import json
import shutil

import builders
import pytest
import torch

from raystyle import adapters, flags, lora_config, models
from raystyle.config import TrainConfig
from raystyle.errors import ConfigError, ModelError
from raystyle.training import continuation, lora


def config(model, adapter, **values):
    needed = {"model_name_or_path": str(model), "dataset_path": ["/d"], "output_dir": "/o", "lora_path": str(adapter)}
    return flags.from_dict(TrainConfig, needed | values)


@pytest.fixture
def adapter(tiny_model, tmp_path):
    """Rank 4 on two modules, as a run leaves it."""
    path = builders.write_adapter(tmp_path / "adapter", tiny_model)
    about = {"base_identity": models.identity(str(tiny_model)), "fingerprint": adapters.fingerprint(str(path))}
    (path / adapters.ABOUT).write_text(json.dumps(about))
    return path


def rewrite(adapter, **values):
    path = adapter / adapters.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=torch.arange(30)[None], use_cache=False).logits


def test_it_begins_as_the_adapter(tiny_model, adapter):
    taken, digest = continuation.begin(config(tiny_model, adapter), models.read_shapes(str(tiny_model)))
    assert (taken.lora_r, taken.lora_alpha, taken.lora_target_modules) == (4, 8, ("q_proj", "v_proj"))
    assert digest == adapters.fingerprint(str(adapter))
    model = lora.attach(models.load_base(str(tiny_model), dtype=torch.float32), taken)
    base = logits(model)
    continuation.take_weights(taken, digest, model)
    expected = logits(models.load_adapter(models.load_base(str(tiny_model), dtype=torch.float32), str(adapter)))
    assert not torch.allclose(base, expected)
    assert torch.equal(logits(model), expected)
    with pytest.raises(ModelError, match="another one than when this run was planned"):
        continuation.take_weights(taken, "other", model)


def test_without_an_adapter_nothing_is_taken(tiny_model):
    plain = config(tiny_model, "/a", lora_path=None)
    assert continuation.begin(plain, models.read_shapes(str(tiny_model))) == (plain, None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lora_r": 128}, r"`lora_r` is 128, and the adapter `.*` has 4\n"),  # the default, but asked for
        ({"lora_alpha": 16}, r"`lora_alpha` is 16, and the adapter `.*` has 8\n"),
        ({"lora_target_modules": ["q_proj"]}, r"is q_proj, and the adapter `.*` has q_proj v_proj\n"),
        ({"lora_target_modules": ["all-linear"]}, r"is all-linear, and the adapter `.*` has q_proj v_proj\n"),
        ({"use_rslora": True, "lora_r": 4, "lora_alpha": 8}, r"`use_rslora` is true, and the adapter `.*` has false\n"),
        ({"modules_to_save": ["lm_head"]}, r"`modules_to_save` is lm_head, and the adapter `.*` has none\n"),
    ],
)
def test_a_setting_that_contradicts_the_adapter_is_refused_naming_both(tiny_model, adapter, values, message):
    with pytest.raises(ConfigError, match=message):
        continuation.begin(config(tiny_model, adapter, **values), models.read_shapes(str(tiny_model)))


def test_settings_that_agree_are_no_contradiction(tiny_model, adapter):
    agreeing = {"lora_r": 4, "lora_alpha": 8, "lora_target_modules": ["v_proj", "q_proj"], "lora_dropout": 0.1}
    taken, _ = continuation.begin(config(tiny_model, adapter, **agreeing), models.read_shapes(str(tiny_model)))
    assert taken.lora_dropout == 0.1
    resolved = flags.from_dict(TrainConfig, flags.to_dict(taken))  # a run's own config.json
    assert continuation.begin(resolved, models.read_shapes(str(tiny_model)))[0] == taken


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"rank_pattern": {"q_proj": 8}}, "has `rank_pattern` {'q_proj': 8}, and cannot be continued"),
        ({"layers_to_transform": [0]}, r"has `layers_to_transform` \[0\]"),
        ({"init_lora_weights": "pissa"}, "has `init_lora_weights` 'pissa'"),
        ({"bias": "all"}, "has `bias` 'all'"),
        ({"target_modules": ".*q_proj"}, "has a pattern for its targets"),
        ({"lora_alpha": 8.5}, "only whole numbers"),
        ({"target_modules": ["q_proj"]}, "does not fit the base model: .*v_proj.* not there"),
        ({"r": 8, "lora_alpha": 16}, r"does not fit the base model: .* is \(4, 32\), and its place is \(8, 32\)"),
    ],
)
def test_an_adapter_that_cannot_be_continued_is_refused(tiny_model, adapter, written, message):
    rewrite(adapter, **written)
    with pytest.raises(ModelError, match=message) as refused:
        continuation.begin(config(tiny_model, adapter), models.read_shapes(str(tiny_model)))
    assert "\nhint:" in str(refused.value)


def test_an_adapter_of_another_base_is_refused(tiny_model, adapter, tmp_path):
    other = builders.write_model(tmp_path / "other", seed=1)
    with pytest.raises(ModelError, match=r"was trained on the base .*\nhint: give the base"):
        continuation.begin(config(other, adapter), models.read_shapes(str(other)))
    (adapter / adapters.ABOUT).unlink()  # PEFT's own say nothing of their base that can be compared: shapes do
    wider = builders.write_model(tmp_path / "wider", hidden=48)
    with pytest.raises(ModelError, match="does not fit the base model"):
        continuation.begin(config(wider, adapter), models.read_shapes(str(wider)))


def test_an_adapter_that_is_not_there_is_refused(tiny_model, tmp_path):
    with pytest.raises(ModelError, match="does not exist"):
        continuation.begin(config(tiny_model, tmp_path / "nothing"), models.read_shapes(str(tiny_model)))


@pytest.mark.parametrize(
    "values", [{"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"lora_target_modules": ["all-linear"]}]
)
def test_every_kind_is_continued(tiny_model, tmp_path, values):
    settings = config(tiny_model, "/a", lora_path=None, lora_r=4, lora_alpha=8, **values)
    model = lora.attach(models.load_base(str(tiny_model), dtype=torch.float32), settings)
    for _, parameter in filter(lambda item: "lora_B" in item[0], model.named_parameters()):
        parameter.data.normal_(std=0.1)
    lora.save(model, str(tmp_path / "adapter"), {})
    taken, digest = continuation.begin(config(tiny_model, tmp_path / "adapter"), models.read_shapes(str(tiny_model)))
    again = lora.attach(models.load_base(str(tiny_model), dtype=torch.float32), taken)
    continuation.take_weights(taken, digest, again)
    assert torch.equal(logits(again), logits(model))


def test_a_new_field_of_peft_is_no_surprise(tiny_model, adapter):
    """Whatever PEFT writes of a plain adapter is passed over: the list of fields is PEFT's at each version."""
    written = json.loads((adapter / adapters.CONFIG).read_text())
    lora_config.check_config(written)
    shutil.copytree(adapter, adapter.parent / "copy")
    assert continuation.taken(config(tiny_model, adapter), written, set()).lora_r == 4
