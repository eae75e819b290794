"""Whether a map ranks places as a reference does, such as occlusion, or where people look."""

from __future__ import annotations

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor
from torch.nn import functional as F

from sklcam._validation import check_alike, check_count, check_maps, check_tensor


def rank_correlation(maps: Tensor, references: Tensor, *, cell: int = 1) -> Tensor:
    """Spearman's rank correlation of maps and reference maps.

    Parameters
    ----------
    maps, references : Tensor of shape (n_images, height, width)
        Such as Grad-CAM's, and occlusion's or those of where people look.
    cell : int, default=1
        Side of the squares over which both are averaged first. A reference may be constant over
        squares, as an occlusion map is over its stride; such ties say nothing.

    Returns
    -------
    Tensor of shape (n_images,), in [-1, 1]; higher is better. 0 where one of them is constant.

    Raises
    ------
    ValueError
        If the maps are not a floating-point tensor of shape (n_images, height, width), the
        references not a tensor of the same shape on the same device, or ``cell`` is not an int
        >= 1.

    References
    ----------
    Selvaraju et al., "Grad-CAM", IJCV 2020, section 5.3.

    Examples
    --------
    >>> import torch
    >>> from sklcam.metrics import rank_correlation
    >>> rank_correlation(torch.tensor([[[1.0, 2.0, 9.0]]]), torch.tensor([[[0.0, 1.0, 1.5]]]))
    tensor([1.])
    """
    check_maps(maps=maps)
    check_tensor("references", references, "n_images", "height", "width", floating=False)
    check_alike({"maps": maps, "references": references})
    check_count("cell, a number of pixels,", cell)
    ranks = [
        rankdata(_means(stack.double(), cell).cpu().numpy(), axis=1) for stack in (maps, references)
    ]
    first, second = (rank - rank.mean(axis=1, keepdims=True) for rank in ranks)
    sizes = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    products = (first * second).sum(axis=1)
    correlation = np.divide(products, sizes, out=np.zeros_like(products), where=sizes != 0)
    return torch.as_tensor(correlation).to(maps)


def _means(stack: Tensor, cell: int) -> Tensor:
    """Return the means over squares, cut off at the edges: (n_images, n_squares)."""
    if cell > 1:
        stack = F.avg_pool2d(stack, cell, ceil_mode=True)
    return stack.flatten(1)
