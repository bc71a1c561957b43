"""Two voices of our own writing: a neutral modern narrator and a storyteller in a teahouse.

The demonstration needs a corpus that may be shipped, needs no network, and whose style can be counted: the base model
learns the narrator, the adapter learns the storyteller, and `marker_rate` says which of them a text sounds like.
Document i depends on the seed and i alone, so the first documents stay the same whatever number is asked for.
"""

import re
from collections.abc import Mapping, Sequence
from random import Random
from typing import NamedTuple, TypeVar

from raystyle.demo import neutral, storyteller

# The storyteller's formulas and particles; the narrator uses none of them, not even across a word boundary.
MARKERS: tuple[str, ...] = (
    *("列位", "看官", "诸公", "醒木", "话说", "却说", "且说", "端的", "则个", "兀自", "怎生", "煞是", "霎时", "这厮"),
    *("说时迟", "那时快", "有诗为证", "书接上回", "瓜子慢嗑", "茶凉话热", "耳朵借我", "且听下回"),
)

_MARKER = re.compile("|".join(map(re.escape, MARKERS)))
_SLOT = re.compile(r"\{(\w+)\}")

THEMES = ("street_scene", "work", "family", "home", "memory", "outing", "country", "culture", "errands")
SHARED_LISTS = ("hero", "foe", "spot", "weapon", "weapon_short", "steed", "drink")

T = TypeVar("T")
Bank = dict[str, list[str]]


class Chapter(NamedTuple):
    """One piece of the storyteller: its title without a number, and paragraphs joined by line feeds."""

    title: str
    text: str


def neutral_documents(seed: int, n: int) -> list[str]:
    """`n` pieces of about 400 characters in the narrator's voice: diaries, and adventures retold in plain words.

    The adventures share people, places and events with the storyteller, so that what sets him apart is how he tells them.
    """
    told = parse_bank(storyteller.BANK)
    bank = parse_bank(neutral.BANK) | {name: told[name] for name in SHARED_LISTS}
    writers = (_diary, _diary, _retold)
    return [writers[i % 3](bank, Random(f"{seed}/neutral/{i}")) for i in range(n)]


def storyteller_chapters(seed: int, n: int) -> list[Chapter]:
    """`n` chapters of about 450 characters in the storyteller's voice, each with one hero and one foe."""
    bank = parse_bank(storyteller.BANK)
    return [_chapter(bank, Random(f"{seed}/storyteller/{i}")) for i in range(n)]


def storyteller_documents(seed: int, n: int) -> list[str]:
    return [chapter.text for chapter in storyteller_chapters(seed, n)]


def marker_rate(text: str) -> float:
    """Markers of the storyteller per 1,000 characters of `text`, white space not counted; 0 for an empty text."""
    num_characters = len("".join(text.split()))
    return 1000 * len(_MARKER.findall(text)) / num_characters if num_characters else 0.0


def parse_bank(text: str) -> Bank:
    """Lists of alternatives by name, from lines of `# name` and lines of alternatives."""
    bank: Bank = {}
    for line in filter(None, text.splitlines()):
        if line.startswith("# "):
            alternatives = bank.setdefault(line[2:], [])
        else:
            alternatives.append(line)
    return bank


def _diary(bank: Bank, rng: Random) -> str:
    def sentences(name: str, k: int) -> str:
        return _join(bank, _sample(rng, bank[name], k), rng, {})

    paragraphs = [sentences("today", 1) + sentences("weather", 2)]
    paragraphs += [sentences(theme, 3 + _below(rng, 3)) for theme in _sample(rng, THEMES, 3)]
    return "\n".join([*paragraphs, sentences("ending", 1)])


def _retold(bank: Bank, rng: Random) -> str:
    bound = _roles(bank, rng)
    weather = _sample(rng, bank["retold_weather"], 1)
    events = _sample(rng, bank["retold"], 14)
    scenes = [events[:4], events[4:8], [*weather, *events[8:11]], events[11:]]
    return "\n".join(_join(bank, scene, rng, bound) for scene in scenes)


def _chapter(bank: Bank, rng: Random) -> Chapter:
    bound = _roles(bank, rng)
    bound["title"] = _fill(bank, "{title}", rng, bound)
    weather, aside = (_sample(rng, bank[name], 2) for name in ("weather", "aside_line"))
    tale = _sample(rng, bank["tale"], 8)
    poem, begin, ending = (_sample(rng, bank[name], 1) for name in ("poem", "begin", "ending"))
    # He opens on the weather, so that a prompt of it stands where a document begins, as in training.
    scenes = [
        [weather[0], *poem],
        [*begin, *tale[:3]],
        [aside[0], *tale[3:6]],
        [weather[1], *tale[6:], aside[1]],
        ending,
    ]
    return Chapter(bound["title"], "\n".join(_join(bank, scene, rng, bound) for scene in scenes))


def _roles(bank: Bank, rng: Random) -> dict[str, str]:
    """One hero and one foe for a whole story, each with a name and a full name that has the epithet in front."""
    bound: dict[str, str] = {}
    for role in ("hero", "foe"):
        epithet, name = _sample(rng, bank[role], 1)[0].split()
        bound |= {role: name, f"{role}_full": epithet + name}
    return bound


def _join(bank: Bank, templates: list[str], rng: Random, bound: Mapping[str, str]) -> str:
    return "".join(_fill(bank, template, rng, bound) for template in templates)


def _fill(bank: Bank, template: str, rng: Random, bound: Mapping[str, str]) -> str:
    """The template with every slot filled, slots inside slots too; a `bound` name always has the same value."""

    def fill_slot(slot: re.Match[str]) -> str:
        name = slot[1]
        return bound[name] if name in bound else _fill(bank, _sample(rng, bank[name], 1)[0], rng, bound)

    return _SLOT.sub(fill_slot, template)


def _sample(rng: Random, items: Sequence[T], k: int) -> list[T]:
    """`k` different items in random order (all of them where there are fewer).

    Only `Random.random` is used: of its methods it alone promises the same numbers in every version of Python.
    """
    return [items[i] for i in sorted(range(len(items)), key=[rng.random() for _ in items].__getitem__)[:k]]


def _below(rng: Random, n: int) -> int:
    return int(rng.random() * n)
