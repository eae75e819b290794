"""What a source of networks with a name offers, and what all of them share."""

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

# Of these packages are the errors of a download, not all of which are an OSError.
_DOWNLOADERS = ("httpx", "httpx2", "huggingface_hub", "requests", "urllib", "urllib3")


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
    if isinstance(error, ValueError):  # of a name that cannot be one
        return False
    return isinstance(error, OSError) or type(error).__module__.split(".")[0] in _DOWNLOADERS


def check_hub(repository: str, *files: str) -> None:
    """Raise at once if a file is to be fetched from the Hugging Face hub, and it does not answer.

    Its client would try for half a minute, and once more for every other name of the file.

    Parameters
    ----------
    repository : str
        "OWNER/NAME", or with the revision, "OWNER/NAME@REVISION".
    *files : str
        The names of the file, the first of which is the usual one.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    name, _, revision = repository.partition("@")
    where = {"revision": revision or None}
    if any(try_to_load_from_cache(name, file, **where) is not None for file in files):
        return
    with suppress(HfHubHTTPError):  # It answers; what it refuses is said where the file is read.
        get_hf_file_metadata(hf_hub_url(name, files[0], **where))


def check_folder(folder: str | os.PathLike[str]) -> None:
    """Raise a ValueError that says what may be meant if there is no such folder."""
    path = Path(folder)
    if path.is_dir():
        return
    if path.is_file():
        raise ValueError(f"{os.fspath(folder)!r} is a file; name the folder that it is in.")
    parent = path.parent
    there = [each.name for each in parent.iterdir() if each.is_dir()] if parent.is_dir() else []
    close = [repr(str(parent / name)) for name in get_close_matches(path.name, there)]
    if Path("/", folder).is_dir():  # which begins with a slash
        close = [repr(str(Path("/", folder)))]
    meant = f" Did you mean {' or '.join(close)}?" if close else ""
    raise ValueError(f"There is no folder {os.fspath(folder)!r}.{meant}")


def missing(package: str) -> ImportError:
    """Return the error for a package that is not installed."""
    return ImportError(
        f'Networks of {package} need the package {package}: pip install "sklcam[{package}]".'
    )
