"""Bytes to text: BOM, strict UTF-8, else UTF-8 with damage, GB18030, Big5 or UTF-16, whichever reads as Chinese.

Big5 bytes are nearly always valid GB18030 as well (and the other way round), so validity decides nothing: a sample is
read in each encoding and scored by its share of everyday characters. Right readings of prose, verse and classical
Chinese score 0.5 to 0.8, wrong ones below 0.03. Legacy text in other languages (cp1252, Shift-JIS) is therefore refused
unless the user names its encoding.

Real files are damaged in places: a torn byte, an advert in UTF-8 pasted into a GB18030 novel. So where the file's
encoding fails, it is read line by line (line ends are the same bytes in all of these): a line that another encoding reads
as Chinese is taken in that one; what none reads is kept out, as an empty line, and reported. Files where that is more
than a trace (`MAX_BAD_SHARE`) are refused.
"""

import codecs
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from raystyle.corpus.literals import code_points

# Everyday characters of vernacular and classical Chinese in both scripts, and punctuation.
EVERYDAY = frozenset(
    "的一是不了在人有我他这個个们們中来來上大为為和国國地到以说說时時要就出会會可也你对對生能而子那得于於着著下自之年过過发發后後作里裡"
    "用道行所然家种種事成方多经經么麼去法学學如都同现現当當没沒动動面起看定天分还還进進好小部其些主样樣理心她本前开開但因只从從想实實"
    "日军軍者意无無力它与與长長把机機十民第公此已工使情明性知全三又关關点點正外将將两兩高间間由问問很最重并並物手应應战戰向头頭文体體"
    "相见見被利什二等产產或新己制身果加西斯月话話合回特代内內信表化老给給世位次度门門任常先海通教儿兒原东東声聲提立及比员員解水名真论論"
    "处處走义義各入几幾口认認条條平系气氣题題活尔爾更别別打女变變四神总總何电電数數安少报報才结結反受目太量再感建务務做接必场場件计計管"
    "曰矣焉乎哉夫吾余予汝故则則皆乃亦若且非未莫能今昔古君臣王侯客山风風花春秋雪夜酒诗詩书書马馬江河万萬千百五六七八九零请請叫笑坐听聽"
    "让讓像便却卻呢吧吗嗎啊呀哦嗯爱愛怕眼白黑红紅青清空城村路车車父母亲親孩妈媽爸哥弟姐妹先师師友敌敵"
    "\u3000，。、；：？！“”‘’「」『』《》（）—…·【】"
)
_IS_EVERYDAY = np.zeros(0x10000, bool)
_IS_EVERYDAY[list(map(ord, EVERYDAY))] = True
_EVERYDAY_HAN = frozenset(char for char in EVERYDAY if "\u4e00" <= char <= "\u9fff")
_EVERYDAY_OR_ASCII = EVERYDAY | set("\t\n\r") | set(map(chr, range(0x20, 0x7F)))
SAMPLE_CHARS = 50_000
# Below this a text of some length is no Chinese in that encoding: another language, a binary.
MIN_SCORE, MIN_SCORED_CHARS = 0.08, 10
# A right reading of prose has at least this share of everyday characters; below it, a reading is less sure.
SURE_SCORE = 0.5
# A line in another encoding than its file's has to have this share of everyday characters, and two of them.
MIN_LINE_SCORE, MIN_LINE_HITS = 0.2, 2
# A record is in another encoding than its file's beginning if so many more of its characters are everyday ones there.
MIN_MORE_HITS = 3
# UTF-16 without a mark, where ASCII counts as everyday too.
MIN_WIDE_SCORE = 0.4
# Bad lines may be this share of the lines and of the bytes; a single one always may, up to a tenth of the bytes.
MAX_BAD_SHARE, MAX_ONE_BAD_LINE = 0.01, 0.1

