"""GrabCut: grows the seeds of an image to the edges of its colours."""

from __future__ import annotations

from typing import Any

import numpy as np

from sklcam._validation import check_count, describe
from sklcam.metrics.masks import IGNORED, as_array


def grab_cut(
    image: Any, labels: Any, *, keep_objects: bool = False, n_iterations: int = 5
) -> np.ndarray:
    """Decide for each pixel which object it belongs to, by its colour and its neighbours.

    Each object is cut out by itself. Its own seeds probably belong to it; seeds of the background
    and of other objects do not.

    Parameters
    ----------
    image : array-like of shape (height, width) or (height, width, 3), uint8
    labels : array-like of shape (height, width), int
        0 is the background, 1 to 254 are objects, and 255 is unknown.
    keep_objects : bool, default=False
        Whether seeds of objects stay as they are. False lets a cut take pixels from them, which the
        seeds of coarse maps need.
    n_iterations : int, default=5
        The number of GrabCut's iterations.

    Returns
    -------
    ndarray of shape (height, width), uint8
        0 where there is no object, and 255 where two cuts claim a pixel. Labels that are all of one
        object, or have none, stay as they are.

    Raises
    ------
    ImportError
        If OpenCV, the extra ``grabcut``, is not installed.
    ValueError
        If an argument is invalid.

    References
    ----------
    Rother, Kolmogorov, Blake, "GrabCut", SIGGRAPH 2004. Simonyan, Vedaldi, Zisserman, "Deep inside
    convolutional networks", 2013, section 3.2, cuts objects out of saliency maps.

    Examples
    --------
    A white square on black, with some known pixels of both:

    >>> import numpy as np
    >>> from sklcam.segmentation import grab_cut
    >>> image = np.zeros((20, 20), np.uint8)
    >>> image[5:15, 5:15] = 255
    >>> labels = np.full((20, 20), 255)
    >>> labels[8:12, 8:12], labels[0] = 1, 0
    >>> bool((grab_cut(image, labels) == (image == 255)).all())
    True
    """
    pixels, marks = as_array(image), as_array(labels)
    is_picture = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)
    if not is_picture or pixels.dtype != np.uint8:
        raise ValueError(
            f"image must be (height, width) or (height, width, 3), uint8; got {describe(image)}."
        )
    if marks.dtype.kind not in "iu" or marks.shape != pixels.shape[:2]:
        raise ValueError(
            f"labels must be integers, one for each of {pixels.shape[:2]} pixels; got "
            f"{describe(labels)}."
        )
    if marks.size and not (marks.min() >= 0 and marks.max() <= IGNORED):
        raise ValueError(f"labels must be from 0 to 255; got {marks.min()} to {marks.max()}.")
    check_count("n_iterations", n_iterations)
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    objects = [label for label in np.unique(marks).tolist() if label not in (0, IGNORED)]
    if not objects:
        return marks.astype(np.uint8)
    cuts = [_cut(pixels, marks, label, keep_objects, n_iterations) for label in objects]
    n_claims = np.sum(cuts, axis=0)
    claimed = np.take(objects, np.argmax(cuts, axis=0))
    return np.select([n_claims == 1, n_claims > 1], [claimed, IGNORED], 0).astype(np.uint8)


def _cut(
    pixels: np.ndarray, labels: np.ndarray, label: int, keep: bool, n_iterations: int
) -> np.ndarray:
    """Return where an object is, (height, width) of bool."""
    try:
        import cv2
    except ImportError as error:
        raise ImportError('GrabCut needs OpenCV: pip install "sklcam[grabcut]"') from error

    own = labels == label
    if own.all():
        return own
    marks = np.full(labels.shape, cv2.GC_BGD, np.uint8)
    marks[labels == IGNORED] = cv2.GC_PR_BGD
    marks[own] = cv2.GC_FGD if keep else cv2.GC_PR_FGD
    cv2.setRNGSeed(0)  # for the clusters of colours
    cv2.grabCut(
        np.ascontiguousarray(pixels),
        marks,
        (0, 0, 0, 0),  # no rectangle, as the marks say it all
        np.zeros((1, 65)),  # working memory for its models of colours
        np.zeros((1, 65)),
        n_iterations,
        cv2.GC_INIT_WITH_MASK,
    )
    return np.isin(marks, (cv2.GC_FGD, cv2.GC_PR_FGD))
