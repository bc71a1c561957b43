import pytest

from raystyle import progress


def test_without_a_terminal_a_bar_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.bar(100, "cleaning", "B") as shown:
        for _ in range(100):
            shown.update(1)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "cleaning" in lines[0] and "100%" in lines[0]


def test_lines_come_at_their_interval(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_INTERVAL_S", 0.0)
    with progress.bar(None, "reading") as shown:
        shown.update(1, "a.txt")
    assert len(capsys.readouterr().err.splitlines()) == 2
