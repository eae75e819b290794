"""What can go wrong with a file."""

from __future__ import annotations

from collections.abc import Iterable


class PersistenceError(ValueError):
    """An estimator cannot be saved, or a file cannot be loaded."""


class UntrustedError(PersistenceError):
    """A file asks for classes or functions that are not trusted.

    Attributes
    ----------
    names : list of str
        Their dotted names, as ``trusted`` takes them.
    """

    def __init__(self, names: Iterable[str]):
        self.names = sorted(set(names))
        super().__init__(
            f"The file needs {', '.join(self.names)}. Loading it would import and run this code. "
            f"If you know it and trust the file, pass trusted={self.names!r}."
        )


class VersionWarning(UserWarning):
    """A file was written with versions that may behave in another way than the installed ones."""
