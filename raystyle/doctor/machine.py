"""What one machine has and lacks: each check is a function that returns `Check` records.

Nothing is changed here but for one small file, written where `--output_dir` is and deleted again. torch and what builds
on it are asked in a process of their own (`accelerator.py`), and only where there is a GPU or DeepSpeed: a broken CUDA
library can end the process that loads it.
"""

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from raystyle import __version__, storage
from raystyle.config import DoctorConfig
from raystyle.errors import StorageError

Status = Literal["ok", "warn", "fail"]

# Ray stops creating and spilling objects on a disk that is fuller: `local_fs_capacity_threshold`, as Ray 2.60 has it.
FULL_DISK = 0.95
# Two checkpoints of the reference preset: 335.5 million LoRA parameters and their two Adam moments, in fp32.
LOW_DISK_BYTES = 2 * 335.5e6 * 12
# What Ray takes of a machine's memory for its object store, in shared memory where that is large enough.
OBJECT_STORE_SHARE = 0.3
ACCELERATOR_TIMEOUT_S = 180.0
NVIDIA_SMI_TIMEOUT_S = 60
HTTP_TIMEOUT_S = 5.0
OK: Final = "ok"
WARN: Final = "warn"
FAIL: Final = "fail"


@dataclass(frozen=True)
class Check:
    """One line of the report. `node` is the address of a cluster's node; empty: the machine the command runs on."""

    name: str
    status: Status
    found: str
    remedy: str = ""
    node: str = ""


def shown(check: Check) -> str:
    """A check as a person reads it."""
    place = f" [{check.node}]" if check.node else ""
    line = f"{check.status:5} {check.name:14}{place} {check.found}"
    return f"{line}\n      → {check.remedy}" if check.remedy else line


def examine(config: DoctorConfig) -> list[Check]:
    """Every check of this machine, in the order of the report."""
    return [
        *versions(),
        *accelerator(config.use_gpu),
        *disk(config.output_dir),
        *shared_memory(),
        *output(config.output_dir),
        *serving_port(config.port),
        *token(),
        *dashboards(),
    ]


def versions() -> Iterator[Check]:
    """This Python and the packages that raystyle depends on, against what its own metadata asks for."""
    from packaging.requirements import Requirement

    try:
        installed = importlib.metadata.version("raystyle")
    except importlib.metadata.PackageNotFoundError:
        found = f"raystyle {__version__} runs from a folder and is not installed, so nothing says what it needs"
        yield Check("versions", WARN, found, "pip install -c constraints.txt . (in the image, on a cluster)")
        return
    wrong = []
    for line in importlib.metadata.requires("raystyle") or []:
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            has = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{wanted.name} is missing")
            continue
        if not wanted.specifier.contains(has, prereleases=True):
            wrong.append(f"{wanted.name} is {has}, not {wanted.specifier}")
    if installed != __version__:
        wrong.append(f"raystyle is installed as {installed} and runs as {__version__}")
    if wrong:
        remedy = "pip install -c constraints.txt . (the same in the image, on a cluster)"
        yield Check("versions", FAIL, "; ".join(wrong), remedy)
        return
    shown = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("ray", "torch", "transformers", "peft"))
    yield Check("versions", OK, f"raystyle {__version__}, Python {platform.python_version()}, {shown}")


def accelerator(use_gpu: bool | None) -> Iterator[Check]:
    """GPUs by their driver; then CUDA, NCCL, FlashAttention and DeepSpeed by torch, where there is something to ask."""
    cards = _nvidia_smi()
    if isinstance(cards, str):
        status: Status = FAIL if use_gpu else OK
        remedy = "install NVIDIA's driver, or `--use_gpu false`; in a container `--gpus all`" if use_gpu else ""
        yield Check("gpu", status, cards if use_gpu else f"{cards}; CPUs are used", remedy)
    for number, (name, total, used, driver) in enumerate(cards if isinstance(cards, list) else []):
        found = f"GPU {number}: {name}, {int(total) / 1024:.0f} GiB, driver {driver}"
        if int(used) > 0.1 * int(total):
            remedy = "`nvidia-smi` lists the processes"
            yield Check("gpu", WARN, f"{found}; {int(used) / 1024:.0f} GiB of it are taken already", remedy)
        else:
            yield Check("gpu", OK, found)
    has_gpu = isinstance(cards, list) and bool(cards)
    if not has_gpu and importlib.util.find_spec("deepspeed") is None:
        yield Check("deepspeed", OK, "not installed: only `--deepspeed` needs it")
        return
    told = _ask_torch()
    if "error" in told:
        yield Check("torch", FAIL, f"torch does not load: {told['error']}", "pip install -c constraints.txt torch")
        return
    if has_gpu:
        yield from _cuda(told)
    yield from _deepspeed(told, has_gpu)


