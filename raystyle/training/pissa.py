"""PiSSA: LoRA that begins as each weight's largest singular vectors, and adapters of it that fit the untouched base.

Meng et al. 2024, "PiSSA": A and B start as the leading part of W, and W keeps the rest, W - s B0 A0. An adapter of A and B
would only mean something on that changed base. So it is saved as the difference that was learned, s (B A - B0 A0), which
is plain LoRA of twice the rank: A over A0, and B beside -B0. The first halves are what training continues with.
"""

from typing import Any

from raystyle.adapters import Change


def remember(model: Any) -> None:
    """Keep what LoRA's matrices begin as: `as_plain` takes them away again."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    model.pissa_start = {name: tensor.detach().cpu().clone() for name, tensor in state.items() if ".lora_" in name}


def as_plain(model: Any) -> Change | None:
    """What makes a PiSSA model's tensors and PEFT config those of a plain LoRA; None for a model that is one."""
    start = getattr(model, "pissa_start", None)
    if start is None:
        return None

    def change(state: dict[str, Any], config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        import torch

        plain = dict(state)
        for name, first in start.items():
            now = state[name].cpu()
            is_a = ".lora_A." in name
            plain[name] = torch.cat([now, first.to(now) if is_a else -first.to(now)], dim=0 if is_a else 1)
        doubled = {"r": 2 * config["r"], "lora_alpha": 2 * config["lora_alpha"], "init_lora_weights": True}
        return plain, config | doubled

    return change


def restore(model: Any, state: dict[str, Any]) -> dict[str, Any]:
    """The tensors that training goes on with, of those that `as_plain` made; all of them for a model without PiSSA.

    The singular vectors were found anew when the model was made. Where they came out otherwise than in the run that is
    continued (other hardware), the base is put to what that run had.
    """
    import torch
    from peft.tuners.lora import LoraLayer

    start = getattr(model, "pissa_start", None)
    if start is None:
        return state
    first_half, begun = dict(state), {}
    for name in start:
        is_a = ".lora_A." in name
        now, first = state[name].chunk(2, dim=0 if is_a else 1)
        first_half[name], begun[name] = now.contiguous(), first if is_a else -first
    for path, layer in model.named_modules():
        a, b = f"{path}.lora_A.weight", f"{path}.lora_B.weight"
        if isinstance(layer, LoraLayer) and not (torch.equal(start[a], begun[a]) and torch.equal(start[b], begun[b])):
            weight: Any = layer.get_base_layer().weight
            moved = layer.scaling["default"] * (start[b] @ start[a] - begun[b] @ begun[a])
            weight.data += moved.to(weight.device, weight.dtype)
    model.pissa_start = {name: tensor.contiguous() for name, tensor in begun.items()}
    return first_half
