"""Methods that show the first principal component of a layer: Eigen-CAM and its like."""

from __future__ import annotations

import torch
from torch import Tensor

from sklcam.cam.base import GradientMethod, Method
from sklcam.cam.recorded import RecordedPass

# Doublings of the power that a matrix is raised to. What is left of the second component, once it
# is within a ten thousandth of the first, is about what the precision knows of them apart.
_DOUBLINGS = {torch.float32: 17, torch.float64: 28}


class EigenCAM(Method):
    r"""Eigen-CAM: activations, projected on their first principal component.

    .. math:: O = U \Sigma V^T, \qquad L = O\, v_1

    where :math:`O` has a row for each position and a column for each channel. It knows of no class:
    the map is the same for all of them. It is defined for every layer that is a grid.

    Parameters
    ----------
    relu : bool, default=True
        Whether what lies on the other side of 0 is cut off, as pytorch-grad-cam does. The paper
        leaves it open; behind a ReLU, and without ``center``, nothing does.
    center : bool, default=False
        False factors the activations as they are, as the paper writes it. True takes off each
        channel's mean over the positions of an image first, as pytorch-grad-cam does.

    Notes
    -----
    The sign of a component is arbitrary. It is the one by which the largest absolute value of the
    map is positive, as in Seg-Eigen-CAM; of several that are as large, the first one, row by row.
    Of activations that are not negative, and not centred, the map is not negative then.

    References
    ----------
    Muhammad, Yeasin, "Eigen-CAM: Class Activation Map using Principal Components", IJCNN 2020,
    section III. Chung, Ying, "Seg-Eigen-CAM", Applied Sciences 2025, eq. 13, for the sign.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklcam import CAMExplainer
    >>> from sklcam.cam import EigenCAM
    >>> network = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> explainer = CAMExplainer(network, method=EigenCAM(), target_layer="0", verbose=0).fit()
    >>> images = torch.tensor([[[[0.0, 3.0, 6.0]], [[0.0, 4.0, 8.0]]]])
    >>> explainer.explain(images, normalize=False).round(4)
    array([[[ 0.,  5., 10.]]], dtype=float32)
    """

    def __init__(self, relu: bool = True, center: bool = False):
        self.relu = relu
        self.center = center

    def check(self) -> None:
        _check_center(self.center)

    def explain(self, recorded: RecordedPass) -> list[Tensor]:
        n_scores = recorded.scores.shape[1]
        maps = []
        for layer in range(len(recorded.layers)):
            map_, _ = first_component(recorded.grid(layer), center=self.center)
            map_ = _peak_upwards(map_)
            map_ = map_.relu() if self.relu else map_
            maps.append(map_[:, None].repeat_interleave(n_scores, dim=1))
        return maps


class EigenGradCAM(GradientMethod):
    r"""Eigen-Grad-CAM: activations times gradients, projected on their first principal component.

    .. math:: A \odot \frac{\partial y_c}{\partial A} = U \Sigma V^T, \qquad
              L = \Big(A \odot \frac{\partial y_c}{\partial A}\Big)\, v_1

    with a row for each position and a column for each channel. It is pytorch-grad-cam's, and
    defined for every layer that is a grid and has gradients.

    Parameters
    ----------
    relu : bool, default=True
        Whether what lies on the other side of 0 is cut off.
    center : bool, default=True
        Whether to subtract each channel's mean over the positions first, as pytorch-grad-cam does.

    Notes
    -----
    The sign of a component is arbitrary. It is the one by which the entries of :math:`v_1` add up
    to 0 or more: a map then grows where the evidence for the class does, the sum over the channels,
    which is HiResCAM's map. pytorch-grad-cam leaves the sign to the factorisation.

    References
    ----------
    Gildenblat and contributors, "PyTorch library for CAM methods", 2021, ``EigenGradCAM``; after
    Muhammad, Yeasin, "Eigen-CAM", IJCNN 2020.

    Examples
    --------
    >>> import torch
    >>> from sklcam.cam import EigenGradCAM
    >>> activations = torch.tensor([[[[1.0, 4.0]], [[0.0, 4.0]]]], requires_grad=True)
    >>> scores = activations.sum((1, 2, 3))
    >>> EigenGradCAM(relu=False)(scores, activations)
    tensor([[[-2.5000,  2.5000]]])
    """

    def __init__(self, relu: bool = True, center: bool = True):
        super().__init__(relu)
        self.center = center

    def check(self) -> None:
        _check_center(self.center)

    def combine(self, activations: Tensor, gradients: Tensor) -> Tensor:
        map_, direction = first_component(activations * gradients, center=self.center)
        is_against = direction.sum(dim=1) < 0
        return torch.where(is_against.view(-1, *[1] * (map_.ndim - 1)), -map_, map_)


