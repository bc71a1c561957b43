from pathlib import Path

import pytest

from raystyle.config import RulesConfig
from raystyle.corpus import trial
from raystyle.corpus.packs import load_rules, switched_off
from raystyle.errors import ConfigError
from raystyle.pipeline import rules as command

RULES = load_rules("zh_web_novel")


def test_a_listing_names_every_rule_on_or_off() -> None:
    off = switched_off(["zh_web_novel"], RULES)
    text = trial.listing(RULES, off)
    assert off and all(rule.name in text for rule in [*RULES.rules, *off])
    assert trial.explanation(RULES, off, off[0].name).split("\n")[2].endswith(", off")


def test_an_explanation_has_pattern_and_examples() -> None:
    rule = next(rule for rule in RULES.rules if rule.name == "metadata_line")
    text = trial.explanation(RULES, [], "metadata_line")
    assert rule.why in text and all(f"matches   {example}" in text for example in rule.match)
    with pytest.raises(ConfigError, match="hint: `raystyle rules` lists them"):
        trial.explanation(RULES, [], "metadata_lin")


def test_hits_are_shown_in_their_lines_and_the_unreadable_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(
        "第一章 风起\n他推开门，www.example.com看见屋里没有人，只有一盏灯还亮着。\n", "utf-8"
    )
    (tmp_path / "b.txt").write_bytes(b"\x00\x01")
    lines = list(command(RulesConfig(try_path=(str(tmp_path),))))
    assert lines[0].endswith("a.txt") and lines[1].split() == ["1", "chapter_heading", "⟦第一章", "风起⟧"]
    assert lines[2].split() == ["2", "address", "他推开门，⟦www.example.com⟧看见屋里没有人，只有一盏灯还亮着。"]
    assert lines[3].endswith("b.txt") and lines[4].split()[:2] == ["0", "nul"]


def test_json_has_an_object_a_rule() -> None:
    lines = list(command(RulesConfig(json=True)))
    assert len(lines) >= len(RULES.rules) and all('"why"' in line for line in lines)
