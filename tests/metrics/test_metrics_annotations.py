"""Evaluations against boxes and masks, each in the frame of its own image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from evaluations import BOXES, IMAGES, N, assert_same, explainer, measure, network, of_truth
from numpy.testing import assert_array_equal
from PIL import Image
from torch import nn

from sklcam import CAMExplainer
from sklcam.cam import GradCAM
from sklcam.metrics import (
    box_from_map,
    box_masks,
    compare,
    get_metric,
    get_scorer,
    heatmap_ratio,
    inside_outside_ratio,
)


def images_of_many_sizes(tmp_path=None):
    sizes = [(16, 16), (20, 30), (33, 9), (8, 8), (50, 24)]
    numbers = np.random.default_rng(0)
    images = [
        Image.fromarray(numbers.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes
    ]
    boxes = [
        [[1, 2, 9, 14.5]],
        [[5, 0, 25, 20]],
        [[0, 3, 9, 30], [2, 2, 3, 3]],
        [[0, 0, 8, 8]],
        [],
    ]
    if tmp_path is None:
        return images, boxes, sizes
    paths = [tmp_path / f"{i}.png" for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        image.save(path)
    return paths, boxes, sizes


LOCATED = ("heatmap_ratio", "inside_outside_ratio", "pointing_game", "localization_accuracy")


@pytest.mark.parametrize("resize", ["stretch", "center_crop"])
@pytest.mark.parametrize("form", ["images", "files"])
def test_boxes_are_in_pixels_of_each_image(resize, form, tmp_path):
    X, boxes, _ = images_of_many_sizes(tmp_path if form == "files" else None)
    model = network(in_channels=3)
    estimator = explainer(model, X=X, image_size=16, resize=resize, batch_size=2)
    params = {"localization_accuracy": {"threshold": 0.4}}
    result = measure(estimator, X, metrics=LOCATED, boxes=boxes, metric_params=params)
    framed = estimator.explain(X, frame="image", normalize=False)
    expected = of_truth(framed[:4], boxes[:4], threshold=0.4)
    assert_same({name: result[name][:4] for name in LOCATED}, expected)
    # The last one has no objects.
    assert [result[name][4] for name in LOCATED[::2]] == [0, 0]
    assert result["localization_accuracy"][4] == 0 and np.isnan(result["inside_outside_ratio"][4])


def test_masks_of_each_image():
    X, boxes, sizes = images_of_many_sizes()
    estimator = explainer(network(in_channels=3), X=X, image_size=16, batch_size=2)
    masks = [np.random.default_rng(i).random(size) > 0.5 for i, size in enumerate(sizes)]
    result = measure(estimator, X, metrics=LOCATED[:3], masks=masks, boxes=boxes)
    framed = estimator.explain(X, frame="image", normalize=False)
    for i, (map_, mask) in enumerate(zip(framed, masks, strict=True)):
        inside, outside = map_[mask], map_[~mask]
        ratio = inside.sum() / map_.sum()
        assert result["heatmap_ratio"][i] == pytest.approx(ratio, abs=1e-5)
        means = inside.mean() / outside.mean()
        assert result["inside_outside_ratio"][i] == pytest.approx(means, rel=1e-4)
        assert result["pointing_game"][i] == mask.flat[map_.argmax()]
    as_tensors = measure(
        estimator, X, metrics=LOCATED[:3], masks=[torch.tensor(mask) for mask in masks]
    )
    assert_same(as_tensors, result)


@pytest.mark.parametrize(
    "form", [lambda m: m * 255, lambda m: m.astype(int) * 7, lambda m: m.astype(float)]
)
def test_masks_are_what_is_not_zero(form):
    masks = np.random.default_rng(0).random((N, 16, 16)) < 0.4
    metrics = ("heatmap_ratio", "inside_outside_ratio", "pointing_game")
    expected = measure(explainer(), metrics=metrics, masks=masks)
    given = [form(mask.astype(np.uint8)) for mask in masks]
    assert_same(measure(explainer(), metrics=metrics, masks=given), expected, atol=0)


def test_masks_that_are_none():
    for mask, message in ((np.full((16, 16), 255.0), "beyond"), (np.full((16, 16), "a"), "<U1")):
        with pytest.raises(ValueError, match=f"A mask must be bool, .*{message}"):
            measure(explainer(), metrics="heatmap_ratio", masks=[mask] * N)


def test_truths_that_do_not_vary_in_number():
    """Arrays of one box an image, and of masks."""
    estimator, boxes = explainer(), np.array([of[0] for of in BOXES])
    result = measure(estimator, metrics=LOCATED, boxes=boxes)
    assert_same(result, of_truth(explainer().explain(IMAGES, normalize=False), boxes[:, None]))
    masks = box_masks(torch.tensor(boxes[:, None], dtype=torch.float32), (16, 16))
    assert_same(measure(estimator, metrics=LOCATED[:3], masks=masks), result, names=LOCATED[:3])


class Floor(nn.Module):
    """Shows its layer, whose map is known: the image itself, which has a floor."""

    def __init__(self):
        super().__init__()
        self.same = nn.Identity()

    def forward(self, images):
        return torch.cat([self.same(images).mean((2, 3)), images.mean((2, 3)) * 0], dim=1)


def floor_of(value):
    """An image of ``value``, but for 1 in a square of 2 x 2 pixels in the middle."""
    image = torch.full((1, 1, 8, 8), value)
    image[..., 3:5, 3:5] = 1
    return image


@pytest.mark.parametrize("method", ["gradcam", GradCAM(relu=False)])
def test_a_map_keeps_its_floor(method):
    """Scaled by minimum and maximum, it would have none, and all of it would be in the box."""
    image, box = floor_of(0.5), [[[3, 3, 5, 5]]]
    estimator = CAMExplainer(Floor(), target_layer="same", verbose=0).fit(image)
    options = {"target": [0], "boxes": box, "method": method, "metrics": [*LOCATED, "sparsity"]}
    result = measure(estimator, image, metric_params={}, **options)
    assert result["heatmap_ratio"] == pytest.approx(4 / (4 + 60 * 0.5))
    assert result["inside_outside_ratio"] == pytest.approx(2)
    assert result["pointing_game"] == 1
    assert result["localization_accuracy"] == 0  # all pixels are over 15 % of the maximum
    # Gini: the 60 smallest of 64 are equal, and so are the 4 largest.
    ranks = np.arange(1, 65)
    values = np.r_[np.full(60, 0.5), np.ones(4)]
    gini = ((2 * ranks - 65) * values).sum() / (64 * values.sum())
    assert result["sparsity"] == pytest.approx(gini)
    high = {"localization_accuracy": {"threshold": 0.6}}
    assert measure(estimator, image, metric_params=high, **options)["localization_accuracy"] == 1


def test_evidence_against_a_class_is_none_for_it():
    """The ReLU comes first: of a map that is negative everywhere nothing is left."""
    image, box = -floor_of(0.5), [[[3, 3, 5, 5]]]
    estimator = CAMExplainer(Floor(), target_layer="same", verbose=0).fit(image)
    options = {"target": [0], "boxes": box, "method": GradCAM(relu=False), "metrics": LOCATED}
    result = measure(estimator, image, metric_params={}, **options)
    assert result["heatmap_ratio"] == 0 and result["pointing_game"] == 0
    assert np.isnan(result["inside_outside_ratio"])
    assert result["localization_accuracy"] == 0


def test_maps_count_as_they_are():
    """A caller who scales maps measures scaled ones."""
    maps, mask = floor_of(0.5)[0], torch.zeros(1, 8, 8)
    mask[:, 3:5, 3:5] = 1
    scaled = (maps - 0.5) / 0.5
    assert heatmap_ratio(maps, mask).item() == pytest.approx(4 / 34)
    assert heatmap_ratio(scaled, mask) == 1 and inside_outside_ratio(scaled, mask).isinf()
    assert box_from_map(maps, 0.15).tolist() == [[0, 0, 8, 8]]
    assert box_from_map(scaled, 0.15).tolist() == [[3, 3, 5, 5]]


def test_localisation_is_called_by_the_class_that_is_explained():
    model = network()
    predicted = model(IMAGES).argmax(1).numpy()
    labels = np.where(np.arange(N) % 2, predicted, (predicted + 1) % 3)
    estimator = explainer(model)
    options = {"metrics": "localization_accuracy", "boxes": BOXES}
    options["metric_params"] = {"localization_accuracy": {"iou_threshold": 0.0}}  # all boxes fit
    known = measure(estimator, y=labels, target=labels, **options)
    assert known["localization_accuracy"].all() and "GT-known localisation" in repr(known.summary())
    first = measure(estimator, y=labels, **options)
    assert_array_equal(first["localization_accuracy"], np.arange(N) % 2)
    assert "top-1 localisation" in repr(first.summary())
    unknown = measure(estimator, **options)
    assert unknown["localization_accuracy"].all()
    assert "of the predicted class" in repr(unknown.summary())
    assert "GT-known" in get_metric("localization_accuracy").meaning
    with pytest.raises(ValueError, match=r"means .top-1 .* first, and .GT-known"):
        compare(first, known)
    scored = get_scorer("localization_accuracy", iou_threshold=0.0)
    assert scored(estimator, IMAGES, labels, boxes=BOXES) == pytest.approx(
        np.mean(np.arange(N) % 2)
    )


def test_boxes_in_other_coordinates_are_refused():
    """They would be a pixel or nothing of the image, and all numbers of them 0, without a word."""
    images = floor_of(0.5).repeat(2, 1, 1, 1)
    estimator = CAMExplainer(Floor(), target_layer="same", verbose=0).fit(images)
    shares = [[[0.1, 0.2, 0.9, 1.0]], [[0.0, 0.0, 1.0, 1.0]]]
    with pytest.raises(ValueError, match="in pixels of each image, not as shares of its width"):
        measure(estimator, images, metrics="heatmap_ratio", boxes=shares)
    for box in ([8, 0, 9, 4], [0, 80, 40, 90], [-5, 0, 0, 4]):
        with pytest.raises(ValueError, match=r"boxes\[1\] has no box in its image of 8 x 8"):
            measure(estimator, images, metrics=LOCATED[-1], boxes=[[[0, 0, 9, 9]], [box]])