def first_component(grids: Tensor, *, center: bool) -> tuple[Tensor, Tensor]:
    """Project each image's positions on the first principal component of their channels.

    On the device, for all images at once and without a wait: neither a factorisation, which makes
    the host wait on some devices, nor a loop over images.

    Parameters
    ----------
    grids : Tensor of shape (n_images, K, u, v)
    center : bool
        Whether to subtract each channel's mean first.

    Returns
    -------
    map : Tensor of shape (n_images, u, v)
        Up to its sign.
    direction : Tensor of shape (n_images, K)
        Of length 1; or 0, of an image where all is 0.
    """
    rows = grids.flatten(2)  # (n, K, positions)
    if center:
        limit = 16 * torch.finfo(rows.dtype).eps * rows.abs().amax(dim=(1, 2), keepdim=True)
        rows = rows - rows.mean(dim=2, keepdim=True)
        # Of what is constant rounding is left, which has a component as well.
        rows = torch.where(rows.abs().amax(dim=(1, 2), keepdim=True) <= limit, 0.0, rows)
    size = rows.abs().amax(dim=(1, 2), keepdim=True)
    scaled = rows / torch.where(size == 0, 1.0, size)  # squares of what is tiny would vanish
    with torch.autocast(rows.device.type, enabled=False):  # which has too few digits
        # The Gram matrix of the smaller side has the same component.
        if rows.shape[1] <= rows.shape[2]:
            direction = _top_eigenvector(scaled @ scaled.mT)
        else:
            direction = _unit((scaled @ _top_eigenvector(scaled.mT @ scaled)[..., None])[..., 0])
        map_ = torch.einsum("nK,nKp->np", direction, rows)
    return map_.unflatten(1, grids.shape[2:]), direction


def _top_eigenvector(gram: Tensor) -> Tensor:
    """Return the eigenvector of the largest eigenvalue of symmetric matrices, (n, m)."""
    for _ in range(_DOUBLINGS[gram.dtype]):
        gram = _over_trace(gram)
        gram = gram @ gram
    # A projection on the vector by now, of which any column is a multiple: the longest one.
    longest = gram.diagonal(dim1=1, dim2=2).argmax(dim=1)
    return _unit(gram.take_along_dim(longest[:, None, None], dim=2)[..., 0])


def _over_trace(gram: Tensor) -> Tensor:
    trace = gram.diagonal(dim1=1, dim2=2).sum(dim=1)
    return gram / torch.where(trace == 0, 1.0, trace)[:, None, None]


def _unit(vectors: Tensor) -> Tensor:
    length = vectors.norm(dim=1, keepdim=True)
    return vectors / torch.where(length == 0, 1.0, length)


def _peak_upwards(maps: Tensor) -> Tensor:
    """Turn maps round whose largest absolute value, the first if several are, is negative."""
    flat = maps.flatten(1)
    size = flat.abs()
    is_peak = size >= (1 - 1e-5) * size.amax(dim=1, keepdim=True)  # but for rounding
    first = is_peak.int().argmax(dim=1, keepdim=True)
    is_negative = flat.gather(1, first) < 0
    return torch.where(is_negative, -flat, flat).view_as(maps)


def _check_center(center: bool) -> None:
    if not isinstance(center, bool):
        raise ValueError(f"center must be True or False; got {center!r}.")
