"""What serving costs: raystyle's two engines behind HTTP and bare, beside PEFT and ray.serve.llm, on one machine.

    python bench/serve.py                                        everything; about an hour on two free cores
    python bench/serve.py --sizes tiny --contenders embedded_http embedded --again

At 1, 8 and 32 requests at once, with 1, 3 and 8 adapters by turns (the base is none of them): tokens per second, seconds to
the first token, and CPU seconds of all the processes that serve. Each contender runs alone in processes of its own, in
turns, with one thread for the model; same weights, prompts and 64 new tokens for all (`serving/work.py`). Those on vLLM need
`make .venv-vllm/.complete`, and are left out without it; ray.serve.llm gets what it needs besides in an environment on top.

Finished measurements are kept in .bench/serve.json, so that a bench that was stopped goes on where it was;
bench/results/serve.md is written anew after each.
"""

import argparse
import contextlib
import json
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
BENCH = HERE.parent / ".bench"
sys.path.insert(0, str(HERE / "serving"))

import report  # noqa: E402
import work  # noqa: E402

START_TIMEOUT_S, TIMEOUT_S, STOP_TIMEOUT_S = 600, 3600, 120
# Where ray.serve.llm keeps adapters, whatever folder Ray is given.
DOWNLOADS = Path("/tmp/ray/llm/lora/cache")
VLLM = HERE.parent / ".venv-vllm" / "bin" / "python"
# What ray.serve.llm imports of vLLM's API server and for S3, and raystyle does not.
RAY_LLM_NEEDS = (
    "boto3==1.44.5",
    "botocore==1.44.5",
    "s3transfer==0.19.3",
    "hf_transfer==0.1.9",
    "ijson==3.6.0",
    "jmespath==1.1.0",
    "jsonref==1.1.0",
    "model-hosting-container-standards==0.1.16",
    "partial-json-parser==0.2.1.1.post7",
    "prometheus-fastapi-instrumentator==8.1.0",
    "python-json-logger==4.2.0",
)
# One thread for the model, as Ray gives it one core of two; threads that wait do not spin, for there are more of them than
# cores.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


class Contender(NamedTuple):
    """How it is started: `serve` (raystyle), `ray_llm`, or in one process, as `bare.py` calls it; `on_vllm` needs its
    environment."""

    title: str
    way: str
    on_vllm: bool = False


CONTENDERS = {
    "embedded_http": Contender("raystyle serve", "serve"),
    "embedded": Contender("its engine, bare", "embedded"),
    "static": Contender("PEFT, one batch for all", "static"),
    "one_by_one": Contender("PEFT, one by one", "one_by_one"),
    "vllm_http": Contender("raystyle serve --engine vllm", "serve", on_vllm=True),
    "vllm": Contender("its engine, bare", "vllm", on_vllm=True),
    "raw_vllm": Contender("vLLM's AsyncLLM", "raw_vllm", on_vllm=True),
    "ray_llm": Contender("ray.serve.llm", "ray_llm", on_vllm=True),
}


def main() -> None:
    args = _arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # servers are stopped on the way out
    BENCH.mkdir(exist_ok=True)
    (BENCH / ".gitignore").write_text("*\n")
    kept = BENCH / "serve.json"
    results: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    for turn, size, name in ((t, s, n) for s in args.sizes for t in range(args.rounds) for n in args.contenders):
        key = f"{size}/{name}/{turn}"
        if CONTENDERS[name].on_vllm and not VLLM.exists():
            print(f"{key} left out: no environment of vLLM", flush=True)
            continue
        if key in results and "failure" not in results[key] and not args.again:
            continue
        folder = BENCH / f"serve-{size}"
        work.make(folder, size)
        print(f"{key} …", end=" ", flush=True)
        started_s = time.monotonic()
        results[key] = run(name, folder, size)
        print(results[key].get("failure") or f"{time.monotonic() - started_s:.0f} s", flush=True)
        kept.write_text(json.dumps(results, ensure_ascii=False))
        write(results)
    print(write(results))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=list(work.SHAPES), choices=list(work.SHAPES))
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS))
    parser.add_argument("--rounds", type=int, default=2, help="turns of every contender")
    parser.add_argument("--again", action="store_true", help="measure again what has been measured")
    return parser.parse_args()


def write(results: dict[str, Any]) -> str:
    text = report.report(results, {name: contender.title for name, contender in CONTENDERS.items()})
    (HERE / "results" / "serve.md").write_text(text, encoding="utf-8")
    return text


# ── one contender ──


