"""What a source of networks with a name offers, and what all of them share."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from typing import Any, TypeAlias

from torch import nn
from torchvision.models import WeightsEnum

from sklcam.networks.preprocessing import Origin

AnyWeights: TypeAlias = str | os.PathLike[str] | WeightsEnum | None

# Of these packages are the errors of a download, not all of which are an OSError.
_DOWNLOADERS = ("httpx", "huggingface_hub", "requests", "urllib", "urllib3")


class Source(ABC):
    """One network of a source."""

    @abstractmethod
    def build(
        self,
        n_classes: int | None,
        in_channels: int,
        image_size: tuple[int, int] | None,
        weights: AnyWeights,
        options: dict[str, Any],
    ) -> nn.Module:
        """Build the network, with ``built_as``: the arguments of ``build_model`` that name it.

        Without weights, that builds the same network again wherever it is, without a download.
        """

    @abstractmethod
    def origin(self, weights: AnyWeights) -> Origin:
        """Return what the source says of the network with these weights."""


def is_offline(error: BaseException) -> bool:
    """Whether an error is one of a file that could not be fetched."""
    return isinstance(error, OSError) or type(error).__module__.split(".")[0] in _DOWNLOADERS


def missing(package: str) -> ImportError:
    """Return the error for a package that is not installed."""
    return ImportError(
        f'Networks of {package} need the package {package}: pip install "sklcam[{package}]".'
    )
