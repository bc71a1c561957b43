"""Corpus preparation against its peers: MB/s, MB/s per core and peak memory, at several sizes of one corpus.

    python bench/prepare.py --setup                              the peers' environments below .bench/, once
    python bench/prepare.py --sizes 10 100 1000                  everything; about an hour and a half on two cores
    python bench/prepare.py --sizes 10 --tools raystyle datatrove --tasks clean --again

`clean` is raw novels to clean documents on disk; `rows` is raw novels to token ids on disk, cleaning included. Every tool
runs as a process of its own in its own environment, start-up included, with as many workers as there are cores; what
start-up takes is measured on a corpus of 0.1 MB. The peers have a dozen rules (`peers/rules.py`); raystyle has all of its
default pack, and once more the peers' rules and nothing else (`peers/rules.yaml`), which leave the same text. Beside them
stand cleaning alone on one core, and the tokenizer alone with one process per core, which no preparation can beat.

Finished measurements are kept in .bench/results.json, so that a bench that was stopped goes on where it was;
bench/results/prepare.md is written anew at the end of each. `--novels DIR` measures on real novels instead of made-up ones.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
BENCH, PEERS = HERE.parent / ".bench", HERE / "peers"
sys.path.insert(0, str(PEERS))

import corpus  # noqa: E402
import measure  # noqa: E402
import rules  # noqa: E402
import tables  # noqa: E402

from raystyle.corpus.steps import SWITCHABLE  # noqa: E402

STARTUP_MB = 0.1
TWICE_UP_TO_MB = 10  # small cases run twice, and the faster run counts
CEILING_MB = 40
TIMEOUT_S = 3 * 3600
# What each peer's environment holds. Data-Juicer's filter wants torch, and would install it by itself in the middle of a
# run; this version has a build for CPUs.
ENVIRONMENTS = {
    "datatrove": ["datatrove==0.10.1", "tokenizers==0.23.3", "orjson==3.13.0", "regex==2026.11.15", "pyarrow==26.0.1"],
    "datasets": ["datasets==5.2.0", "tokenizers==0.23.3", "pyarrow==26.0.1"],
    "data_juicer": [
        *("py-data-juicer==1.6.1", "ray[data]==2.60.0", "aiohttp==3.14.5", "transformers==5.23.0"),
        *("torch==2.13.0", "pyarrow==26.0.1"),
    ],
}


class Tool(NamedTuple):
    """A peer's recipe: its environment, its script and what else that is told, and which rows each task gets.

    Rows are those that the peer is faster with: whole novels, or chapters.
    """

    environment: str
    units: dict[str, str]
    options: tuple[str, ...] = ()


TOOLS = {
    "datatrove": Tool("datatrove", {"clean": "novels", "rows": "chapters"}),
    "datasets.map": Tool("datasets", {"clean": "chapters", "rows": "chapters"}),
    "Data-Juicer": Tool("data_juicer", {"clean": "chapters", "rows": "chapters"}),
    "Data-Juicer on Ray": Tool("data_juicer", {"clean": "chapters", "rows": "chapters"}, ("ray",)),
}
# What raystyle is told beside its paths; without duplicates but where they are measured, for no peer looks for any.
DOZEN = "raystyle, the peers' rules"
RAYSTYLE = {
    "raystyle": ("--dedup", "none"),
    DOZEN: ("--dedup", "none", "--rules", str(PEERS / "rules.yaml"), "--disable_rules", *SWITCHABLE),
    "raystyle, near-duplicates out": ("--dedup", "near"),
}
ALONE = "alone"  # raystyle's cleaning and the tokenizer, each without anything around it


def main() -> None:
    args = _arguments()
    for name in ENVIRONMENTS:
        set_up(name)
    if args.setup:
        return
    name = args.novels.name if args.novels else "made-up"
    tokenizer = corpus.build_tokenizer(BENCH / f"tokenizer-{name}", args.novels)
    results = _load(BENCH / "results.json")
    for size_mb in [STARTUP_MB, *args.sizes]:
        texts = corpus.build(BENCH / "corpus" / f"{name}-{size_mb:g}", round(size_mb * corpus.MB), args.novels)
        for tool, task in _cases(args, size_mb):
            key = f"{name}/{size_mb:g}/{tool}/{task}"
            if key in results and not args.again and "failure" not in results[key]:
                continue
            print(f"{key} …", end=" ", flush=True)
            results[key] = {"corpus": texts[1:], "cores": args.cores, "when": time.strftime("%Y-%m-%d %H:%M")}
            if tool == ALONE:
                alone = kernel if task == "clean" else tokenizer_alone
                results[key] |= alone(texts, tokenizer, args.cores)
            else:
                results[key] |= best(tool, task, texts, tokenizer, args.cores, 1 + (size_mb <= TWICE_UP_TO_MB))
            print(json.dumps(results[key], ensure_ascii=False), flush=True)
            (BENCH / "results.json").write_text(json.dumps(results, ensure_ascii=False, indent=1))
    mine = {key: result for key, result in results.items() if key.startswith(f"{name}/")}
    report = tables.report(mine, _packages())
    (HERE / "results" / "prepare.md").write_text(report, encoding="utf-8")
    print(report)


def _arguments() -> argparse.Namespace:
    tools = [*RAYSTYLE, *TOOLS, ALONE]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setup", action="store_true", help="make the peers' environments and stop")
    parser.add_argument("--sizes", type=float, nargs="+", default=[10, 100], help="MB of raw text")
    parser.add_argument("--tools", nargs="+", default=tools, choices=tools, metavar="TOOL", help=f"of {tools}")
    parser.add_argument("--tasks", nargs="+", default=["clean", "rows"], choices=["clean", "rows"])
    parser.add_argument("--novels", type=Path, help="a folder of real novels as .txt, instead of made-up ones")
    parser.add_argument("--cores", type=int, default=os.cpu_count(), help="workers of each tool")
    parser.add_argument("--again", action="store_true", help="measure again what has been measured")
    return parser.parse_args()


def _cases(args: argparse.Namespace, size_mb: float) -> Iterator[tuple[str, str]]:
    for task in args.tasks:
        for tool in args.tools:
            if tool == ALONE and size_mb == STARTUP_MB:
                continue
            if "near" in RAYSTYLE.get(tool, ()) and task != "clean":
                continue
            yield tool, task


def set_up(name: str) -> None:
    """Make a peer's environment, unless it is there with these packages."""
    folder, packages = BENCH / name, "\n".join(ENVIRONMENTS[name])
    done = folder / "packages.txt"
    if done.exists() and done.read_text() == packages:
        return
    print(f"making {folder}", flush=True)
    BENCH.mkdir(exist_ok=True)
    (BENCH / ".gitignore").write_text("*\n")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    subprocess.run([str(folder / "bin" / "pip"), "install", "--quiet", *ENVIRONMENTS[name]], check=True)
    done.write_text(packages)


