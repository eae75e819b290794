"""A callback for predicting with weights averaged over training instead of the last ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from skorch import NeuralNet
from skorch.callbacks import Callback
from torch import Tensor, nn
from torch import distributed as dist
from torch.optim.swa_utils import get_ema_multi_avg_fn

from sklcam._validation import check_number
from sklcam.networks.dry_run import unwrap


class EMA(Callback):
    r"""Average the weights over training, and validate and predict with the average.

    After step t, :math:`\bar{w} \leftarrow d_t\,\bar{w} + (1 - d_t)\,w` with
    :math:`d_t = \min(d, (1 + t) / (10 + t))`, so the random first weights are soon forgotten [1]_.
    Training itself continues with the weights :math:`w`; validation uses :math:`\bar{w}`, and when
    training ends these are the weights of ``module_``.

    Parameters
    ----------
    decay : float in [0, 1), default=0.999
        The d of the equation: the average covers about the last 1 / (1 - d) steps. For a few
        hundred steps, use 0.99.

    Notes
    -----
    Running statistics of batch normalisation are averaged like the weights. If they still do not
    fit, ``recalibrate`` notices and re-estimates them, as without an average.

    ``partial_fit``, and ``fit`` with ``warm_start=True``, continue with both the weights and their
    average, also in copies, pickles and files of :func:`sklcam.save`, and even if parameters were
    set in between. Both belong to the net, not to this object, which may be among the callbacks of
    several nets.

    If weights were loaded into the net or changed, as by skorch's ``load_params``, by a
    ``Checkpoint`` that loads the best ones, or in ``module_``, training continues with them and
    their average starts over. It also starts over after an error has ended training. ``Checkpoint``
    saves the average, and training then continues from it; the same holds if this callback is
    removed.

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
        """Check the decay.

        Raises
        ------
        ValueError
            If the decay is not in [0, 1).
        """
        check_number("decay", self.decay, 0, 1, closed="left")
        return self

    def on_train_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            raise ValueError(
                "EMA averages the values of one process, and batch normalisation's statistics "
                "here come from several. Leave EMA out, or train in a single process."
            )
        if sum(isinstance(each, EMA) for _, each in net.callbacks_) > 1:
            raise ValueError(
                "There are several EMA among the callbacks, and a net can predict with only one "
                "average. Keep one of them."
            )
        average = average_of(net)
        if average is not None and not average.own:
            # Training was interrupted, and the weights may have changed since.
            del net.average_

    def on_batch_begin(self, net: NeuralNet, training: bool = False, **kwargs: Any) -> None:
        average = average_of(net)
        if not training:
            self._use(net)
        elif average is None or (average.own and not average.is_in(net.module_)):
            net.average_ = Average(_copies(floats_of(net.module_)))
        elif average.own:
            average.leave(floats_of(net.module_))

    @torch.no_grad()
    def on_batch_end(self, net: NeuralNet, training: bool = False, **kwargs: Any) -> None:
        average = average_of(net)
        if training and average is not None:
            average.update(floats_of(net.module_), self.decay)

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        self._use(net)

    def on_train_end(self, net: NeuralNet, **kwargs: Any) -> None:
        self._use(net)

    def _use(self, net: NeuralNet) -> None:
        average = average_of(net)
        if average is not None and not average.own:
            average.enter(floats_of(net.module_))


@dataclass
class Average:
    """The average of a net's weights, which can be swapped into the network and out again.

    Attributes
    ----------
    values : dict of str to Tensor
        The average, by name.
    n_steps : int
        How many steps it averages.
    own : dict of str to Tensor
        The weights themselves, while the network has the average.
    """

    values: dict[str, Tensor]
    n_steps: int = 0
    own: dict[str, Tensor] = field(default_factory=dict)

    def update(self, tensors: dict[str, Tensor], decay: float) -> None:
        """Add the weights after a step to the average."""
        self.n_steps += 1
        decay = min(decay, (1 + self.n_steps) / (10 + self.n_steps))
        update = get_ema_multi_avg_fn(decay)
        for averages, weights in _by_type([*self.values.values()], [*tensors.values()]):
            update(averages, weights, self.n_steps)

    def is_in(self, module: nn.Module) -> bool:
        """Whether the network's parameters are still those of the average.

        Buffers may differ: statistics may have been re-estimated with the average in place.
        """
        tensors = floats_of(module)
        parameters = dict(unwrap(module).named_parameters())
        return tensors.keys() == self.values.keys() and all(
            _are_same(tensor, self.values[name], values=name in parameters)
            for name, tensor in tensors.items()
        )

    @torch.no_grad()
    def enter(self, tensors: dict[str, Tensor]) -> None:
        """Put the average into the network."""
        self.own = _copies(tensors)
        for name, tensor in tensors.items():
            tensor.copy_(self.values[name])

    @torch.no_grad()
    def leave(self, tensors: dict[str, Tensor]) -> None:
        """Put the network's own weights back."""
        self.values = _copies(tensors)  # which may be on another device by now
        for name, tensor in tensors.items():
            tensor.copy_(self.own[name])
        self.own = {}

    def __getstate__(self) -> dict[str, Any]:
        # It may be loaded where there is no such device.
        values, own = ({name: t.cpu() for name, t in d.items()} for d in (self.values, self.own))
        return {"values": values, "n_steps": self.n_steps, "own": own}


def average_of(net: NeuralNet) -> Average | None:
    """Return the average of a net's weights, if an :class:`EMA` has made one."""
    return vars(net).get("average_")


def floats_of(module: nn.Module) -> dict[str, Tensor]:
    """Return the tensors to average: parameters and statistics, but no counts."""
    module = unwrap(module)
    tensors = (*module.named_parameters(), *module.named_buffers())
    return {name: tensor for name, tensor in tensors if tensor.is_floating_point()}


def _are_same(one: Tensor, other: Tensor, *, values: bool) -> bool:
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    # NaN counts as equal.
    other = other.to(one.device)
    return not values or torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)


def _copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _by_type(*lists: list[Tensor]) -> list[tuple[list[Tensor], ...]]:
    """Return groups of tensors of one type and device, for torch's averaging."""
    found: dict[Any, tuple[list[Tensor], ...]] = {}
    for tensors in zip(*lists, strict=True):
        parts = found.setdefault((tensors[0].dtype, tensors[0].device), tuple([] for _ in lists))
        for part, tensor in zip(parts, tensors, strict=True):
            part.append(tensor.detach())
    return list(found.values())
