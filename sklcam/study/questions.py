"""Questions about maps: what raters see of each one, and what the key says about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from sklcam._validation import suggestion
from sklcam.cam import Method
from sklcam.explain.base import AnyMethod, Explainer, Methods, method_name
from sklcam.explain.opened import OpenedImages
from sklcam.explain.predictions import class_names as names_of_classes
from sklcam.images.frames import Resizing
from sklcam.images.label_sets import as_indicator, kind_of_labels
from sklcam.images.labels import dataset_labels
from sklcam.images.pictures import check_is_picture, to_picture
from sklcam.plotting.pages import map_uri, overlay_uri, thumbnail_size

Show = Literal["overlay", "map"]

# As raters read them, from the left to the right.
SCALE = (
    (-2, "Model 1, clearly"),
    (-1, "Model 1, slightly"),
    (0, "Both alike"),
    (1, "Model 2, slightly"),
    (2, "Model 2, clearly"),
)
_USUAL = 60  # questions, about ten minutes of a rater's time
_WITHOUT_CLASSES_OF_IMAGES = ("regression", "segmentation", "detection")


@dataclass(frozen=True)
class Question:
    """A question: what raters see of it, and what the key says about it.

    Parameters
    ----------
    shown : dict
        ``asked``; ``images``, data URIs, or the ``note`` of a check; ``options`` of two classes.
    secret : dict
        What the analysis needs to know.
    """

    shown: dict[str, Any]
    secret: dict[str, Any]


@dataclass(frozen=True)
class Look:
    """How maps are drawn: over their images, or by themselves.

    Parameters
    ----------
    show : {"overlay", "map"}
    alpha : float
    longest : int
        Pixels of the longer side.
    """

    show: Show
    alpha: float
    longest: int

    def uri(self, original: Tensor, map_: Tensor, resize: Resizing) -> str:
        """Return the picture of a map, as a data URI."""
        picture = to_picture(original)
        size = thumbnail_size(picture.shape[0], picture.shape[1], self.longest)
        if self.show == "map":
            return map_uri(map_, size, resize=resize)
        return overlay_uri(picture, map_, size, resize=resize, alpha=self.alpha)


@dataclass
class Model:
    """A model whose maps are shown: its images are open, but it has not run yet.

    Parameters
    ----------
    name : str
    explainer : Explainer
    X : images
        In any form that the explainer takes.
    method : str, Method, list of them, dict of names to them, or None
    """

    name: str
    explainer: Explainer
    X: Any
    method: AnyMethod | Methods | None
    opened: OpenedImages = field(init=False)
    methods: dict[str, Method] = field(init=False)

    def __post_init__(self) -> None:
        task = self.explainer.adapter.task
        if not self.words or task in _WITHOUT_CLASSES_OF_IMAGES:
            named = repr(self.name) if self.name else "the estimator"
            raise ValueError(
                "A study asks about the classes of whole images, but the task of "
                f"{named} is {task!r}, {'with' if self.words else 'without'} classes."
            )
        self.opened = self.explainer.open(self.X, originals=True)
        check_is_picture(self.opened.image_size)
        found = self.explainer.named_methods(self.method)
        own = method_name(self.explainer.method)
        self.methods = {name or own: method for name, method in found.items()}

    @property
    def words(self) -> list[str]:
        """The explainer's names for its classes."""
        return names_of_classes(self.explainer)

    def indices(self, labels: np.ndarray) -> np.ndarray:
        """Return the indices of labels, in their shape."""
        found = self.explainer.as_target(labels, len(labels)).indices
        assert found is not None  # as labels always have them
        return found.cpu().reshape(labels.shape).numpy()

    def predicted(self) -> np.ndarray:
        """Return the index of the class that is predicted for each image."""
        explainer = self.explainer
        decided = [
            explainer.decide(explainer.output_of(batch.inputs)).cpu()
            for batch in self.opened.batches()
        ]
        return torch.cat(decided).numpy()

    def pictures(self, rows: Sequence[int], labels: np.ndarray, look: Look) -> dict[str, list[str]]:
        """Return the pictures of some images' maps, each for one label, by method."""
        explainer, methods = self.explainer, [*self.methods.values()]
        part = self.opened.subset(rows)
        target = explainer.as_target(labels, len(rows))
        for name, method in self.methods.items():
            shape = explainer.map_shape(part, target, method)
            if len(shape) != 2:
                raise ValueError(
                    f"A study shows one map (height, width) per image; one by {name!r} is of shape "
                    f"{shape}."
                )
        made: dict[str, list[str]] = {name: [] for name in self.methods}
        for explained in explainer.iter_explained(part, target, methods=methods):
            originals = explained.batch.originals
            assert originals is not None  # they were asked for when X was opened
            for uris, maps in zip(made.values(), explained.maps, strict=True):
                pairs = zip(originals, maps, strict=True)
                uris += [look.uri(image, map_, explainer.adapter.resize) for image, map_ in pairs]
        return made


