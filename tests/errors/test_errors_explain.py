"""What explainers of networks refuse; an interruption leaves the maps that were written."""

from __future__ import annotations

import numpy as np
import pytest
from refusals import (
    INPUTS,
    NET,
    Row,
    X,
    Y,
    classifier,
    explainer,
    fitted,
    of_explaining,
    of_parameters,
    rows_of,
)
from sklearn.exceptions import NotFittedError
from skorch import NeuralNetClassifier
from small_networks import ImageAndVector, SmallNet
from torch import nn

from sklcam import CAMExplainer, cam, open_maps

REFUSALS: dict[str, list[Row]] = {
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
            decode=["x", None, True],
            mean=["x", None],
            batch_size=[0, "a"],
            num_workers=[-1],
            precision=["half", None],
            verbose=["a"],
        ),
        ("one output", lambda: CAMExplainer(SmallNet(1)).fit(INPUTS), 'one output.*task="binary"'),
        ("binary", lambda: CAMExplainer(NET, task="binary").fit(INPUTS), "this one has 3"),
        ("own task", lambda: CAMExplainer(fitted(), task="binary").fit(X), "was trained for 'mul"),
        ("untrained", lambda: CAMExplainer(classifier()).fit(), "not fitted yet", NotFittedError),
        (
            "an untrained net",
            lambda: CAMExplainer(NeuralNetClassifier(SmallNet)).fit(INPUTS),
            "The NeuralNetClassifier is not fitted. Fit it before",
            NotFittedError,
        ),
        ("before fit", lambda: CAMExplainer(NET).explain(X), "is not fitted yet", NotFittedError),
        ("two methods", lambda: CAMExplainer(NET, "gradcan").fit(INPUTS), "Did you mean: gradcam"),
        ("options", lambda: CAMExplainer(NET, cam.GradCAM(pooling="x")).fit(), "pooling must be"),
        ("layer 44", lambda: CAMExplainer(NET, target_layer="44").fit(), "has no layer '44'"),
        (
            "no class",
            lambda: CAMExplainer(NET, nn.ReLU).fit(INPUTS),
            "Derive it from sklcam.cam.Method",
        ),
        ("second", lambda: CAMExplainer(NET, target_layer=["5", "55"]).fit(), "no layer '55'"),
        ("auto twice", lambda: CAMExplainer(NET, target_layer=["5", "auto"]).fit(INPUTS), "twice"),
        ("no layers", lambda: CAMExplainer(NET, target_layer=[]).fit(INPUTS), "an empty list"),
        ("a layer twice", lambda: CAMExplainer(NET, target_layer=["4", "4"]).fit(INPUTS), "twice"),
        ("number 4", lambda: CAMExplainer(NET, target_layer=[4]).fit(INPUTS), "dotted name"),
        ("few classes", lambda: CAMExplainer(NET, classes=["a"]).fit(INPUTS), "has 3 outputs, but"),
        (
            "one side",
            lambda: CAMExplainer(NET, image_size=(8,)).fit(X),
            r"image_size must .*\(8,\)",
        ),
        ("std 0", lambda: CAMExplainer(NET, std=0).fit(X), "std must be finite and positive"),
        ("mean of 2", lambda: CAMExplainer(NET, mean=(0, 1)).fit(X), "mean has 2 values"),
        ("own mean", lambda: CAMExplainer(fitted(), mean=0.5).fit(X), "as in its training"),
        (
            "float64 in bf16",
            lambda: CAMExplainer(SmallNet().double(), precision="bf16").fit(INPUTS.double()),
            "but this one has float64",
        ),
        (
            "float16 in fp16",
            lambda: CAMExplainer(SmallNet().half(), precision="fp16").fit(INPUTS.half()),
            "but this one has float16",
        ),
        (
            "a file of bf16",
            lambda: CAMExplainer(NET, precision="bf16").fit(INPUTS).export("network.onnx"),
            "a file computes in float32",
        ),
        ("meta", lambda: CAMExplainer(SmallNet().to("meta")).fit(), "network is on the meta dev"),
        ("several", lambda: CAMExplainer(ImageAndVector(), image_input="image").fit(), "an X"),
        (
            "no name",
            lambda: CAMExplainer(ImageAndVector()).fit({"image": X}),
            "image_input must na",
        ),
        *of_explaining(explainer, INPUTS),
        (
            "maps of images' sizes",
            lambda: explainer().explain_to(INPUTS, "no/maps", frame="image"),
            "explain_to writes maps of one size",
        ),
        (
            "narrow",
            lambda: explainer().explain_to(INPUTS, "no/maps", normalize=False, dtype="float16"),
            "float16 is for maps scaled",
        ),
    ],
    "open_maps": [
        ("nothing", lambda: open_maps("no/maps"), "'no/maps' is not a folder of maps"),
        ("a folder", lambda: open_maps("."), "it has no about.json"),
    ],
}


@pytest.mark.parametrize(("call", "match", "error"), rows_of(REFUSALS))
def test_refusals(call, match, error):
    with pytest.raises(error, match=match):
        call()


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
