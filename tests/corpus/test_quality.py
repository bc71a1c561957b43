import pytest
from hypothesis import given
from hypothesis import strategies as st
from prose import PROSE

from raystyle.corpus.quality import MIN_JUDGED_CHARS, Limits, measure, objection

LIMITS = Limits(0.5, 0.02, 0.9, 0.0, 0.0)
GOOD = "\n".join(f"{line}这是第{i}回，{chr(0x4E00 + 37 * i)}山。" for i, line in enumerate(PROSE * 9))


def reason(text: str, solid_in: int | None = None, **limits: float) -> str | None:
    found = objection(text, text, solid_in or len(text), LIMITS._replace(**limits))
    return found[0] if found else None


def test_prose_passes() -> None:
    assert reason(GOOD) is None and len(GOOD) > MIN_JUDGED_CHARS


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (GOOD + "\ufffd" * 200, "garbage"),
        (GOOD.replace("山", "\ue123\x07"), "garbage"),
        ("锟斤拷" * 500, "garbage"),
        ("他走了又回来了，回来了又走了。\n" * 200, "repetitive"),
        (GOOD.encode("utf-8").decode("gb18030", "replace").replace("\ufffd", ""), "garbage"),
        (GOOD.encode("gb18030").decode("cp950", "replace").replace("\ufffd", ""), "mojibake"),
    ],
)
def test_what_reads_as_no_language_is_put_aside(text: str, why: str) -> None:
    assert reason(text) == why


def test_limits_are_the_users() -> None:
    assert reason(GOOD, 3 * len(GOOD)) == "mostly_removed"
    assert reason(GOOD, 3 * len(GOOD), max_removed_share=0.9) is None
    english = "It rained for three days, and nobody went out of doors. " * 40
    assert reason(english) is None and reason(english, min_han_share=0.5) == "not_chinese"
    assert reason("\n".join(GOOD[i : i + 5] for i in range(0, len(GOOD), 5)), min_mean_line_chars=8) == "short_lines"


def test_garbage_that_rules_have_cut_is_counted_still() -> None:
    holed = GOOD.replace("，", "\ufffd")
    why, detail = objection(holed.replace("\ufffd", ""), holed, len(holed), LIMITS) or ("", "")
    assert why == "garbage" and detail.endswith(f"of {len(holed):,} characters; `max_garbage_share` is 0.02")


def test_line_ends_of_other_systems_are_no_garbage() -> None:
    assert objection(GOOD, GOOD.replace("\n", "\x85\n").replace("。", "。\x0c"), len(GOOD), LIMITS) is None


def test_a_short_text_is_not_judged() -> None:
    assert reason("\ufffd" * (MIN_JUDGED_CHARS - 1)) is None


@given(st.text(max_size=300), st.integers(0, 500))
def test_measures_are_shares(text: str, solid_in: int) -> None:
    found = measure(text, text, solid_in)
    assert all(0 <= share <= 1 for share in found[:4])
    assert found.mean_line_chars >= 0
