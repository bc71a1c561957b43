"""Novels for measuring with: made up at any size, as noisy as a download, and as hard on a tokenizer as real ones.

Text from a phrase bank repeats itself, and a tokenizer that caches what it has seen looks faster on it than on anything
a person wrote. So words are drawn from a vocabulary of 60,000 with Zipf's frequencies: the frequent ones are the
characters and pairs of characters of the two phrase banks of the demonstration, the rare ones pairs of the 3,755
commonest characters (GB 2312, first level). It reads as nonsense and counts as Chinese: clauses, dialogue, paragraphs and
chapters have a novel's lengths, and the noise is put where sites put it. Novel i depends on i alone.

Against eleven real novels, with a byte-level BPE of 16,384 trained on each: 4.7 and 4.9 MB/s a core, 1.41 and 1.51
characters a token, 0.97 and 0.86 of the clauses unlike any other, 10 and 19 % of the lines with a literal that some rule
of the default pack looks for, in lines of 41 and 110 characters.

W words of a novel, C clauses, P paragraphs.
"""

import functools
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray

from raystyle.demo import neutral, storyteller

Words = NDArray[np.object_]

VOCABULARY, ZIPF_SHIFT = 60_000, 2.7  # Mandelbrot's shift for natural language
MARKS, MARK_SHARES = ("，", "。", "！", "？", "、", "……", "；"), (0.58, 0.22, 0.06, 0.06, 0.05, 0.02, 0.01)
CHAPTER_PARAGRAPHS = 60  # about 3,000 characters, what web novels print as one chapter
INDENT, BREAK = "\u3000\u3000", "\r\n\r\n"
DIGITS = "零一二三四五六七八九"
INITIALS = ("b", "p", "m", "f", "d", "t", "n", "l", "g", "k", "h", "j", "q", "x", "zh", "ch", "sh")
FINALS = ("a", "ai", "an", "ang", "ao", "e", "en", "i", "ian", "ing", "u", "uan", "ong")

# `{site}` is one made-up address of the novel's, below the domains that are reserved for examples.
BANNERS = (
    "请记住本书首发域名：{site}",
    "天才一秒记住本站地址：{site}",
    "更多精彩好书，请登陆 {site}",
    "手机用户请到 {site} 阅读",
    "最新网址：{site}",
    "{site} 最快更新，无弹窗",
    "http://{site}/book/1.html",
    "ｗｗｗ．ｂｏｏｋ．ｅｘａｍｐｌｅ．ｃｏｍ",
)
PAGE_LINES = (
    "（本章未完，请翻页）",
    "_分节阅读_12",
    "上一章 返回目录 下一章",
    "-->>",
    "本章未完，请点击下一页继续阅读",
)
VOTES = ("求月票！求推荐票！", "PS：今日第三更，求收藏，求订阅。", "感谢书友的打赏！", "-" * 20, "=" * 24)
GLUED = ("{site}", "http://{site}/1.html", "（本章未完，请翻页）", "<br/>", "&nbsp;", "</p>", "（未完待续）")
CUT_SENTENCE = "\r\n（本章未完，请翻页）\r\n"


def made_up(index: int) -> str:
    """Novel number `index`: 1 to 3 MB of UTF-8 text with CRLF line ends."""
    rng, words_W = np.random.default_rng(index), vocabulary()
    n = int(rng.uniform(0.36e6, 1.1e6))  # characters; three bytes each
    lengths_C = rng.integers(2, 8, size=round(n / 8.4))  # words in a clause; 8.4 characters with what stands behind
    ends_C = np.cumsum(lengths_C) - 1
    drawn_W = words_W[zipf(rng, int(lengths_C.sum()))]
    last_P = np.cumsum(np.clip(rng.lognormal(1.4, 0.8, size=len(ends_C)), 1, 40).astype(int))
    last_P = last_P[last_P < len(ends_C)]
    marks_C = np.array(MARKS, object)[rng.choice(len(MARKS), size=len(ends_C), p=MARK_SHARES)]
    marks_C[last_P] = "。"
    drawn_W[ends_C] += marks_C
    ends_P = ends_C[last_P]
    starts_P = np.concatenate([[0], ends_P[:-1] + 1])
    spoken = rng.random(len(ends_P)) < 0.3
    drawn_W[starts_P[spoken]] = "“" + drawn_W[starts_P[spoken]]
    drawn_W[ends_P[spoken]] += "”"
    _add_noise(rng, drawn_W, ends_C, starts_P, ends_P, f"www.{_pinyin(rng)}.example.{_one(rng, ('com', 'net', 'org'))}")
    _add_layout(rng, drawn_W, starts_P, ends_P)
    title = "".join(words_W[zipf(rng, 4) + 50])
    head = [
        f"书名：{title}",
        f"作者：{words_W[200 + index % 3000]}",
        "状态：连载中",
        f"字数：{n}",
        "-" * 20,
        "内容简介：",
        "",
    ]
    return "\r\n".join([*head, "".join(drawn_W[: ends_P[-1] + 1].tolist()), "（全书完）", ""])


