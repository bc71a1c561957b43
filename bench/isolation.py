"""What keeping packed documents apart costs: tokens per CPU-second of one training step, four ways.

    python bench/isolation.py

A Llama of 256 x 6 with LoRA r 16, four rows of 512 tokens in four documents each, fp32, one core. The ways take turns,
so that whatever else the machine does slows them alike; the ratios are what counts.
"""

import itertools
import json
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from raystyle.training import attention

ROWS, LENGTH, DOCUMENTS, ROUNDS = 4, 512, 4, 12


def model_with(implementation: str):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        attn_implementation=implementation,
    )
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    return get_peft_model(LlamaForCausalLM(config), LoraConfig(r=16, target_modules=targets)).train()


def main() -> None:
    torch.set_num_threads(1)
    attention.register()
    packed, plain = model_with(attention.PACKED_SDPA), model_with("sdpa")
    ids_NT = torch.randint(0, 8192, (ROWS, LENGTH))
    lengths = [LENGTH // DOCUMENTS] * DOCUMENTS
    positions_1T = attention.flat_positions(lengths)
    together = torch.block_diag(*(torch.ones(n, n) for n in lengths)).tril().bool()
    whole = torch.block_diag(*(torch.ones(n, n) for n in lengths * ROWS)).tril().bool()
    flat_1T, flat_positions_1T = ids_NT.flatten()[None], attention.flat_positions(lengths * ROWS)
    ways = {
        "not isolated": lambda: plain(ids_NT, use_cache=False),
        "packed SDPA (raystyle)": lambda: packed(
            flat_1T, position_ids=flat_positions_1T, use_cache=False, block_lengths=tuple(lengths * ROWS)
        ),
        "block mask per row": lambda: plain(
            ids_NT,
            attention_mask=together.expand(ROWS, 1, -1, -1),
            position_ids=positions_1T.expand(ROWS, -1),
            use_cache=False,
        ),
        "flattened, dense mask": lambda: plain(
            flat_1T, attention_mask=whole[None, None], position_ids=flat_positions_1T, use_cache=False
        ),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn, (name, forward) in itertools.product(range(ROUNDS + 1), ways.items()):
        started_s = time.process_time()
        forward().logits.float().logsumexp(-1).mean().backward()
        if turn:  # the first turn warms up
            seconds[name].append(time.process_time() - started_s)
    fastest = {name: ROWS * LENGTH / min(times) for name, times in seconds.items()}
    for name, speed in fastest.items():
        ratio = speed / fastest["not isolated"]
        print(json.dumps({"way": name, "tokens_per_cpu_s": round(speed), "ratio": round(ratio, 3)}))


if __name__ == "__main__":
    main()
