"""Thousands of damaged files in one folder, prepared in one go: no crash, and every input accounted for.

    python bench/fuzz.py                         10,000 files; about ten minutes on two cores
    python bench/fuzz.py --files 400 --seed 3

Each file is a small sound one (text in nine encodings, JSONL, JSON, Parquet, EPUB, compressed, zipped), then damaged in one
of a dozen ways, or left whole, under a fitting name, a wrong one or a hostile one. Between them stand what is no file at
all: pipes, sockets, loops of links. `accounts` then checks what `prepare` left: every file is an input of the manifest or
stands in rejected/; texts = documents + heldout + duplicates + rejected; the same command again does nothing.
`make` and `accounts` are also what the test in tests/e2e/test_resume.py runs on a few hundred files.
"""

import argparse
import bz2
import collections
import gzip
import io
import json
import lzma
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

HERE = Path(__file__).resolve().parent
ENCODINGS = ("utf-8", "utf-8-sig", "gb18030", "big5", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252")
WORDS = "风起云涌他走了没有回头天色渐晚山路上只剩一个人影灯火在远处亮着水声时断时续谁也不说话夜里下过雨石阶还是湿的"


def prose(dice: random.Random, characters: int) -> str:
    """Chinese-looking lines under chapter headings, with a line of noise now and then."""
    lines, size, chapter = [], 0, 0
    while size < characters:
        if len(lines) % 12 == 0:
            chapter += 1
            lines.append(f"第{chapter}章 {''.join(dice.choices(WORDS, k=4))}")
        line = "，".join("".join(dice.choices(WORDS, k=dice.randint(3, 12))) for _ in range(dice.randint(1, 5)))
        lines.append(dice.choice(("　　", "")) + line + dice.choice("。。。！？"))
        if dice.random() < 0.05:
            lines.append(dice.choice(("www.example.com", "求月票！", "（本章未完，请翻页）", "&nbsp;", "")))
        size += len(line)
    return dice.choice(("\n", "\r\n")).join(lines) + "\n"


def text(dice: random.Random) -> bytes:
    return prose(dice, dice.choice((20, 200, 1500))).encode(dice.choice(ENCODINGS), "replace")


def _records(dice: random.Random) -> list[Any]:
    odd = [None, 7, [], {"text": None}, {"text": 3}, {"body": "x"}, {"text": ""}, {"text": "\ud800"}, {"text": "a\0b"}]
    good = [{"text": prose(dice, 100), "title": f"题{i}"} for i in range(dice.randint(1, 8))]
    return [record if dice.random() < 0.85 else dice.choice(odd) for record in good]


def jsonl(dice: random.Random) -> bytes:
    lines = [json.dumps(record, ensure_ascii=dice.random() < 0.5) for record in _records(dice)]
    lines = [line if dice.random() < 0.9 else line[: len(line) // 2] for line in lines]
    return "\n".join(lines).encode(dice.choice(("utf-8", "utf-8", "gb18030", "utf-16")), "replace")


def array(dice: random.Random) -> bytes:
    value = [r if dice.random() < 0.8 else prose(dice, 50) for r in _records(dice)]
    if dice.random() < 0.05:
        return b"[" * 100_000 + b"]" * 100_000
    return json.dumps(value, ensure_ascii=dice.random() < 0.5, indent=dice.choice((None, 1))).encode("utf-8", "replace")


def parquet(dice: random.Random) -> bytes:
    texts = [prose(dice, 100) if dice.random() < 0.9 else None for _ in range(dice.randint(0, 8))]
    column = pa.array(texts, dice.choice((pa.string(), pa.large_string())))
    table = pa.table(
        {dice.choice(("text", "text", "text", "body")): column, "title": [str(i) for i in range(len(texts))]}
    )
    stream = io.BytesIO()
    pq.write_table(
        table, stream, row_group_size=dice.choice((2, 100)), use_dictionary=dice.random() < 0.5,
        compression=dice.choice(("none", "snappy", "gzip", "zstd", "brotli", "lz4")),
        write_page_checksum=dice.random() < 0.3, data_page_version=dice.choice(("1.0", "2.0")),
    )  # fmt: skip
    return stream.getvalue()


def epub(dice: random.Random) -> bytes:
    chapters = [prose(dice, 150) for _ in range(dice.randint(1, 4))]
    names = [f"第{i} 章.xhtml" if dice.random() < 0.2 else f"c{i}.xhtml" for i in range(len(chapters))]
    items = "".join(f'<item id="c{i}" href="{n}" media-type="application/xhtml+xml"/>' for i, n in enumerate(names))
    spine = "".join(f'<itemref idref="c{i}"/>' for i in range(len(names)))
    container = (
        '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
        '<rootfile full-path="o/book.opf" media-type="application/oebps-package+xml"/></rootfiles></container>'
    )
    package = (
        '<package xmlns="http://www.idpf.org/2007/opf"><metadata xmlns:dc="http://purl.org/dc/elements/1.1/">'
        f"<dc:title>书</dc:title></metadata><manifest>{items}</manifest><spine>{spine}</spine></package>"
    )
    files = {"META-INF/container.xml": container, "o/book.opf": package}
    for name, chapter in zip(names, chapters, strict=True):
        if dice.random() < 0.9:
            paragraphs = "".join(f"<p>{line}</p>" for line in chapter.splitlines())
            files[f"o/{name}"] = f"<html xmlns='http://www.w3.org/1999/xhtml'><body>{paragraphs}</body></html>"
    return _zipped(dice, {"mimetype": b"application/epub+zip"} | {name: c.encode() for name, c in files.items()})


def archive(dice: random.Random) -> bytes:
    members = {}
    for i in range(dice.randint(0, 5)):
        suffix, make = dice.choice((*SOUND.items(),))
        if suffix != ".zip" or dice.random() < 0.1:
            data = damaged(make(dice), dice)[1] if dice.random() < 0.3 else make(dice)
            members[dice.choice(("", "卷/", "_a/", "../")) + f"{i}{suffix}"] = data
    return _zipped(dice, members)


def _zipped(dice: random.Random, members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(
        stream, "w", dice.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA))
    ) as file:
        for name, data in members.items():
            file.writestr(zipfile.ZipInfo(name), data, dice.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))
    return stream.getvalue()


def _compressed(pack: Callable[[bytes], bytes]) -> Callable[[random.Random], bytes]:
    return lambda dice: pack(dice.choice((text, jsonl, array))(dice))


def _zstd(data: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(data, asbytes=True))


SOUND: dict[str, Callable[[random.Random], bytes]] = {
    ".txt": text, ".jsonl": jsonl, ".json": array, ".parquet": parquet, ".epub": epub, ".zip": archive,
    ".txt.gz": _compressed(gzip.compress), ".jsonl.zst": _compressed(_zstd), ".txt.bz2": _compressed(bz2.compress),
    ".json.xz": _compressed(lzma.compress),
}  # fmt: skip
MAGIC = (
    b"PAR1",
    b"PK\x03\x04",
    b"\x1f\x8b\x08",
    b"\x28\xb5\x2f\xfd",
    b"BZh9",
    b"\xfd7zXZ\x00",
    b"\xff\xfe",
    b"[{",
    b'{"',
)


def damaged(data: bytes, dice: random.Random) -> tuple[str, bytes]:
    """What was done to the bytes, and what came of them."""
    size = len(data)
    at, other = sorted((dice.randrange(size + 1), dice.randrange(size + 1)))
    kind = dice.choice(
        ("whole", "truncated", "flipped", "spliced", "appended", "zeroed", "cut out", "doubled", "nul", "noise", "empty",
         "header only", "huge line", "blank", "beheaded", "tail flipped")
    )  # fmt: skip
    if kind == "truncated":
        data = data[:at]
    elif kind in ("flipped", "tail flipped") and data:
        changed = bytearray(data)
        low = max(0, size - 200) if kind == "tail flipped" else 0
        for _ in range(dice.choice((1, 3, 30))):
            changed[dice.randrange(low, size)] = dice.randrange(256)
        data = bytes(changed)
    elif kind == "spliced":
        data = data[:at] + dice.choice((text, jsonl, parquet, epub))(dice)[at // 2 :]
    elif kind == "appended":
        data += dice.choice((dice.randbytes(50), text(dice), data, b"\0" * 512))
    elif kind == "zeroed":
        data = data[:at] + bytes(other - at) + data[other:]
    elif kind == "cut out":
        data = data[:at] + data[other:]
    elif kind == "doubled":
        data = data[:other] + data[at:]
    elif kind == "nul":
        data = data[:at] + b"\0" + data[at:]
    elif kind == "noise":
        data = dice.randbytes(dice.choice((1, 10, 1000)))
    elif kind == "empty":
        data = b""
    elif kind == "header only":
        data = dice.choice(MAGIC) + dice.randbytes(dice.choice((0, 4, 300)))
    elif kind == "huge line" and dice.random() < 0.1:
        data = data[:at] + "一二三".encode() * dice.choice((1000, 400_000)) + data[at:]
    elif kind == "blank":
        data = dice.choice((b"\n", b" \r\n", b"\xef\xbb\xbf", "　\n".encode(), b"\xff\xfe")) * dice.choice((1, 100))
    elif kind == "beheaded":
        data = data[dice.choice((1, 2, 3, 8, 100)) :]
    return kind, data


def _name(dice: random.Random, number: int) -> bytes:
    hostile = (
        "有 空 格", "#", "a#b#2", "?", "%41%zz", "百分之%", "中文书名", "-rf", "--help", "'\"", "*", "[x]", "{}", "a\\b",
        "长" * 60, "x" * 200, "é\u0301", "\u202e", "line\nbreak", "tab\t", "$(x)", "~", "a&b;c", "😀", "s3:",
    )  # fmt: skip
    stem = f"{dice.choice(hostile)}{number}" if dice.random() < 0.2 else f"f{number:05}"
    if dice.random() < 0.01:
        return stem.encode() + "旧".encode("gb18030")
    return (dice.choice((".", "_")) if dice.random() < 0.01 else "").encode() + stem.encode()


def make(folder: Path, files: int, seed: int) -> collections.Counter[str]:
    """Fill a folder; how many files of each kind of damage there are."""
    dice = random.Random(seed)
    counts: collections.Counter[str] = collections.Counter()
    root = os.fsencode(folder)
    for number in range(files):
        suffix, sound = dice.choice((*SOUND.items(),))
        kind, data = damaged(sound(dice), dice)
        if dice.random() < 0.1:
            suffix = dice.choice((*SOUND, "", ".TXT", ".doc", ".gz", ".html", ".zst", ".text", ".jsonl.gz.gz"))
        directory = os.path.join(root, dice.choice((b"", b"a", b"b c", b"d.txt", "卷".encode(), b"e.zip", b"_h")))
        os.makedirs(directory, exist_ok=True)
        with open(os.path.join(directory, _name(dice, number) + suffix.encode()), "wb") as file:
            file.write(data)
        counts[kind] += 1
    _strange(folder)
    return counts


def _strange(folder: Path) -> None:
    """What has a name but is no file: directories, pipes, sockets, links to nowhere and to themselves."""
    (folder / "directory.txt").mkdir()
    (folder / "directory.jsonl.gz").mkdir()
    os.mkfifo(folder / "pipe.txt")
    (folder / "loop").symlink_to(folder)
    (folder / "self.txt").symlink_to("self.txt")
    (folder / "nowhere.txt").symlink_to("missing.txt")
    here = os.getcwd()
    try:  # a socket's path may have 100 characters
        os.chdir(folder)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("socket.txt")
    finally:
        os.chdir(here)


def listed(folder: Path) -> list[str]:
    """Every regular file, by the name that `prepare` shows it under."""
    found = [os.path.join(root, name) for root, _, names in os.walk(os.fsencode(folder)) for name in names]
    return [path.decode("utf-8", "backslashreplace") for path in found if os.path.isfile(path)]


def accounts(folder: Path, output: Path) -> tuple[list[str], dict[str, Any]]:
    """What does not add up in a corpus that was prepared of a folder with `--document_unit work`; and figures."""
    manifest = json.loads((output / "manifest.json").read_text("utf-8"))
    counts, inputs = manifest["counts"], manifest["inputs"]
    tables = {
        name: [row for path in sorted((output / name).glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
        for name in ("documents", "heldout", "duplicates", "rejected", "removed")
    }
    sources = [entry["source"] for entry in inputs]
    rejected = tables["rejected"]
    known = {*sources, *(row["source"] for row in rejected)}
    above = {
        name[:end] for name in known for end in range(len(name)) if name[end] == "/"
    }  # an archive's, of its members
    wrong = [f"nowhere: {path!r}" for path in listed(folder) if path not in known and path not in above]

    def expect(what: str, found: object, expected: object) -> None:
        if found != expected:
            wrong.append(f"{what}: {found}, not {expected}")

    expect("sources named twice", len(set(sources)), len(sources))
    per_input = [(e["source"], e["texts"], e["documents"], e["rejected"]) for e in inputs]
    wrong += [f"unaccounted: {entry}" for entry in per_input if entry[1] != entry[2] + entry[3] or not entry[1]]
    refused = len(rejected) - sum(entry["rejected"] for entry in inputs)
    expect("inputs", counts["inputs"], len(inputs) + refused)
    expect("texts", counts["texts"], sum(entry["texts"] for entry in inputs) + refused)
    whole = [row for row in tables["duplicates"] if row["doc_id"] not in {d["doc_id"] for d in tables["documents"]}]
    for name, rows in {**tables, "duplicates": whole}.items():
        expect(name, counts[name], len(rows))
    kept = sum(counts[name] for name in ("documents", "heldout", "duplicates", "rejected"))
    expect("documents + heldout + duplicates + rejected", kept, counts["texts"])
    wrong += [f"empty document: {row['source']}" for row in tables["documents"] if not row["text"].strip()]
    reasons = collections.Counter(row["reason"] for row in rejected)
    return wrong, {
        **{k: v for k, v in counts.items() if k != "removed_by_rule"},
        "reasons": dict(reasons.most_common()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--work", type=Path, help="where files and results go, and stay; default: a temporary folder")
    args = parser.parse_args()
    work = args.work or Path(tempfile.mkdtemp(prefix="raystyle-fuzz-"))
    folder, output = work / "in", work / "out"
    folder.mkdir(parents=True)
    counts = make(folder, args.files, args.seed)
    command = [sys.executable, "-m", "raystyle", "prepare", "--dataset_path", str(folder), "--output_dir", str(output)]
    command += ["--dedup", "near", "--document_unit", "work", "--num_cpus", "2"]
    started = time.monotonic()
    done = subprocess.run(command, cwd=HERE.parent, stderr=subprocess.PIPE, text=True)
    seconds = time.monotonic() - started
    if done.returncode:
        raise SystemExit(f"exit {done.returncode}:\n{done.stderr[-5000:]}")
    wrong, figures = accounts(folder, output)
    again = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True)
    if again.returncode or "unchanged" not in again.stdout:
        wrong.append(f"the same command again: exit {again.returncode}, {again.stdout[:200]} {again.stderr[-500:]}")
    print("\n".join(wrong) or "every input is accounted for")
    if args.files >= 10_000 and not wrong:
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        report(args, counts, figures, seconds, size)
    if not args.work:
        shutil.rmtree(work)
    sys.exit(bool(wrong))


def report(
    args: argparse.Namespace, counts: dict[str, int], figures: dict[str, Any], seconds: float, size: int
) -> None:
    names = ("inputs", "texts", "documents", "heldout", "duplicates", "rejected", "removed")
    lines = [
        "# Damaged files", "",
        f"`python bench/fuzz.py --files {args.files} --seed {args.seed}`: {size / 1e6:.0f} MB in {sum(counts.values()):,} files, prepared in",
        f"{seconds:.0f} s on two cores of a virtual machine with `--dedup near --document_unit work`. Exit status 0; every file is an",
        "input of the manifest or stands in rejected/; texts = documents + heldout + duplicates + rejected; the same command",
        "again: unchanged.", "",
        "| | |", "|---|---|", *(f"| {name} | {figures[name]:,} |" for name in names), "",
        "| what was done to a file | files |", "|---|---|", *(f"| {k} | {n:,} |" for k, n in sorted(counts.items())), "",
        "| why a text was rejected | texts |", "|---|---|", *(f"| {k} | {n:,} |" for k, n in figures["reasons"].items()),
    ]  # fmt: skip
    (HERE / "results" / "fuzz.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
