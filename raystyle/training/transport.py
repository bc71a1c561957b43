"""What lies between workers: by which ways NCCL goes, and how fast gradients are summed over them.

A step ends in one all-reduce of the gradients. Where machines have InfiniBand and NCCL does not find it, it goes over TCP
sockets, and a step waits for them: that is measured before training and said.
"""

import glob
import os
import re
import time
from typing import Any

import torch

LEAST_BYTES, MOST_BYTES = 1 << 20, 64 << 20
ROUNDS = 3
# In the log that NCCL_DEBUG=INFO asks for: "Channel 00/0 : 0[0] -> 1[0] [send] via NET/Socket/0", or P2P/…, SHM/…, NET/IB/….
_VIA = re.compile(r" via (NET/\w+|P2P|SHM|NVLS|C2C|DIRECT)")


def note_ways(directory: str) -> None:
    """Have NCCL write down the ways it takes, in a file of this directory. It must not have been used before.

    A user's own NCCL_DEBUG is left as it is.
    """
    if "NCCL_DEBUG" not in os.environ:
        os.environ["NCCL_DEBUG"], os.environ["NCCL_DEBUG_SUBSYS"] = "INFO", "INIT"
        os.environ["NCCL_DEBUG_FILE"] = os.path.join(directory, "nccl-%h-%p.log")


def ways(directory: str) -> list[str]:
    """The ways that NCCL has written down: P2P (NVLink or PCIe), SHM, NET/IB, NET/Socket and others, by name."""
    found: set[str] = set()
    for path in glob.glob(os.path.join(glob.escape(directory), "nccl-*.log")):
        with open(path, encoding="utf-8", errors="replace") as file:
            found |= set(_VIA.findall(file.read()))
    return sorted(found)


def measure(gradient_bytes: int, device: torch.device, directory: str) -> dict[str, Any]:
    """Sum as many bytes as a step's gradients have, at most 64 MB, over all workers, a few times. Every worker calls it.

    Returns `all_reduce_gb_per_s`, NCCL's own "bus bandwidth" (bytes x 2(n-1)/n over seconds, as nccl-tests has it: what
    each worker sends and receives), and `transport`: the backend, and with NCCL the ways of all workers.
    """
    import torch.distributed as dist

    size, count = min(MOST_BYTES, max(LEAST_BYTES, gradient_bytes)), dist.get_world_size()
    values = torch.zeros(size // 4, device=device)
    dist.all_reduce(values)  # connects
    seconds = []
    for _ in range(ROUNDS):
        dist.barrier()
        if device.type == "cuda":
            torch.cuda.synchronize()
        begun_s = time.perf_counter()
        dist.all_reduce(values)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun_s)
    taken: list[list[str]] = [[] for _ in range(count)]
    dist.all_gather_object(taken, ways(directory))
    names = sorted({way for each in taken for way in each})
    backend = str(dist.get_backend(group=None))
    return {
        "transport": " ".join([backend, *names]),
        "all_reduce_gb_per_s": round(size * 2 * (count - 1) / count / min(seconds) / 1e9, 3),
    }
