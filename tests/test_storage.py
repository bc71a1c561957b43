import gc
import os
from pathlib import Path

import pytest

from raystyle import storage
from raystyle.errors import StorageError


def test_list_files_sorts_and_leaves_out_hidden_ones(tmp_path: Path) -> None:
    for name in ["b.txt", "a/c.txt", ".hidden.txt", "_work/d.txt", "a/e.md"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    names = [file.uri[len(str(tmp_path)) + 1 :] for file in storage.list_files(str(tmp_path))]
    assert names == ["a/c.txt", "a/e.md", "b.txt"]
    assert [Path(f.uri).name for f in storage.list_files(f"{tmp_path}/*.txt")] == ["b.txt"]
    assert [Path(f.uri).name for f in storage.list_files(f"{tmp_path}/**/*.txt", (".txt",))][:1] == ["c.txt"]


def test_list_files_gives_size_and_time(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abc")
    for place in [str(tmp_path), f"{tmp_path}/*.txt", f"{tmp_path}/a.txt"]:
        (file,) = storage.list_files(place)
        assert file.size == 3 and file.mtime_ns == os.stat(tmp_path / "a.txt").st_mtime_ns


def test_a_missing_place_is_said(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no such file or directory"):
        storage.list_files(str(tmp_path / "nothing"))
    with pytest.raises(StorageError, match="cannot read"):
        storage.read_bytes(str(tmp_path / "nothing"))
    with pytest.raises(StorageError, match="cannot open storage"):
        storage.read_bytes("ftps://host/file")


def test_an_abandoned_write_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file"
    with pytest.raises(KeyError), storage.open_output(str(target)) as stream:
        stream.write(b"half")
        raise KeyError
    assert not list(target.parent.iterdir())
    storage.write_bytes(str(target), b"whole")
    with pytest.raises(KeyError), storage.open_output(str(target)) as stream:
        stream.write(b"half")
        raise KeyError
    assert target.read_bytes() == b"whole"
    assert target.stat().st_mode & 0o777 == 0o666 & ~storage._umask()


def test_s3_round_trip(bucket: str) -> None:
    storage.write_json(f"{bucket}/a/b.json", {"名": 1})
    storage.write_bytes(f"{bucket}/a/c.txt", b"12")
    assert storage.read_json(f"{bucket}/a/b.json") == {"名": 1}
    assert [(f.uri, f.size) for f in storage.list_files(f"{bucket}/a", (".txt",))] == [(f"{bucket}/a/c.txt", 2)]
    assert [f.uri for f in storage.list_files(f"{bucket}/a/*.txt")] == [f"{bucket}/a/c.txt"]
    with storage.local_copy(f"{bucket}/a") as folder:
        assert sorted(os.listdir(folder)) == ["b.json", "c.txt"]
    storage.delete(f"{bucket}/a")
    assert not storage.exists(f"{bucket}/a/b.json")


def test_s3_publishes_nothing_that_was_abandoned(bucket: str) -> None:
    with pytest.raises(KeyError), storage.open_output(f"{bucket}/half") as stream:
        stream.write(b"half")
        raise KeyError
    gc.collect()
    assert not storage.exists(f"{bucket}/half")


def test_s3_says_what_is_wrong(s3_server: str) -> None:
    with pytest.raises(StorageError, match=r"no such (bucket|file)"):
        storage.read_bytes("s3://no-such-bucket-here/x")


def test_glob_root() -> None:
    assert storage.glob_root("s3://b/novels/*/a.txt") == "s3://b/novels"
    assert storage.glob_root("/a/b.txt") == "/a/b.txt"
