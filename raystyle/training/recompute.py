"""Gradient checkpointing of as many decoder layers as are asked for: each keeps its input alone and is run again."""

from typing import Any


def recompute(model: Any, num_layers: int) -> int:
    """Make the first `num_layers` decoder layers of a PEFT model recompute their activations; returns how many do."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    base = model.get_base_model()
    layers = [module for module in base.modules() if isinstance(module, GradientCheckpointingLayer)]
    num_layers = min(num_layers, len(layers))
    if num_layers:
        # The base is frozen: without this nothing in front of the first LoRA layer would ask for a gradient.
        model.enable_input_require_grads()
        # Not the reentrant form, which sees no gradient to compute where only weights inside the layer want one.
        base.activation_checkpointing_enable({"use_reentrant": False})
        for place, layer in enumerate(layers):
            layer.gradient_checkpointing = place < num_layers
    return num_layers
