import errno
import os
import shutil
from pathlib import Path

import hostile
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raystyle import adapters, storage
from raystyle.errors import StorageError
from raystyle.serving.finding import NAME, find, listing

STAND_IN = (adapters.CONFIG, adapters.WEIGHTS, adapters.ABOUT)


def adapter(folder: Path, *names: str) -> Path:
    """Only names and sizes are looked at here."""
    folder.mkdir(parents=True)
    for name in names or STAND_IN:
        (folder / name).write_text("x")
    return folder


def run(folder: Path, *steps: int) -> Path:
    adapter(folder / "adapter")
    (folder / "plan.json").write_text("{}")
    for step in steps:
        adapter(folder / "checkpoints" / f"step-{step:08d}", *STAND_IN, "checkpoint.json")
    return folder


def found(*paths) -> dict[str, tuple[str, int | None, bool]]:
    """Name -> kind, step, and whether it is fit to be looked into."""
    listings = {str(path): listing(str(path)) for path in paths}
    return {each.name: (each.kind, each.step, each.refused is None) for each in find(listings)}


@pytest.fixture
def style(tmp_path):
    return run(tmp_path / "runs" / "style", 2, 153)


ALL = {
    "style": ("adapter", None, True),
    "style@step-153": ("checkpoint", 153, True),
    "style@step-2": ("checkpoint", 2, True),
}


def test_a_run_has_a_name_and_so_have_its_checkpoints_the_newest_first(style):
    assert list(found(style).items()) == list(ALL.items())


def test_a_directory_of_runs_and_adapters_is_looked_into_once(style):
    adapter(style.parent / "other")
    adapter(style.parent / ".hidden")
    adapter(style.parent / "_hidden")
    adapter(style.parent / "deeper" / "still")
    (style.parent / "a model").mkdir()
    (style.parent / "a model" / "config.json").write_text("{}")
    (style.parent / "notes.txt").write_text("x")
    assert found(style.parent) == ALL | {"other": ("adapter", None, True)}


def test_a_checkpoint_has_one_name_from_wherever_it_is_looked_at(style):
    name = {"style@step-153": ("checkpoint", 153, True)}
    assert found(style / "checkpoints" / "step-00000153") == name
    assert found(style / "checkpoints") == name | {"style@step-2": ("checkpoint", 2, True)}
    assert found(style, style / "checkpoints", style.parent) == ALL
    shutil.copytree(style / "checkpoints" / "step-00000153", style.parent.parent / "best" / "mine")
    assert found(style.parent.parent / "best") == {"mine": ("checkpoint", None, True)}


def test_an_adapter_s_name_is_its_folder_s(style):
    assert found(style / "adapter") == {"adapter": ("adapter", None, True)}


def test_what_is_not_whole_is_not_looked_into(style):
    (style / "adapter" / adapters.ABOUT).unlink()
    (style / "checkpoints" / "step-00000153" / "checkpoint.json").unlink()
    listings = {str(style): listing(str(style))}
    refused = {each.name: each.refused for each in find(listings) if each.refused}
    assert "raystyle_adapter.json is missing" in refused["style"]
    assert "checkpoint.json is missing" in refused["style@step-153"]
    assert found(style)["style@step-2"][2]


def test_a_run_without_anything_yet_has_nothing(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "plan.json").write_text("{}")
    assert found(tmp_path) == {} and found(tmp_path / "checkpoints") == {}
    assert listing(str(tmp_path / "nothing")) is None and listing(str(tmp_path / "plan.json")) is None


@pytest.mark.parametrize("name", ["base", "a b", "作者", "x" * 129, "-x", "x\ny", "x%2f", "\udcff"])
def test_a_name_that_could_be_misread_is_refused(name, tmp_path):
    os.mkdir(os.path.join(tmp_path, name))
    (tmp_path / name / adapters.CONFIG).write_text("x")
    assert found(tmp_path) == {name: ("adapter", None, False)}


def test_a_checkpoint_of_a_run_with_too_long_a_name_is_refused(tmp_path):
    run(tmp_path / ("x" * 125), 3)
    assert sorted(ok for _, _, ok in found(tmp_path).values()) == [False, True]


@given(st.text(max_size=140))
def test_no_name_is_a_path(name):
    if NAME.fullmatch(name):
        assert name not in (".", "..") and os.path.basename(name) == name and name.isascii() and len(name) <= 128


def test_a_name_that_two_folders_claim_means_neither(style, tmp_path):
    other = run(tmp_path / "elsewhere" / "style", 2)
    names = found(style, other)
    assert names["style"][2] is names["style@step-2"][2] is False and names["style@step-153"][2]
    adapter(tmp_path / "third" / "style@step-153")
    assert not found(style, tmp_path / "third")["style@step-153"][2]


