"""manifest.json of a prepared corpus: what went in, by which rules, what came out. Its presence means complete."""

import dataclasses
from typing import Any

from raystyle import storage
from raystyle.corpus.sources import UNIT_BYTES, Source
from raystyle.errors import DataError, RunError

NAME = "manifest.json"
FORMAT = 1
# Raised whenever the same inputs and config would give another result; parts of another version are not reused.
CODE_VERSION = 6


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A prepared corpus. `output_dir` and `unchanged` belong to the call that returned it and are not in the file."""

    raystyle: str
    inputs: list[dict[str, Any]]
    rules: dict[str, Any]
    tokenizer: dict[str, Any] | None
    config: dict[str, Any]
    counts: dict[str, Any]
    shards: list[dict[str, Any]]
    digest: str
    output_dir: str
    unchanged: bool = False
    format: int = FORMAT

    @property
    def max_seq_length(self) -> int:
        return int(self.config["max_seq_length"])

    @property
    def segment_length(self) -> int:
        return int(self.config["segment_length"])

    @property
    def identity(self) -> dict[str, Any]:
        """What must be equal for another call to be the same work, beside the inputs."""
        return identity(self.config, self.rules, self.tokenizer)

    def describe(self) -> str:
        """What came in and what became of it, as lines for a person."""
        c = self.counts
        aside = [("held out", c["heldout"]), ("duplicates", c["duplicates"]), ("rejected", c["rejected"])]
        set_aside = "".join(f", {count:,} {what}" for what, count in aside if count)
        lines = {
            "files": f"{c['inputs']:,}, with {c['texts']:,} texts",
            "documents": f"{c['documents']:,}{set_aside}",
            "text": f"{c['characters_kept']:,} of {c['characters_in']:,} characters; {c['removed']:,} removals by rules",
        }
        if c["duplicate_chapters"]:
            lines["chapters"] = f"{c['duplicate_chapters']:,} stand elsewhere too, and were taken out"
        if c["rows"] is not None:
            share = c["tokens"] / max(c["rows"] * self.max_seq_length, 1)
            lines["rows"] = f"{c['rows']:,} of {self.max_seq_length:,} tokens, {share:.2%} of them real"
        lines["report"] = storage.join(self.output_dir, "report.html")
        text = [f"  {name:<12} {line}" for name, line in lines.items()]
        return "\n".join(["prepared before, unchanged" if self.unchanged else "prepared", *text])

    def save(self) -> None:
        """Write manifest.json: the last thing a prepare does."""
        content = dataclasses.asdict(self)
        del content["output_dir"], content["unchanged"]
        lengths = {name: self.config[name] for name in ("max_seq_length", "segment_length", "records", "document_unit")}
        storage.write_json(storage.join(self.output_dir, NAME), {"format": FORMAT, **content, **lengths})


def identity(config: dict[str, Any], rules: dict[str, Any], tokenizer: dict[str, Any] | None) -> dict[str, Any]:
    """The fields of the config, and the digests of rules and tokenizer, by the names the user knows."""
    return {**config, "rules": rules["digest"], "tokenizer": tokenizer["digest"] if tokenizer else None}


def read_manifest(output_dir: str) -> Manifest:
    """The manifest of a complete prepared corpus. Raises `DataError` where there is none."""
    uri = storage.join(storage.absolute(output_dir), NAME)
    if not storage.exists(uri):
        raise DataError(
            f"`{output_dir}` holds no {NAME}: it is no prepared corpus, or not complete\nhint: run `raystyle prepare`"
        )
    content = storage.read_json(uri)
    if content.get("format") != FORMAT:
        raise DataError(
            f"`{uri}` has format {content.get('format')}, not {FORMAT}\nhint: prepare it again with this version"
        )
    names = {field.name for field in dataclasses.fields(Manifest)}
    return Manifest(
        **{name: content[name] for name in content if name in names}, output_dir=storage.absolute(output_dir)
    )


def find_finished(output: str, wanted: dict[str, Any], sources: list[Source]) -> Manifest | None:
    """The corpus at `output` if it is this very work, done. Raises `RunError` if it is something else."""
    if not storage.exists(storage.join(output, NAME)):
        if storage.exists(output) and not _is_begun(output) and storage.list_files(output, hidden=True):
            raise RunError(f"`{output}` is not empty and holds no prepared corpus\nhint: choose another `--output_dir`")
        return None
    found = read_manifest(output)
    differing = [name for name in wanted if found.identity.get(name) != wanted[name]]
    if differing:
        name = differing[0]
        change = f" ({found.identity.get(name)}, now {wanted[name]})" if name in found.config else ""
        raise RunError(
            f"`{output}` was prepared with another `{name}`{change}\n"
            "hint: choose another `--output_dir`, or delete that directory to make it anew"
        )
    if changed := _changed_input(found.inputs, sources):
        raise RunError(
            f"`{output}` was prepared from other inputs: {changed}\n"
            "hint: choose another `--output_dir`, or delete that directory to make it anew"
        )
    have = {storage.basename(file.uri) for file in storage.list_files(output) if "/rows/" in file.uri[len(output) :]}
    return found if {storage.basename(shard["path"]) for shard in found.shards} <= have else None


def _is_begun(output: str) -> bool:
    """Whether an interrupted prepare left its work there: a folder called `_work` alone may be anybody's."""
    work = storage.join(output, "_work")
    return storage.exists(work) and any(
        # Also the name that it has while it is being written.
        storage.basename(file.uri).lstrip(".").startswith(("started", "lock"))
        for file in storage.list_files(work, hidden=True)
    )


def _changed_input(inputs: list[dict[str, Any]], sources: list[Source]) -> str | None:
    """Which source is not what it was. Equal size and time of writing are trusted; else the content decides.

    Of a zip's members, and of what was read in parts or not to its end, the whole has no hash to compare: then the time
    of writing decides.
    """
    before = {entry["source"]: entry for entry in inputs}
    for source in sources:
        entry = before.pop(source.uri, None)
        if entry is None:
            return f"`{source.uri}` is new"
        if entry["size"] != source.size:
            return f"`{source.uri}` has changed"
        if entry["mtime_ns"] == source.mtime_ns:
            continue
        if source.member or not entry["sha256"] or source.size > UNIT_BYTES:
            return f"`{source.uri}` has been written again since"
        with storage.open_input(source.location) as file:
            if entry["sha256"] != storage.sha256(iter(lambda: file.read(1 << 24), b"")):
                return f"`{source.uri}` has changed"
    return f"`{next(iter(before))}` is gone" if before else None
