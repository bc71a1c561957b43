"""Keys of the API: read from a file, kept as hashes, compared in constant time."""

import dataclasses
import hashlib
import hmac
import os
import re
import stat

from raystyle.errors import ConfigError

MIN_KEY_CHARS = 16
# A name stands in logs and metrics. Neither it nor a key may hold a colon, which divides them.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
KEY = re.compile(r"[!-9;-~]+")


@dataclasses.dataclass(frozen=True)
class Keys:
    """Names with the SHA-256 of their keys; empty where no key is asked for. `warnings` are for whoever starts the server."""

    digests: tuple[tuple[str, bytes], ...] = ()
    warnings: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.digests)

    def name_of(self, key: str) -> str | None:
        """Whose key it is. Every key is compared, so that the time tells nothing."""
        asked, found = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest(), None
        for name, digest in self.digests:
            if hmac.compare_digest(asked, digest):
                found = name
        return found


def read_keys(path: str | None) -> Keys:
    """Keys of a file with one `name:key` or `key` a line; blank lines and those that begin with # are skipped.

    A key without a name is called after its line, `line-3`. Raises `ConfigError`, which never shows a key, where the file
    cannot be read, others may write it, or a line is no key of 16 characters or more.
    """
    if path is None:
        return Keys()
    try:
        with open(path, encoding="utf-8") as file:
            mode, lines = os.fstat(file.fileno()).st_mode, file.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the key file `{path}` cannot be read: {error}\nhint: a text file with a key a line"
        ) from error
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(f"others may write the key file `{path}`\nhint: chmod 600 {path}")
    readable = mode & (stat.S_IRGRP | stat.S_IROTH)
    warnings = (f"others may read the key file `{path}`; chmod 600 {path}",) if readable else ()
    digests: dict[str, bytes] = {}
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        name, colon, key = line.partition(":")
        name, key = (name.strip(), key.strip()) if colon else (f"line-{number}", line)
        digest = hashlib.sha256(key.encode()).digest()
        place = f"line {number} of the key file `{path}`"
        if not NAME.fullmatch(name):
            raise ConfigError(f"{place} has a name that is none\nhint: letters, digits, `.`, `_` and `-`, 64 at most")
        if len(key) < MIN_KEY_CHARS or not KEY.fullmatch(key):
            raise ConfigError(
                f"{place} has a key of {len(key)} characters\n"
                f"hint: {MIN_KEY_CHARS} or more of ASCII without spaces and colons; `openssl rand -hex 24` makes one"
            )
        if name in digests or digest in digests.values():
            raise ConfigError(f"{place} repeats a name or a key\nhint: give each its own")
        digests[name] = digest
    if not digests:
        raise ConfigError(f"the key file `{path}` has no key\nhint: write one a line; `openssl rand -hex 24` makes one")
    return Keys(tuple(digests.items()), warnings)
