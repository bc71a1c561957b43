"""The bench's results as Markdown: ratios first, then speed, memory, linearity, and whether the tools did the same work."""

import os
import platform
import re
from pathlib import Path
from typing import Any

ALONE, OURS, DOZEN = "alone", "raystyle", "raystyle, the peers' rules"
MB, GB = 1e6, 1e9
STARTUP_SHARE = 0.75
Results = dict[tuple[float, str, str], dict[str, Any]]  # by size in MB, tool and task

HEAD = """# Corpus preparation against its peers

Written by `python bench/prepare.py`. {machine}. {packages}.

`clean` is raw novels to clean documents on disk; `rows` is raw novels to token ids on disk, cleaning included. Each tool is
a process of its own in its own environment with {cores} workers, start-up included; start-up is what {startup:g} MB take. MB are 10^6 bytes of the raw text as
UTF-8; MB/s per core are MB per CPU-second of all its processes; peak memory is their sum of PSS. {corpus}

raystyle reads the novels as downloaded (.txt) with its default rules, keeps every removal on disk with its place and
reason, and records where each row came from. The peers read the same text as JSON lines (`peers/corpus.py`; not timed) with
a dozen rules (`peers/rules.py`) and keep the text alone. "The peers' rules" is raystyle with just those
(`peers/rules.yaml`): it leaves the same text, to the character. Data-Juicer counts tokens but writes no rows;
datatrove writes flat tokens, which are cut into rows when read; `datasets.map` drops the tail of each batch.
"""


def report(results: dict[str, dict[str, Any]], packages: str) -> str:
    """Results of one corpus, by `corpus/size/tool/task`."""
    name = next(iter(results)).split("/")[0]
    found: Results = {}
    for key, result in results.items():
        _, size, tool, task = key.split("/")
        found[float(size), tool, task] = result
    measured = sorted({size for size, _, _ in found})
    startup, sizes = measured[0], measured[1:]
    tools = sorted({tool: None for _, tool, _ in found if tool != ALONE}, key=lambda tool: not tool.startswith(OURS))
    parts = [
        HEAD.format(
            machine=_machine(),
            packages=packages,
            startup=startup,
            cores=next(iter(results.values()))["cores"],
            corpus=_corpus(name, found, sizes),
        ),
        _shared(found),
        _ratios(found, sizes[-1], tools),
    ]
    for task in ("clean", "rows"):
        parts += [_speed(found, task, startup, sizes, tools), _growth(found, task, startup, sizes, tools)]
    parts += [_alone(found, sizes), _same_work(found, sizes, tools)]
    return "\n".join(part for part in parts if part)


def _ratios(found: Results, size: float, tools: list[str]) -> str:
    """How many times faster raystyle is, at the largest size."""
    rows = []
    for own in (OURS, DOZEN):
        for tool in tools:
            cells = []
            for task in ("clean", "rows"):
                ours, theirs = found.get((size, own, task)), found.get((size, tool, task))
                cells += [
                    _ratio(theirs, ours, "wall_s"),
                    _ratio(theirs, ours, "cpu_s"),
                    _ratio(ours, theirs, "peak_bytes"),
                ]
            if not tool.startswith(OURS) and any(cells):
                rows.append([own, tool, *cells])
    head = ["of", "against", "clean: speed", "per core", "memory", "rows: speed", "per core", "memory"]
    return (
        f"## Ratios at {size:g} MB\n\nSpeed: above 1, raystyle is faster. Memory: below 1, raystyle needs less.\n\n"
        + table(head, rows)
    )


def _speed(found: Results, task: str, startup: float, sizes: list[float], tools: list[str]) -> str:
    head = [task, "start-up s", *(f"{size:g} MB: MB/s (less start-up), per core" for size in sizes)]
    rows = []
    for tool in tools:
        start = _seconds(found.get((startup, tool, task)))
        cells = []
        for size in sizes:
            result = found.get((size, tool, task))
            if seconds := _seconds(result):
                cells.append(f"{size / seconds:.1f} ({_beyond(size, seconds, start)}), {size / result['cpu_s']:.1f}")
            else:
                cells.append(_missing(result))
        rows.append([tool, f"{start:.1f}" if start else "", *cells])
    return f"## {task}\n\n" + table(head, rows)


def _beyond(size: float, seconds: float, start: float | None) -> str:
    """MB/s less start-up, where start-up is not most of it: its own spread would be larger than what is left."""
    return f"{size / (seconds - start):.1f}" if start and start < STARTUP_SHARE * seconds else "–"


