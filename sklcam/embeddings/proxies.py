"""Proxies: the directions that stand for classes, learned from embeddings or given.

They are arrays on the host, computed from arrays; embeddings and explanations are made elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np


def check_one_label_each(labels: np.ndarray, n_images: int) -> None:
    """Raise a ValueError unless each image has one label that is not NaN or infinite."""
    if labels.shape != (n_images,):
        raise ValueError(
            f"y must be one label per image; got shape {labels.shape} for {n_images} images."
        )
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        raise ValueError(
            "y has labels that are NaN or infinite. Leave these images out, or label them."
        )


def add_to_sums(
    sums: dict[Any, np.ndarray],
    counts: dict[Any, int],
    batches: Iterable[np.ndarray],
    labels: np.ndarray,
) -> None:
    """Add embeddings to the sums of their classes, in float64, and count them.

    Parameters
    ----------
    sums, counts : dict
        By class; changed in place.
    batches : iterable of ndarray of shape (n, dim)
    labels : ndarray of shape (n_images,)
        The labels of all batches, one after the other.
    """
    start = 0
    for embeddings in batches:
        part = labels[start : start + len(embeddings)]
        for label in np.unique(part):
            key = label.item()
            # In float64: over many batches, small terms would be lost in a large sum.
            total = embeddings[part == label].sum(axis=0, dtype=np.float64)
            sums[key] = sums.get(key, 0) + total
            counts[key] = counts.get(key, 0) + int((part == label).sum())
        start += len(embeddings)


def mean_proxies(
    sums: dict[Any, np.ndarray], counts: dict[Any, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the classes' sums, normalised to length 1.

    Parameters
    ----------
    sums, counts : dict
        By class: see :func:`add_to_sums`.

    Returns
    -------
    proxies : ndarray of shape (n_classes, dim), float32
    classes : ndarray of shape (n_classes,), sorted
    counts : ndarray of shape (n_classes,), int

    Raises
    ------
    ValueError
        If a sum is zero.
    """
    known = sorted(sums)
    means, classes = np.stack([sums[key] for key in known]), np.array(known)
    lengths = np.linalg.norm(means, axis=1, keepdims=True)
    if not lengths.all():
        raise ValueError(
            f"The embeddings of {classes[lengths[:, 0] == 0].tolist()} add up to zero: the class "
            "has no mean direction."
        )
    counted = np.array([counts[key] for key in known])
    return (means / lengths).astype(np.float32), classes, counted


def proxies_by(
    proxy: Callable[[np.ndarray], Any], embeddings: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the proxies that a callable makes from the embeddings of each class.

    Parameters
    ----------
    proxy : callable
        Takes an ndarray of shape (n, dim), and returns one of shape (dim,).
    embeddings : ndarray of shape (n_images, dim)
    labels : ndarray of shape (n_images,)

    Returns
    -------
    proxies : ndarray of shape (n_classes, dim), float32
    classes : ndarray of shape (n_classes,)
    counts : ndarray of shape (n_classes,), int

    Raises
    ------
    ValueError
        If it returns an array of another shape.
    """
    classes, counts = np.unique(labels, return_counts=True)
    made = [np.asarray(proxy(embeddings[labels == label])) for label in classes]
    wrong = [each.shape for each in made if each.shape != embeddings.shape[1:]]
    if wrong:
        raise ValueError(
            f"The callable proxy must return an array of shape {embeddings.shape[1:]}; it "
            f"returned one of {wrong[0]}."
        )
    return np.stack(made).astype(np.float32), classes, counts


def given_proxies(given: Any, names: Any, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the given proxies, and their labels.

    Parameters
    ----------
    given : array-like of shape (n_classes, dim)
    names : array-like of shape (n_classes,) or None
        None is 0, 1, ....
    dim : int
        How many dimensions embeddings have.

    Returns
    -------
    proxies : ndarray of shape (n_classes, dim), float32
    classes : ndarray of shape (n_classes,)

    Raises
    ------
    ValueError
        If proxies have another shape, are zero or not finite, or if there is not one distinct label
        for each.
    """
    proxies = np.asarray(given, dtype=np.float32)
    if proxies.ndim != 2 or proxies.shape[1] != dim:
        raise ValueError(
            f"Proxies must be of shape (n_classes, {dim}), as the embeddings have {dim} "
            f"dimensions; got {proxies.shape}."
        )
    classes = np.arange(len(proxies)) if names is None else np.asarray(names)
    if classes.shape != (len(proxies),) or len(np.unique(classes)) != len(classes):
        raise ValueError(
            f"classes must be one label for each of the {len(proxies)} proxies, all different; "
            f"got {classes.tolist()}."
        )
    if not (np.isfinite(proxies).all() and proxies.any(axis=1).all()):
        raise ValueError("Some proxies are zero or not finite, and have no direction.")
    return proxies, classes


def is_name(value: Any, name: str) -> bool:
    """Whether a parameter that may also be an array is this string."""
    return isinstance(value, str) and value == name
