"""Every link of the guides leads to a file that is there; what stands in code marks is shown, not followed."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GUIDES = [ROOT / "README.md", ROOT / "README.zh-CN.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
CODE = re.compile(r"^```.*?^```|(`+).+?\1", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("guide", GUIDES, ids=lambda g: g.name)
def test_links_lead_somewhere(guide):
    for target in re.findall(r"\]\(([^)#]+)", CODE.sub("", guide.read_text(encoding="utf-8"))):
        assert target.startswith("https://") or (guide.parent / target).exists(), target
