"""The decode loop: rows with their own sampling and seed. What `sample`, checkpoints' samples, style and serving share.

All rows of a batch draw at once, where the model is; one number a row and token comes back. A row's random numbers come
from a generator of its own on the CPU and are turned into tokens by whole-number sums, so that neither the device nor
the rows beside it have a say in what is drawn; what they may change is the rounding of the model's logits.

B rows, T tokens, V vocabulary, K the likeliest few of it.
"""

import dataclasses
import inspect
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from raystyle.errors import ModelError

if TYPE_CHECKING:
    import torch

# Probabilities are drawn from as multiples of 2**-30, finer than an fp32 random number; 31 random bits times their sum
# stay below 2**63.
WEIGHT_BITS, RANDOM_BITS = 30, 31
# Top-p sets are nearly always smaller than this, and a sort of these costs a fraction of a sort of the vocabulary.
LIKELIEST = 1024


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How one row's tokens are drawn."""

    max_new_tokens: int = 200
    temperature: float = 0.8
    top_p: float = 0.95
    repetition_penalty: float = 1.0
    seed: int = 42


@dataclasses.dataclass(frozen=True)
class Completion:
    """One continuation: its text without the prompt, its tokens, and why it stopped (`length` or `stop`)."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str


Prompt = str | Sequence[int]


def generate_all(
    model: Any, tokenizer: Any, prompts: Sequence[Prompt], samplings: Sequence[Sampling], batch_size: int
) -> list[Completion]:
    """`generate` for any number of prompts, in the order given. Prompts of like length share a batch, so that little is
    padding."""
    encoded = [_encode(tokenizer, prompt) for prompt in prompts]
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
    found: dict[int, Completion] = {}
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        completions = generate(model, tokenizer, [encoded[i] for i in batch], [samplings[i] for i in batch])
        found |= zip(batch, completions, strict=True)
    return [found[i] for i in range(len(encoded))]


def generate(model: Any, tokenizer: Any, prompts: Sequence[Prompt], samplings: Sequence[Sampling]) -> list[Completion]:
    """Continue each prompt by its own `Sampling`; prompts of unequal length are padded on the left and masked.

    A prompt is text, or token ids that are taken as they are; one without tokens starts from the beginning-of-text token
    or, lacking one, the end-of-text token. The model must be in eval mode. Row i's draws depend on its own seed and
    sampling only, and more `max_new_tokens` continue what fewer gave. End-of-text ends a row, and is not part of its
    text. Raises `ModelError` where logits are not finite.
    """
    ends = _end_ids(model, tokenizer)
    drawn: list[list[int]] = [[] for _ in prompts]
    finished = ["length"] * len(prompts)
    for row, token in _tokens(model, [_encode(tokenizer, prompt) for prompt in prompts], samplings, ends):
        if token in ends:
            finished[row] = "stop"
        else:
            drawn[row].append(token)
    return [
        Completion(tokenizer.decode(ids, skip_special_tokens=True), tuple(ids), reason)
        for ids, reason in zip(drawn, finished, strict=True)
    ]


def _encode(tokenizer: Any, prompt: Prompt) -> list[int]:
    ids = tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else list(prompt)
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return ids or [start or 0]


class _Rows(NamedTuple):
    """What rows carry from token to token."""

    ids_BT: "torch.Tensor"
    mask_BT: "torch.Tensor"
    random_BT: "torch.Tensor"
    temperature_B: "torch.Tensor"
    top_p_B: "torch.Tensor"
    penalty_B: "torch.Tensor"


def _tokens(
    model: Any, prompt_ids: list[list[int]], samplings: Sequence[Sampling], ends: set[int]
) -> Iterator[tuple[int, int]]:
    """Each row's number with its next token, step by step, until every row has met an end or its limit."""
    import torch

    numbers = [number for number, sampling in enumerate(samplings) if sampling.max_new_tokens > 0]
    if not numbers:
        return
    device = next(model.parameters()).device
    rows = _start([prompt_ids[i] for i in numbers], [samplings[i] for i in numbers], device)
    is_padded = len({len(prompt_ids[i]) for i in numbers}) > 1
    is_penalised = any(samplings[i].repetition_penalty != 1 for i in numbers)
    # Of a prompt only the last token's logits are wanted: 64 prompts of 200 tokens times 128,256 words are 3 GB in bf16.
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    last_only = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(base.forward).parameters else {}
    running = set(numbers)
    cache, fresh = None, rows.ids_BT.shape[1]
    for step in range(rows.random_BT.shape[1]):
        with torch.inference_mode():
            output = model(
                input_ids=rows.ids_BT[:, -fresh:],
                # An all-ones mask says nothing; without it a packed-attention model takes its plain causal path.
                attention_mask=rows.mask_BT if is_padded else None,
                position_ids=(rows.mask_BT.cumsum(-1) - 1).clamp(min=0)[:, -fresh:],
                past_key_values=cache,
                use_cache=True,
                **last_only,
            )
            cache, fresh = output.past_key_values, 1
            logits_BV = output.logits[:, -1].float()
            if is_penalised:
                logits_BV = penalise(logits_BV, rows.ids_BT, rows.penalty_B)
            tokens_B = draw(logits_BV, rows.temperature_B, rows.top_p_B, rows.random_BT[:, step])
        drawn = tokens_B.tolist()
        if -1 in drawn:
            raise ModelError(
                f"the model's logits are not finite at new token {step + 1}\n"
                "hint: load it in another dtype; if the base alone does well, the adapter is broken or scaled too high"
            )
        for number, token in zip(numbers, drawn, strict=True):
            if number in running:
                yield number, token
                if token in ends or step + 1 == samplings[number].max_new_tokens:
                    running.remove(number)
        if not running:
            return
        with torch.inference_mode():
            ids_BT = torch.cat([rows.ids_BT, tokens_B[:, None]], dim=1)
            mask_BT = torch.cat([rows.mask_BT, torch.ones_like(tokens_B)[:, None]], dim=1)
            rows = rows._replace(ids_BT=ids_BT, mask_BT=mask_BT)
            # Finished rows are carried along until they are half of the batch: to drop them copies the cache.
            if 2 * len(running) <= len(numbers):
                kept = torch.tensor([i for i, number in enumerate(numbers) if number in running], device=device)
                numbers = [number for number in numbers if number in running]
                rows = _Rows(*(tensor[kept] for tensor in rows))
                cache.reorder_cache(kept)


