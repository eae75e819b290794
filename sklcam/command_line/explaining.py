"""``sklcam explain``: overlays, arrays and a table of predictions, image by image."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from sklcam._files import replacing, write_whole
from sklcam._folders import ChunkFolder
from sklcam._progress import tqdm
from sklcam._validation import check_count
from sklcam.command_line.models import explainer_of
from sklcam.command_line.photographs import (
    Readable,
    counted,
    images_in,
    labelled_images,
    readable,
    target_of,
)
from sklcam.command_line.results import Result
from sklcam.explain.base import ExplainedBatch, Explainer
from sklcam.explain.checks import remark
from sklcam.explain.fingerprints import dependencies, described, digest
from sklcam.explain.predictions import names_of_outputs, predictions
from sklcam.explain.stored import chunk_size_for, open_folder, runs_of
from sklcam.images.pictures import to_picture
from sklcam.plotting.pages import overlay, thumbnail_size

_TABLE, _OVERLAYS, _ARRAYS = "predictions.csv", "overlays", "arrays"
_UNFINISHED = "unfinished"  # records what is done; removed once all is
_COLUMNS = ("file", "predicted", "probability", "explained", "remark")
_UNREADABLE = "cannot be read"  # the remark on an image that was skipped
_SUFFIXES = {"png": ".png", "jpeg": ".jpg"}
# At Pillow's own level of 6, compressing an overlay takes longer than explaining the image.
_SAVED: dict[str, dict[str, int]] = {"png": {"compress_level": 3}, "jpeg": {"quality": 90}}


def run(arguments: Namespace) -> Result:
    """Explain all images in a folder."""
    check_count("--longest", arguments.longest)
    out = Path(arguments.out)
    root, images = images_in(arguments.dir)
    labels = None
    if arguments.target == "true" and Path(arguments.dir).is_dir():
        images, labels = labelled_images(root)
    _check_out(out, Path(arguments.dir), overwrite=arguments.overwrite)
    explainer = explainer_of(arguments)
    found = readable(arguments, root, images)
    names = [os.path.relpath(image, root) for image in images]
    images = [images[row] for row in found.rows]
    if labels is not None:
        labels = [labels[row] for row in found.rows]
    writer = _Writer(explainer, root, images, target_of(arguments, explainer, labels), arguments)
    folder = writer.begun()
    n_before = folder.n_done
    (out / _TABLE).unlink(missing_ok=True)  # an earlier table does not fit the new files
    try:
        writer.write(folder)
        n_remarks = _write_table(out / _TABLE, names, found, _rows(folder))
        _remove_whole(folder.path)
    except FileNotFoundError as error:
        if folder.path.exists():
            raise
        raise ValueError(
            f"{folder.path} is gone: another process wrote to --out {out} at the same time, and "
            "ended first. Its files are there. Run one command at a time for each folder."
        ) from error
    before = f", {n_before} of them before" if n_before else ""
    remarks = f"; {n_remarks} with a remark" if n_remarks else ""
    return Result(
        f"{out}: {counted(len(images))} explained{before}{remarks}{found.ending}",
        {
            **{"out": str(out), "table": str(out / _TABLE), "model": arguments.model},
            **{"n_images": len(images), "n_before": n_before, "n_remarks": n_remarks},
            "skipped": found.listed,
        },
    )


def _check_out(out: Path, source: Path, *, overwrite: bool) -> None:
    """Refuse a folder whose files would be lost, or whose overlays the next call would explain."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file. Give a folder.")
    is_begun = (out / _UNFINISHED).is_dir()
    if out.is_dir() and any(out.iterdir()) and not overwrite and not is_begun:
        raise ValueError(
            f"--out {out} already exists and is not empty. Give another folder, or --overwrite, "
            "which replaces files with the same names and keeps all others."
        )
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise ValueError(
            f"--out {out} is in {source}, so the next call would explain the overlays. Give a "
            "folder elsewhere."
        )


def _write_table(
    path: Path, names: list[str], found: Readable, explained: Iterator[list[str]]
) -> int:
    """Write a row for each image, and return how many maps have a remark."""
    n_remarks = 0
    with replacing(path) as file:
        table = csv.writer(text := io.TextIOWrapper(file, "utf-8", "surrogateescape", newline=""))
        table.writerow(_COLUMNS)
        for name in names:
            if name in found.skipped:
                table.writerow((name, "", "", "", _UNREADABLE))
                continue
            table.writerow(row := next(explained))
            n_remarks += bool(row[-1])
        text.detach()  # writes what is still buffered
    return n_remarks


def _rows(folder: ChunkFolder) -> Iterator[list[str]]:
    """Yield the table's row for each image, chunk by chunk."""
    for chunk in range(folder.n_chunks):
        yield from json.loads(folder.content(chunk))


def _remove_whole(path: Path) -> None:
    """Remove a folder so that nobody finds it half removed."""
    gone = path.with_name(f".{path.name}.gone")
    shutil.rmtree(gone, ignore_errors=True)
    path.rename(gone)
    shutil.rmtree(gone)


