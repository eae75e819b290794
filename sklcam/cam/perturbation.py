"""Methods that weight channels by the network's score with each channel alone, or without it.

They need no gradient. Score-CAM and its relatives run the network on masked images. Ablation-CAM
runs the part after the layer on activations with one channel set to zero.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from itertools import accumulate

import numpy as np
import torch
from sklearn.utils import check_random_state
from torch import Tensor

from sklcam._validation import draw_seed
from sklcam.cam.base import (
    ChannelMethod,
    Method,
    RandomState,
    batch_size_for,
    check_batch_size,
    check_noise,
)
from sklcam.cam.maps import places, rounding
from sklcam.cam.recorded import RecordedPass
from sklcam.networks.heads import Head
from sklcam.networks.inference import is_out_of_memory


class PerturbationMethod(ChannelMethod):
    """A method whose channel weights come from forward passes: implement ``weights``.

    Parameters
    ----------
    relu : bool, default=True
        Whether to set negative evidence to zero.
    batch_size : int or None, default=None
        The largest number of images, or activations, that go through the network at a time, which
        limits memory. None is 10 images of 224 x 224 pixels on a CPU, as its caches hold no more,
        83 elsewhere, and more if the images are smaller.

    Examples
    --------
    A channel's weight is the score of the image where the channel is active:

    >>> import torch
    >>> from torch import nn
    >>> from sklcam import CAMExplainer
    >>> from sklcam.cam import PerturbationMethod
    >>> class ActiveCAM(PerturbationMethod):
    ...     def weights(self, recorded, layer):
    ...         rows, scores = slice(None), []
    ...         for channel in recorded.grid(layer).unbind(dim=1):
    ...             shown = (channel > 0)[:, None]
    ...             output = recorded.run(recorded.images * shown, rows)
    ...             scores.append(recorded.score(output, rows))
    ...         return torch.stack(scores, dim=2)
    >>> network = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> explainer = CAMExplainer(network, method=ActiveCAM, target_layer="0", verbose=0).fit()
    >>> explainer.explain(torch.tensor([[[[0.0, 2.0, 1.0]], [[3.0, 0.0, -1.0]]]]), target=0)
    array([[[0. , 1. , 0.5]]], dtype=float32)
    """

    def __init__(self, relu: bool = True, batch_size: int | None = None):
        super().__init__(relu)
        self.batch_size = batch_size

    @abstractmethod
    def weights(self, recorded: RecordedPass, layer: int) -> Tensor:
        """Return the weights of a layer's channels, of shape (n_images, k, K)."""

    def check(self) -> None:
        check_batch_size(self.batch_size)

    def rows_at_a_time(self, recorded: RecordedPass) -> int:
        """Return the batch size for the device of the images."""
        return batch_size_for(recorded.images, self.batch_size)

    def channel_weights(self, recorded: RecordedPass) -> list[Tensor]:
        with torch.no_grad():
            return [self.weights(recorded, layer) for layer in range(len(recorded.layers))]


class _MaskingMethod(PerturbationMethod):
    """The weights are the softmax over the scores of the image masked by each channel."""

    def weights(self, recorded: RecordedPass, layer: int) -> Tensor:
        return self.weights_of(recorded, recorded.grid(layer))

    def weights_of(self, recorded: RecordedPass, activations: Tensor) -> Tensor:
        """Return the weights (n_images, k, K) of channels (n_images, K, u, v)."""
        n_images, n_channels = activations.shape[:2]
        scores = torch.empty(
            (n_images, n_channels, recorded.scores.shape[1]),
            dtype=recorded.scores.dtype,
            device=activations.device,
        )
        recorded.prepare_inference()
        self.fill_scores(recorded, activations, scores)
        return scores.softmax(dim=1).transpose(1, 2)

    def fill_scores(self, recorded: RecordedPass, activations: Tensor, scores: Tensor) -> None:
        """Fill in the scores (n_images, K, k). All constant channels share one empty image."""
        axes = places(activations)
        low, high = activations.amin(dim=axes), activations.amax(dim=axes)
        varies = high - low > rounding(low, high)
        # After a ReLU many channels are zero everywhere. Without this they would take most passes.
        for (rows,) in self._batches((~varies).any(dim=1), recorded):
            empty = recorded.run(torch.zeros_like(recorded.images[rows]), rows)
            scores[rows] = recorded.score(empty, rows)[:, None]
        for rows, shown in self._batches(varies, recorded):
            masks = recorded.scaled(recorded.upsample(activations[rows, shown][:, None])[:, 0])
            scores[rows, shown] = self.score_masked(recorded, masks, rows)

    def _batches(self, where: Tensor, recorded: RecordedPass) -> Iterator[tuple[Tensor, ...]]:
        """Yield the indices of True entries along each axis, a batch at a time."""
        for batch in where.nonzero().split(self.rows_at_a_time(recorded)):
            if len(batch):
                yield batch.unbind(dim=1)

    def score_masked(self, recorded: RecordedPass, masks: Tensor, rows: Tensor) -> Tensor:
        """Return the scores (m, k) of images under masks (m, height, width)."""
        images = recorded.images[rows]  # a copy, in the memory format of prepare_inference
        output = recorded.run(images.mul_(masks[:, None].to(images.dtype)), rows)
        return recorded.score(output, rows)


