"""Isolation: packed documents give the logits they give alone, and a model that leaks is caught."""

import pytest
import torch

from raystyle.errors import TrainingError
from raystyle.training import attention

LENGTHS = [5, 1, 9, 3]


@pytest.fixture(scope="module")
def model(tiny_model):
    from transformers import AutoModelForCausalLM

    attention.register()
    return AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation=attention.PACKED_SDPA).eval()


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


def test_gradients_do_not_cross_a_boundary(model, ids_T):
    embedded = model.get_input_embeddings()(ids_T)[None].detach().requires_grad_()
    output = model(
        inputs_embeds=embedded,
        position_ids=attention.flat_positions(LENGTHS),
        use_cache=False,
        **attention.boundaries(LENGTHS, attention.PACKED_SDPA),
    )
    output.logits[0, 6:15].sum().backward()
    reached = embedded.grad[0].abs().sum(-1).nonzero().flatten().tolist()
    assert set(reached) <= set(range(6, 15))
    assert 6 in reached


def test_the_proof_catches_a_model_that_ignores_boundaries(tiny_model, ids_T):
    """A flat batch given to plain SDPA without boundaries is the mistake that peers make."""
    from transformers import AutoModelForCausalLM

    class Deaf(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation="sdpa")

        def forward(self, input_ids, position_ids, use_cache, block_lengths):
            return self.inner(input_ids, position_ids=torch.arange(input_ids.shape[1])[None], use_cache=use_cache)

    with pytest.raises(TrainingError, match="not isolated"):
        attention.prove_isolation(Deaf(), ids_T, LENGTHS, attention.PACKED_SDPA)


def test_a_leak_too_small_for_the_tolerance_is_caught_by_the_second_check(model, ids_T):
    class Whisper(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, input_ids, **arguments):
            output = self.inner(input_ids, **arguments)
            output.logits = output.logits + 1e-6 * input_ids[0, 0]
            return output

    with pytest.raises(TrainingError, match="when another document changes"):
        attention.prove_isolation(Whisper(), ids_T, LENGTHS, attention.PACKED_SDPA)


def test_flash_attention_gets_cumulative_lengths():
    arguments = attention.boundaries(LENGTHS, "flash_attention_2")
    assert arguments["cu_seq_lens_q"].tolist() == [0, 5, 6, 15, 18]
    assert arguments["cu_seq_lens_q"].dtype == torch.int32
    assert arguments["max_length_k"] == 9


def test_auto_takes_packed_sdpa_where_flash_attention_is_not():
    assert attention.choose("auto", use_gpu=False) == attention.PACKED_SDPA
    assert attention.choose("sdpa", use_gpu=True) == attention.PACKED_SDPA
    assert attention.choose("flash_attention_2", use_gpu=True) == "flash_attention_2"
