"""Batch normalisation's running statistics: whether they lag behind the weights, and a remedy.

In training a layer normalises by its batch; in evaluation by a running average of such batches, in
which each counts by the layer's momentum. After few steps, or when weights change fast, that
average belongs to earlier weights, and the network predicts badly, however well it was trained.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from skorch import NeuralNet
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, Dataset

from sklcam._callers import level_of_user
from sklcam.networks.dry_run import evaluating, left_as_found
from sklcam.training._loading import LoadingNet

# Looking at m images takes 1.75 m passes without gradients. A training step costs at least 3 such
# passes per image, so with one image in 30 it takes 2 % of an epoch.
_IMAGES_A_LOOK = 30
_FEWEST, _MOST = 64, 512
_LOOKS_IN_A_ROW = 3  # weights that move fast at first are no reason to warn yet

# Lagging statistics change more than this share of a network's output, and more than noise would.
_SMALLEST_SHARE = 0.1
_LARGEST_RATIO = 2.0

_FORWARDS = (_BatchNorm.forward, nn.SyncBatchNorm.forward)

_SMALLEST_BATCH = 16  # whose variance is that of images, and not of the pixels of a few
_MOST_IMAGES = 10_000  # Wu and Johnson 2021: 1,000 to 10,000 are as good as all
_LOADING = ("num_workers", "multiprocessing_context", "prefetch_factor", "worker_init_fn")


class LaggingStatisticsWarning(UserWarning):
    """Batch normalisation's running statistics lag behind a network's weights.

    In evaluation mode, in which it predicts, the network's output for its training images then
    differs from that in training mode. ``fit`` warns about this, naming the layers that are
    furthest behind, and unless ``recalibrate=False`` re-estimates their statistics at its end: see
    :class:`~sklcam.ConsistentCAMClassifier`.

    Examples
    --------
    >>> import warnings
    >>> from sklcam.training import LaggingStatisticsWarning
    >>> warnings.simplefilter("error", LaggingStatisticsWarning)  # stop where statistics lag
    >>> warnings.simplefilter("default", LaggingStatisticsWarning)
    """


@dataclass
class Lag:
    """A network's output with its running statistics, compared with the images' own statistics.

    Attributes
    ----------
    share : float
        How much of the output differs, in [0, 1] for probabilities.
    usual : float
        How much would differ by chance alone, as both are statistics of some images only.
    distances : dict of str to float
        For each layer, how far its running statistics are from the images' own: the 2-Wasserstein
        distance of two normal distributions, in standard deviations of the images, as a mean over
        the channels.
    momenta : dict of str to float or None
    """

    share: float = 0.0
    usual: float = 0.0
    distances: dict[str, float] = field(default_factory=dict)
    momenta: dict[str, float | None] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Whether they lag."""
        return self.share > max(_SMALLEST_SHARE, _LARGEST_RATIO * self.usual)

    def __str__(self) -> str:
        worst = sorted(self.distances, key=self.distances.__getitem__, reverse=True)[:3]
        layers = ", ".join(
            # A layer's momentum is often 1 minus another library's, and not a round number in
            # binary.
            f"{name!r} (by {self.distances[name]:.2g} standard deviations; momentum "
            f"{'None' if (momentum := self.momenta[name]) is None else f'{momentum:.3g}'})"
            for name in worst
        )
        return (
            "the running statistics of batch normalisation lag behind the weights: with the "
            f"training images' own statistics, the network's output for these images would change "
            f"by {self.share:.0%}; chance explains {self.usual:.0%}. Furthest behind are {layers}."
        )


@dataclass
class Watch:
    """What is known about the running training.

    Attributes
    ----------
    images : Dataset or None
        The training images, as prediction would read them.
    layers : dict of str to nn.Module
        The layers whose statistics the last step updated.
    """

    images: Dataset[Any] | None = None
    layers: dict[str, _BatchNorm] = field(default_factory=dict)
    n_steps: int = 0
    n_images: int = 0
    n_images_since: int = 0  # the last look
    is_validated: bool = False
    in_a_row: int = 0
    has_warned: bool = False

    def __reduce__(self) -> tuple[type[Watch], tuple[()]]:
        return Watch, ()  # a callback may pickle the net in training, but not its images


