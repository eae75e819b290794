"""Pixels: scores of regions against autograd by hand, a peer, and the network's own argmax."""

from __future__ import annotations

import warnings
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import segmentation

import sklcam
from sklcam import CAMExplainer
from sklcam.cam import Classes, GradCAM, Pixels, TopK
from sklcam.explain import ExplanationWarning
from sklcam.metrics import evaluate
from sklcam.networks.dense import dense_task

SIZE = (48, 64)


def images(n: int = 2) -> Tensor:
    return torch.rand(n, 3, *SIZE, generator=torch.Generator().manual_seed(0))


def square() -> Tensor:
    mask = torch.zeros(SIZE)
    mask[10:30, 20:50] = 1
    return mask


def of_torchvision(name: str) -> nn.Module:
    torch.manual_seed(0)
    build = getattr(segmentation, name)
    return build(weights=None, weights_backbone=None, num_classes=4).eval()


def segformer() -> nn.Module:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    torch.manual_seed(0)
    config = SegformerConfig(
        depths=[1] * 4,
        hidden_sizes=[8, 8, 16, 16],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16,
        id2label={0: "road", 1: "sky", 2: "tree"},
    )
    return SegformerForSemanticSegmentation(config).eval()


class Small(nn.Sequential):
    def __init__(self, n_outputs: int = 3):
        first, second = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 5, 3, 1, 1)
        super().__init__(first, nn.ReLU(), second, nn.ReLU(), nn.Conv2d(5, n_outputs, 1))


class OfOneOutput(Small):
    def __init__(self):
        super().__init__(1)


def small(n_outputs: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return (OfOneOutput() if n_outputs == 1 else Small(n_outputs)).eval()


def of_small(n_outputs: int = 3, **options) -> CAMExplainer:
    options = {"target_layer": "1", "task": "segmentation", "verbose": 0, **options}
    return CAMExplainer(small(n_outputs), **options).fit(images())


def by_hand(network: nn.Module, layer: str, X: Tensor, score, *, grid=None, relu=True) -> Tensor:
    """Grad-CAM's formula by autograd: the mean gradient of a score weighs the activations."""
    kept = []
    handle = network.get_submodule(layer).register_forward_hook(lambda *args: kept.append(args[2]))
    output = network(X)
    handle.remove()
    output = output["logits"] if "logits" in dir(output) else output
    output = output["out"] if isinstance(output, dict) else output
    (gradient,) = torch.autograd.grad(score(output).sum(), kept[0])
    activations = kept[0].detach()
    if grid is not None:
        activations, gradient = (
            each.transpose(1, 2).unflatten(2, grid) for each in (activations, gradient)
        )
    maps = (gradient.mean((2, 3), keepdim=True) * activations).sum(1, keepdim=True)
    maps = maps.relu() if relu else maps
    return F.interpolate(maps, X.shape[-2:], mode="bilinear")[:, 0]


SIGNED = {"method": GradCAM(relu=False), "normalize": False}
signed_by_hand = partial(by_hand, relu=False)


def assert_equal_maps(maps: np.ndarray, expected: Tensor) -> None:
    """Relative to their peak: with random weights maps may be small."""
    peak = expected.abs().amax((1, 2), keepdim=True).numpy()
    assert (peak > 0).all()
    np.testing.assert_allclose(maps / peak, expected.numpy() / peak, atol=1e-3)


def own_class(output: Tensor, label: int) -> Tensor:
    """The sum of a class's logits where it is the highest."""
    return (output[:, label] * (output.argmax(1) == label)).sum((1, 2))


# Against autograd by hand


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("deeplabv3_mobilenet_v3_large", "backbone.16"),
        ("fcn_resnet50", "backbone.layer4"),
        ("lraspp_mobilenet_v3_large", "backbone.16"),
    ],
)
def test_torchvisions_networks(name, layer):
    network, X = of_torchvision(name), images()
    explainer = CAMExplainer(network, verbose=0).fit(X)
    assert explainer.task_ == "segmentation"
    assert [each.name for each in explainer.target_layers_] == [layer]
    expected = signed_by_hand(network, layer, X, lambda o: (o[:, 2] * square()).sum((1, 2)))
    maps = explainer.explain(X, Pixels(2, square()), **SIGNED)
    assert_equal_maps(maps, expected)
    # Of each pixel its own class.
    expected = signed_by_hand(network, layer, X, lambda o: o.amax(1).sum((1, 2)))
    maps = explainer.explain(X, **SIGNED)
    assert_equal_maps(maps, expected)


