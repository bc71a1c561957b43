"""What is left for this process of the machine, or of the container that it runs in: cgroup files, of version 2 or 1."""

import contextlib
import os
from pathlib import Path

# A container sees its own control group here.
ROOT = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")


def cores() -> float:
    """The CPU cores that this process may use."""
    found = float(len(os.sched_getaffinity(0)))
    for files in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):
        # Microseconds of so many; `max` or -1 where there is no limit.
        with contextlib.suppress(OSError, ValueError):
            quota, period = " ".join((ROOT / file).read_text() for file in files).split()
            if int(quota) > 0:
                found = min(found, int(quota) / int(period))
    return found


def free_memory() -> int:
    """Bytes of memory that may still be used."""
    free = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with contextlib.suppress(OSError, KeyError):
        free.append(int(_table(MEMINFO)["MemAvailable:"]) << 10)
    # Files that were read make way; the rest does not.
    for limit, statistics, used in (
        ("memory.max", "memory.stat", ("anon", "shmem")),
        ("memory/memory.limit_in_bytes", "memory/memory.stat", ("total_rss", "total_shmem")),
    ):
        with contextlib.suppress(OSError, ValueError, KeyError):
            table = _table(ROOT / statistics)
            free.append(int((ROOT / limit).read_text()) - sum(int(table[name]) for name in used))
    return max(0, min(free))


def _table(path: Path) -> dict[str, str]:
    """The names and numbers of a file with one of each a line."""
    return {words[0]: words[1] for words in map(str.split, path.read_text().splitlines())}
