"""Saving and loading."""

from __future__ import annotations

import json
import os
import re
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from warnings import warn

import safetensors.torch
from skorch import NeuralNet

from sklcam._files import replacing
from sklcam._versions import REQUIRED, installed_versions
from sklcam.explain.cam_explainer import CAMExplainer
from sklcam.persistence.container import read_archive, write_archive
from sklcam.persistence.decoding import Decoder
from sklcam.persistence.encoding import Encoder
from sklcam.persistence.errors import PersistenceError, UntrustedError, VersionWarning
from sklcam.persistence.names import trusted_names

_FORMAT = "sklcam"
_FORMAT_VERSION = 1


def save(estimator: Any, path: str | os.PathLike[str]) -> None:
    """Write an estimator to a file that :func:`load` reads without running code from it.

    Parameters
    ----------
    estimator : ConsistentCAMClassifier, EmbeddingNet, CAMExplainer, EmbeddingCAMExplainer
        Or an AcceleratedCAMClassifier, or another skorch net; fitted or not. With it goes all that
        it needs to predict, to explain and to be trained on: weights, optimizer, history, random
        generators, and the network in an explainer.
    path : str or path
        The file to write. What is there is replaced once the new file is complete, and kept if
        anything goes wrong. A link is followed.

    Raises
    ------
    PersistenceError
        If something in the estimator has no name to be found by, such as a lambda or a class of a
        notebook, or cannot be put in words and numbers; the message says what, and where it is.
    OSError
        If the file cannot be written.

    Notes
    -----
    The same estimator gives the same bytes. Of an AcceleratedCAMClassifier in several processes
    the main one writes the file, with its own random generators; its accelerator is left out, as
    are images, loaders and what training holds between steps.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from sklearn.datasets import load_digits
    >>> import sklcam
    >>> X, y = load_digits(n_class=3, return_X_y=True)
    >>> X = (X / 16).reshape(-1, 8, 8)
    >>> clf = sklcam.ConsistentCAMClassifier("resnet18", image_size=64, max_epochs=1, verbose=0,
    ...                                      random_state=0).fit(X[:32], y[:32])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     sklcam.save(clf, f"{folder}/digits.sklcam")
    ...     loaded = sklcam.load(f"{folder}/digits.sklcam")
    >>> np.array_equal(clf.predict_proba(X[:4]), loaded.predict_proba(X[:4]))
    True
    """
    accelerator = vars(estimator).get("accelerator_") if isinstance(estimator, NeuralNet) else None
    if accelerator is not None and not accelerator.is_main_process:
        return
    encoder = Encoder()
    content = {
        "format": _FORMAT,
        "format_version": _FORMAT_VERSION,
        "versions": installed_versions(REQUIRED),
        "estimator": encoder.estimator(estimator, ""),
    }
    text = json.dumps(content, allow_nan=False, ensure_ascii=True, separators=(",", ":")).encode()
    with replacing(path) as file:
        write_archive(file, text, encoder.tensors)


def load(path: str | os.PathLike[str], *, trusted: Iterable[Any] = ()) -> Any:
    """Read an estimator from a file that :func:`save` has written.

    No code comes from the file. Classes and functions are found by name among those of sklcam,
    torch, torchvision, skorch, scikit-learn's splitters and pytorch-metric-learning that do no
    harm; for any other the file is refused, unless you trust it.

    Parameters
    ----------
    path : str or path
    trusted : iterable of str, classes or functions, default=()
        What else the file may ask for: dotted names such as ``"mynets.Net"``, or the classes and
        functions themselves. It is imported, called, and has its attributes set from the file.

    Returns
    -------
    estimator
        As it was saved. On a machine without the GPU that it was on, it is on the CPU.

    Raises
    ------
    UntrustedError
        If the file asks for anything else, before that is imported; it names all of it.
    PersistenceError
        If the file is none of :func:`save`, is damaged or cut off, comes from a later version,
        or holds what does not fit the network that its parameters describe.
    OSError
        If the file cannot be read.

    Warns
    -----
    VersionWarning
        If a major version differs from the installed one, or sklcam's is later.

    Notes
    -----
    The file ends with a SHA-256 of all that comes before. It is there for damage: who writes a file
    on purpose writes its checksum, too, and can have an estimator of known classes with any weights
    and parameters, as large as the machine can bear. Whose weights you use remains a question of
    trust; what they cannot do is run code of their own.

    Examples
    --------
    >>> import tempfile
    >>> import sklcam
    >>> clf = sklcam.ConsistentCAMClassifier("resnet18", max_epochs=5)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     sklcam.save(clf, f"{folder}/birds.sklcam")
    ...     loaded = sklcam.load(f"{folder}/birds.sklcam")
    >>> loaded.max_epochs
    5

    A file with a network of your own names its class, ``trusted=["mynets.Net"]``.
    """
    names = trusted_names(trusted)
    path = Path(path)
    with path.open("rb") as file:
        text, weights = read_archive(file, str(path))
    try:
        content = _parse(text)
        _check_versions(content)
        tensors = safetensors.torch.load(weights)
        decoder = Decoder(tensors, names)
        decoder.check_names(content)
        found = decoder.decode(content["estimator"])
        if not isinstance(found, NeuralNet | CAMExplainer):
            raise PersistenceError(f"it holds a {type(found).__name__}, not an estimator")
    except UntrustedError:
        raise
    except Exception as error:  # whatever a file that was made up can lead to
        reason = textwrap.shorten(f"{error}", 500, placeholder=" ...")
        kind = "" if isinstance(error, PersistenceError) else f"{type(error).__name__}: "
        raise PersistenceError(f"{str(path)!r} cannot be loaded: {kind}{reason}") from error
    return found


def _parse(text: bytes) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise PersistenceError(f"{constant} is not JSON")

    content = json.loads(text.decode(), object_pairs_hook=_unique, parse_constant=refuse)
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise PersistenceError('its JSON is not that of an estimator: it lacks "format": "sklcam"')
    versions = content.get("versions")
    if not isinstance(versions, dict) or not all(isinstance(v, str) for v in versions.values()):
        raise PersistenceError("its JSON does not say with which versions it was written")
    found = content.get("format_version")
    if type(found) is not int or found != _FORMAT_VERSION:
        raise PersistenceError(
            f"its format has version {found!r}, and this sklcam reads {_FORMAT_VERSION}; install "
            "the sklcam that it was written with, or a later one"
        )
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise PersistenceError("its JSON has a key twice")
    return found


def _check_versions(content: dict[str, Any]) -> None:
    installed, saved = installed_versions(REQUIRED), content["versions"]
    differing = [
        f"{package} {saved[package]} (here {installed.get(package, 'none')})"
        for package in REQUIRED
        if package in saved and _differ(package, saved[package], installed.get(package, ""))
    ]
    if differing:
        warn(
            f"The estimator was saved with {', '.join(differing)}. It may not behave as it did; "
            "compare its predictions with known ones.",
            VersionWarning,
            stacklevel=3,
        )


def _differ(package: str, saved: str, installed: str) -> bool:
    of_file, here = ([int(n) for n in re.findall(r"\d+", v)[:3]] for v in (saved, installed))
    if package == "sklcam" and of_file > here:
        return True
    n_parts = 2 if of_file[:1] == [0] else 1  # before 1.0 any release may change anything
    return of_file[:n_parts] != here[:n_parts]
