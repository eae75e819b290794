"""Channels of the target layer: their activations, their weights and their names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from sklearn.utils import Bunch
from torch import Tensor

from sklcam._validation import check_count, describe
from sklcam.cam import ChannelMethod, Method, RecordedPass
from sklcam.cam.targets import Target
from sklcam.explain._batches import BatchExplainer, without_graph
from sklcam.explain._questions import AnyMethod
from sklcam.explain.checks import ExplanationCheck
from sklcam.explain.opened import Batch, OpenedImages
from sklcam.networks.inputs import Inputs, Rows


class Namer(Protocol):
    """Something that names channels: an estimator of :mod:`sklcam.concepts`, or one like it."""

    def explain(
        self,
        explainer: Any,
        X: Any,
        target: Any = None,
        *,
        k: int = 5,
        weigh: Literal["importance", "contribution"] = "importance",
    ) -> Any: ...


@dataclass(frozen=True, eq=False)
class ChannelBatch:
    """A batch, and the channels of the target layer for it.

    Attributes
    ----------
    batch : Batch
    activations : Tensor of shape (n_images, K, u, v)
        The activations, in float32 or float64.
    weights : Tensor of shape (n_images, K), or None
        The weight of each channel, if a method was given.
    output : Tensor
        The network's output.
    target : Target
        The resolved target that the weights are for.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklcam import CAMExplainer
    >>> network = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> explainer = CAMExplainer(network, target_layer="0", verbose=0).fit()
    >>> images = torch.tensor([[[[0.0, 2.0]], [[1.0, 0.0]]]])
    >>> for found in explainer.iter_channels(explainer.open(images), method="gradcam"):
    ...     print(found.activations.shape, found.weights)
    torch.Size([1, 2, 1, 2]) tensor([[0.5000, 0.0000]])
    """

    batch: Batch
    activations: Tensor
    weights: Tensor | None
    output: Tensor
    target: Target


class _Looking(Method):
    """Records the layer and computes no maps."""

    def explain(self, recorded: RecordedPass) -> list[Tensor]:
        return []


class _Nothing(Target):
    """A target whose scores are 0, whatever the network returns."""

    def resolve(self, output: Tensor, inputs: Inputs | None = None) -> Target:
        return self

    def scores(self, output: Tensor, inputs: Inputs | None = None, rows: Rows = None) -> Tensor:
        return output.new_zeros(len(output), 1)


class ChannelExplainer(BatchExplainer):
    """The part of an :class:`Explainer` that works on the channels of its target layers."""

    def channel_weights(
        self, X: Any, target: Any = None, *, method: AnyMethod | None = None
    ) -> Any:
        r"""Return the weight of each channel of the target layer, :math:`\alpha_k`.

        Parameters
        ----------
        X, target, method
            See :meth:`explain`. The method must give each channel a single weight, as Grad-CAM
            does.

        Returns
        -------
        ndarray of shape (n_images, K), float32
            (n_images, k, K) for a target of several classes per image. With several target layers,
            a list of such arrays, one per layer.

        Raises
        ------
        ValueError
            If an argument is invalid, or the method does not weight channels.

        References
        ----------
        Selvaraju et al., "Grad-CAM", IJCV 2020, eq. 1; section 7 names the channels with the
        largest weights.
        """
        chosen = self._as_channel_method(method)
        opened = self.open(X)
        question, check = self.as_target(target, len(opened)), ExplanationCheck()
        if question.ragged:
            raise ValueError(
                "channel_weights needs the same number of rows for each image. Give Box the same "
                "number of boxes for each, or explain one word of each text, or the text as a "
                "whole."
            )
        per_layer: list[list[np.ndarray]] = [[] for _ in self.target_layers]
        with self._bar(len(opened), "channel weights") as bar:
            for batch in opened.batches():
                part = self.question_of(question, batch)
                weights = self._weigh_channels(batch.inputs, part, chosen)
                for collected, layer_weights in zip(per_layer, weights, strict=True):
                    check.add(layer_weights, "rows of weights", n_axes=1)
                    collected.append(layer_weights.float().cpu().numpy())
                bar.update(len(batch))
        check.warn()
        arrays = [np.concatenate(collected) for collected in per_layer]
        return arrays if len(arrays) > 1 else arrays[0]

    def strongest_channels(
        self, X: Any, target: Any = None, *, k: int = 5, method: AnyMethod | None = None
    ) -> Bunch:
        """Return the channels with the highest and the lowest weights for a class.

        Parameters
        ----------
        X, target, method
            See :meth:`channel_weights`. There must be a single target layer.
        k : int, default=5
            How many channels to return for the class, and how many against it.

        Returns
        -------
        Bunch
            ``positive`` and ``negative`` are ndarrays of shape (n_images, k) with indices of
            channels, the strongest first. ``positive_weights`` and ``negative_weights`` are their
            weights.

        References
        ----------
        Selvaraju et al., "Grad-CAM", IJCV 2020, section 7.
        """
        check_count("k, how many channels,", k)
        if len(self.target_layers) > 1:
            raise ValueError(
                f"strongest_channels needs a single target layer; got {len(self.target_layers)}. "
                "Name one with target_layer=."
            )
        weights = self.channel_weights(X, target, method=method)
        check_count("k, how many channels,", k, 1, weights.shape[-1])
        order = np.argsort(-weights, axis=-1, kind="stable")
        positive, negative = order[..., :k], order[..., : -k - 1 : -1]
        return Bunch(
            positive=positive,
            negative=negative,
            positive_weights=np.take_along_axis(weights, positive, axis=-1),
            negative_weights=np.take_along_axis(weights, negative, axis=-1),
        )

    def explain_in_words(
        self,
        X: Any,
        namer: Namer,
        target: Any = None,
        *,
        k: int = 5,
        weigh: Literal["importance", "contribution"] = "importance",
    ) -> Any:
        r"""Name the concepts for and against each decision.

        Parameters
        ----------
        X, target
            See :meth:`explain`. There must be one class per image.
        namer : ConceptNamer or TextConceptNamer
            A namer that is fitted to the same layer: see :mod:`sklcam.concepts`.
        k : int, default=5
            How many channels to name for the class, and how many against it.
        weigh : {"importance", "contribution"}, default="importance"
            What channels are sorted by: the paper's :math:`\alpha_k`, or :math:`\alpha_k` times the
            channel's mean activation in the image.

        Returns
        -------
        Reasons
            For each image, the names of the k channels with the highest weights, and of the k with
            the lowest.

        Raises
        ------
        ValueError
            If ``namer`` is not a fitted namer, was fitted to another layer, or another argument is
            invalid.

        References
        ----------
        Selvaraju et al., "Grad-CAM", IJCV 2020, section 7.
        """
        if isinstance(namer, type) or not hasattr(namer, "explain"):
            raise ValueError(
                f"namer must be a fitted ConceptNamer or TextConceptNamer; got {describe(namer)}."
            )
        return namer.explain(self, X, target, k=k, weigh=weigh)

    def iter_channels(
        self,
        opened: OpenedImages,
        target: Target | None = None,
        *,
        method: AnyMethod | None = None,
    ) -> Iterator[ChannelBatch]:
        """Yield the channels of the single target layer for opened images, batch after batch.

        Parameters
        ----------
        opened : OpenedImages
            See :meth:`open`.
        target : Target or None, default=None
            The target for all of the images; see ``as_target``. It is used only with a method.
        method : str, Method or None, default=None
            The method that computes the weights, such as "gradcam". With None there are no weights
            and no gradients.

        Yields
        ------
        ChannelBatch

        Raises
        ------
        ValueError
            If there are several target layers, the method does not give each channel a single
            weight, the layer's grid covers more than the images, or there are several classes per
            image.
        """
        looking = _Looking() if method is None else self._as_channel_method(method)
        self.check_at_layer([looking])
        question = _Nothing() if method is None else self.translate(target)
        if question.several:
            raise ValueError(
                "Weights of channels are for one class per image, but the target has several. Give "
                "one label per image."
            )
        for batch in opened.batches():
            self._check_extent(batch.inputs)
            with without_graph(self.adapter):
                recordable = batch.inputs.recordable()
                recorded = self._record([looking], recordable, self.question_of(question, batch))
                weights = None
                if isinstance(looking, ChannelMethod):
                    weights = looking.channel_weights(recorded)[0][:, 0]
                found = (recorded.grid(0), weights, recorded.output.detach(), recorded.target)
                del recorded  # frees its graph
            yield ChannelBatch(batch, *found)

    def _as_channel_method(self, method: AnyMethod | None) -> ChannelMethod:
        chosen = self.as_method(method)
        if not isinstance(chosen, ChannelMethod):
            raise ValueError(
                f"{type(chosen).__name__} does not give each channel a single weight. Use GradCAM, "
                "XGradCAM, GradCAMPlusPlus, ScoreCAM or AblationCAM."
            )
        return chosen

    def _weigh_channels(
        self, inputs: Inputs, target: Target, method: ChannelMethod
    ) -> list[Tensor]:
        """Return the weights of one batch, and free everything else."""
        with without_graph(self.adapter):
            weights = method.channel_weights(self._record([method], inputs.recordable(), target))
        return weights if target.several else [layer_weights[:, 0] for layer_weights in weights]
