"""The embedded engine: one base in transformers, its adapters by `multi_lora`, rows by `decoding`. The default, and on a CPU
the faster one.

One thread owns the model. It alternates between prompts that came in and one more token for every running row, so that a
row may join or leave between any two steps; what others want of it goes through a queue that it looks at in between.
"""

import asyncio
import contextlib
import logging
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

from raystyle.errors import ConfigError, ModelError
from raystyle.generation import Row, Sampling, Scored
from raystyle.serving.contract import LEAST_EFFECT, LEAST_EFFECT_16_BITS, FinishReason, Tokens
from raystyle.serving.errors import RequestError

LOG = logging.getLogger(__name__)
# How many tokens of prompts are computed while running rows wait: a fraction of a second on either.
PREFILL_TOKENS_CPU, PREFILL_TOKENS_GPU = 512, 8192
# How much of the memory that is free beside the model keys and values may take: the rest is for adapters and a pass's own, and
# on a CPU for others.
CACHE_SHARE = {"cuda": 0.8, "cpu": 0.5}
# After so many failures in a row it is not the requests: a CUDA device that has failed once, for one, stays unusable.
MAX_FAILURES = 3


class _Stream:
    """What a row gained and its reader has not taken yet; several steps' worth come as one where the reader is slower."""

    def __init__(self, row: Row) -> None:
        self.row = row
        self.loop = asyncio.get_running_loop()
        self.ready = asyncio.Event()
        self.ids: list[int] = []
        self.scored: list[Scored] = []
        self.prompt_scored: list[Scored] = []
        self.finish_reason: FinishReason | None = None
        self.error: Exception | None = None
        self.slot: Any = None  # the model's thread knows it by this

    def take(self) -> Tokens:
        found = Tokens(tuple(self.ids), tuple(self.scored), tuple(self.prompt_scored), self.finish_reason)
        self.ids, self.scored, self.prompt_scored = [], [], []
        self.ready.clear()
        return found


