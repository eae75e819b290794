"""The result of a command."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any, NamedTuple


class Result(NamedTuple):
    """The output of a command.

    Attributes
    ----------
    text : str
        The output for people.
    values : dict
        The same content for ``--json``.
    """

    text: str
    values: dict[str, Any]


def plain(value: Any) -> Any:
    """Return a value that JSON can hold: None for NaN, and the class name for other objects."""
    if hasattr(value, "tolist"):  # of NumPy
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, int | str | None):
        return value
    return os.fspath(value) if isinstance(value, os.PathLike) else type(value).__name__
