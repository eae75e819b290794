"""The answers that raters hand in, and the key to them: files and dicts, read and checked."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from sklcam._validation import describe

KEY_FORMAT = "sklcam-study-key"
ANSWERS_FORMAT = "sklcam-study-answers"
VERSION = 1
_VALUES = {"class": (0, 1), "reliability": (-2, -1, 0, 1, 2)}  # of answers

Document: TypeAlias = "str | os.PathLike[str] | Mapping[str, Any]"


@dataclass(frozen=True)
class Answers:
    """The answers of one rater.

    Parameters
    ----------
    rater : str
    values : dict of str to int
        The answer to each question.
    swapped : dict of str to bool
        Whether the sides of each question were swapped.
    seconds : dict of str to float
        How long the rater looked at each question; NaN if unknown.
    """

    rater: str
    values: dict[str, int]
    swapped: dict[str, bool]
    seconds: dict[str, float]


def read_key(key: Document) -> Mapping[str, Any]:
    """Return a key that has been checked."""
    name, document = _read(key, "the key", KEY_FORMAT)
    kind, items = str(document.get("kind")), document.get("items")
    is_whole = (
        isinstance(document.get("study"), str)
        and isinstance(document.get("methods"), list)
        and (kind == "class" or (kind == "reliability" and "better" in document))
    )
    if not is_whole or not isinstance(items, Mapping):
        raise ValueError(
            f"{name} is incomplete. Give the file that study.build wrote beside the page."
        )
    for question, item in items.items():
        if not _is_item(item, kind, document):
            raise ValueError(
                f"{name} is incomplete: its question {question!r} lacks the truth, the method, the "
                "image or the models, or has one that the study does not have. Give the file that "
                "study.build wrote beside the page."
            )
    if all(item.get("check") for item in items.values()):
        raise ValueError(f"{name} has no questions except checks, so there is nothing to analyse.")
    return document


def _is_item(item: Any, kind: str, key: Mapping[str, Any]) -> bool:
    if not isinstance(item, Mapping):
        return False
    if item.get("check"):
        return item.get("truth") in _VALUES[kind]
    if "image" not in item or item.get("method") not in key["methods"]:
        return False
    if kind == "class":
        return item.get("truth") in _VALUES["class"]
    models = item.get("models")
    if not isinstance(models, list | tuple) or len(models) != 2 or models[0] == models[1]:
        return False
    return key["better"] in models


def read_answers(answers: Document | Sequence[Document], key: Mapping[str, Any]) -> list[Answers]:
    """Return the answers of each rater, in the order in which they came, after checking them."""
    if not isinstance(answers, Iterable | os.PathLike):
        raise ValueError(
            "answers must be files that raters have saved, or their content; got "
            f"{describe(answers)}."
        )
    given = [answers] if isinstance(answers, str | os.PathLike | Mapping) else [*answers]
    if not given:
        raise ValueError("There are no answers. Give the files that raters have saved, in a list.")
    found: list[Answers] = []
    came_from: dict[str, str] = {}
    for i, each in enumerate(given):
        name, document = _read(each, f"answers[{i}]", ANSWERS_FORMAT)
        rater = _one(name, document, key)
        if rater.rater in came_from:
            raise ValueError(
                f"Rater {rater.rater!r} appears twice, in {came_from[rater.rater]} and {name}. "
                "Keep one of them, or change the rater in one if they are two people."
            )
        came_from[rater.rater] = name
        found.append(rater)
    return found


def _read(given: Any, name: str, wanted: str) -> tuple[str, Mapping[str, Any]]:
    """Return the name of a document in messages, and its content."""
    document = given
    if isinstance(given, str | os.PathLike):
        name = repr(os.fspath(given))
        try:
            # With or without the byte order mark that some editors put before UTF-8.
            document = json.loads(Path(given).read_text(encoding="utf-8-sig"))
        except ValueError as error:  # neither UTF-8 nor JSON
            raise ValueError(f"{name} is not a JSON file: {error}") from error
    if not isinstance(document, Mapping) or document.get("format") != wanted:
        form = document.get("format") if isinstance(document, Mapping) else None
        came = f"one of the format {form!r}" if form else describe(document)
        raise ValueError(f"{name} must be a file or dict of the format {wanted!r}; got {came}.")
    if document.get("version") != VERSION:
        raise ValueError(
            f"{name} is of version {document.get('version')!r} of its format, but this sklcam "
            f"reads version {VERSION}. Install the sklcam that wrote the page."
        )
    return name, document


def _one(name: str, document: Mapping[str, Any], key: Mapping[str, Any]) -> Answers:
    if document.get("study") != key["study"]:
        raise ValueError(
            f"{name} belongs to the study {document.get('study')!r}, but the key to "
            f"{key['study']!r}. Give answers and key of one study."
        )
    rater, given = document.get("rater"), document.get("answers")
    if not isinstance(rater, str) or not rater or not isinstance(given, list):
        raise ValueError(f"{name} must have a rater, which is a string, and a list of answers.")
    allowed = _VALUES[key["kind"]]
    found = Answers(rater, {}, {}, {})
    for answer in given:
        item = answer.get("item") if isinstance(answer, Mapping) else None
        if not isinstance(item, str) or item not in key["items"]:
            raise ValueError(f"{name} answers {item!r}, which is not a question of the study.")
        if item in found.values:
            raise ValueError(f"{name} answers the question {item!r} twice.")
        value = answer.get("value")
        if type(value) is not int or value not in allowed:
            raise ValueError(
                f"{name} answers the question {item!r} with {value!r}, which is not one of "
                f"{', '.join(map(str, allowed))}."
            )
        found.values[item] = value
        found.swapped[item] = answer.get("swapped") is True
        seconds = answer.get("seconds")
        found.seconds[item] = float(seconds) if type(seconds) in (int, float) else float("nan")
    return found
