"""The count of a step's memory against an H200's allocator (bench/results/gpu_train.md), and what follows from it."""

import dataclasses

import pytest
from test_plan import LLAMA_3_8B, config

from raystyle.training import memory

TRAINABLE = 335_544_320


@pytest.mark.parametrize(
    ("rows", "recomputing", "has_liger", "peak_gb"),
    [(1, 0, False, 47.05), (1, 0, True, 41.16), (8, 32, True, 36.06), (4, 0, True, 96.31), (2, 0, True, 59.08)],
)
def test_it_is_within_a_tenth_of_what_was_measured(rows, recomputing, has_liger, peak_gb):
    needs = memory.of(config(per_device_train_batch_size=rows), LLAMA_3_8B, 4096, TRAINABLE, has_liger=has_liger)
    assert needs.total(recomputing) / 1e9 == pytest.approx(peak_gb, rel=0.1)


def test_the_fewest_layers_recompute_that_make_a_step_fit():
    needs = memory.of(config(per_device_train_batch_size=4), LLAMA_3_8B, 4096, TRAINABLE)
    for device_gb in (40, 60, 80, 100, 141):
        layers = needs.fewest_recomputing(device_gb * 1e9)
        assert needs.fits(layers, device_gb * 1e9)
        assert layers == 0 or not needs.fits(layers - 1, device_gb * 1e9)
    assert needs.fewest_recomputing(1) == 32
    assert needs.recomputing(None, None) == 0  # a CPU's memory is not asked for
    assert (needs.recomputing(True, 1e15), needs.recomputing(False, 1)) == (32, 0)


def test_a_base_in_4_bits_and_sharded_states_need_less():
    whole = memory.of(config(), LLAMA_3_8B, 4096, TRAINABLE)
    quarter = memory.of(config(load_in_4bit=True), LLAMA_3_8B, 4096, TRAINABLE)
    assert 5.5e9 < quarter.base < 6.5e9 < whole.base
    sharded = memory.of(config(deepspeed="zero2", num_workers=4), LLAMA_3_8B, 4096, TRAINABLE)
    assert sharded.optimizer == whole.optimizer // 4
    assert dataclasses.replace(sharded, optimizer=whole.optimizer) == whole
    spread = memory.of(config(deepspeed="zero3", num_workers=4), LLAMA_3_8B, 4096, TRAINABLE)
    assert spread.base == whole.base // 4
    away = memory.of(config(deepspeed="zero3_offload", num_workers=4), LLAMA_3_8B, 4096, TRAINABLE)
    assert (away.base, away.optimizer) == (0, 0)


def test_what_peft_s_own_layers_keep_is_counted():
    """A dropped-out copy of each layer's input: q, k, v, gate and up have the hidden size, o as much, down the wide one."""
    kept = {
        dropout: memory.of(config(load_in_4bit=True, lora_dropout=dropout), LLAMA_3_8B, 4096, TRAINABLE).layer
        for dropout in (0.0, 0.05)
    }
    per_device = config().per_device_train_batch_size
    assert kept[0.05] - kept[0.0] == (6 * 4096 + 14336) * 2 * 4096 * per_device
    plain = memory.of(config(), LLAMA_3_8B, 4096, TRAINABLE).layer
    assert plain == kept[0.0] < kept[0.05] < memory.of(config(use_dora=True), LLAMA_3_8B, 4096, TRAINABLE).layer


def test_of_a_range_of_workers_the_fewest_count_until_they_are_there():
    ranged = config(deepspeed="zero3", num_workers="2..4")
    whole = memory.of(config(), LLAMA_3_8B, 4096, TRAINABLE).base
    assert memory.of(ranged, LLAMA_3_8B, 4096, TRAINABLE).base == whole // 2
    assert memory.of(ranged, LLAMA_3_8B, 4096, TRAINABLE, num_workers=4).base == whole // 4
