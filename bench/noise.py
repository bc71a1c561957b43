"""Train the model of noise lines (raystyle/corpus/noise.py), and measure it on lines that it has not seen.

    python bench/noise.py            measure: each set of lines by a model of all others; bench/results/noise.md
    python bench/noise.py --write    train on all of them as well: raystyle/corpus/rules/noise.npz

Labelled lines, all of them made up, are bench/noise/*.tsv (label, what stands above and below, line) and those of
tests/corpus/test_packs.py, of which nothing is known but the line; so are insets in brackets, of bench/noise/insets.txt. Ordinary prose are lines that the rules keep of the
novels below RAYSTYLE_DATA: of every other novel some are trained on, all of the others tell how often prose is lost.

P prose, H heading, N other noise; - the text's first or last line, ? not known.
"""

import argparse
import os
import random
import re
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from raystyle.corpus import noise
from raystyle.corpus.clean import clean
from raystyle.corpus.encodings import decode
from raystyle.corpus.lines import pieces_of
from raystyle.corpus.packs import load_rules
from raystyle.corpus.sources import unify_line_ends

HERE = Path(__file__).resolve().parent
DATA = Path(os.environ.get("RAYSTYLE_DATA", HERE.parent.parent / "shared" / "data"))
MODEL = HERE.parent / "raystyle" / "corpus" / "rules" / "noise.npz"
EPOCHS, RATE, SEED = 10, 0.1, 0
LINES_OF_A_NOVEL = 1000
# How sure the model must be, in logits. A higher bar loses noise, a lower one prose: the report has both for several.
BAR = 1.0
# A short line says little, and people in stories say such things too: up to six characters the bar is higher by so much.
SHORT, HIGHER = 6, 1.0
# What stands beside a line may tip the scales, not outweigh what it says: noise next to prose would take all of it along.
MOST_BESIDE = 1.5
_ASIDE = re.compile(r"[（(\[【〔{｛［〖][^（()）\[\]【】〔〕{}｛｝［］〖〗]{3,120}[）)\]】〕}｝］〗]")
BESIDE = {"P": noise.TEXT, "-": noise.TEXT, "H": noise.HEADING, "N": noise.NOISE, "?": None}


class Line(NamedTuple):
    """A line; whether it is noise; what stands above and below it, or None where that is not known."""

    text: str
    noise: bool
    above: int | None = None
    below: int | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="train on everything, and keep that model")
    args = parser.parse_args()
    sets = {path.stem: read(path) for path in sorted((HERE / "noise").glob("*.tsv"))}
    novels = ordinary()
    tests = lines_of_tests() + bracketed()
    report = measure(sets, tests, novels)
    (HERE / "results" / "noise.md").write_text(report, encoding="utf-8")
    print(report)
    if args.write:
        labelled = [line for lines in sets.values() for line in lines] + tests
        prose = [line for novel in novels for line in novel]
        save(train(labelled + sample(novels) + asides(labelled + prose)))


def read(path: Path) -> list[Line]:
    rows = [row.split("\t") for row in path.read_text(encoding="utf-8").splitlines()]
    return [
        Line(text, label != "P", BESIDE[above], BESIDE[below]) for label, above, below, text in rows if _chinese(text)
    ]


def lines_of_tests() -> list[Line]:
    """What the packs' tests say is noise, and what is prose."""
    sys.path.insert(0, str(HERE.parent / "tests" / "corpus"))
    import test_packs

    found = []
    for kinds, is_noise in ((test_packs.NOISE, True), (test_packs.PROSE, False)):
        for lines in kinds.values():
            found += [Line(line.strip(), is_noise) for line in test_packs.lines(lines) if _chinese(line)]
    return found


def bracketed() -> list[Line]:
    """Insets that are remarks in brackets (see insets.py), which `noise_aside` asks what they are."""
    lines = (HERE / "noise" / "insets.txt").read_text(encoding="utf-8").splitlines()
    return [Line(line.strip(), True) for line in lines if _ASIDE.fullmatch(line.strip()) and _chinese(line)]


