"""One progress bar for every stage: in place on a terminal, at most a line each ten seconds elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

LINE_INTERVAL_S = 10.0


class Bar:
    """Counts units done; how it shows them depends on where stderr goes."""

    def __init__(self, total: float | None, title: str, unit: str) -> None:
        from tqdm import tqdm

        self._terminal = sys.stderr.isatty()
        self._title, self._unit, self._total = title, unit, total
        self._done, self._note, self._started, self._printed = 0.0, "", time.monotonic(), time.monotonic()
        self._tqdm = tqdm(
            total=total, desc=title, unit=unit, unit_scale=True, file=sys.stderr, disable=not self._terminal, leave=True
        )

    def update(self, amount: float = 1, note: str = "") -> None:
        """`amount` more units are done; `note` is shown beside them (a loss, a file name)."""
        self._done += amount
        self._note = note or self._note
        if self._terminal:
            if note:
                self._tqdm.set_postfix_str(note, refresh=False)
            self._tqdm.update(amount)
        elif time.monotonic() - self._printed >= LINE_INTERVAL_S:
            self._line()

    def close(self) -> None:
        self._tqdm.close()
        if not self._terminal:
            self._line()

    def _line(self) -> None:
        self._printed = time.monotonic()
        line = self._tqdm.format_meter(
            self._done, self._total, self._printed - self._started, ncols=100, prefix=self._title, unit=self._unit,
            unit_scale=True, postfix=self._note or None,
        )  # fmt: skip
        print(line, file=sys.stderr, flush=True)


@contextmanager
def bar(total: float | None, title: str, unit: str = "it") -> Iterator[Bar]:
    """A bar over `total` units (None: unknown) for the length of a `with` block."""
    shown = Bar(total, title, unit)
    try:
        yield shown
    finally:
        shown.close()
