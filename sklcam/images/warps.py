"""Warps: where the pixels of views come from, recorded for a batch, and applied to images or maps.

They are affine maps, so a whole batch is one tensor of 2x3 matrices, or 3x4 matrices for volumes.
Changes of colour are recorded with them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sklcam._validation import check_count, check_sides, check_tensor, describe
from sklcam.images.photometric import Photometry

# If a view moves whole pixels, rounding may be off by this fraction of one.
_PIXEL_ROUNDING = 1e-3
# Rounding may reach this far beyond the image's edge, in units of half its side.
_EDGE_ROUNDING = 1e-6


class Warp:
    """A recorded view of each image of a batch.

    Calling it warps images or maps. The same object warps both, so that ``t(map(x))`` and
    ``map(t(x))`` can be compared pixel by pixel. :meth:`of_images` also changes colours.

    Parameters
    ----------
    matrix : Tensor of shape (n_images, 2, 3), floating point; (n_images, 3, 4) for volumes
        Affine maps from output to input coordinates, both in [-1, 1] with the pixels' outer edges
        at the ends (``align_corners=False``). They do not depend on the resolution, so one view
        serves an image and a map of another size.
    photometry : Photometry or None, default=None
        Changes to the pixels of an image, but not to its map.
    is_inside : bool, default=False
        Whether it is known that no view reaches beyond its image, as with crops and flips. This
        saves a check.

    Raises
    ------
    ValueError
        If the matrix is not a floating-point tensor of shape (n_images, 2, 3) or (n_images, 3, 4).

    Examples
    --------
    >>> import torch
    >>> from sklcam.training import Warp
    >>> images = torch.arange(4.0).reshape(1, 1, 1, 4)
    >>> Warp.from_crops(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), flip=torch.tensor([True]))(images)
    tensor([[[[3., 2., 1., 0.]]]])
    >>> shift = Warp.from_shifts(torch.tensor([[0.25, 0.0]]))
    >>> shift(images), shift.valid((1, 4))
    (tensor([[[[0., 0., 1., 2.]]]]), tensor([[[False,  True,  True,  True]]]))
    """

    def __init__(
        self, matrix: Tensor, photometry: Photometry | None = None, *, is_inside: bool = False
    ):
        is_float = isinstance(matrix, Tensor) and matrix.is_floating_point()
        if not is_float or matrix.ndim != 3 or tuple(matrix.shape[1:]) not in ((2, 3), (3, 4)):
            raise ValueError(
                "The matrices of views must be a floating-point Tensor of shape (n_images, 2, 3), "
                f"or (n_images, 3, 4) for volumes; got {describe(matrix)}."
            )
        self.matrix, self.photometry, self.is_inside = matrix, photometry, is_inside
        self._mirrors: _Mirrors | None = None  # known for views that came from the host

    @property
    def n_axes(self) -> int:
        """The number of spatial axes of the images: 2, or 3 for volumes."""
        return self.matrix.shape[1]

    @classmethod
    def identity(cls, n_images: int, n_axes: int = 2) -> Warp:
        """Return views that change nothing.

        Parameters
        ----------
        n_images : int
        n_axes : int, default=2
            3 for volumes.

        Raises
        ------
        ValueError
            If ``n_images`` is not an int >= 0, or ``n_axes`` not 2 or 3.
        """
        check_count("n_images", n_images, 0)
        check_count("n_axes", n_axes, 2, 3)
        return cls(torch.eye(n_axes, n_axes + 1).repeat(n_images, 1, 1), is_inside=True)

    @classmethod
    def from_crops(cls, boxes: Tensor, flip: Tensor, *, is_inside: bool | None = None) -> Warp:
        """Build views from crop boxes and flips.

        Parameters
        ----------
        boxes : Tensor of shape (n_images, 4), in [0, 1]
            Left, top, width and height of each crop, as fractions of the image's sides. For volumes
            (n_images, 6): left, top and front, then width, height and depth.
        flip : Tensor of shape (n_images,), bool
            Whether the crop is then mirrored left to right. For volumes (n_images, 3): along the
            width, the height and the depth.
        is_inside : bool or None, default=None
            Whether all boxes lie within their images. None checks this if the boxes are on the CPU,
            and assumes False otherwise.

        Returns
        -------
        Warp

        Raises
        ------
        ValueError
            If the boxes are not a floating-point tensor of shape (n_images, 4) or (n_images, 6), or
            ``flip`` is not bool with an entry for each.
        """
        check_tensor("boxes", boxes, "n_images", "4")
        if boxes.shape[1] == 6:
            return cls._from_crops_of_volumes(boxes, flip, is_inside=is_inside)
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
        return cls(matrix, is_inside=_are_inside(boxes) if is_inside is None else is_inside)

    @classmethod
    def _from_crops_of_volumes(cls, boxes: Tensor, flip: Tensor, *, is_inside: bool | None) -> Warp:
        is_bool = isinstance(flip, Tensor) and flip.dtype == torch.bool
        if not is_bool or flip.shape != (len(boxes), 3):
            raise ValueError(
                "flip must be bool and of shape (n_images, 3) for boxes of volumes, (n_images, 6); "
                f"got {describe(flip)}, and {describe(boxes)}."
            )
        starts, lengths = boxes[:, :3], boxes[:, 3:]
        linear = torch.diag_embed(torch.where(flip, -lengths, lengths))
        matrix = torch.cat([linear, (2 * starts + lengths - 1)[:, :, None]], dim=2)
        return cls(matrix, is_inside=_are_inside(boxes) if is_inside is None else is_inside)

    @classmethod
    def from_rotations(cls, degrees: Tensor, size: tuple[int, ...]) -> Warp:
        """Build views that rotate images about their centres.

        Parameters
        ----------
        degrees : Tensor of shape (n_images,)
            Counterclockwise.
        size : tuple of two ints, or of three
            Height and width of the images, in pixels; only their ratio matters. Volumes, with
            depth, height and width, are rotated about their depth axis, slice by slice.

        Returns
        -------
        Warp
            Quarter turns of square images are exact.

        Raises
        ------
        ValueError
            If ``degrees`` is not a floating-point tensor of shape (n_images,), or a side is not a
            positive int.
        """
        check_tensor("degrees", degrees, "n_images")
        *depth, height, width = check_sides(size, "size")
        # Quarter turns are separate, as the computed cosine of 90 degrees is not exactly 0.
        quarters = (degrees / 90).round()
        rest = torch.deg2rad(degrees - 90 * quarters)
        turn = quarters.remainder(4)
        cos_of = (turn == 0).to(degrees.dtype) - (turn == 2).to(degrees.dtype)
        sin_of = (turn == 1).to(degrees.dtype) - (turn == 3).to(degrees.dtype)
        cosine = cos_of * rest.cos() - sin_of * rest.sin()
        sine = sin_of * rest.cos() + cos_of * rest.sin()
        matrix = degrees.new_zeros(len(degrees), 2, 3)
        matrix[:, 0, 0] = matrix[:, 1, 1] = cosine
        matrix[:, 0, 1], matrix[:, 1, 0] = -sine * (height / width), sine * (width / height)
        if depth:
            whole = torch.eye(3, 4, dtype=matrix.dtype, device=matrix.device)
            whole = whole.repeat(len(matrix), 1, 1)
            whole[:, :2, :2] = matrix[:, :, :2]
            return cls(whole)
        return cls(matrix)

    @classmethod
    def from_shifts(cls, shifts: Tensor) -> Warp:
        """Build views that shift images.

        Parameters
        ----------
        shifts : Tensor of shape (n_images, 2)
            How far the content moves to the right and down, as fractions of the width and the
            height. For volumes (n_images, 3), with how far it moves back as a fraction of the
            depth.

        Returns
        -------
        Warp
            Shifts by whole pixels are exact.

        Raises
        ------
        ValueError
            If ``shifts`` is not a floating-point tensor of shape (n_images, 2) or (n_images, 3).
        """
        check_tensor("shifts", shifts, "n_images", "2")
        n_axes = shifts.shape[1]
        if n_axes not in (2, 3):
            raise ValueError(
                f"shifts must be of shape (n_images, 2), or (n_images, 3) for volumes; got "
                f"{describe(shifts)}."
            )
        matrix = torch.eye(n_axes, n_axes + 1, dtype=shifts.dtype, device=shifts.device)
        matrix = matrix.repeat(len(shifts), 1, 1)
        matrix[:, :, -1] = -2 * shifts
        return cls(matrix)

    def __len__(self) -> int:
        return len(self.matrix)

    def __repr__(self) -> str:
        return f"Warp(n_images={len(self)})"

    def __getitem__(self, rows: slice) -> Warp:
        """Return the views of some of the images."""
        photometry = None if self.photometry is None else self.photometry[rows]
        some = Warp(self.matrix[rows], photometry, is_inside=self.is_inside)
        some._mirrors = None if self._mirrors is None else self._mirrors[rows]
        return some

    def to(self, device: torch.device | str) -> Warp:
        """Return the same views on another device."""
        photometry = None if self.photometry is None else self.photometry.to(device)
        moved = Warp(_moved(self.matrix, device), photometry, is_inside=self.is_inside)
        if self.is_inside and self.n_axes == 2:
            found = self._found_mirrors()
            is_known = self.matrix.device.type == "cpu" != moved.matrix.device.type
            moved._mirrors = (found.pruned() if is_known else found).to(device)
        return moved

    def then(self, other: Warp) -> Warp:
        """Return this warp followed by another, as one warp that samples the image once.

        Parameters
        ----------
        other : Warp
            A warp of the same number of images.

        Returns
        -------
        Warp
            The second warp may bring back parts that the first one has cropped.

        Raises
        ------
        ValueError
            If `other` is not a Warp of the same number of images, or this one changes colours,
            which must come last.
        """
        is_alike = isinstance(other, Warp) and other.matrix.shape == self.matrix.shape
        if not is_alike or self.photometry is not None:
            raise ValueError(
                f"then needs a Warp of {len(self)} images with {self.n_axes} axes, after one that "
                f"does not change colours; got {describe(other)} after {describe(self)}."
            )
        linear, shift = self.matrix[:, :, :-1], self.matrix[:, :, -1:]
        matrix = linear @ other.matrix
        matrix[:, :, -1:] += shift
        return Warp(matrix, other.photometry, is_inside=self.is_inside and other.is_inside)

    def inverse(self) -> Warp:
        """Return the views that undo the geometry of these; see :meth:`valid`.

        Returns
        -------
        Warp

        Raises
        ------
        ValueError
            If a view cannot be undone, as it shows only a line or a point.
        """
        linear, shift = self.matrix[:, :, :-1], self.matrix[:, :, -1:]
        if self.n_axes == 2:
            (a, b), (c, d) = (row.unbind(1) for row in linear.unbind(1))
            determinant = a * d - b * c
            adjugate = torch.stack([torch.stack([d, -b], 1), torch.stack([-c, a], 1)], dim=1)
        else:
            x, y, z = linear.unbind(1)
            crossed = [torch.linalg.cross(*pair) for pair in ((y, z), (z, x), (x, y))]
            adjugate = torch.stack(crossed, dim=2)
            determinant = (x * crossed[0]).sum(dim=1)
        if bool((determinant == 0).any()):
            raise ValueError(
                "A view shows only a line or a point of its image, so it has no inverse. Use crops "
                "with an area."
            )
        linear = adjugate / determinant[:, None, None]
        return Warp(torch.cat([linear, -linear @ shift], dim=2))

    def valid(self, size: tuple[int, ...]) -> Tensor:
        """Return which pixels of the views come from inside the images.

        Parameters
        ----------
        size : tuple of two ints, or of three
            Height and width of the views; for volumes, depth, height and width.

        Returns
        -------
        Tensor of shape (n_images, height, width) or (n_images, depth, height, width), bool

        Raises
        ------
        ValueError
            If the number of sides is not that of the images' axes, or a side is not a positive int.
        """
        size = check_sides(size, "size")
        if len(size) != self.n_axes:
            raise ValueError(f"size must have {self.n_axes} sides for these views; got {size}.")
        matrix = self.matrix.to(torch.promote_types(self.matrix.dtype, torch.float32))
        grid = F.affine_grid(matrix, [len(self), 1, *size], align_corners=False)
        return (grid.abs() <= 1 + _EDGE_ROUNDING).all(dim=-1)

    def of_images(self, images: Tensor) -> Tensor:
        """Return the views of images: warped, and with their changes of colour.

        Parameters
        ----------
        images : Tensor of shape (n_images, channels, height, width), in [0, 1]
            Images that are not normalised yet.

        Returns
        -------
        Tensor of the same shape and dtype
        """
        views = self(images)
        return views if self.photometry is None else self.photometry(views)

    def __call__(self, images: Tensor) -> Tensor:
        """Warp images or maps, differentiably, at their own resolution.

        Parameters
        ----------
        images : Tensor of shape (n_images, channels, height, width) or (n_images, height, width)
            Floating point; for volumes, with a depth axis before the height. Places outside the
            image take the value of its border.

        Returns
        -------
        Tensor of the same shape and dtype
            Bilinear samples; trilinear ones for volumes. Views that move whole pixels are exact:
            the identity, flips, quarter turns of square images, and shifts by whole pixels.

        Raises
        ------
        ValueError
            If the images are not a tensor with three or four axes (four or five for volumes), or
            their number is not that of the views.
        """
        n_axes = self.n_axes
        if not isinstance(images, Tensor) or images.ndim not in (n_axes + 1, n_axes + 2):
            sides = "height, width" if n_axes == 2 else "depth, height, width"
            raise ValueError(
                f"images must be a Tensor of shape (n_images, channels, {sides}) or "
                f"(n_images, {sides}); got {describe(images)}."
            )
        if len(images) != len(self):
            raise ValueError(
                f"Got {len(images)} images for {len(self)} views. Give one view per image."
            )
        if images.ndim == n_axes + 1:
            return self(images.unsqueeze(1)).squeeze(1)
        # Half precision is too coarse to distinguish neighbouring pixels.
        dtype = torch.promote_types(images.dtype, torch.float32)
        matrix = self.matrix.to(images.device, dtype, non_blocking=True)
        grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
        warped = F.grid_sample(
            images.to(dtype), grid, padding_mode="border", align_corners=False
        ).to(images.dtype)
        # In float32 the sampling grid is off by 1e-5 of a pixel at 224 pixels. This does not matter
        # for a crop, but views that only move pixels should be exact to the bit.
        if self.is_inside and n_axes == 2:
            # Among crops and flips, only these move whole pixels, and checking is almost free.
            return self._found_mirrors().to(images.device).put(images, warped)
        moved = F.grid_sample(
            images.to(dtype), grid, mode="nearest", padding_mode="border", align_corners=False
        ).to(images.dtype)
        moves = _moves_pixels(matrix, images.shape[2:])
        return torch.where(moves.reshape(-1, *[1] * (n_axes + 1)), moved, warped)

    def _found_mirrors(self) -> _Mirrors:
        return self._mirrors or _Mirrors.among(self.matrix)


@dataclass(frozen=True)
class _Mirrors:
    """Which views leave their images unchanged, and which only mirror them left to right.

    Parameters
    ----------
    unchanged, mirrored : Tensor of shape (n_images,), bool, or None
        None if it is known that there are none.
    """

    unchanged: Tensor | None
    mirrored: Tensor | None

    @classmethod
    def among(cls, matrix: Tensor) -> _Mirrors:
        """Find them among the matrices of views."""
        unchanged = torch.eye(2, 3, dtype=matrix.dtype, device=matrix.device)
        mirrored = unchanged.clone()
        mirrored[0, 0].neg_()  # assigning a number would be a copy that the host waits for
        return cls(*((matrix == each).flatten(1).all(dim=1) for each in (unchanged, mirrored)))

    def pruned(self) -> _Mirrors:
        """Return the same on the host, with None in place of masks that are all False."""
        return self._each(lambda which: which if which.any() else None)

    def __getitem__(self, rows: slice) -> _Mirrors:
        return self._each(lambda which: which[rows])

    def to(self, device: torch.device | str) -> _Mirrors:
        return self._each(lambda which: _moved(which, device))

    def _each(self, change: Callable[[Tensor], Tensor | None]) -> _Mirrors:
        both = (self.unchanged, self.mirrored)
        return _Mirrors(*(None if which is None else change(which) for which in both))

    def put(self, images: Tensor, warped: Tensor) -> Tensor:
        """Replace the warped images of views that only move pixels by exact ones."""
        if self.unchanged is not None:
            warped = torch.where(self.unchanged[:, None, None, None], images, warped)
        if self.mirrored is not None:
            warped = torch.where(self.mirrored[:, None, None, None], images.flip(-1), warped)
        return warped


def _moved(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Move a tensor; wait only for a copy to the host, which is read there at once."""
    return tensor.to(device, non_blocking=torch.device(device).type != "cpu")