class _Writer:
    """Writes the files of each image, batch by batch; nothing is kept in memory."""

    def __init__(
        self,
        explainer: Explainer,
        root: Path,
        images: list[str],
        target: Any,
        arguments: Namespace,
    ):
        self._explainer, self._arguments = explainer, arguments
        self._images, self._asked = images, target
        self._names = [os.path.relpath(image, root) for image in images]
        self._classes = names_of_outputs(explainer)
        self._method = explainer.as_method(arguments.method)
        self._opened = explainer.open(
            images, originals=not arguments.no_overlays, num_workers=arguments.workers
        )
        self._target = explainer.as_target(target, len(self._opened))
        shape = explainer.map_shape(self._opened, self._target, self._method)
        if len(shape) != 2 or self._target.ragged:
            raise ValueError(
                "sklcam explain writes one map per image, and here there would be several. Explain "
                "in Python: sklcam.load(path).explain(images)."
            )
        self._out = Path(arguments.out)
        self._folders: set[Path] = set()

    def begun(self) -> ChunkFolder:
        """Return the folder of an earlier call that did not finish, or a new folder.

        Raises
        ------
        ValueError
            If the earlier call was a different one, and ``--overwrite`` is not given.
        """
        path = self._out / _UNFINISHED
        about = {
            "kind": "overlays and arrays",
            "n_images": len(self._opened),
            "chunk_size": chunk_size_for(self._opened, self._explainer, None),
            "depends_on": self._dependencies(),
        }
        try:
            return open_folder(path, about, lambda folder: None, resume=True)
        except ValueError as error:
            if not self._arguments.overwrite:
                raise ValueError(f"{error} Give --overwrite to start over.") from error
        _remove_whole(path)
        return open_folder(path, about, lambda folder: None, resume=True)

    def _dependencies(self) -> dict[str, Any]:
        """Return what the files depend on, under the names that messages use."""
        arguments = self._arguments
        stats = [os.stat(image) for image in self._images]
        # A fingerprint reads only some of the files, but a replaced file has another date.
        times = [f"{stat.st_size} {stat.st_mtime_ns}" for stat in stats]
        return {
            **dependencies(self._explainer, self._opened, self._asked),
            "sizes or dates of the images' files": digest(*map(str.encode, times)),
            "method": described(self._method),
            "--frame": arguments.frame,
            "--format": arguments.format,
            "--longest": arguments.longest,
            "--no-overlays": arguments.no_overlays,
            "--no-arrays": arguments.no_arrays,
        }

    def write(self, folder: ChunkFolder) -> None:
        """Explain and write the images that are not done yet, chunk by chunk."""
        with tqdm(
            total=len(self._opened),
            desc="explain",
            unit="image",
            initial=folder.n_done,
            disable=self._arguments.quiet,
        ) as bar:
            for run in runs_of(folder, None, self._opened):
                rows = folder.rows(run)
                held: list[tuple[str, ...]] = []
                for explained in self._explainer.iter_explained(
                    self._opened.subset(rows),
                    self._target.take(slice(rows.start, rows.stop)),
                    methods=[self._method],
                ):
                    start = rows.start + explained.batch.start
                    stop = start + len(explained.batch)
                    held += self._write(explained, self._names[start:stop])
                    bar.update(stop - start)
                    for chunk in folder.ended(run, start, stop):
                        n = len(folder.rows(range(chunk, chunk + 1)))
                        folder.finish(chunk, json.dumps(held[:n]).encode())
                        del held[:n]

    def _write(self, explained: ExplainedBatch, names: Sequence[str]) -> Iterator[tuple[str, ...]]:
        arguments, batch = self._arguments, explained.batch
        predicted = predictions(self._explainer, explained.output)
        chosen = explained.target.indices
        for i, map_ in enumerate(explained.maps[0].float().cpu()):
            name = names[i]
            self._remove(name)
            if not arguments.no_arrays:
                self._write_array(name, map_, batch.sizes[i])
            if batch.originals is not None:
                self._write_overlay(name, map_, batch.originals[i])
            at = None if chosen is None or not self._classes else int(chosen[i, 0])
            probability = predicted[i].probability
            yield (
                name,
                predicted[i].label or predicted[i].text or "",
                "" if probability is None else f"{probability:.6f}",
                "" if at is None else self._classes[at],
                remark(map_.numpy()),
            )

    def _remove(self, name: str) -> None:
        """Remove an image's files from another call, which may have used another format."""
        for suffix in _SUFFIXES.values():
            (self._out / _OVERLAYS / f"{name}{suffix}").unlink(missing_ok=True)
        (self._out / _ARRAYS / f"{name}.npy").unlink(missing_ok=True)

    def _write_array(self, name: str, map_: Tensor, size: tuple[int, ...]) -> None:
        if self._arguments.frame == "image":
            map_ = self._explainer.to_frame(map_, size)
        buffer = io.BytesIO()
        np.save(buffer, map_.numpy())
        write_whole(self._place(_ARRAYS, name, ".npy"), buffer.getvalue())

    def _write_overlay(self, name: str, map_: Tensor, original: Tensor) -> None:
        picture = to_picture(original)
        size = thumbnail_size(picture.shape[0], picture.shape[1], self._arguments.longest)
        pixels = overlay(picture, map_, size, resize=self._explainer.adapter.resize)
        buffer, kind = io.BytesIO(), self._arguments.format
        drawn = Image.fromarray((pixels * 255).round().astype(np.uint8))
        drawn.save(buffer, kind.upper(), **_SAVED[kind])
        write_whole(self._place(_OVERLAYS, name, _SUFFIXES[kind]), buffer.getvalue())

    def _place(self, folder: str, name: str, suffix: str) -> Path:
        """Return the path of an image's file; it has the whole name, as stems may repeat."""
        path = self._out / folder / f"{name}{suffix}"
        if path.parent not in self._folders:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._folders.add(path.parent)
        return path
