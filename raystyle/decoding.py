"""The decode loop itself: rows come and go between steps, each in a slot of one cache.

A slot holds a row's keys and values from the left; rows of unequal length stand side by side, and a mask hides what is
beyond each row's end. So a row that joins is computed alone (with the others that join) and disturbs nobody, one that
leaves makes its slot free, and nothing is copied but the last row, into the slot that became free. Running rows stand in
slots 0 to B-1, which makes the batch a view of the cache.

Rows that continue one prompt, as the choices of a request do, have it computed once: its keys are copied to their slots.

B rows, q fresh tokens of each, L keys, V vocabulary.
"""

import inspect
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from raystyle.drawing import RANDOM_BITS, draw, penalise
from raystyle.errors import ModelError
from raystyle.generation import Row, Scored
from raystyle.slots import SlotCache, in_steps

# A prompt is computed at most so many tokens at a time: as long as running rows wait for a new one.
PREFILL_TOKENS = 2048
# Of a prompt whose tokens are scored, fewer: their logits are of the whole vocabulary, 128 MB in fp32 for 256 of 128,256.
SCORED_TOKENS = 256


Prompt = tuple[tuple[int, ...], str | None, float, int | None, bool]


class Slot:
    """A row on its way: its tokens, where its keys are, how far it is. Equal only to itself."""

    def __init__(self, row: Row) -> None:
        self.row = row
        self.ids = list(row.prompt_ids)
        self.index = -1  # of its slot in the cache
        self.new = 0  # tokens drawn
        self.left = False
        self.is_broken = False  # its keys and values may not be finite
        self.prompt_scored: list[Scored] = []
        self.seen_V: torch.Tensor | None = None  # which tokens it has had, where that matters
        # All of a row's random numbers come from its own seed, before anything else does.
        own = torch.Generator().manual_seed(_within_32_bits(row.sampling.seed))
        self.random = torch.randint(2**RANDOM_BITS, (max(row.sampling.max_new_tokens, 1),), generator=own).tolist()

    @property
    def prompt(self) -> Prompt:
        """What rows have in common whose prompts' keys, logits and scores are the same."""
        row = self.row
        return (
            row.prompt_ids,
            row.adapter,
            row.scale,
            row.logprobs if row.prompt_logprobs else None,
            row.prompt_logprobs,
        )

    @property
    def most(self) -> int:
        """Tokens it may come to."""
        return len(self.row.prompt_ids) + self.row.sampling.max_new_tokens


class Step(NamedTuple):
    """What a row gained: a token (None where it ended without one), and the reason if that was the last."""

    slot: Slot
    token: int | None
    scored: Scored | None = None
    finish_reason: Literal["stop", "length"] | None = None
    error: str | None = None


