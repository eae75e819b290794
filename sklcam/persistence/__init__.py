"""Files of estimators that run no code when they are loaded.

A file is a zip archive, stored without compression, of two members: ``estimator.json`` says what
there is, ``weights.safetensors`` holds the numbers. Estimators are built anew from their
parameters, as ``fit`` builds them, and filled. Classes and functions are in the file by name only;
a name that is neither of a known library nor trusted by the caller is never imported.
"""

from __future__ import annotations

from sklcam.persistence.card import model_card
from sklcam.persistence.errors import PersistenceError, UntrustedError, VersionWarning
from sklcam.persistence.files import load, save

__all__ = ["PersistenceError", "UntrustedError", "VersionWarning", "load", "model_card", "save"]
