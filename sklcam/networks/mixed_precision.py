"""Networks that keep their weights in float32, and run in half precision.

Autocast applies only to the passes of the network, whose output is converted back to float32. Maps,
scores and metrics are therefore computed in float32, whatever the network computes in.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sklcam.networks.adapters import Adapter, AdapterAround
from sklcam.networks.inference import is_out_of_memory
from sklcam.networks.inputs import Inputs
from sklcam.networks.precision import PRECISIONS, at_least_float32


class InPrecision(AdapterAround):
    """An adapter whose network runs in half precision.

    Parameters
    ----------
    inner : Adapter
        A settled adapter, which has found out in float32 how outputs are read.
    precision : {"bf16", "fp16"}
    """

    def __init__(self, inner: Adapter, precision: str):
        super().__init__(inner)
        self.precision, self.autocast = precision, PRECISIONS[precision]

    def forward(self, inputs: Inputs) -> Tensor:
        with torch.autocast(inputs.images.device.type, self.autocast):
            return at_least_float32(self.inner.forward(inputs))


def in_precision(adapter: Adapter, precision: str, sample: Inputs | None = None) -> Adapter:
    """Return an adapter that runs the network in a given precision.

    Parameters
    ----------
    adapter : Adapter
        A settled adapter.
    precision : {"fp32", "bf16", "fp16"}
        "fp32" leaves the network as it is.
    sample : Inputs or None, default=None
        Inputs to try the network on; None does not try it.

    Returns
    -------
    Adapter

    Raises
    ------
    ValueError
        If the network's weights are not float32, or if its device or the network itself cannot
        compute in this precision.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklcam.networks.adapters import Preparation, adapt
    >>> from sklcam.networks.inputs import Inputs
    >>> from sklcam.networks.mixed_precision import in_precision
    >>> adapter = adapt(nn.Sequential(nn.Flatten(), nn.Linear(3, 1)), Preparation())
    >>> with torch.no_grad():
    ...     _ = adapter.network[1].weight.fill_(1 / 3), adapter.network[1].bias.zero_()
    ...     in_precision(adapter, "bf16").forward(Inputs(torch.full((1, 3, 1, 1), 0.1)))
    tensor([[0.1001]])
    """
    if precision == "fp32":
        return adapter
    _check_weights(adapter, precision)
    narrow = InPrecision(adapter, precision)
    if sample is not None:
        _try(narrow, sample)
    return narrow


def _check_weights(adapter: Adapter, precision: str) -> None:
    dtypes = {each.dtype for each in adapter.network.parameters() if each.is_floating_point()}
    if dtypes - {torch.float32}:
        found = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        raise ValueError(
            f"precision={precision!r} needs a network with float32 weights, but this one has "
            f'{found}. Leave precision at "fp32", which does not change the network, or give the '
            "explainer network.float()."
        )


def _try(narrow: InPrecision, sample: Inputs) -> None:
    """Raise a ValueError unless the network runs on a sample."""
    precision, device = narrow.precision, sample.images.device.type
    if not torch.amp.is_autocast_available(device):
        raise ValueError(
            f"precision={precision!r} uses torch's autocast, which the device {device!r} does "
            'not have. Leave precision at "fp32".'
        )
    try:
        with torch.inference_mode(False), torch.no_grad(), narrow.evaluating():
            narrow.forward(sample)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise ValueError(
            f"The network runs in float32, but not with precision={precision!r}: {error}. Leave "
            'precision at "fp32".'
        ) from error
