"""The run's page, and the sections that other pages take from it."""

from pathlib import Path

import pytest

from raystyle.training import report

PLAN = {
    "rows": 22, "max_seq_length": 64, "real_token_share": 1.0, "steps": 40, "global_batch_size": 4,
    "trainable_parameters": 10, "base_parameters": 100, "warnings": [],
    "identity": {"model": "m", "data_digest": "d" * 20},
}  # fmt: skip
METRICS = [
    {"step": step, "loss": 3 - step / 20, "learning_rate": 1e-4, "grad_norm": 1.0, "tokens_per_second": 10}
    for step in range(1, 41)
]
SAMPLES = [{"step": 40, "prompt": "今日", "text": "天气阴沉<b>"}]


def test_sections_hold_the_gate_s_word_and_are_the_page(tmp_path):
    found = report.sections(PLAN, METRICS, SAMPLES)
    assert [heading for heading, _ in found][:2] == ["The run", "Loss"]
    assert "Loss gate: falling smoothly." in dict(found)["Loss"]
    (tmp_path / "samples").mkdir()
    page = Path(report.write(str(tmp_path), PLAN, METRICS)).read_text(encoding="utf-8")
    assert all(content in page for heading, content in report.sections(PLAN, METRICS, []))
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_text_of_the_model_is_text():
    assert "天气阴沉&lt;b&gt;" in report.sections(PLAN, METRICS, SAMPLES)[-2][1]


@pytest.mark.parametrize("metrics", [[], [{"step": 1, "loss": float("nan")}]])
def test_a_run_with_nothing_to_show_has_a_page(metrics, tmp_path):
    report.write(str(tmp_path), PLAN | {"warnings": ["few steps"]}, metrics)
    assert "few steps" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_log_says_the_gate_s_word_and_what_a_plateau_stands_on():
    line = {"text": "www.example.net", "loss": 7.25, "times": 3, "sources": ["a.txt", "b.txt"]}
    hardest = {"step": 40, "hardest_lines": [line] * 5, "hardest_rows": []}
    found = report.said(PLAN, [*METRICS, hardest])
    assert found[0].startswith("loss gate: falling smoothly. The loss fell from")
    assert found[1:] == ["  7.25 nats a token, 3 times in the corpus: www.example.net (a.txt, b.txt)"] * 3
    assert len(report.said(PLAN, METRICS)) == 1
