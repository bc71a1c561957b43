"""What lies between the nodes of a running Ray, and what each of them says of itself.

`reachable` needs no Ray and comes first: Ray itself waits long for an address where nobody listens. `examine` needs a
Ray that was joined, and starts one small task on every node; a node that takes none is a line of the report, not its end.
"""

import dataclasses
import platform
import socket
from collections.abc import Iterator
from typing import Any

from raystyle import storage
from raystyle.config import DoctorConfig
from raystyle.doctor.machine import FAIL, OK, Check
from raystyle.doctor.machine import examine as examine_machine

NODE_TIMEOUT_S = 300.0  # a node may have to load torch first
CONNECT_TIMEOUT_S = 5.0


def reachable(address: str) -> Iterator[Check]:
    """Whether something listens at `HOST:PORT`; `auto` is Ray's to resolve."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdigit():
        return
    reason = _connect(host.strip("[]"), int(port))
    if reason:
        remedy = (
            "is the head running, is it this port (`ray start --port`), does a firewall or network policy lie between?"
        )
        yield Check("address", FAIL, f"{address} cannot be reached: {reason}", remedy)
    else:
        yield Check("address", OK, f"{address} takes connections")


def _connect(host: str, port: int) -> str:
    """Why no connection can be made; empty where one can."""
    try:
        socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return ""


def examine(config: DoctorConfig) -> list[Check]:
    """The checks of every node, then of versions and ports between them, and of a local `output_dir`. Ray runs."""
    import ray

    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    checks, versions = _ask(nodes, config)
    ours = (ray.__version__, platform.python_version())
    for node, theirs in versions.items():
        if theirs != ours:
            found = f"Ray {theirs[0]} on Python {theirs[1]}, here Ray {ours[0]} on Python {ours[1]}"
            checks.append(Check("ray", FAIL, found, "the same image, or the same constraints.txt, everywhere", node))
    shown = f"{len(versions)} of {len(nodes)} nodes answered, with Ray {ours[0]} on Python {ours[1]} wherever nothing else is said"
    checks.append(Check("ray", OK, shown))
    if len(nodes) > 1:
        checks += _between(nodes)
        if config.output_dir and not storage.is_remote(config.output_dir) and not config.shared_paths:
            found = f"{config.output_dir} is a local path, and this cluster has {len(nodes)} nodes"
            remedy = "s3:// or gs://, or `--shared_paths` where all nodes see the same files there (NFS)"
            checks.append(Check("output_dir", FAIL, found, remedy))
    return checks


def _ask(nodes: dict[str, str], config: DoctorConfig) -> tuple[list[Check], dict[str, tuple[str, str]]]:
    """Every node's own checks and versions, by address."""
    import ray

    task = ray.remote(num_cpus=0, max_retries=0)(_on_node)
    asked = {node: task.options(scheduling_strategy=_there(node)).remote(config) for node in nodes}
    ray.wait(list(asked.values()), num_returns=len(asked), timeout=NODE_TIMEOUT_S)
    checks: list[Check] = []
    versions: dict[str, tuple[str, str]] = {}
    for node, reference in asked.items():
        address = nodes[node]
        try:
            found, versions[address] = ray.get(reference, timeout=1)
        except ray.exceptions.RayError as error:
            reason = " ".join(str(error).split())[-300:]
            remedy = "raystyle must be importable there: in the image, or by `ray job submit --working-dir .`"
            checks.append(Check("node", FAIL, f"runs no task: {reason}", remedy, address))
            continue
        checks += [dataclasses.replace(check, node=address) for check in found]
    return checks, versions


def _on_node(config: DoctorConfig) -> tuple[list[Check], tuple[str, str]]:
    import ray

    return examine_machine(config), (ray.__version__, platform.python_version())


def _there(node: str) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node, soft=False)


class _Listener:
    """A port that any free number may be, as gloo and NCCL take theirs."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("", 0))

    def port(self) -> int:
        return int(self.socket.getsockname()[1])


def _between(nodes: dict[str, str]) -> Iterator[Check]:
    """Each node connects to a free port of the next one, in a ring: workers of a training step talk so."""
    import ray

    listener: Any = ray.remote(num_cpus=0)(_Listener)
    connect: Any = ray.remote(num_cpus=0, max_retries=0)(_connect)
    listening = {node: listener.options(scheduling_strategy=_there(node)).remote() for node in nodes}
    following = [*list(nodes)[1:], next(iter(nodes))]
    try:
        ports = {node: ray.get(actor.port.remote(), timeout=60) for node, actor in listening.items()}
        tries = {
            (node, other): connect.options(scheduling_strategy=_there(node)).remote(nodes[other], ports[other])
            for node, other in zip(nodes, following, strict=True)
        }
        reasons = {pair: ray.get(reference, timeout=60) for pair, reference in tries.items()}
    except ray.exceptions.RayError as error:
        found = f"could not be tried: {' '.join(str(error).split())[:200]}"
        yield Check("ports", FAIL, found, "look at the nodes that run no task")
        return
    closed = {pair: reason for pair, reason in reasons.items() if reason}
    for (node, other), reason in closed.items():
        remedy = "open all ports between the cluster's nodes, or gloo and NCCL wait for each other until they give up"
        yield Check("ports", FAIL, f"cannot reach a free port of {nodes[other]}: {reason}", remedy, nodes[node])
    if not closed:
        yield Check("ports", OK, "every node reaches a free port of the next one, as gloo and NCCL do")
