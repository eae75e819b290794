"""A running evaluation: batch after batch, in one process or several, in memory or in a folder.

Only one value per image and metric is kept. In a folder, values are written chunk by chunk, so that
work that was killed can resume, and several processes can share it.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from joblib import Parallel, delayed, effective_n_jobs
from torch import Tensor

from sklcam._folders import ChunkFolder, Shard
from sklcam._progress import tqdm
from sklcam.cam.targets import Target
from sklcam.explain.base import Explainer
from sklcam.explain.fingerprints import dependencies, described
from sklcam.explain.opened import OpenedImages
from sklcam.explain.stored import open_folder, runs_of
from sklcam.images.rows import take_rows
from sklcam.metrics.annotations import Annotations
from sklcam.metrics.measurement import FirstPass, Measurement, Measurer
from sklcam.metrics.plan import Plan

Observed = TypeVar("Observed")
Observer = Callable[[Measurement], Observed]
Values = dict[str, np.ndarray]

KIND = "values"
_PARTS_PER_JOB = 4  # so that the progress bar moves before the end
_A_BATCH = 32  # if a loader does not say


@dataclass(frozen=True)
class Reading:
    """How images are read: whether at their own sizes, too, and by how many processes."""

    originals: bool
    num_workers: int | None


@dataclass(frozen=True, eq=False)
class Run(Generic[Observed]):
    """Opened images, everything that is known about them, and what is measured.

    Attributes
    ----------
    explainer : Explainer
    X : images
        As the explainer takes them.
    opened : OpenedImages or None
        X, opened; None in another process, which opens its own.
    question : Target
    annotations : Annotations
    plans : sequence of Plan
        A plan for each method.
    reading : Reading
    observe : callable or None
    first_row : int
        How many images precede these in X as a whole.
    """

    explainer: Explainer
    X: Any
    opened: OpenedImages | None
    question: Target
    annotations: Annotations
    plans: Sequence[Plan]
    reading: Reading
    observe: Observer[Observed] | None
    first_row: int = 0

    @property
    def columns(self) -> list[str]:
        """The names of the values, of each plan."""
        return [column(i, name) for i, plan in enumerate(self.plans) for name in plan.collected]

    def rows(self, start: int, stop: int) -> Run[Observed]:
        """Return the run over some of the images, in this process."""
        assert self.opened is not None
        return self._part(start, stop, X=self.X, opened=self.opened.subset(range(start, stop)))

    def elsewhere(self, start: int, stop: int) -> Run[Observed]:
        """Return the run over some of the images, for another process, which gets only those."""
        return self._part(start, stop, X=take_rows(self.X, range(start, stop)), opened=None)

    def _part(self, start: int, stop: int, **changed: Any) -> Run[Observed]:
        rows = slice(start, stop)
        return replace(
            self,
            question=self.question.take(rows),
            annotations=self.annotations.take(rows),
            first_row=self.first_row + start,
            **changed,
        )

    def measured(self) -> Iterator[tuple[range, dict[str, Tensor], list[Observed]]]:
        """Yield the rows of each batch, its values, and what the observer returned."""
        try:
            yield from self._measured()
        except Exception as error:  # of any kind: it is raised again
            if self.opened is None and self.first_row:
                error.add_note(f"Rows of X are counted from {self.first_row} here.")
            raise

    def _measured(self) -> Iterator[tuple[range, dict[str, Tensor], list[Observed]]]:
        opened = self.opened
        if opened is None:
            opened = self.explainer.open(self.X, **asdict(self.reading))
        measurers = [Measurer(self.explainer, plan, self.first_row) for plan in self.plans]
        for batch in opened.batches():
            start, stop = batch.start, batch.stop
            asked = self.explainer.question_of(self.question, batch)
            known = self.annotations.take(slice(start, stop))
            first = FirstPass(self.explainer, batch, asked, self.plans)
            values: dict[str, Tensor] = {}
            observed: list[Observed] = []
            for i, measurer in enumerate(measurers):
                measurement = Measurement(measurer, batch, asked, known, first)
                for name in measurer.plan.collected:
                    # A copy, as a part of a larger tensor would keep all of it.
                    values[column(i, name)] = measurement[name].detach().clone()
                if self.observe is not None:
                    observed.append(self.observe(measurement))
                del measurement
            del first, batch  # nothing of a batch is alive when the next one is read
            yield range(start, stop), values, observed


def column(i: int, name: str) -> str:
    """Return the name of a metric's values by the plan at this place."""
    return f"{name} {i}" if i else name


def measure(run: Run[Observed], bar: tqdm | None = None) -> tuple[Values, list[Observed]]:
    """Return the values of each image, and what the observer returned for each batch."""
    kept: list[dict[str, Tensor]] = []
    observed: list[Observed] = []
    for rows, values, seen in run.measured():
        kept.append(values)
        observed += seen
        if bar is not None:
            bar.update(len(rows))
    # Read once, at the end: until then the host need not wait for the device.
    return _read(kept, run.columns), observed


def _read(kept: Sequence[dict[str, Tensor]], names: Sequence[str]) -> Values:
    joined = {name: torch.cat([values[name] for values in kept]) for name in names}
    return {name: values.cpu().double().numpy() for name, values in joined.items()}


