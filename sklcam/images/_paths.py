"""Many paths: stored in one array, and checked folder by folder.

A million paths as Python strings are a million objects. Every process that reads them writes to
their reference counts, and so ends up with a copy of its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

import numpy as np

# A folder is listed if this many of its files are wanted, up to this many entries for each file.
_FEWEST_TO_LIST = 64
_ENTRIES_A_FILE = 20


class Paths(Sequence[str]):
    """Paths in one array, which forked processes share.

    Examples
    --------
    >>> from sklcam.images._paths import Paths
    >>> paths = Paths(["cats/1.png", "dogs/2.png"])
    >>> paths[-1], len(paths)
    ('dogs/2.png', 2)
    """

    def __init__(self, paths: Iterable[str]):
        encoded = [path.encode("utf-8", "surrogatepass") for path in paths]
        self._ends = np.cumsum([len(each) for each in encoded], dtype=np.int64)
        self._bytes = np.frombuffer(b"".join(encoded), np.uint8)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, i: Any) -> Any:
        row = range(len(self))[i]
        start = self._ends[row - 1] if row else 0
        return self._bytes[start : self._ends[row]].tobytes().decode("utf-8", "surrogatepass")


def missing_files(paths: Iterable[str]) -> list[str]:
    """Return the paths at which there is no file, in their order.

    On a remote file system, checking one path takes as long as listing a part of a folder. Folders
    are therefore listed if many of their files are wanted.
    """
    by_folder: dict[str, list[str]] = {}
    for path in paths:
        by_folder.setdefault(os.path.dirname(path), []).append(path)
    lost: set[str] = set()
    for folder, wanted in by_folder.items():
        unseen = _not_listed(folder, wanted) if len(wanted) >= _FEWEST_TO_LIST else wanted
        # Names may be spelled differently from the listing, and links lead elsewhere.
        lost.update(path for path in unseen if not os.path.isfile(path))
    return [path for path in paths if path in lost] if lost else []


def _not_listed(folder: str, wanted: Sequence[str]) -> Iterator[str]:
    """Yield the wanted files that are not among the first entries of a folder."""
    names = {os.path.basename(path): path for path in wanted}
    # A folder that does not exist, or must not be listed, tells nothing.
    with suppress(OSError, ValueError), os.scandir(folder or ".") as entries:
        for entry in islice(entries, _ENTRIES_A_FILE * len(wanted)):
            if entry.name in names and entry.is_file():
                del names[entry.name]
                if not names:
                    break
    yield from names.values()