def normalising(module: nn.Module) -> dict[str, _BatchNorm]:
    """Return the layers that normalise by the batch and keep running statistics, by name.

    Frozen layers, which are in evaluation mode, are not among them.
    """
    return {
        name.removeprefix("_orig_mod."): layer
        for name, layer in module.named_modules()
        if isinstance(layer, _BatchNorm)
        and layer.training
        and layer.track_running_stats
        and layer.running_mean is not None
    }


@contextmanager
def undone(layers: Iterable[_BatchNorm]) -> Iterator[None]:
    """Restore statistics and momenta if the block fails.

    If it succeeds, restore those of layers that did not run, such as heads that are only for
    training.
    """
    before = [
        (layer, layer.momentum, [(buffer, buffer.clone()) for buffer in layer.buffers()])
        for layer in layers
    ]
    # Recorded here, as reading the layers' counts would wait for the device.
    ran: set[nn.Module] = set()
    handles = [
        layer.register_forward_pre_hook(lambda part, inputs: ran.add(part))
        for layer, _, _ in before
    ]
    is_done = False
    try:
        yield
        is_done = True
    finally:
        for handle in handles:
            handle.remove()
        for layer, momentum, buffers in before:
            layer.momentum = momentum
            if not (is_done and layer in ran):
                for buffer, value in buffers:
                    buffer.copy_(value)


@contextmanager
def kept(layers: Iterable[_BatchNorm]) -> Iterator[None]:
    """Let layers normalise by the batch as usual, but leave their running statistics alone."""
    tracking, buffers = [], []
    for layer in layers:
        if type(layer).forward in _FORWARDS:  # torch's leave untracked statistics alone
            tracking.append(layer)
        else:
            buffers += [(layer, *each) for each in layer.named_buffers(recurse=False)]
    for layer in tracking:
        layer.track_running_stats = False
    copies = _copied([buffer for *_, buffer in buffers])
    for (layer, name, _), copy in zip(buffers, copies, strict=True):
        setattr(layer, name, copy)
    try:
        yield
    finally:
        for layer in tracking:
            layer.track_running_stats = True
        for layer, name, buffer in buffers:
            setattr(layer, name, buffer)


