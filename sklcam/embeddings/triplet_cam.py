"""TripletCAM, the baseline of embedding explanations: weights passed on by training images.

It is a method like those of :mod:`sklcam.cam`, and is used like them. It lives here because it must
first be fitted to training images, with an explainer that embeds them.
"""

from __future__ import annotations

from copy import copy
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from sklcam._validation import check_count, check_number, describe
from sklcam.cam import ChannelMethod, Directions, RecordedPass
from sklcam.cam.base import RandomState
from sklcam.embeddings.explainer import EmbeddingCAMExplainer
from sklcam.embeddings.targets import normalized
from sklcam.images.rows import take_rows


class TripletCAM(ChannelMethod):
    r"""Chen et al.'s adaptation of Grad-CAM: weights of training images, from their triplets.

    A training image's channels are weighed by what lowers its triplet loss, on average over
    triplets with it as the anchor:

    .. math:: \alpha_k = -\frac{1}{Z} \sum_{ij} \frac{\partial}{\partial A_{k,ij}}
              \Big\langle \max(0, \lVert\hat{y} - \hat{y}_+\rVert^2
              - \lVert\hat{y} - \hat{y}_-\rVert^2 + m) \Big\rangle

    Any other image is explained without a gradient, by the weights of its nearest training image.
    It is the baseline that :class:`~sklcam.EmbeddingCAMExplainer` is compared with: it needs the
    training images and an index of them.

    Parameters
    ----------
    n_triplets : int, default=50
        How many triplets an image's weights are averaged over, drawn from those that violate the
        margin. If none does, and the loss has no gradient, the one that comes closest is taken.
    margin : float, default=0.2
        The margin m of the loss.
    relu : bool, default=True
        Whether negative evidence is cut off.
    random_state : int, RandomState or None, default=None
        Controls which triplets are drawn.

    Attributes
    ----------
    embeddings_ : Tensor of shape (n_images, dim), float32
        The embeddings of the training images, of length 1, without images that are alone in their
        class.
    weights_ : list of Tensor of shape (n_images, K), float32
        The weights of these images, one tensor per target layer.

    Notes
    -----
    For a direction other than the image's own embedding, such as a class's proxy, the training
    image is the one nearest to the middle of the two.

    The loss is differentiated once per image, however many triplets there are: with respect to the
    anchor's embedding the gradient is :math:`2(\hat{y}_- - \hat{y}_+)`, which is averaged first.

    References
    ----------
    Chen, Chen, Hajimirsadeghi, Mori, "Adapting Grad-CAM for Embedding Networks", WACV 2020.

    Examples
    --------
    >>> import numpy as np
    >>> import torch
    >>> from sklcam import EmbeddingCAMExplainer
    >>> from sklcam.embeddings import TripletCAM
    >>> from sklcam.networks import build_model
    >>> network = build_model("resnet18", n_classes=16)
    >>> images, labels = torch.randn(6, 3, 64, 64), np.repeat(["apple", "pear"], 3)
    >>> explainer = EmbeddingCAMExplainer(network, proxy="self", top_channels=50, verbose=0).fit()
    >>> method = TripletCAM(random_state=0).fit(explainer, images, labels)
    >>> explainer.explain(torch.randn(2, 3, 64, 64), method=method).shape
    (2, 64, 64)
    """

    embeddings_: Tensor
    weights_: list[Tensor]

    def __init__(
        self,
        n_triplets: int = 50,
        margin: float = 0.2,
        relu: bool = True,
        random_state: RandomState = None,
    ):
        super().__init__(relu)
        self.n_triplets = n_triplets
        self.margin = margin
        self.random_state = random_state

    def check(self) -> None:
        self._check_options()
        check_is_fitted(
            self,
            "weights_",
            msg="%(name)s explains by the weights of training images; call its fit with an "
            "explainer and training images first.",
        )

    def _check_options(self) -> None:
        check_count("n_triplets", self.n_triplets)
        check_number("margin", self.margin, 0)
        check_random_state(self.random_state)

    def fit(self, explainer: EmbeddingCAMExplainer, X: Any, y: Any = None) -> TripletCAM:
        """Learn the weights of training images.

        Parameters
        ----------
        explainer : EmbeddingCAMExplainer
            A fitted explainer of the network.
        X : images
        y : array-like of shape (n_images,) or None, default=None
            Their labels; a torch data set may bring its own.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If an option is out of range, the explainer is not an EmbeddingCAMExplainer, the labels
            are not one per image, no class has two images, or there is only one class.
        """
        self._check_options()
        if not isinstance(explainer, EmbeddingCAMExplainer):
            raise ValueError(
                f"TripletCAM needs a fitted EmbeddingCAMExplainer; got {describe(explainer)}."
            )
        opened, labels = explainer.open_labelled(X, y, "TripletCAM")
        classes, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
        in_triplets = np.flatnonzero(counts[codes] > 1)
        if len(classes) < 2 or not len(in_triplets):
            raise ValueError(
                "Triplets need two images of one class and one of another; got "
                f"{len(labels)} images of {len(classes)} classes."
            )
        raw = torch.cat(list(explainer.iter_embeddings(opened)))
        embeddings = normalized(raw)
        pulls = self._pulls(embeddings, codes, in_triplets)
        anchors = embeddings[in_triplets]
        # The backward pass of the division by the length: the gradient at the raw embedding.
        along = (pulls * anchors).sum(dim=1, keepdim=True)
        directions = (pulls - along * anchors) / raw[in_triplets].norm(dim=1, keepdim=True)
        # The weights are Grad-CAM's, with the pulls in place of a proxy.
        X = take_rows(X, in_triplets) if len(in_triplets) < len(labels) else X
        plain = copy(explainer).set_params(contrast=False)
        weights = plain.channel_weights(X, Directions(directions), method="gradcam")
        per_layer = weights if isinstance(weights, list) else [weights]
        self.embeddings_ = anchors
        self.weights_ = [torch.from_numpy(each) for each in per_layer]
        return self

    def _pulls(self, embeddings: Tensor, codes: np.ndarray, anchors: np.ndarray) -> Tensor:
        """Return where each anchor's triplets pull it: the negative gradient of their mean loss."""
        generator = check_random_state(self.random_state)
        members = [np.flatnonzero(codes == code) for code in range(codes.max() + 1)]
        pulls = torch.empty(len(anchors), embeddings.shape[1])
        for row, anchor in enumerate(anchors):
            own = members[codes[anchor]]
            positives = _some(own[own != anchor], generator)
            negatives = _some(np.flatnonzero(codes != codes[anchor]), generator)
            to_positives = (embeddings[positives] - embeddings[anchor]).square().sum(dim=1)
            to_negatives = (embeddings[negatives] - embeddings[anchor]).square().sum(dim=1)
            losses = (to_positives[:, None] - to_negatives + self.margin).flatten().numpy()
            violating = np.flatnonzero(losses > 0)
            if not len(violating):  # the loss has no gradient; see n_triplets
                violating = np.array([losses.argmax()])
            n_drawn = min(self.n_triplets, len(violating))
            drawn = generator.choice(violating, n_drawn, replace=False)
            which_positive, which_negative = np.divmod(drawn, len(negatives))
            towards = embeddings[positives[which_positive]]
            away = embeddings[negatives[which_negative]]
            pulls[row] = 2 * (towards - away).mean(dim=0)
        return pulls

    def channel_weights(self, recorded: RecordedPass) -> list[Tensor]:
        explained = recorded.target.directions
        if explained is None:
            raise ValueError(
                "TripletCAM explains embeddings; its target must be an embedding or a proxy, not a "
                "class's output or a callable."
            )
        device = recorded.output.device
        # Nearest to the sum of two vectors of length 1 is nearest to the middle between them.
        middle = normalized(recorded.output.detach())[:, None] + normalized(explained)
        nearest = (middle.float() @ self.embeddings_.to(device).T).argmax(dim=2)
        return [weights.to(device)[nearest] for weights in self.weights_]


# How many positives and negatives an anchor's triplets are drawn from. The number of triplets is
# the product, and those of a large data set would not fit into memory.
_CANDIDATES = 256


def _some(indices: np.ndarray, generator: np.random.RandomState) -> np.ndarray:
    if len(indices) <= _CANDIDATES:
        return indices
    return generator.choice(indices, _CANDIDATES, replace=False)
