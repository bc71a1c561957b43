"""An EPUB's text: the documents of its spine in their order, a line for every paragraph and heading.

Markup is read with the standard library's HTML parser, which knows no entities but HTML's own and fetches nothing; the
package's XML goes through it too. The page with the table of contents is left out, as are images, styles and the
readings above ruby characters. A chapter that cannot be read, or whose text is lost to its markup, is reported, and the
rest stands.
"""

import posixpath
import re
import zipfile
from html.parser import HTMLParser
from typing import NamedTuple
from urllib.parse import unquote

from raystyle.corpus.containers import damage, too_large
from raystyle.corpus.encodings import Decoded, Unreadable, decode

# https://www.w3.org/TR/epub-33/#sec-font-obfuscation and Adobe's older way: of fonts only, which is no protection of text.
_FONT_ALGORITHMS = ("http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC")
_FONTS = (".ttf", ".otf", ".woff", ".woff2", ".ttc")
_BLOCKS = frozenset(
    [
        "address",
        "article",
        "aside",
        "blockquote",
        "body",
        "caption",
        "center",
        "dd",
        "details",
        "dir",
        "div",
        "dl",
        "dt",
        "fieldset",
        "figcaption",
        "figure",
        "footer",
        "form",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "header",
        "hr",
        "legend",
        "li",
        "main",
        "menu",
        "ol",
        "p",
        "pre",
        "section",
        "summary",
        "table",
        "tbody",
        "td",
        "tfoot",
        "th",
        "thead",
        "tr",
        "ul",
        "br",
    ]
)
_LEFT_OUT = frozenset(
    ["head", "script", "style", "nav", "svg", "math", "audio", "video", "object", "iframe", "template", "rt", "rp"]
)
# Text in these is none of the story, as a rule: a page that has no other is no loss.
_NO_TEXT = frozenset(["head", "script", "style", "nav", "rt", "rp"])
# A container or package is a list of files; a book of ten thousand pages has one of 2 MB.
_MAX_PACKAGE = 8 << 20
# For each of these without an end the parser looks through all the rest of the page.
_MAX_UNENDED = 100
_UNENDED = [
    ("<", re.compile("<"), ">"),
    ("<!--", re.compile("<!--"), "-->"),
    ("<![CDATA[", re.compile(r"<!\[\s*(?:temp|cdata|ignore|include|rcdata)", re.IGNORECASE), "]]>"),
    ("<![", re.compile(r"<!\["), "]>"),
]
# A `<` that begins no tag, for another one follows first: `a<b`, which XML has to write as `&lt;`.
_LESS_THAN = re.compile(r"""<(?=[A-Za-z][^<>"']*(?:<|\Z))""")
_HAN = re.compile("[\u2e80-\u9fff]")
_SPACE = re.compile("[ \t\r\n\f]+")
_WIDE = "[\u2018-\u201d\u2014\u2026\u2e80-\u9fff\uf900-\ufaff\uff00-\uffef]"
# A line break of the markup between two characters of a script without spaces is none of the text's.
_BROKEN = re.compile(f"(?<={_WIDE}) *\n[ \n]*(?={_WIDE})")


class Book(NamedTuple):
    """An EPUB's title, its text with LF line ends, its encoding, and what is missing from it as (name, reason, detail)."""

    title: str | None
    text: str
    encoding: str
    confidence: float
    missing: list[tuple[str, str, str]]


