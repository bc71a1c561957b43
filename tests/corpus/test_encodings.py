import time

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from raystyle.corpus.encodings import Unreadable, decode

SENTENCES = [
    "今天晚上，很好的月光。",
    "我不见他，已是三十多年；今天见了，精神分外爽快。",
    "话说天下大势，分久必合，合久必分。",
    "余生平不解书，而好之甚笃，此亦不可解也。",
]
TRADITIONAL = ["今天晚上，很好的月光。", "他說：「這個時候，還沒有人來。」", "大江東去，浪淘盡、千古風流人物。"]
NOVEL = "\n".join(f"　　{SENTENCES[i % 4]}他走到第{i}家门前，又站住了。" for i in range(400))
OLD_NOVEL = "\n".join(f"　　{TRADITIONAL[i % 3]}他走到第{i}家門前，又站住了。" for i in range(400))


@given(st.lists(st.sampled_from(SENTENCES), min_size=2, max_size=30).map("".join))
def test_simplified_text_comes_back_from_its_encodings(text: str) -> None:
    for encoding, name in [
        ("utf-8", "utf-8"),
        ("utf-8-sig", "utf-8-sig"),
        ("utf-16", "utf-16"),
        ("utf-32", "utf-32"),
        ("gb18030", "gb18030"),
        ("utf-16-le", "utf-16-le"),
        ("utf-16-be", "utf-16-be"),
    ]:
        found = decode(text.encode(encoding))
        assert (found.text, found.encoding, found.bad_lines) == (text, name, [])
        assert 0.5 < found.confidence <= 1


@given(st.lists(st.sampled_from(TRADITIONAL), min_size=2, max_size=30).map("".join))
def test_traditional_text_comes_back_from_its_encodings(text: str) -> None:
    for encoding in ["utf-8", "cp950", "gb18030", "utf-16-le", "utf-16-be"]:
        assert decode(text.encode(encoding))[:2] == (text, encoding)


def test_big_endian_utf16_is_read_by_its_mark() -> None:
    assert decode("﻿很好".encode("utf-16-be"))[0] == "很好"


