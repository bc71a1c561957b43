"""README.zh-CN.md says what README.md says: the same headings, commands, links and figures, in the same order.

Whoever changes one finds here what the other lacks.
"""

import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENGLISH, CHINESE = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md"))
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[tuple[str, str]]:
    """Every line of every block with the block's kind; a comment behind it is another language's to say otherwise."""
    return [
        (kind, re.sub(r"\s+#.*", "", line).rstrip())
        for kind, block in FENCE.findall(text)
        for line in block.splitlines()
    ]


def headings(text: str) -> list[str]:
    return re.findall(r"^(#+) ", FENCE.sub("", text), re.MULTILINE)


def links(text: str) -> Counter[str]:
    return Counter(target for target in re.findall(r"\]\(([^)]+)\)", text) if not target.startswith("README"))


def tables(text: str) -> list[list[str]]:
    """The figures of each table's rows."""
    rows = [line for line in text.splitlines() if line.startswith("|")]
    return [re.findall(r"\d+(?:[.,]\d+)*(?: %)?", line) for line in rows]


def names(text: str) -> set[str]:
    """What stands in code marks outside of tables and blocks."""
    lines = [line for line in FENCE.sub("", text).splitlines() if not line.startswith("|")]
    return {" ".join(name.split()) for name in re.findall(r"`([^`]+)`", "\n".join(lines))}


def test_both_have_the_same_headings():
    assert headings(CHINESE) == headings(ENGLISH)


def test_both_show_the_same_commands():
    assert commands(CHINESE) == commands(ENGLISH)


def test_both_lead_to_the_same_places():
    assert links(CHINESE) == links(ENGLISH)


def test_both_tell_the_same_figures():
    assert tables(CHINESE) == tables(ENGLISH)


def test_both_name_the_same_commands_files_and_flags():
    assert names(CHINESE) == names(ENGLISH)


def test_a_difference_would_be_found():
    changed = ENGLISH.replace("--max_steps 4", "--max_steps 5").replace("| base | 16 %", "| base | 17 %")
    assert commands(changed) != commands(ENGLISH)
    assert tables(changed) != tables(ENGLISH)
