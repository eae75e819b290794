"""What the namers of channels refuse, and factors and clusters of what a layer sees."""

from __future__ import annotations

from copy import deepcopy
from functools import cache

import numpy as np
import pytest
import torch
from refusals import IMAGES, INPUTS, NAN, NET, X, Y, explainer, of_parameters, rows_of
from sklearn.cluster import KMeans
from sklearn.exceptions import NotFittedError
from torch import nn

from sklcam import CAMExplainer, ConceptNamer
from sklcam.concepts import ConceptMaps, Shortcut, Shortcuts, TextConceptNamer, find_shortcuts
from sklcam.plotting import ConceptCropsDisplay, ConceptMapsDisplay, ShortcutsDisplay

MASKS = np.zeros((2, 16, 16), bool)
MASKS[:, :8] = True
BOXES = [np.array([[0, 0, 8, 8]])] * 2
BEYOND = Shortcut("cat", np.array([99]), 1.0, np.eye(2), np.eye(4) > 0, 1.0, 1.0, 1.0, 1.0)
VOLUMES = torch.rand(2, 1, 4, 4, 4)


def means(crops):
    return np.array([np.asarray(crop).mean((0, 1)) for crop in crops])


def texts(prompts):
    return np.eye(3)[: len(prompts)]


@cache
def of_volumes():
    network = nn.Sequential(nn.Conv3d(1, 2, 1), nn.AdaptiveAvgPool3d(1), nn.Flatten())
    return CAMExplainer(network, target_layer="0", verbose=0).fit(VOLUMES)


@cache
def of_two_layers():
    return CAMExplainer(NET, target_layer=["2", "5"], verbose=0).fit(INPUTS)


@cache
def of_another_layer():
    return CAMExplainer(NET, target_layer="2", verbose=0).fit(INPUTS)


@cache
def of_other_weights():
    network = deepcopy(NET)
    next(network.parameters()).data.flatten()[-1] += 1e-6
    return CAMExplainer(network, verbose=0).fit(INPUTS)


@cache
def namer():
    return ConceptNamer(0.0).fit(explainer(), INPUTS, {"top": MASKS})