class Decoder:
    """Rows of one model, each with its own sampling, that join and leave between steps. Not for several threads.

    `choose` is told the rows of each forward pass, and how many tokens of each, before it runs: who decodes with several
    adapters sets them there. `max_tokens` bounds the rows that run times the length that the longest of them may come to, for
    so much is kept at most; who knows the memory sets it. A row alone may always run. Rows longer than `max_length` would change
    each other; None: of any length they do not.
    Raises `ModelError` for a model whose layers keep something other than keys and values.
    """

    def __init__(
        self,
        model: Any,
        ends: Iterable[int],
        *,
        max_rows: int,
        prefill_tokens: int = PREFILL_TOKENS,
        choose: Callable[[Sequence[Row], int], None] | None = None,
    ) -> None:
        self.model, self.ends, self.max_rows, self.prefill_tokens = model, set(ends), max_rows, prefill_tokens
        self.choose = choose
        self.max_tokens: float = math.inf
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.config = base.config.get_text_config()
        kinds = set(getattr(self.config, "layer_types", None) or ["full_attention"])
        if unknown := kinds - {"full_attention", "sliding_attention"} or (
            {"recurrent state"} if getattr(base, "_is_stateful", False) else set()
        ):
            raise ModelError(
                f"a `{self.config.model_type}` model has layers of the kind {', '.join(sorted(unknown))}, and this decode loop "
                "knows full and sliding attention\nhint: serve it with --engine vllm"
            )
        self.window: int | None = getattr(self.config, "sliding_window", None)
        if kinds == {"full_attention"} and getattr(self.config, "layer_types", None):
            self.window = None  # some configs keep a window that no layer has
        self.by_kind = kinds != {"full_attention"} and getattr(self.config, "layer_types", None) is not None
        self.max_length = _even_length(self.config)
        self.attention = str(self.config._attn_implementation)
        self.device = next(model.parameters()).device
        # Of most tokens only the last one's logits are wanted: 64 prompts of 200 tokens times 128,256 words are 3 GB.
        self.keeps_some = "logits_to_keep" in inspect.signature(base.forward).parameters
        self.waiting: deque[Slot] = deque()
        self.running: list[Slot] = []
        self.group: list[Slot] = []  # rows whose prompts are being computed
        self.leaders: list[Slot] = []  # of those with equal prompts the first, in the order of their slots
        self.done = 0  # tokens of each prompt that are
        self.cache = SlotCache()

    def admit(self, row: Row) -> Slot:
        """Let a row wait for its turn."""
        slot = Slot(row)
        self.waiting.append(slot)
        return slot

    def drop(self, slot: Slot) -> None:
        """Let a row leave; its slot is free at the next step. One that has ended or left already is no matter."""
        slot.left = True
        if slot in self.waiting:
            self.waiting.remove(slot)

    @property
    def is_idle(self) -> bool:
        return not (self.running or self.group or self.waiting)

    @torch.inference_mode()
    def advance(self) -> list[Step]:
        """Prompts while some wait and there is room, then tokens: the quickest order where nobody watches."""
        self._compact()
        return self.prefill() if self.group or self._next_group() else self.step()

    def clear(self) -> list[Slot]:
        """Forget all rows and their keys; returns them. For after an error, when nobody knows what the cache holds."""
        rows = [*self.running, *self.group, *self.waiting]
        self.running, self.group, self.done = [], [], 0
        self.waiting.clear()
        self.cache.empty()
        return rows

    @torch.inference_mode()
    def drop_prompts(self) -> list[Slot]:
        """Forget the rows whose prompts are being computed; returns them. For after an error in `prefill`, which has written to
        nobody else's slots, so that running rows go on."""
        group, self.group, self.done = self.group, [], 0
        if self.running:
            self.cache.agree()
        else:
            self.cache.empty()
        for slot in group:
            slot.left = True
            self.cache.wipe(slot.index)
        return group

    # ── prompts ──

    @torch.inference_mode()
    def prefill(self) -> list[Step]:
        """Compute the next waiting prompts, or the next part of a long one; first tokens where that was all of it."""
        self._compact()
        if not self.group and not self._next_group():
            return []
        leaders = self.leaders
        rows = [slot.row for slot in leaders]
        longest = max(len(row.prompt_ids) for row in rows)
        fresh = min(longest - self.done, max(1, self._most_tokens(leaders) // len(leaders)))
        ids_Bq = self._padded([row.prompt_ids[self.done : self.done + fresh] for row in rows], fresh)
        self._make_room(self.done + fresh)
        place = self.cache.place
        place.first, place.count = leaders[0].index, len(leaders)
        place.start, place.keys, place.positions_B = self.done, self.done + fresh, None
        positions_q = torch.arange(self.done, self.done + fresh, device=self.device)
        scores_all = any(row.prompt_logprobs for row in rows)
        lasts = [len(row.prompt_ids) - 1 - self.done for row in rows]
        is_last = self.done + fresh == longest
        kept = sorted({last for last in lasts if last < fresh}) if is_last else [fresh - 1]
        keep: Any = 0 if scores_all else 1 if kept == [fresh - 1] else torch.tensor(kept, device=self.device)
        logits_BqV = self._forward(rows, ids_Bq, positions_q.expand(len(rows), -1), positions_q[None], keep)
        if scores_all:
            for slot, logits_qV in zip(leaders, logits_BqV, strict=True):
                if slot.row.prompt_logprobs:
                    self._score_prompt(slot, logits_qV, fresh)
        self.done += fresh
        if not is_last:
            return []
        at = lasts if logits_BqV.shape[1] == fresh else [kept.index(last) for last in lasts]
        last_BV = torch.stack([logits_BqV[row, column] for row, column in enumerate(at)]).float()
        return self._begin(last_BV)

    def _begin(self, last_BV: torch.Tensor) -> list[Step]:
        """First tokens of the group's rows, by the logits behind its leaders' prompts."""
        number_of = {slot.prompt: number for number, slot in enumerate(self.leaders)}
        numbers = [number_of[slot.prompt] for slot in self.group]
        steps = self._draw(self.group, last_BV[numbers])
        for slot, number in zip(self.group, numbers, strict=True):
            leader = self.leaders[number]
            if slot is not leader:
                self.cache.copy(leader.index, slot.index, len(slot.row.prompt_ids))
                slot.prompt_scored = list(leader.prompt_scored)
        for slot in self.group:
            if slot.is_broken:
                self.cache.wipe(slot.index)  # before it moves, for nothing is wiped where it came from
            self._move(slot, len(self.running))
            self.running.append(slot)
        self.group, self.done = [], 0
        return steps

    def _next_group(self) -> bool:
        """Prompts from the front of the queue that fit together into one pass, or one long one alone."""
        room = self.max_rows - len(self.running)
        lengths: dict[Prompt, int] = {}
        while self.waiting and len(self.group) < room:
            slot = self.waiting[0]
            together, longer = [*self.group, slot], lengths | {slot.prompt: len(slot.row.prompt_ids)}
            is_new = slot.prompt not in lengths
            if self.group and is_new and max(longer.values()) * len(longer) > self._most_tokens(together):
                break
            slots = [*self.running, *together]
            if len(slots) > 1 and len(slots) * _most(slots) > self.max_tokens:
                break
            lengths = longer
            self.group.append(self.waiting.popleft())
        first_of: dict[Prompt, Slot] = {}
        for slot in self.group:
            first_of.setdefault(slot.prompt, slot)
        self.leaders = list(first_of.values())  # side by side
        self.group = [*self.leaders, *(slot for slot in self.group if first_of[slot.prompt] is not slot)]
        for number, slot in enumerate(self.group):
            slot.index = len(self.running) + number
        return bool(self.group)

    def _most_tokens(self, group: Sequence[Slot]) -> int:
        """Of prompts, in one pass."""
        scores = any(slot.row.prompt_logprobs for slot in group)
        return min(self.prefill_tokens, SCORED_TOKENS) if scores else self.prefill_tokens

    def _make_room(self, length: int) -> None:
        """Room for so many keys of each row."""
        slots = [*self.running, *self.group]
        if not self.running and not self.done and not self.cache.has_room(len(self.group), length):
            self.cache.empty()  # nothing to copy
        rows = 1 + max(slot.index for slot in slots)
        self.cache.make_room(rows, length, _most(slots), max_rows=self.max_rows, max_tokens=self.max_tokens)

    def _score_prompt(self, slot: Slot, logits_qV: torch.Tensor, fresh: int) -> None:
        """What the model thought of each token of a prompt; of its first it had nothing to go by."""
        ids = slot.row.prompt_ids
        if self.done == 0:
            slot.prompt_scored.append(Scored(ids[0], None, ()))
        targets = ids[self.done + 1 : self.done + fresh + 1]
        if targets:
            scores = score(logits_qV[: len(targets)].float(), list(targets), slot.row.logprobs or 0)
            slot.prompt_scored += scores

    # ── tokens ──

    @torch.inference_mode()
    def step(self) -> list[Step]:
        """One more token for every running row."""
        self._compact()
        if not self.running:
            return []
        place, lengths = self.cache.place, [len(slot.ids) - 1 for slot in self.running]
        self._make_room(max(lengths) + 1)
        place.first, place.count, place.keys = 0, len(self.running), max(lengths) + 1
        positions_B = torch.tensor(lengths, device=self.device)
        if min(lengths) == max(lengths):
            place.start, place.positions_B = lengths[0], None
        else:
            place.slots_B, place.positions_B = torch.arange(len(lengths), device=self.device), positions_B
        ids_B1 = torch.tensor([[slot.ids[-1]] for slot in self.running], device=self.device)
        rows = [slot.row for slot in self.running]
        mask_positions = positions_B[:1, None] if place.positions_B is None else positions_B[:, None]
        logits_B1V = self._forward(rows, ids_B1, positions_B[:, None], mask_positions, 1)
        return self._draw(self.running, logits_B1V[:, -1].float())

    def _forward(
        self, rows: list[Row], ids_Bq: torch.Tensor, positions_Bq: torch.Tensor, mask_positions: torch.Tensor, keep: Any
    ) -> torch.Tensor:
        if self.choose is not None:
            self.choose(rows, ids_Bq.shape[1])
        output = self.model(
            input_ids=ids_Bq,
            attention_mask=self._mask(mask_positions),
            position_ids=positions_Bq,
            past_key_values=self.cache,
            use_cache=True,
            **({"logits_to_keep": keep} if self.keeps_some else {}),
        )
        logits: torch.Tensor = output.logits
        if not self.keeps_some and isinstance(keep, torch.Tensor):
            return logits[:, keep]
        return logits if self.keeps_some or keep == 0 else logits[:, -keep:]

    def _mask(self, positions: torch.Tensor) -> Any:
        """Which keys each fresh token sees (B or 1, 1, q, L); None where it sees all up to its own, which is faster."""
        keys, fresh = self.cache.place.keys, positions.shape[1]
        is_even = positions.shape[0] == 1
        windowed = self.window is not None and keys > self.window
        if self.attention.startswith("flash"):
            if not is_even:
                raise ModelError(
                    "rows of unequal length cannot be decoded together by FlashAttention\nhint: load with sdpa"
                )
            return None  # it aligns causality with the last key, and knows the window
        if is_even and not windowed and fresh in (1, keys):
            return None
        seen_BqL = torch.arange(keys, device=self.device) <= positions[..., None]
        near_BqL = seen_BqL
        if self.window is not None and windowed:
            near_BqL = seen_BqL & (torch.arange(keys, device=self.device) > positions[..., None] - self.window)
        full, near = self._as_mask(seen_BqL), self._as_mask(near_BqL)
        if self.by_kind:
            return {"full_attention": full, "sliding_attention": near}
        return near

    def _as_mask(self, seen_BqL: torch.Tensor) -> torch.Tensor:
        seen = seen_BqL[:, None]
        if self.attention != "eager":
            return seen
        dtype = next(self.model.parameters()).dtype
        return torch.zeros(seen.shape, dtype=dtype, device=self.device).masked_fill(~seen, torch.finfo(dtype).min)

    def _draw(self, slots: Sequence[Slot], logits_BV: torch.Tensor) -> list[Step]:
        """A token for each slot, and what becomes of the slot."""
        samplings = [slot.row.sampling for slot in slots]
        raw_BV = logits_BV
        if penalised := [i for i, sampling in enumerate(samplings) if sampling.repetition_penalty != 1]:
            seen = torch.stack([self._seen(slots[i], logits_BV.shape[1]) for i in penalised])
            penalties = torch.tensor([samplings[i].repetition_penalty for i in penalised], device=self.device)
            rows = torch.tensor(penalised, device=self.device)
            logits_BV = logits_BV.index_copy(0, rows, penalise(logits_BV[rows], seen, penalties))
        drawn = draw(
            logits_BV,
            self._column([sampling.temperature for sampling in samplings]),
            self._column([sampling.top_p for sampling in samplings]),
            torch.tensor([slot.random[min(slot.new, len(slot.random) - 1)] for slot in slots], device=self.device),
            torch.tensor([sampling.top_k for sampling in samplings], device=self.device),
        ).tolist()
        asking = [i for i, slot in enumerate(slots) if slot.row.logprobs is not None and drawn[i] >= 0]
        counts = [slots[i].row.logprobs or 0 for i in asking]
        found = score(raw_BV[asking], [drawn[i] for i in asking], max(counts)) if asking else []
        scored = {i: each._replace(top=each.top[:count]) for i, count, each in zip(asking, counts, found, strict=True)}
        return [self._take(slot, drawn[i], scored.get(i)) for i, slot in enumerate(slots)]

    def _seen(self, slot: Slot, vocabulary: int) -> torch.Tensor:
        """Which tokens a row has had (V): from step to step it is one more at most."""
        if slot.seen_V is None:
            slot.seen_V = torch.zeros(vocabulary, dtype=torch.bool, device=self.device)
            slot.seen_V[slot.ids] = True
        slot.seen_V[slot.ids[-1]] = True
        return slot.seen_V

    def _column(self, values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self.device)

    def _take(self, slot: Slot, token: int, scored: Scored | None) -> Step:
        if token == -1:
            slot.left = slot.is_broken = True
            return Step(slot, None, error=f"the model's logits are not finite at new token {slot.new + 1}")
        if slot.row.sampling.max_new_tokens <= 0:
            slot.left = True
            return Step(slot, None, finish_reason="length")
        if token in self.ends:
            slot.left = True
            return Step(slot, None, finish_reason="stop")
        slot.ids.append(token)
        slot.new += 1
        is_last = slot.new >= slot.row.sampling.max_new_tokens
        slot.left = slot.left or is_last
        return Step(slot, token, scored, "length" if is_last else None)

    # ── slots ──

    def _compact(self) -> None:
        """Give the slots of rows that left to the last ones, so that running rows stand side by side."""
        if all(slot.left for slot in self.group):
            for slot in self.group:
                self.cache.wipe(slot.index)
            self.group, self.done = [], 0
        for index in [i for i, slot in enumerate(self.running) if slot.left][::-1]:
            if self.running[index].is_broken:
                self.cache.wipe(index)
            last = self.running.pop()
            if index < len(self.running):
                self._move(last, index)
                self.running[index] = last

    def _move(self, slot: Slot, index: int) -> None:
        if slot.index != index:
            self.cache.copy(slot.index, index, len(slot.ids))
            slot.index = index

    def _padded(self, rows: Sequence[Sequence[int]], width: int) -> torch.Tensor:
        """Ids (B, width), filled up with zeros."""
        return torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in rows], device=self.device)