def best(tool: str, task: str, texts: corpus.Corpus, tokenizer: Path, cores: int, times: int) -> dict[str, Any]:
    """The fastest of so many runs of one tool, with what it kept; or how it failed."""
    runs = []
    for _ in range(times):
        work, log = BENCH / "work", BENCH / "output.log"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        command = _command(tool, task, texts, work / "output", tokenizer, cores)
        measured = measure.run(command, _environment(work), work, log, TIMEOUT_S)
        if measured.exit_code:
            lines = log.read_text("utf-8", "replace").strip().splitlines()
            kept = BENCH / f"failed-{tool.split()[0]}-{task}.log".replace(",", "")
            shutil.copy(log, kept)
            return {**measured._asdict(), "failure": lines[-1][:300] if lines else "no output", "log": kept.name}
        runs.append(measured._asdict() | outcome(work / "output"))
    shutil.rmtree(work)
    return min(runs, key=lambda run: run["wall_s"])


def _command(tool: str, task: str, texts: corpus.Corpus, output: Path, tokenizer: Path, cores: int) -> list[str]:
    if tool in RAYSTYLE:
        command = [sys.executable, "-m", "raystyle", "prepare", "--dataset_path", str(texts.folder / "txt")]
        command += ["--output_dir", str(output), "--num_cpus", str(cores)]
        command += ["--tokenizer_name_or_path", str(tokenizer)] if task == "rows" else []
        return [*command, *RAYSTYLE[tool]]
    peer = TOOLS[tool]
    source = texts.folder / peer.units[task]
    script = [str(BENCH / peer.environment / "bin" / "python"), str(PEERS / f"run_{peer.environment}.py")]
    return [*script, task, str(source), str(output), str(tokenizer), str(cores), *peer.options]


def _environment(work: Path) -> dict[str, str]:
    """Offline, one thread per process for the tokenizer (there is a process per core), no cache from an earlier run but
    Python's own of what it imports."""
    return {
        "UV_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "HF_HOME": str(work / "cache"),
        "PYTHONDONTWRITEBYTECODE": "",
    }  # fmt: skip


