"""`raystyle serve` under abuse: ten thousand requests as nobody should send them, then three times the load it has room for.

    python bench/abuse.py                      about ten minutes; only the loopback; stops by itself, and what it started
    python bench/abuse.py --requests 1000 --load_s 30

A third of the requests are made from the server's own OpenAPI document and then damaged; the others are made by hand and sent
over bare sockets: bodies and heads without end, lies about lengths, bytes that are no text, names that are paths, wrong keys,
hosts and origins, clients that drip, read nothing or leave. Each says which statuses it may have; a 5xx is never among them.
Under load every request must be answered whole, or be told to come back. Memory must stay where it is.
"""

import argparse
import asyncio
import collections
import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil
from serving.malformed import (
    ADMIN_KEY,
    GOOD,
    KEY,
    MAX_BODY_BYTES,
    MAX_LENGTH,
    Made,
    completion,
    from_document,
    hand_made,
    request,
)

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "tests"), str(HERE.parent / "tests" / "serving")]

ROWS, QUEUE = 16, 64
AT_ONCE = 12  # with the slow ones no more than there is room for
PROCESSES = ("Ingress", "Model", "ProxyActor", "ServeController")
# What the server promises, and what a busy machine may add to it.
LETS_GO_AFTER_S, SLACK_S = 15.0, 20.0
ANSWER_TIMEOUT_S = 180.0
# Python's own heap breathes by some tens of MB; a leak of ten thousand requests would be more.
MAX_GROWTH_MB = 60


# ── a client that may do anything ──


class Answer(NamedTuple):
    """What came back; status 0 where the connection was closed without an answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def by(self) -> str:
        """Who said it: the application, or what stands before it: our wall in Serve's proxy, or the proxy itself."""
        if not self.status:
            return "nobody"
        if "x-content-type-options" in self.headers:
            return "application"
        return "wall" if self.headers.get("content-type") == "application/json" else "proxy"


def parsed(raw: bytes) -> Answer:
    """The first answer among bytes that came until the connection was closed."""
    head, blank, rest = raw.partition(b"\r\n\r\n")
    if head.startswith(b"HTTP/1.1 100"):
        return parsed(rest)
    first, *lines = head.decode("latin-1").split("\r\n")
    if not blank or not first.startswith("HTTP/1.1 "):
        return Answer(0, {}, raw)
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            length = int(size.strip() or b"0", 16)  # none where the client left within it
            body, rest = body + rest[:length], rest[length + 2 :]
            if not length:
                break
        rest = body
    return Answer(int(first.split()[1]), headers, rest[: int(headers.get("content-length", len(rest)))])


async def ask(
    port: int,
    pieces: Sequence[bytes],
    *,
    pause_s: float = 0.0,
    leaves_after: int | None = None,
    reads: bool = True,
    timeout_s: float = ANSWER_TIMEOUT_S,
) -> Answer:
    """Sends the pieces and reads to the end, or leaves after so many bytes of the answer. Raises `TimeoutError`."""
    said = b""
    async with asyncio.timeout(timeout_s):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            # It may answer, and close, before everything is sent.
            with contextlib.suppress(ConnectionError):
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(pause_s)
            with contextlib.suppress(ConnectionError):
                while leaves_after is None or len(said) < leaves_after:
                    if not (more := await reader.read(65536 if reads else 1)):
                        break
                    said += more
        finally:
            writer.transport.abort()
    return parsed(said)


# ── clients that take their time ──


async def slow(port: int, kind: int) -> tuple[str, str | None]:
    """One of six; what it was, and what is wrong with how it ended."""
    started = time.monotonic()
    name, pieces, right = (
        ("says nothing", [], {0}),
        ("drips its head", [b"GET / HTTP/1.1\r\nX: ", *[b"a"] * 60], {0}),
        ("drips its body", [request(length=900, headers=("X: 1",)), *[b" "] * 60], {408, 0}),
        (
            "drips blank lines",
            [request("GET", "/v1/models/base").replace(b"Connection: close", b"X: 1"), *[b"\r\n"] * 60],
            {0, 200},
        ),
        ("reads a byte at a time", [request(body=completion(max_tokens=300, stream=True))], {200}),
        ("reads nothing", [request(body=completion(max_tokens=300, stream=True)), *[b""] * 20], {0}),
    )[kind % 6]
    is_reader = name == "reads a byte at a time"
    try:
        most = 20_000 if is_reader else 0 if name == "reads nothing" else None
        answer = await ask(port, pieces, pause_s=1.0, reads=not is_reader, leaves_after=most)
    except TimeoutError:
        return name, "never let go"
    took_s = time.monotonic() - started
    if answer.status not in right:
        return name, f"status {answer.status}"
    late = not is_reader and took_s > LETS_GO_AFTER_S + SLACK_S
    return name, f"let go after {took_s:.0f} s" if late else None