def measure_in_processes(
    run: Run[Observed], n_images: int, n_jobs: int | None, bar: tqdm
) -> Iterator[tuple[Values, list[Observed]]]:
    """Yield the results of parts of the images, in their order."""
    n_parts = _PARTS_PER_JOB * effective_n_jobs(n_jobs)
    edges = np.linspace(0, n_images, n_parts + 1).astype(int).tolist()
    spans = [(start, stop) for start, stop in pairwise(edges) if start < stop]
    results = Parallel(n_jobs=n_jobs, return_as="generator")(
        delayed(measure)(run.elsewhere(*span)) for span in spans
    )
    for (start, stop), part in zip(spans, results, strict=True):
        bar.update(stop - start)
        yield part


# In a folder


def measure_to(
    run: Run[Any],
    store: str | os.PathLike[str],
    target: Any,
    *,
    n_jobs: int | None,
    shard: Shard | None,
    progress: bool,
) -> Values:
    """Return the values of all images, with a folder that keeps those of each batch.

    Parameters
    ----------
    run : Run
        Over all images.
    store : path-like
        The folder.
    target : Any
        The target, as the user gave it.
    n_jobs, shard, progress
        See :func:`evaluate`.

    Returns
    -------
    dict of str to ndarray of shape (n_images,)

    Raises
    ------
    ValueError
        If the folder was begun with something else.
    """
    assert run.opened is not None
    n_images = len(run.opened)
    about = {
        "kind": KIND,
        "n_images": n_images,
        "chunk_size": run.opened.batch_size or _A_BATCH,
        "depends_on": {**dependencies(run.explainer, run.opened, target), **_of_run(run)},
    }
    folder = open_folder(store, about, lambda path: None, resume=True)
    with tqdm(
        total=n_images, initial=folder.n_done, desc="evaluate", leave=False, disable=not progress
    ) as bar:
        chunks = runs_of(folder, shard, run.opened)
        if effective_n_jobs(n_jobs) > 1:
            _write_in_processes(run, folder, chunks, n_jobs, bar)
        else:
            for some in chunks:
                rows = folder.rows(some)
                write(run.rows(rows.start, rows.stop), folder, some, bar)
        folder.wait(lambda n_done: bar.update(n_done - bar.n))
    return read_values(folder, run.columns)


def _of_run(run: Run[Any]) -> dict[str, Any]:
    """Return what values depend on, besides the explainer, the images and the target."""
    plan, known = run.plans[0], run.annotations  # plans differ only in how they explain
    functions = [(name, metric.function) for name, metric in plan.metrics.items()]
    return {
        "metrics": list(plan.collected),
        "functions of the metrics": described(functions),
        "options of the metrics": described(plan.options),
        "method": [described(each.method) for each in run.plans],
        "explanations": described([each.explained for each in run.plans]),
        "score": described(plan.score),
        "random_state": plan.seed,
        "y": described(known.labels),
        "boxes": described(known.boxes),
        "masks": described(known.masks),
        "references": described(known.references),
    }


def write(run: Run[Any], folder: ChunkFolder, chunks: range, bar: tqdm | None = None) -> None:
    """Measure the images of successive chunks, and write each chunk once it is complete."""
    kept: list[dict[str, Tensor]] = []
    for rows, values, _ in run.measured():
        kept.append(values)
        start, stop = run.first_row + rows.start, run.first_row + rows.stop
        for chunk in folder.ended(chunks, start, stop):
            content = io.BytesIO()
            np.savez(content, allow_pickle=False, **_read(kept, run.columns))
            folder.finish(chunk, content.getvalue())
            kept = []
        if bar is not None:
            bar.update(len(rows))


def _write_in_processes(
    run: Run[Any], folder: ChunkFolder, chunks: Sequence[range], n_jobs: int | None, bar: tqdm
) -> None:
    n_left = sum(map(len, chunks))
    size = max(1, n_left // (_PARTS_PER_JOB * effective_n_jobs(n_jobs)))
    parts = [
        range(start, min(start + size, some.stop))
        for some in chunks
        for start in range(some.start, some.stop, size)
    ]
    spans = [folder.rows(part) for part in parts]
    results = Parallel(n_jobs=n_jobs, return_as="generator")(
        delayed(write)(run.elsewhere(rows.start, rows.stop), folder, part)
        for rows, part in zip(spans, parts, strict=True)
    )
    for rows, _ in zip(spans, results, strict=True):
        bar.update(len(rows))


def read_values(folder: ChunkFolder, names: Sequence[str]) -> Values:
    """Return the values of all images, from a complete folder.

    Raises
    ------
    ValueError
        If a chunk is not what was written there.
    """
    parts: list[Values] = []
    for chunk in range(folder.n_chunks):
        n_rows = len(folder.rows(range(chunk, chunk + 1)))
        try:
            with np.load(io.BytesIO(folder.content(chunk)), allow_pickle=False) as arrays:
                values = {name: arrays[name] for name in names}
            if any(each.shape != (n_rows,) for each in values.values()):
                raise ValueError("there is not one value for each image")
        except Exception as error:  # a damaged archive has any of a dozen
            raise ValueError(
                f"Chunk {chunk} of {str(folder.path)!r} is damaged ({error}). Remove its file in "
                "the folder 'done', and it is made again."
            ) from error
        parts.append(values)
    return {name: np.concatenate([part[name] for part in parts]) for name in names}
