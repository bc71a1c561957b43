"""What a training step holds on one device, by component, and how many layers must recompute for it to fit.

Plain arithmetic, no torch. Counted by hand from what autograd keeps in a Llama-like block with `lora_linear.py`'s fused
LoRA and a flash kernel (nothing of the attention matrix), the way of Korthikanti et al. 2022, "Reducing Activation
Recomputation in Large Transformer Models". `bench/gpu_train.py` compares it with what a GPU's allocator says.
"""

import dataclasses

from raystyle.config import TrainConfig
from raystyle.models import Shapes

CHUNK_BYTES = 256 * 2**20  # of logits, as in loss.py
# The CUDA context, the allocator's gaps and cuBLAS's workspaces: what is left free of a device.
MARGIN = 0.08


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device. A layer that recomputes keeps its input alone, and one at a time is whole."""

    base: int
    lora: int  # fp32 weights and gradients
    optimizer: int  # Adam's two moments
    loss: int  # the chunk of logits that is there, and the hidden states' gradient
    layer: int  # activations of a layer that keeps them
    layer_input: int
    backward: int  # gradients alive inside one layer's backward pass
    num_layers: int

    def activations(self, recomputing_layers: int) -> int:
        whole = self.num_layers - recomputing_layers + (recomputing_layers > 0)
        return whole * self.layer + recomputing_layers * self.layer_input

    def total(self, recomputing_layers: int) -> int:
        """The peak: the loss's share has gone when the backward pass is inside the layers, and the other way round."""
        held = self.base + self.lora + self.optimizer + self.activations(recomputing_layers)
        return held + max(self.loss, self.backward)

    def fewest_recomputing(self, device_bytes: int) -> int:
        """How many layers must recompute for the step to fit, from 0 to all (then it may still not fit)."""
        usable = int(device_bytes * (1 - MARGIN))
        return next((n for n in range(self.num_layers + 1) if self.total(n) <= usable), self.num_layers)


def of(
    config: TrainConfig, shapes: Shapes, length: int, trainable: int, bf16: bool = True, liger: bool = False
) -> Memory:
    """The memory of a step with `per_device_train_batch_size` rows of `length` tokens and `trainable` LoRA parameters."""
    tokens = config.per_device_train_batch_size * length
    size = 2 if bf16 else 4
    d, q, kv = shapes.hidden_size, shapes.num_heads * shapes.head_dim, shapes.num_kv_heads * shapes.head_dim
    ff, rank = shapes.intermediate_size, config.lora_r
    # Per token: both norms' inputs (without Liger as fp32 copies) and outputs; queries, keys, values and attention's
    # output, with one fp32 sum a head; gate, up and their product (without Liger the activated gate too); LoRA's
    # seven products of rank size.
    norms = 2 * d * size + 2 * d * (size if liger else 4)
    layer = norms + (2 * q + 2 * kv) * size + 4 * shapes.num_heads + (3 if liger else 4) * ff * size + 7 * rank * size
    shards = config.num_workers if config.deepspeed else 1
    return Memory(
        base=size * shapes.parameters,
        lora=8 * trainable,
        optimizer=8 * trainable // shards,
        loss=2 * min(4 * tokens * shapes.vocab_size, CHUNK_BYTES) + 2 * d * size * tokens,
        layer=layer * tokens,
        layer_input=d * size * tokens,
        backward=(3 * ff + 2 * d) * size * tokens,
        num_layers=shapes.num_layers,
    )
