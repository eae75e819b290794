"""How well embeddings find images of their own class."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np

# How many similarities are in memory at a time.
_SIMILARITIES = 2**24


def recall_at_k(embeddings: Any, labels: Any, k: int = 1) -> float:
    """Share of images with one of their own class among the k nearest others, by cosine.

    Parameters
    ----------
    embeddings : array-like of shape (n_images, dim)
        Of any length but 0.
    labels : array-like of shape (n_images,)
    k : int, default=1

    Returns
    -------
    float, in [0, 1]
        An image is never its own neighbour, and one without another of its class is a miss.

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
    embeddings, labels = np.asarray(embeddings), np.asarray(labels)
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1]:
        raise ValueError(
            "embeddings must be (n_images, dim) with one label each; got shapes "
            f"{embeddings.shape} and {labels.shape}."
        )
    n_images = len(embeddings)
    if not isinstance(k, Integral) or not 1 <= k < n_images:
        raise ValueError(f"k must be 1 to {n_images - 1}, the other images; got {k}.")
    largest = np.abs(embeddings).max(axis=1, keepdims=True)
    if not (np.isfinite(largest) & (largest > 0)).all():
        raise ValueError("Some embeddings are zero or not finite, and are near to nothing.")
    # By the largest entry first, as the squares of very short or long ones are no float32.
    embeddings = (embeddings / largest).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    hits = 0
    step = max(1, _SIMILARITIES // n_images)
    for start in range(0, n_images, step):
        rows = np.arange(start, min(start + step, n_images))
        similarities = embeddings[rows] @ embeddings.T
        similarities[rows - start, rows] = -np.inf
        nearest = np.argpartition(-similarities, k - 1, axis=1)[:, :k]
        hits += int((labels[nearest] == labels[rows, None]).any(axis=1).sum())
    return hits / n_images
