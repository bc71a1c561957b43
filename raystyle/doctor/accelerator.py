"""What torch and its extensions say of this machine, as one line of JSON: `python -m raystyle.doctor.accelerator`.

A process of its own, for loading these can end one. What fails is the answer, so every failure is reported by its name.
"""

import importlib
import importlib.util
import json
from typing import Any


def report() -> dict[str, Any]:
    import torch

    told: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda}
    if torch.version.cuda:
        try:
            ones = torch.ones(64, 64, device="cuda")
            if float((ones @ ones).sum()) != 64.0**3:
                told["cuda_error"] = "a product of matrices on the GPU is wrong"
            told["bf16"] = torch.cuda.is_bf16_supported(including_emulation=False)
            told["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
        except Exception as error:
            told["cuda_error"] = _line(error)
    for name in ("flash_attn", "deepspeed"):
        told[name] = None
        if importlib.util.find_spec(name) is not None:
            try:
                told[name] = importlib.import_module(name).__version__
            except Exception as error:
                told[f"{name}_error"] = _line(error)
    if told["deepspeed"]:
        told["ops"] = _ops()
    return told


def _ops() -> list[str]:
    """DeepSpeed's ops that are built, or that this machine could build."""
    from deepspeed.ops.op_builder.all_ops import ALL_OPS

    # What the accelerator lacks stands there as `deepspeed_not_implemented`.
    real = {name: builder for name, builder in ALL_OPS.items() if "not_implemented" not in name}
    return sorted(name for name, builder in real.items() if _is_compatible(builder))


def _is_compatible(builder: Any) -> bool:
    """Some raise where there is no CUDA compiler, as in an image with CUDA's libraries alone."""
    try:
        return bool(builder.is_compatible(verbose=False))
    except Exception:
        return False


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


if __name__ == "__main__":
    print(json.dumps(report()))