def test_links_are_followed_inside_of_the_path_only(style, tmp_path):
    (style.parent / "again").symlink_to(style)
    (style.parent / "out").symlink_to(adapter(tmp_path / "secret"))
    (style.parent / "file").symlink_to(tmp_path / "secret" / adapters.CONFIG)
    (style.parent / "near").symlink_to(adapter(tmp_path / "runs-of-others" / "secret"))
    names = found(style.parent)
    assert names["again@step-153"][2] and names["style"][2]
    assert names["out"] == names["near"] == ("adapter", None, False) and "file" not in names
    (tmp_path / "way").symlink_to(style.parent)
    assert found(tmp_path / "way") == names  # the path itself may be one


@pytest.mark.parametrize(
    "place", ["adapter", "checkpoints", "checkpoints/step-00000153", f"adapter/{adapters.WEIGHTS}"]
)
def test_a_link_that_leads_outside_is_refused_wherever_it_is(place, style, tmp_path):
    (style / place).rename(tmp_path / "outside")
    (style / place).symlink_to(tmp_path / "outside")
    refused = [each for each in find({str(style): listing(str(style))}) if each.refused]
    [name] = {"checkpoints": ["style@checkpoints"], "checkpoints/step-00000153": ["style@step-153"]}.get(
        place, ["style"]
    )
    assert [each.name for each in refused] == [name] and "leads outside" in str(refused[0].refused)


def test_a_circle_of_links_ends(style):
    (style / "checkpoints" / "step-00000009").symlink_to(style)
    (style.parent / "loop").symlink_to(style.parent)
    assert found(style.parent)["style"][2]


def test_a_folder_that_may_not_be_read_is_not_passed_over(style, monkeypatch):
    """As root may read everything, the answer is put in the system's mouth."""
    shut = {str(style.parent / "closed"), str(style / "adapter")}
    (style.parent / "closed").mkdir()
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path not in shut and access(path, mode))
    refused = {each.name: each.refused for each in find({"x": listing(str(style.parent)) or {}}) if each.refused}
    assert refused.keys() == {"closed", "style"} and all("an unreadable folder" in str(r) for r in refused.values())


def test_a_path_that_may_not_be_read_says_so(tmp_path, monkeypatch):
    def denied(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(StorageError, match="permission denied"):
        listing(str(tmp_path))


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.EACCES])
def test_a_mount_that_does_not_answer_is_not_gone(tmp_path, monkeypatch, number):
    def fails(path, **more):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "stat", fails)
    with pytest.raises(StorageError, match="cannot list"):
        listing(str(tmp_path))


def test_what_goes_while_it_is_looked_at_is_no_failure(style, monkeypatch):
    """Training prunes: a name may be gone after it was listed."""
    (style / "nowhere").symlink_to(style / "nothing")
    (style / "round").symlink_to(style / "round")
    original, left = os.stat, {f"step-00000153/{adapters.WEIGHTS}": os.unlink, "step-00000002": shutil.rmtree}

    def pruned(path, **more):
        for end in [end for end in left if str(path).endswith(end)]:
            left.pop(end)(path)
        return original(path, **more)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", pruned)
        listed = listing(str(style))
    names = {each.name: each for each in find({str(style): listed})}
    assert not left and names.keys() == {"style", "style@step-153"}
    assert adapters.WEIGHTS not in names["style@step-153"].files


def test_a_bucket_holds_the_same_as_a_folder(style, bucket):
    adapter(style.parent / "other")
    (style / "prepared" / "rows" / "deep").mkdir(parents=True)
    (style / "prepared" / "rows" / "deep" / adapters.CONFIG).write_text("x")
    (style / "adapter" / ".keep").write_text("x")
    storage.upload(str(style.parent), f"{bucket}/runs")
    assert found(f"{bucket}/runs") == found(style.parent) == ALL | {"other": ("adapter", None, True)}
    assert found(f"{bucket}/runs/style") == ALL
    assert listing(f"{bucket}/nothing") is None


def test_what_lies_there_changes_with_every_file(tiny_model, tmp_path):
    folder = hostile.write_adapter(tmp_path / "style", tiny_model)
    [before] = find({str(tmp_path): listing(str(tmp_path))})
    stat = (folder / adapters.WEIGHTS).stat()
    data = bytearray((folder / adapters.WEIGHTS).read_bytes())
    data[-1] ^= 1
    (folder / adapters.WEIGHTS).write_bytes(data)
    os.utime(folder / adapters.WEIGHTS, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as `rsync -t` and `cp -p` do
    [after] = find({str(tmp_path): listing(str(tmp_path))})
    assert after.files != before.files
