import json

import pytest
from test_stylometry import OLD, PLAIN, text

from raystyle import evaluation
from raystyle.config import AttributeConfig
from raystyle.errors import ConfigError, DataError
from raystyle.flags import parse


@pytest.fixture
def folder(tmp_path):
    for name, sentences in [("平", PLAIN), ("古", OLD)]:
        (tmp_path / name).mkdir()
        for number in range(2):
            (tmp_path / name / f"{number}.txt").write_text(text(sentences, number, 1500), "utf-8")
    (tmp_path / "谁.txt").write_text(text(OLD, 9, 1200), "utf-8")
    (tmp_path / "短.txt").write_text(text(PLAIN, 9, 150), "utf-8")
    return tmp_path


def run(*words):
    said = []
    lines = list(evaluation.attribute(parse(AttributeConfig, [*map(str, words)]), said.append))
    return lines, said


def words(folder, *texts):
    return [
        "--reference_path", f"平={folder}/平/0.txt", f"平={folder}/平/1.txt", f"古={folder}/古/*.txt",
        "--text_path", *(folder / name for name in texts), "--chunk_chars", 400, "--rules", "common",
    ]  # fmt: skip


def test_each_chunk_has_its_author_and_each_source_a_summary(folder):
    lines, said = run(*words(folder, "谁.txt", "短.txt"))
    assert not said
    assert lines[-2:] != [""] and {line.split("/")[-1] for line in lines[-2:]} == {
        "谁.txt: 古 100% of 3 chunks",
        "短.txt: 平 100% of 1 chunk",
    }
    assert sum("short: 15" in line for line in lines) == 1


def test_json_has_an_object_a_chunk(folder):
    found = [json.loads(line) for line in run(*words(folder, "谁.txt"), "--json")[0]]
    assert [chunk["chunk"] for chunk in found] == [1, 2, 3]
    assert all(chunk["author"] == "古" and set(chunk["distances"]) == {"平", "古"} for chunk in found)
    assert all(0 <= chunk["percentile"] <= 100 and chunk["source"].endswith("谁.txt") for chunk in found)


def test_what_cannot_be_read_is_said_and_the_rest_goes_on(folder):
    (folder / "坏.txt").write_bytes(b"\x00\x01\x02" * 99)
    lines, said = run(*words(folder, "谁.txt", "坏.txt"))
    assert len(said) == 1 and "坏.txt" in said[0] and lines[-1].endswith("of 3 chunks")
    with pytest.raises(DataError, match="no text that can be read"):
        run(*words(folder, "坏.txt"))


@pytest.mark.parametrize(
    ("references", "more", "message"),
    [
        (["平=a.txt"], [], "at least two"),
        (["平=a.txt", "平=b.txt"], [], "at least two"),
        (["平=a.txt", "b.txt"], [], "write the author in front"),
        (["平=a.txt", "/x/古=b.txt"], [], "write the author in front"),
        (["平=a.txt", "古="], [], "write the author in front"),
        (["平=a.txt", "古=b.txt"], ["--chunk_chars", "20"], "use 200 or more"),
    ],
)
def test_mistakes_are_answered_before_anything_is_read(references, more, message):
    with pytest.raises(ConfigError, match=message):
        parse(AttributeConfig, ["--reference_path", *references, "--text_path", "c.txt", *more])


def test_paths_behind_authors_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = parse(AttributeConfig, ["--reference_path", "平=a=1.txt", "古=s3://b/c", "--text_path", "t"])
    assert config.references == {"平": [f"{tmp_path}/a=1.txt"], "古": ["s3://b/c"]}


def test_paths_that_are_not_there_and_too_little_text(folder):
    with pytest.raises(DataError, match=r"nicht\.txt"):
        run(*words(folder, "谁.txt", "nicht.txt"))
    (folder / "古" / "1.txt").unlink()
    (folder / "古" / "0.txt").write_text(text(OLD, 1, 300), "utf-8")
    with pytest.raises(DataError, match=r"by 古 are too few.*\n.*1,200 characters or more"):
        run(*words(folder, "谁.txt"))
