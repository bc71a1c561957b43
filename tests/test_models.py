import pytest
import torch

from raystyle import models
from raystyle.errors import ConfigError, ModelError


def test_shapes_read_from_the_config_are_those_of_the_loaded_model(tiny_model):
    shapes = models.read_shapes(str(tiny_model))
    model = models.load_base(str(tiny_model), dtype=torch.float32)
    assert shapes.parameters == sum(p.numel() for p in model.parameters())
    assert (shapes.num_layers, shapes.num_kv_heads, shapes.head_dim) == (2, 2, 8)
    linear = sum(layer.count for layer in shapes.linears)
    assert linear == sum(isinstance(m, torch.nn.Linear) for m in model.modules()) == 15


def test_lora_on_the_targets_has_the_planned_number_of_parameters(tiny_model):
    from raystyle import flags
    from raystyle.config import TrainConfig
    from raystyle.training import lora

    config = flags.from_dict(
        TrainConfig,
        {"model_name_or_path": "m", "dataset_path": ["/d"], "output_dir": "/o", "lora_r": 4, "lora_alpha": 8},
    )
    targets = models.targeted(models.read_shapes(str(tiny_model)), config.lora_target_modules)
    planned = sum(layer.count * 4 * (layer.in_features + layer.out_features) for layer in targets)
    model = lora.attach(models.load_base(str(tiny_model), dtype=torch.float32), config)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == planned


def test_a_model_is_known_by_what_it_holds_wherever_it_lies(tiny_model, tmp_path):
    import shutil

    import builders

    shutil.copytree(tiny_model, tmp_path / "a" / "base")
    shutil.copytree(tiny_model, tmp_path / "b" / "base")
    builders.write_model(tmp_path / "c" / "base", seed=1)
    a, b, c = (models.identity(str(tmp_path / name / "base")) for name in "abc")
    assert a == b != c
    assert models.identity("meta-llama/Meta-Llama-3-8B") == "meta-llama/Meta-Llama-3-8B"
    (tmp_path / "a" / "base").rename(tmp_path / "a" / "other name")
    renamed = models.identity(str(tmp_path / "a" / "other name") + "/")
    assert renamed == f"other name {a.split()[1]}" and models.is_same_base(renamed, a)
    assert models.is_same_base(a, c) is False


def test_a_base_and_itself_with_an_adapter_merged_into_it_differ(tiny_model, tmp_path):
    """In one layer alone, in the middle of the file: what is at its edges stays as it was."""
    import shutil

    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny_model, tmp_path / "merged")
    weights = tmp_path / "merged" / "model.safetensors"
    changed = load_file(weights)
    with safe_open(weights, framework="pt") as stored:
        metadata = stored.metadata()
    torch.manual_seed(0)
    changed["model.layers.1.self_attn.q_proj.weight"] += torch.randn(32, 4) @ torch.randn(4, 32) * 1e-3
    save_file(changed, weights, metadata=metadata)
    assert models.is_same_base(models.identity(str(tmp_path / "merged")), models.identity(str(tiny_model))) is False


def test_weights_that_are_no_safetensors_have_no_identity(tiny_model, tmp_path):
    import shutil

    shutil.copytree(tiny_model, tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").write_text("version https://git-lfs.example/spec/v1")
    with pytest.raises(ModelError, match=r"model\.safetensors` is not safetensors: .*\nhint:"):
        models.identity(str(tmp_path / "m"))


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("base 0123456789abcdef", "my base 0123456789abcdef", True),
        ("base 0123456789abcdef", "base 0123456789abcdee", False),
        ("some/base", "some/base", True),
        ("some/base", "other/base", False),
        ("some/base", "base 0123456789abcdef", None),
        ("base 0123456789abcdef", "some/base", None),
    ],
)
def test_identities_are_of_one_base_or_not_or_cannot_be_compared(one, other, expected):
    assert models.is_same_base(one, other) is expected


@pytest.mark.parametrize("make", [lambda path: path / "nothing", lambda path: path])
def test_a_model_that_is_not_there_is_refused_without_asking_the_hub(tmp_path, make):
    with pytest.raises(ModelError, match="hint:"):
        models.load_config(str(make(tmp_path)))


def test_a_config_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "no-such-thing"}')
    with pytest.raises(ModelError, match="cannot load the base model"):
        models.read_shapes(str(tmp_path))


def test_weights_in_pickle_are_never_loaded(tiny_model, tmp_path):
    import shutil

    shutil.copytree(tiny_model, tmp_path / "m")
    weights = tmp_path / "m" / "model.safetensors"
    torch.save(torch.nn.Linear(1, 1).state_dict(), tmp_path / "m" / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(ModelError, match="safetensors"):
        models.load_base(str(tmp_path / "m"), dtype=torch.float32)


@pytest.fixture(scope="module")
def tuned(tiny_model):
    """The tiny model with a LoRA that does something, in eval mode."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        models.load_base(str(tiny_model), dtype=torch.float32),
        LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False),
    )
    return model.eval()


@torch.no_grad()
def logits(model):
    return model(input_ids=torch.arange(20)[None]).logits


def test_scale_0_is_the_base_exactly_and_1_the_adapter(tuned, tiny_model):
    as_trained = logits(tuned)
    base = logits(models.load_base(str(tiny_model), dtype=torch.float32).eval())
    assert not torch.allclose(as_trained, base)
    with models.scaled(tuned, 0):
        assert torch.equal(logits(tuned), base)
        with tuned.disable_adapter():
            assert torch.equal(logits(tuned), base)
        assert torch.equal(logits(tuned), base)
    with models.scaled(tuned, 1):
        assert torch.equal(logits(tuned), as_trained)
    assert torch.equal(logits(tuned), as_trained)


def test_a_scaled_update_is_that_of_a_scaled_matrix(tuned):
    """The same as B times the scale, written by hand."""
    with models.scaled(tuned, 1.5):
        found = logits(tuned)
    matrices = [parameter for name, parameter in tuned.named_parameters() if "lora_B" in name]
    assert matrices
    with torch.no_grad():
        for matrix in matrices:
            matrix.mul_(1.5)
        expected = logits(tuned)
        for matrix in matrices:
            matrix.div_(1.5)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("scale", [0, 0.5])
def test_the_scale_is_put_back_after_an_error(tuned, scale):
    before = logits(tuned)
    with pytest.raises(RuntimeError), models.scaled(tuned, scale):
        raise RuntimeError
    assert torch.equal(logits(tuned), before)


@pytest.mark.parametrize("scale", [-0.1, float("nan"), float("inf")])
def test_a_scale_that_means_nothing_is_refused(tuned, scale):
    with pytest.raises(ConfigError, match="0 or more"), models.scaled(tuned, scale):
        pass


def test_a_model_without_an_adapter_cannot_be_scaled(tiny_model):
    with pytest.raises(ModelError, match="no LoRA"), models.scaled(models.load_base(str(tiny_model), dtype="auto"), 1):
        pass


@pytest.mark.parametrize(("emulated", "dtype"), [(True, torch.float32), (False, torch.bfloat16)])
def test_bfloat16_that_a_gpu_only_emulates_is_not_taken(monkeypatch, emulated, dtype):
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: not emulated or including_emulation
    )
    assert models.auto_dtype(torch.device("cuda")) == dtype
    assert models.auto_dtype(torch.device("cpu")) == torch.float32
