"""What the conformance suite stands on: a base and adapters with weights that matter, an engine that runs, and
transformers with PEFT as the judge."""

import asyncio
import contextlib
import dataclasses
import functools
import importlib.util
import os
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import builders

from raystyle import adapters
from raystyle.generation import Row, Sampling, Scored
from raystyle.serving.contract import Engine, FinishReason

# Each environment has one: vLLM pins packages that raystyle's own environment has newer.
NAME = "vllm" if importlib.util.find_spec("vllm") else "transformers"
MAX_LENGTH, MAX_BATCH_SIZE, MAX_ADAPTERS, MAX_RANK = 256, 16, 24, 16
VOCABULARY, ENDS = 320, (0, 7)
ADAPTERS: dict[str, dict[str, Any]] = {
    "a": {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]},
    "b": {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"},
    "c": {"r": 6, "lora_alpha": 24, "use_rslora": True, "target_modules": ["o_proj", "gate_proj", "down_proj"]},
}
T = TypeVar("T")


def write_base(directory: Path, *, hidden: int = 128, layers: int = 2) -> Path:
    """A Llama whose logits are far enough apart for greedy choices to survive rounding, and that has two end tokens."""
    from transformers import GenerationConfig, LlamaForCausalLM

    builders.write_model(directory, hidden=hidden, layers=layers)
    model = LlamaForCausalLM.from_pretrained(directory)
    model.lm_head.weight.data *= 8
    model.save_pretrained(directory)
    GenerationConfig(eos_token_id=list(ENDS), pad_token_id=0).save_pretrained(directory)
    return directory


def write_adapter(directory: Path, base: Path, *, seed: int = 0, strength: float = 1.0, **config: Any) -> Path:
    """A LoRA of random A and B that changes every token; `config` is PEFT's."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    torch.manual_seed(seed)
    settings = {"task_type": "CAUSAL_LM", "init_lora_weights": False, **config}
    model = get_peft_model(LlamaForCausalLM.from_pretrained(base), LoraConfig(**settings))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data *= strength
    adapters.save(model, str(directory), {})
    return directory


class Result(NamedTuple):
    """All that an engine said of a row, put together."""

    ids: tuple[int, ...]
    reason: FinishReason | None
    scored: tuple[Scored, ...]
    prompt_scored: tuple[Scored, ...]


@dataclasses.dataclass
class Running:
    """An engine with its event loop, the base and adapters it was started on, and the judge."""

    engine: Engine
    loop: asyncio.Runner
    directories: dict[str, Path]
    reference: "Reference"

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run(asyncio.wait_for(work, timeout=300))

    @functools.cached_property
    def long_rows(self) -> list[Row]:
        """Rows that run to 200 tokens, of the base and of adapters, enough for every place: no end token comes earlier."""
        candidates = [
            row(prompt(1000 + number), [None, *ADAPTERS][number % 4], new=200) for number in range(3 * MAX_BATCH_SIZE)
        ]
        found = zip(candidates, self.complete(*candidates), strict=True)
        return [asked for asked, result in found if result.reason == "length"][:MAX_BATCH_SIZE]

    def complete(self, *rows: Row) -> list[Result]:
        """All rows at the same time, each to its end."""

        async def together() -> list[Result]:
            return await asyncio.gather(*(finish(self.engine, row) for row in rows))

        return self.run(together())


async def finish(engine: Engine, row: Row) -> Result:
    ids: tuple[int, ...] = ()
    scored: tuple[Scored, ...] = ()
    prompt_scored: tuple[Scored, ...] = ()
    reason: FinishReason | None = None
    async with contextlib.aclosing(engine.generate(row)) as stream:  # type: ignore[type-var]
        async for tokens in stream:
            assert reason is None, "tokens after the last"
            ids += tokens.ids
            scored += tokens.scored
            prompt_scored += tokens.prompt_scored
            reason = tokens.finish_reason
    return Result(ids, reason, scored, prompt_scored)


class Reference:
    """transformers and PEFT, one row at a time, each only once."""

    def __init__(self, directories: dict[str, Path]) -> None:
        from peft import PeftModel
        from transformers import LlamaForCausalLM

        base = LlamaForCausalLM.from_pretrained(directories["base"], attn_implementation="eager")
        names = [name for name in directories if name != "base"]
        self.model = PeftModel.from_pretrained(base, str(directories[names[0]]), adapter_name=names[0])
        for name in names[1:]:
            self.model.load_adapter(str(directories[name]), adapter_name=name)
        self.model.eval()
        self.known: dict[Row, tuple[int, ...]] = {}

    def load(self, name: str, directory: Path) -> None:
        self.model.load_adapter(str(directory), adapter_name=name)
        self.model.eval()

    @contextlib.contextmanager
    def wearing(self, adapter: str | None) -> Iterator[Any]:
        import torch

        # Threads for so small a model only wait for each other, and on a busy machine long.
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            if adapter is not None:
                self.model.set_adapter(adapter)
            with contextlib.nullcontext() if adapter is not None else self.model.disable_adapter():
                yield self.model
        finally:
            torch.set_num_threads(threads)

    def greedy(self, row: Row) -> tuple[int, ...]:
        if row not in self.known:
            self.known[row] = self._greedy(row)
        return self.known[row]

    def _greedy(self, row: Row) -> tuple[int, ...]:
        import torch

        prompt = torch.tensor([row.prompt_ids])
        with self.wearing(row.adapter) as model, torch.inference_mode():
            output = model.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                do_sample=False,
                max_new_tokens=row.sampling.max_new_tokens,
            )
        ids = output[0, prompt.shape[1] :].tolist()
        return tuple(ids[:-1] if ids[-1] in ENDS else ids)

    def logprobs(self, ids: tuple[int, ...], adapter: str | None) -> Any:
        """log_softmax at every place of a text: row t is for the token after t."""
        import torch

        with self.wearing(adapter) as model, torch.inference_mode():
            return model(torch.tensor([ids])).logits[0].float().log_softmax(-1)


@contextlib.contextmanager
def running(directory: Path) -> Iterator[Running]:
    """This environment's engine with the adapters of `ADAPTERS` loaded, under their names as digests."""
    base = write_base(directory / "base")
    directories = {"base": base}
    for seed, (name, config) in enumerate(ADAPTERS.items()):
        directories[name] = write_adapter(directory / name, base, seed=seed, **config)
    with asyncio.Runner() as loop:
        engine = loop.run(start(str(base)))
        try:
            for name in ADAPTERS:
                loop.run(engine.load(name, str(directories[name])))
            yield Running(engine, loop, directories, Reference(directories))
        finally:
            loop.run(engine.close())