def test_a_network_of_transformers():
    network, X = segformer(), images()
    layer = next(
        name
        for name, part in reversed([*network.named_modules()])
        if name.startswith("segformer") and isinstance(part, nn.LayerNorm)
    )
    explainer = CAMExplainer(network, target_layer=layer, verbose=0).fit(X)
    assert explainer.task_ == "segmentation"
    assert explainer.class_names_.tolist() == ["road", "sky", "tree"]
    # The logits are of a quarter of the images' size: a pixel of theirs is 4 x 4 of the mask's.
    small_mask = F.avg_pool2d(square()[None, None], 4)[0, 0]
    expected = by_hand(network, layer, X, lambda o: (o[:, 1] * small_mask).sum((1, 2)), grid=(2, 2))
    for mask in (square(), square().bool().numpy()):
        maps = explainer.explain(X, Pixels("sky", mask), normalize=False)
        np.testing.assert_allclose(maps, expected.numpy(), rtol=1e-4, atol=1e-7)
    assert explainer.predict(X).shape == (2, 12, 16)


def test_no_layer_is_settled_on_where_nobody_knows_the_encoder():
    with pytest.raises(ValueError, match=r"cannot be decided, as its output .* coarsest first"):
        CAMExplainer(segformer(), verbose=0).fit(images())
    with pytest.raises(ValueError, match="first: '3', of shape"):
        of_small(target_layer="auto")


def test_the_score_is_that_of_a_peer():
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    peer = targets.SemanticSegmentationTarget(2, square()[::2, ::2].numpy())
    explainer, X = of_small(), images()
    expected = by_hand(explainer.model, "1", X, lambda o: torch.stack([*map(peer, o)]))
    maps = explainer.explain(X, Pixels(2, square()[::2, ::2]), normalize=False)
    np.testing.assert_allclose(maps, expected.numpy(), rtol=1e-4, atol=1e-7)


# Labels and masks


def test_without_a_mask_the_region_is_where_the_class_is_predicted():
    explainer, X = of_small(), images()
    for label in range(3):
        expected = by_hand(explainer.model, "1", X, lambda o, label=label: own_class(o, label))
        maps = explainer.explain(X, label, normalize=False)
        np.testing.assert_allclose(maps, expected.numpy(), rtol=1e-4, atol=1e-6)
        assert np.array_equal(maps, explainer.explain(X, Pixels(label), normalize=False))


def test_labels_masks_and_batches():
    explainer, X = of_small(classes=["a", "b", "c"], batch_size=2), images(5)
    masks = torch.rand(5, *SIZE, generator=torch.Generator().manual_seed(1)) > 0.5
    maps = explainer.explain(X, Pixels(["a", "b", "c", "a", "b"], masks))
    for i, label in enumerate("abcab"):
        np.testing.assert_allclose(
            explainer.explain(X[i : i + 1], Pixels(label, masks[i]))[0], maps[i], atol=1e-5
        )
    several = explainer.explain(X, Pixels([["a", "c"]] * 5, masks))
    assert several.shape == (5, 2, *SIZE)
    np.testing.assert_allclose(several[:, 1], explainer.explain(X, Pixels("c", masks)), atol=1e-5)
    in_rows = explainer.explain(X, [["a", "c"]] * 5)
    np.testing.assert_allclose(in_rows[:, 1], explainer.explain(X, "c"), atol=1e-5)


