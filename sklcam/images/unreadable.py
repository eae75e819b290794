"""Find files that cannot be read as images, before one of them ends hours of work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from joblib import cpu_count

from sklcam.images._sources import open_source

_AT_ONCE = 256  # files between reports of progress
_MOST_THREADS = 8


def unreadable_files(
    paths: Sequence[str], *, progress: Callable[[int], None] | None = None
) -> dict[str, str]:
    """Return the files that cannot be read as images, each with the reason.

    Every file is decoded as an explainer would decode it, so truncated files are found too. JPEG
    files are decoded at the smallest size that the format offers, which takes a fraction of the
    time. Decoders run in threads and release Python's lock.

    Parameters
    ----------
    paths : sequence of str
        The files to read.
    progress : callable or None, default=None
        Called with the number of files that have been read since the last call.

    Returns
    -------
    dict of str to str
        The reasons by path, in the order of the paths; empty if all files can be read.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from PIL import Image
    >>> from sklcam.images.unreadable import unreadable_files
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     good, bad = f"{folder}/good.png", f"{folder}/bad.png"
    ...     Image.new("RGB", (8, 8)).save(good)
    ...     _ = Path(bad).write_bytes(Path(good).read_bytes()[:40])
    ...     [Path(path).name for path in unreadable_files([good, bad])]
    ['bad.png']
    """
    found: dict[str, str] = {}
    with ThreadPoolExecutor(min(_MOST_THREADS, cpu_count())) as pool:
        for start in range(0, len(paths), _AT_ONCE):
            some = paths[start : start + _AT_ONCE]
            for path, reason in zip(some, pool.map(_reason, some), strict=True):
                if reason is not None:
                    found[path] = reason
            if progress is not None:
                progress(len(some))
    return found


def _reason(path: str) -> str | None:
    """Return why a file cannot be read as an image, or None if it can."""
    try:
        for _ in open_source([path]).read_drafts([0], least=lambda size: (1, 1)):
            pass
    except ValueError as error:  # the source turns any error of a decoder into this
        told = str(error.__cause__ or error).replace(repr(path), "")  # the caller knows the path
        return " ".join(told.split())
    return None
