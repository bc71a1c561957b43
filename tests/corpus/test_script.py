from raystyle.corpus.script import count, simplified_lines

SIMPLIFIED, TRADITIONAL = "他们说这个时候还没有人来过这里。", "他們說這個時候還沒有人來過這裡。"


def test_characters_of_both_scripts_count_for_neither() -> None:
    assert count("乾著覆天地人") == (0, 0)
    assert count(TRADITIONAL)[0] >= 6 and count(TRADITIONAL)[1] == 0
    assert count(SIMPLIFIED)[1] >= 6 and count(SIMPLIFIED)[0] == 0


def test_only_a_mixed_work_is_simplified_unless_asked() -> None:
    mixed = [SIMPLIFIED] * 20 + [TRADITIONAL]
    assert list(simplified_lines("\n".join(mixed), mixed, "auto")) == [(20, SIMPLIFIED)]
    assert list(simplified_lines("\n".join(mixed), mixed, "never")) == []
    whole = [TRADITIONAL] * 20
    assert list(simplified_lines("\n".join(whole), whole, "auto")) == []
    assert [line for _, line in simplified_lines("\n".join(whole), whole, "always")] == [SIMPLIFIED] * 20
    name = [SIMPLIFIED] * 400 + ["他姓鍾。"]
    assert list(simplified_lines("\n".join(name), name, "auto")) == []
