"""Refusals of every public entry: one row each, and the only place where it is tested.

A row holds the case, the call, a pattern of the message, and the error if it is not a ValueError.
Entries refuse before they do any work, which is tested below the tables. Tests of a room have what
only its own files and data can show: content that is damaged, cut off or contradicts itself.
"""

from __future__ import annotations

import errno
import importlib
import inspect
import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVC
from skorch.callbacks import EarlyStopping, LRScheduler
from skorch.dataset import ValidSplit
from small_networks import ImageAndVector, SmallNet, digits
from torch import nn
from torch.utils.data import DataLoader

import sklcam
from sklcam import (
    CAMDisplay,
    CAMExplainer,
    CausalCurveDisplay,
    ConsistencyDisplay,
    ConsistentCAMClassifier,
    EmbeddingCAMExplainer,
    EmbeddingNet,
    LocalizationDisplay,
    MapGridDisplay,
    RetrievalDisplay,
    TradeoffBoxDisplay,
    TradeoffDisplay,
    ViewPairDisplay,
    cam,
    datasets,
    metrics,
)
from sklcam.embeddings import NearestProxies, SinglePoint, TripletCAM
from sklcam.images import (
    ImageDataset,
    Resizing,
    check_images,
    dataset_labels,
    default_statistics,
    map_to_frame,
    n_images,
    normalize,
)
from sklcam.networks import (
    Inputs,
    Preparation,
    Preprocessing,
    Tape,
    TargetLayer,
    adapt,
    blocks_of_trunk,
    build_model,
    check_output,
    construct,
    find_target_layer,
    is_bypassed,
    load_weights,
    record,
    record_trunk,
    stopping_after,
)
from sklcam.persistence import PersistenceError
from sklcam.training import (
    AcceleratedCAMClassifier,
    Balanced,
    CollapseWarning,
    Consistency,
    ConsistentCAMLoss,
    Explanations,
    GradientSizes,
    Sparsity,
    ViewSampler,
    WarmUp,
    Warp,
    consistency_loss,
    signs_of_collapse,
    sparsity_loss,
)

NAN, INF = float("nan"), float("inf")
X, Y = digits(12)
COLOUR = np.repeat(X[..., None], 3, axis=-1)
MAPS = torch.rand(2, 12, 12, generator=torch.Generator().manual_seed(0))
VALUES, MORE = torch.tensor([0.2, 0.9]), torch.tensor([0.1, 0.5, 0.7])
IMAGES = MAPS[:, None]
LOGITS = torch.tensor([[1.0, 3.0, 2.0], [0.0, 1.0, 5.0]])
BOX = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
VIEWS = Warp.identity(2)
SCALAR = torch.tensor(1.0)
NET = SmallNet().eval()
INPUTS = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
OPTIONS: dict[str, Any] = {
    **{"image_size": 16, "max_epochs": 1, "batch_size": 6},
    **{"verbose": 0, "random_state": 0, "device": "cpu"},
}


class SplitFolders(torch.utils.data.Dataset):
    class_to_idx: ClassVar = {"train": 0, "test": 1}

    def __len__(self):
        return 2


def score(images, rows):
    return images.mean(dim=(1, 2, 3))


ENDING_IN_SIGMOID = torch.nn.Sequential(*SmallNet(1), torch.nn.Sigmoid())


def classifier(**options):
    return ConsistentCAMClassifier(**{"module": SmallNet, **OPTIONS, **options})


def embedding_net(**options):
    return EmbeddingNet(**{"module": SmallNet, "embedding_dim": 3, **OPTIONS, **options})


@cache
def fitted():
    return classifier().fit(X, Y)


@cache
def explainer():
    return CAMExplainer(NET, verbose=0).fit(INPUTS)


@cache
def embedder():
    return EmbeddingCAMExplainer(NET, verbose=0, image_size=16).fit(X, Y)


def explain_with(target=None, **options):
    return explainer().explain(INPUTS, target, **options)


def evaluate(metric="sparsity", X=X, y=None, estimator=None, **options):
    return metrics.evaluate(
        fitted() if estimator is None else estimator,
        X, y, metrics=metric, progress=False, **options,
    )  # fmt: skip


def with_params(metric, **options):
    return evaluate(metric, boxes=[BOX] * 12, metric_params={metric: options})


def causal(follow, **changes):
    return follow(**{"score": score, "images": IMAGES, "maps": MAPS, **changes})


def recorded(*layers, network=NET):
    with record(network, *layers) as tape:
        return tape.activations


def trunk_of(network, layer):
    with record_trunk(network, layer) as trunk:
        return trunk


def loss(*maps, cross_entropy=SCALAR, size=None, activations=None, **options):
    warp = VIEWS if len(maps) == 2 else None
    explained = Explanations(*maps, warp=warp, size=size) if maps else None
    return ConsistentCAMLoss(**options)(cross_entropy, explained, activations=activations)


def enter(context):
    with context:
        pass


def recorded_pass(network=NET, layers=(), inputs=INPUTS, **options):
    return cam.RecordedPass(network, layers, inputs, **options)


def evaluation(n=3):
    return metrics.Evaluation(sparsity=np.linspace(0, 1, n))


Row = tuple[Any, ...]  # what came, the call, what the message says, and the error if no ValueError


def of_maps(function: Callable, name: str = "maps") -> list[Row]:
    """What functions of one stack of maps refuse, all alike."""
    wanted = rf"{name} must be a floating-point Tensor of shape \(n_images, height, width\); got "
    return [
        ("None", lambda: function(None), wanted + "None"),
        ("an array", lambda: function(MAPS.numpy()), wanted + "an ndarray of float32"),
        ("one map", lambda: function(MAPS[0]), wanted + r".* shape \(12, 12\)"),
        ("channels", lambda: function(IMAGES), wanted + r".* shape \(2, 1, 12, 12\)"),
        ("integers", lambda: function(MAPS.long()), wanted + ".*int64"),
        ("no pixels", lambda: function(MAPS[:, :0]), wanted + r".* shape \(2, 0, 12\)"),
    ]


def of_pairs(function: Callable, first: str, second: str) -> list[Row]:
    """What functions of two stacks of maps refuse, all alike."""
    wanted = f"{second} must be a floating-point Tensor .* got "
    alike = f"{first} and {second} must be "
    return [
        *of_maps(lambda maps: function(maps, maps), first),
        ("no second", lambda: function(MAPS, None), wanted + "None"),
        ("one to two", lambda: function(MAPS, MAPS[:1]), alike + "of one shape"),
        ("two sizes", lambda: function(MAPS, MAPS[:, 1:]), alike + "of one shape"),
        ("two devices", lambda: function(MAPS, MAPS.to("meta")), alike + "on one device"),
    ]


def of_masks(function: Callable) -> list[Row]:
    """What functions of maps and masks refuse, all alike."""
    return [
        *of_maps(lambda maps: function(maps, MAPS > 0.5)),
        ("no masks", lambda: function(MAPS, None), "a mask of the map's size .* masks of None"),
        ("a mask too few", lambda: function(MAPS, MAPS[:1]), r"masks of \(1, 12, 12\)"),
        ("masks elsewhere", lambda: function(MAPS, MAPS.to("meta")), "on one device; got cpu and"),
    ]


def of_values(function: Callable, *names: str) -> list[Row]:
    """What functions of one value an image refuse, all alike."""
    last = f"{names[-1]} must be a floating-point Tensor of shape \\(n_images,\\); got "
    others = [VALUES] * (len(names) - 1)
    return [
        ("None", lambda: function(*others, None), last + "None"),
        ("a float", lambda: function(*others, 0.5), last + "a float, 0.5"),
        ("a column", lambda: function(*others, VALUES[:, None]), last + r".* shape \(2, 1\)"),
        ("more values", lambda: function(*others, MORE), "must be of one shape; got .*and .3,"),
    ]


def of_curves(follow: Callable) -> list[Row]:
    """What insertion and deletion refuse alike."""
    return [
        *of_scores(follow),
        ("no steps", lambda: causal(follow, n_steps=0), "n_steps, .* from 1 to 144; got 0"),
        ("too many steps", lambda: causal(follow), "n_steps, .* from 1 to 144; got 224"),
        ("half a step", lambda: causal(follow, n_steps=2.5), "n_steps, .* an int .* got 2.5"),
        ("steps as text", lambda: causal(follow, n_steps="4"), "n_steps, .* an int .* got '4'"),
        ("full as a list", lambda: causal(follow, n_steps=4, full=[1]), "full must be .* a list"),
        ("full too long", lambda: causal(follow, n_steps=4, full=MORE), "full must be one .* 2 im"),
    ]


def of_scores(follow: Callable) -> list[Row]:
    """What is refused wherever a score is followed."""
    steps = {} if follow is metrics.road else {"n_steps": 4}

    def call(**changes):
        return causal(follow, **steps, **changes)

    return [
        ("no score", lambda: call(score=None), "score must be a callable .* got None"),
        ("a float scored", lambda: call(score=lambda *_: 0.5), "one number for each of . images.*"),
        ("columns scored", lambda: call(score=lambda i, r: i[:, 0, 0]), r"score must return a Ten"),
        ("no images", lambda: call(images=None), "images must be .* got None"),
        ("arrays", lambda: call(images=IMAGES.numpy()), "images must be .* got an ndarray"),
        ("grey images", lambda: call(images=MAPS), r"images must be .* got .* \(2, 12, 12\)"),
        ("empty", lambda: call(images=IMAGES[:0], maps=MAPS[:0]), "images is empty"),
        ("no maps", lambda: call(maps=None), "maps must be .* got None"),
        ("maps with channels", lambda: call(maps=IMAGES), r"maps must be .* \(2, 1, 12, 12\)"),
        ("smaller maps", lambda: call(maps=MAPS[:, 2:]), r"maps must be of shape .*\(2, 10, 12\)"),
        ("maps elsewhere", lambda: call(maps=MAPS.to("meta")), "maps are on meta, and images on"),
        ("no batch", lambda: call(batch_size=0), "batch_size must be an int >= 1; got 0"),
        ("a batch as text", lambda: call(batch_size="8"), "batch_size must be an int .* got '8'"),
    ]


def of_options(method: Callable, **wrong: tuple[Any, str]) -> list[Row]:
    """Options that a method refuses before it sees an image."""
    return [
        (f"{name}={value!r}", lambda name=name, value=value: method(**{name: value}).check(), match)
        for name, (value, match) in wrong.items()
    ]


def of_parameters(make: Callable, **wrong: Any) -> list[Row]:
    """Parameters that estimators refuse in fit, by scikit-learn's own check."""
    return [
        (
            f"{name}={value!r}",
            lambda name=name, value=value: make(**{name: value}).fit(X, Y),
            f"The '{name}' parameter of .* must be .* Got {re.escape(repr(value))} instead",
        )
        for name, values in wrong.items()
        for value in values
    ]


def of_training(make: Callable) -> list[Row]:
    """Images, labels and parameters that both nets refuse in fit."""
    return [
        *of_parameters(
            make,
            module=[None, 3, [1]], weights=[3], target_layer=[None, 3], augment=["x", 3],
            resize=["crop"], mean=["x", None], random_state=["a", -1], lr=[-1, "a", NAN],
            max_epochs=[-1, 1.5], batch_size=[0, -2, "a", None], optimizer=["SGD", None],
            criterion=[3], train_split=[0.2], callbacks=[3], image_size=[0, -1, 1.5, "a"],
        ),
        ("unknown network", lambda: make(module="resnet81").fit(X, Y), "Did you mean: resnet18"),
        ("no network", lambda: make(module=int).fit(X, Y), "module must return an nn.Module"),
        ("unknown layer", lambda: make(target_layer="44").fit(X, Y), "has no layer '44'"),
        ("no weights", lambda: make(weights="nope").fit(X, Y), "weights='nope' is not a file"),
        ("three sides", lambda: make(image_size=(1, 2, 3)).fit(X, Y), r"image_size must be .*3\)"),
        ("a side of True", lambda: make(image_size=True).fit(X, Y), "image_size must be .* True"),
        ("two means", lambda: make(mean=(1, 2)).fit(X, Y), "mean has 2 values, .* 1 channel"),
        ("mean NaN", lambda: make(mean=[NAN]).fit(X, Y), "mean must be finite; got .*nan"),
        ("std 0", lambda: make(std=0).fit(X, Y), "std must be finite and positive; got .*0"),
        ("mean 124", lambda: make(mean=123.7).fit(X, Y), "from 0 to 255, .* divide it by 255"),
        ("std 58", lambda: make(std=[58.4]).fit(X, Y), "from 0 to 255, .* divide it by 255"),
        ("no such device", lambda: make(device="gpu").fit(X, Y), "device must be .* got 'gpu'"),
        ("meta device", lambda: make(device="meta").fit(X, Y), "meta.* holds no values"),
        ("unknown option", lambda: make(alhpa=1).fit(X, Y), "has no parameter 'alhpa'"),
        ("no underscores", lambda: make(optimizer_lr=1).fit(X, Y), "mean optimizer__lr"),
        ("no labels", lambda: make().fit(X), "y to be passed, but the target y is None"),
        ("labels too few", lambda: make().fit(X, Y[:5]), r"X has 12 image\(s\), but y has 5"),
        (
            "a table of labels",
            lambda: make().fit(X, np.full((12, 2), 3)),
            "y should be a 1d array|y holds numbers",
        ),
        ("labels as numbers", lambda: make().fit(X, Y + 0.5), "Unknown label type: continuous"),
        ("labels NaN", lambda: make().fit(X, np.full(12, NAN)), "y contains NaN"),
        ("one class", lambda: make().fit(X, Y * 0), "at least two classes; got one class"),
        ("no images", lambda: make().fit(None, Y), "X is None. X may be a uint8 array"),
        ("a table", lambda: make().fit(X.reshape(12, -1), Y), "tables are not images"),
        ("five axes", lambda: make().fit(X[None, None], Y), "X is 5-dimensional"),
        ("empty", lambda: make().fit(X[:0], Y[:0]), "X is empty"),
        ("NaN", lambda: make().fit(X * NAN, Y), r"X\[0\] has pixels that are NaN"),
        ("0 to 255", lambda: make().fit(X * 255, Y), "range from 0 to 255.* divide by 255"),
        ("integers", lambda: make().fit((X * 16).astype(int), Y), "X has dtype int64"),
        ("a list of arrays", lambda: make().fit(list(X), Y), r"pass np.stack\(X\) instead"),
        ("one path", lambda: make().fit("a.png", Y), r"wrap it in a list, X=\[path\]"),
        ("missing files", lambda: make().fit(["no.png"] * 12, Y), "12 of the 12 file"),
        ("a dict", lambda: make().fit({"a": 1}, Y), "X is a dict"),
        ("a generator", lambda: make().fit((i for i in X), Y), r"pass list\(X\)"),
        ("meta", lambda: make().fit(torch.empty(12, 1, 8, 8, device="meta"), Y), "meta device"),
        ("set_params", lambda: make().set_params(nope=1), "Invalid parameter 'nope'"),
    ]  # fmt: skip


