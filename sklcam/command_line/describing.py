"""``sklcam info``: what is in a file."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from sklcam.command_line.results import Result, plain
from sklcam.explain.base import Explainer
from sklcam.persistence import load, model_card


def run(arguments: Namespace) -> Result:
    """Describe the estimator in a file."""
    if not Path(arguments.file).exists():
        raise ValueError(
            f"There is no file {arguments.file!r}. Give a file that sklcam.save has written; a "
            "network by name has none."
        )
    estimator = load(arguments.file)
    card = model_card(estimator, file=arguments.file)
    values = {
        "file": arguments.file,
        "estimator": type(estimator).__name__,
        "parameters": estimator.get_params(deep=False),
        **_facts(estimator),
        "card": card,
    }
    return Result(card.rstrip(), plain(values))


def _facts(estimator: Any) -> dict[str, Any]:
    """Return what a fitted explainer knows about its classes and images."""
    if not isinstance(estimator, Explainer) or not hasattr(estimator, "preprocessing_"):
        return {}
    preprocessing = estimator.preprocessing_
    return {
        "task": estimator.adapter.task,
        "classes": estimator.classes_,
        "class_names": estimator.class_names_,
        "target_layers": [layer.name for layer in estimator.target_layers],
        "image_size": preprocessing.image_size,
        "resize": preprocessing.resizing.mode,
        "mean": preprocessing.mean,
        "std": preprocessing.std,
        "prepared_by": preprocessing.source,
    }
