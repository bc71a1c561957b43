"""Kill `raystyle train` at random moments, and compare rows, losses and adapter with a run that nothing happened to.

    python bench/kills.py                        20 kills; about an hour on two cores
    python bench/kills.py --kills 6 --steps 1600 --seed 2

Two nodes of one core each. A run of `--num_workers 1..2` is hit again and again, each time at another step, by SIGKILL to

    worker      a training worker                      driver      the process the command started: it is given again
    node        all of the second node: the run goes on with one worker, until the node is back

and another run, of two workers, by kills of workers and of the driver alone. What they are compared with was trained
without Ray, by torchrun. Which row each place of each step took is written down by every worker: all must have taken the
same. One worker sums in another order than two, and what training makes of that grows with the learning rate: at 3e-3 tenfold in
sixty steps of this model. Only processes that this bench started are killed.
"""

import argparse
import contextlib
import functools
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import builders
import resume
from safetensors.torch import load_file

HERE = Path(__file__).resolve().parent
GLOBAL_BATCH = 4
WAIT_S = 600.0
# Every row that a worker asks for is written down.
NOTING = """
import os

get = module.Placed.__getitem__

def noted(self, key):
    with open(os.path.join(os.environ["RAYSTYLE_BENCH_ROWS"], str(os.getpid())), "a") as file:
        file.write(f"{key[0]} {key[1]}\\n")
    return get(self, key)

module.Placed.__getitem__ = noted
"""


class Kill(NamedTuple):
    """What was killed, at which step; from which step and with how many workers the run went on, after how long."""

    target: str
    at_step: int
    from_step: int
    num_workers: int
    after_s: float


def told(output: Path) -> list[dict]:
    """The run's metrics as they are now."""
    with contextlib.suppress(OSError, ValueError):
        return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return []


def last_step(entries: list[dict]) -> int:
    return max((entry["step"] for entry in entries if "loss" in entry), default=0)


def start_of(output: Path) -> tuple[int, int]:
    """Of the workers' last start that the metrics tell of: from which step, how many."""
    starts = [entry for entry in told(output) if "num_workers" in entry]
    return (starts[-1].get("continued_from_step", 0), starts[-1]["num_workers"]) if starts else (0, 0)


def rows_taken(folder: Path) -> set[tuple[int, int]]:
    """Every (place, row) that a worker read; a line that a kill cut off is none."""
    lines = [line for file in folder.iterdir() for line in file.read_text().splitlines(keepends=True)]
    return {(int(place), int(row)) for place, row in (line.split() for line in lines if line.endswith("\n"))}


class Command:
    """`raystyle train` in a cluster: given again when it has ended before the run has."""

    def __init__(self, words: list[str], output: Path, address: str) -> None:
        self.words, self.output, self.address = words, output, address
        self.given = 0
        self.give()

    def give(self) -> None:
        self.given += 1
        self.run = resume.Run(self.words, RAY_ADDRESS=self.address, RAY_AUTH_MODE="token")
        self.said: deque[str] = deque(maxlen=20)  # the last lines: nobody reads the bar
        threading.Thread(target=self.said.extend, args=(self.run.process.stderr,), daemon=True).start()

    def is_done(self) -> bool:
        """Whether the run has ended; gives the command again where it has not. A refused one would be refused again."""
        if not self.run.ended():
            return False
        if self.run.process.returncode == 0:
            return True
        if self.run.process.returncode == 2:
            raise AssertionError(f"the command is refused: {''.join(self.said)}")
        if self.run.process.returncode != -signal.SIGKILL:
            print(
                f"  the command ended with {self.run.process.returncode}: {''.join(list(self.said)[-5:])}", flush=True
            )
        self.give()
        return False