def of_unfitted(make: Callable, *names: str) -> list[Row]:
    """Methods that need a fitted estimator."""
    return [
        (
            f"{name} before fit",
            lambda name=name: getattr(make(), name)(X, *([Y] if name == "score" else [])),
            "call fit first|not fitted yet",
            NotFittedError,
        )
        for name in names
    ]


EXPLAINS = (
    *("predict", "predict_proba", "score", "explain", "iter_explain", "iter_inputs"),
    *("channel_weights", "strongest_channels"),
)


def of_explaining(make: Callable, images: Any) -> list[Row]:
    """What explain and its kin refuse of all explainers."""

    def explain(target=None, **options):
        return make().explain(images, target, **options)

    n = len(images)
    shape = rf"\({n}, 16, 16\)"
    return [
        ("no images", lambda: make().explain(None), "X is None"),
        ("a table", lambda: make().explain(X.reshape(12, -1)), "tables are not images"),
        ("five axes", lambda: make().explain(INPUTS[None]), r"2, 1, 16, 16\)"),
        ("empty", lambda: make().explain(images[:0]), "X is empty"),
        ("NaN", lambda: make().explain(images * NAN), "NaN or infinite"),
        ("meta", lambda: make().explain(INPUTS.to("meta")), "meta device"),
        ("unknown class", lambda: explain(99), r"not seen in fit: \[99\]; the classes are \[0, 1"),
        ("unknown name", lambda: explain("cat"), r"not seen in fit: \['cat'\]"),
        ("one label of many", lambda: explain([0]), rf"got shape \(1,\) for {n} images"),
        ("no label", lambda: explain([]), r"got shape \(0,\)"),
        ("a row of all", lambda: explain([[0] * (n + 1)]), f"for {n} images"),
        ("rows of none", lambda: explain(np.zeros((n, 0), int)), "one row of several"),
        ("a dict", lambda: explain({}), r"neither numbers nor strings: \[{}|a dict of \[\]"),
        ("an object", lambda: explain(object()), "neither numbers nor strings"),
        ("Nones", lambda: explain([None] * n), "neither numbers nor strings"),
        ("ragged rows", lambda: explain([[0], [0, 1]]), "target must be labels, as many for each"),
        ("TopK of many", lambda: explain(cam.TopK(9)), r"TopK\(9\) asks for more classes .*: 3"),
        ("a callable's rows", lambda: explain(lambda o: o), "one score per image, of shape"),
        ("a callable's sum", lambda: explain(lambda o: o.sum()), "one score per image"),
        ("detached", lambda: explain(lambda o: o.detach()[:, 0]), "without detach"),
        ("unknown method", lambda: explain(method="gradcm"), "Did you mean: gradcam"),
        ("no method", lambda: explain(method=3), "method must be a name or a method object"),
        ("an abstract one", lambda: explain(method=cam.Method), "a base class for methods"),
        ("unknown frame", lambda: explain(frame="x"), 'frame must be "input" or "image"; got .x'),
        ("out a list", lambda: explain(out=[]), f"out must be .* {shape}; got .*list"),
        ("out too small", lambda: explain(out=np.zeros((1, 2, 3))), rf"{shape}; got .*\(1, 2, 3\)"),
        ("out of ints", lambda: explain(out=np.zeros((n, 16, 16), int)), "out must be .* int64"),
        ("out of images", lambda: explain(frame="image", out=np.zeros(3)), "out= takes maps of on"),
        ("lazily, too", lambda: make().iter_explain(images, 99), "not seen in fit"),
        ("streams", lambda: make().iter_explain(iter(images), [1]), "be the same for all of"),
        ("a stream", lambda: make().explain(iter(images)), "no indices.* iter_explain of an"),
        ("a loader", lambda: make().explain(DataLoader(images)), "X.dataset; iter_explain of an"),
        ("a table", lambda: make().explain(pd.DataFrame({"a": [], "b": []})), "columns 'a', 'b'"),
        ("no channel", lambda: make().strongest_channels(images, k=0), "k, .* int >= 1; got 0"),
        ("channels", lambda: make().strongest_channels(images, k=99), "k, .* 1 to 8; got 99"),
        ("no weights", lambda: make().channel_weights(images, method="layercam"), "does not weigh"),
        ("no inputs", lambda: make().explain_inputs(None), "must be a Tensor of shape .* got None"),
        ("arrays", lambda: make().explain_inputs(INPUTS.numpy()), "images must be .* an ndarray"),
        ("one image", lambda: make().explain_inputs(INPUTS[0]), r"got .* shape \(1, 16, 16\)"),
        ("no rows", lambda: make().explain_inputs(INPUTS[:0]), r"got .* shape \(0, 1, 16, 16\)"),
        ("a list", lambda: make().explain_inputs(INPUTS, [0, 1]), "target must be None, a Tensor"),
        ("index 9", lambda: make().explain_inputs(INPUTS, torch.tensor([0, 9])), "from 0 to 9; th"),
        ("index -1", lambda: make().explain_inputs(INPUTS, torch.tensor([0, -1])), "from -1 to 0"),
        ("methods", lambda: make().explain_batch(INPUTS, methods=[]), "at least one method"),
        ("a name", lambda: make().explain_batch(INPUTS, methods="cam"), "methods must be a"),
        ("no output", lambda: make().output_of(None), "must be a Tensor .* got None"),
        ("labels", lambda: make().score(images), "y to be passed|score needs y"),
        ("labels too few", lambda: make().score(images, [0]), "inconsistent numbers of samples"),
    ]  # fmt: skip


CLASSIFIER: list[Row] = [
    *of_training(classifier),
    *of_parameters(
        classifier,
        alpha=[-1, "x", None, NAN],
        beta=[-1, INF],
        p=[None, "1"],
        view_target=["x"],
        task=["several"],
        memory=["x"],
        precision=["fp8"],
        channels_last=[1],
        batch_accumulation=[0],
        views=[3],
    ),
    ("p=0.5", lambda: classifier(p=0.5).fit(X, Y), "p must be 0 or at least 1; got 0.5"),
    ("weights", lambda: classifier().fit(X, Y, [1.0]), "sample_weight must be one number for each"),
    (
        "weights of classes",
        lambda: classifier(criterion__weight=[1.0] * 9).fit(X, Y),
        "criterion__weight must be one weight for each of .* classes",
    ),
    (
        "a criterion",
        lambda: classifier(criterion=torch.nn.KLDivLoss).fit(X, Y),
        "KLDivLoss does not take scores of shape .*, integers, as torch.nn.CrossEntropyLoss does",
    ),
    (
        "one of another task",
        lambda: classifier(criterion=torch.nn.MSELoss).fit(X, Y),
        "MSELoss is a loss for task='regression', and the task is 'multiclass'. Leave the",
    ),
    (
        "one of two classes",
        lambda: classifier(criterion=torch.nn.BCEWithLogitsLoss).fit(X, Y),
        'One output tells two classes apart, and there are 3: .* Use task="multiclass"',
    ),
    (
        "weights of two classes",
        lambda: classifier(task="binary", criterion__weight=[1.0, 2.0]).fit(X, Y > 0),
        "criterion__weight has 2 numbers for one output. To weigh two classes, .*pos_weight",
    ),
    (
        "numbers",
        lambda: classifier().fit(X, X.mean((1, 2))),
        'Unknown label type: continuous.* Set task="regression" to learn them',
    ),
    (
        "one-hot rows",
        lambda: classifier().fit(X, np.eye(3)[Y]),
        'exactly one label. For classes .* y.argmax.* set task="multilabel"',
    ),
    (
        "several numbers",
        lambda: classifier(task="regression").fit(X, X.mean(1)),
        "of one number an image, and y has 8. Train a network for each column, or .* alpha=0",
    ),
    (
        "names of numbers",
        lambda: classifier(task="regression", classes=["a", "b"]).fit(X, Y),
        r"y has 1 number\(s\) an image; classes= may name each of them",
    ),
    (
        "one output",
        lambda: classifier(module=lambda: SmallNet(1)).fit(X, Y),
        'one output, which cannot tell 3 classes apart: give it num_classes=3.*="regression"',
    ),
    (
        "labels of one",
        lambda: classifier(task="multilabel").fit(X, Y),
        "y does not say which .*give y as an array of 0 and 1 .* or as a set of labels",
    ),
    (
        "a sigmoid",
        lambda: classifier(task="binary", module=lambda: ENDING_IN_SIGMOID).fit(X, Y > 0),
        "ends in a sigmoid, and BCEWithLogitsLoss takes .* or give criterion=torch.nn.BCELoss",
    ),
    (
        "a stratified split",
        lambda: classifier(task="regression", train_split=ValidSplit(2, stratified=True)).fit(
            X, X.mean((1, 2))
        ),
        "train_split is stratified, .* use ValidSplit",
    ),
    (
        "no validation",
        lambda: classifier(callbacks=[EarlyStopping()]).fit(X, Y),
        "EarlyStopping monitors 'valid_loss', but there are no validation images: set train_split",
    ),
    (
        "a schedule",
        lambda: classifier(callbacks=[LRScheduler("OneCycleLR")]).fit(X, Y),
        "skorch does not know it by that name. Give the class",
    ),
    (
        "small images",
        lambda: classifier(image_size=10).fit(X, Y),
        "windows of 11 pixels; got image",
    ),
    (
        "a schedule's text",
        lambda: classifier(alpha=lambda _: "z").fit(X, Y),
        "The weight that alpha returns",
    ),
    (
        "augmented",
        lambda: classifier(augment=lambda i: 3).fit(X, Y),
        "augment must return a tensor",
    ),
    (
        "normalised",
        lambda: classifier(augment=lambda i: i * 2 - 1).fit(X, Y),
        "augment returned pixels from .* leave Normalize out",
    ),
    (
        "a loader",
        lambda: classifier(iterator_train=lambda data, **_: list(data)).fit(X, Y),
        "Images are augmented as they are read, by a torch DataLoader .* got a list",
    ),
    ("too early", lambda: classifier().initialize(), "does not know its classes", NotFittedError),
    ("new labels", lambda: fitted().partial_fit(X, Y + 5), r"not seen in fit: \[5, 6, 7\]"),
    ("colour", lambda: fitted().predict(COLOUR), r"X has 3 channel\(s\), but .* fitted on 1"),
    *of_unfitted(classifier, *EXPLAINS),
    *of_explaining(fitted, X),
]

