"""How well embeddings find images of their own class."""

from __future__ import annotations

from typing import Any

import numpy as np

from sklcam._validation import check_count, describe
from sklcam.metrics.masks import as_array

# How many similarities are in memory at a time: 64 MiB of float32.
_SIMILARITIES = 2**24


def recall_at_k(embeddings: Any, labels: Any, k: int = 1) -> float:
    """Share of images with one of their own class among the k nearest others, by cosine.

    Parameters
    ----------
    embeddings : array-like of shape (n_images, dim)
        Vectors of any length other than 0.
    labels : array-like of shape (n_images,)
    k : int, default=1

    Returns
    -------
    float, in [0, 1]
        An image is never its own neighbour, and an image that is alone in its class is a miss.

    Raises
    ------
    ValueError
        If shapes do not agree, there are no k others, or an embedding is zero or not finite.

    References
    ----------
    Jégou, Douze, Schmid, "Product Quantization for Nearest Neighbor Search", PAMI 2011; as used by
    Oh Song et al., "Deep Metric Learning via Lifted Structured Feature Embedding", CVPR 2016.

    Examples
    --------
    >>> from sklcam.metrics import recall_at_k
    >>> embeddings = [[1.0, 0.0], [2.0, 0.1], [0.0, 1.0], [0.1, 0.9]]
    >>> recall_at_k(embeddings, ["cat", "cat", "dog", "cat"])
    0.5
    """
    try:
        embeddings, labels = as_array(embeddings), as_array(labels)
    except ValueError as error:  # rows of different lengths
        raise ValueError(f"embeddings and labels must be arrays: {error}") from error
    fits = embeddings.ndim == 2 and embeddings.shape[1] and embeddings.dtype.kind in "biuf"
    if not fits or labels.shape != embeddings.shape[:1]:
        raise ValueError(
            "embeddings must be numbers of shape (n_images, dim) with one label each; got "
            f"{describe(embeddings)}, and labels of shape {labels.shape}."
        )
    n_images = len(embeddings)
    if n_images < 2:
        raise ValueError(
            f"There must be at least two images to find one by another; got {n_images}."
        )
    check_count("k, of the other images,", k, 1, n_images - 1)
    largest = np.abs(embeddings).max(axis=1, keepdims=True)
    if not (np.isfinite(largest) & (largest > 0)).all():
        raise ValueError(
            "Some embeddings are zero or not finite, and so have no neighbours. Leave them out."
        )
    # Divided by the largest entry first: the squares of very short or long embeddings overflow or
    # vanish in float32.
    embeddings = (embeddings / largest).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    indices, _ = nearest_neighbors(embeddings, embeddings, k, leave_one_out=True)
    return float((labels[indices] == labels[:, None]).any(axis=1).mean())


def nearest_neighbors(
    queries: np.ndarray, gallery: np.ndarray, k: int, *, leave_one_out: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Find the nearest of a gallery by inner product, some queries at a time.

    Parameters
    ----------
    queries : ndarray of shape (n_queries, dim)
    gallery : ndarray of shape (n_images, dim)
    k : int
        How many to find; at most as many as the gallery has.
    leave_one_out : bool, default=False
        Whether the queries are the gallery itself, where no image is its own neighbour.

    Returns
    -------
    indices : ndarray of shape (n_queries, k), int
        The nearest first; if several are equally near, in the order of the gallery.
    similarities : ndarray of shape (n_queries, k)
        Their inner products.

    Examples
    --------
    >>> import numpy as np
    >>> from sklcam.metrics.retrieval import nearest_neighbors
    >>> gallery = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    >>> nearest_neighbors(gallery[:1], gallery, 2)
    (array([[0, 2]]), array([[1. , 0.6]]))
    """
    found = []
    step = max(1, _SIMILARITIES // len(gallery))
    for start in range(0, len(queries), step):
        similarities = queries[start : start + step] @ gallery.T
        if leave_one_out:
            rows = np.arange(len(similarities))
            similarities[rows, start + rows] = -np.inf
        # Partition leaves ties in any order: sorted, they stand as they do in the gallery.
        some = np.sort(np.argpartition(-similarities, k - 1, axis=1)[:, :k], axis=1)
        nearest = np.take_along_axis(similarities, some, axis=1)
        order = np.argsort(-nearest, axis=1, kind="stable")
        found.append(
            (np.take_along_axis(some, order, axis=1), np.take_along_axis(nearest, order, axis=1))
        )
    indices, values = zip(*found, strict=True)
    return np.concatenate(indices), np.concatenate(values)
