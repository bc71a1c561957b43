"""Held-out text is measured as training has it: with what the tokenizer puts in front, and end-of-text behind."""

from types import SimpleNamespace

import numpy as np
import torch

from raystyle import tokens
from raystyle.training import heldout


def test_blocks_are_the_document_s_ids_with_its_prefix_and_end(tiny_prepared, tiny_model):
    tokenizer = tokens.load_tokenizer(str(tiny_model))
    prefix, end_id = tokens.prefix_and_end(tokenizer)
    [text] = heldout.documents(str(tiny_prepared))
    blocks = heldout.blocks(str(tiny_prepared), tokenizer, 40)
    assert prefix
    assert np.concatenate(blocks).tolist() == [*prefix, *tokens.encode(tokenizer, text)[0].tolist(), end_id]
    assert max(map(len, blocks)) == 40


def test_at_most_64_blocks_are_taken_evenly(tiny_prepared, tiny_model, monkeypatch):
    monkeypatch.setattr(heldout, "documents", lambda _: ["天" * 4000])
    blocks = heldout.blocks(str(tiny_prepared), tokens.load_tokenizer(str(tiny_model)), 8)
    assert len(blocks) == heldout.MAX_BLOCKS


def test_attention_is_told_where_a_block_ends(tiny_model):
    """As in training, where that is what its window goes by."""
    asked = []

    def loss_sum(model, inputs):
        asked.append(inputs)
        return torch.tensor(6.0)

    for implementation, name in (("raystyle_packed_sdpa", "block_lengths"), ("flash_attention_2", "cu_seq_lens_q")):
        trainer = SimpleNamespace(
            model=torch.nn.Identity(), args=SimpleNamespace(device=torch.device("cpu")), loss_sum=loss_sum,
            run=SimpleNamespace(implementation=implementation),
        )  # fmt: skip
        assert heldout.summed_loss(trainer, [np.arange(7)], 0, 1) == (6.0, 6)
        assert [int(n) for n in asked[-1][name]] in ([7], [0, 7])
