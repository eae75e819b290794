"""What methods, targets, recorded passes and functions of maps refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from refusals import IMAGES, INF, INPUTS, LOGITS, MAPS, NAN, NET, VALUES, Row, explainer, rows_of

from sklcam import CAMExplainer, cam
from sklcam.networks import TargetLayer

PLACES = torch.zeros(2, 2, 4, 4)


def explain_with(target=None, **options):
    return explainer().explain(INPUTS, target, **options)


def recorded_pass(network=NET, layers=(), inputs=INPUTS, **options):
    return cam.RecordedPass(network, layers, inputs, **options)


def pixels():
    network = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Conv2d(1, 2, 1))
    return CAMExplainer(network, target_layer="0", task="segmentation", verbose=0).fit(INPUTS)


def of_options(method: Callable, **wrong: tuple[Any, str]) -> list[Row]:
    """Options that a method refuses before it sees an image."""
    return [
        (f"{name}={value!r}", lambda name=name, value=value: method(**{name: value}).check(), match)
        for name, (value, match) in wrong.items()
    ]


class Attending(torch.nn.Module):
    """Attention of as many queries as there are tokens, which need not be of the same tokens."""

    def __init__(self, attend):
        super().__init__()
        self.patches, self.norm = torch.nn.Conv2d(1, 4, 4, 4), torch.nn.LayerNorm(4)
        self.queries, self.attend = torch.nn.Parameter(torch.rand(1, 1, 16, 4)), attend

    def forward(self, images):
        x = self.norm(self.patches(images).flatten(2).mT)
        return self.attend(self.queries, x[:, None])[:, 0].mean(dim=1)


def attended(method, attend):
    layer = TargetLayer("norm", layout="tokens", grid=(4, 4))
    network = Attending(attend).eval()
    return CAMExplainer(network, method, layer, verbose=0).fit(INPUTS).explain(INPUTS)


def of_attention(method: str) -> list[Row]:
    """Networks that methods of self-attention refuse."""
    attention = torch.nn.functional.scaled_dot_product_attention

    def behind_numpy(queries, x):
        x = x + torch.from_numpy(x.detach().numpy())
        y = torch.from_numpy(x.detach().numpy())
        return x + attention(y, y, y)

    return [
        ("no attention", lambda: explain_with(method=method), "SmallNet has no attention"),
        (
            "learned queries",
            lambda: attended(method, lambda queries, x: attention(queries.expand_as(x), x, x)),
            "is defined for self-attention, .* In Attending some are not, as in cross-attention",
        ),
        (
            "rolled keys",
            lambda: attended(method, lambda _, x: attention(x, x.roll(1, dims=2), x)),
            "is defined for self-attention, .* or moved between query and key. Use another",
        ),
        (
            "NumPy",
            lambda: attended(method, behind_numpy),
            "in Attending some attention has no graph .* by NumPy, .* Remove that",
        ),
    ]


REFUSALS: dict[str, list[Row]] = {
    "get_method": [
        (
            "a slip",
            lambda: cam.get_method("gradcamm"),
            "no method 'gradcamm'. Did you mean: gradcam",
        ),
        ("None", lambda: cam.get_method(None), "must be a name or a method object .* got None"),
        ("a list", lambda: cam.get_method(["cam"]), r"got \['cam'\]"),
        ("a class", lambda: cam.get_method(int), "int is not a method class"),
    ],
    **{
        name: [("as it is", lambda name=name: cam.get_method(getattr(cam, name)), "a base class")]
        for name in ("GradientMethod", "WeightedGradientMethod", "PerturbationMethod", "Method")
    },
    "GradCAM": [
        *of_options(
            cam.GradCAM,
            pooling=("median", 'pooling must be "mean" or "max"; got .median'),
            gradient=("half", 'gradient must be "plain", .* got .half'),
        ),
        ("options", lambda: cam.GradCAM(pooling="x")(VALUES, IMAGES), "pooling must be"),
        (
            "a rule",
            lambda: cam.GradCAM(gradient="guided")(VALUES, IMAGES),
            "changes the backward pass, .* already run",
        ),
        ("no scores", lambda: cam.GradCAM()(None, IMAGES), "scores must be .* got None"),
        ("a leaf", lambda: cam.GradCAM()(VALUES, IMAGES), "activations must be .* with a gradient"),
        (
            "no graph",
            lambda: cam.GradCAM()(VALUES, IMAGES.clone().requires_grad_()),
            "scores have no graph",
        ),
    ],
    "Counterfactual": of_options(
        cam.Counterfactual,
        pooling=("x", "pooling must be"),
        gradient=("absolute", "would equal GradCAM"),
    ),
    "CAM": [
        (
            "a callable",
            lambda: explain_with(lambda o: o[:, 0], method="cam"),
            "CAM explains classes",
        ),
        (
            "another head",
            lambda: CAMExplainer(NET, "cam", target_layer="1").fit(INPUTS).explain(INPUTS),
            "CAM needs a head of global average pooling",
        ),
    ],
    "AttentionRelevance": of_attention("attentionrelevance"),
    "LeGrad": of_attention("legrad"),
    "Rollout": [
        *of_options(
            cam.Rollout,
            fusion=("sum", 'fusion must be "mean", "min" or "max"; got .sum'),
            discard=(1, "discard must be .* got 1"),
        ),
        *of_attention("rollout"),
    ],
    "EigenCAM": of_options(cam.EigenCAM, center=(1, "center must be True or False; got 1")),
    "EigenGradCAM": of_options(cam.EigenGradCAM, center=("no", "center must be .* got .no")),
    "FinerCAM": [
        *of_options(
            cam.FinerCAM,
            gamma=(-1, "gamma must be a finite number >= 0; got -1"),
            n_similar=(0, "n_similar, how many other classes, must be an int >= 1; got 0"),
            weights=("max", 'weights must be "mean" or "probability"; got .max'),
        ),
        (
            "a callable",
            lambda: explain_with(lambda o: o[:, 0], method="finercam"),
            "the target Score has none",
        ),
    ],
    "Finer": [
        ("gamma", lambda: cam.Finer(gamma=INF), "gamma must be a finite number >= 0; got inf"),
        ("a number", lambda: cam.Finer(n_similar=1.5), "n_similar, .* an int >= 1; got 1.5"),
        ("weights", lambda: cam.Finer(weights=None), 'weights must be "mean" .* got None'),
        ("a callable", lambda: cam.Finer(lambda o: o[:, 0]), "Score has none"),
        ("a label", lambda: cam.Finer("cat"), "target must be .* got a str, 'cat'"),
        ("maps", lambda: cam.target_scores(IMAGES, cam.Finer()), "not .n_images, n_c"),
    ],
    "SmoothGradCAMPlusPlus": of_options(
        cam.SmoothGradCAMPlusPlus,
        n_samples=(0, "n_samples must be an int >= 1; got 0"),
        std=(NAN, "std must be a finite number >= 0; got nan"),
        random_state=("a", "'a' cannot be used to seed"),
    ),
    "ScoreCAM": [
        *of_options(cam.ScoreCAM, batch_size=(0, "batch_size must be an int >= 1; got 0")),
        *of_options(cam.ScoreCAM, batch_size=(1.5, "batch_size must be an int >= 1; got 1.5")),
    ],
    "SSCAM": of_options(
        cam.SSCAM,
        n_samples=("5", "n_samples must be an int >= 1; got '5'"),
        std=(-1, "std must be a finite number >= 0; got -1"),
        random_state=(-1, "Seed must be"),
    ),
    "ISCAM": of_options(cam.ISCAM, n_samples=(0, "n_samples must be an int >= 1; got 0")),
    "FasterScoreCAM": of_options(
        cam.FasterScoreCAM,
        n_channels=(0, "n_channels must be an int >= 1; got 0"),
        batch_size=(0, "batch_size must be an int >= 1; got 0"),
    ),
    "GroupCAM": of_options(
        cam.GroupCAM,
        n_groups=(0, "n_groups must be an int >= 1; got 0"),
        percentile=(101, "percentile must be a number from 0 to 100; got 101"),
        batch_size=(0, "batch_size must be an int >= 1; got 0"),
    ),
    "ReciproCAM": of_options(cam.ReciproCAM, batch_size=(None, "batch_size must be an int >= 1")),
    "AblationCAM": of_options(cam.AblationCAM, batch_size=(0, "batch_size must be")),
    "Saliency": of_options(cam.Saliency, channels=("x", 'channels must be "max" or "keep"')),
    "GuidedBackprop": of_options(cam.GuidedBackprop, channels=("x", "channels must be")),
    "Deconvnet": of_options(cam.Deconvnet, channels=("x", "channels must be")),
    "GuidedGradCAM": of_options(cam.GuidedGradCAM, pixel=("x", 'pixel must be "guided" or')),
    "Occlusion": [
        *of_options(
            cam.Occlusion,
            patch=(0, "patch, a number of pixels, must be an int >= 1; got 0"),
            stride=(2.5, "stride, a number of pixels, must be an int >= 1; got 2.5"),
            fill=(INF, "fill must be a finite number; got inf"),
            batch_size=(0, "batch_size must be"),
        ),
        (
            "a patch",
            lambda: explain_with(method=cam.Occlusion(99)),
            "a patch that fits in the image",
        ),
        ("gaps", lambda: explain_with(method=cam.Occlusion(2, 3)), "no longer than the patch"),
    ],
    "RISE": of_options(
        cam.RISE,
        n_samples=(0, "n_samples must be an int >= 1; got 0"),
        cells=(0.5, "cells must be an int >= 1; got 0.5"),
        p=(1, "p must be greater than 0 and less than 1; got 1"),
        batch_size=(0, "batch_size must be"),
        random_state=("a", "'a' cannot be used to seed"),
    ),
    "RandomCAM": of_options(cam.RandomCAM, random_state=("a", "'a' cannot be used to seed")),
    "Positive": [
        ("classes", lambda: explainer().explain(INPUTS, cam.Positive()), "multilabel networks"),
        ("alone", lambda: cam.target_scores(LOGITS, cam.Positive()), "to an explainer"),
    ],
    "Box": [
        ("no corners", lambda: cam.Box([1, 2]), "boxes of Box must be corners .* got a list"),
        ("nothing", lambda: cam.Box(7), "boxes of Box must be corners .* got an int, 7"),
        (
            "no area",
            lambda: cam.Box([[0, 0, 4, 0]]),
            "image 0: .* has no area",
        ),
        (
            "labels",
            lambda: cam.Box([[0, 0, 4, 4]], [1, 2]),
            r"as many labels as boxes .*: \[1\]; got \[1, 1\]",
        ),
        ("labels alone", lambda: cam.Box(labels=[1]), "Give boxes too"),
        ("a threshold", lambda: cam.Box(threshold=2), "threshold must be .* got 2"),
        ("classes", lambda: explain_with(cam.Box()), "Box is for detectors of torchvision"),
        (
            "logits",
            lambda: cam.Box().resolve(LOGITS),
            "needs the output of a detector; got a Tensor",
        ),
        (
            "other images",
            lambda: cam.Box([[0, 0, 4, 4]]).resolve(torch.zeros(2, 1, 6)),
            "boxes for each of 2 images; got boxes for 1",
        ),
        (
            "names",
            lambda: cam.Box([[0, 0, 4, 4]], ["a"]).resolve(torch.zeros(1, 1, 6)),
            "labels are not known here",
        ),
    ],
    "Pixels": [
        ("one pixel", lambda: cam.Pixels(0, True), "mask of Pixels must be .* got a bool, True"),
        ("numbers", lambda: cam.Pixels(0, 255 * MAPS), "must be true or 1 inside .* values from"),
        ("classes", lambda: explain_with(cam.Pixels(0)), "Pixels is for segmentation networks"),
        (
            "rows",
            lambda: cam.Pixels(0).resolve(LOGITS),
            r"whose output has shape .* got a Tensor .* shape \(2, 3\)",
        ),
        (
            "a name",
            lambda: cam.Pixels("cat").resolve(PLACES),
            "holds a class name, but .* not known",
        ),
        ("class 9", lambda: cam.Pixels(9).resolve(PLACES), "indices from 9 to 9"),
        (
            "another size",
            lambda: cam.Pixels(0, MAPS[0] > 0.5).resolve(PLACES),
            r"has size \(12, 12\)\. .* or of the output \(4, 4\)",
        ),
        (
            "other images",
            lambda: cam.Pixels(0, torch.ones(3, 4, 4)).resolve(PLACES),
            "have one mask for all images or one per image; got 3 for 2 images",
        ),
        (
            "other labels",
            lambda: pixels().explain(INPUTS, cam.Pixels([0, 1, 0])),
            "have one label for all images or one per image; got 3 for 2 images",
        ),
        (
            "highest",
            lambda: pixels().explain(INPUTS, cam.TopK(2)),
            "TopK explains an image's highest",
        ),
    ],
    "TopK": [
        ("none", lambda: cam.TopK(0), "k, the number of classes .* an int >= 1; got 0"),
        ("a word", lambda: cam.TopK("a"), "an int >= 1; got 'a'"),
        ("True", lambda: cam.TopK(True), "an int >= 1; got True"),
        ("too many", lambda: cam.target_scores(LOGITS, cam.TopK(9)), "more classes .*: 3"),
    ],
    "Classes": [
        (
            "too few",
            lambda: cam.Classes(torch.tensor([1])).resolve(LOGITS),
            r"one class, .* per image; got shape \(1,\) for 2 images",
        ),
        ("class 9", lambda: cam.Classes(torch.tensor([0, 9])).resolve(LOGITS), "from 0 to 9"),
        ("maps", lambda: cam.Classes(torch.tensor([0, 1])).resolve(IMAGES), "not .n_images, n_c"),
    ],
    "Directions": [
        (
            "too short",
            lambda: cam.Directions(torch.rand(2, 4)).resolve(LOGITS),
            r"Directions must have .* output of shape \(2, 3\); got shape \(2, 4\)",
        ),
    ],
    "target_scores": [
        ("no output", lambda: cam.target_scores(None), "output must be a Tensor; got None"),
        ("maps", lambda: cam.target_scores(IMAGES), r"shape \(2, 1, 12, 12\), not \(n_images, n_c"),
        ("a label", lambda: cam.target_scores(LOGITS, "cat"), "target must be .* got a str, 'cat'"),
        ("a list", lambda: cam.target_scores(LOGITS, [0, 1]), "target must be .* got a list"),
        ("bools", lambda: cam.target_scores(LOGITS, VALUES > 0.5), "target must be .*torch.bool"),
        ("few", lambda: cam.target_scores(LOGITS, torch.tensor([0])), r"shape \(1,\) for 2 images"),
        (
            "class 9",
            lambda: cam.target_scores(LOGITS, torch.tensor([0, 9])),
            "from 0 to 9, but the network has 3",
        ),
        (
            "class -1",
            lambda: cam.target_scores(LOGITS, torch.tensor([-1, 0])),
            "from -1 to 0, but ",
        ),
        (
            "directions",
            lambda: cam.target_scores(LOGITS, torch.rand(2, 4)),
            r"an output of shape \(2, 3\)",
        ),
        ("numbers", lambda: cam.target_scores(LOGITS, lambda o: [1, 2]), "it returned .*list"),
    ],
    "RecordedPass": [
        ("no network", lambda: recorded_pass(None), "network must be an nn.Module; got None"),
        (
            "a name",
            lambda: recorded_pass(layers=["5"]),
            "layers must be TargetLayers; got a str, '5'",
        ),
        ("no inputs", lambda: recorded_pass(inputs=None), "must be a Tensor of shape .* got None"),
        (
            "arrays",
            lambda: recorded_pass(inputs=INPUTS.numpy()),
            "must be a Tensor .* got an ndarray",
        ),
        (
            "one image",
            lambda: recorded_pass(inputs=INPUTS[0]),
            r"must be a Tensor .* \(1, 16, 16\)",
        ),
        ("empty", lambda: recorded_pass(inputs=INPUTS[:0]), r"got .* shape \(0, 1, 16, 16\)"),
        (
            "no name",
            lambda: recorded_pass(inputs={"a": INPUTS}),
            r"SmallNet does not take inputs with the names \['a'\]",
        ),
        ("a graph", lambda: recorded_pass(graph="tail"), 'graph must be "head", .* got .tail'),
    ],
    "min_max": [
        ("None", lambda: cam.min_max(None), r"maps must be .* \(\.\.\., height, width\); got None"),
        ("an array", lambda: cam.min_max(MAPS.numpy()), "maps must be .* got an ndarray"),
        ("a row", lambda: cam.min_max(VALUES), r"maps must be .* shape \(2,\)"),
        ("integers", lambda: cam.min_max(MAPS.long()), "maps must be .*int64"),
    ],
    "upsample": [
        ("None", lambda: cam.upsample(None, (2, 2)), "maps must be .* got None"),
        ("a row", lambda: cam.upsample(VALUES, (2, 2)), r"maps must be .* shape \(2,\)"),
        ("no pixels", lambda: cam.upsample(MAPS[:, :0], (2, 2)), r"maps must be .* \(2, 0, 12\)"),
        ("no size", lambda: cam.upsample(MAPS, (0, 3)), r"size must be .* got \(0, 3\)"),
        ("half pixels", lambda: cam.upsample(MAPS, (2.5, 3)), r"size must be .* got \(2.5, 3\)"),
    ],
}


@pytest.mark.parametrize(("call", "match", "error"), rows_of(REFUSALS))
def test_refusals(call, match, error):
    with pytest.raises(error, match=match):
        call()
