"""The engine for large models on GPUs: vLLM, driven by token ids alone. On a CPU it runs too, for its tests.

vLLM runs the model in processes of its own. A row becomes one of its requests, an adapter one of its LoRA requests, named
by its digest, since vLLM keys its prefix cache by that name, and numbered anew at each load, since it keeps weights by
number.
"""

import asyncio
import contextlib
import itertools
import json
import os
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

from raystyle import adapters
from raystyle.errors import ConfigError, ModelError
from raystyle.generation import Row, Scored
from raystyle.serving.contract import LEAST_EFFECT, LEAST_EFFECT_16_BITS, Tokens
from raystyle.serving.errors import RequestError

if TYPE_CHECKING:
    from vllm import RequestOutput, SamplingParams

    from raystyle.config import ServeConfig

# What vLLM makes room for (`MaxLoRARanks` in its config/lora.py).
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# Adapters of one batch. Each takes GPU memory of the highest rank, used or not (7e9 parameters, rank 64: 0.3 GB); rows of
# further ones wait for a slot.
SLOTS = 16
# Tokens of a block of vLLM's CPU cache.
CPU_BLOCK = 128
# Settings of PEFT that vLLM does not read, and would serve an adapter wrongly without.
UNREAD = ("rank_pattern", "alpha_pattern", "fan_in_fan_out", "layer_replication", "alora_invocation_tokens")


