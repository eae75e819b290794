"""Checks of arguments that many functions take: numbers, sizes, tensors and seeds.

They look only at types, shapes and plain numbers. This costs next to nothing and never makes the
host wait for a device, so functions in the middle of training can afford it too. Arguments of a
single module are checked in that module.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import SequenceMatcher, get_close_matches
from numbers import Integral, Real
from textwrap import shorten
from typing import Any, Literal

import numpy as np
from sklearn.utils import check_random_state
from torch import Tensor

# Pictures have the last two of these axes, volumes have all three.
AXES = ("depth", "height", "width")


def describe(value: Any) -> str:
    """Describe a value for a message: the dtype and shape of an array, else the type and the value.

    Parameters
    ----------
    value : Any

    Returns
    -------
    str

    Examples
    --------
    >>> import numpy as np
    >>> from sklcam._validation import describe
    >>> describe(np.zeros((2, 3))), describe("cat")
    ('an ndarray of float64 and shape (2, 3)', "a str, 'cat'")
    """
    if value is None:
        return "None"
    kind = type(value).__name__
    kind = f"an {kind}" if kind.startswith((*"aeioAEIO", "ndarray")) else f"a {kind}"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{kind} of {value.dtype} and shape {tuple(value.shape)}"
    text = repr(value)
    return f"{kind}, {text if len(text) <= 80 else text[:77] + '...'}"


def is_instance(value: Any, library: str, *names: str) -> bool:
    """Whether a value is an instance of a class of an optional library, without importing it.

    Parameters
    ----------
    value : Any
    library : str
        The name of the library's module.
    *names : str
        The names of the classes; a version of the library may lack some.

    Returns
    -------
    bool

    Examples
    --------
    >>> import decimal
    >>> from sklcam._validation import is_instance
    >>> is_instance(decimal.Decimal(1), "decimal", "Decimal"), is_instance(1, "decimal", "Decimal")
    (True, False)
    """
    module = sys.modules.get(library)
    classes = [getattr(module, name, None) for name in names]
    return isinstance(value, tuple(each for each in classes if isinstance(each, type)))


def suggestion(name: Any, known: Iterable[str]) -> str:
    """Suggest known names that are close to an unknown one, or list them all.

    Parameters
    ----------
    name : Any
    known : iterable of str

    Returns
    -------
    str

    Examples
    --------
    >>> from sklcam._validation import suggestion
    >>> suggestion("adc", ["adcc", "iauc"]), suggestion("ssim", ["adcc", "iauc"])
    ('Did you mean: adcc?', 'There are: adcc, iauc.')
    """
    known, name = sorted(known), str(name)
    # Names that are equally close stay sorted, for example by the numbers at their ends.
    close = get_close_matches(name, known, n=10)
    close.sort(key=lambda each: (-SequenceMatcher(None, each, name).ratio(), each))
    if close:
        return f"Did you mean: {', '.join(close[:3])}?"
    # A network has hundreds of layers.
    return f"There are: {shorten(', '.join(known), 1000, placeholder=' ...')}."


def check_count(name: str, value: Any, low: int = 1, high: int | None = None) -> None:
    """Raise a ValueError unless the value is an int in a range.

    Parameters
    ----------
    name : str
        The name of the value in the message.
    value : Any
    low, high : int
        The range, including its ends; None means no limit.

    Examples
    --------
    >>> from sklcam._validation import check_count
    >>> check_count("n_steps, of 144 pixels,", 500, 1, 144)
    Traceback (most recent call last):
    ...
    ValueError: n_steps, of 144 pixels, must be an int from 1 to 144; got 500.
    """
    is_int = isinstance(value, Integral) and not isinstance(value, bool)
    if not is_int or value < low or (high is not None and value > high):
        wanted = f">= {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"{name} must be an int {wanted}; got {value!r}.")


def check_number(
    name: str,
    value: Any,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    closed: Literal["both", "left", "right", "neither"] = "both",
) -> None:
    """Raise a ValueError unless the value is a finite number in a range.

    Parameters
    ----------
    name : str
        The name of the value in the message.
    value : Any
    low, high : float
        The range.
    closed : {"both", "left", "right", "neither"}, default="both"
        Which ends belong to the range.

    Examples
    --------
    >>> from sklcam._validation import check_number
    >>> check_number("std", -1, 0)
    Traceback (most recent call last):
    ...
    ValueError: std must be a finite number >= 0; got -1.
    """
    has_low, has_high = closed in ("both", "left"), closed in ("both", "right")
    if isinstance(value, Real) and math.isfinite(value):
        number = float(value)
        inside = low < number < high
        if inside or (has_low and number == low) or (has_high and number == high):
            return
    wanted = "a finite number"
    if math.isfinite(low) and math.isfinite(high):
        start, end = "from" if has_low else "above", "to" if has_high else "to below"
        wanted = f"a number {start} {low} {end} {high}"
        if closed == "neither":
            wanted = f"a number between {low} and {high}"
    elif math.isfinite(low):
        wanted += f" >{'=' if has_low else ''} {low}"
    raise ValueError(f"{name} must be {wanted}; got {value!r}.")


def check_size(size: Any, name: str) -> tuple[int, int]:
    """Return height and width; raise a ValueError unless they are positive ints, or one for both.

    Parameters
    ----------
    size : int or (int, int)
    name : str
        The name of the value in the message.

    Returns
    -------
    tuple of (int, int)

    Examples
    --------
    >>> from sklcam._validation import check_size
    >>> check_size(224, "image_size")
    (224, 224)
    """
    pair = (size, size) if isinstance(size, Integral) else size
    is_pair = isinstance(pair, Sequence) and not isinstance(pair, str) and len(pair) == 2
    if not is_pair or not all(_is_positive_int(side) for side in pair):
        raise ValueError(
            f"{name} must be a positive int or a pair (height, width) of them; got {size!r}."
        )
    return int(pair[0]), int(pair[1])


def check_sides(size: Any, name: str) -> tuple[int, ...]:
    """Return the sides of pictures, as :func:`check_size` does, or the three sides of volumes.

    Parameters
    ----------
    size : int, (height, width) or (depth, height, width)
        An int stands for both sides of pictures.
    name : str
        The name of the value in the message.

    Returns
    -------
    tuple of (int, int) or (int, int, int)

    Examples
    --------
    >>> from sklcam._validation import check_sides
    >>> check_sides((16, 32, 32), "size")
    (16, 32, 32)
    """
    is_triple = isinstance(size, Sequence) and not isinstance(size, str) and len(size) == 3
    if not is_triple:
        return check_size(size, name)
    if not all(_is_positive_int(side) for side in size):
        raise ValueError(
            f"{name} must be positive ints, (height, width) or, for volumes, (depth, height, "
            f"width); got {size!r}."
        )
    return tuple(int(side) for side in size)


def _is_positive_int(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1


def check_tensor(name: str, value: Any, *axes: str, floating: bool = True) -> None:
    """Raise a ValueError unless the value is a tensor with these axes.

    Parameters
    ----------
    name : str
        The name of the value in the message.
    value : Any
    *axes : str
        The name of each axis, such as ``"n_images"``. Depths, heights and widths must not be zero.
    floating : bool, default=True
        Whether it must have a floating-point type.

    Examples
    --------
    >>> import numpy as np
    >>> from sklcam._validation import check_tensor
    >>> check_tensor("embedding", np.zeros(3), "n_images", "dim")
    Traceback (most recent call last):
    ...
    ValueError: embedding must be a floating-point Tensor of shape (n_images, dim); got an ndarray
    of float64 and shape (3,).
    """
    if isinstance(value, Tensor) and value.ndim == len(axes):
        sides = dict(zip(axes, value.shape, strict=True))
        has_pixels = all(sides.get(axis) != 0 for axis in AXES)
        if has_pixels and (value.is_floating_point() or not floating):
            return
    kind = "floating-point Tensor" if floating else "Tensor"
    shape = f"({', '.join(axes)}{',' if len(axes) == 1 else ''})"
    raise ValueError(f"{name} must be a {kind} of shape {shape}; got {describe(value)}.")


def check_map(name: str, value: Any, spatial_dims: int = 2) -> None:
    """Raise a ValueError unless the value is a floating-point tensor of one map or several.

    Parameters
    ----------
    name : str
        The name of the value in the message.
    value : Any
        Should be a Tensor of shape (..., height, width), or (..., depth, height, width).
    spatial_dims : {2, 3}, default=2
        The number of last axes that are the sides of one map: 3 for volumes.
    """
    is_float = isinstance(value, Tensor) and value.is_floating_point()
    n = spatial_dims
    if not is_float or value.ndim < n or 0 in value.shape[-n:]:
        sides = ", ".join(AXES[-n:])
        raise ValueError(
            f"{name} must be a floating-point Tensor of shape (..., {sides}); got "
            f"{describe(value)}."
        )


def check_maps(spatial_dims: int = 2, /, **maps: Any) -> None:
    """Raise a ValueError unless all are floating-point tensors of maps that can be compared.

    Parameters
    ----------
    spatial_dims : {2, 3}, default=2
        The number of sides of a map: 3 for volumes.
    **maps
        The maps by the names of the arguments: Tensors of shape (n_images, height, width), or
        (n_images, depth, height, width) for volumes, all with one shape and on one device.

    Examples
    --------
    >>> import torch
    >>> from sklcam._validation import check_maps
    >>> check_maps(maps=torch.rand(2, 7, 7), others=torch.rand(2, 7, 8))
    Traceback (most recent call last):
    ...
    ValueError: maps and others must be of one shape; got (2, 7, 7) and (2, 7, 8).
    """
    check_count("spatial_dims", spatial_dims, 2, 3)
    axes = ("n_images", *AXES[-spatial_dims:])
    for name, value in maps.items():
        try:
            check_tensor(name, value, *axes)
        except ValueError as error:
            raise ValueError(f"{error}{_advice_on_sides(name, value, spatial_dims)}") from None
    check_alike(maps)


def _advice_on_sides(name: str, value: Any, spatial_dims: int) -> str:
    """Return advice on maps whose axes do not match spatial_dims; otherwise an empty string."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return ""
    # Four axes may mean volumes, or several maps of each picture; only the caller knows.
    if spatial_dims == 2 and value.ndim == 4:
        return (
            f" For several classes or channels, give one at a time, as {name}[:, 0]; for volumes, "
            "set spatial_dims=3."
        )
    if spatial_dims == 3 and value.ndim == 3:
        return " For pictures, leave spatial_dims at 2."
    return ""


