"""Maps of many images in a folder: written chunk by chunk and read as memory maps.

The folder holds a NumPy file for each method, with room for all images from the start, a record of
everything that the maps depend on, and a mark for each finished chunk. Bytes are written to the
file rather than through a memory map, so that a full disk is an error and processes on several
machines can share the folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from sklcam._folders import ChunkFolder, Shard, check_shard
from sklcam._validation import check_count
from sklcam.explain._arrays import Frame, MapDtype, SentMaps, dtype_of_maps
from sklcam.explain._batches import ExplainedBatch
from sklcam.explain._questions import AnyMethod, Methods
from sklcam.explain.fingerprints import dependencies, described
from sklcam.explain.opened import OpenedImages
from sklcam.networks.fetching import one_behind

if TYPE_CHECKING:
    from sklcam._progress import tqdm
    from sklcam.explain.base import Explainer

KIND = "maps"
_ABOUT_A_CHUNK = 256  # images: seconds of work, and 50 MB of maps of 224 x 224


def write_maps(
    explainer: Explainer,
    X: Any,
    path: str | os.PathLike[str],
    target: Any,
    *,
    method: AnyMethod | Methods | None,
    normalize: bool,
    frame: Frame,
    dtype: MapDtype,
    chunk_size: int | None,
    shard: Shard | None,
    resume: bool,
    num_workers: int | None,
    make_bar: Callable[[int, str, int], tqdm],
) -> None:
    """Write the maps of X to a folder. See ``Explainer.explain_to`` for the parameters."""
    check_shard(shard)
    if frame == "image":
        raise ValueError(
            'explain_to writes maps of one size, so frame must be "input" or "layer"; got "image". '
            "For maps of the images' sizes, use iter_explain, or resize the maps of a row with "
            "to_frame."
        )
    named = explainer.named_methods(method)
    methods = list(named.values())
    numbers = dtype_of_maps(dtype, None, methods, normalize)
    at_layer = explainer.is_at_layer(frame, methods)
    opened = explainer.open(X, num_workers=num_workers)
    question = explainer.as_target(target, len(opened))
    if question.ragged:
        raise ValueError(
            "explain_to writes the same number of maps for each image. Give Box the same number "
            "of boxes for each, or explain one word of each text, or the text as a whole."
        )
    size = chunk_size_for(opened, explainer, chunk_size)
    depends_on = {
        **dependencies(explainer, opened, target),
        "method": [[name, described(each)] for name, each in named.items()],
        "normalize": bool(normalize),
        "frame": frame,
        "dtype": numbers.name,
    }
    about = {
        "kind": KIND,
        "n_images": len(opened),
        "chunk_size": size,
        "names": list(named) if isinstance(method, Mapping | list | tuple) else None,
        "depends_on": depends_on,
    }

    def fill(folder: Path) -> None:
        shapes = [explainer.map_shape(opened, question, each) for each in methods]
        if at_layer:  # one image tells the size of the layer's grid
            batch = next(opened.subset(range(1)).batches())
            asked = explainer.question_of(question, batch)
            maps, *_ = explainer.explain_batch(batch.inputs, asked, methods=methods, at_layer=True)
            shapes = [tuple(each.shape[1:]) for each in maps]
        for i, shape in enumerate(shapes):
            # No bytes are written yet, so most file systems reserve no space.
            _ = np.lib.format.open_memmap(
                folder / _file(i), mode="w+", dtype=numbers, shape=(len(opened), *shape)
            )

    folder = open_folder(path, about, fill, resume=resume, chunk_size=chunk_size)
    runs = runs_of(folder, shard, opened)
    share, n_left = folder.rows(folder.share(shard)), sum(len(folder.rows(run)) for run in runs)
    with ExitStack() as stack:
        files = [stack.enter_context(_rows_of(folder.path / _file(i))) for i in range(len(methods))]
        bar = stack.enter_context(make_bar(len(share), "explain_to", len(share) - n_left))
        for run in runs:
            rows = folder.rows(run)
            batches = explainer.iter_explained(
                opened.subset(rows),
                question.take(slice(rows.start, rows.stop)),
                methods=methods,
                normalize=normalize,
                at_layer=at_layer,
            )
            for sent in one_behind(map(partial(_sent, numbers=numbers), batches)):
                made = sent.arrays()
                start = rows.start + sent.start
                stop = start + len(made[0])
                for file, maps in zip(files, made, strict=True):
                    file.write(start, maps)
                if ended := folder.ended(run, start, stop):
                    for file in files:
                        file.sync()
                    for chunk in ended:
                        folder.finish(chunk)
                bar.update(stop - start)
                del sent, made  # before the next batch is read


def _sent(explained: ExplainedBatch, numbers: np.dtype[Any]) -> SentMaps:
    return SentMaps(explained.batch.start, explained.maps, numbers)


def runs_of(folder: ChunkFolder, shard: Shard | None, opened: OpenedImages) -> list[range]:
    """Group the missing chunks into runs with the same batches that each chunk would have alone.

    The last digits of numbers depend on the batch, so batches must not depend on where the work was
    interrupted.
    """
    runs = list(folder.undone(shard))
    if opened.batch_size is not None and folder.chunk_size % opened.batch_size == 0:
        return runs
    return [range(chunk, chunk + 1) for run in runs for chunk in run]


def chunk_size_for(opened: OpenedImages, explainer: Explainer, chunk_size: int | None) -> int:
    """Return the number of images per chunk: ``chunk_size``, or by default whole batches."""
    if chunk_size is not None:
        check_count("chunk_size", chunk_size)
        return chunk_size
    batch = opened.batch_size or explainer.batch_size
    return max(1, round(_ABOUT_A_CHUNK / batch)) * batch if batch > 0 else _ABOUT_A_CHUNK


def open_folder(
    path: str | os.PathLike[str],
    about: dict[str, Any],
    fill: Any,
    *,
    resume: bool,
    chunk_size: int | None = None,
) -> ChunkFolder:
    """Return the folder to resume, or a new one.

    Parameters
    ----------
    path : path-like
    about : dict
        See :class:`ChunkFolder`.
    fill : callable
        See :meth:`ChunkFolder.made`.
    resume : bool
        Whether such a folder may exist already.
    chunk_size : int or None
        The chunk size that an existing folder must have, if given.

    Raises
    ------
    FileExistsError
        If something is at the path and ``resume`` is False.
    ValueError
        If the folder at the path belongs to other work.
    """
    final = Path(path)
    is_new = not final.exists() or (final.is_dir() and not any(final.iterdir()))
    if not is_new and not resume:
        raise FileExistsError(
            f"There is something at {str(path)!r}. If it is the beginning of the same work, "
            "resume=True continues it. Otherwise remove it, or give another path."
        )
    folder = ChunkFolder.made(final, about, fill) if is_new else ChunkFolder(final)
    expected = dict(about["depends_on"])
    if chunk_size is not None and chunk_size != folder.chunk_size:
        raise ValueError(
            f"{str(path)!r} was begun in chunks of {folder.chunk_size} images, but chunk_size is "
            f"{chunk_size}. Leave it at None, or give another path."
        )
    folder.check(about["kind"], about["n_images"], expected)
    return folder


def open_maps(path: str | os.PathLike[str]) -> Any:
    """Open the maps that :meth:`CAMExplainer.explain_to` has written, without loading them.

    Parameters
    ----------
    path : str or path
        The folder.

    Returns
    -------
    numpy.memmap of shape (n_images, height, width), or dict of str to numpy.memmap
        Read-only maps, in the form that ``explain`` returns: for several methods, a dict by name.

    Raises
    ------
    ValueError
        If the path is not such a folder, or maps are missing.

    Examples
    --------
    >>> import tempfile
    >>> import torch
    >>> import sklcam
    >>> from torch import nn
    >>> network = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> explainer = sklcam.CAMExplainer(network, target_layer="0", verbose=0).fit()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     explainer.explain_to(torch.rand(3, 2, 8, 8), f"{folder}/maps", dtype="float16")
    ...     maps = sklcam.open_maps(f"{folder}/maps")
    ...     maps.shape, maps.dtype
    ((3, 8, 8), dtype('float16'))
    """
    folder = ChunkFolder(path)
    if folder.about.get("kind") != KIND:
        raise ValueError(
            f"{str(path)!r} holds {folder.about.get('kind')}, not maps. Give a folder that "
            "explain_to has written."
        )
    folder.check_complete()
    names = folder.about.get("names")
    maps = [
        np.load(folder.path / _file(i), mmap_mode="r", allow_pickle=False)
        for i in range(1 if names is None else len(names))
    ]
    return maps[0] if names is None else dict(zip(names, maps, strict=True))


def _file(i: int) -> str:
    return f"maps_{i}.npy"


@contextmanager
def _rows_of(path: Path) -> Iterator[_Rows]:
    """Open a NumPy file to write its rows."""
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    with path.open("r+b") as file:
        yield _Rows(file, array.offset, array[:1].nbytes)


class _Rows:
    """The rows of an array in a NumPy file, which can be written in any order."""

    def __init__(self, file: BinaryIO, offset: int, n_bytes: int):
        self._file, self._offset, self._n_bytes = file, offset, n_bytes

    def write(self, start: int, rows: np.ndarray) -> None:
        self._file.seek(self._offset + start * self._n_bytes)
        self._file.write(np.ascontiguousarray(rows).data)

    def sync(self) -> None:
        """Wait until everything written is on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
