"""Maps as NumPy arrays: their frame and dtype, and the array that holds them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeGuard

import numpy as np
import torch
from torch import Tensor

from sklcam.cam import Method, Uniform
from sklcam.networks.fetching import Fetching

Frame = Literal["input", "image", "layer"]
MapDtype = Literal["float16", "float32", "float64"]

_IN_TORCH = {"float16": torch.float16, "float32": torch.float32, "float64": torch.float64}


def check_frame(frame: object) -> None:
    """Raise a ValueError unless this is a frame of maps."""
    if frame not in ("input", "image", "layer"):
        raise ValueError(f'frame must be "input", "image" or "layer"; got {frame!r}.')


def dtype_of_maps(
    dtype: Any, out: object, methods: Iterable[Method], normalize: bool
) -> np.dtype[Any]:
    """Return the dtype of the maps.

    Parameters
    ----------
    dtype : {"float16", "float32", "float64"}, a NumPy dtype of these, or None
        None takes the dtype of ``out``, or float32 without it.
    out : ndarray or None
        The array to write the maps to.
    methods : iterable of Method
    normalize : bool
        Whether maps are scaled to [0, 1].

    Returns
    -------
    dtype

    Raises
    ------
    ValueError
        If ``dtype`` is none of these, ``out`` has a different dtype, or maps would not fit into
        float16.
    """
    held = out.dtype if _is_floating(out) else np.dtype(np.float32)
    asked = held if dtype is None else _as_dtype(dtype)
    if asked is None:
        raise ValueError(f'dtype must be "float16", "float32" or "float64"; got {dtype!r}.')
    if _is_floating(out) and asked != held:
        raise ValueError(f"dtype is {asked}, but out has {held}. Leave dtype at None with out.")
    if asked == np.float16:
        _check_fits_into_float16(methods, normalize)
    return asked


def _as_dtype(dtype: Any) -> np.dtype[Any] | None:
    try:
        asked = np.dtype(dtype)
    except (TypeError, ValueError):
        return None
    return asked if asked.name in _IN_TORCH else None


def _is_floating(out: object) -> TypeGuard[np.ndarray]:
    return isinstance(out, np.ndarray) and out.dtype.name in _IN_TORCH


def _check_fits_into_float16(methods: Iterable[Method], normalize: bool) -> None:
    for method in methods:
        if isinstance(method, Uniform) or (normalize and method.scaled):
            continue
        remedy = "Use float32, or leave normalize at True" if method.scaled else "Use float32"
        raise ValueError(
            "float16 is for maps scaled to [0, 1]. The unscaled numbers of "
            f"{type(method).__name__} may be too large for it, or so small that they become 0. "
            f"{remedy}."
        )


class MapStore:
    """Collects the maps of all images, batch after batch.

    Parameters
    ----------
    shapes : sequence of tuple of int
        The shape of the maps of all images, for each method.
    dtype : dtype
    out : ndarray or None
        The array to write the maps of a single method to.
    has_lists : bool
        Whether images differ in the size or the number of their maps, which are then held in lists.
    has_sides : bool
        Whether the shapes end with the sides of a map. Otherwise the first batch tells the sides.

    Attributes
    ----------
    results : list of ndarray, or list of list of ndarray
        The maps of each method.

    Raises
    ------
    ValueError
        If ``out`` cannot hold the maps.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, ...]],
        dtype: np.dtype[Any],
        out: np.ndarray | None,
        *,
        has_lists: bool,
        has_sides: bool,
    ):
        self._dtype = dtype
        self._out = out
        self.results: list[Any] = []
        if out is not None:
            if has_lists:
                raise ValueError(
                    'out= takes maps of one size. Leave frame at "input" with it, or get maps of '
                    "the images' sizes from iter_explain."
                )
            if len(shapes) > 1:
                raise ValueError(f"out= takes the maps of one method; got {len(shapes)} methods.")
            _check_out(out, shapes[0], has_sides)
        if has_lists:
            self.results = [[None] * shape[0] for shape in shapes]
        elif has_sides:
            self._allocate(shapes)
        self._n_images = shapes[0][0]

    def _allocate(self, shapes: Sequence[tuple[int, ...]]) -> None:
        made = [np.empty(shape, self._dtype) for shape in shapes] if self._out is None else None
        self.results = [self._out] if made is None else made

    def write(self, start: int, maps: Sequence[Any]) -> int:
        """Write each method's maps of a batch, starting at a row. Return the number of images."""
        if not self.results:
            shapes = [(self._n_images, *each.shape[1:]) for each in maps]
            if self._out is not None:
                _check_out(self._out, shapes[0], True)
            self._allocate(shapes)
        for result, each in zip(self.results, maps, strict=True):
            result[start : start + len(each)] = each
        return len(maps[0])


def _check_out(out: object, shape: tuple[int, ...], has_sides: bool) -> None:
    part = slice(None if has_sides else len(shape))
    if not _is_floating(out) or out.shape[part] != shape:
        found = f"{out.dtype} of shape {out.shape}" if isinstance(out, np.ndarray) else type(out)
        rest = "" if has_sides else ", followed by the sides of the layer's grid"
        raise ValueError(
            f"out must be a floating-point ndarray of shape {shape}{rest}; got {found}."
        )
    if not out.flags.writeable:
        raise ValueError("out is read-only. Open a memmap with mode 'r+' or 'w+'.")


class SentMaps:
    """The maps of a batch, while they are copied to the host.

    Parameters
    ----------
    start : int
        The row of the first image.
    maps : sequence of Tensor, or of list of Tensor
        The maps of each method: in one tensor, or one tensor per image.
    dtype : dtype
        The dtype to which maps are converted before they are copied.
    counts : sequence of int or None, default=None
        The number of maps of each image, if rows were padded to the largest number.
    """

    def __init__(
        self,
        start: int,
        maps: Sequence[Tensor | list[Tensor]],
        dtype: np.dtype[Any],
        counts: Sequence[int] | None = None,
    ):
        self.start = start
        self._counts = counts
        self._are_lists = [isinstance(each, list) for each in maps]
        numbers = _IN_TORCH[dtype.name]
        self._coming = [[Fetching(one.to(numbers)) for one in _listed(each)] for each in maps]
        self.is_here = all(one.is_here for each in self._coming for one in each)

    def arrays(self) -> list[Any]:
        """Return the maps of each method: one array, or a list with one array per image."""
        made = [[one.get().numpy() for one in each] for each in self._coming]
        found: list[Any] = [
            each if is_list else each[0]
            for each, is_list in zip(made, self._are_lists, strict=True)
        ]
        if self._counts is None:
            return found
        return [
            [own[:count] for own, count in zip(each, self._counts, strict=True)] for each in found
        ]


def _listed(maps: Tensor | list[Tensor]) -> list[Tensor]:
    return maps if isinstance(maps, list) else [maps]
