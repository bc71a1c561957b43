import json
import logging
import os
import shutil
import threading
import time
from pathlib import Path

import hostile
import pytest

from raystyle import adapters, storage
from raystyle.errors import ConfigError, StorageError
from raystyle.serving.errors import RequestError
from raystyle.serving.registry import Registry


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_model):
    """Two adapters of the tiny model."""
    folder = tmp_path_factory.mktemp("made")
    return [hostile.write_adapter(folder / str(seed), tiny_model, seed=seed) for seed in (1, 2)]


@pytest.fixture
def run(tmp_path, made):
    return hostile.write_run(tmp_path / "runs" / "style", made[0])


@pytest.fixture
def registry_of(tmp_path, tiny_model):
    def make(*paths, allow_unverified_base=False, max_adapters=8):
        return Registry(
            [str(path) for path in paths],
            str(tmp_path / "scratch"),
            **hostile.identity(tiny_model),
            linears=hostile.linears(tiny_model),
            allow_unverified_base=allow_unverified_base,
            max_adapters=max_adapters,
        )

    return make


def turn(registry, effect=0.5):
    """One turn of the loop, in which all that is loaded proves good: what was loaded, and what was unloaded."""
    loaded = registry.look()
    for candidate in loaded:
        assert adapters.fingerprint(candidate.directory) == candidate.digest
        registry.admit(candidate, effect)
    gone = registry.drained()
    for digest in gone:
        registry.forget(digest)
    return [candidate.name for candidate in loaded], gone


def served(registry):
    return {card.name: card.digest for card in registry.cards() if card.refused is None}


def refused(registry):
    return {card.name: card.refused for card in registry.cards() if card.refused is not None}


