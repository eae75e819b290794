"""Whether maps rank places as a reference does: what covering them costs, or where people look."""

from __future__ import annotations

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor


def rank_correlation(maps: Tensor, references: Tensor) -> Tensor:
    """Spearman's rank correlation of maps and reference maps.

    Parameters
    ----------
    maps, references : Tensor of shape (n_images, height, width)
        Such as Grad-CAM's, and what occlusion does to the score or where people look.

    Returns
    -------
    Tensor of shape (n_images,), in [-1, 1]; higher is better. 0 where one of them is constant.

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
    if maps.shape != references.shape:
        raise ValueError(
            f"maps and references must be of one shape; got {tuple(maps.shape)} and "
            f"{tuple(references.shape)}."
        )
    ranks = [
        rankdata(stack.flatten(1).double().cpu().numpy(), axis=1) for stack in (maps, references)
    ]
    first, second = (of - of.mean(axis=1, keepdims=True) for of in ranks)
    sizes = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    products = (first * second).sum(axis=1)
    correlation = np.divide(products, sizes, out=np.zeros_like(products), where=sizes != 0)
    return torch.as_tensor(correlation).to(maps)
