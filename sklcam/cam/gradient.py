"""Methods that need one gradient: of a score, with respect to one layer's activations."""

from __future__ import annotations

from torch import Tensor

from sklcam.cam.base import GradientMethod


class GradCAM(GradientMethod):
    r"""Grad-CAM: channels weighed by their mean gradient.

    .. math:: \alpha_k = \frac{1}{Z} \sum_{ij} \frac{\partial y_c}{\partial A_{k,ij}}, \qquad
              L = \mathrm{ReLU}\Big(\sum_k \alpha_k A_k\Big)

    Parameters
    ----------
    relu : bool, default=True
        False keeps negative evidence, as training on explanations needs it: with the ReLU a network
        learns maps that are negative everywhere.

    References
    ----------
    Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
    Localization", IJCV 2020, eq. 1-2. Without the ReLU: Sun, Phan, Nguyen, "Staying Consistent with
    GradCAM", section 3.2.3.

    Examples
    --------
    >>> import torch
    >>> from sklcam.cam import GradCAM
    >>> activations = torch.tensor([[[[1.0, 2.0]], [[0.0, 1.0]]]], requires_grad=True)
    >>> scores = 2 * activations[:, 0].sum((1, 2)) - activations[:, 1].sum((1, 2))
    >>> GradCAM()(scores, activations)
    tensor([[[2., 3.]]])
    """

    def combine(self, activations: Tensor, gradients: Tensor) -> Tensor:
        weights = gradients.mean(dim=(2, 3), keepdim=True)
        return (weights * activations).sum(dim=1)