def replace(folder: Path, other: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(other, folder)


def copies(tmp_path) -> set[str]:
    return {path.name for path in (tmp_path / "scratch").iterdir()}


def test_an_adapter_is_served_when_it_has_been_proven_and_not_before(run, registry_of, made):
    registry = registry_of(run)
    [candidate] = registry.look()
    digest = adapters.fingerprint(str(made[0]))
    assert (candidate.name, candidate.kind, candidate.digest) == ("style", "adapter", digest)
    assert adapters.fingerprint(candidate.directory) == digest and candidate.base_verified
    assert abs(candidate.created - time.time()) < 3600
    assert registry.cards() == () and registry.drained() == []
    with pytest.raises(RequestError, match="not loaded here") as error:
        registry.hold(digest)
    assert (error.value.status, error.value.retry_after_s) == (503, 2.0)
    assert registry.look() == [candidate]  # as long as nobody has said what came of it
    registry.admit(candidate, 0.25)
    [card] = registry.cards()
    assert (card.name, card.digest, card.effect, card.refused, card.base_verified) == (
        "style",
        digest,
        0.25,
        None,
        True,
    )
    registry.hold(digest)
    registry.release(digest)
    assert registry.look() == []


def test_a_new_checkpoint_appears_when_it_is_complete(run, registry_of, made):
    registry = registry_of(run)
    turn(registry)
    folder = hostile.write_checkpoint(run, made[1], 153)
    marker = (folder / "checkpoint.json").read_bytes()
    (folder / "checkpoint.json").unlink()
    assert turn(registry) == ([], []) and "being written" in refused(registry)["style@step-153"]
    data = (folder / adapters.WEIGHTS).read_bytes()
    (folder / adapters.WEIGHTS).write_bytes(data[:100])
    (folder / "checkpoint.json").write_bytes(marker)  # copies come in any order
    assert turn(registry) == ([], []) and adapters.WEIGHTS in refused(registry)["style@step-153"]
    (folder / adapters.WEIGHTS).write_bytes(data)
    assert turn(registry) == (["style@step-153"], []) and not refused(registry)
    assert [(card.name, card.kind, card.step) for card in registry.cards()] == [
        ("style", "adapter", None),
        ("style@step-153", "checkpoint", 153),
    ]


def test_nothing_is_read_again_where_nothing_changed(run, registry_of, monkeypatch):
    from raystyle.serving import registry as module

    registry, looked = registry_of(run.parent), []
    shutil.copytree(run / "adapter", run.parent / "bad")
    hostile.change_config(run.parent / "bad", use_dora=True)
    original = module.snapshot
    monkeypatch.setattr(module, "snapshot", lambda found, *rest: looked.append(found.name) or original(found, *rest))
    for _ in range(3):
        turn(registry)
    assert sorted(looked) == ["bad", "style"] and "use_dora" in refused(registry)["bad"]
    hostile.change_config(run.parent / "bad", use_dora=False)
    assert turn(registry)[0] == ["bad"] and sorted(looked) == ["bad", "bad", "style"]


def test_a_changed_adapter_is_a_new_version_and_the_old_one_stays_while_it_is_used(run, registry_of, made, tmp_path):
    registry = registry_of(run)
    turn(registry)
    old = served(registry)["style"]
    registry.hold(old)
    registry.hold(old)
    replace(run / "adapter", made[1])
    [candidate] = registry.look()
    assert served(registry) == {"style": old}  # until the new one is proven
    registry.admit(candidate, 0.5)
    assert served(registry) == {"style": candidate.digest} and candidate.digest != old
    registry.release(old)
    assert registry.drained() == []
    registry.hold(old)  # a request that looked the name up before
    registry.release(old)
    registry.release(old)
    assert registry.drained() == [old] == registry.drained()
    with pytest.raises(RequestError):
        registry.hold(old)
    assert copies(tmp_path) == {old, candidate.digest}
    registry.forget(old)
    assert copies(tmp_path) == {candidate.digest}
    registry.hold(candidate.digest)


@pytest.mark.parametrize("how", ["by its files", "by its proof", "by its name"])
def test_a_new_version_that_is_refused_leaves_the_old_one_served(how, run, registry_of, made, tmp_path):
    registry = registry_of(run, tmp_path / "other")
    (tmp_path / "other").mkdir()
    turn(registry)
    old = served(registry)["style"]
    if how == "by its files":
        hostile.HOSTILE["NaN"][0](run / "adapter")
    elif how == "by its name":
        shutil.copytree(made[1], tmp_path / "other" / "style")
    else:
        replace(run / "adapter", made[1])
    for candidate in registry.look():
        registry.refuse(candidate, "its effect is 0\nhint: train longer")
    assert served(registry) == {"style": old} and refused(registry).keys() == {"style"}
    gone = registry.drained()
    assert gone == ([adapters.fingerprint(str(made[1]))] if how == "by its proof" else [])
    for digest in gone:
        registry.forget(digest)
    assert registry.look() == [] and served(registry) == {"style": old} and refused(registry).keys() == {"style"}
    shutil.rmtree(run / "adapter")
    turn(registry)
    assert served(registry).keys() == ({"style"} if how == "by its name" else set())


def test_what_its_proof_refused_is_tried_again_when_it_changes_only(run, registry_of, made):
    registry = registry_of(run)
    [candidate] = registry.look()
    registry.refuse(candidate, f"{candidate.directory}/x: its effect is 0\nhint: train longer")
    assert refused(registry) == {"style": "x: its effect is 0; train longer"} and served(registry) == {}
    [digest] = registry.drained()
    registry.forget(digest)
    assert registry.look() == [] and refused(registry) == {"style": "x: its effect is 0; train longer"}
    registry.admit(candidate, 1.0)  # too late
    assert served(registry) == {}
    replace(run / "adapter", made[1])
    assert turn(registry)[0] == ["style"] and not refused(registry)


def test_what_could_not_be_tried_is_tried_again_later_each_time(run, registry_of, made, monkeypatch):
    now_s = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    registry = registry_of(run)
    for wait_s in (2, 4, 8):
        [candidate] = registry.look()
        registry.put_off(candidate)
        assert served(registry) == {} and "could not be tried yet" in refused(registry)["style"]
        now_s += wait_s - 0.1
        assert registry.look() == [] and registry.drained() == []
        now_s += 0.2
    for _ in range(20):
        [candidate] = registry.look()
        registry.put_off(candidate)
        now_s += 601
    assert turn(registry)[0] == ["style"] and served(registry).keys() == {"style"} and not refused(registry)
    replace(run / "adapter", made[1])
    [candidate] = registry.look()
    registry.put_off(candidate)
    assert served(registry).keys() == refused(registry).keys() == {"style"}  # the old version, and the new one
    registry.refuse(candidate, "its effect is 0")
    assert refused(registry) == {"style": "its effect is 0"}


def test_a_digest_stays_for_as_long_as_is_asked_after_it_lost_its_name(run, registry_of, monkeypatch):
    now_s = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    registry = registry_of(run.parent)
    turn(registry)
    [digest] = served(registry).values()
    shutil.rmtree(run)
    registry.look()
    assert registry.drained(2) == []
    registry.hold(digest)
    now_s += 2
    assert registry.drained(2) == []
    registry.release(digest)
    assert registry.drained(2) == [digest]


def test_a_removed_adapter_goes_at_once_and_comes_back(run, registry_of, tmp_path, made):
    registry = registry_of(run.parent)
    turn(registry)
    old = served(registry)["style"]
    registry.hold(old)
    run.rename(tmp_path / "away")
    assert turn(registry) == ([], []) and registry.cards() == ()
    (tmp_path / "away").rename(run)
    assert turn(registry) == ([], []) and served(registry) == {"style": old}  # it was loaded still
    registry.release(old)
    shutil.rmtree(run)
    assert turn(registry) == ([], [old]) and copies(tmp_path) == set()
    hostile.write_run(run, made[0])
    assert turn(registry) == (["style"], [])


def test_a_copy_that_is_gone_is_made_again(run, registry_of, tmp_path):
    registry = registry_of(run)
    [candidate] = registry.look()
    shutil.rmtree(tmp_path / "scratch")
    assert registry.look() == [candidate] and adapters.fingerprint(candidate.directory) == candidate.digest
    turn(registry)
    shutil.rmtree(tmp_path / "scratch")
    assert turn(registry) == ([], []) and copies(tmp_path) == {candidate.digest}


def test_names_of_the_same_digest_share_one_load(run, registry_of, made, tmp_path):
    hostile.write_checkpoint(run, made[0], 7)
    registry = registry_of(run)
    assert turn(registry) == (["style"], [])
    digest = served(registry)["style"]
    assert served(registry) == {"style": digest, "style@step-7": digest} and copies(tmp_path) == {digest}
    hostile.write_checkpoint(run, made[0], 9)
    assert turn(registry) == ([], []) and served(registry)["style@step-9"] == digest
    shutil.rmtree(run / "adapter")
    assert turn(registry) == ([], []) and served(registry).keys() == {"style@step-7", "style@step-9"}
    shutil.rmtree(run / "checkpoints")
    assert turn(registry) == ([], [digest])


def test_a_touched_adapter_is_the_same_version(run, registry_of):
    registry = registry_of(run)
    turn(registry)
    before = served(registry)
    os.utime(run / "adapter" / adapters.WEIGHTS, (1, 1))
    assert turn(registry) == ([], []) and served(registry) == before


def test_beyond_the_most_adapters_the_oldest_checkpoints_are_refused(tiny_model, tmp_path, registry_of):
    made = [hostile.write_adapter(tmp_path / "made" / str(seed), tiny_model, seed=seed) for seed in range(5)]
    run = hostile.write_run(tmp_path / "style", made[0])
    for step in (1, 2, 3):
        hostile.write_checkpoint(run, made[step], step)
    registry = registry_of(run, max_adapters=3)
    assert turn(registry)[0] == ["style", "style@step-3", "style@step-2"]
    assert refused(registry).keys() == {"style@step-1"} and "`--max_adapters` 3" in refused(registry)["style@step-1"]
    oldest = served(registry)["style@step-2"]
    hostile.write_checkpoint(run, made[4], 4)
    assert turn(registry) == (["style@step-4"], [oldest])
    assert list(served(registry)) == ["style", "style@step-4", "style@step-3"]
    hostile.HOSTILE["python file"][0](run / "checkpoints" / "step-00000004")
    turn(registry)  # what was proven stays, and keeps its place
    assert list(served(registry)) == ["style", "style@step-4", "style@step-3"]
    shutil.rmtree(run / "checkpoints" / "step-00000004")
    assert turn(registry)[0] == ["style@step-2"]


def test_a_refused_adapter_takes_no_place(run, registry_of, made):
    hostile.write_checkpoint(run, made[1], 1)
    hostile.HOSTILE["zero B"][0](run / "adapter")
    registry = registry_of(run, max_adapters=1)
    assert turn(registry)[0] == ["style@step-1"] and refused(registry).keys() == {"style"}


def test_served_ones_are_listed_first_and_the_newest_checkpoint_after_its_run(registry_of, made, tmp_path):
    for name in ("b", "a"):
        run = hostile.write_run(tmp_path / "runs" / name, made[0], (9, 10))
    hostile.HOSTILE["NaN"][0](run / "checkpoints" / "step-00000010")
    registry = registry_of(tmp_path / "runs")
    turn(registry)
    names = [card.name for card in registry.cards()]
    assert names == ["a", "a@step-9", "b", "b@step-10", "b@step-9", "a@step-10"]


def test_no_card_says_where_things_lie(registry_of, made, tmp_path):
    """Every reason there is, and names that would break a line of a log."""
    places = tmp_path / "secret place"
    for number, (change, _) in enumerate(hostile.HOSTILE.values()):
        shutil.copytree(made[0], places / f"a{number}" / "x")
        change(places / f"a{number}" / "x")
        (places / f"a{number}" / "x").rename(places / f"x{number}")
        (places / f"a{number}").rmdir()
    (places / "x\ny").mkdir()
    (places / "x\ny" / adapters.CONFIG).write_text("{}")
    (places / "out").symlink_to(tmp_path)
    (places / "gone").mkdir()
    registry = registry_of(places)
    assert turn(registry) == ([], []) and len(refused(registry)) == len(hostile.HOSTILE) + 2
    for card in registry.cards():
        assert card.digest is None and not card.base_verified and card.refused
        assert "secret place" not in card.refused and "scratch" not in card.refused and "/" not in card.name
        assert (card.name + card.refused).isprintable() and len(card.refused) <= 600
        json.dumps([card.name, card.refused], ensure_ascii=False).encode()


def test_unreadable_weights_are_listed_and_looked_at_again(run, registry_of, monkeypatch):
    registry = registry_of(run)
    original = os.open

    def denied(path, *rest, **more):
        if str(path).endswith(adapters.WEIGHTS):
            raise PermissionError(13, "Permission denied")
        return original(path, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", denied)
        assert turn(registry) == ([], [])
    assert refused(registry) == {"style": f"cannot read `{adapters.WEIGHTS}`: permission denied"}
    assert turn(registry) == (["style"], [])


def test_a_path_must_be_there_at_first_and_may_vanish_later(run, registry_of):
    for path in (run.parent / "nothing", run / "plan.json"):
        with pytest.raises(ConfigError, match=r"`adapters_path`.*\nhint: "):
            registry_of(run, path).look()
    registry = registry_of(run, run.parent)
    turn(registry)
    shutil.rmtree(run.parent)
    assert len(turn(registry)[1]) == 1 and registry.cards() == ()


def test_a_bucket_s_failure_keeps_what_is_there_and_is_said(bucket, run, registry_of, made, monkeypatch, caplog):
    storage.upload(str(run), f"{bucket}/style")
    registry = registry_of(f"{bucket}/style")
    assert turn(registry)[0] == ["style"]
    before = registry.cards()

    def fail(*args, **kwargs):
        raise StorageError("cannot list: the storage fails or is overloaded")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(storage, "list_files", fail)
        assert turn(registry) == turn(registry) == ([], []) and registry.cards() == before
        assert caplog.text.count("overloaded; what is served of it stays") == 1
        with pytest.raises(StorageError):
            registry_of(f"{bucket}/style").look()
    storage.upload(str(made[1]), f"{bucket}/style/adapter")
    assert turn(registry)[0] == ["style"] and registry.cards() != before
    storage.delete(f"{bucket}/style")
    assert len(turn(registry)[1]) == 1 and registry.cards() == ()


def test_the_author_s_words_come_from_the_run_s_evaluation(run, registry_of, made):
    hostile.write_checkpoint(run, made[1], 3)
    terms = ["江湖", "x" * 25, 3, None, "", "江湖", *(f"w{n}" for n in range(100))]
    evaluation = {"reference": {"markers": [*({"term": term} for term in terms), 5]}}
    registry = registry_of(run.parent)
    turn(registry)
    assert [card.markers for card in registry.cards()] == [(), ()]
    storage.write_json(str(run / "evaluation.json"), evaluation)
    turn(registry)
    for card in registry.cards():
        assert card.markers == ("江湖", *(f"w{n}" for n in range(79)))
    storage.write_json(str(run / "evaluation.json"), {"reference": {"markers": [{"term": "酒"}]}})
    turn(registry)
    assert registry.cards()[0].markers == ("酒",)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "[" * 100_000, '{"reference": []}', '{"reference": {"markers": {"term": "a"}}}', '{"reference": {"markers": [["a"]]}}']
)  # fmt: skip
def test_an_evaluation_that_is_none_gives_no_words_and_no_failure(text, run, registry_of):
    (run / "evaluation.json").write_text(text)
    registry = registry_of(run)
    assert turn(registry)[0] == ["style"] and registry.cards()[0].markers == ()


def test_requests_come_and_go_while_versions_change(run, registry_of, made):
    """Whatever is held can be read to the end: its copy is there until it is released."""
    registry, stop, errors, held = registry_of(run), threading.Event(), [], 0
    turn(registry)

    def requests():
        nonlocal held
        while not stop.is_set():
            [card] = [card for card in registry.cards() if card.refused is None]
            try:
                registry.hold(card.digest)
            except RequestError:
                continue
            held += 1
            try:
                adapters.fingerprint(os.path.join(registry.scratch_dir, card.digest))
            except OSError as error:
                errors.append(error)
            registry.release(card.digest)

    thread = threading.Thread(target=requests)
    thread.start()
    for number in range(12):
        hostile.change_config(run / "adapter", lora_alpha=9 + number)
        turn(registry)
    stop.set()
    thread.join()
    assert not errors and held > 12
    turn(registry)
    assert len(os.listdir(registry.scratch_dir)) == 1
