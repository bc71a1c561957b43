"""Isolation: packed documents give the logits they give alone, and a model that leaks is caught."""

import pytest
import torch

from raystyle.errors import ConfigError, TrainingError
from raystyle.training import attention, lora_linear
from raystyle.training.recompute import recompute

LENGTHS = [5, 1, 9, 3]


@pytest.fixture(scope="module")
def model(tiny_model):
    from transformers import AutoModelForCausalLM

    attention.register()
    return with_lora(AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation=attention.PACKED_SDPA))


def with_lora(model):
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).eval()


@pytest.fixture
def ids_T():
    return torch.randint(0, 256, (sum(LENGTHS),), generator=torch.Generator().manual_seed(0))


def test_packed_sdpa_isolates(model, ids_T):
    assert attention.prove_isolation(model, ids_T, LENGTHS, attention.PACKED_SDPA) < 1e-5


def test_packed_sdpa_equals_plain_sdpa_on_one_document(model, tiny_model, ids_T):
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation="sdpa").eval()
    with torch.no_grad():
        expected = plain(ids_T[None], use_cache=False).logits
        found = model(ids_T[None], use_cache=False, block_lengths=(len(ids_T),)).logits
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("is_fused", [False, True], ids=["PEFT's layers", "fused"])
@pytest.mark.parametrize("recomputing", [0, 2], ids=["all is kept", "recomputed"])
def test_gradients_do_not_cross_a_boundary_in_a_step(recomputing, is_fused, tiny_model, ids_T, monkeypatch):
    """The proof's third check, and that a leak which only training has, and no logits show, is caught by it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    attention.register()
    base = AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation=attention.PACKED_SDPA)
    model = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear", lora_dropout=0.1))
    assert not is_fused or lora_linear.fuse(model) > 0
    assert recompute(model, recomputing) == recomputing
    assert attention.prove_isolation(model, ids_T, LENGTHS, attention.PACKED_SDPA) < 1e-5
    assert all(parameter.grad is None for parameter in model.parameters())
    layer, forward = base.model.layers[0].mlp, type(base.model.layers[0].mlp).forward
    leak = lambda hidden: forward(layer, hidden) + (1e-6 * hidden[:, :1] if layer.training else 0)  # noqa: E731
    monkeypatch.setattr(layer, "forward", leak)
    with pytest.raises(TrainingError, match="reaches another document"):
        attention.prove_isolation(model, ids_T, LENGTHS, attention.PACKED_SDPA)


@pytest.mark.parametrize("window", [3, 6, 64])
def test_sliding_windows_are_kept(window):
    """Packed SDPA makes the band that transformers would give as a mask; the proof compares it with transformers' own."""
    from transformers import MistralConfig, MistralForCausalLM

    attention.register()
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=window, attn_implementation=attention.PACKED_SDPA,
    )  # fmt: skip
    model = with_lora(MistralForCausalLM(config))
    ids_T = torch.randint(0, 300, (40,))
    assert attention.prove_isolation(model, ids_T, [17, 23], attention.PACKED_SDPA) < 1e-5


class Whisper(torch.nn.Module):
    """A model whose logits all depend a little on the first token of the batch."""

    def __init__(self, model, strength):
        super().__init__()
        self.inner, self.strength = model, strength

    def get_base_model(self):
        return self.inner.get_base_model()

    def forward(self, input_ids, **arguments):
        output = self.inner(input_ids, **arguments)
        output.logits = output.logits + self.strength * input_ids[0, 0]
        return output


class Deaf(torch.nn.Module):
    """A flat batch given to plain SDPA without boundaries is the mistake that peers make."""

    def __init__(self, path):
        from transformers import AutoModelForCausalLM

        super().__init__()
        self.inner = AutoModelForCausalLM.from_pretrained(path, attn_implementation="sdpa")

    def get_base_model(self):
        return self.inner

    def forward(self, input_ids, use_cache, position_ids=None, block_lengths=None):
        return self.inner(input_ids, position_ids=torch.arange(input_ids.shape[1])[None], use_cache=use_cache)


def test_the_proof_catches_a_model_that_ignores_boundaries(tiny_model, ids_T):
    with pytest.raises(TrainingError, match="not isolated"):
        attention.prove_isolation(Deaf(tiny_model), ids_T, LENGTHS, attention.PACKED_SDPA)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_a_mixture_of_experts_is_isolated_and_one_that_is_not_is_caught(family, tmp_path, ids_T):
    """Experts take the tokens of all blocks at once: the last bits of their sums depend on the company."""
    import builders
    from transformers import AutoModelForCausalLM

    attention.register()
    path = builders.write_model(tmp_path / "m", family=family)
    model = with_lora(AutoModelForCausalLM.from_pretrained(path, attn_implementation=attention.PACKED_SDPA))
    for lengths in (LENGTHS, [6, 6, 6], [1, 16, 1]):
        assert attention.prove_isolation(model, ids_T, lengths, attention.PACKED_SDPA) < 1e-5
    attention.prove_isolation(Whisper(model, 1e-7), ids_T, LENGTHS, attention.PACKED_SDPA)  # rounding, it seems
    with pytest.raises(TrainingError, match="not isolated"):
        attention.prove_isolation(Deaf(path), ids_T, LENGTHS, attention.PACKED_SDPA)


def test_a_leak_too_small_for_the_tolerance_is_caught_by_the_second_check(model, ids_T):
    with pytest.raises(TrainingError, match="when another document changes"):
        attention.prove_isolation(Whisper(model, 1e-6), ids_T, LENGTHS, attention.PACKED_SDPA)


@pytest.mark.parametrize("implementation", ["flash_attention_2", "flash_attention_3", attention.VARLEN])
def test_flash_kernels_get_cumulative_lengths(implementation):
    arguments = attention.boundaries(LENGTHS, implementation)
    assert arguments["cu_seq_lens_q"].tolist() == [0, 5, 6, 15, 18]
    assert arguments["cu_seq_lens_q"].dtype == torch.int32
    assert arguments["max_length_k"] == 9


def test_auto_takes_packed_sdpa_where_flash_attention_cannot_run():
    assert attention.choose("auto", use_gpu=False, bf16=True) == attention.PACKED_SDPA
    assert attention.choose("auto", use_gpu=True, bf16=False) == attention.PACKED_SDPA
    assert attention.choose("sdpa", use_gpu=True, bf16=True) == attention.PACKED_SDPA


def test_flash_attention_that_cannot_run_is_refused_with_what_it_lacks():
    with pytest.raises(ConfigError, match="needs a GPU and --bf16 true"):
        attention.choose("flash_attention_2", use_gpu=False, bf16=False)
