"""Files of estimators that are data, and nothing else.

A file is a zip archive, stored without compression, of two members: ``estimator.json`` says which
estimator it is and what its parameters are, ``weights.safetensors`` holds the numbers. ``values``
is what a value may look like, ``known`` what may be named, ``estimators`` the schema: what is not
in these three cannot be in a file.
"""

from __future__ import annotations

from sklcam.persistence.card import model_card
from sklcam.persistence.errors import MissingObjectsError, PersistenceError, VersionWarning
from sklcam.persistence.files import load, save

__all__ = [
    "MissingObjectsError",
    "PersistenceError",
    "VersionWarning",
    "load",
    "model_card",
    "save",
]