class ScoreCAM(_MaskingMethod):
    r"""Score-CAM: channels weighted by the score of the image masked by them.

    .. math:: w = \mathrm{softmax}_k\big(y_c(x \odot H_k)\big), \qquad
              H_k = s(\mathrm{up}(A_k))

    with bilinear upsampling, then scaling to [0, 1]. The paper also subtracts the score of a
    baseline, which cancels in the softmax.

    Constant channels have empty masks and share the forward pass of an empty image. The other
    channels go through the network in batches across images and channels, without a graph, in
    channels-last memory.

    Parameters
    ----------
    relu : bool, default=True
        Whether to set negative evidence to zero.
    batch_size : int or None, default=None
        The largest number of masked images that go through the network at a time. None is 10 images
        of 224 x 224 pixels on a CPU, as its caches hold no more, 83 elsewhere, and more if the
        images are smaller.

    References
    ----------
    Wang et al., "Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural Networks",
    CVPRW 2020, algorithm 1.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklcam import CAMExplainer
    >>> from sklcam.cam import ScoreCAM
    >>> network = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> explainer = CAMExplainer(network, method=ScoreCAM(), target_layer="0", verbose=0)
    >>> images = torch.tensor([[[[0.0, 8.0], [4.0, 0.0]], [[8.0, 0.0], [0.0, 0.0]]]])
    >>> explainer.fit().explain(images, target=0).round(2)
    array([[[0.08, 1.  ],
            [0.5 , 0.  ]]], dtype=float32)
    """


class ISCAM(_MaskingMethod):
    r"""IS-CAM: Score-CAM with scores averaged along a path of ever stronger masks.

    .. math:: w = \mathrm{softmax}_k\Big(\frac{1}{N} \sum_{i=1}^{N} y_c\Big(x \odot H_k
              \sum_{j=1}^{i} \frac{j}{N}\Big)\Big)

    Parameters
    ----------
    relu : bool, default=True
        Whether to set negative evidence to zero.
    batch_size : int or None, default=None
        The largest number of masked images that go through the network at a time. None is 10 images
        of 224 x 224 pixels on a CPU, as its caches hold no more, 83 elsewhere, and more if the
        images are smaller.
    n_samples : int, default=10
        N, the number of steps; each costs as much as Score-CAM.

    References
    ----------
    Naidu et al., "IS-CAM: Integrated Score-CAM for axiomatic-based explanations", 2020, section 3.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklcam import CAMExplainer
    >>> from sklcam.cam import ISCAM
    >>> network = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> explainer = CAMExplainer(network, method=ISCAM(n_samples=2), target_layer="0", verbose=0)
    >>> images = torch.tensor([[[[0.0, 8.0], [4.0, 0.0]], [[8.0, 0.0], [0.0, 0.0]]]])
    >>> explainer.fit().explain(images, target=0).round(2)
    array([[[0.08, 1.  ],
            [0.5 , 0.  ]]], dtype=float32)
    """

    def __init__(self, relu: bool = True, batch_size: int | None = None, n_samples: int = 10):
        super().__init__(relu, batch_size)
        self.n_samples = n_samples

    def check(self) -> None:
        super().check()
        check_noise(self.n_samples, 0)

    def score_masked(self, recorded: RecordedPass, masks: Tensor, rows: Tensor) -> Tensor:
        steps = range(1, self.n_samples + 1)
        scores = [
            super(ISCAM, self).score_masked(recorded, factor / self.n_samples * masks, rows)
            for factor in accumulate(steps)
        ]
        return torch.stack(scores).mean(dim=0)


