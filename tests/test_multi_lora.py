"""Several adapters on one base: equal to PEFT one at a time, and never mixed up."""

import json
from pathlib import Path

import builders
import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

from raystyle import models
from raystyle.errors import ModelError
from raystyle.generation import Row, Sampling
from raystyle.multi_lora import KEPT, MultiLora, scaling

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


@pytest.fixture(scope="module")
def adapter_dirs(tiny_model, tmp_path_factory) -> dict[str, str]:
    """Three adapters that differ in rank, targets and scaling."""
    folder = tmp_path_factory.mktemp("adapters")
    settings = {
        "a": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
        "b": {"r": 8, "lora_alpha": 8, "target_modules": [*ATTENTION, "down_proj"], "use_rslora": True},
        "c": {
            "r": 2,
            "lora_alpha": 6,
            "target_modules": ["up_proj", "q_proj"],
            "rank_pattern": {"q_proj": 5},
            "alpha_pattern": {"layers.1.mlp.up_proj": 3},
        },
    }
    return {
        name: str(builders.write_adapter(folder / name, tiny_model, seed=number, **setting))
        for number, (name, setting) in enumerate(settings.items())
    }


def base(tiny_model):
    return models.load_base(str(tiny_model), dtype=torch.float32).eval()


def mixed(tiny_model, adapter_dirs) -> tuple[torch.nn.Module, MultiLora]:
    network = base(tiny_model)
    lora = MultiLora(network)
    for name, directory in adapter_dirs.items():
        lora.load(name, directory)
    return network, lora


IDS = torch.randint(3, 300, (6, 9), generator=torch.Generator().manual_seed(0))


def rows(wanted: list[tuple[str | None, float]]) -> list[Row]:
    return [Row((0,), Sampling(), adapter, scale) for adapter, scale in wanted]


@torch.inference_mode()
def expected(tiny_model, adapter_dirs, name, ids):
    network = base(tiny_model)
    if name is not None:
        network = PeftModel.from_pretrained(network, adapter_dirs[name]).eval()
    return network(input_ids=ids).logits


@torch.inference_mode()
def test_each_row_gets_its_own_adapter_as_peft_would_apply_it_alone(tiny_model, adapter_dirs):
    network, lora = mixed(tiny_model, adapter_dirs)
    names = ["a", None, "c", "b", None, "a"]
    lora.choose(rows([(name, 1.0) for name in names]))
    found = network(input_ids=IDS).logits
    for row, name in enumerate(names):
        alone = expected(tiny_model, adapter_dirs, name, IDS[row : row + 1])[0]
        assert torch.allclose(found[row], alone, atol=1e-5)
    differences = [
        (found[0] - expected(tiny_model, adapter_dirs, other, IDS[:1])[0]).abs().max() for other in ("b", "c", None)
    ]
    assert min(differences) > 1e-2, "the adapters are too weak for this test to tell them apart"


@torch.inference_mode()
@pytest.mark.parametrize("name", ["a", "b", "c", None])
def test_a_batch_of_one_adapter_alone(tiny_model, adapter_dirs, name):
    network, lora = mixed(tiny_model, adapter_dirs)
    lora.choose(rows([(name, 1.0)] * len(IDS)))
    assert torch.allclose(network(input_ids=IDS).logits, expected(tiny_model, adapter_dirs, name, IDS), atol=1e-5)


@torch.inference_mode()
def test_rows_of_the_base_in_a_mixed_batch_are_the_base_exactly(tiny_model, adapter_dirs):
    network, lora = mixed(tiny_model, adapter_dirs)
    lora.choose(rows([(None, 1.0)] * 6))
    plain = network(input_ids=IDS).logits
    lora.choose(rows([(None, 1.0), ("a", 1.0), (None, 1.0), ("b", 0.7), ("c", 0.0), (None, 1.0)]))
    found = network(input_ids=IDS).logits
    for row in (0, 2, 4, 5):
        assert torch.equal(found[row], plain[row])


