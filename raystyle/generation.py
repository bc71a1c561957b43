"""The decode loop: rows with their own sampling and seed. What `sample`, checkpoints' samples and serving share.

B rows, T tokens, V vocabulary.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


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


def generate(model: Any, tokenizer: Any, prompts: Sequence[str], samplings: Sequence[Sampling]) -> list[Completion]:
    """Continue each prompt by its own `Sampling`; prompts of unequal length are padded on the left and masked.

    The model must be in eval mode. Row i's draws depend on its own seed only. End-of-text ends a row, and is not part
    of its text.
    """
    import torch

    device = next(model.parameters()).device
    prompt_ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    ends = _end_ids(model, tokenizer)
    longest = max(map(len, prompt_ids))
    filler = min(ends)
    ids_BT = torch.tensor([[filler] * (longest - len(ids)) + ids for ids in prompt_ids], device=device)
    real_BT = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompt_ids], device=device)
    generators = [torch.Generator().manual_seed(sampling.seed) for sampling in samplings]
    drawn: list[list[int]] = [[] for _ in prompts]
    finished = ["" for _ in prompts]
    cache, step_BT = None, ids_BT
    with torch.inference_mode():
        for _ in range(max(sampling.max_new_tokens for sampling in samplings)):
            positions_BT = (real_BT.cumsum(-1) - 1).clamp(min=0)[:, -step_BT.shape[1] :]
            # An all-ones mask says nothing; without it a packed-attention model takes its plain causal path.
            mask_BT = None if bool(real_BT.all()) else real_BT
            output = model(
                input_ids=step_BT,
                attention_mask=mask_BT,
                position_ids=positions_BT,
                past_key_values=cache,
                use_cache=True,
            )
            cache = output.past_key_values
            logits_BV = output.logits[:, -1].float().cpu()
            next_B = []
            for row, sampling in enumerate(samplings):
                token = filler
                if not finished[row]:
                    token = draw(logits_BV[row], prompt_ids[row] + drawn[row], sampling, generators[row])
                    if token in ends:
                        finished[row] = "stop"
                    else:
                        drawn[row].append(token)
                        if len(drawn[row]) == sampling.max_new_tokens:
                            finished[row] = "length"
                next_B.append(token)
            if all(finished):
                break
            step_BT = torch.tensor(next_B, device=device)[:, None]
            real_BT = torch.cat([real_BT, torch.ones_like(step_BT)], dim=1)
    return [
        Completion(tokenizer.decode(ids, skip_special_tokens=True), tuple(ids), reason)
        for ids, reason in zip(drawn, finished, strict=True)
    ]


def draw(logits_V: "torch.Tensor", seen: Sequence[int], sampling: Sampling, generator: "torch.Generator") -> int:
    """One token id from a row's logits: the likeliest at temperature 0, else from the top-p set (Holtzman et al. 2020).

    The repetition penalty divides positive logits of tokens already seen and multiplies negative ones (Keskar et al. 2019).
    """
    import torch

    if sampling.repetition_penalty != 1.0 and seen:
        seen_ids = torch.tensor(sorted(set(seen)))
        values = logits_V[seen_ids]
        penalty = sampling.repetition_penalty
        logits_V = logits_V.clone()
        logits_V[seen_ids] = torch.where(values > 0, values / penalty, values * penalty)
    if sampling.temperature == 0:
        return int(logits_V.argmax())
    probabilities_V, ids_V = torch.softmax(logits_V / sampling.temperature, dim=-1).sort(descending=True)
    # A token stays while those before it have not reached top_p: the likeliest always does.
    before_V = probabilities_V.cumsum(-1) - probabilities_V
    probabilities_V = torch.where(before_V < sampling.top_p, probabilities_V, 0.0)
    choice = torch.multinomial(probabilities_V / probabilities_V.sum(), 1, generator=generator)
    return int(ids_V[choice])


def _end_ids(model: Any, tokenizer: Any) -> set[int]:
    """Ids that end a text: the tokenizer's, and those that the model's generation config adds (Llama 3 has several)."""
    ends = {tokenizer.eos_token_id} - {None}
    declared = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends |= set(declared if isinstance(declared, list) else [declared]) - {None}
    return ends or {0}