# Tried on a line that its file's encoding cannot read; each has the same line ends, and ASCII as it is.
_BY_LINE = ("utf-8", "gb18030", "cp950", "big5hkscs")
_WIDE = ("utf-16-le", "utf-16-be")
_BOMS = [
    (codecs.BOM_UTF8, "utf-8", "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32-le", "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32-be", "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16-le", "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16-be", "utf-16"),
]
# What users call them, and the superset that is meant.
_SUPERSETS = {"gb2312": "gb18030", "gbk": "gb18030", "big5": "cp950", "utf-8-sig": "utf-8"}
_BLOCK = 1 << 16
# Characters of a stretch that is judged by itself, some twenty lines; it has to have so many beyond ASCII.
_STRETCH, _MIN_STRETCH = 512, 32
# Three Chinese characters of UTF-8 in a row. Text in GB2312 has next to no bytes of 80-A0, all UTF-8 has.
_UTF8_RUN = re.compile(rb"[\xe3-\xe9\xef][\x80-\xbf][\x80-\xbf]" * 3)
_NOT_GB2312 = bytes(range(0x80, 0xA1))
_LINE_END = re.compile("(\r\n|\r|\n)")
_WIDE_CHARACTER = re.compile("[\u2e80-\uffef\U00010000-\U0010ffff]")
_SURROGATE = re.compile("[\ud800-\udfff]")


class Unreadable(ValueError):
    """Bytes or a record that have to be refused: a reason for the count and a detail for the reader."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


class Decoded(NamedTuple):
    """Text without its BOM, its encoding (`gb18030 + utf-8` where lines differ), how surely, and what was kept out.

    `confidence` is 1 for a BOM, valid UTF-8, and an encoding that the user named. Else, with a and b the everyday
    characters that the best and the next reading of the sample have, it is their margin (a - b) / (a + b + 1), less where
    even the best has a share below `SURE_SCORE`: 0.9 and more for a novel, about 0.5 for a handful of characters.
    `bad_lines` are (1-based number of a line that is empty in `text` instead, its bytes made visible). The exception is
    a character cut off at the very end: the line is kept and the entry holds the bytes that are missing from it.
    """

    text: str
    encoding: str
    confidence: float
    bad_lines: list[tuple[int, str]]


def decode(data: bytes, encoding: str | None = None) -> Decoded:
    """Text of a file's bytes, in the encoding that is named or found. Raises `Unreadable` with the offset of the fault."""
    if not data:
        raise Unreadable("empty", "0 bytes")
    decoded = _named(data, encoding) if encoding else _found(data)
    if "\0" in decoded.text:
        raise Unreadable("nul", f"a NUL character at {decoded.text.index(chr(0))}")
    if not decoded.text:
        raise Unreadable("empty", f"{len(data)} bytes, but no character")
    return decoded


def legacy_encoding(head: bytes) -> str | None:
    """The encoding, GB18030 or Big5, that the beginning of a file reads as Chinese in; None where it is UTF-8 or neither."""
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        try:
            codec, confidence = _contest(head, error.start)
        except Unreadable:
            return None
        return codec if codec in _SUPERSETS.values() and codec != "utf-8" and confidence >= SURE_SCORE else None
    return None


def decode_record(data: bytes, likely: str | None) -> Decoded:
    """A record's text. A few characters do not say which encoding they are in: then `likely`, that of the file's
    beginning, decides, with a confidence of 0. Raises `Unreadable`."""
    if likely is None:
        return decode(data)
    try:
        own = Decoded(data.decode(likely), likely, 0.0, [])
    except UnicodeDecodeError:
        return decode(data)
    try:
        found = decode(data)
    except Unreadable as refusal:
        if refusal.reason != "undecodable":
            raise
        return own
    if found.encoding == likely or _votes(found.text)[0] >= _votes(own.text)[0] + MIN_MORE_HITS:
        return found
    return own


