import re
import shutil

import hostile
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raystyle import adapters
from raystyle.errors import ModelError, StorageError
from raystyle.serving import inspection
from raystyle.serving.finding import find, listing
from raystyle.serving.snapshot import snapshot


@pytest.fixture(scope="module")
def good(tmp_path_factory, tiny_model):
    return hostile.write_adapter(tmp_path_factory.mktemp("good") / "style", tiny_model)


@pytest.fixture(scope="module")
def base(tiny_model):
    return inspection.Base(*hostile.identity(tiny_model).values(), hostile.linears(tiny_model))


def taken(root, scratch, base, allow_unverified_base=False):
    """The one adapter in a directory, copied."""
    [found] = find({str(root): listing(str(root))})
    if found.refused:
        raise ModelError(found.refused)
    return snapshot(found, str(scratch), base, allow_unverified_base)


def test_what_is_hashed_is_what_is_loaded_and_nothing_else_comes_along(good, base, tmp_path):
    shutil.copytree(good, tmp_path / "in" / "style")
    for name in ("README.md", "tokenizer.json", "chat_template.jinja", "spiece.model"):
        (tmp_path / "in" / "style" / name).write_text("x")
    copy = taken(tmp_path / "in", tmp_path / "scratch", base)
    assert copy.digest == adapters.fingerprint(str(good)) and copy.base_verified
    assert copy.directory == str(tmp_path / "scratch" / copy.digest)
    assert sorted(p.name for p in (tmp_path / "scratch" / copy.digest).iterdir()) == [adapters.CONFIG, adapters.WEIGHTS]
    assert [p.name for p in (tmp_path / "scratch").iterdir()] == [copy.digest]


@pytest.mark.parametrize("what", hostile.HOSTILE)
def test_a_hostile_folder_is_refused_by_name_and_leaves_nothing_behind(what, good, base, tmp_path):
    change, reason = hostile.HOSTILE[what]
    shutil.copytree(good, tmp_path / "in" / "style")
    change(tmp_path / "in" / "style")
    with pytest.raises(ModelError) as error:
        taken(tmp_path / "in", tmp_path / "scratch", base)
    assert re.search(reason, str(error.value).replace("\n", " ")), error.value
    assert "\nhint: " in str(error.value) and str(tmp_path) not in str(error.value)
    assert not (tmp_path / "scratch").exists() or not list((tmp_path / "scratch").iterdir())


@pytest.mark.parametrize(
    "what", ["a wider base", "another layer", "another rank", "another base", "pickled weights beside"]
)
def test_what_does_not_fit_is_refused_before_it_is_copied(what, good, base, tmp_path, monkeypatch):
    """It may be gigabytes of zeros, in a file that takes no room."""
    monkeypatch.setattr("raystyle.serving.snapshot._pour", lambda *_: pytest.fail("copied"))
    shutil.copytree(good, tmp_path / "in" / "style")
    hostile.HOSTILE[what][0](tmp_path / "in" / "style")
    with pytest.raises(ModelError):
        taken(tmp_path / "in", tmp_path / "scratch", base)


@pytest.mark.parametrize("what", ["no base", "no tokenizer", "nothing of raystyle", "base by hub name"])
def test_an_adapter_without_a_base_is_served_only_when_that_is_allowed_and_marked(what, good, base, tmp_path):
    shutil.copytree(good, tmp_path / "in" / "style")
    hostile.HOSTILE[what][0](tmp_path / "in" / "style")
    assert not taken(tmp_path / "in", tmp_path / "scratch", base, allow_unverified_base=True).base_verified


@pytest.mark.parametrize("what", ["another base", "another tokenizer", "NaN", "pickled weights beside"])
def test_nothing_else_is_allowed_with_it(what, good, base, tmp_path):
    shutil.copytree(good, tmp_path / "in" / "style")
    hostile.HOSTILE[what][0](tmp_path / "in" / "style")
    with pytest.raises(ModelError):
        taken(tmp_path / "in", tmp_path / "scratch", base, allow_unverified_base=True)


def test_a_base_in_a_renamed_folder_is_the_same(good, base, tmp_path):
    digest = base.identity.rsplit(" ", 1)[1]
    assert taken(good, tmp_path, base._replace(identity=f"another name {digest}")).base_verified