def read_epub(archive: zipfile.ZipFile, max_bytes: int) -> Book:
    """The text of an EPUB. Raises `Unreadable` where it is encrypted, too large unpacked, or nothing can be read."""
    container = _Elements.of(_packaging(archive, "META-INF/container.xml", max_bytes))
    package_path = next((unquote(a.get("full-path", "")) for tag, a in container if tag == "rootfile"), "")
    if not package_path:
        raise Unreadable("damaged", "META-INF/container.xml names no package")
    _refuse_encrypted(archive, max_bytes)
    parser = _Elements()
    _feed(parser, _packaging(archive, package_path, max_bytes))
    names, unknown = _spine(parser.found, posixpath.dirname(package_path))
    chapters: list[str] = []
    missing = [
        (f"{package_path}#{idref}", "damaged", "the spine has it, but no item of the manifest is called so")
        for idref in unknown
    ]
    encodings: dict[str, None] = {}
    confidence = 1.0
    left = max_bytes
    for name in names:
        chapter = _Lines()
        try:
            found = _text(archive, name, left)
            _feed(chapter, found.text)
        except Unreadable as refusal:
            if refusal.reason == "too_large":
                raise too_large(None, max_bytes, "split it, or raise `--max_source_bytes`") from refusal
            missing.append((name, refusal.reason, refusal.detail))
            continue
        left -= len(found.text)
        encodings.setdefault(found.encoding)
        confidence = min(confidence, found.confidence)
        missing += [(f"{name}#line {number}", "undecodable", line) for number, line in found.bad_lines]
        chapters.append(chapter.text())
        missing += [(name, "damaged", loss) for loss in chapter.losses()]
    text = "\n".join(filter(None, chapters))
    if not text:
        name, reason, detail = next(iter(missing), ("", "empty", "no text in the documents of its spine"))
        raise Unreadable(reason, detail)
    return Book(parser.title or None, text, " + ".join(encodings), confidence, missing)


def _text(archive: zipfile.ZipFile, name: str, max_bytes: int) -> Decoded:
    with damage(name), archive.open(name) as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise too_large(None, max_bytes, "split it")
    return decode(data)


def _packaging(archive: zipfile.ZipFile, name: str, max_bytes: int) -> str:
    """A file that says what is in the archive."""
    cap = min(max_bytes, _MAX_PACKAGE)
    try:
        return _text(archive, name, cap).text
    except Unreadable as refusal:
        if refusal.reason == "too_large" and cap < max_bytes:
            raise too_large(None, cap, f"`{name}` is no book's list of files; make the EPUB again") from refusal
        raise


def _refuse_encrypted(archive: zipfile.ZipFile, max_bytes: int) -> None:
    if "META-INF/encryption.xml" not in archive.NameToInfo:
        return
    algorithm = ""
    for tag, attributes in _Elements.of(_packaging(archive, "META-INF/encryption.xml", max_bytes)):
        if tag == "encryptionmethod":
            algorithm = attributes.get("algorithm", "")
        elif tag == "cipherreference":
            name = unquote(attributes.get("uri", ""))
            if algorithm not in _FONT_ALGORITHMS and not name.lower().endswith(_FONTS):
                raise Unreadable("encrypted", f"`{name}` is encrypted (DRM)")


def _spine(elements: list[tuple[str, dict[str, str]]], folder: str) -> tuple[list[str], list[str]]:
    """The names of the documents in reading order, without the table of contents; and the ids that name none."""
    items: dict[str, str] = {}
    contents = set()
    for tag, attributes in elements:
        # Some makers write the path as it is, `%` and all; archives with such names are rarer still.
        href = posixpath.normpath(posixpath.join(folder, unquote(attributes.get("href", "")).partition("#")[0]))
        if tag == "item":
            items[attributes.get("id", "")] = href
            if "nav" in attributes.get("properties", "").split():
                contents.add(href)
        elif tag == "reference" and attributes.get("type", "").lower() == "toc":
            contents.add(href)
    order = dict.fromkeys(a.get("idref", "") for tag, a in elements if tag == "itemref")
    names = dict.fromkeys(items[idref] for idref in order if idref in items)
    return [name for name in names if name not in contents], [idref for idref in order if idref not in items]


def _feed(parser: HTMLParser, markup: str) -> None:
    """Parse markup. Raises `Unreadable`, also where much of it never ends, on which the parser would work for hours."""
    for shown, begin, end in _UNENDED:
        count = sum(1 for _ in begin.finditer(markup, markup.rfind(end) + 1))
        if count > _MAX_UNENDED:
            raise Unreadable("damaged", f"markup: {count:,} `{shown}` without an end; {_MAX_UNENDED} are allowed")
    with damage("markup"):
        parser.feed(markup)
        parser.close()


