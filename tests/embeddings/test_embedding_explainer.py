"""Embedding explainers: against methods on classifiers, the paper's equations, loops by hand."""

from __future__ import annotations

import copy
import warnings
from functools import partial
from itertools import pairwise

import joblib
import numpy as np
import pytest
import torch
from embedders import (
    CLASSES,
    DIM,
    IMAGES,
    LABELS,
    N,
    embeddings_of,
    explainer,
    network,
    towards,
    trunk_of,
)
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from rounding import assert_close_maps, tolerance
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from small_networks import OF_ATTENTION
from torch import nn
from torch.utils.data import TensorDataset

from sklcam import CAMExplainer
from sklcam.cam import GradCAM, ScoreCAM, TopK, available
from sklcam.metrics import evaluate


@pytest.fixture(scope="module")
def fitted():
    return explainer().fit(IMAGES, LABELS)


# What it is


@pytest.mark.parametrize("target", [None, [0, 2, 1, 1, 0, 2, 2], TopK(2), [[0, 1]] * N])
@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "scorecam", "cam", "xgradcam"])
def test_with_one_hot_proxies_it_is_the_method_itself(method, target):
    model = network(3)
    ours = explainer(model, proxy=np.eye(3), method=method).fit()
    theirs = CAMExplainer(model, target_layer="5", method=method, verbose=0).fit()
    raw, expected = (of.explain(IMAGES, target, normalize=False) for of in (ours, theirs))
    assert_close_maps(raw, expected)
    assert_allclose(ours.explain(IMAGES, target), theirs.explain(IMAGES, target), atol=1e-4)


def test_weights_of_a_linear_head_in_closed_form(fitted):
    """Convolution, pooling, one linear layer: alpha is w p / Z."""
    head = fitted.model[-1].weight.detach().numpy()
    n_positions = fitted.explain_inputs(IMAGES[:1], method="gradcam", normalize=False)[0].shape
    assert n_positions == (1, 16, 16)
    with torch.no_grad():
        z = trunk_of(fitted.model)(IMAGES[:1]).shape[-2:].numel()
    expected = fitted.proxies_ @ head / z
    codes = [CLASSES.index(label) for label in LABELS]
    assert_allclose(fitted.channel_weights(IMAGES, LABELS), expected[codes], atol=1e-6)


def test_proxies_by_hand(fitted):
    """Eq. 11: the mean of embeddings of length 1, at length 1."""
    embeddings = embeddings_of(IMAGES)
    assert fitted.classes_.tolist() == CLASSES
    assert fitted.n_images_per_class_.tolist() == [3, 1, 3]
    for label, proxy in zip(fitted.classes_, fitted.proxies_, strict=True):
        mean = embeddings[label == LABELS].mean(0)
        assert_allclose(proxy, mean / np.linalg.norm(mean), atol=1e-6)
    # Of one image it is that image.
    assert_allclose(fitted.proxies_[1], embeddings[2], atol=1e-6)
    assert fitted.proxies_.dtype == np.float32


# These look at the outputs themselves, or at probabilities of them, which are classes in the one
# network alone.
OF_OUTPUTS = {"cam", "excitationbackprop", "finercam", "groupcam", "reciprocam", "rise"}