def _growth(found: Results, task: str, startup: float, sizes: list[float], tools: list[str]) -> str:
    """Seconds and peak memory at each size."""
    head = [f"{task}: seconds; peak GB", *(f"{size:g} MB" for size in [startup, *sizes])]
    rows = []
    for tool in tools:
        cells = []
        for size in [startup, *sizes]:
            result = found.get((size, tool, task))
            seconds = _seconds(result)
            cells.append(f"{seconds:.1f}; {result['peak_bytes'] / GB:.2f}" if seconds else _missing(result))
        rows.append([tool, *cells])
    return table(head, rows)


def _alone(found: Results, sizes: list[float]) -> str:
    """What cleaning does on one core with nothing around it, and how near rows come to the tokenizer."""
    rows = []
    for size in sizes:
        kernel, tokenizer = found.get((size, ALONE, "clean")), found.get((size, ALONE, "rows"))
        ours, cells = _seconds(found.get((size, OURS, "rows"))), [""] * 5
        if kernel:
            cells[:3] = [f"{kernel['size'] / MB / kernel[took]:.1f}" for took in ("wall_s", "dozen_s", "peers_s")]
        if tokenizer:
            ceiling = tokenizer["size"] / MB / tokenizer["wall_s"]
            cells[3] = f"{ceiling:.2f} ({tokenizer['size'] / MB / tokenizer['cpu_s']:.2f} per core)"
            start = _seconds(found.get((min(s for s, _, _ in found), OURS, "rows"))) or 0.0
            if ours:
                beyond = f" ({size / (ours - start) / ceiling:.0%})" if start < STARTUP_SHARE * ours else ""
                cells[4] = f"{size / ours / ceiling:.0%}{beyond}"
        rows.append([f"{size:g} MB", *cells])
    head = [
        "",
        "raystyle's cleaning alone, one core, MB/s",
        "with the peers' rules",
        "the peers' rules as they use them",
    ]
    head += ["tokenizer alone, all cores, MB/s"]
    return (
        "## Alone\n\nThe tokenizer encodes chunks of clean text in one process per core; nothing is read, cleaned or written.\n\n"
        + table([*head, "raystyle's rows reach (less start-up)"], rows)
    )


def _same_work(found: Results, sizes: list[float], tools: list[str]) -> str:
    """Characters kept and tokens made, which should agree within a few per cent."""
    rows = []
    for size in sizes:
        for tool in tools:
            clean, packed = found.get((size, tool, "clean"), {}), found.get((size, tool, "rows"), {})
            kept = f"{clean['characters'] / clean['corpus'][1]:.2%}" if clean.get("characters") else ""
            rows.append([f"{size:g} MB", tool, kept, f"{packed['tokens']:,}" if packed.get("tokens") else ""])
    return "## The same work\n\n" + table(["", "tool", "characters kept", "tokens"], rows)


def _corpus(name: str, found: Results, sizes: list[float]) -> str:
    facts = {size: result["corpus"] for (size, _, _), result in found.items()}
    counts = ", ".join(f"{facts[size][2]:,} novels of {facts[size][3]:,} chapters at {size:g} MB" for size in sizes)
    made = (
        "made up (`peers/novels.py`; a tokenizer is 0.98 times as fast on them as on real ones)"
        if name == "made-up"
        else f"those of the folder `{name}`, copies varied"
    )
    return f"The novels are {made}: {counts}."


def _shared(found: Results) -> str:
    """A warning where other work ran on the machine."""
    busiest = max(result.get("others", 0.0) for result in found.values())
    if busiest < 0.2:
        return ""
    return f"**Others used the machine meanwhile, up to {busiest:.1f} cores of it: MB/s are too low, MB/s per core nearly right.**\n"


def _ratio(above: dict[str, Any] | None, below: dict[str, Any] | None, what: str) -> str:
    return f"{above[what] / below[what]:.2f}" if _seconds(above) and _seconds(below) else ""


def _seconds(result: dict[str, Any] | None) -> float | None:
    return result["wall_s"] if result and "failure" not in result else None


def _missing(result: dict[str, Any] | None) -> str:
    return f"failed: {result['failure'][:80]}".replace("|", "/") if result else ""


def _machine() -> str:
    cpu = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores ({cpu[1] if cpu else platform.machine()}), {memory:.0f} GiB, Python {platform.python_version()}"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"