def _add_noise(
    rng: np.random.Generator, drawn_W: Words, ends_C: NDArray, starts_P: NDArray, ends_P: NDArray, site: str
):
    """Noise glued into prose, and on lines of its own, where it stands in real downloads and about as often."""

    def put(places: NDArray, share: float, choices: tuple[str, ...], form: str) -> None:
        chosen = places[rng.random(len(places)) < share]
        texts = [form.format(choice.format(site=site)) for choice in choices]
        drawn_W[chosen] += np.array(texts, object)[rng.integers(len(texts), size=len(chosen))]

    put(ends_C, 0.003, GLUED, "{}")
    put(starts_P, 0.004, (CUT_SENTENCE,), "{}")
    put(ends_P, 0.02, BANNERS, BREAK + INDENT + "{}")
    put(ends_P, 0.02, PAGE_LINES, BREAK + "{}")
    put(ends_P, 0.01, VOTES, BREAK + INDENT + "{}")


def _add_layout(rng: np.random.Generator, drawn_W: Words, starts_P: NDArray, ends_P: NDArray) -> None:
    """Indents, blank lines, and a numbered heading above each chapter."""
    drawn_W[starts_P] = INDENT + drawn_W[starts_P]
    drawn_W[ends_P] += BREAK
    numeral = str if rng.random() < 0.5 else chinese_numeral
    words_W = vocabulary()
    for number, start in enumerate(starts_P[::CHAPTER_PARAGRAPHS], 1):
        heading = f"第{numeral(number)}章 {''.join(words_W[zipf(rng, 3) + 30])}"
        drawn_W[start] = heading + BREAK + drawn_W[start]


@functools.cache
def vocabulary() -> Words:
    """Words by falling frequency."""
    rng = Random(0)
    runs = re.findall(r"[\u4e00-\u9fff]+", neutral.BANK + storyteller.BANK)
    singles = Counter(char for run in runs for char in run)
    pairs = Counter(run[i : i + 2] for run in runs for i in range(len(run) - 1))
    common = [bytes([high, low]).decode("gb2312", "ignore") for high in range(0xB0, 0xD8) for low in range(0xA1, 0xFF)]
    common = [char for char in common if char]
    known = [pair for pair, count in pairs.items() if count > 1]
    known += [char for char, _ in singles.most_common()[120:]]
    rng.shuffle(known)
    # Rare words share characters as real ones do: some characters make many words, most make few.
    rng.shuffle(common)
    sums = np.cumsum([1 / (rank + 20) for rank in range(len(common))]).tolist()
    rare = ["".join(rng.choices(common, cum_weights=sums, k=rng.choice((2, 2, 2, 3)))) for _ in range(2 * VOCABULARY)]
    first = [char for char, _ in singles.most_common(120)]
    # The common characters stand among the rare words too, so that each occurs now and then.
    rest = [*common, *rare[: 4 * VOCABULARY // 3]]
    rng.shuffle(rest)
    return np.array(list(dict.fromkeys([*first, *known, *rest]))[:VOCABULARY], object)


@functools.cache
def _cumulative() -> NDArray[np.float64]:
    weights = 1 / (np.arange(VOCABULARY) + ZIPF_SHIFT)
    return np.cumsum(weights / weights.sum())


def zipf(rng: np.random.Generator, size: int) -> NDArray[np.int64]:
    """Indices of words, drawn by Zipf's law."""
    return np.minimum(np.searchsorted(_cumulative(), rng.random(size)), VOCABULARY - 60)


def chinese_numeral(number: int) -> str:
    """From 1 to 999."""
    hundreds, rest = divmod(number, 100)
    tens, ones = divmod(rest, 10)
    text = f"{DIGITS[hundreds]}百" if hundreds else ""
    if tens:
        text += ("" if tens == 1 and not hundreds else DIGITS[tens]) + "十"
    elif hundreds and ones:
        text += "零"
    return text + (DIGITS[ones] if ones else "")


def _pinyin(rng: np.random.Generator) -> str:
    return "".join(_one(rng, INITIALS) + _one(rng, FINALS) for _ in range(3))


def _one(rng: np.random.Generator, items: tuple[str, ...]) -> str:
    return items[rng.integers(len(items))]


def real(folder: Path) -> Iterator[str]:
    """The novels of a folder for ever; in each further copy half of the characters are swapped for equally frequent ones.

    Thus no copy is a duplicate of another, and each keeps its lengths, its noise and how its characters are distributed.
    """
    texts = [_decode(path) for path in sorted(folder.glob("*.txt"))]
    if not texts:
        raise SystemExit(f"no .txt file in `{folder}`\nhint: name a folder of novels, or leave out `--novels`")
    counts = Counter(char for text in texts for char in text if "\u4e00" <= char <= "\u9fff")
    # What rules look for stays, so that noise stays noise.
    rules = Path(__file__).parents[2] / "raystyle" / "corpus" / "rules"
    protected = set(
        "".join(path.read_text("utf-8") for path in [*rules.glob("*.yaml"), Path(__file__).with_name("rules.py")])
    )
    ranked = [char for char, _ in counts.most_common() if char not in protected]
    yield from texts
    copy = 0
    while True:
        copy += 1
        rng = Random(copy)
        swaps: dict[str, str] = {}
        for one, other in zip(ranked[::2], ranked[1::2], strict=False):
            if rng.random() < 0.5:
                swaps |= {one: other, other: one}
        table = str.maketrans(swaps)
        yield from (text.translate(table) for text in texts)


def _decode(path: Path) -> str:
    data = path.read_bytes()
    for encoding in ("utf-8-sig", "gb18030"):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise SystemExit(f"`{path}` is neither UTF-8 nor GB18030\nhint: leave it out of `--novels`")