def environment(config: "ServeConfig") -> dict[str, str]:
    """Variables for the process that makes a `VllmEngine`, beside OMP_NUM_THREADS, which Ray sets: no reports to vLLM's
    makers, no look at the hub where the model is a folder."""
    variables = {"DO_NOT_TRACK": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    if os.path.isdir(config.model_name_or_path):
        variables["HF_HUB_OFFLINE"] = "1"
    if not config.use_gpu:
        variables |= {
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            # The model runs in the process that schedules it: a third start-up and 0.4 GB less.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            # Threads that spin while they wait take the cores from those that work, of which there are more.
            "OMP_WAIT_POLICY": "PASSIVE",
        }
    return variables


class VllmEngine:
    """vLLM behind `contract.Engine`.

    Starting takes from ten seconds to minutes and blocks, so call it in a thread: `await asyncio.to_thread(VllmEngine, …)`.
    All else belongs to one event loop. Raises `ModelError` for a base that vLLM cannot run, `ConfigError` where this vLLM
    is built for another device or `max_lora_rank` is above 512.
    """

    name = "vllm"
    can_scale = False
    least_effect: float

    def __init__(
        self,
        model: str,
        tokenizer: str,
        *,
        max_length: int,
        max_batch_size: int,
        max_adapters: int,
        max_lora_rank: int,
        use_gpu: bool,
        tensor_parallel_size: int = 1,
        trust_remote_code: bool = False,
    ) -> None:
        from vllm import AsyncEngineArgs
        from vllm.platforms import current_platform
        from vllm.v1.engine.async_llm import AsyncLLM

        from raystyle import generation, tokens

        if current_platform.is_cpu() == use_gpu:
            raise ConfigError(
                f"`engine` is vllm and `use_gpu` is {use_gpu}, but the vllm installed here runs on "
                f"{current_platform.device_name}\nhint: install the other build of vllm, or use `--engine transformers`"
            )
        self.least_effect = LEAST_EFFECT_16_BITS if use_gpu else LEAST_EFFECT
        room = _room(max_lora_rank)
        self._layout = _Layout(model, room, trust_remote_code)
        self._ends = generation.end_ids(self._layout.model, tokens.load_tokenizer(tokenizer, trust_remote_code))
        positions = self._layout.positions
        # vLLM wants room for one new token after every prompt, even where none is asked for.
        self.max_length = max_length if positions is None else min(max_length, positions - 1)
        self._max_batch_size = max_batch_size
        self._adapters: dict[str, Any] = {}
        self._loading = asyncio.Lock()
        self._numbers = itertools.count(1)
        self._rows = itertools.count(1)
        rows_tokens = max_batch_size * (self.max_length // CPU_BLOCK + 1) * CPU_BLOCK
        on_cpu: dict[str, Any] = {
            # In bfloat16, attention on some CPUs dies of an illegal instruction (SIGILL).
            "dtype": "float32",
            "enforce_eager": True,
            "distributed_executor_backend": "uni" if tensor_parallel_size == 1 else "mp",
            # Left to itself, vLLM takes nearly all memory of the machine. One block is vLLM's own.
            "kv_cache_memory_bytes": self._layout.cache_bytes(rows_tokens + CPU_BLOCK),
        }
        arguments = AsyncEngineArgs(
            model=model,
            skip_tokenizer_init=True,
            generation_config="vllm",
            load_format="safetensors",
            trust_remote_code=trust_remote_code,
            max_model_len=self.max_length + 1,
            max_num_seqs=max_batch_size,
            tensor_parallel_size=tensor_parallel_size,
            enable_lora=True,
            lora_target_modules=self._layout.targets,
            max_loras=min(SLOTS, max_adapters, max_batch_size),
            max_cpu_loras=max_adapters,
            max_lora_rank=room,
            disable_log_stats=True,
            **({} if use_gpu else on_cpu),
        )
        try:
            self._llm = AsyncLLM.from_engine_args(arguments)
        except ValueError as error:
            raise ModelError(f"vllm cannot run the base `{model}`: {error}") from error

    async def load(self, digest: str, directory: str) -> None:
        from vllm.lora.request import LoRARequest

        async with self._loading:
            if digest in self._adapters:
                return
            await asyncio.to_thread(self._layout.check, directory)
            request = LoRARequest(digest, next(self._numbers), directory)
            try:
                await self._llm.add_lora(request)
            except Exception as error:
                self.check()
                # What failed half-way is in vLLM's books all the same.
                await self._llm.remove_lora(request.lora_int_id)
                raise ModelError(f"vllm cannot take the adapter `{directory}`: {error}") from error
            self._adapters[digest] = request

    async def unload(self, digest: str) -> None:
        request = self._adapters.pop(digest, None)
        if request is not None:
            await self._llm.remove_lora(request.lora_int_id)

    async def generate(self, row: Row) -> AsyncGenerator[Tokens, None]:
        from vllm.inputs.engine import tokens_input

        self._check_row(row)
        request = None if row.adapter is None else self._adapters[row.adapter]
        stream = self._llm.generate(
            tokens_input(list(row.prompt_ids)),
            self._parameters(row),
            f"row-{next(self._rows)}",
            lora_request=request,
        )
        # Closed with this iterator, not when the garbage collector comes by: that ends vLLM's request.
        async with contextlib.aclosing(stream) as outputs:
            async for output in outputs:
                yield self._tokens(row, output)

    def depth(self) -> tuple[int, int]:
        """vLLM's own count of rows not finished; beyond `max_batch_size` they wait."""
        rows = self._llm.get_num_unfinished_requests()
        return min(rows, self._max_batch_size), max(0, rows - self._max_batch_size)

    def check(self) -> None:
        """Raises `RuntimeError` where a process of vLLM's has died."""
        if self._llm.errored:
            raise RuntimeError("the process that runs the model has ended") from self._llm.dead_error

    async def close(self) -> None:
        await asyncio.to_thread(self._llm.shutdown)

    def _check_row(self, row: Row) -> None:
        # vLLM checks ids by its tokenizer, which is left out here; one that is not there would end its process.
        vocabulary = self._layout.vocab_size
        if not row.prompt_ids or max(row.prompt_ids) >= vocabulary or min(row.prompt_ids) < 0:
            raise RequestError(
                "invalid_value", f"the prompt's token ids are not all from 0 to {vocabulary - 1}", "prompt"
            )
        if len(row.prompt_ids) + row.sampling.max_new_tokens > self.max_length:
            raise RequestError(
                "context_length_exceeded",
                f"context_length_exceeded: {len(row.prompt_ids)} tokens of the prompt and {row.sampling.max_new_tokens} new "
                f"ones are more than {self.max_length}",
            )
        if row.adapter is not None and row.scale != 1:
            raise RequestError("invalid_value", f"scale is {row.scale}, and vllm applies adapters at 1 only", "scale")
        if row.adapter is not None and row.adapter not in self._adapters:
            raise RequestError("unavailable", "the adapter is not loaded any more")

    def _parameters(self, row: Row) -> "SamplingParams":
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        sampling = row.sampling
        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            repetition_penalty=sampling.repetition_penalty,
            # To vLLM, -1 is no seed at all.
            seed=sampling.seed % 2**63,
            max_tokens=max(1, sampling.max_new_tokens),
            stop_token_ids=sorted(self._ends),
            logprobs=row.logprobs,
            prompt_logprobs=(row.logprobs or 0) if row.prompt_logprobs else None,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )

    def _tokens(self, row: Row, output: "RequestOutput") -> Tokens:
        [completion] = output.outputs
        ids, reason = tuple(completion.token_ids), completion.finish_reason
        scored: tuple[Scored, ...] = ()
        if reason not in (None, "stop", "length"):
            raise RuntimeError(f"vllm ended a row with `{reason}`")
        if row.logprobs is not None:
            scored = tuple(map(_scored, ids, completion.logprobs, itertools.repeat(row.logprobs)))
        if row.sampling.max_new_tokens == 0:
            ids, scored, reason = (), (), "length"
        elif reason == "stop":
            ids, scored = ids[:-1], scored[:-1]
        prompt = zip(row.prompt_ids, output.prompt_logprobs or (), strict=False)
        return Tokens(ids, scored, tuple(_scored(id_, found, row.logprobs or 0) for id_, found in prompt), reason)


def _scored(token_id: int, found: dict[int, Any] | None, count: int) -> Scored:
    """One of vLLM's dictionaries: the likeliest `count`, ranked from 1, and the token itself where it is not one of them."""
    if found is None:
        return Scored(token_id, None, ())
    likeliest = sorted((each.rank, other, each.logprob) for other, each in found.items() if each.rank <= count)
    return Scored(token_id, found[token_id].logprob, tuple((other, logprob) for _, other, logprob in likeliest))


def _room(rank: int) -> int:
    """The smallest rank that vLLM makes room for and that holds `rank`."""
    if rank > RANKS[-1]:
        raise ConfigError(
            f"`max_lora_rank` is {rank}, and vllm takes up to {RANKS[-1]}\nhint: use `--engine transformers`"
        )
    return next(room for room in RANKS if room >= rank)


class _Layout:
    """The base without weights, on torch's meta device: what vLLM does not tell of it, and does not check about an adapter.

    vLLM takes an adapter that is too small for its layers and leaves the rest at zero.
    """

    def __init__(self, name: str, max_rank: int, trust_remote_code: bool) -> None:
        import torch
        from transformers import AutoModelForCausalLM, GenerationConfig

        from raystyle import models, multi_lora

        config = models.load_config(name, trust_remote_code)
        auto: Any = AutoModelForCausalLM
        with torch.device("meta"):
            self.model = auto.from_config(config, trust_remote_code=trust_remote_code)
        with contextlib.suppress(OSError):  # a model without one, whose config says it all
            self.model.generation_config = GenerationConfig.from_pretrained(name)
        text = config.get_text_config()
        self.positions: int | None = getattr(text, "max_position_embeddings", None)
        self.vocab_size: int = self.model.get_input_embeddings().weight.shape[0]
        self.max_rank = max_rank
        linears = {path: each for path, each in self.model.named_modules() if isinstance(each, torch.nn.Linear)}
        head = self.model.get_output_embeddings()
        # An adapter on the layer that gives the logits, even room for one, ends vLLM's process on a CPU when a row asks for
        # the prompt's log-probabilities.
        self.head = next((path for path, each in linears.items() if each is head), None)
        self.targets = sorted({path.rsplit(".", 1)[-1] for path in linears if path != self.head})
        self.lora = multi_lora.MultiLora(self.model)
        self.shapes = models.read_shapes(name, trust_remote_code)

    def cache_bytes(self, tokens: int) -> int:
        """Keys and values of so many tokens in float32."""
        shapes = self.shapes
        return tokens * 2 * shapes.num_layers * shapes.num_kv_heads * shapes.head_dim * 4

    def check(self, directory: str) -> None:
        """Raises `ModelError` for an adapter that does not fit the base, or that vLLM would serve as something else."""
        with open(os.path.join(directory, adapters.CONFIG), encoding="utf-8") as file:
            config = json.load(file)
        for setting in UNREAD:
            if config.get(setting):
                raise ModelError(
                    f"the adapter `{directory}` has `{setting}`, which vllm does not know\n"
                    "hint: serve it with `--engine transformers`"
                )
        self.lora.load("checked", directory)
        rank = self.lora.ranks["checked"]
        has_head = self.head in self.lora.layers and "checked" in self.lora.layers[self.head].pairs
        self.lora.unload("checked")
        if has_head:
            raise ModelError(
                f"the adapter `{directory}` changes `{self.head}`, which vllm is not let do here\n"
                "hint: serve it with `--engine transformers`"
            )
        if rank > self.max_rank:
            raise ModelError(
                f"the adapter `{directory}` has rank {rank}, and vllm made room for {self.max_rank}\n"
                f"hint: start with `--max_lora_rank {rank}`"
            )
