"""Maps on images: what is drawn, against explain's maps."""

from __future__ import annotations

import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from displayed import (
    AWKWARD,
    NAMES,
    SmallEmbedding,
    X,
    Y,
    small,
    titles,
)
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from skorch import NeuralNetBinaryClassifier
from small_networks import ImageAndVector, SmallNet

from sklcam import CAMExplainer, EmbeddingCAMExplainer, EmbeddingNet
from sklcam.cam import GradCAM, TopK
from sklcam.explain import ExplanationWarning
from sklcam.plotting import (
    CAMDisplay,
    ConsistencyDisplay,
    MapGridDisplay,
    RetrievalDisplay,
    ViewPairDisplay,
)


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
        sign = "✓" if predicted[i] == NAMES[i] else "✗"
        assert text == f"true: {NAMES[i]} {sign} predicted: {predicted[i]} {score}"
    assert titles(display.axes_[0, 1:]) == ["gradcam", "hirescam"]


def test_models_side_by_side_each_say_what_they_predict(fitted, other):
    models = {"first": fitted, "second": other}
    display = CAMDisplay.from_estimator(models, X[:2], NAMES[:2])
    assert display.axes_.shape == (2, 3)
    for column, (name, model) in enumerate(models.items(), 1):
        above = display.axes_[0, column].get_title()
        predicted = model.predict(X[:1])[0]
        sign = "✓" if predicted == NAMES[0] else "✗"
        assert above.startswith(f"{name}\n{sign} predicted: {predicted}")
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


def test_a_map_is_as_opaque_as_it_is_high(fitted):
    display = CAMDisplay.from_estimator(fitted, X[:1])
    drawn = display.ims_[0, 1]
    assert_array_equal(drawn.get_alpha(), drawn.get_array())


def test_right_and_wrong_differ_by_sign_and_frame():
    options = {"images": X[:3], "maps": {"a": X[:3]}}
    display = CAMDisplay(**options, image_right=[True, False, None]).plot()
    right, wrong, unknown = (place.spines["top"] for place in display.axes_[:, 0])
    assert right.get_linestyle() != wrong.get_linestyle()
    assert right.get_edgecolor() != wrong.get_edgecolor()
    assert right.get_linewidth() == wrong.get_linewidth() > unknown.get_linewidth()
    of_maps = CAMDisplay(**options, map_right={"a": [True, False, None]}).plot()
    assert of_maps.axes_[1, 1].spines["top"].get_linewidth() == wrong.get_linewidth()


def test_labels_that_are_the_classes_as_other_numbers_are_right(fitted):
    net = small().fit(X, Y)
    display = CAMDisplay.from_estimator(net, X[:3], Y[:3].astype(float))
    assert display.image_right == (net.predict(X[:3]) == Y[:3]).tolist()
    assert CAMDisplay.from_estimator(fitted, X[:1]).image_right == [None]


def test_several_classes_have_a_column_each(fitted):
    display = CAMDisplay.from_estimator(
        fitted, X[:2], target=TopK(2), methods=["gradcam", "uniform"]
    )
    maps = fitted.explain(X[:2], target=TopK(2), frame="image")
    columns = [f"{name}, rank {rank}" for name in ("gradcam", "uniform") for rank in (1, 2)]
    assert list(display.maps) == columns
    probabilities = fitted.predict_proba(X[:2])
    for i in range(2):
        for rank, c in enumerate(np.argsort(-probabilities[i])[:2]):
            assert_array_equal(display.ims_[i, 1 + rank].get_array(), maps[i, rank])
            said = f"{fitted.classes_[c]} ({probabilities[i, c]:.2f})"
            assert display.axes_[i, 1 + rank].get_title().replace("\n", " ").endswith(said)
    given = CAMDisplay.from_estimator(fitted, X[:1], target=[["two", "zero"]])
    assert list(given.maps) == ["gradcam, class 1", "gradcam, class 2"]
    assert given.map_titles["gradcam, class 1"][0].startswith("two (")


def test_maps_of_single_pixels_are_drawn_by_themselves_up_to_a_percentile(fitted):
    methods = ["gradcam", "saliency"]
    display = CAMDisplay.from_estimator(fitted, X[:1], methods=methods, kind="both")
    assert [len(place.images) for place in display.axes_[0]] == [1, 1, 2, 1]
    assert titles(display.axes_[0, 1:]) == [*("gradcam", "", "saliency\nup to the 99th percentile")]
    drawn = display.ims_[0, 3]
    end = np.percentile(display.maps["saliency"][0], 99)
    assert drawn.get_clim() == (0, pytest.approx(end)) and end < 1
    blank = CAMDisplay.from_predictions(X[:1], {"a": np.zeros((1, 8, 8))}, pixelwise=["a"])
    assert blank.ims_[0, 1].get_clim() == (0, 1)


