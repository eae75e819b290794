"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file beside the wanted one, and put it in its place once it is complete.

    Parameters
    ----------
    path : str or path-like
        The wanted one. Whatever is there stays until then; a link is followed.

    Yields
    ------
    file
        Open to read and write bytes.

    Raises
    ------
    IsADirectoryError, FileNotFoundError
        If the path is a folder, or in none that exists; before anything is written.
    """
    final = Path(os.path.realpath(path))
    if final.is_dir():
        raise IsADirectoryError(f"{str(path)!r} is a folder; give the path of a file in it.")
    if not final.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {str(final.parent)!r} to save to.")
    # In the same folder: a file is only replaced in one step within a file system. The name is
    # cut, as those of long files have no room for a suffix.
    beside = final.with_name(f".{final.name[:64]}.{secrets.token_hex(8)}.tmp")
    try:
        with beside.open("x+b") as file:
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


def _flush_folder(folder: Path) -> None:
    """Have the new name on the disk, too, where the system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
