"""One copy of the model and its adapters: prompts in, text out. It runs within Ray Serve or without, as in tests.

A replica looks at `adapters_path` itself. What it finds is loaded and has to prove its effect before a name leads to it; a
request names a digest, which is held as long as it runs, so that nothing is unloaded under it.
"""

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from raystyle import adapters, container, models, storage, tokens
from raystyle.config import ServeConfig, TrainConfig
from raystyle.errors import ModelError, RaystyleError
from raystyle.generation import Row, Sampling, encode
from raystyle.serving.catalogue import MAX_AGE_S
from raystyle.serving.contract import BASE, Card, Delta, Engine, Generation, Listing, Started
from raystyle.serving.errors import RequestError
from raystyle.serving.registry import Candidate, Registry
from raystyle.serving.scratch import Scratch
from raystyle.serving.text import LogprobStream, TextStream

LOG = logging.getLogger(__name__)
# Plain Chinese and English of our own: on its tokens base and adapter are compared.
CANARY = "今日天气阴沉，她把窗子关上，听见远处有人说话。The road went on into the hills, and nobody spoke for a while."
CANARY_TOKENS = 48
# Seconds for which a digest that lost its name stays loaded: who has just seen it in a listing may ask for it still.
NAMELESS_S = MAX_AGE_S + 1.0
# Seconds between two messages of a generation, for each that runs and on one core. A message costs the processes between here
# and the client some 2 ms of a core (bench/serve.py), so that those of all generations take at most an eighth of the machine.
SHARED_PACE_S = 0.016


