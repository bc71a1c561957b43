"""How a step's tasks run: through Ray Data, on the nodes that were asked for. The corpus imports ray here alone.

A job is a function's arguments; what that gives back is small, for what it makes stands in storage. From one task of Ray
Data to the next a core has nothing to do for a tenth of a second and more, so each task does several jobs, one after
another, and fewer towards the end.
"""

import logging
import os
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import ray

from raystyle.errors import RaystyleError
from raystyle.progress import bar

# Four groups of files, or five shards of rows: five to thirty seconds' work, after which the bar moves on.
MAX_BLOCK_BYTES = 64 << 20
# And of jobs that are counted otherwise, or are small, so many: the bar is to move.
MAX_BLOCK_JOBS = 8


def each(
    function: Callable[..., dict[str, Any]], jobs: list[Any], sizes: list[int], title: str, unit: str = "B",
    threads: bool = False,
) -> list[dict[str, Any]]:  # fmt: skip
    """Call a function with each job's arguments; results in the jobs' order. `sizes` are what the bar counts, in `unit`s.

    A `RaystyleError` of one job is raised here; of the jobs that were to follow it in its task none is begun. `threads` lets
    the tokenizer use all cores: right where there is one job.
    """
    if not jobs:
        return []

    def run(block: pa.Table) -> pa.Table:
        use_one_core(threads)
        results: list[dict[str, Any] | RaystyleError] = []
        for job in block["job"].to_pylist():
            try:
                results.append(function(*pickle.loads(job)))
            except RaystyleError as error:
                # Ray would wrap it, log it twice, and lose what it was.
                results.append(error)
                break
        return pa.table({"index": block["index"][: len(results)], "result": list(map(pickle.dumps, results))})

    results: dict[int, dict[str, Any]] = {}
    tables = [
        pa.table({"index": list(block), "job": [pickle.dumps(jobs[index]) for index in block]})
        for block in blocks(sizes, _cores())
    ]
    with _quiet_ray_data(), bar(sum(sizes), title, unit) as progress:
        done = ray.data.from_arrow(tables).map_batches(run, batch_size=None, batch_format="pyarrow", num_cpus=1)
        for row in done.iter_rows():
            result = pickle.loads(row["result"])
            if isinstance(result, RaystyleError):
                raise result
            results[row["index"]] = result
            progress.update(sizes[row["index"]])
    return [results[index] for index in range(len(jobs))]


def _cores() -> int:
    """How many cores there are now for tasks; 0 where all have yet to come."""
    nodes = [node for node in ray.nodes() if node["Alive"] and _selector().items() <= node["Labels"].items()]
    return int(sum(node["Resources"].get("CPU", 0) for node in nodes))


def blocks(sizes: Sequence[int], cores: int) -> list[range]:
    """Jobs, in their order, as runs of them: each is half of what a core's share of the rest would be, so that all cores end
    together (guided self-scheduling; Polychronopoulos and Kuck, IEEE Transactions on Computers 36, 1987). With no cores yet,
    each job by itself, for there may be many."""
    found: list[range] = []
    start, left = 0, sum(sizes)
    while start < len(sizes):
        wanted = min(MAX_BLOCK_BYTES, left // (2 * cores)) if cores else 0
        end, size = start + 1, sizes[start]
        while end < min(len(sizes), start + MAX_BLOCK_JOBS) and size + sizes[end] <= wanted:
            size += sizes[end]
            end += 1
        found.append(range(start, end))
        start, left = end, left - size
    return found


def use_one_core(threads: bool = False) -> None:
    """In a task's process: one process per core, and more threads would only get in each other's way."""
    os.environ["TOKENIZERS_PARALLELISM"] = str(threads).lower()
    os.environ["RAYON_NUM_THREADS"] = "1"
    pa.set_cpu_count(1)


def once(function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Call a function on some worker, which has more memory to spare than the driver."""

    def run() -> dict[str, Any] | RaystyleError:
        try:
            return function()
        except RaystyleError as error:
            return error

    result = ray.get(ray.remote(num_cpus=1, label_selector=_selector())(run).remote())
    if isinstance(result, RaystyleError):
        raise result
    return result


def _selector() -> dict[str, str]:
    """The labels that nodes must have for tasks to run on them."""
    return ray.data.DataContext.get_current().execution_options.label_selector or {}


@contextmanager
def placed(selector: dict[str, str]) -> Iterator[None]:
    """Tasks of the block run on nodes with these labels; on any, where there are none."""
    if not any(selector.items() <= node["Labels"].items() for node in ray.nodes() if node["Alive"]):
        print(f"no node is labelled {selector} yet; waiting for one", file=sys.stderr, flush=True)
    options = ray.data.DataContext.get_current().execution_options
    before, options.label_selector = options.label_selector, selector or None
    try:
        yield
    finally:
        options.label_selector = before


@contextmanager
def _quiet_ray_data() -> Iterator[None]:
    """Ray Data without its own bars and logs; ours says what the user wants to know. As it was, afterwards."""
    context, logger = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    before = context.enable_progress_bars, context.print_on_execution_start, logger.level
    context.enable_progress_bars = context.print_on_execution_start = False
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars, context.print_on_execution_start = before[:2]
        logger.setLevel(before[2])
