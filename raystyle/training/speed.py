"""How fast a worker trains: tokens a second, the share of the device's peak that the model's own arithmetic uses, memory.

Model FLOP utilisation counts what LoRA's mathematics needs, and neither recomputation nor what a kernel wastes: a frozen
weight's product is made twice for each token (forward, and for the gradient of its input), not three times as in training
it. With three, LoRA would seem some 1.4 times as good as it is.
"""

import resource
import sys
import time

import torch

# Peak of dense bf16 products in FLOP/s, by a part of the name that CUDA gives a device; the first that fits counts.
# NVIDIA's data sheets of each product, without sparsity: H200, H100 (SXM, PCIe, NVL), B200 (of DGX B200, an eighth),
# H20, A100, L40S, L40, L4, A40, A10, A30, RTX 6000 Ada, RTX A6000; the Ada and Ampere architecture papers for the 4090
# and 3090 (products added up in fp32).
PEAK_FLOPS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H20": 148e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A40": 150e12,
    "A30": 165e12,
    "A10": 125e12,
    "RTX 6000 Ada": 364e12,
    "RTX A6000": 155e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


def peak_flops(device_name: str) -> float | None:
    """A GPU's peak; None for one that is not in the table, and for CPUs."""
    return next((flops for name, flops in PEAK_FLOPS.items() if name in device_name), None)


class Meter:
    """Counts one worker's tokens between two readings.

    `flops_per_token` are the model's without attention, `flops_per_key` attention's for each key that a token sees.
    """

    def __init__(self, flops_per_token: float, flops_per_key: float, peak: float | None) -> None:
        self.flops_per_token, self.flops_per_key, self.peak = flops_per_token, flops_per_key, peak
        self.tokens = self.keys = 0
        self.since_s = self.began_s = time.monotonic()
        self.first_step: int | None = None

    def count(self, position_ids: torch.Tensor) -> None:
        """A micro-batch by its position ids (1, T), on the CPU: a token sees as many keys as its position, and itself."""
        self.tokens += position_ids.numel()
        self.keys += int(position_ids.sum()) + position_ids.numel()

    def read(self, share: float, step: int, steps: int) -> dict[str, float]:
        """What metrics.jsonl says of the time since the last reading; `step` of `steps` is done. `share` of the global batch is
        this worker's."""
        now_s = time.monotonic()
        seconds = max(now_s - self.since_s, 1e-9)
        found = {"tokens_per_second": round(self.tokens / share / seconds, 1)}
        if self.peak and self.tokens:
            flops = self.tokens * self.flops_per_token + self.keys * self.flops_per_key
            found["model_flop_utilisation"] = round(flops / seconds / self.peak, 4)
        found["peak_memory_gb"] = round(peak_memory_bytes() / 1e9, 3)
        if self.first_step is not None and step > self.first_step:
            pace_s = (now_s - self.began_s) / (step - self.first_step)
            found["seconds_left"] = round(pace_s * (steps - step), 1)
        else:  # the first step also warms up: its pace says little
            self.first_step, self.began_s = step, now_s
        self.tokens = self.keys = 0
        self.since_s = now_s
        return found


def peak_memory_bytes() -> int:
    """The most that this process has held: of the GPU by torch's account, else of the machine's memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
