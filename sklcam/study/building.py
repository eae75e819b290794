"""Write a page of questions about maps, and the key to it."""

from __future__ import annotations

import hashlib
import html
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils import check_random_state

from sklcam._files import replacing
from sklcam._validation import check_count, check_number
from sklcam._versions import installed_versions
from sklcam.explain.base import AnyMethod, Methods
from sklcam.explain.nested import AnyEstimator, as_explainer
from sklcam.plotting.pages import digest, image_names, script_json, style_of, text_of
from sklcam.study.answers import KEY_FORMAT, VERSION
from sklcam.study.questions import (
    SCALE,
    Look,
    Model,
    Question,
    Show,
    attention_checks,
    class_questions,
    reliability_questions,
)

Kind = Literal["class", "reliability"]

_HERE = "sklcam.study"
_SIZES = (32, 1024)
_TITLES: dict[Kind, str] = {
    "class": "What do these pictures point out?",
    "reliability": "Which model is more reliable?",
}
_INTRODUCTIONS: dict[tuple[Kind, Show], str] = {
    ("class", "overlay"): (
        "A computer program was asked where it sees a certain thing in a photograph. Its answer is "
        "laid over the photograph: the brighter a place, from blue through green to yellow, the "
        "more it counted.\n\nEach question names two things. Please say which of them the program "
        "was asked about."
    ),
    ("class", "map"): (
        "A computer program was asked where it sees a certain thing in a photograph. Its answer is "
        "a picture: the brighter a place, from blue through green to yellow, the more it "
        "counted.\n\nEach question names two things. Please say which of them the program was "
        "asked about."
    ),
    ("reliability", "overlay"): (
        "Two computer programs, model 1 and model 2, have named what a photograph shows, and both "
        "are right. Colours over the photograph show where each of them looked: the brighter a "
        "place, from blue through green to yellow, the more it counted.\n\nPlease say which of the "
        "two seems more reliable: which of them would you rather trust with other photographs? "
        "They change sides from question to question."
    ),
    ("reliability", "map"): (
        "Two computer programs, model 1 and model 2, have named what a photograph shows, and both "
        "are right. The pictures show where each of them looked: the brighter a place, from blue "
        "through green to yellow, the more it counted.\n\nPlease say which of the two seems more "
        "reliable: which of them would you rather trust with other photographs? They change sides "
        "from question to question."
    ),
}


