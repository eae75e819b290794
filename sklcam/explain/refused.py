"""Errors for a network that does not take a first sample, or does not return a tensor."""

from __future__ import annotations

from torch import nn

from sklcam.explain.detected import advice_on_detectors
from sklcam.networks.inference import is_out_of_memory
from sklcam.networks.inputs import Inputs, advice_on_axes


def why_refused(
    network: nn.Module, sample: Inputs, error: Exception, *, given: bool
) -> ValueError | None:
    """Return the error to raise in place of a network's own, or None to keep the network's.

    Parameters
    ----------
    network : nn.Module
    sample : Inputs
        The inputs that the network was called with.
    error : Exception
        The error that it raised.
    given : bool
        Whether the sample comes from the user's images. If not, it is a blank image.

    Returns
    -------
    ValueError or None
    """
    advice = advice_on_detectors(network, error)
    if advice is not None:
        return ValueError(f"The network fails{advice}")
    is_refused = isinstance(error, RuntimeError) and not is_out_of_memory(error)
    if given and not (is_refused and sample.name is None):
        return None
    shape = tuple(sample.images.shape[1:])
    advice = advice_on_axes(network, sample.images)
    if given:
        return ValueError(f"The network does not take images of {shape}: {advice or error}")
    return ValueError(
        f"The network does not take a blank image of {shape}. Give fit an X of the kind it "
        f"takes{'.' if not advice else ': ' + advice}"
    )


def not_a_tensor(network: nn.Module, output: object) -> ValueError:
    """Return the error for a network whose output cannot be explained."""
    return ValueError(
        f"The network returns a {type(output).__name__}, but it must return a Tensor, a tuple that "
        "starts with one, or a mapping with one"
        f"{advice_on_detectors(network) or '. Wrap it in a module that does.'}"
    )
