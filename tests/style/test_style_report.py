import copy
import math
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from evaluations import AUTHOR, TRAINED_ON, evaluation, metrics

from raystyle import html
from raystyle.style.report import page as report
from raystyle.style.report import view

VOID = {"meta", "br", "path", "use", "rect", "circle", "line", "link"}
HOSTILE = "<script>alert('x')</script>\"&\u202e\x00\x1b\ud800$a_b$"


class Checked(HTMLParser):
    """Tags must nest; keeps the visible text, the elements and the ids."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


def checked(found: dict[str, Any], **more: Any) -> Checked:
    """The page, with what holds of every page."""
    page = report.page(found, **more)
    assert page.encode()
    seen = Checked(page)
    assert len(seen.ids) == len(set(seen.ids)), "ids collide"
    assert "script" not in seen.tags and not [name for name in seen.attributes if name.startswith("on")]
    assert not re.search(r'(?:src|href)="(?!#)', page) and "@import" not in page and "url(http" not in page
    assert not re.search(r"\b(?:nan|inf|None|NaN)\b", seen.text)
    assert "#0a00" not in page, "a colour was not replaced"
    return seen


def test_the_verdict_comes_first_and_everything_is_there() -> None:
    seen = checked(evaluation(), metrics=metrics(), training=[("The run", html.Markup("<p>88 rows</p>"))])
    assert seen.text.index("Take step\u00a0300.") < seen.text.index("The loss fell from")
    assert (
        "Step\u00a0400 would go" in seen.text and "step-00000" not in seen.text[: seen.text.rindex("What was measured")]
    )
    for heading in (
        "How strong?",
        "Copied passages beside their source",
        "Drift",
        "Markers",
        "Profile",
        "88 rows",
        "9c" * 32,
    ):
        assert heading in seen.text
    assert seen.tags.count("svg") == 10


def test_copied_passages_stand_beside_their_source() -> None:
    page = report.page(evaluation())
    passages = page[page.rindex("Copied passages beside") :]
    left, right = re.findall(r'<u class="copied">([^<]+)</u>', passages)[:2]
    assert left == right == TRAINED_ON
    assert "那一年冬天来得早。" in passages and "novels/旧街.txt" in passages


def test_the_same_evaluation_gives_the_same_bytes() -> None:
    assert report.page(evaluation(), metrics=metrics()) == report.page(evaluation(), metrics=metrics())


def test_nothing_in_text_can_act_on_the_page() -> None:
    found = evaluation()
    found["author"] = HOSTILE
    found["reference"]["plane"][HOSTILE] = found["reference"]["plane"].pop(AUTHOR)
    found["reference"]["other_profiles"][HOSTILE] = {HOSTILE: 1.0}
    found["material"]["contrast"][HOSTILE] = {"documents": 1, "characters": 2}
    found["reference"]["markers"][0]["term"] = HOSTILE
    found["verdict"]["reason"] += HOSTILE
    found["failed"], found["warnings"] = {HOSTILE: HOSTILE}, [HOSTILE]
    for subject in found["subjects"][1:]:
        for sample in subject["samples"]:
            sample |= {
                "prompt": HOSTILE,
                "text": HOSTILE,
                "markers": [[0, 3], [2, 9999]],
                "copies": [[1, 5, 0], [-3, 2, 1]],
            }
        for passage in subject["copying"]["passages"]:
            passage |= {"text": HOSTILE, "source": HOSTILE, "source_before": HOSTILE}
    found["subjects"][4] |= {"name": HOSTILE, "kind": "adapter", "step": None}
    seen = checked(found, metrics=metrics())
    assert "alert('x')" in seen.text and "U+202E" in seen.text
    assert not {"\u202e", "\x00", "\x1b"} & set(report.page(found))


def test_what_was_not_measured_is_left_out() -> None:
    checked({})
    checked({"author": "某", "subjects": [{"name": "base", "kind": "base"}, {"name": "a", "kind": "adapter"}]})
    base_only = evaluation()
    base_only["subjects"] = base_only["subjects"][:1]
    base_only["verdict"] = {
        "recommended": None,
        "reason": "Only the base was measured.",
        "frontier": [],
        "scores": {},
        "turned_down": {},
    }
    assert "Nothing to recommend." in checked(base_only).text
    alone = evaluation()
    alone["subjects"] = [
        alone["subjects"][0],
        alone["subjects"][3] | {"strength": [], "step": None, "kind": "adapter", "name": "风格"},
    ]
    for subject in alone["subjects"]:
        subject["likelihood"]["contrast"] = subject["stylometry"] = None
    alone["verdict"] |= {"recommended": "风格", "scores": {"风格": {"style": 0.5, "divergence": None}}}
    text = checked(alone).text
    assert "Take 风格." in text and "How strong?" not in text


@pytest.mark.parametrize("missing", [{"step"}, {"samples", "markers"}, set()])
def test_any_part_of_any_subject_may_be_missing(missing: set[str]) -> None:
    keys = sorted(set(evaluation()["subjects"][1]) - {"name", "kind", "step"})
    found = evaluation(tuple(range(100, 100 * len(keys) + 1, 100)))
    for key, subject in zip(keys, found["subjects"][1:], strict=True):
        subject |= dict.fromkeys({key} | missing)
    checked(found)


def test_numbers_that_are_none_are_never_shown() -> None:
    def spoilt(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: spoilt(part) for name, part in value.items()}
        if isinstance(value, list):
            return [spoilt(part) for part in value]
        return math.nan if isinstance(value, float) else value

    checked(spoilt(evaluation()), metrics=spoilt(metrics()))


def test_a_long_course_and_several_adapters() -> None:
    many = evaluation(tuple(range(20, 620, 20)))
    seen = checked(many, metrics=metrics(600, 6.1, 5.2))
    assert "All 31" in seen.text and "lies outside this plot" in seen.text
    assert seen.text.count("most likely continuation") == 1
    several = copy.deepcopy(evaluation())
    for subject in several["subjects"][1:]:
        subject |= {"step": None, "kind": "adapter"}
    assert "optimizer step" not in checked(several).text


def test_the_loss_gate_has_its_word() -> None:
    found = [*metrics(), {"step": 400, "loss_gate": "passed: 1.83 is in the band"}]
    assert "Loss gate: passed: 1.83" in checked(evaluation(), metrics=found).text


def test_a_few_subjects_stand_for_many() -> None:
    many = evaluation(tuple(range(20, 620, 20)))
    few = view.chosen(many, 6)
    assert len(few) == 6 and few[0]["name"] == "base" and few[-1]["step"] == 600
    assert view.recommended(many) in few and [view.step(s) for s in few] == sorted(view.step(s) for s in few)
    assert view.title({"name": "甲/step-00001200"}) == "甲/step\u00a01,200"
