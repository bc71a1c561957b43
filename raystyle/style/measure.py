"""What one model says: how likely texts are to it, what it writes, how far it is from its base. The part that needs it.

The result is a record of plain values, `Raw` as a dict, which a task writes and anyone may judge later without the model
(`judgement.py`): log-likelihoods by window, the samples themselves, KL from the base, prefixes continued.
"""

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

from raystyle import adapters, generation, models, tokens
from raystyle.errors import ModelError
from raystyle.style import drift, likelihood, neutral
from raystyle.style.material import Document, Material, pieces

# A window of text whose likelihood is measured, and a prefix whose continuation is compared with the truth, in characters.
PIECE_CHARS = 1000
PREFIX_CHARS, TRUTH_CHARS = 100, 64
SPARE_TOKENS = 16
NEUTRAL_CHARS = 10_000


@dataclasses.dataclass(frozen=True)
class Settings:
    """How much is measured, and how samples are drawn."""

    prompts: tuple[str, ...] = neutral.PROMPTS
    num_samples: int = 4
    max_new_tokens: int = 200
    temperature: float = 0.8
    top_p: float = 0.95
    seed: int = 42
    role_chars: int = 60_000
    prefixes: int = 64
    scales: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
    batch_size: int = 16


FULL = Settings()
# During training: enough text for one placement beside the author, in the time that a few steps take.
LIGHT = Settings(
    prompts=neutral.PROMPTS[:16], num_samples=1, max_new_tokens=160, role_chars=16_000, prefixes=16, scales=()
)


@dataclasses.dataclass(frozen=True)
class Model:
    """Which base and tokenizer to load."""

    name: str
    tokenizer: str
    trust_remote_code: bool = False


def measure(
    model: Model, adapter: str | None, material: Material, settings: Settings, fingerprint: str | None = None
) -> dict[str, Any]:
    """Everything about one subject that needs the model: the base where `adapter` is None, else base and adapter.

    Raises `ModelError` where the adapter does not fit, or is not the one of that fingerprint.
    """
    with _loaded(model, adapter, fingerprint) as (network, tokenizer):
        raw = {
            "dtype": str(network.dtype).removeprefix("torch."),
            "likelihood": _likelihood(network, tokenizer, material, settings),
            "divergence": 0.0,
            "samples": sample(network, tokenizer, settings),
            "extraction": {
                role: _continued(network, tokenizer, getattr(material, role), settings) for role in ("train", "heldout")
            },
            "obedience": drift.obedience(network, tokenizer, seed=settings.seed),
        }
        if adapter is not None:
            raw["divergence"] = drift.divergence(network, tokenizer, _neutral(material))
        return raw


def sweep(
    model: Model, adapter: str, material: Material, settings: Settings, fingerprint: str | None = None
) -> list[dict[str, Any]]:
    """The measures that depend on how strongly the adapter is applied, at each of the settings' scales."""
    found = []
    once = dataclasses.replace(settings, num_samples=1)
    with _loaded(model, adapter, fingerprint) as (network, tokenizer):
        for scale in settings.scales:
            with models.scaled(network, scale):
                found.append(
                    {
                        "scale": scale,
                        "likelihood": _likelihood(network, tokenizer, material, settings, ("heldout", "neutral")),
                        "divergence": drift.divergence(network, tokenizer, _neutral(material)),
                        "samples": sample(network, tokenizer, once),
                    }
                )
    return found


@contextlib.contextmanager
def _loaded(model: Model, adapter: str | None, fingerprint: str | None) -> Any:
    device = models.auto_device()
    tokenizer = tokens.load_tokenizer(model.tokenizer, model.trust_remote_code)
    base: Any = models.load_base(model.name, dtype=models.auto_dtype(device), trust_remote_code=model.trust_remote_code)
    if adapter is None:
        yield base.to(device).eval(), tokenizer
        return
    with adapters.opened(adapter) as directory:
        if fingerprint is not None and adapters.fingerprint(directory) != fingerprint:
            raise ModelError(f"the adapter `{adapter}` is not the one its {adapters.ABOUT} tells of: its files changed")
        yield models.load_adapter(base, directory).to(device), tokenizer


def sample(network: Any, tokenizer: Any, settings: Settings) -> list[dict[str, Any]]:
    """Seeded continuations of every prompt, and one greedy one of the first, which comes first."""
    drawn = [
        (
            prompt,
            generation.Sampling(
                max_new_tokens=settings.max_new_tokens,
                temperature=settings.temperature,
                top_p=settings.top_p,
                seed=settings.seed + 1000 * number + repeat,
            ),
        )
        for number, prompt in enumerate(settings.prompts)
        for repeat in range(settings.num_samples)
    ]
    greedy = generation.Sampling(max_new_tokens=settings.max_new_tokens, temperature=0.0, seed=settings.seed)
    asked = [(settings.prompts[0], greedy), *drawn]
    completions = generation.generate_all(
        network, tokenizer, [prompt for prompt, _ in asked], [sampling for _, sampling in asked], settings.batch_size
    )
    return [
        {
            "prompt": prompt,
            "seed": sampling.seed,
            "temperature": sampling.temperature,
            "text": completion.text,
            "finish_reason": completion.finish_reason,
        }
        for (prompt, sampling), completion in zip(asked, completions, strict=True)
    ]


def _likelihood(
    network: Any,
    tokenizer: Any,
    material: Material,
    settings: Settings,
    roles: Sequence[str] = ("heldout", "contrast", "neutral"),
) -> dict[str, list[list[float]]]:
    """Role -> [nats, characters, tokens, document] of each window of its text."""
    found: dict[str, list[list[float]]] = {}
    for role in roles:
        chosen = pieces(getattr(material, role), PIECE_CHARS, settings.role_chars)
        scored = likelihood.score(network, tokenizer, [text for _, text in chosen], batch_size=settings.batch_size)
        found[role] = [
            [round(window.nats, 6), window.characters, window.tokens, chosen[window.document][0]] for window in scored
        ]
    return found


def _neutral(material: Material) -> list[str]:
    return [text for _, text in pieces(material.neutral, PIECE_CHARS, NEUTRAL_CHARS)]


def prefixes(documents: Sequence[Document], count: int) -> list[tuple[str, str]]:
    """(prefix, how it goes on) from places spread evenly over the documents that are long enough."""
    length = PREFIX_CHARS + TRUTH_CHARS
    texts = [document.text for document in documents]
    total = sum(max(0, len(text) - length + 1) for text in texts)
    if not total:
        return []
    wanted = {int((i + 0.5) * total / count) for i in range(count)}
    found, before = [], 0
    for text in texts:
        places = max(0, len(text) - length + 1)
        found += [
            (text[at : at + PREFIX_CHARS], text[at + PREFIX_CHARS : at + length])
            for at in sorted(place - before for place in wanted if before <= place < before + places)
        ]
        before += places
    return found


def _continued(network: Any, tokenizer: Any, documents: Sequence[Document], settings: Settings) -> list[list[str]]:
    """[continuation, truth] of prefixes, continued greedily: what of a text comes back word for word (Carlini et al. 2023)."""
    asked = prefixes(documents, settings.prefixes)
    # As many tokens as the truth takes, and a few more: it may be cut otherwise.
    greedy = [
        generation.Sampling(max_new_tokens=len(tokenizer(truth)["input_ids"]) + SPARE_TOKENS, temperature=0.0)
        for _, truth in asked
    ]
    completions = generation.generate_all(
        network, tokenizer, [prefix for prefix, _ in asked], greedy, settings.batch_size
    )
    return [[completion.text, truth] for completion, (_, truth) in zip(completions, asked, strict=True)]
