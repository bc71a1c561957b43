"""What copying finds and what it takes for a copy by mistake, on real novels and without a model.

    python bench/copying.py --novels_path novels/ [--show_alarms]

Every work with many chapters is an author; a chapter is a document. Planted: passages of 30, 60 and 120 characters
(whitespace not counted), cut anywhere from the training documents and put into another author's text. False alarms: a
fifth of an author's documents is held out in turn, and what `copied` finds in it is counted per chunk and per sentence.
Prints markdown; `--show_alarms` prints the alarms themselves to stderr, to be read.
"""

import argparse
import re
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

import numpy as np

from raystyle.corpus.texts import read_texts
from raystyle.style import copying

MIN_CHAPTERS, FOLDS, CHUNK_CHARS = 40, 5, 2000
PLANTED_CHARS, NUM_PLANTED, HOST_CHARS = (30, 60, 120), 300, 400
LARGE_CHARS = 20_000_000
SENTENCE = re.compile(r"[^。！？!?\n]+[。！？!?\n]*[”’」』]?")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--novels_path", required=True)
    parser.add_argument("--show_alarms", action="store_true")
    options = parser.parse_args()
    authors: dict[str, list[str]] = {}
    for path in sorted(Path(options.novels_path).glob("*.txt")):
        documents, _ = read_texts(str(path), document_unit="chapter")
        if len(documents) >= MIN_CHAPTERS:
            authors[path.stem] = [document.text for document in documents]
    print("## Planted passages\n")
    plants(authors)
    print("\n## False alarms\n")
    alarms(authors, options.show_alarms)
    print("\n## Time and memory\n")
    large(authors)


def others(authors: dict[str, list[str]], author: str) -> list[str]:
    return [text for name, texts in authors.items() if name != author for text in texts]


def plants(authors: dict[str, list[str]]) -> None:
    """Passages planted into another author's text: how many are found whole."""
    changes = {"verbatim": lambda text, rng: text, "whitespace changed": respaced, "marks changed": remarked}
    print(f"Found whole, of {NUM_PLANTED} each:\n")
    print("| training text | change | " + " | ".join(f"{chars} characters" for chars in PLANTED_CHARS) + " |")
    print("|---|---|" + "---|" * len(PLANTED_CHARS))
    quoted = 0
    for author, texts in authors.items():
        rng = Random(author)
        index, common = copying.Index(texts), copying.Index(others(authors, author))
        hosts = others(authors, author)
        for name, change in changes.items():
            found = Counter[int]()
            for chars in PLANTED_CHARS:
                for _ in range(NUM_PLANTED):
                    plain = cut(rng, texts, chars)
                    while sum(p.end - p.start for p in common.passages(plain, copying.PHRASE_CHARS)) * 2 >= len(plain):
                        quoted += 1
                        plain = cut(rng, texts, chars)
                    passage = change(plain, rng)
                    host, at = cut(rng, hosts, HOST_CHARS), rng.randrange(HOST_CHARS)
                    text = host[:at] + passage + host[at:]
                    (spans,) = copying.copied(index, [text], common).passages
                    covered = np.zeros(len(text), np.bool_)
                    for span in spans:
                        covered[span.start : span.end] = True
                    planted = np.array([not character.isspace() for character in passage])
                    missed = np.flatnonzero(~covered[at : at + len(passage)] & planted)
                    found[chars] += not len(missed)
            print(
                f"| {author} | {name} | "
                + " | ".join(f"{found[chars] / NUM_PLANTED:.1%}" for chars in PLANTED_CHARS)
                + " |"
            )
    print(f"\n{quoted} passages of which other authors hold half and more, as a quotation, were drawn anew.")


def cut(rng: Random, texts: Sequence[str], chars: int) -> str:
    """A passage of so many characters without whitespace, from any place of any document that has as many."""
    while True:
        text = texts[rng.randrange(len(texts))]
        solid = np.flatnonzero([not character.isspace() for character in text])
        if len(solid) >= chars:
            first = rng.randrange(len(solid) - chars + 1)
            return text[solid[first] : solid[first + chars - 1] + 1]


def respaced(text: str, rng: Random) -> str:
    """Line breaks and spaces taken out, and others put in."""
    solid = "".join(text.split())
    return "".join(c + rng.choice(("", "", "", "", "", "", "\n", " ", "　", "\r\n")) for c in solid).rstrip()


def remarked(text: str, rng: Random) -> str:
    """Chinese punctuation as a Western keyboard has it."""
    return text.translate(str.maketrans("，。；：？！“”‘’（）", ",.;:?!\"\"''()"))