REFUSALS: dict[str, list[Row]] = {
    # Estimators
    "ConsistentCAMClassifier": CLASSIFIER,
    "AcceleratedCAMClassifier": [
        (
            "a number",
            lambda: AcceleratedCAMClassifier(SmallNet, accelerator=3, image_size=16, verbose=0).fit(
                X, Y
            ),
            "accelerator",
        ),
        (
            "a device",
            lambda: AcceleratedCAMClassifier(SmallNet, **OPTIONS).fit(X, Y),
            "The accelerator places the network; got device='cpu'",
        ),
    ],
    "EmbeddingNet": [
        *of_training(embedding_net),
        *of_parameters(
            embedding_net,
            embedding_dim=[0, "a"],
            miner=["x", 3],
            sampler=["x", 3],
            normalize=["x"],
            proxy_lr=[-1],
        ),
        *of_unfitted(embedding_net, "predict", "transform", "score", "explain"),
    ],
    "CAMExplainer": [
        *of_parameters(
            lambda **changed: CAMExplainer(**{"model": NET, **changed}),
            model=[None, 3],
            weights=[3],
            method=[None, 3],
            target_layer=[None, 3],
            task=["x"],
            output=["x"],
            layer_fusion=["x"],
            reshape=[3],
            image_input=[3],
            classes=[3],
            image_size=[0, "a"],
            resize=["x"],
            mean=["x", None],
            batch_size=[0, "a"],
            num_workers=[-1],
            verbose=["a"],
        ),
        ("one output", lambda: CAMExplainer(SmallNet(1)).fit(INPUTS), 'one output.*task="binary"'),
        ("binary", lambda: CAMExplainer(NET, task="binary").fit(INPUTS), "this one has 3"),
        ("own task", lambda: CAMExplainer(fitted(), task="binary").fit(X), "was trained for 'mul"),
        ("untrained", lambda: CAMExplainer(classifier()).fit(), "not fitted yet", NotFittedError),
        ("before fit", lambda: CAMExplainer(NET).explain(X), "is not fitted yet", NotFittedError),
        ("two methods", lambda: CAMExplainer(NET, "gradcan").fit(INPUTS), "Did you mean: gradcam"),
        ("options", lambda: CAMExplainer(NET, cam.GradCAM(pooling="x")).fit(), "pooling must be"),
        ("layer 44", lambda: CAMExplainer(NET, target_layer="44").fit(), "has no layer '44'"),
        ("no class", lambda: CAMExplainer(NET, nn.ReLU).fit(INPUTS), "must derive from Method"),
        ("second", lambda: CAMExplainer(NET, target_layer=["5", "55"]).fit(), "no layer '55'"),
        ("auto twice", lambda: CAMExplainer(NET, target_layer=["5", "auto"]).fit(INPUTS), "twice"),
        ("no layers", lambda: CAMExplainer(NET, target_layer=[]).fit(INPUTS), "an empty list"),
        ("a layer twice", lambda: CAMExplainer(NET, target_layer=["4", "4"]).fit(INPUTS), "twice"),
        ("number 4", lambda: CAMExplainer(NET, target_layer=[4]).fit(INPUTS), "dotted name"),
        ("few classes", lambda: CAMExplainer(NET, classes=["a"]).fit(INPUTS), "has 3 outputs, and"),
        (
            "one side",
            lambda: CAMExplainer(NET, image_size=(8,)).fit(X),
            r"image_size must .*\(8,\)",
        ),
        ("std 0", lambda: CAMExplainer(NET, std=0).fit(X), "std must be finite and positive"),
        ("mean of 2", lambda: CAMExplainer(NET, mean=(0, 1)).fit(X), "mean has 2 values"),
        ("own mean", lambda: CAMExplainer(fitted(), mean=0.5).fit(X), "as it was trained"),
        ("meta", lambda: CAMExplainer(SmallNet().to("meta")).fit(), "network is on the meta dev"),
        ("several", lambda: CAMExplainer(ImageAndVector(), image_input="image").fit(), "an X"),
        (
            "no name",
            lambda: CAMExplainer(ImageAndVector()).fit({"image": X}),
            "image_input must na",
        ),
        *of_explaining(explainer, INPUTS),
    ],
    "EmbeddingCAMExplainer": [
        *of_parameters(
            lambda **changed: EmbeddingCAMExplainer(**{"model": NET, **changed}),
            model=[None],
            proxy=["x", None, 3],
            top_channels=[0, "a"],
            contrast=["x"],
        ),
        (
            "vectors",
            lambda: EmbeddingCAMExplainer(NET, [1, 2]).fit(X),
            r"Proxies must be of .*\(2,",
        ),
        ("zeros", lambda: EmbeddingCAMExplainer(NET, np.zeros((3, 3))).fit(X), "have no direction"),
        ("no labels", lambda: EmbeddingCAMExplainer(NET).fit(X), "proxy='mean' needs y"),
        ("no images", lambda: EmbeddingCAMExplainer(NET).fit(), "needs images X and labels y"),
        ("few labels", lambda: EmbeddingCAMExplainer(NET).fit(X, Y[:3]), r"shape \(3,\) for 12"),
        ("NaN", lambda: EmbeddingCAMExplainer(NET).fit(X, np.full(12, NAN)), "y has labels that a"),
        ("sums", lambda: EmbeddingCAMExplainer(NET, "self").partial_fit(X, Y), "keeps sums"),
        (
            "classes",
            lambda: EmbeddingCAMExplainer(NET, classes=[0, 1, 2]).fit(X, Y),
            "give no classes with proxy='mean'",
        ),
        (
            "embedding_layer",
            lambda: EmbeddingCAMExplainer(NET, "self", embedding_layer="fc").fit(X),
            "no layer 'fc' for embedding_layer",
        ),
        (
            "contrast",
            lambda: (
                EmbeddingCAMExplainer(NET, contrast=True, verbose=0)
                .fit(X, Y)
                .explain(X, lambda output: output[:, 0])
            ),
            "takes the mean of the proxies off a proxy or an embedding",
        ),
        (
            "channels",
            lambda: EmbeddingCAMExplainer(NET, top_channels=99).fit(X, Y).explain(X),
            "99",
        ),
        ("references", lambda: embedder().explain(X, X[:2]), "2 reference images for 12 images"),
        ("pairs", lambda: embedder().explain_pairs(X[:3], X[:1]), "must be pairs .* got 3 and 1"),
        ("a target", lambda: embedder().explain_pairs(X, X, target=0), "takes no target"),
        ("no neighbour", lambda: embedder().explain_neighbors(X, X, 0), "k, .* 1 to 12; got 0"),
        ("too many", lambda: embedder().explain_neighbors(X, X, 13), "k, .* 1 to 12; got 13"),
        ("a word", lambda: embedder().explain_neighbors(X, X, "a"), "k, .* an int .* got 'a'"),
        ("no gallery", lambda: embedder().explain_neighbors(X, X[:0]), "X is empty"),
        *of_explaining(embedder, X),
    ],
    # Methods
    "get_method": [
        (
            "a slip",
            lambda: cam.get_method("gradcamm"),
            "no method 'gradcamm'. Did you mean: gradcam",
        ),
        ("None", lambda: cam.get_method(None), "must be a name or a method object .* got None"),
        ("a list", lambda: cam.get_method(["cam"]), r"got \['cam'\]"),
        ("a class", lambda: cam.get_method(int), "int is not a class of methods"),
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
            "changes the way back while the network runs",
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
        gradient=("absolute", "would be Grad-CAM itself"),
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
        ("a patch", lambda: explain_with(method=cam.Occlusion(99)), "a patch within the image"),
        ("gaps", lambda: explain_with(method=cam.Occlusion(2, 3)), "no longer than the patch"),
    ],
    "RandomCAM": of_options(cam.RandomCAM, random_state=("a", "'a' cannot be used to seed")),
    "TripletCAM": [
        ("before fit", lambda: TripletCAM().check(), "call its fit with an expl", NotFittedError),
        ("none", lambda: TripletCAM(0).fit(embedder(), X, Y), "n_triplets must .* >= 1; got 0"),
        (
            "a margin",
            lambda: TripletCAM(margin="a").fit(embedder(), X, Y),
            "margin must .* got 'a'",
        ),
        (
            "a seed",
            lambda: TripletCAM(random_state="a").fit(embedder(), X, Y),
            "'a' cannot be used",
        ),
        ("a network", lambda: TripletCAM().fit(NET, X, Y), "a fitted EmbeddingCAMExplainer; got"),
        ("no labels", lambda: TripletCAM().fit(embedder(), X), "TripletCAM needs y"),
        ("one class", lambda: TripletCAM().fit(embedder(), X, Y * 0), "12 images of 1 classes"),
    ],
    "Positive": [
        ("classes", lambda: explainer().explain(INPUTS, cam.Positive()), "of several labels"),
        ("alone", lambda: cam.target_scores(LOGITS, cam.Positive()), "ask an explainer"),
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
            r"directions must be .* output of \(2, 3\); got shape \(2, 4\)",
        ),
    ],
    "NearestProxies": [
        ("maps", lambda: NearestProxies(torch.eye(3)).resolve(IMAGES), "not .n_images, n_classes"),
    ],
    "SinglePoint": [
        ("zero", lambda: SinglePoint().resolve(torch.zeros(2, 3)), "2 of 2 images are zero or not"),
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
            "from 0 to 9; those o",
        ),
        ("class -1", lambda: cam.target_scores(LOGITS, torch.tensor([-1, 0])), "from -1 to 0; tho"),
        (
            "directions",
            lambda: cam.target_scores(LOGITS, torch.rand(2, 4)),
            r"an output of \(2, 3\)",
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
            r"SmallNet does not take inputs by the names \['a'\]",
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
    # The loss
    "ConsistentCAMLoss": [
        ("alpha -1", lambda: ConsistentCAMLoss(alpha=-1), "alpha must be a finite number >= 0"),
        ("beta NaN", lambda: ConsistentCAMLoss(beta=NAN), "beta must be .* got nan"),
        ("p a half", lambda: ConsistentCAMLoss(p=0.5), "p must be 0 or at least 1; got 0.5"),
        ("sizes", lambda: ConsistentCAMLoss(sizes=3), "sizes must be GradientSizes or None; got"),
        ("terms", lambda: ConsistentCAMLoss(terms=3), "terms must be a list of terms; got an int"),
        ("a term", lambda: ConsistentCAMLoss(terms=[3]), "terms must be of .*Term; got an int, 3"),
        ("twice", lambda: ConsistentCAMLoss(terms=[Sparsity()]), "has a column 'norm' already"),
        ("no maps", lambda: loss(), "alpha > 0 needs the explained images; got None"),
        ("no view", lambda: loss(MAPS), "alpha > 0 needs maps_of_view and warp"),
        ("no maps for beta", lambda: loss(alpha=0), "beta > 0 needs the explained images"),
        ("maps", lambda: ConsistentCAMLoss()(SCALAR, MAPS), "needs the explained images; got a T"),
        ("no loss", lambda: loss(MAPS, MAPS, cross_entropy=None), "cross_entropy must .* got None"),
        ("per image", lambda: loss(MAPS, MAPS, cross_entropy=VALUES), r"cross_entropy .* \(2,\)"),
        ("small", lambda: loss(MAPS, MAPS, size=(4, 4)), "window of 11 x 11 pixels; got maps of 4"),
        ("unmeasured", lambda: loss(MAPS, MAPS, alpha="auto"), "none were measured yet"),
        ("a list", lambda: loss(MAPS, MAPS, activations=[1]), "activations must be .* got a list"),
    ],
    "Explanations": [
        ("arrays", lambda: Explanations(MAPS.numpy()), "maps must be .* got an ndarray"),
        (
            "one to two",
            lambda: Explanations(MAPS, MAPS[:1], VIEWS),
            "maps and maps_of_view must be of one shape",
        ),
        ("no warp", lambda: Explanations(MAPS, MAPS), "warp must be a Warp of each .* got None"),
        ("a word", lambda: Explanations(MAPS, MAPS, "x"), "warp must be .* got a str, 'x'"),
        ("warps", lambda: Explanations(MAPS, MAPS, Warp.identity(3)), "warp must .* got one of 3"),
        ("no maps of it", lambda: Explanations(MAPS, warp=VIEWS), "maps_of_view must .* got None"),
        ("masks", lambda: Explanations(MAPS, masks=MAPS > 0), "masks must be a floating-point Ten"),
        ("a mask", lambda: Explanations(MAPS, masks=MAPS[:1]), "There are 2 maps and 1 masks"),
        ("annotated", lambda: Explanations(MAPS, annotated=3), "annotated must be a Tensor"),
        ("no size", lambda: Explanations(MAPS, size=(0, 3)), r"size must be .* got \(0, 3\)"),
    ],
    "Consistency": [
        (
            "small",
            lambda: Consistency().values(Explanations(MAPS[:, 2:], MAPS[:, 2:], VIEWS)),
            "got maps of 10 x 12",
        ),
    ],
    "Sparsity": [("p a half", lambda: Sparsity(p=0.5), "p must be 0 or at least 1; got 0.5")],
    "WarmUp": [
        ("no weight", lambda: WarmUp(None), "weight must be a finite number >= 0; got None"),
        ("negative", lambda: WarmUp(-1), "weight must be a finite number >= 0; got -1"),
        ("no epochs", lambda: WarmUp(1, epochs=0), "epochs must be an int >= 1; got 0"),
        ("wait", lambda: WarmUp(1, wait="a"), "wait must be an int >= 0; got 'a'"),
    ],
    "Balanced": [
        ("nothing", lambda: Balanced(0), "ratio must be a finite number > 0; got 0"),
        ("a word", lambda: Balanced("a"), "ratio must be a finite number > 0; got 'a'"),
        ("infinite", lambda: Balanced(INF), "ratio must be a finite number > 0; got inf"),
    ],
    "GradientSizes": [
        ("1", lambda: GradientSizes(1), "decay must be a number from 0 to under 1; got 1"),
        ("2", lambda: GradientSizes(2), "decay must be a number from 0 to under 1; got 2"),
        ("a word", lambda: GradientSizes("a"), "decay must be a number from 0 to under 1; got 'a'"),
    ],
    "consistency_loss": [
        *of_pairs(consistency_loss, "view_of_maps", "maps_of_view"),
        ("small", lambda: consistency_loss(MAPS[:, 2:], MAPS[:, 2:]), "got maps of 10 x 12"),
    ],
    "sparsity_loss": [
        *of_maps(sparsity_loss),
        ("p a half", lambda: sparsity_loss(MAPS, 0.5), "p must be 0 or at least 1; got 0.5"),
        ("p None", lambda: sparsity_loss(MAPS, None), "p must be 0 or at least 1; got None"),
    ],
    "CollapseWarning": [
        ("0", lambda: CollapseWarning(patience=0).initialize(), "patience must be an int >= 1; go"),
        (
            "no share",
            lambda: CollapseWarning(share=0).initialize(),
            "share must be a number above 0 to 1; got 0",
        ),
        ("2", lambda: CollapseWarning(share=2).initialize(), "share must be a number above 0 to 1"),
    ],
    "signs_of_collapse": [
        ("None", lambda: signs_of_collapse(None, Y, MAPS), "logits must be .* got None"),
        ("arrays", lambda: signs_of_collapse(LOGITS, Y[:2], MAPS), "classes must be .* an ndarray"),
        ("floats", lambda: signs_of_collapse(LOGITS, VALUES, MAPS), "classes must be indices"),
        ("a label", lambda: signs_of_collapse(LOGITS, torch.tensor([0]), MAPS), "got 2, 1 and 2"),
        ("maps", lambda: signs_of_collapse(LOGITS, torch.tensor([0, 1]), IMAGES), "maps must be"),
    ],
    # Warp and the tape
    "Warp": [
        ("None", lambda: Warp(None), "A view is a 2x3 matrix per image, .* got None"),
        ("one matrix", lambda: Warp(torch.eye(2, 3)), r"2x3 matrix per image, .* \(2, 3\)"),
        ("integers", lambda: Warp(torch.ones(2, 2, 3).int()), "2x3 matrix per image, .*int32"),
        ("-1 images", lambda: Warp.identity(-1), "n_images must be an int >= 0; got -1"),
        ("no boxes", lambda: Warp.from_crops(None, VALUES > 0), "boxes must be .* got None"),
        (
            "triples",
            lambda: Warp.from_crops(torch.rand(2, 3), VALUES > 0),
            r"boxes must .*\(2, 3\)",
        ),
        ("chances", lambda: Warp.from_crops(torch.rand(2, 4), VALUES), "flip of .* and bool; got"),
        ("a flip more", lambda: Warp.from_crops(torch.rand(2, 4), MORE > 0), r"flip of .*\(3,\)"),
        ("no images", lambda: VIEWS(None), "images must be a Tensor .* got None"),
        ("arrays", lambda: VIEWS(MAPS.numpy()), "images must be a Tensor .* got an ndarray"),
        ("a table", lambda: VIEWS(LOGITS), r"images must be a Tensor .* shape \(2, 3\)"),
        ("one of two", lambda: VIEWS(MAPS[:1]), "Got 1 images for 2 views; one each is needed"),
    ],
    "ViewSampler": [
        ("scale beyond", lambda: ViewSampler(scale=(0, 2)), r"within \(0, 1\]; got \(0, 2\)"),
        ("a scale", lambda: ViewSampler(scale=0.5), r"range within \(0, 1\]; got 0.5"),
        ("three", lambda: ViewSampler(scale=(0.1, 0.2, 0.3)), r"scale must be .*0.3\)"),
        ("ratio 0", lambda: ViewSampler(ratio=(0, 1)), "ratio must be a range of positive numbers"),
        ("no ratio", lambda: ViewSampler(ratio=None), "ratio must be .* got None"),
        ("infinite", lambda: ViewSampler(ratio=(1, INF)), "ratio must be .* inf"),
        ("flip 2", lambda: ViewSampler(flip=2), "flip, a probability, must be .* 0 to 1; got 2"),
        ("flip NaN", lambda: ViewSampler(flip=NAN), "flip, a probability, must be .* got nan"),
        (
            "-1 views",
            lambda: ViewSampler()(-1, size=(4, 4)),
            "n_images must be an int >= 0; got -1",
        ),
        ("no pixels", lambda: ViewSampler()(2, size=(0, 4)), r"size must be .* got \(0, 4\)"),
        ("a seed", lambda: ViewSampler()(2, size=(4, 4), generator=3), "generator must be a torch"),
    ],
    "record": [
        ("no network", lambda: recorded(network=None), "module must be an nn.Module; got None"),
        ("a name", lambda: recorded("5"), "The target layer str is not a part of SmallNet"),
        ("a stranger", lambda: recorded(nn.ReLU()), "layer ReLU is not a part of SmallNet"),
    ],
    "Tape": [
        ("no layer", lambda: Tape().activations, "Nothing was recorded", RuntimeError),
        ("no layer named", lambda: recorded(), "no target layer was named", RuntimeError),
        ("no pass", lambda: recorded(NET[1]), "the target layer did not run", RuntimeError),
    ],
    "record_trunk": [
        ("no network", lambda: trunk_of(None, NET[1]), "module must be an nn.Module; got None"),
        ("a name", lambda: trunk_of(NET, "1"), "The target layer str is not a part of SmallNet"),
    ],
    # Metrics of maps and confidences
    "average_drop": of_values(metrics.average_drop, "full", "masked"),
    "average_increase": of_values(metrics.average_increase, "full", "masked"),
    "adcc": of_values(metrics.adcc, "coherency", "complexity", "average_drop"),
    "arcc": of_values(metrics.arcc, "coherency", "complexity", "road"),
    "coherency": of_pairs(metrics.coherency, "maps", "maps_of_masked"),
    "complexity": of_maps(metrics.complexity),
    "sparsity": of_maps(metrics.sparsity),
    "lp_norm": [
        *of_maps(metrics.lp_norm),
        ("p -1", lambda: metrics.lp_norm(MAPS, -1), "p must be a finite number >= 0; got -1"),
        ("p -inf", lambda: metrics.lp_norm(MAPS, -INF), "p must be a finite number >= 0; got -inf"),
        ("p NaN", lambda: metrics.lp_norm(MAPS, NAN), "p must be a finite number >= 0; got nan"),
        ("p a word", lambda: metrics.lp_norm(MAPS, "2"), "p must be a finite number >= 0; got '2'"),
    ],
    "structural_similarity": [
        *of_pairs(metrics.structural_similarity, "maps", "others"),
        ("small", lambda: metrics.structural_similarity(MAPS[:, 2:], MAPS[:, 2:]), "11 x 11 pixel"),
    ],
    "ssim_consistency": of_pairs(metrics.ssim_consistency, "view_of_maps", "maps_of_view"),
    "rank_correlation": [
        *of_maps(lambda maps: metrics.rank_correlation(maps, MAPS)),
        ("None", lambda: metrics.rank_correlation(MAPS, None), "references must be .* got None"),
        (
            "sizes",
            lambda: metrics.rank_correlation(MAPS, MAPS[:, 1:]),
            "maps and references must b",
        ),
        ("cell 0", lambda: metrics.rank_correlation(MAPS, MAPS, cell=0), "cell, .* >= 1; got 0"),
        ("cell 1.5", lambda: metrics.rank_correlation(MAPS, MAPS, cell=1.5), "cell, .* got 1.5"),
    ],
    # As pixels come and go
    "causal_curves": [
        *of_curves(metrics.causal_curves),
        (
            "start",
            lambda: causal(metrics.causal_curves, n_steps=4, start="blur"),
            "start or end, if",
        ),
        ("end", lambda: causal(metrics.causal_curves, n_steps=4, end=0), "start or end, .* 0"),
        ("a row", lambda: causal(metrics.causal_curves, n_steps=4, end=MORE), r"images' .*\(3,\)"),
    ],
    "insertion_curve": of_curves(metrics.insertion_curve),
    "deletion_curve": of_curves(metrics.deletion_curve),
    "insertion_auc": [
        ("None", lambda: metrics.insertion_auc(None), "curves must be .* NoneType, which has no"),
        (
            "deletion",
            lambda: metrics.insertion_auc(causal(metrics.deletion_curve, n_steps=2)),
            "or InsertionCurve; got DeletionCurve, which has no insertion",
        ),
    ],
    "deletion_auc": [
        ("a tensor", lambda: metrics.deletion_auc(VALUES), "curves must be .* got Tensor"),
        (
            "insertion",
            lambda: metrics.deletion_auc(causal(metrics.insertion_curve, n_steps=2)),
            "or DeletionCurve; got InsertionCurve, which has no deletion",
        ),
    ],
    "road": [
        *of_scores(metrics.road),
        ("none", lambda: causal(metrics.road, percentiles=()), "sequence of at least one number"),
        (
            "a number",
            lambda: causal(metrics.road, percentiles=20),
            "percentiles must be a sequence",
        ),
        ("200", lambda: causal(metrics.road, percentiles=[200]), "between 0 and 100; got 200"),
        ("words", lambda: causal(metrics.road, percentiles="ab"), "between 0 and 100; got 'a'"),
        ("noise inf", lambda: causal(metrics.road, noise=INF), "noise, .* a finite number .* inf"),
        ("noise", lambda: causal(metrics.road, noise=-1), "noise, .* number >= 0; got -1"),
        (
            "a seed",
            lambda: causal(metrics.road, generator=3),
            "generator must be a torch.Generator",
        ),
    ],
    "blur": [
        ("None", lambda: metrics.blur(None), "images must be a floating-point Tensor .* got None"),
        ("grey", lambda: metrics.blur(MAPS), r"images must be .* shape \(2, 12, 12\)"),
        ("bytes", lambda: metrics.blur(IMAGES.byte()), "images must be .*uint8"),
    ],
    "impute": [
        ("None", lambda: metrics.impute(None, MAPS > 0.5), "images must be .* got None"),
        ("bytes", lambda: metrics.impute(IMAGES.byte(), MAPS > 0.5), "images must be .*uint8"),
        ("shares", lambda: metrics.impute(IMAGES, MAPS), "removed must be bool .*float32"),
        ("smaller", lambda: metrics.impute(IMAGES, MAPS[:, 2:] > 0.5), r"removed .*\(2, 10, 12\)"),
        ("noise", lambda: metrics.impute(IMAGES, MAPS > 0.5, noise="a"), "noise, .* got 'a'"),
    ],
    # Against the truth
    "heatmap_ratio": of_masks(metrics.heatmap_ratio),
    "inside_outside_ratio": of_masks(metrics.inside_outside_ratio),
    "pointing_game": [
        *of_masks(metrics.pointing_game),
        (
            "-1",
            lambda: metrics.pointing_game(MAPS, MAPS, tolerance=-1),
            "tolerance, .* >= 0; got -1",
        ),
        ("a word", lambda: metrics.pointing_game(MAPS, MAPS, tolerance="a"), "tolerance, .* 'a'"),
    ],
    **{
        name: [
            ("None", lambda f=f: f(None, None, threshold=1), "maps must be .* got None"),
            ("no classes", lambda f=f: f(MAPS, MAPS, threshold=1), r"n_images, k, height, width\)"),
            ("sizes", lambda f=f: f(IMAGES, IMAGES[:1], threshold=1), "maps and masks must be of"),
            ("a word", lambda f=f: f(IMAGES, IMAGES, threshold="a"), "threshold must be a finite"),
            ("tolerance", lambda f=f: f(IMAGES, IMAGES, threshold=1, tolerance=-1), "tolerance, "),
        ]
        for name, f in {
            "pointing_game_with_rejection": metrics.pointing_game_with_rejection,
            "pointing_precision_recall": metrics.pointing_precision_recall,
        }.items()
    },
    "box_from_map": [
        *of_maps(metrics.box_from_map),
        (
            "beyond",
            lambda: metrics.box_from_map(MAPS, 2),
            "a share of the maximum, .* 0 to 1; got 2",
        ),
        ("no share", lambda: metrics.box_from_map(MAPS, None), "a share of .* got None"),
    ],
    "box_masks": [
        ("None", lambda: metrics.box_masks(None, (4, 4)), "boxes for each image; got None"),
        ("text", lambda: metrics.box_masks("abc", (4, 4)), "boxes for each image; got a str"),
        ("no images", lambda: metrics.box_masks([], (4, 4)), "boxes of at least one image; got"),
        ("words", lambda: metrics.box_masks(["abc"], (4, 4)), r"\(x1, y1, x2, y2\).* got a str"),
        (
            "five",
            lambda: metrics.box_masks([[[0, 0, 1, 1, 1]]], (4, 4)),
            r"\(n_boxes, 4\).*\(1, 5\)",
        ),
        ("eight", lambda: metrics.box_masks([[0, 0, 1, 1] * 2], (4, 4)), r"\(n_boxes, 4\).*\(8,\)"),
        ("turned", lambda: metrics.box_masks([[[1, 1, 0, 0]]], (4, 4)), "x1 < x2 and y1 < y2; got"),
        ("NaN", lambda: metrics.box_masks([[[NAN, 1, 2, 2]]], (4, 4)), "x1 < x2 .*nan"),
        ("no size", lambda: metrics.box_masks([BOX], (0, 4)), r"size must be .* got \(0, 4\)"),
    ],
    "box_iou": [
        ("None", lambda: metrics.box_iou(None, BOX), r"boxes must be .*\(\.\.\., 4\); got None"),
        ("lists", lambda: metrics.box_iou(BOX, [0, 0, 1, 1]), "others must be a Tensor .* a list"),
        ("triples", lambda: metrics.box_iou(MORE, BOX), r"boxes must be .* shape \(3,\)"),
        ("2 and 3", lambda: metrics.box_iou(torch.rand(2, 4), torch.rand(3, 4)), "must broadcast"),
    ],
    "localization_accuracy": [
        ("None", lambda: metrics.localization_accuracy(None, [BOX]), "boxes must be .* got None"),
        (
            "no truth",
            lambda: metrics.localization_accuracy(BOX, None),
            "boxes for each image; got N",
        ),
        (
            "2 for 1",
            lambda: metrics.localization_accuracy(BOX, [BOX, BOX]),
            "of 1 images; got those",
        ),
        ("five", lambda: metrics.localization_accuracy(torch.rand(1, 5), [BOX]), r"\(\.\.\., 4\)"),
        (
            "IoU 2",
            lambda: metrics.localization_accuracy(BOX, [BOX], iou_threshold=2),
            "iou_thresho",
        ),
    ],
    "localization_error": [
        (
            "one class",
            lambda: metrics.localization_error(BOX, Y[:1], [BOX], Y[:1]),
            r"boxes must be a Tensor of shape \(n_images, k, 4\); got .*\(1, 4\)",
        ),
        (
            "two labels",
            lambda: metrics.localization_error(
                BOX[None], torch.tensor([[0]]), [BOX], torch.tensor([0, 1])
            ),
            r"\(n_images,\); got \(1, 1, 4\), \(1, 1\) and \(2,\)",
        ),
        (
            "IoU",
            lambda: metrics.localization_error(
                BOX[None], torch.tensor([[0]]), [BOX], torch.tensor([0]), iou_threshold="a"
            ),
            "iou_threshold must be a number from 0 to 1; got 'a'",
        ),
    ],
    "seeds_iou": [
        ("None", lambda: metrics.seeds_iou(None, MAPS.long()), "maps must be .* got None"),
        ("no classes", lambda: metrics.seeds_iou(MAPS, MAPS.long()), "n_classes, height, width"),
        (
            "5",
            lambda: metrics.seeds_iou(IMAGES, MAPS.long() + 5),
            "have a class 5; there are 1 maps",
        ),
        ("shares", lambda: metrics.seeds_iou(IMAGES, MAPS), "segmentations must be integers"),
        ("smaller", lambda: metrics.seeds_iou(IMAGES, MAPS[:, 1:].long()), r"\(2, 11, 12\)"),
        (
            "a word",
            lambda: metrics.seeds_iou(IMAGES, MAPS.long(), threshold="a"),
            "threshold, a share of the maximum, must b",
        ),
    ],
    "seeds_from_maps": [
        ("None", lambda: metrics.seeds_from_maps(None), "maps must be .* got None"),
        ("none", lambda: metrics.seeds_from_maps(IMAGES[:, :0]), "maps of 1 to 254 classes; got 0"),
        (
            "a word",
            lambda: metrics.seeds_from_maps(IMAGES, background="a"),
            "background, a share of the pixels, must be a number from 0 to 1; got 'a'",
        ),
        (
            "a smaller saliency",
            lambda: metrics.seeds_from_maps(IMAGES, saliency=MAPS[:, 1:]),
            "saliency and the maps of a class must be of one shape",
        ),
        (
            "no saliency",
            lambda: metrics.seeds_from_maps(IMAGES, saliency=[1.0]),
            "saliency must be .* got a list",
        ),
    ],
    "recall_at_k": [
        ("None", lambda: metrics.recall_at_k(None, None), r"embeddings must be numbers of shape"),
        ("a row", lambda: metrics.recall_at_k([1.0, 2.0], [0, 1]), r"\(n_images, dim\).*\(2,\)"),
        ("words", lambda: metrics.recall_at_k([["a"], ["b"]], [0, 1]), "must be numbers .*<U1"),
        ("ragged", lambda: metrics.recall_at_k([[1.0], [1.0, 2.0]], [0, 1]), "must be arrays: "),
        ("no length", lambda: metrics.recall_at_k(np.zeros((3, 0)), [0, 1, 1]), r"shape \(3, 0\)"),
        ("one", lambda: metrics.recall_at_k([[1.0]], [0]), "two images at least .* got 1"),
        ("labels", lambda: metrics.recall_at_k(np.eye(3), [0]), r"one label each; .* \(1,\)"),
        (
            "a column",
            lambda: metrics.recall_at_k(np.eye(3), [[0]] * 3),
            r"labels of shape \(3, 1\)",
        ),
        ("k 1.5", lambda: metrics.recall_at_k(np.eye(3), [0, 1, 1], 1.5), "k, .* 1 to 2; got 1.5"),
        ("k 0", lambda: metrics.recall_at_k(np.eye(3), [0, 1, 1], 0), "k, .* from 1 to 2; got 0"),
        ("k 3", lambda: metrics.recall_at_k(np.eye(3), [0, 1, 1], 3), "k, .* from 1 to 2; got 3"),
        ("NaN", lambda: metrics.recall_at_k([[NAN], [1.0]], [0, 1]), "zero or not finite"),
    ],
    # evaluate, and what it returns
    "evaluate": [
        ("no estimator", lambda: evaluate(estimator=SVC()), "must be a ConsistentCAM.* got SVC"),
        (
            "labels of no class",
            lambda: evaluate("accuracy", y=["cat"] * 12),
            r"None of the labels in y is a class .* \['cat'\], its classes \[0, 1, 2\]",
        ),
        (
            "a search",
            lambda: evaluate(estimator=GridSearchCV(SVC(), {})),
            "not fitted yet",
            NotFittedError,
        ),
        ("unfitted", lambda: evaluate(estimator=classifier()), "call fit first", NotFittedError),
        ("no images", lambda: evaluate(X=None), "X is None"),
        ("a slip", lambda: evaluate("adc"), "no metric 'adc'. Did you mean: adcc"),
        ("no names", lambda: evaluate([]), "metrics is empty"),
        ("None", lambda: evaluate(None), "metrics must be a name or a sequence .* got None"),
        ("a number", lambda: evaluate([3]), "There is no metric 3"),
        ("a list", lambda: evaluate([["adcc"]]), r"There is no metric \['adcc'\]"),
        ("a method", lambda: evaluate(method="gradcm"), "Did you mean: gradcam"),
        ("a target", lambda: evaluate(target=99), "not seen in fit"),
        ("TopK", lambda: evaluate(target=cam.TopK(2)), "one class per image"),
        ("no labels", lambda: evaluate("accuracy"), "accuracy needs y"),
        ("few labels", lambda: evaluate("accuracy", y=[0]), "y has 1 entries for 12 images"),
        ("a table", lambda: evaluate("accuracy", y=np.ones((12, 2))), r"one label .*\(12, 2\)"),
        ("no boxes", lambda: evaluate("localization_accuracy"), "needs boxes"),
        ("nowhere", lambda: evaluate("pointing_game"), "needs boxes or masks"),
        ("boxes 3", lambda: evaluate(boxes=3), "boxes must be a sequence .* 12 images; got an int"),
        ("few boxes", lambda: evaluate(boxes=[BOX] * 3), "boxes has 3 entries for 12 images"),
        (
            "the last",
            lambda: evaluate(boxes=[BOX] * 11 + [-BOX]),
            r"boxes\[11\]: A box is .* x1 < x2",
        ),
        ("five", lambda: evaluate(boxes=[[[0, 0, 1, 1, 1]]] * 12), r"boxes\[0\]: .*\(n_boxes, 4\)"),
        (
            "boxes in shares",
            lambda: evaluate("pointing_game", boxes=[[[0, 0.5, 1, 1]]] * 12),
            "in pixels of each image, not in shares",
        ),
        ("few masks", lambda: evaluate(masks=X[:3]), "masks has 3 entries for 12 images"),
        (
            "by class and not",
            lambda: evaluate(boxes=[*[{0: BOX}] * 11, BOX]),
            r"boxes\[11\] is .* in dicts, or of none",
        ),
        (
            "by other classes",
            lambda: evaluate(boxes=[{"apple": BOX}] * 12),
            "None of the labels of boxes is a class",
        ),
        (
            "boxes of 3",
            lambda: evaluate("top5_localization_error", y=Y, boxes=[BOX] * 12),
            "the 5 classes that score the highest are explained, and the estimator has 3",
        ),
        (
            "no threshold",
            lambda: evaluate("pointing_game_reject", y=Y, boxes=[BOX] * 12),
            "no threshold unless you choose one: .* rejection_threshold",
        ),
        (
            "no references",
            lambda: evaluate("reference_correlation"),
            "needs references, a map for each image",
        ),
        ("unasked references", lambda: evaluate(references=X), "no metric looks at it"),
        (
            "few references",
            lambda: evaluate("reference_correlation", references=X[:3]),
            "references has 3 entries for 12 images",
        ),
        (
            "colours",
            lambda: evaluate("reference_correlation", references=COLOUR),
            r"references\[0\] must be a map of numbers, .*\(8, 8, 3\)",
        ),
        ("sizes", lambda: evaluate("pointing_game", masks=X[:, :5]), r"masks of \(1, 5, 8\)"),
        ("255", lambda: evaluate("pointing_game", masks=X * 255), r"float64 beyond \[0, 1\]"),
        ("no class", lambda: evaluate("adcc", target=lambda o: o[:, 0]), "give score="),
        ("score 3", lambda: evaluate("adcc", score=3), "score must be a callable .* got an int, 3"),
        (
            "a score",
            lambda: evaluate("adcc", score=lambda o: 1),
            "score must return .* it returned",
        ),
        ("scores", lambda: evaluate("adcc", score=lambda o: o), r"score must return .* \(6, 3\)"),
        ("batch 0", lambda: evaluate(batch_size=0), "batch_size must be an int >= 1; got 0"),
        ("jobs", lambda: evaluate(n_jobs=0), "n_jobs must be None or an int other than 0; got 0"),
        ("a seed", lambda: evaluate(random_state="a"), "'a' cannot be used to seed"),
        ("params", lambda: evaluate(metric_params=3), "metric_params must be a dict .* an int, 3"),
        ("of none", lambda: evaluate(metric_params={"x": {}}), r"unknown metrics: \['x'\]"),
        ("a number", lambda: evaluate(metric_params={"iauc": 3}), "a dict of options of iauc; got"),
        ("unknown", lambda: with_params("iauc", steps=3), r"iauc has no options \['steps'\]"),
        ("no step", lambda: with_params("iauc", n_steps=0), "n_steps must be an int >= 1; got 0"),
        (
            "a start",
            lambda: with_params("iauc", start=VALUES),
            "start must be a callable that makes",
        ),
        (
            "views",
            lambda: with_params("consistency", views=3),
            "views must be a ViewSampler or None",
        ),
        ("view", lambda: with_params("consistency", method="gradcm"), "Did you mean: gradcam"),
        (
            "IoU",
            lambda: with_params("localization_accuracy", iou_threshold=2),
            "iou_threshold must",
        ),
        (
            "share",
            lambda: with_params("localization_accuracy", threshold=-1),
            "threshold must be a",
        ),
        ("pixels", lambda: with_params("pointing_game", tolerance=-1), "tolerance must .* got -1"),
        ("noise", lambda: with_params("road", noise=-1), "noise must be a finite number >= 0"),
        ("patches", lambda: with_params("rank_correlation", occlusion=3), "must be an Occlusion()"),
    ],
    "rejection_threshold": [
        (
            "no boxes",
            lambda: metrics.rejection_threshold(fitted(), X, Y),
            "pointing_game_reject: needs boxes or masks",
        ),
        (
            "3 classes",
            lambda: metrics.rejection_threshold(fitted(), X, Y, boxes=[BOX] * 12),
            "the 5 classes .* the estimator has 3",
        ),
        (
            "tolerance",
            lambda: metrics.rejection_threshold(fitted(), X, Y, boxes=[BOX] * 12, tolerance=-1),
            "tolerance must be a finite number >= 0; got -1",
        ),
    ],
    "Evaluator": [
        ("no estimator", lambda: metrics.Evaluator(SVC(), X), "must be a ConsistentCAM.* got SVC"),
        ("a slip", lambda: metrics.Evaluator(fitted(), X, metrics="adc"), "Did you mean: adcc"),
        (
            "a need",
            lambda: metrics.Evaluator(fitted(), X, needs=["mapz"]),
            "no metric or quantity 'mapz'. Did you mean: maps",
        ),
        ("jobs", lambda: metrics.Evaluator(fitted(), X).run(n_jobs=0), "n_jobs must be .* got 0"),
    ],
    "Metric": [
        ("no name", lambda: metrics.Metric("", max, ("maps",)), "A metric has a name; got a str"),
        ("a quantity", lambda: metrics.Metric("maps", max, ("maps",)), "name of a quantity"),
        (
            "no function",
            lambda: metrics.Metric("a", 3, ("maps",)),
            "function must be .* got an int",
        ),
        ("a word", lambda: metrics.Metric("a", max, "maps"), "needs must be a tuple .* a str"),
        ("a slip", lambda: metrics.Metric("a", max, ("map",)), "needs 'map', .* Did you mean: "),
        (
            "a range",
            lambda: metrics.Metric("a", max, ("maps",), range=(1, 0)),
            r"range must be \(low, high\) .* got \(1, 0\)",
        ),
    ],
    "register": [
        ("a name", lambda: metrics.register("adcc"), "register takes a Metric; got a str, 'adcc'"),
        (
            "another adcc",
            lambda: metrics.register(metrics.Metric("adcc", max, ("maps",))),
            "There is a metric 'adcc' already",
        ),
    ],
    "get_metric": [
        ("a slip", lambda: metrics.get_metric("adc"), "no metric 'adc'. Did you mean: adcc"),
        ("None", lambda: metrics.get_metric(None), "There is no metric None"),
    ],
    "consistency_score": [
        ("no one", lambda: metrics.consistency_score(None, X), "estimator must be .* NoneType"),
        (
            "views",
            lambda: metrics.consistency_score(fitted(), X, views=3),
            "views must be a ViewSam",
        ),
        ("a method", lambda: metrics.consistency_score(fitted(), X, method="x"), "no method 'x'"),
        (
            "a seed",
            lambda: metrics.consistency_score(fitted(), X, random_state="a"),
            "'a' cannot be",
        ),
    ],
    "Evaluation": [
        ("level 95", lambda: evaluation().summary(level=95), "level must be .* 0 and 1; got 95"),
        ("level 0", lambda: evaluation().summary(level=0), "level must be .* 0 and 1; got 0"),
        ("-5", lambda: evaluation().summary(n_resamples=-5), "n_resamples must .* >= 1; got -5"),
        ("no classes", lambda: evaluation().summary(by="class"), "needs y, the true labels"),
        (
            "few groups",
            lambda: evaluation().summary(by=[0, 1]),
            "label for each of 3 images; got a",
        ),
        ("nothing", lambda: metrics.Evaluation().summary(), "needs a metric, .* none at all"),
        ("no means", lambda: metrics.Evaluation().means(), "needs a metric, .* none at all"),
        ("ragged", lambda: metrics.Evaluation(a=[1], b=[1, 2]).means(), "'a': 1, 'b': 2"),
    ],
    "compare": [
        ("None", lambda: metrics.compare(None, None), "first must be an Evaluation; got None"),
        ("a list", lambda: metrics.compare(evaluation(), [1]), "second must be .* got a list"),
        ("3 and 4", lambda: metrics.compare(evaluation(), evaluation(4)), "of the same images"),
        ("level", lambda: metrics.compare(evaluation(), evaluation(), level="a"), "level must be"),
        (
            "0",
            lambda: metrics.compare(evaluation(), evaluation(), n_resamples=0),
            "n_resamples must",
        ),
    ],
    "get_scorer": [
        ("a slip", lambda: metrics.get_scorer("adc"), "no scorer 'adc'. Did you mean: adcc"),
        ("None", lambda: metrics.get_scorer(None), "A scorer has a name, .* got None"),
        ("a list", lambda: metrics.get_scorer(["adcc"]), "A scorer has a name, .* got a list"),
        (
            "the wrong way",
            lambda: metrics.get_scorer("average_drop"),
            "Lower is better for 'average_drop', .*: use 'neg_average_drop'",
        ),
        ("a curve", lambda: metrics.get_scorer("dauc"), "use 'neg_dauc'"),
        ("a sign", lambda: metrics.get_scorer("neg_adcc"), "no scorer 'neg_adcc'. Did you mean"),
        ("a mean", lambda: metrics.get_scorer("mean_adcc"), "There is no scorer 'mean_adcc'"),
        ("nothing", lambda: metrics.get_scorer(""), "There are: accuracy, adcc"),
        (
            "an option",
            lambda: metrics.get_scorer("adcc", n_steps=1),
            r"adcc has no options \['n_steps'\]; it takes batch_size, method",
        ),
        (
            "an option with a slip",
            lambda: metrics.get_scorer("iauc", nsteps=5),
            r"iauc has no options \['nsteps'\]; .*n_steps",
        ),
        ("boxes", lambda: metrics.get_scorer("adcc", boxes=[BOX]), "has no options"),
        (
            "another's option",
            lambda: metrics.get_scorer("consistency", n_steps=5),
            r"has no options \['n_steps'\]; .*random_state, .*views",
        ),
    ],
    "explanation_scorer": [
        ("a name", lambda: metrics.explanation_scorer("adcc"), "a sequence of names; got a str"),
        ("None", lambda: metrics.explanation_scorer(None), "a sequence of names; got None"),
        ("none", lambda: metrics.explanation_scorer([]), "metrics is empty"),
        ("a slip", lambda: metrics.explanation_scorer(["adc"]), "Did you mean: adcc"),
        ("second", lambda: metrics.explanation_scorer(["adcc", "dauc"]), "use 'neg_dauc'"),
        (
            "an option of one",
            lambda: metrics.explanation_scorer(["adcc"], metric_params={"adcc": {"n_steps": 5}})(
                fitted(), X
            ),
            "options",
        ),
        (
            "3",
            lambda: metrics.explanation_scorer(["adcc"], metric_params=3),
            "metric_params must be",
        ),
        (
            "x",
            lambda: metrics.explanation_scorer(["adcc"], metric_params={"x": {}}),
            "unknown metrics",
        ),
        (
            "an option",
            lambda: metrics.explanation_scorer(["adcc"], n_steps=3),
            "go into metric_par",
        ),
    ],
    "ExplanationScorer": [
        ("a slip", lambda: metrics.ExplanationScorer("adc")(fitted(), X), "Did you mean: adcc"),
        ("no one", lambda: metrics.ExplanationScorer("adcc")(None, X), "estimator must be"),
    ],
    "ExplanationScorers": [
        ("a slip", lambda: metrics.ExplanationScorers(["adc"])(fitted(), X), "Did you mean: adcc"),
    ],
    # Displays
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
        ("TopK", lambda: CAMDisplay.from_estimator(fitted(), X, target=cam.TopK(2)), "one map"),
        ("len", lambda: CAMDisplay.from_predictions(X, MAPS), "2 maps 'map' for 12 images"),
        ("axes", lambda: CAMDisplay.from_predictions(X[:2], IMAGES), r"shape \(1, 12, 12\)"),
        (
            "twins",
            lambda: CAMDisplay.from_estimator(fitted(), X, methods=["cam"] * 2),
            "have one name",
        ),
        (
            "a kind",
            lambda: CAMDisplay.from_estimator(fitted(), X, kind="heat"),
            r"kind must be one of \['overlay', 'map', 'both'\]; got 'heat'",
        ),
        ("alpha", lambda: CAMDisplay.from_estimator(fitted(), X, alpha="image"), "alpha must be"),
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
    # Images and networks
    "ImageDataset": [
        *(
            (
                f"size {size!r}",
                lambda size=size: ImageDataset(X, image_size=size),
                "image_size must be",
            )
            for size in (-8, 8.0, True, "8", "88", (8,), (8, 8, 3), (8, 0), None)
        ),
        ("size 0", lambda: ImageDataset(X, image_size=0), "a positive int or a pair .*got 0"),
        ("column", lambda: ImageDataset(X, image_column="a"), "image_column is 'a', which is for"),
        ("no column", lambda: ImageDataset([{"b": 1}], image_column="a"), "no entry 'a'; it has b"),
        (
            "crop",
            lambda: ImageDataset(X, resize="crop"),
            "be 'stretch' or 'center_crop', got 'crop'",
        ),
        ("no resize", lambda: ImageDataset(X, resize=None), "resize must be"),
        ("channels", lambda: ImageDataset(X, channels=1), "'first', 'last' or None; got 1"),
        (
            "channels first",
            lambda: ImageDataset(np.zeros((2, 1, 28, 28))),
            r"with its channels first; .* pass X.transpose\(0, 2, 3, 1\)",
        ),
        (
            "channels?",
            lambda: ImageDataset(torch.zeros(2, 3, 28, 3)),
            r"may come first or last. Say which: .*ImageDataset\(X, channels=",
        ),
        ("one image", lambda: ImageDataset(np.zeros((28, 28, 3))), r"pass X\[np.newaxis\]"),
        *(
            (
                f"background {colour!r}",
                lambda colour=colour: ImageDataset(X, background=colour),
                "background must be a colour, .* got",
            )
            for colour in ("no colour", 3, (0, 0), (0, 0, 256), (0, None, 0), "")
        ),
        ("a resize", lambda: ImageDataset(X, resize=["x"]), "resize must be .* got .'x'"),
        ("labels", lambda: ImageDataset(X, y=[1]), r"X has 12 image\(s\), but y has 1 label"),
        ("one label", lambda: ImageDataset(X, y=1), "y must hold one label an image, got 1"),
        (
            "ragged",
            lambda: ImageDataset(X[:2], y=[[1], [1, 2]]),
            "y must hold one label an image: ",
        ),
        ("channels", lambda: ImageDataset(X, n_channels=3), r"X has 1 channel.*fitted on 3\."),
        ("the 13th", lambda: ImageDataset(X)[12], "out of range", IndexError),
    ],
    "check_images": [("None", lambda: check_images(None), "X is None. X may be")],
    "n_images": [("None", lambda: n_images(None), "X is None. X may be")],
    "default_statistics": [
        ("0", lambda: default_statistics(0), "n_channels must be an int >= 1; got 0"),
    ],
    "normalize": [
        (
            "None",
            lambda: normalize(None, 0, 1),
            "batch must be a uint8 or float Tensor .* got None",
        ),
        ("arrays", lambda: normalize(IMAGES.numpy(), 0, 1), "batch must be .* got an ndarray"),
        ("one image", lambda: normalize(MAPS, 0, 1), r"batch must be .* shape \(2, 12, 12\)"),
        ("integers", lambda: normalize(IMAGES.int(), 0, 1), "batch must be .*int32"),
        ("no channel", lambda: normalize(IMAGES[:, :0], 0, 1), "n_channels must .* >= 1; got 0"),
        ("a word", lambda: normalize(IMAGES, "a", 1), "mean must be .*auto.* got a str, 'a'"),
        ("None as mean", lambda: normalize(IMAGES, None, 1), "mean must be .* got None"),
        ("ragged", lambda: normalize(IMAGES, [[1, 2], [3]], 1), "mean must be .* got a list"),
        (
            "two means",
            lambda: normalize(IMAGES, (1, 2), 1),
            r"mean has 2 values, .* 1 channel\(s\)",
        ),
        ("mean NaN", lambda: normalize(IMAGES, NAN, 1), "mean must be finite; got a float, nan"),
        (
            "std 0",
            lambda: normalize(IMAGES, 0, 0),
            "std must be finite and positive; got an int, 0",
        ),
        ("std -1", lambda: normalize(IMAGES, 0, -1), "std must be finite and positive"),
    ],
    "Resizing": [
        ("a mode", lambda: Resizing("squash"), "mode must be one of .* got 'squash'"),
        ("a filter", lambda: Resizing(interpolation="cubic"), "interpolation must be .* 'cubic'"),
        ("nothing of it", lambda: Resizing(crop_fraction=0), "crop_fraction must be .* got 0"),
        ("a colour", lambda: Resizing(fill=(255.0,)), "fill must be .* got 255"),
    ],
    "Preprocessing": [
        ("a size", lambda: Preprocessing(image_size=0), "image_size must be"),
        ("an order", lambda: Preprocessing(channel_order="cmyk"), "is not how images are prepared"),
        (
            "a number for 'auto'",
            lambda: Preprocessing().with_given(image_size="a"),
            "image_size must be",
        ),
    ],
    "map_to_frame": [
        ("None", lambda: map_to_frame(None, (2, 2)), "map_ must be .* got None"),
        ("an array", lambda: map_to_frame(MAPS.numpy(), (2, 2)), "map_ must be .* got an ndarray"),
        ("a row", lambda: map_to_frame(VALUES, (2, 2)), r"map_ must be .* shape \(2,\)"),
        ("integers", lambda: map_to_frame(MAPS.int(), (2, 2)), "map_ must be .*int32"),
        ("no pixels", lambda: map_to_frame(MAPS[:, :0], (2, 2)), r"map_ must be .* \(2, 0, 12\)"),
        ("no size", lambda: map_to_frame(MAPS, (0, 2)), r"size must be .* got \(0, 2\)"),
        ("a word", lambda: map_to_frame(MAPS, "ab"), "size must be .* got 'ab'"),
        ("a resize", lambda: map_to_frame(MAPS, (2, 2), resize="x"), "resize must be .* got 'x'"),
    ],
    "construct": [
        (
            "a number",
            lambda: construct(3, n_classes=2, in_channels=1),
            "must be the name of a network.*got 3 of type int",
        ),
        ("a str", lambda: construct(str, n_classes=2, in_channels=1), "must return an nn.Module"),
        (
            "options of an instance",
            lambda: construct(NET, n_classes=2, in_channels=1, width=3),
            "instance of SmallNet, .* takes no parameters any more, got width.*class",
        ),
    ],
    "Inputs": [
        ("None", lambda: Inputs.of(None), "must be a Tensor of shape .* got None"),
        ("no image", lambda: Inputs.of({"a": 1}), r"dict of \['a'\]; image_input must name"),
        ("one image", lambda: Inputs.of(INPUTS[0]), r"got a Tensor .* \(1, 16, 16\)"),
    ],
    "adapt": [
        (
            "a net's own size",
            lambda: adapt(fitted(), Preparation(image_size=8)),
            "image_size: a ConsistentCAMClassifier prepares images as it was trained",
        ),
    ],
    "blocks_of_trunk": [
        ("a stranger", lambda: blocks_of_trunk(NET, nn.ReLU(), INPUTS), "ReLU is not a part of"),
    ],
    "is_bypassed": [
        ("a stranger", lambda: is_bypassed(NET, nn.ReLU(), INPUTS), "ReLU is not a part of"),
    ],
    "stopping_after": [
        (
            "a name",
            lambda: enter(stopping_after("layer4")),
            "layer must be an nn.Module; got a str",
        ),
    ],
    "check_output": [
        ("None", lambda: check_output(NET, None, 3), "sample must be .* got None"),
        ("an image", lambda: check_output(NET, INPUTS[0], 3), "sample must be .* shape"),
        ("no output", lambda: check_output(NET, INPUTS, 0), "n_outputs must be .* got 0"),
        (
            "another width",
            lambda: check_output(NET, INPUTS, 7),
            r"shape \(2, 3\) for 7 classes, where .* wanted.*num_classes=7",
        ),
        ("a list", lambda: check_output([], INPUTS, 3), "model must be an nn.Module"),
    ],
    "build_model": [
        (
            "timm's slip",
            lambda: build_model("timm/resnet5"),
            "timm has no model 'resnet5'. Did you",
        ),
        (
            "timm's weights",
            lambda: build_model("timm/resnet18.x"),
            "timm has no weights 'x' of resnet18; it has a1_in1k, ",
        ),
        (
            "no weights",
            lambda: build_model("timm/resnet18", weights="x"),
            "'x' is not a name of weights of resnet18, of which timm has a1.*no such file or fold",
        ),
        (
            "its option",
            lambda: build_model("timm/resnet18", num_classes=2),
            "num_classes is said by n_classes",
        ),
        (
            "no folder",
            lambda: build_model("timm//no/such/folder"),
            "There is no folder '/no/such/folder'",
        ),
        ("no repository", lambda: build_model("transformers/"), "named .transformers/OWNER/NAME"),
        (
            "no folder of it",
            lambda: build_model("transformers//no/such/folder"),
            "There is no folder '/no/such/folder'",
        ),
        ("no source", lambda: build_model("tim/resnet50"), 'Did you mean "timm/resnet50"'),
        ("a sixth", lambda: build_model("efficientnet_lite9"), "mean: efficientnet_lite"),
        (
            "no package",
            lambda: build_model("efficientnet_lite4", weights="DEFAULT"),
            "No package has the weights of efficientnet_lite4; there are .* takes the path",
        ),
        (
            "no such weights",
            lambda: build_model("efficientnet_lite0", weights="x"),
            "'x' is not a name of weights of efficientnet_lite0, and no such file.*DEFAULT",
        ),
        (
            "an option",
            lambda: build_model("efficientnet_lite0", dropout=0.5),
            "efficientnet_lite0 has no option 'dropout'; it has .*dropout_rate",
        ),
        (
            "an option said",
            lambda: build_model("efficientnet_lite0", num_classes=5),
            "num_classes is said by n_classes",
        ),
        ("timm's", lambda: build_model("convnextv2_tiny"), 'timm has: "timm/convnextv2_tiny"'),
        (
            "a slip",
            lambda: build_model("resnet81", n_classes=3),
            r"Did you mean: resnet18.*Module",
        ),
        (
            "no classifier",
            lambda: build_model("fasterrcnn_resnet50_fpn", n_classes=3),
            "available_models",
        ),
        ("no class", lambda: build_model("alexnet", n_classes=0), "n_classes must .* >= 1; got 0"),
        ("a word", lambda: build_model("alexnet", n_classes="a"), "n_classes must .* got 'a'"),
        (
            "0",
            lambda: build_model("alexnet", n_classes=3, in_channels=0),
            "in_channels must be an i",
        ),
        (
            "9",
            lambda: build_model("alexnet", n_classes=3, weights=9),
            "weights must be a name, a pat",
        ),
        *(
            (
                f"weights {weights}",
                lambda weights=weights: build_model("alexnet", n_classes=3, weights=weights),
                "not a weights name of alexnet.*IMAGENET1K_V1.*DEFAULT.*no such file",
            )
            for weights in ("IMAGENET1K_V9", "ResNet50_Weights.IMAGENET1K_V1", Path("nothing.pt"))
        ),
        (
            "another size",
            lambda: build_model("vit_b_16", n_classes=3, image_size=(100, 100)),
            r"a multiple of 16, got image_size=\(100, 100\); \(96, 96\) fits",
        ),
        *(
            (
                f"{size} of a transformer",
                lambda size=size: build_model("vit_b_16", n_classes=3, image_size=size),
                r"vit_b_16 takes square images.*multiple of 16.*\(\d+, ",
            )
            for size in ((64, 96), (60, 60), (1, 1))
        ),
    ],
    "find_target_layer": [
        ("a slip", lambda: find_target_layer(ImageAndVector(), "conf"), "Did you mean: conv"),
        ("empty", lambda: find_target_layer(NET, ""), "no layer ''"),
        ("no such", lambda: find_target_layer(NET, TargetLayer("44")), "has no layer '44'"),
        ("None", lambda: find_target_layer(NET, None), "target_layer must be .* got None"),
        ("the layer", lambda: find_target_layer(NET, NET[4]), "target_layer must be .* a Conv2d"),
        ("no network", lambda: find_target_layer(None), "model must be an nn.Module; got None"),
        ("no sample", lambda: find_target_layer(NET), r"layers of SmallNet are not known.*sample"),
        ("a word", lambda: find_target_layer(NET, sample="a"), "sample must be .* got a str, 'a'"),
        (
            "colour",
            lambda: find_target_layer(NET, sample=torch.rand(1, 3, 8, 8)),
            "fails on images",
        ),
    ],
    "TargetLayer": [
        ("no name", lambda: TargetLayer(""), "A target layer needs a name"),
        ("a number", lambda: TargetLayer(3), "A target layer's name is a str; got an int, 3"),
        ("a layout", lambda: TargetLayer("a", "nwhc"), 'layout must be "nchw", .* got .nwhc'),
        ("a number of tokens", lambda: TargetLayer("a", "tokens", grid=7), "grid must be a tuple"),
        ("no grid", lambda: TargetLayer("a", "tokens"), "has tokens; give grid=.rows, columns"),
        ("a grid", lambda: TargetLayer("a", "tokens", grid="ab"), "grid must be a tuple .* 'ab'"),
        ("prefix", lambda: TargetLayer("a", n_prefix=-1), "n_prefix must be an int >= 0; got -1"),
        (
            "half a run",
            lambda: TargetLayer("a", run=0.5),
            "run must be an int, .* got a float, 0.5",
        ),
        ("a flag", lambda: TargetLayer("a", run=True), "run must be an int, .* got a bool"),
        (
            "rows",
            lambda: TargetLayer("a").to_grid(torch.zeros(4, 1, 2, 2), 2),
            r"'a' gives 4 rows, of shape \(4, 1, 2, 2\), for 2 images.*reshape",
        ),
        ("reshape", lambda: TargetLayer("a", reshape=3), "reshape must be a callable .* an int, 3"),
        ("None", lambda: TargetLayer("a").to_grid(None), "should give a Tensor .* got NoneType"),
    ],
    # Data sets, of numbers only; files are below
    "load_digits": [
        ("none", lambda: datasets.load_digits(n_class=0), "n_class.* must be .* Got 0"),
        ("11", lambda: datasets.load_digits(n_class=11), "n_class.* must be .* Got 11"),
    ],
    "LazyMask": [
        ("an array", lambda: datasets.LazyMask(X), "read must be a callable .* an ndarray"),
    ],
}


