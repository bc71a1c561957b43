"""The loss gate: what a run's loss says of it, in a word and a sentence. Pure arithmetic.

Losses of single steps are noisy and now and then far off, so they are read as medians of up to 10 windows of equal
length. Two medians differ where they lie further apart than 3 standard errors of a median, and than `SMALL`. That error
is 1.2533 s / sqrt(n) for n losses of standard deviation s (Kenney & Keeping 1962), and s is 1.4826 times the median
absolute deviation of all losses from their window's median (Hampel 1974): so outliers do not widen it.

The band is the reference preset's: a base of 8 billion parameters on Chinese prose starts at about 2.5 nats per token
and should fall to 1.8 or less. Other bases, tokenizers and languages have other losses, so the level is judged for
bases of that class alone; of all others, the trend.
"""

import itertools
import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

BAND = (2.5, 1.8)  # nats per token, from start to end
PLATEAU = 2.0  # nats per token: level above which a loss that no longer falls has not learned the style
BAND_PARAMETERS = (4e9, 16e9)  # what counts as an 8B-class base
WINDOWS = 10
LEAST_PER_WINDOW, LEAST_WINDOWS = 4, 4
SMALL = 0.02  # nats per token, by which a token is 2 % likelier; less is not called a change
# A rise above the lowest point by this many nats per token is diverging, noise or not; held out, it is over-learning.
RISE = 0.05

Points = Sequence[tuple[float, float]]


class Gate(NamedTuple):
    """`word` is `falling smoothly`, `plateau above 2.0`, `diverging` or `undecided`; `sentence` says why."""

    word: str
    sentence: str


class Window(NamedTuple):
    """A stretch of a loss curve: its last step, its median, and that median's standard error, in nats per token."""

    step: float
    loss: float
    error: float


def judge(losses: Points, heldout: Points, base_parameters: float | None = None) -> Gate:
    """The gate's word on (step, loss) of training and of held-out text, in nats per token."""
    in_class = base_parameters is not None and BAND_PARAMETERS[0] <= base_parameters <= BAND_PARAMETERS[1]
    if any(not math.isfinite(loss) for _, loss in losses):
        return Gate("diverging", "A loss is not a finite number.")
    found = windows(losses)
    if len(found) < LEAST_WINDOWS:
        return Gate("undecided", f"{len(losses)} logged losses are too few to see a trend.")
    first, last, lowest = found[0], found[-1], min(found, key=lambda window: window.loss)
    if last.loss - lowest.loss > max(RISE, _noise(lowest, last)):
        return Gate(
            "diverging",
            f"The loss rose from {lowest.loss:.2f} (step {lowest.step:g}) to {last.loss:.2f} nats per token at the end: "
            "a lower learning rate, or the checkpoint before the rise.",
        )
    if heldout and heldout[-1][1] - (best := min(heldout, key=lambda point: point[1]))[1] > RISE:
        return Gate(
            "diverging",
            f"The held-out loss rose from {best[1]:.2f} (step {best[0]:g}) to {heldout[-1][1]:.2f} nats per token while "
            f"the training loss went from {first.loss:.2f} to {last.loss:.2f}: the training text is being learned by "
            "heart; an earlier checkpoint is better.",
        )
    middle = found[len(found) // 2]
    is_flat = middle.loss - last.loss <= max(SMALL, _noise(middle, last))
    if is_flat and last.loss > PLATEAU and in_class:
        return Gate(
            "plateau above 2.0",
            f"The loss has stayed at {last.loss:.2f} nats per token since step {middle.step:g}, and the reference band "
            f"ends at {BAND[1]} or less: a higher learning rate, or more steps.",
        )
    if is_flat and first.loss - last.loss <= max(SMALL, _noise(first, last)):
        return Gate("undecided", f"The loss did not move from {first.loss:.2f} nats per token.{_remark(in_class)}")
    rises = [b for a, b in itertools.pairwise(found) if b.loss - a.loss > max(SMALL, _noise(a, b))]
    fell = f"from {first.loss:.2f} to {last.loss:.2f} nats per token"
    if rises:
        return Gate("undecided", f"The loss fell {fell}, but rose around step {rises[0].step:g}.{_remark(in_class)}")
    end = f" and has been level since step {middle.step:g}" if is_flat else ""
    reach = ""
    if in_class:
        reach = ", inside" if last.loss <= BAND[1] else ", short of"
        reach += f" the reference band's end ({BAND[1]} or less)"
    return Gate("falling smoothly", f"The loss fell {fell}{reach}{end}.{_remark(in_class)}")


def _remark(in_class: bool) -> str:
    if in_class:
        return ""
    return f" The reference band ({BAND[0]} to {BAND[1]}) is for 8B-class bases on Chinese prose and says nothing here."


def windows(losses: Points) -> list[Window]:
    """Up to `WINDOWS` stretches of equal length, none of fewer than `LEAST_PER_WINDOW` losses."""
    count = min(WINDOWS, len(losses) // LEAST_PER_WINDOW)
    cuts = [round(i * len(losses) / count) for i in range(count + 1)] if count else []
    pieces = [losses[start:end] for start, end in itertools.pairwise(cuts)]
    medians = [statistics.median(loss for _, loss in piece) for piece in pieces]
    away = [abs(loss - median) for piece, median in zip(pieces, medians, strict=True) for _, loss in piece]
    deviation = 1.4826 * statistics.median(away) if away else 0.0
    return [
        Window(piece[-1][0], median, 1.2533 * deviation / math.sqrt(len(piece)))
        for piece, median in zip(pieces, medians, strict=True)
    ]


def _noise(a: Window, b: Window) -> float:
    """How far apart two medians may lie by chance."""
    return 3 * math.hypot(a.error, b.error)