# ── load ──


class Load:
    """Clients that come, ask, read or leave, and come again."""

    def __init__(self, port: int, seed: int) -> None:
        self.port, self.dice = port, random.Random(seed)
        self.counts: collections.Counter[str] = collections.Counter()
        self.wrong: list[str] = []

    async def client(self, until_s: float) -> None:
        while time.monotonic() < until_s:
            await asyncio.sleep(await self.one())

    async def one(self) -> float:
        """One request; in how many seconds the next may come."""
        dice = self.dice
        stream, compares = dice.random() < 0.5, dice.random() < 0.1
        body = completion(
            model=dice.choice((*GOOD, "base")),
            max_tokens=dice.randrange(8, 64),
            stream=stream,
            seed=dice.randrange(1 << 30),
        )
        body |= {"n": dice.choice((1, 1, 2))}
        if compares:
            body = {"models": ["base", "first"], "prompt": "今日", "max_tokens": 16, "stream": stream}
        leaves = dice.choice((0, 1, 400)) if dice.random() < 0.15 else None
        path = "/v1/compare" if compares else "/v1/completions"
        try:
            answer = await ask(self.port, [request(path=path, body=body)], leaves_after=leaves)
        except (TimeoutError, OSError) as error:
            self.wrong.append(f"no answer: {error!r}")
            return 1.0
        if leaves is not None:
            self.counts["left"] += 1
        elif answer.status == 200:
            is_whole = answer.body.endswith(b"data: [DONE]\n\n") if stream else b'"usage"' in answer.body
            self.counts["answered"] += is_whole
            if not is_whole or b'"error"' in answer.body:
                self.wrong.append(f"not whole: {answer.body[-200:]!r}")
        elif answer.status in (429, 503) and answer.by != "proxy" and "retry-after" in answer.headers:
            self.counts[f"told to come back ({answer.status})"] += 1
            return float(answer.headers["retry-after"]) * dice.uniform(0.5, 1.5)
        else:
            self.wrong.append(f"status {answer.status}: {answer.headers} {answer.body[:200]!r}")
        return dice.uniform(0, 0.2)


# ── the server ──


