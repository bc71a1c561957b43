"""`raystyle doctor` on a healthy machine and on broken ones, each broken in earnest. On clusters: tests/e2e/test_job.py."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faults import FaultyProxy

from raystyle.cli import main
from raystyle.config import DoctorConfig
from raystyle.doctor import accelerator, cluster, machine

SECRET = "a-token-that-is-long-enough-to-be-one-0123456789"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home with a token of its own, readable by its user alone."""
    file = tmp_path / "home/.ray/auth_token"
    file.parent.mkdir(parents=True)
    file.write_text(SECRET)
    file.chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    return file


@pytest.fixture
def no_torch(monkeypatch):
    """Without the question to torch, which takes seconds."""
    monkeypatch.setattr(machine, "accelerator", lambda use_gpu: ())


def doctor(capsys, *flags: object) -> tuple[int, dict[str, list[dict]]]:
    """Exit status, and the checks by name."""
    status = main(["doctor", "--json", *map(str, flags)])
    found: dict[str, list[dict]] = {}
    for line in capsys.readouterr().out.splitlines():
        check = json.loads(line)
        found.setdefault(check["name"], []).append(check)
    return status, found


def failed(checks: dict[str, list[dict]]) -> list[str]:
    return [name for name, lines in checks.items() if any(line["status"] == "fail" for line in lines)]


def test_a_healthy_machine_passes_and_nothing_is_left_behind(capsys, home, tmp_path):
    status, checks = doctor(capsys, "--output_dir", tmp_path / "runs/new")
    assert (status, failed(checks)) == (0, [])
    assert {"versions", "gpu", "disk", "storage", "port", "token", "dashboard"} <= checks.keys()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home"]


def test_lines_are_for_people_and_hold_no_token(capsys, home, no_torch):
    main(["doctor"])
    out = capsys.readouterr().out
    assert "ok    versions       raystyle " in out
    assert SECRET not in out


def test_a_directory_that_cannot_be_written(capsys, home, tmp_path, no_torch):
    (tmp_path / "file").write_text("")
    for place in ("/proc/runs", tmp_path / "file/runs"):
        status, checks = doctor(capsys, "--output_dir", place)
        assert (status, failed(checks)) == (1, ["storage"])
        assert checks["storage"][0]["remedy"]


def test_storage_that_denies_and_storage_that_is_not_there(capsys, home, bucket, s3_server, monkeypatch, no_torch):
    assert doctor(capsys, "--output_dir", f"{bucket}/runs")[0] == 0
    with FaultyProxy(s3_server) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        proxy.give(["denied"] * 99)
        status, checks = doctor(capsys, "--output_dir", f"{bucket}/runs")
    assert (status, failed(checks)) == (1, ["storage"])
    [line] = checks["storage"]
    assert line["found"] == f"cannot write `{bucket}/runs`: access denied"
    assert "credentials" in line["remedy"]
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    [line] = doctor(capsys, "--output_dir", "s3://no-such-bucket-here/runs")[1]["storage"]
    assert line["found"].endswith("no such bucket")


def test_an_address_where_nobody_listens_is_said_at_once(capsys, home):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        begun = time.monotonic()
        status, checks = doctor(capsys, "--ray_address", address)
    assert (status, failed(checks)) == (1, ["address"])
    assert "connection refused" in checks["address"][0]["found"]
    assert time.monotonic() - begun < 5


def test_an_address_that_listens_is_reachable():
    with socket.create_server(("127.0.0.1", 0)) as server:
        [check] = cluster.reachable(f"ray://127.0.0.1:{server.getsockname()[1]}")
    assert check.status == "ok"
    assert list(cluster.reachable("auto")) == []


@pytest.mark.parametrize(
    ("mode", "text", "status", "remedy"),
    [
        ("token", SECRET, "ok", ""),
        ("", SECRET, "ok", ""),
        ("token", None, "fail", "ray get-auth-token --generate"),
        ("token", "", "fail", "ray get-auth-token --generate"),
        ("", None, "warn", "ray get-auth-token --generate"),
        ("disabled", SECRET, "fail", "unset RAY_AUTH_MODE"),
    ],
)
def test_token_authentication(home, monkeypatch, mode, text, status, remedy):
    if mode:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    home.unlink() if text is None else home.write_text(text)
    [check] = machine.token()
    assert check.status == status
    assert remedy in check.remedy


def test_a_token_that_others_can_read(home):
    for folder in home.parents:
        if os.stat(folder).st_mode & 0o011 != 0o011:
            folder.chmod(0o755)  # pytest's folders, which are closed to others
        if folder == Path("/tmp"):
            break
    home.chmod(0o644)
    [check] = machine.token()
    assert (check.status, check.remedy) == ("warn", f"chmod 600 {home}")
    home.parent.chmod(0o700)
    assert next(machine.token()).status == "ok"


SERVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(int(sys.argv[3])); self.end_headers()
    def log_message(self, *words): pass
flags = dict(word[2:].split("=") for word in sys.argv[1:3])
server = http.server.HTTPServer((flags["host"], 0), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
"""


@pytest.mark.parametrize(
    ("host", "answer", "status"), [("0.0.0.0", 200, "fail"), ("0.0.0.0", 401, "warn"), ("127.0.0.1", 200, "ok")]
)
def test_a_dashboard_that_others_reach(tmp_path, host, answer, status, monkeypatch):
    """A process with a dashboard's command line, listening as that says; Ray's own is looked at in tests/e2e."""
    script = tmp_path / "ray/dashboard/dashboard.py"
    script.parent.mkdir(parents=True)
    script.write_text(SERVER)
    words = [sys.executable, script, f"--host={host}", "--port=8265", str(answer)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        found = list(machine._dashboard_addresses())
        assert (host, 8265) in found
        monkeypatch.setattr(machine, "_dashboard_addresses", lambda: [(host, port)])
        [check] = machine.dashboards()
        process.terminate()
    assert check.status == status
    assert f"{host}:{port}" in check.found
    assert bool(check.remedy) == (status != "ok")


def test_a_package_of_another_version(tmp_path, monkeypatch, capsys, home, no_torch):
    folder = tmp_path / "peft-0.1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: peft\nVersion: 0.1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    status, checks = doctor(capsys)
    assert (status, failed(checks)) == (1, ["versions"])
    [line] = checks["versions"]
    assert line["found"] == "peft is 0.1.0, not ==0.21.0"
    assert "constraints.txt" in line["remedy"]


def test_a_driver_that_is_broken(tmp_path, monkeypatch):
    script = tmp_path / "nvidia-smi"
    script.write_text("#!/bin/sh\necho 'Failed to initialize NVML: Driver/library version mismatch'\nexit 18\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    check = next(machine.accelerator(use_gpu=True))
    assert check.status == "fail"
    assert "version mismatch" in check.found
    assert next(machine.accelerator(use_gpu=None)).status == "ok"


def test_a_driver_that_hangs(tmp_path, monkeypatch):
    script = tmp_path / "nvidia-smi"
    script.write_text("#!/bin/sh\nexec sleep 30\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(machine, "NVIDIA_SMI_TIMEOUT_S", 0.2)
    check = next(machine.accelerator(use_gpu=True))
    assert check.status == "fail" and "a GPU hangs" in check.found


def test_an_op_that_asks_for_a_compiler_that_is_not_there():
    """DeepSpeed's builders raise where CUDA comes without nvcc; that says nothing of torch."""

    class Builder:
        def is_compatible(self, verbose):
            raise RuntimeError("CUDA_HOME does not exist")

    assert accelerator._is_compatible(Builder()) is False


def test_a_gpu_that_this_torch_cannot_use(tmp_path, monkeypatch):
    """The embedded torch is built without CUDA: with a card there, that is a failure."""
    import torch

    if torch.version.cuda:
        pytest.skip("this torch has CUDA")
    script = tmp_path / "nvidia-smi"
    script.write_text("#!/bin/sh\necho 'NVIDIA A100-SXM4-80GB, 81920, 70000, 580.65'\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    checks = {check.name: check for check in machine.accelerator(use_gpu=None)}
    assert checks["gpu"].status == "warn" and "68 GiB of it are taken" in checks["gpu"].found
    assert checks["cuda"].status == "fail" and "without CUDA" in checks["cuda"].found


def test_a_port_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as server:
        [check] = machine.serving_port(server.getsockname()[1])
    assert check.status == "warn"
    assert "in use" in check.found


def test_a_disk_that_is_full(tmp_path, monkeypatch):
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a disk of a test's own needs root, and the right to mount")
    try:
        with open(tmp_path / "large", "wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
            while True:
                file.write(bytes(1 << 16))
        monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
        checks = [*machine.disk(None), *machine.output(str(tmp_path / "runs"))]
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    broken = [check for check in checks if check.status == "fail"]
    assert [check.name for check in broken] == ["disk", "storage"]
    assert "Ray keeps no objects" in broken[0].found
    assert broken[1].found.endswith("the disk is full")


def test_a_wrong_flag_is_a_mistake_not_a_finding(capsys):
    assert main(["doctor", "--port", "0"]) == 2
    assert DoctorConfig().port == 8000
