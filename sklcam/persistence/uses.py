"""The schema of the estimators that use explainers: namers of channels, concept maps, segmenters.

They learn arrays, names and numbers. The explainers that they hold are estimators themselves, and
are in ``estimators.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sklcam._validation import describe
from sklcam.concepts import ConceptMaps, ConceptNamer, TextConceptNamer
from sklcam.persistence.errors import PersistenceError
from sklcam.segmentation import CAMSegmenter

USES: tuple[type, ...] = (ConceptNamer, TextConceptNamer, ConceptMaps, CAMSegmenter)

_OF_LAYER: dict[str, Any] = {"layer_": str, "network_": str}
_OF_CHANNELS: dict[str, Any] = {
    **_OF_LAYER,
    "concepts_": list,
    "names_": np.ndarray,
    "scores_": np.ndarray,
    "strongest_activations_": np.ndarray,
    "strongest_boxes_": np.ndarray,
    "strongest_rows_": np.ndarray,
}
_LEARNED: dict[type, dict[str, Any]] = {
    ConceptNamer: {**_OF_CHANNELS, "uncertainty_": np.ndarray},
    TextConceptNamer: _OF_CHANNELS,
    ConceptMaps: {**_OF_LAYER, "components_": np.ndarray, "explained_": float},
    CAMSegmenter: {"classes_": np.ndarray, "threshold_": float, "scores_": dict},
}
_OF_THE_CHOSEN = {"scores_"}  # a segmenter has these if it chose its threshold

# The sides of the arrays; sides of the same name are equally long.
_SIDES: dict[str, tuple[str | int, ...]] = {
    "names_": ("channels",),
    "uncertainty_": ("channels", "concepts"),
    "strongest_activations_": ("channels", "crops"),
    "strongest_boxes_": ("channels", "crops", 4),
    "strongest_rows_": ("channels", "crops"),
    "components_": ("factors", "channels"),
    "classes_": ("classes",),
}


def schema_of(kind: type) -> dict[str, Any]:
    """Return the attributes that an estimator of a kind learns, and their types."""
    return next(_LEARNED[base] for base in USES if issubclass(kind, base))


def found_by(estimator: Any) -> dict[str, Any] | None:
    """Return what an estimator has learned, as values for a file; None before fit."""
    own = vars(estimator)
    found = {name: own[name] for name in schema_of(type(estimator)) if name in own}
    if not _is_complete(type(estimator), found):
        return None
    if "concepts_" in found:
        names = [None if name is None else _as_plain(name) for name in found["names_"]]
        found["names_"] = np.array(names, dtype=object)
        found["concepts_"] = [*map(_as_plain, found["concepts_"])]
    return found


def check_found(kind: type, found: Mapping[str, Any]) -> None:
    """Refuse attributes that are incomplete, or arrays whose sizes do not agree."""
    if not _is_complete(kind, found):
        raise PersistenceError(f"it lacks some of {sorted(schema_of(kind))}")
    sides: dict[str | int, int] = {4: 4}
    if "concepts_" in found:
        sides["concepts"] = len(found["concepts_"])
    for name, value in found.items():
        wanted = _SIDES.get(name, ())
        if name == "scores_" and isinstance(value, np.ndarray):
            wanted = ("channels", "concepts")
        shape = value.shape if wanted else ()
        is_of_size = len(shape) == len(wanted) and all(
            sides.setdefault(side, n) == n for side, n in zip(wanted, shape, strict=True)
        )
        if not is_of_size:
            raise PersistenceError(
                f"{name} is of shape {shape}, which does not fit the other arrays"
            )


def _is_complete(kind: type, found: Mapping[str, Any]) -> bool:
    needed = schema_of(kind).keys()
    return found.keys() >= (needed - _OF_THE_CHOSEN if issubclass(kind, CAMSegmenter) else needed)


def _as_plain(name: Any) -> Any:
    """Return the name of a concept as a Python string or number."""
    plain = name.item() if isinstance(name, np.generic) else name
    if type(plain) not in (bool, int, float, str):
        raise PersistenceError(
            f"A concept's name is {describe(name)}, but a file holds only strings and numbers. "
            "Give concepts such names, and fit the namer again."
        )
    return plain
