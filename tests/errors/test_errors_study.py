"""What studies refuse: of what is asked, and of what raters hand in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from refusals import INPUTS, NAN, NET, Row, classifier, explainer, rows_of, written
from sklearn.exceptions import NotFittedError
from torch import nn

from sklcam import CAMExplainer, EmbeddingCAMExplainer, study
from sklcam.cam import Saliency
from sklcam.study import krippendorff_alpha

PAIRS = [0, 1]


def build(folder: Path, **changes: Any) -> Any:
    options = {"explainers": explainer(), "X": INPUTS, "pairs": PAIRS, "path": folder / "a.html"}
    return study.build(**{**options, **changes})


def compare(folder: Path, **changes: Any) -> Any:
    models = {"old": explainer(), "new": explainer()}
    y = explainer().predict(INPUTS)
    options = {"explainers": models, "X": INPUTS, "y": y, "path": folder / "a.html"}
    return study.build(**{**options, "kind": "reliability", "better": "new", **changes})


def with_method(method: str) -> CAMExplainer:
    return CAMExplainer(NET, method=method, verbose=0).fit(INPUTS)


def of_numbers() -> CAMExplainer:
    return CAMExplainer(NET, task="regression", verbose=0).fit(INPUTS)


def alone() -> EmbeddingCAMExplainer:
    return EmbeddingCAMExplainer(NET, "self", verbose=0).fit(INPUTS)


def of_several() -> CAMExplainer:
    return CAMExplainer(NET, task="multilabel", verbose=0).fit(INPUTS)


def of_volumes() -> CAMExplainer:
    network = nn.Sequential(
        nn.Conv3d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    return CAMExplainer(network, target_layer="1", verbose=0).fit(torch.rand(2, 1, 6, 6, 6))


def wrong(labels: np.ndarray) -> np.ndarray:
    return (labels + 1) % 3


HEAD = {"format": "sklcam-study-answers", "version": 1, "study": "s", "rater": "Ann"}
ANSWERS = {**HEAD, "answers": [{"item": "a", "value": 1}]}
ITEMS = {"a": {"image": 0, "truth": 1, "method": "x"}, "c": {"check": True, "truth": 1}}
KEY = {"format": "sklcam-study-key", "version": 1, "study": "s", "kind": "class"}
KEY |= {"methods": ["x"], "items": ITEMS}


def analyse(answers: Any = ANSWERS, key: Any = KEY, **options: Any) -> study.StudyResult:
    return study.analyse(answers, key, **options)


def of_two(better: str, *models: str) -> Any:
    item = {"image": 0, "method": "x", "models": [*models]}
    return {**KEY, "kind": "reliability", "better": better, "items": {"a": item}}


def answered(*answers: Any) -> Any:
    return analyse([{**ANSWERS, "answers": list(answers)}])


FILES: dict[str, list[Row]] = {
    "build": [
        ("no path", lambda f: build(f, path=None), "study.build needs path="),
        ("a folder", lambda f: build(f, path=f), "is a folder", IsADirectoryError),
        ("nowhere", lambda f: build(f, path=f / "a" / "b"), "no folder", FileNotFoundError),
        ("unfitted", lambda f: build(f, explainers=classifier()), "call fit", NotFittedError),
        ("no one", lambda f: build(f, explainers={}), "explainers is an empty dict"),
        ("None", lambda f: build(f, explainers=None), "estimator must be"),
        ("no images", lambda f: build(f, X=None), "X is None"),
        ("a kind", lambda f: build(f, kind="trust"), 'be "class" or "reliability"; got .trust'),
        ("a look", lambda f: build(f, show="both"), 'show must be "overlay" or "map"; got .both'),
        ("no questions", lambda f: build(f, n_questions=0), "n_questions must be an int >= 1"),
        (
            "not as often",
            lambda f: build(f, method=["gradcam", "saliency"], n_questions=3),
            "n_questions must be a multiple of 2, .*; got 3",
        ),
        ("too many", lambda f: build(f, n_questions=5), "at most 4, as there are 4 pairs of an i"),
        ("checks", lambda f: build(f, attention_checks=-1), "attention_checks must be an int >= 0"),
        ("invisible", lambda f: build(f, alpha=0), "alpha must be a number above 0 to 1; got 0"),
        ("tiny", lambda f: build(f, thumbnail=5), "thumbnail must be an int from 32 to 1024"),
        ("names", lambda f: build(f, names=["a"]), "one entry for each of 2 images; got 1"),
        ("a seed", lambda f: build(f, random_state="a"), "'a' cannot be used to seed"),
        ("a class name", lambda f: build(f, class_names={"4": "cat"}), "class_names has '4', whi"),
        ("twins", lambda f: build(f, class_names={"0": "1"}), "image 0 are both called '1'"),
        ("one class", lambda f: build(f, pairs=[1, 1]), "classes of image 0 are both called '1'"),
        ("unknown", lambda f: build(f, pairs=[1, 9]), r"not seen in fit: \[9\]"),
        ("triples", lambda f: build(f, pairs=[[0, 1, 2]] * 2), r"\(2, 2\); got shape \(2, 3\)"),
        ("both", lambda f: build(f, y=[{0, 1}] * 2), "y and pairs= both say what images show"),
        ("neither", lambda f: build(f, pairs=None), "Give pairs=, two labels .* got no y"),
        ("labels", lambda f: build(f, pairs=None, y=[0, 1]), "got one label for each"),
        ("three", lambda f: build(f, pairs=None, y=[{0}, {0, 1, 2}]), "No image has exactly two"),
        ("a set", lambda f: build(f, pairs=None, y=[{0, 1}]), "labels for 1 images, but X has 2"),
        ("no such set", lambda f: build(f, pairs=None, y=[{0, 9}] * 2), "not seen in fit"),
        ("better", lambda f: build(f, better="new"), 'better= is for kind="reliability"'),
        ("numbers", lambda f: build(f, explainers=of_numbers()), "the task of .* is 'regression'"),
        ("itself", lambda f: build(f, explainers=alone()), "is None, without classes"),
        (
            "volumes",
            lambda f: build(f, explainers=of_volumes(), X=torch.rand(2, 1, 6, 6, 6)),
            "Volumes, .* are not drawn as pictures",
        ),
        (
            "channels",
            lambda f: build(f, method=Saliency(channels="keep")),
            "A study shows one map",
        ),
        ("one model", lambda f: compare(f, explainers=explainer()), "a dict of two, .* got one"),
        ("a third", lambda f: compare(f, explainers=dict.fromkeys("abc", NET)), "two, .* got 3"),
        ("twins", lambda f: compare(f, explainers={1: NET, "1": NET}), r"got \[1, '1'\]"),
        ("no labels", lambda f: compare(f, y=None), "study.build needs y"),
        ("few labels", lambda f: compare(f, y=[0]), "y has 1 labels for 2 images"),
        ("pairs", lambda f: compare(f, pairs=PAIRS), 'pairs= is for kind="class"'),
        ("who", lambda f: compare(f, better="other"), "one of 'old', 'new'; got 'other'"),
        ("a draw", lambda f: compare(f, better=None), "predict 100.0% of the images right, so"),
        (
            "all wrong",
            lambda f: compare(f, y=wrong(explainer().predict(INPUTS))),
            "no image whose class both models predict right",
        ),
        (
            "several labels",
            lambda f: compare(f, explainers={"old": of_several(), "new": of_several()}),
            "'old' predicts several",
        ),
        (
            "two methods",
            lambda f: compare(f, explainers={"old": explainer(), "new": with_method("saliency")}),
            "their own are gradcam and saliency",
        ),
    ],
    "analyse": [
        ("no file", lambda f: analyse(f / "no"), "No such file", FileNotFoundError),
        ("text", lambda f: analyse(written(f, b"abc")), "is not a JSON file"),
        ("bytes", lambda f: analyse(written(f, b"\xff")), "is not a JSON file"),
        ("a list", lambda f: analyse(written(f, b"[]")), "of the format .* got a list"),
        ("nobody", lambda _: analyse([]), "There are no answers"),
        ("None", lambda _: analyse(None), "answers must be files that raters .* got None"),
        ("a number", lambda _: analyse([3]), r"answers\[0\] must be a file or dict .* an int, 3"),
        ("the key", lambda _: analyse([KEY]), "got one of the format 'sklcam-study-key'"),
        ("answers", lambda _: analyse(key=ANSWERS), "the key must .* 'sklcam-study-answers'"),
        ("newer", lambda _: analyse({**ANSWERS, "version": 2}), "version 2 of its format, but"),
        ("a newer key", lambda _: analyse(key={**KEY, "version": 2}), "the key is of version 2"),
        (
            "another",
            lambda _: analyse({**ANSWERS, "study": "t"}),
            "to the study 't', but .* to 's'",
        ),
        ("half a key", lambda _: analyse(key={**KEY, "items": None}), "the key is incomplete"),
        ("no items", lambda _: analyse(key={**KEY, "items": {"a": 3}}), "the key is incomplete"),
        ("no truth", lambda _: analyse(key={**KEY, "items": {"a": {}}}), "the key is incomplete"),
        ("no kind", lambda _: analyse(key={**KEY, "kind": None}), "the key is incomplete"),
        (
            "truth in words",
            lambda _: analyse(key={**KEY, "items": {"a": {**ITEMS["a"], "truth": "1"}}}),
            "the key is incomplete: its question 'a' lacks the truth",
        ),
        ("a method", lambda _: analyse(key={**KEY, "methods": ["y"]}), "its question 'a' lacks"),
        ("a stranger", lambda _: analyse(key=of_two("new", "old", "other")), "question 'a' lacks"),
        ("one model", lambda _: analyse(key=of_two("new", "new")), "its question 'a' lacks"),
        (
            "checks alone",
            lambda _: analyse(key={**KEY, "items": {"c": ITEMS["c"]}}),
            "no questions except checks",
        ),
        ("who", lambda _: analyse(key={**KEY, "kind": "reliability"}), "the key is incomplete"),
        ("no rater", lambda _: analyse({**ANSWERS, "rater": ""}), "must have a rater, which is a"),
        ("twice", lambda _: analyse([ANSWERS, ANSWERS]), r"'Ann' appears twice, in answers\[0\]"),
        ("unknown", lambda _: answered({"item": "b", "value": 1}), "'b', which is not a question"),
        ("no item", lambda _: answered(3), "answers None, which is not a question"),
        ("two values", lambda _: answered(*ANSWERS["answers"] * 2), "question 'a' twice"),
        ("a value", lambda _: answered({"item": "a", "value": 2}), "with 2, .* not one of 0, 1"),
        (
            "true",
            lambda _: answered({"item": "a", "value": True}),
            "with True, which is not one of",
        ),
        (
            "all failed",
            lambda _: answered({"item": "c", "value": 0}),
            "Every rater failed more than max_failed=0 .*: Ann 1",
        ),
        ("no answer", lambda _: answered(), "no answer to a question about a map: Ann saved"),
        ("checks", lambda _: analyse(max_failed=-1), "max_failed must be an int >= 0; got -1"),
        ("resample", lambda _: analyse(resample="all"), 'resample must be "both", .* got .all'),
        ("level", lambda _: analyse(level=1), "level must be a number between 0 and 1; got 1"),
        ("resamples", lambda _: analyse(n_resamples=0), "n_resamples must be an int >= 1; got 0"),
    ],
    "StudyResult": [
        ("no method", lambda _: analyse().difference("x", "y"), "no method 'y' .* There are: x"),
    ],
    "table": [
        ("none", lambda _: study.table(), "table takes one result of each kind; got none"),
        ("two", lambda _: study.table(analyse(), analyse()), "each kind; got class and class"),
        ("a dict", lambda _: study.table({}), "table takes the results of analyse; got a dict"),
        ("a number", lambda _: study.table(analyse(), rho=3), "rho must be a mapping .* an int, 3"),
    ],
    "krippendorff_alpha": [
        ("None", lambda _: krippendorff_alpha(None), "ratings must be a table .* got None"),
        ("a row", lambda _: krippendorff_alpha([1, 2]), "ratings must be a table .* got a list"),
        ("text", lambda _: krippendorff_alpha([["a"]]), "ratings must be a table .* got a list"),
        ("infinite", lambda _: krippendorff_alpha([[np.inf]]), "ratings must be a table"),
        ("a level", lambda _: krippendorff_alpha([[NAN]], "ratio"), "level must be one of nominal"),
    ],
}


@pytest.mark.parametrize(("call", "match", "error"), rows_of(FILES))
def test_refusals_of_studies(call, match, error, tmp_path):
    with pytest.raises(error, match=match):
        call(tmp_path)
    assert not list(tmp_path.glob("a*"))