def check_values(**values: Any) -> None:
    """Raise a ValueError unless all are floating-point tensors of one value per image, or a scalar.

    Parameters
    ----------
    **values
        The values by the names of the arguments: Tensors of shape (n_images,), or all of shape (),
        with one shape and on one device.

    Examples
    --------
    >>> import torch
    >>> from sklcam._validation import check_values
    >>> check_values(full=torch.rand(2), masked=torch.rand(2, 1))
    Traceback (most recent call last):
    ...
    ValueError: masked must be a floating-point Tensor of shape (n_images,); got a Tensor of
    torch.float32 and shape (2, 1).
    """
    for name, value in values.items():
        if not (isinstance(value, Tensor) and value.ndim == 0 and value.is_floating_point()):
            check_tensor(name, value, "n_images")
    check_alike(values)


def check_alike(tensors: Mapping[str, Any]) -> None:
    """Raise a ValueError unless all tensors have one shape and are on one device.

    Parameters
    ----------
    tensors : mapping of names to Tensors
    """
    shapes = [tuple(tensor.shape) for tensor in tensors.values()]
    devices = [tensor.device for tensor in tensors.values()]
    for found, wanted in ((shapes, "of one shape"), (devices, "on one device")):
        if len(set(found)) > 1:
            given = " and ".join(map(str, found))
            raise ValueError(f"{' and '.join(tensors)} must be {wanted}; got {given}.")


def check_callable(name: str, value: Any, takes: str) -> Callable[..., Any]:
    """Return the value; raise a ValueError unless it can be called.

    Parameters
    ----------
    name : str
        The name of the value in the message.
    value : Any
    takes : str
        Its arguments and results, in words for the message.

    Returns
    -------
    callable
    """
    if not callable(value):
        raise ValueError(f"{name} must be a callable {takes}; got {describe(value)}.")
    return value


def draw_seed(random_state: int | np.random.RandomState | None) -> int:
    """Return one seed, with which several generators can draw the same numbers.

    Parameters
    ----------
    random_state : int, RandomState or None
        An int is the seed. A RandomState advances by one draw; None is NumPy's global one.

    Returns
    -------
    int

    Raises
    ------
    ValueError
        If ``random_state`` is none of these.

    Examples
    --------
    >>> import numpy as np
    >>> from sklcam._validation import draw_seed
    >>> draw_seed(3), draw_seed(np.random.RandomState(3))
    (3, 218175338)
    """
    generator = check_random_state(random_state)
    if isinstance(random_state, Integral):
        return int(random_state)
    return int(generator.randint(np.iinfo(np.int32).max))
