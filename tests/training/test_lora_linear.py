"""The fused LoRA layer: PEFT's numbers, dropout whose mask comes back, and none of its copies."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from raystyle.training import dropout, lora_linear

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def tiny(dropout=0.0, bias=False, **settings):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, attention_bias=bias,
    )  # fmt: skip
    settings = {"target_modules": TARGETS} | settings
    model = get_peft_model(LlamaForCausalLM(config), LoraConfig(r=4, lora_alpha=16, lora_dropout=dropout, **settings))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # PEFT's zeros would hide half of the gradients
            torch.nn.init.normal_(parameter, std=0.1)
    return model.double().train()


def losses_and_gradients(model):
    model.zero_grad()
    ids = torch.arange(40).reshape(2, 20) % 64
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    return loss, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("bias", [False, True])
def test_loss_and_gradients_are_pefts(bias):
    model = tiny(bias=bias)
    expected_loss, expected = losses_and_gradients(model)
    assert lora_linear.fuse(model) == 14
    loss, gradients = losses_and_gradients(model)
    torch.testing.assert_close(loss, expected_loss)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], msg=name)


def test_dropout_is_one_random_mask_a_layer_scaled_up(monkeypatch):
    """PEFT's mathematics with our masks put in place of its draws."""
    model = tiny(dropout=0.3)
    lora_linear.fuse(model)
    seeds = []
    monkeypatch.setattr(dropout, "kept", recorded(seeds))
    torch.manual_seed(7)
    loss, gradients = losses_and_gradients(model)
    drawn = seeds[:14]
    assert len(set(drawn)) == 14  # each layer its own, and the same one again in the backward pass
    assert set(seeds[14:]) == set(drawn)

    plain, masks = tiny(dropout=0.3), iter(drawn)

    class Masked(torch.nn.Module):
        def forward(self, x):
            return x * UNPATCHED(x.reshape(-1, x.shape[-1]), 0.3, next(masks)).view_as(x) / 0.7

    for module in plain.modules():
        if hasattr(module, "lora_dropout"):
            module.lora_dropout["default"] = Masked()
    expected_loss, expected = losses_and_gradients(plain)
    torch.testing.assert_close(loss, expected_loss)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], msg=name)


def test_layers_that_cannot_be_fused_drop_the_same_elements():
    """Weights that DeepSpeed shards keep PEFT's pass; a run must not depend on that."""
    losses = []
    for is_sharded in (False, True):
        model = tiny(dropout=0.3)
        if is_sharded:
            for name, parameter in model.named_parameters():
                if name.endswith("base_layer.weight"):
                    parameter.ds_id = 0
        assert lora_linear.fuse(model) == (0 if is_sharded else 14)
        torch.manual_seed(3)
        losses.append(losses_and_gradients(model))
    (fused, fused_gradients), (sharded, sharded_gradients) = losses
    torch.testing.assert_close(fused, sharded)
    for name, gradient in fused_gradients.items():
        torch.testing.assert_close(gradient, sharded_gradients[name], msg=name)


UNPATCHED = dropout.kept


def recorded(seeds):
    def kept(x, share, seed):
        seeds.append(seed)
        return UNPATCHED(x, share, seed)

    return kept


def test_a_mask_drops_the_share_it_should_and_depends_on_its_seed_alone():
    x = torch.ones(1000, 100)
    mask = dropout.kept(x, 0.05, 3)
    assert abs(1 - mask.float().mean().item() - 0.05) < 0.004
    torch.rand(5)
    assert torch.equal(mask, dropout.kept(x, 0.05, 3))
    assert not torch.equal(mask, dropout.kept(x, 0.05, 4))


def test_gradient_checkpointing_draws_the_same_masks_again():
    model = tiny(dropout=0.3)
    lora_linear.fuse(model)
    torch.manual_seed(5)
    loss, expected = losses_and_gradients(model)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    torch.manual_seed(5)
    again, gradients = losses_and_gradients(model)
    assert torch.equal(loss, again)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=0, msg=name)


def test_eval_mode_disabled_adapters_and_other_kinds_are_pefts_own():
    model = tiny(dropout=0.5)
    ids = torch.arange(10)[None]
    with torch.no_grad():
        expected = model.eval()(ids).logits
        with model.disable_adapter():
            expected_base = model(ids).logits
        lora_linear.fuse(model)
        assert torch.equal(model(ids).logits, expected)
        with model.train().disable_adapter():
            assert torch.equal(model(ids).logits, expected_base)
    dora = tiny(use_dora=True)
    expected_loss, _ = losses_and_gradients(dora)
    lora_linear.fuse(dora)
    assert torch.equal(losses_and_gradients(dora)[0], expected_loss)


def test_inputs_are_kept_once_whatever_the_dropout():
    """What autograd holds for the backward pass: with PEFT's layers, dropout adds seven inputs and masks a block."""

    def held_bytes(model):
        storages = {}

        def pack(tensor):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        ids = torch.arange(40).reshape(2, 20) % 64
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        del loss
        return sum(storages.values())

    peft_s, fused, fused_without = tiny(dropout=0.3), tiny(dropout=0.3), tiny()
    lora_linear.fuse(fused)
    lora_linear.fuse(fused_without)
    assert held_bytes(fused) == held_bytes(fused_without) < held_bytes(peft_s) * 0.8
