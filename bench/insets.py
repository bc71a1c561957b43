"""Train the model of noise inside sentences (raystyle/corpus/insets.py), and measure it on insets that it has not seen.

    python bench/insets.py            measure: each fifth of the insets by a model of all others, and of no labelled line
                                      with the same letters; bench/results/insets.md
    python bench/insets.py --write    train on all of them as well: raystyle/corpus/rules/insets.npz

Insets, all of them made up, are the lines of bench/noise/insets.txt; noise of bench/noise/*.tsv that is short enough is
glued in, too, and so are numbers between signs and rubble. They are put into ordinary prose at random: lines that the rules keep of the novels below RAYSTYLE_DATA, of
every other novel where the model is measured, which then is asked for the others; and what bench/noise/*.tsv and the tests
of packs call prose.
"""

import argparse
import random
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from noise import HERE, Line, lines_of_tests, ordinary, read
from numpy.typing import NDArray

from raystyle.corpus import insets
from raystyle.corpus.lines import pieces_of

MODEL = HERE.parent / "raystyle" / "corpus" / "rules" / "insets.npz"
EPOCHS, MARGIN, SEED, FOLDS = 5, 3.0, 0, 5
# What an inset must weigh, in whole updates of the perceptron. A higher bar misses insets, a lower one cuts into prose.
BAR, BARS = 24, (8, 16, 24, 32, 48)
GLUED, SHARE_OF_LINES, SHARE_OF_MARKS, SHARE_INSIDE = 16_000, 0.3, 0.2, 0.7
# Prose that was written to look like noise counts so often.
HARD = 3
MAX_INSET, MIN_HOST, MAX_HOST = 32, 16, 160
UNIT = 64  # weights are kept in so many parts of an update


_NO_LETTER = re.compile(r"[\W_]+")


class Example(NamedTuple):
    """A line's features, of characters and of places, and its inset, if it has one."""

    inside: NDArray[np.uint32]
    begins: NDArray[np.uint32]
    ended: NDArray[np.uint32]
    span: tuple[int, int] | None


class Outcome(NamedTuple):
    """What a model found: insets to the character, with a character more or less at either end, and otherwise; and lines of
    ordinary prose that it would cut into."""

    exact: int
    near: int
    wrong: int
    insets: int
    cut: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="train on everything, and keep that model")
    args = parser.parse_args()
    known = (HERE / "noise" / "insets.txt").read_text(encoding="utf-8").splitlines()
    labelled = [line for path in sorted((HERE / "noise").glob("*.tsv")) for line in read(path)] + lines_of_tests()
    novels = ordinary()
    report = measure(known, labelled, novels)
    (HERE / "results" / "insets.md").write_text(report, encoding="utf-8")
    print(report)
    if args.write:
        prose = [line.text for novel in novels for line in novel]
        save(train(examples(known, labelled, prose, random.Random(SEED))))


def measure(known: list[str], labelled: list[Line], novels: list[list[Line]]) -> str:
    drawn = random.Random(SEED)
    shuffled = drawn.sample(known, len(known))
    rows: dict[int, list[Outcome]] = {bar: [] for bar in BARS}
    seen, unseen = ([line.text for novel in novels[parity::2] for line in novel] for parity in (0, 1))
    for fold in range(FOLDS):
        held = shuffled[fold::FOLDS]
        told = {letters(inset) for inset in held} - {""}
        others = [inset for inset in known if letters(inset) not in told and inset not in held]
        strange = [
            line for line in labelled if not line.noise or not any(known in letters(line.text) for known in told)
        ]
        weight_B = train(examples(others, strange, seen, random.Random(fold)))
        hosts = [line for line in unseen if MIN_HOST <= len(line) <= MAX_HOST]
        glued = [glue(inset, drawn.choice(hosts), drawn) for inset in held]
        glued = [(text, span) for text, span in glued if insets.whole(text, *span)]
        for bar in BARS:
            rows[bar].append(judged(insets.Model(weight_B, bar * UNIT), glued, unseen))
    total = {bar: Outcome(*map(sum, zip(*found, strict=True))) for bar, found in rows.items()}
    lines = [
        f"| {bar} | {o.insets} | {o.exact / o.insets:.3f} | {o.near / o.insets:.3f} | {o.wrong / o.insets:.3f} "
        f"| {10_000 * o.cut / len(unseen) / FOLDS:.1f} |"
        for bar, o in total.items()
    ]
    return (
        "# Noise inside sentences\n\nWritten by `python bench/insets.py`. Each fifth of the insets is looked for by a model of the others, in sentences of\n"
        "novels that it was not trained on; those that no model may take (asides in brackets, Chinese words alone) left out. `exact`: found to the character; `near`: with a character more or less at an end; `wrong`:\n"
        "something else was cut. The last column: of 10,000 lines that the rules keep of these novels, how many it would cut into. The\n"
        f"model is alone here. In use the bar is {BAR}.\n\n| bar | insets | exact | near | wrong | ordinary lines of 10,000 |\n|---|---|---|---|---|---|\n"
        + "\n".join(lines)
        + "\n"
    )


def letters(text: str) -> str:
    """What makes an inset or a line another than the rest: its letters and digits."""
    return _NO_LETTER.sub("", text.lower())


def judged(model: insets.Model, glued: list[tuple[str, tuple[int, int]]], prose: list[str]) -> Outcome:
    found = _found(model, [text for text, _ in glued])
    off = [
        max(abs(found[n][0] - span[0]), abs(found[n][1] - span[1])) for n, (_, span) in enumerate(glued) if n in found
    ]
    return Outcome(off.count(0), off.count(1), sum(o > 1 for o in off), len(glued), len(_found(model, prose)))


