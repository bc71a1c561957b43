"""Rows with their own adapter, sampling and seed, continued: what `sample`, checkpoints' samples, style and serving share.

The loop is in `decoding.py`, and how a token is drawn in `drawing.py`; this part loads no torch until it runs.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from raystyle.errors import ModelError

if TYPE_CHECKING:
    from raystyle.decoding import Decoder


CONTEXT_TOKENS = 5
REPLACEMENT = "\ufffd"  # what decoders give for bytes that are no character


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How one row's tokens are drawn."""

    max_new_tokens: int = 200
    temperature: float = 0.8
    top_p: float = 0.95
    repetition_penalty: float = 1.0
    seed: int = 42
    top_k: int = 0  # draw from so many of the likeliest tokens only; 0: from all


@dataclasses.dataclass(frozen=True)
class Row:
    """One continuation to make: a prompt's ids, how to draw, and whose weights (`adapter` is a digest; None is the base).

    `scale` multiplies the adapter's update. `logprobs` asks for each token's log-probability and that many of the
    likeliest beside it; `prompt_logprobs` for those of the prompt's tokens too.
    """

    prompt_ids: tuple[int, ...]
    sampling: Sampling
    adapter: str | None = None
    scale: float = 1.0
    logprobs: int | None = None
    prompt_logprobs: bool = False


class Scored(NamedTuple):
    """A token with its log-probability (nats, of the model's own distribution: before temperature, penalty and top-p) and
    the likeliest tokens at its place, best first. A prompt's first token has None."""

    token_id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]


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
    encoded = [encode(tokenizer, prompt) for prompt in prompts]
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
    from raystyle.decoding import Decoder

    decoder = Decoder(model, end_ids(model, tokenizer), max_rows=max(len(prompts), 1))
    rows = [Row(tuple(encode(tokenizer, p)), sampling) for p, sampling in zip(prompts, samplings, strict=True)]
    return complete(decoder, tokenizer, rows)


def complete(decoder: "Decoder", tokenizer: Any, rows: Sequence[Row]) -> list[Completion]:
    """Continue all rows to their ends. Raises `ModelError` where logits are not finite."""
    slots = [decoder.admit(row) for row in rows]
    drawn: dict[Any, list[int]] = {slot: [] for slot in slots}
    finished: dict[Any, str] = {}
    while not decoder.is_idle:
        for step in decoder.advance():
            if step.error:
                raise ModelError(
                    f"{step.error}\nhint: load it in another dtype; if the base alone does well, the adapter is broken or "
                    "scaled too high"
                )
            if step.token is not None:
                drawn[step.slot].append(step.token)
            if step.finish_reason:
                finished[step.slot] = step.finish_reason
    return [
        Completion(_continuation(tokenizer, row.prompt_ids, drawn[slot]), tuple(drawn[slot]), finished[slot])
        for row, slot in zip(rows, slots, strict=True)
    ]


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of tokens, special ones left out."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True))


def context(tokenizer: Any, prompt_ids: Sequence[int]) -> list[int]:
    """The end of a prompt, behind which its continuation is decoded: some tokenizers treat the start of a text specially,
    and SentencePiece's take a space away there.

    Some tokens of whole characters, where they are: bytes that are none may change what stands behind them.
    """
    ends = [list(prompt_ids[-count:]) for count in range(CONTEXT_TOKENS, CONTEXT_TOKENS + 4)]
    return next((ids for ids in ends if REPLACEMENT not in decode(tokenizer, ids)), ends[0])


def _continuation(tokenizer: Any, prompt_ids: Sequence[int], ids: Sequence[int]) -> str:
    """The text of new tokens, as `serving.text.TextStream` gives it piece by piece."""
    before = context(tokenizer, prompt_ids)
    start, text = decode(tokenizer, before), decode(tokenizer, [*before, *ids])
    # Where the prompt ends in part of a character the first of them may change it.
    return text[len(start) :] if text.startswith(start) else decode(tokenizer, ids)


def encode(tokenizer: Any, prompt: Prompt) -> list[int]:
    """A prompt's ids; of an empty one the beginning-of-text token or, lacking one, the end-of-text token."""
    ids = tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else list(prompt)
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return ids or [start or 0]


def end_ids(model: Any, tokenizer: Any) -> set[int]:
    """Ids that end a text: the tokenizer's, and those that the model's generation config adds (Llama 3 has several)."""
    ends = {tokenizer.eos_token_id} - {None}
    declared = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends |= set(declared if isinstance(declared, list) else [declared]) - {None}
    return ends or {0}
