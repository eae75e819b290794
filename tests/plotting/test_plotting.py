"""Displays: what is drawn, against explain's maps, the metrics' numbers and hand-made truth."""

from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from scipy.integrate import trapezoid
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.utils import Bunch
from skorch import NeuralNetBinaryClassifier
from small_networks import ImageAndVector, SmallNet, digits
from torch import nn

plt = pytest.importorskip("matplotlib.pyplot")
from matplotlib import colormaps  # noqa: E402
from matplotlib.colors import to_rgb  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from sklcam import CAMExplainer, ConsistentCAMClassifier, EmbeddingCAMExplainer, EmbeddingNet  # noqa: E402
from sklcam.cam import GradCAM, TopK  # noqa: E402
from sklcam.metrics import CausalCurves, evaluate, get_scorer  # noqa: E402
from sklcam.plotting import (  # noqa: E402
    CAMDisplay,
    CausalCurveDisplay,
    ConsistencyDisplay,
    LocalizationDisplay,
    MapGridDisplay,
    RetrievalDisplay,
    TradeoffBoxDisplay,
    TradeoffDisplay,
    ViewPairDisplay,
)
from sklcam.plotting._drawing import COLORS, MAP_CMAP  # noqa: E402
from sklcam.training import ViewSampler, Warp  # noqa: E402

X, Y = digits()
NAMES = np.array(["zero", "one", "two"])[Y]
AWKWARD = ["$x", "a_b $c$ <d> & \\alpha", "Größe ✓ " + "very long " * 20, "_hidden"]


class SmallEmbedding(SmallNet):
    def __init__(self, embedding_dim, in_channels):
        super().__init__(embedding_dim, in_channels)


def small(**parameters):
    options = {"alpha": 0, "beta": 0, "image_size": 16, "lr": 0.1, "max_epochs": 2}
    options |= {"random_state": 0, "verbose": 0, "augment": None}
    return ConsistentCAMClassifier(SmallNet, **options | parameters)


@pytest.fixture(scope="module")
def fitted():
    return small().fit(X, NAMES)


@pytest.fixture(scope="module")
def other():
    return small(random_state=1).fit(X, NAMES)


@pytest.fixture(scope="module")
def embedding():
    torch.manual_seed(0)
    network = SmallNet(num_classes=4)
    options = {"image_size": 16, "mean": 0.5, "std": 0.5, "verbose": 0}
    return EmbeddingCAMExplainer(network, **options).fit(X, NAMES)