def run(name: str, folder: Path, size: str) -> dict[str, Any]:
    """The cells of one contender and how it started, or how it failed."""
    contender = CONTENDERS[name]
    python = str(VLLM) if contender.on_vllm else sys.executable
    if contender.way == "ray_llm":
        python = _ray_llm_python()
    log = BENCH / f"serve-{name}.log"
    try:
        if contender.way not in ("serve", "ray_llm"):
            command = [python, str(HERE / "serving" / "bare.py"), contender.way, str(folder), size]
            return {"cells": _cells(command, log)}
        with contextlib.ExitStack() as stack:
            port = _free_port()
            if contender.way == "ray_llm":
                place, prefix, variables = stack.enter_context(_bucket(folder))
                command = [python, str(HERE / "serving" / "ray_llm.py"), str(folder), str(port), place]
                called = f"base:{prefix}{{}}"
            else:
                command, variables, called = _serve(python, folder, port, contender.on_vllm), {}, "{}"
            server, start = stack.enter_context(_server(command, variables, log))
            client = [sys.executable, str(HERE / "serving" / "load.py"), f"http://127.0.0.1:{port}"]
            client += [str(folder), size, str(server), called]
            return {"cells": _cells(client, log.with_suffix(".client.log")), **start}
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        return {"failure": str(error)[:500]}


def _ray_llm_python() -> str:
    """vLLM's environment with a layer on top: a line in a .pth file leads to the packages below."""
    folder = BENCH / "serve-ray-llm"
    python, done = folder / "bin" / "python", folder / "packages.txt"
    if not done.exists() or done.read_text() != "\n".join(RAY_LLM_NEEDS):
        subprocess.run([str(VLLM), "-m", "venv", str(folder)], check=True)
        (below,) = VLLM.parents[1].glob("lib/python3*/site-packages")
        (folder / below.relative_to(VLLM.parents[1]) / "below.pth").write_text(f"{below}\n")
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", "--no-deps", *RAY_LLM_NEEDS], check=True)
        done.write_text("\n".join(RAY_LLM_NEEDS))
    return str(python)


def _serve(python: str, folder: Path, port: int, on_vllm: bool) -> list[str]:
    flags = {
        "model_name_or_path": folder / "base",
        "adapters_path": folder / "adapters",
        "allow_unverified_base": "true",
        "engine": "vllm" if on_vllm else "transformers",
        "max_length": work.MAX_LENGTH,
        "max_batch_size": max(work.CONCURRENT),
        "max_adapters": max(work.ADAPTERS),
        "max_lora_rank": work.RANK,
        "port": port,
    }
    return [
        python,
        "-m",
        "raystyle",
        "serve",
        *(str(word) for flag in flags.items() for word in (f"--{flag[0]}", flag[1])),
    ]


def _cells(command: list[str], log: Path) -> list[dict[str, Any]]:
    """What a measuring process prints."""
    output = log.with_suffix(".jsonl")
    with log.open("w") as errors, output.open("w") as found:
        process = subprocess.Popen(command, env=_environment(), stdout=found, stderr=errors, start_new_session=True)
        try:
            process.wait(TIMEOUT_S)
        finally:
            _end(process)
    if process.returncode:
        raise RuntimeError(f"exit status {process.returncode}: {_last_line(log)}")
    return [json.loads(line) for line in output.read_text().splitlines() if line.startswith('{"concurrent"')]


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and what it started; vLLM's outlive whoever started them."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def _server(command: list[str], variables: dict[str, str], log: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """A server that is ready: its process id, and what its start took, in seconds and CPU seconds."""
    started_s = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(
            command, env=_environment() | variables, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    tree = work.Tree(process.pid)
    try:
        while "\nready " not in log.read_text("utf-8", "replace"):
            if process.poll() is not None or time.monotonic() - started_s > START_TIMEOUT_S:
                raise RuntimeError(f"did not start: {_last_line(log)}")
            tree.cpu_s()  # of those that end before it is ready
            time.sleep(0.1)
        yield process.pid, {"ready_s": time.monotonic() - started_s, "ready_cpu_s": tree.cpu_s()}
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)
        _end(process)


@contextlib.contextmanager
def _bucket(folder: Path) -> Iterator[tuple[str, str, dict[str, str]]]:
    """The adapters on moto's S3: bucket and folder, what their names begin with there, and the variables that lead there."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", _free_port(), verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    access = {"aws_access_key_id": "bench", "aws_secret_access_key": "bench", "region_name": "us-east-1"}
    store = boto3.client("s3", endpoint_url=f"http://{host}:{port}", **access)
    # What it downloads stays in a folder of the machine by the adapter's name, and would be taken for another run's.
    prefix = f"{secrets.token_hex(4)}-"
    try:
        store.create_bucket(Bucket="bench")
        for path in sorted((folder / "adapters").glob("*/adapter_*")):
            store.upload_file(str(path), "bench", f"adapters/{prefix}{path.parent.name}/{path.name}")
        variables = {name.upper(): value for name, value in access.items() if name != "region_name"}
        variables |= {"AWS_DEFAULT_REGION": access["region_name"], "AWS_ENDPOINT_URL_S3": f"http://{host}:{port}"}
        yield "bench/adapters", prefix, variables
    finally:
        server.stop()
        for kept in DOWNLOADS.glob(f"{prefix}*"):
            shutil.rmtree(kept) if kept.is_dir() else kept.unlink()  # beside each folder lies its lock


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | ENVIRONMENT


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no output"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
