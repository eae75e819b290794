"""Networks that bring their embeddings to one length: how to know one, and how to end before that.

The product of such an embedding with itself is the same whatever the image: its gradient is zero.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sklcam._validation import suggestion
from sklcam.networks.adapters import Adapter, AdapterAround
from sklcam.networks.inputs import Inputs
from sklcam.networks.precision import at_least_float32


def have_one_length(output: Tensor, other: Tensor) -> bool:
    """Whether two images' embeddings are of one length, up to the rounding of what scaled them.

    It need not be 1, as some networks multiply by a temperature afterwards. In half precision any
    two may be of about the same length, so that it has to be 1 there.
    """
    if output.ndim != 2 or output.shape[1] < 2:  # of one number it is the absolute value
        return False
    length, another = (at_least_float32(each[0]).norm() for each in (output, other))
    tolerance = max(1e-5, 2 * torch.finfo(output.dtype).eps)
    is_half = output.dtype in (torch.float16, torch.bfloat16)
    expected = torch.ones_like(length) if is_half else length
    differences = (torch.stack([length, another]) - expected).abs()
    # Those of a network that says the same of both images are of one length anyway.
    is_one = bool((length - 1).abs() <= tolerance)
    differ = bool((output[0] - other[0]).norm() > 100 * tolerance * length)
    # A dead network's are all of length 0, which is another fault.
    return bool((differences <= tolerance * expected).all()) and (is_one or differ)


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
        "The network brings its embeddings to one length, so that the product of each with itself "
        "is the same whatever the image: its gradient is zero, and a map of it would be rounding. "
        f"Explain by proxies or reference images, or {remedy(network)}."
    )


def why_cosines(network: nn.Module) -> str:
    """Return what to warn of where they are compared with others, of whatever length."""
    return (
        "The network brings its embeddings to one length, so that scores are cosines: the nearer "
        "an image is to what it is compared with, the smaller their gradient, down to rounding. "
        f"For the paper's score, {remedy(network)}."
    )


class EndingAt(AdapterAround):
    """An adapter of the same network, the output of which is that of one of its layers."""

    def __init__(self, inner: Adapter, name: str):
        super().__init__(inner)
        self.name = name
        modules = dict(self.network.named_modules())
        if name not in modules:
            raise ValueError(
                f"The network has no layer {name!r} for embedding_layer. "
                f"{suggestion(name, modules)}"
            )

    def forward(self, inputs: Inputs) -> Tensor:
        outputs: list[Tensor] = []

        def keep(layer: nn.Module, given: tuple[Any, ...], output: Any) -> None:
            if not isinstance(output, Tensor):
                raise ValueError(
                    f"embedding_layer={self.name!r} returns a {type(output).__name__}, not a "
                    "Tensor."
                )
            # A copy, as what follows may divide it in place.
            outputs.append(output.clone())

        hook = self.network.get_submodule(self.name).register_forward_hook(keep)
        try:
            super().forward(inputs)
        finally:
            hook.remove()
        if len(outputs) != 1:
            runs = f"runs {len(outputs)} times" if outputs else "does not run"
            raise ValueError(
                f"embedding_layer={self.name!r} {runs} in a pass of the network; name a layer that "
                "runs once, and gives the embedding."
            )
        return outputs[0]
