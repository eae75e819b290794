"""Evaluations against boxes and masks, each in the frame of its own image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from evaluations import BOXES, IMAGES, N, assert_same, explainer, measure, network, of_truth
from PIL import Image

from sklcam.metrics import box_masks


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
    framed = estimator.explain(X, frame="image")
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
    framed = estimator.explain(X, frame="image")
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
    assert_same(result, of_truth(explainer().explain(IMAGES), boxes[:, None]))
    masks = box_masks(torch.tensor(boxes[:, None], dtype=torch.float32), (16, 16))
    assert_same(measure(estimator, metrics=LOCATED[:3], masks=masks), result, names=LOCATED[:3])