def test_maps_of_two_signs_are_white_at_0_and_opaque_far_from_it():
    maps = np.array([[[-1.0, 0.0], [2.0, 4.0]]])
    display = CAMDisplay.from_predictions(X[:1], maps)
    drawn = display.ims_[0, 1]
    assert drawn.get_clim() == (-4, 4)
    assert_array_equal(drawn.get_alpha(), [[0.25, 0], [0.5, 1]])
    against, nothing, favour = drawn.cmap(drawn.norm([-4.0, 0.0, 4.0]))
    assert min(nothing[:3]) > 0.95 and against[2] > against[0] and favour[0] > favour[2]
    given = CAMDisplay.from_predictions(X[:1], maps, limits=(-1, 4)).ims_[0, 1]
    assert_allclose(given.cmap(given.norm(0.0)), nothing)
    assert_array_equal(given.get_alpha(), [[1, 0], [0.5, 1]])
    plain = CAMDisplay.from_predictions(X[:1], maps, cmap="gray").ims_[0, 1]
    assert plain.cmap.name == "gray"


def test_portraits_are_no_higher_than_other_images():
    images = [np.zeros((60, 80)), np.zeros((80, 40))]
    display = CAMDisplay(images=images, maps={"a": [np.eye(4)] * 2}).plot()
    display.figure_.canvas.draw()
    first, second = (place.get_window_extent() for place in display.axes_[:, 0])
    assert second.height <= 1.1 * first.height and second.width < first.width
    panorama = CAMDisplay(
        images=[np.zeros((20, 80)), images[1]], maps={"a": [np.eye(4)] * 2}
    ).plot()
    panorama.figure_.canvas.draw()
    assert panorama.axes_[1, 0].get_window_extent().height > 100  # 1 inch
    alone = CAMDisplay(images=images[1:], maps={"a": [np.eye(4)]}).plot().figure_
    assert alone.get_figwidth() < display.figure_.get_figwidth()


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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExplanationWarning)  # one image's map is blank
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
    net = EmbeddingNet(SmallEmbedding, embedding_dim=4, image_size=16, max_epochs=0, verbose=0)
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
    assert {im.get_clim() for im in display.ims_[:, 1]} == {(-3, 3)}
    assert (display.colorbar_.vmin, display.colorbar_.vmax) == (-3, 3)


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


def test_names_and_numbers_fit_over_a_picture():
    names = ["width of leaf", "height of leaf", "stem diameter", "leaf area index"]
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(4, 4),
    )
    network[-1].weight.data.fill_(0.5)  # so that no map is blank
    options = {"task": "regression", "classes": names, "image_size": 32, "verbose": 0}
    explainer = CAMExplainer(network, target_layer="1", **options).fit()
    pictures, y = np.random.default_rng(0).random((2, 32, 32, 3)), np.full((2, 4), 2.25)
    display = CAMDisplay.from_estimator(explainer, pictures, y, target=names[0])
    display.figure_.canvas.draw()
    for place in display.axes_[:, 0]:
        text = place.title.get_window_extent()
        assert text.x0 >= 0  # not cut off on the left
        lines = place.get_title().split("\n")
        assert not any(line[0] in "-0123456789" for line in lines)
        assert "leaf 2.25" in place.get_title()


def test_many_images(fitted):
    assert CAMDisplay.from_estimator(fitted, X[:30]).axes_.shape == (30, 2)
    with pytest.raises(ValueError, match="at most 100 rows, and this would be 120"):
        CAMDisplay.from_estimator(fitted, np.concatenate([X, X]))


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


@pytest.mark.parametrize("kind", CAMDisplay.kinds)
def test_maps_that_say_nothing_say_so(kind):
    images, maps = np.zeros((4, 8, 8)), np.zeros((4, 8, 8))
    maps[1, 2, 2], maps[2], maps[3, 0, 0] = 1, -1, np.nan
    display = CAMDisplay.from_predictions(images, maps, kind=kind, alpha="map")
    written = [
        " ".join(text.get_text().replace("\n", " ") for text in place.texts)
        for place in display.axes_[:, -1]
    ]
    assert written == ["no positive evidence", "", "no positive evidence", "not finite"]
    display.figure_.canvas.draw()


def test_a_map_without_a_number_has_limits():
    display = CAMDisplay.from_predictions(np.zeros((1, 8, 8)), np.full((1, 8, 8), np.nan))
    assert display.ims_[0, -1].get_clim() == (0, 1)
