from raystyle.training.agreement import apart


def test_what_differs_is_told_with_both_values():
    same = {"`learning_rate`": 1e-4, "the package torch": "2.13.0", "the rows": "ab"}
    assert apart([same] * 4) == []
    other = same | {"the package torch": "2.12.0"}
    assert apart([same, same, other, other]) == ["the package torch is 2.13.0 for worker 0 and 2.12.0 for worker 2"]
    assert len(apart([same, other | {"`learning_rate`": 2e-4}])) == 2