@pytest.mark.parametrize(
    "values",
    [
        {"rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 6}, "alpha_pattern": {"q_proj": 3}},
        {"use_rslora": True},
        {"target_modules": "all-linear"},
        {"layers_to_transform": [1]},
        {"task_type": None},
    ],
)
def test_plain_lora_in_all_its_forms_is_taken(values, base, tiny_model, tmp_path):
    hostile.write_adapter(tmp_path / "style", tiny_model, **values)
    assert taken(tmp_path / "style", tmp_path / "scratch", base).base_verified


def test_dora_as_peft_saves_it_is_refused(base, tiny_model, tmp_path):
    hostile.write_adapter(tmp_path / "style", tiny_model, use_dora=True)
    with pytest.raises(ModelError, match="use_dora"):
        taken(tmp_path / "style", tmp_path / "scratch", base)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_half_and_double_precision_are_taken(dtype, good, base, tmp_path):
    shutil.copytree(good, tmp_path / "style")
    hostile.change_weights(tmp_path / "style", lambda ts: ts.update({n: t.to(dtype) for n, t in ts.items()}))
    assert taken(tmp_path / "style", tmp_path / "scratch", base).digest


@pytest.mark.parametrize("name", [adapters.CONFIG, adapters.WEIGHTS])
def test_a_checkpoint_whose_files_are_not_those_of_its_marker_is_refused(name, good, base, tmp_path):
    folder = hostile.write_checkpoint(tmp_path, good, 5)
    assert taken(folder, tmp_path / "scratch", base).step == 5
    data = bytearray((folder / name).read_bytes())
    data[-2] ^= 0x20  # within the last value, or in white space
    (folder / name).write_bytes(data if name == adapters.WEIGHTS else (folder / name).read_bytes() + b" ")
    hostile.sign(folder)
    with pytest.raises(ModelError, match=f"{name} is not what checkpoint.json says"):
        taken(folder, tmp_path / "scratch", base)


@pytest.mark.parametrize(
    "marker", ["{", '{"step": 6}', '{"step": "5"}', '{"step": true}', '{"step": 5, "sha256": []}', "[]"]
)
def test_a_marker_that_is_not_this_checkpoint_s_makes_none(marker, good, base, tmp_path):
    folder = hostile.write_checkpoint(tmp_path, good, 5)
    (folder / "checkpoint.json").write_text(marker)
    with pytest.raises(ModelError, match=r"checkpoint\.json"):
        taken(folder, tmp_path / "scratch", base)


def test_a_file_that_changes_while_it_is_copied_is_not_taken(good, base, tmp_path, monkeypatch):
    """Cut off after its header was read: the copy is looked at, not what was there before."""
    from raystyle.serving import snapshot as module

    shutil.copytree(good, tmp_path / "style")
    original = module._pour

    def pour(source, target):
        original(source, target)
        target.truncate(target.tell() - 8)

    monkeypatch.setattr(module, "_pour", pour)
    (tmp_path / "style" / adapters.ABOUT).unlink()
    with pytest.raises(ModelError, match="header speaks of"):
        taken(tmp_path / "style", tmp_path / "scratch", base, allow_unverified_base=True)
    assert not list((tmp_path / "scratch").iterdir())


def test_weights_that_cannot_be_read_may_be_readable_later(good, base, tmp_path):
    shutil.copytree(good, tmp_path / "in" / "style")
    [found] = find({str(tmp_path / "in"): listing(str(tmp_path / "in"))})
    (tmp_path / "in" / "style" / adapters.WEIGHTS).unlink()
    with pytest.raises(StorageError):
        snapshot(found, str(tmp_path / "scratch"), base, False)


def test_a_link_put_there_after_the_listing_is_not_followed_outside(good, base, tmp_path):
    shutil.copytree(good, tmp_path / "in" / "style")
    [found] = find({str(tmp_path / "in"): listing(str(tmp_path / "in"))})
    (tmp_path / "in" / "style" / adapters.WEIGHTS).rename(tmp_path / "outside.safetensors")
    (tmp_path / "in" / "style" / adapters.WEIGHTS).symlink_to(tmp_path / "outside.safetensors")
    with pytest.raises(ModelError, match="leads outside"):
        snapshot(found, str(tmp_path / "scratch"), base, False)


def test_a_pipe_put_there_after_the_listing_keeps_nobody_waiting(good, base, tmp_path):
    import os

    shutil.copytree(good, tmp_path / "in" / "style")
    [found] = find({str(tmp_path / "in"): listing(str(tmp_path / "in"))})
    (tmp_path / "in" / "style" / adapters.WEIGHTS).unlink()
    os.mkfifo(tmp_path / "in" / "style" / adapters.WEIGHTS)
    with pytest.raises(ModelError, match="no regular file"):
        snapshot(found, str(tmp_path / "scratch"), base, False)


modules = st.lists(st.sampled_from(["layers", "0", "1", "10", "q_proj", "proj", "mlp"]), min_size=1, max_size=4).map(
    ".".join
)


@given(st.dictionaries(modules, st.integers(1, 9), max_size=4), modules)
def test_patterns_are_read_as_peft_reads_them(pattern, module):
    from peft.utils.other import get_pattern_key

    pattern = pattern | {f"^{key}": value + 10 for key, value in list(pattern.items())[:1]}
    assert inspection._of(pattern, module, 0) == pattern.get(get_pattern_key(pattern.keys(), module), 0)