def _start(prompt_ids: list[list[int]], samplings: list[Sampling], device: "torch.device") -> _Rows:
    import torch

    longest = max(map(len, prompt_ids))
    most_new = max(sampling.max_new_tokens for sampling in samplings)
    random_BT = torch.zeros(len(samplings), most_new, dtype=torch.int64)
    for row, sampling in enumerate(samplings):
        own = torch.Generator().manual_seed(sampling.seed)
        random_BT[row, : sampling.max_new_tokens] = torch.randint(
            2**RANDOM_BITS, (sampling.max_new_tokens,), generator=own
        )
    rows = _Rows(
        # A row is padded with its own first token, which the repetition penalty then has seen anyway.
        ids_BT=torch.tensor([ids[:1] * (longest - len(ids)) + ids for ids in prompt_ids]),
        mask_BT=torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompt_ids]),
        random_BT=random_BT,
        temperature_B=torch.tensor([sampling.temperature for sampling in samplings], dtype=torch.float32),
        top_p_B=torch.tensor([sampling.top_p for sampling in samplings], dtype=torch.float32),
        penalty_B=torch.tensor([sampling.repetition_penalty for sampling in samplings], dtype=torch.float32),
    )
    return _Rows(*(tensor.to(device) for tensor in rows))


def penalise(logits_BV: "torch.Tensor", seen_BT: "torch.Tensor", penalty_B: "torch.Tensor") -> "torch.Tensor":
    """Logits with those of tokens already seen divided by the penalty, negative ones multiplied (Keskar et al. 2019)."""
    import torch

    seen_logits_BT = logits_BV.gather(1, seen_BT)
    penalty_B1 = penalty_B[:, None]
    lowered_BT = torch.where(seen_logits_BT > 0, seen_logits_BT / penalty_B1, seen_logits_BT * penalty_B1)
    return logits_BV.scatter(1, seen_BT, lowered_BT)


def draw(
    logits_BV: "torch.Tensor", temperature_B: "torch.Tensor", top_p_B: "torch.Tensor", random_B: "torch.Tensor"
) -> "torch.Tensor":
    """One token id a row: the likeliest at temperature 0, else from the top-p set (Holtzman et al. 2020) by the inverse
    of its cumulated probabilities, in the order of ids, at a random whole number below 2**31.

    The set is the smallest that holds the likeliest tokens and reaches top_p, and all that are as likely as its last.
    A row whose highest logit is not finite gets -1.
    """
    import torch

    highest_B, greedy_B = logits_BV.max(-1)
    tokens_B = greedy_B
    if bool((temperature_B > 0).any()):
        temperature_B1 = torch.where(temperature_B > 0, temperature_B, 1)[:, None]
        weights_BV = (torch.softmax(logits_BV / temperature_B1, dim=-1) * 2**WEIGHT_BITS).int()
        least_B = _least_weight(weights_BV, top_p_B)
        upto_BV = torch.where(weights_BV >= least_B[:, None], weights_BV, 0).cumsum(-1)
        target_B = (random_B * upto_BV[:, -1]) >> RANDOM_BITS
        drawn_B = torch.searchsorted(upto_BV, target_B[:, None], right=True)[:, 0]
        tokens_B = torch.where(temperature_B > 0, drawn_B, greedy_B)
    return torch.where(highest_B.isfinite(), tokens_B, -1)


def _least_weight(weights_BV: "torch.Tensor", top_p_B: "torch.Tensor") -> "torch.Tensor":
    """The least weight in each row's top-p set: a token belongs while those before it have not reached the set's share.

    The likeliest few are sorted first, and only rows that they do not suffice for are sorted whole.
    """
    import torch

    def least(sorted_BK: torch.Tensor, wanted_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        upto_BK = sorted_BK.cumsum(-1)
        inside_B = (upto_BK - sorted_BK < wanted_B[:, None]).sum(-1)
        return sorted_BK.gather(1, (inside_B - 1).clamp(min=0)[:, None])[:, 0], upto_BK[:, -1] < wanted_B

    wanted_B = top_p_B * weights_BV.sum(-1)
    few = min(LIKELIEST, weights_BV.shape[1])
    least_B, is_short_B = least(weights_BV.topk(few).values, wanted_B)
    is_short_B &= top_p_B < 1
    if few < weights_BV.shape[1] and bool(is_short_B.any()):
        short = is_short_B.nonzero()[:, 0]
        least_B[short] = least(weights_BV[short].sort(descending=True).values, wanted_B[short])[0]
    return torch.where(top_p_B < 1, least_B, 0)


def _end_ids(model: Any, tokenizer: Any) -> set[int]:
    """Ids that end a text: the tokenizer's, and those that the model's generation config adds (Llama 3 has several)."""
    ends = {tokenizer.eos_token_id} - {None}
    declared = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends |= set(declared if isinstance(declared, list) else [declared]) - {None}
    return ends or {0}
