"""The storyteller's chapters as files that look like real downloads: noise between the lines, four encodings, one wreck.

A corpus from the web never arrives clean, and cleaning that is only ever shown clean text proves nothing. All sites are
made up, below `example.com`, `example.net` and `example.org`, which are reserved for such use.
"""

import json
import os
from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple

from raystyle import storage
from raystyle.demo.traditional import to_traditional
from raystyle.demo.voices import Chapter, storyteller_chapters

INDENT = "　　"
# Noise on lines of its own.
NOISE_LINES = (
    "www.chaguan.example.com",
    "w w w . c h a g u a n . e x a m p l e . c o m",
    "ｗｗｗ．ｃｈａｇｕａｎ．ｅｘａｍｐｌｅ．ｃｏｍ",
    "http://www.xingmu.example.net/book/1.html",
    "请记住本书首发域名：www.chaguan.example.com",
    "天才一秒记住本站地址：www.xingmu.example.net",
    "更多精彩好书，请登陆 www.chaguan.example.com",
    "手机用户请到 m.chaguan.example.com 阅读",
    "本章未完，请点击下一页继续阅读",
    "（本章未完，请翻页）",
    "------------",
    "求月票！求推荐票！",
    "<br/>",
)
# Noise glued to the end of a paragraph.
NOISE_TAILS = ("（本章未完，请翻页）", "（未完待续）", "www.chaguan.example.com", "<br/>", "&nbsp;")
NOISE_SHARE = 0.25  # of paragraphs that get a line of noise, and again of those that get a tail
DIGITS = "零一二三四五六七八九"


class Download(NamedTuple):
    """One kind of file: how it is named, encoded and laid out, and how many chapters it holds."""

    name: str
    encoding: str
    newline: str
    num_chapters: int
    layout: Callable[[Sequence[Chapter], str, Random], str]


class WrittenFile(NamedTuple):
    """One file of the corpus; `encoding` is None for the broken one, which no encoding reads."""

    path: str
    encoding: str | None
    num_chapters: int


def write_corpus(output_dir: str, seed: int) -> list[WrittenFile]:
    """Write `raw/` below `output_dir`: about 200 KB in six files, the same bytes for the same seed."""
    chapters = iter(storyteller_chapters(seed, sum(download.num_chapters for download in DOWNLOADS)))
    written = []
    for download in DOWNLOADS:
        mine = [next(chapters) for _ in range(download.num_chapters)]
        text = download.layout(mine, os.path.splitext(download.name)[0], Random(f"{seed}/noise/{download.name}"))
        path = storage.join(output_dir, "raw", download.name)
        storage.write_bytes(path, text.replace("\n", download.newline).encode(download.encoding))
        written.append(WrittenFile(path, download.encoding, download.num_chapters))
    path = storage.join(output_dir, "raw", "下载中断.txt")
    storage.write_bytes(path, _wreck(storyteller_chapters(seed, 1)[0].text))
    return [*written, WrittenFile(path, None, 0)]


def heading(number: int, title: str) -> str:
    """`第二十三章 ...` for numbers from 1 to 99."""
    tens, ones = divmod(number, 10)
    numeral = ("" if tens < 2 else DIGITS[tens]) + ("十" if tens else "") + (DIGITS[ones] if ones else "")
    return f"第{numeral}章 {title}"


def _novel(chapters: Sequence[Chapter], book: str, rng: Random) -> str:
    """A book with a head that describes it, numbered chapters, and noise throughout."""
    lines = [f"书名：{book}", "作者：茶馆里的人", "状态：连载中", "-" * 20, ""]
    for number, chapter in enumerate(chapters, start=1):
        lines += [heading(number, chapter.title), "", *_noisy(chapter.text.split("\n"), rng), ""]
    return "\n".join([*lines, "（全书完）", ""])


def _traditional(chapters: Sequence[Chapter], book: str, rng: Random) -> str:
    """A short book as a site in Taiwan might offer it, with little noise."""
    lines = [f"書名：{book}", "作者：茶館裡的人", ""]
    for number, chapter in enumerate(chapters, start=1):
        text = to_traditional(heading(number, chapter.title) + "\n\n" + chapter.text)
        lines += [text, "", "www.chaguan.example.org", ""]
    return "\n".join(lines)


def _records(chapters: Sequence[Chapter], book: str, rng: Random) -> str:
    """JSON lines, one chapter a record, its heading inside the text."""
    lines = []
    for number, chapter in enumerate(chapters, start=1):
        text = "\n".join([heading(number, chapter.title), *_noisy(chapter.text.split("\n"), rng)])
        lines.append(json.dumps({"id": number, "book": book, "text": text}, ensure_ascii=False))
    return "\n".join([*lines, ""])


def _noisy(paragraphs: Sequence[str], rng: Random) -> list[str]:
    """Paragraphs indented and parted by blank lines, with noise after some and at the end of some."""
    lines = []
    for paragraph in paragraphs:
        tail = _pick(NOISE_TAILS, rng) if rng.random() < NOISE_SHARE else ""
        lines += [INDENT + paragraph + tail, ""]
        if rng.random() < NOISE_SHARE:
            lines += [_pick(NOISE_LINES, rng), ""]
    return lines


def _pick(items: Sequence[str], rng: Random) -> str:
    return items[int(rng.random() * len(items))]


def _wreck(text: str) -> bytes:
    """Bytes that are neither UTF-8 nor GB18030 nor Big5: 0xFF begins a character in none of them."""
    data = bytearray(text.encode("gb18030"))
    data[25::50] = b"\xff" * len(data[25::50])
    return bytes(data)


DOWNLOADS = (
    Download("茶馆夜话.txt", "utf-8", "\n", 48, _novel),
    Download("醒木集.txt", "utf-8-sig", "\r\n", 40, _novel),
    Download("十里铺旧闻.txt", "gb18030", "\r\n", 44, _novel),
    Download("records.jsonl", "utf-8", "\n", 27, _records),
    Download("說書拾遺.txt", "cp950", "\r\n", 1, _traditional),
)
