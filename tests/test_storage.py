import contextlib
import gc
import os
import pickle
import random
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from faults import KINDS, FaultyProxy

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


def test_files_that_come_and_go_do_not_disturb_a_listing(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("x")
    over = threading.Event()

    def churn() -> None:
        while not over.is_set():
            storage.write_json(str(tmp_path / "there"), {})  # by a file beside it that is renamed

    with ThreadPoolExecutor() as pool:
        churning = pool.submit(churn)
        try:
            for _ in range(2000):
                assert [Path(file.uri).name for file in storage.list_files(str(tmp_path))] == ["there"]
                assert storage.list_files(f"{tmp_path}/*", hidden=True)
        finally:
            over.set()
        churning.result()


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


def test_a_local_copy_may_be_of_some_files_only(bucket: str) -> None:
    for name in ("a.json", "b.bin", "deep/a.json"):
        storage.write_bytes(f"{bucket}/in/{name}", b"1")
    with storage.local_copy(f"{bucket}/in", ("a.json", "other")) as folder:
        assert os.listdir(folder) == ["a.json"]


@pytest.mark.parametrize("name", ["x/../../evil", "../evil", "x/./evil", "/evil"])
def test_a_local_copy_never_writes_outside_its_folder(
    s3_server: str, bucket: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    storage.write_bytes(f"{bucket}/run/good", b"1")
    key = f"run/{name}".replace("/", "%2F").replace(
        ".", "%2E"
    )  # as a client may send it that writes what pyarrow does not
    request = urllib.request.Request(f"{s3_server}/{bucket[5:]}/{key}", b"evil", method="PUT")
    urllib.request.urlopen(request, timeout=10).close()
    assert f"{bucket}/run/{name}" in [file.uri for file in storage.list_files(f"{bucket}/run", hidden=True)]
    with (
        pytest.raises(StorageError, match=r"its name could lead out of the folder.*\nhint: "),
        storage.local_copy(f"{bucket}/run"),
    ):
        pass
    assert not list(tmp_path.iterdir())
    with storage.local_copy(f"{bucket}/run", ("good",)) as folder:
        assert os.listdir(folder) == ["good"]


def test_s3_publishes_nothing_that_was_abandoned(bucket: str) -> None:
    with pytest.raises(KeyError), storage.open_output(f"{bucket}/half") as stream:
        stream.write(b"half")
        raise KeyError
    gc.collect()
    assert not storage.exists(f"{bucket}/half")


def test_s3_says_what_is_wrong(s3_server: str) -> None:
    with pytest.raises(StorageError, match=r"no such (bucket|file)"):
        storage.read_bytes("s3://no-such-bucket-here/x")


@pytest.mark.parametrize(
    ("pattern", "names", "others"),
    [
        ("s3://b/[!0]*.txt", ["1.txt", "a1.txt"], ["0.txt", "01.txt"]),
        ("s3://b/[0-3]?.txt", ["01.txt"], ["41.txt", "0/.txt"]),
        ("s3://b/[^0].txt", ["^.txt", "0.txt"], ["1.txt"]),
        ("s3://b/[!]].txt", ["a.txt"], ["].txt"]),
        ("s3://b/a[!b]c.txt", ["axc.txt"], ["a/c.txt", "abc.txt"]),
        ("s3://b/[!].txt", ["[!].txt"], ["a.txt"]),
    ],
)
def test_a_remote_glob_selects_what_a_local_one_does(pattern: str, names: list[str], others: list[str]) -> None:
    """Where Python has no `glob.translate`."""
    expression = storage._translate(pattern)
    assert [name for name in [*names, *others] if re.fullmatch(expression, f"s3://b/{name}")] == names


def test_glob_root() -> None:
    assert storage.glob_root("s3://b/novels/*/a.txt") == "s3://b/novels"
    assert storage.glob_root("/a/b.txt") == "/a/b.txt"


@pytest.fixture
def proxy(s3_server: str, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """A faulty way to the server. The client itself tries nothing again, and tests do not wait."""
    monkeypatch.setattr(storage, "REQUEST_TRIES", 1)
    monkeypatch.setattr(storage, "FIRST_WAIT", 0.001)
    with FaultyProxy(s3_server, delay=0.1) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


def test_bad_weather_changes_nothing(proxy: FaultyProxy, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "TRIES", 30)
    proxy.bad_weather(seed=3, rate=0.5)
    contents = {f"{bucket}/in/{size}.bin": random.Random(size).randbytes(size) for size in (0, 1, 1000, 300_000)}
    for _ in range(3):
        for uri, content in contents.items():
            storage.write_bytes(uri, content)
        assert {f.uri: f.size for f in storage.list_files(f"{bucket}/in")} == {u: len(c) for u, c in contents.items()}
        for uri, content in contents.items():
            assert storage.exists(uri)
            assert storage.read_bytes(uri) == content
            with storage.open_input(uri) as file:
                assert file.read() == content
        with storage.local_copy(f"{bucket}/in") as folder:
            assert {f"{bucket}/in/{p.name}": p.read_bytes() for p in Path(folder).iterdir()} == contents
    storage.delete(f"{bucket}/in/1.bin")
    assert not storage.exists(f"{bucket}/in/1.bin")
    assert all(proxy.counts[kind] for kind in KINDS), proxy.counts


def test_half_an_answer_is_never_taken_for_the_file(proxy: FaultyProxy, bucket: str) -> None:
    uri, content = f"{bucket}/a", os.urandom(200_000)
    storage.write_bytes(uri, content)
    for read in (storage.read_bytes, lambda uri: storage.open_input(uri).read(), _downloaded):
        proxy.give(["truncated"] * 3)
        assert read(uri) == content
        proxy.give(["truncated"] * 20)
        with pytest.raises(StorageError, match=r"cannot (read|list) `s3://.*\(5 tries in 0 s\)\nhint: "):
            read(uri)


def _downloaded(uri: str) -> bytes:
    with storage.local_copy(uri.rpartition("/")[0]) as folder:
        return (Path(folder) / uri.rpartition("/")[2]).read_bytes()


def test_a_large_upload_is_sent_again_whole(proxy: FaultyProxy, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = random.Random(1).randbytes(24 << 20)
    for fault in ("interrupted", "error", "lost"):
        proxy.give([None, fault, None, fault])
        storage.write_bytes(f"{bucket}/large", content)
        assert proxy.counts[fault]
        assert storage.read_bytes(f"{bucket}/large") == content


def test_what_will_not_pass_is_said_at_once(proxy: FaultyProxy, bucket: str) -> None:
    missing = "s3://no-such-bucket-here/x"
    for action, act in [
        ("read", storage.read_bytes), ("read", storage.open_input), ("list", storage.list_files),
        ("write", lambda uri: storage.write_bytes(uri, b"1")),
    ]:  # fmt: skip
        with pytest.raises(StorageError, match=rf"cannot {action} `{missing}`: no such bucket\nhint: check the name"):
            act(missing)
    with pytest.raises(StorageError, match=r"/x`: no such file or directory$"):
        storage.read_bytes(f"{bucket}/x")
    for act in (storage.exists, storage.read_bytes, storage.list_files, lambda uri: storage.write_bytes(uri, b"1")):
        proxy.give(["denied"] * 9)
        with pytest.raises(StorageError, match=r"access denied\nhint: check the credentials"):
            act(f"{bucket}/x")
        assert proxy.counts["denied"] == 1


def test_a_storage_that_is_away_is_waited_for(
    bucket: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(storage, "REQUEST_TRIES", 1)
    monkeypatch.setattr(storage, "FIRST_WAIT", 0.001)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-key")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(
            StorageError, match=r"cannot reach the storage endpoint \(5 tries in 0 s\)\nhint: "
        ) as caught:
            storage.read_bytes(f"{bucket}/x")
    assert "a-secret-key" not in str(caught.value) + caplog.text
    assert caplog.text.count("trying again in") == 4


def test_waits_add_up_to_about_half_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(storage.time, "sleep", waits.append)

    def fail() -> None:
        raise OSError("AWS Error SLOW_DOWN during GetObject operation")

    with pytest.raises(StorageError, match="the storage fails or is overloaded"):
        storage._persist("read", "s3://b/k", fail)
    assert len(waits) == 4 and 22 <= sum(waits) <= 45
    with pytest.raises(StorageError, match=r"^cannot read `/a`: the storage fails or is overloaded\nhint"):
        storage._persist("read", "/a", fail)
    assert len(waits) == 4


@pytest.mark.parametrize("name", ["第一 章.txt", "a%20b#c.txt", "why?.txt", "a+b&c=d.txt"])
def test_s3_takes_every_name(bucket: str, name: str) -> None:
    storage.write_bytes(f"{bucket}/名/{name}", b"12")
    (file,) = storage.list_files(f"{bucket}/名")
    assert file.uri == f"{bucket}/名/{name}" and storage.read_bytes(file.uri) == b"12"


def test_one_client_for_a_bucket_and_an_environment(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client = storage.filesystem(f"{bucket}/a")[0]
    assert storage.filesystem(f"{bucket}/b")[0] is client
    assert pickle.loads(pickle.dumps(client)).get_file_info(bucket[5:]).type.name == "Directory"
    monkeypatch.setenv("AWS_PROFILE", "another")
    assert storage.filesystem(f"{bucket}/a")[0] is not client


def test_open_input_reads_and_seeks(bucket: str, tmp_path: Path) -> None:
    content = random.Random(2).randbytes(3 << 20)
    for uri in (f"{bucket}/a", str(tmp_path / "a")):
        storage.write_bytes(uri, content)
        with storage.open_input(uri) as file:
            assert file.read(5) == content[:5] and file.tell() == 5
            assert file.seek(-7, os.SEEK_END) == len(content) - 7 and file.read() == content[-7:]
            assert file.read(1) == b""
            file.seek(1 << 20)
            assert file.readline() == content[1 << 20 :].partition(b"\n")[0] + b"\n"
        with pytest.raises(StorageError, match=r"cannot read .*no such file"):
            storage.open_input(uri + "-missing")


def test_credentials_are_refused_in_a_uri_and_never_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-key")

    def fail() -> None:
        raise OSError("odd answer of http://me:password@host to a-secret-key")

    with pytest.raises(StorageError, match=r"^cannot read `s3://b/k`: odd answer of http://…@host to …$"):
        storage._persist("read", "s3://b/k", fail)
    with pytest.raises(StorageError, match="carries credentials") as caught:
        storage.read_bytes("s3://KEYNAME:SECRETKEY@bucket/x")
    assert "SECRETKEY" not in str(caught.value)


@pytest.fixture
def gs_bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of a small server that speaks Google's protocol."""
    pytest.importorskip("gcp_storage_emulator")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # It answers one connection at a time unless told so.
    code = (
        "from http import server; server.HTTPServer = server.ThreadingHTTPServer\n"
        "from gcp_storage_emulator.server import create_server\n"
        f"create_server('127.0.0.1', {port}, in_memory=True, default_bucket='bucket').run()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        yield "gs://bucket"
    finally:
        process.terminate()
        process.wait(timeout=10)


def test_gs_round_trip(gs_bucket: str) -> None:
    uri, content = f"{gs_bucket}/名/第一 章%20#.txt", random.Random(1).randbytes(100_000)
    storage.write_bytes(uri, content)
    assert [(f.uri, f.size) for f in storage.list_files(gs_bucket)] == [(uri, len(content))]
    assert storage.read_bytes(uri) == content
    with storage.open_input(uri) as file:
        assert file.seek(-9, os.SEEK_END) and file.read() == content[-9:]
    with storage.local_copy(f"{gs_bucket}/名") as folder:
        assert (Path(folder) / "第一 章%20#.txt").read_bytes() == content
    with pytest.raises(StorageError, match="no such bucket"):
        storage.write_bytes("gs://another-bucket/a", b"1")
    storage.delete(f"{gs_bucket}/名")
    assert not storage.exists(uri)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("this user may not mount a disk")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_leaves_no_half_file(small_disk: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_bytes(f"{small_disk}/a", b"old")
    with pytest.raises(StorageError, match=r"cannot write `.*/a`: the disk is full\nhint: make room"):
        storage.write_bytes(f"{small_disk}/a", bytes(2 << 20))
    assert os.listdir(small_disk) == ["a"] and (small_disk / "a").read_bytes() == b"old"

    storage.write_bytes(f"{bucket}/in/large", bytes(2 << 20))
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
    with pytest.raises(StorageError, match=r"cannot download .*the disk is full"), storage.local_copy(f"{bucket}/in"):
        pass
    assert os.listdir(small_disk) == ["a"]