@pytest.mark.parametrize("method", sorted(set(available()) - OF_OUTPUTS - OF_ATTENTION))
def test_every_method_is_that_of_the_network_with_its_proxies_behind_it(method, fitted):
    """As a classifier whose last layer is the proxies."""
    model = network()
    last = nn.Linear(DIM, 3, bias=False)
    last.weight.data = torch.from_numpy(fitted.proxies_)
    options = {"method": method, "target_layer": "5", "verbose": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = clone(fitted).set_params(method=method).fit(IMAGES, LABELS)
        classifier = nn.Sequential(*model, last).eval()
        theirs = CAMExplainer(classifier, classes=CLASSES, **options).fit()
        if "random_state" in ours.as_method(None).get_params():
            seeded = ours.as_method(None).set_params(random_state=0)
            ours.set_params(method=seeded)
            theirs.set_params(method=seeded)
        raw, expected = (of.explain(IMAGES, LABELS, normalize=False) for of in (ours, theirs))
        # Occlusion takes differences of scores.
        size = float(classifier(IMAGES).abs().max()) if method == "occlusion" else None
        assert_close_maps(raw, expected, size)


def test_the_nearest_proxy_is_explained(fitted):
    embeddings = embeddings_of(IMAGES)
    nearest = (embeddings @ fitted.proxies_.T).argmax(1)
    assert_array_equal(fitted.predict(IMAGES), np.array(CLASSES)[nearest])
    assert fitted.score(IMAGES, LABELS) == np.mean(np.array(CLASSES)[nearest] == LABELS)
    assert_allclose(fitted.explain(IMAGES), towards(IMAGES, fitted.proxies_[nearest]), atol=1e-5)
    cosines = embeddings @ fitted.proxies_.T.astype(float)
    expected = np.exp(cosines) / np.exp(cosines).sum(1, keepdims=True)
    assert_allclose(fitted.predict_proba(IMAGES), expected, atol=1e-6)
    several = fitted.explain(IMAGES, TopK(3))
    order = np.argsort(-cosines, axis=1)
    for k in range(3):
        assert_allclose(several[:, k], towards(IMAGES, fitted.proxies_[order[:, k]]), atol=1e-5)


def test_embeddings(fitted):
    assert_allclose(fitted.transform(IMAGES), embeddings_of(IMAGES), atol=1e-6)
    assert_allclose(fitted.fit_transform(IMAGES, LABELS), embeddings_of(IMAGES), atol=1e-6)
    pipeline = make_pipeline(explainer(), KNeighborsClassifier(1)).fit(IMAGES, LABELS)
    assert pipeline.score(IMAGES, LABELS) == 1


# Other proxies


@pytest.mark.parametrize("cuts", [(0, 7), (0, 1, 7), (0, 3, 4, 7)])
def test_partial_fit_in_pieces_is_fit(cuts, fitted):
    """Also of classes that come later."""
    pieces = explainer()
    for start, stop in pairwise(cuts):
        assert pieces.partial_fit(IMAGES[start:stop], LABELS[start:stop]) is pieces
    assert pieces.classes_.tolist() == CLASSES
    assert_allclose(pieces.proxies_, fitted.proxies_, atol=1e-6)
    assert_array_equal(pieces.n_images_per_class_, fitted.n_images_per_class_)
    assert_allclose(pieces.explain(IMAGES), fitted.explain(IMAGES), atol=1e-5)


def test_fit_starts_anew():
    ours = explainer().fit(IMAGES, LABELS).fit(IMAGES[:4], [0, 1, 0, 1])
    assert ours.classes_.tolist() == [0, 1]
    assert ours.n_images_per_class_.tolist() == [2, 2]


def test_single_points_are_proxies_set_by_hand(fitted):
    embeddings = embeddings_of(IMAGES)
    expected = towards(IMAGES, embeddings)
    assert_allclose(fitted.explain(IMAGES, "self"), expected, atol=1e-5)
    alone = explainer(proxy="self").fit()
    assert_allclose(alone.explain(IMAGES), expected, atol=1e-5)
    assert alone.classes_ is None
    for i in range(2):
        by_hand = explainer(proxy=embeddings[[i]]).fit()
        assert_allclose(by_hand.explain(IMAGES[[i]], target=0)[0], expected[i], atol=1e-5)
    # What moves with the image is not to be differentiated: the proxy is a constant.
    raw = fitted.explain(IMAGES, "self", normalize=False)
    assert_allclose(raw, towards(IMAGES, embeddings, normalize=False), rtol=1e-4, atol=1e-7)
    for ask in (alone.predict, alone.predict_proba, lambda X: alone.explain(X, TopK(1))):
        with pytest.raises(NotFittedError, match="There are no classes"):
            ask(IMAGES)


def test_a_callable_proxy():
    def median(embeddings):
        assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-5)
        return np.median(embeddings, axis=0)

    ours = explainer(proxy=median).fit(IMAGES, LABELS)
    of_pears = np.median(embeddings_of(IMAGES)[LABELS == "pear"], axis=0)
    assert_allclose(ours.proxies_[2], of_pears, atol=1e-6)
    with pytest.raises(ValueError, match=r"must return an array of shape \(5,\).*\(\)"):
        explainer(proxy=lambda embeddings: embeddings.mean()).fit(IMAGES, LABELS)
    with pytest.raises(ValueError, match="only give mean proxies"):
        ours.partial_fit(IMAGES, LABELS)


