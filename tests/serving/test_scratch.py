"""A folder of a replica's own: what a killed one left goes, and what a living one has stays."""

import subprocess
import sys

import pytest

from raystyle.serving.scratch import PREFIX, Scratch


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_what_a_killed_one_left_is_removed_by_the_next(place):
    code = (
        f"import os, tempfile; tempfile.tempdir = {str(place)!r}\n"
        "from raystyle.serving.scratch import Scratch\n"
        "scratch = Scratch()\n"
        "open(scratch.path + '/copy', 'w').close()\n"
        "os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    [left] = place.iterdir()
    assert left.name.startswith(PREFIX) and (left / "copy").exists()
    scratch = Scratch()
    assert [str(path) for path in place.iterdir()] == [scratch.path]
    scratch.remove()
    assert not list(place.iterdir())


def test_what_a_living_one_has_stays(place):
    first, second = Scratch(), Scratch()
    assert {str(path) for path in place.iterdir()} == {first.path, second.path}
    first.remove()
    second.remove()


def test_what_only_looks_like_one_is_left_alone(place):
    (place / f"{PREFIX}file").write_text("x")
    (place / "elsewhere").mkdir()
    (place / f"{PREFIX}link").symlink_to(place / "elsewhere")
    Scratch().remove()
    assert {path.name for path in place.iterdir()} == {f"{PREFIX}file", "elsewhere", f"{PREFIX}link"}
