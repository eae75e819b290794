"""What can go wrong with a file."""

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


class UntrustedError(PersistenceError):
    """A file asks for classes or functions that are not trusted.

    Attributes
    ----------
    names : list of str
        Their dotted names, as ``trusted`` takes them.

    Examples
    --------
    >>> from sklcam.persistence import UntrustedError
    >>> UntrustedError({"birds.networks.Tiny"}).names
    ['birds.networks.Tiny']
    """

    def __init__(self, names: Iterable[str]):
        self.names = sorted(set(names))
        super().__init__(
            f"The file needs {', '.join(self.names)}. Loading it would import and run this code. "
            f"If you know it and trust the file, pass trusted={self.names!r}."
        )


class VersionWarning(UserWarning):
    """A file was written with versions that may behave in another way than the installed ones.

    Examples
    --------
    Where the versions are known to differ, and that is fine:

    >>> import tempfile
    >>> import warnings
    >>> import sklcam
    >>> from sklcam.persistence import VersionWarning
    >>> with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
    ...     warnings.simplefilter("ignore", VersionWarning)
    ...     sklcam.save(sklcam.ConsistentCAMClassifier("resnet18"), f"{folder}/birds.sklcam")
    ...     clf = sklcam.load(f"{folder}/birds.sklcam")
    """
