"""Kill `raystyle prepare` at random moments, give the same command again, and compare every byte of what comes out.

    python bench/resume.py                       22 kills and a lost node; about fifteen minutes on two cores
    python bench/resume.py --rounds 5 --seed 3 --megabytes 5

A corpus of several encodings and containers, with duplicates and damage, is prepared once undisturbed. Then, in each
round, into a new folder: a run is started, and at a random moment of a stage one of these gets SIGKILL:

    worker      one Ray worker process                  driver      the process the command started, alone
    raylet      Ray's daemon of the node                everything  all processes of the run: the node is gone

Until a run ends well the same command is given again, and sometimes that one is killed too. Every file that is there at the
end, hidden ones too, must have the SHA-256 of the undisturbed run's, and tasks that had finished must not be done again.
At last a cluster of two nodes, of which one is killed: the run must go on by itself.

Only processes that this bench started are killed: those whose environment has its mark, and their descendants.
"""

import argparse
import contextlib
import gzip
import hashlib
import io
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "peers"))

MARK, TIMEOUT_S = "RAYSTYLE_BENCH_RESUME", 300
TARGETS = ("everything", "driver", "worker", "raylet")
# What is seen of a stage once it runs, below _work/KEY/ or the output.
STAGES = {
    "start": "_work/*/started",
    "cleaning": "_work/*/clean-*.json",
    "duplicates": "_work/*/meet-*.json",
    "packing": "_work/*/*documents-*.documents.parquet*",
    "publishing": "documents/*",
}