class SSCAM(_MaskingMethod):
    r"""SS-CAM: Score-CAM with scores averaged over noisy masks.

    .. math:: w = \mathrm{softmax}_k\Big(\frac{1}{N} \sum_{i=1}^{N} y_c\big(x \odot (H_k +
              \delta_i)\big)\Big), \qquad \delta_i \sim \mathcal{N}(0, \sigma^2)

    Parameters
    ----------
    relu : bool, default=True
        Whether to set negative evidence to zero.
    batch_size : int or None, default=None
        The largest number of masked images that go through the network at a time. None is 10 images
        of 224 x 224 pixels on a CPU, as its caches hold no more, 83 elsewhere, and more if the
        images are smaller.
    n_samples : int, default=35
        N, the number of noisy masks; each costs as much as Score-CAM with no channel skipped.
    std : float, default=2.0
        Standard deviation of the noise. Masks are in [0, 1].
    random_state : int, RandomState or None, default=None
        Seed of the noise. All images share the same noise, so a map does not depend on the batch.

    References
    ----------
    Wang et al., "SS-CAM: Smoothed Score-CAM for Sharper Visual Feature Localization", 2020, the
    version that smooths masks.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklcam import CAMExplainer
    >>> from sklcam.cam import SSCAM
    >>> network = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> method = SSCAM(n_samples=2, std=0.1, random_state=0)
    >>> explainer = CAMExplainer(network, method=method, target_layer="0", verbose=0)
    >>> images = torch.tensor([[[[0.0, 8.0], [4.0, 0.0]], [[8.0, 0.0], [0.0, 0.0]]]])
    >>> explainer.fit().explain(images, target=0).round(1)
    array([[[0.1, 1. ],
            [0.5, 0. ]]], dtype=float32)
    """

    def __init__(
        self,
        relu: bool = True,
        batch_size: int | None = None,
        n_samples: int = 35,
        std: float = 2.0,
        random_state: RandomState = None,
    ):
        super().__init__(relu, batch_size)
        self.n_samples = n_samples
        self.std = std
        self.random_state = random_state

    def check(self) -> None:
        super().check()
        check_noise(self.n_samples, self.std)
        check_random_state(self.random_state)

    def fill_scores(self, recorded: RecordedPass, activations: Tensor, scores: Tensor) -> None:
        # A constant channel is not skipped here, as noise turns it into a mask too.
        scores.zero_()
        n_images, n_all = activations.shape[:2]
        seeds = np.random.SeedSequence(draw_seed(self.random_state)).generate_state(n_all)
        most = self.rows_at_a_time(recorded)
        # All images share a few channels at a time, so that a channel's noise is drawn only once.
        n_at_once = max(1, most // (n_images * min(self.n_samples, _SAMPLES_AT_ONCE)))
        for first in range(0, n_all, n_at_once):
            channels = slice(first, first + n_at_once)
            masks = recorded.scaled(recorded.upsample(activations[:, channels]))
            for noise in self._noises(seeds[channels], masks):
                n_channels, n_drawn = noise.shape[:2]
                every = torch.arange(n_images * n_channels * n_drawn, device=masks.device)
                found = []
                for part in every.split(most):
                    sample, pair = part % n_drawn, part // n_drawn
                    rows, of_channel = pair // n_channels, pair % n_channels
                    noisy = masks[rows, of_channel] + noise[of_channel, sample]
                    found.append(self.score_masked(recorded, noisy, rows))
                of_pairs = torch.cat(found).reshape(n_images, n_channels, n_drawn, -1)
                scores[:, channels] += of_pairs.sum(dim=2) / self.n_samples

    def _noises(self, seeds: np.ndarray, masks: Tensor) -> Iterator[Tensor]:
        """Yield noise (c, samples, height, width) for some channels, whatever the batch size."""
        # Each channel has its own generator, so the noise does not depend on how many fit a batch.
        generators = [torch.Generator(masks.device).manual_seed(int(seed)) for seed in seeds]
        for first in range(0, self.n_samples, _SAMPLES_AT_ONCE):
            n_drawn = min(_SAMPLES_AT_ONCE, self.n_samples - first)
            noise = masks.new_empty(len(seeds), n_drawn, *masks.shape[2:])
            for of_channel, generator in zip(noise, generators, strict=True):
                of_channel.normal_(0, self.std, generator=generator)
            yield noise


# The number of noisy masks of a channel drawn at a time. At 224 x 224 pixels they take 10 MB.
_SAMPLES_AT_ONCE = 50


class AblationCAM(PerturbationMethod):
    r"""Ablation-CAM: channels weighted by how far the score falls without them.

    .. math:: w_k = \frac{y_c - y_c^{(k)}}{|y_c|}

    where :math:`y_c^{(k)}` is the score with channel k of the layer set to zero. The part of the
    network before the layer runs once, in the pass that also gives the prediction.

    If a pooling of each channel and a linear layer follow, the fall is the channel's mean times its
    weight, and no further pass is needed. Any other head after a global pooling runs only on the
    pooled channels, in float32. Without such a pooling, the ablated activations go through the rest
    of the network.

    Parameters
    ----------
    relu : bool, default=True
        Whether to set negative evidence to zero.
    batch_size : int, default=256
        The largest number of ablated activations, or pooled channels, that go through the head at a
        time.

    Notes
    -----
    The paper divides by :math:`y_c`. The absolute value makes no difference to positive scores, and
    avoids inverting the map of a negative score.

    A network that changes tensors in place between its modules cannot be resumed at the layer. The
    score without ablation then comes out wrong, which is noticed, and the whole network runs
    instead.

    References
    ----------
    Desai, Ramaswamy, "Ablation-CAM", WACV 2020, eq. 3.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklcam import CAMExplainer
    >>> from sklcam.cam import AblationCAM
    >>> network = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> explainer = CAMExplainer(network, method=AblationCAM(), target_layer="0", verbose=0)
    >>> images = torch.tensor([[[[0.0, 2.0], [1.0, 0.0]], [[3.0, 0.0], [0.0, 0.0]]]])
    >>> explainer.fit().explain(images, target=0)
    array([[[0. , 1. ],
            [0.5, 0. ]]], dtype=float32)
    """

    resumes = True

    def __init__(self, relu: bool = True, batch_size: int = 256):
        super().__init__(relu, batch_size)

    def weights(self, recorded: RecordedPass, layer: int) -> Tensor:
        check_rows(recorded, layer, self)
        falls = self._falls_of_head(recorded, layer)
        if falls is None:
            falls = torch.stack([self._falls(recorded, layer, i) for i in range(recorded.n_images)])
        scores = recorded.scores.detach()[..., None].abs()
        # A score of 0 cannot fall by a fraction of itself. The weight is then the fall.
        return falls / torch.where(scores > 0, scores, 1.0)

    def _falls_of_head(self, recorded: RecordedPass, layer: int) -> Tensor | None:
        """Compute by how much the scores fall, (n_images, k, K), from the head, or return None."""
        try:
            head = recorded.head(layer)
            # Scores differ if the network works in place between its modules.
            if head is None or not _is_close(head.scores, recorded.scores.detach(), recorded):
                return None
            falls = head.falls(self.rows_at_a_time(recorded))
            return falls if _comes_true(recorded, layer, head, falls) else None
        except RuntimeError as error:  # the network works in place on a tensor that forbids it
            if is_out_of_memory(error):
                raise
            return None

    def _falls(self, recorded: RecordedPass, layer: int, image: int) -> Tensor:
        """Compute by how much each score of an image falls without each channel, (k, K)."""
        activations = recorded.activations[layer].detach()[image]
        # Keep the layer's own layout, as the network continues from it.
        axis = recorded.layers[layer].channel_axis(recorded.activations[layer]) - 1
        intact = recorded.scores[image].detach()
        falls = []
        every = torch.arange(activations.shape[axis], device=activations.device)
        for channels in every.split(self.rows_at_a_time(recorded)):
            # The first row stays unchanged, for a check.
            ablated = activations.expand(len(channels) + 1, *activations.shape).clone()
            rows = torch.arange(1, len(ablated), device=ablated.device)
            ablated.movedim(axis + 1, 1)[rows, channels] = 0
            falls.append(intact - self._scores(recorded, layer, ablated, image))
        return torch.cat(falls).T

    def _scores(self, recorded: RecordedPass, layer: int, ablated: Tensor, image: int) -> Tensor:
        """Return the scores (m - 1, k) of all rows except the first, which is a check."""
        rows = torch.full((len(ablated) - 1,), image, device=ablated.device)
        return recorded.score(resumed_output(recorded, layer, ablated, image, self), rows)


def _comes_true(recorded: RecordedPass, layer: int, head: Head, falls: Tensor) -> bool:
    """Whether the network confirms the head's scores for images without half of the channels.

    A trace may miss operations, for example outside of torch.
    """
    activations = recorded.activations[layer].detach()
    axis = recorded.layers[layer].channel_axis(activations)
    gone = torch.arange(activations.shape[axis], device=activations.device) % 2 == 0
    # Every other image stays unchanged, to check that an image does not change another's scores.
    changed = activations.clone()
    changed.movedim(axis, 1)[::2, gone] = 0
    with torch.no_grad():
        found = recorded.scores_of_batch(layer, changed)
    foretold = recorded.scores.detach().to(falls.dtype, copy=True)
    foretold[::2] = head.without(gone, falls)[::2]
    # A score is a sum. It may be small even if its terms are large, so compare with the terms.
    parts = foretold.abs() + falls.abs().sum(dim=2)
    tolerance = _tolerance(recorded) * parts + torch.finfo(parts.dtype).tiny
    return bool((((found - foretold).abs() <= tolerance) | ~parts.isfinite()).all())


def resumed_output(
    recorded: RecordedPass, layer: int, changed: Tensor, image: int, method: Method
) -> Tensor:
    """Run the part after a layer on changed activations of one image, if possible.

    Parameters
    ----------
    recorded : RecordedPass
        A pass that is ``resumable``.
    layer : int
    changed : Tensor of shape (m, ...)
        Activations in the layer's own layout. The first row must be unchanged.
    image : int
    method : Method
        The calling method, for the message.

    Returns
    -------
    Tensor of shape (m - 1, ...)
        The output for all rows except the first.

    Raises
    ------
    ValueError
        If the first row does not reproduce the image's score.
    """
    rows = torch.full((1,), image, device=changed.device)

    def came_out(output: Tensor) -> bool:
        intact = recorded.score(output[:1], rows)[0]
        return _is_close(intact, recorded.scores[image].detach(), recorded)

    try:
        # A copy, as the head may work in place and the rows may be needed again.
        output = recorded.resume(layer, changed.clone(), image)
        if came_out(output):
            return output[1:]
    except RuntimeError as error:  # the network works in place on a tensor that forbids it
        if is_out_of_memory(error):
            raise
    output = recorded.resume(layer, changed, image, from_start=True)
    if not came_out(output):
        raise _cannot_go_on(recorded, layer, method)
    return output[1:]


def check_rows(recorded: RecordedPass, layer: int, method: Method) -> None:
    """Raise a ValueError unless a layer's output has a row for each image."""
    if len(recorded.activations[layer]) != recorded.n_images:
        raise _cannot_go_on(recorded, layer, method)


def _cannot_go_on(recorded: RecordedPass, layer: int, method: Method) -> ValueError:
    return ValueError(
        f"{type(method).__name__} runs the network on from one image's row of the output of the "
        f"target layer {recorded.layers[layer].name!r}, but this does not give the image's score: "
        "the rows are not images, or the network draws random numbers. Name another layer, or use "
        "another method."
    )


def _tolerance(recorded: RecordedPass) -> float:
    # Other rows in the batch may change the order of sums, but no more. Half precision has only
    # three digits.
    return 0.05 if recorded.is_half else 1e-3


def _is_close(scores: Tensor, expected: Tensor, recorded: RecordedPass) -> bool:
    tolerance = _tolerance(recorded)
    # An expected NaN is not a change. A warning about NaN is given elsewhere.
    return torch.allclose(scores, expected, rtol=tolerance, atol=tolerance / 100, equal_nan=True)
