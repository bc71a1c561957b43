"""What of the vLLM engine needs no vLLM. The rest is test_conformance.py, by `make test-vllm`."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from raystyle.config import ServeConfig
from raystyle.errors import ConfigError
from raystyle.generation import Scored
from raystyle.serving.engines import vllm


def test_nothing_is_reported_and_a_local_model_needs_no_hub(tmp_path: Path) -> None:
    local = vllm.environment(ServeConfig(model_name_or_path=str(tmp_path), use_gpu=True))
    assert local["VLLM_NO_USAGE_STATS"] == local["DO_NOT_TRACK"] == local["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in vllm.environment(ServeConfig(model_name_or_path="someone/model", use_gpu=True))


def test_what_a_cpu_needs_is_not_set_on_a_gpu() -> None:
    gpu, cpu = (vllm.environment(ServeConfig(model_name_or_path="m", use_gpu=use_gpu)) for use_gpu in (True, False))
    assert set(cpu) - set(gpu) == {"VLLM_CPU_OMP_THREADS_BIND", "VLLM_ENABLE_V1_MULTIPROCESSING", "OMP_WAIT_POLICY"}


@pytest.mark.parametrize(("rank", "room"), [(1, 1), (2, 8), (16, 16), (17, 32), (300, 320), (512, 512)])
def test_ranks_are_rounded_up_to_what_vllm_takes(rank: int, room: int) -> None:
    assert vllm._room(rank) == room


def test_a_rank_that_vllm_has_no_room_for() -> None:
    with pytest.raises(ConfigError, match="513"):
        vllm._room(513)


def test_the_token_itself_is_among_the_likeliest_only_where_it_is_one() -> None:
    def found(ranks: dict[int, int]) -> dict[int, SimpleNamespace]:
        return {token_id: SimpleNamespace(rank=rank, logprob=-rank / 2) for token_id, rank in ranks.items()}

    assert vllm._scored(9, found({9: 40, 5: 1, 6: 2}), 2) == Scored(9, -20.0, ((5, -0.5), (6, -1.0)))
    assert vllm._scored(6, found({6: 2, 5: 1}), 2) == Scored(6, -1.0, ((5, -0.5), (6, -1.0)))
    assert vllm._scored(9, found({9: 1}), 0) == Scored(9, -0.5, ())
    assert vllm._scored(9, None, 3) == Scored(9, None, ())
