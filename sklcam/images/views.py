"""Views: crops and flips that are recorded, to be applied to an image and to its map alike.

A random resized crop followed by a horizontal flip is an affine map, so a whole batch of views is
one tensor of 2x3 matrices. Nothing here knows of networks, explanations or losses.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from sklcam._validation import check_count, check_number, check_size, check_tensor, describe
from sklcam.images.frames import Interpolation, Resizing, resize_image

_N_TRIES = 10  # as torchvision's RandomResizedCrop: then the largest central crop is taken


class Crop(NamedTuple):
    """A view of one image, cut out of its own pixels and only then brought to a size.

    A :class:`Warp` samples an image that has its size already; a crop of few of its pixels is
    blurred. This cuts whole pixels, as torchvision does, so that the crop is as sharp as the image.
    """

    top: int
    left: int
    height: int
    width: int
    is_flipped: bool

    def __call__(
        self, image: Tensor, size: tuple[int, int], interpolation: Interpolation = "bilinear"
    ) -> Tensor:
        """Return the crop of an image, or of its mask, (..., height, width), at a size."""
        rows = slice(self.top, self.top + self.height)
        part = image[..., rows, self.left : self.left + self.width]
        part = resize_image(part, size, Resizing(interpolation=interpolation))
        return part.flip(-1) if self.is_flipped else part


class Warp:
    """A recorded geometric view of each image of a batch.

    Calling it warps images or maps; the same object warps both, so that ``t(map(x))`` and
    ``map(t(x))`` can be compared pixel by pixel.

    Parameters
    ----------
    matrix : Tensor of shape (n_images, 2, 3), floating point
        Affine maps from output to input coordinates, both in [-1, 1] with the pixels' outer edges
        at the ends (``align_corners=False``). They do not depend on the resolution, so that one
        view serves an image and a map of another size.

    Raises
    ------
    ValueError
        If the matrix is not a floating-point tensor of shape (n_images, 2, 3).

    Examples
    --------
    >>> import torch
    >>> from sklcam.training import Warp
    >>> images = torch.arange(4.0).reshape(1, 1, 1, 4)
    >>> Warp.from_crops(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), flip=torch.tensor([True]))(images)
    tensor([[[[3., 2., 1., 0.]]]])
    """

    def __init__(self, matrix: Tensor):
        is_float = isinstance(matrix, Tensor) and matrix.is_floating_point()
        if not is_float or matrix.ndim != 3 or tuple(matrix.shape[1:]) != (2, 3):
            raise ValueError(
                "A view is a 2x3 matrix per image, in a floating-point Tensor of shape "
                f"(n_images, 2, 3); got {describe(matrix)}."
            )
        self.matrix = matrix

    @classmethod
    def identity(cls, n_images: int) -> Warp:
        """Return the views that change nothing.

        Raises
        ------
        ValueError
            If ``n_images`` is not an int >= 0.
        """
        check_count("n_images", n_images, 0)
        return cls(torch.eye(2, 3).repeat(n_images, 1, 1))

    @classmethod
    def from_crops(cls, boxes: Tensor, flip: Tensor) -> Warp:
        """Build views from crop boxes and flips.

        Parameters
        ----------
        boxes : Tensor of shape (n_images, 4), in [0, 1]
            Left, top, width and height of each crop, as fractions of the image's sides.
        flip : Tensor of shape (n_images,), bool
            Whether the crop is then mirrored left to right.

        Returns
        -------
        Warp

        Raises
        ------
        ValueError
            If the boxes are not a floating-point tensor of shape (n_images, 4), or ``flip`` is not
            bool with an entry for each.
        """
        check_tensor("boxes", boxes, "n_images", "4")
        check_tensor("flip", flip, "n_images", floating=False)
        if boxes.shape[1] != 4 or flip.dtype != torch.bool or len(flip) != len(boxes):
            raise ValueError(
                "boxes must be of shape (n_images, 4), and flip of shape (n_images,) and bool; got "
                f"{describe(boxes)}, and {describe(flip)}."
            )
        left, top, width, height = boxes.unbind(1)
        matrix = boxes.new_zeros(len(boxes), 2, 3)
        matrix[:, 0, 0] = torch.where(flip, -width, width)
        matrix[:, 0, 2] = 2 * left + width - 1
        matrix[:, 1, 1] = height
        matrix[:, 1, 2] = 2 * top + height - 1
        return cls(matrix)

    def __len__(self) -> int:
        return len(self.matrix)

    def __repr__(self) -> str:
        return f"Warp(n_images={len(self)})"

    def to(self, device: torch.device | str) -> Warp:
        """Return the same views on another device."""
        return Warp(self.matrix.to(device, non_blocking=True))

    def __call__(self, images: Tensor) -> Tensor:
        """Warp images or maps, differentiably, at their own resolution.

        Parameters
        ----------
        images : Tensor of shape (n_images, channels, height, width) or (n_images, height, width)
            Floating point. What lies outside the image takes the value of its border.

        Returns
        -------
        Tensor of the same shape and dtype
            Bilinear samples. The identity and pure flips are returned exactly.

        Raises
        ------
        ValueError
            If the images are not a tensor of three or four axes, or not as many as the views.
        """
        if not isinstance(images, Tensor) or images.ndim not in (3, 4):
            raise ValueError(
                "images must be a Tensor of shape (n_images, channels, height, width) or "
                f"(n_images, height, width); got {describe(images)}."
            )
        if len(images) != len(self):
            raise ValueError(f"Got {len(images)} images for {len(self)} views; one each is needed.")
        if images.ndim == 3:
            return self(images[:, None])[:, 0]
        # Half precision could not tell one pixel from the next.
        dtype = torch.promote_types(images.dtype, torch.float32)
        matrix = self.matrix.to(images.device, dtype, non_blocking=True)
        grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
        warped = F.grid_sample(
            images.to(dtype), grid, padding_mode="border", align_corners=False
        ).to(images.dtype)
        return self._exact_where_nothing_is_interpolated(images, warped, matrix)

    @staticmethod
    def _exact_where_nothing_is_interpolated(
        images: Tensor, warped: Tensor, matrix: Tensor
    ) -> Tensor:
        # In float32 the sampling grid is off by 1e-5 of a pixel at 224 pixels. That is nothing to a
        # crop, but an unchanged or mirrored image should come back bit by bit.
        unchanged = torch.eye(2, 3, dtype=matrix.dtype, device=matrix.device)
        mirrored = unchanged.clone()
        mirrored[0, 0].neg_()  # to assign a number would be a copy that the host waits for
        is_unchanged = (matrix == unchanged).all(dim=2).all(dim=1)[:, None, None, None]
        is_mirrored = (matrix == mirrored).all(dim=2).all(dim=1)[:, None, None, None]
        warped = torch.where(is_unchanged, images, warped)
        return torch.where(is_mirrored, images.flip(-1), warped)


@dataclass(frozen=True)
class ViewSampler:
    """The distribution of views: a random resized crop, then a horizontal flip.

    Parameters
    ----------
    scale : tuple of two floats in (0, 1], default=(0.08, 1.0)
        Range of the crop's area, as a fraction of the image's.
    ratio : tuple of two floats > 0, default=(3/4, 4/3)
        Range of the crop's width over its height, in pixels, before it is resized.
    flip : float in [0, 1], default=0.5
        Probability of the flip.

    Raises
    ------
    ValueError
        If ``scale`` is not a range within (0, 1], ``ratio`` is not a range of positive numbers, or
        ``flip`` is outside 0 to 1.

    References
    ----------
    Sun, Phan, Nguyen, "Staying Consistent with GradCAM", section 3.3.1.

    Examples
    --------
    >>> import torch
    >>> from sklcam.training import ViewSampler
    >>> sample = ViewSampler()
    >>> views = sample(8, size=(32, 32), generator=torch.Generator().manual_seed(0))
    >>> views(torch.rand(8, 3, 32, 32)).shape
    torch.Size([8, 3, 32, 32])
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5

    def __post_init__(self) -> None:
        if not _is_range(self.scale, 1):
            raise ValueError(f"scale must be a range within (0, 1]; got {self.scale!r}.")
        if not _is_range(self.ratio, sys.float_info.max):
            raise ValueError(f"ratio must be a range of positive numbers; got {self.ratio!r}.")
        check_number("flip, a probability,", self.flip, 0, 1)

    def __call__(
        self, n_images: int, *, size: tuple[int, int], generator: torch.Generator | None = None
    ) -> Warp:
        """Draw one view per image.

        Parameters
        ----------
        n_images : int
        size : tuple of two ints
            Height and width of the images, in pixels; only their ratio matters.
        generator : torch.Generator on the CPU or None
            Where the numbers come from; None is torch's global generator. An image takes a fixed
            count of them, so that the views do not depend on how the images are batched.

        Returns
        -------
        Warp
            On the CPU: the same seed gives the same views whatever the device of the images.

        Raises
        ------
        ValueError
            If ``n_images`` is not an int >= 0, a side is not a positive int, or ``generator`` is
            something else.
        """
        check_count("n_images", n_images, 0)
        size = check_size(size, "size")
        if not isinstance(generator, torch.Generator | None):
            raise ValueError(
                f"generator must be a torch.Generator or None; got {describe(generator)}."
            )
        draws = self.draw(n_images, generator)
        boxes = self._boxes(
            draws, torch.full((n_images, 1), size[1] / size[0], dtype=torch.float64)
        )
        return Warp.from_crops(boxes.float(), flip=draws[:, -1] < self.flip)

    @staticmethod
    def draw(n_images: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw the numbers that views are made of, a row an image, whether or not all are needed.

        Parameters
        ----------
        n_images : int
        generator : torch.Generator on the CPU or None, default=None

        Returns
        -------
        Tensor of shape (n_images, n_numbers), float64 in [0, 1)
        """
        return torch.rand(n_images, 2 * _N_TRIES + 3, generator=generator, dtype=torch.float64)

    def crops(self, draws: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Crop]:
        """Turn numbers into views of images whose sizes are known by now.

        Parameters
        ----------
        draws : Tensor of shape (n_images, n_numbers)
            Of :meth:`draw`.
        sizes : sequence of (height, width)
            Of the images, as they are before they are resized.

        Returns
        -------
        list of Crop
            In whole pixels, at least one a side.

        Examples
        --------
        >>> import torch
        >>> from sklcam.training import ViewSampler
        >>> sample = ViewSampler(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0)
        >>> sample.crops(sample.draw(1), [(20, 30)])
        [Crop(top=0, left=5, height=20, width=20, is_flipped=False)]
        """
        sides = torch.tensor([(width, height) for height, width in sizes], dtype=torch.float64)
        boxes = self._boxes(draws, sides[:, :1] / sides[:, 1:])
        lengths = (boxes[:, 2:] * sides).round().clamp(min=1)
        starts = torch.minimum((boxes[:, :2] * sides).round(), sides - lengths)
        whole = torch.cat([starts, lengths], dim=1).long().tolist()
        flips = (draws[:, -1] < self.flip).tolist()
        return [
            Crop(top, left, height, width, flip)
            for (left, top, width, height), flip in zip(whole, flips, strict=True)
        ]

    def _boxes(self, draws: Tensor, aspect: Tensor) -> Tensor:
        """Left, top, width and height of the first try that fits into an image of this aspect."""
        areas, ratios = draws[:, :_N_TRIES], draws[:, _N_TRIES : 2 * _N_TRIES]
        positions = draws[:, -3:-1]
        # Uniform in the logarithm: a crop is as likely to be tall as it is to be wide.
        low, high = torch.tensor(self.ratio, dtype=torch.float64).log()
        ratio = torch.exp(low + (high - low) * ratios)
        area = self.scale[0] + (self.scale[1] - self.scale[0]) * areas
        sides = torch.stack([(area * ratio / aspect).sqrt(), (area / ratio * aspect).sqrt()], dim=2)
        fits = (sides <= 1).all(dim=2)
        first = fits.to(torch.uint8).argmax(dim=1)  # of bool, torch has none
        side = sides[torch.arange(len(sides)), first]
        drawn = torch.cat([(1 - side) * positions, side], dim=1)
        # The largest central crop: cut where the image is wider, or taller, than any may be.
        largest = torch.cat([self.ratio[1] / aspect, aspect / self.ratio[0]], dim=1).clamp(max=1)
        central = torch.cat([(1 - largest) / 2, largest], dim=1)
        return torch.where(fits.any(dim=1, keepdim=True), drawn, central)


def _is_range(pair: Any, highest: float) -> bool:
    """Whether these are two numbers, 0 < low <= high <= highest."""
    if not isinstance(pair, Sequence) or len(pair) != 2:
        return False
    return all(isinstance(end, Real) for end in pair) and 0 < pair[0] <= pair[1] <= highest
