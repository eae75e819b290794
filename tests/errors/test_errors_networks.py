"""What functions that build, search and record networks refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from refusals import INPUTS, NET, Row, fitted, rows_of, written
from small_networks import ImageAndVector
from torch import nn

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


def recorded(*layers, network=NET):
    with record(network, *layers) as tape:
        return tape.activations


def trunk_of(network, layer):
    with record_trunk(network, layer) as trunk:
        return trunk


def enter(context):
    with context:
        pass


REFUSALS: dict[str, list[Row]] = {
    # Tapes
    "record": [
        ("no network", lambda: recorded(network=None), "module must be an nn.Module; got None"),
        ("a name", lambda: recorded("5"), "The target layer str is not a part of SmallNet"),
        ("a stranger", lambda: recorded(nn.ReLU()), "layer ReLU is not a part of SmallNet"),
    ],
    "Tape": [
        ("no layer", lambda: Tape().activations, "Nothing was recorded", RuntimeError),
        ("no layer named", lambda: recorded(), "as no target layer was named", RuntimeError),
        ("no pass", lambda: recorded(NET[1]), "the target layer did not run", RuntimeError),
    ],
    "record_trunk": [
        ("no network", lambda: trunk_of(None, NET[1]), "module must be an nn.Module; got None"),
        ("a name", lambda: trunk_of(NET, "1"), "The target layer str is not a part of SmallNet"),
    ],
    # Networks and their layers
    "Preprocessing": [
        ("a size", lambda: Preprocessing(image_size=0), "image_size must be"),
        (
            "an order",
            lambda: Preprocessing(channel_order="cmyk"),
            "channel_order .rgb. or .bgr.; .* 'cmyk'",
        ),
        (
            "a number for 'auto'",
            lambda: Preprocessing().with_given(image_size="a"),
            "image_size must be",
        ),
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
            "Parameters width were given, but .*instance of SmallNet.*Pass its class",
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
            "image_size cannot be set for a ConsistentCAMClassifier, .*as in its training",
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
            r"shape \(2, 3\) for 7 classes; expected .* Give it num_classes=7",
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
            r"timm has no weights 'x' of resnet18\. It has a1_in1k, ",
        ),
        (
            "no weights",
            lambda: build_model("timm/resnet18", weights="x"),
            "'x' is not the name of weights of resnet18, .*no such file or folder. timm has a1",
        ),
        (
            "its option",
            lambda: build_model("timm/resnet18", num_classes=2),
            "num_classes is not an option here. Use n_classes=",
        ),
        (
            "no folder",
            lambda: build_model("timm//no/such/folder"),
            "There is no folder '/no/such/folder'",
        ),
        ("no repository", lambda: build_model("transformers/"), "Give .transformers/OWNER/NAME"),
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
            "No package has the weights of efficientnet_lite4, only .* weights= the path",
        ),
        (
            "no such weights",
            lambda: build_model("efficientnet_lite0", weights="x"),
            "'x' is not the name of weights of efficientnet_lite0, and .* no such file.*DEFAULT",
        ),
        (
            "an option",
            lambda: build_model("efficientnet_lite0", dropout=0.5),
            "efficientnet_lite0 has no option 'dropout'; it has .*dropout_rate",
        ),
        (
            "an option said",
            lambda: build_model("efficientnet_lite0", num_classes=5),
            "num_classes is not an option here. Use n_classes=",
        ),
        ("timm's", lambda: build_model("convnextv2_tiny"), 'timm does. Use "timm/convnextv2_tiny"'),
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
                "not the name of weights of alexnet.*no such file.*IMAGENET1K_V1.*DEFAULT",
            )
            for weights in ("IMAGENET1K_V9", "ResNet50_Weights.IMAGENET1K_V1", Path("nothing.pt"))
        ),
        (
            "another size",
            lambda: build_model("vit_b_16", n_classes=3, image_size=(100, 100)),
            r"a multiple of 16; got image_size=\(100, 100\)\. Use \(96, 96\)",
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
            r"got 3 channels instead\. Try another image_size",
        ),
    ],
    "TargetLayer": [
        ("no name", lambda: TargetLayer(""), "name of a target layer is empty"),
        ("a number", lambda: TargetLayer(3), "layer's name must be a str; got an int, 3"),
        ("a layout", lambda: TargetLayer("a", "nwhc"), 'layout must be "nchw", .* got .nwhc'),
        ("a number of tokens", lambda: TargetLayer("a", "tokens", grid=7), "grid must be a tuple"),
        ("no grid", lambda: TargetLayer("a", "tokens"), "has tokens. Give grid=.rows, columns"),
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
            r"'a' returns 4 rows, of shape \(4, 1, 2, 2\), for 2 images.*reshape",
        ),
        ("reshape", lambda: TargetLayer("a", reshape=3), "reshape must be a callable .* an int, 3"),
        ("None", lambda: TargetLayer("a").to_grid(None), "should return a Tensor .* got NoneType"),
    ],
}


@pytest.mark.parametrize(("call", "match", "error"), rows_of(REFUSALS))
def test_refusals(call, match, error):
    with pytest.raises(error, match=match):
        call()


FILES: dict[str, list[Row]] = {
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
}


@pytest.mark.parametrize(("call", "match", "error"), rows_of(FILES))
def test_refusals_of_files(call, match, error, tmp_path):
    with pytest.raises(error, match=match):
        call(tmp_path)
