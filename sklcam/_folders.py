"""Folders of results, written in chunks by one process or several, and read once complete.

A folder is made with its description, completely or not at all, and a chunk is marked once it is on
the disk. Work that was killed therefore continues where it stopped, and nothing is written twice.
The contents of chunks do not matter here.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from sklcam._files import replacing
from sklcam._validation import check_count, describe

FORMAT = "sklcam chunks, 1"
_ABOUT, _DONE = "about.json", "done"
_SECONDS_BETWEEN_LOOKS = 1.0

Shard = tuple[int, int]


def check_shard(shard: object) -> None:
    """Raise a ValueError unless shard is (index, count) for one of several processes, or None."""
    if shard is None:
        return
    if (
        not isinstance(shard, tuple | list)
        or len(shard) != 2
        or not all(type(each) is int for each in shard)
    ):
        raise ValueError(
            "shard must be (index, count), as in (accelerator.process_index, "
            f"accelerator.num_processes), or None; got {describe(shard)}."
        )
    index, count = shard
    if not 0 <= index < count:
        raise ValueError(
            f"shard must be (index, count) with 0 <= index < count; got {tuple(shard)}."
        )


class ChunkFolder:
    """A folder of chunks with the same number of images each, except that the last may have fewer.

    Parameters
    ----------
    path : path-like
        The path of an existing folder.

    Raises
    ------
    ValueError
        If there is no such folder, or it is another kind of folder.

    Attributes
    ----------
    path : Path
    about : dict
        The description of the folder: "kind", "n_images", "chunk_size", "depends_on" and more.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from sklcam._folders import ChunkFolder
    >>> with tempfile.TemporaryDirectory() as place:
    ...     about = {"kind": "maps", "n_images": 5, "chunk_size": 2, "depends_on": {}}
    ...     folder = ChunkFolder.made(Path(place) / "maps", about, fill=lambda path: None)
    ...     folder.finish(1)
    ...     list(folder.undone()), folder.n_done, folder.is_complete
    ([range(0, 1), range(2, 3)], 2, False)
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        try:
            about = json.loads((self.path / _ABOUT).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise ValueError(
                f"{str(path)!r} is not a folder of maps or values, as it has no {_ABOUT}. Give the "
                "path of one that sklcam has written."
            ) from None
        except ValueError:
            about = None
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            raise ValueError(
                f"{_ABOUT} in {str(path)!r} does not have the format {FORMAT!r}. Give the path of "
                "a folder that this version of sklcam has written."
            )
        self.about: dict[str, Any] = about
        for name in ("n_images", "chunk_size"):
            check_count(f"{name} in {str(self.path / _ABOUT)!r}", about.get(name))

    @classmethod
    def made(
        cls, path: str | os.PathLike[str], about: Mapping[str, Any], fill: Callable[[Path], None]
    ) -> ChunkFolder:
        """Make a folder, completely or not at all, unless another process has just made it.

        Parameters
        ----------
        path : path-like
        about : mapping
            The attribute without the format. All of it must be JSON.
        fill : callable
            Writes the initial contents into the folder.

        Returns
        -------
        ChunkFolder
            The folder that now exists; see :meth:`check`.
        """
        final = Path(path)
        final.parent.mkdir(parents=True, exist_ok=True)
        _sweep(final)
        beside = final.with_name(f".{final.name[:64]}.{secrets.token_hex(8)}.tmp")
        beside.mkdir()
        try:
            (beside / _DONE).mkdir()
            with replacing(beside / _ABOUT) as file:
                file.write(json.dumps({"format": FORMAT, **about}, indent=1).encode())
            fill(beside)
            _flush(beside)
            try:
                os.rename(beside, final)  # fails if something other than an empty folder is there
            except OSError:
                if not (final / _ABOUT).is_file():
                    raise
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        return cls(final)

    def check(self, kind: str, n_images: int, depends_on: Mapping[str, Any]) -> None:
        """Raise a ValueError that says what differs, unless this work can continue in the folder.

        Parameters
        ----------
        kind : str
        n_images : int
        depends_on : mapping
            Everything that the results depend on, by its name in messages. All of it must be JSON.
        """
        if self.about.get("kind") != kind:
            raise ValueError(
                f"{str(self.path)!r} holds {self.about.get('kind')}, not {kind}. Give another path."
            )
        now = json.loads(json.dumps({"number of images": n_images, **depends_on}))
        there = {"number of images": self.about["n_images"], **self.about.get("depends_on", {})}
        names = [name for name in {**now, **there} if now.get(name) != there.get(name)]
        if names:
            told = [_difference(name, there.get(name), now.get(name)) for name in names]
            raise ValueError(
                f"{str(self.path)!r} was begun with something else, and was left unchanged. These "
                f"differ: {'; '.join(told)}. Continue as it was begun, or give another path."
            )

    # Chunks

    @property
    def n_images(self) -> int:
        return int(self.about["n_images"])

    @property
    def chunk_size(self) -> int:
        return int(self.about["chunk_size"])

    @property
    def n_chunks(self) -> int:
        return -(-self.n_images // self.chunk_size)

    def rows(self, chunks: range) -> range:
        """Return the images of some consecutive chunks."""
        stop = min(chunks.stop * self.chunk_size, self.n_images)
        return range(min(chunks.start * self.chunk_size, stop), stop)

    def share(self, shard: Shard | None) -> range:
        """Return the chunks for one of several processes; all of them if there is only one."""
        index, count = (0, 1) if shard is None else shard
        return range(self.n_chunks * index // count, self.n_chunks * (index + 1) // count)

    def undone(self, shard: Shard | None = None) -> Iterator[range]:
        """Yield the chunks of a share that are not done yet, as ranges of consecutive chunks."""
        share, done = self.share(shard), self._done()
        start = share.start
        for chunk in [*share, share.stop]:
            if chunk == share.stop or chunk in done:
                if start < chunk:
                    yield range(start, chunk)
                start = chunk + 1

    def ended(self, run: range, start: int, stop: int) -> list[int]:
        """Return the chunks of a run whose last rows are among the rows from start to stop."""
        chunks = range(start // self.chunk_size, -(-stop // self.chunk_size))
        return [
            chunk
            for chunk in chunks
            if chunk in run and self.rows(range(chunk, chunk + 1)).stop <= stop
        ]

    def finish(self, chunk: int, content: bytes = b"") -> None:
        """Mark a chunk as done, and keep some content in the mark."""
        with replacing(self._mark(chunk)) as file:
            file.write(content)

    def content(self, chunk: int) -> bytes:
        """Return the content in the mark of a chunk."""
        return self._mark(chunk).read_bytes()

    @property
    def n_done(self) -> int:
        """The number of images that are done."""
        return sum(len(self.rows(range(chunk, chunk + 1))) for chunk in self._done())

    @property
    def is_complete(self) -> bool:
        return len(self._done()) == self.n_chunks

    def check_complete(self) -> None:
        """Raise a ValueError unless all chunks are done."""
        if not self.is_complete:
            raise ValueError(
                f"{str(self.path)!r} has only {self.n_done} of {self.n_images} images. Repeat the "
                "call that made it, which continues where it stopped."
            )

    def wait(self, waited: Callable[[int], None]) -> None:
        """Wait until other processes have done their chunks; pass ``waited`` the images done."""
        while not self.is_complete:
            waited(self.n_done)
            time.sleep(_SECONDS_BETWEEN_LOOKS)

    def _mark(self, chunk: int) -> Path:
        return self.path / _DONE / f"{chunk:08d}"

    def _done(self) -> set[int]:
        names = (entry.name for entry in os.scandir(self.path / _DONE))
        found = {int(name) for name in names if name.isdecimal()}
        return found.intersection(range(self.n_chunks))


def _difference(name: str, there: Any, now: Any) -> str:
    shown = [describe(each) if each is None else str(each) for each in (there, now)]
    if any("sha256:" in each or len(each) > 200 for each in shown):
        return name
    return f"{name} ({shown[0]} there, {shown[1]} now)"


def _flush(folder: Path) -> None:
    """Write the files of a folder to the disk before it is moved to its place."""
    for path in folder.iterdir():
        if path.is_file():
            with path.open("r+b") as file:
                os.fsync(file.fileno())


def _sweep(final: Path) -> None:
    """Remove unfinished folders that killed processes have left. Making one takes only a moment."""
    for path in final.parent.glob(f".{_escaped(final.name[:64])}.*.tmp"):
        with suppress(OSError):
            if path.is_dir() and time.time() - path.stat().st_mtime > 3600:
                shutil.rmtree(path)


def _escaped(name: str) -> str:
    """Return a pattern that matches only this name."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