# Which class is shown?


def class_questions(
    models: Sequence[Model],
    y: Any,
    pairs: ArrayLike | None,
    words: Mapping[str, str] | None,
    n_questions: int | None,
    look: Look,
    generator: np.random.RandomState,
) -> list[Question]:
    """Ask which of two classes a map explains, for maps by all models and methods.

    References
    ----------
    Selvaraju et al., "Grad-CAM", IJCV 2020, section 5.1.
    """
    first = models[0]
    rows, labels = _two_each(first, y, pairs)
    places = first.indices(labels)
    spoken = _spoken(first.words, words)
    twins = [i for i, (one, two) in enumerate(places) if spoken[one] == spoken[two]]
    if twins:
        raise ValueError(
            f"The two classes of image {rows[twins[0]]} are both called "
            f"{spoken[places[twins[0], 0]]!r}, so raters cannot tell them apart. Give two classes "
            "with different names."
        )
    n_kinds = sum(len(model.methods) for model in models)
    n_pairs = _n_each(n_questions, n_kinds, 2 * len(rows), "pairs of an image and a class")
    # One image after another, each with both of its classes, as many as there is room for.
    turns = generator.permutation(len(rows))
    sides = generator.randint(2, size=len(rows))
    chosen = [(int(i), int(sides[i] ^ side)) for i in turns for side in (0, 1)][:n_pairs]
    at, side = (np.array(part) for part in zip(*chosen, strict=True))
    questions = []
    for model in models:
        made = model.pictures([int(rows[i]) for i in at], labels[at, side], look)
        for method, uris in made.items():
            truths = _halves(n_pairs, generator)
            for i, of, truth, uri in zip(at, side, truths, uris, strict=True):
                options = [spoken[place] for place in places[i]]
                shown = {"images": [uri], "asked": _ASKED[look.show]}
                secret = {
                    "image": int(rows[i]),
                    "class": options[of],
                    "truth": int(truth),
                    "options": options if of == truth else options[::-1],
                    "model": model.name,
                    "method": method,
                }
                questions.append(Question(shown | {"options": secret["options"]}, secret))
    return questions


_ASKED: dict[Show, str] = {
    "overlay": "Which of the two do the bright colours point out?",
    "map": "Which of the two does the picture show?",
}


