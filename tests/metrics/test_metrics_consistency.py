"""Consistency, coherency, rank correlations: equivariant networks, numbers by hand, SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from maps_and_boxes import MAPS as RANDOM_MAPS
from maps_and_boxes import H, W
from numpy.testing import assert_allclose
from scipy.ndimage import binary_erosion
from scipy.stats import pearsonr, spearmanr
from skimage.metrics import structural_similarity as skimage_ssim
from small_networks import SmallNet, digits
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sklcam import CAMExplainer, ConsistentCAMClassifier
from sklcam.cam import GradCAM, min_max, target_scores
from sklcam.metrics import (
    coherency,
    consistency_score,
    evaluate,
    rank_correlation,
    ssim_consistency,
    structural_similarity,
)
from sklcam.networks import record
from sklcam.training import ViewSampler, Warp, consistency_loss

X, Y = digits()


class Pointwise(nn.Module):
    """Equivariant to any warp: a linear map of each pixel's colour, then a mean."""

    def __init__(self, num_classes=3, in_channels=3):
        super().__init__()
        self.mix = nn.Conv2d(in_channels, 6, 1)
        self.head = nn.Linear(6, num_classes)

    def forward(self, x):
        return self.head(self.mix(x).mean((2, 3)))


class Constant(Pointwise):
    """Its activations are the same everywhere, and so are its maps."""

    def forward(self, x):
        return self.head((self.mix(x * 0)).mean((2, 3)))


def unscaled_maps(model, images, target=None):
    with record(model, model.mix) as tape:
        return GradCAM(relu=False)(target_scores(model(images), target), tape.activations)


def classifier(module, **options):
    defaults = {"image_size": 16, "max_epochs": 0, "verbose": 0, "random_state": 0, "device": "cpu"}
    return ConsistentCAMClassifier(module, target_layer="mix", **{**defaults, **options})


def test_a_flip_of_an_equivariant_network_is_perfectly_consistent():
    torch.manual_seed(0)
    model, images = Pointwise(), torch.rand(4, 3, 24, 24)
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).repeat(4, 1)
    flip = Warp.from_crops(whole, torch.tensor([True, True, False, True]))
    maps, of_view = (min_max(unscaled_maps(model, x)) for x in (images, flip(images)))
    torch.testing.assert_close(ssim_consistency(flip(maps), of_view), torch.ones(4))


def test_a_crop_is_too_for_the_shared_class_once_the_cropped_map_is_rescaled():
    torch.manual_seed(0)
    model, images = Pointwise(), torch.rand(4, 3, 24, 24)
    views = ViewSampler(scale=(0.1, 0.5))(4, size=(24, 24))
    classes = model(images).argmax(1)
    maps = min_max(unscaled_maps(model, images, classes))
    of_view = min_max(unscaled_maps(model, views(images), classes))
    torch.testing.assert_close(min_max(views(maps)), of_view, atol=1e-4, rtol=0)
    torch.testing.assert_close(ssim_consistency(min_max(views(maps)), of_view), torch.ones(4))
    assert (ssim_consistency(views(maps), of_view) < 1).all()  # as it is defined: not rescaled


def test_the_score_of_an_equivariant_network_on_flips_is_one():
    flips = ViewSampler(scale=(1, 1), ratio=(1, 1), flip=0.5)
    clf = classifier(Pointwise).fit(np.repeat(X[..., None], 3, 3), Y)
    assert consistency_score(clf, np.repeat(X[..., None], 3, 3), views=flips) == pytest.approx(1)


def test_constant_maps_count_as_zero_with_a_warning():
    maps = torch.rand(3, 16, 16)
    maps[1] = 0
    assert ssim_consistency(maps, maps).tolist() == pytest.approx([1, 0, 1])
    clf = classifier(Constant).fit(X, Y)
    with pytest.warns(UserWarning, match="60 of 60 images have a constant map"):
        assert consistency_score(clf, X) == 0