def disturb(command: Command, ray: resume.Cluster, targets: list[str], steps: int, dice: random.Random) -> list[Kill]:
    """One run to its end, with a kill of each target at a step of its own."""
    kills: list[Kill] = []
    for number, target in enumerate(targets):
        # Steps are left after the last one: while a node is away the run goes on, and might end before the next kill.
        part = steps // (len(targets) + 4)
        due = dice.randint(number * part, (number + 1) * part)
        _until(functools.partial(_has_come, command, max(due, 1)), f"step {due}")
        time.sleep(dice.uniform(0, 1))
        if command.is_done():
            print(f"the run was over before kill {number}: more steps are needed", flush=True)
            return kills
        before, then = told(command.output), time.monotonic()
        _kill(target, command, ray, dice)
        _until(functools.partial(_goes_on, command, before), f"going on after {target}")
        kills.append(Kill(target, last_step(before), *start_of(command.output), time.monotonic() - then))
        print(number, *kills[-1], flush=True)
        if target == "node":
            ray.start_second()
            _until(lambda: command.is_done() or start_of(command.output)[1] == 2, "two workers again")
            print("  two workers again, from step", start_of(command.output)[0], flush=True)
    _until(command.is_done, "the end", 2 * WAIT_S)
    return kills


def _kill(target: str, command: Command, ray: resume.Cluster, dice: random.Random) -> None:
    if target == "driver":
        os.kill(command.run.process.pid, signal.SIGKILL)
    elif target == "node":
        ray.kill_second()
    else:
        processes = {pid: title for node in ray.nodes for pid, title in node.processes().items()}
        workers = sorted(pid for pid, title in processes.items() if title.startswith("ray::RayTrainWorker"))
        os.kill(dice.choice(workers), signal.SIGKILL)


def _has_come(command: Command, step: int) -> bool:
    return last_step(told(command.output)) >= step or command.is_done()


def _goes_on(command: Command, before: list[dict]) -> bool:
    """Whether a step that had been made is made anew, which its speed tells, or many more are made."""
    if command.is_done():
        return True
    speeds = {entry["step"]: entry["tokens_per_second"] for entry in before if "loss" in entry}
    now = [entry for entry in told(command.output) if "loss" in entry]
    is_anew = any(speeds.get(entry["step"], entry["tokens_per_second"]) != entry["tokens_per_second"] for entry in now)
    return is_anew or last_step(now) > last_step(before) + 100