@torch.inference_mode()
def test_what_is_not_finite_in_one_adapter_stays_in_its_rows(tiny_model, adapter_dirs):
    network, lora = mixed(tiny_model, adapter_dirs)
    lora.choose(rows([(name, 1.0) for name in ("a", "b", None, None, "b", "b")]))
    healthy = network(input_ids=IDS).logits
    for layer in lora.layers.values():
        if "a" in layer.pairs:
            layer.pairs["a"][0].fill_(float("inf"))
        layer.laid_out = None
    found = network(input_ids=IDS).logits
    assert not torch.isfinite(found[0]).all()
    assert torch.equal(found[1:], healthy[1:])


@torch.inference_mode()
def test_scales_are_a_rows_own(tiny_model, adapter_dirs):
    network, lora = mixed(tiny_model, adapter_dirs)
    lora.choose(rows([("b", scale) for scale in (0.0, 0.5, 1.0, 1.5, 1.0, 0.5)]))
    found = network(input_ids=IDS[:1].expand(6, -1)).logits
    tuned = PeftModel.from_pretrained(base(tiny_model), adapter_dirs["b"]).eval()
    for row, scale in ((1, 0.5), (2, 1.0), (3, 1.5)):
        with models.scaled(tuned, scale):
            assert torch.allclose(found[row], tuned(input_ids=IDS[:1]).logits[0], atol=1e-5)
    assert torch.allclose(found[1], found[5], atol=1e-6)
    assert torch.allclose(found[0], expected(tiny_model, adapter_dirs, None, IDS[:1])[0], atol=1e-6)


@torch.inference_mode()
def test_in_16_bits_a_scale_is_rounded_no_more_beside_others_than_alone(tiny_model, adapter_dirs):
    network, lora = mixed(tiny_model, adapter_dirs)
    network.bfloat16()
    layer = next(layer for layer in lora.layers.values() if "a" in layer.pairs)
    layer._lay_out(("a",))
    lora.choose(rows([("a", 0.3), (None, 1.0)]))
    h = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = layer._mine(h)
    assert found.dtype == torch.bfloat16 and torch.equal(found[0], h[0] * 0.3)


@pytest.mark.parametrize("wanted", [[("a", 1.0)], [("a", 1.0), ("b", 1.0)], [("a", 0.5), (None, 1.0)]])
def test_a_row_of_an_adapter_that_is_not_loaded_is_refused_and_not_the_base(tiny_model, adapter_dirs, wanted):
    _, lora = mixed(tiny_model, adapter_dirs)
    lora.choose(rows([("a", 1.0), ("b", 1.0)]))
    lora.unload("a")
    with pytest.raises(ModelError, match="`a` is not loaded"):
        lora.choose(rows(wanted))
    lora.choose(rows([("a", 0.0), ("b", 1.0)]))


@torch.inference_mode()
def test_an_unloaded_adapter_leaves_nothing_behind_and_its_name_may_come_back(tiny_model, adapter_dirs):
    network, lora = mixed(tiny_model, adapter_dirs)
    lora.choose(rows([("a", 1.0), ("b", 1.0)]))
    network(input_ids=IDS[:2])
    lora.unload("a")
    lora.load("a", adapter_dirs["c"])
    lora.choose(rows([("a", 1.0), ("b", 1.0)]))
    found = network(input_ids=IDS[:2]).logits
    assert torch.allclose(found[0], expected(tiny_model, adapter_dirs, "c", IDS[:1])[0], atol=1e-5)
    assert torch.allclose(found[1], expected(tiny_model, adapter_dirs, "b", IDS[1:2])[0], atol=1e-5)


@torch.inference_mode()
def test_many_adapters_take_turns_side_by_side(tiny_model, adapter_dirs):
    network, lora = mixed(tiny_model, adapter_dirs)
    for number in range(2 * KEPT):
        lora.load(f"copy-{number}", adapter_dirs["b"])
    reference = expected(tiny_model, adapter_dirs, "b", IDS[:2])
    for number in range(2 * KEPT):
        lora.choose(rows([(f"copy-{number}", 1.0), (None, 1.0)]))
        assert torch.allclose(network(input_ids=IDS[:2]).logits[0], reference[0], atol=1e-5)
        assert len(lora.choice.adapters) <= KEPT


