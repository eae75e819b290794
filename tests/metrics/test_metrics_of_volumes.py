"""Metrics of volumes: against scikit-image, and figures worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.stats import spearmanr
from skimage.metrics import structural_similarity as ssim_of_skimage
from torch import nn

from sklcam import CAMExplainer
from sklcam.cam import GradCAM
from sklcam.metrics import (
    Metric,
    blur,
    box_from_map,
    box_iou,
    box_masks,
    causal_curves,
    coherency,
    complexity,
    deletion_auc,
    evaluate,
    heatmap_ratio,
    insertion_auc,
    inside_outside_ratio,
    local_lipschitz,
    localization_accuracy,
    lp_norm,
    max_sensitivity,
    pixel_auc,
    pointing_game,
    rank_correlation,
    relevance_rank_accuracy,
    road,
    sanity_check,
    sparsity,
    ssim_consistency,
    structural_similarity,
    topk_intersection,
)
from sklcam.training import (
    Contrastive,
    Explanations,
    ViewSampler,
    consistency_loss,
    signs_of_collapse,
    sparsity_loss,
)

SIZE = (12, 14, 17)


def random_maps(n: int = 2, size: tuple[int, ...] = SIZE, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, *size, generator=torch.Generator().manual_seed(seed))


# SSIM


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_ssim_is_that_of_scikit_image(dtype):
    maps, others = random_maps().to(dtype), random_maps(seed=1).to(dtype)
    others[1] = 0.7 * maps[1] + 0.3 * others[1]
    found = structural_similarity(maps, others, spatial_dims=3)
    for i in range(2):
        pair = (maps[i].double().numpy(), others[i].double().numpy())
        _, full = ssim_of_skimage(
            *pair,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1,
            full=True,
        )
        # Over the windows that lie inside, five voxels from each border.
        expected = full[5:-5, 5:-5, 5:-5].mean()
        assert abs(float(found[i]) - expected) < 1e-5
        uniform = structural_similarity(
            maps[i : i + 1], others[i : i + 1], window=7, spatial_dims=3
        )
        assert abs(float(uniform) - ssim_of_skimage(*pair, win_size=7, data_range=1)) < 1e-5


def test_ssim_by_shifted_sums_is_the_same():
    maps, others = random_maps(), random_maps(seed=1)
    expected = structural_similarity(maps, others, spatial_dims=3)
    was = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        torch.testing.assert_close(structural_similarity(maps, others, spatial_dims=3), expected)
    finally:
        torch.set_float32_matmul_precision(was)


def test_ssim_has_the_gradient_of_finite_differences():
    maps, others = random_maps(1, (11, 11, 12)).double(), random_maps(1, (11, 11, 12), 1).double()
    direction = random_maps(1, (11, 11, 12), 2).double() - 0.5
    maps.requires_grad_()
    (gradient,) = torch.autograd.grad(
        structural_similarity(maps, others, spatial_dims=3).sum(), maps
    )
    step = 1e-5
    with torch.no_grad():
        ahead, behind = (
            structural_similarity(maps + sign * step * direction, others, spatial_dims=3)
            for sign in (1, -1)
        )
    expected = float((ahead - behind) / (2 * step))
    assert abs(float((gradient * direction).sum()) - expected) < 1e-7


def test_ssim_of_what_is_valid():
    maps, others = random_maps(), random_maps(seed=1)
    valid = torch.ones(2, *SIZE, dtype=torch.bool)
    torch.testing.assert_close(
        structural_similarity(maps, others, valid=valid, spatial_dims=3),
        structural_similarity(maps, others, spatial_dims=3),
    )
    valid[:, :, :, 15:] = False  # so that the windows of the first 15 columns are left
    expected = structural_similarity(maps[..., :15], others[..., :15], spatial_dims=3)
    torch.testing.assert_close(
        structural_similarity(maps, others, valid=valid, spatial_dims=3), expected
    )
    valid[1] = False
    assert ssim_consistency(maps, others, valid, spatial_dims=3)[1].isnan()
    maps[0] = 0
    assert ssim_consistency(maps, maps, spatial_dims=3)[0] == 0


def test_maps_smaller_than_the_window_are_refused():
    small = random_maps(size=(10, 14, 17))
    with pytest.raises(ValueError, match="11 x 11 x 11 pixels; got maps of 10 x 14 x 17"):
        structural_similarity(small, small, spatial_dims=3)


# Of one map, and of two


def test_means_and_norms_are_over_the_whole_volume():
    maps = random_maps()
    flat = maps.double().flatten(1).numpy()
    np.testing.assert_allclose(complexity(maps, spatial_dims=3), flat.mean(1), rtol=1e-6)
    np.testing.assert_allclose(lp_norm(maps, spatial_dims=3), flat.sum(1), rtol=1e-6)
    one = torch.zeros(1, 2, 2, 2)
    one[0, 1, 0, 1] = 3
    assert sparsity(one, spatial_dims=3).item() == pytest.approx(7 / 8)
    others = random_maps(seed=1)
    expected = [
        np.corrcoef(a.flatten(), b.flatten())[0, 1] for a, b in zip(maps, others, strict=True)
    ]
    np.testing.assert_allclose(
        coherency(maps, others, spatial_dims=3), (1 + np.array(expected)) / 2, atol=1e-6
    )


def test_rank_correlation_averages_over_cubes():
    maps, others = random_maps(1, (4, 4, 4)), random_maps(1, (4, 4, 4), 1)
    cubes = [each.reshape(2, 2, 2, 2, 2, 2).mean((1, 3, 5))[None] for each in (maps, others)]
    torch.testing.assert_close(
        rank_correlation(maps, others, cell=2, spatial_dims=3),
        rank_correlation(*cubes, spatial_dims=3),
    )


# Insertion and deletion


def test_blur_is_the_separable_kernel_in_three_dimensions():
    impulse = np.zeros(11)
    impulse[5] = 1
    line = gaussian_filter(impulse, 5)
    volume = torch.zeros(1, 2, 15, 15, 15)
    volume[0, 1, 7, 7, 7] = 1
    kernel = line[:, None, None] * line[:, None] * line
    np.testing.assert_allclose(blur(volume)[0, 1, 2:13, 2:13, 2:13], kernel, atol=1e-8)
    assert not blur(volume)[0, 0].any()


def test_curves_insert_voxels_by_their_saliency():
    volume = torch.arange(1.0, 9).reshape(1, 1, 2, 2, 2)
    maps = torch.tensor([[[[8.0, 7.0], [1.0, 2.0]], [[3.0, 4.0], [5.0, 6.0]]]])
    share = lambda volumes, rows: volumes.sum((1, 2, 3, 4)) / 36  # noqa: E731
    curves = causal_curves(share, volume, maps, n_steps=4, start=torch.zeros_like)
    # By decreasing saliency the voxels are 1, 2, then 8, 7, then 6, 5, then 4, 3.
    expected = torch.tensor([[0.0, 3, 18, 29, 36]]) / 36
    torch.testing.assert_close(curves.insertion, expected)
    torch.testing.assert_close(curves.deletion, 1 - expected)
    assert float(insertion_auc(curves) + deletion_auc(curves)) == pytest.approx(1)
    with pytest.raises(ValueError, match=r"\(n_images, depth, height, width\)"):
        causal_curves(share, volume, maps[:, 0])


def test_road_is_for_pictures():
    with pytest.raises(ValueError, match="not defined for volumes"):
        road(
            lambda volumes, rows: volumes[:, 0, 0, 0, 0], torch.rand(1, 1, 4, 4, 4), random_maps(1)
        )


# Boxes and masks: x1 y1 z1 x2 y2 z2


def test_boxes_of_volumes_count_columns_rows_and_slices():
    maps = torch.zeros(2, 5, 6, 7)
    maps[0, 1:3, 2:4, 3:6] = 1  # z 1 to 3, y 2 to 4, x 3 to 6
    maps[0, 0, 0, 0] = 1
    boxes = box_from_map(maps, spatial_dims=3)
    assert boxes.tolist() == [[3, 2, 1, 6, 4, 3], [0] * 6]
    truth = [torch.tensor([[3.0, 2.0, 1.0, 6.0, 4.0, 2.0]]), torch.empty(0, 4)]
    # 6 of 12 voxels.
    assert box_iou(boxes[0], truth[0]).item() == pytest.approx(0.5)
    assert localization_accuracy(boxes, truth).tolist() == [1, 0]
    masks = box_masks([boxes[:1], torch.empty(0, 6)], (5, 6, 7))
    expected = torch.zeros(2, 5, 6, 7)
    expected[0, 1:3, 2:4, 3:6] = 1
    assert torch.equal(masks, expected)
    half = box_masks([torch.tensor([[0.5, 0.0, 0.0, 1.0, 1.0, 0.5]])], (2, 2, 2))
    assert half.sum() == 0.25 and half[0, 0, 0, 0] == 0.25


def test_boxes_of_pictures_are_refused_for_volumes():
    with pytest.raises(ValueError, match=r"boxes of volumes are \(x1, y1, z1, x2, y2, z2\)"):
        box_masks([torch.tensor([[0.0, 0.0, 1.0, 1.0]])], (2, 2, 2))
    with pytest.raises(ValueError, match=r"boxes of pictures are \(x1, y1, x2, y2\)"):
        box_masks([torch.tensor([[0.0, 0.0, 0.0, 1.0, 1.0, 1.0]])], (2, 2))
    with pytest.raises(ValueError, match="z1 < z2"):
        box_masks([torch.tensor([[0.0, 0.0, 1.0, 1.0, 1.0, 1.0]])], (2, 2, 2))


def test_shares_inside_masks_of_volumes():
    maps = torch.zeros(1, 2, 2, 2)
    maps[0, 0, 0, 0], maps[0, 1, 1, 1] = 3, 1
    mask = torch.zeros(1, 2, 2, 2, dtype=torch.bool)
    mask[0, 0] = True
    assert heatmap_ratio(maps, mask, spatial_dims=3).item() == 0.75
    assert inside_outside_ratio(maps, mask, spatial_dims=3).item() == 3


# Every function that takes maps, called with maps alone. Five maps of an image, by mistake, look as
# volumes of five slices do.
OF_MAPS = {
    "ssim_consistency": lambda maps, **n: ssim_consistency(maps, maps, **n),
    "structural_similarity": lambda maps, **n: structural_similarity(maps, maps, **n),
    "coherency": lambda maps, **n: coherency(maps, maps, **n),
    "rank_correlation": lambda maps, **n: rank_correlation(maps, maps, **n),
    "complexity": complexity,
    "sparsity": sparsity,
    "lp_norm": lp_norm,
    "max_sensitivity": lambda maps, **n: max_sensitivity(maps, maps[None], **n),
    "local_lipschitz": lambda maps, **n: local_lipschitz(
        maps, maps[None], torch.ones(1, len(maps)), **n
    ),
    "heatmap_ratio": lambda maps, **n: heatmap_ratio(maps, maps > 0.5, **n),
    "inside_outside_ratio": lambda maps, **n: inside_outside_ratio(maps, maps > 0.5, **n),
    "relevance_rank_accuracy": lambda maps, **n: relevance_rank_accuracy(maps, maps > 0.5, **n),
    "topk_intersection": lambda maps, **n: topk_intersection(maps, maps > 0.5, k=3, **n),
    "pixel_auc": lambda maps, **n: pixel_auc(maps, maps > 0.5, **n),
    "pointing_game": lambda maps, **n: pointing_game(maps, maps > 0.5, **n),
    "box_from_map": box_from_map,
    "consistency_loss": lambda maps, **n: consistency_loss(maps, maps, **n),
    "sparsity_loss": sparsity_loss,
    "Contrastive": lambda maps, **n: Contrastive()(maps, maps, **n),
    "Explanations": Explanations,
    "signs_of_collapse": lambda maps, **n: signs_of_collapse(
        torch.eye(2), torch.tensor([0, 1]), maps, **n
    ),
}


@pytest.mark.parametrize("function", OF_MAPS.values(), ids=OF_MAPS)
def test_maps_are_of_volumes_where_the_caller_says_so(function):
    volumes = random_maps(2, (12, 13, 14))
    function(volumes, spatial_dims=3)
    for n_slices in (3, 12):
        message = rf"height, width\); got .* \(2, {n_slices}, 13, 14\).* one at a time, as "
        with pytest.raises(ValueError, match=message + r".*\[:, 0\]; for volumes.*spatial_dims=3"):
            function(volumes[:, :n_slices])
    with pytest.raises(ValueError, match=r"depth, height.*\(2, 13, 14\). For pictures, leave"):
        function(volumes[:, 0], spatial_dims=3)
    with pytest.raises(ValueError, match="spatial_dims must be an int from 2 to 3; got 4"):
        function(volumes, spatial_dims=4)


def test_a_metric_of_ones_own_is_told_how_many_sides_maps_have():
    def spread(maps, *, spatial_dims=2):
        return maps.std(dim=tuple(range(-spatial_dims, 0)))

    X, y, _ = balls(2)
    explainer = CAMExplainer(Bright().eval(), target_layer="layer", verbose=0).fit(X)
    metric = Metric("spread", spread, ("maps",))
    found = evaluate(explainer, X, y, metrics=[metric], method="hirescam")["spread"]
    maps = explainer.explain(X, y, method="hirescam")
    np.testing.assert_allclose(found, maps.reshape(2, -1).std(axis=1, ddof=1), rtol=1e-5)


def test_the_pointing_game_measures_distances_in_three_dimensions():
    maps = torch.zeros(1, 5, 6, 7)
    maps[0, 1, 2, 3] = 1
    mask = torch.zeros(1, 5, 6, 7, dtype=torch.bool)
    mask[0, 2, 4, 5] = True  # 1, 2 and 2 away: 3
    assert pointing_game(maps, mask, tolerance=3, spatial_dims=3).item() == 1
    assert pointing_game(maps, mask, tolerance=2, spatial_dims=3).item() == 0
    mask[0, 1, 2, 3] = True
    assert pointing_game(maps, mask, spatial_dims=3).item() == 1


# All of them


class Bright(nn.Module):
    """How bright the front half is, and the back half: a network whose answer is known."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv3d(1, 2, 3, padding=1, bias=False)
        nn.init.constant_(self.layer.weight, 1 / 27)

    def forward(self, volumes):
        hidden = self.layer(volumes).relu()
        front, back = (half.mean((2, 3, 4))[:, 0] for half in hidden.chunk(2, dim=2))
        return 40 * torch.stack([front, back], dim=1)


