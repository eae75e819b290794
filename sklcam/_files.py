"""Write files completely or not at all."""

from __future__ import annotations

import os
import re
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a temporary file next to the wanted one, and replace that once it is complete.

    Parameters
    ----------
    path : str or path-like
        The wanted file. An existing file stays until then; a link is followed.

    Yields
    ------
    file
        Open for reading and writing bytes.

    Raises
    ------
    IsADirectoryError, FileNotFoundError
        If the path is a folder, or its folder does not exist. Nothing has been written then.
    OSError
        If the path is a device, a pipe or a socket, which a file would replace.

    Notes
    -----
    Temporary files that a killed process has left for the same file are removed.
    """
    final = Path(os.path.realpath(path))
    if final.is_dir():
        raise IsADirectoryError(f"{str(path)!r} is a folder. Give the path of a file in it.")
    if not final.parent.is_dir():
        raise FileNotFoundError(
            f"There is no folder {str(final.parent)!r} to save to. Make it first."
        )
    if final.exists() and not final.is_file():
        raise OSError(f"{str(path)!r} is a device, a pipe or a socket. Give the path of a file.")
    _sweep(final)
    # In the same folder, as a file is only replaced in one step within a file system. The name is
    # shortened, as a long one leaves no room for a suffix.
    beside = final.with_name(f".{final.name[:64]}.{secrets.token_hex(8)}.tmp")
    try:
        with beside.open("x+b") as file:
            with suppress(OSError):  # not every file system has locks
                _lock(file)
            yield file
            file.flush()
            os.fsync(file.fileno())
        if final.exists():
            beside.chmod(final.stat().st_mode & 0o7777)
        os.replace(beside, final)
    except BaseException:
        with suppress(OSError):
            beside.unlink()
        raise
    _flush_folder(final.parent)


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """Write one of very many files, completely or not at all.

    Unlike :func:`replacing`, this neither searches the folder for files that killed processes have
    left, which would take longer with each file, nor waits until the file is on the disk.

    Parameters
    ----------
    path : str or path-like
        The path of the file, in an existing folder.
    content : bytes
    """
    final = Path(path)
    beside = final.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        beside.write_bytes(content)
        os.replace(beside, final)
    except BaseException:
        with suppress(OSError):
            beside.unlink()
        raise


def _sweep(final: Path) -> None:
    """Remove temporary files of the same file whose processes have ended, as nothing locks them."""
    ours = re.compile(rf"\.{re.escape(final.name[:64])}\.[0-9a-f]{{16}}\.tmp")
    for path in [path for path in final.parent.iterdir() if ours.fullmatch(path.name)]:
        with suppress(OSError):
            # A new file may not be locked yet.
            if path.is_symlink() or not path.is_file() or time.time() - path.stat().st_mtime < 60:
                continue
            with path.open("rb") as file:
                _lock(file)
                path.unlink()


def _lock(file: BinaryIO) -> None:
    """Lock a file until it is closed or the process ends; an OSError if another process has it."""
    if sys.platform != "win32":  # Windows does not let other processes remove an open file anyway
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _flush_folder(folder: Path) -> None:
    """Write the new name to the disk as well, if the system supports this."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
