"""Errors and warnings about files."""

from __future__ import annotations

from collections.abc import Iterable


class PersistenceError(ValueError):
    """An estimator cannot be saved, or a file cannot be loaded.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import sklcam
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "birds.sklcam")
    ...     _ = path.write_bytes(b"no estimator")
    ...     try:
    ...         sklcam.load(path)
    ...     except sklcam.persistence.PersistenceError as error:
    ...         print(error)
    '...birds.sklcam' is not a file that sklcam.save has written.
    """


class MissingObjectsError(PersistenceError):
    """A file needs objects that it does not hold, such as a network's class.

    Attributes
    ----------
    labels : list of str
        The names of these objects in the file.

    Examples
    --------
    >>> from sklcam.persistence import MissingObjectsError
    >>> MissingObjectsError(["Tiny"]).labels
    ['Tiny']
    """

    def __init__(self, labels: Iterable[str]):
        self.labels = sorted(set(labels))
        pairs = ", ".join(f"{label!r}: {label}" for label in self.labels)
        super().__init__(
            f"The file needs {', '.join(self.labels)}, which it does not hold. Pass what it was "
            f"saved with: load(path, objects={{{pairs}}})."
        )


class VersionWarning(UserWarning):
    """A file was written with versions that may behave differently from the installed ones.

    Examples
    --------
    To ignore a difference that is known to be harmless:

    >>> import tempfile
    >>> import warnings
    >>> import sklcam
    >>> from sklcam.persistence import VersionWarning
    >>> with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
    ...     warnings.simplefilter("ignore", VersionWarning)
    ...     sklcam.save(sklcam.ConsistentCAMClassifier("resnet18"), f"{folder}/birds.sklcam")
    ...     clf = sklcam.load(f"{folder}/birds.sklcam")
    """
