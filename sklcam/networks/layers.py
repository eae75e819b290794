"""Target layers: the layer to explain, and how its output becomes a grid of positions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from sklcam._validation import check_callable, check_count, check_sides, describe
from sklcam.networks.dry_run import unwrap

Layout = Literal["nchw", "nhwc", "ncdhw", "ndhwc", "tokens"]

# The axes of a layer's output in each layout.
_AXES = {
    "nchw": "(n, K, u, v)",
    "nhwc": "(n, u, v, K)",
    "ncdhw": "(n, K, d, u, v)",
    "ndhwc": "(n, d, u, v, K)",
    "tokens": "(n, tokens, K)",
}


@dataclass(frozen=True)
class TargetLayer:
    """A layer to explain, and how its output becomes a grid of activations.

    Parameters
    ----------
    name : str
        Dotted name, as `model.get_submodule` takes it.
    layout : {"nchw", "nhwc", "ncdhw", "ndhwc", "tokens"}, default="nchw"
        Axes of the output: (n, K, u, v), (n, u, v, K) or (n, n_prefix + u * v, K). With a "d", for
        volumes: (n, K, d, u, v) or (n, d, u, v, K).
    grid : tuple of int (u, v) or None, default=None
        Rows and columns of the tokens; (d, u, v) for volumes.
    n_prefix : int, default=0
        Number of tokens before the grid, such as a class token; they are dropped.
    reshape : callable or None, default=None
        For outputs that no layout describes: takes the output and returns it as (n, K, u, v), or
        (n, K, d, u, v) for volumes, one row per image, differentiably.
    run : int or None, default=None
        Which run of a layer that runs several times in a pass: 0 is the first, -1 the last. None is
        for a layer that runs once.
    image_size : tuple of int (height, width) or None, default=None
        The image size that the grid is for, if the layer was found by probing. With images of other
        proportions, the same number of tokens may be another grid, so these are refused.

    Raises
    ------
    ValueError
        If the name is empty or not a str, the layout is not one of these or is "tokens" without a
        grid, `grid` is not of positive ints, `n_prefix` is not an int >= 0, `run` is not an int, or
        `reshape` cannot be called.

    Examples
    --------
    >>> import torch
    >>> from sklcam.networks import TargetLayer
    >>> TargetLayer("norm", layout="nhwc").to_grid(torch.zeros(1, 7, 9, 96)).shape
    torch.Size([1, 96, 7, 9])
    """

    name: str
    layout: Layout = "nchw"
    grid: tuple[int, ...] | None = None
    n_prefix: int = 0
    reshape: Callable[[Tensor], Tensor] | None = None
    run: int | None = None
    image_size: tuple[int, ...] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError(
                "The name of a target layer is empty, but the whole network cannot be one. Give "
                "the name of a layer."
            )
        if not isinstance(self.name, str):
            raise ValueError(f"A target layer's name must be a str; got {describe(self.name)}.")
        if self.layout not in _AXES:
            raise ValueError(
                f'layout must be "nchw", "nhwc", "ncdhw", "ndhwc" or "tokens"; got {self.layout!r}.'
            )
        if self.layout == "tokens" and self.grid is None:
            raise ValueError(f"Target layer {self.name!r} has tokens. Give grid=(rows, columns).")
        if self.grid is not None and not isinstance(self.grid, tuple):
            raise ValueError(f"grid must be a tuple (rows, columns); got {describe(self.grid)}.")
        if self.grid is not None:
            check_sides(self.grid, "grid")
        check_count("n_prefix", self.n_prefix, 0)
        if self.run is not None and (isinstance(self.run, bool) or not isinstance(self.run, int)):
            raise ValueError(f"run must be an int, such as 0 or -1; got {describe(self.run)}.")
        if self.image_size is not None:
            check_sides(self.image_size, "image_size")
        if self.reshape is not None:
            check_callable("reshape", self.reshape, "that turns outputs into (n, K, u, v)")

    def check_images(self, size: tuple[int, ...]) -> None:
        """Raise a ValueError if the grid is for images of another size.

        Parameters
        ----------
        size : tuple of int (height, width) or (depth, height, width)

        Raises
        ------
        ValueError
        """
        if self.image_size is not None and tuple(self.image_size) != tuple(size):
            raise ValueError(
                f"The tokens of the target layer {self.name!r} are a grid of {self.grid} for "
                f"images of {_by(self.image_size)} pixels; their grid for {_by(size)} pixels is "
                "not known. Fit on images of that size, or give a TargetLayer with a grid."
            )

    def check_axes(self, grid: Tensor, size: tuple[int, ...]) -> None:
        """Raise a ValueError if a grid has another number of spatial axes than its images.

        Parameters
        ----------
        grid : Tensor of shape (n, K, u, v) or (n, K, d, u, v)
            As ``to_grid`` returns it.
        size : tuple of int (height, width) or (depth, height, width)

        Raises
        ------
        ValueError
        """
        if grid.ndim != 2 + len(size):
            raise ValueError(
                f"The target layer {self.name!r} is a grid of {_by(grid.shape[2:])} places for "
                f"images of {_by(size)}. Their axes differ, so their places do not correspond. "
                "Name another layer; volumes are (n, C, D, H, W)."
            )

    def of(self, model: nn.Module) -> nn.Module:
        """Return the layer itself.

        Parameters
        ----------
        model : nn.Module
            The network the layer belongs to, compiled or not.

        Returns
        -------
        nn.Module

        Raises
        ------
        AttributeError
            If `model` has no layer of this name.
        """
        return unwrap(model).get_submodule(self.name)

    def to_grid(self, tensor: Tensor, n_images: int | None = None) -> Tensor:
        """View activations, or their gradients, as a grid.

        Parameters
        ----------
        tensor : Tensor
            Output of the layer, in its layout.
        n_images : int or None, default=None
            The number of images; None if it is not known.

        Returns
        -------
        Tensor of shape (n, K, u, v), or (n, K, d, u, v) for volumes
            A view; gradients flow through it.

        Raises
        ------
        ValueError
            If the tensor does not have the axes of the layout, or one row per image.
        """
        if self.reshape is None:
            self._check_axes(tensor)
        grid = self._laid_out(tensor)
        if n_images is not None and len(grid) != n_images:
            raise ValueError(
                f"Target layer {self.name!r} returns {len(grid)} rows, of shape "
                f"{tuple(tensor.shape)}, for {n_images} images: its first axis is not the images, "
                "or the network adds views of an image to the batch. Name a layer with one row "
                "per image, or pass a TargetLayer whose reshape turns the output into "
                "(n_images, K, u, v)."
            )
        return grid

    def _laid_out(self, tensor: Tensor) -> Tensor:
        if self.reshape is not None:
            return self._reshaped(tensor)
        if self.layout in ("nchw", "ncdhw"):
            return tensor
        if self.layout != "tokens":
            return tensor.movedim(-1, 1)
        assert self.grid is not None
        return tensor[:, self.n_prefix :].transpose(1, 2).unflatten(2, self.grid)

    def n_positions(self, tensor: Tensor) -> int:
        """Return how many positions the layer's output has for an image.

        With a single one, every map is constant.

        Parameters
        ----------
        tensor : Tensor
            Output of the layer, in its layout.

        Returns
        -------
        int
        """
        return math.prod(self.to_grid(tensor).shape[2:])

    def channel_axis(self, tensor: Tensor) -> int:
        """Return the axis of the layer's output that holds the channels.

        Parameters
        ----------
        tensor : Tensor
            Output of the layer, in its layout.

        Returns
        -------
        int

        Raises
        ------
        ValueError
            If a `reshape` does not show which one it is.
        """
        if self.reshape is None:
            return 1 if self.layout in ("nchw", "ncdhw") else tensor.ndim - 1
        n_channels = self.to_grid(tensor).shape[1]
        fitting = [axis for axis in range(1, tensor.ndim) if tensor.shape[axis] == n_channels]
        if len(fitting) != 1:
            raise ValueError(
                f"Which axis of {tuple(tensor.shape)} holds the {n_channels} channels of "
                f"{self.name!r} cannot be told from its reshape. Use a layout instead."
            )
        return fitting[0]

    def _reshaped(self, tensor: Tensor) -> Tensor:
        assert self.reshape is not None
        grid = self.reshape(tensor)
        if not isinstance(grid, Tensor) or grid.ndim not in (4, 5):
            came = tuple(grid.shape) if isinstance(grid, Tensor) else type(grid).__name__
            raise ValueError(
                f"reshape must turn the output of {self.name!r}, of shape {tuple(tensor.shape)}, "
                "into a Tensor (n, K, u, v), or (n, K, d, u, v) for volumes, with one row per "
                f"image; it returned {came}."
            )
        return grid

    def _check_axes(self, tensor: Tensor) -> None:
        wanted = _AXES[self.layout]
        given = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
        if not isinstance(tensor, Tensor) or tensor.ndim != wanted.count(",") + 1:
            raise ValueError(
                f"Target layer {self.name!r} should return a Tensor {wanted} in the {self.layout} "
                f"layout; got {given}. Name another layer, or pass a TargetLayer with the right "
                "layout."
            )
        if self.grid is not None and self.layout == "tokens":
            n_tokens = self.n_prefix + math.prod(self.grid)
            if tensor.shape[1] != n_tokens:
                raise ValueError(
                    f"Target layer {self.name!r} should return {n_tokens} tokens ({self.n_prefix} "
                    f"and a grid of {self.grid}); got {tensor.shape[1]} in shape {given}. Give "
                    "grid= and n_prefix= that fit."
                )


def channels_first(n_axes: int) -> Layout:
    """Return the layout of a convolution's output for a number of spatial axes."""
    return "nchw" if n_axes == 2 else "ncdhw"


def channels_last(n_axes: int) -> Layout:
    """Return the layout with the channels last for a number of spatial axes."""
    return "nhwc" if n_axes == 2 else "ndhwc"


def _by(sides: Sequence[int]) -> str:
    return " x ".join(map(str, sides))


Layer = nn.Module | TargetLayer


def module_of(model: nn.Module | None, layer: Layer) -> tuple[nn.Module, int | None]:
    """Return the module of a layer to record, and which of its runs counts.

    Raises
    ------
    ValueError
        If the network is not an nn.Module, the layer is not a part of it, or the layer was traced
        or scripted, so that it cannot be observed.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"module must be an nn.Module; got {describe(model)}.")
    if isinstance(layer, TargetLayer):
        part, run = layer.of(model), layer.run
    elif any(layer is each for each in model.modules()):
        part, run = layer, None
    else:
        raise ValueError(
            f"The target layer {type(layer).__name__} is not a part of {type(model).__name__}. "
            "Pass one of its modules."
        )
    if isinstance(part, torch.jit.ScriptModule):
        raise ValueError(
            f"The target layer {getattr(layer, 'name', type(part).__name__)!r} is traced or "
            "scripted, so nothing can be recorded from it. Use the nn.Module that it was made "
            "from."
        )
    return part, run
