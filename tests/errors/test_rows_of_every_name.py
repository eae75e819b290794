"""Every public name has rows of what it refuses, or a reason to have none."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from refusals import Row, completed

from sklcam import cam

TAKES_NOTHING_WRONG = {
    "available": "takes nothing",
    "available_models": "takes nothing",
    "show_versions": "takes nothing",
    "default_metrics": "takes true or false",
    "metric_of_row": "knows some names, and returns None for others",
    "row_meaning": "knows some names, and returns nothing for others",
    "Adapter": "a base class",
    "Batch": "made by OpenedImages",
    "ChannelMethod": "a base class",
    "ChannelBatch": "made by an Explainer",
    "ExplainedBatch": "made by an Explainer",
    "Shortcut": "made by find_shortcuts",
    "Shortcuts": "made by find_shortcuts",
    "Reasons": "made by what names channels",
    "Explainer": "a base class",
    "Measurement": "made by an Evaluator",
    "OpenedImages": "made by an Explainer",
    "WordMaps": "made by an explainer",
    "Origin": "holds what has been checked",
    "Preparation": "checked with the images that it is for",
    "origin_of": "takes any network",
    "Deferred": "a base class",
    "Target": "a base class",
    "CausalCurves": "a tuple that is returned",
    "DeletionCurve": "a tuple that is returned",
    "InsertionCurve": "a tuple that is returned",
    "LossValues": "a tuple that is returned",
    "Term": "a base class",
    "PrecisionRecall": "a tuple that is returned",
    "Summary": "a table that is returned",
    "GroupedSummary": "a table that is returned",
    "StudyTable": "a table that is returned",
    "Trunk": "made by record_trunk",
    "PersistenceError": "an error",
    "MissingObjectsError": "an error",
    "VersionWarning": "a warning",
    "ExplanationWarning": "a warning",
    "LaggingStatisticsWarning": "a warning",
    "ExplanationCheck": "takes tensors of the library's own",
    "Uniform": "has no options",
    "FakeCAM": "has no options",
    "ExcitationBackprop": "its option is true or false",
    "GradCAMPlusPlus": "its option is true or false",
    "HiResCAM": "its option is true or false",
    "LayerCAM": "its option is true or false",
    "XGradCAM": "its option is true or false",
}
ROOMS = (
    *("cam", "command_line", "concepts", "datasets", "embeddings", "explain", "images"),
    *("language", "metrics", "networks", "persistence", "plotting", "reporting", "segmentation"),
    *("study", "training"),
)
PACKAGES = ("sklcam", *(f"sklcam.{room}" for room in ROOMS))


def all_rows() -> dict[str, list[Row]]:
    """The rows of all files of this folder, by public name."""
    found: dict[str, list[Row]] = {}
    for file in sorted(Path(__file__).parent.glob("test_errors_*.py")):
        module = importlib.import_module(file.stem)
        for table in (getattr(module, "REFUSALS", {}), getattr(module, "FILES", {})):
            assert not found.keys() & table.keys(), f"{file.name} has rows of another file's names"
            found |= table
    return found


ROWS = all_rows()


def public_names() -> set[str]:
    """The names of all ``__all__``, and those of the reference."""
    found = {name for package in PACKAGES for name in importlib.import_module(package).__all__}
    reference = Path(__file__).parents[2] / "docs" / "api.rst"
    return found | set(re.findall(r"^   (\w+)$", reference.read_text(), re.MULTILINE))


def test_every_public_name_has_its_rows():
    without = public_names() - ROWS.keys()
    assert without == TAKES_NOTHING_WRONG.keys()


def public_functions() -> dict[str, Callable]:
    """The functions among the public names, from wherever the reference has them."""
    reference = (Path(__file__).parents[2] / "docs" / "api.rst").read_text()
    homes = {*PACKAGES, *re.findall(r"module:: (\S+)", reference)}
    modules = [importlib.import_module(home) for home in sorted(homes)]
    named = [(name, getattr(module, name, None)) for module in modules for name in public_names()]
    return {name: found for name, found in named if inspect.isfunction(found)}


FUNCTIONS = public_functions()


def named_errors(docstring: str) -> set[str]:
    """The errors in the section on what is raised."""
    sections = re.split(r"^([A-Z]\w*)\n-+$", docstring, flags=re.MULTILINE)
    raises = dict(zip(sections[1::2], sections[2::2], strict=True)).get("Raises", "")
    return set(re.findall(r"\w+", " ".join(re.findall(r"^\w.*$", raises, re.MULTILINE))))


def is_named(error: type[Exception], named: set[str]) -> bool:
    """Whether an error is named, by its own name or, if the system makes it, as an OSError."""
    return error.__name__ in named or (issubclass(error, OSError) and "OSError" in named)


@pytest.mark.parametrize("name", sorted(FUNCTIONS.keys() & ROWS.keys()))
def test_what_a_function_refuses_is_in_its_docstring(name):
    named = named_errors(inspect.getdoc(FUNCTIONS[name]) or "")
    # A row's error may be a tuple, of kinds of which one is raised.
    kinds = [
        error if isinstance(error, tuple) else (error,) for *_, error in map(completed, ROWS[name])
    ]
    unnamed = [kind for kind in kinds if not any(is_named(error, named) for error in kind)]
    assert not unnamed


@pytest.mark.parametrize("name", ["GradCAMPlusPlus", "HiResCAM", "LayerCAM", "XGradCAM"])
def test_methods_without_rows_have_no_other_options(name):
    assert list(getattr(cam, name)().get_params()) == ["relu"]