def build(
    explainers: AnyEstimator | Mapping[str, AnyEstimator],
    X: Any,
    y: Any = None,
    path: str | os.PathLike[str] | None = None,
    *,
    kind: Kind = "class",
    pairs: ArrayLike | None = None,
    method: AnyMethod | Methods | None = None,
    better: str | None = None,
    names: Sequence[str] | None = None,
    class_names: Mapping[str, str] | None = None,
    n_questions: int | None = None,
    attention_checks: int = 4,
    show: Show = "overlay",
    alpha: float = 0.5,
    thumbnail: int = 320,
    title: str | None = None,
    introduction: str | None = None,
    random_state: int | np.random.RandomState | None = None,
) -> dict[str, Any]:
    """Write a page on which people judge explanations, and the key to their answers.

    The page is one file that loads nothing and sends nothing. It opens from a disk, keeps a rater's
    answers in the browser, and finally saves them as a JSON file for :func:`analyse`. It does
    not say which model or method a picture is of, or which answer is right. Only the key does: a
    file beside the page, which is not for the raters.

    Parameters
    ----------
    explainers : estimator, or dict of names to estimators
        Fitted estimators that :func:`~sklcam.metrics.evaluate` takes. For ``kind="reliability"``, a
        dict of the two models.
    X : images
        In any form that the estimators take.
    y : labels, label sets or None, default=None
        For ``kind="class"``, several labels per image: raters are asked about images with exactly
        two. For ``kind="reliability"``, the true label of each image. None takes the labels of X,
        if it is a data set that has them.
    path : str or path-like
        Where to write the page, such as "study.html"; the key is written to "study.key.json".
        Existing files are replaced once the new ones are complete.
    kind : {"class", "reliability"}, default="class"
        The question. "class": which of two classes a map explains. "reliability": which of two
        models seems more reliable by their maps, from -2 to 2, for images whose true class both
        predict.
    pairs : array-like of shape (2,) or (n_images, 2), or None, default=None
        For ``kind="class"``, instead of y: the two classes, for all images or for each one.
    method : str, Method, list of them, dict of names to them, or None, default=None
        The methods; raters see the maps of all of them, mixed. None is the estimators' own.
    better : str or None, default=None
        For ``kind="reliability"``, the model that is known to be more reliable. None takes the one
        that predicts more of X right.
    names : sequence of str or None, default=None
        The name of each image in the key; None takes the names of files, or numbers.
    class_names : mapping of str to str or None, default=None
        The names of classes on the page, by the estimator's names for them, such as
        ``{"espresso": "a cup of coffee"}``. Classes that are not in it keep their names.
    n_questions : int or None, default=None
        How many questions there are without checks, equally many for each model and method. None
        takes as many as there are, up to 60.
    attention_checks : int, default=4
        How many additional questions say what to choose.
    show : {"overlay", "map"}, default="overlay"
        Whether maps are shown over their images in grey, or by themselves, as in the paper, where
        maps of single pixels show outlines.
    alpha : float in (0, 1], default=0.5
        How opaque an overlay is.
    thumbnail : int, default=320
        Pixels of a picture's longer side, 32 to 1024. Smaller images stay as they are.
    title, introduction : str or None, default=None
        What raters read first; empty lines separate paragraphs. None explains what to do.
    random_state : int, RandomState or None, default=None
        Controls which images are asked about, the order of answers and sides, and the questions'
        names. The order in which a rater sees them is drawn in the browser, and kept with the
        answers.

    Returns
    -------
    dict
        The key, as it was written, for :func:`analyse`.

    Raises
    ------
    IsADirectoryError, FileNotFoundError
        If the path is a folder, or its folder does not exist; before any work.
    NotFittedError
        If an estimator has not been fitted.
    ValueError
        If an argument is invalid, or there are fewer questions to ask than `n_questions`.

    Warns
    -----
    ExplanationWarning
        If maps are blank, or NaN. They are shown as they are.

    References
    ----------
    Selvaraju et al., "Grad-CAM", IJCV 2020, sections 5.1 and 5.2.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import torch
    >>> from sklcam import CAMExplainer, study
    >>> from torch import nn
    >>> network = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> classes = ["cat", "dog", "emu"]
    >>> explainer = CAMExplainer(network, classes=classes, target_layer="0", verbose=0).fit()
    >>> images = torch.rand(3, 3, 8, 8)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     key = study.build(explainer, images, path=f"{folder}/study.html", pairs=["cat", "dog"])
    ...     sorted(file.name for file in Path(folder).iterdir())
    ['study.html', 'study.key.json']
    >>> len(key["items"])
    10
    """
    _check(path, kind, pairs, better, show, n_questions, attention_checks, alpha, thumbnail)
    assert path is not None  # which was checked
    generator = check_random_state(random_state)
    models = _models(explainers, X, y, method, kind, better)
    called = image_names(X, names, len(models[0].opened))
    look = Look(show, float(alpha), thumbnail)
    page = Path(path)
    # An error before any work if one of them cannot be written.
    with replacing(page.with_suffix(".key.json")) as key_file, replacing(page) as page_file:
        head: dict[str, Any] = {}
        if kind == "class":
            questions = class_questions(models, y, pairs, class_names, n_questions, look, generator)
        else:
            questions, accuracy = reliability_questions(
                models, y, class_names, n_questions, look, generator
            )
            told = _more_accurate(accuracy) if better is None else str(better)
            head = {"accuracy": accuracy, "better": told}
        items = _items(questions, attention_checks, called, generator)
        methods = [*dict.fromkeys(name for model in models for name in model.methods)]
        key = _key(kind, methods, head, items)
        text = _page(kind, key["study"], items, look.show, title, introduction)
        written = json.dumps(key, indent=1, ensure_ascii=False)
        # Bytes of a file's name that are not text are escaped just as JSON escapes them.
        key_file.write(written.encode("utf-8", errors="backslashreplace"))
        page_file.write(text.encode("utf-8", errors="replace"))
    return key


# Arguments