class Replica:
    """Make one with `await Replica.start(config)`."""

    def __init__(self, config: ServeConfig, tokenizer: Any) -> None:
        linears = models.linears(models.laid_out(config.model_name_or_path, config.trust_remote_code))
        self.config, self.tokenizer = config, tokenizer
        self.engine: Engine
        self.scratch = Scratch()
        self.registry = Registry(
            config.adapters_path,
            self.scratch.path,
            base_identity=models.identity(config.model_name_or_path),
            tokenizer_digest=tokens.tokenizer_digest(tokenizer),
            linears=linears,
            allow_unverified_base=config.allow_unverified_base,
            max_adapters=config.max_adapters,
        )
        self.effects: dict[str, float] = {}  # of the digests that the engine holds
        self.running = 0  # generations
        self.cores = container.cores()
        self._looking = asyncio.Lock()
        self._looks: set[asyncio.Task[None]] = set()
        self._next_look: asyncio.Task[None] | None = None  # it waits for the one that is going on
        self._watch: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, config: ServeConfig) -> "Replica":
        """Load the base, then the adapters that are there, and look for new ones from then on. Raises `ModelError`."""
        name = config.tokenizer_name_or_path or config.model_name_or_path
        tokenizer = await asyncio.to_thread(tokens.load_tokenizer, name, config.trust_remote_code)
        replica = await asyncio.to_thread(cls, config, tokenizer)
        try:
            candidates = await asyncio.to_thread(replica.registry.look)
            replica.engine = await asyncio.to_thread(_engine, config, [candidate.directory for candidate in candidates])
            await replica._take_in(candidates)
        except BaseException:
            replica.scratch.remove()
            raise
        replica._watch = asyncio.create_task(replica._keep_looking())
        return replica

    async def close(self) -> None:
        going_on = [*self._looks, *([self._watch] if self._watch else [])]
        for task in going_on:
            task.cancel()
        await asyncio.gather(*going_on, return_exceptions=True)
        await self.engine.close()
        await asyncio.to_thread(self.scratch.remove)

    # ── adapters ──

    async def listing(self) -> Listing:
        running, waiting = self.engine.depth()
        return Listing(
            cards=(Card(BASE, "base"), *self.registry.cards()),
            engine=self.engine.name,
            max_length=self.engine.max_length,
            can_scale=self.engine.can_scale,
            has_chat_template=bool(getattr(self.tokenizer, "chat_template", None)),
            running=running,
            waiting=waiting,
        )

    async def refresh(self) -> Listing:
        """Look at `adapters_path` now; load and prove what is new, forget what is gone and no longer used.

        It goes on to its end when its caller does not wait for that. One that has not begun is for all who ask meanwhile.
        """
        look = self._next_look
        if look is None:
            look = self._next_look = asyncio.create_task(self._refresh())
            self._looks.add(look)
            look.add_done_callback(self._looks.discard)
        await asyncio.shield(look)
        return await self.listing()

    async def _refresh(self) -> None:
        async with self._looking:
            self._next_look = None
            for digest in self.registry.drained(NAMELESS_S):
                try:
                    self.effects.pop(digest, None)
                    await self.engine.unload(digest)
                    await asyncio.to_thread(self.registry.forget, digest)
                except Exception:  # the next look tries again; what is new must not wait for it
                    LOG.exception("adapter %s could not be unloaded", digest[:12])
            await self._take_in(await asyncio.to_thread(self.registry.look))

    async def _take_in(self, candidates: Sequence[Candidate]) -> None:
        for candidate in candidates:
            try:
                self.registry.admit(candidate, await self._prove(candidate))
            except ModelError as error:
                self.registry.refuse(candidate, str(error))
            except Exception:
                # Not its fault, for all that is known: memory, or another request's failure.
                self.registry.put_off(candidate)
                LOG.exception("adapter `%s` could not be tried, and is not served yet", candidate.name)

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(self.config.refresh_s)
            try:
                await self.refresh()
            except RaystyleError as error:
                LOG.warning("cannot look for adapters now, and serve what is there: %s", error)
            except Exception:
                LOG.exception("looking for adapters failed; what is there goes on being served")

    async def _prove(self, candidate: Candidate) -> float:
        """Load an adapter and compare it with the base on the canary; returns the largest difference, in nats."""
        digest = candidate.digest
        if digest in self.effects:
            return self.effects[digest]
        try:
            await self.engine.load(digest, candidate.directory)
            try:
                # Side by side, so that both are computed in the same batch; where one fails the other ends too.
                async with asyncio.TaskGroup() as group:
                    base, adapted = (group.create_task(self._canary(whose)) for whose in (None, digest))
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from None
            effect = max(abs(own - other) for own, other in zip(adapted.result(), base.result(), strict=True))
            if not effect < float("inf"):
                raise ModelError("with it the model's log-probabilities are not finite")
            if effect < self.engine.least_effect:
                raise ModelError(
                    f"it changes nothing: log-probabilities of a test text move by {effect:.1e} nats at most, and "
                    f"{self.engine.least_effect:.0e} is the least that counts"
                )
        except BaseException:
            await self.engine.unload(digest)
            raise
        self.effects[digest] = effect
        return effect

    async def _canary(self, adapter: str | None) -> list[float]:
        ids = encode(self.tokenizer, CANARY)[: min(CANARY_TOKENS, self.engine.max_length - 1)]
        row = Row(tuple(ids), Sampling(max_new_tokens=0), adapter, logprobs=0, prompt_logprobs=True)
        return [
            scored.logprob
            async for tokens in self.engine.generate(row)
            for scored in tokens.prompt_scored
            if scored.logprob is not None
        ]

    # ── requests ──

    async def generate(self, generation: Generation) -> AsyncGenerator[list[Started | Delta], None]:
        """`Started`, then what each choice gains, in lists of all that came since the last. Raises `RequestError`."""
        ids = await asyncio.to_thread(self._encode, generation.prompt)
        rows = [self._row(generation, ids, sampling) for sampling in generation.samplings]
        if generation.adapter is not None:
            await self._hold(generation.adapter)
        self.running += 1
        try:
            async with contextlib.aclosing(self._run(generation, rows)) as lists:
                async for found in lists:
                    yield found
        except ModelError as error:
            # A row came to nothing: by a strength that the client asked for, or by the model.
            code, param = ("invalid_value", "lora_scale") if generation.scale != 1 else ("internal_error", None)
            raise RequestError(code, str(error), param) from error
        finally:
            self.running -= 1
            if generation.adapter is not None:
                self.registry.release(generation.adapter)

    async def _hold(self, digest: str) -> None:
        try:
            self.registry.hold(digest)
        except RequestError:
            # Another copy of the model may have found it a moment earlier than this one.
            await self.refresh()
            self.registry.hold(digest)

    def _encode(self, prompt: Any) -> tuple[int, ...]:
        if isinstance(prompt, str):
            return tuple(encode(self.tokenizer, prompt))
        if not prompt or isinstance(prompt[0], int):
            return tuple(encode(self.tokenizer, prompt))
        if not getattr(self.tokenizer, "chat_template", None):
            raise RequestError(
                "invalid_value", "this base has no chat template, so it takes no chats: use /v1/completions", "messages"
            )
        messages = [message._asdict() for message in prompt]
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # a template may raise anything, such as for roles that do not alternate
            raise RequestError(
                "invalid_value", f"the chat template refuses these messages: {error}", "messages"
            ) from error
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _row(self, generation: Generation, ids: tuple[int, ...], sampling: Sampling) -> Row:
        room = self.engine.max_length - len(ids)
        if sampling.max_new_tokens > room or room < 0:
            raise RequestError(
                "context_length_exceeded",
                f"context_length_exceeded: the prompt has {len(ids)} tokens and {max(sampling.max_new_tokens, 0)} new ones are "
                f"asked for, which is more than the {self.engine.max_length} that fit",
                "prompt" if room < 1 else "max_tokens",
            )
        if sampling.max_new_tokens < 0:  # as many as fit
            sampling = dataclasses.replace(sampling, max_new_tokens=room)
        scores_prompt = generation.echo and generation.logprobs is not None
        return Row(ids, sampling, generation.adapter, generation.scale, generation.logprobs, scores_prompt)

    async def _run(self, generation: Generation, rows: list[Row]) -> AsyncGenerator[list[Started | Delta], None]:
        # It goes out with the first deltas: a message of its own would cost as much as they do.
        started: list[Started | Delta] = [Started(len(rows[0].prompt_ids))]
        gained: dict[int, Delta] = {}
        ready = asyncio.Event()

        async def follow(number: int, row: Row) -> None:
            try:
                async with contextlib.aclosing(self._choice(generation, number, row)) as deltas:
                    async for delta in deltas:
                        gained[number] = gained[number].and_then(delta) if number in gained else delta
                        ready.set()
            finally:
                ready.set()

        tasks = [asyncio.create_task(follow(number, row)) for number, row in enumerate(rows)]
        try:
            while True:
                await ready.wait()
                ready.clear()
                is_over = all(task.done() for task in tasks)
                for task in tasks:
                    if task.done():
                        task.result()
                if gained:
                    found = [*started, *gained.values()]
                    started.clear()
                    gained.clear()
                    yield found
                if is_over:
                    return
                await asyncio.wait(tasks, timeout=max(generation.pace_s, SHARED_PACE_S / self.cores * self.running))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _choice(self, generation: Generation, number: int, row: Row) -> AsyncGenerator[Delta, None]:
        text, scores = TextStream(self.tokenizer, generation.stop, row.prompt_ids), LogprobStream(self.tokenizer)
        wants_prompt = generation.echo
        async with contextlib.aclosing(self.engine.generate(row)) as found:
            async for tokens_ in found:
                if wants_prompt:
                    wants_prompt = False
                    yield Delta(number, self._prompt_text(generation, row), 0, scores.add(tokens_.prompt_scored))
                before = text.tokens
                piece = text.add(tokens_.ids)
                count = text.tokens - before  # not more, however many came at once
                is_over = tokens_.finish_reason is not None or text.stopped
                if is_over:
                    piece += text.finish()
                reason = "stop" if text.stopped else tokens_.finish_reason
                logprobs = scores.add(tokens_.scored[:count])
                if piece or logprobs or is_over or count:
                    yield Delta(number, piece, count, logprobs, reason)
                if is_over:
                    return

    def _prompt_text(self, generation: Generation, row: Row) -> str:
        if isinstance(generation.prompt, str):
            return generation.prompt
        return str(self.tokenizer.decode(row.prompt_ids, skip_special_tokens=True))

    def check(self) -> None:
        """Raises where the engine can serve no more."""
        self.engine.check()


