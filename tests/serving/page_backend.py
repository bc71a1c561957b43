"""A model that is not there, for the page: fixed texts in place of drawn ones, as slow and as faulty as a test wants it.

As a program (`python tests/serving/page_backend.py PORT`) it serves the page on 127.0.0.1, to be looked at or killed.
"""

import asyncio
import dataclasses
import hashlib
import sys
from collections.abc import AsyncGenerator
from typing import Any

from raystyle.serving.contract import BASE, Card, Delta, Generation, Listing, Started
from raystyle.serving.errors import RequestError

MARKERS = ("罢了", "慢悠悠", "也说不定", "倒像是")
PLAIN = (
    "街上的行人很少，路边的店铺大多关着门。他走进一家面馆，要了一碗面，坐在靠窗的位置上等着。"
    "老板把面端上来，说今天的生意不好。他点了点头，没有说话，开始吃面。\n"
    "外面下起了小雨，他吃完面，付了钱，撑开伞走了出去。车站离这里不远，他打算坐下一班车回家。",
    "教室里的灯已经打开了，老师还没有来。几个学生在讨论昨天的比赛，声音很大。"
    "她坐在后排，翻开书本，看了几页，又合上了。\n窗外的树被风吹得来回摇晃，好像马上就要下雨。",
)
MANNERED = (
    "檐下的老猫慢悠悠翻了个身，倒像是比人还晓得节气。卖茶的陈伯说，这雨么，今夜下也可，明早下也可，"
    "总归是要下的，急什么呢，不过是早晚罢了。\n"
    "他这话说给猫听，猫不理；说给我听，我也只好笑笑。巷口的灯亮了一盏，又亮一盏，慢悠悠的，"
    "像有人提着它们在走。那人是谁，我没有看清，也说不定根本没有人，只是我想有人罢了。",
    "屋瓦先暗下去，然后才是人的脸。母亲收着竹竿上的衣裳，说这样的天，倒像是谁在上头叹了一口气，叹得慢悠悠的。\n"
    "我问她是谁。她想了想，说，也说不定是你外公，他一辈子爱叹气，叹完了照样喝酒，人么，就是这样罢了。",
)


def digest_of(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def adapter(name: str, step: int | None = None, created: int = 0, **more: Any) -> Card:
    card = Card(name, "checkpoint" if "@" in name else "adapter", digest_of(name), step, created, 0.4, markers=MARKERS)
    return dataclasses.replace(card, **more)


def usual_cards() -> list[Card]:
    steps = [adapter(f"guicheng@step-{step}", step, created=200) for step in (200, 400, 600)]
    cards = [Card(BASE, "base", digest_of(BASE)), adapter("guicheng", 800, created=200), *steps]
    cards.append(adapter("older", 500, created=100, base_verified=False))
    refused = "its base is another one: fingerprint 3f1c9a… instead of 77e0b2…"
    return [*cards, adapter("stranger", refused=refused)]


@dataclasses.dataclass
class ScriptedBackend:
    """`texts` are by model name, one for each seed in turn, a character a token; they come in pieces."""

    cards: list[Card] = dataclasses.field(default_factory=usual_cards)
    texts: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    can_scale: bool = True
    delay_s: float = 0.0
    piece_chars: int = 3
    failing: dict[str, tuple[int, RequestError]] = dataclasses.field(default_factory=dict)  # name -> after pieces, what
    hold_after: dict[str, int] = dataclasses.field(
        default_factory=dict
    )  # name -> pieces, then nothing until `released`
    released: bool = False
    not_ready: RequestError | None = None
    seen: list[Generation] = dataclasses.field(default_factory=list)
    left: int = 0  # generations that were closed before their end

    async def listing(self) -> Listing:
        if self.not_ready is not None:
            raise self.not_ready
        return Listing(tuple(self.cards), "scripted", 4096, self.can_scale, has_chat_template=False)

    async def refresh(self) -> Listing:
        return await self.listing()

    async def generate(self, generation: Generation) -> AsyncGenerator[list[Started | Delta], None]:
        self.seen.append(generation)
        name = BASE
        if generation.adapter is not None:
            name = next(card.name for card in self.cards if card.digest == generation.adapter)
        yield [Started(len(generation.prompt))]
        texts = self.texts.get(name, PLAIN if name == BASE else MANNERED)
        sources = [texts[sampling.seed % len(texts)][: sampling.max_new_tokens] for sampling in generation.samplings]
        try:
            for piece in range(-(-max(map(len, sources)) // self.piece_chars)):
                if name in self.failing and piece == self.failing[name][0]:
                    raise self.failing[name][1]
                while piece == self.hold_after.get(name) and not self.released:
                    await asyncio.sleep(0.01)
                await asyncio.sleep(self.delay_s)
                yield self._deltas(generation, sources, piece)
        except (GeneratorExit, asyncio.CancelledError):
            self.left += 1
            raise

    def _deltas(self, generation: Generation, sources: list[str], piece: int) -> list[Started | Delta]:
        start, end = piece * self.piece_chars, (piece + 1) * self.piece_chars
        deltas: list[Started | Delta] = []
        for choice, (source, sampling) in enumerate(zip(sources, generation.samplings, strict=True)):
            if start < len(source):
                reason = None if end < len(source) else "length" if len(source) >= sampling.max_new_tokens else "stop"
                part = source[start:end]
                deltas.append(Delta(choice, part, len(part), finish_reason=reason))  # type: ignore[arg-type]
        return deltas


def application(backend: ScriptedBackend, **settings: Any) -> Any:
    """The real API and page, without keys, for a scripted model."""
    from raystyle.config import ServeConfig
    from raystyle.serving.api import make_app
    from raystyle.serving.keys import read_keys

    config = ServeConfig(model_name_or_path="scripted", **settings)
    return make_app(config, backend, read_keys(None), read_keys(None))


def main() -> None:
    import uvicorn

    uvicorn.run(application(ScriptedBackend(delay_s=0.05)), port=int(sys.argv[1]), log_level="warning")


if __name__ == "__main__":
    main()