def everyday_share(text: str) -> float:
    """The share of everyday characters among those beyond ASCII, in up to 50,000 characters from all over the text."""
    hits, beyond = _votes(text[:: max(1, len(text) // SAMPLE_CHARS)])
    return hits / beyond if beyond else 0.0


def _votes(text: str) -> tuple[int, int]:
    """How many everyday characters there are, and how many beyond ASCII."""
    if text.isascii():
        return 0, 0
    return sum(map(EVERYDAY.__contains__, text)), len(text) - len(text.encode("ascii", "ignore"))


def _han_votes(text: str) -> tuple[int, int]:
    """Votes without punctuation: a row of stars in Big5 is a row of brackets in GB18030."""
    return sum(map(_EVERYDAY_HAN.__contains__, text)), _votes(text)[1]


def _named(data: bytes, encoding: str) -> Decoded:
    try:
        name = codecs.lookup(encoding).name
        name = _SUPERSETS.get(name, name)
        return Decoded(_clean_unicode(data.decode(name), data).removeprefix("\ufeff"), name, 1.0, [])
    except UnicodeError as error:
        if name in _BY_LINE:
            return _by_lines(data.removeprefix(codecs.BOM_UTF8), name, name, 1.0)
        if name in _WIDE:
            return _by_wide_lines(data, name, name, 1.0)
        place = f" (byte {error.start})" if isinstance(error, UnicodeDecodeError) else f": {error}"
        raise Unreadable("undecodable", f"not {name}{place}, which `encoding` says it is") from error
    except (LookupError, ValueError) as error:
        raise Unreadable("undecodable", f"no text encoding is called `{encoding}`") from error


def _clean_unicode(text: str, data: bytes) -> str:
    if found := _SURROGATE.search(text):
        raise UnicodeDecodeError("unicode", data, 0, 1, f"half of a surrogate pair at character {found.start()}")
    return text


def _found(data: bytes) -> Decoded:
    for bom, codec, name in _BOMS:
        if data.startswith(bom):
            body = data[len(bom) :]
            try:
                return Decoded(body.decode(codec), name, 1.0, [])
            except UnicodeDecodeError as error:
                if codec == "utf-8":
                    return _by_lines(body, codec, name, 1.0)
                if codec in _WIDE:
                    return _by_wide_lines(body, codec, name, 1.0)
                detail = f"not {name}, which its byte-order mark promises (byte {error.start})"
                raise Unreadable("undecodable", detail) from error
    first_bad = -1
    try:
        text = data.decode("utf-8")
        if "\0" not in text:
            return Decoded(text, "utf-8", 1.0, [])
    except UnicodeDecodeError as error:
        first_bad = error.start
    codec, confidence = _contest(data, first_bad)
    if codec in _WIDE:
        try:
            return Decoded(data.decode(codec), codec, confidence, [])
        except UnicodeDecodeError:
            return _by_wide_lines(data, codec, codec, confidence)
    for strict in (codec, "big5hkscs") if codec == "cp950" else (codec,):
        try:
            text = data.decode(strict)
        except UnicodeDecodeError:
            continue
        if codec == "utf-8" or not _has_strangers(data, text):
            return Decoded(text, strict, confidence, [])
        break
    return _by_lines(data, codec, codec, confidence)


def _contest(data: bytes, first_bad: int) -> tuple[str, float]:
    """The encoding in which a sample has the largest share of everyday characters, and how surely."""
    scores = []
    for codec in _WIDE:
        text = _wide_sample(data).decode(codec, "replace")
        hits = sum(map(_EVERYDAY_OR_ASCII.__contains__, text))
        if hits > MIN_WIDE_SCORE * len(text):
            scores.append((hits / len(text), hits, len(text), codec))
    if b"\0" in data and not scores:
        raise Unreadable(
            "nul", f"a NUL at byte {data.index(0)}: a binary file, or UTF-16 that does not read as Chinese"
        )
    if b"\0" not in data:
        sample = _sample(data, first_bad)
        for codec in ("utf-8", "gb18030", "cp950"):
            hits, beyond = _votes(sample.decode(codec, "replace"))
            scores.append((hits / max(1, beyond), hits, beyond, codec))
    # Of equals the first, but for UTF-8 that has no character of Chinese at all: a word or a name in another encoding.
    utf8 = (b"\0" not in data) and _WIDE_CHARACTER.search(sample.decode("utf-8", "ignore"))
    share, hits, beyond, codec = max(scores, key=lambda score: (score[0], score[3] != "utf-8" or bool(utf8)))
    if codec not in _WIDE and share < MIN_SCORE and beyond >= MIN_SCORED_CHARS:
        detail = f"not UTF-8 (byte {first_bad}), and read as {codec} it is no Chinese ({share:.0%} everyday characters)"
        raise Unreadable("undecodable", detail + "; name its `encoding` if it is text")
    others = [other for *_, other in scores if other != codec]
    second = max((score[1] for score in scores if score[3] in others), default=0)
    return codec, round(max(0, hits - second) / (hits + second + 1) * min(1.0, share / SURE_SCORE), 3)


def _sample(data: bytes, first_bad: int, pieces: int = 8, size: int = 512) -> bytes:
    """Up to 5 KB from all over, each piece from the start of a line where there is one; one is where UTF-8 fails."""
    if len(data) <= (pieces + 2) * size:
        return data
    starts = [
        data.rfind(b"\n", 0, first_bad) + 1 if first_bad < size else data.rfind(b"\n", first_bad - size, first_bad) + 1
    ]
    starts += [data.find(b"\n", i * len(data) // pieces) + 1 for i in range(pieces)]
    return b"\n".join([data[:size], *(data[start : start + size] for start in starts if start)])


def _wide_sample(data: bytes, pieces: int = 8, size: int = 256) -> bytes:
    return (
        b"".join(data[i * len(data) // pieces // 2 * 2 :][:size] for i in range(pieces))
        if len(data) > pieces * size
        else data
    )


def _has_strangers(data: bytes, text: str) -> bool:
    """Whether lines of another encoding hide in a legacy text that decodes: runs of UTF-8, parts that are no Chinese."""
    if any(_has_utf8(data[start : start + _BLOCK + 16]) for start in range(0, len(data), _BLOCK)):
        return True
    return any(_has_foreign(text[start : start + _BLOCK]) for start in range(0, len(text), _BLOCK))


def _has_utf8(block: bytes) -> bool:
    return len(block.translate(None, _NOT_GB2312)) < len(block) and _UTF8_RUN.search(block) is not None


def _has_foreign(text: str) -> bool:
    """Whether some stretch of a text is no Chinese, by every third character."""
    codes = code_points(text[::3])
    starts = np.arange(0, len(codes), _STRETCH // 3)
    hits = np.add.reduceat(_IS_EVERYDAY.take(codes, mode="clip"), starts, dtype=np.int32)
    beyond = np.add.reduceat(codes >= 0x80, starts, dtype=np.int32)
    return bool(np.any((beyond >= _MIN_STRETCH // 3) & (hits < MIN_SCORE * beyond)))


def _other_encoding(stretch: bytes, codec: str) -> str | None:
    """The encoding that reads as Chinese what the file's own does not; None where there is none."""
    hits, beyond = _votes(stretch.decode(codec, "replace"))
    if beyond < _MIN_STRETCH or hits >= MIN_SCORE * beyond:
        return None
    best, best_share = None, MIN_LINE_SCORE
    for other in ("utf-8", "gb18030", "cp950"):
        hits, beyond = _han_votes(stretch.decode(other, "replace"))
        if other != codec and hits > best_share * beyond:
            best, best_share = other, hits / beyond
    return best


def _by_lines(data: bytes, codec: str, name: str, confidence: float) -> Decoded:
    """Decode stretch by stretch, and line by line those that `codec` does not read or where something else hides.

    Bytes of Big5 are mostly valid GB18030, so where a stretch reads as Chinese in another encoding only, that is its
    lines' encoding, and the lines beside it are asked in which of the two they read better.
    """
    pieces: list[str] = []
    used = {codec: None}
    bad = _Bad(data, codec)
    stretches = list(_blocks(data, _BLOCK if codec == "utf-8" else 2 * _STRETCH))
    others = [None if codec == "utf-8" else _other_encoding(data[start:end], codec) for start, end in stretches]
    for index, (start, end) in enumerate(stretches):
        stretch = data[start:end]
        foreign = any(others[max(0, index - 1) : index + 2])
        try:
            text = stretch.decode(codec)
            if codec == "utf-8" or not (foreign or _has_utf8(stretch)):
                pieces.append(text)
                continue
        except UnicodeDecodeError:
            pass
        for line in stretch.splitlines(keepends=True):
            reading = _read_line(line, others[index] or codec, foreign)
            if reading:
                used.setdefault(reading[1])
                pieces.append(reading[0])
            else:
                pieces.append(bad.add(start, line))
            start += len(line)
    bad.check()
    return Decoded("".join(pieces), " + ".join([name, *list(used)[1:]]), confidence, bad.lines)


def _blocks(data: bytes, size: int) -> Iterator[tuple[int, int]]:
    """Where blocks of about `size` bytes begin and end, each with the end of a line."""
    line_end = b"\n" if b"\n" in data else b"\r"
    start = 0
    while start < len(data):
        end = data.find(line_end, start + size) + 1 or len(data)
        yield start, end
        start = end


def _read_line(line: bytes, codec: str, foreign: bool) -> tuple[str, str] | None:
    """A line's text and the encoding it was read in; None where it reads in none."""
    try:
        own: str | None = line.decode(codec)
        if codec == "utf-8" or not (foreign or _UTF8_RUN.search(line)):
            return own or "", codec
    except UnicodeDecodeError:
        own = None
    best, best_share = None, 0.0
    if own is not None:
        hits, beyond = _votes(own)
        best, best_share = (own, codec), 2 * hits / max(1, beyond)
    for other in _BY_LINE:
        if other == codec:
            continue
        try:
            text = line.decode(other)
        except UnicodeDecodeError:
            continue
        hits, beyond = _votes(text)
        reads = hits >= MIN_LINE_HITS and hits >= MIN_LINE_SCORE * beyond
        # Bytes beyond ASCII that are UTF-8 by accident are too rare to wonder, where the file's own encoding fails.
        if (reads or (other == "utf-8" and own is None)) and (best is None or hits / max(1, beyond) > best_share):
            best, best_share = (text, other), hits / max(1, beyond)
    return best


class _Bad:
    """The lines of a file that no encoding reads, and whether they are still few."""

    def __init__(self, data: bytes, codec: str) -> None:
        self.lines: list[tuple[int, str]] = []
        self._data, self._codec = data, codec
        self._count = self._bytes = self._breaks = self._counted = 0
        self._total = self._first = -1

    def add(self, start: int, line: bytes) -> str:
        """Note the bad line at byte `start`; what stands in the text for it."""
        if self._total < 0:
            self._total, self._first = _line_breaks(self._data, 0, len(self._data)) + 1, start
        self._breaks += _line_breaks(self._data, self._counted, start)
        self._counted = start
        if start + len(line) == len(self._data):
            try:
                line.decode(self._codec)
            except UnicodeDecodeError as error:
                if "incomplete" in error.reason or "unexpected end" in error.reason:
                    self.lines.append((self._breaks + 1, _bytes_shown(line[error.start :])))
                    return line[: error.start].decode(self._codec)
        body = line.rstrip(b"\r\n")
        self.lines.append((self._breaks + 1, body.decode(self._codec, "backslashreplace")))
        self._count += 1
        self._bytes += len(body)
        if self._count > 1 + MAX_BAD_SHARE * self._total:
            self.check()
        return line[len(body) :].decode()

    def check(self) -> None:
        """Raise `Unreadable` where bad lines are more than a trace."""
        if _is_trace(self._count, self._total, self._bytes, len(self._data)):
            return
        raise _too_many(self._count, self._total, self._bytes, len(self._data), self._first, self._codec)


def _is_trace(lines: int, total: int, num_bytes: int, size: int) -> bool:
    limit = MAX_ONE_BAD_LINE if lines == 1 else MAX_BAD_SHARE
    return lines == 0 or (lines <= max(1, MAX_BAD_SHARE * total) and num_bytes <= limit * size)


def _bytes_shown(data: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in data)


def _too_many(lines: int, total: int, num_bytes: int, size: int, first: int, codec: str) -> Unreadable:
    share = f"{lines:,} of {total:,} lines ({num_bytes:,} of {size:,} bytes) so far"
    return Unreadable("undecodable", f"{share} are neither {codec} nor another encoding; the first is at byte {first}")


def _line_breaks(data: bytes, start: int, end: int) -> int:
    return data.count(b"\n", start, end) + data.count(b"\r", start, end) - data.count(b"\r\n", start, end)


def _by_wide_lines(data: bytes, codec: str, name: str, confidence: float) -> Decoded:
    """UTF-16 with halves of surrogate pairs, or half a unit at the end: such lines are the bad ones."""
    even = len(data) // 2 * 2
    pieces = _LINE_END.split(data[:even].decode(codec, "surrogatepass"))
    bad: list[tuple[int, str]] = []
    num_bytes = 0
    for index in range(0, len(pieces), 2):
        if _SURROGATE.search(pieces[index]):
            num_bytes += 2 * len(pieces[index])
            bad.append((index // 2 + 1, pieces[index].encode("utf-8", "backslashreplace").decode()))
            pieces[index] = ""
    total = len(pieces) // 2 + 1
    if not _is_trace(len(bad), total, num_bytes, len(data)):
        raise _too_many(len(bad), total, num_bytes, len(data), 0, codec)
    if data[even:]:
        bad.append((total, _bytes_shown(data[even:])))
    return Decoded("".join(pieces), name, confidence, bad)
