"""Many paths: held in one piece, and looked for folder by folder.

A million of them as Python's strings are a million objects, whose counts of references every
process that reads them writes to, so that each process ends up with a copy of its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

import numpy as np

# A folder is listed if at least so many files of it are wanted, and for so many entries for each.
_FEWEST_TO_LIST = 64
_ENTRIES_A_FILE = 20


class Paths(Sequence[str]):
    """Paths in one array, which processes share once they are forked.

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

    A file system far away answers for each path as slowly as it lists a part of a folder. So
    folders are listed of which many files are wanted.
    """
    by_folder: dict[str, list[str]] = {}
    for path in paths:
        by_folder.setdefault(os.path.dirname(path), []).append(path)
    lost: set[str] = set()
    for folder, wanted in by_folder.items():
        unseen = _not_listed(folder, wanted) if len(wanted) >= _FEWEST_TO_LIST else wanted
        # Names may be written in another way than they are listed, and links lead elsewhere.
        lost.update(path for path in unseen if not os.path.isfile(path))
    return [path for path in paths if path in lost] if lost else []


def _not_listed(folder: str, wanted: Sequence[str]) -> Iterator[str]:
    """Yield those of a folder's files that are not among its first entries."""
    names = {os.path.basename(path): path for path in wanted}
    # One that is not there, or may not be listed, tells nothing.
    with suppress(OSError, ValueError), os.scandir(folder or ".") as entries:
        for entry in islice(entries, _ENTRIES_A_FILE * len(wanted)):
            if entry.name in names and entry.is_file():
                del names[entry.name]
                if not names:
                    break
    yield from names.values()