class Server:
    def __init__(self, folder: Path, port: int) -> None:
        self.port, self.output = port, folder / "output.txt"
        flags = {
            "model_name_or_path": folder / "model", "adapters_path": folder / "adapters", "port": port, "max_length": MAX_LENGTH,
            "max_batch_size": ROWS, "max_queue": QUEUE, "max_body_bytes": MAX_BODY_BYTES, "api_key_file": folder / "keys",
            "admin_key_file": folder / "admin", "log_file": folder / "log.jsonl", "refresh_s": 0.5,
        }  # fmt: skip
        words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        environment.pop("RAY_ADDRESS", None)
        with open(self.output, "w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "raystyle", "serve", *words],
                stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=HERE.parent, start_new_session=True,
            )  # fmt: skip

    def wait(self) -> None:
        deadline = time.monotonic() + 300
        while "\nready " not in self.output.read_text():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(self.output.read_text())
            time.sleep(0.3)

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=120)

    def memory_mb(self) -> dict[str, float]:
        """Resident memory by process; what Ray calls its workers changes with what they do."""
        found: collections.Counter[str] = collections.Counter()
        root = psutil.Process(self.process.pid)
        for process in [root, *root.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                line = " ".join(process.cmdline())
                name = next((one for one in PROCESSES if f":{one}" in line), "rest")
                found["command" if process.pid == root.pid else name] += process.memory_info().rss / 1e6
        return dict(found)


def make(folder: Path) -> int:
    """Model, keys, good adapters and hostile ones; returns how many of these there are."""
    import builders
    import hostile

    model = builders.write_model(folder / "model")
    for number, name in enumerate(GOOD):
        hostile.write_adapter(folder / "adapters" / name, model, seed=number)
    for number, (change, _) in enumerate(hostile.HOSTILE.values()):
        bad = folder / "adapters" / f"hostile-{number}"
        shutil.copytree(folder / "adapters" / GOOD[0], bad)
        change(bad)
    for name, key in (("keys", f"someone:{KEY}"), ("admin", f"admin:{ADMIN_KEY}")):
        (folder / name).write_text(key)
        (folder / name).chmod(0o600)
    return len(hostile.HOSTILE)


# ── the whole ──


class Malformed(NamedTuple):
    """What was sent and what came back: by kind of request, statuses; by who answered, statuses."""

    kinds: dict[str, collections.Counter[int]]
    by: collections.Counter[tuple[str, int]]
    wrong: list[str]


async def malformed(port: int, left: Iterator[Made], slow_clients: int) -> Malformed:
    """Sends all, some at once, while slow clients hold their connections."""
    kinds: dict[str, collections.Counter[int]] = collections.defaultdict(collections.Counter)
    by: collections.Counter[tuple[str, int]] = collections.Counter()
    wrong: list[str] = []

    async def send() -> None:
        for made in left:
            try:
                answer = await ask(port, made.pieces, leaves_after=made.leaves_after)
            except (TimeoutError, OSError) as error:
                wrong.append(f"{made.kind}: {error!r}: {made.pieces[0][:300]!r}")
                continue
            status = 0 if made.leaves_after == 0 else answer.status
            kinds[made.kind][status] += 1
            by[(answer.by, status)] += 1
            if status not in made.right:
                wrong.append(
                    f"{made.kind}: {status} by the {answer.by}, not {sorted(made.right)}: {made.pieces[0][:300]!r}"
                )
            if answer.by in ("application", "wall") and status >= 400 and not made.pieces[0].startswith(b"HEAD"):
                wrong.extend(f"{made.kind}: {complaint}" for complaint in _no_error_object(answer.body))

    async def hold(number: int) -> None:
        name, complaint = await slow(port, number)
        kinds[f"slow: {name}"][0] += 1
        if complaint:
            wrong.append(f"slow client that {name}: {complaint}")

    await asyncio.gather(*(send() for _ in range(AT_ONCE)), *(hold(number) for number in range(slow_clients)))
    return Malformed(dict(kinds), by, wrong)


def _no_error_object(body: bytes) -> list[str]:
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
        if json.loads(body)["error"].keys() == {"message", "type", "param", "code"}:
            return []
    return [f"an error without its object: {body[:200]!r}"]


async def get(port: int, path: str, key: str = KEY) -> Answer:
    return await ask(port, [request("GET", path, key=key)])


async def at_rest(port: int, hostile: int) -> list[str]:
    """What is wrong once everybody has left."""
    deadline = time.monotonic() + 60
    while True:
        text = (await get(port, "/metrics")).body.decode()
        depths = re.findall(r"^raystyle_(?:admitted|running|waiting)_.*", text, re.MULTILINE)
        if depths and all(depth.endswith(" 0.0") for depth in depths):
            break
        if time.monotonic() > deadline:
            return ["rows still run: " + ", ".join(depths)]
        await asyncio.sleep(0.5)
    wrong = []
    listing = json.loads((await get(port, "/v1/models")).body)
    if [card["id"] for card in listing["data"]] != ["base", *GOOD] or len(listing["refused"]) != hostile:
        wrong.append(f"the listing: {[card['id'] for card in listing['data']]}, {len(listing['refused'])} refused")
    texts = [(await ask(port, [request(body=completion(max_tokens=16))])).body for _ in range(2)]
    said = {json.loads(text)["choices"][0]["text"] for text in texts}
    if len(said) != 1:
        wrong.append(f"one seed says {said}")
    return wrong


async def loaded(server: Server, seconds: float, seed: int) -> tuple[Load, list[tuple[float, dict[str, float]]]]:
    """Three times the clients that there is room for; and memory as it was every two seconds."""
    load, memory = Load(server.port, seed), []
    started = time.monotonic()
    clients = [asyncio.create_task(load.client(started + seconds)) for _ in range(3 * (ROWS + QUEUE))]
    while not all(task.done() for task in clients):
        memory.append((time.monotonic() - started, await asyncio.to_thread(server.memory_mb)))
        await asyncio.wait(clients, timeout=2)
    await asyncio.gather(*clients)
    return load, memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--slow_clients", type=int, default=100)
    parser.add_argument("--load_s", type=float, default=180.0)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="raystyle-abuse-"))
    hostile = make(folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    server = Server(folder, port)
    try:
        server.wait()
        wrong, text = asyncio.run(abuse(args, server, hostile))
        exit_status = server.stop()
        wrong += [f"it stopped with exit status {exit_status}"] * bool(exit_status)
        wrong += _failures(folder / "log.jsonl")
    finally:
        server.stop()
    print("\n".join(wrong[:50]) or "nothing is wrong")
    if not wrong:
        shutil.rmtree(folder)
        if args.requests >= 10_000 and args.load_s >= 180:
            (HERE / "results" / "abuse.md").write_text(text, encoding="utf-8")
    print(text)
    sys.exit(bool(wrong))


def _failures(log: Path) -> list[str]:
    """Mistakes of ours leave a traceback in the log."""
    lines = log.read_text(encoding="utf-8").splitlines()
    failed = [line[:300] for line in lines if '"code": "internal_error"' in line or '"exc": ' in line]
    return [f"in the log: {line}" for line in failed]


async def abuse(args: argparse.Namespace, server: Server, hostile: int) -> tuple[list[str], str]:
    port, dice = server.port, random.Random(args.seed)
    document = json.loads((await get(port, "/openapi.json")).body)
    sent = from_document(document, args.requests // 3, dice)
    by_hand = args.requests - len(sent) - args.slow_clients
    order: list[Made | None] = [*sent, *[None] * by_hand]
    dice.shuffle(order)
    # Made as they are sent: all at once they would be a gigabyte.
    left = (made or hand_made(dice) for made in order)
    at_start_mb = server.memory_mb()
    started = time.monotonic()
    found = await malformed(port, left, args.slow_clients)
    took_s = time.monotonic() - started
    wrong = found.wrong + await at_rest(port, hostile)
    print(f"{len(order)} malformed requests in {took_s:.0f} s, {len(wrong)} complaints", flush=True)
    load, memory = await loaded(server, args.load_s, args.seed)
    wrong += load.wrong + await at_rest(port, hostile)
    end_mb = server.memory_mb()
    at_s = [args.load_s * share for share in (0.25, 0.5, 0.75)]
    course = [at_start_mb, *(next(mb for when_s, mb in memory if when_s >= one_s) for one_s in at_s), end_mb]
    growth_mb = sum(end_mb.values()) - sum(course[1].values())
    if growth_mb > MAX_GROWTH_MB:
        wrong.append(f"memory grew by {growth_mb:.0f} MB")
    return wrong, report(args, found, took_s, load, course, hostile)


def report(
    args: argparse.Namespace, found: Malformed, took_s: float, load: Load, course: list[dict[str, float]], hostile: int
) -> str:
    """The page. `course` is the memory before everything, at each quarter of the load, and after it."""

    def shown(counts: collections.Counter[int]) -> str:
        return ", ".join(f"{status or 'closed'}: {count:,}" for status, count in sorted(counts.items()))

    total = sum(sum(counts.values()) for counts in found.kinds.values())
    clients = 3 * (ROWS + QUEUE)
    names = sorted(course[-1], key=lambda name: -course[-1][name])
    rows = [(name, [mb.get(name, 0) for mb in course]) for name in names] + [
        ("all", [sum(mb.values()) for mb in course])
    ]
    lines = [
        "# Abuse and load", "",
        f"`python bench/abuse.py --requests {args.requests} --load_s {args.load_s:g} --seed {args.seed}`: `raystyle serve` (embedded engine, a tiny",
        f"model, {len(GOOD)} adapters, {hostile} hostile folders beside them, keys) on two cores of a busy virtual machine. {total:,} requests as",
        f"nobody should send them in {took_s:.0f} s, {AT_ONCE} at once; then {clients} clients for {args.load_s:g} s where {ROWS + QUEUE} choices have room.",
        "No 5xx but a documented 503; each request got a status that is right for it; every hostile folder was refused by name;",
        "at the end no row ran, the listing was whole, the same seed said the same, and the server stopped with status 0.", "",
        "| what was sent | what came back |", "|---|---|",
        *(f"| {kind} | {shown(counts)} |" for kind, counts in sorted(found.kinds.items())), "",
        "`closed`: the client left, or drips and floods whose connection was closed; an answer may be lost on the way where the",
        "client was still sending.", "",
        "| who answered | what |", "|---|---|",
        *(
            f"| {who} | {shown(collections.Counter({status: n for (other, status), n in found.by.items() if other == who}))} |"
            for who in sorted({who for who, _ in found.by})
        ), "",
        "`proxy` is Ray Serve's, in plain text, mostly for what is no HTTP; `wall` is `raystyle/serving/wall.py` in it; `nobody` are",
        "connections without an answer.", "",
        f"| load of {clients} clients | requests |", "|---|---|", *(f"| {kind} | {count:,} |" for kind, count in sorted(load.counts.items())), "",
        "| resident memory, MB | before | a quarter into the load | half | three quarters | after |", "|---|---|---|---|---|---|",
        *(f"| {name} | {' | '.join(f'{mb:.0f}' for mb in values)} |" for name, values in rows), "",
        "Memory that processes share is counted in each; `rest` are Ray's own.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
