"""Run a command and measure all of it: wall and CPU seconds, peak memory, and what else the machine did meanwhile.

Ray's daemons leave the process tree of whoever started them, and change their titles, so a process counts if its
environment has this run's mark, or its parent counted, or it counted before. Memory is the sum of PSS (each shared page
divided among those who share it; page cache is not in it), sampled every 0.2 s, more seldom where a sample takes long.
Linux only: reads /proc.
"""

import contextlib
import os
import resource
import secrets
import signal
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

MARK, SAMPLE_S, SAMPLING_SHARE = "RAYSTYLE_BENCH_RUN", 0.2, 0.05
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class Measured(NamedTuple):
    """`others` is how many cores other processes of the machine kept busy on average."""

    exit_code: int
    wall_s: float
    cpu_s: float
    peak_bytes: int
    others: float


class _Family:
    """The processes of one run: their CPU seconds, also of those that have ended, and their memory now."""

    def __init__(self, mark: str) -> None:
        self._mark = f"{MARK}={mark}".encode()
        self._cpu_s: dict[tuple[int, int], float] = {}  # by process id and start time
        self._strangers: set[tuple[int, int]] = set()

    def sample(self) -> int:
        """Look at all processes; the sum of PSS of those that belong, in bytes."""
        found = {}
        for name in os.listdir("/proc"):
            if name.isdigit() and (stat := _read(f"/proc/{name}/stat")):
                fields = stat[stat.rindex(b")") + 2 :].split()
                found[int(name)] = int(fields[1]), int(fields[19]), (int(fields[11]) + int(fields[12])) * TICK_S
        members: set[int] = set()
        # A parent's id is nearly always the smaller one, and one missed here is found at the next sample.
        for pid in sorted(found):
            parent, started, cpu_s = found[pid]
            key = pid, started
            if key not in self._cpu_s and parent not in members:
                if key in self._strangers:
                    continue
                if self._mark not in _read(f"/proc/{pid}/environ").split(b"\0"):
                    self._strangers.add(key)
                    continue
            members.add(pid)
            self._cpu_s[key] = cpu_s
        return sum(_pss(pid) for pid in members)

    def living(self) -> list[int]:
        """Members that still run."""
        self.sample()
        return [pid for pid, started in self._cpu_s if _started(pid) == started]

    @property
    def cpu_s(self) -> float:
        return sum(self._cpu_s.values())


def run(command: list[str], env: dict[str, str], folder: Path, log: Path, timeout_s: float) -> Measured:
    """Run a command in a folder to its end, its output in a file; what it left running is ended."""
    mark = secrets.token_hex(8)
    family, peak, busy_s, children_s = _Family(mark), 0, _machine_busy_s(), _children_s()
    started_s = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, env={**os.environ, **env, MARK: mark}, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        while process.poll() is None:
            before_s = time.monotonic()
            peak = max(peak, family.sample())
            pause_s = max(SAMPLE_S, (time.monotonic() - before_s) / SAMPLING_SHARE)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(pause_s)
            if time.monotonic() - started_s > timeout_s:
                process.kill()
        wall_s = time.monotonic() - started_s
    finally:
        for pid in family.living():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
    # Samples miss the last moments of a process; the kernel's own count misses those that nobody waited for.
    cpu_s = max(family.cpu_s, _children_s() - children_s)
    others = (_machine_busy_s() - busy_s - cpu_s) / wall_s
    return Measured(process.returncode, wall_s, cpu_s, peak, max(0.0, others))


def _read(path: str) -> bytes:
    """A file of /proc; nothing where its process has ended meanwhile, or is another user's."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def _pss(pid: int) -> int:
    for line in _read(f"/proc/{pid}/smaps_rollup").split(b"\n"):
        if line.startswith(b"Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def _started(pid: int) -> int | None:
    stat = _read(f"/proc/{pid}/stat")
    return int(stat[stat.rindex(b")") + 2 :].split()[19]) if stat else None


def _children_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _machine_busy_s() -> float:
    """CPU seconds that the machine has spent on anything: user, nice, system, interrupts."""
    user, nice, system, _, _, irq, softirq, *_ = map(int, _read("/proc/stat").split(b"\n")[0].split()[1:])
    return (user + nice + system + irq + softirq) * TICK_S
