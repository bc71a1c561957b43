import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from raystyle.corpus.manifest import Manifest
from raystyle.corpus.packs import load_rules
from raystyle.corpus.report import (
    CLUSTERS_SHOWN,
    DROPPED_SHOWN,
    EXAMPLE_CHARS,
    EXAMPLES_SHOWN,
    LINES_SHOWN,
    MORE_SOURCES_SHOWN,
    REASONS,
    REJECTED_SHOWN,
    Duplicate,
    write_report,
)
from raystyle.corpus.sources import Rejection
from raystyle.corpus.steps import BUILT_IN

RULES = load_rules(["zh_web_novel"])
VOID = {"meta", "line", "rect", "path", "circle", "polyline"}


class _Checker(HTMLParser):
    """Every element is closed by its own end tag; `struck` is what stands in each <del>."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.struck: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag != "script" and not {name for name, _ in attrs} & {"src", "onclick", "onload"}
        for name, value in attrs:
            assert name != "href" or (value or "").startswith("#")
        if tag not in VOID:
            self.open.append(tag)
        if tag == "del":
            self.struck.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "del" in self.open:
            self.struck[-1] += data


def _entry(name: str, **changes: Any) -> dict[str, Any]:
    entry = {
        "source": f"/in/{name}", "relpath": name, "size": 3_600, "mtime_ns": 1, "sha256": "0", "encoding": "utf-8",
        "confidence": 1.0, "texts": 1, "documents": 1, "rejected": 0, "removed": 3, "lines": 40,
        "characters_in": 1_200, "characters_kept": 1_140,
    }  # fmt: skip
    return entry | changes


def _report(
    folder: Path,
    inputs: list[dict[str, Any]],
    *,
    rejected: list[Rejection] | None = None,
    hits: dict[str, int] | None = None,
    samples: dict[str, list[list[str]]] | None = None,
    frequent: list[list[Any]] | None = None,
    gone: list[Duplicate] | None = None,
    shared: list[str] | None = None,
    collected: list[dict[str, Any]] | None = None,
    config: dict[str, Any] | None = None,
    **counts: Any,
) -> tuple[str, _Checker]:
    everything = {name: sum(entry[name] for entry in inputs) for name in ("texts", "lines", "characters_in", "removed")}
    everything |= {
        "inputs": len(inputs), "documents": sum(entry["documents"] for entry in inputs), "heldout": 0,
        "duplicates": 0, "duplicate_chapters": 0, "rejected": len(rejected or []), "rows": None, "tokens": None,
        "padding": None, "characters_kept": sum(entry["characters_kept"] for entry in inputs),
    }  # fmt: skip
    manifest = Manifest(
        raystyle="0", inputs=inputs, rules={"name": RULES.name, "digest": RULES.digest}, tokenizer=None,
        config={"document_unit": "work", "records": "documents", "max_seq_length": 4096, "segment_length": 1024, **(config or {})},
        counts={**everything, "removed_by_rule": hits or {}, **counts}, shards=[], digest="d" * 64, output_dir=str(folder),
    )  # fmt: skip
    cleaned = [{"inputs": inputs, "hits": hits or {}, "samples": samples or {}, "frequent": frequent or []}]
    documents = [["id", entry["characters_kept"]] for entry in inputs if entry["documents"]]
    default = [{"documents": documents, "rows": None, "tokens": None}]
    write_report(
        manifest, RULES, cleaned, rejected or [], default if collected is None else collected, gone or [], shared or []
    )  # fmt: skip
    page = (folder / "report.html").read_text(encoding="utf-8")
    checker = _Checker()
    checker.feed(page)
    assert not checker.open and "url(" not in page and "@import" not in page
    return page, checker


def _position(page: str, *texts: str) -> list[int]:
    return [page.index(text) for text in texts]


def test_one_source_and_nothing_found(tmp_path: Path) -> None:
    page, checker = _report(tmp_path, [_entry("风.txt", characters_kept=1_200, removed=0)])
    assert "100.0% kept" in page and "Nothing stands out" in page and not checker.struck
    assert "Nothing: every text that came in was read." in page and "风.txt" in page
    assert not re.search(r"\bnan\b", page) and "None, " not in page


def test_the_figures_add_up_and_what_does_not_is_said(tmp_path: Path) -> None:
    inputs = [
        _entry("一.txt"),
        _entry("二.txt", documents=0, rejected=1, characters_kept=0),
        _entry("三.txt", texts=2, documents=2, characters_in=2_600, characters_kept=2_540),
    ]
    rejected = [Rejection("/in/二.txt", "mojibake", "3.0% everyday characters")]
    numbers = {"documents": 1, "heldout": 1, "duplicates": 1, "characters_kept": 2_430}
    page, _ = _report(tmp_path, inputs, rejected=rejected, **numbers)
    # Of 5,000 characters 120 went by rules, 1,200 with the rejected text, 1,250 with the duplicate.
    for share in ("48.6% kept", "2.4% removed by rules", "25.0% stand elsewhere too", "24.0% rejected"):
        assert share in page
    assert "<b>4</b> texts" in page and "not accounted for" not in page
    assert "Worth a look: 1 rejected, 1 duplicate." in page
    page, _ = _report(tmp_path, inputs, rejected=rejected, **{**numbers, "documents": 0})
    assert "<b>1</b> not accounted for" in page


def test_characters_of_rejected_records_are_no_removals(tmp_path: Path) -> None:
    entry = _entry("录.jsonl", texts=3, documents=2, rejected=1, characters_in=1_500, characters_kept=1_000)
    page, _ = _report(tmp_path, [entry | {"characters_rejected": 500}])
    assert "33.3% rejected" in page and "removed by rules" not in page and "<small>0.0%</small>" in page


def test_every_rule_with_hits_is_explained_and_shown_in_context(tmp_path: Path) -> None:
    names = [*BUILT_IN, *(rule.name for rule in RULES.rules)]
    hits = {name: number + 1 for number, name in enumerate(names)}
    first = RULES.rules[0].name
    samples: dict[str, list[list[str]]] = {
        first: [["她说：", "<i>\u200b", "“", "走吧。"]] * 3 + [[f"前{n}", f"段{n}", "", "后"] for n in range(40)],
        "hard_wrap": [["他走到门口，", "", "", ""]],
        "recurring_line": [["", "长" * 500, "", ""]],
        "blank_line": [["", "看不见", "", ""]],
    }
    page, checker = _report(tmp_path, [_entry("一.txt")], hits=hits, samples=samples, shared=["本站最新网址"])
    cards = re.findall(r'<div class="card">.*?</p>', page.split("What each rule removed</h2>")[1].split("<h2>")[0])
    assert len(cards) == len(names) and all(not card.endswith("<p></p>") for card in cards)
    assert "她说：<del>&lt;i&gt;" in page and "<ins>“</ins>走吧。" in page and "U+200B" in page and "<i>" not in page
    struck = checker.struck
    assert struck.count("↵") == 1 and "本站最新网址" in struck and "看不见" not in struck
    assert "长" * EXAMPLE_CHARS + "…" in struck and "长" * (EXAMPLE_CHARS + 1) not in page
    assert len([text for text in struck if text.startswith(("段", "<i>"))]) <= EXAMPLES_SHOWN
    assert struck.count("<i>U+200B") == 1
    # The most frequent first, and those that everybody has last.
    assert _position(
        page, *(f"<code>{name}</code>" for name in (names[-1], names[3], "outer_whitespace", "blank_line"))
    )
    places = _position(
        page, f"<code>{names[-1]}<", f"<code>{names[5]}<", "<code>outer_whitespace<", "<code>blank_line<"
    )
    assert places == sorted(places)


def test_what_needs_a_look_stands_first(tmp_path: Path) -> None:
    inputs = [
        _entry("a-fine.txt"),
        _entry("b-lossy.txt", characters_kept=700),
        _entry("c-unsure.txt", confidence=0.2, encoding="gb18030"),
        _entry("d-rejected.txt", documents=0, rejected=1, encoding=None, confidence=None, characters_in=0, characters_kept=0),
    ]  # fmt: skip
    page, _ = _report(tmp_path, inputs, rejected=[Rejection("/in/d-rejected.txt", "empty", "0 bytes")])
    table = page.split("Sources</h2>")[1].split("</section>")[0]
    assert re.findall("[abcd]-[a-z]+", table) == ["d-rejected", "c-unsure", "b-lossy", "a-fine"]
    assert "20% sure" in table and "not read as text (1)" in table and "<small>41.7%</small>" in table
    assert "1 source that lost more than 20%, 1 source whose encoding is unsure" in page


def test_text_from_files_is_text(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>&amp;\"\ud7ff"
    page, _ = _report(
        tmp_path,
        [_entry(evil, encoding=evil)],
        rejected=[Rejection(evil, evil, evil)],
        hits={evil: 1},
        samples={evil: [[evil, evil, evil, evil]]},
        frequent=[[evil, 30]],
        gone=[(evil, evil, evil, evil, evil, 0.9)],
        shared=[evil],
        config={"text_column": evil},
    )
    assert "<script" not in page and page.count("&lt;script&gt;") >= 14


def test_every_reason_has_a_way_out_and_long_lists_end(tmp_path: Path) -> None:
    many = [Rejection(f"/in/{number}.txt", "empty", "0 bytes") for number in range(REJECTED_SHOWN + 7)]
    others = [Rejection("/in/x", reason, "detail") for reason in REASONS]
    duplicates: list[Duplicate] = [
        ("雨夜", "/in/雨.txt", f"雨夜 {n}", "/in/b.txt", None, 0.8) for n in range(DROPPED_SHOWN + 5)
    ]
    duplicates += [(f"短篇 {n}", f"/in/{n}", None, f"/in/x{n}", "第一章", 1.0) for n in range(CLUSTERS_SHOWN + 8)]
    frequent = [[f"他说 {number}", 500 - number] for number in range(LINES_SHOWN + 30)]
    page, _ = _report(
        tmp_path, [_entry("a.txt")], rejected=[*many, *others], gone=duplicates, frequent=frequent
    )  # fmt: skip
    assert f"and {len(many) + 1 - REJECTED_SHOWN} more, in rejected/" in page
    assert all(
        f"<code>{reason}</code>" in page and way_out.split(";")[0] in page for reason, (_, way_out) in REASONS.items()
    )
    assert "and 5 more, in duplicates/" in page and "and 9 more, in duplicates/" in page
    assert page.index("<b>雨夜</b>") < page.index("<b>短篇 0</b>") and "untitled › 第一章" in page and "80.0%" in page
    assert "他说 0" in page and f"他说 {LINES_SHOWN - 1}" in page and f"他说 {LINES_SHOWN}" not in page


def test_a_hundred_thousand_sources_stay_readable(tmp_path: Path) -> None:
    page, _ = _report(tmp_path, [_entry(f"{number:06d}.txt") for number in range(100_000)])
    assert len(page) < 400_000 and f"and {100_000 - MORE_SOURCES_SHOWN:,} more, in manifest.json" in page


@pytest.mark.parametrize("unit", ["work", "chapter"])
def test_rows_and_lengths(tmp_path: Path, unit: str) -> None:
    collected = [
        {"documents": [["a", 0], ["b", 1], ["c", 4_999]], "segments": [0, 0, 1, 5]},
        {"documents": [["d", 5_000], ["e", 2_000_000]], "segments": [1, 0, 0, 6]},
        {"documents": [["f", 2_100]], "segments": None},
    ]
    rows = {"rows": 9, "tokens": 36_000, "padding": 864}
    page, _ = _report(tmp_path, [_entry("a.txt")], collected=collected, config={"document_unit": unit}, **rows)
    titles = re.findall(r"<title>([^<]*: [^<]*)</title>", page)
    assert "1: 2" in titles and "2k: 2" in titles and "5k: 1" in titles and "2M: 1" in titles
    assert titles[-4:] == ["256: 1", "512: 0", "768: 1", "1,024: 11"]
    assert "36,000" in page and "97.66% are real" in page and "in 9 rows" in page
    assert ("Every text" in page) == (unit == "work")