def completed(row: Row) -> Row:
    return row if len(row) == 4 else (*row, ValueError)


def rows_of(table: dict[str, list[Row]]) -> list[Any]:
    return [
        pytest.param(*refusal, id=f"{entry}: {came}")
        for entry, rows in table.items()
        for came, *refusal in map(completed, rows)
    ]


@pytest.mark.parametrize(("call", "match", "error"), rows_of(REFUSALS))
def test_refusals(call, match, error):
    with pytest.raises(error, match=match):
        call()


# Files


def written(folder: Path, content: bytes, name: str = "file") -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def saved(folder: Path, estimator: Any) -> Path:
    sklcam.save(estimator, folder / "saved")
    return folder / "saved"


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


def report(folder: Path, **changes: Any) -> Any:
    options = {"estimator": fitted(), "X": X, "y": Y, "path": folder / "page.html", "verbose": 0}
    return sklcam.report(**{**options, "metrics": "sparsity", **changes})


def of_folders(load: Callable, tree: str, missing: str) -> list[Row]:
    """What loaders of folders refuse, all alike."""
    return [
        ("None", lambda _: load(None), "expected str, bytes or os.PathLike.* not None", TypeError),
        (
            "no folder",
            lambda f: load(f / "no"),
            rf"no is not a folder\. The expected layout is:\n{tree}",
            FileNotFoundError,
        ),
        ("empty", lambda f: load(f), missing, (ValueError, FileNotFoundError)),
    ]


