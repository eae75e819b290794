"""Boxes: scores of objects against autograd by hand, in the frame of the images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import detection
from torchvision.ops import box_iou

import sklcam
from sklcam import CAMExplainer
from sklcam.cam import Box, Finer, GradCAM, TopK
from sklcam.cam.detections import overlap
from sklcam.explain import ExplanationWarning
from sklcam.metrics import evaluate
from sklcam.networks import TargetLayer
from sklcam.networks.detectors import (
    extent_within,
    join_detections,
    n_labels,
    split_detections,
)
from sklcam.plotting import DetectionDisplay

# The detector resizes it to itself, and fills it up to 64 x 96: see `faster_rcnn`.
SIZE = (48, 80)


def images(n: int = 2) -> Tensor:
    return torch.rand(n, 3, *SIZE, generator=torch.Generator().manual_seed(3))


def faster_rcnn(**options) -> nn.Module:
    torch.manual_seed(0)
    network = detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        **{"weights": None, "weights_backbone": None, "num_classes": 4, "box_score_thresh": 0.0}
        | {"min_size": 48, "max_size": 96, "box_detections_per_img": 4}
        | options
    )
    # As they are, all detections score the same.
    nn.init.normal_(network.roi_heads.box_predictor.cls_score.weight, std=2.0)
    nn.init.normal_(network.roi_heads.box_predictor.bbox_pred.weight, std=1.0)
    return network.eval()


def ssdlite() -> nn.Module:
    torch.manual_seed(0)
    network = detection.ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=4, score_thresh=0.0, detections_per_img=4
    )
    for part in network.head.classification_head.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.normal_(part.weight, std=0.3)
    return network.eval()


def by_hand(network: nn.Module, layer: str, X: Tensor, image: int, j: int) -> tuple[Tensor, dict]:
    """The raw map, at the layer's resolution, of a detection's own score."""
    kept = []
    handle = network.get_submodule(layer).register_forward_hook(lambda *args: kept.append(args[2]))
    found = network([*X])
    handle.remove()
    (gradient,) = torch.autograd.grad(found[image]["scores"][j], kept[0])
    weights = gradient.mean((2, 3), keepdim=True)
    return (weights * kept[0].detach()).sum(1, keepdim=True)[image], found[image]


def in_place(raw: Tensor, inner: tuple[int, int] | None = None) -> np.ndarray:
    """Over the image: of what the detector takes, (64, 96), the part that the image fills."""
    if inner is None:
        return F.interpolate(raw[None], SIZE, mode="bilinear")[0, 0].numpy()
    return F.interpolate(raw[None], inner, mode="bilinear")[0, 0, : SIZE[0], : SIZE[1]].numpy()


@pytest.mark.parametrize(
    ("build", "layer", "inner"),
    [(faster_rcnn, "backbone.body.16", (64, 96)), (ssdlite, "backbone.features.0", None)],
    ids=["fasterrcnn", "ssdlite"],
)
def test_detections_equal_autograd_by_hand(build, layer, inner):
    network, X = build(), images()
    explainer = CAMExplainer(network, verbose=0).fit(X)
    assert explainer.task_ == "detection"
    assert [each.name for each in explainer.target_layers_] == [layer]
    found = explainer.predict(X)
    scores = [each["scores"] for each in found]
    threshold = float(sorted(np.concatenate(scores))[3])
    signed = {"method": GradCAM(relu=False), "normalize": False}
    maps = explainer.explain(X, Box(threshold=threshold), **signed)
    assert [len(each) for each in maps] == [(each >= threshold).sum() for each in scores]
    for image, own in enumerate(maps):
        for j, map_ in enumerate(own):
            raw, theirs = by_hand(network, layer, X, image, j)
            np.testing.assert_allclose(found[image]["boxes"], theirs["boxes"].detach(), rtol=1e-5)
            expected = in_place(raw, inner)
            peak = np.abs(expected).max()  # with random weights far below 1
            assert peak > 0
            np.testing.assert_allclose(map_ / peak, expected / peak, atol=1e-3)
    # The same objects, named by hand.
    boxes = [each["boxes"][:count] for each, count in zip(found, map(len, maps), strict=True)]
    labels = [each["labels"][:count] for each, count in zip(found, map(len, maps), strict=True)]
    again = explainer.explain(X, Box(boxes, labels), **signed)
    for own, other in zip(maps, again, strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-3, atol=1e-3 * np.abs(own).max())


# Scores by hand

SCORES = torch.tensor([0.9, 0.6, 0.3])
BOXES = torch.tensor([[0.0, 0, 4, 4], [2, 0, 6, 4], [20, 20, 30, 30]])
JOINED = join_detections(
    [
        {
            "boxes": BOXES,
            "scores": torch.tensor([0.9, 0.6, 0.3]),
            "labels": torch.tensor([1, 2, 1]),
        },
        {"boxes": BOXES[:1], "scores": torch.tensor([0.2]), "labels": torch.tensor([2])},
    ]
)


def asked(target: Box, output: Tensor = JOINED) -> list[list[float]]:
    named = target.named(lambda labels: torch.as_tensor(np.asarray(labels)))
    return named.resolve(output).scores(output).tolist()


def test_scores_are_the_best_overlap_times_the_score():
    one_each = Box(BOXES[:2], [1, 2])  # 0.9, and a third of 0.2
    np.testing.assert_allclose(asked(one_each), [[0.9], [0.2 / 3]], rtol=1e-5)
    any_label = Box([BOXES[1:2], BOXES[:1]])  # the better of 0.6 and 0.9 / 3
    np.testing.assert_allclose(asked(any_label), [[0.6], [0.2]], rtol=1e-5)
    ragged = Box([BOXES, BOXES[:1]], [[2, 1, 3], [2]])
    expected = [[0.2, 0.3, 0.0], [0.2, 0.0, 0.0]]
    np.testing.assert_allclose(asked(ragged), expected, rtol=1e-5)
    own = Box(threshold=0.3).resolve(JOINED)
    assert own.counts == [3, 0]
    np.testing.assert_allclose(own.scores(JOINED), [[0.9, 0.6, 0.3], [0, 0, 0]], rtol=1e-5)


def test_overlaps_are_those_of_torchvision():
    drawn = torch.rand(2, 7, 4, generator=torch.Generator().manual_seed(0)) * 10
    boxes = torch.cat([drawn[..., :2], drawn[..., :2] + drawn[..., 2:]], dim=2)
    found = overlap(boxes, boxes.flip(1))
    for i in range(2):
        torch.testing.assert_close(found[i], box_iou(boxes[i], boxes[i].flip(0)))


def test_joined_detections_are_split_again():
    for own, expected in zip(split_detections(JOINED), [3, 1], strict=True):
        assert len(own["boxes"]) == len(own["labels"]) == len(own["scores"]) == expected
    torch.testing.assert_close(split_detections(JOINED)[0]["boxes"], BOXES)


# With a detector


@pytest.fixture(scope="module")
def explainer() -> CAMExplainer:
    return CAMExplainer(faster_rcnn(), verbose=0, batch_size=2).fit(images())


def strongest(explainer, X) -> Box:
    found = explainer.predict(X)
    return Box([each["boxes"][0] for each in found], [each["labels"][0] for each in found])


def test_batches_are_their_images_one_by_one(explainer):
    X = images(3)
    found = explainer.predict(X)
    counts = [2, 0, 1]
    target = Box(
        [each["boxes"][:count] for each, count in zip(found, counts, strict=True)],
        [each["labels"][:count] for each, count in zip(found, counts, strict=True)],
    )
    maps = explainer.explain(X, target)
    assert [each.shape for each in maps] == [(count, *SIZE) for count in counts]
    for i in (0, 2):
        alone = explainer.explain(
            X[i : i + 1],
            Box([found[i]["boxes"][: counts[i]]], [found[i]["labels"][: counts[i]]]),
        )
        assert alone.shape == (1, counts[i], *SIZE)  # as many for each are an array
        np.testing.assert_allclose(alone[0], maps[i], atol=1e-4)
    framed = explainer.explain(X, target, frame="image")
    np.testing.assert_allclose(framed[0], maps[0], atol=1e-6)
    in_batches = [own for batch in explainer.iter_explain(X, target) for own in batch]
    assert [len(each) for each in in_batches] == counts


def test_methods_of_many_passes_ask_how_well_a_box_is_found(explainer):
    """By hand, at a layer of few channels: without one, or under its mask, over the image alone."""
    X, network, name = images(1), explainer.model_, "backbone.body.1"
    layer, target = network.get_submodule(name), strongest(explainer, X)
    kept = []

    def score(images, edit=None):
        handle = layer.register_forward_hook(lambda *args: edit(args[2]) if edit else None)
        with torch.no_grad():
            score = target.scores(join_detections(network([*images])))[0, 0]
        handle.remove()
        return score

    whole = score(X, lambda output: kept.append(output))
    (grid,) = kept
    n_channels = grid.shape[1]
    without = [1 - torch.eye(n_channels)[k, :, None, None] for k in range(n_channels)]
    falls = torch.stack([whole - score(X, lambda out, by=by: out * by) for by in without])
    masks = torch.from_numpy(np.stack([in_place(each[None], (64, 96)) for each in grid[0]]))
    masks -= masks.amin((1, 2), keepdim=True)
    masks /= masks.amax((1, 2), keepdim=True).clamp(min=1e-12)
    weights = {
        "ablationcam": falls / whole,
        "scorecam": torch.stack([score(X * mask) for mask in masks]).softmax(dim=0),
    }
    for method, of_channels in weights.items():
        expected = in_place((of_channels[:, None, None] * grid[0]).sum(0)[None].relu(), (64, 96))
        assert expected.max() > 0
        of_layer = CAMExplainer(network, method, name, verbose=0).fit(X)
        found = of_layer.explain(X, target, normalize=False)[0]
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * expected.max())


class Wrapped(nn.Module):
    def __init__(self, network: nn.Module):
        super().__init__()
        self.inner = nn.ModuleDict({"detector": network})

    def forward(self, x):
        return self.inner["detector"](x)


def test_a_detector_in_another_module():
    with pytest.raises(ValueError, match=r"a FasterRCNN, .* alone, network\.inner\.detector,"):
        CAMExplainer(Wrapped(faster_rcnn()), verbose=0).fit(images())


def test_a_grid_of_the_images_size_that_lies_over_more():
    """32 x 32 pixels become 50 x 50 within 64 x 64, of which a layer of stride 2 has 32 x 32."""
    network, name = faster_rcnn(min_size=50, max_size=50), "backbone.body.1"
    X = images(1)[..., :32, :32]
    assert extent_within(network, (32, 32)) == (50 / 64, 50 / 64)
    explainer = CAMExplainer(network, GradCAM(relu=False), name, verbose=0).fit(X)
    raw, own = by_hand(network, name, X, 0, 0)
    assert raw.shape[-2:] == (32, 32)
    enlarged = F.interpolate(raw[None], (64, 64), mode="bilinear")[..., :50, :50]
    expected = F.interpolate(enlarged, (32, 32), mode="bilinear")[0, 0].numpy()
    target = Box([own["boxes"][0].detach()], [own["labels"][0]])
    found = explainer.explain(X, target, normalize=False)[0]
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.95
    of_all = raw[0].numpy()
    assert np.corrcoef(found.ravel(), of_all.ravel())[0, 1] < 0.9
    # What is made at the pixels lies over them: all of it, and not its upper left.
    leaf = X.clone().requires_grad_()
    network([*leaf])[0]["scores"][0].backward()
    assert leaf.grad is not None
    found = explainer.explain(X, target, method="saliency", normalize=False)[0]
    by_autograd = leaf.grad[0].abs().amax(dim=0).numpy()
    np.testing.assert_allclose(found, by_autograd, atol=1e-3 * by_autograd.max())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_no_suppression_in_half_precision(dtype):
    with pytest.raises(ValueError, match=f"FasterRCNN does not compute in {dtype} on this device"):
        CAMExplainer(faster_rcnn().to(dtype), verbose=0).fit(images().to(dtype))


def test_a_box_without_a_match_is_blank_and_a_warning_says_so(explainer):
    with pytest.warns(ExplanationWarning, match="2 of 2 maps are blank"):
        maps = explainer.explain(images(), Box([[0, 0, 9, 9]] * 2, [17, 17]))
    assert not maps.any()
    found = explainer.explain(
        images(), Box(threshold=1.0)
    )  # nothing is as sure: nothing to warn of
    assert found.shape == (2, 0, *SIZE)


def test_arrays_go_there_at_their_own_size_and_boxes_with_their_images():
    network, X = faster_rcnn(), images()
    arrays = X.permute(0, 2, 3, 1).numpy()
    own = CAMExplainer(network, verbose=0).fit(X)
    assert own.explain(arrays, strongest(own, X)).shape == (2, *SIZE)
    np.testing.assert_allclose(
        own.predict(arrays)[1]["boxes"], own.predict(X)[1]["boxes"], atol=1e-4
    )
    # At twice the size, boxes are in the frame of the arrays, and maps of the network's input.
    large = CAMExplainer(network, image_size=(96, 160), verbose=0).fit(X)
    found = large.predict(arrays)
    assert all(each["boxes"].max() <= SIZE[1] for each in found)
    doubled = F.interpolate(X, (96, 160), mode="bilinear")
    theirs = own.predict(doubled)
    for one, other in zip(found, theirs, strict=True):
        np.testing.assert_allclose(2 * one["boxes"], other["boxes"], rtol=1e-3, atol=0.1)
    maps = large.explain(arrays, strongest(large, arrays))
    np.testing.assert_allclose(maps, own.explain(doubled, strongest(own, doubled)), atol=0.01)
    mixed = [arrays[0], arrays[1, :40]]
    with pytest.raises(ValueError, match="a detector, which resizes images itself, takes"):
        own.explain([*map(_picture, mixed)], Box())


def _picture(array: np.ndarray):
    from PIL import Image

    return Image.fromarray((array * 255).astype(np.uint8))


def test_callables_are_given_a_list_of_dicts(explainer):
    X = images()

    def first(output, inputs):
        assert len(inputs) == len(output) == 2
        return torch.stack([each["scores"][0] for each in output])

    maps = explainer.explain(X, first)
    np.testing.assert_allclose(maps, explainer.explain(X, strongest(explainer, X)), atol=1e-4)


def test_methods_without_gradients_and_the_confidence(explainer):
    X = images(1)
    target = strongest(explainer, X)
    for method in (sklcam.cam.Occlusion(24, 24), "layercam", "saliency"):
        maps = explainer.explain(X, target, method=method)
        assert maps.shape == (1, *SIZE)
        assert np.isfinite(maps).all()
    result = evaluate(explainer, X, metrics="average_drop", target=target, progress=False)
    maps = torch.from_numpy(explainer.explain(X, target))
    with torch.no_grad():
        (masked,) = explainer.model([*(X * maps[:, None])])
    box, label = target._corners[0], target.labels[0]
    matches = box_iou(box, masked["boxes"])[0] * masked["scores"] * (masked["labels"] == label)
    full = explainer.predict(X)[0]["scores"][0]
    expected = max(0, full - float(matches.max())) / full
    np.testing.assert_allclose(result["average_drop"], [expected], atol=1e-4)
    with pytest.raises(ValueError, match=r"evaluate measures one map per image\. Give target=Box"):
        evaluate(explainer, X, metrics="adcc", progress=False)


def test_a_detector_is_saved_and_loaded(explainer, tmp_path):
    named = CAMExplainer(explainer.model, classes=["none", "a", "b", "c"], verbose=0).fit()
    sklcam.save(named, tmp_path / "detector")
    loaded = sklcam.load(tmp_path / "detector", objects={"FasterRCNN": faster_rcnn()})
    X = images()
    found, theirs = named.predict(X), loaded.predict(X)
    assert found[0]["labels"].tolist() == theirs[0]["labels"].tolist()
    assert set(found[0]["labels"]) <= {"a", "b", "c"}
    target = strongest(named, X)
    np.testing.assert_array_equal(loaded.explain(X, target), named.explain(X, target))


def test_the_part_of_a_layer_that_lies_over_the_images():
    assert extent_within(faster_rcnn(), SIZE) == (48 / 64, 80 / 96)
    assert extent_within(ssdlite(), SIZE) == (1, 1)

    class Other(detection.transform.GeneralizedRCNNTransform):
        pass

    network = faster_rcnn()
    network.transform = Other(48, 96, [0.0] * 3, [1.0] * 3)
    layer = TargetLayer("backbone.body.16")
    explainer = CAMExplainer(network, target_layer=layer, verbose=0).fit()
    with pytest.raises(ValueError, match="it is not known where this places them"):
        explainer.explain(images(), Box())


def test_layers_of_detectors(explainer):
    network = explainer.model
    named = CAMExplainer(network, target_layer="backbone.body.13", verbose=0).fit()
    assert named.target_layers_ == [TargetLayer("backbone.body.13")]
    network = faster_rcnn()
    network.backbone = nn.Sequential(network.backbone)
    with pytest.raises(ValueError, match=r"torchvision does not build it like this\. Name"):
        CAMExplainer(network, verbose=0).fit()


def test_a_display_draws_each_object_with_its_box(explainer):
    X = images()
    found = explainer.predict(X)
    counts = [1, 2]
    boxes = [own["boxes"][:count] for own, count in zip(found, counts, strict=True)]
    labels = [own["labels"][:count] for own, count in zip(found, counts, strict=True)]
    target = Box(boxes, labels)
    display = DetectionDisplay.from_estimator(explainer, X, target=target)
    assert display.axes_.shape == (3, 2)
    np.testing.assert_allclose(display.boxes, np.concatenate(boxes), rtol=1e-5)
    expected = [
        f"{label} ({own['scores'][j]:.2f})"
        for own, count in zip(found, counts, strict=True)
        for j, label in enumerate(own["labels"][:count])
    ]
    assert display.titles == expected
    maps = explainer.explain(X, target)
    for drawn, map_ in zip(display.maps, np.concatenate(maps), strict=True):
        np.testing.assert_allclose(drawn, map_, atol=1e-5)
    frame = display.axes_[2, 1].patches[-1]
    x1, y1, x2, y2 = boxes[1][1]
    assert frame.get_xy() == pytest.approx((x1, y1))
    assert (frame.get_width(), frame.get_height()) == pytest.approx((x2 - x1, y2 - y1))
    with pytest.raises(ValueError, match="There is no object to draw"):
        DetectionDisplay.from_estimator(explainer, X, target=Box(threshold=1.0))


def test_what_the_network_itself_returns_is_explained(explainer):
    X = images()
    found = [{**each} for each in explainer.model([*X])]
    boxes = [each["boxes"].detach()[:k] for each, k in zip(found, (1, 2), strict=True)]
    labels = [each["labels"][:k] for each, k in zip(found, (1, 2), strict=True)]
    expected = explainer.explain(X, Box([b.numpy() for b in boxes], [n.numpy() for n in labels]))
    for maps, own in zip(explainer.explain(X, Box(boxes, labels)), expected, strict=True):
        np.testing.assert_array_equal(maps, own)


@pytest.mark.parametrize("build", [faster_rcnn, ssdlite])
def test_names_are_as_many_as_labels_with_that_of_the_background(build):
    network = build()  # of 4 labels
    with pytest.raises(
        ValueError, match="4 labels, of which label 0 is the background, but classes= has 3"
    ):
        CAMExplainer(network, classes=["cat", "dog", "cow"], verbose=0).fit(images())
    names = np.array(["background", "cat", "dog", "cow"])
    named = CAMExplainer(network, classes=names, verbose=0).fit(images()).predict(images(1))[0]
    expected = network([*images(1)])[0]["labels"]
    np.testing.assert_array_equal(named["labels"], names[expected.numpy()])


def test_names_of_detectors_of_other_kinds():
    for build in (detection.retinanet_resnet50_fpn, detection.fcos_resnet50_fpn):
        network = build(weights=None, weights_backbone=None, num_classes=5)
        assert n_labels(network) == 5


def test_a_box_stays_where_it_is_so_that_consistency_refuses_it(explainer):
    target = Box([[4, 4, 30, 30]] * 2)
    with pytest.raises(ValueError, match="consistency compares views, in which Box"):
        evaluate(explainer, images(), metrics="consistency", target=target, progress=False)


def test_weights_of_channels_are_of_as_many_boxes_an_image(explainer):
    boxes = [[[4, 4, 30, 30]], [[4, 4, 30, 30], [9, 9, 20, 20]]]
    with pytest.raises(ValueError, match="the same number of rows for each image"):
        explainer.channel_weights(images(), Box(boxes))


def test_files_of_maps_are_of_as_many_boxes_an_image(explainer, tmp_path):
    boxes = [[[4, 4, 30, 30]], [[4, 4, 30, 30], [9, 9, 20, 20]]]
    with pytest.raises(ValueError, match=r"the same number of maps for each image\. Give Box"):
        explainer.explain_to(images(), tmp_path / "maps", target=Box(boxes))
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("target", "what"), [([1, 2], "a label"), (TopK(2), "TopK"), (Finer(), "Finer")]
)
def test_a_class_is_no_object(explainer, target, what):
    with pytest.raises(ValueError, match=rf"The target is {what}, but .* Give target=Box\("):
        explainer.explain(images(), target)


@pytest.mark.parametrize("labels", [["cat", "dog"], [1.0, 2.0]])
def test_labels_without_names_are_integers(explainer, labels):
    with pytest.raises(ValueError, match="labels must be integers, as predict returns them"):
        explainer.explain(images(), Box([[4, 4, 30, 30]] * 2, labels))