def make_corpus(folder: Path, novels: list[str]) -> None:
    """Novels (seven or more) as eight kinds of files, with editions of some of them, and with files that are damaged."""
    folder.mkdir(parents=True)
    last = len(novels) - 1
    for number, novel in enumerate(novels):
        encoding = ("utf-8", "gb18030", "utf-16", "utf-8-sig")[number % 4]
        if number < last - 1:
            (folder / f"小说{number}.txt").write_bytes(novel.encode(encoding))
    records = [json.dumps({"text": part}, ensure_ascii=False) for part in _parts(novels[last - 1], 2000)]
    (folder / "records.jsonl").write_text("\n".join([*records, "{broken", records[0]]), "utf-8")
    edition = "\r\n".join(line for n, line in enumerate(novels[0].split("\r\n")) if n % 60)
    with zipfile.ZipFile(folder / "edition.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("旧版.txt", edition.encode("gb18030"))
        archive.writestr("新书.txt", novels[last])
        archive.writestr("图.jpg", b"\xff\xd8\xff\xe0" + bytes(40))
    (folder / "again.txt.gz").write_bytes(gzip.compress(novels[1].encode(), mtime=0))
    (folder / "empty.txt").write_bytes(b"")
    (folder / "cut.txt.gz").write_bytes(gzip.compress(novels[2].encode(), mtime=0)[:1000])
    (folder / "broken.txt").write_bytes(b"\xff\xfe\xff\xd8\x00\xd8")


def _parts(novel: str, size: int) -> list[str]:
    return [novel[start : start + size] for start in range(0, len(novel), size)]


def command(corpus: Path, output: Path, tokenizer: Path | str, *more: str) -> list[str]:
    """`raystyle prepare` with all that is chosen by hashes or over the whole corpus switched on."""
    places = ["--dataset_path", str(corpus), "--output_dir", str(output), "--tokenizer_name_or_path", str(tokenizer)]
    lengths = ["--max_seq_length", "1024", "--segment_length", "256", "--heldout_fraction", "0.1"]
    return [sys.executable, "-m", "raystyle", "prepare", *places, *lengths, *more]


class Run:
    """One `raystyle prepare` with a Ray of its own, and all of its processes."""

    def __init__(self, words: list[str], **environment: str) -> None:
        self._mark = f"{MARK}={secrets.token_hex(8)}".encode()
        name, _, value = self._mark.decode().partition("=")
        self._family: dict[int, bytes] = {}  # process id to start time, so that a number used again is no relative
        self.process = subprocess.Popen(
            words,
            cwd=HERE.parent,
            env={**_without(os.environ, "RAY_ADDRESS"), **environment, name: value},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.started = time.monotonic()

    def ended(self) -> bool:
        return self.process.poll() is not None

    def wait(self) -> tuple[int, str]:
        """Exit status and what was said. Workers may live on for a while: nobody waits for them before the next run."""
        try:
            said = self.process.communicate(timeout=TIMEOUT_S)[1]
        except subprocess.TimeoutExpired:
            self.kill("everything", random.Random(0))
            raise
        return self.process.returncode, said

    def processes(self) -> dict[int, str]:
        """Process ids that live, with their titles."""
        found: dict[int, tuple[int, bytes, str]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
                    if fields[0] in (b"Z", b"X"):
                        continue
                    pid = int(entry.name)
                    title = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
                    found[pid] = int(fields[1]), fields[19], title
                    if self._mark in (entry / "environ").read_bytes():
                        self._family[pid] = fields[19]
        self._family = {pid: at for pid, at in self._family.items() if pid in found and found[pid][1] == at}
        grew = True
        while grew:
            children = {pid: at for pid, (parent, at, _) in found.items() if parent in self._family}
            grew = bool(children.keys() - self._family.keys())
            self._family |= children
        return {pid: found[pid][2] for pid in self._family}

    def kill(self, target: str, dice: random.Random) -> bool:
        """SIGKILL to what the target names; False where there is none of it."""
        everything = self.processes()
        if target == "everything":
            victims = list(everything)
        elif target == "driver":
            victims = [self.process.pid]
        else:
            what = "raylet/raylet " if target == "raylet" else "ray::"
            # Ray's agents are titled as workers are, but the raylet dies with them.
            victims = sorted(pid for pid, title in everything.items() if what in title and "Agent" not in title)
            victims = [dice.choice(victims)] if victims else []
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return bool(victims)


def _without(environment: "os._Environ[str]", name: str) -> dict[str, str]:
    return {key: value for key, value in environment.items() if key != name}


def hashes(output: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder."""
    files = sorted(path for path in output.rglob("*") if path.is_file())
    return {str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def markers(output: Path) -> dict[str, int]:
    """Tasks that have finished, with when they did."""
    found = {}
    for path in output.glob("_work/*/*.json"):
        with contextlib.suppress(OSError):  # just being cleared away
            found[path.name] = path.stat().st_mtime_ns
    return found


def signs(output: Path, stage: str) -> list[tuple[str, int]]:
    """What is there of a stage: files, and when each was written."""
    found = []
    for path in output.glob(STAGES[stage]) if stage else ():
        with contextlib.suppress(OSError):
            found.append((str(path), path.stat().st_mtime_ns))
    return found


class Round(NamedTuple):
    """What was killed in which stage, `after` so many seconds; how the run ended that was hit; tasks kept for the next."""

    stage: str
    target: str
    after_s: float
    exit_code: int
    kept: int
    again_s: float


def disturb(
    words: list[str], output: Path, stage: str, target: str, dice: random.Random, delay_s: float = 0.6
) -> list[Round]:
    """Run until done, with a kill in a stage, and with another anywhere in one of four runs that follow."""
    rounds: list[Round] = []
    with contextlib.ExitStack() as stack:
        return _disturb(words, output, stage, target, dice, delay_s, rounds, stack)


def _disturb(
    words: list[str], output: Path, stage: str, target: str, dice: random.Random, delay_s: float, rounds: list[Round],
    stack: contextlib.ExitStack,
) -> list[Round]:  # fmt: skip
    while True:
        before, seen = markers(output), set(signs(output, stage))
        run = Run(words)
        stack.callback(run.kill, "everything", dice)  # what is left of it when all is over
        killed = False
        later = dice.uniform(0, delay_s)
        while not run.ended():
            now = markers(output)
            redone = [name for name, at in before.items() if now.get(name, at) != at]
            if redone:
                raise AssertionError(f"done again: {redone}")
            if target and not killed and not seen.issuperset(signs(output, stage)):
                time.sleep(later)
                if (output / "manifest.json").exists():
                    break
                killed = run.kill(target, dice)
                after = time.monotonic() - run.started
            time.sleep(0.02)
        code, said = run.wait()
        if not target:
            if code:
                raise AssertionError(f"exit {code} though nothing was killed:\n{said[-3000:]}")
            return [one._replace(again_s=time.monotonic() - run.started) for one in rounds]
        if not killed and not code:
            return [one._replace(again_s=time.monotonic() - run.started) for one in rounds]
        if not killed:
            raise AssertionError(f"the run was over before it was killed ({stage}):\n{said[-3000:]}")
        complete = (output / "manifest.json").exists()
        if target == "worker" and (code or not complete):
            raise AssertionError(f"exit {code} though only a worker was killed:\n{said[-3000:]}")
        rounds.append(Round(stage, target, after, code, len(markers(output)), 0.0))
        if dice.random() < 0.25 and len(rounds) == 1 and not complete:
            target = dice.choice(TARGETS)
            stage = dice.choice([name for name in STAGES if not _is_over(output, name)] or ["publishing"])
        else:
            target = ""


def _is_over(output: Path, stage: str) -> bool:
    """Whether a stage after this one has begun."""
    names = list(STAGES)
    return any(any(output.glob(STAGES[name])) for name in names[names.index(stage) + 1 :])


class Cluster(NamedTuple):
    """A Ray of two nodes with one core each: its address, its nodes, and what kills the second and starts it again."""

    address: str
    nodes: list[Run]
    kill_second: Callable[[], None]
    start_second: Callable[[], None]


@contextlib.contextmanager
def cluster(**variables: str) -> Iterator[Cluster]:
    """Two nodes, with these variables in the environment of all that they start."""
    ray = str(Path(sys.executable).parent / "ray")
    environment = {**_without(os.environ, "RAY_ADDRESS"), "RAY_AUTH_MODE": "token"}
    subprocess.run([ray, "get-auth-token", "--generate"], env=environment, check=True, capture_output=True)
    ports = iter(_free_ports(120))
    nodes: list[Run] = []

    def start(*words: str) -> None:
        names = ("node-manager", "object-manager", "dashboard-agent-listen", "dashboard-agent-grpc", "metrics-export")
        own = [f"--{name}-port={next(ports)}" for name in (*names, "runtime-env-agent")]
        shared = ["--block", "--num-cpus=1", "--disable-usage-stats", "--object-store-memory=300000000"]
        nodes.append(Run([ray, "start", *words, *own, *shared], **{**variables, "RAY_AUTH_MODE": "token"}))

    def start_second() -> None:
        start(f"--address={address}", "--node-ip-address=127.0.0.2")

    port = next(ports)
    # Ray keeps Unix sockets below its temporary folder, whose path may have 60 characters or so.
    folder = tempfile.mkdtemp(prefix="rs-")
    address = f"127.0.0.1:{port}"
    try:
        start(
            "--head",
            "--node-ip-address=127.0.0.1",
            f"--port={port}",
            "--include-dashboard=false",
            f"--temp-dir={folder}/1",
        )
        _wait_for_port(port)
        start_second()
        deadline = time.monotonic() + 60
        probe = f"import ray; ray.init('{address}', log_to_driver=False); print(len(ray.nodes()))"
        while subprocess.run([sys.executable, "-c", probe], env=environment, capture_output=True, text=True).stdout.strip() != "2":  # fmt: skip
            if time.monotonic() > deadline:
                raise AssertionError("the second node does not join")
            time.sleep(1)
        yield Cluster(address, nodes, lambda: _check(nodes[-1].kill("everything", random.Random(0))), start_second)
    finally:
        for node in nodes:
            node.kill("everything", random.Random(0))
            node.process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _check(done: bool) -> None:
    if not done:
        raise AssertionError("nothing was there to be killed")


def _free_ports(count: int) -> list[int]:
    """Free ports outside 10002-19999, which Ray gives to its workers."""
    found: list[int] = []
    for port in range(20200 + os.getpid() % 900 * 10, 32000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                found.append(port)
        if len(found) == count:
            break
    return found


def _wait_for_port(port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if not probe.connect_ex(("127.0.0.1", port)):
                return
        time.sleep(0.2)
    raise AssertionError(f"nothing listens at port {port}")


def lose_a_node(words: list[str], output: Path, delay_s: float) -> tuple[int, float]:
    """Kill the second of two nodes while cleaning; tasks done by then, and how long the run went on by itself."""
    with cluster() as ray:
        run = Run(words, RAY_ADDRESS=ray.address, RAY_AUTH_MODE="token")
        while not run.ended() and not signs(output, "cleaning"):
            time.sleep(0.02)
        time.sleep(delay_s)
        ray.kill_second()
        done, then = len(markers(output)), time.monotonic()
        code, said = run.wait()
        if code:
            raise AssertionError(f"exit {code} after a node was lost:\n{said[-3000:]}")
        return done, time.monotonic() - then


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=22)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--megabytes", type=float, default=20)
    args = parser.parse_args()
    import corpus
    import novels

    work = Path(tempfile.mkdtemp(prefix="raystyle-resume-"))
    per_novel = int(args.megabytes * 1e6 / 10 / 2.6)  # characters
    make_corpus(work / "in", [novels.made_up(number)[:per_novel] for number in range(10)])
    tokenizer = corpus.build_tokenizer(work / "tokenizer", None)
    print(f"corpus: {sum(p.stat().st_size for p in (work / 'in').iterdir()) / 1e6:.1f} MB", flush=True)

    def words(output: Path) -> list[str]:
        return command(work / "in", output, tokenizer, "--num_cpus", "2")

    started = time.monotonic()
    disturb(words(work / "undisturbed"), work / "undisturbed", "", "", random.Random(0))
    undisturbed_s, expected = time.monotonic() - started, hashes(work / "undisturbed")
    manifest = json.loads((work / "undisturbed/manifest.json").read_text("utf-8"))
    print(f"undisturbed: {undisturbed_s:.0f} s, {len(expected)} files, {manifest['counts']}", flush=True)
    disturb([*words(work / "one")[:-1], "1"], work / "one", "", "", random.Random(0))
    _same(expected, work / "one", "on one core")
    found: list[tuple[int, Round]] = []
    for number in range(args.rounds):
        dice = random.Random(1000 * args.seed + number)
        stage, target = list(STAGES)[number % len(STAGES)], TARGETS[number % len(TARGETS)]
        output = work / "disturbed"
        rounds = disturb(words(output), output, stage, target, dice)
        _same(expected, output, f"round {number}: {rounds}")
        shutil.rmtree(output)
        found += [(number, one) for one in rounds]
        print(number, *rounds or ["over before it was killed"], flush=True)
    done, on_s = lose_a_node(
        command(work / "in", work / "disturbed", tokenizer, "--shared_paths"), work / "disturbed", 0.3
    )
    _same(expected, work / "disturbed", "with a node lost")
    print(f"node lost after {done} tasks; {on_s:.0f} s more", flush=True)
    if args.rounds >= 20:
        report(args, work, manifest, expected, undisturbed_s, found, done, on_s)
    shutil.rmtree(work)


def _same(expected: dict[str, str], output: Path, what: str) -> None:
    found = hashes(output)
    differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if differing:
        raise AssertionError(f"{what}: {differing} differ; see {output}")


def report(
    args: argparse.Namespace, work: Path, manifest: dict, expected: dict[str, str], undisturbed_s: float,
    found: list[tuple[int, Round]], done: int, on_s: float,
) -> None:  # fmt: skip
    counts = manifest["counts"]
    lines = io.StringIO()
    say = lambda line="": print(line, file=lines)  # noqa: E731
    size = sum(path.stat().st_size for path in (work / "in").iterdir()) / 1e6
    say("# Killed and continued")
    say()
    say(
        f"`python bench/resume.py --rounds {args.rounds} --seed {args.seed} --megabytes {args.megabytes:g}` on two cores of a virtual machine:"
    )
    say(
        f"{size:.1f} MB in {counts['inputs']} inputs, {counts['texts']:,} texts, {counts['documents']:,} documents, {counts['heldout']} held out, {counts['duplicates']} duplicates,"
    )
    say(
        f"{counts['duplicate_chapters']} duplicate chapters, {counts['rejected']} rejected, {counts['rows']:,} rows. Undisturbed it takes {undisturbed_s:.0f} s, most of which is Ray's start."
    )
    say()
    say(
        f"{len(found)} kills in {args.rounds} rounds. After every round all {len(expected)} files (documents, heldout, removed, duplicates,"
    )
    say(
        "rejected, rows, manifest.json, report.html) had the SHA-256 of the undisturbed run's, no other file was there, and no"
    )
    say(f"finished task had been done again. The same on one core. Digest `{manifest['digest'][:16]}…`.")
    say()
    say("| round | stage | killed | after | exit | finished tasks then | the command again took |")
    say("|---|---|---|---|---|---|---|")
    for number, one in found:
        again = f"{one.again_s:.0f} s" if one.exit_code else "not needed"
        say(f"| {number} | {one.stage} | {one.target} | {one.after_s:.1f} s | {one.exit_code} | {one.kept} | {again} |")
    say()
    say(
        f"Two nodes of one core each, the second killed after {done} finished tasks: the run went on by itself, ended {on_s:.0f} s later"
    )
    say("with exit status 0, and the same bytes.")
    (HERE / "results" / "resume.md").write_text(lines.getvalue(), encoding="utf-8")


if __name__ == "__main__":
    main()
