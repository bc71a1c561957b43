import pickle
from pathlib import Path

import pytest

from raystyle.corpus.clean import clean
from raystyle.corpus.lines import split_lines
from raystyle.corpus.packs import check, load_rules, pack_names, switched_off
from raystyle.errors import ConfigError, StorageError

GOOD = """
extends: common
fragments: {n: '[0-9]+'}
rules:
  - {name: ruler, why: Ours., action: drop_line, pattern: '^%{n}$', literals: ['1'], examples: {match: ['12'], keep: ['1a']}}
  - {name: own, why: Ours too., action: rewrite, pattern: 'a(b)', replace: '\\1', literals: [ab], examples: {match: [xab]}}
"""


def write(path: Path, text: str) -> str:
    (path / "mine.yaml").write_text(text, encoding="utf-8")
    return str(path / "mine.yaml")


@pytest.mark.parametrize("name", pack_names())
def test_packs_pass_their_own_examples(name: str) -> None:
    rules = load_rules(name)
    check([*rules.rules, *switched_off([name], rules)], name)
    assert all(rule.why.endswith(".") and rule.match for rule in rules.rules)


def test_a_users_pack_adds_and_replaces(tmp_path: Path) -> None:
    common, mine = load_rules("common"), load_rules(write(tmp_path, GOOD))
    names = [rule.name for rule in mine.rules]
    assert names == [*(rule.name for rule in common.rules), "own"]
    assert mine.name == "mine" and mine.digest != common.digest
    assert next(rule for rule in mine.rules if rule.name == "ruler").why == "Ours."


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("match: ['12']", "match: ['ab1']", "does not match its example"),
        ("match: ['12']", "match: ['22']", "none of its literals"),
        ("keep: ['1a']", "keep: ['1']", "must keep"),
        ("replace: '\\1'", "replace: 'ab'", "does not match its example"),
        ("replace: '\\1'", "replace: 'abab'", "again and again"),
        ("%{n}", "%{m}", "no fragment `m`"),
        ("'^%{n}$'", "'('", "no regular expression"),
        ("drop_line", "drop", "use drop_line"),
        ("literals: ['1']", "literal: ['1']", "did you mean `literals`"),
        ("pattern: 'a(b)'", "patern: 'a(b)'", "lacks name"),
        ("why: Ours.,", "why: Ours., unles: x,", "did you mean `unless`"),
        ("extends: common", "extends: commons", "no rules named `commons`"),
        ("replace: '\\1'", "unescape: 'yes'", "must be true or false"),
        ("rules:", "rule:", "no pack"),
        ("literals: [ab]", "literals: []", "must be strings"),
        ("literals: [ab]", "literals: [ab], like_noise: true", "goes with `action: drop_line` or `cut_span`"),
    ],
)
def test_an_unsound_pack_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(ConfigError, match=message):
        load_rules(write(tmp_path, GOOD.replace(old, new, 1)))


def test_a_pack_that_is_not_there_is_named() -> None:
    with pytest.raises(
        ConfigError, match="no rules named `zh_web`\nhint: use common or zh_book or zh_forum or zh_web_novel"
    ):
        load_rules("zh_web")
    with pytest.raises(StorageError):
        load_rules("/no/such.yaml")


def test_the_digest_is_of_what_rules_do(tmp_path: Path) -> None:
    before = load_rules(write(tmp_path, GOOD)).digest
    assert load_rules(write(tmp_path, GOOD.replace("Ours.", "Other words."))).digest == before
    assert load_rules(write(tmp_path, GOOD.replace("%{n}", "1%{n}"))).digest != before


def test_a_line_without_a_literal_or_too_long_for_it_is_never_looked_at(tmp_path: Path) -> None:
    pack = GOOD.replace("literals: [ab]", "literals: [ab], max_chars: 4")
    rules = load_rules(write(tmp_path, pack))
    lines = ["x", "a1", "ab", "ruler", "", "xxxxab"]
    found = rules.candidates(split_lines(lines).body)
    assert [rule.name for rule in found[1]] == ["ruler"] and [rule.name for rule in found[2]] == ["own"]
    assert set(found) == {1, 2}
    assert [rule.name for rule in rules.of("xab1")] == ["ruler", "own"] and rules.of("x") == []
    assert not rules.rules[-1].spans("xxxxab") and rules.rules[-1].spans("xxab")


def test_a_class_of_characters_stands_for_literals(tmp_path: Path) -> None:
    pack = GOOD.replace("literals: [ab]", "characters: '[b\\ue000-\\uf8ff]'")
    rules = load_rules(write(tmp_path, pack))
    lines = ["a", "ab", "\ue123", "\uf8ff", "\ufeff", "他\uefff走了"]
    found = rules.candidates(split_lines(lines).body)
    assert [line for line, rules in found.items() if "own" in [r.name for r in rules]] == [1, 2, 3, 5]
    assert [bool([r for r in rules.of(line) if r.name == "own"]) for line in lines] == [
        False,
        True,
        True,
        True,
        False,
        True,
    ]


def test_rules_travel_to_other_processes() -> None:
    rules = load_rules("zh_web_novel")
    rules.of("作者：某某")
    written = pickle.dumps(rules)
    made = pickle.loads(written)
    # A worker gets them anew with each task, and makes what they need once.
    assert made == rules and pickle.loads(written) is made


def test_rules_are_switched_by_name(tmp_path: Path) -> None:
    pack = write(tmp_path, GOOD.replace("literals: [ab]", "literals: [ab], enabled: false"))
    assert "own" not in [rule.name for rule in load_rules(pack).rules]
    assert "own" in [rule.name for rule in load_rules(pack, enable=["own"]).rules]
    assert "ruler" not in [rule.name for rule in load_rules(pack, disable=["ruler"]).rules]
    with pytest.raises(ConfigError, match="did you mean `ruler`"):
        load_rules(pack, disable=["rulers"])
    both = load_rules(["common", pack])
    assert both.name == "common+mine" and next(r for r in both.rules if r.name == "ruler").why == "Ours."


def test_the_guide_s_own_rule_file_is_valid(tmp_path: Path) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "prepare.md").read_text(encoding="utf-8")
    file = tmp_path / "mine.yaml"
    file.write_text(guide.split("```yaml\n")[1].split("```")[0], encoding="utf-8")
    rules = load_rules(str(file))
    assert any(rule.name == "reader_group" for rule in rules.rules)
    assert clean("读者群：123456\n他说读者群里都是朋友。", rules)[0].text == "他说读者群里都是朋友。"
