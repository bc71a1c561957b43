"""vLLM's own CPU code, with and without the plugin. Run by `make test-vllm`."""

import importlib.metadata
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

import torch

from raystyle.serving.engines import vllm_cpu

RANK, WIDTH, SLOTS = 4, 8, 2
# Adapter 7 sits in the last slot. Prompts of three, two and one tokens, or one new token each.
ADAPTERS: list[int | None] = [None, 7]
PROMPTS, NEW_TOKENS = (0, 0, 0, 7, 7, 0), (0, 7, 0)


@pytest.fixture
def upstream(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """vLLM as it comes; returns its own `bgmv_shrink`."""
    from vllm.lora.ops.torch_ops import lora_ops
    from vllm.lora.punica_wrapper import punica_cpu

    original: Callable[..., None] = getattr(lora_ops.bgmv_shrink, "__wrapped__", lora_ops.bgmv_shrink)
    for module in (lora_ops, punica_cpu):
        monkeypatch.setattr(module, "bgmv_shrink", original)
    return original


def updates(tokens: tuple[int, ...]) -> torch.Tensor:
    """What vLLM's CPU code adds to a layer's output for tokens of these adapters; 0 is the base."""
    from vllm.lora.layers import LoRAMapping
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    wrapper = PunicaWrapperCPU(64, 8, "cpu")
    mapping = LoRAMapping(index_mapping=tokens, prompt_mapping=tokens, is_prefill=tokens == PROMPTS)
    wrapper.update_metadata(mapping, ADAPTERS, SLOTS + 1, 100)
    generator = torch.Generator().manual_seed(0)
    lora_a = torch.zeros(SLOTS, 1, RANK, WIDTH)
    lora_b = torch.zeros(SLOTS, 1, WIDTH, RANK)
    lora_a[1].normal_(generator=generator)
    lora_b[1].normal_(generator=generator)
    x, y = torch.randn(len(tokens), WIDTH, generator=generator), torch.zeros(len(tokens), WIDTH)
    wrapper.add_lora_linear(y, x, (lora_a,), (lora_b,), 1.0, (WIDTH,))
    return y


@pytest.mark.parametrize("tokens", [PROMPTS, NEW_TOKENS], ids=["prompts", "new tokens"])
def test_the_base_gets_nothing_and_adapters_get_what_they_got(upstream: Any, tokens: tuple[int, ...]) -> None:
    before = updates(tokens)
    vllm_cpu.mend()
    after = updates(tokens)
    is_base = torch.tensor(tokens) == 0
    assert not after[is_base].any()
    assert torch.equal(after[~is_base], before[~is_base]) and after[~is_base].any()


@pytest.mark.parametrize("tokens", [PROMPTS, NEW_TOKENS], ids=["prompts", "new tokens"])
def test_vllm_still_needs_it(upstream: Any, tokens: tuple[int, ...]) -> None:
    leaked = updates(tokens)[torch.tensor(tokens) == 0]
    assert leaked.any(), "vLLM keeps adapters off the base's rows by itself now: remove vllm_cpu.py and its entry point"


def test_mending_twice_is_mending_once(upstream: Any) -> None:
    from vllm.lora.ops.torch_ops import lora_ops

    vllm_cpu.mend()
    mended = lora_ops.bgmv_shrink
    vllm_cpu.mend()
    assert lora_ops.bgmv_shrink is mended


def test_a_gpu_is_left_alone(upstream: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.lora.ops.torch_ops import lora_ops
    from vllm.platforms import current_platform

    monkeypatch.setattr(type(current_platform), "is_cpu", lambda self: False)
    vllm_cpu.mend()
    assert lora_ops.bgmv_shrink is upstream


def test_vllm_finds_it() -> None:
    [found] = importlib.metadata.entry_points(group="vllm.general_plugins", name="raystyle_cpu")
    assert found.load() is vllm_cpu.mend