def outcome(output: Path) -> dict[str, int]:
    """Characters in the documents that a tool wrote (line ends not counted), and tokens in its rows."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    found = {"characters": 0, "tokens": 0}
    for path in sorted(output.rglob("*")):
        place = path.relative_to(output).parts[0]
        if path.suffix == ".parquet" and place.startswith(("documents", "rows")):
            file = pq.ParquetFile(path)
            wanted = [name for name in ("text", "segment_lengths", "input_ids") if name in file.schema_arrow.names][:1]
            for batch in file.iter_batches(16, columns=wanted):
                column = batch.column(0)
                if wanted == ["text"]:
                    found["characters"] += pc.sum(pc.utf8_length(column)).as_py() or 0
                    found["characters"] -= pc.sum(pc.count_substring(column, "\n")).as_py() or 0
                else:
                    flat = column.flatten()
                    found["tokens"] += (pc.sum(flat).as_py() or 0) if wanted == ["segment_lengths"] else len(flat)
        elif path.suffix in (".jsonl", ".json") and place.startswith("documents") and not path.stem.endswith("stats"):
            for line in path.open(encoding="utf-8"):
                row = json.loads(line)
                found["characters"] += corpus.num_characters(row["text"])
                found["tokens"] += (row.get("__dj__stats__") or {}).get("num_token") or 0
        elif path.suffix == ".ds":
            found["tokens"] += path.stat().st_size // 2  # 16-bit ids
    return found


def kernel(texts: corpus.Corpus, tokenizer: Path, cores: int) -> dict[str, Any]:
    """Cleaning in one process on one core, from decoded text, and nothing else: raystyle's with its own rules and with the
    peers', and the peers' rules as they use them. The faster of two runs each; the first warms up."""
    from raystyle.corpus.clean import clean_all
    from raystyle.corpus.packs import load_rules

    read = [path.read_bytes().decode() for path in _first_files(texts, CEILING_MB)]
    lines = [text.replace("\r\n", "\n") for text in read]
    own, dozen = load_rules("zh_web_novel"), load_rules(str(PEERS / "rules.yaml"), disable=SWITCHABLE)

    def fastest_s(clean: Callable[[], object]) -> float:
        seconds = []
        for _ in range(3):
            started_s = time.process_time()
            clean()
            seconds.append(time.process_time() - started_s)
        return min(seconds[1:])

    own_s = fastest_s(lambda: clean_all(lines, own, to_simplified="auto"))
    dozen_s = fastest_s(lambda: clean_all(lines, dozen))
    peers_s = fastest_s(lambda: [rules.clean(text) for text in lines])
    size = sum(len(text.encode()) for text in read)
    return {"size": size, "wall_s": own_s, "cpu_s": own_s, "dozen_s": dozen_s, "peers_s": peers_s}


def tokenizer_alone(texts: corpus.Corpus, tokenizer: Path, cores: int) -> dict[str, Any]:
    """`encode_batch_fast` over chunks of clean text, one process per core; MB are those of the raw text behind it."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    paths = _first_files(texts, CEILING_MB)
    context = multiprocessing.get_context("spawn")
    pieces = [piece for path in paths for piece in corpus.chunks(rules.clean(path.read_bytes().decode()))]
    barrier = context.Barrier(cores)
    with context.Pool(cores, _receive, (barrier,)) as pool:
        spans = pool.starmap(_encode, [(pieces[i::cores], str(tokenizer)) for i in range(cores)], chunksize=1)
    starts, ends, cpu_s, tokens = zip(*spans, strict=True)
    size = sum(path.stat().st_size for path in paths)
    return {"size": size, "wall_s": max(ends) - min(starts), "cpu_s": sum(cpu_s), "tokens": sum(tokens)}


def _first_files(texts: corpus.Corpus, limit_mb: float) -> list[Path]:
    paths, total = [], 0
    for path in sorted((texts.folder / "txt").iterdir()):
        paths.append(path)
        total += path.stat().st_size
        if total > limit_mb * corpus.MB:
            break
    return paths


def _receive(barrier: Any) -> None:
    global _BARRIER
    _BARRIER = barrier


def _encode(pieces: list[str], folder: str) -> tuple[float, float, float, int]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
    _BARRIER.wait()
    started_s, started_cpu_s, tokens = time.monotonic(), time.process_time(), 0
    for first in range(0, len(pieces), 64):
        encodings = tokenizer.encode_batch_fast(pieces[first : first + 64], add_special_tokens=False)
        tokens += sum(map(len, encodings))
    return started_s, time.monotonic(), time.process_time() - started_cpu_s, tokens


def _packages() -> str:
    from importlib.metadata import version

    own = ", ".join(f"{name} {version(name)}" for name in ("ray", "pyarrow", "tokenizers"))
    peers = "; ".join(", ".join(pins).replace("==", " ") for pins in ENVIRONMENTS.values())
    return f"raystyle with {own}; peers: {peers}"


def _load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


if __name__ == "__main__":
    main()
