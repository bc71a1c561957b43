"""The Ray Serve application: an ingress that speaks HTTP and holds no model, and replicas that hold one each.

Between them a request travels once; what it gains comes back as a stream of lists. A replica that dies takes its own
requests with it, and the ingress, which lives on, tells each of them so.

    raystyle serve …                                 this machine, or a running Ray
    serve deploy cluster/serve.yaml                  `import_path: raystyle.serving.app:application`, flags under `args`
"""

import asyncio
import contextlib
import dataclasses
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from typing import Any

from raystyle.config import NEUTRAL_PROMPT, ServeConfig
from raystyle.errors import ConfigError, ModelError, RaystyleError
from raystyle.flags import from_dict, to_dict
from raystyle.generation import Sampling
from raystyle.serving import lifetime
from raystyle.serving.contract import Delta, Generation, Listing, Started
from raystyle.serving.errors import RequestError
from raystyle.serving.limits import LAST_WORDS_S, limits
from raystyle.serving.log import JSONLines
from raystyle.serving.running import UNREAD_GRACE_S

NAME = "raystyle"
LARGE_PARAMETERS = 1_000_000_000
SAY_EVERY_S = 60.0
# Requests that Serve lets through to one replica: our own admission counts choices, and is the one that counts.
SERVE_MAX_ONGOING = 10_000
# For Serve's proxy: what comes back from the ingress goes by gRPC, as `HandleBackend` asks of the replicas. Ray's actor calls,
# which are the default, make an object of each message: twice the CPU time a message, between all processes (bench/serve.py).
# A message may be as large as gRPC can tell; 4 MB, where nothing is said, are a prompt's log-probabilities.
_ANY_SIZE = {"RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(2**31 - 1)}
PROXY_VARIABLES = {"RAY_SERVE_PROXY_USE_GRPC": "1", **_ANY_SIZE}
# For replicas: their requests in the loop that Serve's own messages are in, not in another thread's.
REPLICA_VARIABLES = {
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    **_ANY_SIZE,
}


class Model:
    """A replica within Ray Serve."""

    async def __init__(self, values: Mapping[str, Any]) -> None:  # type: ignore[misc]  # Serve awaits it
        from raystyle.serving.replica import Replica

        config = from_dict(ServeConfig, values)
        _log(config.log_file)
        # The model's thread gives the interpreter's lock up in every operation, and a busy event loop may keep it for so long
        # each time: 5 ms, if it were left as it is.
        sys.setswitchinterval(0.0005)
        self.replica = await Replica.start(config)

    async def generate(self, generation: Generation) -> AsyncGenerator[list[Started | Delta], None]:
        async with contextlib.aclosing(self.replica.generate(generation)) as lists:
            async for found in lists:
                yield found

    async def listing(self) -> Listing:
        return await self.replica.listing()

    async def refresh(self) -> Listing:
        return await self.replica.refresh()

    def check_health(self) -> None:
        self.replica.check()

    async def __del__(self) -> None:
        """Serve calls it when it takes a replica down in peace."""
        if hasattr(self, "replica"):
            await self.replica.close()


class Ingress:
    """The HTTP side within Ray Serve; with the `driver` that it was started by it ends."""

    def __init__(self, values: Mapping[str, Any], model: Any, driver: Any = None) -> None:
        self.config = from_dict(ServeConfig, values)
        _log(self.config.log_file)
        for line in limits(self.config):
            logging.getLogger(__name__).info("limit: %s", line)
        self.backend = HandleBackend(model)
        self.driver = driver
        self.http: Any = None

    def __serve_build_asgi_app__(self) -> Any:
        from raystyle.serving.api import make_app
        from raystyle.serving.keys import read_keys

        keys, admin_keys = read_keys(self.config.api_key_file), read_keys(self.config.admin_key_file)
        self.http = make_app(self.config, self.backend, keys, admin_keys)
        if self.driver is not None:
            self.ending = asyncio.create_task(self._end_with_driver())
        return self.http

    async def warm_up(self) -> None:
        """One token by the way that requests go, so that the first of them does not wait for what is set up once."""
        sampling = Sampling(max_new_tokens=1, temperature=0)
        async with contextlib.aclosing(
            self.backend.generate(Generation("warm-up", NEUTRAL_PROMPT, (sampling,)))
        ) as lists:
            async for _ in lists:
                pass

    async def drain(self) -> None:
        """Take no more requests, and return when those that run have ended; after `drain_timeout_s` they are told to."""
        await self.http.drain()

    async def _end_with_driver(self) -> None:
        """What `serve` does when it is stopped, should it not have come to it."""
        from ray import serve as ray_serve

        await lifetime.end_of(self.driver)
        await self.drain()
        await ray_serve.shutdown_async()


class HandleBackend:
    """Replicas behind a Ray Serve handle, as what the HTTP side runs on."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self.stream = handle.options(stream=True, _by_reference=False)

    async def listing(self) -> Listing:
        with _explained():
            return await self.handle.listing.remote()  # type: ignore[no-any-return]

    async def refresh(self) -> Listing:
        with _explained():
            return await self.handle.refresh.remote()  # type: ignore[no-any-return]

    async def generate(self, generation: Generation) -> AsyncGenerator[list[Started | Delta], None]:
        response = self.stream.generate.remote(generation)
        try:
            with _explained():
                async for found in response:
                    yield found
        finally:
            response.cancel()


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """What happens to a replica, as an error that a client can be told."""
    from grpc.aio import AioRpcError
    from ray.exceptions import RayActorError, RayTaskError
    from ray.serve.exceptions import DeploymentUnavailableError, RayServeException

    try:
        yield
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, RaystyleError):
            raise cause from None
        raise
    except (AioRpcError, RayActorError, DeploymentUnavailableError, RayServeException) as error:
        logging.getLogger(__name__).warning("a copy of the model was lost: %s", " ".join(str(error).split())[:300])
        raise RequestError(
            "unavailable", "the copy of the model that worked on this was lost; ask again", retry_after_s=2.0
        ) from None


def application(args: Mapping[str, Any]) -> Any:
    """The application for `serve deploy`: `args` are `raystyle serve`'s flags.

    Where it listens is Serve's to say and not known here, so it is taken to be open to others, which needs keys, unless
    `host` says otherwise. Raises `ConfigError`.
    """
    return build(settle(from_dict(ServeConfig, {"host": "0.0.0.0", **args}), may_grow=True))


def build(config: ServeConfig, driver: Any = None) -> Any:
    """The Serve application of a settled config; given a `lifetime.driver`, it ends with that."""
    from ray import serve

    values = to_dict(config)
    gpus = config.tensor_parallel_size if config.use_gpu else 0
    variables = dict(REPLICA_VARIABLES)
    if config.engine == "vllm":
        from raystyle.serving.engines.vllm import environment

        variables |= environment(config)
    scaling = {
        "min_replicas": config.min_replicas,
        "max_replicas": config.max_replicas,
        "target_ongoing_requests": max(1, config.max_batch_size // 2),
    }
    shared: dict[str, Any] = {
        "max_ongoing_requests": SERVE_MAX_ONGOING,
        "max_constructor_retry_count": 2,
        # A copy that is no longer wanted finishes what it has begun. When the server stops, the ingress ends that in time.
        "graceful_shutdown_timeout_s": config.total_timeout_s + UNREAD_GRACE_S,
        "logging_config": {"log_level": "WARNING", "enable_access_log": False},
    }
    resources = {"num_cpus": config.cpus_per_replica, "num_gpus": gpus, "runtime_env": {"env_vars": variables}}
    model: Any = serve.deployment(
        name="Model", ray_actor_options=resources, autoscaling_config=scaling, health_check_period_s=5, **shared
    )(Model)
    resources = {"num_cpus": 0, "runtime_env": {"env_vars": REPLICA_VARIABLES}}
    ingress: Any = serve.deployment(name="Ingress", num_replicas=1, ray_actor_options=resources, **shared)(
        serve.ingress()(Ingress)
    )
    return ingress.bind(values, model.bind(values), driver)


def settle(config: ServeConfig, *, may_grow: bool) -> ServeConfig:
    """The config with what it left open filled in from what this Ray has. Raises `ConfigError`, `ModelError`.

    A cluster `may_grow`, so GPUs that are asked for and not there may come.
    """
    import ray

    from raystyle import models

    # A copy of the model stands on one machine, so it is the largest that counts.
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus, gpus = (int(max(machine.get(what, 0) for machine in machines)) for what in ("CPU", "GPU"))
    use_gpu = gpus >= config.tensor_parallel_size if config.use_gpu is None else config.use_gpu
    engine = config.engine
    if engine == "auto":
        # Whether it is installed is asked here, and taken to be so where replicas run.
        is_large = (
            use_gpu and _has_vllm() and models.read_shapes(config.model_name_or_path).parameters >= LARGE_PARAMETERS
        )
        engine = "vllm" if is_large else "transformers"
    elif engine == "vllm" and not _has_vllm():
        raise ConfigError(
            "`engine` is vllm, which is not installed\nhint: pip install '.[vllm]', or `--engine transformers`"
        )
    if engine == "transformers" and config.tensor_parallel_size > 1:
        raise ConfigError("`tensor_parallel_size` is vllm's\nhint: add `--engine vllm`, or leave it out")
    cpus_per_replica = config.cpus_per_replica or (1 if use_gpu else max(1, (cpus - 1) // config.max_replicas))
    # Serve would wait for them without a word, and without end.
    needed = [("CPUs", cpus_per_replica, cpus, "--cpus_per_replica", "a larger machine")]
    if use_gpu:
        needed.append(("GPUs", config.tensor_parallel_size, gpus, "--tensor_parallel_size", "`--use_gpu false`"))
    for what, each, there, flag, else_ in needed:
        copies = config.min_replicas
        if copies * each > there and not may_grow:
            who = "a copy of the model needs" if copies == 1 else f"{copies} copies of the model need"
            ways = ["fewer with `--min_replicas`"] * (copies > 1) + [f"less for each: `{flag}`"] * (each > 1) + [else_]
            raise ConfigError(f"{who} {copies * each} {what}, and this machine has {there}\nhint: {'; '.join(ways)}")
    return dataclasses.replace(config, engine=engine, use_gpu=use_gpu, cpus_per_replica=cpus_per_replica)


def _has_vllm() -> bool:
    import importlib.util

    return importlib.util.find_spec("vllm") is not None


def check(config: ServeConfig) -> list[str]:
    """What can be refused before Ray starts: Ray's own ports, keys, model, port. Returns warnings.

    Raises `ConfigError`, `ModelError`.
    """
    from raystyle import models, storage
    from raystyle.serving.keys import read_keys

    if not _is_joined(config) and os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        raise ConfigError(
            "RAY_AUTH_MODE is `disabled`: Ray's own ports, which are open to the network, would run whoever's code\n"
            "hint: unset RAY_AUTH_MODE, or set it to `token`"
        )
    warnings = [*read_keys(config.api_key_file).warnings, *read_keys(config.admin_key_file).warnings]
    models.check_name(config.model_name_or_path)
    for path in config.adapters_path:
        if not storage.exists(path):
            raise ModelError(f"`adapters_path` {path} does not exist\nhint: name a folder of adapters or runs")
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.host.strip("[]"), config.port))
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {config.host}:{config.port}: {error.strerror}\nhint: another `--port`"
            ) from error
    return warnings


def serve(config: ServeConfig, say: Callable[[str], None]) -> None:
    """Serve until interrupted, in a Ray that runs already; then let running requests finish and take the application down."""
    from ray import serve as ray_serve

    is_joined = _is_joined(config)
    config = settle(config, may_grow=is_joined)
    _refuse_a_second_serve()
    # What Serve tells of itself is for its logs; what a person needs is said below.
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    ray_serve.start(
        proxy_location="HeadOnly",
        http_options={"host": config.host.strip("[]"), "port": config.port},
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )
    driver = lifetime.driver() if is_joined else None  # held here: nobody else's handle keeps it
    try:
        with _told_of_waiting(say):
            ingress = _start(build(config, driver))
        try:
            ingress.warm_up.remote().result(timeout_s=config.first_token_timeout_s)
            say(_described(config))
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            say(f"stopping: running requests have {config.drain_timeout_s:g} s to finish")
            ingress.drain.remote().result(timeout_s=config.drain_timeout_s + LAST_WORDS_S + 10)
    finally:
        if is_joined:
            # A message to Serve's controller, which does the rest even if nobody waits for it.
            ray_serve.shutdown()
        else:  # Ray ends now, and Serve with it
            try:
                ray_serve.delete(NAME)
            except TimeoutError:
                say("a copy of the model did not end in time, and ends with Ray")


def _is_joined(config: ServeConfig) -> bool:
    """Whether it is a Ray that runs already."""
    return bool(config.ray_address or os.environ.get("RAY_ADDRESS"))


def _refuse_a_second_serve() -> None:
    """One Ray has one Serve, whose address cannot be changed while it runs."""
    import ray

    try:
        ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    except ValueError:
        return
    raise ConfigError(
        "this Ray serves something already, and another `--host` and `--port` would have no effect\n"
        "hint: `serve deploy` adds an application to what runs, and `serve shutdown` ends it"
    )


@contextlib.contextmanager
def _told_of_waiting(say: Callable[[str], None]) -> Iterator[None]:
    """While the block lasts, what Serve waits for, each minute: a cluster may have to grow first."""
    from ray import serve as ray_serve

    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(SAY_EVERY_S):
            try:
                applications = ray_serve.status().applications
            except Exception as error:  # `_start` hears of it too, and says what it means
                say(f"waiting  for Ray Serve: {' '.join(str(error).split())[:300]}")
                continue
            deployments = applications[NAME].deployments.values() if NAME in applications else ()
            reasons = [" ".join(deployment.message.split())[:500] for deployment in deployments if deployment.message]
            say("waiting  " + (" ".join(reasons) or "for the model to start"))

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        is_over.set()


def _start(application: Any) -> Any:
    from ray import serve as ray_serve

    try:
        return ray_serve.run(application, name=NAME, route_prefix="/")
    except RuntimeError as error:
        deployments = ray_serve.status().applications[NAME].deployments.values()
        raise ModelError(_reason("\n".join(deployment.message for deployment in deployments)) or str(error)) from error


def _reason(traces: str) -> str:
    """The sentence of one of our own errors in the tracebacks that Serve makes of a failed start, else their end.

    The last one: what comes before it is what caused it.
    """
    lines = [line for line in traces.splitlines() if line.strip()]
    for number in reversed(range(len(lines))):
        name, _, message = lines[number].partition(": ")
        if name.startswith("raystyle.") and message:
            hints = lines[number + 1 : number + 2]
            return "\n".join([message, *[hint for hint in hints if hint.startswith("hint:")]])
    return "the model did not start: " + " ".join(lines[-3:])[:1000] if lines else ""


def _described(config: ServeConfig) -> str:
    from ray import serve as ray_serve

    handle = ray_serve.get_deployment_handle("Model", NAME)
    listing: Listing = handle.listing.remote().result(timeout_s=60)
    served = [card for card in listing.cards if not card.refused]
    lines = [f"engine   {listing.engine}, {listing.max_length} tokens of context"]
    for card in served:
        effect = (
            "" if card.effect is None else f", moves a test text's log-probabilities by up to {card.effect:.2g} nats"
        )
        digest = "" if card.digest is None else f"  {card.digest[:12]}"
        unverified = "" if card.base_verified else ", base not verified"
        lines.append(f"model    {card.name}{digest}{effect}{unverified}")
    lines += [f"refused  {card.name}: {card.refused}" for card in listing.cards if card.refused]
    lines += [f"limit    {line}" for line in limits(config)]
    shown = f"[{config.host}]" if ":" in config.host else config.host
    kept = config.log_file or "among Ray's own of this session; `--log_file` names a file"
    lines.append(f"log      {kept}")
    lines.append(f"ready    http://{shown}:{config.port}/  (the page; the API below /v1; Ctrl-C stops)")
    return "\n".join(lines)


def _log(path: str | None) -> None:
    """Requests' lines and warnings into a file, or to this process's output, which Ray keeps among its logs."""
    handler = logging.FileHandler(path, encoding="utf-8") if path else logging.StreamHandler(sys.stdout)
    handler.setFormatter(JSONLines())
    logger = logging.getLogger("raystyle")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
