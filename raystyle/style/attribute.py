"""Which author each chunk of some texts is nearest to, as lines for a terminal: `raystyle attribute`."""

import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from raystyle.errors import DataError
from raystyle.style import stylometry


class Chunk(NamedTuple):
    """One chunk of a source, numbered from 1. `short`: of less than half the wanted size, compared at its own size."""

    source: str
    chunk: int
    characters: int
    author: str
    distances: dict[str, float]
    percentile: float
    short: bool


def attribute(
    references: Mapping[str, Sequence[str]], texts: Iterable[tuple[str, str]], chunk_chars: int
) -> Iterator[Chunk]:
    """The nearest author of each chunk of texts (source, text). Raises `DataError` where a reference has too little text,
    and where a text has none."""
    reference = stylometry.fit(references, chunk_chars=chunk_chars)
    for source, text in texts:
        pieces = stylometry.chunks(text, chunk_chars)
        if not pieces:
            raise DataError(f"`{source}` holds no text\nhint: leave it out")
        for number, piece in enumerate(pieces, 1):
            found = stylometry.attribute(reference, piece)
            size = stylometry.size(piece)
            distances = {name: round(value, 4) for name, value in found.distances.items()}
            yield Chunk(
                source, number, size, found.author, distances, round(found.percentile, 1), 2 * size < chunk_chars
            )


def shown(found: Iterable[Chunk], authors: Sequence[str]) -> Iterator[str]:
    """Lines of a table, chunk by chunk under its source, and at the end each source's shares of authors."""
    counts: dict[str, Counter[str]] = {}
    width = max(8, *(_width(author) for author in authors))
    for chunk in found:
        if not counts:
            yield "percentile: how many of the nearest author's own chunks are nearer to him; 100 is unlike any of them"
        if chunk.source not in counts:
            counts[chunk.source] = Counter()
            heads = "  ".join(_cell(author, max(_width(author), 6), left=False) for author in authors)
            yield f"\n{chunk.source}\n  {'chunk':>5}  {_cell('nearest', width)}  percentile  {heads}"
        counts[chunk.source][chunk.author] += 1
        values = "  ".join(f"{chunk.distances[a]:>{max(_width(a), 6)}.2f}" for a in authors)
        note = f"  short: {chunk.characters:,} characters" if chunk.short else ""
        far = f"  {'far from all' if chunk.percentile >= 100 else ''}".rstrip()
        yield f"  {chunk.chunk:>5}  {_cell(chunk.author, width)}  {chunk.percentile:>10.1f}  {values}{note}{far}"
    yield ""
    for source, count in counts.items():
        total = sum(count.values())
        shares = ", ".join(f"{author} {n / total:.0%}" for author, n in count.most_common())
        yield f"{source}: {shares} of {total:,} {'chunk' if total == 1 else 'chunks'}"


def as_json(chunk: Chunk) -> str:
    return json.dumps(chunk._asdict(), ensure_ascii=False)


def _width(text: str) -> int:
    """Columns of a terminal: Chinese characters take two."""
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def _cell(text: str, width: int, *, left: bool = True) -> str:
    space = " " * (width - _width(text))
    return text + space if left else space + text
