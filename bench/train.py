"""Training on one core against its peers: real tokens per CPU-second, time to the first step, peak memory.

    python bench/train.py --setup       the peers' environments below .bench/, once
    python bench/train.py               everything; most of an hour

A Llama of 256 x 6 with LoRA r 16 on seven projections in fp32, rows of 512 tokens, four a step, one thread. Documents are
token ids of some 60 to 900 each, the same for all, packed each tool's own way. Every tool is a process of its own, run
for few steps and for many: the difference is what steps cost, and what remains of the first is start-up. raystyle runs
without Ray (`python -m raystyle.training.loop`), with its proof of isolation and its checkpoints, which count as start-up
where they come once. CPU seconds are of all of a tool's processes: compare those first on a machine that others use.

TRL's `bfd_split` isolates documents; its `wrapped`, `group_texts` and LLaMA-Factory's `pt` stage do not.
"""

import argparse
import json
import platform
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
BENCH, PEERS = HERE.parent / ".bench", HERE / "peers"
sys.path[:0] = [str(PEERS), str(HERE.parent)]

import corpus  # noqa: E402
import measure  # noqa: E402
import novels  # noqa: E402

PACKAGES = ["torch==2.13.0", "transformers==5.23.0", "peft==0.21.0", "trl==1.16.0", "datasets==5.2.0"]
# LLaMA-Factory's own limits, but for torchaudio and what serves its web page; itself without what it depends on.
FACTORY = [
    "torch==2.13.0", "transformers==5.6.0", "peft==0.18.1", "trl==0.24.0", "datasets==4.0.0", "accelerate==1.11.0", "fire",
    "omegaconf", "tyro<0.9.0", "einops", "scipy", "sentencepiece", "tiktoken", "pydantic", "protobuf", "matplotlib", "modelscope",
    "sse-starlette", "fastapi", "uvicorn", "hf-transfer",
]  # fmt: skip
FACTORY_ITSELF = "llamafactory==0.9.5"
ROWS, LENGTH, FEW, MANY = 4, 512, 2, 10
DOCUMENTS = 700
TIMEOUT_S = 900


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--setup", action="store_true", help="make the peers' environments and stop")
    parser.add_argument("--rounds", type=int, default=2, help="the fastest of so many counts")
    options = parser.parse_args()
    python, factory = set_up("train-peers", PACKAGES), set_up("train-llamafactory", FACTORY, FACTORY_ITSELF)
    if options.setup:
        return
    work = BENCH / "train"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    model, documents, prepared = make(work)
    told, texts = [str(model), str(documents)], [str(model), str(documents.with_suffix(".clean.jsonl"))]
    tools = {
        "raystyle": None,
        "TRL `bfd_split`": [python, str(PEERS / "run_trl.py"), *told],
        "TRL `wrapped`": [python, str(PEERS / "run_trl.py"), *told],
        "HF + PEFT `group_texts`": [python, str(PEERS / "run_group_texts.py"), *told],
        "LLaMA-Factory `pt`": [factory, str(PEERS / "run_llamafactory.py"), *texts],
    }
    found: dict[str, list[dict[str, Any]]] = {}
    for turn in range(options.rounds):
        for name, command in tools.items():
            runs = []
            for steps in (FEW, MANY):
                output = work / f"output-{turn}-{steps}"
                shutil.rmtree(output, ignore_errors=True)
                if command is None:
                    line = ours(model, prepared, output, steps)
                else:
                    packing = [name.split("`")[1]] if name.startswith("TRL") else []
                    line = [*command, str(output), str(steps), str(ROWS), str(LENGTH), *packing]
                log = work / "log"
                environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent) if command is None else ""}
                measured = measure.run(line, environment, work, log, TIMEOUT_S)
                if measured.exit_code:
                    sys.exit(f"{name} failed:\n{log.read_text()[-2000:]}")
                real = real_tokens(output, log, steps, prepared if command is None else None)
                runs.append(measured._asdict() | {"real_tokens": real})
            few, many = runs
            tokens = many["real_tokens"] - few["real_tokens"]
            cpu_s = many["cpu_s"] - few["cpu_s"]
            result = {
                "tokens_per_cpu_s": tokens / cpu_s,
                # Of the steps between: a peer's loader reads a batch ahead, which is counted in both runs.
                "real_share": tokens / ((MANY - FEW) * ROWS * LENGTH),
                "start_cpu_s": few["cpu_s"] - cpu_s * FEW / (MANY - FEW),
                "start_s": few["wall_s"] - (many["wall_s"] - few["wall_s"]) * FEW / (MANY - FEW),
                "peak_gb": many["peak_bytes"] / 1e9,
                "others": many["others"],
            }
            found.setdefault(name, []).append(result)
            print(name, json.dumps({key: round(value, 3) for key, value in result.items()}), flush=True)
    text = report({name: max(runs, key=lambda run: run["tokens_per_cpu_s"]) for name, runs in found.items()}, found)
    (HERE / "results" / "train.md").write_text(text)
    print(text)


