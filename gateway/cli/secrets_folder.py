"""Secrets in a folder: `DIR/SECRET/ENTRY`, for containers that mount it.

A Secret appears whole, by the renaming of a folder: onto one with files in it that fails, so what is there stays.
Containers of other users read the files, so everyone may: who may look into DIR is decided by who mounts it, and on a
host by the rights of the folder that DIR is in.
"""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Self

from gateway.cli.secrets_plan import Content, Place

FILE_MODE = 0o444
FOLDER_MODE = 0o755
UNFINISHED = ".unfinished-"
"""So begins a Secret on its way. No Secret's name begins with a dot."""


class FolderSecrets:
    """The Secrets in a folder. Raises `OSError` where it cannot be read or written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    @contextmanager
    def opened(cls, folder: Path) -> Iterator[Self]:
        """Nobody else makes Secrets there meanwhile. The folder is made if need be."""
        if not folder.is_dir():
            folder.mkdir()
            folder.chmod(FOLDER_MODE)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            # Not every file system can lock a directory; there it goes without, and what a dead run left stays.
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                for left in folder.glob(f"{UNFINISHED}*"):
                    rmtree(left)
            yield cls(folder)
        finally:
            os.close(descriptor)

    async def read(self, place: Place) -> Content | None:
        """The files of one; None: there are none."""
        return _read(self.folder / place.secret)

    async def create(self, place: Place, content: Content) -> bool:
        """Make one; False: it is there."""
        return _create(self.folder, place.secret, content)


def _read(folder: Path) -> Content | None:
    if not folder.is_dir():
        return None
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()} or None


def _create(folder: Path, name: str, content: Content) -> bool:
    beside = Path(mkdtemp(prefix=UNFINISHED, dir=folder))
    try:
        for entry, value in content.items():
            _write(beside / entry, value)
        beside.chmod(FOLDER_MODE)
        _sync(beside)
        beside.rename(folder / name)
    except OSError as error:
        rmtree(beside, ignore_errors=True)
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    _sync(folder)
    return True


def _write(file: Path, value: bytes) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)
    with open(descriptor, "wb") as out:
        # Whatever the umask takes away.
        os.fchmod(descriptor, FILE_MODE)
        out.write(value)
        out.flush()
        os.fsync(descriptor)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
