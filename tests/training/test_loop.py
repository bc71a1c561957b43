"""Which errors end a run at once, and which are worth another attempt."""

import pytest

from raystyle.errors import ModelError, StorageError
from raystyle.training import loop
from raystyle.training.plan import FAILURE


@pytest.mark.parametrize(("error", "is_final"), [(ModelError("no"), True), (StorageError("later"), False)])
def test_only_what_would_come_again_is_left_for_the_driver(tmp_path, monkeypatch, error, is_final):
    def fail(task):
        raise error

    monkeypatch.setattr(loop, "_train", fail)
    task = dict.fromkeys(loop.Task.__dataclass_fields__) | {"config": {"output_dir": str(tmp_path)}}
    with pytest.raises(type(error)):
        loop.train_worker(task)
    assert (tmp_path / FAILURE).exists() == is_final
    if is_final:
        assert loop.train_worker(task) is None
