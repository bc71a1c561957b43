"""Hosts of our own on one machine: network namespaces on a bridge, each with its address, a Ray on each, and an S3 server.

    with Hosts("w1", "w2", "w3") as hosts:       # and a head
        hosts.submit("jobs/train.py", …)

A host is a namespace (`ip netns`), so what runs in it is known by `ip netns pids`, and ends with it. Needs root and iproute2;
`missing()` says what is not there. All names hold this process's id. Files are shared by all hosts, so that only what goes over
the network shows what several machines would.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
NETWORK = "10.77.0"
S3_PORT, HEAD_PORT, DASHBOARD_PORT = 9000, 6379, 8265
BUCKET = "s3://hosts"


def missing() -> str:
    """Why hosts cannot be made here; empty where they can."""
    if os.getuid() != 0:
        return "making network namespaces needs root"
    if shutil.which("ip") is None:
        return "`ip` is not there: apt-get install iproute2"
    probe = f"raystyle-probe-{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", probe], capture_output=True).returncode:
        return "this machine lets nobody make network namespaces"
    subprocess.run(["ip", "netns", "del", probe], check=True)
    return ""


def _ip(*words: object) -> None:
    subprocess.run(["ip", *map(str, words)], check=True, capture_output=True, text=True)


class Hosts:
    """A head that takes no work and workers of one core each; the S3 server is the machine outside of them."""

    def __init__(self, *workers: str) -> None:
        self.addresses = {name: f"{NETWORK}.{10 + number}" for number, name in enumerate(["head", *workers])}
        self.folder = Path(tempfile.mkdtemp(prefix="rsh-", dir="/tmp"))  # short: Ray keeps sockets below it
        self.prefix = f"rs{os.getpid()}"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))},
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_MODE": "token",
            # Who does not answer for ten seconds is gone; Ray itself gives a minute.
            "RAY_health_check_initial_delay_ms": "5000",
            "RAY_health_check_period_ms": "2000",
            "RAY_health_check_timeout_ms": "3000",
            "RAY_health_check_failure_threshold": "2",
            "GLOO_SOCKET_IFNAME": "eth0",  # all hosts have one machine's name, which leads elsewhere
            "OMP_NUM_THREADS": "1",
            "AWS_ENDPOINT_URL": f"http://{NETWORK}.1:{S3_PORT}",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "*",
            "no_proxy": "*",
        }
        self.server: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Hosts":
        try:
            self._make()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _make(self) -> None:
        _ip("link", "add", self.prefix, "type", "bridge")
        _ip("addr", "add", f"{NETWORK}.1/24", "dev", self.prefix)
        _ip("link", "set", self.prefix, "up")
        for name, address in self.addresses.items():
            space, outside = self.space(name), self.outside(name)
            _ip("netns", "add", space)
            _ip("link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", space)
            _ip("link", "set", outside, "master", self.prefix, "up")
            for words in (
                ["addr", "add", f"{address}/24", "dev", "eth0"],
                ["link", "set", "eth0", "up"],
                ["link", "set", "lo", "up"],
            ):
                _ip("-n", space, *words)
        code = f"from moto.server import main; main(['-H', '{NETWORK}.1', '-p', '{S3_PORT}'])"
        with open(self.folder / "s3.log", "wb") as log:
            self.server = subprocess.Popen([sys.executable, "-c", code], stdout=log, stderr=log, env=self.environment)
        request = urllib.request.Request(f"http://{NETWORK}.1:{S3_PORT}/{BUCKET[5:]}", method="PUT")
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        wait(lambda: _answers(direct, request), 60, "the S3 server does not answer")
        self.on("head", "ray", "get-auth-token", "--generate")
        head = ["--head", f"--port={HEAD_PORT}", "--dashboard-host=127.0.0.1", "--num-cpus=0"]
        self.start_ray("head", *head)
        wait(lambda: self.listens("head", HEAD_PORT), 90, "the head does not start")
        for name in list(self.addresses)[1:]:
            self.start_ray(name)
        wait(lambda: self.alive() == set(self.addresses.values()), 120, "not all hosts came")

    def start_ray(self, name: str, *role: str) -> None:
        """Start Ray on a host; a worker joins the head, on one core, labelled `pool=cpu`."""
        role = role or (f"--address={self.addresses['head']}:{HEAD_PORT}", "--num-cpus=1", "--labels=pool=cpu")
        common = [f"--node-ip-address={self.addresses[name]}", f"--temp-dir={self.folder / name}", "--block"]
        command = ["ray", "start", *role, *common, "--object-store-memory=100000000", "--disable-usage-stats"]
        with open(self.folder / f"{name}.log", "ab") as log:
            subprocess.Popen(
                ["ip", "netns", "exec", self.space(name), *command],
                stdout=log,
                stderr=log,
                env=self.environment,
                start_new_session=True,
            )

    def space(self, name: str) -> str:
        return f"{self.prefix}-{name}"

    def outside(self, name: str) -> str:
        """The end of a host's cable that is in the bridge."""
        return f"{self.prefix}{name}"[-15:]

    def on(
        self, name: str, *words: object, timeout: float = 300, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a host, from the repository's root."""
        command = ["ip", "netns", "exec", self.space(name), *map(str, words)]
        return subprocess.run(
            command,
            check=check,
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )

    def submit(self, *words: object, name: str | None = None, timeout: float = 400) -> subprocess.CompletedProcess[str]:
        """`ray job submit` on the head; with a `name` it does not wait."""
        flags = ["--no-wait", "--submission-id", name] if name else []
        travels = ["--working-dir", ".", "--runtime-env", "cluster/runtime-env.yaml"]
        command = ["ray", "job", "submit", "--address", f"http://127.0.0.1:{DASHBOARD_PORT}", *flags, *travels, "--"]
        return self.on("head", *command, "python", *words, timeout=timeout, check=False)

    def job(self, action: str, name: str) -> str:
        """`ray job status`, `stop` or `logs` of a job."""
        address = f"http://127.0.0.1:{DASHBOARD_PORT}"
        return self.on("head", "ray", "job", action, "--address", address, name, check=False).stdout

    def alive(self) -> set[str]:
        """Addresses of the hosts that Ray takes for alive."""
        # By its address: `auto` takes whatever Ray was started last on this machine, which all hosts share a disk with.
        address = f"{self.addresses['head']}:{HEAD_PORT}"
        code = f"import json, ray; ray.init(address='{address}', logging_level='error', log_to_driver=False); "
        code += "print(json.dumps([n['NodeManagerAddress'] for n in ray.nodes() if n['Alive']]))"
        done = self.on("head", sys.executable, "-c", code, check=False)
        lines = done.stdout.strip().splitlines()
        return set(json.loads(lines[-1])) if done.returncode == 0 and lines else set()

    def listens(self, name: str, port: int) -> bool:
        code = f"import socket; socket.create_connection(('{self.addresses[name]}', {port}), 1)"
        return self.on(name, sys.executable, "-c", code, check=False).returncode == 0

    def pids(self, name: str) -> list[int]:
        """Every process of a host."""
        done = subprocess.run(["ip", "netns", "pids", self.space(name)], capture_output=True, text=True)
        return [int(word) for word in done.stdout.split()]

    def runs(self, name: str, title: str) -> bool:
        """Whether a process of a host has this in its command line: Ray writes there what a worker does."""
        for pid in self.pids(name):
            try:
                if title.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return True
            except OSError:  # it has just ended
                continue
        return False

    def cut(self, name: str) -> None:
        """Pull the cable: no answer any more, and no goodbye."""
        _ip("link", "set", self.outside(name), "down")

    def mend(self, name: str) -> None:
        _ip("link", "set", self.outside(name), "up")

    def kill(self, name: str) -> None:
        """Every process of a host at once, as when its power goes."""
        for pid in self.pids(name):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        wait(lambda: not self.pids(name), 30, f"{name} does not end")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        spaces = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout.split()
        for name in self.addresses:
            if self.space(name) in spaces:
                self.kill(name)
                _ip("netns", "del", self.space(name))
        if self.server is not None:
            self.server.terminate()
            self.server.wait(timeout=30)
        subprocess.run(["ip", "link", "del", self.prefix], capture_output=True)
        if error is None:
            shutil.rmtree(self.folder, ignore_errors=True)
        else:
            print(f"logs of the hosts are in {self.folder}", file=sys.stderr)


def _answers(opener: urllib.request.OpenerDirector, request: urllib.request.Request) -> bool:
    try:
        opener.open(request, timeout=2).close()
    except OSError:
        return False
    return True


def wait(condition: object, timeout_s: float, otherwise: str) -> float:
    """Seconds until `condition()` holds; `TimeoutError` where it never does."""
    assert callable(condition)
    begun = time.monotonic()
    while not condition():
        if time.monotonic() - begun > timeout_s:
            raise TimeoutError(f"{otherwise} within {timeout_s:g} s")
        time.sleep(0.25)
    return time.monotonic() - begun
