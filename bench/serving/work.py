"""What every contender gets: the same base, adapters and prompts, and the same cells to be measured in.

The weights are random, for speed does not depend on what they say. The output layer's rows for bytes, for the end of text
and for numbers beyond the vocabulary are zero: such tokens are then never the likeliest, so that every row makes all of
its tokens, and each of them is whole characters, as nearly all are in a tokenizer for Chinese.
"""

import contextlib
import json
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil

NEW_TOKENS, WARM_UP_TOKENS = 64, 4
ADAPTERS = (1, 3, 8)
CONCURRENT = (1, 8, 32)
# Waves of a cell, by how many are concurrent.
WAVES = {"tiny": {1: 20, 8: 8, 32: 5}, "m100": {1: 4, 8: 2, 32: 1}}
MAX_LENGTH, RANK = 512, 16
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SHAPES = {
    "tiny": {
        "vocab_size": 3072,
        "hidden_size": 192,
        "intermediate_size": 576,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
    },
    "m100": {
        "vocab_size": 8000,
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
    },
}


class Cell(NamedTuple):
    """So many requests at once, the adapters by turns; a wave is over when all of them are."""

    concurrent: int
    adapters: int
    waves: int


class Asked(NamedTuple):
    """One request: a prompt by number, an adapter by number, and how many new tokens."""

    prompt: int
    adapter: int
    tokens: int = NEW_TOKENS


class Said(NamedTuple):
    """What came of one: seconds from the start of its wave to its first token, how many tokens, and their text or ids."""

    first_s: float
    tokens: int
    said: Any


Ask = Callable[[Sequence[Asked]], Awaitable[list[Said]]]


def cells(size: str) -> list[Cell]:
    return [Cell(concurrent, adapters, WAVES[size][concurrent]) for adapters in ADAPTERS for concurrent in CONCURRENT]


# ── the material ──


def make(folder: Path, size: str) -> None:
    """The base, its adapters and the prompts, unless they are there."""
    if (folder / "complete").exists():
        return
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    from raystyle.demo import bpe, voices

    documents = [*voices.neutral_documents(1, 300), *voices.storyteller_documents(1, 150)]
    tokenizer = bpe.train_tokenizer(documents, SHAPES[size]["vocab_size"])
    end = tokenizer.eos_token_id
    torch.manual_seed(0)
    config = LlamaConfig(
        **SHAPES[size],
        max_position_embeddings=4096,
        initializer_range=SHAPES[size]["hidden_size"] ** -0.5,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
    )
    base: Any = LlamaForCausalLM(config)
    texts = tokenizer.batch_decode([[number] for number in range(len(tokenizer))])
    whole = [number for number, text in enumerate(texts) if "\ufffd" not in text and number != end and text.strip()]
    with torch.no_grad():
        kept_V1 = torch.zeros(config.vocab_size, 1)
        kept_V1[whole] = 1
        base.lm_head.weight.mul_(kept_V1)
    base.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    lora = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=TARGETS, task_type="CAUSAL_LM")
    for number in range(max(ADAPTERS)):
        torch.manual_seed(number + 1)
        tuned = get_peft_model(base, lora)
        for name, weight in tuned.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.02)
        tuned.save_pretrained(folder / "adapters" / f"a{number}")
        base = tuned.unload()
    text = "".join(document.replace("\n", "") for document in voices.neutral_documents(2, 40))
    starts = range(0, 50 * max(CONCURRENT), 50)
    # 24 to 45 characters, for prompts are seldom equally long.
    kept = [text[start : start + 24 + 3 * (number % 8)] for number, start in enumerate(starts)]
    (folder / "prompts.json").write_text(json.dumps(kept, ensure_ascii=False))
    (folder / "complete").touch()


def prompts(folder: Path) -> list[str]:
    found: list[str] = json.loads((folder / "prompts.json").read_text())
    return found


# ── measuring ──


class Tree:
    """A process and all below it, for the CPU seconds that they have used; what has ended since is not forgotten."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._seen: dict[psutil.Process, float] = {}

    def cpu_s(self) -> float:
        for process in [self._root, *self._root.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                self._seen[process] = times.user + times.system
        return sum(self._seen.values())


def busy_s() -> float:
    """CPU seconds that the machine has spent on anything."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq)


async def measure(ask: Ask, chosen: Sequence[Cell], pid: int, decode: Callable[[list[int]], str] | None = None) -> None:
    """Ask for every cell and print what was found, a JSON object a line. `pid`'s tree is what works; `decode` makes text
    of what is said in ids."""
    tree, own = Tree(pid), Tree(os.getpid())
    is_client = pid != os.getpid()
    for cell in chosen:
        count = max(cell.concurrent, cell.adapters)
        await ask([Asked(i, i % cell.adapters, WARM_UP_TOKENS) for i in range(count)])
        waves, texts = [], {}
        for turn in range(cell.waves):
            # A single one is of another prompt and adapter each time.
            numbers = [turn % max(CONCURRENT)] if cell.concurrent == 1 else range(cell.concurrent)
            asked = [Asked(number, number % cell.adapters) for number in numbers]
            before = tree.cpu_s(), own.cpu_s(), busy_s(), time.perf_counter()
            said = await ask(asked)
            wall_s = time.perf_counter() - before[3]
            cpu_s, own_s = tree.cpu_s() - before[0], own.cpu_s() - before[1]
            others_s = busy_s() - before[2] - cpu_s - (own_s if is_client else 0)
            short = [each.tokens for each in said if each.tokens != NEW_TOKENS]
            if short:
                raise RuntimeError(f"rows of {short} tokens, where {NEW_TOKENS} were asked for")
            waves.append(
                {
                    "wall_s": wall_s,
                    "cpu_s": cpu_s,
                    "client_cpu_s": own_s if is_client else None,
                    "others": max(0.0, others_s / wall_s),
                    "tokens": sum(each.tokens for each in said),
                    "first_s": [each.first_s for each in said],
                }
            )
            for each, (prompt, adapter, _) in zip(said, asked, strict=True):
                texts[f"{prompt} {adapter}"] = decode(each.said) if decode else each.said
        print(json.dumps({**cell._asdict(), "waves": waves, "texts": texts}, ensure_ascii=False), flush=True)