def _until(condition: Callable[[], bool], what: str, timeout_s: float = WAIT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {timeout_s:.0f} s")
        time.sleep(0.2)


def distance(a: Path, b: Path) -> tuple[bool, float]:
    """Whether two adapters are equal to the last bit, and how far they are apart, relative to the largest weight of each."""
    ours, theirs = (load_file(path / "adapter" / "adapter_model.safetensors") for path in (a, b))
    assert ours.keys() == theirs.keys()
    return (
        all(bool((ours[name] == theirs[name]).all()) for name in ours),
        max(float((ours[name] - theirs[name]).abs().max() / theirs[name].abs().max()) for name in ours),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument("--save_steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    dice = random.Random(args.seed)
    work = Path(tempfile.mkdtemp(prefix="raystyle-kills-"))
    model = builders.write_model(work / "model")
    prepared = builders.write_prepared(work / "prepared", model, rows=64)
    site = builders.write_site(work / "site", "raystyle.training.rows", NOTING)
    paths = os.pathsep.join([str(site), str(HERE.parent), os.environ.get("PYTHONPATH", "")])

    def words(name: str, **values: object) -> list[str]:
        settings = {
            "model_name_or_path": model, "dataset_path": prepared, "output_dir": work / name, "lora_r": 4,
            "lora_alpha": 8, "per_device_train_batch_size": 1, "num_workers": 2,
            "gradient_accumulation_steps": GLOBAL_BATCH // 2, "learning_rate": args.learning_rate, "max_steps": args.steps,
            "save_steps": args.save_steps, "sample_prompt": "", "gradient_checkpointing": "false", "cpus_per_worker": 1,
            "eval_style": "off", "report_to": "none", "max_failures": 100, "save_total_limit": 3,
            "shared_paths": "true",
        } | values  # fmt: skip
        return [word for key, value in settings.items() for word in (f"--{key}", str(value))]

    def noted(name: str) -> dict[str, str]:
        (work / f"{name} rows").mkdir()
        return {"PYTHONPATH": paths, "RAYSTYLE_BENCH_ROWS": str(work / f"{name} rows")}

    started = time.monotonic()
    launcher = [str(Path(sys.executable).parent / "torchrun"), "--standalone", "--nproc_per_node", "2", "-m"]
    subprocess.run(
        [*launcher, "raystyle.training.loop", *words("undisturbed")],
        env={**os.environ, **noted("undisturbed"), "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
    )
    undisturbed_s = time.monotonic() - started
    expected = [entry["loss"] for entry in told(work / "undisturbed") if "loss" in entry]
    print(
        f"undisturbed: {undisturbed_s:.0f} s, {len(expected)} losses, {expected[0]:.4f} -> {expected[-1]:.4f}",
        flush=True,
    )
    fixed = max(2, args.kills // 4)
    plans = {
        "elastic": ("1..2", [("worker", "driver", "node", "worker")[i % 4] for i in range(args.kills)]),
        "fixed": ("2", [("worker", "driver")[i % 2] for i in range(fixed)]),
    }
    found: dict[str, tuple[list[Kill], int, float, bool, float]] = {}
    for name, (num_workers, targets) in plans.items():
        with resume.cluster(**noted(name)) as ray:
            train = [sys.executable, "-m", "raystyle", "train", *words(name, num_workers=num_workers)]
            command = Command(train, work / name, ray.address)
            kills = disturb(command, ray, targets, args.steps, dice)
        losses = [entry["loss"] for entry in told(work / name) if "loss" in entry]
        apart = max(abs(a - b) for a, b in zip(losses, expected, strict=True))
        taken, those = rows_taken(work / f"{name} rows"), rows_taken(work / "undisturbed rows")
        if taken != those:
            raise AssertionError(f"{name}: other rows: {sorted(taken ^ those)[:10]}; see {work}")
        is_equal, relative = distance(work / name, work / "undisturbed")
        if relative > 1e-4 or apart > 1e-4 or (name == "fixed" and not is_equal):
            raise AssertionError(f"{name}: adapters apart by {relative:.1e}, losses by {apart:.1e}; see {work}")
        found[name] = kills, command.given, apart, is_equal, relative
        print(
            f"{name}: {len(kills)} kills, losses within {apart:.1e}, adapter within {relative:.1e}, equal {is_equal}",
            flush=True,
        )
    report(args, len(rows_taken(work / "undisturbed rows")), undisturbed_s, found)
    shutil.rmtree(work)


def report(args: argparse.Namespace, places: int, undisturbed_s: float, found: dict) -> None:
    lines = io.StringIO()
    say = lambda line="": print(line, file=lines)  # noqa: E731
    say("# Training, killed and continued")
    say()
    say(
        f"`python bench/kills.py --kills {args.kills} --steps {args.steps} --save_steps {args.save_steps} --seed {args.seed}` on two cores of a virtual machine, in fp32, with LoRA"
    )
    say(
        f"dropout 0.05, at a learning rate of {args.learning_rate:g}: {args.steps:,} steps of {GLOBAL_BATCH} rows, undisturbed {undisturbed_s:.0f} s with two workers and without Ray."
    )
    say()
    say("| run | kills | commands given | rows of every step | losses of all steps | adapter |")
    say("|---|---|---|---|---|---|")
    for name, (kills, given, apart, is_equal, relative) in found.items():
        same = "equal to the last bit" if is_equal else f"within {relative:.1e}, relative"
        workers = "1..2 workers" if name == "elastic" else "2 workers"
        say(f"| {workers} | {len(kills)} | {given} | the same {places:,} places | within {apart:.1e} | {same} |")
    for name, (kills, *_) in found.items():
        say()
        say(f"{'Elastic' if name == 'elastic' else 'Two workers'}:")
        say()
        say("| killed | at step | went on from step | with workers | after |")
        say("|---|---|---|---|---|")
        for kill in kills:
            say(f"| {kill.target} | {kill.at_step} | {kill.from_step} | {kill.num_workers} | {kill.after_s:.0f} s |")
    (HERE / "results" / "kills.md").write_text(lines.getvalue(), encoding="utf-8")


if __name__ == "__main__":
    main()
