"""Checkpoints are evaluated while training goes on, beside it: Ray Train's validation (alpha in Ray 2.60).

Ray Train starts one validation at a time and survives an exception in it, but not a validation whose process is killed:
that would end the run. So what Ray Train starts is a watcher that takes no resources and does nothing that can fail. It
starts the evaluation in a process of its own, waits, ends it when its time is up, and writes down what came of it
(`metrics.py`), whatever that is.

Training comes first. An evaluation runs on a node that has a core (a GPU, where training uses GPUs) to spare when all
workers have theirs: also workers that start again after a failure find their place free. Where no node has, nothing is
evaluated beside training. What has not begun when training stops is left undone, and what has begun gets `GRACE_S`:
Ray Train does not end before its watchers do. The evaluation afterwards finds what is left.
"""

import functools
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from raystyle import storage
from raystyle.errors import StorageError
from raystyle.training import metrics

Validate = Callable[[str], Mapping[str, Any]]
Resources = Mapping[str, float]

# While this file is there, no training goes on: evaluations that have not begun give up, and running ones soon do.
STOPPED = f"{metrics.FOLDER}/.stopped"
POLL_INTERVAL_S = 1.0
# What a run's end may wait for a running evaluation: enough for one that is nearly done, little for one that hangs.
GRACE_S = 60.0
WATCHER_RETRIES = 10  # after lost nodes: an error of the watcher's own process is one that Ray Train does not survive
# One thread: its core is the only one that training leaves to it.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
NICENESS = 10  # where Ray counts more cores than the machine has, training goes first


def room(nodes: Mapping[str, Resources], worker: Resources, num_workers: int, need: Resources) -> str | None:
    """The id of a node that can spare `need` while all workers fit on what is left of the cluster; None: there is none.

    `nodes` are all nodes' resources by id, whatever uses them now. The node with the most of what is needed is taken.
    """
    order = sorted(nodes, key=lambda node: [nodes[node].get(name, 0) for name in need], reverse=True)
    for node in order:
        left = {name: nodes[node].get(name, 0) - need.get(name, 0) for name in {*nodes[node], *need}}
        rest = [left if other == node else nodes[other] for other in nodes]
        if min(left.values()) >= 0 and sum(map(functools.partial(_count, worker), rest)) >= num_workers:
            return node
    return None


def _count(worker: Resources, node: Resources) -> int:
    """How many workers a node holds."""
    return min(math.floor(node.get(name, 0) / amount) for name, amount in worker.items() if amount)


def needed(use_gpu: bool) -> dict[str, float]:
    """What an evaluation takes. Beside a GPU no core is counted: training's workers share out all of them."""
    return {"GPU": 1} if use_gpu else {"CPU": 1}


def outlook(node: str | None, use_gpu: bool, cpus_per_worker: int) -> str:
    """Said before training starts: whether checkpoints are evaluated beside it, or when it ends."""
    if node is not None:
        return f"each checkpoint is evaluated beside training, on a {'GPU' if use_gpu else 'CPU core'} of its own"
    what = "GPU" if use_gpu else "CPU core"
    hint = f" (`--cpus_per_worker {cpus_per_worker - 1}` may leave one)" if not use_gpu and cpus_per_worker > 1 else ""
    return f"checkpoints are evaluated when training ends: its workers leave no {what} free{hint}"


def ray_config(
    validate: Validate, output_dir: str, node: str, *, use_gpu: bool, timeout_s: float, tensorboard: bool
) -> Any:
    """Ray Train's `ValidationConfig`: a watcher for each checkpoint that rank 0 reports with `validation=True`."""
    import ray.train
    from ray import cloudpickle

    watcher = functools.partial(
        watch,
        # As bytes, opened where it runs: one that cannot be opened is a failed evaluation, not a failed controller.
        validate=cloudpickle.dumps(validate),
        output_dir=output_dir,
        node=node,
        use_gpu=use_gpu,
        timeout_s=timeout_s,
        grace_s=GRACE_S,
        tensorboard=tensorboard,
    )
    return ray.train.ValidationConfig(watcher, ray_remote_kwargs={"num_cpus": 0, "max_retries": WATCHER_RETRIES})


def callback(output_dir: str) -> Any:
    """Ray Train's callback that marks training as stopped when a worker has failed, in the controller's process."""
    import ray.train

    class Stopped(ray.train.UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: Any) -> None:
            try:
                mark_stopped(output_dir)
            except StorageError as error:  # then an evaluation may begin though no training goes on: no harm
                print(error, file=sys.stderr)

    return Stopped()


