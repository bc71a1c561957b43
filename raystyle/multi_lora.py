"""Several LoRA adapters on one base at once, each row of a batch with its own, or with none.

PEFT's way to mix adapters (`adapter_names`) walks over them in every layer, leaves its hooks behind when a forward pass
raises, and loads an adapter that matches nothing without a word. Here a layer holds the matrices of the adapters in use
side by side, and all rows go through them together: two matrix products whatever their number, of which each row keeps its
own part. What the first product gives for another row's adapter is replaced by zeros, so that it cannot matter even where it
overflowed, and the second one's matrices are finite, which is seen to when they are loaded; a row of the base gets exact zeros
added.

B rows, q tokens, R ranks of all adapters side by side, N adapters.
"""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from raystyle import adapters, lora_config
from raystyle.errors import ModelError
from raystyle.generation import Row

PREFIX = "base_model.model."
# Adapters whose matrices stay side by side although no row asks for them now: to lay them out copies them.
KEPT = 8

# A layer's matrices of one adapter: A (R, in) and B (out, R), the scaling of the adapter's config in B already.
Pair = tuple[torch.Tensor, torch.Tensor]


class _Choice:
    """Whose matrices the next forward pass uses; every layer looks here. None: the base alone."""

    adapters: tuple[str, ...] = ()  # side by side, in this order
    alone: tuple[str, float] | None = None  # all rows are this one's, so scaled
    fresh: int | None = None  # tokens of each row, where it is known
    own_B: torch.Tensor | None = None  # each row's number in `adapters`, or -1
    scale_B: torch.Tensor | None = None


