"""What joins the stages: `sample`, without Ray. The others are tests/e2e."""

import json

import builders
import pytest

from raystyle import adapters, models, pipeline, storage, tokens
from raystyle.config import SampleConfig
from raystyle.errors import ConfigError, ModelError


@pytest.fixture
def adapter(tiny_model, tmp_path):
    """One that says what it was trained on."""
    folder = builders.write_adapter(tmp_path / "adapter", tiny_model)
    digest = tokens.tokenizer_digest(tokens.load_tokenizer(str(tiny_model)))
    about = {"base_identity": models.identity(str(tiny_model)), "tokenizer_digest": digest}
    storage.write_json(str(folder / adapters.ABOUT), about)
    return folder


def sampled(model, **settings):
    """What was sampled, and what was warned of."""
    warnings = []
    given = {"prompt": ("今日",), "max_new_tokens": 3} | settings
    return list(pipeline.sample(SampleConfig(model_name_or_path=str(model), **given), warnings.append)), warnings


def test_base_and_adapter_come_side_by_side(tiny_model, adapter):
    samples, warnings = sampled(tiny_model, lora_path=str(adapter), num_samples=2)
    digest = adapters.fingerprint(str(adapter))[:12]
    assert [(each.adapter, each.sample) for each in samples] == [(None, 0), (None, 1), (digest, 0), (digest, 1)]
    assert warnings == []


def test_an_adapter_of_another_base_of_the_same_shape_is_refused(tiny_model, adapter, tmp_path):
    other = builders.write_model(tmp_path / "other", seed=1)
    with pytest.raises(ModelError, match=r"trained on another base.*\nhint: "):
        sampled(other, lora_path=str(adapter))
    about = json.loads((adapter / adapters.ABOUT).read_text())
    storage.write_json(str(adapter / adapters.ABOUT), about | {"tokenizer_digest": "f" * 64})
    with pytest.raises(ModelError, match="another tokenizer"):
        sampled(tiny_model, lora_path=str(adapter))


def test_an_adapter_that_does_not_say_whose_it_is_is_sampled_with_a_warning(tiny_model, adapter):
    (adapter / adapters.ABOUT).unlink()
    samples, [warning] = sampled(tiny_model, lora_path=str(adapter))
    assert len(samples) == 2 and "does not say" in warning and str(adapter) in warning


def test_a_prompt_that_does_not_fit_is_refused_before_anything_is_loaded(tiny_model, monkeypatch):
    monkeypatch.setattr(models, "load_base", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(ConfigError, match=r"`今日` has 4 tokens .* 600: more than the 512 .*\nhint: .*_tokens 508`"):
        sampled(tiny_model, max_new_tokens=600)
    with pytest.raises(ConfigError, match=r"more than the 512 positions.*\nhint: use a shorter prompt"):
        sampled(tiny_model, prompt=("今日", "日" * 600))