def _copied(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copy any number of tensors in few operations."""
    alike: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for i, tensor in enumerate(tensors):
        alike.setdefault((tensor.device, tensor.dtype), []).append(i)
    copies = list(tensors)
    for places in alike.values():
        for i, copy in zip(
            places, torch._foreach_mul([tensors[i] for i in places], 1), strict=True
        ):
            copies[i] = copy
    return copies


def share_of_probabilities(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return how much probability two distributions place differently, in [0, 1].

    For rows that add up to 1, it is the total variation distance, as a mean over images.
    """
    return (ours - theirs).abs().sum() / (ours + theirs).sum()


def share_of_spread(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return how far numbers are from others, in units of the spread between images."""
    ours, theirs = (each.reshape(len(each), -1) for each in (ours, theirs))
    spread = (ours - ours.mean(dim=0)).norm(dim=1).sum()
    return (ours - theirs).norm(dim=1).sum() / spread


def _distance(layer: _BatchNorm, running: list[Tensor]) -> Tensor:
    """Return how far running statistics are from those the layer holds."""
    means, variances = zip(_floats(layer), running, strict=True)
    spread, other = ((variance + layer.eps).sqrt() for variance in variances)
    return (torch.hypot(means[0] - means[1], spread - other) / spread).mean()


def _floats(layer: _BatchNorm) -> list[Tensor]:
    assert layer.running_mean is not None and layer.running_var is not None
    return [layer.running_mean, layer.running_var]


class _Normalising(nn.Module):
    """The part of a network that torch's ``update_bn`` sees: some layers, and how it is run.

    On the network itself it would also update the frozen layers and turn on dropout, which
    prediction does not use.
    """

    def __init__(self, layers: Iterable[nn.Module], run: Any):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.run = run

    def forward(self, images: Tensor) -> Tensor:
        return self.run(images)


class RecalibratingNet(LoadingNet):
    """A skorch net that notices lagging statistics and re-estimates them.

    Attributes
    ----------
    recalibrated_ : int
        How many images they were re-estimated on; 0 if they are as training left them.
    """

    recalibrate: str | bool
    recalibrated_: int
    _watch: Watch | None = None

    def _parted(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """Return how much two outputs differ, as a share."""
        return share_of_spread(ours, theirs)

    # Hooks

    def initialize_virtual_params(self) -> None:
        super().initialize_virtual_params()
        self.recalibrated_ = 0
        self.__dict__.pop("average_", None)  # an EMA's, of an earlier network

    def on_train_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        super().on_train_begin(net, **kwargs)
        has_any = any(isinstance(part, _BatchNorm) for part in self.module_.modules())
        self._watch = Watch() if has_any else None
        self.recalibrated_ = 0

    def on_epoch_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        super().on_epoch_begin(net, **kwargs)
        if self._watch is not None:
            self._watch.images = kwargs.get("dataset_train")
            self._watch.is_validated = kwargs.get("dataset_valid") is not None

    def run_single_epoch(
        self, iterator: Any, training: bool, prefix: str, step_fn: Any, **fit_params: Any
    ) -> None:
        try:
            super().run_single_epoch(iterator, training, prefix, step_fn, **fit_params)
        finally:  # also if the epoch is interrupted
            if self._watch is not None and training:
                batches = self.history[-1]["batches"]
                n_images = sum(batch.get(f"{prefix}_batch_size", 0) for batch in batches)
                self._watch.n_steps += len(batches)
                self._watch.n_images += n_images
                self._watch.n_images_since += n_images
                found = normalising(self.module_).items()
                # A momentum of 0 keeps statistics from elsewhere on purpose.
                self._watch.layers = {name: layer for name, layer in found if layer.momentum != 0}

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        super().on_epoch_end(net, **kwargs)
        watch = self._watch
        # Before the end, only validation predicts with the running statistics.
        if watch is None or not watch.is_validated:
            return
        if watch.n_images_since < _IMAGES_A_LOOK * _FEWEST:
            return
        lag = self._lag(watch.n_images_since // _IMAGES_A_LOOK)
        watch.n_images_since = 0
        watch.in_a_row = watch.in_a_row + 1 if lag else 0
        if watch.in_a_row >= _LOOKS_IN_A_ROW:
            self._warn_of(lag)

    # At the end

    def _finish(self, *, is_whole: bool) -> None:
        """Re-estimate running statistics if asked for; warn if they lag.

        Parameters
        ----------
        is_whole : bool
            Whether these are all the images. If ``partial_fit`` gets only a part, the running
            average knows more than the part does.
        """
        watch = self._watch
        if watch is None or watch.images is None or not watch.layers:
            return
        lag = Lag()
        with suppress(KeyboardInterrupt):  # which ends training, as in skorch
            if self.recalibrate is not True:
                lag = self._lag(watch.n_images // _IMAGES_A_LOOK)
            is_to_mend = self.recalibrate == "auto" and is_whole and bool(lag)
            if self._agreed(self.recalibrate is True or is_to_mend):
                self.recalibrated_ = self._recalibrate()
        if lag:
            self._warn_of(lag)

    def _agreed(self, is_asked: bool) -> bool:
        """Return a value on which all processes that train together agree."""
        return is_asked

    def _warn_of(self, lag: Lag) -> None:
        assert self._watch is not None
        if self._watch.has_warned:
            return
        self._watch.has_warned = True
        n_steps = self._watch.n_steps
        done = (
            f"They were re-estimated on {self.recalibrated_} images at the end, so the network "
            "now predicts as it should"
            if self.recalibrated_
            else 'recalibrate="auto" re-estimates them at the end of fit, and recalibrate=True at '
            "the end of partial_fit, too"
        )
        if self._watch.is_validated:
            done += "; validation before that used the lagging ones"
        warnings.warn(
            f"After {n_steps} step{'s' * (n_steps != 1)}, {lag} {done}. With more steps, or a "
            "larger momentum of these layers (torch's default is 0.1), they keep up.",
            LaggingStatisticsWarning,
            stacklevel=level_of_user(),
        )

    def _lag(self, n_images: int) -> Lag:
        """Compare outputs for some training images; the network is left as it was.

        Statistics of n images differ from those of all by a variance of s^2 / n, and so do those of
        n / 2 from those of n. That gives the effect of chance. The running average, over batches of
        b images with a momentum of m, has the variance of b (2 - m) / m images.
        """
        assert self._watch is not None
        layers = self._watch.layers
        batches = [*self._batches(min(max(n_images, _FEWEST), _MOST))]
        half = len(batches) // 2
        if not half:  # fewer than two batches
            return Lag()
        some = batches[: max(1, len(batches) // 4)]
        with left_as_found(self.module_):

            def answers() -> Tensor:
                return torch.cat([self.infer(images) for images in some])

            evaluated = answers()
            running = [[each.clone() for each in _floats(layer)] for layer in layers.values()]
            self._estimate(batches[:half])
            halfway = answers()
            first = [[each.clone() for each in _floats(layer)] for layer in layers.values()]
            self._estimate(batches[half:])
            for layer, before in zip(layers.values(), first, strict=True):
                for mine, other in zip(_floats(layer), before, strict=True):
                    mine.lerp_(other, half / len(batches))
            estimated = answers()
            distances = [_distance(*each) for each in zip(layers.values(), running, strict=True)]
        shares = self._parted(estimated, evaluated), self._parted(estimated, halfway)
        # A value that is not finite counts as the largest difference.
        found = torch.stack([*shares, *distances]).nan_to_num(nan=1.0).tolist()
        momenta = {name: layer.momentum for name, layer in layers.items()}
        m = max((momentum for momentum in momenta.values() if momentum is not None), default=0.0)
        n_averaged = self._watch.n_images / self._watch.n_steps * (2 - m) / m if m else math.inf
        n_seen = sum(map(len, batches))
        usual = found[1] * math.sqrt(1 + n_seen / n_averaged)
        return Lag(found[0], usual, dict(zip(layers, found[2:], strict=True)), momenta)

    def _recalibrate(self) -> int:
        """Re-estimate the statistics on training images, and return their number."""
        n_seen = 0

        def batches() -> Iterator[Tensor]:
            nonlocal n_seen
            for images in self._batches():
                n_seen += len(images)
                yield images

        with self.generators_at(self.generator_states()), evaluating(self.module_):
            self._estimate(batches())
        return n_seen

    @torch.no_grad()
    def _estimate(self, batches: Iterable[Tensor]) -> None:
        """Set the layers' statistics to those of some images, read as in evaluation."""
        assert self._watch is not None
        layers = self._watch.layers.values()
        with undone(layers):
            update_bn(batches, _Normalising(layers, self.infer).eval())

    def _batches(self, n_images: int | None = None) -> Iterator[Tensor]:
        """Yield training images as prediction reads them, ready for the network.

        The order is random: a batch of one class would have that class's statistics.
        """
        assert self._watch is not None and self._watch.images is not None
        images: Any = self._watch.images
        generator = torch.Generator().manual_seed(self.random_states_["seed"] + self._watch.n_steps)
        order = torch.randperm(len(images), generator=generator)
        size = len(order) if self.batch_size == -1 else max(self.batch_size, _SMALLEST_BATCH)
        options = {}
        if n_images is None:
            given, order = self.get_params_for("iterator_train"), order[:_MOST_IMAGES]
            options = {name: given[name] for name in _LOADING if name in given}
        else:  # at least two batches, of 2 images
            order = order[: max(n_images, 2 * size)]
            size = min(size, max(2, len(order) // 2))
        # Of similar sizes, as each batch counts equally.
        parts = order.tensor_split(max(1, len(order) // size))
        loader = DataLoader(
            images,
            batch_sampler=[part.tolist() for part in parts],
            generator=generator,
            **options,
        )
        for batch in loader:
            yield self.prepare_images(batch[0])
