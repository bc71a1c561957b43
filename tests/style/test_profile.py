import pytest
from hypothesis import given
from hypothesis import strategies as st

from raystyle.style.profile import LABELS, profile

TEXT = "他说：“我不去。”\n河水很急，没有桥！ABC 12"


def test_a_text_of_known_lengths():
    found = profile([TEXT])
    assert found["paragraph_chars"] == pytest.approx((9 + 14) / 2)
    assert found["dialogue_share"] == pytest.approx(6 / 23)
    assert found["latin_share"] == pytest.approx(3 / 23) and found["digit_share"] == pytest.approx(2 / 23)
    assert found["sentence_chars"] == pytest.approx((9 + 9 + 5) / 3)
    assert found["comma_rate"] == pytest.approx(1000 / 23) and found["quote_rate"] == pytest.approx(2000 / 23)


def test_every_measure_has_a_label_and_nothing_has_zeros():
    assert set(profile([TEXT])) == set(LABELS)
    assert set(profile([]).values()) == set(profile([" \n"]).values()) == {0.0}


@given(st.lists(st.text(alphabet="他说走了。！，“”\n a1", max_size=60)))
def test_order_and_spaces_do_not_matter_and_shares_are_shares(texts):
    found = profile(texts)
    assert profile(texts[::-1]) == found
    assert profile([t.replace("了", "了 　") for t in texts]) == found
    assert all(value >= 0 for value in found.values())
    assert all(found[name] <= 1 for name in ("dialogue_share", "latin_share", "digit_share"))


@given(st.lists(st.sampled_from(["他走了。", "“来！”她说。", "天亮了？"]), min_size=1, max_size=8))
def test_repeating_texts_changes_nothing(sentences):
    assert profile(["\n".join(sentences)] * 3) == pytest.approx(profile(["\n".join(sentences)]))
