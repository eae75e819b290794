"""The description that goes with a file."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from skorch import NeuralNet

from sklcam._validation import describe
from sklcam._versions import REQUIRED, installed_versions
from sklcam.explain.cam_explainer import CAMExplainer
from sklcam.persistence.errors import PersistenceError
from sklcam.persistence.estimators import write_estimator
from sklcam.persistence.uses import USES, found_by
from sklcam.persistence.values import Writer
from sklcam.training.net import ImageNeuralNet


def model_card(
    estimator: Any,
    *,
    metrics: dict[str, Any] | None = None,
    file: str | os.PathLike[str] | None = None,
) -> str:
    """Describe an estimator in Markdown, to go with its file.

    Parameters
    ----------
    estimator : ConsistentCAMClassifier, EmbeddingNet, CAMExplainer, EmbeddingCAMExplainer
        Any other estimator that :func:`save` takes, or another skorch net; fitted or not.
    metrics : dict of str to number, default=None
        Its measured metrics, such as ``{"accuracy": 0.93}``. In the text that you add to the card,
        say on which images they were measured.
    file : str, path or None, default=None
        The file that the card describes; its name appears in the code that loads it. If it ends in
        ".onnx", as written by the estimator's ``export``, the card says how to run it.

    Returns
    -------
    str
        The kind of the estimator, its classes, layers and parameters, the last epoch of its
        training, the metrics, how to load it and with which versions. The purpose, the data and
        the limitations are left for the author to write.

    Raises
    ------
    ValueError
        If `estimator` is not one of these, `metrics` is not a dict, or `file` is not a path.

    Examples
    --------
    >>> from sklcam import ConsistentCAMClassifier, model_card
    >>> card = model_card(ConsistentCAMClassifier("resnet18"), metrics={"accuracy": 0.93})
    >>> print(card.splitlines()[0])
    # ConsistentCAMClassifier
    """
    if not issubclass(type(estimator), (NeuralNet, CAMExplainer, *USES)):
        raise ValueError(
            "model_card describes the estimators of sklcam and other skorch nets; got "
            f"{describe(estimator)}."
        )
    if not isinstance(metrics, Mapping | None):
        raise ValueError(f"metrics must be a dict of names to numbers; got {describe(metrics)}.")
    if not isinstance(file, str | os.PathLike | None):
        raise ValueError(f"file must be a path; got {describe(file)}.")
    net = estimator if isinstance(estimator, NeuralNet) else getattr(estimator, "model", None)
    kind = type(estimator)
    sections = [
        f"# {kind.__name__}",
        f"A `{kind.__module__}.{kind.__qualname__}`, "
        f"{'fitted' if _is_fitted(estimator) else 'not fitted'}.\n\n"
        "_What it is for, and what it was trained on._",
        *_section("Classes and layers", _facts(estimator)),
        *_section("Parameters", estimator.get_params(deep=False)),
        *_section("Metrics", metrics or {}),
        *_section("Last epoch of training", _last_epoch(net)),
        f"## How to load it\n\n```python\n{_loading(estimator, file)}\n```",
        *_section("Versions", installed_versions(REQUIRED)),
        "## Limitations\n\n_What it should not be used for, and where it is known to fail. A map "
        "shows where the network looked, not that it was right to._",
    ]
    return "\n\n".join(sections) + "\n"


def _loading(estimator: Any, file: str | os.PathLike[str] | None) -> str:
    """Return the code that uses the file."""
    name = "path/of/the/file" if file is None else Path(file).name
    if name.endswith(".onnx"):
        answer = "predictions" if getattr(estimator, "classes_", None) is None else "probabilities"
        return (
            f'import onnxruntime\n\nsession = onnxruntime.InferenceSession("{name}")\n'
            f'(answers,) = session.run(["{answer}"], {{"images": images}})  # float32 in [0, 1]'
        )
    pairs = ", ".join(f"{label!r}: {label}" for label in _labels(estimator))
    objects = f", objects={{{pairs}}}" if pairs else ""
    return f'import sklcam\n\nestimator = sklcam.load("{name}"{objects})'


def _labels(estimator: Any) -> list[str]:
    """Return the labels that a file of the estimator would ask for, as far as it can be written."""
    writer = Writer()
    with suppress(PersistenceError):
        write_estimator(estimator, writer)
    return sorted(writer.objects)


def _is_fitted(estimator: Any) -> bool:
    if isinstance(estimator, USES):
        return found_by(estimator) is not None
    fitted = ("module_",) if isinstance(estimator, NeuralNet) else ("target_layers_",)
    return all(name in vars(estimator) for name in fitted)


def _facts(estimator: Any) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    classes = getattr(estimator, "classes_", None) if _is_fitted(estimator) else None
    if classes is not None:
        facts["classes"] = np.asarray(classes).tolist()
    layers = vars(estimator).get("target_layers_") or [vars(estimator).get("target_layer_")]
    names = [layer.name for layer in layers if layer is not None]
    if names:
        facts["target layer"] = ", ".join(names)
    if isinstance(estimator, ImageNeuralNet) and _is_fitted(estimator):
        facts["channels of the images"] = estimator.n_channels_
    return facts


def _last_epoch(net: Any) -> dict[str, Any]:
    history = net.history if isinstance(net, NeuralNet) and "history_" in vars(net) else ()
    row = history[-1] if history else {}
    return {
        name: value
        for name, value in row.items()
        if name != "batches" and not name.endswith(("_best", "_batch_count"))
    }


def _section(title: str, values: dict[str, Any]) -> list[str]:
    if not values:
        return []
    rows = [f"| {name} | {_cell(value)} |" for name, value in values.items()]
    return ["\n".join([f"## {title}", "", "| | |", "|---|---|", *rows])]


def _cell(value: Any) -> str:
    if isinstance(value, type):
        value = f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, float | np.floating):
        value = f"{value:.4g}"
    text = textwrap.shorten(value if isinstance(value, str) else repr(value), 300)
    text = re.sub(r" at 0x[0-9a-f]+", "", text)
    return text.replace("|", "\\|").replace("<", "&lt;") or "&nbsp;"
