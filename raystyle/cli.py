"""`raystyle VERB`: parse first, import the heavy part afterwards.

    raystyle demo                       the whole job on made-up text and a tiny model
    raystyle prepare --dataset_path …   raw novels -> cleaned documents and packed rows
    raystyle rules --try_path FILE      the cleaning rules: list, explain, check, try
    raystyle plan --config …            what a training run would do, before it does it
    raystyle train --config …           rows -> LoRA adapter
    raystyle sweep --config …           several learning rates, judged by held-out loss
    raystyle sample --prompt …          base and adapter, side by side
    raystyle evaluate --lora_path …     what adapters learned, copied and lost, and which to take
    raystyle attribute --text_path …    which of several authors a text is nearest to; needs no model
    raystyle export --output_dir …      the adapter merged into the base
    raystyle serve --adapters_path …    base and adapters over HTTP, and a page to compare them
    raystyle doctor                     what of this machine or cluster would stop any of these

Exit status: 0 done, 2 a mistake in what was asked (one message, no traceback), 1 training or a check that failed,
130 Ctrl-C.
"""

import json
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from raystyle import __version__
from raystyle.config import (
    AttributeConfig,
    DemoConfig,
    DoctorConfig,
    EvaluateConfig,
    ExportConfig,
    PlanConfig,
    PrepareConfig,
    RayConfig,
    RulesConfig,
    SampleConfig,
    ServeConfig,
    SweepConfig,
    TrainConfig,
)
from raystyle.errors import ConfigError, RaystyleError, TrainingError
from raystyle.flags import parse


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print((__doc__ or "").strip() + "\n\n`raystyle VERB --help` lists a command's flags.")
        return 0
    if argv[0] == "--version":
        print(f"raystyle {__version__}")
        return 0
    # `ray job stop` and schedulers send SIGTERM: leave as after Ctrl-C, so that Ray's processes are stopped.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    quieten()
    try:
        if argv[0] not in COMMANDS:
            raise ConfigError(f"unknown command `{argv[0]}`\nhint: it is one of {', '.join(COMMANDS)}")
        config_class, command = COMMANDS[argv[0]]
        return command(parse(config_class, argv[1:])) or 0
    except RaystyleError as error:
        print(f"raystyle: error: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # `raystyle rules | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print("\nraystyle: interrupted; the same command continues where it stopped", file=sys.stderr)
        return 130
    return 0


def quieten() -> None:
    """Keep the libraries' own bars and notices out of ours; their errors still come."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def hide_loading_bars() -> None:
    """transformers' bars over tensors in files; a download from the hub keeps its own."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def say(message: str) -> None:
    print(message, flush=True)


def warn(message: str) -> None:
    print(f"raystyle: warning: {message}", file=sys.stderr, flush=True)


@contextmanager
def ray_session(config: RayConfig) -> Iterator[None]:
    """Ray for as long as the block lasts: the one named by a flag or `RAY_ADDRESS`, else one of our own.

    A plain `ray.init()` would join whatever Ray runs on this machine, hence `address="local"`. Workers' output stays in
    Ray's logs: what a person needs comes through the run's own files, and a failure brings its reason along.
    """
    import logging

    import ray

    address = config.ray_address or os.environ.get("RAY_ADDRESS")
    if address and config.num_cpus is not None:
        raise ConfigError("`num_cpus` caps a local Ray, and this one runs already\nhint: leave out `--num_cpus`")
    # Ray warns at each start that token authentication is on, and how to switch it off: it stays on.
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        if address:
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
        else:
            # Of one machine no part is announced to go: a process less to start. Ray Train's controller inherits it.
            os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
            ray.init(
                address="local",
                num_cpus=config.num_cpus,
                include_dashboard=False,
                logging_level=logging.ERROR,
                log_to_driver=False,
            )
    except (
        ConnectionError,
        ValueError,
        RuntimeError,
        ray.exceptions.RayError,
    ) as error:  # RuntimeError: another version
        raise ConfigError(
            f"cannot join the Ray at `{address or 'local'}`: {' '.join(str(error).split())[:300]}\n"
            "hint: is it running, and is its token here (RAY_AUTH_MODE=token, ~/.ray/auth_token)? `ray status` asks it"
        ) from error
    # Ray has put its own handler in place of `main`'s, which prints a stack and leaves no time to finish anything.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if isinstance(config, PrepareConfig | TrainConfig | EvaluateConfig):
            refuse_unshared(config)
        yield
    finally:
        ray.shutdown()


def refuse_unshared(config: PrepareConfig | TrainConfig | EvaluateConfig) -> None:
    """Raises `ConfigError` where tasks run on other machines than this one, and a place is a path of this one.

    A head without CPUs counts as another machine: what it is asked to do, others will.
    """
    import ray

    from raystyle.storage import is_remote

    working = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")}
    if config.shared_paths or working == {ray.util.get_node_ip_address()}:
        return
    for name in ("output_dir", "dataset_path", "lora_path"):
        places = getattr(config, name, None) or ()
        for place in (places,) if isinstance(places, str) else places:
            if not is_remote(place):
                raise ConfigError(
                    f"`{name}` is {place}, a path of one machine, and this Ray works on {len(working)} others or more\n"
                    "hint: s3:// or gs://, or `--shared_paths` where every node sees the same files there (NFS)"
                )


def run_prepare(config: PrepareConfig) -> None:
    from raystyle import pipeline

    with ray_session(config):
        result = pipeline.prepare(config)
    say(result.describe())


def run_rules(config: RulesConfig) -> None:
    from raystyle import pipeline

    for line in pipeline.rules(config):
        say(line)


def run_plan(config: PlanConfig) -> None:
    from raystyle import pipeline
    from raystyle.training.preflight import is_prepared

    if config.streaming or is_prepared(config.dataset_path):
        say(pipeline.plan(config))
        return
    with ray_session(config):
        say("the text is prepared first; `raystyle train` with the same --output_dir uses the same rows")
        say(pipeline.plan(config))


def run_train(config: TrainConfig) -> None:
    from raystyle import pipeline

    with ray_session(config):
        result = pipeline.train(config, say)
    if result.unchanged:
        say("this run has finished before; nothing was done")
    if heldout := result.values("heldout_loss"):
        say(f"held-out loss {heldout[0]:.3f} -> {heldout[-1]:.3f} nats per token")
    say(f"adapter  {result.adapter_dir}\nreport   {config.output_dir}/report.html")
    say(f"next     raystyle sample --model_name_or_path {config.model_name_or_path} --lora_path {config.output_dir}")


def run_sweep(config: SweepConfig) -> None:
    from raystyle import pipeline
    from raystyle.training.sweep import described

    with ray_session(config):
        records = pipeline.sweep(config, say)
    best = records[0]
    if best["heldout_loss"] is None:
        raise TrainingError(f"every trial failed, the first with: {best['failed']}\nhint: try lower `learning_rates`")
    say(f"best     {described(best)}")
    say(f"adapter  {best['output_dir']}/adapter\nreport   {config.output_dir}/report.html")


def run_sample(config: SampleConfig) -> None:
    hide_loading_bars()
    import dataclasses

    from raystyle import pipeline

    for sample in pipeline.sample(config, warn):
        if config.json:
            say(json.dumps(dataclasses.asdict(sample), ensure_ascii=False))
        else:
            name = f"adapter {sample.adapter}" if sample.adapter else "base"
            say(f"── {name}, sample {sample.sample + 1}\n{sample.prompt}▸{sample.text}\n")


def run_evaluate(config: EvaluateConfig) -> None:
    hide_loading_bars()
    from raystyle import evaluation
    from raystyle.style.verdict import describe

    with ray_session(config):
        result = evaluation.evaluate(config, say)
    say(describe(result))
    say(f"report   {config.output_dir or config.lora_path[0]}/report.html")


def run_attribute(config: AttributeConfig) -> None:
    from raystyle import evaluation

    for line in evaluation.attribute(config, lambda message: print(message, file=sys.stderr)):
        say(line)


def run_export(config: ExportConfig) -> None:
    hide_loading_bars()
    from raystyle import pipeline

    say(f"merged model  {pipeline.export(config)}")


def run_serve(config: ServeConfig) -> None:
    from raystyle.serving import app, wall

    for warning in app.check(config):
        warn(warning)
    # For Serve's proxy: limits that it has no setting for, and its way to the ingress. A cluster that runs already has its own,
    # in its image.
    for name, value in (app.PROXY_VARIABLES | {wall.VARIABLE: f"{wall.__name__}:build"}).items():
        os.environ.setdefault(name, value)
    with ray_session(config):
        app.serve(config, say)


def run_demo(config: DemoConfig) -> None:
    hide_loading_bars()
    from raystyle.demo.run import run

    with ray_session(config):
        run(config, say)


def run_doctor(config: DoctorConfig) -> int:
    import dataclasses

    from raystyle.doctor import cluster, machine

    address = config.ray_address or os.environ.get("RAY_ADDRESS")
    checks = list(cluster.reachable(address)) if address else machine.examine(config)
    if address and all(check.status != machine.FAIL for check in checks):
        try:
            with ray_session(config):
                checks += cluster.examine(config)
        except ConfigError as error:
            reason, _, hint = str(error).partition("\nhint: ")
            checks += [machine.Check("ray", "fail", reason, hint), *machine.token()]
    for check in checks:
        if config.json:
            say(json.dumps(dataclasses.asdict(check), ensure_ascii=False))
        elif not check.node or check.status != machine.OK:  # of many nodes, what is amiss
            say(machine.shown(check))
    return int(any(check.status == machine.FAIL for check in checks))


COMMANDS: dict[str, tuple[type[Any], Callable[[Any], int | None]]] = {
    "demo": (DemoConfig, run_demo),
    "prepare": (PrepareConfig, run_prepare),
    "rules": (RulesConfig, run_rules),
    "plan": (PlanConfig, run_plan),
    "train": (TrainConfig, run_train),
    "sweep": (SweepConfig, run_sweep),
    "sample": (SampleConfig, run_sample),
    "evaluate": (EvaluateConfig, run_evaluate),
    "attribute": (AttributeConfig, run_attribute),
    "export": (ExportConfig, run_export),
    "serve": (ServeConfig, run_serve),
    "doctor": (DoctorConfig, run_doctor),
}
