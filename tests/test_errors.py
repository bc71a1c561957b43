import pickle

import pytest

from raystyle import errors

CHILDREN = [
    errors.ConfigError,
    errors.DataError,
    errors.StorageError,
    errors.ModelError,
    errors.RunError,
    errors.TrainingError,
]


@pytest.mark.parametrize("child", CHILDREN)
def test_an_error_survives_ray_and_keeps_its_message(child):
    error = pickle.loads(pickle.dumps(child("`x` is 3\nhint: use 4")))
    assert type(error) is child
    assert str(error) == "`x` is 3\nhint: use 4"


def test_only_failed_training_is_not_the_users_mistake():
    assert {child.exit_code for child in CHILDREN if child is not errors.TrainingError} == {2}
    assert errors.TrainingError.exit_code == 1
