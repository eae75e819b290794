"""The interface of sources, which build networks by name, and what all sources share."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeAlias

from torch import nn
from torchvision.models import WeightsEnum

from sklcam.networks.preprocessing import Origin

AnyWeights: TypeAlias = str | os.PathLike[str] | WeightsEnum | None

# A failed download raises errors of these packages, not all of which are an OSError.
_DOWNLOADERS = ("httpx", "httpx2", "huggingface_hub", "requests", "urllib", "urllib3")


class Source(ABC):
    """One network of a source of networks."""

    @abstractmethod
    def build(
        self,
        n_classes: int | None,
        in_channels: int,
        image_size: tuple[int, int] | None,
        weights: AnyWeights,
        options: dict[str, Any],
    ) -> nn.Module:
        """Build the network, with the arguments of ``build_model`` as its ``built_as``.

        Without weights, these build the same network again anywhere, without a download.
        """

    @abstractmethod
    def origin(self, weights: AnyWeights) -> Origin:
        """Return what the source says about the network with these weights."""


def is_offline(error: BaseException) -> bool:
    """Whether an error means that a file could not be fetched."""
    if isinstance(error, ValueError):  # an impossible name
        return False
    return isinstance(error, OSError) or type(error).__module__.split(".")[0] in _DOWNLOADERS


def check_hub(repository: str, *files: str) -> None:
    """Raise at once if a file must come from the Hugging Face hub and the hub does not answer.

    Its client would try for half a minute, and again for every other name of the file.

    Parameters
    ----------
    repository : str
        "OWNER/NAME", or "OWNER/NAME@REVISION" with a revision.
    *files : str
        The possible names of the file, the usual one first.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    name, _, revision = repository.partition("@")
    where = {"revision": revision or None}
    if any(try_to_load_from_cache(name, file, **where) is not None for file in files):
        return
    with suppress(HfHubHTTPError):  # the hub answers; reading the file raises a clearer error
        get_hf_file_metadata(hf_hub_url(name, files[0], **where))


def check_folder(folder: str | os.PathLike[str]) -> None:
    """Raise a ValueError with a suggestion if there is no such folder."""
    path = Path(folder)
    if path.is_dir():
        return
    if path.is_file():
        raise ValueError(f"{os.fspath(folder)!r} is a file. Name the folder that it is in.")
    parent = path.parent
    there = [each.name for each in parent.iterdir() if each.is_dir()] if parent.is_dir() else []
    close = [repr(str(parent / name)) for name in get_close_matches(path.name, there)]
    if Path("/", folder).is_dir():  # the leading slash was left out
        close = [repr(str(Path("/", folder)))]
    meant = f" Did you mean {' or '.join(close)}?" if close else ""
    raise ValueError(f"There is no folder {os.fspath(folder)!r}.{meant}")


def missing(package: str) -> ImportError:
    """Return the error for a package that is not installed."""
    return ImportError(
        f"Networks of {package} need the package {package}, which is not installed. Run: "
        f'pip install "sklcam[{package}]"'
    )
