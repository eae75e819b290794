"""Methods that show the first principal component of a layer: Eigen-CAM and Eigen-Grad-CAM."""

from __future__ import annotations

import torch
from torch import Tensor

from sklcam.cam.base import GradientMethod, Method
from sklcam.cam.recorded import RecordedPass

# The number of times that a matrix is squared. In float32, a second eigenvalue that is a ten
# thousandth smaller than the first then leaves a remainder of exp(-2**17 / 10**4), about 2e-6.
_DOUBLINGS = {torch.float32: 17, torch.float64: 28}


class EigenCAM(Method):
    r"""Eigen-CAM: activations projected on their first principal component.

    .. math:: O = U \Sigma V^T, \qquad L = O\, v_1

    where :math:`O` has a row for each position and a column for each channel. The map does not
    depend on the class. Eigen-CAM is defined for every layer that is a grid.

    Parameters
    ----------
    relu : bool, default=True
        Whether to set negative values to zero, as pytorch-grad-cam does. The paper leaves this
        open. After a ReLU and without ``center``, no values are negative.
    center : bool, default=False
        False factorises the activations themselves, as in the paper. True first subtracts each
        channel's mean over the positions of an image, as pytorch-grad-cam does.

    Notes
    -----
    The sign of a component is arbitrary. Here it makes the value with the largest magnitude in the
    map positive, as in Seg-Eigen-CAM. If several are equally large, the first in row order decides.
    For non-negative activations that are not centred, the map is then non-negative.

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

    with a row for each position and a column for each channel. The method comes from
    pytorch-grad-cam. It is defined for every layer that is a grid and has gradients.

    Parameters
    ----------
    relu : bool, default=True
        Whether to set negative values to zero.
    center : bool, default=True
        Whether to subtract each channel's mean over the positions first, as pytorch-grad-cam does.

    Notes
    -----
    The sign of a component is arbitrary. Here it makes the sum of the entries of :math:`v_1` 0 or
    more. The map then grows with the evidence for the class, which is the sum over the channels,
    HiResCAM's map. pytorch-grad-cam leaves the sign to the factorisation.

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

    This runs on the device for all images at once. It avoids a factorisation, for which the host
    would wait on some devices, and a loop over images.

    Parameters
    ----------
    grids : Tensor of shape (n_images, K, u, v)
    center : bool
        Whether to subtract each channel's mean first.

    Returns
    -------
    map : Tensor of shape (n_images, u, v)
        The map, up to its sign.
    direction : Tensor of shape (n_images, K)
        The component, normalised to length 1. It is 0 for an image whose values are all 0.
    """
    rows = grids.flatten(2)  # (n, K, positions)
    if center:
        limit = 16 * torch.finfo(rows.dtype).eps * rows.abs().amax(dim=(1, 2), keepdim=True)
        rows = rows - rows.mean(dim=2, keepdim=True)
        # Constant values leave rounding errors, which would have a component too.
        rows = torch.where(rows.abs().amax(dim=(1, 2), keepdim=True) <= limit, 0.0, rows)
    size = rows.abs().amax(dim=(1, 2), keepdim=True)
    scaled = rows / torch.where(size == 0, 1.0, size)  # as squares of tiny values would underflow
    with torch.autocast(rows.device.type, enabled=False):  # half precision has too few digits
        # The Gram matrix of the smaller side has the same component.
        if rows.shape[1] <= rows.shape[2]:
            direction = _top_eigenvector(scaled @ scaled.mT)
        else:
            direction = _unit((scaled @ _top_eigenvector(scaled.mT @ scaled)[..., None])[..., 0])
        map_ = torch.einsum("nK,nKp->np", direction, rows)
    return map_.unflatten(1, grids.shape[2:]), direction


def _top_eigenvector(gram: Tensor) -> Tensor:
    """Return the eigenvectors (n, m) of the largest eigenvalues of symmetric matrices."""
    for _ in range(_DOUBLINGS[gram.dtype]):
        gram = _over_trace(gram)
        gram = gram @ gram
    # The matrix is now a projection on the eigenvector, so every column is a multiple of it. The
    # longest is the most accurate.
    longest = gram.diagonal(dim1=1, dim2=2).argmax(dim=1)
    return _unit(gram.take_along_dim(longest[:, None, None], dim=2)[..., 0])


def _over_trace(gram: Tensor) -> Tensor:
    trace = gram.diagonal(dim1=1, dim2=2).sum(dim=1)
    return gram / torch.where(trace == 0, 1.0, trace)[:, None, None]


def _unit(vectors: Tensor) -> Tensor:
    length = vectors.norm(dim=1, keepdim=True)
    return vectors / torch.where(length == 0, 1.0, length)


def _peak_upwards(maps: Tensor) -> Tensor:
    """Negate maps in which the value with the largest magnitude, or the first such, is negative."""
    flat = maps.flatten(1)
    size = flat.abs()
    is_peak = size >= (1 - 1e-5) * size.amax(dim=1, keepdim=True)  # up to rounding
    first = is_peak.int().argmax(dim=1, keepdim=True)
    is_negative = flat.gather(1, first) < 0
    return torch.where(is_negative, -flat, flat).view_as(maps)


def _check_center(center: bool) -> None:
    if not isinstance(center, bool):
        raise ValueError(f"center must be True or False; got {center!r}.")