def _check(
    path: Any,
    kind: Any,
    pairs: Any,
    better: Any,
    show: Any,
    n_questions: Any,
    n_checks: Any,
    alpha: Any,
    thumbnail: Any,
) -> None:
    """Raise a ValueError if an argument is invalid, as far as this shows without a model."""
    if path is None:
        raise ValueError('study.build needs path=, the file to write, such as "study.html".')
    if kind not in get_args(Kind):
        raise ValueError(f'kind must be "class" or "reliability"; got {kind!r}.')
    if show not in get_args(Show):
        raise ValueError(f'show must be "overlay" or "map"; got {show!r}.')
    if kind == "class" and better is not None:
        raise ValueError('better= is for kind="reliability", which compares two models.')
    if kind == "reliability" and pairs is not None:
        raise ValueError('pairs= is for kind="class"; kind="reliability" takes true labels, y.')
    if n_questions is not None:
        check_count("n_questions", n_questions)
    check_count("attention_checks", n_checks, 0)
    check_number("alpha", alpha, 0, 1, closed="right")
    check_count("thumbnail", thumbnail, *_SIZES)


def _models(
    explainers: AnyEstimator | Mapping[str, AnyEstimator],
    X: Any,
    y: Any,
    method: AnyMethod | Methods | None,
    kind: Kind,
    better: str | None,
) -> list[Model]:
    given = explainers if isinstance(explainers, Mapping) else {"": explainers}
    named = {str(name): each for name, each in given.items()}  # keys in JSON are text
    if len(named) < len(given):
        raise ValueError(f"Models must have different names, as text; got {[*given]}.")
    if kind == "reliability" and len(named) != 2:
        raise ValueError(
            'A study of kind="reliability" compares two models, so explainers must be a dict of '
            f"two, by name; got {len(named) if isinstance(explainers, Mapping) else 'one'}."
        )
    if not named:
        raise ValueError("explainers is an empty dict. Give at least one estimator, by name.")
    if better is not None and str(better) not in named:
        raise ValueError(f"better must be one of {', '.join(map(repr, named))}; got {better!r}.")
    return [Model(name, *as_explainer(each, X, y), method) for name, each in named.items()]


def _more_accurate(accuracy: Mapping[str, float]) -> str:
    (one, two), (first, second) = accuracy, accuracy.values()
    if first == second:
        raise ValueError(
            f"Both models predict {first:.1%} of the images right, so these do not show which is "
            "more reliable. Name it with better=."
        )
    return one if first > second else two


# The page and its key


def _items(
    questions: list[Question],
    n_checks: int,
    called: Sequence[str],
    generator: np.random.RandomState,
) -> dict[str, Question]:
    """Return all questions by names that reveal nothing, in the order of these names."""
    all_of_them = [*questions, *attention_checks(n_checks, questions, generator)]
    ids: set[str] = set()
    while len(ids) < len(all_of_them):
        ids.add(generator.bytes(6).hex())
    mixed = [all_of_them[i] for i in generator.permutation(len(all_of_them))]
    for question in questions:
        question.secret["name"] = called[question.secret["image"]]
    return dict(zip(sorted(ids), mixed, strict=True))


def _key(
    kind: Kind, methods: list[str], head: dict[str, Any], items: Mapping[str, Question]
) -> dict[str, Any]:
    """Return the key. The study's name is a hash of all that is in it, with the pictures."""
    secrets = {name: item.secret for name, item in items.items()}
    whole = json.dumps([kind, head, secrets, [item.shown for item in items.values()]])
    return {
        "format": KEY_FORMAT,
        "version": VERSION,
        "study": hashlib.sha256(whole.encode()).hexdigest()[:16],
        "kind": kind,
        "sklcam": installed_versions(["sklcam"]).get("sklcam", "not installed"),
        **head,
        "methods": methods,
        "items": secrets,
    }


def _page(
    kind: Kind,
    study: str,
    items: Mapping[str, Question],
    show: Show,
    title: str | None,
    introduction: str | None,
) -> str:
    style, script = style_of(_HERE), text_of(_HERE, "page.js")
    data = {
        "study": study,
        "kind": kind,
        "scale": SCALE,
        "items": [{"id": name, **item.shown} for name, item in items.items()],
    }
    text = _INTRODUCTIONS[kind, show] if introduction is None else introduction
    paragraphs = [part.strip() for part in text.split("\n\n") if part.strip()]
    return Template(text_of(_HERE, "page.html")).substitute(
        title=html.escape(_TITLES[kind] if title is None else title),
        introduction="\n".join(f"<p>{html.escape(part)}</p>" for part in paragraphs),
        data=script_json(data),
        style=style,
        style_digest=digest(style),
        script=script,
        script_digest=digest(script),
    )