def _two_each(model: Model, y: Any, pairs: ArrayLike | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the images to ask about, and the two labels of each, (n, 2)."""
    n_images = len(model.opened)
    if pairs is not None:
        if y is not None:
            raise ValueError("y and pairs= both say what images show. Give only one of them.")
        labels = np.asarray(pairs)
        if labels.shape == (2,):
            labels = np.tile(labels, (n_images, 1))
        if labels.shape != (n_images, 2):
            raise ValueError(
                "pairs must be two labels, or a pair for each image, of shape "
                f"({n_images}, 2); got shape {labels.shape}."
            )
        return np.arange(n_images), labels
    y = dataset_labels(model.X) if y is None else y
    kind = None if y is None else kind_of_labels(y)
    if kind not in ("indicator", "label sets"):
        raise ValueError(
            'A study of kind="class" asks which of two classes a map explains. Give pairs=, two '
            "labels for all images or for each, or y with several labels per image, such as "
            f"[{{'cat', 'dog'}}, ...]; got {'no y' if y is None else 'one label for each'}."
        )
    classes = model.explainer.classes_
    assert classes is not None  # which was checked
    known = np.array(model.words) if _are_names(y, model.words, classes) else classes
    table = as_indicator(y, known)
    if len(table) != n_images:
        raise ValueError(f"y has labels for {len(table)} images, but X has {n_images}.")
    rows = np.flatnonzero(table.sum(axis=1) == 2)
    if not len(rows):
        raise ValueError("No image has exactly two labels for raters to choose between.")
    return rows, known[np.nonzero(table[rows])[1].reshape(-1, 2)]


def _are_names(y: Any, words: Sequence[str], classes: np.ndarray) -> bool:
    """Whether label sets hold the names of classes, and not the classes themselves."""
    if kind_of_labels(y) != "label sets":
        return False
    given = {label for row in y for label in row}
    return given <= {*words} and not given <= {*classes.tolist()}


def _spoken(known: Sequence[str], words: Mapping[str, str] | None) -> list[str]:
    """Return the name that each class has on the page."""
    given = {str(name): str(word) for name, word in (words or {}).items()}
    for name in given:
        if name not in known:
            raise ValueError(
                f"class_names has {name!r}, which is not the name of a class. "
                f"{suggestion(name, known)}"
            )
    return [given.get(name, name) for name in known]


# Which of two models is more reliable?


def reliability_questions(
    models: Sequence[Model],
    y: Any,
    words: Mapping[str, str] | None,
    n_questions: int | None,
    look: Look,
    generator: np.random.RandomState,
) -> tuple[list[Question], dict[str, float]]:
    """Ask which of two models seems more reliable, for images that both predict right.

    Returns
    -------
    questions : list of Question
    accuracy : dict of str to float
        The accuracy of each model, over all images.

    References
    ----------
    Selvaraju et al., "Grad-CAM", IJCV 2020, section 5.2.
    """
    one, two = models
    if one.methods.keys() != two.methods.keys():
        raise ValueError(
            f"Both models must be explained by the same methods, but their own are "
            f"{', '.join(one.methods)} and {', '.join(two.methods)}. Name methods with method=."
        )
    truths = [_truth(model, y) for model in models]
    pairs = [*zip(models, truths, strict=True)]
    right = [model.predicted() == model.indices(labels) for model, labels in pairs]
    rows = np.flatnonzero(right[0] & right[1])
    if not len(rows):
        raise ValueError("There is no image whose class both models predict right.")
    n_rows = _n_each(n_questions, len(one.methods), len(rows), "images that both predict right")
    rows = generator.permutation(rows)[:n_rows]
    spoken = _spoken(one.words, words)
    places = one.indices(truths[0][rows])
    made = [model.pictures([*map(int, rows)], labels[rows], look) for model, labels in pairs]
    questions = []
    for method in one.methods:
        flips = _halves(n_rows, generator)
        both = zip(made[0][method], made[1][method], strict=True)
        for row, place, flip, uris in zip(rows, places, flips, both, strict=True):
            word, names, order = spoken[place], (one.name, two.name), (1, 0) if flip else (0, 1)
            asked = f"Both models say “{word}”, and are right. Which of them seems more reliable?"
            secret = {
                "image": int(row),
                "class": word,
                "models": [names[i] for i in order],
                "method": method,
            }
            questions.append(Question({"images": [uris[i] for i in order], "asked": asked}, secret))
    return questions, {
        model.name: float(of.mean()) for model, of in zip(models, right, strict=True)
    }


def _truth(model: Model, y: Any) -> np.ndarray:
    if model.explainer.adapter.task == "multilabel":
        raise ValueError(
            'A study of kind="reliability" needs images with one label, which both models predict '
            f"right, but {model.name!r} predicts several."
        )
    labels = model.explainer.expected_labels(model.X, y, "study.build")
    if len(labels) != len(model.opened):
        raise ValueError(f"y has {len(labels)} labels for {len(model.opened)} images.")
    return labels


# What both have in common


def attention_checks(
    n: int, questions: Sequence[Question], generator: np.random.RandomState
) -> list[Question]:
    """Return questions that say which of the answers of other questions to choose."""
    checks = []
    for i, side in enumerate(_halves(n, generator)):
        like = questions[int(generator.randint(len(questions)))]
        shown: dict[str, Any] = {"asked": "This is a check of your attention"}
        if "options" in like.shown:
            options = like.shown["options"]
            truth, word = int(side), options[side]
            shown["options"] = options
        else:
            ends = (SCALE[0], SCALE[-1]) if i % 2 else (SCALE[1], SCALE[-2])
            truth, word = ends[side]
        shown["note"] = f"There is no picture here. Please choose “{word}”."
        checks.append(Question(shown, {"check": True, "truth": truth}))
    return checks


def _n_each(n_questions: int | None, n_kinds: int, most: int, what: str) -> int:
    """Return how many questions there are for each model and method."""
    if n_questions is None:
        return min(most, max(1, _USUAL // n_kinds))
    if n_questions % n_kinds:
        raise ValueError(
            f"n_questions must be a multiple of {n_kinds}, the number of methods of all models, so "
            f"that each gets equally many questions; got {n_questions}."
        )
    if n_questions > most * n_kinds:
        raise ValueError(
            f"n_questions must be at most {most * n_kinds}, as there are {most} {what}, times the "
            f"number of methods of all models, {n_kinds}; got {n_questions}."
        )
    return n_questions // n_kinds


def _halves(n: int, generator: np.random.RandomState) -> np.ndarray:
    """Return as many 0 as 1, or one more of either, in random order."""
    return generator.permutation((np.arange(n) + generator.randint(2)) % 2)
