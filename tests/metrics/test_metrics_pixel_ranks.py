"""Rank accuracy, top-k intersection and ROC AUC: by hand, Quantus' and scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from evaluations import BOXES, IMAGES, N, explainer, measure
from maps_and_boxes import MAPS, H, W, generator, masks_of
from numpy.testing import assert_allclose
from sklearn.metrics import roc_auc_score

from sklcam.metrics import (
    box_masks,
    heatmap_ratio,
    pixel_auc,
    relevance_rank_accuracy,
    topk_intersection,
)

MASKS = masks_of((1, 1, 6, 4)).expand(5, H, W) > 0.5
SIZE = int(MASKS[0].sum())


def in_any_order(map_, mask, k):
    """The mean over orders of ties, of which each is drawn as often as any other."""
    rng, flat, inside = generator(), map_.numpy().ravel(), mask.numpy().ravel()
    hits = []
    for _ in range(4000):
        order = rng.permutation(len(flat))
        brightest = order[np.argsort(-flat[order], kind="stable")[:k]]
        hits.append(inside[brightest].mean())
    return np.mean(hits)


def test_by_hand():
    map_ = torch.tensor([[[0.9, 0.8, 0.1], [0.7, 0.2, 0.6]]])
    mask = torch.tensor([[[True, False, False], [True, True, False]]])
    assert_allclose(relevance_rank_accuracy(map_, mask), 2 / 3)  # of 0.9, 0.8 and 0.7
    assert_allclose(topk_intersection(map_, mask, k=2), 1 / 2)
    # Of 9 pairs, 0.9 wins three, 0.7 two and 0.2 one.
    assert_allclose(pixel_auc(map_, mask), 6 / 9)


def test_those_of_quantus():
    quantus = pytest.importorskip("quantus")
    # It wants maps and masks with an axis of channels.
    arrays = {"a_batch": MAPS[:, None].numpy(), "s_batch": MASKS[:, None].numpy()}
    options = {"disable_warnings": True, "normalise": False, "abs": False}
    ranked = quantus.RelevanceRankAccuracy(**options).evaluate_batch(**arrays)
    assert_allclose(relevance_rank_accuracy(MAPS, MASKS), ranked, rtol=1e-6)
    for k in (1, 7, 30):
        top = quantus.TopKIntersection(k=k, **options).evaluate_batch(**arrays)
        assert_allclose(topk_intersection(MAPS, MASKS, k=k), top, rtol=1e-6)
    mass = quantus.RelevanceMassAccuracy(**options).evaluate_batch(**arrays)
    assert_allclose(heatmap_ratio(MAPS, MASKS), mass, rtol=1e-5)  # which goes by that name here
    area = quantus.AUC(**options).evaluate_batch(**arrays)
    assert_allclose(pixel_auc(MAPS, MASKS), area, rtol=1e-6)


@pytest.mark.parametrize("n_values", [2, 4, 1000])
def test_auc_is_scikit_learns_also_of_ties(n_values):
    maps = (MAPS * n_values).floor()
    expected = [
        roc_auc_score(of.ravel(), map_.ravel()) for of, map_ in zip(MASKS, maps, strict=True)
    ]
    assert_allclose(pixel_auc(maps, MASKS), expected, rtol=1e-6)


def test_ties_are_shared():
    """Quantus takes them in whatever order its sort leaves them."""
    maps = (MAPS[:3] * 4).floor()
    for k in (5, SIZE, 40):
        expected = [in_any_order(maps[i], MASKS[i], k) for i in range(3)]
        assert_allclose(topk_intersection(maps, MASKS[:3], k=k), expected, atol=0.01)
        if k == SIZE:
            assert_allclose(relevance_rank_accuracy(maps, MASKS[:3]), expected, atol=0.01)


def test_maps_without_an_order():
    share, even = SIZE / (H * W), torch.full((5, H, W), 0.3)
    assert_allclose(relevance_rank_accuracy(even, MASKS), [share] * 5, rtol=1e-6)
    assert_allclose(topk_intersection(even, MASKS, k=9), [share] * 5, rtol=1e-6)
    assert_allclose(pixel_auc(even, MASKS), [0.5] * 5)
    # A blank map has found nothing, as for heatmap_ratio and the pointing game.
    assert not relevance_rank_accuracy(even * 0, MASKS).any()
    assert not topk_intersection(even * 0, MASKS, k=9).any()
    assert_allclose(pixel_auc(even * 0, MASKS), [0.5] * 5)


def test_no_object_and_nothing_else():
    nothing, all_of_it = torch.zeros_like(MASKS), torch.ones_like(MASKS)
    assert relevance_rank_accuracy(MAPS, nothing).isnan().all()
    assert not topk_intersection(MAPS, nothing, k=9).any()
    assert pixel_auc(MAPS, nothing).isnan().all() and pixel_auc(MAPS, all_of_it).isnan().all()
    assert_allclose(relevance_rank_accuracy(MAPS, all_of_it), [1] * 5)


def test_a_pixel_is_the_objects_if_half_of_it_is():
    masks = masks_of((0.5, 0, 2, 1), (3.6, 0, 5, 1)).expand(5, H, W)
    whole = torch.zeros(5, H, W, dtype=torch.int64)
    whole[:, 0, [0, 1, 4]] = 3
    for metric in (relevance_rank_accuracy, pixel_auc):
        assert_allclose(metric(MAPS, masks), metric(MAPS, whole))
    assert_allclose(topk_intersection(MAPS, masks, k=5), topk_intersection(MAPS, whole, k=5))


def test_what_is_not_a_number_stays_so():
    maps = MAPS.clone()
    maps[1, 2, 3] = torch.nan
    nan = torch.tensor([False, True, False, False, False])
    for values in (
        relevance_rank_accuracy(maps, MASKS),
        topk_intersection(maps, MASKS, k=9),
        pixel_auc(maps, MASKS),
    ):
        assert values.isnan().equal(nan)


def test_in_an_evaluation_they_are_of_each_images_own_frame():
    names = ("relevance_rank_accuracy", "topk_intersection", "pixel_auc")
    params = {"topk_intersection": {"k": 20}}
    result = measure(explainer(), metrics=names, boxes=BOXES, metric_params=params)
    maps = torch.tensor(explainer().explain(IMAGES, frame="image", normalize=False)).clamp(min=0)
    masks = torch.cat([box_masks([torch.tensor(each).float()], (16, 16)) for each in BOXES])
    assert len(maps) == N
    assert_allclose(result[names[0]], relevance_rank_accuracy(maps, masks), atol=1e-6)
    assert_allclose(result[names[1]], topk_intersection(maps, masks, k=20), atol=1e-6)
    assert_allclose(result[names[2]], pixel_auc(maps, masks), atol=1e-5)
    with pytest.raises(ValueError, match=r"k, a number of pixels of the map, .* from 1 to 256"):
        measure(explainer(), metrics=names, boxes=BOXES, metric_params={})
