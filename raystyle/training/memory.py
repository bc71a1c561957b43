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
# From about this many rows of 4,096 on a larger batch is no faster (bench/results/gpu_train.md).
MOST_ROWS = 8


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

    def fits(self, recomputing_layers: int, device_bytes: float) -> bool:
        return self.total(recomputing_layers) <= device_bytes * (1 - MARGIN)

    def fewest_recomputing(self, device_bytes: float) -> int:
        """How many layers must recompute for the step to fit, from 0 to all (then it may still not fit)."""
        return next((n for n in range(self.num_layers) if self.fits(n, device_bytes)), self.num_layers)

    def recomputing(self, gradient_checkpointing: bool | None, device_bytes: float | None) -> int:
        """How many layers recompute: all or none where that is said, else the fewest; none on a CPU (no `device_bytes`)."""
        if gradient_checkpointing is not None:
            return self.num_layers if gradient_checkpointing else 0
        return 0 if device_bytes is None else self.fewest_recomputing(device_bytes)


def of(
    config: TrainConfig,
    shapes: Shapes,
    length: int,
    trainable: int,
    bf16: bool = True,
    has_liger: bool = False,
    num_workers: int | None = None,
) -> Memory:
    """The memory of a step with `per_device_train_batch_size` rows of `length` tokens and `trainable` parameters.

    Of a range of workers the fewest count, unless `num_workers` are there.
    """
    tokens = config.per_device_train_batch_size * length
    size = 2 if bf16 else 4
    d, q, kv = shapes.hidden_size, shapes.num_heads * shapes.head_dim, shapes.num_kv_heads * shapes.head_dim
    # A mixture's experts have gate and up in one parameter, and a token goes through a few of them.
    ff = sum(layer.out_features * layer.active for layer in shapes.experts[:1]) // 2 or shapes.intermediate_size
    rank = config.lora_r
    # Per token: both norms' inputs (without Liger as fp32 copies) and outputs; queries, keys, values and attention's
    # output, with one fp32 sum a head; gate, up and their product (without Liger the activated gate too); LoRA's
    # seven products of rank size.
    norms = 2 * d * size + 2 * d * (size if has_liger else 4)
    layer = norms + 2 * (q + kv) * size + 4 * shapes.num_heads + (3 if has_liger else 4) * ff * size + 7 * rank * size
    # Where PEFT's own layers compute LoRA, each of the seven keeps its input dropped out, and DoRA two outputs of each.
    preset = config.deepspeed or ""
    is_fused = not (config.load_in_4bit or config.use_dora or preset.startswith("zero3"))
    if not is_fused and config.lora_dropout:
        layer += (4 * d + q + d + ff) * size
    if config.use_dora:
        layer += 2 * (q + 2 * kv + 2 * ff + 2 * d) * size
    products = sum(
        linear.count * linear.in_features * linear.out_features for linear in shapes.linears if not linear.is_head
    )
    # NF4 is 4 bits a weight, and 8 for each 64 of them once its scales are quantized too (Dettmers et al. 2023).
    base = (
        size * (shapes.parameters - products) + products * 33 // 64 if config.load_in_4bit else size * shapes.parameters
    )
    # DeepSpeed's presets, by what sharding.py says of them; of a file no more is taken for granted than stage 1.
    shards = num_workers or config.min_workers if preset else 1
    return Memory(
        base=0 if preset == "zero3_offload" else base // shards if preset == "zero3" else base,
        lora=8 * trainable,
        optimizer=0 if preset.endswith("_offload") else 8 * trainable // shards,
        loss=2 * min(4 * tokens * shapes.vocab_size, CHUNK_BYTES) + 2 * d * size * tokens,
        layer=layer * tokens,
        layer_input=d * size * tokens,
        backward=(3 * ff + 2 * d) * size * tokens,
        num_layers=shapes.num_layers,
    )


def proposal(
    config: TrainConfig, shapes: Shapes, length: int, trainable: int, device_bytes: float
) -> tuple[TrainConfig, int] | None:
    """The same run on devices of that size: the batch and accumulation that keep its global batch and recompute least.

    Of the batches that recompute equally little the largest is taken, up to `MOST_ROWS`. Returns the config, and how many
    layers recompute; None where not even one row with all layers recomputing fits.
    """
    rows = config.global_batch_size // config.max_workers
    found: list[tuple[int, int]] = []
    for batch in range(1, min(rows, MOST_ROWS) + 1):
        if rows % batch == 0:
            needs = of(dataclasses.replace(config, per_device_train_batch_size=batch), shapes, length, trainable)
            layers = needs.fewest_recomputing(device_bytes)
            if needs.fits(layers, device_bytes):
                found.append((layers, -batch))
    if not found:
        return None
    layers, negative = min(found)
    settings = {"per_device_train_batch_size": -negative, "gradient_accumulation_steps": rows // -negative}
    return dataclasses.replace(config, **settings, gradient_checkpointing=None), layers  # type: ignore[arg-type]