def _engine(config: ServeConfig, adapters_there: Sequence[str]) -> Engine:
    if config.engine == "vllm":
        from raystyle.serving.engines.vllm import RANKS, VllmEngine

        return VllmEngine(
            config.model_name_or_path,
            config.tokenizer_name_or_path or config.model_name_or_path,
            max_length=config.max_length,
            max_batch_size=config.max_batch_size,
            max_adapters=config.max_adapters,
            max_lora_rank=config.max_lora_rank or min(RANKS[-1], _highest_rank(adapters_there)),
            use_gpu=bool(config.use_gpu),
            tensor_parallel_size=config.tensor_parallel_size,
            trust_remote_code=config.trust_remote_code,
        )
    from raystyle.serving.engines.transformers import TransformersEngine

    return TransformersEngine(
        config.model_name_or_path,
        config.tokenizer_name_or_path,
        max_length=config.max_length,
        max_batch_size=config.max_batch_size,
        use_gpu=config.use_gpu,
        trust_remote_code=config.trust_remote_code,
    )


def _highest_rank(directories: Sequence[str]) -> int:
    """The rank that vllm makes room for: the highest there is, or training's own where there is no adapter yet."""
    ranks = []
    for directory in directories:
        told = storage.read_json(storage.join(directory, adapters.CONFIG))
        ranks += [told["r"], *(told.get("rank_pattern") or {}).values()]
    return max(ranks, default=TrainConfig.lora_r)
