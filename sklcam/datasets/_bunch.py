"""The form of the data sets that loaders return, with masks that stay on the disk."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np
from numpy.typing import DTypeLike
from sklearn.utils import Bunch

from sklcam._validation import check_callable

_MOST_NAMES = 5  # the largest number of classes that are printed


class LazyMask:
    """The mask of one object or class, read from its file on each access.

    ``np.asarray(mask)`` returns the array. Loaders return these in an object array, so that slices
    of it, scikit-learn's splits and pickles hold file names, not pixels.

    Parameters
    ----------
    read : callable
        Takes nothing and returns the mask, bool of shape (height, width). To be pickled, it must
        be a function of a module, or a ``functools.partial`` of one.

    Raises
    ------
    ValueError
        If `read` cannot be called.

    Examples
    --------
    >>> from functools import partial
    >>> import numpy as np
    >>> from sklcam.datasets import LazyMask
    >>> np.asarray(LazyMask(partial(np.ones, (1, 2), dtype=bool)))
    array([[ True,  True]])
    """

    def __init__(self, read: Callable[[], np.ndarray]) -> None:
        check_callable("read", read, "that takes nothing and returns the mask")
        self.read = read

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.read(), dtype=dtype)


class ImageBunch(Bunch):
    """A data set as loaders return it: a Bunch that prints a summary instead of all its data.

    Examples
    --------
    >>> from sklcam.datasets import load_digits
    >>> load_digits()
    1797 images, array of shape (1797, 8, 8), float32; 10 classes: 0, 1, 2, 3, 4, ...
    """

    def __repr__(self) -> str:
        images = f"{len(self.data)} images"
        if isinstance(self.data, np.ndarray):
            images += f", array of shape {self.data.shape}, {self.data.dtype}"
        names = [str(name) for name in self.target_names]
        shown = ", ".join([*names[:_MOST_NAMES], *["..."] * (len(names) > _MOST_NAMES)])
        further = [f"with {name}" for name in ("boxes", "masks") if self.get(name) is not None]
        return "; ".join([images, f"{len(names)} classes: {shown}", *further])


def bunch(
    data: list[str] | np.ndarray,
    target: Sequence[str] | np.ndarray,
    *,
    descr: str,
    names: Collection[str] | None = None,
    boxes: list[np.ndarray] | None = None,
    masks: Sequence[Callable[[], np.ndarray]] | None = None,
) -> ImageBunch:
    """Return a data set. `names` are its classes, if `target` may lack some."""
    if not len(data):
        raise ValueError(f"There are no images in this data set: {descr}")
    return ImageBunch(
        data=data,
        target=np.asarray(target),
        target_names=np.unique(np.asarray(target if names is None else list(names))),
        boxes=boxes,
        masks=None if masks is None else _object_array(masks),
        DESCR=descr,
    )


def _object_array(reads: Sequence[Callable[[], np.ndarray]]) -> np.ndarray:
    masks = np.empty(len(reads), dtype=object)
    # One by one, as NumPy would read and stack the pixels of a whole list of masks.
    for i, read in enumerate(reads):
        masks[i] = LazyMask(read)
    return masks
