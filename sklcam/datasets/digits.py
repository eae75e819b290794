"""Scikit-learn's digits, as images."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits as load_digits_table
from sklearn.utils import Bunch

from sklcam.datasets._bunch import bunch


def load_digits(*, n_class: int = 10) -> Bunch:
    """Load scikit-learn's handwritten digits as images.

    Parameters
    ----------
    n_class : int, default=10
        The digits from 0 to n_class - 1.

    Returns
    -------
    Bunch
        With ``data``, float32 in [0, 1] of shape (n_images, 8, 8); ``target``, the digits as ints;
        ``target_names``; ``boxes`` and ``masks``, which are None; and ``DESCR``.

    Raises
    ------
    ValueError
        If `n_class` is not an int from 1 to 10.

    Examples
    --------
    >>> from sklcam.datasets import load_digits
    >>> digits = load_digits(n_class=3)
    >>> digits.data.shape, digits.data.dtype, float(digits.data.max())
    ((537, 8, 8), dtype('float32'), 1.0)
    """
    table = load_digits_table(n_class=n_class)
    images = (table.images / 16).astype(np.float32)
    descr = (
        f"Handwritten digits 0 to {n_class - 1} of scikit-learn, 8 x 8 pixels. Alpaydin, Kaynak, "
        "UCI Machine Learning Repository, 1998."
    )
    return bunch(images, table.target, descr=descr)