@cache
def of_pixels():
    network = nn.Sequential(nn.Conv2d(1, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network[0].weight.data.fill_(1), network[0].bias.data.fill_(0)
    return CAMExplainer(network, target_layer="0", verbose=0).fit(INPUTS)


class Poles(nn.Conv2d):
    """1 / x at each place, which is infinite at 0."""

    def forward(self, x):
        return 1 / super().forward(x)


@cache
def of_poles():
    network = nn.Sequential(Poles(1, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network[0].bias.data.fill_(0)
    return CAMExplainer(network, target_layer="0", verbose=0).fit(INPUTS)


@cache
def of_numbers():
    return CAMExplainer(NET, task="regression", verbose=0).fit(INPUTS)


@cache
def concepts():
    return ConceptMaps(1, random_state=0).fit(explainer(), INPUTS)


def name(masks=None, boxes=None, images=INPUTS, of=explainer):
    return ConceptNamer().fit(of(), images, masks, boxes_by_concept=boxes)


def of_texts(encoder=(means, texts), prompts=("a", "b"), images=INPUTS, of=explainer):
    return TextConceptNamer(encoder, list(prompts)).fit(of(), images)


REFUSALS = {
    "ConceptNamer": [
        *of_parameters(
            lambda **options: ConceptNamer(**options).set_params(),
            threshold=[-0.1, 1, "a"],
            n_crops=[0, "a"],
        ),
        ("no explainer", lambda: ConceptNamer().fit("resnet18", INPUTS), "estimator must be a "),
        ("no images", lambda: name(images=None), "X is None"),
        ("volumes", lambda: name(of=of_volumes, images=VOLUMES), "volumes .* only for pictures"),
        ("two layers", lambda: name(of=of_two_layers), "needs a single target layer, but .* 2, 5"),
        ("both", lambda: name({"top": MASKS}, {"top": BOXES}), "boxes_by_concept are both given"),
        ("nothing", lambda: name({}), "masks_by_concept names no concept"),
        ("masks alone", lambda: name(MASKS), r"for each image; masks_by_concept\[0\] is an"),
        ("one mask", lambda: name({"top": MASKS[:1]}), r"masks_by_concept\['top'\] has 1 entries"),
        ("a number", lambda: name({"top": 3}), r"\['top'\] must have an entry for each of 2"),
        ("images too few", lambda: name([{"top": MASKS[0]}]), "masks_by_concept has 1 entries for"),
        (
            "another size",
            lambda: name({"top": MASKS[:, :4]}),
            r"masks_by_concept\['top'\]\[0\] is of shape \(4, 16\), but its image has 16 x 16",
        ),
        ("out of range", lambda: name({"top": MASKS + 1.5}), r"\['top'\]\[0\]: A mask must be"),
        ("no box", lambda: name(None, {"top": [[1, 2, 3]] * 2}), r"\['top'\]\[0\]: The boxes of"),
        ("turned", lambda: name(None, [{"top": [[8, 8, 0, 0]]}] * 2), r"\[0\]\['top'\]: A box is"),
        ("nowhere", lambda: name({"top": MASKS & False}), "'top' is in none of the images"),
        ("everywhere", lambda: name({"top": MASKS | True}), "'top' fills each of the images"),
        ("unfitted", lambda: ConceptNamer().score(explainer(), INPUTS, {}), "fitt", NotFittedError),
        ("no names", lambda: name().score(explainer(), INPUTS, {"top": MASKS}), "No channel has a"),
        (
            "other concepts",
            lambda: namer().score(explainer(), INPUTS, {"bottom": MASKS}),
            "Channels are named 'top', but no masks or boxes of it are given",
        ),
        (
            "another layer",
            lambda: namer().explain(of_another_layer(), INPUTS),
            "channels of the layer '5', but the explainer looks at '2'",
        ),
        (
            "other weights",
            lambda: namer().explain(of_other_weights(), INPUTS, k=1),
            "network with other weights .* Fit the namer to this explainer",
        ),
        ("no channel", lambda: namer().crops(explainer(), INPUTS, 8), "channel must .* 0 to 7"),
        ("no crop", lambda: namer().crops(explainer(), INPUTS, 0, 3), "k, .* from 1 to 2; got 3"),
        (
            "fewer images",
            lambda: namer().crops(explainer(), INPUTS[:1], 0, 2),
            "images in fit include number 1, but X has only 1",
        ),
        ("k", lambda: namer().explain(explainer(), INPUTS, k=9), "k, .* from 1 to 8; got 9"),
        (
            "a weight",
            lambda: namer().explain(explainer(), INPUTS, weigh="alpha"),
            r"weigh must be one of \('importance', 'contribution'\); got 'alpha'",
        ),
        (
            "two classes an image",
            lambda: namer().explain(explainer(), INPUTS, [[0, 1]] * 2),
            "one class per image",
        ),
        (
            "no namer",
            lambda: explainer().explain_in_words(INPUTS, "names"),
            "namer must be a fitted ConceptNamer or TextConceptNamer; got",
        ),
    ],
    "TextConceptNamer": [
        ("no encoder", lambda: of_texts("clip"), "'encoder' parameter .* must be"),
        ("one function", lambda: of_texts((means,)), "one of images and one of texts; got"),
        ("no prompts", lambda: of_texts(prompts=()), "prompts must be a list of strings; got"),
        ("numbers", lambda: of_texts(prompts=(1, 2)), "prompts must be a list of strings; got"),
        (
            "a threshold",
            lambda: TextConceptNamer((means, texts), ["a"], 2.0).fit(explainer(), INPUTS),
            "'threshold' parameter .* must be",
        ),
        (
            "one text of two",
            lambda: of_texts((means, lambda prompts: texts("a"))),
            r"embeddings of texts must be numbers of shape \(2, dim\)",
        ),
        ("zeros", lambda: of_texts((means, lambda _: np.zeros((2, 3)))), "of texts are zero or"),
        (
            "NaN",
            lambda: of_texts((lambda crops: means(crops) * NAN, texts)),
            "embeddings of images are zero or not finite",
        ),
        (
            "widths",
            lambda: of_texts((lambda crops: means(crops)[:, :2], texts)),
            "of images have 2 numbers, but its embeddings of texts have 3",
        ),
        ("unfitted", lambda: TextConceptNamer((means, texts)).score(NET, X), "", NotFittedError),
    ],
    "ConceptMaps": [
        *of_parameters(
            ConceptMaps, n_concepts=[0, "a"], max_cells=[0], max_iter=[0], random_state=["a"]
        ),
        ("no explainer", lambda: ConceptMaps().fit("resnet18", INPUTS), "estimator must be a "),
        ("volumes", lambda: ConceptMaps().fit(of_volumes(), VOLUMES), "X holds volumes"),
        ("two layers", lambda: ConceptMaps().fit(of_two_layers(), INPUTS), "single target layer"),
        ("too many", lambda: ConceptMaps(9).fit(explainer(), INPUTS), "n_concepts=9 must be at mo"),
        ("few cells", lambda: ConceptMaps(4, max_cells=3).fit(explainer(), INPUTS), "3 cells of 8"),
        ("zeros", lambda: ConceptMaps(1).fit(of_pixels(), -INPUTS), "No activation is over 0"),
        ("infinite", lambda: ConceptMaps(1).fit(of_poles(), 0 * INPUTS), "are NaN or infinite"),
        (
            "unfitted",
            lambda: ConceptMaps().transform(explainer(), INPUTS),
            "not fitted",
            NotFittedError,
        ),
        ("a frame", lambda: concepts().transform(explainer(), X, frame="image"), "frame must be "),
        (
            "another layer",
            lambda: concepts().transform(of_another_layer(), INPUTS),
            "belong to the layer '5', but the explainer looks at '2'",
        ),
        (
            "other weights",
            lambda: concepts().transform(of_other_weights(), INPUTS),
            "network with other weights .* Fit them to this explainer",
        ),
    ],
    "find_shortcuts": [
        ("no estimator", lambda: find_shortcuts("resnet18", X, Y), "estimator must be a "),
        ("unfitted", lambda: find_shortcuts(CAMExplainer(NET), X, Y), "not fitt", NotFittedError),
        ("no labels", lambda: find_shortcuts(explainer(), INPUTS), "find_shortcuts"),
        ("labels too few", lambda: find_shortcuts(explainer(), INPUTS, [0]), "y has 1 label"),
        ("unknown label", lambda: find_shortcuts(explainer(), INPUTS, [0, 9]), r"\[9\]"),
        ("volumes", lambda: find_shortcuts(of_volumes(), VOLUMES, [0, 1]), "X holds volumes"),
        ("a regression", lambda: find_shortcuts(of_numbers(), INPUTS, [0, 1]), "is 'regression'"),
        *(
            (f"{name}={value!r}", lambda o={name: value}: find_shortcuts(NET, X, Y, **o), match)
            for name, value, match in (
                ("cover", "black", "cover must be one of"),
                ("hot", 0, "hot, a share of the maximum, must"),
                ("min_size", 1, "min_size must be an int >= 2"),
                ("max_clusters", 0, "max_clusters must be an int >= 1"),
                ("clusterer", 3, "with fit_predict; got"),
                ("clusterer", KMeans, "an object with fit_predict; got"),
            )
        ),
        (
            "maps of pixels",
            lambda: find_shortcuts(explainer(), INPUTS, [0, 1], method="saliency"),
            "makes its maps at the pixels",
        ),
    ],
    "ShortcutsDisplay": [
        (
            "other images",
            lambda: ShortcutsDisplay.from_estimator(explainer(), INPUTS, Shortcuts([BEYOND])),
            r"X has \d+ image\(s\), and clusters have image 99",
        ),
        (
            "a list",
            lambda: ShortcutsDisplay.from_estimator(explainer(), INPUTS, []),
            "shortcuts must be what find_shortcuts returns; got",
        ),
        (
            "nothing",
            lambda: ShortcutsDisplay.from_estimator(explainer(), INPUTS, Shortcuts([])),
            "There is no cluster to draw",
        ),
        (
            "no rows",
            lambda: ShortcutsDisplay.from_estimator(explainer(), INPUTS, Shortcuts([]), n_rows=0),
            "n_rows must be an int >= 1",
        ),
    ],
    "ConceptMapsDisplay": [
        (
            "a namer",
            lambda: ConceptMapsDisplay.from_estimator(explainer(), INPUTS, namer()),
            "concepts must be a fitted ConceptMaps; got",
        ),
        (
            "an option",
            lambda: ConceptMapsDisplay.from_estimator(explainer(), INPUTS, concepts(), colour=1),
            "no option 'colour'",
            TypeError,
        ),
        (
            "names",
            lambda: ConceptMapsDisplay.from_estimator(
                explainer(), INPUTS, concepts(), names=["a", "b"]
            ),
            "2 names for 1 concepts",
        ),
        (
            "three axes",
            lambda: ConceptMapsDisplay(images=[X[0]], maps=X[:1]).plot(),
            r"for 1 images; got \(1, 8, 8\)",
        ),
    ],
    "ConceptCropsDisplay": [
        (
            "concepts",
            lambda: ConceptCropsDisplay.from_estimator(explainer(), INPUTS, concepts(), [0]),
            "namer must be a fitted ConceptNamer or TextConceptNamer; got",
        ),
        (
            "no channels",
            lambda: ConceptCropsDisplay.from_estimator(explainer(), INPUTS, namer(), []),
            "channels is empty",
        ),
        (
            "too many",
            lambda: ConceptCropsDisplay.from_estimator(explainer(), INPUTS, namer(), range(101)),
            "at most 100 rows",
        ),
        ("uneven", lambda: ConceptCropsDisplay(crops=[[X[0]], []]).plot(), r"there are \[0, 1\]"),
        (
            "titles",
            lambda: ConceptCropsDisplay(crops=[[X[0]]], titles=["a", "b"]).plot(),
            "2 titles for 1",
        ),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("call", "match", "error"), rows_of(REFUSALS))
def test_refusals(call, match, error):
    with pytest.raises(error, match=match):
        call()


def test_a_layer_of_one_channel_has_none_to_be_set_off_against():
    network = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
    one = CAMExplainer(network, target_layer="0", verbose=0).fit(IMAGES)
    with pytest.raises(ValueError, match="has only one channel, and no other"):
        of_texts(images=IMAGES, of=lambda: one)