def set_up(name: str, wanted: list[str], itself: str | None = None) -> str:
    """Make an environment, unless it is there with these packages, torch first; its Python. `itself` brings nothing along."""
    folder, packages = BENCH / name, "\n".join([*wanted, itself or ""])
    done = folder / "packages.txt"
    if not done.exists() or done.read_text() != packages:
        folder.parent.mkdir(exist_ok=True)
        (BENCH / ".gitignore").write_text("*\n")
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        for package in (wanted[:1], wanted, ["--no-deps", itself] if itself else []):
            if package:
                subprocess.run([str(folder / "bin/pip"), "install", "--quiet", *package], check=True)
        done.write_text(packages)
    return str(folder / "bin" / "python")


def make(work: Path) -> tuple[Path, Path, Path]:
    """The model, the documents' ids for the peers, and the same text as `raystyle prepare` makes rows of it."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    model = corpus.build_tokenizer(work / "model", None)
    tokenizer = AutoTokenizer.from_pretrained(model)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=688, num_hidden_layers=6, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=1024, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(model)
    draw, texts = random.Random(0), []
    for index in range(20):
        lines = novels.made_up(index).splitlines()
        while len(lines) > 40 and len(texts) < DOCUMENTS:
            count = draw.randint(2, 30)
            texts.append("\n".join(line.strip() for line in lines[:count] if line.strip()))
            lines = lines[count:]
    source = work / "documents.jsonl"
    source.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), "utf-8")
    prepared = work / "prepared"
    words = ["--dataset_path", source, "--output_dir", prepared, "--tokenizer_name_or_path", model, "--dedup", "none"]
    lengths = ["--max_seq_length", LENGTH, "--segment_length", LENGTH, "--max_removed_share", 0.9]
    command = [sys.executable, "-m", "raystyle", "prepare", *map(str, [*words, *lengths])]
    subprocess.run(command, check=True, cwd=HERE.parent, stdout=subprocess.DEVNULL)
    cleaned = [
        text
        for part in sorted((prepared / "documents").glob("*.parquet"))
        for text in pq.read_table(part)["text"].to_pylist()
    ]
    ids = [[*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id] for text in cleaned]
    documents = work / "documents.parquet"
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in cleaned)
    documents.with_suffix(".clean.jsonl").write_text(lines, "utf-8")
    pq.write_table(pa.table({"input_ids": ids}), documents)
    return model, documents, prepared


def ours(model: Path, prepared: Path, output: Path, steps: int) -> list[str]:
    flags = {
        "model_name_or_path": model, "dataset_path": prepared, "output_dir": output, "max_steps": steps,
        "per_device_train_batch_size": ROWS, "gradient_accumulation_steps": 1, "lora_r": 16, "lora_alpha": 32,
        "lora_dropout": 0, "learning_rate": 1e-4, "report_to": "none", "sample_prompt": "", "logging_steps": 10**6,
        "use_gpu": "false",
    }  # fmt: skip
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "raystyle.training.loop", *words]


def real_tokens(output: Path, log: Path, steps: int, prepared: Path | None) -> float:
    """Tokens that are text among those trained on: as the peer counted them, or by the share of the prepared rows."""
    if prepared is None:
        return float(re.findall(r"real tokens (\d+)", log.read_text())[-1])
    plan = json.loads((output / "plan.json").read_text())
    return float(plan["real_token_share"] * steps * ROWS * LENGTH)


def report(best: dict[str, dict[str, float]], rounds: dict[str, list[dict[str, float]]]) -> str:
    base = best["raystyle"]["tokens_per_cpu_s"]
    rows = [
        f"| {name} | {'yes' if name in ('raystyle', 'TRL `bfd_split`') else 'no'} | {run['tokens_per_cpu_s']:,.0f} | "
        f"{base / run['tokens_per_cpu_s']:.2f} | {run['real_share']:.1%} | {run['start_s']:.0f} / {run['start_cpu_s']:.0f} | "
        f"{run['peak_gb']:.2f} |"
        for name, run in best.items()
    ]
    busy = max(run["others"] for runs in rounds.values() for run in runs)
    return (
        f"""# Training on one core against its peers

Written by `python bench/train.py` ({platform.machine()}, Python {platform.python_version()}; {", ".join(PACKAGES)}; {FACTORY_ITSELF} with {", ".join(FACTORY[1:4])}). A Llama of 256 x 6,
LoRA r 16 on seven projections, fp32, rows of {LENGTH} tokens, {ROWS} a step, one thread; the best of {len(rounds["raystyle"])} rounds in
turns. Others used up to {busy:.1f} of the machine's cores meanwhile. Start-up is all that a process does but its steps.
TRL's loss is a GPU kernel of its own, which it always uses; what stands in for it on a CPU takes most of a step (py-spy), so its
two rows say nothing of packing. For TRL on a GPU see gpu_train.md.

| tool | documents isolated | real tokens per CPU-second | raystyle is so many times as fast | share of real tokens | start-up, s / CPU s | peak GB |
| --- | --- | --- | --- | --- | --- | --- |
"""
        + "\n".join(rows)
        + "\n"
    )


if __name__ == "__main__":
    main()
