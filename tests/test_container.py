"""A container's limits count, whichever version of control groups tells them."""

import os
from pathlib import Path

import pytest

from raystyle import container

MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.fixture(autouse=True)
def root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(container, "ROOT", tmp_path)
    return tmp_path


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 3),
        ({"cpu.max": "max 100000\n"}, 3),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "800000 100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
    ],
)
def test_cores(root: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], cores: float) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {3, 5, 7})
    write(root, files)
    assert container.cores() == cores


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({"memory.max": "1000\n", "memory.stat": "anon 300\nfile 500\nshmem 100\n"}, 600),
        ({"memory.max": "300\n", "memory.stat": "anon 300\nfile 500\nshmem 100\n"}, 0),
        (
            {"memory/memory.limit_in_bytes": "1000\n", "memory/memory.stat": "rss 1\ntotal_rss 300\ntotal_shmem 0\n"},
            700,
        ),
    ],
)
def test_free_memory(root: Path, files: dict[str, str], free: int) -> None:
    write(root, files)
    assert container.free_memory() == free


def test_without_limits_it_is_the_machines(root: Path) -> None:
    assert 0 < container.free_memory() <= MACHINE
    unlimited = {"memory.max": "max\n", "memory.stat": "anon 300\nshmem 100\n"}
    unlimited |= {
        "memory/memory.limit_in_bytes": str(2**63 - 4096),
        "memory/memory.stat": "total_rss 1\ntotal_shmem 0\n",
    }
    write(root, unlimited)
    assert MACHINE // 100 < container.free_memory() <= MACHINE