def test_a_mask_goes_with_its_image_through_the_resizing():
    explainer = of_small(image_size=32, resize="center_crop", mean=0, std=1)
    X = np.random.default_rng(0).random((1, 32, 64, 3)).astype(np.float32)
    mask = np.zeros((32, 64))
    mask[8:24, 16:32] = 1  # of which the middle square, columns 16 to 47, is seen
    inner = np.zeros((32, 32))
    inner[8:24, :16] = 1
    expected = explainer.explain(X, Pixels(1, inner))
    np.testing.assert_allclose(explainer.explain(X, Pixels(1, mask)), expected, atol=1e-6)
    summed = evaluate(explainer, X, metrics="adcc", target=Pixels(1, mask), progress=False)
    other = evaluate(explainer, X, metrics="adcc", target=Pixels(1, inner), progress=False)
    np.testing.assert_allclose(summed["adcc"], other["adcc"], rtol=1e-5)


def test_the_map_of_an_empty_region_is_blank_and_a_warning_says_so():
    explainer, X = of_small(), images()
    with pytest.warns(ExplanationWarning, match="2 of 2 maps are blank"):
        assert not explainer.explain(X, Pixels(1, torch.zeros(SIZE))).any()


def test_one_output_tells_two_classes_apart():
    explainer, X = of_small(1), images()
    assert explainer.classes_.tolist() == [0, 1]
    logits = explainer.model(X)
    np.testing.assert_array_equal(explainer.predict(X), (logits[:, 0] > 0).numpy())
    proba = explainer.predict_proba(X)
    np.testing.assert_allclose(proba[:, 1], logits.sigmoid()[:, 0].detach().numpy(), atol=1e-6)
    for label, sign in ((0, -1), (1, 1)):
        expected = by_hand(
            explainer.model,
            "1",
            X,
            lambda o, sign=sign: sign * (o[:, 0] * square()[::2, ::2]).sum((1, 2)),
        )
        maps = explainer.explain(X, Pixels(label, square()[::2, ::2]), normalize=False)
        np.testing.assert_allclose(maps, expected.numpy(), rtol=1e-4, atol=1e-7)
    own = explainer.explain(X, lambda o: (o[:, 0] * square()[::2, ::2]).sum((1, 2)))
    np.testing.assert_allclose(own, explainer.explain(X, Pixels(1, square()[::2, ::2])), atol=1e-6)


def test_callables_are_given_the_output_that_counts_and_the_inputs():
    network, X = of_torchvision("lraspp_mobilenet_v3_large"), images()
    explainer = CAMExplainer(network, verbose=0).fit(X)
    maps = explainer.explain(
        X, lambda output, inputs: (output[:, 2] * (inputs[:, 0] > 0.5)).sum((1, 2))
    )
    np.testing.assert_allclose(maps, explainer.explain(X, Pixels(2, X[:, 0] > 0.5)), atol=1e-5)


# Predictions, metrics, files


def test_predictions_are_of_pixels():
    explainer, X = of_small(classes=["a", "b", "c"]), images()
    logits = explainer.model(X).detach()
    expected = np.array(["a", "b", "c"])[logits.argmax(1).numpy()]
    assert np.array_equal(explainer.predict(X), expected)
    np.testing.assert_allclose(explainer.predict_proba(X), logits.softmax(1).numpy(), atol=1e-6)
    with pytest.raises(ValueError, match="score compares one prediction per image"):
        explainer.score(X, ["a", "b"])


