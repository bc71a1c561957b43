"""An EPUB's text: the documents of its spine in their order, a line for every paragraph and heading.

Markup is read with the standard library's HTML parser, which knows no entities but HTML's own and fetches nothing; the
package's XML goes through it too. The page with the table of contents is left out, as are images, styles and the
readings above ruby characters; a chapter that cannot be read is reported, and the rest stands.
"""

import posixpath
import re
import zipfile
from collections.abc import Iterator
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
    container = _Elements.of(_text(archive, "META-INF/container.xml", max_bytes).text)
    package_path = next((unquote(a.get("full-path", "")) for tag, a in container if tag == "rootfile"), "")
    if not package_path:
        raise Unreadable("damaged", "META-INF/container.xml names no package")
    _refuse_encrypted(archive, max_bytes)
    parser = _Elements()
    _feed(parser, _text(archive, package_path, max_bytes).text)
    chapters: list[str] = []
    missing: list[tuple[str, str, str]] = []
    encodings: dict[str, None] = {}
    confidence = 1.0
    left = max_bytes
    for name in _spine(parser.found, posixpath.dirname(package_path)):
        try:
            found = _text(archive, name, left)
        except Unreadable as refusal:
            if refusal.reason == "too_large":
                raise too_large(None, max_bytes, "split it, or raise `--max_source_bytes`") from refusal
            missing.append((name, refusal.reason, refusal.detail))
            continue
        left -= len(found.text)
        encodings.setdefault(found.encoding)
        confidence = min(confidence, found.confidence)
        missing += [(f"{name}#line {number}", "undecodable", line) for number, line in found.bad_lines]
        chapter = _Lines()
        _feed(chapter, found.text)
        chapters.append(chapter.text())
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


def _refuse_encrypted(archive: zipfile.ZipFile, max_bytes: int) -> None:
    if "META-INF/encryption.xml" not in archive.NameToInfo:
        return
    algorithm = ""
    for tag, attributes in _Elements.of(_text(archive, "META-INF/encryption.xml", max_bytes).text):
        if tag == "encryptionmethod":
            algorithm = attributes.get("algorithm", "")
        elif tag == "cipherreference":
            name = unquote(attributes.get("uri", ""))
            if algorithm not in _FONT_ALGORITHMS and not name.lower().endswith(_FONTS):
                raise Unreadable("encrypted", f"`{name}` is encrypted (DRM)")


def _spine(elements: list[tuple[str, dict[str, str]]], folder: str) -> Iterator[str]:
    """The names of the documents in reading order, without the table of contents."""
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
    order = [items.get(a.get("idref", ""), "") for tag, a in elements if tag == "itemref"]
    yield from (name for name in dict.fromkeys(order) if name and name not in contents)


def _feed(parser: HTMLParser, markup: str) -> None:
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

    def text(self) -> str:
        self._break()
        return "\n".join(self._lines)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("rt", "rp") and self._left_out[-1:] in (["rt"], ["rp"]):
            self._left_out.pop()  # its end tag may be left out
        if tag in _LEFT_OUT:
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
            self._left_out.clear()
        elif tag in _BLOCKS and tag != "br":
            self._break()
        self._preformatted -= tag == "pre" and self._preformatted > 0

    def handle_data(self, data: str) -> None:
        if self._left_out:
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