async def start(base: str) -> Engine:
    if NAME == "vllm":
        from raystyle.config import ServeConfig
        from raystyle.serving.engines import vllm

        os.environ.update(vllm.environment(ServeConfig(model_name_or_path=base)) | {"OMP_NUM_THREADS": "1"})
        return await asyncio.to_thread(
            vllm.VllmEngine,
            base,
            base,
            max_length=MAX_LENGTH,
            max_batch_size=MAX_BATCH_SIZE,
            max_adapters=MAX_ADAPTERS,
            max_lora_rank=MAX_RANK,
            use_gpu=False,
        )
    from raystyle.serving.engines import transformers

    return await asyncio.to_thread(
        transformers.TransformersEngine, base, max_length=MAX_LENGTH, max_batch_size=MAX_BATCH_SIZE
    )


def row(prompt: tuple[int, ...], adapter: str | None = None, *, new: int = 24, **changes: Any) -> Row:
    """A greedy row; `changes` go to the sampling or the row, by their names."""
    fields = {field.name for field in dataclasses.fields(Sampling)}
    sampling = {name: value for name, value in changes.items() if name in fields}
    rest = {name: value for name, value in changes.items() if name not in fields}
    plain = Sampling(max_new_tokens=new, temperature=0.0, top_p=1.0)
    return Row(prompt, dataclasses.replace(plain, **sampling), adapter, **rest)


def prompt(seed: int, length: int = 12) -> tuple[int, ...]:
    """Tokens at random, none of them special."""
    import random

    return tuple(random.Random(seed).choices(range(8, VOCABULARY), k=length))
