"""Networks that normalise their embeddings: how to recognise one, and how to end before that layer.

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
    """Whether two images' embeddings have the same length, up to rounding.

    The length need not be 1, as some networks multiply by a temperature afterwards. In half
    precision any two embeddings may have about the same length, so there it must be 1.
    """
    if output.ndim != 2 or output.shape[1] < 2:  # of one number it is the absolute value
        return False
    length, another = (at_least_float32(each[0]).norm() for each in (output, other))
    tolerance = max(1e-5, 2 * torch.finfo(output.dtype).eps)
    is_half = output.dtype in (torch.float16, torch.bfloat16)
    expected = torch.ones_like(length) if is_half else length
    differences = (torch.stack([length, another]) - expected).abs()
    # A network that returns the same for both images gives them the same length anyway.
    is_one = bool((length - 1).abs() <= tolerance)
    differ = bool((output[0] - other[0]).norm() > 100 * tolerance * length)
    # A dead network's embeddings all have length 0, which is a different fault.
    return bool((differences <= tolerance * expected).all()) and (is_one or differ)


def remedy(network: nn.Module) -> str:
    """Return the remedy for a message: explain the embeddings before they are normalised."""
    linear = [
        name for name, part in network.named_modules() if isinstance(part, nn.Linear) and name
    ]
    guess = f", such as {linear[-1]!r}" if linear else ""
    return f"name the layer before that with embedding_layer={guess}"


def self_is_constant(network: nn.Module) -> ValueError:
    """Return the error for explaining images by their own embeddings."""
    return ValueError(
        "The network normalises its embeddings to one length, so the product of each with itself "
        "is the same for every image: its gradient is zero, and a map would show rounding "
        f"errors. Explain by proxies or reference images, or {remedy(network)}."
    )


def why_cosines(network: nn.Module) -> str:
    """Return the warning for comparing such embeddings with others, of whatever length."""
    return (
        "The network normalises its embeddings to one length, so scores are cosines: the nearer "
        "an image is to what it is compared with, the smaller the gradient, down to rounding. "
        f"For the paper's score, {remedy(network)}."
    )


class EndingAt(AdapterAround):
    """An adapter of the same network whose output is that of one of its layers."""

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
                f"embedding_layer={self.name!r} {runs} in a pass of the network; name a layer "
                "that runs once and returns the embedding."
            )
        return outputs[0]