def alarms(authors: dict[str, list[str]], show: bool) -> None:
    """What is found in held-out documents."""
    print(
        f"Held out by document, each fifth in turn; `common` are the other authors; chunks of {CHUNK_CHARS:,} characters.\n"
    )
    print("| author | chunks | with a copy | sentences | in a copy | characters copied | n-gram overlap | longest |")
    print("|---|---|---|---|---|---|---|---|")
    lengths: dict[str, Counter[int]] = {}
    for author, texts in authors.items():
        common = copying.Index(others(authors, author))
        order = Random(0).sample(range(len(texts)), len(texts))
        counts, longest = Counter[str](), 0
        lengths[author] = Counter()
        for fold in range(FOLDS):
            held = [texts[i] for i in sorted(order[fold::FOLDS])]
            index = copying.Index([texts[i] for n, i in enumerate(order) if n % FOLDS != fold])
            found = copying.copied(index, held, common)
            longest = max(longest, found.longest)
            for text, passages in zip(held, found.passages, strict=True):
                chars = len("".join(text.split()))
                counts["characters"] += chars
                counts["copied"] += sum(len("".join(text[p.start : p.end].split())) for p in passages)
                counts["overlap"] += round(copying.overlap(index, [text]) * chars)
                for start, end in pieces(text):
                    inside = [p for p in passages if p.start < end and p.end > start]
                    counts["chunks"] += 1
                    counts["alarms"] += bool(inside)
                    best = max((len("".join(text[p.start : p.end].split())) for p in inside), default=0)
                    lengths[author][best] += 1
                for sentence in SENTENCE.finditer(text):
                    counts["sentences"] += 1
                    counts["sentence_alarms"] += any(
                        p.start < sentence.end() and p.end > sentence.start() for p in passages
                    )
                for p in passages if show else ():
                    print(f"{author} {p.end - p.start:4} {text[p.start : p.end]!r}", file=sys.stderr)
        print(
            f"| {author} | {counts['chunks']:,} | {counts['alarms'] / counts['chunks']:.2%} | {counts['sentences']:,} | "
            f"{counts['sentence_alarms'] / counts['sentences']:.2%} | {counts['copied'] / counts['characters']:.3%} | "
            f"{counts['overlap'] / counts['characters']:.2%} | {longest} |"
        )
    steps = (26, 30, 40, 50, 60, 80, 100)
    print("\nChunks with a copy of at least so many characters:\n")
    print("| author | " + " | ".join(map(str, steps)) + " |")
    print("|---|" + "---|" * len(steps))
    for author, counted in lengths.items():
        shares = [sum(n for chars, n in counted.items() if chars >= step) / counted.total() for step in steps]
        print(f"| {author} | " + " | ".join(f"{share:.2%}" for share in shares) + " |")


def pieces(text: str) -> Iterator[tuple[int, int]]:
    """Stretches of `CHUNK_CHARS`, the rest with the last one if it is under half."""
    starts = list(range(0, max(1, len(text) - CHUNK_CHARS // 2), CHUNK_CHARS))
    yield from zip(starts, [*starts[1:], len(text)], strict=True)


def large(authors: dict[str, list[str]]) -> None:
    """An index of twenty million characters: the novels over and over, a character in fifty changed."""
    row = np.frombuffer("".join(text for texts in authors.values() for text in texts).encode("utf-32-le"), np.uint32)
    row = np.tile(row, LARGE_CHARS // len(row) + 1)[:LARGE_CHARS]
    rng = np.random.default_rng(0)
    changed = rng.random(LARGE_CHARS) < 0.02
    row[changed] = rng.integers(0x4E00, 0x6E00, int(changed.sum()))
    text = row.astype("<u4").tobytes().decode("utf-32-le")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started_s = time.monotonic()
    index = copying.Index([text[i : i + 20_000] for i in range(0, LARGE_CHARS, 20_000)])
    indexed_s = time.monotonic() - started_s
    peak_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    samples = [cut(Random(i), [text for texts in authors.values() for text in texts], 600) for i in range(100)]
    started_s = time.monotonic()
    copying.copied(index, samples)
    print(f"{LARGE_CHARS:,} characters indexed in {indexed_s:.1f} s, {peak_mb:,.0f} MB at the most; 100 samples of 600 characters, "
          f"nearly all of them copied, looked up in {time.monotonic() - started_s:.1f} s.")  # fmt: skip


if __name__ == "__main__":
    main()