def test_scaling_is_pefts(tiny_model, adapter_dirs):
    tuned = PeftModel.from_pretrained(base(tiny_model), adapter_dirs["c"])
    config = json.loads((Path(adapter_dirs["c"]) / "adapter_config.json").read_text())
    for name, module in tuned.get_base_model().named_modules():
        if isinstance(module, LoraLayer):
            assert scaling(name, config) == pytest.approx(module.scaling["default"])


def changed(source: str, target: Path, change) -> str:
    """A copy of an adapter whose tensors went through `change`."""
    target.mkdir()
    (target / "adapter_config.json").write_bytes((Path(source) / "adapter_config.json").read_bytes())
    save_file(change(load_file(Path(source) / "adapter_model.safetensors")), target / "adapter_model.safetensors")
    return str(target)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {n.replace("layers.1.", "layers.7."): v for n, v in t.items()}, "this base does not have"),
        (lambda t: {n.replace("_proj.", "_proj.base_layer."): v for n, v in t.items()}, "this base does not have"),
        (lambda t: {n.replace("self_attn.q_proj", "input_layernorm"): v for n, v in t.items()}, "no linear layer"),
        (lambda t: dict(list(t.items())[1:]), "one half of the pair"),
        (lambda t: {n: v[:, :-1].contiguous() if "lora_A" in n else v for n, v in t.items()}, "its layer is"),
        (lambda t: t | {"base_model.model.lm_head.bias": torch.ones(3)}, "is not LoRA's"),
        (lambda t: {}, "no tensors"),
        (lambda t: {n: v.double() * 1e39 for n, v in t.items()}, "not finite in the base's precision"),
        (lambda t: {n: v * 0 + 3e38 if "lora_B" in n else v for n, v in t.items()}, "or once scaled"),
    ],
    ids=[
        "no such module",
        "inside a layer",
        "not linear",
        "half",
        "shape",
        "other tensor",
        "empty",
        "precision",
        "scaled",
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_and_changes_nothing(
    tiny_model, adapter_dirs, tmp_path, change, message
):
    network, lora = mixed(tiny_model, adapter_dirs)
    before = set(lora.ranks)
    with pytest.raises(ModelError, match=message):
        lora.load("new", changed(adapter_dirs["a"], tmp_path / "new", change))
    assert set(lora.ranks) == before
    assert not any("new" in layer.pairs for layer in lora.layers.values())
    lora.choose(rows([("a", 1.0), ("b", 1.0), (None, 1.0)]))
    network(input_ids=IDS[:3])


def test_a_layer_that_sees_only_some_tokens_is_refused(tiny_model, adapter_dirs):
    """As an expert of a mixture would: rows cannot be told apart there."""
    _, lora = mixed(tiny_model, adapter_dirs)
    lora.choose(rows([("a", 1.0), (None, 1.0)]), 3)
    layer = next(layer for layer in lora.layers.values() if "a" in layer.pairs)
    assert layer(torch.zeros(6, layer.base_layer.in_features)).shape[0] == 6
    for some in (5, 4):
        with pytest.raises(ModelError, match="cannot be told apart"):
            layer(torch.zeros(some, layer.base_layer.in_features))


@pytest.mark.parametrize(
    "field", [{"use_dora": True}, {"init_lora_weights": "pissa"}, {"alora_invocation_tokens": [1]}]
)
def test_what_is_not_plain_lora_is_refused_by_name(tiny_model, adapter_dirs, tmp_path, field):
    """PEFT would apply these; as plain LoRA they would give another text without a word."""
    _, lora = mixed(tiny_model, adapter_dirs)
    copy = Path(changed(adapter_dirs["a"], tmp_path / "other", dict))
    config = json.loads((copy / "adapter_config.json").read_text()) | field
    (copy / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=next(iter(field))):
        lora.load("other", str(copy))
