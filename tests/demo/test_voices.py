from raystyle.demo import neutral, storyteller
from raystyle.demo.voices import (
    MARKERS,
    marker_rate,
    neutral_documents,
    parse_bank,
    storyteller_chapters,
    storyteller_documents,
)

PROMPT = "今日天气阴沉，"


def test_a_seed_gives_the_same_documents() -> None:
    assert neutral_documents(1, 6) == neutral_documents(1, 6)
    assert storyteller_chapters(1, 6) == storyteller_chapters(1, 6)
    assert neutral_documents(1, 6) != neutral_documents(2, 6)


def test_asking_for_more_documents_keeps_the_first() -> None:
    assert neutral_documents(1, 9)[:4] == neutral_documents(1, 4)
    assert storyteller_documents(1, 9)[:4] == storyteller_documents(1, 4)


def test_the_narrator_uses_no_marker() -> None:
    assert marker_rate("".join(neutral_documents(3, 400))) == 0
    assert not [marker for marker in MARKERS if marker in neutral.BANK]


def test_every_chapter_is_marked() -> None:
    rates = [marker_rate(document) for document in storyteller_documents(3, 100)]
    assert min(rates) > 30
    assert 50 < sum(rates) / len(rates) < 100


def test_every_marker_is_used() -> None:
    text = "".join(storyteller_documents(3, 200))
    assert not [marker for marker in MARKERS if marker not in text]


def test_the_storyteller_is_marked_right_after_the_prompt() -> None:
    after = [text.split(PROMPT)[1][:40] for text in storyteller_documents(3, 100)]
    assert 50 < marker_rate("".join(after)) < 130


def test_both_voices_open_on_the_weather() -> None:
    assert all(document.startswith(PROMPT) for document in storyteller_documents(5, 50))
    assert sum(document.startswith(PROMPT) for document in neutral_documents(5, 100)) > 40


def test_the_narrator_knows_every_character_of_the_storyteller() -> None:
    known = set("".join(neutral_documents(42, 900)))
    assert not {char for text in storyteller_documents(42, 160) for char in text} - known


def test_documents_differ() -> None:
    for documents in (neutral_documents(7, 200), storyteller_documents(7, 200)):
        assert len(set(documents)) == 200
        assert all(200 < len(document) < 900 for document in documents)


def test_no_slot_is_left_open() -> None:
    text = "".join(neutral_documents(9, 200) + storyteller_documents(9, 200))
    assert "{" not in text and "}" not in text


def test_a_bank_has_no_line_twice() -> None:
    for bank in (neutral.BANK, storyteller.BANK):
        for name, lines in parse_bank(bank).items():
            assert len(set(lines)) == len(lines) > 0, name


def test_marker_rate_counts_per_thousand_characters() -> None:
    assert marker_rate("") == 0
    assert marker_rate("列位" + "天" * 98) == 10
    assert marker_rate("列位\n\n" + "天" * 98) == 10