def _even_length(config: Any) -> int | None:
    """Up to where rotary embeddings of the kind `longrope` turn all rows alike: transformers takes other frequencies for a whole
    batch once one of its rows is longer. (Those of the kind `dynamic` do so beyond the config's positions.)"""
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [
        rope,
        *(kind for kind in rope.values() if isinstance(kind, dict)),
    ]  # one for all layers, or one for each kind
    lengths = [kind["original_max_position_embeddings"] for kind in kinds if kind.get("rope_type") == "longrope"]
    return min(lengths, default=None)


def _within_32_bits(seed: int) -> int:
    """What torch's generator on the CPU takes of a seed: of a larger one it would take the lower bits alone, and 7 and 7 + 2**32
    would give the same text."""
    return seed if seed < 1 << 32 else int(np.random.SeedSequence(seed).generate_state(1)[0])


def _most(slots: Sequence[Slot]) -> int:
    """Keys of each row that there must be room for in the end."""
    return in_steps(max(slot.most for slot in slots))


def score(logits_BV: torch.Tensor, tokens: list[int], count: int) -> list[Scored]:
    """The log-probabilities of tokens and of the `count` likeliest at their place, by the model's own distribution."""
    logprobs_BV = torch.log_softmax(logits_BV, dim=-1)
    own = logprobs_BV.gather(1, torch.tensor(tokens, device=logits_BV.device)[:, None])[:, 0].tolist()
    if not count:
        return [Scored(token, logprob, ()) for token, logprob in zip(tokens, own, strict=True)]
    best = logprobs_BV.topk(min(count, logprobs_BV.shape[1]))
    return [
        Scored(token, logprob, tuple(zip(ids, values, strict=True)))
        for token, logprob, ids, values in zip(tokens, own, best.indices.tolist(), best.values.tolist(), strict=True)
    ]
