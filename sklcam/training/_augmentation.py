"""Augmentation: crops cut while images are read, or a user's transform for each image.

It is drawn once per image. The loss's views come on top, see ``step.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from sklcam._validation import describe
from sklcam.images.views import ViewSampler
from sklcam.training._data import TrainingImages, without_subsets

Drawn = tuple[int, list[float]]

# A transform's arithmetic may leave [0, 1] by this much.
_ROUNDING = 1e-3


class CroppedImages(Dataset[Any]):
    """Training images, each read as the crop described by the numbers beside its index."""

    def __init__(self, dataset: Dataset[Any], sampler: ViewSampler, *, beside: bool = False):
        self._dataset, self._sampler, self._beside = dataset, sampler, beside

    def __len__(self) -> int:
        return len(self._dataset)  # type: ignore[arg-type]

    def __getitems__(self, drawn: Sequence[Drawn]) -> list[Any]:
        indices, draws = zip(*drawn, strict=True)
        images = self._dataset
        while isinstance(images, Subset):
            indices = tuple(images.indices[i] for i in indices)
            images = images.dataset
        assert isinstance(images, TrainingImages)
        numbers = torch.tensor(draws, dtype=torch.float64)
        return images.read_crops(indices, numbers, self._sampler, beside=self._beside)


class DrawnBatches:
    """A loader's batches of indices, each index with the numbers of its crop.

    They are drawn where batches are put together: in one process and one order, whatever the number
    of workers. The steps draw views from the same generator while workers are batches ahead, so an
    epoch takes one number from it and the rest from its own generator.
    """

    def __init__(
        self,
        batches: Iterable[Sequence[int]],
        sampler: ViewSampler,
        generator: torch.Generator,
        n_axes: int = 2,
    ):
        self._batches, self._sampler, self._generator = batches, sampler, generator
        self._n_axes = n_axes

    def __len__(self) -> int:
        return len(self._batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[list[Drawn]]:
        seed = int(torch.randint(2**62, (), generator=self._generator))
        own = torch.Generator().manual_seed(seed)
        for indices in self._batches:
            draws = self._sampler.draw(len(indices), own, n_axes=self._n_axes)
            yield list(zip(indices, draws.tolist(), strict=True))

    def __getattr__(self, name: str) -> Any:  # accelerate asks for the sampler, and more
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._batches, name)


def crop_while_reading(
    loader: Any, sampler: ViewSampler, generator: torch.Generator, *, beside: bool = False
) -> None:
    """Let a new loader read crops of its images.

    Parameters
    ----------
    loader : DataLoader
        It has not been used yet.
    sampler : ViewSampler
    generator : torch.Generator
    beside : bool, default=False
        Whether the crops come beside the images rather than replacing them.

    Raises
    ------
    ValueError
        If it is another kind of loader, or loads other data.
    """
    is_usual = isinstance(loader, DataLoader) and loader.batch_sampler is not None
    images = without_subsets(loader.dataset) if is_usual else None
    if not isinstance(images, TrainingImages):
        raise ValueError(
            "Images are augmented as they are read, by a torch DataLoader that makes batches of "
            "the images given to fit, or of a Subset of them. Use iterator_train=DataLoader, or "
            f"augment=None; got {describe(loader)}."
        )
    # A finished loader refuses new parts, as its workers would not notice them. This one has no
    # workers yet.
    vars(loader)["dataset"] = CroppedImages(loader.dataset, sampler, beside=beside)
    vars(loader)["batch_sampler"] = DrawnBatches(
        loader.batch_sampler, sampler, generator, len(images.image_size)
    )


class Perturbation:
    """A user's transform, called for each image separately, with a check of what it returns.

    Random transforms draw once per call: given a batch, they would treat all its images alike. The
    range is read after the first batch and at the end (:meth:`check`); in between it stays on the
    device, as reading it makes the host wait.

    Parameters
    ----------
    transform : callable
        Takes and returns a float Tensor of shape (1, channels, height, width).
    """

    def __init__(self, transform: Callable[[Tensor], Tensor]):
        self._transform = transform
        self._extremes: Tensor | None = None

    def __call__(self, images: Tensor) -> Tensor:
        perturbed = torch.cat([self._perturbed(image) for image in images.split(1)])
        low, high = perturbed.aminmax()
        if self._extremes is None:
            self._extremes = torch.stack([low, high])
            self.check()
        else:
            lowest, highest = self._extremes
            self._extremes = torch.stack([lowest.minimum(low), highest.maximum(high)])
        return perturbed

    def _perturbed(self, image: Tensor) -> Tensor:
        perturbed = self._transform(image)
        like = (image.shape, image.dtype, image.device)
        if not isinstance(perturbed, Tensor) or like != (
            perturbed.shape,
            perturbed.dtype,
            perturbed.device,
        ):
            raise ValueError(
                "augment must return a tensor with the shape, dtype and device of its input: "
                f"{describe(image)} on {image.device}; got {describe(perturbed)}."
            )
        return perturbed

    def check(self) -> None:
        """Raise a ValueError if an image has left the range."""
        if self._extremes is None:
            return
        low, high = self._extremes.tolist()
        if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):  # or NaN
            raise ValueError(
                f"augment returned pixels from {low:g} to {high:g}; they must stay in [0, 1]. "
                "Images are normalised afterwards, by mean= and std=, so leave Normalize out."
            )
