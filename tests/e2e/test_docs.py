"""The demonstration does what it says, and every command that the documentation shows in a `sh` block runs.

The commands run in order, guide by guide, in an empty folder after `raystyle demo`, as a reader would type them; but for the
demonstration and the server, on a Ray that runs already.
"""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
GUIDES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands(guide: Path) -> list[str]:
    return [line for block in BLOCK.findall(guide.read_text(encoding="utf-8")) for line in block.splitlines() if line]


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(
        command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, timeout=1100
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An empty folder in which the demonstration has run."""
    place = tmp_path_factory.mktemp("reader")
    (place / "jobs").symlink_to(ROOT / "jobs")
    done = shell("raystyle demo", place)
    assert done.returncode == 0, done.stderr
    return place


def test_the_demo_shows_the_voice_in_the_adapter_and_not_in_the_base(folder):
    result = json.loads((folder / "runs/demo/demo.json").read_text())
    assert result["base_marker_rate"] < 0.05 * result["corpus_marker_rate"]
    assert 0.5 < result["adapter_marker_rate"] / result["corpus_marker_rate"] < 1.5
    assert result["heldout_loss_after"] < 0.5 * result["heldout_loss_before"]
    for place in ("corpus", "base/config.json", "prepared/report.html", "run/report.html", "run/adapter"):
        assert (folder / "runs/demo" / place).exists()


def test_the_demo_rejects_the_broken_file_and_says_so(folder):
    manifest = json.loads((folder / "runs/demo/prepared/manifest.json").read_text())
    assert manifest["counts"]["rejected"] == 1
    assert {entry["encoding"] for entry in manifest["inputs"]} >= {"utf-8", "gb18030", "cp950", None}


def test_a_second_demo_trains_nothing_and_ends_the_same(folder, joined):
    before = json.loads((folder / "runs/demo/demo.json").read_text())
    done = shell("raystyle demo", folder)
    assert done.returncode == 0, done.stderr
    assert "kept from an earlier run" in done.stdout
    assert "prepared before, unchanged" in done.stdout
    after = json.loads((folder / "runs/demo/demo.json").read_text())
    assert after["samples"] == before["samples"]


def runnable() -> list[Any]:
    """Guides with commands; that to training starts Ray Train seven times."""
    slow = {"train.md": [pytest.mark.slow]}
    return [pytest.param(g, id=g.name, marks=slow.get(g.name, [])) for g in GUIDES if commands(g)]


@pytest.mark.parametrize("guide", runnable())
def test_the_commands_of_a_guide_run(guide, folder, joined):
    """A server that a guide starts runs until the guide ends, on another port than 8000, which may be taken."""
    with ExitStack() as servers:
        port = 8000
        for command in commands(guide):
            if command.startswith("raystyle serve "):
                port = servers.enter_context(served(command, folder))
                continue
            assert re.match("(raystyle|curl) ", command), (
                f"a `sh` block of {guide.name} holds something else: {command}"
            )
            done = shell(command.replace("127.0.0.1:8000", f"127.0.0.1:{port}"), folder)
            assert done.returncode == 0, f"{command}\n{done.stderr}"
            if command.startswith("curl "):
                assert done.stdout and '"error"' not in done.stdout, f"{command}\n{done.stdout}"


@contextmanager
def served(command: str, folder: Path) -> Iterator[int]:
    """Run a `raystyle serve` that listens on port 8000 on a free one instead, and wait until it does; gives the port."""
    assert command.endswith("--port 8000")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [sys.executable, "-m", *command.removesuffix("8000").split(), str(port)]
    alone = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    process = subprocess.Popen(words, cwd=folder, env=alone, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        said = []
        while not (said and said[-1].startswith("ready ")):
            said.append(process.stdout.readline())
            assert said[-1], "".join(said)
        yield port
    finally:
        process.terminate()
        assert process.wait(timeout=300) == 0
