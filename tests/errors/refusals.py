"""Refusals of every public entry: one row each, and the only place where it is tested.

A row holds the case, the call, a pattern of the message, and the error if it is not a ValueError.
The tables stand in the files of this folder, by part of the library, and what they share here.
Tests of a room have what only its own files and data can show: content that is damaged, cut off
or contradicts itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.exceptions import NotFittedError
from small_networks import SmallNet, digits
from torch.utils.data import DataLoader

from sklcam import (
    CAMExplainer,
    ConsistentCAMClassifier,
    EmbeddingCAMExplainer,
    EmbeddingNet,
    cam,
    metrics,
)
from sklcam.training import Warp

NAN, INF = float("nan"), float("inf")
X, Y = digits(12)
COLOUR = np.repeat(X[..., None], 3, axis=-1)
MAPS = torch.rand(2, 12, 12, generator=torch.Generator().manual_seed(0))
VALUES, MORE = torch.tensor([0.2, 0.9]), torch.tensor([0.1, 0.5, 0.7])
IMAGES = MAPS[:, None]
LOGITS = torch.tensor([[1.0, 3.0, 2.0], [0.0, 1.0, 5.0]])
BOX = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
VIEWS = Warp.identity(2)
NET = SmallNet().eval()
INPUTS = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
OPTIONS: dict[str, Any] = {
    **{"image_size": 16, "max_epochs": 1, "batch_size": 6},
    **{"verbose": 0, "random_state": 0, "device": "cpu"},
}


def score(images, rows):
    return images.mean(dim=(1, 2, 3))


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


def evaluate(metric="sparsity", X=X, y=None, estimator=None, **options):
    return metrics.evaluate(
        fitted() if estimator is None else estimator,
        X, y, metrics=metric, progress=False, **options,
    )  # fmt: skip


def causal(follow, **changes):
    return follow(**{"score": score, "images": IMAGES, "maps": MAPS, **changes})


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
            resize=["crop"], decode=["quick", None], mean=["x", None], random_state=["a", -1],
            lr=[-1, "a", NAN],
            max_epochs=[-1, 1.5], batch_size=[0, -2, "a", None], optimizer=["SGD", None],
            criterion=[3], train_split=[0.2], callbacks=[3], image_size=[0, -1, 1.5, "a"],
        ),
        ("unknown network", lambda: make(module="resnet81").fit(X, Y), "Did you mean: resnet18"),
        ("no network", lambda: make(module=int).fit(X, Y), "module must return an nn.Module"),
        ("unknown layer", lambda: make(target_layer="44").fit(X, Y), "has no layer '44'"),
        ("no weights", lambda: make(weights="nope").fit(X, Y), "weights='nope' is not a file"),
        ("three sides", lambda: make(image_size=(11, 12, 13)).fit(X, Y), r"size=.*13\) is for"),
        ("a side of True", lambda: make(image_size=True).fit(X, Y), "image_size must be .* True"),
        ("two means", lambda: make(mean=(1, 2)).fit(X, Y), "mean has 2 values, .* 1 channel"),
        ("mean NaN", lambda: make(mean=[NAN]).fit(X, Y), "mean must be finite; got .*nan"),
        ("std 0", lambda: make(std=0).fit(X, Y), "std must be finite and positive; got .*0"),
        ("mean 124", lambda: make(mean=123.7).fit(X, Y), "from 0 to 255, .* Divide it by 255"),
        ("std 58", lambda: make(std=[58.4]).fit(X, Y), "from 0 to 255, .* Divide it by 255"),
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


def of_writing(write: Callable) -> list[Row]:
    """What is refused before anything is written of maps, or values, in chunks."""
    wanted = r"shard must be \(index, count\),? "
    return [
        ("a number", lambda: write(shard=3), wanted + "as in .* got an int, 3"),
        ("three", lambda: write(shard=(0, 1, 2)), wanted + "as in .* got a tuple"),
        ("names", lambda: write(shard=("a", 2)), wanted + "as in"),
        ("the last and one", lambda: write(shard=(2, 2)), wanted + r".* got \(2, 2\)"),
        ("none of two", lambda: write(shard=(-1, 2)), wanted + r".* got \(-1, 2\)"),
        ("no chunks", lambda: write(chunk_size=0), "chunk_size must be an int >= 1; got 0"),
        (
            "half a chunk",
            lambda: write(chunk_size=0.5),
            "chunk_size must be an int >= 1; got .*0.5",
        ),
    ]


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
        ("rows of none", lambda: explain(np.zeros((n, 0), int)), "one row of labels"),
        ("a dict", lambda: explain({}), r"all numbers or all strings; got \[{}|a dict of \[\]"),
        ("an object", lambda: explain(object()), "all numbers or all strings"),
        ("Nones", lambda: explain([None] * n), "all numbers or all strings"),
        ("ragged rows", lambda: explain([[0], [0, 1]]), "the same number of labels for each"),
        ("TopK of many", lambda: explain(cam.TopK(9)), r"TopK\(9\) asks for more classes .*: 3"),
        ("a callable's rows", lambda: explain(lambda o: o), "one score per image, of shape"),
        ("a callable's sum", lambda: explain(lambda o: o.sum()), "one score per image"),
        ("detached", lambda: explain(lambda o: o.detach()[:, 0]), "without detach"),
        ("unknown method", lambda: explain(method="gradcm"), "Did you mean: gradcam"),
        ("no method", lambda: explain(method=3), "method must be a name or a method object"),
        ("an abstract one", lambda: explain(method=cam.Method), "is a base class. Derive your own"),
        ("unknown frame", lambda: explain(frame="x"), 'be "input", "image" or "layer"; got .x'),
        ("no layer", lambda: explain(method="saliency", frame="layer"), "Saliency makes its maps"),
        ("no workers", lambda: explain(num_workers=-1), "num_workers must be an int >= 0; got -1"),
        ("ints", lambda: explain(dtype="int8"), "dtype must be .float16., .* got .int8"),
        ("nonsense", lambda: explain(dtype="x"), "dtype must be .float16., .* got .x"),
        ("narrow", lambda: explain(normalize=False, dtype="float16"), "float16 is for maps scaled"),
        (
            "two dtypes",
            lambda: explain(dtype="float16", out=np.zeros((n, 16, 16))),
            "dtype is float16, but out has float64",
        ),
        ("out a list", lambda: explain(out=[]), f"out must be .* {shape}; got .*list"),
        ("out too small", lambda: explain(out=np.zeros((1, 2, 3))), rf"{shape}; got .*\(1, 2, 3\)"),
        (
            "out read-only",
            lambda: explain(out=np.broadcast_to(np.zeros(1), (n, 16, 16))),
            "out is read-only",
        ),
        ("out of ints", lambda: explain(out=np.zeros((n, 16, 16), int)), "out must be .* int64"),
        ("out of images", lambda: explain(frame="image", out=np.zeros(3)), "out= takes maps of on"),
        *of_writing(lambda **options: make().explain_to(images, "no/maps", **options)),
        ("lazily, too", lambda: make().iter_explain(images, 99), "not seen in fit"),
        ("streams", lambda: make().iter_explain(iter(images), [1]), "be the same for all of"),
        ("a stream", lambda: make().explain(iter(images)), "no indices.* explainer's iter"),
        ("a loader", lambda: make().explain(DataLoader(images)), r"X.dataset\. An explainer's"),
        ("a table", lambda: make().explain(pd.DataFrame({"a": [], "b": []})), "columns 'a', 'b'"),
        ("no channel", lambda: make().strongest_channels(images, k=0), "k, .* int >= 1; got 0"),
        ("channels", lambda: make().strongest_channels(images, k=99), "k, .* 1 to 8; got 99"),
        ("no weights", lambda: make().channel_weights(images, method="layercam"), "not give each"),
        ("no inputs", lambda: make().explain_inputs(None), "must be a Tensor of shape .* got None"),
        ("arrays", lambda: make().explain_inputs(INPUTS.numpy()), "images must be .* an ndarray"),
        ("one image", lambda: make().explain_inputs(INPUTS[0]), r"got .* shape \(1, 16, 16\)"),
        ("no rows", lambda: make().explain_inputs(INPUTS[:0]), r"got .* shape \(0, 1, 16, 16\)"),
        ("a list", lambda: make().explain_inputs(INPUTS, [0, 1]), "target must be None, a Tensor"),
        ("index 9", lambda: make().explain_inputs(INPUTS, torch.tensor([0, 9])), "from 0 to 9, bu"),
        ("index -1", lambda: make().explain_inputs(INPUTS, torch.tensor([0, -1])), "from -1 to 0"),
        ("methods", lambda: make().explain_batch(INPUTS, methods=[]), "at least one method"),
        ("a name", lambda: make().explain_batch(INPUTS, methods="cam"), "methods must be a"),
        ("no output", lambda: make().output_of(None), "must be a Tensor .* got None"),
        ("labels", lambda: make().score(images), "y to be passed|score needs y"),
        ("labels too few", lambda: make().score(images, [0]), "inconsistent numbers of samples"),
    ]  # fmt: skip


def completed(row: Row) -> Row:
    return row if len(row) == 4 else (*row, ValueError)


def rows_of(table: dict[str, list[Row]]) -> list[Any]:
    return [
        pytest.param(*refusal, id=f"{entry}: {came}")
        for entry, rows in table.items()
        for came, *refusal in map(completed, rows)
    ]


def written(folder: Path, content: bytes, name: str = "file") -> Path:
    (folder / name).write_bytes(content)
    return folder / name
