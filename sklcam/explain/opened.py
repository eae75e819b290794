"""X, opened once and read in batches: network inputs with the sizes of their images."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from sklcam._validation import check_count
from sklcam.images.dataset import ImageDataset
from sklcam.images.framed import (
    Failure,
    FramedDataset,
    FramedItems,
    collate_framed,
    way_to_start,
)
from sklcam.images.items import is_splits, of_processor
from sklcam.networks.adapters import Adapter
from sklcam.networks.inputs import Inputs, NetworkTensors, OtherInputs, name_of_images

# Names of labels in dicts: Hugging Face's networks would use them to compute a loss.
LABELS = ("label", "labels")


@dataclass(frozen=True, eq=False)
class Batch:
    """Some images, as the network receives them.

    Attributes
    ----------
    inputs : Inputs
        The network's inputs, on its device.
    start, stop : int
        The range of the opened rows that the batch holds.
    sizes : list of tuple (height, width)
        The images' own sizes; (depth, height, width) for volumes.
    originals : list of Tensor of shape (channels, height, width), or None
        The images at their own sizes, on the CPU, if they were requested.
    resized : Tensor of shape (n_images, channels, height, width), or None
        The same images at the network's input size, before normalisation.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklcam import CAMExplainer
    >>> network = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> explainer = CAMExplainer(network, target_layer="0", batch_size=2, verbose=0).fit()
    >>> for batch in explainer.open(torch.rand(3, 2, 8, 8)).batches():
    ...     print(batch.start, batch.stop, tuple(batch.inputs.images.shape))
    0 2 (2, 2, 8, 8)
    2 3 (1, 2, 8, 8)
    """

    inputs: Inputs
    start: int
    stop: int
    sizes: list[tuple[int, ...]]
    originals: list[Tensor] | None
    resized: Tensor | None

    def __len__(self) -> int:
        return self.stop - self.start


class OpenedImages:
    """X, checked and ready to be read batch by batch.

    :meth:`Explainer.open` makes these objects.

    Parameters
    ----------
    adapter : Adapter
    X : images
        In any form that the adapter's model takes, or a mapping for a network with several inputs.
    image_input : str or None
        Which entry of a mapping is the image.
    originals : bool
        Whether batches also hold the images at their own sizes.
    num_workers : int or None
        How many processes read ahead. None takes the number of the adapter's model.

    Attributes
    ----------
    image_size : tuple of int
        Height and width that the network receives, or depth, height and width for volumes.
    n_channels : int
    uniform_size : tuple of int or None
        The size of all images, if they are known to share one.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklcam import CAMExplainer
    >>> network = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> explainer = CAMExplainer(network, target_layer="0", batch_size=2, verbose=0).fit()
    >>> opened = explainer.open(torch.rand(3, 2, 8, 8))
    >>> len(opened), opened.n_channels, len(opened.subset(range(2)))
    (3, 2, 2)
    """

    def __init__(
        self,
        adapter: Adapter,
        X: Any,
        image_input: str | None = None,
        *,
        originals: bool = False,
        num_workers: int | None = None,
    ):
        if num_workers is not None:
            check_count("num_workers", num_workers, 0)
        self._num_workers = num_workers
        self._adapter = adapter
        self._others: OtherInputs | None = None
        self._name: str | None = None
        images = X
        if isinstance(X, Mapping) and not is_splits(X):
            X = of_processor(X)
            self._name = name_of_images(X, image_input)
            images = X[self._name]
        self._dataset = adapter.dataset(images)
        _check_others(adapter.network, self._dataset)
        device = self._dataset.tensor_device
        if num_workers and device.type != "cpu":
            raise ValueError(
                f"num_workers={num_workers} asks for processes that read images, but the images of "
                f"X are on {device} already. Leave num_workers at 0, or give X.cpu()."
            )
        if self._name is not None:
            others = {name: value for name, value in X.items() if name != self._name}
            self._others = OtherInputs(others, len(self._dataset))
        self._rows: Sequence[int] = range(len(self._dataset))
        self._originals = originals
        self.image_size = self._dataset.image_size
        self.n_channels = self._dataset.n_channels
        self.uniform_size = self._dataset.uniform_size

    def __len__(self) -> int:
        return len(self._rows)

    def subset(self, rows: Iterable[int]) -> OpenedImages:
        """Return some of the images, without checking them again.

        Parameters
        ----------
        rows : iterable of int

        Returns
        -------
        OpenedImages
        """
        part = object.__new__(type(self))
        if isinstance(rows, range) and rows.step == 1 and rows.start >= 0:
            kept = self._rows[rows.start : rows.stop]  # a slice of a range is a range
        else:
            kept = [self._rows[row] for row in rows]
        vars(part).update(vars(self), _rows=kept)
        return part

    def array(self) -> np.ndarray | Tensor | None:
        """Return all images as given, if they are one array in its original order."""
        return self._dataset.array if self._rows == range(len(self._dataset)) else None

    def files(self) -> list[str] | None:
        """Return the path of each image, or None unless all images are files."""
        if not isinstance(self._dataset, ImageDataset):
            return None
        source = self._dataset.source
        paths = [path for row in self._rows if (path := source.path(row)) is not None]
        return paths if len(paths) == len(self) else None

    def originals(self, rows: Sequence[int]) -> list[Tensor]:
        """Read some images unchanged, at their own sizes."""
        read = self._dataset.read_batch([self._rows[row] for row in rows])
        return [framed.original for framed in read]

    @property
    def other_inputs(self) -> Mapping[str, Any]:
        """The network's inputs besides the image, by name, for all rows of the original X."""
        return {} if self._others is None else self._others.values

    @property
    def batch_size(self) -> int | None:
        """The number of images per batch, or None if the loader does not say."""
        size = getattr(self._loader(), "batch_size", None)
        return size if isinstance(size, int) else None

    @property
    def is_network_input(self) -> bool:
        """Whether the images are the network's own input."""
        return isinstance(self._dataset, NetworkTensors)

    def batches(self) -> Iterator[Batch]:
        """Read the images, each once, in order."""
        start = 0
        for read in self._loader():
            if isinstance(read, Failure):
                raise read.error
            batch = self._batch(read, start)
            yield batch
            start = batch.stop
        if start != len(self):
            raise ValueError(
                f"The loader yielded {start} of {len(self)} images. For explanations it must yield "
                "each image once, in order. Build it without drop_last, shuffle or a sampler."
            )

    def whole(self) -> Batch:
        """Read all images as one batch, in this process."""
        items = self._items()
        return self._batch(collate_framed(items.__getitems__(range(len(items)))), 0)

    def _loader(self) -> Iterable[Any]:
        loader = self._adapter.loader(self._items())
        if self._num_workers is None or not isinstance(loader, DataLoader):
            return loader
        # A loader's number of workers is fixed when it is made.
        started = loader.multiprocessing_context if self._num_workers else None
        return DataLoader(
            loader.dataset,
            batch_sampler=loader.batch_sampler,
            num_workers=self._num_workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            worker_init_fn=loader.worker_init_fn,
            generator=loader.generator,
            multiprocessing_context=started or way_to_start(self._num_workers),
        )

    def _items(self) -> FramedItems:
        return FramedItems(self._dataset, self._rows, originals=self._originals)

    def _batch(self, read: Any, start: int) -> Batch:
        resized, (sizes, originals) = read
        images = self._adapter.prepare(resized, self._dataset)
        stop = start + len(images)
        others: dict[str, Tensor] = {}
        if self._others is not None:
            others = self._others.take(np.asarray(self._rows[start:stop]), images)
        inputs = Inputs(images, others, self._name)
        shown = (originals, resized) if self._originals else (None, None)
        return Batch(inputs, start, stop, sizes, *shown)


def _check_others(network: nn.Module, dataset: FramedDataset) -> None:
    """Raise a ValueError if items hold other inputs of the network besides the image."""
    items = dataset.items
    if items is None or items.name is None:
        return
    names, _ = parameters_of(network)
    others = [name for name in items.others if name in names and name not in LABELS]
    if others and items.name in names:
        raise ValueError(
            f"Items of X hold {', '.join(map(repr, others))} besides {items.name!r}, and the "
            "network takes these too. To pass them on, give a DataLoader to iter_explain, or X as "
            "a dict with an array for each input. Otherwise remove them from the items."
        )


def parameters_of(network: nn.Module) -> tuple[set[str], bool]:
    """Return the names that a network takes, and whether it takes any name (``**kwargs``)."""
    if isinstance(network, nn.DataParallel | DistributedDataParallel):
        network = network.module
    parameters = inspect.signature(network.forward).parameters.values()
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    names = {parameter.name for parameter in parameters if parameter.kind in by_name}
    kinds = {parameter.kind for parameter in parameters}
    return names, kinds == {inspect.Parameter.VAR_KEYWORD}