FILES: dict[str, list[Row]] = {
    "save": [
        ("None", lambda f: sklcam.save(None, f / "x"), "got a NoneType", PersistenceError),
        (
            "a network",
            lambda f: sklcam.save(NET, f / "x"),
            "by a CAMExplainer around",
            PersistenceError,
        ),
        ("a class", lambda f: sklcam.save(CAMExplainer, f / "x"), "ABCMeta", PersistenceError),
        (
            "no numbers",
            lambda f: sklcam.save(classifier(classes=torch.eye(2).to_sparse()), f / "x"),
            "classes is a tensor without",
            PersistenceError,
        ),
        ("no path", lambda _: sklcam.save(explainer(), None), "not NoneType", TypeError),
        ("a folder", lambda f: sklcam.save(explainer(), f), "is a folder", IsADirectoryError),
        (
            "nowhere",
            lambda f: sklcam.save(explainer(), f / "a" / "b"),
            "no folder",
            FileNotFoundError,
        ),
        ("a pipe", lambda f: sklcam.save(explainer(), pipe(f)), "is a device, a pipe", OSError),
    ],
    "load": [
        ("None", lambda _: sklcam.load(None), "not NoneType", TypeError),
        ("missing", lambda f: sklcam.load(f / "no"), "No such file", FileNotFoundError),
        ("a list", lambda f: sklcam.load(f / "x", objects=[SmallNet]), "objects must be a dict of"),
        ("a pipe", lambda f: sklcam.load(pipe(f)), "is a device or a pipe", PersistenceError),
        ("text", lambda f: sklcam.load(written(f, b"abc")), "not a file that", PersistenceError),
        (
            "no objects",
            lambda f: sklcam.load(saved(f, explainer())),
            "objects=.'SmallNet': SmallNet",
            PersistenceError,
        ),
    ],
    "model_card": [
        ("None", lambda _: sklcam.model_card(None), "describes the estimators .* got None"),
        ("a network", lambda _: sklcam.model_card(NET), "describes the estimators .* a SmallNet"),
        (
            "a class",
            lambda _: sklcam.model_card(CAMExplainer),
            "describes the estimators .*ABCMeta",
        ),
        ("a number", lambda _: sklcam.model_card(explainer(), metrics=3), "metrics must be a dict"),
    ],
    "report": [
        ("no path", lambda f: report(f, path=None), "report needs path="),
        ("a folder", lambda f: report(f, path=f), "is a folder", IsADirectoryError),
        ("nowhere", lambda f: report(f, path=f / "a" / "b"), "There is no fold", FileNotFoundError),
        ("no one", lambda f: report(f, estimator=None), "estimator must be"),
        (
            "unfitted",
            lambda f: report(f, estimator=classifier()),
            "call fit first",
            NotFittedError,
        ),
        ("no images", lambda f: report(f, X=None), "X is None"),
        ("labels", lambda f: report(f, y=Y[:3]), "y has 3 entries for 12 images"),
        ("names", lambda f: report(f, names=["a"]), "one entry for each of 12 images; got 1"),
        ("a name", lambda f: report(f, names=3), "one entry for each of 12 images; got an int, 3"),
        ("a set", lambda f: report(f, names={*"abcdefghijkl"}), "names must .*; got a set, "),
        ("a dict", lambda f: report(f, names=dict.fromkeys("abcdefghijkl")), "names .* got a dict"),
        (
            "none shown",
            lambda f: report(f, n_images=0),
            "n_images must be an int >= 1; got 0",
        ),
        (
            "tiny",
            lambda f: report(f, thumbnail=5),
            "thumbnail must be an int from 32 to 1024",
        ),
        ("a metric", lambda f: report(f, metrics="adc"), "Did you mean: adcc"),
    ],
    "load_weights": [
        ("None", lambda _: load_weights(NET, None), "path must be the path of a file; got None"),
        ("no network", lambda f: load_weights(None, f), "model must be an nn.Module; got None"),
        ("missing", lambda f: load_weights(NET, f / "no"), "cannot be read .*FileNotFoundError"),
        (
            "text",
            lambda f: load_weights(NET, written(f, b"abc")),
            "file'? cannot be read as a state",
        ),
        ("empty", lambda f: load_weights(NET, written(f, b"")), "file.* cannot be read as a st"),
        ("a folder", lambda f: load_weights(NET, f), "cannot be read"),
    ],
    "dataset_labels": [
        (
            "folders of splits",
            lambda _: dataset_labels(SplitFolders()),
            "folders of splits, train, test: make one of each",
        ),
    ],
    "load_class_folders": of_folders(
        datasets.load_class_folders, "<root>/<class>", "has no folders of classes"
    ),
    "load_caltech101": [
        *of_folders(
            datasets.load_caltech101,
            "<root>/101_ObjectCategories/<class>/image_0001",
            "has no 101_ObjectCategories",
        ),
        (
            "a part",
            lambda f: datasets.load_caltech101(f, subset="val"),
            "subset must be one of train, test, all; got 'val'",
        ),
    ],
    "load_cub200": [
        *of_folders(datasets.load_cub200, "<root>/images.txt", "has no images.txt"),
        ("a part", lambda f: datasets.load_cub200(f, subset=["x"]), "train, test, all; got .'x'"),
    ],
    "load_imagenet": [
        *of_folders(datasets.load_imagenet, "<root>/<subset>/<wnid>", "has no val"),
        (
            "a part",
            lambda f: datasets.load_imagenet(f, subset="test"),
            "subset must be one of train, val; got 'test'",
        ),
    ],
    "load_voc": [
        ("None", lambda _: datasets.load_voc(None), "os.PathLike.* not .*None", TypeError),
        (
            "no folder",
            lambda f: datasets.load_voc(f),
            r"VOC2012 is not a folder\. The expected layout is:\n<root>/VOCdevkit/VOC<year>/JPEG",
            FileNotFoundError,
        ),
        ("a year", lambda f: datasets.load_voc(f, year="2013"), "one of 2007, .*2012; got '2013'"),
        ("a part", lambda f: datasets.load_voc(f, subset="all"), "trainval, test; got 'all'"),
    ],
    "load_boxes_csv": [
        ("None", lambda _: datasets.load_boxes_csv(None), "not NoneType", TypeError),
        ("missing", lambda f: datasets.load_boxes_csv(f / "no"), "No such file", FileNotFoundError),
    ],
}


