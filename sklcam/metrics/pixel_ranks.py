"""How high a map ranks the pixels of an object: among the brightest pixels, and among all.

Only the order of the pixels counts. Pixels with the same value have no order: each gets its share
of the places that they take together, which is the mean over all orders. A pixel belongs to the
object if at least half of it does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sklcam._validation import check_count
from sklcam.metrics.masks import check_masks, mask_shares
from sklcam.networks.precision import at_least_float32


def relevance_rank_accuracy(maps: Tensor, masks: Tensor, *, spatial_dims: int = 2) -> Tensor:
    r"""Share of the map's brightest pixels that lie on the object, as many as the object has.

    .. math:: \frac{|P_{\mathrm{top}\,K} \cap GT|}{|GT|}, \qquad K = |GT|

    Parameters
    ----------
    maps : Tensor of shape (n_images, height, width)
    masks : Tensor of shape (n_images, height, width), bool, integer or float in [0, 1]
        Where the object is: a segmentation, 0 outside, or :func:`box_masks`. A pixel
        belongs to the object if at least half of it does.
    spatial_dims : {2, 3}, default=2
        How many sides a map has: 3 for volumes, (n_images, depth, height, width).

    Returns
    -------
    Tensor of shape (n_images,), in [0, 1]; higher is better. A constant map gets the object's share
    of the image, as any order would on average; one of zeros gets 0. NaN where there is no object,
    or the map has NaN.

    Raises
    ------
    ValueError
        If the maps are not a floating-point tensor of shape (n_images, height, width), or the masks
        not a tensor of the same shape on the same device.

    References
    ----------
    Arras, Osman, Samek, "CLEVR-XAI: A benchmark dataset for the ground truth evaluation of neural
    network explanations", Information Fusion 2022, section 4.2. Their relevance mass accuracy is
    :func:`heatmap_ratio`.

    Examples
    --------
    The object has two pixels, and one of the two brightest pixels is on it:

    >>> import torch
    >>> from sklcam.metrics import relevance_rank_accuracy
    >>> maps = torch.tensor([[[0.9, 0.2, 0.5, 0.1]]])
    >>> relevance_rank_accuracy(maps, torch.tensor([[[True, True, False, False]]]))
    tensor([0.5000])
    """
    inside = _inside(maps, masks, spatial_dims)
    sizes = inside.sum(dim=1)
    values = _on_object(maps, inside, sizes.clamp(min=1))
    return torch.where((sizes == 0) & ~values.isnan(), torch.nan, values)


def topk_intersection(
    maps: Tensor, masks: Tensor, *, k: int = 1000, spatial_dims: int = 2
) -> Tensor:
    r"""Share of the map's k brightest pixels that lie on the object.

    .. math:: \frac{|P_{\mathrm{top}\,k} \cap GT|}{k}

    Parameters
    ----------
    maps : Tensor of shape (n_images, height, width)
    masks : Tensor of shape (n_images, height, width), bool, integer or float in [0, 1]
        See :func:`relevance_rank_accuracy`.
    k : int, default=1000
        How many pixels; in :func:`evaluate`, pixels of the image at its own size. They cannot all
        lie on an object that has fewer.
    spatial_dims : {2, 3}, default=2
        How many sides a map has: 3 for volumes, (n_images, depth, height, width).

    Returns
    -------
    Tensor of shape (n_images,), in [0, 1]; higher is better. A constant map gets the object's share
    of the image, as any order would on average; one of zeros, or without an object, gets 0. NaN
    where the map has NaN.

    Raises
    ------
    ValueError
        If the maps are not a floating-point tensor of shape (n_images, height, width), or the masks
        not a tensor of the same shape on the same device; or if k is not an int from 1 to the
        number of pixels.

    References
    ----------
    Theiner, Mueller-Budack, Ewerth, "Interpretable Semantic Photo Geolocation", WACV 2022.

    Examples
    --------
    >>> import torch
    >>> from sklcam.metrics import topk_intersection
    >>> maps = torch.tensor([[[0.9, 0.2, 0.5, 0.1]]])
    >>> topk_intersection(maps, torch.tensor([[[True, True, False, False]]]), k=3)
    tensor([0.6667])
    """
    inside = _inside(maps, masks, spatial_dims)
    check_count("k, a number of pixels of the map,", k, 1, inside.shape[1])
    return _on_object(maps, inside, torch.full_like(inside[:, 0], k, dtype=torch.int64))


def pixel_auc(maps: Tensor, masks: Tensor, *, spatial_dims: int = 2) -> Tensor:
    """Area under the ROC curve of a map that tells the object's pixels from the others.

    It is the probability that a pixel of the object is brighter than one outside; a pair with the
    same value counts half.

    Parameters
    ----------
    maps : Tensor of shape (n_images, height, width)
    masks : Tensor of shape (n_images, height, width), bool, integer or float in [0, 1]
        See :func:`relevance_rank_accuracy`.
    spatial_dims : {2, 3}, default=2
        How many sides a map has: 3 for volumes, (n_images, depth, height, width).

    Returns
    -------
    Tensor of shape (n_images,), in [0, 1]; higher is better, 0.5 is chance. A constant map, also
    one of zeros, gets 0.5. NaN if there is no object, or nothing else, or if the map has NaN.

    Raises
    ------
    ValueError
        If the maps are not a floating-point tensor of shape (n_images, height, width), or the masks
        not a tensor of the same shape on the same device.

    References
    ----------
    Fawcett, "An introduction to ROC analysis", Pattern Recognition Letters 2006, section 7.

    Examples
    --------
    There are four pairs of a pixel inside and one outside; one is the wrong way round:

    >>> import torch
    >>> from sklcam.metrics import pixel_auc
    >>> maps = torch.tensor([[[0.9, 0.2, 0.5, 0.1]]])
    >>> pixel_auc(maps, torch.tensor([[[True, True, False, False]]]))
    tensor([0.7500])
    """
    inside, flat = _inside(maps, masks, spatial_dims), maps.flatten(1).contiguous()
    ordered = flat.sort(dim=1).values
    # Ties have their mean rank. Twice of it is an integer, and so is all that is counted.
    below, up_to = (torch.searchsorted(ordered, flat, right=right) for right in (False, True))
    twice_ranks = below + up_to + 1
    n_inside = inside.sum(dim=1)
    n_pairs = n_inside * (inside.shape[1] - n_inside)
    twice_won = (twice_ranks * inside).sum(dim=1) - n_inside * (n_inside + 1)
    # Half precision has no such numbers. 0 / 0 is NaN.
    areas = (twice_won.to(at_least_float32(flat).dtype) / (2 * n_pairs)).to(maps.dtype)
    return torch.where(flat.isnan().any(dim=1), torch.nan, areas)


def _inside(maps: Tensor, masks: Tensor, spatial_dims: int) -> Tensor:
    """Return which pixels belong to the object, (n_images, n_pixels), bool."""
    check_masks(maps, masks, spatial_dims)
    return mask_shares(masks).flatten(1) >= 0.5


def _on_object(maps: Tensor, inside: Tensor, counts: Tensor) -> Tensor:
    """Return the share of each image's ``counts`` brightest pixels that are inside."""
    flat = maps.flatten(1)
    last = flat.sort(dim=1, descending=True).values.gather(1, counts[:, None] - 1)
    above, tied = flat > last, flat == last
    n_tied_places = counts - above.sum(dim=1)
    # Pixels that share the last places take them equally often.
    share = n_tied_places / tied.sum(dim=1)
    n_hits = (above & inside).sum(dim=1) + share * (tied & inside).sum(dim=1)
    values = torch.where((flat == 0).all(dim=1), 0.0, n_hits / counts).to(maps.dtype)
    return torch.where(flat.isnan().any(dim=1), torch.nan, values)