def test_english_is_text_too() -> None:
    english = "It was a bright cold day, and the clocks were striking.\r\n" * 40
    for encoding in ["ascii", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"]:
        assert decode(english.encode(encoding)).text == english


def test_hong_kong_characters_are_big5_too() -> None:
    text = OLD_NOVEL + "\n佢哋喺度食嘢，唔知幾開心。"
    with pytest.raises(UnicodeEncodeError):
        text.encode("cp950")
    assert decode(text.encode("big5hkscs"))[0] == text


@pytest.mark.parametrize(
    ("data", "reason", "detail"),
    [
        (b"", "empty", "0 bytes"),
        (b"\xef\xbb\xbf", "empty", "3 bytes"),
        (b"ab\0cd", "nul", "byte 2"),
        ((NOVEL + "\0").encode(), "nul", "NUL at byte"),
        (b"\xff\xff\xff\xff", "undecodable", "1 of 1 lines .* the first is at byte 0"),
        (b"\xef\xbb\xbf\xff", "undecodable", "byte 0"),
        (("这是一段很长的中文，写得很好。" * 20).encode()[:-1] + b"\xff ", "undecodable", "byte"),
        (
            "Où est la bibliothèque ? Là-bas, à côté du théâtre où l'été dernier… ".encode("cp1252") * 9,
            "undecodable",
            "byte",
        ),
        (b"\xff\xfe\0\0\xff\xff\xff\xff", "undecodable", "utf-32"),
    ],
)
def test_what_cannot_be_read_says_where(data: bytes, reason: str, detail: str) -> None:
    with pytest.raises(Unreadable, match=detail) as refused:
        decode(data)
    assert refused.value.reason == reason


def test_damaged_utf8_is_not_read_as_gb18030() -> None:
    damaged = ("今天晚上，很好的月光。我不见他，已是三十多年了。" * 30).encode()
    with pytest.raises(Unreadable):
        decode(damaged[:50] + damaged[51:])


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030", "cp950"])
def test_a_torn_byte_costs_its_line_and_no_more(encoding: str) -> None:
    novel = OLD_NOVEL if encoding == "cp950" else NOVEL
    lines = novel.encode(encoding).split(b"\n")
    torn = lines[200][:9] + b"\xff" + lines[200][9:]
    for end in (b"\n", b"\r\n", b"\r"):
        found = decode(end.join([*lines[:200], torn, *lines[201:]]))
        expected = novel.split("\n")
        expected[200] = ""
        assert found.text == end.decode().join(expected)
        assert found.encoding == encoding
        ((number, shown),) = found.bad_lines
        assert number == 201 and r"\xff" in shown


def test_a_character_cut_off_at_the_end_costs_only_itself() -> None:
    for encoding, cut in [("utf-8", 1), ("utf-8", 2), ("gb18030", 1), ("utf-16-le", 1)]:
        found = decode((NOVEL + "月").encode(encoding)[:-cut])
        assert found.text == NOVEL
        assert [number for number, _ in found.bad_lines] == [400]
        assert found.bad_lines[0][1].startswith("\\x")


def test_half_a_surrogate_pair_in_utf16_costs_its_line() -> None:
    lines = NOVEL.split("\n")
    lines[7] = lines[7] + "\ud83d"
    found = decode("\n".join(lines).encode("utf-16-le", "surrogatepass"))
    assert found.text.split("\n")[7] == "" and found.text.count("\n") == 399
    assert [number for number, _ in found.bad_lines] == [8]


@pytest.mark.parametrize(("encoding", "other"), [
    ("gb18030", "utf-8"), ("utf-8", "gb18030"), ("cp950", "utf-8"), ("gb18030", "cp950"), ("utf-8", "cp950")
])  # fmt: skip
def test_lines_pasted_in_another_encoding_are_read_in_it(encoding: str, other: str) -> None:
    """Also where the bytes of the advert are valid, but nonsense, in the file's own encoding."""
    for advert in [
        "手機看書的人，請到這個地方來，全部都是新書。",
        "手機看書的人，請到這個地方來，全部都是新書",
        "看書請來這裡：w.example/1",
    ]:
        for at in (0, 150, 400):
            if encoding == "gb18030" and other == "cp950" and decodes(advert.encode(other), encoding):
                continue  # a single line of Big5 that is valid GB18030 is left to the guard against nonsense
            lines = (OLD_NOVEL if "cp950" in (encoding, other) else NOVEL).split("\n")
            data = [line.encode(encoding) for line in lines]
            data.insert(at, advert.encode(other))
            lines.insert(at, advert)
            found = decode(b"\n".join(data))
            assert found.text == "\n".join(lines)
            assert found.encoding == f"{encoding} + {other}" and not found.bad_lines


def decodes(data: bytes, encoding: str) -> bool:
    try:
        data.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def test_a_file_that_changes_encoding_midway_is_read_in_both() -> None:
    first, second = OLD_NOVEL * 20, OLD_NOVEL * 8
    found = decode(first.encode("gb18030") + b"\n" + second.encode("cp950"))
    wrong = sum(a != b for a, b in zip(found.text.split("\n"), f"{first}\n{second}".split("\n"), strict=True))
    assert found.encoding == "gb18030 + cp950"
    # What shares a block of 64 KB with the change may be read in the first; it decodes.
    assert wrong < 2000


@pytest.mark.parametrize(("own", "other", "lines"), [
    ("gb18030", "cp950", 400), ("cp950", "gb18030", 300), ("gb18030", "cp950", 60), ("cp950", "gb18030", 60)
])  # fmt: skip
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_part_in_another_encoding_is_read_in_it(own: str, other: str, lines: int, end: str) -> None:
    """Its bytes are mostly valid in the file's own, where they are no Chinese."""
    for before, after in [(lines, 0), (5000, 0), (700, 700)]:
        novel = (OLD_NOVEL + "\n") * 20
        pieces = [
            (novel.split("\n")[:count], encoding) for count, encoding in [(before, own), (lines, other), (after, own)]
        ]
        text = end.join(line for piece, _ in pieces for line in piece)
        found = decode(end.encode().join(line.encode(encoding) for piece, encoding in pieces for line in piece))
        assert found.text == text
        assert set(found.encoding.split(" + ")) == {own, other} and not found.bad_lines


def test_laughter_and_lists_are_no_other_encoding() -> None:
    """Stretches without everyday characters stay what they are where no other encoding reads them."""
    odd = "\n".join(
        ["哈哈哈哈哈哈哈哈！", "嘻嘻嘿嘿呵呵呵呵", "☆☆☆☆☆☆☆☆", "ＡＢＣＤＥＦＧ", "萧炎、萧薰儿、纳兰嫣然"] * 200
    )
    for text in (f"{NOVEL}\n{odd}\n{NOVEL}", f"{NOVEL}\n{odd}"):
        assert decode(text.encode("gb18030"))[:2] == (text, "gb18030")
    text = "\n".join([OLD_NOVEL, *["☆☆☆☆☆☆☆☆", "①②③④⑤", "ＡＢＣＤＥ", "哈哈哈哈", "αβγδ", "┌──┐"] * 50, OLD_NOVEL])
    text = "".join(char for char in text if encodes(char, "cp950"))
    assert decode(text.encode("cp950"))[:2] == (text, "cp950")


def encodes(char: str, encoding: str) -> bool:
    return bool(char.encode(encoding, "ignore"))


def test_more_than_a_trace_of_damage_is_refused() -> None:
    lines = NOVEL.encode("gb18030").split(b"\n")
    for i in range(0, 400, 60):
        lines[i] = lines[i][:9] + b"\xff" + lines[i][9:]
    with pytest.raises(Unreadable, match=r"of 400 lines .* are neither gb18030"):
        decode(b"\n".join(lines))


def test_a_named_encoding_is_taken_at_its_word() -> None:
    accents = "Déjà vu, garçon ! " * 20
    assert decode(accents.encode("cp1252"), "cp1252")[:3] == (accents, "cp1252", 1.0)
    assert decode(NOVEL.encode("gbk"), "GBK")[:2] == (NOVEL, "gb18030")
    assert decode(OLD_NOVEL.encode("big5"), "big5")[:2] == (OLD_NOVEL, "cp950")
    assert decode(NOVEL.encode("utf-8-sig"), "utf-8")[:2] == (NOVEL, "utf-8")
    torn = NOVEL.encode("gb18030").replace("爽".encode("gb18030"), b"\xff", 1)
    assert len(decode(torn, "gb18030").bad_lines) == 1
    for encoding in ("ascii", "utf-16", "no-such", "hex", "undefined"):
        with pytest.raises(Unreadable) as refused:
            decode(NOVEL.encode(), encoding)
        assert refused.value.reason == "undecodable"


@given(
    st.binary(max_size=400),
    st.sampled_from([None, "utf-8", "gb18030", "big5", "utf-16", "utf-16-le", "utf-7", "hz"]),
)
def test_any_bytes_are_text_or_unreadable(data: bytes, encoding: str | None) -> None:
    try:
        found = decode(data, encoding)
    except Unreadable:
        return
    found.text.encode()
    assert found.text and 0 <= found.confidence <= 1


@given(st.data())
def test_whatever_is_cut_flipped_or_spliced_the_other_lines_stand(data: st.DataObject) -> None:
    encoding = data.draw(st.sampled_from(["utf-8", "gb18030", "cp950"]))
    novel = (OLD_NOVEL if encoding == "cp950" else NOVEL).split("\n")[:200]
    lines = [line.encode(encoding) for line in novel]
    at = data.draw(st.integers(0, 199))
    noise = data.draw(st.binary(min_size=1, max_size=8).filter(lambda noise: not set(noise) & set(b"\r\n\0")))
    place = data.draw(st.integers(0, len(lines[at])))
    lines[at] = lines[at][:place] + noise + lines[at][place:]
    whole = b"\n".join(lines)
    assume(not whole.startswith((b"\xfe\xff", b"\xff\xfe")))  # noise may be UTF-16's own mark
    found = decode(whole)
    got = found.text.split("\n")
    assert len(got) == 200 and got[:at] == novel[:at] and got[at + 1 :] == novel[at + 1 :]


def test_a_clean_file_takes_little_more_than_its_codec() -> None:
    data = (NOVEL * 200).encode("gb18030")
    start = time.process_time()
    text = data.decode("gb18030")
    codec = time.process_time() - start
    start = time.process_time()
    assert decode(data).text == text
    assert time.process_time() - start < 4 * codec + 0.1