def balls(n: int = 4, side: int = 16) -> tuple[torch.Tensor, np.ndarray, list[torch.Tensor]]:
    """Volumes with a ball in the front half (0) or the back half (1), and the boxes around it."""
    z, y, x = torch.meshgrid(*[torch.arange(side)] * 3, indexing="ij")
    volumes, boxes = [], []
    for i in range(n):
        at = (side // 4 + side // 2 * (i % 2), side // 2, side // 2)
        near = sum((axis - c) ** 2 for axis, c in zip((z, y, x), at, strict=True)) <= 9
        volumes.append(near.float()[None])
        low = [c - 3 for c in reversed(at)]
        boxes.append(torch.tensor([low + [c + 7 for c in low]], dtype=torch.float32))
    return torch.stack(volumes), np.arange(n) % 2, boxes


def test_evaluate_measures_volumes():
    X, y, boxes = balls()
    explainer = CAMExplainer(Bright().eval(), target_layer="layer", batch_size=3, verbose=0).fit(X)
    metrics = ("adcc", "average_drop", "average_increase", "complexity", "iauc", "dauc")
    metrics += ("consistency", "heatmap_ratio", "localization_accuracy", "pointing_game")
    views = ViewSampler(scale=(1.0, 1.0), ratio=(1.0, 1.0), rotation=0)
    result = evaluate(
        explainer,
        X,
        y,
        metrics=metrics,
        method="hirescam",
        boxes=boxes,
        metric_params={
            "iauc": {"n_steps": 8},
            "dauc": {"n_steps": 8},
            "consistency": {"views": views},
        },
    )
    assert (result["localization_accuracy"] == 1).all()
    assert (result["pointing_game"] == 1).all()
    assert result["heatmap_ratio"].min() > 0.5
    assert result["iauc"].min() > result["dauc"].max()
    # Flips along the width and the height change nothing that the network looks at; along the
    # depth the other class is explained, by the same map.
    np.testing.assert_allclose(result["consistency"], 1, atol=1e-4)
    maps = torch.from_numpy(explainer.explain(X, method="hirescam"))
    np.testing.assert_allclose(result["complexity"], maps.mean((1, 2, 3)), atol=1e-6)
    with torch.no_grad():
        full, shown = (explainer.model(each).softmax(1) for each in (X, X * maps[:, None]))
    full, shown = (each.gather(1, torch.from_numpy(y)[:, None])[:, 0] for each in (full, shown))
    drop = ((full - shown).clamp(min=0) / full).numpy()
    np.testing.assert_allclose(result["average_drop"], drop, atol=1e-5)


def test_masks_of_volumes_count_as_boxes_do():
    X, y, boxes = balls()
    explainer = CAMExplainer(Bright().eval(), target_layer="layer", verbose=0).fit(X)
    masks = box_masks(boxes, X.shape[2:]) > 0
    options = {"metrics": ("heatmap_ratio", "pointing_game"), "method": "layercam"}
    of_boxes = evaluate(explainer, X, y, boxes=boxes, **options)
    of_masks = evaluate(explainer, X, y, masks=masks.numpy(), **options)
    np.testing.assert_allclose(of_boxes["heatmap_ratio"], of_masks["heatmap_ratio"])
    flat = [each[:, [0, 1, 3, 4]] for each in boxes]
    with pytest.raises(ValueError, match=r"boxes\[0\].*boxes of volumes are"):
        evaluate(explainer, X, y, boxes=flat, **options)
    with pytest.raises(ValueError, match=r"boxes\[0\] has no box in its image of 16 x 16 x 16"):
        evaluate(explainer, X, y, boxes=[each + 20 for each in boxes], **options)


def test_references_of_volumes_by_hand():
    X = random_maps(3, (16, 16, 12))[:, None]
    explainer = CAMExplainer(Bright().eval(), target_layer="layer", batch_size=2, verbose=0).fit(X)
    numbers = np.random.default_rng(0)
    shapes = [(16, 16, 12), (32, 32, 24), (2, 2, 2)]  # as it is, finer, and a cube, which is coarse
    references = [numbers.random(shape) for shape in shapes]
    options = {"method": "hirescam", "metrics": "reference_correlation", "progress": False}
    grid = {"metric_params": {"reference_correlation": {"grid": 4}}}
    result = evaluate(explainer, X, references=references, **grid, **options)
    maps = explainer.explain(X, method="hirescam", normalize=False)

    def cells(volume, n):
        parts = [each for length in volume.shape for each in (n, length // n)]
        return volume.reshape(parts).mean((1, 3, 5)).ravel()

    expected = [
        spearmanr(cells(map_, n), cells(reference, n)).statistic
        for map_, reference, n in zip(maps, references, (4, 4, 2), strict=True)
    ]
    np.testing.assert_allclose(result["reference_correlation"], expected, atol=1e-6)
    itself = evaluate(explainer, X, references=maps, **options)
    np.testing.assert_allclose(itself["reference_correlation"], 1)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((16, 16), r"references\[0\] must be a map of numbers, \(depth, height, width\)"),
        ((8, 16, 16), r"is of 8 x 16 x 16 voxels, and its image of 16 x 16 x 16\. .* as a cube"),
        ((16, 8, 16), "is of 16 x 8 x 16 voxels"),
        ((16, 16, 8), "is of 16 x 16 x 8 voxels"),
    ],
)
def test_references_that_do_not_cover_a_volume(shape, message):
    X, y, _ = balls(2)
    explainer = CAMExplainer(Bright().eval(), target_layer="layer", verbose=0).fit(X)
    with pytest.raises(ValueError, match=message):
        evaluate(
            explainer, X, y, metrics="reference_correlation", references=np.ones((2, *shape)),
            method="hirescam", progress=False,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("metric", "options", "message"),
    [
        ("road", {}, "not defined for volumes"),
        ("cose", {}, "colours"),
    ],
    ids=["road", "cose"],
)
def test_metrics_of_pictures_refuse_volumes(metric, options, message):
    X, y, _ = balls()
    explainer = CAMExplainer(Bright().eval(), target_layer="layer", verbose=0).fit(X)
    with pytest.raises(ValueError, match=message):
        evaluate(explainer, X, y, metrics=metric, **options)


def test_ranks_of_voxels_are_those_of_the_same_numbers_in_a_row():
    maps = random_maps(3)
    masks = random_maps(3, seed=1) > 0.7
    rows, marked = maps.flatten(1)[:, None], masks.flatten(1)[:, None]
    torch.testing.assert_close(
        relevance_rank_accuracy(maps, masks, spatial_dims=3), relevance_rank_accuracy(rows, marked)
    )
    torch.testing.assert_close(
        topk_intersection(maps, masks, k=99, spatial_dims=3), topk_intersection(rows, marked, k=99)
    )
    torch.testing.assert_close(pixel_auc(maps, masks, spatial_dims=3), pixel_auc(rows, marked))


def test_stability_and_ranks_of_volumes():
    X, y, boxes = balls()
    explainer = CAMExplainer(Bright().eval(), target_layer="layer", batch_size=3, verbose=0).fit(X)
    metrics = ("max_sensitivity", "local_lipschitz", "relevance_rank_accuracy", "pixel_auc")
    params = {"max_sensitivity": {"n_samples": 2, "radius": 0.01}}
    options = {"method": "hirescam", "boxes": boxes, "progress": False}
    result = evaluate(explainer, X, y, metrics=metrics, metric_params=params, **options)
    # The map is a mean of voxels, in one half: it changes with the noise, and by no more.
    assert 0 < result["max_sensitivity"].max() < 0.1
    assert result["pixel_auc"].min() > 0.95 and result["relevance_rank_accuracy"].min() > 0.7


def test_a_sanity_check_of_volumes():
    X, _, _ = balls()
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 4, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 3),
    ).eval()  # fmt: skip
    explainer = CAMExplainer(network, target_layer="3", verbose=0).fit(X)
    methods = {"gradcam": GradCAM(relu=False), "saliency": "saliency"}
    check = sanity_check(explainer, X, method=methods, progress=False)
    assert check.steps == ["6", "2", "0"]
    for kind in ("rank_correlation", "ssim"):
        for values in check.randomized[kind].values():
            assert values.shape == (4, 3) and np.isfinite(values).all() and values.max() < 0.999
