"""The texts that an evaluation compares: what the adapter was trained on, what was held out, and what is another's.

They are gathered once, by whoever starts an evaluation, into one Parquet file beside its results: every task that
measures an adapter reads the same texts, on whatever machine it runs, and a second run can tell that they are unchanged.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from raystyle import storage
from raystyle.errors import DataError

ROLES = ("train", "heldout", "contrast", "neutral")
SCHEMA = pa.schema(
    [("role", pa.string()), ("author", pa.string()), ("source", pa.string()), ("text", pa.large_string())]
)
# Looking for copies holds the training text and an index of it in memory, some dozens of bytes for each character.
MAX_TRAIN_CHARS = 20_000_000
# Every task loads the rest, and what is measured on it is as good from this much: of each role, and of each author.
MAX_ROLE_CHARS = 2_000_000


class Document(NamedTuple):
    """One text, whose it is and where it comes from."""

    author: str
    source: str
    text: str


@dataclasses.dataclass(frozen=True)
class Material:
    """The author's training and held-out documents, other authors' and neutral ones.

    `left_out` counts the characters of training text beyond `MAX_TRAIN_CHARS`, which copies are not looked for in.
    """

    author: str
    train: tuple[Document, ...]
    heldout: tuple[Document, ...]
    contrast: tuple[Document, ...]
    neutral: tuple[Document, ...]
    left_out: int = 0

    def by_author(self) -> dict[str, list[str]]:
        """The contrast's texts under their authors' names, which are sorted."""
        found: dict[str, list[str]] = {}
        for document in sorted(self.contrast):
            found.setdefault(document.author, []).append(document.text)
        return found


def gather(
    author: str,
    *,
    train: Iterable[Document],
    heldout: Iterable[Document],
    contrast: Iterable[Document],
    neutral: Iterable[Document],
    max_train_chars: int = MAX_TRAIN_CHARS,
) -> Material:
    """Documents put in order, empty ones left out, and the training text cut to size. Raises `DataError`."""
    parts = {
        role: sorted(document for document in documents if document.text.strip())
        for role, documents in (("train", train), ("heldout", heldout), ("contrast", contrast), ("neutral", neutral))
    }
    if not parts["train"] and not parts["heldout"]:
        raise DataError(
            f"there is no text of {author}: neither training nor held-out text\nhint: give --train_path or --heldout_path"
        )
    if any(document.author == author for document in parts["contrast"]):
        raise DataError(
            f"{author} stands among the other authors too\nhint: leave out that --contrast_path, or give it another name"
        )
    kept, left_out = limited(parts.pop("train"), max_train_chars)
    authors = sorted({document.author for document in parts["contrast"]})
    contrast = [
        document
        for name in authors
        for document in limited([d for d in parts["contrast"] if d.author == name], MAX_ROLE_CHARS)[0]
    ]
    heldout, neutral = (limited(parts[role], MAX_ROLE_CHARS)[0] for role in ("heldout", "neutral"))
    return Material(author, tuple(kept), tuple(heldout), tuple(contrast), tuple(neutral), left_out)


def limited(documents: Sequence[Document], max_chars: int) -> tuple[list[Document], int]:
    """Documents of at most `max_chars` characters together, taken evenly, and how many characters that leaves out.

    Each document keeps the same share of its beginning: no author's works are all early or all late ones.
    """
    total = sum(len(document.text) for document in documents)
    if total <= max_chars:
        return list(documents), 0
    kept = [
        document._replace(text=document.text[: int(len(document.text) * max_chars / total)]) for document in documents
    ]
    return [document for document in kept if document.text], total - sum(len(document.text) for document in kept)


def _rows(material: Material) -> list[tuple[str, Document]]:
    return [(role, document) for role in ROLES for document in getattr(material, role)]


def digest(material: Material) -> str:
    """sha256 over all texts and whose they are: equal means the same comparison. Sources may move, and do not count."""
    return _hashed([(role, document.author, document.text) for role, document in _rows(material)], material.author)


def text_digest(material: Material) -> str:
    """sha256 over all texts in their roles: equal means the same measurements, whatever the authors are called."""
    return _hashed(sorted((role, document.text) for role, document in _rows(material)), "")


def _hashed(rows: Sequence[tuple[str, ...]], first: str) -> str:
    found = hashlib.sha256(first.encode("utf-8", "surrogatepass"))
    for row in rows:
        for part in row:
            data = part.encode("utf-8", "surrogatepass")
            found.update(len(data).to_bytes(8, "little") + data)
    return found.hexdigest()


def save(material: Material, uri: str) -> None:
    rows = _rows(material)
    table = pa.table(
        {
            "role": [role for role, _ in rows],
            "author": [document.author for _, document in rows],
            "source": [document.source for _, document in rows],
            "text": [document.text for _, document in rows],
        },
        schema=SCHEMA,
    ).replace_schema_metadata({"author": material.author, "left_out": str(material.left_out)})
    with storage.open_output(uri) as stream:
        pq.write_table(table, stream, compression="zstd")


def load(uri: str) -> Material:
    """The material that `save` wrote. Raises `DataError` where the file is something else."""
    with storage.open_input(uri) as stream:
        try:
            table = pq.read_table(stream)
            metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
            parts: dict[str, list[Document]] = {role: [] for role in ROLES}
            for row in table.to_pylist():
                parts[row["role"]].append(Document(row["author"], row["source"], row["text"]))
            return Material(
                metadata["author"],
                **{role: tuple(found) for role, found in parts.items()},
                left_out=int(metadata["left_out"]),
            )
        except (pa.ArrowInvalid, KeyError, ValueError) as error:
            raise DataError(f"`{uri}` is not the material of an evaluation: {error}") from error


def pieces(documents: Sequence[Document], piece_chars: int, max_chars: int) -> list[tuple[int, str]]:
    """(document's number, piece of at most `piece_chars`), cut at paragraphs, at most `max_chars` of them in all.

    Every document gives its first piece before any gives its second, in an order made of their texts: many are heard
    rather than one, and the same ones wherever they lie.
    """
    cut = [_cut(document.text, piece_chars) for document in documents]
    order = sorted(
        range(len(cut)), key=lambda number: hashlib.sha256(documents[number].text.encode("utf-8", "replace")).digest()
    )
    taken: list[tuple[int, int, str]] = []
    room = max_chars
    for depth in range(max(map(len, cut), default=0)):
        for number in order:
            if depth < len(cut[number]) and len(cut[number][depth]) <= room:
                taken.append((number, depth, cut[number][depth]))
                room -= len(cut[number][depth])
    return [(number, piece) for number, _, piece in sorted(taken)]


def _cut(text: str, piece_chars: int) -> list[str]:
    """A text's paragraphs joined up to a length; one that is longer than that alone is cut at the length."""
    found: list[str] = []
    now = ""
    for paragraph in text.split("\n"):
        while len(paragraph) > piece_chars:
            if now:
                found.append(now)
                now = ""
            found.append(paragraph[:piece_chars])
            paragraph = paragraph[piece_chars:]
        if now and len(now) + 1 + len(paragraph) > piece_chars:
            found.append(now)
            now = ""
        now = f"{now}\n{paragraph}" if now else paragraph
    return [piece for piece in [*found, now] if piece.strip()]


def counts(documents: Sequence[Document]) -> dict[str, Any]:
    return {"documents": len(documents), "characters": sum(len(document.text) for document in documents)}