def test_the_confidence_is_the_mean_probability_in_the_region():
    explainer, X = of_small(), images()
    mask = square()[::2, ::2]
    result = evaluate(
        explainer, X, metrics=["average_drop", "iauc"], target=Pixels(1, mask), progress=False
    )
    maps = torch.from_numpy(explainer.explain(X, Pixels(1, mask)))
    full, masked = (
        (explainer.model(x).softmax(1)[:, 1] * mask).sum((1, 2)) / mask.sum()
        for x in (X, X * maps[:, None])
    )
    expected = ((full - masked).clamp(min=0) / full).detach().numpy()
    np.testing.assert_allclose(result["average_drop"], expected, atol=1e-5)
    with pytest.raises(ValueError, match="answers for each pixel or object, and views move these"):
        evaluate(
            explainer, X, metrics="cose_consistency", y=[0, 1], target=Pixels(1), progress=False
        )


METHODS = (
    *(
        "ablationcam",
        "counterfactual",
        "deconvnet",
        "excitationbackprop",
        "gradcam++",
        "guidedgradcam",
    ),
    *("hirescam", "iscam", "layercam", "occlusion", "saliency", "scorecam", "sscam", "xgradcam"),
)


@pytest.mark.parametrize("name", METHODS)
def test_all_methods_explain_pixels(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        maps = of_small().explain(images(1), Pixels(1, square()), method=name)
    assert maps.shape == (1, *SIZE)
    assert np.isfinite(maps).all()


def test_cam_is_of_classes_of_images():
    with pytest.raises(ValueError, match="CAM explains classes of images"):
        of_small().explain(images(), Pixels(1), method="cam")


def test_an_explainer_of_pixels_is_saved_and_loaded(tmp_path):
    X = images()
    explainer = of_small(1, classes=["no", "yes"])
    sklcam.save(explainer, tmp_path / "pixels")
    loaded = sklcam.load(tmp_path / "pixels", objects={"OfOneOutput": OfOneOutput})
    assert loaded.task_ == "segmentation"
    for target in (Pixels("yes", square()), "no"):
        np.testing.assert_array_equal(loaded.explain(X, target), explainer.explain(X, target))
    np.testing.assert_array_equal(loaded.predict(X), explainer.predict(X))


def test_a_display_of_pixels():
    display = sklcam.CAMDisplay.from_estimator(of_small(), images(), target=Pixels(1))
    assert display.axes_.shape == (2, 2)


def test_classes_are_pixels_of_theirs():
    explainer, X = of_small(), images()
    maps, _ = explainer.explain_inputs(X, Classes(torch.tensor([1, 2])))
    np.testing.assert_array_equal(maps, explainer.explain(X, [1, 2]))
    with pytest.raises(ValueError, match="TopK explains an image's highest-scoring classes"):
        explainer.explain(X, TopK(2))


def test_what_is_known_to_answer_for_pixels():
    assert dense_task(of_torchvision("lraspp_mobilenet_v3_large")) == "segmentation"
    assert dense_task(segformer()) == "segmentation"
    assert dense_task(small()) is None


def test_views_move_a_region_so_that_consistency_refuses_it():
    explainer, X = of_small(), images()
    with pytest.raises(ValueError, match="consistency compares views, in which Pixels"):
        evaluate(explainer, X, metrics="consistency", target=Pixels(1, square()), progress=False)
    values = evaluate(explainer, X, metrics="consistency", target=Pixels(1), progress=False)
    assert values["consistency"].shape == (2,)  # pixels of a class are found anew


def test_masks_of_streamed_images_are_resized_with_these():
    X = np.random.default_rng(0).integers(0, 256, (2, 60, 90, 3), dtype=np.uint8)
    mask = np.zeros((60, 90))
    mask[20:50, 30:60] = 1
    explainer = of_small(image_size=48, resize="center_crop")
    (streamed,) = explainer.iter_explain(iter(X), Pixels(1, mask))
    np.testing.assert_array_equal(streamed, explainer.explain(X, Pixels(1, mask)))


def test_masks_of_any_precision():
    explainer, X = of_small(), images()
    expected = explainer.explain(X, Pixels(1, square()))
    for dtype in (torch.bfloat16, torch.float16, torch.bool, torch.uint8):
        np.testing.assert_array_equal(explainer.explain(X, Pixels(1, square().to(dtype))), expected)
