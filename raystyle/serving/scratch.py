"""A replica's own folder for its copies of adapters: gone with it, and if it was killed, with the next one's start.

A lock on the folder says that its replica lives; it ends with the process, whatever ends that. What cleans temporary
folders by age (systemd-tmpfiles) leaves locked ones alone too.
"""

import fcntl
import glob
import os
import shutil
import tempfile

PREFIX = "raystyle-serve-"


class Scratch:
    """A new folder in TMPDIR. What replicas left there that no longer live is removed first."""

    def __init__(self) -> None:
        for left in glob.glob(os.path.join(glob.escape(tempfile.gettempdir()), f"{PREFIX}*")):
            if (lock := _lock(left)) is not None:
                shutil.rmtree(left, ignore_errors=True)
                os.close(lock)
        # It gets the name that others look for when it is locked, so that none of them takes it for a dead one's.
        made = tempfile.mkdtemp(prefix=f".{PREFIX}")
        self._held = _lock(made)
        self.path = os.path.join(os.path.dirname(made), os.path.basename(made)[1:])
        os.rename(made, self.path)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        if self._held is not None:
            os.close(self._held)
            self._held = None


def _lock(folder: str) -> int | None:
    """The descriptor that holds a folder's lock; None where somebody else has it, or there is none to be had."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