@pytest.mark.parametrize(
    "form", [np.asarray, torch.tensor, lambda of: nn.Parameter(torch.tensor(of))]
)
def test_proxies_that_a_network_was_trained_with(form, fitted):
    ours = explainer(proxy=form(fitted.proxies_), classes=CLASSES).fit()
    assert_allclose(ours.explain(IMAGES, LABELS), fitted.explain(IMAGES, LABELS), atol=1e-6)
    assert ours.n_images_per_class_.tolist() == [0, 0, 0]


@pytest.mark.parametrize("scale", [1e-3, 20])
def test_the_scale_of_proxies_makes_no_difference(scale, fitted):
    scales = scale * np.array([[1.0], [5.0], [0.2]])
    ours = explainer(proxy=scales * fitted.proxies_, classes=CLASSES).fit()
    assert_allclose(ours.explain(IMAGES, LABELS), fitted.explain(IMAGES, LABELS), atol=1e-5)
    assert_allclose(ours.explain(IMAGES), fitted.explain(IMAGES), atol=1e-5)
    assert_array_equal(ours.predict(IMAGES), fitted.predict(IMAGES))


@pytest.mark.parametrize("target", [None, "self", "pear", "images"])
def test_other_images_in_the_batch_make_no_difference(target, fitted):
    of_all = IMAGES.flip(0) if target == "images" else target
    together = fitted.explain(IMAGES, of_all)
    for i in range(N):
        alone = fitted.explain(IMAGES[[i]], of_all[[i]] if target == "images" else target)
        assert_allclose(alone[0], together[i], atol=1e-5)


# Channels


def test_all_channels_are_all(fitted):
    n_channels = fitted.channel_weights(IMAGES).shape[1]
    every = clone(fitted).set_params(top_channels=n_channels).fit(IMAGES, LABELS)
    assert_array_equal(every.explain(IMAGES), fitted.explain(IMAGES))


@pytest.mark.parametrize("method", ["gradcam", "scorecam", "ablationcam", "xgradcam"])
def test_top_channels_by_hand(method, fitted):
    ours = explainer(method=method, top_channels=2).fit(IMAGES, LABELS)
    weights = ours.channel_weights(IMAGES, LABELS)
    with torch.no_grad():
        activations = trunk_of(network())(IMAGES).numpy()
    for i, (alphas, channels) in enumerate(zip(weights, activations, strict=True)):
        best = np.argsort(-alphas)[:2]
        raw = np.maximum((alphas[best, None, None] * channels[best]).sum(0), 0)
        maps = ours.explain(IMAGES[[i]], LABELS[[i]], normalize=False)[0]
        up = nn.functional.interpolate(
            torch.tensor(raw)[None, None], (16, 16), mode="bilinear", align_corners=False
        )
        assert_allclose(maps, up[0, 0], atol=1e-5 * max(1, raw.max()))


def test_top_channels_that_cannot_be():
    with pytest.raises(ValueError, match="more channels than the layer has"):
        explainer(top_channels=1000).fit(IMAGES, LABELS).explain(IMAGES)
    with pytest.raises(ValueError, match=r"LayerCAM\(\) does not"):
        explainer(top_channels=3).fit(IMAGES, LABELS).explain(IMAGES, method="layercam")
    with pytest.raises(ValueError, match="top_channels"):
        explainer(top_channels=0).fit(IMAGES, LABELS)


# Pairs and neighbours


def test_reference_images(fitted):
    references = IMAGES.flip(0)
    expected = towards(IMAGES, embeddings_of(references))
    assert_allclose(fitted.explain(IMAGES, references), expected, atol=1e-5)
    one = fitted.explain(IMAGES, references[:1])
    assert_allclose(one, towards(IMAGES, embeddings_of(references[:1]).repeat(N, 0)), atol=1e-5)
    first, second = fitted.explain_pairs(IMAGES, references)
    assert_allclose(first, expected, atol=1e-5)
    assert_allclose(second, towards(references, embeddings_of(IMAGES)), atol=1e-5)
    streamed = np.concatenate(list(fitted.iter_explain(IMAGES, references)))
    assert_array_equal(streamed, fitted.explain(IMAGES, references))
    with pytest.raises(ValueError, match="3 reference images for 7 images"):
        fitted.explain(IMAGES, references[:3])
    # No classes are needed.
    alone = explainer(proxy="self").fit()
    assert_allclose(alone.explain(IMAGES, references), expected, atol=1e-5)