def _nvidia_smi() -> list[list[str]] | str:
    """Name, MiB, MiB used and driver of every GPU; a sentence where there is none."""
    if shutil.which("nvidia-smi") is None:
        return "no NVIDIA driver (`nvidia-smi` is not there)"
    query = ["nvidia-smi", "--query-gpu=name,memory.total,memory.used,driver_version", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=NVIDIA_SMI_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return f"`nvidia-smi` says nothing for {NVIDIA_SMI_TIMEOUT_S} s: a GPU hangs"
    if done.returncode:
        return f"`nvidia-smi` fails: {' '.join((done.stdout + done.stderr).split())[:200]}"
    rows = [re.split(r",\s*", line) for line in done.stdout.splitlines() if line.strip()]
    return rows or "no GPU (`nvidia-smi` lists none)"


def _ask_torch() -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    command = [sys.executable, "-m", "raystyle.doctor.accelerator"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ACCELERATOR_TIMEOUT_S, env=environment)
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {ACCELERATOR_TIMEOUT_S} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        return {"error": last[:300]}
    told: dict[str, Any] = json.loads(lines[-1])
    return told


def _cuda(told: dict[str, Any]) -> Iterator[Check]:
    if not told["cuda"]:
        remedy = "install a CUDA build of the same torch version"
        yield Check("cuda", FAIL, f"torch {told['torch']} is built without CUDA, and there is a GPU", remedy)
        return
    if "cuda_error" in told:
        remedy = "the driver must be as new as torch's CUDA; restart the container or machine after a driver update"
        yield Check("cuda", FAIL, f"torch {told['torch']}: {told['cuda_error']}", remedy)
        return
    bf16 = "bf16" if told["bf16"] else "no bf16: fp32 is used"
    yield Check("cuda", OK, f"CUDA {told['cuda']} in torch {told['torch']}, {bf16}; a product on the GPU is right")
    yield (
        Check("nccl", OK, f"NCCL {told['nccl']}")
        if told["nccl"]
        else Check(
            "nccl", FAIL, "torch has no NCCL, which several GPUs need", "install a CUDA build of torch for Linux"
        )
    )
    if "flash_attn_error" in told:
        remedy = "build it for this torch (`pip install --no-build-isolation '.[flash]'`), or uninstall it"
        yield Check("flash-attn", FAIL, f"installed and does not load: {told['flash_attn_error']}", remedy)
    elif told["flash_attn"]:
        yield Check("flash-attn", OK, f"flash-attn {told['flash_attn']}")
    else:
        yield Check(
            "flash-attn", WARN, "not installed: torch's SDPA is used, slower on packed rows", "pip install '.[flash]'"
        )


def _deepspeed(told: dict[str, Any], has_gpu: bool) -> Iterator[Check]:
    if "deepspeed_error" in told:
        remedy = "pip install -c constraints.txt '.[deepspeed]', or uninstall it"
        yield Check("deepspeed", FAIL, f"installed and does not load: {told['deepspeed_error']}", remedy)
    elif told["deepspeed"]:
        ops = ", ".join(told["ops"]) or "none"
        status: Status = WARN if has_gpu and not told["ops"] else OK
        remedy = "a compiler, ninja and nvcc build them: apt-get install build-essential" if status == WARN else ""
        found = f"DeepSpeed {told['deepspeed']}; ZeRO-1 and 2 need none of its ops; built or buildable here: {ops}"
        yield Check("deepspeed", status, found, remedy)
    else:
        yield Check("deepspeed", OK, "not installed: only `--deepspeed` needs it")


def disk(output_dir: str | None) -> Iterator[Check]:
    """Room where Ray keeps its session, where uploads wait, and where a local `output_dir` lies; each disk once."""
    places = {"Ray": os.environ.get("RAY_TMPDIR") or "/tmp/ray", "uploads": tempfile.gettempdir()}
    if output_dir and not storage.is_remote(output_dir):
        places["output_dir"] = output_dir
    by_device: dict[int, list[str]] = {}
    for purpose, path in places.items():
        by_device.setdefault(os.stat(existing(path)).st_dev, []).append(purpose)
    for purposes in by_device.values():
        path = existing(places[purposes[0]])
        usage = shutil.disk_usage(path)
        found = f"{usage.free / 1e9:.1f} GB free of {usage.total / 1e9:.1f} at {path} ({', '.join(purposes)})"
        remedy = "make room, or choose other places: `--output_dir`, TMPDIR, `ray start --temp-dir`"
        if 1 - usage.free / max(1, usage.total) > FULL_DISK and "Ray" in purposes:
            yield Check("disk", FAIL, f"{found}: Ray keeps no objects on a disk fuller than {FULL_DISK:.0%}", remedy)
        elif usage.free < LOW_DISK_BYTES:
            yield Check("disk", WARN, found, remedy)
        else:
            yield Check("disk", OK, found)


def existing(path: str) -> str:
    """The path itself, or the nearest directory above it that is there."""
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    return path


def shared_memory() -> Iterator[Check]:
    """Whether Ray's object store fits into shared memory; in a container that is 64 MB, if nothing is said."""
    if not os.path.isdir("/dev/shm"):
        return
    usage = shutil.disk_usage("/dev/shm")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    wanted = OBJECT_STORE_SHARE * memory
    found = f"{usage.free / 1e9:.1f} GB free in /dev/shm; Ray's object store would take {wanted / 1e9:.1f}"
    if usage.free >= wanted:
        yield Check("shared memory", OK, found)
    else:
        remedy = f"`docker run --shm-size={wanted / 1e9:.0f}g`, in Kubernetes an emptyDir of medium Memory at /dev/shm"
        yield Check("shared memory", WARN, f"{found}, and goes to a disk instead", remedy)


def output(output_dir: str | None) -> Iterator[Check]:
    """A small file is written where `output_dir` is or would be, read, and deleted."""
    if output_dir is None:
        return
    remote = storage.is_remote(output_dir)
    place = output_dir if remote else existing(output_dir)
    file, content = storage.join(place, f".raystyle-doctor-{uuid.uuid4().hex}"), os.urandom(64)
    try:
        if not remote and not os.path.isdir(place):
            raise StorageError(
                f"cannot write below `{place}`: it is not a directory\nhint: choose another --output_dir"
            )
        storage.write_bytes(file, content)
        same = storage.read_bytes(file) == content
        storage.delete(file)
    except StorageError as error:
        reason, _, hint = str(error).partition("\nhint: ")
        yield Check("storage", FAIL, reason.replace(file, output_dir), hint or "choose another --output_dir")
        return
    if same:
        yield Check("storage", OK, f"{output_dir} takes files and gives them back")
    else:
        yield Check("storage", FAIL, f"{output_dir} gives back other bytes than were written", "choose another place")


def serving_port(port: int) -> Iterator[Check]:
    """Whether `raystyle serve` could listen."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            found = f"127.0.0.1:{port} cannot be listened on: {(error.strerror or str(error)).lower()}"
            yield Check("port", WARN, found, "`raystyle serve --port N`")
            return
    yield Check("port", OK, f"127.0.0.1:{port} is free for `raystyle serve`")


def token() -> Iterator[Check]:
    """Ray's token authentication, by the places where Ray 2.60 looks for mode and token, in its order."""
    mode = os.environ.get("RAY_AUTH_MODE", "").lower()
    make = "`ray get-auth-token --generate` on the head, then the same ~/.ray/auth_token on every node and client"
    if mode == "disabled":
        found = "RAY_AUTH_MODE is `disabled`: whoever reaches one of Ray's ports can run code on it"
        yield Check("token", FAIL, found, "unset RAY_AUTH_MODE, or set it to `token`, on every node and client")
        return
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if os.environ.get("RAY_AUTH_TOKEN"):
        yield Check("token", OK, "a token in RAY_AUTH_TOKEN")
        return
    if not file.is_file() or not file.read_text().strip():
        if mode == "token" or os.environ.get("RAY_AUTH_TOKEN_PATH"):
            yield Check("token", FAIL, f"a token is asked for, and there is none in {file}", make)
        else:
            found = "no token yet: a local Ray makes one, but `ray start --head` would start an open cluster"
            yield Check("token", WARN, found, make)
        return
    if _others_can_read(file):
        yield Check("token", WARN, f"others on this machine can read {file}", f"chmod 600 {file}")
        return
    note = "" if mode == "token" else "; `ray job submit` asks for RAY_AUTH_MODE=token too"
    yield Check("token", OK, f"a token in {file}{note}")


def _others_can_read(file: Path) -> bool:
    """By its mode and that of the directories on the way to it."""
    real = file.resolve()
    return bool(real.stat().st_mode & 0o044) and all(parent.stat().st_mode & 0o011 for parent in real.parents)


def dashboards() -> Iterator[Check]:
    """Every Ray dashboard of this machine, by its process: where it listens, and whether it asks for the token."""
    if not os.path.isdir("/proc/self"):
        return
    found = list(_dashboard_addresses())
    for host, port in found:
        if host.startswith("127.") or host in ("localhost", "::1"):
            yield Check("dashboard", OK, f"listens on {host}:{port}, this machine alone")
            continue
        here = "127.0.0.1" if host in ("0.0.0.0", "::") else host
        remedy = (
            "`ray start --head --dashboard-host=127.0.0.1` and `ssh -L`; on Kubernetes cluster/kuberay/network.yaml"
        )
        if _asks_for_token(f"http://{here}:{port}/api/jobs/"):
            what = f"listens on {host}:{port}, where others reach it; it asks for the token, which travels unencrypted"
            yield Check("dashboard", WARN, what, remedy)
        else:
            what = f"listens on {host}:{port} and asks for no token: others can run code here"
            yield Check("dashboard", FAIL, what, f"token authentication (docs/cluster.md); {remedy}")
    if not found:
        yield Check("dashboard", OK, "none runs on this machine")


def _dashboard_addresses() -> Iterator[tuple[str, int]]:
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has ended, or is not ours to look at
            continue
        if not any(word.endswith("ray/dashboard/dashboard.py") for word in words[:4]):
            continue
        flags = dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)
        yield flags.get("host", "127.0.0.1"), int(flags.get("port", 8265))


def _asks_for_token(url: str) -> bool:
    """Whether a request without a token is refused."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(url, timeout=HTTP_TIMEOUT_S):
            return False
    except urllib.error.HTTPError as error:
        return error.code in (401, 403)
    except OSError:  # it does not answer, so nobody gets in
        return True