def test_the_score_by_hand_and_independent_of_the_batches():
    clf = classifier(SmallNet, max_epochs=2, lr=0.05).set_params(target_layer="5").fit(X, Y)
    inputs = torch.cat(list(clf.iter_inputs(X)))
    seed = int(np.random.RandomState(3).randint(2**31 - 1))
    views = ViewSampler()(60, size=(16, 16), generator=torch.Generator().manual_seed(seed))
    maps, _ = clf.explain_inputs(inputs, method=GradCAM(relu=False))
    of_view, _ = clf.explain_inputs(views(inputs), method=GradCAM(relu=False))
    expected = ssim_consistency(views(maps), of_view).mean().item()
    scores = [
        consistency_score(clf.set_params(batch_size=size), X, random_state=3) for size in (7, 60)
    ]
    assert scores == pytest.approx([expected, expected], abs=1e-6)
    assert consistency_score(clf, X) != pytest.approx(expected, abs=1e-3)  # another seed
    relu = consistency_score(clf, X, method="gradcam", random_state=3)
    assert relu != pytest.approx(expected, abs=1e-4)


# Coherency


MAPS = torch.rand(4, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


OTHERS = torch.rand(4, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_coherency_is_pearsons_correlation():
    expected = [
        (pearsonr(a.ravel(), b.ravel()).statistic + 1) / 2
        for a, b in zip(MAPS.numpy(), OTHERS.numpy(), strict=True)
    ]
    assert_allclose(coherency(MAPS, OTHERS), expected, atol=1e-12)
    assert_allclose(coherency(MAPS.float(), OTHERS.float()), expected, atol=1e-6)
    assert_allclose(coherency(3 * MAPS + 1, OTHERS / 7), expected, atol=1e-12)


@pytest.mark.parametrize(("slope", "expected"), [(1, 1), (2, 1), (-1, 0), (-0.1, 0)])
def test_coherency_of_linear_relations(slope, expected):
    assert_allclose(coherency(MAPS, slope * MAPS + 0.5), np.full(4, expected), atol=1e-7)


def test_coherency_of_four_pixels_by_hand():
    # Deviations (-1, 0, 0, 1) and (-1, -1, 1, 1), over their norms: 2 / (sqrt(2) 2) = 1 / sqrt(2).
    maps, others = torch.tensor([[[0.0, 1, 1, 2]], [[0.0, 0, 2, 2]]])[:, None]
    assert coherency(maps, others).item() == pytest.approx((1 + 0.5**0.5) / 2)


class MatrixProducts(TorchDispatchMode):
    """Collects the dtypes of all matrix products."""

    def __init__(self):
        super().__init__()
        self.dtypes = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._opname in ("mm", "bmm", "addmm", "baddbmm"):
            self.dtypes.add(args[0].dtype)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_products_are_not_rounded_where_a_user_allows_it(precision):
    """TF32 and bfloat16 would do so on devices that have them, forward and backward."""
    maps, others = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    maps.requires_grad_()
    expected = structural_similarity(maps, others)
    (gradient,) = torch.autograd.grad(expected.sum(), maps)
    found = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        with MatrixProducts() as products:
            similarity = structural_similarity(maps, others)
            (again,) = torch.autograd.grad(similarity.sum(), maps)
    finally:
        torch.set_float32_matmul_precision(found)
    assert not products.dtypes  # nor is there float64, which some devices do not have
    assert similarity.dtype == torch.float32
    # SSIM is a mean of 196 windows of order 1, from moments that are rounded to 2**-24 each.
    torch.testing.assert_close(similarity, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(again, gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("ties", [False, True])
def test_rank_correlation_is_scipys(ties):
    maps, others = (
        RANDOM_MAPS,
        torch.rand(5, H, W, generator=torch.Generator().manual_seed(1)) + RANDOM_MAPS,
    )
    if ties:
        maps, others = (4 * maps).round(), (3 * others).round()
    expected = [
        spearmanr(a.ravel(), b.ravel()).statistic
        for a, b in zip(maps.numpy(), others.numpy(), strict=True)
    ]
    assert_allclose(rank_correlation(maps, others), expected, atol=1e-6)


def test_rank_correlation_of_cells():
    """Means over squares of two pixels, those at the edges of what is left of them."""
    generator = torch.Generator().manual_seed(0)
    maps, others = torch.rand(2, 1, 5, 4, generator=generator)
    coarse = [
        np.array([[of[0, i : i + 2, j : j + 2].mean() for j in (0, 2)] for i in (0, 2, 4)])
        for of in (maps, others)
    ]
    expected = spearmanr(coarse[0].ravel(), coarse[1].ravel()).statistic
    assert rank_correlation(maps, others, cell=2).item() == pytest.approx(expected, abs=1e-6)
    assert rank_correlation(maps, others, cell=9).tolist() == [0]
    with pytest.raises(ValueError, match="cell, a number of pixels, must be an int >= 1; got 0"):
        rank_correlation(maps, others, cell=0)


def test_rank_correlation_by_hand():
    maps = torch.tensor([[[1.0, 5.0, 7.0, 100.0]]])
    for other, expected in {(0, 1, 2, 3): 1, (9, 4, 2, 1): -1, (1, 3, 2, 4): 0.8}.items():
        other = torch.tensor(other).view(1, 1, 4).float()  # 1 - 6 (1 + 1) / (4 (16 - 1)) = 0.8
        assert rank_correlation(maps, other).item() == pytest.approx(expected)
        assert rank_correlation(maps.log(), other.exp()).item() == pytest.approx(expected)
    constant = torch.full((1, 1, 4), 0.3)
    for pair in ((maps, constant), (constant, maps), (constant, constant)):
        assert rank_correlation(*pair).tolist() == [0]
    with pytest.raises(ValueError, match="of one shape"):
        rank_correlation(maps, maps[..., :3])


# Views that reach beyond their images


def disc(n, size):
    y, x = torch.meshgrid(*[torch.arange(size) - size / 2] * 2, indexing="ij")
    radii = torch.linspace(0.45, 0.55, n)[:, None, None] * size
    return (x - 3) ** 2 + y**2 < radii**2


def by_scikit_image(maps, others, valid, **options):
    """The mean of scikit-image's SSIM over the windows of valid pixels alone."""
    side = options.get("win_size", 11)
    edge = side // 2
    found = []
    for a, b, region in zip(maps.numpy(), others.numpy(), valid.numpy(), strict=True):
        _, full = skimage_ssim(a, b, data_range=1.0, full=True, **options)
        # What is not in the image at all is not valid either.
        inside = binary_erosion(region, np.ones((side, side)), border_value=0)
        assert not inside[:edge].any() and inside.any()
        found.append(full[inside].mean())
    return found


GAUSSIAN = {"gaussian_weights": True, "use_sample_covariance": False}


@pytest.mark.parametrize(("window", "options"), [(None, GAUSSIAN), (5, {"win_size": 5})])
def test_similarity_is_that_of_valid_windows(window, options):
    maps, others = torch.rand(2, 3, 40, 40, dtype=torch.float64).cumsum(-1) / 40
    valid = disc(3, 40)
    found = structural_similarity(maps, others, valid=valid, window=window)
    assert_allclose(found, by_scikit_image(maps, others, valid, **options), atol=1e-12)
    # What the others hold does not matter.
    changed = torch.where(valid, maps, torch.rand(3, 40, 40, dtype=torch.float64))
    assert_allclose(structural_similarity(changed, others, valid=valid, window=window), found)
    assert (found - structural_similarity(maps, others, window=window)).abs().min() > 1e-3


def test_a_square_window_is_scikit_images_default():
    maps, others = torch.rand(2, 4, 30, 21)
    for window in (3, 7):
        expected = [
            skimage_ssim(a, b, data_range=1.0, win_size=window)
            for a, b in zip(maps.numpy(), others.numpy(), strict=True)
        ]
        assert_allclose(structural_similarity(maps, others, window=window), expected, atol=1e-5)


def test_similarity_of_whole_maps_is_the_same_bit_by_bit():
    maps, others = torch.rand(2, 5, 33, 47)
    valid = torch.ones(5, 33, 47, dtype=torch.bool)
    valid[1, 5, 5] = False
    found, plain = (
        structural_similarity(maps, others, valid=valid),
        structural_similarity(maps, others),
    )
    assert (found == plain).tolist() == [True, False, True, True, True]


def test_where_nothing_is_valid_nothing_is_known():
    maps = torch.rand(3, 20, 20, requires_grad=True)
    valid = torch.ones(3, 20, 20, dtype=torch.bool)
    valid[0] = False
    valid[1, ::8, ::8] = False  # a pixel in each window
    found = ssim_consistency(maps, maps.detach(), valid)
    assert found.isnan().tolist() == [True, True, False]
    loss = consistency_loss(maps, torch.rand(3, 20, 20), valid)
    assert loss[:2].tolist() == [0, 0] and loss[2] > 0
    (gradient,) = torch.autograd.grad(loss.sum(), maps)
    assert gradient.isfinite().all() and gradient[:2].abs().max() == 0 < gradient[2].abs().max()


def test_maps_that_are_constant_where_they_are_compared_count_as_zero():
    maps, valid = torch.rand(2, 20, 20), torch.ones(2, 20, 20, dtype=torch.bool)
    maps[0, :, :15] = 0.5
    valid[0, :, 15:] = False
    assert ssim_consistency(maps, maps, valid).tolist() == [0, pytest.approx(1)]


def test_the_gradient_on_valid_pixels_is_that_of_finite_differences():
    generator = torch.Generator().manual_seed(0)
    maps, others = torch.rand(2, 2, 13, 14, dtype=torch.float64, generator=generator)
    maps.requires_grad_()
    warp = Warp.from_rotations(torch.tensor([5.0, -3.0], dtype=torch.float64), (13, 14))
    valid = warp.valid((13, 14))
    assert not valid.all()

    def loss(maps):
        return consistency_loss(warp(maps), others, valid)

    assert loss(maps).min() > 0 and torch.autograd.gradcheck(loss, maps)


def test_turned_views_of_an_equivariant_network_are_consistent_where_they_are_valid():
    """Each pixel by itself: the map of a turned image is the turned map, but for what is filled."""
    torch.manual_seed(0)
    model = Pointwise()
    images = torch.nn.functional.interpolate(torch.rand(4, 3, 5, 5), (60, 60), mode="bicubic")
    views = ViewSampler((1, 1), (1, 1), flip=0.5, rotation=180, translation=0.2)(4, size=(60, 60))
    classes = model(images).argmax(1)
    maps = unscaled_maps(model, images, classes)
    of_view = unscaled_maps(model, views(images), classes)
    valid = views.valid((60, 60))
    assert 0.3 < valid.float().mean() < 0.9
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    pair = ((each - low) / (high - low) for each in (views(maps), of_view))
    torch.testing.assert_close(ssim_consistency(*pair, valid), torch.ones(4))


def views_of(clf, sampler, seed=0):
    """Inputs of the classifier, and their views, drawn as evaluate does."""
    inputs = torch.cat(list(clf.iter_inputs(X)))
    drawn = int(np.random.RandomState(seed).randint(2**31 - 1))
    generator = torch.Generator().manual_seed(drawn)
    return inputs, sampler(len(X), size=(16, 16), generator=generator)


def test_the_score_of_turned_and_shifted_views_by_hand():
    clf = classifier(SmallNet, max_epochs=2, lr=0.05).set_params(target_layer="5").fit(X, Y)
    sampler = ViewSampler((0.8, 1.0), rotation=25, translation=0.1)
    inputs, views = views_of(clf, sampler)
    maps, _ = clf.explain_inputs(inputs, method=GradCAM(relu=False))
    of_view, _ = clf.explain_inputs(views(inputs), method=GradCAM(relu=False))
    valid = views.valid((16, 16))
    found = evaluate(
        clf, X, metrics="consistency", metric_params={"consistency": {"views": sampler}}
    )
    expected = ssim_consistency(views(maps), of_view, valid)
    assert_allclose(found["consistency"], expected, atol=1e-6)
    assert not valid.all() and not np.allclose(expected, ssim_consistency(views(maps), of_view))


def test_colors_change_before_images_are_normalised():
    seen = []

    class Seeing(Pointwise):
        def forward(self, x):
            seen.append(x)
            return super().forward(x)

    clf = classifier(Seeing, mean=(0.1, 0.5, 0.9), std=(0.3, 0.2, 0.1))
    pictures = np.random.default_rng(0).random((60, 16, 16, 3), dtype=np.float32)
    clf.fit(pictures, Y)
    seen.clear()
    sampler = ViewSampler((1, 1), (1, 1), flip=0, brightness=0.5)
    clf.set_params(batch_size=60)
    params = {"consistency": {"views": sampler}}
    evaluate(clf, pictures, metrics="consistency", metric_params=params)
    images, of_view = seen[0], seen[1]
    std, mean = (torch.tensor(each)[:, None, None] for each in ((0.3, 0.2, 0.1), (0.1, 0.5, 0.9)))
    images, of_view = (each * std + mean for each in (images, of_view))
    factors = of_view.mean((1, 2, 3), keepdim=True) / images.mean((1, 2, 3), keepdim=True)
    dark = factors.flatten() < 1
    assert 10 < dark.sum() < 50 and factors.min() > 0.5
    torch.testing.assert_close(of_view[dark], (factors * images)[dark], atol=1e-6, rtol=1e-4)
    assert of_view.amax() <= 1 + 1e-6


# Views that keep the prediction, and views that change it


def test_consistency_is_split_by_the_prediction():
    clf = classifier(SmallNet, max_epochs=2, lr=0.05).set_params(target_layer="5").fit(X, Y)
    sampler = ViewSampler((0.08, 0.2), rotation=90)
    inputs, views = views_of(clf, sampler)
    before, after = (clf.explain_inputs(each)[1].argmax(1) for each in (inputs, views(inputs)))
    kept = (before == after).numpy()
    assert 5 < kept.sum() < 55
    names = ["consistency_kept", "consistency_changed", "consistency"]
    options = {"metric_params": {"consistency": {"views": sampler}}, "progress": False}
    result = evaluate(clf, X, metrics=names, **options)
    plain = evaluate(clf, X, metrics="consistency", **options)["consistency"]
    assert_allclose(result["consistency_kept"], np.where(kept, plain, np.nan))
    assert_allclose(result["consistency_changed"], np.where(kept, np.nan, plain))
    summary = result.summary()
    for name, some in (("consistency_kept", kept), ("consistency_changed", ~kept)):
        row = summary[name]
        assert row.mean == pytest.approx(plain[some].mean())
        assert (row.n, row.n_missing) == (some.sum(), (~some).sum())
        assert row.low < row.mean < row.high
    assert summary["consistency"].n == 60


def test_no_view_may_change_the_prediction():
    clf = classifier(Pointwise).fit(np.repeat(X[..., None], 3, 3), Y)
    flips = {"consistency_kept": {"views": ViewSampler((1, 1), (1, 1))}}
    names = ["consistency_kept", "consistency_changed"]
    result = evaluate(clf, np.repeat(X[..., None], 3, 3), metrics=names, metric_params=flips)
    summary = result.summary()
    assert summary["consistency_kept"].mean == pytest.approx(1)
    changed = summary["consistency_changed"]
    assert (changed.n, changed.n_missing) == (0, 60) and np.isnan(changed.mean)


def test_constant_maps_are_counted_where_consistency_is_split_alone():
    clf = classifier(Constant).fit(X, Y)
    with pytest.warns(UserWarning, match="60 of 60 images have a constant map"):
        result = evaluate(clf, X, metrics="consistency_kept")
    assert not result["consistency_kept"].any()


def test_what_views_cannot_do_is_refused_before_any_work():
    images = torch.rand(2, 4, 16, 16)
    around = CAMExplainer(Pointwise(3, 4), target_layer="mix", image_size=16, mean=0, std=1).fit()
    blurred, faded = (ViewSampler(**change) for change in ({"blur": 1}, {"color": 1}))
    pictures = images.permute(0, 2, 3, 1).numpy()
    for X, views, match in (
        (images, blurred, r"blur=1.* changes colours.*X is the network's own input.*mean and std"),
        (pictures, faded, r"color=1.* changes contrast or colour.* have 4 channels"),
    ):
        params = {"consistency": {"views": views}}
        with pytest.raises(ValueError, match=match):
            evaluate(around, X, metrics="consistency", metric_params=params)
    params = {"consistency": {"views": ViewSampler(rotation=9)}}
    assert evaluate(around, images, metrics="consistency", metric_params=params).means()
    params = {"consistency": {"views": blurred}}
    assert evaluate(around, pictures, metrics="consistency", metric_params=params).means()
    number = CAMExplainer(Pointwise(1, 4), target_layer="mix", image_size=16, task="regression")
    with pytest.raises(
        ValueError, match=r"consistency_kept: the network returns numbers, .* a litt"
    ):
        evaluate(number.fit(images), images, metrics="consistency_kept")