@pytest.mark.parametrize("form", ["paths", "pictures", "data set"])
def test_reference_images_in_other_forms(form, tmp_path):
    arrays = np.random.default_rng(0).integers(0, 255, (3, 16, 16, 3), dtype=np.uint8)
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, array in zip(paths, arrays, strict=True):
        Image.fromarray(array).save(path)
    tensors = torch.tensor(arrays).movedim(-1, 1)
    references = {
        "paths": paths,
        "pictures": [Image.open(path) for path in paths],
        "data set": TensorDataset(tensors),
    }[form]
    model = nn.Sequential(nn.Conv2d(3, 1, 1), *network()).eval()
    ours = explainer(model, target_layer="6", proxy="self", image_size=16).fit()
    assert_allclose(ours.explain(arrays, references), ours.explain(arrays, arrays), atol=1e-6)


@pytest.mark.parametrize("form", ["tensor", "data set", "list"])
def test_neighbours_by_hand(form, fitted):
    gallery, query = IMAGES[2:], IMAGES[:2]
    cosines = embeddings_of(query) @ embeddings_of(gallery).T
    order = np.argsort(-cosines, axis=1)[:, :3]
    given = {"tensor": gallery, "data set": TensorDataset(gallery), "list": gallery}[form]
    found = fitted.explain_neighbors(query, given, k=3)
    assert_array_equal(found.indices, order)
    assert_allclose(found.similarities, np.take_along_axis(cosines, order, 1), atol=1e-6)
    assert found.query_maps.shape == found.neighbor_maps.shape == (2, 3, 16, 16)
    for i in range(2):
        for j, index in enumerate(order[i]):
            on_query = towards(query[[i]], embeddings_of(gallery[[index]]))
            on_neighbour = towards(gallery[[index]], embeddings_of(query[[i]]))
            assert_allclose(found.query_maps[i, j], on_query[0], atol=1e-5)
            assert_allclose(found.neighbor_maps[i, j], on_neighbour[0], atol=1e-5)
    with pytest.raises(
        ValueError, match=r"k, how many images of the gallery, .* from 1 to 5; got 6"
    ):
        fitted.explain_neighbors(query, gallery, k=6)


# Contrast


def test_contrast_is_the_score_less_the_mean_score():
    """Of logits and one-hot proxies: the logit, less the mean of all logits."""
    model = network(3)
    ours = explainer(model, proxy=5 * np.eye(3), contrast=True).fit()
    codes = torch.tensor([0, 2, 1, 1, 0, 2, 2])
    plain = CAMExplainer(model, target_layer="5", verbose=0).fit()
    raw = ours.explain(IMAGES, codes, normalize=False)
    size = plain.explain(IMAGES, codes, normalize=False).max()  # before the mean is subtracted

    def less_the_mean(code, outputs):
        return outputs[:, code] - outputs.mean(dim=1)

    for of_image, image, code in zip(raw, IMAGES, codes, strict=True):
        expected = plain.explain(image[None], partial(less_the_mean, code), normalize=False)
        assert_close_maps(of_image, expected[0], size)
    assert_allclose(ours.explain(IMAGES), ours.explain(IMAGES, ours.predict(IMAGES)), atol=1e-5)
    first_two = ours.explain(IMAGES, TopK(2))
    # Up to rounding: of two scores a batch may be weighed in another order.
    assert_allclose(first_two[:, 0], ours.explain(IMAGES), atol=1e-6)


