"""Saving and loading."""

from __future__ import annotations

import json
import os
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from warnings import warn

from skorch import NeuralNet

from sklcam._files import replacing
from sklcam._validation import describe
from sklcam._versions import REQUIRED, installed_versions
from sklcam.persistence.container import read_archive, write_archive
from sklcam.persistence.errors import MissingObjectsError, PersistenceError, VersionWarning
from sklcam.persistence.estimators import alone, read_estimator, write_estimator
from sklcam.persistence.values import Reader, Writer, check_label, expect

_FORMAT = "sklcam"
_FORMAT_VERSION = 2


def save(estimator: Any, path: str | os.PathLike[str]) -> None:
    """Write an estimator to a file that is data, and nothing else.

    Parameters
    ----------
    estimator : ConsistentCAMClassifier, EmbeddingNet, CAMExplainer, EmbeddingCAMExplainer
        One of these, or an AcceleratedCAMClassifier, CaptionExplainer, VQAExplainer, CAMSegmenter,
        ConceptNamer, TextConceptNamer or ConceptMaps; fitted or not. For a search, the best
        estimator is saved; for a ``FrozenEstimator``, the one inside. The file holds all that is
        needed to predict, to explain and to continue training: weights, optimizer, history, random
        generators, and the weights of the network in an explainer. An object that is not plain
        data, such as a network's class, is stored as a label; :func:`load` asks for the object.
    path : str or path
        The file to write. An existing file is replaced once the new one is complete, and kept if
        anything goes wrong. A link is followed.

    Raises
    ------
    PersistenceError
        If the estimator is not one of these, or holds values that a file cannot hold; the message
        says where they are.
    OSError
        If the file cannot be written.
    TypeError
        If `path` is not a path.

    Notes
    -----
    The same estimator gives the same bytes. With an AcceleratedCAMClassifier in several processes,
    the main process writes the file, with its own random generators. The accelerator, the images,
    the data loaders and the temporary state of training are left out.

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
    estimator = alone(estimator)
    accelerator = vars(estimator).get("accelerator_") if isinstance(estimator, NeuralNet) else None
    if accelerator is not None and not accelerator.is_main_process:
        return
    writer = Writer()
    content = {
        "format": _FORMAT,
        "format_version": _FORMAT_VERSION,
        "versions": installed_versions(REQUIRED),
        "estimator": write_estimator(estimator, writer),
        "objects": sorted(writer.objects),
    }
    text = json.dumps(content, allow_nan=False, ensure_ascii=True, separators=(",", ":")).encode()
    with replacing(path) as file:
        write_archive(file, text, writer.tensors)


def load(path: str | os.PathLike[str], *, objects: Mapping[str, Any] | None = None) -> Any:
    """Read an estimator from a file that :func:`save` has written.

    A file is data. Reading it imports nothing, calls nothing and sets no attribute that the file
    names. It says which estimator of sklcam it holds, and contains plain parameters, tensors, and
    names from one fixed table. A network is built by its name, as the constructor builds it.

    Parameters
    ----------
    path : str or path
        The file to read.
    objects : mapping of str to object, or None, default=None
        The objects that the file does not hold, by label: ``{"MyNet": MyNet}``. A network that was
        trained elsewhere may be an instance or a class; the file's weights are loaded into it.

    Returns
    -------
    estimator
        The estimator as it was saved, or on the CPU if the GPU that it was on is not available.

    Raises
    ------
    MissingObjectsError
        If the file needs objects that were not passed. The message names all of them.
    PersistenceError
        If the file was not written by :func:`save`, is damaged or truncated, comes from a later
        version, or holds anything that is not in the schema.
    OSError
        If the file cannot be read.
    TypeError
        If `path` is not a path.
    ValueError
        If `objects` is not a mapping.

    Warns
    -----
    VersionWarning
        If a major version differs from the installed one, or the file's sklcam is later.

    Notes
    -----
    The file ends with a SHA-256 of everything before it. This checksum detects damage, not forgery:
    whoever forges a file can write its checksum, too. A forged file can hold an estimator with any
    weights and any parameters. Whose weights you use remains a question of trust.

    Examples
    --------
    >>> import tempfile
    >>> from torch import nn
    >>> import sklcam
    >>> class MyNet(nn.Sequential):
    ...     def __init__(self):
    ...         super().__init__(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> explainer = sklcam.CAMExplainer(MyNet(), target_layer="0").fit()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     sklcam.save(explainer, f"{folder}/mine.sklcam")
    ...     loaded = sklcam.load(f"{folder}/mine.sklcam", objects={"MyNet": MyNet})
    >>> loaded.target_layers_[0].name
    '0'
    """
    if not isinstance(objects, Mapping | None):
        raise ValueError(
            f"objects must be a dict of labels to objects, such as {{'MyNet': MyNet}}; got "
            f"{describe(objects)}."
        )
    given = dict(objects or {})
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        raise PersistenceError(f"{str(path)!r} is a device or a pipe, not a file.")
    with path.open("rb") as file:
        text, tensors = read_archive(file, str(path))
    try:
        content = _parse(text)
        _check_versions(content["versions"])
        labels = [check_label(label) for label in expect(content["objects"], list, "objects")]
        if not given.keys() >= set(labels):
            raise MissingObjectsError(label for label in labels if label not in given)
        estimator = read_estimator(content["estimator"], Reader(tensors, given))
        if tensors:
            raise PersistenceError(f"it holds tensors that nothing uses: {sorted(tensors)[:5]}")
    except MissingObjectsError:
        raise
    # A forged file can lead to any error, and all of them mean the same.
    except Exception as error:
        reason = "".join(c if c.isprintable() else " " for c in f"{error}"[:2000])
        reason = textwrap.shorten(reason, 500, placeholder=" ...")
        kind = "" if isinstance(error, PersistenceError) else f"{type(error).__name__}: "
        raise PersistenceError(f"{str(path)!r} cannot be loaded: {kind}{reason}") from error
    return estimator


def _parse(text: bytes) -> dict[str, Any]:
    content = json.loads(text.decode(), object_pairs_hook=_unique)
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise PersistenceError('its JSON is not that of an estimator: it lacks "format": "sklcam"')
    found = content.get("format_version")
    if type(found) is not int or found != _FORMAT_VERSION:
        raise PersistenceError(
            f"its format has version {str(found)[:20]}, but this sklcam reads version "
            f"{_FORMAT_VERSION}. Install the sklcam that wrote the file, or a later one"
        )
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise PersistenceError("its JSON has a key twice")
    return found


def _check_versions(saved: Any) -> None:
    for version in expect(saved, dict, "versions").values():
        if not isinstance(version, str) or not re.fullmatch(r"[\w.+!-]{1,40}", version, re.ASCII):
            raise PersistenceError("its JSON does not say with which versions it was written")
    installed = installed_versions(REQUIRED)
    differing = [
        f"{package} {saved[package]} (here {installed.get(package, 'none')})"
        for package in REQUIRED
        if package in saved and _differ(package, saved[package], installed.get(package, ""))
    ]
    if differing:
        warn(
            f"The estimator was saved with {', '.join(differing)}. It may behave differently now; "
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
