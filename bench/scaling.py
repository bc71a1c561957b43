"""What more cores and workers do: measured with one and two, reckoned for the rest (docs/scaling.md).

    python bench/scaling.py                some minutes on two cores; writes bench/results/scaling.md

Preparation of one corpus with one and with two cores, each twice, the faster counting; the driver's seconds a task, with tasks
that do nothing; the driver's bytes a file, a document and a shard; and a submitted job's seconds to its first step, by phase.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "bench/peers"), str(ROOT / "tests")]

import builders  # noqa: E402
import novels  # noqa: E402

MB = 40
TASKS = 2000


def prepared(corpus: Path, model: Path, folder: Path, cores: int) -> float:
    """Seconds of work of one `raystyle prepare`: without what start-up takes, which is that of a tiny corpus."""
    begun = time.monotonic()
    command = [sys.executable, "-m", "raystyle", "prepare", "--dataset_path", corpus, "--num_cpus", cores]
    command += ["--output_dir", folder, "--tokenizer_name_or_path", model]
    subprocess.run(list(map(str, command)), check=True, capture_output=True, cwd=ROOT)
    return time.monotonic() - begun


def seconds_a_task() -> float:
    """What the driver spends on one task of Ray Data that does nothing, two at a time."""
    import ray

    from raystyle.corpus import tasks

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    size = tasks.MAX_BLOCK_BYTES  # so each job is a task of its own
    tasks.each(_nothing, [(i,) for i in range(50)], [size] * 50, "warming up")
    begun = time.process_time()
    tasks.each(_nothing, [(i,) for i in range(TASKS)], [size] * TASKS, "nothing")
    spent = time.process_time() - begun
    ray.shutdown()
    return spent / TASKS


def _nothing(number: int) -> dict[str, Any]:
    return {"number": number}


def bytes_each(make: Callable[[int], Any], count: int = 20_000) -> float:
    tracemalloc.start()
    kept = make(count)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    del kept
    return held / count


def driver_bytes() -> dict[str, float]:
    from raystyle.corpus.shards import Entry
    from raystyle.corpus.sources import Source, Unit

    def files(count: int) -> Any:
        return [
            Unit(Source(f"s3://b/{i}.txt", f"s3://b/{i}.txt", f"{i}.txt", i + 10**6, 10**18 + i, "text"))
            for i in range(count)
        ]

    def documents(count: int) -> Any:
        return [Entry(i, i + 1000, f"{i:032x}", f"group {i}", i + 10**6) for i in range(count)]

    def inputs(count: int) -> Any:
        return [
            {"uri": f"s3://b/{i}.txt", "relpath": f"{i}.txt", "size": i + 10**6, "sha256": f"{i:064x}", "encoding": "utf-8",
             "confidence": 0.99, "texts": 1, "documents": 1, "rejected": 0, "characters": i + 10**6}
            for i in range(count)
        ]  # fmt: skip

    def shards(count: int) -> Any:
        return [
            {"path": f"rows/{i:05d}.parquet", "rows": i + 1000, "tokens": i + 10**6, "sha256": f"{i:064x}"}
            for i in range(count)
        ]

    return {"a file, while it is planned": bytes_each(files), "a file's entry in the manifest": bytes_each(inputs),
            "a document": bytes_each(documents), "a shard of rows": bytes_each(shards)}  # fmt: skip


def start_up(folder: Path, model: Path, rows: Path) -> dict[str, float]:
    """Seconds from `ray job submit` to the first step, by phase, on a cluster of this machine that runs already."""
    port, dashboard = 22379, 22265
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    environment.pop("RAY_ADDRESS", None)
    subprocess.run(["ray", "get-auth-token", "--generate"], env=environment, check=True, capture_output=True)
    ports = [
        f"--port={port}",
        f"--dashboard-port={dashboard}",
        "--ray-client-server-port=22380",
        "--dashboard-agent-listen-port=22381",
    ]
    settings = [
        "--dashboard-host=127.0.0.1",
        "--num-cpus=2",
        f"--temp-dir=/tmp/raystyle-scaling-{os.getpid()}",
        "--disable-usage-stats",
    ]
    head = subprocess.Popen(
        ["ray", "start", "--head", "--block", *ports, *settings],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    submit = [
        "ray",
        "job",
        "submit",
        "--address",
        f"http://127.0.0.1:{dashboard}",
        "--working-dir",
        ".",
        "--runtime-env",
        "cluster/runtime-env.yaml",
        "--",
    ]
    try:
        deadline = time.monotonic() + 120
        while subprocess.run([*submit, "true"], cwd=ROOT, env=environment, capture_output=True).returncode:
            assert time.monotonic() < deadline, "the cluster takes no job"
            time.sleep(1)
        begun = time.monotonic()
        subprocess.run([*submit, "true"], cwd=ROOT, env=environment, check=True, capture_output=True)
        empty = time.monotonic() - begun
        words = [
            "--config",
            "jobs/configs/demo.json",
            "--lora_r",
            "4",
            "--lora_alpha",
            "8",
            "--max_steps",
            "2",
            "--eval_style",
            "off",
        ]
        words += [
            "--max_seq_length",
            "64",
            "--segment_length",
            "64",
            "--model_name_or_path",
            str(model),
            "--dataset_path",
            str(rows),
        ]
        words += ["--output_dir", str(folder / "run"), "--sample_prompt", ""]
        seen: dict[str, float] = {}
        begun = time.monotonic()
        job = subprocess.Popen(
            [*submit, "python", "-u", "jobs/train.py", *words],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        # The beginning of a line: the job's own words, which hold `steps` too, come first.
        marks = {
            "plan": "  steps ",
            "proof": "isolation of documents proved",
            "first step": "train:",
            "end": "adapter  ",
        }
        assert job.stdout is not None
        said = []
        for line in job.stdout:
            said.append(line)
            for name, mark in marks.items():
                if name not in seen and line.startswith(mark):
                    seen[name] = time.monotonic() - begun
        assert job.wait() == 0, "".join(said)
    finally:
        head.terminate()
        head.wait(timeout=90)
    return {"an empty job, submit to end": empty, **{f"train: submit to {name}": value for name, value in seen.items()}}


def main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that Ray ends however this does
    with tempfile.TemporaryDirectory(prefix="raystyle-scaling-") as temporary:
        folder = Path(temporary)
        model = builders.write_model(folder / "model")
        (folder / "tiny").mkdir()
        (folder / "tiny/a.txt").write_text("今日天气阴沉，街上没有什么人。\n他推开门，看见屋里坐着一个老人。\n" * 3)
        corpus = folder / "corpus"
        corpus.mkdir()
        size = 0
        while size < MB * 10**6:
            number = len(list(corpus.iterdir()))
            content = novels.made_up(number).encode()
            (corpus / f"{number}.txt").write_bytes(content)
            size += len(content)
        seconds: dict[int, list[float]] = {1: [], 2: []}
        start: dict[int, float] = {}
        for cores in (1, 2):
            start[cores] = prepared(folder / "tiny", model, folder / f"tiny-{cores}", cores)
        for round_ in (1, 2):
            for cores in (1, 2):
                seconds[cores].append(prepared(corpus, model, folder / f"out-{cores}-{round_}", cores))
        digests = {json.loads((path / "manifest.json").read_text())["digest"] for path in folder.glob("out-*")}
        assert len(digests) == 1, digests
        work = {cores: min(seconds[cores]) - start[cores] for cores in seconds}
        told: dict[str, str] = {}

        def tell(what: str, value: str) -> None:
            told[what] = value
            print(f"{what}: {value}", flush=True)

        tell("corpus", f"{size / 1e6:.0f} MB")
        tell("start-up with 1 and 2 cores", f"{start[1]:.1f} and {start[2]:.1f} s")
        for cores in (1, 2):
            best = min(seconds[cores])
            tell(f"prepare with {cores}", f"{best:.1f} s, {size / 1e6 / work[cores]:.1f} MB/s after start-up")
        whole = min(seconds[1]) / min(seconds[2])
        tell("2 cores against 1", f"{work[1] / work[2]:.2f} times after start-up, {whole:.2f} with it")
        tell("the driver, a task that does nothing", f"{1e3 * seconds_a_task():.1f} ms of CPU")
        for name, value in driver_bytes().items():
            tell(f"the driver, {name}", f"{value:.0f} bytes")
        for name, value in start_up(folder, model, builders.write_prepared(folder / "rows", model)).items():
            tell(name, f"{value:.1f} s")
    load = os.getloadavg()[2]
    lines = ["# Scaling", "", (__doc__ or "").split("\n\n")[0], ""]
    lines += [
        f"{os.cpu_count()} cores, Python {sys.version.split()[0]}; load over the last quarter of an hour {load:.1f}.",
        "",
    ]
    lines += ["| | |", "|---|---|", *(f"| {what} | {value} |" for what, value in told.items())]
    (ROOT / "bench/results/scaling.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
