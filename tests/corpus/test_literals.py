from hypothesis import given
from hypothesis import strategies as st

from raystyle.corpus.lines import Pieces, column, split_lines
from raystyle.corpus.literals import Finder, code_points

# Few characters, so that literals overlap; one beyond the first plane, one that shares its bucket with another.
letters = st.sampled_from("ab第章\uffff𠀀𠀁 \u3000")
strings = st.text(letters, min_size=1, max_size=4)


@given(st.lists(strings, unique=True, min_size=1, max_size=8), st.text(letters, max_size=40))
def test_every_place_of_every_literal_is_found(literals: list[str], text: str) -> None:
    hits = Finder(literals).find(code_points(text + "\n"))
    found = [(start, literals[literal]) for start, _, literal in zip(*map(list, hits), strict=True)]
    expected = [(start, one) for start in range(len(text)) for one in literals if text.startswith(one, start)]
    assert sorted(found) == sorted(expected)
    assert all(end - start == len(literals[literal]) for start, end, literal in zip(*hits, strict=True))


def test_a_long_text_is_looked_at_to_its_end() -> None:
    text = "他" * 100_000 + "第一章" + "他" * 100_000 + "第一章"
    assert sorted(Finder(["第一章", "章他"]).find(code_points(text + "\n")).start_H) == [100_000, 100_002, 200_003]


@given(st.lists(st.text(st.sampled_from("ab \u3000\t\x1f\x85𠀀\n"), max_size=30), max_size=4))
def test_lines_are_those_of_str(texts: list[str]) -> None:
    lines = split_lines(texts)
    expected = "\n".join(texts).split("\n")
    everything = slice(None)
    assert lines.raw.texts(everything) == expected
    assert lines.body.texts(everything) == [line.strip() for line in expected]
    assert lines.left_L.tolist() == [len(line) - len(line.lstrip()) for line in expected]
    layout = lines.body.layout(lines.left_L)
    assert layout.first_L.tolist() == [ord((line.strip() or "\0")[0]) for line in expected]
    assert layout.last_L.tolist() == [ord((line.strip() or "\0")[-1]) for line in expected]
    assert column(lines.raw).to_pylist() == expected


def test_a_long_indent_is_whitespace_to_its_end() -> None:
    lines = split_lines([" " * 1000 + "a" + " " * 1000, " " * 1000])
    assert lines.left_L.tolist() == [1000, 1000] and lines.body.texts(slice(None)) == ["a", ""]
    assert isinstance(lines.body, Pieces)
