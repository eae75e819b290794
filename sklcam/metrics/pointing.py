"""The pointing game: whether the brightest pixel of a map is on the object."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sklcam._validation import check_alike, check_number, check_tensor
from sklcam.metrics.masks import check_masks


def pointing_game(maps: Tensor, masks: Tensor, *, tolerance: int = 0) -> Tensor:
    """Whether the map's brightest pixel lies on the object.

    Parameters
    ----------
    maps : Tensor of shape (n_images, height, width)
        Of several brightest pixels, the first in raster order counts.
    masks : Tensor of shape (n_images, height, width), bool or in [0, 1]
        Where the object is.
    tolerance : int, default=0
        How many pixels from the object a hit may be; 15 in the original game.

    Returns
    -------
    Tensor of shape (n_images,), 0 or 1; higher is better. 0 for a constant map, which has no
    brightest pixel.

    Raises
    ------
    ValueError
        If the maps are not a floating-point tensor of shape (n_images, height, width), or the masks
        not a tensor of the same shape on the same device; or if the tolerance is not a number >= 0.

    References
    ----------
    Zhang et al., "Top-down Neural Attention by Excitation Backprop", ECCV 2016, section 4.1.

    Examples
    --------
    >>> import torch
    >>> from sklcam.metrics import pointing_game
    >>> maps = torch.tensor([[[0.1, 0.9, 0.3]]])
    >>> pointing_game(maps, torch.tensor([[[False, True, False]]]))
    tensor([1.])
    """
    check_masks(maps, masks)
    check_number("tolerance, a number of pixels,", tolerance, 0)
    flat = maps.flatten(1)
    points = flat.argmax(dim=1)
    rows, columns = points // maps.shape[2], points % maps.shape[2]
    down = torch.arange(maps.shape[1], device=maps.device) - rows[:, None]
    right = torch.arange(maps.shape[2], device=maps.device) - columns[:, None]
    near = down[:, :, None] ** 2 + right[:, None, :] ** 2 <= tolerance**2
    hits = (near & (masks > 0)).any(dim=2).any(dim=1)
    # A constant map points nowhere, although argmax finds its first pixel.
    return (hits & (flat.amax(dim=1) > flat.amin(dim=1))).to(maps.dtype)


def pointing_game_with_rejection(
    maps: Tensor, masks: Tensor, *, threshold: float, tolerance: int = 0
) -> Tensor:
    """Play the pointing game for classes that may be absent, with the option to reject them.

    Parameters
    ----------
    maps : Tensor of shape (n_images, k, height, width)
        Maps of the k predicted classes, *not* scaled: scaled ones all peak at 1.
    masks : Tensor of shape (n_images, k, height, width), bool or in [0, 1]
        Where each class is; empty for a class that is absent.
    threshold : float
        A class is rejected if the maximum of its map is lower.
    tolerance : int, default=0
        See :func:`pointing_game`.

    Returns
    -------
    Tensor of shape (n_images, k), 0 or 1; higher is better.
        1 where the class is present, kept and pointed at, or absent and rejected. The mean is the
        accuracy of Grad-CAM's version of the game, which takes recall into account.

    Raises
    ------
    ValueError
        If the maps are not a floating-point tensor of shape (n_images, k, height, width), or the
        masks not a tensor of the same shape on the same device; if the threshold is not a finite
        number, or the tolerance not a number >= 0.

    References
    ----------
    Selvaraju et al., "Grad-CAM", IJCV 2020, section 4.3 and appendix D.

    Examples
    --------
    >>> import torch
    >>> from sklcam.metrics import pointing_game_with_rejection
    >>> maps = torch.tensor([[[[5.0, 1.0]], [[0.0, 2.0]], [[0.0, 3.0]]]])  # of three classes
    >>> masks = torch.tensor([[[[1, 0]], [[0, 0]], [[0, 0]]]])  # the first one is present
    >>> pointing_game_with_rejection(maps, masks, threshold=2.5)
    tensor([[1., 1., 0.]])
    """
    pointed, kept, present = _play(maps, masks, threshold, tolerance)
    return torch.where(present, pointed & kept, ~kept).to(maps.dtype)


class PrecisionRecall(NamedTuple):
    """Precision and recall of the pointing game with rejection.

    Attributes
    ----------
    precision : Tensor of shape (), in [0, 1]
        Share of the maps that were kept that point at their class. NaN if none was kept.
    recall : Tensor of shape (), in [0, 1]
        Share of the classes that are present whose map was kept and points at them. NaN if none is.

    Examples
    --------
    >>> import torch
    >>> from sklcam.metrics import pointing_precision_recall
    >>> maps, masks = torch.tensor([[[[5.0, 1.0]]]]), torch.tensor([[[[1, 0]]]])
    >>> played = pointing_precision_recall(maps, masks, threshold=2.5)
    >>> played.precision, played.recall
    (tensor(1.), tensor(1.))
    """

    precision: Tensor
    recall: Tensor


def pointing_precision_recall(
    maps: Tensor, masks: Tensor, *, threshold: float, tolerance: int = 0
) -> PrecisionRecall:
    """Precision and recall over all images of the pointing game with the option to reject.

    Parameters
    ----------
    maps, masks, threshold, tolerance
        See :func:`pointing_game_with_rejection`.

    Returns
    -------
    PrecisionRecall
        Higher is better for both; a higher threshold trades recall for precision.

    Raises
    ------
    ValueError
        If the maps are not a floating-point tensor of shape (n_images, k, height, width), or the
        masks not a tensor of the same shape on the same device; if the threshold is not a finite
        number, or the tolerance not a number >= 0.

    References
    ----------
    Selvaraju et al., "Grad-CAM", IJCV 2020, section 4.3.

    Examples
    --------
    >>> import torch
    >>> from sklcam.metrics import pointing_precision_recall
    >>> maps = torch.tensor([[[[5.0, 1.0]], [[0.0, 2.0]], [[0.0, 3.0]]]])  # of three classes
    >>> masks = torch.tensor([[[[1, 0]], [[0, 1]], [[0, 0]]]])  # the last one is absent
    >>> pointing_precision_recall(maps, masks, threshold=2.5)
    PrecisionRecall(precision=tensor(0.5000), recall=tensor(0.5000))
    """
    pointed, kept, present = _play(maps, masks, threshold, tolerance)
    hits = (pointed & kept).sum().to(maps.dtype)
    return PrecisionRecall(hits / kept.sum(), hits / present.sum())


def _play(
    maps: Tensor, masks: Tensor, threshold: float, tolerance: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return whether each map points at its class, is kept, and is of a class that is present."""
    axes = ("n_images", "k", "height", "width")
    check_tensor("maps", maps, *axes)
    check_tensor("masks", masks, *axes, floating=False)
    check_alike({"maps": maps, "masks": masks})
    check_number("threshold", threshold)
    points = pointing_game(maps.flatten(0, 1), masks.flatten(0, 1), tolerance=tolerance)
    pointed = points.view(maps.shape[:2]) > 0
    kept = maps.amax(dim=(2, 3)) >= threshold
    present = (masks > 0).flatten(2).any(dim=2)
    return pointed, kept, present
