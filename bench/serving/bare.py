"""One contender in this process, without HTTP and without Ray.

python bench/serving/bare.py KIND FOLDER SIZE

embedded     raystyle's engine on transformers
static       PeftModel.generate, all rows at once, each with its adapter
one_by_one   PeftModel.generate, a row at a time, after `set_adapter`
vllm         raystyle's engine on vLLM
raw_vllm     the same AsyncLLM, asked directly
"""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import work

# Requests of a wave that PEFT does one by one of the larger model, at seconds each.
FEWER = 8
NAMES = [f"a{number}" for number in range(max(work.ADAPTERS))]


async def main(kind: str, folder: Path, size: str) -> None:
    import torch

    from raystyle import tokens
    from raystyle.generation import encode

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    tokenizer = tokens.load_tokenizer(str(folder / "base"))
    prompts = [tuple(encode(tokenizer, prompt)) for prompt in work.prompts(folder)]
    if kind in ("static", "one_by_one"):
        ask = peft(kind, folder, prompts)
    else:
        ask = await engine(kind, folder, prompts)
    chosen = work.cells(size)
    if kind == "one_by_one":
        chosen = [cell._replace(waves=min(cell.waves, 2 * FEWER // cell.concurrent or 1)) for cell in chosen]
        chosen = [cell for cell in chosen if size == "tiny" or cell.concurrent <= FEWER]
    await work.measure(ask, chosen, os.getpid(), tokenizer.decode)
    sys.stdout.flush()
    os._exit(0)  # vLLM takes seconds to end, and nothing is left to be done


async def engine(kind: str, folder: Path, prompts: Sequence[tuple[int, ...]]) -> work.Ask:
    """Rows of an engine, all at once."""
    from raystyle.generation import Row, Sampling

    model = str(folder / "base")
    limits: dict[str, Any] = {"max_length": work.MAX_LENGTH, "max_batch_size": max(work.CONCURRENT), "use_gpu": False}
    if kind == "embedded":
        from raystyle.serving.engines.transformers import TransformersEngine

        running: Any = TransformersEngine(model, **limits)
    else:
        from raystyle.config import ServeConfig
        from raystyle.serving.engines.vllm import VllmEngine, environment

        os.environ |= environment(ServeConfig(model_name_or_path=model))
        running = await asyncio.to_thread(
            lambda: VllmEngine(model, model, max_adapters=len(NAMES), max_lora_rank=work.RANK, **limits)
        )
    for name in NAMES:
        await running.load(name, str(folder / "adapters" / name))
    numbers = count()

    async def ours(row: Row) -> AsyncIterator[Sequence[int]]:
        async for found in running.generate(row):
            yield found.ids

    async def theirs(row: Row) -> AsyncIterator[Sequence[int]]:
        from vllm.inputs.engine import tokens_input

        lora, parameters = running._adapters[row.adapter], running._parameters(row)
        prompt = tokens_input(list(row.prompt_ids))
        async for output in running._llm.generate(prompt, parameters, f"raw-{next(numbers)}", lora_request=lora):
            yield output.outputs[0].token_ids

    async def one(asked: work.Asked, started_s: float) -> work.Said:
        sampling = Sampling(max_new_tokens=asked.tokens, temperature=0, top_p=1)
        row = Row(prompts[asked.prompt], sampling, NAMES[asked.adapter])
        found: list[int] = []
        first_s = 0.0
        async for ids in theirs(row) if kind == "raw_vllm" else ours(row):
            first_s = first_s or time.perf_counter() - started_s
            found += ids
        return work.Said(first_s, len(found), found)

    async def ask(asked: Sequence[work.Asked]) -> list[work.Said]:
        started_s = time.perf_counter()
        return await asyncio.gather(*(one(each, started_s) for each in asked))

    return ask


def peft(kind: str, folder: Path, prompts: Sequence[tuple[int, ...]]) -> work.Ask:
    """Rows of a PeftModel, all in one batch or one after the other."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    model: Any = PeftModel.from_pretrained(base, folder / "adapters" / NAMES[0], adapter_name=NAMES[0])
    for name in NAMES[1:]:
        model.load_adapter(folder / "adapters" / name, adapter_name=name)
    model.eval()

    def generate(asked: Sequence[work.Asked], started_s: float, **options: Any) -> list[work.Said]:
        rows = [prompts[each.prompt] for each in asked]
        width, end = max(map(len, rows)), model.config.eos_token_id
        ids_BT = torch.tensor([[*[end] * (width - len(row)), *row] for row in rows])
        mask_BT = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        ends_s: list[float] = []

        def never(ids_BT: torch.Tensor, scores: Any, **more: Any) -> torch.Tensor:
            ends_s.append(time.perf_counter())
            return torch.zeros(len(ids_BT), dtype=torch.bool)

        with torch.inference_mode():
            found_BT = model.generate(
                input_ids=ids_BT,
                attention_mask=mask_BT,
                max_new_tokens=asked[0].tokens,
                do_sample=False,
                stopping_criteria=[never],
                **options,
            )
        return [work.Said(ends_s[0] - started_s, len(new), new) for new in found_BT[:, width:].tolist()]

    async def static(asked: Sequence[work.Asked]) -> list[work.Said]:
        return generate(asked, time.perf_counter(), adapter_names=[NAMES[each.adapter] for each in asked])

    async def one_by_one(asked: Sequence[work.Asked]) -> list[work.Said]:
        started_s, said = time.perf_counter(), []
        for each in asked:
            model.set_adapter(NAMES[each.adapter])
            said += generate([each], started_s)
        return said

    return static if kind == "static" else one_by_one


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3]))
