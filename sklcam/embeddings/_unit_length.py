"""Networks that bring their embeddings to length 1: how to know one, and how to end before that.

The product of such an embedding with itself is 1 whatever the image, so that its gradient is zero.
"""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
from torch import Tensor, nn

from sklcam._validation import suggestion
from sklcam.networks.adapters import Adapter
from sklcam.networks.inputs import Inputs
from sklcam.networks.precision import at_least_float32


def have_unit_length(output: Tensor) -> bool:
    """Whether all rows are of length 1, up to the rounding of what has divided them by it."""
    if output.ndim != 2 or output.shape[1] < 2:  # of one number it is the absolute value
        return False
    tolerance = max(1e-5, 2 * torch.finfo(output.dtype).eps)
    return bool(((at_least_float32(output).norm(dim=1) - 1).abs() <= tolerance).all())


def remedy(network: nn.Module) -> str:
    """Return what would explain the embeddings as they are before, for a message."""
    linear = [
        name for name, part in network.named_modules() if isinstance(part, nn.Linear) and name
    ]
    guess = f", such as {linear[-1]!r}" if linear else ""
    return f"name the layer that comes before that by embedding_layer={guess}"


def self_is_constant(network: nn.Module) -> ValueError:
    """Return the error for images that are to be explained by their own embeddings."""
    return ValueError(
        "The network brings its embeddings to length 1, so that the product of each with itself is "
        "1 whatever the image: its gradient is zero, and a map of it would be rounding. Explain by "
        f"proxies or reference images, or {remedy(network)}."
    )


def ending_at(adapter: Adapter, name: str) -> Adapter:
    """Return an adapter of the same network, the output of which is that of one of its layers."""
    modules = dict(adapter.network.named_modules())
    if name not in modules:
        raise ValueError(
            f"The network has no layer {name!r} for embedding_layer. {suggestion(name, modules)}"
        )
    whole, ending = adapter.forward, copy(adapter)

    def forward(inputs: Inputs) -> Tensor:
        outputs: list[Tensor] = []

        def keep(layer: nn.Module, given: tuple[Any, ...], output: Any) -> None:
            if not isinstance(output, Tensor):
                raise ValueError(
                    f"embedding_layer={name!r} returns a {type(output).__name__}, not a Tensor."
                )
            # A copy, as what follows may divide it in place.
            outputs.append(output.clone())

        hook = modules[name].register_forward_hook(keep)
        try:
            whole(inputs)
        finally:
            hook.remove()
        if not outputs:
            raise ValueError(f"embedding_layer={name!r} does not run when the network does.")
        return outputs[-1]

    ending.forward = forward  # type: ignore[method-assign]
    return ending