def test_contrast_of_images(fitted):
    ours = explainer(contrast=True).fit(IMAGES, LABELS)
    assert_array_equal(ours.predict(IMAGES), fitted.predict(IMAGES))
    mean = fitted.proxies_.mean(axis=0)
    own = embeddings_of(IMAGES) - mean
    one = np.tile(own[2], (N, 1))
    assert np.linalg.norm(own, axis=1).max() < 0.1  # little is left of two directions of length 1,
    size = fitted.explain(IMAGES, "self", normalize=False).max()  # whose rounding stays
    for target, directions in (("self", own), (IMAGES[2:3], one)):
        raw = ours.explain(IMAGES, target, normalize=False)
        assert_close_maps(raw, towards(IMAGES, directions, normalize=False), size)
        assert raw.max() > 30 * tolerance(size)


@pytest.mark.parametrize(
    "ours",
    [explainer(proxy="self", contrast=True), explainer(proxy=np.eye(DIM)[:1], contrast=True)],
)
def test_contrast_needs_two_classes(ours):
    with pytest.raises(ValueError, match="needs the proxies of at least two"):
        ours.fit().explain(IMAGES, "self")


# Numbers


def test_metrics_by_hand(fitted):
    """Confidence is the softmax over cosines."""
    result = evaluate(fitted, IMAGES, LABELS, metrics=("adcc", "accuracy"), progress=False)
    maps = torch.tensor(fitted.explain(IMAGES))
    masked = IMAGES * maps[:, None]
    full, drop = (fitted.predict_proba(images) for images in (IMAGES, masked))
    rows, nearest = np.arange(N), full.argmax(1)
    expected = np.maximum(full[rows, nearest] - drop[rows, nearest], 0) / full[rows, nearest]
    assert_allclose(result["average_drop"], expected, atol=1e-5)
    again = fitted.explain(masked, np.array(CLASSES)[nearest])
    pairs = zip(maps.numpy(), again, strict=True)
    correlations = [np.corrcoef(a.ravel(), b.ravel())[0, 1] / 2 + 0.5 for a, b in pairs]
    assert_allclose(result["coherency"], correlations, atol=1e-4)
    assert result["accuracy"].mean() == fitted.score(IMAGES, LABELS)


@pytest.mark.parametrize("n_jobs", [None, 2])
def test_metrics_of_what_is_no_class_need_a_score(n_jobs, fitted):
    for target in ("self", IMAGES.flip(0)):
        with pytest.raises(ValueError, match=r"not a class, such as a callable.* Give score="):
            evaluate(fitted, IMAGES, target=target, metrics="adcc", progress=False)
        options = {"metrics": "complexity", "target": target, "n_jobs": n_jobs, "progress": False}
        result = evaluate(fitted, IMAGES, **options)
        expected = fitted.explain(IMAGES, target).mean((1, 2))
        assert_allclose(result["complexity"], expected, atol=1e-6)
    scored = evaluate(
        fitted,
        IMAGES,
        target="self",
        metrics="coherency",
        progress=False,
    )
    maps = torch.tensor(fitted.explain(IMAGES, "self"))
    # The masked image is explained by the embedding of the whole one.
    again = fitted.explain(IMAGES * maps[:, None], IMAGES)
    pairs = zip(maps.numpy(), again, strict=True)
    correlations = [np.corrcoef(a.ravel(), b.ravel())[0, 1] / 2 + 0.5 for a, b in pairs]
    assert_allclose(scored["coherency"], correlations, atol=1e-4)


# Manners


def test_what_it_learned_survives_a_file(fitted, tmp_path):
    joblib.dump(fitted, tmp_path / "explainer.joblib")
    loaded = joblib.load(tmp_path / "explainer.joblib")
    assert_array_equal(loaded.proxies_, fitted.proxies_)
    assert_array_equal(loaded.explain(IMAGES), fitted.explain(IMAGES))
    loaded.partial_fit(IMAGES[:1], ["kiwi"])
    assert loaded.classes_.tolist() == ["apple", "fig", "kiwi", "pear"]
    assert len(fitted.classes_) == 3


def test_the_model_is_left_as_it_was():
    model = network().train()
    before = copy.deepcopy(model.state_dict())
    ours = explainer(model).fit(IMAGES, LABELS)
    ours.explain(IMAGES, "self")
    ours.explain_neighbors(IMAGES[:1], IMAGES, k=2, method="scorecam")
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_copies(fitted):
    copied = clone(fitted.set_params(top_channels=None))
    assert copied.get_params(deep=False).keys() == fitted.get_params(deep=False).keys()
    assert copied.model is fitted.model
    with pytest.raises(NotFittedError):
        copied.explain(IMAGES)