def _found(model: insets.Model, texts: list[str]) -> dict[int, tuple[int, int]]:
    lines = pieces_of(texts)
    return insets.find(model, lines, np.flatnonzero(insets.odd(lines)))


def glue(inset: str, host: str, drawn: random.Random) -> tuple[str, tuple[int, int]]:
    """A line with an inset at a random place, most often inside a clause."""
    marks = [i + 1 for i, character in enumerate(host[:-1]) if character in "，。！？；：”"]
    place = drawn.randrange(2, len(host) - 1) if not marks or drawn.random() < SHARE_INSIDE else drawn.choice(marks)
    return host[:place] + inset + host[place:], (place, place + len(inset))


# What printed pages and machines leave, of which there are too many shapes for a list: numbers between signs, and rubble.
FRAMES = ("--", "- - ", "==", "<>", "~~", "～～", "||", "｜｜", "**", "＊＊", "  ", "//", "←→", "﹏﹏", "＝＝")
NUMBERS = (
    "{}",
    "{}",
    "P{}",
    "P.{}",
    "p{}",
    "{}页",
    "第{}页",
    "{}/312",
    "第{}节/共60节",
    "第{}页 共9页",
    "[{}]",
    "0{}",
    "A{}",
)
RUBBLE = "■□▲△·'`|1lIi!;:._~^*#@＂ˉ丨卜口﹏〃√∠＼／＿″"


def mark(drawn: random.Random) -> str:
    """The number of a page between signs, or what a scanner made of dirt."""
    if drawn.random() < 0.3:
        return "".join(drawn.choice(RUBBLE) for _ in range(drawn.randrange(2, 6)))
    frame, times = drawn.choice(FRAMES), drawn.choice((1, 1, 2))
    half = len(frame) // 2
    return frame[:half] * times + drawn.choice(NUMBERS).format(drawn.randrange(1, 400)) + frame[half:] * times


def examples(known: list[str], labelled: list[Line], prose: list[str], drawn: random.Random) -> list[Example]:
    short = [line.text for line in labelled if line.noise and 4 <= len(line.text) <= MAX_INSET]
    told = [line.text for line in labelled if not line.noise]
    hosts = [line for line in [*prose, *told] if MIN_HOST <= len(line) <= MAX_HOST]
    kinds = drawn.choices(
        (short, known, ()), (SHARE_OF_LINES, 1 - SHARE_OF_LINES - SHARE_OF_MARKS, SHARE_OF_MARKS), k=GLUED
    )
    glued = [glue(drawn.choice(kind) if kind else mark(drawn), drawn.choice(hosts), drawn) for kind in kinds]
    lines = [*prose, *told * HARD]
    pieces = pieces_of(lines)
    plain = [lines[n] for n in np.flatnonzero(insets.odd(pieces)).tolist()]
    return [example(text, span) for text, span in glued] + [example(text[:MAX_HOST], None) for text in plain]


def example(text: str, span: tuple[int, int] | None) -> Example:
    lines = pieces_of([text])
    code_C, _ = insets.usual(lines, np.zeros(1, np.int64))
    places = len(text) + 1
    roles = (insets.INSIDE, insets.BEGINS, insets.ENDED)
    inside, begins, ended = (
        np.stack([bucket[:places] for bucket in insets.buckets(code_C, role)], 1) for role in roles
    )
    return Example(inside, begins, ended, span)


def train(found: list[Example]) -> NDArray[np.int16]:
    """Weights of an averaged structured perceptron: where it is wrong, or right by less than MARGIN, what it took loses
    and what is true gains."""
    weight_B, sum_B = np.zeros((2, insets.NUM_BUCKETS))
    drawn, step = random.Random(SEED), 0
    for _ in range(EPOCHS):
        drawn.shuffle(found)
        for one in found:
            step += 1
            taken, total = _best(one, weight_B)
            wrong = taken if total > (0 if one.span else -MARGIN) and taken != one.span else None
            right = one.span if one.span and (wrong or taken != one.span or total < MARGIN) else None
            for span, sign in ((wrong, -1), (right, 1)):
                if span:
                    first, last = span
                    for bucket in (one.inside[first:last].ravel(), one.begins[first], one.ended[last]):
                        np.add.at(weight_B, bucket, sign)
                        np.add.at(sum_B, bucket, sign * step)
    return np.clip(np.round(UNIT * (weight_B - sum_B / step)), -32768, 32767).astype(np.int16)


def _best(one: Example, weight_B: NDArray[np.float64]) -> tuple[tuple[int, int], float]:
    """The run of characters with the highest sum."""
    before_C = np.append(0, np.cumsum(weight_B[one.inside].sum(1)))[:-1]
    begin_C = weight_B[one.begins].sum(1) - before_C
    end_C = (weight_B[one.ended].sum(1) + before_C)[insets.MIN_CHARS :]
    highest_C = np.maximum.accumulate(begin_C)[: len(end_C)]
    last = int(np.argmax(end_C + highest_C))
    return (int(np.argmax(begin_C[: last + 1])), last + insets.MIN_CHARS), float(end_C[last] + highest_C[last])


def save(weight_B: NDArray[np.int16]) -> None:
    np.savez_compressed(MODEL, weight_B=weight_B, bar=np.int64(BAR * UNIT))
    print(f"{MODEL}: {Path(MODEL).stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
