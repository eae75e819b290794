"""Sources: where named networks come from, and what their sources say about them.

A name says its source: "timm/resnet50", "hf-hub:..." for timm, "torchvision/resnet18",
"transformers/google/vit-base-patch16-224". A name without one is torchvision's, or an
EfficientNet-Lite. Each source has a file of its own.
"""

from __future__ import annotations

import os
import re
from difflib import get_close_matches
from typing import Any

from torch import nn

from sklcam.networks.dry_run import unwrap
from sklcam.networks.from_efficientnet_lite import EfficientNetLiteSource, is_lite, origin_of_lite
from sklcam.networks.from_open_clip import origin_of_open_clip
from sklcam.networks.from_timm import TimmSource, is_in_timm, origin_of_timm
from sklcam.networks.from_torchvision import TorchvisionSource
from sklcam.networks.from_transformers import TransformersSource, origin_of_transformers
from sklcam.networks.named import Source
from sklcam.networks.preprocessing import Origin

# The prefixes of names, and the character between prefix and rest.
_SOURCES = {
    **dict.fromkeys(("torchvision", "timm", "transformers"), "/"),
    **dict.fromkeys(("hf-hub", "local-dir"), ":"),
}


def find_source(name: str, config: Any = None) -> Source:
    """Return the source of a name, after checking that it knows the name.

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
        # Rewritten in timm's own form; a folder is given by its absolute path.
        return TimmSource(f"local-dir:{rest}" if os.path.isabs(rest) else rest)
    if name.startswith(("hf-hub:", "hf_hub:", "local-dir:")):
        return TimmSource(name)
    if is_lite(name):
        return EfficientNetLiteSource(name)
    if kind == "torchvision":
        name = rest
    elif instead := _other_name(name):
        raise ValueError(instead)
    try:
        return TorchvisionSource(name)
    except ValueError as error:
        if not is_in_timm(name):
            raise
        raise ValueError(
            f'torchvision has no {name!r}, but timm does. Use "timm/{name}".'
        ) from error


def _other_name(name: str) -> str:
    """Say what a name without a known source may mean; empty if it has no prefix."""
    if os.path.isabs(name):
        return (
            f'{name!r} is a path. Name a folder as "transformers/{name}", or as "timm/{name}" '
            "if it is in timm's format."
        )
    kind, *rest = re.split("[/:]", name, maxsplit=1)
    if not rest:
        return ""
    for source in get_close_matches(kind.lower().replace("_", "-"), _SOURCES, n=1):
        return (
            f"{kind!r} is not a source of networks. Did you mean "
            f'"{source}{_SOURCES[source]}{rest[0]}"?'
        )
    repository = rest[0] if "/" in rest[0] else name
    return (
        f"{kind!r} is not a source of networks. Name a repository of the Hugging Face hub as "
        f'"transformers/{repository}", or as "hf-hub:{repository}" if it is in timm\'s format.'
    )


def origin_of(network: nn.Module) -> Origin:
    """Return what is known about a network from its source, or from the network itself.

    Parameters
    ----------
    network : nn.Module
        A network of :func:`~sklcam.networks.build_model`, timm, transformers or open_clip, or an
        EfficientNet-Lite; nothing is known about any other.

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
        network = network.module  # it computes the same
    if isinstance(getattr(network, "origin", None), Origin):
        return network.origin  # type: ignore[return-value]
    known = (origin_of_timm, origin_of_transformers, origin_of_lite, origin_of_open_clip)
    origins = (find(network) for find in known)
    return next((origin for origin in origins if origin is not None), Origin())


def origin_of_module(
    module: Any, weights: str | os.PathLike[str] | None = None, config: Any = None
) -> Origin:
    """Return what is known about a network that has not been built yet.

    Parameters
    ----------
    module : str, nn.Module, class or callable
        Nothing is known about a class or callable.
    weights : str, path or None, default=None
    config : object or None, default=None

    Returns
    -------
    Origin
    """
    if isinstance(module, str):
        return find_source(module, config).origin(weights)
    return origin_of(module) if isinstance(module, nn.Module) else Origin()