def test_dead_networks_are_named():
    dead = network()
    nn.init.zeros_(dead[-1].weight)
    nn.init.zeros_(dead[-1].bias)
    with pytest.raises(ValueError, match="embeddings of 3 of 3 images are zero or not finite"):
        explainer(dead).fit(IMAGES, LABELS)
    ours = explainer(dead, proxy="self").fit()
    for ask in (ours.transform, ours.explain, lambda X: ours.explain(X, X)):
        with pytest.raises(ValueError, match="is the network dead"):
            ask(IMAGES)


class Opposite(nn.Module):
    """Embeddings that are each other's negatives."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)

    def forward(self, x):
        return self.conv(x).mean((2, 3)) * 0 + x.mean((1, 2, 3))[:, None]


def test_a_class_without_a_direction_is_named():
    images = torch.ones(4, 1, 4, 4) * torch.tensor([1.0, -1.0, 1.0, 1.0]).view(4, 1, 1, 1)
    with pytest.raises(ValueError, match=r"embeddings of \['a'\] add up to zero"):
        explainer(Opposite(), target_layer="conv").fit(images, ["a", "a", "b", "b"])


@pytest.mark.parametrize(
    ("options", "arguments", "message"),
    [
        ({}, (), "needs images X and labels y"),
        ({}, (IMAGES,), "proxy='mean' needs y: give one label per image"),
        ({}, (IMAGES, LABELS[:3]), r"y must be one label per image; got shape \(3,\) for 7"),
        ({"proxy": "median"}, (IMAGES, LABELS), "proxy"),
        ({"proxy": np.eye(3)}, (), r"Proxies must be of shape \(n_classes, 5\)"),
        ({"proxy": np.ones(5)}, (), r"Proxies must be of shape .* got \(5,\)"),
        ({"proxy": np.zeros((2, 5))}, (), "Some proxies are zero or not finite"),
        ({"proxy": np.eye(5), "classes": ["a", "b"]}, (), "one label for each of the 5 proxies"),
        ({"proxy": np.eye(5), "classes": list("aabcd")}, (), "all different"),
        ({"method": "gradcamm"}, (IMAGES, LABELS), "no method"),
    ],
)
def test_what_is_wrong_is_said_in_fit(options, arguments, message):
    with pytest.raises(ValueError, match=message):
        explainer(**options).fit(*arguments)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (["kiwi"] * N, r"labels that were not seen in fit: \['kiwi'\]"),
        ("kiwi", "labels that were not seen in fit"),
        (LABELS[:2], r"got shape \(2,\) for 7 images"),
        (TopK(4), "more classes than the network has: 3"),
    ],
)
def test_targets_that_cannot_be(target, message, fitted):
    with pytest.raises(ValueError, match=message):
        fitted.explain(IMAGES, target)


def test_networks_that_embed_nothing():
    with pytest.raises(ValueError, match=r"embeddings are \(n_images, dim\)"):
        explainer(trunk_of(network())).fit(IMAGES, LABELS)


def test_a_callable_target_takes_embeddings(fitted):
    p = torch.tensor(fitted.proxies_[0])
    ours = fitted.explain(IMAGES, lambda y: y @ p)
    assert_allclose(ours, fitted.explain(IMAGES, ["apple"] * N), atol=1e-6)


def test_a_data_set_that_knows_its_labels(fitted):
    data = TensorDataset(IMAGES)
    data.targets = LABELS.tolist()
    assert_allclose(explainer().fit(data).proxies_, fitted.proxies_, atol=1e-6)


def test_methods_with_options(fitted):
    method = GradCAM(relu=False, pooling="max")
    away = explainer(proxy=-fitted.proxies_, classes=CLASSES).fit()
    ours = away.explain(IMAGES, ["fig"] * N, method=method, normalize=False)
    directions = -fitted.proxies_[[1] * N]
    assert_allclose(ours, towards(IMAGES, directions, method, normalize=False), atol=1e-6)
    assert (ours < 0).any()
    assert fitted.explain(IMAGES[:1], method=ScoreCAM(batch_size=2)).shape == (1, 16, 16)