class _MultiLoraLinear(torch.nn.Module):
    """A linear layer and what the adapters add to it."""

    def __init__(self, base: torch.nn.Linear, choice: _Choice) -> None:
        super().__init__()
        self.base_layer = base
        self.choice = choice
        self.pairs: dict[str, Pair] = {}
        self.laid_out: tuple[str, ...] | None = None
        self.A_Ri = self.B_oR = self.owner_R = torch.empty(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.base_layer(x)
        choice = self.choice
        if choice.alone is not None:
            name, scale = choice.alone
            if name in self.pairs:
                A_Ri, B_oR = self.pairs[name]
                output = output + (x @ A_Ri.T * scale) @ B_oR.T
        elif choice.own_B is not None:
            self._lay_out(choice.adapters)
            if self.A_Ri.numel():
                output = output + self._mine(x @ self.A_Ri.T) @ self.B_oR.T
        return output

    def _mine(self, h: torch.Tensor) -> torch.Tensor:
        own_B, scale_B = self.choice.own_B, self.choice.scale_B
        assert own_B is not None and scale_B is not None
        if h.dim() == 2:  # a layer that sees its tokens as one flat list
            fresh = self.choice.fresh or 1
            if h.shape[0] != len(own_B) * fresh:
                raise ModelError(
                    "an adapter sits on a layer that sees only some of the tokens, which cannot be told apart"
                )
            own_B, scale_B = (each.repeat_interleave(fresh) for each in (own_B, scale_B))
        is_mine = own_B[:, None] == self.owner_R
        scale = scale_B[:, None]
        if h.dim() == 3:
            is_mine, scale = is_mine[:, None], scale[:, None]
        # Scaled in fp32 and rounded once, as where all rows are of one adapter.
        return torch.where(is_mine, (h * scale).to(h.dtype), 0)

    def _lay_out(self, names: tuple[str, ...]) -> None:
        if self.laid_out == names:
            return
        present = [(number, *self.pairs[name]) for number, name in enumerate(names) if name in self.pairs]
        self.laid_out = names
        if not present:
            self.A_Ri = torch.empty(0)
            return
        device = self.base_layer.weight.device
        self.A_Ri = torch.cat([A for _, A, _ in present])
        self.B_oR = torch.cat([B for _, _, B in present], dim=1)
        self.owner_R = torch.cat([torch.full((len(A),), number, device=device) for number, A, _ in present])


class MultiLora:
    """The adapters of a model. Layers get a place for them when the first adapter asks for it; not for several threads."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.choice = _Choice()
        self.ranks: dict[str, int] = {}
        # As they were before any got a place for adapters: a module inside one of those is no layer of the base.
        self.modules: dict[str, torch.nn.Module] = dict(model.named_modules())
        self.layers: dict[str, _MultiLoraLinear] = {}

    def load(self, name: str, directory: str) -> None:
        """`read`, then `put`."""
        self.put(name, *read(directory))

    def put(self, name: str, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
        """Every tensor of an adapter into its place, in the base's precision.

        Raises `ModelError` where one has no place or does not fit it, is not finite in that precision and scaled, or where
        half of a pair is missing.
        """
        found = {module: self._pair(module, tensors, config) for module in _modules(tensors)}
        for module, pair in found.items():
            self._layer(module).pairs[name] = pair
        self.ranks[name] = max(A.shape[0] for A, _ in found.values())

    def unload(self, name: str) -> None:
        """Forget an adapter; one that is not there is no matter."""
        self.ranks.pop(name, None)
        if name in self.choice.adapters:
            self.choice.adapters = tuple(other for other in self.choice.adapters if other != name)
        for layer in self.layers.values():
            layer.pairs.pop(name, None)
            if layer.laid_out is not None and name in layer.laid_out:
                layer.laid_out = None
                layer.A_Ri = layer.B_oR = torch.empty(0)

    def choose(self, rows: Sequence[Row], fresh: int | None = None) -> None:
        """Say whose the rows of the next forward pass are, in the batch's order, and how many tokens each has in it.

        Raises `ModelError` for an adapter that is not loaded: its row would be the base's without a word.
        """
        wanted = [(None, 1.0) if row.adapter is None or row.scale == 0 else (row.adapter, row.scale) for row in rows]
        choice = self.choice
        choice.fresh = fresh
        choice.alone = choice.own_B = choice.scale_B = None
        distinct = set(wanted)
        if unknown := {name for name, _ in distinct if name is not None} - self.ranks.keys():
            raise ModelError(f"the adapter `{min(unknown)}` is not loaded")
        if distinct == {(None, 1.0)}:
            return
        if len(distinct) == 1:
            [(name, scale)] = distinct
            assert name is not None
            choice.alone = (name, scale)
            return
        needed = dict.fromkeys(name for name, _ in wanted if name is not None)
        if not needed.keys() <= set(choice.adapters):
            spare = [name for name in choice.adapters if name not in needed][: max(0, KEPT - len(needed))]
            choice.adapters = (*needed, *spare)
        numbers = {name: number for number, name in enumerate(choice.adapters)}
        device = next(self.model.parameters()).device
        choice.own_B = torch.tensor([-1 if n is None else numbers[n] for n, _ in wanted], device=device)
        choice.scale_B = torch.tensor([scale for _, scale in wanted], dtype=torch.float32, device=device)

    def _pair(self, module: str, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> Pair:
        linear = self.modules.get(module)
        if linear is None:
            raise ModelError(f"the adapter has tensors for `{module}`, which this base does not have")
        if not isinstance(linear, torch.nn.Linear):
            raise ModelError(
                f"the adapter has tensors for `{module}`, which is no linear layer but a {type(linear).__name__}"
            )
        halves = [tensors.get(f"{PREFIX}{module}.lora_{half}.weight") for half in "AB"]
        if halves[0] is None or halves[1] is None:
            raise ModelError(f"the adapter has one half of the pair for `{module}` only")
        A_Ri, B_oR = (half.to(linear.weight.device, linear.weight.dtype) for half in halves if half is not None)
        rank = A_Ri.shape[0]
        if A_Ri.shape != (rank, linear.in_features) or B_oR.shape != (linear.out_features, rank):
            raise ModelError(
                f"the adapter's tensors for `{module}` are {tuple(A_Ri.shape)} and {tuple(B_oR.shape)}, and its layer is "
                f"{linear.in_features} -> {linear.out_features}"
            )
        B_oR = B_oR * scaling(module, config)
        # On the meta device there are shapes and no values.
        if not (B_oR.is_meta or (A_Ri.isfinite().all() and B_oR.isfinite().all())):
            raise ModelError(
                f"the adapter's tensors for `{module}` are not finite in the base's precision, or once scaled"
            )
        return A_Ri, B_oR

    def _layer(self, module: str) -> _MultiLoraLinear:
        if module not in self.layers:
            parent, _, last = module.rpartition(".")
            linear = self.modules[module]
            assert isinstance(linear, torch.nn.Linear)
            layer = _MultiLoraLinear(linear, self.choice)
            setattr(self.modules[parent], last, layer)
            self.layers[module] = layer
        return self.layers[module]


def read(directory: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The config and tensors of a local adapter. Raises `ModelError` where they cannot be read, or the config asks for
    something other than plain LoRA on linear layers."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        with open(os.path.join(directory, adapters.CONFIG), encoding="utf-8") as file:
            config = json.load(file)
        tensors = load_file(os.path.join(directory, adapters.WEIGHTS))
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"the adapter cannot be read: {error}") from error
    lora_config.check_config(config)
    return config, tensors


def scaling(module: str, config: Mapping[str, Any]) -> float:
    """What a module's update is multiplied by: alpha/r (Hu et al. 2021), or alpha/sqrt(r) (Kalajdzievski 2023), with r and
    alpha of the first pattern that the module's name ends with, as PEFT takes them."""
    from peft.utils.other import get_pattern_key

    def of(pattern: str, default: Any) -> float:
        patterns = config.get(pattern) or {}
        return float(patterns.get(get_pattern_key(patterns.keys(), module), default))

    rank, alpha = of("rank_pattern", config["r"]), of("alpha_pattern", config["lora_alpha"])
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _modules(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """The modules that tensors belong to, in PEFT's names: `base_model.model.` + module + `.lora_A.weight` or `_B`."""
    found: dict[str, None] = {}
    for name in tensors:
        module, dot, half = name.removesuffix(".weight").rpartition(".")
        if not (name.startswith(PREFIX) and name.endswith(".weight") and dot and half in ("lora_A", "lora_B")):
            raise ModelError(f"the adapter has a tensor `{name}`, which is not LoRA's for a linear layer")
        found[module.removeprefix(PREFIX)] = None
    if not found:
        raise ModelError("the adapter has no tensors")
    return list(found)
