"""Rows of X: some of the images, in the form of X."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from sklcam.images._tables import is_table, take_from_table
from sklcam.images.dataset import ImageDataset


def take_rows(X: Any, indices: np.ndarray | range) -> Any:
    """Return some rows of X, or of anything else with one entry per image.

    Parameters
    ----------
    X : array, tensor, sequence, data set, or mapping of these
    indices : ndarray of shape (m,) of int, or range

    Returns
    -------
    array, tensor, list, Subset, ImageDataset, table or dict
        An array for a pandas Series. Nothing is read from lazy forms of X.

    Examples
    --------
    >>> import numpy as np
    >>> from sklcam.images.rows import take_rows
    >>> take_rows({"image": ["a.png", "b.png"], "age": np.array([30, 40])}, range(1, 2))
    {'image': ['b.png'], 'age': array([40])}
    """
    if isinstance(X, Mapping):
        return {name: take_rows(value, indices) for name, value in X.items()}
    if hasattr(X, "iloc") and np.ndim(X) == 1:  # a pandas Series is indexed by its labels
        X = np.asarray(X)
    if is_table(X):
        return take_from_table(X, [*map(int, indices)])
    if isinstance(X, np.ndarray | Tensor):
        if isinstance(indices, range) and indices.step == 1 and indices.start >= 0:
            return X[indices.start : indices.stop]  # a view: no copy of a memory map
        positions = np.asarray(indices, dtype=np.intp)
        return X[torch.from_numpy(positions) if isinstance(X, Tensor) else positions]
    if isinstance(X, ImageDataset):  # its items have been resized, unlike those of its rows
        return X[np.asarray(indices)]
    if isinstance(X, Dataset):
        return Subset(X, list(map(int, indices)))
    return [X[int(i)] for i in indices]
