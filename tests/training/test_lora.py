"""Every kind of LoRA: as planned on the meta device, saved as it computes, continued exactly, and merged to the same logits."""

import json

import builders
import pytest
import torch

from raystyle import adapters, flags, models
from raystyle.config import TrainConfig
from raystyle.errors import ModelError
from raystyle.training import checkpoints, lora, plan

DENSE = {
    "plain": {},
    "rslora": {"use_rslora": True, "lora_alpha": 4},
    "dora": {"use_dora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "pissa_niter_16": {"init_lora_weights": "pissa_niter_16"},
    "saved": {"modules_to_save": ["embed_tokens", "lm_head"]},
}
EXPERTS = {
    "attention": {"lora_target_modules": ["all-linear"]},
    "experts": {"lora_target_modules": ["all-linear"], "lora_target_parameters": ["experts"]},
    "down": {"lora_target_modules": ["q_proj"], "lora_target_parameters": ["experts.down_proj"]},
}


def config(**values):
    needed = {"model_name_or_path": "m", "dataset_path": ["/d"], "output_dir": "/o"}
    return flags.from_dict(TrainConfig, needed | {"lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.0} | values)


@pytest.fixture(scope="module")
def mixtures(tmp_path_factory):
    return {
        family: builders.write_model(tmp_path_factory.mktemp(family), family=family)
        for family in ("mixtral", "qwen3_moe")
    }


CASES = [("llama", name) for name in DENSE] + [(f, name) for f in ("mixtral", "qwen3_moe") for name in EXPERTS]


@pytest.fixture(params=CASES, ids="-".join)
def case(request, tiny_model, mixtures):
    family, name = request.param
    return mixtures.get(family, tiny_model), config(**(DENSE | EXPERTS)[name])


def load(path):
    return models.load_base(str(path), dtype=torch.float32)


def train(path, settings, steps, start=None):
    """A model after some real optimizer steps, on from a checkpoint's directory if there is one, and its optimizer."""
    model = lora.attach(load(path), settings)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    if start:
        lora.load(str(start), model)
        checkpoints.restore_optimizer(checkpoints.read_optimizer(str(start)), model, optimizer)
    for step in steps:
        ids = torch.arange(20)[None] + 5 * step
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


class State:
    def save_to_json(self, path):
        with open(path, "w") as file:
            file.write("{}")


def save(directory, model, optimizer):
    directory.mkdir()
    tensors = checkpoints.collect_optimizer(model, optimizer)
    checkpoints.save(str(directory), 3, model, tensors, State(), {"base_model": "m"})
    return directory


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=torch.arange(30)[None], use_cache=False).logits


def test_a_kind_is_planned_saved_continued_and_merged(case, tmp_path):
    path, settings = case
    shapes = models.read_shapes(str(path))
    targets = models.targeted(shapes, settings.lora_target_modules, settings.lora_target_parameters)
    model, optimizer = train(path, settings, range(3))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == plan.trainable_parameters(
        settings, shapes, targets
    )
    layers = {layer.name: layer.count for layer in targets}
    lora.check_layers(model, layers)
    before = logits(load(path))
    expected = logits(model)
    assert not torch.allclose(before, expected, atol=1e-3)

    saved = save(tmp_path / "c", model, optimizer)
    adapters.verify(str(saved), layers)
    tuned = models.load_adapter(load(path), str(saved))
    torch.testing.assert_close(logits(tuned), expected, atol=1e-5, rtol=1e-4)
    merged = lora.merge(tuned)
    merged.save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(load(tmp_path / "merged")), expected, atol=1e-5, rtol=1e-4)

    whole, _ = train(path, settings, range(5))
    again, _ = train(path, settings, range(3, 5), start=saved)
    for (name, ours), (_, theirs) in zip(again.named_parameters(), whole.named_parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_pissa_begins_as_the_base_and_learns_in_another_direction(tiny_model):
    model = lora.attach(load(tiny_model), config(init_lora_weights="pissa"))
    torch.testing.assert_close(logits(model), logits(load(tiny_model)), atol=1e-5, rtol=1e-4)
    assert all(p.any() for name, p in model.named_parameters() if "lora_B" in name)


def test_pissa_continues_where_other_hardware_finds_other_singular_vectors(tiny_model, tmp_path, monkeypatch):
    settings = config(init_lora_weights="pissa")
    model, optimizer = train(tiny_model, settings, range(3))
    saved = save(tmp_path / "c", model, optimizer)
    exact = torch.linalg.svd

    def rotated(matrix, **arguments):
        found = exact(matrix, **arguments)
        return type(found)((-found[0].flip(1), found[1].flip(0), -found[2].flip(0)))

    monkeypatch.setattr(torch.linalg, "svd", rotated)
    again, _ = train(tiny_model, settings, [], start=saved)
    torch.testing.assert_close(logits(again), logits(model), atol=1e-5, rtol=1e-4)
    lora.save(again, str(tmp_path / "d"), {})
    found = logits(models.load_adapter(load(tiny_model), str(tmp_path / "d")))
    torch.testing.assert_close(found, logits(model), atol=1e-5, rtol=1e-4)


def test_a_pissa_adapter_is_plain_lora_of_twice_the_rank(tiny_model, tmp_path):
    from raystyle import lora_config

    settings = config(init_lora_weights="pissa")
    saved = save(tmp_path / "c", *train(tiny_model, settings, range(1)))
    written = json.loads((saved / adapters.CONFIG).read_text())
    lora_config.check_config(written)
    assert {name: written[name] for name in ("r", "lora_alpha")} == {"r": 8, "lora_alpha": 16}
    assert {k: v for k, v in lora.settings(settings).items() if k in ("r", "lora_alpha")} == {"r": 8, "lora_alpha": 16}


def test_modules_trained_whole_are_in_fp32_beside_a_base_in_bfloat16(tiny_model, tmp_path):
    base = models.load_base(str(tiny_model), dtype=torch.bfloat16)
    model = lora.attach(base, config(modules_to_save=["embed_tokens", "lm_head"]))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    ids = torch.arange(20)[None]
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_tensors_without_a_place_are_refused(tiny_model, tmp_path):
    saved = save(tmp_path / "c", *train(tiny_model, config(), range(1)))
    other = lora.attach(load(tiny_model), config(lora_target_modules=["q_proj"]))
    with pytest.raises(ModelError, match="24 tensors without a place"):
        lora.load(str(saved), other)


def test_lora_plus_gives_b_its_own_rate():
    a, b, c = (torch.nn.Parameter(torch.ones(1)) for _ in range(3))

    class Model:
        def named_parameters(self):
            return [("x.lora_A.default.weight", a), ("x.lora_B.default.weight", b), ("lm_head.weight", c)]

    groups = [{"params": [a, b, c], "lr": 1e-4, "weight_decay": 0.1}, {"params": [], "lr": 1e-4, "weight_decay": 0.0}]
    found = lora.parameter_groups(Model(), groups, 16)
    assert found == [
        {"params": [a, c], "lr": 1e-4, "weight_decay": 0.1}, {"params": [b], "lr": 16e-4, "weight_decay": 0.1}
    ]  # fmt: skip
    assert lora.parameter_groups(Model(), groups, None) == groups


@pytest.mark.parametrize(
    ("family", "values", "message"),
    [
        ("llama", {"lora_target_parameters": ["experts"]}, "has no fused ones"),
        (
            "mixtral",
            {"lora_target_parameters": ["experts.gate_proj"]},
            "it has experts.gate_up_proj, experts.down_proj",
        ),
        ("mixtral", {"lora_target_modules": ["gate_proj"]}, "--lora_target_parameters experts"),
    ],
)
def test_experts_that_are_not_there_are_refused(family, values, message, mixtures, tiny_model):
    shapes = models.read_shapes(str(mixtures.get(family, tiny_model)))
    settings = config(**{"lora_target_modules": ["all-linear"]} | values)
    with pytest.raises(ModelError, match=message):
        models.targeted(shapes, settings.lora_target_modules, settings.lora_target_parameters)


def test_a_base_in_4_bits_trains_and_its_adapter_fits_the_whole_base(tmp_path):
    pytest.importorskip("bitsandbytes")
    path = builders.write_model(tmp_path / "m", hidden=64)
    settings = config(load_in_4bit=True)
    base = models.load_base(str(path), dtype=torch.float32, load_in_4bit=True)
    assert base.model.layers[0].self_attn.q_proj.weight.dtype == torch.uint8
    model = lora.attach(base, settings)
    shapes = models.read_shapes(str(path))
    targets = models.targeted(shapes, settings.lora_target_modules)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert sum(map(torch.numel, trained)) == plan.trainable_parameters(settings, shapes, targets)
    lora.check_layers(model, {layer.name: layer.count for layer in targets})
    ids = torch.arange(40)[None]
    optimizer, losses = torch.optim.AdamW(trained, lr=0.01), []
    for _ in range(10):
        losses.append(model(input_ids=ids, labels=ids, use_cache=False).loss)
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    lora.save(model, str(tmp_path / "a"), {})
    tuned = models.load_adapter(load(path), str(tmp_path / "a"))
    with torch.no_grad():
        assert float(tuned(input_ids=ids, labels=ids, use_cache=False).loss) < float(losses[0]) - 0.3
