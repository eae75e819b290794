"""Views: crops, flips and rotations, recorded so that they apply to an image and its map alike.

Views are drawn here; ``warps.py`` records and applies them. Nothing here depends on networks,
explanations or losses.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sklcam._validation import check_count, check_number, check_sides, describe
from sklcam.images.frames import Interpolation, Resizing, resize_image
from sklcam.images.normalization import to_unit_floats
from sklcam.images.photometric import Photometry
from sklcam.images.warps import Warp

_N_TRIES = 10  # as in torchvision's RandomResizedCrop; then the largest central crop is taken
_N_OF_CROP = 2 * _N_TRIES + 3  # areas, ratios, two of the position, the flip
_N_OF_VOLUMES = 3 * _N_TRIES + 10  # volumes, two ratios; positions, flips, an angle, shifts
_PHOTOMETRIC = ("brightness", "contrast", "color", "sharpness", "blur", "grey")
_N_FURTHER = 3 + len(_PHOTOMETRIC)  # the angle and two shifts


class Crop(NamedTuple):
    """A view of one image, cropped from its original pixels and only then resized.

    A :class:`Warp` samples an image that is already resized, so a crop of few of its pixels is
    blurred. This crops whole pixels, as torchvision does, so that the crop is as sharp as the
    image. Changes other than crops and flips are then applied to the crop by a warp.
    """

    top: int
    left: int
    height: int
    width: int
    is_flipped: bool
    rest: Warp | None = None

    def __call__(
        self, image: Tensor, size: tuple[int, int], interpolation: Interpolation = "bilinear"
    ) -> Tensor:
        """Return the crop of an image or mask, (channels, height, width), at a given size."""
        rows = slice(self.top, self.top + self.height)
        part = image[..., rows, self.left : self.left + self.width]
        part = resize_image(part, size, Resizing(interpolation=interpolation))
        part = part.flip(-1) if self.is_flipped else part
        return part if self.rest is None else self.rest(to_unit_floats(part)[None])[0]

    def of_image(
        self, image: Tensor, size: tuple[int, int], interpolation: Interpolation = "bilinear"
    ) -> Tensor:
        """Return the crop of an image, with the changes of its colours."""
        part = self(image, size, interpolation)
        if self.rest is None or self.rest.photometry is None:
            return part
        return self.rest.photometry(part[None])[0]


@dataclass(frozen=True)
class ViewSampler:
    """The distribution of views: random resized crops and horizontal flips, and more if requested.

    A view is cropped and flipped, then rotated about its centre and shifted, and finally changed in
    its colours, in the order of the parameters. Each image draws its own view.

    Views of volumes are crops in three dimensions, flips along each of them, rotations about the
    depth axis, which keep slices in place, and shifts. Their colours do not change.

    Parameters
    ----------
    scale : tuple of two floats in (0, 1], default=(0.08, 1.0)
        Range of the crop's area as a fraction of the image's; for volumes, of its volume.
    ratio : tuple of two floats > 0, default=(3/4, 4/3)
        Range of the crop's width over its height, in pixels, before it is resized. For volumes,
        whose voxels are seldom cubes, sides are fractions of the volume's own, and the range
        applies to the width over the height, and to the depth over the geometric mean of both.
    flip : float in [0, 1], default=0.5
        Probability of the flip; for volumes, along each axis.
    rotation : float in [0, 180], default=0
        Largest angle in degrees, in either direction.
    translation : float in [0, 1], default=0
        Largest shift along each axis, in either direction, as a fraction of the view's side.
    brightness, contrast, color, sharpness : float >= 0, default=0
        A factor is drawn from max(0, 1 - value) to 1 + value, as in torchvision's ``ColorJitter``;
        ``color`` is its saturation. Contrast and colour need grey or RGB images.
    blur : float >= 0, default=0
        Largest standard deviation of a Gaussian blur, in pixels of the view.
    grey : float in [0, 1], default=0
        Probability that the view loses its colour.

    Raises
    ------
    ValueError
        If ``scale`` is not a range within (0, 1], ``ratio`` is not a range of positive numbers, or
        another parameter is outside its range.

    References
    ----------
    Sun, Phan, Nguyen, "Staying Consistent with GradCAM", section 3.3.1.

    Examples
    --------
    >>> import torch
    >>> from sklcam.training import ViewSampler
    >>> sample = ViewSampler(rotation=30, brightness=0.4)
    >>> views = sample(8, size=(32, 32), generator=torch.Generator().manual_seed(0))
    >>> views.of_images(torch.rand(8, 3, 32, 32)).shape, views(torch.rand(8, 32, 32)).shape
    (torch.Size([8, 3, 32, 32]), torch.Size([8, 32, 32]))
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    rotation: float = 0.0
    translation: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    color: float = 0.0
    sharpness: float = 0.0
    blur: float = 0.0
    grey: float = 0.0

    def __post_init__(self) -> None:
        if not _is_range(self.scale, 1):
            raise ValueError(f"scale must be a range within (0, 1]; got {self.scale!r}.")
        if not _is_range(self.ratio, sys.float_info.max):
            raise ValueError(f"ratio must be a range of positive numbers; got {self.ratio!r}.")
        check_number("flip, a probability,", self.flip, 0, 1)
        check_number("rotation, in degrees,", self.rotation, 0, 180)
        check_number("translation, a share of a side,", self.translation, 0, 1)
        for name in _PHOTOMETRIC[:-1]:
            check_number(name, getattr(self, name), 0)
        check_number("grey, a probability,", self.grey, 0, 1)

    @property
    def changes_colors(self) -> bool:
        """Whether views change more than the positions of pixels."""
        return any(getattr(self, name) for name in _PHOTOMETRIC)

    def __call__(
        self, n_images: int, *, size: tuple[int, ...], generator: torch.Generator | None = None
    ) -> Warp:
        """Draw one view per image.

        Parameters
        ----------
        n_images : int
        size : tuple of two ints, or of three
            Height and width of the images, in pixels; only their ratio matters. For volumes, depth,
            height and width.
        generator : torch.Generator on the CPU or None
            The source of random numbers; None is torch's global generator. Each image uses a fixed
            count of them, so the views do not depend on how the images are batched.

        Returns
        -------
        Warp
            On the CPU, so the same seed gives the same views whatever the device of the images.

        Raises
        ------
        ValueError
            If ``n_images`` is not an int >= 0, a side is not a positive int, ``generator`` is not a
            generator, or views of volumes would change colours.
        """
        check_count("n_images", n_images, 0)
        size = check_sides(size, "size")
        if not isinstance(generator, torch.Generator | None):
            raise ValueError(
                f"generator must be a torch.Generator or None; got {describe(generator)}."
            )
        draws = self.draw(n_images, generator, n_axes=len(size))
        if len(size) == 3:
            return self.views_of_volumes(draws, size)
        boxes = self._boxes(
            draws, torch.full((n_images, 1), size[1] / size[0], dtype=torch.float64)
        )
        crops = Warp.from_crops(boxes.float(), flip=self._flips(draws), is_inside=True)
        rest = self._rest(draws, size)
        return crops if rest is None else crops.then(rest)

    def views_of_volumes(self, draws: Tensor, size: tuple[int, ...]) -> Warp:
        """Turn random numbers into views of volumes.

        Parameters
        ----------
        draws : Tensor of shape (n_images, n_numbers)
            The output of :meth:`draw` with ``n_axes=3``.
        size : (depth, height, width)

        Returns
        -------
        Warp

        Raises
        ------
        ValueError
            If the views would change colours, which volumes do not have.
        """
        if self.changes_colors:
            raise ValueError(
                f"{self!r} changes colours, which volumes do not have. Use only crops, flips, "
                "rotations and translations."
            )
        *of_crops, rest = draws.split([_N_TRIES] * 3 + [10], dim=1)
        position, flips, angle, shifts = rest.split([3, 3, 1, 3], dim=1)
        share = self.scale[0] + (self.scale[1] - self.scale[0]) * of_crops[0]
        # Uniform in the logarithm, as for pictures.
        low, high = torch.tensor(self.ratio, dtype=torch.float64).log()
        flat, deep = (torch.exp(low + (high - low) * drawn) for drawn in of_crops[1:])
        side = (share / deep) ** (1 / 3)
        sides = torch.stack([side * flat.sqrt(), side / flat.sqrt(), side * deep], dim=2)
        fits = (sides <= 1).all(dim=2)
        first = fits.to(torch.uint8).argmax(dim=1)
        # If no try fits, the crop is the whole volume.
        lengths = torch.where(
            fits.any(dim=1, keepdim=True), sides[torch.arange(len(draws)), first], 1.0
        )
        boxes = torch.cat([(1 - lengths) * position, lengths], dim=1)
        warp = Warp.from_crops(boxes.float(), flip=flips < self.flip, is_inside=True)
        if self.rotation:
            degrees = self.rotation * (2 * angle[:, 0] - 1)
            warp = warp.then(Warp.from_rotations(degrees.float(), size))
        if self.translation:
            warp = warp.then(Warp.from_shifts((self.translation * (2 * shifts - 1)).float()))
        return warp

    def draw(
        self, n_images: int, generator: torch.Generator | None = None, *, n_axes: int = 2
    ) -> Tensor:
        """Draw the random numbers for views, one row per image, even if not all are needed.

        Parameters
        ----------
        n_images : int
        generator : torch.Generator on the CPU or None, default=None
        n_axes : int, default=2
            3 for views of volumes.

        Returns
        -------
        Tensor of shape (n_images, n_numbers), float64 in [0, 1)
        """
        # With only crops and flips, a seed gives the same views as it always has.
        n_numbers = _N_OF_CROP + (_N_FURTHER if self._does_more else 0)
        if n_axes == 3:
            n_numbers = _N_OF_VOLUMES
        return torch.rand(n_images, n_numbers, generator=generator, dtype=torch.float64)

    def crops(
        self,
        draws: Tensor,
        sizes: Sequence[tuple[int, int]],
        *,
        size: tuple[int, int] | None = None,
    ) -> list[Crop]:
        """Turn random numbers into crops of images of known sizes.

        Parameters
        ----------
        draws : Tensor of shape (n_images, n_numbers)
            The output of :meth:`draw`.
        sizes : sequence of (height, width)
            The sizes of the images before they are resized.
        size : (height, width) or None, default=None
            The size that crops will have when they are rotated; None is a square. Only its ratio
            matters.

        Returns
        -------
        list of Crop
            In whole pixels, at least one per side.

        Examples
        --------
        >>> import torch
        >>> from sklcam.training import ViewSampler
        >>> sample = ViewSampler(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0)
        >>> sample.crops(sample.draw(1), [(20, 30)])
        [Crop(top=0, left=5, height=20, width=20, is_flipped=False, rest=None)]
        """
        sides = torch.tensor([(width, height) for height, width in sizes], dtype=torch.float64)
        boxes = self._boxes(draws, sides[:, :1] / sides[:, 1:])
        lengths = (boxes[:, 2:] * sides).round().clamp(min=1)
        starts = torch.minimum((boxes[:, :2] * sides).round(), sides - lengths)
        whole = torch.cat([starts, lengths], dim=1).long().tolist()
        flips = self._flips(draws).tolist()
        rest = self._rest(draws, size or (1, 1))
        return [
            Crop(top, left, height, width, flip, None if rest is None else rest[i : i + 1])
            for i, ((left, top, width, height), flip) in enumerate(zip(whole, flips, strict=True))
        ]

    @property
    def _does_more(self) -> bool:
        return bool(self.rotation or self.translation or self.changes_colors)

    def _flips(self, draws: Tensor) -> Tensor:
        return draws[:, _N_OF_CROP - 1] < self.flip

    def _rest(self, draws: Tensor, size: tuple[int, ...]) -> Warp | None:
        """Return the further changes to the crops; None if there are none."""
        if not self._does_more:
            return None
        numbers = draws[:, _N_OF_CROP:]
        warp = Warp.identity(len(draws))
        if self.rotation:
            degrees = self.rotation * (2 * numbers[:, 0] - 1)
            warp = warp.then(Warp.from_rotations(degrees.float(), size))
        if self.translation:
            shifts = self.translation * (2 * numbers[:, 1:3] - 1)
            warp = warp.then(Warp.from_shifts(shifts.float()))
        found: dict[str, Tensor] = {}
        for name, drawn in zip(_PHOTOMETRIC, numbers[:, 3:].unbind(1), strict=True):
            strength = getattr(self, name)
            if strength and name == "grey":
                found[name] = drawn < strength
            elif strength and name == "blur":
                found[name] = (strength * drawn).float()
            elif strength:
                lowest = max(0.0, 1 - strength)
                found[name] = (lowest + (1 + strength - lowest) * drawn).float()
        if found:
            photometry = Photometry(**found, largest_blur=float(self.blur))
            warp = Warp(warp.matrix, photometry, is_inside=warp.is_inside)
        return warp

    def _boxes(self, draws: Tensor, aspect: Tensor) -> Tensor:
        """Return left, top, width and height of the first try that fits into the image."""
        areas, ratios = draws[:, :_N_TRIES], draws[:, _N_TRIES : 2 * _N_TRIES]
        positions = draws[:, _N_OF_CROP - 3 : _N_OF_CROP - 1]
        # Uniform in the logarithm: tall crops are as likely as wide ones.
        low, high = torch.tensor(self.ratio, dtype=torch.float64).log()
        ratio = torch.exp(low + (high - low) * ratios)
        area = self.scale[0] + (self.scale[1] - self.scale[0]) * areas
        sides = torch.stack([(area * ratio / aspect).sqrt(), (area / ratio * aspect).sqrt()], dim=2)
        fits = (sides <= 1).all(dim=2)
        first = fits.to(torch.uint8).argmax(dim=1)  # torch has no argmax for bool
        side = sides[torch.arange(len(sides)), first]
        drawn = torch.cat([(1 - side) * positions, side], dim=1)
        # The largest central crop, for an image that is wider or taller than the range allows.
        largest = torch.cat([self.ratio[1] / aspect, aspect / self.ratio[0]], dim=1).clamp(max=1)
        central = torch.cat([(1 - largest) / 2, largest], dim=1)
        return torch.where(fits.any(dim=1, keepdim=True), drawn, central)


def _is_range(pair: Any, highest: float) -> bool:
    """Whether a pair is two numbers with 0 < low <= high <= highest."""
    if not isinstance(pair, Sequence) or len(pair) != 2:
        return False
    return all(isinstance(end, Real) for end in pair) and 0 < pair[0] <= pair[1] <= highest
