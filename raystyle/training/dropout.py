"""Dropout whose mask comes from a seed, so that the backward pass can draw it again instead of keeping it.

Every LoRA layer has it, fused or not, so the same step drops the same elements whichever way it is computed. Two functions need the mask: the input on its way into LoRA, and the gradient on its way back. On a GPU each is one pass
over memory (Triton comes with torch there); elsewhere torch draws the mask. A seed's mask on a GPU is another one than on
a CPU.
"""

import functools
from typing import Any

import torch

BLOCK = 256
# Philox's rounds: Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3", found 7 to pass every test.
ROUNDS = 7


def masked(x: torch.Tensor, share: float, seed: int) -> torch.Tensor:
    """x with each element set to 0 by chance `share`; not scaled up."""
    if x.is_cuda:
        x = x.contiguous()
        return _launch(x, torch.empty_like(x), share, seed, adds=False)
    return x * kept(x, share, seed)


def add_masked_(total: torch.Tensor, x: torch.Tensor, share: float, seed: int) -> torch.Tensor:
    """Adds to `total`, in place, x with the mask that `masked` had for this shape, share and seed."""
    if x.is_cuda:
        assert total.is_contiguous() and x.is_contiguous()
        return _launch(x, total, share, seed, adds=True)
    return total.add_(x * kept(x, share, seed))


def kept(x: torch.Tensor, share: float, seed: int) -> torch.Tensor:
    """torch's mask of what remains of x: each element with chance 1 - `share`, from `seed` alone."""
    generator = torch.Generator(x.device).manual_seed(seed)
    return torch.empty_like(x, dtype=torch.bool).bernoulli_(1 - share, generator=generator)


class SeededDropout(torch.nn.Module):
    """Dropout that draws a seed at each call, from torch's generator on the CPU, and its mask from that seed.

    Gradient checkpointing puts that generator back before it runs a layer again.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.p == 0:
            return x
        return _Dropout.apply(x, self.p, new_seed())  # type: ignore[no-any-return, no-untyped-call]


def new_seed() -> int:
    return int(torch.randint(2**62, ()))


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, share: float, seed: int) -> torch.Tensor:
        ctx.share, ctx.seed = share, seed
        return masked(x, share, seed) / (1 - share)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return masked(gradients[0], ctx.share, ctx.seed) / (1 - ctx.share), None, None


def _launch(x: torch.Tensor, total: torch.Tensor, share: float, seed: int, adds: bool) -> torch.Tensor:
    count = x.numel()
    assert count < 2**31, "the kernel counts elements in 32 bits"
    _kernel()[(-(-count // (8 * BLOCK)),)](
        x, total, count, seed, round(share * 2**16), ADDS=adds, BLOCK=BLOCK, ROUNDS=ROUNDS
    )
    return total


@functools.cache
def _kernel() -> Any:
    """The Triton kernel. It is made at the first call, for Triton cannot be imported without a GPU's torch."""
    import triton
    import triton.language as tl

    @triton.jit(do_not_specialize=["count", "seed", "threshold"])  # type: ignore[untyped-decorator]
    def kernel(x, total, count, seed, threshold, ADDS: tl.constexpr, BLOCK: tl.constexpr, ROUNDS: tl.constexpr):  # type: ignore[no-untyped-def]
        tile = tl.program_id(0)
        lane = tl.arange(0, BLOCK)
        # One call of Philox makes 128 bits: eight elements' 16 each.
        a, b, c, d = tl.randint4x(seed, tile * BLOCK + lane, ROUNDS)
        for eighth in tl.static_range(8):
            if eighth < 2:
                bits = a
            elif eighth < 4:
                bits = b
            elif eighth < 6:
                bits = c
            else:
                bits = d
            bits = (bits >> (16 * (eighth % 2))) & 0xFFFF
            place = tile * (8 * BLOCK) + eighth * BLOCK + lane
            is_inside = place < count
            value = tl.where(bits >= threshold, tl.load(x + place, mask=is_inside).to(tl.float32), 0.0)
            if ADDS:
                value += tl.load(total + place, mask=is_inside).to(tl.float32)
            tl.store(total + place, value, mask=is_inside)

    return kernel
