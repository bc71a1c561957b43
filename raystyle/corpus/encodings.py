"""Bytes to text: BOM, strict UTF-8, else GB18030 or Big5, whichever reads as Chinese.

Big5 bytes are nearly always valid GB18030 as well (and the other way round), so validity decides nothing: both readings
are scored by the share of everyday characters in them. Right readings of prose, verse and classical Chinese score 0.5
to 0.8, wrong ones below 0.03. Not attempted: UTF-16 without a BOM, and files that change encoding midway.
"""

import codecs

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
SAMPLE_CHARS = 50_000
# Below this a long text is no Chinese in that encoding: damaged UTF-8 read as GB18030, another language, a binary.
MIN_SCORE, MIN_SCORED_CHARS = 0.08, 40


class Unreadable(ValueError):
    """Bytes or a record that have to be refused: a reason for the count and a detail for the reader."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def decode(data: bytes) -> tuple[str, str]:
    """Text without its BOM, and the name of its encoding. Raises `Unreadable` with the offset where it fails."""
    if not data:
        raise Unreadable("empty", "0 bytes")
    for bom, encoding in [
        (codecs.BOM_UTF8, "utf-8-sig"),
        (codecs.BOM_UTF32_LE, "utf-32"),
        (codecs.BOM_UTF32_BE, "utf-32"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ]:
        if data.startswith(bom):
            return _without_nul(_strict(data, encoding)), encoding
    if b"\0" in data:
        raise Unreadable("nul", f"a NUL at byte {data.index(0)}: a binary file, or UTF-16 without a byte-order mark")
    try:
        return data.decode("utf-8"), "utf-8"
    except UnicodeDecodeError as error:
        utf8_error = f"not UTF-8 (byte {error.start})"
    readings = []
    for encoding in ("gb18030", "cp950"):
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError as error:
            utf8_error += f", not {encoding} (byte {error.start})"
        else:
            readings.append((everyday_share(text), text, encoding))
    if not readings:
        raise Unreadable("undecodable", utf8_error)
    score, text, encoding = max(readings, key=lambda reading: reading[0])
    if score < MIN_SCORE and len(text) - sum(map(str.isascii, text)) >= MIN_SCORED_CHARS:
        raise Unreadable(
            "undecodable", f"{utf8_error}, and read as {encoding} it is no Chinese ({score:.0%} everyday characters)"
        )
    return text, encoding


def everyday_share(text: str) -> float:
    """The share of everyday characters among those beyond ASCII, in up to 50,000 characters from all over the text."""
    beyond = [char for char in text[:: max(1, len(text) // SAMPLE_CHARS)] if char > "\x7f"]
    return sum(char in EVERYDAY for char in beyond) / len(beyond) if beyond else 0.0


def _strict(data: bytes, encoding: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise Unreadable(
            "undecodable", f"not {encoding}, which its byte-order mark promises (byte {error.start})"
        ) from error


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise Unreadable("nul", f"a NUL character at {text.index(chr(0))}")
    return text