@pytest.mark.parametrize(("call", "match", "error"), rows_of(FILES))
def test_refusals_of_files(call, match, error, tmp_path):
    with pytest.raises(error, match=match):
        call(tmp_path)


# Every public name has a row, or a reason to have none

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
    "ExplainedBatch": "made by an Explainer",
    "Explainer": "a base class",
    "Measurement": "made by an Evaluator",
    "OpenedImages": "made by an Explainer",
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
    *("cam", "datasets", "embeddings", "explain", "images", "metrics", "networks", "persistence"),
    *("plotting", "reporting", "training"),
)
PACKAGES = ("sklcam", *(f"sklcam.{room}" for room in ROOMS))


def public_names() -> set[str]:
    """The names of all ``__all__``, and those of the reference."""
    found = {name for package in PACKAGES for name in importlib.import_module(package).__all__}
    reference = Path(__file__).parent.parent / "docs" / "api.rst"
    return found | set(re.findall(r"^   (\w+)$", reference.read_text(), re.MULTILINE))


def test_every_public_name_has_its_rows():
    without = public_names() - REFUSALS.keys() - FILES.keys()
    assert without == TAKES_NOTHING_WRONG.keys()


def public_functions() -> dict[str, Callable]:
    """The functions among the public names, from wherever the reference has them."""
    reference = (Path(__file__).parent.parent / "docs" / "api.rst").read_text()
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


