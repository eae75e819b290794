"""Refusals of what makes label maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from refusals import INPUTS, NET, Row, X, Y, classifier, explainer, fitted, rows_of
from sklearn.exceptions import NotFittedError
from small_networks import SmallNet

from sklcam import CAMExplainer, CAMSegmenter
from sklcam.segmentation import grab_cut

BYTES = np.zeros((4, 5), np.uint8)
LABELS = np.zeros((4, 5), int)
TRUTHS = np.zeros((12, 8, 8), int)


def segmenter(of=None, **options):
    return CAMSegmenter(fitted() if of is None else of, **options)


def ready(**options):
    return segmenter(**options).fit(X, Y)


def regression():
    return CAMExplainer(SmallNet(1).eval(), task="regression", verbose=0).fit(INPUTS)


def refined(made):
    return ready(refine=lambda image, labels: made).predict(X, Y)


REFUSALS: dict[str, list[Row]] = {
    "CAMSegmenter": [
        *(
            (
                f"{name}={value!r}",
                lambda name=name, value=value: segmenter(**{name: value}).fit(X, Y),
                f"The '{name}' parameter of CAMSegmenter must be",
            )
            for name, value in [
                ("threshold", 1.5),
                ("threshold", "best"),
                ("background", -0.1),
                ("refine", "crf"),
                ("overlap", "larger"),
                ("ignore_label", 256),
                ("ignore_label", -100),
                ("method", 3),
                ("saliency", 3),
            ]
        ),
        ("no estimator", lambda: segmenter(3).fit(X, Y), "estimator must be"),
        ("a method", lambda: segmenter(method="gradcm").fit(X, Y), "Did you mean: gradcam"),
        (
            "auto alone",
            lambda: segmenter(threshold="auto").fit(X, Y),
            "masks are None.* Give both, or neither",
        ),
        ("masks alone", lambda: segmenter().fit(X, Y, masks=TRUTHS), "masks are given.* Give both"),
        ("no labels", lambda: segmenter().fit(X), "y to be passed"),
        ("unknown", lambda: segmenter().fit(X, Y + 5), r"not seen in fit: \[5, 6, 7\]"),
        ("unknown sets", lambda: segmenter().fit(X, [{7}] * 12), r"not seen in fit: \[7\]"),
        ("of no image", lambda: segmenter().fit(X, [set()] * 12), "No image has a label"),
        ("numbers", lambda: segmenter().fit(X, Y + 0.5), "y must be labels of images"),
        ("too few", lambda: segmenter().fit(X, Y[:5]), r"X has 12 image\(s\), but y has 5"),
        ("a regression", lambda: segmenter(regression()).fit(INPUTS, [0, 0]), "'regression'"),
        (
            "more classes than labels",
            lambda: segmenter(ignore_label=3).fit(X, Y),
            "y has 3 classes, but ignore_label=3 leaves only labels under 3",
        ),
        (
            "layers apart",
            lambda: segmenter(
                CAMExplainer(NET, target_layer=["2", "5"], layer_fusion=None, verbose=0)
            ).fit(INPUTS, [0, 1]),
            "CAMSegmenter measures one map|one map per image",
        ),
        (
            "no pictures",
            lambda: segmenter(explainer(), refine="grabcut").fit(INPUTS, [0, 1]),
            "refine needs pictures",
        ),
        ("predict before fit", lambda: segmenter().predict(X), "not fitted yet", NotFittedError),
        (
            "predict_to before fit",
            lambda: segmenter().predict_to(X, "no"),
            "not fitted yet",
            NotFittedError,
        ),
        ("score before fit", lambda: segmenter().score(X, TRUTHS), "not fitted", NotFittedError),
        ("others' labels", lambda: ready().predict(X, Y + 5), "not seen in fit"),
        (
            "columns that were not seen",
            lambda: segmenter().fit(X, Y % 2).predict(X, np.eye(3, dtype=int)[Y]),
            r"y has classes that were not seen in fit; the classes there are \[0, 1\]",
        ),
        ("labels too few", lambda: ready().predict(X, Y[:5]), "but y has 5"),
        ("a file", lambda: ready().predict_to(X, __file__, Y), "exists", FileExistsError),
        ("a float", lambda: refined(0.5), r"refine must return a label map of \(8, 8\)"),
        ("another size", lambda: refined(BYTES), "for image 0 it returned an ndarray"),
        ("label 4", lambda: refined(np.full((8, 8), 4)), "integers from 0 to 3 or 255"),
        ("no masks", lambda: ready().score(X, None), "masks must be label maps.* got None"),
        ("masks too few", lambda: ready().score(X, TRUTHS[:3]), "one for each of 12 images"),
        ("nothing", lambda: ready().score(X, TRUTHS - 1), "No pixel of the masks counts"),
        (
            "nothing to choose by",
            lambda: segmenter(threshold="auto").fit(X, Y, masks=TRUTHS + 255),
            "No pixel of the masks counts: all .* 255, the label to ignore",
        ),
        ("shares", lambda: ready().score(X, TRUTHS / 2), "Mask 0 must be a label map of integers"),
        ("small masks", lambda: ready().score(X, TRUTHS[:, 1:]), r"its image's size \(8, 8\)"),
        ("label 9", lambda: ready().score(X, TRUTHS + 9), "Mask 0 has the label 9.* 1 to 3"),
        (
            "an unfitted one that cannot be fitted",
            lambda: segmenter(classifier(max_epochs=-1)).fit(X, Y),
            "max_epochs",
        ),
    ],
    "grab_cut": [
        ("floats", lambda: grab_cut(BYTES / 2, LABELS), "image must be .* uint8; got .*float64"),
        ("channels first", lambda: grab_cut(np.zeros((3, 4, 5), np.uint8), LABELS), "image must"),
        ("shares", lambda: grab_cut(BYTES, LABELS / 2), "labels must be integers, one for each"),
        ("another size", lambda: grab_cut(BYTES, LABELS[1:]), r"each of \(4, 5\) pixels; got"),
        ("a label -1", lambda: grab_cut(BYTES, LABELS - 1), "from 0 to 255; got -1 to -1"),
        ("a label 256", lambda: grab_cut(BYTES, LABELS + 256), "from 0 to 255; got 256 to 256"),
        ("none", lambda: grab_cut(BYTES, LABELS, n_iterations=0), "n_iterations must be an int"),
        ("None", lambda: grab_cut(None, torch.zeros(4, 5)), "image must be .* got None"),
    ],
}


@pytest.mark.parametrize(("call", "match", "error"), rows_of(REFUSALS))
def test_refusals(call, match, error):
    with pytest.raises(error, match=match):
        call()
