"""What lies in cluster/ works as it stands, as far as that can be known without a cluster.

Versions are the project's, what is named exists, commands parse, launcher files pass Ray's own schema, and manifests use
KubeRay's fields by name and type. What a pod may say is Kubernetes' own schema's, where `kubernetes-validate` is installed
(22 MB, so not by `make setup`).
"""

import importlib
import importlib.util
import re
import shlex
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from raystyle import __version__
from raystyle.config import ServeConfig, TrainConfig
from raystyle.flags import from_dict, parse
from raystyle.serving import app, wall

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "cluster"
FILES = sorted(path for path in CLUSTER.rglob("*") if path.is_file())
KUBERAY = {path.stem: yaml.safe_load(path.read_text()) for path in sorted((CLUSTER / "kuberay").glob("*.yaml"))}
LAUNCHER = sorted((CLUSTER / "launcher").glob("*.yaml"))
PINS = dict(
    line.lower().replace("_", "-").split("==")
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if "==" in line
)

# Fields of KubeRay 1.6's ray.io/v1 by name, with the type that its schema gives them; `pod` and `resources` are Kubernetes'.
# Only what the manifests may use: another field fails, and belongs here once it was looked up.
TEXT, NUMBER, FLAG, WORDS = str, int, bool, dict[str, str]
AUTH = {"mode": {"token"}, "secretName": TEXT}
AUTOSCALER = {
    "version": {"v1", "v2"},
    "idleTimeoutSeconds": NUMBER,
    "upscalingMode": {"Default", "Aggressive", "Conservative"},
    "resources": "resources",
}
HEAD = {"serviceType": {"ClusterIP"}, "rayStartParams": WORDS, "labels": WORDS, "template": "pod"}
GROUP = {
    "groupName": TEXT,
    "replicas": NUMBER,
    "minReplicas": NUMBER,
    "maxReplicas": NUMBER,
    "numOfHosts": NUMBER,
    "rayStartParams": WORDS,
    "labels": WORDS,
    "template": "pod",
}
RAY_CLUSTER = {
    "rayVersion": TEXT,
    "authOptions": AUTH,
    "enableInTreeAutoscaling": FLAG,
    "autoscalerOptions": AUTOSCALER,
    "headGroupSpec": HEAD,
    "workerGroupSpecs": [GROUP],
}
SPECS: dict[str, dict[str, Any]] = {
    "RayCluster": RAY_CLUSTER,
    "RayJob": {
        "entrypoint": TEXT,
        "runtimeEnvYAML": TEXT,
        "shutdownAfterJobFinishes": FLAG,
        "ttlSecondsAfterFinished": NUMBER,
        "backoffLimit": NUMBER,
        "submitterPodTemplate": "pod",
        "rayClusterSpec": RAY_CLUSTER,
    },
    "RayService": {"serveConfigV2": TEXT, "excludeHeadPodFromServeSvc": FLAG, "rayClusterConfig": RAY_CLUSTER},
}


def ray_cluster(manifest: dict[str, Any]) -> dict[str, Any]:
    spec = manifest["spec"]
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