class TransformersEngine:
    """`contract.Engine` on a model of transformers. Loads the model when made.

    Raises `ModelError` for a model that it cannot run, and `ConfigError` where a GPU is asked for and there is none.
    """

    name = "transformers"
    can_scale = True

    def __init__(
        self,
        model: str,
        tokenizer: str | None = None,
        *,
        max_length: int,
        max_batch_size: int,
        use_gpu: bool | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        import torch

        from raystyle import generation, models, multi_lora, tokens
        from raystyle.decoding import Decoder

        device = torch.device("cpu") if use_gpu is False else models.auto_device()
        if use_gpu and device.type == "cpu":
            raise ConfigError(
                "`use_gpu` is true, and torch finds no GPU that it can use in the model's process\n"
                "hint: `--use_gpu false`, or a driver and a build of torch that fit each other (`raystyle doctor`)"
            )
        dtype = models.auto_dtype(device)
        self.least_effect = LEAST_EFFECT if dtype == torch.float32 else LEAST_EFFECT_16_BITS
        base = models.load_base(model, dtype=dtype, attn_implementation=None, trust_remote_code=trust_remote_code)
        network: Any = base.to(device).eval()  # type: ignore[arg-type]
        known = getattr(network.config.get_text_config(), "max_position_embeddings", None)
        self.max_length = min(max_length, known or max_length)
        self.vocab_size = network.get_input_embeddings().weight.shape[0]
        self.lora = multi_lora.MultiLora(network)
        self.decoder = Decoder(
            network,
            generation.end_ids(network, tokens.load_tokenizer(tokenizer or model, trust_remote_code)),
            max_rows=max_batch_size,
            prefill_tokens=PREFILL_TOKENS_GPU if device.type == "cuda" else PREFILL_TOKENS_CPU,
            choose=self.lora.choose,
        )
        self.max_length = min(self.max_length, self.decoder.max_length or self.max_length)
        self._rehearse()
        self._share_memory(models.free_memory(device), CACHE_SHARE[device.type])
        self._asked: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._streams: dict[Any, _Stream] = {}
        self._loaded: set[str] = set()
        self._closing = self._has_ended = False
        self._failures = 0  # of the model, one after another
        self._thread = threading.Thread(target=self._run, name="raystyle-model", daemon=True)
        self._thread.start()

    def _rehearse(self) -> None:
        """Two rows of unequal length, one token each: a model that cannot do that says so now and not to a client."""
        try:
            for length in (2, 5):
                self.decoder.admit(Row((0,) * length, Sampling(max_new_tokens=2, temperature=0)))
            while not self.decoder.is_idle:
                self.decoder.advance()
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise ModelError(
                f"the embedded engine cannot run a `{self.decoder.config.model_type}` model: {reason}\n"
                "hint: `--engine vllm`, or merge the adapter by `raystyle export` and serve that elsewhere"
            ) from error

    def _share_memory(self, free: int, share: float) -> None:
        tokens = int(free * share / self.decoder.cache.bytes_per_token)
        if tokens < self.max_length:
            raise ModelError(
                f"{share:.0%} of the free memory ({free / 1e9:.1f} GB) hold the keys and values of {tokens} tokens, and `max_length` "
                f"lets a row have {self.max_length}\nhint: `--max_length {tokens}`, or a device with more memory"
            )
        self.decoder.max_tokens = tokens

    # ── what others call, on their event loop ──

    async def load(self, digest: str, directory: str) -> None:
        from raystyle import multi_lora

        # Read here and not on the model's thread, on which every running row would wait.
        config, tensors = await asyncio.to_thread(multi_lora.read, directory)
        await self._on_thread(lambda: self.lora.put(digest, config, tensors))
        self._loaded.add(digest)

    async def unload(self, digest: str) -> None:
        self._loaded.discard(digest)
        await self._on_thread(lambda: self._unload(digest))

    async def generate(self, row: Row) -> AsyncGenerator[Tokens, None]:
        self._check_row(row)
        stream = _Stream(row)
        self._ask(lambda: self._admit(stream))
        try:
            while True:
                await stream.ready.wait()
                if stream.error is not None:
                    raise stream.error
                found = stream.take()
                yield found
                if found.finish_reason is not None:
                    return
        finally:
            if stream.finish_reason is None and stream.error is None:
                self._asked.put(lambda: self._drop(stream))

    def depth(self) -> tuple[int, int]:
        # Read beside the model's thread: copies, which are whole.
        decoder = self.decoder
        running = sum(not slot.left for slot in [*decoder.running, *decoder.group])
        return running, len(decoder.waiting) + self._asked.qsize()

    def check(self) -> None:
        if not self._thread.is_alive():
            raise RuntimeError("the thread that runs the model has ended")
        if self._failures >= MAX_FAILURES:
            raise RuntimeError(f"the model has failed {self._failures} times in a row")

    async def close(self) -> None:
        self._closing = True
        self._asked.put(lambda: None)  # wakes it
        await asyncio.to_thread(self._thread.join, 30)

    def _check_row(self, row: Row) -> None:
        if not row.prompt_ids or max(row.prompt_ids) >= self.vocab_size or min(row.prompt_ids) < 0:
            raise RequestError(
                "invalid_value", f"the prompt's token ids are not all from 0 to {self.vocab_size - 1}", "prompt"
            )
        if len(row.prompt_ids) + row.sampling.max_new_tokens > self.max_length:
            raise RequestError(
                "context_length_exceeded",
                f"context_length_exceeded: {len(row.prompt_ids)} tokens of the prompt and {row.sampling.max_new_tokens} new "
                f"ones are more than {self.max_length}",
            )
        if row.adapter is not None and row.adapter not in self._loaded:
            raise _not_loaded()

    def _ask(self, work: Callable[[], None]) -> None:
        """Let the model's thread do something, which it does to its end; after that there is nobody to wait for."""
        self._asked.put(work)
        if self._has_ended:
            raise _has_ended()

    async def _on_thread(self, work: Callable[[], None]) -> None:
        loop, done = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()

        def settle(error: Exception | None) -> None:
            if not done.cancelled():
                done.set_result(None) if error is None else done.set_exception(error)

        def run() -> None:
            failed: Exception | None = None
            try:
                work()
            except Exception as error:
                failed = error
            with contextlib.suppress(RuntimeError):  # a loop that has been closed
                loop.call_soon_threadsafe(settle, failed)

        self._ask(run)
        await done

    # ── the model's thread ──

    def _run(self) -> None:
        decoder = self.decoder
        try:
            while not self._closing:
                self._answer()
                # A prefill touches no running row. What a step that failed has left behind nobody knows: every row ends.
                for advance, forget in ((decoder.prefill, decoder.drop_prompts), (decoder.step, decoder.clear)):
                    try:
                        steps = advance()
                    except Exception as error:
                        self._fail(error, forget())
                    else:
                        self._failures = 0 if steps else self._failures
                        self._deliver(steps)
        finally:
            self._has_ended = True
            with contextlib.suppress(queue.Empty):
                while True:
                    self._asked.get_nowait()()
            self._post([(stream, None, _has_ended()) for stream in self._streams.values()])

    def _answer(self) -> None:
        """Do what was asked; wait for it where there is nothing else to do."""
        with contextlib.suppress(queue.Empty):
            if self.decoder.is_idle:
                self._asked.get()()
            while not self._closing:
                self._asked.get_nowait()()

    def _admit(self, stream: _Stream) -> None:
        if stream.row.adapter is not None and stream.row.adapter not in self.lora.ranks:
            self._post([(stream, None, _not_loaded())])
            return
        try:
            stream.slot = self.decoder.admit(stream.row)
        except Exception:
            LOG.exception("a row could not be admitted")
            self._post([(stream, None, RequestError("internal_error", "the row could not be admitted"))])
            return
        self._streams[stream.slot] = stream

    def _unload(self, digest: str) -> None:
        # Who unloads sees to it that none of its rows runs; one that does could only go on as something else.
        left = [stream for stream in self._streams.values() if stream.row.adapter == digest]
        for stream in left:
            self._drop(stream)
        self._post([(stream, None, _not_loaded()) for stream in left])
        self.lora.unload(digest)

    def _drop(self, stream: _Stream) -> None:
        if self._streams.pop(stream.slot, None) is not None:
            self.decoder.drop(stream.slot)

    def _deliver(self, steps: Sequence[Any]) -> None:
        found: list[tuple[_Stream, Any, Exception | None]] = []
        for step in steps:
            stream = self._streams.get(step.slot)
            if stream is None:
                continue
            if step.finish_reason or step.error:
                del self._streams[step.slot]
            found.append((stream, step, ModelError(step.error) if step.error else None))
        self._post(found)

    def _fail(self, error: Exception, slots: Sequence[Any]) -> None:
        import torch

        LOG.error("the model failed", exc_info=error)
        reason = RequestError("internal_error", str(error) if isinstance(error, ModelError) else "the model failed")
        if isinstance(error, torch.OutOfMemoryError):
            torch.cuda.empty_cache()
            reason = RequestError("unavailable", "the memory is too small for this beside what runs now")
        elif not isinstance(error, ModelError):  # which speaks of an adapter
            self._failures += 1
        failed = [self._streams.pop(slot) for slot in slots if slot in self._streams]
        # Who tries an adapter out wants the `ModelError`; to a row with a strength of its own it would be that one's fault.
        is_told = isinstance(error, ModelError)
        self._post([(stream, None, error if is_told and stream.row.scale == 1 else reason) for stream in failed])

    def _post(self, found: list[tuple[_Stream, Any, Exception | None]]) -> None:
        """Hand what rows gained to their readers: one call into each event loop, whatever their number."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Stream, Any, Exception | None]]] = {}
        for entry in found:
            by_loop.setdefault(entry[0].loop, []).append(entry)
        for loop, entries in by_loop.items():
            with contextlib.suppress(RuntimeError):  # the loop has been closed, and nobody reads any more
                loop.call_soon_threadsafe(_hand_over, entries)


def _not_loaded() -> RequestError:
    return RequestError("unavailable", "the adapter is not loaded any more")


def _has_ended() -> RequestError:
    return RequestError("unavailable", "the model runs no more")


def _hand_over(entries: list[tuple[_Stream, Any, Exception | None]]) -> None:
    for stream, step, error in entries:
        if step is not None:
            if step.token is not None:
                stream.ids.append(step.token)
            if step.scored is not None:
                stream.scored.append(step.scored)
            stream.prompt_scored += step.slot.prompt_scored
            step.slot.prompt_scored = []
            stream.finish_reason = step.finish_reason
        stream.error = error
        stream.ready.set()
