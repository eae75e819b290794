"""Consistency and curves, against the metrics' numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from displayed import (
    AWKWARD,
    VIEWS,
    X,
    titles,
)
from numpy.testing import assert_allclose, assert_array_equal
from scipy.integrate import trapezoid

from sklcam.cam import GradCAM, TopK
from sklcam.metrics import CausalCurves, evaluate, get_scorer
from sklcam.plotting import (
    CausalCurveDisplay,
    ConsistencyDisplay,
    ViewPairDisplay,
)
from sklcam.training import ViewSampler, Warp


def test_pairs_are_those_of_the_metric(fitted, other):
    models = {"a": fitted, "b": other}
    display = ViewPairDisplay.from_estimator(models, X[:9], views=VIEWS, random_state=3)
    assert display.axes_.shape == (9, 8)
    for name, model in models.items():
        expected = evaluate(
            model,
            X[:9],
            metrics="consistency",
            metric_params={"consistency": {"views": VIEWS}},
            random_state=3,
            progress=False,
        )["consistency"]
        assert_allclose(display.ssim[name], expected, atol=1e-5)
    captions = [place.get_xlabel() for place in display.axes_[:, 4]]
    assert captions == [f"SSIM {value:.2f}" for value in display.ssim["a"]]
    assert titles(display.axes_[0, [3, 6]]) == ["a\nview of the map", "b\nview of the map"]
    assert_array_equal(
        display.ims_[0, 2].get_array(), fitted.explain(X[:9], method=GradCAM(relu=False))[0]
    )
    assert_array_equal(display.ims_[5, 7].get_array(), display.maps_of_views["b"][5])


def test_views_are_drawn_where_they_are():
    image = np.arange(64.0).reshape(8, 8) / 64
    views = Warp.from_crops(torch.tensor([[0.25, 0.5, 0.5, 0.25]]), flip=torch.tensor([True]))
    maps = {"": torch.rand(1, 16, 16).numpy()}
    display = ViewPairDisplay(images=[image], views=views, maps=maps, maps_of_views=maps).plot()
    (frame, _) = (patch.get_xy() for patch in display.axes_[0, 0].patches)
    assert_allclose(frame, [(6, 4), (2, 4), (2, 6), (6, 6), (6, 4)])  # its corners, mirrored
    assert titles(display.axes_[0, :2]) == ["image", "view"]
    assert display.axes_[0, 1].get_xlabel() == "mirrored"
    mirror = Warp.from_crops(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), flip=torch.tensor([True]))
    display = ViewPairDisplay(images=[image], views=mirror, maps=maps, maps_of_views=maps).plot()
    assert_array_equal(display.ims_[0, 1].get_array(), image[:, ::-1])
    assert_array_equal(display.ims_[0, 3].get_array(), maps[""][0][:, ::-1])


def test_turned_and_faded_views_are_drawn_as_they_are(fitted):
    views = ViewSampler((1, 1), (1, 1), flip=0, rotation=40, brightness=0.9)
    display = ViewPairDisplay.from_estimator(fitted, X[:5], views=views, random_state=1)
    params = {"consistency": {"views": views}}
    values = evaluate(
        fitted, X[:5], metrics="consistency", metric_params=params, random_state=1, progress=False
    )["consistency"]
    (ssim,) = display.ssim.values()
    assert_allclose(ssim, values, atol=1e-5)
    for i, image in enumerate(display.images):
        corners = display.axes_[i, 0].patches[0].get_xy()[:4]
        height, width = image.shape[:2]
        # As large as the image, but turned about its middle.
        assert_allclose(corners.mean(0), [width / 2, height / 2], atol=1e-4)
        distances = np.linalg.norm(corners - corners.mean(0), axis=1)
        assert_allclose(distances, np.hypot(width, height) / 2, rtol=1e-4)
        view = display.views.photometry[i : i + 1]
        shown, warped = display.ims_[i, 1].get_array(), display.views[i : i + 1]
        expected = warped(torch.from_numpy(image)[None])[0] * view.brightness
        assert_allclose(shown, expected.clamp(0, 1), atol=1e-5)


def test_consistency_of_each_image(fitted, other):
    models = {"a": fitted, "b": other}
    display = ConsistencyDisplay.from_estimator(models, X[:20], views=VIEWS, random_state=2)
    for (name, model), text in zip(models.items(), display.legend_.get_texts(), strict=True):
        scorer = get_scorer("consistency", views=VIEWS, random_state=2)
        mean = scorer(model, X[:20])
        assert display.values[name].mean() == pytest.approx(mean)
        assert text.get_text() == f"{name}: {mean:.2f} ± {display.values[name].std():.2f}"


def test_one_random_state_gives_all_models_the_same_views(fitted):
    state = np.random.RandomState(0)
    display = ConsistencyDisplay.from_estimator(
        {"a": fitted, "b": fitted}, X[:20], random_state=state
    )
    assert_array_equal(display.values["a"], display.values["b"])


def test_histograms_have_their_bins_in_common():
    values = {"a": np.array([0.1, 0.2, 0.9]), "b": np.array([0.55, 0.55, 0.75])}
    display = ConsistencyDisplay.from_predictions(values, bins=4)
    edges = [0.1, 0.3, 0.5, 0.7, 0.9]
    for artist, counts in zip(display.artists_, ([2, 0, 0, 1], [0, 0, 2, 1]), strict=True):
        assert_allclose(artist.get_data().edges, edges)
        assert_array_equal(artist.get_data().values, counts)
    means = [line.get_xdata()[0] for line in display.ax_.lines]
    assert_allclose(means, [0.4, 1.85 / 3])


def test_cumulative_distribution():
    display = ConsistencyDisplay.from_predictions([0.3, 0.1, 0.2, 0.4], kind="ecdf")
    x, y = display.artists_[0].get_data()
    assert_allclose(x[1:], [0.1, 0.2, 0.3, 0.4])
    assert_allclose(y[1:], [0.25, 0.5, 0.75, 1])


def test_lines_differ_by_more_than_their_colour():
    display = ConsistencyDisplay.from_predictions(
        {str(i): [0.1, 0.2] for i in range(20)}, kind="ecdf"
    )
    looks = [(line.get_color(), str(line._dash_pattern)) for line in display.artists_]
    assert len(set(looks)) == 20
    assert len({dashes for _, dashes in looks[:7]}) == 7


@pytest.mark.parametrize("kind", ["hist", "ecdf"])
def test_values_that_are_not_finite_are_counted(kind):
    given = {"some": [0.5, np.nan, 0.5], "none": [np.nan]}
    display = ConsistencyDisplay.from_predictions(given, kind=kind)
    written = [text.get_text() for text in display.legend_.get_texts()]
    assert written == ["some: nan ± nan, 1 not finite", "none: nan ± nan, 1 not finite"]


@pytest.mark.parametrize("values", [[], [[1.0]], np.nan])
def test_consistency_that_is_no_number_per_image(values):
    with pytest.raises(ValueError, match="one number per image"):
        ConsistencyDisplay.from_predictions(values)


def test_equal_values_and_awkward_names():
    display = ConsistencyDisplay.from_predictions({name: [0.5, 0.5] for name in AWKWARD})
    written = [text.get_text() for text in display.legend_.get_texts()]
    assert written[0] == "$x: 0.50 ± 0.00" and written[3] == "_hidden: 0.50 ± 0.00"


# Insertion and deletion


def test_curves_and_areas_are_the_metrics(fitted):
    methods = ["gradcam", "layercam"]
    display = CausalCurveDisplay.from_estimator(fitted, X[:40], methods=methods, n_steps=16)
    for i, method in enumerate(methods):
        result = evaluate(
            fitted,
            X[:40],
            metrics=("iauc", "dauc"),
            method=method,
            metric_params={"iauc": {"n_steps": 16}},
            progress=False,
        )
        for legend, name in zip(display.legends_, ("iauc", "dauc"), strict=True):
            expected = f"{method}: AUC {result[name].mean():.2f}"
            assert legend.get_texts()[i].get_text() == expected
        line = display.lines_[0, i]
        assert_allclose(line.get_xdata(), np.arange(17) / 16, atol=1e-6)
        area = trapezoid(line.get_ydata(), line.get_xdata())
        assert area == pytest.approx(result["iauc"].mean(), abs=1e-5)
        area = trapezoid(
            *[line.get_data()[axis] for line in display.lines_[1:, i] for axis in (1, 0)]
        )
        assert area == pytest.approx(result["dauc"].mean(), abs=1e-5)


def test_the_band_is_the_middle_half():
    scores = torch.tensor([[0.0], [0.1], [0.2], [0.3], [1.0]]).expand(5, 3)
    curves = CausalCurves(torch.linspace(0, 1, 3), scores, scores)
    display = CausalCurveDisplay.from_predictions(curves)
    band = display.axes_[0].collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == (pytest.approx(0.1), pytest.approx(0.3))
    assert not CausalCurveDisplay.from_predictions(curves, band=False).axes_[0].collections


def test_bands_of_many_curves_are_bars_beside_each_other():
    inserted = torch.rand(9, 41, generator=torch.Generator().manual_seed(0))
    curves = CausalCurves(torch.linspace(0, 1, 41), inserted, inserted)
    place = CausalCurveDisplay.from_predictions(dict.fromkeys("abc", curves)).axes_[0]
    places = []
    for bars in place.collections:
        for (x, low), (_, high) in bars.get_segments():
            at = round(x * 40)
            assert_allclose([low, high], np.quantile(inserted[:, at], [0.25, 0.75]), atol=1e-6)
            places.append(at)
    assert len(set(places)) == len(places) == 15


def test_a_callable_target_needs_a_score(fitted):
    with pytest.raises(ValueError, match="score="):
        CausalCurveDisplay.from_estimator(fitted, X[:2], target=lambda output: output[:, 0])
    display = CausalCurveDisplay.from_estimator(
        fitted,
        X[:2],
        target=lambda output: output[:, 0],
        score=lambda output: output.softmax(dim=1)[:, 0],
        n_steps=4,
    )
    with pytest.raises(ValueError, match="one class per image"):
        CausalCurveDisplay.from_estimator(fitted, X[:2], target=TopK(2), n_steps=4)
    last = fitted.predict_proba(X[:2])[:, 0].mean()
    assert display.lines_[0, 0].get_ydata()[-1] == pytest.approx(last, abs=1e-5)
