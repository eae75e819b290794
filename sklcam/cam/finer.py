"""Finer-CAM: the evidence for a class rather than for the classes most similar to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from sklcam._validation import check_count, check_number
from sklcam.cam.asked import as_target
from sklcam.cam.base import ChannelMethod
from sklcam.cam.gradient import GradCAM
from sklcam.cam.recorded import RecordedPass
from sklcam.cam.targets import Classes, Deferred, Target, check_rows
from sklcam.networks.inputs import Inputs, Rows

if TYPE_CHECKING:
    from sklcam.networks.adapters import Adapter

References = Literal["mean", "probability"]


class Finer(Deferred):
    r"""Target: a class, contrasted with the classes whose scores are most similar.

    .. math:: y_c - \gamma \sum_{t=1}^{T} w_t\, y_{d_t}

    where :math:`d_1, \ldots, d_T` are the T other classes whose scores are closest to
    :math:`y_c` in an image. The target is for networks with several classes, and works with any
    method.

    Parameters
    ----------
    target : None, Target or Tensor of class indices, default=None
        The class, or several classes per image. None is the predicted class.
    gamma : float, default=1.0
        The weight of the other classes. With 0, only the class itself counts.
    n_similar : int, default=3
        T, the number of other classes. All of them are used if there are fewer.
    weights : {"mean", "probability"}, default="mean"
        The weights of the other classes. "mean" is 1/T for each, as in the paper. "probability" is
        the softmax over them, which is differentiated too, as in the authors' code and in
        pytorch-grad-cam.

    Raises
    ------
    ValueError
        If a parameter is out of range, or the target does not name classes.

    References
    ----------
    Zhang et al., "Finer-CAM: Spotting the Difference Reveals Finer Details for Visual Explanation",
    CVPR 2025, section 3.

    Examples
    --------
    >>> import torch
    >>> from sklcam.cam import Finer, target_scores
    >>> logits = torch.tensor([[5.0, 4.0, 2.0, -9.0]])
    >>> target_scores(logits, Finer(n_similar=2))
    tensor([2.])
    """

    names_classes = True

    def __init__(
        self,
        target: Target | Tensor | None = None,
        *,
        gamma: float = 1.0,
        n_similar: int = 3,
        weights: References = "mean",
    ):
        _check_options(gamma, n_similar, weights)
        self.target = as_target(target)
        if not self.target.names_classes:
            raise _no_classes(self.target)
        self.gamma = gamma
        self.n_similar = n_similar
        self.weights = weights
        self.several, self.k = self.target.several, self.target.k

    def _of(self, target: Target) -> Finer:
        return Finer(target, gamma=self.gamma, n_similar=self.n_similar, weights=self.weights)

    def take(self, rows: slice) -> Finer:
        return self._of(self.target.take(rows))

    def check(self, n_classes: int) -> None:
        self.target.check(n_classes)

    def bind(self, adapter: Adapter) -> Finer:
        return self._of(self.target.bind(adapter))

    def resolve(self, output: Tensor, inputs: Inputs | None = None) -> Target:
        classes = self.target.resolve(check_rows(output), inputs)
        # Proxies stand for classes too, but the output does not have a column for each of them.
        if not isinstance(classes, Classes):
            raise _no_classes(classes)
        output = output.detach()
        others = _closest(output, classes.indices, self.n_similar)
        return _Contrast(classes.given(), others, output, gamma=self.gamma, weights=self.weights)


class FinerCAM(ChannelMethod):
    r"""Finer-CAM: Grad-CAM of a class, contrasted with the classes whose scores are most similar.

    .. math:: \alpha_k = \frac{1}{Z} \sum_{ij} \frac{\partial}{\partial A_{k,ij}}
              \Big( y_c - \gamma \sum_{t=1}^{T} w_t\, y_{d_t} \Big), \qquad
              L = \mathrm{ReLU}\Big(\sum_k \alpha_k A_k\Big)

    Evidence that the class shares with similar classes cancels out. If only rounding errors remain,
    the map is blank. The method is for networks with several classes, and works at any layer where
    Grad-CAM does. :class:`Finer` is its score alone, as a target for other methods.

    Parameters
    ----------
    relu : bool, default=True
        Whether to set negative evidence to zero.
    gamma : float, default=1.0
        The weight of the other classes. With 0, the method is Grad-CAM.
    n_similar : int, default=3
        T, the number of other classes. All of them are used if there are fewer.
    weights : {"mean", "probability"}, default="mean"
        The weights of the other classes; see :class:`Finer`.

    References
    ----------
    Zhang et al., "Finer-CAM: Spotting the Difference Reveals Finer Details for Visual Explanation",
    CVPR 2025, section 3.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklcam import CAMExplainer
    >>> network = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> explainer = CAMExplainer(network, method="finercam", target_layer="0", verbose=0).fit()
    >>> images = torch.tensor([[[[0.0, 3.0, 2.0]], [[0.0, 1.0, 2.0]]]])  # both classes on the right
    >>> explainer.explain(images)
    array([[[0., 1., 0.]]], dtype=float32)
    """

    graph = "head"
    asks_another_question = True

    def __init__(
        self,
        relu: bool = True,
        gamma: float = 1.0,
        n_similar: int = 3,
        weights: References = "mean",
    ):
        super().__init__(relu)
        self.gamma = gamma
        self.n_similar = n_similar
        self.weights = weights

    def check(self) -> None:
        _check_options(self.gamma, self.n_similar, self.weights)

    def channel_weights(self, recorded: RecordedPass) -> list[Tensor]:
        finer = Finer(
            recorded.target, gamma=self.gamma, n_similar=self.n_similar, weights=self.weights
        )
        for column in range(recorded.scores.shape[1]):
            recorded.gradients(column, keep=True)  # the other target needs the graph too
        of_class = GradCAM().channel_weights(recorded)
        contrast = GradCAM().channel_weights(recorded.asked(finer))
        dtype = torch.bfloat16 if recorded.is_half else recorded.scores.dtype
        rounding = _N_UNITS * torch.finfo(dtype).eps
        return [
            torch.where(_largest(each) > rounding * _largest(own), each, 0.0)
            for each, own in zip(contrast, of_class, strict=True)
        ]


# A difference of up to this many units of rounding of the class's own weights counts as zero. If
# two classes have the same weights, the difference is not exactly 0, and scaled to [0, 1] it would
# make a map as bright as any.
_N_UNITS = 4


def _largest(weights: Tensor) -> Tensor:
    return weights.abs().amax(dim=2, keepdim=True)


class _Contrast(Classes):
    """Given classes, each contrasted with given others, (n_images, k, T)."""

    def __init__(
        self, indices: Tensor, others: Tensor, at: Tensor, *, gamma: float, weights: References
    ):
        super().__init__(indices)
        self._others, self._at = others, at
        self._gamma, self._weights = gamma, weights
        # The derivatives of the score with respect to the output, including derivatives of the
        # shares, for methods that use the head's weights.
        compared = self._compared(at, others)
        shares = self._shares(compared)
        if weights == "probability":
            mean = (shares * compared).sum(dim=2, keepdim=True)
            shares = shares * (1 + compared - mean)
        zeros = at.new_zeros(*self.indices.shape, at.shape[1])
        ones = zeros.scatter(2, self.indices[..., None], 1.0)
        self.directions: Tensor = ones.scatter_add(2, others, -gamma * shares)

    def take(self, rows: slice) -> _Contrast:
        others, at = self._others[rows], self._at[rows]
        return _Contrast(self.given()[rows], others, at, gamma=self._gamma, weights=self._weights)

    def resolve(self, output: Tensor, inputs: Inputs | None = None) -> _Contrast:
        return self

    def scores(self, output: Tensor, inputs: Inputs | None = None, rows: Rows = None) -> Tensor:
        indices, others = self.indices, self._others
        if rows is not None:
            indices, others = indices[rows], others[rows]
        compared = self._compared(output, others)
        against = (self._shares(compared) * compared).sum(dim=2)
        return output.gather(1, indices) - self._gamma * against

    def _shares(self, compared: Tensor) -> Tensor:
        if self._weights == "probability":
            return compared.softmax(dim=2)  # equals the softmax over all classes, renormalised
        return torch.full_like(compared, 1 / max(1, compared.shape[2]))

    @staticmethod
    def _compared(output: Tensor, others: Tensor) -> Tensor:
        return output[:, None].expand(-1, others.shape[1], -1).gather(2, others)


def _closest(output: Tensor, indices: Tensor, n_similar: int) -> Tensor:
    """Return the other classes with the scores closest to those of the given ones, (n, k, T)."""
    distances = (output[:, None] - output.gather(1, indices)[..., None]).abs()
    distances = distances.scatter(2, indices[..., None], -1.0)  # the class itself comes first
    n_others = min(n_similar, output.shape[1] - 1)
    return distances.topk(n_others + 1, dim=2, largest=False).indices[..., 1:]


def _no_classes(target: Target) -> ValueError:
    return ValueError(
        "Finer-CAM contrasts a class with other classes, but the target "
        f"{type(target).__name__} has none. Name a class of a network with one output per class, "
        "or use another method, such as Grad-CAM."
    )


def _check_options(gamma: float, n_similar: int, weights: str) -> None:
    check_number("gamma", gamma, 0)
    check_count("n_similar, how many other classes,", n_similar)
    if weights not in ("mean", "probability"):
        raise ValueError(f'weights must be "mean" or "probability"; got {weights!r}.')
