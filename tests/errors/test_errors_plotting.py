"""What displays refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from refusals import (
    BOX,
    IMAGES,
    INPUTS,
    MAPS,
    NAN,
    NET,
    Row,
    X,
    Y,
    causal,
    classifier,
    embedder,
    fitted,
    rows_of,
)
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from torch import nn

from sklcam import (
    CAMDisplay,
    CAMExplainer,
    CausalCurveDisplay,
    ConsistencyDisplay,
    FailuresDisplay,
    LocalizationDisplay,
    MapGridDisplay,
    RetrievalDisplay,
    SanityCheckDisplay,
    TradeoffBoxDisplay,
    TradeoffDisplay,
    ViewPairDisplay,
    cam,
    metrics,
    show,
)
from sklcam.plotting import CounterfactualDisplay, DetectionDisplay

KEPT, OTHERS = {"ssim": {"m": np.ones((2, 1))}}, {"ssim": {"m": np.zeros(2)}}
SANITY = metrics.SanityCheck("cascading", [("fc",)], KEPT, OTHERS, {}, {})

VOLUMES = torch.rand(2, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0))


def of_task(task):
    return CAMExplainer(NET, task=task, verbose=0).fit(INPUTS)


def of_volumes():
    network = nn.Sequential(nn.Conv3d(1, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten())
    return CAMExplainer(network.eval(), target_layer="1", verbose=0).fit(VOLUMES)


REFUSALS: dict[str, list[Row]] = {
    "CounterfactualDisplay": [
        (
            "several classes",
            lambda: CounterfactualDisplay.from_estimator(fitted(), X, target=cam.TopK(2)),
            "draws one class per image",
        ),
        (
            "a share",
            lambda: CounterfactualDisplay.from_estimator(fitted(), X, share=20),
            "share, of the pixels, must be a number from 0 to 1; got 20",
        ),
        (
            "200",
            lambda: CounterfactualDisplay.from_estimator(fitted(), np.ones((200, 8, 8))),
            "at most 100 row",
        ),
        (
            "one covered",
            lambda: CounterfactualDisplay.from_predictions(X[:2], MAPS, MAPS, X[:1]),
            "1 covered images for 2 images",
        ),
        (
            "one score",
            lambda: CounterfactualDisplay.from_predictions(
                X[:2], MAPS, MAPS, X[:2], scores=[0.5, 0.5]
            ),
            r"two numbers for each of 2 images, before and after; got shape \(2,\)",
        ),
    ],
    "FailuresDisplay": [
        (
            "no labels",
            lambda: FailuresDisplay.from_estimator(fitted(), X),
            "FailuresDisplay needs y: give one label per image",
        ),
        (
            "5 labels",
            lambda: FailuresDisplay.from_estimator(fitted(), X, Y[:5]),
            "one label, one label per image, or .* per image; got shape",
        ),
        (
            "an unknown label",
            lambda: FailuresDisplay.from_estimator(fitted(), X, Y + 7),
            "labels that were not seen",
        ),
        (
            "label sets",
            lambda: FailuresDisplay.from_estimator(fitted(), X, [{0}] * 12),
            "one label per image",
        ),
        (
            "no failure",
            lambda: FailuresDisplay.from_estimator(fitted(), X, fitted().predict(X)),
            "no failure to draw: all 12 images .* not trained on",
        ),
        (
            "no image",
            lambda: FailuresDisplay.from_estimator(fitted(), X, Y, n_images=0),
            "n_images must be an int >= 1",
        ),
        (
            "101 images",
            lambda: FailuresDisplay.from_estimator(fitted(), X, Y, n_images=101),
            "at most 100 rows",
        ),
        (
            "cosines",
            lambda: FailuresDisplay.from_estimator(embedder(), X, Y),
            "EmbeddingCAMExplainer has none: find the rows",
        ),
        (
            "several labels an image",
            lambda: FailuresDisplay.from_estimator(of_task("multilabel"), INPUTS, [[0, 1, 1]] * 2),
            "one label per image; the task here is 'multilabel'",
        ),
        (
            "a regression",
            lambda: FailuresDisplay.from_estimator(of_task("regression"), INPUTS, [[0, 1, 1]] * 2),
            "one label per image; the task here is 'regression'",
        ),
        (
            "signed maps",
            lambda: FailuresDisplay.from_estimator(
                fitted(), X, Y, method=cam.Saliency(channels="keep")
            ),
            "one map per image",
        ),
        (
            "volumes",
            lambda: FailuresDisplay.from_estimator(of_volumes(), VOLUMES, [0, 1]),
            "Volumes, of 4 x 4 x 4 voxels",
        ),
        (
            "three titles",
            lambda: FailuresDisplay.from_predictions(X[:2], MAPS, MAPS, predicted="abc", true="ab"),
            "3 titles for 2 images",
        ),
        (
            "one probability",
            lambda: FailuresDisplay.from_predictions(
                X[:2], MAPS, MAPS, predicted="ab", true="ba", probabilities=[0.5, 0.5]
            ),
            r"of the predicted and of the true class; got shape \(2,\)",
        ),
    ],
    "DetectionDisplay": [
        (
            "a classifier",
            lambda: DetectionDisplay.from_estimator(fitted(), X),
            "for detectors; the task here is 'multiclass'",
        ),
        (
            "no boxes",
            lambda: DetectionDisplay.from_predictions(X[:1], [X[:1]], [[]]),
            r"a map and a box for each .* \[1\] maps and \[0\] boxes",
        ),
    ],
    "show": [
        ("no image", lambda: show(None, fitted()), "show takes one image: a path, .* got None"),
        ("several", lambda: show(["a.png", "b.png"], fitted()), "CAMDisplay draws several"),
        ("a batch", lambda: show(X[..., None], fitted()), "show takes one image, .*draws several"),
        ("a row", lambda: show(X[0, 0], fitted()), r"one image, \(height, width\) or"),
        (
            "grey",
            lambda: show(torch.zeros(8, 8), fitted()),
            r"tensor \(n_channels, height",
        ),
        ("no file", lambda: show("nowhere.png", fitted()), "nowhere.png"),
        ("no model", lambda: show(X[0], None), "estimator must be"),
        ("a name", lambda: show(X[0], "resnet81"), "resnet81"),
        ("no weights", lambda: show(X[0], "efficientnet_lite4"), "efficientnet_lite4"),
        ("unfitted", lambda: show(X[0], classifier()), "call fit first", NotFittedError),
        ("an option", lambda: show(X[0], fitted(), colour="red"), "no option 'colour'", TypeError),
        ("labels", lambda: show(X[0], fitted(), target=[0, 77]), "77"),
        ("a method", lambda: show(X[0], fitted(), method="gradcan"), "gradcam"),
        ("axes", lambda: show(X[0], fitted(), ax=3), "ax must be matplotlib axes"),
    ],
    "CAMDisplay": [
        ("no one", lambda: CAMDisplay.from_estimator(None, X), "estimator must be"),
        ("nobody", lambda: CAMDisplay.from_estimator({}, X), "no estimator to draw"),
        (
            "unfitted",
            lambda: CAMDisplay.from_estimator(classifier(), X),
            "call fit first",
            NotFittedError,
        ),
        ("no images", lambda: CAMDisplay.from_estimator(fitted(), None), "X is None"),
        (
            "200",
            lambda: CAMDisplay.from_estimator(fitted(), np.ones((200, 8, 8))),
            "at most 100 row",
        ),
        ("labels", lambda: CAMDisplay.from_estimator(fitted(), X, Y[:2]), r"12 images; got shape"),
        ("methods", lambda: CAMDisplay.from_estimator(fitted(), X, methods=[]), "no method"),
        (
            "a frame",
            lambda: CAMDisplay.from_estimator(fitted(), X, frame="x"),
            "frame must be one of",
        ),
        (
            "pixels of none",
            lambda: CAMDisplay.from_predictions(X[:2], MAPS, pixelwise=["saliency"]),
            r"pixelwise must be one of \['map'\]",
        ),
        ("len", lambda: CAMDisplay.from_predictions(X, MAPS), "2 maps 'map' for 12 images"),
        ("axes", lambda: CAMDisplay.from_predictions(X[:2], IMAGES), r"shape \(1, 12, 12\)"),
        (
            "twins",
            lambda: CAMDisplay.from_estimator(fitted(), X, methods=["cam"] * 2),
            "share a name",
        ),
        (
            "a kind",
            lambda: CAMDisplay.from_estimator(fitted(), X, kind="heat"),
            r"kind must be one of \['overlay', 'map', 'both'\]; got 'heat'",
        ),
        (
            "alpha",
            lambda: CAMDisplay.from_estimator(fitted(), X, alpha="image"),
            'be "map" or a number',
        ),
        (
            "titles",
            lambda: CAMDisplay.from_predictions(X[:2], MAPS, titles=["a"]),
            "1 titles for 2",
        ),
        ("no maps", lambda: CAMDisplay.from_predictions(X[:2], {}), "nothing to draw"),
    ],
    "ViewPairDisplay": [
        ("no one", lambda: ViewPairDisplay.from_estimator(None, X), "estimator must be"),
        (
            "views",
            lambda: ViewPairDisplay.from_estimator(fitted(), X, views=3),
            "views must be a Vi",
        ),
        (
            "a method",
            lambda: ViewPairDisplay.from_estimator(fitted(), X, method="x"),
            "no method 'x'",
        ),
        (
            "a seed",
            lambda: ViewPairDisplay.from_estimator(fitted(), X, random_state="a"),
            "'a' cann",
        ),
    ],
    "MapGridDisplay": [
        ("maps", lambda: MapGridDisplay.from_predictions(X[0], X), "maps must be a dict of param"),
        ("none", lambda: MapGridDisplay.from_predictions(X[0], {}), "maps is empty"),
        ("no column", lambda: MapGridDisplay.from_predictions(X[0], {"p": {}}), "maps is empty"),
        (
            "no values",
            lambda: MapGridDisplay.from_estimator(classifier(), X, Y, image=X[:1], param_grid={}),
            "param_grid needs a parameter",
        ),
        (
            "two images",
            lambda: MapGridDisplay.from_estimator(
                classifier(), X, Y, image=X[:2], param_grid={"p": [1]}
            ),
            "image must be one image; got 2",
        ),
        (
            "a slip",
            lambda: MapGridDisplay.from_estimator(
                classifier(), X, Y, image=X[:1], param_grid={"p": [1], "alhpa": [1]}
            ),
            "Invalid parameter 'alhpa'",
        ),
    ],
    "ConsistencyDisplay": [
        ("None", lambda: ConsistencyDisplay.from_predictions(None), "one number per image"),
        ("a number", lambda: ConsistencyDisplay.from_predictions(NAN), "one number per image"),
        ("none", lambda: ConsistencyDisplay.from_predictions([]), r"got shape \(0,\)"),
        (
            "a kind",
            lambda: ConsistencyDisplay.from_predictions([0.5], kind="x"),
            "kind must be one o",
        ),
        (
            "bins",
            lambda: ConsistencyDisplay.from_predictions([0.5], bins=0),
            "bins must be an int >=",
        ),
        (
            "axes",
            lambda: ConsistencyDisplay.from_predictions([0.5], ax=3),
            "ax must be matplotlib",
        ),
        (
            "views",
            lambda: ConsistencyDisplay.from_estimator(fitted(), X, views=3),
            "views must be a",
        ),
    ],
    "SanityCheckDisplay": [
        (
            "None",
            lambda: SanityCheckDisplay.from_predictions(None),
            "check must be a SanityCheck; got None",
        ),
        (
            "a likeness",
            lambda: SanityCheckDisplay.from_predictions(SANITY, likeness="hog"),
            r"likeness must be one of \['ssim'\]; got 'hog'",
        ),
    ],
    "CausalCurveDisplay": [
        (
            "None",
            lambda: CausalCurveDisplay.from_predictions(None),
            "must be CausalCurves; got None",
        ),
        (
            "one curve",
            lambda: CausalCurveDisplay.from_predictions(causal(metrics.insertion_curve, n_steps=2)),
            "curves of 'map' must be CausalCurves; got an InsertionCurve",
        ),
        (
            "steps",
            lambda: CausalCurveDisplay.from_estimator(fitted(), X, n_steps=0),
            "n_steps must b",
        ),
        (
            "batch",
            lambda: CausalCurveDisplay.from_estimator(fitted(), X, batch_size=0),
            "batch_size",
        ),
        (
            "score",
            lambda: CausalCurveDisplay.from_estimator(fitted(), X, score=3),
            "score must be a ",
        ),
    ],
    "LocalizationDisplay": [
        (
            "None",
            lambda: LocalizationDisplay.from_estimator(fitted(), X, None),
            "boxes must be .* No",
        ),
        ("few", lambda: LocalizationDisplay.from_estimator(fitted(), X, [BOX]), "1 entries for 12"),
        ("turned", lambda: LocalizationDisplay.from_estimator(fitted(), X[:1], [-BOX]), "x1 < x2"),
        (
            "beyond",
            lambda: LocalizationDisplay.from_estimator(fitted(), X[:1], [BOX], threshold=2),
            "a share of the maximum, must be a number from 0 to 1; got 2",
        ),
        (
            "no columns",
            lambda: LocalizationDisplay.from_estimator(fitted(), X[:1], [BOX], n_columns=0),
            "n_columns must be an int >= 1; got 0",
        ),
        (
            "another size",
            lambda: LocalizationDisplay.from_predictions(X[:1], MAPS[:1], [BOX]),
            r"Map 0 is of \(12, 12\) and its image of \(8, 8\)",
        ),
    ],
    "RetrievalDisplay": [
        (
            "classes",
            lambda: RetrievalDisplay.from_estimator(fitted(), X, X),
            "searches by embeddings",
        ),
        (
            "k",
            lambda: RetrievalDisplay.from_estimator(embedder(), X, X, k=0),
            "k, .* 1 to 12; got 0",
        ),
        (
            "None",
            lambda: RetrievalDisplay.from_predictions(X, X, None),
            "what explain_neighbors ret",
        ),
        (
            "labels",
            lambda: RetrievalDisplay.from_estimator(embedder(), X, X, query_labels=Y[:1]),
            "one label for each of 12 images",
        ),
    ],
    "TradeoffDisplay": [
        ("None", lambda: TradeoffDisplay.from_estimator(None), "not an estimator", TypeError),
        (
            "unfitted",
            lambda: TradeoffDisplay.from_estimator(GridSearchCV(classifier(), {})),
            "is not fitted yet",
            NotFittedError,
        ),
        ("no table", lambda: TradeoffDisplay.from_cv_results(None), "cv_results must be the dict"),
        (
            "empty",
            lambda: TradeoffDisplay.from_cv_results({}),
            "The search has no score 'accuracy'",
        ),
    ],
    "TradeoffBoxDisplay": [
        ("None", lambda: TradeoffBoxDisplay.from_estimator(None, by="p"), "not an est", TypeError),
        (
            "empty",
            lambda: TradeoffBoxDisplay.from_cv_results({}, by="p"),
            "has no score 'accuracy'",
        ),
    ],
}


@pytest.mark.parametrize(("call", "match", "error"), rows_of(REFUSALS))
def test_refusals(call, match, error):
    with pytest.raises(error, match=match):
        call()