@pytest.fixture(autouse=True)
def _no_warnings():
    """Drawing and rendering are silent, and a figure that pyplot made is closed."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
        for number in plt.get_fignums():
            plt.figure(number).canvas.draw()
    plt.close("all")


def titles(axes):
    return [place.get_title() for place in np.ravel(axes)]


def rectangles(place):
    """The boxes drawn, each once: (x1, y1, x2, y2)."""
    found = [(p.get_x(), p.get_y(), p.get_width(), p.get_height()) for p in place.patches]
    return [(x, y, x + w, y + h) for x, y, w, h in dict.fromkeys(found)]


# Maps on images


@pytest.mark.parametrize("frame", ["image", "input"])
def test_drawn_maps_are_those_of_explain(fitted, frame):
    methods = ["gradcam", "layercam"]
    display = CAMDisplay.from_estimator(fitted, X[:2], methods=methods, frame=frame)
    assert display.axes_.shape == display.ims_.shape == (2, 3)
    for column, method in enumerate(methods, 1):
        maps = fitted.explain(X[:2], method=method, frame=frame)
        for i in range(2):
            assert_array_equal(display.ims_[i, column].get_array(), maps[i])
            assert display.ims_[i, column].get_clim() == (0, 1)
    size = 8 if frame == "image" else 16
    assert display.ims_[0, 0].get_array().shape == (size, size)
    assert_allclose(display.ims_[0, 0].get_extent(), (0, size, size, 0))
    if frame == "image":
        assert_allclose(display.ims_[1, 0].get_array(), X[1], atol=1e-7)


def test_titles_hold_classes_scores_and_methods(fitted):
    display = CAMDisplay.from_estimator(fitted, X[:3], NAMES[:3], methods=["gradcam", "hirescam"])
    probabilities, predicted = fitted.predict_proba(X[:3]), fitted.predict(X[:3])
    for i, title in enumerate(titles(display.axes_[:, 0])):
        text = title.replace("\n", " ")
        score = f"({probabilities[i].max():.2f})"
        assert text == f"true: {NAMES[i]} predicted: {predicted[i]} {score}"
    assert titles(display.axes_[0, 1:]) == ["gradcam", "hirescam"]


def test_models_side_by_side_each_say_what_they_predict(fitted, other):
    models = {"first": fitted, "second": other}
    display = CAMDisplay.from_estimator(models, X[:2], NAMES[:2])
    assert display.axes_.shape == (2, 3)
    for column, (name, model) in enumerate(models.items(), 1):
        above = display.axes_[0, column].get_title()
        assert above.startswith(f"{name}\npredicted: {model.predict(X[:1])[0]}")
        assert_array_equal(
            display.ims_[1, column].get_array(), model.explain(X[:2], frame="image")[1]
        )
    assert titles(display.axes_[:, 0]) == [f"true: {name}" for name in NAMES[:2]]


def test_models_by_methods(fitted, other):
    models = {"a": fitted, "b": other}
    methods = {"with": GradCAM(), "without": GradCAM(relu=False)}
    display = CAMDisplay.from_estimator(models, X[:1], methods=methods)
    assert list(display.maps) == ["a, with", "a, without", "b, with", "b, without"]
    assert_array_equal(
        display.maps["b, without"][0],
        other.explain(X[:1], method=GradCAM(relu=False), frame="image")[0],
    )


@pytest.mark.parametrize(("kind", "n_columns"), [("overlay", 2), ("map", 2), ("both", 3)])
def test_kinds(fitted, kind, n_columns):
    display = CAMDisplay.from_estimator(fitted, X[:1], kind=kind)
    assert display.axes_.shape == (1, n_columns)
    n_pictures = [len(place.images) for place in display.axes_[0]]
    assert n_pictures == {"overlay": [1, 2], "map": [1, 1], "both": [1, 1, 2]}[kind]


def test_a_map_can_be_as_opaque_as_it_is_high(fitted):
    display = CAMDisplay.from_estimator(fitted, X[:1], alpha="map")
    drawn = display.ims_[0, 1]
    assert_array_equal(drawn.get_alpha(), drawn.get_array())


def test_paths_and_pictures_of_any_size(tmp_path):
    torch.manual_seed(0)
    explainer = CAMExplainer(SmallNet(in_channels=3), image_size=16, verbose=0).fit()
    generator = np.random.default_rng(0)
    pixels = [generator.integers(0, 256, (*size, 3), np.uint8) for size in ((20, 30), (24, 12))]
    path = tmp_path / "first.png"
    Image.fromarray(pixels[0]).save(path)
    display = CAMDisplay.from_estimator(explainer, [path, Image.fromarray(pixels[1])], [0, 1])
    for i, expected in enumerate(pixels):
        assert_allclose(display.ims_[i, 0].get_array(), expected / 255, atol=1e-6)
        height, width, _ = expected.shape
        assert display.ims_[i, 1].get_array().shape == (height, width)
        assert_allclose(display.ims_[i, 1].get_extent(), (0, width, height, 0))
    plt.close(display.figure_)
    again = CAMDisplay.from_estimator(explainer, [path], frame="input")
    assert again.ims_[0, 0].get_array().shape == (16, 16, 3)


def test_a_networks_own_input_is_scaled_to_be_seen():
    images = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 3
    explainer = CAMExplainer(SmallNet(), verbose=0).fit(images)
    drawn = CAMDisplay.from_estimator(explainer, images).ims_[0, 0].get_array()
    assert (drawn.min(), drawn.max()) == (0, 1)
    expected = (images[0, 0] - images[0].min()) / (images[0].max() - images[0].min())
    assert_allclose(drawn, expected.numpy(), atol=1e-6)


def test_a_bare_network_and_an_embedding(embedding):
    CAMDisplay.from_estimator(SmallNet(), torch.rand(1, 1, 16, 16))
    display = CAMDisplay.from_estimator(embedding, X[:1])
    assert display.axes_[0, 0].get_title() == f"predicted: {embedding.predict(X[:1])[0]}"
    alone = EmbeddingCAMExplainer(embedding.model, proxy="self", image_size=16, verbose=0).fit()
    assert CAMDisplay.from_estimator(alone, X[:1]).axes_[0, 0].get_title() == ""


def test_a_binary_nets_threshold_decides():
    torch.manual_seed(0)
    images = torch.from_numpy(X[:6].astype(np.float32))[:, None]
    options = {"module__num_classes": 1, "train_split": None, "max_epochs": 1, "verbose": 0}
    net = NeuralNetBinaryClassifier(SmallNet, **options).fit(images, np.float32(Y[:6] > 0))
    second = torch.sigmoid(net.forward(images).ravel()).detach().numpy()
    for threshold, predicted in ((second.min() / 2, 1), ((1 + second.max()) / 2, 0)):
        net.threshold = float(threshold)
        explainer = CAMExplainer(net, target_layer="5", verbose=0).fit(images)
        display = CAMDisplay.from_estimator(explainer, images)
        chances = second if predicted else 1 - second
        expected = [f"predicted: {predicted} ({chance:.2f})" for chance in chances]
        assert display.image_titles == expected


def test_an_image_among_other_inputs():
    inputs = {"image": torch.rand(2, 1, 16, 16), "vector": torch.rand(2, 2)}
    explainer = CAMExplainer(ImageAndVector(), "gradcam", "conv", image_input="image", verbose=0)
    display = CAMDisplay.from_estimator(explainer.fit(inputs), inputs, frame="input")
    assert_array_equal(display.ims_[1, 0].get_array(), inputs["image"][1, 0])
    ViewPairDisplay.from_estimator(explainer, inputs)


def test_an_embedding_net_as_it_is():
    net = EmbeddingNet(SmallEmbedding, embedding_dim=4, image_size=16, max_epochs=1, verbose=0)
    net.fit(X, NAMES)
    display = CAMDisplay.from_estimator(net, X[:2], frame="input")
    assert_array_equal(display.ims_[1, 1].get_array(), net.explain(X[:2])[1])
    ConsistencyDisplay.from_estimator(net, X[:4])
    RetrievalDisplay.from_estimator(net, X[:1], X[1:], k=1)


def test_from_predictions_in_colour_grey_and_one():
    generator = np.random.default_rng(0)
    maps = generator.random((2, 5, 7))
    for images in (generator.random((2, 10, 14)), generator.random((2, 10, 14, 3))):
        display = CAMDisplay.from_predictions(images, {"mine": maps}, titles=["a", 5])
        assert_allclose(display.ims_[1, 0].get_array(), images[1], atol=1e-7)
        assert_array_equal(display.ims_[1, 1].get_array(), maps[1])
        # Though smaller, the map lies over all of the image.
        assert_allclose(display.ims_[1, 1].get_extent(), (0, 14, 10, 0))
        assert titles(display.axes_[:, 0]) == ["a", "5"]
    one = CAMDisplay.from_predictions(images[:1], torch.from_numpy(maps[:1]), colorbar=False)
    assert one.axes_.shape == (1, 2) and one.colorbar_ is None


@pytest.mark.parametrize("value", [0.0, 1.0, -2.0, 5.0])
def test_constant_maps(value):
    display = CAMDisplay.from_predictions(X[:1], np.full((1, 8, 8), value), alpha="map")
    low, high = display.ims_[0, 1].get_clim()
    assert low <= value <= high and low < high


def test_maps_beyond_0_and_1_share_their_scale():
    maps = np.stack([np.full((4, 4), -1.0), np.full((4, 4), 3.0)])
    display = CAMDisplay.from_predictions(X[:2], maps)
    assert {im.get_clim() for im in display.ims_[:, 1]} == {(-1, 3)}
    assert (display.colorbar_.vmin, display.colorbar_.vmax) == (-1, 3)


def test_labels_are_written_as_they_are():
    display = CAMDisplay.from_predictions(X[:4], X[:4], titles=AWKWARD)
    written = titles(display.axes_[:, 0])
    assert written[0] == "$x" and written[1].replace("\n", " ") == AWKWARD[1]
    assert written[2].startswith("Größe ✓") and written[2].endswith("…")
    display.figure_.canvas.draw()
    for place in display.axes_[:, 0]:
        room = place.get_window_extent()
        text = place.title.get_window_extent()
        assert text.width <= 1.15 * room.width


def test_titles_do_not_overlap(fitted, other):
    display = CAMDisplay.from_estimator(
        {"a model of a long name": fitted, "another": other}, X[:3], AWKWARD[:3], kind="both"
    )
    display.figure_.canvas.draw()
    boxes = [p.title.get_window_extent() for p in display.axes_.flat if p.get_title()]
    pictures = [place.get_window_extent() for place in display.axes_.flat]
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(of) for of in (*boxes[:i], *boxes[i + 1 :], *pictures))


def test_many_images(fitted):
    assert CAMDisplay.from_estimator(fitted, X[:30]).axes_.shape == (30, 2)
    with pytest.raises(ValueError, match="at most 100 rows, and this would be 120"):
        CAMDisplay.from_estimator(fitted, np.concatenate([X, X]))


# Axes, figures, matplotlib


def test_given_axes_are_drawn_on_and_pyplot_is_left_alone(fitted):
    axes = Figure().subplots(2, 2)
    display = CAMDisplay.from_estimator(fitted, X[:2], ax=axes)
    assert display.figure_ is axes[0, 0].figure
    assert_array_equal(display.axes_, axes)
    flat = CAMDisplay.from_estimator(fitted, X[:2], ax=list(Figure().subplots(4)))
    assert flat.axes_.shape == (2, 2)
    curves = CausalCurves(torch.linspace(0, 1, 3), torch.rand(2, 3), torch.rand(2, 3))
    CausalCurveDisplay.from_predictions(curves, ax=Figure().subplots(1, 2))
    ConsistencyDisplay.from_predictions([0.1, 0.2], ax=Figure().subplots())
    boxes = LocalizationDisplay.from_predictions(
        X[:1], X[:1], [[[0, 0, 4, 4]]], ax=Figure().subplots()
    )
    assert boxes.axes_.shape == (1,)
    assert plt.get_fignums() == []


def test_one_figure_is_made_and_is_pyplots(fitted):
    display = CAMDisplay.from_estimator(fitted, X[:1])
    assert plt.get_fignums() == [display.figure_.number]


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (2, 3)])
def test_wrong_axes_are_named(fitted, shape):
    axes = Figure().subplots(*shape)
    with pytest.raises(ValueError, match="CAMDisplay needs 2 x 2 axes here"):
        CAMDisplay.from_estimator(fitted, X[:2], ax=axes)


def test_axes_in_another_arrangement_are_refused(fitted):
    axes = Figure().subplots(3, 2)
    with pytest.raises(ValueError, match="2 x 3 axes here, rows by columns; ax has 3 x 2"):
        CAMDisplay.from_estimator(fitted, X[:2], methods=["gradcam", "layercam"], ax=axes)


@pytest.mark.parametrize("display", [ConsistencyDisplay, CausalCurveDisplay])
def test_what_is_no_axes_is_refused(display):
    curves = CausalCurves(torch.linspace(0, 1, 3), torch.rand(2, 3), torch.rand(2, 3))
    data = [0.5] if display is ConsistencyDisplay else curves
    with pytest.raises(ValueError, match="ax must be"):
        display.from_predictions(data, ax="here")
    with pytest.raises(ValueError, match=r"ax must be one|needs 1 x 2 axes"):
        display.from_predictions(data, ax=Figure().subplots(3))


@pytest.mark.slow
def test_matplotlib_is_imported_late():
    code = "import sys, sklcam.plotting; sys.exit('matplotlib' in sys.modules)"
    # pytorch-metric-learning and torchvision do not bring it either.
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_without_matplotlib_the_extra_is_named(fitted, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    message = r'needs matplotlib. It comes with: pip install "sklcam\[plot\]"'
    calls = [
        lambda: CAMDisplay.from_estimator(fitted, X[:1]),
        lambda: CAMDisplay(images=[X[0]], maps={"": [X[0]]}).plot(),
        lambda: ViewPairDisplay.from_estimator(fitted, X[:1]),
        lambda: ConsistencyDisplay.from_estimator(fitted, X[:1]),
        lambda: CausalCurveDisplay.from_estimator(fitted, X[:1]),
        lambda: TradeoffDisplay.from_cv_results({}),
        lambda: TradeoffBoxDisplay.from_cv_results({}, by="alpha"),
        lambda: MapGridDisplay.from_predictions(X[0], {}),
        lambda: LocalizationDisplay.from_estimator(fitted, X[:1], [[[0, 0, 1, 1]]]),
        lambda: RetrievalDisplay.from_estimator(fitted, X[:1], X[1:]),
    ]
    for call in calls:
        with pytest.raises(ImportError, match=message):
            call()


def luminance(colors):
    """Relative luminance of sRGB (WCAG), worked from its definition."""
    rgb = np.asarray(colors)[..., :3]
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


def test_the_maps_colours_get_lighter_throughout():
    assert (np.diff(luminance(colormaps[MAP_CMAP](np.linspace(0, 1, 256)))) > 0).all()


def test_lines_are_seen_on_white():
    for color in COLORS:
        assert luminance(to_rgb(color)) < 0.5


# Errors


@pytest.mark.parametrize(
    "draw",
    [
        lambda of: CAMDisplay.from_estimator(of, X[:1]),
        lambda of: ViewPairDisplay.from_estimator(of, X[:1]),
        lambda of: ConsistencyDisplay.from_estimator(of, X[:1]),
        lambda of: CausalCurveDisplay.from_estimator(of, X[:1]),
        lambda of: LocalizationDisplay.from_estimator(of, X[:1], [[[0, 0, 1, 1]]]),
    ],
)
def test_unfitted(draw):
    with pytest.raises(NotFittedError):
        draw(small())
    assert plt.get_fignums() == []


# Consistency


VIEWS = ViewSampler(scale=(0.3, 1.0))


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
    assert_allclose(rectangles(display.axes_[0, 0]), [(2, 4, 6, 6)])
    assert titles(display.axes_[0, :2]) == ["image", "view"]
    assert display.axes_[0, 1].get_xlabel() == "mirrored"
    mirror = Warp.from_crops(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), flip=torch.tensor([True]))
    display = ViewPairDisplay(images=[image], views=mirror, maps=maps, maps_of_views=maps).plot()
    assert_array_equal(display.ims_[0, 1].get_array(), image[:, ::-1])
    assert_array_equal(display.ims_[0, 3].get_array(), maps[""][0][:, ::-1])


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


@pytest.mark.parametrize("values", [[], [[1.0]], [np.nan]])
def test_consistency_that_is_no_number_per_image(values):
    with pytest.raises(ValueError, match="one finite number per image"):
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


# Searches


@pytest.fixture(scope="module")
def search():
    scoring = {"accuracy": "accuracy", "consistency": get_scorer("consistency", views=VIEWS)}
    grid = {"alpha": [0, 0.5], "lr": [0.05, 0.1]}
    options = {"scoring": scoring, "refit": "accuracy", "cv": 2}
    return GridSearchCV(small(max_epochs=1), grid, **options).fit(X, NAMES)


def test_candidates_of_a_search(search):
    display = TradeoffDisplay.from_estimator(search)
    results = search.cv_results_
    for i, point in enumerate(display.points_):
        line, _, bars = point.lines
        means = [results[f"mean_test_{name}"][i] for name in ("accuracy", "consistency")]
        assert_allclose(np.ravel(line.get_xydata()), means)
        ends = bars[0].get_segments()[0][:, 0]
        assert_allclose(np.ptp(ends) / 2, results["std_test_accuracy"][i])
    assert display.ax_.get_xlabel() == "accuracy, mean of 2 folds"
    written = [text.get_text() for text in display.legend_.get_texts()]
    assert written == [
        "alpha = 0",
        "alpha = 0.5",
        "lr = 0.05",
        "lr = 0.1",
        "no other is better in both",
        "chosen",
    ]
    assert display.best_index == search.best_index_


def table(x, y, params=None):
    params = params or [{"alpha": i} for i in range(len(x))]
    results = {"params": params}
    for name, means in {"accuracy": x, "consistency": y}.items():
        results |= {f"mean_test_{name}": means, f"std_test_{name}": np.zeros(len(x))}
    return results


def test_the_front_is_what_no_other_beats():
    display = TradeoffDisplay.from_cv_results(table([0.9, 0.8, 0.7, 0.8], [0.1, 0.5, 0.4, 0.3]))
    assert_array_equal(display.front, [0, 1])
    line = display.ax_.lines[-1]
    assert_allclose(line.get_data(), [[0.9, 0.8], [0.1, 0.5]])


def test_failed_fits_are_left_out():
    results = table([0.9, np.nan], [0.1, np.nan])
    display = TradeoffDisplay.from_cv_results(results)
    assert display.points_[1] is None
    with pytest.raises(ValueError, match="did all fits fail"):
        TradeoffDisplay.from_cv_results(table([np.nan], [np.nan]))


def test_a_parameter_that_some_lack_and_one_candidate():
    params = [{"alpha": 0}, {"alpha": 1, "p": 1}, {"alpha": 1, "p": 2}]
    display = TradeoffDisplay.from_cv_results(table([1, 2, 3], [3, 2, 1], params), color_by="p")
    written = [text.get_text() for text in display.legend_.get_texts()]
    assert written[:3] == ["p = 1", "p = 2", "p = not set"]
    assert len(TradeoffDisplay.from_cv_results(table([1], [1])).points_) == 1


def test_many_values_have_a_scale():
    alphas = [0, *np.geomspace(1e-3, 10, 19)]
    params = [{"alpha": alpha, "kind": "$a_" if i % 2 else "_b"} for i, alpha in enumerate(alphas)]
    display = TradeoffDisplay.from_cv_results(table(range(20), range(20), params))
    assert display.colorbar_ is not None
    lightness = [luminance(to_rgb(point.lines[0].get_color())) for point in display.points_]
    assert (np.diff(lightness) > 0).all()


def test_equal_numbers_are_one_value():
    params = [{"alpha": 1, "p": 1}, {"alpha": 1.0, "p": 2}, {"alpha": np.float64(2), "p": 2}]
    display = TradeoffDisplay.from_cv_results(table([1, 2, 3], [3, 2, 1], params))
    written = [text.get_text() for text in display.legend_.get_texts()]
    assert written[:2] == ["alpha = 1", "alpha = 2"]


def test_searches_that_lack_something(search):
    with pytest.raises(ValueError, match=r"no score 'adcc'; it has \['accuracy', 'consistency'\]"):
        TradeoffDisplay.from_estimator(search, x="adcc")
    with pytest.raises(ValueError, match=r"no parameter 'beta'; it has \['alpha', 'lr'\]"):
        TradeoffDisplay.from_estimator(search, color_by="beta")
    with pytest.raises(ValueError, match="no parameter 'beta'"):
        TradeoffBoxDisplay.from_estimator(search, by="beta")
    with pytest.raises(NotFittedError):
        TradeoffDisplay.from_estimator(GridSearchCV(small(), {"alpha": [0]}))


def test_boxes_by_architecture():
    params = [{"module": of, "alpha": a} for of in ("a_$", nn.Linear) for a in (0, 1, 2)]
    results = table([0.5, 0.4, 0.2, 0.9, 0.8, 0.6], np.zeros(6), params)
    display = TradeoffBoxDisplay.from_cv_results(results, by="module", baseline={"alpha": 0})
    assert list(display.values) == ["a_$", "Linear"]
    assert_allclose(list(display.values.values()), [[-0.1, -0.3], [-0.1, -0.3]])
    medians = [line.get_ydata()[0] for line in display.boxes_["medians"]]
    assert_allclose(medians, [-0.2, -0.2])
    assert_allclose(display.points_[0].get_ydata(), [-0.1, -0.3])
    plain = TradeoffBoxDisplay.from_cv_results(results, by="module")
    assert_allclose(plain.values["Linear"], [0.9, 0.8, 0.6])
    with pytest.raises(ValueError, match="must be one candidate for each module; there are 3"):
        TradeoffBoxDisplay.from_cv_results(results, by="module", baseline={})


# Maps by parameter


def test_maps_by_parameter_are_those_of_models_trained_so():
    grid = {"alpha": [0, 0.5], "max_epochs": [1, 2, 3]}
    options = {"X_test": X[:20], "y_test": NAMES[:20]}
    display = MapGridDisplay.from_estimator(
        small(), X, NAMES, image=X[4:5], param_grid=grid, **options
    )
    assert display.axes_.shape == (2, 4)
    model = small(max_epochs=3).fit(X, NAMES)
    drawn = display.ims_[1, 3]
    assert_array_equal(drawn.get_array(), model.explain(X[4:5], frame="image")[0])
    score = f"accuracy {model.score(X[:20], NAMES[:20]):.2f}"
    assert display.axes_[1, 3].get_title() == f"max_epochs = 3\n{score}"
    assert display.ims_[0, 3] is None and not display.axes_[0, 3].axison
    assert_allclose(display.ims_[0, 0].get_array(), X[4], atol=1e-7)


# Boxes


def test_boxes_and_their_overlap():
    map_ = np.zeros((10, 20))
    map_[2:6, 4:12] = 1
    true = [[4, 2, 8, 6], [0, 0, 1, 1]]
    display = LocalizationDisplay.from_predictions(
        np.zeros((1, 10, 20)), map_[None], [true], labels=["$_"]
    )
    assert_allclose(display.found, [[4, 2, 12, 6]])
    assert display.iou == pytest.approx([16 / 32])
    assert rectangles(display.axes_[0]) == [(4, 2, 8, 6), (0, 0, 1, 1), (4, 2, 12, 6)]
    assert display.axes_[0].get_title() == "$_\nIoU 0.50"
    assert [text.get_text() for text in display.legend_.get_texts()] == [
        "true box",
        "box of the map",
    ]


def test_localization_of_an_estimator(fitted):
    boxes = np.tile([1.0, 1.0, 6.0, 7.0], (7, 1, 1))
    display = LocalizationDisplay.from_estimator(fitted, X[:7], boxes, NAMES[:7], n_columns=3)
    assert display.axes_.shape == (7,)
    result = evaluate(
        fitted,
        X[:7],
        metrics="localization_accuracy",
        boxes=boxes,
        metric_params={"localization_accuracy": {"iou_threshold": 0.4}},
        progress=False,
    )["localization_accuracy"]
    assert_array_equal(display.iou >= 0.4, result.astype(bool))
    assert_array_equal(display.ims_[6].get_array(), fitted.explain(X[:7], frame="image")[6])


def test_an_empty_map_has_no_box():
    display = LocalizationDisplay.from_predictions(X[:1], np.zeros((1, 8, 8)), [[[0, 0, 4, 4]]])
    assert rectangles(display.axes_[0]) == [(0, 0, 4, 4)]
    assert "no box" in display.axes_[0].get_title()


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([], "0 entries for 1 images"),
        ([[0, 0, 1, 1]], r"boxes\[0\] must be of shape \(n_boxes, 4\)"),
        ([[[2, 0, 1, 1]]], "x1 < x2"),
    ],
)
def test_boxes_that_do_not_fit(fitted, boxes, message):
    with pytest.raises(ValueError, match=message):
        LocalizationDisplay.from_estimator(fitted, X[:1], boxes)


def test_boxes_need_maps_of_the_images_size():
    with pytest.raises(ValueError, match='frame="image"'):
        LocalizationDisplay.from_predictions(X[:1], np.ones((1, 4, 4)), [[[0, 0, 1, 1]]])


# Retrieval


def test_neighbours_are_the_explainers(embedding):
    found = embedding.explain_neighbors(X[:2], X[10:], k=2)
    display = RetrievalDisplay.from_estimator(
        embedding, X[:2], X[10:], query_labels=NAMES[:2], gallery_labels=NAMES[10:], k=2
    )
    assert display.axes_.shape == (4, 3)
    pictures = CAMDisplay.from_estimator(embedding, X, frame="input").images
    for q in range(2):
        assert_array_equal(display.queries[q], pictures[q])
        assert display.axes_[2 * q, 0].get_title() == f"query\n{NAMES[q]}"
        for n in range(2):
            index = found.indices[q, n]
            assert_array_equal(display.neighbors[q][n], pictures[10 + index])
            assert_array_equal(display.ims_[2 * q, n + 1].get_array(), found.query_maps[q, n])
            below = display.axes_[2 * q + 1, n + 1]
            assert_array_equal(
                display.ims_[2 * q + 1, n + 1].get_array(), found.neighbor_maps[q, n]
            )
            is_right = NAMES[10:][index] == NAMES[q]
            verdict = "right" if is_right else "wrong"
            expected = f"{verdict}: {NAMES[10:][index]}\ncosine {found.similarities[q, n]:.2f}"
            assert below.get_title() == expected
            line = below.spines["left"].get_linestyle()
            assert (line in ("-", "solid")) == is_right


def test_right_and_wrong_differ_by_frame_and_word():
    maps = np.ones((1, 2, 8, 8))
    found = Bunch(
        indices=np.array([[1, 0]]),
        similarities=np.array([[0.9, 0.8]]),
        query_maps=maps,
        neighbor_maps=maps,
    )
    display = RetrievalDisplay.from_predictions(
        X[:1], X[1:3], found, query_labels=["$a"], gallery_labels=["b", "$a"]
    )
    right, wrong = display.axes_[1, 1:]
    assert titles([right, wrong]) == ["right: $a\ncosine 0.90", "wrong: b\ncosine 0.80"]
    styles = [place.spines["top"].get_linestyle() for place in (right, wrong)]
    assert styles[0] != styles[1]
    assert_allclose(display.neighbors[0][0], X[2], atol=1e-7)
    unnamed = RetrievalDisplay.from_predictions(X[:1], X[1:3], found)
    assert unnamed.axes_[1, 1].get_title() == "cosine 0.90"


def test_what_is_right_may_be_said(embedding):
    def share_a_letter(of_query, of_neighbor):
        return not set(of_query).isdisjoint(of_neighbor)

    display = RetrievalDisplay.from_estimator(
        embedding,
        X[:2],
        X[2:4],
        query_labels=["ab", "cd"],
        gallery_labels=["bc", "be"],
        is_right=share_a_letter,
        k=2,
    )
    words = {
        (query, title.split("\n")[0])
        for query, row in zip("ac", display.axes_[1::2], strict=True)
        for title in titles(row[1:])
    }
    assert words == {
        *(("a", "right: bc"), ("a", "right: be")),
        *(("c", "right: bc"), ("c", "wrong: be")),
    }


def test_retrieval_errors(fitted, embedding):
    with pytest.raises(ValueError, match="EmbeddingCAMExplainer or an EmbeddingNet"):
        RetrievalDisplay.from_estimator(fitted, X[:1], X[1:])
    with pytest.raises(ValueError, match="or neither"):
        RetrievalDisplay.from_estimator(embedding, X[:1], X[1:], query_labels=NAMES[:1])
    with pytest.raises(ValueError, match="one label for each"):
        RetrievalDisplay.from_estimator(
            embedding, X[:1], X[1:], query_labels=NAMES[:1], gallery_labels=NAMES
        )