class _Elements(HTMLParser):
    """The elements of an XML file with their attributes, without prefixes, in lower case; and the first title."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.title = ""
        self._in_title = False

    @classmethod
    def of(cls, markup: str) -> list[tuple[str, dict[str, str]]]:
        parser = cls()
        _feed(parser, markup)
        return parser.found

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        name = tag.rpartition(":")[2]
        self.found.append((name, {key.rpartition(":")[2]: value or "" for key, value in attrs}))
        self._in_title = name == "title" and not self.title

    def handle_endtag(self, tag: str) -> None:
        self._in_title = False

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title = " ".join((self.title + data).split(" ")).strip()


def _space(found: re.Match[str]) -> str:
    return "\n" if "\n" in found[0] or "\r" in found[0] else " "


class _Lines(HTMLParser):
    """The text of a page, blocks on lines of their own."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: list[str] = []
        self._line: list[str] = []
        self._left_out: list[str] = []
        self._preformatted = 0
        # Characters in what is left out since its outermost element began, and in all of it that may be text.
        self._unseen = self._hidden = 0
        self._losses: list[str] = []

    def feed(self, data: str) -> None:
        super().feed(_LESS_THAN.sub("&lt;", data))

    def text(self) -> str:
        self._break()
        return "\n".join(self._lines)

    def losses(self) -> list[str]:
        """What of the page's text is not in `text`, which is asked before."""
        self._unseen += len(_SPACE.sub("", self.rawdata))  # what follows an open `<style>` or `<script>`
        self._end_page()
        if not self._lines and not self._losses and self._hidden:
            return [f"its {self._hidden:,} characters stand in elements that are left out, and none outside"]
        return self._losses

    def _end_page(self) -> None:
        if self._left_out and self._unseen:
            self._losses.append(
                f"`<{self._left_out[0]}>` has no end: the {self._unseen:,} characters after it are left out"
            )
        self._left_out.clear()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if any(_HAN.search(name) for name, _ in attrs):
            self._losses.append(f"text inside a tag: `{' '.join((self.get_starttag_text() or '').split())[:80]}`")
        if tag in ("rt", "rp") and self._left_out[-1:] in (["rt"], ["rp"]):
            self._left_out.pop()  # its end tag may be left out
        # The end tag of a head may be left out too, and no body is inside anything.
        if tag == "body" or (tag in _BLOCKS and self._left_out == ["head"]):
            self._left_out.clear()
        if tag in _LEFT_OUT:
            if not self._left_out:
                self._unseen = 0
            self._left_out.append(tag)
        elif tag in _BLOCKS:
            self._break()
        self._preformatted += tag == "pre"

    def handle_endtag(self, tag: str) -> None:
        if tag in self._left_out:
            while self._left_out.pop() != tag:
                pass
        elif tag == "ruby" and self._left_out[-1:] in (["rt"], ["rp"]):
            self._left_out.pop()
        elif tag == "body":
            self._end_page()
        elif tag in _BLOCKS and tag != "br":
            self._break()
        self._preformatted -= tag == "pre" and self._preformatted > 0

    def handle_data(self, data: str) -> None:
        if self._left_out:
            chars = len(_SPACE.sub("", data))
            self._unseen += chars
            self._hidden += 0 if _NO_TEXT.intersection(self._left_out) else chars
            return
        if self._preformatted:
            for index, line in enumerate(re.split("\r\n|\r|\n", data)):
                if index:
                    self._break()
                self._line.append(line)
        else:
            self._line.append(_SPACE.sub(_space, data))

    def unknown_decl(self, data: str) -> None:
        if data.startswith("CDATA["):
            self.handle_data(data[6:])

    def _break(self) -> None:
        line = _SPACE.sub(" ", _BROKEN.sub("", "".join(self._line))).strip(" ")
        self._line.clear()
        if line:
            self._lines.append(line)
