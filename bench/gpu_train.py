"""How fast one GPU trains LoRA on an 8B model, and in how much memory: raystyle's step, way by way, and TRL's beside it.

    python bench/gpu_train.py --output bench/results/gpu_train.json     # one GPU of 80 GB or more, torch, transformers, peft
    python bench/gpu_train.py --tiny                                    # the same on a CPU in a minute: does it run?

A random model of Llama-3-8B's shape in bf16, LoRA r 128 on all seven projections, rows of 4 segments of 1,024 tokens.
Neither Ray nor a hub is needed: the step is put together from the functions that a worker uses. Steps of eight rows;
what is timed comes after warm-up, between synchronisations. FLOPs are those of `plan.flops_per_token` (32.8 G a token with
isolation), never those of recomputing. TRL, if `trl` and `datasets` are there, runs in processes of its own.
"""

import argparse
import gc
import itertools
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1]))
from raystyle import models
from raystyle.config import TrainConfig
from raystyle.training import attention, kernels, lora, lora_linear, loss, memory, plan, recompute

SEGMENTS, SEGMENT = 4, 1024
ROWS_A_STEP, WARM_UP, TIMED = 8, 1, 3
LLAMA_3_8B = {
    "vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192,
}  # fmt: skip
TINY = LLAMA_3_8B | {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
FULL = 10**6  # layers
# What a way leaves out: rows of a step 8, every layer keeps its activations, no dropout, Liger's kernels, fused LoRA.
WAYS: dict[str, dict[str, Any]] = {
    "PEFT's layers, 1 row": {"rows": 1, "liger": False, "fused": False},
    "PEFT's layers, all recompute, dropout": {
        "rows": 8, "recomputing": FULL, "dropout": 0.05, "liger": False, "fused": False
    },
    "fused LoRA, 1 row": {"rows": 1, "liger": False},
    "reference preset, all recompute": {"rows": 8, "recomputing": FULL, "dropout": 0.05},
    "reference preset, as 80 GB allow": {"rows": 2, "recomputing": None, "dropout": 0.05, "device_gb": 80},
    "fused LoRA, Liger, 1 row": {"rows": 1},
    "fused LoRA, Liger, 2 rows": {"rows": 2},
    "fused LoRA, Liger, 4 rows, dropout": {"rows": 4, "step": 16, "dropout": 0.05},
    "fused LoRA, Liger, 4 rows": {"rows": 4, "step": 16},
    "fused LoRA, Liger, 5 rows": {"rows": 5, "step": 20},
}  # fmt: skip
# In a process of its own: Liger's kernels stay in transformers' classes once they were put there.
COMPILED = {"fused LoRA, compiled, 4 rows": {"rows": 4, "liger": False, "compiled": True}}
TRL_WAYS: dict[str, dict[str, Any]] = {
    "TRL with Liger, isolated, 1 row": {"rows": 1, "packing": "bfd_split"},
    "TRL with Liger, isolated, 4 rows": {"rows": 4, "packing": "bfd_split"},
    "TRL with Liger, not isolated, 4 rows": {"rows": 4, "step": 16, "packing": "wrapped"},
    "TRL with Liger, not isolated, all recompute": {"rows": 8, "packing": "wrapped", "recomputing": FULL},
}


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def random_base(shape: dict[str, int], implementation: str) -> Any:
    """A model of that shape with random weights, made where it will be used."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**shape, rope_theta=500_000.0, attn_implementation=implementation)
    auto: Any = transformers.AutoModelForCausalLM
    with device():
        return auto.from_config(config, dtype=torch.bfloat16)


def lora_settings(dropout: float) -> dict[str, Any]:
    return {"lora_r": 128, "lora_alpha": 256, "lora_dropout": dropout}


def measure(shape: dict[str, int], segment: int, way: dict[str, Any], profile: Path | None) -> dict[str, Any]:
    """Tokens per second of one way, its peak memory, and what the plan said of it."""
    config = TrainConfig(
        model_name_or_path="-", dataset_path=("-",), output_dir="-", **lora_settings(way.get("dropout", 0.0)),
        per_device_train_batch_size=way["rows"],
    )  # fmt: skip
    on_gpu = device().type == "cuda"
    implementation = attention.choose("auto", on_gpu, bf16=True)
    base = random_base(shape, implementation)
    shapes = models.shapes_of(base, "-")
    has_liger = kernels.apply_liger(base, way.get("liger"), on_gpu)
    model = lora.attach(base, config)
    fused = lora_linear.fuse(model) if way.get("fused", True) else 0
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    row = SEGMENTS * segment
    needs = memory.of(config, shapes, row, trainable, has_liger=has_liger)
    device_bytes = way["device_gb"] * 10**9 if "device_gb" in way else available_bytes()
    recomputing = way.get("recomputing", 0)
    recomputing = needs.fewest_recomputing(device_bytes) if recomputing is None else recomputing
    recomputing = recompute.recompute(model, recomputing)
    if way.get("compiled"):
        for layer in base.model.layers:
            layer.compile()
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-5, fused=on_gpu)
    head = base.get_output_embeddings()
    kept: list[torch.Tensor] = []
    base.get_decoder().register_forward_hook(lambda *hook: kept.append(hook[-1][0][0]))
    lengths = [segment] * SEGMENTS * way["rows"]
    # Only 300 different ids: a random model can learn that much in a few steps, and the losses show that it does.
    batches = torch.randint(
        0, min(300, shapes.vocab_size), (way.get("step", ROWS_A_STEP) // way["rows"], 1, sum(lengths))
    )
    positions = attention.flat_positions(lengths).to(device())
    boundaries = attention.boundaries(lengths, implementation, device())
    seconds, losses = [], []
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()

    def one_step() -> torch.Tensor:
        step_loss = torch.zeros((), device=device())
        for ids_1T in batches.to(device()):
            with torch.autocast(device().type, torch.bfloat16):
                model(input_ids=ids_1T, position_ids=positions, use_cache=False, logits_to_keep=1, **boundaries)
                total = loss.summed_cross_entropy(kept.pop(), head, ids_1T[0], shapes.vocab_size, has_liger)
            part = total / batches.numel()
            part.backward()
            step_loss += part.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return step_loss

    for step in range(WARM_UP + TIMED):
        synchronize()
        started_s = time.perf_counter()
        step_loss = one_step()
        synchronize()
        if step >= WARM_UP:
            seconds.append(time.perf_counter() - started_s)
        losses.append(round(step_loss.item(), 4))
    if profile is not None:
        profile.write_text(kernel_times(one_step))
    speed = batches.numel() / statistics.median(seconds)
    flops = plan.flops_per_token(shapes, trainable, segment)
    peak = torch.cuda.max_memory_allocated() if on_gpu else 0
    return {
        "attention": implementation, "liger": has_liger, "fused_layers": fused, "rows": way["rows"],
        "recomputing_layers": recomputing, "dropout": way.get("dropout", 0.0), "tokens_per_second": round(speed),
        "model_tflops": round(speed * flops / 1e12, 1), "peak_gb": round(peak / 1e9, 2),
        "planned_gb": round(needs.total(recomputing) / 1e9, 2), "losses": losses,
    }  # fmt: skip


def kernel_times(step: Callable[[], object]) -> str:
    """A table of what one step spends its time on, by kernel."""
    with torch.profiler.profile() as profiler:
        step()
        synchronize()
    on_gpu = torch.cuda.is_available()
    return profiler.key_averages().table(
        sort_by="self_cuda_time_total" if on_gpu else "self_cpu_time_total", row_limit=60
    )


def available_bytes() -> int:
    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else 10**12


def matmul_tflops() -> float:
    """What this device reaches on one large bf16 product of random numbers: the ceiling."""
    size, times = (8192, 20) if torch.cuda.is_available() else (256, 3)
    a, b = (torch.randn(size, size, dtype=torch.bfloat16, device=device()) for _ in range(2))
    for _ in range(3):
        a @ b
    synchronize()
    started_s = time.perf_counter()
    for _ in range(times):
        a @ b
    synchronize()
    return 2 * size**3 * times / (time.perf_counter() - started_s) / 1e12


def measure_trl(shape: dict[str, int], segment: int, way: dict[str, Any]) -> dict[str, Any]:
    """TRL's SFTTrainer on the same model, LoRA and amount of tokens, with Liger on a GPU, packed its way."""
    import datasets
    import tokenizers
    import trl

    on_gpu, row = device().type == "cuda", SEGMENTS * segment
    words = {str(i): i for i in range(300)} | {"<eos>": 300}
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<eos>"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<eos>")
    steps, step_rows = WARM_UP + TIMED, way.get("step", ROWS_A_STEP)
    ids = torch.randint(0, 300, (step_rows * steps * SEGMENTS, segment)).tolist()
    arguments = trl.SFTConfig(
        output_dir="/tmp/trl-bench", per_device_train_batch_size=way["rows"], max_steps=steps,
        gradient_accumulation_steps=step_rows // way["rows"], max_length=row, packing=True,
        packing_strategy=way["packing"], bf16=True, use_liger_kernel=on_gpu, use_cpu=not on_gpu,
        gradient_checkpointing=bool(way.get("recomputing")), gradient_checkpointing_kwargs={"use_reentrant": False},
        report_to="none", save_strategy="no", logging_steps=1, disable_tqdm=True, learning_rate=5e-5,
        **({} if on_gpu else {"loss_type": "nll"}),
    )  # fmt: skip
    marks: list[float] = []

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            synchronize()
            marks.append(time.perf_counter())

    trainer = trl.SFTTrainer(
        model=random_base(shape, "sdpa"), args=arguments, train_dataset=datasets.Dataset.from_dict({"input_ids": ids}),
        processing_class=tokenizer, callbacks=[Clock()],
        peft_config=peft.LoraConfig(r=128, lora_alpha=256, target_modules=list(TrainConfig.lora_target_modules)),
    )  # fmt: skip
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    trainer.train()
    seconds = [later - earlier for earlier, later in itertools.pairwise(marks)]
    speed = step_rows * row / statistics.median(seconds)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        "attention": "sdpa", "liger": on_gpu, "rows": way["rows"], "packing": way["packing"], "version": trl.__version__,
        "recomputing_layers": shape["num_hidden_layers"] if way.get("recomputing") else 0, "dropout": 0.0,
        "tokens_per_second": round(speed), "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2) if on_gpu else 0,
        "losses": losses,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="a tiny model and short segments, for a CPU")
    parser.add_argument("--only", nargs="*", help="ways by name")
    parser.add_argument("--no_trl", action="store_true")
    parser.add_argument("--profile", type=Path, help="a folder for tables of kernels, one a way of ours")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help="a JSON file for all figures")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    shape, segment = (TINY, 16) if options.tiny else (LLAMA_3_8B, SEGMENT)
    if options.alone in TRL_WAYS:
        print(json.dumps(measure_trl(shape, segment, TRL_WAYS[options.alone])))
        return
    if options.alone:
        print(json.dumps(measure(shape, segment, COMPILED[options.alone], None)))
        return
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "CPU"
    found: dict[str, Any] = {
        "machine": name, "torch": torch.__version__, "transformers": transformers.__version__,
        "peft": peft.__version__, "matmul_tflops": round(matmul_tflops(), 3), "ways": {},
    }  # fmt: skip
    print(json.dumps(found), flush=True)

    def note(way: str, result: dict[str, Any]) -> None:
        found["ways"][way] = result
        print(json.dumps({"way": way} | result), flush=True)
        if options.output:
            options.output.write_text(json.dumps(found, indent=1) + "\n")

    for way, settings in WAYS.items():
        if options.only is not None and way not in options.only:
            continue
        profile = options.profile / f"{way.replace(' ', '_').replace(',', '')}.txt" if options.profile else None
        try:
            note(way, measure(shape, segment, settings, profile))
        except torch.cuda.OutOfMemoryError as error:
            note(way, {"failed": f"out of memory: {str(error)[:120]}"})
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    for way in [*COMPILED, *({} if options.no_trl else TRL_WAYS)]:
        if options.only is not None and way not in options.only:
            continue
        command = [sys.executable, __file__, "--alone", way, *(["--tiny"] if options.tiny else [])]
        done = subprocess.run(command, capture_output=True, text=True)
        lines = done.stdout.strip().splitlines()
        note(way, json.loads(lines[-1]) if done.returncode == 0 else {"failed": done.stderr.strip()[-300:]})


if __name__ == "__main__":
    main()
