"""A callback that predicts by weights averaged over training, and not by the last ones."""

from __future__ import annotations

from typing import Any

import torch
from skorch import NeuralNet
from skorch.callbacks import Callback
from torch import Tensor
from torch import distributed as dist
from torch.optim.swa_utils import get_ema_multi_avg_fn

from sklcam._validation import check_number
from sklcam.networks.dry_run import unwrap


class EMA(Callback):
    r"""Average the weights over training, and validate and predict by the average.

    After step t, :math:`\bar{w} \leftarrow d_t\,\bar{w} + (1 - d_t)\,w` with
    :math:`d_t = \min(d, (1 + t) / (10 + t))`, so that the first weights, which are random, are soon
    forgotten [1]_. Training goes on with the weights :math:`w` themselves; validation is of
    :math:`\bar{w}`, and when training ends these are the weights of ``module_``.

    Parameters
    ----------
    decay : float in [0, 1), default=0.999
        The d of the equation: the average is about that of the last 1 / (1 - d) steps. For a few
        hundred steps 0.99 is enough.

    Notes
    -----
    Running statistics of batch normalisation are averaged as the weights are. Those that still do
    not fit are found and re-estimated by ``recalibrate``, as without an average.

    skorch's ``Checkpoint`` keeps the average, and so does a file of :func:`sklcam.save`: training
    that is resumed from there goes on from the average. Otherwise ``partial_fit`` goes on with the
    weights themselves and with their average.

    References
    ----------
    .. [1] TensorFlow, ``tf.train.ExponentialMovingAverage``, for ``num_updates``; Polyak, Juditsky,
       "Acceleration of Stochastic Approximation by Averaging", SIAM J. Control Optim. 30, 1992.

    Examples
    --------
    >>> from sklcam import ConsistentCAMClassifier
    >>> from sklcam.training import EMA
    >>> clf = ConsistentCAMClassifier(callbacks=[EMA(decay=0.99)])
    """

    def __init__(self, decay: float = 0.999):
        self.decay = decay

    def initialize(self) -> EMA:
        """Check the decay, and forget an earlier network.

        Raises
        ------
        ValueError
            If the decay is not in [0, 1).
        """
        check_number("decay", self.decay, 0, 1, closed="left")
        self.n_steps_ = 0
        self.others_: list[Tensor] = []  # the average; while it is in use, the weights themselves
        self.is_in_use_ = False
        return self

    def on_train_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        tensors = _tensors(net)
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            raise ValueError(
                "EMA averages what one process knows, and batch normalisation's statistics are of "
                "several here. Leave it out, or train in a single process."
            )
        if [each.shape for each in self.others_] != [each.shape for each in tensors]:
            self.n_steps_, self.is_in_use_ = 0, False
            self.others_ = [each.detach().clone() for each in tensors]
        self.others_ = [  # a net that was loaded, or moved, may be on another device
            other.to(each.device) for other, each in zip(self.others_, tensors, strict=True)
        ]
        self._use(net, False)

    def on_batch_begin(self, net: NeuralNet, training: bool = False, **kwargs: Any) -> None:
        self._use(net, not training)

    @torch.no_grad()
    def on_batch_end(self, net: NeuralNet, training: bool = False, **kwargs: Any) -> None:
        if training:
            self.n_steps_ += 1
            decay = min(self.decay, (1 + self.n_steps_) / (10 + self.n_steps_))
            update = get_ema_multi_avg_fn(decay)
            for others, tensors in _by_type(self.others_, _tensors(net)):
                update(others, tensors, self.n_steps_)

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        self._use(net, True)

    def on_train_end(self, net: NeuralNet, **kwargs: Any) -> None:
        self._use(net, True)

    def __getstate__(self) -> dict[str, Any]:
        # It may be read where there is no such device.
        return {**vars(self), "others_": [each.cpu() for each in vars(self).get("others_", [])]}

    @torch.no_grad()
    def _use(self, net: NeuralNet, is_to_be: bool) -> None:
        """Let the network have the average, or the weights themselves, and keep the others."""
        if is_to_be == self.is_in_use_ or not self.n_steps_:
            return
        self.is_in_use_ = is_to_be
        for other, tensor in zip(self.others_, _tensors(net), strict=True):
            was = tensor.detach().clone()
            tensor.copy_(other)
            other.copy_(was)


def _tensors(net: NeuralNet) -> list[Tensor]:
    """Return what is averaged: parameters and statistics, but no counts."""
    module = unwrap(net.module_)
    return [
        tensor for tensor in (*module.parameters(), *module.buffers()) if tensor.is_floating_point()
    ]


def _by_type(*lists: list[Tensor]) -> list[tuple[list[Tensor], ...]]:
    """Return parts of lists whose tensors are of one type and device, as torch averages them."""
    found: dict[Any, tuple[list[Tensor], ...]] = {}
    for tensors in zip(*lists, strict=True):
        parts = found.setdefault((tensors[0].dtype, tensors[0].device), tuple([] for _ in lists))
        for part, tensor in zip(parts, tensors, strict=True):
            part.append(tensor.detach())
    return list(found.values())
