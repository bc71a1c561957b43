import pytest

from raystyle.errors import ConfigError
from raystyle.training import kernels


def test_liger_is_left_out_where_it_cannot_run_and_refused_where_it_was_asked_for():
    assert not kernels.apply_liger(object(), None, use_gpu=False)
    assert not kernels.apply_liger(object(), False, use_gpu=True)
    with pytest.raises(ConfigError, match="`use_liger_kernel` needs a GPU"):
        kernels.apply_liger(object(), True, use_gpu=False)
