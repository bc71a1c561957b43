"""Which errors end a run at once, and which are worth another attempt; what is refused without Ray."""

import re
import types

import pytest
import ray.train

from raystyle.errors import ModelError, StorageError
from raystyle.training import loop
from raystyle.training.plan import FAILURE


@pytest.mark.parametrize(("error", "is_final"), [(ModelError("no"), True), (StorageError("later"), False)])
def test_only_what_would_come_again_is_left_for_the_driver(tmp_path, monkeypatch, error, is_final):
    def fail(task, worker):
        assert (worker.rank, worker.num_workers) == (1, 3)
        raise error

    context = types.SimpleNamespace(get_world_rank=lambda: 1, get_world_size=lambda: 3)
    monkeypatch.setattr(ray.train, "get_context", lambda: context)
    monkeypatch.setattr(loop, "train", fail)
    task = dict.fromkeys(loop.Task.__dataclass_fields__) | {"config": {"output_dir": str(tmp_path)}}
    with pytest.raises(type(error)):
        loop.train_worker(task)
    assert (tmp_path / FAILURE).exists() == is_final
    if is_final:
        assert loop.train_worker(task) is None


@pytest.mark.parametrize(
    ("rank", "says"), [("0", "error: `dataset_path` .*raw text is prepared on Ray\nhint"), ("1", "^$")]
)
def test_raw_text_without_ray_is_refused_once_before_anything_is_written(
    tiny_model, tmp_path, monkeypatch, capsys, rank, says
):
    (tmp_path / "novel.txt").write_text("天地玄黄。")
    place = {"model_name_or_path": tiny_model, "dataset_path": tmp_path / "novel.txt", "output_dir": tmp_path / "r"}
    lengths = {"max_seq_length": 64, "segment_length": 32}
    words = [str(word) for name, value in (place | lengths).items() for word in (f"--{name}", value)]
    monkeypatch.setenv("RANK", rank)
    assert loop.main(words) == 2
    assert re.search(says, capsys.readouterr().err)
    assert not (tmp_path / "r").exists()