@pytest.mark.parametrize("name", sorted(FUNCTIONS.keys() & {*REFUSALS, *FILES}))
def test_what_a_function_refuses_is_in_its_docstring(name):
    named = named_errors(inspect.getdoc(FUNCTIONS[name]) or "")
    rows = [*REFUSALS.get(name, []), *FILES.get(name, [])]
    # A row's error may be a tuple, of kinds of which one is raised.
    kinds = [error if isinstance(error, tuple) else (error,) for *_, error in map(completed, rows)]
    unnamed = [kind for kind in kinds if not any(is_named(error, named) for error in kind)]
    assert not unnamed


@pytest.mark.parametrize("name", ["GradCAMPlusPlus", "HiResCAM", "LayerCAM", "XGradCAM"])
def test_methods_without_rows_have_no_other_options(name):
    assert list(getattr(cam, name)().get_params()) == ["relu"]


# Before any work


class Untouchable(SmallNet):
    """A network that must not be run."""

    def forward(self, x):
        raise AssertionError("The network was run before the refusal.")


@pytest.fixture
def asleep() -> ConsistentCAMClassifier:
    """A fitted classifier whose network fails the test if it is run."""
    ready = classifier().fit(X, Y)
    ready.module_.__class__ = Untouchable
    return ready


@pytest.mark.parametrize(
    "refused",
    [
        lambda clf: clf.explain(X, 99),
        lambda clf: clf.explain(X, out=np.zeros(3)),
        lambda clf: clf.explain_batch(INPUTS, methods=["gradcam", "gradcm"]),
        lambda clf: clf.strongest_channels(X, k=0),
        lambda clf: evaluate(estimator=clf, boxes=[BOX] * 11 + [-BOX]),
        lambda clf: with_params_of(clf, "iauc", n_steps=0),
        lambda clf: with_params_of(clf, "consistency", views=3),
        lambda clf: CAMDisplay.from_estimator(clf, X, kind="x"),
        lambda clf: CAMDisplay.from_estimator(clf, X, alpha=2),
        lambda clf: CAMDisplay.from_estimator(clf, X, alpha="x"),
        lambda clf: CAMDisplay.from_estimator(clf, X, cmap="virids"),
        lambda clf: CAMDisplay.from_estimator(clf, X, limits=(1, 0)),
        lambda clf: CAMDisplay.from_estimator(clf, X, limits=3),
        lambda clf: CAMDisplay.from_estimator(clf, X, ax=3),
        lambda clf: CAMDisplay.from_estimator(clf, X, colour="red"),
        lambda clf: CAMDisplay.from_estimator(clf, X, methods=["gradcam", "gradcm"]),
        lambda clf: ConsistencyDisplay.from_estimator(clf, X, bins=0),
        lambda clf: LocalizationDisplay.from_estimator(clf, X, [BOX] * 12, n_columns="a"),
        lambda clf: ViewPairDisplay.from_estimator(clf, X, alpha=0.5),
        lambda clf: sklcam.report(clf, X, Y, "no/such/folder/page.html"),
    ],
)
def test_nothing_is_run_before_a_refusal(refused, asleep):
    with pytest.raises((ValueError, TypeError, OSError)):
        refused(asleep)