def pods(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Every pod template of a KubeRay manifest."""
    if manifest["kind"] not in SPECS:
        return []
    cluster = ray_cluster(manifest)
    submitter = manifest["spec"].get("submitterPodTemplate")
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [*(group["template"] for group in groups), *([submitter] if submitter else [])]


def mistakes(value: Any, schema: Any, place: str = "spec") -> list[str]:
    """Where a value is not what a table of fields says."""
    if isinstance(schema, str):
        return [] if isinstance(value, dict) else [f"{place} is no mapping"]
    if isinstance(schema, set):
        return [] if value in schema else [f"{place} is {value!r}"]
    if isinstance(schema, list):
        return [line for number, item in enumerate(value) for line in mistakes(item, schema[0], f"{place}[{number}]")]
    if isinstance(schema, dict):
        unknown = [f"{place}.{name} is no field" for name in value if name not in schema]
        known = [name for name in value if name in schema]
        return unknown + [line for name in known for line in mistakes(value[name], schema[name], f"{place}.{name}")]
    if schema == WORDS:
        return [f"{place}.{k} is {v!r}, not text" for k, v in value.items() if not isinstance(v, str)]
    return [] if type(value) is schema else [f"{place} is {value!r}"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CLUSTER)))
def test_versions_are_the_projects(path):
    text = path.read_text(encoding="utf-8")
    for version in re.findall(r"raystyle:(\d[\w.]*)", text):
        assert version == __version__
    for version in re.findall(r"rayVersion: \"(.*)\"", text):
        assert version == PINS["ray"]
    for name, version in re.findall(r"([\w.-]+)==([\w.]+)", text):
        assert version == PINS[name.lower().replace("_", "-")]


@pytest.mark.parametrize("name", [name for name, manifest in KUBERAY.items() if manifest["kind"] in SPECS])
def test_manifests_use_kuberays_fields(name):
    manifest = KUBERAY[name]
    assert manifest["apiVersion"] == "ray.io/v1"
    assert manifest.keys() == {"apiVersion", "kind", "metadata", "spec"}
    assert mistakes(manifest["spec"], SPECS[manifest["kind"]]) == []
    for group in ray_cluster(manifest)["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_a_wrong_field_or_type_is_found():
    wrong = {"rayVersion": 2.6, "workerGroupSpecs": [{"groupname": "cpu"}], "autoscalerOptions": {"version": "v3"}}
    assert mistakes(wrong, RAY_CLUSTER) == [
        "spec.rayVersion is 2.6",
        "spec.workerGroupSpecs[0].groupname is no field",
        "spec.autoscalerOptions.version is 'v3'",
    ]


def test_pods_and_policies_are_kubernetes():
    if importlib.util.find_spec("kubernetes_validate") is None:
        pytest.skip("Kubernetes' schemas are not here: pip install kubernetes-validate==1.37.0")
    import kubernetes_validate

    for manifest in KUBERAY.values():
        for pod in pods(manifest):
            whole = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": pod}
            kubernetes_validate.validate(whole, "1.37", strict=True)
        if manifest["kind"] not in SPECS:
            kubernetes_validate.validate(manifest, "1.37", strict=True)


@pytest.mark.parametrize("name", [name for name, manifest in KUBERAY.items() if manifest["kind"] in SPECS])
def test_pods_are_closed_and_hold_no_secret(name):
    """Token on, no root, no rights to gain, secrets by reference, and the network policy is about every one of them."""
    manifest = KUBERAY[name]
    cluster = ray_cluster(manifest)
    assert cluster["authOptions"] == {"mode": "token", "secretName": "raystyle-token"}
    policy = KUBERAY["network"]["spec"]
    for pod in pods(manifest):
        assert policy["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
        assert pod["spec"]["securityContext"]["runAsNonRoot"]
        assert pod["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["spec"]["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["requests"].keys() == container["resources"]["limits"].keys()
            assert all("valueFrom" in variable for variable in container.get("env", []))
    host = cluster["headGroupSpec"]["rayStartParams"]["dashboard-host"]
    # What the operator must reach is open within the policy; what only people use is not open at all.
    assert host == ("127.0.0.1" if manifest["kind"] == "RayCluster" else "0.0.0.0")
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_the_network_policy_lets_nobody_else_in():
    policy = KUBERAY["network"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    own = {"podSelector": policy["podSelector"]}
    for rule in policy["ingress"]:
        assert rule["from"] == [own] or ("ports" in rule and all("podSelector" in peer for peer in rule["from"]))
    [names] = [rule for rule in policy["egress"] if "to" not in rule]
    assert {port["port"] for port in names["ports"]} == {53}
    [world] = [rule for rule in policy["egress"] if any("ipBlock" in peer for peer in rule.get("to", ()))]
    assert world["to"][0]["ipBlock"]["except"] == ["169.254.169.254/32"]
    assert {port["port"] for port in world["ports"]} == {443, 6443}


def test_the_jobs_command_is_one_that_runs():
    words = shlex.split(KUBERAY["job"]["spec"]["entrypoint"])
    assert words[0] == "python"
    local = [word.replace("/opt/raystyle/", f"{ROOT}/") for word in words[1:]]
    assert Path(local[0]).exists()
    config = parse(TrainConfig, local[1:])
    groups = {group["groupName"]: group for group in KUBERAY["job"]["spec"]["rayClusterSpec"]["workerGroupSpecs"]}
    assert config.num_workers == groups["gpu"]["minReplicas"]
    assert config.prepare_on == ("pool=cpu",) and groups["cpu"]["labels"] == {"pool": "cpu"}
    assert config.train_on == ("pool=gpu",) and groups["gpu"]["labels"] == {"pool": "gpu"}
    assert config.global_batch_size == 8 * 16  # the reference preset's batch, on four workers


@pytest.mark.parametrize(
    "file", [CLUSTER / "kuberay/service.yaml", ROOT / "jobs/configs/serve.yaml"], ids=lambda f: f.name
)
def test_the_service_names_an_application_that_exists(file):
    manifest = yaml.safe_load(file.read_text())
    config = yaml.safe_load(manifest["spec"]["serveConfigV2"]) if "spec" in manifest else manifest
    [application] = config["applications"]
    module, _, name = application["import_path"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))
    settings = from_dict(ServeConfig, {"host": config["http_options"]["host"], **application["args"]})
    assert settings.api_key_file
    if "spec" in manifest:
        mounted = [m["mountPath"] for pod in pods(manifest) for m in pod["spec"]["containers"][0]["volumeMounts"]]
        assert mounted.count(str(Path(settings.api_key_file).parent)) == len(pods(manifest))
        [group] = ray_cluster(manifest)["workerGroupSpecs"]
        assert settings.max_replicas <= group["maxReplicas"]
        head = ray_cluster(manifest)["headGroupSpec"]["template"]["spec"]["containers"][0]
        assert {"name": "serve", "containerPort": 8000} in head["ports"]  # or no service would be made for it


@pytest.mark.parametrize("path", LAUNCHER, ids=lambda path: path.name)
def test_launcher_files_pass_rays_own_schema(path):
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load(path.read_text())
    validate_config(prepare_config(config))
    assert config["docker"]["image"].endswith(f":{__version__}")
    assert config["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}
    for command in [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]:
        if "ray start" in command:
            assert "RAY_AUTH_MODE=token ray start" in command
    assert any("--dashboard-host=127.0.0.1" in command for command in config["head_start_ray_commands"])


@pytest.mark.parametrize(("name", "identity"), [("aws", "IamInstanceProfile"), ("gcp", "serviceAccounts")])
def test_every_kind_of_worker_has_an_identity_that_storage_knows(name, identity):
    """Ray gives one to the head alone, and the tasks that read and write run on workers."""
    config = yaml.safe_load((CLUSTER / f"launcher/{name}.yaml").read_text())
    workers = {kind: made for kind, made in config["available_node_types"].items() if kind != config["head_node_type"]}
    assert workers
    for made in workers.values():
        assert "raystyle-worker" in str(made["node_config"][identity])


def test_a_wrong_launcher_file_does_not_pass():
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load((CLUSTER / "launcher/aws.yaml").read_text()))
    with pytest.raises(ValidationError):
        validate_config({**config, "idle_minutes": 5})


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, continued lines joined, comments left out."""
    lines = [line for line in (CLUSTER / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [(words[0], words[1]) for line in text.splitlines() if (words := line.split(None, 1))]


def test_the_dockerfile_copies_what_exists_and_ends_without_root():
    found = instructions()
    known = {"ARG", "FROM", "RUN", "USER", "WORKDIR", "ENV", "COPY", "CMD"}
    assert {name for name, _ in found} <= known
    assert [value for name, value in found if name == "USER"][-1] == "ray"
    for value in (value for name, value in found if name == "COPY"):
        _, *sources, _ = value.split()
        for source in sources:
            assert (ROOT / source).exists(), source
    built = {line for name, value in found if name == "COPY" for line in value.split()}
    assert {"pyproject.toml", "README.md", "constraints.txt", "raystyle", "jobs"} <= built


def test_the_dockerfile_installs_pinned_packages_and_nothing_else():
    runs = [value for name, value in instructions() if name == "RUN" and "pip install" in value]
    assert len(runs) == 2
    for run in runs:
        assert "--constraint constraints.txt" in run
    # Every extra that it may install is pinned too.
    project = (ROOT / "pyproject.toml").read_text()
    [extras] = [
        value.partition("=")[2] for name, value in instructions() if name == "ARG" and value.startswith("EXTRAS")
    ]
    [wanted] = re.findall(rf"^{extras} = \[(.*)\]", project, re.MULTILINE)
    for requirement in re.findall(r'"([\w-]+)', wanted):
        assert requirement in PINS
    assert "boto3" in PINS


def test_the_images_environment_is_what_the_code_asks_for():
    words = [word for name, value in instructions() if name == "ENV" for word in value.split()]
    environment = dict(word.split("=", 1) for word in words)
    assert environment[wall.VARIABLE] == f"{wall.__name__}:build"
    assert app.PROXY_VARIABLES.items() <= environment.items()
    assert environment["RAY_AUTH_MODE"] == "token"
    used = set(re.findall(r"\$\{(\w+)\}", (CLUSTER / "Dockerfile").read_text()))
    assert used == {value.partition("=")[0] for name, value in instructions() if name == "ARG"}


def test_a_job_takes_little_along_and_all_it_needs(tmp_path):
    """What Ray would upload for `--working-dir . --runtime-env cluster/runtime-env.yaml`, made by Ray itself."""
    from ray._private.runtime_env.packaging import create_package

    environment = yaml.safe_load((CLUSTER / "runtime-env.yaml").read_text())
    assert environment.keys() == {"excludes", "env_vars"}
    package = tmp_path / "package.zip"
    create_package(str(ROOT), package, include_gitignore=True, excludes=environment["excludes"])
    with zipfile.ZipFile(package) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    needed = {
        str(path.relative_to(ROOT))
        for folder in ("raystyle", "jobs")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert needed <= names
    assert {name.partition("/")[0] for name in names} <= {"raystyle", "jobs", "pyproject.toml", ".gitignore"}
    assert package.stat().st_size < 3_000_000


def test_hosted_ci_runs_what_a_person_types():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    assert workflow["permissions"] == {"contents": "read"}
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert [step["run"] for step in steps if "run" in step] == ["make demo", "make test"]
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"demo", "test"} <= set(targets)
    nightly = yaml.safe_load((ROOT / ".github/workflows/nightly.yml").read_text())
    slow = nightly["jobs"]["slow"]["steps"]
    assert nightly["permissions"] == {"contents": "read"} and slow[-1]["run"] == "make test-slow"
    assert "test-slow" in targets
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"]) for step in steps + slow if "uses" in step)
