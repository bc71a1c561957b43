"""What the parts of serving say to each other: plain values that pickle. Nothing here loads torch.

    HTTP (`api`) ── Generation ──> a replica (`replica`) ── Row, one per choice ──> an engine (`engines/`)
                 <── Started, Delta ──                   <── Tokens ──

The HTTP side knows names; a replica knows digests: a name is resolved once, when a request comes in, so that a request
keeps the adapter it was given even if the name moves on to a newer version.
"""

import dataclasses
from collections.abc import AsyncGenerator
from typing import Literal, NamedTuple, Protocol

from raystyle.generation import Row, Sampling, Scored

BASE = "base"
# The least that counts as an effect of an adapter on a log-probability, in nats: above what rounding does in fp32 a hundred
# times, and in 16 bits, where one rounding of a logit near 16 is 0.06, with few of them in one place.
LEAST_EFFECT, LEAST_EFFECT_16_BITS = 1e-4, 0.1
PACE_S, PACE_UNWATCHED_S = 0.03, 0.5  # for who reads along, and for who waits for the end
FinishReason = Literal["stop", "length"]


# ── between a replica and its engine: token ids ──


class Tokens(NamedTuple):
    """What a row gained since the last of these. An end-of-text token is in none of it; the last one has a reason."""

    ids: tuple[int, ...]
    scored: tuple[Scored, ...] = ()
    prompt_scored: tuple[Scored, ...] = ()
    finish_reason: FinishReason | None = None


class Engine(Protocol):
    """What runs a model. `generate` may be called any number of times at once; closing its iterator frees the row."""

    name: str
    max_length: int  # tokens of a prompt and its continuation together
    can_scale: bool  # whether `Row.scale` may differ from 1
    least_effect: float  # nats by which a log-probability must move for it to be no rounding

    async def load(self, digest: str, directory: str) -> None:
        """Make an adapter ready. The directory holds adapter_config.json and adapter_model.safetensors, is private to this
        replica and stays as it is until `unload`. Raises `ModelError` for one that this engine or base cannot take."""
        ...

    async def unload(self, digest: str) -> None:
        """Forget an adapter. The caller sees to it that no row of it is running."""
        ...

    def generate(self, row: Row) -> AsyncGenerator[Tokens, None]: ...

    def depth(self) -> tuple[int, int]:
        """Rows running, rows waiting."""
        ...

    def check(self) -> None:
        """Raises where the engine can serve no more."""
        ...

    async def close(self) -> None: ...


# ── between HTTP and a replica: text ──


class Message(NamedTuple):
    """One message of a chat."""

    role: str
    content: str


@dataclasses.dataclass(frozen=True)
class Generation:
    """One prompt and the choices to make of it: text, token ids or chat messages; one `Sampling` a choice.

    After the first token, what is gained in `pace_s` seconds comes as one: a message between processes costs about as much as
    a small model's token, and nobody sees the difference.
    """

    id: str
    prompt: str | tuple[int, ...] | tuple[Message, ...]
    samplings: tuple[Sampling, ...]
    adapter: str | None = None
    scale: float = 1.0
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    echo: bool = False
    pace_s: float = PACE_S


class Started(NamedTuple):
    """The first thing said of a generation: how many tokens its prompt has."""

    prompt_tokens: int


class Alternative(NamedTuple):
    """A token as text and as the bytes it stands for (which may be part of a character), and its log-probability."""

    token: str
    bytes: bytes
    logprob: float


class TokenLogprob(NamedTuple):
    """A token's own log-probability (None for a prompt's first), the likeliest at its place, best first, and where it
    starts in the choice's text (with `echo`, the prompt's text included), in characters."""

    token: str
    bytes: bytes
    logprob: float | None
    top: tuple[Alternative, ...]
    offset: int


class Delta(NamedTuple):
    """What a choice gained: text of whole characters, how many new tokens it stands for, and the reason if it is over.

    With `echo` a choice's text begins with the prompt, which counts no new tokens.
    """

    choice: int
    text: str
    tokens: int
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None

    def and_then(self, later: "Delta") -> "Delta":
        """Both as one."""
        logprobs = (*self.logprobs, *later.logprobs)
        return Delta(self.choice, self.text + later.text, self.tokens + later.tokens, logprobs, later.finish_reason)


@dataclasses.dataclass(frozen=True)
class Card:
    """What the listing says of a base or an adapter. One with `refused` is never served, for that reason."""

    name: str
    kind: Literal["base", "adapter", "checkpoint"]
    digest: str | None = None
    step: int | None = None
    created: int = 0  # seconds since 1970
    effect: float | None = None  # largest difference of a canary prompt's log-probabilities from the base's, nats
    base_verified: bool = True
    refused: str | None = None
    markers: tuple[str, ...] = ()  # the author's words, from the run's evaluation


@dataclasses.dataclass(frozen=True)
class Listing:
    """Everything that a replica knows of: the base first. `can_scale` and `max_length` are its engine's."""

    cards: tuple[Card, ...]
    engine: str
    max_length: int
    can_scale: bool
    has_chat_template: bool
    running: int = 0
    waiting: int = 0
