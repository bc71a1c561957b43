"""What is read from NCCL's log, said of it, and measured between real processes."""

import os
import socket
import subprocess
import sys

import pytest

from raystyle.training import follow, transport

LOG = """\
node-1:412:430 [0] NCCL INFO Channel 00/02 : 0 1
node-1:412:430 [0] NCCL INFO Channel 00/0 : 1[1] -> 0[0] [receive] via NET/Socket/0
node-1:412:430 [0] NCCL INFO Channel 01/0 : 0[0] -> 1[1] via P2P/CUMEM/read
"""


def test_ways_are_read_from_every_worker_s_log(tmp_path):
    (tmp_path / "nccl-a-1.log").write_text(LOG)
    (tmp_path / "nccl-a-2.log").write_text("a:1:2 [1] NCCL INFO Channel 00/0 : 0[0] -> 1[1] via SHM/direct/direct\n")
    (tmp_path / "other.log").write_text(" via NET/IB/0")
    assert transport.ways(str(tmp_path)) == ["NET/Socket", "P2P", "SHM"]
    assert transport.ways(str(tmp_path / "none")) == []


def test_a_user_s_own_log_is_left_alone(monkeypatch, tmp_path):
    monkeypatch.setenv("NCCL_DEBUG", "WARN")
    monkeypatch.delenv("NCCL_DEBUG_FILE", raising=False)
    transport.note_ways(str(tmp_path))
    assert os.environ["NCCL_DEBUG"] == "WARN" and "NCCL_DEBUG_FILE" not in os.environ


@pytest.mark.parametrize(
    ("ways", "is_warned"), [("nccl P2P", False), ("nccl NET/IB", False), ("nccl NET/Socket P2P", True), ("gloo", False)]
)
def test_sockets_between_gpus_are_warned_of(ways, is_warned):
    said = follow.between({"all_reduce_gb_per_s": 1.25, "transport": ways})
    assert f"1.25 GB/s ({ways})" in said and ("warning: NCCL goes over TCP sockets" in said) == is_warned
    assert follow.between({"num_workers": 1}) == ""


WORKER = """
import sys, torch, torch.distributed as dist
from raystyle.training import transport
dist.init_process_group("gloo", init_method=sys.argv[1], rank=int(sys.argv[2]), world_size=2)
found = transport.measure(1000, torch.device("cpu"), sys.argv[3])
assert found["transport"] == "gloo" and found["all_reduce_gb_per_s"] > 0, found
dist.barrier()
dist.destroy_process_group()  # its threads may abort a Python that ends
"""


def test_two_processes_measure_what_lies_between_them(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    workers = [subprocess.Popen([sys.executable, "-c", WORKER, address, str(rank), str(tmp_path)]) for rank in range(2)]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
