"""Sources: where networks with a name come from, and what is known of one by its source.

A name says its source: "timm/resnet50", "transformers/google/vit-base-patch16-224", "hf-hub:..." of
timm's, "torchvision/resnet18"; one without is torchvision's. Each source has a file of its own.
"""

from __future__ import annotations

import os
from typing import Any

from torch import nn

from sklcam.networks.dry_run import unwrap
from sklcam.networks.from_timm import TimmSource, origin_of_timm
from sklcam.networks.from_torchvision import TorchvisionSource
from sklcam.networks.from_transformers import TransformersSource, origin_of_transformers
from sklcam.networks.named import Source
from sklcam.networks.preprocessing import Origin


def find_source(name: str, config: Any = None) -> Source:
    """Return the source that a name speaks of, once the name is known there.

    Parameters
    ----------
    name : str
    config : object or None, default=None
        The network's configuration, for a source that would have to look it up.

    Returns
    -------
    Source

    Raises
    ------
    ValueError
        If there is no such network.
    ImportError
        If the source is a package that is not installed.
    """
    kind, _, rest = name.partition("/")
    if kind == "transformers":
        return TransformersSource(rest, config)
    if kind == "timm":
        # As timm writes it; a folder is given by its whole path.
        return TimmSource(f"local-dir:{rest}" if os.path.isabs(rest) else rest)
    if name.startswith(("hf-hub:", "hf_hub:", "local-dir:")):
        return TimmSource(name)
    return TorchvisionSource(rest if kind == "torchvision" else name)


def origin_of(network: nn.Module) -> Origin:
    """Return what is known of a network: what it was built from, or what it carries.

    Parameters
    ----------
    network : nn.Module
        One of :func:`~sklcam.networks.build_model`, of timm or of transformers; any other says
        nothing.

    Returns
    -------
    Origin

    Examples
    --------
    >>> from torch import nn
    >>> from sklcam.networks.sources import origin_of
    >>> origin_of(nn.Identity()).preprocessing.image_size
    (224, 224)
    """
    network = unwrap(network)
    while isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel):
        network = network.module  # which computes the same
    if isinstance(getattr(network, "origin", None), Origin):
        return network.origin  # type: ignore[return-value]
    return origin_of_timm(network) or origin_of_transformers(network) or Origin()


def origin_of_module(
    module: Any, weights: str | os.PathLike[str] | None = None, config: Any = None
) -> Origin:
    """Return what is known of a network that has not been made yet.

    Parameters
    ----------
    module : str, nn.Module, class or callable
        A class or callable says nothing.
    weights : str, path or None, default=None
    config : object or None, default=None

    Returns
    -------
    Origin
    """
    if isinstance(module, str):
        return find_source(module, config).origin(weights)
    return origin_of(module) if isinstance(module, nn.Module) else Origin()