def with_params_of(estimator, metric, **options):
    return evaluate(metric, estimator=estimator, metric_params={metric: options})


def test_neighbours_are_not_searched_before_a_refusal(monkeypatch):
    monkeypatch.setattr(EmbeddingCAMExplainer, "transform", None)
    for options in ({"k": 13}, {"method": "gradcm"}):
        with pytest.raises(ValueError, match=r"k, how many|Did you mean"):
            embedder().explain_neighbors(X, X, **options)
    monkeypatch.setattr(EmbeddingCAMExplainer, "explain", None)
    with pytest.raises(ValueError, match="must be pairs of images"):
        embedder().explain_pairs(X, X[:1])


def test_no_model_is_trained_before_a_refusal(monkeypatch):
    monkeypatch.setattr(ConsistentCAMClassifier, "fit", None)
    for wrong in ({"p": [1], "alhpa": [1]}, {"p": []}):
        with pytest.raises(ValueError, match=r"alhpa|param_grid needs"):
            MapGridDisplay.from_estimator(classifier(), X, Y, image=X[:1], param_grid=wrong)


def test_a_device_that_is_not_here_is_refused_by_number():
    beyond = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(ValueError, match=f"device='{beyond}' is not here"):
        classifier(device=beyond).fit(X, Y)


def test_words_of_skorch_stay_allowed():
    for callbacks in ([], None, "disable"):
        classifier(callbacks=callbacks, max_epochs=0).fit(X, Y)
    classifier(batch_size=-1, max_epochs=0).fit(X, Y)


# Packages that are missing


def without(monkeypatch, *names: str) -> None:
    """Let imports of these packages fail, as where they are not installed."""
    for name in list(sys.modules):
        if name.split(".")[0] in names:
            monkeypatch.delitem(sys.modules, name)
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize(
    ("package", "call", "match"),
    [
        ("matplotlib", lambda: CAMDisplay.from_estimator(fitted(), X), r"sklcam\[plot\]"),
        ("matplotlib", lambda: CAMDisplay.from_predictions(X[:2], MAPS), r"sklcam\[plot\]"),
        ("matplotlib", lambda: CAMDisplay(images=X, maps={}).plot(), r"sklcam\[plot\]"),
        ("matplotlib", lambda: ViewPairDisplay.from_estimator(fitted(), X), r"sklcam\[plot\]"),
        (
            "matplotlib",
            lambda: MapGridDisplay.from_estimator(fitted(), X, Y, image=X[:1], param_grid={}),
            r"sklcam\[plot\]",
        ),
        ("matplotlib", lambda: ConsistencyDisplay.from_predictions([1]), r"sklcam\[plot\]"),
        ("matplotlib", lambda: CausalCurveDisplay.from_predictions(None), r"sklcam\[plot\]"),
        ("matplotlib", lambda: LocalizationDisplay.from_estimator(NET, X, []), r"sklcam\[plot\]"),
        ("matplotlib", lambda: RetrievalDisplay.from_estimator(NET, X, X), r"sklcam\[plot\]"),
        ("matplotlib", lambda: TradeoffDisplay.from_cv_results({}), r"sklcam\[plot\]"),
        ("matplotlib", lambda: TradeoffBoxDisplay.from_cv_results({}, by="p"), r"sklcam\[plot\]"),
        ("jinja2", lambda: sklcam.report(fitted(), X, Y, "page.html"), r"sklcam\[report\]"),
        ("accelerate", lambda: AcceleratedCAMClassifier(SmallNet).fit(X, Y), r"\[accelerate\]"),
        (
            "pytorch_metric_learning",
            lambda: embedding_net().fit(X, Y),
            r"sklcam\[metric-learning\]",
        ),
        ("pandas", lambda: evaluation().to_frame(), "pip install pandas"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(package, call, match, monkeypatch):
    fitted()
    without(monkeypatch, package)
    with pytest.raises(ImportError, match=match):
        call()


# Writes that are interrupted, and full disks


class FailingFile(io.BufferedRandom):
    """A file that takes some bytes, and then no more."""

    left = 0
    error: BaseException = OSError(errno.ENOSPC, "No space left on device")

    def write(self, data):
        self.left -= len(data)
        if self.left < 0:
            raise self.error
        return super().write(data)


@pytest.fixture(params=[OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def failing(request, monkeypatch) -> Iterator[Callable[[int], BaseException]]:
    """Let new files fail after so many bytes; the error that they raise."""
    really_open = Path.open

    def fail_after(n_bytes: int) -> BaseException:
        def opened(path, mode="r", *args, **kwargs):
            file = really_open(path, mode, *args, **kwargs)
            if "x" not in mode:
                return file
            failing_file = FailingFile(file.detach())
            failing_file.left, failing_file.error = n_bytes, request.param
            return failing_file

        monkeypatch.setattr(Path, "open", opened)
        return request.param

    return fail_after


@pytest.mark.parametrize("n_bytes", [0, 100, 4000])
@pytest.mark.parametrize(
    "write",
    [
        lambda path: sklcam.save(explainer(), path),
        lambda path: sklcam.report(fitted(), X, Y, path, metrics="sparsity", verbose=0),
    ],
)
def test_a_write_that_fails_leaves_the_old_file_and_no_other(write, n_bytes, failing, tmp_path):
    path = written(tmp_path, b"the old one")
    error = failing(n_bytes)
    with pytest.raises(type(error)):
        write(path)
    assert path.read_bytes() == b"the old one"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_disk_that_is_full_at_the_end_leaves_the_old_file(step, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = written(tmp_path, b"the old one")
    monkeypatch.setattr(f"sklcam._files.os.{step}", full)
    with pytest.raises(OSError, match="No space left"):
        sklcam.save(explainer(), path)
    assert path.read_bytes() == b"the old one"
    assert list(tmp_path.iterdir()) == [path]


def test_a_report_that_is_interrupted_while_it_measures_leaves_the_old_page(tmp_path):
    def interrupt(output):
        raise KeyboardInterrupt

    path = written(tmp_path, b"the old one")
    with pytest.raises(KeyboardInterrupt):
        sklcam.report(fitted(), X, Y, path, metrics="adcc", score=interrupt, verbose=0)
    assert path.read_bytes() == b"the old one"
    assert list(tmp_path.iterdir()) == [path]


def test_maps_written_to_a_memory_map_are_there_up_to_the_interruption(tmp_path, monkeypatch):
    """``out`` keeps what was explained, and the network is as it was before."""
    out = np.lib.format.open_memmap(tmp_path / "maps.npy", mode="w+", shape=(12, 16, 16))
    ready = classifier().fit(X, Y)
    whole = ready.explain(X)
    passes = []

    def interrupt(module, inputs):
        passes.append(len(inputs[0]))
        if len(passes) == 2:
            raise KeyboardInterrupt

    handle = ready.module_.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        ready.explain(X, out=out)
    handle.remove()
    np.testing.assert_array_equal(out[:6], whole[:6].astype(out.dtype))
    assert not out[6:].any()
    np.testing.assert_array_equal(ready.explain(X), whole)