def mark_stopped(output_dir: str) -> None:
    storage.write_json(storage.join(output_dir, STOPPED), {"unix_s": round(time.time(), 3)})


def mark_going_on(output_dir: str) -> None:
    storage.delete(storage.join(output_dir, STOPPED))


def _is_stopped(output_dir: str) -> bool:
    try:
        return storage.exists(storage.join(output_dir, STOPPED))
    except StorageError as error:  # then it is not known to be; an evaluation has its time limit all the same
        print(error, file=sys.stderr)
        return False


def watch(
    checkpoint: Any,
    *,
    validate: bytes,
    output_dir: str,
    node: str,
    use_gpu: bool,
    timeout_s: float,
    grace_s: float,
    tensorboard: bool,
) -> dict[str, Any]:
    """Have one checkpoint evaluated and write down what came of it; raises nothing. What Ray Train runs as a task."""
    name = storage.basename(checkpoint.path)
    step = int(name.removeprefix("step-"))
    try:
        if any(record["step"] == step and "failed" not in record for record in metrics.evaluations(output_dir)):
            return {}  # this watcher's second try, or a step that was trained again after a failure: the same weights
        uri = storage.join(output_dir, "checkpoints", name)
        if not storage.exists(uri):
            raise FileNotFoundError("its checkpoint was deleted (`save_total_limit`) before it could begin")
        numbers = _evaluate(validate, uri, output_dir, node, use_gpu, timeout_s, grace_s)
        if numbers is not None:
            metrics.write_evaluation(output_dir, step, numbers, tensorboard=tensorboard)
    except Exception as error:
        print(f"evaluation of step {step}: {error}", file=sys.stderr)
        try:
            metrics.write_failure(output_dir, step, _reason(error))
        except StorageError as unwritten:
            print(unwritten, file=sys.stderr)
    return {}


def _evaluate(
    validate: bytes, uri: str, output_dir: str, node: str, use_gpu: bool, timeout_s: float, grace_s: float
) -> Mapping[str, Any] | None:
    """The numbers of one checkpoint; None where training stopped first. Raises what went wrong."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if _is_stopped(output_dir):
        return None
    process: Any = (
        ray.remote(Evaluation)
        .options(
            num_cpus=0 if use_gpu else 1,
            num_gpus=1 if use_gpu else 0,
            # May restart, which nobody waits for: where memory runs short, Ray ends such a process before any other.
            max_restarts=1,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
            runtime_env={"env_vars": ENVIRONMENT},
        )
        .remote()
    )
    try:
        started = process.__ray_ready__.remote()
        is_started = False
        while not is_started:
            is_started = bool(ray.wait([started], timeout=POLL_INTERVAL_S)[0])
            if _is_stopped(output_dir):
                return None
        ray.get(started)
        answer = process.numbers.remote(validate, uri)
        if not _is_answered(answer, output_dir, timeout_s, grace_s):
            return None
        numbers = ray.get(answer)
    finally:
        ray.kill(process)
    if not isinstance(numbers, Mapping):
        raise TypeError(f"the evaluation returned a {type(numbers).__name__}, not numbers by name")
    return numbers


def _is_answered(answer: Any, output_dir: str, timeout_s: float, grace_s: float) -> bool:
    """Wait for an evaluation; False where training has been stopped for `grace_s` and there is still no answer.

    Raises `TimeoutError` after `timeout_s`. A training that starts again, after a failure, gives back the whole time.
    """
    import ray

    began_s, stopped_s = time.monotonic(), None
    while not ray.wait([answer], timeout=POLL_INTERVAL_S)[0]:
        now_s = time.monotonic()
        if now_s - began_s >= timeout_s:
            raise TimeoutError(f"no answer within {timeout_s:g} s (`eval_timeout_s`)")
        if not _is_stopped(output_dir):
            stopped_s = None
        elif stopped_s is None:
            stopped_s = now_s
        elif now_s - stopped_s >= grace_s:
            return False
    return True


class Evaluation:
    """The process in which a checkpoint is evaluated."""

    def numbers(self, validate: bytes, uri: str) -> Any:
        from ray import cloudpickle

        os.nice(NICENESS)
        return cloudpickle.loads(validate)(uri)


def _reason(error: Exception) -> str:
    """What went wrong, in one line."""
    import ray

    if isinstance(error, ray.exceptions.RayActorError):
        memory = ": the node ran short of memory" if "low on memory" in str(error) else ""
        return f"its process was killed{memory}"
    cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
    first = str(cause).strip().splitlines()[:1]
    if type(cause) in (TimeoutError, FileNotFoundError) and cause is error:  # this module's own, which say it all
        return first[0]
    return ": ".join([type(cause).__name__, *first])
