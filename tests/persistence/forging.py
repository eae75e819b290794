"""Files of any content, with a right checksum: what somebody who means harm would write."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from sklcam import save
from sklcam.persistence import container

Tensors = dict[str, Tensor]


def opened(path: Path) -> tuple[dict[str, Any], Tensors]:
    """Return the JSON and the tensors of a file."""
    with zipfile.ZipFile(path) as archive:
        content = json.loads(archive.read("estimator.json"))
        return content, safetensors.torch.load(archive.read("weights.safetensors"))


def content_of(estimator: Any, folder: Path) -> tuple[dict[str, Any], Tensors]:
    save(estimator, folder / "content.sklcam")
    return opened(folder / "content.sklcam")


def forged(folder: Path, content: Any, tensors: Tensors | None = None) -> Path:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    path = folder / "forged.sklcam"
    with path.open("w+b") as file:
        container.write_archive(file, text, tensors or {})
    return path


def resealed(path: Path) -> Path:
    """Give a file a right checksum."""
    data = path.read_bytes()
    with path.open("r+b") as file:
        digest = container._digest(file, len(data))
    path.write_bytes(data[:-64] + digest)
    return path


def nodes(content: Any) -> list[tuple[Any, Any]]:
    """Return where each value of a JSON is: the list or dict around it, and its key there."""
    found, waiting = [], [content]
    while waiting:
        around = waiting.pop()
        keys = list(around) if isinstance(around, dict) else range(len(around))
        for key in keys:
            found.append((around, key))
            if isinstance(around[key], dict | list):
                waiting.append(around[key])
    return found