def ordinary() -> list[list[Line]]:
    """By novel, the lines that rules keep of it."""
    rules = load_rules("zh_web_novel", disable=["noise_line", "noise_aside", "noise_inset"])
    novels = []
    for path in sorted((DATA / "novels").glob("*.txt")):
        cleaned, _ = clean(unify_line_ends(decode(path.read_bytes()).text), rules)
        lines = [line for line in cleaned.text.split("\n") if len(line) <= noise.MAX_CHARS and _chinese(line)]
        novels.append([Line(line, False, noise.TEXT, noise.TEXT) for line in lines])
    return novels


def asides(lines: list[Line]) -> list[Line]:
    """What stands in brackets in prose: `noise_aside` asks of such what it is."""
    found = {aside.group() for line in lines if not line.noise for aside in _ASIDE.finditer(line.text)}
    return [Line(aside, False) for aside in sorted(found) if _chinese(aside)]


def sample(novels: list[list[Line]]) -> list[Line]:
    drawn = random.Random(SEED)
    return [line for novel in novels for line in drawn.sample(novel, min(LINES_OF_A_NOVEL, len(novel) // 2))]


def measure(sets: dict[str, list[Line]], tests: list[Line], novels: list[list[Line]]) -> str:
    """The report: for each set, what a model of all other lines makes of it."""
    bars = [BAR + step for step in (-1.0, -0.5, 0.0, 0.5, 1.0)]
    rows = []
    unseen = [line for novel in novels[1::2] for line in novel]
    for name, lines in sets.items():
        if name == "asides":  # noise alone
            continue
        others = [line for other, theirs in sets.items() if other != name for line in theirs]
        prose = [line for novel in novels[::2] for line in novel]
        model = train(others + tests + sample(novels[::2]) + asides(others + tests + prose))
        score_N, prose_N = scores(model, lines), scores(model, unseen)
        noise_N = np.array([line.noise for line in lines])
        for bar in bars:
            past = bar - BAR
            found, lost = np.mean(score_N[noise_N] > past), np.mean(score_N[~noise_N] > past)
            rows.append((name, bar, noise_N.sum(), found, (~noise_N).sum(), lost, np.mean(prose_N > past)))
    table = [
        f"| {name} | {bar:g} | {num} | {found:.3f} | {prose} | {lost:.4f} | {1e4 * ordinary:.1f} |"
        for name, bar, num, found, prose, lost, ordinary in rows
    ]
    means = [
        f"| all | {bar:g} | | {_mean(rows, bar, 3):.3f} | | {_mean(rows, bar, 5):.4f} | {1e4 * _mean(rows, bar, 6):.1f} |"
        for bar in bars
    ]
    return HEAD.format(bar=BAR, count=len(unseen), novels=len(novels[1::2])) + "\n".join([*table, *means]) + "\n"


HEAD = """# Lines that read like noise

Written by `python bench/noise.py`. Each set of lines is judged by a model that was trained on all other sets; the lines
of the packs' tests are among these. The model is alone here: noise that a rule takes counts too. `lost` is the share of
the set's prose, most of which was written to look like noise; the last column, how many of 10,000 lines are that the rules
keep of {novels} real novels ({count} lines, no novel of which was trained on). In use the bar is {bar:g}.

| set | bar | noise lines | found | prose lines | lost | ordinary lines of 10,000 |
|---|---|---|---|---|---|---|
"""


def _mean(rows: list[tuple], bar: float, column: int) -> float:
    return float(np.mean([row[column] for row in rows if row[1] == bar]))


def train(lines: list[Line]) -> noise.Model:
    """Logistic regression by AdaGrad (Duchi et al. 2011), a line at a time; being beside noise may only count for noise."""
    usual_U = usual()
    bucket_of = [_buckets(line.text, usual_U) for line in lines]
    root_N = np.array([1 / np.sqrt(len(buckets)) for buckets in bucket_of])
    class_N = noise.length_class(np.array([len(line.text) for line in lines]))
    gram_B, gram_squares_B = np.zeros(noise.NUM_BUCKETS), np.full(noise.NUM_BUCKETS, 1e-8)
    length_K, length_squares_K = np.zeros(len(noise.LENGTHS) + 1), np.full(len(noise.LENGTHS) + 1, 1e-8)
    beside_2T, beside_squares_2T = np.zeros((2, 3)), np.full((2, 3), 1e-8)
    bias, squares = 0.0, 1e-8
    order = np.arange(len(lines))
    generator = np.random.default_rng(SEED)
    for _ in range(EPOCHS):
        generator.shuffle(order)
        for n in order.tolist():
            line, buckets, length = lines[n], bucket_of[n], class_N[n]
            sides = [(side, kind) for side, kind in enumerate((line.above, line.below)) if kind]
            score = gram_B[buckets].sum() * root_N[n] + length_K[length] + bias + sum(beside_2T[at] for at in sides)
            slope = 1 / (1 + np.exp(-score)) - line.noise
            gram_squares_B[buckets] += (slope * root_N[n]) ** 2
            gram_B[buckets] -= RATE * slope * root_N[n] / np.sqrt(gram_squares_B[buckets])
            length_squares_K[length] += slope**2
            length_K[length] -= RATE * slope / np.sqrt(length_squares_K[length])
            squares += slope**2
            bias -= RATE * slope / np.sqrt(squares)
            for at in sides:
                beside_squares_2T[at] += slope**2
                moved = beside_2T[at] - RATE * slope / np.sqrt(beside_squares_2T[at])
                beside_2T[at] = min(MOST_BESIDE, max(0.0, moved))
    length_K[: np.searchsorted(noise.LENGTHS, SHORT) + 1] -= HIGHER
    # The few largest weights are cut off, so that the others keep their differences in a byte.
    unit = float(np.percentile(np.abs(gram_B[gram_B != 0]), 99.9) / 127)
    return noise.Model(
        usual_U, np.clip(np.rint(gram_B / unit), -127, 127).astype(np.int8), np.rint(length_K / unit).astype(np.int16),
        np.rint(beside_2T / unit).astype(np.int16), unit, bias - BAR,
    )  # fmt: skip


def scores(model: noise.Model, lines: list[Line]) -> NDArray[np.float64]:
    beside = [np.array([line[side] or noise.TEXT for line in lines]) for side in (2, 3)]
    return model.scores(pieces_of([line.text for line in lines])) + model.beside(*beside)


def save(model: noise.Model) -> None:
    np.savez_compressed(MODEL, **model._asdict())


def usual() -> NDArray[np.uint16]:
    """What each character counts as."""
    from opencc import OpenCC

    table = np.arange(0x10000, dtype=np.uint16)
    han = [chr(code) for code in [*range(0x3400, 0x4DC0), *range(0x4E00, 0xA000)]]
    for character, simplified in zip(han, OpenCC("t2s").convert("\n".join(han)).split("\n"), strict=True):
        if len(simplified) == 1 and ord(simplified) < 0x10000:
            table[ord(character)] = ord(simplified)
    table[0xFF01:0xFF5F] = np.arange(0x21, 0x7F)
    table[0x3000] = ord(" ")
    small = np.arange(ord("a"), ord("z") + 1)
    table[ord("A") : ord("Z") + 1] = table[0xFF21:0xFF3B] = small
    table[ord("0") : ord("9") + 1] = table[0xFF10:0xFF1A] = ord("0")
    return table


def _buckets(line: str, usual_U: NDArray[np.uint16]) -> NDArray[np.int64]:
    code_C = usual_U.take(np.array([10, *map(ord, line), 10]), mode="clip")
    buckets = np.concatenate(list(noise.grams(code_C)))
    return buckets[buckets > 0].astype(np.int64)


def _chinese(line: str) -> bool:
    return any("\u3400" <= character <= "\u9fff" for character in line)


if __name__ == "__main__":
    main()