def _are_inside(boxes: Tensor) -> bool:
    """Whether crops are known to lie within their images, without waiting for a device."""
    n_axes = boxes.shape[1] // 2
    reach = torch.maximum(-boxes[:, :n_axes], boxes[:, :n_axes] + boxes[:, n_axes:] - 1)
    return boxes.device.type == "cpu" and bool((reach <= _EDGE_ROUNDING).all())


def _moves_pixels(matrix: Tensor, size: Sequence[int]) -> Tensor:
    """Return which views take each pixel from the centre of another, (n_images,)."""
    sides = [*reversed(size)]  # the first coordinate is along the width
    # The maps of pixel indices: their steps, and the origin of the first pixel.
    rows, firsts = [], []
    for n, row in zip(sides, matrix.unbind(1), strict=True):
        *linear, shift = row.unbind(1)
        steps = [each * (n / other) for each, other in zip(linear, sides, strict=True)]
        first = (1 + shift) * n - 1
        for step, other in zip(steps, sides, strict=True):
            first = first - step * (other - 1)
        rows += steps
        firsts.append(first / 2)
    steps_, first = torch.stack(rows, dim=1), torch.stack(firsts, dim=1)
    drift = (steps_ - steps_.round()).abs().amax(dim=1) * max(sides)
    off = (first - first.round()).abs().amax(dim=1)
    return drift + off <= _PIXEL_ROUNDING
