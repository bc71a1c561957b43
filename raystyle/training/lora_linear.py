"""LoRA layers' forward and backward pass as one function, in place of PEFT's for training.

PEFT makes y = W x + s B A dropout(x) out of separate steps. Autograd then keeps each layer's own dropped-out copy of x
and its mask (seven a block: 15 GB for 4,096 tokens of an 8B model), casts x to LoRA's fp32 and back, and adds the
products in passes of their own. Here x is kept once, by whoever made it; each product adds itself to what is there; the
mask, drawn from a seed, is drawn again in the backward pass; and layers that read the same x (queries, keys and values;
gate and up) are computed together, so that its gradient is summed by the products too. The mathematics is PEFT's,
dropout's too: every layer has a mask of its own. LoRA's weights stay fp32 and are cast to the base's dtype to compute, as
autocast does.

N tokens, I inputs, O outputs, R rank.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import linear

from raystyle.training import dropout
from raystyle.training.loss import is_frozen_linear

# Layers of one block that transformers' models call in this order with the same input.
SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


def fuse(model: Any) -> int:
    """Give each plain LoRA layer of a PEFT model the fused pass, and all their dropout seeds; returns how many are fused.

    Others (DoRA, quantized bases, sharded weights, LoRA on embeddings) keep PEFT's pass, as all do in eval mode.
    """
    from peft.tuners.lora.layer import Linear, LoraLayer

    for module in model.modules():
        if isinstance(module, LoraLayer):
            for name, drop in module.lora_dropout.items():
                if isinstance(drop, torch.nn.Dropout):
                    module.lora_dropout[name] = dropout.SeededDropout(drop.p).train(drop.training)
    fused = {module for module in model.modules() if type(module) is Linear and is_frozen_linear(module.base_layer)}
    alone = set(fused)
    for parent in model.modules():
        for names in SIBLINGS:
            layers = [getattr(parent, name, None) for name in names]
            if all(layer in fused for layer in layers):
                Siblings(layers)
                alone -= set(layers)
    for layer in alone:
        Siblings([layer])
    return len(fused)


class Siblings:
    """LoRA layers that read the same input: the first one called computes all, the others take what waits for them."""

    def __init__(self, layers: Sequence[Any]) -> None:
        self.layers = layers
        self.originals = [layer.forward for layer in layers]
        self.input: torch.Tensor | None = None
        self.waiting: dict[int, torch.Tensor] = {}
        for place, layer in enumerate(layers):
            layer.forward = functools.partial(self.forward, place)

    def forward(self, place: int, x: torch.Tensor, *arguments: Any, **named: Any) -> torch.Tensor:
        if arguments or named or not all(map(_is_plain, self.layers)):
            return self.originals[place](x, *arguments, **named)  # type: ignore[no-any-return]
        if place == 0:
            outputs = _fused(self.layers, x)
            self.input, self.waiting = x, dict(enumerate(outputs[1:], 1))
            return outputs[0]
        if self.input is x and place in self.waiting:
            output = self.waiting.pop(place)
        else:
            [output] = _fused(self.layers[place : place + 1], x)
        if not self.waiting:
            self.input = None
        return output


def _is_plain(layer: Any) -> bool:
    """Whether a layer computes W x + s B A dropout(x) now, for training."""
    names = layer.active_adapters
    if (
        not layer.training
        or layer.disable_adapters
        or layer.merged
        or len(names) != 1
        or names[0] in layer.lora_variant
    ):
        return False
    [name] = names
    return name in layer.lora_A and layer.lora_A[name].bias is None and layer.lora_B[name].bias is None


def _fused(layers: Sequence[Any], x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    settings, weights = [], []
    for layer in layers:
        [name] = layer.active_adapters
        share = getattr(layer.lora_dropout[name], "p", 0.0)
        seed = dropout.new_seed() if share else 0
        settings.append((layer.scaling[name] / (1 - share), share, seed))
        weights += [
            layer.base_layer.weight,
            layer.base_layer.bias,
            layer.lora_A[name].weight,
            layer.lora_B[name].weight,
        ]
    return _LoraLinears.apply(x.to(weights[0].dtype), settings, *weights)  # type: ignore[no-any-return, no-untyped-call]


class _LoraLinears(torch.autograd.Function):
    """y = x W' + bias + s/(1-p) mask(x) A' B' for each of some layers. Hu et al. 2021; gradients by the chain rule.

    `settings` has (s/(1-p), p, seed) for each layer, and then come its W (O, I), bias, A (R, I) and B (O, R).
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, settings: list[tuple[float, float, int]], *weights: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        x_NI = x.reshape(-1, x.shape[-1])
        layers = _fours(weights)
        if settings[0][1]:
            hs_NR = [
                dropout.masked(x_NI, share, seed) @ a_RI.to(x.dtype).t()
                for (_, share, seed), (_, _, a_RI, _) in zip(settings, layers, strict=True)
            ]
        else:
            hs_NR = list((x_NI @ _joined(layers, x.dtype).t()).split([a_RI.shape[0] for _, _, a_RI, _ in layers], 1))
        outputs = []
        for (scale, _, _), (weight_OI, bias_O, _, b_OR), h_NR in zip(settings, layers, hs_NR, strict=True):
            y_NO = linear(x_NI, weight_OI, bias_O)
            outputs.append(y_NO.addmm_(h_NR, b_OR.to(x.dtype).t(), alpha=scale).view(*x.shape[:-1], -1))
        ctx.save_for_backward(x, *hs_NR, *weights)
        ctx.settings = settings
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        count = len(ctx.settings)
        x, *saved = ctx.saved_tensors
        hs_NR, layers = saved[:count], _fours(saved[count:])
        x_NI = x.reshape(-1, x.shape[-1])
        dys_NO = [gradient.reshape(-1, gradient.shape[-1]) for gradient in gradients]
        dx_NI: torch.Tensor | None = None
        if ctx.needs_input_grad[0]:
            dx_NI = dys_NO[0] @ layers[0][0]
            for dy_NO, (weight_OI, *_) in zip(dys_NO[1:], layers[1:], strict=True):
                dx_NI.addmm_(dy_NO, weight_OI)
        dhs_NR = [
            (dy_NO @ b_OR.to(x.dtype)).mul_(scale)
            for dy_NO, (scale, _, _), (_, _, _, b_OR) in zip(dys_NO, ctx.settings, layers, strict=True)
        ]
        if ctx.settings[0][1]:
            das_RI = []
            for dh_NR, (_, share, seed), (_, _, a_RI, _) in zip(dhs_NR, ctx.settings, layers, strict=True):
                das_RI.append(dh_NR.t() @ dropout.masked(x_NI, share, seed))
                if dx_NI is not None:
                    dropout.add_masked_(dx_NI, dh_NR @ a_RI.to(x.dtype), share, seed)
        else:
            dh_NR = torch.cat(dhs_NR, 1)
            das_RI = list((dh_NR.t() @ x_NI).split([a_RI.shape[0] for _, _, a_RI, _ in layers]))
            if dx_NI is not None:
                dx_NI.addmm_(dh_NR, _joined(layers, x.dtype))
        found: list[torch.Tensor | None] = [None if dx_NI is None else dx_NI.view_as(x), None]
        for dy_NO, h_NR, da_RI, (scale, _, _), (_, _, a_RI, b_OR) in zip(
            dys_NO, hs_NR, das_RI, ctx.settings, layers, strict=True
        ):
            found += [None, None, da_RI.to(a_RI.dtype), (dy_NO.t() @ h_NR).mul_(scale).to(b_OR.dtype)]
        return tuple(found)


def _fours(weights: Sequence[torch.Tensor]) -> list[Any]:
    return [weights[start : start + 4] for start in range(0, len(weights), 4)]


def _joined(layers: Sequence[Any], dtype: torch.dtype) -> torch.Tensor:
    """The layers' A matrices below each other, so that x is read once."""
    return torch.cat([a_RI.to(dtype) for _, _, a_RI, _ in layers])
